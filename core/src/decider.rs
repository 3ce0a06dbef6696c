//! What decides one position, read alike where it is drafted and where it is verified.

use crate::block::Score;
use crate::chance::{Chance, Stream};
use crate::decoding::{Coupling, Decoding, Strategy};
use crate::ids::TokenId;
use crate::rule::{RawRow, Rule};
use crate::shaping::{Shaped, is_greedy};

/// What decides one position of a draft block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Decider {
    /// `pi = p`; draft and emitted token are argmaxes under the same noise.
    SharedNoise,
    /// `pi = p`; maximal coupling.
    Exact,
    /// A lossy rule; maximal coupling.
    Lossy(Rule),
}

impl Decider {
    /// What decides `position`. Strategies that draft no blocks are exact.
    pub(crate) fn at(decoding: &Decoding, position: usize) -> Self {
        match (Self::rule(decoding), decoding.strategy) {
            (Some(_), _) if decoding.is_strict(position) => Self::Exact,
            (Some(rule), _) => Self::Lossy(rule),
            (None, Strategy::Speculative { coupling: Coupling::Maximal }) => Self::Exact,
            (None, _) => Self::SharedNoise,
        }
    }

    /// The lossy rule in force past the strict beginning.
    pub(crate) fn rule(decoding: &Decoding) -> Option<Rule> {
        match decoding.strategy {
            Strategy::SpeculativeCascade { rule } => Some(rule),
            // Where the drafter is unsure, the position is an ordinary one of Chow's.
            Strategy::CascadeToken { alpha } => Some(Rule::Chow { alpha }),
            _ => None,
        }
    }

    /// Whether drafts are the drafter's likeliest token at every temperature, so that `q` is a point mass.
    pub(crate) fn drafts_greedily(decoding: &Decoding) -> bool {
        // All of the session, its strict beginning too: the wire then needs no row at any position.
        let bild = matches!(decoding.strategy, Strategy::SpeculativeCascade { rule: Rule::Bild { .. } });
        bild || is_greedy(&decoding.sampling)
    }
}

/// The token that a model's own noise picks from its full row: what `expert` emits, and what the Gumbel coupling
/// compares a draft with. One function, so that the two cannot differ.
pub(crate) fn pick(decoding: &Decoding, position: usize, row: &Shaped<'_>) -> TokenId {
    if is_greedy(&decoding.sampling) {
        return row.argmax();
    }
    let chance = Chance::new(decoding.seed, decoding.choice);
    row.draw(&chance, position as u64, Stream::Draft)
}

/// The model's logprobs of a token, if the request asks for them.
///
/// They are taken before penalties, so they do not depend on the history; it is an argument because every other
/// reader of a row needs it.
#[must_use]
pub fn score(decoding: &Decoding, _history: &[TokenId], logits: &[f32], token: TokenId) -> Score {
    let Some(count) = decoding.logprobs else { return Score::default() };
    let row = Shaped::without_penalties(logits, &decoding.sampling);
    let top = row.top(count).into_iter().map(|(token, logprob)| (token, logprob as f32)).collect();
    Score { relaxed: false, logprob: Some(row.logprob(token) as f32), top }
}
