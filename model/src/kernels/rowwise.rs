//! What is done to one row at a time: norm, quantisation, rotation, gate activation.

use super::lanes::Lanes;
use crate::config::Activation;
use crate::quant::BLOCK;

/// `exp(x)`: zero below -87.3, clamped above 88.3; within 2 units in the last place between.
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L::F) -> L::F {
    const LEAST: f32 = -87.336_54;
    let y = L::max(L::splat(LEAST), L::min(L::splat(88.37), x));
    let n = L::round(L::mul(y, L::splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first with few enough bits that n times it is exact.
    let r = L::fma(n, L::splat(-0.693_359_4), y);
    let r = L::fma(n, L::splat(2.121_944_4e-4), r);
    let mut p = L::splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = L::fma(p, r, L::splat(c));
    }
    let p = L::add(L::fma(L::mul(r, r), p, r), L::splat(1.0));
    L::zero_below(x, LEAST, L::mul(p, L::pow2(n)))
}

/// `tanh(x)`: an odd polynomial near zero, by `exp` elsewhere; within 2 units in the last place of 1.
#[inline(always)]
pub(super) unsafe fn tanh<L: Lanes>(x: L::F) -> L::F {
    /// Below it the polynomial is the better one.
    const NEAR: f32 = 0.625;
    // Beyond 10 it is 1, and the polynomial would overflow; NaN stays.
    let x = L::max(L::splat(-10.0), L::min(L::splat(10.0), x));
    let magnitude = L::max(x, L::sub(L::splat(0.0), x));
    let z = L::mul(x, x);
    let mut p = L::splat(-5.704_988_7e-3);
    for c in [2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = L::fma(p, z, L::splat(c));
    }
    let near = L::fma(L::mul(p, z), x, x);
    let e = exp::<L>(L::mul(magnitude, L::splat(-2.0)));
    let far = L::div(L::sub(L::splat(1.0), e), L::add(L::splat(1.0), e));
    // x / |x| is a sign, and of no use where it is none: those lanes are near.
    let far = L::zero_below(magnitude, NEAR, L::mul(far, L::div(x, magnitude)));
    let near = L::sub(near, L::zero_below(magnitude, NEAR, near));
    L::add(near, far)
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub(super) unsafe fn capped<L: Lanes>(x: L::F, cap: f32) -> L::F {
    let cap = L::splat(cap);
    L::mul(cap, tanh::<L>(L::div(x, cap)))
}

/// What a gate lets through of `up`.
#[inline(always)]
pub(super) unsafe fn gated<L: Lanes>(activation: Activation, gate: L::F, up: L::F) -> L::F {
    let one = L::splat(1.0);
    let open = match activation {
        Activation::Silu => L::div(gate, L::add(one, exp::<L>(L::sub(L::splat(0.0), gate)))),
        Activation::GeluTanh => {
            let cube = L::mul(L::mul(gate, gate), gate);
            let inner = L::mul(L::splat(0.797_884_6), L::fma(L::splat(0.044_715), cube, gate));
            L::mul(L::mul(L::splat(0.5), gate), L::add(one, tanh::<L>(inner)))
        }
    };
    L::mul(open, up)
}

/// A row of `width` values to norm; what pads it is left alone.
#[derive(Clone, Copy)]
pub(crate) struct Norm {
    pub x: *const f32,
    pub weight: *const f32,
    /// May be `x`.
    pub out: *mut f32,
    pub width: usize,
    pub eps: f32,
    /// Whether the result is added to what is there.
    pub add: bool,
}

/// RMS norm. Lane `i` sums the squares at `i` modulo 16, so zeros appended to the row change nothing.
#[inline(always)]
pub(crate) unsafe fn rms_norm<L: Lanes>(n: &Norm) {
    let part = |from: *const f32, i: usize| {
        if i + 16 <= n.width { L::load(from.add(i)) } else { L::load_first(from.add(i), n.width - i, 0.0) }
    };
    let mut squares = L::splat(0.0);
    for i in (0..n.width).step_by(16) {
        let x = part(n.x, i);
        squares = L::fma(x, x, squares);
    }
    let mean = L::sum(squares) / n.width as f32;
    // A row too large to square would become one of zeros, which looks like numbers.
    let scale = L::splat(if mean.is_finite() { 1.0 / (mean + n.eps).sqrt() } else { f32::NAN });
    for i in (0..n.width).step_by(16) {
        let mut y = L::mul(L::mul(part(n.x, i), scale), part(n.weight, i));
        if n.add {
            y = L::add(part(n.out, i), y);
        }
        L::store_first(n.out.add(i), (n.width - i).min(16), y);
    }
}

/// Blocks of 32 values to quantise.
#[derive(Clone, Copy)]
pub(crate) struct Quantise {
    pub x: *const f32,
    pub bytes: *mut i8,
    pub scales: *mut f32,
    pub offsets: *mut i32,
    pub heads: *mut i32,
    pub blocks: usize,
}

/// Quantises blocks of 32 to bytes: scale = largest magnitude / 127, ties to even.
///
/// A block below 1e-30 is zero; one with an infinity or a NaN gets the scale NaN. `offsets` is -128 times the sum of
/// the bytes: weights are stored with 128 added, and this takes it off again. `heads` is -32 times the sum of the first
/// sixteen, for weights that have scales of sixteen.
#[inline(always)]
pub(crate) unsafe fn quantise<L: Lanes>(q: &Quantise) {
    for block in 0..q.blocks {
        let x = q.x.add(block * BLOCK);
        let (a, b) = (L::load(x), L::load(x.add(16)));
        let largest = f32::from_bits(L::magnitude_bits(a, b));
        let bytes = q.bytes.add(block * BLOCK);
        let (scale, offset);
        if (1e-30..=f32::MAX).contains(&largest) {
            let inverse = L::splat(127.0 / largest);
            scale = largest / 127.0;
            offset = -128 * L::store_bytes(bytes, L::mul(a, inverse), L::mul(b, inverse));
        } else {
            scale = if largest < 1e-30 { 0.0 } else { f32::NAN };
            offset = 0;
            bytes.write_bytes(0, BLOCK);
        }
        let head: i32 = (0..16).map(|i| i32::from(*bytes.add(i))).sum();
        *q.heads.add(block) = -32 * head;
        *q.scales.add(block) = scale;
        *q.offsets.add(block) = offset;
    }
}

/// Heads to rotate in place, one after the other: the first `2 * half` of the `head_dim` values of each.
#[derive(Clone, Copy)]
pub(crate) struct Rotate {
    pub x: *mut f32,
    pub heads: usize,
    pub head_dim: usize,
    pub half: usize,
    /// `half` cosines, then `half` sines.
    pub angles: *const f32,
}

/// Rotary positions: element `i` and element `i + half` turn together.
#[inline(always)]
pub(crate) unsafe fn rotate<L: Lanes>(r: &Rotate) {
    for head in 0..r.heads {
        let low = r.x.add(head * r.head_dim);
        let high = low.add(r.half);
        for i in (0..r.half).step_by(16) {
            let n = (r.half - i).min(16);
            let (cos, sin, a, b);
            if n == 16 {
                (cos, sin) = (L::load(r.angles.add(i)), L::load(r.angles.add(r.half + i)));
                (a, b) = (L::load(low.add(i)), L::load(high.add(i)));
            } else {
                cos = L::load_first(r.angles.add(i), n, 0.0);
                sin = L::load_first(r.angles.add(r.half + i), n, 0.0);
                a = L::load_first(low.add(i), n, 0.0);
                b = L::load_first(high.add(i), n, 0.0);
            }
            L::store_first(low.add(i), n, L::sub(L::mul(a, cos), L::mul(b, sin)));
            L::store_first(high.add(i), n, L::add(L::mul(b, cos), L::mul(a, sin)));
        }
    }
}
