//! Logs, and the trace context that crosses every hop. Never a prompt, never a completion.

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Why logs cannot be set up.
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

/// Sends logs to stderr, as text or as one JSON object a line.
///
/// # Errors
/// When the filter cannot be read, or logs were set up before.
pub fn init(filter: &str, json: bool) -> Result<(), TelemetryError> {
    let parsed =
        EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter { filter: filter.into(), source })?;
    let builder = tracing_subscriber::fmt().with_ansi(false).with_env_filter(parsed).with_writer(std::io::stderr);
    let set = if json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
    set.map_err(|_| TelemetryError::Twice)
}

/// The caller's W3C trace context, opaque: taken from one hop, put on the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    parent: Option<MetadataValue<Ascii>>,
    state: Option<MetadataValue<Ascii>>,
}

/// Longer than any valid `traceparent` or `tracestate`; what is longer is not passed on.
const LONGEST_HEADER: usize = 512;

impl TraceContext {
    /// What a call brought, if anything.
    #[must_use]
    pub fn from_metadata(metadata: &MetadataMap) -> Self {
        let of = |name| metadata.get(name).filter(|value| value.len() <= LONGEST_HEADER).cloned();
        Self { parent: of("traceparent"), state: of("tracestate") }
    }

    /// Puts it on the next call.
    pub fn inject(&self, metadata: &mut MetadataMap) {
        for (name, value) in [("traceparent", &self.parent), ("tracestate", &self.state)] {
            if let Some(value) = value {
                metadata.insert(name, value.clone());
            }
        }
    }

    /// The `traceparent`, for logs.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        self.parent.as_ref().and_then(|value| value.to_str().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_crosses_a_hop() {
        let mut incoming = MetadataMap::new();
        incoming.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
        incoming.insert("authorization", "secret".parse().unwrap());
        let context = TraceContext::from_metadata(&incoming);
        let mut outgoing = MetadataMap::new();
        context.inject(&mut outgoing);
        assert_eq!(outgoing.len(), 1);
        assert_eq!(TraceContext::from_metadata(&outgoing), context);
        assert!(context.parent().unwrap().starts_with("00-"));
        incoming.insert("traceparent", "0".repeat(LONGEST_HEADER + 1).parse().unwrap());
        assert_eq!(TraceContext::from_metadata(&incoming), TraceContext::default());
    }

    #[test]
    fn a_wrong_filter_is_told_with_its_cure() {
        let error = init("cascadia=loud", false).unwrap_err().to_string();
        assert!(error.contains("cascadia=loud") && error.contains("info"), "{error}");
    }
}
