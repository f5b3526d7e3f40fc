//! Counters and histograms that cost an atomic addition or two. How they are written out is `page`'s.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Only ever rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of a histogram's buckets.
#[derive(Debug)]
pub struct Bounds {
    nanos: [u64; 17],
    /// The same in seconds, as they are written; the last is for what lies above all.
    names: [&'static str; 18],
}

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// From a list of models to a stream of half an hour.
pub static LONG: Bounds = Bounds {
    nanos: [
        5 * MILLI,
        10 * MILLI,
        25 * MILLI,
        50 * MILLI,
        100 * MILLI,
        250 * MILLI,
        500 * MILLI,
        SECOND,
        2_500 * MILLI,
        5 * SECOND,
        10 * SECOND,
        30 * SECOND,
        60 * SECOND,
        120 * SECOND,
        300 * SECOND,
        600 * SECOND,
        1_800 * SECOND,
    ],
    names: [
        "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120",
        "300", "600", "1800", "+Inf",
    ],
};

/// From what the gateway itself takes to a model that stutters.
pub static SHORT: Bounds = Bounds {
    nanos: [
        50 * MICRO,
        100 * MICRO,
        250 * MICRO,
        500 * MICRO,
        MILLI,
        2_500 * MICRO,
        5 * MILLI,
        10 * MILLI,
        25 * MILLI,
        50 * MILLI,
        100 * MILLI,
        250 * MILLI,
        500 * MILLI,
        SECOND,
        2_500 * MILLI,
        5 * SECOND,
        10 * SECOND,
    ],
    names: [
        "0.00005", "0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1",
        "0.25", "0.5", "1", "2.5", "5", "10", "+Inf",
    ],
};

/// Durations by size. The sum is exact.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static Bounds,
    /// The last one is for what lies above all bounds.
    buckets: [AtomicU64; 18],
    nanos: AtomicU64,
}

impl Histogram {
    pub fn new(bounds: &'static Bounds) -> Self {
        Self {
            bounds,
            buckets: Default::default(),
            nanos: AtomicU64::new(0),
        }
    }

    pub fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let at = self.bounds.nanos.partition_point(|bound| *bound < nanos);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Relaxed);
        }
        self.nanos.fetch_add(nanos, Relaxed);
    }

    /// Each bound in seconds, as it is written, and how many were at most that long.
    pub fn cumulated(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.buckets.iter().scan(0, |sum, bucket| {
            *sum += bucket.load(Relaxed);
            Some(*sum)
        });
        self.bounds.names.into_iter().zip(counts)
    }

    /// All durations together, seconds.
    pub fn sum(&self) -> f64 {
        seconds(self.nanos.load(Relaxed))
    }

    pub fn is_empty(&self) -> bool {
        self.buckets.iter().all(|bucket| bucket.load(Relaxed) == 0)
    }
}

/// Nanoseconds as seconds; also nano-dollars as dollars.
pub fn seconds(nanos: u64) -> f64 {
    nanos as f64 / SECOND as f64
}

/// Statuses that are counted by themselves. Any other counts as the first of its hundred, which is how
/// clients have to understand it: an upstream may invent as many as it likes.
const STATUSES: [u16; 41] = [
    0, 100, 200, 201, 202, 204, 206, 300, 301, 302, 304, 307, 308, 400, 401, 402, 403, 404, 405, 406, 408,
    409, 410, 411, 413, 415, 416, 421, 422, 424, 429, 431, 451, 499, 500, 501, 502, 503, 504, 529, 530,
];

/// Counters by name. Names are hashed on every call's way, with a seed of this process.
pub type Named<T> = HashMap<Box<str>, Arc<T>, foldhash::fast::RandomState>;

/// Answers by status.
#[derive(Debug)]
pub struct Statuses([Counter; STATUSES.len()]);

impl Default for Statuses {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Statuses {
    pub fn inc(&self, status: u16) {
        let known = |status: u16| STATUSES.binary_search(&status).ok();
        let at = known(status).or_else(|| known(status / 100 * 100)).unwrap_or(0);
        if let Some(counter) = self.0.get(at) {
            counter.add(1);
        }
    }

    /// Those that came up.
    pub fn seen(&self) -> impl Iterator<Item = (u16, u64)> {
        let counts = self.0.iter().map(Counter::get);
        STATUSES.into_iter().zip(counts).filter(|(_, n)| *n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_and_statuses_are_in_order() {
        for bounds in [&LONG, &SHORT] {
            assert!(bounds.nanos.is_sorted_by(|a, b| a < b));
            for (nanos, name) in bounds.nanos.iter().zip(bounds.names) {
                assert_eq!(seconds(*nanos).to_string(), name);
            }
            assert_eq!(bounds.names.last(), Some(&"+Inf"));
        }
        assert!(STATUSES.is_sorted_by(|a, b| a < b));
        for hundred in [100, 200, 300, 400, 500] {
            assert!(STATUSES.contains(&hundred), "{hundred}");
        }
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let h = Histogram::new(&LONG);
        assert!(h.is_empty());
        for millis in [5, 6, 4_000_000] {
            h.observe(Duration::from_millis(millis));
        }
        let counts: Vec<u64> = h.cumulated().map(|(_, n)| n).collect();
        assert_eq!((counts[0], counts[1], counts[16], counts[17]), (1, 2, 2, 3));
        assert_eq!(h.sum(), 4000.011);
        h.observe(Duration::MAX);
    }

    #[test]
    fn invented_statuses_count_as_their_hundred() {
        let statuses = Statuses::default();
        for status in 0..=999 {
            statuses.inc(status);
        }
        assert!(statuses.seen().count() <= STATUSES.len());
        let of = |wanted| statuses.seen().find(|(s, _)| *s == wanted).map_or(0, |(_, n)| n);
        assert_eq!(of(429), 1);
        assert_eq!(of(200), 96, "200 and all that are not listed");
        assert_eq!(statuses.seen().map(|(_, n)| n).sum::<u64>(), 1000);
    }
}
