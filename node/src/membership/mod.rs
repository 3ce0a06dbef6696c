//! Who is there: a watch of immutable snapshots from one of three sources.
//!
//! A snapshot is a hint: whether a node lives is decided by its status stream ([`crate::loads`]), never by a key.

mod embedded;
mod etcd;
mod fixed;
pub mod record;
mod roster;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cascadia_core::placement::{NodeRecord, Snapshot};
use tokio::sync::watch;

use crate::cluster::ClusterName;
pub use etcd::{EtcdAccess, EtcdConfig, probe};

/// Why membership cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The configuration is wrong.
    #[error("etcd: {0}")]
    Config(String),
    /// Nothing answers at the endpoints.
    #[error(
        "etcd does not answer at {endpoints} within {seconds} s ({reason}); start etcd, or give its address with --etcd"
    )]
    Unreachable {
        /// Where it was looked for.
        endpoints: String,
        /// How long.
        seconds: u64,
        /// What the client says.
        reason: String,
    },
    /// The source ended while the node registered.
    #[error("membership ended while {0} was registering; restart the node")]
    Ended(String),
}

/// Who is there; clones share one source.
#[derive(Clone)]
pub struct Membership {
    source: Source,
    cluster: ClusterName,
}

#[derive(Clone)]
enum Source {
    Embedded(embedded::Registry),
    Fixed(fixed::List),
    Etcd(Arc<etcd::Etcd>),
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.source {
            Source::Embedded(_) => "Membership(embedded)",
            Source::Fixed(_) => "Membership(fixed)",
            Source::Etcd(_) => "Membership(etcd)",
        })
    }
}

impl Membership {
    /// A registry inside this process; clones share it.
    #[must_use]
    pub fn embedded() -> Self {
        Self { source: Source::Embedded(embedded::Registry::new()), cluster: ClusterName::default() }
    }

    /// These nodes for ever. Their state is what their status streams say.
    #[must_use]
    pub fn fixed(records: Vec<NodeRecord>) -> Self {
        Self { source: Source::Fixed(fixed::List::new(records)), cluster: ClusterName::default() }
    }

    /// The same nodes as a cluster of this name. Those of an etcd have its configuration's.
    #[must_use]
    pub fn named(self, cluster: ClusterName) -> Self {
        Self { cluster, ..self }
    }

    /// The cluster whose nodes these are.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The nodes registered in etcd. Returns at once: an unreachable etcd is waited for, with an empty snapshot meanwhile.
    ///
    /// # Errors
    /// Only where the configuration is wrong.
    pub async fn etcd(config: EtcdConfig) -> Result<Self, MembershipError> {
        let cluster = config.cluster.clone();
        Ok(Self { source: Source::Etcd(Arc::new(etcd::Etcd::start(config)?)), cluster })
    }

    /// Who is there, now and at every change.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        match &self.source {
            Source::Embedded(registry) => registry.snapshots(),
            Source::Fixed(list) => list.snapshots(),
            Source::Etcd(etcd) => etcd.snapshots(),
        }
    }

    /// Within what time a registry that lost all it held knows every living node again.
    #[must_use]
    pub fn recovers_within(&self) -> Duration {
        match &self.source {
            Source::Embedded(_) | Source::Fixed(_) => Duration::ZERO,
            Source::Etcd(etcd) => etcd.recovers_within(),
        }
    }

    /// Makes the node known. In etcd: returns when it is, however long etcd is away, and keeps it known from then on.
    ///
    /// # Errors
    /// When the source has ended.
    pub async fn register(&self, record: NodeRecord) -> Result<Registration, MembershipError> {
        Ok(Registration(match &self.source {
            Source::Embedded(registry) => Held::Embedded(registry.register(record)),
            Source::Fixed(_) => Held::Fixed,
            Source::Etcd(etcd) => Held::Etcd(etcd.register(record).await?),
        }))
    }
}

/// A node that is known. Dropping it without [`Registration::withdraw`] is a crash: in etcd the key outlives the node
/// until its lease ends.
#[derive(Debug)]
pub struct Registration(Held);

#[derive(Debug)]
enum Held {
    Embedded(embedded::Entry),
    Fixed,
    Etcd(etcd::Lease),
}

impl Registration {
    /// Changes what is known of the node. Never waits for etcd: what it cannot be told now it is told later.
    pub async fn update(&self, record: NodeRecord) {
        match &self.0 {
            Held::Embedded(entry) => entry.update(record),
            Held::Fixed => {}
            Held::Etcd(lease) => lease.update(record),
        }
    }

    /// Takes the node out at once.
    pub async fn withdraw(self) {
        match self.0 {
            Held::Embedded(_) | Held::Fixed => {}
            Held::Etcd(lease) => lease.withdraw().await,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use cascadia_core::ids::NodeId;
    use cascadia_core::placement::{NodeState, Role, ServedModel};

    pub(crate) fn record(id: &str, role: Role) -> NodeRecord {
        let model = ServedModel {
            name: "demo".into(),
            fingerprint: format!("{role:?}-f"),
            tokenizer_fingerprint: "t".into(),
            row_exact: true,
        };
        NodeRecord {
            id: NodeId(id.into()),
            instance: u64::MAX - 1,
            role,
            address: "127.0.0.1:7".into(),
            admin_address: String::new(),
            models: vec![model],
            capacity: 8,
            protocol: (1, 1),
            state: NodeState::Ready,
        }
    }

    #[tokio::test]
    async fn an_embedded_registry_is_shared_and_forgets_who_leaves() {
        let membership = Membership::embedded();
        let mut snapshots = membership.clone().snapshots();
        let expert = membership.register(record("expert-1", Role::Expert)).await.unwrap();
        let drafter = membership.register(record("drafter-1", Role::Drafter)).await.unwrap();
        let revision = snapshots.borrow_and_update().revision;
        assert_eq!(snapshots.borrow().nodes.len(), 2);

        let draining = NodeRecord { state: NodeState::Draining, ..record("expert-1", Role::Expert) };
        expert.update(draining.clone()).await;
        assert!(snapshots.borrow().revision > revision);
        assert_eq!(snapshots.borrow().nodes[&draining.id], draining);
        expert.withdraw().await;
        drop(drafter);
        assert!(snapshots.borrow().nodes.is_empty());
    }

    #[tokio::test]
    async fn a_node_that_restarts_outlives_the_end_of_its_former_self() {
        let membership = Membership::embedded();
        let first = membership.register(record("expert-1", Role::Expert)).await.unwrap();
        let again = NodeRecord { instance: 2, ..record("expert-1", Role::Expert) };
        let _second = membership.register(again.clone()).await.unwrap();
        first.update(NodeRecord { state: NodeState::Draining, ..record("expert-1", Role::Expert) }).await;
        drop(first);
        assert_eq!(membership.snapshots().borrow().nodes[&again.id], again);
    }

    #[tokio::test]
    async fn a_fixed_list_stays_as_it_is() {
        let membership = Membership::fixed(vec![record("expert-1", Role::Expert)]);
        membership.register(record("expert-2", Role::Expert)).await.unwrap().withdraw().await;
        assert_eq!(membership.snapshots().borrow().nodes.len(), 1);
    }
}
