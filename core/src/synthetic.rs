//! Models without weights, for sizing pools and routers: rows with a set acceptance, passes with a set pace.
//!
//! A row is a pure function of the tokens before it, as every row is, so strategies, seeds, prefix caches and failover
//! work as with real models. [`SyntheticModel`] is the law, [`SyntheticEngine`] answers it from pages, [`Pace`] says how
//! long a pass takes; whoever has a clock waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::engine::{Chunk, Engine, EngineError, ModelFacts, Rows};
use crate::history::splitmix64;
use crate::ids::TokenId;
use crate::placement::Role;
use crate::slots::Slots;

/// Tokens of a row that have a chance.
const CANDIDATES: usize = 4;

/// Logit of all others: nothing draws them at any usual temperature.
const FLOOR: f32 = -40.0;

/// What the end of a text has above the likeliest other token.
const END: f32 = 16.0;

/// What the fingerprints of models without weights begin with.
pub const FINGERPRINT: &str = "synthetic-";

/// The longest row, as the largest vocabularies have it.
const MOST_VOCABULARY: usize = 1 << 18;

/// The most pages of an engine: it keeps what it knows of each token, 640 bytes a page, from the start.
pub const MOST_PAGES: usize = 1 << 20;

/// The law of a synthetic pair.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticModel {
    /// Chance that a draft is the expert's own choice.
    ///
    /// Exact at temperature 0 and at every other: where the drafter agrees its row is the expert's, where it does not the
    /// two rows have no likely token in common.
    pub acceptance: f64,
    /// Length of a row.
    pub vocabulary: usize,
    /// Mean tokens of a text, the end included; `None` never ends one.
    pub length: Option<u32>,
    /// Another seed, another pair.
    pub seed: u64,
    /// What texts consist of; at least eight tokens.
    pub alphabet: Vec<TokenId>,
    /// What ends a text.
    pub eos: TokenId,
}

/// Independent sources of chance in a row.
#[derive(Clone, Copy)]
enum Draw {
    Agrees = 1,
    Ends = 2,
    First = 3,
    Sure = 4,
}

impl SyntheticModel {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// One sentence that begins with the parameter.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.acceptance) {
            return Err(format!("acceptance: {} is no probability; give one from 0 to 1", self.acceptance));
        }
        if self.length == Some(0) {
            return Err("length: a text has at least 1 token".to_owned());
        }
        let least = self.alphabet.iter().chain([&self.eos]).max().map_or(0, |highest| *highest as usize + 1);
        if self.vocabulary < least || self.alphabet.len() < 2 * CANDIDATES {
            return Err(format!("vocabulary: {} is too small; give at least {least}", self.vocabulary));
        }
        if self.vocabulary > MOST_VOCABULARY {
            return Err(format!("vocabulary: {} is too large; give at most {MOST_VOCABULARY}", self.vocabulary));
        }
        Ok(())
    }

    /// Hash of all that fixes a row: a drafter and an expert that differ in it are no pair.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let parts = [
            self.acceptance.to_bits(),
            self.vocabulary as u64,
            self.length.map_or(u64::MAX, u64::from),
            self.seed,
            u64::from(self.eos),
        ];
        let all = parts.into_iter().chain(self.alphabet.iter().map(|token| u64::from(*token)));
        format!("{FINGERPRINT}{:016x}", all.fold(0, |hash, part| splitmix64(hash ^ part)))
    }

    fn bits(&self, tail: u64, draw: Draw) -> u64 {
        splitmix64(tail ^ splitmix64(self.seed ^ splitmix64(draw as u64)))
    }

    fn uniform(&self, tail: u64, draw: Draw) -> f64 {
        (self.bits(tail, draw) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether the drafter has the expert's row after tokens of this hash.
    #[must_use]
    pub fn agrees(&self, tail: u64) -> bool {
        self.uniform(tail, Draw::Agrees) < self.acceptance
    }

    /// Appends the row after tokens of this hash to `row`.
    pub fn logits(&self, role: Role, tail: u64, row: &mut Vec<f32>) {
        let begin = row.len();
        row.resize(begin + self.vocabulary, FLOOR);
        let strays = role == Role::Drafter && !self.agrees(tail);
        let count = self.alphabet.len();
        // A drafter that strays looks elsewhere in the alphabet, and is less sure of it.
        let from = self.bits(tail, Draw::First) as usize % count + if strays { count / 2 } else { 0 };
        let sure = self.uniform(tail, Draw::Sure) as f32;
        let peak = if strays { 0.5 + 2.0 * sure } else { 1.5 + 4.0 * sure };
        for place in 0..CANDIDATES {
            let token = self.alphabet[(from + place) % count];
            row[begin + token as usize] = if place == 0 { peak } else { 0.0 };
        }
        let ends = self.length.is_some_and(|length| self.uniform(tail, Draw::Ends) * f64::from(length) < 1.0);
        if ends && !strays {
            row[begin + self.eos as usize] = peak + END;
        }
    }
}

/// How long passes take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// A pass over one token.
    pub step: Duration,
    /// Each further token that brings a row.
    pub token: Duration,
    /// Tokens a second of those that bring none: prefill.
    pub prefill: f64,
}

/// Pauses between passes below this part of a step are the node's own work, which a device would overlap.
const BACK_TO_BACK: u32 = 8;

impl Pace {
    /// The time of one pass over a batch.
    #[must_use]
    pub fn pass(&self, batch: &[Chunk<'_>]) -> Duration {
        let scored: usize = batch.iter().map(|chunk| chunk.rows).sum();
        let all: usize = batch.iter().map(|chunk| chunk.tokens.len()).sum();
        let further = u32::try_from(scored.saturating_sub(1)).unwrap_or(u32::MAX);
        let prefill = Duration::try_from_secs_f64((all - scored) as f64 / self.prefill).unwrap_or(Duration::MAX);
        self.step.saturating_add(self.token.saturating_mul(further)).saturating_add(prefill)
    }

    /// When a pass ends that takes `pass` and began at `now`, the one before having been due at `before`.
    ///
    /// So a busy engine keeps its pace however long its node takes between two passes, and whether or not its sleep
    /// overshoots; an idle one gets no credit for having waited.
    #[must_use]
    pub fn due(&self, before: Option<Duration>, now: Duration, pass: Duration) -> Duration {
        let busy = before.filter(|before| now.saturating_sub(*before) <= self.step / BACK_TO_BACK);
        busy.unwrap_or(now).saturating_add(pass)
    }
}

/// A synthetic model with pages.
#[derive(Debug)]
pub struct SyntheticEngine {
    model: SyntheticModel,
    role: Role,
    facts: ModelFacts,
    slots: Slots,
    progress: Arc<AtomicU64>,
}

impl SyntheticEngine {
    /// The drafter or the expert of a pair that has been checked.
    #[must_use]
    pub fn new(model: SyntheticModel, role: Role, context: usize, pages: usize) -> Self {
        let side = if role == Role::Drafter { "drafter" } else { "expert" };
        let facts = ModelFacts {
            vocabulary: model.vocabulary,
            context,
            pages,
            page_bytes: 0,
            parameters: 0,
            fingerprint: format!("{}-{side}", model.fingerprint()),
            row_exact: true,
        };
        Self { model, role, facts, slots: Slots::new(pages), progress: Arc::default() }
    }
}

impl Engine for SyntheticEngine {
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
            let tail = self.slots.tail_before(chunk);
            self.slots.write(chunk, tail);
        }
        for chunk in batch {
            let end = chunk.start + chunk.tokens.len();
            for last in end - chunk.rows..end {
                self.model.logits(self.role, self.slots.tail(chunk.pages, last), &mut rows.data);
            }
        }
        self.progress.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PageId;

    fn model() -> SyntheticModel {
        SyntheticModel {
            acceptance: 0.7,
            vocabulary: 40,
            length: Some(50),
            seed: 1,
            alphabet: (4..30).collect(),
            eos: 1,
        }
    }

    fn row(model: &SyntheticModel, role: Role, tail: u64) -> Vec<f32> {
        let mut row = Vec::new();
        model.logits(role, tail, &mut row);
        row
    }

    fn argmax(row: &[f32]) -> usize {
        (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap()
    }

    #[test]
    fn drafts_are_the_experts_choice_as_often_as_was_set_and_texts_end_as_late() {
        const ROWS: u64 = 40_000;
        for acceptance in [0.0, 0.3, 0.7, 1.0] {
            let model = SyntheticModel { acceptance, ..model() };
            let (mut same, mut ends, mut overlap) = (0.0, 0.0, 0.0f64);
            for tail in (0..ROWS).map(splitmix64) {
                let (expert, drafter) = (row(&model, Role::Expert, tail), row(&model, Role::Drafter, tail));
                ends += f64::from(u8::from(argmax(&expert) == 1));
                same += f64::from(u8::from(argmax(&expert) == argmax(&drafter)));
                // What a maximal coupling accepts at temperature 1.
                let mass = |row: &[f32]| row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>();
                let (p, q) = (mass(&expert), mass(&drafter));
                let both = |(a, b): (&f32, &f32)| (f64::from(*a).exp() / p).min(f64::from(*b).exp() / q);
                overlap += expert.iter().zip(&drafter).map(both).sum::<f64>();
            }
            let error = 4.0 * (0.25 / ROWS as f64).sqrt();
            assert!((same / ROWS as f64 - acceptance).abs() <= error, "{same} of {ROWS} at {acceptance}");
            assert!((overlap - same).abs() < 0.01 * ROWS as f64, "temperature 1: {overlap}, temperature 0: {same}");
            assert!((ends / ROWS as f64 - 0.02).abs() < 0.003, "{ends} of {ROWS} end");
        }
    }

    #[test]
    fn any_chunking_gives_the_same_rows_and_other_histories_others() {
        let run = |pieces: &[(usize, usize)], pages: &[u32]| {
            let tokens: Vec<TokenId> = (0..40).map(|i| 4 + i * 7 % 26).collect();
            let pages: Vec<PageId> = pages.iter().copied().map(PageId).collect();
            let mut engine = SyntheticEngine::new(model(), Role::Expert, 64, 8);
            let (mut rows, mut data) = (Rows::default(), Vec::new());
            for &(start, end) in pieces {
                let chunk = Chunk { start, tokens: &tokens[start..end], pages: &pages, rows: end - start };
                engine.forward(&[chunk], &mut rows).unwrap();
                data.extend_from_slice(&rows.data);
            }
            data
        };
        let whole = run(&[(0, 40)], &[5, 0, 2]);
        assert_eq!(whole, run(&[(0, 1), (1, 15), (15, 17), (17, 40)], &[1, 7, 3]));
        let distinct: std::collections::BTreeSet<Vec<u32>> =
            whole.chunks(40).map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect();
        assert_eq!(distinct.len(), 40);
    }

    #[test]
    fn a_refused_chunk_is_named_before_anything_is_written() {
        let mut engine = SyntheticEngine::new(model(), Role::Expert, 64, 8);
        let good = Chunk { start: 0, tokens: &[5], pages: &[PageId(0)], rows: 1 };
        let bad = Chunk { start: 0, tokens: &[40], pages: &[PageId(1)], rows: 1 };
        let refused = engine.forward(&[good, bad], &mut Rows::default()).unwrap_err();
        let problem = "holds token 40, outside the vocabulary of 40".to_owned();
        assert_eq!(refused, EngineError::Chunk { index: 1, problem });
        assert_eq!(engine.progress().load(Ordering::Relaxed), 0);
        engine.forward(&[good], &mut Rows::default()).unwrap();
    }

    #[test]
    fn a_pass_has_its_price() {
        let ms = Duration::from_millis;
        let pace = Pace { step: ms(10), token: ms(1), prefill: 1000.0 };
        let chunk = |tokens, rows| Chunk { start: 0, tokens, pages: &[], rows };
        assert_eq!(pace.pass(&[chunk(&[1], 1)]), ms(10));
        assert_eq!(pace.pass(&[chunk(&[1; 5], 5), chunk(&[1; 3], 1), chunk(&[1; 40], 0)]), ms(10 + 5 + 2 + 40));
        assert_eq!(pace.due(None, ms(100), ms(10)), ms(110));
        let endless = Pace { prefill: 1e-300, ..pace };
        assert_eq!(endless.pass(&[chunk(&[1; 2], 1)]), Duration::MAX);
        assert_eq!(endless.due(None, ms(100), Duration::MAX), Duration::MAX);
        // Oversleeping and the node's own work between two passes are made good, idleness is not.
        assert_eq!(pace.due(Some(ms(99)), ms(100), ms(10)), ms(109));
        assert_eq!(pace.due(Some(ms(90)), ms(100), ms(10)), ms(110));
    }

    #[test]
    fn what_makes_no_pair_has_another_fingerprint() {
        let other = SyntheticModel { acceptance: 0.8, ..model() };
        assert_ne!(model().fingerprint(), other.fingerprint());
        assert!(model().fingerprint().starts_with("synthetic-"));
        let facts = |role| SyntheticEngine::new(model(), role, 64, 8).facts.fingerprint;
        assert_ne!(facts(Role::Drafter), facts(Role::Expert));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        assert_eq!(model().check(), Ok(()));
        for (model, field) in [
            (SyntheticModel { acceptance: 1.1, ..model() }, "acceptance"),
            (SyntheticModel { acceptance: f64::NAN, ..model() }, "acceptance"),
            (SyntheticModel { vocabulary: 29, ..model() }, "vocabulary: 29 is too small"),
            (SyntheticModel { vocabulary: 262_145, ..model() }, "vocabulary: 262145 is too large; give at most 262144"),
            (SyntheticModel { length: Some(0), ..model() }, "length"),
        ] {
            assert!(model.check().unwrap_err().starts_with(field), "{field}");
        }
    }
}
