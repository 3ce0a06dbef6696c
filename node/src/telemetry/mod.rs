//! What a process says of its work: logs, and the trace context that crosses every hop.

mod context;
mod logs;

pub use context::TraceContext;
pub use logs::init;

use tracing_subscriber::filter::ParseError;

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is none.
    #[error(
        "the log filter \"{filter}\" cannot be read: {source}; write a level (error, warn, info, debug, trace) or target=level, separated by commas"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Logs were set up before.
    #[error("logs are set up already; call telemetry::init once")]
    Twice,
}
