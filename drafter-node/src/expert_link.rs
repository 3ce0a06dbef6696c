//! A session's stream to its expert: open with the history, send blocks, hear answers.

use std::collections::VecDeque;
use std::time::Duration;

use cascadia_core::block::{Answer, DraftBlock};
use cascadia_core::ids::{NodeId, TokenId};
use cascadia_node::channel_pool::StreamPermit;
use cascadia_node::telemetry::TraceContext;
use cascadia_proto::convert::{self, ConvertError};
use cascadia_proto::fault;
use cascadia_proto::v1::verify_client::VerifyClient;
use cascadia_proto::v1::verify_request::Message as Order;
use cascadia_proto::v1::verify_response::Message as Response;
use cascadia_proto::v1::{self, VerifyOpen, VerifyRequest, VerifyResponse};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// An expert the session may be placed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expert {
    /// Its name.
    pub id: NodeId,
    /// Where it serves.
    pub address: String,
    /// What it runs.
    pub fingerprint: String,
}

impl Expert {
    /// As it travels.
    pub fn node_ref(&self) -> v1::NodeRef {
        v1::NodeRef { id: self.id.0.clone(), address: self.address.clone(), fingerprint: self.fingerprint.clone() }
    }
}

/// What the expert says.
#[derive(Debug)]
pub enum ExpertEvent {
    /// The answer to the oldest block, and how long it took.
    Answer(Answer, Duration),
    /// Leave: the expert drains.
    Move,
    /// It lost pages and fills them again by itself; nothing to do.
    Held,
    /// What no expert says, and why not.
    Wrong(String),
}

/// An open stream.
#[derive(Debug)]
pub struct ExpertLink {
    outbound: mpsc::Sender<VerifyRequest>,
    inbound: Streaming<VerifyResponse>,
    /// When each unanswered block was sent.
    sent: VecDeque<Instant>,
    /// Where it leads.
    pub expert: Expert,
    /// Unanswered blocks the expert grants.
    pub slots: usize,
    /// What the expert runs.
    pub fingerprint: String,
    /// Tokens that it held when the stream opened.
    pub held: usize,
    /// Positions it has room for.
    pub context: usize,
    /// Whether its arithmetic gives every row one value.
    pub row_exact: bool,
    /// The cluster it says it is of.
    pub cluster: String,
    /// Its share of a connection.
    _lease: StreamPermit,
}

impl ExpertLink {
    /// Opens a stream and sends the history.
    ///
    /// # Errors
    /// The transport's, the expert's refusal, or what it says of itself contradicts what it was opened with. `UNAVAILABLE` is
    /// always the expert's own word.
    pub async fn open(
        (channel, permit): (Channel, StreamPermit),
        expert: Expert,
        open: VerifyOpen,
        ids: &[TokenId],
        trace: &TraceContext,
    ) -> Result<Self, Status> {
        let histories = convert::histories(ids);
        let opened = open.clone();
        // The opening and its history are queued before the call; later a session has at most its slots queued.
        let (outbound, queued) = mpsc::channel(histories.len() + 1 + cascadia_core::limits::MAX_DRAFT_LENGTH);
        let messages = std::iter::once(Order::Open(open)).chain(histories.into_iter().map(Order::History));
        for message in messages {
            queue(&outbound, message)?;
        }
        let mut client = VerifyClient::new(channel).max_decoding_message_size(cascadia_core::limits::BLOCK_BYTES);
        let mut request = Request::new(ReceiverStream::new(queued));
        trace.inject(request.metadata_mut());
        let mut inbound = client.stream(request).await?.into_inner();
        match inbound.message().await? {
            Some(VerifyResponse { message: Some(Response::Held(held)) }) => {
                convert::check_held(&held, &opened)
                    .map_err(|wrong| fault::of(&expert.id.0, Status::internal(wrong.to_string())))?;
                Ok(Self {
                    outbound,
                    inbound,
                    sent: VecDeque::new(),
                    expert,
                    slots: held.slots.max(1) as usize,
                    fingerprint: held.fingerprint,
                    held: held.n as usize,
                    context: held.context as usize,
                    row_exact: held.row_exact,
                    cluster: held.cluster,
                    _lease: permit,
                })
            }
            _ => Err(Status::unknown("the expert closed the stream without saying what it holds")),
        }
    }

    /// Sends a block; how many bytes it has.
    ///
    /// # Errors
    /// When the stream has ended.
    pub fn send(&mut self, block: &DraftBlock) -> Result<usize, Status> {
        let block = convert::block_message(block);
        let bytes = block.encoded_len();
        queue(&self.outbound, Order::Block(block))?;
        self.sent.push_back(Instant::now());
        Ok(bytes)
    }

    /// The answer to the oldest block, if it can be one.
    fn answer(&mut self, answer: Result<Answer, ConvertError>) -> ExpertEvent {
        let took = self.sent.pop_front().map(|sent| sent.elapsed()).unwrap_or_default();
        match answer {
            Ok(answer) => ExpertEvent::Answer(answer, took),
            Err(wrong) => ExpertEvent::Wrong(wrong.to_string()),
        }
    }

    /// What the expert says next.
    ///
    /// # Errors
    /// When the stream has ended, or with the expert's error; `INTERNAL` and `UNAVAILABLE` are its own words.
    pub async fn next(&mut self) -> Result<ExpertEvent, Status> {
        let message = self.inbound.message().await?.and_then(|response| response.message);
        match message {
            Some(Response::Verdict(verdict)) => Ok(self.answer(convert::verdict_of(verdict).map(Answer::Verdict))),
            Some(Response::Stale(stale)) => Ok(self.answer(convert::stale_of(stale).map(Answer::Stale))),
            Some(Response::Move(_)) => Ok(ExpertEvent::Move),
            Some(Response::Held(_)) => Ok(ExpertEvent::Held),
            None => Err(Status::unknown("the expert ended the stream")),
        }
    }
}

fn queue(outbound: &mpsc::Sender<VerifyRequest>, message: Order) -> Result<(), Status> {
    outbound
        .try_send(VerifyRequest { message: Some(message) })
        .map_err(|_| Status::unknown("the stream to the expert has ended"))
}
