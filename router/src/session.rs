//! One session's life at the router: placed, relayed, placed again where its owner is lost, until its text is whole.
//!
//! Everything here ends by being dropped: the caller drops it when the client leaves or the time is up, and the owner's
//! stream with it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use cascadia_core::ids::{NodeId, SessionSecret};
use cascadia_core::placement::{PlacementError, Role, Wish};
use cascadia_proto::v1::generate_response::Event;
use cascadia_proto::v1::run_response::Message;
use cascadia_proto::v1::{self, Fingerprints, FinishReason, MoveReason, Parameters};
use tokio::time::Instant;
use tonic::Status;

use crate::admission::AdmittedRequest;
use crate::client::Client;
use crate::contract::Contract;
use crate::error::GenerateError;
use crate::failover::{Action, Attempts, OwnerExit, OwnerLoss, decide, read_status};
use crate::metrics::{Missing, SessionMetrics};
use crate::placement::{self, Constraints, NoPlacement, Placement};
use crate::router::Router;
use crate::run::{Run, RunOpenRequest};
use crate::spans::Spans;
use crate::speculation_totals::{self, SpeculationTotals};
use crate::transcript::{Breach, Transcript};

/// A node that lost the session or had no room for it is not asked again for so long.
const AVOID: Duration = Duration::from_secs(1);

/// Nor is one that broke the protocol, for long enough that an expert steps in where it is the only drafter.
const AVOID_BROKEN: Duration = Duration::from_secs(5);

/// A session without a place looks again at least this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// One session.
#[derive(Debug)]
pub struct Session<'a> {
    router: &'a Router,
    admitted: &'a AdmittedRequest,
    client: &'a Client,
    /// What the client was told is in force.
    parameters: Arc<Parameters>,
    transcript: Transcript,
    contract: Contract<'a>,
    /// What takes the session over at a node that has it: told to its nodes only.
    secret: SessionSecret,
    totals: SpeculationTotals,
    pinned: Fingerprints,
    placement: u32,
    attempts: Attempts,
    /// The client was told that it started.
    started: bool,
    handed_over: bool,
    /// Whether a retry would repeat everything so far.
    exact: bool,
    /// Nodes not to be asked, until when, and whether they were only busy.
    avoid: BTreeMap<NodeId, (Instant, bool)>,
    /// What the last owner without room said.
    refusal: Option<Status>,
    waiting_for: Option<PlacementError>,
    /// The expert that works for the present owner.
    expert: Option<NodeId>,
    /// How much was committed when the present owner opened the session.
    opened_at: Option<usize>,
    /// When the owner last said something.
    heard: Instant,
    metrics: SessionMetrics<'a>,
    /// Its trace.
    pub spans: Spans<'a>,
    /// The text so far, where it is to be logged.
    answer: Option<String>,
}

impl<'a> Session<'a> {
    /// An admitted session.
    #[must_use]
    pub fn new(router: &'a Router, admitted: &'a AdmittedRequest, client: &'a Client, spans: Spans<'a>) -> Self {
        Self {
            router,
            admitted,
            client,
            parameters: admitted.parameters.clone(),
            transcript: Transcript::new(admitted.choice),
            contract: Contract::new(admitted),
            secret: router.config.now().ids.secret(),
            totals: SpeculationTotals::default(),
            pinned: Fingerprints::default(),
            placement: 1,
            attempts: Attempts::default(),
            started: false,
            handed_over: false,
            exact: true,
            avoid: BTreeMap::new(),
            refusal: None,
            waiting_for: None,
            expert: None,
            opened_at: None,
            heard: admitted.arrived,
            metrics: router.metrics.admitted(&admitted.model, &admitted.tenant),
            spans,
            answer: router.log_prompts.then(String::new),
        }
    }

    /// Places and relays until the text is whole.
    ///
    /// # Errors
    /// Why it never will be.
    pub async fn run(&mut self) -> Result<(), GenerateError> {
        loop {
            let placed = self.place().await?;
            let end = self.relay(&placed).await;
            if self.settle(&placed, end).await?.is_break() {
                return Ok(());
            }
        }
    }

    /// The error of a session whose time is up.
    #[must_use]
    pub fn out_of_time(&self) -> GenerateError {
        let (doing, cure) = match &self.waiting_for {
            Some(missing) => (format!("while it waited for a place ({missing})"), "start such a node"),
            None => (format!("after {} tokens", self.transcript.committed()), "ask for fewer tokens"),
        };
        GenerateError::Deadline { allowed: self.admitted.allowed, doing, cure }
    }

    /// Waits for a place.
    async fn place(&mut self) -> Result<Placement, GenerateError> {
        let mut changes = self.router.cluster_health.changes();
        let (mut waiting, since) = (None, Instant::now());
        self.spans.placing();
        loop {
            changes.mark_unchanged();
            let now = Instant::now();
            self.avoid.retain(|_, (until, _)| *until > now);
            let loads = &self.router.loads;
            match placement::place_session(&loads.snapshot(), &loads.loads(), &self.constraints(since)) {
                Ok(placed) => {
                    if !loads.place(&placed.nodes().collect::<Vec<_>>(), self.admitted.tokens) {
                        continue;
                    }
                    self.waiting_for = None;
                    self.spans.placed(&placed);
                    return Ok(placed);
                }
                Err(NoPlacement::Ever(error)) => return Err(GenerateError::Misconfigured(error)),
                Err(NoPlacement::Now(missing)) => {
                    if let Some(refusal) = self.refusal.take().filter(|_| !self.begun()) {
                        return Err(GenerateError::Owner(refusal));
                    }
                    if self.waiting_for.is_none() {
                        self.spans.waiting(&missing);
                    }
                    if self.waiting_for.replace(missing).is_none() {
                        tracing::info!(missing = ?self.waiting_for, "waiting for a place");
                    }
                }
            }
            waiting.get_or_insert_with(|| self.metrics.waiting());
            let _ = tokio::time::timeout(LOOK_AGAIN, changes.changed()).await;
        }
    }

    /// Whether work is done that the client counts on.
    fn begun(&self) -> bool {
        self.handed_over || self.transcript.committed() > 0
    }

    /// What the session needs, having looked for a place `since` then.
    fn constraints(&self, since: Instant) -> Constraints<'_> {
        let chance = (self.admitted.session.0 as u64).wrapping_add(u64::from(self.placement));
        let exclude: BTreeSet<NodeId> = self.avoid.keys().cloned().collect();
        Constraints {
            parameters: &self.parameters,
            handed_over: self.handed_over,
            begun: self.started,
            break_promise: since.elapsed() >= self.router.cluster_health.patience(&self.admitted.model)
                || !self.router.cluster_health.may_come_back(&self.admitted.model),
            step_in: !self.avoid.values().any(|&(_, busy)| busy),
            wish: Wish {
                model: &self.admitted.model,
                key: self.admitted.key,
                chance,
                session_tokens: self.admitted.tokens,
                expert_fingerprint: placement::pin(&self.pinned.expert),
                drafter_fingerprint: placement::pin(&self.pinned.drafter),
                tokenizer_fingerprint: placement::pin(&self.pinned.tokenizer),
                exclude,
            },
        }
    }

    /// Runs the session at its owner until that ends.
    async fn relay(&mut self, placed: &Placement) -> OwnerExit {
        let router = self.router;
        let owner = &placed.owner;
        let opening = RunOpenRequest {
            admitted: self.admitted,
            cluster: router.loads.cluster(),
            parameters: &self.parameters,
            transcript: &self.transcript,
            pinned: &self.pinned,
            secret: &self.secret,
            placement: self.placement,
            handed_over: self.handed_over,
        };
        let now = Instant::now();
        let opening = opening.messages(placed, now);
        self.heard = now;
        self.opened_at = None;
        self.expert = placed.expert.as_ref().map(|expert| expert.id.clone());
        self.contract.next_owner();
        let _running = self.metrics.running();
        let trace = self.spans.running(placed);
        let mut run = tokio::select! {
            biased;
            run = Run::open(router.connector.permit(&owner.address), opening, &trace) => match run {
                Ok(run) => run,
                Err(status) => return read_status(status),
            },
            () = router.cluster_health.hung(&owner.id, self.heard) => return OwnerExit::Lost(OwnerLoss::Hung),
        };
        loop {
            let message = tokio::select! {
                biased;
                message = run.next() => message,
                () = router.cluster_health.hung(&owner.id, self.heard) => return OwnerExit::Lost(OwnerLoss::Hung),
            };
            self.heard = Instant::now();
            let taken = match message {
                Ok(message) => self.take(placed, message).await,
                Err(end) => return end,
            };
            match taken {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(end)) => return end,
                Err(breach) => return OwnerExit::Broke(breach),
            }
        }
    }

    async fn take(&mut self, placed: &Placement, message: Message) -> Result<ControlFlow<OwnerExit>, Breach> {
        match message {
            Message::Opened(opened) => {
                if self.router.loads.cluster().admits(&placed.owner.id, &opened.cluster).is_err() {
                    return Ok(ControlFlow::Break(OwnerExit::Lost(OwnerLoss::Incompatible)));
                }
                self.opened(placed, opened).await?;
            }
            Message::History(history) => {
                self.contract.history(&history.ids, &self.transcript)?;
                self.transcript.prompt(&history.ids)?;
                self.begin(placed).await;
            }
            Message::Tokens(tokens) => {
                self.contract.tokens(&tokens, &self.transcript)?;
                if let Some(tokens) = self.transcript.commit(tokens)? {
                    self.tokens(tokens).await;
                }
            }
            Message::Moved(moved) => {
                self.contract.moved(&moved)?;
                self.moved(&moved);
            }
            Message::Handover(handover) => {
                self.contract.handover(&handover, &self.transcript)?;
                return Ok(ControlFlow::Break(OwnerExit::HandedOver(handover)));
            }
            Message::Finished(finished) => {
                self.contract.finished(&finished, &self.transcript)?;
                return Ok(ControlFlow::Break(OwnerExit::Finished(finished)));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn opened(&mut self, placed: &Placement, opened: v1::Opened) -> Result<(), Breach> {
        self.contract.opened(&opened, &self.transcript)?;
        let theirs = opened.fingerprints.unwrap_or_default();
        placement::is_listed(placed, &theirs)?;
        placement::agree(&mut self.pinned, &theirs)?;
        self.exact &= theirs.row_exact && placement::keeps_promise(&self.parameters, self.handed_over, placed);
        self.pinned.row_exact = theirs.row_exact;
        self.transcript.announce(opened.prompt_tokens as usize);
        self.opened_at = Some(self.transcript.committed());
        let asks_drafter = !self.handed_over && !placement::is_experts_alone(&self.parameters);
        if placed.is_expert() && asks_drafter {
            self.metrics.fell_back(Missing::Drafter);
        } else if !placed.is_expert() && placed.expert.is_none() && self.parameters.strategy != "drafter" {
            self.metrics.fell_back(Missing::Expert);
        }
        self.begin(placed).await;
        Ok(())
    }

    /// Tells the client that its session has begun, once, as soon as the prompt is whole: no later owner has another.
    async fn begin(&mut self, placed: &Placement) {
        if self.started || !self.transcript.is_known() {
            return;
        }
        self.started = true;
        let prompt_tokens = self.transcript.prompt_tokens() as u32;
        if placed.is_expert() {
            // Where no drafter was alive, this is what is really used, from the first token to the last.
            self.parameters = Arc::new(placement::for_expert(&self.parameters));
        }
        self.metrics.began(u64::from(prompt_tokens), self.admitted.arrived.elapsed());
        let started = v1::Started {
            request_id: self.admitted.request_id.clone(),
            session: self.admitted.session.to_string(),
            model: self.admitted.model.clone(),
            seed: self.admitted.seed,
            parameters: Some(Parameters::clone(&self.parameters)),
            prompt_tokens,
            fingerprints: Some(self.pinned.clone()),
            drafter: placed.drafter_name().to_owned(),
            expert: placed.expert_name().to_owned(),
        };
        self.client.send(Event::Started(started), self.heard).await;
    }

    async fn tokens(&mut self, tokens: v1::Tokens) {
        self.metrics.tokens(&tokens, self.heard, self.admitted.arrived);
        self.spans.tokens(tokens.ids.len(), self.admitted.arrived);
        self.attempts.fruitless = 0;
        self.attempts.failed = 0;
        self.refusal = None;
        self.totals.committed(&tokens);
        if let Some(answer) = &mut self.answer {
            answer.push_str(&tokens.text);
        }
        self.client.send(Event::Tokens(tokens), self.heard).await;
    }

    /// The owner uses another expert; without one it goes on alone, and a retry might not.
    fn moved(&mut self, moved: &v1::Moved) {
        let same = moved.expert.as_ref().is_some_and(|expert| {
            self.pinned.expert.is_empty() || expert.fingerprint.is_empty() || expert.fingerprint == self.pinned.expert
        });
        self.exact &= same;
        self.expert = moved.expert.as_ref().map(|expert| NodeId(expert.id.clone()));
        for expert in &moved.failed {
            self.router.loads.session_failed(&NodeId(expert.clone()), &self.admitted.request_id);
        }
        self.totals.moved();
        let reason = if moved.reason() == MoveReason::Drain { "expert_drain" } else { "expert_lost" };
        self.metrics.migrated(reason);
        if moved.expert.is_none() {
            self.metrics.fell_back(Missing::Expert);
        }
        // Told to trace it where membership says that it is, not where the owner does.
        let snapshot = self.router.loads.snapshot();
        let known = moved.expert.as_ref().and_then(|expert| snapshot.nodes.get(&NodeId(expert.id.clone())));
        self.spans.moved(moved, known.filter(|node| node.role == Role::Expert));
        tracing::info!(reason, to = ?moved.expert.as_ref().map(|expert| &expert.id), "the owner moved to another expert");
    }

    /// The error ended it.
    pub fn failed(&self, code: &'static str) {
        self.metrics.failed(code);
    }

    /// Its client left.
    pub fn left(&self) {
        self.metrics.left();
    }

    /// What comes after an owner's end.
    async fn settle(&mut self, placed: &Placement, end: OwnerExit) -> Result<ControlFlow<()>, GenerateError> {
        let owner = &placed.owner.id;
        self.attempts.begun = self.begun();
        self.attempts.opened = self.opened_at.is_some();
        self.attempts.full += u32::from(matches!(end, OwnerExit::Full(_)));
        self.attempts.failed += u32::from(matches!(end, OwnerExit::Failed(_)));
        self.tell(owner, &end);
        if let OwnerExit::Broke(breach) = &end {
            tracing::error!(%owner, %breach, "the owner broke the protocol");
            self.attempts.broke += 1;
        }
        let fruitless = self.opened_at == Some(self.transcript.committed());
        self.attempts.fruitless += u32::from(match end {
            OwnerExit::Lost(OwnerLoss::Connection | OwnerLoss::Stream) => fruitless,
            // One that hangs over the prompt has not opened the session.
            OwnerExit::Lost(OwnerLoss::Hung) => fruitless || self.opened_at.is_none(),
            _ => false,
        });
        match decide(end, self.attempts) {
            Action::Finish(last) => {
                self.totals.accounted(&last.speculation.clone().unwrap_or_default());
                let (transcript, reason) = (&self.transcript, finish_label(&last));
                let (ids, prompt_tokens) = (transcript.ids(), transcript.prompt_tokens());
                let finished = speculation_totals::finished(last, ids, prompt_tokens, &self.totals, self.exact);
                self.metrics.finished(reason, self.admitted.arrived.elapsed());
                self.spans.finished(&finished);
                if let Some(answer) = &self.answer {
                    tracing::info!(%answer, "answered");
                }
                self.client.send(Event::Finished(finished), self.heard).await;
                return Ok(ControlFlow::Break(()));
            }
            Action::HandOver(_) if self.handed_over => {
                return Err(GenerateError::Owner(Status::internal(
                    "an owner handed a query over that was handed over before",
                )));
            }
            Action::HandOver(handover) => {
                let account = handover.speculation.unwrap_or_default();
                self.totals.accounted(&v1::Speculation { score: Some(handover.score), ..account });
                self.handed_over = true;
                self.spans.handed_over(handover.score);
                self.metrics.migrated("handover");
                self.placement += 1;
            }
            Action::Move(loss) => {
                tracing::warn!(%owner, reason = loss.reason(), committed = self.transcript.committed(), "owner lost");
                self.lose(placed, loss);
            }
            Action::TryElsewhere(refusal) => {
                tracing::info!(%owner, "owner full");
                self.spans.full();
                self.avoid.insert(owner.clone(), (Instant::now() + AVOID, true));
                self.refusal = Some(refusal);
                self.leave();
            }
            Action::Answer(status) => return Err(GenerateError::Owner(status)),
            Action::Break(breach) => return Err(GenerateError::Breach { owner: owner.clone(), breach }),
            Action::GiveUp => return Err(GenerateError::Condemned { owners: self.attempts.fruitless }),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Whoever fails session after session gets none for a while, and whoever serves one does.
    fn tell(&self, owner: &NodeId, end: &OwnerExit) {
        let loads = &self.router.loads;
        match end {
            OwnerExit::Failed(_) => loads.session_failed(owner, &self.admitted.request_id),
            OwnerExit::Finished(_) => {
                std::iter::once(owner).chain(&self.expert).for_each(|node| loads.session_served(node));
            }
            OwnerExit::HandedOver(_) => loads.session_served(owner),
            _ => {}
        }
    }

    fn lose(&mut self, placed: &Placement, loss: OwnerLoss) {
        let owner = &placed.owner;
        self.spans.lost(loss.reason(), self.transcript.committed());
        self.attempts.incompatible += u32::from(loss == OwnerLoss::Incompatible);
        if loss == OwnerLoss::Connection {
            self.router.loads.failed(&owner.id);
            self.router.connector.forget(&owner.address);
        }
        let avoid = if loss == OwnerLoss::Broke { AVOID_BROKEN } else { AVOID };
        self.avoid.insert(owner.id.clone(), (Instant::now() + avoid, false));
        if self.opened_at.is_some() {
            self.totals.owner_gone();
            self.metrics.migrated(loss.reason());
        }
        self.leave();
    }

    fn leave(&mut self) {
        self.transcript.owner_gone();
        self.placement += 1;
    }
}

fn finish_label(finished: &v1::Finished) -> &'static str {
    match finished.reason() {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Unspecified => "other",
    }
}
