//! How many lines of requests a second holds. What is beyond is counted, and told in one line afterwards.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Counts within the second. Two threads that meet at its turn may let a line or two more through.
#[derive(Default)]
pub struct Flood {
    most: AtomicU32,
    second: AtomicU64,
    shown: [AtomicU32; 2],
    hidden: [AtomicU64; 2],
    hidden_ever: AtomicU64,
}

/// Lines that were not shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    pub succeeded: u64,
    pub failed: u64,
}

impl Flood {
    pub fn allow(&self, most_per_second: u32) {
        self.most.store(most_per_second, Relaxed);
    }

    /// Whether there is room for one more line in this second. Failures have room of their own, so that no
    /// flood of successes hides them.
    pub fn has_room(&self, second: u64, failed: bool) -> bool {
        // Looked at before it is written: written, it would be taken from the other threads with each line.
        if self.second.load(Relaxed) != second && self.second.swap(second, Relaxed) != second {
            self.shown.iter().for_each(|n| n.store(0, Relaxed));
        }
        let at = usize::from(failed);
        let (Some(shown), Some(hidden)) = (self.shown.get(at), self.hidden.get(at)) else {
            return true;
        };
        if shown.fetch_add(1, Relaxed) < self.most.load(Relaxed) {
            return true;
        }
        hidden.fetch_add(1, Relaxed);
        self.hidden_ever.fetch_add(1, Relaxed);
        false
    }

    /// What was hidden since this was asked last.
    pub fn take(&self) -> Option<Hidden> {
        let [succeeded, failed] = &self.hidden;
        let hidden = Hidden {
            succeeded: succeeded.swap(0, Relaxed),
            failed: failed.swap(0, Relaxed),
        };
        (hidden != Hidden::default()).then_some(hidden)
    }

    /// Since the start.
    pub fn hidden_ever(&self) -> u64 {
        self.hidden_ever.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_room_of_their_own() {
        let flood = Flood::default();
        flood.allow(3);
        let shown = |second, failed| (0..10).filter(|_| flood.has_room(second, failed)).count();
        assert_eq!((shown(1, false), shown(1, true)), (3, 3));
        assert_eq!(shown(2, true), 3, "a new second has room again");
        let hidden = Hidden {
            succeeded: 7,
            failed: 14,
        };
        assert_eq!((flood.take(), flood.take()), (Some(hidden), None));
        assert_eq!(flood.hidden_ever(), 21);
    }
}
