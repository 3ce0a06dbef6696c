//! `Verify/Stream`: one stream a session. Decode, bound, mailbox, answer.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cascadia_core::block::Answer;
use cascadia_core::decoding::Decoding;
use cascadia_core::ids::{Epoch, SessionId, SessionSecret, TokenId};
use cascadia_core::tasks::VerifyTask;
use cascadia_core::verify;
use cascadia_core::waiting_queue;
use cascadia_node::evacuation;
use cascadia_node::owner::known_ids;
use cascadia_node::sessions::{BatchInfo, EngineEvent, Open};
use cascadia_node::telemetry::TraceContext;
use cascadia_proto::v1::verify_request::Message as Request;
use cascadia_proto::v1::verify_response::Message as Response;
use cascadia_proto::v1::{self, VerifyRequest, VerifyResponse, verify_server};
use cascadia_proto::{convert, fault, parameters, refusal};
use futures::Stream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response as Answered, Status, Streaming};
use tracing::Instrument;

use crate::engine::{ExpertReply, ExpertWork};
use crate::node::ExpertNode;
use crate::spans::Spans;

/// The verification service.
#[derive(Clone, Debug)]
pub struct VerifyService(pub Arc<ExpertNode>);

type Outbound = mpsc::Sender<Result<VerifyResponse, Status>>;

#[tonic::async_trait]
impl verify_server::Verify for VerifyService {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<VerifyResponse, Status>> + Send>>;

    async fn stream(
        &self,
        request: tonic::Request<Streaming<VerifyRequest>>,
    ) -> Result<Answered<Self::StreamStream>, Status> {
        let caller = TraceContext::from_metadata(request.metadata());
        let inbound = request.into_inner();
        let node = self.0.clone();
        let (sender, receiver) = mpsc::channel(node.config.slots as usize + 4);
        // Ends with the stream: the inbound side closes when the drafter goes, the outbound when the connection does.
        tokio::spawn(async move {
            if let Err(status) = serve(&node, inbound, &sender, &caller).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Answered::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn serve(
    node: &ExpertNode,
    mut inbound: Streaming<VerifyRequest>,
    outbound: &Outbound,
    caller: &TraceContext,
) -> Result<(), Status> {
    let _serving = node.board.serving();
    let reading = tokio::time::timeout(OPENING_TIMEOUT, OpenedVerify::read(node, &mut inbound));
    let opening =
        reading.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("the session was not opened within 10 s")))?;
    let mut spans = Spans::opened(&node.tracer, caller, &opening);
    let log = spans.log_span(&opening);
    let ended = converse(node, &opening, inbound, outbound, &mut spans).instrument(log).await;
    spans.ended(&ended);
    ended
}

async fn converse(
    node: &ExpertNode,
    opening: &OpenedVerify,
    mut inbound: Streaming<VerifyRequest>,
    outbound: &Outbound,
    spans: &mut Spans,
) -> Result<(), Status> {
    let deadline = tokio::time::sleep(opening.remaining);
    tokio::pin!(deadline);
    let to_leave = node.evacuation.until_due(None);
    tokio::pin!(to_leave);
    if node.evacuation.is_due(None) {
        return Err(fault::leaving("the expert drains; another has its model"));
    }
    let work = ExpertWork::Verify(VerifyTask::new(opening.decoding.clone(), &opening.ids, opening.epoch));
    let (key, epoch, priority, salt) = (opening.key, opening.epoch, opening.priority, opening.salt.clone());
    let (age, begun, secret) = (opening.age, opening.begun, opening.secret.clone());
    let open = Open { key, epoch, secret, work, priority, salt, age, begun, mark: spans.mark() };
    // It may have to wait for its room.
    let mut session = tokio::select! {
        biased;
        opened = node.engine.open(open) => opened?,
        () = outbound.closed() => return Ok(()),
        () = &mut to_leave => return Err(fault::leaving("the expert drains; another has its model")),
        () = &mut deadline => return Err(Status::deadline_exceeded("the request's time was over before it had room")),
    };
    spans.held(session.cached);
    say(outbound, Response::Held(node.held(opening.protocol, session.cached))).await?;

    // When each unanswered block came.
    let mut unanswered: VecDeque<Instant> = VecDeque::new();
    let mut waiting = node.metrics.waiting();
    let mut told_to_move = None;
    loop {
        tokio::select! {
            biased;
            heard = session.next() => match heard {
                Ok(EngineEvent::Reply(ExpertReply::Answer(answer, hint))) => {
                    let came =
                        unanswered.pop_front().ok_or_else(|| Status::internal("an answer came to no block"))?;
                    waiting.answered();
                    spans.answered(&answer, came, hint);
                    if let (Answer::Verdict(_), Some(began)) = (&answer, hint.began) {
                        node.metrics.verified(began.saturating_duration_since(came));
                    }
                    say(outbound, message_of(answer, hint)).await?;
                }
                Ok(EngineEvent::Evicted(held)) => {
                    spans.evicted(held);
                    say(outbound, Response::Held(node.held(opening.protocol, held))).await?;
                }
                Ok(EngineEvent::Reply(ExpertReply::Decoded(..)) | EngineEvent::Opened(_)) => {}
                // It has done nothing wrong: its drafter opens it again where there is room, and it goes on.
                Err(status) if status.code() == Code::Unavailable => {
                    return say(outbound, Response::Move(v1::Move { reason: v1::MoveReason::Loss.into() })).await;
                }
                Err(status) => return Err(status),
            },
            message = inbound.message() => match message? {
                None => return Ok(()),
                Some(VerifyRequest { message: Some(Request::Block(block)) }) => {
                    if unanswered.len() >= node.config.slots as usize {
                        return Err(Status::resource_exhausted(format!(
                            "{} blocks are unanswered and the expert granted {} slots", unanswered.len(), node.config.slots)));
                    }
                    let block = convert::block(block).map_err(|e| Status::invalid_argument(e.to_string()))?;
                    check(node, &opening.decoding, &block)?;
                    spans.came(&block);
                    session.order(block)?;
                    unanswered.push_back(Instant::now());
                    waiting.came();
                }
                Some(VerifyRequest { message: Some(Request::Move(_)) }) => return Ok(()),
                Some(_) => return Err(Status::invalid_argument("after `open` and its history a session sends blocks")),
            },
            () = &mut to_leave, if told_to_move.is_none() => {
                told_to_move = Some(tokio::time::Instant::now());
                spans.told_to_move();
                say(outbound, Response::Move(v1::Move { reason: v1::MoveReason::Drain.into() })).await?;
            }
            () = stayed(told_to_move), if told_to_move.is_some() => {
                return Err(fault::leaving("the expert drains and the session was told to move"));
            }
            () = outbound.closed() => return Ok(()),
            () = &mut deadline => return Err(Status::deadline_exceeded("the request's time is over")),
        }
    }
}

/// Returns when a session that was told to move has had the time to.
async fn stayed(told: Option<tokio::time::Instant>) {
    if let Some(told) = told {
        tokio::time::sleep_until(told + evacuation::PATIENCE).await;
    }
}

fn message_of(answer: Answer, hint: BatchInfo) -> Response {
    match answer {
        Answer::Verdict(verdict) => {
            let load = v1::LoadHint {
                queued_tokens: hint.queued_tokens as u32,
                batch_sessions: hint.batch_sessions as u32,
                batch_tokens: hint.batch_tokens as u32,
            };
            Response::Verdict(convert::verdict(&verdict, Some(load)))
        }
        Answer::Stale(stale) => Response::Stale(convert::stale(&stale)),
    }
}

/// What a block may hold, besides what it stands on.
fn check(node: &ExpertNode, decoding: &Decoding, block: &cascadia_core::block::DraftBlock) -> Result<(), Status> {
    let facts = &node.facts;
    let count = block.drafts.len();
    if count == 0 && block.given.is_empty() {
        return Err(Status::invalid_argument("block: drafts may be empty only when given is not"));
    }
    if count > cascadia_core::limits::MAX_DRAFT_LENGTH {
        return Err(Status::invalid_argument(format!(
            "block.drafts has {count} drafts; at most {} are verified at once",
            cascadia_core::limits::MAX_DRAFT_LENGTH
        )));
    }
    let scored = if block.score_given { block.given.len() } else { 0 };
    if scored > cascadia_core::limits::MAX_DRAFT_LENGTH {
        return Err(Status::invalid_argument(format!(
            "block.given has {scored} tokens to score; at most {} are scored at once",
            cascadia_core::limits::MAX_DRAFT_LENGTH
        )));
    }
    if block.base.saturating_add(count) > facts.context {
        return Err(Status::invalid_argument(format!(
            "block: position {} is past the context of {}",
            block.base.saturating_add(count),
            facts.context
        )));
    }
    known_ids(&block.given, facts.vocabulary, "block.given")?;
    for (i, draft) in block.drafts.iter().enumerate() {
        verify::check(decoding, facts.vocabulary, draft)
            .map_err(|what| Status::invalid_argument(format!("block.drafts[{i}]: {what}")))?;
    }
    Ok(())
}

async fn say(outbound: &Outbound, message: Response) -> Result<(), Status> {
    outbound
        .send(Ok(VerifyResponse { message: Some(message) }))
        .await
        .map_err(|_| Status::cancelled("the drafter closed the session"))
}

/// What a drafter opened, whole.
pub struct OpenedVerify {
    pub key: SessionId,
    pub epoch: Epoch,
    secret: Option<SessionSecret>,
    protocol: u32,
    decoding: Arc<Decoding>,
    /// As the request names it.
    pub strategy: String,
    /// The deferral rule; empty where the strategy has none.
    pub rule: String,
    pub ids: Vec<TokenId>,
    priority: i32,
    salt: String,
    remaining: Duration,
    age: Duration,
    /// Something is committed behind the prompt.
    begun: bool,
}

/// How long a drafter may take to say what it opens.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

impl OpenedVerify {
    async fn read(node: &ExpertNode, inbound: &mut Streaming<VerifyRequest>) -> Result<Self, Status> {
        let Some(VerifyRequest { message: Some(Request::Open(open)) }) = inbound.message().await? else {
            return Err(Status::invalid_argument("the first message of a session must be `open`"));
        };
        let missing = |field: &str| Status::invalid_argument(format!("open.{field} is missing"));
        let theirs = open.protocol.as_ref().ok_or_else(|| missing("protocol"))?;
        let protocol = cascadia_proto::negotiate(theirs).map_err(Status::failed_precondition)?;
        let key = open.key.as_ref().ok_or_else(|| missing("key"))?;
        let secret = convert::session_secret(key).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let (key, epoch) = convert::session_key(key).map_err(|e| Status::invalid_argument(e.to_string()))?;
        node.board.cluster().admits_session("the drafter", &open.cluster)?;
        node.accepts(&open)?;
        let resolved = open.resolved.as_ref().ok_or_else(|| missing("resolved"))?;
        // The owner has merged its EOS into the stop ids, so that both sides test one stop set.
        let decoding = parameters::decoding(resolved, open.prompt_tokens as usize, &[])?;
        let count = open.history_tokens as usize;
        if count == 0 {
            return Err(Status::invalid_argument("open.history_tokens is 0; a session has a prompt"));
        }
        if count > node.facts.context {
            let context = node.facts.context;
            let sentence =
                format!("{count} tokens are more than the expert's context of {context}: shorten the prompt");
            return Err(refusal::too_long(sentence));
        }
        if open.prompt_tokens == 0 || open.prompt_tokens > open.history_tokens {
            return Err(Status::invalid_argument(format!(
                "open.prompt_tokens is {} of a history of {count}; a prompt has at least 1 token and is part of the history",
                open.prompt_tokens
            )));
        }
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let Some(VerifyRequest { message: Some(Request::History(history)) }) = inbound.message().await? else {
                return Err(Status::invalid_argument(format!("the history ends after {} of {count} ids", ids.len())));
            };
            ids.extend(history.ids);
        }
        if ids.len() != count {
            return Err(Status::invalid_argument(format!("the history has {} ids, {count} were announced", ids.len())));
        }
        known_ids(&ids, node.facts.vocabulary, "history")?;
        let (remaining, age) = (waiting_queue::claimed(open.remaining_ms), waiting_queue::claimed(open.age_ms));
        let parameters = resolved.parameters.clone().unwrap_or_default();
        let salt = if open.cache_salt.is_empty() { open.tenant } else { open.cache_salt };
        Ok(Self {
            key,
            epoch,
            secret,
            protocol,
            decoding: Arc::new(decoding),
            strategy: parameters.strategy,
            rule: parameters.rule,
            ids,
            priority: open.priority,
            salt,
            remaining,
            age,
            begun: open.history_tokens > open.prompt_tokens,
        })
    }
}
