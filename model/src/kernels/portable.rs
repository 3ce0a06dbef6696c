//! The plain path: arrays of sixteen. Correct everywhere, and slow where a fused multiply-add is a library call.

use half::f16;

use super::lanes::Lanes;

#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 16] {
    std::array::from_fn(f)
}

#[inline(always)]
fn halves(mut x: [f32; 16], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = 8;
    while n > 0 {
        for i in 0..n {
            x[i] = f(x[i], x[i + n]);
        }
        n /= 2;
    }
    x[0]
}

impl Lanes for Portable {
    const ROWS: usize = 4;
    type F = [f32; 16];
    type I = [i32; 16];
    type W = [u8; 64];
    type X = [i8; 4];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        from.cast::<[f32; 16]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize, fill: f32) -> Self::F {
        each(|i| if i < n { *from.add(i) } else { fill })
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        to.cast::<[f32; 16]>().write_unaligned(x);
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, x: Self::F) {
        for (i, &lane) in x.iter().enumerate().take(n) {
            *to.add(i) = lane;
        }
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self::F {
        each(|i| f16::from_bits(from.add(i).read_unaligned()).to_f32())
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        each(|i| x[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        each(|i| f32::from_bits(((n[i] as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn zero_below(x: Self::F, limit: f32, v: Self::F) -> Self::F {
        each(|i| if x[i] < limit { 0.0 } else { v[i] })
    }
    #[inline(always)]
    unsafe fn select_first(a: Self::F, n: usize, b: Self::F) -> Self::F {
        each(|i| if i < n { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        halves(x, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn largest(x: Self::F) -> f32 {
        halves(x, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn magnitude_bits(a: Self::F, b: Self::F) -> u32 {
        a.iter().chain(&b).fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff))
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut i8, a: Self::F, b: Self::F) -> i32 {
        let mut sum = 0;
        for (i, x) in a.iter().chain(&b).enumerate() {
            let q = x.round_ties_even() as i32;
            *to.add(i) = q as i8;
            sum += q;
        }
        sum
    }
    #[inline(always)]
    unsafe fn int_splat(x: i32) -> Self::I {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn int_to_float(x: Self::I) -> Self::F {
        each(|i| x[i] as f32)
    }
    #[inline(always)]
    unsafe fn load_unsigned(from: *const u8) -> Self::I {
        std::array::from_fn(|i| i32::from(*from.add(i)))
    }
    #[inline(always)]
    unsafe fn load_signed(from: *const u8) -> Self::I {
        std::array::from_fn(|i| i32::from(*from.add(i) as i8))
    }
    #[inline(always)]
    unsafe fn int_add(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn int_mul(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_mul(b[i]))
    }
    #[inline(always)]
    unsafe fn low_nibbles(w: Self::W) -> Self::W {
        w.map(|w| w & 15)
    }
    #[inline(always)]
    unsafe fn high_nibbles(w: Self::W) -> Self::W {
        w.map(|w| w >> 4)
    }
    #[inline(always)]
    unsafe fn with_upper<const MASK: i8>(w: Self::W, plane: Self::W, shift: u32) -> Self::W {
        std::array::from_fn(|i| w[i] | ((plane[i] >> shift) & MASK as u8) << 4)
    }
    #[inline(always)]
    unsafe fn weights(from: *const u8) -> Self::W {
        from.cast::<[u8; 64]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn bytes(from: *const i8) -> Self::X {
        from.cast::<[i8; 4]>().read_unaligned()
    }
    // Not always: it is long, and the products hold many.
    #[inline]
    unsafe fn dot4(mut sum: Self::I, weights: Self::W, x: Self::X) -> Self::I {
        for i in 0..16 {
            for j in 0..4 {
                sum[i] += i32::from(weights[4 * i + j]) * i32::from(x[j]);
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
}
