//! A table: the bytes that each token writes.
//!
//! In byte-level and SentencePiece tokenizers a token writes the same bytes wherever it stands; only the very first
//! token of a text may lose a leading space. So text is made by table look-up and UTF-8 decoding, at a constant cost a
//! token, and never by decoding a window twice and comparing. Decoders that look at neighbours (CTC, end-of-word
//! suffixes) are refused at load.

use cascadia_core::ids::TokenId;
use tokenizers::{Decoder, DecoderWrapper};

/// Stands before a token where its bytes are asked of a decoder that treats the first token in another way.
const ANCHOR: &str = "a";

/// What an id of the vocabulary is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The tokenizer has no such token; models pad their vocabulary with these.
    Absent,
    /// Part of the text.
    Ordinary,
    /// Steers the model; never part of the text.
    Special,
}

/// The bytes of every token, one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    kinds: Vec<Kind>,
}

impl Pieces {
    /// Builds the table; `Err` names a decoder that has no bytes for a single token.
    pub(crate) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self, &'static str> {
        let decoder = tokenizer.get_decoder();
        let rules = Rules::of(decoder)?;
        let added = tokenizer.get_added_tokens_decoder();
        let last = tokenizer.get_vocab(true).into_values().max();
        let mut pieces = Self::default();
        for id in 0..last.map_or(0, |last| last + 1) {
            // An added token hides the model's own token of the same id, as in decoding.
            let token = added.get(&id).map(|token| token.content.clone()).or_else(|| tokenizer.id_to_token(id));
            let kind = match (&token, added.get(&id)) {
                (None, _) => Kind::Absent,
                (_, Some(token)) if token.special => Kind::Special,
                _ => Kind::Ordinary,
            };
            match (kind, token) {
                (Kind::Ordinary, Some(token)) => pieces.bytes.extend(rules.bytes(&token, decoder)),
                (_, Some(token)) => pieces.bytes.extend(token.as_bytes()),
                (_, None) => {}
            }
            pieces.ends.push(pieces.bytes.len());
            pieces.kinds.push(kind);
        }
        Ok(pieces)
    }

    /// One more than the highest id.
    pub(crate) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// What the id is.
    pub(crate) fn kind(&self, id: TokenId) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Absent)
    }

    /// The bytes of the id, a special token's name included.
    pub(crate) fn bytes(&self, id: TokenId) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..end]
    }

    /// FNV-1a, 128 bits, over (id, kind, length, bytes) of every token in order.
    pub(crate) fn fingerprint(&self) -> String {
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        let mut take = |bytes: &[u8]| {
            for &byte in bytes {
                hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
            }
        };
        for id in (0..self.len() as TokenId).filter(|&id| self.kind(id) != Kind::Absent) {
            let bytes = self.bytes(id);
            take(&id.to_le_bytes());
            take(&[u8::from(self.kind(id) == Kind::Special)]);
            take(&(bytes.len() as u64).to_le_bytes());
            take(bytes);
        }
        format!("{hash:032x}")
    }
}

/// How the tokenizer's decoder writes a token.
struct Rules {
    /// GPT-2's alphabet, where the decoder is byte-level: code point to byte.
    alphabet: Option<Vec<Option<u8>>>,
    /// Tokens `<0xNN>` are single bytes.
    byte_fallback: bool,
}

impl Rules {
    fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, &'static str> {
        let steps = match decoder {
            None => &[],
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(decoder) => std::slice::from_ref(decoder),
        };
        let mut rules = Self { alphabet: None, byte_fallback: false };
        for step in steps {
            match step {
                DecoderWrapper::CTC(_) => return Err("CTC"),
                DecoderWrapper::BPE(_) => return Err("BPEDecoder"),
                DecoderWrapper::ByteLevel(_) => rules.alphabet = Some(alphabet()),
                DecoderWrapper::ByteFallback(_) => rules.byte_fallback = true,
                _ => {}
            }
        }
        Ok(rules)
    }

    fn bytes(&self, token: &str, decoder: Option<&DecoderWrapper>) -> Vec<u8> {
        if let Some(alphabet) = &self.alphabet {
            // A token with a character outside the alphabet was added as it is.
            let mapped = token.chars().map(|c| alphabet.get(c as usize).copied().flatten()).collect();
            return Option::unwrap_or_else(mapped, || token.as_bytes().to_vec());
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            return vec![byte];
        }
        let Some(decoder) = decoder else { return format!(" {token}").into_bytes() };
        let after_anchor = decoder.decode(vec![ANCHOR.to_owned(), token.to_owned()]).ok();
        let piece = after_anchor.as_deref().and_then(|text| text.strip_prefix(ANCHOR)).unwrap_or(token);
        piece.as_bytes().to_vec()
    }
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's bytes: the printable ones of Latin-1 stand for themselves, the others for the code points from 256 on.
pub(crate) fn alphabet() -> Vec<Option<u8>> {
    let mut bytes = vec![None; 512];
    let mut next = 256;
    for byte in 0..=u8::MAX {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable { usize::from(byte) } else { next };
        next += usize::from(!printable);
        bytes[code] = Some(byte);
    }
    bytes
}
