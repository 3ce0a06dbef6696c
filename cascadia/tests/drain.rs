//! A node is told to go: by SIGTERM, by SIGTERM twice, by `cascadia drain`; and refuses whoever may not tell it.

mod real;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use real::{Etcd, PATIENCE, Process, cascadia, etcd, folder, free_address, ready, synthetic_command, wait_for};

/// Texts of 10 ms a token: a drain comes in the middle of one.
const PAIR: &str = "length=none,drafter.step=10ms,expert.step=10ms";

struct Cluster {
    etcd: Etcd,
    server: String,
    token: PathBuf,
    _nodes: Vec<Process>,
}

impl Cluster {
    /// A router, a drafter and an expert, and the token that every node started here has.
    fn start() -> Self {
        let folder = folder("drain");
        std::fs::create_dir_all(&folder).expect("a folder");
        let token = folder.join("token");
        std::fs::write(&token, "of-this-test\n").expect("a file");
        let mut cluster = Self { etcd: etcd(), server: free_address(), token, _nodes: Vec::new() };
        let router = cluster.node("router", "router-1", &cluster.server);
        let nodes = [("expert", "expert-1"), ("drafter", "drafter-1")];
        let nodes = nodes.map(|(role, id)| cluster.node(role, id, &free_address()));
        cluster._nodes = std::iter::once(router).chain(nodes).collect();
        wait_for(&cluster.server, |status| ready(status, "expert") == 1 && ready(status, "drafter") == 1);
        cluster
    }

    fn node(&self, role: &str, id: &str, listen: &str) -> Process {
        let mut command = synthetic_command(role, id, listen, &self.etcd, PAIR);
        command.arg("--admin-token-file").arg(&self.token);
        Process(command.spawn().expect("the binary runs"))
    }

    /// One more drafter, once the router hears it.
    fn drafter(&self, id: &str) -> Process {
        let process = self.node("drafter", id, &free_address());
        wait_for(&self.server, |status| ready(status, "drafter") == 2);
        process
    }

    /// A text that takes long enough to be in the way of a drain, under way.
    fn long_answer(&self, tokens: u32) -> Process {
        let mut command = cascadia();
        command.args(["generate", "--json", "--server", &self.server, "--ignore-eos"]);
        command.args(["--max-tokens", &tokens.to_string()]);
        command.args(["--strategy", "drafter", "--seed", "7", "How many apples does Mia have?"]);
        Process(command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("the binary runs"))
    }

    fn drain(&self, arguments: &[&str]) -> Output {
        let mut command = cascadia();
        command.arg("drain").args(arguments).env_remove("CASCADIA_ADMIN_TOKEN").output().expect("the binary runs")
    }

    fn token(&self) -> &str {
        self.token.to_str().expect("a UTF-8 path")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.token.parent().map(std::fs::remove_dir_all);
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_node_goes_when_it_is_told_to_by_whoever_may() {
    let cluster = Cluster::start();
    let server = cluster.server.as_str();

    // SIGTERM, and the command: the node ends well, and says farewell in etcd.
    let mut by_signal = cluster.drafter("drafter-2");
    by_signal.signal("TERM");
    assert!(by_signal.wait(PATIENCE).success());
    wait_for(server, |status| !status.to_string().contains("drafter-2"));

    let mut by_command = cluster.drafter("drafter-3");
    let drained = cluster.drain(&["drafter-3", "--server", server, "--admin-token-file", cluster.token()]);
    assert!(drained.status.success() && said(&drained).contains("drafter-3 is gone"), "{}", said(&drained));
    assert!(by_command.wait(PATIENCE).success());
    wait_for(server, |status| !status.to_string().contains("drafter-3"));

    // Whoever may not changes nothing.
    let mut stays = cluster.drafter("drafter-4");
    let wrong = cluster.token.with_extension("wrong");
    std::fs::write(&wrong, "of-another-test").expect("a file");
    let wrong = wrong.to_str().expect("a UTF-8 path").to_owned();
    let refused = cluster.drain(&["drafter-4", "--server", server, "--admin-token-file", &wrong]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("401") && said(&refused).contains("wrong"), "{}", said(&refused));
    let bare = cluster.drain(&["drafter-4", "--server", server]);
    assert!(bare.status.code() == Some(1) && said(&bare).contains("--admin-token-file"), "{}", said(&bare));
    let unknown = cluster.drain(&["drafter-9", "--server", server, "--admin-token-file", cluster.token()]);
    assert!(said(&unknown).contains("drafter-9") && said(&unknown).contains("drafter-4"), "{}", said(&unknown));
    std::thread::sleep(Duration::from_secs(1));
    assert!(stays.ended().is_none());
    wait_for(server, |status| ready(status, "drafter") == 2);

    // A node without a token says how to get one.
    let admin = free_address();
    let mut command = synthetic_command("drafter", "drafter-5", &free_address(), &cluster.etcd, PAIR);
    let mut silent = Process(command.args(["--admin", &admin]).spawn().expect("the binary runs"));
    wait_for(server, |status| ready(status, "drafter") == 3);
    let refused = cluster.drain(&["--admin", &admin, "--admin-token-file", cluster.token()]);
    assert!(said(&refused).contains("403") && said(&refused).contains("--admin-token-file"), "{}", said(&refused));
    assert!(silent.ended().is_none());
}

#[test]
fn the_last_of_a_model_finishes_and_a_second_signal_does_not_wait() {
    let cluster = Cluster::start();
    let mut answer = cluster.long_answer(400);
    wait_for(&cluster.server, |status| sessions(status, "drafter-1") > 0);
    let arguments = ["--server", &cluster.server, "--admin-token-file", cluster.token(), "--no-wait"];
    let asked = cluster.drain(&[&["drafter-1"][..], &arguments].concat());
    assert!(asked.status.success(), "{}", said(&asked));
    assert!(answer.wait(PATIENCE).success());
    let mut text = String::new();
    answer.0.stdout.take().expect("piped").read_to_string(&mut text).expect("UTF-8");
    let answer: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
    assert_eq!(answer["token_ids"].as_array().expect("ids").len(), 400);
    assert_eq!(answer["reproducible"], true);
    wait_for(&cluster.server, |status| !status.to_string().contains("drafter-1"));

    // Twice: what is open is cut, and the session goes on elsewhere or says why not.
    let mut last = cluster.node("drafter", "drafter-2", &free_address());
    wait_for(&cluster.server, |status| ready(status, "drafter") == 1);
    // Long enough to outlast all that is said meanwhile, also where each word takes a process a second.
    let mut answer = cluster.long_answer(1_000);
    wait_for(&cluster.server, |status| sessions(status, "drafter-2") > 0);
    last.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    assert!(last.ended().is_none(), "a session is open");
    last.signal("TERM");
    assert!(last.wait(PATIENCE).success());
    assert!(answer.ended().is_none(), "the expert goes on with it");
    assert!(answer.wait(PATIENCE).success());
}

fn sessions(status: &serde_json::Value, node: &str) -> u64 {
    let members = status["members"].as_array().expect("members");
    let member = members.iter().find(|member| member["id"] == node);
    member.and_then(|member| member["load"]["sessions"].as_u64()).unwrap_or(0)
}
