//! An address that calls go to, and the HTTP/1 connections to it that wait for the next call.
//!
//! Pingora's pool watches each idle connection with a task of its own, made anew after every call. Here a
//! connection is looked at when it is taken, and every few seconds, which costs a call next to nothing.
//! Connecting, TLS and HTTP/2 stay Pingora's.

use futures::FutureExt;
use parking_lot::Mutex;
use pingora::prelude::HttpPeer;
use pingora::protocols::Stream;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// How long a connection waits for a call.
pub const IDLE: Duration = Duration::from_secs(60);
/// How often those that wait are looked at.
const TEND: Duration = Duration::from_secs(5);
/// Most that wait at one address.
const MOST: usize = 1024;

/// See the module.
pub struct Place {
    pub peer: HttpPeer,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The one that was used last stands last and is taken first.
    lines: Vec<Line>,
    /// A task looks at them.
    tended: bool,
}

struct Line {
    stream: Stream,
    /// How often it was looked at while it waited, which tells how long that is without asking the clock.
    looks: u32,
}

impl Line {
    /// Nobody has closed it, or said what nobody asked for.
    fn is_good(&mut self) -> bool {
        let mut byte = [0; 1];
        let read = tokio::task::unconstrained(self.stream.read(&mut byte));
        read.now_or_never().is_none()
    }

    /// Looks at it once more. False = it has waited long enough, or is of no more use.
    fn may_stay(&mut self) -> bool {
        self.looks += 1;
        TEND * self.looks < IDLE && self.is_good()
    }
}

impl Place {
    pub fn new(peer: HttpPeer) -> Self {
        Self {
            peer,
            idle: Mutex::default(),
        }
    }

    /// A connection that was used before.
    pub fn take(&self) -> Option<Stream> {
        loop {
            let mut line = self.idle.lock().lines.pop()?;
            if line.is_good() {
                return Some(line.stream);
            }
        }
    }

    /// Keeps a connection, whose last answer has been read to its end, for the next call. Within a runtime.
    pub fn put(self: &Arc<Self>, stream: Stream) {
        let line = Line { stream, looks: 0 };
        let mut idle = self.idle.lock();
        if idle.lines.len() >= MOST {
            drop(idle);
            return;
        }
        idle.lines.push(line);
        if !std::mem::replace(&mut idle.tended, true) {
            tokio::spawn(tend(Arc::downgrade(self)));
        }
    }
}

/// Closes what waits too long or is of no more use, as long as anything waits.
async fn tend(place: Weak<Place>) {
    loop {
        tokio::time::sleep(TEND).await;
        let Some(place) = place.upgrade() else { return };
        let mut idle = place.idle.lock();
        idle.lines.retain_mut(Line::may_stay);
        if idle.lines.is_empty() {
            idle.tended = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora::protocols::l4::stream::Stream as Tcp;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    async fn place() -> (TcpListener, Arc<Place>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        (listener, Arc::new(Place::new(peer)))
    }

    async fn line(listener: &TcpListener) -> (Stream, TcpStream) {
        let (ours, theirs) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        (Box::new(Tcp::from(ours.unwrap())), theirs.unwrap().0)
    }

    #[tokio::test]
    async fn what_was_put_last_is_taken_first() {
        let (listener, place) = place().await;
        let (first, _a) = line(&listener).await;
        let (second, _b) = line(&listener).await;
        let id = second.id();
        place.put(first);
        place.put(second);
        assert_eq!(place.take().unwrap().id(), id);
        assert!(place.take().is_some());
        assert!(place.take().is_none());
    }

    #[tokio::test]
    async fn what_was_closed_or_speaks_unasked_is_not_taken() {
        let (listener, place) = place().await;
        for speaks in [false, true] {
            let (mut stream, mut theirs) = line(&listener).await;
            if speaks {
                theirs.write_all(b"!").await.unwrap();
            } else {
                drop(theirs);
            }
            // Waits until it has arrived here, where it stays to be read.
            assert_eq!(stream.try_peek(&mut [0; 1]).await.is_ok(), speaks);
            place.put(stream);
            assert!(place.take().is_none(), "{speaks}");
        }
    }
}
