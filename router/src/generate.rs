//! The verb: a request is admitted, placed and relayed.

use std::sync::Arc;

use cascadia_core::ids::{NodeId, SessionId};
use cascadia_core::limits;
use cascadia_core::placement::served_models;
use cascadia_node::config::Live;
use cascadia_node::lifecycle::Shutdown;
use cascadia_node::loads::LoadWatch;
use cascadia_node::net::Connector;
use cascadia_node::telemetry::TraceContext;
use cascadia_proto::v1::inference_server::Inference;
use cascadia_proto::v1::{
    ClusterStatusRequest, ClusterStatusResponse, GenerateRequest, ListModelsRequest, ListModelsResponse,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::admission::{Admission, Place, Terms, model_of};
use crate::client::{self, Client, ClientStream, OpenStreams};
use crate::config::RouterConfig;
use crate::error::GenerateError;
use crate::metrics::Metrics;
use crate::outlook::Outlook;
use crate::session::Session;
use crate::spans::{Recorder, Spans};
use crate::status;

/// What all sessions of a router share.
#[derive(Debug)]
pub struct Router {
    /// Its name.
    pub id: NodeId,
    /// What the operator set; each request is admitted under what is in force when it comes.
    pub config: Live<RouterConfig>,
    /// The door.
    pub admission: Arc<Admission>,
    /// Who is there and how busy.
    pub loads: LoadWatch,
    /// What sessions watch together.
    pub outlook: Outlook,
    /// The way to owners.
    pub connector: Connector,
    /// What is counted.
    pub metrics: Metrics,
    /// What requests record their spans with.
    pub spans: Recorder,
    /// Whether prompts and answers are logged.
    pub log_prompts: bool,
    /// The streams clients still read.
    pub streams: OpenStreams,
    /// How the router is told to stop.
    pub shutdown: Shutdown,
}

impl Router {
    /// The names that a request may ask for: what is served, and what was lately.
    #[must_use]
    pub fn served(&self) -> Vec<String> {
        let mut served = served_models(&self.loads.snapshot());
        served.extend(self.outlook.known_models());
        served.sort();
        served.dedup();
        served
    }

    /// Admits requests that belong together, all or none, and begins to serve them.
    ///
    /// # Errors
    /// Which field is wrong, or that there is no room.
    pub fn open(
        self: &Arc<Self>,
        requests: Vec<GenerateRequest>,
        trace: &TraceContext,
    ) -> Result<Vec<Opened>, GenerateError> {
        let (model, tenant) =
            requests.first().map(|first| (first.model.clone(), first.tenant.clone())).unwrap_or_default();
        let admitted = requests.into_iter().map(|request| self.terms(request, trace.clone()));
        let admitted = admitted.collect::<Result<Vec<_>, _>>().and_then(|terms| {
            let latest = terms.iter().map(Terms::deadline).max().unwrap_or_else(Instant::now);
            let places = self.admission.enter(terms.len(), self.config.now().max_sessions, latest)?;
            Ok(terms.into_iter().zip(places))
        });
        let admitted = admitted.inspect_err(|error| {
            let model = self.outlook.known_models().take(&model);
            self.metrics.refused(model.as_deref(), &tenant, error.label());
            self.spans.refused(trace, &self.config.now().mint, error);
            tracing::info!(%error, "refused");
        })?;
        let begin = |(terms, place): (Terms, Place)| {
            let (client, stream) =
                client::channel(terms.parameters.max_tokens() as usize, &self.streams, self.metrics.relay());
            let (id, span) = (terms.session, terms.log_span());
            // Ends with its client, its deadline, or the router's shutdown, which waits for `streams`.
            tokio::spawn(self.clone().serve(terms, place, client).instrument(span));
            Opened { session: id, stream }
        };
        Ok(admitted.map(begin).collect())
    }

    /// Fixes the terms of a request.
    fn terms(&self, request: GenerateRequest, trace: TraceContext) -> Result<Terms, GenerateError> {
        let mut served = served_models(&self.loads.snapshot());
        if served.is_empty() || !request.model.is_empty() {
            // The name of a pool that is gone for a while still means something.
            served = self.served();
        }
        let model = model_of(&request.model, served)?;
        Terms::of(request, model, trace, &self.config.now())
    }

    /// One session from admission to its end; ends by itself when the client leaves, time is up or the router stops.
    async fn serve(self: Arc<Self>, terms: Terms, place: Place, client: Client) {
        let spans = Spans::admitted(&self.spans, &terms);
        terms.log_trace(&spans.context());
        tracing::info!(strategy = terms.parameters.strategy, model = terms.model, "admitted");
        if self.log_prompts {
            tracing::info!(prompt = ?terms.prompt.kind, "asked");
        }
        let mut session = Session::new(&self, &terms, &client, spans);
        let outcome = tokio::select! {
            biased;
            outcome = session.run() => outcome,
            () = client.closed() => {
                session.left();
                session.spans.client_left();
                tracing::info!("the client left");
                return;
            }
            () = client.left_unread(limits::CLIENT_WRITE_TIMEOUT) => {
                Err(GenerateError::Unread(limits::CLIENT_WRITE_TIMEOUT))
            }
            () = tokio::time::sleep_until(terms.deadline()) => Err(GenerateError::OutOfTime),
            () = self.shutdown.stopped() => Err(GenerateError::Stopping),
        };
        let how = match outcome {
            Ok(()) => {
                tracing::info!(seconds = terms.arrived.elapsed().as_secs_f64(), "finished");
                Ok(())
            }
            Err(error) => {
                let error = if matches!(error, GenerateError::OutOfTime) { session.out_of_time() } else { error };
                session.failed(error.label());
                session.spans.failed(&error);
                tracing::warn!(%error, "ended");
                Err(error.into())
            }
        };
        drop(session);
        drop((terms, place));
        client.end(how, limits::CLIENT_WRITE_TIMEOUT).await;
    }
}

/// A session that was admitted.
#[derive(Debug)]
pub struct Opened {
    /// Its name in the cluster.
    pub session: SessionId,
    /// What its client reads; dropping it ends the session.
    pub stream: ClientStream,
}

/// The service that clients call.
#[derive(Clone, Debug)]
pub struct Service(pub Arc<Router>);

#[tonic::async_trait]
impl Inference for Service {
    type GenerateStream = ClientStream;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<ClientStream>, Status> {
        let trace = TraceContext::from_metadata(request.metadata());
        let Some(Opened { mut stream, .. }) = self.0.open(vec![request.into_inner()], &trace)?.pop() else {
            return Err(Status::internal("a request was admitted without a session"));
        };
        stream.begin().await?;
        Ok(Response::new(stream))
    }

    async fn list_models(&self, _: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        Ok(Response::new(status::list_models(&self.0.loads.snapshot())))
    }

    async fn cluster_status(
        &self,
        _: Request<ClusterStatusRequest>,
    ) -> Result<Response<ClusterStatusResponse>, Status> {
        let loads = &self.0.loads;
        Ok(Response::new(status::cluster_status(&self.0.id, &loads.snapshot(), &loads.statuses())))
    }
}
