//! An expert node: verifies the blocks of many sessions in one batch, and decodes alone where it owns a session.
//!
//! `verify` (a drafter's stream) and `run` (a router's) decode, bound and wait; `engine` owns the model: mailbox in, one
//! ragged batch a step, answers out. Every decision is in `cascadia-core`.

#![forbid(unsafe_code)]

pub mod config;
pub mod engine;
pub mod metrics;
mod node;
mod run;
mod spans;
mod verify;

use std::sync::Arc;

use cascadia_core::placement::Role;
use cascadia_core::stepper::Stepper;
use cascadia_node::NodeEnv;
use cascadia_node::config::Reloadable;
use cascadia_node::engine_life::{self, EngineNodeError, Identity};
use cascadia_node::engine_thread::{self, Executor};
use cascadia_node::evacuation::Evacuation;
use cascadia_node::loaded_model::LoadedModel;
use cascadia_node::metrics::Registry;
use cascadia_node::process::Process;
use cascadia_node::session_service::SessionService;
use cascadia_node::sessions::{EngineHandle, SessionLoop};
use cascadia_proto::v1::{session_server::SessionServer, verify_server::VerifyServer};

pub use config::ExpertConfig;
use node::ExpertNode;

/// Serves until told to stop.
///
/// # Errors
/// When the model fails its first pass, the node cannot register, its listener fails, or its engine is lost.
pub async fn run(
    config: impl Into<Reloadable<ExpertConfig>>,
    env: NodeEnv,
    mut parts: LoadedModel,
    drive: Executor,
) -> Result<(), EngineNodeError> {
    let live = config.into();
    let config = live.now();
    config.check().map_err(EngineNodeError::Config)?;
    parts.warm_up().map_err(EngineNodeError::Model)?;
    let models = if config.served_model.is_empty() { vec![folder_name(&config)] } else { config.served_model.clone() };
    let (facts, served) = (parts.offered(), parts.served(&models));
    let process = Process::new(env, Role::Expert, parts.engine.progress());
    let mut registry = Registry::default();
    let metrics = metrics::Metrics::register(&mut registry);
    let stepper = Stepper::new(&facts, config.engine.stepper());
    let observer = Box::new(metrics.clone());
    let expert = SessionLoop::new(parts.engine, stepper, process.board().clone(), observer, config.engine.batch_tokens)
        .with_tracer(process.tracer().clone());
    // A session has its opening, its close and its granted blocks in the mailbox at most.
    let capacity = config.engine.max_sessions * (config.slots as usize + 2);
    let engine = EngineHandle::new(engine_thread::spawn(expert, "expert-engine", drive, capacity));

    let identity = Identity {
        models: served,
        capacity: u32::try_from(config.engine.max_sessions).unwrap_or(u32::MAX),
        grace: Box::new({
            let live = live.clone();
            move || live.now().engine.grace()
        }),
    };
    let evacuation = Evacuation::new(process.env(), Role::Expert, &facts.fingerprint);
    let (board, tracer) = (process.board().clone(), process.tracer().clone());
    let node =
        Arc::new(ExpertNode { facts, text: parts.text, models, engine, evacuation, board, metrics, tracer, config });
    let block_bytes = cascadia_core::limits::BLOCK_BYTES;
    let routes = tonic::service::Routes::new(
        VerifyServer::new(verify::VerifyService(node.clone())).max_decoding_message_size(block_bytes),
    )
    .add_service(
        SessionServer::new(SessionService(node)).max_decoding_message_size(cascadia_core::limits::REQUEST_BYTES),
    );
    engine_life::serve(process, identity, routes, registry).await
}

fn folder_name(config: &ExpertConfig) -> String {
    config.engine.model.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}
