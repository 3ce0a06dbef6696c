//! Several connections to one place: an HTTP/2 connection carries a bounded number of streams, and one that is full makes
//! further streams wait without a word.

use std::sync::Arc;

/// Streams put on one connection; the rest of [`cascadia_core::limits::MAX_STREAMS`] is for status and health.
pub const STREAMS_PER_CHANNEL: usize = cascadia_core::limits::MAX_STREAMS as usize - 24;

/// The connections to one place.
#[derive(Debug)]
pub struct ChannelPool<C> {
    channels: Vec<PooledChannel<C>>,
    bound: usize,
}

#[derive(Debug)]
struct PooledChannel<C> {
    connection: C,
    /// One more reference a stream.
    streams: Arc<()>,
}

impl<C> PooledChannel<C> {
    fn streams(&self) -> usize {
        Arc::strong_count(&self.streams) - 1
    }
}

/// A stream's share of a connection, until it is dropped.
#[derive(Clone, Debug)]
pub struct StreamPermit {
    _stream: Arc<()>,
}

impl<C: Clone> ChannelPool<C> {
    /// No connection yet; `bound` streams on each.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self { channels: Vec::new(), bound }
    }

    /// The first connection, for what is short and rare.
    pub fn first(&mut self, open: impl FnOnce() -> C) -> C {
        if self.channels.is_empty() {
            self.channels.push(PooledChannel { connection: open(), streams: Arc::default() });
        }
        self.channels[0].connection.clone()
    }

    /// A connection with room for one more stream. The first ones fill first, so that the last empty and are closed.
    pub fn permit(&mut self, open: impl FnOnce() -> C) -> (C, StreamPermit) {
        let free = self.channels.iter().position(|lane| lane.streams() < self.bound);
        let index = free.unwrap_or_else(|| {
            self.channels.push(PooledChannel { connection: open(), streams: Arc::default() });
            self.channels.len() - 1
        });
        if self.channels.len() > index + 2 {
            let tail = self.channels.iter().rposition(|lane| lane.streams() > 0).map_or(0, |last| last + 1);
            // One empty connection stays, so that a load at the edge does not open and close it all the time.
            self.channels.truncate((tail + 1).max(index + 1));
        }
        let lane = &self.channels[index];
        (lane.connection.clone(), StreamPermit { _stream: lane.streams.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_connection_gets_a_neighbour_and_empty_ones_go() {
        let mut opened = 0;
        let mut channels = ChannelPool::new(2);
        let mut permit = |channels: &mut ChannelPool<u32>| {
            channels.permit(|| {
                opened += 1;
                opened
            })
        };
        let mut leases: Vec<(u32, StreamPermit)> = (0..7).map(|_| permit(&mut channels)).collect();
        assert_eq!(leases.iter().map(|(lane, _)| *lane).collect::<Vec<_>>(), [1, 1, 2, 2, 3, 3, 4]);
        // Room in the first is used first; a stream keeps its connection open.
        leases.remove(0);
        assert_eq!(permit(&mut channels).0, 1);
        leases.retain(|(lane, _)| *lane == 2);
        let (lane, _first) = permit(&mut channels);
        assert_eq!((lane, channels.channels.len()), (1, 3));
        assert_eq!(channels.first(|| 9), 1);
    }
}
