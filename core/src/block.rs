//! The two nouns that travel: the draft block and its verdict.

use crate::ids::{Epoch, TokenId};

/// One proposed token with as much of its `q` row as the rule reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// The token drawn from `q`.
    pub token: TokenId,
    /// `q(token)` of the row it was drawn from, rounded to `f32`; 1 at temperature 0.
    pub q: f32,
    /// Maximum of the drafter's raw row; 0 where no rule reads it.
    pub max_q: f32,
    /// Entropy of the drafter's raw row, nats; 0 where no rule reads it.
    pub entropy_q: f32,
    /// For rules that the drafter decides alone (`chow`, `chow_log`): the position keeps the drafter's token.
    pub kept: bool,
    /// The row `q` was drawn from, ids ascending; empty where the walk does not read it.
    pub support: Vec<(TokenId, f32)>,
}

impl Draft {
    /// A draft that carries nothing but its token: temperature 0, or the Gumbel coupling.
    #[must_use]
    pub fn bare(token: TokenId) -> Self {
        Self { token, q: 1.0, max_q: 0.0, entropy_q: 0.0, kept: false, support: Vec::new() }
    }
}

/// Proposed tokens of one session, and what they stand on.
#[derive(Clone, Debug, PartialEq)]
pub struct DraftBlock {
    /// The epoch the block was drafted in.
    pub epoch: Epoch,
    /// Position of `given[0]`.
    pub given_from: usize,
    /// Tokens committed without the expert, up to `base`; taken as they are.
    pub given: Vec<TokenId>,
    /// Position of the first draft, counting every earlier block in flight as fully accepted.
    pub base: usize,
    /// Chained hash of all tokens before `base` ([`crate::history`]).
    pub tail: u64,
    /// The drafts; empty only when `given` is not.
    pub drafts: Vec<Draft>,
    /// Whether the given tokens shall be scored (logprobs).
    pub score_given: bool,
}

impl DraftBlock {
    /// Given tokens that shall be scored.
    #[must_use]
    pub fn scored_given(&self) -> usize {
        if self.score_given { self.given.len() } else { 0 }
    }

    /// Rows that its verification reads: one a draft, and one a given token that shall be scored.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.drafts.len() + self.scored_given()
    }
}

/// What the expert says about one emitted position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// Accepted although `u >= min(1, p/q)`: kept only thanks to the rule.
    pub relaxed: bool,
    /// The expert's log-probability of the emitted token at temperature 1, after bias and bans, before penalties.
    pub logprob: Option<f32>,
    /// The most likely alternatives with theirs, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// The expert's answer to one block.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The block's epoch.
    pub epoch: Epoch,
    /// The block's base.
    pub base: usize,
    /// Drafts accepted, counted from the first.
    pub accepted: usize,
    /// The token that ends the block; there exactly when `accepted < drafts`.
    pub replacement: Option<TokenId>,
    /// One for each given token if asked for, then one for each emitted position.
    pub scores: Vec<Score>,
}

/// Why a block was answered without being verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleReason {
    /// Another epoch is open.
    Epoch,
    /// The block does not start where the history ends.
    Base,
    /// The block was drafted on other tokens.
    Tail,
}

/// The answer to a block that stands on another history; no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The epoch in force.
    pub epoch: Epoch,
    /// The stale block's base.
    pub base: usize,
    /// Length of the history the expert holds.
    pub committed: usize,
    /// Its hash.
    pub tail: u64,
    /// What did not match.
    pub reason: StaleReason,
}

/// Each block gets exactly one.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The block was verified.
    Verdict(Verdict),
    /// The block stood on another history.
    Stale(Stale),
}

/// Who wrote an emitted token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provenance {
    /// The draft, kept by the test.
    Accepted,
    /// The draft, kept only thanks to the rule.
    Relaxed,
    /// Drawn from the residual, or from the expert's row alone.
    Deferred,
}
