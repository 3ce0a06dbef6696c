//! Where a node is and who is with it: names, addresses, membership.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{Role, ServedModel};
use cascadia_node::admin::{AdminPort, Loading};
use cascadia_node::cluster::ClusterName;
use cascadia_node::lifecycle::Shutdown;
use cascadia_node::membership::{EtcdAccess, EtcdConfig, Membership, MembershipError, probe};
use cascadia_node::net::{Connector, Listener, check_address};
use cascadia_node::proving::Proving;
use cascadia_node::telemetry::TelemetryConfig;
use cascadia_node::token::Token;
use cascadia_node::{NodeEnv, instance};
use cascadia_proto::convert::role_name;
use clap::Args;

use super::traces::telemetry;
use crate::client::DEFAULT_ADDRESS;
use crate::static_list;
use crate::terminal::{Failure, Outcome, print_line};

/// How long one look for etcd may take.
const PROBE: Duration = Duration::from_secs(3);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);

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
    pub(super) source: Source,

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
pub(super) struct Source {
    /// etcd's addresses, separated by commas: http://127.0.0.1:2379, or https:// with --etcd-ca-file.
    #[arg(long, value_name = "URL", env = "CASCADIA_ETCD", value_delimiter = ',', help_heading = "Membership")]
    etcd: Vec<String>,

    /// A file that lists all nodes, as --print-record prints them, in one JSON array.
    #[arg(long = "static", value_name = "FILE", env = "CASCADIA_STATIC", help_heading = "Membership")]
    fixed: Option<PathBuf>,

    /// Load the model, print this node's line of a static list, and end.
    #[arg(long, help_heading = "Membership")]
    pub(super) print_record: bool,
}

/// What comes of starting; nothing where the node is told to end before that.
pub(super) async fn unless_told<T>(
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

impl NodeArgs {
    /// A node's edge, and what it loads meanwhile; nothing where it is told to end before both are there.
    pub(super) async fn start<T: Send + 'static>(
        &self,
        role: Role,
        load: impl FnOnce(&Loading) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Option<(NodeEnv, T)>, Failure> {
        let shutdown = Shutdown::on_signals();
        let starting = async {
            let env = self.env(role, &shutdown).await?;
            let loading = env.loading();
            Ok((env, loaded(move || load(&loading)).await?))
        };
        unless_told(&shutdown, starting).await
    }

    /// Binds, and finds the others. Etcd that is away is waited for, and that is said.
    pub(super) async fn env(&self, role: Role, shutdown: &Shutdown) -> Result<NodeEnv, Failure> {
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
        Ok(NodeEnv {
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
        let free = if role == Role::Router { DEFAULT_ADDRESS } else { "127.0.0.1:0" };
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
    pub(super) fn print_record(&self, role: Role, served: Vec<ServedModel>) -> Outcome {
        let address = self.address(role)?;
        if address.ends_with(":0") {
            return Err("a node of a static list needs a fixed port; give one with --listen".into());
        }
        print_line(&static_list::line(self.name(role), role, address, self.admin.clone(), served))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn drafter(line: &str) -> Result<NodeArgs, clap::Error> {
        let command = NodeArgs::augment_args(Command::new("node").no_binary_name(true));
        NodeArgs::from_arg_matches(&command.try_get_matches_from(line.split_whitespace())?)
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
        assert_eq!(drafter("--etcd x").expect("fine").address(Role::Router).expect("default"), DEFAULT_ADDRESS);
    }
}
