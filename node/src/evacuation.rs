//! When the sessions of a node that drains are to go elsewhere, and when they stay to their end.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{Loads, NodeState, Role, Snapshot};
use cascadia_proto::fault;
use tonic::Status;

use crate::NodeEnv;
use crate::lifecycle::Shutdown;
use crate::loads::LoadWatch;
use crate::membership::Membership;
use crate::net::Connector;

/// How often a draining node looks for one that takes its sessions.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long a session that was told to leave may stay: a node is gone within a minute where another has its model.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Knows when a node's sessions are to go: it drains, and who takes them is there and speaks.
#[derive(Clone, Debug)]
pub struct Evacuation {
    id: NodeId,
    role: Role,
    fingerprint: String,
    membership: Membership,
    connector: Connector,
    shutdown: Shutdown,
    /// Followed only while the node drains: a key or a line of a static list says nothing of who lives.
    others: Arc<OnceLock<LoadWatch>>,
}

impl Evacuation {
    /// Of the node at an edge.
    #[must_use]
    pub fn new(env: &NodeEnv, role: Role, fingerprint: &str) -> Self {
        Self {
            id: env.id.clone(),
            role,
            fingerprint: fingerprint.to_owned(),
            membership: env.membership.clone(),
            connector: env.connector.clone(),
            shutdown: env.shutdown.clone(),
            others: Arc::default(),
        }
    }

    /// Refuses a new session while the node drains; one that is pinned to this node's model may have no other place, and
    /// is treated as those that are open.
    ///
    /// # Errors
    /// `UNAVAILABLE`: whoever asked looks elsewhere.
    pub fn accepts(&self, pinned: &str) -> Result<(), Status> {
        if self.shutdown.is_draining() && pinned.is_empty() {
            return Err(fault::leaving("the node drains: it takes no new sessions"));
        }
        Ok(())
    }

    /// Returns when a session is to go; the last node of its model keeps it to its end, or until the node stops. A
    /// session that needs an `expert` of some fingerprint goes only where it finds one.
    pub async fn until_due(&self, expert: Option<&str>) {
        self.shutdown.draining().await;
        while !self.shutdown.is_stopped() && !self.is_due(expert) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether a session is to go now.
    #[must_use]
    pub fn is_due(&self, expert: Option<&str>) -> bool {
        if !self.shutdown.is_draining() {
            return false;
        }
        let others = self.others.get_or_init(|| {
            let watcher = format!("leaving {}", self.id);
            let roles: &[Role] =
                if self.role == Role::Expert { &[Role::Expert] } else { &[Role::Drafter, Role::Expert] };
            LoadWatch::spawn(&self.membership, &self.connector, &watcher, roles, &self.shutdown)
        });
        let (snapshot, loads) = (others.snapshot(), others.loads());
        let heard = others.statuses();
        let takes = |role, fingerprint: &str| {
            takes_sessions(&snapshot, &loads, role, fingerprint).any(|id| *id != self.id && heard.contains_key(id))
        };
        takes(self.role, &self.fingerprint) && expert.is_none_or(|expert| takes(Role::Expert, expert))
    }
}

/// The ready nodes of a role that have a model; of any model where none is named.
fn takes_sessions<'a>(
    snapshot: &'a Snapshot,
    loads: &'a Loads,
    role: Role,
    fingerprint: &'a str,
) -> impl Iterator<Item = &'a NodeId> {
    let has = move |model: &str| fingerprint.is_empty() || model == fingerprint;
    let nodes = snapshot.nodes.values().filter(move |node| {
        node.role == role
            && node.state == NodeState::Ready
            && node.models.iter().any(|model| has(&model.fingerprint))
            && !loads.get(&node.id).is_some_and(|load| load.quarantined)
    });
    nodes.map(|node| &node.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::tests::record;
    use crate::net::Listener;
    use crate::status::StatusBoard;
    use cascadia_core::placement::NodeRecord;

    /// A node that only says how it is.
    async fn another(id: &str, role: Role, membership: &Membership) -> (StatusBoard, crate::membership::Registration) {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let board = StatusBoard::new(1, Arc::default(), membership.cluster());
        board.set_state(NodeState::Ready);
        let record = NodeRecord { instance: 1, address: listener.address().to_owned(), ..record(id, role) };
        let routes = crate::net::server().add_service(board.service());
        tokio::spawn(routes.serve_with_incoming(listener.into_incoming()));
        (board, membership.register(record).await.unwrap())
    }

    /// Waits until a session goes.
    async fn goes(evacuation: &Evacuation, expert: Option<&str>) {
        let gone = tokio::time::timeout(Duration::from_secs(60), evacuation.until_due(expert)).await;
        gone.expect("there is somebody who takes it");
    }

    /// Whether a session is still there after a while in which it could have gone.
    async fn stays(evacuation: &Evacuation, expert: Option<&str>) -> bool {
        tokio::time::timeout(Duration::from_millis(800), evacuation.until_due(expert)).await.is_err()
    }

    #[tokio::test]
    async fn sessions_go_only_where_they_are_taken() {
        let membership = Membership::embedded();
        let shutdown = Shutdown::new();
        let evacuation = Evacuation {
            id: NodeId("drafter-1".into()),
            role: Role::Drafter,
            fingerprint: "Drafter-f".into(),
            membership: membership.clone(),
            connector: Connector::tcp(),
            shutdown: shutdown.clone(),
            others: Arc::default(),
        };
        let _own = membership.register(record("drafter-1", Role::Drafter)).await.unwrap();
        let (other, _other) = another("drafter-2", Role::Drafter, &membership).await;
        assert!(stays(&evacuation, None).await && evacuation.accepts("").is_ok(), "it does not drain");
        shutdown.drain();
        goes(&evacuation, None).await;
        assert!(evacuation.accepts("").is_err() && evacuation.accepts("Drafter-f").is_ok());
        assert!(stays(&evacuation, Some("Expert-f")).await, "no expert would serve it there");
        let (_, _expert) = another("expert-1", Role::Expert, &membership).await;
        goes(&evacuation, Some("Expert-f")).await;
        goes(&evacuation, Some("")).await;
        assert!(stays(&evacuation, Some("another model")).await);
        other.set_state(NodeState::Draining);
        // The last of a model keeps its sessions, once it knows that it is.
        let heard = async { while !stays(&evacuation, None).await {} };
        tokio::time::timeout(Duration::from_secs(60), heard).await.expect("the other says that it drains");
        shutdown.stop();
        goes(&evacuation, None).await;
    }

    #[tokio::test]
    async fn a_key_alone_takes_no_sessions() {
        let membership = Membership::embedded();
        // Registered, but nobody answers there.
        let dead = NodeRecord { address: "127.0.0.1:1".to_owned(), ..record("expert-2", Role::Expert) };
        let _dead = membership.register(dead).await.unwrap();
        let shutdown = Shutdown::new();
        let evacuation = Evacuation {
            id: NodeId("expert-1".into()),
            role: Role::Expert,
            fingerprint: "Expert-f".into(),
            membership: membership.clone(),
            connector: Connector::tcp(),
            shutdown: shutdown.clone(),
            others: Arc::default(),
        };
        shutdown.drain();
        assert!(stays(&evacuation, None).await);
    }
}
