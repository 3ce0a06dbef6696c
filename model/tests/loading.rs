//! What is wrong with a folder is said in one sentence that names it.

mod common;

use std::path::Path;

use cascadia_model::{Config, CpuEngine, Dtype, EngineOptions, LoadError, RopeScaling, Weights};
use common::{copy_of, fixture, load, set};
use serde_json::{Value, json};

fn fails(folder: &Path) -> LoadError {
    Weights::load(folder, Dtype::Q8_0, &mut |_| {}).expect_err("the folder is damaged")
}

#[test]
fn every_fault_of_a_configuration_is_named() {
    let folder = copy_of("grouped", "config-faults");
    let original = std::fs::read(folder.join("config.json")).unwrap();
    let cases = [
        ("architectures", json!(["MixtralForCausalLM"]), "MixtralForCausalLM"),
        ("architectures", Value::Null, "LlamaForCausalLM"),
        ("hidden_act", json!("gelu"), "hidden_act"),
        ("attention_bias", json!(true), "q_proj.bias"),
        ("mlp_bias", json!(true), "mlp_bias"),
        ("sliding_window", json!(64), "sliding_window"),
        ("final_logit_softcapping", json!(30.0), "final_logit_softcapping"),
        ("logits_scaling", json!(2.0), "logits_scaling"),
        ("quantization_config", json!({"bits": 4}), "quantization_config"),
        ("rope_parameters", json!({"rope_type": "yarn"}), "yarn"),
        ("rope_parameters", json!({"rope_type": "llama3", "factor": 8.0}), "low_freq_factor"),
        ("hidden_size", Value::Null, "hidden_size"),
        ("hidden_size", json!(-4), "hidden_size"),
        ("hidden_size", json!(32), "shape"),
        ("head_dim", json!(15), "head_dim"),
        ("num_key_value_heads", json!(3), "num_key_value_heads"),
        ("num_hidden_layers", json!(1), "model.layers.1"),
        ("num_hidden_layers", json!(3), "model.layers.2"),
        ("tie_word_embeddings", json!("yes"), "tie_word_embeddings"),
        ("rms_norm_eps", json!("small"), "rms_norm_eps"),
        ("vocab_size", json!(97), "embed_tokens"),
    ];
    for (key, value, named) in cases {
        set(&folder, key, value.clone());
        let error = fails(&folder).to_string();
        assert!(error.contains(named), "{key} = {value}: {error}");
        assert!(!error.contains('\n'), "{error}");
        std::fs::write(folder.join("config.json"), &original).unwrap();
    }
    std::fs::write(folder.join("config.json"), "{").unwrap();
    assert!(matches!(fails(&folder), LoadError::Json { .. }));
    std::fs::write(folder.join("config.json"), &original).unwrap();
    std::fs::write(folder.join("generation_config.json"), r#"{"eos_token_id": 960}"#).unwrap();
    assert!(fails(&folder).to_string().contains("outside the vocabulary"));
}

#[test]
fn every_fault_of_the_weights_is_named() {
    let folder = copy_of("grouped", "weight-faults");
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    for length in [0, 5, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&weights, &bytes[..length]).unwrap();
        let error = fails(&folder);
        assert!(matches!(error, LoadError::Damaged { .. } | LoadError::Read { .. }), "{length} bytes: {error}");
    }
    // The last weight becomes a NaN.
    let mut damaged = bytes.clone();
    let end = damaged.len();
    damaged[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, &damaged).unwrap();
    assert!(matches!(fails(&folder), LoadError::NotFinite { .. }));
    std::fs::remove_file(&weights).unwrap();
    assert!(matches!(fails(&folder), LoadError::NoWeights { .. }));
    std::fs::remove_file(folder.join("config.json")).unwrap();
    assert!(matches!(fails(&folder), LoadError::Read { .. }));
    assert!(matches!(fails(Path::new("/nowhere/at/all")), LoadError::Read { .. }));
}

#[test]
fn a_missing_shard_or_tensor_is_named() {
    let folder = copy_of("llama3_sharded", "shard-faults");
    let index = folder.join("model.safetensors.index.json");
    let original = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, original.replace("00002-of", "00009-of")).unwrap();
    assert!(fails(&folder).to_string().contains("00009-of"));
    std::fs::write(&index, original.replace("00002-of", "00001-of")).unwrap();
    assert!(matches!(fails(&folder), LoadError::Missing { .. }));
    std::fs::write(&index, "{}").unwrap();
    assert!(fails(&folder).to_string().contains("weight_map"));
}

#[test]
fn facts_and_fingerprints() {
    let (tied, sharded) = (fixture("tied_odd"), fixture("llama3_sharded"));
    let weights = load(&tied, Dtype::Q8_0);
    let stored = std::fs::metadata(tied.join("model.safetensors")).unwrap().len();
    // float16, the head not stored twice, and a header.
    assert!((1..6000).contains(&(stored as i64 - 2 * weights.parameters() as i64)));
    assert_eq!(weights.config().eos, [2]);
    let rope = load(&sharded, Dtype::F32).config().ropes[0].clone();
    assert!(matches!(rope.scaling, RopeScaling::Llama3 { original_context: 32, .. }) && rope.theta == 500_000.0);

    let print = |folder: &Path, dtype| load(folder, dtype).fingerprint().to_owned();
    assert_eq!(print(&tied, Dtype::Q8_0), weights.fingerprint());
    assert_ne!(print(&tied, Dtype::F32), weights.fingerprint());
    let copy = copy_of("tied_odd", "fingerprint");
    assert_eq!(print(&copy, Dtype::Q8_0), weights.fingerprint());
    set(&copy, "rms_norm_eps", json!(2e-5));
    assert_ne!(print(&copy, Dtype::Q8_0), weights.fingerprint());
    // Where a text ends is not arithmetic.
    drop(copy);
    let copy = copy_of("tied_odd", "fingerprint");
    std::fs::write(copy.join("generation_config.json"), r#"{"eos_token_id": [2, 7]}"#).unwrap();
    assert_eq!(load(&copy, Dtype::Q8_0).config().eos, [2, 7]);
    assert_eq!(print(&copy, Dtype::Q8_0), weights.fingerprint());
    // One bit of one weight is.
    let mut bytes = std::fs::read(copy.join("model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 2] ^= 1;
    std::fs::write(copy.join("model.safetensors"), bytes).unwrap();
    assert_ne!(print(&copy, Dtype::Q8_0), weights.fingerprint());
}

/// What is on the hub was written by older versions of transformers, with other keys and many left out.
#[test]
fn older_configurations_say_the_same() {
    /// A fixture, keys to set, keys to take away.
    type Older<'a> = (&'a str, &'a [(&'a str, Value)], &'a [&'a str]);
    let older: [Older<'_>; 6] = [
        ("mistral", &[("rope_theta", json!(10_000.0)), ("sliding_window", json!(20))], &["rope_parameters"]),
        (
            "qwen2",
            &[("rope_theta", json!(10_000.0)), ("sliding_window", json!(20)), ("use_sliding_window", json!(true))],
            &["rope_parameters", "layer_types"],
        ),
        ("qwen3", &[("rope_theta", json!(10_000.0))], &["rope_parameters", "layer_types"]),
        (
            "gemma2",
            &[("rope_theta", json!(10_000.0)), ("hidden_act", json!("gelu"))],
            &["rope_parameters", "layer_types", "tie_word_embeddings", "use_bidirectional_attention"],
        ),
        (
            "gemma3",
            &[
                ("rope_theta", json!(1_000_000.0)),
                ("rope_local_base_freq", json!(10_000.0)),
                ("rope_scaling", json!({"rope_type": "linear", "factor": 8.0})),
                ("sliding_window_pattern", json!(3)),
            ],
            &["rope_parameters", "layer_types", "tie_word_embeddings", "attn_logit_softcapping"],
        ),
        (
            "phi3",
            &[
                ("rope_theta", json!(10_000.0)),
                ("partial_rotary_factor", json!(0.75)),
                ("original_max_position_embeddings", json!(32)),
                (
                    "rope_scaling",
                    json!({
                        "type": "su",
                        "long_factor": [1.0, 1.3, 1.9, 2.5, 4.0, 7.0],
                        "short_factor": [1.0, 1.0, 1.05, 1.1, 1.2, 1.4],
                    }),
                ),
            ],
            &["rope_parameters"],
        ),
    ];
    for (name, keys, absent) in older {
        let folder = copy_of(name, "older");
        for key in absent {
            set(&folder, key, Value::Null);
        }
        for (key, value) in keys {
            set(&folder, key, value.clone());
        }
        // Null says "none" to some keys; older files do not have them at all.
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().retain(|key, _| !absent.contains(&key.as_str()));
        std::fs::write(path, config.to_string()).unwrap();
        assert_eq!(Config::read(&folder).unwrap(), Config::read(&fixture(name)).unwrap(), "{name}");
    }
}

#[test]
fn progress_reaches_its_total() {
    let mut last = (0, 1);
    Weights::load(&fixture("grouped"), Dtype::Q8_0, &mut |p| {
        assert!(p.done >= last.0 && p.done <= p.total && !p.stage.is_empty());
        last = (p.done, p.total);
    })
    .unwrap();
    assert_eq!(last.0, last.1);
}

#[test]
fn an_engine_needs_pages_and_threads() {
    let weights = load(&fixture("grouped"), Dtype::F32);
    for (pages, threads) in [(0, 1), (1, 0), (usize::MAX / 2, 1)] {
        let options = EngineOptions { pages, threads, ..EngineOptions::default() };
        assert!(CpuEngine::new(weights.clone(), options).is_err());
    }
}
