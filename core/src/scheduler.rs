//! Cuts the next batch: which waiting work goes into one forward pass, and how much of it. Pure.
//!
//! Fairness, in the order it is decided:
//!
//! 1. Short work (a decode step, a verification, the end of a prefill) goes before any long prefill.
//! 2. Within either, higher priority first; priority is strict.
//! 3. Short work of equal priority: least recently served first, so a full batch goes round; then older first. It is
//!    never cut in pieces.
//!    Prefills of equal priority: the older session first, whole, so that the first finishes soon.
//! 4. A part of the batch ([`limits::PREFILL_SHARE`]) is kept for the first prefill, so that it always advances.
//!
//! Pages are the caller's: it is asked to admit each piece, and one that is not admitted costs no tokens. Whom a session
//! may take pages from is [`victim`].

use std::cmp::Ordering;
use std::time::Duration;

use crate::ids::SessionId;
use crate::limits;

/// A session's place in the order of service; ascending order is the order of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rank {
    /// Higher goes first.
    pub priority: i32,
    /// When the session was admitted (not when it came to this node); older goes first.
    pub born: Duration,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        other.priority.cmp(&self.priority).then(self.born.cmp(&other.born))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One session's outstanding work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Whose.
    pub key: SessionId,
    /// Tokens not yet cached, at least 1.
    pub outstanding: usize,
    /// Rows wanted of the last of them, `0..=outstanding`; they are computed in one batch.
    pub rows: usize,
    /// Its place in the order.
    pub rank: Rank,
    /// Number of the batch it was last in, or that was last cut when it came.
    pub last_batch: u64,
}

impl Waiting {
    /// Whether it can wait for short work and be cut in pieces.
    fn is_long(&self, short: usize) -> bool {
        self.outstanding > short && self.outstanding > self.rows
    }

    /// The most of it that goes into `room` tokens: all, or a piece that leaves the wanted rows together.
    fn fit(&self, room: usize) -> usize {
        if self.outstanding <= room { self.outstanding } else { room.min(self.outstanding - self.rows) }
    }
}

/// A chunk's length, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Whose.
    pub key: SessionId,
    /// How many of its outstanding tokens, at least 1.
    pub tokens: usize,
}

/// Cuts a batch of at most `budget` tokens out of `waiting` into `pieces`, each of which `admit` has said yes to.
/// `waiting` is left in the order of service.
pub fn cut(waiting: &mut [Waiting], budget: usize, pieces: &mut Vec<Piece>, mut admit: impl FnMut(Piece) -> bool) {
    let short = limits::SHORT_TOKENS.min(budget / 2);
    waiting.sort_unstable_by_key(|work| {
        let long = work.is_long(short);
        (long, -i64::from(work.rank.priority), if long { 0 } else { work.last_batch }, work.rank, work.key)
    });
    pieces.clear();
    let (shorts, prefills) = waiting.split_at(waiting.partition_point(|work| !work.is_long(short)));
    let oldest = prefills.first();
    let share = (budget / limits::PREFILL_SHARE).max(1);
    let kept = oldest.map_or(0, |prefill| prefill.fit(share));
    let mut left = budget;
    let mut push = |work: &Waiting, tokens: usize, pieces: &mut Vec<Piece>| {
        let piece = Piece { key: work.key, tokens };
        if tokens == 0 || !admit(piece) {
            return 0;
        }
        pieces.push(piece);
        tokens
    };
    for work in shorts {
        // Rows that need the whole batch get it when it is their turn, else they could wait for ever.
        let is_first = pieces.is_empty() && oldest.is_none_or(|prefill| work.last_batch < prefill.last_batch);
        let room = if is_first { budget } else { left.saturating_sub(kept) };
        // Whole or not at all: what does not fit is among the first of the next batch.
        if work.outstanding <= room {
            left -= push(work, work.outstanding, pieces);
        }
    }
    for work in prefills {
        left -= push(work, work.fit(left), pieces);
    }
}

/// A session that holds pages and is not in the batch being cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Whose.
    pub key: SessionId,
    /// Its place in the order.
    pub rank: Rank,
    /// Whether it waits for a batch.
    pub has_work: bool,
    /// When it was last in one.
    pub used: Duration,
}

/// Who gives pages to the session `asking`: a session without work, least recently used first; else the youngest of
/// the lowest priority, if it comes after the asking one in the order of service. So the oldest always gets its pages.
#[must_use]
pub fn victim(holders: impl Iterator<Item = Holder>, asking: (Rank, SessionId)) -> Option<SessionId> {
    let mut idle: Option<Holder> = None;
    let mut youngest: Option<Holder> = None;
    for holder in holders.filter(|holder| holder.key != asking.1) {
        if !holder.has_work {
            if idle.is_none_or(|best| (holder.used, holder.key) < (best.used, best.key)) {
                idle = Some(holder);
            }
        } else if (holder.rank, holder.key) > youngest.map_or(asking, |best| (best.rank, best.key)) {
            youngest = Some(holder);
        }
    }
    idle.or(youngest).map(|holder| holder.key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn work(key: u128, outstanding: usize, rows: usize, priority: i32, last_batch: u64) -> Waiting {
        let rank = Rank { priority, born: Duration::from_secs(key as u64) };
        Waiting { key: SessionId(key), outstanding, rows, rank, last_batch }
    }

    fn cut_of(waiting: &[Waiting], budget: usize) -> Vec<(u128, usize)> {
        let mut waiting = waiting.to_vec();
        let mut pieces = Vec::new();
        cut(&mut waiting, budget, &mut pieces, |_| true);
        pieces.iter().map(|piece| (piece.key.0, piece.tokens)).collect()
    }

    #[test]
    fn tables() {
        let prefill = work(1, 5_000, 0, 0, 0);
        for (what, waiting, cut) in [
            ("nothing waits", vec![], vec![]),
            ("one decode", vec![work(1, 1, 1, 0, 0)], vec![(1, 1)]),
            ("a prefill alone takes the batch", vec![prefill], vec![(1, 512)]),
            ("short work first", vec![prefill, work(2, 7, 7, 0, 3)], vec![(2, 7), (1, 505)]),
            ("higher priority first", vec![work(1, 1, 1, 0, 0), work(2, 1, 1, 5, 0)], vec![(2, 1), (1, 1)]),
            ("least recently served first", vec![work(1, 1, 1, 0, 9), work(2, 1, 1, 0, 8)], vec![(2, 1), (1, 1)]),
            ("the older prefill first", vec![work(3, 400, 1, 0, 0), work(2, 400, 1, 0, 5)], vec![(2, 400), (3, 112)]),
            ("the wanted rows stay together", vec![work(1, 600, 100, 0, 0)], vec![(1, 500)]),
            ("also at the very end", vec![work(1, 513, 1, 0, 0)], vec![(1, 512)]),
        ] {
            assert_eq!(cut_of(&waiting, 512), cut, "{what}");
        }
    }

    #[test]
    fn short_work_never_stops_the_oldest_prefill() {
        let mut waiting: Vec<_> = (10..800).map(|key| work(key, 7, 7, 0, 0)).collect();
        waiting.push(work(1, 5_000, 0, -3, 0));
        assert_eq!(cut_of(&waiting, 512).last(), Some(&(1, 64)));
    }

    #[test]
    fn what_is_not_admitted_costs_no_tokens() {
        let mut waiting = [work(1, 60, 1, 0, 0), work(2, 60, 1, 0, 1), work(3, 500, 1, 0, 0)];
        let mut pieces = Vec::new();
        cut(&mut waiting, 120, &mut pieces, |piece| piece.key != SessionId(1));
        assert_eq!(pieces, [(2, 60), (3, 60)].map(|(key, tokens)| Piece { key: SessionId(key), tokens }));
    }

    #[test]
    fn victims() {
        let holder = |key: u128, priority, born, has_work, used| Holder {
            key: SessionId(key),
            rank: Rank { priority, born: Duration::from_secs(born) },
            has_work,
            used: Duration::from_secs(used),
        };
        let asking = (Rank { priority: 0, born: Duration::from_secs(5) }, SessionId(100));
        for (what, holders, taken) in [
            ("nobody", vec![], None),
            ("idle, least recently used", vec![holder(1, 9, 0, false, 7), holder(2, 9, 0, false, 6)], Some(2)),
            ("idle before working", vec![holder(1, 0, 9, true, 0), holder(2, 9, 0, false, 6)], Some(2)),
            ("the youngest", vec![holder(1, 0, 8, true, 0), holder(2, 0, 9, true, 6)], Some(2)),
            ("of the lowest priority", vec![holder(1, -1, 6, true, 0), holder(2, 0, 9, true, 6)], Some(1)),
            ("never an older one", vec![holder(1, 0, 4, true, 0)], None),
            ("never a higher priority", vec![holder(1, 1, 9, true, 0)], None),
        ] {
            assert_eq!(victim(holders.into_iter(), asking), taken.map(SessionId), "{what}");
        }
    }

    proptest! {
        /// Whatever waits: the budget holds, rows stay together, and going on serves everybody.
        #[test]
        fn everything_is_served(
            items in prop::collection::vec((1usize..900, 0usize..65, -1i32..2), 1..40),
            budget in 65usize..600,
        ) {
            let mut waiting: Vec<Waiting> = items
                .iter()
                .enumerate()
                .map(|(key, (tokens, rows, priority))| work(key as u128, *tokens, *rows.min(tokens), *priority, 0))
                .collect();
            let total: usize = items.iter().map(|item| item.0).sum();
            let mut pieces = Vec::new();
            for step in 1..=total as u64 + 1 {
                if waiting.is_empty() {
                    return Ok(());
                }
                cut(&mut waiting, budget, &mut pieces, |_| true);
                prop_assert!(!pieces.is_empty());
                prop_assert!(pieces.iter().map(|piece| piece.tokens).sum::<usize>() <= budget);
                for piece in &pieces {
                    let work = waiting.iter_mut().find(|work| work.key == piece.key).unwrap();
                    work.outstanding -= piece.tokens;
                    work.last_batch = step;
                    prop_assert!(work.outstanding == 0 || work.outstanding >= work.rows);
                }
                waiting.retain(|work| work.outstanding > 0);
            }
            prop_assert!(false, "work was left over");
        }
    }
}
