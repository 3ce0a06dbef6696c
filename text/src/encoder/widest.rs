//! How much text one id can stand for: a longer text is refused unread.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Model, ModelWrapper, NormalizerWrapper, SplitDelimiterBehavior};

use super::cuts::Cut;
use super::rewrites::Rewrite;
use crate::pieces::alphabet;

/// Canonical forms of Unicode shorten a text to a quarter at most.
const COMPOSED: usize = 4;

/// A character's bytes.
const CHARACTER: usize = 4;

/// Bytes of text that one id stands for at most; `None` where a step may drop text, or gives no such number.
pub(super) fn widest(inner: &tokenizers::Tokenizer, rewrites: &[Rewrite], cuts: &[Cut]) -> Option<usize> {
    let bytes = matches!(cuts.last(), Some(Cut::Bytes));
    let shorter = rewrites.iter().map(shortens).product::<Option<usize>>()?;
    let drops = cuts.iter().any(|cut| match cut {
        Cut::At { behavior, .. } => *behavior == SplitDelimiterBehavior::Removed,
        Cut::Whole(step) => {
            !matches!(step, PreTokenizerWrapper::FixedLength(_) | PreTokenizerWrapper::UnicodeScripts(_))
        }
        Cut::SpaceBefore | Cut::Meta(..) | Cut::Bytes => false,
    });
    let added = inner.get_added_tokens_decoder();
    if drops || added.values().any(|token| token.lstrip || token.rstrip) {
        return None;
    }
    let unknown = unknown(inner.get_model(), bytes)?;
    // Behind the byte-level step a byte is a character.
    let width = |token: &String| if bytes { token.chars().count() } else { token.len() };
    let ordinary = inner.get_vocab(false).keys().map(width).max().unwrap_or(0).max(unknown);
    let named =
        added.iter().flat_map(|(&id, token)| [token.content.len(), inner.id_to_token(id).map_or(0, |n| n.len())]);
    Some(named.max().unwrap_or(0).max(ordinary).saturating_mul(shorter))
}

/// How many times longer the text before a step is than behind it, at most.
fn shortens(step: &Rewrite) -> Option<usize> {
    match step {
        Rewrite::Prepend(_) => Some(1),
        Rewrite::Replace { from, to } => (from.len() <= to.len()).then_some(1),
        Rewrite::Unicode(NormalizerWrapper::NFC(_) | NormalizerWrapper::NFD(_)) => Some(COMPOSED),
        Rewrite::Unicode(_) | Rewrite::Chars(_) | Rewrite::Whole(_) => None,
    }
}

/// Bytes of what is no token of the model and becomes one id; `None` where that may be any text, or becomes none.
fn unknown(model: &ModelWrapper, bytes: bool) -> Option<usize> {
    let ModelWrapper::BPE(bpe) = model else { return None };
    if bpe.continuing_subword_prefix.is_some() || bpe.end_of_word_suffix.is_some() {
        return None;
    }
    let known = |token: String| bpe.token_to_id(&token).is_some();
    let coded = (0..).zip(alphabet()).filter(|(_, byte)| byte.is_some());
    let whole_alphabet = bytes && coded.filter_map(|(code, _)| char::from_u32(code)).all(|c| known(c.into()));
    let all_bytes = bpe.byte_fallback && (0..=u8::MAX).all(|byte| known(format!("<0x{byte:02X}>")));
    if whole_alphabet || all_bytes {
        return Some(0);
    }
    (bpe.unk_token.is_some() && !bpe.fuse_unk).then_some(CHARACTER)
}
