//! The waiting queue of an engine: who waits for a slot or for pages, and in which order they come in. Pure.
//!
//! A new session takes a slot and the pages of its history at once, or waits here; the order of service is the order
//! of entry, and nobody passes whoever comes before, so a long history is not starved by short ones. Where the queue is
//! full, new ones are refused. A session that has begun elsewhere (its expert died, its drafter moved) needs a slot only:
//! its pages it takes as everybody does who is inside, from those who come after it.
//!
//! Who is inside and has had no work for long holds a slot that it does not use: it leaves when somebody waits for one
//! ([`LEAVES_AFTER`]), and may come back, as one that has begun. So nobody keeps others out by staying.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::SessionId;
use crate::limits::LONGEST_REQUEST;
use crate::scheduler::Rank;

/// A session without work for so long is not between two blocks but waits for somebody: whoever waits there may
/// have its pages. For less, it would have them back at once, computed again.
pub const IDLE_AFTER: Duration = Duration::from_secs(1);

/// A session without work for so long gives its slot to whoever waits for one. An honest peer has a block under way, or
/// waits for somebody itself; to come back costs it a prefill, and costs its client no text.
pub const LEAVES_AFTER: Duration = Duration::from_secs(60);

/// The time of a request, in milliseconds, as a peer claims it: what is left of it, or how old it is. No request has more
/// than [`LONGEST_REQUEST`], so nobody holds a place for longer, or is older than everybody.
#[must_use]
pub fn claimed(ms: u64) -> Duration {
    Duration::from_millis(ms).min(LONGEST_REQUEST)
}

/// Who wants to come in.
#[derive(Debug)]
pub struct QueuedSession<T> {
    /// Its name.
    pub key: SessionId,
    /// What it wants done.
    pub task: T,
    /// Its place in the order.
    pub rank: Rank,
    /// Only histories of equal salt find one another's pages.
    pub salt: String,
    /// Somebody counts on what it has done already: it is delayed, never refused.
    pub begun: bool,
}

/// What a queued session met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is inside.
    Admitted,
    /// It waits in the queue.
    Queued,
}

/// Who waits, in the order of service.
#[derive(Debug)]
pub struct WaitingQueue<T> {
    waiting: BTreeMap<(Rank, SessionId), QueuedSession<T>>,
    limit: usize,
}

impl<T> WaitingQueue<T> {
    /// A queue in which at most `limit` new sessions wait, and as many that have begun.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { waiting: BTreeMap::new(), limit }
    }

    /// Those who wait, first come first.
    pub fn iter(&self) -> impl Iterator<Item = &QueuedSession<T>> {
        self.waiting.values()
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a session waits here.
    #[must_use]
    pub fn holds(&self, key: SessionId) -> bool {
        self.waiting.values().any(|queued| queued.key == key)
    }

    /// Whether nobody waits who comes before this place in the order.
    #[must_use]
    pub fn is_free_for(&self, rank: Rank, key: SessionId) -> bool {
        self.waiting.first_key_value().is_none_or(|(first, _)| (rank, key) < *first)
    }

    /// Lets one wait.
    ///
    /// # Errors
    /// When as many of its kind wait as may.
    pub fn push(&mut self, queued: QueuedSession<T>) -> Result<(), QueuedSession<T>> {
        if self.waiting.values().filter(|other| other.begun == queued.begun).count() >= self.limit {
            return Err(queued);
        }
        self.put_back(queued);
        Ok(())
    }

    /// The next in the order.
    pub fn pop_first(&mut self) -> Option<QueuedSession<T>> {
        self.waiting.pop_first().map(|(_, queued)| queued)
    }

    /// Puts one back that could not come in after all.
    pub fn put_back(&mut self, queued: QueuedSession<T>) {
        self.waiting.insert((queued.rank, queued.key), queued);
    }

    /// Sends one away.
    pub fn remove(&mut self, key: SessionId) -> Option<QueuedSession<T>> {
        let place = self.waiting.iter().find(|(_, queued)| queued.key == key).map(|(place, _)| *place)?;
        self.waiting.remove(&place)
    }
}
