//! Client-facing: a request is admitted, placed and relayed; its session outlives the nodes that work for it.
//!
//! [`generate`] is the verb. A [`request`] is charged while it comes in ([`reading`], [`metered`]) and passes
//! [`admission`] (bounds, validation, terms), its [`session`] finds a [`placement`] and opens a [`mod@run`] at the
//! owner, by an [`opening`] whose prompt is shared; what the owner says enters the [`transcript`], which is the truth,
//! and goes to the [`client`]. When the owner's stream ends, [`failover`] decides what comes next, and
//! [`speculation_totals`] adds up what all owners did; [`spans`] are its trace. [`cluster_health`] is what all sessions
//! watch together, [`status`] what operators see, [`ids`] the only chance, [`metrics`] what is counted, [`error`] the
//! one place where errors become gRPC statuses, [`config`] what is set. [`mod@router`] is what all of them share,
//! [`life`] how it begins and drains. [`mod@http`] is the same for OpenAI's clients: a [`Front`], which nothing else
//! here knows.
//!
//! Absent on purpose: tokenizers and model files. A prompt travels as it came; what continues travels as ids.

#![forbid(unsafe_code)]

pub mod admission;
pub mod client;
pub mod cluster_health;
pub mod config;
pub mod contract;
pub mod error;
pub mod failover;
pub mod generate;
pub mod http;
pub mod ids;
pub mod life;
pub mod metered;
pub mod metrics;
pub mod opening;
pub mod placement;
pub mod reading;
pub mod request;
pub mod router;
pub mod run;
#[cfg(test)]
mod samples;
pub mod session;
pub mod spans;
pub mod speculation_totals;
pub mod status;
pub mod transcript;

use std::sync::Arc;

use cascadia_core::limits;
use cascadia_core::placement::Role;
use cascadia_node::NodeEnv;
use cascadia_node::admin::Admin;
use cascadia_node::config::Reloadable;
use cascadia_node::metrics::Registry;
use cascadia_node::process::{Process, Services};
use cascadia_node::status::StatusBoard;
use cascadia_proto::relay::inference_server::InferenceServer;
use tonic::service::Routes;

pub use config::RouterConfig;
pub use error::RouterError;
use generate::Service;
pub use ids::IdSource;
use life::RouterLife;
pub use life::{Drain, Front};
use metered::Metered;
pub use router::Router;

/// Serves clients over gRPC, and over `fronts`, until told to stop: accepting, then not ready but still accepting for the
/// lame-duck time, then only finishing what is open.
///
/// # Errors
/// When the configuration means nothing or the listener fails.
pub async fn run(
    config: impl Into<Reloadable<RouterConfig>>,
    env: NodeEnv,
    fronts: impl IntoIterator<Item = Front>,
) -> Result<(), RouterError> {
    let config = config.into();
    config.now().check().map_err(RouterError::Config)?;
    let capacity = u32::try_from(config.now().max_sessions).unwrap_or(u32::MAX);
    let process = Process::new(env, Role::Router, Arc::default());
    let (board, mut registry) = (process.board().clone(), Registry::default());
    let router = Arc::new(Router::new(config, &process, &mut registry));
    let life = RouterLife::new(router.clone(), board.clone(), process.env().listener.address().to_owned());
    let (routes, fronts) = (routes(&router)?, life.fronts(fronts));
    let services = Services { models: Vec::new(), capacity, routes, fronts, pages: pages(&router, registry, &board) };
    let observing = tokio::spawn(life::observe(router, board));
    let ended = process.run(services, life).await;
    observing.abort();
    Ok(ended?)
}

/// What clients call over gRPC.
fn routes(router: &Arc<Router>) -> Result<Routes, RouterError> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(cascadia_proto::DESCRIPTORS)
        .build_v1()?;
    // The older name of the same, which clients of several languages still ask for.
    let older_reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(cascadia_proto::DESCRIPTORS)
        .build_v1alpha()?;
    let inference = InferenceServer::new(Service(router.clone())).max_decoding_message_size(limits::REQUEST_BYTES);
    // What the others are asked is short; they keep what they have not read whole.
    Ok(Routes::new(Metered::new(inference, router.clone()))
        .add_service(reflection.max_decoding_message_size(limits::CONTROL_BYTES))
        .add_service(older_reflection.max_decoding_message_size(limits::CONTROL_BYTES)))
}

fn pages(router: &Arc<Router>, mut registry: Registry, board: &StatusBoard) -> Admin {
    let (for_ready, for_status, for_targets) = (router.clone(), router.clone(), router.clone());
    let for_board = board.clone();
    let ready_now: cascadia_node::metrics::Ready = Arc::new(move || for_ready.ready());
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
                ready: for_status.ready(),
            };
            status::page(&status, &own)
        }),
        metrics: registry.page(),
        targets: Some(Arc::new(move || status::targets(&for_targets.loads.snapshot()))),
    }
}
