//! Who is asked. What it says is noted with the time at which it came.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cascadia_core::synthetic;
use cascadia_node::lanes::{LANE_STREAMS, Lanes, Lease};
use cascadia_proto::v1;
use cascadia_proto::v1::generate_response::Event;
use cascadia_proto::v1::prompt::Kind;

use super::args::LoadArgs;
use super::measure::Speculation;
use super::openai::OpenAi;
use super::workload::Item;
use crate::Failure;
use crate::client::{Client, ClientError};
use crate::contender::Contender;

/// What is the same for every request of a run.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// The served model; empty where there is one.
    pub model: String,
    /// The strategy; nothing leaves it to the server.
    pub contender: Option<Contender>,
    /// The temperature; nothing leaves it to the server.
    pub temperature: Option<f64>,
    /// The prompt goes as plain text, without a chat template.
    pub raw: bool,
}

/// What is one request's own.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Keeps its prompt apart from others in prefix caches.
    pub salt: Option<String>,
    /// Fixes its text, as far as the server can; nothing leaves it to the server.
    pub seed: Option<u64>,
}

/// What one request brought.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// When tokens came, and how many.
    pub pieces: Vec<(Instant, u32)>,
    /// When its last message came, which is before the end of its stream.
    pub end: Option<Instant>,
    /// Prompt tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
    /// What drafter and expert did, where the server says so.
    pub speculation: Option<Speculation>,
    /// The answer.
    pub text: String,
    /// A node without weights wrote it.
    pub synthetic: bool,
}

/// Why a request failed: one word to count by, and the whole sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failed {
    /// The status.
    pub kind: String,
    /// All of it.
    pub sentence: String,
}

/// Whether a request that failed in this way was refused for what it says, for example for its length: others may be
/// answered.
#[must_use]
pub fn is_refusal(kind: &str) -> bool {
    ["INVALID_ARGUMENT", "OUT_OF_RANGE", "400", "413", "422"].contains(&kind)
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            ClientError::Refused { code, .. } => (*code).to_owned(),
            ClientError::Address { .. } | ClientError::Unreachable { .. } => "UNREACHABLE".to_owned(),
            ClientError::Protocol(_) => "PROTOCOL".to_owned(),
        };
        Self { kind, sentence: error.to_string() }
    }
}

/// Who is asked.
#[derive(Debug)]
pub enum Target {
    /// A Cascadia router, over gRPC.
    Router(Router),
    /// A server that speaks OpenAI's HTTP.
    OpenAi(Box<OpenAi>),
}

impl Target {
    /// Whoever the command line names.
    ///
    /// # Errors
    /// When nothing answers there.
    pub async fn connect(args: &LoadArgs) -> Result<Self, Failure> {
        Ok(match &args.openai {
            Some(url) => Self::OpenAi(Box::new(OpenAi::connect(url).await?)),
            None => Self::Router(Router::connect(&args.server).await?),
        })
    }

    /// Asks and follows the answer to its end.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn ask(&self, ask: &Ask, item: &Item, own: Own) -> Result<Observed, Failed> {
        match self {
            Self::Router(router) => router.ask(ask, item, own).await,
            Self::OpenAi(server) => server.ask(ask, item, own).await,
        }
    }
}

/// A router, over as many connections as its streams need.
#[derive(Debug)]
pub struct Router {
    server: String,
    lanes: Mutex<Lanes<Arc<tokio::sync::OnceCell<Client>>>>,
}

impl Router {
    /// The router at an address; it is looked for at once.
    ///
    /// # Errors
    /// When nothing answers there.
    pub async fn connect(server: &str) -> Result<Self, ClientError> {
        let new = Self { server: server.to_owned(), lanes: Mutex::new(Lanes::new(LANE_STREAMS)) };
        new.client().await?;
        Ok(new)
    }

    /// A connection with room for one more stream.
    async fn client(&self) -> Result<(Client, Lease), ClientError> {
        let (cell, lease) = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).lease(Arc::default);
        let client = cell.get_or_try_init(|| Client::connect(&self.server)).await?;
        Ok((client.clone(), lease))
    }

    async fn ask(&self, ask: &Ask, item: &Item, own: Own) -> Result<Observed, Failed> {
        let (client, _lease) = self.client().await?;
        let mut events = client.generate(request(ask, item, own)).await?;
        let mut observed = Observed::default();
        while let Some(event) = events.next().await? {
            match event {
                Event::Started(started) => {
                    observed.input = started.prompt_tokens.into();
                    observed.synthetic = started.fingerprints.is_some_and(|of| {
                        [of.drafter, of.expert].iter().any(|model| model.starts_with(synthetic::FINGERPRINT))
                    });
                }
                Event::Tokens(tokens) => {
                    if !tokens.ids.is_empty() {
                        observed.pieces.push((Instant::now(), tokens.ids.len() as u32));
                    }
                    observed.output += tokens.ids.len() as u64;
                    if item.answer.is_some() {
                        observed.text.push_str(&tokens.text);
                    }
                }
                Event::Finished(finished) => {
                    observed.end = Some(Instant::now());
                    observed.speculation = finished.speculation.as_ref().map(Speculation::from);
                }
            }
        }
        Ok(observed)
    }
}

fn request(ask: &Ask, item: &Item, own: Own) -> v1::GenerateRequest {
    let kind = if ask.raw {
        Kind::Text(item.prompt.clone())
    } else {
        let message = v1::Message { role: "user".into(), content: item.prompt.clone() };
        Kind::Messages(v1::Messages { messages: vec![message] })
    };
    let parameters = ask.contender.as_ref().map(Contender::parameters).unwrap_or_default();
    v1::GenerateRequest {
        model: ask.model.clone(),
        prompt: Some(v1::Prompt { kind: Some(kind) }),
        parameters: Some(v1::Parameters {
            temperature: ask.temperature,
            max_tokens: Some(item.output),
            ignore_eos: item.exact,
            seed: own.seed,
            ..parameters
        }),
        cache_salt: own.salt,
        ..v1::GenerateRequest::default()
    }
}
