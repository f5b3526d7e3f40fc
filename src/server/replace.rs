//! How this process is replaced by a new one, and what it still has meanwhile. The hand-over itself is in
//! [`crate::upgrade`].

use super::leave::{Stage, Stages, Why};
use crate::health::Health;
use crate::notify::Notify;
use crate::proxy::drain::InFlight;
use crate::proxy::linger::GoodBye;
use crate::upgrade::control::{Load, Orders};
use crate::upgrade::old;
use async_trait::async_trait;
use parking_lot::Mutex;
use std::ffi::OsString;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(super) struct Replacing {
    /// Of the listeners, for the process that takes over. Empty once this one has closed its own.
    pub(super) sockets: Mutex<Vec<TcpListener>>,
    /// Where the binary was at the start; `Err` is why that is not known.
    pub(super) binary: Result<PathBuf, String>,
    /// The command line without the program's name.
    pub(super) args: Vec<OsString>,
    pub(super) health: Arc<Health>,
    pub(super) good_bye: Arc<GoodBye>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) notify: Arc<Notify>,
    /// The longest this process stays once it leaves.
    pub(super) drain: Duration,
    pub(super) stages: Arc<Stages>,
    /// One at a time.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Another process serves.
    pub(super) heir: AtomicBool,
}

impl Replacing {
    /// `Err` is a sentence, and this process goes on. Both are in the log.
    pub(super) async fn replace(&self, binary: Option<PathBuf>, patience: Duration) -> Result<u32, String> {
        let outcome = self.try_replace(binary, patience).await;
        if let Err(why) = &outcome {
            log::error!("event=upgrade_failed this process goes on: {why}");
        }
        outcome
    }

    async fn try_replace(&self, binary: Option<PathBuf>, patience: Duration) -> Result<u32, String> {
        let Ok(_turn) = self.turn.try_lock() else {
            return Err("a new process is being started already".to_string());
        };
        let binary = match binary {
            Some(binary) if binary.is_absolute() => binary,
            Some(binary) => return Err(format!("{} is no absolute path", binary.display())),
            None => self.binary.clone()?,
        };
        let mut stage = self.stages.subscribe();
        if *stage.borrow() != Stage::Serving {
            return Err("this process is leaving already".to_string());
        }
        let sockets: std::io::Result<Vec<_>> =
            self.sockets.lock().iter().map(TcpListener::try_clone).collect();
        let sockets = sockets.map_err(|e| format!("the sockets cannot be handed over: {e}"))?;
        let told = async move {
            let _ = stage.wait_for(|s| *s != Stage::Serving).await;
        };
        let pid = old::hand_over(&binary, &self.args, &sockets, patience, told).await?;
        log::info!(
            "event=upgraded process {pid} serves; requests in flight may go on for {} s: {}",
            self.drain.as_secs(),
            self.in_flight.count()
        );
        self.heir.store(true, Ordering::SeqCst);
        self.notify.replaced_by(pid);
        self.good_bye.take_time(self.drain);
        self.health.part();
        self.stages.send_if_modified(|s| {
            let goes = !matches!(s, Stage::Leaving(_));
            if goes {
                *s = Stage::Leaving(Why::Replaced);
            }
            goes
        });
        Ok(pid)
    }

    /// Whether what the data directory says of who serves is another process' word.
    pub(super) fn has_heir(&self) -> bool {
        self.heir.load(Ordering::SeqCst)
    }

    /// Whether nobody is left who has to be waited for, so long after the listeners were closed.
    pub(super) fn is_empty(&self, since: Duration) -> bool {
        self.in_flight.count() == 0 && self.good_bye.is_over(since)
    }

    /// Closes the sockets, so that the kernel takes no connection for a process that accepts none.
    pub(super) fn close(&self) {
        self.sockets.lock().clear();
    }
}

#[async_trait]
impl Orders for Replacing {
    async fn upgrade(&self, binary: Option<PathBuf>, patience: Duration) -> Result<u32, String> {
        self.replace(binary, patience).await
    }

    fn drain(&self, on: bool) -> bool {
        self.health.rest(on);
        let rests = self.health.rests();
        log::info!(
            "event=drain readiness says {}",
            if rests { "no" } else { "yes, if it can" }
        );
        rests
    }

    fn load(&self) -> Load {
        Load {
            in_flight: self.in_flight.count(),
            connections: self.good_bye.connections(),
        }
    }

    fn drain_time(&self) -> Duration {
        self.drain
    }
}
