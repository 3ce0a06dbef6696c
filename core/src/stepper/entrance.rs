//! How sessions come in: a slot and the pages of the history, at once or from the door.

use std::time::Duration;

use super::{Entry, LetIn, Refused, Stepper, Task};
use crate::door::{Applicant, Entrance, IDLE_AFTER, LEAVES_AFTER};
use crate::ids::SessionId;
use crate::pages::pages_for;
use crate::scheduler;

/// What an applicant found no room in.
#[derive(Clone, Copy)]
enum Lack {
    Slot,
    /// Pages, of which it needs so many besides those it found.
    Pages(usize),
}

impl<T: Task> Stepper<T> {
    /// Opens a session, or lets it wait at the door ([`Self::let_in`]). Pages of equal content and salt are found at once
    /// ([`Self::held`]).
    ///
    /// # Errors
    /// When there is one of this id, or no room and as many wait as may.
    pub fn open(&mut self, applicant: Applicant<T>, now: Duration) -> Result<Entrance, Refused> {
        let key = applicant.key;
        if self.sessions.contains_key(&key) || self.door.holds(key) {
            return Err(Refused::AlreadyOpen(key));
        }
        let (applicant, lack) = if self.door.is_free_for(applicant.rank, key) {
            match self.enter(applicant, now) {
                Ok(()) => return Ok(Entrance::Open),
                Err((applicant, lack)) => (applicant, Some(lack)),
            }
        } else {
            (applicant, None)
        };
        let needed = pages_for(applicant.task.tokens().len());
        self.door_is_due = true;
        self.door.knock(applicant).map(|()| Entrance::Waits).map_err(|_| {
            let waiting = self.door.len();
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

    /// Gives an applicant its slot and, if it is new, the pages of its history.
    fn enter(&mut self, applicant: Applicant<T>, now: Duration) -> Result<(), (Applicant<T>, Lack)> {
        if self.sessions.len() >= self.config.max_sessions {
            return Err((applicant, Lack::Slot));
        }
        let Applicant { key, task, rank, salt, begun } = applicant;
        let mut entry = Entry {
            task,
            rank,
            table: self.pages.open(&salt),
            cached: Vec::new(),
            promised: 0,
            changed: true,
            counted: false,
            served: self.batches,
            used: now,
        };
        entry.settle(&mut self.pages);
        let length = entry.task.tokens().len();
        // What the pool can never hold comes in to be told so.
        if !begun && pages_for(length) <= self.pages.total() {
            if let Err(missing) = self.pages.extend(&mut entry.table, length) {
                self.pages.release(&mut entry.table);
                let lack = Lack::Pages(missing + self.pages.available());
                return Err((Applicant { key, task: entry.task, rank, salt, begun }, lack));
            }
            entry.promised = length;
        }
        entry.count_prefix(&mut self.prefix);
        self.sessions.insert(key, entry);
        Ok(())
    }

    /// Lets in whoever waits at the door and finds room now, in order, also at the cost of sessions that have been idle
    /// for long or have a lower priority.
    pub fn let_in(&mut self, now: Duration) -> LetIn {
        let mut let_in = LetIn::default();
        self.door_is_due = false;
        while let Some(applicant) = self.door.pop_first() {
            let key = applicant.key;
            match self.enter_at_cost(applicant, now, &mut let_in) {
                Ok(()) => let_in.entered.push(key),
                Err(applicant) => {
                    self.door.put_back(applicant);
                    break;
                }
            }
        }
        let_in
    }

    /// Lets one in, at the cost of others where it must be.
    fn enter_at_cost(
        &mut self,
        mut applicant: Applicant<T>,
        now: Duration,
        let_in: &mut LetIn,
    ) -> Result<(), Applicant<T>> {
        // A slot and pages are taken once each: what is not enough then, time has to bring.
        for _ in 0..2 {
            let (refused, lack) = match self.enter(applicant, now) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            };
            applicant = refused;
            let has_room = match lack {
                Lack::Slot => self.take_a_slot(now, let_in),
                Lack::Pages(needed) => self.take_from_others(&applicant, needed, now, let_in),
            };
            if !has_room {
                return Err(applicant);
            }
        }
        self.enter(applicant, now).map_err(|(applicant, _)| applicant)
    }

    /// Closes the session that has been idle for longest, if that is long.
    fn take_a_slot(&mut self, now: Duration, let_in: &mut LetIn) -> bool {
        let idle = self.sessions.iter().filter(|(key, entry)| {
            let is_new = let_in.entered.contains(key);
            !is_new && entry.task.want().is_none() && now.saturating_sub(entry.used) >= LEAVES_AFTER
        });
        let Some(key) = idle.min_by_key(|(key, entry)| (entry.used, **key)).map(|(key, _)| *key) else { return false };
        let_in.evicted.retain(|evicted| evicted.key != key);
        let_in.left.push(key);
        self.remove(key).is_some()
    }

    /// Frees `needed` pages for one at the door, or none: from sessions that have been idle for long, least recently used
    /// first, then from the youngest of a lower priority.
    fn take_from_others(&mut self, applicant: &Applicant<T>, needed: usize, now: Duration, let_in: &mut LetIn) -> bool {
        let (rank, key) = (applicant.rank, applicant.key);
        let entered = |key: SessionId, let_in: &LetIn| let_in.entered.contains(&key);
        let yields = |key: SessionId, entry: &Entry<T>, let_in: &LetIn| {
            let idle = entry.task.want().is_none() && now.saturating_sub(entry.used) >= IDLE_AFTER;
            entry.table.room() > 0 && !entered(key, let_in) && (idle || entry.rank.priority < rank.priority)
        };
        let theirs = self.sessions.iter().filter(|(other, entry)| yields(**other, entry, let_in));
        let exclusive: usize = theirs.map(|(_, entry)| self.pages.exclusive(&entry.table)).sum();
        if self.pages.available() + exclusive < needed {
            return false;
        }
        while self.pages.available() < needed {
            let theirs = self.sessions.iter().filter(|(other, entry)| yields(**other, entry, let_in));
            let Some(victim) = scheduler::victim(theirs.map(|(other, entry)| entry.holder(*other)), (rank, key)) else {
                return false;
            };
            self.evict(victim, needed - self.pages.available(), &mut let_in.evicted);
        }
        true
    }

    /// Whether [`Self::let_in`] might find room that was not there before.
    #[must_use]
    pub fn door_is_due(&self) -> bool {
        self.door_is_due && !self.door.is_empty()
    }

    /// Whether somebody waits at the door: time alone may let it in.
    #[must_use]
    pub fn someone_waits(&self) -> bool {
        !self.door.is_empty()
    }
}
