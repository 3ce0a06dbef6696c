//! Who may come in, and on which terms: bounds, validation, and everything that is fixed for the session's life.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cascadia_core::ids::SessionId;
use cascadia_core::limits;
use cascadia_core::placement::placement_key;
use cascadia_node::telemetry::TraceContext;
use cascadia_proto::parameters;
use cascadia_proto::v1::prompt::Kind;
use cascadia_proto::v1::{GenerateRequest, Parameters, Prompt, Resolved};
use tokio::time::Instant;

use crate::config::{READING, RouterConfig};
use crate::error::GenerateError;

/// A label (request id, tenant, conversation, cache salt, model) has at most so many bytes.
pub const LABEL_BYTES: usize = 512;

/// What is left of a message's bound for a prompt, so that the owner's `Open` around it keeps the bound too.
const PROMPT_BYTES: usize = limits::REQUEST_BYTES - limits::CONTROL_BYTES;

/// The door: so many sessions at once.
#[derive(Debug, Default)]
pub struct Admission(Mutex<Book>);

/// What the door knows of those who passed.
#[derive(Debug, Default)]
struct Book {
    /// Sessions inside.
    admitted: usize,
    /// How long sessions lately took, seconds; 0 before the first.
    lately: f64,
    /// When the last of them is over at the latest.
    last_deadline: Option<Instant>,
}

impl Admission {
    /// Takes so many of `limit` places, or none, until `deadline` at the latest. The limit may be another for each who
    /// comes; those inside stay.
    ///
    /// # Errors
    /// When there are fewer, with the time after which one can be expected.
    pub fn enter(self: &Arc<Self>, count: usize, limit: usize, deadline: Instant) -> Result<Vec<Place>, GenerateError> {
        let mut book = self.book();
        if book.admitted.saturating_add(count) > limit {
            return Err(GenerateError::Full { limit, retry_after: retry_after(book.lately, limit) });
        }
        book.admitted += count;
        book.last_deadline = book.last_deadline.max(Some(deadline));
        Ok((0..count).map(|_| Place { door: self.clone(), entered: Instant::now() }).collect())
    }

    /// Sessions inside.
    #[must_use]
    pub fn admitted(&self) -> usize {
        self.book().admitted
    }

    /// How long a draining router lives at most: `configured`, and longer if a session was admitted on longer terms.
    #[must_use]
    pub fn grace(&self, configured: Duration) -> Duration {
        let last = self.book().last_deadline;
        let left = last.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()));
        configured.max(left + READING)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().expect("no panic under this lock")
    }
}

/// When a place can be expected: sessions of `lately` seconds leave a full house of `limit` at this pace.
fn retry_after(lately: f64, limit: usize) -> Duration {
    Duration::from_secs((lately / limit.max(1) as f64).ceil().clamp(1.0, 30.0) as u64)
}

/// An admitted session's place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    door: Arc<Admission>,
    entered: Instant,
}

impl Drop for Place {
    fn drop(&mut self) {
        let took = self.entered.elapsed().as_secs_f64();
        if let Ok(mut book) = self.door.0.lock() {
            book.admitted -= 1;
            book.lately = if book.lately == 0.0 { took } else { book.lately * 0.9 + took * 0.1 };
        }
    }
}

/// What was admitted; nothing of it changes while the session lives.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The session's name in the cluster.
    pub session: SessionId,
    /// Its label.
    pub request_id: String,
    /// The served model.
    pub model: String,
    /// The prompt as it came.
    pub prompt: Prompt,
    /// All parameters.
    pub parameters: Parameters,
    /// The request gave no `max_tokens`: the default is cut where the prompt leaves less.
    pub default_max_tokens: bool,
    /// Key of all chance, with `choice`.
    pub seed: u64,
    /// Which of the seed's texts.
    pub choice: u32,
    /// Whose session it is.
    pub tenant: String,
    /// Higher first.
    pub priority: i32,
    /// Part of the prefix cache's key.
    pub cache_salt: String,
    /// Sessions of equal key meet again.
    pub key: Option<u64>,
    /// Tokens it is expected to bring.
    pub tokens: u64,
    /// When the client asked.
    pub arrived: Instant,
    /// What time it has.
    pub allowed: Duration,
    /// The client's trace.
    pub trace: TraceContext,
}

impl Terms {
    /// When its time is up.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.arrived + self.allowed
    }

    /// What all log lines about the request have in common; shown at every level, so that no line lacks it.
    #[must_use]
    pub fn log_span(&self) -> tracing::Span {
        let trace_id = tracing::field::Empty;
        tracing::error_span!("generate", session = %self.session, request_id = self.request_id, trace_id)
    }

    /// Adds its trace to the log lines, now that it has one.
    pub fn log_trace(&self, trace: &TraceContext) {
        if let Some(trace) = trace.trace_id() {
            tracing::Span::current().record("trace_id", tracing::field::display(trace));
        }
    }

    /// What travels to owners.
    #[must_use]
    pub fn resolved(&self, parameters: Parameters) -> Resolved {
        let default_max_tokens = self.default_max_tokens;
        Resolved { parameters: Some(parameters), seed: self.seed, choice: self.choice, default_max_tokens }
    }

    /// Fixes the terms of a request that arrived then, for `model`, which the caller has looked up.
    ///
    /// # Errors
    /// Which field is wrong, and the cure.
    pub fn of(
        request: GenerateRequest,
        model: String,
        arrived: Instant,
        trace: TraceContext,
        config: &RouterConfig,
    ) -> Result<Self, GenerateError> {
        for (field, text) in [
            ("request_id", request.request_id.as_str()),
            ("tenant", &request.tenant),
            ("conversation", &request.conversation),
            ("cache_salt", request.cache_salt.as_deref().unwrap_or_default()),
        ] {
            if text.len() > LABEL_BYTES {
                return Err(GenerateError::TooLong { field, bytes: text.len(), limit: LABEL_BYTES });
            }
        }
        let allowed = allowed(request.timeout_ms, config)?;
        let prompt = request.prompt.filter(|prompt| !is_empty(prompt)).ok_or(GenerateError::EmptyPrompt)?;
        let bytes = prompt_bytes(&prompt);
        if bytes > PROMPT_BYTES {
            return Err(GenerateError::TooLong { field: "prompt", bytes, limit: PROMPT_BYTES });
        }
        let asked = request.parameters.unwrap_or_default();
        let parameters = parameters::resolve(&asked, &config.defaults())?;
        let session = config.mint.session();
        let request_id = if request.request_id.is_empty() { format!("req-{session}") } else { request.request_id };
        let seed = parameters.seed.unwrap_or_else(|| parameters::seed_of(&request.tenant, &request_id));
        let parameters = Parameters { seed: Some(seed), ..parameters };
        let conversation = Some(request.conversation.as_str()).filter(|conversation| !conversation.is_empty());
        let prompt_tokens = match &prompt.kind {
            Some(Kind::Ids(ids)) => ids.ids.len(),
            _ => bytes / 4,
        };
        Ok(Self {
            session,
            key: placement_key(&request.tenant, conversation, &beginning(&prompt)),
            tokens: prompt_tokens as u64 + u64::from(parameters.max_tokens()),
            cache_salt: request.cache_salt.unwrap_or_else(|| request.tenant.clone()),
            tenant: request.tenant,
            priority: request.priority,
            request_id,
            model,
            prompt,
            parameters,
            default_max_tokens: asked.max_tokens.is_none(),
            seed,
            choice: request.choice,
            arrived,
            allowed,
            trace,
        })
    }
}

/// The time a request has that asks for so much.
///
/// # Errors
/// When it asks for none.
pub fn allowed(timeout_ms: Option<u64>, config: &RouterConfig) -> Result<Duration, GenerateError> {
    match timeout_ms {
        None => Ok(config.timeout()),
        Some(0) => Err(GenerateError::NoTime),
        Some(ms) => Ok(Duration::from_millis(ms).min(config.max_timeout())),
    }
}

/// Whether a request may mean one of these models.
#[must_use]
pub fn is_among(asked: &str, served: &[String]) -> bool {
    served.iter().any(|model| asked.is_empty() || model == asked)
}

/// The model a request means: the named one, or the only one.
///
/// # Errors
/// Which models there are.
pub fn model_of(asked: &str, served: Vec<String>) -> Result<String, GenerateError> {
    if served.is_empty() {
        return Err(GenerateError::NothingServed);
    }
    if asked.is_empty() {
        return match <[String; 1]>::try_from(served) {
            Ok([model]) => Ok(model),
            Err(served) => Err(GenerateError::WhichModel { served }),
        };
    }
    if is_among(asked, &served) {
        return Ok(asked.to_owned());
    }
    let asked = asked.chars().take(80).collect();
    Err(GenerateError::UnknownModel { asked, served })
}

fn is_empty(prompt: &Prompt) -> bool {
    match &prompt.kind {
        None => true,
        Some(Kind::Text(text)) => text.is_empty(),
        Some(Kind::Messages(messages)) => messages.messages.iter().all(|message| message.content.is_empty()),
        Some(Kind::Ids(ids)) => ids.ids.is_empty(),
    }
}

/// Bytes of the prompt on the wire, at most.
fn prompt_bytes(prompt: &Prompt) -> usize {
    match &prompt.kind {
        None => 0,
        Some(Kind::Text(text)) => text.len(),
        Some(Kind::Messages(messages)) => {
            messages.messages.iter().map(|message| message.role.len() + message.content.len() + 16).sum()
        }
        // A varint of 32 bits has 5 bytes at most.
        Some(Kind::Ids(ids)) => ids.ids.iter().map(|id| (38 - (id | 1).leading_zeros() as usize) / 7).sum(),
    }
}

/// As much of the prompt as makes a placement key.
fn beginning(prompt: &Prompt) -> Vec<u8> {
    let enough = limits::PLACEMENT_KEY_BYTES;
    match &prompt.kind {
        None => Vec::new(),
        Some(Kind::Text(text)) => text.bytes().take(enough).collect(),
        Some(Kind::Messages(messages)) => {
            // Separators, so that a role is no content.
            let fields = messages.messages.iter().flat_map(|message| [&message.role, &message.content]);
            fields.flat_map(|field| field.bytes().chain([0])).take(enough).collect()
        }
        Some(Kind::Ids(ids)) => ids.ids.iter().flat_map(|id| id.to_le_bytes()).take(enough).collect(),
    }
}

#[cfg(test)]
mod tests {
    use cascadia_proto::v1::{Message, Messages, TokenIds};

    use super::*;
    use crate::mint::Mint;

    fn text(text: &str) -> Prompt {
        Prompt { kind: Some(Kind::Text(text.into())) }
    }

    fn terms(request: GenerateRequest) -> Result<Terms, GenerateError> {
        let config = RouterConfig { mint: Mint::seeded(1), ..RouterConfig::default() };
        Terms::of(request, "m".into(), Instant::now(), TraceContext::default(), &config)
    }

    fn request(prompt: Prompt) -> GenerateRequest {
        GenerateRequest { prompt: Some(prompt), ..GenerateRequest::default() }
    }

    #[test]
    fn empty_prompts_are_refused() {
        let messages = Messages { messages: vec![Message { role: "user".into(), content: String::new() }] };
        for prompt in [
            Prompt::default(),
            text(""),
            Prompt { kind: Some(Kind::Ids(TokenIds::default())) },
            Prompt { kind: Some(Kind::Messages(messages)) },
        ] {
            assert!(matches!(terms(request(prompt)), Err(GenerateError::EmptyPrompt)));
        }
        assert!(matches!(terms(GenerateRequest::default()), Err(GenerateError::EmptyPrompt)));
    }

    #[test]
    fn what_is_too_large_is_refused_by_name() {
        let long = terms(request(text(&"x".repeat(limits::REQUEST_BYTES))));
        assert!(matches!(long, Err(GenerateError::TooLong { field: "prompt", .. })));
        let label = GenerateRequest { tenant: "x".repeat(LABEL_BYTES + 1), ..request(text("x")) };
        assert!(matches!(terms(label), Err(GenerateError::TooLong { field: "tenant", .. })));
        let timeless = GenerateRequest { timeout_ms: Some(0), ..request(text("x")) };
        assert!(matches!(terms(timeless), Err(GenerateError::NoTime)));
    }

    #[test]
    fn the_same_request_id_gives_the_same_seed_in_another_session() {
        let asked = GenerateRequest { request_id: "again".into(), ..request(text("x")) };
        let config = RouterConfig::default();
        let fixed = |asked| Terms::of(asked, "m".into(), Instant::now(), TraceContext::default(), &config).unwrap();
        let (once, twice) = (fixed(asked.clone()), fixed(asked));
        assert_eq!(once.seed, twice.seed);
        assert_eq!(once.parameters.seed, Some(once.seed));
        assert_ne!(once.session, twice.session);
    }

    #[test]
    fn a_deadline_is_the_clients_up_to_the_operators() {
        let timed = |ms| terms(GenerateRequest { timeout_ms: Some(ms), ..request(text("x")) }).unwrap().allowed;
        assert_eq!(timed(50), Duration::from_millis(50));
        assert_eq!(timed(u64::MAX), RouterConfig::default().max_timeout());
        assert_eq!(terms(request(text("x"))).unwrap().allowed, limits::DEFAULT_DEADLINE);
    }

    #[test]
    fn a_model_is_the_named_or_the_only_one() {
        let both = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(model_of("", vec!["a".into()]).unwrap(), "a");
        assert_eq!(model_of("b", both()).unwrap(), "b");
        assert!(matches!(model_of("", both()), Err(GenerateError::WhichModel { .. })));
        let unknown = model_of("c", both()).unwrap_err().to_string();
        assert_eq!(unknown, "model \"c\" is not served here: name one of a, b");
        assert!(matches!(model_of("c", Vec::new()), Err(GenerateError::NothingServed)));
    }

    #[test]
    fn ids_are_measured_as_they_travel() {
        let ids = |ids: &[u32]| Prompt { kind: Some(Kind::Ids(TokenIds { ids: ids.to_vec() })) };
        assert_eq!(prompt_bytes(&ids(&[0, 127, 128, 16_383, 16_384, u32::MAX])), 1 + 1 + 2 + 2 + 3 + 5);
        assert_eq!(beginning(&ids(&[1])), [1, 0, 0, 0]);
    }

    #[tokio::test]
    async fn the_door_is_bounded_and_says_when_to_retry() {
        let door = Arc::new(Admission::default());
        let soon = Instant::now() + Duration::from_secs(1);
        assert!(matches!(door.enter(2, 1, soon), Err(GenerateError::Full { limit: 1, .. })));
        let place = door.enter(1, 1, soon).unwrap();
        assert_eq!((place.len(), door.admitted()), (1, 1));
        assert!(matches!(door.enter(1, 1, soon), Err(GenerateError::Full { limit: 1, .. })));
        // Another limit is for those who come after it; whoever is inside stays.
        let second = door.enter(1, 2, soon).unwrap();
        assert!(matches!(door.enter(1, 1, soon), Err(GenerateError::Full { limit: 1, .. })));
        drop((place, second));
        door.enter(1, 1, soon).unwrap();
        assert_eq!(retry_after(0.0, 4), Duration::from_secs(1));
        assert_eq!(retry_after(50.0, 4), Duration::from_secs(13));
        assert_eq!(retry_after(1e9, 4), Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_admitted_on_longer_terms_keeps_them() {
        let door = Arc::new(Admission::default());
        assert_eq!(door.grace(Duration::from_secs(20)), Duration::from_secs(20));
        let _long = door.enter(1, 2, Instant::now() + Duration::from_secs(100)).unwrap();
        let _short = door.enter(1, 2, Instant::now() + Duration::from_secs(10)).unwrap();
        assert_eq!(door.grace(Duration::from_secs(20)), Duration::from_secs(100) + READING);
        assert_eq!(door.grace(Duration::from_secs(200)), Duration::from_secs(200));
    }
}
