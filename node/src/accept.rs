//! Accepting: a connection is taken once it has said what it wants, and whoever says nothing delays nobody.
//!
//! A caller has a few seconds for its first word: HTTP/2's preface, or the head of an HTTP/1 request. Until then it stands
//! aside of those that are served; where too many stand there, the oldest gives way to the newest, since a real client speaks
//! at once. What it said is put back in front of what it says next.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use crate::connections::{Connections, Refusal};
use crate::descriptors::{self, Descriptor};
use crate::net::BoxIo;

/// How long a caller may take for its first word.
pub(crate) const FIRST_WORD: Duration = Duration::from_secs(10);

/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A longer head of a request counts as said: its server bounds it.
const HEAD_BYTES: usize = 8 * 1024;

/// Read at once.
const PIECE: usize = 1024;

/// Fewer callers that have not spoken yet are borne by any listener: they may have come in one moment.
const LEAST_SILENT: usize = 16;

/// The pause after a failed accept, which doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often the log says that somebody was turned away.
const LOG_PERIOD: Duration = Duration::from_secs(1);

/// Accepts for ever. A failed accept says nothing of the listener: out of file descriptors, it waits for some to close.
pub(crate) fn accept(
    listener: TcpListener,
    connections: Connections,
    patience: Duration,
) -> impl Stream<Item = io::Result<BoxIo>> + Send + 'static {
    let arrivals = Arrivals {
        listener,
        connections,
        patience,
        silent: BTreeMap::new(),
        listening: FuturesUnordered::new(),
        next: 0,
        again: Instant::now(),
        pause: FIRST_PAUSE,
        complaints: Complaints::default(),
    };
    futures::stream::unfold(arrivals, |mut arrivals| async move { Some((Ok(arrivals.next().await), arrivals)) })
}

/// A caller that has spoken.
struct Caller {
    stream: TcpStream,
    said: Vec<u8>,
    address: IpAddr,
    descriptor: Descriptor,
}

struct Arrivals {
    listener: TcpListener,
    connections: Connections,
    patience: Duration,
    /// Those that have not spoken yet, oldest first; dropping its sender ends one.
    silent: BTreeMap<u64, oneshot::Sender<()>>,
    listening: FuturesUnordered<BoxFuture<'static, (u64, Option<Caller>)>>,
    next: u64,
    /// When to accept again after a failure.
    again: Instant,
    pause: Duration,
    complaints: Complaints,
}

impl Arrivals {
    /// The next connection that has said what it wants.
    async fn next(&mut self) -> BoxIo {
        loop {
            tokio::select! {
                Some((id, caller)) = self.listening.next() => {
                    self.silent.remove(&id);
                    if let Some(io) = caller.and_then(|caller| self.admit(caller)) {
                        return io;
                    }
                }
                accepted = accept_after(&self.listener, self.again) => match accepted {
                    Ok((stream, peer)) => {
                        self.pause = FIRST_PAUSE;
                        self.arrive(stream, peer.ip());
                    }
                    Err(error) => self.failed(&error),
                }
            }
        }
    }

    /// Hears what a caller wants, beside all others.
    fn arrive(&mut self, stream: TcpStream, address: IpAddr) {
        if self.silent.len() >= self.most_silent() || descriptors::are_taken() {
            // Whoever came first had the most time.
            if self.silent.pop_first().is_none() {
                return self.turned_away(address, &Refusal::Descriptors);
            }
        }
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "an accepted connection was gone at once");
        }
        let (id, patience, descriptor) = (self.next, self.patience, Descriptor::taken());
        self.next += 1;
        let (stays, leaves) = oneshot::channel::<()>();
        self.silent.insert(id, stays);
        let listening = async move {
            let heard = tokio::select! {
                biased;
                // Who has spoken in time stays, also where it was not heard in time.
                heard = timeout(patience, first_word(&stream)) => heard.ok().and_then(Result::ok),
                _ = leaves => None,
            };
            (id, heard.map(|said| Caller { stream, said, address, descriptor }))
        };
        self.listening.push(listening.boxed());
    }

    /// Callers that have not spoken yet, beside the connections that are served.
    fn most_silent(&self) -> usize {
        (self.connections.most() / 4).max(LEAST_SILENT)
    }

    fn admit(&mut self, caller: Caller) -> Option<BoxIo> {
        match self.connections.admit(caller.address, caller.descriptor) {
            Ok(connection) => Some(BoxIo::accepted(caller.stream, caller.said, connection)),
            Err(refusal) => {
                self.turned_away(caller.address, &refusal);
                None
            }
        }
    }

    fn turned_away(&mut self, address: IpAddr, refusal: &Refusal) {
        if let Some(times) = self.complaints.note(Instant::now()) {
            tracing::warn!(%address, times, "a connection is refused: {refusal}");
        }
    }

    fn failed(&mut self, error: &io::Error) {
        let now = Instant::now();
        if let Some(times) = self.complaints.note(now) {
            tracing::warn!(%error, times, "cannot accept a connection, trying again");
        }
        // A caller that was gone before it was accepted says nothing of the next.
        if error.kind() != io::ErrorKind::ConnectionAborted {
            self.silent.pop_first();
            self.again = now + self.pause;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }
}

async fn accept_after(listener: &TcpListener, again: Instant) -> io::Result<(TcpStream, std::net::SocketAddr)> {
    if Instant::now() < again {
        sleep_until(again).await;
    }
    listener.accept().await
}

/// What a caller says until it is known what it wants.
async fn first_word(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    while !is_whole(&said) {
        // No room is held for who says nothing.
        stream.readable().await?;
        let before = said.len();
        said.resize(before + PIECE, 0);
        let read = stream.try_read(&mut said[before..]);
        said.truncate(before + read.as_ref().copied().unwrap_or(0));
        match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
    Ok(said)
}

/// Whether it is HTTP/2's preface, the head of a request up to its empty line, or nothing that HTTP could begin with: its
/// server says so at once.
fn is_whole(said: &[u8]) -> bool {
    let is_http = |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b'\r' | b'\n');
    if !said.first().is_none_or(is_http) {
        return true;
    }
    if said.len() < PREFACE.len() && PREFACE.starts_with(said) {
        return false;
    }
    let ends = |end: &[u8]| said.windows(end.len()).any(|piece| piece == end);
    said.starts_with(PREFACE) || said.len() >= HEAD_BYTES || ends(b"\n\r\n") || ends(b"\n\n")
}

/// Says something once a second at most, and how often there was reason to.
#[derive(Debug, Default)]
struct Complaints {
    said: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    /// There is reason; how often there was since the last time, if it may be said now.
    fn note(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        if self.said.is_some_and(|said| now.duration_since(said) < LOG_PERIOD) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    /// Longer than anything here takes; a test that waits so long has failed.
    const LIMIT: Duration = Duration::from_secs(60);

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    /// A listener that accepts, with what it accepted.
    async fn accepting(most: usize, patience: Duration) -> (String, mpsc::UnboundedReceiver<BoxIo>, Connections) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap().to_string(), Connections::new(most));
        let mut incoming = accept(listener, connections.clone(), patience).boxed();
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(io)) = incoming.next().await {
                if sender.send(io).is_err() {
                    return;
                }
            }
        });
        (address, receiver, connections)
    }

    async fn saying(address: &str, first: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(first).await.unwrap();
        stream
    }

    async fn closed(stream: &mut TcpStream) {
        // A reset is an end, too.
        let read = timeout(LIMIT, stream.read(&mut [0; 8])).await.expect("it is closed");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }

    async fn next(accepted: &mut mpsc::UnboundedReceiver<BoxIo>) -> BoxIo {
        timeout(LIMIT, accepted.recv()).await.expect("somebody is accepted").expect("it accepts for ever")
    }

    #[tokio::test]
    async fn who_says_nothing_or_half_a_word_is_closed_and_delays_nobody() {
        let (address, mut accepted, _) = accepting(64, Duration::from_millis(300)).await;
        let mut held = Vec::new();
        for half in [&b""[..], b"P", &PREFACE[..23], b"GET / HTTP/1.1\r\nHost: x\r\n"] {
            held.push(saying(&address, half).await);
        }
        let _client = saying(&address, HEAD).await;
        let mut heard = vec![0; HEAD.len()];
        next(&mut accepted).await.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, HEAD, "what was read is read again");
        for silent in &mut held {
            closed(silent).await;
        }
        assert!(accepted.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_word_may_come_in_pieces() {
        let (address, mut accepted, _) = accepting(64, LIMIT).await;
        let mut client = TcpStream::connect(&address).await.unwrap();
        for piece in PREFACE.chunks(5) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.write_all(b"and more").await.unwrap();
        let mut io = next(&mut accepted).await;
        let mut heard = vec![0; PREFACE.len() + 8];
        io.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, [PREFACE, b"and more"].concat());
    }

    #[tokio::test]
    async fn the_oldest_that_is_silent_gives_way() {
        let (address, mut accepted, _) = accepting(8, LIMIT).await;
        let mut first = TcpStream::connect(&address).await.unwrap();
        let mut others = Vec::new();
        for _ in 0..LEAST_SILENT + 1 {
            others.push(TcpStream::connect(&address).await.unwrap());
        }
        closed(&mut first).await;
        let _client = saying(&address, HEAD).await;
        next(&mut accepted).await;
    }

    #[tokio::test]
    async fn one_address_is_refused_at_its_half_and_others_are_not() {
        let (address, mut accepted, _) = accepting(4, LIMIT).await;
        let (_one, _two) = (saying(&address, HEAD).await, saying(&address, HEAD).await);
        let mut served = vec![next(&mut accepted).await, next(&mut accepted).await];
        closed(&mut saying(&address, HEAD).await).await;
        let elsewhere = tokio::net::TcpSocket::new_v4().unwrap();
        elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut other = elsewhere.connect(address.parse().unwrap()).await.unwrap();
        other.write_all(HEAD).await.unwrap();
        served.push(next(&mut accepted).await);
        // Whoever is idle gives way.
        let idle = served[0].connection().expect("it was accepted");
        idle.set_idle(true);
        let _third = saying(&address, HEAD).await;
        let _served = next(&mut accepted).await;
        let mut rest = Vec::new();
        assert!(served[0].read_to_end(&mut rest).await.is_err(), "it breaks");
    }

    #[test]
    fn complaints_are_counted_and_rarely_said() {
        let (mut complaints, began) = (Complaints::default(), Instant::now());
        assert_eq!(complaints.note(began), Some(1));
        assert_eq!((0..1_272).filter_map(|_| complaints.note(began + LOG_PERIOD / 2)).count(), 0);
        assert_eq!(complaints.note(began + LOG_PERIOD), Some(1_273));
    }

    #[test]
    fn a_word_is_whole_at_its_end() {
        for half in [&b""[..], b"PRI", &PREFACE[..23], b"POST / HTTP/1.1\r\n", b"GET /\r\nA: b\r\n"] {
            assert!(!is_whole(half), "{half:?}");
        }
        let long = [b'x'; HEAD_BYTES];
        let tls = b"\x16\x03\x01";
        for whole in [PREFACE, HEAD, b"GET / HTTP/1.0\n\n", tls, &long] {
            assert!(is_whole(whole), "{whole:?}");
        }
    }
}
