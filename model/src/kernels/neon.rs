//! NEON, with or without the dot product extension: four registers hold the sixteen lanes.
//!
//! Where no such CPU is at hand, its tests run under emulation (`qemu-user-static`, a cross compiler and its C library):
//!
//! ```sh
//! export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
//! export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64-static -L /usr/aarch64-linux-gnu'
//! cargo test -p cascadia-model --target aarch64-unknown-linux-gnu --lib --test parity
//! ```

use std::arch::aarch64::*;
use std::arch::asm;

use super::lanes::Lanes;

/// `DOT` chooses how four bytes are multiplied and summed; both ways are exact.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOT: bool>;

/// Lanes 0 to 3, 4 to 7, 8 to 11, 12 to 15.
type Four<T> = [T; 4];

/// Four signed bytes, ready for either way.
#[derive(Clone, Copy)]
pub(crate) struct Signed {
    bytes: int8x16_t,
    wide: int16x8_t,
    /// 128 times their sum: what is missing where unsigned weights are taken for signed ones.
    lift: int32x4_t,
}

#[inline(always)]
fn each<T>(f: impl FnMut(usize) -> T) -> Four<T> {
    std::array::from_fn(f)
}

impl<const DOT: bool> Lanes for Neon<DOT> {
    const ROWS: usize = 4;
    type F = Four<float32x4_t>;
    type I = Four<int32x4_t>;
    type W = Four<uint8x16_t>;
    type X = Signed;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [vdupq_n_f32(x); 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        each(|i| vld1q_f32(from.add(4 * i)))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        for (i, &x) in x.iter().enumerate() {
            vst1q_f32(to.add(4 * i), x);
        }
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self::F {
        each(|i| widened(vld1_u16(from.add(4 * i))))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| vaddq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(|i| vsubq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| vmulq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(|i| vdivq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| vfmaq_f32(c[i], a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| larger(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(|i| vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        each(|i| vrndnq_f32(x[i]))
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        let exponent = |n| vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
        each(|i| vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent(n[i]))))
    }
    #[inline(always)]
    unsafe fn zero_below(x: Self::F, limit: f32, v: Self::F) -> Self::F {
        let limit = vdupq_n_f32(limit);
        each(|i| vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v[i]), vcltq_f32(x[i], limit))))
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        let four = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
        let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
    }
    #[inline(always)]
    unsafe fn largest(x: Self::F) -> f32 {
        let four = larger(larger(x[0], x[2]), larger(x[1], x[3]));
        let two = larger(four, vextq_f32::<2>(four, four));
        vgetq_lane_f32::<0>(larger(two, vextq_f32::<1>(two, two)))
    }
    #[inline(always)]
    unsafe fn magnitude_bits(a: Self::F, b: Self::F) -> u32 {
        let bits = |x| vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x7fff_ffff));
        let most = each(|i| vmaxq_u32(bits(a[i]), bits(b[i])));
        vmaxvq_u32(vmaxq_u32(vmaxq_u32(most[0], most[1]), vmaxq_u32(most[2], most[3])))
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut i8, a: Self::F, b: Self::F) -> i32 {
        let mut sum = vdupq_n_s32(0);
        for (i, x) in [a, b].into_iter().enumerate() {
            let ints = each(|j| vcvtnq_s32_f32(x[j]));
            let words = |j: usize| vcombine_s16(vmovn_s32(ints[j]), vmovn_s32(ints[j + 1]));
            vst1q_s8(to.add(16 * i), vcombine_s8(vmovn_s16(words(0)), vmovn_s16(words(2))));
            sum = ints.into_iter().fold(sum, |sum, ints| vaddq_s32(sum, ints));
        }
        vaddvq_s32(sum)
    }
    #[inline(always)]
    unsafe fn int_splat(x: i32) -> Self::I {
        [vdupq_n_s32(x); 4]
    }
    #[inline(always)]
    unsafe fn int_to_float(x: Self::I) -> Self::F {
        each(|i| vcvtq_f32_s32(x[i]))
    }
    #[inline(always)]
    unsafe fn load_unsigned(from: *const u8) -> Self::I {
        let bytes = vld1q_u8(from);
        let words = [vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)];
        each(|i| {
            let words = words[i / 2];
            let ints = if i % 2 == 0 { vmovl_u16(vget_low_u16(words)) } else { vmovl_high_u16(words) };
            vreinterpretq_s32_u32(ints)
        })
    }
    #[inline(always)]
    unsafe fn load_signed(from: *const u8) -> Self::I {
        let bytes = vld1q_s8(from.cast());
        let words = [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)];
        each(|i| {
            let words = words[i / 2];
            if i % 2 == 0 { vmovl_s16(vget_low_s16(words)) } else { vmovl_high_s16(words) }
        })
    }
    #[inline(always)]
    unsafe fn int_add(a: Self::I, b: Self::I) -> Self::I {
        each(|i| vaddq_s32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn int_mul(a: Self::I, b: Self::I) -> Self::I {
        each(|i| vmulq_s32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn low_nibbles(w: Self::W) -> Self::W {
        each(|i| vandq_u8(w[i], vdupq_n_u8(15)))
    }
    #[inline(always)]
    unsafe fn high_nibbles(w: Self::W) -> Self::W {
        each(|i| vshrq_n_u8::<4>(w[i]))
    }
    #[inline(always)]
    unsafe fn with_upper<const MASK: i8>(w: Self::W, plane: Self::W, shift: u32) -> Self::W {
        // A shift to the left by a negative number is one to the right.
        let (mask, right) = (vdupq_n_u8(MASK as u8), vdupq_n_s8(-(shift as i8)));
        each(|i| vorrq_u8(w[i], vshlq_n_u8::<4>(vandq_u8(vshlq_u8(plane[i], right), mask))))
    }
    #[inline(always)]
    unsafe fn weights(from: *const u8) -> Self::W {
        each(|i| vld1q_u8(from.add(16 * i)))
    }
    #[inline(always)]
    unsafe fn bytes(from: *const i8) -> Self::X {
        let bytes = vreinterpretq_s8_s32(vdupq_n_s32(from.cast::<i32>().read_unaligned()));
        let wide = vmovl_s8(vget_low_s8(bytes));
        let sum = vaddv_s16(vget_low_s16(wide));
        Signed { bytes, wide, lift: vdupq_n_s32(i32::from(sum) << 7) }
    }
    #[inline(always)]
    unsafe fn dot4(sum: Self::I, weights: Self::W, x: Self::X) -> Self::I {
        if DOT {
            return each(|i| {
                let signed = vreinterpretq_s8_u8(veorq_u8(weights[i], vdupq_n_u8(128)));
                dotted(vaddq_s32(sum[i], x.lift), signed, x.bytes)
            });
        }
        let products = |words: uint16x8_t| {
            let words = vreinterpretq_s16_u16(words);
            vpaddq_s32(vmull_s16(vget_low_s16(words), vget_low_s16(x.wide)), vmull_high_s16(words, x.wide))
        };
        each(|i| {
            let (low, high) = (vmovl_u8(vget_low_u8(weights[i])), vmovl_high_u8(weights[i]));
            vaddq_s32(sum[i], vpaddq_s32(products(low), products(high)))
        })
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        asm!("prfm pldl2keep, [{}]", in(reg) from, options(nomem, nostack, preserves_flags));
    }
}

#[inline(always)]
unsafe fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    vbslq_f32(vcgtq_f32(a, b), a, b)
}

/// Four binary16 values; the intrinsic is not in the oldest compiler that we support.
#[inline(always)]
unsafe fn widened(x: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    asm!("fcvtl {:v}.4s, {:v}.4h", out(vreg) wide, in(vreg) x, options(pure, nomem, nostack));
    wide
}

/// `sum` and four products of signed bytes in each lane; the intrinsic is not stable.
#[inline(always)]
unsafe fn dotted(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    asm!(
        ".arch_extension dotprod",
        "sdot {:v}.4s, {:v}.16b, {:v}.16b",
        inout(vreg) sum, in(vreg) a, in(vreg) b,
        options(pure, nomem, nostack, preserves_flags)
    );
    sum
}
