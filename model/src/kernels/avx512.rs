//! AVX-512 (F, BW, VL, DQ), with or without VNNI: one register holds the sixteen lanes.

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// `VNNI` chooses how four bytes are multiplied and summed; both ways are exact.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VNNI: bool>;

impl<const VNNI: bool> Lanes for Avx512<VNNI> {
    const ROWS: usize = 8;
    type F = __m512;
    type I = __m512i;
    type W = __m512i;
    type X = __m512i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        _mm512_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize, fill: f32) -> Self::F {
        _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(n), from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        _mm512_storeu_ps(to, x);
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, x: Self::F) {
        _mm512_mask_storeu_ps(to, first(n), x);
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self::F {
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
    }
    #[inline(always)]
    unsafe fn zero_below(x: Self::F, limit: f32, v: Self::F) -> Self::F {
        let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(limit));
        _mm512_maskz_mov_ps(!below, v)
    }
    #[inline(always)]
    unsafe fn select_first(a: Self::F, n: usize, b: Self::F) -> Self::F {
        _mm512_mask_mov_ps(b, first(n), a)
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        let eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
    #[inline(always)]
    unsafe fn largest(x: Self::F) -> f32 {
        let eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
        let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
    #[inline(always)]
    unsafe fn magnitude_bits(a: Self::F, b: Self::F) -> u32 {
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let a = _mm512_and_si512(_mm512_castps_si512(a), magnitude);
        let b = _mm512_and_si512(_mm512_castps_si512(b), magnitude);
        _mm512_reduce_max_epu32(_mm512_max_epu32(a, b))
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut i8, a: Self::F, b: Self::F) -> i32 {
        let (a, b) = (_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
        _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128(to.add(16).cast(), _mm512_cvtepi32_epi8(b));
        _mm512_reduce_add_epi32(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    unsafe fn int_splat(x: i32) -> Self::I {
        _mm512_set1_epi32(x)
    }
    #[inline(always)]
    unsafe fn int_to_float(x: Self::I) -> Self::F {
        _mm512_cvtepi32_ps(x)
    }
    #[inline(always)]
    unsafe fn load_unsigned(from: *const u8) -> Self::I {
        _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))
    }
    #[inline(always)]
    unsafe fn load_signed(from: *const u8) -> Self::I {
        _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))
    }
    #[inline(always)]
    unsafe fn int_add(a: Self::I, b: Self::I) -> Self::I {
        _mm512_add_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn int_mul(a: Self::I, b: Self::I) -> Self::I {
        _mm512_mullo_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn low_nibbles(w: Self::W) -> Self::W {
        _mm512_and_si512(w, _mm512_set1_epi8(15))
    }
    #[inline(always)]
    unsafe fn high_nibbles(w: Self::W) -> Self::W {
        _mm512_and_si512(_mm512_srli_epi16::<4>(w), _mm512_set1_epi8(15))
    }
    #[inline(always)]
    unsafe fn with_upper<const MASK: i8>(w: Self::W, plane: Self::W, shift: u32) -> Self::W {
        let upper = _mm512_srl_epi16(plane, _mm_cvtsi32_si128(shift as i32));
        _mm512_or_si512(w, _mm512_slli_epi16::<4>(_mm512_and_si512(upper, _mm512_set1_epi8(MASK))))
    }
    #[inline(always)]
    unsafe fn weights(from: *const u8) -> Self::W {
        _mm512_loadu_si512(from.cast())
    }
    #[inline(always)]
    unsafe fn bytes(from: *const i8) -> Self::X {
        _mm512_set1_epi32(from.cast::<i32>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn dot4(sum: Self::I, weights: Self::W, x: Self::X) -> Self::I {
        if VNNI {
            return _mm512_dpbusd_epi32(sum, weights, x);
        }
        // Bytes 0 and 2, then 1 and 3, as 16-bit pairs: no sum of two can overflow 32 bits.
        let even = _mm512_madd_epi16(
            _mm512_and_si512(weights, _mm512_set1_epi16(0xff)),
            _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x)),
        );
        let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(weights), _mm512_srai_epi16::<8>(x));
        _mm512_add_epi32(sum, _mm512_add_epi32(even, odd))
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
}

#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1_u32 << n) - 1) as __mmask16
}
