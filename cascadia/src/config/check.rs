//! `--check`: is this a configuration? Nothing is listened on, asked or loaded.

use std::path::PathBuf;
use std::process::ExitCode;

use cascadia_core::placement::Role;
use cascadia_drafter_node::DrafterConfig;
use cascadia_expert_node::ExpertConfig;

use super::layers::Origin;
use super::settings::Settings;
use crate::cli::{Cli, Command};
use crate::{Failure, load, locate, up};

/// Checks a command's configuration, prints one line, or one a problem, and says how the process ends.
#[must_use]
pub fn run(cli: &Cli, settings: &Settings) -> ExitCode {
    let problems = problems(cli, settings);
    if problems.is_empty() {
        // Whoever closed standard output has the exit code.
        let _ = crate::print_line(&fine(cli, settings));
        return ExitCode::SUCCESS;
    }
    problems.iter().for_each(|problem| eprintln!("error: {problem}"));
    ExitCode::from(2)
}

fn fine(cli: &Cli, settings: &Settings) -> String {
    let count = |what: &str, from: &dyn Fn(&Origin) -> bool| match settings.count(from) {
        0 => None,
        number => Some(format!("{number} {what}")),
    };
    let file = settings.path().map(|path| format!("from {}", path.display())).unwrap_or_default();
    let given = [
        count("typed", &|origin| *origin == Origin::Flag),
        count("from the environment", &|origin| *origin == Origin::Variable),
        count(&file, &|origin| matches!(origin, Origin::File(_))),
        count("by default", &|origin| *origin == Origin::Default),
    ];
    let given = given.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let untried = match cli.command {
        Command::Router(_) => "ports, etcd",
        Command::Up(_) => "ports, weights",
        _ => "ports, etcd, weights",
    };
    let hub = if models(cli, settings).iter().all(|model| locate::on_disk(model).is_some()) { "" } else { ", the hub" };
    let name = settings.section().name();
    format!("ok: {name}: {} settings ({given}); not tried: {untried}{hub}", settings.values().len())
}

/// The models that a command would load.
fn models(cli: &Cli, settings: &Settings) -> Vec<PathBuf> {
    match &cli.command {
        Command::Drafter(args) if args.synthetic.is_none() => vec![args.resolved().model],
        Command::Expert(args) if args.synthetic.is_none() => vec![args.resolved().model],
        Command::Up(args) if args.synthetic.is_none() => {
            up::configured(args, settings).map_or_else(|_| Vec::new(), |c| vec![c.drafter.model, c.expert.model])
        }
        _ => Vec::new(),
    }
}

/// All that is wrong, one sentence each.
#[must_use]
pub fn problems(cli: &Cli, settings: &Settings) -> Vec<String> {
    let mut found = vec![cascadia_node::telemetry::check_filter(cli.filter()).map_err(sentence)];
    match &cli.command {
        Command::Router(args) => {
            found.extend(args.node.checked(Role::Router));
            found.push(args.config.check());
            found.push(args.http.check().map_err(sentence));
        }
        Command::Drafter(args) => {
            let config = args.resolved();
            found.extend(args.node.checked(Role::Drafter));
            found.push(config.check());
            if args.synthetic.is_none() {
                found.push(load::check(&config.model, (&config.dtype, &config.kv_dtype)).map(drop).map_err(sentence));
            }
        }
        Command::Expert(args) => {
            let config = args.resolved();
            found.extend(args.node.checked(Role::Expert));
            found.push(config.check());
            if args.synthetic.is_none() {
                found.push(load::check(&config.model, (&config.dtype, &config.kv_dtype)).map(drop).map_err(sentence));
            }
        }
        Command::Up(args) => match up::configured(args, settings) {
            Err(problem) => found.push(Err(sentence(problem))),
            Ok(config) => {
                found.push(cascadia_node::net::check_address(&args.listen).map_err(sentence));
                found.extend([args.http.check().map_err(sentence), args.telemetry.check()]);
                if args.synthetic.is_none() {
                    found.push(pair(&config.drafter, &config.expert).map_err(sentence));
                }
            }
        },
        _ => {}
    }
    found.into_iter().filter_map(Result::err).collect()
}

fn pair(drafter: &DrafterConfig, expert: &ExpertConfig) -> Result<(), Failure> {
    let one = load::check(&drafter.model, (&drafter.dtype, &drafter.kv_dtype))?;
    let other = load::check(&expert.model, (&expert.dtype, &expert.kv_dtype))?;
    match (one, other) {
        (Some(one), Some(other)) => load::one_tokenizer((&drafter.model, &one), (&expert.model, &other)),
        // One of them is on the hub: that they fit is found when they are there.
        _ => Ok(()),
    }
}

fn sentence(error: impl ToString) -> String {
    error.to_string()
}
