//! Problems found in a config, and how they are shown: the line, carets under the part that is
//! wrong, and what to do about it.
//!
//! What is shown never holds a secret: the copy of the text that snippets are cut from has every
//! secret value replaced by stars of the same length.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde_json::json;

use super::types::Span;

/// Exit code of a command that was stopped by a bad config (`EX_CONFIG`).
pub const EXIT_CONFIG: i32 = 78;

/// More problems than this are counted but not kept: a file that is no config at all must not
/// fill the screen or the memory.
const MAX_PROBLEMS: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The gateway refuses to start.
    Error,
    /// It starts, and something is probably not as meant.
    Warning,
    /// Worth knowing; nothing is wrong.
    Note,
}

impl Severity {
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// One thing that is wrong, or worth knowing, about a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    /// Short and stable, such as `unknown-field`.
    pub code: &'static str,
    pub message: String,
    /// Where, when it is about a place.
    pub at: Option<Span>,
    /// Said beside the carets.
    pub label: Option<String>,
    /// What to do next.
    pub help: Option<String>,
    /// Where in the config's own terms: `model_list[2] "gpt-4" → litellm_params`.
    pub path: String,
}

/// Everything one run found, with the text it is about.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub problems: Vec<Problem>,
    /// Problems beyond those kept.
    pub dropped: usize,
    files: Vec<SourceText>,
}

/// A file's name and text, secrets starred out.
#[derive(Debug, Clone)]
struct SourceText {
    name: Arc<str>,
    text: Arc<str>,
}

impl Report {
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|p| p.severity == severity).count()
    }

    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// The text for people. `colour` adds ANSI styles.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let renderer = renderer.decor_style(DecorStyle::Unicode).term_width(120);
        let mut out = String::new();
        for problem in &self.problems {
            out.push_str(&renderer.render(&[self.group(problem)]));
            out.push_str("\n\n");
        }
        out
    }

    /// `2 errors, 3 warnings`.
    pub fn summary(&self) -> String {
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        let mut parts = Vec::new();
        for (count, word) in [
            (errors, "error"),
            (warnings, "warning"),
            (self.count(Severity::Note), "note"),
        ] {
            match count {
                0 => {}
                1 => parts.push(format!("1 {word}")),
                n => parts.push(format!("{n} {word}s")),
            }
        }
        if self.dropped > 0 {
            parts.push(format!("{} more not shown", self.dropped));
        }
        if parts.is_empty() {
            "no problems".into()
        } else {
            parts.join(", ")
        }
    }

    /// One object per problem, for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let problems: Vec<_> = self
            .problems
            .iter()
            .map(|p| {
                let place = p.at.and_then(|at| Some((self.files.get(at.file as usize)?, at)));
                json!({
                    "severity": p.severity.word(),
                    "code": p.code,
                    "message": p.message,
                    "label": p.label,
                    "help": p.help,
                    "path": p.path,
                    "file": place.map(|(file, _)| file.name.as_ref()),
                    "line": place.map(|(_, at)| at.line),
                    "column": place.map(|(_, at)| at.col),
                })
            })
            .collect();
        json!({
            "errors": self.count(Severity::Error),
            "warnings": self.count(Severity::Warning),
            "notes": self.count(Severity::Note),
            "dropped": self.dropped,
            "problems": problems,
        })
    }

    /// Workflow commands that GitHub turns into annotations on the changed lines.
    pub fn to_github(&self) -> String {
        let mut out = String::new();
        for p in &self.problems {
            let word = if p.severity == Severity::Note {
                "notice"
            } else {
                p.severity.word()
            };
            out.push_str(&format!("::{word} title={}", p.code));
            if let Some((file, at)) = p.at.and_then(|at| Some((self.files.get(at.file as usize)?, at))) {
                out.push_str(&format!(
                    ",file={},line={},col={}",
                    property(&file.name),
                    at.line,
                    at.col
                ));
            }
            let mut message = p.message.clone();
            for more in [&p.label, &p.help].into_iter().flatten() {
                message.push_str("; ");
                message.push_str(more);
            }
            out.push_str(&format!("::{}\n", escaped(&message)));
        }
        out
    }

    fn group<'a>(&'a self, problem: &'a Problem) -> Group<'a> {
        let level = match problem.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let mut group = Group::with_title(level.primary_title(problem.message.as_str()).id(problem.code));
        let mut label_shown = problem.label.is_none();
        if let Some((file, at)) = problem
            .at
            .and_then(|at| Some((self.files.get(at.file as usize)?, at)))
        {
            let (range, cut, first_line) = window(&file.text, at);
            let mut mark = AnnotationKind::Primary.span(range);
            if let Some(label) = &problem.label {
                mark = mark.label(label.as_str());
                label_shown = true;
            }
            let snippet = Snippet::source(cut)
                .line_start(first_line)
                .path(file.name.as_ref());
            group = group.element(snippet.annotation(mark));
        }
        if let Some(label) = problem.label.as_deref().filter(|_| !label_shown) {
            group = group.element(Level::NOTE.message(label));
        }
        if !problem.path.is_empty() {
            group = group.element(Level::NOTE.with_name(Some("in")).message(problem.path.as_str()));
        }
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        group
    }
}

/// The lines around a place and the place within them, so that the renderer need not walk a
/// file of megabytes for each problem. A place over several lines is marked on its first.
fn window(text: &str, at: Span) -> (Range<usize>, &str, usize) {
    let start = floor(text, at.start as usize);
    let line_start = text.get(..start).and_then(|s| s.rfind('\n')).map_or(0, |i| i + 1);
    let line_end = text
        .get(start..)
        .and_then(|s| s.find('\n'))
        .map_or(text.len(), |i| start + i);
    let end = floor(text, at.end as usize).clamp(start, line_end);
    let cut = text.get(line_start..line_end).unwrap_or_default();
    // A caret needs something to stand under; at the end of a line it stands behind it.
    let end = if end == start && end < line_end {
        ceil(text, end + 1)
    } else {
        end
    };
    (
        start - line_start..end - line_start,
        cut,
        (at.line as usize).max(1),
    )
}

fn floor(text: &str, mut i: usize) -> usize {
    i = i.min(text.len());
    while !text.is_char_boundary(i) {
        i -= 1;
    }
    i
}

fn ceil(text: &str, mut i: usize) -> usize {
    i = i.min(text.len());
    while !text.is_char_boundary(i) {
        i += 1;
    }
    i
}

fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    escaped(text).replace(':', "%3A").replace(',', "%2C")
}

/// Where problems are collected while the config is read.
#[derive(Default)]
pub(super) struct Notes {
    problems: RefCell<Vec<Problem>>,
    dropped: RefCell<usize>,
    files: RefCell<Vec<RawText>>,
}

struct RawText {
    name: Arc<str>,
    text: Vec<u8>,
}

impl Notes {
    /// Takes a file in; the number names it in spans.
    pub fn add_file(&self, name: &str, text: &str) -> u32 {
        let mut files = self.files.borrow_mut();
        files.push(RawText {
            name: name.into(),
            text: text.as_bytes().to_vec(),
        });
        u32::try_from(files.len() - 1).unwrap_or(u32::MAX)
    }

    pub fn file_names(&self) -> Vec<Arc<str>> {
        self.files.borrow().iter().map(|f| f.name.clone()).collect()
    }

    /// Stars out a part of a file in everything that is shown.
    pub fn hide(&self, file: u32, part: Range<usize>) {
        if let Some(raw) = self.files.borrow_mut().get_mut(file as usize)
            && let Some(bytes) = raw.text.get_mut(part)
        {
            for byte in bytes.iter_mut().filter(|b| **b != b'\n' && **b != b'\r') {
                *byte = b'*';
            }
        }
    }

    /// A file's text with what is hidden starred out.
    pub fn text(&self, file: u32) -> String {
        let files = self.files.borrow();
        let text = files.get(file as usize).map(|f| f.text.as_slice());
        String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
    }

    pub fn add(&self, problem: Problem) {
        let mut problems = self.problems.borrow_mut();
        if problems.contains(&problem) {
            return; // an anchor used twice is read twice, and says the same both times
        }
        if problems.len() < MAX_PROBLEMS {
            problems.push(problem);
        } else {
            *self.dropped.borrow_mut() += 1;
        }
    }

    /// Starts a problem; it counts once `Draft` is dropped or given more.
    pub fn error(&self, code: &'static str, message: impl Into<String>) -> Draft<'_> {
        self.draft(Severity::Error, code, message.into())
    }

    pub fn warning(&self, code: &'static str, message: impl Into<String>) -> Draft<'_> {
        self.draft(Severity::Warning, code, message.into())
    }

    pub fn note(&self, code: &'static str, message: impl Into<String>) -> Draft<'_> {
        self.draft(Severity::Note, code, message.into())
    }

    pub fn draft(&self, severity: Severity, code: &'static str, message: String) -> Draft<'_> {
        let problem = Problem {
            severity,
            code,
            message,
            at: None,
            label: None,
            help: None,
            path: String::new(),
        };
        Draft {
            notes: self,
            problem: Some(problem),
        }
    }

    /// The report: errors first, then as they stand in the files.
    pub fn into_report(self) -> Report {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|p| (p.severity, p.at.map(|at| (at.file, at.start))));
        let files = self.files.into_inner().into_iter().map(|raw| SourceText {
            name: raw.name,
            text: String::from_utf8_lossy(&raw.text).into(),
        });
        Report {
            problems,
            dropped: self.dropped.into_inner(),
            files: files.collect(),
        }
    }
}

/// A problem being written; it is handed in when the value goes out of scope.
pub(super) struct Draft<'a> {
    notes: &'a Notes,
    problem: Option<Problem>,
}

impl Draft<'_> {
    fn with(mut self, change: impl FnOnce(&mut Problem)) -> Self {
        if let Some(problem) = self.problem.as_mut() {
            change(problem);
        }
        self
    }

    pub fn at(self, at: Span) -> Self {
        self.with(|p| p.at = Some(at))
    }

    pub fn label(self, label: impl Into<String>) -> Self {
        self.with(|p| p.label = Some(label.into()))
    }

    pub fn help(self, help: impl Into<String>) -> Self {
        self.with(|p| p.help = Some(help.into()))
    }

    pub fn path(self, path: &str) -> Self {
        self.with(|p| p.path = path.to_owned())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Some(problem) = self.problem.take() {
            self.notes.add(problem);
        }
    }
}
