//! What every node says of itself: who it is, where it is in its life, how many sessions it holds.

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{NodeState, Role};
use cascadia_proto::convert::{role_name, state_name};

use super::Registry;
use crate::status::StatusBoard;

/// Whether a node takes work, or one line why not.
pub type Ready = std::sync::Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Registers who the node is and where it is in its life.
pub fn node(registry: &mut Registry, id: &NodeId, role: Role, board: &StatusBoard, ready: Ready) {
    let who = [id.0.clone(), role_name(role).to_owned(), env!("CARGO_PKG_VERSION").to_owned()];
    registry.reads("node_info", "Always 1; who answers here", ["node", "role", "version"], move || {
        vec![(who.clone(), 1.0)]
    });
    registry.read("node_ready", "Whether /ready says yes, 0 or 1", role, move || f64::from(u8::from(ready().is_ok())));
    let board = board.clone();
    registry.reads("node_state", "1 for the state the node is in, 0 for the others", ["role", "state"], move || {
        let now = board.state();
        let states = [NodeState::Starting, NodeState::Ready, NodeState::Draining];
        states
            .map(|state| {
                ([role_name(role).to_owned(), state_name(state).to_owned()], f64::from(u8::from(state == now)))
            })
            .to_vec()
    });
}

/// Registers how many sessions the node holds, of how many at most.
pub fn sessions(
    registry: &mut Registry,
    role: Role,
    limit: impl Fn() -> usize + Send + Sync + 'static,
    open: impl Fn() -> usize + Send + Sync + 'static,
) {
    registry.read("sessions", "Open sessions", role, move || open() as f64);
    registry.read("sessions_limit", "Sessions that the node holds at most", role, move || limit() as f64);
}
