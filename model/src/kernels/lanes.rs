//! Sixteen lanes of arithmetic: the only thing the SIMD paths implement.
//!
//! Every kernel is written once over this trait, so the paths can differ in nothing but the instructions. Each method
//! is defined exactly: IEEE operations, fused multiply-adds, fixed trees, exact integers. No estimates.

/// Sixteen lanes. `a > b ? a : b` is how `max` treats NaN and zeros, `a < b ? a : b` how `min` does.
///
/// # Safety
/// Every method may only run on a CPU that has the path's instructions. Pointers must be valid for the lanes named;
/// they need no alignment.
pub(crate) trait Lanes: Copy {
    /// Most rows that one product kernel keeps in registers.
    const ROWS: usize;
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `i32`.
    type I: Copy;
    /// Sixteen groups of four unsigned weights.
    type W: Copy;
    /// Four signed bytes, for every lane.
    type X: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    /// The first `n < 16` lanes from memory, `fill` in the others.
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize, fill: f32) -> Self::F {
        let mut lanes = [fill; 16];
        std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n);
        Self::load(lanes.as_ptr())
    }
    unsafe fn store(to: *mut f32, x: Self::F);
    /// Writes the first `n <= 16` lanes.
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, x: Self::F) {
        let mut lanes = [0.0; 16];
        Self::store(lanes.as_mut_ptr(), x);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
    }
    /// Sixteen binary16 values.
    unsafe fn load_half(from: *const u16) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(x: Self::F) -> Self::F;
    /// 2 to the power of integral `n` in -126..=127.
    unsafe fn pow2(n: Self::F) -> Self::F;
    /// `v`, but zero in the lanes where `x < limit`.
    unsafe fn zero_below(x: Self::F, limit: f32, v: Self::F) -> Self::F;
    /// The first `n <= 16` lanes of `a`, the others of `b`.
    #[inline(always)]
    unsafe fn select_first(a: Self::F, n: usize, b: Self::F) -> Self::F {
        let mut lanes = [0.0; 16];
        Self::store(lanes.as_mut_ptr(), b);
        Self::store_first(lanes.as_mut_ptr(), n, a);
        Self::load(lanes.as_ptr())
    }
    /// Sum by halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
    unsafe fn sum(x: Self::F) -> f32;
    /// The largest lane by the same tree.
    unsafe fn largest(x: Self::F) -> f32;
    /// The largest magnitude of 32 values, as bits: an order in which NaN is above infinity is above all else.
    unsafe fn magnitude_bits(a: Self::F, b: Self::F) -> u32;
    /// Rounds (ties to even) 32 values within -127..=127 to bytes and returns their sum.
    unsafe fn store_bytes(to: *mut i8, a: Self::F, b: Self::F) -> i32;
    unsafe fn int_splat(x: i32) -> Self::I;
    unsafe fn int_to_float(x: Self::I) -> Self::F;
    /// Sixteen unsigned bytes.
    unsafe fn load_unsigned(from: *const u8) -> Self::I;
    /// Sixteen signed bytes.
    unsafe fn load_signed(from: *const u8) -> Self::I;
    unsafe fn int_add(a: Self::I, b: Self::I) -> Self::I;
    /// The lower half of each product.
    unsafe fn int_mul(a: Self::I, b: Self::I) -> Self::I;
    /// Loads 64 unsigned weights, four for each lane.
    unsafe fn weights(from: *const u8) -> Self::W;
    /// The lower four bits of each weight.
    unsafe fn low_nibbles(w: Self::W) -> Self::W;
    /// The upper four bits of each weight.
    unsafe fn high_nibbles(w: Self::W) -> Self::W;
    /// Each weight with `(plane >> shift) & MASK` above its four bits; the bits asked for lie in one byte.
    unsafe fn with_upper<const MASK: i8>(w: Self::W, plane: Self::W, shift: u32) -> Self::W;
    /// Loads four signed bytes.
    unsafe fn bytes(from: *const i8) -> Self::X;
    /// Adds to each lane the exact sum of its four weights times the four bytes of `x`.
    unsafe fn dot4(sum: Self::I, weights: Self::W, x: Self::X) -> Self::I;
    /// Hints that the line at `from` is wanted soon.
    unsafe fn prefetch(from: *const u8);
}
