//! The toy model: logits from a hash of the last few tokens, kept in real pages.
//!
//! It makes every decision of the cluster testable without a tensor. [`ToyModel`] is the law (a pure function, so exact
//! output distributions can be computed by hand); [`ToyEngine`] answers the same rows from tokens that it reads back
//! through the page tables, and panics where a table leads to a slot that holds another history.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::{Chunk, Engine, EngineError, ModelFacts, Rows};
use crate::history::{chain, splitmix64};
use crate::ids::TokenId;
use crate::slots::Slots;

/// Parameters of a toy model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ToyModel {
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// How many of the last tokens a row depends on.
    pub order: usize,
    /// Of the table that a drafter shares with its expert.
    pub shared_seed: u64,
    /// Of the model's own table.
    pub own_seed: u64,
    /// How much of the own table is in a row: 0 is the shared table alone, 1 nothing of it.
    pub own_share: f32,
    /// Multiplies logits of about unit variance: 0 is uniform, 8 nearly certain.
    pub sharpness: f32,
    /// A token whose logit is raised, to make texts end.
    pub eos: Option<(TokenId, f32)>,
}

impl Default for ToyModel {
    fn default() -> Self {
        Self { vocabulary: 32, order: 3, shared_seed: 1, own_seed: 2, own_share: 0.0, sharpness: 2.0, eos: None }
    }
}

impl ToyModel {
    /// The same model with so much of another table: what a drafter is to its expert.
    #[must_use]
    pub fn drafter(self, own_seed: u64, own_share: f32) -> Self {
        Self { own_seed, own_share, ..self }
    }

    /// Hash of all that fixes a row.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let (eos, bias) = self.eos.map_or((u64::MAX, 0.0), |(token, bias)| (u64::from(token), bias));
        let parts = [
            self.vocabulary as u64,
            self.order as u64,
            self.shared_seed,
            self.own_seed,
            u64::from(self.own_share.to_bits()),
            u64::from(self.sharpness.to_bits()),
            eos,
            u64::from(bias.to_bits()),
        ];
        format!("toy-{:016x}", parts.iter().fold(0, |hash, part| splitmix64(hash ^ part)))
    }

    /// Appends the row after `history` to `row`; only the last [`Self::order`] tokens matter.
    pub fn logits(&self, history: &[TokenId], row: &mut Vec<f32>) {
        let last = &history[history.len().saturating_sub(self.order)..];
        let context = last.iter().fold(0, |hash, token| chain(hash, *token));
        let shared = splitmix64(context ^ splitmix64(self.shared_seed));
        let own = splitmix64(context ^ splitmix64(!self.own_seed));
        let first = row.len();
        row.extend((0..self.vocabulary as u64).map(|token| {
            let mixed = (1.0 - self.own_share) * bell(shared, token) + self.own_share * bell(own, token);
            self.sharpness * mixed
        }));
        if let Some((token, bias)) = self.eos {
            row[first + token as usize] += bias;
        }
    }
}

/// A number of about unit variance: four 16-bit uniforms, summed. Exact in f32.
fn bell(seed: u64, token: u64) -> f32 {
    let bits = splitmix64(seed ^ splitmix64(token));
    let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
    (sum as f32 - 131_070.0) / 32_768.0 * 0.866
}

/// A toy model with pages.
#[derive(Debug)]
pub struct ToyEngine {
    model: ToyModel,
    facts: ModelFacts,
    slots: Slots,
    progress: Arc<AtomicU64>,
    /// The last tokens before a row.
    last: Vec<TokenId>,
    overflows: Option<TokenId>,
}

impl ToyEngine {
    /// An engine for `model` with so many KV pages.
    ///
    /// # Panics
    /// Where the end-of-text token is not in the vocabulary.
    #[must_use]
    pub fn new(model: ToyModel, context: usize, pages: usize) -> Self {
        assert!(model.eos.is_none_or(|(token, _)| (token as usize) < model.vocabulary), "eos is not in the vocabulary");
        let facts = ModelFacts {
            vocabulary: model.vocabulary,
            context,
            pages,
            page_bytes: 0,
            parameters: (model.vocabulary * model.order) as u64,
            fingerprint: model.fingerprint(),
            row_exact: true,
        };
        Self { model, facts, slots: Slots::new(pages), progress: Arc::default(), last: Vec::new(), overflows: None }
    }

    /// From now on rows that score the token after this one are no numbers, as of a model whose numbers overflow.
    pub fn overflow_after(&mut self, token: Option<TokenId>) {
        self.overflows = token;
    }

    /// The law of its rows.
    #[must_use]
    pub fn model(&self) -> &ToyModel {
        &self.model
    }

    fn rows(&mut self, chunk: &Chunk<'_>, rows: &mut Vec<f32>) {
        let end = chunk.start + chunk.tokens.len();
        for after in end - chunk.rows + 1..=end {
            self.last.clear();
            for position in after.saturating_sub(self.model.order)..after {
                self.last.push(self.slots.token(chunk.pages, position));
            }
            let first = rows.len();
            self.model.logits(&self.last, rows);
            if self.overflows.is_some_and(|token| self.last.last() == Some(&token)) {
                rows[first..].fill(f32::NAN);
            }
        }
    }
}

impl Engine for ToyEngine {
    fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.progress)
    }

    fn forward(&mut self, batch: &[Chunk<'_>], rows: &mut Rows) -> Result<(), EngineError> {
        self.facts.check(batch)?;
        self.slots.next_pass();
        rows.data.clear();
        rows.vocabulary = self.model.vocabulary;
        for chunk in batch {
            let tail = self.slots.read_past(chunk);
            self.slots.write(chunk, tail);
        }
        for chunk in batch {
            self.rows(chunk, &mut rows.data);
        }
        self.progress.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PageId;

    fn engine() -> ToyEngine {
        ToyEngine::new(ToyModel::default(), 256, 8)
    }

    fn run(engine: &mut ToyEngine, start: usize, tokens: &[TokenId], pages: &[u32], wanted: usize) -> Rows {
        let pages: Vec<PageId> = pages.iter().copied().map(PageId).collect();
        let mut rows = Rows::default();
        engine.forward(&[Chunk { start, tokens, pages: &pages, rows: wanted }], &mut rows).unwrap();
        rows
    }

    #[test]
    fn any_chunking_gives_the_law() {
        let tokens: Vec<TokenId> = (0..40).map(|i| i * 7 % 32).collect();
        let mut law = Vec::new();
        for after in 1..=tokens.len() {
            ToyModel::default().logits(&tokens[..after], &mut law);
        }
        assert_eq!(run(&mut engine(), 0, &tokens, &[5, 0, 2], 40).data, law);
        let mut pieces = engine();
        let mut data = Vec::new();
        for (start, end) in [(0, 1), (1, 15), (15, 17), (17, 40)] {
            data.extend(run(&mut pieces, start, &tokens[start..end], &[1, 7, 3], end - start).data);
        }
        assert_eq!(data, law);
        assert_eq!(pieces.progress().load(Ordering::Relaxed), 4);
    }

    #[test]
    fn own_share_moves_a_drafter_away_from_its_expert() {
        let distance = |share| {
            let (mut expert, mut drafter) = (Vec::new(), Vec::new());
            ToyModel::default().logits(&[1, 2, 3], &mut expert);
            ToyModel::default().drafter(9, share).logits(&[1, 2, 3], &mut drafter);
            expert.iter().zip(&drafter).map(|(a, b)| (a - b).abs()).sum::<f32>()
        };
        assert_eq!(distance(0.0), 0.0);
        assert!(distance(0.2) > 0.0 && distance(0.2) < distance(1.0));
        assert_ne!(ToyModel::default().fingerprint(), ToyModel::default().drafter(9, 0.0).fingerprint());
    }

    #[test]
    fn a_refused_chunk_is_named_and_nothing_is_written() {
        let good = Chunk { start: 0, tokens: &[1], pages: &[PageId(0)], rows: 1 };
        let bad = Chunk { start: 0, tokens: &[99], pages: &[PageId(1)], rows: 1 };
        let (mut engine, mut rows) = (engine(), Rows::default());
        let refused = engine.forward(&[good, bad], &mut rows).unwrap_err();
        let problem = "holds token 99, outside the vocabulary of 32".to_owned();
        assert_eq!(refused, EngineError::Chunk { index: 1, problem });
        assert_eq!(engine.progress().load(Ordering::Relaxed), 0);
        // The slot of the good one is free to be written: a second writer of one pass would be noticed.
        engine.forward(&[good], &mut rows).unwrap();
        assert_eq!(rows.len(), 1);
    }

    #[test]
    #[should_panic(expected = "never written")]
    fn an_unwritten_slot_is_noticed() {
        let _ = run(&mut engine(), 1, &[1], &[0], 1);
    }

    #[test]
    #[should_panic(expected = "another history")]
    fn a_page_of_another_session_is_noticed() {
        let mut engine = engine();
        let (a, b) = ([1; 32], [2; 32]);
        let _ = run(&mut engine, 0, &a, &[0, 1], 0);
        let _ = run(&mut engine, 0, &b, &[2, 3], 0);
        let _ = run(&mut engine, 32, &[5], &[0, 3, 4], 1);
    }

    #[test]
    #[should_panic(expected = "write one slot")]
    fn two_writers_are_noticed() {
        let chunk = Chunk { start: 0, tokens: &[1], pages: &[PageId(0)], rows: 1 };
        let _ = engine().forward(&[chunk, chunk], &mut Rows::default());
    }
}
