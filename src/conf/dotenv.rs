//! Reads a `.env` file: `NAME=value` lines, quoted or not, comments, `export` in front.

use std::path::Path;

use super::load::{Env, MAX_SMALL_FILE, read_bounded};
use super::report::Notes;

/// Reads `NAME=value` lines; what the real environment holds already stays.
pub(super) fn read(path: &Path, env: &mut Env, notes: &Notes) {
    let text = read_bounded(path, MAX_SMALL_FILE)
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".into()));
    let text = match text {
        Ok(text) => text,
        Err(why) => {
            drop(notes.error("env-file", format!("cannot read {}: {why}", path.display())));
            return;
        }
    };
    let mut lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let named = line
            .split_once('=')
            .map(|(name, value)| (name.trim(), value.trim()));
        let Some((name, value)) = named.filter(|(name, _)| is_name(name)) else {
            // The line may hold a secret: its number is enough.
            let message = format!("{}:{}: this line is not NAME=value", path.display(), number + 1);
            drop(notes.warning("env-file", message).help("it is left out"));
            continue;
        };
        let value = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let mut body = value.get(1..).unwrap_or_default().to_owned();
                // A quoted value goes on over lines until its quote: keys in PEM form do.
                while closing(&body, quote).is_none() {
                    let Some((_, more)) = lines.next() else { break };
                    body.push('\n');
                    body.push_str(more);
                }
                let end = closing(&body, quote).unwrap_or(body.len());
                let inner = body.get(..end).unwrap_or_default();
                if quote == '"' {
                    unescape(inner)
                } else {
                    inner.to_owned()
                }
            }
            _ => value.split(" #").next().unwrap_or_default().trim_end().to_owned(),
        };
        env.fill_in(name.to_owned(), value);
    }
}

fn closing(body: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in body.char_indices() {
        match c {
            '\\' if quote == '"' && !escaped => escaped = true,
            c if c == quote && !escaped => return Some(i),
            _ => escaped = false,
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some('t') => out.push('\t'),
                Some(other @ ('"' | '\\' | '$')) => out.push(other),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            (c, false) => out.push(c),
        }
    }
    out
}

pub(super) fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
