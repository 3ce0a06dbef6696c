//! The cluster as this router sees it, for clients and operators. Pure.

use std::collections::{BTreeMap, BTreeSet};

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{Load, Loads, NodeRecord, NodeState, Role, ServedModel, Snapshot, served_models};
use cascadia_proto::convert::{role_name, state_name};
use cascadia_proto::v1::{self, ClusterStatusResponse, ListModelsResponse, Member, MemberLoad, NodeStatus, Pair};
use serde_json::{Value, json};

/// A node and one model of it.
type Served<'a> = (&'a NodeRecord, &'a ServedModel);

fn serving(snapshot: &Snapshot, role: Role) -> impl Iterator<Item = Served<'_>> {
    let nodes = snapshot.nodes.values().filter(move |node| node.role == role);
    nodes.flat_map(|node| node.models.iter().map(move |model| (node, model)))
}

/// Whether the drafter drafts for the expert's model.
fn is_pair(drafter: &ServedModel, expert: &ServedModel) -> bool {
    let named = drafter.name.is_empty() || drafter.name == expert.name;
    named && drafter.tokenizer_fingerprint == expert.tokenizer_fingerprint
}

/// The served models, with the nodes that serve them.
#[must_use]
pub fn list_models(snapshot: &Snapshot) -> ListModelsResponse {
    let models = served_models(snapshot).into_iter().map(|name| {
        let experts: Vec<Served<'_>> =
            serving(snapshot, Role::Expert).filter(|(_, model)| model.name == name).collect();
        let drafters = serving(snapshot, Role::Drafter)
            .filter(|(_, drafter)| experts.iter().any(|(_, expert)| is_pair(drafter, expert)));
        let ids = |served: &mut dyn Iterator<Item = Served<'_>>| {
            let ids: BTreeSet<String> = served.map(|(node, _)| node.id.0.clone()).collect();
            ids.into_iter().collect::<Vec<_>>()
        };
        v1::ServedModel {
            drafters: ids(&mut { drafters }),
            tokenizer_fingerprint: experts[0].1.tokenizer_fingerprint.clone(),
            experts: ids(&mut experts.into_iter()),
            name,
        }
    });
    ListModelsResponse { models: models.collect() }
}

/// Members, loads and pairs.
#[must_use]
pub fn cluster_status(
    router: &NodeId,
    snapshot: &Snapshot,
    loads: &Loads,
    statuses: &BTreeMap<NodeId, NodeStatus>,
) -> ClusterStatusResponse {
    let failing = |node: &NodeRecord| is(loads, node, |load| load.failing);
    ClusterStatusResponse {
        revision: snapshot.revision,
        members: snapshot.nodes.values().map(|node| member(node, statuses.get(&node.id), failing(node))).collect(),
        pairs: pairs(snapshot),
        router: router.0.clone(),
    }
}

fn is(loads: &Loads, node: &NodeRecord, what: impl Fn(&Load) -> bool) -> bool {
    loads.get(&node.id).is_some_and(what)
}

fn member(node: &NodeRecord, status: Option<&NodeStatus>, failing: bool) -> Member {
    Member {
        id: node.id.0.clone(),
        role: role_name(node.role).to_owned(),
        state: state_name(node.state).to_owned(),
        address: node.address.clone(),
        admin_address: node.admin_address.clone(),
        models: node.models.iter().map(|model| model.name.clone()).filter(|name| !name.is_empty()).collect(),
        fingerprints: node.models.iter().map(|model| model.fingerprint.clone()).collect(),
        instance: node.instance,
        load: status.map(|status| MemberLoad {
            sessions: status.sessions,
            queued_tokens: status.queued_tokens,
            running_tokens: status.running_tokens,
            kv_pages_free: status.kv_pages_free,
            kv_pages: status.kv_pages,
            batch_occupancy: status.batch_occupancy,
        }),
        failing,
    }
}

/// The ready nodes of a pair of fingerprints.
#[derive(Default)]
struct Ready<'a> {
    drafters: BTreeSet<&'a NodeId>,
    experts: BTreeSet<&'a NodeId>,
}

/// The pairs of fingerprints that can serve a model, with how many nodes are ready for each.
fn pairs(snapshot: &Snapshot) -> Vec<Pair> {
    let mut pairs: BTreeMap<(&str, &str, &str), Ready<'_>> = BTreeMap::new();
    for (expert, served) in serving(snapshot, Role::Expert) {
        for (drafter, drafts) in serving(snapshot, Role::Drafter).filter(|(_, drafts)| is_pair(drafts, served)) {
            let pair = pairs.entry((&served.name, &drafts.fingerprint, &served.fingerprint)).or_default();
            pair.drafters.extend((drafter.state == NodeState::Ready).then_some(&drafter.id));
            pair.experts.extend((expert.state == NodeState::Ready).then_some(&expert.id));
        }
    }
    let pair = |((model, drafter, expert), ready): ((&str, &str, &str), Ready<'_>)| Pair {
        model: model.to_owned(),
        drafter_fingerprint: drafter.to_owned(),
        expert_fingerprint: expert.to_owned(),
        drafters: ready.drafters.len() as u32,
        experts: ready.experts.len() as u32,
    };
    pairs.into_iter().map(pair).collect()
}

/// What a router says of itself.
#[derive(Clone, Debug)]
pub struct Own {
    /// This start of it.
    pub instance: u64,
    /// Where it is in its life.
    pub state: NodeState,
    /// Sessions it has admitted.
    pub sessions: usize,
    /// Whether it should get clients.
    pub ready: Result<(), String>,
}

/// How many nodes of each role are in which state; one that takes no sessions whatever it says is quarantined.
#[must_use]
pub fn census(snapshot: &Snapshot, loads: &Loads) -> Vec<([String; 2], f64)> {
    let mut counts: BTreeMap<[&str; 2], u32> = BTreeMap::new();
    for role in [Role::Router, Role::Drafter, Role::Expert].map(role_name) {
        for state in ["starting", "ready", "draining", QUARANTINED] {
            counts.insert([role, state], 0);
        }
    }
    for node in snapshot.nodes.values() {
        let quarantined = is(loads, node, |load| load.quarantined || load.failing);
        let state = if quarantined { QUARANTINED } else { state_name(node.state) };
        *counts.entry([role_name(node.role), state]).or_default() += 1;
    }
    counts.into_iter().map(|(labels, count)| (labels.map(str::to_owned), f64::from(count))).collect()
}

const QUARANTINED: &str = "quarantined";

/// How many nodes of each role get no new sessions because they failed one after another.
#[must_use]
pub fn failing(snapshot: &Snapshot, loads: &Loads) -> Vec<([String; 1], f64)> {
    let of = |role| {
        let nodes = snapshot.nodes.values().filter(move |node| node.role == role);
        nodes.filter(|node| is(loads, node, |load| load.failing)).count()
    };
    [Role::Drafter, Role::Expert].map(|role| ([role_name(role).to_owned()], of(role) as f64)).to_vec()
}

/// The nodes that were there before and are gone, or are another process now, and had not said that they would go.
pub fn lost<'a>(before: &'a Snapshot, now: &'a Snapshot) -> impl Iterator<Item = &'a NodeRecord> {
    let stays = |node: &NodeRecord| now.nodes.get(&node.id).is_some_and(|same| same.instance == node.instance);
    before.nodes.values().filter(move |node| node.state == NodeState::Ready && !stays(node))
}

/// Where Prometheus finds the nodes' metrics, as its `http_sd_configs` reads it.
#[must_use]
pub fn targets(snapshot: &Snapshot) -> Value {
    let nodes = snapshot.nodes.values().filter(|node| !node.admin_address.is_empty());
    nodes.map(|node| json!({"targets": [node.admin_address], "labels": {"instance": node.id.0}})).collect()
}

/// The same as a page of the admin listener.
#[must_use]
pub fn page(status: &ClusterStatusResponse, own: &Own) -> Value {
    let members = status.members.iter().map(|member| {
        json!({
            "id": member.id,
            "role": member.role,
            "state": member.state,
            "address": member.address,
            "admin_address": member.admin_address,
            "models": member.models,
            "fingerprints": member.fingerprints,
            "failing": member.failing,
            "load": member.load.as_ref().map(|load| json!({
                "sessions": load.sessions,
                "queued_tokens": load.queued_tokens,
                "running_tokens": load.running_tokens,
                "kv_pages": load.kv_pages,
                "kv_pages_free": load.kv_pages_free,
                "batch_occupancy": load.batch_occupancy,
            })),
        })
    });
    let pairs = status.pairs.iter().map(|pair| {
        json!({
            "model": pair.model,
            "drafter_fingerprint": pair.drafter_fingerprint,
            "expert_fingerprint": pair.expert_fingerprint,
            "drafters": pair.drafters,
            "experts": pair.experts,
        })
    });
    json!({
        "router": status.router,
        "instance": format!("{:016x}", own.instance),
        "state": state_name(own.state),
        "ready": own.ready.is_ok(),
        "not_ready_because": own.ready.as_ref().err(),
        "sessions": own.sessions,
        "revision": status.revision,
        "members": members.collect::<Vec<_>>(),
        "pairs": pairs.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn node(id: &str, role: Role, name: &str, state: NodeState) -> NodeRecord {
        let mut node = NodeRecord { state, ..samples::node(id, role) };
        node.models[0].name = name.into();
        node
    }

    fn cluster() -> Snapshot {
        let nodes = [
            node("d1", Role::Drafter, "", NodeState::Ready),
            node("d2", Role::Drafter, "m", NodeState::Draining),
            node("e1", Role::Expert, "m", NodeState::Ready),
            node("e2", Role::Expert, "m", NodeState::Ready),
        ];
        Snapshot { revision: 4, nodes: nodes.into_iter().map(|node| (node.id.clone(), node)).collect() }
    }

    #[test]
    fn models_name_their_nodes() {
        let listed = list_models(&cluster());
        assert_eq!(listed.models.len(), 1);
        let model = &listed.models[0];
        assert_eq!((model.name.as_str(), model.tokenizer_fingerprint.as_str()), ("m", "t"));
        assert_eq!(model.drafters, ["d1", "d2"]);
        assert_eq!(model.experts, ["e1", "e2"]);
    }

    #[test]
    fn a_hung_expert_is_not_counted_as_ready() {
        let hung = Load { quarantined: true, ..Load::default() };
        let census = census(&cluster(), &Loads::from([(NodeId("e1".into()), hung)]));
        let of = |role: &str, state: &str| census.iter().find(|(labels, _)| *labels == [role, state]).unwrap().1;
        assert_eq!((of("expert", "ready"), of("expert", "quarantined")), (1.0, 1.0));
        assert_eq!((of("drafter", "ready"), of("drafter", "draining"), of("router", "ready")), (1.0, 1.0, 0.0));
    }

    #[test]
    fn a_failing_node_is_shown_as_such() {
        let failing = Loads::from([(NodeId("e1".into()), Load { failing: true, ..Load::default() })]);
        let of = |labels: &[&str], counts: Vec<(Vec<String>, f64)>| {
            counts.iter().find(|(has, _)| has == labels).unwrap_or_else(|| panic!("{labels:?}")).1
        };
        let states = || census(&cluster(), &failing).into_iter().map(|(labels, n)| (labels.to_vec(), n)).collect();
        assert_eq!((of(&["expert", "ready"], states()), of(&["expert", "quarantined"], states())), (1.0, 1.0));
        let counts = || super::failing(&cluster(), &failing).into_iter().map(|(role, n)| (role.to_vec(), n)).collect();
        assert_eq!((of(&["expert"], counts()), of(&["drafter"], counts())), (1.0, 0.0));
        let status = cluster_status(&NodeId("r".into()), &cluster(), &failing, &BTreeMap::new());
        let own = Own { instance: 1, state: NodeState::Ready, sessions: 0, ready: Ok(()) };
        let page = page(&status, &own);
        let shown: Vec<bool> = page["members"].as_array().unwrap().iter().map(|m| m["failing"] == true).collect();
        assert_eq!(shown, [false, false, true, false]);
    }

    #[test]
    fn only_a_node_that_did_not_drain_is_lost() {
        let before = cluster();
        let mut now = before.clone();
        for gone in ["d2", "e1"] {
            now.nodes.remove(&NodeId(gone.into()));
        }
        now.nodes.get_mut(&NodeId("e2".into())).unwrap().instance = 2;
        let lost: Vec<&str> = lost(&before, &now).map(|node| node.id.0.as_str()).collect();
        assert_eq!(lost, ["e1", "e2"], "d2 was draining");
    }

    #[test]
    fn prometheus_is_told_the_nodes_that_have_a_page() {
        let mut cluster = cluster();
        cluster.nodes.get_mut(&NodeId("d1".into())).unwrap().admin_address = "10.0.0.1:9100".into();
        assert_eq!(targets(&cluster), json!([{"targets": ["10.0.0.1:9100"], "labels": {"instance": "d1"}}]));
    }

    #[test]
    fn status_counts_ready_nodes_of_each_pair() {
        let loads = BTreeMap::from([(NodeId("e1".into()), NodeStatus { sessions: 3, ..NodeStatus::default() })]);
        let status = cluster_status(&NodeId("r".into()), &cluster(), &Loads::new(), &loads);
        assert_eq!((status.revision, status.router.as_str(), status.members.len()), (4, "r", 4));
        assert_eq!(status.members[2].load.as_ref().unwrap().sessions, 3);
        assert!(status.members[3].load.is_none());
        assert_eq!(status.pairs.len(), 1);
        assert_eq!((status.pairs[0].drafters, status.pairs[0].experts), (1, 2));
        let own = Own { instance: 1, state: NodeState::Draining, sessions: 7, ready: Err("draining".into()) };
        let page = page(&status, &own);
        assert_eq!(page["members"][2]["load"]["sessions"], 3);
        assert_eq!((&page["ready"], &page["state"], &page["sessions"]), (&json!(false), &json!("draining"), &json!(7)));
    }
}
