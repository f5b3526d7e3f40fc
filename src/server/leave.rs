//! Runs what [`super::start`] put together, listens to signals, and leads the process out.

use super::replace::Replacing;
use super::{EXIT_FAILED, LAST_BYTES, LAST_FLUSH};
use crate::greeting::Greeting;
use crate::health::Health;
use crate::ledger::Ledger;
use crate::notify::Notify;
use crate::reload::{Origin, Reload};
use crate::shared::meters::Meters;
use crate::tls::Tls;
use crate::traces::Exporters;
use crate::upgrade::control::{self, Orders};
use crate::upgrade::{self, new::Inherited, replica::Replica};
use async_trait::async_trait;
use pingora::server::{ExecutionPhase, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// For a process that takes over to reach its store; the one that hands over loses patience before.
const STORE: Duration = Duration::from_secs(3600);
/// Between two looks at a store that does not answer.
const STORE_AGAIN: Duration = Duration::from_millis(200);
/// Between two looks whether another gateway has left the data directory.
const TAKEN_AGAIN: Duration = Duration::from_secs(1);
/// For Redis to hear that this process holds nothing any more.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How far the process is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Starting,
    Serving,
    /// Told to stop: readiness says no, connections are taken for a while longer.
    Asked,
    /// The listeners close.
    Leaving(Why),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Told to stop.
    Stop,
    /// Told not to wait for calls in flight.
    AtOnce,
    /// Another process has taken over.
    Replaced,
}

pub(super) type Stages = watch::Sender<Stage>;

pub(super) struct Running {
    pub(super) server: Server,
    pub(super) background: tokio::runtime::Runtime,
    pub(super) ledger: Arc<Ledger>,
    pub(super) meters: Arc<Meters>,
    pub(super) traces: Arc<Exporters>,
    pub(super) health: Arc<Health>,
    /// After SIGTERM, before the listeners close.
    pub(super) delay: Duration,
    pub(super) greeting: Greeting,
    pub(super) notify: Arc<Notify>,
    pub(super) replacing: Arc<Replacing>,
    pub(super) replace_me: Signal,
    pub(super) stages: Arc<Stages>,
    /// Services that have opened their listeners, and how many there are.
    pub(super) opened: Arc<watch::Sender<usize>>,
    pub(super) services: usize,
    pub(super) data_dir: PathBuf,
    /// Held, not used: the name is ours for as long as it is.
    pub(super) replica: Option<Replica>,
}

impl Running {
    pub(super) fn run(self, inherited: Option<Inherited>) -> i32 {
        let Running {
            server,
            background,
            ledger,
            meters,
            traces,
            health,
            delay,
            greeting,
            notify,
            replacing,
            replace_me,
            stages,
            opened,
            services,
            data_dir,
            replica,
        } = self;
        let drain = replacing.drain;
        let mut phases = server.watch_execution_phase();
        let threads = background.handle().clone();
        if inherited.is_some() && !threads.block_on(reaches_its_store(&health)) {
            // Nobody waits that long; the process before this one has long ended it.
            return EXIT_FAILED;
        }
        // A signal that came while it started has ended it.
        stages.send_if_modified(|s| {
            let starting = *s == Stage::Starting;
            if starting {
                *s = Stage::Serving;
            }
            starting
        });
        threads.spawn(on_stop(
            Arc::clone(&stages),
            Arc::clone(&health),
            Arc::clone(&notify),
            (delay, drain),
        ));
        {
            let (told, stages, replacing) =
                (Arc::clone(&notify), Arc::clone(&stages), Arc::clone(&replacing));
            let (threads, data_dir) = (threads.clone(), data_dir.clone());
            std::thread::spawn(move || {
                let mut opened = opened.subscribe();
                if threads.block_on(opened.wait_for(|n| *n >= services)).is_err() {
                    return;
                }
                let heir = inherited.is_some();
                let taken = control::is_taken(&data_dir) && !(heir && upgrade::serves_before_us(&data_dir));
                if inherited.is_some_and(|inherited| !inherited.ready()) {
                    log::warn!("upgrade: the process before this one goes on; leaving");
                    stages.send_replace(Stage::Leaving(Why::Stop));
                    return;
                }
                let orders = Arc::clone(&replacing) as Arc<dyn Orders>;
                if taken {
                    log::warn!(
                        "event=data_dir_shared another gateway serves on {}: `tollkeeper upgrade` and `drain` reach \
                         that one until it leaves. Give each a data directory of its own",
                        data_dir.display()
                    );
                    threads.spawn(orders_later(data_dir, orders, stages.subscribe()));
                } else {
                    let context = threads.enter();
                    if let Some(socket) = open_to_orders(&data_dir) {
                        threads.spawn(take_orders(socket, orders, stages.subscribe()));
                    }
                    drop(context);
                }
                threads.spawn(on_replace(replace_me, replacing));
                let local = greeting.local();
                if let (Some(at), Some(status)) = (local, greeting.tell()) {
                    told.ready(&status);
                    threads.spawn(told.watch(at));
                }
            });
        }
        let shutdown_signal = Box::new(Leave(stages.subscribe()));
        // Pingora sleeps its whole grace period even when nothing is left to do. This thread leaves as
        // soon as the last request is over and the ledger has had its chance.
        std::thread::spawn(move || {
            while let Ok(phase) = phases.blocking_recv() {
                if matches!(
                    phase,
                    ExecutionPhase::ShutdownGracePeriod | ExecutionPhase::ShutdownRuntimes
                ) {
                    break;
                }
            }
            replacing.close();
            if !replacing.has_heir() {
                upgrade::remove_pid(&data_dir);
            }
            let begun = Instant::now();
            // Connections that look idle may carry a request that is on its way.
            while begun.elapsed() < drain && !replacing.is_empty(begun.elapsed()) {
                match *stages.borrow() {
                    Stage::Leaving(Why::AtOnce) => break,
                    Stage::Leaving(Why::Stop) => replacing.good_bye.hurry(),
                    _ => {}
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            // What was handed over last may still be in a connection's buffer.
            std::thread::sleep(LAST_BYTES);
            let told = std::thread::spawn(move || traces.finish(LAST_FLUSH));
            let landed = background.block_on(ledger.drain(LAST_FLUSH));
            let _ = background.block_on(async { tokio::time::timeout(LAST_WORD, meters.part()).await });
            if !told.join().unwrap_or(true) {
                log::warn!("event=traces_left_behind cause=\"they could not be sent in time\"");
            }
            log::info!(
                "stopped: {} requests cut off, ledger {}",
                replacing.in_flight.count(),
                if landed {
                    "all in the store"
                } else {
                    "kept in the spool"
                }
            );
            log::logger().flush();
            drop(replica);
            std::process::exit(0);
        });
        server.run(RunArgs { shutdown_signal });
        // The thread above ends the process; this one may come here first.
        std::thread::sleep(drain + LAST_FLUSH);
        0
    }
}

/// Says in the data directory that this process serves, and opens the socket. Needs a Tokio runtime.
fn open_to_orders(data_dir: &Path) -> Option<UnixListener> {
    if let Err(e) = upgrade::write_pid(data_dir) {
        log::warn!("the process id cannot be written: {e}");
    }
    control::open(data_dir)
        .inspect_err(|e| {
            log::warn!("`tollkeeper upgrade` does not work, SIGUSR2 does: the control socket: {e}");
        })
        .ok()
}

/// Until the process leaves: whoever serves on the data directory then can be told from it.
async fn take_orders(socket: UnixListener, orders: Arc<dyn Orders>, mut stages: watch::Receiver<Stage>) {
    tokio::select! {
        _ = control::serve(socket, orders) => {}
        _ = stages.wait_for(|s| matches!(s, Stage::Leaving(_))) => {}
    }
}

/// The same, once the gateway has left that is found on the data directory now.
async fn orders_later(data_dir: PathBuf, orders: Arc<dyn Orders>, mut stages: watch::Receiver<Stage>) {
    let free = async {
        while control::is_taken(&data_dir) {
            tokio::time::sleep(TAKEN_AGAIN).await;
        }
    };
    tokio::select! {
        () = free => {}
        _ = stages.wait_for(|s| matches!(s, Stage::Leaving(_))) => return,
    }
    if let Some(socket) = open_to_orders(&data_dir) {
        log::info!(
            "event=data_dir_free the other gateway has left {}: `tollkeeper upgrade` and `drain` reach this one now",
            data_dir.display()
        );
        take_orders(socket, orders, stages).await;
    }
}

/// Tells Pingora when to close the listeners.
struct Leave(watch::Receiver<Stage>);

#[async_trait]
impl ShutdownSignalWatch for Leave {
    async fn recv(&self) -> ShutdownSignal {
        let mut stage = self.0.clone();
        match stage
            .wait_for(|s| matches!(s, Stage::Leaving(_)))
            .await
            .as_deref()
        {
            Ok(Stage::Leaving(Why::AtOnce)) => ShutdownSignal::FastShutdown,
            _ => ShutdownSignal::GracefulTerminate,
        }
    }
}

/// A process that takes over must not do so without its store: the one before it may know more by heart.
async fn reaches_its_store(health: &Health) -> bool {
    let until = Instant::now() + STORE;
    while !health.reaches_store().await {
        if Instant::now() > until {
            return false;
        }
        tokio::time::sleep(STORE_AGAIN).await;
    }
    true
}

/// From the word to stop to the closing of the listeners.
async fn on_stop(
    stages: Arc<Stages>,
    health: Arc<Health>,
    notify: Arc<Notify>,
    (delay, drain): (Duration, Duration),
) {
    let mut stage = stages.subscribe();
    let told = |s: &Stage| !matches!(s, Stage::Starting | Stage::Serving);
    let Ok(Stage::Asked) = stage.wait_for(told).await.as_deref().copied() else {
        return;
    };
    health.leave();
    notify.stopping(delay + drain);
    let when = match delay.is_zero() {
        true => "now".to_string(),
        false => format!("in {} s", delay.as_secs_f32()),
    };
    log::info!(
        "leaving: the listeners close {when}, requests in flight may go on for {} s",
        drain.as_secs()
    );
    tokio::time::sleep(delay).await;
    health.part();
    stages.send_if_modified(|s| {
        let asked = *s == Stage::Asked;
        if asked {
            *s = Stage::Leaving(Why::Stop);
        }
        asked
    });
}

async fn on_replace(mut signals: Signal, replacing: Arc<Replacing>) {
    while signals.recv().await.is_some() {
        // The outcome is in the log.
        let _ = replacing.replace(None, upgrade::PATIENCE).await;
    }
}

/// What is not answered here.
pub(super) struct Signals {
    pub(super) hangup: Signal,
    pub(super) replace_me: Signal,
}

/// The handlers stand when this returns: before any listener, since a signal may come as soon as somebody
/// can see the process. A second SIGTERM does not wait.
pub(super) fn watch_signals(
    background: &tokio::runtime::Runtime,
    stages: &Arc<Stages>,
) -> std::io::Result<Signals> {
    let _context = background.enter();
    let (mut term, mut quit) = (signal(SignalKind::terminate())?, signal(SignalKind::quit())?);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stages = Arc::clone(stages);
    background.spawn(async move {
        let mut told = false;
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = quit.recv() => {}
                _ = interrupt.recv() => {
                    if *stages.borrow() == Stage::Starting {
                        std::process::exit(EXIT_FAILED);
                    }
                    stages.send_replace(Stage::Leaving(Why::AtOnce));
                    continue;
                }
            }
            if told {
                log::warn!("told to stop a second time: leaving at once");
                log::logger().flush();
                std::process::exit(EXIT_FAILED);
            }
            told = true;
            stages.send_modify(|s| match s {
                // Nothing is in flight yet.
                Stage::Starting => std::process::exit(0),
                Stage::Serving => *s = Stage::Asked,
                Stage::Asked => {}
                Stage::Leaving(why) => {
                    log::info!("told to stop while another process serves: idle connections are closed");
                    *why = Why::Stop;
                }
            });
        }
    });
    Ok(Signals {
        hangup: signal(SignalKind::hangup())?,
        replace_me: signal(SignalKind::user_defined2())?,
    })
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
