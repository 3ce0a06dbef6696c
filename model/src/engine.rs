//! The CPU engine: weights, KV pages, threads, and the checks that stand before a pass.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cascadia_core::engine::{Chunk, Engine, EngineError, ModelFacts, Rows};

use crate::fingerprint::Fingerprint;
use crate::forward::{Logits, Pass};
use crate::kernels::{Isa, SimdPath};
use crate::kv::{Kv, KvDtype, PAGE};
use crate::plan::Plan;
use crate::scratch::Scratch;
use crate::threads::{Barrier, ThreadPool};
use crate::weights::Weights;

/// Multiplications in a pass below which one thread is faster than a team that has to meet.
const TEAM_WORK: u64 = 60_000_000;

/// What an engine is given besides the weights.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// KV pages, of 16 tokens each.
    pub pages: usize,
    /// What keys and values are held in.
    pub kv_dtype: KvDtype,
    /// Threads, the caller's among them. Passes too small to gain from more than one use one.
    pub threads: usize,
    /// The SIMD path; `None` takes the fastest the CPU has. The bits are the same on all.
    pub simd: Option<SimdPath>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { pages: 1024, kv_dtype: KvDtype::F32, threads: 1, simd: None }
    }
}

/// A model on the CPU.
pub struct CpuEngine {
    weights: Arc<Weights>,
    kv: Kv,
    isa: Isa,
    team: Option<ThreadPool>,
    alone: Barrier,
    always_team: bool,
    plan: Plan,
    scratch: Scratch,
    /// For each of the model's ropes.
    angles: Vec<Vec<f32>>,
    facts: ModelFacts,
    progress: Arc<AtomicU64>,
}

impl CpuEngine {
    /// An engine over `weights` with pages of its own. Memory of a page is taken when the page is first written.
    ///
    /// # Errors
    /// When there is no page or no thread, the CPU lacks the path asked for, or the system has no room.
    pub fn new(weights: Arc<Weights>, options: EngineOptions) -> Result<Self, EngineError> {
        if options.pages == 0 || options.threads == 0 {
            return Err(EngineError::Pass("an engine needs at least one KV page and one thread".into()));
        }
        let path = options.simd.unwrap_or_else(SimdPath::detect);
        let isa = Isa::of(path).ok_or_else(|| {
            EngineError::Pass(format!("this CPU has no {path:?}; leave the SIMD path to be detected"))
        })?;
        let config = weights.config();
        let room =
            |what: &str, e: std::io::Error| EngineError::Pass(format!("no room for {what} ({e}); ask for fewer"));
        let kv = Kv::new(config, options.pages, options.kv_dtype)
            .map_err(|e| room(&format!("{} KV pages", options.pages), e))?;
        let scratch = Scratch::new(config, options.threads, 8, 256.min(config.context.next_multiple_of(PAGE)))
            .map_err(|e| room("a pass", e))?;
        let team = if options.threads > 1 {
            Some(ThreadPool::new(options.threads).map_err(|e| room(&format!("{} threads", options.threads), e))?)
        } else {
            None
        };
        let facts = ModelFacts {
            vocabulary: config.vocabulary,
            context: config.context,
            pages: options.pages,
            page_bytes: weights.page_bytes(options.kv_dtype),
            parameters: weights.parameters(),
            fingerprint: fingerprint(&weights, options.kv_dtype),
            row_exact: true,
        };
        Ok(Self {
            kv,
            isa,
            team,
            alone: Barrier::new(1),
            always_team: false,
            plan: Plan::default(),
            scratch,
            angles: vec![Vec::new(); weights.ropes.len()],
            facts,
            progress: Arc::default(),
            weights,
        })
    }

    /// The weights, to be shared with another engine.
    #[must_use]
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// Whether the engine runs on the slow path, which deserves a line at start.
    #[must_use]
    pub fn portable(&self) -> bool {
        self.isa.portable()
    }

    /// Uses all threads for every pass, however small: for tests.
    #[doc(hidden)]
    pub fn always_use_threads(&mut self) {
        self.always_team = true;
    }

    /// The keys and values at a position of a page table, for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn keys_and_values(&self, pages: &[cascadia_core::ids::PageId], position: usize) -> Vec<f32> {
        self.kv.slot(pages[position / PAGE].index(), position % PAGE)
    }
}

/// Hash of weights and arithmetic, to which rounding the cache belongs.
fn fingerprint(weights: &Weights, kv_dtype: KvDtype) -> String {
    if kv_dtype == KvDtype::F32 {
        return weights.fingerprint().to_owned();
    }
    let mut hash = Fingerprint::new();
    hash.add(weights.fingerprint().as_bytes());
    hash.add(kv_dtype.name().as_bytes());
    hash.hex()
}

impl Engine for CpuEngine {
    fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.progress)
    }

    fn forward(&mut self, batch: &[Chunk<'_>], rows: &mut Rows) -> Result<(), EngineError> {
        self.facts.check(batch)?;
        let config = self.weights.config();
        let wanted: usize = batch.iter().map(|c| c.rows).sum();
        rows.vocabulary = config.vocabulary;
        rows.data.resize(wanted * config.vocabulary, 0.0);
        let Some(positions) = batch.iter().map(|c| c.start + c.tokens.len()).max() else {
            return Ok(());
        };
        let group = config.heads / config.kv_heads;
        self.plan.build(batch, (self.isa.queries() / group).max(1));
        let tokens = self.plan.rows.len();
        self.scratch
            .reserve(config, tokens, positions.next_multiple_of(PAGE))
            .map_err(|e| EngineError::Pass(format!("no memory for a pass over {tokens} tokens: {e}")))?;
        let table = positions.next_power_of_two().min(config.context);
        for (rope, angles) in self.weights.ropes.iter().zip(&mut self.angles) {
            rope.extend(angles, table);
        }

        let pass = Pass {
            weights: &self.weights,
            kv: &self.kv,
            scratch: &self.scratch,
            plan: &self.plan,
            batch,
            angles: &self.angles,
            logits: Logits(rows.data.as_mut_ptr()),
            isa: self.isa,
            progress: &self.progress,
        };
        let work = self.facts.parameters.saturating_mul(tokens as u64);
        match &mut self.team {
            Some(team) if self.always_team || work >= TEAM_WORK => team
                .run(&|rank, barrier| pass.run(rank, barrier))
                .map_err(|_| EngineError::Fatal("a thread of the forward pass has panicked".into())),
            _ => {
                pass.run(0, &self.alone);
                Ok(())
            }
        }
    }
}
