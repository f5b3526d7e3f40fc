//! A new config without a restart: read, check, build, swap. What cannot be used changes nothing.
//!
//! A generation is made of the config's files, the environment as it was at the start, and the models that
//! are kept in the store. Requests in flight finish on the one they began with. What the files held is kept
//! in [`History`], from where it can be put back.
//!
//! Here a generation is made and taken into use. `files` reads off what the files hold, `stored` makes models
//! of what the store holds, `difference` says in what two configs differ, `fit` what a start would refuse.

mod difference;
mod files;
mod fit;
mod stored;

use crate::alerts::Alerts;
use crate::conf::{Conf, Env, ModelEntry};
use crate::discover;
use crate::history::{Files, History, Version};
use crate::master_key;
use crate::shared::meters;
use crate::shared::period;
use crate::snapshot::Snapshot;
use crate::store::seal::Seal;
use crate::store::{Doc, News, Store, Table};
use crate::tls::Tls;
use crate::traces::Exporters;
use arc_swap::ArcSwap;
use difference::{Said, difference, differing, fixed, sections};
use files::{contents, digest, keep, read_off};
use filters::contract::Registry;
use filters::contract::ports::Ports;
use filters::model::key::MasterKey;
pub use fit::problems;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Most models that are taken over from the store.
pub const MOST_STORED: usize = 10_000;
/// After a change of a file, and after news from the store: more of it is usually on its way.
const QUIET: Duration = Duration::from_millis(200);
/// How often the files are looked at, for places where nobody tells of changes (network drives).
const LOOK: Duration = Duration::from_secs(2);
/// How often model servers of this machine are looked for, where there is no config.
const SEEK: Duration = Duration::from_secs(10);

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
    /// There is no config, and a model server of this machine has something new.
    Found,
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
            Origin::Found => "found",
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
    fixed: Said,
    /// Where the process keeps its files, whatever the config says meanwhile.
    data_dir: PathBuf,
    tls: Option<Arc<Tls>>,
    limits: Limits,
    alerts: Arc<Alerts>,
    traces: Arc<Exporters>,
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
    /// Why they could not be read the last time; told once.
    not_read: Option<String>,
    /// What was made of each, by its id and version.
    built: HashMap<String, (i64, Result<ModelEntry, String>)>,
    /// What serves was made of this.
    serves: Digested,
}

type Digested = [u8; 32];

/// Takes what the config says of limits into use.
pub type Limits = Box<dyn Fn(&meters::Settings) + Send + Sync>;

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
    /// Is told what the config says of limits.
    pub limits: Limits,
    /// Who is told of what goes wrong.
    pub alerts: Arc<Alerts>,
    /// Who is told of calls.
    pub traces: Arc<Exporters>,
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
            limits: parts.limits,
            alerts: parts.alerts,
            traces: parts.traces,
            turn: tokio::sync::Mutex::new(Turn {
                held,
                files,
                conf: Arc::new(parts.conf),
                conf_of: held,
                stored: Vec::new(),
                stored_read: false,
                not_read: None,
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

    /// Each name that a certificate is shown for, and when that ends, seconds since 1970.
    pub fn certificates(&self) -> Vec<(String, i64)> {
        self.tls.as_ref().map(|tls| tls.ends()).unwrap_or_default()
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
        // First: whatever begins with the new snapshot is told to those that it names.
        self.traces.apply(&turn.conf.tollkeeper.tracing, &turn.conf.env);
        period::serve_by(&snapshot.meters.calendar);
        (self.limits)(&snapshot.meters);
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
                turn.not_read = None;
            }
            // The files can be taken into use all the same; we come back here when the store answers.
            Err(e) => {
                turn.stored_read = false;
                // They are asked for every two seconds until they are read.
                let why = e.to_string();
                if turn.not_read.as_ref() != Some(&why) {
                    log::warn!("event=models_not_read cause=\"{why}\" those read before stay");
                    turn.not_read = Some(why);
                }
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
            ports.traces = self.traces.generation(&conf.tollkeeper.tracing)?;
            let snapshot = Snapshot::new(&conf, &self.registry, &ports)?;
            // What a reload does not read must not wait for the next start to be refused.
            if let Some(why) = problems(&conf).into_iter().next() {
                return Err(why);
            }
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

    /// Looks after files and the store for as long as the process lives.
    pub async fn watch(self: Arc<Self>) {
        let mut news = self.store.news();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut store_speaks = true;
        let mut seek = tokio::time::interval_at(tokio::time::Instant::now() + SEEK, SEEK);
        seek.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = Vec::new();
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
                _ = seek.tick(), if self.path.is_none() => {
                    let found = discover::servers().await;
                    let serves = self.snapshot.load_full();
                    let names = serves.models.deployments().map(|d| d.model_name.as_str());
                    // What cannot be used is tried once, and what is away for a moment stays.
                    if found != seen && discover::is_new(&found, names) {
                        let _ = self.apply(Origin::Found).await;
                    }
                    seen = found;
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
