//! Several connections to one place: an HTTP/2 connection carries a bounded number of streams, and one that is full makes
//! further streams wait without a word.

use std::sync::Arc;

/// Streams put on one connection; the rest of [`cascadia_core::limits::MAX_STREAMS`] is for status and health.
pub const LANE_STREAMS: usize = cascadia_core::limits::MAX_STREAMS as usize - 24;

/// The connections to one place.
#[derive(Debug)]
pub struct Lanes<C> {
    lanes: Vec<Lane<C>>,
    bound: usize,
}

#[derive(Debug)]
struct Lane<C> {
    connection: C,
    /// One more reference a stream.
    streams: Arc<()>,
}

impl<C> Lane<C> {
    fn streams(&self) -> usize {
        Arc::strong_count(&self.streams) - 1
    }
}

/// A stream's share of a connection, until it is dropped.
#[derive(Clone, Debug)]
pub struct Lease {
    _stream: Arc<()>,
}

impl<C: Clone> Lanes<C> {
    /// No connection yet; `bound` streams on each.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self { lanes: Vec::new(), bound }
    }

    /// The first connection, for what is short and rare.
    pub fn first(&mut self, open: impl FnOnce() -> C) -> C {
        if self.lanes.is_empty() {
            self.lanes.push(Lane { connection: open(), streams: Arc::default() });
        }
        self.lanes[0].connection.clone()
    }

    /// A connection with room for one more stream. The first ones fill first, so that the last empty and are closed.
    pub fn lease(&mut self, open: impl FnOnce() -> C) -> (C, Lease) {
        let free = self.lanes.iter().position(|lane| lane.streams() < self.bound);
        let index = free.unwrap_or_else(|| {
            self.lanes.push(Lane { connection: open(), streams: Arc::default() });
            self.lanes.len() - 1
        });
        if self.lanes.len() > index + 2 {
            let tail = self.lanes.iter().rposition(|lane| lane.streams() > 0).map_or(0, |last| last + 1);
            // One empty connection stays, so that a load at the edge does not open and close it all the time.
            self.lanes.truncate((tail + 1).max(index + 1));
        }
        let lane = &self.lanes[index];
        (lane.connection.clone(), Lease { _stream: lane.streams.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_connection_gets_a_neighbour_and_empty_ones_go() {
        let mut opened = 0;
        let mut lanes = Lanes::new(2);
        let mut lease = |lanes: &mut Lanes<u32>| {
            lanes.lease(|| {
                opened += 1;
                opened
            })
        };
        let mut leases: Vec<(u32, Lease)> = (0..7).map(|_| lease(&mut lanes)).collect();
        assert_eq!(leases.iter().map(|(lane, _)| *lane).collect::<Vec<_>>(), [1, 1, 2, 2, 3, 3, 4]);
        // Room in the first is used first; a stream keeps its connection open.
        leases.remove(0);
        assert_eq!(lease(&mut lanes).0, 1);
        leases.retain(|(lane, _)| *lane == 2);
        let (lane, _first) = lease(&mut lanes);
        assert_eq!((lane, lanes.lanes.len()), (1, 3));
        assert_eq!(lanes.first(|| 9), 1);
    }
}
