//! A row has one value: its bits depend on nothing but the tokens before it.

mod common;

use cascadia_core::engine::{Chunk, Engine, Rows};
use cascadia_model::{Dtype, KvDtype};
use common::{FIXTURES, GGUFS, bits, cache, engine, engine_over, fixture, load, pages, paths, rows_in_chunks, tokens};

const LENGTH: usize = 75;

/// One by one, all at once, page by page, across pages, blocks of a verification, ragged.
const ALONE: [&[usize]; 6] = [&[1], &[LENGTH], &[16], &[17, 15], &[6], &[2, 3, 4, 5, 7, 8, 9, 1]];

/// The same numbers of rows, from the first position on and past windows and pages, in a sixth of the passes: where there
/// are fewer cores than threads, each pass takes milliseconds of meetings.
const TOGETHER: [&[usize]; 3] = [&[LENGTH], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 14], &[61, 1, 1, 1, 2, 3, 6]];

/// Every family in every dtype, and GGUF files as they are: among them all packed types; and every family over a cache
/// of either type.
fn models() -> Vec<(&'static str, Dtype, KvDtype)> {
    let folders = FIXTURES.into_iter().flat_map(|name| Dtype::ALL.map(|dtype| (name, dtype)));
    let all = folders.chain(GGUFS.map(|name| (name, Dtype::Q8_0))).map(|(name, dtype)| (name, dtype, KvDtype::F32));
    all.chain(FIXTURES.map(|name| (name, Dtype::Q8_0, KvDtype::F16))).collect()
}

#[test]
fn chunking_threads_and_paths_change_no_bit() {
    for (name, dtype, kv) in models() {
        let weights = load(&fixture(name), dtype);
        let ids = tokens(LENGTH, weights.config().vocabulary, 7);
        let mut plain = engine_over(&weights, kv, 1, Some(paths()[0]));
        let rows = rows_in_chunks(&mut plain, &ids, &[1], 0);
        let cached = cache(&plain, LENGTH, 0);
        for path in paths() {
            for (threads, ways) in [(1, &ALONE[..]), (3, &TOGETHER)] {
                let mut engine = engine_over(&weights, kv, threads, Some(path));
                for cuts in ways {
                    let what = format!("{name} {dtype}, {kv} cache, {path:?}, {threads} threads, chunks of {cuts:?}");
                    assert!(rows == rows_in_chunks(&mut engine, &ids, cuts, 1), "{what}: logits");
                    assert!(cached == cache(&engine, LENGTH, 1), "{what}: keys and values");
                }
            }
        }
    }
}

#[test]
fn a_batch_changes_no_bit() {
    for (name, dtype, kv) in models() {
        let weights = load(&fixture(name), dtype);
        let vocabulary = weights.config().vocabulary;
        let sessions: Vec<_> = (0..5).map(|s| tokens(40 + 7 * s, vocabulary, s as u64)).collect();
        let mut alone = engine_over(&weights, kv, 1, None);
        let wanted: Vec<_> = (0..5).map(|s| rows_in_chunks(&mut alone, &sessions[s], &[1], s as u32)).collect();
        for threads in [1, 2] {
            let mut together = engine_over(&weights, kv, threads, None);
            let (mut at, mut turn) = ([0; 5], 0);
            while (0..5).any(|s| at[s] < sessions[s].len()) {
                // Chunks of 1 to 13 tokens, and from none to all of their rows.
                let mut batch = Vec::new();
                let tables: Vec<_> = (0..5).map(pages).collect();
                for s in 0..5 {
                    let n = (1 + (turn * 5 + s * 3) % 13).min(sessions[s].len() - at[s]);
                    if n > 0 && (turn + s) % 4 != 3 {
                        let tokens = &sessions[s][at[s]..at[s] + n];
                        batch.push((s, Chunk { start: at[s], tokens, pages: &tables[s], rows: (turn + s) % (n + 1) }));
                    }
                }
                let chunks: Vec<_> = batch.iter().map(|(_, c)| *c).collect();
                let mut rows = Rows::default();
                together.forward(&chunks, &mut rows).unwrap();
                let mut rows = bits(&rows).into_iter();
                for (s, chunk) in batch {
                    at[s] += chunk.tokens.len();
                    for wanted in &wanted[s][at[s] - chunk.rows..at[s]] {
                        assert!(
                            rows.next().as_ref() == Some(wanted),
                            "{name} {dtype}, {kv} cache: session {s} up to {}",
                            at[s]
                        );
                    }
                }
                assert!(rows.next().is_none());
                turn += 1;
            }
            for (s, ids) in sessions.iter().enumerate() {
                let n = ids.len();
                assert!(
                    cache(&alone, n, s as u32) == cache(&together, n, s as u32),
                    "{name} {dtype}, {kv} cache: cache of session {s}"
                );
            }
        }
    }
}

/// Truncation is nothing but writing the positions again; what was there must not shine through.
#[test]
fn rewritten_positions_leave_no_trace() {
    for (name, dtype, kv) in models() {
        let weights = load(&fixture(name), dtype);
        let vocabulary = weights.config().vocabulary;
        let ids = tokens(LENGTH, vocabulary, 1);
        let mut clean = engine_over(&weights, kv, 1, None);
        let wanted = rows_in_chunks(&mut clean, &ids, &[LENGTH], 0);
        let mut engine = engine_over(&weights, kv, 1, None);
        let mut other = tokens(LENGTH + 40, vocabulary, 2);
        other[..30].copy_from_slice(&ids[..30]);
        rows_in_chunks(&mut engine, &other, &[11], 0);
        // Back to position 30, on the other tokens; the pages still hold 115 positions of the rejected history.
        let table = pages(0);
        let mut rows = Rows::default();
        for at in (30..LENGTH).step_by(5) {
            let chunk = Chunk { start: at, tokens: &ids[at..at + 5], pages: &table, rows: 5 };
            engine.forward(&[chunk], &mut rows).unwrap();
            assert!(bits(&rows) == wanted[at..at + 5], "{name} {dtype}, {kv} cache: rows from {at}");
        }
    }
}

/// A page that two sessions share is read, and where both pass the prefix in one batch nothing differs.
#[test]
fn a_shared_prefix_is_read_in_place() {
    let weights = load(&fixture("grouped"), Dtype::Q8_0);
    let ids = tokens(60, weights.config().vocabulary, 3);
    let mut engine = engine(&weights, 1, None);
    let wanted = rows_in_chunks(&mut engine, &ids, &[60], 0);
    let mut table = pages(1);
    table[..2].copy_from_slice(&pages(0)[..2]);
    let mut rows = Rows::default();
    let chunk = Chunk { start: 32, tokens: &ids[32..], pages: &table, rows: 28 };
    engine.forward(&[chunk], &mut rows).unwrap();
    assert!(bits(&rows) == wanted[32..]);
}

/// A cache of halves is another model, near the first.
#[test]
fn a_cache_of_halves_is_near_and_has_a_name_of_its_own() {
    for name in FIXTURES {
        let weights = load(&fixture(name), Dtype::F32);
        let ids = tokens(LENGTH, weights.config().vocabulary, 5);
        let rows = KvDtype::ALL.map(|kv| {
            let mut engine = engine_over(&weights, kv, 1, None);
            let rows = rows_in_chunks(&mut engine, &ids, &[9], 0);
            (engine.facts().fingerprint.clone(), rows.concat().into_iter().map(f32::from_bits).collect::<Vec<_>>())
        });
        let [(whole, exact), (half, near)] = rows;
        assert!(whole == weights.fingerprint() && half != whole && half.len() == whole.len());
        let largest = exact.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let apart = exact.iter().zip(&near).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(apart > 0.0 && apart < 5e-3 * largest.max(1.0), "{name}: {apart} of {largest}");
        assert_eq!(weights.page_bytes(KvDtype::F32), 2 * weights.page_bytes(KvDtype::F16));
    }
}

#[test]
fn a_batch_that_breaks_the_contract_is_refused() {
    let weights = load(&fixture("grouped"), Dtype::F32);
    let mut engine = engine(&weights, 1, None);
    let table = pages(0);
    let ok = Chunk { start: 0, tokens: &[1, 2], pages: &table, rows: 1 };
    let far = [cascadia_core::ids::PageId(64)];
    let cases = [
        (Chunk { tokens: &[], ..ok }, "has no tokens"),
        (Chunk { rows: 3, ..ok }, "wants 3 rows"),
        (Chunk { start: 255, ..ok }, "beyond the model's 256"),
        (Chunk { start: 15, pages: &table[..1], ..ok }, "has 1 pages and needs 2"),
        (Chunk { tokens: &[96], ..ok }, "outside the vocabulary"),
        (Chunk { pages: &far, ..ok }, "names page 64"),
    ];
    let mut rows = Rows::default();
    for (chunk, problem) in cases {
        let error = engine.forward(&[ok, chunk], &mut rows).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
    engine.forward(&[ok], &mut rows).unwrap();
    assert_eq!(rows.len(), 1);
    engine.forward(&[], &mut rows).unwrap();
    assert!(rows.is_empty());
    assert_eq!(engine.progress().load(std::sync::atomic::Ordering::Relaxed), 2);
}
