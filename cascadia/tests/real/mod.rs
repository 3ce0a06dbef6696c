//! Real processes and a real etcd, for tests.

#![allow(dead_code, reason = "each test file uses a part")]

mod address;
mod environment;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use address::free_address;
pub use environment::unconfigured;
use serde_json::Value;

/// Longer than anything here takes; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with the test.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.0.id().to_string()]).status();
        assert!(sent.expect("kill is on the PATH").success(), "the process is there");
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("it is our child")
    }

    /// Waits until it has ended.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let until = Instant::now() + patience;
        loop {
            match self.ended() {
                Some(status) => return status,
                None if Instant::now() > until => panic!("a process is still there after {patience:?}"),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// A folder of this test process that nobody else uses.
pub fn folder(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("cascadia-{name}-{}-{count}", std::process::id()));
    // Ids of processes come again; one that was killed has left its folder.
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

/// A running etcd with no data.
pub struct Etcd {
    _process: Process,
    /// Its URL.
    pub address: String,
    folder: PathBuf,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub fn etcd() -> Etcd {
    let (client, peer) = (format!("http://{}", free_address()), format!("http://{}", free_address()));
    let folder = folder("etcd");
    let process = Command::new("etcd")
        .args(["--name", "one", "--data-dir"])
        .arg(&folder)
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}"), "--unsafe-no-fsync"])
        // What the distribution's etcd calls a 64-bit ARM, where it wants to be told that this is meant.
        .env("ETCD_UNSUPPORTED_ARCH", "arm64")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("these tests need etcd on the PATH: `tools/test` installs it");
    Etcd { _process: Process(process), address: client, folder }
}

/// The binary, with nothing to read and nothing configured.
pub fn cascadia() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cascadia"));
    unconfigured(command.stdin(Stdio::null()));
    command
}

/// The command that runs a node of the demo pair.
pub fn node_command(role: &str, id: &str, listen: &str, etcd: &Etcd) -> Command {
    let mut command = bare_command(role, id, listen, etcd);
    if role != "router" {
        command.arg("--model").arg(pair().join(role));
    }
    if role == "expert" {
        command.args(["--served-model", "demo"]);
    }
    command
}

/// The command that runs a node of a synthetic pair, whose texts take as long as is set.
pub fn synthetic_command(role: &str, id: &str, listen: &str, etcd: &Etcd, synthetic: &str) -> Command {
    let mut command = bare_command(role, id, listen, etcd);
    if role != "router" {
        command.args(["--synthetic", synthetic]);
    }
    command
}

fn bare_command(role: &str, id: &str, listen: &str, etcd: &Etcd) -> Command {
    let mut command = cascadia();
    command.args([role, "--id", id, "--listen", listen, "--etcd", &etcd.address, "--lease-ttl", "2"]);
    // A test that wants HTTP gives an address by flag.
    command.env("CASCADIA_HTTP", "off").stdout(Stdio::null());
    command
}

pub fn node(role: &str, id: &str, listen: &str, etcd: &Etcd) -> Process {
    Process(node_command(role, id, listen, etcd).spawn().expect("the binary runs"))
}

/// The shipped models.
pub fn pair() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/pair")
}

/// What `cascadia status` says, while the router answers.
pub fn status(server: &str) -> Option<Value> {
    let output = cascadia().args(["status", "--json", "--server", server]).output().expect("the binary runs");
    output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("one JSON object"))
}

pub fn wait_for(server: &str, what: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        match status(server) {
            Some(status) if what(&status) => return status,
            last if Instant::now() > until => panic!("not within {PATIENCE:?}; last: {last:?}"),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The head and the body of the answer to a request of HTTP/1.0, which has no chunks.
pub fn exchange(address: &str, request: &str) -> std::io::Result<(String, String)> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(request.as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.to_owned(), body.to_owned()))
}

/// Nodes of a role that the router hears.
pub fn ready(status: &Value, role: &str) -> usize {
    let members = status["members"].as_array().expect("members");
    let heard = members.iter().filter(|m| m["role"] == role && m["state"] == "ready" && !m["load"].is_null());
    heard.count()
}
