//! Causal attention of a few queries over one session's pages.
//!
//! A page of keys is stored dimension by dimension, so that lane = key and a score is one chain along the head; a page
//! of values is stored key by key, so that lane = dimension and an output is one chain along the keys. The sum of the
//! softmax has one lane for each position modulo 16. Nothing depends on which queries share the loads. A window begins at
//! any position, and its pages are still the pages: positions before it have no weight, and their values are not read.

use cascadia_core::ids::PageId;

use super::lanes::Lanes;
use super::rowwise::{capped, exp};
use crate::kv::PAGE;

/// One head of one row.
#[derive(Clone, Copy)]
pub(crate) struct Query {
    pub q: *const f32,
    pub out: *mut f32,
    /// The first position it sees: zero, or where its window begins.
    pub first: usize,
    /// The last position it sees: its own.
    pub last: usize,
}

/// Up to eight queries that share a KV head and a page table.
#[derive(Clone, Copy)]
pub(crate) struct Attend<'a, C> {
    pub queries: &'a [Query],
    pub pages: &'a [PageId],
    /// Keys and values of this layer and head in page 0.
    pub keys: *const C,
    pub values: *const C,
    /// Values from one page to the next.
    pub page_stride: usize,
    pub head_dim: usize,
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub cap: Option<f32>,
    /// Room for `queries.len()` rows of scores.
    pub scores: *mut f32,
    /// Floats from one row of scores to the next: at least 16 for each page.
    pub score_stride: usize,
}

/// How sixteen numbers of the cache become lanes.
pub(crate) trait Load: Copy {
    /// # Safety
    /// As of [`Lanes::load`].
    unsafe fn load<L: Lanes>(from: *const Self) -> L::F;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L::F {
        L::load(from)
    }
}

/// Bits of a binary16, widened exactly.
impl Load for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L::F {
        L::load_half(from)
    }
}

/// Attention over a cache of `f32`; `queries` may not be more than [`Lanes::ROWS`].
#[inline(always)]
pub(crate) unsafe fn attend<L: Lanes>(a: &Attend<'_, f32>) {
    over::<L, f32>(a);
}

/// Attention over a cache of binary16.
#[inline(always)]
pub(crate) unsafe fn attend_half<L: Lanes>(a: &Attend<'_, u16>) {
    over::<L, u16>(a);
}

#[inline(always)]
unsafe fn over<L: Lanes, C: Load>(a: &Attend<'_, C>) {
    match a.queries.len() {
        0 => {}
        1 => queries::<L, C, 1, 4, 4>(a),
        2 => queries::<L, C, 2, 4, 4>(a),
        3 => queries::<L, C, 3, 2, 4>(a),
        4 => queries::<L, C, 4, 2, 4>(a),
        5 if L::ROWS > 4 => queries::<L, C, 5, 1, 2>(a),
        6 if L::ROWS > 4 => queries::<L, C, 6, 1, 2>(a),
        7 if L::ROWS > 4 => queries::<L, C, 7, 1, 2>(a),
        8 if L::ROWS > 4 => queries::<L, C, 8, 1, 2>(a),
        _ => unreachable!("no path holds more than eight queries"),
    }
}

/// `Q` queries, `P` pages of keys and `R` registers of values at a time.
#[inline(always)]
unsafe fn queries<L: Lanes, C: Load, const Q: usize, const P: usize, const R: usize>(a: &Attend<'_, C>) {
    let last = a.queries.iter().map(|q| q.last).max().unwrap_or(0);
    let pages = last / PAGE + 1;
    let mut page = a.queries.iter().map(|q| q.first).min().unwrap_or(0) / PAGE;
    while page + P <= pages {
        score_pages::<L, C, Q, P>(a, page);
        page += P;
    }
    while page < pages {
        score_pages::<L, C, Q, 1>(a, page);
        page += 1;
    }
    let mut sums = [0.0; Q];
    for (q, sum) in sums.iter_mut().enumerate() {
        let query = a.queries.get_unchecked(q);
        *sum = softmax::<L>(a.scores.add(q * a.score_stride), query.first / PAGE, query.last / PAGE + 1);
    }
    let width = a.head_dim.div_ceil(16);
    let mut column = 0;
    while column + R <= width {
        weigh_values::<L, C, Q, R>(a, column, &sums);
        column += R;
    }
    while column < width {
        weigh_values::<L, C, Q, 1>(a, column, &sums);
        column += 1;
    }
}

#[inline(always)]
unsafe fn score_pages<L: Lanes, C: Load, const Q: usize, const P: usize>(a: &Attend<'_, C>, first: usize) {
    let mut keys = [a.keys; P];
    for (p, keys) in keys.iter_mut().enumerate() {
        *keys = keys.add(a.pages.get_unchecked(first + p).index() * a.page_stride);
    }
    let mut query = [std::ptr::null(); Q];
    for (q, query) in query.iter_mut().enumerate() {
        *query = a.queries.get_unchecked(q).q;
    }
    let mut sums = [[L::splat(0.0); Q]; P];
    for d in 0..a.head_dim {
        for (p, sums) in sums.iter_mut().enumerate() {
            let k = C::load::<L>(keys[p].add(d * PAGE));
            for (q, sum) in sums.iter_mut().enumerate() {
                *sum = L::fma(k, L::splat(*query[q].add(d)), *sum);
            }
        }
    }
    let scale = L::splat(a.scale);
    for (p, sums) in sums.iter().enumerate() {
        for (q, &sum) in sums.iter().enumerate() {
            let start = (first + p) * PAGE;
            let query = a.queries.get_unchecked(q);
            let seen = (query.last + 1).saturating_sub(start);
            let unseen = query.first.saturating_sub(start);
            let mut score = L::mul(sum, scale);
            if let Some(cap) = a.cap {
                score = capped::<L>(score, cap);
            }
            if unseen > 0 {
                let none = L::splat(f32::NEG_INFINITY);
                score = L::select_first(none, unseen.min(PAGE), score);
            }
            if seen < PAGE {
                score = L::select_first(score, seen, L::splat(f32::NEG_INFINITY));
            }
            L::store(a.scores.add(q * a.score_stride + start), score);
        }
    }
}

/// Turns scores into `exp(score - largest)` and returns their sum.
#[inline(always)]
unsafe fn softmax<L: Lanes>(scores: *mut f32, first: usize, pages: usize) -> f32 {
    let mut largest = L::splat(f32::NEG_INFINITY);
    for page in first..pages {
        largest = L::max(largest, L::load(scores.add(page * PAGE)));
    }
    let largest = L::splat(L::largest(largest));
    let mut sum = L::splat(0.0);
    for page in first..pages {
        let at = scores.add(page * PAGE);
        let e = exp::<L>(L::sub(L::load(at), largest));
        L::store(at, e);
        sum = L::add(sum, e);
    }
    L::sum(sum)
}

/// `R` registers of the output, from register `column`, for all queries.
#[inline(always)]
unsafe fn weigh_values<L: Lanes, C: Load, const Q: usize, const R: usize>(
    a: &Attend<'_, C>,
    column: usize,
    sums: &[f32; Q],
) {
    let width = a.head_dim.div_ceil(16) * 16;
    // Between these all queries see every key; the rest is each query's own, so that none reads a key it may not see.
    let from = a.queries.iter().map(|q| q.first).max().unwrap_or(0);
    let to = a.queries.iter().map(|q| q.last + 1).min().unwrap_or(0).max(from);
    let mut outs = [[L::splat(0.0); R]; Q];
    for (q, out) in outs.iter_mut().enumerate() {
        let query = a.queries.get_unchecked(q);
        weigh_alone::<L, C, R>(a, (q, column), query.first..from.min(query.last + 1), out);
    }
    let mut position = from;
    while position < to {
        let page = a.pages.get_unchecked(position / PAGE).index();
        let (first, n) = (position % PAGE, (to - position).min(PAGE - position % PAGE));
        let values = a.values.add(page * a.page_stride + first * width + column * 16);
        for slot in 0..n {
            let mut v = [L::splat(0.0); R];
            for (c, v) in v.iter_mut().enumerate() {
                *v = C::load::<L>(values.add(slot * width + c * 16));
            }
            for (q, out) in outs.iter_mut().enumerate() {
                let weight = L::splat(*a.scores.add(q * a.score_stride + position + slot));
                for (c, out) in out.iter_mut().enumerate() {
                    *out = L::fma(v[c], weight, *out);
                }
            }
        }
        position += n;
    }
    for (q, out) in outs.iter_mut().enumerate() {
        let query = a.queries.get_unchecked(q);
        weigh_alone::<L, C, R>(a, (q, column), to.max(query.first)..query.last + 1, out);
        let sum = L::splat(sums[q]);
        for (c, &out) in out.iter().enumerate() {
            let first = (column + c) * 16;
            let n = (a.head_dim - first).min(16);
            L::store_first(query.out.add(first), n, L::div(out, sum));
        }
    }
}

/// The part of a query's values that the others of its call do not see.
#[inline(always)]
unsafe fn weigh_alone<L: Lanes, C: Load, const R: usize>(
    a: &Attend<'_, C>,
    (q, column): (usize, usize),
    positions: std::ops::Range<usize>,
    out: &mut [L::F; R],
) {
    let width = a.head_dim.div_ceil(16) * 16;
    for position in positions {
        let page = a.pages.get_unchecked(position / PAGE).index();
        let values = a.values.add(page * a.page_stride + position % PAGE * width + column * 16);
        let weight = L::splat(*a.scores.add(q * a.score_stride + position));
        for (c, out) in out.iter_mut().enumerate() {
            *out = L::fma(C::load::<L>(values.add(c * 16)), weight, *out);
        }
    }
}
