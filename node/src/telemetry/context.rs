//! The W3C trace context that crosses every hop: `traceparent` and `tracestate`, in and out.

use http::{HeaderMap, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceId};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::MetadataMap;

/// Longer than any `traceparent` or `tracestate` that must be passed on; what is longer is ignored.
const LONGEST_HEADER: usize = 512;

/// Bytes of a `traceparent` of version 00; later versions may have more behind a dash.
const PARENT_BYTES: usize = 55;

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";

/// Which span a call is part of; empty where its caller traces nothing. What cannot be read is ignored, as W3C asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext(SpanContext);

impl Default for TraceContext {
    fn default() -> Self {
        Self(SpanContext::NONE)
    }
}

impl TraceContext {
    /// The context of a span of ours.
    pub(super) fn of(span: SpanContext) -> Self {
        Self(span)
    }

    /// The span, for who makes a child of it.
    pub(super) fn span(&self) -> &SpanContext {
        &self.0
    }

    /// What a gRPC call brought, if anything.
    #[must_use]
    pub fn from_metadata(metadata: &MetadataMap) -> Self {
        Self::from_headers(metadata.as_ref())
    }

    /// What an HTTP request brought, if anything.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let Some(parent) = sole(headers, PARENT).filter(|parent| is_well_formed(parent)) else {
            return Self::default();
        };
        // A state may come in pieces; one that is too long or no text is left behind, its parent is not.
        let pieces: Option<Vec<&str>> = headers.get_all(STATE).iter().map(|piece| piece.to_str().ok()).collect();
        let state = pieces.unwrap_or_default().join(",");
        let state = (state.len() <= LONGEST_HEADER).then_some(state);
        let read = Brought { parent, state: state.as_deref() };
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &read);
        Self(context.span().span_context().clone())
    }

    /// Puts it on the next gRPC call.
    pub fn inject(&self, metadata: &mut MetadataMap) {
        self.inject_headers(metadata.as_mut());
    }

    /// Puts it on headers.
    pub fn inject_headers(&self, headers: &mut HeaderMap) {
        let Some(parent) = self.parent() else { return };
        let state = self.0.trace_state().header();
        for (name, value) in [(PARENT, parent), (STATE, state)] {
            if let Some(value) = HeaderValue::from_str(&value).ok().filter(|value| !value.is_empty()) {
                headers.insert(name, value);
            }
        }
    }

    /// As a `traceparent` says it; `None` where there is none.
    #[must_use]
    pub fn parent(&self) -> Option<String> {
        let flags = self.0.trace_flags().to_u8();
        self.0.is_valid().then(|| format!("00-{}-{}-{flags:02x}", self.0.trace_id(), self.0.span_id()))
    }

    /// The trace, in 32 hexadecimal digits where it is shown.
    #[must_use]
    pub fn trace_id(&self) -> Option<TraceId> {
        self.0.is_valid().then(|| self.0.trace_id())
    }
}

/// The value of a header that came once; which of two would count is nobody's to say.
fn sole<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    if values.next().is_some() {
        return None;
    }
    first.to_str().ok().map(str::trim)
}

/// Whether the fields have their widths, which the propagator does not look at.
fn is_well_formed(parent: &str) -> bool {
    let dashes = |at: &usize| parent.as_bytes().get(*at) == Some(&b'-');
    let whole = match parent.get(..2) {
        Some("00") => parent.len() == PARENT_BYTES,
        Some(_) => parent.len() == PARENT_BYTES || (parent.len() <= LONGEST_HEADER && dashes(&PARENT_BYTES)),
        None => false,
    };
    whole && [2, 35, 52].iter().all(dashes)
}

/// Two headers, as the propagator reads them.
struct Brought<'h> {
    parent: &'h str,
    state: Option<&'h str>,
}

impl Extractor for Brought<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            PARENT => Some(self.parent),
            STATE => self.state,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![PARENT, STATE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_trace_context_crosses_a_hop() {
        let incoming = headers(&[(PARENT, VALID), (STATE, "a=1"), (STATE, "b=2,c=3"), ("authorization", "secret")]);
        let context = TraceContext::from_headers(&incoming);
        assert_eq!(context.trace_id().unwrap().to_string(), "0af7651916cd43dd8448eb211c80319c");
        let mut outgoing = MetadataMap::new();
        context.inject(&mut outgoing);
        assert_eq!(outgoing.len(), 2);
        assert_eq!(outgoing.get(PARENT).unwrap(), VALID);
        assert_eq!(outgoing.get(STATE).unwrap(), "a=1,b=2,c=3");
        assert_eq!(TraceContext::from_metadata(&outgoing), context);
    }

    #[test]
    fn what_cannot_be_read_is_ignored() {
        let later = VALID.replacen("00", "01", 1);
        assert!(TraceContext::from_headers(&headers(&[(PARENT, &format!("{later}-more"))])).parent().is_some());
        for bad in [
            "",
            "x",
            "00",
            "00-0-0-0",
            "é0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz",
            &format!("{VALID}-more"),
            &format!("{later}more"),
            &"0".repeat(LONGEST_HEADER + 1),
        ] {
            let mut incoming = HeaderMap::new();
            incoming.insert(PARENT, HeaderValue::from_bytes(bad.as_bytes()).unwrap());
            let context = TraceContext::from_headers(&incoming);
            assert_eq!(context, TraceContext::default(), "{bad}");
            let mut outgoing = HeaderMap::new();
            context.inject_headers(&mut outgoing);
            assert!(outgoing.is_empty(), "{bad}");
        }
        assert_eq!(TraceContext::from_headers(&headers(&[(PARENT, VALID), (PARENT, VALID)])), TraceContext::default());
    }

    #[test]
    fn a_bad_state_does_not_take_the_parent_with_it() {
        for bad in ["no equals", &"a=1,".repeat(LONGEST_HEADER)] {
            let context = TraceContext::from_headers(&headers(&[(PARENT, VALID), (STATE, bad)]));
            assert_eq!(context.parent().as_deref(), Some(VALID), "{bad}");
            let mut outgoing = HeaderMap::new();
            context.inject_headers(&mut outgoing);
            assert_eq!(outgoing.len(), 1, "{bad}");
        }
    }
}
