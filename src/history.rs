//! What the config's files held, kept in the data directory so that there is a way back. Only the process'
//! user can read it: the files hold secrets. What is shown of it has them starred out.

use crate::conf::hidden;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Most versions that are kept.
const MOST: usize = 50;
/// The largest version, in bytes.
const MAX_VERSION: usize = 16 << 20;
/// Most cells of the table that a difference is found with; beyond it a change is shown as one piece.
const MOST_CELLS: usize = 4_000_000;
/// Unchanged lines that are shown around a change.
const AROUND: usize = 2;
/// The longest difference that is shown, in bytes.
const MAX_SHOWN: usize = 64 << 10;

/// Files and what they hold; None = it could not be read.
pub type Files = Vec<(PathBuf, Option<Vec<u8>>)>;

/// The versions in `<data_dir>/configs`, each in a file of its own.
#[derive(Clone, Debug)]
pub struct History {
    dir: PathBuf,
}

/// What the config was at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Counts up over all processes.
    pub number: u64,
    pub at: Timestamp,
    /// What brought it about, see [`Origin`](crate::reload::Origin).
    pub origin: String,
    pub files: Vec<Kept>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub path: PathBuf,
    pub text: String,
}

impl History {
    pub fn new(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join("configs"),
        }
    }

    /// Keeps what the files hold, unless it is what the newest version holds. Returns the version's number;
    /// None = there are no files.
    pub fn keep(&self, origin: &str, files: &Files) -> io::Result<Option<u64>> {
        let mut kept = Vec::with_capacity(files.len());
        let mut size = 0;
        for (path, bytes) in files {
            let Some(bytes) = bytes else { continue };
            size += bytes.len();
            let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
            kept.push(Kept {
                path: std::path::absolute(path)?,
                text: text.into(),
            });
        }
        if kept.is_empty() {
            return Ok(None);
        }
        if size > MAX_VERSION {
            return Err(io::Error::other(format!(
                "its files hold more than {MAX_VERSION} bytes"
            )));
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        let numbers = self.numbers()?;
        let newest = numbers.last().copied().unwrap_or(0);
        if let Some(version) = self.get(newest)?
            && version.files == kept
        {
            return Ok(Some(newest));
        }
        let text = json!({
            "at": Timestamp::now().to_string(),
            "origin": origin,
            "files": kept.iter().map(|k| json!({"path": k.path, "text": k.text})).collect::<Vec<_>>(),
        })
        .to_string();
        let number = self.create(newest + 1, text.as_bytes())?;
        let surplus = (numbers.len() + 1).saturating_sub(MOST);
        for old in numbers.iter().take(surplus) {
            let _ = fs::remove_file(self.file(*old));
        }
        Ok(Some(number))
    }

    /// Under the first free number from `number` on: another process may keep one at the same time.
    fn create(&self, number: u64, bytes: &[u8]) -> io::Result<u64> {
        let new = self
            .dir
            .join(format!(".{}.{:08x}", std::process::id(), rand::random::<u32>()));
        write_private(&new, bytes, 0o600)?;
        let made = (number..number.saturating_add(MOST as u64)).find_map(|n| {
            // A link fails where the name is taken, and the file is whole from the first moment.
            match fs::hard_link(&new, self.file(n)) {
                Ok(()) => Some(Ok(n)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => None,
                Err(e) => Some(Err(e)),
            }
        });
        let _ = fs::remove_file(&new);
        made.unwrap_or_else(|| Err(io::Error::other("no number is free")))
    }

    fn file(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:08}.json"))
    }

    /// Rising.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut numbers: Vec<u64> = entries
            .filter_map(|e| e.ok()?.file_name().to_str()?.strip_suffix(".json")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    pub fn get(&self, number: u64) -> io::Result<Option<Version>> {
        match fs::read(self.file(number)) {
            Ok(bytes) => Ok(read(number, &bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Newest first. What cannot be read is left out.
    pub fn list(&self) -> io::Result<Vec<Version>> {
        let numbers = self.numbers()?;
        Ok(numbers
            .into_iter()
            .rev()
            .take(MOST)
            .filter_map(|n| self.get(n).ok().flatten())
            .collect())
    }
}

fn read(number: u64, bytes: &[u8]) -> Option<Version> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let text = |of: &Value, name: &str| Some(of.get(name)?.as_str()?.to_string());
    let files = value.get("files")?.as_array()?;
    Some(Version {
        number,
        at: text(&value, "at")?.parse().ok()?,
        origin: text(&value, "origin")?,
        files: files
            .iter()
            .map(|f| {
                Some(Kept {
                    path: text(f, "path")?.into(),
                    text: text(f, "text")?,
                })
            })
            .collect::<Option<_>>()?,
    })
}

impl Version {
    /// Writes the files back to where they were. `Err` is a sentence; then none of them was changed, or
    /// those that were are named.
    pub fn put_back(&self) -> Result<(), String> {
        let files = self
            .files
            .iter()
            .map(|f| (f.path.clone(), Some(f.text.clone().into_bytes())));
        restore(&files.collect())
    }

    /// What differs from the version before, secrets starred out; empty = nothing that is shown.
    pub fn difference(&self, before: Option<&Version>) -> String {
        let none = Vec::new();
        let old = before.map_or(&none, |b| &b.files);
        let mut out = String::new();
        let text = |files: &[Kept], path: &Path| {
            let found = files.iter().find(|f| f.path == path);
            found.map(|f| f.text.clone()).unwrap_or_default()
        };
        let mut paths: Vec<&Path> = self.files.iter().chain(old).map(|f| f.path.as_path()).collect();
        paths.sort_unstable();
        paths.dedup();
        for path in paths {
            let (was, is) = (text(old, path), text(&self.files, path));
            if was == is {
                continue;
            }
            let name = path.display().to_string();
            let shown = lines_of_difference(&hidden(&name, &was), &hidden(&name, &is));
            let _ = writeln!(out, "--- {name}");
            out.push_str(if shown.is_empty() {
                "only what is hidden differs\n"
            } else {
                &shown
            });
        }
        if out.len() > MAX_SHOWN {
            let mut end = MAX_SHOWN;
            while !out.is_char_boundary(end) {
                end -= 1;
            }
            out.truncate(end);
            out.push_str("\n… the rest is not shown\n");
        }
        out
    }
}

/// Writes files, each whole or not at all, with the rights that they have now.
pub fn restore(files: &Files) -> Result<(), String> {
    let mut ready = Vec::new();
    let prepared = files.iter().try_for_each(|(path, bytes)| {
        let Some(bytes) = bytes else { return Ok(()) };
        // A link stays one: what it leads to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        if fs::read(&path).is_ok_and(|now| now == *bytes) {
            return Ok(());
        }
        let said = |e: io::Error| format!("{} cannot be written: {e}", path.display());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let new = path.with_file_name(format!(".{name}.{:08x}", rand::random::<u32>()));
        let mode = fs::metadata(&path).map_or(0o600, |m| m.mode() & 0o777);
        ready.push((new.clone(), path.clone()));
        write_private(&new, bytes, mode).map_err(said)
    });
    let done = prepared.and_then(|()| {
        ready.iter().try_for_each(|(new, path)| {
            fs::rename(new, path).map_err(|e| format!("{} cannot be replaced: {e}", path.display()))
        })
    });
    if done.is_err() {
        for (new, _) in &ready {
            let _ = fs::remove_file(new);
        }
    }
    done
}

fn write_private(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// `- ` and `+ ` before what went and came, two blanks before what stands around it.
fn lines_of_difference(was: &str, is: &str) -> String {
    let (was, is): (Vec<&str>, Vec<&str>) = (was.lines().collect(), is.lines().collect());
    let same = was.iter().zip(&is).take_while(|(a, b)| a == b).count();
    let left = was.len().min(is.len()) - same;
    let tail = was
        .iter()
        .rev()
        .zip(is.iter().rev())
        .take(left)
        .take_while(|(a, b)| a == b)
        .count();
    let middle = |lines: &[&'_ str]| -> (usize, usize) { (same, lines.len() - tail) };
    let ((a, b), (c, d)) = (middle(&was), middle(&is));
    let steps = steps(
        was.get(a..b).unwrap_or_default(),
        is.get(c..d).unwrap_or_default(),
    );
    if steps.is_empty() {
        return String::new();
    }
    let around = |lines: &[&str]| lines.iter().map(|l| (' ', l.to_string())).collect::<Vec<_>>();
    let mut all = around(was.get(same.saturating_sub(AROUND)..same).unwrap_or_default());
    all.extend(steps);
    all.extend(around(
        was.get(b..(b + AROUND).min(was.len())).unwrap_or_default(),
    ));
    // Long stretches between changes are left out.
    let changed: Vec<bool> = all.iter().map(|(mark, _)| *mark != ' ').collect();
    let mut out = String::new();
    let mut gap = false;
    for (at, (mark, line)) in all.iter().enumerate() {
        let near = changed
            .get(at.saturating_sub(AROUND)..(at + AROUND + 1).min(changed.len()))
            .is_some_and(|window| window.contains(&true));
        if near {
            let _ = writeln!(out, "{mark} {line}");
        } else if !gap {
            out.push_str("  …\n");
        }
        gap = !near;
    }
    out
}

/// The shortest way from one list of lines to the other, by their longest common subsequence.
fn steps(was: &[&str], is: &[&str]) -> Vec<(char, String)> {
    let whole = |mark: char, lines: &[&str]| lines.iter().map(|l| (mark, l.to_string())).collect::<Vec<_>>();
    let width = is.len() + 1;
    if was.is_empty() || is.is_empty() || (was.len() + 1).saturating_mul(width) > MOST_CELLS {
        let mut out = whole('-', was);
        out.extend(whole('+', is));
        return out;
    }
    // `common[i * width + j]`: how many lines was[i..] and is[j..] have in common, in order.
    let mut common = vec![0_u32; (was.len() + 1) * width];
    let at = |table: &[u32], i: usize, j: usize| table.get(i * width + j).copied().unwrap_or(0);
    for (i, old) in was.iter().enumerate().rev() {
        for (j, new) in is.iter().enumerate().rev() {
            let best = if old == new {
                at(&common, i + 1, j + 1) + 1
            } else {
                at(&common, i + 1, j).max(at(&common, i, j + 1))
            };
            if let Some(cell) = common.get_mut(i * width + j) {
                *cell = best;
            }
        }
    }
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    loop {
        match (was.get(i), is.get(j)) {
            (Some(old), Some(new)) if old == new => {
                out.push((' ', old.to_string()));
                (i, j) = (i + 1, j + 1);
            }
            (Some(old), new) if new.is_none() || at(&common, i + 1, j) >= at(&common, i, j + 1) => {
                out.push(('-', old.to_string()));
                i += 1;
            }
            (_, Some(new)) => {
                out.push(('+', new.to_string()));
                j += 1;
            }
            _ => return out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path, text: &str) -> Files {
        vec![(dir.join("config.yaml"), Some(text.as_bytes().to_vec()))]
    }

    #[test]
    fn versions_are_kept_once_privately_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        assert_eq!(history.keep("start", &Files::new()).unwrap(), None);
        assert_eq!(
            history.keep("start", &files(dir.path(), "a: 0")).unwrap(),
            Some(1)
        );
        assert_eq!(history.keep("api", &files(dir.path(), "a: 0")).unwrap(), Some(1));
        for n in 1..60 {
            let kept = history
                .keep("file", &files(dir.path(), &format!("a: {n}")))
                .unwrap();
            assert_eq!(kept, Some(n + 1));
        }
        let list = history.list().unwrap();
        assert_eq!(
            (list.len(), list[0].number, list[0].files[0].text.as_str()),
            (50, 60, "a: 59")
        );
        assert_eq!(history.get(1).unwrap(), None);
        for entry in fs::read_dir(dir.path().join("configs")).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
        }
        // What somebody broke is left out.
        fs::write(history.file(60), "{").unwrap();
        assert_eq!(history.list().unwrap().len(), 49);
    }

    #[test]
    fn files_come_back_with_their_rights_and_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real.yaml"), dir.path().join("config.yaml"));
        fs::write(&real, "new").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        restore(&vec![(link.clone(), Some(b"old".to_vec()))]).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "old");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o777, 0o640);
        let nowhere = vec![
            (real.clone(), Some(b"other".to_vec())),
            (dir.path().join("no/where"), Some(b"x".to_vec())),
        ];
        assert!(restore(&nowhere).unwrap_err().contains("no/where"));
        assert_eq!(
            fs::read_to_string(&real).unwrap(),
            "old",
            "nothing is done by halves"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn differences_show_lines_and_no_secret() {
        let version = |number, text: &str| Version {
            number,
            at: Timestamp::UNIX_EPOCH,
            origin: "file".into(),
            files: vec![Kept {
                path: "/etc/config.yaml".into(),
                text: text.into(),
            }],
        };
        let base = "general_settings:\n  master_key: sk-one-secret-key\n  a: 1\n  b: 2\n# password: hunter2\n\
                    environment_variables:\n  X: first-value\nmodel_list:\n  - model_name: m\n    litellm_params:\n      \
                    model: openai/x\n      vertex_credentials: |\n        {\"k\": \"block-secret\"}\n";
        let one = version(1, base);
        let two = version(2, &base.replace("a: 1", "a: 3\n  c: 4"));
        let shown = two.difference(Some(&one));
        assert!(
            shown.contains("- ") && shown.contains("-   a: 1\n") && shown.contains("+   a: 3\n+   c: 4\n"),
            "{shown}"
        );
        let three = version(3, &base.replace("one", "two"));
        assert!(
            three
                .difference(Some(&one))
                .contains("only what is hidden differs")
        );
        let all = one.difference(None);
        for secret in ["one-secret", "hunter2", "first-value", "block-secret"] {
            assert!(!all.contains(secret), "{secret} shows: {all}");
        }
        assert!(all.contains("model_name: m"));
        assert_eq!(one.difference(Some(&one)), "");
        let broken = version(4, "a: [\n  api_key: very-private\n");
        assert!(!broken.difference(None).contains("very-private"));
        let env = hidden("/x/.env", "A=one\nexport B=two\nthree\n");
        assert!(!["one", "two", "three"].iter().any(|s| env.contains(s)) && env.contains("A="));
    }
}
