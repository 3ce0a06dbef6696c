//! Bodies of requests while they come in: how many bytes of them are held, over both doors together, and for how long.
//!
//! What has been received is charged, not what was announced: a client that announces much and sends little holds little.
//! A part of the room is for small bodies only, so that large ones that are sent slowly keep nobody small waiting.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinError;

use crate::error::GenerateError;

/// How long a client may take to send a body.
pub const BODY_WITHIN: Duration = Duration::from_secs(60);

/// A body of so many bytes is read in about ten milliseconds.
pub const SMALL_BODY: usize = 256 * 1024;

/// Bodies of up to so many bytes have room of their own.
const RESERVED_FOR: usize = 64 * 1024;

/// One part in so many of the room is theirs.
const RESERVE: usize = 4;

/// The bodies that are being read.
#[derive(Debug)]
pub struct Bodies {
    /// Bytes of them.
    held: Mutex<usize>,
    /// As many large bodies are decoded at once as there are processors: each takes memory for what it becomes.
    decoding: Arc<Semaphore>,
}

impl Default for Bodies {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { held: Mutex::default(), decoding: Arc::new(Semaphore::new(processors)) }
    }
}

impl Bodies {
    /// One more body, of which nothing has come yet.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Reading {
        Reading { bodies: self.clone(), bytes: 0 }
    }

    /// Bytes that are held of all bodies.
    #[must_use]
    pub fn held(&self) -> usize {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes of a body of so many bytes what it is, where that keeps nobody waiting.
    ///
    /// # Errors
    /// When `decode` panicked, or the process ends.
    pub async fn decode<T: Send + 'static>(
        &self,
        bytes: usize,
        decode: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        if bytes <= SMALL_BODY {
            return Ok(decode());
        }
        // Never closed. It goes with the work, which goes on when whoever waits for it leaves.
        let turn = self.decoding.clone().acquire_owned().await;
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            decode()
        })
        .await
    }
}

/// What is held of one body, until this is dropped.
#[derive(Debug)]
pub struct Reading {
    bodies: Arc<Bodies>,
    bytes: usize,
}

impl Reading {
    /// More of it has come, where all bodies together may have `limit` bytes.
    ///
    /// # Errors
    /// When there is no room; nothing more is charged then.
    pub fn add(&mut self, more: usize, limit: usize) -> Result<(), GenerateError> {
        let mut held = self.bodies.held.lock().unwrap_or_else(PoisonError::into_inner);
        let room = if self.bytes + more <= RESERVED_FOR { limit } else { limit - limit / RESERVE };
        if *held + more > room {
            let retry_after = Duration::from_secs(1);
            return Err(GenerateError::NoRoom { what: "requests that are being read", limit, retry_after });
        }
        *held += more;
        self.bytes += more;
        Ok(())
    }

    /// How much of it has come.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        *self.bodies.held.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_leave_room_for_small_ones() {
        let bodies = Arc::new(Bodies::default());
        let limit = 1 << 20;
        let large: Vec<Reading> = std::iter::from_fn(|| {
            let mut reading = bodies.begin();
            reading.add(100_000, limit).is_ok().then_some(reading)
        })
        .collect();
        assert_eq!((large.len(), bodies.held()), (7, 700_000));
        let mut small = bodies.begin();
        small.add(RESERVED_FOR, limit).unwrap();
        // It grows out of its reserve.
        assert!(matches!(small.add(RESERVED_FOR, limit), Err(GenerateError::NoRoom { .. })));
        assert_eq!(small.bytes(), RESERVED_FOR);
        drop(large);
        small.add(RESERVED_FOR, limit).unwrap();
        drop(small);
        assert_eq!(bodies.held(), 0);
    }

    #[tokio::test]
    async fn a_large_body_is_decoded_off_the_runtimes_threads() {
        let bodies = Bodies::default();
        let here = std::thread::current().id();
        let thread = || std::thread::current().id();
        assert_eq!(bodies.decode(SMALL_BODY, thread).await.unwrap(), here);
        assert_ne!(bodies.decode(SMALL_BODY + 1, thread).await.unwrap(), here);
    }
}
