//! Tells those who watch of every call that is over: Langfuse, and any receiver of OpenTelemetry.
//!
//! A call hands its [`Trace`] over in [`Exporters::emit`] and knows no more of it. One thread of our own
//! (`worker`) makes a `story` of it, writes it in the receiver's words (`langfuse`, `legacy`, `genai`, in
//! `proto`'s bytes), packs (`batch`) and carries (`road`, `send`). Memory is bounded over all of this: what
//! does not fit is counted and let go of. Which project a call belongs to is in `project`.

mod answer;
mod batch;
mod genai;
mod langfuse;
mod legacy;
mod project;
mod proto;
mod road;
#[cfg(test)]
mod sample;
mod send;
mod stats;
mod story;
mod worker;

use crate::conf::{Env, Tracing};
use filters::contract::ports::{Traces, Wanted};
use filters::model::key::Caller;
use filters::model::record::Status;
use filters::model::trace::{Capture, Trace};
use parking_lot::Mutex;
use stats::{Exporter, Lost, Share, Stats};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use worker::Worker;

/// So many calls wake the worker before its time.
const MANY: usize = 512;
/// How often somebody who waits for everything to be told looks.
const LOOK: Duration = Duration::from_millis(5);

/// Everybody who is told of calls.
pub struct Exporters {
    shared: Arc<Shared>,
    /// The most that anybody wants to know.
    most: Capture,
    redact: bool,
    max_bytes: usize,
    may_hide: bool,
    success: bool,
    failure: bool,
}

/// What the calls' threads and the worker share.
struct Shared {
    intake: Mutex<Vec<Weighed>>,
    wake: Notify,
    leaving: watch::Sender<bool>,
    stats: Arc<Stats>,
    queue_bytes: usize,
    /// What of a call a receiver of OpenTelemetry gets.
    otlp_capture: Capture,
    /// Who is told at all, for metrics and for counting what never got further.
    used: Vec<Exporter>,
}

/// A call that waits, and the memory it takes.
struct Weighed {
    trace: Box<Trace>,
    share: Share,
}

impl Exporters {
    /// Starts telling, if the config names anybody to tell. `Err` says why that cannot be done.
    pub fn start(tracing: &Tracing, env: &Env) -> Result<Self, String> {
        let langfuse = tracing.langfuse.as_ref().map(|l| l.capture);
        let otlp = tracing.otlp.as_ref().map(|o| o.capture);
        let mut used = Vec::new();
        if langfuse.is_some() {
            used.extend([Exporter::Langfuse, Exporter::OwnProjects]);
        }
        if otlp.is_some() {
            used.push(Exporter::Otlp);
        }
        let shared = Arc::new(Shared {
            intake: Mutex::default(),
            wake: Notify::new(),
            leaving: watch::Sender::new(false),
            stats: Arc::new(Stats::default()),
            queue_bytes: usize::try_from(tracing.queue_bytes).unwrap_or(usize::MAX),
            otlp_capture: otlp.unwrap_or_default(),
            used,
        });
        if !shared.used.is_empty() {
            spawn(Arc::clone(&shared), tracing.clone(), env.clone())?;
        }
        Ok(Self {
            most: langfuse.max(otlp).unwrap_or_default(),
            redact: tracing.redact,
            max_bytes: usize::try_from(tracing.max_bytes).unwrap_or(usize::MAX),
            may_hide: tracing.no_log,
            success: worker::listens(tracing, false),
            failure: worker::listens(tracing, true),
            shared,
        })
    }

    /// Waits until everything that is known has been told, or gone, or the time is up. To be called when no
    /// more calls come: from here on nothing waits for more of its kind. True = nothing is left.
    pub fn finish(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        self.shared.leaving.send_replace(true);
        self.shared.wake.notify_one();
        while self.shared.stats.held.load(Relaxed) > 0 {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// Lines for `/metrics`; none when nobody is told.
    pub fn render(&self) -> String {
        match self.shared.used.as_slice() {
            [] => String::new(),
            used => self.shared.stats.render(used),
        }
    }
}

/// The worker's thread, for as long as the process lives.
fn spawn(shared: Arc<Shared>, tracing: Tracing, env: Env) -> Result<(), String> {
    let client = send::client()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let work = move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, Worker::new(shared, client, tracing, env).run());
    };
    std::thread::Builder::new()
        .name("traces".into())
        .spawn(work)
        .map(drop)
        .map_err(|e| e.to_string())
}

impl Traces for Exporters {
    fn most(&self) -> Capture {
        self.most
    }

    fn wants(&self, caller: &Caller) -> Wanted {
        project::wants(self.most, self.redact, caller)
    }

    fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    fn may_hide(&self) -> bool {
        self.may_hide
    }

    fn emit(&self, trace: Box<Trace>) {
        let shared = &self.shared;
        let failed = trace.status != Status::Success;
        if !(if failed { self.failure } else { self.success }) {
            return;
        }
        let Some(share) = Share::take(&shared.stats.held, trace.weight(), shared.queue_bytes) else {
            if let Some(first) = shared.used.first() {
                shared.stats.lost(*first, Lost::Full, 1);
            }
            return;
        };
        let waiting = {
            let mut intake = shared.intake.lock();
            intake.push(Weighed { trace, share });
            intake.len()
        };
        if waiting == MANY {
            shared.wake.notify_one();
        }
    }
}
