//! Small tokenizers for tests, of this crate and of others: no file, built in a moment.

use cascadia_core::ids::TokenId;
use serde_json::{Map, Value, json};

use crate::files::ModelFiles;
use crate::tokenizer::Tokenizer;

/// A template with one special token a turn.
const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    {% if message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + eos_token }}\
    {% else %}{{ '<|user|>' + message['content'] }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// What [`byte_level`] is built from.
///
/// Ids: 0 `<|bos|>`, 1 `<|eos|>`, 2 `<|user|>`, 3 `<|assistant|>`, then all 256 bytes, then merges, some of which end
/// in the middle of a character.
#[must_use]
pub fn byte_level_files() -> ModelFiles {
    let special = ["<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"];
    let alphabet: Vec<String> = (0..=u8::MAX).map(|byte| byte_char(byte).to_string()).collect();
    let words: [&[u8]; 8] = [
        b" the",
        b"the",
        b"Hello",
        b" world",
        b".\n",
        "€".as_bytes().split_at(2).0,
        &[0xa9, b' '],
        &[0xf0, 0x9f, 0x98],
    ];
    let (mut tokens, mut merges) = (special.map(str::to_owned).to_vec(), Vec::new());
    tokens.extend(alphabet.clone());
    for word in words {
        let letters: Vec<&str> = word.iter().map(|&byte| alphabet[usize::from(byte)].as_str()).collect();
        merge(&letters, &mut tokens, &mut merges);
    }
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added(&special, 0),
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary(&tokens), "merges": merges},
    });
    files(&tokenizer, json!({"bos_token": special[0], "eos_token": special[1], "chat_template": TEMPLATE}))
}

/// A byte-level tokenizer with a chat template, as of GPT-2, Llama 3 and Qwen.
#[must_use]
pub fn byte_level() -> Tokenizer {
    built(&byte_level_files())
}

/// What [`sentencepiece`] is built from. Ids: 0 `<unk>`, 1 `<s>`, 2 `</s>`, then all 256 bytes, then characters and words.
#[must_use]
pub fn sentencepiece_files() -> ModelFiles {
    let special = ["<unk>", "<s>", "</s>"];
    let mut tokens = special.map(str::to_owned).to_vec();
    let mut merges = Vec::new();
    tokens.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
    tokens.push("\u{2581}".to_owned());
    tokens.extend(('a'..='z').map(String::from));
    for word in ["\u{2581}the", "\u{2581}hello", "\u{2581}world", "ing", "\u{2581}\u{2581}"] {
        let letters: Vec<&str> = word.split("").filter(|letter| !letter.is_empty()).collect();
        merge(&letters, &mut tokens, &mut merges);
    }
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added(&special, 0),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        ]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                  "vocab": vocabulary(&tokens), "merges": merges},
    });
    files(&tokenizer, json!({"bos_token": special[1], "eos_token": special[2]}))
}

/// A tokenizer as SentencePiece makes them, as of Llama 2 and Mistral; it has no chat template.
#[must_use]
pub fn sentencepiece() -> Tokenizer {
    built(&sentencepiece_files())
}

/// One letter a token, for models that are tables: id `i` is the `i`-th letter from U+0100 on, `eos` is special.
#[must_use]
pub fn letters(vocabulary_size: usize, eos: TokenId) -> Tokenizer {
    let name = |id: usize| match (id == eos as usize, char::from_u32(0x100 + id as u32)) {
        (false, Some(letter)) => letter.to_string(),
        _ => "<eos>".to_owned(),
    };
    let tokens: Vec<String> = (0..vocabulary_size).map(name).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added(&["<eos>"], eos),
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocabulary(&tokens), "merges": []},
    });
    built(&files(&tokenizer, json!({"eos_token": "<eos>"})))
}

fn built(files: &ModelFiles) -> Tokenizer {
    Tokenizer::new(files).unwrap_or_else(|error| panic!("a toy tokenizer is sound: {error}"))
}

fn files(tokenizer: &Value, tokenizer_config: Value) -> ModelFiles {
    let tokenizer = tokenizer.to_string().into_bytes();
    ModelFiles { folder: "toy".into(), tokenizer, tokenizer_config, ..ModelFiles::default() }
}

/// Merges letters from left to right into one token, with every token on the way.
fn merge(letters: &[&str], tokens: &mut Vec<String>, merges: &mut Vec<Value>) {
    let mut left = letters[0].to_owned();
    for right in &letters[1..] {
        let merged = format!("{left}{right}");
        if !tokens.contains(&merged) {
            merges.push(json!([left, right]));
            tokens.push(merged.clone());
        }
        left = merged;
    }
}

fn vocabulary(tokens: &[String]) -> Value {
    Value::Object(tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect::<Map<_, _>>())
}

/// Special tokens with ids from `first` on.
fn added(special: &[&str], first: TokenId) -> Vec<Value> {
    let token = |(id, content): (TokenId, &&str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    (first..).zip(special).map(token).collect()
}

/// GPT-2's character for a byte.
fn byte_char(byte: u8) -> char {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let hidden = (0..byte).filter(|byte| !printable(byte)).count();
    let code = if printable(&byte) { u32::from(byte) } else { 256 + hidden as u32 };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}
