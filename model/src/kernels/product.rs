//! Matrix products, vectorised across outputs: lane = output, one chain of fused adds along the input.
//!
//! A tile is sixteen outputs. Each weight loaded serves up to [`Lanes::ROWS`] rows, whose chains never meet, so a row's
//! bits do not depend on how many rows it is computed with.

use super::lanes::Lanes;
use super::rowwise::{capped, gated};
use crate::config::Activation;
use crate::matrix::{Matrix, Store, TILE};
use crate::quant::BLOCK;

/// Rows of activations, as the matrix's format wants them.
#[derive(Clone, Copy)]
pub(crate) struct Activations {
    /// `f32` rows, for `f32` matrices.
    pub floats: *const f32,
    /// Values from one `f32` row to the next.
    pub stride: usize,
    /// Quantised rows of `blocks * 32` bytes, for all others, with their scales and sums.
    pub bytes: *const i8,
    pub scales: *const f32,
    pub offsets: *const i32,
    pub heads: *const i32,
}

/// What happens to a tile's result.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Then {
    /// Stored, up to the matrix's last output.
    Store,
    /// Added to what is there; the row must have room for whole tiles.
    Add,
    /// Even tiles are gates, odd tiles what they gate; tile pair `i` gives outputs `16 i ..`.
    Gate(Activation),
    /// What is there is a gate for the result.
    Through(Activation),
    /// Stored as `cap * tanh(result / cap)`.
    Cap(f32),
}

/// A product of some rows with some tiles of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub matrix: &'a Matrix,
    pub x: Activations,
    pub rows: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    /// First tile and the one after the last; both even for [`Then::Gate`].
    pub tiles: (usize, usize),
    pub then: Then,
}

/// Runs a product with a matrix that is not packed.
#[inline(always)]
pub(crate) unsafe fn product<L: Lanes>(p: &Product<'_>) {
    let (mut tile, end) = p.tiles;
    while tile < end {
        if end - tile >= 2 {
            all_rows::<L, 2>(p, tile);
            tile += 2;
        } else {
            all_rows::<L, 1>(p, tile);
            tile += 1;
        }
    }
}

#[inline(always)]
unsafe fn all_rows<L: Lanes, const T: usize>(p: &Product<'_>, tile: usize) {
    let mut row = 0;
    while row < p.rows {
        let m = (p.rows - row).min(L::ROWS);
        match m {
            1 => some_rows::<L, T, 1>(p, tile, row),
            2 => some_rows::<L, T, 2>(p, tile, row),
            3 => some_rows::<L, T, 3>(p, tile, row),
            4 => some_rows::<L, T, 4>(p, tile, row),
            5 if L::ROWS > 4 => some_rows::<L, T, 5>(p, tile, row),
            6 if L::ROWS > 4 => some_rows::<L, T, 6>(p, tile, row),
            7 if L::ROWS > 4 => some_rows::<L, T, 7>(p, tile, row),
            8 if L::ROWS > 4 => some_rows::<L, T, 8>(p, tile, row),
            _ => unreachable!("no path holds more than eight rows"),
        }
        row += m;
    }
}

#[inline(always)]
unsafe fn some_rows<L: Lanes, const T: usize, const M: usize>(p: &Product<'_>, tile: usize, row: usize) {
    let sums = match &p.matrix.store {
        Store::F32(weights) => f32_tiles::<L, T, M>(p, weights.as_ptr(), tile, row),
        Store::Packed(_) => unreachable!("packed matrices have kernels of their own"),
        Store::Q8 { bytes, scales } => q8_tiles::<L, T, M>(p, (bytes.as_ptr(), scales.as_ptr()), tile, row),
    };
    finish::<L, T, M>(p, &sums, tile, row);
}

/// `acc = fma(w, x, acc)` in the order of the inputs.
#[inline(always)]
unsafe fn f32_tiles<L: Lanes, const T: usize, const M: usize>(
    p: &Product<'_>,
    weights: *const f32,
    tile: usize,
    row: usize,
) -> [[L::F; M]; T] {
    let inputs = p.matrix.inputs;
    let mut sums = [[L::splat(0.0); M]; T];
    let x = p.x.floats.add(row * p.x.stride);
    let weights = weights.add(tile * inputs * TILE);
    for k in 0..inputs {
        for (t, sums) in sums.iter_mut().enumerate() {
            let w = L::load(weights.add((t * inputs + k) * TILE));
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = L::fma(w, L::splat(*x.add(r * p.x.stride + k)), *sum);
            }
        }
    }
    sums
}

/// Each block of 32 sums exactly in `i32`, is scaled by one `f32` product and added by one fused add.
#[inline(always)]
unsafe fn q8_tiles<L: Lanes, const T: usize, const M: usize>(
    p: &Product<'_>,
    (bytes, scales): (*const u8, *const u16),
    tile: usize,
    row: usize,
) -> [[L::F; M]; T] {
    /// How many blocks ahead of its use one is asked for, far enough that memory works while a block is multiplied with
    /// eight rows.
    const AHEAD: usize = 64;
    let blocks = p.matrix.blocks;
    let mut sums = [[L::splat(0.0); M]; T];
    let x = p.x.bytes.add(row * blocks * BLOCK);
    let x_scales = p.x.scales.add(row * blocks);
    let offsets = p.x.offsets.add(row * blocks);
    for block in 0..blocks {
        // Past the end of these tiles come the next ones, where this pass over the matrix goes on.
        let ahead = if block + AHEAD < blocks { AHEAD } else { AHEAD + (T - 1) * blocks } * BLOCK * TILE;
        let mut dots = [[L::int_splat(0); M]; T];
        for r in 0..M {
            let offset = L::int_splat(*offsets.add(r * blocks + block));
            for dots in &mut dots {
                dots[r] = offset;
            }
        }
        for group in 0..BLOCK / 4 {
            let mut weights = [L::weights(bytes); T];
            for (t, weights) in weights.iter_mut().enumerate() {
                let at = bytes.add((((tile + t) * blocks + block) * BLOCK + group * 4) * TILE);
                *weights = L::weights(at);
                L::prefetch(at.wrapping_add(ahead));
            }
            for r in 0..M {
                let x = L::bytes(x.add((r * blocks + block) * BLOCK + group * 4));
                for (t, dots) in dots.iter_mut().enumerate() {
                    dots[r] = L::dot4(dots[r], weights[t], x);
                }
            }
        }
        for (t, sums) in sums.iter_mut().enumerate() {
            let w_scale = L::load_half(scales.add(((tile + t) * blocks + block) * TILE));
            for (r, sum) in sums.iter_mut().enumerate() {
                let scale = L::mul(w_scale, L::splat(*x_scales.add(r * blocks + block)));
                *sum = L::fma(L::int_to_float(dots[t][r]), scale, *sum);
            }
        }
    }
    sums
}

/// Does with the sums of `T` tiles what is to be done.
#[inline(always)]
pub(super) unsafe fn finish<L: Lanes, const T: usize, const M: usize>(
    p: &Product<'_>,
    sums: &[[L::F; M]; T],
    tile: usize,
    row: usize,
) {
    // Adding zero makes a negative zero positive: else zeros appended to the inputs could show in the sign.
    let zero = L::splat(0.0);
    if let Then::Gate(activation) = p.then {
        for (r, &gate) in sums[0].iter().enumerate() {
            let out = p.out.add((row + r) * p.out_stride + tile / 2 * TILE);
            let up = L::add(sums[T - 1][r], zero);
            L::store(out, gated::<L>(activation, L::add(gate, zero), up));
        }
        return;
    }
    for (t, sums) in sums.iter().enumerate() {
        let first = (tile + t) * TILE;
        for (r, &sum) in sums.iter().enumerate() {
            let out = p.out.add((row + r) * p.out_stride + first);
            let mut sum = L::add(sum, zero);
            if let Some(bias) = &p.matrix.bias {
                sum = L::add(sum, L::load(bias.as_ptr().add(first)));
            }
            let n = (p.matrix.outputs - first).min(TILE);
            match p.then {
                Then::Add => L::store(out, L::add(L::load(out), sum)),
                Then::Through(activation) => {
                    let gate = if n == TILE { L::load(out) } else { L::load_first(out, n, 0.0) };
                    L::store_first(out, n, gated::<L>(activation, gate, sum));
                }
                Then::Cap(cap) => L::store_first(out, n, capped::<L>(sum, cap)),
                _ if n == TILE => L::store(out, sum),
                _ => L::store_first(out, n, sum),
            }
        }
    }
}
