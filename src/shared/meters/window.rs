//! What was counted in the last 60 seconds, exactly: one count per second of monotonic time. A second
//! counts until it is wholly older than the window, so no 60 seconds, wherever they begin, hold more than
//! was let in.

/// Length of the window, seconds.
pub const SECONDS: u64 = 60;
const BUCKETS: usize = SECONDS as usize + 1;

/// Times are milliseconds of a monotonic clock.
#[derive(Debug)]
pub struct Window {
    counts: [u64; BUCKETS],
    /// The newest second that has a bucket.
    second: u64,
    sum: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            second: 0,
            sum: 0,
        }
    }
}

impl Window {
    fn slot(&mut self, second: u64) -> Option<&mut u64> {
        self.counts.get_mut((second % BUCKETS as u64) as usize)
    }

    fn at(&self, second: u64) -> u64 {
        self.counts
            .get((second % BUCKETS as u64) as usize)
            .copied()
            .unwrap_or(0)
    }

    /// Lets go of what is too old.
    fn advance(&mut self, now_millis: u64) {
        let now = now_millis / 1000;
        if now <= self.second {
            return;
        }
        if self.sum == 0 || now - self.second >= BUCKETS as u64 {
            self.counts = [0; BUCKETS];
            self.sum = 0;
        } else {
            for second in self.second + 1..=now {
                let mut gone = 0;
                if let Some(slot) = self.slot(second) {
                    gone = std::mem::take(slot);
                }
                self.sum = self.sum.saturating_sub(gone);
            }
        }
        self.second = now;
    }

    pub fn used(&mut self, now_millis: u64) -> u64 {
        self.advance(now_millis);
        self.sum
    }

    /// Counts `n`; returns the second it is counted in, for [`correct`](Self::correct).
    pub fn add(&mut self, n: u64, now_millis: u64) -> u64 {
        self.advance(now_millis);
        let second = self.second;
        if let Some(slot) = self.slot(second) {
            *slot = slot.saturating_add(n);
        }
        self.sum = self.sum.saturating_add(n);
        second
    }

    /// Of `estimated` that were counted in `second`, `used` were used. What was too much is taken back
    /// where it was counted; what was too little counts as of now.
    pub fn correct(&mut self, second: u64, estimated: u64, used: u64, now_millis: u64) {
        if used > estimated {
            self.add(used - estimated, now_millis);
            return;
        }
        self.advance(now_millis);
        if second <= self.second && self.second - second < BUCKETS as u64 {
            let back = estimated - used;
            let mut taken = 0;
            if let Some(slot) = self.slot(second) {
                taken = back.min(*slot);
                *slot -= taken;
            }
            self.sum = self.sum.saturating_sub(taken);
        }
    }

    /// Milliseconds until `wanted` more fit into `limit`; None = they never will.
    pub fn room_in(&mut self, wanted: u64, limit: u64, now_millis: u64) -> Option<u64> {
        self.advance(now_millis);
        // What has to leave before.
        let needed = self.sum.saturating_add(wanted).saturating_sub(limit);
        if needed == 0 {
            return Some(0);
        }
        let mut left = 0;
        (self.second.saturating_sub(SECONDS)..=self.second).find_map(|second| {
            left += self.at(second);
            (left >= needed).then(|| gone_at(second).saturating_sub(now_millis))
        })
    }

    /// Milliseconds until nothing of it counts any more.
    pub fn empty_in(&mut self, now_millis: u64) -> u64 {
        self.advance(now_millis);
        if self.sum == 0 {
            return 0;
        }
        let oldest = self.second.saturating_sub(SECONDS);
        (oldest..=self.second)
            .rev()
            .find(|second| self.at(*second) > 0)
            .map_or(0, |second| gone_at(second).saturating_sub(now_millis))
    }
}

/// When a second no longer counts, milliseconds.
fn gone_at(second: u64) -> u64 {
    (second + 1 + SECONDS) * 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_second_counts_until_all_of_it_is_old() {
        let mut w = Window::default();
        w.add(3, 10_999);
        assert_eq!(w.used(70_999), 3, "60 s later it may still count");
        assert_eq!(w.room_in(1, 3, 10_999), Some(60_001));
        assert_eq!(w.used(71_000), 0);
        assert_eq!(w.empty_in(71_000), 0);
    }

    #[test]
    fn estimates_are_corrected_where_they_were_counted() {
        let mut w = Window::default();
        let second = w.add(100, 5_000);
        w.correct(second, 100, 40, 20_000);
        assert_eq!(w.used(20_000), 40);
        w.correct(second, 0, 10, 30_000);
        assert_eq!(w.used(30_000), 50);
        assert_eq!(w.used(66_000), 10, "the rest counts from when it was known");
        w.correct(second, 40, 0, 80_000);
        assert_eq!(w.used(80_000), 10, "what has left is not taken back twice");
    }

    #[test]
    fn room_is_told_for_what_is_wanted() {
        let mut w = Window::default();
        w.add(5, 1_000);
        w.add(5, 11_000);
        assert_eq!(w.room_in(1, 11, 12_000), Some(0));
        assert_eq!(w.room_in(5, 10, 12_000), Some(50_000));
        assert_eq!(w.room_in(6, 10, 12_000), Some(60_000));
        assert_eq!(w.room_in(1, 8, 12_000), Some(50_000));
        assert_eq!(w.room_in(11, 10, 12_000), None);
        assert_eq!(w.empty_in(12_000), 60_000);
    }

    proptest! {
        /// Against a log of everything that was let in.
        #[test]
        fn no_sixty_seconds_hold_more_than_the_limit(
            limit in 1u64..40,
            steps in prop::collection::vec((0u64..9_000, 1u64..12, 0u64..12), 1..400),
        ) {
            let (mut window, mut now) = (Window::default(), 0);
            // (moment, second, how much it counts for)
            let mut log: Vec<(u64, u64, u64)> = Vec::new();
            for (pause, wanted, used) in steps {
                now += pause;
                let counts = |from: u64| log.iter().filter(|l| l.0 > from).map(|l| l.2).sum::<u64>();
                let kept: u64 = log.iter().filter(|l| gone_at(l.1) > now).map(|l| l.2).sum();
                prop_assert_eq!(window.used(now), kept);
                prop_assert!(counts(now.saturating_sub(60_000)) <= limit);
                let room = window.room_in(wanted, limit, now);
                prop_assert_eq!(room == Some(0), kept + wanted <= limit);
                prop_assert_eq!(room.is_none(), wanted > limit);
                if let Some(wait @ 1..) = room {
                    let then: u64 = log.iter().filter(|l| gone_at(l.1) > now + wait).map(|l| l.2).sum();
                    prop_assert!(then + wanted <= limit, "there is room when it was promised");
                }
                if kept + wanted <= limit {
                    let second = window.add(wanted, now);
                    // Less than estimated: given back.
                    let used = used.min(wanted);
                    window.correct(second, wanted, used, now);
                    log.push((now, second, used));
                }
            }
        }
    }
}
