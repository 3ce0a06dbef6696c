//! The connections of one listener: how many, from where, and which of them gives way.
//!
//! At the bound whoever is idle for longest gives way to who comes; where nobody is known to be idle, who comes is refused.
//! One address has half of the bound, so that one client that holds what it gets shuts nobody out; a gateway that brings all
//! clients from one address has room enough there, the more so as it multiplexes them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::descriptors::{self, Descriptor};

/// Connections of a listener that serves clients or nodes.
pub(crate) const MOST: usize = 16_384;

/// Fewer than these are worth a warning.
const FEW: usize = 1_024;

/// The connections of one listener; clones share them.
#[derive(Clone)]
pub(crate) struct Connections(Arc<Mutex<Open>>);

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connections")
    }
}

struct Open {
    most: usize,
    next: u64,
    all: BTreeMap<u64, Entry>,
    by_address: BTreeMap<IpAddr, usize>,
}

struct Entry {
    address: IpAddr,
    end: CancellationToken,
    /// Since when it has nothing to do, where its server says so.
    idle_since: Option<Instant>,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// All places are taken.
    #[error("{0} connections are open, the most that this listener takes")]
    Full(usize),
    /// All that one address may have are.
    #[error("{0} connections of its address are open, the most that one may have")]
    Address(usize),
    /// The process has no file descriptor to spare.
    #[error("the process has no file descriptor to spare: raise its limit (`ulimit -n`)")]
    Descriptors,
}

impl Connections {
    /// Of a listener that takes so many, or what its share of the process's descriptors allows.
    pub(crate) fn new(most: usize) -> Self {
        let share = descriptors::share();
        if share < most {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                let files = descriptors::most();
                let sentence = format!(
                    "a listener takes {share} connections and not {most}: the process may have {files} files open; raise \
                     the hard limit (`ulimit -Hn`, LimitNOFILE)"
                );
                if share < FEW { tracing::warn!("{sentence}") } else { tracing::info!("{sentence}") }
            });
        }
        let most = most.min(share);
        Self(Arc::new(Mutex::new(Open { most, next: 0, all: BTreeMap::new(), by_address: BTreeMap::new() })))
    }

    /// Takes no more than so many from now on.
    pub(crate) fn lower(&self, most: usize) {
        let mut open = self.lock();
        open.most = open.most.min(most).max(1);
    }

    /// How many may be open.
    pub(crate) fn most(&self) -> usize {
        self.lock().most
    }

    /// A place for a connection from an address.
    pub(crate) fn admit(&self, address: IpAddr, descriptor: Descriptor) -> Result<Connection, Refusal> {
        let address = address.to_canonical();
        let mut open = self.lock();
        let of_address = (open.most / 2).max(1);
        if open.by_address.get(&address).is_some_and(|count| *count >= of_address) && !open.make_room(Some(address)) {
            return Err(Refusal::Address(of_address));
        }
        if open.all.len() >= open.most && !open.make_room(None) {
            return Err(Refusal::Full(open.most));
        }
        let (id, end) = (open.next, CancellationToken::new());
        open.next += 1;
        open.all.insert(id, Entry { address, end: end.clone(), idle_since: None });
        *open.by_address.entry(address).or_default() += 1;
        drop(open);
        Ok(Connection { id, end, open: self.clone(), _descriptor: descriptor })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Ends the connection that has been idle for longest, of this address or of any; whether there was one.
    fn make_room(&mut self, address: Option<IpAddr>) -> bool {
        let of_address = self.all.iter().filter(|(_, entry)| address.is_none_or(|address| address == entry.address));
        let idle = of_address.filter_map(|(id, entry)| Some((entry.idle_since?, *id))).min();
        let Some((_, id)) = idle else { return false };
        if let Some(entry) = self.remove(id) {
            entry.end.cancel();
        }
        true
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.all.remove(&id)?;
        if let Some(count) = self.by_address.get_mut(&entry.address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&entry.address);
            }
        }
        Some(entry)
    }
}

/// One connection's place, until it is dropped.
pub struct Connection {
    id: u64,
    end: CancellationToken,
    open: Connections,
    _descriptor: Descriptor,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.id)
    }
}

impl Connection {
    /// Its server says whether it has anything to do for it; one that has not may have to give way to another.
    pub fn set_idle(&self, is_idle: bool) {
        if let Some(entry) = self.open.lock().all.get_mut(&self.id) {
            entry.idle_since = is_idle.then(Instant::now);
        }
    }

    /// Returns when it has to give way.
    pub(crate) fn ended(&self) -> WaitForCancellationFutureOwned {
        self.end.clone().cancelled_owned()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn admit(connections: &Connections, last: u8) -> Result<Connection, Refusal> {
        connections.admit(address(last), Descriptor::taken())
    }

    #[test]
    fn one_address_has_half_and_all_together_the_whole() {
        let connections = Connections::new(6);
        let mut held: Vec<Connection> = (0..3).map(|_| admit(&connections, 1).unwrap()).collect();
        assert_eq!(admit(&connections, 1).unwrap_err(), Refusal::Address(3));
        // The same address, as a socket of both families names it.
        let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 0x0001]);
        assert_eq!(connections.admit(mapped, Descriptor::taken()).unwrap_err(), Refusal::Address(3));
        held.extend((2..5).map(|last| admit(&connections, last).unwrap()));
        assert_eq!(admit(&connections, 9).unwrap_err(), Refusal::Full(6));
        held.remove(0);
        assert!(admit(&connections, 1).is_ok());
    }

    #[test]
    fn who_is_idle_for_longest_gives_way() {
        let connections = Connections::new(4);
        let held: Vec<Connection> = [1, 2, 3, 3].map(|last| admit(&connections, last).unwrap()).into();
        held[1].set_idle(true);
        held[2].set_idle(true);
        held[1].set_idle(false);
        held[1].set_idle(true);
        let ended = |i: usize| held[i].end.is_cancelled();
        let fourth = admit(&connections, 4).unwrap();
        assert!(ended(2) && !ended(0) && !ended(1) && !ended(3));
        // One that gave way leaves no second place when it is gone.
        let fifth = admit(&connections, 5).unwrap();
        assert!(ended(1));
        drop(held);
        drop((fourth, fifth));
        assert!(connections.lock().all.is_empty() && connections.lock().by_address.is_empty());
    }

    #[test]
    fn an_address_at_its_bound_gives_way_to_itself_and_to_nobody_else() {
        let connections = Connections::new(4);
        let held: Vec<Connection> = [1, 1, 2].map(|last| admit(&connections, last).unwrap()).into();
        held[2].set_idle(true);
        assert_eq!(admit(&connections, 1).unwrap_err(), Refusal::Address(2));
        held[0].set_idle(true);
        assert!(admit(&connections, 1).is_ok());
        assert!(held[0].end.is_cancelled() && !held[2].end.is_cancelled());
    }
}
