//! Weight matrices as the product kernels read them.
//!
//! Sixteen outputs make a tile. `f32`: `[tile][input][16 outputs]`. Q8_0: `[tile][block][8 groups][16 outputs][4 inputs]`
//! unsigned bytes (128 added), and `[tile][block][16 outputs]` binary16 scales. Packed types: see [`crate::packed`].
//! What pads a tile or a block is zero.

use std::path::Path;

use half::f16;

use crate::arena::{Arena, Slab, slab_bytes};
use crate::checkpoint::{Stored, Tensor};
use crate::error::LoadError;
use crate::packed::{Packed, tile_bytes};
use crate::quant::{BLOCK, Block, Dtype, Packing, quantise_block, quantise_four_bits};

/// Outputs in a tile.
pub(crate) const TILE: usize = 16;

/// What a matrix is held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    Q8_0,
    Packed(Packing),
}

impl Format {
    /// What a tensor is held in: quantised ones as they are, others in `dtype`; all widened for `f32`.
    pub(crate) fn of(stored: Stored, dtype: Dtype) -> Self {
        match (dtype, stored) {
            (Dtype::F32, _) => Self::F32,
            (_, Stored::Packed(packing)) => Self::Packed(packing),
            (_, Stored::Q8_0) | (Dtype::Q8_0, _) => Self::Q8_0,
            (Dtype::Q4K, _) => Self::Packed(Packing::Q4K),
        }
    }
}

/// The weights themselves.
pub(crate) enum Store {
    /// In the order of the module's header.
    F32(Slab<f32>),
    /// In the order of the module's header.
    Q8 { bytes: Slab<u8>, scales: Slab<u16> },
    /// In the order of [`crate::packed`].
    Packed(Packed),
}

/// A matrix of `outputs x inputs`.
pub(crate) struct Matrix {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    /// Blocks of 32 inputs.
    pub(crate) blocks: usize,
    pub(crate) store: Store,
    /// Added to each output; whole tiles.
    pub(crate) bias: Option<Slab<f32>>,
}

/// Where an output's weights come from: a row of a tensor, or nowhere, and then they are zero.
pub(crate) type RowSource<'s, 'a> = dyn Fn(usize) -> Option<(&'s Tensor<'a>, usize)> + 's;

impl Matrix {
    /// Tiles of `outputs`.
    pub(crate) fn tiles(&self) -> usize {
        self.outputs.div_ceil(TILE)
    }

    /// Whether it multiplies with quantised activations.
    pub(crate) fn quantised(&self) -> bool {
        !matches!(self.store, Store::F32(_))
    }

    /// Bytes a matrix takes in an arena.
    pub(crate) fn bytes(outputs: usize, inputs: usize, format: Format) -> usize {
        let (tiles, blocks) = (outputs.div_ceil(TILE), inputs.div_ceil(BLOCK));
        match format {
            Format::F32 => slab_bytes::<f32>(tiles * TILE * inputs),
            Format::Q8_0 => slab_bytes::<u8>(tiles * TILE * blocks * BLOCK) + slab_bytes::<u16>(tiles * TILE * blocks),
            Format::Packed(packing) => slab_bytes::<u8>(tiles * tile_bytes(packing, inputs)),
        }
    }

    /// Packs `outputs` rows of `inputs` weights; `label` names them in errors.
    pub(crate) fn pack(
        arena: &mut Arena,
        label: (&Path, &str),
        (outputs, inputs): (usize, usize),
        format: Format,
        rows: &RowSource<'_, '_>,
    ) -> Result<Self, LoadError> {
        let (tiles, blocks) = (outputs.div_ceil(TILE), inputs.div_ceil(BLOCK));
        let mut store = match format {
            Format::F32 => Store::F32(arena.take(tiles * TILE * inputs)),
            Format::Q8_0 => {
                let mut bytes: Slab<u8> = arena.take(tiles * TILE * blocks * BLOCK);
                bytes.fill(128);
                Store::Q8 { bytes, scales: arena.take(tiles * TILE * blocks) }
            }
            Format::Packed(packing) => {
                Store::Packed(Packed { packing, bytes: arena.take(tiles * tile_bytes(packing, inputs)) })
            }
        };
        // A scale beyond binary16 is found here, what is not finite where it is read.
        let too_large = || LoadError::NotFinite { path: label.0.into(), tensor: label.1.into() };
        let mut row = vec![0.0; blocks * BLOCK];
        for output in 0..outputs {
            let Some((tensor, index)) = rows(output) else { continue };
            let (tile, lane) = (output / TILE, output % TILE);
            match &mut store {
                Store::F32(weights) => {
                    tensor.row(index, &mut row[..inputs])?;
                    let tile = &mut weights[tile * TILE * inputs..][..TILE * inputs];
                    for (at, &w) in tile.chunks_exact_mut(TILE).zip(&row) {
                        at[lane] = w;
                    }
                }
                Store::Q8 { bytes, scales } => {
                    let mut put = |block: usize, scale: f16, weights: &[i8]| {
                        let at = tile * blocks + block;
                        scales[at * TILE + lane] = scale.to_bits();
                        let bytes = &mut bytes[at * BLOCK * TILE..][..BLOCK * TILE];
                        for (group, four) in weights.chunks_exact(4).enumerate() {
                            for (to, &q) in bytes[(group * TILE + lane) * 4..].iter_mut().zip(four) {
                                *to = (q as u8) ^ 0x80;
                            }
                        }
                    };
                    if tensor.stored == Stored::Q8_0 {
                        for block in 0..blocks {
                            let (scale, weights) = tensor.eight_bits(index, block)?;
                            put(block, scale, &weights);
                        }
                        continue;
                    }
                    tensor.row(index, &mut row[..inputs])?;
                    let mut quantised = [0; BLOCK];
                    for (block, weights) in row.chunks_exact(BLOCK).enumerate() {
                        let scale = quantise_block(weights, &mut quantised).ok_or_else(too_large)?;
                        put(block, scale, &quantised);
                    }
                }
                Store::Packed(packed) => {
                    let whole = packed.packing.weights();
                    if tensor.stored == Stored::Packed(packed.packing) {
                        for at in 0..inputs / whole {
                            packed.put((output, inputs), at, &tensor.packed(index, at)?);
                        }
                        continue;
                    }
                    tensor.row(index, &mut row[..inputs])?;
                    for (at, weights) in row[..inputs].chunks(whole).enumerate() {
                        let block: Block = quantise_four_bits(weights).ok_or_else(too_large)?;
                        packed.put((output, inputs), at, &block);
                    }
                }
            }
        }
        Ok(Self { outputs, inputs, blocks, store, bias: None })
    }

    /// The weights of one output, as the products see them (so an embedding is what the tied head multiplies with).
    pub(crate) fn row(&self, output: usize, to: &mut [f32]) {
        let (tile, lane) = (output / TILE, output % TILE);
        match &self.store {
            Store::F32(weights) => {
                let tile = &weights[tile * TILE * self.inputs..][..TILE * self.inputs];
                for (to, from) in to.iter_mut().zip(tile.chunks_exact(TILE)) {
                    *to = from[lane];
                }
            }
            Store::Q8 { bytes, scales } => {
                for (block, to) in to[..self.inputs].chunks_mut(BLOCK).enumerate() {
                    let at = tile * self.blocks + block;
                    let scale = f16::from_bits(scales[at * TILE + lane]).to_f32();
                    let bytes = &bytes[at * BLOCK * TILE..][..BLOCK * TILE];
                    for (i, to) in to.iter_mut().enumerate() {
                        let byte = bytes[(i / 4 * TILE + lane) * 4 + i % 4] ^ 0x80;
                        *to = f32::from(byte as i8) * scale;
                    }
                }
            }
            Store::Packed(packed) => {
                for (at, to) in to[..self.inputs].chunks_mut(packed.packing.weights()).enumerate() {
                    packed.packing.widen(&packed.get((output, self.inputs), at), to);
                }
            }
        }
    }
}
