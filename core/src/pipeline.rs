//! How many blocks a session keeps in flight.
//!
//! A block drafted ahead of a verdict is worth its cost only if the block before it is accepted whole; else it is stale,
//! and rows merged behind a rejection were computed for nothing. The text never depends on it.

/// Weight of the newest verdict in the running share of blocks accepted whole.
const NEWEST: f64 = 0.25;

/// Controls the blocks in flight of one session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pipeline {
    /// Always so many, at least 1.
    Fixed(usize),
    /// One, and up to `most` while blocks are more likely accepted whole than not.
    Auto {
        /// Bound, at least 1.
        most: usize,
        /// Running share of blocks accepted whole.
        whole: f64,
    },
}

impl Pipeline {
    /// `depth` blocks; 0 lets the verdicts decide, up to `most`.
    #[must_use]
    pub fn new(depth: usize, most: usize) -> Self {
        if depth == 0 { Self::Auto { most: most.max(1), whole: 0.0 } } else { Self::Fixed(depth) }
    }

    /// Blocks that may be in flight now.
    #[must_use]
    pub fn depth(&self) -> usize {
        match *self {
            Self::Fixed(depth) => depth,
            Self::Auto { most, whole } => {
                if whole > 0.5 {
                    most
                } else {
                    1
                }
            }
        }
    }

    /// The expert grants no more than `slots`.
    pub fn limit(&mut self, slots: usize) {
        let (Self::Fixed(most) | Self::Auto { most, .. }) = self;
        *most = (*most).min(slots.max(1));
    }

    /// A block got its verdict.
    pub fn record(&mut self, accepted_whole: bool) {
        if let Self::Auto { whole, .. } = self {
            *whole += NEWEST * (f64::from(u8::from(accepted_whole)) - *whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_ahead_while_blocks_are_accepted_whole() {
        let mut pipeline = Pipeline::new(0, 3);
        assert_eq!(pipeline.depth(), 1);
        for _ in 0..3 {
            pipeline.record(true);
        }
        assert_eq!(pipeline.depth(), 3);
        pipeline.limit(2);
        assert_eq!(pipeline.depth(), 2);
        pipeline.record(false);
        assert_eq!(pipeline.depth(), 1);
    }

    #[test]
    fn a_fixed_depth_heeds_the_grant_alone() {
        let mut pipeline = Pipeline::new(3, 8);
        pipeline.record(false);
        assert_eq!(pipeline.depth(), 3);
        pipeline.limit(0);
        assert_eq!(pipeline.depth(), 1);
    }
}
