//! A virtual cluster: session machine, drafter and expert steppers wired by hand over toy models.
//!
//! No process, no network, no clock: what these texts depend on is decided in this crate alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use cascadia_core::block::{Answer, Draft, DraftBlock, StaleReason};
use cascadia_core::decoding::{Coupling, Decoding, Sampling, Strategy};
use cascadia_core::drafting;
use cascadia_core::engine::{Engine, Rows};
use cascadia_core::history::History;
use cascadia_core::ids::{Epoch, SessionId, TokenId};
use cascadia_core::pipeline::Pipeline;
use cascadia_core::rule::Rule;
use cascadia_core::session::{Counters, Session};
use cascadia_core::stepper::{Failed, NotFinite, Rank, Stepper, StepperConfig, Task};
use cascadia_core::tasks::{DecodeTask, DraftTask, VerifyTask};
use cascadia_core::toy::{ToyEngine, ToyModel};
use cascadia_core::waiting_queue::{Arrival, QueuedSession};

const EOS: TokenId = 3;

fn expert_model() -> ToyModel {
    ToyModel { vocabulary: 24, sharpness: 2.5, eos: Some((EOS, -1.0)), ..ToyModel::default() }
}

fn drafter_model() -> ToyModel {
    expert_model().drafter(77, 0.35)
}

fn decoding(strategy: Strategy, temperature: f64, seed: u64) -> Decoding {
    Decoding {
        strategy,
        sampling: Sampling { temperature, ..Sampling::default() },
        seed,
        choice: 0,
        draft_length: 5,
        strict_first_tokens: 0,
        stop_ids: vec![EOS],
        max_tokens: 40,
        logprobs: None,
        prompt_length: 4,
    }
}

fn prompt(seed: u64) -> Vec<TokenId> {
    vec![1, (seed % 20) as TokenId, 7, 9]
}

/// A stepper and its engine.
struct Side<T: Task> {
    stepper: Stepper<T>,
    engine: ToyEngine,
}

impl<T: Task> Side<T> {
    fn new(model: ToyModel, batch_tokens: usize) -> Self {
        let engine = ToyEngine::new(model, 512, 4096);
        let stepper = Stepper::new(engine.facts(), StepperConfig { batch_tokens, ..StepperConfig::default() });
        Self { stepper, engine }
    }

    fn open(&mut self, key: SessionId, task: T) {
        let rank = Rank { priority: 0, born: Duration::ZERO };
        let queued = QueuedSession { key, task, rank, salt: String::new(), begun: false };
        assert_eq!(self.stepper.open(queued, Duration::ZERO), Ok(Arrival::Admitted), "there is room");
    }

    fn step(&mut self) {
        assert_eq!(self.try_step(), []);
    }

    fn try_step(&mut self) -> Vec<Failed> {
        self.stepper.step(&mut self.engine, Duration::ZERO).failed
    }
}

/// Everything of one session in the virtual cluster.
struct Lane {
    key: SessionId,
    decoding: Arc<Decoding>,
    session: Session,
    text: Vec<TokenId>,
    over: bool,
    failed: bool,
    /// Drafts that the engine handed over.
    finished: u64,
}

impl Lane {
    /// Every draft is verified, kept, void, or waits for its answer.
    fn audit(&self) {
        let counters = self.session.counters();
        let accounted = counters.drafted + counters.stale_drafts + self.session.unanswered_drafts();
        assert_eq!(accounted, self.finished, "{counters:?}");
    }

    fn emit(&mut self, tokens: impl IntoIterator<Item = TokenId>) {
        for token in tokens {
            if self.over {
                return;
            }
            self.text.push(token);
            self.over = self.decoding.is_stop(token) || self.text.len() >= self.decoding.max_tokens;
        }
    }
}

/// A drafter, an expert, and sessions between them; `depth` blocks in flight, `batch` tokens a forward.
struct Cluster {
    drafter: Side<DraftTask>,
    expert: Side<VerifyTask>,
    lanes: Vec<Lane>,
    stale: Vec<StaleReason>,
}

impl Cluster {
    fn new(batch: usize) -> Self {
        Self {
            drafter: Side::new(drafter_model(), batch),
            expert: Side::new(expert_model(), batch),
            lanes: Vec::new(),
            stale: Vec::new(),
        }
    }

    fn open(&mut self, key: u128, decoding: Decoding, ids: &[TokenId], depth: usize) {
        let (key, decoding, epoch) = (SessionId(key), Arc::new(decoding), Epoch::of_placement(1));
        let session = Session::new(decoding.clone(), expert_model().vocabulary, ids, epoch, Pipeline::new(depth, 3));
        self.drafter.open(key, DraftTask::new(decoding.clone(), Vec::new()));
        self.expert.open(key, VerifyTask::new(decoding.clone(), ids, epoch));
        self.lanes.push(Lane { key, decoding, session, text: Vec::new(), over: false, failed: false, finished: 0 });
    }

    /// Drafts as far as may be, then lets the expert answer: blocks pile up to the depth.
    fn round(&mut self) {
        loop {
            let mut ordered = false;
            for lane in self.lanes.iter_mut().filter(|lane| !lane.over) {
                if let Some(order) = lane.session.next_draft() {
                    self.drafter.stepper.get_mut(lane.key).expect("open").order(&order);
                    ordered = true;
                }
            }
            if !ordered {
                break;
            }
            while self.drafter.stepper.has_work() {
                let failed = self.drafter.try_step();
                for lane in &mut self.lanes {
                    lane.failed |= failed.iter().any(|failed| failed.key == lane.key);
                    lane.over |= lane.failed;
                    let Some((ticket, drafts)) = self.drafter.stepper.get_mut(lane.key).and_then(DraftTask::drain)
                    else {
                        continue;
                    };
                    lane.finished += drafts.len() as u64;
                    let (emitted, block) = lane.session.drafted(ticket, drafts);
                    lane.emit(emitted.into_iter().map(|e| e.token));
                    if let Some(block) = block {
                        self.expert.stepper.get_mut(lane.key).expect("open").push(block);
                    }
                }
            }
        }
        // A verdict is heard before what comes after it.
        while self.expert.stepper.has_work() {
            let failed = self.expert.try_step();
            self.hear();
            for lane in self.lanes.iter_mut().filter(|lane| !lane.over) {
                lane.failed |= failed.iter().any(|failed| failed.key == lane.key);
                lane.over |= lane.failed;
            }
        }
        self.hear();
    }

    fn hear(&mut self) {
        for lane in &mut self.lanes {
            let answers = self.expert.stepper.get_mut(lane.key).map(VerifyTask::drain).unwrap_or_default();
            for answer in answers {
                if let Answer::Stale(stale) = &answer {
                    self.stale.push(stale.reason);
                }
                let answered = lane.session.answer(answer).expect("in order");
                assert!(!answered.resync);
                lane.emit(answered.emitted.into_iter().map(|e| e.token));
            }
        }
    }

    fn run(&mut self) -> Vec<Vec<TokenId>> {
        for _ in 0..4_000 {
            if self.lanes.iter().all(|lane| lane.over) {
                self.lanes.iter().for_each(Lane::audit);
                return self.lanes.iter().map(|lane| lane.text.clone()).collect();
            }
            self.round();
        }
        panic!("the cluster makes no progress");
    }
}

fn text_of(decoding: &Decoding, depth: usize, batch: usize) -> (Vec<TokenId>, Counters) {
    let mut cluster = Cluster::new(batch);
    cluster.open(1, decoding.clone(), &prompt(decoding.seed), depth);
    let text = cluster.run().remove(0);
    (text, cluster.lanes[0].session.counters())
}

fn text_alone(model: ToyModel, decoding: &Decoding) -> Vec<TokenId> {
    let mut side = Side::new(model, 64);
    let key = SessionId(1);
    side.open(key, DecodeTask::new(Arc::new(decoding.clone()), prompt(decoding.seed)));
    let mut text = Vec::new();
    while side.stepper.has_work() {
        side.step();
        text.extend(side.stepper.get_mut(key).expect("open").drain().0.into_iter().map(|d| d.token));
    }
    text
}

fn rules() -> Vec<Rule> {
    vec![
        Rule::Chow { alpha: 0.6 },
        Rule::Diff { alpha: 0.1 },
        Rule::Opt { alpha: 0.3 },
        Rule::ChowLog { alpha: 1.4 },
        Rule::DiffLog { alpha: 0.1 },
        Rule::OptLog { alpha: 0.3 },
        Rule::TokenV1 { alpha: 0.2 },
        Rule::TokenV2 { alpha: 0.2 },
        Rule::TokenV3 { alpha: 0.6 },
        Rule::Lenience { alpha: 0.3 },
        Rule::Mentored { alpha: 0.3 },
        Rule::Typical { epsilon: 0.09, delta: 0.3 },
        Rule::Bild { fallback: 0.3, rollback: 2.0 },
    ]
}

fn strategies() -> Vec<Strategy> {
    let mut all: Vec<Strategy> = rules().into_iter().map(|rule| Strategy::SpeculativeCascade { rule }).collect();
    all.push(Strategy::Speculative { coupling: Coupling::Gumbel });
    all.push(Strategy::Speculative { coupling: Coupling::Maximal });
    all
}

#[test]
fn text_depends_neither_on_draft_length_nor_on_blocks_in_flight() {
    for strategy in strategies() {
        for temperature in [0.0, 0.7, 1.0] {
            for seed in 0..6 {
                let base = decoding(strategy, temperature, seed);
                let (expected, _) = text_of(&base, 1, 64);
                for draft_length in [1, 2, 5, 8] {
                    for depth in [0, 1, 3] {
                        let (text, _) = text_of(&Decoding { draft_length, ..base.clone() }, depth, 64);
                        assert_eq!(
                            text, expected,
                            "{strategy:?} T={temperature} seed={seed} n={draft_length} depth={depth}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn text_depends_neither_on_the_batch_nor_on_chunking() {
    let strategy = Strategy::SpeculativeCascade { rule: Rule::TokenV3 { alpha: 0.5 } };
    let long = |seed: u64| -> Vec<TokenId> { (0..60).map(|i| ((seed * 7 + i * 5) % 24) as TokenId).collect() };
    let settings = |seed: u64| Decoding { prompt_length: 60, ..decoding(strategy, 0.8, seed) };
    let alone: Vec<Vec<TokenId>> = (0..20)
        .map(|seed| {
            let mut cluster = Cluster::new(512);
            cluster.open(1, settings(seed), &long(seed), 1);
            cluster.run().remove(0)
        })
        .collect();
    // 16 tokens are the fewest that hold the rows of three merged blocks of five.
    for (batch, depth) in [(512, 1), (512, 3), (64, 1), (17, 3)] {
        let mut cluster = Cluster::new(batch);
        for seed in 0..20 {
            cluster.open(u128::from(seed) + 1, settings(seed), &long(seed), depth);
        }
        assert_eq!(cluster.run(), alone, "batch {batch}, depth {depth}");
    }
}

#[test]
fn speculative_gives_the_text_of_expert_with_any_drafter() {
    for temperature in [0.0, 0.7, 1.0] {
        for seed in 0..40 {
            let speculative = decoding(Strategy::Speculative { coupling: Coupling::Gumbel }, temperature, seed);
            let (text, counters) = text_of(&speculative, 2, 64);
            assert_eq!(text, text_alone(expert_model(), &speculative), "T={temperature} seed={seed}");
            assert!(counters.accepted > 0 || text.len() < 3);
        }
    }
}

#[test]
fn maximal_coupling_is_exact_at_temperature_zero() {
    for seed in 0..40 {
        let maximal = decoding(Strategy::Speculative { coupling: Coupling::Maximal }, 0.0, seed);
        assert_eq!(text_of(&maximal, 1, 64).0, text_alone(expert_model(), &maximal));
    }
}

#[test]
fn cascade_token_gives_the_text_of_chow() {
    for temperature in [0.0, 0.7, 1.0] {
        for seed in 0..30 {
            let alpha = 0.6;
            let chow = decoding(Strategy::SpeculativeCascade { rule: Rule::Chow { alpha } }, temperature, seed);
            let token = decoding(Strategy::CascadeToken { alpha }, temperature, seed);
            let (expected, _) = text_of(&chow, 1, 64);
            let (text, counters) = text_of(&token, 1, 64);
            assert_eq!(text, expected, "T={temperature} seed={seed}");
            assert!(counters.expert_passes <= text.len() as u64 + 1);
        }
    }
}

#[test]
fn strict_first_tokens_are_those_of_the_exact_walk() {
    for seed in 0..30 {
        let lossy = Strategy::SpeculativeCascade { rule: Rule::TokenV3 { alpha: 1.0 } };
        let exact = decoding(Strategy::Speculative { coupling: Coupling::Maximal }, 0.9, seed);
        let strict = Decoding { strict_first_tokens: 8, ..decoding(lossy, 0.9, seed) };
        let (a, b) = (text_of(&exact, 1, 64).0, text_of(&strict, 1, 64).0);
        let shared = a.len().min(b.len()).min(8);
        assert_eq!(a[..shared], b[..shared]);
    }
}

#[test]
fn rejection_at_the_last_draft_makes_the_next_block_stale() {
    // A replacement at the last draft commits as many tokens as full acceptance: base and length agree, the tail does not.
    let mut tails = 0;
    for seed in 0..60 {
        let mut cluster = Cluster::new(64);
        let settings =
            Decoding { draft_length: 2, ..decoding(Strategy::Speculative { coupling: Coupling::Gumbel }, 1.0, seed) };
        cluster.open(1, settings.clone(), &prompt(seed), 3);
        let text = cluster.run().remove(0);
        assert_eq!(text, text_alone(expert_model(), &settings));
        tails += cluster.stale.iter().filter(|reason| **reason == StaleReason::Tail).count();
    }
    assert!(tails > 20, "only {tails} blocks stood on another tail");
}

#[test]
fn a_stale_block_is_answered_so_and_costs_no_forward() {
    let settings = Arc::new(decoding(Strategy::Speculative { coupling: Coupling::Gumbel }, 0.0, 1));
    let ids = prompt(1);
    let history = History::from_ids(&ids);
    let epoch = Epoch::of_placement(1);
    let block = |epoch, base, tail| DraftBlock {
        epoch,
        given_from: base,
        given: Vec::new(),
        base,
        tail,
        drafts: vec![Draft::bare(5)],
        score_given: false,
    };
    let cases = [
        (block(epoch.moved(), 4, history.tail()), StaleReason::Epoch),
        (block(epoch, 5, history.tail()), StaleReason::Base),
        (block(epoch, 4, history.tail() ^ 1), StaleReason::Tail),
    ];
    for (stale, reason) in cases {
        let mut task = VerifyTask::new(settings.clone(), &ids, epoch);
        task.push(stale);
        let answers = task.drain();
        assert!(matches!(&answers[..], [Answer::Stale(stale)] if stale.reason == reason && stale.committed == 4));
        assert_eq!(task.want(), Some(0), "the prefill only");
    }
}

#[test]
fn rows_that_are_no_numbers_matter_where_the_walk_comes_to_them() {
    let settings = Arc::new(decoding(Strategy::Speculative { coupling: Coupling::Gumbel }, 0.0, 1));
    let (ids, epoch) = (prompt(1), Epoch::of_placement(1));
    let (mut history, mut data) = (ids.clone(), Vec::new());
    for position in 0..4 {
        expert_model().logits(&history, &mut data);
        let row = &data[position * expert_model().vocabulary..];
        history.push(drafting::decode(&settings, &history, row).token);
    }
    let verified = |wrong: Option<usize>, overflown: usize| {
        let mut tokens = history[4..].to_vec();
        if let Some(draft) = wrong {
            tokens[draft] = if tokens[draft] == 5 { 6 } else { 5 };
        }
        let mut task = VerifyTask::new(settings.clone(), &ids, epoch);
        task.push(DraftBlock {
            epoch,
            given_from: 4,
            given: Vec::new(),
            base: 4,
            tail: History::from_ids(&ids).tail(),
            drafts: tokens.into_iter().map(Draft::bare).collect(),
            score_given: false,
        });
        let vocabulary = expert_model().vocabulary;
        let mut rows = Rows { vocabulary, data: data.clone(), named: None };
        rows.data[overflown * vocabulary..(overflown + 1) * vocabulary].fill(f32::NAN);
        task.take(&rows, 0).map(|()| match &task.drain()[..] {
            [Answer::Verdict(verdict)] => (verdict.accepted, verdict.replacement),
            other => panic!("{other:?}"),
        })
    };
    for wrong in [None, Some(0), Some(1), Some(2), Some(3)] {
        assert_eq!(verified(wrong, 0), Err(NotFinite { tokens: 4 }), "nothing was tested before it");
        for overflown in 1..4 {
            // The last token that was tested ends the verdict: the expert's own, or a draft that is the expert's as well.
            let last = wrong.filter(|wrong| *wrong < overflown).unwrap_or(overflown - 1);
            assert_eq!(verified(wrong, overflown), Ok((last, Some(history[4 + last]))), "draft {wrong:?} is wrong");
        }
    }
}

#[test]
fn a_model_without_numbers_ends_a_text_at_one_place_however_far_is_drafted() {
    let (mut whole, mut ended) = ([0; 2], [0; 2]);
    let token_v3 = Strategy::SpeculativeCascade { rule: Rule::TokenV3 { alpha: 0.6 } };
    for strategy in [Strategy::Speculative { coupling: Coupling::Gumbel }, token_v3] {
        let cases = (0..4).flat_map(|seed| (10..24).flat_map(move |after| [(seed, after, 0), (seed, after, 1)]));
        for (seed, after, whose) in cases {
            let fate = |draft_length, depth| {
                let mut cluster = Cluster::new(64);
                let engine = if whose == 0 { &mut cluster.drafter.engine } else { &mut cluster.expert.engine };
                engine.overflow_after(Some(after));
                let settings = Decoding { draft_length, ..decoding(strategy, 0.8, seed) };
                cluster.open(1, settings, &prompt(seed), depth);
                let text = cluster.run().remove(0);
                (text, cluster.lanes[0].failed)
            };
            let expected = fate(1, 1);
            (if expected.1 { &mut ended } else { &mut whole })[whose] += 1;
            for (draft_length, depth) in [(1, 3), (3, 1), (8, 1), (5, 3), (8, 0)] {
                let case = (strategy, seed, after, whose, draft_length, depth);
                assert_eq!(fate(draft_length, depth), expected, "{case:?}");
            }
        }
    }
    assert!(whole.into_iter().chain(ended).all(|count| count > 20), "{whole:?} whole, {ended:?} ended");
}

#[test]
fn a_session_that_an_engine_refuses_ends_alone() {
    let strategy = Strategy::SpeculativeCascade { rule: Rule::TokenV3 { alpha: 0.5 } };
    let alone: Vec<_> = (0..6).map(|seed| text_of(&decoding(strategy, 0.8, seed), 2, 64).0).collect();
    for refused in 0..6 {
        let mut cluster = Cluster::new(64);
        for seed in 0..6 {
            let mut ids = prompt(seed);
            if seed == refused {
                ids[2] = 70_000;
            }
            cluster.open(u128::from(seed) + 1, decoding(strategy, 0.8, seed), &ids, 2);
        }
        let texts = cluster.run();
        for (seed, (text, alone)) in texts.iter().zip(&alone).enumerate() {
            let failed = cluster.lanes[seed].failed;
            if seed as u64 == refused {
                assert!(failed && text.is_empty());
            } else {
                assert_eq!((failed, text), (false, alone), "session {seed} beside {refused}");
            }
        }
    }
}

#[test]
fn a_session_moves_and_its_text_does_not_change() {
    for strategy in strategies() {
        for seed in 0..5 {
            let settings = decoding(strategy, 0.8, seed);
            let (expected, _) = text_of(&settings, 1, 64);
            // The expert is lost after every second round: another one is told the whole history.
            let mut cluster = Cluster::new(64);
            cluster.open(1, settings.clone(), &prompt(seed), 2);
            let mut rounds = 0;
            while !cluster.lanes[0].over {
                cluster.round();
                rounds += 1;
                let lane = &mut cluster.lanes[0];
                if rounds % 2 == 0 && !lane.over {
                    let epoch = lane.session.reopen();
                    let task = VerifyTask::new(lane.decoding.clone(), lane.session.committed(), epoch);
                    cluster.expert = Side::new(expert_model(), 64);
                    cluster.expert.open(SessionId(1), task);
                }
            }
            assert_eq!(cluster.lanes[0].text, expected, "{strategy:?} seed={seed}");
        }
    }
}

#[test]
fn a_drafter_dies_and_its_sessions_text_does_not_change() {
    for strategy in strategies() {
        for seed in 0..5 {
            let settings = decoding(strategy, 0.8, seed);
            let (expected, _) = text_of(&settings, 1, 64);
            let mut ids = prompt(seed);
            let mut text = Vec::new();
            let mut over = false;
            while !over {
                // Each owner lives for one round; the next knows the committed ids alone.
                let mut cluster = Cluster::new(64);
                cluster.open(1, settings.clone(), &ids, 2);
                cluster.lanes[0].text.clone_from(&text);
                cluster.round();
                text.clone_from(&cluster.lanes[0].text);
                over = cluster.lanes[0].over;
                ids = [prompt(seed), text.clone()].concat();
            }
            assert_eq!(text, expected, "{strategy:?} seed={seed}");
        }
    }
}

#[test]
fn cascade_token_has_kept_tokens_scored_where_logprobs_are_asked() {
    let strategy = Strategy::CascadeToken { alpha: 0.9 };
    let settings = Decoding { logprobs: Some(2), ..decoding(strategy, 0.8, 3) };
    let mut cluster = Cluster::new(64);
    cluster.open(1, settings, &prompt(3), 1);
    let mut unscored: VecDeque<TokenId> = VecDeque::new();
    let mut scored = 0;
    for _ in 0..400 {
        let lane = &mut cluster.lanes[0];
        if lane.session.is_idle() && lane.session.committed().len() >= lane.decoding.end() {
            match lane.session.flush_scores() {
                Some(block) => cluster.expert.stepper.get_mut(lane.key).expect("open").push(block),
                None => break,
            }
        } else if let Some(order) = lane.session.next_draft() {
            cluster.drafter.stepper.get_mut(lane.key).expect("open").order(&order);
            while cluster.drafter.stepper.has_work() {
                cluster.drafter.step();
            }
            let (ticket, drafts) = cluster.drafter.stepper.get_mut(lane.key).expect("open").drain().expect("drafted");
            let (kept, block) = lane.session.drafted(ticket, drafts);
            unscored.extend(kept.iter().map(|e| e.token));
            if let Some(block) = block {
                cluster.expert.stepper.get_mut(lane.key).expect("open").push(block);
            }
        }
        while cluster.expert.stepper.has_work() {
            cluster.expert.step();
        }
        for answer in cluster.expert.stepper.get_mut(lane.key).expect("open").drain() {
            let answered = lane.session.answer(answer).expect("in order");
            assert!(answered.given_scores.iter().all(|score| score.logprob.is_some() && score.top.len() == 2));
            for _ in &answered.given_scores {
                unscored.pop_front().expect("a kept token waits for each score");
                scored += 1;
            }
            assert!(answered.emitted.iter().all(|e| e.score.logprob.is_some()));
        }
        assert!(unscored.len() <= 24, "scores come in time");
    }
    assert!(unscored.is_empty() && scored > 5, "{} wait, {scored} scored", unscored.len());
}
