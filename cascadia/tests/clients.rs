//! The official clients judge a running router: OpenAI's for Python and Node, and gRPC's for Python.
//!
//! `tools/test` installs them, pinned, in `target/clients`; the scripts stand in `tests/clients`.

mod real;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use real::{Process, cascadia, folder, unconfigured, wait_for};
use serde_json::Value;

const KEY: &str = "sk-test";

const QUESTION: &str = "Mia has 7 apples. She buys 5 more. How many apples does Mia have now?";

/// `cascadia up`, and where it listens.
struct Up {
    _process: Process,
    grpc: String,
    http: String,
}

fn up(configure: impl FnOnce(&mut Command)) -> Up {
    let mut command = cascadia();
    command.args(["up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--drafters", "1", "--experts", "1"]);
    configure(&mut command);
    let mut process = Process(command.stdout(Stdio::piped()).spawn().expect("the binary runs"));
    let mut lines = BufReader::new(process.0.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let mut after = |words: &str| {
        let line = lines.find(|line| line.contains(words)).unwrap_or_else(|| panic!("it says {words:?}"));
        let rest = line.split(words).nth(1).unwrap_or_default().to_owned();
        rest.split([' ', '/', ',']).next().unwrap_or_default().to_owned()
    };
    let grpc = after("--server ");
    let http = after("http://");
    Up { _process: process, grpc, http }
}

/// The demo pair behind a key, and a pair that takes minutes for a text and holds one session.
struct Judged {
    demo: Up,
    slow: Up,
}

impl Judged {
    fn start() -> Self {
        let demo = up(|command| {
            command.env("CASCADIA_API_KEY", KEY);
        });
        let slow = up(|command| {
            command.args(["--synthetic", "length=none,drafter.step=5ms,expert.step=100ms"]);
            let file = folder("one-session.toml");
            std::fs::write(&file, "[router]\nmax_sessions = 1\n").expect("a file");
            command.arg("--config").arg(file);
        });
        Self { demo, slow }
    }

    /// Runs a script and returns what it printed; then nothing is left open at any node.
    fn run(&self, mut command: Command) -> Value {
        let root = root();
        unconfigured(&mut command);
        let output = command
            .env("BASE_URL", format!("http://{}/v1", self.demo.http))
            .env("SLOW_URL", format!("http://{}/v1", self.slow.http))
            .env("API_KEY", KEY)
            .env("GRPC_SERVER", &self.demo.grpc)
            .env("SLOW_GRPC", &self.slow.grpc)
            .env("PROTO", root.join("proto"))
            .env("NODE_CLIENTS", root.join("target/clients/node"))
            .env("QUESTION", QUESTION)
            .output()
            .unwrap_or_else(|error| panic!("cannot run {command:?} ({error}): run tools/clients once"));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        for up in [&self.demo, &self.slow] {
            // A text of the slow pair takes minutes: what is gone now was cancelled.
            wait_for(&up.grpc, |status| {
                let members = status["members"].as_array().expect("members");
                members.iter().all(|member| member["load"]["sessions"].as_u64().unwrap_or(0) == 0)
            });
        }
        serde_json::from_str(said.lines().last().unwrap_or_default()).expect("it prints one JSON object")
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

fn python(script: &str) -> Command {
    let python = root().join("target/clients/python/bin/python");
    assert!(python.exists(), "the official clients are not installed: run tools/clients once (tools/test does)");
    let mut command = Command::new(python);
    command.arg(root().join("tests/clients").join(script));
    command
}

fn node(script: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(root().join("tests/clients").join(script));
    command
}

#[test]
fn the_official_clients_are_content_and_get_the_same_text() {
    let judged = Judged::start();
    let from_python = judged.run(python("openai_python.py"));
    let from_node = judged.run(node("openai_node.mjs"));
    let from_grpc = judged.run(python("grpc_python.py"));
    assert!(from_python["text"].as_str().is_some_and(|text| !text.is_empty()));
    for key in ["text", "second", "fingerprint"] {
        assert_eq!(from_python[key], from_node[key], "{key}");
    }
    for key in ["text", "second"] {
        assert_eq!(from_python[key], from_grpc[key], "{key}");
    }
    // And without any client.
    let body = serde_json::json!({
        "model": "demo", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 60, "temperature": 0.8,
        "seed": 11,
    });
    let mut curl = Command::new("curl");
    unconfigured(&mut curl);
    let output = curl
        .args(["--silent", "--fail", "--header", &format!("Authorization: Bearer {KEY}")])
        .args(["--header", "Content-Type: application/json", "--data", &body.to_string()])
        .arg(format!("http://{}/v1/chat/completions", judged.demo.http))
        .output();
    if let Ok(output) = output {
        let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert_eq!(answer["choices"][0]["message"]["content"], from_python["text"]);
    }
}
