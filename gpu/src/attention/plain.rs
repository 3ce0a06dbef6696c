//! By tensor operations alone: gather, multiply, mask, softmax. It runs on any device, and is what the other way is compared
//! with.

use candle_core::{DType, Device, Result, Tensor};

use super::Shape;
use crate::plan::{Group, Plan};

/// The groups of a pass on the device.
pub(super) struct Gathering {
    groups: Vec<Gathered>,
    /// Where each row of the batch is in the groups' order; `None` where that is the batch's.
    order: Option<Tensor>,
}

struct Gathered {
    pieces: usize,
    count: usize,
    span: usize,
    rows: Tensor,
    slots: Tensor,
    mask: Tensor,
}

impl Gathering {
    pub(super) fn new(plan: &Plan, window: Option<usize>, device: &Device) -> Result<Self> {
        let (mut groups, mut order) = (Vec::new(), vec![0; plan.tokens.len()]);
        let mut at = 0;
        for Group { pieces, count, span, rows, slots, mask } in plan.groups(window) {
            for (&row, place) in rows.iter().zip(at..) {
                order[row as usize] = place;
            }
            at += rows.len() as u32;
            groups.push(Gathered {
                pieces,
                count,
                span,
                rows: Tensor::new(rows, device)?,
                slots: Tensor::new(slots, device)?,
                mask: Tensor::from_vec(mask, (pieces, 1, count, span), device)?,
            });
        }
        let sorted = order.is_sorted();
        Ok(Self { groups, order: if sorted { None } else { Some(Tensor::new(order, device)?) } })
    }

    /// As of [`super::Prepared::attend`].
    pub(super) fn attend(&self, shape: Shape, queries: &Tensor, cache: &Tensor) -> Result<Tensor> {
        let outs = self.groups.iter().map(|group| attend_group(shape, queries, cache, group));
        let all = Tensor::cat(&outs.collect::<Result<Vec<_>>>()?, 0)?;
        match &self.order {
            None => Ok(all),
            Some(order) => all.index_select(order, 0),
        }
    }
}

fn attend_group(shape: Shape, queries: &Tensor, cache: &Tensor, group: &Gathered) -> Result<Tensor> {
    let Shape { heads, kv_heads, head_dim, .. } = shape;
    let Gathered { pieces, count, span, .. } = *group;
    let (shared, batch) = (heads / kv_heads, pieces * kv_heads);
    // Query heads of one key head stand below each other: one product for each piece and key head.
    let q = queries.index_select(&group.rows, 0)?.reshape((pieces, count, kv_heads, shared, head_dim))?;
    let q = q.permute((0, 2, 3, 1, 4))?.reshape((batch, shared * count, head_dim))?.to_dtype(cache.dtype())?;
    let gathered = cache.index_select(&group.slots, 0)?.reshape((pieces, span, 2, kv_heads, head_dim))?;
    let keys = gathered.narrow(2, 0, 1)?.squeeze(2)?.permute((0, 2, 3, 1))?.reshape((batch, head_dim, span))?;
    let values = gathered.narrow(2, 1, 1)?.squeeze(2)?.permute((0, 2, 1, 3))?.reshape((batch, span, head_dim))?;
    let scores = q.matmul(&keys)?.to_dtype(DType::F32)?;
    let scores = (scores * f64::from(shape.scale))?;
    let scores = match shape.cap {
        None => scores,
        Some(cap) => ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?,
    };
    let scores = scores.reshape((pieces, heads, count, span))?.broadcast_add(&group.mask)?;
    let weights = candle_nn::ops::softmax_last_dim(&scores)?.reshape((batch, shared * count, span))?;
    let out = weights.to_dtype(cache.dtype())?.matmul(&values)?.to_dtype(DType::F32)?;
    let out = out.reshape((pieces, heads, count, head_dim))?.transpose(1, 2)?;
    out.reshape((pieces * count, heads * head_dim))
}
