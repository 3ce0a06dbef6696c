//! What the sessions of one drafter node share.

use std::collections::BTreeSet;
use std::sync::Arc;

use cascadia_core::commit::Text;
use cascadia_core::engine::ModelFacts;
use cascadia_core::ids::{NodeId, SessionId};
use cascadia_core::placement::{self, Role, ServedModel, Wish};
use cascadia_node::config::Reloadable;
use cascadia_node::evacuation::Evacuation;
use cascadia_node::loads::LoadWatch;
use cascadia_node::net::Connector;
use cascadia_node::sessions::EngineHandle;
use cascadia_node::status::StatusBoard;
use cascadia_node::telemetry::Tracer;
use cascadia_proto::v1;

use crate::config::DrafterConfig;
use crate::engine::DrafterWork;
use crate::expert_link::Expert;
use crate::metrics::Metrics;

/// One drafter node, as its sessions see it.
pub struct DrafterNode {
    /// What the operator set; each session keeps what was in force when it came.
    pub config: Reloadable<DrafterConfig>,
    /// The model.
    pub facts: ModelFacts,
    /// Its tokenizer and chat template.
    pub text: Arc<dyn Text>,
    /// The way to the engine.
    pub engine: EngineHandle<DrafterWork>,
    /// The experts and how busy they are.
    pub experts: LoadWatch,
    /// The way to them.
    pub connector: Connector,
    /// When sessions are to go.
    pub evacuation: Evacuation,
    /// Where open sessions are counted.
    pub board: StatusBoard,
    /// What is counted.
    pub metrics: Metrics,
    /// What it records its spans with.
    pub tracer: Tracer,
}

impl std::fmt::Debug for DrafterNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DrafterNode of {}", self.facts.fingerprint)
    }
}

/// What an expert must be to take a session.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The session.
    pub session: SessionId,
    /// The served name.
    pub model: &'a str,
    /// The fingerprint the session is pinned to; empty for any.
    pub pinned: &'a str,
    /// Tokens the session brings.
    pub tokens: usize,
    /// Experts that just failed it.
    pub exclude: BTreeSet<NodeId>,
}

impl DrafterNode {
    /// Picks an expert by the router's own function; `None` while there is none.
    pub(crate) fn pick(&self, wanted: &Wanted<'_>) -> Option<Expert> {
        let wish = Wish {
            model: wanted.model,
            chance: wanted.session.0 as u64,
            session_tokens: wanted.tokens as u64,
            expert_fingerprint: (!wanted.pinned.is_empty()).then_some(wanted.pinned),
            exclude: wanted.exclude.clone(),
            ..Wish::default()
        };
        let mut snapshot = self.experts.snapshot();
        let mut node = placement::pick_expert(&snapshot, &self.experts.loads(), &wish).ok()?;
        while !self.experts.place(&[&node.id], wanted.tokens as u64) {
            snapshot = self.experts.snapshot();
            node = placement::pick_expert(&snapshot, &self.experts.loads(), &wish).ok()?;
        }
        let served = node.models.iter().find(|served| served.name == wanted.model)?;
        Some(Expert { id: node.id.clone(), address: node.address.clone(), fingerprint: served.fingerprint.clone() })
    }

    /// Whether there is any such expert, be it full, away or draining.
    pub(crate) fn knows(&self, wanted: &Wanted<'_>) -> bool {
        let serves = |served: &ServedModel| {
            served.name == wanted.model && (wanted.pinned.is_empty() || served.fingerprint == wanted.pinned)
        };
        let snapshot = self.experts.snapshot();
        let mut nodes = snapshot.nodes.values().filter(|node| !wanted.exclude.contains(&node.id));
        nodes.any(|node| node.role == Role::Expert && node.models.iter().any(serves))
    }

    /// The expert of this name that serves the model, where membership says it does: the address of whom a session calls
    /// is never taken from a message.
    pub(crate) fn expert(&self, id: &NodeId, model: &str, pinned: &str) -> Option<Expert> {
        let snapshot = self.experts.snapshot();
        let node = snapshot.nodes.get(id).filter(|node| node.role == Role::Expert)?;
        let mut served = node.models.iter().filter(|served| served.name == model);
        let served = served.find(|served| pinned.is_empty() || served.fingerprint == pinned)?;
        Some(Expert { id: node.id.clone(), address: node.address.clone(), fingerprint: served.fingerprint.clone() })
    }

    /// What a session here is pinned to.
    pub(crate) fn fingerprints(&self, expert: &str, row_exact: bool) -> v1::Fingerprints {
        v1::Fingerprints {
            drafter: self.facts.fingerprint.clone(),
            expert: expert.to_owned(),
            tokenizer: self.text.fingerprint().to_owned(),
            row_exact,
        }
    }
}
