//! Tokenizers inside GGUF files against the libraries that own them; `gguf/generate.py` made the files.

use std::path::{Path, PathBuf};

use cascadia_core::commit::Message;
use cascadia_text::{LoadError, ModelFiles, Tokenizer};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf").join(name)
}

fn load(name: &str) -> Tokenizer {
    Tokenizer::load(fixture(&format!("{name}.gguf"))).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn ids_are_those_of_the_owners() {
    for name in ["qwen2", "llama3", "gpt2", "sentencepiece", "sentencepiece_plain"] {
        let tokenizer = load(name);
        let cases = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
        let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
        assert_eq!(cases.len(), 10);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let wanted: Vec<u32> =
                case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            // Hugging Face and llama.cpp put a space after a special token, SentencePiece at the very start only.
            if name == "sentencepiece" && text.contains("<|im_start|>") {
                continue;
            }
            assert_eq!(tokenizer.encode(text, false).unwrap(), wanted, "{name}: {text:?}");
            // What is composed before it is cut, and a space that was put before, do not come back.
            if name != "qwen2" && !text.contains("<|im_start|>") {
                assert_eq!(tokenizer.decode(&wanted), text, "{name}");
            }
        }
    }
}

/// So a folder and a GGUF file of one family can be paired.
#[test]
fn a_folder_and_a_file_have_one_fingerprint() {
    let folder =
        ModelFiles { tokenizer: std::fs::read(fixture("llama3.tokenizer.json")).unwrap(), ..ModelFiles::default() };
    let folder = Tokenizer::new(&folder).unwrap();
    assert_eq!(folder.fingerprint(), load("llama3").fingerprint());
    assert_eq!(folder.fingerprint(), load("qwen2").fingerprint(), "cutting is not part of it");
    assert_ne!(folder.fingerprint(), load("sentencepiece").fingerprint());
}

#[test]
fn specials_ends_and_templates_are_found() {
    let qwen = load("qwen2");
    let end = qwen.encode("<|im_end|>", false).unwrap();
    assert_eq!((qwen.eos_ids(), end.len()), (&end[..], 1));
    assert!(qwen.is_special(end[0]) && qwen.bos_id().is_none());
    // The gap behind the last token is no token.
    assert_eq!(qwen.vocabulary(), end[0] as usize + 1);
    assert!(qwen.chat_template().is_err());
    let piece = load("sentencepiece");
    assert_eq!((piece.bos_id(), piece.eos_ids()), (Some(1), &[2][..]));
    // A Llama's tokenizer begins with its first token unless the file says otherwise.
    assert_eq!(piece.encode("a", true).unwrap()[0], 1);
    let rendered = piece.chat_template().unwrap().render(&[Message::new("user", "hi")], false, None).unwrap();
    assert_eq!(rendered, "<s>user: hi\n");
    assert!(!piece.is_special(3), "user defined is not special");
}

#[test]
fn what_cannot_be_rebuilt_is_named() {
    let folder = std::env::temp_dir().join(format!("cascadia-text-gguf-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let changed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = std::fs::read(fixture("qwen2.gguf")).unwrap();
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        let file = folder.join("model.gguf");
        std::fs::write(&file, bytes).unwrap();
        ModelFiles::read(&file).map(|_| ()).unwrap_err()
    };
    let error = changed("qwen2", "qwen9").to_string();
    assert!(error.contains("pre-tokenizer `qwen9`") && error.contains("model.gguf"), "{error}");
    let error = changed("gpt2", "bert").to_string();
    assert!(error.contains("tokenizer `bert`"), "{error}");
    let error = changed("tokenizer.ggml.merges", "tokenizer.ggml.nothing"[..21].into()).to_string();
    assert!(error.contains("merges"), "{error}");
    assert!(matches!(changed("GGUF", "GGML"), LoadError::Broken { .. }));
    let file = folder.join("short.gguf");
    let bytes = std::fs::read(fixture("qwen2.gguf")).unwrap();
    for length in [0, 3, 100, bytes.len() / 2] {
        std::fs::write(&file, &bytes[..length]).unwrap();
        assert!(matches!(ModelFiles::read(&file), Err(LoadError::Broken { .. })), "{length} bytes");
    }
    std::fs::write(&file, b"version https://git-lfs.github.com/spec/v1").unwrap();
    assert!(matches!(ModelFiles::read(&file), Err(LoadError::LfsPointer(_))));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// What `cascadia pad --out FILE.gguf` says of a tokenizer, read back.
#[test]
fn a_folder_s_tokenizer_goes_into_a_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/pair/expert");
    let metadata = cascadia_text::gguf_metadata(&folder, 580).unwrap();
    let file = std::env::temp_dir().join(format!("cascadia-text-{}.gguf", std::process::id()));
    std::fs::write(&file, cascadia_gguf::write_head(&metadata, &[]).unwrap()).unwrap();
    let (inside, outside) = (Tokenizer::load(&file).unwrap(), Tokenizer::load(&folder).unwrap());
    std::fs::remove_file(&file).unwrap();
    assert_eq!(inside.fingerprint(), outside.fingerprint());
    assert_eq!((inside.eos_ids(), inside.bos_id()), (outside.eos_ids(), outside.bos_id()));
    let message = [Message::new("user", "Tom has 12 apples, and Ann's 305 pears?")];
    let render = |tokenizer: &Tokenizer| tokenizer.chat_template().unwrap().render(&message, true, None).unwrap();
    let text = render(&outside);
    assert_eq!(render(&inside), text);
    assert_eq!(inside.encode(&text, false).unwrap(), outside.encode(&text, false).unwrap());
    // Fewer rows than tokens.
    let error = cascadia_text::gguf_metadata(&folder, 100).unwrap_err();
    assert!(
        matches!(error, LoadError::Unsupported { .. }) && error.to_string().contains("row in the embedding"),
        "{error}"
    );
}
