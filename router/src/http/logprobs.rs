//! Log-probabilities in the two shapes that OpenAI's endpoints have.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::http::answer::{Alternative, Scored, Token};

/// What stands for a token that is next to impossible, or was not scored: JSON has no infinity.
const LEAST: f64 = -9999.0;

fn number(logprob: Option<f32>) -> f64 {
    logprob.map_or(LEAST, |logprob| f64::from(logprob).max(LEAST))
}

/// A choice's `logprobs`, in the shape of its endpoint.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Logprobs {
    /// Of a chat.
    Chat {
        /// One a token.
        content: Vec<Entry>,
        /// Always `null`.
        refusal: (),
    },
    /// Of plain text.
    Text(Older),
}

/// A token of a chat, with the alternatives to it.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    #[serde(flatten)]
    chosen: Named,
    top_logprobs: Vec<Named>,
}

#[derive(Clone, Debug, Serialize)]
struct Named {
    token: String,
    logprob: f64,
    /// A special token has a name and writes none.
    bytes: Option<Vec<u8>>,
}

/// The shape of the older endpoint: lists, of which each has one element a token.
#[derive(Clone, Debug, Serialize)]
pub struct Older {
    tokens: Vec<String>,
    token_logprobs: Vec<f64>,
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

/// Those of a chat's choice.
#[must_use]
pub fn chat(tokens: &[Token]) -> Logprobs {
    let scored = tokens.iter().filter_map(|token| token.scored.as_ref());
    let entry =
        |scored: &Scored| Entry { chosen: named(&scored.chosen), top_logprobs: scored.top.iter().map(named).collect() };
    Logprobs::Chat { content: scored.map(entry).collect(), refusal: () }
}

fn named(token: &Alternative) -> Named {
    let bytes = (!token.special).then(|| token.bytes.clone());
    Named { token: String::from_utf8_lossy(&token.bytes).into_owned(), logprob: number(token.logprob), bytes }
}

/// Where tokens begin in the text, in characters, for the older endpoint.
#[derive(Clone, Debug, Default)]
pub struct Offsets {
    characters: usize,
    /// The beginning of a character that is not whole yet.
    pending: Vec<u8>,
}

impl Offsets {
    /// Behind a text that stands in front of the answer.
    #[must_use]
    pub fn behind(text: &str) -> Self {
        Self { characters: text.chars().count(), pending: Vec::new() }
    }

    /// The next token's; moves behind it.
    pub fn next(&mut self, token: &Alternative) -> usize {
        let at = self.characters;
        if token.special {
            return at;
        }
        self.pending.extend_from_slice(&token.bytes);
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            let invalid = chunk.invalid();
            self.characters += chunk.valid().chars().count();
            done += chunk.valid().len();
            let is_last = done + invalid.len() == self.pending.len();
            if is_last && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none()) {
                break;
            }
            // Shown as one U+FFFD.
            self.characters += usize::from(!invalid.is_empty());
            done += invalid.len();
        }
        self.pending.drain(..done);
        at
    }
}

/// Those of a choice at the older endpoint.
pub fn text(tokens: &[Token], offsets: &mut Offsets) -> Logprobs {
    let scored: Vec<&Scored> = tokens.iter().filter_map(|token| token.scored.as_ref()).collect();
    Logprobs::Text(Older {
        tokens: scored.iter().map(|scored| name(&scored.chosen)).collect(),
        token_logprobs: scored.iter().map(|scored| number(scored.chosen.logprob)).collect(),
        top_logprobs: scored.iter().map(|scored| top(scored)).collect(),
        text_offset: scored.iter().map(|scored| offsets.next(&scored.chosen)).collect(),
    })
}

/// A token as a key: bytes that are no text are spelt out, as OpenAI does.
fn name(token: &Alternative) -> String {
    match std::str::from_utf8(&token.bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => std::iter::once("bytes:".to_owned())
            .chain(token.bytes.iter().map(|byte| format!("\\x{byte:02x}")))
            .collect(),
    }
}

/// The chosen token is always among them.
fn top(scored: &Scored) -> Map<String, Value> {
    let all = scored.top.iter().chain([&scored.chosen]);
    all.map(|token| (name(token), number(token.logprob).into())).collect()
}

#[cfg(test)]
mod tests {
    use cascadia_proto::v1::Provenance;
    use serde_json::json;

    use super::*;

    fn alternative(bytes: &[u8], logprob: f32) -> Alternative {
        Alternative { bytes: bytes.to_vec(), special: bytes.starts_with(b"<|"), logprob: Some(logprob) }
    }

    fn token(bytes: &[u8]) -> Token {
        let scored = Scored { chosen: alternative(bytes, -0.5), top: vec![alternative(b"<|eos|>", f32::NEG_INFINITY)] };
        Token { id: 1, provenance: Provenance::Accepted, scored: Some(scored) }
    }

    #[test]
    fn a_token_has_its_bytes_and_a_special_one_a_name() {
        let entries = json!(chat(&[token("é".as_bytes()), token(&[0xe2, 0x82])]));
        let entries = &entries["content"];
        assert_eq!(entries[0]["token"], "é");
        assert_eq!((&entries[0]["bytes"], &entries[1]["bytes"]), (&json!([0xc3, 0xa9]), &json!([0xe2, 0x82])));
        let top = &entries[0]["top_logprobs"][0];
        assert_eq!((&top["token"], &top["logprob"], &top["bytes"]), (&json!("<|eos|>"), &json!(-9999.0), &Value::Null));
    }

    #[test]
    fn offsets_count_characters_of_the_text() {
        let mut offsets = Offsets::behind("ab");
        let tokens = ["é".as_bytes(), &[0xe2, 0x82], &[0xac, b'x'], b"<|eos|>", &[0xff], b"y"].map(token);
        let older = json!(text(&tokens, &mut offsets));
        assert_eq!(older["text_offset"], json!([2, 3, 3, 5, 5, 6]));
        assert_eq!(older["tokens"][1], "bytes:\\xe2\\x82");
        assert_eq!(older["top_logprobs"][0], json!({"<|eos|>": -9999.0, "é": -0.5}));
    }
}
