//! Parses, dispatches, and turns what went wrong into one sentence and an exit code: 1, or 2 for a usage error.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use cascadia::cli::{Cli, Command};
use cascadia::cluster_file::{self, LAYOUT};
use cascadia::config::{self, Settings};
use cascadia::demo::problems::held_out;
use cascadia::follow::Followed;
use cascadia::terminal::Usage;
use cascadia::{Failure, Outcome, bench, check, demo, drain, generate, nodes, pad, status, up};
use clap::CommandFactory as _;

fn main() -> ExitCode {
    let (cli, settings) = match config::read::<Cli>(std::env::args_os().collect(), &LAYOUT) {
        Ok(read) => read,
        Err(refusal) => return refusal.say(cascadia::tell),
    };
    if let (Some(settings), true) = (&settings, cli.file().is_some_and(|file| file.check)) {
        return check::run(&cli, settings);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers(&cli.command)).enable_all().build();
    let outcome = runtime.map_err(Failure::from).and_then(|runtime| {
        let outcome = runtime.block_on(run(cli, settings));
        // Engine threads end with their mailboxes; nothing is worth waiting for them.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has gone, as in `cascadia status | head -1`.
        Err(failure) if is_broken_pipe(&failure) => ExitCode::SUCCESS,
        Err(failure) => {
            cascadia::tell(&format!("error: {failure}"));
            if failure.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Threads that move messages. Where engines compute beside them, half the cores: on two cores a second one only makes
/// every hop of a block wake another thread.
fn workers(command: &Command) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if matches!(command, Command::Router(_)) { cores } else { (cores / 2).max(1) }
}

async fn run(cli: Cli, settings: Option<Settings>) -> Outcome {
    let logs = cascadia_node::telemetry::init(cli.filter(), cli.log_json)?;
    if let (Some(settings), true) = (&settings, cli.file().is_some_and(|file| file.print_config)) {
        return Ok(cascadia::print(&config::print::effective(settings))?);
    }
    let filter = cli.default_filter();
    let followed = settings.map(|settings| Followed::new(settings, logs, filter));
    match (cli.command, followed) {
        (Command::Demo(args), _) => demo::run(&args).await,
        (Command::Up(args), Some(followed)) => up::run(&args, followed).await,
        (Command::Generate(args), _) => generate::run(&args).await,
        (Command::Bench(args), _) => bench::run(&args, held_out).await,
        (Command::Status(args), _) => status::run(&args).await,
        (Command::Drain(args), _) => drain::run(&args).await,
        (Command::Router(args), Some(followed)) => nodes::router(*args, followed).await,
        (Command::Drafter(args), Some(followed)) => nodes::engine(*args, followed).await,
        (Command::Expert(args), Some(followed)) => nodes::engine(*args, followed).await,
        (Command::Config(args), _) => cluster_file::run(&args, Cli::command()),
        (Command::Pad(args), _) => pad::run(&args),
        (Command::Up(_) | Command::Router(_) | Command::Drafter(_) | Command::Expert(_), None) => {
            unreachable!("every command that a file configures comes with its settings")
        }
    }
}

fn is_broken_pipe(failure: &Failure) -> bool {
    failure.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
