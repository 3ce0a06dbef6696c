//! `--synthetic`: nodes without weights that answer with a set acceptance at a set pace.
//!
//! They are the real nodes around another engine and a small built-in tokenizer, and size what stands around models:
//! routers, networks, the ratio of drafters to experts.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cascadia_core::commit::{Commit, Prompt, PromptRefusal, Room, StopSettings, Text};
use cascadia_core::engine::{Chunk, Engine, EngineError, ModelFacts, Rows};
use cascadia_core::ids::TokenId;
use cascadia_core::limits::PAGE_TOKENS;
use cascadia_core::placement::Role;
use cascadia_core::synthetic::{MOST_PAGES, Pace, SyntheticEngine, SyntheticModel};
use cascadia_node::engine_config::EngineConfig;
use cascadia_node::loaded_model::LoadedModel;
use cascadia_text::Tokenizer;

use crate::durations;

/// The served model's name where none is given.
pub const SERVED: &str = "synthetic";

/// Positions of a session at most.
const MOST_CONTEXT: usize = MOST_PAGES * PAGE_TOKENS;

/// Sessions of a node, and tokens of its batch, at most.
const MOST_AT_ONCE: usize = 1 << 20;

/// KV pages where none are given: they hold nothing, so no memory decides.
const PAGES: usize = 1024;

/// What `--synthetic` takes.
const KEYS: &str = "of the pair: acceptance, length, vocabulary, seed; of a node: step, token, prefill, context, pages, \
                    sessions, batch, each also as drafter.KEY or expert.KEY";

/// The help text of `--synthetic`, wherever it is a flag.
pub const HELP: &str = "Serve no model but one that answers with a set acceptance at a set pace: KEY=VALUE, separated by \
                        commas, for example acceptance=0.8,length=100,expert.step=20ms. Keys of the pair, equal at \
                        drafters and experts: acceptance (0.8), length (mean tokens of a text, or none: 128), vocabulary \
                        (280), seed (1). Keys of a node, also as drafter.KEY or expert.KEY: step (time of a pass: 2ms, \
                        20ms), token (each further row: 0us), prefill (tokens a second: 20000), context (4096), and pages, \
                        sessions, batch in place of --kv-pages, --max-sessions, --batch-tokens";

/// A synthetic drafter and expert, as typed.
#[derive(Clone, Debug, PartialEq)]
pub struct Synthetic {
    acceptance: f64,
    length: Option<u32>,
    vocabulary: usize,
    seed: u64,
    drafter: Side,
    expert: Side,
}

/// One node of the pair.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Side {
    pace: Pace,
    context: usize,
    pages: Option<usize>,
    sessions: Option<usize>,
    batch: Option<usize>,
}

impl Side {
    fn new(step: Duration) -> Self {
        let pace = Pace { step, token: Duration::ZERO, prefill: 20_000.0 };
        Self { pace, context: 4096, pages: None, sessions: None, batch: None }
    }

    /// Sets what was typed.
    fn configure(&self, config: &mut EngineConfig) {
        config.kv_pages = self.pages.unwrap_or(if config.kv_pages == 0 { PAGES } else { config.kv_pages });
        config.max_sessions = self.sessions.unwrap_or(config.max_sessions);
        config.batch_tokens = self.batch.unwrap_or(config.batch_tokens);
    }

    /// Whether the key is one of a node's.
    fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "step" => self.pace.step = durations::parse(value)?,
            "token" => self.pace.token = durations::parse(value)?,
            "prefill" => {
                let rate: f64 = number(value)?;
                if !(0.001..=1e12).contains(&rate) {
                    return Err(format!("{value} is out of bounds; give 0.001 to 1000000000000 tokens a second"));
                }
                self.pace.prefill = rate;
            }
            "context" => self.context = count(value, MOST_CONTEXT)?,
            "pages" => self.pages = Some(count(value, MOST_PAGES)?),
            "sessions" => self.sessions = Some(count(value, MOST_AT_ONCE)?),
            "batch" => self.batch = Some(count(value, MOST_AT_ONCE)?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn number<T: FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{value:?} is no number that fits"))
}

fn count(value: &str, most: usize) -> Result<usize, String> {
    match number(value)? {
        count if (1..=most).contains(&count) => Ok(count),
        _ => Err(format!("{value} is out of bounds; give 1 to {most}")),
    }
}

impl Default for Synthetic {
    fn default() -> Self {
        Self {
            acceptance: 0.8,
            length: Some(128),
            vocabulary: 280,
            seed: 1,
            drafter: Side::new(Duration::from_millis(2)),
            expert: Side::new(Duration::from_millis(20)),
        }
    }
}

impl FromStr for Synthetic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut new = Self::default();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| format!("{pair:?} is not KEY=VALUE; keys are {KEYS}"))?;
            if !new.set(key, value).map_err(|reason| format!("{key}: {reason}"))? {
                return Err(format!("{key:?} is no key; keys are {KEYS}"));
            }
        }
        new.model(&cascadia_text::toy::byte_level()).check()?;
        Ok(new)
    }
}

impl Synthetic {
    /// Whether the key is known.
    fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "acceptance" => self.acceptance = number(value)?,
            "length" => self.length = if value == "none" { None } else { Some(number(value)?) },
            "vocabulary" => self.vocabulary = number(value)?,
            "seed" => self.seed = number(value)?,
            _ => {
                if let Some(key) = key.strip_prefix("drafter.") {
                    return self.drafter.set(key, value);
                }
                if let Some(key) = key.strip_prefix("expert.") {
                    return self.expert.set(key, value);
                }
                return Ok(self.drafter.set(key, value)? && self.expert.set(key, value)?);
            }
        }
        Ok(true)
    }

    /// The law, over the built-in tokenizer.
    fn model(&self, tokenizer: &Tokenizer) -> SyntheticModel {
        let ids = 0..tokenizer.vocabulary() as TokenId;
        // Single bytes, so that no token waits for the rest of a character.
        let letter =
            |id: &TokenId| matches!(tokenizer.token_bytes(*id), Some([byte]) if b"etaoinshrdlucm ".contains(byte));
        SyntheticModel {
            acceptance: self.acceptance,
            vocabulary: self.vocabulary,
            length: self.length,
            seed: self.seed,
            alphabet: ids.filter(letter).collect(),
            eos: tokenizer.eos_ids().first().copied().unwrap_or_default(),
        }
    }

    /// The engine and text of one node. What the text is called keeps pairs together: a synthetic drafter drafts for the
    /// experts of its own parameters and for no real model.
    #[must_use]
    pub fn parts(&self, role: Role, pages: usize) -> LoadedModel {
        let tokenizer = Arc::new(cascadia_text::toy::byte_level());
        let model = self.model(&tokenizer);
        let fingerprint = model.fingerprint();
        let side = self.side(role);
        let engine = SyntheticEngine::new(model, role, side.context, pages);
        LoadedModel {
            engine: Box::new(PacedEngine::new(engine, side.pace)),
            text: Arc::new(SyntheticText { tokenizer, fingerprint }),
        }
    }

    fn side(&self, role: Role) -> &Side {
        if role == Role::Drafter { &self.drafter } else { &self.expert }
    }

    /// Sets of a node's configuration what was typed here.
    pub fn configure(&self, role: Role, config: &mut EngineConfig) {
        self.side(role).configure(config);
    }
}

/// A synthetic engine whose passes take their time.
struct PacedEngine {
    engine: SyntheticEngine,
    pace: Pace,
    born: Instant,
    due: Option<Duration>,
    progress: Arc<AtomicU64>,
}

/// A long pass says so often that it lives, as one of many layers would.
const SIGN_OF_LIFE: Duration = Duration::from_millis(200);

impl PacedEngine {
    fn new(engine: SyntheticEngine, pace: Pace) -> Self {
        let progress = engine.progress();
        Self { engine, pace, born: Instant::now(), due: None, progress }
    }
}

impl Engine for PacedEngine {
    fn facts(&self) -> &ModelFacts {
        self.engine.facts()
    }

    fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.progress)
    }

    fn forward(&mut self, batch: &[Chunk<'_>], rows: &mut Rows) -> Result<(), EngineError> {
        let due = self.pace.due(self.due, self.born.elapsed(), self.pace.pass(batch));
        self.engine.forward(batch, rows)?;
        loop {
            let left = due.saturating_sub(self.born.elapsed());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(SIGN_OF_LIFE));
            self.progress.fetch_add(1, Ordering::Relaxed);
        }
        self.due = Some(due);
        Ok(())
    }
}

/// The built-in tokenizer under the pair's name.
struct SyntheticText {
    tokenizer: Arc<Tokenizer>,
    fingerprint: String,
}

impl Text for SyntheticText {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn vocabulary(&self) -> usize {
        self.tokenizer.vocabulary()
    }

    fn eos_ids(&self) -> &[TokenId] {
        self.tokenizer.eos_ids()
    }

    fn resolve(&self, prompt: &Prompt, room: Room, wanted: &dyn Fn() -> bool) -> Result<Vec<TokenId>, PromptRefusal> {
        Text::resolve(&*self.tokenizer, prompt, room, wanted)
    }

    fn begin(self: Arc<Self>, prompt: &[TokenId], stop: StopSettings) -> Box<dyn Commit> {
        Text::begin(self.tokenizer.clone(), prompt, stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_holds_for_both_nodes_or_for_one() {
        let typed: Synthetic =
            "acceptance=0.5,step=5ms,token=20us,drafter.step=1ms,length=none,expert.sessions=9".parse().unwrap();
        assert_eq!((typed.acceptance, typed.length), (0.5, None));
        assert_eq!(typed.drafter.pace.step, Duration::from_millis(1));
        assert_eq!(typed.expert.pace.step, Duration::from_millis(5));
        assert_eq!(typed.expert.pace.token, Duration::from_micros(20));
        assert_eq!((typed.drafter.sessions, typed.expert.sessions), (None, Some(9)));
        assert_eq!("".parse(), Ok(Synthetic::default()));
    }

    #[test]
    fn a_wrong_key_or_value_is_named_and_the_right_ones_are_listed() {
        for (typed, says) in [
            ("accept=0.5", "\"accept\" is no key; keys are of the pair: acceptance"),
            ("expert.acceptance=1", "\"expert.acceptance\" is no key"),
            ("step", "\"step\" is not KEY=VALUE"),
            ("step=5", "step: \"5\" is no duration; write it like 20us"),
            ("acceptance=2", "acceptance: 2 is no probability"),
            ("vocabulary=9", "vocabulary: 9 is too small"),
            ("length=0", "length: a text"),
            ("prefill=0", "prefill: 0 is out of bounds; give 0.001 to"),
            ("prefill=1e-300", "prefill: 1e-300 is out of bounds; give 0.001 to"),
            ("step=1e18s", "step: \"1e18s\" is too long"),
            ("vocabulary=100000000000", "vocabulary: 100000000000 is too large; give at most 262144"),
            ("pages=0", "pages: 0 is out of bounds; give 1 to 1048576"),
            ("expert.pages=99999999999999", "expert.pages: 99999999999999 is out of bounds; give 1 to 1048576"),
            ("context=16777217", "context: 16777217 is out of bounds; give 1 to 16777216"),
            ("sessions=-1", "sessions: \"-1\""),
        ] {
            let error = typed.parse::<Synthetic>().expect_err(typed);
            assert!(error.starts_with(says), "{typed}: {error}");
        }
    }

    #[test]
    fn only_equal_parameters_make_a_pair() {
        let text = |typed: &str, role| {
            let synthetic: Synthetic = typed.parse().unwrap();
            synthetic.parts(role, 4).text.fingerprint().to_owned()
        };
        assert_eq!(text("acceptance=0.5,step=1ms", Role::Drafter), text("acceptance=0.5,step=9ms", Role::Expert));
        assert_ne!(text("acceptance=0.5", Role::Drafter), text("acceptance=0.6", Role::Expert));
        assert_ne!(text("", Role::Drafter), cascadia_text::toy::byte_level().fingerprint());
    }
}
