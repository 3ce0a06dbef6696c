//! The tokenizer and chat template inside a GGUF file, as the files of a Hugging Face folder.
//!
//! Two kinds are rebuilt: byte-level BPE (`gpt2`) with the pre-tokenizers named in [`PRE_TOKENIZERS`], and SentencePiece's
//! BPE (`llama`), whose merges follow from its scores. All else is refused by name.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use cascadia_gguf::{Gguf, GgufError, Value as Meta};
use serde_json::{Map, Value, json};

use crate::error::LoadError;
use crate::files::ModelFiles;

const LETTERS: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+";
const ENDINGS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const REST: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const CASED_REST: &str = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const UPPER: &str = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}";
const LOWER: &str = r"\p{Ll}\p{Lm}\p{Lo}\p{M}";

/// How text is cut before merges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Llama 3: up to three digits together.
    Llama3,
    /// Qwen: digits one by one, and text is composed first (NFC).
    Qwen,
    /// GPT-2's own.
    Gpt2,
    /// Digits one by one, then GPT-2's.
    Digits,
    /// By case, digits one by one.
    Tekken,
    /// By case, up to three digits.
    Gpt4o,
}

/// Values of `tokenizer.ggml.pre`, how each cuts, and whether a whole piece of the vocabulary needs no merges.
const PRE_TOKENIZERS: [(&str, Cut, bool); 14] = [
    ("llama-bpe", Cut::Llama3, true),
    ("llama3", Cut::Llama3, true),
    ("llama-v3", Cut::Llama3, true),
    ("dbrx", Cut::Llama3, false),
    ("smaug-bpe", Cut::Llama3, false),
    ("qwen2", Cut::Qwen, false),
    ("deepseek-r1-qwen", Cut::Qwen, false),
    ("gpt-2", Cut::Gpt2, false),
    ("phi-2", Cut::Gpt2, false),
    ("smollm", Cut::Digits, false),
    ("starcoder", Cut::Digits, false),
    ("tekken", Cut::Tekken, true),
    ("gpt-4o", Cut::Gpt4o, false),
    ("llama4", Cut::Gpt4o, false),
];

/// `tokenizer.ggml.token_type`.
pub(crate) mod kind {
    pub(crate) const NORMAL: u64 = 1;
    pub(crate) const UNKNOWN: u64 = 2;
    pub(crate) const CONTROL: u64 = 3;
    pub(crate) const USER_DEFINED: u64 = 4;
    pub(crate) const UNUSED: u64 = 5;
}

struct Source<'a> {
    file: &'a Path,
    gguf: &'a Gguf,
    tokens: Vec<&'a str>,
    kinds: Vec<u64>,
}

/// Reads what a file says about text.
pub(crate) fn read(file: &Path) -> Result<ModelFiles, LoadError> {
    let gguf = head(file)?;
    let source = Source::of(file, &gguf)?;
    let tokenizer = source.tokenizer()?;
    let mut config = Map::new();
    for (key, token) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        if let Some(token) = source.named(token)? {
            config.insert(format!("{key}_token"), json!(token));
        }
    }
    if let Some(template) = gguf.get("tokenizer.chat_template").and_then(Meta::as_str) {
        config.insert("chat_template".into(), json!(template));
    }
    let ends = ["eos", "eot", "eom"].map(|name| source.id(name));
    let ends: Vec<usize> = ends.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    Ok(ModelFiles {
        folder: file.to_owned(),
        tokenizer: tokenizer.to_string().into_bytes(),
        tokenizer_config: Value::Object(config),
        generation_config: json!({ "eos_token_id": ends }),
        config: Value::Null,
        chat_template: None,
    })
}

/// The head of a file, read in ever larger parts: weights behind it may be larger than memory.
fn head(file: &Path) -> Result<Gguf, LoadError> {
    let unreadable = |reason| LoadError::Unreadable { file: file.to_owned(), reason };
    let length = std::fs::metadata(file).map_err(unreadable)?.len();
    let mut size = 1 << 22;
    loop {
        let mut bytes = Vec::new();
        File::open(file).and_then(|f| f.take(size).read_to_end(&mut bytes)).map_err(unreadable)?;
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(LoadError::LfsPointer(file.to_owned()));
        }
        match Gguf::read_head(&bytes, length) {
            Err(GgufError::Truncated(_) | GgufError::Absurd { .. }) if (bytes.len() as u64) < length => size *= 4,
            result => {
                return result.map_err(|e| LoadError::Broken { file: file.to_owned(), reason: e.to_string() });
            }
        }
    }
}

impl<'a> Source<'a> {
    fn of(file: &'a Path, gguf: &'a Gguf) -> Result<Self, LoadError> {
        let broken = |reason: String| LoadError::Broken { file: file.to_owned(), reason };
        let list = |key: &str| gguf.get(key).and_then(Meta::as_array);
        let tokens = list("tokenizer.ggml.tokens").and_then(|l| l.iter().map(Meta::as_str).collect::<Option<Vec<_>>>());
        let tokens = tokens.ok_or_else(|| broken("it has no `tokenizer.ggml.tokens`".into()))?;
        let kinds: Vec<u64> = match list("tokenizer.ggml.token_type") {
            None => vec![kind::NORMAL; tokens.len()],
            Some(kinds) => kinds.iter().filter_map(Meta::as_u64).collect(),
        };
        if kinds.len() != tokens.len() {
            let reason = format!("`tokenizer.ggml.token_type` has {} entries for {} tokens", kinds.len(), tokens.len());
            return Err(broken(reason));
        }
        Ok(Self { file, gguf, tokens, kinds })
    }

    fn broken(&self, reason: String) -> LoadError {
        LoadError::Broken { file: self.file.to_owned(), reason }
    }

    fn get(&self, key: &str) -> Option<&'a Meta> {
        self.gguf.get(&format!("tokenizer.ggml.{key}"))
    }

    /// The id under `tokenizer.ggml.NAME_token_id`.
    fn id(&self, name: &str) -> Result<Option<usize>, LoadError> {
        let key = format!("{name}_token_id");
        let Some(value) = self.get(&key) else { return Ok(None) };
        match value.as_u64().map(|id| id as usize).filter(|&id| id < self.tokens.len()) {
            Some(id) => Ok(Some(id)),
            None => Err(self.broken(format!("`tokenizer.ggml.{key}` is {value}, of {} tokens", self.tokens.len()))),
        }
    }

    fn named(&self, name: &str) -> Result<Option<&'a str>, LoadError> {
        Ok(self.id(name)?.map(|id| self.tokens[id]))
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.get(key).and_then(Meta::as_bool).unwrap_or(default)
    }

    /// `tokenizer.json`.
    fn tokenizer(&self) -> Result<Value, LoadError> {
        let model = self.get("model").and_then(Meta::as_str).unwrap_or_default();
        let (mut json, bos) = match model {
            "gpt2" => (self.byte_level()?, false),
            "llama" => (self.sentence_piece()?, true),
            other => {
                let what = format!("the tokenizer `{}`", other.escape_debug());
                return Err(LoadError::Unsupported { file: self.file.to_owned(), what });
            }
        };
        let special = |id: usize| matches!(self.kinds[id], kind::CONTROL | kind::UNKNOWN);
        let added = (0..self.tokens.len()).filter(|&id| special(id) || self.kinds[id] == kind::USER_DEFINED);
        let added = added.map(|id| {
            json!({
                "id": id, "content": self.tokens[id], "special": special(id),
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        });
        json["added_tokens"] = added.collect();
        json["version"] = json!("1.0");
        let (bos, eos) = (self.flag("add_bos_token", bos), self.flag("add_eos_token", false));
        let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
        let mut specials = Map::new();
        for (wanted, name, first) in [(bos, "bos", true), (eos, "eos", false)] {
            if let (true, Some(id)) = (wanted, self.id(name)?) {
                let token = self.tokens[id];
                single
                    .insert(if first { 0 } else { single.len() }, json!({"SpecialToken": {"id": token, "type_id": 0}}));
                specials.insert(token.into(), json!({"id": token, "ids": [id], "tokens": [token]}));
            }
        }
        json["post_processor"] =
            json!({"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": specials});
        Ok(json)
    }

    /// Ids of all tokens that are there; converters fill gaps with unused `[PAD7]`.
    fn vocabulary(&self) -> Map<String, Value> {
        let gap = |id: usize| self.kinds[id] == kind::UNUSED && self.tokens[id].starts_with("[PAD");
        let ids = (0..self.tokens.len()).filter(|&id| !gap(id));
        ids.map(|id| (self.tokens[id].to_owned(), json!(id))).collect()
    }

    fn byte_level(&self) -> Result<Value, LoadError> {
        let pre = self.get("pre").and_then(Meta::as_str).unwrap_or("(none)");
        let Some((_, cut, whole)) = PRE_TOKENIZERS.into_iter().find(|(name, ..)| *name == pre) else {
            let what = format!("the pre-tokenizer `{}`", pre.escape_debug());
            return Err(LoadError::Unsupported { file: self.file.to_owned(), what });
        };
        let merges = self
            .get("merges")
            .and_then(Meta::as_array)
            .ok_or_else(|| self.broken("it has no `tokenizer.ggml.merges`, which byte-level tokenizers need".into()))?;
        let merges = merges.iter().map(|merge| {
            // The first character may be a space itself.
            let text = merge.as_str()?;
            let space = text.char_indices().skip(1).find(|(_, c)| *c == ' ')?.0;
            Some(json!([text[..space], text[space + 1..]]))
        });
        let merges = merges.collect::<Option<Vec<_>>>();
        let merges = merges.ok_or_else(|| self.broken("a merge in `tokenizer.ggml.merges` is no pair".into()))?;
        let steps = steps(cut);
        Ok(json!({
            "normalizer": if cut == Cut::Qwen { json!({"type": "NFC"}) } else { Value::Null },
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "decoder": byte_level(true),
            "model": {"type": "BPE", "ignore_merges": whole, "vocab": self.vocabulary(), "merges": merges},
        }))
    }

    fn sentence_piece(&self) -> Result<Value, LoadError> {
        let scores = self.get("scores").and_then(Meta::as_array).unwrap_or_default();
        if scores.len() != self.tokens.len() {
            let reason =
                format!("`tokenizer.ggml.scores` has {} entries for {} tokens", scores.len(), self.tokens.len());
            return Err(self.broken(reason));
        }
        let prefix = self.flag("add_space_prefix", true);
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self
            .named("unknown")?
            .or_else(|| self.kinds.iter().position(|kind| *kind == kind::UNKNOWN).map(|id| self.tokens[id]));
        Ok(json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
                "vocab": self.vocabulary(), "merges": self.merges(scores),
            },
        }))
    }

    /// Every way to make a piece of two others, the best pieces first: what SentencePiece decides by score alone.
    fn merges(&self, scores: &[Meta]) -> Vec<Value> {
        let ordinary = |id: usize| matches!(self.kinds[id], kind::NORMAL | kind::USER_DEFINED | kind::UNUSED);
        let ids = (0..self.tokens.len()).filter(|&id| ordinary(id));
        let ids: HashMap<&str, usize> = ids.map(|id| (self.tokens[id], id)).collect();
        let mut merges = Vec::new();
        for (&piece, &id) in &ids {
            let score = scores[id].as_f64().unwrap_or(f64::NEG_INFINITY);
            for (at, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(at);
                if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                    merges.push((score, l, r));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        merges.into_iter().map(|(_, l, r)| json!([self.tokens[l], self.tokens[r]])).collect()
    }
}

fn byte_level(regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": regex})
}

/// How `tokenizer.json` says it.
fn steps(cut: Cut) -> Vec<Value> {
    let split =
        |regex: String| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let by_case = |endings: &str, digits: &str| {
        format!(
            r"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{endings}|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{endings}|{digits}|{CASED_REST}"
        )
    };
    match cut {
        Cut::Llama3 => vec![split(format!(r"{ENDINGS}|{LETTERS}|\p{{N}}{{1,3}}|{REST}")), byte_level(false)],
        Cut::Qwen => vec![split(format!(r"{ENDINGS}|{LETTERS}|\p{{N}}|{REST}")), byte_level(false)],
        Cut::Gpt2 => vec![byte_level(true)],
        Cut::Digits => vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)],
        Cut::Tekken => vec![split(by_case("", r"\p{N}")), byte_level(false)],
        Cut::Gpt4o => vec![split(by_case(&format!("{ENDINGS}?"), r"\p{N}{1,3}")), byte_level(false)],
    }
}

/// The value of `tokenizer.ggml.pre` for what `tokenizer.json` says, if there is one.
pub(crate) fn pre_tokenizer(tokenizer: &Value) -> Option<&'static str> {
    let stated = &tokenizer["pre_tokenizer"];
    let mut stated = stated["pretokenizers"].as_array().cloned().unwrap_or_else(|| vec![stated.clone()]);
    for step in stated.iter_mut().filter(|step| step["type"] == "ByteLevel") {
        // Offsets are nothing to ids.
        step["trim_offsets"] = json!(false);
    }
    let whole = tokenizer["model"]["ignore_merges"] == true;
    let composed = tokenizer["normalizer"]["type"] == "NFC";
    if !composed && !tokenizer["normalizer"].is_null() {
        return None;
    }
    let found = PRE_TOKENIZERS
        .into_iter()
        .find(|&(_, cut, ignores)| ignores == whole && (cut == Cut::Qwen) == composed && steps(cut) == stated);
    found.map(|(name, ..)| name)
}
