//! The life of a connection: HTTP/1.1 or HTTP/2 on one port, and no connection that is only held.
//!
//! A client that sends its headers slowly, says nothing for minutes or does not read what it asked for loses its own
//! connection; nobody waits for it.
//!
//! When the router drains, nobody's request meets a closed connection. Over HTTP/2 a GOAWAY says it. Over HTTP/1.1 every
//! response from then on says `Connection: close`, and a connection that is idle stays until its client has forgotten it:
//! closed earlier, it might cross a request that is just being sent, which no client can tell from a failed one.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router as Routes;
use axum::body::{Body, Bytes};
use axum::http::Request;
use cascadia_core::limits;
use cascadia_node::net::{BoxIo, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Listener};
use futures::StreamExt;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::ServiceExt;

/// Connections at once; who comes later waits in the system's queue.
const MOST_CONNECTIONS: usize = 16_384;

/// Headers of a request, bytes, and how many.
const HEADER_BYTES: usize = 64 * 1024;
const MOST_HEADERS: usize = 100;

/// Requests at once over one HTTP/2 connection.
const MOST_STREAMS: u32 = 256;

/// How patient a server is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the first byte of a request to the end of its headers.
    pub headers: Duration,
    /// Between requests. Longer than any load balancer's, so that it is never the server that closes first.
    pub idle: Duration,
    /// While the client takes nothing of what is written.
    pub write: Duration,
    /// For how long after its last response a client may still use an idle connection of a router that drains.
    pub linger: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            headers: Duration::from_secs(20),
            idle: Duration::from_secs(600),
            write: limits::CLIENT_WRITE_TIMEOUT,
            linger: Duration::from_secs(6),
        }
    }
}

/// Serves until `leave`, then ends every connection behind its last response, once its client will not use it any more,
/// and returns when the last has ended. Dropping the future cuts them.
pub async fn serve(listener: Listener, routes: Routes, patience: Patience, leave: impl Future<Output = ()>) {
    let address = listener.address().to_owned();
    let mut incoming = listener.into_incoming();
    let (leaving, told) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(leave);
    loop {
        tokio::select! {
            biased;
            () = &mut leave => break,
            Some(_) = connections.join_next() => {}
            accepted = incoming.next(), if connections.len() < MOST_CONNECTIONS => match accepted {
                Some(Ok(io)) => {
                    connections.spawn(connection(io, routes.clone(), patience, told.clone()));
                }
                Some(Err(error)) => tracing::debug!(%address, %error, "cannot accept a connection"),
                None => break,
            },
        }
    }
    drop(incoming);
    let _ = leaving.send(true);
    while connections.join_next().await.is_some() {}
}

async fn connection(io: BoxIo, routes: Routes, patience: Patience, mut leaving: watch::Receiver<bool>) {
    let activity = Activity::new(patience);
    let seen = activity.clone();
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let (routes, busy) = (routes.clone(), seen.begin());
        async move {
            let response = routes.oneshot(request).await?;
            Ok::<_, std::convert::Infallible>(response.map(|body| Counted { body, _busy: busy }))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Its own header timeout would also count the time between requests.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEADER_BYTES);
    builder.http1().max_headers(MOST_HEADERS);
    builder.http2().timer(TokioTimer::new()).max_header_list_size(HEADER_BYTES as u32);
    builder.http2().max_concurrent_streams(MOST_STREAMS);
    builder.http2().keep_alive_interval(KEEPALIVE_INTERVAL).keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let io = TokioIo::new(Watched { io, activity: activity.clone() });
    let serving = builder.serve_connection(io, TowerToHyperService::new(service));
    tokio::pin!(serving);
    let end = async {
        let _ = leaving.wait_for(|leaving| *leaving).await;
        activity.forgotten().await;
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

/// What a connection is doing.
#[derive(Clone, Debug)]
struct Activity(Arc<Mutex<Doing>>);

#[derive(Debug)]
struct Doing {
    patience: Patience,
    /// Requests whose responses are not written yet.
    busy: usize,
    /// When it last was busy.
    idle_since: Instant,
    /// When the first byte of a request came, while none is being answered. Not over HTTP/2, where pings come.
    heard: Option<Instant>,
    /// Since when the client takes nothing.
    blocked: Option<Instant>,
    /// Whether its first byte is an HTTP/2 preface's, once one came.
    http2: Option<bool>,
}

impl Activity {
    fn new(patience: Patience) -> Self {
        let doing = Doing { patience, busy: 0, idle_since: Instant::now(), heard: None, blocked: None, http2: None };
        Self(Arc::new(Mutex::new(doing)))
    }

    fn update<T>(&self, change: impl FnOnce(&mut Doing) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self) -> Busy {
        self.update(|doing| {
            doing.busy += 1;
            doing.heard = None;
        });
        Busy(self.clone())
    }

    /// Returns when the client can be told by a GOAWAY, or will not send another request.
    async fn forgotten(&self) {
        loop {
            let now = Instant::now();
            let look_again = self.update(|doing| doing.forgotten(now));
            if look_again <= now {
                return;
            }
            tokio::time::sleep_until(look_again).await;
        }
    }

    /// Returns when the client has overtaxed our patience, with the reason.
    async fn overdue(&self) -> &'static str {
        loop {
            let now = Instant::now();
            match self.update(|doing| doing.next(now)) {
                (_, Some(why)) => return why,
                (look_again, None) => tokio::time::sleep_until(look_again).await,
            }
        }
    }
}

/// How often a draining router looks whether a response has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Doing {
    /// When the client will have forgotten the connection, or when to look again.
    fn forgotten(&self, now: Instant) -> Instant {
        match (self.http2, self.busy, self.heard) {
            (Some(true), ..) => now,
            (_, 0, None) => self.idle_since + self.patience.linger,
            _ => now + LOOK_AGAIN,
        }
    }

    fn next(&self, now: Instant) -> (Instant, Option<&'static str>) {
        let Patience { headers, idle, write, .. } = self.patience;
        let mut bounds = vec![(now + headers.min(idle).min(write), None)];
        bounds.extend(self.blocked.map(|since| (since + write, Some("it does not read"))));
        if self.busy == 0 {
            bounds.extend(self.heard.map(|since| (since + headers, Some("its headers are slow"))));
            bounds.push((self.idle_since + idle, Some("it is idle")));
        }
        let (at, why) = bounds.into_iter().min_by_key(|(at, _)| *at).unwrap_or((now, None));
        (at, why.filter(|_| at <= now))
    }
}

/// A request that is being answered.
#[derive(Debug)]
struct Busy(Activity);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.update(|doing| {
            doing.busy -= 1;
            doing.idle_since = Instant::now();
        });
    }
}

/// A response's body: its request is answered when it is dropped.
struct Counted {
    body: Body,
    _busy: Busy,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that tells what passes.
struct Watched {
    io: BoxIo,
    activity: Activity,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if let Some(&first) = buf.filled().get(before) {
            self.activity.update(|doing| {
                // No method of HTTP/1 that is served begins so.
                let http2 = *doing.http2.get_or_insert(first == b'P' && buf.filled()[before..].starts_with(b"PRI"));
                if !http2 && doing.busy == 0 {
                    doing.heard.get_or_insert_with(Instant::now);
                }
            });
        }
        Poll::Ready(Ok(()))
    }
}

impl Watched {
    /// Notes whether the client takes what is written.
    fn note<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.activity.update(|doing| match polled {
            Poll::Pending => drop(doing.blocked.get_or_insert_with(Instant::now)),
            Poll::Ready(_) => doing.blocked = None,
        });
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(600);

    /// Longer than anything here takes; a test that waits so long has failed.
    const LIMIT: Duration = Duration::from_secs(20);

    async fn server(patience: Patience) -> (String, JoinSet<()>) {
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
        let (address, _serving) = server(Patience { headers: SHORT, idle: LONG, write: LONG, linger: LONG }).await;
        let mut silent = TcpStream::connect(&address).await.unwrap();
        let mut slow = TcpStream::connect(&address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nA: ").await.unwrap();
        assert_eq!(closed(&mut slow).await, "");
        // As long as the slow one was borne and more, the silent one has said nothing, and is served.
        silent.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(closed(&mut silent).await.ends_with("here"));
    }

    #[tokio::test]
    async fn idle_connections_end_in_time() {
        let (address, _serving) = server(Patience { headers: LONG, idle: SHORT, write: LONG, linger: LONG }).await;
        let mut idle = TcpStream::connect(&address).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(closed(&mut idle).await.ends_with("here"));
    }

    #[tokio::test]
    async fn whoever_does_not_read_is_cut_off() {
        let (address, mut serving) = server(Patience { headers: LONG, idle: LONG, write: SHORT, linger: LONG }).await;
        let mut deaf = TcpStream::connect(&address).await.unwrap();
        deaf.write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(4 * SHORT).await;
        // What the system had taken comes, and then the end; an endless body has none otherwise.
        assert!(!closed(&mut deaf).await.is_empty());
        serving.abort_all();
    }

    #[tokio::test]
    async fn http2_without_tls_is_served_on_the_same_port() {
        let (address, _serving) = server(Patience::default()).await;
        let mut socket = TcpStream::connect(&address).await.unwrap();
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut frame = [0u8; 9];
        tokio::time::timeout(LIMIT, socket.read_exact(&mut frame)).await.unwrap().unwrap();
        assert_eq!(frame[3], 4, "its settings");
    }

    const LINGER: Duration = Duration::from_secs(3);

    /// A server that is told to leave by the sender, and has left when the task ends.
    async fn started(linger: Duration) -> (String, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().to_owned();
        let (leave, told) = oneshot::channel();
        let routes = Routes::new().route("/", get(|| async { "here" })).route(
            "/slow",
            get(|| async {
                tokio::time::sleep(LINGER).await;
                "late"
            }),
        );
        let patience = Patience { linger, ..Patience::default() };
        let serving = serve(listener, routes, patience, async {
            let _ = told.await;
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
        tokio::time::sleep(LINGER / 10).await;
        assert!(TcpStream::connect(&address).await.is_err(), "nobody new is let in");
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
