//! llama.cpp from outside: `llama-bench` run by run, `llama-server` over HTTP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cascadia::Failure;
use serde_json::{Value, json};

/// Tokens drafted at a time, by them at most: what a pass over 504 M verifies at little more than the price of one.
pub const DRAFTS: u32 = 10;

/// How long a server may take to load its models.
const LOADING: Duration = Duration::from_secs(120);

/// How its column is filled.
pub const MISSING: &str =
    "llama.cpp is not measured: build it with `bench/llama.cpp/build DIR` and give `--llama-cpp DIR`";

/// As [`MISSING`], where there is half of it.
pub const NO_SERVER: &str = "there is no llama-server beside llama-bench, so sessions are not compared; build it too";

/// The programs of a build.
#[derive(Clone, Debug)]
pub struct LlamaCpp {
    folder: PathBuf,
    threads: String,
}

/// What one run of llama-bench gave, tokens a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// One in a pass.
    pub plain: f64,
    /// Eight.
    pub block: f64,
    /// A prompt.
    pub prompt: f64,
}

impl LlamaCpp {
    /// Finds llama-bench in a folder, or in its `build/bin`.
    ///
    /// # Errors
    /// When it is in neither.
    pub fn find(dir: &Path, threads: u32) -> Result<Self, Failure> {
        let mut places = [dir.to_owned(), dir.join("build/bin")].into_iter();
        let folder = places
            .find(|folder| folder.join("llama-bench").is_file())
            .ok_or_else(|| format!("{} holds no llama-bench; build it with bench/llama.cpp/build", dir.display()))?;
        Ok(Self { folder, threads: threads.to_string() })
    }

    /// Runs llama-bench with `repetitions` of each.
    ///
    /// # Errors
    /// When it fails or says something else than expected.
    pub fn bench(
        &self,
        model: &Path,
        (plain, block, prompt): (usize, usize, usize),
        repetitions: usize,
    ) -> Result<Rates, Failure> {
        let mut command = Command::new(self.folder.join("llama-bench"));
        command.arg("-m").arg(model).args([
            "-t",
            &self.threads,
            "-o",
            "json",
            "-ngl",
            "0",
            "-r",
            &repetitions.to_string(),
        ]);
        command.args(["-n", &plain.to_string(), "-p", &format!("{block},{prompt}")]);
        let output = command.stderr(Stdio::null()).output()?;
        let tests: Vec<Value> = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("llama-bench failed ({}) or printed no JSON: {error}", output.status))?;
        let rate = |p: usize, n: usize| {
            let test = tests.iter().find(|test| test["n_prompt"] == p && test["n_gen"] == n);
            let rate = test.and_then(|test| test["avg_ts"].as_f64());
            rate.ok_or_else(|| Failure::from(format!("llama-bench did not measure {p} and {n} tokens")))
        };
        Ok(Rates { plain: rate(0, plain)?, block: rate(block, 0)?, prompt: rate(prompt, 0)? })
    }

    /// Whether llama-server is there too.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.folder.join("llama-server").is_file()
    }

    /// Starts a server with `slots` sessions at a time, with a draft model if one is given.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn serve(&self, model: &Path, slots: usize, drafter: Option<&Path>) -> Result<Server, Failure> {
        // Free a moment ago; nothing else asks for ports here.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(self.folder.join("llama-server"));
        command.arg("-m").arg(model).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["-t", &self.threads, "-tb", &self.threads, "-np", &slots.to_string()]);
        command.args(["-c", &(1024 * slots).to_string(), "-ngl", "0", "--no-webui", "--cache-ram", "0"]);
        if let Some(drafter) = drafter {
            command.arg("-md").arg(drafter).args(["--spec-type", "draft-simple"]);
            command.args(["--spec-draft-n-max", &DRAFTS.to_string()]);
            command.args(["-td", &self.threads, "-tbd", &self.threads]);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut server = Server { child, address: format!("127.0.0.1:{port}") };
        let begun = Instant::now();
        while server.exchange("GET", "/health", "").is_err() {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("llama-server ended at once: {status}").into());
            }
            if begun.elapsed() > LOADING {
                return Err("llama-server does not come up".into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }
}

/// A running llama-server; dropping it ends it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: String,
}

/// What a server wrote.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: u64,
}

impl Server {
    /// The greedy continuation of a prompt.
    ///
    /// # Errors
    /// When the server does not give one.
    pub fn complete(&self, prompt: &[u32], most: u32) -> Result<Completion, Failure> {
        let body = json!({"prompt": prompt, "n_predict": most, "temperature": 0, "cache_prompt": false});
        let answer: Value = serde_json::from_str(&self.exchange("POST", "/completion", &body.to_string())?)?;
        let tokens = answer["tokens_predicted"].as_u64().ok_or("llama-server counts no tokens")?;
        Ok(Completion { text: answer["content"].as_str().unwrap_or_default().to_owned(), tokens })
    }

    /// One request of HTTP/1.0: the connection's end is the answer's.
    fn exchange(&self, method: &str, path: &str, body: &str) -> Result<String, Failure> {
        let mut stream = TcpStream::connect(&self.address)?;
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
            _ => Err(format!("llama-server answered: {}", answer.lines().next().unwrap_or_default()).into()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
