//! What etcd says against what is believed: its word alone never takes out more than half of the nodes at once.
//!
//! Leases lapse together when etcd loses its data, restarts on an old copy or pauses longer than their life, while the
//! nodes go on serving. So vanished nodes that were not draining are kept for a grace, until etcd has had the time to
//! hear from them again and has been asked once more. Pure: time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{NodeRecord, NodeState};
use tokio::time::Instant;

/// Nodes that etcd lists, and those it no longer does.
#[derive(Debug, Default)]
pub(super) struct Roster {
    listed: BTreeMap<NodeId, NodeRecord>,
    vanished: BTreeMap<NodeId, Vanished>,
}

#[derive(Debug)]
struct Vanished {
    record: NodeRecord,
    since: Instant,
    /// Still in the snapshot.
    kept: bool,
}

impl Roster {
    /// A node is listed, or listed anew.
    pub(super) fn put(&mut self, record: NodeRecord) {
        self.vanished.remove(&record.id);
        self.listed.insert(record.id.clone(), record);
    }

    /// Nodes whose keys went at one moment.
    pub(super) fn remove(&mut self, ids: &[NodeId], now: Instant) {
        let gone: Vec<NodeRecord> = ids.iter().filter_map(|id| self.listed.remove(id)).collect();
        // Who drained has said farewell.
        let unexplained: Vec<NodeRecord> = gone.into_iter().filter(|r| r.state != NodeState::Draining).collect();
        let nodes = self.listed.len() + self.vanished.len() + unexplained.len();
        let dropped = self.vanished.values().filter(|node| !node.kept).count() + unexplained.len();
        let kept = dropped * 2 > nodes;
        for record in unexplained {
            self.vanished.insert(record.id.clone(), Vanished { record, since: now, kept });
        }
    }

    /// A complete list. After data were lost, nothing that is missing counts as gone yet.
    pub(super) fn replace(&mut self, records: Vec<NodeRecord>, data_lost: bool, now: Instant) {
        let missing = |id: &&NodeId| !records.iter().any(|record| record.id == **id);
        let gone: Vec<NodeId> = self.listed.keys().filter(missing).cloned().collect();
        self.remove(&gone, now);
        if data_lost {
            for id in &gone {
                if let Some(vanished) = self.vanished.get_mut(id) {
                    vanished.kept = true;
                }
            }
        }
        for record in records {
            self.put(record);
        }
    }

    /// After a complete list: believes what has been missing for `grace`.
    pub(super) fn confirm(&mut self, grace: Duration, now: Instant) {
        self.vanished.retain(|_, node| now.duration_since(node.since) < grace);
    }

    /// When the list should be asked for again on account of vanished nodes.
    pub(super) fn doubts_end(&self, grace: Duration) -> Option<Instant> {
        self.vanished.values().map(|node| node.since + grace).min()
    }

    /// Who is believed to be there.
    pub(super) fn nodes(&self) -> BTreeMap<NodeId, NodeRecord> {
        let kept = self.vanished.values().filter(|node| node.kept).map(|node| &node.record);
        self.listed.values().chain(kept).map(|record| (record.id.clone(), record.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::tests::record;
    use cascadia_core::placement::Role;

    const GRACE: Duration = Duration::from_secs(30);

    fn roster(count: usize) -> Roster {
        let mut roster = Roster::default();
        for i in 0..count {
            roster.put(record(&i.to_string(), Role::Expert));
        }
        roster
    }

    fn ids(range: std::ops::Range<usize>) -> Vec<NodeId> {
        range.map(|i| NodeId(i.to_string())).collect()
    }

    #[test]
    fn half_may_vanish_at_once_and_no_more() {
        let now = Instant::now();
        let mut few = roster(4);
        few.remove(&ids(0..2), now);
        assert_eq!(few.nodes().len(), 2);
        // The third within the grace is one too many, however the keys went.
        few.remove(&ids(2..3), now + GRACE / 2);
        assert_eq!(few.nodes().len(), 2);

        let mut many = roster(4);
        many.remove(&ids(0..3), now);
        assert_eq!(many.nodes().len(), 4);
        many.put(record("1", Role::Expert));
        many.confirm(GRACE, now + GRACE);
        assert_eq!(many.nodes().into_keys().collect::<Vec<_>>(), [NodeId("1".into()), NodeId("3".into())]);
    }

    #[test]
    fn an_empty_list_is_believed_after_the_grace_only() {
        let now = Instant::now();
        let mut roster = roster(3);
        roster.replace(Vec::new(), true, now);
        assert_eq!(roster.nodes().len(), 3);
        assert_eq!(roster.doubts_end(GRACE), Some(now + GRACE));
        roster.replace(Vec::new(), false, now + GRACE / 2);
        roster.confirm(GRACE, now + GRACE / 2);
        assert_eq!(roster.nodes().len(), 3);
        roster.confirm(GRACE, now + GRACE);
        assert!(roster.nodes().is_empty());
    }

    #[test]
    fn one_missing_after_data_loss_is_kept_too() {
        let now = Instant::now();
        let mut roster = roster(3);
        roster.replace(vec![record("0", Role::Expert), record("1", Role::Expert)], true, now);
        assert_eq!(roster.nodes().len(), 3);
    }

    #[test]
    fn who_drained_is_gone_at_once() {
        let mut roster = roster(1);
        roster.put(NodeRecord { state: NodeState::Draining, ..record("0", Role::Expert) });
        roster.remove(&ids(0..1), Instant::now());
        assert!(roster.nodes().is_empty());
    }
}
