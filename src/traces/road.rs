//! The road to one receiver: what is packed and waits, in order, and the task that carries it there. What
//! is not taken is sent again, slower and slower; a receiver that will never take it is left alone.

use super::halves;
use super::send::{self, Address, Format, Outcome, Parcel};
use super::stats::{Exporter, Lost, Share, Stats};
use reqwest::Client;
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A receiver that answers, and answers that it cannot, is not given the same parcel for longer.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long a receiver is left alone that refuses for good: at first, and at most.
const SHUT: Duration = Duration::from_secs(60);
const LONGEST_SHUT: Duration = Duration::from_secs(600);
/// How long calls wait as they are for a receiver to say what it takes.
const UNKNOWN: Duration = Duration::from_secs(30);
/// The same warning comes no more often than this.
const QUIET: Duration = Duration::from_secs(300);

/// A parcel, how many calls are in it, and the memory it takes.
pub struct Packed {
    pub parcel: Parcel,
    pub calls: u64,
    pub share: Share,
}

/// Shared by the worker, who packs, and the task that carries. Both live on one thread.
pub struct Road {
    pub exporter: Exporter,
    /// For the log: the receiver's host.
    name: String,
    address: Address,
    /// None = not known yet.
    format: Cell<Option<Format>>,
    parcels: RefCell<VecDeque<Packed>>,
    packed: Notify,
    /// A parcel is on its way, or waits to be sent again.
    busy: Cell<bool>,
    /// Calls in that parcel.
    carried: Cell<u64>,
    /// Nothing more is put here: how it is with the receiver is nobody's business any more.
    left: Cell<bool>,
    /// The last thing sent was not taken.
    failing: Cell<bool>,
    /// Nothing is sent before.
    shut_until: Cell<Option<Instant>>,
    /// Larger parcels were too large for it, bytes before packing.
    fits: Cell<usize>,
    warned: Cell<Option<Instant>>,
    stats: Arc<Stats>,
    /// True once the process leaves: then nothing waits.
    leaving: watch::Receiver<bool>,
}

impl Road {
    pub fn new(
        exporter: Exporter,
        name: String,
        address: Address,
        stats: Arc<Stats>,
        leaving: watch::Receiver<bool>,
    ) -> Rc<Self> {
        let format = address.health.is_none().then_some(Format::Otlp);
        Rc::new(Self {
            exporter,
            name,
            address,
            format: Cell::new(format),
            parcels: RefCell::default(),
            packed: Notify::new(),
            busy: Cell::new(false),
            carried: Cell::new(0),
            left: Cell::new(false),
            failing: Cell::new(false),
            shut_until: Cell::new(None),
            fits: Cell::new(usize::MAX),
            warned: Cell::new(None),
            stats,
            leaving,
        })
    }

    /// What parcels must look like; None = that is being found out.
    pub fn format(&self) -> Option<Format> {
        self.format.get()
    }

    /// It refuses everything for now, so that packing is for nothing.
    pub fn is_shut(&self) -> bool {
        self.shut_until.get().is_some_and(|until| Instant::now() < until)
    }

    /// Something waits or is on its way, so that packing more can wait.
    pub fn is_busy(&self) -> bool {
        self.busy.get() || !self.parcels.borrow().is_empty()
    }

    /// So many bytes are enough for a parcel here: more were too many.
    pub fn is_enough(&self, bytes: usize) -> bool {
        bytes >= self.fits.get()
    }

    /// The receiver is away or slow: what waits had better be small.
    pub fn is_behind(&self) -> bool {
        self.failing.get() || self.parcels.borrow().len() > 1
    }

    pub fn put(&self, packed: Packed) {
        self.parcels.borrow_mut().push_back(packed);
        self.packed.notify_one();
    }

    /// Bytes that wait here.
    pub fn bytes(&self) -> usize {
        self.parcels.borrow().iter().map(|p| p.share.bytes()).sum()
    }

    /// Calls that wait here or are on their way.
    pub fn calls(&self) -> u64 {
        let waiting: u64 = self.parcels.borrow().iter().map(|p| p.calls).sum();
        waiting + self.carried.get()
    }

    /// Nothing more will be put here.
    pub fn leave(&self) {
        self.left.set(true);
    }

    /// Counts calls that will not be told of.
    pub fn lost(&self, why: Lost, calls: u64) {
        self.stats.lost(self.exporter, why, calls);
    }

    /// Lets go of what has waited longest. False = nothing waits.
    pub fn drop_oldest(&self) -> bool {
        let oldest = self.parcels.borrow_mut().pop_front();
        if let Some(oldest) = &oldest {
            self.stats.lost(self.exporter, Lost::Full, oldest.calls);
        }
        oldest.is_some()
    }

    /// Carries parcels for as long as the process lives.
    pub async fn carry(self: Rc<Self>, client: Client) {
        let mut shut = SHUT;
        loop {
            if self.format.get().is_none() {
                self.find_out(&client).await;
            }
            let next = self.parcels.borrow_mut().pop_front();
            let Some(packed) = next else {
                self.packed.notified().await;
                continue;
            };
            self.busy.set(true);
            self.carried.set(packed.calls);
            let refused = self.deliver(&client, packed).await;
            self.busy.set(false);
            self.carried.set(0);
            if refused {
                // It may have become another one meanwhile.
                if self.address.health.is_some() {
                    self.format.set(None);
                }
                let waiting: u64 = self.parcels.borrow_mut().drain(..).map(|p| p.calls).sum();
                self.stats.lost(self.exporter, Lost::Refused, waiting);
                self.shut_until.set(Some(Instant::now() + shut));
                self.pause(shut).await;
                shut = (shut * 2).min(LONGEST_SHUT);
            } else if !self.failing.get() {
                shut = SHUT;
            }
        }
    }

    async fn find_out(&self, client: &Client) {
        let mut pause = FIRST_PAUSE;
        let begun = Instant::now();
        loop {
            match send::ask(client, &self.address).await {
                Ok(format) => {
                    self.format.set(Some(format));
                    self.drop_others(format);
                    return;
                }
                Err(why) => self.away(&why),
            }
            // Calls take less room written down, and hardly anybody runs a server that wants them otherwise.
            if begun.elapsed() > UNKNOWN {
                self.format.set(Some(Format::Otlp));
            }
            self.pause(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Lets go of parcels in a format that turned out to be the wrong one.
    fn drop_others(&self, format: Format) {
        let mut wrong = 0;
        self.parcels.borrow_mut().retain(|p| {
            let fits = p.parcel.format == format;
            wrong += if fits { 0 } else { p.calls };
            fits
        });
        if wrong > 0 {
            self.lost(Lost::Refused, wrong);
            self.warn(&format!(
                "it is too old for {wrong} calls that have waited for it"
            ));
        }
    }

    /// Sends a parcel until it is taken or refused. True = nothing is taken there at all.
    async fn deliver(&self, client: &Client, mut packed: Packed) -> bool {
        let mut pause = FIRST_PAUSE;
        let mut refused_since: Option<Instant> = None;
        loop {
            let lost = |why: Lost, calls: u64| self.stats.lost(self.exporter, why, calls);
            let (after, why) = match send::send(client, &self.address, &packed.parcel).await {
                Outcome::Taken => {
                    self.stats.sent(self.exporter, packed.calls);
                    self.back();
                    return false;
                }
                Outcome::TakenBut { rejected, why } => {
                    let calls = rejected.min(packed.calls);
                    lost(Lost::Rejected, calls);
                    self.stats.sent(self.exporter, packed.calls - calls);
                    self.back();
                    let why: String = why.chars().filter(|c| !c.is_control()).take(200).collect();
                    self.warn(&format!("{rejected} spans were not taken: {why}"));
                    return false;
                }
                Outcome::Partly { refused, again } => {
                    let calls = refused.min(packed.calls);
                    if refused > 0 {
                        lost(Lost::Rejected, calls);
                        self.warn(&format!("{refused} events were not taken"));
                    }
                    let Some(rest) = only(&packed.parcel, &again) else {
                        self.stats.sent(self.exporter, packed.calls - calls);
                        self.back();
                        return false;
                    };
                    packed.share.set(rest.bytes.len());
                    packed.parcel = rest;
                    packed.calls -= calls;
                    self.carried.set(packed.calls);
                    (None, "some events were not taken".to_string())
                }
                Outcome::Later { after, why, answered } => {
                    if answered && *refused_since.get_or_insert_with(Instant::now) + PATIENCE < Instant::now()
                    {
                        lost(Lost::Refused, packed.calls);
                        self.warn(&format!("a batch is given up: {why}"));
                        return false;
                    }
                    (after, why)
                }
                Outcome::Never { status: 413 } if self.halve(&packed) => return false,
                Outcome::Never { status } => {
                    lost(Lost::Refused, packed.calls);
                    self.failing.set(true);
                    self.is_away(true);
                    let (nothing, what) = match status {
                        401 | 403 => (true, "it does not accept the keys"),
                        404 | 405 => (true, "nothing takes traces at this address"),
                        300..=399 => (true, "it answers with a redirect, which is not followed"),
                        413 => (false, "a batch is too large for it"),
                        _ => (false, "it does not take what it was sent"),
                    };
                    self.warn(&format!("{what} (status {status})"));
                    return nothing;
                }
            };
            self.stats.retried(self.exporter);
            self.away(&why);
            self.pause(after.unwrap_or_else(|| jittered(pause))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Puts a parcel that was too large back in two. False = it cannot be cut.
    fn halve(&self, packed: &Packed) -> bool {
        let Some(halves) = halves::of(&packed.parcel) else {
            return false;
        };
        let half = halves.whole / 2;
        if half < self.fits.replace(half.min(self.fits.get())) {
            log::info!(
                "event=traces_in_parts exporter={} host={} bytes={} cause=\"so many at once are too many for it\"",
                self.exporter.as_str(),
                self.name,
                halves.whole
            );
        }
        let mut parcels = self.parcels.borrow_mut();
        for (parcel, calls) in halves.parts.into_iter().rev() {
            let share = Share::of(&self.stats.held, parcel.bytes.len());
            parcels.push_front(Packed { parcel, calls, share });
        }
        true
    }

    fn is_away(&self, away: bool) {
        if !self.left.get() {
            self.stats.is_away(self.exporter, away);
        }
    }

    fn away(&self, why: &str) {
        self.is_away(true);
        if !self.failing.replace(true) {
            self.warn(&format!("what it is to be told waits: {why}"));
        }
    }

    fn back(&self) {
        self.is_away(false);
        self.shut_until.set(None);
        if self.failing.replace(false) {
            log::info!(
                "event=traces_sent_again exporter={} host={}",
                self.exporter.as_str(),
                self.name
            );
        }
    }

    fn warn(&self, what: &str) {
        let now = Instant::now();
        if self.warned.get().is_some_and(|at| now < at + QUIET) {
            return;
        }
        self.warned.set(Some(now));
        log::warn!(
            "event=traces_not_taken exporter={} host={} cause={what:?}",
            self.exporter.as_str(),
            self.name
        );
    }

    /// Waits; hardly at all once the process leaves.
    async fn pause(&self, pause: Duration) {
        let mut leaving = self.leaving.clone();
        let left = async {
            if leaving.wait_for(|l| *l).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = left => tokio::time::sleep(pause.min(FIRST_PAUSE)).await,
        }
    }
}

/// So that many gateways do not come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + 0.5 * rand::random::<f64>())
}

/// The events of a batch that are to be sent again. None = there are none.
fn only(parcel: &Parcel, ids: &[String]) -> Option<Parcel> {
    let plain = match parcel.gzip {
        true => super::batch::unpacked(&parcel.bytes)?,
        false => parcel.bytes.to_vec(),
    };
    let mut whole: Value = serde_json::from_slice(&plain).ok()?;
    let events = whole.get_mut("batch")?.as_array_mut()?;
    events.retain(|e| {
        e.get("id")
            .and_then(Value::as_str)
            .is_some_and(|id| ids.iter().any(|i| i == id))
    });
    if events.is_empty() {
        return None;
    }
    Some(Parcel {
        format: parcel.format,
        bytes: whole.to_string().into(),
        gzip: false,
    })
}
