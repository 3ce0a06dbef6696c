//! What a pass writes on its way: allocated for the widest pass seen, and reused.

#![allow(unsafe_code)] // Threads write disjoint parts of a buffer between two barriers.

use crate::arena::{Arena, Slab, slab_bytes};
use crate::config::Config;
use crate::kernels::product::Activations;
use crate::quant::BLOCK;

/// Rows up to which every thread norms and quantises all rows for itself: cheaper than meeting.
pub(crate) const FEW_ROWS: usize = 8;

/// Rows of `f32`, padded with zeros to blocks of 32.
pub(crate) struct Plane {
    data: Slab<f32>,
    pub(crate) stride: usize,
}

impl Plane {
    fn bytes(rows: usize, width: usize) -> usize {
        slab_bytes::<f32>(rows * width.next_multiple_of(BLOCK))
    }

    fn new(arena: &mut Arena, rows: usize, width: usize) -> Self {
        let stride = width.next_multiple_of(BLOCK);
        Self { data: arena.take(rows * stride), stride }
    }

    /// The start of a row.
    pub(crate) fn row(&self, row: usize) -> *mut f32 {
        let at = row * self.stride;
        assert!(at + self.stride <= self.data.len(), "row {row} is beyond the plane");
        // SAFETY: within the slab.
        unsafe { self.data.raw().add(at) }
    }

    /// The plane as activations, not quantised.
    pub(crate) fn floats(&self) -> Activations {
        Activations {
            floats: self.data.raw(),
            stride: self.stride,
            bytes: std::ptr::null(),
            scales: std::ptr::null(),
            offsets: std::ptr::null(),
            heads: std::ptr::null(),
        }
    }
}

/// Quantised rows of any width up to the widest.
pub(crate) struct Quantised {
    pub(crate) bytes: Slab<i8>,
    pub(crate) scales: Slab<f32>,
    pub(crate) offsets: Slab<i32>,
    pub(crate) heads: Slab<i32>,
}

impl Quantised {
    fn bytes(rows: usize, width: usize) -> usize {
        let blocks = rows * width.div_ceil(BLOCK);
        slab_bytes::<i8>(blocks * BLOCK) + slab_bytes::<f32>(blocks) + 2 * slab_bytes::<i32>(blocks)
    }

    fn new(arena: &mut Arena, rows: usize, width: usize) -> Self {
        let blocks = rows * width.div_ceil(BLOCK);
        Self {
            bytes: arena.take(blocks * BLOCK),
            scales: arena.take(blocks),
            offsets: arena.take(blocks),
            heads: arena.take(blocks),
        }
    }
}

/// A thread's own buffers.
pub(crate) struct Own {
    pub(crate) normed: Plane,
    pub(crate) quantised: Quantised,
    pub(crate) scores: Plane,
}

/// Buffers for up to `rows` rows with up to `positions` positions before them.
pub(crate) struct Scratch {
    rows: usize,
    positions: usize,
    /// The residual stream.
    pub(crate) x: Plane,
    /// The residual stream of the rows that the last block goes on with.
    pub(crate) wanted: Plane,
    pub(crate) qkv: Plane,
    pub(crate) attended: Plane,
    pub(crate) inner: Plane,
    /// What a block's half gives, where it is normed before it is added; else empty.
    pub(crate) branch: Plane,
    /// `inner`, quantised. Not in `shared`, which slower threads may still read when a faster one writes this.
    pub(crate) gated: Quantised,
    /// One for each thread.
    pub(crate) own: Vec<Own>,
    /// Shared by all threads, for many rows.
    pub(crate) shared: Own,
}

impl Scratch {
    /// Buffers of the least size.
    pub(crate) fn new(config: &Config, ranks: usize, rows: usize, positions: usize) -> std::io::Result<Self> {
        let widest = config.hidden.max(config.attended()).max(config.inner);
        let branch = if config.post_norms { config.hidden } else { 0 };
        let planes = [config.hidden, config.hidden, config.qkv(), config.attended(), config.inner, branch];
        let own = |rows, positions| {
            Plane::bytes(rows, config.hidden) + Quantised::bytes(rows, widest) + Plane::bytes(FEW_ROWS, positions)
        };
        let bytes = planes.iter().map(|&width| Plane::bytes(rows, width)).sum::<usize>()
            + ranks * own(FEW_ROWS, positions)
            + own(rows, 0)
            + Quantised::bytes(rows, config.inner);
        let mut arena = Arena::new(bytes)?;
        let a = &mut arena;
        let [x, wanted, qkv, attended, inner, branch] = planes.map(|width| Plane::new(a, rows, width));
        let gated = Quantised::new(a, rows, config.inner);
        let mut own = |rows, positions| Own {
            normed: Plane::new(a, rows, config.hidden),
            quantised: Quantised::new(a, rows, widest),
            scores: Plane::new(a, FEW_ROWS, positions),
        };
        let shared = own(rows, 0);
        let own = (0..ranks).map(|_| own(FEW_ROWS, positions)).collect();
        Ok(Self { rows, positions, x, wanted, qkv, attended, inner, branch, gated, own, shared })
    }

    /// Makes room; grows by doubling, so that steady work allocates nothing.
    pub(crate) fn reserve(&mut self, config: &Config, rows: usize, positions: usize) -> std::io::Result<()> {
        if rows > self.rows || positions > self.positions {
            let grown = |has: usize, wants: usize| if wants > has { wants.next_power_of_two() } else { has };
            let (rows, positions) = (grown(self.rows, rows), grown(self.positions, positions));
            *self = Self::new(config, self.own.len(), rows, positions)?;
        }
        Ok(())
    }
}
