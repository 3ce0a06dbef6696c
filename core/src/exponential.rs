//! Exponentials of a whole vocabulary, in plain code that a compiler turns into vectors.
//!
//! `libm`'s is exact to the last bit and takes one number at a time, which is most of what a token at a positive
//! temperature costs beside the pass. This one is a polynomial, the same on every machine, with a relative error below
//! [`ERROR`]: logits are `f32`, and the last bit of one that is 16 moves its probability by `1e-6`.

/// Relative error of [`exp2`].
#[cfg(test)]
const ERROR: f64 = 2.5e-12;

/// Sums run in as many lanes, chosen by index, so that the order of additions is part of the law.
const LANES: usize = 4;

/// `2^y` for `y <= 0`; 0 below -1020 and for what is no number.
///
/// `y` is cut into an integer, which becomes the exponent, and a rest in `[-1/2, 1/2]`, on which a polynomial of degree 8
/// interpolates `2^f` at Chebyshev's points.
#[inline]
pub(crate) fn exp2(y: f64) -> f64 {
    // Added to a number of moderate size, it leaves the nearest integer in the low bits.
    const ROUND: f64 = (3u64 << 51) as f64;
    const C: [f64; 8] = [
        0.693_147_180_556_832_4,
        0.240_226_506_958_885_02,
        0.055_504_109_063_258_67,
        0.009_618_129_135_235_14,
        0.001_333_347_847_368_541_5,
        0.000_154_034_751_865_307_86,
        0.000_015_303_700_711_365_694,
        0.000_001_325_080_551_750_225,
    ];
    let rounded = y + ROUND;
    let f = y - (rounded - ROUND);
    let (f2, f4) = (f * f, (f * f) * (f * f));
    let low = (1.0 + C[0] * f) + f2 * (C[1] + C[2] * f);
    let high = (C[3] + C[4] * f) + f2 * (C[5] + C[6] * f) + f4 * C[7];
    let power = f64::from_bits((low + f4 * high).to_bits().wrapping_add(rounded.to_bits() << 52));
    if y >= -1020.0 { power } else { 0.0 }
}

/// `sum 2^((x - top) scale)`; what is larger than `top` counts as `top`.
pub(crate) fn sum(logits: &[f32], top: f64, scale: f64) -> f64 {
    add(logits, top, |below| exp2(below * scale))
}

/// `sum 2^((x - top) scale) (x - top)`; what is larger than `top` counts as `top`.
pub(crate) fn weighted_sum(logits: &[f32], top: f64, scale: f64) -> f64 {
    // Nothing times infinity is not a number.
    add(logits, top, |below| exp2(below * scale) * below.max(f64::MIN))
}

#[inline]
fn add(logits: &[f32], top: f64, term: impl Fn(f64) -> f64) -> f64 {
    let below = |x: f32| if f64::from(x) > top { 0.0 } else { f64::from(x) - top };
    let (rows, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for row in rows {
        for (lane, &x) in lanes.iter_mut().zip(row) {
            *lane += term(below(x));
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += term(below(x));
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_infinity_counts_as_the_top() {
        assert_eq!(sum(&[f32::INFINITY, f32::MAX, 0.0, 0.0, f32::INFINITY], f64::from(f32::MAX), 1.0), 3.0);
    }

    #[test]
    fn what_vanishes_is_nothing() {
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(-1020.0), libm::exp2(-1020.0));
        for y in [-1020.1, -1e300, f64::NEG_INFINITY, f64::NAN] {
            assert_eq!(exp2(y), 0.0);
        }
        assert_eq!(sum(&[1.0, f32::NEG_INFINITY, f32::NAN, 1.0, 0.0], 1.0, 1.0), 2.5);
        assert_eq!(weighted_sum(&[1.0, f32::NEG_INFINITY, f32::NAN, 1.0, 0.0], 1.0, 1.0), -0.5);
    }

    proptest! {
        #[test]
        fn a_power_is_near_its_value(y in -1019.0..=0.0f64, fraction in -0.5..=0.0f64) {
            for y in [y, fraction] {
                prop_assert!((exp2(y) / libm::exp2(y) - 1.0).abs() < ERROR);
            }
        }

        #[test]
        fn a_larger_exponent_gives_no_smaller_power(n in 0..1019i32, fraction in 0.0..1.0f64, ulps in 1..1000u64) {
            // Races take the power of the largest logit for a bound of the others'.
            for y in [-f64::from(n) - fraction, -f64::from(n) - 0.5] {
                prop_assert!(exp2(f64::from_bits(y.to_bits() + ulps)) <= exp2(y));
            }
        }

        #[test]
        fn sums_are_the_sums_of_their_terms(logits in proptest::collection::vec(-30.0..30.0f32, 1..40)) {
            let top = logits.iter().fold(f64::NEG_INFINITY, |top, &x| top.max(f64::from(x)));
            let terms: Vec<_> = logits.iter().map(|&x| (libm::exp2(f64::from(x) - top), f64::from(x) - top)).collect();
            let plain: f64 = terms.iter().map(|term| term.0).sum();
            let weighted: f64 = terms.iter().map(|term| term.0 * term.1).sum();
            prop_assert!((sum(&logits, top, 1.0) / plain - 1.0).abs() < 2.0 * ERROR);
            prop_assert!((weighted_sum(&logits, top, 1.0) - weighted).abs() <= 2.0 * ERROR * weighted.abs());
        }
    }
}
