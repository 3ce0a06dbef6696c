//! Attention with and without windows and caps.

use cascadia_core::ids::PageId;

use super::{Random, bits, isas};
use crate::kernels::Isa;
use crate::kernels::attention::{Attend, Query};
use crate::kv::{Cached, PAGE};

/// One query over pages in disorder, whose unseen slots hold NaN, against `f64`; and the same bits however many
/// queries share the call, on every path; with and without a window and a cap.
#[test]
fn attention_sees_what_it_may_and_nothing_else() {
    sees_what_it_may::<f32>(|isa, attend| {
        // SAFETY: pages, scores and queries as their fields say.
        unsafe { isa.attend(attend) }
    });
}

#[test]
fn attention_over_halves_sees_what_it_may_and_nothing_else() {
    sees_what_it_may::<u16>(|isa, attend| {
        // SAFETY: as above.
        unsafe { isa.attend_half(attend) }
    });
}

fn sees_what_it_may<C: Cached>(attend: impl Fn(Isa, &Attend<'_, C>)) {
    let mut random = Random(4);
    for case in 0..30 {
        let head_dim = 2 * (1 + random.below(50));
        let width = head_dim.next_multiple_of(16);
        let length = 1 + random.below(120);
        let pages: Vec<PageId> = (0..length.div_ceil(PAGE)).rev().map(|p| PageId(p as u32)).collect();
        let stride = PAGE * (head_dim + width);
        let mut pool = vec![C::of(f32::NAN); pages.len() * stride];
        let mut held = || random.floats(length * head_dim).into_iter().map(|x| C::of(x).widen()).collect::<Vec<_>>();
        let (keys, values) = (held(), held());
        let n = 1 + random.below(4.min(length));
        let window = [usize::MAX, 1 + random.below(length), 1 + random.below(4)][case % 3];
        let cap = [None, Some(1.5)][case % 2];
        let first = |last: usize| (last + 1).saturating_sub(window);
        // What is before all windows is never read.
        for position in first(length - n)..length {
            let (page, slot) = (pages[position / PAGE].index() * stride, position % PAGE);
            for d in 0..head_dim {
                pool[page + d * PAGE + slot] = C::of(keys[position * head_dim + d]);
                pool[page + PAGE * head_dim + slot * width + d] = C::of(values[position * head_dim + d]);
            }
        }
        let queries = random.floats(n * head_dim);
        let scale = (1.0 / (head_dim as f64).sqrt()) as f32;
        let run = |isa: Isa, which: std::ops::Range<usize>| {
            let mut out = vec![f32::NAN; n * head_dim];
            let to = out.as_mut_ptr();
            // SAFETY: rows of `n` queries.
            let each = |i: usize| unsafe {
                let (q, last) = (queries.as_ptr().add(i * head_dim), length - n + i);
                Query { q, out: to.add(i * head_dim), first: first(last), last }
            };
            let list: Vec<_> = which.map(each).collect();
            let mut scores = vec![0.0; list.len() * pages.len() * PAGE];
            let call = Attend {
                queries: &list,
                pages: &pages,
                keys: pool.as_ptr(),
                values: pool[PAGE * head_dim..].as_ptr(),
                page_stride: stride,
                head_dim,
                scale,
                cap,
                scores: scores.as_mut_ptr(),
                score_stride: pages.len() * PAGE,
            };
            attend(isa, &call);
            out
        };
        let together = run(Isa::Portable, 0..n);
        for isa in isas() {
            assert_eq!(bits(&run(isa, 0..n)), bits(&together), "case {case}, {isa:?}");
            for i in 0..n {
                let alone = &run(isa, i..i + 1)[i * head_dim..(i + 1) * head_dim];
                assert_eq!(bits(alone), bits(&together[i * head_dim..(i + 1) * head_dim]), "case {case}, {isa:?}");
            }
        }
        for i in 0..n {
            let dot = |p: usize| {
                let at = |d: usize| f64::from(queries[i * head_dim + d]) * f64::from(keys[p * head_dim + d]);
                let score = (0..head_dim).map(at).sum::<f64>() * f64::from(scale);
                cap.map_or(score, |cap| f64::from(cap) * libm::tanh(score / f64::from(cap)))
            };
            let from = first(length - n + i);
            let scores: Vec<f64> = (from..=length - n + i).map(dot).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            for d in 0..head_dim {
                let value = |p: usize| f64::from(values[(from + p) * head_dim + d]);
                let sum: f64 = weights.iter().enumerate().map(|(p, w)| w * value(p)).sum();
                let wanted = sum / weights.iter().sum::<f64>();
                let error = (f64::from(together[i * head_dim + d]) - wanted).abs();
                assert!(error < 2e-3 * wanted.abs().max(0.1), "case {case}: {error} of {wanted}");
            }
        }
    }
}
