//! What the services of one expert node share.

use std::sync::Arc;

use cascadia_core::commit::Text;
use cascadia_core::engine::ModelFacts;
use cascadia_node::evacuation::Evacuation;
use cascadia_node::sessions::EngineHandle;
use cascadia_node::status::StatusBoard;
use cascadia_node::telemetry::Tracer;
use cascadia_proto::v1;
use tonic::Status;

use crate::config::ExpertConfig;
use crate::engine::ExpertWork;
use crate::metrics::Metrics;

/// One expert node, as its services see it.
pub struct ExpertNode {
    /// What the operator set.
    pub config: Arc<ExpertConfig>,
    /// The model.
    pub facts: ModelFacts,
    /// Its tokenizer and chat template.
    pub text: Arc<dyn Text>,
    /// The names it is served under.
    pub models: Vec<String>,
    /// The way to the engine.
    pub engine: EngineHandle<ExpertWork>,
    /// When sessions are to go.
    pub evacuation: Evacuation,
    /// Where open sessions are counted.
    pub board: StatusBoard,
    /// What is counted.
    pub metrics: Metrics,
    /// What it records its spans with.
    pub tracer: Tracer,
}

impl std::fmt::Debug for ExpertNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExpertNode of {}", self.models.join(", "))
    }
}

impl ExpertNode {
    /// Refuses a model this node does not serve.
    pub(crate) fn serves(&self, model: &str) -> Result<(), Status> {
        if self.models.iter().any(|name| name == model) {
            return Ok(());
        }
        Err(Status::not_found(format!(
            "model `{model}` is not served here; this expert serves {}",
            self.models.join(", ")
        )))
    }

    /// Refuses what cannot be paired with this node, before any work.
    pub(crate) fn accepts(&self, open: &v1::VerifyOpen) -> Result<(), Status> {
        self.serves(&open.model)?;
        if open.tokenizer_fingerprint != self.text.fingerprint() {
            return Err(Status::failed_precondition(format!(
                "the drafter's tokenizer {} is not the expert's {}; a pair needs one tokenizer",
                open.tokenizer_fingerprint,
                self.text.fingerprint()
            )));
        }
        self.matches(&open.pinned_fingerprint)
    }

    /// Refuses a session that another model began; an empty fingerprint is of a session that is new.
    pub(crate) fn matches(&self, pinned: &str) -> Result<(), Status> {
        if pinned.is_empty() || pinned == self.facts.fingerprint {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "the session is pinned to the expert model {pinned}, this node runs {}",
            self.facts.fingerprint
        )))
    }

    /// The answer to an opening, and to lost pages: how many tokens need no prefill, and what the session may count on.
    pub(crate) fn held(&self, protocol: u32, n: usize) -> v1::Held {
        v1::Held {
            protocol,
            n: n as u64,
            slots: self.config.slots,
            fingerprint: self.facts.fingerprint.clone(),
            row_exact: self.facts.row_exact,
            context: self.facts.context as u64,
            cluster: self.board.cluster().to_string(),
        }
    }

    /// What a session that decodes here is pinned to.
    pub(crate) fn fingerprints(&self) -> v1::Fingerprints {
        v1::Fingerprints {
            drafter: String::new(),
            expert: self.facts.fingerprint.clone(),
            tokenizer: self.text.fingerprint().to_owned(),
            row_exact: self.facts.row_exact,
        }
    }
}
