//! The verb: a request is admitted, placed and relayed.

use std::sync::Arc;

use cascadia_core::ids::NodeId;
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
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::admission::{Admission, Place, Terms, model_of};
use crate::client::{self, Client, ClientStream, OpenStreams};
use crate::config::RouterConfig;
use crate::error::GenerateError;
use crate::metrics::Metrics;
use crate::outlook::Outlook;
use crate::session::Session;
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
    /// The streams clients still read.
    pub streams: OpenStreams,
    /// How the router is told to stop.
    pub shutdown: Shutdown,
}

impl Router {
    /// Fixes the terms of a request and takes a place for it.
    fn admit(&self, request: Request<GenerateRequest>) -> Result<(Terms, Place), GenerateError> {
        let trace = TraceContext::from_metadata(request.metadata());
        let request = request.into_inner();
        let mut served = served_models(&self.loads.snapshot());
        if served.is_empty() || !request.model.is_empty() {
            // The name of a pool that is gone for a while still means something.
            served.extend(self.outlook.known_models());
            served.sort();
            served.dedup();
        }
        let model = model_of(&request.model, served)?;
        let config = self.config.now();
        let terms = Terms::of(request, model, trace, &config)?;
        let place = self.admission.enter(config.max_sessions, terms.deadline())?;
        Ok((terms, place))
    }

    /// One session from admission to its end; ends by itself when the client leaves, time is up or the router stops.
    async fn serve(self: Arc<Self>, terms: Terms, place: Place, client: Client) {
        tracing::info!(strategy = terms.parameters.strategy, model = terms.model, "admitted");
        let mut session = Session::new(&self, &terms, &client);
        let outcome = tokio::select! {
            biased;
            outcome = session.run() => outcome,
            () = client.closed() => {
                session.left();
                tracing::info!("the client left");
                return;
            }
            () = client.left_unread(limits::CLIENT_WRITE_TIMEOUT) => {
                Err(GenerateError::Unread(limits::CLIENT_WRITE_TIMEOUT))
            }
            () = tokio::time::sleep_until(terms.deadline()) => Err(GenerateError::OutOfTime),
            () = self.shutdown.stopped() => Err(GenerateError::Stopping),
        };
        match outcome {
            Ok(()) => tracing::info!(seconds = terms.arrived.elapsed().as_secs_f64(), "finished"),
            Err(error) => {
                let error = if matches!(error, GenerateError::OutOfTime) { session.out_of_time() } else { error };
                session.failed(error.label());
                tracing::warn!(%error, "ended");
                drop(session);
                client.fail(error.into());
            }
        }
        drop(place);
    }
}

/// The service that clients call.
#[derive(Clone, Debug)]
pub struct Service(pub Arc<Router>);

#[tonic::async_trait]
impl Inference for Service {
    type GenerateStream = ClientStream;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<ClientStream>, Status> {
        let router = self.0.clone();
        let (model, tenant) = (request.get_ref().model.clone(), request.get_ref().tenant.clone());
        let (terms, place) = router.admit(request).inspect_err(|error| {
            let model = router.outlook.known_models().take(&model);
            router.metrics.refused(model.as_deref(), &tenant, error.label());
            tracing::info!(%error, "refused");
        })?;
        let (client, stream) = client::channel(terms.parameters.max_tokens() as usize, &router.streams);
        let span = tracing::info_span!("generate", session = %terms.session, request_id = terms.request_id);
        // Ends with its client, its deadline, or the router's shutdown, which waits for `streams`.
        tokio::spawn(router.serve(terms, place, client).instrument(span));
        Ok(Response::new(stream.begin().await?))
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
