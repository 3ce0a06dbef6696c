//! Which traces are exported: pure.
//!
//! The *head* decides when a request comes in: as its caller decided, else by ratio. The *tail* decides when it ends: what
//! failed or took long is kept whatever the head said. So every session is recorded while it is open.

use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::{SpanKind, TraceContextExt, TraceId};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, ShouldSample};

use super::TraceContext;

/// What the operator wants to see.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Of requests whose caller traces nothing, this part is exported.
    pub ratio: f64,
    /// A request that takes so long is always exported; `None` for none.
    pub slow: Option<Duration>,
}

impl Sampling {
    /// Whether a trace is exported whatever becomes of it.
    #[must_use]
    pub fn head(&self, parent: &TraceContext, trace: TraceId) -> bool {
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(self.ratio)));
        let parent = parent.span().is_valid().then(|| Context::new().with_remote_span_context(parent.span().clone()));
        let sampled = sampler.should_sample(parent.as_ref(), trace, "", &SpanKind::Server, &[], &[]);
        sampled.decision == SamplingDecision::RecordAndSample
    }

    /// Whether a session's part of a trace is exported because of how it went.
    #[must_use]
    pub fn tail(&self, failed: bool, took: Duration) -> bool {
        failed || self.slow.is_some_and(|slow| took >= slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(flags: &str) -> TraceContext {
        let mut headers = http::HeaderMap::new();
        let value = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
        headers.insert("traceparent", value.parse().unwrap());
        TraceContext::from_headers(&headers)
    }

    #[test]
    fn the_caller_decides_else_the_ratio() {
        let of = |ratio| Sampling { ratio, slow: None };
        let trace = TraceId::from(u128::MAX);
        for ratio in [0.0, 0.5, 1.0] {
            assert!(of(ratio).head(&parent("01"), trace), "{ratio}");
            assert!(!of(ratio).head(&parent("00"), trace), "{ratio}");
        }
        assert!(of(1.0).head(&TraceContext::default(), trace));
        assert!(!of(0.5).head(&TraceContext::default(), trace));
        assert!(of(0.5).head(&TraceContext::default(), TraceId::from(1)));
        assert!(!of(0.0).head(&TraceContext::default(), TraceId::from(1)));
    }

    #[test]
    fn what_failed_or_took_long_is_kept() {
        let sampling = Sampling { ratio: 0.0, slow: Some(Duration::from_secs(2)) };
        assert!(sampling.tail(true, Duration::ZERO));
        assert!(sampling.tail(false, Duration::from_secs(2)));
        assert!(!sampling.tail(false, Duration::from_millis(1999)));
        assert!(!Sampling { slow: None, ..sampling }.tail(false, Duration::MAX));
    }
}
