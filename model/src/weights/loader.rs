//! From the tensors of a checkpoint to packed matrices.

use super::formats::Formats;
use super::source::{Source, gate_parts, qkv_parts};
use super::{GateUp, HeadNorms, Layer, PostNorms, Projection};
use crate::arena::{Arena, Slab};
use crate::error::LoadError;
use crate::matrix::{Format, Matrix, TILE};
use crate::names::Part;
use crate::quant::BLOCK;

/// Packs what the source gives.
pub(super) struct Loader<'a> {
    source: Source<'a>,
    formats: &'a Formats<'a>,
    arena: Arena,
}

impl<'a> Loader<'a> {
    pub(super) fn new(source: Source<'a>, formats: &'a Formats<'a>, arena: Arena) -> Self {
        Self { source, formats, arena }
    }

    pub(super) fn fingerprint(&self) -> String {
        self.source.fingerprint()
    }

    /// A vector in whole blocks.
    fn slab(&mut self, values: &[f32]) -> Slab<f32> {
        let mut slab = self.arena.take(values.len().next_multiple_of(BLOCK));
        slab[..values.len()].copy_from_slice(values);
        slab
    }

    pub(super) fn norm(&mut self, name: &str, width: usize) -> Result<Slab<f32>, LoadError> {
        let weights = self.source.norm(name, width)?;
        Ok(self.slab(&weights))
    }

    pub(super) fn matrix(&mut self, name: &str, shape: (usize, usize), format: Format) -> Result<Matrix, LoadError> {
        let tensor = self.source.tensor(name, &[shape.0, shape.1])?;
        let rows = |row| Some((&tensor, row));
        let matrix = Matrix::pack(&mut self.arena, (tensor.path, name), shape, format, &rows)?;
        self.source.count(&[&tensor]);
        Ok(matrix)
    }

    fn bias(&mut self, layer: usize, parts: &[(Part, usize)]) -> Result<Slab<f32>, LoadError> {
        let bias = self.source.bias(layer, parts)?;
        Ok(self.slab(&bias))
    }

    /// Queries, keys and values: one matrix, or three where they are held in different formats.
    fn qkv(&mut self, layer: usize) -> Result<Vec<Projection>, LoadError> {
        let c = self.source.config;
        let parts = qkv_parts(c);
        let sections = self.source.sections(layer, Part::Qkv, &parts)?;
        let label = self.source.names.weight(layer, Part::Qkv);
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
        let c = self.source.config;
        let (inner, hidden) = (c.inner, c.hidden);
        let sections = self.source.sections(layer, Part::GateUp, &gate_parts(c))?;
        let label = self.source.names.weight(layer, Part::GateUp);
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
        let c = self.source.config;
        let attention_norm = self.norm(&self.source.names.weight(layer, Part::AttentionNorm), c.hidden)?;
        let qkv = self.qkv(layer)?;
        let head_norms = match c.head_norms {
            false => None,
            true => Some(HeadNorms {
                queries: self.norm(&self.source.names.weight(layer, Part::QueryNorm), c.head_dim)?,
                keys: self.norm(&self.source.names.weight(layer, Part::KeyNorm), c.head_dim)?,
            }),
        };
        let format = self.formats.one(layer, Part::Output);
        let mut output =
            self.matrix(&self.source.names.weight(layer, Part::Output), (c.hidden, c.attended()), format)?;
        if c.output_bias {
            output.bias = Some(self.bias(layer, &[(Part::Output, c.hidden)])?);
        }
        let mlp_norm = self.norm(&self.source.names.weight(layer, Part::MlpNorm), c.hidden)?;
        let gate_up = self.gate_up(layer)?;
        let format = self.formats.one(layer, Part::Down);
        let down = self.matrix(&self.source.names.weight(layer, Part::Down), (c.hidden, c.inner), format)?;
        let post_norms = match c.post_norms {
            false => None,
            true => Some(PostNorms {
                attention: self.norm(&self.source.names.weight(layer, Part::PostAttentionNorm), c.hidden)?,
                mlp: self.norm(&self.source.names.weight(layer, Part::PostMlpNorm), c.hidden)?,
            }),
        };
        Ok(Layer { attention_norm, qkv, head_norms, output, mlp_norm, gate_up, down, post_norms })
    }
}
