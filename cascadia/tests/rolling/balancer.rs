//! A TCP balancer as they come: it relays bytes, asks each backend's `/ready` every quarter of a second, and acts on the
//! answer a second late. Connections that exist stay where they are.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

const POLL: Duration = Duration::from_millis(250);

/// How late it acts.
pub const LAG: Duration = Duration::from_secs(1);

/// A node behind it.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Where its `/ready` is.
    pub admin: String,
    /// Where it serves, one address for each front.
    pub fronts: Vec<String>,
}

/// Believed readiness of each backend.
type Beliefs = Arc<Mutex<Vec<bool>>>;

/// The running balancer.
#[derive(Debug)]
pub struct Balancer {
    /// Where clients connect, one address for each front.
    pub fronts: Vec<String>,
}

impl Balancer {
    pub async fn start(backends: Vec<Backend>) -> Self {
        let beliefs: Beliefs = Arc::new(Mutex::new(vec![false; backends.len()]));
        for (i, backend) in backends.iter().enumerate() {
            tokio::spawn(watch(i, backend.admin.clone(), beliefs.clone()));
        }
        let mut fronts = Vec::new();
        for front in 0..backends[0].fronts.len() {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
            fronts.push(listener.local_addr().expect("it is bound").to_string());
            let targets = backends.iter().map(|backend| backend.fronts[front].clone()).collect();
            tokio::spawn(relay(listener, targets, beliefs.clone()));
        }
        Self { fronts }
    }
}

/// Believes a backend's word once it is as old as the lag.
async fn watch(backend: usize, admin: String, beliefs: Beliefs) {
    let mut said: VecDeque<(Instant, bool)> = VecDeque::new();
    loop {
        said.push_back((Instant::now(), is_ready(&admin).await));
        while said.front().is_some_and(|(when, _)| when.elapsed() >= LAG) {
            let (_, ready) = said.pop_front().expect("it is there");
            beliefs.lock().expect("no holder panics")[backend] = ready;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether the page says 200.
pub async fn is_ready(admin: &str) -> bool {
    let asking = async {
        let mut socket = TcpStream::connect(admin).await?;
        socket.write_all(b"GET /ready HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.starts_with("HTTP/1.1 200"))
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), asking).await, Ok(Ok(true)))
}

async fn relay(listener: TcpListener, targets: Vec<String>, beliefs: Beliefs) {
    let next = AtomicUsize::new(0);
    loop {
        let (mut client, from): (TcpStream, SocketAddr) = listener.accept().await.expect("a listener accepts");
        let ready: Vec<usize> = {
            let beliefs = beliefs.lock().expect("no holder panics");
            (0..targets.len()).filter(|&i| beliefs[i]).collect()
        };
        let Some(&target) = ready.get(next.fetch_add(1, Ordering::Relaxed) % ready.len().max(1)) else {
            eprintln!("balancer: nobody is ready for {from}");
            continue;
        };
        let target = targets[target].clone();
        tokio::spawn(async move {
            let _ = client.set_nodelay(true);
            match TcpStream::connect(&target).await {
                Ok(mut server) => {
                    let _ = server.set_nodelay(true);
                    // However it ends, both sides see it.
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                }
                Err(error) => eprintln!("balancer: {target} is believed ready and does not answer: {error}"),
            }
        });
    }
}
