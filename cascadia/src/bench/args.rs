//! The command line of `bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::arrivals::factor;
use super::measure::Goal;
use super::router_cost::RouterCostArgs;
use crate::client::DEFAULT_ADDRESS;
use crate::durations;
use crate::strategy_spec::StrategySpec;

/// Arguments of `bench`.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// What to measure instead of a running cluster.
    #[command(subcommand)]
    pub command: Option<BenchCommand>,

    /// The load on a running cluster.
    #[command(flatten)]
    pub load: LoadArgs,
}

/// Experiments that bring their own cluster.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure what a router costs: synthetic nodes and a router in processes of their own, many streams at a set pace.
    Router(RouterCostArgs),
}

/// A load on a running cluster.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// The router's gRPC address.
    #[arg(long, value_name = "ADDR", env = "CASCADIA_SERVER", default_value = DEFAULT_ADDRESS, help_heading = "Whom")]
    pub server: String,

    /// Drive an OpenAI server over HTTP instead: ours or any other, for example http://127.0.0.1:8080/v1. Goes before
    /// --server.
    // No `conflicts_with`: the variable of `server` would forbid it.
    #[arg(long, value_name = "URL", help_heading = "Whom")]
    pub openai: Option<String>,

    /// The served model [default: the only one].
    #[arg(long, value_name = "NAME", help_heading = "Whom")]
    pub model: Option<String>,

    /// Strategies to compare, one run each: a strategy or a rule, with its alpha behind @; for example
    /// expert,speculative,token_v3@0.3 [default: the server's own].
    #[arg(long, value_name = "LIST", value_delimiter = ',', allow_hyphen_values = true, help_heading = "Whom")]
    pub strategy: Vec<StrategySpec>,

    /// Requests of each run [default: 100, or as many as --duration takes].
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Load")]
    pub requests: Option<u32>,

    /// Send none after this time, for example 30s; those that are open then are waited for.
    #[arg(long, value_name = "TIME", value_parser = durations::parse, help_heading = "Load")]
    pub duration: Option<Duration>,

    /// Closed loop: requests open at any time [default: 1].
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536), conflicts_with_all = ["rate", "trace"], help_heading = "Load")]
    pub concurrency: Option<u32>,

    /// Open loop: requests a second, at the times of a Poisson process, answered or not.
    #[arg(long, value_name = "R", value_parser = factor, conflicts_with = "trace", help_heading = "Load")]
    pub rate: Option<f64>,

    /// Open loop: times and lengths of a trace, Azure's CSV or Mooncake's JSON lines.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompts", "input_len", "output_len"], help_heading = "Load")]
    pub trace: Option<PathBuf>,

    /// Play the trace so many times faster.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = factor, requires = "trace", help_heading = "Load")]
    pub speedup: f64,

    /// Requests before those that count.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Load")]
    pub warmup: u32,

    /// Seed of arrival times, of synthetic prompts, and with its number added of each request.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Load")]
    pub seed: u64,

    /// Prompts: JSON lines with `question` and `answer` (then accuracy is measured), `turns`, or `prompt`
    /// [default: the shipped held-out problems].
    #[arg(long, value_name = "FILE", conflicts_with = "input_len", help_heading = "Requests")]
    pub prompts: Option<PathBuf>,

    /// Synthetic prompts of about so many tokens.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Requests")]
    pub input_len: Option<u32>,

    /// Exactly so many output tokens: the end of a text is ignored.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "max_tokens", help_heading = "Requests")]
    pub output_len: Option<u32>,

    /// Output tokens at most.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Requests")]
    pub max_tokens: u32,

    /// Temperature [default: 0, so that runs can be compared].
    #[arg(long, value_name = "T", default_value_t = 0.0, hide_default_value = true, help_heading = "Requests")]
    pub temperature: f64,

    /// Send prompts as plain text, without the model's chat template.
    #[arg(long, help_heading = "Requests")]
    pub raw: bool,

    /// Let prompts be found in prefix caches; without this each has a cache salt of its own.
    #[arg(long, help_heading = "Requests")]
    pub share_prefixes: bool,

    /// What a request must keep to count as good: some of ttft, tpot, e2el, for example ttft=200ms,tpot=50ms.
    #[arg(long, value_name = "TARGETS", help_heading = "Report")]
    pub goodput: Option<Goal>,

    /// Print one JSON object, with the names of `vllm bench serve`.
    #[arg(long, help_heading = "Report")]
    pub json: bool,
}
