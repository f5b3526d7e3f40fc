//! What is counted of telling: sent, let go of and why, tried again, and what waits. Labels are from fixed
//! lists, however many projects there are.

use std::fmt::Write;
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
}

impl Lost {
    const ALL: [Lost; 5] = [
        Lost::Full,
        Lost::Refused,
        Lost::Rejected,
        Lost::Address,
        Lost::Projects,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Lost::Full => "full",
            Lost::Refused => "refused",
            Lost::Rejected => "rejected",
            Lost::Address => "address",
            Lost::Projects => "projects",
        }
    }
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    lost: [AtomicU64; 5],
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

    /// Lines for `/metrics`, of those who are told at all.
    pub fn render(&self, used: &[Exporter]) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, lines: &mut dyn FnMut(&mut String)| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            lines(&mut out);
        };
        let each = || Exporter::ALL.into_iter().filter(|e| used.contains(e));
        family(
            "tollkeeper_traces_sent_total",
            "counter",
            "Calls told of.",
            &mut |out| {
                for e in each() {
                    let n = self.counts[e as usize].sent.load(Relaxed);
                    let _ = writeln!(
                        out,
                        "tollkeeper_traces_sent_total{{exporter=\"{}\"}} {n}",
                        e.as_str()
                    );
                }
            },
        );
        let help = "Calls not told of, by reason.";
        family("tollkeeper_traces_lost_total", "counter", help, &mut |out| {
            for e in each() {
                for why in Lost::ALL {
                    let n = self.counts[e as usize].lost[why as usize].load(Relaxed);
                    let (e, why) = (e.as_str(), why.as_str());
                    let _ = writeln!(
                        out,
                        "tollkeeper_traces_lost_total{{exporter=\"{e}\",reason=\"{why}\"}} {n}"
                    );
                }
            }
        });
        let help = "Batches that were sent again.";
        family("tollkeeper_traces_retries_total", "counter", help, &mut |out| {
            for e in each() {
                let n = self.counts[e as usize].retries.load(Relaxed);
                let _ = writeln!(
                    out,
                    "tollkeeper_traces_retries_total{{exporter=\"{}\"}} {n}",
                    e.as_str()
                );
            }
        });
        let help = "1 while the receiver takes what it is sent.";
        family("tollkeeper_traces_receiver_up", "gauge", help, &mut |out| {
            for e in each() {
                let up = u8::from(self.takes(e));
                let _ = writeln!(
                    out,
                    "tollkeeper_traces_receiver_up{{exporter=\"{}\"}} {up}",
                    e.as_str()
                );
            }
        });
        let help = "What waits to be told, in memory.";
        family("tollkeeper_traces_queue_bytes", "gauge", help, &mut |out| {
            let _ = writeln!(out, "tollkeeper_traces_queue_bytes {}", self.held.load(Relaxed));
        });
        out
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
        let text = stats.render(&[Exporter::Otlp]);
        assert!(
            text.contains("tollkeeper_traces_sent_total{exporter=\"otlp\"} 3\n"),
            "{text}"
        );
        assert!(text.contains("{exporter=\"otlp\",reason=\"full\"} 2\n"), "{text}");
        assert!(!text.contains("langfuse"), "{text}");
    }
}
