//! From the tensors of a checkpoint to packed matrices.

use super::formats::Formats;
use super::{GateUp, HeadNorms, Layer, PostNorms, Progress, Projection};
use crate::arena::{Arena, Slab};
use crate::checkpoint::{Checkpoint, Names, Part, Tensor};
use crate::config::{Config, Family};
use crate::error::LoadError;
use crate::fingerprint::Fingerprint;
use crate::matrix::{Format, Matrix, TILE};
use crate::quant::BLOCK;

/// Some rows of a tensor, in the order in which the model has them.
struct Section<'a> {
    tensor: Tensor<'a>,
    first: usize,
    /// Width of a head whose halves are interleaved.
    interleaved: Option<usize>,
}

impl<'a> Section<'a> {
    fn row(&self, index: usize) -> (&Tensor<'a>, usize) {
        (&self.tensor, self.first + self.interleaved.map_or(index, |head_dim| interleaved(index, head_dim)))
    }
}

/// Where row `index` of the model is: row `i` of a head's first half at `2 i`, of its second half behind it.
fn interleaved(index: usize, head_dim: usize) -> usize {
    let (head, row, half) = (index / head_dim, index % head_dim, head_dim / 2);
    head * head_dim + row % half * 2 + row / half
}

/// Reads tensors in a fixed order, which the fingerprint depends on.
pub(super) struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    names: Names,
    formats: &'a Formats<'a>,
    arena: Arena,
    hash: Fingerprint,
    progress: &'a mut dyn FnMut(Progress<'_>),
    done: u64,
    total: u64,
}

impl<'a> Loader<'a> {
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        config: &'a Config,
        formats: &'a Formats<'a>,
        (arena, hash): (Arena, Fingerprint),
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Self {
        let names = checkpoint.names(config);
        let total = checkpoint.bytes();
        Self { checkpoint, config, names, formats, arena, hash, progress, done: 0, total }
    }

    pub(super) fn fingerprint(&self) -> String {
        self.hash.hex()
    }

    /// Finds a tensor and adds it to the fingerprint.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, LoadError> {
        let tensor = self.checkpoint.tensor(name, shape)?;
        self.hash.add(name.as_bytes());
        self.hash.add(format!("{:?}", tensor.stored).as_bytes());
        self.hash.add(tensor.bytes);
        Ok(tensor)
    }

    fn count(&mut self, tensors: &[&Tensor<'_>]) {
        self.done += tensors.iter().map(|t| t.bytes.len() as u64).sum::<u64>();
        (self.progress)(Progress { stage: "loading weights", done: self.done, total: self.total });
    }

    /// A norm's weights. Gemma's checkpoints hold them less one.
    pub(super) fn norm(&mut self, name: &str, width: usize) -> Result<Slab<f32>, LoadError> {
        let tensor = self.tensor(name, &[width])?;
        let mut slab = self.arena.take(width.next_multiple_of(BLOCK));
        tensor.row(0, &mut slab)?;
        self.count(&[&tensor]);
        if self.checkpoint.norms_less_one(self.config) {
            slab[..width].iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(slab)
    }

    pub(super) fn matrix(&mut self, name: &str, shape: (usize, usize), format: Format) -> Result<Matrix, LoadError> {
        let tensor = self.tensor(name, &[shape.0, shape.1])?;
        let rows = |row| Some((&tensor, row));
        let matrix = Matrix::pack(&mut self.arena, (tensor.path, name), shape, format, &rows)?;
        self.count(&[&tensor]);
        Ok(matrix)
    }

    /// How the rows of queries and keys are interleaved, if they are.
    fn interleaved(&self, part: Part) -> Option<usize> {
        let turns = matches!(part, Part::Queries | Part::Keys) && self.checkpoint.interleaved(self.config);
        turns.then_some(self.config.head_dim)
    }

    /// Tensors that stand beside each other in one matrix: of their own, or sections of one that was stored so.
    fn sections(&mut self, layer: usize, fused: Part, parts: &[(Part, usize)]) -> Result<Vec<Section<'a>>, LoadError> {
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
    fn bias(&mut self, layer: usize, parts: &[(Part, usize)]) -> Result<Slab<f32>, LoadError> {
        let width: usize = parts.iter().map(|(_, width)| width).sum();
        let mut slab: Slab<f32> = self.arena.take(width.next_multiple_of(BLOCK));
        let mut at = 0;
        for &(part, width) in parts {
            let tensor = self.tensor(&self.names.bias(layer, part), &[width])?;
            let mut stored = vec![0.0; width];
            tensor.row(0, &mut stored)?;
            self.count(&[&tensor]);
            let order = self.interleaved(part);
            for (i, to) in slab[at..at + width].iter_mut().enumerate() {
                *to = stored[order.map_or(i, |head_dim| interleaved(i, head_dim))];
            }
            at += width;
        }
        Ok(slab)
    }

    /// Queries, keys and values: one matrix, or three where they are held in different formats.
    fn qkv(&mut self, layer: usize) -> Result<Vec<Projection>, LoadError> {
        let c = self.config;
        let keys = c.kv_heads * c.head_dim;
        let parts = [(Part::Queries, c.attended()), (Part::Keys, keys), (Part::Values, keys)];
        let sections = self.sections(layer, Part::Qkv, &parts)?;
        let label = self.names.weight(layer, Part::Qkv);
        let formats = self.formats.qkv(layer);
        let mut projections = Vec::with_capacity(formats.len());
        let mut first = 0;
        for run in formats {
            let of = &sections[first..first + run.parts];
            let widths: Vec<usize> = parts[first..first + run.parts].iter().map(|(_, width)| *width).collect();
            let rows = |mut row: usize| {
                let mut at = 0;
                while row >= widths[at] {
                    row -= widths[at];
                    at += 1;
                }
                Some(of[at].row(row))
            };
            let at = parts[..first].iter().map(|(_, width)| width).sum();
            let place = (of[0].tensor.path, label.as_str());
            let mut matrix = Matrix::pack(&mut self.arena, place, (run.outputs, c.hidden), run.format, &rows)?;
            if c.qkv_bias {
                matrix.bias = Some(self.bias(layer, &parts[first..first + run.parts])?);
            }
            projections.push(Projection { matrix, at });
            first += run.parts;
        }
        Ok(projections)
    }

    fn gate_up(&mut self, layer: usize) -> Result<GateUp, LoadError> {
        let (inner, hidden) = (self.config.inner, self.config.hidden);
        let sections = self.sections(layer, Part::GateUp, &[(Part::Gate, inner), (Part::Up, inner)])?;
        let label = self.names.weight(layer, Part::GateUp);
        let place = (sections[0].tensor.path, label.as_str());
        let formats = self.formats.gate_up(layer);
        if let [run] = formats[..] {
            let by_turns = |row: usize| {
                let (tile, lane) = (row / TILE, row % TILE);
                let output = tile / 2 * TILE + lane;
                (output < inner).then(|| sections[tile % 2].row(output))
            };
            let matrix = Matrix::pack(&mut self.arena, place, (run.outputs, hidden), run.format, &by_turns)?;
            return Ok(GateUp::ByTurns(matrix));
        }
        let mut each = |at: usize| {
            let rows = |row| Some(sections[at].row(row));
            Matrix::pack(&mut self.arena, place, (inner, hidden), formats[at].format, &rows)
        };
        Ok(GateUp::Apart { gate: each(0)?, up: each(1)? })
    }

    pub(super) fn layer(&mut self, layer: usize) -> Result<Layer, LoadError> {
        let c = self.config;
        let attention_norm = self.norm(&self.names.weight(layer, Part::AttentionNorm), c.hidden)?;
        let qkv = self.qkv(layer)?;
        let head_norms = match c.head_norms {
            false => None,
            true => Some(HeadNorms {
                queries: self.norm(&self.names.weight(layer, Part::QueryNorm), c.head_dim)?,
                keys: self.norm(&self.names.weight(layer, Part::KeyNorm), c.head_dim)?,
            }),
        };
        let format = self.formats.one(layer, Part::Output);
        let mut output = self.matrix(&self.names.weight(layer, Part::Output), (c.hidden, c.attended()), format)?;
        if c.output_bias {
            output.bias = Some(self.bias(layer, &[(Part::Output, c.hidden)])?);
        }
        let mlp_norm = self.norm(&self.names.weight(layer, Part::MlpNorm), c.hidden)?;
        let gate_up = self.gate_up(layer)?;
        let format = self.formats.one(layer, Part::Down);
        let down = self.matrix(&self.names.weight(layer, Part::Down), (c.hidden, c.inner), format)?;
        let post_norms = match c.post_norms {
            false => None,
            true => Some(PostNorms {
                attention: self.norm(&self.names.weight(layer, Part::PostAttentionNorm), c.hidden)?,
                mlp: self.norm(&self.names.weight(layer, Part::PostMlpNorm), c.hidden)?,
            }),
        };
        Ok(Layer { attention_norm, qkv, head_norms, output, mlp_norm, gate_up, down, post_norms })
    }
}
