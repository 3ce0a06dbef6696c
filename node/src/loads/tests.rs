//! Over real gRPC on loopback, in process.

use super::*;
use crate::membership::tests::record;
use crate::net::{self, Listener};
use crate::status::{EngineLoad, StatusBoard};
use cascadia_core::placement::NodeState;
use std::sync::atomic::AtomicU64;
use tonic::service::Routes;

/// Longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

struct Served {
    board: StatusBoard,
    record: NodeRecord,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start(id: &str, instance: u64) -> Self {
        Self::start_in(id, instance, &ClusterName::default()).await
    }

    async fn start_in(id: &str, instance: u64, cluster: &ClusterName) -> Self {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let record = NodeRecord { address: listener.address().into(), instance, ..record(id, Role::Expert) };
        let (board, shutdown) = (StatusBoard::new(instance, Arc::new(AtomicU64::new(1)), cluster), Shutdown::new());
        board.set_state(NodeState::Ready);
        let serving = net::serve(Routes::new(board.service()), listener, shutdown.stopped(), net::gone(&shutdown));
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self { board, record, shutdown, task }
    }

    /// As a process that stops: its streams end.
    async fn stop(self) {
        self.board.close();
        self.shutdown.stop();
        self.task.await.unwrap();
    }
}

async fn until(what: &str, watch: &LoadWatch, holds: impl Fn(&LoadWatch) -> bool) {
    let mut changed = watch.changed();
    let waiting = async {
        while !holds(watch) {
            // Not every word is a change.
            let _ = timeout(Duration::from_millis(20), changed.changed()).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

fn watch(membership: &Membership, shutdown: &Shutdown) -> LoadWatch {
    LoadWatch::spawn(membership, &Connector::tcp(), "router-1", &[Role::Expert], shutdown)
}

#[tokio::test]
async fn load_and_state_come_over_the_stream() {
    let (node, shutdown, membership) = (Served::start("e", 1).await, Shutdown::new(), Membership::embedded());
    let starting = NodeRecord { state: NodeState::Starting, ..node.record.clone() };
    let _registration = membership.register(starting).await.unwrap();
    let watch = watch(&membership, &shutdown);
    let id = node.record.id.clone();
    assert_eq!(watch.snapshot().nodes[&id].state, NodeState::Starting, "known before anyone asks");
    until("the stream's state wins", &watch, |w| w.snapshot().nodes[&id].state == NodeState::Ready).await;
    assert!(node.board.seen_by_router());
    assert!(watch.place(&[&id], 7));
    assert_eq!(watch.loads()[&id].placed_tokens, 7);

    node.board.record(EngineLoad { queued_tokens: 3, running_tokens: 2, ..EngineLoad::default() });
    until("the load", &watch, |w| w.loads()[&id].queued_tokens == 3 && w.loads()[&id].running_tokens == 2).await;
    until("the placement is reported", &watch, |w| w.loads()[&id].placed_tokens == 0).await;
    assert_eq!(watch.statuses()[&id].queued_tokens, 3);

    watch.failed(&id);
    assert!(watch.loads()[&id].quarantined);
    watch.lost(&id).await;
    until("a failed node comes back", &watch, |w| !w.loads()[&id].quarantined).await;
    shutdown.stop();
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_membership_lost_stays_while_its_stream_lives() {
    let (node, shutdown, membership) = (Served::start("e", 1).await, Shutdown::new(), Membership::embedded());
    let registration = membership.register(node.record.clone()).await.unwrap();
    let watch = watch(&membership, &shutdown);
    let id = node.record.id.clone();
    until("the stream", &watch, |w| w.statuses().contains_key(&id)).await;
    registration.withdraw().await;
    tokio::time::sleep(limits::WATCH_PERIOD * 2).await;
    assert!(watch.snapshot().nodes.contains_key(&id) && !watch.loads()[&id].quarantined);
    node.stop().await;
    timeout(PATIENCE, watch.lost(&id)).await.unwrap();
    until("the node is gone", &watch, |w| w.snapshot().nodes.is_empty() && w.loads().is_empty()).await;
}

#[tokio::test]
async fn a_dead_node_is_quarantined_and_its_next_start_is_not() {
    let (node, shutdown, membership) = (Served::start("e", 1).await, Shutdown::new(), Membership::embedded());
    let _first = membership.register(node.record.clone()).await.unwrap();
    let watch = watch(&membership, &shutdown);
    let id = node.record.id.clone();
    until("the stream", &watch, |w| w.statuses().contains_key(&id)).await;
    node.task.abort();
    until("the quarantine", &watch, |w| w.loads()[&id].quarantined).await;
    assert!(watch.snapshot().nodes.contains_key(&id), "membership still lists it");

    let again = Served::start("e", 2).await;
    let _second = membership.register(again.record.clone()).await.unwrap();
    until("the next start", &watch, |w| w.statuses().get(&id).is_some_and(|status| status.instance == 2)).await;
    assert!(!watch.loads()[&id].quarantined);
    shutdown.stop();
    again.stop().await;
}

#[tokio::test]
async fn a_node_that_fails_session_after_session_lives_and_takes_none() {
    let (shutdown, membership) = (Shutdown::new(), Membership::embedded());
    let (failing, other) = (Served::start("e", 1).await, Served::start("f", 1).await);
    let _registrations = [
        membership.register(failing.record.clone()).await.unwrap(),
        membership.register(other.record.clone()).await.unwrap(),
    ];
    let watch = watch(&membership, &shutdown);
    let (id, well) = (failing.record.id.clone(), other.record.id.clone());
    until("the streams", &watch, |w| w.statuses().len() == 2).await;
    for request in ["a", "b", "b", "a"] {
        watch.session_failed(&id, request);
        assert!(!watch.loads()[&id].failing && watch.place(&[&id], 1));
    }
    let mut changed = watch.changed();
    changed.mark_unchanged();
    watch.session_failed(&id, "c");
    assert!(changed.has_changed().unwrap(), "those who wait for a place hear it");
    let load = watch.loads()[&id];
    assert!(load.failing && !load.quarantined, "what it has goes on");
    assert!(!watch.place(&[&well, &id], 1) && watch.place(&[&well], 1));
    until("one may try", &watch, |w| !w.loads()[&id].failing).await;
    assert!(watch.place(&[&id], 1) && !watch.place(&[&id], 1), "one alone");
    watch.session_served(&id);
    assert!(watch.place(&[&id], 1) && watch.place(&[&id], 1));

    ["d", "e", "f"].iter().for_each(|request| watch.session_failed(&id, request));
    assert!(watch.loads()[&id].failing);
    let again = Served::start("e", 2).await;
    let _second = membership.register(again.record.clone()).await.unwrap();
    until("the next start", &watch, |w| w.statuses().get(&id).is_some_and(|status| status.instance == 2)).await;
    assert!(!watch.loads()[&id].failing, "another start of it");
    shutdown.stop();
    for node in [failing, other, again] {
        node.stop().await;
    }
}

#[tokio::test]
async fn another_start_at_the_same_address_is_not_the_node() {
    let (node, shutdown, membership) = (Served::start("e", 2).await, Shutdown::new(), Membership::embedded());
    let former = NodeRecord { instance: 1, ..node.record.clone() };
    let _registration = membership.register(former).await.unwrap();
    let watch = watch(&membership, &shutdown);
    let id = node.record.id.clone();
    until("the quarantine", &watch, |w| w.loads()[&id].quarantined).await;
    assert!(watch.statuses().is_empty());
    shutdown.stop();
    node.stop().await;
}

#[tokio::test]
async fn dropping_the_watch_ends_its_streams() {
    let (node, shutdown) = (Served::start("e", 1).await, Shutdown::new());
    let membership = Membership::fixed(vec![node.record.clone()]);
    let watch = watch(&membership, &shutdown);
    until("the stream", &watch, |w| w.statuses().contains_key(&node.record.id)).await;
    let shared = Arc::downgrade(&watch.shared);
    drop(watch);
    let gone = async {
        while shared.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    node.stop().await;
}

#[test]
fn a_pause_of_this_process_is_nobodys_silence() {
    for queued_tokens in [0, 9] {
        let node = record("e", Role::Expert);
        let (id, start) = (node.id.clone(), Instant::now());
        let status = NodeStatus { instance: node.instance, queued_tokens, ..NodeStatus::default() };
        let mut state = State { looked: Some(start), ..State::new(start) };
        state.nodes.insert(id.clone(), Watched::new(node, start));
        state.nodes.get_mut(&id).unwrap().heard(status, start);
        let resumed = start + Duration::from_secs(3600);
        state.look(resumed);
        assert!(!state.nodes[&id].is_gone(resumed), "what it said in that hour is still to be read");
        // It has said nothing.
        let mut now = resumed;
        while now <= resumed + limits::WATCH_SILENCE {
            now += WATCH_PERIOD;
            state.look(now);
        }
        assert!(state.nodes[&id].is_gone(now));
    }
}

#[tokio::test]
async fn a_node_of_another_cluster_is_never_heard_and_gets_nothing() {
    let (node, shutdown) = (Served::start_in("e", 1, &"green".parse().unwrap()).await, Shutdown::new());
    // A list knows nothing of clusters; the node does.
    let list = || Membership::fixed(vec![node.record.clone()]);
    let id = &node.record.id;
    let wrong = watch(&list().named("blue".parse().unwrap()), &shutdown);
    until("it is refused", &wrong, |w| w.loads()[id].quarantined).await;
    let right = watch(&list().named("green".parse().unwrap()), &shutdown);
    until("its own hear it", &right, |w| !w.statuses().is_empty() && !w.loads()[id].quarantined).await;
    assert!(wrong.statuses().is_empty() && wrong.loads()[id].quarantined);
    shutdown.stop();
    node.stop().await;
}
