//! Processes of this binary on loopback: synthetic nodes and a router, ended when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cascadia_core::placement::Role;
use cascadia_node::net::free_address;
use cascadia_proto::convert::role_name;

use crate::client::Client;
use crate::terminal::Failure;

/// How long nodes may take to find each other.
const READY: Duration = Duration::from_secs(60);

/// What to start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The nodes' parameters, as typed after `--synthetic`.
    pub synthetic: String,
    /// Expert processes.
    pub experts: usize,
    /// Drafter processes.
    pub drafters: usize,
    /// Whether the router speaks HTTP too.
    pub http: bool,
    /// The router's further flags.
    pub router: Vec<String>,
}

/// A running node.
#[derive(Debug)]
struct Node {
    id: String,
    role: Role,
    address: String,
    admin: String,
    process: Option<Child>,
}

/// Running nodes.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// Where the router speaks HTTP.
    http: String,
    list: PathBuf,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            // One that has ended by itself cannot be killed, and need not be.
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_file(&self.list);
    }
}

impl Cluster {
    /// Starts the nodes and waits until the router can place sessions on all of them.
    ///
    /// # Errors
    /// When a process does not start or ends, or they do not find each other.
    pub async fn start(plan: &Plan) -> Result<Self, Failure> {
        let mut nodes = vec![Node::new(Role::Router, 1)?];
        for number in 1..=plan.experts {
            nodes.push(Node::new(Role::Expert, number)?);
        }
        for number in 1..=plan.drafters {
            nodes.push(Node::new(Role::Drafter, number)?);
        }
        let http = free_address()?;
        let list = std::env::temp_dir().join(format!("cascadia-bench-{}.json", std::process::id()));
        let binary = std::env::current_exe()?;
        let records = nodes.iter().map(|node| node.record(&binary, plan)).collect::<Result<Vec<String>, Failure>>()?;
        std::fs::write(&list, format!("[{}]", records.join(",")))?;
        let mut cluster = Self { nodes, http, list };
        cluster.spawn(&binary, plan)?;
        cluster.ready().await?;
        Ok(cluster)
    }

    fn spawn(&mut self, binary: &Path, plan: &Plan) -> Result<(), Failure> {
        for node in &mut self.nodes {
            let mut command = node.command(binary, plan);
            command.arg("--static").arg(&self.list).stdout(Stdio::null());
            if node.role == Role::Router {
                command.args(&plan.router).args(["--http", if plan.http { &self.http } else { "off" }]);
            }
            node.process = Some(command.spawn().map_err(|error| format!("cannot start {}: {error}", node.id))?);
        }
        Ok(())
    }

    async fn ready(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            for node in &mut self.nodes {
                if let Some(status) = node.process.as_mut().and_then(|process| process.try_wait().transpose()) {
                    return Err(format!("{} ended at once ({}); its reason is above", node.id, status?).into());
                }
            }
            let heard = async {
                let status = Client::connect(self.address()).await.ok()?.status().await.ok()?;
                Some(status.members.iter().filter(|member| member.state == "ready" && member.load.is_some()).count())
            };
            let heard = heard.await.unwrap_or_default();
            if heard + 1 >= self.nodes.len() {
                return Ok(());
            }
            if began.elapsed() > READY {
                return Err(format!("{heard} of {} nodes are ready after {READY:?}", self.nodes.len() - 1).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where the router serves gRPC.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.nodes[0].address
    }

    /// Where the router serves HTTP.
    #[must_use]
    pub fn http(&self) -> &str {
        &self.http
    }

    /// The router's admin address.
    #[must_use]
    pub fn admin(&self) -> &str {
        &self.nodes[0].admin
    }

    /// The admin addresses of all other nodes.
    pub fn others(&self) -> impl Iterator<Item = &str> {
        self.nodes[1..].iter().map(|node| node.admin.as_str())
    }
}

impl Node {
    fn new(role: Role, number: usize) -> Result<Self, Failure> {
        let (address, admin) = (free_address()?, free_address()?);
        Ok(Self { id: format!("{}-{number}", role_name(role)), role, address, admin, process: None })
    }

    /// What starts it, but for the list of all nodes.
    fn command(&self, binary: &Path, plan: &Plan) -> Command {
        let mut command = Command::new(binary);
        command.args([role_name(self.role), "--id", &self.id, "--listen", &self.address, "--admin", &self.admin]);
        // What is set for other nodes is not meant for these.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CASCADIA_")) {
            command.env_remove(name);
        }
        command.env("CASCADIA_LOG", "error").stdin(Stdio::null());
        if self.role != Role::Router {
            command.args(["--synthetic", &plan.synthetic]);
        }
        command
    }

    /// Its line in the static list, as it says itself.
    fn record(&self, binary: &Path, plan: &Plan) -> Result<String, Failure> {
        let said = self.command(binary, plan).arg("--print-record").stderr(Stdio::inherit()).output();
        let said = said.map_err(|error| format!("cannot start {}: {error}", self.id))?;
        if !said.status.success() {
            return Err(format!("{} ended at once ({}); its reason is above", self.id, said.status).into());
        }
        Ok(String::from_utf8(said.stdout)?)
    }
}
