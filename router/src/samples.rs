//! What the tests of several modules place and list.

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{NodeRecord, NodeState, Role, ServedModel};

/// A ready node that serves the model `m`, with its role for a fingerprint.
pub fn node(id: &str, role: Role) -> NodeRecord {
    let model = ServedModel {
        name: "m".into(),
        fingerprint: format!("{role:?}"),
        tokenizer_fingerprint: "t".into(),
        row_exact: true,
    };
    NodeRecord {
        id: NodeId(id.into()),
        instance: 1,
        role,
        address: format!("{id}:1"),
        admin_address: String::new(),
        models: vec![model],
        capacity: 8,
        protocol: (1, 1),
        state: NodeState::Ready,
    }
}
