//! A session's tokens, with a chained hash of every prefix.
//!
//! The hash tells a block drafted on another history from one that merely has the same length (DESIGN section 4).

use crate::ids::TokenId;

/// The finaliser of SplitMix64: a bijection of 64 bits that mixes well.
#[must_use]
pub const fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The chained hash after one more token.
#[must_use]
pub const fn chain(tail: u64, token: TokenId) -> u64 {
    splitmix64(tail ^ (token as u64 + 1))
}

/// A hash of bytes that is the same on every machine and in every release.
#[must_use]
pub fn hash_bytes(start: u64, bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(start ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    splitmix64(fnv ^ bytes.len() as u64)
}

/// Length of the longest common prefix.
#[must_use]
pub fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    /// Compared at once: the compiler makes this a `memcmp`.
    const RUN: usize = 256;
    let length = a.len().min(b.len());
    let mut same = 0;
    while same + RUN <= length && a[same..same + RUN] == b[same..same + RUN] {
        same += RUN;
    }
    same + a[same..length].iter().zip(&b[same..length]).take_while(|(x, y)| x == y).count()
}

/// Token ids and the chained 64-bit hash of every prefix: `h = splitmix64(h ^ (token + 1))`, from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    ids: Vec<TokenId>,
    /// `tails[i]` is the hash of `ids[..=i]`.
    tails: Vec<u64>,
}

impl History {
    /// A history without tokens.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The history of these tokens.
    #[must_use]
    pub fn from_ids(ids: &[TokenId]) -> Self {
        let mut history = Self { ids: Vec::with_capacity(ids.len()), tails: Vec::with_capacity(ids.len()) };
        history.extend(ids.iter().copied());
        history
    }

    /// Adds one token.
    pub fn push(&mut self, token: TokenId) {
        self.tails.push(chain(self.tail(), token));
        self.ids.push(token);
    }

    /// Adds tokens in order.
    pub fn extend(&mut self, ids: impl IntoIterator<Item = TokenId>) {
        for token in ids {
            self.push(token);
        }
    }

    /// Drops everything past `length`; no effect where the history is not longer.
    pub fn truncate(&mut self, length: usize) {
        self.ids.truncate(length);
        self.tails.truncate(length);
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The tokens.
    #[must_use]
    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    /// Hash of the first `length` tokens; `length` is at most [`Self::len`].
    #[must_use]
    pub fn tail_at(&self, length: usize) -> u64 {
        if length == 0 { 0 } else { self.tails[length - 1] }
    }

    /// Hash of all tokens.
    #[must_use]
    pub fn tail(&self) -> u64 {
        self.tail_at(self.ids.len())
    }

    /// How many leading tokens both have.
    #[must_use]
    pub fn common_prefix(&self, ids: &[TokenId]) -> usize {
        common_prefix(&self.ids, ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn splitmix_has_its_published_values() {
        // The reference generator seeded with 0: its state grows by the golden ratio before each finaliser.
        assert_eq!(splitmix64(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix64(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn the_bytes_hash_does_not_change_between_releases() {
        assert_eq!(hash_bytes(0, b""), splitmix64(0xcbf2_9ce4_8422_2325));
        assert_ne!(hash_bytes(0, b"a"), hash_bytes(1, b"a"));
        assert_ne!(hash_bytes(0, b"ab"), hash_bytes(0, b"ba"));
    }

    #[test]
    fn token_zero_counts() {
        assert_ne!(History::from_ids(&[0]).tail(), History::from_ids(&[0, 0]).tail());
        assert_eq!(History::new().tail(), 0);
    }

    proptest! {
        #[test]
        fn every_tail_is_that_of_its_prefix(ids in prop::collection::vec(0u32..50, 0..80), cut in 0usize..90) {
            let whole = History::from_ids(&ids);
            for length in 0..=ids.len() {
                prop_assert_eq!(whole.tail_at(length), History::from_ids(&ids[..length]).tail());
            }
            let mut cut_back = whole.clone();
            cut_back.truncate(cut);
            prop_assert_eq!(cut_back, History::from_ids(&ids[..cut.min(ids.len())]));
        }

        #[test]
        fn common_prefix_is_the_longest(same in 0usize..700, a in 0usize..20, b in 0usize..20) {
            let left: Vec<TokenId> = (0..same as u32).chain((0..a).map(|_| 1_000)).collect();
            let right: Vec<TokenId> = (0..same as u32).chain((0..b).map(|_| 2_000)).collect();
            prop_assert_eq!(common_prefix(&left, &right), same);
        }
    }
}
