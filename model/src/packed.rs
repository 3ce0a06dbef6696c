//! Matrices of GGUF's packed types, sixteen outputs abreast.
//!
//! A tile is a row of records, one for each block of its type: first the outer scales of the sixteen outputs (binary16;
//! then the outer minima where there are some), then for each 32 inputs the inner scales and minima, the upper bits, and
//! 256 bytes of nibbles. All in the order in which the product reads it:
//!
//! * inputs go in groups of four; nibble byte `[group 0..4][output][input]` holds groups `g` and, above, `g + 4`;
//! * a fifth bit: byte `[output][input]` has bit `g` for group `g`;
//! * a fifth and sixth: two such planes, for groups 0 to 3 and 4 to 7, two bits a group.

use half::f16;

use crate::arena::Slab;
use crate::matrix::TILE;
use crate::quant::{BLOCK, Block, Packing};

/// Bytes of nibbles for 32 inputs.
pub(crate) const NIBBLES: usize = BLOCK / 2 * TILE;
/// Bytes of one plane of upper bits.
pub(crate) const PLANE: usize = 4 * TILE;

/// The weights of a matrix.
pub(crate) struct Packed {
    pub(crate) packing: Packing,
    pub(crate) bytes: Slab<u8>,
}

/// Where things are in a record.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    /// Bytes of the outer scales and minima.
    pub(crate) head: usize,
    /// Blocks of 32 inputs.
    pub(crate) blocks: usize,
    /// Bytes of inner scales and minima of a block.
    pub(crate) inner: usize,
    /// Planes of upper bits.
    pub(crate) planes: usize,
}

impl Layout {
    pub(crate) const fn of(packing: Packing) -> Self {
        match packing {
            Packing::Q4_0 => Self { head: 2 * TILE, blocks: 1, inner: 0, planes: 0 },
            Packing::Q4K => Self { head: 4 * TILE, blocks: 8, inner: 2 * TILE, planes: 0 },
            Packing::Q5K => Self { head: 4 * TILE, blocks: 8, inner: 2 * TILE, planes: 1 },
            // The head is filled up to a cache line.
            Packing::Q6K => Self { head: 4 * TILE, blocks: 8, inner: 2 * TILE, planes: 2 },
        }
    }

    /// Bytes of a block of 32 inputs.
    pub(crate) const fn block(self) -> usize {
        self.inner + self.planes * PLANE + NIBBLES
    }

    /// Bytes of a record.
    pub(crate) const fn record(self) -> usize {
        self.head + self.blocks * self.block()
    }
}

/// Bytes of a tile.
pub(crate) fn tile_bytes(packing: Packing, inputs: usize) -> usize {
    inputs.div_ceil(packing.weights()) * Layout::of(packing).record()
}

impl Packed {
    /// Where a record begins.
    fn record(&self, (output, inputs): (usize, usize), at: usize) -> usize {
        output / TILE * tile_bytes(self.packing, inputs) + at * Layout::of(self.packing).record()
    }

    /// Writes block `at` of an output.
    pub(crate) fn put(&mut self, of: (usize, usize), at: usize, block: &Block) {
        let (layout, lane, start) = (Layout::of(self.packing), of.0 % TILE, self.record(of, at));
        let record = &mut self.bytes[start..start + layout.record()];
        record[2 * lane..2 * lane + 2].copy_from_slice(&block.d.to_le_bytes());
        if self.packing != Packing::Q4_0 {
            record[2 * (TILE + lane)..2 * (TILE + lane) + 2].copy_from_slice(&block.dmin.to_le_bytes());
        }
        for b in 0..layout.blocks {
            let bytes = &mut record[layout.head + b * layout.block()..][..layout.block()];
            let (inner, rest) = bytes.split_at_mut(layout.inner);
            let (planes, nibbles) = rest.split_at_mut(layout.planes * PLANE);
            match self.packing {
                Packing::Q4_0 => {}
                Packing::Q4K | Packing::Q5K => {
                    (inner[lane], inner[TILE + lane]) = (block.scales[b] as u8, block.minima[b]);
                }
                Packing::Q6K => {
                    (inner[lane], inner[TILE + lane]) = (block.scales[2 * b] as u8, block.scales[2 * b + 1] as u8);
                }
            }
            for (i, &q) in block.q[b * BLOCK..][..BLOCK].iter().enumerate() {
                let (group, place) = (i / 4, 4 * lane + i % 4);
                nibbles[group % 4 * PLANE + place] |= (q & 15) << (group / 4 * 4);
                match layout.planes {
                    1 => planes[place] |= (q >> 4) << group,
                    2 => planes[group / 4 * PLANE + place] |= (q >> 4) << (group % 4 * 2),
                    _ => {}
                }
            }
        }
    }

    /// Reads block `at` of an output.
    pub(crate) fn get(&self, of: (usize, usize), at: usize) -> Block {
        let (layout, lane, start) = (Layout::of(self.packing), of.0 % TILE, self.record(of, at));
        let record = &self.bytes[start..start + layout.record()];
        let half = |at: usize| f16::from_le_bytes([record[2 * at], record[2 * at + 1]]);
        let mut block = Block { d: half(lane), ..Block::ZERO };
        if self.packing != Packing::Q4_0 {
            block.dmin = half(TILE + lane);
        }
        for b in 0..layout.blocks {
            let bytes = &record[layout.head + b * layout.block()..][..layout.block()];
            let (inner, rest) = bytes.split_at(layout.inner);
            let (planes, nibbles) = rest.split_at(layout.planes * PLANE);
            match self.packing {
                Packing::Q4_0 => {}
                Packing::Q4K | Packing::Q5K => {
                    (block.scales[b], block.minima[b]) = (inner[lane] as i8, inner[TILE + lane]);
                }
                Packing::Q6K => {
                    (block.scales[2 * b], block.scales[2 * b + 1]) = (inner[lane] as i8, inner[TILE + lane] as i8);
                }
            }
            for (i, q) in block.q[b * BLOCK..][..BLOCK].iter_mut().enumerate() {
                let (group, place) = (i / 4, 4 * lane + i % 4);
                let nibble = nibbles[group % 4 * PLANE + place] >> (group / 4 * 4) & 15;
                let upper = match layout.planes {
                    1 => planes[place] >> group & 1,
                    2 => planes[group / 4 * PLANE + place] >> (group % 4 * 2) & 3,
                    _ => 0,
                };
                *q = nibble | upper << 4;
            }
        }
        block
    }
}
