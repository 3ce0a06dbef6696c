//! What an operator sets of an expert node.

use cascadia_core::limits;
use cascadia_node::engine_config::EngineConfig;

/// An expert node. Each field is a flag, a `CASCADIA_*` variable and a key of the configuration file.
#[derive(Clone, Debug, clap::Args)]
pub struct ExpertConfig {
    /// Its model, its memory and its bounds
    #[command(flatten)]
    pub engine: EngineConfig,
    /// Names under which the model is served; the folder's name by default
    #[arg(long, env = "CASCADIA_SERVED_MODEL", value_delimiter = ',')]
    pub served_model: Vec<String>,
    /// Unanswered blocks granted to a session
    #[arg(long, env = "CASCADIA_SLOTS", default_value_t = limits::DEFAULT_SLOTS)]
    pub slots: u32,
}

impl Default for ExpertConfig {
    /// All defaults, and no model.
    fn default() -> Self {
        Self { engine: EngineConfig::default(), ..cascadia_node::config::defaults_of(&["--model=none"]) }
    }
}

impl ExpertConfig {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// One sentence naming the setting and the cure.
    pub fn check(&self) -> Result<(), String> {
        self.engine.check()?;
        // All granted blocks of a session may be one chunk, each with as many scored tokens as drafts.
        let least = self.slots as usize * 2 * limits::MAX_DRAFT_LENGTH;
        if self.slots == 0 {
            return Err("slots is 0: a session needs at least one; the default is 2".into());
        }
        if self.engine.batch_tokens < least {
            return Err(format!(
                "batch_tokens is {} and {} slots need {least}: raise --batch-tokens or lower --slots",
                self.engine.batch_tokens, self.slots
            ));
        }
        Ok(())
    }
}
