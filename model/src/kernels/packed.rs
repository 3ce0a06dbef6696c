//! Products with packed matrices: each block of 32 inputs sums exactly in `i32`, in lanes of outputs, as for Q8_0.
//!
//! * Q4_0: `(sum q x - 8 sum x)`, scaled by one `f32` product, added by one fused add.
//! * Q4_K, Q5_K: `sum q x` scaled by `(d s) x_scale` and added fused, then `(dmin m) (x_scale sum x)` taken off fused.
//! * Q6_K: `s0 (sum of 16) + s1 (sum of 16)`, exact in `i32`, scaled by `d x_scale` and added fused.

use super::lanes::Lanes;
use super::product::{Product, Then, finish};
use crate::matrix::Store;
use crate::packed::{Layout, NIBBLES, PLANE, Packed};
use crate::quant::{BLOCK, Packing};

/// Groups of four inputs in a block.
const GROUPS: usize = BLOCK / 4;

/// What the types do differently.
trait Kind {
    const PACKING: Packing;
    const LAYOUT: Layout = Layout::of(Self::PACKING);
}

struct Four;
struct FourK;
struct FiveK;
struct SixK;

impl Kind for Four {
    const PACKING: Packing = Packing::Q4_0;
}
impl Kind for FourK {
    const PACKING: Packing = Packing::Q4K;
}
impl Kind for FiveK {
    const PACKING: Packing = Packing::Q5K;
}
impl Kind for SixK {
    const PACKING: Packing = Packing::Q6K;
}

/// A product with a Q4_0 matrix.
#[inline(always)]
pub(crate) unsafe fn product_4<L: Lanes>(p: &Product<'_>) {
    all_tiles::<L, Four>(p);
}

/// A product with a Q4_K matrix.
#[inline(always)]
pub(crate) unsafe fn product_4k<L: Lanes>(p: &Product<'_>) {
    all_tiles::<L, FourK>(p);
}

/// A product with a Q5_K matrix.
#[inline(always)]
pub(crate) unsafe fn product_5k<L: Lanes>(p: &Product<'_>) {
    all_tiles::<L, FiveK>(p);
}

/// A product with a Q6_K matrix.
#[inline(always)]
pub(crate) unsafe fn product_6k<L: Lanes>(p: &Product<'_>) {
    all_tiles::<L, SixK>(p);
}

#[inline(always)]
unsafe fn all_tiles<L: Lanes, K: Kind>(p: &Product<'_>) {
    let Store::Packed(packed) = &p.matrix.store else { return };
    let (mut tile, end) = p.tiles;
    let together = if matches!(p.then, Then::Gate(_)) { 2 } else { 1 };
    while tile < end {
        let mut row = 0;
        while row < p.rows {
            row += match p.rows - row {
                1 => some_rows::<L, K, 1>(p, packed, (tile, together), row),
                2 | 3 => some_rows::<L, K, 2>(p, packed, (tile, together), row),
                _ => some_rows::<L, K, 4>(p, packed, (tile, together), row),
            };
        }
        tile += together;
    }
}

/// `M` rows of one tile, or of two that make a gate; returns `M`.
#[inline(always)]
unsafe fn some_rows<L: Lanes, K: Kind, const M: usize>(
    p: &Product<'_>,
    packed: &Packed,
    (tile, together): (usize, usize),
    row: usize,
) -> usize {
    let mut sums = [[L::splat(0.0); M]; 2];
    for (t, sums) in sums.iter_mut().enumerate().take(together) {
        *sums = tile_of::<L, K, M>(p, packed, tile + t, row);
    }
    if together == 2 {
        finish::<L, 2, M>(p, &sums, tile, row);
    } else {
        finish::<L, 1, M>(p, &[sums[0]], tile, row);
    }
    M
}

#[inline(always)]
unsafe fn tile_of<L: Lanes, K: Kind, const M: usize>(
    p: &Product<'_>,
    packed: &Packed,
    tile: usize,
    row: usize,
) -> [L::F; M] {
    let blocks = p.matrix.blocks;
    let records = blocks.div_ceil(K::LAYOUT.blocks);
    let mut record = packed.bytes.as_ptr().add(tile * records * K::LAYOUT.record());
    let mut sums = [L::splat(0.0); M];
    for first in (0..blocks).step_by(K::LAYOUT.blocks) {
        let d = L::load_half(record.cast());
        let dmin = if K::LAYOUT.inner > 0 { L::load_half(record.add(2 * 16).cast()) } else { d };
        for b in 0..K::LAYOUT.blocks.min(blocks - first) {
            let bytes = record.add(K::LAYOUT.head + b * K::LAYOUT.block());
            let weights = groups::<L, K>(bytes);
            block::<L, K, M>(p, (d, dmin, bytes), &weights, (row, first + b), &mut sums);
        }
        record = record.add(K::LAYOUT.record());
    }
    sums
}

/// The weights of a block, a byte each.
#[inline(always)]
unsafe fn groups<L: Lanes, K: Kind>(bytes: *const u8) -> [L::W; GROUPS] {
    let planes = bytes.add(K::LAYOUT.inner);
    let nibbles = planes.add(K::LAYOUT.planes * PLANE);
    let mut weights = [L::weights(nibbles); GROUPS];
    for group in 0..GROUPS / 2 {
        let both = L::weights(nibbles.add(group * PLANE));
        L::prefetch(nibbles.add(group * PLANE).wrapping_add(16 * NIBBLES));
        weights[group] = L::low_nibbles(both);
        weights[group + GROUPS / 2] = L::high_nibbles(both);
    }
    for (group, weights) in weights.iter_mut().enumerate() {
        *weights = match K::LAYOUT.planes {
            1 => L::with_upper::<1>(*weights, L::weights(planes), group as u32),
            2 => L::with_upper::<3>(*weights, L::weights(planes.add(group / 4 * PLANE)), (group % 4 * 2) as u32),
            _ => *weights,
        };
    }
    weights
}

/// Adds a block to the sums of all rows.
#[inline(always)]
unsafe fn block<L: Lanes, K: Kind, const M: usize>(
    p: &Product<'_>,
    (d, dmin, inner): (L::F, L::F, *const u8),
    weights: &[L::W; GROUPS],
    (row, at): (usize, usize),
    sums: &mut [L::F; M],
) {
    let blocks = p.matrix.blocks;
    let x = |r: usize| p.x.bytes.add(((row + r) * blocks + at) * BLOCK);
    let x_scale = |r: usize| *p.x.scales.add((row + r) * blocks + at);
    // -128 times the sum of the row's 32 bytes.
    let offset = |r: usize| *p.x.offsets.add((row + r) * blocks + at);
    match K::PACKING {
        Packing::Q4_0 => {
            for (r, sum) in sums.iter_mut().enumerate() {
                let dots = dot::<L>(L::int_splat(offset(r) / 16), &weights[..], x(r));
                *sum = L::fma(L::int_to_float(dots), L::mul(d, L::splat(x_scale(r))), *sum);
            }
        }
        Packing::Q4K | Packing::Q5K => {
            let scale = L::mul(d, L::int_to_float(L::load_unsigned(inner)));
            let minimum = L::mul(dmin, L::int_to_float(L::load_unsigned(inner.add(16))));
            for (r, sum) in sums.iter_mut().enumerate() {
                let dots = dot::<L>(L::int_splat(0), &weights[..], x(r));
                *sum = L::fma(L::int_to_float(dots), L::mul(scale, L::splat(x_scale(r))), *sum);
                let less = offset(r) as f32 * (1.0 / 128.0) * x_scale(r);
                *sum = L::fma(minimum, L::splat(less), *sum);
            }
        }
        Packing::Q6K => {
            let (first, second) = (L::load_signed(inner), L::load_signed(inner.add(16)));
            for (r, sum) in sums.iter_mut().enumerate() {
                let head = *p.x.heads.add((row + r) * blocks + at);
                let tail = offset(r) / 4 - head;
                let a = dot::<L>(L::int_splat(head), &weights[..GROUPS / 2], x(r));
                let b = dot::<L>(L::int_splat(tail), &weights[GROUPS / 2..], x(r).add(BLOCK / 2));
                let both = L::int_add(L::int_mul(first, a), L::int_mul(second, b));
                *sum = L::fma(L::int_to_float(both), L::mul(d, L::splat(x_scale(r))), *sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn dot<L: Lanes>(start: L::I, weights: &[L::W], x: *const i8) -> L::I {
    let mut sum = start;
    for (group, &weights) in weights.iter().enumerate() {
        sum = L::dot4(sum, weights, L::bytes(x.add(4 * group)));
    }
    sum
}
