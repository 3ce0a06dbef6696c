//! What is done to a text before it is cut: normalisation.

use std::borrow::Cow;

use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

use super::{Asked, NoIds, boundary};

/// Bytes that are rewritten together: the library keeps sixteen bytes of notes for each.
const PART: usize = 32 * 1024;

/// One step.
#[derive(Debug)]
pub(super) enum Rewrite {
    /// Something goes before a text.
    Prepend(String),
    /// A string becomes another.
    Replace { from: String, to: String },
    /// A form of Unicode: done part by part, each but the first beginning at a character that joins none before it.
    Unicode(NormalizerWrapper),
    /// Every character alone.
    Chars(NormalizerWrapper),
    /// The library's own, on all of a text at once.
    Whole(NormalizerWrapper),
}

impl Rewrite {
    /// All steps of a tokenizer.
    pub(super) fn all(stated: Option<&NormalizerWrapper>) -> Result<Vec<Self>, tokenizers::Error> {
        let mut steps = Vec::new();
        if let Some(stated) = stated {
            Self::read(stated, &mut steps)?;
        }
        Ok(steps)
    }

    fn read(stated: &NormalizerWrapper, steps: &mut Vec<Self>) -> Result<(), tokenizers::Error> {
        use NormalizerWrapper as Step;
        match stated {
            Step::Sequence(sequence) => {
                for step in sequence.as_ref() {
                    Self::read(step, steps)?;
                }
            }
            Step::Prepend(step) => steps.push(Self::Prepend(step.prepend.clone())),
            Step::Replace(step) => {
                // The library tells its pattern in no other way.
                let pattern = &serde_json::to_value(step)?["pattern"]["String"];
                steps.push(match pattern {
                    Value::String(from) if !from.is_empty() => {
                        Self::Replace { from: from.clone(), to: step.content.clone() }
                    }
                    _ => Self::Whole(stated.clone()),
                });
            }
            Step::NFC(_) | Step::NFD(_) | Step::NFKC(_) | Step::NFKD(_) => steps.push(Self::Unicode(stated.clone())),
            Step::Lowercase(_) | Step::StripAccents(_) | Step::Nmt(_) | Step::ByteLevel(_) => {
                steps.push(Self::Chars(stated.clone()));
            }
            _ => steps.push(Self::Whole(stated.clone())),
        }
        Ok(())
    }

    /// The text after all steps.
    pub(super) fn apply_all<'t>(steps: &[Self], text: &'t str, asked: &Asked<'_>) -> Result<Cow<'t, str>, NoIds> {
        let mut text = Cow::Borrowed(text);
        for step in steps {
            asked.still_wanted()?;
            text = Cow::Owned(step.apply(&text, asked)?);
        }
        Ok(text)
    }

    fn apply(&self, text: &str, asked: &Asked<'_>) -> Result<String, NoIds> {
        match self {
            Self::Prepend(before) if !text.is_empty() => Ok(format!("{before}{text}")),
            Self::Prepend(_) => Ok(String::new()),
            Self::Replace { from, to } => Ok(text.replace(from, to)),
            Self::Unicode(step) => by_parts(step, text, asked, joins_none_before),
            Self::Chars(step) => by_parts(step, text, asked, |_| true),
            Self::Whole(step) => Ok(whole(step, text)),
        }
    }
}

/// Rewrites parts that begin at a character of the asked kind, and that are as short as such characters allow.
fn by_parts(
    step: &NormalizerWrapper,
    text: &str,
    asked: &Asked<'_>,
    begins: impl Fn(char) -> bool,
) -> Result<String, NoIds> {
    let mut written = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        asked.still_wanted()?;
        let (near, far) = rest.split_at(boundary(rest, PART));
        let end = far.find(&begins).map_or(rest.len(), |at| near.len() + at);
        let (part, behind) = rest.split_at(end);
        written.push_str(&whole(step, part));
        rest = behind;
    }
    Ok(written)
}

/// A step that fails leaves the text as far as it came, as in the library.
fn whole(step: &NormalizerWrapper, text: &str) -> String {
    let mut normalized = NormalizedString::from(text);
    let _ = step.normalize(&mut normalized);
    normalized.get().to_owned()
}

/// Letters and signs that no form of Unicode ever joins to what stands before them. Not all of these: enough that some
/// stand in every text that anybody writes.
fn joins_none_before(c: char) -> bool {
    matches!(c,
        '\u{0}'..='\u{2ff}' // Latin
        | '\u{370}'..='\u{482}' | '\u{48a}'..='\u{590}' // Greek, Cyrillic, Armenian
        | '\u{5d0}'..='\u{5ea}' | '\u{620}'..='\u{64a}' // Hebrew, Arabic
        | '\u{904}'..='\u{939}' | '\u{e01}'..='\u{e30}' // Devanagari, Thai
        | '\u{3000}'..='\u{3029}' | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' // signs, kana
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' // Han, Hangul
        | '\u{ff01}'..='\u{ff5e}') // full width
}
