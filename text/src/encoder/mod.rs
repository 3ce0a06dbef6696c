//! Text to ids, piece by piece: the library's own steps in the library's order, so that ids are the same, but one piece at
//! a time. A prompt that turns out too long, or that nobody waits for, costs a piece and not the whole.
//!
//! The library cuts, copies and keeps the whole text before it makes the first id: seconds and hundreds of megabytes for
//! four, which nothing can stop.

mod added;
mod cuts;
mod merges;
mod rewrites;
mod widest;

use cascadia_core::ids::TokenId;

use added::{AddedTokens, Part};
use cuts::{Cut, walk};
use merges::Merges;
use rewrites::Rewrite;

/// Why a text has no ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoIds {
    /// There are more than were allowed: at least so many.
    #[error("it has at least {0} tokens")]
    TooMany(usize),
    /// Nobody wants them any more.
    #[error("nobody waits for its tokens any more")]
    Abandoned,
    /// The tokenizer says no.
    #[error("{0}")]
    Failed(String),
}

impl NoIds {
    pub(crate) fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// How far to go.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// Ids to make at most.
    pub(crate) most: usize,
    /// Looked at between pieces: false ends the work.
    pub(crate) wanted: &'a dyn Fn() -> bool,
}

impl Asked<'_> {
    /// Everything, for as long as it takes.
    pub(crate) const ALL: Self = Self { most: usize::MAX, wanted: &|| true };

    pub(crate) fn still_wanted(&self) -> Result<(), NoIds> {
        if (self.wanted)() { Ok(()) } else { Err(NoIds::Abandoned) }
    }
}

/// The ids so far.
struct Ids<'a> {
    made: Vec<TokenId>,
    asked: Asked<'a>,
}

impl Ids<'_> {
    fn add(&mut self, ids: impl IntoIterator<Item = TokenId>) -> Result<(), NoIds> {
        self.made.extend(ids);
        if self.made.len() > self.asked.most {
            return Err(NoIds::TooMany(self.made.len()));
        }
        self.asked.still_wanted()
    }
}

/// The steps of one tokenizer.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// Tokens that are looked for in the text as it came.
    literal: AddedTokens,
    rewrites: Vec<Rewrite>,
    /// Tokens that are looked for in the rewritten text.
    rewritten: AddedTokens,
    cuts: Vec<Cut>,
    merges: Merges,
    widest: Option<usize>,
}

impl Encoder {
    /// Reads the steps of a tokenizer.
    ///
    /// # Errors
    /// A step that the library takes and that does not work alone.
    pub(crate) fn of(inner: &tokenizers::Tokenizer) -> Result<Self, tokenizers::Error> {
        let rewrites = Rewrite::all(inner.get_normalizer())?;
        let cuts = Cut::all(inner.get_pre_tokenizer())?;
        let merges = Merges::of(inner.get_model());
        let widest = widest::widest(inner, &rewrites, &cuts);
        let literal = AddedTokens::of(inner, false)?;
        let rewritten = AddedTokens::of(inner, true)?;
        Ok(Self { literal, rewrites, rewritten, cuts, merges, widest })
    }

    /// Bytes of text that one id stands for at most; `None` where there is no such number.
    pub(crate) fn widest(&self) -> Option<usize> {
        self.widest
    }

    /// The ids of a text, without those that the post-processor adds.
    pub(crate) fn ids(
        &self,
        inner: &tokenizers::Tokenizer,
        text: &str,
        asked: Asked<'_>,
    ) -> Result<Vec<TokenId>, NoIds> {
        let mut ids = Ids { made: Vec::new(), asked };
        asked.still_wanted()?;
        self.literal.split(text, |part| match part {
            Part::Token(id) => ids.add([id]),
            Part::Text(at, text) => self.between(inner, text, at == 0, &mut ids),
        })?;
        Ok(ids.made)
    }

    /// What stands between two tokens of the text as it came.
    fn between(&self, inner: &tokenizers::Tokenizer, text: &str, first: bool, ids: &mut Ids<'_>) -> Result<(), NoIds> {
        let text = Rewrite::apply_all(&self.rewrites, text, &ids.asked)?;
        self.rewritten.split(&text, |part| match part {
            Part::Token(id) => ids.add([id]),
            Part::Text(at, text) => {
                walk(&self.cuts, text, first && at == 0, &mut |piece| self.merges.ids(inner.get_model(), piece, ids))
            }
        })
    }
}

/// The last boundary between characters that is no further than `at`.
fn boundary(text: &str, at: usize) -> usize {
    if at >= text.len() { text.len() } else { (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0) }
}
