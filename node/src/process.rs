//! The life of a model-serving process around its services: register, serve, drain, leave.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use cascadia_core::engine::EngineError;
use cascadia_core::limits;
use cascadia_core::placement::{self, NodeRecord, NodeState, Role, ServedModel};
use tokio::task::JoinSet;
use tonic::service::Routes;

use crate::Edge;
use crate::admin::Admin;
use crate::membership::{MembershipError, Registration};
use crate::metrics::{self, Registry};
use crate::net;
use crate::status::StatusBoard;
use crate::telemetry::{Tracer, keep};

/// What membership says of the node.
pub struct Identity {
    /// Its role.
    pub role: Role,
    /// What it serves.
    pub models: Vec<ServedModel>,
    /// Sessions it holds at most.
    pub capacity: u32,
    /// How long open sessions have to finish, asked when it is told to stop.
    pub grace: Box<dyn Fn() -> Duration + Send + Sync>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity of a {:?} with {} sessions at most", self.role, self.capacity)
    }
}

/// Why a process ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The node could not register.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The configuration cannot be meant.
    #[error("{0}")]
    Config(String),
    /// The model cannot serve.
    #[error("the model cannot be served: {0}")]
    Model(EngineError),
    /// The engine can do nothing any more.
    #[error("the engine is lost ({0}); the node ends so that its sessions go on elsewhere")]
    Lost(String),
    /// The listener failed.
    #[error("the node's gRPC listener failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// The task that serves the node's connections.
type ServingTask = JoinSet<Result<(), tonic::transport::Error>>;

/// A node's process.
#[derive(Debug)]
pub struct Process {
    edge: Edge,
    board: StatusBoard,
    instance: u64,
    tracer: Tracer,
}

impl Process {
    /// A process at its edge; `progress` counts the engine's finished layers.
    #[must_use]
    pub fn new(edge: Edge, role: Role, progress: Arc<AtomicU64>) -> Self {
        let (instance, tracer) = (edge.instance(), edge.tracer(role));
        Self { board: StatusBoard::new(instance, progress, edge.membership.cluster()), edge, instance, tracer }
    }

    /// What the node records its spans with.
    #[must_use]
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// What the node says about itself.
    #[must_use]
    pub fn board(&self) -> &StatusBoard {
        &self.board
    }

    /// Where the node meets the others.
    #[must_use]
    pub fn edge(&self) -> &Edge {
        &self.edge
    }

    /// Serves `routes`, and `metrics` with what every node says of itself, until told to stop: ready, then draining while open sessions finish, then gone.
    ///
    /// # Errors
    /// When the node cannot register, its listener fails, or its engine is lost.
    pub async fn serve(self, identity: Identity, routes: Routes, mut metrics: Registry) -> Result<(), ProcessError> {
        let Self { mut edge, board, instance, tracer } = self;
        let admin_address = edge.admin.as_ref().map(|listener| listener.address().to_owned()).unwrap_or_default();
        let mut record = NodeRecord {
            id: edge.id.clone(),
            instance,
            role: identity.role,
            address: edge.listener.address().to_owned(),
            admin_address,
            models: identity.models,
            capacity: identity.capacity,
            protocol: cascadia_proto::PROTOCOL,
            state: NodeState::Ready,
        };
        let sessions = board.clone();
        let ready = ready(&board, &edge, record.clone());
        metrics::node(&mut metrics, &edge.id, identity.role, &board, ready.clone());
        metrics::sessions(
            &mut metrics,
            identity.role,
            move || identity.capacity as usize,
            move || sessions.load().sessions,
        );
        metrics::board(&mut metrics, identity.role, &board);
        let shutdown = edge.shutdown.clone();
        // Dropped with this future: a node that is aborted takes its connections with it.
        let mut serving: ServingTask = JoinSet::new();
        let admin = edge.admin.take();
        if let Some(admin) = &admin {
            let (live, status) = (board.clone(), board.clone());
            admin.show(Admin {
                live: Arc::new(move || live.live()),
                ready,
                status: Arc::new(move || status.json()),
                metrics: metrics.page(),
                targets: None,
            });
        }
        // The health service answers on the serving port as well, where gRPC clients look for it.
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        let routes =
            routes.add_service(board.service()).add_service(keep::service(&tracer)).add_service(health_service);
        let stop = shutdown.clone();
        serving.spawn(async move { net::serve(routes, edge.listener, &stop).await });
        let registration = tokio::select! {
            registered = edge.membership.register(record.clone()) => registered?,
            // Told to go before it was there: nothing is open.
            () = shutdown.draining() => return Ok(()),
            reason = board.lost() => return Err(ProcessError::Lost(reason)),
        };
        board.set_state(NodeState::Ready);
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        tracing::info!(node = %edge.id, address = %record.address, role = ?record.role, "serving");

        tokio::select! {
            () = shutdown.draining() => {}
            reason = board.lost() => return Err(cut(reason, serving, registration).await),
            Some(ended) = serving.join_next() => {
                registration.withdraw().await;
                return ended.unwrap_or(Ok(())).map_err(ProcessError::from);
            }
        }
        tracing::info!(node = %edge.id, "draining: no new sessions, open ones finish or move");
        board.set_state(NodeState::Draining);
        health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        record.state = NodeState::Draining;
        registration.update(record).await;
        let finished = async {
            // One status period, so that every chooser has seen the state before the node is idle by accident.
            tokio::time::sleep(limits::WATCH_PERIOD * 2).await;
            while board.is_busy() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = finished => {}
            reason = board.lost() => return Err(cut(reason, serving, registration).await),
            () = shutdown.stopped() => {}
            () = tokio::time::sleep((identity.grace)()) => tracing::warn!(node = %edge.id, "grace is over, sessions still open are cut"),
        }
        shutdown.stop();
        registration.withdraw().await;
        board.close();
        while let Some(ended) = serving.join_next().await {
            ended.unwrap_or(Ok(()))?;
        }
        if let Some(admin) = admin {
            admin.finish().await;
        }
        tracing::info!(node = %edge.id, "stopped");
        Ok(())
    }
}

/// Ends a node whose engine is lost as the death of its process would: connections break, and whoever held one moves its
/// sessions.
async fn cut(reason: String, serving: ServingTask, registration: Registration) -> ProcessError {
    tracing::error!(%reason, "the engine is lost; the node ends so that its sessions go on elsewhere");
    drop(serving);
    registration.withdraw().await;
    ProcessError::Lost(reason)
}

/// Whether the node takes sessions: what its board says, and for a drafter that some expert could take them with it.
fn ready(board: &StatusBoard, edge: &Edge, record: NodeRecord) -> metrics::Ready {
    let (board, snapshots) = (board.clone(), edge.membership.snapshots());
    Arc::new(move || {
        board.ready()?;
        let wrong = (record.role == Role::Drafter).then(|| placement::mismatch(&record, &snapshots.borrow())).flatten();
        wrong.map_or(Ok(()), |wrong| Err(format!("{wrong}; give both a model of one tokenizer, or name other models")))
    })
}
