//! One row of probabilities over the vocabulary, dense or on an ascending support.

use std::cmp::Ordering;

use crate::chance::{Chance, Stream};
use crate::ids::TokenId;

/// Mass below which a residual counts as empty: what rounding leaves of two equal rows.
pub const EMPTY: f64 = 1e-12;

/// Probabilities of the next token.
///
/// A dense row has one weight for each id; a sparse one has ids ascending and zero elsewhere. Which of the two is a
/// matter of cost alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution(Weights);

#[derive(Clone, Debug, PartialEq)]
enum Weights {
    Dense(Vec<f64>),
    Sparse(Vec<(TokenId, f64)>),
}

impl Distribution {
    /// A row with one weight for each id, taken as it is.
    #[must_use]
    pub fn dense(weights: Vec<f64>) -> Self {
        Self(Weights::Dense(weights))
    }

    /// A row on a support, taken as it is; ids must be ascending.
    #[must_use]
    pub fn sparse(entries: Vec<(TokenId, f64)>) -> Self {
        debug_assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "a support must have ascending ids");
        Self(Weights::Sparse(entries))
    }

    /// All mass on one token.
    #[must_use]
    pub fn point_mass(token: TokenId) -> Self {
        Self::sparse(vec![(token, 1.0)])
    }

    /// The weight of a token; 0 outside the row.
    #[must_use]
    pub fn prob(&self, token: TokenId) -> f64 {
        match &self.0 {
            Weights::Dense(weights) => weights.get(token as usize).copied().unwrap_or(0.0),
            Weights::Sparse(entries) => {
                entries.binary_search_by_key(&token, |entry| entry.0).map_or(0.0, |index| entries[index].1)
            }
        }
    }

    /// Tokens with positive weight, ids ascending.
    pub fn iter(&self) -> impl Iterator<Item = (TokenId, f64)> + '_ {
        let (weights, entries): (&[f64], &[(TokenId, f64)]) = match &self.0 {
            Weights::Dense(weights) => (weights, &[]),
            Weights::Sparse(entries) => (&[], entries),
        };
        let dense = weights.iter().enumerate().map(|(id, &weight)| (id as TokenId, weight));
        dense.chain(entries.iter().copied()).filter(|entry| entry.1 > 0.0)
    }

    /// Sum of the weights.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.iter().fold(0.0, |sum, entry| sum + entry.1)
    }

    /// Mass of a set of tokens.
    #[must_use]
    pub fn mass(&self, tokens: &[TokenId]) -> f64 {
        tokens.iter().map(|&token| self.prob(token)).fold(0.0, |sum, weight| sum + weight)
    }

    /// The largest weight.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.prob(self.argmax())
    }

    /// The token with the largest weight, lowest id on ties; 0 for a row without mass.
    #[must_use]
    pub fn argmax(&self) -> TokenId {
        let best = self.iter().fold(None, |best: Option<(TokenId, f64)>, entry| match best {
            Some(best) if entry.1 <= best.1 => Some(best),
            _ => Some(entry),
        });
        best.map_or(0, |entry| entry.0)
    }

    /// Entropy in nats.
    #[must_use]
    pub fn entropy(&self) -> f64 {
        self.iter().fold(0.0, |sum, (_, p)| sum - p * libm::log(p))
    }

    /// `D_TV = sum max(0, self - other)`, of two rows that each sum to one. Costs a pass over `self` only.
    #[must_use]
    pub fn total_variation(&self, other: &Self) -> f64 {
        self.iter().fold(0.0, |sum, (token, weight)| sum + (weight - other.prob(token)).max(0.0))
    }

    /// The same row, summing to one; a row without mass stays as it is.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        let total = self.total();
        if total > 0.0 {
            match &mut self.0 {
                Weights::Dense(weights) => weights.iter_mut().for_each(|weight| *weight /= total),
                Weights::Sparse(entries) => entries.iter_mut().for_each(|entry| entry.1 /= total),
            }
        }
        self
    }

    /// The `count` likeliest tokens, ties by lowest id, renormalised; 0 cuts nothing.
    #[must_use]
    pub fn cut(self, count: usize) -> Self {
        if count == 0 || self.iter().nth(count).is_none() {
            return self;
        }
        Self::of_unsorted(largest(self.iter(), count)).normalised()
    }

    /// The fewest likeliest tokens that hold `share` of the mass, ties by lowest id; at least one. Not renormalised.
    #[must_use]
    pub fn nucleus(self, share: f64) -> Self {
        let wanted = share * self.total();
        // A nucleus is nearly always small: sort a few, and more only if they do not hold enough.
        let mut count = 64;
        loop {
            let mut best = largest(self.iter(), count);
            let mut mass = 0.0;
            let held = best.iter().position(|entry| {
                mass += entry.1;
                mass >= wanted
            });
            if let Some(last) = held {
                best.truncate(last + 1);
                return Self::of_unsorted(best);
            }
            if best.len() < count {
                return self;
            }
            count *= 8;
        }
    }

    /// The tokens with at least `ratio` times the largest weight. Not renormalised.
    #[must_use]
    pub fn at_least(self, ratio: f64) -> Self {
        let floor = ratio.min(1.0) * self.max();
        Self::sparse(self.iter().filter(|entry| entry.1 >= floor).collect())
    }

    /// The row without a set of tokens (ids ascending), renormalised.
    #[must_use]
    pub fn without(self, tokens: &[TokenId]) -> Self {
        if tokens.iter().all(|&token| self.prob(token) <= 0.0) {
            return self;
        }
        Self::sparse(self.iter().filter(|entry| tokens.binary_search(&entry.0).is_err()).collect()).normalised()
    }

    /// Every weight as it survives the wire: rounded to `f32`, those that vanish dropped, and not renormalised.
    #[must_use]
    pub fn rounded_to_f32(self) -> Self {
        let rounded = self.iter().map(|(token, weight)| (token, f64::from(weight as f32)));
        Self::sparse(rounded.filter(|entry| entry.1 > 0.0).collect())
    }

    /// `norm(max(0, self - q))`; `None` where nothing but rounding is left.
    #[must_use]
    pub fn residual(&self, q: &Self) -> Option<Self> {
        let left = self.iter().map(|(token, weight)| (token, weight - q.prob(token)));
        let residual = Self::sparse(left.filter(|entry| entry.1 > 0.0).collect());
        (residual.total() > EMPTY).then(|| residual.normalised())
    }

    /// The token that chance picks from this row: `argmax(ln w + G)` with the noise of (position, stream).
    ///
    /// A row without mass gives 0.
    #[must_use]
    pub fn draw(&self, chance: &Chance, position: u64, stream: Stream) -> TokenId {
        chance.race(position, stream, self.iter()).unwrap_or(0)
    }

    fn of_unsorted(mut entries: Vec<(TokenId, f64)>) -> Self {
        entries.sort_unstable_by_key(|entry| entry.0);
        Self::sparse(entries)
    }
}

/// The `count` largest of entries that come with ids ascending; best first, ties by lowest id. Skips -inf and NaN.
pub(crate) fn largest(entries: impl Iterator<Item = (TokenId, f64)>, count: usize) -> Vec<(TokenId, f64)> {
    let best_first = |a: &(TokenId, f64), b: &(TokenId, f64)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
    let mut kept: Vec<(TokenId, f64)> = Vec::new();
    if count == 0 {
        return kept;
    }
    // Nearly all of a large vocabulary fails one comparison with the smallest of the best so far; the buffer is
    // thinned when it is full. An equal value that comes later has a higher id and loses, so `>` is right.
    let full = count.saturating_mul(2).max(64);
    let mut floor = f64::NEG_INFINITY;
    for entry in entries {
        if entry.1 > floor {
            kept.push(entry);
            if kept.len() == full {
                kept.select_nth_unstable_by(count - 1, best_first);
                kept.truncate(count);
                floor = kept[count - 1].1;
            }
        }
    }
    kept.sort_unstable_by(best_first);
    kept.truncate(count);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_lowest_id() {
        let row = Distribution::dense(vec![0.1, 0.3, 0.3, 0.3]);
        assert_eq!(row.argmax(), 1);
        assert_eq!(row.clone().cut(2), Distribution::sparse(vec![(1, 0.5), (2, 0.5)]));
        assert_eq!(row.clone().nucleus(0.5), Distribution::sparse(vec![(1, 0.3), (2, 0.3)]));
        assert_eq!(row.cut(0).iter().count(), 4);
    }

    #[test]
    fn a_residual_of_equal_rows_is_empty() {
        let row = Distribution::dense(vec![0.25, 0.75]);
        assert_eq!(row.residual(&row), None);
        let other = Distribution::point_mass(0);
        assert_eq!(row.residual(&other), Some(Distribution::point_mass(1)));
    }

    #[test]
    fn truncations_keep_at_least_one_token() {
        let row = Distribution::dense(vec![0.2, 0.5, 0.3]);
        assert_eq!(row.clone().nucleus(0.0), Distribution::sparse(vec![(1, 0.5)]));
        assert_eq!(row.clone().at_least(1.0), Distribution::sparse(vec![(1, 0.5)]));
        assert_eq!(row.clone().at_least(0.6), Distribution::sparse(vec![(1, 0.5), (2, 0.3)]));
        assert_eq!(row.without(&[1]).prob(2), 0.6);
    }

    #[test]
    fn rounding_drops_what_vanishes() {
        let row = Distribution::sparse(vec![(0, 1.0), (5, 1e-60)]).rounded_to_f32();
        assert_eq!(row.iter().collect::<Vec<_>>(), [(0, 1.0)]);
    }

    proptest! {
        #[test]
        fn a_draw_is_the_gumbel_argmax(
            weights in proptest::collection::vec(0.0..1.0f64, 1..400), seed: u64, position in 0..1_000_000u64,
        ) {
            let chance = Chance::new(seed, 0);
            let row = Distribution::dense(weights.clone());
            prop_assume!(row.total() > 0.0);
            let mut best = (0, f64::NEG_INFINITY);
            for (token, weight) in row.iter() {
                let value = libm::log(weight) + chance.gumbel(position, u64::from(token), Stream::Residual);
                if value > best.1 {
                    best = (token, value);
                }
            }
            prop_assert_eq!(row.draw(&chance, position, Stream::Residual), best.0);
            // Scale and representation do not matter.
            let sparse = Distribution::sparse(row.iter().collect()).normalised();
            prop_assert_eq!(sparse.draw(&chance, position, Stream::Residual), best.0);
        }

        #[test]
        fn largest_is_a_sorted_prefix(values in proptest::collection::vec(0..40u8, 0..500), count in 0..120usize) {
            let entries: Vec<_> = values.iter().enumerate().map(|(id, &v)| (id as TokenId, f64::from(v))).collect();
            let mut sorted = entries.clone();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            sorted.truncate(count);
            prop_assert_eq!(largest(entries.into_iter(), count), sorted);
        }

        #[test]
        fn a_nucleus_is_the_fewest_that_hold_the_share(
            weights in proptest::collection::vec(0.001..1.0f64, 1..300), share in 0.01..1.0f64,
        ) {
            let row = Distribution::dense(weights);
            let nucleus = row.clone().nucleus(share);
            let slack = 1e-9;
            prop_assert!(nucleus.total() >= share * row.total() - slack);
            let smallest = nucleus.iter().map(|entry| entry.1).fold(f64::INFINITY, f64::min);
            prop_assert!(nucleus.total() - smallest < share * row.total() + slack);
        }
    }
}
