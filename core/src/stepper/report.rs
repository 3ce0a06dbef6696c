//! What a stepper says: who was refused, evicted, given up, and how busy it is.

use std::fmt;

use crate::engine::EngineError;
use crate::ids::SessionId;

/// Why a session was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// So many sessions are open, and that is the limit; so many wait for their place, and that is one too.
    Full {
        /// Open sessions.
        open: usize,
        /// Sessions that wait.
        waiting: usize,
    },
    /// The history needs more pages than are free, and as many sessions wait as may.
    NoPages {
        /// Pages it needs.
        needed: usize,
        /// Pages that are free or released.
        free: usize,
        /// Pages of the pool.
        total: usize,
        /// Sessions that wait.
        waiting: usize,
    },
    /// A session of this id is open.
    AlreadyOpen(SessionId),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { open, waiting } => {
                write!(f, "all {open} sessions are taken and {waiting} wait for one")
            }
            Self::NoPages { needed, free, total, waiting } => write!(
                f,
                "the history needs {needed} KV pages, {free} of {total} are free, and {waiting} sessions wait for theirs"
            ),
            Self::AlreadyOpen(key) => write!(f, "session {key} is already open"),
        }
    }
}

impl std::error::Error for Refused {}

/// A row that is no numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// The session's tokens before the one that the row scores.
    pub tokens: usize,
}

/// Why a session was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepError {
    /// The batch it was in failed, or the engine refused its chunk of it.
    Engine(EngineError),
    /// It has to read a row that is no numbers.
    NotFinite(NotFinite),
    /// It is longer than the model's context.
    Context {
        /// Its tokens.
        tokens: usize,
        /// The context.
        context: usize,
    },
    /// It needs more pages than there are.
    Pages {
        /// Pages it needs.
        needed: usize,
        /// Pages of the pool.
        total: usize,
    },
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Its place in the batch says nothing to the session.
            Self::Engine(EngineError::Chunk { problem, .. }) => write!(f, "the session's chunk {problem}"),
            Self::Engine(error) => write!(f, "the forward pass failed: {error}"),
            Self::NotFinite(NotFinite { tokens }) => write!(
                f,
                "the logits after {tokens} tokens are not finite: the checkpoint is damaged, or its numbers overflow \
                 (on a card with --dtype f16, which ends at 65504, try bf16)"
            ),
            Self::Context { tokens, context } => write!(f, "{tokens} tokens exceed the context of {context}"),
            Self::Pages { needed, total } => write!(f, "the session needs {needed} KV pages and there are {total}"),
        }
    }
}

impl std::error::Error for StepError {}

/// A session that lost pages to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// Whose.
    pub key: SessionId,
    /// Leading tokens that are still cached.
    pub held: usize,
}

/// A session that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Whose.
    pub key: SessionId,
    /// Why.
    pub error: StepError,
}

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    /// Sessions whose [`Task::take`] was called.
    pub ran: Vec<SessionId>,
    /// Sessions that lost pages.
    pub evicted: Vec<Evicted>,
    /// Sessions that were removed.
    pub failed: Vec<Failed>,
    /// Tokens of the batch; 0 where there was no forward pass.
    pub tokens: usize,
    /// Sessions of the batch.
    pub sessions: usize,
    /// Rows of the batch.
    pub rows: usize,
    /// The device is lost, and why: no step will ever succeed. The sessions of the batch are still open, for whoever ends
    /// the node.
    pub lost: Option<String>,
}

/// Who came in by the door.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdmittedWaiting {
    /// Sessions that are open now, in the order in which they came in.
    pub entered: Vec<SessionId>,
    /// Sessions that lost pages to them.
    pub evicted: Vec<Evicted>,
    /// Sessions that lost their slot to them, and are closed: they had had no work for long.
    pub left: Vec<SessionId>,
}

/// How busy a stepper is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepperLoad {
    /// Open sessions.
    pub sessions: usize,
    /// Sessions in the waiting queue.
    pub waiting_sessions: usize,
    /// Tokens of their histories.
    pub waiting_tokens: usize,
    /// Sessions that have work.
    pub waiting: usize,
    /// Tokens not cached that wait for a batch.
    pub queued_tokens: usize,
    /// Sessions in the last batch.
    pub running: usize,
    /// Tokens of the last batch.
    pub running_tokens: usize,
    /// Pages some session refers to.
    pub pages_used: usize,
    /// Pages free or released.
    pub pages_free: usize,
    /// Pages of the pool.
    pub pages_total: usize,
    /// Tokens that sessions came with, ever.
    pub prefix_queries: u64,
    /// Of these, tokens that were found in pages of equal content.
    pub prefix_hits: u64,
}
