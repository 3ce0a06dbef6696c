//! One `Session/Run` stream: what the router opens, what the owner says.

use cascadia_core::ids::{Epoch, SessionSecret};
use cascadia_core::limits;
use cascadia_node::channel_pool::StreamPermit;
use cascadia_node::cluster::ClusterName;
use cascadia_node::telemetry::TraceContext;
use cascadia_proto::convert;
use cascadia_proto::v1::run_request::Message as Order;
use cascadia_proto::v1::run_response::Message;
use cascadia_proto::v1::session_client::SessionClient;
use cascadia_proto::v1::{self, RunOpen, RunRequest, RunResponse};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::admission::AdmittedRequest;
use crate::failover::{OwnerExit, OwnerLoss, read_status};
use crate::opening::{Begun, FirstMessage};
use crate::placement::{Placement, for_expert};
use crate::transcript::Transcript;

/// A session at its owner. Dropping it cancels the session there.
#[derive(Debug)]
pub struct Run {
    responses: Streaming<RunResponse>,
    /// Open as long as the session: an owner takes the end of its orders for the router's leaving.
    _orders: mpsc::Sender<RunRequest>,
    /// Its share of a connection.
    _lease: StreamPermit,
}

impl Run {
    /// Opens a session at an owner.
    ///
    /// # Errors
    /// As the owner, or the way to it, says.
    pub async fn open(
        (channel, permit): (Channel, StreamPermit),
        Messages { first, rest }: Messages,
        trace: &TraceContext,
    ) -> Result<Self, Status> {
        let (orders, later) = mpsc::channel(1);
        let mut request = Request::new(futures::stream::iter(rest).chain(ReceiverStream::new(later)));
        trace.inject(request.metadata_mut());
        let channel = Begun::new(channel, first);
        let mut owner = SessionClient::new(channel).max_decoding_message_size(limits::REQUEST_BYTES);
        let responses = owner.run(request).await?.into_inner();
        Ok(Self { responses, _orders: orders, _lease: permit })
    }

    /// The next thing the owner says.
    ///
    /// # Errors
    /// How the stream ended.
    pub async fn next(&mut self) -> Result<Message, OwnerExit> {
        loop {
            match self.responses.message().await {
                Ok(Some(RunResponse { message: Some(message) })) => return Ok(message),
                // A kind of message that a later protocol adds.
                Ok(Some(RunResponse { message: None })) => {}
                Ok(None) => return Err(OwnerExit::Lost(OwnerLoss::Stream)),
                Err(status) => return Err(read_status(status)),
            }
        }
    }
}

/// The messages that open a session.
#[derive(Debug)]
pub struct Messages {
    /// The one with a prompt, if there is one.
    first: FirstMessage,
    /// Those behind it.
    rest: Vec<RunRequest>,
}

/// What a session is opened with.
#[derive(Debug)]
pub struct RunOpenRequest<'a> {
    /// What was admitted.
    pub admitted: &'a AdmittedRequest,
    /// The router's cluster.
    pub cluster: &'a ClusterName,
    /// The parameters in force.
    pub parameters: &'a v1::Parameters,
    /// What is committed.
    pub transcript: &'a Transcript,
    /// The models it is pinned to.
    pub pinned: &'a v1::Fingerprints,
    /// What takes the session over.
    pub secret: &'a SessionSecret,
    /// How often it has been placed.
    pub placement: u32,
    /// `cascade_query` has handed over.
    pub handed_over: bool,
}

impl RunOpenRequest<'_> {
    /// The messages that open it at a seat: a prompt as it came, or the ids that are known.
    #[must_use]
    pub fn messages(&self, placed: &Placement, now: Instant) -> Messages {
        let Self { admitted, transcript, .. } = self;
        let continues = transcript.is_known();
        let parameters = if placed.is_expert() { for_expert(self.parameters) } else { self.parameters.clone() };
        let open = RunOpen {
            protocol: Some(cascadia_proto::range()),
            key: Some(convert::session_key_message(
                admitted.session,
                Epoch::of_placement(self.placement),
                Some(self.secret),
            )),
            model: admitted.model.clone(),
            resolved: Some(admitted.resolved(parameters)),
            tenant: admitted.tenant.clone(),
            priority: admitted.priority,
            cache_salt: admitted.cache_salt.clone(),
            remaining_ms: admitted.deadline().saturating_duration_since(now).as_millis() as u64,
            prompt: None,
            continued: continues.then(|| v1::Continued {
                prompt_tokens: transcript.prompt_tokens() as u32,
                history_tokens: transcript.ids().len() as u32,
                handed_over: self.handed_over,
            }),
            expert: placed.expert_ref(&admitted.model, &self.pinned.expert),
            pinned: Some(self.pinned.clone()),
            request_id: admitted.request_id.clone(),
            age_ms: now.saturating_duration_since(admitted.arrived).as_millis() as u64,
            cluster: self.cluster.to_string(),
        };
        if !continues {
            return Messages { first: FirstMessage::open(open, &admitted.prompt), rest: Vec::new() };
        }
        let history = convert::histories(transcript.ids()).into_iter().map(Order::History);
        let orders = std::iter::once(Order::Open(open)).chain(history);
        let rest = orders.map(|order| RunRequest { message: Some(order) }).collect();
        Messages { first: FirstMessage::default(), rest }
    }
}
