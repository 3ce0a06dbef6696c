//! One ragged pass over tensors: the block of `model/src/forward.rs`, operation by operation.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::rms_norm;
use candle_nn::rotary_emb::rope_thd;
use cascadia_model::Activation;

use crate::attention::{Attention, Prepared as Attending, Shape};
use crate::plan::Plan;
use crate::weights::{Layer, TensorWeights};

/// What a pass reads and writes.
pub(crate) struct Pass<'a> {
    pub(crate) weights: &'a TensorWeights,
    /// Of each block: `slots x (keys of all heads, values of all heads)`.
    pub(crate) kv: &'a [Tensor],
    pub(crate) plan: &'a Plan,
    pub(crate) attention: Attention,
    pub(crate) progress: &'a AtomicU64,
}

/// What all blocks of a pass need on the device.
struct Prepared {
    /// Where each number of a row's key and value goes.
    slots: Tensor,
    /// Cosines and sines of the rows, for each rope.
    angles: Vec<[Tensor; 2]>,
    /// For each window that blocks have.
    attending: Vec<Attending>,
    /// Rows whose logits are wanted, if any are: a card has no tensors of nothing.
    wanted: Option<Tensor>,
}

impl Pass<'_> {
    /// Logits of the wanted rows, `f32`; nothing where none is wanted.
    pub(crate) fn run(&self) -> Result<Option<Tensor>> {
        let (w, c) = (self.weights, &self.weights.config);
        let prepared = self.prepare()?;
        let tokens = Tensor::new(&self.plan.tokens[..], &w.device.candle)?;
        let mut x = w.embedding.index_select(&tokens, 0)?.to_dtype(DType::F32)?;
        if let Some(scale) = c.embedding_scale {
            x = (x * f64::from(scale))?;
        }
        let last = w.layers.len() - 1;
        for (index, layer) in w.layers.iter().enumerate() {
            let queries = self.keys_and_queries(index, layer, &x, &prepared)?;
            if index < last {
                let attended = self.attend(index, &queries, &prepared)?;
                x = self.finish_block(layer, &x, &attended)?;
            } else {
                // The last block goes on with the wanted rows only.
                let Some(wanted) = &prepared.wanted else { return Ok(None) };
                let attended = self.attend(index, &queries, &prepared)?.index_select(wanted, 0)?;
                x = self.finish_block(layer, &x.index_select(wanted, 0)?, &attended)?;
            }
            self.progress.fetch_add(1, Ordering::Relaxed);
        }
        let logits = self.product(&self.norm(&x, &w.norm)?, &w.head, None)?;
        match c.logit_cap {
            None => Ok(Some(logits)),
            Some(cap) => Ok(Some(((logits / f64::from(cap))?.tanh()? * f64::from(cap))?)),
        }
    }

    fn prepare(&self) -> Result<Prepared> {
        let (w, c, plan) = (self.weights, &self.weights.config, self.plan);
        let device = &w.device.candle;
        let positions = Tensor::new(&plan.positions[..], device)?;
        let turned = |[cosines, sines]: &[Tensor; 2]| {
            Ok([cosines.index_select(&positions, 0)?, sines.index_select(&positions, 0)?])
        };
        let mut attending: Vec<Attending> = Vec::new();
        for block in &c.blocks {
            if !attending.iter().any(|attending| attending.window == block.window) {
                attending.push(Attending::new(self.attention, plan, block.window, device)?);
            }
        }
        let slots = Tensor::new(&plan.slots[..], device)?.unsqueeze(1)?;
        Ok(Prepared {
            slots: slots.broadcast_as((plan.slots.len(), 2 * c.kv_heads * c.head_dim))?.contiguous()?,
            angles: w.angles.iter().map(turned).collect::<Result<_>>()?,
            attending,
            wanted: Some(&plan.wanted[..])
                .filter(|rows| !rows.is_empty())
                .map(|rows| Tensor::new(rows, device))
                .transpose()?,
        })
    }

    /// Queries of all rows, `rows x heads x head_dim`; keys and values go to their slots.
    fn keys_and_queries(&self, index: usize, layer: &Layer, x: &Tensor, prepared: &Prepared) -> Result<Tensor> {
        let c = &self.weights.config;
        let (rows, turning) = (x.dim(0)?, c.heads + c.kv_heads);
        let normed = self.norm(x, &layer.attention_norm)?;
        let qkv = self.product(&normed, &layer.qkv, layer.qkv_bias.as_ref())?;
        let turned = qkv.narrow(1, 0, turning * c.head_dim)?.reshape((rows, turning, c.head_dim))?.contiguous()?;
        let turned = match &layer.head_norms {
            None => turned,
            Some(norms) => self.norm(&turned, &self.weights.ones)?.broadcast_mul(norms)?,
        };
        let rope = c.blocks[index].rope;
        let turned = rotate(&turned, c.ropes[rope].dims, &prepared.angles[rope])?;
        let keys = turned.narrow(1, c.heads, c.kv_heads)?.reshape((rows, c.kv_heads * c.head_dim))?;
        let values = qkv.narrow(1, turning * c.head_dim, c.kv_heads * c.head_dim)?;
        let mut both = Tensor::cat(&[&keys, &values], 1)?;
        let cache = &self.kv[index];
        if cache.dtype() == DType::F16 {
            // Beyond its range the largest stands in: an infinity would make every later row none.
            both = both.clamp(-65_504_f32, 65_504_f32)?;
        }
        cache.scatter_set(&prepared.slots, &both.to_dtype(cache.dtype())?.contiguous()?, 0)?;
        turned.narrow(1, 0, c.heads)
    }

    fn attend(&self, index: usize, queries: &Tensor, prepared: &Prepared) -> Result<Tensor> {
        let c = &self.weights.config;
        let window = c.blocks[index].window;
        let attending = prepared.attending.iter().find(|attending| attending.window == window);
        let attending = attending.expect("every block's window was prepared");
        attending.attend(Shape::of(c), &queries.contiguous()?, &self.kv[index])
    }

    /// From the attended values to the end of the block.
    fn finish_block(&self, layer: &Layer, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let c = &self.weights.config;
        let branch = self.product(attended, &layer.output, layer.output_bias.as_ref())?;
        let x = self.add(x, branch, layer.post_norms.as_ref().map(|[attention, _]| attention))?;
        let gate_up = self.product(&self.norm(&x, &layer.mlp_norm)?, &layer.gate_up, None)?;
        let gates = gate_up.narrow(1, 0, c.inner)?;
        let gates = match c.activation {
            Activation::Silu => gates.silu()?,
            Activation::GeluTanh => gates.gelu()?,
        };
        let gated = (gates * gate_up.narrow(1, c.inner, c.inner)?)?;
        let branch = self.product(&gated, &layer.down, None)?;
        self.add(&x, branch, layer.post_norms.as_ref().map(|[_, mlp]| mlp))
    }

    /// Adds a branch to the residual stream, after its norm if it has one.
    fn add(&self, x: &Tensor, branch: Tensor, norm: Option<&Tensor>) -> Result<Tensor> {
        let branch = norm.map_or(Ok(branch.clone()), |weight| self.norm(&branch, weight))?;
        x + branch
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        rms_norm(x, weight, self.weights.config.norm_eps as f32)
    }

    /// `x` times a matrix, in the weights' type; `f32` in and out.
    fn product(&self, x: &Tensor, matrix: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let out = x.to_dtype(self.weights.dtype.candle())?.matmul(&matrix.t()?)?.to_dtype(DType::F32)?;
        match bias {
            None => Ok(out),
            Some(bias) => out.broadcast_add(bias),
        }
    }
}

/// Turns the first `dims` values of each head of `x` (`rows x heads x head_dim`).
fn rotate(x: &Tensor, dims: usize, [cosines, sines]: &[Tensor; 2]) -> Result<Tensor> {
    let head_dim = x.dim(D::Minus1)?;
    let turning = x.narrow(2, 0, dims)?.contiguous()?.unsqueeze(0)?;
    let turned = rope_thd(&turning, cosines, sines)?.squeeze(0)?;
    if dims == head_dim {
        return Ok(turned);
    }
    Tensor::cat(&[&turned, &x.narrow(2, dims, head_dim - dims)?], 2)
}
