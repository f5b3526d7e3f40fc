//! Runs what [`super::start`] put together, listens to signals, and leads the process out.

use super::{EXIT_FAILED, LAST_BYTES, LAST_FLUSH};
use crate::greeting::Greeting;
use crate::health::Health;
use crate::ledger::Ledger;
use crate::notify::Notify;
use crate::proxy::drain::InFlight;
use crate::proxy::linger::LINGER;
use crate::reload::{Origin, Reload};
use crate::tls::Tls;
use pingora::server::{ExecutionPhase, RunArgs, Server};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(super) struct Running {
    pub(super) server: Server,
    pub(super) background: tokio::runtime::Runtime,
    pub(super) ledger: Arc<Ledger>,
    pub(super) health: Arc<Health>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) drain: Duration,
    pub(super) greeting: Greeting,
    pub(super) notify: Arc<Notify>,
}

impl Running {
    pub(super) fn run(self) -> i32 {
        let Running {
            server,
            background,
            ledger,
            health,
            in_flight,
            drain,
            greeting,
            notify,
        } = self;
        let mut phases = server.watch_execution_phase();
        let told = Arc::clone(&notify);
        let threads = background.handle().clone();
        std::thread::spawn(move || {
            let local = greeting.local();
            if let (Some(at), Some(status)) = (local, greeting.tell()) {
                told.ready(&status);
                threads.spawn(told.watch(at));
            }
        });
        // Pingora sleeps its whole grace period even when nothing is left to do. This thread leaves as
        // soon as the last request is over and the ledger has had its chance.
        std::thread::spawn(move || {
            loop {
                match phases.blocking_recv() {
                    Ok(
                        ExecutionPhase::GracefulTerminate | ExecutionPhase::GracefulUpgradeTransferringFds,
                    ) => {
                        health.leave();
                        notify.stopping(drain);
                        log::info!("leaving: requests in flight may go on for {} s", drain.as_secs());
                    }
                    Ok(ExecutionPhase::ShutdownGracePeriod | ExecutionPhase::ShutdownRuntimes) => break,
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            // Connections that look idle may carry a request that is on its way.
            std::thread::sleep(LINGER);
            let until = Instant::now() + drain;
            while in_flight.count() > 0 && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            // What was handed over last may still be in a connection's buffer.
            std::thread::sleep(LAST_BYTES);
            let landed = background.block_on(ledger.drain(LAST_FLUSH));
            log::info!(
                "stopped: {} requests cut off, ledger {}",
                in_flight.count(),
                if landed {
                    "all in the store"
                } else {
                    "kept in the spool"
                }
            );
            log::logger().flush();
            std::process::exit(0);
        });
        server.run(RunArgs::default());
        // The thread above ends the process; this one may come here first.
        std::thread::sleep(drain + LAST_FLUSH);
        0
    }
}

/// A second SIGTERM does not wait, and SIGHUP does not kill. The handlers stand when this returns: before
/// any listener, since a signal may come as soon as somebody can see the process.
pub(super) fn watch_signals(background: &tokio::runtime::Runtime) -> std::io::Result<Signal> {
    let _context = background.enter();
    let mut term = signal(SignalKind::terminate())?;
    background.spawn(async move {
        term.recv().await;
        if term.recv().await.is_some() {
            log::warn!("a second SIGTERM: leaving at once");
            std::process::exit(EXIT_FAILED);
        }
    });
    signal(SignalKind::hangup())
}

pub(super) async fn on_hangup(
    mut hup: Signal,
    reload: Arc<Reload>,
    tls: Option<Arc<Tls>>,
    notify: Arc<Notify>,
) {
    while hup.recv().await.is_some() {
        notify.reloading();
        // The outcome is in the log and in the status, too.
        let applied = reload.apply(Origin::Signal).await;
        if let Some(tls) = &tls {
            tls.refresh().await;
        }
        notify.ready(&match applied {
            Ok(applied) => format!("Ready: config {}", applied.generation),
            Err(_) => "Ready: the old config, since the new one cannot be used; see the log".to_string(),
        });
    }
}
