//! One span. Where nothing is traced it records nothing and costs nothing, and what the caller sent still travels on.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags};
use opentelemetry::{Key, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, SpanData, SpanEvents, SpanLinks};

use super::TraceContext;
use super::span_buffer::{Finished, Recorder, SpanBuffer};

/// A span that is open until [`Span::end`], or until it is dropped.
#[derive(Debug, Default)]
pub struct Span {
    /// What travels on where nothing is recorded.
    inherited: TraceContext,
    live: Option<Box<Live>>,
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) recorder: Arc<Recorder>,
    pub(super) part: Arc<SpanBuffer>,
    pub(super) context: SpanContext,
    pub(super) parent: SpanContext,
    pub(super) kind: SpanKind,
    pub(super) name: Cow<'static, str>,
    pub(super) start: SystemTime,
    pub(super) attributes: Vec<KeyValue>,
    pub(super) events: Vec<Event>,
    pub(super) links: Vec<Link>,
    pub(super) status: Status,
    /// That it failed is no reason to keep it.
    pub(super) is_common: bool,
    /// The session's first span here: its end is the session's end.
    pub(super) root: Root,
}

/// What a span's end means to the session's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// Nothing.
    No,
    /// The part is over; the router may still want it.
    SpanBuffer,
    /// The request is over.
    Request,
}

/// What became of a session's spans at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody wants them, or it is not known yet.
    Unwanted,
    /// They were wanted from the start.
    Sampled,
    /// They are wanted because of how it went; other nodes that worked for the session do not know.
    Kept,
}

/// A span that others link to, from any thread.
#[derive(Clone, Debug, Default)]
pub struct SpanRef(pub(super) Option<Arc<SpanRefInner>>);

#[derive(Debug)]
pub(super) struct SpanRefInner {
    pub(super) part: Arc<SpanBuffer>,
    pub(super) context: SpanContext,
}

/// The name of a batch's span, for links from the sessions in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSpan {
    pub(super) trace: opentelemetry::trace::TraceId,
    pub(super) span: SpanId,
}

impl Span {
    /// A span that records nothing.
    pub(super) fn inherit(inherited: &TraceContext) -> Self {
        Self { inherited: inherited.clone(), live: None }
    }

    pub(super) fn live(live: Live) -> Self {
        Self { inherited: TraceContext::default(), live: Some(Box::new(live)) }
    }

    /// Whether anything is recorded: what is costly to find out need not be, otherwise.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.live.is_some()
    }

    /// What calls made within it carry.
    #[must_use]
    pub fn context(&self) -> TraceContext {
        let Some(live) = &self.live else { return self.inherited.clone() };
        let own = &live.context;
        let flags = if live.part.is_kept() { TraceFlags::SAMPLED } else { TraceFlags::default() };
        TraceContext::of(SpanContext::new(own.trace_id(), own.span_id(), flags, false, own.trace_state().clone()))
    }

    /// A span within it.
    #[must_use]
    pub fn child(&self, name: &'static str) -> Self {
        self.within(name, SpanKind::Internal)
    }

    /// A call made within it.
    #[must_use]
    pub fn call(&self, name: &'static str) -> Self {
        self.within(name, SpanKind::Client)
    }

    fn within(&self, name: &'static str, kind: SpanKind) -> Self {
        let Some(live) = &self.live else { return Self::inherit(&self.inherited) };
        Self::live(live.recorder.start(&live.part, &live.context, name.into(), kind))
    }

    /// Says something of it; a later word on the same thing replaces the earlier.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        let Some(live) = &mut self.live else { return };
        live.attributes.retain(|attribute| attribute.key.as_str() != key);
        live.attributes.push(KeyValue::new(key, value));
    }

    /// As [`Self::set`], where there is something to say.
    pub fn set_some(&mut self, key: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    /// Something happened now.
    pub fn event(&mut self, name: &'static str, attributes: impl IntoIterator<Item = (&'static str, Value)>) {
        let Some(live) = &mut self.live else { return };
        let attributes = attributes.into_iter().map(|(key, value)| KeyValue::new(Key::from_static_str(key), value));
        live.events.push(Event::new(name, SystemTime::now(), attributes.collect(), 0));
    }

    /// It took part in a batch.
    pub fn link_batch(&mut self, batch: Option<BatchSpan>) {
        let (Some(live), Some(batch)) = (&mut self.live, batch) else { return };
        let context = SpanContext::new(batch.trace, batch.span, TraceFlags::SAMPLED, false, Default::default());
        live.links.push(Link::with_context(context));
    }

    /// It began so long ago.
    pub fn began(&mut self, ago: std::time::Duration) {
        let Some(live) = &mut self.live else { return };
        live.start = live.start.checked_sub(ago).unwrap_or(live.start);
    }

    /// It failed: the session's spans are kept.
    pub fn fail(&mut self, kind: &'static str, what: impl FnOnce() -> String) {
        let Some(live) = &mut self.live else { return };
        live.status = Status::error(what());
        self.set("error.type", kind);
    }

    /// It failed, as many do: that alone keeps nothing.
    pub fn refuse(&mut self, kind: &'static str, what: impl FnOnce() -> String) {
        self.fail(kind, what);
        if let Some(live) = &mut self.live {
            live.is_common = true;
        }
    }

    /// The session is wanted whatever comes. True where it was not known so far.
    pub fn keep(&self) -> bool {
        let Some(live) = &self.live else { return false };
        let news = !live.part.is_kept();
        live.part.store.keep(live.part.session);
        news
    }

    /// For links from other threads.
    #[must_use]
    pub fn mark(&self) -> SpanRef {
        let marked = |live: &Live| Arc::new(SpanRefInner { part: live.part.clone(), context: live.context.clone() });
        SpanRef(self.live.as_deref().map(marked))
    }

    /// It ends now.
    pub fn end(mut self) -> Outcome {
        self.live.take().map_or(Outcome::Unwanted, Live::end)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            live.end();
        }
    }
}

impl Recorder {
    /// A span that starts now.
    pub(super) fn start(
        self: &Arc<Self>,
        part: &Arc<SpanBuffer>,
        parent: &SpanContext,
        name: Cow<'static, str>,
        kind: SpanKind,
    ) -> Live {
        let state = parent.trace_state().clone();
        let context = SpanContext::new(parent.trace_id(), self.ids.new_span_id(), TraceFlags::default(), false, state);
        Live {
            recorder: self.clone(),
            part: part.clone(),
            context,
            parent: parent.clone(),
            kind,
            name,
            start: SystemTime::now(),
            attributes: Vec::new(),
            events: Vec::new(),
            links: Vec::new(),
            status: Status::Unset,
            is_common: false,
            root: Root::No,
        }
    }
}

impl Live {
    fn end(mut self: Box<Self>) -> Outcome {
        let (part, root) = (self.part.clone(), self.root);
        let failed = matches!(self.status, Status::Error { .. }) && !self.is_common;
        let lost = part.lost();
        if root != Root::No && lost > 0 {
            self.attributes.push(KeyValue::new("cascadia.spans.lost", lost as i64));
        }
        let sampling = self.recorder.sampling;
        part.take(Finished::Own(Box::new(self.data(SystemTime::now()))));
        if root == Root::No {
            return Outcome::Unwanted;
        }
        if part.is_kept() {
            return Outcome::Sampled;
        }
        if sampling.tail(failed, part.began.elapsed()) {
            part.store.keep(part.session);
            return Outcome::Kept;
        }
        if root == Root::Request {
            part.store.forget(part.session);
            part.discard();
        } else {
            part.store.clone().wait(part, Instant::now());
        }
        Outcome::Unwanted
    }

    fn data(self, end_time: SystemTime) -> SpanData {
        let mut events = SpanEvents::default();
        events.events = self.events;
        let mut links = SpanLinks::default();
        links.links = self.links;
        SpanData {
            span_context: self.context,
            parent_span_id: self.parent.span_id(),
            parent_span_is_remote: self.parent.is_remote(),
            span_kind: self.kind,
            name: self.name,
            start_time: self.start,
            end_time,
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events,
            links,
            status: self.status,
            instrumentation_scope: self.recorder.scope.clone(),
        }
    }
}
