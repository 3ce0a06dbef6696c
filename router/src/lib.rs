//! Client-facing: a request is admitted, placed and relayed; its session outlives the nodes that work for it.
//!
//! [`generate`] is the verb. A request passes [`admission`] (bounds, validation, terms), its [`session`] finds a
//! [`place`] and opens a [`mod@run`] at the owner; what the owner says enters the [`transcript`], which is the truth, and goes
//! to the [`client`]. When the owner's stream ends, [`ending`] decides what comes next, and [`tally`] adds up what all
//! owners did; [`spans`] are its trace. [`outlook`] is what all sessions watch together, [`status`] what operators see,
//! [`mint`] the only chance, [`mod@http`] is the same for OpenAI's clients, [`metrics`] what is counted, [`error`] the one
//! place where errors become gRPC statuses, [`config`] what is set.
//!
//! Absent on purpose: tokenizers and model files. A prompt travels as it came; what continues travels as ids.

#![forbid(unsafe_code)]

pub mod admission;
pub mod client;
pub mod config;
pub mod contract;
pub mod ending;
pub mod error;
pub mod generate;
pub mod http;
pub mod metrics;
pub mod mint;
pub mod outlook;
pub mod place;
pub mod run;
#[cfg(test)]
mod samples;
pub mod session;
pub mod spans;
pub mod status;
pub mod tally;
pub mod transcript;

use std::sync::Arc;

use cascadia_core::limits;
use cascadia_core::placement::{NodeRecord, NodeState, Role};
use cascadia_node::Edge;
use cascadia_node::admin::Admin;
use cascadia_node::config::Live;
use cascadia_node::loads::LoadWatch;
use cascadia_node::membership::Membership;
use cascadia_node::metrics::Registry;
use cascadia_node::net;
use cascadia_node::status::StatusBoard;
use cascadia_node::telemetry::keep::Keeper;
use cascadia_proto::v1::inference_server::InferenceServer;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

pub use config::RouterConfig;
pub use error::RouterError;
use generate::{Router, Service};
use http::Door;
pub use mint::Mint;

/// The health service's name for the router's own.
const SERVICE: &str = "cascadia.v1.Inference";

/// Serves clients until told to stop: accepting, then not ready but still accepting for the lame-duck time, then only
/// finishing what is open.
///
/// # Errors
/// When the configuration means nothing or the listener fails.
pub async fn run(config: impl Into<Live<RouterConfig>>, edge: Edge, door: Option<Door>) -> Result<(), RouterError> {
    let config = config.into();
    config.now().check().map_err(RouterError::Config)?;
    let instance = edge.instance();
    let tracer = edge.tracer(Role::Router);
    let Edge { id, listener, admin, connector, membership, shutdown, telemetry } = edge;
    let watcher = format!("router:{id}");
    let loads = LoadWatch::spawn(&membership, &connector, &watcher, &[Role::Drafter, Role::Expert], &shutdown);
    let capacity = u32::try_from(config.now().max_sessions).unwrap_or(u32::MAX);
    let mut registry = Registry::default();
    let metrics = metrics::Metrics::register(&mut registry, config.now().metrics_tenants);
    let router = Arc::new(Router {
        admission: Arc::default(),
        config,
        loads,
        outlook: outlook::Outlook::new(membership.recovers_within()),
        spans: spans::Recorder::new(tracer.clone(), Keeper::spawn(&tracer, connector.clone())),
        log_prompts: telemetry.log_prompts,
        connector,
        metrics,
        streams: client::OpenStreams::default(),
        shutdown: shutdown.clone(),
        id,
    });
    let record = NodeRecord {
        id: router.id.clone(),
        instance,
        role: Role::Router,
        address: listener.address().to_owned(),
        admin_address: admin.as_ref().map(|admin| admin.address().to_owned()).unwrap_or_default(),
        models: Vec::new(),
        capacity,
        protocol: cascadia_proto::PROTOCOL,
        state: NodeState::Ready,
    };
    let board = StatusBoard::new(instance, Arc::default(), membership.cluster());
    let observing = tokio::spawn(observe(router.clone(), board.clone()));
    if let Some(admin) = &admin {
        admin.show(pages(&router, registry, &board));
    }
    // Clients need no membership of the router: it registers while it serves, whenever membership is there.
    let registering = tokio::spawn(register(membership, record, shutdown.clone()));

    let (health, health_service) = tonic_health::server::health_reporter();
    report(&health, ServingStatus::NotServing).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(cascadia_proto::DESCRIPTORS)
        .build_v1()?;
    // The older name of the same, which clients of several languages still ask for.
    let older_reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(cascadia_proto::DESCRIPTORS)
        .build_v1alpha()?;
    let inference = InferenceServer::new(Service(router.clone())).max_decoding_message_size(limits::REQUEST_BYTES);
    let routes = net::server()
        .add_service(inference)
        .add_service(board.service())
        .add_service(health_service)
        .add_service(reflection)
        .add_service(older_reflection);
    let address = listener.address().to_owned();
    let lame = || {
        let (shutdown, config) = (shutdown.clone(), router.config.clone());
        async move {
            shutdown.draining().await;
            let lame_duck = config.now().lame_duck();
            tokio::select! { biased; () = shutdown.stopped() => {}, () = tokio::time::sleep(lame_duck) => {} }
        }
    };
    let mut serving = tokio::spawn(routes.serve_with_incoming_shutdown(listener.into_incoming(), lame()));
    // Cancelled when HTTP's last connection has ended.
    let http_ended = CancellationToken::new();
    let http = door.map(|door| {
        let (serving, ended) = (http::serve(door, router.clone(), lame()), http_ended.clone().drop_guard());
        tokio::spawn(async move {
            let _ended = ended;
            serving.await;
        })
    });
    if http.is_none() {
        http_ended.cancel();
    }
    tracing::info!(router = %router.id, %address, "serving");

    let living = live(&router, &board, &health, http_ended.clone());
    tokio::pin!(living);
    let served = tokio::select! {
        biased;
        served = &mut serving => match served.unwrap_or(Ok(())) {
            // Its last connection may have ended before HTTP's.
            Ok(()) => tokio::select! { biased; () = http_ended.cancelled() => Ok(()), () = &mut living => Ok(()) },
            failed => failed,
        },
        () = &mut living => {
            serving.abort();
            Ok(())
        }
    };
    if let Some(http) = http {
        http.abort();
    }
    shutdown.stop();
    let _ = registering.await;
    observing.abort();
    if let Some(admin) = admin {
        admin.finish().await;
    }
    tracing::info!(router = %router.id, "stopped");
    Ok(served?)
}

/// From the first servable model to the last open stream, and to the end of HTTP's connections.
async fn live(router: &Router, board: &StatusBoard, health: &HealthReporter, http_ended: CancellationToken) {
    let shutdown = &router.shutdown;
    let ready = async {
        router.outlook.servable().await;
        report(health, ServingStatus::Serving).await;
        std::future::pending::<()>().await;
    };
    tokio::select! { biased; () = shutdown.draining() => {}, () = ready => {} }
    report(health, ServingStatus::NotServing).await;
    board.set_state(NodeState::Draining);
    tracing::info!(router = %router.id, open = router.admission.admitted(), "draining");
    let config = router.config.now();
    let (lame_duck, grace) = (config.lame_duck(), router.admission.grace(config.grace()));
    let finished = async {
        tokio::time::sleep(lame_duck).await;
        // Status streams never end by themselves.
        board.close();
        router.streams.none().await;
        http_ended.cancelled().await;
    };
    tokio::select! {
        biased;
        () = shutdown.stopped() => {}
        () = tokio::time::sleep(grace) => tracing::warn!("grace is over, open streams are cut"),
        () = finished => {}
    }
    // What was written is flushed; whoever only watches is cut.
    tokio::time::sleep(net::STOP_GRACE).await;
}

async fn report(health: &HealthReporter, status: ServingStatus) {
    for service in ["", SERVICE] {
        health.set_service_status(service, status).await;
    }
}

/// Keeps the shared outlook fresh, and says on the board when the router is ready.
async fn observe(router: Arc<Router>, board: StatusBoard) {
    let mut changes = router.loads.changed();
    let mut before = router.loads.snapshot();
    loop {
        let now = router.loads.snapshot();
        status::lost(&before, &now).for_each(|node| router.metrics.node_lost(node.role));
        router.outlook.observe(&now, &router.loads.loads());
        before = now;
        router.outlook.known_models().iter().for_each(|model| router.metrics.serves(model));
        if router.outlook.was_servable() && board.state() == NodeState::Starting {
            board.set_state(NodeState::Ready);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Registers, says when the router drains, and withdraws when it stops.
async fn register(membership: Membership, mut record: NodeRecord, shutdown: cascadia_node::lifecycle::Shutdown) {
    let registration = tokio::select! {
        biased;
        registered = membership.register(record.clone()) => match registered {
            Ok(registration) => registration,
            Err(error) => return tracing::warn!(%error, "the router is not in the member list; clients are served"),
        },
        () = shutdown.stopped() => return,
    };
    shutdown.draining().await;
    record.state = NodeState::Draining;
    registration.update(record).await;
    shutdown.stopped().await;
    registration.withdraw().await;
}

/// Whether the router should get clients.
fn ready(router: &Router) -> Result<(), String> {
    if router.shutdown.is_draining() {
        return Err("draining: open streams finish, new ones belong to another router".to_owned());
    }
    if !router.outlook.was_servable() {
        return Err("no expert has been ready yet: start one, with the same membership".to_owned());
    }
    Ok(())
}

fn pages(router: &Arc<Router>, mut registry: Registry, board: &StatusBoard) -> Admin {
    let (for_ready, for_status, for_targets) = (router.clone(), router.clone(), router.clone());
    let for_board = board.clone();
    let ready_now: cascadia_node::metrics::Ready = Arc::new(move || ready(&for_ready));
    cascadia_node::metrics::node(&mut registry, &router.id, Role::Router, board, ready_now.clone());
    let (admission, loads) = (router.admission.clone(), router.loads.clone());
    let config = router.config.clone();
    let limit = move || config.now().max_sessions;
    cascadia_node::metrics::sessions(&mut registry, Role::Router, limit, move || admission.admitted());
    let also = loads.clone();
    metrics::cluster(&mut registry, move || status::census(&loads.snapshot(), &loads.loads()));
    metrics::failing(&mut registry, move || status::failing(&also.snapshot(), &also.loads()));
    Admin {
        // Whether it answers is all there is to ask.
        live: Arc::new(|| Ok(())),
        ready: ready_now,
        status: Arc::new(move || {
            let loads = &for_status.loads;
            let status = status::cluster_status(&for_status.id, &loads.snapshot(), &loads.loads(), &loads.statuses());
            let own = status::Own {
                instance: for_board.now().instance,
                state: for_board.state(),
                sessions: for_status.admission.admitted(),
                ready: ready(&for_status),
            };
            status::page(&status, &own)
        }),
        metrics: registry.page(),
        targets: Some(Arc::new(move || status::targets(&for_targets.loads.snapshot()))),
    }
}
