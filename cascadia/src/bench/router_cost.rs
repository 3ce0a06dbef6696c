//! `cascadia bench router`: what a router costs, with synthetic nodes and the router in processes of their own.
//!
//! All streams are opened, and once each has its first token the router's own metrics are read twice, a window apart: what
//! lies between is the cost of relaying, with nothing of opening or closing in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cascadia_core::synthetic::MOST_PAGES;
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::arrivals::factor;
use super::children::{Cluster, Plan};
use super::request::{RequestError, RequestOptions, RunOptions};
use super::scrape::{Observations, Scrape};
use super::target::Target;
use super::workload::Item;
use crate::columns::{Side, layout};
use crate::signals::Signals;
use crate::strategy_spec::StrategySpec;
use crate::terminal::{self, Failure, Outcome};
use crate::{durations, machine};

/// Arguments of `bench router`.
#[derive(Args, Clone, Debug)]
pub struct RouterCostArgs {
    /// Streams that are open at once.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub streams: u32,

    /// Tokens a second of each stream, about.
    #[arg(long, value_name = "R", default_value_t = 10.0, value_parser = factor)]
    pub rate: f64,

    /// How long is measured, once every stream has its first token.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = durations::parse)]
    pub window: Duration,

    /// Expert processes; as many drafters where the strategy drafts.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub experts: u32,

    /// Strategy of every stream.
    #[arg(long, value_name = "NAME", default_value = "expert")]
    pub strategy: StrategySpec,

    /// Clients speak OpenAI's HTTP with server-sent events, a connection each, instead of gRPC.
    #[arg(long)]
    pub http: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// How long streams may take to come to their first token, beside a token's time.
const PATIENCE: Duration = Duration::from_secs(180);

/// Between two looks at the router.
const LOOK: Duration = Duration::from_millis(500);

/// Between the openings of two streams: what opening costs is another question.
const STAGGER: Duration = Duration::from_millis(1);

/// Sessions of one pass of a synthetic expert at most.
const BATCH: usize = 256;

/// The router's memory, as it says itself.
const RESIDENT: &str = "process_resident_memory_bytes";

/// What relaying is to stay below.
const BOUND: f64 = 0.001;

/// Runs the experiment.
///
/// # Errors
/// When the nodes do not start or a stream fails: a figure with holes would be no measurement.
pub async fn run(args: &RouterCostArgs) -> Outcome {
    let mut signals = Signals::new()?;
    tokio::select! {
        outcome = experiment(args) => outcome,
        // Dropping the experiment ends its processes.
        () = signals.next() => Err("interrupted".into()),
    }
}

async fn experiment(args: &RouterCostArgs) -> Outcome {
    let machine = Machine::now();
    let cluster = Cluster::start(&plan(args)?).await?;
    let target = Arc::new(if args.http {
        Target::open_ai(&format!("http://{}/v1", cluster.http())).await?
    } else {
        Target::router(cluster.address()).await?
    });
    let idle = Scrape::of(cluster.admin()).await?.value(RESIDENT);
    let mut streams = open(args, &target).await;
    let cost = measure(args, &cluster, idle, &mut streams).await?;
    streams.abort_all();
    if args.json {
        terminal::print_line(&cost.to_json(args, &machine).to_string())?;
    } else {
        terminal::print_line(&format!(
            "{} streams over {}, strategy {}, {} synthetic experts; {}",
            args.streams,
            if args.http { "HTTP with server-sent events" } else { "gRPC" },
            args.strategy,
            args.experts,
            machine.sentence()
        ))?;
        terminal::print(&cost.table())?;
    }
    Ok(())
}

/// Tokens a stream must not run out of.
fn output(args: &RouterCostArgs) -> u32 {
    let life = args.window + PATIENCE;
    ((life.as_secs_f64() * args.rate).ceil() as u32).saturating_add(16)
}

/// Nodes whose streams bring tokens at the rate asked for.
fn plan(args: &RouterCostArgs) -> Result<Plan, Failure> {
    let sessions = args.streams.div_ceil(args.experts) as usize + BATCH;
    let context = output(args) as usize + 128;
    if context > 65_536 {
        return Err("streams would grow too long: lower --rate or --window".into());
    }
    let pages = sessions * (context / 16 + 2);
    if pages > MOST_PAGES {
        return Err(format!(
            "the streams of an expert need {pages} pages and it can have {MOST_PAGES}: lower --streams, --rate or \
             --window, or raise --experts"
        )
        .into());
    }
    let drafts = args.strategy.strategy != "expert";
    // Each pass serves BATCH sessions; all are served in the time of a token. Where blocks are drafted, half of a block's
    // time is the drafter's, and of its 6 drafts at acceptance 0.8 about 3.7 tokens are written.
    let (period, batch) = if drafts { (3.7 / args.rate, sessions * 8) } else { (1.0 / args.rate, BATCH) };
    let rounds = (args.streams.div_ceil(args.experts) as usize).div_ceil(batch) as f64;
    let (expert, drafter) = if drafts { (period / 2.0, period / 12.0) } else { (period / rounds, 0.002) };
    let step = |seconds: f64| format!("{}us", (seconds * 1e6).round());
    Ok(Plan {
        synthetic: format!(
            "length=none,prefill=1000000,context={context},pages={pages},sessions={sessions},batch={batch},\
             expert.step={},drafter.step={}",
            step(expert),
            step(drafter)
        ),
        experts: args.experts as usize,
        drafters: if drafts { args.experts as usize } else { 0 },
        http: args.http,
        router: ["--max-sessions", &(args.streams + 16).to_string(), "--most-tokens", &output(args).to_string()]
            .map(str::to_owned)
            .to_vec(),
    })
}

type Streams = JoinSet<Result<(), RequestError>>;

async fn open(args: &RouterCostArgs, target: &Arc<Target>) -> Streams {
    let bar = terminal::bar(u64::from(args.streams), "opening streams {bar:30} {pos}/{len}");
    // Plain text of one token: it needs no prefill, which would have to wait where decoding fills every batch.
    let ask =
        RunOptions { spec: Some(args.strategy.clone()), temperature: Some(0.0), raw: true, ..RunOptions::default() };
    let mut streams = JoinSet::new();
    for _ in 0..args.streams {
        let item = Item { prompt: "a".to_owned(), answer: None, output: output(args), exact: true };
        let (target, ask) = (target.clone(), ask.clone());
        streams.spawn(async move { target.ask(&ask, &item, RequestOptions::default()).await.map(|_| ()) });
        bar.inc(1);
        tokio::time::sleep(STAGGER).await;
    }
    bar.finish_and_clear();
    streams
}

/// No stream may end while it is measured.
fn check(streams: &mut Streams) -> Result<(), Failure> {
    match streams.try_join_next() {
        None => Ok(()),
        Some(Ok(Err(failed))) => Err(format!("a stream failed: {} ({})", failed.sentence, failed.kind).into()),
        Some(_) => Err("a stream came to its end before it was measured; raise --window or lower --rate".into()),
    }
}

/// `idle`: what the router took before the first stream, bytes.
async fn measure(args: &RouterCostArgs, cluster: &Cluster, idle: f64, streams: &mut Streams) -> Result<Cost, Failure> {
    let began = Instant::now();
    let bar = terminal::bar(u64::from(args.streams), "first tokens {bar:30} {pos}/{len}");
    let all = f64::from(args.streams);
    loop {
        check(streams)?;
        let first = Scrape::of(cluster.admin()).await?.value("cascadia_time_to_first_token_seconds_count");
        bar.set_position(first as u64);
        if first >= all {
            break;
        }
        if began.elapsed() > PATIENCE.mul_f64(0.5) + Duration::from_secs_f64(2.0 / args.rate) {
            return Err(format!("{first} of {all} streams have their first token after {:?}", began.elapsed()).into());
        }
        tokio::time::sleep(LOOK).await;
    }
    bar.finish_and_clear();
    let bar = terminal::bar(args.window.as_secs(), "measuring {bar:30} {pos}/{len} s");
    let (begin, others, own) = (Scrape::of(cluster.admin()).await?, cpu(cluster).await?, own_cpu());
    let (clock, mut resident) = (Instant::now(), 0.0f64);
    while clock.elapsed() < args.window {
        tokio::time::sleep(LOOK.min(args.window.saturating_sub(clock.elapsed()))).await;
        bar.set_position(clock.elapsed().as_secs());
        check(streams)?;
        resident = resident.max(Scrape::of(cluster.admin()).await?.value(RESIDENT));
    }
    let (end, seconds) = (Scrape::of(cluster.admin()).await?, clock.elapsed().as_secs_f64());
    bar.finish_and_clear();
    let between = |name: &str| end.value(name) - begin.value(name);
    Ok(Cost {
        streams: end.value("cascadia_num_requests_running"),
        seconds,
        tokens: between("cascadia_generation_tokens_total"),
        relayed: end.since(&begin, "cascadia_relay_seconds"),
        router_cpu: between("process_cpu_seconds_total"),
        nodes_cpu: cpu(cluster).await? - others,
        client_cpu: own_cpu() - own,
        idle,
        resident,
    })
}

/// CPU seconds of all synthetic nodes.
async fn cpu(cluster: &Cluster) -> Result<f64, Failure> {
    let mut sum = 0.0;
    for admin in cluster.others() {
        sum += Scrape::of(admin).await?.value("process_cpu_seconds_total");
    }
    Ok(sum)
}

/// This process's, which is the client.
fn own_cpu() -> f64 {
    cascadia_node::metrics::Usage::now().map_or(0.0, |usage| usage.cpu_seconds)
}

/// What a router cost within the window.
#[derive(Clone, Debug)]
struct Cost {
    streams: f64,
    seconds: f64,
    tokens: f64,
    relayed: Observations,
    router_cpu: f64,
    nodes_cpu: f64,
    client_cpu: f64,
    /// Bytes before the first stream.
    idle: f64,
    /// Bytes at most.
    resident: f64,
}

const MIB: f64 = 1024.0 * 1024.0;

impl Cost {
    fn ms(&self, percent: f64) -> Option<f64> {
        self.relayed.percentile(percent).map(|seconds| seconds * 1e3)
    }

    fn cpu_per_million(&self) -> Option<f64> {
        (self.tokens > 0.0).then(|| self.router_cpu / self.tokens * 1e6)
    }

    /// What streams added to the router, bytes each.
    fn memory_a_stream(&self) -> Option<f64> {
        (self.streams > 0.0).then(|| (self.resident - self.idle).max(0.0) / self.streams)
    }

    fn table(&self) -> String {
        let number =
            |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
        let row = |name: &str, value: String| vec![name.to_owned(), value];
        let rows = vec![
            row("Open streams", number(Some(self.streams), 0)),
            row("Measured (s)", number(Some(self.seconds), 1)),
            row("Output token throughput (tok/s)", number(Some(self.tokens / self.seconds), 1)),
            row("Messages relayed", number(Some(self.relayed.count()), 0)),
            row("Median relay (ms)", number(self.ms(50.0), 3)),
            row("P90 relay (ms)", number(self.ms(90.0), 3)),
            row("P99 relay (ms)", number(self.ms(99.0), 3)),
            row("Relayed within 1 ms (%)", number(self.relayed.share_within(BOUND).map(|share| share * 100.0), 2)),
            row("Router CPU (cores)", number(Some(self.router_cpu / self.seconds), 3)),
            row("Router CPU seconds per million tokens", number(self.cpu_per_million(), 1)),
            row("Router peak memory (MiB)", number(Some(self.resident / MIB), 1)),
            row("Router memory a stream (KiB)", number(self.memory_a_stream().map(|bytes| bytes / 1024.0), 1)),
            row("Synthetic nodes' CPU (cores)", number(Some(self.nodes_cpu / self.seconds), 3)),
            row("Client's CPU (cores)", number(Some(self.client_cpu / self.seconds), 3)),
        ];
        layout(&[("", Side::Left), ("router", Side::Right)], &rows)
    }

    fn to_json(&self, args: &RouterCostArgs, machine: &Machine) -> Value {
        json!({
            "streams": self.streams,
            "protocol": if args.http { "http" } else { "grpc" },
            "strategy": args.strategy.to_string(),
            "experts": args.experts,
            "duration": self.seconds,
            "output_throughput": self.tokens / self.seconds,
            "messages_relayed": self.relayed.count(),
            "median_relay_ms": self.ms(50.0),
            "p90_relay_ms": self.ms(90.0),
            "p99_relay_ms": self.ms(99.0),
            "relayed_within_1_ms": self.relayed.share_within(BOUND),
            "router_cpu_cores": self.router_cpu / self.seconds,
            "router_cpu_seconds_per_million_tokens": self.cpu_per_million(),
            "router_idle_resident_bytes": self.idle,
            "router_peak_resident_bytes": self.resident,
            "router_bytes_per_stream": self.memory_a_stream(),
            "nodes_cpu_cores": self.nodes_cpu / self.seconds,
            "client_cpu_cores": self.client_cpu / self.seconds,
            "machine": {"cpu": machine.cpu, "cores": machine.cores, "load_before": machine.load},
        })
    }
}

/// Where it was measured: the client, the router and the nodes share it.
#[derive(Clone, Debug)]
struct Machine {
    cpu: String,
    cores: usize,
    /// Runnable threads of the minute before, ours not among them.
    load: Option<f64>,
}

impl Machine {
    fn now() -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cpu: machine::cpu().unwrap_or_else(|| "unknown CPU".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            load: load.split(' ').next().and_then(|load| load.parse().ok()),
        }
    }

    fn sentence(&self) -> String {
        let load = self.load.map_or_else(String::new, |load| format!(", load average {load} before"));
        format!("{} x {}{load}", self.cores, self.cpu)
    }
}
