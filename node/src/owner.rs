//! The owner's end of `Session/Run`: reading what the router opens, writing what was committed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cascadia_core::commit::{Commit, Committed, Finish, FinishReason, Piece, Room, StopMatch, StopSettings, Text};
use cascadia_core::decoding::Decoding;
use cascadia_core::engine::ModelFacts;
use cascadia_core::ids::{Epoch, SessionId, SessionSecret, TokenId};
use cascadia_core::limits;
use cascadia_core::session::{Counters, Emitted};
use cascadia_core::waiting_queue;
use cascadia_proto::convert;
use cascadia_proto::v1::run_request::Message as Request;
use cascadia_proto::v1::run_response::Message as Response;
use cascadia_proto::v1::{self, RunRequest, RunResponse};
use cascadia_proto::{parameters, refusal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::cluster::ClusterName;
use crate::prompts;
use crate::sessions::Open;
use crate::telemetry::{Span, SpanRef, TraceContext, Tracer, log_span};

/// What the router opened, whole.
#[derive(Debug)]
pub struct OpenedRun {
    /// The session.
    pub session: SessionId,
    /// The placement.
    pub epoch: Epoch,
    /// What takes the session over, here and at its expert; none from a router that has none.
    pub secret: Option<SessionSecret>,
    /// The protocol both speak.
    pub protocol: u32,
    /// The opening message itself.
    pub open: v1::RunOpen,
    /// What the router asks for.
    pub resolved: v1::Resolved,
    /// A continued session's prompt length and all its ids.
    pub continued: Option<(usize, Vec<TokenId>)>,
    /// The session's span here; it ends with the session.
    pub span: Span,
    /// When it was read: what is left of its time counts from here.
    read: Instant,
}

/// How long a router may take to say what it opens.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

impl OpenedRun {
    /// Reads `RunOpen` and, for a continued session, its history.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming what is missing or wrong, `FAILED_PRECONDITION` where no protocol is shared.
    pub async fn read(
        inbound: &mut Streaming<RunRequest>,
        facts: &ModelFacts,
        caller: &TraceContext,
        tracer: &Tracer,
    ) -> Result<Self, Status> {
        let reading = tokio::time::timeout(OPENING_TIMEOUT, Self::read_whole(inbound, facts));
        let opening =
            reading.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("the session was not opened within 10 s")));
        let opening = opening?;
        let mut span = tracer.session(opening.session, caller, "Session/Run");
        span.began(opening.read.elapsed());
        opening.describe(&mut span);
        Ok(Self { span, ..opening })
    }

    fn describe(&self, span: &mut Span) {
        if !span.is_recording() {
            return;
        }
        span.set("cascadia.session", self.session.to_string());
        span.set("cascadia.epoch", self.epoch.0 as i64);
        span.set("cascadia.model", self.open.model.clone());
        let parameters = self.resolved.parameters.clone().unwrap_or_default();
        span.set("spec.strategy", parameters.strategy);
        span.set_some("spec.rule", Some(parameters.rule).filter(|rule| !rule.is_empty()));
        span.set_some("cascadia.history_tokens", self.continued.as_ref().map(|(_, ids)| ids.len() as i64));
    }

    /// What its log lines have in common.
    #[must_use]
    pub fn log_span(&self) -> tracing::Span {
        log_span(self.session, &self.span.context())
    }

    /// How the session ended here. A caller that goes away is no failure.
    pub fn ended(&mut self, ended: &Result<(), Status>) {
        if let Err(status) = ended {
            self.span.fail_with(status);
        }
    }

    async fn read_whole(inbound: &mut Streaming<RunRequest>, facts: &ModelFacts) -> Result<Self, Status> {
        let Some(RunRequest { message: Some(Request::Open(open)) }) = inbound.message().await? else {
            return Err(Status::invalid_argument("the first message of a session must be `open`"));
        };
        let theirs = open.protocol.ok_or_else(|| Status::invalid_argument("open.protocol is missing"))?;
        let protocol = cascadia_proto::negotiate(&theirs).map_err(Status::failed_precondition)?;
        let key = open.key.clone().ok_or_else(|| Status::invalid_argument("open.key is missing"))?;
        let (session, epoch) = convert::session_key(&key).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let secret = convert::session_secret(&key).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let resolved = open.resolved.clone().ok_or_else(|| Status::invalid_argument("open.resolved is missing"))?;
        let continued = match &open.continued {
            None => None,
            Some(continued) => {
                let count = continued.history_tokens as usize;
                if count > facts.context {
                    return Err(Status::invalid_argument(format!(
                        "a history of {count} ids does not fit the context of {}",
                        facts.context
                    )));
                }
                let ids = read_history(inbound, count).await?;
                Some((continued.prompt_tokens as usize, ids))
            }
        };
        let (span, read) = (Span::default(), Instant::now());
        Ok(Self { session, epoch, secret, protocol, open, resolved, continued, span, read })
    }

    /// The time the request has left.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        waiting_queue::claimed(self.open.remaining_ms).saturating_sub(self.read.elapsed())
    }

    /// How long ago the router admitted the session.
    #[must_use]
    pub fn age(&self) -> Duration {
        waiting_queue::claimed(self.open.age_ms) + self.read.elapsed()
    }

    /// Resolves what was opened against a model: ids, decoding and the output they go to. Ends early, with
    /// `CANCELLED`, where the router has gone.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming what is wrong with the prompt or a parameter.
    pub async fn begin(
        &self,
        text: &Arc<dyn Text>,
        facts: &ModelFacts,
        sender: Sender,
    ) -> Result<ResolvedSession, Status> {
        let parameters = self.resolved.parameters.clone().unwrap_or_default();
        let (prompt_tokens, ids) = match &self.continued {
            Some((prompt_tokens, ids)) => (*prompt_tokens, ids.clone()),
            None => {
                let prompt =
                    convert::prompt(self.open.prompt.clone()).map_err(|e| Status::invalid_argument(e.to_string()))?;
                // A default asks for nothing: one token will do.
                let asked = parameters.max_tokens.filter(|_| !self.resolved.default_max_tokens);
                let max_tokens = asked.unwrap_or(1) as usize;
                let room = Room { context_length: facts.context, max_tokens };
                let ids = tokio::select! {
                    biased;
                    () = sender.closed() => return Err(Status::cancelled("the router has gone")),
                    ids = prompts::ids(text, prompt, room) => ids?,
                };
                (ids.len(), ids)
            }
        };
        if prompt_tokens == 0 || ids.len() < prompt_tokens || ids.len() > facts.context {
            return Err(Status::invalid_argument(format!(
                "a history of {} ids with a prompt of {prompt_tokens} does not fit the context of {}",
                ids.len(),
                facts.context
            )));
        }
        known_ids(&ids, facts.vocabulary, "history")?;
        let mut decoding = parameters::decoding(&self.resolved, prompt_tokens, text.eos_ids())?;
        let biased: Vec<TokenId> = decoding.sampling.logit_bias.iter().map(|&(token, _)| token).collect();
        known_ids(&biased, facts.vocabulary, "logit_bias")?;
        known_ids(&decoding.sampling.banned, facts.vocabulary, "banned")?;
        known_ids(&parameters.stop_token_ids, facts.vocabulary, "stop_token_ids")?;
        if decoding.sampling.banned.iter().collect::<BTreeSet<_>>().len() >= facts.vocabulary {
            return Err(refusal::of_field(
                "banned",
                "banned: every token of the vocabulary is banned; leave one at least",
            ));
        }
        decoding.max_tokens = decoding.max_tokens.min(facts.context.saturating_sub(prompt_tokens));
        let stop = StopSettings {
            stop_ids: decoding.stop_ids.clone(),
            stop_strings: parameters.stop,
            max_tokens: decoding.max_tokens,
        };
        let mut output = Output::new(
            sender,
            text.clone().begin(&ids[..prompt_tokens], stop),
            Start { ids: &ids, prompt_tokens, decoding: &decoding },
        );
        output.reproducible = facts.row_exact;
        Ok(ResolvedSession { decoding: Arc::new(decoding), ids, prompt_tokens, output })
    }

    /// What the router hears when the session is open here.
    #[must_use]
    pub fn opened(
        &self,
        fingerprints: v1::Fingerprints,
        facts: &ModelFacts,
        prompt_tokens: usize,
        cluster: &ClusterName,
    ) -> Response {
        let bound = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Response::Opened(v1::Opened {
            protocol: self.protocol,
            fingerprints: Some(fingerprints),
            prompt_tokens: bound(prompt_tokens),
            vocabulary: bound(facts.vocabulary),
            context: bound(facts.context),
            cluster: cluster.to_string(),
        })
    }

    /// The session as it asks for its place at the engine, to do this; `begun` where tokens of it are committed.
    #[must_use]
    pub fn at_engine<W>(&self, work: W, begun: bool) -> Open<W> {
        Open {
            key: self.session,
            epoch: self.epoch,
            secret: self.secret.clone(),
            work,
            priority: self.open.priority,
            salt: self.salt().to_owned(),
            age: self.age(),
            begun,
            // It verifies nothing: a batch for each of its tokens would say nothing more than its span.
            mark: SpanRef::default(),
        }
    }

    /// Part of the prefix cache's key: the request's salt, else its tenant.
    #[must_use]
    pub fn salt(&self) -> &str {
        if self.open.cache_salt.is_empty() { &self.open.tenant } else { &self.open.cache_salt }
    }
}

/// Returns when the router cancels; a router that merely has no more to say keeps the session.
///
/// # Errors
/// The cancellation.
pub async fn cancelled(inbound: &mut Streaming<RunRequest>) -> Result<(), Status> {
    while inbound.message().await?.is_some() {}
    std::future::pending().await
}

async fn read_history(inbound: &mut Streaming<RunRequest>, count: usize) -> Result<Vec<TokenId>, Status> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let Some(RunRequest { message: Some(Request::History(history)) }) = inbound.message().await? else {
            return Err(Status::invalid_argument(format!("the history ends after {} of {count} ids", ids.len())));
        };
        ids.extend(history.ids);
    }
    if ids.len() > count {
        return Err(Status::invalid_argument(format!("the history has {} ids, {count} were announced", ids.len())));
    }
    Ok(ids)
}

/// Refuses ids outside the vocabulary.
///
/// # Errors
/// `INVALID_ARGUMENT` naming the field and the id.
pub fn known_ids(ids: &[TokenId], vocabulary: usize, field: &'static str) -> Result<(), Status> {
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        None => Ok(()),
        Some(id) => {
            let sentence = format!("{field}: token {id} is unknown, the vocabulary has {vocabulary}");
            Err(refusal::of_field(field, sentence))
        }
    }
}

/// Where a session's messages go.
pub type Sender = mpsc::Sender<Result<RunResponse, Status>>;

/// A session resolved against a model.
#[derive(Debug)]
pub struct ResolvedSession {
    /// What fixes the text.
    pub decoding: Arc<Decoding>,
    /// All committed ids, prompt first.
    pub ids: Vec<TokenId>,
    /// How many of them are the prompt.
    pub prompt_tokens: usize,
    /// Where committed tokens go.
    pub output: Output,
}

/// What a session tells its router: each position once, in order, through the one commit function.
pub struct Output {
    sender: Sender,
    commit: Box<dyn Commit>,
    choice: u32,
    position: usize,
    prompt_tokens: usize,
    logprobs: bool,
    /// False from the first position that a retry might not repeat.
    pub reproducible: bool,
    /// Prompt tokens that needed no prefill at the model that decides.
    pub cached_tokens: u32,
    /// The committed ids end the text already: their owner died between its last tokens and saying so.
    pub over: Option<Finish>,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Output at {}", self.position)
    }
}

/// Where a session's output starts.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// All committed ids, prompt first.
    pub ids: &'a [TokenId],
    /// How many of them are the prompt.
    pub prompt_tokens: usize,
    /// What fixes the text.
    pub decoding: &'a Decoding,
}

impl Output {
    /// An output that goes on after the committed ids; their text has been relayed already.
    pub fn new(sender: Sender, mut commit: Box<dyn Commit>, start: Start<'_>) -> Self {
        let committed = &start.ids[start.prompt_tokens..];
        let over = if committed.is_empty() { None } else { commit.commit(committed).finish };
        Self {
            sender,
            commit,
            choice: start.decoding.choice,
            position: start.ids.len(),
            prompt_tokens: start.prompt_tokens,
            logprobs: start.decoding.logprobs.is_some(),
            reproducible: true,
            cached_tokens: 0,
            over,
        }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// `CANCELLED` where the router has gone, or reads nothing for as long as a client may: a session that nobody reads
    /// holds its place for nothing.
    pub async fn send(&self, message: Response) -> Result<(), Status> {
        let response = RunResponse { message: Some(message) };
        match tokio::time::timeout(limits::CLIENT_WRITE_TIMEOUT, self.sender.send(Ok(response))).await {
            Ok(sent) => sent.map_err(|_| Status::cancelled("the router closed the session")),
            Err(_) => {
                let seconds = limits::CLIENT_WRITE_TIMEOUT.as_secs();
                Err(Status::cancelled(format!("the router left the session unread for {seconds} s")))
            }
        }
    }

    /// Sends the ids of a new session's prompt.
    ///
    /// # Errors
    /// `CANCELLED` where the router has gone.
    pub async fn prompt(&self, ids: &[TokenId]) -> Result<(), Status> {
        for history in convert::histories(ids) {
            self.send(Response::History(history)).await?;
        }
        Ok(())
    }

    /// Commits and sends, a message for each run of tokens of one provenance so that its text has one too; the text's
    /// end, if this reached it.
    ///
    /// # Errors
    /// `CANCELLED` where the router has gone.
    pub async fn emit(&mut self, emitted: &[Emitted], from: Scorer) -> Result<Option<Finish>, Status> {
        let mut runs = emitted.chunk_by(|a, b| a.provenance == b.provenance).peekable();
        while let Some(run) = runs.next() {
            let finish = self.emit_run(run, from, runs.peek().is_some()).await?;
            if finish.is_some() {
                return Ok(finish);
            }
        }
        Ok(None)
    }

    async fn emit_run(&mut self, run: &[Emitted], from: Scorer, more: bool) -> Result<Option<Finish>, Status> {
        let ids: Vec<TokenId> = run.iter().map(|e| e.token).collect();
        let Committed { taken, text, finish } = self.commit.commit(&ids);
        let kept = &run[..taken];
        let logprobs = if self.logprobs { kept.iter().map(|e| from.logprobs(e)).collect() } else { Vec::new() };
        let pieces = if self.logprobs { self.pieces(kept) } else { Vec::new() };
        let tokens = v1::Tokens {
            choice: self.choice,
            position: self.position as u64,
            ids: ids[..taken].to_vec(),
            text,
            provenance: kept.iter().map(|e| convert::provenance(e.provenance).into()).collect(),
            logprobs,
            pieces,
            more: more && finish.is_none(),
        };
        self.position += taken;
        if taken > 0 || !tokens.text.is_empty() {
            self.send(Response::Tokens(tokens)).await?;
        }
        Ok(finish)
    }

    /// What each token and alternative writes: the router has no tokenizer.
    fn pieces(&self, kept: &[Emitted]) -> Vec<v1::Piece> {
        let named = kept.iter().flat_map(|e| e.score.top.iter().map(|&(token, _)| token).chain([e.token]));
        let ids: BTreeSet<TokenId> = named.collect();
        let piece = |token| {
            let Piece { bytes, special } = self.commit.piece(token);
            v1::Piece { token, bytes, special }
        };
        ids.into_iter().map(piece).collect()
    }

    /// Ends the session.
    ///
    /// # Errors
    /// `CANCELLED` where the router has gone.
    pub async fn finish(&self, finish: Finish, speculation: v1::Speculation) -> Result<(), Status> {
        let (stop_token, stop_string) = match finish.matched {
            Some(StopMatch::Token(token)) => (Some(token), None),
            Some(StopMatch::Text(text)) => (None, Some(text)),
            None => (None, None),
        };
        let reason = match finish.reason {
            FinishReason::Stop => v1::FinishReason::Stop,
            FinishReason::Length => v1::FinishReason::Length,
        };
        self.send(Response::Finished(v1::Finished {
            reason: reason.into(),
            usage: Some(v1::Usage {
                prompt_tokens: self.prompt_tokens as u32,
                completion_tokens: (self.position - self.prompt_tokens) as u32,
                cached_tokens: self.cached_tokens,
            }),
            speculation: Some(speculation),
            reproducible: self.reproducible,
            stop_string,
            stop_token,
        }))
        .await
    }

    /// Ends the session with an error.
    pub async fn fail(&self, status: Status) {
        let _ = self.sender.send(Err(status)).await;
    }

    /// Returns when the router has closed the session.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

/// Whose log-probabilities an emitted token carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scorer {
    /// The expert's.
    Expert,
    /// The drafter's: strategy `drafter` alone.
    Drafter,
}

impl Scorer {
    fn logprobs(self, emitted: &Emitted) -> v1::TokenLogprobs {
        let own = emitted.score.logprob;
        v1::TokenLogprobs {
            expert: own.filter(|_| self == Self::Expert),
            drafter: own.filter(|_| self == Self::Drafter),
            top: emitted.score.top.iter().map(|&(token, logprob)| v1::Alternative { token, logprob }).collect(),
        }
    }
}

/// A session's counters, as they travel; only a session of blocks has outcomes to add.
#[must_use]
pub fn speculation(counters: Counters) -> v1::Speculation {
    v1::Speculation {
        blocks: counters.blocks,
        drafted: counters.drafted,
        accepted: counters.accepted,
        relaxed: counters.relaxed,
        deferred: counters.deferred,
        expert_passes: counters.expert_passes,
        moves: counters.moves,
        stale_blocks: counters.stale_blocks,
        score: None,
        outcomes: Vec::new(),
    }
}
