//! Whatever is done to a model's files, loading answers with one sentence that names the file, and never panics, asks
//! for absurd memory, or gives a model that a pass dies of.

mod common;

use std::path::Path;

use cascadia_core::engine::{Chunk, Engine, Rows};
use cascadia_model::{Dtype, LoadError, Weights};
use common::{Folder, copy_of, empty_folder, engine, fixture, pages};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

/// Loads, and if that works runs a pass.
fn answers(path: &Path) {
    match Weights::load(path, Dtype::Q8_0, &mut |_| {}) {
        Err(error) => {
            let (error, name) = (error.to_string(), path.file_stem().unwrap().to_string_lossy().into_owned());
            assert!(!error.contains('\n') && (error.contains(&name) || error.contains("memory")), "{error}");
        }
        Ok(weights) => {
            let table = pages(0);
            let tokens = [1, 2, 3];
            let chunk = Chunk { start: 0, tokens: &tokens, pages: &table, rows: 3 };
            // A context or a vocabulary that became too small for it is refused, not died of.
            let _ = engine(&weights, 1, None).forward(&[chunk], &mut Rows::default());
        }
    }
}

fn file(name: &str, bytes: &[u8]) -> (Folder, std::path::PathBuf) {
    let folder = empty_folder(name);
    let path = folder.join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// A value that a key may have been damaged to.
fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0..70_u64).prop_map(Value::from),
        (20..30_u32).prop_map(|bits| Value::from(1_u64 << bits)),
        any::<f64>().prop_map(Value::from),
        select(vec!["silu", "linear", "yarn", "longrope", "", "full_attention"]).prop_map(Value::from),
        prop::collection::vec(0..9_u64, 0..4).prop_map(Value::from),
        Just(json!({"rope_type": "longrope", "long_factor": [1.0], "short_factor": []})),
        Just(json!({"rope_type": "llama3", "factor": -1.0})),
        Just(json!({"full_attention": {"rope_type": "linear", "factor": 0}})),
    ]
}

/// `PROPTEST_CASES` sets another number, for a longer search.
fn cases(usual: u32) -> ProptestConfig {
    let given = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { given } else { ProptestConfig { cases: usual, ..given } }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_damaged_configuration(
        name in select(vec!["grouped", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]),
        which in prop::collection::vec((any::<prop::sample::Index>(), values()), 1..3),
    ) {
        let folder = copy_of(name, "damaged-config");
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        for (index, value) in which {
            config[index.get(&keys)] = value;
        }
        std::fs::write(path, config.to_string()).unwrap();
        answers(&folder);
    }

    #[test]
    fn a_damaged_gguf_file(
        name in select(vec!["llama", "qwen2", "gemma3", "phi3"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        everywhere in any::<bool>(),
    ) {
        let mut bytes = std::fs::read(fixture(&format!("gguf/{name}.gguf"))).unwrap();
        // Mostly the head, which is the first few thousand bytes.
        let reach = if everywhere { bytes.len() } else { 3000 };
        for (index, byte) in changes {
            bytes[index.index(reach)] = byte;
        }
        let (_folder, path) = file("damaged-gguf", &bytes);
        answers(&path);
    }

    #[test]
    fn a_damaged_index(which in any::<prop::sample::Index>(), value in values(), cut in 0..4000_usize) {
        let folder = copy_of("llama3_sharded", "damaged-index");
        let path = folder.join("model.safetensors.index.json");
        let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let keys: Vec<String> = index["weight_map"].as_object().unwrap().keys().cloned().collect();
        index["weight_map"][which.get(&keys)] = value;
        let mut text = index.to_string();
        text.truncate(text.len() - cut.saturating_sub(3000));
        std::fs::write(&path, text).unwrap();
        answers(&folder);
    }

    #[test]
    fn a_damaged_safetensors_file(
        changes in prop::collection::vec((0..2000_usize, any::<u8>()), 1..4),
        cut in 0..40_000_usize,
    ) {
        let folder = copy_of("qwen3", "damaged-weights");
        let path = folder.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut.saturating_sub(30_000));
        std::fs::write(&path, bytes).unwrap();
        answers(&folder);
    }
}

#[test]
fn a_path_that_is_not_quite_the_model_is_told_apart() {
    let folder = copy_of("qwen3", "part-of-a-folder");
    let error = Weights::load(&folder.join("model.safetensors"), Dtype::Q8_0, &mut |_| {}).unwrap_err();
    assert!(matches!(error, LoadError::PartOfFolder { .. }), "{error}");
    let (folder, _) = file("folder-of-files", &std::fs::read(fixture("gguf/qwen3.gguf")).unwrap());
    let error = Weights::load(&folder, Dtype::Q8_0, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, LoadError::FolderOfFiles { files, .. } if files == "model.gguf"), "{error}");
    // As many repositories of GGUF files are: with the configuration of the model they were made from.
    std::fs::copy(fixture("qwen3").join("config.json"), folder.join("config.json")).unwrap();
    let error = Weights::load(&folder, Dtype::Q8_0, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, LoadError::FolderOfFiles { files, .. } if files == "model.gguf"), "{error}");
    let folder = copy_of("qwen3", "not-downloaded");
    std::fs::write(folder.join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\nsize 5\n").unwrap();
    let error = Weights::load(&folder, Dtype::Q8_0, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("git lfs pull"), "{error}");
}

/// Which of the two would be taken would depend on the order of files.
#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = copy_of("llama3_sharded", "twice");
    std::fs::copy(folder.join("model-00002-of-00005.safetensors"), folder.join("stale.safetensors")).unwrap();
    let path = folder.join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    index["weight_map"]["stale"] = json!("stale.safetensors");
    std::fs::write(path, index.to_string()).unwrap();
    let error = Weights::load(&folder, Dtype::Q8_0, &mut |_| {}).unwrap_err();
    assert!(matches!(error, LoadError::Twice { .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("stale.safetensors") && error.contains("model-00002-of-00005.safetensors"), "{error}");
}

#[test]
fn ids_beyond_the_vocabulary_are_refused_in_the_file_that_has_them() {
    let folder = copy_of("qwen3", "ids");
    for file in ["config.json", "generation_config.json"] {
        let path = folder.join(file);
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json["eos_token_id"] = json!([2, 80]);
        std::fs::write(&path, json.to_string()).unwrap();
        if file == "config.json" {
            std::fs::remove_file(folder.join("generation_config.json")).unwrap();
        }
        let error = Weights::load(&folder, Dtype::Q8_0, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("80"), "{error}");
        std::fs::copy(fixture("qwen3").join("generation_config.json"), folder.join("generation_config.json")).unwrap();
    }
}

#[test]
fn every_fault_of_a_gguf_file_is_named() {
    let good = std::fs::read(fixture("gguf/qwen3.gguf")).unwrap();
    let fails = |bytes: &[u8]| {
        let (_folder, path) = file("gguf-faults", bytes);
        Weights::load(&path, Dtype::Q8_0, &mut |_| {}).expect_err("the file is damaged")
    };
    for length in [0, 3, 20, 500, good.len() / 2, good.len() - 64] {
        let error = fails(&good[..length]);
        assert!(matches!(error, LoadError::Gguf { .. }) && error.to_string().contains("model.gguf"), "{error}");
    }
    // Keys and tensors of the same length, so that nothing moves.
    let renamed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = good.clone();
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fails(&bytes)
    };
    let cases = [
        ("general.architecture", "general.architecturX", "architecture"),
        ("qwen3.block_count", "qwen3.block_counX", "qwen3.block_count"),
        ("qwen3.attention.head_count_kv", "qwen3.attention.head_count_kX", "attn_k"),
        ("blk.1.ffn_down.weight", "blk.1.ffn_dowX.weight", "blk.1.ffn_down.weight"),
        ("token_embd.weight", "token_embX.weight", "token_embd.weight"),
    ];
    for (from, to, named) in cases {
        let error = renamed(from, to).to_string();
        assert!(error.contains(named) && error.contains("model.gguf"), "{from}: {error}");
    }
    // A scale of the last tensor's last block becomes a NaN.
    let mut bytes = good.clone();
    let head = cascadia_gguf::Gguf::read(&good).unwrap();
    let tensor = head.tensors.get("blk.1.attn_q.weight").unwrap();
    let at = tensor.bytes.end - 34;
    bytes[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let error = fails(&bytes);
    assert!(matches!(&error, LoadError::NotFinite { tensor, .. } if tensor == "blk.1.attn_q.weight"), "{error}");
    // A type that exists and is not read: the code stands behind name, dimensions and shape.
    let name = b"blk.0.ffn_up.weight";
    let at = good.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 16;
    let mut bytes = good.clone();
    bytes[at] = 6;
    let error = fails(&bytes).to_string();
    assert!(error.contains("blk.0.ffn_up.weight") && error.contains("Q5_0"), "{error}");
    assert!(fails(b"version https://git-lfs.github.com/spec/v1").to_string().contains("git lfs pull"));
}
