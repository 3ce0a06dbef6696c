//! `Session/Run`: the drafter owns the session. Opens it, and lets its strategy run it.

use cascadia_core::decoding::Strategy;
use cascadia_core::engine::ModelFacts;
use cascadia_core::session::Counters;
use cascadia_core::tasks::{DecodeTask, DraftTask};
use cascadia_node::owner::{self, OpenedRun, ResolvedSession};
use cascadia_node::session_service::Owner;
use cascadia_node::sessions::OpenSession;
use cascadia_node::status::StatusBoard;
use cascadia_node::telemetry::Tracer;
use cascadia_proto::fault;
use cascadia_proto::v1::RunRequest;
use tonic::{Status, Streaming};

use crate::engine::DrafterWork;
use crate::node::DrafterNode;
use crate::{alone, generate, query};

impl Owner for DrafterNode {
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
        serve(self, opening, inbound, sender).await
    }
}

async fn serve(
    node: &DrafterNode,
    opening: &OpenedRun,
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
    node.evacuation.accepts(pinned)?;
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
        let fingerprints = node.fingerprints(&fingerprint, node.facts.row_exact);
        begun.output.send(opening.opened(fingerprints, &node.facts, begun.prompt_tokens, node.board.cluster())).await?;
        if let Some(finish) = begun.output.over.take() {
            return begun.output.finish(finish, owner::speculation(Counters::default())).await;
        }
        if opening.continued.is_none() {
            begun.output.prompt(&begun.ids).await?;
        }
        match strategy {
            Strategy::Drafter => alone::drafter(session, begun).await,
            Strategy::CascadeQuery { alpha } => query::cascade_query((node, opening), session, begun, alpha).await,
            _ => {
                let ResolvedSession { decoding, ids, prompt_tokens, output } = begun;
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
        () = node.evacuation.until_due(expert) => Err(fault::leaving("the drafter goes: the session continues on another")),
        () = deadline => Err(Status::deadline_exceeded("the request's time is over")),
    }
}

/// Opens the session at the engine, as what its strategy asks of a drafter.
async fn open(
    node: &DrafterNode,
    opening: &OpenedRun,
    begun: &ResolvedSession,
) -> Result<OpenSession<DrafterWork>, Status> {
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
    node.engine.open(opening.at_engine(work, begun.ids.len() > begun.prompt_tokens)).await
}
