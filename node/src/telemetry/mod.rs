//! What a process says of its work: [`init`] logs, [`Telemetry`] the way to a trace collector, [`Tracer`] and [`Span`]
//! what was done for whom, [`TraceContext`] what crosses every hop.
//!
//! Spans are made by helpers of each node and given their context explicitly: engines are threads of their own, and a
//! batch serves many sessions. `sampling` says which traces are wanted; `part` holds a session's spans until that is
//! known.

mod config;
mod context;
mod logs;
mod otlp;
mod span;
mod span_buffer;
mod status;
pub mod tail_sampling;
mod tracer;

pub use config::TelemetryConfig;
pub use context::TraceContext;
pub use logs::{Logs, check_filter, init, log_span};
pub use otlp::Telemetry;
pub use span::{BatchSpan, Outcome, Span, SpanRef};
pub use tracer::{Batch, Tracer};

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
    /// Nothing can be sent there.
    #[error("the trace collector \"{endpoint}\" cannot be used: {problem}; give --otlp-endpoint http://HOST:4317")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting cannot be meant.
    #[error("{0}")]
    Config(String),
}
