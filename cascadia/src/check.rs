//! `--check`: is this a configuration? Nothing is listened on, asked or loaded.

use std::path::PathBuf;
use std::process::ExitCode;

use cascadia_core::placement::Role;
use cascadia_node::engine_config::EngineConfig;

use crate::cli::{Cli, Command};
use crate::config::Settings;
use crate::config::layers::Origin;
use crate::nodes::{EngineArgs, EngineNode};
use crate::{Failure, load, locate, up};

/// Checks a command's configuration, prints one line, or one a problem, and says how the process ends.
#[must_use]
pub fn run(cli: &Cli, settings: &Settings) -> ExitCode {
    let (problems, models) = examine(cli, settings);
    if problems.is_empty() {
        // Whoever closed standard output has the exit code.
        let _ = crate::print_line(&fine(cli, settings, &models));
        return ExitCode::SUCCESS;
    }
    problems.iter().for_each(|problem| crate::tell(&format!("error: {problem}")));
    ExitCode::from(2)
}

fn fine(cli: &Cli, settings: &Settings, models: &[PathBuf]) -> String {
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
    let away = |model: &PathBuf| matches!(locate::on_disk(model), Ok(None));
    let away: Vec<String> = models.iter().filter(|model| away(model)).map(|model| locate::taken_for(model)).collect();
    let untried = std::iter::once(untried.to_owned()).chain(away).collect::<Vec<_>>().join(", ");
    let name = settings.section().name();
    format!("ok: {name}: {} settings ({given}); not tried: {untried}", settings.values().len())
}

/// All that is wrong, one sentence each.
#[must_use]
pub fn problems(cli: &Cli, settings: &Settings) -> Vec<String> {
    examine(cli, settings).0
}

/// All that is wrong, and the models that the command would load.
fn examine(cli: &Cli, settings: &Settings) -> (Vec<String>, Vec<PathBuf>) {
    let mut found = vec![cascadia_node::telemetry::check_filter(cli.filter()).map_err(sentence)];
    let mut models = Vec::new();
    match &cli.command {
        Command::Router(args) => {
            found.extend(args.node.checked(Role::Router));
            found.push(args.config.check());
            found.push(args.http.check().map_err(sentence));
        }
        Command::Drafter(args) => engine(args, &mut found, &mut models),
        Command::Expert(args) => engine(args, &mut found, &mut models),
        Command::Up(args) => match up::configured(args, settings) {
            Err(problem) => found.push(Err(sentence(problem))),
            Ok(config) => {
                found.push(cascadia_node::net::check_address(&args.listen).map_err(sentence));
                found.extend([args.http.check().map_err(sentence), args.telemetry.check()]);
                if args.synthetic.is_none() {
                    found.push(pair(&config.drafter.engine, &config.expert.engine).map_err(sentence));
                    models.extend([config.drafter.engine.model, config.expert.engine.model]);
                }
            }
        },
        _ => {}
    }
    (found.into_iter().filter_map(Result::err).collect(), models)
}

/// What can be wrong with a node that has an engine.
fn engine<C: EngineNode>(args: &EngineArgs<C>, found: &mut Vec<Result<(), String>>, models: &mut Vec<PathBuf>) {
    let config = args.resolved();
    found.extend(args.node.checked(C::ROLE));
    found.push(config.check());
    if args.synthetic.is_none() {
        found.push(load::check(config.engine()).map(drop).map_err(sentence));
        models.push(config.engine().model.clone());
    }
}

fn pair(drafter: &EngineConfig, expert: &EngineConfig) -> Result<(), Failure> {
    match (load::check(drafter)?, load::check(expert)?) {
        (Some(one), Some(other)) => load::one_tokenizer((&drafter.model, &one), (&expert.model, &other)),
        // One of them is on the hub: that they fit is found when they are there.
        _ => Ok(()),
    }
}

fn sentence(error: impl ToString) -> String {
    error.to_string()
}
