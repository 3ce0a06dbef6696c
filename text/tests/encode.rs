//! Texts are tokenised piece by piece, and the ids are those that the library gives the whole text.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use cascadia_core::commit::{Prompt, Room};
use cascadia_text::{ModelFiles, PromptError, Tokenizer, toy};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

/// A tokenizer beside the library's own.
struct Both {
    name: String,
    ours: Tokenizer,
    library: tokenizers::Tokenizer,
}

impl Both {
    fn new(name: &str, files: &ModelFiles) -> Self {
        let library = tokenizers::Tokenizer::from_bytes(&files.tokenizer).unwrap_or_else(|e| panic!("{name}: {e}"));
        Self { name: name.to_owned(), ours: Tokenizer::new(files).unwrap(), library }
    }

    fn check(&self, text: &str) {
        for special in [false, true].into_iter().take(if text.len() > 10_000 { 1 } else { 2 }) {
            let whole = self.library.encode_fast(text, special).unwrap();
            let ours = self.ours.encode(text, special).unwrap();
            let shown: String = text.chars().take(200).collect();
            // Not assert_eq!: a hundred thousand ids say nothing.
            let differ = whole.get_ids().iter().zip(&ours).position(|(a, b)| a != b);
            assert!(
                whole.get_ids() == ours,
                "{}: {} and {} ids, which differ from {differ:?} on: {shown:?}",
                self.name,
                whole.len(),
                ours.len()
            );
            let fits = self.ours.widest_token().is_none_or(|widest| text.len() <= widest * ours.len());
            assert!(fits, "{}: {} bytes in {} ids: {shown:?}", self.name, text.len(), ours.len());
        }
    }
}

fn edited(mut files: ModelFiles, edit: impl FnOnce(&mut Value)) -> ModelFiles {
    let mut tokenizer: Value = serde_json::from_slice(&files.tokenizer).unwrap();
    edit(&mut tokenizer);
    files.tokenizer = tokenizer.to_string().into_bytes();
    files
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf").join(name)
}

fn split(pattern: Value, behavior: &str, invert: bool) -> Value {
    json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert})
}

fn bytes(prefix: bool, regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex})
}

fn sequence(steps: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn normalizers(steps: &[Value]) -> Value {
    json!({"type": "Sequence", "normalizers": steps})
}

/// Added tokens of every kind.
fn added(tokenizer: &mut Value) {
    let next = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let kinds = [
        ("[L]", true, false, false, false),
        ("[R]", false, true, false, false),
        ("[LR]", true, true, false, true),
        ("word", false, false, true, false),
        ("Ünïcode", false, false, true, true),
        ("[N]", false, false, false, true),
        ("e\u{301}", false, false, false, true),
        ("  ", false, false, false, false),
    ];
    for (i, (content, lstrip, rstrip, single_word, normalized)) in kinds.into_iter().enumerate() {
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": next + i, "content": content, "lstrip": lstrip, "rstrip": rstrip, "single_word": single_word,
            "normalized": normalized, "special": i % 2 == 0,
        }));
    }
}

fn all() -> Vec<Both> {
    let (byte, piece) = (toy::byte_level_files, toy::sentencepiece_files);
    let mut all = vec![Both::new("byte-level", &byte()), Both::new("SentencePiece", &piece())];
    for (name, files) in [("byte-level", byte()), ("SentencePiece", piece())] {
        all.push(Both::new(&format!("{name}, added tokens"), &edited(files, added)));
    }
    for name in ["gpt2", "llama3", "qwen2", "sentencepiece", "sentencepiece_plain"] {
        all.push(Both::new(name, &ModelFiles::read(fixture(&format!("{name}.gguf"))).unwrap()));
    }
    for pair in ["drafter", "expert"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/pair").join(pair);
        all.push(Both::new(pair, &ModelFiles::read(folder).unwrap()));
    }
    let llama =
        r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let cuts = [
        ("a space before", bytes(true, true)),
        ("no cut", bytes(false, false)),
        ("Llama 3", sequence(&[split(json!({"Regex": llama}), "Isolated", false), bytes(false, false)])),
        ("digits", sequence(&[json!({"type": "Digits", "individual_digits": true}), bytes(false, true)])),
        ("runs of digits", sequence(&[json!({"type": "Digits", "individual_digits": false}), bytes(true, true)])),
        ("inverted", sequence(&[split(json!({"Regex": r"\w+|[^\w\s]+"}), "Removed", true), bytes(false, true)])),
        ("removed", sequence(&[split(json!({"String": " "}), "Removed", false), bytes(false, false)])),
        ("merged before", sequence(&[split(json!({"String": " "}), "MergedWithPrevious", false), bytes(false, false)])),
        ("merged behind", sequence(&[split(json!({"Regex": "[ 0-9]"}), "MergedWithNext", false), bytes(false, false)])),
        ("together", sequence(&[split(json!({"Regex": "[ae]"}), "Contiguous", false), bytes(false, false)])),
        ("empty matches", sequence(&[split(json!({"Regex": "a*"}), "MergedWithNext", false), bytes(false, false)])),
        ("look behind", sequence(&[split(json!({"Regex": r"(?<=e)\s|\b\d"}), "Isolated", false), bytes(false, false)])),
        ("punctuation", sequence(&[json!({"type": "Punctuation", "behavior": "Contiguous"}), bytes(false, true)])),
        ("white space", sequence(&[json!({"type": "WhitespaceSplit"}), bytes(true, false)])),
        ("words", sequence(&[json!({"type": "Whitespace"}), bytes(false, false)])),
        ("a delimiter", sequence(&[json!({"type": "CharDelimiterSplit", "delimiter": "e"}), bytes(false, false)])),
        ("lengths", sequence(&[json!({"type": "FixedLength", "length": 3}), bytes(false, false)])),
        ("BERT", sequence(&[json!({"type": "BertPreTokenizer"}), bytes(false, false)])),
    ];
    for (name, cut) in cuts {
        for extra in [false, true] {
            let files = edited(byte(), |tokenizer| {
                tokenizer["pre_tokenizer"] = cut.clone();
                if extra {
                    added(tokenizer);
                }
            });
            all.push(Both::new(name, &files));
        }
    }
    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let rewrites = [
        ("NFC", json!({"type": "NFC"})),
        ("NFD", json!({"type": "NFD"})),
        ("NFKC", json!({"type": "NFKC"})),
        ("NFKD and lower case", normalizers(&[json!({"type": "NFKD"}), json!({"type": "Lowercase"})])),
        ("no accents", normalizers(&[json!({"type": "NFD"}), json!({"type": "StripAccents"})])),
        ("stripped", json!({"type": "Strip", "strip_left": true, "strip_right": true})),
        ("Nmt", json!({"type": "Nmt"})),
        ("replaced", normalizers(&[replace(json!({"String": "the"}), "THE"), replace(json!({"String": "ee"}), "")])),
        ("replaced by a pattern", replace(json!({"Regex": r"\s+"}), " ")),
        ("prepended", normalizers(&[json!({"type": "Prepend", "prepend": "_"}), json!({"type": "NFC"})])),
        (
            "BERT",
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                        "strip_accents": null, "lowercase": true}),
        ),
    ];
    for (name, rewrite) in rewrites {
        for extra in [false, true] {
            let files = edited(byte(), |tokenizer| {
                tokenizer["normalizer"] = rewrite.clone();
                if extra {
                    added(tokenizer);
                }
            });
            all.push(Both::new(name, &files));
        }
    }
    for scheme in ["always", "first", "never"] {
        for cut in [true, false] {
            let files = edited(piece(), |tokenizer| {
                tokenizer["normalizer"] = Value::Null;
                tokenizer["pre_tokenizer"] =
                    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut});
                added(tokenizer);
            });
            all.push(Both::new(&format!("Metaspace, {scheme}"), &files));
        }
    }
    // What is unknown: fused, one by one, or gone.
    for (fuse, unknown) in [(true, json!("<unk>")), (false, json!("<unk>")), (false, Value::Null)] {
        let files = edited(piece(), |tokenizer| {
            tokenizer["model"]["byte_fallback"] = json!(false);
            tokenizer["model"]["fuse_unk"] = json!(fuse);
            tokenizer["model"]["unk_token"] = unknown.clone();
        });
        all.push(Both::new("no bytes to fall back to", &files));
    }
    all.push(Both::new(
        "whole pieces first",
        &edited(byte(), |tokenizer| {
            tokenizer["model"]["ignore_merges"] = json!(true);
            tokenizer["model"]["vocab"]["abcdefghij"] = json!(900);
        }),
    ));
    let words = json!({"type": "WordLevel", "vocab": {"the": 0, "ĠHello": 1, "Hello": 2, "?": 3}, "unk_token": "?"});
    all.push(Both::new(
        "words",
        &edited(byte(), |tokenizer| {
            tokenizer["model"] = words;
            tokenizer["added_tokens"] = json!([]);
        }),
    ));
    let unigram = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["▁", -2.0], ["e", -3.0], ["▁the", -4.0], ["he", -3.5], ["l", -4.0], ["lo", -5.0]]});
    all.push(Both::new(
        "Unigram",
        &edited(piece(), |tokenizer| {
            tokenizer["model"] = unigram;
            tokenizer["post_processor"] = Value::Null;
        }),
    ));
    all
}

static ALL: LazyLock<Vec<Both>> = LazyLock::new(all);

/// Those in which a long text meets steps that a short one does not.
fn for_long_texts() -> impl Iterator<Item = &'static Both> {
    let names = [
        "byte-level, added tokens",
        "SentencePiece, added tokens",
        "no cut",
        "Llama 3",
        "expert",
        "NFC",
        "NFKD and lower case",
    ];
    let mut names = names.to_vec();
    names.extend(["Metaspace, first", "no bytes to fall back to", "whole pieces first", "merged behind"]);
    ALL.iter().filter(move |both| names.contains(&both.name.as_str()))
}

/// What texts are made of: all that steps look at, and what a cut may tear apart.
fn atoms() -> impl Strategy<Value = &'static str> {
    select(vec![
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{2028}",
        "a",
        "e",
        "é",
        "e\u{301}",
        "\u{301}",
        "\u{327}",
        "the",
        " the",
        "Hello",
        " world",
        "'s",
        "'re",
        "THE",
        "1",
        "23",
        "٣",
        "²",
        ".",
        "...",
        "!?",
        "_",
        "▁",
        "€",
        "😀",
        "👩‍👩‍👧",
        "日本語",
        "ㅎ",
        "\u{1112}\u{1161}\u{11ab}",
        "\u{1112}",
        "\u{1161}",
        "한",
        "\u{11ab}",
        "\u{212a}",
        "\u{1fbe}\u{308}",
        "ﬁ",
        "Ａ",
        "ｶﾞ",
        "か\u{3099}",
        "ΐ",
        "İ",
        "\u{0}",
        "\u{fffd}",
        "ก็",
        "नि",
        "שָ",
        "<|bos|>",
        "<|user|>",
        "<|assistant|>",
        "<s>",
        "</s>",
        "<unk>",
        "<|begin_of_text|>",
        "[L]",
        "[R]",
        "[LR]",
        "word",
        "Ünïcode",
        "U\u{308}ni\u{308}code",
        "[N]",
        "[ N]",
        "<",
        "|>",
        "abcdefghij",
        "ing",
        "0x41",
    ])
}

/// `PROPTEST_CASES` sets another number, for a longer search.
fn cases(usual: u32) -> ProptestConfig {
    let given = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { given } else { ProptestConfig { cases: usual, ..given } }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn pieces_give_the_ids_of_the_whole(parts in prop::collection::vec(atoms(), 0..24)) {
        let text = parts.concat();
        ALL.iter().for_each(|both| both.check(&text));
    }
}

proptest! {
    #![proptest_config(cases(4))]

    /// Longer than a window of merges, and than a part that is rewritten at once.
    #[test]
    fn long_texts_do_as_well(
        parts in prop::collection::vec((prop::collection::vec(atoms(), 1..4), 1..1_500_usize), 1..4),
        between in atoms(),
    ) {
        let parts: Vec<String> = parts.iter().map(|(part, times)| part.concat().repeat(*times)).collect();
        let text = parts.join(between);
        for_long_texts().for_each(|both| both.check(&text));
    }
}

#[test]
fn words_without_an_end() {
    for atom in ["a", "the", "日", "e\u{301}", "😀", " ", "  \n"] {
        // More than two windows of merges.
        let text = atom.repeat(36_000 / atom.len());
        for_long_texts().for_each(|both| both.check(&text));
    }
}

#[test]
fn a_prompt_that_is_too_long_is_not_read_to_its_end() {
    let room = Room { context_length: 100, max_tokens: 1 };
    for both in ALL.iter() {
        let looked = std::cell::Cell::new(0_usize);
        let wanted = || {
            looked.set(looked.get() + 1);
            true
        };
        let prompt = Prompt::Text("Hello the world, 12. ".repeat(2_000));
        match both.ours.resolve_while(&prompt, room, None, &wanted) {
            Err(PromptError::TooManyBytes { .. }) => assert_eq!(looked.get(), 1, "{}", both.name),
            Err(error @ PromptError::TooManyTokens { tokens, .. }) => {
                assert!(tokens > 100, "{}", both.name);
                let said = error.to_string();
                assert!(said.contains("has at least") && said.ends_with("shorten it to at most 99 tokens"), "{said}");
                assert!(looked.get() < 400, "{}: {} pieces", both.name, looked.get());
            }
            other => panic!("{}: {other:?}", both.name),
        }
    }
}

#[test]
fn a_prompt_that_nobody_waits_for_is_left() {
    let room = Room { context_length: usize::MAX, max_tokens: 1 };
    for both in ALL.iter() {
        for prompt in ["Hello the world, 12. ".repeat(2_000), "e\u{301}".repeat(20_000)] {
            let looked = std::cell::Cell::new(0_usize);
            let wanted = || {
                looked.set(looked.get() + 1);
                looked.get() < 3
            };
            let left = both.ours.resolve_while(&Prompt::Text(prompt), room, None, &wanted);
            assert_eq!(left, Err(PromptError::Abandoned), "{}", both.name);
            assert_eq!(looked.get(), 3, "{}", both.name);
        }
    }
}

#[test]
fn a_pattern_that_gives_up_is_an_error_and_not_another_text() {
    let pattern = |pattern: &str| {
        Tokenizer::new(&edited(toy::byte_level_files(), |tokenizer| {
            tokenizer["pre_tokenizer"] =
                sequence(&[split(json!({"Regex": pattern}), "Isolated", false), bytes(false, false)]);
        }))
        .unwrap()
    };
    let text = "a".repeat(40) + "b";
    // Linear, whatever it looks like: nothing in it needs to go back.
    assert_eq!(pattern("(?:a+)+$").encode(&text, false).unwrap().len(), 41);
    let tries_all = pattern("(?:a+)+(?!b)$");
    let refused = tries_all.resolve(&Prompt::Text(text.clone()), Room { context_length: 100, max_tokens: 1 }, None);
    let Err(error @ PromptError::Encode(_)) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("pattern gives up"), "{error}");
    assert_eq!(tries_all.encode(&"a".repeat(40), false).unwrap().len(), 40);
}
