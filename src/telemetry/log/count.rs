//! What is counted of lines, for a scrape: how many by level, and how many nobody got.

use super::JOURNAL;
use crate::telemetry::metrics::catalog as c;
use crate::telemetry::metrics::page::Page;
use log::Level;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Lines by level, since the start.
#[derive(Default)]
pub struct Lines([AtomicU64; Level::Trace as usize]);

impl Lines {
    pub fn count(&self, level: Level) {
        // Levels begin with 1.
        if let Some(lines) = self.0.get(level as usize - 1) {
            lines.fetch_add(1, Relaxed);
        }
    }
}

/// Lines that were not told, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Whoever reads stderr was too slow, or is gone.
    pub dropped: u64,
    /// Requests beyond `most_per_second`.
    pub hidden: u64,
}

pub fn counts() -> Counts {
    JOURNAL.get().map_or_else(Counts::default, |journal| Counts {
        dropped: journal.sink.dropped_ever(),
        hidden: journal.flood.hidden_ever(),
    })
}

/// Shows them, once there is a log.
pub fn gather(page: &mut Page) {
    let Some(journal) = JOURNAL.get() else { return };
    for (level, lines) in Level::iter().zip(&journal.lines.0) {
        let level = level.as_str().to_ascii_lowercase();
        page.int(&c::LOG_LINES, &[&level], lines.load(Relaxed));
    }
    let Counts { dropped, hidden } = counts();
    page.int(&c::LOG_LOST, &[], dropped);
    page.int(&c::LOG_SUPPRESSED, &[], hidden);
}
