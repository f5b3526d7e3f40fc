//! The side of the process that takes over.

use super::TAKE_OVER;
use super::line::{self, NO, Word};
use crate::conf::Env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The sockets are on their way when this process begins.
const SOCKETS: Duration = Duration::from_secs(10);

/// What the process before this one hands over.
pub struct Inherited {
    line: UnixStream,
    listeners: Vec<TcpListener>,
}

impl Inherited {
    /// `None`: this process was started like any other. `Err` is a sentence.
    pub fn receive(env: &Env) -> Result<Option<Self>, String> {
        if env.get(TAKE_OVER).is_none() {
            return Ok(None);
        }
        let received = Self::from_stdin()
            .map_err(|e| format!("{TAKE_OVER} is set, and no running gateway hands over: {e}"))?;
        Ok(Some(received))
    }

    fn from_stdin() -> io::Result<Self> {
        let line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // So that the line ends when this process says so, and whoever reads from standard input reads
        // nothing of it.
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        line.set_read_timeout(Some(SOCKETS))?;
        let listeners = line::receive_listeners(&line)?;
        Ok(Self { line, listeners })
    }

    /// The socket that listens at `address`, once.
    pub fn listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self
            .listeners
            .iter()
            .position(|l| l.local_addr().is_ok_and(|a| a == address))?;
        Some(self.listeners.swap_remove(at))
    }

    /// Closes what nobody asked for: nobody would accept there. The old process still does.
    pub fn close_rest(&mut self) {
        for listener in self.listeners.drain(..) {
            if let Ok(address) = listener.local_addr() {
                log::info!("upgrade: nothing listens on {address} any more");
            }
        }
    }

    /// Tells the old process why this one ends. Without an ear for it, it is in the log.
    pub fn failed(mut self, why: &str) {
        let _ = self.line.write_all(&Word::failed(why).line());
    }

    /// Says that this process serves, and waits until the old one leaves. False: it goes on, and this one
    /// has to leave. An old one that is gone without a word left the sockets to this one.
    pub fn ready(mut self) -> bool {
        // An old one that has closed the line may have said something before.
        let _ = self.line.write_all(&Word::Ready.line());
        let _ = self.line.set_read_timeout(None);
        let mut said = [0; NO.len()];
        match self.line.read_exact(&mut said) {
            Ok(()) => said != NO,
            Err(_) => true,
        }
    }
}
