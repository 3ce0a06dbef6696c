//! The tensors of a checkpoint, in the order in which the block has them and the fingerprint depends on.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::config::{Config, Family};
use crate::error::LoadError;
use crate::fingerprint::Fingerprint;
use crate::names::{Names, Part};

use super::Progress;

/// Some rows of a tensor, in the order in which the model has them.
pub(super) struct Section<'a> {
    pub(super) tensor: Tensor<'a>,
    first: usize,
    /// Width of a head whose halves are interleaved.
    interleaved: Option<usize>,
}

impl<'a> Section<'a> {
    pub(super) fn row(&self, index: usize) -> (&Tensor<'a>, usize) {
        (&self.tensor, self.first + self.interleaved.map_or(index, |head_dim| interleaved(index, head_dim)))
    }
}

/// Where row `index` of the model is: row `i` of a head's first half at `2 i`, of its second half behind it.
fn interleaved(index: usize, head_dim: usize) -> usize {
    let (head, row, half) = (index / head_dim, index % head_dim, head_dim / 2);
    head * head_dim + row % half * 2 + row / half
}

/// Reads tensors, hashes them and counts their bytes.
pub(super) struct Source<'a> {
    checkpoint: &'a Checkpoint,
    pub(super) config: &'a Config,
    pub(super) names: Names,
    hash: Fingerprint,
    progress: &'a mut dyn FnMut(Progress<'_>),
    done: u64,
    total: u64,
}

impl<'a> Source<'a> {
    /// `arithmetic` names what will be computed with the weights.
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        config: &'a Config,
        arithmetic: &[&str],
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Self {
        let mut hash = Fingerprint::new();
        for part in arithmetic.iter().copied().chain([&*config.canonical()]) {
            hash.add(part.as_bytes());
        }
        let names = checkpoint.names(config);
        Self { checkpoint, config, names, hash, progress, done: 0, total: checkpoint.bytes() }
    }

    pub(super) fn fingerprint(&self) -> String {
        self.hash.hex()
    }

    /// Finds a tensor and adds it to the fingerprint.
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, LoadError> {
        let tensor = self.checkpoint.tensor(name, shape)?;
        self.hash.add(name.as_bytes());
        self.hash.add(format!("{:?}", tensor.stored).as_bytes());
        self.hash.add(tensor.bytes);
        Ok(tensor)
    }

    pub(super) fn count(&mut self, tensors: &[&Tensor<'_>]) {
        self.done += tensors.iter().map(|t| t.bytes.len() as u64).sum::<u64>();
        (self.progress)(Progress { stage: "loading weights", done: self.done, total: self.total });
    }

    /// A norm's weights. Gemma's checkpoints hold them less one.
    pub(super) fn norm(&mut self, name: &str, width: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, &[width])?;
        let mut weights = vec![0.0; width];
        tensor.row(0, &mut weights)?;
        self.count(&[&tensor]);
        if self.checkpoint.norms_less_one(self.config) {
            weights.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(weights)
    }

    /// How the rows of queries and keys are interleaved, if they are.
    fn interleaved(&self, part: Part) -> Option<usize> {
        let turns = matches!(part, Part::Queries | Part::Keys) && self.checkpoint.interleaved(self.config);
        turns.then_some(self.config.head_dim)
    }

    /// Tensors that stand beside each other in one matrix: of their own, or sections of one that was stored so.
    pub(super) fn sections(
        &mut self,
        layer: usize,
        fused: Part,
        parts: &[(Part, usize)],
    ) -> Result<Vec<Section<'a>>, LoadError> {
        let inputs = self.config.hidden;
        let mut sections = Vec::with_capacity(parts.len());
        if self.config.family == Family::Phi3 {
            let rows = parts.iter().map(|(_, rows)| rows).sum();
            let tensor = self.tensor(&self.names.weight(layer, fused), &[rows, inputs])?;
            self.count(&[&tensor]);
            let mut first = 0;
            for (_, rows) in parts {
                sections.push(Section { tensor: tensor.clone(), first, interleaved: None });
                first += rows;
            }
        } else {
            for &(part, rows) in parts {
                let tensor = self.tensor(&self.names.weight(layer, part), &[rows, inputs])?;
                self.count(&[&tensor]);
                sections.push(Section { tensor, first: 0, interleaved: self.interleaved(part) });
            }
        }
        Ok(sections)
    }

    /// Biases one after the other, as the outputs of their matrix are.
    pub(super) fn bias(&mut self, layer: usize, parts: &[(Part, usize)]) -> Result<Vec<f32>, LoadError> {
        let mut all = Vec::new();
        for &(part, width) in parts {
            let tensor = self.tensor(&self.names.bias(layer, part), &[width])?;
            let mut stored = vec![0.0; width];
            tensor.row(0, &mut stored)?;
            self.count(&[&tensor]);
            let order = self.interleaved(part);
            all.extend((0..width).map(|i| stored[order.map_or(i, |head_dim| interleaved(i, head_dim))]));
        }
        Ok(all)
    }
}

/// Queries, keys and values, with their outputs.
pub(super) fn qkv_parts(c: &Config) -> [(Part, usize); 3] {
    let keys = c.kv_heads * c.head_dim;
    [(Part::Queries, c.attended()), (Part::Keys, keys), (Part::Values, keys)]
}

/// Gates and what they gate, with their outputs.
pub(super) fn gate_parts(c: &Config) -> [(Part, usize); 2] {
    [(Part::Gate, c.inner), (Part::Up, c.inner)]
}
