//! Configuration by file, with real processes: what is printed can be read, what is wrong is said, what changes is taken up.

#[path = "real/address.rs"]
mod address;
#[path = "real/environment.rs"]
mod environment;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use address::free_address;
use environment::unconfigured;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A folder that ends with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cascadia-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary folder can be written");
        Self(path)
    }

    /// Writes a file as careful programs do: aside, then in its place.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let (aside, path) = (self.0.join(format!(".{name}")), self.0.join(name));
        std::fs::write(&aside, text).expect("written");
        std::fs::rename(&aside, &path).expect("renamed");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with the test, and what it logs.
struct Process {
    child: Child,
    log: Receiver<String>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, log }
    }

    /// The next line that holds all of this.
    fn says(&self, words: &[&str]) -> String {
        self.says_after(words).1
    }

    /// The next line that holds all of this, and those before it.
    fn says_after(&self, words: &[&str]) -> (Vec<String>, String) {
        let until = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        loop {
            match self.log.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if words.iter().all(|word| line.contains(word)) => return (lines, line),
                Ok(line) => lines.push(line),
                Err(_) => panic!("it does not say {words:?} but:\n{}", lines.join("\n")),
            }
        }
    }

    fn hang_up(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
    }

    fn ends(&mut self) {
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait().expect("it is ours").is_none() {
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn cascadia() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cascadia"));
    unconfigured(command.stdin(Stdio::null()));
    command
}

fn pair() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/pair")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn checked(command: &str, config: &Path) -> Output {
    cascadia().args([command, "--check", "--config"]).arg(config).output().expect("the binary runs")
}

/// The strategy and the rule of an answer to a request that names none.
fn answered(server: &str) -> Option<(String, String)> {
    let mut command = cascadia();
    command.args(["generate", "--json", "--server", server, "--max-tokens", "4", "Ben has 3 apples."]);
    let output = command.output().expect("the binary runs");
    let answer: Value = output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("one object"))?;
    let word = |key: &str| answer["parameters"][key].as_str().unwrap_or_default().to_owned();
    Some((word("strategy"), word("rule")))
}

/// Waits for such an answer: nodes have to find each other, and without a drafter the expert steps in.
fn wait_for_answer(server: &str, strategy: &str, rule: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = answered(server);
        if answer == Some((strategy.into(), rule.into())) {
            return;
        }
        assert!(Instant::now() < until, "{strategy} {rule} is wanted, the last answer was of {answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn printed_defaults_are_a_configuration() {
    let folder = Folder::new("defaults");
    let printed = cascadia().args(["config", "--print-defaults"]).output().expect("the binary runs");
    assert!(printed.status.success());
    let path = folder.write("cluster.toml", &text(&printed.stdout));
    let output = checked("up", &path);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("ok: up: "), "{}", text(&output.stdout));
    // One role's part, with a variable that is stronger than the file and a flag that is stronger than both.
    let router = cascadia().args(["config", "--print-defaults", "router"]).output().expect("the binary runs");
    let path = folder.write("router.toml", &text(&router.stdout));
    let shown = cascadia()
        .args(["router", "--print-config", "--etcd", "http://127.0.0.1:1", "--default-rule", "chow", "--config"])
        .arg(&path)
        .env("CASCADIA_MOST_TOKENS", "77")
        .env("CASCADIA_DEFAULT_RULE", "opt")
        // Excluded by what is typed, which is stronger.
        .env("CASCADIA_STATIC", "list.json")
        .output()
        .expect("the binary runs");
    let shown = text(&shown.stdout);
    for line in [
        "most_tokens = 77  # CASCADIA_MOST_TOKENS",
        "default_rule = \"chow\"  # --default-rule",
        "etcd = [\"http://127.0.0.1:1\"]  # --etcd",
        "# static is not set",
        "lease_ttl = 15  # default",
        &format!("default_strategy = \"speculative\"  # {}:", path.display()),
    ] {
        assert!(shown.contains(line), "{line} is not in {shown}");
    }
}

#[test]
fn a_check_says_all_that_is_wrong() {
    let folder = Folder::new("check");
    let drafter = pair().join("drafter").display().to_string();
    let good = format!("[node]\netcd = [\"http://127.0.0.1:1\"]\n[drafter]\nmodel = {drafter:?}\n");
    let output = checked("drafter", &folder.write("good.toml", &good));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.starts_with("ok: drafter: ") && said.contains("2 from ") && said.lines().count() == 1, "{said}");

    for (command, config, says) in [
        ("router", "[router]\nmax_sesions = 5\n", &["bad.toml:2: ", "did you mean max_sessions?"][..]),
        ("router", "[node]\netcd = [\"http://127.0.0.1\"]\n", &["host:port"]),
        ("router", "[node]\netcd = [\"http://127.0.0.1:1\"]\nlog = \"a=b=c\"\n", &["log filter", "a=b=c"]),
        ("router", "[router]\nmax_sessions = 5\n", &["--etcd", "bad.toml"]),
        (
            "router",
            "[node]\netcd = [\"http://127.0.0.1:1\"]\nlisten = \"here\"\n[router]\ndefault_rule = \"best\"\n",
            &["here", "best"],
        ),
        (
            "drafter",
            "[node]\nstatic = \"no.json\"\n[drafter]\nmodel = \"/no/such/model\"\n",
            &["no.json", "/no/such/model"],
        ),
        ("up", "[expert]\nslots = 0\n", &["slots is 0"]),
        ("up", "[drafter]\nmodel = \"/no/such/model\"\n", &["a pair needs both"]),
    ] {
        let output = checked(command, &folder.write("bad.toml", config));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{config}: {said}");
        assert!(says.iter().all(|word| said.contains(word)), "{config}: {said}");
        assert!(said.lines().all(|line| line.starts_with("error: ")) && output.stdout.is_empty(), "{said}");
        // What does not pass the check does not start either.
        let mut started = cascadia();
        started.args([command, "--listen", "127.0.0.1:0", "--http", "off", "--config"]).arg(folder.0.join("bad.toml"));
        if command != "drafter" && !config.contains("listen") {
            assert!(!started.output().expect("the binary runs").status.success(), "{config}");
        }
    }
    let output = checked("router", &folder.0.join("nowhere.toml"));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("nowhere.toml"));
}

#[test]
fn half_a_pair_is_one_sentence_with_the_cure() {
    for (given, missing) in [("--expert-model", "--drafter-model"), ("--drafter-model", "--expert-model")] {
        for further in [&[][..], &["--check"]] {
            let mut up = cascadia();
            up.args(["up", "--listen", "127.0.0.1:0", "--http", "off", given]).arg(pair().join("expert")).args(further);
            let output = up.output().expect("the binary runs");
            let said = text(&output.stderr);
            assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
            assert!(
                said.contains(&format!("a pair needs both: add {missing}")) && said.contains("leave both out"),
                "{said}"
            );
        }
    }
    // The other half may stand in the file.
    let folder = Folder::new("half");
    let file =
        folder.write("half.toml", &format!("[drafter]\nmodel = {:?}\n", pair().join("drafter").display().to_string()));
    let mut up = cascadia();
    up.args(["up", "--check", "--expert-model"]).arg(pair().join("expert")).arg("--config").arg(file);
    let output = up.output().expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_running_router_takes_up_what_it_can() {
    let folder = Folder::new("reload");
    let (server, drafter, expert) = (free_address(), free_address(), free_address());
    let record = |role: &str, listen: &str| {
        let mut command = cascadia();
        command.args([role, "--print-record", "--id", role, "--listen", listen, "--model"]).arg(pair().join(role));
        if role == "expert" {
            command.args(["--served-model", "demo"]);
        }
        text(&command.output().expect("the binary runs").stdout)
    };
    folder.write("nodes.json", &format!("[{},{}]", record("drafter", &drafter), record("expert", &expert)));
    let cluster = |more: &str| {
        format!(
            "[node]\nstatic = {:?}\n[drafter]\nid = \"drafter\"\nlisten = {drafter:?}\nmodel = {:?}\n\
             [expert]\nid = \"expert\"\nlisten = {expert:?}\nmodel = {:?}\nserved_model = [\"demo\"]\n\
             [router]\nlisten = {server:?}\nhttp = \"off\"\n{more}",
            folder.0.join("nodes.json").display().to_string(),
            pair().join("drafter").display().to_string(),
            pair().join("expert").display().to_string(),
        )
    };
    // One file for the whole cluster.
    let path = folder.write("cluster.toml", &cluster("default_strategy = \"expert\"\n"));
    let start = |role: &str| Process::start(cascadia().args([role, "--config"]).arg(&path));
    let (_drafter, _expert, router) = (start("drafter"), start("expert"), start("router"));
    wait_for_answer(&server, "expert", "");

    // The file changes: new requests get the new default, and what cannot change is said.
    let rule = "default_strategy = \"speculative_cascade\"\ndefault_rule = \"chow\"\ndefault_alpha = 0.3\n";
    folder.write("cluster.toml", &cluster(rule).replace(&format!("listen = {server:?}"), "listen = \"127.0.0.1:1\""));
    router.says(&["router.default_strategy", "speculative_cascade"]);
    let held = router.says(&["needs a restart", "router.listen"]);
    assert!(held.contains(&server) && held.contains("127.0.0.1:1"), "{held}");
    router.says(&["changed=3", "held=1"]);
    wait_for_answer(&server, "speculative_cascade", "chow");

    // A file that is wrong changes nothing, not even by the part of it that is right.
    folder.write("cluster.toml", &cluster("default_strategy = \"drafter\"\nmax_sessions = 0\n"));
    router.hang_up();
    router.says(&["max-sessions is 0", "stays as it was"]);
    folder.write("cluster.toml", &cluster("default_strategy = \"drafter\"\nmax_sesions = 5\n"));
    router.hang_up();
    router.says(&["cluster.toml:16", "did you mean max_sessions?", "stays as it was"]);
    assert_eq!(answered(&server), Some(("speculative_cascade".into(), "chow".into())));

    // SIGHUP reads it at once.
    folder.write("cluster.toml", &cluster("default_strategy = \"drafter\"\n"));
    router.hang_up();
    router.says(&["router.default_strategy", "drafter"]);
    wait_for_answer(&server, "drafter", "");

    // What is logged changes too: an admitted session is told of, and then no more.
    router.says(&["admitted"]);
    folder.write("cluster.toml", &cluster("log = \"warn\"\n"));
    router.hang_up();
    wait_for_answer(&server, "speculative", "");
    folder.write("cluster.toml", "[router\n");
    router.hang_up();
    let (before, _) = router.says_after(&["no TOML", "stays as it was"]);
    assert!(!before.iter().any(|line| line.contains("INFO") && line.contains("speculative")), "{before:?}");
}

/// Sessions open at any node, as the router says.
fn sessions(server: &str) -> u64 {
    let output = cascadia().args(["status", "--json", "--server", server]).output().expect("the binary runs");
    let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else { return 0 };
    let members = status["members"].as_array().cloned().unwrap_or_default();
    members.iter().filter_map(|member| member["load"]["sessions"].as_u64()).sum()
}

#[test]
fn a_running_expert_takes_up_its_grace() {
    const PACE: &str = "length=none,expert.step=50ms";
    let folder = Folder::new("grace");
    let (server, expert) = (free_address(), free_address());
    let record = cascadia()
        .args(["expert", "--print-record", "--id", "expert", "--listen", &expert, "--synthetic", PACE])
        .output()
        .expect("the binary runs");
    folder.write("nodes.json", &format!("[{}]", text(&record.stdout)));
    let cluster = |grace: u32| {
        format!(
            "[node]\nstatic = {:?}\n[router]\nlisten = {server:?}\nhttp = \"off\"\n\
             [expert]\nid = \"expert\"\nlisten = {expert:?}\nsynthetic = {PACE:?}\ngrace_seconds = {grace}\n",
            folder.0.join("nodes.json").display().to_string(),
        )
    };
    let path = folder.write("cluster.toml", &cluster(600));
    let start = |role: &str| Process::start(cascadia().args([role, "--config"]).arg(&path));
    let (mut expert, _router) = (start("expert"), start("router"));
    let mut client = cascadia();
    client.args(["generate", "--server", &server, "--strategy", "expert", "--max-tokens", "3000", "Count."]);
    let until = Instant::now() + PATIENCE;
    let mut asking = Vec::new();
    while sessions(&server) == 0 {
        assert!(Instant::now() < until, "no session is open");
        // Until the expert is seen a request is refused.
        asking.push(Process::start(&mut client));
        std::thread::sleep(Duration::from_millis(300));
    }

    // The last expert of its model keeps its sessions to their end, or to that of its grace.
    folder.write("cluster.toml", &cluster(0));
    expert.hang_up();
    expert.says(&["expert.grace_seconds", "600", "changed for what comes from now on"]);
    expert.signal("-TERM");
    expert.says(&["grace is over"]);
    expert.ends();
}
