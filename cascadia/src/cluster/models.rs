//! Where the nodes of a cluster in one process have their models from.

use std::sync::Arc;

use cascadia_core::placement::Role;
use cascadia_drafter_node::DrafterConfig;
use cascadia_expert_node::ExpertConfig;
use cascadia_node::loaded_model::LoadedModel;

use crate::load::Pair;
use crate::synthetic::Synthetic;
use crate::terminal::Failure;

/// Makes the parts of one node.
pub type Make = Arc<dyn Fn() -> Result<LoadedModel, Failure> + Send + Sync>;

/// Makes the parts of one more node of either kind. Engines share weights, not KV pages.
#[derive(Clone)]
pub struct Models {
    /// A drafter's engine and tokenizer.
    pub drafter: Make,
    /// An expert's.
    pub expert: Make,
}

impl Models {
    /// A loaded pair, for a cluster that begins with `engines` of its engines.
    #[must_use]
    pub fn of_pair(pair: &Pair, drafter: &DrafterConfig, expert: &ExpertConfig, engines: usize) -> Self {
        let (d, e) = (pair.drafter.clone(), pair.expert.clone());
        let (drafter, expert) = (drafter.engine.clone(), expert.engine.clone());
        Self {
            drafter: Arc::new(move || d.parts(&drafter, engines)),
            expert: Arc::new(move || e.parts(&expert, engines)),
        }
    }

    /// A pair without weights.
    #[must_use]
    pub fn synthetic(pair: &Synthetic, drafter: &DrafterConfig, expert: &ExpertConfig) -> Self {
        let (d, e) = (pair.clone(), pair.clone());
        let (drafter, expert) = (drafter.engine.kv_pages, expert.engine.kv_pages);
        Self {
            drafter: Arc::new(move || Ok(d.parts(Role::Drafter, drafter))),
            expert: Arc::new(move || Ok(e.parts(Role::Expert, expert))),
        }
    }
}
