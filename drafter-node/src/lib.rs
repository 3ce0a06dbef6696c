//! A drafter node: owns sessions. One task per session drafts, asks an expert, commits and streams.
//!
//! `run` opens a session for its strategy; `generate` is the loop of those that ask an expert, over `expert_link`;
//! `alone` is the drafter by itself, `query` its whole answer where an expert may be asked instead; `engine` is what the
//! model does for a session. Every decision is in `cascadia-core`.

#![forbid(unsafe_code)]

mod alone;
pub mod config;
pub mod engine;
mod expert_link;
mod generate;
pub mod metrics;
mod node;
mod query;
mod run;
mod spans;

use std::sync::Arc;

use cascadia_core::placement::Role;
use cascadia_core::stepper::Stepper;
use cascadia_node::NodeEnv;
use cascadia_node::config::Reloadable;
use cascadia_node::engine_life::{self, EngineNodeError, Identity};
use cascadia_node::engine_thread::{self, Executor};
use cascadia_node::evacuation::Evacuation;
use cascadia_node::loaded_model::LoadedModel;
use cascadia_node::loads::LoadWatch;
use cascadia_node::metrics::Registry;
use cascadia_node::process::Process;
use cascadia_node::session_service::SessionService;
use cascadia_node::sessions::{EngineHandle, SessionLoop};
use cascadia_proto::v1::session_server::SessionServer;

pub use config::DrafterConfig;
use node::DrafterNode;

/// Commands of one session that the mailbox may hold: opening, an order, going alone, close.
const COMMANDS_PER_SESSION: usize = 4;

/// Serves until told to stop.
///
/// # Errors
/// When the model fails its first pass, the node cannot register, its listener fails, or its engine is lost.
pub async fn run(
    config: impl Into<Reloadable<DrafterConfig>>,
    env: NodeEnv,
    mut parts: LoadedModel,
    drive: Executor,
) -> Result<(), EngineNodeError> {
    let live = config.into();
    let config = live.now();
    config.check().map_err(EngineNodeError::Config)?;
    parts.warm_up().map_err(EngineNodeError::Model)?;
    let (facts, served) = (parts.offered(), parts.served(&config.served_model));
    let process = Process::new(env, Role::Drafter, parts.engine.progress());
    let mut registry = Registry::default();
    let metrics = metrics::Metrics::register(&mut registry);
    let stepper = Stepper::new(&facts, config.engine.stepper());
    let observer = Box::new(metrics.clone());
    let drafter =
        SessionLoop::new(parts.engine, stepper, process.board().clone(), observer, config.engine.batch_tokens);
    let capacity = config.engine.max_sessions * COMMANDS_PER_SESSION;
    let engine = EngineHandle::new(engine_thread::spawn(drafter, "drafter-engine", drive, capacity));

    config.served_model.iter().filter(|name| !name.is_empty()).for_each(|name| metrics.serves(name));
    let identity = Identity {
        models: served,
        capacity: u32::try_from(config.engine.max_sessions).unwrap_or(u32::MAX),
        grace: Box::new({
            let live = live.clone();
            move || live.now().engine.grace()
        }),
    };
    let env = process.env();
    let experts = LoadWatch::spawn(
        &env.membership,
        &env.connector,
        &format!("drafter {}", env.id),
        &[Role::Expert],
        &env.shutdown,
    );
    let evacuation = Evacuation::new(env, Role::Drafter, &facts.fingerprint);
    let node = Arc::new(DrafterNode {
        facts,
        text: parts.text,
        engine,
        experts,
        connector: env.connector.clone(),
        evacuation,
        board: process.board().clone(),
        metrics,
        tracer: process.tracer().clone(),
        config: live,
    });
    let service =
        SessionServer::new(SessionService(node)).max_decoding_message_size(cascadia_core::limits::REQUEST_BYTES);
    let routes = tonic::service::Routes::new(service);
    engine_life::serve(process, identity, routes, registry).await
}
