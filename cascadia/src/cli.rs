//! The command line as typed.

use std::path::PathBuf;

use cascadia_node::config::Reloads;
use cascadia_node::telemetry::TelemetryConfig;
use cascadia_router::http::HttpConfig;
use clap::{Args, Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::client::DEFAULT_ADDRESS;
use crate::cluster_file::ConfigArgs;
use crate::config::FileArgs;
use crate::generate::GenerateArgs;
use crate::nodes::{DrafterArgs, ExpertArgs, RouterArgs};
use crate::pad::PadArgs;
use crate::synthetic::{self, Synthetic};

/// Serves language models by speculative cascades: a small drafter writes, a large expert checks, token by token.
#[derive(Debug, Parser)]
#[command(name = "cascadia", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// What is logged to standard error: error, warn, info, debug, trace, or a filter such as cascadia_router=debug
    /// [default: info for router, drafter and expert, else warn].
    #[arg(long, global = true, env = "CASCADIA_LOG", add = Reloads, value_name = "FILTER")]
    pub log: Option<String>,

    /// Log one JSON object a line.
    #[arg(long, global = true, env = "CASCADIA_LOG_JSON")]
    pub log_json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What is logged.
    #[must_use]
    pub fn filter(&self) -> &str {
        self.log.as_deref().unwrap_or(self.default_filter())
    }

    /// What is logged where nothing is said: a node says what it does, the other commands only what goes wrong.
    #[must_use]
    pub fn default_filter(&self) -> &'static str {
        match self.command {
            Command::Router(_) | Command::Drafter(_) | Command::Expert(_) => "info",
            _ => "warn",
        }
    }

    /// How the command is configured by a file, if it is.
    #[must_use]
    pub fn file(&self) -> Option<&FileArgs> {
        match &self.command {
            Command::Router(args) => Some(&args.file),
            Command::Drafter(args) => Some(&args.file),
            Command::Expert(args) => Some(&args.file),
            Command::Up(args) => Some(&args.file),
            _ => None,
        }
    }
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a cluster on this machine, stream three answers, and compare the strategies on held-out problems.
    Demo(DemoArgs),
    /// Run a whole cluster in this process until Ctrl-C.
    Up(Box<UpArgs>),
    /// Ask a router for an answer and stream it, coloured by which model wrote what.
    Generate(Box<GenerateArgs>),
    /// Drive a running cluster and measure throughput, latencies, goodput, acceptance and accuracy.
    Bench(Box<BenchArgs>),
    /// Show members, roles, state, load and pairs, as a router sees them.
    Status(StatusArgs),
    /// Take a node out of the cluster: no new sessions, open ones finish or move, then its process ends; as SIGTERM does.
    Drain(DrainArgs),
    /// Run one router.
    Router(Box<RouterArgs>),
    /// Run one drafter node.
    Drafter(Box<DrafterArgs>),
    /// Run one expert node.
    Expert(Box<ExpertArgs>),
    /// Write a configuration file.
    Config(ConfigArgs),
    /// Write a checkpoint of a larger model's shape that computes the same function bit for bit.
    Pad(PadArgs),
}

/// Arguments of `demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Held-out problems a strategy has to solve [default: 200, and 12 with a padded expert].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub problems: Option<u32>,

    /// Sessions at a time.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub sessions: u32,

    /// Print one JSON object for one pair and nothing else.
    #[arg(long)]
    pub json: bool,

    /// Pad the expert to this many parameters, for example 100M, and show only the table of that pair.
    #[arg(long, value_name = "SIZE", value_parser = crate::pad::parse_size)]
    pub pad_expert: Option<u64>,
}

/// Arguments of `up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// How it is configured.
    #[command(flatten)]
    pub file: FileArgs,

    /// Drafter nodes.
    #[arg(long, value_name = "N", env = "CASCADIA_DRAFTERS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub drafters: u32,

    /// Expert nodes.
    #[arg(long, value_name = "M", env = "CASCADIA_EXPERTS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub experts: u32,

    /// The drafter's model: a Hugging Face folder, a GGUF file, or a model of the hub (owner/name) [default: the shipped one].
    #[arg(long, value_name = "PATH", env = "CASCADIA_DRAFTER_MODEL")]
    pub drafter_model: Option<PathBuf>,

    /// The expert's model: a Hugging Face folder, a GGUF file, or a model of the hub (owner/name) [default: the shipped one].
    #[arg(long, value_name = "PATH", env = "CASCADIA_EXPERT_MODEL")]
    pub expert_model: Option<PathBuf>,

    /// A pair without weights, in place of models.
    #[arg(long, value_name = "KEY=VALUE,...", env = "CASCADIA_SYNTHETIC", conflicts_with_all = ["drafter_model", "expert_model"], help = synthetic::HELP)]
    pub synthetic: Option<Synthetic>,

    /// Where operators ask the router: /ready, /status, /metrics, /targets.
    #[arg(long, value_name = "ADDR", env = "CASCADIA_ADMIN", default_value = "127.0.0.1:0")]
    pub admin: String,

    /// Where the router listens for clients.
    #[arg(long, value_name = "ADDR", env = "CASCADIA_LISTEN", default_value = DEFAULT_ADDRESS)]
    pub listen: String,

    /// Where OpenAI's clients are served.
    #[command(flatten)]
    pub http: HttpConfig,

    /// Where traces go.
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
}

/// Arguments of `status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// The router's address.
    #[arg(long, value_name = "ADDR", env = "CASCADIA_SERVER", default_value = DEFAULT_ADDRESS)]
    pub server: String,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `drain`.
#[derive(Args, Clone, Debug)]
pub struct DrainArgs {
    /// The node's name, as `cascadia status` shows it.
    #[arg(value_name = "NODE", required_unless_present = "admin", conflicts_with = "admin")]
    pub node: Option<String>,

    /// The router that knows where the node is.
    #[arg(long, value_name = "ADDR", env = "CASCADIA_SERVER", default_value = DEFAULT_ADDRESS)]
    pub server: String,

    /// The node's admin listener, where no router shall be asked.
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,

    /// A file with the node's admin token; CASCADIA_ADMIN_TOKEN holds the token itself instead.
    #[arg(long, value_name = "FILE", env = "CASCADIA_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Return as soon as the node drains.
    #[arg(long, conflicts_with = "timeout")]
    pub no_wait: bool,

    /// Fail if the node is still there after so many seconds; it goes on draining [default: wait until it is gone].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("cascadia").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_holds() {
        Cli::command().debug_assert();
    }

    #[test]
    fn demo() {
        let Command::Demo(args) = parse("demo --problems 5 --sessions 4 --json --pad-expert 100M").unwrap().command
        else {
            panic!("another command")
        };
        assert_eq!((args.problems, args.sessions, args.json, args.pad_expert), (Some(5), 4, true, Some(100_000_000)));
        let Command::Demo(args) = parse("demo").unwrap().command else { panic!("another command") };
        assert_eq!((args.problems, args.sessions, args.json, args.pad_expert), (None, 1, false, None));
    }

    #[test]
    fn up() {
        let Command::Up(args) = parse("up").unwrap().command else { panic!("another command") };
        assert_eq!((args.drafters, args.experts, args.listen.as_str()), (2, 2, DEFAULT_ADDRESS));
    }

    #[test]
    fn what_cannot_be_meant_is_a_usage_error() {
        for line in [
            "",
            "up --experts 0",
            "demo --problems 0",
            "demo --sessions 0",
            "demo --pad-expert big",
            "up --drafters -1",
            "generate",
            "generate --draft-length x hello",
            "generate --logit-bias 5 hello",
            "pad x --to 100M",
            "status --no-such-flag",
            "drain",
            "drain expert-1 --admin 127.0.0.1:1",
            "drain expert-1 --no-wait --timeout 5",
            "frobnicate",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        assert_eq!(parse("--help").expect_err("help").kind(), ErrorKind::DisplayHelp);
    }

    #[test]
    fn logging_is_set_before_or_behind_the_command() {
        assert_eq!(parse("--log debug up").unwrap().log.as_deref(), Some("debug"));
        assert_eq!(parse("up --log debug").unwrap().log.as_deref(), Some("debug"));
    }
}
