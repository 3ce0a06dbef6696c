//! From a model's row to a token: the drafter's drafts, and a model that decodes alone.

use crate::block::{Draft, Score};
use crate::chance::{Chance, Stream};
use crate::decider::{Decider, pick, score};
use crate::decoding::{Decoding, Strategy};
use crate::ids::TokenId;
use crate::rule::{RawRow, Rule};
use crate::shaping::Shaped;

/// The draft for position `history.len()`, with exactly what the expert will read of it.
///
/// `history` is everything before the position, the block's earlier drafts included.
#[must_use]
pub fn draft(decoding: &Decoding, history: &[TokenId], logits: &[f32]) -> Draft {
    let position = history.len();
    let chance = Chance::new(decoding.seed, decoding.choice);
    let row = Shaped::new(logits, &decoding.sampling, history, decoding.prompt_length);
    let decider = Decider::at(decoding, position);
    let mut draft = Draft::bare(0);
    if let Some(rule) = Decider::rule(decoding) {
        // In the strict beginning too, so that what a draft carries does not depend on its position.
        let reads = rule.reads();
        if reads.max_q {
            draft.max_q = row.max() as f32;
        }
        if reads.entropy_q {
            draft.entropy_q = row.entropy() as f32;
        }
    }
    if let Decider::Lossy(rule) = decider {
        draft.kept = keeps(rule, &row, &decoding.stop_ids);
    }
    if Decider::drafts_greedily(decoding) {
        draft.token = row.argmax();
        return draft;
    }
    let mut q = row.drafted_row(if draft.kept { &decoding.stop_ids } else { &[] });
    if q.total() <= 0.0 {
        // A truncated row of stops alone, though the raw argmax is none: ties that only rounding makes. Not ours.
        draft.kept = false;
        q = row.drafted_row(&[]);
    }
    draft.token = q.draw(&chance, position as u64, Stream::Draft);
    if decider != Decider::SharedNoise {
        draft.q = q.prob(draft.token) as f32;
        if !draft.kept {
            draft.support = q.iter().map(|(token, weight)| (token, weight as f32)).collect();
        }
    }
    draft
}

/// Whether a rule that the drafter decides keeps the drafter's row here; other rules keep nothing by themselves.
fn keeps(rule: Rule, row: &Shaped<'_>, stop_ids: &[TokenId]) -> bool {
    let (max_q, entropy_q) = match rule {
        Rule::Chow { .. } => (row.max(), 0.0),
        Rule::ChowLog { .. } => (0.0, row.entropy()),
        _ => return false,
    };
    rule.keeps(max_q, entropy_q, row.argmax(), stop_ids) == Some(true)
}

/// A token of a model that decodes alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The token drawn from the model's full row.
    pub token: TokenId,
    /// The model's own scores, if asked for.
    pub score: Score,
    /// `ln` of the raw row's probability of the token, `cascade_query`'s score; 0 where the strategy does not read it,
    /// for it costs a pass of exponentials.
    pub raw_logprob: f64,
}

/// The token at position `history.len()` of a model that decodes alone.
#[must_use]
pub fn decode(decoding: &Decoding, history: &[TokenId], logits: &[f32]) -> Decoded {
    let row = Shaped::new(logits, &decoding.sampling, history, decoding.prompt_length);
    let token = pick(decoding, history.len(), &row);
    let raw_logprob = if matches!(decoding.strategy, Strategy::CascadeQuery { .. }) { row.logprob(token) } else { 0.0 };
    Decoded { token, score: score(decoding, history, logits, token), raw_logprob }
}
