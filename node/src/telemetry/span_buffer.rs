//! A session's part of a trace at one node, until it is known whether it is wanted.
//!
//! Spans of a part that is *kept* go to the exporter as they end. Those of a part that *waits* are held here; a part that
//! has ended waits a while longer, because the router decides when the whole request ends. Memory is bounded: spans of a
//! part, and spans of all parts together, of which the oldest go first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use cascadia_core::ids::SessionId;
use opentelemetry::InstrumentationScope;
use opentelemetry::trace::{SpanContext, TraceFlags};
use opentelemetry_sdk::trace::{RandomIdGenerator, SpanData, SpanProcessor};

use super::tail_sampling::Sampling;

/// Spans that one part holds while it waits; later ones are counted and dropped.
pub(super) const MAX_BUFFERED_SPANS: usize = 1_024;

/// Spans that all waiting parts of a node hold, about 16 MiB.
const ALL_SPANS: usize = 16_384;

/// How long the part of a session that ended here waits for the request to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A finished span; one that serves several sessions is exported once, with the first of them that is wanted.
#[derive(Clone, Debug)]
pub(super) enum Finished {
    Own(Box<SpanData>),
    Shared(Arc<Mutex<Option<SpanData>>>),
}

#[derive(Debug)]
enum State {
    Kept,
    Waiting(Vec<Finished>),
    Unwanted,
}

/// A session's spans at this node.
#[derive(Debug)]
pub(super) struct SpanBuffer {
    pub(super) session: SessionId,
    pub(super) began: Instant,
    pub(super) store: Arc<SpanStore>,
    state: Mutex<State>,
    /// Spans that did not fit.
    lost: AtomicUsize,
}

impl SpanBuffer {
    /// A part that is kept from the start, or waits.
    pub(super) fn begin(store: &Arc<SpanStore>, session: SessionId, kept: bool) -> Arc<Self> {
        let state = if kept { State::Kept } else { State::Waiting(Vec::new()) };
        let part = Arc::new(Self {
            session,
            began: Instant::now(),
            store: store.clone(),
            state: Mutex::new(state),
            lost: AtomicUsize::new(0),
        });
        if !kept {
            store.open(&part);
        }
        part
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its spans are exported.
    pub(super) fn is_kept(&self) -> bool {
        matches!(*self.state(), State::Kept)
    }

    /// Spans that did not fit while it waited.
    pub(super) fn lost(&self) -> usize {
        self.lost.load(Relaxed)
    }

    /// Takes a finished span.
    pub(super) fn take(&self, span: Finished) {
        self.store.make_room();
        match &mut *self.state() {
            State::Kept => self.store.export(span),
            State::Waiting(spans) if spans.len() < MAX_BUFFERED_SPANS && self.store.has_room() => {
                self.store.held.fetch_add(1, Relaxed);
                spans.push(span);
            }
            State::Waiting(_) => {
                self.lost.fetch_add(1, Relaxed);
            }
            State::Unwanted => {}
        }
    }

    /// It is wanted: what waits is exported, what follows goes straight on.
    pub(super) fn keep(&self) {
        self.settle(State::Kept).into_iter().for_each(|span| self.store.export(span));
    }

    /// Nobody will want it.
    pub(super) fn discard(&self) {
        self.settle(State::Unwanted);
    }

    fn settle(&self, settled: State) -> Vec<Finished> {
        let mut state = self.state();
        let State::Waiting(spans) = &mut *state else { return Vec::new() };
        let spans = std::mem::take(spans);
        self.store.held.fetch_sub(spans.len(), Relaxed);
        *state = settled;
        spans
    }
}

impl Drop for SpanBuffer {
    fn drop(&mut self) {
        self.discard();
    }
}

/// All parts of one node that wait, and the exporter behind them.
#[derive(Debug)]
pub(super) struct SpanStore {
    exporter: Arc<dyn SpanProcessor>,
    /// Spans that wait.
    held: AtomicUsize,
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    by_session: BTreeMap<SessionId, Vec<Weak<SpanBuffer>>>,
    /// Parts that ended here, oldest first.
    ended: VecDeque<(Instant, Arc<SpanBuffer>)>,
}

impl SpanStore {
    pub(super) fn new(exporter: Arc<dyn SpanProcessor>) -> Arc<Self> {
        Arc::new(Self { exporter, held: AtomicUsize::new(0), parts: Mutex::default() })
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, part: &Arc<SpanBuffer>) {
        self.parts().by_session.entry(part.session).or_default().push(Arc::downgrade(part));
    }

    /// The part has ended here and waits for the request's end.
    pub(super) fn wait(&self, part: Arc<SpanBuffer>, now: Instant) {
        let mut parts = self.parts();
        parts.ended.push_back((now, part));
        while parts.ended.front().is_some_and(|(since, _)| now.duration_since(*since) >= PATIENCE) {
            parts.drop_oldest();
        }
    }

    /// Nothing of the session waits for a word any more.
    pub(super) fn forget(&self, session: SessionId) {
        self.parts().by_session.remove(&session);
    }

    /// The request is wanted: so are its parts here, open or ended.
    pub(super) fn keep(&self, session: SessionId) {
        let parts = self.parts().by_session.remove(&session).unwrap_or_default();
        for part in parts.iter().filter_map(Weak::upgrade) {
            part.keep();
        }
    }

    fn has_room(&self) -> bool {
        self.held.load(Relaxed) < ALL_SPANS
    }

    /// Makes room at the cost of those that ended first.
    fn make_room(&self) {
        while !self.has_room() {
            if !self.parts().drop_oldest() {
                return;
            }
        }
    }

    pub(super) fn export(&self, span: Finished) {
        let span = match span {
            Finished::Own(span) => Some(*span),
            Finished::Shared(span) => span.lock().unwrap_or_else(PoisonError::into_inner).take(),
        };
        let Some(mut span) = span else { return };
        // The exporter takes what is marked so; a part that waited is not.
        let own = &span.span_context;
        if !own.is_sampled() {
            let state = own.trace_state().clone();
            span.span_context =
                SpanContext::new(own.trace_id(), own.span_id(), TraceFlags::SAMPLED, own.is_remote(), state);
        }
        self.exporter.on_end(span);
    }
}

impl Parts {
    /// Drops the part that ended first; `false` where none has.
    fn drop_oldest(&mut self) -> bool {
        let Some((_, part)) = self.ended.pop_front() else { return false };
        if let Some(others) = self.by_session.get_mut(&part.session) {
            others.retain(|other| other.upgrade().is_some_and(|other| !Arc::ptr_eq(&other, &part)));
            if others.is_empty() {
                self.by_session.remove(&part.session);
            }
        }
        // A span of it may still be open somewhere; it goes nowhere then.
        part.discard();
        true
    }
}

/// What all spans of a node share.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) sampling: Sampling,
    pub(super) scope: InstrumentationScope,
    pub(super) ids: RandomIdGenerator,
    pub(super) store: Arc<SpanStore>,
}
