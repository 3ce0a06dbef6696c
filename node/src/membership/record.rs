//! A node's record as JSON, the value of its key. Fields are only ever added; unknown ones are ignored.

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{NodeRecord, NodeState, Role, ServedModel};
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
struct Json {
    instance: u64,
    role: RoleName,
    address: String,
    #[serde(default)]
    admin_address: String,
    models: Vec<Model>,
    capacity: u32,
    protocol: (u32, u32),
    state: StateName,
}

#[derive(Deserialize, Serialize)]
struct Model {
    name: String,
    fingerprint: String,
    tokenizer_fingerprint: String,
    #[serde(default)]
    row_exact: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum RoleName {
    Router,
    Drafter,
    Expert,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum StateName {
    Starting,
    Ready,
    Draining,
}

/// The record's value; its name is the key's.
pub(super) fn encode(record: &NodeRecord) -> String {
    let model = |model: &ServedModel| Model {
        name: model.name.clone(),
        fingerprint: model.fingerprint.clone(),
        tokenizer_fingerprint: model.tokenizer_fingerprint.clone(),
        row_exact: model.row_exact,
    };
    let json = Json {
        instance: record.instance,
        role: match record.role {
            Role::Router => RoleName::Router,
            Role::Drafter => RoleName::Drafter,
            Role::Expert => RoleName::Expert,
        },
        address: record.address.clone(),
        admin_address: record.admin_address.clone(),
        models: record.models.iter().map(model).collect(),
        capacity: record.capacity,
        protocol: record.protocol,
        state: match record.state {
            NodeState::Starting => StateName::Starting,
            NodeState::Ready => StateName::Ready,
            NodeState::Draining => StateName::Draining,
        },
    };
    serde_json::to_string(&json).expect("strings and numbers are JSON")
}

/// The record of a value.
pub(super) fn decode(id: &str, value: &[u8]) -> Result<NodeRecord, serde_json::Error> {
    let json: Json = serde_json::from_slice(value)?;
    let model = |model: Model| ServedModel {
        name: model.name,
        fingerprint: model.fingerprint,
        tokenizer_fingerprint: model.tokenizer_fingerprint,
        row_exact: model.row_exact,
    };
    Ok(NodeRecord {
        id: NodeId(id.to_owned()),
        instance: json.instance,
        role: match json.role {
            RoleName::Router => Role::Router,
            RoleName::Drafter => Role::Drafter,
            RoleName::Expert => Role::Expert,
        },
        address: json.address,
        admin_address: json.admin_address,
        models: json.models.into_iter().map(model).collect(),
        capacity: json.capacity,
        protocol: json.protocol,
        state: match json.state {
            StateName::Starting => NodeState::Starting,
            StateName::Ready => NodeState::Ready,
            StateName::Draining => NodeState::Draining,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::tests::record;

    #[test]
    fn records_come_back() {
        for (role, state) in [
            (Role::Router, NodeState::Starting),
            (Role::Drafter, NodeState::Ready),
            (Role::Expert, NodeState::Draining),
        ] {
            let record = NodeRecord { state, ..record("a/b c", role) };
            assert_eq!(decode(&record.id.0, encode(&record).as_bytes()).unwrap(), record);
        }
    }

    #[test]
    fn values_of_this_release_stay_readable_and_later_ones_may_say_more() {
        let value = r#"{"instance":5,"role":"expert","address":"h:1","models":[{"name":"m","fingerprint":"f",
            "tokenizer_fingerprint":"t","later":1}],"capacity":2,"protocol":[1,3],"state":"ready","zone":"b"}"#;
        let record = decode("e", value.as_bytes()).unwrap();
        assert_eq!((record.protocol, record.models[0].row_exact), ((1, 3), false));
        assert!(decode("e", b"{}").is_err());
    }
}
