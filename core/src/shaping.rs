//! From logits to rows of probabilities, for both models alike.
//!
//! Order: logit bias and bans; repetition penalty (prompt and output), presence and frequency penalties (output);
//! temperature; top-k; top-p; min-p. The row before temperature and truncation is the *raw* row: the rules' maxima,
//! entropies and token thresholds read it, never the tempered one (`algorithms.md` pitfall 1).
//!
//! Everything is lazy and nothing copies the vocabulary: bias, bans and penalties touch few ids, which live in a
//! short overlay. A greedy position costs one pass of comparisons, a tested one a sum of exponentials besides, and a
//! drawn one the chance of every token but the exponentials of few.
//!
//! Logits that are not numbers count as -inf, and +inf as the largest `f32`. Where nothing is left (every id banned,
//! a broken model) the row is the point mass at id 0: a defined answer that no rule chokes on.

use std::cell::OnceCell;
use std::f64::consts::LOG2_E;

use crate::chance::{Chance, Race, Stream};
use crate::decoding::Sampling;
use crate::distribution::{Distribution, largest};
use crate::exponential::{self, exp2};
use crate::ids::TokenId;
use crate::rule::RawRow;

/// One row of logits under a request's shaping.
#[derive(Debug)]
pub struct Shaped<'a> {
    logits: &'a [f32],
    sampling: &'a Sampling,
    /// The logits that bias, bans and penalties change; ids ascending.
    overlay: Vec<(TokenId, f64)>,
    /// The largest logit and its id.
    peak: OnceCell<(TokenId, f64)>,
    /// `sum exp(logit - peak)`.
    partition: OnceCell<f64>,
    /// The same at the temperature of the request.
    tempered: OnceCell<f64>,
}

enum Change {
    Bias(f32),
    Ban,
    InPrompt,
    InOutput,
}

impl<'a> Shaped<'a> {
    /// The row of the token after `history`, of which the first `prompt_length` tokens are the prompt.
    #[must_use]
    pub fn new(logits: &'a [f32], sampling: &'a Sampling, history: &[TokenId], prompt_length: usize) -> Self {
        let history = if sampling.has_penalties() { history } else { &[] };
        let (prompt, output) = history.split_at(prompt_length.min(history.len()));
        // Only the repetition penalty reads the prompt.
        let prompt = if sampling.repetition_penalty == 1.0 { &[] } else { prompt };
        let mut changes: Vec<(TokenId, Change)> = Vec::new();
        changes.extend(sampling.logit_bias.iter().map(|&(token, bias)| (token, Change::Bias(bias))));
        changes.extend(sampling.banned.iter().map(|&token| (token, Change::Ban)));
        changes.extend(prompt.iter().map(|&token| (token, Change::InPrompt)));
        changes.extend(output.iter().map(|&token| (token, Change::InOutput)));
        // Stable, so that several biases on one id add up in the order they were given.
        changes.sort_by_key(|change| change.0);
        let overlay = changes
            .chunk_by(|a, b| a.0 == b.0)
            .filter_map(|group| {
                let token = group[0].0;
                let logit = *logits.get(token as usize)?;
                Some((token, changed(finite(f64::from(logit)), group, sampling)))
            })
            .collect();
        let (peak, partition, tempered) = Default::default();
        Self { logits, sampling, overlay, peak, partition, tempered }
    }

    /// The row that logprobs report: after bias and bans, before penalties and truncation.
    #[must_use]
    pub fn without_penalties(logits: &'a [f32], sampling: &'a Sampling) -> Self {
        // Penalties read nothing but the history.
        Self::new(logits, sampling, &[], 0)
    }

    /// `ln` of the raw row's probability of a token.
    #[must_use]
    pub fn logprob(&self, token: TokenId) -> f64 {
        let (peak, top) = self.peak();
        if top == f64::NEG_INFINITY {
            return if token == peak { 0.0 } else { f64::NEG_INFINITY };
        }
        self.logit(token) - top - libm::log(self.partition())
    }

    /// The raw row's likeliest tokens with their log-probabilities, best first, ties by lowest id.
    #[must_use]
    pub fn top(&self, count: usize) -> Vec<(TokenId, f64)> {
        let mut best = largest(self.iter(), count);
        for entry in &mut best {
            entry.1 = self.logprob(entry.0);
        }
        best
    }

    /// The row to sample from: tempered, truncated, summing to one; the point mass at the argmax at temperature 0.
    #[must_use]
    pub fn row(&self) -> Distribution {
        self.truncated(self.sampling.top_k)
    }

    /// The row a draft is drawn from: [`Self::row`] cut to `wire_top_k`, without the `barred` ids (ascending), and
    /// rounded to `f32`, all before the draw, so that what travels is exactly what was drawn from.
    #[must_use]
    pub fn drafted_row(&self, barred: &[TokenId]) -> Distribution {
        let Sampling { top_k, wire_top_k, .. } = *self.sampling;
        // Where no nucleus has to be measured, both cuts are one, and only what survives it is exponentiated.
        let row = match (top_k, wire_top_k) {
            (k, 0) => self.truncated(k),
            (0, wire) if self.sampling.top_p >= 1.0 => self.truncated(wire),
            (k, wire) if self.sampling.top_p >= 1.0 => self.truncated(k.min(wire)),
            (k, wire) => self.truncated(k).cut(wire),
        };
        row.without(barred).rounded_to_f32()
    }

    /// [`Self::row`] at `tokens` (ascending) and nowhere else, which is all that a test reads of a row; the whole of one
    /// that is truncated.
    #[must_use]
    pub fn row_at(&self, tokens: impl Iterator<Item = TokenId>) -> Distribution {
        if self.is_truncated() {
            return self.row();
        }
        let (top, scale, total) = (self.peak().1, self.scale(), self.tempered());
        let weight = |token| (token, exp2((self.logit(token) - top) * scale) / total);
        Distribution::sparse(tokens.map(weight).filter(|entry| entry.1 > 0.0).collect())
    }

    /// The token that chance picks from [`Self::row`].
    #[must_use]
    pub fn draw(&self, chance: &Chance, position: u64, stream: Stream) -> TokenId {
        if self.is_truncated() {
            return self.row().draw(chance, position, stream);
        }
        let (peak, top) = self.peak();
        let scale = self.scale();
        let mut race = chance.begin(position, stream);
        // The likeliest first: its time spares nearly all others their weight.
        race.enter(peak, 1.0);
        for &(token, logit) in &self.overlay {
            race.enter(token, exp2((logit - top) * scale));
        }
        for (first, logits) in self.untouched() {
            enter(&mut race, first, logits, &|logit| exp2((logit - top) * scale));
        }
        race.winner().unwrap_or(peak)
    }

    /// Whether the row to sample from is not simply the tempered one.
    pub(crate) fn is_truncated(&self) -> bool {
        let Sampling { top_k, top_p, min_p, .. } = *self.sampling;
        let cut = top_k != 0 && top_k < self.logits.len();
        cut || top_p < 1.0 || min_p > 0.0 || is_greedy(self.sampling) || self.peak().1 == f64::NEG_INFINITY
    }

    fn truncated(&self, top_k: usize) -> Distribution {
        let Sampling { top_p, min_p, .. } = *self.sampling;
        let (peak, top) = self.peak();
        if is_greedy(self.sampling) || top == f64::NEG_INFINITY {
            return Distribution::point_mass(peak);
        }
        let scale = self.scale();
        let weight = |logit: f64| exp2((logit - top) * scale);
        let mut row = if top_k == 0 || top_k >= self.logits.len() {
            let mut weights: Vec<f64> = self.logits.iter().map(|&logit| weight(finite(f64::from(logit)))).collect();
            self.overlay.iter().for_each(|&(token, logit)| weights[token as usize] = weight(logit));
            if !self.is_truncated() {
                // As `row_at` has it, to the bit.
                let total = self.tempered();
                weights.iter_mut().for_each(|weight| *weight /= total);
                return Distribution::dense(weights);
            }
            Distribution::dense(weights)
        } else {
            let mut best = largest(self.iter(), top_k);
            best.sort_unstable_by_key(|entry| entry.0);
            Distribution::sparse(best.into_iter().map(|(token, logit)| (token, weight(logit))).collect())
        };
        if top_p < 1.0 {
            row = row.nucleus(top_p);
        }
        if min_p > 0.0 {
            row = row.at_least(min_p);
        }
        row.normalised()
    }

    /// What a difference of logits is multiplied with to become the exponent of a two.
    fn scale(&self) -> f64 {
        // The smallest temperatures have no finite inverse, and nothing times infinity is not a number.
        (LOG2_E / self.sampling.temperature).min(f64::MAX)
    }

    /// The logits that nothing changes, in runs, each with the id of its first.
    fn untouched(&self) -> impl Iterator<Item = (TokenId, &[f32])> + '_ {
        let ends = self.overlay.iter().map(|entry| entry.0 as usize).chain([self.logits.len()]);
        let mut begin = 0;
        ends.map(move |end| {
            let run = (begin as TokenId, &self.logits[begin..end]);
            begin = (end + 1).min(self.logits.len());
            run
        })
    }

    fn logit(&self, token: TokenId) -> f64 {
        match self.overlay.binary_search_by_key(&token, |entry| entry.0) {
            Ok(index) => self.overlay[index].1,
            Err(_) => self.logits.get(token as usize).map_or(f64::NEG_INFINITY, |&x| finite(f64::from(x))),
        }
    }

    /// The changed logits of the whole vocabulary.
    fn iter(&self) -> impl Iterator<Item = (TokenId, f64)> + '_ {
        let mut overlay = self.overlay.iter().peekable();
        self.logits.iter().enumerate().map(move |(id, &logit)| {
            let token = id as TokenId;
            let changed = overlay.next_if(|entry| entry.0 == token);
            (token, changed.map_or_else(|| finite(f64::from(logit)), |entry| entry.1))
        })
    }

    fn peak(&self) -> (TokenId, f64) {
        *self.peak.get_or_init(|| {
            let plain = self.untouched().map(|(first, logits)| {
                let (id, logit) = plain_peak(logits);
                (first + id, logit)
            });
            let better = |best: (TokenId, f64), entry: (TokenId, f64)| {
                let wins = entry.1 > best.1 || (entry.1 == best.1 && entry.0 < best.0);
                if wins { entry } else { best }
            };
            let best = plain.chain(self.overlay.iter().copied()).fold((TokenId::MAX, f64::NEG_INFINITY), better);
            if best.1 == f64::NEG_INFINITY { (0, best.1) } else { best }
        })
    }

    fn partition(&self) -> f64 {
        *self.partition.get_or_init(|| self.total(LOG2_E))
    }

    fn tempered(&self) -> f64 {
        if self.sampling.temperature == 1.0 {
            return self.partition();
        }
        *self.tempered.get_or_init(|| self.total(self.scale()))
    }

    /// `sum 2^((logit - peak) scale)`.
    fn total(&self, scale: f64) -> f64 {
        let top = self.peak().1;
        let changed = self.overlay.iter().fold(0.0, |sum, entry| sum + exp2((entry.1 - top) * scale));
        self.untouched().fold(changed, |sum, run| sum + exponential::sum(run.1, top, scale))
    }
}

impl RawRow for Shaped<'_> {
    fn max(&self) -> f64 {
        if self.peak().1 == f64::NEG_INFINITY { 1.0 } else { 1.0 / self.partition() }
    }

    fn argmax(&self) -> TokenId {
        self.peak().0
    }

    fn entropy(&self) -> f64 {
        let top = self.peak().1;
        if top == f64::NEG_INFINITY {
            return 0.0;
        }
        let entries = self.overlay.iter().filter(|entry| entry.1 > f64::NEG_INFINITY).map(|entry| entry.1 - top);
        let changed = entries.fold(0.0, |sum, below| sum + exp2(below * LOG2_E) * below);
        let runs = self.untouched().map(|run| exponential::weighted_sum(run.1, top, LOG2_E));
        let weighted = runs.fold(changed, |sum, run| sum + run);
        (libm::log(self.partition()) - weighted / self.partition()).max(0.0)
    }

    fn prob(&self, token: TokenId) -> f64 {
        let (peak, top) = self.peak();
        if top == f64::NEG_INFINITY {
            return if token == peak { 1.0 } else { 0.0 };
        }
        exp2((self.logit(token) - top) * LOG2_E) / self.partition()
    }

    fn share_of_max(&self, token: TokenId) -> f64 {
        let (peak, top) = self.peak();
        if top == f64::NEG_INFINITY {
            return if token == peak { 1.0 } else { 0.0 };
        }
        exp2((self.logit(token) - top) * LOG2_E)
    }
}

/// Enters neighbouring tokens, chunk after chunk: none weighs more than the largest of its chunk.
fn enter(race: &mut Race, first: TokenId, logits: &[f32], weight: &impl Fn(f64) -> f64) {
    const CHUNK: usize = 64;
    for (chunk, first) in logits.chunks(CHUNK).zip((first..).step_by(CHUNK)) {
        let most = weight(finite(f64::from(maximum(chunk))));
        let tokens = first..first + chunk.len() as TokenId;
        race.enter_all(tokens, most, |token| weight(finite(f64::from(chunk[(token - first) as usize]))));
    }
}

/// The largest logit and the lowest id that has it.
///
/// All of a greedy position's cost, so it runs over lanes that the compiler turns into vector maxima; an id is looked
/// for only in a chunk that beats all before it.
fn plain_peak(logits: &[f32]) -> (TokenId, f64) {
    const CHUNK: usize = 512;
    let (mut peak, mut top) = (0, f32::NEG_INFINITY);
    for (number, chunk) in logits.chunks(CHUNK).enumerate() {
        let most = maximum(chunk);
        if most > top {
            top = most;
            peak = number * CHUNK + chunk.iter().position(|logit| *logit == most).unwrap_or(0);
        }
    }
    (peak as TokenId, finite(f64::from(top)))
}

/// The largest logit; -inf where there is none.
fn maximum(logits: &[f32]) -> f32 {
    const LANES: usize = 16;
    // False for NaN, which therefore never wins.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (rows, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for row in rows {
        for (lane, logit) in lanes.iter_mut().zip(row) {
            *lane = larger(*lane, *logit);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, logit| larger(most, *logit))
}

/// Whether rows are point masses. What is no positive number is no temperature.
pub(crate) fn is_greedy(sampling: &Sampling) -> bool {
    sampling.temperature.is_nan() || sampling.temperature <= 0.0
}

fn changed(mut logit: f64, changes: &[(TokenId, Change)], sampling: &Sampling) -> f64 {
    let (mut banned, mut seen, mut written) = (false, false, 0u32);
    for (_, change) in changes {
        match change {
            Change::Bias(bias) => logit += f64::from(*bias),
            Change::Ban => banned = true,
            Change::InPrompt => seen = true,
            Change::InOutput => {
                seen = true;
                written += 1;
            }
        }
    }
    if banned {
        return f64::NEG_INFINITY;
    }
    if seen && logit > 0.0 {
        logit /= sampling.repetition_penalty;
    } else if seen {
        logit *= sampling.repetition_penalty;
    }
    if written > 0 {
        logit -= sampling.presence_penalty + sampling.frequency_penalty * f64::from(written);
    }
    finite(logit)
}

/// NaN can never be picked; +inf is finite, for `inf - inf` is not a number.
fn finite(logit: f64) -> f64 {
    if logit.is_nan() { f64::NEG_INFINITY } else { logit.min(f64::from(f32::MAX)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampling(change: impl FnOnce(&mut Sampling)) -> Sampling {
        let mut sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        change(&mut sampling);
        sampling
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn raw_row_is_the_softmax() {
        let sampling = sampling(|s| s.temperature = 0.3);
        let logits = [2.0, 1.0, 0.5, -0.5, -1.0];
        let row = Shaped::new(&logits, &sampling, &[], 0);
        close(row.max(), 0.580_422_914_929_477_3);
        close(row.prob(3), 0.047_644_014_173_265_48);
        close(row.entropy(), 1.157_591_423_488_007_6);
        close(row.logprob(3), libm::log(0.047_644_014_173_265_48));
        assert_eq!(row.argmax(), 0);
        assert_eq!(row.prob(5), 0.0);
        assert_eq!(row.top(2).iter().map(|entry| entry.0).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn penalties_read_what_they_should() {
        // Prompt 0 1, output 1 1 2.
        let history = [0, 1, 1, 1, 2];
        let logits = [1.0, 1.0, -1.0, 0.5];
        let changed = |sampling: &Sampling| {
            let row = Shaped::new(&logits, sampling, &history, 2);
            row.iter().map(|entry| entry.1).collect::<Vec<_>>()
        };
        assert_eq!(changed(&sampling(|s| s.repetition_penalty = 2.0)), [0.5, 0.5, -2.0, 0.5]);
        assert_eq!(changed(&sampling(|s| s.presence_penalty = 1.0)), [1.0, 0.0, -2.0, 0.5]);
        assert_eq!(changed(&sampling(|s| s.frequency_penalty = 1.0)), [1.0, -1.0, -2.0, 0.5]);
        assert_eq!(changed(&sampling(|s| s.logit_bias = vec![(3, 1.0), (9, 1.0), (3, 1.0)])), [1.0, 1.0, -1.0, 2.5]);
        let all = sampling(|s| {
            s.banned = vec![0];
            s.logit_bias = vec![(0, 50.0), (1, 3.0)];
            s.repetition_penalty = 2.0;
            s.presence_penalty = 0.25;
            s.frequency_penalty = 0.5;
        });
        assert_eq!(changed(&all), [f64::NEG_INFINITY, 0.75, -2.75, 0.5]);
        let plain = Shaped::without_penalties(&logits, &all);
        assert_eq!(plain.iter().map(|entry| entry.1).collect::<Vec<_>>(), [f64::NEG_INFINITY, 4.0, -1.0, 0.5]);
    }

    #[test]
    fn truncations_run_one_after_the_other() {
        let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        let ids = |sampling: &Sampling| {
            let row = Shaped::new(&logits, sampling, &[], 0).row();
            assert!((row.total() - 1.0).abs() < 1e-12);
            row.iter().map(|entry| entry.0).collect::<Vec<_>>()
        };
        assert_eq!(ids(&sampling(|s| s.top_k = 3)), [0, 1, 2]);
        assert_eq!(ids(&sampling(|s| s.top_p = 0.65)), [0, 1]);
        // 0.4 of 0.7 is left after top-k 2: enough for a nucleus of 0.55, which it would not be of the whole row.
        assert_eq!(ids(&sampling(|s| (s.top_k, s.top_p) = (2, 0.55))), [0]);
        assert_eq!(ids(&sampling(|s| s.min_p = 0.4)), [0, 1, 2]);
        assert_eq!(ids(&sampling(|s| s.temperature = 0.0)), [0]);
    }

    #[test]
    fn a_row_with_nothing_left_is_the_point_mass_at_zero() {
        let sampling = sampling(|s| s.banned = vec![0, 1, 2]);
        for logits in [&[1.0, 2.0, 3.0][..], &[f32::NAN, 1.0, 1.0], &[]] {
            let row = Shaped::new(logits, &sampling, &[], 0);
            assert_eq!((row.argmax(), row.max(), row.entropy(), row.prob(0), row.prob(1)), (0, 1.0, 0.0, 1.0, 0.0));
            assert_eq!((row.logprob(0), row.logprob(1)), (0.0, f64::NEG_INFINITY));
            assert_eq!(row.row(), Distribution::point_mass(0));
            assert_eq!(row.drafted_row(&[]), Distribution::point_mass(0));
        }
    }

    #[test]
    fn a_drafted_row_is_cut_barred_and_rounded() {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let sampling = sampling(|s| s.wire_top_k = 3);
        let row = Shaped::new(&logits, &sampling, &[], 0).drafted_row(&[1]);
        assert_eq!(row.iter().map(|entry| entry.0).collect::<Vec<_>>(), [0, 2]);
        assert!(row.iter().all(|entry| f64::from(entry.1 as f32) == entry.1));
        assert!((row.total() - 1.0).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn the_peak_is_the_first_largest(
            values in proptest::collection::vec(prop_oneof![Just(f32::NAN), Just(f32::INFINITY), (0..50u8).prop_map(f32::from)], 0..700),
        ) {
            let mut best = (0, f32::NEG_INFINITY);
            for (id, &value) in values.iter().enumerate() {
                if value > best.1 {
                    best = (id as TokenId, value);
                }
            }
            prop_assert_eq!(plain_peak(&values), (best.0, finite(f64::from(best.1))));
        }

        #[test]
        fn a_token_weighs_the_same_wherever_it_is_read(
            logits in proptest::collection::vec(prop_oneof![9 => -20.0..20.0f32, 1 => Just(f32::NAN)], 1..200),
            temperature in prop_oneof![Just(1.0), 0.01..5.0f64],
            bias in proptest::collection::vec((0..50u32, -9.0..9.0f32), 0..4),
            banned in proptest::collection::vec(0..50u32, 0..4),
            (top_k, top_p) in (prop_oneof![Just(0), 1..300usize], prop_oneof![Just(1.0), 0.1..1.0f64]),
            (seed, position) in (any::<u64>(), 0..1000u64),
        ) {
            let sampling = Sampling { temperature, top_k, top_p, logit_bias: bias, banned, ..Sampling::default() };
            let shaped = Shaped::new(&logits, &sampling, &[], 0);
            let row = shaped.row();
            let read = shaped.row_at((0..logits.len() as TokenId).step_by(3));
            for token in (0..logits.len() as TokenId).step_by(3) {
                prop_assert_eq!(read.prob(token), row.prob(token));
            }
            let chance = Chance::new(seed, 0);
            let drawn = shaped.draw(&chance, position, Stream::Draft);
            prop_assert_eq!(drawn, row.draw(&chance, position, Stream::Draft));
        }

        #[test]
        fn no_logit_breaks_a_row(
            bits in proptest::collection::vec(any::<u32>(), 1..40),
            temperature in prop_oneof![Just(0.0), Just(1e-300), 0.01..5.0f64],
            (top_k, top_p, min_p) in (0..6usize, 0.0..=1.0f64, 0.0..=1.0f64),
            history in proptest::collection::vec(0..50u32, 0..20),
            (repetition_penalty, presence_penalty) in (0.1..3.0f64, -2.0..2.0f64),
            bias in proptest::collection::vec((0..50u32, any::<f32>()), 0..4),
        ) {
            let logits: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let sampling = Sampling {
                temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, logit_bias: bias,
                banned: vec![1], ..Sampling::default()
            };
            let row = Shaped::new(&logits, &sampling, &history, 3);
            let (max, entropy, argmax) = (row.max(), row.entropy(), row.argmax());
            prop_assert!(max > 0.0 && max <= 1.0 && entropy.is_finite() && entropy >= 0.0);
            let sum: f64 = (0..logits.len() as u32).map(|token| row.prob(token)).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9);
            for cut in [row.row(), row.drafted_row(&[])] {
                prop_assert!((cut.total() - 1.0).abs() < 1e-5);
                // The argmax stays, or a token whose logit is larger by less than exp can tell.
                prop_assert!(cut.iter().any(|(token, _)| row.prob(token) >= 0.999_999 * max));
                prop_assert!(argmax == 0 || cut.prob(1) == 0.0);
            }
        }
    }
}
