//! The watch: list, then follow, and list again wherever the two might part.
//!
//! Every reconnection begins with a list. It costs a few kilobytes, needs no history, and answers at once all that a
//! resumed watch would leave open: compacted revisions, another cluster at the same address, a restored old copy.

use std::sync::Arc;

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{NodeRecord, Snapshot};
use etcd_client::{Client, Event, EventType, GetOptions, KeyValue, WatchOptions};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::{CALL_TIMEOUT, EtcdConfig, FIRST_PAUSE, LONGEST_PAUSE, timed};
use crate::jitter::{Backoff, Jitter};
use crate::membership::record;
use crate::membership::roster::Roster;

/// Follows etcd for ever, whether it is there or not.
pub(super) async fn follow(config: Arc<EtcdConfig>, snapshots: watch::Sender<Arc<Snapshot>>) {
    let mut follower = Follower::new(config, snapshots);
    loop {
        let Err(reason) = follower.session().await;
        let (endpoints, pause) = (follower.config.endpoints.join(", "), follower.pauses.pause());
        tracing::warn!(%endpoints, %reason, "etcd is away; nodes that are known stay known, trying again");
        sleep(pause).await;
    }
}

/// Which store was last heard, and up to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    cluster: u64,
    revision: i64,
}

struct Follower {
    config: Arc<EtcdConfig>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    roster: Roster,
    seen: Option<Seen>,
    pauses: Backoff,
    jitter: Jitter,
}

impl Follower {
    fn new(config: Arc<EtcdConfig>, snapshots: watch::Sender<Arc<Snapshot>>) -> Self {
        // After an outage of etcd all nodes come back, each at its own time.
        let name = format!("{} of {}", config.node, config.prefix);
        Self {
            pauses: Backoff::new(&name, FIRST_PAUSE, LONGEST_PAUSE),
            jitter: Jitter::new(&name),
            config,
            snapshots,
            roster: Roster::default(),
            seen: None,
        }
    }

    /// One connection, from its first list to its failure.
    async fn session(&mut self) -> Result<std::convert::Infallible, String> {
        let mut client = self.config.connect().await?;
        let listed = self.list(&mut client).await?;
        let options = WatchOptions::new().with_prefix().with_start_revision(listed.revision + 1);
        let mut watch = timed(CALL_TIMEOUT, client.watch(self.config.prefix.as_str(), Some(options))).await?;
        self.pauses.reset();
        let mut next_list = self.next_list();
        loop {
            tokio::select! {
                message = watch.message() => {
                    let response = message.map_err(|error| error.to_string())?.ok_or("the watch ended")?;
                    if response.canceled() {
                        return Err(match response.compact_revision() {
                            0 => format!("the watch was cancelled: {}", response.cancel_reason()),
                            revision => format!("the watch fell behind the compaction at revision {revision}"),
                        });
                    }
                    self.apply(response.events());
                    next_list = next_list.min(self.next_doubt().unwrap_or(next_list));
                }
                () = sleep_until(next_list) => {
                    self.list(&mut client).await?;
                    next_list = self.next_list();
                }
            }
        }
    }

    fn next_doubt(&self) -> Option<Instant> {
        self.roster.doubts_end(self.config.grace())
    }

    fn next_list(&mut self) -> Instant {
        let usual = Instant::now() + self.jitter.up_to(self.config.list_period());
        self.next_doubt().map_or(usual, |doubt| doubt.min(usual))
    }

    /// Asks for all nodes.
    async fn list(&mut self, client: &mut Client) -> Result<Seen, String> {
        let options = GetOptions::new().with_prefix();
        let response = timed(CALL_TIMEOUT, client.get(self.config.prefix.as_str(), Some(options))).await?;
        let header = response.header().ok_or("an answer without header")?;
        let now = Seen { cluster: header.cluster_id(), revision: header.revision() };
        let data_lost = self.seen.is_some_and(|seen| seen.cluster != now.cluster || now.revision < seen.revision);
        if data_lost {
            tracing::warn!(was = ?self.seen, is = ?now, "etcd lost its data; nodes stay known until they had time to register again");
        }
        let records = response.kvs().iter().filter_map(|kv| self.read(kv)).collect();
        self.seen = Some(now);
        self.roster.replace(records, data_lost, Instant::now());
        self.roster.confirm(self.config.grace(), Instant::now());
        self.publish();
        Ok(now)
    }

    /// Takes what the watch brings, unless a list has already.
    fn apply(&mut self, events: &[Event]) {
        let listed = self.seen.map_or(0, |seen| seen.revision);
        let mut gone = Vec::new();
        for event in events {
            let Some(kv) = event.kv().filter(|kv| kv.mod_revision() > listed) else { continue };
            if let Some(seen) = &mut self.seen {
                seen.revision = seen.revision.max(kv.mod_revision());
            }
            match event.event_type() {
                EventType::Put => match self.read(kv) {
                    Some(record) => {
                        gone.retain(|id| *id != record.id);
                        self.roster.put(record);
                    }
                    // A key that another cluster's node took, or somebody else, is none of ours any more.
                    None => gone.extend(self.id(kv)),
                },
                EventType::Delete => gone.extend(self.id(kv)),
            }
        }
        self.roster.remove(&gone, Instant::now());
        self.publish();
    }

    fn id(&self, kv: &KeyValue) -> Option<NodeId> {
        let name = kv.key_str().ok()?.strip_prefix(&self.config.prefix)?;
        (!name.is_empty()).then(|| NodeId(name.to_owned()))
    }

    fn read(&self, kv: &KeyValue) -> Option<NodeRecord> {
        let id = self.id(kv)?;
        let decoded = record::decode(&id.0, kv.value())
            .inspect_err(|error| tracing::warn!(node = %id, %error, "a key in etcd is no node record; delete it"));
        let (record, cluster) = decoded.ok()?;
        self.config.cluster.has(&id, &cluster).then_some(record)
    }

    fn publish(&self) {
        let nodes = self.roster.nodes();
        let revision = self.seen.map_or(0, |seen| u64::try_from(seen.revision).unwrap_or(0));
        self.snapshots.send_if_modified(|snapshot| {
            if snapshot.nodes == nodes {
                return false;
            }
            // Grows also where etcd began anew.
            *snapshot = Arc::new(Snapshot { revision: revision.max(snapshot.revision + 1), nodes });
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn two_nodes_of_a_cluster_pause_differently() {
        let follower = |node: &str| {
            let config = EtcdConfig { node: node.into(), ..EtcdConfig::default() };
            Follower::new(Arc::new(config), watch::Sender::new(Arc::default()))
        };
        let times = |mut follower: Follower| -> Vec<Duration> {
            let pauses: Vec<_> = (0..8).map(|_| follower.pauses.pause()).collect();
            let lists = (0..8).map(|_| follower.jitter.up_to(follower.config.list_period()));
            pauses.into_iter().chain(lists).collect()
        };
        let (one, other) = (times(follower("expert-1")), times(follower("expert-2")));
        assert!(one.iter().zip(&other).all(|(one, other)| one != other), "{one:?} and {other:?}");
        assert_eq!(one, times(follower("expert-1")), "a simulation repeats itself");
    }
}
