//! Tells systemd how the process is: ready, reloading, leaving, alive. A unit of `Type=notify` waits for the
//! first word and restarts a service whose watchdog word stays out.
//!
//! The protocol is a datagram of `NAME=value` lines to the socket that `$NOTIFY_SOCKET` names. Without that
//! variable nothing is sent. When to speak is decided in [`crate::server`].

use crate::conf::Env;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::net::{SocketAddr as Place, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Beyond the drain, for the ledger's last rows and the connections' last bytes.
const MARGIN: Duration = Duration::from_secs(15);
/// The longest period of a watchdog that is believed; systemd sends nothing near it.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The service manager, if one listens.
pub struct Notify {
    socket: Option<(UnixDatagram, Place)>,
    /// The manager takes the process for dead when it hears nothing for so long.
    watchdog: Option<Duration>,
    /// The listeners close, which is no reason to cut the calls that are let end.
    leaving: AtomicBool,
    /// Another process speaks for the service now.
    replaced: AtomicBool,
}

impl Notify {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`. What cannot be used is said in the log
    /// and is as if it were not there: a gateway that serves is worth more than one that tells of it.
    pub fn new(env: &Env) -> Self {
        let text = |name: &str| env.get(name).map(|s| s.expose().to_string());
        let socket = text("NOTIFY_SOCKET").and_then(|path| match open(&path) {
            Ok(socket) => Some(socket),
            Err(e) => {
                log::warn!("NOTIFY_SOCKET={path:?} cannot be used: {e}");
                None
            }
        });
        let ours = text("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let period = text("WATCHDOG_USEC")
            .and_then(|t| t.parse().ok())
            .map(Duration::from_micros);
        let watchdog = period.filter(|p| ours && socket.is_some() && !p.is_zero() && *p <= LONGEST);
        Self {
            socket,
            watchdog,
            leaving: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
        }
    }

    /// The listeners are open, or a new config serves. `status` is what `systemctl status` shows.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// A config is being read. [`Self::ready`] ends it, whether the config was any good or not.
    pub fn reloading(&self) {
        self.send("RELOADING=1\nSTATUS=Reading the config");
    }

    /// No new calls; those in flight may take as long as `drain`. The manager is asked to wait that long.
    pub fn stopping(&self, drain: Duration) {
        self.leaving.store(true, Ordering::Relaxed);
        let micros = (drain + MARGIN).as_micros();
        self.send(&format!(
            "STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS=Letting calls in flight end"
        ));
    }

    /// Another process serves, and this one leaves without the service being stopped. The last word of this
    /// one.
    pub fn replaced_by(&self, pid: u32) {
        self.send(&format!("MAINPID={pid}\nSTATUS=Process {pid} has taken over"));
        self.replaced.store(true, Ordering::Relaxed);
    }

    /// Says twice per watchdog period that the gateway lives, as long as the listener at `at` answers,
    /// and while it leaves. Runs where keys and ledger are looked after, and so stays out as well when these
    /// hang. Ends at once when nobody asked for it, else when another process has taken over.
    pub async fn watch(self: Arc<Self>, at: SocketAddr) {
        let Some(period) = self.watchdog else {
            return;
        };
        let half = period / 2;
        let mut turn = tokio::time::interval(half);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turn.tick().await;
            let answered = tokio::time::timeout(half, answers(at)).await == Ok(true);
            if self.replaced.load(Ordering::Relaxed) {
                return;
            }
            if answered || self.leaving.load(Ordering::Relaxed) {
                self.send("WATCHDOG=1");
            } else {
                log::error!("event=watchdog {at} did not answer within {half:?}");
            }
        }
    }

    fn send(&self, words: &str) {
        if let Some((socket, to)) = &self.socket
            && !self.replaced.load(Ordering::Relaxed)
            && let Err(e) = socket.send_to_addr(words.as_bytes(), to)
        {
            // A manager that is busy or being restarted: the next word finds it again.
            log::warn!("the service manager was not told {words:?}: {e}");
        }
    }
}

/// Opens a way to `path`; `@name` is a name in Linux' abstract namespace.
fn open(path: &str) -> io::Result<(UnixDatagram, Place)> {
    let place = match path.strip_prefix('@') {
        Some(name) => abstract_place(name)?,
        None if path.starts_with('/') => Place::from_pathname(path)?,
        None => {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "it must begin with / or @",
            ));
        }
    };
    let socket = UnixDatagram::unbound()?;
    // A full queue of the manager must not hold up a shutdown.
    socket.set_nonblocking(true)?;
    Ok((socket, place))
}

#[cfg(target_os = "linux")]
fn abstract_place(name: &str) -> io::Result<Place> {
    use std::os::linux::net::SocketAddrExt;
    Place::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_place(_: &str) -> io::Result<Place> {
    Err(io::Error::new(
        ErrorKind::Unsupported,
        "abstract sockets are Linux'",
    ))
}

/// Whether somebody is at home. Any answer will do, a refusal and a closed connection included: they come
/// from threads that turn. That this process has no descriptor left to ask with says nothing of them.
async fn answers(at: SocketAddr) -> bool {
    let mut stream = match TcpStream::connect(at).await {
        Ok(stream) => stream,
        Err(e) => return e.kind() != ErrorKind::ConnectionRefused,
    };
    let ask = b"GET /health/liveness HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    if stream.write_all(ask).await.is_ok() {
        let _ = stream.read(&mut [0; 64]).await;
    }
    true
}

/// A value ends with its line.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;

    fn env(pairs: &[(&str, String)]) -> Env {
        pairs.iter().map(|(k, v)| (*k, v.as_str())).collect()
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    #[test]
    fn words_reach_a_socket_with_a_path_and_one_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let named = UnixDatagram::bind(&path).unwrap();
        let name = format!("tollkeeper-test-{}", uuid::Uuid::new_v4());
        let place = Place::from_abstract_name(&name).unwrap();
        let unnamed = UnixDatagram::bind_addr(&place).unwrap();
        for (socket, at) in [(named, path.display().to_string()), (unnamed, format!("@{name}"))] {
            let notify = Notify::new(&env(&[("NOTIFY_SOCKET", at)]));
            notify.reloading();
            assert!(heard(&socket).starts_with("RELOADING=1\n"));
            notify.ready("two\nREADY=0");
            assert_eq!(heard(&socket), "READY=1\nSTATUS=two READY=0");
            notify.stopping(Duration::from_secs(60));
            let words = heard(&socket);
            assert!(
                words.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=75000000\n"),
                "{words}"
            );
            notify.replaced_by(7);
            assert_eq!(heard(&socket), "MAINPID=7\nSTATUS=Process 7 has taken over");
            // What it says of itself is not the service's state any more.
            notify.ready("late");
            notify.stopping(Duration::from_secs(1));
            socket.set_nonblocking(true).unwrap();
            assert!(socket.recv(&mut [0; 8]).is_err());
        }
    }

    #[test]
    fn without_a_manager_nothing_is_said() {
        for at in ["", "relative", "@", "/nobody/is/here"] {
            let notify = Notify::new(&env(&[
                ("NOTIFY_SOCKET", at.to_string()),
                ("WATCHDOG_USEC", "nonsense".to_string()),
            ]));
            notify.ready("nobody hears it");
            assert_eq!(notify.watchdog, None);
        }
    }

    #[test]
    fn the_watchdog_is_only_for_whom_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _socket = UnixDatagram::bind(&path).unwrap();
        let watchdog = |usec: &str, pid: String| {
            Notify::new(&env(&[
                ("NOTIFY_SOCKET", path.display().to_string()),
                ("WATCHDOG_USEC", usec.to_string()),
                ("WATCHDOG_PID", pid),
            ]))
            .watchdog
        };
        let me = std::process::id().to_string();
        assert_eq!(watchdog("30000000", me.clone()), Some(Duration::from_secs(30)));
        assert_eq!(watchdog("30000000", "1".into()), None);
        assert_eq!(watchdog("0", me.clone()), None);
        assert_eq!(watchdog("18446744073709551615", me), None);
    }

    #[tokio::test]
    async fn any_answer_is_one_and_a_closed_door_is_none() {
        // Bound, so that nobody else takes it, and not open yet.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = closed.local_addr().unwrap();
        assert!(!answers(at).await);
        let door = closed.listen(8).unwrap();
        // The connection is closed without a word; that, too, somebody does.
        let (asked, ()) = tokio::join!(answers(at), async { drop(door.accept().await) });
        assert!(asked);
    }
}
