//! The tensor engine on candle's CPU device: logits against transformers (the fixtures of `model/tests`) and against the
//! CPU engine. What a card computes differs in its kernels and in nothing else of this crate.

#[path = "../../model/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use cascadia_core::engine::{Chunk, Engine, Rows};
use cascadia_core::ids::PageId;
use cascadia_gpu::{Attention, Device, TensorEngine, TensorOptions, TensorType, TensorWeights};
use cascadia_model::Dtype;
use common::{FIXTURES, GGUFS, expected, fixture, load, pages, ragged_parity, rows_in_chunks, tokens, worst};

fn tensors(name: &str, dtype: TensorType, context: Option<usize>) -> Arc<TensorWeights> {
    let weights = TensorWeights::load(&fixture(name), &Device::cpu(), dtype, context, &mut |_| {});
    weights.unwrap_or_else(|error| panic!("{error}"))
}

fn engine(weights: &Arc<TensorWeights>, kv_dtype: TensorType) -> TensorEngine {
    TensorEngine::new(Arc::clone(weights), TensorOptions { pages: 64, kv_dtype, attention: Attention::Plain }).unwrap()
}

fn exact(name: &str) -> TensorEngine {
    engine(&tensors(name, TensorType::F32, None), TensorType::F32)
}

fn numbers(rows: &[Vec<u32>]) -> Vec<f32> {
    rows.iter().flatten().map(|&bits| f32::from_bits(bits)).collect()
}

/// All at once, and in chunks that cross pages: past every window.
#[test]
fn logits_are_those_of_transformers() {
    for name in FIXTURES.into_iter().chain(GGUFS) {
        let (ids, logits) = expected(name, "logits");
        let mut engine = exact(name);
        for cuts in [&[ids.len()][..], &[17, 15, 1]] {
            let off = worst(numbers(&rows_in_chunks(&mut engine, &ids, cuts, 0)), &logits);
            assert!(off < 1e-4, "{name} in chunks of {cuts:?}: off by {off}");
        }
    }
}

#[test]
fn ragged_batches_and_truncation_keep_parity() {
    for name in FIXTURES {
        ragged_parity(name, &mut exact(name));
    }
}

/// More rows than attend in one product, of other tokens than the fixtures', and many sessions of one token each beside
/// them: as the CPU engine has it.
#[test]
fn long_chunks_and_wide_batches_agree_with_the_cpu_engine() {
    for name in FIXTURES {
        let mut ours = exact(name);
        let mut theirs = common::engine(&load(&fixture(name), Dtype::F32), 2, None);
        let facts = ours.facts().clone();
        let n = 200.min(facts.context);
        let ids = tokens(n, facts.vocabulary, 11);
        let table: Vec<PageId> = (0..13).rev().map(|i| PageId(i * 3 + 2)).collect();
        let long = Chunk { start: 0, tokens: &ids, pages: &table, rows: n };
        // Their first token, each on a page that the long one does not have.
        let single: Vec<[PageId; 1]> = (0..12).map(|i| [PageId(i * 3)]).collect();
        let first = |i: usize, rows| Chunk { start: 0, tokens: &ids[i..=i], pages: &single[i], rows };
        let batch: Vec<_> = (0..12).map(|i| first(i, i % 2)).chain([long]).collect();
        let (mut a, mut b) = (Rows::default(), Rows::default());
        ours.forward(&batch, &mut a).unwrap();
        theirs.forward(&batch, &mut b).unwrap();
        let off = worst(a.data, &b.data);
        assert!(off < 1e-4, "{name}: off by {off}");
        // Their second, in a batch with the end of the long one written again.
        let second = |i: usize| Chunk { start: 1, tokens: &ids[i..=i], pages: &single[i], rows: 1 };
        let tail = Chunk { start: n - 5, tokens: &ids[n - 5..], pages: &table, rows: 5 };
        let batch: Vec<_> = [tail].into_iter().chain((0..12).map(second)).collect();
        let (mut a, mut b) = (Rows::default(), Rows::default());
        ours.forward(&batch, &mut a).unwrap();
        theirs.forward(&batch, &mut b).unwrap();
        let off = worst(a.data, &b.data);
        assert!(off < 1e-4, "{name}, then: off by {off}");
    }
}

/// Prefill without rows writes the same keys and values.
#[test]
fn rows_may_be_left_out() {
    let (ids, logits) = expected("gemma3", "logits");
    let mut engine = exact("gemma3");
    let (table, mut rows) = (pages(1), Rows::default());
    let (last, before) = ids.split_last().unwrap();
    engine.forward(&[Chunk { start: 0, tokens: before, pages: &table, rows: 0 }], &mut rows).unwrap();
    assert!(rows.is_empty());
    let chunk = Chunk { start: before.len(), tokens: &[*last], pages: &table, rows: 1 };
    engine.forward(&[chunk], &mut rows).unwrap();
    let off = worst(rows.data, &logits[before.len() * engine.facts().vocabulary..]);
    assert!(off < 1e-4, "off by {off}");
}

#[test]
fn a_short_context_takes_the_short_factors() {
    let (ids, logits) = expected("phi3", "short_logits");
    let mut engine = engine(&tensors("phi3", TensorType::F32, Some(32)), TensorType::F32);
    let off = worst(numbers(&rows_in_chunks(&mut engine, &ids[..32], &[32], 0)), &logits);
    assert!(off < 1e-4, "off by {off}");
}

/// Not a promise of quality, but a guard against a sum or a norm in the wrong type.
#[test]
fn half_types_stay_near_and_have_names_of_their_own() {
    let names = ["qwen2", "gemma2", "gemma3", "phi3"];
    for (name, dtype, kv) in names.into_iter().flat_map(|name| {
        [
            (name, TensorType::BF16, TensorType::BF16),
            (name, TensorType::F16, TensorType::F16),
            (name, TensorType::F32, TensorType::BF16),
        ]
    }) {
        let (ids, logits) = expected(name, "logits");
        let mut engine = engine(&tensors(name, dtype, None), kv);
        let rows = numbers(&rows_in_chunks(&mut engine, &ids, &[16, 7], 0));
        let error: f64 = rows.iter().zip(&logits).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let power: f64 = logits.iter().map(|&b| f64::from(b).powi(2)).sum();
        let relative = (error / power).sqrt();
        assert!(relative > 1e-6 && relative < 0.03, "{name} in {dtype} over {kv}: relative error {relative}");
        let (facts, exact) = (engine.facts(), exact(name));
        assert!(!facts.row_exact && facts.fingerprint != exact.facts().fingerprint);
        assert_ne!(exact.facts().fingerprint, load(&fixture(name), Dtype::F32).fingerprint());
        assert_eq!(
            facts.page_bytes * exact.facts().pages * 4,
            exact.facts().page_bytes * 64 * if kv == TensorType::F32 { 4 } else { 2 }
        );
    }
}

/// The kernel runs on cards only: whoever asks for it here gets the plain way, and is told.
#[test]
fn what_does_not_run_is_passed_over() {
    let weights = tensors("gemma2", TensorType::F32, None);
    let options = TensorOptions { pages: 64, kv_dtype: TensorType::F32, attention: Attention::Paged };
    let mut engine = TensorEngine::new(weights, options).unwrap();
    assert!(engine.passed_over().is_some_and(|reason| reason.contains("runs on cards")));
    assert_eq!(exact("gemma2").passed_over(), None);
    ragged_parity("gemma2", &mut engine);
}

#[test]
fn what_breaks_the_contract_is_refused() {
    let weights = tensors("qwen3", TensorType::F32, None);
    for pages in [0, usize::MAX / 2, u32::MAX as usize] {
        assert!(
            TensorEngine::new(
                Arc::clone(&weights),
                TensorOptions { pages, kv_dtype: TensorType::F32, attention: Attention::Plain }
            )
            .is_err()
        );
    }
    let mut engine = engine(&weights, TensorType::F32);
    let mut rows = Rows::default();
    for (tokens, page, named) in [(&[9999][..], 0, "token 9999"), (&[1], 64, "page 64"), (&[], 0, "no tokens")] {
        let chunk = Chunk { start: 0, tokens, pages: &[PageId(page)], rows: 1 };
        let error = engine.forward(&[chunk], &mut rows).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
    engine.forward(&[], &mut rows).unwrap();
    assert!(rows.is_empty());
    assert!(Device::cuda(0).is_err_and(|error| error.to_string().contains("--features cuda")));
}
