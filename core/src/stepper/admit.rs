//! How sessions come in: a slot and the pages of the history, at once or from the door.

use std::time::Duration;

use super::{AdmittedWaiting, Entry, Refused, Stepper, Task};
use crate::ids::SessionId;
use crate::pages::pages_for;
use crate::scheduler;
use crate::waiting_queue::{Arrival, IDLE_AFTER, LEAVES_AFTER, QueuedSession};

/// What a queued session found no room in.
#[derive(Clone, Copy)]
enum Lack {
    Slot,
    /// Pages, of which it needs so many besides those it found.
    Pages(usize),
}

impl<T: Task> Stepper<T> {
    /// Opens a session, or lets it wait in the waiting queue ([`Self::admit_waiting`]). Pages of equal content and salt are found at once
    /// ([`Self::held`]).
    ///
    /// # Errors
    /// When there is one of this id, or no room and as many wait as may.
    pub fn open(&mut self, queued: QueuedSession<T>, now: Duration) -> Result<Arrival, Refused> {
        let key = queued.key;
        if self.sessions.contains_key(&key) || self.waiting_queue.holds(key) {
            return Err(Refused::AlreadyOpen(key));
        }
        let (queued, lack) = if self.waiting_queue.is_free_for(queued.rank, key) {
            match self.enter(queued, now) {
                Ok(()) => return Ok(Arrival::Admitted),
                Err((queued, lack)) => (queued, Some(lack)),
            }
        } else {
            (queued, None)
        };
        let needed = pages_for(queued.task.tokens().len());
        self.waiting_queue_is_due = true;
        self.waiting_queue.push(queued).map(|()| Arrival::Queued).map_err(|_| {
            let waiting = self.waiting_queue.len();
            match lack {
                Some(Lack::Pages(needed)) => self.no_pages(needed, waiting),
                None if self.sessions.len() < self.config.max_sessions => self.no_pages(needed, waiting),
                _ => Refused::Full { open: self.sessions.len(), waiting },
            }
        })
    }

    fn no_pages(&self, needed: usize, waiting: usize) -> Refused {
        Refused::NoPages { needed, free: self.pages.available(), total: self.pages.total(), waiting }
    }

    /// Gives a queued session its slot and, if it is new, the pages of its history.
    fn enter(&mut self, queued: QueuedSession<T>, now: Duration) -> Result<(), (QueuedSession<T>, Lack)> {
        if self.sessions.len() >= self.config.max_sessions {
            return Err((queued, Lack::Slot));
        }
        let QueuedSession { key, task, rank, salt, begun } = queued;
        let mut entry = Entry {
            task,
            rank,
            table: self.pages.open(&salt),
            cached: Vec::new(),
            reserved_tokens: 0,
            changed: true,
            counted: false,
            last_batch: self.batches,
            used: now,
        };
        entry.settle(&mut self.pages);
        let length = entry.task.tokens().len();
        // What the pool can never hold comes in to be told so.
        if !begun && pages_for(length) <= self.pages.total() {
            if let Err(missing) = self.pages.extend(&mut entry.table, length) {
                self.pages.release(&mut entry.table);
                let lack = Lack::Pages(missing + self.pages.available());
                return Err((QueuedSession { key, task: entry.task, rank, salt, begun }, lack));
            }
            entry.reserved_tokens = length;
        }
        entry.count_prefix(&mut self.prefix);
        self.sessions.insert(key, entry);
        Ok(())
    }

    /// Admits those in the waiting queue that find room now, in order, also at the cost of sessions that have been idle
    /// for long or have a lower priority.
    pub fn admit_waiting(&mut self, now: Duration) -> AdmittedWaiting {
        let mut admit_waiting = AdmittedWaiting::default();
        self.waiting_queue_is_due = false;
        while let Some(queued) = self.waiting_queue.pop_first() {
            let key = queued.key;
            match self.enter_at_cost(queued, now, &mut admit_waiting) {
                Ok(()) => admit_waiting.entered.push(key),
                Err(queued) => {
                    self.waiting_queue.put_back(queued);
                    break;
                }
            }
        }
        admit_waiting
    }

    /// Lets one in, at the cost of others where it must be.
    fn enter_at_cost(
        &mut self,
        mut queued: QueuedSession<T>,
        now: Duration,
        admit_waiting: &mut AdmittedWaiting,
    ) -> Result<(), QueuedSession<T>> {
        // A slot and pages are taken once each: what is not enough then, time has to bring.
        for _ in 0..2 {
            let (refused, lack) = match self.enter(queued, now) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            };
            queued = refused;
            let has_room = match lack {
                Lack::Slot => self.take_a_slot(now, admit_waiting),
                Lack::Pages(needed) => self.take_from_others(&queued, needed, now, admit_waiting),
            };
            if !has_room {
                return Err(queued);
            }
        }
        self.enter(queued, now).map_err(|(queued, _)| queued)
    }

    /// Closes the session that has been idle for longest, if that is long.
    fn take_a_slot(&mut self, now: Duration, admit_waiting: &mut AdmittedWaiting) -> bool {
        let idle = self.sessions.iter().filter(|(key, entry)| {
            let is_new = admit_waiting.entered.contains(key);
            !is_new && entry.task.want().is_none() && now.saturating_sub(entry.used) >= LEAVES_AFTER
        });
        let Some(key) = idle.min_by_key(|(key, entry)| (entry.used, **key)).map(|(key, _)| *key) else { return false };
        admit_waiting.evicted.retain(|evicted| evicted.key != key);
        admit_waiting.left.push(key);
        self.remove(key).is_some()
    }

    /// Frees `needed` pages for one in the waiting queue, or none: from sessions that have been idle for long, least recently used
    /// first, then from the youngest of a lower priority.
    fn take_from_others(
        &mut self,
        queued: &QueuedSession<T>,
        needed: usize,
        now: Duration,
        admit_waiting: &mut AdmittedWaiting,
    ) -> bool {
        let (rank, key) = (queued.rank, queued.key);
        let entered = |key: SessionId, admit_waiting: &AdmittedWaiting| admit_waiting.entered.contains(&key);
        let yields = |key: SessionId, entry: &Entry<T>, admit_waiting: &AdmittedWaiting| {
            let idle = entry.task.want().is_none() && now.saturating_sub(entry.used) >= IDLE_AFTER;
            entry.table.room() > 0 && !entered(key, admit_waiting) && (idle || entry.rank.priority < rank.priority)
        };
        let theirs = self.sessions.iter().filter(|(other, entry)| yields(**other, entry, admit_waiting));
        let exclusive: usize = theirs.map(|(_, entry)| self.pages.exclusive(&entry.table)).sum();
        if self.pages.available() + exclusive < needed {
            return false;
        }
        while self.pages.available() < needed {
            let theirs = self.sessions.iter().filter(|(other, entry)| yields(**other, entry, admit_waiting));
            let Some(victim) = scheduler::victim(theirs.map(|(other, entry)| entry.holder(*other)), (rank, key)) else {
                return false;
            };
            self.evict(victim, needed - self.pages.available(), &mut admit_waiting.evicted);
        }
        true
    }

    /// Whether [`Self::admit_waiting`] might find room that was not there before.
    #[must_use]
    pub fn waiting_queue_is_due(&self) -> bool {
        self.waiting_queue_is_due && !self.waiting_queue.is_empty()
    }

    /// Whether somebody waits in the waiting queue: time alone may let it in.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.waiting_queue.is_empty()
    }
}
