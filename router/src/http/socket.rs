//! A socket that tells what passes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use cascadia_node::net::BoxIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::http::activity::{Activity, Doing, Part};
use crate::http::connection::HEADER_BYTES;

/// A connection's socket.
///
/// Over HTTP/1.1 it gives no byte behind a request's headers before it is known whose it is: what stands in the library's
/// own buffer could not be timed, and half a request behind a whole one would keep its connection. Behind a chunked body
/// that is not known any more.
pub struct Watched {
    io: BoxIo,
    activity: Activity,
    scan: Scan,
    /// Read, and not given yet.
    behind: Vec<u8>,
    /// Nothing comes behind that.
    ended: bool,
}

/// Where in a request's headers we are.
#[derive(Clone, Copy, Debug, Default)]
enum Scan {
    /// Before the first byte that is no line's end.
    #[default]
    Before,
    /// Within a line.
    Line,
    /// Behind a line's end.
    LineEnd,
    /// Behind a line's end and the first half of another.
    Half,
}

impl Scan {
    /// How many of the bytes belong to the headers; fewer than all where they end there.
    fn over(&mut self, bytes: &[u8]) -> Option<usize> {
        for (i, byte) in bytes.iter().enumerate() {
            *self = match (*self, byte) {
                (Self::Before, b'\r' | b'\n') => Self::Before,
                (Self::LineEnd | Self::Half, b'\n') => {
                    *self = Self::Before;
                    return Some(i + 1);
                }
                (_, b'\n') => Self::LineEnd,
                (Self::LineEnd, b'\r') => Self::Half,
                _ => Self::Line,
            };
        }
        None
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            match this.activity.update(|doing| doing.part(cx.waker())) {
                Part::Frames => return Pin::new(&mut this.io).poll_read(cx, buf),
                Part::Unknown => {
                    ready!(this.fill(cx, buf))?;
                    if buf.filled().len() > before {
                        this.activity.update(Doing::hears);
                    }
                    return Poll::Ready(Ok(()));
                }
                Part::Head => {
                    ready!(this.fill(cx, buf))?;
                    this.head(buf, before);
                    return Poll::Ready(Ok(()));
                }
                Part::Body(left) => {
                    ready!(this.fill(cx, buf))?;
                    let read = buf.filled().len() - before;
                    let given = read.min(usize::try_from(left).unwrap_or(usize::MAX));
                    this.put_back(buf, before + given);
                    this.activity.update(|doing| doing.body_left -= given as u64);
                    return Poll::Ready(Ok(()));
                }
                Part::Next if this.behind.len() >= HEADER_BYTES || (this.ended && !this.behind.is_empty()) => {
                    return Poll::Pending;
                }
                // Read on, or nobody would hear that the client goes.
                Part::Next => {
                    if !this.ended {
                        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                    }
                    this.ended = buf.filled().len() == before;
                    if this.ended && this.behind.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                    this.behind.extend_from_slice(&buf.filled()[before..]);
                    buf.set_filled(before);
                }
            }
        }
    }
}

impl Watched {
    /// Reads what was kept, else from the socket.
    fn fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.behind.is_empty() {
            return if self.ended { Poll::Ready(Ok(())) } else { Pin::new(&mut self.io).poll_read(cx, buf) };
        }
        let count = self.behind.len().min(buf.remaining());
        buf.put_slice(&self.behind[..count]);
        self.behind.drain(..count);
        Poll::Ready(Ok(()))
    }

    /// Keeps what is behind `end` for later.
    fn put_back(&mut self, buf: &mut ReadBuf<'_>, end: usize) {
        self.behind.splice(..0, buf.filled()[end..].iter().copied());
        buf.set_filled(end);
    }

    /// Notes what was read of a request's headers, and keeps what is behind them.
    fn head(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let read = &buf.filled()[before..];
        let Some(&first) = read.first() else { return };
        // No method of HTTP/1 that is served begins so.
        let is_preface = first == b'P' && read.starts_with(b"PRI");
        if self.activity.update(|doing| *doing.http2.get_or_insert(is_preface)) {
            return;
        }
        let end = self.scan.over(read);
        self.activity.update(|doing| {
            doing.hears();
            doing.head_read = end.is_some();
        });
        if let Some(length) = end {
            self.put_back(buf, before + length);
        }
    }
}

impl Watched {
    /// Watches a socket for a connection.
    #[must_use]
    pub fn new(io: BoxIo, activity: Activity) -> Self {
        Self { io, activity, scan: Scan::default(), behind: Vec::new(), ended: false }
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
