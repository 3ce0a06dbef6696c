//! What all sessions of a router share, and what it says of itself.

use std::sync::Arc;

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{Role, served_models};
use cascadia_node::NodeEnv;
use cascadia_node::config::Reloadable;
use cascadia_node::keep::KeepNotifier;
use cascadia_node::lifecycle::Shutdown;
use cascadia_node::loads::LoadWatch;
use cascadia_node::metrics::Registry;
use cascadia_node::net::Connector;
use cascadia_node::process::Process;

use crate::admission::Admission;
use crate::client::OpenStreams;
use crate::cluster_health::ClusterHealth;
use crate::config::RouterConfig;
use crate::metrics::Metrics;
use crate::spans::Recorder;

/// What all sessions of a router share.
#[derive(Debug)]
pub struct Router {
    /// Its name.
    pub id: NodeId,
    /// What the operator set; each request is admitted under what is in force when it comes.
    pub config: Reloadable<RouterConfig>,
    /// Admission.
    pub admission: Arc<Admission>,
    /// Who is there and how busy.
    pub loads: LoadWatch,
    /// What sessions watch together.
    pub cluster_health: ClusterHealth,
    /// The way to owners.
    pub connector: Connector,
    /// What is counted.
    pub metrics: Metrics,
    /// What requests record their spans with.
    pub spans: Recorder,
    /// Whether prompts and answers are logged.
    pub log_prompts: bool,
    /// The streams clients still read, and the fronts that still have connections.
    pub streams: OpenStreams,
    /// How the router is told to stop.
    pub shutdown: Shutdown,
}

impl Router {
    /// A router at its edge, under this configuration; `registry` takes what it counts.
    #[must_use]
    pub fn new(config: Reloadable<RouterConfig>, process: &Process, registry: &mut Registry) -> Self {
        let NodeEnv { id, connector, membership, shutdown, telemetry, .. } = process.env();
        let watcher = format!("router:{id}");
        let metrics = Metrics::register(registry, config.now().metrics_tenants);
        let tracer = process.tracer();
        Self {
            admission: Arc::default(),
            config,
            loads: LoadWatch::spawn(membership, connector, &watcher, &[Role::Drafter, Role::Expert], shutdown),
            cluster_health: ClusterHealth::new(membership.recovers_within()),
            spans: Recorder::new(tracer.clone(), KeepNotifier::spawn(tracer, connector.clone())),
            log_prompts: telemetry.log_prompts,
            connector: connector.clone(),
            metrics,
            streams: OpenStreams::default(),
            shutdown: shutdown.clone(),
            id: id.clone(),
        }
    }

    /// The names that a request may ask for: what is served, and what was lately.
    #[must_use]
    pub fn served(&self) -> Vec<String> {
        let mut served = served_models(&self.loads.snapshot());
        served.extend(self.cluster_health.known_models());
        served.sort();
        served.dedup();
        served
    }

    /// Whether the router should get clients.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn ready(&self) -> Result<(), String> {
        if self.shutdown.is_draining() {
            return Err("draining: open streams finish, new ones belong to another router".to_owned());
        }
        if !self.cluster_health.was_servable() {
            return Err("no expert has been ready yet: start one, with the same membership".to_owned());
        }
        Ok(())
    }
}
