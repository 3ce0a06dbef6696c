//! Sends requests when they are due and notes what comes of them. No request is dropped: all that were sent are waited for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::measure::Record;
use super::request::{RequestError, RequestOptions, RunOptions, Sample};
use super::target::Target;
use super::workload::{self, Item};

/// When requests are sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// So many are open at any time.
    Closed(usize),
    /// At these times, whether or not others have been answered.
    Open(Vec<Duration>),
}

/// One load.
pub struct Load {
    /// Who is asked.
    pub target: Arc<Target>,
    /// What is the same for all.
    pub ask: RunOptions,
    /// The requests; asked in turn, and again from the beginning.
    pub items: Arc<Vec<Item>>,
    /// When they are sent.
    pub arrivals: Arrivals,
    /// How many; open arrivals have a number of their own.
    pub requests: usize,
    /// After this time none is sent any more.
    pub duration: Option<Duration>,
    /// Keeps prompts of one run apart from those of others in prefix caches; nothing lets them share.
    pub salt: Option<String>,
    /// Seed of the first request, the next one's is one more; nothing leaves seeds to the server.
    pub seed: Option<u64>,
}

/// What came of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests that came to an end.
    pub records: Vec<Record>,
    /// Requests that were open when the run was cut short.
    pub unfinished: usize,
    /// What failed requests said, each once.
    pub sentences: BTreeSet<String>,
}

impl Load {
    /// Runs it to its end, or until `cut` says so.
    pub async fn run(self, bar: &ProgressBar, cut: watch::Receiver<bool>) -> Outcome {
        let load = Arc::new(self);
        let (sender, mut ended) = mpsc::unbounded_channel();
        let sent = Arc::new(AtomicUsize::new(0));
        let clock = Clock { began: Instant::now(), sent: sent.clone(), ended: sender };
        let mut tasks = JoinSet::new();
        match load.arrivals {
            Arrivals::Closed(concurrency) => {
                for _ in 0..concurrency.min(load.requests) {
                    tasks.spawn(worker(load.clone(), clock.clone()));
                }
            }
            Arrivals::Open(_) => {
                tasks.spawn(sender_of(load.clone(), clock.clone()));
            }
        }
        drop(clock);
        let mut outcome = Outcome::default();
        let mut cut_short = cut;
        loop {
            tokio::select! {
                biased;
                record = ended.recv() => match record {
                    Some((record, sentence)) => {
                        outcome.sentences.extend(sentence);
                        outcome.records.push(record);
                        bar.set_position(outcome.records.len() as u64);
                    }
                    None => break,
                },
                _ = cut_short.wait_for(|cut| *cut) => break,
            }
        }
        tasks.abort_all();
        outcome.unfinished = sent.load(Ordering::Relaxed) - outcome.records.len();
        outcome
    }

    fn is_over(&self, now: Duration) -> bool {
        self.duration.is_some_and(|duration| now >= duration)
    }
}

/// What every request needs to note its times.
#[derive(Clone)]
struct Clock {
    began: Instant,
    sent: Arc<AtomicUsize>,
    ended: mpsc::UnboundedSender<(Record, Option<String>)>,
}

/// Asks one request after the other.
async fn worker(load: Arc<Load>, clock: Clock) {
    loop {
        let due = clock.began.elapsed();
        if load.is_over(due) {
            return;
        }
        let taken = clock
            .sent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sent| (sent < load.requests).then_some(sent + 1));
        let Ok(number) = taken else { return };
        one(&load, &clock, number, due).await;
    }
}

/// Sends every request at its time, answered or not.
async fn sender_of(load: Arc<Load>, clock: Clock) {
    let Arrivals::Open(times) = &load.arrivals else { return };
    let mut open = JoinSet::new();
    for (number, due) in times.iter().copied().enumerate() {
        if load.is_over(due) {
            break;
        }
        match clock.began.checked_add(due) {
            Some(at) => tokio::time::sleep_until(at).await,
            // Beyond the end of the clock: whoever waits has set --duration, or will press Ctrl-C.
            None => std::future::pending().await,
        }
        clock.sent.fetch_add(1, Ordering::Relaxed);
        let (load, clock) = (load.clone(), clock.clone());
        open.spawn(async move { one(&load, &clock, number, due).await });
        // Those that have ended need no place any more.
        while open.try_join_next().is_some() {}
    }
    while open.join_next().await.is_some() {}
}

async fn one(load: &Load, clock: &Clock, number: usize, due: Duration) {
    let item = &load.items[number % load.items.len()];
    let sent = clock.began.elapsed();
    let own = RequestOptions {
        salt: load.salt.as_ref().map(|salt| format!("{salt}/{number}")),
        seed: load.seed.map(|seed| seed.wrapping_add(number as u64)),
    };
    let asked = load.target.ask(&load.ask, item, own).await;
    let base = Record { due, sent, end: clock.began.elapsed(), ..Record::default() };
    let told = match asked {
        Ok(observed) => (record(base, item, observed, clock.began), None),
        Err(RequestError { kind, sentence }) => (Record { error: Some(kind), ..base }, Some(sentence)),
    };
    // Nobody listens to what was cut short.
    let _ = clock.ended.send(told);
}

fn record(base: Record, item: &Item, observed: Sample, began: Instant) -> Record {
    let since = began.into_std();
    Record {
        end: observed.end.map_or(base.end, |end| end.saturating_duration_since(since)),
        pieces: observed.pieces.iter().map(|(at, count)| (at.saturating_duration_since(since), *count)).collect(),
        input: observed.input,
        output: observed.output,
        speculation: observed.speculation,
        // No synthetic node answers what it was asked.
        right: workload::is_right(item, &observed.text).filter(|_| !observed.synthetic),
        ..base
    }
}
