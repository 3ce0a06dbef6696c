//! Programs that are told by their test alone what to do.

use std::process::Command;

/// Hides what is set, where the tests run, for other nodes, and proxies, which would be asked for what is on loopback.
pub fn unconfigured(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let upper = name.to_string_lossy().to_uppercase();
        if upper.starts_with("CASCADIA_") || upper.starts_with("OTEL_") || upper.ends_with("_PROXY") {
            command.env_remove(name);
        }
    }
}
