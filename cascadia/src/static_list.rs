//! The file of `--static`: all nodes of a cluster without etcd.

use std::path::Path;

use cascadia_core::ids::NodeId;
use cascadia_core::limits;
use cascadia_core::placement::{NodeRecord, NodeState, Role, ServedModel};
use cascadia_node::membership::record;

use crate::Failure;

/// A node as it describes itself, on one line.
#[must_use]
pub fn line(id: NodeId, role: Role, address: String, admin_address: String, models: Vec<ServedModel>) -> String {
    let (capacity, protocol) = (limits::MAX_SESSIONS as u32, cascadia_proto::PROTOCOL);
    let state = NodeState::Ready;
    record::line(NodeRecord { id, instance: 0, role, address, admin_address, models, capacity, protocol, state })
}

/// Reads a list.
///
/// # Errors
/// When the file is not there or not a list of nodes with names of their own.
pub fn read(file: &Path) -> Result<Vec<NodeRecord>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("cannot read the static list {}: {error}", file.display()))?;
    record::list(&text).map_err(|reason| {
        format!("{} is no static list ({reason}); it is a JSON array of what --print-record prints", file.display())
            .into()
    })
}
