//! What an operator sets of any engine, a drafter's or an expert's.

use std::path::PathBuf;
use std::time::Duration;

use cascadia_core::kv_memory::{DEFAULT_SHARE, KvMemory};
use cascadia_core::limits;
use cascadia_core::stepper::StepperConfig;

use crate::config::{Reloads, defaults_of};

/// Beyond what any machine serves, and within what queues can count.
const MOST_SESSIONS: usize = 1 << 20;
/// Beyond any machine; a system asked for more is busy with nothing else.
const MOST_THREADS: usize = 1024;

/// A node's model, its memory and its bounds; a part of the node's own settings.
#[derive(Clone, Debug, clap::Args)]
pub struct EngineConfig {
    /// The model: a folder with config.json, *.safetensors and tokenizer.json, a GGUF file, or a model of the Hugging Face
    /// hub (owner/name, owner/name@revision, owner/name:file.gguf)
    #[arg(long, env = "CASCADIA_MODEL")]
    pub model: PathBuf,
    /// What computes: cpu, or an NVIDIA card as cuda or cuda:N, by a binary that was built with the feature cuda
    #[arg(long, env = "CASCADIA_DEVICE", default_value = "cpu")]
    pub device: String,
    /// Weights in memory: q8_0, q4_k or f32, unless they are quantised already; on a card bf16, f16 or f32, quantised ones
    /// widened. auto takes q8_0, and bf16 on a card
    #[arg(long, env = "CASCADIA_DTYPE", default_value = "auto")]
    pub dtype: String,
    /// Most positions a session may have; 0 takes what the model was made for
    #[arg(long, env = "CASCADIA_CONTEXT", default_value_t = 0)]
    pub context: usize,
    /// Threads of a forward pass; 0 lets the model's size decide
    #[arg(long, env = "CASCADIA_THREADS", default_value_t = 0)]
    pub threads: usize,
    /// Memory for keys and values: an amount (8GiB, 512MiB, 2GB) or a part of what is free once the weights are loaded
    #[arg(long, env = "CASCADIA_KV_MEMORY", default_value = DEFAULT_SHARE)]
    pub kv_memory: KvMemory,
    /// KV pages of 16 tokens, whatever memory they take; 0 lets kv_memory decide
    #[arg(long, env = "CASCADIA_KV_PAGES", default_value_t = 0)]
    pub kv_pages: usize,
    /// What keys and values are held in: f32, or f16 in half the memory, which is another model to routers; on a card also
    /// bf16. auto takes f32, and on a card the weights' type
    #[arg(long, env = "CASCADIA_KV_DTYPE", default_value = "auto")]
    pub kv_dtype: String,
    /// How a card's queries meet keys and values: plain, or paged, an own kernel, compared with plain at the start
    #[arg(long, env = "CASCADIA_ATTENTION", default_value = "plain")]
    pub attention: String,
    /// Tokens of one batch at most
    #[arg(long, env = "CASCADIA_BATCH_TOKENS", default_value_t = limits::BATCH_TOKENS)]
    pub batch_tokens: usize,
    /// Sessions open at once at most
    #[arg(long, env = "CASCADIA_MAX_SESSIONS", default_value_t = limits::MAX_SESSIONS)]
    pub max_sessions: usize,
    /// Seconds that open sessions have to finish when the node is told to stop
    #[arg(long, env = "CASCADIA_GRACE", add = Reloads, default_value_t = 615)]
    pub grace_seconds: u64,
}

impl Default for EngineConfig {
    /// All defaults, and no model.
    fn default() -> Self {
        Self { model: PathBuf::new(), ..defaults_of(&["--model=none"]) }
    }
}

impl EngineConfig {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// One sentence naming the setting and the cure.
    pub fn check(&self) -> Result<(), String> {
        for (name, value, least, most) in [
            ("batch_tokens", self.batch_tokens, 1, usize::MAX),
            ("max_sessions", self.max_sessions, 1, MOST_SESSIONS),
            ("threads", self.threads, 0, MOST_THREADS),
        ] {
            if !(least..=most).contains(&value) {
                return Err(format!("{name} is {value}; choose {least} to {most}"));
            }
        }
        Ok(())
    }

    /// The bounds of its engine's loop.
    #[must_use]
    pub fn stepper(&self) -> StepperConfig {
        StepperConfig { batch_tokens: self.batch_tokens, max_sessions: self.max_sessions, ..StepperConfig::default() }
    }

    /// How long open sessions have to finish.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_named() {
        assert_eq!(EngineConfig::default().check(), Ok(()));
        let of = |change: fn(&mut EngineConfig)| {
            let mut config = EngineConfig::default();
            change(&mut config);
            config.check().expect_err("it cannot be meant")
        };
        assert!(of(|c| c.batch_tokens = 0).contains("batch_tokens is 0; choose 1 to"));
        assert!(of(|c| c.max_sessions = 0).contains("max_sessions is 0"));
        assert!(
            of(|c| c.max_sessions = usize::MAX).contains("max_sessions is 18446744073709551615; choose 1 to 1048576")
        );
        assert!(of(|c| c.threads = 1_000_000_000).contains("threads is 1000000000; choose 0 to 1024"));
    }
}
