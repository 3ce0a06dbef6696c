//! A client of the router: connects, asks, and follows the answer as it is committed.

use std::time::{Duration, Instant};

use cascadia_core::limits;
pub use cascadia_proto::convert::provenance_name;
use cascadia_proto::v1;
use cascadia_proto::v1::generate_response::Event;
use cascadia_proto::v1::inference_client::InferenceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// Where a router listens unless it is told otherwise, and where it is looked for.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";

/// How long a connection may take to come up: a router on this side of the world answers well within it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request to the router came to nothing; one sentence each.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// `--server` is not an address.
    #[error("{server:?} is not an address; write it as host:port, for example 127.0.0.1:50051")]
    Address {
        /// What was given.
        server: String,
    },
    /// Nothing answers there.
    #[error("no router answers at {server} ({cause}); start one with `cascadia up`, or name another with --server")]
    Unreachable {
        /// The address.
        server: String,
        /// What the system says.
        cause: String,
    },
    /// The router refused the request or broke it off.
    #[error("{message} ({code})")]
    Refused {
        /// The status code's name.
        code: &'static str,
        /// The router's sentence.
        message: String,
    },
    /// The answer contradicts the protocol.
    #[error("the router's answer makes no sense: {0}; is it of this version?")]
    Protocol(String),
}

impl ClientError {
    /// Whether messages were refused where plain text would not be, as by a model without a chat template. The router says
    /// so in words; flags for it are the caller's own.
    #[must_use]
    pub fn wants_plain_text(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains("send the prompt as plain text"))
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        let code = code_name(status.code());
        let message = status.message().trim_end_matches('.').to_owned();
        let message = match std::error::Error::source(&status) {
            // What tonic made of a broken transport has a cause; what the router itself said has none.
            Some(_) => format!("the connection to the router broke ({message}): ask again; one seed gives one text"),
            None if message.is_empty() => "the router gave no reason".to_owned(),
            None => message,
        };
        Self::Refused { code, message }
    }
}

/// The name that every gRPC tool uses for a status code.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// A connection to one router; clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    inner: InferenceClient<Channel>,
}

impl Client {
    /// Connects to the router at `server`, `host:port` with or without `http://`.
    ///
    /// # Errors
    /// When `server` is no address, or nothing answers there.
    pub async fn connect(server: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::Address { server: server.to_owned() };
        let bare = server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/');
        if bare.contains('/')
            || !bare.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            return Err(bad());
        }
        let endpoint = Endpoint::from_shared(format!("http://{bare}"))
            .map_err(|_| bad())?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(limits::STREAM_WINDOW)
            .initial_connection_window_size(limits::CONNECTION_WINDOW)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5));
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| ClientError::Unreachable { server: bare.to_owned(), cause: root_cause(&error) })?;
        Ok(Self { inner: InferenceClient::new(channel).max_decoding_message_size(limits::REQUEST_BYTES) })
    }

    /// Starts a generation.
    ///
    /// # Errors
    /// When the router refuses it.
    pub async fn generate(&self, request: v1::GenerateRequest) -> Result<Events, ClientError> {
        let asked = Instant::now();
        let mut inner = self.inner.clone();
        let stream = match inner.generate(request.clone()).await {
            Err(status) if never_sent(&status) => inner.generate(request).await?,
            outcome => outcome?,
        };
        Ok(Events { stream: stream.into_inner(), asked, next: None, over: false })
    }

    /// Runs a generation to its end.
    ///
    /// # Errors
    /// When the router refuses it or breaks it off.
    pub async fn answer(&self, request: v1::GenerateRequest) -> Result<Answer, ClientError> {
        let mut events = self.generate(request).await?;
        let mut answer = Answer::default();
        while let Some(event) = events.next().await? {
            answer.take(event);
        }
        answer.elapsed = events.asked.elapsed();
        Ok(answer)
    }

    /// The served models.
    ///
    /// # Errors
    /// When the router does not say.
    pub async fn models(&self) -> Result<Vec<v1::ServedModel>, ClientError> {
        Ok(self.inner.clone().list_models(v1::ListModelsRequest {}).await?.into_inner().models)
    }

    /// Members, load and pairs as the router sees them.
    ///
    /// # Errors
    /// When the router does not say.
    pub async fn status(&self) -> Result<v1::ClusterStatusResponse, ClientError> {
        Ok(self.inner.clone().cluster_status(v1::ClusterStatusRequest {}).await?.into_inner())
    }
}

/// Whether a request never left this process, because its connection had just been told that the router goes (GOAWAY).
/// Other gRPC clients send such a request again without a word.
fn never_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The system's own words at the bottom of a chain of wrappers.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    let text = cause.to_string();
    // "Connection refused (os error 111)": the number helps nobody.
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// What happens in one generation, in order.
#[derive(Debug)]
pub struct Events {
    stream: Streaming<v1::GenerateResponse>,
    asked: Instant,
    /// The position that must come next.
    next: Option<u64>,
    over: bool,
}

impl Events {
    /// The next event; `None` after the last. Every position comes once and in order, or this is an error.
    ///
    /// # Errors
    /// When the router breaks the answer off, or its stream makes no sense.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        let Some(response) = self.stream.message().await? else {
            if self.over {
                return Ok(None);
            }
            return Err(ClientError::Protocol("it ends without saying why".into()));
        };
        let event = response.event.ok_or_else(|| ClientError::Protocol("an event is empty".into()))?;
        match &event {
            Event::Started(started) => self.next = Some(u64::from(started.prompt_tokens)),
            Event::Tokens(tokens) => self.check(tokens)?,
            Event::Finished(_) => self.over = true,
        }
        Ok(Some(event))
    }

    /// How long ago the generation was asked for.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.asked.elapsed()
    }

    fn check(&mut self, tokens: &v1::Tokens) -> Result<(), ClientError> {
        let Some(next) = self.next else {
            return Err(ClientError::Protocol("tokens come before `started`".into()));
        };
        if tokens.position != next {
            return Err(ClientError::Protocol(format!("position {} comes where {next} is due", tokens.position)));
        }
        if tokens.provenance.len() != tokens.ids.len() {
            return Err(ClientError::Protocol("tokens and provenance differ in number".into()));
        }
        self.next = Some(next + tokens.ids.len() as u64);
        Ok(())
    }
}

/// One whole answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// How it began: the parameters really used, the seed, the nodes.
    pub started: v1::Started,
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub token_ids: Vec<u32>,
    /// Where each token came from.
    pub provenance: Vec<v1::Provenance>,
    /// Log-probabilities of each token, where asked for.
    pub logprobs: Vec<v1::TokenLogprobs>,
    /// How it ended.
    pub finished: v1::Finished,
    /// From the request to its end.
    pub elapsed: Duration,
}

impl Answer {
    /// Adds an event.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Started(started) => self.started = started,
            Event::Tokens(tokens) => {
                self.provenance.extend(tokens.provenance());
                self.token_ids.extend(tokens.ids);
                self.text.push_str(&tokens.text);
                self.logprobs.extend(tokens.logprobs);
            }
            Event::Finished(finished) => self.finished = finished,
        }
    }

    /// Tokens that the drafter wrote: drafts that were kept.
    #[must_use]
    pub fn from_drafter(&self) -> usize {
        self.provenance.iter().filter(|p| matches!(p, v1::Provenance::Accepted | v1::Provenance::Relaxed)).count()
    }

    /// Its usage; zeros where the router said nothing.
    #[must_use]
    pub fn usage(&self) -> v1::Usage {
        self.finished.usage.unwrap_or_default()
    }

    /// Its speculation statistics; zeros where the router said nothing.
    #[must_use]
    pub fn speculation(&self) -> v1::Speculation {
        self.finished.speculation.clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_listens() {
        let sentence = Client::connect("127.0.0.1:1").await.expect_err("nobody is there").to_string();
        assert!(sentence.contains("no router answers at 127.0.0.1:1 (connection refused)"), "{sentence}");
    }

    #[tokio::test]
    async fn no_address() {
        for server in ["", "localhost", "localhost:", ":50051", "localhost:port", "https://a:1", "a:1/b", "a:70000"] {
            let error = Client::connect(server).await.expect_err(server);
            assert!(matches!(error, ClientError::Address { .. }), "{server}: {error}");
        }
    }

    #[test]
    fn a_status_is_one_sentence() {
        let error = ClientError::from(Status::invalid_argument("the prompt is empty; say something."));
        assert_eq!(error.to_string(), "the prompt is empty; say something (INVALID_ARGUMENT)");
    }

    /// In the tokenizer's own words.
    #[test]
    fn messages_that_should_be_plain_text_are_known() {
        use cascadia_text::TemplateError;
        let refused = |error: TemplateError| ClientError::from(Status::invalid_argument(error.to_string()));
        let wanted = [
            TemplateError::Missing,
            TemplateError::NoDefault("tool_use".into()),
            TemplateError::Syntax("line 1".into()),
            TemplateError::Failed("no such filter".into()),
        ];
        assert!(wanted.into_iter().all(|error| refused(error).wants_plain_text()));
        assert!(!refused(TemplateError::Raised("roles must alternate".into())).wants_plain_text());
        assert!(!ClientError::Protocol("send the prompt as plain text".into()).wants_plain_text());
    }

    #[test]
    fn an_answer_adds_up() {
        let mut answer = Answer::default();
        for (position, ids, text, provenance) in [(3, vec![7, 8], "ab", vec![1, 2]), (5, vec![9], "c", vec![3])] {
            let tokens = v1::Tokens { position, ids, text: text.into(), provenance, ..Default::default() };
            answer.take(Event::Tokens(tokens));
        }
        assert_eq!((answer.text.as_str(), answer.token_ids.as_slice()), ("abc", [7, 8, 9].as_slice()));
        assert_eq!(answer.from_drafter(), 2);
    }
}
