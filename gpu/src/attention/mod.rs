//! Attention of a batch over paged keys and values: one interface, two ways.

#[cfg(test)]
mod emulated;
#[cfg(feature = "cuda")]
mod paged;
mod plain;

use std::str::FromStr;

use candle_core::{DType, Device, Result, Tensor};
use cascadia_core::engine::Chunk;
use cascadia_core::ids::PageId;
use cascadia_core::limits::PAGE_TOKENS;
use cascadia_model::Config;

use crate::plan::Plan;

/// Positions that a block of the paged kernel takes; `cuda/attention.cu` has the same number.
#[cfg(any(feature = "cuda", test))]
const SPLIT: usize = 256;

/// How queries meet keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attention {
    /// By tensor operations, which copy the keys and values that they read: on every device.
    #[default]
    Plain,
    /// By a kernel of our own, which reads them where they are: on cards. An engine that is asked for it compares it with
    /// the plain way first, and takes that where they differ.
    Paged,
}

impl Attention {
    /// As settings name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Paged => "paged",
        }
    }
}

impl FromStr for Attention {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "plain" => Ok(Self::Plain),
            "paged" => Ok(Self::Paged),
            other => Err(format!("{other:?} is not a way of attention; choose plain or paged")),
        }
    }
}

impl Attention {
    /// Whether this way gives on this device what the plain way gives there, for a model's heads and each of its windows.
    ///
    /// # Errors
    /// What differs, or why it does not run.
    pub(crate) fn check(self, config: &Config, kv_dtype: DType, device: &Device) -> std::result::Result<(), String> {
        let mut windows: Vec<_> = config.blocks.iter().map(|block| block.window).collect();
        windows.sort_unstable();
        windows.dedup();
        for window in windows {
            let off =
                self.difference(Shape::of(config), window, kv_dtype, device).map_err(|error| error.to_string())?;
            // The plain way rounds scores and weights to the cache's type; the values are below one.
            let most = if kv_dtype == DType::F32 { 1e-4 } else { 2e-2 };
            if off.is_nan() || off > most {
                return Err(format!("with the window {window:?} it is off by {off}"));
            }
        }
        Ok(())
    }

    /// The largest difference between two ways over a long history and a verification.
    fn difference(self, shape: Shape, window: Option<usize>, kv_dtype: DType, device: &Device) -> Result<f32> {
        let tables: [Vec<PageId>; 2] = [(0..48).rev().map(PageId).collect(), (48..64).map(PageId).collect()];
        let chunk = |start, tokens, pages| Chunk { start, tokens, pages, rows: 0 };
        let plan = Plan::new(&[chunk(700, &[0], &tables[0]), chunk(33, &[0; 8], &tables[1])]);
        let waves = |count: usize| (0..count).map(|i| (i as f32 * 0.37 + (i / 64) as f32).sin()).collect::<Vec<_>>();
        let (rows, slots, width) = (plan.tokens.len(), 64 * PAGE_TOKENS, 2 * shape.kv_heads * shape.head_dim);
        let of = (rows, shape.heads, shape.head_dim);
        let queries = Tensor::from_vec(waves(rows * shape.heads * shape.head_dim), of, device)?;
        let cache = Tensor::from_vec(waves(slots * width), (slots, width), device)?.to_dtype(kv_dtype)?;
        let attend = |way| Prepared::new(way, &plan, window, device)?.attend(shape, &queries, &cache);
        let (wanted, found) = (attend(Self::Plain)?, attend(self)?);
        let off = (wanted - found)?.abs()?.flatten_all()?.to_vec1::<f32>()?;
        Ok(off.into_iter().fold(0.0, |most, off| if off > most || off.is_nan() { off } else { most }))
    }
}

/// What attention needs to know of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// What a score is multiplied with.
    pub(crate) scale: f32,
    /// Scores are `cap * tanh(score / cap)`.
    pub(crate) cap: Option<f32>,
}

impl Shape {
    pub(crate) fn of(c: &Config) -> Self {
        Self { heads: c.heads, kv_heads: c.kv_heads, head_dim: c.head_dim, scale: c.query_scale, cap: c.attention_cap }
    }
}

/// What a pass knows before its first block, for blocks of one window.
pub(crate) struct Prepared {
    pub(crate) window: Option<usize>,
    way: Way,
}

enum Way {
    Plain(plain::Gathering),
    #[cfg(feature = "cuda")]
    Paged(paged::Paged),
}

impl Prepared {
    pub(crate) fn new(attention: Attention, plan: &Plan, window: Option<usize>, device: &Device) -> Result<Self> {
        let way = match attention {
            Attention::Plain => Way::Plain(plain::Gathering::new(plan, window, device)?),
            #[cfg(feature = "cuda")]
            Attention::Paged => Way::Paged(paged::Paged::new(plan, window, device)?),
            #[cfg(not(feature = "cuda"))]
            Attention::Paged => {
                candle_core::bail!("the paged kernel runs on cards; this binary was built without CUDA")
            }
        };
        Ok(Self { window, way })
    }

    /// The attended values of `queries` (`rows x heads x head_dim`, `f32`), as `rows x (heads * head_dim)`, `f32`.
    /// `cache` is `slots x (keys of all heads, values of all heads)`.
    pub(crate) fn attend(&self, shape: Shape, queries: &Tensor, cache: &Tensor) -> Result<Tensor> {
        match &self.way {
            Way::Plain(gathering) => gathering.attend(shape, queries, cache),
            #[cfg(feature = "cuda")]
            Way::Paged(paged) => paged.attend(shape, queries, cache),
        }
    }
}
