//! Reading the fields of one mapping: each getter asks for a type, reports what is not that type,
//! and remembers its name, so that what nobody asked for can be named as unknown.

use std::cell::RefCell;
use std::time::Duration;

use super::node::{Entry, Node, Origin, Scalar, Value};
use super::report::{Draft, Notes};
use super::secret::Secret;
use super::text::{self, shown};
use super::types::Span;

/// The fields of a mapping, being read.
pub(super) struct Fields<'a> {
    pub notes: &'a Notes,
    entries: &'a [Entry],
    /// Where we are, in the config's words.
    pub path: String,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Fields<'a> {
    /// Opens a mapping. Nothing at all counts as an empty one; anything else is reported.
    pub fn open(node: &'a Node, notes: &'a Notes, path: impl Into<String>) -> Option<Self> {
        let path = path.into();
        let entries: &[Entry] = match &node.value {
            Value::Map(entries) => entries,
            _ if node.is_null() => &[],
            _ => {
                notes
                    .error("type", format!("a mapping is expected here, not {}", node.kind()))
                    .at(node.at)
                    .help("write `name: value` lines, indented below the key")
                    .path(&path);
                return None;
            }
        };
        Some(Self {
            notes,
            entries,
            path,
            asked: RefCell::default(),
        })
    }

    fn find(&self, key: &'static str) -> Option<&'a Entry> {
        self.asked.borrow_mut().push(key);
        self.entries.iter().find(|e| e.key == key)
    }

    /// The entry, unless it is missing or empty.
    pub fn entry(&self, key: &'static str) -> Option<&'a Entry> {
        self.find(key).filter(|e| !e.value.is_null())
    }

    /// The entry, also when the variable it names is not set.
    pub fn entry_or_unset(&self, key: &'static str) -> Option<&'a Entry> {
        self.find(key)
            .filter(|e| !e.value.is_null() || unset(&e.value).is_some())
    }

    /// An entry that was there though nobody should read it: marks the name as known.
    pub fn know(&self, key: &'static str) {
        self.asked.borrow_mut().push(key);
    }

    fn scalar(&self, key: &'static str, expected: &str) -> Option<(&'a Entry, &'a Scalar)> {
        let entry = self.entry(key)?;
        match entry.value.scalar() {
            Some(scalar) => Some((entry, scalar)),
            None => {
                self.wrong(entry, expected);
                None
            }
        }
    }

    /// Reports a value of the wrong kind.
    fn wrong(&self, entry: &Entry, expected: &str) -> Draft<'a> {
        let message = format!(
            "`{}` must be {expected}, not {}",
            shown(&entry.key),
            entry.value.kind()
        );
        self.notes
            .error("type", message)
            .at(entry.value.at)
            .path(&self.path)
    }

    /// Reports a value that is of the right kind and means nothing.
    fn bad(&self, entry: &Entry, code: &'static str, expected: &str, example: &str) {
        let said = entry.value.scalar().map(|s| &s.text);
        let hide =
            text::is_secret_name(&entry.key) || entry.value.scalar().is_some_and(|s| s.origin == Origin::Env);
        let message = match said {
            Some(said) if !hide => format!("`{}` is not {expected}: \"{}\"", shown(&entry.key), shown(said)),
            _ => format!("`{}` is not {expected}", shown(&entry.key)),
        };
        self.notes
            .error(code, message)
            .at(entry.value.at)
            .help(format!("for example {example}"))
            .path(&self.path);
    }

    pub fn text(&self, key: &'static str) -> Option<String> {
        self.scalar(key, "text").map(|(_, s)| s.text.clone())
    }

    pub fn secret(&self, key: &'static str) -> Option<Secret> {
        self.scalar(key, "text").map(|(_, s)| Secret::new(s.text.clone()))
    }

    pub fn flag(&self, key: &'static str) -> Option<bool> {
        let (entry, scalar) = self.scalar(key, "true or false")?;
        let value = meaning(scalar).as_bool();
        if value.is_none() {
            self.wrong(entry, "true or false");
        }
        value
    }

    /// A number from zero up.
    pub fn count(&self, key: &'static str) -> Option<u64> {
        let (entry, scalar) = self.scalar(key, "a whole number")?;
        let meaning = meaning(scalar);
        // LiteLLM's users write 1e6 and 1000000.0 too.
        let whole = meaning
            .as_float()
            .filter(|f| f.fract() == 0.0 && *f >= 0.0 && *f < 9e15)
            .map(|f| f as u64);
        let value = meaning.as_int().and_then(|i| u64::try_from(i).ok()).or(whole);
        if value.is_none() {
            self.bad(entry, "number", "a whole number from 0 up", "`100`");
        }
        value
    }

    pub fn small_count(&self, key: &'static str) -> Option<u32> {
        let value = self.count(key)?;
        let small = u32::try_from(value).ok();
        if let (None, Some(entry)) = (small, self.entry(key)) {
            self.bad(entry, "number", "a number below four thousand million", "`3`");
        }
        small
    }

    pub fn integer(&self, key: &'static str) -> Option<i64> {
        let (entry, scalar) = self.scalar(key, "a whole number")?;
        let value = meaning(scalar).as_int();
        if value.is_none() {
            self.bad(entry, "number", "a whole number", "`1`");
        }
        value
    }

    /// A number that must not be negative.
    pub fn amount(&self, key: &'static str) -> Option<f64> {
        let (entry, _) = self.scalar(key, "a number")?;
        self.amount_of(entry)
    }

    /// The same for an entry whose name is not known beforehand.
    pub fn amount_of(&self, entry: &Entry) -> Option<f64> {
        let value = entry.value.scalar().and_then(|s| meaning(s).as_float());
        match value {
            Some(value) if value >= 0.0 => Some(value),
            Some(_) => {
                let message = format!("`{}` is negative", shown(&entry.key));
                self.notes
                    .error("negative", message)
                    .at(entry.value.at)
                    .label("must be 0 or more")
                    .path(&self.path);
                None
            }
            None => {
                self.bad(entry, "number", "a number", "`0.5` or `2.5e-6`");
                None
            }
        }
    }

    pub fn duration(&self, key: &'static str) -> Option<Duration> {
        let (entry, scalar) = self.scalar(key, "a duration")?;
        let value = text::duration(&scalar.text);
        if value.is_none() {
            self.bad(
                entry,
                "duration",
                "a duration",
                "`500ms`, `30s`, `10m`, `1h`; a bare number is seconds",
            );
        }
        value
    }

    /// A duration that must not be zero.
    pub fn some_time(&self, key: &'static str) -> Option<Duration> {
        let value = self.duration(key)?;
        if let (true, Some(entry)) = (value.is_zero(), self.entry(key)) {
            self.bad(entry, "duration", "a duration above zero", "`30s`");
            return None;
        }
        Some(value)
    }

    pub fn bytes(&self, key: &'static str) -> Option<u64> {
        let (entry, scalar) = self.scalar(key, "a size")?;
        let value = text::size(&scalar.text).filter(|bytes| *bytes > 0);
        if value.is_none() {
            self.bad(
                entry,
                "size",
                "a size above zero",
                "`32MiB`, `64KiB`; a bare number is bytes",
            );
        }
        value
    }

    /// Reads a text with `read`, which says what is wrong with it.
    pub fn parsed<T>(
        &self,
        key: &'static str,
        code: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (entry, scalar) = self.scalar(key, "text")?;
        self.parsed_from(&entry.key, &entry.value, scalar, code, read)
    }

    fn parsed_from<T>(
        &self,
        key: &str,
        node: &Node,
        scalar: &Scalar,
        code: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        match read(&scalar.text) {
            Ok(value) => Some(value),
            Err(why) => {
                // What stands in a variable may be a secret; its name is what helps anyway.
                let message = match scalar.origin {
                    Origin::File => format!(
                        "`{}` is not usable: \"{}\"",
                        shown(key),
                        shown(&hide_user(&scalar.text))
                    ),
                    _ => format!(
                        "`{}` is not usable; its value comes from the environment",
                        shown(key)
                    ),
                };
                self.notes
                    .error(code, message)
                    .at(node.at)
                    .label(why)
                    .path(&self.path);
                None
            }
        }
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let (entry, scalar) = self.scalar(key, "text")?;
        let said = scalar.text.to_ascii_lowercase();
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == said) {
            return Some(*value);
        }
        let list = words
            .iter()
            .map(|(word, _)| format!("`{word}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let message = match scalar.origin {
            Origin::File => format!("`{}` cannot be \"{}\"", shown(&entry.key), shown(&scalar.text)),
            _ => format!("`{}` cannot be what the environment says", shown(&entry.key)),
        };
        let mut draft = self
            .notes
            .error("choice", message)
            .at(entry.value.at)
            .path(&self.path);
        if let Some(near) = text::nearest(&scalar.text, words.iter().map(|(word, _)| *word)) {
            draft = draft.label(format!("did you mean `{near}`?"));
        }
        drop(draft.help(format!("one of {list}")));
        None
    }

    /// A list of texts; a single text counts as a list of one.
    pub fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        self.parsed_list(key, "text", |text| Ok(text.to_owned()))
    }

    /// A list of texts, each read with `read`.
    pub fn parsed_list<T>(
        &self,
        key: &'static str,
        code: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let entry = self.entry(key)?;
        let items = match &entry.value.value {
            Value::Seq(items) => items.as_slice(),
            Value::Scalar(_) => std::slice::from_ref(&entry.value),
            Value::Map(_) => {
                self.wrong(entry, "a list");
                return None;
            }
        };
        let mut out = Vec::with_capacity(items.len());
        for item in items {
            match item.scalar() {
                Some(scalar) if !scalar.is_null() => {
                    out.extend(self.parsed_from(key, item, scalar, code, &read));
                }
                _ => {
                    let message = format!("`{key}` holds {}; each item must be text", item.kind());
                    self.notes.error("type", message).at(item.at).path(&self.path);
                }
            }
        }
        Some(out)
    }

    /// A mapping below a key.
    pub fn child(&self, key: &'static str) -> Option<Fields<'a>> {
        let entry = self.entry(key)?;
        Fields::open(&entry.value, self.notes, self.below(key))
    }

    /// A list below a key.
    pub fn list(&self, key: &'static str) -> Option<&'a [Node]> {
        let entry = self.entry(key)?;
        match &entry.value.value {
            Value::Seq(items) => Some(items),
            _ => {
                self.wrong(entry, "a list").help("start each item with `- `");
                None
            }
        }
    }

    /// The path of a field in here.
    pub fn below(&self, key: &str) -> String {
        if self.path.is_empty() {
            shown(key)
        } else {
            format!("{} → {}", self.path, shown(key))
        }
    }

    /// Fields nobody has asked for.
    pub fn rest(&self) -> impl Iterator<Item = &'a Entry> {
        let asked = self.asked.borrow().clone();
        self.entries
            .iter()
            .filter(move |e| !asked.contains(&e.key.as_str()))
    }

    pub fn all(&self) -> &'a [Entry] {
        self.entries
    }

    /// Reports the fields nobody has asked for, as errors: for our own section.
    pub fn refuse_rest(&self) {
        for entry in self.rest() {
            let name = self.path.rsplit(" → ").next().unwrap_or_default();
            let message = format!("unknown field `{}` in {name}", shown(&entry.key));
            let draft = self
                .notes
                .error("unknown-field", message)
                .at(entry.key_at)
                .path(&self.path);
            let asked = self.asked.borrow();
            match text::nearest(&entry.key, asked.iter().copied()) {
                Some(near) => drop(draft.label(format!("did you mean `{near}`?"))),
                None => {
                    let list = asked
                        .iter()
                        .map(|name| format!("`{name}`"))
                        .collect::<Vec<_>>()
                        .join(", ");
                    drop(draft.label("not known here").help(format!("known are {list}")));
                }
            }
        }
    }

    /// Reports a problem at a place in here.
    pub fn error(&self, code: &'static str, message: impl Into<String>, at: Span) -> Draft<'a> {
        self.notes.error(code, message).at(at).path(&self.path)
    }

    pub fn warning(&self, code: &'static str, message: impl Into<String>, at: Span) -> Draft<'a> {
        self.notes.warning(code, message).at(at).path(&self.path)
    }
}

/// The variable a value names that is not set.
pub(super) fn unset(node: &Node) -> Option<&str> {
    match &node.scalar()?.origin {
        Origin::Unset(name) => Some(name),
        _ => None,
    }
}

/// A quoted number or boolean is taken for what it says: LiteLLM's reader does the same.
fn meaning(scalar: &Scalar) -> Scalar {
    Scalar {
        plain: true,
        ..scalar.clone()
    }
}

/// An address without the name and password in it.
fn hide_user(text: &str) -> String {
    match text
        .split_once("://")
        .and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1)))
    {
        Some((scheme, host)) => format!("{scheme}://***@{host}"),
        None => text.to_owned(),
    }
}
