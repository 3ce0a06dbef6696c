//! The kernels of `cuda/attention.cu`, run by a processor that emulates a card, against the plain way. It says that their
//! indices, windows, caps, groups and sums are right, and nothing of how a real card orders memory.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use candle_core::{DType, Device, Result, Tensor};
use cascadia_core::engine::Chunk;
use cascadia_core::ids::PageId;

use super::{Attention, Prepared, SPLIT, Shape};
use crate::plan::Plan;

/// Pages of the cache; no multiple of seven.
const PAGES: usize = 60;

/// Numbers that look random, around zero.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 2.0
    };
    (0..count).map(|_| next()).collect()
}

/// The emulator, if there is a C++ compiler to make it with.
fn emulator() -> Option<PathBuf> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/emulate.cpp");
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/cascadia-emulate");
    let program = program.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(program.parent()?).expect("a folder");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    match Command::new(&compiler).args(["-std=c++17", "-O2", "-o"]).arg(&program).arg(source).status() {
        Ok(status) => {
            assert!(status.success(), "{compiler} does not compile {source}");
            Some(program)
        }
        Err(error) => {
            eprintln!("SKIPPED: the kernels are not emulated, because there is no C++ compiler `{compiler}` ({error})");
            None
        }
    }
}

fn bytes<T, const N: usize>(values: &[T], of: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(of).collect()
}

/// One problem in both ways; the largest difference.
fn difference(program: &PathBuf, shape: Shape, window: Option<usize>, dtype: DType) -> Result<f32> {
    let Shape { heads, kv_heads, head_dim, .. } = shape;
    // A long history, one across the border of two parts, a verification, a first token: pages in no order.
    let (ends, counts) = ([2 * SPLIT + 75, SPLIT + 3, 41, 1], [1, 5, 8, 1]);
    let page = |i: usize| PageId(i as u32 * 7 % PAGES as u32);
    let tables = [0..37, 37..54, 54..57, 57..58].map(|pages| pages.map(page).collect::<Vec<_>>());
    let tokens = [0; 8];
    let chunk =
        |s: usize| Chunk { start: ends[s] - counts[s], tokens: &tokens[..counts[s]], pages: &tables[s], rows: 0 };
    let plan = Plan::new(&[0, 1, 2, 3].map(chunk));
    let (rows, slots, width) = (plan.tokens.len(), PAGES * 16, 2 * kv_heads * head_dim);
    // What nobody may see is not a number.
    let mut cached = vec![f32::NAN; slots * width];
    for (table, end) in tables.iter().zip(ends) {
        for position in 0..end {
            let slot = table[position / 16].index() * 16 + position % 16;
            cached[slot * width..][..width].copy_from_slice(&numbers(width, slot as u64));
        }
    }
    let cpu = Device::Cpu;
    let cache = Tensor::from_vec(cached, (slots, width), &cpu)?.to_dtype(dtype)?;
    let queries = Tensor::from_vec(numbers(rows * heads * head_dim, 99), (rows, heads, head_dim), &cpu)?;
    // In `f32`, so that only the kernel is in question.
    let wide = cache.to_dtype(DType::F32)?;
    let wanted = Prepared::new(Attention::Plain, &plan, window, &cpu)?.attend(shape, &queries, &wide)?;

    let paged = plan.paged(window);
    let splits = paged.longest.div_ceil(SPLIT);
    let kind = [DType::F32, DType::F16, DType::BF16].iter().position(|&d| d == dtype).expect("one of them");
    let kernel = [64, 128, 256].into_iter().find(|&width| head_dim <= width).expect("a kernel");
    let head = [kind, kernel, rows, heads, kv_heads, head_dim, splits, slots, paged.rows_and_pages.len()];
    let mut input = bytes(&head, |&x| (x as u32).to_le_bytes());
    input.extend(bytes(&[shape.scale, shape.cap.unwrap_or(0.0)], |x| x.to_le_bytes()));
    input.extend(bytes(&queries.flatten_all()?.to_vec1::<f32>()?, |x| x.to_le_bytes()));
    let cache = cache.flatten_all()?;
    match dtype {
        DType::F32 => input.extend(bytes(&cache.to_vec1::<f32>()?, |x| x.to_le_bytes())),
        DType::F16 => input.extend(bytes(&cache.to_vec1::<half::f16>()?, |x| x.to_le_bytes())),
        _ => input.extend(bytes(&cache.to_vec1::<half::bf16>()?, |x| x.to_le_bytes())),
    }
    input.extend(bytes(&paged.rows_and_pages, |x| x.to_le_bytes()));
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().expect("a pipe");
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    assert!(output.status.success(), "the emulator ended with {}", output.status);
    feeding.join().expect("no panic")?;

    let wanted = wanted.flatten_all()?.to_vec1::<f32>()?;
    let found = output.stdout.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    assert_eq!(output.stdout.len(), 4 * wanted.len());
    let off = found.zip(&wanted).map(|(a, b)| (a - b).abs());
    // `max` would pass over what is no number.
    Ok(off.fold(0.0, |most, off| if off > most || off.is_nan() { off } else { most }))
}

#[test]
fn the_kernels_agree_with_the_plain_way() {
    let Some(program) = emulator() else { return };
    let shape = |heads, kv_heads, head_dim, cap| Shape {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        cap,
    };
    for (shape, window, dtype) in [
        (shape(4, 2, 64, None), None, DType::F32),
        // Seven heads share a key head: two parts of a group, one not full; a head that no kernel's width is.
        (shape(7, 1, 80, None), Some(100), DType::BF16),
        (shape(4, 4, 256, Some(3.0)), Some(300), DType::F16),
        (shape(8, 2, 128, Some(3.0)), None, DType::BF16),
        (shape(2, 1, 8, None), Some(1), DType::F32),
    ] {
        let off = difference(&program, shape, window, dtype).expect("both run");
        assert!(off < 2e-5, "{shape:?}, window {window:?}, {dtype:?}: off by {off}");
    }
    std::fs::remove_file(program).expect("it was made here");
}
