//! What an import took and what it left, for people and for programs.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde_json::{Value, json};
use std::fmt::Write;

/// Notes kept one by one; of more only the number is known.
const MAX_NOTES: usize = 500;

/// How one kind of thing went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Rows found.
    pub read: u64,
    pub new: u64,
    pub changed: u64,
    pub unchanged: u64,
    /// Changed here after LiteLLM's last change, and so left as they are.
    pub kept: u64,
    /// Not taken; a note says why.
    pub left: u64,
}

/// Something a person should know. Holds names of things and fields, never what they contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// `keys`, `models`, …
    pub what: &'static str,
    pub id: String,
    pub text: String,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub dry_run: bool,
    lines: Vec<(&'static str, Line)>,
    notes: Vec<Note>,
    more_notes: u64,
    /// What is not taken at all: what it is, how many rows (as text), and what to do.
    not_taken: Vec<(String, String, String)>,
}

impl Report {
    pub fn new(dry_run: bool) -> Self {
        Self {
            dry_run,
            ..Self::default()
        }
    }

    /// The line of this kind, in the order of first use.
    pub fn line(&mut self, what: &'static str) -> &mut Line {
        let at = match self.lines.iter().position(|(name, _)| *name == what) {
            Some(at) => at,
            None => {
                self.lines.push((what, Line::default()));
                self.lines.len() - 1
            }
        };
        // `at` was found or pushed just now.
        &mut self.lines[at].1
    }

    pub fn note(&mut self, what: &'static str, id: &str, text: impl Into<String>) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push(Note {
                what,
                id: shown(id),
                text: text.into(),
            });
        } else {
            self.more_notes += 1;
        }
    }

    /// A thing that is not taken, and why.
    pub fn leave(&mut self, what: &'static str, id: &str, why: impl Into<String>) {
        self.line(what).left += 1;
        self.note(what, id, format!("{}: left", why.into()));
    }

    pub fn not_taken(&mut self, what: impl Into<String>, rows: impl Into<String>, why: impl Into<String>) {
        self.not_taken
            .push((shown(&what.into()), rows.into(), why.into()));
    }

    pub fn lines(&self) -> &[(&'static str, Line)] {
        &self.lines
    }

    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// For programs: the same content.
    pub fn to_json(&self) -> Value {
        let lines: serde_json::Map<String, Value> = self
            .lines
            .iter()
            .map(|(what, l)| {
                let line = json!({
                    "read": l.read, "new": l.new, "changed": l.changed, "unchanged": l.unchanged,
                    "kept": l.kept, "left": l.left,
                });
                (what.replace(' ', "_"), line)
            })
            .collect();
        let notes: Vec<Value> = self
            .notes
            .iter()
            .map(|n| json!({"what": n.what.replace(' ', "_"), "id": n.id, "note": n.text}))
            .collect();
        let not_taken: Vec<Value> = self
            .not_taken
            .iter()
            .map(|(what, rows, why)| json!({"what": what, "rows": rows, "why": why}))
            .collect();
        json!({
            "dry_run": self.dry_run,
            "taken": lines,
            "notes": notes,
            "more_notes": self.more_notes,
            "not_taken": not_taken,
        })
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let mut table = Table::new();
        table
            .load_style(NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(["", "read", "new", "changed", "unchanged", "kept", "left"]);
        // What there is none of is not worth a line.
        for (what, l) in self.lines.iter().filter(|(_, l)| *l != Line::default()) {
            let mut cells = vec![(*what).to_string()];
            cells.extend([l.read, l.new, l.changed, l.unchanged, l.kept, l.left].map(|n| n.to_string()));
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for line in table.lines() {
            let _ = writeln!(out, "{}", line.trim_end());
        }
        if self.lines.iter().any(|(_, l)| l.kept > 0) {
            let _ = writeln!(
                out,
                "kept: changed here after LiteLLM's last change, and left as they are"
            );
        }
        if !self.notes.is_empty() {
            let _ = writeln!(out, "\nNotes");
            for note in &self.notes {
                let _ = writeln!(out, "  {} {}: {}", note.what, note.id, note.text);
            }
            if self.more_notes > 0 {
                let _ = writeln!(out, "  … and {} more", self.more_notes);
            }
        }
        if !self.not_taken.is_empty() {
            let _ = writeln!(out, "\nNot taken");
            for (what, rows, why) in &self.not_taken {
                let _ = writeln!(out, "  {what} ({rows}): {why}");
            }
        }
        let sum = |part: fn(&Line) -> u64| self.lines.iter().map(|(_, l)| part(l)).sum::<u64>();
        let (new, unchanged, changed) = (sum(|l| l.new), sum(|l| l.unchanged), sum(|l| l.changed));
        let end = if self.dry_run {
            " · dry run: nothing was written"
        } else {
            ""
        };
        let _ = writeln!(out, "\n{new} new, {unchanged} unchanged, {changed} changed{end}");
        out
    }
}

/// A name from outside, fit for a terminal: one line, no control characters, not long.
fn shown(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(80)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(80).is_some() {
        out.push('…');
    }
    if out.is_empty() {
        out.push_str("(no name)");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_bounded_and_tame() {
        let mut report = Report::default();
        report.line("keys").read = 3;
        report.leave("keys", "a\u{1b}[31m\nb", "its token is no hash");
        for _ in 0..600 {
            report.note("keys", &"é".repeat(100), "x");
        }
        assert_eq!(report.line("keys").left, 1);
        let text = report.to_text();
        assert!(
            text.contains("keys a\u{fffd}[31m\u{fffd}b: its token is no hash: left\n"),
            "{text}"
        );
        assert!(text.contains("… and 101 more"), "{text}");
        assert!(text.ends_with("0 new, 0 unchanged, 0 changed\n"), "{text}");
        assert_eq!(report.to_json()["taken"]["keys"]["left"], 1);
    }
}
