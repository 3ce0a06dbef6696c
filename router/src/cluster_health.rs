//! What all sessions of this router watch together: which nodes are well, which models were ever served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cascadia_core::ids::NodeId;
use cascadia_core::limits;
use cascadia_core::placement::{Loads, NodeState, Role, Snapshot, Wish, pick_drafter, pick_expert, served_models};
use tokio::sync::watch;
use tokio::time::Instant;

/// An owner that spoke within this time is not hung, whatever its status stream does.
const LATELY: Duration = Duration::from_secs(1);

/// The shared view; one task feeds it.
#[derive(Debug)]
pub struct ClusterHealth {
    /// Followed, and neither hung nor silent nor cut off.
    well: watch::Sender<BTreeSet<NodeId>>,
    /// Ticks whenever the cluster looks different.
    changes: watch::Sender<()>,
    servable: watch::Sender<bool>,
    /// Every name an expert has declared: a pool that is gone for a while is waited for, not unknown.
    known: Mutex<BTreeSet<String>>,
    /// Models without a drafter or without an expert that takes sessions, and since when.
    missing: Mutex<BTreeMap<(Role, String), Instant>>,
    /// Models with a drafter at some time.
    drafted: Mutex<BTreeSet<String>>,
    /// Whether there is any drafter or expert, and since when it is so.
    inhabited: Mutex<(bool, Instant)>,
    /// How long a membership that lost all it held may show some nodes and not yet others.
    settling: Duration,
}

impl ClusterHealth {
    /// Nobody has been seen yet, and within `settling` everybody will have been.
    #[must_use]
    pub fn new(settling: Duration) -> Self {
        Self {
            well: watch::Sender::new(BTreeSet::new()),
            changes: watch::Sender::new(()),
            servable: watch::Sender::new(false),
            known: Mutex::default(),
            missing: Mutex::default(),
            drafted: Mutex::default(),
            inhabited: Mutex::new((false, Instant::now())),
            settling,
        }
    }

    /// The cluster as it looks now.
    pub fn observe(&self, snapshot: &Snapshot, loads: &Loads) {
        let well = loads.iter().filter(|(_, load)| !load.quarantined);
        let well: BTreeSet<NodeId> = well.map(|(node, _)| node.clone()).collect();
        self.well.send_if_modified(|now| {
            let changed = *now != well;
            *now = well;
            changed
        });
        self.known.lock().unwrap_or_else(PoisonError::into_inner).extend(served_models(snapshot));
        let (now, mut missing) = (Instant::now(), self.missing.lock().unwrap_or_else(PoisonError::into_inner));
        for model in self.known_models() {
            let wish = Wish { model: &model, ..Wish::default() };
            let has = [
                (Role::Drafter, pick_drafter(snapshot, loads, &wish).is_ok()),
                (Role::Expert, pick_expert(snapshot, loads, &wish).is_ok()),
            ];
            for (role, has) in has {
                let key = (role, model.clone());
                if has {
                    if role == Role::Drafter {
                        self.drafted.lock().unwrap_or_else(PoisonError::into_inner).insert(model.clone());
                    }
                    missing.remove(&key);
                } else {
                    missing.entry(key).or_insert(now);
                }
            }
        }
        drop(missing);
        let inhabited = snapshot.nodes.values().any(|node| node.role != Role::Router);
        let mut before = self.inhabited.lock().unwrap_or_else(PoisonError::into_inner);
        if before.0 != inhabited {
            *before = (inhabited, now);
        }
        drop(before);
        if is_servable(snapshot) {
            self.servable.send_if_modified(|servable| !std::mem::replace(servable, true));
        }
        self.changes.send_replace(());
    }

    /// Ticks whenever the cluster looks different.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The names that are served, or were.
    #[must_use]
    pub fn known_models(&self) -> BTreeSet<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When everybody will have been seen: a membership that was empty fills node by node, and one that stays empty is.
    fn settles_at(&self) -> Instant {
        self.inhabited.lock().unwrap_or_else(PoisonError::into_inner).1 + self.settling
    }

    /// Whether who was not seen is not there.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        Instant::now() >= self.settles_at()
    }

    /// Returns when `is_shown` holds, or when everybody has been seen and it does not.
    pub async fn shown(&self, is_shown: impl Fn() -> bool) {
        let mut changes = self.changes();
        while !is_shown() && !self.is_settled() {
            let _ = tokio::time::timeout_at(self.settles_at(), changes.changed()).await;
        }
    }

    /// Whether no kind of node that serves a model has been missing for longer than a restart takes; a drafter that was
    /// never seen, for longer than a membership takes to show it.
    #[must_use]
    pub fn may_come_back(&self, model: &str) -> bool {
        let patience = self.patience(model);
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let lately =
            |role, patience| missing.get(&(role, model.to_owned())).is_none_or(|since| since.elapsed() < patience);
        lately(Role::Drafter, patience) && lately(Role::Expert, limits::MAY_COME_BACK)
    }

    /// How long a session waits for the drafter of a model before its text may change.
    #[must_use]
    pub fn patience(&self, model: &str) -> Duration {
        if self.drafted.lock().unwrap_or_else(PoisonError::into_inner).contains(model) {
            limits::MAY_COME_BACK
        } else {
            self.settling.max(limits::MAY_COME_BACK)
        }
    }

    /// Whether a model could be served at some time since the start.
    #[must_use]
    pub fn was_servable(&self) -> bool {
        *self.servable.borrow()
    }

    /// Returns when a model can be served for the first time.
    pub async fn servable(&self) {
        // Fails only when every sender is gone, and one is here.
        let _ = self.servable.subscribe().wait_for(|servable| *servable).await;
    }

    /// Returns when an owner that was last heard then counts as hung.
    pub async fn hung(&self, owner: &NodeId, heard: Instant) {
        let mut well = self.well.subscribe();
        loop {
            let _ = well.wait_for(|well| !well.contains(owner)).await;
            if heard.elapsed() >= LATELY {
                return;
            }
            tokio::time::sleep_until(heard + LATELY).await;
        }
    }
}

/// Whether some expert takes sessions: it answers alone where there is no drafter.
fn is_servable(snapshot: &Snapshot) -> bool {
    let mut experts = snapshot.nodes.values().filter(|node| node.role == Role::Expert);
    experts.any(|expert| expert.state == NodeState::Ready && !expert.models.is_empty())
}

#[cfg(test)]
mod tests {
    use cascadia_core::placement::{Load, NodeRecord};

    use super::*;
    use crate::samples::node;

    fn observe(cluster_health: &ClusterHealth, nodes: &[NodeRecord]) {
        let nodes = nodes.iter().map(|node| (node.id.clone(), node.clone())).collect();
        cluster_health.observe(&Snapshot { revision: 1, nodes }, &Loads::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drafter_that_was_never_seen_gets_the_time_of_a_membership_that_lost_all() {
        let settling = Duration::from_secs(15);
        let (drafter, expert) = (node("d", Role::Drafter), node("e", Role::Expert));
        let cluster_health = ClusterHealth::new(settling);
        tokio::time::sleep(settling).await;
        observe(&cluster_health, std::slice::from_ref(&expert));
        tokio::time::sleep(settling - Duration::from_secs(1)).await;
        assert!(cluster_health.may_come_back("m") && cluster_health.patience("m") == settling);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!cluster_health.may_come_back("m"), "experts alone are all there is");

        observe(&cluster_health, &[expert.clone(), drafter]);
        assert_eq!(cluster_health.patience("m"), limits::MAY_COME_BACK);
        observe(&cluster_health, &[expert]);
        assert!(cluster_health.may_come_back("m"));
        tokio::time::sleep(limits::MAY_COME_BACK).await;
        assert!(!cluster_health.may_come_back("m"), "one that was seen may only be restarting");
    }

    #[tokio::test(start_paused = true)]
    async fn an_expert_that_was_never_seen_is_waited_for_until_everybody_has_been() {
        let settling = Duration::from_secs(15);
        let (drafter, expert) = (node("d", Role::Drafter), node("e", Role::Expert));
        let cluster_health = ClusterHealth::new(settling);
        let waited = async |is_shown: &dyn Fn() -> bool| {
            let began = Instant::now();
            cluster_health.shown(is_shown).await;
            began.elapsed()
        };
        assert_eq!(waited(&|| true).await, Duration::ZERO);
        assert_eq!(waited(&|| false).await, settling, "from its beginning");
        observe(&cluster_health, &[node("r", Role::Router)]);
        assert!(cluster_health.is_settled(), "nobody came");

        observe(&cluster_health, std::slice::from_ref(&drafter));
        let both = async {
            tokio::time::sleep(settling / 2).await;
            observe(&cluster_health, &[drafter, expert]);
        };
        let is_served = || cluster_health.known_models().contains("m");
        assert_eq!(tokio::join!(waited(&is_served), both).0, settling / 2, "a change is seen at once");
        assert_eq!(waited(&|| false).await, settling / 2, "the first who came began the time");
        assert_eq!(waited(&|| false).await, Duration::ZERO, "no more");

        observe(&cluster_health, &[]);
        tokio::time::sleep(settling).await;
        observe(&cluster_health, &[node("e", Role::Expert)]);
        assert!(!cluster_health.is_settled(), "what was emptied fills again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_just_gone_may_come_back_and_what_was_never_there_may_not() {
        let cluster_health = ClusterHealth::new(Duration::ZERO);
        let observe = |nodes: &[NodeRecord]| observe(&cluster_health, nodes);
        let (drafter, expert) = (node("d", Role::Drafter), node("e", Role::Expert));
        observe(std::slice::from_ref(&expert));
        assert!(cluster_health.may_come_back("m"), "the first look sees whom it can");
        tokio::time::sleep(limits::MAY_COME_BACK).await;
        assert!(!cluster_health.may_come_back("m"), "experts alone");
        observe(&[expert.clone(), drafter]);
        tokio::time::sleep(limits::MAY_COME_BACK).await;
        observe(&[expert]);
        assert!(cluster_health.may_come_back("m"));
        tokio::time::sleep(limits::MAY_COME_BACK).await;
        assert!(!cluster_health.may_come_back("m"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_is_hung_when_it_is_unwell_and_silent() {
        let cluster_health = ClusterHealth::new(Duration::ZERO);
        let owner = NodeId("d".into());
        let observe = |quarantined| {
            let load = Load { quarantined, ..Load::default() };
            cluster_health.observe(&Snapshot::default(), &Loads::from([(owner.clone(), load)]));
        };
        observe(false);
        let heard = Instant::now();
        let hung = tokio::time::timeout(Duration::from_secs(60), cluster_health.hung(&owner, heard));
        assert!(hung.await.is_err(), "silent and well");
        let heard = Instant::now();
        observe(true);
        cluster_health.hung(&owner, heard).await;
        assert_eq!(heard.elapsed(), LATELY);
        observe(false);
        let hung = tokio::time::timeout(Duration::from_secs(60), cluster_health.hung(&owner, heard));
        assert!(hung.await.is_err(), "well again");
        cluster_health.observe(&Snapshot::default(), &Loads::new());
        cluster_health.hung(&owner, heard).await;
    }
}
