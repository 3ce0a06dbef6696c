//! The file of `--static`: all nodes of a cluster without etcd.

use std::path::Path;

use cascadia_core::ids::NodeId;
use cascadia_core::limits;
use cascadia_core::placement::{NodeRecord, NodeState, Role, ServedModel};
use serde::{Deserialize, Serialize};

use crate::Failure;

/// One node of the list.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    id: String,
    role: RoleName,
    address: String,
    #[serde(default)]
    admin_address: String,
    #[serde(default)]
    models: Vec<EntryModel>,
    #[serde(default = "sessions")]
    capacity: u32,
    #[serde(default = "protocol")]
    protocol: (u32, u32),
}

/// What a node of the list serves.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct EntryModel {
    /// The name clients ask for; empty at a drafter of all names.
    #[serde(default)]
    pub name: String,
    /// Hash of weights, dtype and arithmetic.
    pub fingerprint: String,
    /// Hash of the tokenizer.
    pub tokenizer_fingerprint: String,
    /// Whether the arithmetic is row-exact.
    #[serde(default)]
    pub row_exact: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum RoleName {
    Router,
    Drafter,
    Expert,
}

fn sessions() -> u32 {
    limits::MAX_SESSIONS as u32
}

fn protocol() -> (u32, u32) {
    cascadia_proto::PROTOCOL
}

impl Entry {
    /// A node as it describes itself.
    #[must_use]
    pub fn new(id: NodeId, role: Role, address: String, admin_address: String, served: Vec<ServedModel>) -> Self {
        let models = served.into_iter().map(|model| EntryModel {
            name: model.name,
            fingerprint: model.fingerprint,
            tokenizer_fingerprint: model.tokenizer_fingerprint,
            row_exact: model.row_exact,
        });
        let role = match role {
            Role::Router => RoleName::Router,
            Role::Drafter => RoleName::Drafter,
            Role::Expert => RoleName::Expert,
        };
        Self {
            id: id.0,
            role,
            address,
            admin_address,
            models: models.collect(),
            capacity: sessions(),
            protocol: protocol(),
        }
    }

    /// The entry on one line.
    ///
    /// # Panics
    /// Never: every field is a number or a string.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings")
    }

    fn record(self) -> NodeRecord {
        let served = |model: EntryModel| ServedModel {
            name: model.name,
            fingerprint: model.fingerprint,
            tokenizer_fingerprint: model.tokenizer_fingerprint,
            row_exact: model.row_exact,
        };
        NodeRecord {
            id: NodeId(self.id),
            // Which start it is only the node itself can say.
            instance: 0,
            role: match self.role {
                RoleName::Router => Role::Router,
                RoleName::Drafter => Role::Drafter,
                RoleName::Expert => Role::Expert,
            },
            address: self.address,
            admin_address: self.admin_address,
            models: self.models.into_iter().map(served).collect(),
            capacity: self.capacity,
            protocol: self.protocol,
            state: NodeState::Ready,
        }
    }
}

/// Reads a list.
///
/// # Errors
/// When the file is not there or not a list of nodes with names of their own.
pub fn read(file: &Path) -> Result<Vec<NodeRecord>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("cannot read the static list {}: {error}", file.display()))?;
    parse(&text).map_err(|reason| {
        format!("{} is no static list ({reason}); it is a JSON array of what --print-record prints", file.display())
            .into()
    })
}

fn parse(text: &str) -> Result<Vec<NodeRecord>, String> {
    let entries: Vec<Entry> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("{:?} is listed twice", twice[0]));
    }
    Ok(entries.into_iter().map(Entry::record).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> Entry {
        let model = ServedModel {
            name: "m".into(),
            fingerprint: "f".into(),
            tokenizer_fingerprint: "t".into(),
            row_exact: true,
        };
        Entry::new(NodeId(id.into()), Role::Expert, "10.0.0.1:1".into(), "10.0.0.1:2".into(), vec![model])
    }

    #[test]
    fn what_is_printed_can_be_read() {
        let list = parse(&format!("[{}, {}]", entry("a").to_json(), entry("b").to_json())).expect("a list");
        assert_eq!(list.len(), 2);
        assert_eq!((list[1].id.0.as_str(), list[1].role, list[1].address.as_str()), ("b", Role::Expert, "10.0.0.1:1"));
        assert!(list[0].models[0].row_exact);
    }

    #[test]
    fn short_entries_will_do() {
        let list = parse(r#"[{"id": "r", "role": "router", "address": "h:1"}]"#).expect("a list");
        assert_eq!((list[0].role, list[0].protocol), (Role::Router, cascadia_proto::PROTOCOL));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let twice = format!("[{0}, {0}]", entry("a").to_json());
        for (text, word) in [
            ("{}", "sequence"),
            (r#"[{"id": "r", "role": "boss", "address": "h:1"}]"#, "boss"),
            (r#"[{"id": "r", "role": "router", "address": "h:1", "adress": 1}]"#, "adress"),
            (twice.as_str(), "listed twice"),
        ] {
            let reason = parse(text).expect_err(text);
            assert!(reason.contains(word), "{reason}");
        }
    }
}
