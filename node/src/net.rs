//! Sockets in and out, swappable for a simulated network: listener, connections, and gRPC settings of both ends.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cascadia_core::history::hash_bytes;
use cascadia_core::limits;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server};

use crate::accept::{FIRST_WORD, accept};
use crate::channel_pool::{ChannelPool, STREAMS_PER_CHANNEL, StreamPermit};
pub use crate::connections::Connection;
use crate::connections::{self, Connections};
use crate::lifecycle::Shutdown;

/// How often a quiet connection is asked whether it lives.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long it has to answer.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may take to come up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long connections have to end after a server was told to stop.
pub const STOP_GRACE: Duration = Duration::from_secs(2);

/// A byte stream of either kind of network.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// One end of a connection.
pub struct BoxIo {
    io: Pin<Box<dyn Io>>,
    /// Read before, and not yet taken.
    said: Vec<u8>,
    /// Its place among a listener's, where it was accepted.
    connection: Option<Arc<Connection>>,
    /// Ready when the connection is to break.
    cuts: Vec<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl BoxIo {
    /// Wraps a byte stream.
    pub fn new(io: impl Io + 'static) -> Self {
        Self { io: Box::pin(io), said: Vec::new(), connection: None, cuts: Vec::new() }
    }

    /// A connection that was accepted, with what was read of it already.
    pub(crate) fn accepted(stream: TcpStream, said: Vec<u8>, connection: Connection) -> Self {
        Self { said, connection: Some(Arc::new(connection)), ..Self::new(stream) }
    }

    /// Its place among the listener's connections, for a server that says there when it is idle: from now on it breaks
    /// where it has to give way. None where it was not accepted by a listener that counts.
    pub fn connection(&mut self) -> Option<Arc<Connection>> {
        let connection = self.connection.clone()?;
        self.cuts.push(Box::pin(connection.ended()));
        Some(connection)
    }

    fn cut_by(mut self, token: &CancellationToken) -> Self {
        self.cuts.push(Box::pin(token.clone().cancelled_owned()));
        self
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let is_cut = self.cuts.iter_mut().any(|cut| cut.as_mut().poll(cx).is_ready());
        if is_cut { Err(io::Error::new(io::ErrorKind::ConnectionReset, "the server ended it")) } else { Ok(()) }
    }
}

impl fmt::Debug for BoxIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxIo")
    }
}

impl AsyncRead for BoxIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        if !self.said.is_empty() {
            let count = self.said.len().min(buf.remaining());
            buf.put_slice(&self.said[..count]);
            // All of it at once, as a rule.
            self.said.drain(..count);
            return Poll::Ready(Ok(()));
        }
        self.io.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for BoxIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        self.io.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        self.io.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl Connected for BoxIo {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// It is not `host:port`.
    #[error(
        "cannot listen on \"{address}\": it is not of the form host:port; write for example 127.0.0.1:8080, or port 0 for any free one"
    )]
    Syntax {
        /// What was asked.
        address: String,
    },
    /// Somebody listens there.
    #[error(
        "cannot listen on {address}: the port is in use; stop the other process or choose another port (0 takes a free one)"
    )]
    InUse {
        /// What was asked.
        address: String,
    },
    /// The host is another machine's.
    #[error(
        "cannot listen on {address}: this machine does not have that address; use 127.0.0.1, 0.0.0.0 or an address of this machine"
    )]
    NotOurs {
        /// What was asked.
        address: String,
    },
    /// The system refuses the port.
    #[error("cannot listen on {address}: permission denied; choose a port from 1024 up")]
    Denied {
        /// What was asked.
        address: String,
    },
    /// Anything else the system says.
    #[error("cannot listen on {address}: {source}; choose another address")]
    Other {
        /// What was asked.
        address: String,
        /// What the system says.
        source: io::Error,
    },
}

impl NetError {
    fn of(address: &str, source: io::Error) -> Self {
        let address = address.to_owned();
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { address },
            io::ErrorKind::AddrNotAvailable => Self::NotOurs { address },
            io::ErrorKind::PermissionDenied => Self::Denied { address },
            io::ErrorKind::InvalidInput => Self::Syntax { address },
            _ => Self::Other { address, source },
        }
    }
}

/// Whether an address has the form `host:port`.
///
/// # Errors
/// One sentence that names the address and the cure.
pub fn check_address(address: &str) -> Result<(), NetError> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(()),
        _ => Err(NetError::Syntax { address: address.to_owned() }),
    }
}

/// Ports that no system draws outgoing connections from: one that was free and is let go is not taken by a client before
/// its process listens, or between two starts of it.
const UNDRAWN: std::ops::Range<u32> = 10_000..30_000;

/// A loopback address that nothing listens on, for a process that is told where to listen; each call gives another one.
///
/// # Errors
/// When no port is free.
pub fn free_address() -> io::Result<String> {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let width = UNDRAWN.end - UNDRAWN.start;
    // Processes that run side by side begin apart.
    let first = std::process::id().wrapping_mul(61) % width;
    let next = || UNDRAWN.start + (first + TRIED.fetch_add(1, Ordering::Relaxed)) % width;
    let mut addresses = (0..width).map(|_| format!("127.0.0.1:{}", next()));
    addresses.find(|address| std::net::TcpListener::bind(address).is_ok()).ok_or_else(|| {
        io::Error::other(format!("no port from {} to {} is free on 127.0.0.1", UNDRAWN.start, UNDRAWN.end))
    })
}

/// An address with whoever connects to it.
pub struct Listener {
    address: String,
    incoming: BoxStream<'static, io::Result<BoxIo>>,
    /// Those it has accepted; a simulated network counts none.
    connections: Option<Connections>,
    origin: u64,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.address)
    }
}

impl Listener {
    /// Listens on `host:port`; port 0 takes a free one.
    ///
    /// # Errors
    /// One sentence that names the address, the cause and the cure.
    pub async fn bind(address: &str) -> Result<Self, NetError> {
        check_address(address)?;
        let listener = TcpListener::bind(address).await.map_err(|source| NetError::of(address, source))?;
        let bound = listener.local_addr().map_err(|source| NetError::of(address, source))?.to_string();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let origin = hash_bytes(since, &std::process::id().to_le_bytes());
        let connections = Connections::new(connections::MOST);
        let incoming = accept(listener, connections.clone(), FIRST_WORD).boxed();
        Ok(Self { address: bound, incoming, connections: Some(connections), origin })
    }

    /// Takes no more than so many connections at once.
    #[must_use]
    pub fn at_most(self, connections: usize) -> Self {
        if let Some(taken) = &self.connections {
            taken.lower(connections);
        }
        self
    }

    /// Whoever a stream brings, for a simulated network.
    pub fn from_stream<I: Io + 'static>(
        address: String,
        incoming: impl Stream<Item = io::Result<I>> + Send + 'static,
    ) -> Self {
        Self { address, incoming: incoming.map(|io| io.map(BoxIo::new)).boxed(), connections: None, origin: 0 }
    }

    /// The real address, `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Differs between two sockets that had the same address; 0 for a simulated one.
    pub(crate) fn origin(&self) -> u64 {
        self.origin
    }

    /// The connections, as `serve_with_incoming_shutdown` takes them.
    ///
    /// They outlive whoever served them; [`serve`] cuts them.
    pub fn into_incoming(self) -> impl Stream<Item = io::Result<BoxIo>> + Send + Unpin + 'static {
        self.incoming
    }
}

impl Listener {
    /// The connections, which break when the guard is dropped.
    pub(crate) fn into_owned(self) -> (BoxStream<'static, io::Result<BoxIo>>, DropGuard) {
        let token = CancellationToken::new();
        let guard = token.clone().drop_guard();
        (self.incoming.map(move |io| io.map(|io| io.cut_by(&token))).boxed(), guard)
    }
}

type Dial = dyn Fn(Uri) -> BoxFuture<'static, io::Result<BoxIo>> + Send + Sync;

/// The way to other nodes: lazily connected channels, for each address as many as its streams need.
#[derive(Clone)]
pub struct Connector {
    dial: Arc<Dial>,
    channels: Arc<Mutex<BTreeMap<String, ChannelPool<Channel>>>>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    /// Over TCP.
    #[must_use]
    pub fn tcp() -> Self {
        Self::from_fn(|uri| {
            Box::pin(async move {
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
                stream.set_nodelay(true)?;
                Ok(BoxIo::new(stream))
            })
        })
    }

    /// Over whatever `dial` opens, for a simulated network.
    pub fn from_fn(dial: impl Fn(Uri) -> BoxFuture<'static, io::Result<BoxIo>> + Send + Sync + 'static) -> Self {
        Self { dial: Arc::new(dial), channels: Arc::default() }
    }

    /// The channel to `host:port`, for calls that are short or few. It connects when first used and again after it
    /// broke; while the other end is away calls fail at once.
    #[must_use]
    pub fn channel(&self, address: &str) -> Channel {
        self.with_lanes(address, |channels| channels.first(|| self.open(address)))
    }

    /// A channel to `host:port` with room for one more session's stream, and the session's claim to it.
    #[must_use]
    pub fn permit(&self, address: &str) -> (Channel, StreamPermit) {
        self.with_lanes(address, |channels| channels.permit(|| self.open(address)))
    }

    fn with_lanes<T>(&self, address: &str, act: impl FnOnce(&mut ChannelPool<Channel>) -> T) -> T {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channels) = channels.get_mut(address) {
            return act(channels);
        }
        act(channels.entry(address.to_owned()).or_insert_with(|| ChannelPool::new(STREAMS_PER_CHANNEL)))
    }

    /// Drops the channels to an address whose node is gone; calls in flight keep theirs.
    pub fn forget(&self, address: &str) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
    }

    fn open(&self, address: &str) -> Channel {
        // An address that is no URI is one that nobody answers at: the error comes from the call, as for any other.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .unwrap_or_else(|_| Endpoint::from_static("http://invalid.invalid:1"));
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(limits::STREAM_WINDOW)
            .initial_connection_window_size(limits::CONNECTION_WINDOW);
        let (dial, address) = (self.dial.clone(), address.to_owned());
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let (connecting, address) = (dial(uri), address.clone());
            async move {
                match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                    Ok(Ok(io)) => Ok(TokioIo::new(io)),
                    Ok(Err(error)) => Err(io::Error::new(error.kind(), format!("cannot reach {address}: {error}"))),
                    Err(_) => Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("cannot reach {address}: no answer within {} s", CONNECT_TIMEOUT.as_secs()),
                    )),
                }
            }
        }))
    }
}

/// A gRPC server with the cluster's windows, keepalive and bound on streams.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_concurrent_streams(limits::MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// Returns when the node is gone and has had [`STOP_GRACE`] for what was still open.
pub fn gone(shutdown: &Shutdown) -> impl Future<Output = ()> + Send + 'static {
    let stopped = shutdown.stopped();
    async move {
        stopped.await;
        tokio::time::sleep(STOP_GRACE).await;
    }
}

/// Serves until it `closes`: then GOAWAY, and what is still open when time `cuts` it ends there.
///
/// Dropping the future cuts at once, as the end of a process would: connections are tasks of their own, and without that
/// they would outlive whoever served them.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    routes: Routes,
    listener: Listener,
    closes: impl Future<Output = ()>,
    cuts: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    serve_by(server(), routes, listener, closes, cuts).await
}

/// Serves pages over HTTP/1.1 or HTTP/2 until stopped; a connection that is idle for half a minute ends.
pub(crate) async fn serve_pages(
    pages: axum::Router,
    listener: Listener,
    shutdown: &Shutdown,
) -> Result<(), tonic::transport::Error> {
    serve_by(server().accept_http1(true), pages.into(), listener, shutdown.stopped(), gone(shutdown)).await
}

async fn serve_by(
    mut server: Server,
    routes: Routes,
    listener: Listener,
    closes: impl Future<Output = ()>,
    cuts: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (incoming, _cut) = listener.into_owned();
    let serving = server.add_routes(routes).serve_with_incoming_shutdown(incoming, closes);
    tokio::select! {
        biased;
        served = serving => served,
        () = cuts => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_says_why_it_cannot_listen() {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        assert!(!listener.address().ends_with(":0"));
        let taken = Listener::bind(listener.address()).await.unwrap_err().to_string();
        assert!(taken.contains(listener.address()) && taken.contains("in use"), "{taken}");
        for bad in ["", "8080", ":8080", "localhost", "127.0.0.1:http", "127.0.0.1:70000"] {
            assert!(matches!(Listener::bind(bad).await, Err(NetError::Syntax { .. })), "{bad}");
        }
        assert!(matches!(Listener::bind("192.0.2.1:0").await, Err(NetError::NotOurs { .. })));
    }

    #[tokio::test]
    async fn two_starts_at_one_address_differ() {
        let (first, second) = loop {
            let first = Listener::bind("127.0.0.1:0").await.unwrap();
            let (address, origin) = (first.address().to_owned(), first.origin());
            drop(first);
            // Somebody else may have got the port meanwhile.
            if let Ok(second) = Listener::bind(&address).await {
                break (origin, second.origin());
            }
        };
        assert_ne!(first, second);
    }
}
