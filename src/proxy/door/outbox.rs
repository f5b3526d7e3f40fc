//! What is on its way to a client: small writes gathered into one, as a buffered writer does it, with a
//! buffer that a connection has only while there is something in it. Most of its life a stream waits, and
//! thousands of them do.
//!
//! Which writes belong together and when they go out (`flush`) is the writer's.

use pingora::protocols::Stream;
use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// A head with all its limits goes out in one packet with the body of a usual answer. Bytes.
const ROOM: usize = 8 << 10;

thread_local! {
    /// Empty: for whoever writes next on this thread.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// See the module.
#[derive(Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// How many of them have gone out.
    sent: usize,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes `buf`, or as much of it as `io` does where it is large. `progress` = bytes went out.
    pub fn write(
        &mut self,
        io: &mut Stream,
        cx: &mut Context<'_>,
        buf: &[u8],
        progress: &mut bool,
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() + buf.len() > ROOM {
            ready!(self.empty(io, cx, progress))?;
        }
        if buf.len() >= ROOM {
            return Pin::new(io).poll_write(cx, buf);
        }
        self.fill(&[IoSlice::new(buf)]);
        Poll::Ready(Ok(buf.len()))
    }

    /// As `write`, for bytes that lie in several places.
    pub fn write_vectored(
        &mut self,
        io: &mut Stream,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
        progress: &mut bool,
    ) -> Poll<io::Result<usize>> {
        let len = bufs.iter().fold(0usize, |sum, buf| sum.saturating_add(buf.len()));
        if self.bytes.len().saturating_add(len) > ROOM {
            ready!(self.empty(io, cx, progress))?;
        }
        if len >= ROOM {
            return Pin::new(io).poll_write_vectored(cx, bufs);
        }
        self.fill(bufs);
        Poll::Ready(Ok(len))
    }

    /// Brings out what is there.
    pub fn empty(
        &mut self,
        io: &mut Stream,
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<io::Result<()>> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let n = ready!(Pin::new(&mut *io).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
            *progress = true;
        }
        self.sent = 0;
        if self.bytes.capacity() > 0 {
            let mut spare = std::mem::take(&mut self.bytes);
            spare.clear();
            SPARE.set(spare);
        }
        Poll::Ready(Ok(()))
    }

    fn fill(&mut self, bufs: &[IoSlice<'_>]) {
        if self.bytes.capacity() == 0 {
            self.bytes = SPARE.take();
            self.bytes.reserve_exact(ROOM);
        }
        bufs.iter().for_each(|buf| self.bytes.extend_from_slice(buf));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora::protocols::l4::stream::Stream as Tcp;
    use std::task::Waker;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    async fn line() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        (Box::new(Tcp::from(ours.unwrap())), theirs.unwrap().0)
    }

    fn now<T>(done: Poll<io::Result<T>>) -> T {
        match done {
            Poll::Ready(done) => done.unwrap(),
            Poll::Pending => panic!("it waits"),
        }
    }

    #[tokio::test]
    async fn small_writes_go_out_together_and_the_buffer_is_given_back() {
        let (mut io, mut theirs) = line().await;
        let cx = &mut Context::from_waker(Waker::noop());
        let (mut out, mut progress) = (Outbox::default(), false);
        assert_eq!(now(out.write(&mut io, cx, b"head,", &mut progress)), 5);
        let bufs = [IoSlice::new(b"bo"), IoSlice::new(b"dy")];
        assert_eq!(now(out.write_vectored(&mut io, cx, &bufs, &mut progress)), 4);
        assert!(!progress && !out.is_empty(), "nothing has gone out yet");
        now(out.empty(&mut io, cx, &mut progress));
        assert!(progress && out.is_empty());
        assert_eq!(out.bytes.capacity(), 0, "a connection that waits has no buffer");
        let mut got = [0; 9];
        theirs.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"head,body");
    }

    #[tokio::test]
    async fn order_is_kept_whatever_the_sizes() {
        let (mut io, mut theirs) = line().await;
        let sizes = [1, ROOM - 1, ROOM, 5, ROOM - 2, 3 * ROOM, 17, ROOM + 1, 0, 2];
        let whole: Vec<u8> = (0..sizes.iter().sum::<usize>())
            .map(|n| (n % 251) as u8)
            .collect();
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            theirs.read_to_end(&mut got).await.unwrap();
            got
        });
        let (mut out, mut progress) = (Outbox::default(), false);
        let mut rest = &whole[..];
        for (i, size) in sizes.into_iter().enumerate() {
            let (mut piece, after) = rest.split_at(size);
            rest = after;
            while !piece.is_empty() {
                let n = std::future::poll_fn(|cx| match i % 2 {
                    0 => out.write(&mut io, cx, piece, &mut progress),
                    _ => {
                        let (a, b) = piece.split_at(piece.len() / 3);
                        let bufs = [IoSlice::new(a), IoSlice::new(b)];
                        out.write_vectored(&mut io, cx, &bufs, &mut progress)
                    }
                });
                piece = &piece[n.await.unwrap()..];
            }
        }
        std::future::poll_fn(|cx| out.empty(&mut io, cx, &mut progress))
            .await
            .unwrap();
        drop(io);
        assert!(reading.await.unwrap() == whole);
    }
}
