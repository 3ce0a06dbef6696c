//! A node's record as JSON: the value of its key in etcd, and its line in a static list.
//!
//! Fields are only ever added. A value's reader takes what it does not know for a later release's; a list is written by hand,
//! and what its reader does not know is a mistake.

use std::collections::BTreeMap;

use cascadia_core::ids::NodeId;
use cascadia_core::limits;
use cascadia_core::placement::{NodeRecord, NodeState, Role, ServedModel};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// What a value and a line have in common.
#[derive(Deserialize, Serialize)]
struct Described {
    #[serde(with = "word")]
    role: Role,
    address: String,
    #[serde(default)]
    admin_address: String,
    #[serde(default)]
    models: Vec<Model>,
    #[serde(default = "capacity")]
    capacity: u32,
    #[serde(default = "protocol")]
    protocol: (u32, u32),
}

#[derive(Deserialize, Serialize)]
struct Model {
    /// Empty at a drafter of all names.
    #[serde(default)]
    name: String,
    fingerprint: String,
    tokenizer_fingerprint: String,
    #[serde(default)]
    row_exact: bool,
    #[serde(flatten, skip_serializing)]
    unknown: BTreeMap<String, IgnoredAny>,
}

/// The value of a key, whose name is the node's.
#[derive(Deserialize, Serialize)]
struct Value {
    instance: u64,
    #[serde(flatten)]
    node: Described,
    #[serde(with = "word")]
    state: NodeState,
    /// Releases before there were names write none.
    #[serde(default)]
    cluster: String,
}

/// A node of a list.
#[derive(Deserialize, Serialize)]
struct Line {
    id: String,
    #[serde(flatten)]
    node: Described,
    #[serde(flatten, skip_serializing)]
    unknown: BTreeMap<String, IgnoredAny>,
}

/// Words of `core`, which knows no serialisation.
mod word {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<T: Display, S: Serializer>(word: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(word)
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn capacity() -> u32 {
    limits::MAX_SESSIONS as u32
}

fn protocol() -> (u32, u32) {
    cascadia_proto::PROTOCOL
}

impl Described {
    fn of(record: NodeRecord) -> Self {
        let model = |model: ServedModel| Model {
            name: model.name,
            fingerprint: model.fingerprint,
            tokenizer_fingerprint: model.tokenizer_fingerprint,
            row_exact: model.row_exact,
            unknown: BTreeMap::new(),
        };
        Self {
            role: record.role,
            address: record.address,
            admin_address: record.admin_address,
            models: record.models.into_iter().map(model).collect(),
            capacity: record.capacity,
            protocol: record.protocol,
        }
    }

    fn record(self, id: String, instance: u64, state: NodeState) -> NodeRecord {
        let model = |model: Model| ServedModel {
            name: model.name,
            fingerprint: model.fingerprint,
            tokenizer_fingerprint: model.tokenizer_fingerprint,
            row_exact: model.row_exact,
        };
        NodeRecord {
            id: NodeId(id),
            instance,
            role: self.role,
            address: self.address,
            admin_address: self.admin_address,
            models: self.models.into_iter().map(model).collect(),
            capacity: self.capacity,
            protocol: self.protocol,
            state,
        }
    }
}

/// The value of a node's key; the key has its name.
pub(super) fn encode(record: &NodeRecord, cluster: &str) -> String {
    let (instance, state) = (record.instance, record.state);
    let value = Value { instance, node: Described::of(record.clone()), state, cluster: cluster.to_owned() };
    serde_json::to_string(&value).expect("strings and numbers are JSON")
}

/// The record of a value, and the cluster that it names.
pub(super) fn decode(id: &str, value: &[u8]) -> Result<(NodeRecord, String), serde_json::Error> {
    let value: Value = serde_json::from_slice(value)?;
    Ok((value.node.record(id.to_owned(), value.instance, value.state), value.cluster))
}

/// The node's line of a static list. Which start of it, and in what state, only the node itself can say.
///
/// # Panics
/// Never: strings and numbers are JSON.
#[must_use]
pub fn line(record: NodeRecord) -> String {
    let line = Line { id: record.id.0.clone(), node: Described::of(record), unknown: BTreeMap::new() };
    serde_json::to_string(&line).expect("strings and numbers are JSON")
}

/// The nodes of a static list, a JSON array of lines.
///
/// # Errors
/// What is wrong with it: not a list, a field that is missing, of the wrong type or unknown, a name given twice.
pub fn list(text: &str) -> Result<Vec<NodeRecord>, String> {
    let lines: Vec<Line> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    for line in &lines {
        let of_models = line.node.models.iter().flat_map(|model| model.unknown.keys());
        if let Some(unknown) = line.unknown.keys().chain(of_models).next() {
            return Err(format!("{:?} has the unknown field `{unknown}`", line.id));
        }
    }
    let mut names: Vec<&str> = lines.iter().map(|line| line.id.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("{:?} is listed twice", twice[0]));
    }
    Ok(lines.into_iter().map(|line| line.node.record(line.id, 0, NodeState::Ready)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::tests::record;

    /// As the release before cluster names wrote them, byte for byte.
    const RECORDED: [(&str, Role, NodeState); 3] = [
        (
            r#"{"instance":18446744073709551614,"role":"router","address":"127.0.0.1:7","admin_address":"","models":[{"name":"demo","fingerprint":"Router-f","tokenizer_fingerprint":"t","row_exact":true}],"capacity":8,"protocol":[1,1],"state":"starting"}"#,
            Role::Router,
            NodeState::Starting,
        ),
        (
            r#"{"instance":18446744073709551614,"role":"drafter","address":"127.0.0.1:7","admin_address":"","models":[{"name":"demo","fingerprint":"Drafter-f","tokenizer_fingerprint":"t","row_exact":true}],"capacity":8,"protocol":[1,1],"state":"ready"}"#,
            Role::Drafter,
            NodeState::Ready,
        ),
        (
            r#"{"instance":18446744073709551614,"role":"expert","address":"127.0.0.1:7","admin_address":"","models":[{"name":"demo","fingerprint":"Expert-f","tokenizer_fingerprint":"t","row_exact":true}],"capacity":8,"protocol":[1,1],"state":"draining"}"#,
            Role::Expert,
            NodeState::Draining,
        ),
    ];

    #[test]
    fn what_the_last_release_wrote_is_read() {
        for (value, role, state) in RECORDED {
            let expected = NodeRecord { state, ..record("a", role) };
            assert_eq!(decode("a", value.as_bytes()).unwrap(), (expected, String::new()));
        }
    }

    #[test]
    fn the_last_release_reads_what_this_one_writes() {
        // Its reader ignores keys that it does not know, so all of its own must be there as they were.
        for (value, role, state) in RECORDED {
            let written = encode(&NodeRecord { state, ..record("a", role) }, "blue");
            let mut written: serde_json::Value = serde_json::from_str(&written).unwrap();
            let added = written.as_object_mut().unwrap().remove("cluster");
            assert_eq!(added, Some("blue".into()));
            assert_eq!(written, serde_json::from_str::<serde_json::Value>(value).unwrap());
        }
    }

    #[test]
    fn records_come_back() {
        for (role, state) in Role::ALL.into_iter().zip(NodeState::ALL) {
            let record = NodeRecord { state, ..record("a/b c", role) };
            let value = encode(&record, "blue");
            assert_eq!(decode(&record.id.0, value.as_bytes()).unwrap(), (record, "blue".to_owned()));
        }
    }

    #[test]
    fn later_values_may_say_more() {
        let value = r#"{"instance":5,"role":"expert","address":"h:1","models":[{"name":"m","fingerprint":"f",
            "tokenizer_fingerprint":"t","later":1}],"capacity":2,"protocol":[1,3],"state":"ready","zone":"b"}"#;
        let (record, _) = decode("e", value.as_bytes()).unwrap();
        assert_eq!((record.protocol, record.models[0].row_exact), ((1, 3), false));
        assert!(decode("e", b"{}").is_err());
    }

    #[test]
    fn a_line_of_a_list_comes_back() {
        let node = |id: &str| NodeRecord { instance: 0, ..record(id, Role::Expert) };
        let nodes = list(&format!("[{}, {}]", line(node("a")), line(node("b")))).unwrap();
        assert_eq!(nodes, [node("a"), node("b")]);
        // As the last release printed it: its reader takes no other field.
        let printed = r#"{"id":"a","role":"expert","address":"127.0.0.1:7","admin_address":"","models":[{"name":"demo","fingerprint":"Expert-f","tokenizer_fingerprint":"t","row_exact":true}],"capacity":8,"protocol":[1,1]}"#;
        assert_eq!(line(node("a")), printed);
    }

    #[test]
    fn short_lines_will_do() {
        let nodes = list(r#"[{"id": "r", "role": "router", "address": "h:1"}]"#).unwrap();
        assert_eq!((nodes[0].role, nodes[0].protocol), (Role::Router, cascadia_proto::PROTOCOL));
    }

    #[test]
    fn what_is_wrong_with_a_list_is_said() {
        let of_model = r#"{"fingerprint": "f", "tokenizer_fingerprint": "t", "row_exat": true}"#;
        let of_model = format!(r#"[{{"id": "e", "role": "expert", "address": "h:1", "models": [{of_model}]}}]"#);
        let twice = format!("[{0}, {0}]", line(record("a", Role::Expert)));
        for (text, word) in [
            ("{}", "sequence"),
            (r#"[{"id": "r", "role": "boss", "address": "h:1"}]"#, "\"boss\" is none of router, drafter, expert"),
            (
                r#"[{"id": "r", "role": "router", "address": "h:1", "adress": 1}]"#,
                "\"r\" has the unknown field `adress`",
            ),
            (of_model.as_str(), "row_exat"),
            (r#"[{"id": "r", "address": "h:1"}]"#, "role"),
            (twice.as_str(), "listed twice"),
        ] {
            let reason = list(text).expect_err(text);
            assert!(reason.contains(word), "{reason}");
        }
    }
}
