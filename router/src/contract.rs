//! What an owner may say of a session: nothing that it sends is used, kept or relayed before it is held to this. Pure.
//!
//! It bounds what a faulty owner can do to a router's memory and to a client. It does not make its text true: which
//! node is an owner at all is membership's to say.

use std::ops::RangeInclusive;

use cascadia_core::ids::TokenId;
use cascadia_core::limits;
use cascadia_proto::prompt::Shape;
use cascadia_proto::v1;

use crate::admission::{AdmittedRequest, LABEL_BYTES};
use crate::transcript::{Breach, Transcript};

/// No vocabulary is larger: what bounds an owner that does not name its own.
const MOST_VOCABULARY: u32 = 1 << 24;

/// No context is longer: what bounds an owner that does not name its own.
const MOST_CONTEXT: usize = 1 << 24;

/// Ids that one byte of a prompt may become. One is the rule; a normaliser can write a ligature out.
const IDS_PER_BYTE: usize = 16;

/// Ids that a chat template may add to a conversation, and to each of its messages.
const TEMPLATE_IDS: usize = 1 << 16;
const MESSAGE_IDS: usize = 256;

/// What a message weighs at least in [`cascadia_proto::prompt::EncodedPrompt::weight`].
const MESSAGE_WEIGHT: usize = 16;

/// Bytes that one id may write: some vocabularies have a token of a few hundred spaces.
const BYTES_PER_ID: usize = 1_024;

/// Times that an owner may look for another expert. It pauses between two looks, so a request's time allows no more.
const MOST_MOVES: u32 = 4_096;

/// What an owner may count of anything it did for one session.
const MOST_COUNTED: u64 = u32::MAX as u64;

/// A log-probability may be so much above 0 by rounding.
const ROUNDING: f32 = 1e-3;

/// What the owners of one session may say.
#[derive(Debug)]
pub struct Contract<'a> {
    admitted: &'a AdmittedRequest,
    /// Bytes of text so far, of all owners.
    text_bytes: usize,
    /// The present owner, once it has opened the session.
    owner: Option<Room>,
}

/// What the present owner has said that it has.
#[derive(Clone, Copy, Debug)]
struct Room {
    vocabulary: u32,
    context: usize,
    moves: u32,
}

/// What no owner exceeds.
const ANY: Room = Room { vocabulary: MOST_VOCABULARY, context: MOST_CONTEXT, moves: 0 };

impl<'a> Contract<'a> {
    /// Of a session on these terms.
    #[must_use]
    pub fn new(admitted: &'a AdmittedRequest) -> Self {
        Self { admitted, text_bytes: 0, owner: None }
    }

    /// Another owner is asked: it has said nothing yet.
    pub fn next_owner(&mut self) {
        self.owner = None;
    }

    /// The present owner opens the session, whose prompt may be known already.
    ///
    /// # Errors
    /// Where it opens it twice, or the prompt has a length that it cannot have.
    pub fn opened(&mut self, opened: &v1::Opened, transcript: &Transcript) -> Result<(), Breach> {
        if self.owner.is_some() {
            return Err(Breach::Unexpected { what: "a second opening" });
        }
        let prints = opened.fingerprints.as_ref();
        let prints = prints.into_iter().flat_map(|prints| [&prints.drafter, &prints.expert, &prints.tokenizer]);
        for print in prints {
            at_most("the length of a fingerprint", print.len(), LABEL_BYTES)?;
        }
        let said = |said: u32, most: usize| if said == 0 { most } else { most.min(said as usize) };
        let vocabulary = said(opened.vocabulary, ANY.vocabulary as usize) as u32;
        let room = Room { vocabulary, context: said(opened.context, ANY.context), moves: 0 };
        let announced = opened.prompt_tokens as usize;
        let possible = match transcript.is_known() {
            true => transcript.prompt_tokens()..=transcript.prompt_tokens(),
            false => self.prompt_tokens(),
        };
        if announced < *possible.start() {
            return Err(Breach::Prompt { announced: *possible.start(), sent: announced });
        }
        at_most("the number of prompt tokens", announced, room.context.min(*possible.end()))?;
        self.owner = Some(room);
        Ok(())
    }

    /// How many ids the prompt can have become.
    fn prompt_tokens(&self) -> RangeInclusive<usize> {
        let text = |bytes: usize, messages: usize| 1..=bytes * IDS_PER_BYTE + messages * MESSAGE_IDS + TEMPLATE_IDS;
        let prompt = &self.admitted.prompt;
        match prompt.shape() {
            Shape::Ids => prompt.tokens()..=prompt.tokens(),
            Shape::Text => text(prompt.weight(), 0),
            Shape::Messages => text(prompt.weight(), prompt.weight() / MESSAGE_WEIGHT),
        }
    }

    /// The present owner sends a piece of the prompt's ids.
    ///
    /// # Errors
    /// Where it has not opened the session, names no token, or not those that the client sent.
    pub fn history(&self, ids: &[TokenId], transcript: &Transcript) -> Result<(), Breach> {
        let room = self.room("a history")?;
        room.knows(ids.iter().copied())?;
        let prompt = &self.admitted.prompt;
        let mut asked = prompt.ids().skip(transcript.ids().len());
        if prompt.shape() == Shape::Ids && !ids.iter().all(|id| asked.next() == Some(*id)) {
            return Err(Breach::Unexpected { what: "another prompt than the client's" });
        }
        Ok(())
    }

    /// The present owner sends committed tokens.
    ///
    /// # Errors
    /// What it may not say of them.
    pub fn tokens(&mut self, tokens: &v1::Tokens, transcript: &Transcript) -> Result<(), Breach> {
        let room = self.room("tokens")?;
        let (count, committed) = (tokens.ids.len(), transcript.committed() + tokens.ids.len());
        at_most("the number of output tokens", committed, self.admitted.parameters.max_tokens() as usize)?;
        at_most("the number of tokens", transcript.ids().len() + count, room.context)?;
        room.knows(tokens.ids.iter().copied())?;
        one_each("words on who wrote a token", tokens.provenance.len(), count)?;
        let text_bytes = self.text_bytes + tokens.text.len();
        at_most("the number of bytes of text", text_bytes, committed * BYTES_PER_ID)?;
        let asked = self.admitted.parameters.logprobs.is_some();
        one_each("log-probabilities", tokens.logprobs.len(), if asked { count } else { 0 })?;
        for logprobs in &tokens.logprobs {
            at_most("the number of alternatives", logprobs.top.len(), limits::MAX_TOP_LOGPROBS)?;
            // The expert may name what its owner has no row for.
            ANY.knows(logprobs.top.iter().map(|top| top.token))?;
            let all = logprobs.expert.into_iter().chain(logprobs.drafter).chain(logprobs.top.iter().map(|t| t.logprob));
            // Minus infinity is a banned token's.
            if all.into_iter().any(|logprob| logprob.is_nan() || logprob > ROUNDING) {
                return Err(Breach::Unexpected { what: "a log-probability that is none" });
            }
        }
        let named = count + tokens.logprobs.iter().map(|logprobs| logprobs.top.len()).sum::<usize>();
        at_most("the number of pieces", tokens.pieces.len(), if asked { named } else { 0 })?;
        for piece in &tokens.pieces {
            ANY.knows([piece.token])?;
            at_most("the number of bytes of a piece", piece.bytes.len(), BYTES_PER_ID)?;
        }
        self.text_bytes = text_bytes;
        Ok(())
    }

    /// The present owner uses another expert.
    ///
    /// # Errors
    /// Where it has not opened the session, or has done so too often.
    pub fn moved(&mut self, moved: &v1::Moved) -> Result<(), Breach> {
        self.room("a move")?;
        for name in moved.expert.iter().flat_map(|expert| [&expert.id, &expert.fingerprint]) {
            at_most("the length of an expert's name", name.len(), LABEL_BYTES)?;
        }
        if let Some(room) = &mut self.owner {
            room.moves += 1;
            at_most("the number of moves", room.moves as usize, MOST_MOVES as usize)?;
        }
        Ok(())
    }

    /// The present owner hands the session over.
    ///
    /// # Errors
    /// Where the strategy knows no such thing, tokens were committed, or its account cannot be.
    pub fn handover(&self, handover: &v1::Handover, transcript: &Transcript) -> Result<(), Breach> {
        self.room("a handover")?;
        if !transcript.is_known() {
            return Err(Breach::Early { what: "a handover" });
        }
        if self.admitted.parameters.strategy != "cascade_query" {
            return Err(Breach::Unexpected { what: "a handover of a strategy that has none" });
        }
        if transcript.committed() > 0 {
            return Err(Breach::Unexpected { what: "a handover after tokens" });
        }
        if !handover.score.is_finite() {
            return Err(Breach::Unexpected { what: "a score that is no number" });
        }
        handover.speculation.as_ref().map_or(Ok(()), account)
    }

    /// The present owner says that the text is whole.
    ///
    /// # Errors
    /// Where it cannot be, or its account cannot.
    pub fn finished(&self, finished: &v1::Finished, transcript: &Transcript) -> Result<(), Breach> {
        let room = self.room("its end")?;
        if !transcript.is_known() {
            return Err(Breach::Early { what: "its end" });
        }
        let cached = finished.usage.map_or(0, |usage| usage.cached_tokens);
        at_most("the number of cached tokens", cached as usize, transcript.prompt_tokens())?;
        room.knows(finished.stop_token)?;
        if finished.stop_string.as_ref().is_some_and(|stop| !self.admitted.parameters.stop.contains(stop)) {
            return Err(Breach::Unexpected { what: "a stop string that was not asked for" });
        }
        finished.speculation.as_ref().map_or(Ok(()), account)
    }

    fn room(&self, what: &'static str) -> Result<Room, Breach> {
        self.owner.ok_or(Breach::Early { what })
    }
}

impl Room {
    fn knows(self, ids: impl IntoIterator<Item = TokenId>) -> Result<(), Breach> {
        match ids.into_iter().find(|&id| id >= self.vocabulary) {
            None => Ok(()),
            Some(id) => Err(Breach::Unknown { id, vocabulary: self.vocabulary }),
        }
    }
}

/// What a session's owner says it did.
fn account(account: &v1::Speculation) -> Result<(), Breach> {
    let v1::Speculation { blocks, drafted, accepted, relaxed, deferred, expert_passes, moves, stale_blocks, .. } =
        *account;
    for counted in [blocks, drafted, accepted, relaxed, deferred, expert_passes, moves, stale_blocks] {
        at_most("a count of its account", counted as usize, MOST_COUNTED as usize)?;
    }
    if account.score.is_some_and(|score| !score.is_finite()) {
        return Err(Breach::Unexpected { what: "a score that is no number" });
    }
    // One for each length of a block and each number of its drafts that were accepted.
    let longest = limits::MAX_DRAFT_LENGTH;
    at_most("the number of outcomes", account.outcomes.len(), (longest + 1) * (longest + 2) / 2)?;
    for outcome in &account.outcomes {
        at_most("the length of a block", outcome.drafted as usize, longest)?;
        at_most("the number of accepted drafts", outcome.accepted as usize, outcome.drafted as usize)?;
        at_most("a count of its account", outcome.blocks as usize, MOST_COUNTED as usize)?;
    }
    Ok(())
}

fn at_most(what: &'static str, got: usize, most: usize) -> Result<(), Breach> {
    if got <= most { Ok(()) } else { Err(Breach::Beyond { what, got, most }) }
}

fn one_each(what: &'static str, got: usize, expected: usize) -> Result<(), Breach> {
    if got == expected { Ok(()) } else { Err(Breach::Uneven { what, got, expected }) }
}

#[cfg(test)]
mod tests;
