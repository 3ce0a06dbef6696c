//! Loading, encoding, bytes, ends and fingerprints.

use std::path::PathBuf;

use cascadia_text::{LoadError, ModelFiles, Tokenizer, toy};
use serde_json::{Value, json};

/// A folder that is gone when the test is.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &[u8])]) -> Self {
        let folder = std::env::temp_dir().join(format!("cascadia-text-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
        Self(folder)
    }

    fn refused(&self) -> LoadError {
        Tokenizer::load(&self.0).unwrap_err()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn edited(edit: impl FnOnce(&mut Value)) -> ModelFiles {
    let mut files = toy::byte_level_files();
    let mut tokenizer: Value = serde_json::from_slice(&files.tokenizer).unwrap();
    edit(&mut tokenizer);
    files.tokenizer = serde_json::to_vec_pretty(&tokenizer).unwrap();
    files
}

#[test]
fn a_folder_loads() {
    let files = toy::byte_level_files();
    let config = files.tokenizer_config.to_string();
    let folder = Folder::new(
        "good",
        &[
            ("tokenizer.json", &files.tokenizer),
            ("tokenizer_config.json", config.as_bytes()),
            ("generation_config.json", br#"{"eos_token_id": [1, 3, 99999], "bos_token_id": 0}"#),
            ("config.json", br#"{"eos_token_id": 2}"#),
            ("chat_template.jinja", b"{{ messages[0].content }}"),
        ],
    );
    let tokenizer = Tokenizer::load(&folder.0).unwrap();
    assert_eq!(tokenizer.eos_ids(), [1, 3]);
    assert_eq!(tokenizer.bos_id(), Some(0));
    assert_eq!(tokenizer.fingerprint(), toy::byte_level().fingerprint());
    assert!(tokenizer.chat_template().is_ok());
}

#[test]
fn a_bad_folder_gets_one_sentence() {
    let one_sentence = |error: &LoadError, parts: &[&str]| {
        let said = error.to_string();
        assert!(!said.contains('\n'), "{said}");
        for part in parts {
            assert!(said.contains(part), "{said}");
        }
    };
    let nowhere = Tokenizer::load("/nowhere/at/all").unwrap_err();
    one_sentence(&nowhere, &["/nowhere/at/all is not there"]);
    one_sentence(&Folder::new("empty", &[]).refused(), &["tokenizer.json is missing", "copy it"]);
    let good = toy::byte_level_files().tokenizer;
    let cut = Folder::new("cut", &[("tokenizer.json", &good[..good.len() / 2])]);
    one_sentence(&cut.refused(), &["tokenizer.json is truncated", "download it again"]);
    let cut = Folder::new("config", &[("tokenizer.json", &good), ("tokenizer_config.json", b"{\"bos_token\": ")]);
    one_sentence(&cut.refused(), &["tokenizer_config.json is truncated"]);
    let pointer =
        Folder::new("lfs", &[("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")]);
    one_sentence(&pointer.refused(), &["git lfs pull"]);
    let ctc = json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true});
    let ctc = Tokenizer::new(&edited(|tokenizer| tokenizer["decoder"] = ctc)).unwrap_err();
    one_sentence(&ctc, &["decoder CTC"]);
}

#[test]
fn text_goes_there_and_back() {
    let byte_level = toy::byte_level();
    for text in ["Hello the world.\n", "", " ", "naïve € 😀 \u{0}\t", "日本語", "é x"] {
        let ids = byte_level.encode(text, true).unwrap();
        assert_eq!(byte_level.decode(&ids), text);
    }
    assert_eq!(byte_level.encode("<|user|>Hello", false).unwrap()[0], 2);
    let sentencepiece = toy::sentencepiece();
    for text in ["the world", "hello  the  world", "€ and 😀"] {
        let ids = sentencepiece.encode(text, true).unwrap();
        assert_eq!(ids[0], 1, "BOS is the post-processor's");
        assert_eq!(sentencepiece.encode(text, false).unwrap(), ids[1..]);
        assert_eq!(sentencepiece.decode(&ids), text);
    }
}

#[test]
fn tokens_have_bytes() {
    let tokenizer = toy::byte_level();
    let bytes = |text: &str| {
        let ids = tokenizer.encode(text, false).unwrap();
        ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap().to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(bytes(" the€"), [b" the".to_vec(), vec![0xe2, 0x82], vec![0xac]]);
    assert_eq!(bytes("<|eos|>"), [b"<|eos|>".to_vec()]);
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(4));
    let end = tokenizer.vocabulary() as u32;
    assert!(tokenizer.knows(end - 1) && !tokenizer.knows(end));
    assert_eq!(tokenizer.token_bytes(end), None);
    let sentencepiece = toy::sentencepiece();
    let ids = sentencepiece.encode("the €", false).unwrap();
    let bytes: Vec<_> = ids.iter().map(|&id| sentencepiece.token_bytes(id).unwrap()).collect();
    assert_eq!(bytes, [&b" the"[..], b" ", &[0xe2], &[0x82], &[0xac]]);
}

#[test]
fn fingerprints_name_the_map_from_id_to_bytes() {
    let tokenizer = toy::byte_level();
    // Recorded: a release must not change it, or nodes of two releases would not pair.
    assert_eq!(tokenizer.fingerprint(), "daaaca7de9a61b1b72291329a3e745bc");
    let reformatted = Tokenizer::new(&edited(|_| {})).unwrap();
    assert_eq!(tokenizer.fingerprint(), reformatted.fingerprint());
    let other_template = edited(|tokenizer| tokenizer["truncation"] = Value::Null);
    assert_eq!(tokenizer.fingerprint(), Tokenizer::new(&other_template).unwrap().fingerprint());

    let renamed = edited(|tokenizer| tokenizer["added_tokens"][3]["content"] = json!("<|bot|>"));
    let shown = edited(|tokenizer| tokenizer["added_tokens"][3]["special"] = json!(false));
    let swapped = edited(|tokenizer| {
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let (a, b) = (vocabulary["!"].clone(), vocabulary["A"].clone());
        vocabulary.insert("!".into(), b);
        vocabulary.insert("A".into(), a);
    });
    let mut seen = vec![tokenizer.fingerprint().to_owned(), toy::sentencepiece().fingerprint().to_owned()];
    seen.extend([renamed, shown, swapped].map(|files| Tokenizer::new(&files).unwrap().fingerprint().to_owned()));
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count);
}

#[test]
fn settings_left_by_training_do_not_cut_prompts() {
    let files = edited(|tokenizer| {
        tokenizer["truncation"] =
            json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
        tokenizer["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
                                      "pad_id": 0, "pad_type_id": 0, "pad_token": "<|bos|>"});
    });
    let text = "abcdefghijklmnop";
    assert_eq!(Tokenizer::new(&files).unwrap().encode(text, true).unwrap().len(), text.len());
}

#[test]
fn ends_come_from_every_place_that_names_them() {
    let eos = |generation: Value, config: Value, token: Value| {
        let mut files = toy::byte_level_files();
        (files.generation_config, files.config) = (generation, config);
        files.tokenizer_config = json!({"eos_token": token});
        Tokenizer::new(&files).unwrap().eos_ids().to_vec()
    };
    assert_eq!(eos(json!({"eos_token_id": 2}), json!({"eos_token_id": 3}), Value::Null), [2]);
    assert_eq!(eos(Value::Null, json!({"eos_token_id": [3, 2]}), Value::Null), [2, 3]);
    assert_eq!(eos(json!({"eos_token_id": 3}), Value::Null, json!({"content": "<|eos|>"})), [1, 3]);
    assert_eq!(eos(Value::Null, Value::Null, json!("<|eos|>")), [1]);
    assert!(eos(Value::Null, Value::Null, Value::Null).is_empty());
}

#[test]
fn letters_are_one_token_each() {
    let tokenizer = toy::letters(8, 7);
    assert_eq!((tokenizer.vocabulary(), tokenizer.eos_ids()), (8, &[7][..]));
    let text = tokenizer.decode(&[0, 3, 7, 6]);
    assert_eq!(text, "ĀăĆ");
    assert_eq!(tokenizer.encode(&text, true).unwrap(), [0, 3, 6]);
}
