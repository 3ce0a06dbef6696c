//! Membership in etcd: one key per node under a lease, one watch on all of them.

mod access;
mod follow;
mod lease;

use std::sync::Arc;
use std::time::Duration;

use cascadia_core::placement::{NodeRecord, Snapshot};
use etcd_client::{Client, ConnectOptions, GetOptions};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::MembershipError;
use crate::cluster::ClusterName;
pub use access::EtcdAccess;
pub(super) use lease::Lease;

/// How long etcd may take for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where etcd is and how nodes are kept there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `host:port` of each member, or `https://host:port`.
    pub endpoints: Vec<String>,
    /// What every node's key begins with.
    pub prefix: String,
    /// How long a silent node stays known; at least 2 s. Everything else follows from it: a lease is renewed at half
    /// its life, vanished nodes are doubted for twice and the list is asked for every four times as long.
    pub lease_ttl: Duration,
    /// What etcd wants to see.
    pub access: EtcdAccess,
    /// The cluster whose nodes these are; those of another under the same prefix are left aside.
    pub cluster: ClusterName,
    /// Who asks: its pauses are not those of other nodes.
    pub node: String,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["127.0.0.1:2379".into()],
            prefix: "/cascadia/nodes/".into(),
            lease_ttl: Duration::from_secs(15),
            access: EtcdAccess::default(),
            cluster: ClusterName::default(),
            node: String::new(),
        }
    }
}

impl EtcdConfig {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// One sentence with the cure.
    pub fn check(&self) -> Result<(), MembershipError> {
        self.clone().resolved().map(drop)
    }

    /// The configuration as it is meant, or one sentence that says what is wrong with it.
    fn resolved(mut self) -> Result<Self, MembershipError> {
        let wrong = |sentence: String| Err(MembershipError::Config(sentence));
        if self.endpoints.is_empty() {
            return wrong("no endpoint is given; write for example 127.0.0.1:2379".into());
        }
        for endpoint in &self.endpoints {
            let bare = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
            let authority = bare.unwrap_or(endpoint);
            let port = authority.parse::<http::uri::Authority>().ok().and_then(|authority| authority.port_u16());
            if port.is_none() {
                return wrong(format!("\"{endpoint}\" is not of the form host:port; write for example 127.0.0.1:2379"));
            }
        }
        self.access.check(&self.endpoints).map_err(MembershipError::Config)?;
        if self.prefix.trim_matches('/').is_empty() {
            return wrong("the key prefix is empty; write for example /cascadia/nodes/".into());
        }
        if !self.prefix.ends_with('/') {
            self.prefix.push('/');
        }
        if self.lease_ttl < Duration::from_secs(2) {
            return wrong(format!("a lease of {:?} is shorter than etcd keeps one; give at least 2 s", self.lease_ttl));
        }
        Ok(self)
    }

    /// How long etcd's word that nodes vanished is doubted.
    fn grace(&self) -> Duration {
        self.lease_ttl * 2
    }

    /// How often the whole list is asked for.
    fn list_period(&self) -> Duration {
        self.lease_ttl * 4
    }

    async fn connect(&self) -> Result<Client, String> {
        // A member that lost its quorum ends the watch instead of going quiet.
        let options = ConnectOptions::new()
            .with_require_leader(true)
            .with_connect_timeout(Duration::from_secs(2))
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(true);
        let options = self.access.options(options)?;
        timed(CALL_TIMEOUT, Client::connect(&self.endpoints, Some(options))).await
    }
}

async fn timed<T>(limit: Duration, call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, String> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(etcd_client::Error::GRpcStatus(status))) => Err(with_cause(status.message(), &status)),
        Ok(Err(error)) => Err(with_cause(&error.to_string(), &error)),
        Err(_) => Err(format!("no answer within {:.1} s", limit.as_secs_f64())),
    }
}

/// What an error says and what lies at its bottom: "transport error" alone names no refused connection or certificate.
fn with_cause(said: &str, error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    match causes.last().map(ToString::to_string) {
        Some(cause) if !said.contains(&cause) => format!("{said}: {cause}"),
        _ => said.to_owned(),
    }
}

/// Asks etcd once, so that a wrong address is told at the command line rather than waited for.
///
/// # Errors
/// When the configuration is wrong, or nothing answers in time.
pub async fn probe(config: &EtcdConfig, limit: Duration) -> Result<(), MembershipError> {
    let config = config.clone().resolved()?;
    let asked = async {
        let mut client = config.connect().await?;
        let options = GetOptions::new().with_prefix().with_count_only();
        timed(limit, client.get(config.prefix.as_str(), Some(options))).await
    };
    let answer = tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err("no answer".into()));
    answer.map(drop).map_err(|reason| MembershipError::Unreachable {
        endpoints: config.endpoints.join(", "),
        seconds: limit.as_secs(),
        reason,
    })
}

/// One process's view of etcd. Dropping it ends the watch.
pub(super) struct Etcd {
    config: Arc<EtcdConfig>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    _stop: DropGuard,
}

impl Etcd {
    /// A node renews its lease, or learns that there is none, before it would have ended; one that etcd was away from
    /// has to find it again first.
    pub(super) fn recovers_within(&self) -> Duration {
        self.config.lease_ttl.max(LONGEST_PAUSE + 2 * CALL_TIMEOUT)
    }

    pub(super) fn start(config: EtcdConfig) -> Result<Self, MembershipError> {
        let config = Arc::new(config.resolved()?);
        let (sender, snapshots) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let (following, stopped) = (follow::follow(config.clone(), sender), stop.clone());
        tokio::spawn(async move { stopped.run_until_cancelled(following).await });
        Ok(Self { config, snapshots, _stop: stop.drop_guard() })
    }

    pub(super) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    pub(super) async fn register(&self, record: NodeRecord) -> Result<Lease, MembershipError> {
        Lease::hold(self.config.clone(), record).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_configuration_is_told_with_its_cure() {
        let config = |endpoint: &str| EtcdConfig { endpoints: vec![endpoint.into()], ..EtcdConfig::default() };
        let sentence = |config: EtcdConfig| config.resolved().unwrap_err().to_string();
        assert!(sentence(EtcdConfig { endpoints: Vec::new(), ..EtcdConfig::default() }).contains("127.0.0.1:2379"));
        assert!(sentence(config("https://etcd:2379")).contains("--etcd-ca-file"));
        for bad in ["etcd", "", "etcd:port", "http://", "a b:1"] {
            assert!(sentence(config(bad)).contains("host:port"), "{bad}");
        }
        assert!(sentence(EtcdConfig { prefix: "/".into(), ..EtcdConfig::default() }).contains("prefix"));
        assert!(sentence(EtcdConfig { lease_ttl: Duration::from_secs(1), ..EtcdConfig::default() }).contains("2 s"));
        for good in ["etcd:2379", "http://etcd:2379", "[::1]:2379"] {
            assert!(config(good).resolved().is_ok(), "{good}");
        }
        let prefix = EtcdConfig { prefix: "/a".into(), ..EtcdConfig::default() }.resolved().unwrap().prefix;
        assert_eq!(prefix, "/a/");
    }

    #[tokio::test]
    async fn a_probe_of_nothing_names_the_address() {
        let config = EtcdConfig { endpoints: vec!["127.0.0.1:1".into()], ..EtcdConfig::default() };
        let error = probe(&config, Duration::from_millis(500)).await.unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:1") && error.contains("start etcd"), "{error}");
    }
}
