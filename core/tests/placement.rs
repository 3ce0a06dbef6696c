//! Placement as tables: snapshots and loads in, a node's name or an error out.

use std::collections::{BTreeMap, BTreeSet};

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{
    Load, Loads, NodeRecord, NodeState, PlacementError, Role, ServedModel, Snapshot, Wish, mismatch, pick_drafter,
    pick_expert, place, placement_key, served_models,
};

/// `name role model/tokenizer/fingerprint... [state]`, one node a line; model `*` serves all of its tokenizer.
fn snapshot(text: &str) -> Snapshot {
    let node = |line: &str| {
        let mut words = line.split_whitespace();
        let id = NodeId(words.next().unwrap().to_owned());
        let role = if words.next() == Some("expert") { Role::Expert } else { Role::Drafter };
        let (models, states): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains('/'));
        let models = models.iter().map(|model| {
            let parts: Vec<&str> = model.split('/').collect();
            ServedModel {
                name: parts[0].replace('*', ""),
                tokenizer_fingerprint: parts[1].to_owned(),
                fingerprint: parts[2].to_owned(),
                row_exact: true,
            }
        });
        let state = match states.first() {
            Some(&"draining") => NodeState::Draining,
            Some(&"starting") => NodeState::Starting,
            _ => NodeState::Ready,
        };
        let record = NodeRecord {
            id: id.clone(),
            instance: 7,
            role,
            address: String::new(),
            admin_address: String::new(),
            models: models.collect(),
            capacity: 8,
            protocol: (1, 1),
            state,
        };
        (id, record)
    };
    Snapshot { revision: 1, nodes: text.lines().filter(|line| !line.trim().is_empty()).map(node).collect() }
}

fn loads(of: &[(&str, u64)]) -> Loads {
    of.iter()
        .map(|(id, tokens)| (NodeId((*id).to_owned()), Load { queued_tokens: *tokens, ..Load::default() }))
        .collect()
}

fn quarantined(id: &str) -> Loads {
    BTreeMap::from([(NodeId(id.to_owned()), Load { quarantined: true, ..Load::default() })])
}

fn failing(id: &str) -> Loads {
    BTreeMap::from([(NodeId(id.to_owned()), Load { failing: true, ..Load::default() })])
}

fn wish(model: &str) -> Wish<'_> {
    Wish { model, session_tokens: 100, ..Wish::default() }
}

const TWO_AND_TWO: &str = "
    d1 drafter */tok/small
    d2 drafter chat/tok/small
    e1 expert chat/tok/big
    e2 expert chat/tok/big other/tok/huge";

#[test]
fn who_may_be_chosen() {
    let none = Loads::new();
    for (what, nodes, loads, expert, drafter) in [
        ("one of each", "d drafter chat/t/s\ne expert chat/t/b", &none, "e", "d"),
        ("not draining", "d drafter chat/t/s\ne expert chat/t/b draining\nf expert chat/t/b", &none, "f", "d"),
        ("not starting", "d drafter chat/t/s starting\nc drafter chat/t/s\ne expert chat/t/b", &none, "e", "c"),
        ("not quarantined", "d drafter chat/t/s\ne expert chat/t/b\nf expert chat/t/b", &quarantined("e"), "f", "d"),
        ("not failing", "c drafter chat/t/s\nd drafter chat/t/s\ne expert chat/t/b", &failing("c"), "e", "d"),
        (
            "not another model",
            "d drafter x/t/s\nc drafter chat/t/s\ne expert chat/t/b\nf expert x/t/b",
            &none,
            "e",
            "c",
        ),
        ("all of its tokenizer", "d drafter */t/s\nc drafter */u/s\ne expert chat/t/b", &none, "e", "d"),
        ("an expert that has a drafter", "d drafter */t/s\ne expert chat/u/b\nf expert chat/t/b", &none, "f", "d"),
    ] {
        let snapshot = snapshot(nodes);
        for chance in 0..20 {
            for key in [None, Some(chance)] {
                let pair = place(&snapshot, loads, &Wish { chance, key, ..wish("chat") }).expect(what);
                assert_eq!((pair.expert.id.0.as_str(), pair.drafter.id.0.as_str()), (expert, drafter), "{what}");
            }
        }
    }
}

#[test]
fn errors_say_what_is_missing() {
    let both = "d drafter chat/t/s\ne expert chat/u/b";
    for (what, nodes, wish, error) in [
        ("no name", TWO_AND_TWO, wish("gpt"), "model \"gpt\" is not served; served are chat, other"),
        ("nobody at all", "", wish("gpt"), "model \"gpt\" is not served; no expert is known"),
        ("no expert", "e expert chat/t/b draining", wish("chat"), "no expert takes sessions for model \"chat\""),
        ("no drafter", "e expert chat/t/b", wish("chat"), "no drafter takes sessions for model \"chat\""),
        (
            "no such fingerprint",
            TWO_AND_TWO,
            Wish { expert_fingerprint: Some("old"), ..wish("chat") },
            "no expert of fingerprint old takes sessions for model \"chat\"",
        ),
        (
            "no such drafter's fingerprint",
            "d drafter */t/s\ne expert chat/t/b",
            Wish { drafter_fingerprint: Some("old"), ..wish("chat") },
            "no drafter of fingerprint old takes sessions for model \"chat\"",
        ),
        (
            "tokenizers",
            both,
            wish("chat"),
            "drafter d and expert e of model \"chat\" have different tokenizers: t and u",
        ),
    ] {
        let error_of = place(&snapshot(nodes), &Loads::new(), &wish).expect_err(what);
        assert_eq!(error_of.to_string(), error, "{what}");
    }
}

#[test]
fn a_continuation_keeps_its_fingerprint_and_avoids_the_lost_node() {
    let snapshot = snapshot("e expert m/t/old\nf expert m/t/new\ng expert m/t/old");
    let wish = Wish { expert_fingerprint: Some("old"), exclude: BTreeSet::from([NodeId("e".to_owned())]), ..wish("m") };
    assert_eq!(pick_expert(&snapshot, &Loads::new(), &wish).unwrap().id.0, "g");
    let empty = Snapshot::default();
    let gone = pick_expert(&empty, &Loads::new(), &wish);
    assert!(matches!(gone, Err(PlacementError::NoExpert { .. })), "the model is known, its experts are away");
}

#[test]
fn a_drafter_alone_needs_no_living_expert() {
    for (what, nodes, drafter) in [
        ("declared, no expert known", "d drafter m/t/s", Some("d")),
        ("expert draining", "d drafter */t/s\ne expert m/t/b draining", Some("d")),
        ("its tokenizer unknown", "d drafter */t/s", None),
        ("another tokenizer", "d drafter m/u/s\ne expert m/t/b", None),
    ] {
        let snapshot = snapshot(nodes);
        let chosen = pick_drafter(&snapshot, &Loads::new(), &wish("m")).ok().map(|node| node.id.0.as_str());
        assert_eq!(chosen, drafter, "{what}");
    }
    // A session that goes on remembers its tokenizer: the drafter that wrote so far may be lost as well.
    let snapshot = snapshot("c drafter */u/s\nd drafter */t/s");
    let goes_on = Wish { expert_fingerprint: Some("b"), tokenizer_fingerprint: Some("t"), ..wish("m") };
    assert_eq!(pick_drafter(&snapshot, &Loads::new(), &goes_on).unwrap().id.0, "d");
}

#[test]
fn keyed_choices_meet_again_spread_and_move_little() {
    let eight: String = (0..8).map(|node| format!("e{node} expert m/t/b\n")).collect();
    let seven: String = eight.lines().skip(1).map(|line| format!("{line}\n")).collect();
    let (eight, seven) = (snapshot(&eight), snapshot(&seven));
    let mut counts = BTreeMap::new();
    let mut moved = 0;
    for key in 0..8_000 {
        let wish = Wish { key: Some(key), chance: key * 3, ..wish("m") };
        let node = pick_expert(&eight, &Loads::new(), &wish).unwrap().id.clone();
        assert_eq!(pick_expert(&eight, &Loads::new(), &Wish { chance: 5, ..wish.clone() }).unwrap().id, node);
        moved += u32::from(pick_expert(&seven, &Loads::new(), &wish).unwrap().id != node);
        *counts.entry(node).or_insert(0) += 1;
    }
    assert!(counts.values().all(|count| (880..1_120).contains(count)), "{counts:?}");
    assert_eq!(moved, counts[&NodeId("e0".to_owned())], "only the lost node's keys move");
}

#[test]
fn a_keyed_choice_is_bounded() {
    let nodes = snapshot("a expert m/t/b\nb expert m/t/b\nc expert m/t/b\nd expert m/t/b");
    let favourite = |loads: &Loads| {
        let wish = Wish { key: Some(1), ..wish("m") };
        pick_expert(&nodes, loads, &wish).unwrap().id.0.clone()
    };
    let first = favourite(&Loads::new());
    for (what, own, others, stays) in [
        ("two sessions above the least loaded are nothing", 100, 0, true),
        ("three are too many", 201, 0, false),
        ("within 1.25 of the mean", 10_000, 9_000, true),
        ("beyond it", 13_000, 9_000, false),
    ] {
        let load = |id: &'static str| (id, if id == first { own } else { others });
        let chosen = favourite(&loads(&["a", "b", "c", "d"].map(load)));
        assert_eq!(chosen == first, stays, "{what}");
    }
}

#[test]
fn a_keyless_choice_is_the_better_of_two() {
    let nodes = snapshot("a expert m/t/b\nb expert m/t/b\nc expert m/t/b");
    let loads = loads(&[("a", 0), ("b", 10), ("c", 20)]);
    let mut counts = BTreeMap::new();
    for chance in 0..3_000 {
        let node = &pick_expert(&nodes, &loads, &Wish { chance, ..wish("m") }).unwrap().id.0;
        *counts.entry(node.clone()).or_insert(0) += 1;
    }
    assert!(!counts.contains_key("c"), "the worst never wins: {counts:?}");
    assert!((1_880..2_120).contains(&counts["a"]), "two of three pairs have the best: {counts:?}");
}

#[test]
fn keys() {
    let long = vec![b'x'; 1_024];
    let longer = [long.clone(), b"more".to_vec()].concat();
    assert_eq!(placement_key("t", None, &long[1..]), None);
    assert_eq!(placement_key("t", None, &long), placement_key("t", None, &longer));
    assert_ne!(placement_key("t", None, &long), placement_key("u", None, &long));
    assert_eq!(placement_key("t", Some("c"), &long), placement_key("t", Some("c"), b"short"));
    assert_ne!(placement_key("t", Some("c"), b""), placement_key("u", Some("c"), b""));
    assert_eq!(served_models(&snapshot(TWO_AND_TWO)), ["chat", "other"]);
}

#[test]
fn a_drafter_that_could_draft_for_nobody_is_known() {
    let experts = "e1 expert big/t1/f1 small/t1/f3\ne2 expert other/t2/f2";
    for (drafter, mismatched) in [
        ("d drafter big/t1/g", false),
        ("d drafter big/t2/g", true),
        ("d drafter big/t2/g other/t2/g", false),
        ("d drafter */t2/g", false),
        ("d drafter */t3/g", true),
        ("d drafter nobodys/t3/g", false),
    ] {
        let known = snapshot(&format!("{experts}\n{drafter}"));
        let record = &known.nodes[&NodeId("d".into())];
        let error = mismatch(record, &known);
        assert_eq!(error.is_some(), mismatched, "{drafter}");
        if let Some(error) = error {
            assert!(error.to_string().contains("drafter d and expert e1"), "{error}");
        }
        assert_eq!(mismatch(record, &snapshot(drafter)), None, "no expert is known yet");
    }
}
