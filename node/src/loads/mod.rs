//! How busy the others are and whether they live: one status stream to each node of interest.
//!
//! Death and hanging are seen here, on the data plane; membership only says whom to ask. A node whose stream lives stays
//! in the snapshot when its key vanishes, and a node whose stream is silent takes no sessions whatever its key says. A node
//! that lives and fails session after session is seen by those whose sessions it fails, and takes none for a while.

mod watched;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cascadia_core::ids::NodeId;
use cascadia_core::limits;
use cascadia_core::limits::WATCH_PERIOD;
use cascadia_core::placement::{Loads, NodeRecord, Role, Snapshot};
use cascadia_core::quarantine::Quarantine;
use cascadia_proto::v1::node_client::NodeClient;
use cascadia_proto::v1::{NodeStatus, WatchRequest};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;

use crate::cluster::ClusterName;
use crate::jitter::Backoff;
use crate::lifecycle::Shutdown;
use crate::membership::Membership;
use crate::net::Connector;
use watched::Watched;

/// The first pause before a lost stream is opened again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause: how late a node that came back is noticed at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Somebody here looks every [`WATCH_PERIOD`] while any stream is open. Where nobody has for so long, this process did not
/// run: its machine was paused, or had no processor to spare.
const PAUSED: Duration = Duration::from_secs(1);

/// A stream silent for so long is given up and opened anew.
const GIVE_UP: Duration = Duration::from_secs(15);

/// Follows `Node/Watch` of every node of some roles; clones share the streams. Dropping the last one ends them.
#[derive(Clone)]
pub struct LoadWatch {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

impl fmt::Debug for LoadWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoadWatch")
    }
}

impl LoadWatch {
    /// Starts to follow, in the name of `watcher` (a router's begins with `router`).
    #[must_use]
    pub fn spawn(
        membership: &Membership,
        connector: &Connector,
        watcher: &str,
        roles: &'static [Role],
        shutdown: &Shutdown,
    ) -> Self {
        let cluster = membership.cluster().clone();
        let state = Mutex::new(State::new(Instant::now()));
        let shared = Arc::new(Shared { state, changed: watch::Sender::new(()), cluster });
        let stop = CancellationToken::new();
        let follower = Follower { shared: shared.clone(), connector: connector.clone(), watcher: watcher.into() };
        // What is known now is in the snapshot before anyone asks.
        shared.adopt(membership.snapshots().borrow().clone(), roles);
        let (supervising, stopped) = (supervise(follower, membership.clone(), roles), shutdown.stopped());
        let dropped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stopped => {}
                () = dropped.cancelled() => {}
                () = supervising => {}
            }
        });
        Self { shared, _stop: Arc::new(stop.drop_guard()) }
    }

    /// The cluster whose nodes are followed.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.shared.cluster
    }

    /// Load of every followed node: as last reported, with what was placed since; hung, silent and failed ones are
    /// quarantined, and those that fail session after session are failing.
    #[must_use]
    pub fn loads(&self) -> Loads {
        let (state, now) = self.shared.look();
        state.loads(now)
    }

    /// Counts a placement of so many tokens until the nodes' reports contain it; false where one of them takes no session
    /// any more, as after another session became the one that tries a failing node: then the choice is to be made again.
    #[must_use]
    pub fn place(&self, nodes: &[&NodeId], tokens: u64) -> bool {
        let (mut state, now) = self.shared.look();
        if !state.admit(nodes, now) {
            return false;
        }
        for node in nodes {
            if let Some(watched) = state.nodes.get_mut(*node) {
                watched.placed(tokens);
            }
        }
        true
    }

    /// A session of a request failed at a node, which says that it is its own fault.
    pub fn session_failed(&self, node: &NodeId, request: &str) {
        let mut closed = false;
        self.shared.change_quarantine(node, |quarantine, now| {
            closed = quarantine.failed(node, request, now);
            true
        });
        if closed {
            tracing::warn!(%node, "it fails session after session by its own fault: it gets no new ones for a while");
        }
    }

    /// A session ended well at a node.
    pub fn session_served(&self, node: &NodeId) {
        let mut lifted = false;
        self.shared.change_quarantine(node, |quarantine, _| {
            lifted = quarantine.served(node);
            lifted
        });
        if lifted {
            tracing::info!(%node, "it serves again");
        }
    }

    /// Quarantines a node that failed a call: for a second, and until its status stream speaks again.
    pub fn failed(&self, node: &NodeId) {
        self.shared.change(Some(node), Watched::failed);
    }

    /// Who is there: membership, with the nodes it lost but whose streams live, in the state they say they are in.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.lock().merged.clone()
    }

    /// What each followed node last said.
    #[must_use]
    pub fn statuses(&self) -> BTreeMap<NodeId, NodeStatus> {
        let (state, now) = self.shared.look();
        state.nodes.iter().filter_map(|(id, node)| Some((id.clone(), *node.living_status(now)?))).collect()
    }

    /// Ticks when the snapshot changes, or a node comes into or out of quarantine; not with every load.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// Returns when the node is hung, silent or cut off; a call that it failed for somebody else does not count.
    pub async fn gone(&self, node: &NodeId) {
        while !self.shared.is(node, Watched::is_gone) {
            tokio::time::sleep(WATCH_PERIOD).await;
        }
    }

    /// Returns when the node is quarantined or gone; at once if it is not followed.
    pub async fn lost(&self, node: &NodeId) {
        let mut changed = self.changed();
        loop {
            if self.shared.is(node, Watched::is_quarantined) {
                return;
            }
            // The sender is in `self`.
            let _ = changed.changed().await;
        }
    }
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    cluster: ClusterName,
}

struct State {
    source: Arc<Snapshot>,
    merged: Arc<Snapshot>,
    nodes: BTreeMap<NodeId, Watched>,
    quarantine: Quarantine,
    /// What the quarantine's times are since.
    began: Instant,
    /// The nodes that take no sessions, for whichever reason.
    closed: Vec<NodeId>,
    /// When somebody last looked.
    looked: Option<Instant>,
}

impl State {
    fn new(began: Instant) -> Self {
        Self {
            source: Arc::default(),
            merged: Arc::default(),
            nodes: BTreeMap::new(),
            quarantine: Quarantine::default(),
            began,
            closed: Vec::new(),
            looked: None,
        }
    }

    /// Loads but for who is failing.
    fn loads_reported(&self, now: Instant) -> Loads {
        self.nodes.iter().map(|(id, node)| (id.clone(), node.load(now))).collect()
    }

    fn loads(&self, now: Instant) -> Loads {
        let mut loads = self.loads_reported(now);
        for failing in self.quarantine.closed(&self.merged, &loads, now - self.began) {
            if let Some(load) = loads.get_mut(&failing) {
                load.failing = true;
            }
        }
        loads
    }

    fn admit(&mut self, nodes: &[&NodeId], now: Instant) -> bool {
        let loads = self.loads_reported(now);
        self.quarantine.admit(nodes, &self.merged, &loads, now - self.began)
    }

    /// Somebody looks. Time in which nobody could is nobody's silence: what the others said meanwhile is still to be read.
    fn look(&mut self, now: Instant) {
        let missed = self.looked.map(|looked| now.duration_since(looked)).filter(|missed| *missed > PAUSED);
        if let Some(missed) = missed {
            self.nodes.values_mut().for_each(|node| node.forgive(missed));
        }
        self.looked = Some(now);
    }

    /// Merges anew; whether anything changed that a chooser must know.
    fn refresh(&mut self, now: Instant) -> bool {
        let mut nodes = self.source.nodes.clone();
        for (id, watched) in &self.nodes {
            if let Some(state) = watched.living_state(now) {
                nodes.entry(id.clone()).or_insert_with(|| watched.record().clone()).state = state;
            }
        }
        let moved = nodes != self.merged.nodes;
        if moved {
            let revision = self.source.revision.max(self.merged.revision + 1);
            self.merged = Arc::new(Snapshot { revision, nodes });
        }
        let closed = self.loads(now).into_iter().filter(|(_, load)| load.quarantined || load.failing);
        let closed = closed.map(|(id, _)| id).collect();
        let flipped = std::mem::replace(&mut self.closed, closed) != self.closed;
        moved || flipped
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, and the time that it is judged at.
    fn look(&self) -> (MutexGuard<'_, State>, Instant) {
        let mut state = self.lock();
        let now = Instant::now();
        state.look(now);
        (state, now)
    }

    /// Whether this holds of a node now; of one that is not followed, anything does.
    fn is(&self, node: &NodeId, what: impl FnOnce(&Watched, Instant) -> bool) -> bool {
        let (state, now) = self.look();
        state.nodes.get(node).is_none_or(|watched| what(watched, now))
    }

    /// Changes one node, or none, and tells if that matters.
    fn change(&self, node: Option<&NodeId>, change: impl FnOnce(&mut Watched, Instant)) {
        let matters = {
            let (mut state, now) = self.look();
            if let Some(watched) = node.and_then(|node| state.nodes.get_mut(node)) {
                change(watched, now);
            }
            state.refresh(now)
        };
        if matters {
            self.changed.send_replace(());
        }
    }

    /// Notes how a session ended at a node that is followed, and tells if that matters; `change` says whether it may.
    fn change_quarantine(&self, node: &NodeId, change: impl FnOnce(&mut Quarantine, Duration) -> bool) {
        let matters = {
            let (mut state, now) = self.look();
            let at = now - state.began;
            state.nodes.contains_key(node) && change(&mut state.quarantine, at) && state.refresh(now)
        };
        if matters {
            self.changed.send_replace(());
        }
    }

    /// Takes what membership says; returns whom to follow.
    fn adopt(&self, source: Arc<Snapshot>, roles: &[Role]) -> Vec<NodeRecord> {
        let (followed, matters) = {
            let (mut state, now) = self.look();
            for record in source.nodes.values().filter(|record| roles.contains(&record.role)) {
                let is_known = state.nodes.get_mut(&record.id).is_some_and(|watched| watched.renew(record));
                if !is_known {
                    state.quarantine.forget(&record.id);
                    state.nodes.insert(record.id.clone(), Watched::new(record.clone(), now));
                }
            }
            let State { nodes, quarantine, .. } = &mut *state;
            nodes.retain(|id, watched| {
                let stays = source.nodes.contains_key(id) || watched.is_living(now);
                if !stays {
                    quarantine.forget(id);
                }
                stays
            });
            state.source = source;
            (state.nodes.values().map(|watched| watched.record().clone()).collect(), state.refresh(now))
        };
        if matters {
            self.changed.send_replace(());
        }
        followed
    }

    /// A stream ended; whether the node is still to be followed.
    fn disconnected(&self, id: &NodeId) -> bool {
        self.change(Some(id), |watched, _| watched.disconnected());
        let mut state = self.lock();
        let listed = state.source.nodes.contains_key(id);
        if !listed {
            state.nodes.remove(id);
            state.quarantine.forget(id);
        }
        drop(state);
        self.change(None, |_, _| {});
        listed
    }
}

/// Keeps one task for each followed start of a node.
async fn supervise(follower: Follower, membership: Membership, roles: &'static [Role]) {
    let mut snapshots = membership.snapshots();
    let mut tasks: JoinSet<NodeId> = JoinSet::new();
    let mut running: BTreeMap<NodeId, ((u64, String), tokio::task::AbortHandle)> = BTreeMap::new();
    loop {
        let source = snapshots.borrow_and_update().clone();
        let followed = follower.shared.adopt(source, roles);
        running.retain(|id, (start, task)| {
            let keep = followed.iter().any(|record| record.id == *id && start_of(record) == *start);
            if !keep {
                task.abort();
                follower.connector.forget(&start.1);
            }
            keep && !task.is_finished()
        });
        for record in followed {
            if !running.contains_key(&record.id) {
                let (id, start) = (record.id.clone(), start_of(&record));
                let task = follower.clone().follow(record);
                running.insert(id, (start, tasks.spawn(task)));
            }
        }
        tokio::select! {
            biased;
            changed = snapshots.changed() => if changed.is_err() {
                // The source is gone for good; those that live are followed on.
                while tasks.join_next().await.is_some() {}
                return;
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

fn start_of(record: &NodeRecord) -> (u64, String) {
    (record.instance, record.address.clone())
}

#[derive(Clone)]
struct Follower {
    shared: Arc<Shared>,
    connector: Connector,
    watcher: String,
}

impl Follower {
    /// Follows one node until membership has lost it and its stream has ended.
    async fn follow(self, record: NodeRecord) -> NodeId {
        let name = format!("{}>{}", self.watcher, record.id);
        let mut pauses = Backoff::new(&name, FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let reason = self.watch(&record, &mut pauses).await;
            tracing::debug!(node = %record.id, address = %record.address, %reason, "the status stream ended");
            if !self.shared.disconnected(&record.id) {
                self.connector.forget(&record.address);
                return record.id;
            }
            sleep(pauses.pause()).await;
        }
    }

    /// One status stream, to its end.
    async fn watch(&self, record: &NodeRecord, pauses: &mut Backoff) -> String {
        let channel = self.connector.channel(&record.address);
        let mut client = NodeClient::new(channel).max_decoding_message_size(limits::CONTROL_BYTES);
        let asked = WatchRequest { watcher: self.watcher.clone(), cluster: self.shared.cluster.to_string() };
        let mut stream = match timeout(limits::WATCH_SILENCE, client.watch(asked)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => {
                if status.code() == Code::FailedPrecondition {
                    self.shared.cluster.refused_by(record, status.message());
                }
                return status.message().to_owned();
            }
            Err(_) => {
                // Perhaps the connection died unseen: the next attempt gets a new one.
                self.connector.forget(&record.address);
                return "no answer".into();
            }
        };
        let mut heard = Instant::now();
        loop {
            match timeout(limits::WATCH_PERIOD, stream.message()).await {
                Ok(Ok(Some(status))) => {
                    if record.instance != 0 && status.instance != record.instance {
                        return "another start of a node answers there".into();
                    }
                    heard = Instant::now();
                    pauses.reset();
                    self.shared.change(Some(&record.id), |watched, now| watched.heard(status, now));
                }
                Ok(Ok(None)) => return "the node ended it".into(),
                Ok(Err(status)) => return status.message().to_owned(),
                Err(_) if heard.elapsed() > GIVE_UP => {
                    self.connector.forget(&record.address);
                    return "silent".into();
                }
                // Silence is seen here, too.
                Err(_) => self.shared.change(None, |_, _| {}),
            }
        }
    }
}

#[cfg(test)]
mod tests;
