//! The engine: weights on a device, KV pages there, and core's one call.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use candle_core::Tensor;
use cascadia_core::engine::{Chunk, Engine, EngineError, ModelFacts, Rows};
use cascadia_core::limits::PAGE_TOKENS;

use crate::attention::Attention;
use crate::fault;
use crate::forward::Pass;
use crate::plan::Plan;
use crate::weights::{TensorType, TensorWeights};

/// What an engine is given besides the weights.
#[derive(Clone, Copy, Debug)]
pub struct TensorOptions {
    /// KV pages, of 16 tokens each.
    pub pages: usize,
    /// What keys and values are held in.
    pub kv_dtype: TensorType,
    /// How queries meet them.
    pub attention: Attention,
}

/// A model on a device.
pub struct TensorEngine {
    weights: Arc<TensorWeights>,
    kv: Vec<Tensor>,
    attention: Attention,
    passed_over: Option<String>,
    facts: ModelFacts,
    progress: Arc<AtomicU64>,
}

impl TensorEngine {
    /// An engine over `weights` with pages of its own, whose memory is taken at once.
    ///
    /// # Errors
    /// When there is no page, more than the device's kernels can address, or no room for them.
    pub fn new(weights: Arc<TensorWeights>, options: TensorOptions) -> Result<Self, EngineError> {
        let c = &weights.config;
        let (slots, width) = (options.pages.saturating_mul(PAGE_TOKENS), 2 * c.kv_heads * c.head_dim);
        // Candle's kernels index a tensor by 32 bits, and say nothing when that is too few.
        let most = u32::MAX as usize / width / PAGE_TOKENS;
        if options.pages == 0 || options.pages > most {
            return Err(EngineError::Pass(format!(
                "{} KV pages are asked for; this model can have 1 to {most}",
                options.pages
            )));
        }
        let page = || Tensor::zeros((slots, width), options.kv_dtype.candle(), &weights.device.candle);
        let kv = c.blocks.iter().map(|_| page()).collect::<Result<Vec<_>, _>>().map_err(|error| {
            EngineError::Pass(format!("no room for {} KV pages on the device ({error}); ask for fewer", options.pages))
        })?;
        let checked = match options.attention {
            Attention::Plain => Ok(()),
            other => other.check(c, options.kv_dtype.candle(), &weights.device.candle),
        };
        let (attention, passed_over) = match checked {
            Ok(()) => (options.attention, None),
            Err(reason) => (Attention::Plain, Some(reason)),
        };
        let facts = ModelFacts {
            vocabulary: c.vocabulary,
            context: c.context,
            pages: options.pages,
            page_bytes: weights.page_bytes(options.kv_dtype),
            parameters: c.parameters(),
            fingerprint: format!("{}-kv-{}", weights.fingerprint, options.kv_dtype),
            row_exact: false,
        };
        Ok(Self { kv, attention, passed_over, facts, progress: Arc::default(), weights })
    }

    /// Why another way of attention than the one asked for is used, if so: a line at the start.
    #[must_use]
    pub fn passed_over(&self) -> Option<&str> {
        self.passed_over.as_deref()
    }
}

impl Engine for TensorEngine {
    fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.progress)
    }

    fn forward(&mut self, batch: &[Chunk<'_>], rows: &mut Rows) -> Result<(), EngineError> {
        self.facts.check(batch)?;
        rows.vocabulary = self.facts.vocabulary;
        rows.data.clear();
        if batch.is_empty() {
            return Ok(());
        }
        let plan = Plan::new(batch);
        let (weights, attention) = (&self.weights, self.attention);
        let pass = Pass { weights, kv: &self.kv, plan: &plan, attention, progress: &self.progress };
        let _turn = self.weights.device.turn.lock();
        // Reading the logits waits for the device; so does a pass without any, or work would pile up there.
        let logits = pass.run().and_then(|logits| match logits {
            Some(logits) => logits.flatten_all()?.to_vec1(),
            None => self.weights.device.candle.synchronize().map(|()| Vec::new()),
        });
        let device = &self.weights.device;
        rows.data = logits.map_err(|error| fault::read(&error.to_string(), || device.answers()))?;
        Ok(())
    }
}
