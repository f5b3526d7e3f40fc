//! The text of `/metrics`: families in order of their names, each with its help and type, label values
//! escaped. Knows nothing of what is counted.

use super::count::{Counter, Histogram};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// All series of one name. `docs/metrics.md` lists every one.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// In words, for people: `seconds`, `tokens`.
    pub unit: &'static str,
    pub help: &'static str,
}

/// Shows what it has at each scrape. Registered with [`Telemetry::add`](super::Telemetry::add).
pub trait Source: Send + Sync {
    /// Never waits and never blocks for long: it runs while the scraper waits.
    fn gather(&self, page: &mut Page);
}

impl<F: Fn(&mut Page) + Send + Sync> Source for F {
    fn gather(&self, page: &mut Page) {
        self(page);
    }
}

/// Bytes of a label's value that are shown.
const LONGEST_VALUE: usize = 256;

/// One scrape in the making.
#[derive(Default)]
pub struct Page {
    families: BTreeMap<&'static str, (&'static Family, String)>,
}

impl Page {
    /// A value of a counter or gauge. `labels` are the values, in the family's order.
    pub fn int(&mut self, family: &'static Family, labels: &[&str], value: impl Into<i128>) {
        let value: i128 = value.into();
        self.sample(family, labels, format_args!("{value}"));
    }

    pub fn float(&mut self, family: &'static Family, labels: &[&str], value: f64) {
        self.sample(family, labels, format_args!("{value}"));
    }

    /// A counter's value, if it ever rose: most of what could be counted never happens.
    pub fn counter(&mut self, family: &'static Family, labels: &[&str], counter: &Counter) {
        let value = counter.get();
        if value > 0 {
            self.int(family, labels, value);
        }
    }

    /// A histogram, if anything was observed.
    pub fn histogram(&mut self, family: &'static Family, labels: &[&str], histogram: &Histogram) {
        if histogram.is_empty() {
            return;
        }
        let mut within = String::new();
        labels_of(family, labels, &mut within);
        let open = if within.is_empty() { "{" } else { "," };
        let start = within.strip_suffix('}').unwrap_or_default();
        let name = family.name;
        let text = self.text(family);
        let mut count = 0;
        // Writing into a string cannot fail.
        for (bound, upto) in histogram.cumulated() {
            count = upto;
            for piece in [name, "_bucket", start, open, "le=\"", bound] {
                text.push_str(piece);
            }
            let _ = writeln!(text, "\"}} {upto}");
        }
        let _ = writeln!(text, "{name}_sum{within} {}", histogram.sum());
        let _ = writeln!(text, "{name}_count{within} {count}");
    }

    fn sample(&mut self, family: &'static Family, labels: &[&str], value: std::fmt::Arguments<'_>) {
        let text = self.text(family);
        text.push_str(family.name);
        labels_of(family, labels, text);
        let _ = writeln!(text, " {value}");
    }

    fn text(&mut self, family: &'static Family) -> &mut String {
        let entry = self.families.entry(family.name);
        &mut entry.or_insert_with(|| (family, String::new())).1
    }

    /// The whole text.
    pub fn finish(self) -> String {
        let len = self.families.values().map(|(_, text)| text.len() + 200).sum();
        let mut out = String::with_capacity(len);
        for (name, (family, text)) in self.families {
            let _ = writeln!(out, "# HELP {name} {}", family.help);
            let _ = writeln!(out, "# TYPE {name} {}", family.kind.as_str());
            out.push_str(&text);
        }
        out
    }
}

/// `{name="value",…}`, or nothing.
fn labels_of(family: &Family, labels: &[&str], into: &mut String) {
    debug_assert_eq!(family.labels.len(), labels.len(), "{}", family.name);
    let mut open = "{";
    for (name, value) in family.labels.iter().zip(labels) {
        for piece in [open, name, "=\""] {
            into.push_str(piece);
        }
        escape(value, into);
        into.push('"');
        open = ",";
    }
    if open == "," {
        into.push('}');
    }
}

/// As the text format has it. Other control characters are allowed there, and help nobody.
fn escape(value: &str, into: &mut String) {
    let value = value
        .get(..value.floor_char_boundary(LONGEST_VALUE))
        .unwrap_or(value);
    if !value.contains(|c: char| matches!(c, '\\' | '"') || c.is_control()) {
        into.push_str(value);
        return;
    }
    for c in value.chars() {
        match c {
            '\\' => into.push_str("\\\\"),
            '"' => into.push_str("\\\""),
            '\n' => into.push_str("\\n"),
            c if c.is_control() => into.push('\u{fffd}'),
            c => into.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::count::LONG;
    use std::time::Duration;

    static A: Family = Family {
        name: "a_total",
        kind: Kind::Counter,
        labels: &["x", "y"],
        unit: "",
        help: "A.",
    };
    static B: Family = Family {
        name: "b_seconds",
        kind: Kind::Histogram,
        labels: &[],
        unit: "seconds",
        help: "B.",
    };

    #[test]
    fn families_stay_together_and_values_are_escaped() {
        let mut page = Page::default();
        let h = Histogram::new(&LONG);
        page.histogram(&B, &[], &h);
        h.observe(Duration::from_millis(7));
        page.int(&A, &["one", "\"\\\n\u{1b}"], 1u64);
        page.histogram(&B, &[], &h);
        page.int(&A, &["two", &"é".repeat(200)], 2u64);
        page.counter(&A, &["three", ""], &Counter::default());
        let text = page.finish();
        let start = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"one\",y=\"\\\"\\\\\\n\u{fffd}\"} 1\na_total{x=\"two\",y=\"";
        assert!(text.starts_with(start), "{text}");
        assert!(
            text.contains("b_seconds_bucket{le=\"0.005\"} 0\nb_seconds_bucket{le=\"0.01\"} 1\n"),
            "{text}"
        );
        assert!(
            text.ends_with("b_seconds_bucket{le=\"+Inf\"} 1\nb_seconds_sum 0.007\nb_seconds_count 1\n"),
            "{text}"
        );
        assert!(!text.contains("three"));
        assert_eq!(text.matches('é').count(), 128, "long values are cut");
    }
}
