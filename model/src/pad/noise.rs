//! What stands outside the original's rows and columns: seeded noise, the same for every kind of file.

use half::{bf16, f16};

use crate::checkpoint::Stored;
use crate::fingerprint::finish;

/// A weight as stored; it came from that type (or a narrower one), so nothing is lost.
pub(super) fn encode(weight: f32, stored: Stored) -> [u8; 4] {
    let narrow = |bits: u16| {
        let [a, b] = bits.to_le_bytes();
        [a, b, 0, 0]
    };
    match stored {
        Stored::F16 => narrow(f16::from_f32(weight).to_bits()),
        Stored::BF16 => narrow(bf16::from_f32(weight).to_bits()),
        _ => weight.to_le_bytes(),
    }
}

/// Seeded noise: 256 values, evenly spread, drawn by splitmix64.
pub(super) struct Noise {
    values: Vec<[u8; 4]>,
    state: u64,
}

impl Noise {
    pub(super) fn new(name: &str, stored: Stored, width: usize) -> Self {
        let spread = 1.0 / (width as f32).sqrt();
        let values = (0..256).map(|i| encode((i as f32 - 127.5) / 127.5 * spread, stored)).collect();
        let state = name.bytes().fold(0x5eed, |h, b| finish(h ^ u64::from(b)));
        Self { values, state }
    }

    /// Fills row `index` of the tensor; rows may come in any order.
    pub(super) fn fill(&self, index: usize, bytes: &mut [u8], size: usize) {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let before = index as u64 * bytes.len().div_ceil(8 * size) as u64;
        let mut state = self.state.wrapping_add(STEP.wrapping_mul(before));
        for eight in bytes.chunks_mut(8 * size) {
            state = state.wrapping_add(STEP);
            let drawn = finish(state).to_le_bytes();
            for (to, index) in eight.chunks_exact_mut(size).zip(drawn) {
                to.copy_from_slice(&self.values[usize::from(index)][..size]);
            }
        }
    }
}
