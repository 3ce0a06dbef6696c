//! The truth of a session: its prompt's ids and every token that was relayed.
//!
//! Owners come and go; what stands here has been told to the client and is never taken back. A position enters once.

use cascadia_core::ids::TokenId;
use cascadia_proto::v1;

/// An owner that broke the protocol: what it said is not used, and its session goes on elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// Tokens or an end came before the prompt's ids were complete.
    #[error("it sent {what} before the prompt's ids")]
    Early {
        /// What it sent.
        what: &'static str,
    },
    /// The prompt has more ids than were announced, or a continued one another length.
    #[error("it announced {announced} prompt tokens and sent {sent}")]
    Prompt {
        /// As `Opened` said.
        announced: usize,
        /// As came.
        sent: usize,
    },
    /// A position is missing, or comes again.
    #[error("its tokens continue at position {got}, {expected} was next")]
    Position {
        /// The next position.
        expected: u64,
        /// The position it sent.
        got: u64,
    },
    /// It runs other models than the session is pinned to.
    #[error("its {model} has the fingerprint {got}, the session is pinned to {pinned}")]
    Fingerprint {
        /// Drafter, expert or tokenizer.
        model: &'static str,
        /// What the session began with.
        pinned: String,
        /// What the owner has.
        got: String,
    },
    /// Membership says that it runs another model.
    #[error("its {model} has the fingerprint {got}, membership lists {listed}")]
    Listed {
        /// Drafter, expert or tokenizer.
        model: &'static str,
        /// What membership says.
        listed: String,
        /// What the owner says.
        got: String,
    },
    /// More than there can be.
    #[error("{what} is {got} and can be at most {most}")]
    Beyond {
        /// What was counted.
        what: &'static str,
        /// How many.
        got: usize,
        /// How many there can be.
        most: usize,
    },
    /// Not one for each of its tokens.
    #[error("it sent {got} {what} where {expected} belong")]
    Uneven {
        /// What was counted.
        what: &'static str,
        /// How many.
        got: usize,
        /// How many there must be.
        expected: usize,
    },
    /// A token outside its vocabulary.
    #[error("it sent token {id}, and its vocabulary has {vocabulary}")]
    Unknown {
        /// The token.
        id: TokenId,
        /// How many tokens there are.
        vocabulary: u32,
    },
    /// Something that has no place in this session.
    #[error("it sent {what}")]
    Unexpected {
        /// What it sent.
        what: &'static str,
    },
}

/// Prompt ids and committed ids of one session.
#[derive(Clone, Debug, Default)]
pub struct Transcript {
    choice: u32,
    prompt_tokens: Option<usize>,
    ids: Vec<TokenId>,
}

impl Transcript {
    /// Of this choice of its seed.
    #[must_use]
    pub fn new(choice: u32) -> Self {
        Self { choice, ..Self::default() }
    }

    /// An owner announced the prompt's length. The first whose prompt was whole has said it for all.
    pub fn announce(&mut self, prompt_tokens: usize) {
        self.prompt_tokens.get_or_insert(prompt_tokens);
    }

    /// An owner sent a piece of the prompt's ids.
    ///
    /// # Errors
    /// When there are more of them than announced.
    pub fn prompt(&mut self, ids: &[TokenId]) -> Result<(), Breach> {
        let announced = self.prompt_tokens.ok_or(Breach::Early { what: "a history" })?;
        let sent = self.ids.len() + ids.len();
        if sent > announced {
            return Err(Breach::Prompt { announced, sent });
        }
        self.ids.extend_from_slice(ids);
        Ok(())
    }

    /// An owner is gone: a half-received prompt is forgotten, all else stays.
    pub fn owner_gone(&mut self) {
        if !self.is_known() {
            *self = Self::new(self.choice);
        }
    }

    /// Whether another owner can continue from here: the whole prompt is known.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.prompt_tokens.is_some_and(|prompt| self.ids.len() >= prompt)
    }

    /// All ids, prompt first.
    #[must_use]
    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    /// The prompt's length, where an owner has announced it.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens.unwrap_or_default()
    }

    /// How many tokens were relayed.
    #[must_use]
    pub fn committed(&self) -> usize {
        self.ids.len().saturating_sub(self.prompt_tokens())
    }

    /// Commits `tokens` and returns them for the client; nothing where they say nothing.
    ///
    /// # Errors
    /// When they are not the next, or the prompt is not known yet.
    pub fn commit(&mut self, tokens: v1::Tokens) -> Result<Option<v1::Tokens>, Breach> {
        if !self.is_known() {
            return Err(Breach::Early { what: "tokens" });
        }
        if tokens.choice != self.choice {
            return Err(Breach::Unexpected { what: "tokens of a choice that was not asked for" });
        }
        let next = self.ids.len() as u64;
        if tokens.position != next {
            return Err(Breach::Position { expected: next, got: tokens.position });
        }
        self.ids.extend_from_slice(&tokens.ids);
        // Text alone is what was held back.
        Ok((!tokens.ids.is_empty() || !tokens.text.is_empty()).then_some(tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(position: u64, ids: &[TokenId]) -> v1::Tokens {
        let provenance = vec![v1::Provenance::Accepted.into(); ids.len()];
        v1::Tokens { position, ids: ids.to_vec(), text: "text".into(), provenance, ..Default::default() }
    }

    fn known(prompt: &[TokenId]) -> Transcript {
        let mut transcript = Transcript::default();
        transcript.announce(prompt.len());
        transcript.prompt(prompt).unwrap();
        transcript
    }

    #[test]
    fn each_position_is_relayed_once_and_in_order() {
        let mut transcript = known(&[1, 2, 3]);
        assert_eq!(transcript.commit(tokens(3, &[10, 11])).unwrap().unwrap().ids, [10, 11]);
        for (position, what) in [(3, "again"), (4, "overlapping"), (6, "a gap"), (u64::MAX, "far away")] {
            let wrong = Err(Breach::Position { expected: 5, got: position });
            assert_eq!(transcript.commit(tokens(position, &[11, 12])), wrong, "{what}");
        }
        assert!(transcript.commit(v1::Tokens { text: String::new(), ..tokens(5, &[]) }).unwrap().is_none());
        assert_eq!(transcript.commit(tokens(5, &[12])).unwrap().unwrap().position, 5);
        assert_eq!(transcript.ids(), [1, 2, 3, 10, 11, 12]);
        assert_eq!(transcript.committed(), 3);
    }

    #[test]
    fn text_that_was_held_back_is_relayed_without_ids() {
        let mut transcript = known(&[1]);
        transcript.commit(tokens(1, &[7])).unwrap();
        assert_eq!(transcript.commit(tokens(2, &[])).unwrap().unwrap().text, "text");
        assert_eq!(transcript.ids(), [1, 7]);
    }

    #[test]
    fn tokens_before_the_prompt_are_a_breach() {
        let mut transcript = Transcript::default();
        assert_eq!(transcript.commit(tokens(0, &[1])), Err(Breach::Early { what: "tokens" }));
        transcript.announce(2);
        transcript.prompt(&[5]).unwrap();
        assert!(!transcript.is_known());
        assert_eq!(transcript.prompt(&[6, 7]), Err(Breach::Prompt { announced: 2, sent: 3 }));
    }

    #[test]
    fn a_half_received_prompt_dies_with_its_owner() {
        let mut transcript = Transcript::default();
        transcript.announce(2);
        transcript.prompt(&[5]).unwrap();
        transcript.owner_gone();
        transcript.announce(3);
        transcript.prompt(&[5, 6, 7]).unwrap();
        transcript.owner_gone();
        assert_eq!(transcript.ids(), [5, 6, 7]);
    }
}
