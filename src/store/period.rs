//! The rules by which an account's spend belongs to its budget period or to the past. The only place they
//! are written: both stores read an account, ask here, and write what came out.
//!
//! What holds after every step, with `rows since t` = the sum of the account's rows that ended at or after t:
//!
//! 1. in a period, `spend - baseline` = rows since `started`, and what was opened while the period ran;
//! 2. where the period has an end, no row has ended at or after it.
//!
//! So a row that comes late counts to the time it ended in, in whatever order rows and periods arrive. A row
//! from beyond the end moves the account into the time after it; when that time ends is not known then,
//! until [`Standing::begin`] says it. An opening counts to the period that is running when it is said.
//!
//! Boundaries are whole seconds, so that a batch can be added up by the second.

use super::rows::SECOND;
use super::{Balance, Result, StoreError};

/// The whole second a moment lies in, microseconds since 1970.
pub fn second_of(micros: i64) -> i64 {
    micros.div_euclid(SECOND).saturating_mul(SECOND)
}

/// Where an account stands. Nano-dollars; microseconds since 1970, whole seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// In all, opening included.
    pub spend: i64,
    /// What of it belongs to the time before `started`.
    pub baseline: i64,
    pub started: Option<i64>,
    pub ends: Option<i64>,
    /// The latest end of a row.
    pub last_ended: Option<i64>,
}

impl Standing {
    /// Rows have landed that ended within this second.
    pub fn charge(&mut self, ended: i64, nanos: i64) -> Result<()> {
        let before = self.spend;
        self.spend = before.checked_add(nanos).ok_or_else(overflow)?;
        self.last_ended = self.last_ended.max(Some(ended));
        match (self.started, self.ends) {
            (_, Some(ends)) if ended >= ends => {
                self.baseline = before;
                self.started = Some(ends);
                self.ends = None;
            }
            (Some(started), _) if ended < started => {
                self.baseline = self.baseline.checked_add(nanos).ok_or_else(overflow)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The moments from which on the rows must be added up before [`Standing::begin`]: usually none.
    pub fn asks(&self, period: Period) -> (Option<i64>, Option<i64>) {
        let reaches = |moment: &i64| self.last_ended.is_some_and(|last| last >= *moment);
        let started = Some(period.started).filter(|s| self.started != Some(*s) && reaches(s));
        (started, period.ends.filter(reaches))
    }

    /// The account is in this period now. The sums answer [`Standing::asks`], 0 where it asks nothing.
    pub fn begin(&mut self, period: Period, since_started: i64, since_ends: i64) {
        if self.started != Some(period.started) {
            self.started = Some(period.started);
            self.baseline = self.spend.saturating_sub(since_started);
        }
        self.ends = period.ends;
        if let Some(ends) = self.asks(period).1 {
            // Rows from beyond the end are here already.
            self.started = Some(ends);
            self.ends = None;
            self.baseline = self.spend.saturating_sub(since_ends);
        }
    }

    pub fn is_in(&self, period: Period) -> bool {
        self.started == Some(period.started) && self.ends == period.ends
    }

    /// What has been spent, seen from `now`.
    pub fn balance(&self, now_micros: i64) -> Balance {
        let over = self.ends.is_some_and(|ends| now_micros >= ends);
        Balance {
            total_nanos: self.spend,
            period_nanos: if over {
                0
            } else {
                self.spend.saturating_sub(self.baseline)
            },
            period_started_micros: self.started,
            period_ends_micros: self.ends,
        }
    }
}

/// A budget period: `started <= now < ends`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    pub started: i64,
    pub ends: Option<i64>,
}

impl Period {
    /// Rounds down to whole seconds; refuses a period that ends before it starts.
    pub fn new(started_micros: i64, ends_micros: Option<i64>) -> Result<Self> {
        let period = Self {
            started: second_of(super::rows::moment(started_micros)),
            ends: ends_micros.map(|e| second_of(super::rows::moment(e))),
        };
        if period.ends.is_some_and(|ends| ends <= period.started) {
            return Err(StoreError::invalid("a budget period lasts at least one second"));
        }
        Ok(period)
    }
}

fn overflow() -> StoreError {
    StoreError::invalid("an account's spend would be more than can be counted")
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = SECOND;

    fn period(started: i64, ends: i64) -> Period {
        Period::new(started * S, Some(ends * S)).unwrap()
    }

    #[test]
    fn rows_count_to_the_time_they_ended_in() {
        let mut a = Standing::default();
        a.charge(5 * S, 1).unwrap();
        a.begin(period(10, 20), 0, 0);
        assert_eq!(a.balance(15 * S).period_nanos, 0);
        a.charge(12 * S, 10).unwrap();
        a.charge(9 * S, 100).unwrap();
        assert_eq!(a.balance(15 * S).period_nanos, 10);
        assert_eq!(a.balance(20 * S).period_nanos, 0, "over");
        a.charge(20 * S, 1_000).unwrap();
        a.charge(19 * S, 10_000).unwrap();
        let b = a.balance(20 * S);
        assert_eq!((b.period_nanos, b.total_nanos), (1_000, 11_111));
        assert_eq!(
            (b.period_started_micros, b.period_ends_micros),
            (Some(20 * S), None)
        );
        a.begin(period(20, 30), 7, 7);
        assert_eq!(a.balance(20 * S).period_nanos, 1_000, "it is there already");
    }

    #[test]
    fn rows_are_asked_for_only_where_they_can_matter() {
        let mut a = Standing::default();
        a.charge(15 * S, 1).unwrap();
        assert_eq!(a.asks(period(16, 20)), (None, None));
        assert_eq!(a.asks(period(10, 20)), (Some(10 * S), None));
        assert_eq!(a.asks(period(10, 15)), (Some(10 * S), Some(15 * S)));
        a.begin(period(10, 20), 1, 0);
        assert_eq!(a.asks(period(10, 18)), (None, None));
        assert_eq!(a.balance(16 * S).period_nanos, 1);
    }

    #[test]
    fn absurd_periods_and_sums_are_refused() {
        assert!(Period::new(5, Some(5)).is_err());
        assert!(Period::new(i64::MAX, Some(i64::MIN)).is_err());
        assert!(Period::new(i64::MIN, None).is_ok());
        let mut a = Standing {
            spend: i64::MAX,
            ..Standing::default()
        };
        assert!(a.charge(0, 1).is_err());
    }
}
