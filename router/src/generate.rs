//! The verb: a request is admitted, placed and relayed; and the service that clients call.

use std::sync::Arc;

use axum::body::Bytes;
use cascadia_core::ids::SessionId;
use cascadia_core::limits;
use cascadia_core::placement::served_models;
use cascadia_node::telemetry::TraceContext;
use cascadia_proto::relay::GenerateRequest;
use cascadia_proto::relay::inference_server::Inference;
use cascadia_proto::v1::{ClusterStatusRequest, ClusterStatusResponse, ListModelsRequest, ListModelsResponse};
use tokio::time::Instant;
use tonic::{Response, Status};
use tracing::Instrument;

use crate::admission::{AdmittedRequest, Permit, Room, allowed, is_among, model_of};
use crate::client::{self, Client, ClientStream};
use crate::error::GenerateError;
use crate::metered::Received;
use crate::metrics::Counted;
use crate::request::Request;
use crate::router::Router;
use crate::session::Session;
use crate::spans::Spans;
use crate::status;

impl Router {
    /// Notes when a request arrived. Where `is_served` says that it means none of the served names, it waits until it
    /// does or membership has shown everybody; an unknown name is then refused by whoever reads it. What was charged for
    /// reading it is given back: whoever waits takes room at the door.
    ///
    /// # Errors
    /// That there is no room to wait, that its time is up, or that the router stops.
    pub async fn arrive(
        &self,
        Arrival { asked, tenant, timeout_ms, bytes, trace }: Arrival<'_>,
        received: impl Send,
        is_served: impl Fn(&[String]) -> bool,
    ) -> Result<Instant, GenerateError> {
        let arrived = Instant::now();
        if self.cluster_health.is_settled() || is_served(&self.served()) {
            return Ok(arrived);
        }
        let waited = async {
            let config = self.config.now();
            let allowed = allowed(timeout_ms, &config)?;
            let _place = self.admission.enter(Room { sessions: 1, bytes }, config.room(), arrived + allowed)?;
            drop(received);
            let _open = self.streams.open();
            let mut awaiting = Awaiting { router: self, tenant, left: true, _waiting: self.metrics.awaits_model() };
            let model = shown(asked);
            tracing::info!(model, "waiting for a model that nobody serves yet");
            let outcome = tokio::select! {
                biased;
                () = self.cluster_health.shown(|| is_served(&self.served())) => Ok(arrived),
                () = tokio::time::sleep_until(arrived + allowed) => {
                    let doing = "while it waited for its model, which nobody serves yet".to_owned();
                    Err(GenerateError::Deadline { allowed, doing, cure: "start an expert" })
                }
                () = self.shutdown.stopped() => Err(GenerateError::Stopping),
            };
            awaiting.left = false;
            outcome
        };
        waited.await.inspect_err(|error| self.refused(asked, tenant, trace, arrived, error))
    }

    /// Admits all sessions of a request or none, and begins to serve them.
    ///
    /// # Errors
    /// Which field is wrong, or that there is no room.
    pub fn open(
        self: &Arc<Self>,
        request: Request,
        arrived: Instant,
        trace: &TraceContext,
    ) -> Result<Vec<Opened>, GenerateError> {
        let (model, tenant, bytes) = (request.model.clone(), request.tenant.clone(), request.bytes());
        let admitted = self.admitted(request, arrived, trace).and_then(|admitted| {
            let latest = admitted.iter().map(AdmittedRequest::deadline).max().unwrap_or_else(Instant::now);
            let wanted = Room { sessions: admitted.len(), bytes };
            let places = self.admission.enter(wanted, self.config.now().room(), latest)?;
            Ok(admitted.into_iter().zip(places))
        });
        let admitted = admitted.inspect_err(|error| self.refused(&model, &tenant, trace, arrived, error))?;
        let begin = |(admitted, place): (AdmittedRequest, Permit)| {
            let (client, stream) =
                client::channel(admitted.parameters.max_tokens() as usize, &self.streams, self.metrics.relay());
            let (id, span) = (admitted.session, admitted.log_span());
            // Ends with its client, its deadline, or the router's shutdown, which waits for `streams`.
            tokio::spawn(self.clone().serve(admitted, place, client).instrument(span));
            Opened { session: id, stream }
        };
        Ok(admitted.map(begin).collect())
    }

    /// Counts, records and logs a refusal.
    pub fn refused(&self, model: &str, tenant: &str, trace: &TraceContext, arrived: Instant, error: &GenerateError) {
        let model = self.cluster_health.known_models().take(model);
        self.metrics.refused(model.as_deref(), tenant, error.label());
        self.spans.refused(trace, &self.config.now().ids, arrived, error);
        tracing::info!(%error, "refused");
    }

    /// Fixes the terms of a request's sessions.
    fn admitted(
        &self,
        request: Request,
        arrived: Instant,
        trace: &TraceContext,
    ) -> Result<Vec<AdmittedRequest>, GenerateError> {
        let mut served = served_models(&self.loads.snapshot());
        if served.is_empty() || !request.model.is_empty() {
            // The name of a pool that is gone for a while still means something.
            served = self.served();
        }
        let model = model_of(&request.model, served)?;
        AdmittedRequest::of(request, &model, arrived, trace, &self.config.now())
    }

    /// One session from admission to its end; ends by itself when the client leaves, time is up or the router stops.
    async fn serve(self: Arc<Self>, admitted: AdmittedRequest, place: Permit, client: Client) {
        let spans = Spans::admitted(&self.spans, &admitted);
        admitted.log_trace(&spans.context());
        tracing::info!(strategy = admitted.parameters.strategy, model = admitted.model, "admitted");
        if self.log_prompts {
            tracing::info!(prompt = ?admitted.prompt.decoded().kind, "asked");
        }
        let mut session = Session::new(&self, &admitted, &client, spans);
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
            () = tokio::time::sleep_until(admitted.deadline()) => Err(GenerateError::OutOfTime),
            () = self.shutdown.stopped() => Err(GenerateError::Stopping),
        };
        let how = match outcome {
            Ok(()) => {
                tracing::info!(seconds = admitted.arrived.elapsed().as_secs_f64(), "finished");
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
        drop((admitted, place));
        client.end(how, limits::CLIENT_WRITE_TIMEOUT).await;
    }
}

/// What is known of a request when it arrives.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// The name of its model.
    pub asked: &'a str,
    /// Whose it is.
    pub tenant: &'a str,
    /// The time it has.
    pub timeout_ms: Option<u64>,
    /// What its sessions will hold of prompts.
    pub bytes: usize,
    /// The client's trace.
    pub trace: &'a TraceContext,
}

/// A request that waits before its admission; whoever drops it without saying otherwise is its client, who left.
struct Awaiting<'a> {
    router: &'a Router,
    tenant: &'a str,
    left: bool,
    _waiting: Counted,
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        if self.left {
            self.router.metrics.left_unadmitted(self.tenant);
            tracing::info!("the client left before its model was served");
        }
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

/// As much of a name as a log line or a label needs.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

/// The service that clients call.
#[derive(Clone, Debug)]
pub struct Service(pub Arc<Router>);

#[tonic::async_trait]
impl Inference for Service {
    type GenerateStream = ClientStream;

    async fn generate(&self, request: tonic::Request<GenerateRequest>) -> Result<Response<ClientStream>, Status> {
        let router = &self.0;
        let trace = TraceContext::from_metadata(request.metadata());
        let (_, mut extensions, message) = request.into_parts();
        let received = extensions.remove::<Received>();
        let (model, tenant, began) = (shown(&message.model), message.tenant.clone(), Instant::now());
        let bytes = message.prompt.as_ref().map_or(0, Bytes::len);
        let decoded = router.admission.bodies.decode(bytes, || (Request::of_message(message), received)).await;
        let (asked, received) =
            decoded.map_err(|error| Status::internal(format!("the request was not read: {error}")))?;
        let asked = asked.inspect_err(|error| router.refused(&model, &tenant, &trace, began, error))?;
        let arrival = Arrival {
            asked: &asked.model,
            tenant: &tenant,
            timeout_ms: asked.timeout_ms,
            bytes: asked.bytes(),
            trace: &trace,
        };
        let arrived = router.arrive(arrival, received, |served| is_among(&asked.model, served)).await?;
        let Some(Opened { mut stream, .. }) = router.open(asked, arrived, &trace)?.pop() else {
            return Err(Status::internal("a request was admitted without a session"));
        };
        stream.begin().await?;
        Ok(Response::new(stream))
    }

    async fn list_models(&self, _: tonic::Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        Ok(Response::new(status::list_models(&self.0.loads.snapshot())))
    }

    async fn cluster_status(
        &self,
        _: tonic::Request<ClusterStatusRequest>,
    ) -> Result<Response<ClusterStatusResponse>, Status> {
        let loads = &self.0.loads;
        Ok(Response::new(status::cluster_status(&self.0.id, &loads.snapshot(), &loads.loads(), &loads.statuses())))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cascadia_core::ids::NodeId;
    use cascadia_core::placement::Role;
    use cascadia_node::lifecycle::Shutdown;
    use cascadia_node::loads::LoadWatch;
    use cascadia_node::membership::Membership;
    use cascadia_node::metrics::{Page, Registry};
    use cascadia_node::net::Connector;
    use cascadia_node::status::StatusBoard;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::client::OpenStreams;
    use crate::cluster_health::ClusterHealth;
    use crate::config::RouterConfig;
    use crate::metrics::Metrics;
    use crate::samples::node;
    use crate::spans::Recorder;

    const SETTLING: Duration = Duration::from_secs(15);

    /// A router for one session, whose membership may be late for so long.
    fn router(membership: &Membership) -> (Arc<Router>, Page) {
        let (connector, shutdown) = (Connector::from_fn(|_| Box::pin(std::future::pending())), Shutdown::new());
        let loads = LoadWatch::spawn(membership, &connector, "router:r", &[Role::Expert], &shutdown);
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, 1);
        let router = Arc::new(Router {
            id: NodeId("r".into()),
            config: RouterConfig { max_sessions: 1, ..RouterConfig::default() }.into(),
            admission: Arc::default(),
            loads,
            cluster_health: ClusterHealth::new(SETTLING),
            connector,
            metrics,
            spans: Recorder::default(),
            log_prompts: false,
            streams: OpenStreams::default(),
            shutdown,
        });
        tokio::spawn(crate::life::observe(router.clone(), StatusBoard::new(1, Arc::default(), &Default::default())));
        (router, registry.page())
    }

    /// A request for the model `m`: how long it waited, and why no longer.
    fn ask(router: &Arc<Router>, timeout_ms: Option<u64>) -> JoinHandle<(Duration, Result<Instant, GenerateError>)> {
        let router = router.clone();
        tokio::spawn(async move {
            let (began, trace) = (Instant::now(), TraceContext::default());
            let arrival = Arrival { asked: "m", tenant: "", timeout_ms, bytes: 1, trace: &trace };
            let arrived = router.arrive(arrival, (), |served| is_among("m", served)).await;
            (began.elapsed(), arrived)
        })
    }

    async fn a_moment() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_for_a_model_that_is_shown_late_takes_a_place_and_waits() {
        let membership = Membership::embedded();
        let (router, page) = router(&membership);
        let early = ask(&router, None);
        a_moment().await;
        assert_eq!(router.admission.admitted(), 1);
        assert!(page.render("").1.contains("cascadia_num_requests_waiting{model_name=\"other\"} 1"));
        assert!(matches!(ask(&router, None).await.unwrap().1, Err(GenerateError::Full { .. })));
        let _registration = membership.register(node("e", Role::Expert)).await.unwrap();
        let (waited, arrived) = early.await.unwrap();
        assert_eq!((waited, arrived.unwrap().elapsed()), (Duration::from_secs(1), Duration::from_secs(1)));
        assert_eq!((router.admission.admitted(), router.served()), (0, vec!["m".to_owned()]));
        assert!(page.render("").1.contains("cascadia_num_requests_waiting{model_name=\"other\"} 0"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_settled_router_does_not_know_is_refused_without_a_wait() {
        let (router, _) = router(&Membership::embedded());
        let (waited, arrived) = ask(&router, None).await.unwrap();
        assert_eq!((waited, arrived.is_ok()), (SETTLING, true), "to refuse it is another's");
        let room = Room { sessions: 1, bytes: 1 };
        let full = router.admission.enter(room, room, Instant::now()).unwrap();
        let (waited, arrived) = ask(&router, Some(1)).await.unwrap();
        assert_eq!((waited, arrived.is_ok()), (Duration::ZERO, true), "nobody looked for a place to wait in");
        drop(full);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_has_a_deadline_may_leave_and_is_told_of_the_end() {
        let (router, page) = router(&Membership::embedded());
        let (waited, late) = ask(&router, Some(2_000)).await.unwrap();
        assert_eq!(waited, Duration::from_secs(2));
        assert!(late.unwrap_err().to_string().contains("which nobody serves yet"));

        let leaves = ask(&router, None);
        a_moment().await;
        leaves.abort();
        assert!(leaves.await.unwrap_err().is_cancelled());
        assert_eq!(router.admission.admitted(), 0);
        let page = page.render("").1;
        for (code, count) in [("client_left", 1), ("deadline_exceeded", 1), ("not_found", 0)] {
            let line = format!("cascadia_request_failure_total{{model_name=\"other\",code=\"{code}\"}} {count}");
            assert!(page.contains(&line), "{line}");
        }

        let stays = ask(&router, None);
        a_moment().await;
        let drained = tokio::time::timeout(Duration::from_secs(1), router.streams.none());
        assert!(drained.await.is_err(), "a draining router waits for it");
        router.shutdown.stop();
        assert!(matches!(stays.await.unwrap().1, Err(GenerateError::Stopping)));
        router.streams.none().await;
    }
}
