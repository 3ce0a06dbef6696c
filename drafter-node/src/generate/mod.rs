//! The drafter's loop: draft, ask, commit, stream; and what it does when its expert is lost.

mod score;
mod search;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cascadia_core::block::{Answer, DraftBlock};
use cascadia_core::commit::{Finish, FinishReason};
use cascadia_core::decoding::Decoding;
use cascadia_core::ids::{NodeId, TokenId};
use cascadia_core::limits;
use cascadia_core::pipeline::Pipeline;
use cascadia_core::session::{Answered, Counters, Emitted, Session};
use cascadia_core::tasks::DecodeTask;
use cascadia_node::owner::{self, OpenedRun, Output, Scorer};
use cascadia_node::sessions::{EngineEvent, OpenSession};
use cascadia_proto::v1::run_response::Message as Response;
use cascadia_proto::{fault, v1};
use tokio::time::Instant;
use tonic::Status;

use crate::alone;
use crate::engine::{DrafterOrder, DrafterReply, DrafterWork};
use crate::expert_link::{ExpertEvent, ExpertLink};
use crate::metrics::Speculation;
use crate::node::DrafterNode;
use crate::spans::Spans;
use search::{ExpertLoss, Found, is_final};

/// Streams in a row that may end barren before the session is given up: what no expert can serve must not go round.
const MAX_FRUITLESS: u32 = 8;

/// One session that asks an expert.
pub struct Generation<'n> {
    node: &'n DrafterNode,
    opening: &'n OpenedRun,
    decoding: Arc<Decoding>,
    prompt_tokens: usize,
    session: Session,
    /// The expert model the session is pinned to, once it has met one.
    pinned: String,
    /// Experts that failed this session since it last held one.
    failed: BTreeSet<NodeId>,
    /// Experts that answered it wrongly: they are asked again only where nobody else has the model.
    faulty: BTreeSet<NodeId>,
    /// Experts that said that they failed by their own fault, for the router to know.
    blamed: BTreeSet<NodeId>,
    /// Kept tokens whose scores are under way; the client gets both together.
    unscored: Vec<Emitted>,
    /// Streams in a row that ended before they committed anything.
    fruitless: u32,
    /// Some expert was full when this session looked for one.
    met_full: bool,
    /// An expert has served it.
    met: bool,
    /// When it lost the expert it had, or was to have.
    lost: Option<Instant>,
    speculation: Speculation,
    /// What of the session's doings is counted already.
    counted: Counters,
    spans: Spans<'n>,
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        self.count();
        self.speculation.cancelled(self.session.unanswered_drafts());
    }
}

impl<'n> Generation<'n> {
    /// A session with `ids` committed.
    pub fn new(
        node: &'n DrafterNode,
        opening: &'n OpenedRun,
        decoding: Arc<Decoding>,
        ids: Vec<TokenId>,
        prompt_tokens: usize,
    ) -> Self {
        let pipeline = Pipeline::new(node.config.now().pipeline_depth, limits::DEFAULT_SLOTS as usize);
        let session = Session::new(decoding.clone(), node.facts.vocabulary, &ids, opening.epoch, pipeline);
        // The router was told this expert's model when the session opened: it is pinned from there on.
        let pinned =
            opening.open.pinned.as_ref().map(|pinned| pinned.expert.clone()).filter(|pinned| !pinned.is_empty());
        let picked = || opening.open.expert.as_ref().map(|expert| expert.fingerprint.clone());
        let pinned = pinned.or_else(picked).unwrap_or_default();
        Self {
            node,
            opening,
            prompt_tokens,
            session,
            pinned,
            failed: BTreeSet::new(),
            faulty: BTreeSet::new(),
            blamed: BTreeSet::new(),
            unscored: Vec::new(),
            fruitless: 0,
            met_full: false,
            met: false,
            lost: None,
            speculation: node.metrics.speculation(&opening.open.model, &decoding.strategy),
            counted: Counters::default(),
            decoding,
            spans: Spans::new(opening),
        }
    }

    /// Runs the session, which is open at this node's engine, to its end.
    pub async fn run(mut self, mut engine: OpenSession<DrafterWork>, mut output: Output) -> Result<(), Status> {
        // Drafting starts while the stream opens.
        self.order(&engine)?;
        let mut link = match self.first_link(&mut output).await? {
            Found::Link(link) => link,
            Found::Alone => return self.alone(engine, output).await,
        };
        loop {
            let (before, distrusted) = (self.session.committed().len(), self.faulty.len());
            match self.converse(&mut engine, &mut link, &mut output).await? {
                Conversation::Finished(finish) => {
                    self.node.experts.session_served(&link.expert.id);
                    return output.finish(finish, self.account()).await;
                }
                Conversation::Over(loss) => {
                    // An expert that turns out faulty says nothing of the session; there are only so many of them.
                    let fruitless = self.fruitless + u32::from(self.faulty.len() == distrusted);
                    self.fruitless = if self.session.committed().len() > before { 0 } else { fruitless };
                    if let (ExpertLoss::Refused(status), true) = (&loss, self.fruitless >= MAX_FRUITLESS) {
                        return Err(fault::of(&link.expert.id.0, status.clone()));
                    }
                    match self.next_link(link, &loss, &mut output).await? {
                        Found::Link(next) => link = next,
                        Found::Alone => return self.alone(engine, output).await,
                    }
                }
            }
        }
    }

    /// Drafts and asks until the text ends or the expert is lost.
    async fn converse(
        &mut self,
        engine: &mut OpenSession<DrafterWork>,
        link: &mut ExpertLink,
        output: &mut Output,
    ) -> Result<Conversation, Status> {
        let expert = link.expert.id.clone();
        let hung = self.node.experts.gone(&expert);
        tokio::pin!(hung);
        // Tokens that a lost expert did not score any more.
        if let Some(block) = self.session.flush_scores()
            && self.send(link, &block).is_err()
        {
            return Ok(Conversation::Over(ExpertLoss::Lost));
        }
        loop {
            if self.session.is_idle()
                && let Some(over) = self.order_or_flush(engine, link)?
            {
                return Ok(over);
            }
            self.order(engine)?;
            let emitted = tokio::select! {
                biased;
                heard = engine.next() => match heard? {
                    EngineEvent::Reply(DrafterReply::Drafted(ticket, drafts)) => {
                        self.spans.drafted(ticket, drafts.len());
                        let (kept, block) = self.session.drafted(ticket, drafts);
                        if let Some(block) = block && self.send(link, &block).is_err() {
                            return Ok(Conversation::Over(ExpertLoss::Lost));
                        }
                        self.hold_unscored(kept)
                    }
                    _ => Vec::new(),
                },
                said = link.next() => match said {
                    Ok(ExpertEvent::Answer(answer, took)) => match self.take_answer(answer, took) {
                        Ok(answered) => self.score_held(answered),
                        Err(wrong) => return Ok(Conversation::refused(self.distrust(&expert, &wrong))),
                    },
                    Ok(ExpertEvent::Wrong(wrong)) => return Ok(Conversation::refused(self.distrust(&expert, &wrong))),
                    Ok(ExpertEvent::Held) => Vec::new(),
                    Ok(ExpertEvent::Move) => {
                        self.spans.told_to_move();
                        return Ok(Conversation::Over(ExpertLoss::Leaving));
                    }
                    Err(status) if is_final(&status) => return Err(status),
                    Err(status) => {
                        tracing::warn!(expert = %expert, %status, "expert lost");
                        self.spans.failed(&status);
                        self.blame(&expert, &status);
                        return Ok(Conversation::Over(ExpertLoss::of(status)));
                    }
                },
                () = &mut hung => {
                    tracing::warn!(expert = %expert, "expert hung");
                    self.spans.hung();
                    return Ok(Conversation::Over(ExpertLoss::Lost));
                }
            };
            if let Some(finish) = output.emit(&emitted, Scorer::Expert).await? {
                return Ok(Conversation::Finished(finish));
            }
        }
    }

    /// With nothing under way: the last scores are fetched, or the text has reached its length.
    fn order_or_flush(
        &mut self,
        engine: &OpenSession<DrafterWork>,
        link: &mut ExpertLink,
    ) -> Result<Option<Conversation>, Status> {
        self.order(engine)?;
        if !self.session.is_idle() {
            return Ok(None);
        }
        match self.session.flush_scores() {
            Some(block) if self.send(link, &block).is_err() => Ok(Some(Conversation::Over(ExpertLoss::Lost))),
            Some(_) => Ok(None),
            None => Ok(Some(Conversation::Finished(Finish { reason: FinishReason::Length, matched: None }))),
        }
    }

    /// What the session did so far, as it travels.
    fn account(&self) -> v1::Speculation {
        let outcomes = self.session.outcomes().iter();
        let outcome = |(&(drafted, accepted), &blocks)| v1::BlockOutcome { drafted, accepted, blocks };
        v1::Speculation { outcomes: outcomes.map(outcome).collect(), ..owner::speculation(self.session.counters()) }
    }

    /// Counts what the session did since the last call.
    fn count(&mut self) {
        let now = self.session.counters();
        self.speculation.progressed(&now.since(&self.counted));
        self.counted = now;
    }

    fn send(&mut self, link: &mut ExpertLink, block: &DraftBlock) -> Result<(), Status> {
        self.spans.sent(block);
        self.speculation.sent(link.send(block)?);
        Ok(())
    }

    fn take_answer(&mut self, answer: Answer, took: Duration) -> Result<Answered, String> {
        self.count();
        self.spans.answered(&answer);
        let answered = self.session.answer(answer)?;
        let now = self.session.counters();
        self.speculation.answered(took, &now.since(&self.counted));
        self.counted = now;
        if answered.resync {
            return Err("it holds another history than it was told".into());
        }
        Ok(answered)
    }

    /// An expert that answers wrongly is not the client's fault, and nothing of the answer was taken: another may do
    /// better.
    fn distrust(&mut self, expert: &NodeId, wrong: &str) -> Status {
        tracing::warn!(%expert, wrong, "expert answered wrongly");
        // Seen here, not said by the expert.
        let status = fault::of(&expert.0, Status::internal(format!("expert {expert} answered wrongly: {wrong}")));
        self.spans.failed(&status);
        self.faulty.insert(expert.clone());
        status
    }

    fn order(&mut self, engine: &OpenSession<DrafterWork>) -> Result<(), Status> {
        match self.session.next_draft() {
            Some(order) => {
                self.spans.ordered(&order);
                engine.order(DrafterOrder::Draft(order))
            }
            None => Ok(()),
        }
    }

    /// Where scores are asked for, a token kept without the expert waits for its own.
    fn hold_unscored(&mut self, kept: Vec<Emitted>) -> Vec<Emitted> {
        if self.decoding.logprobs.is_none() {
            return kept;
        }
        self.unscored.extend(kept);
        Vec::new()
    }

    fn score_held(&mut self, answered: Answered) -> Vec<Emitted> {
        let mut emitted = std::mem::take(&mut self.unscored);
        for (held, score) in emitted.iter_mut().zip(answered.given_scores) {
            held.score = score;
        }
        emitted.extend(answered.emitted);
        emitted
    }

    /// `on_expert_loss: drafter`: the drafter writes the rest, and the response says that a retry may differ.
    async fn alone(mut self, engine: OpenSession<DrafterWork>, mut output: Output) -> Result<(), Status> {
        self.say_alone(&mut output).await?;
        let committed = self.session.committed().to_vec();
        // Committed already, but held for a score that no expert will give.
        let held = std::mem::take(&mut self.unscored);
        if let Some(finish) = output.emit(&held, Scorer::Expert).await? {
            return output.finish(finish, self.account()).await;
        }
        engine.order(DrafterOrder::Alone(Box::new(DecodeTask::new(self.decoding.clone(), committed))))?;
        alone::stream(engine, output, self.account()).await
    }

    /// The router notes it: should this drafter die too, what follows is no better for it.
    async fn say_alone(&mut self, output: &mut Output) -> Result<(), Status> {
        output.reproducible = false;
        self.say_moved(None, v1::MoveReason::Loss, output).await
    }

    /// Tells the router which expert the session has now, and which failed it meanwhile by their own fault.
    async fn say_moved(
        &mut self,
        expert: Option<v1::NodeRef>,
        reason: v1::MoveReason,
        output: &mut Output,
    ) -> Result<(), Status> {
        let failed = std::mem::take(&mut self.blamed).into_iter().map(|expert| expert.0).collect();
        let epoch = self.session.epoch().0;
        output.send(Response::Moved(v1::Moved { expert, reason: reason.into(), epoch, failed })).await
    }
}

/// How a conversation with one expert ended.
enum Conversation {
    Finished(Finish),
    Over(ExpertLoss),
}

impl Conversation {
    fn refused(status: Status) -> Self {
        Self::Over(ExpertLoss::Refused(status))
    }
}
