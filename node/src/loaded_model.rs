//! A loaded model: what an engine node is built from.

use std::sync::Arc;

use cascadia_core::commit::Text;
use cascadia_core::engine::{Chunk, Engine, EngineError, ModelFacts, Rows};
use cascadia_core::ids::PageId;
use cascadia_core::limits;
use cascadia_core::placement::ServedModel;

/// A loaded model.
pub struct LoadedModel {
    /// Answers forward passes.
    pub engine: Box<dyn Engine>,
    /// Its tokenizer and chat template.
    pub text: Arc<dyn Text>,
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parts of the model {}", self.engine.facts().fingerprint)
    }
}

impl LoadedModel {
    /// One pass over one token: the first pass of a process touches memory that later ones find warm.
    ///
    /// # Errors
    /// When the engine fails, or what it computes is no number: each weight may be one and their products not.
    pub fn warm_up(&mut self) -> Result<(), EngineError> {
        let mut rows = Rows::default();
        self.engine.forward(&[Chunk { start: 0, tokens: &[0], pages: &[PageId(0)], rows: 1 }], &mut rows)?;
        if rows.data.iter().all(|logit| logit.is_finite()) {
            return Ok(());
        }
        let problem = "its first logits are not finite: the checkpoint is damaged, or its weights are too large";
        Err(EngineError::Pass(problem.into()))
    }

    /// What sessions are offered: the model's facts, bounded by its pages and its tokenizer.
    ///
    /// Padded rows of the head name no token; models of one tokenizer may have different numbers of them.
    #[must_use]
    pub fn offered(&self) -> ModelFacts {
        let facts = self.engine.facts();
        ModelFacts {
            vocabulary: facts.vocabulary.min(self.text.vocabulary()),
            context: facts.context.min(facts.pages * limits::PAGE_TOKENS),
            ..facts.clone()
        }
    }

    /// What membership says of the model under each of these names; a drafter without one drafts for every model of its
    /// tokenizer.
    #[must_use]
    pub fn served(&self, names: &[String]) -> Vec<ServedModel> {
        let facts = self.engine.facts();
        let named = |name: String| ServedModel {
            name,
            fingerprint: facts.fingerprint.clone(),
            tokenizer_fingerprint: self.text.fingerprint().to_owned(),
            row_exact: facts.row_exact,
        };
        if names.is_empty() { vec![named(String::new())] } else { names.iter().cloned().map(named).collect() }
    }
}
