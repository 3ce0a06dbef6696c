//! Where a command's traces go.

use std::time::Duration;

use cascadia_node::telemetry::{Telemetry, TelemetryConfig};

use crate::terminal::Failure;

/// How long spans that wait may take to reach their collector when a node ends.
pub const FLUSH: Duration = Duration::from_secs(5);

/// Where traces go, by our settings or by OpenTelemetry's own variables. Those are there for everyone: one that we cannot
/// follow is said, and nothing is traced.
///
/// # Errors
/// When a setting of ours cannot be meant.
pub fn telemetry(config: &TelemetryConfig) -> Result<Telemetry, Failure> {
    let telemetry = Telemetry::new(config)?;
    if config.otlp_endpoint.is_some() {
        return Ok(telemetry);
    }
    let ambient = config.clone().or_environment(|name| std::env::var(name).ok());
    Ok(Telemetry::new(&ambient).unwrap_or_else(|error| {
        tracing::warn!(%error, "nothing is traced: OTEL_EXPORTER_OTLP_ENDPOINT is not for us");
        telemetry
    }))
}
