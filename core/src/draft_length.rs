//! How many tokens the next block drafts.

use crate::limits::MAX_DRAFT_LENGTH;

/// Chooses the length of each block. An enum: a controller that learns from the counts becomes a second variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftLength {
    /// Always so many.
    Fixed(usize),
}

impl DraftLength {
    /// A fixed length, brought into `1..=MAX_DRAFT_LENGTH`.
    #[must_use]
    pub fn fixed(tokens: usize) -> Self {
        Self::Fixed(tokens.clamp(1, MAX_DRAFT_LENGTH))
    }

    /// Tokens of the next block, in `1..=MAX_DRAFT_LENGTH`.
    #[must_use]
    pub fn next(&self) -> usize {
        match self {
            Self::Fixed(tokens) => (*tokens).clamp(1, MAX_DRAFT_LENGTH),
        }
    }

    /// Learns from a verdict: `accepted` of `drafted` tokens stood. A fixed length learns nothing.
    pub fn record(&mut self, accepted: usize, drafted: usize) {
        debug_assert!(accepted <= drafted, "{accepted} of {drafted} drafts accepted");
        match self {
            Self::Fixed(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_length_stays_within_the_bound() {
        for (asked, given) in [(0, 1), (1, 1), (6, 6), (64, 64), (65, 64), (usize::MAX, 64)] {
            let mut length = DraftLength::fixed(asked);
            length.record(0, 6);
            assert_eq!(length.next(), given);
            assert_eq!(DraftLength::Fixed(asked).next(), given);
        }
    }
}
