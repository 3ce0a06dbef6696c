//! What a node records its spans with; off by default.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use cascadia_core::ids::SessionId;
use opentelemetry::trace::{Link, SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks, SpanProcessor};

use super::TraceContext;
use super::span::{BatchSpan, Live, Root, Span, SpanRef};
use super::span_buffer::{Finished, Recorder, SpanBuffer, SpanStore};
use super::tail_sampling::Sampling;

/// Links of one batch's span at most.
const MOST_LINKS: usize = 128;

/// Makes spans; clones share it. Off, it makes spans that record nothing.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Recorder>>);

/// A batch that ran.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// How long it took; it ended now.
    pub elapsed: Duration,
    /// Sessions in it.
    pub sessions: usize,
    /// Tokens in it.
    pub tokens: usize,
    /// Rows it was asked for.
    pub rows: usize,
}

impl Tracer {
    /// Sends what is wanted to `exporter`.
    #[must_use]
    pub fn new(sampling: Sampling, exporter: Arc<dyn SpanProcessor>) -> Self {
        let scope = InstrumentationScope::builder("cascadia").with_version(env!("CARGO_PKG_VERSION")).build();
        let (ids, store) = (RandomIdGenerator::default(), SpanStore::new(exporter));
        Self(Some(Arc::new(Recorder { sampling, scope, ids, store })))
    }

    /// Whether anything is recorded.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The first span of a session here, within its caller's. Its end is the session's end at this node; whether its spans
    /// are wanted, the router may still say.
    #[must_use]
    pub fn session(&self, session: SessionId, caller: &TraceContext, name: &'static str) -> Span {
        self.first(session, caller, name.into(), Root::SpanBuffer)
    }

    /// The span of a whole request, within its client's. Its end decides whether the request's spans are wanted.
    #[must_use]
    pub fn request(&self, session: SessionId, client: &TraceContext, name: impl FnOnce() -> String) -> Span {
        if self.is_on() { self.first(session, client, name().into(), Root::Request) } else { Span::inherit(client) }
    }

    fn first(&self, session: SessionId, caller: &TraceContext, name: Cow<'static, str>, root: Root) -> Span {
        let Some(recorder) = &self.0 else { return Span::inherit(caller) };
        let mut parent = caller.span().clone();
        if !parent.is_valid() {
            // A span without a parent: only its trace has a name.
            let trace = recorder.ids.new_trace_id();
            parent = SpanContext::new(
                trace,
                opentelemetry::trace::SpanId::INVALID,
                TraceFlags::default(),
                false,
                TraceState::default(),
            );
        }
        let part = SpanBuffer::begin(&recorder.store, session, recorder.sampling.head(caller, parent.trace_id()));
        Span::live(Live { root, ..recorder.start(&part, &parent, name, SpanKind::Server) })
    }

    /// The span of a batch, after the fact: a trace of its own that links the sessions it served, exported if one of them
    /// is. `None` where none of them is recorded.
    pub fn batch<'m>(&self, batch: Batch, served: impl Iterator<Item = &'m SpanRef>) -> Option<BatchSpan> {
        let recorder = self.0.as_ref()?;
        let marked: Vec<_> = served.filter_map(|mark| mark.0.as_deref()).collect();
        if marked.is_empty() {
            return None;
        }
        let end_time = SystemTime::now();
        let name = BatchSpan { trace: recorder.ids.new_trace_id(), span: recorder.ids.new_span_id() };
        let mut links = SpanLinks::default();
        links.links = marked.iter().take(MOST_LINKS).map(|marked| Link::with_context(marked.context.clone())).collect();
        let data = SpanData {
            span_context: SpanContext::new(name.trace, name.span, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: opentelemetry::trace::SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: "verify batch".into(),
            start_time: end_time.checked_sub(batch.elapsed).unwrap_or(end_time),
            end_time,
            attributes: vec![
                KeyValue::new("spec.verify.batch_sessions", batch.sessions as i64),
                KeyValue::new("spec.verify.batch_tokens", batch.tokens as i64),
                KeyValue::new("spec.verify.batch_rows", batch.rows as i64),
            ],
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: Status::Unset,
            instrumentation_scope: recorder.scope.clone(),
        };
        let shared = Arc::new(Mutex::new(Some(data)));
        for marked in marked {
            marked.part.take(Finished::Shared(shared.clone()));
        }
        Some(name)
    }

    /// The router wants what was recorded of a session here.
    pub fn keep(&self, session: SessionId) {
        if let Some(recorder) = &self.0 {
            recorder.store.keep(session);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::Context;
    use opentelemetry_sdk::error::OTelSdkResult;

    use super::super::span::Outcome;
    use super::super::span_buffer::MAX_BUFFERED_SPANS;
    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Memory(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Memory {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            assert!(span.span_context.is_sampled(), "an exporter drops it otherwise");
            self.0.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    impl Memory {
        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = self.0.lock().unwrap().drain(..).map(|span| span.name.into_owned()).collect();
            names.sort();
            names
        }
    }

    fn tracer(ratio: f64, slow: Option<Duration>) -> (Tracer, Memory) {
        let memory = Memory::default();
        (Tracer::new(Sampling { ratio, slow }, Arc::new(memory.clone())), memory)
    }

    const NOBODY: SessionId = SessionId(1);

    fn caller() -> TraceContext {
        TraceContext::default()
    }

    #[test]
    fn where_nothing_is_traced_the_callers_context_travels_on() {
        let mut headers = http::HeaderMap::new();
        headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
        let client = TraceContext::from_headers(&headers);
        let mut span = Tracer::default().request(NOBODY, &client, || unreachable!("no name is made"));
        span.set("a", 1);
        span.fail("x", || unreachable!("no words are made"));
        assert!(!span.is_recording());
        assert_eq!(span.child("draft").call("Verify/Stream").context(), client);
        assert_eq!(span.end(), Outcome::Unwanted);
    }

    #[test]
    fn children_hang_below_their_parents_across_nodes() {
        let (router, sent) = tracer(1.0, None);
        let request = router.request(NOBODY, &caller(), || "chat demo".into());
        let call = request.call("Session/Run");
        let (drafter, received) = tracer(0.0, None);
        let mut hop = tonic::metadata::MetadataMap::new();
        call.context().inject(&mut hop);
        let session = drafter.session(NOBODY, &TraceContext::from_metadata(&hop), "Session/Run");
        session.child("draft").end();
        assert_eq!(session.end(), Outcome::Sampled, "the head of the request said so");
        drop(call);
        request.end();
        let (sent, received) = (sent.0.lock().unwrap().clone(), received.0.lock().unwrap().clone());
        let of = |spans: &[SpanData], name: &str| spans.iter().find(|span| span.name == name).unwrap().clone();
        let (request, call) = (of(&sent, "chat demo"), of(&sent, "Session/Run"));
        let (session, draft) = (of(&received, "Session/Run"), of(&received, "draft"));
        assert_eq!(request.parent_span_id, opentelemetry::trace::SpanId::INVALID);
        assert_eq!(call.parent_span_id, request.span_context.span_id());
        assert_eq!(session.parent_span_id, call.span_context.span_id());
        assert!(session.parent_span_is_remote && !draft.parent_span_is_remote);
        assert_eq!(draft.parent_span_id, session.span_context.span_id());
        for span in [&call, &session, &draft] {
            assert_eq!(span.span_context.trace_id(), request.span_context.trace_id());
        }
    }

    #[test]
    fn what_fails_or_is_slow_is_kept_whole_and_the_rest_is_not() {
        let run = |slow, fails: bool| {
            let (tracer, memory) = tracer(0.0, slow);
            let mut request = tracer.request(NOBODY, &caller(), || "chat demo".into());
            request.child("placement").end();
            assert!(memory.names().is_empty(), "not known yet");
            if fails {
                request.fail("internal", || "the engine failed".into());
            }
            (request.end(), memory.names())
        };
        let whole = ["chat demo", "placement"].map(String::from).to_vec();
        assert_eq!(run(None, true), (Outcome::Kept, whole.clone()));
        assert_eq!(run(Some(Duration::ZERO), false), (Outcome::Kept, whole));
        assert_eq!(run(None, false), (Outcome::Unwanted, Vec::new()));
    }

    #[test]
    fn the_routers_word_reaches_parts_that_are_open_and_parts_that_ended() {
        let (tracer, memory) = tracer(0.0, None);
        let open = tracer.session(NOBODY, &caller(), "open");
        let ended = tracer.session(NOBODY, &caller(), "ended");
        let other = tracer.session(SessionId(2), &caller(), "another session");
        ended.child("draft").end();
        let late = ended.child("late");
        ended.end();
        other.end();
        tracer.keep(NOBODY);
        assert_eq!(memory.names(), ["draft", "ended"]);
        late.end();
        open.end();
        assert_eq!(memory.names(), ["late", "open"]);
        tracer.keep(NOBODY);
        assert!(memory.names().is_empty());
    }

    #[test]
    fn a_batch_is_exported_once_with_the_first_of_its_sessions_that_is_wanted() {
        let (tracer, memory) = tracer(0.0, None);
        let sessions = [1, 2, 3].map(|id| tracer.session(SessionId(id), &caller(), "session"));
        let marks = sessions.each_ref().map(Span::mark);
        let batch = Batch { elapsed: Duration::from_millis(5), sessions: 3, tokens: 9, rows: 6 };
        let span = tracer.batch(batch, marks.iter()).unwrap();
        assert!(memory.names().is_empty());
        tracer.keep(SessionId(2));
        {
            let exported = memory.0.lock().unwrap();
            let [batch] = &exported[..] else { panic!("one span: {exported:?}") };
            assert_eq!((batch.span_context.span_id(), batch.links.len()), (span.span, 3));
            assert_eq!(batch.end_time.duration_since(batch.start_time).unwrap(), Duration::from_millis(5));
        }
        memory.names();
        tracer.keep(SessionId(3));
        assert!(memory.names().is_empty(), "once");
        assert_eq!(tracer.batch(batch, std::iter::empty::<&SpanRef>()), None);
        assert_eq!(tracer.batch(batch, [SpanRef::default()].iter()), None);
    }

    #[test]
    fn parts_that_wait_hold_a_bounded_number_of_spans() {
        let (tracer, memory) = tracer(0.0, None);
        for id in 0..40 {
            let session = tracer.session(SessionId(id), &caller(), "session");
            for _ in 0..MAX_BUFFERED_SPANS + 5 {
                session.child("draft").end();
            }
            session.end();
        }
        tracer.keep(SessionId(0));
        assert!(memory.names().is_empty(), "the oldest made room");
        tracer.keep(SessionId(39));
        let spans = memory.0.lock().unwrap().clone();
        assert_eq!(spans.len(), MAX_BUFFERED_SPANS);
    }
}
