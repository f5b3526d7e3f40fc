//! A client's connection with deadlines: the whole head of a request, and the client's patience with what
//! is written to it. Pingora knows deadlines for one read only, and none for HTTP/2.
//!
//! `Guarded` stands between Pingora and the socket (above TLS, where there is TLS) and looks at what passes;
//! `Pulse` is what the rest of the road tells it: the head is there, the request is over.

use super::super::alarm::Alarm;
use super::caps::{Caps, Ended};
use super::frames::Frames;
use super::framing::RequestLine;
use super::outbox::Outbox;
use async_trait::async_trait;
use pingora::protocols::http::ServerSession;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use pingora_http::ResponseHeader;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

/// The first bytes of HTTP/2.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first read of a connection. Takes a usual request whole.
const FIRST: usize = 4 << 10;
/// The most that one read takes. Pingora reads bodies into a buffer of 64 KiB and keeps it for as long as the
/// answer flows; what is never written to in there takes no memory.
const PIECE: usize = 16 << 10;

/// Between two requests: the next byte begins a head.
const AWAITED: u64 = u64::MAX;
/// The head is there.
const READ: u64 = u64::MAX - 1;

/// How far a connection's request is.
#[derive(Debug)]
pub struct Pulse {
    begun: Instant,
    /// Milliseconds from `begun` to the first byte of the head that is being read, or one of the words above.
    head: AtomicU64,
    /// Milliseconds from `begun` to when the client has to have come with its next request. 0 = others watch that.
    due: AtomicU64,
    odd_line: AtomicBool,
}

impl Pulse {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            // The first head is due from the start.
            head: AtomicU64::new(0),
            due: AtomicU64::new(0),
            odd_line: AtomicBool::new(false),
        })
    }

    /// Of the connection that a session is on.
    pub fn of(session: &ServerSession) -> Option<&Arc<Pulse>> {
        let digest: &Digest = session.digest()?;
        let carried = digest.proxy_digest.as_ref()?.user_data.as_ref()?;
        carried.downcast_ref::<Arc<Pulse>>()
    }

    /// The head is there; says whether its first line was odd.
    pub fn head_is_read(&self) -> bool {
        self.head.store(READ, Ordering::Relaxed);
        self.odd_line.swap(false, Ordering::Relaxed)
    }

    /// The connection waits for its next request, as long as others have it.
    pub fn is_idle(&self) {
        self.due.store(0, Ordering::Relaxed);
        self.head.store(AWAITED, Ordering::Relaxed);
    }

    /// A request is being answered.
    fn is_answering(&self) -> bool {
        self.head.load(Ordering::Relaxed) == READ
    }

    /// The connection waits for its next request so long; then it ends, as if the client had left.
    pub fn is_idle_for(&self, time: Duration) {
        let due = self.begun.elapsed().saturating_add(time).as_millis();
        self.due
            .store(u64::try_from(due).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
        self.head.store(AWAITED, Ordering::Relaxed);
    }

    /// When the next request has to have begun to come.
    fn due(&self) -> Option<Instant> {
        let due = match self.head.load(Ordering::Relaxed) {
            AWAITED => self.due.load(Ordering::Relaxed),
            _ => 0,
        };
        if due == 0 {
            return None;
        }
        self.begun.checked_add(Duration::from_millis(due))
    }

    /// Bytes have come. True = they begin a head.
    fn bytes(&self) -> bool {
        if self.head.load(Ordering::Relaxed) != AWAITED {
            return false;
        }
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(READ - 1);
        self.head.store(since.min(READ - 1), Ordering::Relaxed);
        true
    }

    /// Since when a head is being read.
    fn reading_since(&self) -> Option<Instant> {
        match self.head.load(Ordering::Relaxed) {
            AWAITED | READ => None,
            millis => Some(self.begun + Duration::from_millis(millis)),
        }
    }
}

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a whole head.
    pub header: Duration,
    /// Without taking a byte of what is written to it.
    pub write: Duration,
}

/// The connection.
pub struct Guarded {
    io: Stream,
    peer: Option<IpAddr>,
    patience: Patience,
    pulse: Arc<Pulse>,
    carried: Arc<ProxyDigest>,
    caps: Arc<Caps>,
    frames: Frames,
    line: RequestLine,
    out: Outbox,
    /// Bytes that were read before their turn, how many of them have been read since, and how many have been
    /// looked at.
    peeked: Vec<u8>,
    taken: usize,
    seen: usize,
    /// What has come of the head that is being read, for [`Guarded::rewind`]. `None` = nobody will want it.
    heard: Option<Vec<u8>>,
    read_timer: Alarm,
    write_timer: Alarm,
    /// Since when the client takes nothing.
    stuck: Option<Instant>,
    ended: Option<Ended>,
}

impl Guarded {
    pub fn new(
        io: Stream,
        peer: Option<IpAddr>,
        patience: Patience,
        caps: Arc<Caps>,
    ) -> pingora::Result<Self> {
        let pulse = Pulse::new();
        // The one place that travels from a connection to each of its requests.
        let carried = ProxyDigest::new(
            Box::new(ResponseHeader::build(200, Some(0))?),
            Some(Box::new(Arc::clone(&pulse))),
        );
        Ok(Self {
            io,
            peer,
            patience,
            pulse,
            carried: Arc::new(carried),
            caps,
            frames: Frames::new(),
            line: RequestLine::default(),
            out: Outbox::default(),
            peeked: Vec::new(),
            taken: 0,
            seen: 0,
            heard: None,
            read_timer: Alarm::default(),
            write_timer: Alarm::default(),
            stuck: None,
            ended: None,
        })
    }

    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// From now on the bytes of each head are kept until its answer begins.
    pub fn keep_heads(&mut self) {
        self.heard.get_or_insert_default();
    }

    /// The bytes of the head that was read last, with what came along.
    pub fn take_head(&mut self) -> Vec<u8> {
        self.heard.take().unwrap_or_default()
    }

    /// What was read comes again, for somebody else, and heads are no longer kept. The connection is between
    /// two requests.
    pub fn rewind(&mut self, mut read: Vec<u8>) {
        read.extend_from_slice(self.peeked.get(self.taken..).unwrap_or_default());
        (self.peeked, self.taken, self.seen) = (read, 0, 0);
        self.heard = None;
        self.pulse.is_idle();
    }

    /// Waits for the first bytes, which stay unread, and says whether they are those of HTTP/2.
    pub async fn is_http2(&mut self) -> io::Result<bool> {
        let mut first = [0; PREFACE.len()];
        self.try_peek(&mut first).await?;
        Ok(&first == PREFACE)
    }

    fn end(&mut self, why: Ended) -> io::Error {
        if self.ended.is_none() {
            self.ended = Some(why);
            self.caps.ended(why, self.peer);
        }
        match why {
            Ended::Flood => io::Error::new(io::ErrorKind::InvalidData, why.as_str()),
            _ => io::Error::new(io::ErrorKind::TimedOut, why.as_str()),
        }
    }

    fn look_at(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.pulse.bytes() {
            self.line = RequestLine::default();
        }
        if self.line.is_odd(bytes) {
            self.pulse.odd_line.store(true, Ordering::Relaxed);
        }
        if let Some(heard) = self
            .heard
            .as_mut()
            .filter(|_| self.pulse.reading_since().is_some())
        {
            heard.extend_from_slice(bytes);
        }
        match self.frames.are_fine(bytes) {
            true => Ok(()),
            false => Err(self.end(Ended::Flood)),
        }
    }

    /// Nothing to read: is the head late, or the request before it? The latter reads as the end.
    fn head_is_due(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(due) = self.pulse.due() {
            return match self.read_timer.is_over(due, cx) {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            };
        }
        let Some(since) = self.pulse.reading_since() else {
            return Poll::Pending;
        };
        match self.read_timer.is_over(since + self.patience.header, cx) {
            true => Poll::Ready(Err(self.end(Ended::SlowHead))),
            false => Poll::Pending,
        }
    }

    /// What a write came to: does the client take nothing?
    fn written<T>(&mut self, done: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if let Some(heard) = self.heard.as_mut().filter(|heard| !heard.is_empty()) {
            // It is being answered, so nobody reads it again.
            *heard = Vec::new();
        }
        match done {
            Poll::Ready(done) => {
                self.stuck = None;
                return Poll::Ready(done.map_err(|e| self.given_up(e)));
            }
            Poll::Pending => {}
        }
        let since = *self.stuck.get_or_insert_with(Instant::now);
        match self.write_timer.is_over(since + self.patience.write, cx) {
            true => Poll::Ready(Err(self.end(Ended::SlowReader))),
            false => Poll::Pending,
        }
    }

    /// The kernel's own patience with a client that takes nothing may end before ours: it counts from the
    /// first byte that the client leaves lying, and we from the first that the kernel has no room for.
    fn given_up(&mut self, e: io::Error) -> io::Error {
        match e.kind() {
            io::ErrorKind::TimedOut if self.pulse.is_answering() => self.end(Ended::SlowReader),
            _ => e,
        }
    }

    /// Writes by way of the outbox. A client that takes anything at all is no slow reader.
    fn put<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut Outbox, &mut Stream, &mut Context<'_>, &mut bool) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Some(over) = self.is_over() {
            return Poll::Ready(Err(over));
        }
        let mut progress = false;
        let done = write(&mut self.out, &mut self.io, cx, &mut progress);
        if progress {
            self.stuck = None;
        }
        self.written(done, cx)
    }

    fn is_over(&self) -> Option<io::Error> {
        self.ended
            .map(|why| io::Error::new(io::ErrorKind::ConnectionAborted, why.as_str()))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(over) = this.is_over() {
            return Poll::Ready(Err(over));
        }
        let before = buf.filled().len();
        if let Some(rest) = this.peeked.get(this.taken..).filter(|r| !r.is_empty()) {
            let n = rest.len().min(buf.remaining());
            buf.put_slice(rest.get(..n).unwrap_or_default());
            let unseen = before + this.seen.saturating_sub(this.taken).min(n);
            this.taken += n;
            this.seen = this.seen.max(this.taken);
            if this.taken >= this.peeked.len() {
                this.peeked = Vec::new();
                (this.taken, this.seen) = (0, 0);
            }
            return Poll::Ready(this.look_at(buf.filled().get(unseen..).unwrap_or_default()));
        }
        let read = match buf.remaining() > PIECE {
            true => Pin::new(&mut (&mut this.io).take(PIECE as u64)).poll_read(cx, buf),
            false => Pin::new(&mut this.io).poll_read(cx, buf),
        };
        match read {
            Poll::Ready(Ok(())) => Poll::Ready(this.look_at(buf.filled().get(before..).unwrap_or_default())),
            Poll::Ready(Err(e)) => Poll::Ready(Err(this.given_up(e))),
            Poll::Pending => this.head_is_due(cx),
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.put(cx, |out, io, cx, progress| out.write(io, cx, buf, progress))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.put(cx, |out, io, cx, progress| {
            out.write_vectored(io, cx, bufs, progress)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.put(cx, |out, io, cx, progress| {
            ready!(out.empty(io, cx, progress))?;
            Pin::new(io).poll_flush(cx)
        })
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.put(cx, |out, io, cx, progress| {
            ready!(out.empty(io, cx, progress))?;
            Pin::new(io).poll_shutdown(cx)
        })
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Whoever writes flushes. What is left of one that was broken off goes out as far as it can now.
        if !self.out.is_empty() && self.ended.is_none() {
            let cx = &mut Context::from_waker(Waker::noop());
            let _ = self.out.empty(&mut self.io, cx, &mut false);
        }
    }
}

#[async_trait]
impl Peek for Guarded {
    /// Is it HTTP/2? Waits no longer than to the first byte that says no, since a short request of HTTP/1
    /// may have no more than that. What has come is there to be read afterwards.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let mut seen = Vec::with_capacity(FIRST);
        while seen.len() < buf.len() && PREFACE.starts_with(&seen) {
            if self.read_buf(&mut seen).await? == 0 {
                break;
            }
        }
        if seen.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (slot, byte) in buf.iter_mut().zip(&seen) {
            *slot = *byte;
        }
        let looked_at = seen.len();
        seen.extend_from_slice(self.peeked.get(self.taken..).unwrap_or_default());
        (self.peeked, self.taken, self.seen) = (seen, 0, looked_at);
        Ok(true)
    }
}

#[async_trait]
impl Shutdown for Guarded {
    async fn shutdown(&mut self) {
        // Nobody waits for a client that is not waited for any more.
        if self.ended.is_none() && self.flush().await.is_ok() {
            Shutdown::shutdown(&mut *self.io).await;
        }
    }
}

impl UniqueID for Guarded {
    fn id(&self) -> UniqueIDType {
        self.io.id()
    }
}

impl Ssl for Guarded {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.io.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.io.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.io.selected_alpn_proto()
    }
}

impl GetTimingDigest for Guarded {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.io.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.io.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.io.get_write_pending_time()
    }
}

impl GetProxyDigest for Guarded {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.carried))
    }
}

impl GetSocketDigest for Guarded {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.io.get_socket_digest()
    }

    fn set_socket_digest(&mut self, socket_digest: SocketDigest) {
        self.io.set_socket_digest(socket_digest);
    }
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guarded")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
