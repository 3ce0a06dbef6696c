//! Which nodes get no new sessions because they failed one after another: pure, time is an argument.
//!
//! Only what a node says of itself is counted here; whoever feeds this leaves out what names the request. Clients choose
//! requests, so that they could still bring nodes down one by one: a request counts once however often it comes, every
//! success wipes the slate, and of no pool is more than half closed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::history::hash_bytes;
use crate::ids::NodeId;
use crate::limits::{QUARANTINE_FAILURES, QUARANTINE_RETRY, QUARANTINE_WINDOW};
use crate::placement::{Loads, NodeRecord, NodeState, Role, Snapshot};

/// How sessions ended at nodes that failed some of them. Times are since any one beginning.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    suspects: BTreeMap<NodeId, Suspect>,
}

#[derive(Clone, Debug, Default)]
struct Suspect {
    /// Requests whose sessions failed since the last success, and when; each request once.
    failures: Vec<(u64, Duration)>,
    closed: Option<Closed>,
}

/// From the last failure that it took to the first success.
#[derive(Clone, Copy, Debug)]
struct Closed {
    since: Duration,
    /// When one session may try again.
    until: Duration,
}

/// Nodes that can stand in for each other: role, served name, tokenizer.
type Pool<'a> = (Role, &'a str, &'a str);

impl Quarantine {
    /// A session of a request failed there, and the node says that it is its own fault; whether the node is closed by it.
    pub fn failed(&mut self, node: &NodeId, request: &str, now: Duration) -> bool {
        let request = hash_bytes(0, request.as_bytes());
        let suspect = self.suspects.entry(node.clone()).or_default();
        if let Some(closed) = &mut suspect.closed {
            closed.until = now + QUARANTINE_RETRY;
            return false;
        }
        suspect.failures.retain(|(other, at)| *other != request && now.saturating_sub(*at) <= QUARANTINE_WINDOW);
        suspect.failures.push((request, now));
        let is_closed = suspect.failures.len() >= QUARANTINE_FAILURES;
        if is_closed {
            suspect.failures.clear();
            suspect.closed = Some(Closed { since: now, until: now + QUARANTINE_RETRY });
        }
        is_closed
    }

    /// A session ended well there; whether the node was closed.
    pub fn served(&mut self, node: &NodeId) -> bool {
        self.suspects.remove(node).is_some_and(|suspect| suspect.closed.is_some())
    }

    /// The node is gone, or begins anew.
    pub fn forget(&mut self, node: &NodeId) {
        self.suspects.remove(node);
    }

    /// Nodes that take no new sessions now: of every pool at most half of those that could serve, and the longest closed
    /// first.
    #[must_use]
    pub fn closed(&self, snapshot: &Snapshot, loads: &Loads, now: Duration) -> BTreeSet<NodeId> {
        let closed = self.suspects.iter().filter_map(|(id, suspect)| Some((suspect.closed?, id)));
        let closed = closed.filter(|(closed, _)| closed.until > now);
        let mut oldest_first: Vec<_> = closed.map(|(closed, id)| (closed.since, id)).collect();
        if oldest_first.is_empty() {
            return BTreeSet::new();
        }
        oldest_first.sort_unstable();
        // How many more of a pool may be closed, doubled.
        let mut room: BTreeMap<Pool<'_>, usize> = BTreeMap::new();
        let could_serve = |node: &NodeRecord| {
            node.state == NodeState::Ready && !loads.get(&node.id).is_some_and(|load| load.quarantined)
        };
        for node in snapshot.nodes.values().filter(|node| could_serve(node)) {
            pools(node, snapshot).into_iter().for_each(|pool| *room.entry(pool).or_default() += 1);
        }
        let mut left_alone = BTreeSet::new();
        for (_, id) in oldest_first {
            let Some(node) = snapshot.nodes.get(id).filter(|node| could_serve(node)) else { continue };
            let pools = pools(node, snapshot);
            if !pools.is_empty() && pools.iter().all(|pool| room[pool] >= 2) {
                pools.iter().for_each(|pool| *room.get_mut(pool).expect("it has room") -= 2);
                left_alone.insert(id.clone());
            }
        }
        left_alone
    }

    /// A session is placed on these nodes; false where one of them takes none, e.g. because another session has just
    /// become the one that tries it.
    pub fn admit(&mut self, nodes: &[&NodeId], snapshot: &Snapshot, loads: &Loads, now: Duration) -> bool {
        let left_alone = self.closed(snapshot, loads, now);
        if nodes.iter().any(|node| left_alone.contains(*node)) {
            return false;
        }
        for node in nodes {
            let closed = self.suspects.get_mut(*node).and_then(|suspect| suspect.closed.as_mut());
            if let Some(closed) = closed.filter(|closed| closed.until <= now) {
                closed.until = now + QUARANTINE_RETRY;
            }
        }
        true
    }
}

/// The pools a node belongs to; a drafter that names no model drafts for all of its tokenizer.
fn pools<'a>(node: &'a NodeRecord, snapshot: &'a Snapshot) -> BTreeSet<Pool<'a>> {
    let mut pools = BTreeSet::new();
    for model in &node.models {
        let tokenizer = model.tokenizer_fingerprint.as_str();
        if node.role == Role::Drafter && model.name.is_empty() {
            let experts = snapshot.nodes.values().filter(|node| node.role == Role::Expert);
            let served = experts.flat_map(|expert| &expert.models);
            let served = served.filter(|served| served.tokenizer_fingerprint == tokenizer);
            pools.extend(served.map(|served| (node.role, served.name.as_str(), tokenizer)));
        } else {
            pools.insert((node.role, model.name.as_str(), tokenizer));
        }
    }
    pools
}
