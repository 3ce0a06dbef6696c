//! A model's tokenizer: text to ids and back, what ends a text, and a fingerprint to compare two of them.

use std::path::Path;

use cascadia_core::ids::TokenId;
use serde_json::Value;

use crate::detokenizer::Detokenizer;
use crate::encoder::{Asked, Encoder, NoIds};
use crate::error::{LoadError, TemplateError};
use crate::files::ModelFiles;
use crate::pieces::{Kind, Pieces};
use crate::template::{ChatTemplate, SpecialTokens};

/// Beyond any vocabulary; each id below the highest takes memory.
const MOST_TOKENS: TokenId = 1 << 24;

/// A loaded tokenizer. Immutable; share it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    encoder: Encoder,
    pieces: Pieces,
    fingerprint: String,
    bos: Option<TokenId>,
    eos: Vec<TokenId>,
    template: Result<ChatTemplate, TemplateError>,
}

impl Tokenizer {
    /// Loads the tokenizer of a Hugging Face model folder or a GGUF file.
    ///
    /// A chat template that is missing or broken is no error here, so that the model still serves plain text: ask
    /// [`Self::chat_template`].
    pub fn load(folder: impl AsRef<Path>) -> Result<Self, LoadError> {
        Self::new(&ModelFiles::read(folder)?)
    }

    /// Builds the tokenizer from files that have been read.
    pub fn new(files: &ModelFiles) -> Result<Self, LoadError> {
        let file = if files.folder.is_file() { files.folder.clone() } else { files.folder.join("tokenizer.json") };
        // The reason may quote a token, and a token may end a line.
        let visible = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
        let broken = |reason: tokenizers::Error| LoadError::Broken {
            file: file.clone(),
            reason: reason.to_string().chars().map(visible).collect(),
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&files.tokenizer).map_err(broken)?;
        // Training leaves these in some files, and then prompts are cut or filled without a word.
        inner.with_padding(None).with_truncation(None).map_err(broken)?;
        if let Some((token, id)) = inner.get_vocab(true).into_iter().find(|(_, id)| *id >= MOST_TOKENS) {
            let reason = format!("the token {token:?} has the id {id}, beyond any vocabulary");
            return Err(LoadError::Broken { file, reason });
        }
        let encoder = Encoder::of(&inner).map_err(broken)?;
        let pieces = Pieces::of(&inner).map_err(|decoder| LoadError::Decoder { file: file.clone(), decoder })?;

        let mut special = SpecialTokens::of(&files.tokenizer_config);
        let (bos, eos) = ends(files, &inner, &special);
        special.bos = special.bos.or_else(|| bos.and_then(|id| inner.id_to_token(id)));
        special.eos = special.eos.or_else(|| eos.first().and_then(|&id| inner.id_to_token(id)));
        let template = ChatTemplate::of(files, special);
        Ok(Self { fingerprint: pieces.fingerprint(), inner, encoder, pieces, bos, eos, template })
    }

    /// The ids of a text. `add_special` lets the tokenizer's own post-processor add what it adds (usually BOS).
    ///
    /// Special tokens that the text spells out become their ids, as everywhere in this field.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, String> {
        self.encode_within(text, add_special, Asked::ALL).map_err(|no_ids| no_ids.to_string())
    }

    /// The ids of a text, as far as they are asked for; those that the post-processor adds are not counted.
    pub(crate) fn encode_within(&self, text: &str, add_special: bool, asked: Asked<'_>) -> Result<Vec<TokenId>, NoIds> {
        let ids = self.encoder.ids(&self.inner, text, asked)?;
        if !add_special {
            return Ok(ids);
        }
        let encoding = ids.into_iter().map(|id| (id, String::new(), (0, 0), None, 0)).collect();
        let encoding = self.inner.post_process(encoding, None, true).map_err(NoIds::failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, specials left out. Equal to what [`Transcript`](crate::Transcript) streams.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let mut text = String::new();
        let mut detokenizer = Detokenizer::new(self, &[]);
        for &id in ids {
            detokenizer.push(self, id, &mut text);
        }
        detokenizer.flush(&mut text);
        text
    }

    /// One more than the highest id that has a token. A model's rows may be longer: padding.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes of a prompt's text that one id stands for at most; `None` where that may be any number.
    #[must_use]
    pub fn widest_token(&self) -> Option<usize> {
        self.encoder.widest()
    }

    /// Whether the id has a token.
    #[must_use]
    pub fn knows(&self, id: TokenId) -> bool {
        self.pieces.kind(id) != Kind::Absent
    }

    /// Whether the token steers the model and is never shown.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.pieces.kind(id) == Kind::Special
    }

    /// The bytes of a token, not always whole characters; a special token's are its name. `None`: no such token.
    #[must_use]
    pub fn token_bytes(&self, id: TokenId) -> Option<&[u8]> {
        self.knows(id).then(|| self.pieces.bytes(id))
    }

    /// The token that begins a text, if the model has one.
    #[must_use]
    pub fn bos_id(&self) -> Option<TokenId> {
        self.bos
    }

    /// The ids that end a text, ascending: `eos_token` of `tokenizer_config.json` and `eos_token_id` of
    /// `generation_config.json`, or, where there is none of that, of `config.json`. Ids without a token are left out.
    #[must_use]
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.eos
    }

    /// The chat template, or why there is none to use.
    pub fn chat_template(&self) -> Result<&ChatTemplate, &TemplateError> {
        self.template.as_ref()
    }

    /// Names the map from id to bytes, specials included: 32 hexadecimal digits.
    ///
    /// Two folders with the same tokens under the same ids agree, however their files are formatted or ordered. Merges,
    /// normalisation and templates are not part of it: only one side of a pair tokenises, both exchange ids.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What a token adds to a text; specials and unknown ids add nothing and are `None`.
    pub(crate) fn shown(&self, id: TokenId) -> Option<&[u8]> {
        (self.pieces.kind(id) == Kind::Ordinary).then(|| self.pieces.bytes(id))
    }

    /// What a token adds as the very first of a text: without the leading space where the decoder drops it.
    pub(crate) fn shown_first(&self, id: TokenId) -> Option<&[u8]> {
        let piece = self.shown(id)?;
        let alone = self.inner.decode(&[id], true).unwrap_or_default();
        if piece.ends_with(alone.as_bytes()) { Some(&piece[piece.len() - alone.len()..]) } else { Some(piece) }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocabulary", &self.vocabulary())
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// BOS and EOS ids from all places that may name them.
fn ends(files: &ModelFiles, inner: &tokenizers::Tokenizer, special: &SpecialTokens) -> (Option<TokenId>, Vec<TokenId>) {
    let named = |token: &Option<String>| token.as_deref().and_then(|token| inner.token_to_id(token));
    let configured = |key: &str| {
        let generation = ids(&files.generation_config[key]);
        let ids = if generation.is_empty() { ids(&files.config[key]) } else { generation };
        ids.into_iter().filter(|&id| inner.id_to_token(id).is_some()).collect::<Vec<_>>()
    };
    let bos = named(&special.bos).or_else(|| configured("bos_token_id").first().copied());
    let mut eos = configured("eos_token_id");
    eos.extend(named(&special.eos));
    eos.sort_unstable();
    eos.dedup();
    (bos, eos)
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<TokenId> {
    let one = |value: &Value| value.as_u64().and_then(|id| TokenId::try_from(id).ok());
    match value {
        Value::Array(values) => values.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}
