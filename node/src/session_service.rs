//! `Session/Run` of whatever owns sessions: a task a session, which ends with its stream.

use std::pin::Pin;
use std::sync::Arc;

use cascadia_core::engine::ModelFacts;
use cascadia_proto::v1::{RunRequest, RunResponse, session_server};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};
use tracing::Instrument;

use crate::owner::{OpenedRun, Sender};
use crate::status::StatusBoard;
use crate::telemetry::{TraceContext, Tracer};

/// Messages a session may have unread before it waits.
const UNREAD: usize = 64;

/// A node that owns sessions.
pub trait Owner: Send + Sync + 'static {
    /// What it says about itself.
    fn board(&self) -> &StatusBoard;

    /// What its model is.
    fn facts(&self) -> &ModelFacts;

    /// What it records spans with.
    fn tracer(&self) -> &Tracer;

    /// Runs an opened session to its end, or until the router goes.
    fn serve<'a>(
        &'a self,
        opening: &'a OpenedRun,
        inbound: Streaming<RunRequest>,
        sender: &'a Sender,
    ) -> impl Future<Output = Result<(), Status>> + Send + 'a;
}

/// The session service.
#[derive(Clone, Debug)]
pub struct SessionService<O>(pub Arc<O>);

#[tonic::async_trait]
impl<O: Owner> session_server::Session for SessionService<O> {
    type RunStream = Pin<Box<dyn Stream<Item = Result<RunResponse, Status>> + Send>>;

    async fn run(&self, request: tonic::Request<Streaming<RunRequest>>) -> Result<Response<Self::RunStream>, Status> {
        let trace = TraceContext::from_metadata(request.metadata());
        let inbound = request.into_inner();
        let owner = self.0.clone();
        let (sender, receiver) = mpsc::channel(UNREAD);
        // Ends with the stream: the inbound side fails when the router goes, the outbound side closes.
        tokio::spawn(async move {
            if let Err(status) = own(&*owner, inbound, &sender, &trace).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn own(
    owner: &impl Owner,
    mut inbound: Streaming<RunRequest>,
    sender: &Sender,
    caller: &TraceContext,
) -> Result<(), Status> {
    let _serving = owner.board().serving();
    let mut opening = OpenedRun::read(&mut inbound, owner.facts(), caller, owner.tracer()).await?;
    owner.board().cluster().admits_session("the router", &opening.open.cluster)?;
    let ended = owner.serve(&opening, inbound, sender).instrument(opening.log_span()).await;
    opening.ended(&ended);
    ended
}
