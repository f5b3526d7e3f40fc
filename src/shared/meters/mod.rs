//! Budgets, rates and calls in flight of everybody, counted exactly: a call is let in by all of its meters
//! together or counted by none.
//!
//! A meter belongs to an account and holds what is known of it in this process. With Redis the meters of all
//! replicas work on grants of shared ones (`agree`); without it, or while it is away, each replica decides
//! by what it knows. What was spent is the ledger's to say (`read`).

mod agree;
mod decide;
mod guests;
mod meter;
mod money;
mod queue;
mod read;
mod rules;
mod subject;
#[cfg(test)]
mod tests;
pub mod view;
pub mod window;

use super::agreement::Agreement;
use super::parties::Parties;
use super::period::{self, Calendar, Period};
use crate::store::Store;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use dashmap::DashMap;
use decide::{Decision, Held, Setting, decide};
use filters::contract::ports::{Admitted, Asked, Clock, Limiter, Refused, Unlimited, Why};
use filters::model::account::{Account, Charge, Kind};
use filters::model::key::{Caller, KeyHash};
use filters::model::limits::{Allowance, Limits};
use filters::model::record::Record;
use guests::{Guest, Guests};
use meter::{Meter, Named, Now};
use parking_lot::Mutex;
use queue::Queue;
pub use queue::QueueSettings;
use rules::Rules;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use subject::{Bound, Names, Plan};

/// Most meters. Who is new after that is not limited until idle ones are gone: names of end users and tags
/// come from callers, and so do their numbers.
const MOST_METERS: usize = 200_000;
/// Meters and plans that nobody used for so long are let go of.
const IDLE: Duration = Duration::from_secs(120);
const SWEEP: Duration = Duration::from_secs(5);
/// How old the store's word may be, for accounts in use.
const FRESH: Duration = Duration::from_secs(30);
/// Questions to Redis and the store that one call waits for, at most.
const ROUNDS: usize = 8;
/// Tags of a key whose limits count, of those that it carries. Only an admin gives a key so many.
const MOST_OWN_TAGS: usize = 64;
/// Tags of one call that are limited besides its key's.
const MOST_TAGS: usize = 16;

/// What the config says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    pub calendar: Calendar,
    /// The whole gateway's.
    pub gateway: Limits,
    /// Of end users that nobody has made known, nano-dollars.
    pub end_user_budget_nanos: Option<i64>,
    pub queue: Option<QueueSettings>,
}

/// What is told of limits outside of answers.
pub trait Events: Send + Sync {
    fn soft_budget_crossed(&self, crossed: &Crossed<'_>);
    fn refused(&self, refused: &Refused);
}

/// A soft budget that was passed just now. Nano-dollars, microseconds since 1970.
pub struct Crossed<'a> {
    pub account: &'a Account,
    pub alias: Option<&'a str>,
    pub spent_nanos: i64,
    pub soft_budget_nanos: i64,
    pub period_ends_micros: Option<i64>,
}

/// Nano-dollars of each account that are written down and not in the store yet.
pub type Unlanded = Box<dyn Fn(&[&Account]) -> Vec<i64> + Send + Sync>;

/// What the meters stand on.
pub struct World {
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub unlanded: Unlanded,
    pub parties: Arc<Parties>,
    pub agreement: Option<Arc<Agreement>>,
    pub events: Arc<dyn Events>,
}

/// Hashes names on every call's way, with a seed of this process.
type Quick = foldhash::fast::RandomState;

pub struct Meters {
    base: Instant,
    world: World,
    rules: ArcSwap<Rules>,
    table: DashMap<Account, Arc<Meter>, Quick>,
    serial: AtomicU64,
    /// Kinds of accounts whose money anybody looks at: bit 2·kind, +1 for a model's.
    money: AtomicU32,
    plans: DashMap<KeyHash, Arc<Plan>, Quick>,
    guests: Guests,
    queue: Queue,
    /// Meters that Redis has to hear of.
    listed: Mutex<Vec<Arc<Meter>>>,
    /// The store is being asked what of theirs has landed.
    looking: AtomicBool,
}

impl Meters {
    pub fn new(world: World, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            base: Instant::now(),
            world,
            rules: ArcSwap::from_pointee(Rules::first(settings)),
            table: DashMap::default(),
            serial: AtomicU64::new(0),
            money: AtomicU32::new(0),
            plans: DashMap::default(),
            guests: Guests::default(),
            queue: Queue::default(),
            listed: Mutex::default(),
            looking: AtomicBool::new(false),
        })
    }

    /// The config says something else now: calls that come after this are decided by it. What was counted stays.
    pub fn apply(&self, settings: &Settings) {
        let old = self.rules.load_full();
        if old.settings == *settings {
            return;
        }
        let strangers = old.settings.end_user_budget_nanos != settings.end_user_budget_nanos;
        self.rules.store(Arc::new(old.next(settings.clone())));
        if strangers {
            self.guests.forget_all();
        }
    }

    /// Keeps meters fresh, small and, with Redis, agreed on. Ends with the meters.
    pub async fn tend(self: Arc<Self>) {
        let me = Arc::downgrade(&self);
        drop(self);
        let mut sweep = tokio::time::interval(SWEEP);
        let mut tick = tokio::time::interval(agree::TICK);
        for timer in [&mut sweep, &mut tick] {
            timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            let is_sweep = tokio::select! {
                _ = sweep.tick() => true,
                _ = tick.tick() => false,
            };
            let Some(meters) = me.upgrade() else { return };
            if is_sweep {
                meters.sweep();
                meters.refresh(FRESH).await;
            } else {
                meters.agree().await;
            }
        }
    }

    fn now(&self) -> Now {
        Now {
            mono: self.mono(),
            wall: self.world.clock.now_micros(),
        }
    }

    /// Milliseconds of the process' clock.
    fn mono(&self) -> u64 {
        self.base.elapsed().as_millis() as u64
    }

    fn is_shared(&self) -> bool {
        self.world.agreement.as_ref().is_some_and(|a| a.is_up())
    }

    /// The account's meter, made if need be.
    fn meter(&self, account: Account, has_money: bool) -> Arc<Meter> {
        if has_money {
            self.money.fetch_or(
                money_bit(account.kind, !account.model.is_empty()),
                Ordering::SeqCst,
            );
        }
        if let Some(meter) = self.table.get(&account) {
            return Arc::clone(&meter);
        }
        let meter = |account| {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            Arc::new(Meter::new(serial, account))
        };
        Arc::clone(
            &self
                .table
                .entry(account.clone())
                .or_insert_with(|| meter(account)),
        )
    }

    fn has_room_for_more(&self) -> bool {
        self.table.len() < MOST_METERS
    }

    fn plan(&self, holder: &Arc<filters::model::key::Holder>, now: Now) -> Arc<Plan> {
        if let Some(plan) = self.plans.get(&holder.hash)
            && Arc::ptr_eq(&plan.holder, holder)
        {
            plan.used_at.store(now.mono, Ordering::Relaxed);
            return Arc::clone(&plan);
        }
        let plan = Arc::new(Plan::new(self, holder));
        plan.used_at.store(now.mono, Ordering::Relaxed);
        self.plans.insert(holder.hash, Arc::clone(&plan));
        plan
    }

    /// What limits the call. `Err` names end users and tags that have to be looked up first.
    fn bounds(&self, asked: &Asked<'_>, now: Now) -> Result<Vec<Arc<Bound>>, Missing> {
        let mut bounds = Vec::new();
        let names = Names {
            requested: asked.requested,
            model: asked.model,
            group: asked.group,
        };
        let mut own_tags: &[String] = &[];
        if let Caller::Key(holder) = asked.caller {
            own_tags = &holder.tags;
            for subject in &self.plan(holder, now).subjects {
                subject.bounds(self, names, &mut bounds);
            }
        }
        let end_user = asked.end_user.map(|id| (Kind::EndUser, id));
        // What callers say themselves must not push a key's own tags out.
        let own_tags = own_tags.iter().take(MOST_OWN_TAGS);
        let tags = own_tags
            .chain(asked.tags.iter().take(MOST_TAGS))
            .map(|t| (Kind::Tag, t.as_str()));
        let mut missing = Vec::new();
        for (kind, id) in end_user.into_iter().chain(tags) {
            match self.guests.known(kind, id, now) {
                Some(Guest::Blocked) => return Err(Missing::Blocked(kind, id.to_string())),
                Some(Guest::Free) => {}
                Some(Guest::Limited(subject)) => {
                    let from = bounds.len();
                    subject.bounds(self, names, &mut bounds);
                    // The same tag twice counts once.
                    let (before, new) = bounds.split_at(from);
                    if new
                        .iter()
                        .any(|n| before.iter().any(|b| Arc::ptr_eq(&b.meter, &n.meter)))
                    {
                        bounds.truncate(from);
                    }
                }
                None => missing.push((kind, id.to_string())),
            }
        }
        if !missing.is_empty() {
            return Err(Missing::Unknown(missing));
        }
        if let Some(gateway) = self.rules.load().gateway(self) {
            gateway.bounds(self, names, &mut bounds);
        }
        Ok(bounds)
    }

    /// Decides by what the config says now.
    fn decide(
        self: &Arc<Self>,
        bounds: Vec<Arc<Bound>>,
        asked: &Asked<'_>,
        now: Now,
        shared: bool,
    ) -> Decision {
        let rules = self.rules.load();
        let setting = Setting {
            now,
            rules: &rules,
            shared,
            counted: asked.counted,
        };
        decide(self, bounds, asked.estimate, setting)
    }

    /// Redis has to hear of this meter.
    fn list(&self, meter: &Arc<Meter>) {
        if !meter.listed.swap(true, Ordering::SeqCst) {
            self.listed.lock().push(Arc::clone(meter));
        }
    }

    /// A row is written down, and the ledger knows of it: the accounts that it is charged to, of those that
    /// somebody looks at, have spent so much more.
    pub fn spent(&self, record: &Record) {
        let watched = self.money.load(Ordering::SeqCst);
        if watched == 0 || record.spend_nanos <= 0 {
            return;
        }
        let is_watched = |kind, of_model| watched & money_bit(kind, of_model) != 0;
        let group = record.model_group.as_str();
        let has = |kind| is_watched(kind, false) || (is_watched(kind, true) && !group.is_empty());
        Charge::of(record).each(has, |kind, id| {
            let models = [Some(group).filter(|g| !g.is_empty()), Some("")];
            for model in models.into_iter().flatten() {
                if is_watched(kind, !model.is_empty()) {
                    self.charge((kind, id, model), record.spend_nanos, record.ended_micros);
                }
            }
        });
    }

    fn charge(&self, account: (Kind, &str, &str), nanos: i64, ended_micros: i64) {
        let Some(meter) = self.table.get(&account as &dyn Named).map(|m| Arc::clone(&m)) else {
            return;
        };
        let mut state = meter.state.lock();
        let Some(money) = &mut state.money else { return };
        let crossed = money.add(nanos, ended_micros);
        let (spent, period) = (money.spent(), money.period());
        drop(state);
        if crossed {
            self.crossed(&meter.account, spent, period.end);
        }
        if self.world.agreement.is_some() {
            self.list(&meter);
        }
    }

    fn crossed(&self, account: &Account, spent_nanos: i64, period_ends_micros: Option<i64>) {
        let state = self
            .table
            .get(account)
            .map(|m| m.state.lock().money.as_ref().and_then(|m| m.soft()));
        self.world.events.soft_budget_crossed(&Crossed {
            account,
            alias: None,
            spent_nanos,
            soft_budget_nanos: state.flatten().unwrap_or(0),
            period_ends_micros,
        });
    }

    /// Somebody changed this subject: the next call asks the store what it has spent.
    pub fn changed(&self, kind: Kind, id: &str) {
        self.guests.forget(kind, id);
        let forget = |meter: &Meter| {
            if let Some(money) = &mut meter.state.lock().money {
                money.forget();
            }
        };
        if let Some(meter) = self.table.get(&(kind, id, "") as &dyn Named) {
            forget(&meter);
        }
        if self.money.load(Ordering::SeqCst) & money_bit(kind, true) == 0 {
            return;
        }
        for entry in &self.table {
            let account = entry.key();
            if account.kind == kind && account.id == id {
                forget(entry.value());
            }
        }
    }

    /// A budget that others refer to changed: end users and tags are asked for again.
    pub fn limits_changed(&self) {
        self.guests.forget_all();
    }

    /// Anything may have changed. Nobody waits for the store because of that: it may be away.
    pub fn all_changed(&self) {
        self.guests.doubt(self.now());
        for entry in &self.table {
            if let Some(money) = &mut entry.state.lock().money {
                money.doubt();
            }
        }
    }

    /// Lets go of what nobody uses.
    fn sweep(&self) {
        let now = self.now();
        let idle = IDLE.as_millis() as u64;
        self.plans
            .retain(|_, plan| now.mono.saturating_sub(plan.used_at.load(Ordering::Relaxed)) < idle);
        self.guests.sweep(now);
        self.table
            .retain(|_, meter| Arc::strong_count(meter) > 1 || !meter.is_idle(now, idle));
    }

    /// The budget's period now, by the config's calendar: what the API shows as `budget_reset_at`.
    pub fn period(&self, allowance: &Allowance) -> Period {
        let rules = self.rules.load();
        period::of(allowance, self.world.clock.now_micros(), &rules.settings.calendar)
    }

    /// Nano-dollars that calls in flight have set aside of each.
    pub fn set_aside(&self, accounts: &[&Account]) -> Vec<i64> {
        let of = |account: &&Account| {
            let meter = self.table.get(*account)?;
            meter.state.lock().money.as_ref().map(|m| m.reserved())
        };
        accounts.iter().map(|a| of(a).unwrap_or(0)).collect()
    }

    /// Calls in the queue.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// How many meters there are of each kind, what is set aside, nano-dollars, and calls in flight.
    pub fn stats(&self) -> Vec<(Kind, MeterStats)> {
        let mut stats: Vec<_> = Kind::ALL.map(|k| (k, MeterStats::default())).into();
        for entry in &self.table {
            let state = entry.state.lock();
            if let Some((_, s)) = stats.get_mut(decide::place_of(entry.key().kind)) {
                s.meters += 1;
                s.in_flight += state.in_flight;
                let reserved = state.money.as_ref().map_or(0, |m| m.reserved());
                s.reserved_nanos = s.reserved_nanos.saturating_add(reserved);
            }
        }
        stats
    }

    async fn settle_on(
        self: &Arc<Self>,
        asked: &Asked<'_>,
    ) -> Result<Result<Option<Held>, Box<Refused>>, Vec<Arc<Bound>>> {
        // One for all that is asked of the store: a call that needs three answers waits no longer than for one.
        let mut deadline = None;
        let mut deadline = move || *deadline.get_or_insert_with(read::patience);
        for _ in 0..ROUNDS {
            let now = self.now();
            let bounds = match self.bounds(asked, now) {
                Ok(bounds) => bounds,
                Err(Missing::Blocked(kind, id)) => return Ok(Err(blocked(kind, id))),
                Err(Missing::Unknown(who)) => {
                    self.look_up(who, deadline()).await;
                    continue;
                }
            };
            if bounds.is_empty() {
                return Ok(Ok(None));
            }
            match self.decide(bounds, asked, now, self.is_shared()) {
                Decision::In(held) => return Ok(Ok(Some(held))),
                Decision::Out(refused) => return Ok(Err(refused)),
                Decision::Unread(unread) => self.read(unread, deadline()).await,
                Decision::Ask(questions) => self.ask(questions).await,
            }
        }
        let now = self.now();
        // Whom others push out of memory again and again is let pass, and nobody else of the call's.
        let known = Asked {
            end_user: None,
            tags: &[],
            ..*asked
        };
        let bounds = self.bounds(asked, now).or_else(|_| self.bounds(&known, now));
        Err(bounds.unwrap_or_default())
    }

    /// Decides, whatever it takes.
    async fn decided(self: &Arc<Self>, asked: &Asked<'_>) -> Result<Option<Held>, Box<Refused>> {
        match self.settle_on(asked).await {
            Ok(decided) => decided,
            // Redis grants less than others take, again and again: what is known here has to do.
            Err(bounds) => match self.decide(bounds, asked, self.now(), false) {
                Decision::In(held) => Ok(Some(held)),
                Decision::Out(refused) => Err(refused),
                Decision::Unread(_) | Decision::Ask(_) => Ok(None),
            },
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct MeterStats {
    pub meters: u64,
    pub in_flight: u64,
    pub reserved_nanos: i64,
}

/// Why what limits a call is not known yet.
enum Missing {
    Unknown(Vec<(Kind, String)>),
    Blocked(Kind, String),
}

fn blocked(kind: Kind, id: String) -> Box<Refused> {
    Box::new(Refused {
        kind,
        id,
        alias: None,
        model: None,
        why: Why::Blocked,
        standings: Vec::new(),
    })
}

fn money_bit(kind: Kind, of_model: bool) -> u32 {
    1 << (decide::place_of(kind) * 2 + usize::from(of_model))
}

/// The meters as the filter sees them.
pub struct Gate(pub Arc<Meters>);

impl Gate {
    fn told(&self, refused: Box<Refused>) -> Box<Refused> {
        self.0.world.events.refused(&refused);
        refused
    }
}

fn boxed(held: Option<Held>) -> Box<dyn Admitted> {
    match held {
        Some(held) => Box::new(held),
        None => Box::new(Unlimited),
    }
}

#[async_trait]
impl Limiter for Gate {
    fn try_admit(&self, asked: &Asked<'_>) -> Option<Result<Box<dyn Admitted>, Box<Refused>>> {
        let meters = &self.0;
        let now = meters.now();
        let bounds = match meters.bounds(asked, now) {
            Ok(bounds) => bounds,
            Err(Missing::Blocked(kind, id)) => return Some(Err(self.told(blocked(kind, id)))),
            Err(Missing::Unknown(_)) => return None,
        };
        if bounds.is_empty() {
            return Some(Ok(Box::new(Unlimited)));
        }
        let may_queue = meters.rules.load().settings.queue.is_some();
        if may_queue && bounds.iter().any(|b| b.meter.waiting.load(Ordering::Relaxed) > 0) {
            // Others were here first.
            return None;
        }
        match meters.decide(bounds, asked, now, meters.is_shared()) {
            Decision::In(held) => Some(Ok(Box::new(held))),
            Decision::Out(refused) if may_queue && decide::may_wait(&refused).is_some() => None,
            Decision::Out(refused) => Some(Err(self.told(refused))),
            Decision::Unread(_) | Decision::Ask(_) => None,
        }
    }

    async fn admit(&self, asked: &Asked<'_>) -> Result<Box<dyn Admitted>, Box<Refused>> {
        let queue = self.0.rules.load().settings.queue.clone();
        let decided = match queue {
            Some(settings) => self.0.queue.admit(&self.0, asked, &settings).await,
            None => self.0.decided(asked).await,
        };
        decided.map(boxed).map_err(|refused| self.told(refused))
    }
}
