//! `cascadia demo`: a whole cluster on this machine solves held-out problems with the shipped pair.

pub mod compare;
pub mod problems;
mod stream;
pub mod table;

use std::path::{Path, PathBuf};

use crate::bench::problem::Problem;
use crate::cli::DemoArgs;
use crate::cluster::{ClusterConfig, LocalCluster, Models};
use crate::colours::Marks;
use crate::load::{self, Model, Pair};
use crate::pad::{PadArgs, millions};
use crate::strategy_spec::StrategySpec;
use crate::{Failure, Outcome, pad, terminal};
use compare::{ALL, SHORT};
use table::Table;

/// Problems a strategy solves with the bare pair: enough to tell accuracies apart, few enough for a minute in all.
const PROBLEMS: usize = 200;

/// Problems with the padded pair, whose expert takes twenty times as long.
const PADDED_PROBLEMS: usize = 12;

/// Parameters of the padded expert of the second table.
const PADDED: u64 = 100_000_000;

/// Answers that are streamed before anything is measured.
const STREAMED: usize = 3;

/// What a padded model is good for, and what not.
const CAPTION: &str = "The padded expert computes the same function as the original, bit for bit, and is no better \
than it: this table shows what size costs, and nothing else.";

/// Runs the command.
///
/// # Errors
/// When the shipped pair is not found, the cluster does not come up, or any answer fails.
pub async fn run(args: &DemoArgs) -> Outcome {
    let folder = load::shipped_pair()?;
    let drafter = Model::load(&folder.join("drafter"), "q8_0")?;
    let asked = args.problems.map(|problems| problems as usize);
    if let Some(size) = args.pad_expert {
        let table = padded(&drafter, &folder, size, asked.unwrap_or(PADDED_PROBLEMS), args).await?;
        return show(&table, args);
    }
    let pair = Pair::new(drafter.clone(), Model::load(&folder.join("expert"), "q8_0")?)?;
    let table = bare(&pair, asked.unwrap_or(PROBLEMS), args).await?;
    show(&table, args)?;
    if args.json {
        return Ok(());
    }
    let table = padded(&drafter, &folder, PADDED, asked.unwrap_or(usize::MAX).min(PADDED_PROBLEMS), args).await?;
    show(&table, args)
}

/// The shipped pair: three answers to read, then all strategies.
async fn bare(pair: &Pair, count: usize, args: &DemoArgs) -> Result<Table, Failure> {
    let cluster = start(pair).await?;
    if !args.json {
        let marks = Marks::of_stdout(Marks::Brackets);
        crate::print_line(&format!(
            "A cluster of 1 router, 2 drafters ({} parameters) and 2 experts ({}), on loopback.",
            millions(pair.drafter.parameters()),
            millions(pair.expert.parameters()),
        ))?;
        let problems = problems::held_out();
        stream::show(&cluster.client().await?, &pair.expert.tokenizer, &problems[..STREAMED], marks).await?;
    }
    let table = measure(&cluster, pair, &ALL, count, args.sessions, false).await?;
    cluster.stop().await;
    Ok(table)
}

/// The same drafter with a padded expert: the strategies that matter there.
async fn padded(drafter: &Model, folder: &Path, size: u64, count: usize, args: &DemoArgs) -> Result<Table, Failure> {
    let expert = folder.join("expert");
    let pair = Pair::new(drafter.clone(), Model::load(&padded_expert(&expert, size)?, "q8_0")?)?;
    let cluster = start(&pair).await?;
    let table = measure(&cluster, &pair, &SHORT, count, args.sessions, true).await?;
    cluster.stop().await;
    Ok(table)
}

async fn start(pair: &Pair) -> Result<LocalCluster, Failure> {
    let config = ClusterConfig::default();
    let models = Models::of_pair(pair, &config.drafter, &config.expert, config.drafters + config.experts);
    Ok(LocalCluster::start(config, models).await?)
}

async fn measure(
    cluster: &LocalCluster,
    pair: &Pair,
    specs: &[StrategySpec],
    count: usize,
    sessions: u32,
    padded: bool,
) -> Result<Table, Failure> {
    let mut problems = problems::held_out();
    if count > problems.len() {
        crate::tell(&format!("there are {} held-out problems; all are used", problems.len()));
    }
    let client = cluster.client().await?;
    let hidden = indicatif::ProgressBar::hidden();
    // The last problem opens connections and touches memory; it counts only if all are asked for.
    let last: Vec<Problem> = problems.last().cloned().into_iter().collect();
    compare::run(&client, specs, &last, 1, &hidden).await?;
    problems.truncate(count);
    let bar = terminal::bar((problems.len() * specs.len()) as u64, "{bar:30} {pos}/{len} {msg}");
    let scores = compare::run(&client, specs, &problems, sessions as usize, &bar).await?;
    bar.finish_and_clear();
    Ok(Table {
        expert_parameters: pair.expert.parameters(),
        drafter_parameters: pair.drafter.parameters(),
        problems: problems.len(),
        padded,
        sessions,
        rows: table::rows(specs, &scores),
    })
}

fn show(table: &Table, args: &DemoArgs) -> Outcome {
    if args.json {
        crate::print_line(&table.to_json())?;
        return Ok(());
    }
    let expert = if table.padded { "padded expert" } else { "expert" };
    crate::print_line(&format!(
        "{expert} {} parameters, drafter {}; {} held-out problems, temperature 0, {} at a time",
        millions(table.expert_parameters),
        millions(table.drafter_parameters),
        table.problems,
        if table.sessions == 1 { "one session".to_owned() } else { format!("{} sessions", table.sessions) },
    ))?;
    crate::print_line(&table.to_text())?;
    if table.padded {
        crate::print_line(CAPTION)?;
    }
    Ok(())
}

/// The shipped expert padded to `size`, from the cache or made now.
fn padded_expert(expert: &Path, size: u64) -> Result<PathBuf, Failure> {
    let out = cache_folder().join(format!("padded-{}-{size}", contents(expert)?));
    if out.join("config.json").is_file() {
        return Ok(out);
    }
    // Written beside and renamed, so that a folder of this name is always whole.
    let draft = out.with_extension(format!("{}", std::process::id()));
    let padded = pad::pad(&PadArgs { model: expert.to_owned(), to: Some(size), out: draft.clone() });
    let renamed = padded.and_then(|_| std::fs::rename(&draft, &out).map_err(Failure::from));
    if renamed.is_err() {
        let _ = std::fs::remove_dir_all(&draft);
    }
    if renamed.is_ok() {
        crate::tell(&format!("the padded expert is kept in {} for the next time", out.display()));
    }
    // Another demo may have been faster.
    if out.join("config.json").is_file() { Ok(out) } else { renamed.map(|()| out) }
}

/// Where a padded expert is kept: the user's cache, else the folder for temporary files.
fn cache_folder() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = var("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let cache = cache.or_else(|| var("HOME").map(|home| home.join(".cache")));
    let folder = cache.map(|cache| cache.join("cascadia"));
    folder
        .filter(|folder| std::fs::create_dir_all(folder).is_ok())
        .unwrap_or_else(|| std::env::temp_dir().join("cascadia"))
}

/// A name for what a model folder holds.
fn contents(folder: &Path) -> Result<String, Failure> {
    let mut hash = 0;
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let path = folder.join(file);
        let bytes = std::fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        hash = cascadia_core::history::hash_bytes(hash, &bytes);
    }
    Ok(format!("{hash:016x}"))
}
