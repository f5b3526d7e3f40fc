//! Keeps secrets out of what is shown: values under a secret's name, passwords in addresses, and
//! whatever looks like a key.

use super::node::{self, Node, Value};
use super::report::Notes;
use super::text::is_secret_name;

/// The text of a config file, or of an `.env`, as it may be shown: every secret in it is starred out.
pub fn hidden(name: &str, text: &str) -> String {
    let notes = Notes::default();
    let file = notes.add_file(name, text);
    if name.ends_with(".env") {
        values(text, file, &notes);
        return notes.text(file);
    }
    lookalikes(text, file, &notes);
    match node::parse(text, file, &notes) {
        Ok(root) => {
            secrets(&root, "", false, &notes);
            // The tree knows nothing of comments.
            comments(text, file, &notes);
        }
        Err(node::Unreadable) => by_line(text, file, &notes),
    }
    notes.text(file)
}

/// All values of an `.env`: nearly everything there is a secret.
fn values(text: &str, file: u32, notes: &Notes) {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let from = line.find('=').map_or(0, |at| at + 1);
        notes.hide(file, start + from..start + line.trim_end().len().max(from));
        start += line.len();
    }
}

fn comments(text: &str, file: u32, notes: &Notes) {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        if let Some(at) = line.find('#') {
            by_line_from(line.get(at..).unwrap_or_default(), start + at, file, notes);
        }
        start += line.len();
    }
}

/// Stars out every secret that stands in the file itself, so that no snippet shows one.
pub(super) fn secrets(node: &Node, key: &str, secret: bool, notes: &Notes) {
    let secret = secret
        || is_secret_name(key)
        || matches!(
            key,
            "environment_variables" | "headers" | "extra_headers" | "vertex_credentials"
        );
    match &node.value {
        Value::Seq(items) => items.iter().for_each(|item| secrets(item, key, secret, notes)),
        Value::Map(entries) => entries
            .iter()
            .for_each(|e| secrets(&e.value, &e.key, secret, notes)),
        Value::Scalar(scalar) => {
            let named = scalar.text.contains("os.environ/") || scalar.text.starts_with("${");
            let with_user = scalar
                .text
                .split_once("://")
                .is_some_and(|(_, rest)| rest.contains('@'));
            if (secret && !named && scalar.as_bool().is_none()) || with_user {
                notes.hide(node.at.file, node.at.start as usize..node.at.end as usize);
            }
        }
    }
}

/// Stars out what looks like a key wherever it stands, in comments too.
pub(super) fn lookalikes(text: &str, file: u32, notes: &Notes) {
    for (start, _) in text.match_indices("sk-") {
        let tail = text.get(start + 3..).unwrap_or_default();
        let length = tail
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_')
            .unwrap_or(tail.len());
        if length >= 4 {
            notes.hide(file, start..start + 3 + length);
        }
    }
}

/// Without a tree there is only the look of the lines: everything behind a secret's name goes.
pub(super) fn by_line(text: &str, file: u32, notes: &Notes) {
    by_line_from(text, 0, file, notes);
}

fn by_line_from(text: &str, mut start: usize, file: u32, notes: &Notes) {
    for line in text.split_inclusive('\n') {
        let named = line.match_indices([':', '=']).map(|(at, _)| at).find(|at| {
            let before = line
                .get(..*at)
                .unwrap_or_default()
                .trim_end_matches([' ', '"', '\'']);
            let outside = |c: char| !c.is_alphanumeric() && c != '_' && c != '-';
            is_secret_name(before.rsplit(outside).next().unwrap_or_default())
        });
        let after = |mark: &str| line.find(mark).map(|at| at + mark.len());
        let with_user = after("://").filter(|at| line.get(*at..).is_some_and(|rest| rest.contains('@')));
        let spoken = ["Bearer ", "bearer ", "Basic ", "basic "]
            .into_iter()
            .filter_map(after);
        let from = named
            .map(|at| at + 1)
            .into_iter()
            .chain(with_user)
            .chain(spoken)
            .min();
        if let Some(from) = from {
            notes.hide(file, start + from..start + line.trim_end().len().max(from));
        }
        start += line.len();
    }
}
