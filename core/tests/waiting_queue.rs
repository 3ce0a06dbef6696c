//! More sessions than fit: who waits, who comes in, and that nobody's text tells of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cascadia_core::engine::{Engine, Rows};
use cascadia_core::ids::{SessionId, TokenId};
use cascadia_core::pages::pages_for;
use cascadia_core::stepper::{NotFinite, Rank, Refused, Stepper, StepperConfig, Task};
use cascadia_core::toy::{ToyEngine, ToyModel};
use cascadia_core::waiting_queue::{Arrival, IDLE_AFTER, LEAVES_AFTER, QueuedSession, claimed};
use proptest::prelude::*;

const MODEL: ToyModel =
    ToyModel { vocabulary: 16, order: 4, shared_seed: 5, own_seed: 6, own_share: 0.3, sharpness: 2.0, eos: None };

/// Four steps are longer than a session may idle before it counts as idle.
const STEP: Duration = Duration::from_millis(300);

/// Writes the likeliest tokens up to `end`, and falls asleep after every `nap`.
#[derive(Clone, Debug)]
struct Writer {
    ids: Vec<TokenId>,
    end: usize,
    nap: usize,
    asleep: bool,
}

impl Task for Writer {
    fn tokens(&self) -> &[TokenId] {
        &self.ids
    }

    fn want(&self) -> Option<usize> {
        (!self.asleep && self.ids.len() < self.end).then_some(1)
    }

    fn take(&mut self, rows: &Rows, first: usize) -> Result<(), NotFinite> {
        let row = rows.row(first);
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("a row");
        self.ids.push(best as TokenId);
        self.asleep = self.ids.len().is_multiple_of(self.nap);
        Ok(())
    }
}

fn stepper(pages: usize, config: StepperConfig) -> (ToyEngine, Stepper<Writer>) {
    let engine = ToyEngine::new(MODEL, 4_096, pages);
    let stepper = Stepper::new(engine.facts(), config);
    (engine, stepper)
}

fn queued(key: usize, writer: &Writer, priority: i32, begun: bool) -> QueuedSession<Writer> {
    let rank = Rank { priority, born: Duration::from_secs(key as u64) };
    QueuedSession { key: SessionId(key as u128), task: writer.clone(), rank, salt: String::new(), begun }
}

fn writer(seed: u32, prompt: usize, more: usize) -> Writer {
    let ids = (0..prompt as u32).map(|i| (i * 7 + i / 16 + seed * 5) % 16).collect();
    Writer { ids, end: prompt + more, nap: usize::MAX, asleep: false }
}

/// A session of the property test.
#[derive(Clone, Debug)]
struct Comer {
    writer: Writer,
    priority: i32,
    arrives: usize,
    begun: bool,
}

fn comer() -> impl Strategy<Value = Comer> {
    // Two prompts' beginnings, so that some are shared.
    (0u32..2, 1usize..70, 1usize..30, 3usize..20, -1i32..2, 0usize..40, any::<bool>()).prop_map(
        |(seed, prompt, more, nap, priority, arrives, begun)| {
            let writer = Writer { nap, ..writer(seed, prompt, more) };
            Comer { writer, priority, arrives, begun }
        },
    )
}

/// What a run gave: each session's text, in the order in which they came in.
struct Outcome {
    texts: BTreeMap<SessionId, Vec<TokenId>>,
    waited: BTreeSet<SessionId>,
}

/// Runs all sessions to their ends. A sleeper wakes after six steps.
fn run(comers: &[Comer], pages: usize, max_sessions: usize) -> Outcome {
    let (mut engine, mut stepper) =
        stepper(pages, StepperConfig { batch_tokens: 48, max_sessions, ..StepperConfig::default() });
    let mut outcome = Outcome { texts: BTreeMap::new(), waited: BTreeSet::new() };
    let mut waiting_queue: BTreeSet<(Rank, SessionId)> = BTreeSet::new();
    let mut asleep: BTreeMap<SessionId, usize> = BTreeMap::new();
    for step in 0..20_000 {
        if outcome.texts.len() == comers.len() {
            assert_eq!(stepper.load().pages_used, 0, "a page has an owner after the last session closed");
            return outcome;
        }
        let now = STEP * step as u32;
        for (key, comer) in comers.iter().enumerate().filter(|(_, comer)| comer.arrives == step) {
            let queued = queued(key, &comer.writer, comer.priority, comer.begun);
            let place = (queued.rank, queued.key);
            match stepper.open(queued, now).expect("the door is wide enough") {
                Arrival::Admitted => {
                    assert!(waiting_queue.iter().all(|other| place < *other), "{key} passed one that comes before it");
                    let free = stepper.load().pages_used;
                    assert!(comer.begun || free >= pages_for(comer.writer.ids.len()), "{key} has its pages");
                }
                Arrival::Queued => {
                    outcome.waited.insert(place.1);
                    waiting_queue.insert(place);
                }
            }
            stepper.audit().unwrap();
        }
        for key in stepper.admit_waiting(now).entered {
            let first = waiting_queue.pop_first().expect("somebody waits");
            assert_eq!(key, first.1, "they come in by the order of service");
        }
        stepper.audit().unwrap();
        let report = stepper.step(&mut engine, now);
        assert_eq!(report.failed, [], "who is inside is delayed, never refused");
        stepper.audit().unwrap();
        for key in stepper.keys().collect::<Vec<_>>() {
            let task = stepper.get(key).expect("an open session");
            if task.ids.len() >= task.end {
                outcome.texts.insert(key, stepper.remove(key).expect("an open session").ids);
            } else if task.asleep {
                let since = *asleep.entry(key).or_insert(step);
                if step - since >= 6 {
                    asleep.remove(&key);
                    stepper.get_mut(key).expect("an open session").asleep = false;
                }
            }
        }
    }
    panic!("sessions are left: {waiting_queue:?} at the door, {:?} inside", stepper.keys().collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever comes, however few slots and pages there are: all are served, in order, and write what they would write
    /// alone; nobody inside is given up.
    #[test]
    fn texts_do_not_tell_of_the_room(
        comers in prop::collection::vec(comer(), 1..14),
        pages in 7usize..30,
        max_sessions in 1usize..6,
    ) {
        let crowded = run(&comers, pages, max_sessions);
        let roomy = run(&comers, 2_000, 100);
        prop_assert_eq!(roomy.waited.len(), 0);
        prop_assert_eq!(crowded.texts, roomy.texts);
    }
}

#[test]
fn admission_takes_the_prompts_pages_and_waits_for_them() {
    let (mut engine, mut stepper) = stepper(10, StepperConfig { max_waiting: 1, ..StepperConfig::default() });
    let (t0, t1) = (Duration::ZERO, STEP);
    assert_eq!(stepper.open(queued(1, &writer(1, 90, 30), 0, false), t0), Ok(Arrival::Admitted));
    assert_eq!(stepper.load().pages_used, 6, "before a token is computed");
    assert_eq!(stepper.open(queued(2, &writer(2, 80, 5), 0, false), t0), Ok(Arrival::Queued));
    assert_eq!((stepper.load().waiting_sessions, stepper.load().waiting_tokens), (1, 80));
    // A short one would fit, and does not pass; one more is one too many, and hears why.
    let refused = stepper.open(queued(3, &writer(3, 20, 5), 0, false), t0).unwrap_err();
    assert_eq!(refused, Refused::NoPages { needed: 2, free: 4, total: 10, waiting: 1 });
    let refused = refused.to_string();
    assert!(refused.contains("needs 2 KV pages") && refused.contains("4 of 10 are free"), "{refused}");
    // What has begun elsewhere goes first and needs no pages to come in.
    let begun =
        QueuedSession { rank: Rank { priority: 0, born: Duration::ZERO }, ..queued(4, &writer(4, 30, 1), 0, true) };
    assert_eq!(stepper.open(begun, t0), Ok(Arrival::Admitted));
    let _ = stepper.step(&mut engine, t0);
    assert_eq!(stepper.admit_waiting(t1).entered, []);
    stepper.remove(SessionId(1)).unwrap();
    assert!(stepper.waiting_queue_is_due());
    assert_eq!(stepper.admit_waiting(t1).entered, [SessionId(2)]);
    assert!(!stepper.has_waiting());
}

#[test]
fn the_door_takes_pages_of_long_idlers_and_of_lower_priorities_only() {
    let (mut engine, mut stepper) = stepper(10, StepperConfig::default());
    for key in [1, 2] {
        let napping = Writer { nap: 49, ..writer(key as u32, 48, 40) };
        assert_eq!(stepper.open(queued(key, &napping, 0, false), Duration::ZERO), Ok(Arrival::Admitted));
        let _ = stepper.step(&mut engine, STEP * key as u32);
    }
    assert!([1, 2].iter().all(|&key| stepper.get(SessionId(key)).unwrap().asleep), "both have no work");
    assert_eq!(stepper.open(queued(3, &writer(3, 100, 1), 0, false), STEP * 2), Ok(Arrival::Queued));
    assert_eq!(stepper.admit_waiting(STEP * 3).entered, [], "they may be between two blocks");
    let admit_waiting = stepper.admit_waiting(STEP + IDLE_AFTER);
    assert_eq!(admit_waiting.entered, [SessionId(3)]);
    assert_eq!(admit_waiting.evicted.iter().map(|evicted| evicted.key).collect::<Vec<_>>(), [SessionId(1)]);
    // A higher priority does not wait for work of a lower one.
    assert_eq!(stepper.open(queued(4, &writer(4, 90, 1), 5, false), STEP + IDLE_AFTER), Ok(Arrival::Queued));
    let admit_waiting = stepper.admit_waiting(STEP + IDLE_AFTER);
    assert_eq!(admit_waiting.entered, [SessionId(4)]);
    stepper.audit().unwrap();
}

#[test]
fn a_slot_that_is_not_used_for_long_goes_to_whoever_waits_for_one() {
    let config = StepperConfig { max_sessions: 3, ..StepperConfig::default() };
    let (mut engine, mut stepper) = stepper(64, config);
    // Two that have nothing to do, the first for longer, and one that has.
    for key in [1, 2] {
        let napping = Writer { nap: 49, ..writer(key as u32, 48, 40) };
        assert_eq!(stepper.open(queued(key, &napping, i32::MAX, true), Duration::ZERO), Ok(Arrival::Admitted));
        let _ = stepper.step(&mut engine, STEP * key as u32);
    }
    assert_eq!(stepper.open(queued(3, &writer(3, 20, 500), 0, false), Duration::ZERO), Ok(Arrival::Admitted));
    let busy = |stepper: &mut Stepper<Writer>, engine: &mut ToyEngine, now| {
        let _ = stepper.step(engine, now);
        stepper.audit().unwrap();
    };
    assert_eq!(stepper.admit_waiting(LEAVES_AFTER * 9).left, [], "nobody waits, and whoever stays stays");
    assert_eq!(stepper.open(queued(4, &writer(4, 20, 5), 0, false), STEP), Ok(Arrival::Queued));
    assert_eq!(stepper.admit_waiting(LEAVES_AFTER).entered, [], "they may be waiting for somebody themselves");
    busy(&mut stepper, &mut engine, LEAVES_AFTER);

    let admit_waiting = stepper.admit_waiting(STEP + LEAVES_AFTER);
    assert_eq!(
        (admit_waiting.left, admit_waiting.entered),
        (vec![SessionId(1)], vec![SessionId(4)]),
        "whatever its priority"
    );
    assert!(admit_waiting.evicted.is_empty() && stepper.get(SessionId(1)).is_none());
    busy(&mut stepper, &mut engine, STEP + LEAVES_AFTER);
    // It comes back as one that has begun, and waits as others do.
    let back = stepper.open(queued(1, &writer(1, 49, 40), 0, true), STEP + LEAVES_AFTER);
    assert_eq!(back, Ok(Arrival::Queued));
    let admit_waiting = stepper.admit_waiting(STEP * 2 + LEAVES_AFTER);
    assert_eq!((admit_waiting.left, admit_waiting.entered), (vec![SessionId(2)], vec![SessionId(1)]));
    // The others have work.
    assert_eq!(stepper.open(queued(5, &writer(5, 20, 5), 9, false), LEAVES_AFTER * 2), Ok(Arrival::Queued));
    assert_eq!(stepper.admit_waiting(LEAVES_AFTER * 3).left, []);
}

#[test]
fn a_claim_of_time_is_cut_to_what_a_request_can_have() {
    let longest = cascadia_core::limits::LONGEST_REQUEST;
    assert_eq!([0, 600_000].map(claimed), [Duration::ZERO, Duration::from_secs(600)]);
    assert_eq!([longest.as_millis() as u64 + 1, u64::MAX].map(claimed), [longest; 2]);
}

#[test]
fn a_shared_prompt_is_not_counted_twice() {
    // Six pages each, and a seventh for what it writes; five are everybody's.
    let (mut engine, mut stepper) = stepper(5 + 5 * 2, StepperConfig::default());
    for key in 1..6 {
        let arrival = stepper.open(queued(key, &writer(1, 96, 10), 0, false), Duration::ZERO);
        assert_eq!(arrival, Ok(Arrival::Admitted), "session {key}");
        let _ = stepper.step(&mut engine, Duration::ZERO);
        stepper.audit().unwrap();
    }
    assert!(stepper.load().pages_used <= 15);
}

#[test]
fn who_leaves_the_door_is_gone() {
    let (_, mut stepper) = stepper(10, StepperConfig { max_sessions: 1, ..StepperConfig::default() });
    for key in 1..4 {
        let _ = stepper.open(queued(key, &writer(1, 10, 1), 0, key == 3), Duration::ZERO).unwrap();
    }
    assert!(stepper.remove(SessionId(2)).is_some() && stepper.remove(SessionId(2)).is_none());
    stepper.remove(SessionId(1)).unwrap();
    assert_eq!(
        stepper.admit_waiting(Duration::ZERO).entered,
        [SessionId(3)],
        "also one that has begun waits for a slot"
    );
}
