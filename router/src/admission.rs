//! Who may come in, and on which terms: bounds, validation, and everything that is fixed for the session's life.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cascadia_core::ids::SessionId;
use cascadia_core::limits;
use cascadia_core::placement::placement_key;
use cascadia_node::telemetry::TraceContext;
use cascadia_proto::parameters;
use cascadia_proto::prompt::EncodedPrompt;
use cascadia_proto::v1::{Parameters, Resolved};
use tokio::time::Instant;

use crate::config::{READING, RouterConfig};
use crate::error::GenerateError;
use crate::reading::Bodies;
use crate::request::Request;

/// A label (request id, tenant, conversation, cache salt, model) has at most so many bytes.
pub const LABEL_BYTES: usize = 512;

/// What is left of a message's bound for a prompt, so that the owner's `Open` around it keeps the bound too.
const PROMPT_BYTES: usize = limits::REQUEST_BYTES - limits::CONTROL_BYTES;

/// What sessions take of a router, or may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// How many there are.
    pub sessions: usize,
    /// What they hold of prompts.
    pub bytes: usize,
}

/// Admission: so many sessions at once, that hold so many bytes.
#[derive(Debug, Default)]
pub struct Admission {
    occupancy: Mutex<Occupancy>,
    /// Requests that are not at the door yet.
    pub bodies: Arc<Bodies>,
}

/// What admission knows of the sessions it let in.
#[derive(Debug, Default)]
struct Occupancy {
    /// Sessions inside.
    admitted: usize,
    /// What they hold of prompts, bytes.
    held: usize,
    /// How long sessions lately took, seconds; 0 before the first.
    mean_session_s: f64,
    /// When the last of them is over at the latest.
    last_deadline: Option<Instant>,
}

impl Admission {
    /// Takes places for so many sessions and what they hold together, or none, until `deadline` at the latest. The limit may
    /// be another for each who comes; those inside stay.
    ///
    /// # Errors
    /// When there is less room, with the time after which some can be expected; or when there never is.
    pub fn enter(self: &Arc<Self>, wanted: Room, limit: Room, deadline: Instant) -> Result<Vec<Permit>, GenerateError> {
        let Room { sessions, bytes } = wanted;
        if bytes > limit.bytes {
            return Err(GenerateError::TooMuch { sessions, bytes, limit: limit.bytes });
        }
        let mut occupancy = self.occupancy();
        let retry_after = retry_after(occupancy.mean_session_s, limit.sessions);
        if occupancy.admitted.saturating_add(sessions) > limit.sessions {
            return Err(GenerateError::Full { limit: limit.sessions, retry_after });
        }
        if occupancy.held.saturating_add(bytes) > limit.bytes {
            return Err(GenerateError::NoRoom { what: "prompts", limit: limit.bytes, retry_after });
        }
        occupancy.admitted += sessions;
        occupancy.held += bytes;
        occupancy.last_deadline = occupancy.last_deadline.max(Some(deadline));
        drop(occupancy);
        let held = Arc::new(Held { admission: self.clone(), bytes });
        Ok((0..sessions).map(|_| Permit { held: held.clone(), entered: Instant::now() }).collect())
    }

    /// Sessions inside.
    #[must_use]
    pub fn admitted(&self) -> usize {
        self.occupancy().admitted
    }

    /// How long a draining router lives at most: `configured`, and longer if a session was admitted on longer terms.
    #[must_use]
    pub fn grace(&self, configured: Duration) -> Duration {
        let last = self.occupancy().last_deadline;
        let left = last.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()));
        configured.max(left + READING)
    }

    fn occupancy(&self) -> MutexGuard<'_, Occupancy> {
        self.occupancy.lock().expect("no panic under this lock")
    }
}

/// When a place can be expected: sessions of `mean_session_s` seconds leave a full house of `limit` at this pace.
fn retry_after(mean_session_s: f64, limit: usize) -> Duration {
    Duration::from_secs((mean_session_s / limit.max(1) as f64).ceil().clamp(1.0, 30.0) as u64)
}

/// What the sessions of a request hold together: the last that ends gives it back.
#[derive(Debug)]
struct Held {
    admission: Arc<Admission>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Ok(mut occupancy) = self.admission.occupancy.lock() {
            occupancy.held -= self.bytes;
        }
    }
}

/// An admitted session's place, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    held: Arc<Held>,
    entered: Instant,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let took = self.entered.elapsed().as_secs_f64();
        if let Ok(mut occupancy) = self.held.admission.occupancy.lock() {
            occupancy.admitted -= 1;
            occupancy.mean_session_s =
                if occupancy.mean_session_s == 0.0 { took } else { occupancy.mean_session_s * 0.9 + took * 0.1 };
        }
    }
}

/// What was admitted; nothing of it changes while the session lives. What is large is shared by the sessions of a request.
#[derive(Clone, Debug)]
pub struct AdmittedRequest {
    /// The session's name in the cluster.
    pub session: SessionId,
    /// Its label.
    pub request_id: String,
    /// The served model.
    pub model: String,
    /// The prompt as it came.
    pub prompt: EncodedPrompt,
    /// All parameters.
    pub parameters: Arc<Parameters>,
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

impl AdmittedRequest {
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

    /// Fixes the terms of a request's sessions, prompt by prompt. It arrived then, for `model`, which the caller has looked
    /// up. Everything is checked once, however many sessions there are.
    ///
    /// # Errors
    /// Which field is wrong, and the cure.
    pub fn of(
        request: Request,
        model: &str,
        arrived: Instant,
        trace: &TraceContext,
        config: &RouterConfig,
    ) -> Result<Vec<Self>, GenerateError> {
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
        if request.prompts.is_empty() || request.prompts.iter().any(EncodedPrompt::is_empty) {
            return Err(GenerateError::EmptyPrompt);
        }
        let longest = request.prompts.iter().map(EncodedPrompt::weight).max().unwrap_or_default();
        if longest > PROMPT_BYTES {
            return Err(GenerateError::TooLong { field: "prompt", bytes: longest, limit: PROMPT_BYTES });
        }
        let parameters = parameters::resolve(&request.parameters, &config.defaults())?;
        let mut session = config.ids.session();
        let request_id = if request.request_id.is_empty() { format!("req-{session}") } else { request.request_id };
        let seed = parameters.seed.unwrap_or_else(|| parameters::seed_of(&request.tenant, &request_id));
        let parameters = Arc::new(Parameters { seed: Some(seed), ..parameters });
        let conversation = Some(request.conversation.as_str()).filter(|conversation| !conversation.is_empty());
        let cache_salt = request.cache_salt.unwrap_or_else(|| request.tenant.clone());
        let mut admitted = Vec::with_capacity(request.prompts.len() * request.answers as usize);
        for prompt in &request.prompts {
            let key = placement_key(&request.tenant, conversation, prompt.beginning());
            for answer in 0..request.answers {
                if !admitted.is_empty() {
                    session = config.ids.session();
                }
                admitted.push(Self {
                    session,
                    key,
                    tokens: prompt.tokens() as u64 + u64::from(parameters.max_tokens()),
                    cache_salt: cache_salt.clone(),
                    tenant: request.tenant.clone(),
                    priority: request.priority,
                    request_id: request_id.clone(),
                    model: model.to_owned(),
                    prompt: prompt.clone(),
                    parameters: parameters.clone(),
                    default_max_tokens: request.parameters.max_tokens.is_none(),
                    seed,
                    choice: request.choice + answer,
                    arrived,
                    allowed,
                    trace: trace.clone(),
                });
            }
        }
        Ok(admitted)
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

#[cfg(test)]
mod tests {
    use cascadia_proto::prompt::{IdsWriter, MessagesWriter};

    use super::*;
    use crate::ids::IdSource;

    fn admitted(request: Request) -> Result<Vec<AdmittedRequest>, GenerateError> {
        let config = RouterConfig { ids: IdSource::seeded(1), ..RouterConfig::default() };
        AdmittedRequest::of(request, "m", Instant::now(), &TraceContext::default(), &config)
    }

    fn request(prompt: EncodedPrompt) -> Request {
        Request { prompts: vec![prompt], answers: 1, ..Request::default() }
    }

    fn text(text: &str) -> Request {
        request(EncodedPrompt::of_text(text))
    }

    #[test]
    fn empty_prompts_are_refused() {
        let mut messages = MessagesWriter::with_capacity(0);
        messages.push("user", "");
        let prompts = [EncodedPrompt::of_text(""), IdsWriter::with_capacity(0).finish(), messages.finish()];
        for prompt in prompts {
            assert!(matches!(admitted(request(prompt.clone())), Err(GenerateError::EmptyPrompt)));
            let second = Request { prompts: vec![EncodedPrompt::of_text("x"), prompt], ..text("x") };
            assert!(matches!(admitted(second), Err(GenerateError::EmptyPrompt)));
        }
        assert!(matches!(admitted(Request::default()), Err(GenerateError::EmptyPrompt)));
    }

    #[test]
    fn what_is_too_large_is_refused_by_name() {
        let long = admitted(text(&"x".repeat(limits::REQUEST_BYTES)));
        assert!(matches!(long, Err(GenerateError::TooLong { field: "prompt", .. })));
        let label = Request { tenant: "x".repeat(LABEL_BYTES + 1), ..text("x") };
        assert!(matches!(admitted(label), Err(GenerateError::TooLong { field: "tenant", .. })));
        let timeless = Request { timeout_ms: Some(0), ..text("x") };
        assert!(matches!(admitted(timeless), Err(GenerateError::NoTime)));
    }

    #[test]
    fn sessions_of_a_request_share_what_is_large() {
        let prompts = ["one", "two"].map(EncodedPrompt::of_text).to_vec();
        let admitted = admitted(Request { prompts, answers: 2, choice: 5, ..Request::default() }).unwrap();
        let seen: Vec<_> = admitted.iter().map(|admitted| (admitted.prompt.text().unwrap(), admitted.choice)).collect();
        assert_eq!(seen, [("one", 5), ("one", 6), ("two", 5), ("two", 6)]);
        let at = |i: usize| admitted[i].prompt.encoded().as_ptr();
        assert!(at(0) == at(1) && at(1) != at(2));
        assert!(admitted.iter().all(|each| Arc::ptr_eq(&each.parameters, &admitted[0].parameters)));
        assert!(admitted.iter().all(|each| each.request_id == format!("req-{}", admitted[0].session)));
        assert!(admitted[1..].iter().all(|each| each.session != admitted[0].session));
    }

    #[test]
    fn the_same_request_id_gives_the_same_seed_in_another_session() {
        let asked = Request { request_id: "again".into(), ..text("x") };
        let config = RouterConfig::default();
        let fixed = |asked| {
            AdmittedRequest::of(asked, "m", Instant::now(), &TraceContext::default(), &config).unwrap().remove(0)
        };
        let (once, twice) = (fixed(asked.clone()), fixed(asked));
        assert_eq!(once.seed, twice.seed);
        assert_eq!(once.parameters.seed, Some(once.seed));
        assert_ne!(once.session, twice.session);
    }

    #[test]
    fn a_deadline_is_the_clients_up_to_the_operators() {
        let timed = |ms| admitted(Request { timeout_ms: ms, ..text("x") }).unwrap()[0].allowed;
        assert_eq!(timed(Some(50)), Duration::from_millis(50));
        assert_eq!(timed(Some(u64::MAX)), RouterConfig::default().max_timeout());
        assert_eq!(timed(None), limits::DEFAULT_DEADLINE);
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

    fn room(sessions: usize) -> Room {
        Room { sessions, bytes: 100 }
    }

    #[tokio::test]
    async fn the_door_is_bounded_and_says_when_to_retry() {
        let admission = Arc::new(Admission::default());
        let soon = Instant::now() + Duration::from_secs(1);
        let enter = |sessions, limit| admission.enter(Room { sessions, bytes: 1 }, room(limit), soon);
        assert!(matches!(enter(2, 1), Err(GenerateError::Full { limit: 1, .. })));
        let place = enter(1, 1).unwrap();
        assert_eq!((place.len(), admission.admitted()), (1, 1));
        assert!(matches!(enter(1, 1), Err(GenerateError::Full { limit: 1, .. })));
        // Another limit is for those who come after it; whoever is inside stays.
        let second = enter(1, 2).unwrap();
        assert!(matches!(enter(1, 1), Err(GenerateError::Full { limit: 1, .. })));
        drop((place, second));
        enter(1, 1).unwrap();
        assert_eq!(retry_after(0.0, 4), Duration::from_secs(1));
        assert_eq!(retry_after(50.0, 4), Duration::from_secs(13));
        assert_eq!(retry_after(1e9, 4), Duration::from_secs(30));
    }

    #[tokio::test]
    async fn prompts_are_held_until_the_last_of_their_sessions_ends() {
        let admission = Arc::new(Admission::default());
        let enter = |sessions, bytes| admission.enter(Room { sessions, bytes }, room(9), Instant::now());
        let mut places = enter(2, 60).unwrap();
        let refused = enter(1, 41).unwrap_err();
        assert!(matches!(refused, GenerateError::NoRoom { what: "prompts", limit: 100, .. }), "{refused}");
        drop(enter(1, 40).unwrap());
        places.pop();
        assert!(enter(1, 41).is_err(), "the other still holds it");
        drop(places);
        enter(1, 100).unwrap();
        let never = enter(1, 101).unwrap_err();
        assert!(matches!(never, GenerateError::TooMuch { sessions: 1, bytes: 101, limit: 100 }), "{never}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_admitted_on_longer_terms_keeps_them() {
        let admission = Arc::new(Admission::default());
        assert_eq!(admission.grace(Duration::from_secs(20)), Duration::from_secs(20));
        let enter = |seconds| {
            let deadline = Instant::now() + Duration::from_secs(seconds);
            admission.enter(Room { sessions: 1, bytes: 1 }, room(2), deadline).unwrap()
        };
        let _places = (enter(100), enter(10));
        assert_eq!(admission.grace(Duration::from_secs(20)), Duration::from_secs(100) + READING);
        assert_eq!(admission.grace(Duration::from_secs(200)), Duration::from_secs(200));
    }
}
