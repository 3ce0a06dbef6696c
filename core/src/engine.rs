//! The one call a model answers: a ragged batch in, rows of logits out.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::ids::{PageId, TokenId};
use crate::pages::pages_for;

/// Contiguous tokens of one session in a batch.
///
/// Prefill, a piece of one, a verification and a decode step differ in nothing but these numbers.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// Absolute position of the first token.
    pub start: usize,
    /// The tokens at `start..start + tokens.len()`; never empty.
    pub tokens: &'a [TokenId],
    /// The session's page table, covering `0..start + tokens.len()`. Slots at `start..` are written by this call.
    pub pages: &'a [PageId],
    /// How many rows are wanted, counted back from the last token; row `i` scores the token after it.
    pub rows: usize,
}

/// Rows of logits of one batch, in the order of its chunks.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// `rows x vocabulary`, row-major.
    pub data: Vec<f32>,
    /// Length of one row.
    pub vocabulary: usize,
    /// Logits of a row that name a token; the others pad the head. `None` where all do.
    pub named: Option<usize>,
}

impl Rows {
    /// Row `index`: the logits that name a token.
    #[must_use]
    pub fn row(&self, index: usize) -> &[f32] {
        let start = index * self.vocabulary;
        &self.data[start..start + self.named.map_or(self.vocabulary, |named| named.min(self.vocabulary))]
    }

    /// Row `index`, if it was computed from numbers.
    ///
    /// It looks at one logit: each is a product with the whole hidden state, in which one value that is no number
    /// makes every logit none, and one that is infinite or too large to square has become none in the norm before it.
    #[must_use]
    pub fn finite(&self, index: usize) -> Option<&[f32]> {
        let row = self.row(index);
        row.first().is_none_or(|logit| logit.is_finite()).then_some(row)
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.len().checked_div(self.vocabulary).unwrap_or(0)
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
}

/// What is known of a loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Tokens in the vocabulary; the length of a row.
    pub vocabulary: usize,
    /// Positions the model was made for; a session never grows past it.
    pub context: usize,
    /// KV pages the engine has.
    pub pages: usize,
    /// Bytes of a page; 0 where pages hold no keys and values.
    pub page_bytes: usize,
    /// Parameters, as a model card counts them (tied weights once).
    pub parameters: u64,
    /// Hash of weights, dtype and arithmetic: equal fingerprints give equal bits.
    pub fingerprint: String,
    /// Whether a row's bits are independent of batch, chunking and threads (DESIGN section 5).
    pub row_exact: bool,
}

impl ModelFacts {
    /// Checks every chunk of a batch. An engine calls it before it computes anything.
    ///
    /// # Errors
    /// [`EngineError::Chunk`]: the first chunk that breaks the contract, and how.
    pub fn check(&self, batch: &[Chunk<'_>]) -> Result<(), EngineError> {
        for (index, chunk) in batch.iter().enumerate() {
            let end = chunk.start.saturating_add(chunk.tokens.len());
            let needed = pages_for(end);
            let problem = if chunk.tokens.is_empty() {
                "has no tokens".to_owned()
            } else if chunk.rows > chunk.tokens.len() {
                format!("wants {} rows of {} tokens", chunk.rows, chunk.tokens.len())
            } else if end > self.context {
                format!("ends at {end}, beyond the model's {} positions", self.context)
            } else if chunk.pages.len() < needed {
                format!("has {} pages and needs {needed}", chunk.pages.len())
            } else if let Some(token) = chunk.tokens.iter().find(|&&t| t as usize >= self.vocabulary) {
                format!("holds token {token}, outside the vocabulary of {}", self.vocabulary)
            } else if let Some(page) = chunk.pages[..needed].iter().find(|p| p.index() >= self.pages) {
                format!("names page {}, and there are {}", page.index(), self.pages)
            } else {
                continue;
            };
            return Err(EngineError::Chunk { index, problem });
        }
        Ok(())
    }
}

/// A forward pass that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineError {
    /// The engine refuses one chunk. Nothing was computed and nothing written: without it the batch can be run again.
    Chunk {
        /// Which of the batch, from 0.
        index: usize,
        /// What is wrong with it, as the end of a sentence that begins with the chunk.
        problem: String,
    },
    /// The pass failed and names no chunk. The engine stays usable; the batch's sessions do not.
    Pass(String),
    /// The device is lost to this process and no later pass can succeed: the node must end.
    Fatal(String),
}

impl std::fmt::Display for EngineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chunk { index, problem } => write!(f, "chunk {index} of the batch {problem}"),
            Self::Pass(problem) | Self::Fatal(problem) => f.write_str(problem),
        }
    }
}

impl std::error::Error for EngineError {}

/// A model with its KV pages.
///
/// Law: the bits of a row, and of the KV written, depend on nothing but the tokens before it.
pub trait Engine: Send {
    /// What is known of the model; constant.
    fn facts(&self) -> &ModelFacts;

    /// Counts finished layers; a node whose count stands still with work queued is hung, not slow.
    fn progress(&self) -> Arc<AtomicU64>;

    /// Runs `batch` and fills `rows` with the rows wanted, chunk after chunk.
    ///
    /// # Errors
    /// [`EngineError::Chunk`] where a chunk breaks the contract; every chunk is checked before anything is computed. Where
    /// the device failed, what the batch would have written is undefined.
    fn forward(&mut self, batch: &[Chunk<'_>], rows: &mut Rows) -> Result<(), EngineError>;
}
