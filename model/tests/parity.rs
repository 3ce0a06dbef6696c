//! Logits against Hugging Face transformers; `fixtures/generate.py` made the fixtures.

mod common;

use cascadia_model::Dtype;
use common::{FIXTURES, engine, fixture, load, paths, rows_in_chunks};
use safetensors::SafeTensors;

/// Ids and logits that transformers gave.
fn expected(name: &str) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(fixture(name).join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = |key: &str| -> Vec<u32> {
        let data = tensors.tensor(key).unwrap();
        data.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    (words("ids"), words("logits").into_iter().map(f32::from_bits).collect())
}

#[test]
fn f32_logits_are_those_of_transformers() {
    for name in FIXTURES {
        let weights = load(&fixture(name), Dtype::F32);
        let (ids, logits) = expected(name);
        for path in paths() {
            let mut engine = engine(&weights, 1, Some(path));
            let rows = rows_in_chunks(&mut engine, &ids, &[ids.len()], 0);
            let ours = rows.iter().flatten().map(|&b| f32::from_bits(b));
            let worst = ours.zip(&logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert_eq!(rows.len() * rows[0].len(), logits.len());
            assert!(worst < 1e-4, "{name} on {path:?}: off by {worst}");
        }
    }
}

/// Not a promise of quality, but a guard against a wrong scale or a wrong block.
#[test]
fn q8_logits_stay_near() {
    for name in FIXTURES {
        let weights = load(&fixture(name), Dtype::Q8_0);
        let (ids, logits) = expected(name);
        let rows = rows_in_chunks(&mut engine(&weights, 1, None), &ids, &[ids.len()], 0);
        let ours = rows.iter().flatten().map(|&b| f64::from(f32::from_bits(b)));
        let (mut error, mut power) = (0.0, 0.0);
        for (a, &b) in ours.zip(&logits) {
            error += (a - f64::from(b)).powi(2);
            power += f64::from(b).powi(2);
        }
        let relative = (error / power).sqrt();
        assert!(relative < 0.1, "{name}: relative error {relative}");
    }
}
