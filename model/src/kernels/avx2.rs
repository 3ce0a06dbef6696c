//! AVX2 with FMA and F16C: two registers hold the sixteen lanes.

use std::arch::x86_64::*;

use super::lanes::Lanes;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Lanes 0 to 7, lanes 8 to 15.
type Pair = (__m256, __m256);
/// Bytes 0 and 2 of every four, bytes 1 and 3, widened.
type Pair16 = (__m256i, __m256i);

impl Lanes for Avx2 {
    const ROWS: usize = 4;
    type F = Pair;
    type I = (__m256i, __m256i);
    type W = (__m256i, __m256i);
    type X = Pair16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        (_mm256_set1_ps(x), _mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        _mm256_storeu_ps(to, x.0);
        _mm256_storeu_ps(to.add(8), x.1);
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self::F {
        (_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        (_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        (_mm256_round_ps::<NEAREST>(x.0), _mm256_round_ps::<NEAREST>(x.1))
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        let bias = _mm256_set1_epi32(127);
        let low = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), bias);
        let high = _mm256_add_epi32(_mm256_cvtps_epi32(n.1), bias);
        (_mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)))
    }
    #[inline(always)]
    unsafe fn zero_below(x: Self::F, limit: f32, v: Self::F) -> Self::F {
        let limit = _mm256_set1_ps(limit);
        (
            _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.0, limit), v.0),
            _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.1, limit), v.1),
        )
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        let eight = _mm256_add_ps(x.0, x.1);
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
    #[inline(always)]
    unsafe fn largest(x: Self::F) -> f32 {
        let eight = _mm256_max_ps(x.0, x.1);
        let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
    #[inline(always)]
    unsafe fn magnitude_bits(a: Self::F, b: Self::F) -> u32 {
        let eight = _mm256_max_epu32(
            _mm256_max_epu32(magnitudes(a.0), magnitudes(a.1)),
            _mm256_max_epu32(magnitudes(b.0), magnitudes(b.1)),
        );
        let four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
        let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
        let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b00_00_00_01>(two));
        _mm_cvtsi128_si32(one) as u32
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut i8, a: Self::F, b: Self::F) -> i32 {
        let ints = [_mm256_cvtps_epi32(a.0), _mm256_cvtps_epi32(a.1), _mm256_cvtps_epi32(b.0), _mm256_cvtps_epi32(b.1)];
        // Packing works within 128-bit halves; the permutation restores the order.
        let words = (_mm256_packs_epi32(ints[0], ints[1]), _mm256_packs_epi32(ints[2], ints[3]));
        let bytes = _mm256_packs_epi16(words.0, words.1);
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(bytes, order));
        let eight = _mm256_add_epi32(_mm256_add_epi32(ints[0], ints[1]), _mm256_add_epi32(ints[2], ints[3]));
        let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
        let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b00_00_00_01>(two));
        _mm_cvtsi128_si32(one)
    }
    #[inline(always)]
    unsafe fn int_splat(x: i32) -> Self::I {
        (_mm256_set1_epi32(x), _mm256_set1_epi32(x))
    }
    #[inline(always)]
    unsafe fn int_to_float(x: Self::I) -> Self::F {
        (_mm256_cvtepi32_ps(x.0), _mm256_cvtepi32_ps(x.1))
    }
    #[inline(always)]
    unsafe fn load_unsigned(from: *const u8) -> Self::I {
        let bytes = _mm_loadu_si128(from.cast());
        (_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)))
    }
    #[inline(always)]
    unsafe fn load_signed(from: *const u8) -> Self::I {
        let bytes = _mm_loadu_si128(from.cast());
        (_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)))
    }
    #[inline(always)]
    unsafe fn int_add(a: Self::I, b: Self::I) -> Self::I {
        (_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn int_mul(a: Self::I, b: Self::I) -> Self::I {
        (_mm256_mullo_epi32(a.0, b.0), _mm256_mullo_epi32(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn low_nibbles(w: Self::W) -> Self::W {
        let mask = _mm256_set1_epi8(15);
        (_mm256_and_si256(w.0, mask), _mm256_and_si256(w.1, mask))
    }
    #[inline(always)]
    unsafe fn high_nibbles(w: Self::W) -> Self::W {
        Self::low_nibbles((_mm256_srli_epi16::<4>(w.0), _mm256_srli_epi16::<4>(w.1)))
    }
    #[inline(always)]
    unsafe fn with_upper<const MASK: i8>(w: Self::W, plane: Self::W, shift: u32) -> Self::W {
        let (mask, shift) = (_mm256_set1_epi8(MASK), _mm_cvtsi32_si128(shift as i32));
        let upper = |plane| _mm256_slli_epi16::<4>(_mm256_and_si256(_mm256_srl_epi16(plane, shift), mask));
        (_mm256_or_si256(w.0, upper(plane.0)), _mm256_or_si256(w.1, upper(plane.1)))
    }
    #[inline(always)]
    unsafe fn weights(from: *const u8) -> Self::W {
        (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast()))
    }
    #[inline(always)]
    unsafe fn bytes(from: *const i8) -> Self::X {
        let x = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
        (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)), _mm256_srai_epi16::<8>(x))
    }
    #[inline(always)]
    unsafe fn dot4(sum: Self::I, weights: Self::W, x: Self::X) -> Self::I {
        (_mm256_add_epi32(sum.0, dot(weights.0, x)), _mm256_add_epi32(sum.1, dot(weights.1, x)))
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
}

#[inline(always)]
unsafe fn magnitudes(x: __m256) -> __m256i {
    _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fff_ffff))
}

/// Bytes 0 and 2, then 1 and 3, as 16-bit pairs: no sum of two can overflow 32 bits.
#[inline(always)]
unsafe fn dot(weights: __m256i, (even, odd): Pair16) -> __m256i {
    _mm256_add_epi32(
        _mm256_madd_epi16(_mm256_and_si256(weights, _mm256_set1_epi16(0xff)), even),
        _mm256_madd_epi16(_mm256_srli_epi16::<8>(weights), odd),
    )
}
