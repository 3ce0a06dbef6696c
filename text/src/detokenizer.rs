//! Tokens in, text out, token by token.

use cascadia_core::ids::TokenId;

use crate::tokenizer::Tokenizer;

/// The longest beginning of a character that is not yet the character.
const INCOMPLETE_BYTES: usize = 3;

/// The state between two tokens: at most the first bytes of one character.
///
/// The text of a sequence is a function of its ids alone; how they are grouped never matters. Bytes that can no longer
/// become a character are U+FFFD at once, so garbage never delays the text behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detokenizer {
    pending: Vec<u8>,
    at_start: bool,
}

impl Detokenizer {
    /// Starts behind a prompt: its text is not repeated, but a character that its last token began is completed.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer, prompt: &[TokenId]) -> Self {
        let mut detokenizer =
            Self { pending: Vec::new(), at_start: prompt.iter().all(|&id| tokenizer.shown(id).is_none()) };
        let mut bytes = 0;
        let tail = prompt.iter().rposition(|&id| {
            bytes += tokenizer.shown(id).map_or(0, <[u8]>::len);
            bytes >= INCOMPLETE_BYTES
        });
        for &id in &prompt[tail.unwrap_or(0)..] {
            detokenizer.feed(tokenizer.shown(id).unwrap_or_default(), &mut String::new());
        }
        detokenizer
    }

    /// Appends to `text` what the token completes.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: TokenId, text: &mut String) {
        let shown = if self.at_start { tokenizer.shown_first(id) } else { tokenizer.shown(id) };
        let Some(bytes) = shown else { return };
        self.at_start = false;
        self.feed(bytes, text);
    }

    /// Ends the text: the beginning of a character that never came is U+FFFD.
    pub fn flush(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn feed(&mut self, bytes: &[u8], text: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let last = done + invalid.len() == self.pending.len();
            if last && str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none()) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                done += invalid.len();
            }
        }
        self.pending.drain(..done);
    }
}
