//! `Session/Run`: the drafter owns the session. Opens it, and lets its strategy run it.

use std::pin::Pin;
use std::sync::Arc;

use cascadia_core::decoding::Strategy;
use cascadia_core::session::Counters;
use cascadia_core::tasks::{DecodeTask, DraftTask};
use cascadia_node::owner::{self, Begun, Opening};
use cascadia_node::sessions::{Open, OpenSession};
use cascadia_node::telemetry::{Mark, TraceContext};
use cascadia_proto::v1::run_response::Message as Response;
use cascadia_proto::v1::{self, RunRequest, RunResponse, session_server};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response as Answered, Status, Streaming};
use tracing::Instrument;

use crate::engine::DrafterWork;
use crate::node::DrafterNode;
use crate::{alone, generate};

/// The session service.
#[derive(Clone, Debug)]
pub struct SessionService(pub Arc<DrafterNode>);

/// Messages a session may have unread before it waits.
const UNREAD: usize = 64;

#[tonic::async_trait]
impl session_server::Session for SessionService {
    type RunStream = Pin<Box<dyn Stream<Item = Result<RunResponse, Status>> + Send>>;

    async fn run(&self, request: tonic::Request<Streaming<RunRequest>>) -> Result<Answered<Self::RunStream>, Status> {
        let trace = TraceContext::from_metadata(request.metadata());
        let inbound = request.into_inner();
        let node = self.0.clone();
        let (sender, receiver) = mpsc::channel(UNREAD);
        // Ends with the stream: the inbound side fails when the router goes, the outbound side closes.
        tokio::spawn(async move {
            if let Err(status) = own(&node, inbound, &sender, &trace).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Answered::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn own(
    node: &DrafterNode,
    mut inbound: Streaming<RunRequest>,
    sender: &owner::Sender,
    caller: &TraceContext,
) -> Result<(), Status> {
    let _serving = node.board.serving();
    let mut opening = Opening::read(&mut inbound, &node.facts, caller, &node.tracer).await?;
    let ended = serve(node, &opening, inbound, sender).instrument(opening.log_span()).await;
    opening.ended(&ended);
    ended
}

async fn serve(
    node: &DrafterNode,
    opening: &Opening,
    mut inbound: Streaming<RunRequest>,
    sender: &owner::Sender,
) -> Result<(), Status> {
    let pinned = opening.open.pinned.as_ref().map_or("", |pinned| &pinned.drafter);
    if !pinned.is_empty() && pinned != node.facts.fingerprint {
        return Err(Status::failed_precondition(format!(
            "the session is pinned to the drafter model {pinned}, this node runs {}",
            node.facts.fingerprint
        )));
    }
    node.leaving.admits(pinned)?;
    let mut begun = opening.begin(&node.text, &node.facts, sender.clone()).await?;
    let fingerprint = opening.open.expert.as_ref().map(|expert| expert.fingerprint.clone()).unwrap_or_default();
    let deadline = tokio::time::sleep(opening.remaining());
    let gone = sender.clone();
    let strategy = begun.decoding.strategy;
    // Whoever takes the session over finds an expert for it, if it had one here.
    let expert = opening.open.expert.as_ref().map(|expert| expert.fingerprint.as_str());
    let work = async {
        // It may have to wait for its room, and the router need not hear of a session that gets none.
        let session = open(node, opening, &begun).await?;
        begun
            .output
            .send(Response::Opened(v1::Opened {
                protocol: opening.protocol,
                fingerprints: Some(node.fingerprints(&fingerprint, node.facts.row_exact)),
                prompt_tokens: begun.prompt_tokens as u32,
            }))
            .await?;
        if let Some(finish) = begun.output.over.take() {
            return begun.output.finish(finish, owner::speculation(Counters::default())).await;
        }
        if opening.continued.is_none() {
            begun.output.prompt(&begun.ids).await?;
        }
        match strategy {
            Strategy::Drafter => alone::drafter(session, begun).await,
            Strategy::CascadeQuery { alpha } => alone::cascade_query((node, opening), session, begun, alpha).await,
            _ => {
                let Begun { decoding, ids, prompt_tokens, output } = begun;
                generate::Generation::new(node, opening, decoding, ids, prompt_tokens).run(session, output).await
            }
        }
    };
    tokio::select! {
        biased;
        ended = work => ended,
        // Dropping the work closes the session at the engine and the stream to the expert.
        cancelled = owner::cancelled(&mut inbound) => cancelled,
        () = gone.closed() => Ok(()),
        () = node.leaving.wait(expert) => Err(Status::unavailable("the drafter goes: the session continues on another")),
        () = deadline => Err(Status::deadline_exceeded("the request's time is over")),
    }
}

/// Opens the session at the engine, as what its strategy asks of a drafter.
async fn open(node: &DrafterNode, opening: &Opening, begun: &Begun) -> Result<OpenSession<DrafterWork>, Status> {
    let (decoding, ids) = (begun.decoding.clone(), begun.ids.clone());
    let work = match decoding.strategy {
        Strategy::Expert => {
            return Err(Status::failed_precondition("strategy `expert` is served by experts; this is a drafter"));
        }
        Strategy::Drafter | Strategy::CascadeQuery { .. } => DrafterWork::Decode(DecodeTask::new(decoding, ids)),
        Strategy::CascadeToken { .. } | Strategy::Speculative { .. } | Strategy::SpeculativeCascade { .. } => {
            DrafterWork::Draft(DraftTask::new(decoding, ids))
        }
    };
    let open = Open {
        key: opening.session,
        epoch: opening.epoch,
        work,
        priority: opening.open.priority,
        salt: opening.salt().to_owned(),
        age: opening.age(),
        begun: begun.ids.len() > begun.prompt_tokens,
        mark: Mark::default(),
    };
    node.engine.open(open).await
}
