//! A new config without a restart: read, check, build, swap. What cannot be used changes nothing.
//!
//! A generation is made of the config's files, the environment as it was at the start, and the models that
//! are kept in the store. Requests in flight finish on the one they began with.

use crate::conf::{self, Conf, Env, ModelEntry, Report};
use crate::snapshot::Snapshot;
use crate::store::seal::Seal;
use crate::store::{Doc, DocFilter, MAX_ROWS, News, Page, Store, StoreError, Table};
use crate::{discover, master_key};
use arc_swap::ArcSwap;
use filters::contract::Registry;
use filters::contract::ports::Ports;
use filters::model::key::MasterKey;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Most models that are taken over from the store.
const MOST_STORED: usize = 10_000;
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
}

impl Origin {
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Start => "start",
            Origin::Signal => "signal",
            Origin::File => "file",
            Origin::Api => "api",
            Origin::Store => "database",
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
    turn: tokio::sync::Mutex<Turn>,
    status: ArcSwap<Status>,
}

struct Turn {
    /// The files that make the config, and what they held when they were last looked at.
    files: Vec<PathBuf>,
    held: Digested,
    /// The models of the store, as far as they could be read.
    stored: Vec<Doc>,
    /// What serves was made of this.
    serves: Digested,
}

type Digested = [u8; 32];

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
    /// The files that `snapshot` was made of.
    pub files: Vec<PathBuf>,
}

impl Reload {
    /// The snapshot of `parts` serves already, as the first generation.
    pub fn new(parts: Parts) -> Self {
        let deployments = parts.snapshot.load().models.deployments().count();
        Self {
            path: parts.path,
            env: parts.env,
            registry: parts.registry,
            ports: parts.ports,
            snapshot: parts.snapshot,
            store: parts.store,
            seal: parts.seal,
            turn: tokio::sync::Mutex::new(Turn {
                held: digest(&parts.files),
                files: parts.files,
                stored: Vec::new(),
                serves: Digested::default(),
            }),
            status: ArcSwap::from_pointee(Status {
                generation: 1,
                applied_at: Timestamp::now(),
                origin: Origin::Start,
                deployments,
                failed: None,
            }),
        }
    }

    pub fn status(&self) -> Arc<Status> {
        self.status.load_full()
    }

    /// Reads everything again and takes it into use. `Err` says why not, with lines: the old one serves on.
    pub async fn apply(&self, origin: Origin) -> Result<Applied, String> {
        let mut turn = self.turn.lock().await;
        let outcome = self.make(&mut turn).await;
        let before = self.status();
        match outcome {
            Ok(None) => {
                if before.failed.is_some() {
                    // The files are back at what serves.
                    self.status.store(Arc::new(Status {
                        failed: None,
                        ..(*before).clone()
                    }));
                }
                Ok(Applied {
                    generation: before.generation,
                    unchanged: true,
                    added: Vec::new(),
                    removed: Vec::new(),
                })
            }
            Ok(Some(mut snapshot)) => {
                let old = self.snapshot.load_full();
                snapshot.continue_from(&old);
                let applied = difference(&old, &snapshot, before.generation + 1);
                self.status.store(Arc::new(Status {
                    generation: applied.generation,
                    applied_at: Timestamp::now(),
                    origin,
                    deployments: snapshot.models.deployments().count(),
                    failed: None,
                }));
                self.snapshot.store(Arc::new(snapshot));
                log::info!(
                    "event=config_applied generation={} origin={} added={} removed={}",
                    applied.generation,
                    origin.as_str(),
                    applied.added.len(),
                    applied.removed.len()
                );
                Ok(applied)
            }
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
                Err(why)
            }
        }
    }

    /// None = nothing differs from what serves.
    async fn make(&self, turn: &mut Turn) -> Result<Option<Snapshot>, String> {
        let mut conf = self.read().await?;
        turn.files = conf.source.paths();
        turn.held = digest(&turn.files);
        match self.stored().await {
            Ok(docs) => turn.stored = docs,
            // The files can be taken into use all the same; news of the store will bring us back here.
            Err(e) => log::warn!("event=models_not_read cause=\"{e}\" those read before stay"),
        }
        let mut all = Sha256::new();
        all.update(turn.held);
        for doc in &turn.stored {
            all.update(doc.id.as_bytes());
            all.update(doc.version.to_le_bytes());
        }
        let all: Digested = all.finalize().into();
        if self.path.is_some() && turn.serves == all {
            return Ok(None);
        }
        self.take_in(&mut conf, &turn.stored);
        let mut ports = self.ports.clone();
        let key = master_key::find(&conf, &conf.tollkeeper.data_dir).map_err(|e| e.to_string())?;
        ports.master = Some(MasterKey::new(key.secret.expose().into()));
        let snapshot = Snapshot::new(&conf, &self.registry, &ports)?;
        turn.serves = all;
        Ok(Some(snapshot))
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
    fn take_in(&self, conf: &mut Conf, docs: &[Doc]) {
        for doc in docs {
            match self.entry(doc) {
                Ok(entry) => {
                    let taken = conf
                        .models
                        .iter()
                        .any(|m| m.info.id.is_some() && m.info.id == entry.info.id);
                    if taken {
                        log::warn!(
                            "event=model_left_out id={} cause=\"the config has this id\"",
                            doc.id
                        );
                    } else {
                        conf.models.push(entry);
                    }
                }
                Err(why) => log::warn!("event=model_left_out id={} cause={why:?}", doc.id),
            }
        }
    }

    /// A stored model as the config would have it. `Err` says what is wrong with it, in one line or more.
    pub fn entry(&self, doc: &Doc) -> Result<ModelEntry, String> {
        let mut fields = doc.fields.clone();
        for value in fields.values_mut() {
            unseal(value, &self.seal).map_err(|name| {
                format!("its {name} cannot be decrypted: was it stored under another salt key?")
            })?;
        }
        let info = fields
            .entry("model_info".to_string())
            .or_insert_with(|| json!({}));
        if let Value::Object(info) = info {
            info.insert("id".into(), doc.id.clone().into());
        }
        let entry: BTreeMap<&str, &Value> = ["model_name", "litellm_params", "model_info"]
            .into_iter()
            .filter_map(|name| Some((name, fields.get(name)?)))
            .collect();
        // JSON is YAML, so a stored model goes the way of one in a file.
        let text = json!({"model_list": [entry]}).to_string();
        let conf = conf::load_text("database", &text, &self.env)
            .map_err(|r| r.summary())?
            .conf;
        match (conf.models.into_iter().next(), conf.skipped.first()) {
            (Some(entry), _) => Ok(entry),
            (None, Some(skipped)) => Err(format!(
                "provider {} is not spoken yet",
                skipped.params.provider.name
            )),
            (None, None) => Err("it is no model".into()),
        }
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
                    }
                }
            }
        }
    }

    /// Each state of the files is noticed once: a broken one is not reported every two seconds.
    async fn files_changed(&self) -> bool {
        let mut turn = self.turn.lock().await;
        let files = turn.files.clone();
        match tokio::task::spawn_blocking(move || digest(&files)).await {
            Ok(now) if now != turn.held => {
                turn.held = now;
                true
            }
            _ => false,
        }
    }
}

/// Of what the files hold; one that cannot be read differs from an empty one.
fn digest(files: &[PathBuf]) -> Digested {
    let mut all = Sha256::new();
    for file in files {
        match conf::load::read_file(file) {
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

/// Opens what is sealed, wherever it stands. `Err` names the field.
fn unseal(value: &mut Value, seal: &Seal) -> Result<(), String> {
    match value {
        Value::Object(fields) => fields.iter_mut().try_for_each(|(name, value)| match value {
            Value::String(text) if Seal::is_sealed(text) => match seal.open(text) {
                Ok(plain) => {
                    *text = plain.expose().to_string();
                    Ok(())
                }
                Err(_) => Err(name.clone()),
            },
            _ => unseal(value, seal),
        }),
        Value::Array(items) => items.iter_mut().try_for_each(|v| unseal(v, seal)),
        _ => Ok(()),
    }
}

/// Which deployments came and went.
fn difference(old: &Snapshot, new: &Snapshot, generation: u64) -> Applied {
    let labels = |s: &Snapshot| -> BTreeMap<String, String> {
        s.models
            .deployments()
            .map(|d| (d.id.clone(), d.label()))
            .collect()
    };
    let (before, after) = (labels(old), labels(new));
    let missing = |these: &BTreeMap<String, String>, those: &BTreeMap<String, String>| {
        these
            .iter()
            .filter(|(id, _)| !those.contains_key(*id))
            .map(|(_, label)| label.clone())
            .collect()
    };
    Applied {
        generation,
        unchanged: false,
        added: missing(&after, &before),
        removed: missing(&before, &after),
    }
}
