//! What this machine is: a figure means little without it.

/// The processor's name, where the system tells it.
#[must_use]
pub fn cpu() -> Option<String> {
    let told = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    told.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1.to_owned()))
}
