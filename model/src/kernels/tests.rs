//! Every kernel on every instruction set of this CPU against a plain loop, bit for bit.

use std::path::Path;

use cascadia_core::ids::PageId;
use half::f16;

use super::attention::{Attend, Query};
use super::product::{Activations, Product, Then};
use super::rowwise::{Norm, Quantise, Rotate};
use super::{Isa, SimdPath};
use crate::arena::Arena;
use crate::kv::PAGE;
use crate::matrix::{Matrix, TILE};
use crate::quant::{BLOCK, Dtype, quantise_block};

/// All that this CPU has, the ones that no option chooses among them.
fn isas() -> Vec<Isa> {
    #[allow(unused_mut)]
    let mut isas: Vec<Isa> = SimdPath::ALL.into_iter().filter_map(Isa::of).collect();
    #[cfg(target_arch = "x86_64")]
    if isas.contains(&Isa::Avx512Vnni) {
        isas.push(Isa::Avx512);
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

/// The definition of a product: one chain an output.
fn plain_product(weights: &[f32], x: &[f32], inputs: usize, dtype: Dtype) -> Vec<f32> {
    weights
        .chunks_exact(inputs)
        .map(|w| {
            let mut sum = 0.0_f32;
            match dtype {
                Dtype::F32 => w.iter().zip(x).for_each(|(w, x)| sum = w.mul_add(*x, sum)),
                Dtype::Q8_0 => {
                    for (w, x) in w.chunks(BLOCK).zip(x.chunks(BLOCK)) {
                        let (mut w32, mut x32, mut q) = ([0.0; BLOCK], [0.0; BLOCK], [0; BLOCK]);
                        w32[..w.len()].copy_from_slice(w);
                        x32[..x.len()].copy_from_slice(x);
                        let w_scale = quantise_block(&w32, &mut q).unwrap().to_f32();
                        let (xq, x_scale) = plain_quantise(&x32);
                        let dot: i32 = q.iter().zip(&xq).map(|(&w, &x)| i32::from(w) * x).sum();
                        sum = (dot as f32).mul_add(w_scale * x_scale, sum);
                    }
                }
            }
            sum + 0.0
        })
        .collect()
}

struct Quantised {
    bytes: Vec<i8>,
    scales: Vec<f32>,
    offsets: Vec<i32>,
}

fn quantise(isa: Isa, x: &[f32]) -> Quantised {
    let blocks = x.len() / BLOCK;
    let mut q = Quantised { bytes: vec![1; x.len()], scales: vec![1.0; blocks], offsets: vec![1; blocks] };
    let (bytes, scales, offsets) = (q.bytes.as_mut_ptr(), q.scales.as_mut_ptr(), q.offsets.as_mut_ptr());
    // SAFETY: buffers of `blocks` blocks.
    unsafe { isa.quantise(&Quantise { x: x.as_ptr(), bytes, scales, offsets, blocks }) };
    q
}

#[test]
fn products_are_the_plain_loop() {
    let mut random = Random(1);
    for case in 0..60 {
        let (outputs, inputs, rows) = (1 + random.below(90), 1 + random.below(150), 1 + random.below(19));
        let weights = random.floats(outputs * inputs);
        let padded = inputs.next_multiple_of(BLOCK);
        let mut x = vec![0.0; rows * padded];
        for row in x.chunks_exact_mut(padded) {
            row[..inputs].copy_from_slice(&random.floats(inputs));
        }
        for dtype in [Dtype::F32, Dtype::Q8_0] {
            let mut arena = Arena::new(Matrix::bytes(outputs, inputs, dtype)).unwrap();
            let matrix = Matrix::pack(&mut arena, (Path::new(""), ""), (outputs, inputs), dtype, &mut |row, to| {
                to.copy_from_slice(&weights[row * inputs..(row + 1) * inputs]);
                Ok(())
            })
            .unwrap();
            let wanted: Vec<f32> =
                x.chunks_exact(padded).flat_map(|x| plain_product(&weights, &x[..inputs], inputs, dtype)).collect();
            for isa in isas() {
                let q = quantise(isa, &x);
                let activations = Activations {
                    floats: x.as_ptr(),
                    stride: padded,
                    bytes: q.bytes.as_ptr(),
                    scales: q.scales.as_ptr(),
                    offsets: q.offsets.as_ptr(),
                };
                let tiles = matrix.tiles();
                // Whole, and in two parts that share no tile.
                for middle in [0, tiles / 2] {
                    let mut out = vec![f32::NAN; rows * outputs];
                    for part in [(0, middle), (middle, tiles)] {
                        let then = Then::Store;
                        let (out, out_stride) = (out.as_mut_ptr(), outputs);
                        let p = Product { matrix: &matrix, x: activations, rows, out, out_stride, tiles: part, then };
                        // SAFETY: `rows` rows of the matrix's inputs, and of its outputs.
                        unsafe { isa.product(&p) };
                    }
                    assert_eq!(
                        bits(&out),
                        bits(&wanted),
                        "case {case}: {outputs} x {inputs}, {rows} rows, {dtype} {isa:?}"
                    );
                }
                // Added to what is there.
                let stride = tiles * TILE;
                let before = random.floats(rows * stride);
                let mut out = before.clone();
                let (tiles, then) = ((0, tiles), Then::Add);
                let (to, out_stride) = (out.as_mut_ptr(), stride);
                let p = Product { matrix: &matrix, x: activations, rows, out: to, out_stride, tiles, then };
                // SAFETY: as above, with room for whole tiles.
                unsafe { isa.product(&p) };
                for (row, (out, before)) in out.chunks_exact(stride).zip(before.chunks_exact(stride)).enumerate() {
                    for i in 0..outputs {
                        assert_eq!(out[i].to_bits(), (before[i] + wanted[row * outputs + i]).to_bits());
                    }
                }
            }
        }
    }
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
        }
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

/// One query over pages in disorder, whose unseen slots hold NaN, against `f64`; and the same bits however many
/// queries share the call, on every path; with and without a window and a cap.
#[test]
fn attention_sees_what_it_may_and_nothing_else() {
    let mut random = Random(4);
    for case in 0..30 {
        let head_dim = 2 * (1 + random.below(50));
        let width = head_dim.next_multiple_of(16);
        let length = 1 + random.below(120);
        let pages: Vec<PageId> = (0..length.div_ceil(PAGE)).rev().map(|p| PageId(p as u32)).collect();
        let stride = PAGE * (head_dim + width);
        let mut pool = vec![f32::NAN; pages.len() * stride];
        let (keys, values) = (random.floats(length * head_dim), random.floats(length * head_dim));
        let n = 1 + random.below(4.min(length));
        let window = [usize::MAX, 1 + random.below(length), 1 + random.below(4)][case % 3];
        let cap = [None, Some(1.5)][case % 2];
        let first = |last: usize| (last + 1).saturating_sub(window);
        // What is before all windows is never read.
        for position in first(length - n)..length {
            let (page, slot) = (pages[position / PAGE].index() * stride, position % PAGE);
            for d in 0..head_dim {
                pool[page + d * PAGE + slot] = keys[position * head_dim + d];
                pool[page + PAGE * head_dim + slot * width + d] = values[position * head_dim + d];
            }
        }
        let queries = random.floats(n * head_dim);
        let scale = (1.0 / (head_dim as f64).sqrt()) as f32;
        let run = |isa: Isa, which: std::ops::Range<usize>| {
            let mut out = vec![f32::NAN; n * head_dim];
            let to = out.as_mut_ptr();
            // SAFETY: rows of `n` queries.
            let each = |i: usize| unsafe {
                let (q, last) = (queries.as_ptr().add(i * head_dim), length - n + i);
                Query { q, out: to.add(i * head_dim), first: first(last), last }
            };
            let list: Vec<_> = which.map(each).collect();
            let mut scores = vec![0.0; list.len() * pages.len() * PAGE];
            // SAFETY: pages, scores and queries as their fields say.
            unsafe {
                isa.attend(&Attend {
                    queries: &list,
                    pages: &pages,
                    keys: pool.as_ptr(),
                    values: pool.as_ptr().add(PAGE * head_dim),
                    page_stride: stride,
                    head_dim,
                    scale,
                    cap,
                    scores: scores.as_mut_ptr(),
                    score_stride: pages.len() * PAGE,
                });
            }
            out
        };
        let together = run(Isa::Portable, 0..n);
        for isa in isas() {
            assert_eq!(bits(&run(isa, 0..n)), bits(&together), "case {case}, {isa:?}");
            for i in 0..n {
                let alone = &run(isa, i..i + 1)[i * head_dim..(i + 1) * head_dim];
                assert_eq!(bits(alone), bits(&together[i * head_dim..(i + 1) * head_dim]), "case {case}, {isa:?}");
            }
        }
        for i in 0..n {
            let dot = |p: usize| {
                let at = |d: usize| f64::from(queries[i * head_dim + d]) * f64::from(keys[p * head_dim + d]);
                let score = (0..head_dim).map(at).sum::<f64>() * f64::from(scale);
                cap.map_or(score, |cap| f64::from(cap) * libm::tanh(score / f64::from(cap)))
            };
            let from = first(length - n + i);
            let scores: Vec<f64> = (from..=length - n + i).map(dot).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            for d in 0..head_dim {
                let value = |p: usize| f64::from(values[(from + p) * head_dim + d]);
                let sum: f64 = weights.iter().enumerate().map(|(p, w)| w * value(p)).sum();
                let wanted = sum / weights.iter().sum::<f64>();
                let error = (f64::from(together[i * head_dim + d]) - wanted).abs();
                assert!(error < 2e-3 * wanted.abs().max(0.1), "case {case}: {error} of {wanted}");
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
