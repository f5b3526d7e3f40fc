//! Tells those who watch of every call that is over: Langfuse, and any receiver of OpenTelemetry.
//!
//! A call hands its [`Trace`] over in [`Exporters::emit`] and knows no more of it. One thread of our own
//! (`worker`) makes a `story` of it, writes it in the receiver's words (`langfuse`, `legacy`, `genai`, in
//! `proto`'s bytes), packs (`batch`) and carries (`road`, `send`). Memory is bounded over all of this: what
//! does not fit is counted and let go of. Which project a call belongs to is in `project`.

mod address;
mod amounts;
mod answer;
mod batch;
mod genai;
mod halves;
mod langfuse;
mod legacy;
pub mod probe;
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
use crate::store::seal::Seal;
use crate::telemetry::metrics::page::{Page, Source};
use arc_swap::ArcSwap;
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

/// Everybody who is told of calls, whatever generation of the config serves.
pub struct Exporters {
    shared: Arc<Shared>,
    /// What the generation that serves wants.
    now: ArcSwap<Generation>,
    state: Mutex<State>,
}

/// What the worker was told to do.
struct State {
    /// Whether its thread runs: not before there is anybody to tell.
    works: bool,
    said: Arc<Said>,
}

/// What one generation of the config wants of calls: the port of its lanes.
pub struct Generation {
    shared: Arc<Shared>,
    /// The most that anybody wants to know.
    most: Capture,
    redact: bool,
    max_bytes: usize,
    queue_bytes: usize,
    may_hide: bool,
    success: bool,
    failure: bool,
    /// Who is told at all, for metrics and for counting what never got further.
    used: Vec<Exporter>,
}

/// What the calls' threads and the worker share.
struct Shared {
    intake: Mutex<Intake>,
    wake: Notify,
    leaving: watch::Sender<bool>,
    stats: Arc<Stats>,
}

/// What the worker has not taken over yet.
#[derive(Default)]
struct Intake {
    calls: Vec<Weighed>,
    /// Changes of the config, each with how many of these calls came before it.
    turns: Vec<(usize, Arc<Said>)>,
}

/// What a config says to the worker.
struct Said {
    tracing: Tracing,
    env: Env,
    seal: Seal,
}

/// A call that waits, and the memory it takes.
struct Weighed {
    trace: Box<Trace>,
    share: Share,
}

impl Exporters {
    /// Tells those that the config names, if it names anybody. `seal` opens the secrets of projects in the
    /// store. `Err` says why nobody can be told.
    pub fn start(tracing: &Tracing, env: &Env, seal: Seal) -> Result<Self, String> {
        let said = Said {
            tracing: tracing.clone(),
            env: env.clone(),
            seal,
        };
        let shared = Arc::new(Shared {
            intake: Mutex::default(),
            wake: Notify::new(),
            leaving: watch::Sender::new(false),
            stats: Arc::new(Stats::default()),
        });
        let exporters = Self {
            now: ArcSwap::from_pointee(Generation::new(&shared, tracing)),
            shared,
            state: Mutex::new(State {
                works: false,
                said: Arc::new(said),
            }),
        };
        exporters.generation(tracing)?;
        Ok(exporters)
    }

    /// What a config wants of the calls of its lanes, be it in use already or not. `Err` says why nobody can
    /// be told.
    pub fn generation(&self, tracing: &Tracing) -> Result<Arc<Generation>, String> {
        let generation = Generation::new(&self.shared, tracing);
        let mut state = self.state.lock();
        if !generation.used.is_empty() && !state.works {
            spawn(Arc::clone(&self.shared), Arc::clone(&state.said))?;
            state.works = true;
        }
        Ok(Arc::new(generation))
    }

    /// Takes a changed config into use. What waits for a receiver that stays waits on; one that is gone is
    /// told what it was to be told for a short while yet.
    pub fn apply(&self, tracing: &Tracing, env: &Env) {
        let mut state = self.state.lock();
        if state.said.is(tracing, env) {
            return;
        }
        state.said = Arc::new(Said {
            tracing: tracing.clone(),
            env: env.clone(),
            seal: state.said.seal.clone(),
        });
        self.now.store(Arc::new(Generation::new(&self.shared, tracing)));
        if state.works {
            let mut intake = self.shared.intake.lock();
            let before = intake.calls.len();
            intake.turns.push((before, Arc::clone(&state.said)));
            drop(intake);
            self.shared.wake.notify_one();
        }
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

    /// Who is told, and whether they take it.
    pub fn receivers(&self) -> Vec<(&'static str, bool)> {
        let now = self.now.load();
        let used = now.used.iter();
        used.map(|e| (e.as_str(), self.shared.stats.takes(*e))).collect()
    }
}

impl Source for Exporters {
    /// Nothing when nobody was ever told.
    fn gather(&self, page: &mut Page) {
        self.shared.stats.gather(&self.now.load().used, page);
    }
}

impl Said {
    fn is(&self, tracing: &Tracing, env: &Env) -> bool {
        self.tracing == *tracing && self.env == *env
    }
}

impl Generation {
    fn new(shared: &Arc<Shared>, tracing: &Tracing) -> Self {
        let langfuse = tracing.langfuse.as_ref().map(|l| l.capture);
        let otlp = tracing.otlp.as_ref().map(|o| o.capture);
        let mut used = Vec::new();
        if langfuse.is_some() {
            used.extend([Exporter::Langfuse, Exporter::OwnProjects]);
        }
        if otlp.is_some() {
            used.push(Exporter::Otlp);
        }
        let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self {
            most: langfuse.max(otlp).unwrap_or_default(),
            redact: tracing.redact,
            max_bytes: bytes(tracing.max_bytes),
            queue_bytes: bytes(tracing.queue_bytes),
            may_hide: tracing.no_log,
            success: worker::listens(tracing, false),
            failure: worker::listens(tracing, true),
            used,
            shared: Arc::clone(shared),
        }
    }
}

/// The worker's thread, for as long as the process lives.
fn spawn(shared: Arc<Shared>, said: Arc<Said>) -> Result<(), String> {
    let client = send::client()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let work = move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, Worker::new(shared, client, said).run());
    };
    std::thread::Builder::new()
        .name("traces".into())
        .spawn(work)
        .map(drop)
        .map_err(|e| e.to_string())
}

impl Traces for Generation {
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
        let Some(share) = Share::take(&shared.stats.held, trace.weight(), self.queue_bytes) else {
            if let Some(first) = self.used.first() {
                shared.stats.lost(*first, Lost::Full, 1);
            }
            return;
        };
        let waiting = {
            let mut intake = shared.intake.lock();
            intake.calls.push(Weighed { trace, share });
            intake.calls.len()
        };
        let crowded = shared.stats.held.load(Relaxed) > self.queue_bytes / 4;
        if waiting == MANY || crowded {
            shared.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::{On, Otlp};
    use filters::model::trace::{SpanId, TraceId};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;
    use std::collections::HashSet;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{SocketAddr, TcpListener};

    const QUEUE: usize = 1 << 20;

    fn tracing(at: SocketAddr) -> Tracing {
        Tracing {
            otlp: Some(Otlp {
                endpoint: format!("http://{at}/v1/traces"),
                on: On {
                    success: true,
                    failure: true,
                },
                ..Otlp::default()
            }),
            queue_bytes: QUEUE as u64,
            flush_every: Duration::from_millis(5),
            ..Tracing::default()
        }
    }

    /// Who is told, and the port of a lane that tells them.
    fn started(tracing: &Tracing) -> (Exporters, Arc<Generation>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let seal = Seal::new(&"salt".into());
        let exporters = Exporters::start(tracing, &Env::default(), seal).unwrap();
        let generation = exporters.generation(tracing).unwrap();
        (exporters, generation)
    }

    /// Takes one request after the other on connections of their own, and hands the bodies on.
    fn serve(listener: TcpListener) -> std::sync::mpsc::Receiver<Vec<u8>> {
        let (tx, rx) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let (mut length, mut gzip, mut line) = (0, false, String::new());
                while stream.read_line(&mut line).unwrap_or(0) > 2 {
                    let lower = line.to_ascii_lowercase();
                    if let Some(n) = lower.strip_prefix("content-length:") {
                        length = n.trim().parse().unwrap();
                    }
                    gzip |= lower.starts_with("content-encoding: gzip");
                    line.clear();
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                let body = if gzip {
                    batch::unpacked(&body).unwrap()
                } else {
                    body
                };
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.get_mut().write_all(answer).unwrap();
                if tx.send(body).is_err() {
                    return;
                }
            }
        });
        rx
    }

    fn shown(exporters: &Exporters) -> String {
        let mut page = Page::default();
        exporters.gather(&mut page);
        page.finish()
    }

    fn call(n: u32) -> Box<Trace> {
        let mut trace = sample::trace();
        let mut id = [1; 16];
        id[12..].copy_from_slice(&n.to_be_bytes());
        trace.context.trace = TraceId(id);
        trace.root = SpanId::random();
        trace.tries.clear();
        Box::new(trace)
    }

    #[test]
    fn a_receiver_that_is_away_costs_a_bounded_memory_and_what_fitted_is_told_once() {
        // Nobody listens there yet, and nobody else can.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap();
        let _context = runtime.enter();
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = closed.local_addr().unwrap();
        let (exporters, lane) = started(&tracing(at));
        let stats = Arc::clone(&exporters.shared.stats);
        let all = 5000;
        for n in 0..all {
            lane.emit(call(n));
            // A call that is being written may turn out a little larger than it was weighed.
            assert!(stats.held.load(Relaxed) <= QUEUE + QUEUE / 4, "memory is bounded");
            // As calls come, and not faster than any thread can follow.
            if n % 100 == 0 {
                std::thread::yield_now();
            }
        }
        let listener = closed.listen(128).unwrap().into_std().unwrap();
        listener.set_nonblocking(false).unwrap();
        let bodies = serve(listener);
        assert!(
            exporters.finish(Duration::from_secs(30)),
            "everything goes in the end"
        );
        let text = shown(&exporters);
        let count = |name: &str| -> u32 {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        let sent = count("tollkeeper_traces_sent_total{exporter=\"otlp\"}");
        let lost = count("tollkeeper_traces_lost_total{exporter=\"otlp\",reason=\"full\"}");
        assert_eq!(sent + lost, all, "each call is accounted for");
        assert!(sent > 100 && lost > 0, "{sent} sent, {lost} lost");
        let mut told = Vec::new();
        for body in bodies.try_iter() {
            let read = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            let scopes = read.resource_spans.into_iter().flat_map(|r| r.scope_spans);
            told.extend(scopes.flat_map(|s| s.spans).map(|s| s.trace_id));
        }
        let unique: HashSet<_> = told.iter().cloned().collect();
        assert_eq!(
            (told.len(), unique.len()),
            (sent as usize, sent as usize),
            "each once"
        );
    }

    #[test]
    fn nobody_to_tell_costs_nothing() {
        let (none, lane) = started(&Tracing::default());
        assert_eq!(lane.most(), Capture::Off);
        lane.emit(call(0));
        assert!(none.finish(Duration::ZERO) && shown(&none).is_empty());
    }

    /// The ids of the calls in what a receiver got.
    fn ids(bodies: &std::sync::mpsc::Receiver<Vec<u8>>, calls: usize) -> HashSet<u32> {
        let mut ids = HashSet::new();
        while ids.len() < calls {
            let body = bodies.recv_timeout(Duration::from_secs(30)).unwrap();
            let read = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            let scopes = read.resource_spans.into_iter().flat_map(|r| r.scope_spans);
            for span in scopes.flat_map(|s| s.spans) {
                ids.insert(u32::from_be_bytes(span.trace_id[12..].try_into().unwrap()));
            }
        }
        ids
    }

    #[test]
    fn a_changed_receiver_gets_what_comes_and_the_former_one_what_had_waited() {
        let (first, second) = (
            TcpListener::bind("127.0.0.1:0").unwrap(),
            TcpListener::bind("127.0.0.1:0").unwrap(),
        );
        let mut before = tracing(first.local_addr().unwrap());
        // Nothing is due before the change.
        before.flush_every = Duration::from_secs(3600);
        let after = tracing(second.local_addr().unwrap());
        let (exporters, old) = started(&before);
        (0..3).for_each(|n| old.emit(call(n)));
        let new = exporters.generation(&after).unwrap();
        exporters.apply(&after, &Env::default());
        (3..5).for_each(|n| new.emit(call(n)));
        let (to_first, to_second) = (serve(first), serve(second));
        let firsts = ids(&to_first, 3);
        let seconds = ids(&to_second, 2);
        let mut all: Vec<u32> = firsts.union(&seconds).copied().collect();
        all.sort_unstable();
        assert_eq!(
            all,
            [0, 1, 2, 3, 4],
            "nothing is lost in between, and nothing told twice"
        );
        assert!((0..3).all(|n| firsts.contains(&n)), "{firsts:?}");

        // Nobody at all: what comes now is nobody's business.
        exporters.apply(&Tracing::default(), &Env::default());
        new.emit(call(9));
        assert!(exporters.finish(Duration::from_secs(30)));
        assert!(exporters.receivers().is_empty());
        assert!(to_second.try_recv().is_err());
    }

    #[test]
    fn what_differs_elsewhere_leaves_a_receiver_its_queue() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut before = tracing(listener.local_addr().unwrap());
        before.flush_every = Duration::from_secs(3600);
        let (exporters, lane) = started(&before);
        lane.emit(call(0));
        let mut after = before.clone();
        after.flush_every = Duration::from_millis(5);
        after.max_bytes = 1 << 10;
        exporters.apply(&after, &Env::default());
        assert_eq!(ids(&serve(listener), 1), HashSet::from([0]));
        assert!(exporters.finish(Duration::from_secs(30)));
        assert!(shown(&exporters).contains("tollkeeper_traces_sent_total{exporter=\"otlp\"} 1\n"));
    }
}
