//! What a device does with a model of a real one's shape and random weights:
//!
//!     cargo run --release -p cascadia-gpu --features cuda --example card -- --device cuda
//!
//! Decoding, verification and prefill, the bytes that each must read, and how that compares with the bandwidth which the
//! device showed when it copied a tensor. Rates are medians of the rounds.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use cascadia_core::engine::{Chunk, Engine, Rows};
use cascadia_core::ids::PageId;
use cascadia_core::pages::pages_for;
use cascadia_gpu::{Attention, Device, TensorEngine, TensorOptions, TensorType, TensorWeights};
use cascadia_model::{Activation, BlockConfig, Config, Family, RopeConfig, RopeScaling};
use clap::Parser;

#[derive(Parser)]
#[command(name = "card", max_term_width = 110)]
struct Args {
    /// cpu, or a card: cuda, cuda:N.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// A model of two blocks, to see that this runs.
    #[arg(long)]
    tiny: bool,
    /// What weights, keys and values are held in: bf16, f16 or f32.
    #[arg(long, default_value = "bf16")]
    dtype: TensorType,
    /// plain, or the kernel: paged.
    #[arg(long, default_value = "plain")]
    attention: Attention,
    /// Positions of each session before a pass.
    #[arg(long, default_value_t = 512)]
    history: usize,
    /// How often each row is measured.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
}

/// The shape of a model with 7 billion parameters, or of one that any machine computes.
fn shape(tiny: bool) -> Config {
    let (hidden, inner, blocks, heads, kv_heads, vocabulary) =
        if tiny { (64, 160, 2, 4, 2, 320) } else { (4096, 14_336, 32, 32, 8, 32_768) };
    let head_dim = hidden / heads;
    let rope = RopeConfig { theta: 1e6, dims: head_dim, scaling: RopeScaling::None, attention_factor: 1.0 };
    Config {
        family: Family::Llama,
        hidden,
        inner,
        blocks: vec![BlockConfig { window: None, rope: 0 }; blocks],
        heads,
        kv_heads,
        head_dim,
        norm_eps: 1e-5,
        activation: Activation::Silu,
        query_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_cap: None,
        logit_cap: None,
        embedding_scale: None,
        qkv_bias: false,
        output_bias: false,
        head_norms: false,
        post_norms: false,
        ropes: vec![rope],
        vocabulary,
        context: 8192,
        tied: false,
        eos: Vec::new(),
    }
}

fn device(name: &str) -> Result<Device, Box<dyn std::error::Error>> {
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::cpu()),
        None if name == "cuda" => Ok(Device::cuda(0)?),
        Some(("cuda", ordinal)) => Ok(Device::cuda(ordinal.parse()?)?),
        _ => Err(format!("{name:?} is no device; choose cpu, cuda or cuda:N").into()),
    }
}

/// Seconds of a pass in which each of `sessions` has `tokens` after its history: the median of the rounds.
fn measure(
    engine: &mut TensorEngine,
    args: &Args,
    sessions: usize,
    (start, tokens): (usize, usize),
) -> Result<f64, String> {
    let each = pages_for(start + tokens);
    let tables: Vec<Vec<PageId>> =
        (0..sessions).map(|s| (0..each).map(|i| PageId((s * each + i) as u32)).collect()).collect();
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 37 % 320).collect();
    let rows = tokens.min(8);
    let batch: Vec<_> = tables.iter().map(|pages| Chunk { start, tokens: &ids, pages, rows }).collect();
    let mut out = Rows::default();
    let mut seconds = Vec::new();
    // The first passes choose kernels and take memory.
    for round in 0..args.rounds + 3 {
        let begun = Instant::now();
        engine.forward(&batch, &mut out).map_err(|error| error.to_string())?;
        if round >= 3 {
            seconds.push(begun.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let device = device(&args.device)?;
    let copied = device.bandwidth(if args.tiny { 1 << 22 } else { 1 << 30 })?;
    let weights = Arc::new(TensorWeights::random(shape(args.tiny), &device, args.dtype)?);
    let (parameters, bytes) = (weights.config().parameters(), weights.bytes());
    let pages = 64 * pages_for(args.history + 8).max(pages_for(512));
    let slot = weights.page_bytes(args.dtype) as f64 / 16.0;
    let options = TensorOptions { pages, kv_dtype: args.dtype, attention: args.attention };
    let mut engine = TensorEngine::new(weights, options)?;
    if let Some(reason) = engine.passed_over() {
        println!("the plain attention is measured: {reason}");
    }
    println!(
        "{}: {:.2} G parameters in {}, {} positions before each pass; a copy moved {:.0} GB/s",
        args.device,
        parameters as f64 / 1e9,
        args.dtype,
        args.history,
        copied / 1e9
    );
    println!("{:34}{:>10}{:>12}{:>10}{:>9}", "", "ms", "tokens/s", "GB/s", "of it");
    let rows = [(1, 1), (8, 1), (64, 1), (1, 8), (8, 8), (32, 8), (1, 512)];
    for (sessions, tokens) in rows {
        let start = if tokens == 512 { 0 } else { args.history };
        let seconds = measure(&mut engine, args, sessions, (start, tokens))?;
        let name = match tokens {
            1 => format!("decoding, {sessions} at once"),
            512 => "a prompt of 512".into(),
            _ => format!("verification of {tokens}, {sessions} at once"),
        };
        // All weights but the embedding, and every history once.
        let read = bytes as f64 + (sessions * (start + tokens)) as f64 * slot;
        let (rate, speed) = ((sessions * tokens) as f64 / seconds, read / seconds);
        println!("{name:34}{:>10.2}{rate:>12.0}{:>10.0}{:>7.0} %", seconds * 1e3, speed / 1e9, 100.0 * speed / copied);
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
