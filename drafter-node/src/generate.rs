//! The drafter's loop: draft, ask, commit, stream; and what it does when its expert is lost.

use std::collections::BTreeSet;
use std::sync::Arc;

use cascadia_core::block::{Answer, Score};
use cascadia_core::commit::{Finish, FinishReason};
use cascadia_core::decoding::Decoding;
use cascadia_core::ids::{NodeId, TokenId};
use cascadia_core::limits;
use cascadia_core::pipeline::Pipeline;
use cascadia_core::session::{Answered, Emitted, Session};
use cascadia_core::tasks::{DecodeTask, DraftTask};
use cascadia_node::owner::{self, Opening, Output, Scorer};
use cascadia_node::sessions::{Heard, Open, OpenSession};
use cascadia_proto::v1;
use cascadia_proto::v1::run_response::Message as Response;
use tonic::{Code, Status};

use crate::alone;
use crate::engine::{DrafterOrder, DrafterReply, DrafterWork};
use crate::expert_link::{Expert, ExpertLink, Said};
use crate::node::{DrafterNode, Wanted};

/// Tokens that are scored at once where the drafter answered whole; bounds the rows of one chunk.
const SCORE_TOKENS: usize = 64;

/// Streams in a row that may end barren before the session is given up: what no expert can serve must not go round.
const MOST_BARREN: u32 = 8;

/// One session that asks an expert.
pub struct Generation<'n> {
    node: &'n DrafterNode,
    opening: &'n Opening,
    decoding: Arc<Decoding>,
    prompt_tokens: usize,
    session: Session,
    /// The expert model the session is pinned to, once it has met one.
    pinned: String,
    /// Experts that failed this session since it last held one.
    failed: BTreeSet<NodeId>,
    /// Kept tokens whose scores are under way; the client gets both together.
    unscored: Vec<Emitted>,
    /// Streams in a row that ended before they committed anything.
    barren: u32,
    /// Some expert was full when this session looked for one.
    met_full: bool,
    /// An expert has served it.
    met: bool,
}

/// How a session goes on after a look for an expert.
enum Found {
    Link(Box<ExpertLink>),
    /// There is none, and the request would rather go on alone.
    Alone,
}

impl<'n> Generation<'n> {
    /// A session with `ids` committed.
    pub fn new(
        node: &'n DrafterNode,
        opening: &'n Opening,
        decoding: Arc<Decoding>,
        ids: Vec<TokenId>,
        prompt_tokens: usize,
    ) -> Self {
        let pipeline = Pipeline::new(node.config.pipeline_depth, limits::DEFAULT_SLOTS as usize);
        let session = Session::new(decoding.clone(), &ids, opening.epoch, pipeline);
        // The router was told this expert's model when the session opened: it is pinned from there on.
        let pinned =
            opening.open.pinned.as_ref().map(|pinned| pinned.expert.clone()).filter(|pinned| !pinned.is_empty());
        let picked = || opening.open.expert.as_ref().map(|expert| expert.fingerprint.clone());
        let pinned = pinned.or_else(picked).unwrap_or_default();
        Self {
            node,
            opening,
            decoding,
            prompt_tokens,
            session,
            pinned,
            failed: BTreeSet::new(),
            unscored: Vec::new(),
            barren: 0,
            met_full: false,
            met: false,
        }
    }

    /// Runs the session to its end.
    pub async fn run(mut self, mut output: Output) -> Result<(), Status> {
        let mut engine = self.open_engine().await?;
        // Drafting starts while the stream opens.
        self.order(&engine)?;
        let mut link = match self.first_link(&mut output).await? {
            Found::Link(link) => link,
            Found::Alone => return self.alone(engine, output).await,
        };
        loop {
            let before = self.session.committed().len();
            match self.converse(&mut engine, &mut link, &mut output).await? {
                Conversation::Finished(finish) => {
                    return output.finish(finish, owner::speculation(self.session.counters())).await;
                }
                Conversation::Over(loss) => {
                    self.barren = if self.session.committed().len() > before { 0 } else { self.barren + 1 };
                    if let (Loss::Refused(status), true) = (&loss, self.barren >= MOST_BARREN) {
                        return Err(status.clone());
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
            && link.send(&block).is_err()
        {
            return Ok(Conversation::Over(Loss::Lost));
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
                    Heard::Reply(DrafterReply::Drafted(ticket, drafts)) => {
                        let (kept, block) = self.session.drafted(ticket, drafts);
                        if let Some(block) = block && link.send(&block).is_err() {
                            return Ok(Conversation::Over(Loss::Lost));
                        }
                        self.hold_unscored(kept)
                    }
                    _ => Vec::new(),
                },
                said = link.next() => match said {
                    Ok(Said::Answer(answer)) => {
                        // An expert that answers nonsense is not the client's fault: another may do better.
                        match self.take_answer(answer) {
                            Ok(answered) => self.score_held(answered),
                            Err(what) => return Ok(Conversation::Over(Loss::Refused(Status::internal(what)))),
                        }
                    }
                    Ok(Said::Held) => Vec::new(),
                    Ok(Said::Move) => return Ok(Conversation::Over(Loss::Leaving)),
                    Err(status) if is_final(&status) => return Err(status),
                    Err(status) => {
                        tracing::warn!(session = %self.opening.session, expert = %expert, %status, "expert lost");
                        return Ok(Conversation::Over(Loss::of(status)));
                    }
                },
                () = &mut hung => {
                    tracing::warn!(session = %self.opening.session, expert = %expert, "expert hung");
                    return Ok(Conversation::Over(Loss::Lost));
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
        link: &ExpertLink,
    ) -> Result<Option<Conversation>, Status> {
        self.order(engine)?;
        if !self.session.is_idle() {
            return Ok(None);
        }
        match self.session.flush_scores() {
            Some(block) if link.send(&block).is_err() => Ok(Some(Conversation::Over(Loss::Lost))),
            Some(_) => Ok(None),
            None => Ok(Some(Conversation::Finished(Finish { reason: FinishReason::Length, matched: None }))),
        }
    }

    fn take_answer(&mut self, answer: Answer) -> Result<Answered, String> {
        let answered = self.session.answer(answer)?;
        if answered.resync {
            return Err("the expert holds another history than it was told".into());
        }
        match answered.emitted.iter().find(|emitted| emitted.token as usize >= self.node.facts.vocabulary) {
            None => Ok(answered),
            Some(emitted) => {
                Err(format!("the expert wrote token {}, which the tokenizer does not know", emitted.token))
            }
        }
    }

    fn order(&mut self, engine: &OpenSession<DrafterWork>) -> Result<(), Status> {
        match self.session.next_draft() {
            Some(order) => engine.order(DrafterOrder::Draft(order)),
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

    async fn open_engine(&self) -> Result<OpenSession<DrafterWork>, Status> {
        let open = Open {
            key: self.opening.session,
            epoch: self.opening.epoch,
            work: DrafterWork::Draft(DraftTask::new(self.decoding.clone())),
            priority: self.opening.open.priority,
            salt: self.opening.salt().to_owned(),
            age: self.opening.age(),
        };
        self.node.engine.open(open).await
    }

    /// The stream to the expert that the router picked, or to another if that one is lost.
    async fn first_link(&mut self, output: &mut Output) -> Result<Found, Status> {
        let picked = self.opening.open.expert.clone().map(|node| Expert {
            id: NodeId(node.id),
            address: node.address,
            fingerprint: node.fingerprint,
        });
        if let Some(picked) = picked {
            match self.try_link(picked).await? {
                Some(link) => return Ok(self.hold(link, output)),
                None => {
                    self.session.reopen();
                }
            }
        }
        self.search(v1::MoveReason::Loss, output).await
    }

    /// The stream to the next expert.
    async fn next_link(&mut self, lost: Box<ExpertLink>, loss: &Loss, output: &mut Output) -> Result<Found, Status> {
        self.failed.insert(lost.expert.id.clone());
        if matches!(loss, Loss::Lost) {
            self.node.experts.failed(&lost.expert.id);
            self.node.connector.forget(&lost.expert.address);
        }
        drop(lost);
        self.session.reopen();
        let reason = if matches!(loss, Loss::Leaving) { v1::MoveReason::Drain } else { v1::MoveReason::Loss };
        self.search(reason, output).await
    }

    /// Looks for an expert until there is one, or the request prefers the drafter alone.
    async fn search(&mut self, reason: v1::MoveReason, output: &mut Output) -> Result<Found, Status> {
        loop {
            if let Some(expert) = self.pick() {
                let node_ref = expert.node_ref();
                if let Some(link) = self.try_link(expert).await? {
                    let moved =
                        v1::Moved { expert: Some(node_ref), reason: reason.into(), epoch: self.session.epoch().0 };
                    output.send(Response::Moved(moved)).await?;
                    return Ok(self.hold(link, output));
                }
                self.session.reopen();
                continue;
            }
            // Experts that are only full are not lost: their sessions end, and this one's turn comes.
            if self.prefers_drafter() && !std::mem::take(&mut self.met_full) {
                return Ok(Found::Alone);
            }
            self.pause().await;
        }
    }

    /// Whoever failed once may be back by now; the status stream says who is not.
    async fn pause(&mut self) {
        self.failed.clear();
        tokio::time::sleep(limits::WATCH_PERIOD).await;
    }

    fn pick(&self) -> Option<Expert> {
        self.node.pick(&Wanted {
            session: self.opening.session,
            model: &self.opening.open.model,
            pinned: &self.pinned,
            tokens: self.decoding.end(),
            exclude: self.failed.clone(),
        })
    }

    fn prefers_drafter(&self) -> bool {
        let parameters = self.opening.resolved.parameters.as_ref();
        parameters.is_some_and(|p| p.on_expert_loss() == v1::OnExpertLoss::Drafter)
    }

    fn hold(&mut self, link: ExpertLink, output: &mut Output) -> Found {
        self.pinned.clone_from(&link.fingerprint);
        self.failed.clear();
        self.met = true;
        self.session.limit_depth(link.slots);
        if link.context > 0 {
            self.session.limit_context(link.context);
        }
        output.reproducible &= link.row_exact;
        Found::Link(Box::new(link))
    }

    /// Opens a stream; `None` where this expert is lost and another may do.
    async fn try_link(&mut self, expert: Expert) -> Result<Option<ExpertLink>, Status> {
        let id = expert.id.clone();
        let channel = self.node.connector.channel(&expert.address);
        let opened = tokio::select! {
                biased;
            opened = ExpertLink::open(channel, expert, self.verify_open(), self.session.told()) => opened,
            () = self.node.experts.gone(&id) => Err(Status::unavailable("the expert is hung")),
        };
        let status = match opened {
            Ok(link) => return Ok(Some(link)),
            Err(status) => status,
        };
        // A session that has been served elsewhere is not at fault: this expert does not fit it.
        if is_final(&status) && !self.met {
            return Err(status);
        }
        tracing::warn!(session = %self.opening.session, expert = %id, %status, "expert does not take the session");
        self.met_full |= status.code() == Code::ResourceExhausted;
        if matches!(Loss::of(status), Loss::Lost) {
            self.node.experts.failed(&id);
        }
        self.failed.insert(id);
        Ok(None)
    }

    fn verify_open(&self) -> v1::VerifyOpen {
        let open = &self.opening.open;
        let mut resolved = self.opening.resolved.clone();
        if let Some(parameters) = &mut resolved.parameters {
            // One stop set on both sides: the owner's EOS is part of it.
            parameters.stop_token_ids.clone_from(&self.decoding.stop_ids);
            parameters.max_tokens = Some(self.decoding.max_tokens as u32);
        }
        v1::VerifyOpen {
            protocol: Some(cascadia_proto::range()),
            key: Some(cascadia_proto::convert::session_key_message(self.opening.session, self.session.epoch())),
            model: open.model.clone(),
            resolved: Some(resolved),
            tenant: open.tenant.clone(),
            priority: open.priority,
            cache_salt: open.cache_salt.clone(),
            remaining_ms: self.opening.remaining().as_millis() as u64,
            age_ms: self.opening.age().as_millis() as u64,
            prompt_tokens: self.prompt_tokens as u32,
            history_tokens: self.session.told().len() as u32,
            pinned_fingerprint: self.pinned.clone(),
            tokenizer_fingerprint: self.node.text.fingerprint().to_owned(),
        }
    }

    /// `on_expert_loss: drafter`: the drafter writes the rest, and the response says that a retry may differ.
    async fn alone(mut self, engine: OpenSession<DrafterWork>, mut output: Output) -> Result<(), Status> {
        self.say_alone(&mut output).await?;
        let committed = self.session.committed().to_vec();
        // Committed already, but held for a score that no expert will give.
        let held = std::mem::take(&mut self.unscored);
        if let Some(finish) = output.emit(&held, Scorer::Expert).await? {
            return output.finish(finish, owner::speculation(self.session.counters())).await;
        }
        engine.order(DrafterOrder::Alone(Box::new(DecodeTask::new(self.decoding.clone(), committed))))?;
        alone::stream(engine, output, self.session.counters()).await
    }

    /// The router notes it: should this drafter die too, what follows is no better for it.
    async fn say_alone(&self, output: &mut Output) -> Result<(), Status> {
        output.reproducible = false;
        let moved = v1::Moved { expert: None, reason: v1::MoveReason::Loss.into(), epoch: self.session.epoch().0 };
        output.send(Response::Moved(moved)).await
    }

    /// Has an expert score tokens that the drafter decoded alone; the passes it took. Without an expert they stay
    /// unscored where the request prefers that to waiting.
    pub async fn score(&mut self, emitted: &mut [Emitted], output: &mut Output) -> Result<u64, Status> {
        let mut ids = self.session.committed().to_vec();
        let (mut done, mut passes) = (0, 0);
        while done < emitted.len() {
            self.session = Session::new(self.decoding.clone(), &ids, self.session.epoch(), Pipeline::Fixed(1));
            let Some(mut link) = self.any_link().await? else {
                self.say_alone(output).await?;
                return Ok(passes);
            };
            while done < emitted.len() {
                let end = emitted.len().min(done + SCORE_TOKENS);
                let piece = &mut emitted[done..end];
                let tokens: Vec<TokenId> = piece.iter().map(|e| e.token).collect();
                let scores = match self.score_piece(&mut link, &tokens).await {
                    Ok(scores) => scores,
                    Err(status) if is_final(&status) => return Err(status),
                    Err(status) => {
                        // The next stream starts from what has been scored.
                        self.failed.insert(link.expert.id.clone());
                        if matches!(Loss::of(status), Loss::Lost) {
                            self.node.experts.failed(&link.expert.id);
                        }
                        self.session.reopen();
                        break;
                    }
                };
                for (token, score) in piece.iter_mut().zip(scores) {
                    token.score = score;
                }
                ids.extend(tokens);
                done = end;
                passes += 1;
            }
        }
        Ok(passes)
    }

    async fn any_link(&mut self) -> Result<Option<ExpertLink>, Status> {
        loop {
            if let Some(expert) = self.pick() {
                if let Some(link) = self.try_link(expert).await? {
                    return Ok(Some(link));
                }
                self.session.reopen();
            } else if self.prefers_drafter() && !std::mem::take(&mut self.met_full) {
                return Ok(None);
            } else {
                self.pause().await;
            }
        }
    }

    async fn score_piece(&mut self, link: &mut ExpertLink, tokens: &[TokenId]) -> Result<Vec<Score>, Status> {
        self.session.give(tokens);
        let Some(block) = self.session.flush_scores() else { return Ok(Vec::new()) };
        link.send(&block)?;
        let expert = link.expert.id.clone();
        loop {
            let said = tokio::select! {
                biased;
                said = link.next() => said?,
                () = self.node.experts.gone(&expert) => return Err(Status::unavailable("the expert is hung")),
            };
            match said {
                Said::Answer(answer) => return Ok(self.take_answer(answer).map_err(Status::internal)?.given_scores),
                Said::Move => return Err(Status::unavailable("the expert drains")),
                Said::Held => {}
            }
        }
    }
}

/// How a conversation with one expert ended.
enum Conversation {
    Finished(Finish),
    Over(Loss),
}

/// Why a stream to an expert is over.
enum Loss {
    /// The expert is dead, hung or cut off: nobody shall choose it for a while.
    Lost,
    /// It does not go on with this session; it may well serve others.
    Refused(Status),
    /// It drains.
    Leaving,
}

impl Loss {
    fn of(status: Status) -> Self {
        use std::error::Error as _;
        let is_transport = status.source().is_some();
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled => Self::Lost,
            _ if is_transport => Self::Lost,
            _ => Self::Refused(status),
        }
    }
}

/// Whether another expert would say the same.
fn is_final(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound | Code::Unimplemented)
}
