//! The dtypes weights are held in, and Q8_0: blocks of 32 along the input, one scale for each.

mod four_bits;
mod packed;

use half::f16;

pub(crate) use four_bits::quantise_four_bits;
pub(crate) use packed::{Block, Packing};

/// Values that share a scale.
pub(crate) const BLOCK: usize = 32;

/// What weights are held in that are not quantised already; norms are always `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// As stored, widened; quantised ones too.
    F32,
    /// Blocks of 32 signed bytes with a binary16 scale, as GGUF's Q8_0 (same scales, same bytes).
    #[default]
    Q8_0,
    /// Four bits and a part, as GGUF's Q4_K; embedding and head are Q8_0.
    Q4K,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Q8_0, Self::Q4K];

    /// Its name in fingerprints and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Dtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let lower = name.to_ascii_lowercase();
        let found = Self::ALL.into_iter().find(|dtype| dtype.name() == lower);
        found.ok_or_else(|| format!("{name:?} is not a type of weights; choose q8_0, q4_k or f32"))
    }
}

/// Quantises one block of weights. `None` if a weight is not finite or the scale does not fit binary16.
///
/// As GGUF does it: the bytes are rounded (ties away from zero) with the exact scale, and the scale is rounded after.
pub(crate) fn quantise_block(weights: &[f32], bytes: &mut [i8; BLOCK]) -> Option<f16> {
    let mut largest = 0.0_f32;
    let mut finite = true;
    for w in weights {
        largest = largest.max(w.abs());
        finite &= w.is_finite();
    }
    let scale = largest / 127.0;
    let rounded = f16::from_f32(scale);
    if !finite || !rounded.is_finite() {
        return None;
    }
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    bytes.fill(0);
    if inverse.is_finite() {
        for (byte, w) in bytes.iter_mut().zip(weights) {
            *byte = round_away(w * inverse) as i8;
        }
    }
    Some(rounded)
}

/// `f32::round` for magnitudes up to 127, without the library call.
#[inline(always)]
fn round_away(x: f32) -> i32 {
    let whole = x as i32;
    let rest = x - whole as f32;
    whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)
}
