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
pub struct Outlook {
    /// Followed, and neither hung nor silent nor cut off.
    well: watch::Sender<BTreeSet<NodeId>>,
    /// Ticks whenever the cluster looks different.
    changes: watch::Sender<()>,
    servable: watch::Sender<bool>,
    /// Every name an expert has declared: a pool that is gone for a while is waited for, not unknown.
    known: Mutex<BTreeSet<String>>,
    /// Models without a drafter or without an expert that takes sessions, and since when.
    missing: Mutex<BTreeMap<(Role, String), Instant>>,
    /// How long experts without drafters are not believed to be all there is.
    settling: Duration,
}

impl Outlook {
    /// Nobody has been seen yet. A membership that lost what it held shows some nodes before others, for `settling` at
    /// most: a router that began with the experts alone would write other texts than those with their drafters.
    #[must_use]
    pub fn new(settling: Duration) -> Self {
        Self {
            well: watch::Sender::new(BTreeSet::new()),
            changes: watch::Sender::new(()),
            servable: watch::Sender::new(false),
            known: Mutex::default(),
            missing: Mutex::default(),
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
                    missing.remove(&key);
                } else {
                    missing.entry(key).or_insert(now);
                }
            }
        }
        let waits = |since: &Instant| now.duration_since(*since) < self.settling;
        let settled = !missing.iter().any(|((role, _), since)| *role == Role::Drafter && waits(since));
        drop(missing);
        if settled && has_expert(snapshot) {
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

    /// Whether no kind of node that serves a model has been missing for longer than a restart takes.
    #[must_use]
    pub fn may_come_back(&self, model: &str) -> bool {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let lately =
            |role| missing.get(&(role, model.to_owned())).is_none_or(|since| since.elapsed() < limits::MAY_COME_BACK);
        lately(Role::Drafter) && lately(Role::Expert)
    }

    /// Whether a model could be served at some time since the start.
    #[must_use]
    pub fn was_servable(&self) -> bool {
        *self.servable.borrow()
    }

    /// What has to come before a model can be served for the first time, and the cure.
    #[must_use]
    pub fn awaited(&self) -> &'static str {
        if self.known_models().is_empty() {
            "no expert has been ready yet: start one, with the same membership"
        } else {
            "experts are there and no drafter yet: for the life of a lease one may only be late to register again"
        }
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
fn has_expert(snapshot: &Snapshot) -> bool {
    let mut experts = snapshot.nodes.values().filter(|node| node.role == Role::Expert);
    experts.any(|expert| expert.state == NodeState::Ready && !expert.models.is_empty())
}

#[cfg(test)]
mod tests {
    use cascadia_core::placement::{Load, NodeRecord, ServedModel};

    use super::*;

    fn node(id: &str, role: Role) -> NodeRecord {
        let model = ServedModel {
            name: "m".into(),
            fingerprint: "f".into(),
            tokenizer_fingerprint: "t".into(),
            row_exact: true,
        };
        NodeRecord {
            id: NodeId(id.into()),
            instance: 1,
            role,
            address: String::new(),
            admin_address: String::new(),
            models: vec![model],
            capacity: 1,
            protocol: (1, 1),
            state: NodeState::Ready,
        }
    }

    fn observe(outlook: &Outlook, nodes: &[NodeRecord]) {
        let nodes = nodes.iter().map(|node| (node.id.clone(), node.clone())).collect();
        outlook.observe(&Snapshot { revision: 1, nodes }, &Loads::new());
    }

    #[tokio::test(start_paused = true)]
    async fn experts_without_drafters_are_believed_when_the_drafters_have_had_their_time() {
        let settling = Duration::from_secs(8);
        let (drafter, expert) = (node("d", Role::Drafter), node("e", Role::Expert));
        let outlook = Outlook::new(settling);
        observe(&outlook, std::slice::from_ref(&expert));
        assert!(!outlook.was_servable());
        observe(&outlook, &[expert.clone(), drafter]);
        assert!(outlook.was_servable());
        observe(&outlook, std::slice::from_ref(&expert));
        assert!(outlook.was_servable(), "later they are lost, which is another matter");

        let outlook = Outlook::new(settling);
        tokio::time::sleep(settling).await;
        observe(&outlook, std::slice::from_ref(&expert));
        assert!(!outlook.was_servable(), "the time begins with the expert");
        tokio::time::sleep(settling).await;
        observe(&outlook, &[expert]);
        assert!(outlook.was_servable());
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_just_gone_may_come_back_and_what_was_never_there_may_not() {
        let outlook = Outlook::new(Duration::ZERO);
        let observe = |nodes: &[NodeRecord]| observe(&outlook, nodes);
        let (drafter, expert) = (node("d", Role::Drafter), node("e", Role::Expert));
        observe(std::slice::from_ref(&expert));
        assert!(outlook.may_come_back("m"), "the first look sees whom it can");
        tokio::time::sleep(limits::MAY_COME_BACK).await;
        assert!(!outlook.may_come_back("m"), "experts alone");
        observe(&[expert.clone(), drafter]);
        tokio::time::sleep(limits::MAY_COME_BACK).await;
        observe(&[expert]);
        assert!(outlook.may_come_back("m"));
        tokio::time::sleep(limits::MAY_COME_BACK).await;
        assert!(!outlook.may_come_back("m"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_is_hung_when_it_is_unwell_and_silent() {
        let outlook = Outlook::new(Duration::ZERO);
        let owner = NodeId("d".into());
        let observe = |quarantined| {
            let load = Load { quarantined, ..Load::default() };
            outlook.observe(&Snapshot::default(), &Loads::from([(owner.clone(), load)]));
        };
        observe(false);
        let heard = Instant::now();
        let hung = tokio::time::timeout(Duration::from_secs(60), outlook.hung(&owner, heard));
        assert!(hung.await.is_err(), "silent and well");
        let heard = Instant::now();
        observe(true);
        outlook.hung(&owner, heard).await;
        assert_eq!(heard.elapsed(), LATELY);
        observe(false);
        let hung = tokio::time::timeout(Duration::from_secs(60), outlook.hung(&owner, heard));
        assert!(hung.await.is_err(), "well again");
        outlook.observe(&Snapshot::default(), &Loads::new());
        outlook.hung(&owner, heard).await;
    }
}
