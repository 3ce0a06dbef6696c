//! Microseconds a pass costs: `cargo run --release -p cascadia-model --example speed -- MODEL [THREADS] [f32|q8_0|q4_k] [SIMD]`.

use std::path::Path;
use std::time::Instant;

use cascadia_core::engine::{Chunk, Engine, Rows};
use cascadia_core::ids::PageId;
use cascadia_model::{CpuEngine, Dtype, EngineOptions, Weights};

/// Positions before the rows that are timed.
const HISTORY: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("give a model: a folder or a GGUF file")?;
    let threads = args.next().map_or(Ok(1), |t| t.parse())?;
    let dtype = args.next().map_or(Ok(Dtype::Q8_0), |d| d.parse::<Dtype>())?;
    let simd = args.next().map(|p| p.parse()).transpose()?;
    let begun = Instant::now();
    let weights = Weights::load(Path::new(&folder), dtype, &mut |_| {})?;
    println!(
        "{:.2} M parameters, {dtype}, {threads} threads, loaded in {:.2} s",
        weights.parameters() as f64 / 1e6,
        begun.elapsed().as_secs_f64()
    );
    let mut engine = CpuEngine::new(weights, EngineOptions { pages: 64, threads, simd, ..EngineOptions::default() })?;
    let vocabulary = engine.facts().vocabulary as u32;
    let room = engine.facts().context.min(1024);
    let tokens: Vec<u32> = (0..1024).map(|i| (i * 7919 + 13) % vocabulary).collect();
    let pages: Vec<PageId> = (0..64).map(PageId).collect();
    let mut rows = Rows::default();

    let prefill = 512.min(room);
    let (us, _) = time(3, || {
        let chunk = Chunk { start: 0, tokens: &tokens[..prefill], pages: &pages, rows: 1 };
        engine.forward(&[chunk], &mut rows)
    })?;
    println!("prefill {prefill}: {us:9.0} us, {:.0} tokens/s", prefill as f64 * 1e6 / us);
    let history = HISTORY.min(room / 2);
    let mut alone = 0.0;
    for m in [1, 2, 3, 4, 5, 6, 7, 8, 16, 32] {
        let (us, best) = time(60, || {
            let chunk = Chunk { start: history, tokens: &tokens[history..history + m], pages: &pages, rows: m };
            engine.forward(&[chunk], &mut rows)
        })?;
        if m == 1 {
            alone = us;
        }
        let (ratio, rate) = (us / alone, m as f64 * 1e6 / us);
        println!("m = {m:2}: {us:9.1} us (best {best:9.1}), {ratio:.2} x m = 1, {rate:.0} tokens/s");
    }
    Ok(())
}

/// The median and the least of several runs, after one that warms up.
fn time<E>(runs: usize, mut run: impl FnMut() -> Result<(), E>) -> Result<(f64, f64), E> {
    run()?;
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let begun = Instant::now();
        run()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[runs / 2], times[0]))
}
