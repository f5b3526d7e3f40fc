//! What one account has spent and set aside in its budget's period, as this process knows it.
//!
//! Spent = `offset` + `added`. What is added never goes back, so a reading of the store that took its time
//! can be put in without losing what was added meanwhile.

use super::rules::Rules;
use crate::shared::period::{self, Period};
use filters::model::limits::Allowance;

/// Amounts are nano-dollars, moments microseconds since 1970.
#[derive(Debug, Default)]
pub struct Money {
    offset: i64,
    added: i64,
    /// Of `added`, what ended after the period that is still thought to run.
    ahead: i64,
    reserved: i64,
    /// The store was read for this period, or is away and this is all that is known.
    read: bool,
    /// Read again soon: the store was away, or somebody changed the account.
    stale: bool,
    /// How often somebody changed the account.
    changes: u32,
    /// When it was read last, milliseconds of the process' clock.
    read_at: u64,
    /// What the store had summed up then.
    landed: i64,
    /// What the account was opened with then: another one, and what was spent before does not count.
    era: i64,
    /// What `period` follows from.
    rule: Option<Rule>,
    period: Period,
    soft: Option<i64>,
    soft_told: bool,
    /// What all replicas had spent when Redis last said, and how much of `added` was in that.
    everywhere: Option<(i64, i64)>,
    pub lease: Lease,
}

/// What Redis granted this process and no call has taken yet.
#[derive(Debug, Default)]
pub struct Lease {
    /// Below 0 = more was spent than granted, and Redis has not been told yet.
    pub spare: i64,
    /// Until then there is nothing more to be had; milliseconds of the process' clock.
    pub dry_until: u64,
    /// What calls that wait for an answer need together.
    pub wanted: i64,
    /// Something changed since Redis was told.
    pub unsaid: bool,
    /// A call took something since the last look.
    pub busy: bool,
    /// When Redis was told last.
    pub said_at: u64,
    /// As the last call's limits had it.
    pub budget: i64,
}

/// What a period follows from.
#[derive(Debug)]
struct Rule {
    period: Option<String>,
    since_micros: i64,
    calendars: u32,
}

impl Rule {
    fn new(allowance: &Allowance, rules: &Rules) -> Self {
        Self {
            period: allowance.period.clone(),
            since_micros: allowance.since_micros,
            calendars: rules.calendars,
        }
    }

    fn is(&self, allowance: &Allowance, rules: &Rules) -> bool {
        self.since_micros == allowance.since_micros
            && self.calendars == rules.calendars
            && self.period == allowance.period
    }
}

/// How an account was when the store was asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Then {
    start: i64,
    added: i64,
    changes: u32,
}

/// What the store said of an account: nano-dollars that had landed, were on their way, and that it was
/// opened with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    pub landed: i64,
    pub on_its_way: i64,
    pub era: i64,
}

/// What became of a period when somebody looked.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    Same,
    /// It ended, and a new one runs.
    Rolled,
    /// The rule is another one: what is spent in its period is not known.
    Unknown,
}

impl Money {
    pub fn spent(&self) -> i64 {
        let here = self.offset.saturating_add(self.added);
        match self.everywhere {
            // The store lags behind what the others told Redis.
            Some((told, then)) => here.max(told.saturating_add(self.added.saturating_sub(then))),
            None => here,
        }
    }

    pub fn reserved(&self) -> i64 {
        self.reserved
    }

    pub fn added(&self) -> i64 {
        self.added
    }

    pub fn landed(&self) -> i64 {
        self.landed
    }

    pub fn era(&self) -> i64 {
        self.era
    }

    /// Spent by this process and not in `landed`.
    pub fn unlanded(&self) -> i64 {
        self.offset.saturating_add(self.added).saturating_sub(self.landed)
    }

    pub fn period(&self) -> Period {
        self.period
    }

    pub fn is_read(&self) -> bool {
        self.read
    }

    pub fn is_stale(&self, now_millis: u64, fresh_millis: u64) -> bool {
        self.stale || self.read_before(now_millis, fresh_millis)
    }

    /// Whether so long has passed since the store was asked, whatever became of that.
    pub fn read_before(&self, now_millis: u64, millis: u64) -> bool {
        now_millis.saturating_sub(self.read_at) >= millis
    }

    pub fn watch_soft(&mut self, soft: Option<i64>) {
        if self.soft != soft {
            self.soft = soft;
            // A limit that is passed when it is set was not crossed.
            self.soft_told = soft.is_some_and(|s| self.read && self.spent() >= s);
        }
    }

    /// Keeps the period up with the time and the rule.
    pub fn turn(&mut self, allowance: &Allowance, now_micros: i64, rules: &Rules) -> Turn {
        let same_rule = (self.rule.as_ref()).is_some_and(|rule| rule.is(allowance, rules));
        if same_rule && self.period.end.is_none_or(|end| now_micros < end) {
            return Turn::Same;
        }
        let now = period::of(allowance, now_micros, &rules.settings.calendar);
        if now == self.period && self.rule.is_some() {
            self.rule = Some(Rule::new(allowance, rules));
            return Turn::Same;
        }
        let ended = std::mem::replace(&mut self.period, now).end;
        let ahead = std::mem::take(&mut self.ahead);
        self.void();
        self.soft_told = false;
        if same_rule {
            // Nothing is spent in a period that has just begun, but by calls that ended in it before anybody
            // looked; rows of the one before, that are still on their way, count there.
            let spent = if ended == Some(now.start) { ahead } else { 0 };
            self.offset = spent.saturating_sub(self.added);
            self.landed = 0;
            self.stale = true;
            Turn::Rolled
        } else {
            self.rule = Some(Rule::new(allowance, rules));
            self.read = false;
            Turn::Unknown
        }
    }

    /// What Redis granted and told is of another period or era.
    fn void(&mut self) {
        self.everywhere = None;
        self.lease = Lease {
            wanted: self.lease.wanted,
            budget: self.lease.budget,
            ..Lease::default()
        };
    }

    /// To be asked before the store is, and handed to [`known`](Self::known).
    pub fn then(&self) -> Then {
        Then {
            start: self.period.start,
            added: self.added,
            changes: self.changes,
        }
    }

    /// The store was read.
    pub fn known(&mut self, then: Then, reading: Reading, now_millis: u64) {
        if then.start != self.period.start {
            return;
        }
        let Reading {
            landed,
            on_its_way,
            era,
        } = reading;
        if self.era != era {
            self.era = era;
            self.void();
        }
        let first = !self.read;
        // Otherwise Redis would count what was on its way beside what others see to have landed.
        self.lease.unsaid |= landed != self.landed;
        self.offset = landed.saturating_add(on_its_way).saturating_sub(then.added);
        self.landed = landed;
        self.read = true;
        self.stale = then.changes != self.changes;
        self.read_at = now_millis;
        if first {
            self.soft_told = self.soft.is_some_and(|s| self.spent() >= s);
        }
    }

    /// The store is away: what is known has to do. `at_least` was spent when the key was read.
    pub fn unknowable(&mut self, at_least: i64, now_millis: u64) {
        if !self.read {
            self.offset = self.offset.max(at_least);
            self.read = true;
        }
        self.stale = true;
        self.read_at = now_millis;
    }

    /// Somebody changed the account: the next call waits for the store.
    pub fn forget(&mut self) {
        self.changes = self.changes.wrapping_add(1);
        self.read = false;
        self.everywhere = None;
    }

    /// Something may have been missed: read again soon.
    pub fn doubt(&mut self) {
        self.changes = self.changes.wrapping_add(1);
        self.stale = true;
    }

    pub fn has_room(&self, budget: i64) -> bool {
        self.spent().saturating_add(self.reserved) < budget
    }

    pub fn reserve(&mut self, nanos: i64) {
        self.reserved = self.reserved.saturating_add(nanos);
    }

    /// Gives a reservation back, and to the lease what it had taken from it.
    pub fn release(&mut self, nanos: i64, credit: i64, period_start: i64) {
        self.reserved = self.reserved.saturating_sub(nanos).max(0);
        if credit > 0 && period_start == self.period.start {
            self.lease.spare = self.lease.spare.saturating_add(credit);
            self.lease.unsaid = true;
        }
    }

    /// A call was written down. True = the soft budget was crossed just now.
    pub fn add(&mut self, nanos: i64, ended_micros: i64) -> bool {
        if ended_micros < self.period.start || nanos <= 0 {
            return false;
        }
        self.added = self.added.saturating_add(nanos);
        if self.period.end.is_some_and(|end| ended_micros >= end) {
            self.ahead = self.ahead.saturating_add(nanos);
        }
        self.lease.spare = self.lease.spare.saturating_sub(nanos);
        self.lease.unsaid = true;
        self.crossed()
    }

    fn crossed(&mut self) -> bool {
        let crossed = self.read && !self.soft_told && self.soft.is_some_and(|s| self.spent() >= s);
        self.soft_told |= crossed;
        crossed
    }

    /// Redis answered about an era and the period that begins at `start`.
    pub fn granted(
        &mut self,
        (era, start): (i64, i64),
        granted: i64,
        everywhere: i64,
        added_then: i64,
    ) -> bool {
        if (era, start) != (self.era, self.period.start) {
            return false;
        }
        self.lease.spare = self.lease.spare.saturating_add(granted);
        self.everywhere = Some((everywhere, added_then));
        self.crossed()
    }

    pub fn soft(&self) -> Option<i64> {
        self.soft
    }

    /// Something is set aside or granted.
    pub fn holds(&self) -> bool {
        self.reserved > 0 || self.lease.spare > 0
    }

    /// Nothing depends on this being kept.
    pub fn is_idle(&self) -> bool {
        self.reserved == 0 && self.lease.spare <= 0 && self.lease.wanted == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::meters::Settings;

    fn utc() -> Rules {
        Rules::first(Settings::default())
    }

    fn daily() -> Allowance {
        Allowance {
            nanos: Some(100),
            period: Some("1d".into()),
            since_micros: 0,
        }
    }

    const DAY: i64 = 86_400_000_000;

    fn had(landed: i64) -> Reading {
        Reading {
            landed,
            ..Reading::default()
        }
    }

    fn read(landed: i64) -> Money {
        let mut m = Money::default();
        assert_eq!(m.turn(&daily(), 5, &utc()), Turn::Unknown);
        let then = m.then();
        m.known(then, had(landed), 0);
        m
    }

    #[test]
    fn what_is_written_while_the_store_is_read_is_not_forgotten() {
        let mut m = read(0);
        let then = m.then();
        m.add(100, 6);
        m.known(then, had(0), 0);
        assert_eq!(m.spent(), 100);
        m.known(m.then(), had(100), 0);
        assert_eq!((m.spent(), m.unlanded()), (100, 0));
    }

    #[test]
    fn a_new_day_begins_with_nothing_spent() {
        let mut m = read(90);
        m.reserve(20);
        let then = m.then();
        assert!(!m.has_room(100));
        assert_eq!(m.turn(&daily(), DAY, &utc()), Turn::Rolled);
        assert_eq!(
            (m.spent(), m.reserved()),
            (0, 20),
            "calls under way stay set aside"
        );
        m.add(7, DAY - 1);
        assert_eq!(m.spent(), 0, "what ended yesterday was spent yesterday");
        m.add(7, DAY);
        assert_eq!(m.spent(), 7);
        m.known(then, had(90), 0);
        assert_eq!(m.spent(), 7, "a late answer about yesterday is none about today");
        assert_eq!(m.turn(&daily(), DAY + 1, &utc()), Turn::Same);
    }

    #[test]
    fn what_ends_before_anybody_looks_at_the_new_day_is_spent_in_it() {
        let mut m = read(90);
        m.add(5, DAY - 1);
        m.add(7, DAY);
        assert_eq!(m.turn(&daily(), DAY, &utc()), Turn::Rolled);
        assert_eq!((m.spent(), m.unlanded()), (7, 7));
        m.add(9, 2 * DAY);
        m.turn(&daily(), 3 * DAY, &utc());
        assert_eq!(m.spent(), 0, "not the day it ended in either");
    }

    #[test]
    fn redis_hears_of_what_has_landed() {
        let mut m = read(0);
        m.add(100, 6);
        // Told as on its way.
        m.lease.unsaid = false;
        m.known(m.then(), had(100), 0);
        assert!(m.lease.unsaid, "else it stays on its way there");
        m.lease.unsaid = false;
        m.known(m.then(), had(100), 0);
        assert!(!m.lease.unsaid);
    }

    #[test]
    fn an_account_that_is_opened_anew_owes_nothing_of_before() {
        let mut m = read(90);
        assert!(!m.granted((0, 0), 5, 95, 0));
        assert_eq!(m.spent(), 95);
        let reading = Reading {
            era: -90,
            ..Reading::default()
        };
        m.known(m.then(), reading, 0);
        assert_eq!((m.spent(), m.lease.spare), (0, 0));
        m.granted((0, 0), 5, 95, 0);
        assert_eq!((m.spent(), m.lease.spare), (0, 0), "an answer about before");
    }

    #[test]
    fn a_soft_budget_is_crossed_once_per_period() {
        let mut m = read(0);
        m.watch_soft(Some(50));
        assert!(!m.add(49, 6));
        assert!(m.add(1, 6));
        assert!(!m.add(30, 6));
        m.turn(&daily(), DAY, &utc());
        assert!(m.add(60, DAY));
        let mut m = read(70);
        m.watch_soft(Some(50));
        assert!(!m.add(1, 6), "it was crossed before this process knew of it");
    }
}
