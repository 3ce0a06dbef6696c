//! The router's only chance: session ids and their secrets, and the draws of its placements.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cascadia_core::ids::{SessionId, SessionSecret};

/// Where random bits come from: the operating system, or a seed in a simulation.
#[derive(Clone)]
pub struct IdSource(Arc<dyn Fn() -> u128 + Send + Sync>);

impl IdSource {
    /// From the operating system, for every draw: no draw tells anything of another.
    #[must_use]
    pub fn entropy() -> Self {
        Self(Arc::new(|| {
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes).expect("the operating system has random bytes");
            u128::from_ne_bytes(bytes)
        }))
    }

    /// From a seed: the same ids and draws in every run, and secrets that are none.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let state = AtomicU64::new(seed);
        let word = move || splitmix64(state.fetch_add(GOLDEN, Ordering::Relaxed));
        Self(Arc::new(move || u128::from(word()) << 64 | u128::from(word())))
    }

    /// A new session's id.
    #[must_use]
    pub fn session(&self) -> SessionId {
        SessionId((self.0)())
    }

    /// A new session's secret.
    #[must_use]
    pub fn secret(&self) -> SessionSecret {
        SessionSecret::new((self.0)())
    }

    /// 64 random bits.
    #[must_use]
    pub fn bits(&self) -> u64 {
        (self.0)() as u64
    }
}

impl Default for IdSource {
    fn default() -> Self {
        Self::entropy()
    }
}

impl fmt::Debug for IdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mint")
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn splitmix64(state: u64) -> u64 {
    let z = state.wrapping_add(GOLDEN);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_entropy_does_not() {
        let ids = |ids: &IdSource| [ids.session(), ids.session(), ids.session()];
        assert_eq!(ids(&IdSource::seeded(7)), ids(&IdSource::seeded(7)));
        assert_ne!(ids(&IdSource::seeded(7)), ids(&IdSource::seeded(8)));
        let (one, two) = (ids(&IdSource::entropy()), ids(&IdSource::entropy()));
        assert_ne!(one, two);
        assert_ne!(one[0], one[1]);
        let (ids, other) = (IdSource::entropy(), IdSource::entropy());
        let drawn = [ids.secret(), ids.secret(), other.secret()].map(|secret| secret.bytes().to_vec());
        assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[2] != drawn[0]);
        assert_eq!(IdSource::seeded(7).secret().bytes(), IdSource::seeded(7).secret().bytes());
    }
}
