//! What the services of one expert node share.

use std::sync::Arc;

use cascadia_core::commit::Text;
use cascadia_core::engine::ModelFacts;
use cascadia_core::placement::{NodeState, Role};
use cascadia_node::lifecycle::Shutdown;
use cascadia_node::membership::Membership;
use cascadia_node::sessions::EngineHandle;
use cascadia_proto::v1;
use tonic::Status;

use crate::config::ExpertConfig;
use crate::engine::ExpertWork;

/// One expert node, as its services see it.
pub struct ExpertNode {
    /// What the operator set.
    pub config: ExpertConfig,
    /// The model.
    pub facts: ModelFacts,
    /// Its tokenizer and chat template.
    pub text: Arc<dyn Text>,
    /// The names it is served under.
    pub models: Vec<String>,
    /// The way to the engine.
    pub engine: EngineHandle<ExpertWork>,
    /// Who else is there.
    pub membership: Membership,
    /// This node's own name in membership.
    pub id: cascadia_core::ids::NodeId,
    /// When to go.
    pub shutdown: Shutdown,
}

impl std::fmt::Debug for ExpertNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExpertNode {}", self.id)
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
    pub(crate) fn admits(&self, open: &v1::VerifyOpen) -> Result<(), Status> {
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

    /// The answer to an opening, and to lost pages.
    pub(crate) fn held(&self, protocol: u32, n: usize) -> v1::Held {
        v1::Held {
            protocol,
            n: n as u64,
            slots: self.config.slots,
            fingerprint: self.facts.fingerprint.clone(),
            row_exact: self.facts.row_exact,
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

    /// Returns when the node drains and another expert can take its sessions.
    pub(crate) async fn leaving(&self) {
        self.shutdown.draining().await;
        let mut snapshots = self.membership.snapshots();
        loop {
            let another = snapshots.borrow_and_update().nodes.values().any(|node| {
                node.id != self.id
                    && node.role == Role::Expert
                    && node.state == NodeState::Ready
                    && node.models.iter().any(|model| model.fingerprint == self.facts.fingerprint)
            });
            if another {
                return;
            }
            if snapshots.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
