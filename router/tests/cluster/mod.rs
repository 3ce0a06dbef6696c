//! A router on loopback with owners that do as the test says: real gRPC, embedded membership, no model.

#![allow(dead_code, reason = "each test file uses a part")]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{NodeRecord, NodeState, Role, ServedModel};
use cascadia_node::NodeEnv;
use cascadia_node::admin::AdminPort;
use cascadia_node::config::Reloadable;
use cascadia_node::lifecycle::Shutdown;
use cascadia_node::membership::{Membership, Registration};
use cascadia_node::net::{self, Connector, Listener};
use cascadia_node::status::StatusBoard;
use cascadia_node::telemetry::Telemetry;
use cascadia_proto::v1::generate_response::Event;
use cascadia_proto::v1::inference_client::InferenceClient;
use cascadia_proto::v1::prompt::Kind;
use cascadia_proto::v1::run_request::Message as Order;
use cascadia_proto::v1::run_response::Message;
use cascadia_proto::v1::session_server::{Session, SessionServer};
use cascadia_proto::v1::traces_server::{Traces, TracesServer};
use cascadia_proto::v1::{self, GenerateRequest, GenerateResponse, Parameters, Provenance, RunRequest, RunResponse};
use cascadia_router::http::HttpConfig;
use cascadia_router::{IdSource, RouterConfig, RouterError};
use futures::Stream;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// Longer than anything here takes; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits, but not for ever.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this should have happened by now")
}

/// The clock of a test, and of the router in it, that goes only when the test says so: what has to happen before some time
/// then does, on a machine of any speed.
pub struct StoppedClock {
    _held: std::sync::mpsc::Sender<()>,
}

impl StoppedClock {
    pub fn stop() -> Self {
        tokio::time::pause();
        // A paused clock leaps to the next timer when there is nothing to do here, as while an owner works in a runtime of
        // its own; it does not while a blocking task runs.
        let (held, released) = std::sync::mpsc::channel();
        tokio::task::spawn_blocking(move || released.recv());
        Self { _held: held }
    }

    /// Lets this much time pass at once.
    pub async fn pass(&self, time: Duration) {
        tokio::time::advance(time).await;
    }
}

impl Drop for StoppedClock {
    fn drop(&mut self) {
        tokio::time::resume();
    }
}

/// A router and its cluster.
pub struct Cluster {
    pub membership: Membership,
    pub shutdown: Shutdown,
    pub address: String,
    pub running: JoinHandle<Result<(), RouterError>>,
    pub admin: String,
    pub http: String,
}

/// The configuration of tests: no lame duck, known ids.
pub fn config() -> RouterConfig {
    RouterConfig { ids: IdSource::seeded(1), lame_duck_ms: 0, ..RouterConfig::default() }
}

impl Cluster {
    pub async fn start(config: RouterConfig) -> Self {
        Self::start_with(config, HttpConfig { http: "127.0.0.1:0".into(), ..HttpConfig::default() }).await
    }

    pub async fn start_with(config: impl Into<Reloadable<RouterConfig>>, http: HttpConfig) -> Self {
        Self::start_over(config, http, Connector::tcp(), Telemetry::default()).await
    }

    pub async fn start_over(
        config: impl Into<Reloadable<RouterConfig>>,
        http: HttpConfig,
        connector: Connector,
        telemetry: Telemetry,
    ) -> Self {
        let membership = Membership::embedded();
        let shutdown = Shutdown::new();
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let admin = AdminPort::open(Listener::bind("127.0.0.1:0").await.unwrap(), &shutdown, None);
        let (address, admin_address) = (listener.address().to_owned(), admin.address().to_owned());
        let door = http.open().await.unwrap().expect("it is not off");
        let http = door.listener.address().to_owned();
        let env = NodeEnv {
            telemetry,
            id: NodeId("router-1".into()),
            listener,
            admin: Some(admin),
            connector,
            membership: membership.clone(),
            shutdown: shutdown.clone(),
        };
        let running = tokio::spawn(cascadia_router::run(config.into(), env, [cascadia_router::http::front(door)]));
        Self { membership, shutdown, address, running, admin: admin_address, http }
    }

    pub fn client(&self) -> InferenceClient<Channel> {
        InferenceClient::new(Connector::tcp().channel(&self.address))
    }

    /// Adds an owner and waits until the router has seen it.
    pub async fn owner(&self, id: &str, role: Role) -> Owner {
        let owner = Owner::start(id, role, &self.membership).await;
        let mut client = self.client();
        soon(async {
            loop {
                if let Ok(status) = client.cluster_status(v1::ClusterStatusRequest {}).await
                    && status.into_inner().members.iter().any(|member| member.id == id && member.load.is_some())
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        owner
    }

    /// One drafter and one expert.
    pub async fn pair(config: RouterConfig) -> (Self, Owner, Owner) {
        let cluster = Self::start(config).await;
        let drafter = cluster.owner("drafter-1", Role::Drafter).await;
        let expert = cluster.owner("expert-1", Role::Expert).await;
        (cluster, drafter, expert)
    }

    /// Asks in the background; owners are played meanwhile.
    pub fn ask(&self, request: GenerateRequest) -> Asked {
        let mut client = self.client();
        let (hears, heard) = watch::channel(0);
        let told = tokio::spawn(async move {
            let mut told = Told::default();
            let mut stream = match client.generate(request).await {
                Ok(response) => response.into_inner(),
                Err(status) => return Told { error: Some(status), ..told },
            };
            loop {
                match stream.message().await {
                    Ok(Some(response)) => told.take(response),
                    Ok(None) => return told,
                    Err(status) => return Told { error: Some(status), ..told },
                }
                hears.send_replace(told.tokens.iter().map(|tokens| tokens.ids.len()).sum());
            }
        });
        Asked { told, heard }
    }
}

/// A request under way; what the client was told, once that has ended.
pub struct Asked {
    told: JoinHandle<Told>,
    heard: watch::Receiver<usize>,
}

impl Asked {
    /// Waits until the client has so many tokens: the router has them too.
    pub async fn hears(&self, tokens: usize) {
        let mut heard = self.heard.clone();
        soon(heard.wait_for(|heard| *heard >= tokens)).await.expect("the client listens");
    }

    /// The client goes away.
    pub fn abort(&self) {
        self.told.abort();
    }
}

impl Future for Asked {
    type Output = Result<Told, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.told).poll(context)
    }
}

/// Everything a client was told.
#[derive(Debug, Default)]
pub struct Told {
    pub started: Vec<v1::Started>,
    pub tokens: Vec<v1::Tokens>,
    pub finished: Option<v1::Finished>,
    pub error: Option<Status>,
}

impl Told {
    fn take(&mut self, response: GenerateResponse) {
        match response.event.expect("an event") {
            Event::Started(started) => self.started.push(started),
            Event::Tokens(tokens) => self.tokens.push(tokens),
            Event::Finished(finished) => self.finished = Some(finished),
        }
    }

    /// The output's ids; each position must have come once and in order.
    pub fn ids(&self) -> Vec<u32> {
        let mut ids = Vec::new();
        for tokens in &self.tokens {
            let next = u64::from(self.started[0].prompt_tokens) + ids.len() as u64;
            assert_eq!(tokens.position, next, "positions are contiguous");
            assert_eq!(tokens.provenance.len(), tokens.ids.len());
            ids.extend(&tokens.ids);
        }
        ids
    }

    pub fn text(&self) -> String {
        self.tokens.iter().map(|tokens| tokens.text.as_str()).collect()
    }

    pub fn code(&self) -> tonic::Code {
        self.error.as_ref().map_or(tonic::Code::Ok, Status::code)
    }

    pub fn message(&self) -> &str {
        self.error.as_ref().map_or("", Status::message)
    }
}

pub fn parameters(strategy: &str) -> Parameters {
    Parameters { strategy: strategy.into(), max_tokens: Some(16), ..Parameters::default() }
}

pub fn request(parameters: Parameters) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(v1::Prompt { kind: Some(Kind::Text("What is 2 + 2?".into())) }),
        parameters: Some(parameters),
        request_id: "test".into(),
        ..GenerateRequest::default()
    }
}

/// A drafter or an expert that does as it is told.
pub struct Owner {
    pub id: String,
    pub board: StatusBoard,
    calls: mpsc::Receiver<Call>,
    /// The sessions whose traces it was told to keep.
    kept: mpsc::UnboundedReceiver<Vec<u8>>,
    registration: Option<Registration>,
    record: NodeRecord,
    runtime: Option<Runtime>,
}

impl Owner {
    async fn start(id: &str, role: Role, membership: &Membership) -> Self {
        let (calls, received) = mpsc::channel(64);
        let (keeps, kept) = mpsc::unbounded_channel();
        let board = StatusBoard::new(7, Arc::new(AtomicU64::new(0)), membership.cluster());
        board.set_state(NodeState::Ready);
        // A runtime of its own: it can die with all its connections.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let node = board.service();
        let address = runtime
            .spawn(async move {
                let listener = Listener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.address().to_owned();
                let routes = net::server()
                    .add_service(SessionServer::new(Played { calls }))
                    .add_service(TracesServer::new(Keeps(keeps)))
                    .add_service(node);
                tokio::spawn(routes.serve_with_incoming(listener.into_incoming()));
                address
            })
            .await
            .unwrap();
        let record = NodeRecord {
            id: NodeId(id.into()),
            instance: 7,
            role,
            address,
            admin_address: String::new(),
            models: vec![ServedModel {
                name: "demo".into(),
                fingerprint: fingerprint(role),
                tokenizer_fingerprint: "tokenizer".into(),
                row_exact: true,
            }],
            capacity: 64,
            protocol: cascadia_proto::PROTOCOL,
            state: NodeState::Ready,
        };
        let registration = membership.register(record.clone()).await.unwrap();
        let (registration, runtime) = (Some(registration), Some(runtime));
        Self { id: id.into(), board, calls: received, kept, registration, record, runtime }
    }

    /// Waits until it is told to keep the traces of this session.
    pub async fn keeps(&mut self, session: &[u8]) {
        while soon(self.kept.recv()).await.expect("the owner lives") != session {}
    }

    /// The next session that is opened here.
    pub async fn call(&mut self) -> Call {
        soon(self.calls.recv()).await.expect("the owner lives")
    }

    /// Nobody opens a session here for a while.
    pub async fn is_left_alone(&mut self) {
        let called = tokio::time::timeout(Duration::from_millis(300), self.calls.recv()).await;
        assert!(called.is_err(), "{} was asked", self.id);
    }

    /// Dies with all its connections; membership does not know yet.
    pub fn kill(&mut self) {
        self.runtime.take().expect("it lived").shutdown_background();
    }

    /// Says that it drains.
    pub async fn drain(&mut self) {
        self.board.set_state(NodeState::Draining);
        let record = NodeRecord { state: NodeState::Draining, ..self.record.clone() };
        self.registration.as_ref().unwrap().update(record).await;
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn fingerprint(role: Role) -> String {
    format!("{role:?}-1").to_lowercase()
}

/// A session opened at an owner: the test plays its part.
pub struct Call {
    pub open: v1::RunOpen,
    pub history: Vec<u32>,
    sender: mpsc::Sender<Result<RunResponse, Status>>,
    inbound: Streaming<RunRequest>,
}

impl Call {
    pub async fn send(&self, message: Message) {
        self.sender.send(Ok(RunResponse { message: Some(message) })).await.expect("the router listens");
    }

    /// Sends what the router may no longer listen to.
    pub async fn try_send(&self, message: Message) {
        let _ = self.sender.send(Ok(RunResponse { message: Some(message) })).await;
    }

    pub fn parameters(&self) -> &Parameters {
        self.open.resolved.as_ref().unwrap().parameters.as_ref().unwrap()
    }

    pub fn placement(&self) -> u64 {
        self.open.key.as_ref().unwrap().epoch >> 32
    }

    /// Opens a new session whose prompt has these ids.
    pub async fn opened(&self, prompt: &[u32]) {
        self.announce(prompt.len() as u32).await;
        self.prompt(prompt).await;
    }

    /// Opens a session that continues.
    pub async fn continued(&self) {
        self.announce(self.open.continued.as_ref().expect("it continues").prompt_tokens).await;
    }

    pub async fn announce(&self, prompt_tokens: u32) {
        let expert = self.open.expert.as_ref();
        let drafter = if expert.is_some() || self.parameters().strategy == "drafter" { "drafter-1" } else { "" };
        let fingerprints = v1::Fingerprints {
            drafter: drafter.into(),
            expert: if self.parameters().strategy == "drafter" { "" } else { "expert-1" }.into(),
            tokenizer: "tokenizer".into(),
            row_exact: true,
        };
        let opened = v1::Opened { protocol: 1, fingerprints: Some(fingerprints), prompt_tokens, ..Default::default() };
        self.send(Message::Opened(opened)).await;
    }

    /// Opens it as a node of another cluster would.
    pub async fn opened_in(&self, cluster: &str) {
        self.send(Message::Opened(v1::Opened { protocol: 1, cluster: cluster.into(), ..Default::default() })).await;
    }

    pub async fn prompt(&self, ids: &[u32]) {
        self.send(Message::History(v1::History { ids: ids.to_vec() })).await;
    }

    pub async fn tokens(&self, position: u64, ids: &[u32]) {
        self.tokens_of(0, position, ids).await;
    }

    pub async fn tokens_of(&self, choice: u32, position: u64, ids: &[u32]) {
        let tokens = v1::Tokens {
            choice,
            position,
            ids: ids.to_vec(),
            text: ids.iter().map(|id| format!("<{id}>")).collect(),
            provenance: vec![Provenance::Accepted.into(); ids.len()],
            ..v1::Tokens::default()
        };
        self.send(Message::Tokens(tokens)).await;
    }

    pub async fn moved(&self, expert: Option<v1::NodeRef>) {
        let moved = v1::Moved { expert, reason: v1::MoveReason::Loss.into(), epoch: 0, failed: Vec::new() };
        self.send(Message::Moved(moved)).await;
    }

    pub async fn hand_over(&self, score: f64) {
        let speculation = Some(v1::Speculation { drafted: 5, ..v1::Speculation::default() });
        self.send(Message::Handover(v1::Handover { score, speculation })).await;
    }

    pub async fn finish(&self, speculation: v1::Speculation) {
        let finished = v1::Finished {
            reason: v1::FinishReason::Stop.into(),
            usage: None,
            speculation: Some(speculation),
            reproducible: true,
            ..v1::Finished::default()
        };
        self.send(Message::Finished(finished)).await;
    }

    pub async fn fail(&self, status: Status) {
        self.sender.send(Err(status)).await.expect("the router listens");
    }

    /// Returns when the router has cancelled the session here.
    pub async fn cancelled(&mut self) {
        soon(self.sender.closed()).await;
        assert!(!matches!(soon(self.inbound.message()).await, Ok(Some(_))), "no more orders");
    }
}

struct Keeps(mpsc::UnboundedSender<Vec<u8>>);

#[tonic::async_trait]
impl Traces for Keeps {
    async fn keep(&self, request: Request<v1::KeepRequest>) -> Result<Response<v1::KeepResponse>, Status> {
        for session in request.into_inner().sessions {
            let _ = self.0.send(session);
        }
        Ok(Response::new(v1::KeepResponse {}))
    }
}

struct Played {
    calls: mpsc::Sender<Call>,
}

#[tonic::async_trait]
impl Session for Played {
    type RunStream = Pin<Box<dyn Stream<Item = Result<RunResponse, Status>> + Send>>;

    async fn run(&self, request: Request<Streaming<RunRequest>>) -> Result<Response<Self::RunStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(RunRequest { message: Some(Order::Open(open)) }) = inbound.message().await? else {
            return Err(Status::invalid_argument("no open"));
        };
        let expected = open.continued.as_ref().map_or(0, |continued| continued.history_tokens as usize);
        let mut history = Vec::new();
        while history.len() < expected {
            let Some(RunRequest { message: Some(Order::History(ids)) }) = inbound.message().await? else {
                return Err(Status::invalid_argument("no history"));
            };
            history.extend(ids.ids);
        }
        let (sender, receiver) = mpsc::channel(8_192);
        let call = Call { open, history, sender, inbound };
        self.calls.send(call).await.map_err(|_| Status::internal("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
