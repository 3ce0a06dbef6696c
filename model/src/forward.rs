//! One ragged pass: the packed rows of all chunks through all blocks, logits for the rows wanted.
//!
//! Every thread runs [`Pass::run`] whole. Between two meetings at the barrier each writes a part of its own: tiles of
//! a product, rows of a norm, heads of an attention. No sum is ever split, so threads cannot change a bit.

#![allow(unsafe_code)] // Threads share the scratch buffers by pointer, in disjoint parts; see `Pass`.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use cascadia_core::engine::Chunk;

use crate::arena::Slab;
use crate::kernels::Isa;
use crate::kernels::attention::{Attend, Query};
use crate::kernels::product::{Activations, Product, Then};
use crate::kernels::rowwise::{Norm, Quantise, Rotate};
use crate::kv::{Cached, Kv, PAGE, Pool};
use crate::matrix::Matrix;
use crate::plan::{Item, Plan};
use crate::quant::BLOCK;
use crate::scratch::{FEW_ROWS, Own, Plane, Quantised, Scratch};
use crate::threads::Barrier;
use crate::weights::{GateUp, Layer, Projection, Weights};

/// What all threads of a pass see.
///
/// The scratch planes, the KV pages and the logits are written through pointers. The rule that makes it sound: between
/// two meetings each element has at most one thread that writes it, and then no other that reads it.
pub(crate) struct Pass<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) kv: &'a Kv,
    pub(crate) scratch: &'a Scratch,
    pub(crate) plan: &'a Plan,
    pub(crate) batch: &'a [Chunk<'a>],
    /// Tables of the model's ropes.
    pub(crate) angles: &'a [Vec<f32>],
    pub(crate) logits: Logits,
    pub(crate) isa: Isa,
    pub(crate) progress: &'a AtomicU64,
}

/// Where the wanted rows go: `rows x vocabulary`.
#[derive(Clone, Copy)]
pub(crate) struct Logits(pub(crate) *mut f32);

// SAFETY: written in disjoint tiles; see `Pass`.
unsafe impl Sync for Logits {}
// SAFETY: as above.
unsafe impl Send for Logits {}

/// One thread's view of a pass.
struct Rank<'a> {
    pass: &'a Pass<'a>,
    barrier: &'a Barrier,
    own: &'a Own,
    rank: usize,
}

/// Rows to norm or to quantise, and where the result goes.
#[derive(Clone, Copy)]
struct Source<'a> {
    plane: &'a Plane,
    rows: usize,
}

impl Pass<'_> {
    /// The share of thread `rank` in the pass.
    pub(crate) fn run(&self, rank: usize, barrier: &Barrier) {
        Rank { pass: self, barrier, own: &self.scratch.own[rank], rank }.run();
    }
}

impl Rank<'_> {
    fn run(&self) {
        let p = self.pass;
        let (w, s) = (p.weights, p.scratch);
        let last = w.layers.len() - 1;
        let rows = p.plan.rows.len();
        self.embed();
        self.barrier.wait();
        for (index, layer) in w.layers.iter().enumerate() {
            self.keys_and_queries(index, layer, Source { plane: &s.x, rows });
            if index < last {
                self.attend(index, &p.plan.all);
                self.finish_block(layer, Source { plane: &s.x, rows });
            } else {
                self.gather_wanted();
                self.attend(index, &p.plan.last);
                self.finish_block(layer, Source { plane: &s.wanted, rows: p.plan.wanted.len() });
            }
            if self.rank == 0 {
                p.progress.fetch_add(1, Ordering::Relaxed);
            }
        }
        let wanted = Source { plane: &s.wanted, rows: p.plan.wanted.len() };
        if wanted.rows > 0 {
            let head = w.head.as_ref().unwrap_or(&w.embedding);
            let x = self.normed(wanted, &w.norm, head.quantised());
            let then = w.config.logit_cap.map_or(Then::Store, Then::Cap);
            self.product(head, x, wanted.rows, (p.logits.0, head.outputs), then);
        }
    }

    /// This thread's part of `n` things, in whole units.
    fn part(&self, n: usize, unit: usize) -> Range<usize> {
        let (units, ranks) = (n.div_ceil(unit), self.barrier.ranks());
        let at = |rank: usize| (units * rank / ranks * unit).min(n);
        at(self.rank)..at(self.rank + 1)
    }

    fn embed(&self) {
        let p = self.pass;
        let width = p.weights.config.hidden;
        for row in self.part(p.plan.rows.len(), 1) {
            // SAFETY: `width` values of a row that this thread alone has until the next meeting.
            let to = unsafe { std::slice::from_raw_parts_mut(p.scratch.x.row(row), width) };
            p.weights.embedding.row(p.plan.rows[row].token, to);
            if let Some(scale) = p.weights.config.embedding_scale {
                to.iter_mut().for_each(|x| *x *= scale);
            }
        }
    }

    /// Queries, keys and values of all rows; keys and values go to their pages.
    fn keys_and_queries(&self, index: usize, layer: &Layer, x: Source<'_>) {
        let p = self.pass;
        let c = &p.weights.config;
        let qkv = &p.scratch.qkv;
        let quantised = layer.qkv.iter().any(|part| part.matrix.quantised());
        let normed = self.normed(x, &layer.attention_norm, quantised);
        for Projection { matrix, at } in &layer.qkv {
            // SAFETY: within the row: the parts of a row follow each other.
            let to = unsafe { qkv.row(0).add(*at) };
            self.product(matrix, normed, x.rows, (to, qkv.stride), Then::Store);
        }
        self.barrier.wait();
        let (group, dim) = (c.heads / c.kv_heads, c.head_dim);
        let rope = c.blocks[index].rope;
        let (width, angles) = (p.weights.ropes[rope].width(), &p.angles[rope]);
        for unit in self.part(x.rows * c.kv_heads, 1) {
            let (index_row, head) = (unit / c.kv_heads, unit % c.kv_heads);
            let row = p.plan.rows[index_row];
            let angles = angles[row.position * width..][..width].as_ptr();
            let page = p.batch[row.chunk].pages[row.position / PAGE].index();
            // SAFETY: heads of this unit, and its slot of its page, which the engine checked; no other unit has them
            // (two rows of a batch never share a slot: pages that are written belong to one session).
            unsafe {
                let at = qkv.row(index_row);
                let queries = at.add(head * group * dim);
                let key = at.add((c.heads + head) * dim);
                let value = at.add((c.heads + c.kv_heads + head) * dim);
                if let Some(norms) = &layer.head_norms {
                    for query in 0..group {
                        self.norm_head(queries.add(query * dim), &norms.queries);
                    }
                    self.norm_head(key, &norms.keys);
                }
                p.isa.rotate(&Rotate { x: queries, heads: group, head_dim: dim, half: width / 2, angles });
                p.isa.rotate(&Rotate { x: key, heads: 1, head_dim: dim, half: width / 2, angles });
                p.kv.write((index, head), (page, row.position % PAGE), key, value);
            }
        }
        self.barrier.wait();
    }

    /// Norms a head in place.
    ///
    /// # Safety
    /// `head` is a head of this thread's own.
    unsafe fn norm_head(&self, head: *mut f32, weight: &[f32]) {
        let c = &self.pass.weights.config;
        let (weight, width, eps) = (weight.as_ptr(), c.head_dim, c.norm_eps as f32);
        // SAFETY: the caller's; the weights of a head have its width.
        unsafe { self.pass.isa.rms_norm(&Norm { x: head, weight, out: head, width, eps, add: false }) };
    }

    /// The last block goes on with the wanted rows only.
    fn gather_wanted(&self) {
        let p = self.pass;
        let s = p.scratch;
        for out in self.part(p.plan.wanted.len(), 1) {
            let row = p.plan.wanted[out];
            // SAFETY: rows of two planes of equal stride; this thread alone has row `out` until the next meeting.
            unsafe { std::ptr::copy_nonoverlapping(s.x.row(row), s.wanted.row(out), s.x.stride) };
        }
    }

    fn attend(&self, layer: usize, items: &[Item]) {
        let p = self.pass;
        let c = &p.weights.config;
        let (group, dim) = (c.heads / c.kv_heads, c.head_dim);
        let most = p.isa.queries();
        let window = c.blocks[layer].window.unwrap_or(usize::MAX);
        let mut queries = [Query { q: std::ptr::null(), out: std::ptr::null_mut(), first: 0, last: 0 }; 8];
        // By turns, not by halves: later rows of a prefill see more keys.
        for unit in (self.rank..items.len() * c.kv_heads).step_by(self.barrier.ranks()) {
            let (item, head) = (items[unit / c.kv_heads], unit % c.kv_heads);
            let chunk = &p.batch[item.chunk];
            let heads = head * group..(head + 1) * group;
            // Either several rows with all heads of the group, or one row with some of them.
            for first in heads.clone().step_by(most) {
                let mut n = 0;
                for row in 0..item.count {
                    for head in first..heads.end.min(first + most) {
                        // SAFETY: within the rows, whose heads are all there.
                        let q = unsafe { p.scratch.qkv.row(item.row + row).add(head * dim) };
                        // SAFETY: as above.
                        let out = unsafe { p.scratch.attended.row(item.out + row).add(head * dim) };
                        let last = p.plan.rows[item.row + row].position;
                        queries[n] = Query { q, out, first: (last + 1).saturating_sub(window), last };
                        n += 1;
                    }
                }
                let queries = &queries[..n];
                // SAFETY: pages were checked by the engine, scores have room for eight rows of all positions, keys and
                // values were written before the last meeting, and no other unit writes these heads of these rows.
                unsafe {
                    match &p.kv.pool {
                        Pool::F32(pool) => p.isa.attend(&self.over(pool, (layer, head), chunk, queries)),
                        Pool::F16(pool) => p.isa.attend_half(&self.over(pool, (layer, head), chunk, queries)),
                    }
                }
            }
        }
        self.barrier.wait();
    }

    /// Attention of `queries` over a chunk's pages in `pool`.
    fn over<'q, C: Cached>(
        &self,
        pool: &Slab<C>,
        (layer, head): (usize, usize),
        chunk: &'q Chunk<'_>,
        queries: &'q [Query],
    ) -> Attend<'q, C> {
        let (kv, c) = (self.pass.kv, &self.pass.weights.config);
        // SAFETY: offsets within the pool, as the pages have been checked.
        let at = |offset: usize| unsafe { pool.raw().add(offset) };
        Attend {
            queries,
            pages: chunk.pages,
            keys: at(kv.keys(layer, head)),
            values: at(kv.values(layer, head)),
            page_stride: kv.page_stride,
            head_dim: c.head_dim,
            scale: c.query_scale,
            cap: c.attention_cap,
            scores: self.own.scores.row(0),
            score_stride: self.own.scores.stride,
        }
    }

    /// From the attended values to the end of the block; the result is added to `x`.
    fn finish_block(&self, layer: &Layer, x: Source<'_>) {
        if x.rows == 0 {
            return;
        }
        let s = self.pass.scratch;
        let attended = self.activations(Source { plane: &s.attended, rows: x.rows }, layer.output.quantised());
        self.add_to(x, &layer.output, attended, layer.post_norms.as_ref().map(|n| &n.attention));
        let inner = &s.inner;
        let to = (inner.row(0), inner.stride);
        let activation = self.pass.weights.config.activation;
        // This thread's blocks of 32 gated values.
        let blocks = match &layer.gate_up {
            GateUp::ByTurns(matrix) => {
                let normed = self.normed(x, &layer.mlp_norm, matrix.quantised());
                self.product(matrix, normed, x.rows, to, Then::Gate(activation));
                let tiles = self.gate_tiles(matrix.tiles());
                tiles.start / 4..tiles.end.div_ceil(4)
            }
            GateUp::Apart { gate, up } => {
                let normed = self.normed(x, &layer.mlp_norm, gate.quantised() || up.quantised());
                self.product(gate, normed, x.rows, to, Then::Store);
                // The same tiles, by the same thread.
                self.product(up, normed, x.rows, to, Then::Through(activation));
                let tiles = self.part(gate.tiles(), 2);
                tiles.start / 2..tiles.end.div_ceil(2)
            }
        };
        let mut gated = inner.floats();
        if layer.down.quantised() {
            // Each thread quantises the blocks that it has just written.
            gated = self.quantise(&s.gated, inner, 0..x.rows, blocks);
        }
        self.barrier.wait();
        self.add_to(x, &layer.down, gated, layer.post_norms.as_ref().map(|n| &n.mlp));
    }

    /// Adds a product to the residual stream, after its norm if it has one.
    fn add_to(&self, x: Source<'_>, matrix: &Matrix, from: Activations, norm: Option<&Slab<f32>>) {
        let p = self.pass;
        let Some(weight) = norm else {
            self.product(matrix, from, x.rows, (x.plane.row(0), x.plane.stride), Then::Add);
            return self.barrier.wait();
        };
        let branch = &p.scratch.branch;
        self.product(matrix, from, x.rows, (branch.row(0), branch.stride), Then::Store);
        self.barrier.wait();
        let (width, eps) = (p.weights.config.hidden, p.weights.config.norm_eps as f32);
        for row in self.part(x.rows, 1) {
            let (x, weight, out) = (branch.row(row), weight.as_ptr(), x.plane.row(row));
            // SAFETY: rows of two planes of one width; this thread alone has row `row` until the next meeting.
            unsafe { p.isa.rms_norm(&Norm { x, weight, out, width, eps, add: true }) };
        }
        self.barrier.wait();
    }

    /// Rows after the norm, as the matrices want them. Few rows: each thread for itself. Many: shared out, and met.
    fn normed(&self, x: Source<'_>, weight: &[f32], quantised: bool) -> Activations {
        let p = self.pass;
        let few = x.rows <= FEW_ROWS;
        let to = if few { self.own } else { &p.scratch.shared };
        let rows = if few { 0..x.rows } else { self.part(x.rows, 1) };
        for row in rows.clone() {
            let norm = Norm {
                x: x.plane.row(row),
                weight: weight.as_ptr(),
                out: to.normed.row(row),
                width: p.weights.config.hidden,
                eps: p.weights.config.norm_eps as f32,
                add: false,
            };
            // SAFETY: two rows of one stride; `to` is this thread's own, or these rows of it are.
            unsafe { p.isa.rms_norm(&norm) };
        }
        let mut activations = to.normed.floats();
        if quantised {
            activations = self.quantise(&to.quantised, &to.normed, rows, 0..to.normed.stride / BLOCK);
        }
        if !few {
            self.barrier.wait();
        }
        activations
    }

    /// Rows as they are, as the matrices want them.
    fn activations(&self, x: Source<'_>, quantised: bool) -> Activations {
        if !quantised {
            return x.plane.floats();
        }
        let few = x.rows <= FEW_ROWS;
        let to = if few { self.own } else { &self.pass.scratch.shared };
        let rows = if few { 0..x.rows } else { self.part(x.rows, 1) };
        let activations = self.quantise(&to.quantised, x.plane, rows, 0..x.plane.stride / BLOCK);
        if !few {
            self.barrier.wait();
        }
        activations
    }

    /// Quantises `blocks` of `rows` of a plane into `to`.
    fn quantise(&self, to: &Quantised, plane: &Plane, rows: Range<usize>, blocks: Range<usize>) -> Activations {
        let row_blocks = plane.stride / BLOCK;
        assert!(rows.end * row_blocks <= to.scales.len(), "the scratch was sized for these rows");
        for row in rows {
            let at = row * row_blocks + blocks.start;
            // SAFETY: blocks within the row, by the assertion, that no other thread writes.
            unsafe {
                self.pass.isa.quantise(&Quantise {
                    x: plane.row(row).add(blocks.start * BLOCK),
                    bytes: to.bytes.raw().add(at * BLOCK),
                    scales: to.scales.raw().add(at),
                    offsets: to.offsets.raw().add(at),
                    heads: to.heads.raw().add(at),
                    blocks: blocks.len(),
                });
            }
        }
        Activations {
            bytes: to.bytes.raw(),
            scales: to.scales.raw(),
            offsets: to.offsets.raw(),
            heads: to.heads.raw(),
            ..plane.floats()
        }
    }

    /// This thread's tiles of gates: whole blocks of 32 gated values.
    fn gate_tiles(&self, tiles: usize) -> Range<usize> {
        self.part(tiles, 4)
    }

    fn product(&self, matrix: &Matrix, x: Activations, rows: usize, out: (*mut f32, usize), then: Then) {
        let tiles = match then {
            Then::Gate(_) => self.gate_tiles(matrix.tiles()),
            _ => self.part(matrix.tiles(), 2),
        };
        let product = Product { matrix, x, rows, out: out.0, out_stride: out.1, tiles: (tiles.start, tiles.end), then };
        // SAFETY: `x` holds `rows` rows of the matrix's inputs, written before the last meeting or by this thread;
        // `out` has room for them; no other thread has these tiles.
        unsafe { self.pass.isa.multiply(&product) };
    }
}
