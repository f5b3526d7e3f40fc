//! How a backend stands: whether its last health check went well, whether it refused a connection just
//! now, and how many requests it has. Outlives the config that made it, as long as a later one names the
//! same backend.

use super::counts::Counts;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a backend that cannot be connected to is left out.
pub const REST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Standing {
    begun: Instant,
    /// The era in which the last health check failed; 0 = it did not. One of an older era counts no longer.
    ill: AtomicU64,
    /// Begins anew when nobody looks after it any more, so that a check which is still under way then finds
    /// nothing that lasts.
    era: AtomicU64,
    /// Milliseconds since `begun` up to which it is left out; 0 = it is not.
    rests_until: AtomicU64,
    in_flight: AtomicUsize,
    /// Milliseconds since `begun` at which the next health check is due.
    check_due: AtomicU64,
    being_checked: AtomicBool,
    /// What became of its requests.
    pub counts: Counts,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            ill: AtomicU64::new(0),
            era: AtomicU64::new(1),
            rests_until: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            check_due: AtomicU64::new(0),
            being_checked: AtomicBool::new(false),
            counts: Counts::default(),
        }
    }
}

impl Standing {
    fn now(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Whether requests should go there.
    pub fn is_well(&self) -> bool {
        if self.ill.load(Ordering::Relaxed) == self.era.load(Ordering::Relaxed) {
            return false;
        }
        let until = self.rests_until.load(Ordering::Relaxed);
        until == 0 || self.now() >= until
    }

    /// It could not be connected to. True = it was well until now.
    pub fn refused(&self) -> bool {
        let was_well = self.is_well();
        let until = self.now() + REST.as_millis() as u64;
        self.rests_until.store(until, Ordering::Relaxed);
        was_well
    }

    /// What a health check found. True = that is news.
    pub fn checked(&self, check: &Check, is_well: bool) -> bool {
        let now = self.era.load(Ordering::Relaxed);
        if check.era != now {
            return false;
        }
        if is_well {
            // Whoever answers can be connected to.
            self.rests_until.store(0, Ordering::Relaxed);
        }
        let found = if is_well { 0 } else { check.era };
        let before = self.ill.swap(found, Ordering::Relaxed);
        (before == check.era) == is_well
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Begins a health check if one is due. The check ends when what is returned is dropped.
    pub fn begin_check(self: &Arc<Self>, interval: Duration) -> Option<Check> {
        let now = self.now();
        if now < self.check_due.load(Ordering::Relaxed) || self.being_checked.swap(true, Ordering::Relaxed) {
            return None;
        }
        let due = now + interval.as_millis() as u64;
        self.check_due.store(due, Ordering::Relaxed);
        Some(Check {
            standing: Arc::clone(self),
            era: self.era.load(Ordering::Relaxed),
        })
    }

    /// Time until the next health check.
    pub fn check_in(&self) -> Duration {
        Duration::from_millis(self.check_due.load(Ordering::Relaxed).saturating_sub(self.now()))
    }

    /// The next health check is due: it is another one than before.
    pub fn check_soon(&self) {
        self.check_due.store(0, Ordering::Relaxed);
    }

    /// Nobody looks after it any more: what the last check found counts no longer.
    pub fn forget_checks(&self) {
        self.era.fetch_add(1, Ordering::Relaxed);
    }
}

/// A health check under way.
pub struct Check {
    standing: Arc<Standing>,
    /// When it began.
    era: u64,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.standing.being_checked.store(false, Ordering::Relaxed);
    }
}

/// A request at a backend.
pub struct Visit {
    standing: Arc<Standing>,
    status: Option<u16>,
}

impl Visit {
    pub fn begin(standing: &Arc<Standing>) -> Self {
        standing.in_flight.fetch_add(1, Ordering::Relaxed);
        Visit {
            standing: Arc::clone(standing),
            status: None,
        }
    }

    /// The head of its answer is there.
    pub fn answered(&mut self, status: u16) {
        self.status = Some(status);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.standing.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.standing.counts.count(self.status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_told_once() {
        let s = Arc::new(Standing::default());
        let checked = |is_well| {
            let check = s.begin_check(Duration::ZERO).unwrap();
            s.checked(&check, is_well)
        };
        assert!(s.is_well() && !checked(true));
        assert!(checked(false) && !checked(false) && !s.is_well());
        assert!(checked(true) && s.is_well());
        assert!(s.refused() && !s.refused() && !s.is_well());
        checked(true);
        assert!(s.is_well(), "an answer ends the rest");
        checked(false);
        let late = s.begin_check(Duration::ZERO).unwrap();
        s.forget_checks();
        assert!(s.is_well(), "what was found counts no longer");
        assert!(!s.checked(&late, false) && s.is_well(), "nor what is found late");
        drop(late);
        let visits = [Visit::begin(&s), Visit::begin(&s)];
        assert_eq!(s.in_flight(), 2);
        drop(visits);
        assert_eq!(s.in_flight(), 0);
        let minute = Duration::from_secs(60);
        let check = s.begin_check(minute);
        assert!(check.is_some() && s.begin_check(minute).is_none());
        assert!(s.check_in() > Duration::from_secs(50));
    }
}
