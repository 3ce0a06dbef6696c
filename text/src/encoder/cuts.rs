//! Where a text is cut before merges, one cut after the other and no further than is asked.

use std::ops::Range;
use std::sync::LazyLock;

use fancy_regex::Regex;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior as Behavior};

use super::NoIds;
use crate::pieces::alphabet;

/// The pattern of GPT-2, which the library's byte-level step has built in.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Places of a text.
#[derive(Debug)]
pub(super) enum Places {
    /// Matches of a pattern.
    Pattern(Regex),
    /// Numeric characters.
    Numeric,
    /// White space.
    Space,
    /// One character, wherever it stands.
    Character(char),
}

impl Places {
    /// Hands over the parts of a text in their order, and which of them are such places.
    fn find(&self, text: &str, take: &mut dyn FnMut(Range<usize>, bool) -> Result<(), NoIds>) -> Result<(), NoIds> {
        let mut done = 0;
        let mut found = |place: Range<usize>| {
            if done != place.start {
                take(done..place.start, false)?;
            }
            done = place.end;
            take(place, true)
        };
        match self {
            Self::Pattern(pattern) => {
                for place in pattern.find_iter(text) {
                    let place = place.map_err(|error| NoIds::Failed(format!("{PATTERN}: {error}")))?;
                    found(place.range())?;
                }
            }
            Self::Numeric => characters(text, char::is_numeric, &mut found)?,
            Self::Space => characters(text, char::is_whitespace, &mut found)?,
            Self::Character(one) => characters(text, |c| c == *one, &mut found)?,
        }
        if done != text.len() { take(done..text.len(), false) } else { Ok(()) }
    }
}

fn characters(
    text: &str,
    wanted: impl Fn(char) -> bool,
    found: &mut dyn FnMut(Range<usize>) -> Result<(), NoIds>,
) -> Result<(), NoIds> {
    text.char_indices().filter(|&(_, c)| wanted(c)).try_for_each(|(at, c)| found(at..at + c.len_utf8()))
}

/// One step.
#[derive(Debug)]
pub(super) enum Cut {
    /// Cuts at places; `invert`: at all that is none.
    At { places: Places, behavior: Behavior, invert: bool },
    /// A space goes before a piece that begins with none.
    SpaceBefore,
    /// Spaces become another character, and one goes before a piece that begins with none.
    Meta(char, PrependScheme),
    /// Bytes become characters, as in GPT-2.
    Bytes,
    /// The library's own, on all of a piece at once.
    Whole(PreTokenizerWrapper),
}

impl Cut {
    /// All steps of a tokenizer.
    pub(super) fn all(stated: Option<&PreTokenizerWrapper>) -> Result<Vec<Self>, tokenizers::Error> {
        let mut cuts = Vec::new();
        if let Some(stated) = stated {
            Self::read(stated, &mut cuts)?;
        }
        Ok(cuts)
    }

    fn read(stated: &PreTokenizerWrapper, cuts: &mut Vec<Self>) -> Result<(), tokenizers::Error> {
        use PreTokenizerWrapper as Step;
        let at = |places, behavior| Self::At { places, behavior, invert: false };
        match stated {
            Step::Sequence(steps) => {
                for step in steps.as_ref() {
                    Self::read(step, cuts)?;
                }
            }
            Step::ByteLevel(step) => {
                if step.add_prefix_space {
                    cuts.push(Self::SpaceBefore);
                }
                if step.use_regex {
                    cuts.push(at(Places::Pattern(Regex::new(GPT2)?), Behavior::Isolated));
                }
                cuts.push(Self::Bytes);
            }
            Step::Split(step) => {
                let pattern = match &step.pattern {
                    SplitPattern::String(literal) => Regex::new(&fancy_regex::escape(literal))?,
                    SplitPattern::Regex(pattern) => Regex::new(pattern)?,
                };
                let (behavior, invert) = (step.behavior, step.invert);
                cuts.push(Self::At { places: Places::Pattern(pattern), behavior, invert });
            }
            Step::Digits(step) if step.individual_digits => cuts.push(at(Places::Numeric, Behavior::Isolated)),
            Step::Digits(_) => cuts.push(at(Places::Numeric, Behavior::Contiguous)),
            Step::WhitespaceSplit(_) => cuts.push(at(Places::Space, Behavior::Removed)),
            Step::Delimiter(step) => cuts.push(at(Places::Character(step.delimiter), Behavior::Removed)),
            Step::Metaspace(step) => {
                let space = step.get_replacement();
                cuts.push(Self::Meta(space, step.prepend_scheme));
                if step.split {
                    cuts.push(at(Places::Character(space), Behavior::MergedWithNext));
                }
            }
            other => cuts.push(Self::Whole(other.clone())),
        }
        Ok(())
    }
}

/// Hands over the pieces of a text in their order. `first`: the text begins where the prompt does.
pub(super) fn walk(
    cuts: &[Cut],
    text: &str,
    first: bool,
    each: &mut dyn FnMut(&str) -> Result<(), NoIds>,
) -> Result<(), NoIds> {
    if text.is_empty() {
        return Ok(());
    }
    let Some((cut, later)) = cuts.split_first() else { return each(text) };
    match cut {
        Cut::At { places, behavior, invert } => {
            let mut on = |part: Option<Range<usize>>| {
                part.map_or(Ok(()), |part| walk(later, &text[part.clone()], first && part.start == 0, each))
            };
            let mut joined = Joined { behavior: *behavior, held: None, before: false };
            places.find(text, &mut |part, place| on(joined.push(part, place != *invert)))?;
            on(joined.held)
        }
        Cut::SpaceBefore if text.starts_with(' ') => walk(later, text, first, each),
        Cut::SpaceBefore => walk(later, &format!(" {text}"), first, each),
        Cut::Meta(space, prepend) => {
            let mut text = text.replace(' ', space.encode_utf8(&mut [0; 4]));
            let prepended = match prepend {
                PrependScheme::Always => true,
                PrependScheme::First => first,
                PrependScheme::Never => false,
            };
            if prepended && !text.starts_with(*space) {
                text.insert(0, *space);
            }
            walk(later, &text, first, each)
        }
        Cut::Bytes => {
            let text: String = text.bytes().map(|byte| BYTES[usize::from(byte)]).collect();
            walk(later, &text, first, each)
        }
        Cut::Whole(step) => {
            let mut split = PreTokenizedString::from(text);
            step.pre_tokenize(&mut split).map_err(NoIds::failed)?;
            for (part, (start, _), _) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
                walk(later, part, first && start == 0, each)?;
            }
            Ok(())
        }
    }
}

/// What is said where a pattern gives up.
const PATTERN: &str = "the tokenizer's own pattern gives up on it";

/// Puts matches and what stands between them together, as a step wants them.
struct Joined {
    behavior: Behavior,
    held: Option<Range<usize>>,
    before: bool,
}

impl Joined {
    /// Takes the next part; what is complete now.
    fn push(&mut self, part: Range<usize>, matched: bool) -> Option<Range<usize>> {
        let before = std::mem::replace(&mut self.before, matched);
        let joins = match self.behavior {
            Behavior::Isolated | Behavior::Removed => false,
            Behavior::Contiguous => matched == before,
            Behavior::MergedWithPrevious => matched && !before,
            Behavior::MergedWithNext => !matched && before,
        };
        if let (true, Some(held)) = (joins, &mut self.held) {
            held.end = part.end;
            return None;
        }
        let removed = matched && self.behavior == Behavior::Removed;
        std::mem::replace(&mut self.held, (!removed).then_some(part))
    }
}

/// GPT-2's character for each byte.
static BYTES: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut chars = ['\0'; 256];
    for (code, byte) in (0..).zip(alphabet()) {
        if let (Some(byte), Some(c)) = (byte, char::from_u32(code)) {
            chars[usize::from(byte)] = c;
        }
    }
    chars
});
