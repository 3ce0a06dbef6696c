//! `Session/Run` of an expert that owns a session: it decodes alone, without a round trip per token.

use cascadia_core::block::Provenance;
use cascadia_core::commit::{Finish, FinishReason};
use cascadia_core::engine::ModelFacts;
use cascadia_core::session::{Counters, Emitted};
use cascadia_core::tasks::DecodeTask;
use cascadia_node::owner::{self, OpenedRun, ResolvedSession, Scorer};
use cascadia_node::session_service::Owner;
use cascadia_node::sessions::EngineEvent;
use cascadia_node::status::StatusBoard;
use cascadia_node::telemetry::Tracer;
use cascadia_proto::fault;
use cascadia_proto::v1::RunRequest;
use tonic::{Status, Streaming};

use crate::engine::{ExpertReply, ExpertWork};
use crate::node::ExpertNode;

impl Owner for ExpertNode {
    fn board(&self) -> &StatusBoard {
        &self.board
    }

    fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    async fn serve(
        &self,
        opening: &OpenedRun,
        inbound: Streaming<RunRequest>,
        sender: &owner::Sender,
    ) -> Result<(), Status> {
        decode(self, opening, inbound, sender).await
    }
}

async fn decode(
    node: &ExpertNode,
    opening: &OpenedRun,
    mut inbound: Streaming<RunRequest>,
    sender: &owner::Sender,
) -> Result<(), Status> {
    node.serves(&opening.open.model)?;
    let pinned = opening.open.pinned.as_ref().map_or("", |pinned| &pinned.expert);
    node.matches(pinned)?;
    node.evacuation.accepts(pinned)?;
    let begun = opening.begin(&node.text, &node.facts, sender.clone()).await?;
    let ResolvedSession { decoding, ids, prompt_tokens, mut output } = begun;
    let work = ExpertWork::Decode(DecodeTask::new(decoding, ids.clone()));
    let open = opening.at_engine(work, ids.len() > prompt_tokens);
    let deadline = tokio::time::sleep(opening.remaining());
    tokio::pin!(deadline);
    // It may have to wait for its room.
    let mut session = tokio::select! {
        biased;
        opened = node.engine.open(open) => opened?,
        cancelled = owner::cancelled(&mut inbound) => return cancelled,
        () = sender.closed() => return Ok(()),
        () = node.evacuation.until_due(None) => return Err(fault::leaving("the expert goes: another may have room")),
        () = &mut deadline => return Err(Status::deadline_exceeded("the request's time was over before it had room")),
    };
    output.cached_tokens = session.cached.min(prompt_tokens) as u32;
    output.send(opening.opened(node.fingerprints(), &node.facts, prompt_tokens, node.board.cluster())).await?;
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
                let EngineEvent::Reply(ExpertReply::Decoded(decoded, over)) = heard? else { continue };
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
            () = node.evacuation.until_due(None) => return Err(fault::leaving("the expert goes: the session continues on another")),
            () = &mut deadline => return Err(Status::deadline_exceeded("the request's time is over")),
        }
    }
}
