//! The step loop over the toy model: every row handed over is the law's, whatever else happens on the engine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use cascadia_core::engine::{Chunk, Engine, EngineError, ModelFacts, Rows};
use cascadia_core::ids::{SessionId, TokenId};
use cascadia_core::stepper::{Evicted, Failed, NotFinite, Rank, Refused, StepError, Stepper, StepperConfig, Task};
use cascadia_core::toy::{ToyEngine, ToyModel};
use cascadia_core::waiting_queue::{Arrival, QueuedSession};
use proptest::prelude::*;

const MODEL: ToyModel =
    ToyModel { vocabulary: 16, order: 4, shared_seed: 5, own_seed: 6, own_share: 0.3, sharpness: 2.0, eos: None };

/// One thing to have done: keep so many tokens, append these, see so many rows.
#[derive(Clone, Debug)]
struct Work {
    keep: usize,
    append: Vec<TokenId>,
    rows: usize,
}

/// Does its works in order and compares every row with the law.
#[derive(Default)]
struct Checked {
    ids: Vec<TokenId>,
    works: VecDeque<Work>,
    rows: Option<usize>,
    done: usize,
}

impl Checked {
    fn of(works: impl IntoIterator<Item = Work>) -> Self {
        let mut task = Self { works: works.into_iter().collect(), ..Self::default() };
        task.next();
        task
    }

    fn give(&mut self, work: Work) {
        self.works.push_back(work);
        if self.rows.is_none() {
            self.next();
        }
    }

    fn next(&mut self) {
        self.rows = self.works.pop_front().map(|work| {
            self.ids.truncate(work.keep);
            self.ids.extend(work.append);
            work.rows.min(self.ids.len())
        });
    }
}

impl Task for Checked {
    fn tokens(&self) -> &[TokenId] {
        &self.ids
    }

    fn want(&self) -> Option<usize> {
        self.rows
    }

    fn take(&mut self, rows: &Rows, first: usize) -> Result<(), NotFinite> {
        let wanted = self.rows.expect("an idle task is not served");
        let bad = (0..wanted).find(|index| rows.finite(first + index).is_none());
        if let Some(index) = bad {
            return Err(NotFinite { tokens: self.ids.len() - wanted + index + 1 });
        }
        let mut law = Vec::new();
        for index in 0..wanted {
            law.clear();
            MODEL.logits(&self.ids[..self.ids.len() - wanted + index + 1], &mut law);
            assert_eq!(rows.row(first + index), law, "row {index} of {wanted} at {} tokens", self.ids.len());
        }
        self.done += 1;
        self.next();
        Ok(())
    }
}

fn tokens(seed: usize, count: usize) -> Vec<TokenId> {
    (0..count).map(|i| ((i * 7 + seed * 5 + i / 16) % 16) as TokenId).collect()
}

fn prefill(seed: usize, count: usize, rows: usize) -> Work {
    Work { keep: 0, append: tokens(seed, count), rows }
}

fn decode() -> Work {
    Work { keep: usize::MAX, append: vec![3], rows: 1 }
}

fn rank(priority: i32, born: u64) -> Rank {
    Rank { priority, born: Duration::from_secs(born) }
}

/// A session that has begun elsewhere: it needs no pages to come in.
fn begun<T>(key: u128, task: T, rank: Rank, salt: &str) -> QueuedSession<T> {
    QueuedSession { key: SessionId(key), task, rank, salt: salt.to_owned(), begun: true }
}

struct World {
    engine: ToyEngine,
    stepper: Stepper<Checked>,
    steps: u64,
}

impl World {
    fn new(pages: usize, batch_tokens: usize) -> Self {
        let engine = ToyEngine::new(MODEL, 4_096, pages);
        let config = StepperConfig { batch_tokens, ..StepperConfig::default() };
        let stepper = Stepper::new(engine.facts(), config);
        Self { engine, stepper, steps: 0 }
    }

    fn insert(&mut self, key: u128, born: u64, works: impl IntoIterator<Item = Work>) {
        let now = Duration::from_secs(self.steps);
        self.stepper.open(begun(key, Checked::of(works), rank(0, born), ""), now).unwrap();
    }

    fn step(&mut self) -> cascadia_core::stepper::StepReport {
        self.steps += 1;
        let report = self.stepper.step(&mut self.engine, Duration::from_secs(self.steps));
        self.stepper.audit().unwrap();
        report
    }

    fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.stepper.has_work() {
                return;
            }
            let report = self.step();
            assert_eq!(report.failed, []);
        }
        panic!("work is left after 10,000 steps");
    }

    fn run_steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    fn done(&self, key: u128) -> usize {
        self.stepper.get(SessionId(key)).unwrap().done
    }

    fn held(&self, key: u128) -> usize {
        self.stepper.held(SessionId(key)).unwrap()
    }

    fn close_all(&mut self) {
        for key in self.stepper.keys().collect::<Vec<_>>() {
            self.stepper.remove(key).unwrap();
        }
        self.stepper.audit().unwrap();
        assert_eq!(self.stepper.load().pages_used, 0, "a page has an owner after the last session closed");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Insert { priority: i32, seed: usize, count: usize, rows: usize },
    Give { session: usize, keep: usize, append: Vec<TokenId>, rows: usize },
    Step,
    Remove { session: usize },
}

fn event() -> impl Strategy<Value = Event> {
    let append = prop::collection::vec(0u32..16, 0..20);
    prop_oneof![
        2 => (-1i32..2, 0usize..2, 0usize..90, 0usize..9)
            .prop_map(|(priority, seed, count, rows)| Event::Insert { priority, seed, count, rows }),
        5 => (0usize..8, prop_oneof![Just(usize::MAX), 0usize..90], append, 0usize..9)
            .prop_map(|(session, keep, append, rows)| Event::Give { session, keep, append, rows }),
        8 => Just(Event::Step),
        1 => (0usize..8).prop_map(|session| Event::Remove { session }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any sessions, any order, budget and number of pages: every row is the law's and everybody is served.
    #[test]
    fn every_row_is_the_laws(
        pages in 14usize..60,
        budget in 9usize..200,
        events in prop::collection::vec(event(), 1..100),
    ) {
        let mut world = World::new(pages, budget);
        for (number, event) in events.into_iter().enumerate() {
            let keys: Vec<SessionId> = world.stepper.keys().collect();
            let pick = |session: usize| keys.get(session % keys.len().max(1)).copied();
            match event {
                Event::Insert { priority, seed, count, rows } if keys.len() < 8 => {
                    let task = Checked::of([prefill(seed, count, rows)]);
                    let queued = begun(number as u128, task, rank(priority, number as u64), ["", "b"][number % 2]);
                    assert_eq!(world.stepper.open(queued, Duration::ZERO), Ok(Arrival::Admitted));
                }
                Event::Give { session, keep, append, rows } => {
                    let Some(key) = pick(session) else { continue };
                    let task = world.stepper.get_mut(key).unwrap();
                    if task.ids.len() + task.works.iter().map(|work| work.append.len()).sum::<usize>() < 200 {
                        task.give(Work { keep, append, rows });
                    }
                }
                Event::Step => drop(world.step()),
                Event::Remove { session } => {
                    if let Some(key) = pick(session) {
                        world.stepper.remove(key).unwrap();
                    }
                }
                Event::Insert { .. } => {}
            }
        }
        world.run();
        world.close_all();
    }
}

#[test]
fn a_long_prefill_never_delays_a_decode_by_more_than_a_step() {
    let mut world = World::new(400, 64);
    world.insert(1, 0, [prefill(0, 2_000, 1)]);
    for key in 2..6 {
        world.insert(key, 10, [prefill(key as usize, 10, 1)].into_iter().chain((0..20).map(|_| decode())));
    }
    for step in 1..=21 {
        let report = world.step();
        assert!(report.tokens <= 64);
        assert!((2..6).all(|key| world.done(key) == step), "step {step}");
        assert!(world.held(1) >= step * 8, "the prefill advances too");
    }
    world.run();
    assert_eq!(world.done(1), 1);
}

#[test]
fn a_full_batch_goes_round() {
    let mut world = World::new(200, 10);
    for key in 0..40 {
        world.insert(key, key as u64, [prefill(0, 1, 1)].into_iter().chain((0..5).map(|_| decode())));
    }
    world.run_steps(18);
    let done: Vec<usize> = (0..40).map(|key| world.done(key)).collect();
    assert!(done.iter().max().unwrap() - done.iter().min().unwrap() <= 1, "{done:?}");
}

#[test]
fn the_oldest_always_advances_under_page_pressure() {
    let mut world = World::new(8, 16);
    for key in 0..6 {
        // Each needs 7 of the 8 pages.
        world.insert(key, 100 - key as u64, [prefill(key as usize, 100, 3), decode(), decode()]);
    }
    let mut evictions = 0;
    for key in (0..6).rev() {
        for step in 0.. {
            if world.stepper.get(SessionId(key)).unwrap().rows.is_none() {
                break;
            }
            let before = (world.done(key), world.held(key));
            let report = world.step();
            assert!((world.done(key), world.held(key)) > before, "session {key} stands still at step {step}");
            assert!(report.evicted.iter().all(|evicted| evicted.key.0 != key), "the oldest loses nothing");
            evictions += report.evicted.len();
        }
    }
    assert!(evictions > 0 && !world.stepper.has_work());
    assert!((0..6).all(|key| world.done(key) == 3));
    world.close_all();
}

#[test]
fn the_oldest_gets_its_pages_before_short_work_of_others() {
    let mut world = World::new(9, 64);
    for key in 2..6 {
        world.insert(key, 10, [prefill(key as usize, 20, 1)].into_iter().chain((0..30).map(|_| decode())));
    }
    world.run_steps(2);
    world.insert(1, 0, [prefill(1, 120, 1)]);
    world.run_steps(6);
    assert_eq!(world.done(1), 1, "the others have work in every batch");
    assert!((2..6).any(|key| world.stepper.get(SessionId(key)).unwrap().rows.is_some()));
    world.run();
    assert!((2..6).all(|key| world.done(key) == 31));
    world.close_all();
}

#[test]
fn nobody_in_a_batch_loses_pages_to_it() {
    let mut world = World::new(9, 200);
    world.insert(1, 0, [prefill(1, 5, 1)]);
    world.insert(2, 1, [prefill(2, 110, 1)]);
    world.insert(3, 2, [prefill(3, 20, 1)]);
    let report = world.step();
    assert_eq!(report.ran, [SessionId(1), SessionId(3)], "one page is missing for session 2");
    assert_eq!(report.evicted, []);
    let report = world.step();
    assert_eq!(report.ran, [SessionId(2)]);
    assert_eq!(report.evicted, [Evicted { key: SessionId(1), held: 0 }]);
    world.close_all();
}

#[test]
fn who_loses_pages_to_a_batch_is_not_in_it() {
    let mut world = World::new(6, 200);
    world.insert(2, 5, [prefill(2, 33, 1)]);
    world.step();
    world.stepper.get_mut(SessionId(2)).unwrap().give(Work { keep: 33, append: tokens(9, 8), rows: 8 });
    world.insert(1, 0, [prefill(1, 60, 1)]);
    let report = world.step();
    assert_eq!(report.ran, [SessionId(1)]);
    assert_eq!(report.evicted, [Evicted { key: SessionId(2), held: 32 }]);
    world.run();
    assert_eq!(world.done(2), 2);
    world.close_all();
}

#[test]
fn a_prefill_that_lost_its_pages_is_not_done() {
    let mut world = World::new(4, 200);
    world.insert(2, 5, [prefill(2, 32, 0)]);
    world.step();
    world.stepper.get_mut(SessionId(2)).unwrap().give(Work { keep: usize::MAX, append: vec![], rows: 0 });
    world.insert(1, 0, [prefill(1, 60, 1)]);
    assert_eq!(world.step().ran, [SessionId(1)], "session 2 had all its tokens until session 1 took them");
    world.run();
    assert_eq!(world.done(2), 2);
    world.close_all();
}

#[test]
fn idle_sessions_lose_their_pages_first_and_are_told_what_they_hold() {
    let mut world = World::new(6, 64);
    for key in [1, 2] {
        world.insert(key, 0, [prefill(key as usize, 40, 1)]);
        world.step();
    }
    world.insert(3, 9, [prefill(3, 30, 1)]);
    let report = world.step();
    assert_eq!(report.evicted, [Evicted { key: SessionId(1), held: 16 }], "from the end, no more than needed");
    assert_eq!((world.held(1), world.held(2), world.held(3)), (16, 40, 30));
    world.stepper.get_mut(SessionId(1)).unwrap().give(decode());
    world.run();
    assert_eq!((world.done(1), world.held(1)), (2, 41), "it computes them again by itself");
}

#[test]
fn equal_beginnings_are_computed_once() {
    let mut world = World::new(32, 512);
    world.insert(1, 0, [prefill(1, 70, 1)]);
    assert_eq!(world.step().tokens, 70);
    world.insert(2, 1, [prefill(1, 70, 1)]);
    assert_eq!(world.held(2), 64, "known as soon as it is open");
    assert_eq!(world.step().tokens, 6);
    assert_eq!(world.stepper.load().pages_used, 6);
    // Rows wanted inside the shared pages: these are given up, never written.
    world.insert(3, 2, [prefill(1, 70, 20)]);
    assert_eq!(world.step().tokens, 70 - 48);
    world.stepper.get_mut(SessionId(2)).unwrap().give(Work { keep: 60, append: vec![], rows: 2 });
    assert_eq!(world.step().tokens, 12, "page 3 anew");
    world.stepper.remove(SessionId(1)).unwrap();
    world.insert(4, 3, [prefill(1, 64, 0)]);
    let report = world.step();
    assert_eq!((report.tokens, report.ran.as_slice()), (0, [SessionId(4)].as_slice()), "nothing to compute");
    let load = world.stepper.load();
    assert_eq!((load.prefix_queries, load.prefix_hits), (70 + 70 + 70 + 64, 64 + 48 + 64), "each session once");
    world.close_all();
}

#[test]
fn a_diverged_history_keeps_its_common_prefix() {
    let mut world = World::new(32, 512);
    world.insert(1, 0, [prefill(1, 50, 1)]);
    world.step();
    world.stepper.get_mut(SessionId(1)).unwrap().give(Work { keep: 45, append: vec![9, 8, 7], rows: 3 });
    let report = world.step();
    assert_eq!((report.tokens, report.rows), (3, 3));
    world.stepper.get_mut(SessionId(1)).unwrap().give(Work { keep: usize::MAX, append: vec![], rows: 1 });
    assert_eq!(world.step().tokens, 1, "a row of a cached token is computed again");
}

#[test]
fn who_is_refused_and_who_is_given_up() {
    let engine = ToyEngine::new(MODEL, 100, 3);
    let config = StepperConfig { max_sessions: 2, max_waiting: 1, pages: 2, ..StepperConfig::default() };
    let mut stepper = Stepper::new(engine.facts(), config);
    let given_up = Stepper::new(engine.facts(), config);
    let mut world = World { engine, stepper: given_up, steps: 0 };
    let mut open = |key| stepper.open(begun(key, Checked::of(vec![]), rank(0, 0), ""), Duration::ZERO);
    assert_eq!(open(1), Ok(Arrival::Admitted));
    assert_eq!(open(1), Err(Refused::AlreadyOpen(SessionId(1))));
    assert_eq!(open(2), Ok(Arrival::Admitted));
    assert_eq!(open(3), Ok(Arrival::Queued));
    assert_eq!(open(3), Err(Refused::AlreadyOpen(SessionId(3))));
    assert_eq!(open(4), Err(Refused::Full { open: 2, waiting: 1 }));

    world.insert(1, 0, [prefill(0, 33, 1)]);
    world.insert(2, 0, [prefill(0, 101, 1)]);
    let failed = world.step().failed;
    assert_eq!(failed[0].error, StepError::Pages { needed: 3, total: 2 });
    assert_eq!(failed[1].error, StepError::Context { tokens: 101, context: 100 });
    assert_eq!(world.stepper.keys().count(), 0);
}

/// Fails every pass in one way.
struct Broken(ModelFacts, EngineError);

impl Engine for Broken {
    fn facts(&self) -> &ModelFacts {
        &self.0
    }

    fn progress(&self) -> Arc<AtomicU64> {
        Arc::default()
    }

    fn forward(&mut self, _: &[Chunk<'_>], _: &mut Rows) -> Result<(), EngineError> {
        Err(self.1.clone())
    }
}

#[test]
fn a_failed_pass_costs_its_sessions_and_nobody_else() {
    let mut world = World::new(32, 64);
    world.insert(1, 0, []);
    world.insert(2, 0, [prefill(2, 40, 1)]);
    let mut broken = Broken(world.engine.facts().clone(), EngineError::Pass("no power".to_owned()));
    let report = world.stepper.step(&mut broken, Duration::ZERO);
    assert_eq!((report.failed.len(), &report.lost), (1, &None));
    assert_eq!(report.failed[0].error.to_string(), "the forward pass failed: no power");
    assert!(report.ran.is_empty());
    assert_eq!(world.stepper.keys().collect::<Vec<_>>(), [SessionId(1)]);
    world.stepper.get_mut(SessionId(1)).unwrap().give(prefill(2, 40, 1));
    world.run();
    world.close_all();
}

#[test]
fn a_lost_device_leaves_its_sessions_to_whoever_ends_the_node() {
    let mut world = World::new(32, 64);
    world.insert(1, 0, [prefill(1, 40, 1)]);
    world.insert(2, 0, [prefill(2, 20, 1)]);
    let mut broken = Broken(world.engine.facts().clone(), EngineError::Fatal("no card".to_owned()));
    let report = world.stepper.step(&mut broken, Duration::ZERO);
    assert_eq!((report.lost.as_deref(), report.failed.len(), report.ran.len()), (Some("no card"), 0, 0));
    assert_eq!(world.stepper.keys().count(), 2);
    world.close_all();
}

#[test]
fn a_chunk_that_the_engine_refuses_costs_its_session_and_nobody_else() {
    let strange = |append: Vec<TokenId>| Work { keep: usize::MAX, append, rows: 1 };
    for refused in [vec![1], vec![4], vec![2, 3], vec![1, 2, 3, 4]] {
        let mut world = World::new(64, 128);
        for key in 1..=4 {
            // Some are cached for the most part, some are new to the engine.
            let beginning = prefill(key as usize, 10 * key as usize, 1);
            world.insert(key, key as u64, [beginning, decode(), decode()]);
        }
        world.step();
        for key in &refused {
            // The token behind what is under way is none of the sixteen.
            world.stepper.get_mut(SessionId(*key)).unwrap().works.clear();
            world.stepper.get_mut(SessionId(*key)).unwrap().give(strange(vec![7, 70, 7]));
        }
        world.insert(5, 5, [prefill(5, 30, 2)]);
        // The first of these steps ends what was under way before the works were taken away.
        let mut failed = Vec::new();
        for _ in 0..3 {
            let report = world.step();
            let all = report.ran.len() + report.failed.len();
            assert!(report.sessions == report.ran.len() && all <= 5, "{report:?}");
            failed.extend(report.failed);
        }
        let keys: Vec<u128> = failed.iter().map(|failed| failed.key.0).collect();
        assert_eq!(keys, refused);
        for Failed { error, .. } in failed {
            let sentence = "the session's chunk holds token 70, outside the vocabulary of 16";
            assert_eq!(error.to_string(), sentence);
        }
        world.run();
        for key in (1..=4).filter(|key| !refused.contains(key)) {
            assert_eq!(world.done(key), 3, "session {key} beside {refused:?}");
        }
        assert_eq!(world.done(5), 1);
        world.close_all();
    }
}

#[test]
fn an_engine_that_names_a_chunk_that_is_not_there_has_failed() {
    let mut world = World::new(32, 64);
    world.insert(1, 0, [prefill(1, 40, 1)]);
    let error = EngineError::Chunk { index: 1, problem: "is odd".to_owned() };
    let mut broken = Broken(world.engine.facts().clone(), error);
    assert_eq!(world.stepper.step(&mut broken, Duration::ZERO).failed.len(), 1);
    assert_eq!(world.stepper.keys().count(), 0);
}

#[test]
fn rows_that_are_no_numbers_cost_their_session_and_nobody_else() {
    let mut world = World::new(32, 64);
    // Two rows each; of all six only the second one's last scores the token after this one.
    world.engine.overflow_after(tokens(2, 20).last().copied());
    for key in [1, 2, 3] {
        world.insert(key, key as u64, [prefill(key as usize, 20, 2)]);
    }
    let report = world.step();
    let error = StepError::NotFinite(NotFinite { tokens: 20 });
    assert_eq!(report.failed, [Failed { key: SessionId(2), error }]);
    assert_eq!(report.ran, [SessionId(1), SessionId(3)]);
    assert_eq!(world.stepper.keys().collect::<Vec<_>>(), [SessionId(1), SessionId(3)]);
    world.close_all();
}

/// What one decode step costs beside the model; run with `--ignored --nocapture`, optimised.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn cost_of_a_step() {
    struct Silent(ModelFacts);
    impl Engine for Silent {
        fn facts(&self) -> &ModelFacts {
            &self.0
        }
        fn progress(&self) -> Arc<AtomicU64> {
            Arc::default()
        }
        fn forward(&mut self, batch: &[Chunk<'_>], rows: &mut Rows) -> Result<(), EngineError> {
            rows.vocabulary = 1;
            rows.data.resize(batch.iter().map(|chunk| chunk.rows).sum(), 0.0);
            Ok(())
        }
    }
    struct Endless(Vec<TokenId>);
    impl Task for Endless {
        fn tokens(&self) -> &[TokenId] {
            &self.0
        }
        fn want(&self) -> Option<usize> {
            Some(1)
        }
        fn take(&mut self, _: &Rows, _: usize) -> Result<(), NotFinite> {
            self.0.push(7);
            Ok(())
        }
    }
    let mut engine = Silent(ToyEngine::new(MODEL, 1 << 20, 1 << 17).facts().clone());
    for (sessions, length) in [(1, 100), (1, 4_000), (1, 32_000), (64, 1_000)] {
        let mut stepper = Stepper::new(engine.facts(), StepperConfig::default());
        for key in 0..sessions {
            stepper.open(begun(key, Endless(vec![key as u32; length]), rank(0, 0), ""), Duration::ZERO).unwrap();
        }
        for _ in 0..300 {
            stepper.step(&mut engine, Duration::ZERO);
        }
        let start = std::time::Instant::now();
        for _ in 0..1_000 {
            stepper.step(&mut engine, Duration::ZERO);
        }
        println!("{sessions} sessions of {length} tokens: {:?} a step", start.elapsed() / 1_000);
    }
}
