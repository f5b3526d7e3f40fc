//! Finds and reads the config: file, includes, `.env`, environment.
//!
//! The only place that reads the environment. It takes it as a map, so that a test needs no
//! process, and hands on what it took (`Conf::env`), so that nobody else has to look.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::node::{Node, Value};
use super::own::Own;
use super::report::{Notes, Report};
use super::secret::Secret;
use super::text::shown;
use super::types::{Conf, Source, Span};
use super::{
    check, cooldown, dotenv, fallbacks, fill, hide, meters, models, node, section, settings, tracing, watch,
};

/// Largest config file, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Largest `.env` and largest secret file, in bytes.
pub(super) const MAX_SMALL_FILE: u64 = 256 << 10;
/// Most files, includes counted.
const MAX_FILES: usize = 64;
/// Deepest chain of includes.
const MAX_INCLUDE_DEPTH: usize = 8;

/// Environment variables. `Debug` shows how many, never which.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The process' own. Variables that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        Self(
            std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
        )
    }

    /// What a variable holds. An empty one counts as not set, as compose files pass on what is
    /// not there. `NAME_FILE` names a file with the value, the way Docker hands secrets over.
    pub fn get(&self, name: &str) -> Option<Secret> {
        self.text(name).map(Secret::new)
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        if let Some(value) = self.0.get(name).filter(|value| !value.is_empty()) {
            return Some(value.clone());
        }
        let file = self
            .0
            .get(&format!("{name}_FILE"))
            .filter(|file| !file.is_empty())?;
        let text = read_bounded(Path::new(file), MAX_SMALL_FILE).ok()?;
        let text = String::from_utf8(text).ok()?;
        Some(text.trim_end_matches(['\n', '\r']).to_owned()).filter(|text| !text.is_empty())
    }

    pub(super) fn fill_in(&mut self, name: String, value: String) {
        let slot = self.0.entry(name).or_default();
        if slot.is_empty() {
            *slot = value;
        }
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(vars: T) -> Self {
        Self(vars.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

impl<K: Into<String>, V: Into<String>, const N: usize> From<[(K, V); N]> for Env {
    fn from(vars: [(K, V); N]) -> Self {
        vars.into_iter().collect()
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Env({} variables)", self.0.len())
    }
}

/// A config that can be used, with the warnings and notes about it.
#[derive(Debug)]
pub struct Loaded {
    pub conf: Conf,
    pub report: Report,
}

/// Loads the config at `explicit`, or the first one found; without any, the defaults and the
/// environment make one. An error is the report, to be shown; it holds at least one error.
pub fn load(explicit: Option<&Path>, env: &Env) -> Result<Loaded, Report> {
    let notes = Notes::default();
    let found = match explicit {
        Some(path) => Some(path.to_path_buf()),
        None => search(env),
    };
    let mut conf = Conf {
        env: env.clone(),
        ..Conf::default()
    };
    let mut readable = true;
    if let Some(path) = found {
        let dotenv = path.with_file_name(".env");
        if dotenv.is_file() {
            dotenv::read(&dotenv, &mut conf.env, &notes);
            conf.source.dotenv = Some(dotenv);
        }
        let mut reader = Reader {
            notes: &notes,
            open: Vec::new(),
            read: 0,
        };
        let root = reader.file(&path, None);
        conf.source.path = Some(path);
        readable = root.is_some();
        interpret(root, &mut conf, &notes);
    } else {
        interpret(None, &mut conf, &notes);
    }
    finish(conf, notes, readable)
}

/// The same for a text that stands in no file. `include:` is refused in it.
pub fn load_text(name: &str, text: &str, env: &Env) -> Result<Loaded, Report> {
    let notes = Notes::default();
    let mut conf = Conf {
        env: env.clone(),
        ..Conf::default()
    };
    let root = parse_text(name, text, &notes);
    if let Some(Node {
        value: Value::Map(entries),
        ..
    }) = &root
        && let Some(entry) = entries.iter().find(|e| e.key == "include")
    {
        notes
            .error("include", "`include` needs a file to start from")
            .at(entry.key_at);
    }
    let readable = root.is_some();
    interpret(root, &mut conf, &notes);
    finish(conf, notes, readable)
}

fn finish(mut conf: Conf, notes: Notes, readable: bool) -> Result<Loaded, Report> {
    if readable {
        check::whole(&conf, &notes);
    }
    conf.source.files = notes.file_names();
    let report = notes.into_report();
    if report.has_errors() {
        Err(report)
    } else {
        Ok(Loaded { conf, report })
    }
}

/// Where a config is looked for, in this order.
pub fn candidates(env: &Env) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = ["config.yaml", "litellm_config.yaml", "/app/config.yaml"]
        .iter()
        .map(PathBuf::from)
        .collect();
    let home = env.text("HOME").map(|home| Path::new(&home).join(".config"));
    if let Some(dir) = env.text("XDG_CONFIG_HOME").map(PathBuf::from).or(home) {
        places.push(dir.join("tollkeeper/config.yaml"));
    }
    places.push("/etc/tollkeeper/config.yaml".into());
    places
}

fn search(env: &Env) -> Option<PathBuf> {
    // A path someone wrote down is used even when it leads nowhere: starting without it, in
    // zero-config mode, would hide the typing error.
    let named = env.text("CONFIG_FILE_PATH").map(PathBuf::from);
    named.or_else(|| candidates(env).into_iter().find(|path| path.is_file()))
}

/// Where data goes when the file says nothing.
fn data_dir(env: &Env) -> PathBuf {
    if let Some(dir) = env.text("TOLLKEEPER_DATA_DIR") {
        return dir.into();
    }
    // systemd hands the directory over; with several, the first is ours.
    if let Some(dir) = env.text("STATE_DIRECTORY") {
        return dir.split(':').next().unwrap_or_default().into();
    }
    if let Some(dir) = env.text("XDG_DATA_HOME") {
        return Path::new(&dir).join("tollkeeper");
    }
    match env.text("HOME") {
        Some(home) if home != "/root" && home != "/" => Path::new(&home).join(".local/share/tollkeeper"),
        _ => Own::default().data_dir,
    }
}

/// Turns the tree into the config, and fills in from the environment where it is silent.
fn interpret(root: Option<Node>, conf: &mut Conf, notes: &Notes) {
    let Conf {
        env,
        source: Source { path, .. },
        ..
    } = conf;
    conf.tollkeeper.data_dir = data_dir(env);
    if let Some(mut root) = root {
        hide::secrets(&root, "", false, notes);
        fill::environment_section(&mut root, env, notes);
        fill::fill_in(&mut root, env, notes, &mut Vec::new());
        let dir = path
            .as_deref()
            .and_then(Path::parent)
            .map(Path::to_path_buf)
            .unwrap_or_default();
        settings::top_level(&root, notes);
        conf.general = settings::general(&root, notes);
        conf.litellm = settings::litellm(&root, notes);
        conf.router = settings::router(&root, notes);
        conf.cooldown = cooldown::read(&root, notes);
        conf.fallbacks = fallbacks::read(&root, notes);
        (conf.models, conf.skipped) = models::read(&root, env, notes);
        meters::litellms(&root, env, notes, &mut conf.meters);
        watch::litellms(&root, env, notes, &mut conf.tollkeeper.watch);
        tracing::litellms(&root, notes, &mut conf.tollkeeper.tracing);
        section::read(&root, notes, &dir, &mut conf.tollkeeper, &mut conf.meters);
    }
    meters::environment(env, &mut conf.meters);
    tracing::environment(env, notes, &mut conf.tollkeeper.tracing);
    let general = &mut conf.general;
    let either = |first: &str, second: &str| env.get(first).or_else(|| env.get(second));
    if general.master_key.is_none() {
        general.master_key = either("TOLLKEEPER_MASTER_KEY", "LITELLM_MASTER_KEY");
        if let Some(why) = general.master_key.as_ref().and_then(settings::weakness) {
            let message = format!("the master key from the environment is weak: {why}");
            notes.warning("weak-key", message).help(settings::MAKE_A_KEY);
        }
    }
    if general.database_url.is_none() {
        general.database_url = env.get("DATABASE_URL");
    }
    if general.salt_key.is_none() {
        general.salt_key = env.get("LITELLM_SALT_KEY").filter(|salt| !salt.is_empty());
    }
}

/// Reads files into trees, includes merged.
struct Reader<'a> {
    notes: &'a Notes,
    /// The chain of files being read, to refuse a circle.
    open: Vec<PathBuf>,
    read: usize,
}

impl Reader<'_> {
    /// Reads a file and what it includes. `asked` is where another file names it.
    fn file(&mut self, path: &Path, asked: Option<Span>) -> Option<Node> {
        let name = path.display().to_string();
        let refuse = |message: String, help: &str| {
            let draft = self.notes.error("file", message).help(help);
            drop(match asked {
                Some(at) => draft.at(at),
                None => draft,
            });
        };
        let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if self.open.contains(&whole) {
            refuse(
                format!("{} includes itself", shown(&name)),
                "take one of the includes out",
            );
            return None;
        }
        if self.open.len() >= MAX_INCLUDE_DEPTH || self.read >= MAX_FILES {
            let help = format!("at most {MAX_FILES} files, {MAX_INCLUDE_DEPTH} deep");
            refuse(format!("too many files are included, at {}", shown(&name)), &help);
            return None;
        }
        self.read += 1;
        let bytes = match read_bounded(path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(why) => {
                let help = match why.starts_with("permission") {
                    true => "let the user that the gateway runs as read it, or run this as that user",
                    false => "check the path; -c FILE names another file",
                };
                refuse(format!("cannot read {}: {why}", shown(&name)), help);
                return None;
            }
        };
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let before = error.as_bytes().get(..good).unwrap_or_default();
                let line = before.iter().filter(|b| **b == b'\n').count() + 1;
                let message = format!(
                    "{} is not UTF-8 text: line {line} holds a byte that is none",
                    shown(&name)
                );
                refuse(message, "save the file as UTF-8");
                return None;
            }
        };
        let mut root = parse_text(&name, &text, self.notes)?;
        self.open.push(whole);
        self.includes(&mut root, path.parent().unwrap_or(Path::new("")));
        self.open.pop();
        Some(root)
    }

    fn includes(&mut self, root: &mut Node, dir: &Path) {
        let Value::Map(entries) = &mut root.value else {
            return;
        };
        let Some(index) = entries.iter().position(|e| e.key == "include") else {
            return;
        };
        let include = entries.remove(index);
        let items = match include.value.value {
            Value::Seq(items) => items,
            Value::Scalar(_) => vec![include.value],
            Value::Map(_) => {
                let wrong = self
                    .notes
                    .error("type", "`include` must be a list of files, not a mapping");
                drop(wrong.at(include.key_at));
                return;
            }
        };
        for item in items {
            match item.scalar().filter(|s| !s.is_null()) {
                Some(scalar) => {
                    if let Some(included) = self.file(&dir.join(&scalar.text), Some(item.at)) {
                        merge(root, included, self.notes);
                    }
                }
                None => {
                    let message = format!("`include` holds {}; each item must be a file's name", item.kind());
                    drop(self.notes.error("type", message).at(item.at));
                }
            }
        }
    }
}

/// Adds what an included file says: lists grow, mappings gain keys, and what is set already stays.
fn merge(into: &mut Node, from: Node, notes: &Notes) {
    let (Value::Map(entries), Value::Map(added)) = (&mut into.value, from.value) else {
        return;
    };
    for entry in added {
        match entries.iter_mut().find(|e| e.key == entry.key) {
            None => entries.push(entry),
            Some(there) => match (&mut there.value.value, entry.value.value) {
                (Value::Seq(items), Value::Seq(more)) => items.extend(more),
                (Value::Map(_), more @ Value::Map(_)) => {
                    merge(
                        &mut there.value,
                        Node {
                            value: more,
                            at: entry.value.at,
                        },
                        notes,
                    );
                }
                _ => {
                    let message = format!("`{}` is set in the including file too", shown(&entry.key));
                    drop(
                        notes
                            .warning("duplicate-key", message)
                            .at(entry.key_at)
                            .label("without effect"),
                    );
                }
            },
        }
    }
}

fn parse_text(name: &str, text: &str, notes: &Notes) -> Option<Node> {
    let file = notes.add_file(name, text);
    hide::lookalikes(text, file, notes);
    match node::parse(text, file, notes) {
        Ok(root) if matches!(root.value, Value::Map(_)) => Some(root),
        Ok(root) => {
            let message = format!("a config is a mapping of sections, this is {}", root.kind());
            drop(
                notes
                    .error("type", message)
                    .at(root.at)
                    .help("start with `model_list:`"),
            );
            None
        }
        Err(node::Unreadable) => {
            hide::by_line(text, file, notes);
            None
        }
    }
}

/// The environment, filled up from the `.env` beside a file; one that cannot be read adds nothing.
pub fn with_dotenv(env: &Env, beside: &Path) -> Env {
    let mut env = env.clone();
    let file = beside.with_file_name(".env");
    if file.is_file() {
        dotenv::read(&file, &mut env, &Notes::default());
    }
    env
}

/// What a config file holds; None = it cannot be read.
pub fn read_file(path: &Path) -> Option<Vec<u8>> {
    read_bounded(path, MAX_FILE).ok()
}

/// The bytes of a file, `most` at the most. `Err` says why not, without the path.
pub fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let file = File::open(path).map_err(plainly)?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Err("it is a directory".into());
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(plainly)?;
    if bytes.len() as u64 > most {
        return Err(format!("it is larger than {} KiB", most >> 10));
    }
    Ok(bytes)
}

/// An I/O error without the system's number, so that it reads the same everywhere.
fn plainly(error: std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}
