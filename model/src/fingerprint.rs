//! A stable 128-bit hash. It tells models apart; it does not withstand someone who wants two to collide.

/// Odd constants, one for each lane (digits of the golden ratio through splitmix64).
const KEYS: [u64; 4] = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];

/// Hashes byte strings in order; `["ab", "c"]` differs from `["a", "bc"]`.
#[derive(Clone)]
pub(crate) struct Fingerprint {
    lanes: [u64; 4],
}

impl Fingerprint {
    pub(crate) fn new() -> Self {
        Self { lanes: KEYS }
    }

    /// Adds a byte string.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(32);
        for chunk in &mut chunks {
            self.mix(chunk);
        }
        let rest = chunks.remainder();
        let mut last = [0; 32];
        last[..rest.len()].copy_from_slice(rest);
        self.mix(&last);
        last = [0xff; 32];
        last[..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.mix(&last);
    }

    fn mix(&mut self, chunk: &[u8]) {
        for ((lane, key), word) in self.lanes.iter_mut().zip(KEYS).zip(chunk.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            *lane = (*lane ^ word).wrapping_mul(key).rotate_left(29).wrapping_add(word);
        }
    }

    /// 32 hexadecimal digits.
    pub(crate) fn hex(&self) -> String {
        let [a, b, c, d] = self.lanes;
        let low = finish(a ^ finish(b ^ finish(c ^ finish(d))));
        let high = finish(low ^ finish(b.wrapping_add(finish(a.wrapping_add(finish(d.wrapping_add(c)))))));
        format!("{high:016x}{low:016x}")
    }
}

/// splitmix64's finaliser.
pub(crate) fn finish(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
