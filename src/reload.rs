//! A new config without a restart: read, check, build, swap. What cannot be used changes nothing.
//!
//! A generation is made of the config's files, the environment as it was at the start, and the models that
//! are kept in the store. Requests in flight finish on the one they began with. What the files held is kept
//! in [`History`], from where it can be put back.

use crate::alerts::Alerts;
use crate::conf::{self, Conf, Env, ModelEntry, Report, Severity};
use crate::history::{Files, History, Version};
use crate::proxy::models::{self, Models};
use crate::snapshot::Snapshot;
use crate::store::seal::Seal;
use crate::store::{Doc, DocFilter, MAX_ROWS, News, Page, Store, StoreError, Table};
use crate::tls::Tls;
use crate::{discover, master_key};
use arc_swap::ArcSwap;
use filters::contract::Registry;
use filters::contract::ports::Ports;
use filters::model::key::MasterKey;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Most models that are taken over from the store.
pub const MOST_STORED: usize = 10_000;
/// How often files that change while they are read are read again.
const MOST_READINGS: u32 = 3;
/// After a change of a file, and after news from the store: more of it is usually on its way.
const QUIET: Duration = Duration::from_millis(200);
/// How often the files are looked at, for places where nobody tells of changes (network drives).
const LOOK: Duration = Duration::from_secs(2);

/// Why a generation was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Start,
    Signal,
    File,
    Api,
    /// The models in the store changed.
    Store,
    /// An earlier config was put back.
    Rollback,
}

impl Origin {
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Start => "start",
            Origin::Signal => "signal",
            Origin::File => "file",
            Origin::Api => "api",
            Origin::Store => "database",
            Origin::Rollback => "rollback",
        }
    }
}

/// Which config serves, and what became of the last attempt to change it.
#[derive(Clone, Debug)]
pub struct Status {
    /// Counts up with each config that was taken into use.
    pub generation: u64,
    pub applied_at: Timestamp,
    pub origin: Origin,
    pub deployments: usize,
    /// The number of the files that serve in the history of configs; None: there are no files, or they
    /// could not be kept.
    pub version: Option<u64>,
    /// Settings that differ from those the process started with, and wait for a restart.
    pub restart: Vec<&'static str>,
    /// The last attempt failed: when, and why, with lines.
    pub failed: Option<(Timestamp, String)>,
}

/// What a reload did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub generation: u64,
    /// Nothing differed, so nothing was done.
    pub unchanged: bool,
    /// Names of deployments, as `model (id)`.
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// Those that are there before and after, and differ.
    pub changed: Vec<String>,
    /// Sections of the config that differ, models apart.
    pub sections: Vec<&'static str>,
    /// Settings that wait for a restart.
    pub restart: Vec<&'static str>,
    /// See [`Status::version`].
    pub version: Option<u64>,
}

/// Why an earlier config was not put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotBack {
    /// There is no such version.
    Unknown,
    /// Everything is as it was. The sentence says why.
    Refused(String),
}

/// Makes generations. One at a time.
pub struct Reload {
    /// The file that serves; None: the servers that are found on this machine.
    path: Option<PathBuf>,
    env: Env,
    registry: Registry,
    ports: Ports,
    snapshot: Arc<ArcSwap<Snapshot>>,
    store: Arc<dyn Store>,
    seal: Seal,
    history: History,
    /// What the process started with, of what is read only then.
    fixed: Fixed,
    /// Where the process keeps its files, whatever the config says meanwhile.
    data_dir: PathBuf,
    tls: Option<Arc<Tls>>,
    alerts: Arc<Alerts>,
    turn: tokio::sync::Mutex<Turn>,
    status: ArcSwap<Status>,
}

struct Turn {
    /// The files that make the config, and what they held when they were last looked at.
    files: Vec<PathBuf>,
    held: Digested,
    /// What the files said when they could last be used, and their digest then. Models of the store are not
    /// in it.
    conf: Arc<Conf>,
    conf_of: Digested,
    /// The models of the store, as far as they could be read.
    stored: Vec<Doc>,
    /// Whether they could be read at all so far.
    stored_read: bool,
    /// What was made of each, by its id and version.
    built: HashMap<String, (i64, Result<ModelEntry, String>)>,
    /// What serves was made of this.
    serves: Digested,
}

type Digested = [u8; 32];

/// Settings that are read once, at the start, by name.
type Fixed = Vec<(&'static str, String)>;

/// What a reload is made from.
pub struct Parts {
    pub path: Option<PathBuf>,
    pub env: Env,
    pub registry: Registry,
    pub ports: Ports,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub store: Arc<dyn Store>,
    /// Opens what is sealed in the store.
    pub seal: Seal,
    /// What `snapshot` was made of.
    pub conf: Conf,
    pub data_dir: PathBuf,
    /// The certificates of the listeners, if any speaks TLS.
    pub tls: Option<Arc<Tls>>,
    /// Who is told of what goes wrong.
    pub alerts: Arc<Alerts>,
}

impl Reload {
    /// The snapshot of `parts` serves already, as the first generation.
    pub fn new(parts: Parts) -> Self {
        let deployments = parts.snapshot.load().models.deployments().count();
        let files = parts.conf.source.paths();
        let held = contents(&files);
        let history = History::new(&parts.data_dir);
        let version = keep(&history, Origin::Start, &held);
        let held = digest(&held);
        Self {
            path: parts.path,
            env: parts.env,
            registry: parts.registry,
            ports: parts.ports,
            snapshot: parts.snapshot,
            store: parts.store,
            seal: parts.seal,
            history,
            fixed: fixed(&parts.conf),
            data_dir: parts.data_dir,
            tls: parts.tls,
            alerts: parts.alerts,
            turn: tokio::sync::Mutex::new(Turn {
                held,
                files,
                conf: Arc::new(parts.conf),
                conf_of: held,
                stored: Vec::new(),
                stored_read: false,
                built: HashMap::new(),
                serves: whole(&held, &[]),
            }),
            status: ArcSwap::from_pointee(Status {
                generation: 1,
                applied_at: Timestamp::now(),
                origin: Origin::Start,
                deployments,
                version,
                restart: Vec::new(),
                failed: None,
            }),
        }
    }

    /// What serves now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Seals what goes into the store.
    pub fn seal(&self) -> &Seal {
        &self.seal
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    /// The file that serves; None in zero-config mode.
    pub fn path(&self) -> Option<&std::path::Path> {
        self.path.as_deref()
    }

    pub fn status(&self) -> Arc<Status> {
        self.status.load_full()
    }

    /// Reads everything again and takes it into use; only the store's models where these are what changed.
    /// `Err` says why not, with lines: the old one serves on.
    pub async fn apply(&self, origin: Origin) -> Result<Applied, String> {
        let mut turn = self.turn.lock().await;
        self.apply_in(&mut turn, origin).await
    }

    async fn apply_in(&self, turn: &mut Turn, origin: Origin) -> Result<Applied, String> {
        let old_conf = Arc::clone(&turn.conf);
        let outcome = self.make(turn, origin).await;
        let before = self.status();
        let (snapshot, files) = match outcome {
            Ok(made) => made,
            Err(why) => {
                log::error!(
                    "event=config_refused origin={} generation={} stays: {why}",
                    origin.as_str(),
                    before.generation
                );
                self.status.store(Arc::new(Status {
                    failed: Some((Timestamp::now(), why.clone())),
                    ..(*before).clone()
                }));
                return Err(why);
            }
        };
        let restart = differing(&self.fixed, &fixed(&turn.conf));
        let version = match files {
            Some(files) => {
                let history = self.history.clone();
                let kept = tokio::task::spawn_blocking(move || keep(&history, origin, &files));
                kept.await.ok().flatten().or(before.version)
            }
            None => before.version,
        };
        let Some(mut snapshot) = snapshot else {
            // After a failure the files are back at what serves. News of the store say nothing of them.
            let failed = before.failed.clone().filter(|_| origin == Origin::Store);
            self.status.store(Arc::new(Status {
                failed,
                version,
                ..(*before).clone()
            }));
            return Ok(Applied {
                generation: before.generation,
                unchanged: true,
                added: Vec::new(),
                removed: Vec::new(),
                changed: Vec::new(),
                sections: Vec::new(),
                restart,
                version,
            });
        };
        let old = self.snapshot.load_full();
        snapshot.continue_from(&old);
        let mut applied = difference(&old.models, &snapshot.models, before.generation + 1);
        applied.sections = differing(&sections(&old_conf), &sections(&turn.conf));
        applied.restart = restart.clone();
        applied.version = version;
        let failed = before.failed.clone().filter(|_| origin == Origin::Store);
        self.status.store(Arc::new(Status {
            generation: applied.generation,
            applied_at: Timestamp::now(),
            origin,
            deployments: snapshot.models.deployments().count(),
            version,
            restart,
            failed,
        }));
        self.snapshot.store(Arc::new(snapshot));
        crate::telemetry::log::apply(&turn.conf.tollkeeper.log);
        self.alerts.apply(&turn.conf.tollkeeper.watch.alerts);
        log::info!(
            "event=config_applied generation={} origin={} added={} removed={} changed={}",
            applied.generation,
            origin.as_str(),
            applied.added.len(),
            applied.removed.len(),
            applied.changed.len()
        );
        if !applied.restart.is_empty() {
            log::warn!(
                "event=restart_needed settings={} cause=\"they are read when the process starts\"",
                applied.restart.join(",")
            );
        }
        Ok(applied)
    }

    /// Puts the files of an earlier config in the place of the present ones, and takes them into use. The
    /// present ones are kept before, whatever is in them.
    pub async fn roll_back(&self, number: u64) -> Result<Applied, NotBack> {
        let mut turn = self.turn.lock().await;
        let history = self.history.clone();
        let failed = |e: &dyn std::fmt::Display| NotBack::Refused(e.to_string());
        let found = tokio::task::spawn_blocking(move || history.get(number)).await;
        let version: Version = match found.map_err(|e| failed(&e))? {
            Ok(Some(version)) => version,
            Ok(None) => return Err(NotBack::Unknown),
            Err(e) => return Err(failed(&e)),
        };
        let known: Vec<PathBuf> = version.files.iter().map(|f| f.path.clone()).collect();
        let history = self.history.clone();
        let written = tokio::task::spawn_blocking(move || {
            let present = contents(&known);
            keep(&history, Origin::Rollback, &present);
            version.put_back().map(|()| present)
        });
        let present = match written.await {
            Ok(Ok(present)) => present,
            Ok(Err(why)) => return Err(NotBack::Refused(why)),
            Err(e) => return Err(failed(&e)),
        };
        match self.apply_in(&mut turn, Origin::Rollback).await {
            Ok(applied) => Ok(applied),
            Err(why) => {
                let restored = tokio::task::spawn_blocking(move || crate::history::restore(&present)).await;
                turn.held = digest(&contents(&turn.files));
                match restored {
                    Ok(Ok(())) => Err(NotBack::Refused(why)),
                    Ok(Err(e)) => Err(NotBack::Refused(format!("{why}\nThe files stay put back: {e}"))),
                    Err(e) => Err(failed(&e)),
                }
            }
        }
    }

    /// A new snapshot, or None where nothing differs from what serves; and the files, where they were read.
    async fn make(
        &self,
        turn: &mut Turn,
        origin: Origin,
    ) -> Result<(Option<Snapshot>, Option<Files>), String> {
        let (files_conf, conf_of, files) = match origin {
            Origin::Store => (Arc::clone(&turn.conf), turn.conf_of, None),
            _ => {
                let (conf, files) = self.read_whole(turn).await?;
                (Arc::new(conf), digest(&files), Some(files))
            }
        };
        match self.stored().await {
            Ok(docs) => {
                turn.stored = docs;
                turn.stored_read = true;
            }
            // The files can be taken into use all the same; we come back here when the store answers.
            Err(e) => {
                turn.stored_read = false;
                log::warn!("event=models_not_read cause=\"{e}\" those read before stay");
            }
        }
        let all = whole(&conf_of, &turn.stored);
        let looked_for = self.path.is_none() && origin != Origin::Store;
        let snapshot = if !looked_for && turn.serves == all {
            None
        } else {
            let mut conf = (*files_conf).clone();
            self.take_in(&mut conf, turn);
            let mut ports = self.ports.clone();
            let key = master_key::find(&conf, &self.data_dir).map_err(|e| e.to_string())?;
            ports.master = Some(MasterKey::new(key.secret.expose().into()));
            let snapshot = Snapshot::new(&conf, &self.registry, &ports)?;
            if let Some(tls) = self.tls.as_ref().filter(|_| origin != Origin::Store) {
                tls.apply(&conf.tollkeeper.tls)?;
            }
            Some(snapshot)
        };
        turn.serves = all;
        turn.conf = files_conf;
        turn.conf_of = conf_of;
        Ok((snapshot, files))
    }

    /// Reads the config from its files, and what they hold, such that the two belong together.
    async fn read_whole(&self, turn: &mut Turn) -> Result<(Conf, Files), String> {
        let mut held = read_off(&turn.files).await?;
        for _ in 0..MOST_READINGS {
            // What was seen is seen, be it of use or not: a broken file is told of once.
            turn.held = digest(&held);
            let conf = self.read().await?;
            turn.files = conf.source.paths();
            let after = read_off(&turn.files).await?;
            if after == held {
                return Ok((conf, held));
            }
            held = after;
        }
        Err("the files change while they are read; try again".into())
    }

    async fn read(&self) -> Result<Conf, String> {
        let (path, env) = (self.path.clone(), self.env.clone());
        let found = match &path {
            Some(_) => None,
            None => Some(discover::servers().await),
        };
        let loading = tokio::task::spawn_blocking(move || {
            let told = |r: Report| r.render(false);
            let mut conf = conf::load(path.as_deref(), &env).map_err(told)?.conf;
            if let Some(servers) = found {
                let text = discover::config(&servers, env.get("OPENAI_API_KEY").is_some());
                let found = conf::load_text("discovered servers", &text, &env).map_err(told)?;
                conf.models = found.conf.models;
            }
            Ok(conf)
        });
        loading.await.map_err(|e| e.to_string())?
    }

    async fn stored(&self) -> Result<Vec<Doc>, StoreError> {
        let mut docs: Vec<Doc> = Vec::new();
        while docs.len() < MOST_STORED {
            let filter = DocFilter {
                page: Page {
                    limit: MAX_ROWS,
                    offset: docs.len() as u64,
                },
                ..DocFilter::default()
            };
            let page = self.store.documents(Table::Model, &filter).await?;
            let last = page.docs.len() < MAX_ROWS as usize;
            docs.extend(page.docs);
            if last {
                break;
            }
        }
        docs.truncate(MOST_STORED);
        // By age, as a list in a file grows.
        docs.sort_by(|a, b| (a.created_at_micros, &a.id).cmp(&(b.created_at_micros, &b.id)));
        Ok(docs)
    }

    /// Adds the stored models that can be used. One that cannot must not take the others with it.
    fn take_in(&self, conf: &mut Conf, turn: &mut Turn) {
        let mut taken: std::collections::HashSet<String> = conf.models.iter().map(models::id).collect();
        let mut built = HashMap::with_capacity(turn.stored.len());
        for doc in &turn.stored {
            let entry = match turn.built.remove(&doc.id) {
                Some((version, entry)) if version == doc.version && version > 0 => entry,
                _ => {
                    let entry = self.entry(doc, conf);
                    if let Err(why) = &entry {
                        log::warn!("event=model_left_out id={:?} cause={why:?}", doc.id);
                    }
                    entry
                }
            };
            if let Ok(entry) = &entry {
                if taken.insert(models::id(entry)) {
                    conf.models.push(entry.clone());
                } else {
                    log::warn!(
                        "event=model_left_out id={:?} cause=\"the config has this id\"",
                        doc.id
                    );
                }
            }
            built.insert(doc.id.clone(), (doc.version, entry));
        }
        turn.built = built;
    }

    /// Whether a stored model can be used, and how. `Err` is what is wrong with it.
    pub async fn check(&self, doc: &Doc) -> Result<ModelEntry, String> {
        let conf = Arc::clone(&self.turn.lock().await.conf);
        self.entry(doc, &conf)
    }

    /// A stored model as the config would have it. `Err` says what is wrong with it, in one line or more.
    fn entry(&self, doc: &Doc, of: &Conf) -> Result<ModelEntry, String> {
        let mut fields = doc.fields.clone();
        for (name, value) in &mut fields {
            unseal(name, value, &self.seal).map_err(|name| {
                format!("its {name} cannot be decrypted: was it stored under another salt key?")
            })?;
        }
        let info = fields
            .entry("model_info".to_string())
            .or_insert_with(|| json!({}));
        if let Value::Object(info) = info {
            info.insert("id".into(), doc.id.clone().into());
            if info
                .get("team_id")
                .is_some_and(|t| !t.is_null() && *t != json!(""))
            {
                return Err(
                    "model_info.team_id: models of one team alone are not supported; give the team's keys the \
                     model by its name"
                        .into(),
                );
            }
        }
        let entry: BTreeMap<&str, &Value> = ["model_name", "litellm_params", "model_info"]
            .into_iter()
            .filter_map(|name| Some((name, fields.get(name)?)))
            .collect();
        // JSON is YAML, so a stored model goes the way of one in a file.
        let text = json!({"model_list": [entry]}).to_string();
        let mut conf = conf::load_text("database", &text, &of.env)
            .map_err(|r| errors(&r))?
            .conf;
        if let Some(skipped) = conf.skipped.first() {
            return Err(format!(
                "provider {} is not spoken yet",
                skipped.params.provider.name
            ));
        }
        // Built alone, so that what cannot be built is found before it stands among the others.
        Models::new(&conf)?;
        let mut entry = conf.models.pop().ok_or("it is no model")?;
        entry.stored = true;
        let about = json!({
            "created_at": Timestamp::from_microsecond(doc.created_at_micros).ok().map(|t| format!("{t:.6}")),
            "updated_at": Timestamp::from_microsecond(doc.updated_at_micros).ok().map(|t| format!("{t:.6}")),
            "created_by": doc.fields.get("created_by"),
            "updated_by": doc.fields.get("updated_by"),
        });
        if let Value::Object(about) = about {
            entry.info.all.extend(about);
        }
        Ok(entry)
    }

    /// Looks after files and the store for as long as the process lives.
    pub async fn watch(self: Arc<Self>) {
        let mut news = self.store.news();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut store_speaks = true;
        loop {
            tokio::select! {
                heard = news.recv(), if store_speaks => match heard {
                    Ok(News::Doc(Table::Model, _) | News::Everything) | Err(RecvError::Lagged(_)) => {
                        tokio::time::sleep(QUIET).await;
                        // The reason is in the log and in the status.
                        let _ = self.apply(Origin::Store).await;
                    }
                    Ok(_) => {}
                    Err(RecvError::Closed) => store_speaks = false,
                },
                _ = look.tick() => {
                    if self.files_changed().await {
                        tokio::time::sleep(QUIET).await;
                        let _ = self.apply(Origin::File).await;
                    } else if !self.turn.lock().await.stored_read {
                        let _ = self.apply(Origin::Store).await;
                    }
                }
            }
        }
    }

    /// Each state of the files is noticed once: a broken one is not reported every two seconds.
    async fn files_changed(&self) -> bool {
        let mut turn = self.turn.lock().await;
        match read_off(&turn.files).await {
            Ok(now) if digest(&now) != turn.held => {
                turn.held = digest(&now);
                true
            }
            _ => false,
        }
    }
}

/// What the files hold; None = it cannot be read.
fn contents(files: &[PathBuf]) -> Files {
    files
        .iter()
        .map(|file| (file.clone(), conf::load::read_file(file)))
        .collect()
}

async fn read_off(files: &[PathBuf]) -> Result<Files, String> {
    let files = files.to_vec();
    let reading = tokio::task::spawn_blocking(move || contents(&files));
    reading.await.map_err(|e| e.to_string())
}

/// A file that cannot be read differs from an empty one.
fn digest(files: &Files) -> Digested {
    let mut all = Sha256::new();
    for (_, bytes) in files {
        match bytes {
            Some(bytes) => {
                all.update([1]);
                all.update((bytes.len() as u64).to_le_bytes());
                all.update(bytes);
            }
            None => all.update([0]),
        }
    }
    all.finalize().into()
}

/// Of the files and of the store's models.
fn whole(files: &Digested, stored: &[Doc]) -> Digested {
    let mut all = Sha256::new();
    all.update(files);
    for doc in stored {
        all.update((doc.id.len() as u64).to_le_bytes());
        all.update(doc.id.as_bytes());
        all.update(doc.version.to_le_bytes());
        // An object that was deleted and made again begins at the same version.
        all.update(doc.updated_at_micros.to_le_bytes());
    }
    all.finalize().into()
}

/// Keeps what the files hold. Being unable to is told, and stops nothing.
fn keep(history: &History, origin: Origin, files: &Files) -> Option<u64> {
    match history.keep(origin.as_str(), files) {
        Ok(number) => number,
        Err(e) => {
            log::warn!("event=config_not_kept cause=\"{e}\" there is no way back to it");
            None
        }
    }
}

/// What is wrong, without lines: the text they stand in is nobody's file.
fn errors(report: &Report) -> String {
    let errors = report.problems.iter().filter(|p| p.severity == Severity::Error);
    let said: Vec<String> = errors
        .map(|p| match p.help.as_ref().or(p.label.as_ref()) {
            Some(more) => format!("{} ({more})", p.message),
            None => p.message.clone(),
        })
        .collect();
    said.join("; ")
}

/// Opens what is sealed, wherever it stands. `Err` names the field.
fn unseal(name: &str, value: &mut Value, seal: &Seal) -> Result<(), String> {
    match value {
        Value::String(text) if Seal::is_sealed(text) => match seal.open(text) {
            Ok(plain) => {
                *text = plain.expose().to_string();
                Ok(())
            }
            Err(_) => Err(name.to_string()),
        },
        Value::Object(fields) => fields
            .iter_mut()
            .try_for_each(|(name, value)| unseal(name, value, seal)),
        Value::Array(items) => items.iter_mut().try_for_each(|v| unseal(name, v, seal)),
        _ => Ok(()),
    }
}

/// What only a restart changes.
fn fixed(conf: &Conf) -> Fixed {
    let own = &conf.tollkeeper;
    let secret = |s: &Option<conf::Secret>| s.as_ref().map(|s| s.expose().to_string()).unwrap_or_default();
    vec![
        ("tollkeeper.listeners", format!("{:?}", own.listeners)),
        ("tollkeeper.data_dir", format!("{:?}", own.data_dir)),
        ("tollkeeper.ledger", format!("{:?}", own.ledger)),
        ("tollkeeper.tracing", own.tracing.fingerprint()),
        ("tollkeeper.timeouts.drain", format!("{:?}", own.timeouts.drain)),
        (
            "general_settings.database_url",
            secret(&conf.general.database_url),
        ),
        (
            "general_settings.database_connection_pool_limit",
            format!("{:?}", conf.general.database_connection_pool_limit),
        ),
        ("general_settings.salt_key", secret(&conf.general.salt_key)),
    ]
}

/// The sections but `model_list`, such that two that differ look different.
fn sections(conf: &Conf) -> Fixed {
    let general = &conf.general;
    let secrets: Vec<&str> = [&general.master_key, &general.database_url, &general.salt_key]
        .into_iter()
        .flatten()
        .chain(
            general
                .pass_through_endpoints
                .iter()
                .flat_map(|p| p.headers.iter().map(|(_, v)| v)),
        )
        .map(conf::Secret::expose)
        .collect();
    vec![
        ("general_settings", format!("{general:?}{secrets:?}")),
        ("litellm_settings", format!("{:?}", conf.litellm)),
        ("router_settings", format!("{:?}", conf.router)),
        ("tollkeeper", format!("{:?}", conf.tollkeeper)),
    ]
}

fn differing(before: &Fixed, after: &Fixed) -> Vec<&'static str> {
    let pairs = before.iter().zip(after);
    pairs.filter(|(a, b)| a != b).map(|(a, _)| a.0).collect()
}

/// Which deployments came, went and changed.
fn difference(old: &Models, new: &Models, generation: u64) -> Applied {
    let known = |models: &Models| -> BTreeMap<String, (String, Digested)> {
        models
            .entries()
            .iter()
            .map(|e| {
                (
                    e.deployment.id.clone(),
                    (e.deployment.label(), fingerprint(&e.written)),
                )
            })
            .collect()
    };
    let (before, after) = (known(old), known(new));
    type Known = BTreeMap<String, (String, Digested)>;
    let missing = |these: &Known, those: &Known| {
        these
            .iter()
            .filter(|(id, _)| !those.contains_key(*id))
            .map(|(_, (label, _))| label.clone())
            .collect()
    };
    Applied {
        generation,
        unchanged: false,
        added: missing(&after, &before),
        removed: missing(&before, &after),
        changed: after
            .iter()
            .filter(|(id, (_, now))| before.get(*id).is_some_and(|(_, then)| then != now))
            .map(|(_, (label, _))| label.clone())
            .collect(),
        sections: Vec::new(),
        restart: Vec::new(),
        version: None,
    }
}

/// Of all that an entry says, its secrets included. Where it stands does not count.
fn fingerprint(entry: &ModelEntry) -> Digested {
    let (p, mut all) = (&entry.params, Sha256::new());
    let secrets = p.headers.iter().map(|(_, v)| v).chain(&p.api_key);
    for secret in secrets {
        all.update((secret.expose().len() as u64).to_le_bytes());
        all.update(secret.expose());
    }
    all.update(format!("{} {p:?}", entry.model_name));
    // When it was changed is no change.
    let info = entry.info.all.iter().filter(|(name, _)| !name.ends_with("_at"));
    all.update(format!("{:?}", info.collect::<Vec<_>>()));
    all.finalize().into()
}
