//! What each process does alike: the way in and out, who else is there, how it is told to stop, what it says about itself.
//!
//! [`net`] listener and connections, over `accept`, `connections` and [`descriptors`]: who is let in, and how many ·
//! [`membership`] who is there, [`cluster`] in the cluster of which name · [`loads`] how busy they are · [`status`] what this
//! node says about itself · [`lifecycle`] running, draining, stopped · [`process`] the life of a process, from its first
//! connection to its last · [`admin`] the operator's port, [`token`] what changes need there and [`proving`] how it is
//! proven · [`telemetry`] logs and traces, [`keep`] whose are wanted · [`metrics`] what all nodes' metrics share ·
//! [`config`] the configuration in force.
//!
//! With an engine: [`engine_config`] what an operator sets of it · [`loaded_model`] a loaded model · [`engine_thread`], [`sessions`],
//! [`owner`], [`session_service`] what drafters and experts do alike · [`evacuation`] when sessions go elsewhere ·
//! [`engine_metrics`], [`engine_life`] what they count, and how they live.
//!
//! Absent on purpose: any decision about tokens or placement (those are in `cascadia-core`), and ambient chance but in
//! [`proving`]'s nonces.

#![forbid(unsafe_code)]

mod accept;
pub mod admin;
pub mod channel_pool;
pub mod cluster;
pub mod config;
mod connections;
pub mod descriptors;
pub mod engine_config;
pub mod engine_life;
pub mod engine_metrics;
pub mod engine_thread;
pub mod evacuation;
mod jitter;
pub mod keep;
pub mod lifecycle;
pub mod loaded_model;
pub mod loads;
pub mod membership;
pub mod metrics;
pub mod net;
pub mod owner;
pub mod process;
mod prompts;
pub mod proving;
pub mod session_service;
pub mod sessions;
pub mod status;
pub mod telemetry;
pub mod token;

use cascadia_core::history::hash_bytes;
use cascadia_core::ids::NodeId;
use cascadia_core::placement::Role;

/// Names a start of a node at a listener, as [`NodeEnv::instance`] has it.
#[must_use]
pub fn instance(listener: &net::Listener, id: &NodeId) -> u64 {
    hash_bytes(hash_bytes(listener.origin(), listener.address().as_bytes()), id.0.as_bytes())
}

/// Where a node meets the world: what every node's `run` is handed.
#[derive(Debug)]
pub struct NodeEnv {
    /// The node's name in membership.
    pub id: NodeId,
    /// Where it serves.
    pub listener: net::Listener,
    /// Where operators ask it; absent in tests that do not.
    pub admin: Option<admin::AdminPort>,
    /// How it reaches others.
    pub connector: net::Connector,
    /// Who is there.
    pub membership: membership::Membership,
    /// How it is told to stop.
    pub shutdown: lifecycle::Shutdown,
    /// Where its traces go.
    pub telemetry: telemetry::Telemetry,
}

impl NodeEnv {
    /// What the admin port says while the model loads.
    #[must_use]
    pub fn loading(&self) -> admin::Loading {
        self.admin.as_ref().map(admin::AdminPort::loading).unwrap_or_default()
    }

    /// Names this start of the node: differs from start to start, but not from run to run of a simulation.
    #[must_use]
    pub fn instance(&self) -> u64 {
        instance(&self.listener, &self.id)
    }

    /// What the node records its spans with.
    #[must_use]
    pub fn tracer(&self, role: Role) -> telemetry::Tracer {
        self.telemetry.tracer(role, &self.id, self.instance())
    }
}
