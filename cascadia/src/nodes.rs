//! `cascadia router`, `drafter` and `expert`: one node each, against etcd or a static list.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{Role, ServedModel};
use cascadia_drafter_node::DrafterConfig;
use cascadia_expert_node::ExpertConfig;
use cascadia_node::admin::{AdminPort, Loading};
use cascadia_node::cluster::ClusterName;
use cascadia_node::config::Live;
use cascadia_node::drive::Drive;
use cascadia_node::engine_config::EngineConfig;
use cascadia_node::lifecycle::Shutdown;
use cascadia_node::membership::{EtcdAccess, EtcdConfig, Membership, MembershipError, probe};
use cascadia_node::net::{Connector, Listener, check_address};
use cascadia_node::parts::Parts;
use cascadia_node::proving::Proving;
use cascadia_node::telemetry::{Telemetry, TelemetryConfig};
use cascadia_node::token::Token;
use cascadia_node::{Edge, instance};
use cascadia_proto::convert::role_name;
use cascadia_router::RouterConfig;
use cascadia_router::http::HttpConfig;
use clap::Args;
use clap::builder::ArgPredicate;

use crate::cli::Command;
use crate::config::{FileArgs, Settings, follow};
use crate::load::Model;
use crate::static_list;
use crate::synthetic::{self, Synthetic};
use crate::{Failure, Outcome};

/// How long one look for etcd may take.
const PROBE: Duration = Duration::from_secs(3);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// How long spans that wait may take to reach their collector when a node ends.
pub const FLUSH: Duration = Duration::from_secs(5);

/// What every node is told about its place.
#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// The node's name, unique while it lives [default: its role and a random number].
    #[arg(long, value_name = "NAME", env = "CASCADIA_ID", help_heading = "Node")]
    pub id: Option<String>,

    /// Where the node serves; other nodes must be able to reach it there [default: 127.0.0.1:50051 for a router, else
    /// 127.0.0.1 and a free port].
    #[arg(long, value_name = "ADDR", env = "CASCADIA_LISTEN", help_heading = "Node")]
    pub listen: Option<String>,

    /// Where operators ask: /live, /ready, /status, /metrics; and POST /drain with the admin token.
    #[arg(long, value_name = "ADDR", env = "CASCADIA_ADMIN", default_value = "127.0.0.1:0", help_heading = "Node")]
    pub admin: String,

    /// A file with the admin token, which `cascadia drain` shows; CASCADIA_ADMIN_TOKEN holds the token itself instead
    /// [default: none, and nothing can be changed from afar].
    #[arg(long, value_name = "FILE", env = "CASCADIA_ADMIN_TOKEN_FILE", help_heading = "Node")]
    pub admin_token_file: Option<PathBuf>,

    #[command(flatten)]
    source: Source,

    /// The name of the cluster that the node belongs to: nodes of another name are left alone, also where both are in one
    /// etcd or list.
    #[arg(long, value_name = "NAME", env = "CASCADIA_CLUSTER_NAME", default_value_t = ClusterName::default(), help_heading = "Membership")]
    pub cluster_name: ClusterName,

    #[command(flatten)]
    access: EtcdAccess,

    /// Where in etcd the cluster's keys are.
    #[arg(
        long,
        value_name = "PREFIX",
        env = "CASCADIA_ETCD_PREFIX",
        default_value = "/cascadia/nodes/",
        help_heading = "Membership"
    )]
    pub etcd_prefix: String,

    /// Give up if etcd does not answer within so many seconds at the start [default: wait as long as it takes, not ready].
    #[arg(long, value_name = "SECONDS", env = "CASCADIA_ETCD_WAIT", help_heading = "Membership")]
    pub etcd_wait: Option<u32>,

    /// Seconds after which etcd forgets a node that died.
    #[arg(long, value_name = "SECONDS", env = "CASCADIA_LEASE_TTL", default_value_t = 15, value_parser = clap::value_parser!(u32).range(2..=3600), help_heading = "Membership")]
    pub lease_ttl: u32,

    #[command(flatten)]
    telemetry: TelemetryConfig,
}

/// Where membership comes from: exactly one of these.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
struct Source {
    /// etcd's addresses, separated by commas: http://127.0.0.1:2379, or https:// with --etcd-ca-file.
    #[arg(long, value_name = "URL", env = "CASCADIA_ETCD", value_delimiter = ',', help_heading = "Membership")]
    etcd: Vec<String>,

    /// A file that lists all nodes, as --print-record prints them, in one JSON array.
    #[arg(long = "static", value_name = "FILE", env = "CASCADIA_STATIC", help_heading = "Membership")]
    fixed: Option<PathBuf>,

    /// Load the model, print this node's line of a static list, and end.
    #[arg(long, help_heading = "Membership")]
    print_record: bool,
}

/// Arguments of `router`.
#[derive(Args, Clone, Debug)]
pub struct RouterArgs {
    /// How it is configured.
    #[command(flatten)]
    pub file: FileArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) config: RouterConfig,
    #[command(flatten)]
    pub(crate) http: HttpConfig,
}

/// Arguments of `drafter`.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("model", or_synthetic))]
pub struct DrafterArgs {
    /// How it is configured.
    #[command(flatten)]
    pub file: FileArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) config: DrafterConfig,
    #[arg(long, value_name = "KEY=VALUE,...", env = "CASCADIA_SYNTHETIC", conflicts_with = "model", help = synthetic::HELP)]
    pub(crate) synthetic: Option<Synthetic>,
}

/// Arguments of `expert`.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("model", or_synthetic))]
pub struct ExpertArgs {
    /// How it is configured.
    #[command(flatten)]
    pub file: FileArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) config: ExpertConfig,
    #[arg(long, value_name = "KEY=VALUE,...", env = "CASCADIA_SYNTHETIC", conflicts_with = "model", help = synthetic::HELP)]
    pub(crate) synthetic: Option<Synthetic>,
}

/// A node has a model or is synthetic.
fn or_synthetic(model: clap::Arg) -> clap::Arg {
    let instead = ("synthetic", ArgPredicate::IsPresent, Some(synthetic::SERVED));
    model.required(false).required_unless_present("synthetic").default_value_if(instead.0, instead.1, instead.2)
}

/// Runs a router until it is told to stop.
///
/// # Errors
/// When it cannot listen or register.
pub async fn router(args: RouterArgs, settings: Settings) -> Outcome {
    if args.node.source.print_record {
        return args.node.print_record(Role::Router, Vec::new());
    }
    let (hangups, shutdown) = (follow::Hangups::listen(&settings), Shutdown::on_signals());
    let starting = async {
        let edge = args.node.edge(Role::Router, &shutdown).await?;
        Ok::<_, Failure>((edge, args.http.open().await?))
    };
    let Some((edge, door)) = unless_told(&shutdown, starting).await? else { return Ok(()) };
    let (config, replace) = Live::new(args.config);
    follow::spawn(settings, hangups, &edge.shutdown, move |cli, _| match cli.command {
        Command::Router(args) => args.config.check().map(|()| replace.with(args.config)),
        _ => Ok(()),
    });
    let telemetry = edge.telemetry.clone();
    let ended = cascadia_router::run(config, edge, door).await;
    telemetry.shutdown(FLUSH).await;
    Ok(ended?)
}

/// Runs a drafter until it is told to stop.
///
/// # Errors
/// When it cannot listen, load its model, or register.
pub async fn drafter(args: DrafterArgs, settings: Settings) -> Outcome {
    let config = args.resolved();
    // Before the weights, which take minutes.
    config.check()?;
    let load = loader(Role::Drafter, config.engine.clone(), args.synthetic.clone());
    if args.node.source.print_record {
        return args.node.print_record(Role::Drafter, load(&Loading::default())?.served(&config.served_model));
    }
    let hangups = follow::Hangups::listen(&settings);
    let Some((edge, parts)) = args.node.start(Role::Drafter, load).await? else { return Ok(()) };
    let (config, replace) = Live::new(config);
    follow::spawn(settings, hangups, &edge.shutdown, move |cli, _| match cli.command {
        Command::Drafter(args) => {
            let config = args.resolved();
            config.check().map(|()| replace.with(config))
        }
        _ => Ok(()),
    });
    let telemetry = edge.telemetry.clone();
    let ended = cascadia_drafter_node::run(config, edge, parts, Drive::Thread).await;
    telemetry.shutdown(FLUSH).await;
    Ok(ended?)
}

/// Runs an expert until it is told to stop.
///
/// # Errors
/// When it cannot listen, load its model, or register.
pub async fn expert(args: ExpertArgs, settings: Settings) -> Outcome {
    let config = args.resolved();
    // Before the weights, which take minutes.
    config.check()?;
    let load = loader(Role::Expert, config.engine.clone(), args.synthetic.clone());
    if args.node.source.print_record {
        return args.node.print_record(Role::Expert, load(&Loading::default())?.served(&config.served_model));
    }
    let hangups = follow::Hangups::listen(&settings);
    let Some((edge, parts)) = args.node.start(Role::Expert, load).await? else { return Ok(()) };
    let (config, replace) = Live::new(config);
    follow::spawn(settings, hangups, &edge.shutdown, move |cli, _| match cli.command {
        Command::Expert(args) => {
            let config = args.resolved();
            config.check().map(|()| replace.with(config))
        }
        _ => Ok(()),
    });
    let telemetry = edge.telemetry.clone();
    let ended = cascadia_expert_node::run(config, edge, parts, Drive::Thread).await;
    telemetry.shutdown(FLUSH).await;
    Ok(ended?)
}

/// Loads what a node runs: the configured model, or a synthetic one.
fn loader(
    role: Role,
    config: EngineConfig,
    synthetic: Option<Synthetic>,
) -> impl FnOnce(&Loading) -> Result<Parts, Failure> + Send + 'static {
    move |loading| match synthetic {
        Some(synthetic) => Ok(synthetic.parts(role, config.kv_pages)),
        None => {
            let mut report = |stage: &str, done, total| loading.at(stage, done, total);
            Model::configured(&config, &mut report)?.parts(&config, 1)
        }
    }
}

/// What comes of starting; nothing where the node is told to end before that.
async fn unless_told<T>(
    shutdown: &Shutdown,
    starting: impl Future<Output = Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    tokio::select! {
        biased;
        () = shutdown.draining() => Ok(None),
        started = starting => started.map(Some),
    }
}

/// Loads on a thread of its own, which nobody waits for when the process is told to end meanwhile.
async fn loaded<T: Send + 'static>(load: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let (done, loaded) = tokio::sync::oneshot::channel();
    // Nobody takes it any more where the node was told to end.
    std::thread::Builder::new().name("load".to_owned()).spawn(move || drop(done.send(load())))?;
    loaded.await.unwrap_or_else(|_| Err("the model's loading ended in a panic".into()))
}

/// Where traces go, by our settings or by OpenTelemetry's own variables. Those are there for everyone: one that we cannot
/// follow is said, and nothing is traced.
///
/// # Errors
/// When a setting of ours cannot be meant.
pub fn telemetry(config: &TelemetryConfig) -> Result<Telemetry, Failure> {
    let telemetry = Telemetry::new(config)?;
    if config.otlp_endpoint.is_some() {
        return Ok(telemetry);
    }
    let ambient = config.clone().or_environment(|name| std::env::var(name).ok());
    Ok(Telemetry::new(&ambient).unwrap_or_else(|error| {
        tracing::warn!(%error, "nothing is traced: OTEL_EXPORTER_OTLP_ENDPOINT is not for us");
        telemetry
    }))
}

impl DrafterArgs {
    /// The configuration that is meant.
    pub(crate) fn resolved(&self) -> DrafterConfig {
        let mut config = self.config.clone();
        if let Some(synthetic) = &self.synthetic {
            synthetic.configure_drafter(&mut config);
        }
        config
    }
}

impl ExpertArgs {
    /// The configuration that is meant: it serves a model by its folder's name unless another is given.
    pub(crate) fn resolved(&self) -> ExpertConfig {
        let mut config = self.config.clone();
        if let Some(synthetic) = &self.synthetic {
            synthetic.configure_expert(&mut config);
        }
        if config.served_model.is_empty() {
            config.served_model = vec![crate::load::folder_name(&config.engine.model)];
        }
        config
    }
}

impl NodeArgs {
    /// A node's edge, and what it loads meanwhile; nothing where it is told to end before both are there.
    async fn start<T: Send + 'static>(
        &self,
        role: Role,
        load: impl FnOnce(&Loading) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Option<(Edge, T)>, Failure> {
        let shutdown = Shutdown::on_signals();
        let starting = async {
            let edge = self.edge(role, &shutdown).await?;
            let loading = edge.loading();
            Ok((edge, loaded(move || load(&loading)).await?))
        };
        unless_told(&shutdown, starting).await
    }

    /// Binds, and finds the others. Etcd that is away is waited for, and that is said.
    async fn edge(&self, role: Role, shutdown: &Shutdown) -> Result<Edge, Failure> {
        let token = Token::find(self.admin_token_file.as_deref())?;
        let telemetry = telemetry(&self.telemetry)?;
        let listener = Listener::bind(&self.address(role)?).await?;
        let id = self.name(role);
        let proving = token.map(|token| Proving::new(token, &id, instance(&listener, &id)));
        // It answers from here on, while etcd is looked for and the model loads.
        let admin = AdminPort::open(Listener::bind(&self.admin).await?, shutdown, proving);
        let membership = match &self.source.fixed {
            Some(file) => Membership::fixed(static_list::read(file)?).named(self.cluster_name.clone()),
            None => self.etcd(&id).await?,
        };
        Ok(Edge {
            id,
            listener,
            admin: Some(admin),
            connector: Connector::tcp(),
            membership,
            shutdown: shutdown.clone(),
            telemetry,
        })
    }

    /// What can be checked without binding or asking anybody.
    pub(crate) fn checked(&self, role: Role) -> [Result<(), String>; 5] {
        let address = |address: &str| check_address(address).map_err(|error| error.to_string());
        let listen = self.address(role).map_err(|error| error.to_string()).and_then(|listen| address(&listen));
        let source = match &self.source.fixed {
            Some(file) => static_list::read(file).map(drop).map_err(|error| error.to_string()),
            None if self.source.print_record => Ok(()),
            None => self.etcd_config("").check().map_err(|error| error.to_string()),
        };
        let token = Token::find(self.admin_token_file.as_deref()).map(drop).map_err(|error| error.to_string());
        [listen, address(&self.admin), source, token, self.telemetry.check()]
    }

    fn etcd_config(&self, node: &str) -> EtcdConfig {
        EtcdConfig {
            endpoints: self.source.etcd.clone(),
            prefix: self.etcd_prefix.clone(),
            lease_ttl: Duration::from_secs(self.lease_ttl.into()),
            access: self.access.clone(),
            cluster: self.cluster_name.clone(),
            node: node.to_owned(),
        }
    }

    async fn etcd(&self, node: &NodeId) -> Result<Membership, Failure> {
        let config = self.etcd_config(&node.0);
        let patience = self.etcd_wait.map(|seconds| Duration::from_secs(seconds.into()));
        let began = Instant::now();
        while let Err(error) = probe(&config, PROBE.min(patience.unwrap_or(PROBE)).max(PAUSE)).await {
            match patience {
                _ if matches!(error, MembershipError::Config(_)) => return Err(error.into()),
                None => {
                    // Membership itself goes on trying.
                    tracing::warn!("{error}; waiting for it");
                    break;
                }
                Some(patience) if began.elapsed() >= patience => return Err(error.into()),
                Some(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        Ok(Membership::etcd(config).await?)
    }

    fn name(&self, role: Role) -> NodeId {
        NodeId(self.id.clone().unwrap_or_else(|| {
            let chance = RandomState::new().hash_one(std::process::id());
            format!("{}-{:08x}", role_name(role), chance as u32)
        }))
    }

    /// Where to listen. Drafters and experts are reached at the address they listen on, so it must be one.
    fn address(&self, role: Role) -> Result<String, Failure> {
        let free = if role == Role::Router { crate::cli::DEFAULT_ADDRESS } else { "127.0.0.1:0" };
        let address = self.listen.clone().unwrap_or_else(|| free.to_owned());
        let unspecified = address.starts_with("0.0.0.0:") || address.starts_with("[::]:");
        if role != Role::Router && unspecified {
            return Err(format!(
                "other nodes cannot reach a {} at {address}; listen on the machine's own address instead",
                role_name(role)
            )
            .into());
        }
        Ok(address)
    }

    /// Prints what a static list has to say about this node.
    fn print_record(&self, role: Role, served: Vec<ServedModel>) -> Outcome {
        let address = self.address(role)?;
        if address.ends_with(":0") {
            return Err("a node of a static list needs a fixed port; give one with --listen".into());
        }
        crate::print_line(&static_list::line(self.name(role), role, address, self.admin.clone(), served))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn drafter(line: &str) -> Result<NodeArgs, clap::Error> {
        let words = ["cascadia", "drafter", "--model", "m"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words)?.command {
            Command::Drafter(args) => Ok(args.node),
            _ => panic!("another command"),
        }
    }

    #[test]
    fn exactly_one_source_of_membership() {
        assert!(drafter("").is_err());
        assert!(drafter("--etcd http://a:1 --static f").is_err());
        let node = drafter("--etcd http://a:1,http://b:1").expect("two endpoints");
        assert_eq!(node.source.etcd, ["http://a:1", "http://b:1"]);
        assert!(drafter("--static f").is_ok());
    }

    #[test]
    fn a_node_has_a_model_or_is_synthetic() {
        let expert = |line: &str| {
            let words = ["cascadia", "expert", "--etcd", "x"].into_iter().chain(line.split_whitespace());
            Cli::try_parse_from(words)
        };
        assert!(expert("").is_err() && expert("--model m --synthetic step=1ms").is_err());
        assert!(expert("--model m").is_ok());
        let Command::Expert(args) = expert("--synthetic step=1ms").expect("fine").command else {
            panic!("another command")
        };
        assert!(args.synthetic.is_some());
        let error = expert("--synthetic stp=1ms").expect_err("no such key").to_string();
        assert!(error.contains("\"stp\" is no key; keys are of the pair: acceptance"), "{error}");
    }

    #[test]
    fn names_are_drawn_where_none_is_given() {
        let node = drafter("--etcd x").expect("fine");
        assert!(node.name(Role::Drafter).0.starts_with("drafter-"));
        assert_ne!(node.name(Role::Drafter), node.name(Role::Drafter));
        assert_eq!(drafter("--etcd x --id d").expect("fine").name(Role::Drafter).0, "d");
    }

    #[test]
    fn a_node_that_others_must_reach_has_an_address() {
        let node = drafter("--etcd x --listen 0.0.0.0:1").expect("fine");
        assert!(node.address(Role::Drafter).is_err());
        assert!(node.address(Role::Router).is_ok());
        assert_eq!(
            drafter("--etcd x").expect("fine").address(Role::Router).expect("default"),
            crate::cli::DEFAULT_ADDRESS
        );
    }
}
