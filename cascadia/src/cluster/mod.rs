//! A whole cluster in one process: real gRPC on loopback, embedded membership, one copy of each model's weights.

mod models;

use std::time::Duration;

use cascadia_core::ids::NodeId;
use cascadia_drafter_node::DrafterConfig;
use cascadia_expert_node::ExpertConfig;
use cascadia_node::NodeEnv;
use cascadia_node::admin::AdminPort;
use cascadia_node::cluster::ClusterName;
use cascadia_node::config::{ReloadHandle, Reloadable};
use cascadia_node::engine_thread::Executor;
use cascadia_node::lifecycle::Shutdown;
use cascadia_node::membership::Membership;
use cascadia_node::net::{Connector, Listener, NetError};
use cascadia_node::telemetry::Telemetry;
use cascadia_router::RouterConfig;
use cascadia_router::http::{self, HttpConfig, HttpError};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

pub use models::{Make, Models};

use crate::client::{Client, ClientError};
use crate::terminal::Failure;

/// How long the nodes may take to know each other: models are loaded before, so this is registration and warm-up.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a node may take to stop before it is cut.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// What a cluster consists of.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Where the router listens; port 0 takes a free one.
    pub listen: String,
    /// Where operators ask the router; port 0 takes a free one, as the other nodes do.
    pub admin: String,
    /// Where OpenAI's clients are served; nowhere by default.
    pub http: HttpConfig,
    /// Drafter nodes to start with.
    pub drafters: usize,
    /// Expert nodes to start with.
    pub experts: usize,
    /// The router's configuration.
    pub router: RouterConfig,
    /// Every drafter's.
    pub drafter: DrafterConfig,
    /// Every expert's.
    pub expert: ExpertConfig,
    /// Where the engine loops run.
    pub drive: Executor,
    /// Gives every node a runtime of its own, as a process has, so that it can be killed.
    pub isolated: bool,
    /// Where every node's traces go.
    pub telemetry: Telemetry,
}

impl Default for ClusterConfig {
    /// Two drafters and two experts of one served model, on a free port.
    fn default() -> Self {
        let served = vec!["demo".to_owned()];
        Self {
            listen: "127.0.0.1:0".into(),
            admin: "127.0.0.1:0".into(),
            http: HttpConfig::default(),
            drafters: 2,
            experts: 2,
            router: RouterConfig::default(),
            drafter: DrafterConfig { served_model: served.clone(), ..DrafterConfig::default() },
            expert: ExpertConfig { served_model: served, ..ExpertConfig::default() },
            drive: Executor::Thread,
            isolated: false,
            telemetry: Telemetry::default(),
        }
    }
}

/// What the nodes of a running cluster were told, and how they are told otherwise.
#[derive(Clone, Debug)]
struct InForce {
    router: Reloadable<RouterConfig>,
    drafter: Reloadable<DrafterConfig>,
    expert: Reloadable<ExpertConfig>,
}

/// Replaces the configuration of a running cluster's nodes.
#[derive(Debug)]
pub struct Reconfigure {
    router: ReloadHandle<RouterConfig>,
    drafter: ReloadHandle<DrafterConfig>,
    expert: ReloadHandle<ExpertConfig>,
}

impl Reconfigure {
    /// What comes from now on, and nodes that are added, get this.
    pub fn with(&self, config: ClusterConfig) {
        self.router.with(config.router);
        self.drafter.with(config.drafter);
        self.expert.with(config.expert);
    }
}

/// Why a cluster did not come up.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Net(#[from] NetError),
    /// HTTP cannot be served.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The system gives no threads.
    #[error("the system gives no threads: {0}")]
    Runtime(std::io::Error),
    /// A node's engine cannot be made.
    #[error("{0}")]
    LoadedModel(Failure),
    /// A node ended.
    #[error("{node} ended: {reason}")]
    Node {
        /// Which.
        node: NodeId,
        /// Its sentence.
        reason: String,
    },
    /// The nodes run but do not serve.
    #[error("the cluster was not ready in time: {0}; see the log")]
    NotReady(String),
    /// The router cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A running node.
#[derive(Debug)]
struct Node {
    id: NodeId,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), String>>,
    runtime: Option<Runtime>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.stop();
        self.task.abort();
        // A runtime must not be waited for where others run.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A running cluster. Dropping it stops it at once.
pub struct LocalCluster {
    config: ClusterConfig,
    in_force: InForce,
    reconfigure: Option<Reconfigure>,
    models: Models,
    membership: Membership,
    address: String,
    http: Option<String>,
    nodes: Vec<Node>,
    started: [usize; 2],
}

impl std::fmt::Debug for LocalCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalCluster")
            .field("address", &self.address)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

impl LocalCluster {
    /// Starts a cluster and returns when its router can place sessions on all of it.
    ///
    /// # Errors
    /// When an address cannot be listened on, or a node ends, or they do not find each other.
    pub async fn start(config: ClusterConfig, models: Models) -> Result<Self, ClusterError> {
        let listener = Listener::bind(&config.listen).await?;
        let door = config.http.open().await?;
        let (router, replace_router) = Reloadable::new(config.router.clone());
        let (drafter, replace_drafter) = Reloadable::new(config.drafter.clone());
        let (expert, replace_expert) = Reloadable::new(config.expert.clone());
        let reconfigure = Reconfigure { router: replace_router, drafter: replace_drafter, expert: replace_expert };
        // Its own: whoever lists one of its nodes by mistake is of another.
        let name: ClusterName = format!("up-{}", listener.address()).parse().unwrap_or_default();
        let mut cluster = Self {
            in_force: InForce { router, drafter, expert },
            reconfigure: Some(reconfigure),
            http: door.as_ref().map(|door| door.listener.address().to_owned()),
            address: listener.address().to_owned(),
            membership: Membership::embedded().named(name),
            nodes: Vec::new(),
            started: [0, 0],
            config,
            models,
        };
        let (router, env) =
            (cluster.in_force.router.clone(), cluster.env("router-1".into(), listener, &cluster.config.admin).await?);
        cluster.spawn(env.id.clone(), env.shutdown.clone(), async move {
            cascadia_router::run(router, env, door.map(http::front)).await.map_err(|error| error.to_string())
        })?;
        for _ in 0..cluster.config.experts {
            cluster.add_expert().await?;
        }
        for _ in 0..cluster.config.drafters {
            cluster.add_drafter().await?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    /// The router's address, `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The one way to configure the running nodes otherwise; whoever asks first has it.
    pub fn reconfigure(&mut self) -> Option<Reconfigure> {
        self.reconfigure.take()
    }

    /// Where OpenAI's clients are served, `host:port`.
    #[must_use]
    pub fn http(&self) -> Option<&str> {
        self.http.as_deref()
    }

    /// The registry that all nodes share.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// A new connection to the router.
    ///
    /// # Errors
    /// When the router has gone.
    pub async fn client(&self) -> Result<Client, ClientError> {
        Client::connect(&self.address).await
    }

    /// Starts one more drafter and returns its name.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn add_drafter(&mut self) -> Result<NodeId, ClusterError> {
        self.started[0] += 1;
        let listener = Listener::bind("127.0.0.1:0").await?;
        let env = self.env(format!("drafter-{}", self.started[0]), listener, "127.0.0.1:0").await?;
        let (config, parts, drive, id) = (
            self.in_force.drafter.clone(),
            (self.models.drafter)().map_err(ClusterError::LoadedModel)?,
            self.config.drive,
            env.id.clone(),
        );
        self.spawn(id.clone(), env.shutdown.clone(), async move {
            cascadia_drafter_node::run(config, env, parts, drive).await.map_err(|error| error.to_string())
        })?;
        Ok(id)
    }

    /// Starts one more expert and returns its name.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn add_expert(&mut self) -> Result<NodeId, ClusterError> {
        self.started[1] += 1;
        let listener = Listener::bind("127.0.0.1:0").await?;
        let env = self.env(format!("expert-{}", self.started[1]), listener, "127.0.0.1:0").await?;
        let (config, parts, drive, id) = (
            self.in_force.expert.clone(),
            (self.models.expert)().map_err(ClusterError::LoadedModel)?,
            self.config.drive,
            env.id.clone(),
        );
        self.spawn(id.clone(), env.shutdown.clone(), async move {
            cascadia_expert_node::run(config, env, parts, drive).await.map_err(|error| error.to_string())
        })?;
        Ok(id)
    }

    /// Tells a node to drain; it ends when its sessions have moved or finished.
    pub fn drain(&self, id: &NodeId) {
        if let Some(node) = self.nodes.iter().find(|node| node.id == *id) {
            node.shutdown.drain();
        }
    }

    /// Ends an isolated node as if its process had died: its connections break.
    ///
    /// # Panics
    /// When the nodes are not isolated.
    pub fn kill(&mut self, id: &NodeId) {
        assert!(self.config.isolated, "only an isolated node can be killed");
        if let Some(index) = self.nodes.iter().position(|node| node.id == *id) {
            let mut node = self.nodes.swap_remove(index);
            // Before anything is told to stop: every task and connection of the node goes at once, without a word.
            if let Some(runtime) = node.runtime.take() {
                runtime.shutdown_background();
            }
        }
    }

    /// The names of the nodes that were started and not killed.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|node| node.id.clone()).collect()
    }

    /// Returns when the router can place sessions on every drafter and expert that was started.
    ///
    /// # Errors
    /// When a node ends, or they do not find each other in time.
    pub async fn ready(&mut self) -> Result<(), ClusterError> {
        let client = self.client().await?;
        let count = |prefix: &str| self.nodes.iter().filter(|node| node.id.0.starts_with(prefix)).count();
        let (drafters, experts) = (count("drafter-"), count("expert-"));
        let deadline = tokio::time::Instant::now() + READY_TIMEOUT;
        loop {
            let status = client.status().await?;
            let ready = |role: &str| {
                status.members.iter().filter(|m| m.role == role && m.state == "ready" && m.load.is_some()).count()
            };
            let (have_drafters, have_experts) = (ready("drafter"), ready("expert"));
            if have_drafters >= drafters && have_experts >= experts {
                return Ok(());
            }
            if let Some(index) = self.nodes.iter().position(|node| node.task.is_finished()) {
                let (node, reason) = ending(self.nodes.swap_remove(index)).await;
                return Err(ClusterError::Node { node, reason });
            }
            if tokio::time::Instant::now() > deadline {
                let sentence = format!(
                    "{have_drafters} of {drafters} drafters and {have_experts} of {experts} experts are after {READY_TIMEOUT:?}"
                );
                return Err(ClusterError::NotReady(sentence));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns when a node has ended by itself, with its name and reason.
    pub async fn failed(&mut self) -> (NodeId, String) {
        loop {
            if let Some(index) = self.nodes.iter().position(|node| node.task.is_finished()) {
                return ending(self.nodes.swap_remove(index)).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Lets open sessions finish, taking no new ones.
    pub async fn finish(&mut self) {
        if let Some(router) = self.nodes.iter_mut().find(|node| node.id.0.starts_with("router-")) {
            router.shutdown.drain();
            // How it ends matters to nobody any more.
            let _ = (&mut router.task).await;
            self.nodes.retain(|node| !node.id.0.starts_with("router-"));
        }
    }

    /// Stops every node, router first.
    pub async fn stop(mut self) {
        for node in &self.nodes {
            node.shutdown.stop();
        }
        let all = self.nodes.iter_mut().map(|node| async {
            // Whoever does not end in time is cut when it is dropped.
            let _ = tokio::time::timeout(STOP_TIMEOUT, &mut node.task).await;
        });
        futures::future::join_all(all).await;
    }

    async fn env(&self, id: String, listener: Listener, admin: &str) -> Result<NodeEnv, ClusterError> {
        let shutdown = Shutdown::new();
        Ok(NodeEnv {
            id: NodeId(id),
            listener,
            // A node of this process ends with it: nobody drains one from afar.
            admin: Some(AdminPort::open(Listener::bind(admin).await?, &shutdown, None)),
            connector: Connector::tcp(),
            membership: self.membership.clone(),
            shutdown,
            telemetry: self.config.telemetry.clone(),
        })
    }

    fn spawn(
        &mut self,
        id: NodeId,
        shutdown: Shutdown,
        node: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> Result<(), ClusterError> {
        let (runtime, task) = if self.config.isolated {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime =
                builder.worker_threads(1).thread_name(&id.0).enable_all().build().map_err(ClusterError::Runtime)?;
            let task = runtime.spawn(node);
            (Some(runtime), task)
        } else {
            (None, tokio::spawn(node))
        };
        self.nodes.push(Node { id, shutdown, task, runtime });
        Ok(())
    }
}

/// The name of a node that has ended, and why it did.
async fn ending(mut node: Node) -> (NodeId, String) {
    let reason = match (&mut node.task).await {
        Ok(Ok(())) => "it stopped by itself".into(),
        Ok(Err(reason)) => reason,
        Err(error) => error.to_string(),
    };
    (node.id.clone(), reason)
}
