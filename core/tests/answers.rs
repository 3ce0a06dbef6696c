//! Whatever an expert answers, a session takes what can be an answer and is otherwise as it was.

use std::cell::Cell;
use std::sync::Arc;

use cascadia_core::block::{Answer, Draft, DraftBlock, Score, Stale, StaleReason, Verdict};
use cascadia_core::decoding::{Coupling, Decoding, Sampling, Strategy as How};
use cascadia_core::ids::{Epoch, TokenId};
use cascadia_core::pipeline::Pipeline;
use cascadia_core::session::Session;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const VOCABULARY: u32 = 24;

fn session(logprobs: Option<usize>) -> Session {
    let decoding = Decoding {
        strategy: How::Speculative { coupling: Coupling::Gumbel },
        sampling: Sampling::default(),
        seed: 1,
        choice: 0,
        draft_length: 3,
        strict_first_tokens: 0,
        stop_ids: Vec::new(),
        max_tokens: 1_000,
        logprobs,
        prompt_length: 4,
    };
    let epoch = Epoch::of_placement(1);
    Session::new(Arc::new(decoding), VOCABULARY as usize, &[1, 2, 3, 4], epoch, Pipeline::new(2, 2))
}

/// Sends as many blocks as the session may have in flight.
fn fill(session: &mut Session, in_flight: &mut Vec<DraftBlock>) {
    while let Some(order) = session.next_draft() {
        let at = (order.keep + order.append.len()) as u32;
        let drafts = (0..order.count as u32).map(|i| Draft::bare((at + i) % VOCABULARY)).collect();
        in_flight.extend(session.drafted(order.ticket, drafts).1);
    }
}

/// A verdict by how it differs from an honest one, or a stale.
#[derive(Clone, Debug)]
struct Garbage {
    stale: bool,
    epoch: u64,
    base: usize,
    accepted: usize,
    replacement: Option<TokenId>,
    /// An honest verdict has one exactly where it rejects.
    honest_replacement: bool,
    extra_scores: isize,
    logprob: Option<f32>,
    top: Vec<(TokenId, f32)>,
}

fn logprob() -> impl Strategy<Value = f32> {
    prop_oneof![6 => -9.0f32..0.0, 1 => Just(f32::NAN), 1 => Just(f32::INFINITY), 1 => Just(0.7)]
}

/// A field of which most are as they ought to be.
fn mostly<T: Clone + std::fmt::Debug + 'static>(
    right: T,
    wrong: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<T> {
    prop_oneof![9 => Just(right), 1 => wrong].boxed()
}

fn garbage() -> impl Strategy<Value = Garbage> {
    let place = (mostly(false, Just(true)), mostly(0u64, any::<u64>()), mostly(0usize, 1usize..5));
    let replacement = prop::option::of(prop_oneof![9 => 0..VOCABULARY, 2 => VOCABULARY..80_000]);
    let verdict = (0usize..4, replacement, mostly(true, Just(false)));
    let scores = (
        mostly(0isize, -2isize..3),
        prop::option::of(logprob()),
        prop::collection::vec((mostly(3, 0..40 as TokenId), logprob()), 0..2),
    );
    (place, verdict, scores).prop_map(|(place, verdict, scores)| Garbage {
        stale: place.0,
        epoch: place.1,
        base: place.2,
        accepted: verdict.0,
        replacement: verdict.1,
        honest_replacement: verdict.2,
        extra_scores: scores.0,
        logprob: scores.1,
        top: scores.2,
    })
}

impl Garbage {
    fn answer(&self, block: &DraftBlock) -> Answer {
        let (epoch, base) = (Epoch(block.epoch.0.wrapping_add(self.epoch)), block.base + self.base);
        if self.stale {
            return Answer::Stale(Stale { epoch, base, committed: 4, tail: 0, reason: StaleReason::Base });
        }
        let replacement = match self.honest_replacement {
            true if self.accepted >= block.drafts.len() => None,
            true => Some(self.replacement.unwrap_or(5)),
            false => self.replacement,
        };
        let emitted = self.accepted as isize + isize::from(replacement.is_some());
        let score = Score { relaxed: false, logprob: self.logprob, top: self.top.clone() };
        let scores = vec![score; (emitted + self.extra_scores).max(0) as usize];
        Answer::Verdict(Verdict { epoch, base, accepted: self.accepted, replacement, scores })
    }
}

/// Whether an expert could have given this verdict, said once more in other words.
fn can_be(verdict: &Verdict, block: &DraftBlock, logprobs: Option<usize>) -> bool {
    let emitted = verdict.accepted + usize::from(verdict.replacement.is_some());
    let is_logprob = |logprob: f32| logprob <= 0.0;
    let score = |score: &Score| {
        let asked = match (logprobs, score.logprob) {
            (Some(most), Some(logprob)) => is_logprob(logprob) && score.top.len() <= most,
            (None, None) => score.top.is_empty(),
            _ => false,
        };
        asked && score.top.iter().all(|&(token, logprob)| token < VOCABULARY && is_logprob(logprob))
    };
    (verdict.epoch, verdict.base) == (block.epoch, block.base)
        && verdict.accepted <= block.drafts.len()
        && (verdict.accepted == block.drafts.len()) == verdict.replacement.is_none()
        && verdict.replacement.is_none_or(|token| token < VOCABULARY)
        && verdict.scores.len() == emitted
        && verdict.scores.iter().all(score)
}

#[test]
fn no_answer_changes_a_history_unless_it_can_be_one() {
    let (taken, refused) = (Cell::new(0), Cell::new(0));
    let inputs = (prop::option::of(Just(1usize)), prop::collection::vec(garbage(), 1..24));
    let mut runner = TestRunner::new(ProptestConfig::with_cases(2_000));
    let ran = runner.run(&inputs, |(logprobs, answers)| {
        let mut session = session(logprobs);
        let mut in_flight = Vec::new();
        for garbage in answers {
            fill(&mut session, &mut in_flight);
            let Some(block) = in_flight.first().cloned() else { break };
            let (before, history) = (format!("{session:?}"), session.committed().to_vec());
            let answer = garbage.answer(&block);
            let verdict = match &answer {
                Answer::Verdict(verdict) => Some(verdict.clone()),
                Answer::Stale(_) => None,
            };
            let Ok(answered) = session.answer(answer) else {
                refused.set(refused.get() + 1);
                prop_assert_eq!(format!("{:?}", session), before);
                if let Some(verdict) = verdict {
                    prop_assert!(!can_be(&verdict, &block, logprobs), "refused: {:?}", verdict);
                }
                continue;
            };
            let Some(verdict) = verdict else {
                prop_assert_eq!(session.committed(), history);
                break;
            };
            taken.set(taken.get() + 1);
            prop_assert!(can_be(&verdict, &block, logprobs), "taken: {:?}", verdict);
            let written = block.drafts[..verdict.accepted].iter().map(|draft| draft.token).chain(verdict.replacement);
            let expected: Vec<TokenId> = history.into_iter().chain(written).collect();
            prop_assert_eq!(session.committed(), &expected[..]);
            prop_assert_eq!(answered.emitted.len(), verdict.scores.len());
            in_flight.remove(0);
            if verdict.replacement.is_some() {
                // What was behind it is void: a verdict on it would be one more wrong answer.
                for void in in_flight.drain(..) {
                    let (epoch, base) = (void.epoch, void.base);
                    let stale = Stale { epoch, base, committed: expected.len(), tail: 0, reason: StaleReason::Tail };
                    prop_assert!(session.answer(Answer::Stale(stale)).is_ok());
                }
            }
        }
        Ok(())
    });
    if let Err(failure) = ran {
        panic!("{failure}");
    }
    assert!(taken.get() > 500 && refused.get() > 500, "{} taken, {} refused", taken.get(), refused.get());
}

#[test]
fn an_answer_to_nothing_is_refused() {
    let mut session = session(None);
    let stale = Stale { epoch: session.epoch(), base: 4, committed: 4, tail: 0, reason: StaleReason::Tail };
    assert!(session.answer(Answer::Stale(stale)).is_err());
    assert_eq!(session.committed(), [1, 2, 3, 4]);
}
