//! The life of a connection: HTTP/1.1 or HTTP/2 on one port, and no connection that is only held.
//!
//! A client that sends its headers slowly, says nothing for minutes or does not read what it asked for loses its own
//! connection; nobody waits for it. Where the listener has no place left, whoever is idle for longest gives way.
//!
//! When the router drains, nobody's request meets a closed connection. Over HTTP/2 a GOAWAY says it. Over HTTP/1.1 every
//! response from then on says `Connection: close`, and a connection that is idle stays until its client has forgotten it:
//! closed earlier, it might cross a request that is just being sent, which no client can tell from a failed one.

use std::time::Duration;

use axum::Router as Routes;
use axum::http::Request;
use cascadia_node::net::{BoxIo, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Listener};
use futures::StreamExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::http::activity::{Activity, ConnTimeouts};
use crate::http::socket::Watched;

/// Headers of a request, bytes with its path, and how many.
pub const HEADER_BYTES: usize = 64 * 1024;
/// See [`HEADER_BYTES`].
pub const MOST_HEADERS: usize = 100;

/// Requests with so many times as much reach us and are answered in OpenAI's envelope. What is beyond is answered by the
/// library with 431 and no body, or, over HTTP/2, with the end of the connection.
const TOLERATED: usize = 4;

/// Requests at once over one HTTP/2 connection.
const MOST_STREAMS: u32 = 256;

/// Serves until `leave`, then ends every connection behind its last response, once its client will not use it any more,
/// and returns when the last has ended. Dropping the future cuts them.
///
/// `leave` says for how long after its last response a client may still use an idle connection.
pub async fn serve(listener: Listener, routes: Routes, patience: ConnTimeouts, leave: impl Future<Output = Duration>) {
    let address = listener.address().to_owned();
    let mut incoming = listener.into_incoming();
    let (leaving, told) = watch::channel(None);
    let mut connections = JoinSet::new();
    tokio::pin!(leave);
    let linger = loop {
        tokio::select! {
            biased;
            linger = &mut leave => break linger,
            Some(_) = connections.join_next() => {}
            accepted = incoming.next() => match accepted {
                Some(Ok(io)) => {
                    connections.spawn(connection(io, routes.clone(), patience, told.clone()));
                }
                Some(Err(error)) => tracing::debug!(%address, %error, "cannot accept a connection"),
                // Nobody new can come; those who are here are served.
                None => break leave.await,
            },
        }
    };
    drop(incoming);
    let _ = leaving.send(Some(linger));
    while connections.join_next().await.is_some() {}
}

async fn connection(
    mut io: BoxIo,
    routes: Routes,
    patience: ConnTimeouts,
    mut leaving: watch::Receiver<Option<Duration>>,
) {
    let activity = Activity::new(patience, io.connection());
    let seen = activity.clone();
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let (routes, busy) = (routes.clone(), seen.begin());
        async move {
            let response = routes.oneshot(request).await?;
            Ok::<_, std::convert::Infallible>(busy.sends(response))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Its own header timeout would also count the time between requests.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(TOLERATED * HEADER_BYTES);
    builder.http1().max_headers(TOLERATED * MOST_HEADERS);
    builder.http2().timer(TokioTimer::new()).max_header_list_size((TOLERATED * HEADER_BYTES) as u32);
    builder.http2().max_concurrent_streams(MOST_STREAMS);
    builder.http2().keep_alive_interval(KEEPALIVE_INTERVAL).keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let io = TokioIo::new(Watched::new(io, activity.clone()));
    let serving = builder.serve_connection(io, TowerToHyperService::new(service));
    tokio::pin!(serving);
    let end = async {
        let told = leaving.wait_for(Option::is_some).await;
        // Whoever would tell is gone only where this connection is cut as well.
        let linger = told.ok().and_then(|linger| *linger).unwrap_or_default();
        activity.drained(linger).await;
    };
    tokio::pin!(end);
    let mut told = false;
    loop {
        tokio::select! {
            biased;
            served = serving.as_mut() => {
                if let Err(error) = served {
                    tracing::debug!(%error, "a connection ended");
                }
                return;
            }
            () = &mut end, if !told => {
                told = true;
                serving.as_mut().graceful_shutdown();
            }
            why = activity.overdue() => {
                tracing::debug!(why, "a connection is closed");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(600);

    /// Longer than anything here takes; a test that waits so long has failed.
    const LIMIT: Duration = Duration::from_secs(20);

    async fn server(patience: ConnTimeouts) -> (String, JoinSet<()>) {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().to_owned();
        let endless = || async {
            let chunk = || Ok::<_, io::Error>(Bytes::from(vec![0u8; 64 * 1024]));
            Body::from_stream(futures::stream::repeat_with(chunk))
        };
        let routes = Routes::new().route("/", get(|| async { "here" })).route("/endless", get(endless));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, routes, patience, std::future::pending()));
        (address, serving)
    }

    /// Whether the server closes the connection, with what it said before.
    async fn closed(socket: &mut TcpStream) -> String {
        let mut said = Vec::new();
        let _ = tokio::time::timeout(LIMIT, socket.read_to_end(&mut said)).await.expect("it is closed");
        String::from_utf8_lossy(&said).into_owned()
    }

    #[tokio::test]
    async fn slow_headers_cost_the_connection_and_idle_ones_do_not() {
        let (address, _serving) = server(ConnTimeouts { headers: SHORT, idle: LONG, write: LONG }).await;
        let mut silent = TcpStream::connect(&address).await.unwrap();
        let mut slow = TcpStream::connect(&address).await.unwrap();
        assert!(ask(&mut silent, "/").await.is_some() && ask(&mut slow, "/").await.is_some());
        slow.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nA: ").await.unwrap();
        assert_eq!(closed(&mut slow).await, "");
        // As long as the slow one was borne and more, the silent one has said nothing, and is served.
        silent.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(closed(&mut silent).await.ends_with("here"));
    }

    #[tokio::test]
    async fn at_the_bound_an_idle_connection_gives_way_and_a_busy_one_does_not() {
        let (address, _leave, _serving) = started_with(LINGER, 2).await;
        // From two addresses: one alone has half of the places.
        let mut busy = TcpStream::connect(&address).await.unwrap();
        // Of two that have said nothing yet, such a small listener would give up the older.
        assert!(ask(&mut busy, "/").await.is_some());
        let slow = tokio::spawn(async move { ask(&mut busy, "/slow").await });
        let elsewhere = || {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            socket.connect(address.parse().unwrap())
        };
        let mut idle = elsewhere().await.unwrap();
        assert!(ask(&mut idle, "/").await.is_some());
        // The server may learn a moment after its client that the response has gone.
        let served = async { while ask(&mut elsewhere().await.unwrap(), "/").await.is_none() {} };
        tokio::time::timeout(LIMIT, served).await.expect("there is a place");
        assert_eq!(closed(&mut idle).await, "");
        assert!(slow.await.unwrap().is_some());
    }

    #[tokio::test]
    async fn idle_connections_end_in_time() {
        let (address, _serving) = server(ConnTimeouts { headers: LONG, idle: SHORT, write: LONG }).await;
        let mut idle = TcpStream::connect(&address).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(closed(&mut idle).await.ends_with("here"));
    }

    #[tokio::test]
    async fn whoever_does_not_read_is_cut_off() {
        let (address, mut serving) = server(ConnTimeouts { headers: LONG, idle: LONG, write: SHORT }).await;
        let mut deaf = TcpStream::connect(&address).await.unwrap();
        deaf.write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(4 * SHORT).await;
        // What the system had taken comes, and then the end; an endless body has none otherwise.
        assert!(!closed(&mut deaf).await.is_empty());
        serving.abort_all();
    }

    #[tokio::test]
    async fn http2_without_tls_is_served_on_the_same_port() {
        let (address, _serving) = server(ConnTimeouts::default()).await;
        let mut socket = TcpStream::connect(&address).await.unwrap();
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut frame = [0u8; 9];
        tokio::time::timeout(LIMIT, socket.read_exact(&mut frame)).await.unwrap().unwrap();
        assert_eq!(frame[3], 4, "its settings");
    }

    /// Asks over HTTP/2 without granting more room for a response than this, answers every ping, and returns once the
    /// server has closed the connection.
    async fn cut_for_not_reading(path: &str, room: u32) {
        let (address, _serving) = server(ConnTimeouts { headers: LONG, idle: LONG, write: SHORT }).await;
        let io = TokioIo::new(TcpStream::connect(&address).await.unwrap());
        let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = client.initial_stream_window_size(room).handshake::<_, Body>(io).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get(format!("http://router{path}")).body(Body::empty()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200, "its headers need no room");
        let _ = tokio::time::timeout(LIMIT, connection).await.expect("it is closed");
        drop(response);
    }

    #[tokio::test]
    async fn over_http_2_whoever_grants_no_room_is_cut_off() {
        for path in ["/", "/endless"] {
            cut_for_not_reading(path, 0).await;
            // Less than the whole: the rest waits where no body is asked for it any more.
            cut_for_not_reading(path, 2).await;
        }
    }

    const LINGER: Duration = Duration::from_secs(3);

    /// A server that is told to leave by the sender, and has left when the task ends.
    async fn started(linger: Duration) -> (String, oneshot::Sender<()>, JoinHandle<()>) {
        started_with(linger, usize::MAX).await
    }

    /// The same with so many connections at most.
    async fn started_with(linger: Duration, most: usize) -> (String, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap().at_most(most);
        let address = listener.address().to_owned();
        let (leave, told) = oneshot::channel();
        let routes = Routes::new().route("/", get(|| async { "here" })).route(
            "/slow",
            get(|| async {
                tokio::time::sleep(LINGER).await;
                "late"
            }),
        );
        let serving = serve(listener, routes, ConnTimeouts::default(), async move {
            let _ = told.await;
            linger
        });
        (address, leave, tokio::spawn(serving))
    }

    async fn ask(socket: &mut TcpStream, path: &str) -> Option<String> {
        socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: router\r\n\r\n").as_bytes()).await.ok()?;
        let (mut answer, mut piece) = (String::new(), [0; 1024]);
        while !answer.ends_with("here") && !answer.ends_with("late") {
            match socket.read(&mut piece).await {
                Ok(0) | Err(_) => return None,
                Ok(read) => answer.push_str(&String::from_utf8_lossy(&piece[..read])),
            }
        }
        Some(answer)
    }

    #[tokio::test]
    async fn an_idle_connection_is_served_until_its_client_has_forgotten_it() {
        let (address, leave, serving) = started(LINGER).await;
        let since = Instant::now();
        let mut used = TcpStream::connect(&address).await.unwrap();
        let mut idle = TcpStream::connect(&address).await.unwrap();
        let mut slow = TcpStream::connect(&address).await.unwrap();
        assert!(ask(&mut used, "/").await.is_some() && ask(&mut idle, "/").await.is_some());
        let slow = tokio::spawn(async move { (ask(&mut slow, "/slow").await, ask(&mut slow, "/").await) });
        tokio::time::sleep(LINGER / 10).await;
        leave.send(()).unwrap();
        let refuses = async { while TcpStream::connect(&address).await.is_ok() {} };
        tokio::time::timeout(LIMIT, refuses).await.expect("nobody new is let in");
        assert!(ask(&mut used, "/").await.is_some(), "a request that was on its way");
        // Nothing is said on this one; it is closed, and not before its time.
        assert_eq!(idle.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(since.elapsed() >= LINGER);
        let (late, after) = slow.await.unwrap();
        assert!(late.is_some() && after.is_some(), "a response that was under way, and one behind it");
        serving.await.unwrap();
        assert_eq!(used.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn http_2_is_told_at_once() {
        // Longer than the test waits.
        let (address, leave, serving) = started(Duration::from_secs(3600)).await;
        let io = TokioIo::new(TcpStream::connect(&address).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = || Request::get("http://router/").body(axum::body::Body::empty()).unwrap();
        assert!(sender.send_request(request()).await.is_ok());
        leave.send(()).unwrap();
        connection.await.unwrap().unwrap();
        serving.await.unwrap();
        assert!(sender.send_request(request()).await.is_err());
    }
}
