//! How sessions end at nodes in, who is left alone out; and what no order of endings brings about.

use std::collections::BTreeMap;
use std::time::Duration;

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{Load, Loads, NodeRecord, NodeState, Role, ServedModel, Snapshot};
use cascadia_core::quarantine::Quarantine;
use proptest::prelude::*;

fn id(name: &str) -> NodeId {
    NodeId(name.to_owned())
}

fn node(name: &str, role: Role, models: &[&str], state: NodeState) -> NodeRecord {
    let served = |name: &&str| ServedModel {
        name: (*name).to_owned(),
        fingerprint: format!("{role:?}"),
        tokenizer_fingerprint: "t".to_owned(),
        row_exact: true,
    };
    NodeRecord {
        id: id(name),
        instance: 1,
        role,
        address: String::new(),
        admin_address: String::new(),
        models: models.iter().map(served).collect(),
        capacity: 8,
        protocol: (1, 1),
        state,
    }
}

fn cluster(nodes: impl IntoIterator<Item = NodeRecord>) -> Snapshot {
    Snapshot { revision: 1, nodes: nodes.into_iter().map(|node| (node.id.clone(), node)).collect() }
}

/// So many drafters `d0`, `d1`... of any model, and experts `e0`... of `m`.
fn pools(drafters: usize, experts: usize) -> Snapshot {
    let drafters = (0..drafters).map(|i| node(&format!("d{i}"), Role::Drafter, &[""], NodeState::Ready));
    cluster(drafters.chain((0..experts).map(|i| node(&format!("e{i}"), Role::Expert, &["m"], NodeState::Ready))))
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn closed(quarantine: &Quarantine, snapshot: &Snapshot, at: f64) -> Vec<String> {
    quarantine.closed(snapshot, &Loads::new(), seconds(at)).into_iter().map(|node| node.0).collect()
}

/// Three requests fail at a node, the last one then.
fn fail(quarantine: &mut Quarantine, node: &str, at: f64) {
    for request in 0..3 {
        quarantine.failed(&id(node), &format!("{node} {at} {request}"), seconds(at));
    }
}

#[test]
fn three_requests_in_ten_seconds_with_no_success_between_close_a_node() {
    let cluster = pools(2, 1);
    let failing = |requests: &[(&str, f64)], success: Option<usize>| {
        let mut quarantine = Quarantine::default();
        for (nth, (request, at)) in requests.iter().enumerate() {
            quarantine.failed(&id("d0"), request, seconds(*at));
            if success == Some(nth) {
                assert!(!quarantine.served(&id("d0")));
            }
        }
        !closed(&quarantine, &cluster, requests.last().unwrap().1).is_empty()
    };
    let three = [("a", 0.0), ("b", 4.0), ("c", 10.0)];
    assert!(failing(&three, None));
    assert!(!failing(&three, Some(1)), "a success between");
    assert!(!failing(&[("a", 0.0), ("b", 4.0), ("c", 10.1)], None), "too slow");
    assert!(failing(&[("a", 0.0), ("b", 4.0), ("c", 10.1), ("d", 11.0)], None), "the last three count");
    assert!(!failing(&[("a", 0.0), ("a", 1.0), ("b", 2.0), ("a", 3.0)], None), "two requests");
}

#[test]
fn a_closed_node_is_tried_by_one_session_at_a_time() {
    let (cluster, loads) = (pools(2, 1), Loads::new());
    let (mut quarantine, node) = (Quarantine::default(), id("d0"));
    fail(&mut quarantine, "d0", 0.0);
    assert!(!quarantine.admit(&[&node], &cluster, &loads, seconds(4.9)));
    assert!(closed(&quarantine, &cluster, 5.0).is_empty(), "half open");
    assert!(quarantine.admit(&[&node], &cluster, &loads, seconds(6.0)));
    assert_eq!(closed(&quarantine, &cluster, 6.0), ["d0"], "one tries");
    assert!(!quarantine.admit(&[&id("e0"), &node], &cluster, &loads, seconds(6.0)));

    quarantine.failed(&node, "the one that tried", seconds(8.0));
    assert_eq!(closed(&quarantine, &cluster, 12.9), ["d0"], "renewed");
    assert!(quarantine.admit(&[&node], &cluster, &loads, seconds(13.0)));
    assert!(quarantine.served(&node), "it was closed");
    assert!(closed(&quarantine, &cluster, 13.1).is_empty(), "lifted");
    quarantine.failed(&node, "another", seconds(13.2));
    assert!(closed(&quarantine, &cluster, 13.2).is_empty(), "it begins anew");
}

#[test]
fn a_session_that_tries_and_never_ends_holds_nobody_off_for_ever() {
    let (cluster, loads) = (pools(2, 1), Loads::new());
    let mut quarantine = Quarantine::default();
    fail(&mut quarantine, "d0", 0.0);
    assert!(quarantine.admit(&[&id("d0")], &cluster, &loads, seconds(5.0)));
    assert!(!quarantine.admit(&[&id("d0")], &cluster, &loads, seconds(9.9)));
    assert!(quarantine.admit(&[&id("d0")], &cluster, &loads, seconds(10.0)));
}

#[test]
fn at_least_half_of_those_that_could_serve_stay_open() {
    for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let mut quarantine = Quarantine::default();
        for failing in (0..count).rev() {
            fail(&mut quarantine, &format!("d{failing}"), 0.1 * (count - failing) as f64);
        }
        let closed = closed(&quarantine, &pools(count, 1), 1.0);
        let longest: Vec<String> = (count - most..count).map(|i| format!("d{i}")).collect();
        assert_eq!(closed, longest, "of {count}, those that have failed the longest");
    }
}

#[test]
fn hung_and_draining_nodes_are_no_part_of_the_half_that_stays() {
    let mut quarantine = Quarantine::default();
    fail(&mut quarantine, "d0", 0.0);
    let mut cluster = pools(2, 1);
    let hung = Loads::from([(id("d1"), Load { quarantined: true, ..Load::default() })]);
    assert!(quarantine.closed(&cluster, &hung, seconds(1.0)).is_empty());
    assert_eq!(closed(&quarantine, &cluster, 1.0), ["d0"]);
    cluster.nodes.get_mut(&id("d1")).unwrap().state = NodeState::Draining;
    assert!(closed(&quarantine, &cluster, 1.0).is_empty());
    cluster.nodes.get_mut(&id("d1")).unwrap().state = NodeState::Ready;
    cluster.nodes.get_mut(&id("d0")).unwrap().state = NodeState::Draining;
    assert!(closed(&quarantine, &cluster, 1.0).is_empty(), "a draining node says so itself");
}

#[test]
fn a_node_of_two_models_is_closed_where_both_have_others() {
    let nodes = |second: &[&str]| {
        cluster([
            node("e0", Role::Expert, &["m", "n"], NodeState::Ready),
            node("e1", Role::Expert, second, NodeState::Ready),
        ])
    };
    let mut quarantine = Quarantine::default();
    fail(&mut quarantine, "e0", 0.0);
    assert!(closed(&quarantine, &nodes(&["m"]), 1.0).is_empty(), "nobody else has n");
    assert_eq!(closed(&quarantine, &nodes(&["m", "n"]), 1.0), ["e0"]);
    quarantine.forget(&id("e0"));
    assert!(closed(&quarantine, &nodes(&["m", "n"]), 1.0).is_empty(), "another start of it");
}

/// Something that happens to a session at a node.
#[derive(Clone, Debug)]
enum Event {
    Fails(usize, u8),
    Ends(usize),
    Comes(usize),
    Restarts(usize),
}

const NODES: usize = 7;

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let event = prop_oneof![
        12 => (0..NODES, any::<u8>()).prop_map(|(node, request)| Event::Fails(node, request)),
        1 => (0..NODES).prop_map(Event::Ends),
        3 => (0..NODES).prop_map(Event::Comes),
        1 => (0..NODES).prop_map(Event::Restarts),
    ];
    prop::collection::vec((0_u64..400, event), 0..200)
}

fn nodes() -> impl Strategy<Value = Vec<NodeRecord>> {
    let models = prop_oneof![Just(vec![""]), Just(vec!["m"]), Just(vec!["n"]), Just(vec!["m", "n"])];
    let state = prop_oneof![5 => Just(NodeState::Ready), 1 => Just(NodeState::Draining)];
    let drawn = (any::<bool>(), models, state);
    prop::collection::vec(drawn, NODES).prop_map(|nodes| {
        let named = nodes.into_iter().enumerate().map(|(i, (is_expert, models, state))| {
            // Every expert's models have names.
            let models = if is_expert && models == [""] { vec!["m"] } else { models };
            node(&format!("n{i}"), if is_expert { Role::Expert } else { Role::Drafter }, &models, state)
        });
        named.collect()
    })
}

proptest! {
    #[test]
    fn never_more_than_half_of_those_that_could_serve_a_model(
        nodes in nodes(),
        hung in prop::collection::vec(prop::bool::weighted(0.15), NODES),
        events in events(),
    ) {
        let cluster = cluster(nodes);
        let load = |(i, &quarantined)| (id(&format!("n{i}")), Load { quarantined, ..Load::default() });
        let loads: Loads = hung.iter().enumerate().map(load).collect();
        let (mut quarantine, mut now) = (Quarantine::default(), Duration::ZERO);
        for (pause, event) in events {
            now += Duration::from_millis(pause);
            let name = |node: usize| id(&format!("n{node}"));
            match event {
                Event::Fails(node, request) => drop(quarantine.failed(&name(node), &request.to_string(), now)),
                Event::Ends(node) => drop(quarantine.served(&name(node))),
                Event::Comes(node) => drop(quarantine.admit(&[&name(node)], &cluster, &loads, now)),
                Event::Restarts(node) => quarantine.forget(&name(node)),
            }
            let closed = quarantine.closed(&cluster, &loads, now);
            for (role, model) in [(Role::Drafter, "m"), (Role::Drafter, "n"), (Role::Expert, "m"), (Role::Expert, "n")] {
                let expert = |node: &NodeRecord| node.role == Role::Expert;
                let served = cluster.nodes.values().filter(|n| expert(n)).flat_map(|n| &n.models).any(|m| m.name == model);
                let serves = |node: &&NodeRecord| {
                    let named = |served: &ServedModel| served.name == model || served.name.is_empty();
                    node.role == role && node.state == NodeState::Ready && node.models.iter().any(named)
                        && !loads[&node.id].quarantined
                };
                let pool: Vec<_> = cluster.nodes.values().filter(serves).collect();
                let left_alone = pool.iter().filter(|node| closed.contains(&node.id)).count();
                prop_assert!(!served || 2 * left_alone <= pool.len(), "{left_alone} of {} for {model}", pool.len());
            }
        }
    }

    #[test]
    fn one_request_closes_nothing_however_often_and_wherever_it_fails(
        failures in prop::collection::vec((0..NODES, 0_u64..1_500), 0..200),
        others in prop::collection::vec((0..NODES, 0_u64..300_000), 0..=1),
    ) {
        let cluster = pools(NODES, NODES);
        let mut quarantine = Quarantine::default();
        let mut all: BTreeMap<u64, Vec<(usize, String)>> = BTreeMap::new();
        let mut at = 0;
        for (node, pause) in failures {
            at += pause;
            all.entry(at).or_default().push((node, "the same".to_owned()));
        }
        // One request of others may fail beside it: that is one too few.
        for (nth, (node, at)) in others.into_iter().enumerate() {
            all.entry(at).or_default().push((node, format!("another {nth}")));
        }
        for (at, failed) in all {
            let now = Duration::from_millis(at);
            for (node, request) in failed {
                let is_closed = quarantine.failed(&id(&format!("d{node}")), &request, now);
                prop_assert!(!is_closed);
            }
            prop_assert!(quarantine.closed(&cluster, &Loads::new(), now).is_empty());
        }
    }

    #[test]
    fn whoever_serves_every_third_session_is_never_closed(requests in prop::collection::vec(any::<u16>(), 0..100)) {
        let cluster = pools(4, 1);
        let mut quarantine = Quarantine::default();
        for (nth, request) in requests.into_iter().enumerate() {
            let now = Duration::from_millis(100 * nth as u64);
            if nth % 3 == 2 {
                quarantine.served(&id("d0"));
            } else {
                quarantine.failed(&id("d0"), &request.to_string(), now);
            }
            prop_assert!(quarantine.closed(&cluster, &Loads::new(), now).is_empty());
        }
    }
}
