//! The answer to a request as its sessions bring it forth: what each event adds, and what is known at the end.

use std::collections::BTreeMap;

use cascadia_core::ids::{SessionId, TokenId};
use cascadia_proto::v1::generate_response::Event;
use cascadia_proto::v1::{self, FinishReason, Provenance};
use tokio::time::Instant;

/// One token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// Who wrote it.
    pub provenance: Provenance,
    /// What was asked to be known of it.
    pub scored: Option<Scored>,
}

/// A token with its log-probability and the alternatives to it, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The token itself.
    pub chosen: Alternative,
    /// As many as were asked for.
    pub top: Vec<Alternative>,
}

/// A token that might be written, and how likely it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// What it writes; a special token's name.
    pub bytes: Vec<u8>,
    /// It is no part of the text.
    pub special: bool,
    /// The logarithm of its probability, if the model scored it.
    pub logprob: Option<f32>,
}

/// What one event adds to its choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Which choice.
    pub index: usize,
    /// The choice has begun: nothing else is in it.
    pub begins: bool,
    /// More text; may lag behind the tokens.
    pub text: String,
    /// More tokens.
    pub tokens: Vec<Token>,
    /// The end, in OpenAI's word.
    pub finish: Option<&'static str>,
}

/// One choice.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Its session's name in the cluster.
    pub session: SessionId,
    /// What is in force.
    pub started: v1::Started,
    /// What was done, once it is.
    pub finished: Option<v1::Finished>,
    /// When it was opened, brought its first token, and its last.
    pub times: [Option<Instant>; 3],
}

/// Everything that is known of an answer but its text.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When the request came.
    pub arrived: Instant,
    /// Prompt by prompt.
    pub choices: Vec<Choice>,
}

impl Answer {
    /// Nothing has come yet.
    #[must_use]
    pub fn new(sessions: impl Iterator<Item = SessionId>, arrived: Instant) -> Self {
        let choice =
            |session| Choice { session, started: v1::Started::default(), finished: None, times: Default::default() };
        Self { arrived, choices: sessions.map(choice).collect() }
    }

    /// Takes what a session says.
    pub fn take(&mut self, index: usize, event: Event, now: Instant) -> Delta {
        let Some(choice) = self.choices.get_mut(index) else { return Delta::default() };
        let mut delta = Delta { index, ..Delta::default() };
        match event {
            Event::Started(started) => {
                choice.started = started;
                choice.times[0] = Some(now);
                delta.begins = true;
            }
            Event::Tokens(tokens) => {
                if !tokens.ids.is_empty() {
                    choice.times[1].get_or_insert(now);
                    choice.times[2] = Some(now);
                }
                delta.text.clone_from(&tokens.text);
                delta.tokens = read_tokens(tokens);
            }
            Event::Finished(finished) => {
                delta.finish = Some(match finished.reason() {
                    FinishReason::Length => "length",
                    FinishReason::Stop | FinishReason::Unspecified => "stop",
                });
                choice.finished = Some(finished);
            }
        }
        delta
    }

    /// Whether every choice has come to its end.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.choices.iter().all(|choice| choice.finished.is_some())
    }

    /// Tokens read and written: each prompt counts once, however many answers it got.
    #[must_use]
    pub fn usage(&self, answers: usize) -> v1::Usage {
        let of = |choice: &Choice| choice.finished.as_ref().and_then(|finished| finished.usage).unwrap_or_default();
        let prompts = self.choices.iter().step_by(answers.max(1)).map(of);
        let (prompt_tokens, cached_tokens) = prompts
            .fold((0, 0), |(prompt, cached), usage| (prompt + usage.prompt_tokens, cached + usage.cached_tokens));
        let completion_tokens = self.choices.iter().map(|choice| of(choice).completion_tokens).sum();
        v1::Usage { prompt_tokens, completion_tokens, cached_tokens }
    }
}

fn read_tokens(tokens: v1::Tokens) -> Vec<Token> {
    let v1::Tokens { ids, provenance, logprobs, pieces, .. } = tokens;
    let pieces: BTreeMap<TokenId, v1::Piece> = pieces.into_iter().map(|piece| (piece.token, piece)).collect();
    let alternative = |token, logprob| {
        let piece = pieces.get(&token).cloned().unwrap_or_default();
        Alternative { bytes: piece.bytes, special: piece.special, logprob }
    };
    let token = |(i, id): (usize, TokenId)| Token {
        id,
        provenance: provenance.get(i).and_then(|&word| Provenance::try_from(word).ok()).unwrap_or_default(),
        scored: logprobs.get(i).map(|scored| Scored {
            chosen: alternative(id, scored.expert.or(scored.drafter)),
            top: scored.top.iter().map(|top| alternative(top.token, Some(top.logprob))).collect(),
        }),
    };
    ids.into_iter().enumerate().map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(prompt_tokens: u32, completion_tokens: u32) -> Event {
        let usage = Some(v1::Usage { prompt_tokens, completion_tokens, cached_tokens: 1 });
        Event::Finished(v1::Finished { reason: FinishReason::Length.into(), usage, ..Default::default() })
    }

    #[test]
    fn each_prompt_counts_once() {
        let mut answer = Answer::new((0..4).map(SessionId), Instant::now());
        for (index, prompt) in [(0, 10), (1, 10), (2, 7), (3, 7)] {
            assert!(!answer.is_whole());
            assert_eq!(answer.take(index, finished(prompt, 5), Instant::now()).finish, Some("length"));
        }
        assert!(answer.is_whole());
        assert_eq!(answer.usage(2), v1::Usage { prompt_tokens: 17, completion_tokens: 20, cached_tokens: 2 });
    }

    #[test]
    fn tokens_bring_what_they_write() {
        let tokens = v1::Tokens {
            ids: vec![7],
            text: "é".into(),
            provenance: vec![Provenance::Relaxed.into()],
            logprobs: vec![v1::TokenLogprobs {
                expert: Some(-0.5),
                drafter: None,
                top: vec![v1::Alternative { token: 2, logprob: -0.25 }],
            }],
            pieces: vec![
                v1::Piece { token: 2, bytes: b"<eos>".to_vec(), special: true },
                v1::Piece { token: 7, bytes: "é".into(), special: false },
            ],
            ..v1::Tokens::default()
        };
        let delta =
            Answer::new([SessionId(1)].into_iter(), Instant::now()).take(0, Event::Tokens(tokens), Instant::now());
        let scored = delta.tokens[0].scored.as_ref().unwrap();
        assert_eq!((delta.tokens[0].provenance, scored.chosen.bytes.as_slice()), (Provenance::Relaxed, "é".as_bytes()));
        assert!(scored.top[0].special && scored.top[0].logprob == Some(-0.25));
    }
}
