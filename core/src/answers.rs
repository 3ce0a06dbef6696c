//! What an expert's answer must be before its owner takes it.
//!
//! An answer comes from another process. It is checked as a whole, against the block that it answers, before any of it
//! changes a session: a wrong one leaves the history as it was, and another expert is asked.

use crate::block::{Answer, DraftBlock, Score, Stale, Verdict};
use crate::ids::TokenId;

/// How far above 0 rounding may put a log-probability.
const ROUNDING: f32 = 1e-3;

/// The oldest block in flight, which the next answer is to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// The block.
    pub block: &'a DraftBlock,
    /// A block before it was not accepted whole: it cannot be verified.
    pub void: bool,
    /// Alternatives that each score may report; `None` where no logprobs are asked for.
    pub logprobs: Option<usize>,
    /// Tokens that the owner knows.
    pub vocabulary: usize,
}

impl Asked<'_> {
    /// Whether the answer is one that an expert gives to this block.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, answer: &Answer) -> Result<(), String> {
        match answer {
            Answer::Verdict(verdict) => self.check_verdict(verdict),
            Answer::Stale(stale) => self.check_stale(stale),
        }
    }

    fn check_stale(&self, stale: &Stale) -> Result<(), String> {
        if stale.base == self.block.base {
            return Ok(());
        }
        Err(format!(
            "a block of base {} is said to be stale, the block in flight has base {}",
            stale.base, self.block.base
        ))
    }

    fn check_verdict(&self, verdict: &Verdict) -> Result<(), String> {
        let Self { block, void, .. } = *self;
        if verdict.epoch != block.epoch || verdict.base != block.base {
            return Err(format!(
                "the verdict is for base {} of epoch {}, the block in flight for base {} of epoch {}",
                verdict.base, verdict.epoch.0, block.base, block.epoch.0
            ));
        }
        if void {
            return Err("a block behind a rejected one was verified".to_owned());
        }
        let drafted = block.drafts.len();
        if verdict.accepted > drafted || verdict.replacement.is_some() != (verdict.accepted < drafted) {
            return Err(format!(
                "the verdict accepts {} of {drafted} drafts and {} a replacement",
                verdict.accepted,
                if verdict.replacement.is_some() { "has" } else { "lacks" }
            ));
        }
        if let Some(token) = verdict.replacement {
            self.check_known(token).map_err(|unknown| format!("the replacement {unknown}"))?;
        }
        let emitted = verdict.accepted + usize::from(verdict.replacement.is_some());
        let positions = block.scored_given() + emitted;
        if verdict.scores.len() != positions {
            return Err(format!("the verdict has {} scores for {positions} positions", verdict.scores.len()));
        }
        for (i, score) in verdict.scores.iter().enumerate() {
            self.check_score(score).map_err(|wrong| format!("score {i} of the verdict {wrong}"))?;
        }
        Ok(())
    }

    fn check_known(&self, token: TokenId) -> Result<(), String> {
        if (token as usize) < self.vocabulary {
            return Ok(());
        }
        Err(format!("is token {token}, outside the vocabulary of {}", self.vocabulary))
    }

    fn check_score(&self, score: &Score) -> Result<(), String> {
        if score.logprob.is_some() != self.logprobs.is_some() {
            let (has, asked) = if score.logprob.is_some() { ("has", "no") } else { ("lacks", "a") };
            return Err(format!("{has} a log-probability, and {asked} log-probability was asked for"));
        }
        // An emitted token had a chance; an alternative may be a banned one.
        if let Some(logprob) = score.logprob
            && !(logprob.is_finite() && logprob <= ROUNDING)
        {
            return Err(format!("has the log-probability {logprob}, which is no finite number of at most 0"));
        }
        let most = self.logprobs.unwrap_or(0);
        if score.top.len() > most {
            return Err(format!("has {} alternatives, {most} were asked for", score.top.len()));
        }
        for (i, &(token, logprob)) in score.top.iter().enumerate() {
            self.check_known(token).map_err(|unknown| format!("has an alternative that {unknown}"))?;
            if logprob.is_nan() || logprob > ROUNDING {
                return Err(format!(
                    "has an alternative of log-probability {logprob}, which is no number of at most 0"
                ));
            }
            let earlier = &score.top[..i];
            if earlier.iter().any(|&(other, _)| other == token) {
                return Err(format!("has token {token} twice among its alternatives"));
            }
            if earlier.last().is_some_and(|&(_, better)| better < logprob) {
                return Err("has alternatives that do not begin with the best".to_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Draft, StaleReason};
    use crate::ids::Epoch;

    fn block() -> DraftBlock {
        DraftBlock {
            epoch: Epoch(7),
            given_from: 9,
            given: vec![4],
            base: 10,
            tail: 0,
            drafts: vec![Draft::bare(1), Draft::bare(2)],
            score_given: true,
        }
    }

    fn score(logprob: f32, top: &[(TokenId, f32)]) -> Score {
        Score { relaxed: false, logprob: Some(logprob), top: top.to_vec() }
    }

    fn verdict() -> Verdict {
        let good = score(-1.0, &[(3, -0.5), (5, f32::NEG_INFINITY)]);
        Verdict { epoch: Epoch(7), base: 10, accepted: 1, replacement: Some(31), scores: vec![good; 3] }
    }

    fn checked(change: impl FnOnce(&mut Verdict)) -> Result<(), String> {
        let (block, mut verdict) = (block(), verdict());
        change(&mut verdict);
        Asked { block: &block, void: false, logprobs: Some(2), vocabulary: 32 }.check(&Answer::Verdict(verdict))
    }

    #[test]
    fn a_verdict_of_an_expert_is_taken() {
        assert_eq!(checked(|_| {}), Ok(()));
        assert_eq!(checked(|v| (v.accepted, v.replacement) = (2, None)), Ok(()));
        // What f32 makes of a sure thing.
        assert_eq!(checked(|v| v.scores[1] = score(1e-6, &[(2, 1e-6), (0, -20.0)])), Ok(()));
    }

    #[test]
    fn each_wrong_word_of_a_verdict_is_named() {
        type Lie = fn(&mut Verdict);
        let lies: [(Lie, &str); 17] = [
            (|v| v.epoch = Epoch(8), "epoch 8"),
            (|v| v.base = 11, "base 11"),
            (|v| v.accepted = 3, "accepts 3 of 2"),
            (|v| v.accepted = usize::MAX, "of 2 drafts"),
            (|v| v.accepted = 2, "accepts 2 of 2 drafts and has a replacement"),
            (|v| v.replacement = None, "accepts 1 of 2 drafts and lacks a replacement"),
            (|v| v.replacement = Some(32), "the replacement is token 32, outside the vocabulary of 32"),
            (|v| drop(v.scores.pop()), "2 scores for 3 positions"),
            (|v| v.scores.push(score(-1.0, &[])), "4 scores for 3 positions"),
            (|v| v.scores[2].logprob = None, "score 2 of the verdict lacks a log-probability"),
            (|v| v.scores[0].logprob = Some(f32::NAN), "log-probability NaN"),
            (|v| v.scores[0].logprob = Some(f32::NEG_INFINITY), "log-probability -inf"),
            (|v| v.scores[0].logprob = Some(0.5), "log-probability 0.5"),
            (|v| v.scores[1].top[0].0 = 70_000, "an alternative that is token 70000"),
            (|v| v.scores[1].top[0].1 = f32::INFINITY, "alternative of log-probability inf"),
            (|v| v.scores[1].top[1] = (3, -0.7), "token 3 twice"),
            (|v| v.scores[1].top[1] = (4, -0.1), "do not begin with the best"),
        ];
        for (lie, named) in lies {
            let refused = checked(lie).expect_err(named);
            assert!(refused.contains(named), "{refused} does not say {named}");
        }
        let many = checked(|v| v.scores[0].top.push((9, f32::NEG_INFINITY))).unwrap_err();
        assert!(many.contains("3 alternatives, 2 were asked for"), "{many}");
    }

    #[test]
    fn what_was_not_asked_for_is_wrong_and_so_is_another_blocks_answer() {
        let block = block();
        let asked = Asked { block: &block, void: false, logprobs: None, vocabulary: 32 };
        let bare = Verdict { scores: vec![Score::default(); 3], ..verdict() };
        assert_eq!(asked.check(&Answer::Verdict(bare.clone())), Ok(()));
        let scored = asked.check(&Answer::Verdict(verdict())).unwrap_err();
        assert!(scored.contains("no log-probability was asked for"), "{scored}");
        let void = Asked { void: true, ..asked };
        assert!(void.check(&Answer::Verdict(bare)).is_err());
        let stale = |base| {
            let (epoch, reason) = (Epoch(7), StaleReason::Tail);
            void.check(&Answer::Stale(Stale { epoch, base, committed: 9, tail: 0, reason }))
        };
        assert_eq!(stale(10), Ok(()));
        assert!(stale(12).unwrap_err().contains("base 12"));
    }
}
