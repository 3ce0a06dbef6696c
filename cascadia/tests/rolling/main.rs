//! Every node of a cluster of two routers, two drafters and two experts is restarted, one by one, under load, behind a
//! balancer that lags: no request fails and no text changes, although no client retries.

mod balancer;
mod load;
mod openai;
#[path = "../real/mod.rs"]
mod real;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use balancer::{Backend, Balancer, LAG, is_ready};
use cascadia::client::Client;
use load::{Case, Failures, Load};
use openai::OpenAi;
use real::{Etcd, PATIENCE, Process, free_address, node_command, synthetic_command};

/// The bound of a node whose sessions others take.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// A router's streams finish, however slow the machine.
const ROUTER_GONE_WITHIN: Duration = Duration::from_secs(240);

/// What the nodes serve.
#[derive(Clone, Copy, Debug)]
enum Pair {
    /// The shipped models: short answers, as fast as the machine allows.
    Demo,
    /// Texts that outlast a drain.
    Synthetic(&'static str),
}

/// A node that is started again and again at the same addresses.
struct Node {
    role: &'static str,
    id: String,
    listen: String,
    admin: String,
    http: String,
    process: Option<Process>,
}

impl Node {
    fn new(role: &'static str, number: u32) -> Self {
        let id = format!("{role}-{number}");
        Self { role, id, listen: free_address(), admin: free_address(), http: free_address(), process: None }
    }

    fn command(&self, etcd: &Etcd, pair: Pair) -> Command {
        let mut command = match pair {
            Pair::Demo => node_command(self.role, &self.id, &self.listen, etcd),
            Pair::Synthetic(pair) => synthetic_command(self.role, &self.id, &self.listen, etcd, pair),
        };
        if self.role == "router" {
            command.args(["--http", &self.http]);
        }
        command.args(["--admin", &self.admin]).env("CASCADIA_LOG", "warn").stderr(Stdio::inherit());
        command
    }

    async fn start(&mut self, etcd: &Etcd, pair: Pair) {
        self.process = Some(Process(self.command(etcd, pair).spawn().expect("the binary runs")));
    }

    async fn ready(&self) {
        let until = Instant::now() + PATIENCE;
        while !is_ready(&self.admin).await {
            assert!(Instant::now() < until, "{} is not ready after {PATIENCE:?}", self.id);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn signal(&self) {
        self.process.as_ref().expect("it runs").signal("TERM");
    }

    async fn gone(&mut self) {
        let mut process = self.process.take().expect("it runs");
        let bound = if self.role == "router" { ROUTER_GONE_WITHIN } else { GONE_WITHIN };
        let until = Instant::now() + bound;
        let status = loop {
            match process.ended() {
                Some(status) => break status,
                None => assert!(Instant::now() < until, "{} is there after {bound:?}", self.id),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(status.success(), "{} ends well: {status}", self.id);
    }
}

async fn drill(pair: Pair, model: &str, long: u32, clients: usize) {
    let etcd = real::etcd();
    let roles = ["router", "drafter", "expert"];
    let mut nodes: Vec<Node> = roles.iter().flat_map(|role| [1, 2].map(|number| Node::new(role, number))).collect();
    for node in &mut nodes {
        node.start(&etcd, pair).await;
    }
    for node in &nodes {
        node.ready().await;
    }
    let calm = Client::connect(&nodes[0].listen).await.expect("the router is ready");
    let mut cases = Vec::new();
    for request in load::requests(model, long) {
        cases.push(Case::calm(&calm, request).await);
    }
    drop(calm);
    let backend =
        |node: &Node| Backend { admin: node.admin.clone(), fronts: vec![node.listen.clone(), node.http.clone()] };
    let balancer = Balancer::start(nodes.iter().filter(|node| node.role == "router").map(backend).collect()).await;
    let [grpc, http] = [&balancer.fronts[0], &balancer.fronts[1]];
    tokio::time::sleep(LAG * 2).await;

    let failures = Failures::default();
    let mut openai = OpenAi::start(http, model, long).await;
    let load = Load::start(clients, grpc, &cases, &failures).await;
    // One after the other, then a drafter and an expert together.
    let steps: [&[usize]; 7] = [&[4], &[2], &[0], &[5], &[3], &[1], &[2, 4]];
    for step in steps {
        let (began, before) = (Instant::now(), load.answered());
        let mut streams = Vec::new();
        // Each strategy's long text, on either router.
        for case in cases.iter().filter(|case| case.request.parameters.as_ref().is_some_and(|p| p.ignore_eos)) {
            streams.push(load::begun(grpc, case, &failures).await);
        }
        openai.burst().await;
        step.iter().for_each(|&node| nodes[node].signal());
        let signalled = began.elapsed();
        for &node in step {
            nodes[node].gone().await;
        }
        let gone = began.elapsed();
        for &node in step {
            nodes[node].start(&etcd, pair).await;
        }
        for &node in step {
            nodes[node].ready().await;
        }
        let ready = began.elapsed();
        // The balancer has to hear it before the next one goes.
        tokio::time::sleep(LAG + Duration::from_millis(500)).await;
        for stream in streams {
            stream.await.expect("a stream's task ends");
        }
        let names: Vec<&str> = step.iter().map(|&node| nodes[node].id.as_str()).collect();
        eprintln!(
            "{}: told after {signalled:.1?}, gone {gone:.1?}, ready {ready:.1?}; {} answers meanwhile",
            names.join(" and "),
            load.answered() - before
        );
        failures.assert_none(&names.join(" and "));
    }
    let answered = openai.stop(&failures).await;
    eprintln!("{} answers over gRPC, {answered} over HTTP", load.answered());
    assert!(load.answered() > 0 && answered > 0);
    load.stop().await;
    failures.assert_none("at the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_is_restarted_under_load_and_no_client_notices() {
    drill(Pair::Demo, "demo", 600, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_that_outlast_a_drain_are_whole() {
    drill(Pair::Synthetic("length=none,acceptance=0.8,drafter.step=2ms,expert.step=25ms"), "synthetic", 300, 2).await;
}
