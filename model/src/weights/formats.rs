//! What each matrix is held in, and the memory that takes.

use crate::arena::slab_bytes;
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Family};
use crate::matrix::{Format, Matrix};
use crate::names::{Names, Part};
use crate::quant::{BLOCK, Dtype};

/// Chooses formats; the tensors have been checked.
pub(super) struct Formats<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    names: Names,
    dtype: Dtype,
}

/// Neighbouring parts that make one matrix.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) parts: usize,
    pub(super) outputs: usize,
    pub(super) format: Format,
}

impl<'a> Formats<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, config: &'a Config, dtype: Dtype) -> Self {
        Self { checkpoint, config, names: checkpoint.names(config), dtype }
    }

    /// Embedding and head lose more by four bits than they save.
    pub(super) fn vocabulary(&self, name: &str) -> Format {
        let dtype = if self.dtype == Dtype::Q4K { Dtype::Q8_0 } else { self.dtype };
        self.checkpoint.stored(name).map_or(Format::F32, |stored| Format::of(stored, dtype))
    }

    /// Of a matrix of its own.
    pub(super) fn one(&self, layer: usize, part: Part) -> Format {
        let stored = self.checkpoint.stored(&self.names.weight(layer, part));
        stored.map_or(Format::F32, |stored| Format::of(stored, self.dtype))
    }

    fn runs(&self, layer: usize, fused: Part, parts: &[(Part, usize)], outputs: usize) -> Vec<Run> {
        let whole = self.config.family == Family::Phi3;
        let format = |&(part, _): &(Part, usize)| self.one(layer, if whole { fused } else { part });
        let first = format(&parts[0]);
        if parts.iter().all(|part| format(part) == first) {
            return vec![Run { parts: parts.len(), outputs, format: first }];
        }
        parts.iter().map(|part| Run { parts: 1, outputs: part.1, format: format(part) }).collect()
    }

    /// Queries, keys and values.
    pub(super) fn qkv(&self, layer: usize) -> Vec<Run> {
        let c = self.config;
        let keys = c.kv_heads * c.head_dim;
        let parts = [(Part::Queries, c.attended()), (Part::Keys, keys), (Part::Values, keys)];
        self.runs(layer, Part::Qkv, &parts, c.qkv())
    }

    /// Gates and what they gate. By turns they fill whole blocks of 32, because a block of both is handed to one thread.
    pub(super) fn gate_up(&self, layer: usize) -> Vec<Run> {
        let inner = self.config.inner;
        let parts = [(Part::Gate, inner), (Part::Up, inner)];
        self.runs(layer, Part::GateUp, &parts, 2 * inner.next_multiple_of(BLOCK))
    }

    /// Bytes of all that is held.
    pub(super) fn bytes(&self) -> usize {
        let c = self.config;
        let vector = |width: usize| slab_bytes::<f32>(width.next_multiple_of(BLOCK));
        let runs =
            |runs: Vec<Run>| -> usize { runs.iter().map(|run| Matrix::bytes(run.outputs, c.hidden, run.format)).sum() };
        let block = |layer: usize| {
            let qkv = self.qkv(layer);
            let biases: usize = if c.qkv_bias { qkv.iter().map(|run| vector(run.outputs)).sum() } else { 0 };
            let bias = if c.output_bias { vector(c.hidden) } else { 0 };
            let norms = vector(c.hidden) * if c.post_norms { 4 } else { 2 };
            let head_norms = if c.head_norms { 2 * vector(c.head_dim) } else { 0 };
            runs(qkv)
                + runs(self.gate_up(layer))
                + Matrix::bytes(c.hidden, c.attended(), self.one(layer, Part::Output))
                + Matrix::bytes(c.hidden, c.inner, self.one(layer, Part::Down))
                + biases
                + bias
                + norms
                + head_norms
        };
        let embedding = |name: &str| Matrix::bytes(c.vocabulary, c.hidden, self.vocabulary(name));
        let head = if c.tied { 0 } else { embedding(&self.names.head()) };
        (0..c.blocks.len()).map(block).sum::<usize>() + embedding(&self.names.embedding()) + head + vector(c.hidden)
    }
}
