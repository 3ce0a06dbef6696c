//! Drives an engine loop: an OS thread in production, a task in simulation.
//!
//! A forward pass must not starve the runtime that keeps leases and status streams alive, hence the thread; a simulated
//! cluster must not depend on the scheduler of the operating system, hence the task.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

/// What owns a model: takes commands, runs one batch at a time.
pub trait EngineLoop: Send + 'static {
    /// What arrives in the mailbox.
    type Command: Send + 'static;

    /// Takes one command; cheap, no forward.
    fn handle(&mut self, command: Self::Command, now: Duration);

    /// Runs one batch; `Break` where no batch can ever be run again: the loop ends.
    fn step(&mut self, now: Duration) -> ControlFlow<()>;

    /// Whether a step would do anything.
    fn has_work(&self) -> bool;

    /// Whether a step may do something by the passing of time alone.
    fn needs_tick(&self) -> bool {
        false
    }
}

/// Where the loop runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Executor {
    /// An OS thread of its own.
    #[default]
    Thread,
    /// A task of the current runtime; every step is one poll.
    Task,
}

/// The loop's mailbox. Bounded: a full one refuses instead of growing.
pub struct Mailbox<C>(mpsc::Sender<C>);

impl<C> Clone for Mailbox<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C> std::fmt::Debug for Mailbox<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mailbox")
    }
}

/// A command that the mailbox did not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// As many commands wait as may.
    Full,
    /// The loop has ended.
    Closed,
}

impl<C> Mailbox<C> {
    /// Delivers a command without waiting.
    ///
    /// # Errors
    /// When the mailbox is full or the loop has ended.
    pub fn send(&self, command: C) -> Result<(), Undelivered> {
        self.0.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Undelivered::Full,
            mpsc::error::TrySendError::Closed(_) => Undelivered::Closed,
        })
    }
}

/// Starts `engine` and returns its mailbox, which holds `capacity` commands. The loop ends when every mailbox is gone, or
/// by itself.
pub fn spawn<L: EngineLoop>(mut engine: L, name: &str, drive: Executor, capacity: usize) -> Mailbox<L::Command> {
    let (sender, mut receiver) = mpsc::channel::<L::Command>(capacity.max(1));
    let born = Instant::now();
    match drive {
        Executor::Thread => {
            let body = move || {
                let _abort = AbortOnPanic;
                loop {
                    let mut is_time = false;
                    if !engine.has_work() {
                        match next(&mut receiver, engine.needs_tick()) {
                            Next::Command(command) => engine.handle(command, born.elapsed()),
                            Next::Time => is_time = true,
                            Next::Closed => return,
                        }
                    }
                    while let Ok(command) = receiver.try_recv() {
                        engine.handle(command, born.elapsed());
                    }
                    if (is_time || engine.has_work()) && engine.step(born.elapsed()).is_break() {
                        return;
                    }
                    if receiver.is_closed() && receiver.is_empty() {
                        return;
                    }
                }
            };
            std::thread::Builder::new().name(name.to_owned()).spawn(body).expect("the system gives a thread");
        }
        Executor::Task => {
            tokio::spawn(async move {
                loop {
                    let mut is_time = false;
                    if !engine.has_work() {
                        let patience = if engine.needs_tick() { PATIENCE } else { Duration::MAX };
                        match tokio::time::timeout(patience, receiver.recv()).await {
                            Ok(Some(command)) => engine.handle(command, born.elapsed()),
                            Ok(None) => return,
                            Err(_) => is_time = true,
                        }
                    }
                    while let Ok(command) = receiver.try_recv() {
                        engine.handle(command, born.elapsed());
                    }
                    if (is_time || engine.has_work()) && engine.step(born.elapsed()).is_break() {
                        return;
                    }
                    if receiver.is_closed() && receiver.is_empty() {
                        return;
                    }
                    // A simulated step takes simulated time, so that others can be heard in between.
                    tokio::time::sleep(SIMULATED_STEP).await;
                }
            });
        }
    }
    Mailbox(sender)
}

/// How long an idle engine watches its mailbox before it sleeps.
///
/// A session's next block comes within a round trip. A sleeping thread takes tens of microseconds to wake (more where a
/// virtual core has halted), several times a round, which is as long as a small model's whole pass. It yields while it
/// watches, so whoever has work goes first.
const SPIN: Duration = Duration::from_micros(200);

/// How long an idle engine waits for a command where time alone may bring work.
const PATIENCE: Duration = Duration::from_millis(100);

/// How often it looks meanwhile: a channel cannot be waited for with a limit outside a runtime.
const LOOK: Duration = Duration::from_millis(5);

/// What an idle engine goes on with.
enum Next<C> {
    Command(C),
    /// [`PATIENCE`] is over.
    Time,
    /// Every mailbox is gone.
    Closed,
}

fn next<C>(receiver: &mut mpsc::Receiver<C>, needs_tick: bool) -> Next<C> {
    let since = Instant::now();
    loop {
        match receiver.try_recv() {
            Ok(command) => return Next::Command(command),
            Err(mpsc::error::TryRecvError::Disconnected) => return Next::Closed,
            Err(mpsc::error::TryRecvError::Empty) => {}
        }
        let waited = since.elapsed();
        if waited < SPIN {
            std::thread::yield_now();
        } else if !needs_tick {
            return receiver.blocking_recv().map_or(Next::Closed, Next::Command);
        } else if waited < PATIENCE {
            std::thread::sleep(LOOK);
        } else {
            return Next::Time;
        }
    }
}

/// A node whose engine has died must not look alive: its process ends, and its sessions go on elsewhere.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("error: the engine's thread has panicked; the process ends so that its sessions move");
            std::process::abort();
        }
    }
}

/// What a step costs in simulated time.
const SIMULATED_STEP: Duration = Duration::from_millis(1);
