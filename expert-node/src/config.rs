//! What an operator sets of an expert node.

use std::path::PathBuf;
use std::time::Duration;

use cascadia_core::kv_memory::{DEFAULT_SHARE, KvMemory};
use cascadia_core::limits;
use cascadia_node::config::Reloads;

/// An expert node. Each field is a flag, a `CASCADIA_*` variable and a key of the configuration file.
#[derive(Clone, Debug, clap::Args)]
pub struct ExpertConfig {
    /// The model: a folder with config.json, *.safetensors and tokenizer.json, a GGUF file, or a model of the Hugging Face
    /// hub (owner/name, owner/name@revision, owner/name:file.gguf)
    #[arg(long, env = "CASCADIA_MODEL")]
    pub model: PathBuf,
    /// Names under which the model is served; the folder's name by default
    #[arg(long, env = "CASCADIA_SERVED_MODEL", value_delimiter = ',')]
    pub served_model: Vec<String>,
    /// Weights in memory, unless they are quantised already: q8_0, q4_k or f32
    #[arg(long, env = "CASCADIA_DTYPE", default_value = "q8_0")]
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
    /// What keys and values are held in: f32, or f16 in half the memory, which is another model to routers
    #[arg(long, env = "CASCADIA_KV_DTYPE", default_value = "f32")]
    pub kv_dtype: String,
    /// Unanswered blocks granted to a session
    #[arg(long, env = "CASCADIA_SLOTS", default_value_t = limits::DEFAULT_SLOTS)]
    pub slots: u32,
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

impl Default for ExpertConfig {
    /// All defaults, and no model.
    fn default() -> Self {
        Self { model: PathBuf::new(), ..cascadia_node::config::of_flags(&["--model=none"]) }
    }
}

impl ExpertConfig {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// One sentence naming the setting and the cure.
    pub fn check(&self) -> Result<(), String> {
        // All granted blocks of a session may be one chunk, each with as many scored tokens as drafts.
        let least = self.slots as usize * 2 * limits::MAX_DRAFT_LENGTH;
        if self.slots == 0 {
            return Err("slots is 0: a session needs at least one; the default is 2".into());
        }
        if self.batch_tokens < least {
            return Err(format!(
                "batch_tokens is {} and {} slots need {least}: raise --batch-tokens or lower --slots",
                self.batch_tokens, self.slots
            ));
        }
        Ok(())
    }

    /// How long open sessions have to finish.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }
}
