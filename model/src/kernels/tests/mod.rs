//! Every kernel on every instruction set of this CPU against a plain loop, bit for bit.

mod attention;
mod product;

use half::f16;

use super::rowwise::{Norm, Quantise, Rotate};
use super::{Isa, SimdPath};
use crate::kernels::product::Activations;
use crate::quant::{BLOCK, quantise_block};

/// All that this CPU has, the ones that no option chooses among them.
fn isas() -> Vec<Isa> {
    #[allow(unused_mut, reason = "nothing is pushed on other targets")]
    let mut isas: Vec<Isa> = SimdPath::ALL.into_iter().filter_map(Isa::of).collect();
    #[cfg(target_arch = "x86_64")]
    if isas.contains(&Isa::Avx512Vnni) {
        isas.push(Isa::Avx512);
    }
    #[cfg(target_arch = "aarch64")]
    if isas.contains(&Isa::NeonDot) {
        isas.push(Isa::Neon);
    }
    isas
}

/// Numbers of many magnitudes, zeros of both signs among them.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        crate::fingerprint::finish(self.0)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn float(&mut self) -> f32 {
        let bits = self.next();
        let x = (bits >> 40) as f32 / (1 << 23) as f32 - 1.0;
        match bits % 16 {
            0 => 0.0,
            1 => -0.0,
            2 => x * 1e-6,
            3 => x * 50.0,
            _ => x,
        }
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The definition: one block of activations as DESIGN section 5 has it.
fn plain_quantise(x: &[f32]) -> (Vec<i32>, f32) {
    let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    if largest < 1e-30 {
        return (vec![0; BLOCK], 0.0);
    }
    (x.iter().map(|x| (x * (127.0 / largest)).round_ties_even() as i32).collect(), largest / 127.0)
}

struct Quantised {
    bytes: Vec<i8>,
    scales: Vec<f32>,
    offsets: Vec<i32>,
    heads: Vec<i32>,
}

impl Quantised {
    /// Rows of `stride` values, of which this is the rounding, as a product reads them.
    fn activations(&self, floats: &[f32], stride: usize) -> Activations {
        Activations {
            floats: floats.as_ptr(),
            stride,
            bytes: self.bytes.as_ptr(),
            scales: self.scales.as_ptr(),
            offsets: self.offsets.as_ptr(),
            heads: self.heads.as_ptr(),
        }
    }
}

fn quantise(isa: Isa, x: &[f32]) -> Quantised {
    let blocks = x.len() / BLOCK;
    let (bytes, scales) = (vec![1; x.len()], vec![1.0; blocks]);
    let mut q = Quantised { bytes, scales, offsets: vec![1; blocks], heads: vec![1; blocks] };
    let (bytes, scales, offsets) = (q.bytes.as_mut_ptr(), q.scales.as_mut_ptr(), q.offsets.as_mut_ptr());
    let (x, heads) = (x.as_ptr(), q.heads.as_mut_ptr());
    // SAFETY: buffers of `blocks` blocks.
    unsafe { isa.quantise(&Quantise { x, bytes, scales, offsets, heads, blocks }) };
    q
}

#[test]
fn quantised_blocks_are_the_definition() {
    let mut random = Random(2);
    let mut x = random.floats(40 * BLOCK);
    // Ties, zeros, tiny and huge blocks, and what is no number.
    x[..BLOCK].iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 - 15.5);
    x[0] = 127.0;
    x[BLOCK..2 * BLOCK].fill(-0.0);
    x[2 * BLOCK..3 * BLOCK].fill(1e-31);
    x[3 * BLOCK..4 * BLOCK].iter_mut().for_each(|x| *x *= 1e36);
    x[4 * BLOCK] = f32::INFINITY;
    x[5 * BLOCK + 31] = f32::NAN;
    for isa in isas() {
        let q = quantise(isa, &x);
        for (block, values) in x.chunks_exact(BLOCK).enumerate() {
            let bytes = &q.bytes[block * BLOCK..][..BLOCK];
            if block == 4 || block == 5 {
                assert!(q.scales[block].is_nan() && bytes.iter().all(|&b| b == 0), "{isa:?}, block {block}");
                continue;
            }
            let (wanted, scale) = plain_quantise(values);
            assert!(bytes.iter().map(|&b| i32::from(b)).eq(wanted.iter().copied()), "{isa:?}, block {block}");
            assert_eq!(q.scales[block].to_bits(), scale.to_bits());
            assert_eq!(q.offsets[block], -128 * wanted.iter().sum::<i32>());
            assert_eq!(q.heads[block], -32 * wanted[..16].iter().sum::<i32>());
        }
    }
}

#[test]
fn a_row_too_large_to_norm_is_no_numbers() {
    for isa in isas() {
        let (mut x, weight) = (vec![1.0; BLOCK], vec![1.0; BLOCK]);
        x[3] = 1e20;
        let mut out = vec![0.0; BLOCK];
        // SAFETY: rows of `BLOCK` values.
        unsafe {
            let (x, weight, out) = (x.as_ptr(), weight.as_ptr(), out.as_mut_ptr());
            isa.rms_norm(&Norm { x, weight, out, width: BLOCK, eps: 1e-5, add: false });
        }
        assert!(out.iter().all(|y: &f32| y.is_nan()), "{isa:?}: {out:?}");
    }
}

#[test]
fn norms_and_rotations_agree() {
    let mut random = Random(3);
    for _ in 0..40 {
        let width = 1 + random.below(200);
        let padded = width.next_multiple_of(BLOCK);
        let (mut x, mut weight) = (vec![0.0; padded], vec![0.0; padded]);
        x[..width].copy_from_slice(&random.floats(width));
        weight[..width].copy_from_slice(&random.floats(width));
        let half = 1 + random.below(40);
        let heads = 1 + random.below(4);
        let angles: Vec<f32> = random.floats(2 * half);
        let head_dim = 2 * half + random.below(3) * 5;
        let turned = random.floats(heads * head_dim);
        let results: Vec<_> = isas()
            .into_iter()
            .map(|isa| {
                let (mut out, mut added) = (vec![-1.0; padded], vec![0.5; padded]);
                let (to, eps) = (out.as_mut_ptr(), 1e-5);
                let mut turned = turned.clone();
                // SAFETY: rows of `padded` values; `heads` heads of `head_dim`, which is twice `half` or more.
                unsafe {
                    let norm = Norm { x: x.as_ptr(), weight: weight.as_ptr(), out: to, width, eps, add: false };
                    isa.rms_norm(&norm);
                    isa.rms_norm(&Norm { out: added.as_mut_ptr(), add: true, ..norm });
                    isa.rotate(&Rotate { x: turned.as_mut_ptr(), heads, head_dim, half, angles: angles.as_ptr() });
                }
                for (i, (out, added)) in out.iter().zip(&added).enumerate() {
                    let wanted = if i < width { 0.5 + out } else { 0.5 };
                    assert!(added.to_bits() == wanted.to_bits() && (i < width || *out == -1.0), "{isa:?}, {i}");
                }
                (out, turned)
            })
            .collect();
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
        for (out, rotated) in &results {
            assert_eq!((bits(out), bits(rotated)), (bits(&results[0].0), bits(&results[0].1)));
            for i in 0..width {
                let wanted = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                assert!((f64::from(out[i]) - wanted).abs() <= 1e-6 * wanted.abs().max(1e-3));
            }
            for (was, is) in turned.chunks_exact(head_dim).zip(rotated.chunks_exact(head_dim)) {
                let first = was[0] * angles[0] - was[half] * angles[half];
                assert_eq!(is[0].to_bits(), first.to_bits());
                assert_eq!(bits(&is[2 * half..]), bits(&was[2 * half..]), "what does not turn");
            }
        }
    }
}

#[test]
fn exponentials_are_near_and_end_well() {
    use super::lanes::Lanes;
    use super::portable::Portable;
    let exp = |x: f32| {
        // SAFETY: the portable path needs no instructions of its own.
        unsafe { super::rowwise::exp::<Portable>(Portable::splat(x))[0] }
    };
    for i in -8700..8800 {
        let x = i as f32 / 100.0;
        let wanted = libm::exp(f64::from(x));
        assert!((f64::from(exp(x)) - wanted).abs() < 2e-7 * wanted, "exp({x})");
    }
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(-0.0), 1.0);
    assert_eq!(exp(-88.0), 0.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert!(exp(f32::INFINITY) > 2e38 && exp(f32::INFINITY).is_finite());
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn hyperbolic_tangents_are_near_and_end_well() {
    use super::lanes::Lanes;
    use super::portable::Portable;
    // SAFETY: the portable path needs no instructions of its own.
    let tanh = |x: f32| unsafe { super::rowwise::tanh::<Portable>(Portable::splat(x))[0] };
    for i in -12_000..12_000 {
        let x = i as f32 / 1000.0;
        let wanted = libm::tanh(f64::from(x));
        assert!((f64::from(tanh(x)) - wanted).abs() <= 2e-7 * wanted.abs(), "tanh({x}) = {}", tanh(x));
    }
    for x in [1e4, 1e30, f32::INFINITY] {
        assert_eq!((tanh(x), tanh(-x)), (1.0, -1.0));
    }
    assert!(tanh(f32::NAN).is_nan());
}

#[test]
fn weights_are_quantised_as_gguf_does() {
    let mut bytes = [0; BLOCK];
    let weights: Vec<f32> = (0..32).map(|i| i as f32 - 20.0).collect();
    let scale = quantise_block(&weights, &mut bytes).unwrap();
    assert_eq!(scale, f16::from_f32(20.0 / 127.0));
    assert_eq!((bytes[0], bytes[20], bytes[31]), (-127, 0, 70));
    assert!(quantise_block(&[f32::NAN; 32], &mut bytes).is_none());
    assert!(quantise_block(&[1e30; 32], &mut bytes).is_none());
    // Too small for a binary16 scale: zero, as there.
    assert_eq!(quantise_block(&[1e-12; 32], &mut bytes).unwrap().to_f32(), 0.0);
    assert_eq!(quantise_block(&[0.0; 32], &mut bytes).unwrap().to_f32(), 0.0);
    assert_eq!(bytes, [0; BLOCK]);
}
