//! One walk over a block of drafts, for every rule.
//!
//! Each tested position emits exactly one token: the draft, or a replacement, which ends the block. There is no bonus
//! token, so every emitted token follows `pi`, whatever the block length.

use std::borrow::Cow;

use crate::block::{Draft, Score};
use crate::chance::{Chance, Stream};
pub use crate::decider::score;
use crate::decider::{Decider, pick};
use crate::decoding::Decoding;
use crate::distribution::{Distribution, EMPTY};
use crate::ids::TokenId;
use crate::rule::{Pair, RawRow, Rule, Target};
use crate::shaping::{Shaped, is_greedy};

/// How far the numbers of a travelling row may be from a sum of one.
const ROW_TOLERANCE: f64 = 1e-3;

/// What became of a block.
#[derive(Clone, Debug, PartialEq)]
pub struct Walk {
    /// Drafts accepted, counted from the first.
    pub accepted: usize,
    /// The token that ends the block; there exactly when not all drafts were accepted.
    pub replacement: Option<TokenId>,
    /// One for each emitted position.
    pub scores: Vec<Score>,
}

/// Walks the drafts until the first replacement.
///
/// `history` is all tokens before the first draft; `rows[i]` the expert's logits at the position of draft `i`.
///
/// # Panics
/// When the walk gets to a draft that has no row.
#[must_use]
pub fn walk(decoding: &Decoding, history: &[TokenId], drafts: &[Draft], rows: &[&[f32]]) -> Walk {
    let mut text = Cow::Borrowed(history);
    let mut walk = Walk { accepted: 0, replacement: None, scores: Vec::with_capacity(drafts.len()) };
    for (index, draft) in drafts.iter().enumerate() {
        let logits = rows[index];
        let shaped = Shaped::new(logits, &decoding.sampling, &text, decoding.prompt_length);
        let (token, relaxed) = test(decoding, history.len() + index, &shaped, draft);
        walk.scores.push(Score { relaxed, ..score(decoding, &text, logits, token) });
        if token != draft.token {
            walk.replacement = Some(token);
            break;
        }
        walk.accepted += 1;
        if decoding.sampling.has_penalties() {
            text.to_mut().push(token);
        }
    }
    walk
}

/// The token that one position emits, and whether the draft was kept only thanks to the rule.
fn test(decoding: &Decoding, position: usize, row: &Shaped<'_>, draft: &Draft) -> (TokenId, bool) {
    let decider = Decider::at(decoding, position);
    let greedy = is_greedy(&decoding.sampling);
    if decider == Decider::SharedNoise || (greedy && decider == Decider::Exact) {
        return (pick(decoding, position, row), false);
    }
    if greedy && row.argmax() == draft.token {
        // One point mass for both rows is every rule's law, and needs none of the numbers that rules read.
        return (draft.token, false);
    }
    let chance = Chance::new(decoding.seed, decoding.choice);
    let coin = chance.uniform(position as u64, 0, Stream::Accept);
    let rule = match decider {
        Decider::Lossy(rule) if rule.reads().decided_by_drafter => {
            if draft.kept {
                let p = row.row_at([draft.token].into_iter());
                return (draft.token, coin >= p.prob(draft.token) / f64::from(draft.q));
            }
            // The drafter deferred.
            None
        }
        Decider::Lossy(rule) => Some(rule),
        Decider::Exact | Decider::SharedNoise => None,
    };
    let q = drafted_row(draft, greedy);
    let pair = |p| Pair {
        q: &q,
        p,
        max_q: f64::from(draft.max_q),
        entropy_q: f64::from(draft.entropy_q),
        raw_p: row,
        temperature: decoding.sampling.temperature,
    };
    let target = |p| rule.map_or_else(|| Target::exact(&pair(p)), |rule| rule.target(&pair(p), &decoding.stop_ids));
    // A test reads p where q and the stops are; only a rejection reads the rest.
    let mut read: Vec<_> = q.iter().map(|entry| entry.0).chain(decoding.stop_ids.iter().copied()).collect();
    read.sort_unstable();
    read.dedup();
    let p = row.row_at(read.into_iter());
    let (law, drafted) = (target(&p), q.prob(draft.token));
    if coin < law.prob(draft.token) / drafted || law.rejection(&q) <= EMPTY {
        let relaxed = rule.is_some() && coin >= p.prob(draft.token) / drafted;
        return (draft.token, relaxed);
    }
    let whole;
    // A truncated row is read whole anyway.
    let law = target(if row.is_truncated() {
        &p
    } else {
        whole = row.row();
        &whole
    });
    let residual = chance.race(position as u64, Stream::Residual, law.residual(&q));
    // Only rounding can reject and leave nothing: then any draw from pi is right.
    let token = residual.or_else(|| chance.race(position as u64, Stream::Residual, law.iter()));
    (token.unwrap_or_else(|| row.argmax()), false)
}

/// The row the draft was drawn from. Its `f32` weights are what the drafter drew from, so normalising them here is
/// exact.
fn drafted_row(draft: &Draft, greedy: bool) -> Distribution {
    if greedy || draft.support.is_empty() {
        return Distribution::point_mass(draft.token);
    }
    Distribution::sparse(draft.support.iter().map(|&(token, q)| (token, f64::from(q))).collect()).normalised()
}

/// Validates a draft as it came off the wire, against what the request's rule will read of it.
///
/// # Errors
/// One sentence that begins with the field.
pub fn check(decoding: &Decoding, vocabulary: usize, draft: &Draft) -> Result<(), String> {
    let Draft { token, q, max_q, entropy_q, kept, ref support } = *draft;
    let known = |id: TokenId| (id as usize) < vocabulary;
    if !known(token) {
        return Err(format!("token: {token} is not in the vocabulary of {vocabulary}"));
    }
    // A token that cannot be drawn was not drawn: an error, never an accept.
    if !(q > 0.0 && f64::from(q) <= 1.0 + ROW_TOLERANCE) {
        return Err(format!("q: the drafted token has probability {q}, not one in (0, 1]"));
    }
    if !(max_q >= 0.0 && f64::from(max_q) <= 1.0 + ROW_TOLERANCE) {
        return Err(format!("max_q: {max_q} is not in [0, 1]"));
    }
    if !(entropy_q >= 0.0 && entropy_q.is_finite()) {
        return Err(format!("entropy_q: {entropy_q} is not a finite number of at least 0"));
    }
    check_support(vocabulary, token, support)?;
    let rule = Decider::rule(decoding);
    let reads = rule.map(Rule::reads).unwrap_or_default();
    let name = rule.map_or("speculative", Rule::name);
    if kept && !reads.decided_by_drafter {
        return Err(format!("kept: {name} is decided by the expert"));
    }
    if reads.max_q && max_q == 0.0 {
        return Err(format!("max_q: is missing, and {name} reads it"));
    }
    let coupled = Decider::at(decoding, 0) != Decider::SharedNoise;
    let needs_support = coupled && !kept && !Decider::drafts_greedily(decoding);
    if needs_support && support.is_empty() {
        return Err(format!("support: is missing, and {name} reads it"));
    }
    Ok(())
}

fn check_support(vocabulary: usize, token: TokenId, support: &[(TokenId, f32)]) -> Result<(), String> {
    if support.is_empty() {
        return Ok(());
    }
    if let Some(&(id, q)) = support.iter().find(|entry| !(entry.1 >= 0.0 && entry.1.is_finite())) {
        return Err(format!("support: token {id} has probability {q}"));
    }
    if let Some(pair) = support.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
        return Err(format!("support: ids are not ascending at {}, {}", pair[0].0, pair[1].0));
    }
    if let Some(&(id, _)) = support.last().filter(|entry| entry.0 as usize >= vocabulary) {
        return Err(format!("support: {id} is not in the vocabulary of {vocabulary}"));
    }
    let total = support.iter().fold(0.0, |sum, entry| sum + f64::from(entry.1));
    if (total - 1.0).abs() > ROW_TOLERANCE {
        return Err(format!("support: the probabilities sum to {total}, not to 1"));
    }
    match support.binary_search_by_key(&token, |entry| entry.0) {
        Ok(index) if support[index].1 > 0.0 => Ok(()),
        Ok(_) => Err(format!("support: the drafted token {token} has probability 0")),
        Err(_) => Err(format!("support: the drafted token {token} is not in it")),
    }
}
