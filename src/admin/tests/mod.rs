//! The API on a real SQLite store, called as the proxy calls it.

mod escalation;
mod keys;
mod keys_changed;
mod models;
mod objects;
mod promises;
mod reading;
mod refusals;
mod rights;
mod schema;
mod spending;
mod spending_rights;
mod spending_rows;
mod team_logging;
mod teams;

use super::{Admin, Policy, router};
use crate::conf;
use crate::reload::{Parts, Reload};
use crate::shared::keys::KeyCache;
use crate::shared::parties::Parties;
use crate::snapshot::Snapshot;
use crate::store::seal::Seal;
use crate::store::{self, Address, Change, Doc, Settings, Store, Table};
use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use filters::contract::Stop;
use filters::contract::ports::Clock;
use filters::model::account::Kind as Subject;
use filters::model::key::{Caller, Holder, Key, KeyHash};
use filters::model::party::Party;
use filters::testkit::{self, FakeClock, MASTER};
use http::{HeaderMap, Request};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tower::ServiceExt;

/// 2026-11-20 12:00:00 UTC.
const NOON: i64 = 1_795_176_000_000_000;

struct Bench {
    router: Router,
    store: Arc<dyn Store>,
    keys: Arc<KeyCache>,
    clock: Arc<FakeClock>,
    policy: Arc<Mutex<Arc<Policy>>>,
    _dir: Option<TempDir>,
    _files: TempDir,
}

/// A config with one model, in a file of its own.
fn reload(dir: &std::path::Path, store: &Arc<dyn Store>) -> Arc<Reload> {
    let path = dir.join("config.yaml");
    let text = json!({
        "model_list": [{
            "model_name": "small",
            "litellm_params": {"model": "openai/up", "api_base": "http://127.0.0.1:9/v1", "api_key": "provider"},
            "model_info": {"id": "of-the-config"},
        }],
        "general_settings": {"master_key": MASTER_LONG},
    });
    std::fs::write(&path, text.to_string()).unwrap();
    let env = conf::Env::default();
    let conf = conf::load(Some(&path), &env).unwrap().conf;
    let registry = filters::builtin::registry;
    let ports = testkit::Kit::default().ports();
    let snapshot = Snapshot::new(&conf, &registry(), &ports).unwrap();
    Arc::new(Reload::new(Parts {
        path: Some(path),
        env,
        registry: registry(),
        ports,
        snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
        store: Arc::clone(store),
        seal: Seal::new(&"salt".into()),
        conf,
        data_dir: dir.join("data"),
        tls: None,
        limits: Box::new(|_| ()),
        alerts: Arc::new(
            crate::alerts::Alerts::open(&conf::Alerts::default(), None, Default::default())
                .unwrap()
                .0,
        ),
        traces: Arc::new(
            crate::traces::Exporters::start(
                &conf::Tracing::default(),
                &conf::Env::default(),
                Seal::new(&"salt".into()),
            )
            .unwrap(),
        ),
    }))
}

/// Long enough for a config.
const MASTER_LONG: &str = "sk-master-key-of-the-tests";

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        Self::on(path.to_str().unwrap(), Some(dir)).await
    }

    /// With a store that nobody answers for.
    async fn away() -> Self {
        Self::on("postgres://nobody@127.0.0.1:1/none", None).await
    }

    async fn on(address: &str, dir: Option<TempDir>) -> Self {
        let address = Address::parse(address).unwrap();
        let store = store::open(&address, &Settings::default()).await.unwrap();
        let clock = Arc::new(FakeClock::default());
        clock.set(NOON);
        let policy: Arc<Mutex<Arc<Policy>>> = Arc::default();
        let keys = Arc::new(KeyCache::new(
            Arc::clone(&store),
            Arc::new(Parties::new(Arc::clone(&store))),
            Arc::clone(&clock) as Arc<dyn Clock>,
        ));
        let files = tempfile::tempdir().unwrap();
        let reload = reload(files.path(), &store);
        let router = router(Admin {
            store: Arc::clone(&store),
            keys: Arc::clone(&keys),
            catalog: Arc::new(|| testkit::catalog(&["small", "embed"])),
            policy: {
                let policy = Arc::clone(&policy);
                Arc::new(move || policy.lock().unwrap().clone())
            },
            is_master: Arc::new(|hash| *hash == KeyHash::of(MASTER)),
            unlanded: Arc::new(|accounts| vec![0; accounts.len()]),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            reload,
        });
        Self {
            router,
            store,
            keys,
            clock,
            policy,
            _dir: dir,
            _files: files,
        }
    }

    async fn call(&self, caller: &Caller, route: &str, body: impl Into<Body>) -> Answer {
        let (method, uri) = route.split_once(' ').unwrap();
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .extension(caller.clone())
            .body(body.into())
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let answer = Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            stop: parts.extensions.get::<Arc<Stop>>().cloned(),
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
            length: bytes.len(),
        };
        if answer.status == 200 && method != "HEAD" {
            schema::check(route, &answer.body);
        }
        answer
    }

    /// As the master key, and it works.
    async fn master(&self, route: &str, body: Value) -> Value {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let answer = self.call(&master(), route, body.clone()).await;
        assert_eq!(answer.status, 200, "{route} {body}: {:?}", answer.stop);
        answer.body
    }

    async fn get(&self, caller: &Caller, uri: &str) -> Value {
        let answer = self.call(caller, &format!("GET {uri}"), "").await;
        assert_eq!(answer.status, 200, "{uri}: {:?}", answer.stop);
        answer.body
    }

    /// A new key and its holder.
    async fn holder(&self, fields: Value) -> (String, Caller) {
        let made = self.master("POST /key/generate", fields).await;
        let secret = made["key"].as_str().unwrap().to_string();
        let key = self.row(&secret).await.unwrap();
        (secret, Caller::Key(Arc::new(key.into())))
    }

    /// An object in the store, for which there may be no call.
    async fn put(&self, table: Table, id: &str, fields: Value) {
        let doc = Doc {
            id: id.into(),
            fields: fields.as_object().unwrap().clone(),
            version: 0,
            created_at_micros: NOON,
            updated_at_micros: NOON,
        };
        self.store
            .change(&[Change::Put { table, doc: &doc }], &[])
            .await
            .unwrap();
    }

    /// Whoever holds this key, with everybody it belongs to, as the filter `auth` finds them.
    async fn caller(&self, secret: &str) -> Caller {
        let mut holder = Holder::alone(self.row(secret).await.unwrap());
        let party = async |table: Table, kind, id: Option<&String>| {
            let doc = self.store.document(table, id?).await.unwrap()?;
            Some(Arc::new(Party::new(kind, doc.id, doc.fields)))
        };
        holder.user = party(Table::User, Subject::User, holder.key.user_id.as_ref()).await;
        holder.team = party(Table::Team, Subject::Team, holder.key.team_id.as_ref()).await;
        Caller::Key(Arc::new(holder))
    }

    async fn row(&self, secret: &str) -> Option<Key> {
        self.store.key_by_hash(&KeyHash::of(secret)).await.unwrap()
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    stop: Option<Arc<Stop>>,
    body: Value,
    length: usize,
}

fn master() -> Caller {
    Caller::Master {
        hash: KeyHash::of(MASTER),
    }
}

/// A refusal: its status, and what its sentence says.
async fn refused(bench: &Bench, caller: &Caller, route: &str, body: &str, status: u16, says: &str) {
    let shown: String = body.chars().take(200).collect();
    let answer = bench.call(caller, route, body.to_string()).await;
    let stop = answer
        .stop
        .unwrap_or_else(|| panic!("{route} {shown}: {} is no refusal", answer.status));
    assert_eq!(
        (answer.status, stop.status()),
        (status, status),
        "{route} {shown}: {stop:?}"
    );
    assert_eq!(answer.length, 0, "the proxy writes the body");
    assert!(
        stop.shown().contains(says),
        "{route} {shown}: {:?} should say {says:?}",
        stop.shown()
    );
    for word in ["SQL", "sqlite", "postgres", "tk_keys", "constraint"] {
        assert!(
            !stop.shown().contains(word),
            "{route} {shown}: {:?}",
            stop.shown()
        );
    }
}

/// The field that a refusal names.
fn param(stop: &Stop) -> Option<&str> {
    match stop {
        Stop::Refusal(r) => r.param.as_deref(),
        Stop::Fault(_) => None,
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    Number,
    Integer,
    Texts,
    Object,
    Time,
}

/// The fields of a published schema, each of its type; null stands for what is not set.
fn conforms(value: &Value, schema: &[(&str, Kind)]) {
    for (name, kind) in schema {
        // What is not set may be left out: a plain client's schema knows no null.
        let unset = matches!(kind, Kind::Text | Kind::Number | Kind::Time).then_some(&Value::Null);
        let field = value
            .get(name)
            .or(unset)
            .unwrap_or_else(|| panic!("{name} is missing: {value}"));
        let fits = match kind {
            Kind::Text => field.is_string() || field.is_null(),
            Kind::Number => field.is_number() || field.is_null(),
            Kind::Integer => field.is_u64(),
            Kind::Texts => field
                .as_array()
                .is_some_and(|list| list.iter().all(Value::is_string)),
            Kind::Object => field.is_object(),
            Kind::Time => {
                field.is_null()
                    || field
                        .as_str()
                        .is_some_and(|t| t.ends_with('Z') && t.parse::<jiff::Timestamp>().is_ok())
            }
        };
        assert!(fits, "{name} must be {kind:?}: {field}");
    }
}

fn everything() -> Value {
    json!({
        "key": "sk-a-key-of-my-own", "key_alias": "ci", "duration": "30d", "models": ["small"],
        "user_id": "alice", "team_id": "red", "max_budget": 12.5, "metadata": {"who": "me"},
        "aliases": {"gpt-4": "small"}, "blocked": false, "permissions": {"x": true},
        "tpm_limit": 1000, "rpm_limit": "60", "max_parallel_requests": 3.0, "budget_duration": "30d",
        "soft_budget": 10, "tags": ["a"], "allowed_routes": ["llm_api_routes"], "guardrails": null,
        "model_max_budget": {"small": {"budget_limit": 1, "time_period": "1d"}},
        "auto_rotate": "true", "some_day": {"unknown": 1},
    })
}
