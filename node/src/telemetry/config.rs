//! What an operator sets of logs and traces.

use std::time::Duration;

use super::TelemetryError;
use super::tail_sampling::Sampling;

/// The ratio that exports every request.
const ALL: f64 = 1.0;

/// A request that takes so many milliseconds is slow.
const SLOW_MS: u64 = 30_000;

/// Where traces go, and which. Each field is a flag and a `CASCADIA_*` variable.
#[derive(Clone, Debug, PartialEq, clap::Args)]
#[command(next_help_heading = "Telemetry")]
pub struct TelemetryConfig {
    /// Where traces are sent, as OTLP over gRPC: http://127.0.0.1:4317 [default: OTEL_EXPORTER_OTLP_ENDPOINT, else
    /// nothing is traced]
    #[arg(long, value_name = "URL", env = "CASCADIA_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Part of the requests whose trace is exported, from 0 to 1; a request that comes with a traceparent follows its
    /// caller
    #[arg(long, value_name = "RATIO", env = "CASCADIA_TRACE_RATIO", default_value_t = ALL)]
    pub trace_ratio: f64,
    /// Requests that take so many milliseconds are always exported, as those that fail are; 0 for none
    #[arg(long, value_name = "MS", env = "CASCADIA_TRACE_SLOW_MS", default_value_t = SLOW_MS)]
    pub trace_slow_ms: u64,
    /// Log each prompt and each answer, at the router, at level info: for debugging, never where prompts are private
    #[arg(long, env = "CASCADIA_LOG_PROMPTS")]
    pub log_prompts: bool,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, trace_ratio: ALL, trace_slow_ms: SLOW_MS, log_prompts: false }
    }
}

impl TelemetryConfig {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// One sentence naming the setting and the cure.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return Err(format!("trace_ratio is {}: give a number from 0 (none) to 1 (all)", self.trace_ratio));
        }
        self.endpoint().map(|_| ()).map_err(|error| error.to_string())
    }

    /// The collector; `None` where nothing is traced.
    ///
    /// # Errors
    /// When it is no address that can be sent to.
    pub(super) fn endpoint(&self) -> Result<Option<String>, TelemetryError> {
        let Some(given) = self.otlp_endpoint.clone().filter(|given| !given.is_empty()) else { return Ok(None) };
        let wrong = |problem: &str| TelemetryError::Endpoint { endpoint: given.clone(), problem: problem.to_owned() };
        let url = if given.contains("://") { given.clone() } else { format!("http://{given}") };
        let uri: http::Uri = url.parse().map_err(|_| wrong("it is no URL"))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http"), Some(host)) if !host.is_empty() => Ok(Some(url)),
            (Some("https"), _) => Err(wrong("TLS is not built in; send to a collector on the same machine or pod")),
            (Some("http"), _) => Err(wrong("it names no host")),
            _ => Err(wrong("only http:// is spoken")),
        }
    }

    /// What an operator sets by OpenTelemetry's own variables where ours say nothing.
    #[must_use]
    pub fn or_environment(mut self, variable: impl Fn(&str) -> Option<String>) -> Self {
        let of = |name| variable(name).filter(|value| !value.trim().is_empty());
        let disabled = of("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if self.otlp_endpoint.is_none() && !disabled {
            self.otlp_endpoint = of("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| of("OTEL_EXPORTER_OTLP_ENDPOINT"));
        }
        self
    }

    pub(super) fn sampling(&self) -> Sampling {
        let slow = (self.trace_slow_ms > 0).then(|| Duration::from_millis(self.trace_slow_ms));
        Sampling { ratio: self.trace_ratio, slow }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(endpoint: &str) -> TelemetryConfig {
        TelemetryConfig { otlp_endpoint: Some(endpoint.into()), ..TelemetryConfig::default() }
    }

    #[test]
    fn defaults_are_those_of_the_flags() {
        use clap::{Args as _, FromArgMatches as _};
        let flags = TelemetryConfig::augment_args(clap::Command::new("node"))
            .mut_args(|arg| arg.env(clap::builder::Resettable::Reset));
        let typed = TelemetryConfig::from_arg_matches(&flags.get_matches_from(["node"])).unwrap();
        assert_eq!(typed, TelemetryConfig::default());
    }

    #[test]
    fn an_endpoint_is_one_that_can_be_sent_to() {
        assert_eq!(TelemetryConfig::default().endpoint().unwrap(), None);
        assert_eq!(to("").endpoint().unwrap(), None);
        assert_eq!(to("http://c:4317").endpoint().unwrap().as_deref(), Some("http://c:4317"));
        assert_eq!(to("c:4317").endpoint().unwrap().as_deref(), Some("http://c:4317"));
        for bad in ["https://c:4317", "ftp://c", "http://", "http://a b", "http:///x"] {
            let error = to(bad).check().unwrap_err();
            assert!(error.contains(bad), "{error}");
        }
        let ratio = TelemetryConfig { trace_ratio: 1.5, ..TelemetryConfig::default() };
        assert!(ratio.check().unwrap_err().contains("trace_ratio is 1.5"));
        assert!(TelemetryConfig { trace_ratio: f64::NAN, ..ratio }.check().is_err());
    }

    #[test]
    fn opentelemetrys_own_variables_count_where_ours_say_nothing() {
        let general = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "http://general:4317".to_owned());
        let of = |config: TelemetryConfig| config.or_environment(general).otlp_endpoint;
        assert_eq!(of(TelemetryConfig::default()).as_deref(), Some("http://general:4317"));
        assert_eq!(of(to("http://ours:4317")).as_deref(), Some("http://ours:4317"));
        assert_eq!(of(to("")).as_deref(), Some(""), "an empty one of ours turns tracing off");
        let off = |name: &str| if name == "OTEL_SDK_DISABLED" { Some("true".into()) } else { general(name) };
        assert_eq!(TelemetryConfig::default().or_environment(off).otlp_endpoint, None);
    }
}
