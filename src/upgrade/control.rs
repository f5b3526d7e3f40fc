//! Where `tollkeeper upgrade` and `tollkeeper drain` find the running gateway: a socket in the data
//! directory, which only its owner may enter. One order per connection, one line of JSON, answered by lines
//! of JSON. Who is at the other end of the socket is the gateway of this directory, so nobody has to guess
//! from a process id.

use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

const SOCKET: &str = "control.sock";
/// The longest line, in bytes.
pub const LONGEST_LINE: u64 = 16 << 10;
/// For an order to come once somebody has connected.
const TO_SPEAK: Duration = Duration::from_secs(5);
/// People and scripts that give orders at once.
const AT_ONCE: usize = 8;
/// Between two words on how the drain is going.
const PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Be replaced by a new process.
    Upgrade {
        /// `None`: what is now where this process' binary was.
        binary: Option<PathBuf>,
        /// For the new one to be ready.
        patience_millis: u64,
    },
    /// Say that nobody should be sent here, and keep no connection; or the contrary.
    Drain { undo: bool },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "snake_case")]
pub enum Told {
    /// The new process serves, the old one leaves.
    Serving {
        old_pid: u32,
        new_pid: u32,
        /// From the order to the hand-over.
        seconds: f64,
        load: Load,
        /// The longest the old process stays.
        drain_seconds: u64,
    },
    /// What the process that was asked still has; comes again and again until it has left.
    Draining { load: Load },
    /// How the process is now.
    Drain { pid: u32, on: bool, load: Load },
    /// Nothing has changed.
    Refused { pid: u32, why: String },
}

/// What a process still has.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Load {
    /// Requests between their head and their last byte.
    pub in_flight: usize,
    /// From clients, with and without a request.
    pub connections: usize,
}

/// Who carries the orders out.
#[async_trait::async_trait]
pub trait Orders: Send + Sync {
    /// `Err` is a sentence: nothing has changed.
    async fn upgrade(&self, binary: Option<PathBuf>, patience: Duration) -> Result<u32, String>;
    /// Whether the gateway drains now.
    fn drain(&self, on: bool) -> bool;
    fn load(&self) -> Load;
    /// The longest the process stays once it leaves.
    fn drain_time(&self) -> Duration;
}

pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(SOCKET)
}

/// Whether a process takes orders there: another gateway on this data directory, or the one before this.
pub fn is_taken(data_dir: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path(data_dir)).is_ok()
}

/// Opens the socket; a process that had it before is not found there any more. Needs a Tokio runtime.
pub fn open(data_dir: &Path) -> io::Result<UnixListener> {
    let aside = data_dir.join(format!("control.{}", std::process::id()));
    let _ = std::fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside)?;
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(aside, path(data_dir))?;
    Ok(listener)
}

/// Never ends.
pub async fn serve(listener: UnixListener, orders: Arc<dyn Orders>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(turn) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let orders = Arc::clone(&orders);
                tokio::spawn(async move {
                    if let Err(e) = answer(stream, &*orders).await {
                        log::debug!("control: {e}");
                    }
                    drop(turn);
                });
            }
            Err(e) => {
                log::warn!("control: {e}");
                tokio::time::sleep(PERIOD).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, orders: &dyn Orders) -> io::Result<()> {
    let pid = std::process::id();
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    let mut limited = (&mut stream).take(LONGEST_LINE);
    tokio::time::timeout(TO_SPEAK, limited.read_until(b'\n', &mut line)).await??;
    let stream = stream.get_mut();
    match serde_json::from_slice(&line) {
        Ok(Order::Upgrade {
            binary,
            patience_millis,
        }) => {
            let patience = Duration::from_millis(patience_millis).min(super::LONGEST_PATIENCE);
            let begun = tokio::time::Instant::now();
            match orders.upgrade(binary, patience).await {
                Ok(new_pid) => {
                    let serving = Told::Serving {
                        old_pid: pid,
                        new_pid,
                        seconds: begun.elapsed().as_secs_f64(),
                        load: orders.load(),
                        drain_seconds: orders.drain_time().as_secs(),
                    };
                    tell(stream, &serving).await?;
                    // Ends when the listener is gone, or the process.
                    loop {
                        tokio::time::sleep(PERIOD).await;
                        tell(stream, &Told::Draining { load: orders.load() }).await?;
                    }
                }
                Err(why) => tell(stream, &Told::Refused { pid, why }).await,
            }
        }
        Ok(Order::Drain { undo }) => {
            let on = orders.drain(!undo);
            let load = orders.load();
            tell(stream, &Told::Drain { pid, on, load }).await
        }
        Err(e) => {
            let why = format!("the order is not understood: {e}");
            tell(stream, &Told::Refused { pid, why }).await
        }
    }
}

async fn tell(stream: &mut UnixStream, told: &Told) -> io::Result<()> {
    let mut line = serde_json::to_vec(told)?;
    line.push(b'\n');
    tokio::time::timeout(TO_SPEAK, stream.write_all(&line)).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_taken_while_somebody_listens() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_taken(dir.path()));
        let socket = open(dir.path()).unwrap();
        assert!(is_taken(dir.path()));
        // Its file stays when the process goes.
        drop(socket);
        assert!(path(dir.path()).exists() && !is_taken(dir.path()));
    }
}
