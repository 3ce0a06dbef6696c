//! GGUF's packed types: blocks of 4 to 6 bits a weight, taken apart and put together.

use half::f16;

/// Weights that one scale of the outer level covers, at most.
pub(crate) const SUPER: usize = 256;

/// A packed type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Packing {
    /// 32 weights: `d (q - 8)`, four bits.
    Q4_0,
    /// 8 blocks of 32: `d s q - dmin m`, four bits.
    Q4K,
    /// As `Q4K`, five bits.
    Q5K,
    /// 16 blocks of 16: `d s (q - 32)`, six bits.
    Q6K,
}

/// A block (or block of blocks) taken apart.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) d: f16,
    pub(crate) dmin: f16,
    /// Of 32 weights in `Q4K` and `Q5K`, of 16 in `Q6K`; unused in `Q4_0`.
    pub(crate) scales: [i8; 16],
    pub(crate) minima: [u8; 8],
    /// Unsigned; the first [`Packing::weights`] count.
    pub(crate) q: [u8; SUPER],
}

impl Block {
    /// All zero: a block of `Q6K` or `Q4_0` is then not made of zeros, but its scale is zero.
    pub(crate) const ZERO: Self =
        Self { d: f16::ZERO, dmin: f16::ZERO, scales: [0; 16], minima: [0; 8], q: [0; SUPER] };
}

impl Packing {
    /// Weights of a block.
    pub(crate) fn weights(self) -> usize {
        if self == Self::Q4_0 { 32 } else { SUPER }
    }

    /// Bytes of a block in a file.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Takes apart a block as GGUF stores it. `None` if a scale is not finite.
    pub(crate) fn read(self, bytes: &[u8]) -> Option<Block> {
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut block = Block::ZERO;
        match self {
            Self::Q4_0 => {
                block.d = half(0);
                for (i, byte) in bytes[2..18].iter().enumerate() {
                    (block.q[i], block.q[i + 16]) = (byte & 15, byte >> 4);
                }
            }
            Self::Q4K | Self::Q5K => {
                (block.d, block.dmin) = (half(0), half(2));
                let s = &bytes[4..16];
                for i in 0..4 {
                    block.scales[i] = (s[i] & 63) as i8;
                    block.minima[i] = s[i + 4] & 63;
                    block.scales[i + 4] = (s[i + 8] & 15 | (s[i] >> 2) & 48) as i8;
                    block.minima[i + 4] = s[i + 8] >> 4 | (s[i + 4] >> 2) & 48;
                }
                let (high, low) = if self == Self::Q5K { bytes[16..].split_at(32) } else { (&[][..], &bytes[16..]) };
                for (i, q) in block.q.iter_mut().enumerate() {
                    let (group, at) = (i / 32, i % 32);
                    let nibble = low[group / 2 * 32 + at] >> (group % 2 * 4) & 15;
                    let fifth = if high.is_empty() { 0 } else { high[at] >> group & 1 };
                    *q = nibble | fifth << 4;
                }
            }
            Self::Q6K => {
                block.d = half(208);
                for (scale, byte) in block.scales.iter_mut().zip(&bytes[192..208]) {
                    *scale = *byte as i8;
                }
                let (low, high) = bytes[..192].split_at(128);
                for (i, q) in block.q.iter_mut().enumerate() {
                    let (half, quarter, at) = (i / 128, i % 128 / 32, i % 32);
                    let nibble = low[half * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4) & 15;
                    let two = high[half * 32 + at] >> (quarter * 2) & 3;
                    *q = nibble | two << 4;
                }
            }
        }
        (block.d.is_finite() && block.dmin.is_finite()).then_some(block)
    }

    /// The weights of a block, as many as `to` has room for.
    pub(crate) fn widen(self, block: &Block, to: &mut [f32]) {
        let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
        for (i, (to, &q)) in to.iter_mut().zip(&block.q).enumerate() {
            *to = match self {
                Self::Q4_0 => d * (f32::from(q) - 8.0),
                Self::Q4K | Self::Q5K => {
                    d * f32::from(block.scales[i / 32]) * f32::from(q) - dmin * f32::from(block.minima[i / 32])
                }
                Self::Q6K => d * f32::from(block.scales[i / 16]) * (f32::from(q) - 32.0),
            };
        }
    }
}
