//! A socket that tells what passes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use cascadia_node::net::BoxIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::http::activity::Activity;

/// A connection's socket.
pub struct Watched {
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
    /// Watches a socket for a connection.
    #[must_use]
    pub fn new(io: BoxIo, activity: Activity) -> Self {
        Self { io, activity }
    }

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
