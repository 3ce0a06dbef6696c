//! From the tensors of a checkpoint to packed matrices.

use super::{HeadNorms, Layer, PostNorms, Progress};
use crate::arena::{Arena, Slab, slab_bytes};
use crate::checkpoint::{Checkpoint, Names, Part, Tensor};
use crate::config::{Config, Family};
use crate::error::LoadError;
use crate::fingerprint::Fingerprint;
use crate::matrix::{Matrix, TILE};
use crate::quant::{BLOCK, Dtype};

/// Outputs and inputs of a block's matrices.
pub(super) struct Shapes {
    queries: usize,
    keys: usize,
    qkv: (usize, usize),
    output: (usize, usize),
    gate_up: (usize, usize),
    down: (usize, usize),
}

impl Shapes {
    pub(super) fn of(c: &Config) -> Self {
        // Whole blocks of 32, because a block's gates and what they gate are handed to one thread.
        let inner = c.inner.next_multiple_of(BLOCK);
        Self {
            queries: c.attended(),
            keys: c.kv_heads * c.head_dim,
            qkv: (c.qkv(), c.hidden),
            output: (c.hidden, c.attended()),
            gate_up: (2 * inner, c.hidden),
            down: (c.hidden, c.inner),
        }
    }

    /// Bytes of all that is held.
    pub(super) fn bytes(&self, c: &Config, dtype: Dtype) -> usize {
        let size = |(outputs, inputs)| Matrix::bytes(outputs, inputs, dtype);
        let vector = |width: usize| slab_bytes::<f32>(width.next_multiple_of(BLOCK));
        let mut block = size(self.qkv) + size(self.output) + size(self.gate_up) + size(self.down);
        block += vector(c.hidden) * if c.post_norms { 4 } else { 2 };
        block += if c.head_norms { 2 * vector(c.head_dim) } else { 0 };
        block += if c.qkv_bias { vector(c.qkv()) } else { 0 };
        block += if c.output_bias { vector(c.hidden) } else { 0 };
        let embedding = size((c.vocabulary, c.hidden));
        c.blocks.len() * block + embedding * if c.tied { 1 } else { 2 } + vector(c.hidden)
    }
}

/// Some rows of a tensor.
struct Section<'a> {
    tensor: Tensor<'a>,
    first: usize,
}

impl Section<'_> {
    fn row(&self, index: usize, to: &mut [f32]) -> Result<(), LoadError> {
        self.tensor.row(self.first + index, to)
    }
}

/// Reads tensors in a fixed order, which the fingerprint depends on.
pub(super) struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    names: Names,
    dtype: Dtype,
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
        (dtype, arena, hash): (Dtype, Arena, Fingerprint),
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Self {
        let names = checkpoint.names(config);
        let total = checkpoint.bytes();
        Self { checkpoint, config, names, dtype, arena, hash, progress, done: 0, total }
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

    fn vector(&mut self, name: &str, width: usize) -> Result<Slab<f32>, LoadError> {
        let tensor = self.tensor(name, &[width])?;
        let mut slab = self.arena.take(width.next_multiple_of(BLOCK));
        tensor.row(0, &mut slab)?;
        self.count(&[&tensor]);
        Ok(slab)
    }

    /// A norm's weights. Gemma's checkpoints hold them less one.
    pub(super) fn norm(&mut self, name: &str, width: usize) -> Result<Slab<f32>, LoadError> {
        let mut slab = self.vector(name, width)?;
        if self.checkpoint.norms_less_one(self.config) {
            slab[..width].iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(slab)
    }

    pub(super) fn matrix(&mut self, name: &str, shape: (usize, usize)) -> Result<Matrix, LoadError> {
        let tensor = self.tensor(name, &[shape.0, shape.1])?;
        let matrix =
            Matrix::pack(&mut self.arena, (tensor.path, name), shape, self.dtype, &mut |row, to| tensor.row(row, to))?;
        self.count(&[&tensor]);
        Ok(matrix)
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
                sections.push(Section { tensor: tensor.clone(), first });
                first += rows;
            }
        } else {
            for &(part, rows) in parts {
                let tensor = self.tensor(&self.names.weight(layer, part), &[rows, inputs])?;
                self.count(&[&tensor]);
                sections.push(Section { tensor, first: 0 });
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
            tensor.row(0, &mut slab[at..])?;
            self.count(&[&tensor]);
            at += width;
        }
        Ok(slab)
    }

    fn qkv(&mut self, layer: usize, shapes: &Shapes) -> Result<Matrix, LoadError> {
        let (queries, keys) = (shapes.queries, shapes.keys);
        let parts = [(Part::Queries, queries), (Part::Keys, keys), (Part::Values, keys)];
        let sections = self.sections(layer, Part::Qkv, &parts)?;
        let label = self.names.weight(layer, Part::Qkv);
        let mut qkv = Matrix::pack(
            &mut self.arena,
            (sections[0].tensor.path, &label),
            shapes.qkv,
            self.dtype,
            &mut |row, to| {
                if row < queries {
                    sections[0].row(row, to)
                } else if row < queries + keys {
                    sections[1].row(row - queries, to)
                } else {
                    sections[2].row(row - queries - keys, to)
                }
            },
        )?;
        if self.config.qkv_bias {
            qkv.bias = Some(self.bias(layer, &parts)?);
        }
        Ok(qkv)
    }

    fn gate_up(&mut self, layer: usize, shapes: &Shapes) -> Result<Matrix, LoadError> {
        let inner = self.config.inner;
        let sections = self.sections(layer, Part::GateUp, &[(Part::Gate, inner), (Part::Up, inner)])?;
        let label = self.names.weight(layer, Part::GateUp);
        Matrix::pack(&mut self.arena, (sections[0].tensor.path, &label), shapes.gate_up, self.dtype, &mut |row, to| {
            let (tile, lane) = (row / TILE, row % TILE);
            let output = tile / 2 * TILE + lane;
            if output < inner { sections[tile % 2].row(output, to) } else { Ok(()) }
        })
    }

    pub(super) fn layer(&mut self, layer: usize, shapes: &Shapes) -> Result<Layer, LoadError> {
        let c = self.config;
        let attention_norm = self.norm(&self.names.weight(layer, Part::AttentionNorm), c.hidden)?;
        let qkv = self.qkv(layer, shapes)?;
        let head_norms = match c.head_norms {
            false => None,
            true => Some(HeadNorms {
                queries: self.norm(&self.names.weight(layer, Part::QueryNorm), c.head_dim)?,
                keys: self.norm(&self.names.weight(layer, Part::KeyNorm), c.head_dim)?,
            }),
        };
        let mut output = self.matrix(&self.names.weight(layer, Part::Output), shapes.output)?;
        if c.output_bias {
            output.bias = Some(self.bias(layer, &[(Part::Output, c.hidden)])?);
        }
        let mlp_norm = self.norm(&self.names.weight(layer, Part::MlpNorm), c.hidden)?;
        let gate_up = self.gate_up(layer, shapes)?;
        let down = self.matrix(&self.names.weight(layer, Part::Down), shapes.down)?;
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
