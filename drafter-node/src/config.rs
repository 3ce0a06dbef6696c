//! What an operator sets of a drafter node.

use cascadia_node::config::Reloads;
use cascadia_node::engine_config::EngineConfig;

/// A drafter node. Each field is a flag, a `CASCADIA_*` variable and a key of the configuration file.
#[derive(Clone, Debug, clap::Args)]
pub struct DrafterConfig {
    /// Its model, its memory and its bounds
    #[command(flatten)]
    pub engine: EngineConfig,
    /// Served models it drafts for; all of its tokenizer by default
    #[arg(long, env = "CASCADIA_SERVED_MODEL", value_delimiter = ',')]
    pub served_model: Vec<String>,
    /// Blocks a session keeps in flight, up to what the expert grants; 0 drafts ahead while blocks are accepted whole
    #[arg(long, env = "CASCADIA_PIPELINE_DEPTH", add = Reloads, default_value_t = 0)]
    pub pipeline_depth: usize,
}

impl Default for DrafterConfig {
    /// All defaults, and no model.
    fn default() -> Self {
        Self { engine: EngineConfig::default(), ..cascadia_node::config::defaults_of(&["--model=none"]) }
    }
}

impl DrafterConfig {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// One sentence naming the setting and the cure.
    pub fn check(&self) -> Result<(), String> {
        self.engine.check()
    }
}
