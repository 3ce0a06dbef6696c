//! Pages of keys and values: the cache that sessions' histories fill.
//!
//! `[layer][page][keys | values]`; keys `[kv head][dimension][16 slots]`, values `[kv head][16 slots][dimension padded]`.
//! Who owns a page is not known here: page tables come with every chunk.

use std::io;

use cascadia_core::limits::PAGE_TOKENS;

use crate::arena::{Arena, Slab, slab_bytes};
use crate::config::Config;

/// Slots in a page; the attention kernel has one lane for each.
pub(crate) const PAGE: usize = PAGE_TOKENS;
const _: () = assert!(PAGE == 16, "lanes of the attention kernel");

/// All pages of an engine.
pub(crate) struct Kv {
    pub(crate) pages: usize,
    /// Floats in a page of one layer.
    pub(crate) page_stride: usize,
    /// Dimensions of a value, padded to whole registers.
    pub(crate) value_width: usize,
    head_dim: usize,
    kv_heads: usize,
    data: Slab<f32>,
}

impl Kv {
    pub(crate) fn new(config: &Config, pages: usize) -> io::Result<Self> {
        let value_width = config.head_dim.next_multiple_of(16);
        let page_stride = config.kv_heads * PAGE * (config.head_dim + value_width);
        let floats = config
            .blocks
            .len()
            .checked_mul(pages)
            .and_then(|n| n.checked_mul(page_stride))
            .filter(|&n| n < isize::MAX as usize / 8)
            .ok_or_else(|| io::Error::other("more than can be addressed"))?;
        let data = Arena::new(slab_bytes::<f32>(floats))?.take(floats);
        Ok(Self { pages, page_stride, value_width, head_dim: config.head_dim, kv_heads: config.kv_heads, data })
    }

    /// Offset of the keys of a head in page 0.
    pub(crate) fn keys(&self, layer: usize, head: usize) -> usize {
        layer * self.pages * self.page_stride + head * self.head_dim * PAGE
    }

    /// Offset of the values of a head in page 0.
    pub(crate) fn values(&self, layer: usize, head: usize) -> usize {
        let after_keys = self.kv_heads * self.head_dim * PAGE;
        layer * self.pages * self.page_stride + after_keys + head * PAGE * self.value_width
    }

    /// The first float; offsets are from here.
    pub(crate) fn raw(&self) -> *mut f32 {
        self.data.raw()
    }

    /// The keys and values at a slot, layer by layer, for tests.
    pub(crate) fn slot(&self, page: usize, slot: usize) -> Vec<f32> {
        let layers = self.data.len() / (self.pages * self.page_stride);
        let mut all = Vec::new();
        for layer in 0..layers {
            for head in 0..self.kv_heads {
                let keys = self.keys(layer, head) + page * self.page_stride;
                all.extend((0..self.head_dim).map(|d| self.data[keys + d * PAGE + slot]));
                let values = self.values(layer, head) + page * self.page_stride + slot * self.value_width;
                all.extend_from_slice(&self.data[values..values + self.head_dim]);
            }
        }
        all
    }
}
