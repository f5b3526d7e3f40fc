//! The decision: all meters of a call are locked at once, looked at, and only if every one of them lets the
//! call in, counted.

use super::Meters;
use super::meter::{Meter, Now, Rate, State};
use super::money::{Money, Turn};
use super::rules::Rules;
use super::subject::Bound;
use filters::contract::ports::{Admitted, Estimate, Refused, Standing, Why};
use filters::model::account::Kind;
use filters::model::limits::Measure;
use jiff::Timestamp;
use parking_lot::MutexGuard;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How long a call that is refused for its budget's sake is told to wait when the budget never resets.
const LONGEST_WAIT_MILLIS: u64 = 60_000;

pub enum Decision {
    In(Held),
    Out(Box<Refused>),
    /// What these have spent is not known yet.
    Unread(Vec<Arc<Bound>>),
    /// Redis has to grant more.
    Ask(Vec<Question>),
}

/// What a call lacks of one account's grants.
pub struct Question {
    pub bound: Arc<Bound>,
    pub lacks: Lacks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacks {
    Money(i64),
    Requests(u64),
    Tokens(u64),
    Slot,
}

/// Where a decision is made.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    pub now: Now,
    pub rules: &'a Rules,
    /// Replicas count together, and can.
    pub shared: bool,
    /// The call is counted as a request where all models are counted together, see [`Asked::counted`].
    ///
    /// [`Asked::counted`]: filters::contract::ports::Asked::counted
    pub counted: bool,
}

impl Setting<'_> {
    /// Whether the call is counted by this one already.
    fn has_counted(&self, bound: &Bound) -> bool {
        self.counted && bound.model.is_none()
    }
}

/// What one meter holds of a call.
struct Part {
    bound: Arc<Bound>,
    /// Money set aside, how much of that came out of a grant, and in which period.
    nanos: i64,
    credit: i64,
    period_start: i64,
    tokens: Option<Tokens>,
    place: bool,
}

struct Tokens {
    estimated: u64,
    second: u64,
    /// Where Redis counts them, if it does.
    granted_in: Option<i64>,
}

/// A call that was let in. Gives everything back when dropped.
pub struct Held {
    meters: Arc<Meters>,
    parts: Vec<Part>,
    standings: Vec<Standing>,
    used: u64,
    pub queued: Option<u32>,
}

impl Admitted for Held {
    fn go_on(&mut self) {
        let mut kept = Vec::new();
        for mut part in std::mem::take(&mut self.parts) {
            let keeps = part.place && part.bound.model.is_none();
            part.place &= !keeps;
            self.give_back(&part);
            if keeps {
                kept.push(Part {
                    bound: part.bound,
                    nanos: 0,
                    credit: 0,
                    period_start: 0,
                    tokens: None,
                    place: true,
                });
            }
        }
        self.parts = kept;
    }

    fn settle(&mut self, tokens: u64) {
        self.used = tokens;
    }

    fn standings(&self) -> &[Standing] {
        &self.standings
    }

    fn queued(&self) -> Option<u32> {
        self.queued
    }
}

impl Held {
    /// Gives back what is set aside in one meter: money, what was not used of the tokens, and its place.
    fn give_back(&self, part: &Part) {
        let now = self.meters.mono();
        let meter = &part.bound.meter;
        let mut state = meter.state.lock();
        state.used_at = now;
        if let Some(money) = &mut state.money {
            money.release(part.nanos, part.credit, part.period_start);
        }
        if let (Some(tokens), Some(rate)) = (&part.tokens, &mut state.tokens) {
            let Tokens {
                estimated,
                second,
                granted_in,
            } = *tokens;
            rate.window.correct(second, estimated, self.used, now);
            if let Some(granted_in) = granted_in {
                rate.share.back(granted_in, estimated.saturating_sub(self.used));
                let beyond = i64::try_from(self.used.saturating_sub(estimated)).unwrap_or(0);
                rate.share.adjust = rate.share.adjust.saturating_add(beyond);
            }
        }
        if part.place {
            state.in_flight = state.in_flight.saturating_sub(1);
        }
        let has_news = (state.tokens.as_ref()).is_some_and(|t| t.share.has_something_to_say());
        drop(state);
        if has_news {
            self.meters.list(meter);
        }
        if meter.waiting.load(Ordering::SeqCst) > 0 {
            meter.freed.notify_waiters();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.parts.iter().for_each(|part| self.give_back(part));
    }
}

/// Decides about a call. `bounds` in the order in which refusals are told.
pub fn decide(
    meters: &Arc<Meters>,
    bounds: Vec<Arc<Bound>>,
    estimate: &(dyn Fn() -> Estimate + Send + Sync),
    setting: Setting<'_>,
) -> Decision {
    let expected = if bounds.iter().any(|b| b.estimates()) {
        estimate()
    } else {
        Estimate::default()
    };
    let mut order: Vec<(u64, usize)> = bounds
        .iter()
        .enumerate()
        .map(|(i, b)| (b.meter.serial, i))
        .collect();
    order.sort_unstable();
    // `place[i]` is where the guard of bound `i` stands; two bounds may share a meter.
    let mut guards: Vec<MutexGuard<'_, State>> = Vec::with_capacity(order.len());
    let mut place = vec![0; bounds.len()];
    let mut last = None;
    for (serial, i) in order {
        let Some(bound) = bounds.get(i) else { continue };
        if last != Some(serial) {
            guards.push(bound.meter.state.lock());
            last = Some(serial);
        }
        if let Some(p) = place.get_mut(i) {
            *p = guards.len() - 1;
        }
    }

    let mut unread = Vec::new();
    let mut asks = Vec::new();
    let mut refused = None;
    for (bound, at) in bounds.iter().zip(&place) {
        let Some(state) = guards.get_mut(*at) else {
            continue;
        };
        let mut look = Look {
            bound,
            setting,
            expected,
            unread: false,
            lacks: [None; 4],
        };
        if let Err(why) = look.at(state) {
            refused = Some((bound, why));
            break;
        }
        if look.unread {
            unread.push(Arc::clone(bound));
        }
        asks.extend(look.lacks.into_iter().flatten().map(|lacks| Question {
            bound: Arc::clone(bound),
            lacks,
        }));
    }
    if let Some((bound, why)) = refused {
        let mut standings = Vec::new();
        for (bound, at) in bounds.iter().zip(&place) {
            if let Some(state) = guards.get_mut(*at) {
                stand(bound, state, setting, &mut standings);
            }
        }
        let account = &bound.meter.account;
        let refused = Refused {
            kind: account.kind,
            id: account.id.clone(),
            alias: bound.alias.clone(),
            model: bound.model.clone(),
            why,
            standings,
        };
        return Decision::Out(Box::new(refused));
    }
    if !unread.is_empty() {
        return Decision::Unread(unread);
    }
    if !asks.is_empty() {
        return Decision::Ask(asks);
    }

    let mut parts = Vec::with_capacity(bounds.len());
    let mut standings = Vec::new();
    for (bound, at) in bounds.iter().zip(&place) {
        if let Some(state) = guards.get_mut(*at) {
            parts.push(take(bound, state, setting, expected));
            stand(bound, state, setting, &mut standings);
        }
    }
    drop(guards);
    if setting.shared {
        for bound in &bounds {
            meters.list(&bound.meter);
        }
    }
    Decision::In(Held {
        meters: Arc::clone(meters),
        parts,
        standings,
        used: 0,
        queued: None,
    })
}

/// One bound looked at.
struct Look<'a> {
    bound: &'a Bound,
    setting: Setting<'a>,
    expected: Estimate,
    unread: bool,
    lacks: [Option<Lacks>; 4],
}

impl Look<'_> {
    /// `Err` = it refuses the call.
    fn at(&mut self, state: &mut State) -> Result<(), Why> {
        let (bound, now) = (self.bound, self.setting.now);
        state.used_at = now.mono;
        if bound.has_money() {
            let money = state.money.get_or_insert_default();
            if money.turn(&bound.allowance, now.wall, self.setting.rules) != Turn::Same {
                log::debug!("account={:?} a budget period begins", bound.meter.account.kind);
            }
            money.watch_soft(bound.soft);
            self.money(money)?;
        }
        if let Some(limit) = bound.rpm
            && !self.setting.has_counted(bound)
        {
            let rate = state.requests.get_or_insert_default();
            self.rate(rate, Measure::Requests, 1, limit)?;
        }
        if let Some(limit) = bound.tpm {
            let rate = state.tokens.get_or_insert_default();
            self.rate(rate, Measure::Tokens, wanted_tokens(self.expected, limit), limit)?;
        }
        if let Some(limit) = bound.parallel
            && !self.setting.has_counted(bound)
        {
            self.places(state, limit)?;
        }
        Ok(())
    }

    fn money(&mut self, money: &mut Money) -> Result<(), Why> {
        if !money.is_read() {
            self.unread = true;
        }
        let Some(budget) = self.bound.allowance.nanos else {
            return Ok(());
        };
        let out = |money: &Money| {
            Err(Why::Budget {
                spent: money.spent(),
                budget,
                anew: money.period().end.map(|end| moment(end, 0)),
            })
        };
        if budget <= 0 {
            return out(money);
        }
        if self.unread {
            return Ok(());
        }
        if !self.setting.shared {
            return if money.has_room(budget) {
                Ok(())
            } else {
                out(money)
            };
        }
        let wanted = wanted_money(self.expected, budget);
        let lease = &money.lease;
        if lease.budget != budget {
            self.lack(Lacks::Money(wanted));
            Ok(())
        } else if lease.spare >= wanted {
            Ok(())
        } else if self.setting.now.mono < lease.dry_until {
            // All there is: one call may have it, and go over.
            if lease.spare > 0 { Ok(()) } else { out(money) }
        } else {
            self.lack(Lacks::Money(wanted));
            Ok(())
        }
    }

    fn rate(&mut self, rate: &mut Rate, measure: Measure, wanted: u64, limit: u64) -> Result<(), Why> {
        let now = self.setting.now;
        let out = |remaining: u64, millis: u64| {
            Err(Why::Rate {
                measure,
                limit,
                remaining,
                retry_millis: millis.max(1),
                at: moment(now.wall, millis),
            })
        };
        let used = rate.window.used(now.mono);
        if !self.setting.shared || wanted > limit {
            return match rate.window.room_in(wanted, limit, now.mono) {
                Some(0) => Ok(()),
                room => out(limit.saturating_sub(used), room.unwrap_or(LONGEST_WAIT_MILLIS)),
            };
        }
        let share = &rate.share;
        if now.mono < share.until && share.spare >= wanted {
            return Ok(());
        }
        match share.full {
            Some(full) if wanted >= full.least && now.mono < full.believed_until => {
                let told = share.told.map_or(used, |(n, _)| n);
                out(limit.saturating_sub(told), full.room_at.saturating_sub(now.mono))
            }
            _ => {
                self.lack(match measure {
                    Measure::Requests => Lacks::Requests(wanted),
                    _ => Lacks::Tokens(wanted),
                });
                Ok(())
            }
        }
    }

    fn places(&mut self, state: &mut State, limit: u64) -> Result<(), Why> {
        let now = self.setting.now;
        let out = || {
            Err(Why::Rate {
                measure: Measure::Parallel,
                limit,
                remaining: 0,
                // Nobody knows when a call ends.
                retry_millis: 1000,
                at: moment(now.wall, 1000),
            })
        };
        if !self.setting.shared || limit == 0 {
            return if state.in_flight < limit { Ok(()) } else { out() };
        }
        if state.in_flight < state.slots.held {
            Ok(())
        } else if now.mono < state.slots.full_until {
            out()
        } else {
            self.lack(Lacks::Slot);
            Ok(())
        }
    }

    fn lack(&mut self, lacks: Lacks) {
        if let Some(slot) = self.lacks.iter_mut().find(|l| l.is_none()) {
            *slot = Some(lacks);
        }
    }
}

/// More than all of it need not be set aside, and sums of such amounts cannot wrap. At least one, so that
/// what is free is not let in on a budget that is used up.
fn wanted_money(expected: Estimate, budget: i64) -> i64 {
    expected.nanos.clamp(1, budget.max(1))
}

/// A call that may use more than the limit has the whole window for itself.
fn wanted_tokens(expected: Estimate, limit: u64) -> u64 {
    expected.tokens.min(limit).max(1)
}

fn take(bound: &Arc<Bound>, state: &mut State, setting: Setting<'_>, expected: Estimate) -> Part {
    let now = setting.now;
    let mut part = Part {
        bound: Arc::clone(bound),
        nanos: 0,
        credit: 0,
        period_start: 0,
        tokens: None,
        place: false,
    };
    if let (Some(budget), Some(money)) = (bound.allowance.nanos, &mut state.money) {
        part.nanos = wanted_money(expected, budget);
        part.period_start = money.period().start;
        money.reserve(part.nanos);
        if setting.shared {
            part.credit = part.nanos.min(money.lease.spare.max(0));
            money.lease.spare -= part.credit;
            money.lease.unsaid = true;
            money.lease.busy = true;
        }
    }
    let has_counted = setting.has_counted(bound);
    if let (Some(_), Some(rate), false) = (bound.rpm, &mut state.requests, has_counted) {
        rate.window.add(1, now.mono);
        if setting.shared {
            rate.share.spare = rate.share.spare.saturating_sub(1);
        }
    }
    if let (Some(limit), Some(rate)) = (bound.tpm, &mut state.tokens) {
        let estimated = wanted_tokens(expected, limit);
        let second = rate.window.add(estimated, now.mono);
        let granted_in = setting.shared.then_some(rate.share.second);
        if setting.shared {
            rate.share.spare = rate.share.spare.saturating_sub(estimated);
        }
        part.tokens = Some(Tokens {
            estimated,
            second,
            granted_in,
        });
    }
    // Counted wherever somebody may look at it, so that a limit that comes later knows.
    if bound.parallel.is_some() && !has_counted {
        state.in_flight += 1;
        part.place = true;
    }
    part
}

/// How the limits of one bound stand.
fn stand(bound: &Bound, state: &mut State, setting: Setting<'_>, into: &mut Vec<Standing>) {
    let now = setting.now;
    let standing = |measure, limit: u64, used: u64, reset_millis| Standing {
        kind: bound.meter.account.kind,
        of_model: bound.model.is_some(),
        measure,
        limit,
        remaining: limit.saturating_sub(used),
        reset_millis,
    };
    for (limit, rate, measure) in [
        (bound.rpm, &mut state.requests, Measure::Requests),
        (bound.tpm, &mut state.tokens, Measure::Tokens),
    ] {
        let (Some(limit), Some(rate)) = (limit, rate) else {
            continue;
        };
        let (mut used, mut reset) = (rate.window.used(now.mono), rate.window.empty_in(now.mono));
        if let (true, Some((told, empty_at))) = (setting.shared, rate.share.told) {
            let others = told.saturating_sub(rate.share.spare);
            if now.mono < empty_at && others > used {
                (used, reset) = (others, empty_at - now.mono);
            }
        }
        into.push(standing(measure, limit, used, reset));
    }
    if let Some(limit) = bound.parallel {
        let others = if setting.shared { state.slots.everywhere } else { 0 };
        into.push(standing(Measure::Parallel, limit, state.in_flight.max(others), 0));
    }
}

/// A moment as LiteLLM writes it.
pub fn moment(now_micros: i64, in_millis: u64) -> String {
    let then = now_micros.saturating_add(i64::try_from(in_millis).unwrap_or(0).saturating_mul(1000));
    Timestamp::from_microsecond(then)
        .unwrap_or_default()
        .strftime("%Y-%m-%d %H:%M:%S UTC")
        .to_string()
}

/// Whether waiting may help.
pub fn may_wait(refused: &Refused) -> Option<u64> {
    match refused.why {
        Why::Rate { retry_millis, .. } => Some(retry_millis),
        _ => None,
    }
}

/// The meter that refused.
pub fn refuser<'a>(bounds: &'a [Arc<Bound>], refused: &Refused) -> Option<&'a Arc<Meter>> {
    bounds
        .iter()
        .find(|b| {
            let account = &b.meter.account;
            account.kind == refused.kind && account.id == refused.id && b.model == refused.model
        })
        .map(|b| &b.meter)
}

/// For labels of metrics.
pub fn place_of(kind: Kind) -> usize {
    Kind::ALL.iter().position(|k| *k == kind).unwrap_or(0)
}
