//! Whatever is done to a tokenizer's files, loading answers with one sentence or with a tokenizer that can be used, and
//! never panics or asks for absurd memory.

use std::path::{Path, PathBuf};

use cascadia_core::commit::Message;
use cascadia_text::{LoadError, Tokenizer, toy};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

/// `PROPTEST_CASES` sets another number, for a longer search.
fn cases(usual: u32) -> ProptestConfig {
    let given = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { given } else { ProptestConfig { cases: usual, ..given } }
}

/// Uses what was loaded in every way that a node does.
fn answers(loaded: Result<Tokenizer, LoadError>) {
    match loaded {
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        Ok(tokenizer) => {
            let ids = tokenizer.encode("Héllo <s> 12\n", true).unwrap_or_default();
            let _ = tokenizer.decode(&ids);
            let unknown = [0, 1, tokenizer.vocabulary() as u32, u32::MAX];
            let _ = tokenizer.decode(&unknown);
            if let Ok(template) = tokenizer.chat_template() {
                let _ = template.render(&[Message::new("user", "a")], true, None);
            }
        }
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf").join(name)
}

/// Places of a document, each by the keys and numbers that lead there.
fn places(json: &Value, here: String, found: &mut Vec<String>) {
    match json {
        // Of a vocabulary a few stand for all, or nothing else would be chosen.
        Value::Object(map) => map.iter().take(20).for_each(|(key, value)| {
            let key = key.replace('~', "~0").replace('/', "~1");
            places(value, format!("{here}/{key}"), found);
        }),
        Value::Array(list) => {
            list.iter().enumerate().take(5).for_each(|(i, value)| places(value, format!("{here}/{i}"), found));
        }
        _ => {}
    }
    found.push(here);
}

fn values() -> impl Strategy<Value = Value> {
    let numbers = vec![0, 1, 255, 256, 300, 1 << 24, u64::from(u32::MAX), u64::MAX];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..400_u64).prop_map(Value::from),
        select(numbers).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~]{0,6}".prop_map(Value::from),
        select(vec!["BPE", "WordLevel", "Unigram", "ByteLevel", "Metaspace", "Strip", "Fuse", "Isolated", "((("])
            .prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!(["a", "b"])),
        Just(json!({"type": "ByteFallback"})),
    ]
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn a_damaged_tokenizer(changes in prop::collection::vec((any::<Index>(), values()), 1..4)) {
        let mut files = toy::byte_level_files();
        let mut tokenizer: Value = serde_json::from_slice(&files.tokenizer).unwrap();
        for (place, value) in changes {
            let mut all = Vec::new();
            places(&tokenizer, String::new(), &mut all);
            let place: &String = place.get(&all[..]);
            *tokenizer.pointer_mut(place).unwrap() = value;
        }
        files.tokenizer = tokenizer.to_string().into_bytes();
        answers(Tokenizer::new(&files));
    }

    #[test]
    fn a_damaged_tokenizer_configuration(key in select(vec!["chat_template", "eos_token", "bos_token"]), value in values()) {
        let mut files = toy::byte_level_files();
        files.tokenizer_config = json!({ key: value.clone() });
        files.generation_config = json!({"eos_token_id": value});
        answers(Tokenizer::new(&files));
    }

    #[test]
    fn a_damaged_template(
        parts in prop::collection::vec(select(vec![
            "{%", "%}", "{{", "}}", "{% if", "endif", "for m in messages", "{% generation %}", "{% endgeneration %}", "-", "m",
            "['content']", "| tojson", "(indent=99999)", "raise_exception('x')", "\"", "é", "{#", "#}", "loop.index0", "[::-1]",
            "* 999999999", "range(10)", " ",
        ]), 0..12),
    ) {
        let mut files = toy::byte_level_files();
        files.tokenizer_config = json!({"chat_template": parts.join(" ")});
        answers(Tokenizer::new(&files));
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn a_damaged_gguf_tokenizer(
        name in select(vec!["qwen2", "llama3", "sentencepiece"]),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 1..5),
        cut in 0..200_usize,
    ) {
        let mut bytes = std::fs::read(fixture(&format!("{name}.gguf"))).unwrap();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut.saturating_sub(150));
        let file = std::env::temp_dir().join(format!("cascadia-text-damage-{}.gguf", std::process::id()));
        std::fs::write(&file, bytes).unwrap();
        answers(Tokenizer::load(&file));
        std::fs::remove_file(&file).unwrap();
    }
}

/// One id asks for the table of all below it.
#[test]
fn an_id_beyond_any_vocabulary_is_refused() {
    for id in [1 << 24, u32::MAX] {
        let mut files = toy::byte_level_files();
        let mut tokenizer: Value = serde_json::from_slice(&files.tokenizer).unwrap();
        tokenizer["model"]["vocab"]["far"] = json!(id);
        files.tokenizer = tokenizer.to_string().into_bytes();
        let error = Tokenizer::new(&files).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains(&id.to_string()), "{error}");
    }
}

#[test]
fn a_token_that_ends_a_line_ends_no_sentence() {
    let mut files = toy::byte_level_files();
    let mut tokenizer: Value = serde_json::from_slice(&files.tokenizer).unwrap();
    tokenizer["model"]["merges"] = json!([["a\n", "b"]]);
    files.tokenizer = tokenizer.to_string().into_bytes();
    let error = Tokenizer::new(&files).unwrap_err().to_string();
    assert!(error.contains("`a\\n` out of vocabulary") && !error.contains('\n'), "{error}");
}
