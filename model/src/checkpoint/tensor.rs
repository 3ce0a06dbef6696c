//! One tensor: its rows, widened or as they are.

use std::path::Path;

use cascadia_gguf::TensorType;
use half::{bf16, f16};

use crate::error::LoadError;
use crate::quant::{BLOCK, Block, Packing};

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    F16,
    BF16,
    Q8_0,
    Packed(Packing),
}

/// Bytes of a Q8_0 block: a binary16 scale and 32 weights.
const EIGHT_BITS: usize = 2 + BLOCK;

impl Stored {
    pub(super) fn of_safetensors(dtype: safetensors::Dtype) -> Result<Self, String> {
        match dtype {
            safetensors::Dtype::F32 => Ok(Self::F32),
            safetensors::Dtype::F16 => Ok(Self::F16),
            safetensors::Dtype::BF16 => Ok(Self::BF16),
            other => Err(format!("{other:?}")),
        }
    }

    pub(super) fn of_gguf(kind: TensorType) -> Result<Self, String> {
        match kind {
            TensorType::F32 => Ok(Self::F32),
            TensorType::F16 => Ok(Self::F16),
            TensorType::BF16 => Ok(Self::BF16),
            TensorType::Q8_0 => Ok(Self::Q8_0),
            TensorType::Q4_0 => Ok(Self::Packed(Packing::Q4_0)),
            TensorType::Q4K => Ok(Self::Packed(Packing::Q4K)),
            TensorType::Q5K => Ok(Self::Packed(Packing::Q5K)),
            TensorType::Q6K => Ok(Self::Packed(Packing::Q6K)),
            TensorType::Other(_) => Err(kind.to_string()),
        }
    }

    /// Bytes of a row of `width` values.
    fn row(self, width: usize) -> usize {
        match self {
            Self::F32 => 4 * width,
            Self::F16 | Self::BF16 => 2 * width,
            Self::Q8_0 => width / BLOCK * EIGHT_BITS,
            Self::Packed(packing) => width / packing.weights() * packing.bytes(),
        }
    }
}

/// A tensor of one or two dimensions.
#[derive(Clone)]
pub(crate) struct Tensor<'a> {
    pub(crate) path: &'a Path,
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) stored: Stored,
    pub(crate) bytes: &'a [u8],
}

impl Tensor<'_> {
    fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    fn not_finite(&self) -> LoadError {
        LoadError::NotFinite { path: self.path.into(), tensor: self.name.clone() }
    }

    fn raw(&self, index: usize) -> &[u8] {
        let size = self.stored.row(self.width());
        &self.bytes[index * size..(index + 1) * size]
    }

    /// Block `at` of row `index` of a Q8_0 tensor.
    pub(crate) fn eight_bits(&self, index: usize, at: usize) -> Result<(f16, [i8; BLOCK]), LoadError> {
        let bytes = &self.raw(index)[at * EIGHT_BITS..(at + 1) * EIGHT_BITS];
        let scale = f16::from_le_bytes([bytes[0], bytes[1]]);
        if !scale.is_finite() {
            return Err(self.not_finite());
        }
        Ok((scale, std::array::from_fn(|i| bytes[2 + i] as i8)))
    }

    /// Block `at` of row `index` of a packed tensor.
    pub(crate) fn packed(&self, index: usize, at: usize) -> Result<Block, LoadError> {
        let Stored::Packed(packing) = self.stored else { return Err(self.not_finite()) };
        let size = packing.bytes();
        packing.read(&self.raw(index)[at * size..(at + 1) * size]).ok_or_else(|| self.not_finite())
    }

    /// Widens row `index` (of a vector: all of it) into the start of `to`; refuses what is not finite.
    pub(crate) fn row(&self, index: usize, to: &mut [f32]) -> Result<(), LoadError> {
        let to = &mut to[..self.width()];
        let halves = |to: &mut [f32], widen: fn(u16) -> f32| {
            for (to, b) in to.iter_mut().zip(self.raw(index).chunks_exact(2)) {
                *to = widen(u16::from_le_bytes([b[0], b[1]]));
            }
        };
        match self.stored {
            Stored::F32 => {
                for (to, b) in to.iter_mut().zip(self.raw(index).chunks_exact(4)) {
                    *to = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Stored::F16 => halves(to, |bits| f16::from_bits(bits).to_f32()),
            Stored::BF16 => halves(to, |bits| bf16::from_bits(bits).to_f32()),
            Stored::Q8_0 => {
                for (at, to) in to.chunks_mut(BLOCK).enumerate() {
                    let (scale, weights) = self.eight_bits(index, at)?;
                    for (to, w) in to.iter_mut().zip(weights) {
                        *to = f32::from(w) * scale.to_f32();
                    }
                }
            }
            Stored::Packed(packing) => {
                for (at, to) in to.chunks_mut(packing.weights()).enumerate() {
                    packing.widen(&self.packed(index, at)?, to);
                }
            }
        }
        let finite = to.iter().fold(true, |all, x| all & x.is_finite());
        if finite { Ok(()) } else { Err(self.not_finite()) }
    }
}
