//! What is counted of telling: sent, let go of and why, tried again, and what waits. Labels are from fixed
//! lists, however many projects there are.

use crate::telemetry::metrics::catalog as c;
use crate::telemetry::metrics::page::Page;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Who is told, as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exporter {
    /// The gateway's own Langfuse project.
    Langfuse,
    /// All projects of keys and teams together.
    OwnProjects,
    Otlp,
}

impl Exporter {
    const ALL: [Exporter; 3] = [Exporter::Langfuse, Exporter::OwnProjects, Exporter::Otlp];

    pub fn as_str(self) -> &'static str {
        match self {
            Exporter::Langfuse => "langfuse",
            Exporter::OwnProjects => "langfuse_own_projects",
            Exporter::Otlp => "otlp",
        }
    }
}

/// Why a call was not told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// No room: the receiver is away, or slower than the calls.
    Full,
    /// The receiver does not take them: wrong keys, wrong address, wrong shape.
    Refused,
    /// It took the rest of a batch.
    Rejected,
    /// A key or a team names an address that the config does not.
    Address,
    /// More projects than are kept at once.
    Projects,
    /// A key's or a team's project has a secret that was stored under another salt key.
    Sealed,
    /// The config named its receiver no more.
    Removed,
}

impl Lost {
    const ALL: [Lost; 7] = [
        Lost::Full,
        Lost::Refused,
        Lost::Rejected,
        Lost::Address,
        Lost::Projects,
        Lost::Sealed,
        Lost::Removed,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Lost::Full => "full",
            Lost::Refused => "refused",
            Lost::Rejected => "rejected",
            Lost::Address => "address",
            Lost::Projects => "projects",
            Lost::Sealed => "sealed",
            Lost::Removed => "removed",
        }
    }
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    lost: [AtomicU64; 7],
    retries: AtomicU64,
    away: AtomicBool,
}

/// All counters. Shared by the calls' threads, the exporters' and the scrape.
#[derive(Default)]
pub struct Stats {
    counts: [Counts; 3],
    /// What waits, bytes.
    pub held: Arc<AtomicUsize>,
}

impl Stats {
    pub fn sent(&self, to: Exporter, calls: u64) {
        self.counts[to as usize].sent.fetch_add(calls, Relaxed);
    }

    pub fn lost(&self, to: Exporter, why: Lost, calls: u64) {
        self.counts[to as usize].lost[why as usize].fetch_add(calls, Relaxed);
    }

    pub fn retried(&self, to: Exporter) {
        self.counts[to as usize].retries.fetch_add(1, Relaxed);
    }

    /// Whether the receiver takes what it is sent.
    pub fn is_away(&self, to: Exporter, away: bool) {
        self.counts[to as usize].away.store(away, Relaxed);
    }

    pub fn takes(&self, from: Exporter) -> bool {
        !self.counts[from as usize].away.load(Relaxed)
    }

    /// Shows those who are told at all, and what was counted of those who were once.
    pub fn gather(&self, used: &[Exporter], page: &mut Page) {
        let mut any = false;
        for to in Exporter::ALL {
            let (name, counts) = (to.as_str(), &self.counts[to as usize]);
            let is_used = used.contains(&to);
            if !is_used && !counts.any() {
                continue;
            }
            any = true;
            page.int(&c::TRACES_SENT, &[name], counts.sent.load(Relaxed));
            for why in Lost::ALL {
                let n = counts.lost[why as usize].load(Relaxed);
                page.int(&c::TRACES_LOST, &[name, why.as_str()], n);
            }
            page.int(&c::TRACES_RETRIES, &[name], counts.retries.load(Relaxed));
            if is_used {
                page.int(&c::TRACES_UP, &[name], u64::from(self.takes(to)));
            }
        }
        if any {
            page.int(&c::TRACES_QUEUE, &[], self.held.load(Relaxed) as u64);
        }
    }
}

impl Counts {
    fn any(&self) -> bool {
        let lost = self.lost.iter().map(|n| n.load(Relaxed));
        lost.chain([self.sent.load(Relaxed)]).any(|n| n > 0)
    }
}

/// A part of the memory that may wait, given back when dropped.
pub struct Share {
    held: Arc<AtomicUsize>,
    bytes: usize,
}

impl Share {
    /// Takes as much as is there; None beyond `most`.
    pub fn take(held: &Arc<AtomicUsize>, bytes: usize, most: usize) -> Option<Self> {
        let before = held.fetch_add(bytes, Relaxed);
        let share = Self {
            held: Arc::clone(held),
            bytes,
        };
        (before.saturating_add(bytes) <= most).then_some(share)
    }

    /// Takes what something that is there already turned out to need.
    pub fn of(held: &Arc<AtomicUsize>, bytes: usize) -> Self {
        held.fetch_add(bytes, Relaxed);
        Self {
            held: Arc::clone(held),
            bytes,
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes to another size.
    pub fn set(&mut self, bytes: usize) {
        if bytes >= self.bytes {
            self.held.fetch_add(bytes - self.bytes, Relaxed);
        } else {
            self.held.fetch_sub(self.bytes - bytes, Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back() {
        let held = Arc::new(AtomicUsize::new(0));
        let a = Share::take(&held, 60, 100).unwrap();
        assert!(Share::take(&held, 60, 100).is_none());
        assert_eq!(held.load(Relaxed), 60, "what was refused holds nothing");
        let mut b = Share::of(&held, 60);
        b.set(10);
        assert_eq!(held.load(Relaxed), 70);
        drop((a, b));
        assert_eq!(held.load(Relaxed), 0);
    }

    #[test]
    fn metrics_name_only_those_who_are_told() {
        let stats = Stats::default();
        stats.sent(Exporter::Otlp, 3);
        stats.lost(Exporter::Otlp, Lost::Full, 2);
        let mut page = Page::default();
        stats.gather(&[Exporter::Otlp], &mut page);
        let text = page.finish();
        assert!(
            text.contains("tollkeeper_traces_sent_total{exporter=\"otlp\"} 3\n"),
            "{text}"
        );
        assert!(text.contains("{exporter=\"otlp\",reason=\"full\"} 2\n"), "{text}");
        assert!(!text.contains("langfuse"), "{text}");
    }
}
