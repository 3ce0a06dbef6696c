//! `Session/Run` of an expert that owns a session: it decodes alone, without a round trip per token.

use std::pin::Pin;
use std::sync::Arc;

use cascadia_core::block::Provenance;
use cascadia_core::commit::{Finish, FinishReason};
use cascadia_core::session::{Counters, Emitted};
use cascadia_core::tasks::DecodeTask;
use cascadia_node::owner::{self, Begun, Opening, Scorer};
use cascadia_node::sessions::{Heard, Open};
use cascadia_node::telemetry::{Mark, TraceContext};
use cascadia_proto::v1::run_response::Message as Response;
use cascadia_proto::v1::{self, RunRequest, RunResponse, session_server};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response as Answered, Status, Streaming};
use tracing::Instrument;

use crate::engine::{ExpertReply, ExpertWork};
use crate::node::ExpertNode;

/// The session service.
#[derive(Clone, Debug)]
pub struct SessionService(pub Arc<ExpertNode>);

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
        // Ends with the stream, as in `verify.rs`.
        tokio::spawn(async move {
            if let Err(status) = own(&node, inbound, &sender, &trace).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Answered::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn own(
    node: &ExpertNode,
    mut inbound: Streaming<RunRequest>,
    sender: &owner::Sender,
    caller: &TraceContext,
) -> Result<(), Status> {
    let _serving = node.board.serving();
    let mut opening = Opening::read(&mut inbound, &node.facts, caller, &node.tracer).await?;
    let ended = decode(node, &opening, inbound, sender).instrument(opening.log_span()).await;
    opening.ended(&ended);
    ended
}

async fn decode(
    node: &ExpertNode,
    opening: &Opening,
    mut inbound: Streaming<RunRequest>,
    sender: &owner::Sender,
) -> Result<(), Status> {
    node.serves(&opening.open.model)?;
    let pinned = opening.open.pinned.as_ref().map_or("", |pinned| &pinned.expert);
    node.matches(pinned)?;
    node.leaving.admits(pinned)?;
    let begun = opening.begin(&node.text, &node.facts, sender.clone()).await?;
    let Begun { decoding, ids, prompt_tokens, mut output } = begun;
    let open = Open {
        key: opening.session,
        epoch: opening.epoch,
        work: ExpertWork::Decode(DecodeTask::new(decoding, ids.clone())),
        priority: opening.open.priority,
        salt: opening.salt().to_owned(),
        age: opening.age(),
        begun: ids.len() > prompt_tokens,
        // It verifies nothing: a batch for each of its tokens would say nothing more than its span.
        mark: Mark::default(),
    };
    let deadline = tokio::time::sleep(opening.remaining());
    tokio::pin!(deadline);
    // It may have to wait for its room.
    let mut session = tokio::select! {
        biased;
        opened = node.engine.open(open) => opened?,
        cancelled = owner::cancelled(&mut inbound) => return cancelled,
        () = sender.closed() => return Ok(()),
        () = node.leaving.wait(None) => return Err(Status::unavailable("the expert goes: another may have room")),
        () = &mut deadline => return Err(Status::deadline_exceeded("the request's time was over before it had room")),
    };
    output.cached_tokens = session.cached.min(prompt_tokens) as u32;
    output
        .send(Response::Opened(v1::Opened {
            protocol: opening.protocol,
            fingerprints: Some(node.fingerprints()),
            prompt_tokens: prompt_tokens as u32,
        }))
        .await?;
    if let Some(finish) = output.over.take() {
        return output.finish(finish, owner::speculation(Counters::default())).await;
    }
    if opening.continued.is_none() {
        output.prompt(&ids).await?;
    }
    let mut counters = Counters::default();
    let mut listening = true;
    loop {
        tokio::select! {
            biased;
            heard = session.next() => {
                let Heard::Reply(ExpertReply::Decoded(decoded, over)) = heard? else { continue };
                counters.deferred += decoded.len() as u64;
                counters.expert_passes += decoded.len() as u64;
                let emitted: Vec<Emitted> = decoded
                    .into_iter()
                    .map(|d| Emitted { token: d.token, provenance: Provenance::Deferred, score: d.score })
                    .collect();
                let finish = output.emit(&emitted, Scorer::Expert).await?;
                let end = finish.or_else(|| over.then_some(Finish { reason: FinishReason::Length, matched: None }));
                if let Some(finish) = end {
                    return output.finish(finish, owner::speculation(counters)).await;
                }
            },
            // The router has nothing more to say to an owner that has no expert to leave; an error is its cancellation.
            message = inbound.message(), if listening => listening = message?.is_some(),
            () = output.closed() => return Ok(()),
            () = node.leaving.wait(None) => return Err(Status::unavailable("the expert goes: the session continues on another")),
            () = &mut deadline => return Err(Status::deadline_exceeded("the request's time is over")),
        }
    }
}
