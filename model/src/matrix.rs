//! Weight matrices as the product kernels read them.
//!
//! Sixteen outputs make a tile. `f32`: `[tile][input][16 outputs]`. Q8_0: `[tile][block][8 groups][16 outputs][4 inputs]`
//! unsigned bytes (128 added), and `[tile][block][16 outputs]` binary16 scales. What pads a tile or a block is zero.

use std::path::Path;

use half::f16;

use crate::arena::{Arena, Slab, slab_bytes};
use crate::error::LoadError;
use crate::quant::{BLOCK, Dtype, quantise_block};

/// Outputs in a tile.
pub(crate) const TILE: usize = 16;

/// The weights themselves.
pub(crate) enum Store {
    /// In the order of the module's header.
    F32(Slab<f32>),
    /// In the order of the module's header.
    Q8 { bytes: Slab<u8>, scales: Slab<u16> },
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

/// Fills one row of inputs; the row comes zeroed. Rows that no one fills stay zero.
pub(crate) type RowSource<'a> = dyn FnMut(usize, &mut [f32]) -> Result<(), LoadError> + 'a;

impl Matrix {
    /// Tiles of `outputs`.
    pub(crate) fn tiles(&self) -> usize {
        self.outputs.div_ceil(TILE)
    }

    /// Bytes a matrix takes in an arena.
    pub(crate) fn bytes(outputs: usize, inputs: usize, dtype: Dtype) -> usize {
        let (tiles, blocks) = (outputs.div_ceil(TILE), inputs.div_ceil(BLOCK));
        match dtype {
            Dtype::F32 => slab_bytes::<f32>(tiles * TILE * inputs),
            Dtype::Q8_0 => slab_bytes::<u8>(tiles * TILE * blocks * BLOCK) + slab_bytes::<u16>(tiles * TILE * blocks),
        }
    }

    /// Packs `outputs` rows of `inputs` weights; `label` names them in errors.
    pub(crate) fn pack(
        arena: &mut Arena,
        label: (&Path, &str),
        (outputs, inputs): (usize, usize),
        dtype: Dtype,
        rows: &mut RowSource<'_>,
    ) -> Result<Self, LoadError> {
        let (tiles, blocks) = (outputs.div_ceil(TILE), inputs.div_ceil(BLOCK));
        let mut store = match dtype {
            Dtype::F32 => Store::F32(arena.take(tiles * TILE * inputs)),
            Dtype::Q8_0 => Store::Q8 {
                bytes: arena.take(tiles * TILE * blocks * BLOCK),
                scales: arena.take(tiles * TILE * blocks),
            },
        };
        if let Store::Q8 { bytes, .. } = &mut store {
            bytes.fill(128);
        }
        let mut row = vec![0.0; blocks * BLOCK];
        for output in 0..outputs {
            row.fill(0.0);
            rows(output, &mut row[..inputs])?;
            let (tile, lane) = (output / TILE, output % TILE);
            match &mut store {
                Store::F32(weights) => {
                    let tile = &mut weights[tile * TILE * inputs..][..TILE * inputs];
                    for (at, &w) in tile.chunks_exact_mut(TILE).zip(&row) {
                        at[lane] = w;
                    }
                }
                Store::Q8 { bytes, scales } => {
                    let mut quantised = [0; BLOCK];
                    for (block, weights) in row.chunks_exact(BLOCK).enumerate() {
                        let at = tile * blocks + block;
                        let scale = quantise_block(weights, &mut quantised);
                        // Sources refuse what is not finite, so only a scale beyond binary16 is left.
                        let scale = scale
                            .ok_or_else(|| LoadError::NotFinite { path: label.0.into(), tensor: label.1.into() })?;
                        scales[at * TILE + lane] = scale.to_bits();
                        let bytes = &mut bytes[at * BLOCK * TILE..][..BLOCK * TILE];
                        for (group, four) in quantised.chunks_exact(4).enumerate() {
                            for (to, &q) in bytes[(group * TILE + lane) * 4..].iter_mut().zip(four) {
                                *to = (q as u8) ^ 0x80;
                            }
                        }
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
        }
    }
}
