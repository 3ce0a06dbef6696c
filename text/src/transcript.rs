//! From committed tokens to the text a client sees: the one commit function of both kinds of owner.

use std::sync::Arc;

use cascadia_core::commit::{Commit, Committed, Finish, FinishReason, Piece, StopMatch, StopSettings};
use cascadia_core::ids::TokenId;

use crate::detokenizer::Detokenizer;
use crate::stops::StopStrings;
use crate::tokenizer::Tokenizer;

/// The text of one choice so far.
///
/// Its state is a pure function of prompt, settings and the ids committed: an owner that takes over a session builds it
/// again with [`Transcript::resume`], and the text goes on exactly where the lost owner's stopped.
#[derive(Clone, Debug)]
pub struct Transcript {
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    stops: StopStrings,
    stop_ids: Vec<TokenId>,
    max_tokens: usize,
    length: usize,
    finish: Option<Finish>,
}

impl Commit for Transcript {
    fn commit(&mut self, tokens: &[TokenId]) -> Committed {
        Self::commit(self, tokens)
    }

    fn piece(&self, token: TokenId) -> Piece {
        Piece {
            bytes: self.tokenizer.token_bytes(token).unwrap_or_default().to_vec(),
            special: self.tokenizer.is_special(token),
        }
    }
}

impl Transcript {
    /// Starts behind the prompt.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: &[TokenId], stop: StopSettings) -> Self {
        let StopSettings { mut stop_ids, stop_strings, max_tokens } = stop;
        stop_ids.sort_unstable();
        let ended = Finish { reason: FinishReason::Length, matched: None };
        Self {
            detokenizer: Detokenizer::new(&tokenizer, prompt),
            tokenizer,
            stops: StopStrings::new(stop_strings),
            stop_ids,
            max_tokens,
            length: 0,
            finish: (max_tokens == 0).then_some(ended),
        }
    }

    /// Starts behind the prompt and tokens that were committed, and sent, by another owner.
    #[must_use]
    pub fn resume(tokenizer: Arc<Tokenizer>, prompt: &[TokenId], stop: StopSettings, committed: &[TokenId]) -> Self {
        let mut transcript = Self::new(tokenizer, prompt, stop);
        transcript.commit(committed);
        transcript
    }

    /// Commits the longest prefix of `tokens` that the request still wants.
    ///
    /// A stop id counts as a token but shows no text. A token that completes a stop string counts, the text ends before
    /// the string. At the end held-back text is released. Blocks or single tokens: the result is the same.
    pub fn commit(&mut self, tokens: &[TokenId]) -> Committed {
        let mut text = String::new();
        let before = self.length;
        for &token in tokens {
            if self.finish.is_some() {
                break;
            }
            self.length += 1;
            self.finish = self.advance(token, &mut text);
        }
        Committed { taken: self.length - before, text, finish: self.finish.clone() }
    }

    /// Releases what is held back: for an owner that ends the text for a reason of its own. Nothing is, behind the end.
    #[must_use]
    pub fn flush(&mut self) -> String {
        let mut text = String::new();
        // The token that completed a stop string may have begun a character behind it.
        if self.finish.is_none() {
            self.release(&mut text);
        }
        text
    }

    /// Tokens of the output so far.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// The end, if it has come.
    #[must_use]
    pub fn finish(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }

    fn advance(&mut self, token: TokenId, text: &mut String) -> Option<Finish> {
        if self.stop_ids.binary_search(&token).is_ok() {
            self.release(text);
            return Some(Finish { reason: FinishReason::Stop, matched: Some(StopMatch::Token(token)) });
        }
        let mut delta = String::new();
        self.detokenizer.push(&self.tokenizer, token, &mut delta);
        if let Some(stop) = self.stops.push(&delta, text) {
            let matched = Some(StopMatch::Text(stop.to_owned()));
            return Some(Finish { reason: FinishReason::Stop, matched });
        }
        if self.length < self.max_tokens {
            return None;
        }
        self.release(text);
        Some(Finish { reason: FinishReason::Length, matched: None })
    }

    fn release(&mut self, text: &mut String) {
        self.stops.flush(text);
        self.detokenizer.flush(text);
    }
}
