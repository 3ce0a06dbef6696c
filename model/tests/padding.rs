//! A padded model computes the same function, bit for bit.

mod common;

use std::path::Path;

use cascadia_gguf::Gguf;
use cascadia_model::{Dtype, LoadError, pad, write_gguf};
use common::{copy_of, empty_folder, engine, fixture, load, paths, rows_in_chunks, tokens};
use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

fn same_bits(original: &Path, padded: &Path) {
    for dtype in [Dtype::F32, Dtype::Q8_0] {
        let (small, large) = (load(original, dtype), load(padded, dtype));
        let ids = tokens(60, small.config().vocabulary, 5);
        for path in paths() {
            let rows = rows_in_chunks(&mut engine(&small, 1, Some(path)), &ids, &[60], 0);
            let padded = rows_in_chunks(&mut engine(&large, 2, Some(path)), &ids, &[9], 0);
            assert!(rows == padded, "{dtype} on {path:?}");
        }
    }
}

#[test]
fn the_padded_model_has_the_same_logits() {
    let original = fixture("grouped");
    let to = empty_folder("padded");
    std::fs::write(to.join("stale"), "").unwrap();
    let mut last = (0, 0);
    let report = pad(&original, 4_000_000, &to, &mut |p| last = (p.done, p.total)).unwrap();
    assert_eq!(last.0, last.1);
    assert_eq!((report.hidden, report.original), (256, 74_048));
    let config = load(&to, Dtype::F32).config().clone();
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.inner), (16, 8, 16, 1024));
    assert!(report.layers > 2 && report.parameters.abs_diff(4_000_000) < 600_000, "{report:?}");
    // Zeros are written, not left out.
    assert!(std::fs::metadata(to.join("model.safetensors")).unwrap().len() > 4 * report.parameters);
    assert!(to.join("generation_config.json").exists() && !to.join("model.safetensors.unfinished").exists());
    same_bits(&original, &to);
}

#[test]
fn half_precision_survives() {
    let wide = std::fs::read(fixture("grouped").join("model.safetensors")).unwrap();
    let wide = SafeTensors::deserialize(&wide).unwrap();
    for dtype in [safetensors::Dtype::F16, safetensors::Dtype::BF16] {
        let narrow = |b: &[u8]| {
            let x = f32::from_le_bytes(b.try_into().unwrap());
            let bits =
                if dtype == safetensors::Dtype::F16 { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() };
            bits.to_le_bytes()
        };
        let data: Vec<_> = wide
            .tensors()
            .into_iter()
            .map(|(name, t)| (name, t.shape().to_vec(), t.data().chunks_exact(4).flat_map(narrow).collect::<Vec<_>>()))
            .collect();
        let views = data.iter().map(|(n, s, d)| (n.as_str(), TensorView::new(dtype, s.clone(), d).unwrap()));
        let original = copy_of("grouped", &format!("{dtype:?}"));
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(original.join("model.safetensors"), bytes).unwrap();
        let to = empty_folder(&format!("padded-{dtype:?}"));
        let report = pad(&original, 3_000_000, &to, &mut |_| {}).unwrap();
        let stored = std::fs::metadata(to.join("model.safetensors")).unwrap().len();
        assert!(stored < 2 * report.parameters + 40_000, "{stored}");
        same_bits(&original, &to);
    }
}

/// Weights and logits of the file are those of the folder loaded as Q8_0, bit for bit; of the padded one too.
#[test]
fn a_gguf_file_is_the_folder_in_q8_0() {
    let original = fixture("grouped");
    let folder = empty_folder("padded-beside-gguf");
    pad(&original, 4_000_000, &folder, &mut |_| {}).unwrap();
    let files = empty_folder("gguf");
    let cases: [(Option<u64>, &Path); 2] = [(None, &original), (Some(4_000_000), &folder)];
    for (parameters, folder) in cases {
        let file = files.join(format!("{parameters:?}.gguf"));
        let mut last = (0, 0);
        let report = write_gguf(&original, parameters, &file, Vec::new(), &mut |p| last = (p.done, p.total)).unwrap();
        assert_eq!(last.0, last.1);
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!(report.bytes, bytes.len() as u64);
        let head = Gguf::read(&bytes).unwrap();
        assert!(head.tensors.values().all(|t| t.bytes.start % 32 == 0));
        let (from_file, from_folder) = (load(&file, Dtype::Q8_0), load(folder, Dtype::Q8_0));
        assert_eq!(from_file.parameters(), report.parameters);
        let ids = tokens(60, from_file.config().vocabulary, 5);
        let rows = |weights| rows_in_chunks(&mut engine(weights, 1, None), &ids, &[60], 0);
        assert!(rows(&from_file) == rows(&from_folder), "{parameters:?}");
    }
}

#[test]
fn what_a_gguf_file_cannot_hold_is_refused() {
    let to = empty_folder("gguf-refused").join("x.gguf");
    let error = write_gguf(&fixture("tied_odd"), None, &to, Vec::new(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, LoadError::Pad(_)) && error.to_string().contains("multiples of 32"), "{error}");
    assert!(!to.exists());
}

#[test]
fn what_cannot_be_padded_is_refused() {
    let to = empty_folder("refused");
    let says = |from: &Path, parameters, to: &Path| {
        let error = pad(from, parameters, to, &mut |_| {}).unwrap_err();
        assert!(matches!(error, LoadError::Pad(_)), "{error}");
        error.to_string()
    };
    assert!(says(&fixture("tied_odd"), 100_000_000, &to).contains("multiples of 32"));
    assert!(says(&fixture("grouped"), 100_000, &to).contains("smallest padding"));
    let model = copy_of("grouped", "itself");
    assert!(says(&model, 4_000_000, &model).contains("another folder"));
}
