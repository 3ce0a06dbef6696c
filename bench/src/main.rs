//! `cargo run --release -p cascadia-bench -- engine`: the engine beside llama.cpp, in one run, with the same weights and
//! threads.
//!
//! Absent on purpose: assertions about time. What each row is and what was measured stands in README.md.

#![forbid(unsafe_code)]

mod engine;
mod llama;
mod machine;
mod passes;
mod sampling;
mod sessions;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use cascadia::Outcome;
use clap::{Args, Parser, Subcommand};

/// Measures what Cascadia claims.
#[derive(Debug, Parser)]
#[command(name = "cascadia-bench", max_term_width = 110)]
struct Cli {
    /// What to measure.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The CPU engine: passes, sampling, concurrent sessions, speculation.
    Engine(EngineArgs),
}

/// Arguments of `engine`.
#[derive(Args, Debug)]
struct EngineArgs {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,

    /// Where bench/llama.cpp/build was told to build, or any folder with llama-bench and llama-server; without it, its
    /// column stays empty.
    #[arg(long, value_name = "DIR")]
    llama_cpp: Option<PathBuf>,

    /// Parameters of the padded expert.
    #[arg(long, value_name = "SIZE", value_parser = cascadia::pad::parse_size, default_value = "500M")]
    size: u64,

    /// Threads of every engine, ours and theirs.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,

    /// How often everything is measured; medians are shown.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// Held-out problems that one session solves with and without speculation.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=500))]
    problems: u32,

    /// Where the models are written, once [default: target/bench].
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Command::Engine(args) = Cli::parse().command;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome: Outcome = runtime.map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(engine::run(&args));
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cascadia::tell(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}
