//! The one thread behind the calls: takes over what is over, writes it down for each receiver, and packs.
//! Carrying is done by the roads' own tasks, on this thread too; which receivers there are, `turnover` says.

mod turnover;

use super::address;
use super::batch::{Batch, Sender};
use super::genai;
use super::langfuse::{Flavour, Scratch};
use super::legacy;
use super::project::{self, Found, Target};
use super::road::{Packed, Road};
use super::send::{Address, Format};
use super::stats::{Exporter, Lost, Share};
use super::story::Story;
use super::{Said, Shared, Weighed};
use crate::conf::{Langfuse, Tracing};
use filters::model::deployment::Base;
use filters::model::record::Status;
use filters::model::trace::Trace;
use reqwest::Client;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Langfuse projects of keys and teams that are served at once.
const MOST_PROJECTS: usize = 64;
/// While the process leaves, what came last is packed this often.
const LEAVING: Duration = Duration::from_millis(20);

/// One receiver: what waits for it in any form.
struct Lane {
    road: Rc<Road>,
    sender: Sender,
    batch: Option<Batch>,
    /// Bytes of the parcel before.
    likely: usize,
    /// Calls that cannot be written down yet: the receiver has not said what it takes.
    waiting: VecDeque<Arc<Weighed>>,
    packed_at: Instant,
    used_at: Instant,
    carrying: AbortHandle,
}

/// Asked on every call.
type Projects = HashMap<Target, Lane, foldhash::fast::RandomState>;

/// How calls are written down for a receiver.
#[derive(Clone, Copy)]
enum Words {
    Langfuse,
    GenAi,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    said: Arc<Said>,
    client: Client,
    flavour: Flavour,
    otlp: Option<Lane>,
    projects: Projects,
    /// Receivers that the config names no more, until they know what they were to be told.
    former: Vec<Former>,
    scratch: Scratch,
    /// Memory of the intake that was emptied last.
    spare: Vec<Weighed>,
    leaving: watch::Receiver<bool>,
    refused_warned: bool,
    sealed_warned: bool,
}

/// A receiver that is not told of anything new.
struct Former {
    lane: Lane,
    until: Instant,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, client: Client, said: Arc<Said>) -> Self {
        Self {
            leaving: shared.leaving.subscribe(),
            shared,
            client,
            flavour: turnover::flavour(&said.tracing),
            said,
            otlp: None,
            projects: Projects::default(),
            former: Vec::new(),
            scratch: Scratch::default(),
            spare: Vec::new(),
            refused_warned: false,
            sealed_warned: false,
        }
    }

    /// Works until the process ends. To be run within a `LocalSet`.
    pub async fn run(mut self) {
        self.take(Arc::clone(&self.said));
        loop {
            let is_leaving = *self.leaving.borrow();
            let pause = if is_leaving {
                LEAVING
            } else {
                self.said.tracing.flush_every
            };
            let mut leaving = self.leaving.clone();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shared.wake.notified() => {}
                _ = leaving.changed(), if !is_leaving => {}
            }
            self.turn();
        }
    }

    /// Takes over what is there and packs what is due.
    fn turn(&mut self) {
        let now = Instant::now();
        let mut calls = std::mem::take(&mut self.spare);
        let turns = {
            let mut intake = self.shared.intake.lock();
            std::mem::swap(&mut intake.calls, &mut calls);
            std::mem::take(&mut intake.turns)
        };
        let mut turns = turns.into_iter().peekable();
        for (n, weighed) in calls.drain(..).enumerate() {
            // What was over before is told to those who were to know of it.
            while let Some((_, said)) = turns.next_if(|(before, _)| *before <= n) {
                self.take(said);
            }
            self.tell(Arc::new(weighed), now);
        }
        turns.for_each(|(_, said)| self.take(said));
        calls.shrink_to(4 * super::MANY);
        self.spare = calls;
        let every = match *self.leaving.borrow() {
            true => Duration::ZERO,
            false => self.said.tracing.flush_every,
        };
        let Self {
            otlp,
            projects,
            scratch,
            shared,
            flavour,
            ..
        } = self;
        let mut pen = Pen {
            flavour,
            scratch,
            shared,
        };
        for (words, lane) in each(otlp, projects) {
            lane.catch_up(words, &mut pen);
            // What would only wait behind others may as well grow.
            let due = now >= lane.packed_at + every && (every.is_zero() || !lane.road.is_busy());
            if due || lane.batch.as_ref().is_some_and(Batch::is_enough) {
                lane.pack(now, &shared.stats.held);
            }
        }
        self.let_go(now);
        self.shrink();
    }

    /// Writes a call down for all who are to be told of it.
    fn tell(&mut self, weighed: Arc<Weighed>, now: Instant) {
        let trace = &*weighed.trace;
        let failed = trace.status != Status::Success;
        if let Some(langfuse) = &self.said.tracing.langfuse
            && trace.context.trace.share() < langfuse.sample
        {
            let found = project::find(langfuse, &self.said, trace, failed);
            let (exporter, target) = match found {
                Found::Own(target) => (Exporter::OwnProjects, Some(target)),
                Found::Default(target) => (Exporter::Langfuse, Some(target)),
                Found::Refused(host) => {
                    self.refused(&host);
                    (Exporter::OwnProjects, None)
                }
                Found::Sealed => {
                    self.sealed();
                    (Exporter::OwnProjects, None)
                }
                Found::None => (Exporter::Langfuse, None),
            };
            if let Some(target) = target {
                self.tell_project(exporter, target, &weighed, now);
            }
        }
        let Self {
            otlp,
            said,
            flavour,
            scratch,
            shared,
            ..
        } = self;
        if let (Some(lane), Some(conf)) = (otlp, &said.tracing.otlp) {
            let fits = if failed { conf.on.failure } else { conf.on.success };
            let sampled = match trace.context.parent {
                Some(_) => trace.context.sampled,
                None => trace.context.trace.share() < conf.sample,
            };
            if fits && sampled {
                let mut pen = Pen {
                    flavour,
                    scratch,
                    shared,
                };
                lane.used_at = now;
                lane.tell(Words::GenAi, &weighed, &mut pen);
            }
        }
    }

    fn tell_project(&mut self, exporter: Exporter, target: Target, weighed: &Arc<Weighed>, now: Instant) {
        if !self.projects.contains_key(&target) && !self.open(exporter, target.clone(), now) {
            self.shared.stats.lost(exporter, Lost::Projects, 1);
            return;
        }
        let Self {
            projects,
            flavour,
            scratch,
            shared,
            ..
        } = self;
        if let Some(lane) = projects.get_mut(&target) {
            lane.used_at = now;
            let mut pen = Pen {
                flavour,
                scratch,
                shared,
            };
            lane.tell(Words::Langfuse, weighed, &mut pen);
        }
    }

    /// A road to a project; False = there are too many, and all of them are in use.
    fn open(&mut self, exporter: Exporter, target: Target, now: Instant) -> bool {
        if self.projects.len() >= MOST_PROJECTS {
            let idle = self
                .projects
                .iter()
                .filter(|(_, lane)| lane.bytes() == 0 && !lane.road.is_busy())
                .min_by_key(|(_, lane)| lane.used_at)
                .map(|(target, _)| target.clone());
            let Some(lane) = idle.and_then(|t| self.projects.remove(&t)) else {
                return false;
            };
            lane.carrying.abort();
        }
        let address = match address::of_langfuse(&target) {
            Ok(address) => address,
            Err(why) => {
                log::error!(
                    "event=traces_not_sent exporter={} host={} cause={why:?}",
                    exporter.as_str(),
                    target.host
                );
                return false;
            }
        };
        let resource = turnover::resource("tollkeeper");
        let mut lane = self.lane(exporter, &target.host, address, resource);
        lane.used_at = now;
        self.projects.insert(target, lane);
        true
    }

    fn lane(&self, exporter: Exporter, url: &str, address: Address, resource: Vec<(String, String)>) -> Lane {
        let base = Base::parse(url);
        let name = base.as_ref().map(Base::authority).unwrap_or_default();
        let road = Road::new(
            exporter,
            name,
            address,
            Arc::clone(&self.shared.stats),
            self.leaving.clone(),
        );
        let carrying = tokio::task::spawn_local(Rc::clone(&road).carry(self.client.clone()));
        Lane {
            road,
            sender: Sender {
                resource,
                compress: base.is_ok_and(|b| !b.is_internal()),
            },
            batch: None,
            likely: 0,
            waiting: VecDeque::new(),
            packed_at: Instant::now(),
            used_at: Instant::now(),
            carrying: carrying.abort_handle(),
        }
    }

    fn refused(&mut self, host: &str) {
        self.shared.stats.lost(Exporter::OwnProjects, Lost::Address, 1);
        if !std::mem::replace(&mut self.refused_warned, true) {
            let host: String = host.chars().filter(|c| !c.is_control()).take(200).collect();
            log::warn!(
                "event=traces_not_sent exporter={} host={host:?} cause=\"a key or a team names an address that \
                 tollkeeper.tracing.langfuse.hosts does not\"",
                Exporter::OwnProjects.as_str()
            );
        }
    }

    fn sealed(&mut self) {
        self.shared.stats.lost(Exporter::OwnProjects, Lost::Sealed, 1);
        if !std::mem::replace(&mut self.sealed_warned, true) {
            log::warn!(
                "event=traces_not_sent exporter={} cause=\"the secret key of a key's or a team's project was \
                 stored under another salt key; give it again\"",
                Exporter::OwnProjects.as_str()
            );
        }
    }

    /// Lets go of what has waited longest at whoever has most, until there is room for new calls.
    fn shrink(&mut self) {
        let queue = usize::try_from(self.said.tracing.queue_bytes).unwrap_or(usize::MAX);
        let most = queue / 4 * 3;
        let Self {
            otlp,
            projects,
            former,
            shared,
            ..
        } = self;
        while shared.stats.held.load(std::sync::atomic::Ordering::Relaxed) > most {
            let fattest = each(otlp, projects)
                .map(|(_, lane)| lane)
                .chain(former.iter_mut().map(|f| &mut f.lane))
                .max_by_key(|l| l.bytes());
            if !fattest.is_some_and(Lane::drop_oldest) {
                break;
            }
        }
    }
}

fn each<'a>(
    otlp: &'a mut Option<Lane>,
    projects: &'a mut Projects,
) -> impl Iterator<Item = (Words, &'a mut Lane)> {
    let langfuse = projects.values_mut().map(|lane| (Words::Langfuse, lane));
    langfuse.chain(otlp.iter_mut().map(|lane| (Words::GenAi, lane)))
}

/// What writing takes.
struct Pen<'a> {
    flavour: &'a Flavour,
    scratch: &'a mut Scratch,
    shared: &'a Shared,
}

impl Lane {
    /// Bytes that wait here, in any form.
    fn bytes(&self) -> usize {
        let waiting: usize = self.waiting.iter().map(|w| w.share.bytes()).sum();
        waiting + self.road.bytes() + self.batch.as_ref().map_or(0, Batch::bytes)
    }

    fn drop_oldest(&mut self) -> bool {
        if self.road.drop_oldest() {
            return true;
        }
        let oldest = self.waiting.pop_front();
        if oldest.is_some() {
            self.road.lost(Lost::Full, 1);
        }
        oldest.is_some()
    }

    fn tell(&mut self, words: Words, weighed: &Arc<Weighed>, pen: &mut Pen<'_>) {
        if self.road.is_shut() {
            self.road.lost(Lost::Refused, 1);
            return;
        }
        match self.road.format() {
            Some(format) => self.write(words, format, &weighed.trace, pen),
            None => self.waiting.push_back(Arc::clone(weighed)),
        }
    }

    /// Writes down what has waited for the format to be known.
    fn catch_up(&mut self, words: Words, pen: &mut Pen<'_>) {
        if let Some(format) = self.road.format() {
            while let Some(weighed) = self.waiting.pop_front() {
                self.write(words, format, &weighed.trace, pen);
            }
        } else if self.road.is_shut() {
            let waiting = std::mem::take(&mut self.waiting);
            self.road.lost(Lost::Refused, waiting.len() as u64);
        }
    }

    fn write(&mut self, words: Words, format: Format, trace: &Trace, pen: &mut Pen<'_>) {
        let held = &pen.shared.stats.held;
        if self.batch.as_ref().is_some_and(|b| b.format() != format) {
            self.pack(Instant::now(), held);
        }
        let Self { batch, sender, .. } = self;
        let batch = batch.get_or_insert_with(|| Batch::new(format, sender, held, self.likely));
        let (flavour, otlp) = (pen.flavour, pen.flavour.otlp_capture);
        batch.add(|out| match (words, format) {
            (Words::Langfuse, Format::Otlp) => {
                let story = Story::of(trace, flavour.capture, flavour.max_bytes);
                flavour.write(&story, pen.scratch, out);
            }
            (Words::Langfuse, Format::Legacy) => {
                let story = Story::of(trace, flavour.capture, flavour.max_bytes);
                legacy::write(flavour, &story, out);
            }
            (Words::GenAi, _) => {
                let story = Story::of(trace, otlp, flavour.max_bytes);
                genai::write(flavour, otlp, &story, pen.scratch, out);
            }
        });
        if let Some(next) = batch.overflow(sender, held) {
            let full = std::mem::replace(batch, next);
            self.put(full, held);
        }
        let is_enough = |b: &Batch| b.is_enough() || self.road.is_enough(b.bytes());
        if self.batch.as_ref().is_some_and(is_enough) {
            self.pack(Instant::now(), held);
        }
    }

    /// Hands what is written down over to the road.
    fn pack(&mut self, now: Instant, held: &Arc<std::sync::atomic::AtomicUsize>) {
        self.packed_at = now;
        if let Some(batch) = self.batch.take_if(|b| !b.is_empty()) {
            self.put(batch, held);
        }
    }

    fn put(&mut self, batch: Batch, held: &Arc<std::sync::atomic::AtomicUsize>) {
        self.likely = batch.bytes();
        let (parcel, calls) = batch.pack(&self.sender, self.road.is_behind());
        let share = Share::of(held, parcel.bytes.len());
        self.road.put(Packed { parcel, calls, share });
    }
}

/// Whether calls that end so are told of anywhere.
pub(super) fn listens(tracing: &Tracing, failed: bool) -> bool {
    // Keys and teams may want what the gateway's own project does not.
    let langfuse = tracing.langfuse.as_ref().map(|_: &Langfuse| true);
    let otlp = tracing
        .otlp
        .as_ref()
        .map(|o| if failed { o.on.failure } else { o.on.success });
    langfuse.or(otlp).unwrap_or(false)
}
