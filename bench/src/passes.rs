//! Passes of one session: a token at a time, eight, a whole prompt.

use std::time::Instant;

use cascadia::Failure;
use cascadia::load::Model;
use cascadia_core::engine::{Chunk, Engine, Rows};
use cascadia_core::ids::PageId;
use cascadia_core::pages::pages_for;
use cascadia_node::engine_config::EngineConfig;

/// Tokens of a measurement of plain decoding.
pub const DECODED: usize = 64;
/// Tokens verified in one pass.
pub const BLOCK: usize = 8;
/// Tokens of a prompt.
pub const PROMPT: usize = 512;

/// An engine that is measured; llama-bench's counterpart.
pub struct Passes {
    engine: Box<dyn Engine>,
    pages: Vec<PageId>,
    tokens: Vec<u32>,
    rows: Rows,
}

impl Passes {
    /// An engine over a model.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub fn new(model: &Model, threads: usize) -> Result<Self, Failure> {
        let pages = pages_for(PROMPT);
        let engine = model.weights.engine(pages, &EngineConfig { threads, ..EngineConfig::default() })?;
        let vocabulary = engine.facts().vocabulary as u32;
        Ok(Self {
            engine,
            pages: (0..pages as u32).map(PageId).collect(),
            tokens: (0..PROMPT as u32).map(|i| (i * 7919 + 13) % vocabulary).collect(),
            rows: Rows::default(),
        })
    }

    fn pass(&mut self, start: usize, count: usize, rows: usize) -> Result<(), Failure> {
        let chunk = Chunk { start, tokens: &self.tokens[start..start + count], pages: &self.pages, rows };
        Ok(self.engine.forward(&[chunk], &mut self.rows)?)
    }

    /// Tokens a second, one in a pass, from the first position on.
    ///
    /// # Errors
    /// When a pass fails.
    pub fn plain(&mut self) -> Result<f64, Failure> {
        let begun = Instant::now();
        for position in 0..DECODED {
            self.pass(position, 1, 1)?;
        }
        Ok(DECODED as f64 / begun.elapsed().as_secs_f64())
    }

    /// Tokens a second of `count` in a pass with `rows` rows of logits, over `times` passes.
    ///
    /// # Errors
    /// When a pass fails.
    pub fn together(&mut self, count: usize, rows: usize, times: usize) -> Result<f64, Failure> {
        let begun = Instant::now();
        for _ in 0..times {
            self.pass(0, count, rows)?;
        }
        Ok((count * times) as f64 / begun.elapsed().as_secs_f64())
    }
}
