//! Logits against Hugging Face transformers; `fixtures/generate.py` made the fixtures.

mod common;

use std::path::Path;

use cascadia_model::{Dtype, LoadOptions, Weights};
use common::{FIXTURES, GGUFS, copy_of, engine, expected, fixture, load, paths, ragged_parity, rows_in_chunks, set};
use serde_json::{Value, json};

/// The largest difference between the rows of a folder's model and what transformers gave for `name`.
fn difference(folder: &Path, name: &str) -> f32 {
    let weights = load(folder, Dtype::F32);
    let (ids, logits) = expected(name, "logits");
    let rows = rows_in_chunks(&mut engine(&weights, 1, None), &ids, &[ids.len()], 0);
    rows.iter().flatten().zip(&logits).map(|(&a, b)| (f32::from_bits(a) - b).abs()).fold(0.0, f32::max)
}

#[test]
fn f32_logits_are_those_of_transformers() {
    for name in FIXTURES.into_iter().chain(GGUFS) {
        let weights = load(&fixture(name), Dtype::F32);
        let (ids, logits) = expected(name, "logits");
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
fn quantised_logits_stay_near() {
    for (name, dtype, most) in FIXTURES
        .into_iter()
        .flat_map(|name| [(name, Dtype::Q8_0, 0.1), (name, Dtype::Q4K, 0.5)])
        .chain(GGUFS.into_iter().map(|name| (name, Dtype::Q8_0, 0.1)))
    {
        let weights = load(&fixture(name), dtype);
        let (ids, logits) = expected(name, "logits");
        let rows = rows_in_chunks(&mut engine(&weights, 1, None), &ids, &[ids.len()], 0);
        let ours = rows.iter().flatten().map(|&b| f64::from(f32::from_bits(b)));
        let (mut error, mut power) = (0.0, 0.0);
        for (a, &b) in ours.zip(&logits) {
            error += (a - f64::from(b)).powi(2);
            power += f64::from(b).powi(2);
        }
        let relative = (error / power).sqrt();
        assert!(relative < most, "{name} as {dtype}: relative error {relative}");
    }
}

#[test]
fn ragged_batches_and_truncation_keep_parity() {
    for name in FIXTURES {
        ragged_parity(name, &mut engine(&load(&fixture(name), Dtype::F32), 2, None));
    }
}

/// Every switch of every family is one that these fixtures would notice.
#[test]
fn each_switch_matters() {
    let full = json!({"rope_type": "default", "rope_theta": 1_000_000.0});
    let slow = json!({"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0});
    let ropes = |full: &Value, theta: f64| json!({"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": theta}});
    let cases = [
        ("mistral", "sliding_window", Value::Null),
        ("mistral", "sliding_window", json!(21)),
        ("qwen2", "layer_types", json!(["full_attention", "full_attention"])),
        ("gemma2", "attn_logit_softcapping", Value::Null),
        ("gemma2", "final_logit_softcapping", Value::Null),
        ("gemma2", "query_pre_attn_scalar", json!(16)),
        ("gemma2", "hidden_activation", json!("silu")),
        (
            "gemma3",
            "layer_types",
            json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]),
        ),
        ("gemma3", "rope_parameters", ropes(&full, 10_000.0)),
        ("gemma3", "rope_parameters", ropes(&slow, 20_000.0)),
        ("phi3", "sliding_window", json!(41)),
        ("phi3", "max_position_embeddings", json!(256)),
    ];
    for (name, key, value) in cases {
        let folder = copy_of(name, "switches");
        set(&folder, key, value.clone());
        let off = difference(&folder, name);
        assert!(off > 1e-3, "{name} with {key} = {value} is off by {off} only");
    }
}

/// Below its original context a long-rope model takes the short factors, as transformers does, if it is never asked for more.
#[test]
fn a_short_context_takes_the_short_factors() {
    let (ids, logits) = expected("phi3", "short_logits");
    let options = LoadOptions { dtype: Dtype::F32, context: Some(32) };
    let weights = Weights::load(&fixture("phi3"), options, &mut |_| {}).unwrap();
    let rows = rows_in_chunks(&mut engine(&weights, 1, None), &ids[..32], &[32], 0);
    let ours = rows.iter().flatten().map(|&b| f32::from_bits(b));
    let worst = ours.zip(&logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(rows.len() == 32 && worst < 1e-4, "off by {worst}");
    assert_ne!(weights.fingerprint(), load(&fixture("phi3"), Dtype::F32).fingerprint());
}

/// The text part of an image model: keys in `text_config`, other names, and towers that are left out.
#[test]
fn the_text_part_of_an_image_model_is_found() {
    let folder = copy_of("gemma3", "image-model");
    let path = folder.join("config.json");
    let text: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let outer =
        json!({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "eos_token_id": [2, 3]});
    std::fs::write(path, outer.to_string()).unwrap();
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let image = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
    let renamed = tensors.tensors().into_iter().map(|(name, view)| (format!("language_model.{name}"), view));
    let all = renamed.chain([("vision_tower.patch.weight".to_owned(), image)]);
    std::fs::write(&weights, safetensors::serialize(all, None).unwrap()).unwrap();
    assert!(difference(&folder, "gemma3") < 1e-4);
}
