//! `cascadia bench`: drives a running cluster and says how it did.
//!
//! [`arrivals`] and [`workload`] say what is sent and when, [`drive`] sends each [`request`] to a [`target`] ([`router`] over
//! gRPC, or [`openai`]), [`measure`] makes figures of what came back, [`report`] prints them. [`router_cost`] starts its own cluster ([`children`]) and reads what its router
//! says of itself ([`scrape`]). Only `drive` and the targets have a clock.

mod args;
pub mod arrivals;
pub mod children;
pub mod drive;
pub mod measure;
pub mod openai;
pub mod problem;
pub mod report;
pub mod request;
pub mod router;
pub mod router_cost;
pub mod scrape;
pub mod target;
pub mod workload;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use args::{BenchArgs, BenchCommand, LoadArgs};
use tokio::sync::watch;

use crate::signals::Signals;
use crate::strategy_spec::StrategySpec;
use crate::terminal::{self, Failure, Outcome};
use arrivals::Arrival;
use drive::{Arrivals, Load};
use measure::{Figures, Record};
use problem::Problem;
use report::Run;
use request::{RequestError, RequestOptions, RunOptions, is_refusal};
use target::Target;
use workload::{Item, Ruler};

/// Runs the command; `problems` are asked where nothing is said of prompts.
///
/// # Errors
/// When the server cannot be reached, a file cannot be read, or a strategy had none of its requests answered.
pub async fn run(args: &BenchArgs, problems: impl FnOnce() -> Vec<Problem>) -> Outcome {
    if let Some(BenchCommand::Router(args)) = &args.command {
        return router_cost::run(args).await;
    }
    let args = &args.load;
    let target = Arc::new(match &args.openai {
        Some(url) => Target::open_ai(url).await?,
        None => Target::router(&args.server).await?,
    });
    let plan = Plan::new(args, &target, problems).await?;
    let cut = interrupt()?;
    let mut runs = Vec::new();
    for spec in specs(args) {
        match plan.measure(&target, spec, cut.clone()).await {
            Ok(run) => runs.push(run),
            Err(failure) => {
                // What was measured before is worth its time.
                show(args, &runs)?;
                return Err(failure);
            }
        }
        if *cut.borrow() {
            terminal::tell("interrupted; this is what was measured until then");
            return show(args, &runs);
        }
    }
    show(args, &runs)?;
    let nothing = |run: &&Run| run.1.completed == 0;
    let unanswered: Vec<&str> = runs.iter().filter(nothing).map(|(name, _)| name.as_str()).collect();
    if unanswered.is_empty() {
        return Ok(());
    }
    Err(format!("no request was answered under {}", unanswered.join(", ")).into())
}

fn show(args: &LoadArgs, runs: &[Run]) -> Outcome {
    if runs.is_empty() {
        return Ok(());
    }
    if args.json {
        let json = serde_json::json!({"load": load_name(args), "runs": report::to_json(runs)});
        terminal::print_line(&json.to_string())?;
    } else {
        terminal::print_line(&load_name(args))?;
        terminal::print(&report::table(runs))?;
    }
    Ok(())
}

/// Nothing, which leaves the choice to the server, or each strategy in turn.
fn specs(args: &LoadArgs) -> Vec<Option<StrategySpec>> {
    if args.strategy.is_empty() { vec![None] } else { args.strategy.iter().cloned().map(Some).collect() }
}

fn load_name(args: &LoadArgs) -> String {
    let whom = args.openai.as_deref().unwrap_or(&args.server);
    match (args.rate, &args.trace) {
        (Some(rate), _) => format!("{whom}, open loop, Poisson arrivals at {rate} a second, seed {}", args.seed),
        (None, Some(trace)) => format!("{whom}, open loop, {} at {} x its speed", trace.display(), args.speedup),
        (None, None) => format!("{whom}, closed loop, {} at a time", args.concurrency.unwrap_or(1)),
    }
}

/// True once Ctrl-C was pressed or SIGTERM came.
fn interrupt() -> std::io::Result<watch::Receiver<bool>> {
    let mut signals = Signals::new()?;
    let (sender, receiver) = watch::channel(false);
    // Ends with the process.
    tokio::spawn(async move {
        signals.next().await;
        let _ = sender.send(true);
        // Receivers that outlive their sender would wake at once.
        sender.closed().await;
    });
    Ok(receiver)
}

/// What every run of a comparison has alike.
struct Plan<'a> {
    args: &'a LoadArgs,
    items: Arc<Vec<Item>>,
    arrivals: Arrivals,
    requests: usize,
}

impl<'a> Plan<'a> {
    async fn new(
        args: &'a LoadArgs,
        target: &Target,
        problems: impl FnOnce() -> Vec<Problem>,
    ) -> Result<Self, Failure> {
        let output = args.output_len.unwrap_or(args.max_tokens);
        // With a duration and no number of requests, as many as it takes.
        let requests = match (args.requests, args.duration) {
            (Some(requests), _) => requests as usize,
            (None, Some(_)) => usize::MAX,
            (None, None) => DEFAULT_REQUESTS,
        };
        if let Some(file) = &args.trace {
            let trace = read(file, arrivals::parse)?;
            let trace: Vec<Arrival> = trace.into_iter().take(requests).collect();
            let times = trace.iter().map(|arrival| arrival.due(args.speedup)).collect();
            let lengths: Vec<(u32, u32)> = trace.iter().map(|arrival| (arrival.input, arrival.output)).collect();
            let items = of_lengths(args, target, &lengths).await?;
            return Ok(Self { args, requests: lengths.len(), items: Arc::new(items), arrivals: Arrivals::Open(times) });
        }
        let mut items = match (&args.prompts, args.input_len) {
            (Some(file), _) => read(file, |text| workload::parse(text, output))?,
            (None, Some(input)) => {
                of_lengths(args, target, &vec![(input, output); requests.min(DISTINCT_PROMPTS)]).await?
            }
            (None, None) => workload::of_problems(problems(), output),
        };
        for item in &mut items {
            item.exact = args.output_len.is_some();
        }
        let arrivals = match args.rate {
            Some(rate) => Arrivals::Open(times(rate, args.seed, requests, args.duration)),
            None => Arrivals::Closed(args.concurrency.unwrap_or(1) as usize),
        };
        Ok(Self { args, items: Arc::new(items), arrivals, requests })
    }

    /// One run: warm-up, load, figures.
    async fn measure(
        &self,
        target: &Arc<Target>,
        spec: Option<StrategySpec>,
        cut: watch::Receiver<bool>,
    ) -> Result<Run, Failure> {
        let name = spec.as_ref().map_or_else(|| "default".to_owned(), ToString::to_string);
        let ask = RunOptions { spec, ..ask(self.args) };
        let load = |arrivals, requests, phase: &str| Load {
            target: target.clone(),
            ask: ask.clone(),
            items: self.items.clone(),
            arrivals,
            requests,
            duration: self.args.duration,
            seed: Some(self.args.seed),
            salt: (!self.args.share_prefixes).then(|| format!("bench/{}/{name}/{phase}", std::process::id())),
        };
        let warmup = self.args.warmup as usize;
        if warmup > 0 {
            let bar = terminal::bar(warmup as u64, "{msg} {bar:30} {pos}/{len}");
            bar.set_message(format!("{name}: warm-up"));
            let warm =
                load(Arrivals::Closed(warmup.min(WARMUP_AT_ONCE)), warmup, "warmup").run(&bar, cut.clone()).await;
            bar.finish_and_clear();
            // Where each was refused for what it says, as one that is too long for the model, the next may be answered.
            let is_lost = |record: &Record| record.error.as_ref().is_some_and(|kind| !is_refusal(kind));
            if !warm.records.is_empty() && warm.records.iter().all(is_lost) {
                let sentence = warm.sentences.first().cloned().unwrap_or_default();
                return Err(format!("{name}: no warm-up request was answered: {sentence}").into());
            }
        }
        let bar = match self.requests {
            usize::MAX => terminal::bar(0, "{msg} {spinner} {pos} {elapsed}"),
            requests => terminal::bar(requests as u64, "{msg} {bar:30} {pos}/{len} {elapsed}"),
        };
        bar.set_message(name.clone());
        bar.enable_steady_tick(Duration::from_millis(200));
        let outcome = load(self.arrivals.clone(), self.requests, "run").run(&bar, cut).await;
        bar.finish_and_clear();
        for sentence in outcome.sentences.iter().take(SENTENCES) {
            terminal::tell(&format!("{name}: {sentence}"));
        }
        Ok((name, Figures::of(&outcome.records, outcome.unfinished, self.args.goodput.as_ref())))
    }
}

/// Requests of a run where nothing is said of their number.
const DEFAULT_REQUESTS: usize = 100;

/// Synthetic prompts that are made; a longer run asks them again.
const DISTINCT_PROMPTS: usize = 2_000;

/// Warm-up requests sent at once.
const WARMUP_AT_ONCE: usize = 8;

/// What failed requests said, shown at most.
const SENTENCES: usize = 5;

/// Arrivals of an open loop; a duration without a number bounds them.
fn times(rate: f64, seed: u64, requests: usize, duration: Option<Duration>) -> Vec<Duration> {
    arrivals::poisson(rate, seed).take(requests).take_while(|at| duration.is_none_or(|end| *at < end)).collect()
}

fn ask(args: &LoadArgs) -> RunOptions {
    RunOptions {
        model: args.model.clone().unwrap_or_default(),
        spec: None,
        temperature: Some(args.temperature),
        raw: args.raw,
    }
}

fn read<T>(file: &Path, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    parse(&text).map_err(|reason| format!("{}: {reason}", file.display()).into())
}

/// Synthetic prompts of these lengths: a short and a long request tell how many tokens the model makes of a word.
async fn of_lengths(args: &LoadArgs, target: &Target, lengths: &[(u32, u32)]) -> Result<Vec<Item>, Failure> {
    let uncounted = |failed: RequestError| format!("no prompt could be counted: {}", failed.sentence);
    let short = tokens(args, target, Ruler::SHORT).await.map_err(uncounted)?;
    let mut long = Err(RequestError::default());
    for words in Ruler::LONG {
        long = tokens(args, target, words).await.map(|tokens| (words, tokens));
        if !long.as_ref().is_err_and(|failed| is_refusal(&failed.kind)) {
            break;
        }
    }
    let ruler = Ruler::new(short, long.map_err(uncounted)?);
    let item = |(number, &(input, output)): (usize, &(u32, u32))| Item {
        prompt: workload::words(ruler.words(input), args.seed.wrapping_add(number as u64 + 1)),
        answer: None,
        output: output.max(1),
        exact: true,
    };
    Ok(lengths.iter().enumerate().map(item).collect())
}

/// How many tokens a prompt of so many words has.
async fn tokens(args: &LoadArgs, target: &Target, words: usize) -> Result<u64, RequestError> {
    let item = Item { prompt: workload::words(words, args.seed), answer: None, output: 1, exact: false };
    Ok(target.ask(&ask(args), &item, RequestOptions::default()).await?.input)
}
