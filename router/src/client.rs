//! The client's end of a session: a bounded queue, and a watch on whether anyone reads it.
//!
//! The queue holds as many messages as the request may bring forth, so a slow reader never makes its owner wait, let
//! alone another session; one that leaves its stream unread for too long loses its own session and nothing else. What a
//! session said last waits as long, and no stopping router waits longer: nobody polls, let alone drops, the stream of a
//! client that grants no room.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use cascadia_proto::v1::GenerateResponse;
use cascadia_proto::v1::generate_response::Event;
use futures::Stream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::Status;

use crate::metrics::Relay;

/// The session's handle to its client.
#[derive(Debug)]
pub struct Client {
    sender: mpsc::Sender<Queued>,
    reading: Arc<Reading>,
    /// Errs when the stream is dropped.
    dropped: oneshot::Receiver<Infallible>,
}

/// A message that waits for its client.
#[derive(Debug)]
struct Queued {
    response: GenerateResponse,
    /// When it was read off its owner's stream.
    heard: Instant,
}

/// What the client reads.
#[derive(Debug)]
pub struct ClientStream {
    receiver: mpsc::Receiver<Queued>,
    reading: Arc<Reading>,
    relay: Relay,
    first: Option<Queued>,
    _dropped: oneshot::Sender<Infallible>,
}

/// The streams that clients still read, so that a stopping router can wait for the last.
#[derive(Clone, Debug)]
pub struct OpenStreams(watch::Sender<usize>);

/// One of them, until it is dropped, or its client is given up.
#[derive(Debug)]
pub struct OpenStream(OpenStreams);

impl Default for OpenStreams {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl OpenStreams {
    /// Returns when there is none.
    pub async fn none(&self) {
        // Fails only when every sender is gone, and one is here.
        let _ = self.0.subscribe().wait_for(|open| *open == 0).await;
    }

    /// A stopping router waits for one more.
    #[must_use]
    pub fn open(&self) -> OpenStream {
        self.0.send_modify(|open| *open += 1);
        OpenStream(self.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open -= 1);
    }
}

/// What both ends know beside the queue.
#[derive(Debug)]
struct Reading {
    born: Instant,
    /// When a message was last taken, or put where none waited; milliseconds since the session began.
    since: AtomicU64,
    /// How the stream ends after the last message, if not well; it needs no room in the queue.
    ending: Mutex<Option<Status>>,
    /// Whom a stopping router waits for.
    open: Mutex<Option<OpenStream>>,
}

impl Reading {
    fn since(&self) -> Instant {
        self.born + Duration::from_millis(self.since.load(Ordering::Relaxed))
    }

    fn close(&self) {
        drop(self.open.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn stamp(&self, now: Instant) {
        let since = now.saturating_duration_since(self.born);
        self.since.store(since.as_millis() as u64, Ordering::Relaxed);
    }

    fn ending(&self) -> Option<Status> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Both ends, for a request of so many tokens.
#[must_use]
pub fn channel(max_tokens: usize, streams: &OpenStreams, relay: Relay) -> (Client, ClientStream) {
    // Each token may come in a message of its own, with `started`, held-back text, `finished` or an error around them.
    let (sender, receiver) = mpsc::channel(max_tokens.saturating_add(8).min(MOST_MESSAGES));
    let open = Mutex::new(Some(streams.open()));
    let reading = Arc::new(Reading { born: Instant::now(), since: AtomicU64::new(0), ending: Mutex::default(), open });
    let (_dropped, dropped) = oneshot::channel();
    (
        Client { sender, reading: reading.clone(), dropped },
        ClientStream { receiver, reading, relay, first: None, _dropped },
    )
}

/// No request waits with more; a longer text has been read in part by then, or its client is stalled.
const MOST_MESSAGES: usize = 1 << 20;

impl Client {
    /// Sends an event that came of a message heard then, after those that wait. Never waits itself unless the whole
    /// request is unread.
    pub async fn send(&self, event: Event, heard: Instant) {
        if self.sender.capacity() == self.sender.max_capacity() {
            self.reading.stamp(heard);
        }
        // A client that is gone is noticed by `closed`.
        let _ = self.sender.send(Queued { response: GenerateResponse { event: Some(event) }, heard }).await;
    }

    /// Ends the stream, after the messages that wait, and returns when the client has dropped it, or has read nothing for
    /// so long: then no stopping router waits for it.
    pub async fn end(self, how: Result<(), Status>, timeout: Duration) {
        let Self { sender, reading, mut dropped } = self;
        *reading.ending.lock().unwrap_or_else(PoisonError::into_inner) = how.err();
        drop(sender);
        let mut due = reading.since() + timeout;
        while Instant::now() < due {
            tokio::select! { biased; _ = &mut dropped => return, () = tokio::time::sleep_until(due) => {} }
            due = reading.since() + timeout;
        }
        reading.close();
    }

    /// Returns when the client has gone.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }

    /// Returns when messages have waited unread for so long.
    pub async fn left_unread(&self, timeout: Duration) {
        loop {
            let unread = self.sender.capacity() < self.sender.max_capacity();
            let due = self.reading.since() + timeout;
            if !unread {
                tokio::time::sleep(timeout / 8).await;
            } else if Instant::now() < due {
                tokio::time::sleep_until(due).await;
            } else {
                return;
            }
        }
    }
}

impl ClientStream {
    /// Waits for the first message: an error before any event becomes the call's own status.
    ///
    /// # Errors
    /// The session's, if it failed before it began.
    pub async fn begin(&mut self) -> Result<(), Status> {
        self.first = self.receiver.recv().await;
        if self.first.is_none()
            && let Some(status) = self.reading.ending()
        {
            return Err(status);
        }
        self.reading.stamp(Instant::now());
        Ok(())
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.reading.close();
    }
}

impl Stream for ClientStream {
    type Item = Result<GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let queued = match self.first.take() {
            Some(first) => Some(first),
            None => std::task::ready!(self.receiver.poll_recv(context)),
        };
        // One look at the clock for both who watches the client and who times the router.
        let now = Instant::now();
        self.reading.stamp(now);
        Poll::Ready(match queued {
            Some(Queued { response, heard }) => {
                self.relay.relayed(now.saturating_duration_since(heard));
                Some(Ok(response))
            }
            None => self.reading.ending().map(Err),
        })
    }
}

#[cfg(test)]
mod tests {
    use cascadia_node::metrics::Registry;
    use cascadia_proto::v1::Tokens;
    use futures::StreamExt;

    use super::*;
    use crate::metrics::Metrics;

    fn relay() -> Relay {
        Metrics::register(&mut Registry::default(), 1).relay()
    }

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_is_never_stalled() {
        let (client, mut stream) = channel(100, &OpenStreams::default(), relay());
        let reader = tokio::spawn(async move { while stream.next().await.is_some() {} });
        let stalled = tokio::time::timeout(Duration::from_secs(600), async {
            let feed = async {
                loop {
                    client.send(Event::Tokens(Tokens::default()), Instant::now()).await;
                    tokio::time::sleep(Duration::from_secs(7)).await;
                }
            };
            tokio::select! { () = feed => {}, () = client.left_unread(TIMEOUT) => {} }
        });
        assert!(stalled.await.is_err());
        drop(client);
        reader.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_noticed_after_the_timeout() {
        let (client, stream) = channel(100, &OpenStreams::default(), relay());
        tokio::time::sleep(Duration::from_secs(500)).await;
        client.send(Event::Tokens(Tokens::default()), Instant::now()).await;
        let sent = Instant::now();
        client.left_unread(TIMEOUT).await;
        assert!(sent.elapsed() >= TIMEOUT && sent.elapsed() < TIMEOUT * 2, "{:?}", sent.elapsed());
        drop(stream);
        client.closed().await;
    }

    #[tokio::test]
    async fn an_early_error_is_the_calls_own() {
        let streams = OpenStreams::default();
        let (client, mut stream) = channel(1, &streams, relay());
        let ending = tokio::spawn(client.end(Err(Status::not_found("no such model")), TIMEOUT));
        assert_eq!(stream.begin().await.unwrap_err().code(), tonic::Code::NotFound);
        drop(stream);
        streams.none().await;
        ending.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopping_router_waits_for_whoever_reads_and_gives_up_whoever_does_not() {
        for how in [Ok(()), Err(Status::cancelled("unread"))] {
            let streams = OpenStreams::default();
            let (client, mut stream) = channel(8, &streams, relay());
            for _ in 0..3 {
                client.send(Event::Tokens(Tokens::default()), Instant::now()).await;
            }
            tokio::spawn(client.end(how, TIMEOUT));
            // Two are read, slowly; the third never.
            for _ in 0..2 {
                tokio::time::sleep(TIMEOUT * 3 / 4).await;
                stream.next().await.unwrap().unwrap();
            }
            let read = Instant::now();
            streams.none().await;
            assert!((TIMEOUT..TIMEOUT * 2).contains(&read.elapsed()), "{:?}", read.elapsed());
        }
    }

    #[tokio::test]
    async fn an_error_comes_after_what_was_sent_however_full_the_queue() {
        let (client, mut stream) = channel(0, &OpenStreams::default(), relay());
        while client.sender.capacity() > 0 {
            client.send(Event::Tokens(Tokens::default()), Instant::now()).await;
        }
        tokio::spawn(client.end(Err(Status::cancelled("unread")), TIMEOUT));
        stream.begin().await.unwrap();
        let told: Vec<_> = stream.collect().await;
        assert_eq!(told.len(), 9);
        assert!(told[..8].iter().all(Result::is_ok) && told[8].is_err());
    }
}
