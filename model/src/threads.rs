//! A few threads that run one pass together, in step.
//!
//! They spin a little, because the steps of a pass are microseconds apart, then sleep, because the next pass may be
//! long in coming and other nodes share the cores. They never offer their core (`sched_yield`): on Linux from 6.18 on, that
//! gives away a thread's share of the next milliseconds, and a pass has hundreds of meetings.

#![allow(unsafe_code)] // The pass is lent to the workers for the time of one call, by pointer.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Turns of a spinning wait before the thread sleeps: about a tenth of a millisecond, a few times what waking it takes.
const SPINS: u32 = 4000;

type Job<'a> = dyn Fn(usize, &Barrier) + Sync + 'a;

/// Threads of one engine; the caller is rank 0.
pub(crate) struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Raised once for each job, and to end.
    call: AtomicUsize,
    job: UnsafeCell<Option<*const Job<'static>>>,
    /// Workers still in the job.
    busy: AtomicUsize,
    /// Where workers wait for a job, and the caller for the workers.
    park: Bed,
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

impl ThreadPool {
    /// A team of `ranks` threads, the caller among them.
    pub(crate) fn new(ranks: usize) -> std::io::Result<Self> {
        let workers = ranks.saturating_sub(1);
        let shared = Arc::new(Shared {
            call: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            busy: AtomicUsize::new(0),
            park: Bed::default(),
            stop: AtomicBool::new(false),
            barrier: Barrier::new(workers + 1),
        });
        let mut team = Self { shared, workers: Vec::new() };
        for worker in 0..workers {
            let shared = Arc::clone(&team.shared);
            let name = format!("forward-{}", worker + 1);
            let handle = std::thread::Builder::new().name(name).spawn(move || shared.work(worker))?;
            team.workers.push(handle);
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
        shared.park.wake();
        shared.guarded(|| job(0, &shared.barrier));
        shared.park.wait(|| shared.busy.load(Ordering::SeqCst) == 0);
        if shared.barrier.broken() { Err(Broken) } else { Ok(()) }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.call.fetch_add(1, Ordering::SeqCst);
        self.shared.park.wake();
        for handle in self.workers.drain(..) {
            let _ = handle.join();
        }
    }
}

impl Shared {
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            self.park.wait(|| self.call.load(Ordering::SeqCst) != seen);
            seen = seen.wrapping_add(1);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: `call` was raised after `job` was set, and the caller waits for `busy` before it takes it back.
            let job = unsafe { (*self.job.get()).map(|job| &*job) };
            if let Some(job) = job {
                self.guarded(|| job(worker + 1, &self.barrier));
            }
            if self.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.park.wake();
            }
        }
    }

    /// A panic must not leave the others waiting.
    fn guarded(&self, job: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            self.barrier.broken.store(true, Ordering::SeqCst);
            self.barrier.park.wake();
        }
    }
}

/// Where all threads of a pass meet: what one wrote before, all see after.
pub(crate) struct Barrier {
    ranks: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
    broken: AtomicBool,
    park: Bed,
}

impl Barrier {
    /// A barrier of one thread never waits.
    pub(crate) fn new(ranks: usize) -> Self {
        let (arrived, round) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { ranks, arrived, round, broken: AtomicBool::new(false), park: Bed::default() }
    }

    pub(crate) fn ranks(&self) -> usize {
        self.ranks
    }

    fn broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// Waits for the other threads.
    pub(crate) fn wait(&self) {
        if self.ranks == 1 {
            return;
        }
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.ranks {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::SeqCst);
            self.park.wake();
            return;
        }
        let over = || self.round.load(Ordering::SeqCst) != round;
        self.park.wait(|| over() || self.broken());
        assert!(over(), "another thread of the pass failed");
    }
}

/// Where threads wait for what others bring about: awake at first, then asleep.
#[derive(Default)]
struct Bed {
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    woken: Condvar,
}

impl Bed {
    /// Returns when `done` is true; whoever makes it true calls [`Bed::wake`] after, both with sequential consistency:
    /// then either it sees the sleeper, or the sleeper sees what it did.
    fn wait(&self, done: impl Fn() -> bool) {
        for _ in 0..SPINS {
            if done() {
                return;
            }
            std::hint::spin_loop();
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !done() {
            guard = self.woken.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes those who sleep. Nearly always nobody does, and this is one load.
    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // With the lock, so that nobody is between the look at `done` and the sleep.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.woken.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranks_run_every_job_and_see_each_others_writes() {
        let mut team = ThreadPool::new(3).unwrap();
        for round in 0..300 {
            let cells: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
            team.run(&|rank, barrier| {
                if round % 100 == 50 && rank == 2 {
                    std::thread::sleep(std::time::Duration::from_millis(5)); // The others fall asleep at the barrier.
                }
                cells[rank].store(round + rank + 1, Ordering::Relaxed);
                barrier.wait();
                for (other, cell) in cells.iter().enumerate() {
                    assert_eq!(cell.load(Ordering::Relaxed), round + other + 1);
                }
                barrier.wait();
            })
            .unwrap();
            if round % 100 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(5)); // Long enough to fall asleep.
            }
        }
    }

    #[test]
    fn a_panic_breaks_the_team_and_hangs_no_one() {
        let mut team = ThreadPool::new(3).unwrap();
        let failed = team.run(&|rank, barrier| {
            assert!(rank != 1, "a panic on purpose");
            barrier.wait();
        });
        assert!(failed.is_err());
        assert!(team.run(&|_, _| {}).is_err());
    }
}
