//! The official OpenAI client for Python as load: a child process that is told what to do in lines.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::load::Failures;
use crate::real::unconfigured;

/// Before its first word it has learned six long texts, one after the other.
const PATIENCE: Duration = Duration::from_secs(300);

pub struct OpenAi {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl OpenAi {
    /// Learns the texts from an idle cluster, then asks without end.
    pub async fn start(http: &str, model: &str, tokens: u32) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let python: PathBuf = root.join("target/clients/python/bin/python");
        let mut command = std::process::Command::new(&python);
        unconfigured(&mut command);
        let mut child = Command::from(command)
            .arg(root.join("tests/clients/rolling.py"))
            .env("BASE_URL", format!("http://{http}/v1"))
            .envs([("MODEL", model), ("TOKENS", &tokens.to_string())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; `tools/clients` installs the clients", python.display()));
        let stdin = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut client = Self { _child: child, stdin, lines };
        client.hears("ready").await;
        client
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("the client speaks");
        line.expect("UTF-8").expect("the client has not ended")
    }

    async fn hears(&mut self, word: &str) {
        assert_eq!(self.line().await, word);
    }

    /// Begins streams that are read to their end; returns when each has brought a token.
    pub async fn burst(&mut self) {
        self.stdin.write_all(b"burst\n").await.expect("the client listens");
        self.hears("begun").await;
    }

    /// Ends it, and adds what went wrong.
    pub async fn stop(mut self, failures: &Failures) -> u64 {
        self.stdin.write_all(b"stop\n").await.expect("the client listens");
        let result: Value = serde_json::from_str(&self.line().await).expect("one JSON object");
        for failure in result["failures"].as_array().expect("a list") {
            failures.add(format!("OpenAI: {failure}"));
        }
        result["answered"].as_u64().expect("a count")
    }
}
