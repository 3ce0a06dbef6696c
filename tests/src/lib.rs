//! Whole clusters for tests: real nodes and real gRPC over toy models whose every row is a pure function.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cascadia_core::commit::Text;
use cascadia_core::engine::{Chunk, Engine, EngineError, ModelFacts, Rows};
use cascadia_core::ids::{NodeId, TokenId};
use cascadia_core::toy::{ToyEngine, ToyModel};
use cascadia_drafter_node::DrafterConfig;
use cascadia_expert_node::ExpertConfig;
use cascadia_node::NodeEnv;
use cascadia_node::engine_config::EngineConfig;
use cascadia_node::engine_thread::Executor;
use cascadia_node::lifecycle::Shutdown;
use cascadia_node::loaded_model::LoadedModel;
use cascadia_node::membership::Membership;
use cascadia_node::net::{Connector, Listener};
use cascadia_proto::v1;
use cascadia_proto::v1::generate_response::Event;
use cascadia_proto::v1::inference_client::InferenceClient;
use cascadia_router::RouterConfig;
use tonic::Status;
use tonic::transport::Channel;

/// The served model of every toy cluster.
pub const MODEL: &str = "toy";

/// The toy tokenizer's EOS.
pub const EOS: u32 = 1;

/// Longer than anything that is waited for takes; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Positions that a toy engine holds of one session.
const CONTEXT: usize = 2048;

/// KV pages of a toy engine.
const PAGES: usize = 1024;

fn engine() -> EngineConfig {
    EngineConfig { kv_pages: PAGES, ..EngineConfig::default() }
}

/// An expert whose texts have some tens of tokens.
#[must_use]
pub fn expert_model() -> ToyModel {
    ToyModel { vocabulary: text().vocabulary(), sharpness: 4.0, eos: Some((EOS, 2.0)), ..ToyModel::default() }
}

/// A drafter that agrees with it most of the time.
#[must_use]
pub fn drafter_model() -> ToyModel {
    expert_model().drafter(77, 0.3)
}

/// The toy tokenizer.
#[must_use]
pub fn text() -> cascadia_text::Tokenizer {
    cascadia_text::toy::byte_level()
}

/// A switch that hangs an engine in its next pass, or fails its passes; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Hang(Arc<AtomicBool>, Arc<Failing>);

#[derive(Debug, Default)]
struct Failing {
    on: AtomicBool,
    passes: AtomicU64,
}

impl Hang {
    /// Hangs the engine, or lets it go on.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }

    /// Fails every pass of the engine, or none.
    pub fn fail(&self, on: bool) {
        self.1.on.store(on, Ordering::Relaxed);
    }

    /// Passes that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.1.passes.load(Ordering::Relaxed)
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), EngineError> {
        if self.1.on.load(Ordering::Relaxed) {
            self.1.passes.fetch_add(1, Ordering::Relaxed);
            return Err(EngineError::Pass("it was told to fail".into()));
        }
        Ok(())
    }
}

/// A switch that takes an engine's device away: its next pass fails, and so does every later one; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Lose(Arc<AtomicBool>);

impl Lose {
    /// Takes the device away.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A toy engine that takes its time, so that faults can be timed against it.
pub struct SlowEngine {
    engine: ToyEngine,
    step: Duration,
    hang: Hang,
    lose: Lose,
}

impl SlowEngine {
    /// An engine for `context` positions whose every pass takes `step` of real time, and longer while it hangs.
    #[must_use]
    pub fn new(model: ToyModel, context: usize, pages: usize, step: Duration, hang: Hang) -> Self {
        Self { engine: ToyEngine::new(model, context, pages), step, hang, lose: Lose::default() }
    }

    /// Loses its device when the switch says so.
    #[must_use]
    pub fn losing(self, lose: Lose) -> Self {
        Self { lose, ..self }
    }

    /// Computes no numbers for rows that score the token after this one.
    #[must_use]
    pub fn overflowing(mut self, after: Option<TokenId>) -> Self {
        self.engine.overflow_after(after);
        self
    }
}

impl Engine for SlowEngine {
    fn facts(&self) -> &ModelFacts {
        self.engine.facts()
    }

    fn progress(&self) -> Arc<AtomicU64> {
        self.engine.progress()
    }

    fn forward(&mut self, batch: &[Chunk<'_>], rows: &mut Rows) -> Result<(), EngineError> {
        if !self.step.is_zero() {
            std::thread::sleep(self.step);
        }
        while self.hang.is_on() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.lose.0.load(Ordering::Relaxed) {
            return Err(EngineError::Fatal("the card has fallen off the bus".into()));
        }
        self.hang.check()?;
        self.engine.forward(batch, rows)
    }
}

/// What a toy cluster consists of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Drafter nodes.
    pub drafters: usize,
    /// Expert nodes.
    pub experts: usize,
    /// The expert model.
    pub expert_model: ToyModel,
    /// The drafter model.
    pub drafter_model: ToyModel,
    /// The token after which the experts' numbers overflow.
    pub expert_overflows: Option<TokenId>,
    /// The token after which the drafters' numbers overflow.
    pub drafter_overflows: Option<TokenId>,
    /// Positions that an expert's engine holds of one session.
    pub expert_context: usize,
    /// Time of an expert's pass.
    pub expert_step: Duration,
    /// Time of a drafter's pass.
    pub drafter_step: Duration,
    /// The router's configuration.
    pub router: RouterConfig,
    /// Every drafter's.
    pub drafter: DrafterConfig,
    /// Every expert's.
    pub expert: ExpertConfig,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            drafters: 2,
            experts: 2,
            expert_model: expert_model(),
            drafter_model: drafter_model(),
            expert_overflows: None,
            drafter_overflows: None,
            expert_context: CONTEXT,
            expert_step: Duration::ZERO,
            drafter_step: Duration::ZERO,
            router: RouterConfig::default(),
            drafter: DrafterConfig { engine: engine(), ..DrafterConfig::default() },
            expert: ExpertConfig { served_model: vec![MODEL.into()], engine: engine(), ..ExpertConfig::default() },
        }
    }
}

/// A node on a runtime of its own, so that it can die like a process.
pub struct Running {
    /// Its name.
    pub id: NodeId,
    /// Where it listens.
    pub address: String,
    /// How to ask it to go.
    pub shutdown: Shutdown,
    /// How to hang or fail its engine; a router has none.
    pub hang: Hang,
    /// How to take its engine's device away; a router has none.
    pub lose: Lose,
    ending: Arc<OnceLock<String>>,
    running: tokio::task::JoinHandle<()>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Running {
    fn start<F, E>(
        id: &str,
        membership: &Membership,
        body: impl FnOnce(NodeEnv, Hang, Lose) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (id, shutdown, membership) = (NodeId(id.into()), Shutdown::new(), membership.clone());
        let (hang, lose) = (Hang::default(), Lose::default());
        let ending: Arc<OnceLock<String>> = Arc::default();
        let (sender, receiver) = std::sync::mpsc::channel();
        let (own, stop, switches) = (id.clone(), shutdown.clone(), (hang.clone(), lose.clone()));
        let last_word = ending.clone();
        let running = runtime.spawn(async move {
            let listener = Listener::bind("127.0.0.1:0").await.expect("loopback has a free port");
            sender.send(listener.address().to_owned()).expect("the test waits");
            let env = NodeEnv {
                id: own,
                listener,
                admin: None,
                connector: Connector::tcp(),
                membership,
                shutdown: stop,
                telemetry: Default::default(),
            };
            let id = env.id.clone();
            if let Err(error) = body(env, switches.0, switches.1).await {
                eprintln!("{id} ended: {error}");
                last_word.set(error.to_string()).expect("a node ends once");
            }
        });
        let address = receiver.recv().expect("the node listens");
        Self { id, address, shutdown, hang, lose, ending, running, runtime: Some(runtime) }
    }

    /// Why the node has ended by itself, if it ended badly.
    #[must_use]
    pub fn ending(&self) -> Option<&str> {
        self.ending.get().map(String::as_str)
    }

    /// Whether the node has ended by itself.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.running.is_finished()
    }

    /// Waits until the node has ended by itself.
    pub async fn gone(&self) {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if self.is_gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{} is still there after {PATIENCE:?}", self.id);
    }

    /// Ends the node without a word: its connections break.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nobody waits for the engine's thread, but nobody shall spin for ever either.
        self.hang.set(false);
        self.kill();
    }
}

/// A running toy cluster.
pub struct ToyCluster {
    /// The router.
    pub router: Running,
    /// Its drafters.
    pub drafters: Vec<Running>,
    /// Its experts.
    pub experts: Vec<Running>,
    /// The router's address.
    pub address: String,
    /// The registry of all.
    pub membership: Membership,
    plan: Plan,
}

impl ToyCluster {
    /// Starts a cluster and waits until the router can place on all of it.
    pub async fn start(plan: Plan) -> Self {
        let membership = Membership::embedded();
        let config = plan.router.clone();
        let router = Running::start("router-1", &membership, move |env, _, _| async move {
            cascadia_router::run(config, env, None).await
        });
        let address = router.address.clone();
        let mut cluster = Self { router, drafters: Vec::new(), experts: Vec::new(), address, membership, plan };
        for _ in 0..cluster.plan.experts {
            cluster.add_expert();
        }
        for _ in 0..cluster.plan.drafters {
            cluster.add_drafter();
        }
        cluster.ready().await;
        cluster
    }

    /// Starts one more expert.
    pub fn add_expert(&mut self) {
        let id = format!("expert-{}", self.experts.len() + 1);
        let plan = self.plan.clone();
        let node = Running::start(&id, &self.membership, move |env, hang, lose| async move {
            let engine = SlowEngine::new(
                plan.expert_model,
                plan.expert_context,
                plan.expert.engine.kv_pages,
                plan.expert_step,
                hang,
            )
            .losing(lose)
            .overflowing(plan.expert_overflows);
            let text: Arc<dyn Text> = Arc::new(text());
            let parts = LoadedModel { engine: Box::new(engine), text };
            cascadia_expert_node::run(plan.expert, env, parts, Executor::Thread).await
        });
        self.experts.push(node);
    }

    /// Starts one more drafter.
    pub fn add_drafter(&mut self) {
        let id = format!("drafter-{}", self.drafters.len() + 1);
        let plan = self.plan.clone();
        let node = Running::start(&id, &self.membership, move |env, hang, lose| async move {
            let engine =
                SlowEngine::new(plan.drafter_model, CONTEXT, plan.drafter.engine.kv_pages, plan.drafter_step, hang)
                    .losing(lose)
                    .overflowing(plan.drafter_overflows);
            let text: Arc<dyn Text> = Arc::new(text());
            let parts = LoadedModel { engine: Box::new(engine), text };
            cascadia_drafter_node::run(plan.drafter, env, parts, Executor::Thread).await
        });
        self.drafters.push(node);
    }

    /// Waits until the router has heard the status of every node.
    pub async fn ready(&self) {
        let expected = self.drafters.len() + self.experts.len();
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if let Ok(status) = self.status().await {
                let heard = status.members.iter().filter(|member| member.load.is_some()).count();
                if heard >= expected {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("the cluster of {expected} nodes is not ready after {PATIENCE:?}: {:?}", self.status().await);
    }

    /// A client of the router.
    pub async fn client(&self) -> InferenceClient<Channel> {
        InferenceClient::connect(format!("http://{}", self.address)).await.expect("the router listens")
    }

    /// What the router says of the cluster.
    ///
    /// # Errors
    /// The router's.
    pub async fn status(&self) -> Result<v1::ClusterStatusResponse, Status> {
        Ok(self.client().await.cluster_status(v1::ClusterStatusRequest {}).await?.into_inner())
    }

    /// Sessions open at any node, as its status says.
    pub async fn open_sessions(&self) -> u32 {
        let status = self.status().await.expect("the router answers");
        status.members.iter().filter_map(|member| member.load.as_ref()).map(|load| load.sessions).sum()
    }

    /// Waits until no node holds a session, and asserts that every page is free.
    pub async fn quiesce(&self) {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            let status = self.status().await.expect("the router answers");
            let loads: Vec<_> = status.members.iter().filter_map(|member| member.load.as_ref()).collect();
            if loads.iter().all(|load| load.sessions == 0 && load.kv_pages_free == load.kv_pages) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("sessions or pages are still held: {:?}", self.status().await);
    }

    /// One whole answer.
    ///
    /// # Errors
    /// The router's.
    pub async fn generate(&self, request: v1::GenerateRequest) -> Result<Answer, Status> {
        collect(self.client().await, request).await
    }
}

/// Follows one answer to its end, checking that every position comes exactly once and in order.
///
/// # Errors
/// The router's.
pub async fn collect(mut client: InferenceClient<Channel>, request: v1::GenerateRequest) -> Result<Answer, Status> {
    let mut stream = client.generate(request).await?.into_inner();
    let mut answer = Answer::default();
    while let Some(response) = stream.message().await? {
        answer.take(response);
    }
    assert!(answer.finished.is_some(), "a stream that ends well has said so");
    Ok(answer)
}

/// An answer as the client saw it.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The first message.
    pub started: Option<v1::Started>,
    /// Output ids.
    pub ids: Vec<u32>,
    /// Output text.
    pub text: String,
    /// One for each id.
    pub provenance: Vec<i32>,
    /// One for each id where asked for.
    pub logprobs: Vec<v1::TokenLogprobs>,
    /// The last message.
    pub finished: Option<v1::Finished>,
}

impl Answer {
    /// Takes the next message.
    pub fn take(&mut self, response: v1::GenerateResponse) {
        match response.event.expect("an event") {
            Event::Started(started) => self.started = Some(started),
            Event::Tokens(tokens) => {
                let started = self.started.as_ref().expect("started comes first");
                let expected = u64::from(started.prompt_tokens) + self.ids.len() as u64;
                assert!(
                    tokens.ids.is_empty() || tokens.position == expected,
                    "position {} is not {expected}",
                    tokens.position
                );
                assert_eq!(tokens.provenance.len(), tokens.ids.len());
                self.ids.extend(tokens.ids);
                self.text.push_str(&tokens.text);
                self.provenance.extend(tokens.provenance);
                self.logprobs.extend(tokens.logprobs);
            }
            Event::Finished(finished) => {
                let usage = finished.usage.as_ref().expect("usage");
                assert_eq!(usage.completion_tokens as usize, self.ids.len());
                self.finished = Some(finished);
            }
        }
    }

    /// Why it ended.
    #[must_use]
    pub fn reason(&self) -> v1::FinishReason {
        self.finished.as_ref().expect("finished").reason()
    }
}

/// A request with a prompt and parameters.
#[must_use]
pub fn request(prompt: &str, parameters: v1::Parameters) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(v1::Prompt { kind: Some(v1::prompt::Kind::Text(prompt.into())) }),
        parameters: Some(parameters),
        ..v1::GenerateRequest::default()
    }
}

/// Parameters of a strategy at a temperature and seed, for at most 60 tokens.
#[must_use]
pub fn parameters(strategy: &str, temperature: f64, seed: u64) -> v1::Parameters {
    v1::Parameters {
        strategy: strategy.into(),
        temperature: Some(temperature),
        seed: Some(seed),
        max_tokens: Some(60),
        ..v1::Parameters::default()
    }
}

/// `speculative_cascade` with a rule.
#[must_use]
pub fn cascade(rule: &str, alpha: f64, temperature: f64, seed: u64) -> v1::Parameters {
    v1::Parameters { rule: rule.into(), alpha: Some(alpha), ..parameters("speculative_cascade", temperature, seed) }
}
