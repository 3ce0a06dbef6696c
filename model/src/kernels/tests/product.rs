//! Products of every format, and what they do with their results.

use std::path::Path;

use half::f16;

use super::{Random, bits, isas, plain_quantise, quantise};
use crate::arena::Arena;
use crate::checkpoint::{Stored, Tensor};
use crate::config::Activation;
use crate::kernels::product::{Product, Then};
use crate::matrix::{Format, Matrix, RowSource, TILE};
use crate::quant::{BLOCK, Block, Packing, quantise_block, quantise_four_bits};

/// The definition of a product: one chain an output; `weights` is one row of `inputs`.
fn plain_product(row: &Tensor<'_>, index: usize, x: &[f32], format: Format) -> f32 {
    let mut weights = vec![0.0; x.len()];
    row.row(index, &mut weights).unwrap();
    let mut sum = 0.0_f32;
    // 32 activations as bytes, their scale, and the weights beside them.
    let padded = x.len().next_multiple_of(BLOCK);
    let mut x32 = x.to_vec();
    x32.resize(padded, 0.0);
    weights.resize(padded, 0.0);
    match format {
        Format::F32 => weights.iter().zip(x).for_each(|(w, x)| sum = w.mul_add(*x, sum)),
        Format::Q8_0 => {
            for (w, x) in weights.chunks(BLOCK).zip(x32.chunks(BLOCK)) {
                let mut q = [0; BLOCK];
                let w_scale = quantise_block(w, &mut q).unwrap().to_f32();
                let (xq, x_scale) = plain_quantise(x);
                let dot: i32 = q.iter().zip(&xq).map(|(&w, &x)| i32::from(w) * x).sum();
                sum = (dot as f32).mul_add(w_scale * x_scale, sum);
            }
        }
        Format::Packed(packing) => {
            for (at, x) in x32.chunks(packing.weights()).enumerate() {
                let block = if row.stored == Stored::Packed(packing) {
                    row.packed(index, at).unwrap()
                } else {
                    let from = at * packing.weights();
                    quantise_four_bits(&weights[from..padded.min(from + packing.weights())]).unwrap()
                };
                for (b, x) in x.chunks(BLOCK).enumerate() {
                    sum = plain_packed(packing, &block, b, x, sum);
                }
            }
        }
    }
    sum + 0.0
}

/// The definition for 32 weights of a packed block.
fn plain_packed(packing: Packing, block: &Block, b: usize, x: &[f32], sum: f32) -> f32 {
    let (x, x_scale) = plain_quantise(x);
    let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
    let dot = |range: std::ops::Range<usize>, less: i32| -> i32 {
        range.map(|i| (i32::from(block.q[b * BLOCK + i]) - less) * x[i]).sum()
    };
    match packing {
        Packing::Q4_0 => (dot(0..32, 8) as f32).mul_add(d * x_scale, sum),
        Packing::Q4K | Packing::Q5K => {
            let scale = d * f32::from(block.scales[b]);
            let sum = (dot(0..32, 0) as f32).mul_add(scale * x_scale, sum);
            let minimum = dmin * f32::from(block.minima[b]);
            minimum.mul_add(-(x.iter().sum::<i32>() as f32 * x_scale), sum)
        }
        Packing::Q6K => {
            let [first, second] = [0, 1].map(|half| i32::from(block.scales[2 * b + half]));
            let both = first * dot(0..16, 32) + second * dot(16..32, 32);
            (both as f32).mul_add(d * x_scale, sum)
        }
    }
}

/// Random bytes of `rows` packed rows, with scales that are numbers.
fn packed_bytes(random: &mut Random, packing: Packing, blocks: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..blocks * packing.bytes()).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(packing.bytes()) {
        let scales: &[usize] = match packing {
            Packing::Q4_0 => &[0],
            Packing::Q4K | Packing::Q5K => &[0, 2],
            Packing::Q6K => &[208],
        };
        for &at in scales {
            block[at..at + 2].copy_from_slice(&f16::from_f32(random.float() * 0.02).to_le_bytes());
        }
    }
    bytes
}

#[test]
fn products_are_the_plain_loop() {
    let mut random = Random(1);
    for case in 0..60 {
        let (outputs, rows) = (1 + random.below(90), 1 + random.below(19));
        let inputs = if case % 2 == 0 { 1 + random.below(150) } else { 256 * (1 + random.below(2)) };
        let floats: Vec<u8> = random.floats(outputs * inputs).iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut held = vec![
            (Stored::F32, floats.clone(), Format::F32),
            (Stored::F32, floats.clone(), Format::Q8_0),
            (Stored::F32, floats, Format::Packed(Packing::Q4K)),
        ];
        for packing in [Packing::Q4_0, Packing::Q4K, Packing::Q5K, Packing::Q6K] {
            if inputs.is_multiple_of(packing.weights()) {
                let bytes = packed_bytes(&mut random, packing, outputs * inputs / packing.weights());
                held.push((Stored::Packed(packing), bytes, Format::Packed(packing)));
            }
        }
        let padded = inputs.next_multiple_of(BLOCK);
        let mut x = vec![0.0; rows * padded];
        for row in x.chunks_exact_mut(padded) {
            row[..inputs].copy_from_slice(&random.floats(inputs));
        }
        for (stored, bytes, format) in held {
            let tensor = Tensor {
                path: Path::new(""),
                name: String::new(),
                shape: vec![outputs, inputs],
                stored,
                bytes: &bytes,
            };
            let mut arena = Arena::new(Matrix::bytes(outputs, inputs, format)).unwrap();
            let place = (tensor.path, "");
            let matrix =
                Matrix::pack(&mut arena, place, (outputs, inputs), format, &|row| Some((&tensor, row))).unwrap();
            let product = |x: &[f32], row| plain_product(&tensor, row, &x[..inputs], format);
            let wanted: Vec<f32> =
                x.chunks_exact(padded).flat_map(|x| (0..outputs).map(move |row| product(x, row))).collect();
            if matches!(stored, Stored::Packed(_)) {
                let (mut ours, mut theirs) = (vec![0.0; inputs], vec![0.0; inputs]);
                for row in 0..outputs {
                    matrix.row(row, &mut ours);
                    tensor.row(row, &mut theirs).unwrap();
                    assert_eq!(bits(&ours), bits(&theirs), "row {row} of {format:?}");
                }
            }
            for isa in isas() {
                let q = quantise(isa, &x);
                let activations = q.activations(&x, padded);
                let tiles = matrix.tiles();
                // Whole, and in two parts that share no tile.
                for middle in [0, tiles / 2] {
                    let mut out = vec![f32::NAN; rows * outputs];
                    for part in [(0, middle), (middle, tiles)] {
                        let then = Then::Store;
                        let (out, out_stride) = (out.as_mut_ptr(), outputs);
                        let p = Product { matrix: &matrix, x: activations, rows, out, out_stride, tiles: part, then };
                        // SAFETY: `rows` rows of the matrix's inputs, and of its outputs.
                        unsafe { isa.multiply(&p) };
                    }
                    assert_eq!(
                        bits(&out),
                        bits(&wanted),
                        "case {case}: {outputs} x {inputs}, {rows} rows, {format:?} {isa:?}"
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
                unsafe { isa.multiply(&p) };
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
fn gates_let_through_what_they_should() {
    let mut random = Random(5);
    for case in 0..12 {
        let (inner, inputs, rows) = (1 + random.below(70), 1 + random.below(70), 1 + random.below(9));
        let stride = inner.next_multiple_of(BLOCK);
        let padded = inputs.next_multiple_of(BLOCK);
        let activation = [Activation::Silu, Activation::GeluTanh][case % 2];
        let mut x = vec![0.0; rows * padded];
        for row in x.chunks_exact_mut(padded) {
            row[..inputs].copy_from_slice(&random.floats(inputs));
        }
        let bytes: [Vec<u8>; 2] =
            [(); 2].map(|()| random.floats(inner * inputs).iter().flat_map(|w| w.to_le_bytes()).collect());
        let [gate, up] = [&bytes[0], &bytes[1]].map(|bytes| Tensor {
            path: Path::new(""),
            name: String::new(),
            shape: vec![inner, inputs],
            stored: Stored::F32,
            bytes,
        });
        for format in [Format::F32, Format::Q8_0, Format::Packed(Packing::Q4K)] {
            let size = Matrix::bytes(2 * stride, inputs, format) + 2 * Matrix::bytes(inner, inputs, format);
            let mut arena = Arena::new(size).unwrap();
            let mut pack = |outputs, rows: &RowSource<'_, '_>| {
                Matrix::pack(&mut arena, (Path::new(""), ""), (outputs, inputs), format, rows).unwrap()
            };
            let by_turns = pack(2 * stride, &|row| {
                let (tile, output) = (row / TILE, row / TILE / 2 * TILE + row % TILE);
                (output < inner).then_some((if tile % 2 == 0 { &gate } else { &up }, output))
            });
            let apart = [pack(inner, &|row| Some((&gate, row))), pack(inner, &|row| Some((&up, row)))];
            let open = |g: f64| match activation {
                Activation::Silu => g / (1.0 + (-g).exp()),
                Activation::GeluTanh => 0.5 * g * (1.0 + (0.797_884_560_8 * (g + 0.044_715 * g.powi(3))).tanh()),
            };
            for isa in isas() {
                let q = quantise(isa, &x);
                let activations = q.activations(&x, padded);
                let run = |matrix: &Matrix, out: &mut [f32], then: Then| {
                    let (out, tiles) = (out.as_mut_ptr(), (0, matrix.tiles()));
                    let p = Product { matrix, x: activations, rows, out, out_stride: stride, tiles, then };
                    // SAFETY: `rows` rows of the matrix's inputs, and rows of `stride` for what it gives.
                    unsafe { isa.multiply(&p) };
                };
                let (mut one, mut two) = (vec![0.0; rows * stride], vec![0.0; rows * stride]);
                run(&by_turns, &mut one, Then::Gate(activation));
                run(&apart[0], &mut two, Then::Store);
                run(&apart[1], &mut two, Then::Through(activation));
                assert_eq!(bits(&one), bits(&two), "case {case}, {format:?} {isa:?}");
                for (row, x) in x.chunks_exact(padded).enumerate() {
                    for i in 0..inner {
                        let [g, u] = [&gate, &up].map(|t| f64::from(plain_product(t, i, &x[..inputs], format)));
                        let (wanted, found) = (open(g) * u, f64::from(one[row * stride + i]));
                        assert!((found - wanted).abs() <= 2e-6 * wanted.abs().max(u.abs() * 0.1), "{found}, {wanted}");
                    }
                }
            }
        }
    }
}

/// Four bits lose about a fourteenth of what random weights vary; rounding to the range of each block loses more.
#[test]
fn four_bits_keep_what_they_can() {
    let mut random = Random(6);
    let (mut error, mut naive, mut power) = (0.0_f64, 0.0_f64, 0.0_f64);
    for _ in 0..40 {
        let weights: Vec<f32> =
            (0..256).map(|_| (0..4).map(|_| random.next() as u32 as f32 / u32::MAX as f32 - 0.5).sum()).collect();
        let block = quantise_four_bits(&weights).unwrap();
        let mut back = vec![0.0; 256];
        Packing::Q4K.widen(&block, &mut back);
        for (w, b) in weights.chunks(32).zip(back.chunks(32)) {
            let (low, high) = w.iter().fold((0.0_f32, 0.0_f32), |(l, h), w| (l.min(*w), h.max(*w)));
            for (w, b) in w.iter().zip(b) {
                let step = (high - low) / 15.0;
                let plain = ((w - low) / step).round() * step + low;
                error += f64::from(w - b).powi(2);
                naive += f64::from(w - plain).powi(2);
                power += f64::from(*w).powi(2);
            }
        }
    }
    assert!(
        (error / power).sqrt() < 0.08 && error < naive,
        "{} and {}",
        (error / power).sqrt(),
        (naive / power).sqrt()
    );
    assert!(quantise_four_bits(&[f32::NAN]).is_none() && quantise_four_bits(&[1e30]).is_none());
    for constant in [0.0, 2.0, -2.0] {
        let mut back = [9.0; 40];
        Packing::Q4K.widen(&quantise_four_bits(&[constant; 40]).unwrap(), &mut back);
        // Scales have six bits: half a step is nearly a hundredth.
        assert!(back.iter().all(|b| (b - constant).abs() <= constant.abs() / 100.0), "{constant}: {back:?}");
    }
}
