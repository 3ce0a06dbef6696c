//! What the tests share: fixtures, engines, and ways of feeding the same tokens.
#![allow(dead_code)] // Each test file uses a part.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cascadia_core::engine::{Chunk, Engine, Rows};
use cascadia_core::ids::PageId;
use cascadia_model::{CpuEngine, Dtype, EngineOptions, KvDtype, SimdPath, Weights};

/// Three Llamas, and one of every other family.
pub const FIXTURES: [&str; 9] =
    ["grouped", "tied_odd", "llama3_sharded", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];

/// GGUF files of every architecture, and one that mixes all packed types.
pub const GGUFS: [&str; 7] = [
    "gguf/llama.gguf",
    "gguf/qwen2.gguf",
    "gguf/qwen3.gguf",
    "gguf/gemma2.gguf",
    "gguf/gemma3.gguf",
    "gguf/phi3.gguf",
    "gguf/mixed.gguf",
];

/// A fixture's folder or file.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/fixtures")).join(name)
}

pub fn load(folder: &Path, dtype: Dtype) -> Arc<Weights> {
    Weights::load(folder, dtype, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"))
}

pub fn engine(weights: &Arc<Weights>, threads: usize, simd: Option<SimdPath>) -> CpuEngine {
    engine_of(weights, EngineOptions { pages: 64, threads, simd, ..EngineOptions::default() })
}

/// As [`engine`], with a cache of its own type.
pub fn engine_over(weights: &Arc<Weights>, kv_dtype: KvDtype, threads: usize, simd: Option<SimdPath>) -> CpuEngine {
    engine_of(weights, EngineOptions { pages: 64, kv_dtype, threads, simd })
}

fn engine_of(weights: &Arc<Weights>, options: EngineOptions) -> CpuEngine {
    let mut engine = CpuEngine::new(Arc::clone(weights), options).unwrap();
    engine.always_use_threads();
    engine
}

/// Paths that this CPU has.
pub fn paths() -> Vec<SimdPath> {
    SimdPath::ALL.into_iter().filter(|p| p.available()).collect()
}

/// A page table of pages in no order, different for each session.
pub fn pages(session: u32) -> Vec<PageId> {
    (0..8).map(|i| PageId((i * 5 + 3 + session * 8) % 8 + session * 8)).collect()
}

/// Tokens that look random.
pub fn tokens(n: usize, vocabulary: usize, seed: u64) -> Vec<u32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocabulary as u64) as u32
        })
        .collect()
}

/// All rows of `tokens`, fed in chunks of the lengths of `cuts` by turns.
pub fn rows_in_chunks(engine: &mut impl Engine, tokens: &[u32], cuts: &[usize], session: u32) -> Vec<Vec<u32>> {
    let table = pages(session);
    let (mut start, mut all, mut rows) = (0, Vec::new(), Rows::default());
    for &cut in cuts.iter().cycle() {
        let end = (start + cut).min(tokens.len());
        if start == end {
            break;
        }
        let chunk = Chunk { start, tokens: &tokens[start..end], pages: &table, rows: end - start };
        engine.forward(&[chunk], &mut rows).unwrap();
        all.extend(bits(&rows));
        start = end;
    }
    all
}

/// Ids, and logits that transformers gave for them.
pub fn expected(name: &str, logits: &str) -> (Vec<u32>, Vec<f32>) {
    let path = fixture(name);
    let path = if path.is_dir() { path.join("expected.safetensors") } else { path.with_extension("safetensors") };
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let words = |key: &str| -> Vec<u32> {
        let data = tensors.tensor(key).unwrap();
        data.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    (words("ids"), words(logits).into_iter().map(f32::from_bits).collect())
}

/// The largest difference between two lists of numbers; they must be of one length.
pub fn worst(ours: impl IntoIterator<Item = f32>, theirs: &[f32]) -> f32 {
    let ours: Vec<f32> = ours.into_iter().collect();
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.iter().all(|x| x.is_finite()));
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Sessions at different positions in one batch, chunks across page ends, and histories that were cut back: every row is
/// within 1e-4 of what transformers gave for the fixture.
pub fn ragged_parity(name: &str, engine: &mut impl Engine) {
    let vocabulary = engine.facts().vocabulary;
    let (ids, logits) = expected(name, "logits");
    let tables: Vec<_> = (0..3).map(pages).collect();
    let wrong: Vec<u32> = ids.iter().map(|id| (id + 1) % vocabulary as u32).collect();
    // Where each session is; their chunks differ, and every third one is first written with other tokens.
    let (mut at, mut turn) = ([0; 3], 0);
    while at.iter().any(|&at| at < ids.len()) {
        let mut batch = Vec::new();
        for s in 0..3 {
            let n = (1 + (turn * 7 + s * 5) % 21).min(ids.len() - at[s]);
            if n > 0 {
                let tokens = if (turn + s) % 3 == 0 { &wrong } else { &ids };
                let tokens = &tokens[at[s]..at[s] + n];
                batch.push((s, Chunk { start: at[s], tokens, pages: &tables[s], rows: n }));
            }
        }
        let chunks: Vec<_> = batch.iter().map(|(_, chunk)| *chunk).collect();
        let mut rows = Rows::default();
        engine.forward(&chunks, &mut rows).unwrap();
        let mut row = 0;
        for (s, chunk) in batch {
            // Written with other tokens: the session is cut back to where it was, by going on from there.
            let kept = chunk.tokens == &ids[chunk.start..chunk.start + chunk.tokens.len()];
            for position in chunk.start..chunk.start + chunk.tokens.len() {
                let wanted = &logits[position * vocabulary..(position + 1) * vocabulary];
                let off = worst(rows.row(row).iter().copied(), wanted);
                assert!(!kept || off < 1e-4, "{name}, session {s}, position {position}: off by {off}");
                row += 1;
            }
            at[s] += if kept { chunk.tokens.len() } else { 0 };
        }
        turn += 1;
    }
}

/// Sets a key of a folder's config.json.
pub fn set(folder: &Path, key: &str, value: serde_json::Value) {
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

/// Rows as bits: equal means equal.
pub fn bits(rows: &Rows) -> Vec<Vec<u32>> {
    (0..rows.len()).map(|i| rows.row(i).iter().map(|x| x.to_bits()).collect()).collect()
}

/// Keys and values of `n` positions, as bits.
pub fn cache(engine: &CpuEngine, n: usize, session: u32) -> Vec<Vec<u32>> {
    let table = pages(session);
    (0..n).map(|p| engine.keys_and_values(&table, p).iter().map(|x| x.to_bits()).collect()).collect()
}

/// A folder of the test's own, empty at first, gone at the end.
pub struct Folder(PathBuf);

impl std::ops::Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn empty_folder(name: &str) -> Folder {
    let folder = std::env::temp_dir().join(format!("cascadia-model-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    Folder(folder)
}

/// A copy of a fixture that a test may damage.
pub fn copy_of(fixture_name: &str, name: &str) -> Folder {
    let folder = empty_folder(name);
    for entry in std::fs::read_dir(fixture(fixture_name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    folder
}
