//! The operator's port: `/live`, `/ready`, `/status`, `/metrics`, `/targets` at a router, gRPC health, `/challenge`, and
//! `POST /drain`. Plain HTTP, no prompts.
//!
//! It answers from the first moment of a process, while a model still loads. Whatever changes something is a POST that
//! proves that its sender knows the admin token ([`crate::proving`]), or shows it; without one set, nothing can be changed from
//! afar.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::lifecycle::Shutdown;
use crate::metrics::Page;
use crate::net::{self, Listener};
use crate::proving::{self, Proving};

/// Connections at once: probes, scrapers and operators.
const MOST_CONNECTIONS: usize = 256;

/// How often gRPC health learns whether the node is ready.
const HEALTH_PERIOD: Duration = Duration::from_millis(250);

/// What the pages say.
#[derive(Clone)]
pub struct Admin {
    /// Whether the process still does its work; one that does not is to be restarted.
    pub live: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Whether the node takes work, or one line why not.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Everything an operator asks first.
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// What is counted.
    pub metrics: Page,
    /// Where Prometheus finds all nodes, at the router: what `http_sd_configs` reads.
    pub targets: Option<Arc<dyn Fn() -> serde_json::Value + Send + Sync>>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admin")
    }
}

/// How far a node is that loads its model; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Loading(Arc<Mutex<Option<Stage>>>);

#[derive(Clone, Debug)]
struct Stage {
    what: String,
    done: u64,
    total: u64,
}

impl Loading {
    /// So many bytes of a stage are done.
    pub fn at(&self, what: &str, done: u64, total: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Stage { what: what.to_owned(), done, total });
    }

    fn stage(&self) -> Option<Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One line.
    fn sentence(&self) -> String {
        match self.stage() {
            None => "starting: the model is loading".to_owned(),
            Some(Stage { what, done, total }) => {
                format!("starting: {what}, {} of {} MB", done / 1_000_000, total.div_ceil(1_000_000))
            }
        }
    }

    fn json(&self) -> serde_json::Value {
        let stage = self.stage().map(|s| serde_json::json!({"stage": s.what, "bytes": s.done, "of": s.total}));
        serde_json::json!({"state": "starting", "loading": stage})
    }
}

/// The served port. Dropping it ends it.
#[derive(Debug)]
pub struct AdminPort {
    address: String,
    port: Arc<Port>,
    serving: JoinHandle<()>,
}

#[derive(Debug)]
struct Port {
    /// Set once the node has something to say.
    pages: OnceLock<Admin>,
    /// What it says before.
    loading: Loading,
    shutdown: Shutdown,
    proving: Option<Proving>,
}

impl AdminPort {
    /// Answers from now on: alive, and not ready until [`AdminPort::show`] says otherwise.
    #[must_use]
    pub fn open(listener: Listener, shutdown: &Shutdown, proving: Option<Proving>) -> Self {
        let (pages, loading, shutdown) = (OnceLock::new(), Loading::default(), shutdown.clone());
        let port = Arc::new(Port { pages, loading, shutdown, proving });
        let (address, listener) = (listener.address().to_owned(), listener.at_most(MOST_CONNECTIONS));
        Self { address, serving: tokio::spawn(serve(listener, port.clone())), port }
    }

    /// The real address, `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What is said until there are pages.
    #[must_use]
    pub fn loading(&self) -> Loading {
        self.port.loading.clone()
    }

    /// Shows these pages; the first ones stay.
    pub fn show(&self, pages: Admin) {
        let _ = self.port.pages.set(pages);
    }

    /// Returns when the last answer is written, after the node was stopped.
    pub async fn finish(mut self) {
        let _ = (&mut self.serving).await;
    }
}

impl Drop for AdminPort {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Port {
    fn ready(&self) -> Result<(), String> {
        self.pages.get().map_or_else(|| Err(self.loading.sentence()), |pages| (pages.ready)())
    }
}

async fn serve(listener: Listener, port: Arc<Port>) {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reports = report(reporter, port.clone());
    let router = pages(port.clone()).route_service("/grpc.health.v1.Health/{method}", health);
    let address = listener.address().to_owned();
    tokio::select! {
        biased;
        // A scraper that keeps its connection open does not keep the node alive.
        served = net::serve_pages(router, listener, &port.shutdown) => {
            if let Err(error) = served {
                tracing::warn!(%address, %error, "the admin listener ended");
            }
        }
        () = reports => {}
    }
}

async fn report(reporter: HealthReporter, port: Arc<Port>) {
    let mut ticks = tokio::time::interval(HEALTH_PERIOD);
    let mut said = None;
    loop {
        ticks.tick().await;
        // How far a load is has lines of its own, and would make one here each time.
        let ready = port.pages.get().map_or_else(|| Err("starting".to_owned()), |pages| (pages.ready)());
        let status = if ready.is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status("", status).await;
        // A probe that fails shows its status and not its answer, so the reason is logged as well.
        if said.as_ref() != Some(&ready) {
            match &ready {
                Ok(()) => tracing::info!("ready"),
                Err(reason) => tracing::info!("not ready: {reason}"),
            }
            said = Some(ready);
        }
    }
}

type Shared = State<Arc<Port>>;

fn pages(port: Arc<Port>) -> Router {
    Router::new()
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/targets", get(targets))
        .route("/challenge", get(challenge))
        .route("/drain", post(drain))
        .with_state(port)
}

async fn live(State(port): Shared) -> (StatusCode, String) {
    match port.pages.get().map_or(Ok(()), |pages| (pages.live)()) {
        Ok(()) => (StatusCode::OK, "live\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not live: {reason}\n")),
    }
}

async fn ready(State(port): Shared) -> (StatusCode, String) {
    match port.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

async fn status(State(port): Shared) -> Json<serde_json::Value> {
    Json(port.pages.get().map_or_else(|| port.loading.json(), |pages| (pages.status)()))
}

async fn metrics(State(port): Shared, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let page = port.pages.get().map_or_else(Page::default, |pages| pages.metrics.clone());
    let (kind, text) = page.render(accept);
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn targets(State(port): Shared) -> Response {
    match port.pages.get().and_then(|pages| pages.targets.clone()) {
        Some(targets) => Json(targets()).into_response(),
        None => (StatusCode::NOT_FOUND, "only a router, once it serves, knows the cluster's nodes\n").into_response(),
    }
}

/// What a call that changes something is to be proven over.
async fn challenge(State(port): Shared) -> Response {
    match &port.proving {
        Some(proving) => ([(header::CACHE_CONTROL, "no-store")], Json(proving.challenge())).into_response(),
        None => (StatusCode::FORBIDDEN, NO_TOKEN).into_response(),
    }
}

/// What SIGTERM does.
async fn drain(Authorized { answer }: Authorized, State(port): Shared) -> (StatusCode, HeaderMap, &'static str) {
    if !port.shutdown.is_draining() {
        tracing::info!("told to drain at the admin listener");
        port.shutdown.drain();
    }
    let answer = answer.map(|answer| (HeaderName::from_static(proving::ANSWER), answer));
    let says = "draining: no new sessions, open ones finish or move, then the process ends\n";
    (StatusCode::ACCEPTED, answer.into_iter().collect(), says)
}

const NO_TOKEN: &str = "this node has no admin token, so nothing can be changed from afar: start it with \
                        --admin-token-file FILE or CASCADIA_ADMIN_TOKEN, or send it SIGTERM\n";

/// A request by somebody who knows the admin token.
struct Authorized {
    /// The node's own proof, where one was given.
    answer: Option<HeaderValue>,
}

impl FromRequestParts<Arc<Port>> for Authorized {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, port: &Arc<Port>) -> Result<Self, Response> {
        let Some(proving) = &port.proving else {
            return Err((StatusCode::FORBIDDEN, NO_TOKEN).into_response());
        };
        if let Some(answer) = proving.proven(&parts.headers, parts.method.as_str(), parts.uri.path()) {
            return Ok(Self { answer: HeaderValue::try_from(answer).ok() });
        }
        if proving.is_shown(&parts.headers) {
            return Ok(Self { answer: None });
        }
        tracing::warn!(path = parts.uri.path(), "a call without the admin token was refused");
        let cure = "the admin token is missing or wrong: give `cascadia drain` the node's own, or send it as \
                    `Authorization: Bearer TOKEN`\n";
        Err((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], cure).into_response())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proving::{Asking, Challenge};
    use crate::token::Token;
    use cascadia_core::ids::NodeId;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tonic_health::pb::health_check_response::ServingStatus;

    async fn call(address: &str, line: &str, header: &str) -> String {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nHost: admin\r\n{header}Connection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn page(address: &str, path: &str) -> String {
        call(address, &format!("GET {path}"), "").await
    }

    async fn open(token: Option<&str>) -> (AdminPort, Shutdown) {
        let shutdown = Shutdown::new();
        let token = token.map(|token| Token::new(token, "a test").unwrap());
        let token = token.map(|token| Proving::new(token, &NodeId("d7".into()), 5));
        (AdminPort::open(Listener::bind("127.0.0.1:0").await.unwrap(), &shutdown, token), shutdown)
    }

    #[tokio::test]
    async fn the_pages_say_what_they_are_told() {
        let (port, shutdown) = open(None).await;
        let address = port.address().to_owned();
        // The model still loads.
        assert!(page(&address, "/live").await.starts_with("HTTP/1.1 200"));
        assert!(page(&address, "/ready").await.contains("the model is loading"));
        assert!(page(&address, "/status").await.ends_with(r#"{"state":"starting","loading":null}"#));
        port.loading().at("loading weights", 120_000_000, 480_500_000);
        assert!(page(&address, "/ready").await.contains("not ready: starting: loading weights, 120 of 481 MB"));
        let loading = r#"{"state":"starting","loading":{"stage":"loading weights","bytes":120000000,"of":480500000}}"#;
        assert!(page(&address, "/status").await.ends_with(loading));

        let (alive, ready) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let says = |flag: &Arc<AtomicBool>, otherwise: &'static str| {
            let flag = flag.clone();
            Arc::new(move || flag.load(Relaxed).then_some(()).ok_or_else(|| otherwise.to_owned()))
        };
        let mut registry = crate::metrics::Registry::default();
        registry.counter("asked", "How often").inc();
        port.show(Admin {
            live: says(&alive, "the engine is stuck"),
            ready: says(&ready, "no router has seen it"),
            status: Arc::new(|| serde_json::json!({"state": "ready"})),
            metrics: registry.page(),
            targets: None,
        });
        let not_ready = page(&address, "/ready").await;
        assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("no router has seen it"), "{not_ready}");
        ready.store(true, Relaxed);
        assert!(page(&address, "/ready").await.starts_with("HTTP/1.1 200"));
        assert!(page(&address, "/live").await.starts_with("HTTP/1.1 200"));
        alive.store(false, Relaxed);
        assert!(page(&address, "/live").await.starts_with("HTTP/1.1 503"));
        assert!(page(&address, "/status").await.ends_with(r#"{"state":"ready"}"#));
        assert!(page(&address, "/metrics").await.ends_with("cascadia_asked_total 1\n"));
        assert!(page(&address, "/else").await.starts_with("HTTP/1.1 404"));

        let channel = crate::net::Connector::tcp().channel(&address);
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        let serves = async {
            let asked = || tonic_health::pb::HealthCheckRequest { service: String::new() };
            while health.check(asked()).await.unwrap().into_inner().status() != ServingStatus::Serving {
                tokio::time::sleep(HEALTH_PERIOD).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), serves).await.expect("gRPC's health follows the page");

        shutdown.stop();
        port.finish().await;
    }

    #[tokio::test]
    async fn only_a_post_with_the_token_drains() {
        let (port, shutdown) = open(Some("secret")).await;
        let address = port.address().to_owned();
        for (line, header, expected) in [
            ("GET /drain", "Authorization: Bearer secret\r\n", "HTTP/1.1 405"),
            ("PUT /drain", "Authorization: Bearer secret\r\n", "HTTP/1.1 405"),
            ("POST /ready", "Authorization: Bearer secret\r\n", "HTTP/1.1 405"),
            ("POST /drain", "", "HTTP/1.1 401"),
            ("POST /drain", "Authorization: Bearer secret2\r\n", "HTTP/1.1 401"),
            ("POST /drain", "Authorization: Basic secret\r\n", "HTTP/1.1 401"),
            ("POST /drain?token=secret", "", "HTTP/1.1 401"),
        ] {
            let answer = call(&address, line, header).await;
            assert!(answer.starts_with(expected), "{line} {header}: {answer}");
        }
        assert!(!shutdown.is_draining(), "nothing has changed");
        for _ in 0..2 {
            let answer = call(&address, "POST /drain", "Authorization: Bearer secret\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
        }
        assert!(shutdown.is_draining() && !shutdown.is_stopped(), "asking twice is not SIGTERM twice");
    }

    #[tokio::test]
    async fn a_proof_drains_once_and_is_answered_by_one() {
        let (port, shutdown) = open(Some("secret")).await;
        let address = port.address().to_owned();
        let challenge = page(&address, "/challenge").await;
        let challenge: Challenge = serde_json::from_str(challenge.rsplit("\r\n").next().unwrap()).unwrap();
        assert_eq!((challenge.node.as_str(), challenge.instance.as_str()), ("d7", "0000000000000005"));
        let ask = |token: &str| Asking::new(&Token::new(token, "a test").unwrap(), &challenge, "POST", "/drain");
        let wrong = format!("Authorization: {}\r\n", ask("another").authorization());
        assert!(call(&address, "POST /drain", &wrong).await.starts_with("HTTP/1.1 401"));
        assert!(!shutdown.is_draining());
        let asking = ask("secret");
        let header = format!("Authorization: {}\r\n", asking.authorization());
        let answer = call(&address, "POST /drain", &header).await;
        let proof = answer.lines().find_map(|line| line.strip_prefix("authentication-info: ")).expect("a proof");
        assert!(answer.starts_with("HTTP/1.1 202") && asking.is_answered_by(proof.as_bytes()), "{answer}");
        assert!(shutdown.is_draining());
        assert!(call(&address, "POST /drain", &header).await.starts_with("HTTP/1.1 401"), "once");
    }

    #[tokio::test]
    async fn without_a_token_nothing_changes_from_afar() {
        let (port, shutdown) = open(None).await;
        for header in ["", "Authorization: Bearer \r\n", "Authorization: Bearer x\r\n"] {
            let answer = call(port.address(), "POST /drain", header).await;
            assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("--admin-token-file"), "{answer}");
        }
        assert!(!shutdown.is_draining());
    }
}
