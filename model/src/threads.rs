//! A few threads that run one pass together, in step.
//!
//! They spin a little, because the steps of a pass are microseconds apart, then sleep, because the next pass may be
//! long in coming and other nodes share the cores.

#![allow(unsafe_code)] // The pass is lent to the workers for the time of one call, by pointer.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

/// Turns of a spinning wait before the core is offered to others: some tens of microseconds.
const SPINS: u32 = 600;
/// Times the core is offered before a worker without work sleeps.
const YIELDS: u32 = 20;

type Job<'a> = dyn Fn(usize, &Barrier) + Sync + 'a;

/// Threads of one engine; the caller is rank 0.
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<(JoinHandle<()>, Thread)>,
}

struct Shared {
    /// Raised once for each job, and to end.
    call: AtomicUsize,
    job: UnsafeCell<Option<*const Job<'static>>>,
    /// Workers still in the job.
    busy: AtomicUsize,
    asleep: Vec<AtomicBool>,
    stop: AtomicBool,
    barrier: Barrier,
}

// SAFETY: `job` is written by the caller while no worker is busy, and read by workers after `call` was raised.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// A thread of the team panicked: its pass, and all later ones, are lost.
#[derive(Debug)]
pub(crate) struct Broken;

impl Team {
    /// A team of `ranks` threads, the caller among them.
    pub(crate) fn new(ranks: usize) -> std::io::Result<Self> {
        let workers = ranks.saturating_sub(1);
        let shared = Arc::new(Shared {
            call: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            busy: AtomicUsize::new(0),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            barrier: Barrier::new(workers + 1),
        });
        let mut team = Self { shared, workers: Vec::new() };
        for worker in 0..workers {
            let shared = Arc::clone(&team.shared);
            let name = format!("forward-{}", worker + 1);
            let handle = std::thread::Builder::new().name(name).spawn(move || shared.work(worker))?;
            let thread = handle.thread().clone();
            team.workers.push((handle, thread));
        }
        Ok(team)
    }

    /// Runs `job(rank, barrier)` on every thread and returns when all are done.
    pub(crate) fn run(&mut self, job: &Job<'_>) -> Result<(), Broken> {
        let shared = &*self.shared;
        if shared.barrier.broken() {
            return Err(Broken);
        }
        // SAFETY: no worker is busy, so none reads `job`. The lifetime is cut off, but workers are done with it before
        // this function returns.
        unsafe { *shared.job.get() = Some(std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job)) };
        shared.busy.store(self.workers.len(), Ordering::Relaxed);
        shared.call.fetch_add(1, Ordering::SeqCst);
        for ((_, thread), asleep) in self.workers.iter().zip(&shared.asleep) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        shared.guarded(|| job(0, &shared.barrier));
        let mut wait = Wait::default();
        while shared.busy.load(Ordering::Acquire) > 0 {
            wait.turn();
        }
        if shared.barrier.broken() { Err(Broken) } else { Ok(()) }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.call.fetch_add(1, Ordering::SeqCst);
        for (handle, thread) in self.workers.drain(..) {
            thread.unpark();
            let _ = handle.join();
        }
    }
}

impl Shared {
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            let mut wait = Wait::default();
            while self.call.load(Ordering::Acquire) == seen {
                if wait.turn() {
                    self.asleep[worker].store(true, Ordering::SeqCst);
                    if self.call.load(Ordering::SeqCst) == seen {
                        std::thread::park();
                    }
                    self.asleep[worker].store(false, Ordering::SeqCst);
                }
            }
            seen = seen.wrapping_add(1);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: `call` was raised after `job` was set, and the caller waits for `busy` before it takes it back.
            let job = unsafe { (*self.job.get()).map(|job| &*job) };
            if let Some(job) = job {
                self.guarded(|| job(worker + 1, &self.barrier));
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }

    /// A panic must not leave the others waiting.
    fn guarded(&self, job: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            self.barrier.broken.store(true, Ordering::SeqCst);
        }
    }
}

/// Where all threads of a pass meet: what one wrote before, all see after.
pub(crate) struct Barrier {
    ranks: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
    broken: AtomicBool,
}

impl Barrier {
    /// A barrier of one thread never waits.
    pub(crate) fn new(ranks: usize) -> Self {
        let (arrived, round) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { ranks, arrived, round, broken: AtomicBool::new(false) }
    }

    pub(crate) fn ranks(&self) -> usize {
        self.ranks
    }

    fn broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// Waits for the other threads.
    pub(crate) fn meet(&self) {
        if self.ranks == 1 {
            return;
        }
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.ranks {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut wait = Wait::default();
        while self.round.load(Ordering::Acquire) == round {
            wait.turn();
            assert!(!self.broken(), "another thread of the pass failed");
        }
    }
}

/// A wait that spins first and then gives way.
#[derive(Default)]
struct Wait(u32);

impl Wait {
    /// One turn; true when it has gone on for long.
    fn turn(&mut self) -> bool {
        self.0 = self.0.saturating_add(1);
        if self.0 < SPINS {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
        self.0 > SPINS + YIELDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranks_run_every_job_and_see_each_others_writes() {
        let mut team = Team::new(3).unwrap();
        for round in 0..300 {
            let cells: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
            team.run(&|rank, barrier| {
                cells[rank].store(round + rank + 1, Ordering::Relaxed);
                barrier.meet();
                for (other, cell) in cells.iter().enumerate() {
                    assert_eq!(cell.load(Ordering::Relaxed), round + other + 1);
                }
                barrier.meet();
            })
            .unwrap();
            if round % 100 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(5)); // Long enough to fall asleep.
            }
        }
    }

    #[test]
    fn a_panic_breaks_the_team_and_hangs_no_one() {
        let mut team = Team::new(3).unwrap();
        let failed = team.run(&|rank, barrier| {
            assert!(rank != 1, "a panic on purpose");
            barrier.meet();
        });
        assert!(failed.is_err());
        assert!(team.run(&|_, _| {}).is_err());
    }
}
