//! Connections that say nothing lock nobody out, where the process has few file descriptors.

mod real;

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use real::{PATIENCE, Process, cascadia, exchange, folder, free_address, status, unconfigured};

/// Descriptors that the router may have.
const DESCRIPTORS: u32 = 256;

/// More than that, at each of its ports.
const SILENT: usize = 300;

/// A router with few descriptors, its log, and where it listens: gRPC, HTTP and admin.
fn router(log: &std::path::Path) -> (Process, [String; 3]) {
    let addresses = [free_address(), free_address(), free_address()];
    let list = log.with_file_name("nodes.json");
    let expert = r#"{"id": "expert-1", "role": "expert", "address": "127.0.0.1:9", "models": []}"#;
    std::fs::write(&list, format!("[{expert}]")).expect("a file");
    let mut command = Command::new("sh");
    unconfigured(command.stdin(Stdio::null()));
    let [grpc, http, admin] = &addresses;
    command
        .args(["-c", r#"ulimit -n "$1" && shift && exec "$@""#, "sh", &DESCRIPTORS.to_string()])
        .arg(env!("CARGO_BIN_EXE_cascadia"))
        .args(["router", "--id", "router-1", "--listen", grpc, "--http", http, "--admin", admin])
        .arg("--static")
        .arg(&list)
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(log).expect("a file"));
    (Process(command.spawn().expect("sh runs")), addresses)
}

/// The head of an answer, or why there is none.
fn ask(address: &str, path: &str) -> String {
    let asked = exchange(address, &format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n"));
    asked.map_or_else(|error| error.to_string(), |(head, _)| head)
}

fn soon(what: impl Fn() -> bool, says: &str) {
    let until = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < until, "{says}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn silent_connections_at_every_port_lock_nobody_out() {
    // They are sockets of this process, too.
    assert!(cascadia_node::descriptors::most() > 4 * SILENT, "the test needs some descriptors of its own");
    let folder = folder("silence");
    std::fs::create_dir_all(&folder).expect("a folder");
    let log = folder.join("log");
    let (mut router, addresses) = router(&log);
    let [grpc, http, admin] = &addresses;
    soon(|| status(grpc).is_some() && ask(http, "/health").contains("HTTP/1."), "the router starts");

    let connect = |address: &String| TcpStream::connect(address).expect("the system takes the connection");
    let silent: Vec<TcpStream> = addresses.iter().flat_map(|a| (0..SILENT).map(move |_| connect(a))).collect();
    // Each at once, while all those connections are open at this end.
    for _ in 0..3 {
        for (address, path, says) in
            [(http, "/health", "HTTP/1."), (http, "/v1/models", "200"), (admin, "/live", "200")]
        {
            let head = ask(address, path);
            assert!(head.contains(says), "{path}: {head:?}");
        }
        let asked = cascadia().args(["status", "--server", grpc]).output().expect("the binary runs");
        assert!(asked.status.success(), "gRPC is answered: {}", String::from_utf8_lossy(&asked.stderr));
    }
    assert!(router.ended().is_none());
    let said = std::fs::read_to_string(&log).expect("its log");
    let complaints = said.lines().filter(|line| line.contains("cannot accept") || line.contains("is refused")).count();
    assert!(complaints < 100, "one line a second and port at most:\n{said}");
    drop(silent);
    let _ = std::fs::remove_dir_all(&folder);
}
