//! What the operator sets: each field a flag, a `CASCADIA_*` variable, a key of the configuration file, and its help.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use cascadia_core::kv_memory::KvMemory;
use cascadia_core::limits;
use cascadia_node::config::Reloads;
use cascadia_proto::parameters::{self, Allowed, Defaults, STRATEGIES};
use cascadia_proto::v1::Parameters;

use crate::admission::Room;
use crate::ids::IdSource;

/// A router's configuration.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Router")]
pub struct RouterConfig {
    /// Sessions admitted at once; more are refused with a retry delay.
    #[arg(long, env = "CASCADIA_MAX_SESSIONS", add = Reloads, default_value_t = limits::MAX_ADMITTED)]
    pub max_sessions: usize,

    /// Memory for the prompts of admitted sessions, for example 256MiB; a prompt counts once however many answers it gets,
    /// its token ids once for each. More are refused with a retry delay.
    #[arg(long, env = "CASCADIA_PROMPT_MEMORY", add = Reloads, default_value_t = Memory::mib(limits::PROMPT_MEMORY_MIB))]
    pub prompt_memory: Memory,

    /// Memory for requests while they are sent, over HTTP and gRPC together; a quarter of it is for the small ones (64
    /// KiB). More are refused with a retry delay.
    #[arg(long, env = "CASCADIA_READING_MEMORY", add = Reloads, default_value_t = Memory::mib(limits::READING_MEMORY_MIB))]
    pub reading_memory: Memory,

    /// Time of a request that names none, milliseconds.
    #[arg(long, env = "CASCADIA_DEFAULT_TIMEOUT_MS", add = Reloads, default_value_t = millis(limits::DEFAULT_DEADLINE))]
    pub default_timeout_ms: u64,

    /// The most time a request may take, milliseconds; a longer one gets this.
    #[arg(long, env = "CASCADIA_MAX_TIMEOUT_MS", add = Reloads, default_value_t = millis(limits::DEFAULT_DEADLINE))]
    pub max_timeout_ms: u64,

    /// After SIGTERM, how long new requests are still accepted while load balancers learn that this router is not
    /// ready, milliseconds.
    #[arg(long, env = "CASCADIA_LAME_DUCK_MS", add = Reloads, default_value_t = 5_000)]
    pub lame_duck_ms: u64,

    /// Strategies that requests may choose.
    #[arg(long, env = "CASCADIA_STRATEGIES", add = Reloads, value_delimiter = ',', default_values_t = STRATEGIES.map(String::from))]
    pub strategies: Vec<String>,

    /// Intervals within which requests may choose a parameter: NAME=LEAST..MOST, an end may be left open; for example
    /// temperature=0..1.5, draft_length=..16, token_v3.alpha=0..0.5; alpha alone is of all rules.
    #[arg(long, env = "CASCADIA_ALLOW", add = Reloads, value_delimiter = ',', value_name = "NAME=LEAST..MOST")]
    pub allow: Vec<Allowed>,

    /// Strategy of a request that names none.
    #[arg(long, env = "CASCADIA_DEFAULT_STRATEGY", add = Reloads, default_value_t = Defaults::default().strategy)]
    pub default_strategy: String,

    /// Deferral rule of `speculative_cascade` where a request names none.
    #[arg(long, env = "CASCADIA_DEFAULT_RULE", add = Reloads, default_value_t = Defaults::default().rule)]
    pub default_rule: String,

    /// That rule's alpha where a request gives none; the rule's own default if this is not set.
    #[arg(long, env = "CASCADIA_DEFAULT_ALPHA", add = Reloads)]
    pub default_alpha: Option<f64>,

    /// Temperature where a request gives none.
    #[arg(long, env = "CASCADIA_DEFAULT_TEMPERATURE", add = Reloads, default_value_t = Defaults::default().temperature)]
    pub default_temperature: f64,

    /// Draft length where a request gives none.
    #[arg(long, env = "CASCADIA_DEFAULT_DRAFT_LENGTH", add = Reloads, default_value_t = Defaults::default().draft_length)]
    pub default_draft_length: u32,

    /// Output tokens at most where a request does not say.
    #[arg(long, env = "CASCADIA_DEFAULT_MAX_TOKENS", add = Reloads, default_value_t = Defaults::default().max_tokens)]
    pub default_max_tokens: u32,

    /// The most output tokens a request may ask for.
    #[arg(long, env = "CASCADIA_MOST_TOKENS", add = Reloads, default_value_t = Defaults::default().most_tokens)]
    pub most_tokens: u32,

    /// Tenants that have metrics of their own, the first that come; the others are counted together. One that has asked
    /// nothing for ten minutes gives way.
    #[arg(long, env = "CASCADIA_METRICS_TENANTS", default_value_t = limits::METRICS_TENANTS)]
    pub metrics_tenants: usize,

    /// Where session ids and the router's own chance come from; a simulation gives a seed.
    #[arg(skip)]
    pub ids: IdSource,
}

impl Default for RouterConfig {
    fn default() -> Self {
        cascadia_node::config::defaults_of(&[])
    }
}

impl RouterConfig {
    /// What requests leave open, and what they may ask.
    #[must_use]
    pub fn defaults(&self) -> Defaults {
        Defaults {
            strategy: self.default_strategy.clone(),
            rule: self.default_rule.clone(),
            alpha: self.default_alpha,
            temperature: self.default_temperature,
            max_tokens: self.default_max_tokens,
            most_tokens: self.most_tokens,
            draft_length: self.default_draft_length,
            strategies: self.strategies.clone(),
            allowed: self.allow.clone(),
        }
    }

    /// What all admitted sessions together may take.
    #[must_use]
    pub fn room(&self) -> Room {
        Room { sessions: self.max_sessions, bytes: self.prompt_memory.bytes() }
    }

    /// Time of a request that names none.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.default_timeout_ms)
    }

    /// The most time a request may take.
    #[must_use]
    pub fn max_timeout(&self) -> Duration {
        Duration::from_millis(self.max_timeout_ms)
    }

    /// How long a draining router still accepts.
    #[must_use]
    pub fn lame_duck(&self) -> Duration {
        Duration::from_millis(self.lame_duck_ms)
    }

    /// For how long after its last response a client may still use an idle connection of a draining router. One setting
    /// bounds what others may do on old knowledge: balancers send here, clients use connections they kept.
    #[must_use]
    pub fn linger(&self) -> Duration {
        self.lame_duck() + MARGIN
    }

    /// How long a draining router lives at most: what it accepted last has its time, and then a little to be read, or its
    /// connection the time to be forgotten.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.lame_duck() + self.max_timeout() + READING.max(self.linger())
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// One sentence with the cure.
    pub fn check(&self) -> Result<(), String> {
        if self.max_sessions == 0 {
            return Err("max-sessions is 0: nothing would be admitted; set at least 1".to_owned());
        }
        for (name, memory) in [("prompt-memory", self.prompt_memory), ("reading-memory", self.reading_memory)] {
            if memory < LEAST_MEMORY {
                return Err(format!("{name} is {memory}: set at least {LEAST_MEMORY}, which one request may take"));
            }
        }
        if self.default_timeout_ms == 0 || self.default_timeout_ms > self.max_timeout_ms {
            let (default, max) = (self.default_timeout_ms, self.max_timeout_ms);
            return Err(format!(
                "default-timeout-ms is {default}: set it to at least 1 and at most max-timeout-ms ({max})"
            ));
        }
        if self.max_timeout() > limits::LONGEST_REQUEST {
            let most = millis(limits::LONGEST_REQUEST);
            return Err(format!("max-timeout-ms is too large: set at most {most} (30 days)"));
        }
        if self.lame_duck() > LONGEST_LAME_DUCK {
            return Err(format!("lame-duck-ms is too large: set at most {} (one hour)", millis(LONGEST_LAME_DUCK)));
        }
        if let Some(unknown) = self.strategies.iter().find(|strategy| !STRATEGIES.contains(&strategy.as_str())) {
            return Err(format!("strategy {unknown:?} is unknown: allow some of {}", STRATEGIES.join(", ")));
        }
        let check = |asked: Parameters| parameters::resolve(&asked, &self.defaults()).map_err(|e| e.to_string());
        check(Parameters::default())?;
        if self.strategies.iter().any(|strategy| strategy == "speculative_cascade") {
            check(Parameters { strategy: "speculative_cascade".into(), ..Parameters::default() })?;
        }
        Ok(())
    }
}

/// An amount of memory, as operators write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(u64);

impl Memory {
    /// So many MiB.
    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(KvMemory::Bytes(bytes)) => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is no amount of memory; write it like 256MiB or 1GB")),
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1 << 20) { write!(f, "{}MiB", self.0 >> 20) } else { write!(f, "{}", self.0) }
    }
}

/// A request of the greatest size, of the shortest ids, takes less: its bytes, and four for each.
const LEAST_MEMORY: Memory = Memory::mib(32);

/// What a client has, after its session's time, to read the end.
pub const READING: Duration = Duration::from_secs(15);

/// For a request that was sent at the last moment to arrive.
const MARGIN: Duration = Duration::from_secs(1);

/// No balancer learns so slowly, and no client keeps an idle connection for so long.
const LONGEST_LAME_DUCK: Duration = Duration::from_secs(3600);

const fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command, FromArgMatches as _};

    use super::*;

    fn parse(arguments: &[&str]) -> RouterConfig {
        let command = RouterConfig::augment_args(Command::new("router"));
        RouterConfig::from_arg_matches(&command.get_matches_from(arguments)).unwrap()
    }

    #[test]
    fn flags_and_defaults_agree() {
        let (typed, default) = (parse(&["router"]), RouterConfig::default());
        assert_eq!(typed.defaults(), default.defaults());
        assert_eq!(typed.defaults(), Defaults::default());
        assert_eq!((typed.max_sessions, typed.grace()), (default.max_sessions, default.grace()));
        assert_eq!(default.check(), Ok(()));
    }

    #[test]
    fn what_is_typed_is_meant() {
        let typed = parse(&["router", "--strategies", "expert,speculative", "--default-alpha", "0.5"]);
        assert_eq!(typed.defaults().strategies, ["expert", "speculative"]);
        assert_eq!(typed.defaults().alpha, Some(0.5));
    }

    #[test]
    fn memory_is_written_as_it_is_read() {
        for (text, bytes) in
            [("256MiB", 256 << 20), ("1GB", 1_000_000_000), ("0.5 GiB", 1 << 29), ("33554433", 33_554_433)]
        {
            let memory: Memory = text.parse().unwrap();
            assert_eq!((memory.bytes(), memory.to_string().parse()), (bytes, Ok(memory)), "{text}");
        }
        for text in ["", "40%", "much", "-1MiB"] {
            assert!(text.parse::<Memory>().unwrap_err().contains("256MiB"), "{text}");
        }
    }

    #[test]
    fn a_draining_router_lives_until_its_last_connection_is_forgotten() {
        let grace = |lame_duck_ms| RouterConfig { lame_duck_ms, ..RouterConfig::default() }.grace().as_secs();
        // The longest request has 600 s.
        assert_eq!((grace(5_000), grace(14_000)), (5 + 600 + 15, 14 + 600 + 15));
        assert_eq!((grace(15_000), grace(90_000)), (15 + 600 + 16, 90 + 600 + 91));
    }

    #[test]
    fn nonsense_is_refused_with_its_cure() {
        let default = RouterConfig::default;
        for (config, says) in [
            (RouterConfig { max_sessions: 0, ..default() }, "max-sessions"),
            (RouterConfig { default_timeout_ms: 0, ..default() }, "default-timeout-ms"),
            (RouterConfig { max_timeout_ms: u64::MAX, ..default() }, "max-timeout-ms"),
            (RouterConfig { prompt_memory: Memory(5), ..default() }, "prompt-memory is 5: set at least 32MiB"),
            (RouterConfig { reading_memory: Memory::mib(31), ..default() }, "reading-memory is 31MiB"),
            (RouterConfig { lame_duck_ms: 3_600_001, ..default() }, "lame-duck-ms"),
            (RouterConfig { strategies: vec!["fast".into()], ..default() }, "\"fast\""),
            (RouterConfig { default_rule: "best".into(), ..default() }, "best"),
            (RouterConfig { default_temperature: f64::NAN, ..default() }, "temperature"),
            (RouterConfig { allow: vec!["temperature=0..0.5".parse().unwrap()], ..default() }, "its default"),
            (RouterConfig { allow: vec!["token_v3.alpha=0.5..".parse().unwrap()], ..default() }, "alpha of token_v3"),
        ] {
            let error = config.check().unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
