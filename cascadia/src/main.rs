//! Parses, dispatches, and turns what went wrong into one sentence and an exit code: 1, or 2 for a usage error.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use cascadia::cli::{Cli, Command};
use cascadia::{Failure, Outcome, bench, demo, drain, generate, nodes, pad, status, up};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers(&cli.command)).enable_all().build();
    let outcome = runtime.map_err(Failure::from).and_then(|runtime| {
        let outcome = runtime.block_on(run(cli));
        // Engine threads end with their mailboxes; nothing is worth waiting for them.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has gone, as in `cascadia status | head -1`.
        Err(failure) if is_broken_pipe(&failure) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Threads that move messages. Where engines compute beside them, half the cores: on two cores a second one only makes
/// every hop of a block wake another thread.
fn workers(command: &Command) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if matches!(command, Command::Router(_)) { cores } else { (cores / 2).max(1) }
}

async fn run(cli: Cli) -> Outcome {
    let is_node = matches!(cli.command, Command::Router(_) | Command::Drafter(_) | Command::Expert(_));
    let filter = cli.log.unwrap_or_else(|| if is_node { "info" } else { "warn" }.to_owned());
    cascadia_node::telemetry::init(&filter, cli.log_json)?;
    match cli.command {
        Command::Demo(args) => demo::run(&args).await,
        Command::Up(args) => up::run(&args).await,
        Command::Generate(args) => generate::run(&args).await,
        Command::Bench(args) => bench::run(&args).await,
        Command::Status(args) => status::run(&args).await,
        Command::Drain(args) => drain::run(&args).await,
        Command::Router(args) => nodes::router(*args).await,
        Command::Drafter(args) => nodes::drafter(*args).await,
        Command::Expert(args) => nodes::expert(*args).await,
        Command::Pad(args) => pad::run(&args),
    }
}

fn is_broken_pipe(failure: &Failure) -> bool {
    failure.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
