//! Chance as a pure function of (seed, choice, position, token, stream).
//!
//! No state: a retried, re-batched or re-routed verification draws the same numbers, so it gives the same text.
//! The generator is Philox4x64-10 (Salmon et al., SC'11), written out here because its bits are part of what a seed
//! means; a dependency that changed them would change every text.

use std::ops::Range;

use crate::ids::TokenId;

/// Second word of the key; keeps our numbers apart from other uses of the same seed. Choice `i` uses `DOMAIN + i`.
const DOMAIN: u64 = 0x5350_4543_4341_5343;

/// Distance of neighbouring uniform numbers.
const STEP: f64 = 1.0 / (1u64 << 52) as f64;

const MULTIPLIERS: [u64; 2] = [0xD2E7_470E_E14C_6C93, 0xCA5A_8263_9512_1157];
const WEYL: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xBB67_AE85_84CA_A73B];

/// Independent sources of chance at one position.
///
/// They must stay apart: a replacement drawn with the noise that chose the draft follows a visibly wrong law
/// (`algorithms.md` 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Every draw from a model's own row: drafts, and the tokens of a model that decodes alone.
    Draft = 1,
    /// The coin of the accept test; its token field is 0.
    Accept = 2,
    /// The replacement after a rejected draft.
    Residual = 3,
}

/// All chance of one choice of one request.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    key: [u64; 2],
}

impl Chance {
    /// The chance of choice `choice` under `seed`.
    #[must_use]
    pub fn new(seed: u64, choice: u32) -> Self {
        Self { key: [seed, DOMAIN.wrapping_add(u64::from(choice))] }
    }

    /// A uniform number in the open interval (0, 1).
    #[must_use]
    pub fn uniform(&self, position: u64, token: u64, stream: Stream) -> f64 {
        (self.bits(position, token, stream) as f64 + 0.5) * STEP
    }

    /// A standard Gumbel number.
    #[must_use]
    pub fn gumbel(&self, position: u64, token: u64, stream: Stream) -> f64 {
        -libm::log(-libm::log1p(-self.uniform(position, token, stream)))
    }

    /// The winner of `argmax(ln w + G)`, lowest id on ties; `None` if no weight is positive.
    #[must_use]
    pub fn race(
        &self,
        position: u64,
        stream: Stream,
        weights: impl Iterator<Item = (TokenId, f64)>,
    ) -> Option<TokenId> {
        let mut race = self.begin(position, stream);
        weights.for_each(|(token, weight)| race.enter(token, weight));
        race.winner
    }

    /// A race that nobody has entered yet.
    #[must_use]
    pub fn begin(&self, position: u64, stream: Stream) -> Race {
        Race { chance: *self, position, stream, winner: None, best: f64::INFINITY }
    }

    /// 52 bits; the uniform number is the middle of their interval.
    #[inline]
    fn bits(&self, position: u64, token: u64, stream: Stream) -> u64 {
        philox([position, token, stream as u64, 0], self.key)[0] >> 12
    }
}

/// `argmax(ln w + G)` over tokens that come one after the other; their order does not matter.
///
/// Computed as a race of exponentials, `argmin(E / w)` with `E = -ln1p(-u)`: as `E >= u`, a token with `u > w * m` cannot
/// beat the best time `m` so far, and nearly all logarithms of a large vocabulary are saved. The weights need not sum to
/// one.
#[derive(Clone, Copy, Debug)]
pub struct Race {
    chance: Chance,
    position: u64,
    stream: Stream,
    winner: Option<TokenId>,
    best: f64,
}

impl Race {
    /// Enters a token; without a positive weight it cannot win.
    #[inline]
    pub fn enter(&mut self, token: TokenId, weight: f64) {
        if weight > 0.0 {
            let u = self.chance.uniform(self.position, u64::from(token), self.stream);
            if u <= weight * self.best {
                self.timed(token, -libm::log1p(-u) / weight);
            }
        }
    }

    /// Enters all of `tokens`, none of which weighs more than `most`, and weighs only those that might win.
    #[inline]
    pub fn enter_all(&mut self, tokens: Range<TokenId>, most: f64, weight: impl Fn(TokenId) -> f64) {
        // The cast saturates, and what it cuts off is less than the half that a uniform number is above its bits.
        let bits = (most * self.best / STEP) as u64;
        for token in tokens {
            if self.chance.bits(self.position, u64::from(token), self.stream) <= bits {
                self.enter(token, weight(token));
            }
        }
    }

    /// The winner of those who entered.
    #[must_use]
    pub fn winner(&self) -> Option<TokenId> {
        self.winner
    }

    fn timed(&mut self, token: TokenId, time: f64) {
        if time < self.best || (time == self.best && self.winner.is_none_or(|other| token < other)) {
            self.winner = Some(token);
            self.best = time;
        }
    }
}

fn philox(mut counter: [u64; 4], mut key: [u64; 2]) -> [u64; 4] {
    for _ in 0..10 {
        let a = u128::from(MULTIPLIERS[0]) * u128::from(counter[0]);
        let b = u128::from(MULTIPLIERS[1]) * u128::from(counter[2]);
        counter = [(b >> 64) as u64 ^ counter[1] ^ key[0], b as u64, (a >> 64) as u64 ^ counter[3] ^ key[1], a as u64];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_its_known_answers() {
        // Random123's kat_vectors, philox4x64 10.
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x1655_4d9e_ca36_314c, 0xdb20_fe9d_672d_0fdc, 0xd7e7_72ce_e186_176b, 0x7e68_b68a_ec7b_a23b]
        );
        assert_eq!(
            philox([u64::MAX; 4], [u64::MAX; 2]),
            [0x87b0_92c3_013f_e90b, 0x438c_3c67_be8d_0224, 0x9cc7_d7c6_9cd7_77b6, 0xa09c_aebf_594f_0ba0]
        );
    }

    #[test]
    fn choices_and_streams_are_apart() {
        let first = Chance::new(7, 0);
        let second = Chance::new(7, 1);
        assert_ne!(first.uniform(3, 5, Stream::Draft), second.uniform(3, 5, Stream::Draft));
        assert_ne!(first.uniform(3, 5, Stream::Draft), first.uniform(3, 5, Stream::Residual));
    }

    #[test]
    fn a_race_without_weights_has_no_winner() {
        let chance = Chance::new(1, 0);
        assert_eq!(chance.race(0, Stream::Draft, std::iter::empty()), None);
        assert_eq!(chance.race(0, Stream::Draft, [(3, 0.0), (4, f64::NAN)].into_iter()), None);
        assert_eq!(chance.race(0, Stream::Draft, [(3, 0.0), (9, 5e-324)].into_iter()), Some(9));
    }
}
