//! What a connection is doing, and for how long that is borne.
//!
//! A socket tells what passes ([`Watched`]), a request when it begins ([`Activity::begin`]), and its response
//! whether it moves and when its last byte has gone ([`Sending`]): over HTTP/2 a client that grants no room lets nothing
//! of a response out, and no write ever waits for it.
//!
//! [`Watched`]: crate::http::socket::Watched

use std::any::Any;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use cascadia_core::limits;
use cascadia_node::net::Connection;
use http_body::{Frame, SizeHint};
use hyper::body::Buf;
use tokio::time::Instant;

use crate::http::stream::KEEP_ALIVE;

/// How patient a server is.
#[derive(Clone, Copy, Debug)]
pub struct ConnTimeouts {
    /// From the first byte of a request to the end of its headers.
    pub headers: Duration,
    /// Between requests. Longer than any load balancer's, so that it is never the server that closes first.
    pub idle: Duration,
    /// While the client takes nothing of what is written. Longer than any body is silent ([`KEEP_ALIVE`]).
    pub write: Duration,
}

impl Default for ConnTimeouts {
    fn default() -> Self {
        const { assert!(limits::CLIENT_WRITE_TIMEOUT.as_secs() > KEEP_ALIVE.as_secs()) };
        Self { headers: Duration::from_secs(10), idle: Duration::from_secs(600), write: limits::CLIENT_WRITE_TIMEOUT }
    }
}

/// What a connection is doing.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Mutex<ConnState>>);

/// The same, under its lock.
#[derive(Debug)]
pub struct ConnState {
    patience: ConnTimeouts,
    connection: Option<Arc<Connection>>,
    /// Requests whose responses have not gone yet.
    pub busy: usize,
    /// How many of them have a response.
    sending: usize,
    /// When anything of a response was last asked for or taken.
    moved: Instant,
    /// When it last was busy.
    idle_since: Instant,
    /// When the first byte of a request came, while none is being answered. Not over HTTP/2, where pings come.
    pub heard: Option<Instant>,
    /// Since when the client takes nothing.
    pub blocked: Option<Instant>,
    /// Whether its first byte is an HTTP/2 preface's, once one came.
    pub http2: Option<bool>,
}

impl Activity {
    /// Of a connection that was just accepted, and its place among the listener's.
    #[must_use]
    pub fn new(patience: ConnTimeouts, connection: Option<Arc<Connection>>) -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(ConnState {
            patience,
            connection,
            busy: 0,
            sending: 0,
            moved: now,
            idle_since: now,
            heard: None,
            blocked: None,
            http2: None,
        })))
    }

    /// Changes what is known.
    pub fn update<T>(&self, change: impl FnOnce(&mut ConnState) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request is there, headers and all.
    #[must_use]
    pub fn begin(&self) -> InFlight {
        self.update(|doing| {
            doing.busy += 1;
            doing.heard = None;
            doing.say_whether_idle();
        });
        InFlight { activity: self.clone(), sends: false }
    }

    /// Returns when the client can be told by a GOAWAY, or has been idle for so long that it will not send another
    /// request.
    pub async fn drained(&self, linger: Duration) {
        loop {
            let now = Instant::now();
            let look_again = self.update(|doing| doing.drained(linger, now));
            if look_again <= now {
                return;
            }
            tokio::time::sleep_until(look_again).await;
        }
    }

    /// Returns when the client has overtaxed our patience, with the reason.
    pub async fn overdue(&self) -> &'static str {
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

impl ConnState {
    /// At the first request that begins, and when the last has its answer.
    fn say_whether_idle(&self) {
        if let Some(connection) = self.connection.as_ref().filter(|_| self.busy <= 1) {
            connection.set_idle(self.busy == 0);
        }
    }

    /// When the client will have forgotten the connection, or when to look again.
    fn drained(&self, linger: Duration, now: Instant) -> Instant {
        match (self.http2, self.busy, self.heard) {
            (Some(true), ..) => now,
            (_, 0, None) => self.idle_since + linger,
            _ => now + LOOK_AGAIN,
        }
    }

    fn next(&self, now: Instant) -> (Instant, Option<&'static str>) {
        const DEAF: Option<&str> = Some("it does not read");
        let ConnTimeouts { headers, idle, write } = self.patience;
        let mut bounds = vec![(now + headers.min(idle).min(write), None)];
        bounds.extend(self.blocked.map(|since| (since + write, DEAF)));
        if self.busy == 0 {
            bounds.extend(self.heard.map(|since| (since + headers, Some("its headers are slow"))));
            bounds.push((self.idle_since + idle, Some("it is idle")));
        } else if self.sending == self.busy {
            // One that is read excuses those that are not: they may be other people's, behind one proxy.
            bounds.push((self.moved + write, DEAF));
        }
        let (at, why) = bounds.into_iter().min_by_key(|(at, _)| *at).unwrap_or((now, None));
        (at, why.filter(|_| at <= now))
    }
}

/// A request that is being answered, until the last byte of its response has gone.
#[derive(Debug)]
pub struct InFlight {
    activity: Activity,
    sends: bool,
}

impl InFlight {
    /// There is a response.
    #[must_use]
    pub fn sends(mut self, mut response: Response) -> hyper::Response<Sending> {
        self.activity.update(|doing| {
            doing.sending += 1;
            doing.moved = Instant::now();
        });
        self.sends = true;
        let until_sent = response.extensions_mut().remove();
        let held = Arc::new(Held { busy: self, _until_sent: until_sent });
        response.map(|body| Sending { body, held })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.activity.update(|doing| {
            doing.busy -= 1;
            doing.sending -= usize::from(self.sends);
            doing.idle_since = Instant::now();
            doing.say_whether_idle();
        });
    }
}

/// What is dropped when a response's last byte has gone, or its client has. It travels in the response's extensions.
#[derive(Clone, Debug)]
pub struct UntilSent(#[expect(dead_code, reason = "it is only held")] Arc<dyn Any + Send + Sync>);

impl UntilSent {
    /// Holds this.
    #[must_use]
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Self(Arc::new(guard))
    }
}

/// What a body and all bytes that came out of it hold together.
#[derive(Debug)]
struct Held {
    busy: InFlight,
    _until_sent: Option<UntilSent>,
}

impl Held {
    fn moved(&self) {
        self.busy.activity.update(|doing| doing.moved = Instant::now());
    }
}

/// A response's body.
#[derive(Debug)]
pub struct Sending {
    body: Body,
    held: Arc<Held>,
}

impl http_body::Body for Sending {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        // Asked for: whatever was given before has left.
        self.held.moved();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let held = &self.held;
        polled.map_ok(|frame| frame.map_data(|bytes| Piece { bytes, held: held.clone() }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes of a response that wait for their client.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    held: Arc<Held>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.held.moved();
        self.bytes.advance(count);
    }
}
