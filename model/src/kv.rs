//! Pages of keys and values: the cache that sessions' histories fill.
//!
//! `[layer][page][keys | values]`; keys `[kv head][dimension][16 slots]`, values `[kv head][16 slots][dimension padded]`.
//! Who owns a page is not known here: page tables come with every chunk.

#![allow(unsafe_code)] // Threads write disjoint slots through pointers; see `Kv::write`.

use std::io;

use cascadia_core::limits::PAGE_TOKENS;
use half::f16;

use crate::arena::{Arena, Plain, Slab, slab_bytes};
use crate::config::Config;

/// Slots in a page; the attention kernel has one lane for each.
pub(crate) const PAGE: usize = PAGE_TOKENS;
const _: () = assert!(PAGE == 16, "lanes of the attention kernel");

/// What keys and values are held in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// As they are computed.
    #[default]
    F32,
    /// Rounded to binary16: half the memory, and other logits.
    F16,
}

impl KvDtype {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F32, Self::F16];

    /// As settings name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    /// Bytes of a value.
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

impl std::fmt::Display for KvDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for KvDtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| format!("{name:?} is not a type of keys and values; choose f32 or f16"))
    }
}

/// A key's or value's number as a page holds it.
pub(crate) trait Cached: Plain {
    fn of(x: f32) -> Self;
    fn widen(self) -> f32;
}

impl Cached for f32 {
    fn of(x: f32) -> Self {
        x
    }

    fn widen(self) -> f32 {
        self
    }
}

/// Bits of a binary16.
impl Cached for u16 {
    fn of(x: f32) -> Self {
        // Beyond its range the largest stands in: an infinity would make every later row none.
        let largest = f16::MAX.to_f32();
        f16::from_f32(x.clamp(-largest, largest)).to_bits()
    }

    fn widen(self) -> f32 {
        f16::from_bits(self).to_f32()
    }
}

/// The memory of all pages.
pub(crate) enum Pool {
    F32(Slab<f32>),
    F16(Slab<u16>),
}

/// All pages of an engine.
pub(crate) struct Kv {
    pub(crate) pages: usize,
    /// Values in a page of one layer.
    pub(crate) page_stride: usize,
    pub(crate) pool: Pool,
    /// Dimensions of a value, padded to whole registers.
    value_width: usize,
    head_dim: usize,
    kv_heads: usize,
    layers: usize,
}

/// Values in a page of one layer.
fn page_stride(config: &Config) -> usize {
    config.kv_heads * PAGE * (config.head_dim + config.head_dim.next_multiple_of(16))
}

/// Bytes that one page takes, all layers together.
pub(crate) fn page_bytes(config: &Config, dtype: KvDtype) -> usize {
    config.blocks.len() * page_stride(config) * dtype.bytes()
}

impl Kv {
    pub(crate) fn new(config: &Config, pages: usize, dtype: KvDtype) -> io::Result<Self> {
        let (page_stride, layers) = (page_stride(config), config.blocks.len());
        let values = layers
            .checked_mul(pages)
            .and_then(|n| n.checked_mul(page_stride))
            .filter(|&n| n < isize::MAX as usize / 8)
            .ok_or_else(|| io::Error::other("more than can be addressed"))?;
        let pool = match dtype {
            KvDtype::F32 => Pool::F32(Arena::new(slab_bytes::<f32>(values))?.take(values)),
            KvDtype::F16 => Pool::F16(Arena::new(slab_bytes::<u16>(values))?.take(values)),
        };
        let (head_dim, kv_heads) = (config.head_dim, config.kv_heads);
        Ok(Self { pages, page_stride, pool, value_width: head_dim.next_multiple_of(16), head_dim, kv_heads, layers })
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

    /// Writes a head's key and value at a slot of a page.
    ///
    /// # Safety
    /// Layer, head, page and slot exist, no other thread has this head of this slot until all have met, and `key` and
    /// `value` are heads.
    pub(crate) unsafe fn write(
        &self,
        (layer, head): (usize, usize),
        (page, slot): (usize, usize),
        key: *const f32,
        value: *const f32,
    ) {
        let keys = self.keys(layer, head) + page * self.page_stride + slot;
        let values = self.values(layer, head) + page * self.page_stride + slot * self.value_width;
        // SAFETY: the caller's.
        unsafe {
            match &self.pool {
                Pool::F32(pool) => put(pool.raw(), (keys, values), self.head_dim, (key, value)),
                Pool::F16(pool) => put(pool.raw(), (keys, values), self.head_dim, (key, value)),
            }
        }
    }

    /// The keys and values at a slot, layer by layer, for tests.
    pub(crate) fn slot(&self, page: usize, slot: usize) -> Vec<f32> {
        let widened = |at: usize| match &self.pool {
            Pool::F32(pool) => pool[at].widen(),
            Pool::F16(pool) => pool[at].widen(),
        };
        let mut all = Vec::new();
        for layer in 0..self.layers {
            for head in 0..self.kv_heads {
                let keys = self.keys(layer, head) + page * self.page_stride;
                all.extend((0..self.head_dim).map(|d| widened(keys + d * PAGE + slot)));
                let values = self.values(layer, head) + page * self.page_stride + slot * self.value_width;
                all.extend((0..self.head_dim).map(|d| widened(values + d)));
            }
        }
        all
    }
}

/// # Safety
/// As of [`Kv::write`].
unsafe fn put<C: Cached>(
    pool: *mut C,
    (keys, values): (usize, usize),
    head_dim: usize,
    (key, value): (*const f32, *const f32),
) {
    // SAFETY: the caller's.
    unsafe {
        for d in 0..head_dim {
            *pool.add(keys + d * PAGE) = C::of(*key.add(d));
            *pool.add(values + d) = C::of(*value.add(d));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_to_even_and_never_infinite() {
        for (x, held) in
            [(1.0, 1.0), (1.0 + 1.0 / 2048.0, 1.0), (1e9, 65504.0), (-1e9, -65504.0), (6e-8, 5.960_464_5e-8)]
        {
            assert_eq!(<u16 as Cached>::of(x).widen(), held);
        }
        assert!(<u16 as Cached>::of(f32::NAN).widen().is_nan());
        assert!(
            "F16".parse() == Ok(KvDtype::F16) && "bf16".parse::<KvDtype>().is_err_and(|e| e.contains("f32 or f16"))
        );
    }
}
