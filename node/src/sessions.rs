//! Open sessions of one engine: mailbox in, one ragged batch a step, replies out.
//!
//! Drafter and expert differ only in their [`Work`]; every decision (what to batch, what to evict, what a row means) is
//! in `cascadia-core`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use cascadia_core::engine::Engine;
use cascadia_core::ids::{Epoch, SessionId, SessionSecret};
use cascadia_core::stepper::{Evicted, Rank, StepError, StepReport, Stepper, Task};
use cascadia_core::waiting_queue::{Arrival, LEAVES_AFTER, QueuedSession};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use crate::engine_thread::{EngineLoop, Mailbox, Undelivered};
use crate::status::{EngineLoad, StatusBoard};
use crate::telemetry::{Batch, BatchSpan, SpanRef, Tracer};
use crate::token::is_secret;

/// A task that takes orders while it runs and has something to say after a step.
pub trait Work: Task + 'static {
    /// What an open session may be told.
    type Order: Send + 'static;
    /// What it answers.
    type Reply: Send + 'static;

    /// Takes an order; cheap.
    fn order(&mut self, order: Self::Order);

    /// What it has to say since the last call, oldest first.
    fn drain(&mut self, hint: BatchInfo) -> Vec<Self::Reply>;
}

/// How busy the engine was when the reply was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchInfo {
    /// Tokens that wait.
    pub queued_tokens: usize,
    /// Sessions in the batch; 0 where no batch was needed.
    pub batch_sessions: usize,
    /// Tokens in the batch.
    pub batch_tokens: usize,
    /// When the batch began; absent where none was needed.
    pub began: Option<Instant>,
    /// The batch's span, if it has one.
    pub span: Option<BatchSpan>,
}

/// What a session hears.
#[derive(Debug)]
pub enum EngineEvent<R> {
    /// The engine holds the session, and so many of its tokens from others of the same beginning; always the first word.
    Opened(usize),
    /// The work's own reply.
    Reply(R),
    /// The session lost pages; it holds so many tokens. The engine fills them again by itself.
    Evicted(usize),
}

/// Why a session cannot go on here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As many sessions are open, and wait to be, as may.
    #[error("the node has no room: {0}; retry in 1 s, raise --kv-memory or --max-sessions, or add nodes")]
    Full(String),
    /// A higher or equal epoch is open, or took over.
    #[error("stale: epoch {} is open for this session", .0.0)]
    Epoch(Epoch),
    /// It was opened with a secret that this opening does not show.
    #[error("the session is open here with another secret: only the router that admitted it may open it again")]
    Secret,
    /// It had no work for long, and somebody waited for its slot.
    #[error("the session had nothing to do here for {} s while others waited for its slot: it goes on where there is room", LEAVES_AFTER.as_secs())]
    Idle,
    /// The session outgrew what this node has room for.
    #[error("{0}")]
    TooLong(String),
    /// The engine failed.
    #[error("the engine failed: {0}")]
    Engine(String),
    /// The model computes no numbers for the session's tokens; nor does it elsewhere.
    #[error("{0}")]
    NotFinite(String),
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Full(_) => Self::resource_exhausted(text),
            Refusal::Epoch(_) | Refusal::Secret => Self::aborted(text),
            Refusal::Idle => Self::unavailable(text),
            Refusal::TooLong(_) => Self::failed_precondition(text),
            Refusal::Engine(_) => Self::internal(text),
            Refusal::NotFinite(_) => Self::data_loss(text),
        }
    }
}

impl From<Undelivered> for Status {
    fn from(undelivered: Undelivered) -> Self {
        match undelivered {
            Undelivered::Full => Self::resource_exhausted("the engine's mailbox is full; retry in 1 s"),
            Undelivered::Closed => Self::unavailable("the engine has ended"),
        }
    }
}

/// A session to open.
#[derive(Debug)]
pub struct Open<W> {
    /// The session.
    pub key: SessionId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whoever opens it again must show this; without one, a higher epoch is enough.
    pub secret: Option<SessionSecret>,
    /// What to do.
    pub work: W,
    /// Higher first.
    pub priority: i32,
    /// Part of the prefix cache's key.
    pub salt: String,
    /// How long ago the router admitted it: a session that moved is older than what is new here.
    pub age: Duration,
    /// Tokens of it are committed: it waits for a slot as others do, and not for pages.
    pub begun: bool,
    /// What the spans of batches link to.
    pub mark: SpanRef,
}

type Replies<W> = mpsc::UnboundedSender<Result<EngineEvent<<W as Work>::Reply>, Refusal>>;

/// Which of several openings of one session: an epoch comes with the wire and may come twice.
type OpeningId = u64;

/// What arrives in the engine's mailbox.
pub enum Command<W: Work> {
    /// Opens a session, or takes it over with a higher epoch.
    Open(Box<Open<W>>, OpeningId, Replies<W>),
    /// An order for an open session.
    Order(SessionId, OpeningId, W::Order),
    /// The opening is over.
    Close(SessionId, OpeningId),
}

/// The way to an engine.
pub struct EngineHandle<W: Work> {
    mailbox: Mailbox<Command<W>>,
    openings: Arc<AtomicU64>,
}

impl<W: Work> Clone for EngineHandle<W> {
    fn clone(&self) -> Self {
        Self { mailbox: self.mailbox.clone(), openings: self.openings.clone() }
    }
}

impl<W: Work> std::fmt::Debug for EngineHandle<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EngineHandle")
    }
}

impl<W: Work> EngineHandle<W> {
    /// The way to the loop behind a mailbox.
    #[must_use]
    pub fn new(mailbox: Mailbox<Command<W>>) -> Self {
        Self { mailbox, openings: Arc::default() }
    }

    /// Opens a session and waits until the engine holds it, which takes as long as others have its slot or its pages.
    /// Dropping the future sends it away.
    ///
    /// # Errors
    /// When as many wait as may, a higher or equal epoch is open, the mailbox is full, or the engine has
    /// ended.
    pub async fn open(&self, open: Open<W>) -> Result<OpenSession<W>, Status> {
        // Unbounded, and yet bounded: a reply answers an order, of which a session has at most its slots, or is one of
        // the tokens that the request was admitted for.
        let (sender, heard) = mpsc::unbounded_channel();
        let (key, opening) = (open.key, self.openings.fetch_add(1, Relaxed));
        self.mailbox.send(Command::Open(Box::new(open), opening, sender))?;
        let mut session = OpenSession { engine: self.clone(), key, opening, heard, cached: 0 };
        match session.next().await? {
            EngineEvent::Opened(cached) => {
                session.cached = cached;
                Ok(session)
            }
            _ => Err(Status::internal("the engine answered before it opened the session")),
        }
    }
}

/// A session open at an engine; dropping it closes it.
#[derive(Debug)]
pub struct OpenSession<W: Work> {
    engine: EngineHandle<W>,
    key: SessionId,
    opening: OpeningId,
    heard: mpsc::UnboundedReceiver<Result<EngineEvent<W::Reply>, Refusal>>,
    /// Tokens that were in the cache when it was opened.
    pub cached: usize,
}

impl<W: Work> OpenSession<W> {
    /// Gives an order.
    ///
    /// # Errors
    /// When the mailbox is full or the engine has ended.
    pub fn order(&self, order: W::Order) -> Result<(), Status> {
        Ok(self.engine.mailbox.send(Command::Order(self.key, self.opening, order))?)
    }

    /// The next thing the engine says.
    ///
    /// # Errors
    /// When the session cannot go on here.
    pub async fn next(&mut self) -> Result<EngineEvent<W::Reply>, Status> {
        match self.heard.recv().await {
            Some(heard) => Ok(heard?),
            None => Err(Undelivered::Closed.into()),
        }
    }
}

impl<W: Work> Drop for OpenSession<W> {
    fn drop(&mut self) {
        // A full mailbox loses only the message: the engine drops a session that nobody listens to.
        let _ = self.engine.mailbox.send(Command::Close(self.key, self.opening));
    }
}

/// Observes an engine's loop, for metrics.
pub trait Observer<R>: Send + 'static {
    /// A step was done.
    fn stepped(&mut self, report: &StepReport, elapsed: Duration);
    /// A session got a reply.
    fn replied(&mut self, reply: &R);
}

struct Listener<W: Work> {
    epoch: Epoch,
    secret: Option<SessionSecret>,
    opening: OpeningId,
    replies: Replies<W>,
    mark: SpanRef,
}

impl<W: Work> Listener<W> {
    /// Whether who shows this secret, or none, may take the session over.
    fn admits(&self, shown: Option<&SessionSecret>) -> bool {
        match (&self.secret, shown) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(secret), Some(shown)) => is_secret(secret.bytes(), shown.bytes()),
        }
    }
}

/// The loop that owns a model, its pages and its open sessions.
pub struct SessionLoop<W: Work> {
    engine: Box<dyn Engine>,
    stepper: Stepper<W>,
    listeners: BTreeMap<SessionId, Listener<W>>,
    board: StatusBoard,
    observer: Box<dyn Observer<W::Reply>>,
    tracer: Tracer,
    batch_tokens: usize,
}

impl<W: Work> SessionLoop<W> {
    /// A loop over an engine.
    #[must_use]
    pub fn new(
        engine: Box<dyn Engine>,
        stepper: Stepper<W>,
        board: StatusBoard,
        observer: Box<dyn Observer<W::Reply>>,
        batch_tokens: usize,
    ) -> Self {
        let tracer = Tracer::default();
        let new = Self { engine, stepper, listeners: BTreeMap::new(), board, observer, tracer, batch_tokens };
        new.report(0);
        new
    }

    /// Records a span for each batch that serves a session with a mark.
    #[must_use]
    pub fn with_tracer(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    fn open(&mut self, open: Open<W>, opening: OpeningId, replies: Replies<W>, now: Duration) {
        if let Some(current) = self.listeners.get(&open.key) {
            if !current.admits(open.secret.as_ref()) {
                let _ = replies.send(Err(Refusal::Secret));
                return;
            }
            if current.epoch >= open.epoch {
                let _ = replies.send(Err(Refusal::Epoch(current.epoch)));
                return;
            }
            let _ = current.replies.send(Err(Refusal::Epoch(open.epoch)));
            self.forget(open.key);
        }
        let rank = Rank { priority: open.priority, born: now.saturating_sub(open.age) };
        let Open { key, epoch, secret, work, salt, begun, mark, .. } = open;
        match self.stepper.open(QueuedSession { key, task: work, rank, salt, begun }, now) {
            Err(refused) => {
                let _ = replies.send(Err(Refusal::Full(refused.to_string())));
                return;
            }
            Ok(arrival) => {
                self.listeners.insert(key, Listener { epoch, secret, opening, replies, mark });
                if arrival == Arrival::Admitted {
                    self.entered(key);
                }
            }
        }
        self.report(0);
    }

    /// The session is inside, and hears it.
    fn entered(&mut self, key: SessionId) {
        let cached = self.stepper.held(key).unwrap_or(0);
        if let Some(listener) = self.listeners.get(&key) {
            let _ = listener.replies.send(Ok(EngineEvent::Opened(cached)));
        }
        self.deliver(key, BatchInfo::default());
    }

    /// Admits those in the waiting queue that find room.
    fn admit_waiting(&mut self, now: Duration) {
        if !self.stepper.has_waiting() {
            return;
        }
        let admit_waiting = self.stepper.admit_waiting(now);
        // What the waiting queue costs others is counted as what a batch costs them.
        let report = StepReport { evicted: admit_waiting.evicted, ..StepReport::default() };
        self.observer.stepped(&report, Duration::ZERO);
        self.tell_evicted(report.evicted);
        for key in admit_waiting.left {
            if let Some(listener) = self.listeners.remove(&key) {
                tracing::info!(session = %key, "an idle session gave its slot to one that waited");
                let _ = listener.replies.send(Err(Refusal::Idle));
            }
        }
        for key in admit_waiting.entered {
            self.entered(key);
        }
    }

    fn tell_evicted(&self, evicted: Vec<Evicted>) {
        for eviction in evicted {
            if let Some(listener) = self.listeners.get(&eviction.key) {
                let _ = listener.replies.send(Ok(EngineEvent::Evicted(eviction.held)));
            }
        }
    }

    fn is_current(&self, key: SessionId, opening: OpeningId) -> bool {
        self.listeners.get(&key).is_some_and(|listener| listener.opening == opening)
    }

    fn forget(&mut self, key: SessionId) {
        self.listeners.remove(&key);
        self.stepper.remove(key);
    }

    /// Sends what the session has to say; forgets the session if nobody listens.
    fn deliver(&mut self, key: SessionId, hint: BatchInfo) {
        let (Some(listener), Some(work)) = (self.listeners.get(&key), self.stepper.get_mut(key)) else { return };
        let mut heard = true;
        for reply in work.drain(hint) {
            self.observer.replied(&reply);
            heard = listener.replies.send(Ok(EngineEvent::Reply(reply))).is_ok();
        }
        if !heard {
            self.forget(key);
        }
    }

    /// Work that nobody waits for is dropped before a batch is cut.
    fn drop_abandoned(&mut self) {
        let stepper = &mut self.stepper;
        self.listeners.retain(|key, listener| {
            let wanted = !listener.replies.is_closed();
            if !wanted {
                stepper.remove(*key);
            }
            wanted
        });
    }

    fn report(&self, batch_tokens_last: usize) {
        let load = self.stepper.load();
        self.board.record(EngineLoad {
            sessions: load.sessions,
            sessions_waiting: load.waiting_sessions,
            tokens_waiting: load.waiting_tokens,
            queued_tokens: load.queued_tokens,
            // The stepper's figure is of its last batch.
            running_tokens: if self.stepper.has_work() { load.running_tokens } else { 0 },
            kv_pages: load.pages_total,
            kv_pages_free: load.pages_free,
            kv_page_bytes: self.engine.facts().page_bytes,
            batch_tokens_last,
            batch_budget: self.batch_tokens,
            prefix_queries: load.prefix_queries,
            prefix_hits: load.prefix_hits,
        });
    }

    fn span(&self, report: &StepReport, elapsed: Duration) -> Option<BatchSpan> {
        let StepReport { sessions, tokens, rows, .. } = *report;
        let batch = Batch { elapsed, sessions, tokens, rows };
        let served = self.stepper.batch().filter_map(|key| Some(&self.listeners.get(&key)?.mark));
        self.tracer.batch(batch, served)
    }

    fn settle(&mut self, report: StepReport, began: Instant, span: Option<BatchSpan>) {
        let hint = BatchInfo {
            queued_tokens: self.stepper.load().queued_tokens,
            batch_sessions: report.sessions,
            batch_tokens: report.tokens,
            began: Some(began),
            span,
        };
        self.tell_evicted(report.evicted);
        for failure in report.failed {
            if let Some(listener) = self.listeners.remove(&failure.key) {
                let refusal = match failure.error {
                    StepError::Engine(_) => Refusal::Engine(failure.error.to_string()),
                    StepError::NotFinite(_) => {
                        tracing::error!(session = %failure.key, "{}", failure.error);
                        Refusal::NotFinite(failure.error.to_string())
                    }
                    StepError::Context { .. } | StepError::Pages { .. } => Refusal::TooLong(failure.error.to_string()),
                };
                let _ = listener.replies.send(Err(refusal));
            }
        }
        for key in report.ran {
            self.deliver(key, hint);
        }
    }
}

impl<W: Work> EngineLoop for SessionLoop<W> {
    type Command = Command<W>;

    fn handle(&mut self, command: Command<W>, now: Duration) {
        match command {
            Command::Open(open, opening, replies) => self.open(*open, opening, replies, now),
            Command::Order(key, opening, order) => {
                if self.is_current(key, opening)
                    && let Some(work) = self.stepper.get_mut(key)
                {
                    work.order(order);
                    self.deliver(key, BatchInfo::default());
                }
            }
            Command::Close(key, opening) => {
                if self.is_current(key, opening) {
                    self.forget(key);
                    self.report(0);
                }
            }
        }
    }

    fn step(&mut self, now: Duration) -> ControlFlow<()> {
        self.drop_abandoned();
        self.admit_waiting(now);
        if !self.stepper.has_work() {
            self.report(0);
            return ControlFlow::Continue(());
        }
        // Said before the pass, so that a pass that never ends is seen to have had work.
        self.report(0);
        let layers = self.engine.progress();
        let before = layers.load(Relaxed);
        let started = Instant::now();
        let report = self.stepper.step(self.engine.as_mut(), now);
        if let Some(reason) = report.lost {
            // Whoever listens hears that the engine has ended, and its session goes on elsewhere.
            self.board.engine_lost(reason);
            self.listeners.clear();
            return ControlFlow::Break(());
        }
        let elapsed = started.elapsed();
        let finished = u32::try_from(layers.load(Relaxed) - before).unwrap_or(u32::MAX);
        self.board.observe_layer(elapsed / finished.max(1));
        self.observer.stepped(&report, elapsed);
        let tokens = report.tokens;
        let span = self.span(&report, elapsed);
        self.settle(report, started, span);
        self.report(tokens);
        ControlFlow::Continue(())
    }

    fn has_work(&self) -> bool {
        self.stepper.has_work() || self.stepper.waiting_queue_is_due()
    }

    /// Whoever has been idle for long enough leaves its pages to the door.
    fn needs_tick(&self) -> bool {
        self.stepper.has_waiting()
    }
}
