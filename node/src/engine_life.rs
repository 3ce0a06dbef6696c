//! The life of a drafter's or an expert's process: found by its entry in the member list, and gone when its sessions are.

use std::sync::Arc;
use std::time::Duration;

use cascadia_core::engine::EngineError;
use cascadia_core::ids::NodeId;
use cascadia_core::limits;
use cascadia_core::placement::{self, NodeRecord, NodeState, Role, ServedModel};
use tonic::service::Routes;

use crate::admin::Admin;
use crate::engine_metrics;
use crate::keep;
use crate::lifecycle::Shutdown;
use crate::membership::MembershipError;
use crate::metrics::{self, Registry};
use crate::net;
use crate::process::{Life, Process, ProcessError, Services, Stage};
use crate::status::StatusBoard;

/// What membership says of a node with an engine.
pub struct Identity {
    /// What it serves.
    pub models: Vec<ServedModel>,
    /// Sessions it holds at most.
    pub capacity: u32,
    /// How long open sessions have to finish, asked when it is told to stop.
    pub grace: Grace,
}

/// How long open sessions have to finish.
type Grace = Box<dyn Fn() -> Duration + Send + Sync>;

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity of a node with {} sessions at most", self.capacity)
    }
}

/// Why a node with an engine ended badly.
#[derive(Debug, thiserror::Error)]
pub enum EngineNodeError {
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

impl From<ProcessError<String>> for EngineNodeError {
    fn from(error: ProcessError<String>) -> Self {
        match error {
            ProcessError::Membership(error) => Self::Membership(error),
            ProcessError::Lost(reason) => Self::Lost(reason),
            ProcessError::Serve(error) => Self::Serve(error),
        }
    }
}

/// Serves `routes`, and `metrics` with what every node says of itself, until told to stop: ready, then draining while open
/// sessions finish, then gone.
///
/// # Errors
/// When the node cannot register, its listener fails, or its engine is lost.
pub async fn serve(
    process: Process,
    identity: Identity,
    routes: Routes,
    mut metrics: Registry,
) -> Result<(), EngineNodeError> {
    let Identity { models, capacity, grace } = identity;
    let (env, board, role) = (process.env(), process.board().clone(), process.role());
    let record = process.record(models.clone(), capacity);
    let life = EngineLife {
        id: env.id.clone(),
        role,
        address: record.address.clone(),
        board: board.clone(),
        shutdown: env.shutdown.clone(),
        grace,
    };
    let ready = ready(&process, record);
    metrics::node(&mut metrics, &env.id, role, &board, ready.clone());
    let sessions = board.clone();
    metrics::sessions(&mut metrics, role, move || capacity as usize, move || sessions.load().sessions);
    engine_metrics::board(&mut metrics, role, &board);
    let status = board.clone();
    let pages = Admin {
        live: Arc::new(move || board.live()),
        ready,
        status: Arc::new(move || status.json()),
        metrics: metrics.page(),
        targets: None,
    };
    let routes = routes.add_service(keep::service(process.tracer()));
    process.run(Services { models, capacity, routes, fronts: Vec::new(), pages }, life).await?;
    Ok(())
}

struct EngineLife {
    id: NodeId,
    role: Role,
    address: String,
    board: StatusBoard,
    shutdown: Shutdown,
    grace: Grace,
}

impl Life for EngineLife {
    const HEALTH: &'static [&'static str] = &[""];

    const FOUND_IN_LIST: bool = true;

    type Lost = String;

    async fn useful(&self) {
        self.board.set_state(NodeState::Ready);
    }

    /// Open sessions finish over the connections they have.
    fn closes(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shutdown.stopped()
    }

    fn cuts(&self) -> impl Future<Output = ()> + Send + 'static {
        net::gone(&self.shutdown)
    }

    async fn drained(&self) {
        let finished = async {
            // One status period, so that every chooser has seen the state before the node is idle by accident.
            tokio::time::sleep(limits::WATCH_PERIOD * 2).await;
            while self.board.is_busy() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = finished => {}
            () = self.shutdown.stopped() => {}
            () = tokio::time::sleep((self.grace)()) => {
                tracing::warn!(node = %self.id, "grace is over, sessions still open are cut");
            }
        }
    }

    async fn lost(&self) -> String {
        let reason = self.board.lost().await;
        tracing::error!(%reason, "the engine is lost; the node ends so that its sessions go on elsewhere");
        reason
    }

    fn log(&self, stage: Stage<'_>) {
        let Self { id: node, role, address, .. } = self;
        match stage {
            Stage::Open | Stage::Unlisted(_) => {}
            Stage::Useful => tracing::info!(%node, %address, ?role, "serving"),
            Stage::Draining => tracing::info!(%node, "draining: no new sessions, open ones finish or move"),
            Stage::Stopped => tracing::info!(%node, "stopped"),
        }
    }
}

/// Whether the node takes sessions: what its board says, and for a drafter that some expert could take them with it.
fn ready(process: &Process, record: NodeRecord) -> metrics::Ready {
    let (board, snapshots) = (process.board().clone(), process.env().membership.snapshots());
    Arc::new(move || {
        board.ready()?;
        let wrong = (record.role == Role::Drafter).then(|| placement::mismatch(&record, &snapshots.borrow())).flatten();
        wrong.map_or(Ok(()), |wrong| Err(format!("{wrong}; give both a model of one tokenizer, or name other models")))
    })
}
