//! How many files and sockets this process may have open, and how many of them callers may take.
//!
//! Callers never take all: what a process opens itself (the way to other nodes, etcd, files) goes on while they press.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Callers' sockets in this process, over all its listeners.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// How many descriptors this process may have. The first call raises the soft limit to the hard one: the soft one of most
/// systems is from a time when `select` could count no further.
pub fn most() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(raise)
}

/// What one listener may take of them: with two listeners for clients and one for operators, as a router has, more than a
/// third is left to the process itself.
pub(crate) fn share() -> usize {
    (most() / 4).max(1)
}

/// Whether callers have taken all they may, at whichever listener.
pub(crate) fn are_taken() -> bool {
    TAKEN.load(Relaxed) >= most() - most() * 3 / 8
}

/// A caller's socket, counted while this lives.
#[derive(Debug)]
pub(crate) struct Descriptor(());

impl Descriptor {
    pub(crate) fn taken() -> Self {
        TAKEN.fetch_add(1, Relaxed);
        Self(())
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Relaxed);
    }
}

#[cfg(unix)]
fn raise() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: now.maximum, maximum: now.maximum };
    if now.current != now.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::info!(%error, "the limit of open files stays where it is");
    }
    // One without a limit is bounded by memory, and by what a listener takes.
    getrlimit(Resource::Nofile).current.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX / 4)
}

#[cfg(not(unix))]
fn raise() -> usize {
    // Windows bounds sockets by memory alone.
    usize::MAX / 4
}
