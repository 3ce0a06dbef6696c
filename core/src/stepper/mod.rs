//! The step loop of every engine: tasks of many sessions, one ragged batch, one forward pass.
//!
//! A task says which tokens its rows stand on; the stepper brings the session's cache to exactly these. It keeps the
//! ids that each cache holds, so a prefill, a block behind a rejected one, a diverged history and a re-prefill after
//! eviction are one thing: what `tokens()` has beyond the common prefix is outstanding.

mod admit;
mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::engine::{Chunk, Engine, EngineError, ModelFacts, Rows};
use crate::history::common_prefix;
use crate::ids::{SessionId, TokenId};
use crate::limits;
use crate::pages::{PageTable, Pages, pages_for};
pub use crate::scheduler::Rank;
use crate::scheduler::{self, Holder, Piece, Waiting};
use crate::waiting_queue::WaitingQueue;
pub use report::{AdmittedWaiting, Evicted, Failed, NotFinite, Refused, StepError, StepReport, StepperLoad};

/// One session's work on an engine.
pub trait Task: Send {
    /// All tokens whose KV the wanted rows need; the cache is brought to exactly these.
    fn tokens(&self) -> &[TokenId];

    /// Rows wanted, counted back from the last token: `Some(0)` is a pure prefill, `None` is idle.
    fn want(&self) -> Option<usize>;

    /// Called once all of [`Self::tokens`] is cached, with rows `first..first + wanted` of `rows`. May change what
    /// [`Self::tokens`] and [`Self::want`] answer.
    ///
    /// # Errors
    /// When a row that it has to read is no numbers; the task is not asked again.
    fn take(&mut self, rows: &Rows, first: usize) -> Result<(), NotFinite>;
}

/// Bounds of one stepper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepperConfig {
    /// Tokens of one batch at most; no task may want more rows.
    pub batch_tokens: usize,
    /// Sessions at most.
    pub max_sessions: usize,
    /// New sessions that may wait for a slot or for pages.
    pub max_waiting: usize,
    /// Pages to use at most; the engine may have fewer.
    pub pages: usize,
}

impl Default for StepperConfig {
    fn default() -> Self {
        Self {
            batch_tokens: limits::BATCH_TOKENS,
            max_sessions: limits::MAX_SESSIONS,
            max_waiting: limits::MAX_WAITING,
            pages: usize::MAX,
        }
    }
}

struct Entry<T> {
    task: T,
    rank: Rank,
    table: PageTable,
    /// The tokens whose KV is in the table's pages.
    cached: Vec<TokenId>,
    /// So many tokens have their pages already, until they are computed: what the session came in with.
    reserved_tokens: usize,
    /// Whether the task may have changed its tokens since they were compared with `cached`.
    changed: bool,
    /// Whether the tokens it came with are in the account of found prefixes.
    counted: bool,
    /// Number of the last batch it was in, or that was last cut when it came.
    last_batch: u64,
    used: Duration,
}

impl<T: Task> Entry<T> {
    fn outstanding(&self) -> usize {
        let Some(rows) = self.task.want() else { return 0 };
        self.task.tokens().len().saturating_sub(self.cached.len()).max(rows)
    }

    /// Makes the cache a prefix of the task's tokens that leaves the wanted rows to compute, as long as can be had.
    fn settle(&mut self, pages: &mut Pages) {
        let tokens = self.task.tokens();
        let end = tokens.len().saturating_sub(self.task.want().unwrap_or(0));
        if std::mem::take(&mut self.changed) {
            let start = common_prefix(&self.cached, tokens).min(end);
            // Pages past the cache are promised.
            if start < self.cached.len() {
                self.cached.truncate(pages.truncate(&mut self.table, start));
            }
        }
        // Others may have filled further pages of the same content meanwhile.
        let held = pages.adopt(&mut self.table, tokens, self.cached.len(), end);
        self.cached.extend_from_slice(&tokens[self.cached.len()..held]);
        if self.cached.len() >= tokens.len().min(self.reserved_tokens) {
            self.reserved_tokens = 0;
        }
        // Where pages were found, those that had been kept for these tokens were given up, and are there to be had.
        let _ = pages.extend(&mut self.table, self.reserved_tokens);
    }

    /// What it holds pages for.
    fn holder(&self, key: SessionId) -> Holder {
        Holder { key, rank: self.rank, has_work: self.task.want().is_some(), used: self.used }
    }

    /// Adds the tokens it came with, and how many of these were found, once.
    fn count_prefix(&mut self, (queries, hits): &mut (u64, u64)) {
        let brought = self.task.tokens().len();
        if brought > 0 && !std::mem::replace(&mut self.counted, true) {
            *queries += brought as u64;
            *hits += self.cached.len() as u64;
        }
    }

    /// Why it can never be served.
    fn fault(&self, context: usize, total: usize) -> Option<StepError> {
        let tokens = self.task.tokens().len();
        let needed = pages_for(tokens);
        if tokens > context {
            Some(StepError::Context { tokens, context })
        } else {
            (needed > total).then_some(StepError::Pages { needed, total })
        }
    }
}

/// Sessions, their pages, and the loop over them.
pub struct Stepper<T: Task> {
    config: StepperConfig,
    context: usize,
    pages: Pages,
    sessions: BTreeMap<SessionId, Entry<T>>,
    waiting_queue: WaitingQueue<T>,
    /// Slots or pages may have become free since the waiting queue was last tried.
    waiting_queue_is_due: bool,
    /// Batches cut so far.
    batches: u64,
    running: (usize, usize),
    /// Tokens that sessions came with, and how many of these were found.
    prefix: (u64, u64),
    /// The first in the order of service that found no pages for this batch.
    pages_exhausted_at: Option<(Rank, SessionId)>,
    waiting: Vec<Waiting>,
    pieces: Vec<Piece>,
    /// Sessions that are cached whole and want no row.
    ready: Vec<SessionId>,
    rows: Rows,
}

impl<T: Task> Stepper<T> {
    /// A stepper without sessions for an engine of these facts.
    #[must_use]
    pub fn new(facts: &ModelFacts, config: StepperConfig) -> Self {
        assert!(config.batch_tokens > 0, "a batch has tokens");
        Self {
            config,
            context: facts.context,
            pages: Pages::new(facts.pages.min(config.pages), &facts.fingerprint),
            sessions: BTreeMap::new(),
            waiting_queue: WaitingQueue::new(config.max_waiting),
            waiting_queue_is_due: false,
            batches: 0,
            running: (0, 0),
            prefix: (0, 0),
            pages_exhausted_at: None,
            waiting: Vec::new(),
            pieces: Vec::new(),
            ready: Vec::new(),
            rows: Rows { named: Some(facts.vocabulary), ..Rows::default() },
        }
    }

    /// The sessions of the last batch.
    pub fn batch(&self) -> impl Iterator<Item = SessionId> {
        self.pieces.iter().map(|piece| piece.key)
    }

    /// The session's task.
    #[must_use]
    pub fn get(&self, key: SessionId) -> Option<&T> {
        self.sessions.get(&key).map(|entry| &entry.task)
    }

    /// The session's task, to give it work.
    pub fn get_mut(&mut self, key: SessionId) -> Option<&mut T> {
        let entry = self.sessions.get_mut(&key)?;
        entry.changed = true;
        Some(&mut entry.task)
    }

    /// Closes a session, or sends it away from the waiting queue; its pages are released.
    pub fn remove(&mut self, key: SessionId) -> Option<T> {
        self.waiting_queue_is_due = true;
        let Some(mut entry) = self.sessions.remove(&key) else {
            return self.waiting_queue.remove(key).map(|queued| queued.task);
        };
        self.pages.release(&mut entry.table);
        Some(entry.task)
    }

    /// The open sessions.
    pub fn keys(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.sessions.keys().copied()
    }

    /// How many of the session's tokens are cached.
    #[must_use]
    pub fn held(&self, key: SessionId) -> Option<usize> {
        self.sessions.get(&key).map(|entry| common_prefix(&entry.cached, entry.task.tokens()))
    }

    /// Whether any session has work.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.sessions.values().any(|entry| entry.task.want().is_some())
    }

    /// How busy it is. A history that has diverged since the last step counts as if it had not.
    #[must_use]
    pub fn load(&self) -> StepperLoad {
        let entries = self.sessions.values();
        StepperLoad {
            sessions: self.sessions.len(),
            waiting_sessions: self.waiting_queue.len(),
            waiting_tokens: self.waiting_queue.iter().map(|queued| queued.task.tokens().len()).sum(),
            waiting: entries.clone().filter(|entry| entry.task.want().is_some()).count(),
            queued_tokens: entries.map(Entry::outstanding).sum(),
            running: self.running.0,
            running_tokens: self.running.1,
            pages_used: self.pages.used(),
            pages_free: self.pages.available(),
            pages_total: self.pages.total(),
            prefix_queries: self.prefix.0,
            prefix_hits: self.prefix.1,
        }
    }

    /// Compares the accounts of the pages with the open sessions; for tests.
    ///
    /// # Errors
    /// What does not add up.
    pub fn audit(&self) -> Result<(), String> {
        for (key, entry) in &self.sessions {
            if entry.cached.len() > entry.table.room() {
                return Err(format!("session {key} holds {} tokens in too few pages", entry.cached.len()));
            }
        }
        self.pages.audit(self.sessions.values().map(|entry| &entry.table))
    }

    /// One batch: settle what is outstanding, cut, find pages, one forward pass, hand the rows over.
    ///
    /// # Panics
    /// Where a task wants more rows than it has tokens or a batch holds, and where the engine breaks its contract.
    pub fn step(&mut self, engine: &mut dyn Engine, now: Duration) -> StepReport {
        let mut report = StepReport::default();
        self.settle(&mut report);
        self.batches += 1;
        self.pages_exhausted_at = None;
        self.cut(&mut report);
        match self.pass(engine, &mut report) {
            Ok(()) => self.hand_over(now, &mut report),
            Err(EngineError::Fatal(reason)) => report.lost = Some(reason),
            Err(error) => self.fail_batch(&error, &mut report),
        }
        self.running = (report.sessions, report.tokens);
        // Rejected drafts and lost pages leave room.
        self.waiting_queue_is_due = true;
        report
    }

    /// Compares every task with its cache and collects the outstanding work.
    fn settle(&mut self, report: &mut StepReport) {
        self.waiting.clear();
        self.ready.clear();
        for (key, entry) in &mut self.sessions {
            let Some(rows) = entry.task.want() else { continue };
            assert!(rows <= self.config.batch_tokens, "{rows} rows wanted, a batch has {}", self.config.batch_tokens);
            let tokens = entry.task.tokens().len();
            assert!(rows <= tokens, "{rows} rows wanted of {tokens} tokens");
            if let Some(error) = entry.fault(self.context, self.pages.total()) {
                report.failed.push(Failed { key: *key, error });
                continue;
            }
            entry.settle(&mut self.pages);
            entry.count_prefix(&mut self.prefix);
            let outstanding = tokens - entry.cached.len();
            debug_assert!(outstanding >= rows, "the wanted rows are computed together");
            if outstanding == 0 {
                self.ready.push(*key);
            } else {
                let (key, rank, last_batch) = (*key, entry.rank, entry.last_batch);
                self.waiting.push(Waiting { key, outstanding, rows, rank, last_batch });
            }
        }
        for failed in &report.failed {
            self.remove(failed.key);
        }
    }

    /// Cuts the batch out of the waiting work that finds pages.
    fn cut(&mut self, report: &mut StepReport) {
        let budget = self.config.batch_tokens;
        let (mut waiting, mut pieces) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.pieces));
        // The oldest takes its pages before anybody is in the batch, whose pages are safe.
        if let Some(oldest) = waiting.iter().min_by_key(|work| (work.rank, work.key)) {
            let piece = Piece { key: oldest.key, tokens: oldest.outstanding.min(budget) };
            self.find_pages(piece, report);
        }
        scheduler::cut(&mut waiting, budget, &mut pieces, |piece| {
            let lost = report.evicted.iter().any(|evicted| evicted.key == piece.key);
            let found = !lost && self.find_pages(piece, report);
            if found {
                self.sessions.get_mut(&piece.key).expect("a waiting session").last_batch = self.batches;
            }
            found
        });
        (self.waiting, self.pieces) = (waiting, pieces);
    }

    /// Makes room for a piece, at the cost of sessions that come after it and are not in the batch.
    fn find_pages(&mut self, piece: Piece, report: &mut StepReport) -> bool {
        loop {
            let entry = self.sessions.get_mut(&piece.key).expect("a waiting session");
            let Err(missing) = self.pages.extend(&mut entry.table, entry.cached.len() + piece.tokens) else {
                return true;
            };
            let asking = (entry.rank, piece.key);
            // Nobody finds a victim where one who comes before found none.
            if self.pages_exhausted_at.is_some_and(|pages_exhausted_at| pages_exhausted_at <= asking) {
                return false;
            }
            let outside = |entry: &Entry<T>| entry.last_batch != self.batches && entry.table.room() > 0;
            let holders = self.sessions.iter().filter(|(_, entry)| outside(entry));
            let holders = holders.map(|(key, entry)| entry.holder(*key));
            let Some(victim) = scheduler::victim(holders, asking) else {
                self.pages_exhausted_at = Some(asking);
                return false;
            };
            self.evict(victim, missing, &mut report.evicted);
        }
    }

    /// Takes pages from the end of a session's table; pages that others read give nothing, so it may take some calls.
    fn evict(&mut self, key: SessionId, missing: usize, evicted: &mut Vec<Evicted>) {
        let entry = self.sessions.get_mut(&key).expect("a session that holds pages");
        let kept = (entry.table.room() / limits::PAGE_TOKENS).saturating_sub(missing) * limits::PAGE_TOKENS;
        self.pages.truncate(&mut entry.table, kept);
        entry.reserved_tokens = 0;
        if kept >= entry.cached.len() {
            return;
        }
        entry.cached.truncate(kept);
        let held = kept;
        match evicted.iter_mut().find(|evicted| evicted.key == key) {
            Some(evicted) => evicted.held = held,
            None => evicted.push(Evicted { key, held }),
        }
    }

    /// One forward pass over the batch, without the chunks that the engine refuses: their sessions alone are given up.
    fn pass(&mut self, engine: &mut dyn Engine, report: &mut StepReport) -> Result<(), EngineError> {
        loop {
            match self.forward(engine, report) {
                Err(EngineError::Chunk { index, problem }) if index < self.pieces.len() => {
                    let key = self.pieces.remove(index).key;
                    self.remove(key);
                    let error = StepError::Engine(EngineError::Chunk { index, problem });
                    report.failed.push(Failed { key, error });
                }
                ended => return ended,
            }
        }
    }

    fn forward(&mut self, engine: &mut dyn Engine, report: &mut StepReport) -> Result<(), EngineError> {
        (report.sessions, report.tokens, report.rows) = (self.pieces.len(), 0, 0);
        if self.pieces.is_empty() {
            return Ok(());
        }
        let mut batch = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            let entry = &self.sessions[&piece.key];
            let tokens = entry.task.tokens();
            let start = entry.cached.len();
            let end = start + piece.tokens;
            debug_assert!(self.pages.is_writable(&entry.table, start), "a batch writes private pages only");
            let rows = if end == tokens.len() { entry.task.want().unwrap_or(0) } else { 0 };
            batch.push(Chunk { start, tokens: &tokens[start..end], pages: entry.table.pages(), rows });
            report.rows += rows;
            report.tokens += piece.tokens;
        }
        engine.forward(&batch, &mut self.rows)?;
        assert!(self.rows.len() == report.rows, "{} rows wanted, {} given", report.rows, self.rows.len());
        Ok(())
    }

    fn hand_over(&mut self, now: Duration, report: &mut StepReport) {
        let (mut first, mut failed) = (0, Vec::new());
        for piece in &self.pieces {
            let entry = self.sessions.get_mut(&piece.key).expect("a session in the batch");
            let start = entry.cached.len();
            let tokens = entry.task.tokens();
            entry.cached.extend_from_slice(&tokens[start..start + piece.tokens]);
            entry.used = now;
            if entry.cached.len() == tokens.len() {
                let rows = entry.task.want().unwrap_or(0);
                if let Err(error) = entry.task.take(&self.rows, first) {
                    failed.push(Failed { key: piece.key, error: StepError::NotFinite(error) });
                } else {
                    entry.changed = true;
                    report.ran.push(piece.key);
                }
                first += rows;
            }
            self.pages.register(&mut entry.table, &entry.cached);
        }
        for key in &self.ready {
            let entry = self.sessions.get_mut(key).expect("an open session");
            // It may have lost pages to this batch; then it has work again.
            if entry.cached.len() == entry.task.tokens().len() {
                entry.task.take(&self.rows, 0).expect("it reads no row");
                entry.changed = true;
                entry.used = now;
                report.ran.push(*key);
            }
        }
        for failed in &failed {
            self.remove(failed.key);
        }
        report.failed.append(&mut failed);
    }

    fn fail_batch(&mut self, error: &EngineError, report: &mut StepReport) {
        for piece in std::mem::take(&mut self.pieces) {
            self.remove(piece.key);
            report.failed.push(Failed { key: piece.key, error: StepError::Engine(error.clone()) });
        }
    }
}
