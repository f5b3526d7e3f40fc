//! The built gateway on a free port, with a data directory of its own.

use super::client;
use super::upstream::Upstream;
use super::{LONG, process, until, within};
use filters::model::key::{Key, KeyHash, key_name};
use filters::model::record::Record;
use serde_json::{Map, Value, json};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tollkeeper::store::{self, SpendFilter, Store};

/// The binary that is tested: `$TOLLKEEPER_BIN`, else the one that was built with the tests.
pub const BINARY: Binary = Binary;

/// See [`BINARY`].
#[derive(Clone, Copy)]
pub struct Binary;

impl Binary {
    fn path(self) -> &'static str {
        static PATH: OnceLock<String> = OnceLock::new();
        PATH.get_or_init(|| {
            let named = std::env::var("TOLLKEEPER_BIN").unwrap_or_default();
            if named.is_empty() {
                return env!("CARGO_BIN_EXE_tollkeeper").to_string();
            }
            // Children are started in directories of their own.
            let found = fs::canonicalize(&named);
            let found = found.unwrap_or_else(|e| panic!("TOLLKEEPER_BIN={named}: {e}"));
            found.to_str().unwrap().to_string()
        })
    }
}

impl AsRef<OsStr> for Binary {
    fn as_ref(&self) -> &OsStr {
        self.path().as_ref()
    }
}

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

pub const MASTER: &str = "sk-master-key-of-the-tests";
/// What the gateway presents to upstreams.
pub const PROVIDER: &str = "sk-provider-key-of-the-tests";

/// How a gateway is to be started.
pub struct Setup {
    models: Vec<Value>,
    general: Map<String, Value>,
    router: Map<String, Value>,
    settings: Map<String, Value>,
    env: Vec<(String, String)>,
    database: Option<String>,
}

impl Setup {
    pub fn new() -> Setup {
        // Upstreams of the tests count their requests, so that nobody looks at them unasked.
        let own = json!({"ledger": {"flush_every": "10ms"}, "health": {"check_every": "off"}});
        Setup {
            models: Vec::new(),
            general: json!({"master_key": MASTER}).as_object().unwrap().clone(),
            router: Map::new(),
            settings: own.as_object().unwrap().clone(),
            env: Vec::new(),
            database: None,
        }
    }

    /// `name` leads to `upstream`, which knows the model as `up-<name>`.
    pub fn model(self, name: &str, upstream: &Upstream) -> Setup {
        self.deployment(name, &upstream.base(), json!({}))
    }

    /// One more deployment of `name`; `more` goes into its `litellm_params`, but for `id`.
    pub fn deployment(mut self, name: &str, base: &str, more: Value) -> Setup {
        let mut params = json!({"model": format!("openai/up-{name}"), "api_base": base, "api_key": PROVIDER});
        let mut info = json!({});
        for (field, value) in more.as_object().unwrap() {
            match field.as_str() {
                "id" => info["id"] = value.clone(),
                _ => params[field] = value.clone(),
            }
        }
        self.models
            .push(json!({"model_name": name, "litellm_params": params, "model_info": info}));
        self
    }

    pub fn general(mut self, field: &str, value: Value) -> Setup {
        self.general.insert(field.into(), value);
        self
    }

    /// A setting below `router_settings:`.
    pub fn router(mut self, field: &str, value: Value) -> Setup {
        self.router.insert(field.into(), value);
        self
    }

    /// A setting below `tollkeeper:`.
    pub fn setting(mut self, field: &str, value: Value) -> Setup {
        self.settings.insert(field.into(), value);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn database(mut self, url: &str) -> Setup {
        self.database = Some(url.into());
        self
    }

    /// The config as text. JSON is YAML.
    pub fn config(&self) -> String {
        let config = json!({
            "model_list": self.models,
            "general_settings": self.general,
            "router_settings": self.router,
            "tollkeeper": self.settings,
        });
        format!("{config:#}")
    }

    pub async fn start(self) -> Gateway {
        let dir = tempfile::Builder::new().prefix("tk-it-").tempdir().unwrap();
        fs::write(dir.path().join("config.yaml"), self.config()).unwrap();
        let mut gateway = Gateway {
            at: SocketAddr::from(([127, 0, 0, 1], 0)),
            process: None,
            dir,
            setup: self,
        };
        gateway.up().await;
        gateway
    }
}

/// A running gateway. Dropping it kills it; [`Gateway::stop`] asks it to go and looks how it went.
pub struct Gateway {
    pub at: SocketAddr,
    process: Option<Child>,
    dir: tempfile::TempDir,
    setup: Setup,
}

impl Gateway {
    /// Starts it (again) and waits until it is ready.
    pub async fn up(&mut self) {
        self.up_until(200).await;
    }

    /// The same, to the point where readiness answers with `status`.
    pub async fn up_until(&mut self, status: u16) {
        assert!(self.process.is_none(), "the gateway runs already");
        let config = self.dir.path().join("config.yaml");
        loop {
            let port = free_port();
            self.at.set_port(port);
            let mut env = self.setup.env.clone();
            if let Some(url) = &self.setup.database {
                env.push(("DATABASE_URL".into(), url.clone()));
            }
            let args = ["-c", config.to_str().unwrap(), "--host", "127.0.0.1", "--port"].map(String::from);
            let args = [&args[..], &[port.to_string()]].concat();
            let mut child = spawn(self.dir.path(), &args, &env);
            let deadline = Instant::now() + LONG;
            let mut look = tokio::time::interval(std::time::Duration::from_millis(5));
            let control = self.data().join("control.sock");
            let taken = loop {
                look.tick().await;
                if let Some(ended) = child.try_wait().unwrap() {
                    let log = fs::read_to_string(self.dir.path().join("log")).unwrap();
                    // Somebody may have been quicker to take the port.
                    let taken = ended.code() == Some(69) && log.contains("cannot listen");
                    assert!(taken, "the gateway ended at once ({ended}): {log}");
                    break true;
                }
                // It answers a moment before it takes orders. Who answers may be another one, on a port that it was
                // quicker to take.
                let is_ready = client::probe(self.at, "/health/readiness").await == Some(status);
                let pid = fs::read_to_string(self.data().join("tollkeeper.pid")).unwrap_or_default();
                if is_ready && pid.trim() == child.id().to_string() && control.exists() {
                    break false;
                }
                assert!(Instant::now() < deadline, "not ready in time: {}", self.log());
            };
            if !taken {
                self.process = Some(child);
                return;
            }
        }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Puts another text in the place of its config, as an editor does: whole or not at all.
    pub fn rewrite(&self, config: &str) {
        let new = self.dir.path().join("config.new");
        fs::write(&new, config).unwrap();
        fs::rename(new, self.dir.path().join("config.yaml")).unwrap();
    }

    /// What it wrote to stderr since its first start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until its log says so: lines are gathered for some milliseconds before they are written.
    pub async fn says(&self, what: &str) {
        until(&format!("the log says {what}"), async || {
            self.log().contains(what)
        })
        .await;
    }

    /// Whether Redis has answered it all the while; where not, it may go on by itself. Lines are written in order, so
    /// that all there was to say before a call stands before the line of that call.
    pub async fn has_had_redis(&self) -> bool {
        let body = json!({"model": "nobody-is-called-so", "messages": []});
        let (mut log, mut asked) = (String::new(), Vec::new());
        // Of many calls in a second not all are shown.
        until("a call has its line", async || {
            asked.push(client::chat(self, &body).await.head.id().to_string());
            log = self.log();
            asked.iter().any(|id| log.contains(id))
        })
        .await;
        !log.contains("event=redis_away") && !log.contains("event=redis_connection_lost")
    }

    /// Waits until its log has said so this often; more often is an error.
    pub async fn says_times(&self, what: &str, times: usize) {
        let mut found = 0;
        until(&format!("the log says {what} {times} times"), async || {
            found = self.log().matches(what).count();
            found >= times
        })
        .await;
        assert_eq!(found, times, "{what} in the log: {}", self.log());
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    pub fn signal(&self, name: &str) {
        process::signal(self.process.as_ref().unwrap(), name);
    }

    /// As a power cut for the process.
    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        assert_eq!(process.wait().unwrap().signal(), Some(9));
    }

    /// Waits until it has gone by itself.
    pub async fn gone(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        let mut status = None;
        until("the gateway is gone", async || {
            status = process.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// Asks it to go, as a service manager does.
    pub async fn stop(&mut self) {
        self.signal("TERM");
        let status = self.gone().await;
        assert_eq!(status.code(), Some(0), "after SIGTERM: {}", self.log());
    }

    /// The store it writes to.
    pub async fn store(&self) -> Arc<dyn Store> {
        let address = match &self.setup.database {
            Some(url) => url.clone(),
            None => self.data().join("tollkeeper.db").to_str().unwrap().to_string(),
        };
        let store = crate::store::open(&address).await;
        within("the store is reached", store.ready()).await;
        store
    }

    /// A virtual key with this text, straight in the store.
    pub async fn key(&self, text: &str, change: impl FnOnce(&mut Key)) {
        let mut key = plain_key(text);
        change(&mut key);
        let store = self.store().await;
        store.insert_key(&key).await.unwrap();
    }

    /// The ledger's row of a call, once it is there.
    pub async fn row(&self, request_id: &str) -> Record {
        row(&*self.store().await, request_id).await
    }

    /// Waits for `n` rows and returns all there are then.
    pub async fn rows_once(&self, n: usize) -> Vec<Record> {
        let store = self.store().await;
        let mut found = Vec::new();
        until(&format!("{n} rows are there"), async || {
            found = rows(&*store, SpendFilter::default()).await;
            found.len() >= n
        })
        .await;
        found
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the gateway's log ---\n{}", self.log());
        }
    }
}

/// Starts the binary in `dir`; its log goes to `log`, its data to `data` there.
pub fn spawn(dir: &Path, args: &[String], env: &[(String, String)]) -> Child {
    let log = File::options()
        .append(true)
        .create(true)
        .open(dir.join("log"))
        .unwrap();
    process::spawn(BINARY, |c| {
        c.args(args)
            .current_dir(dir)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", dir)
            .env("TOLLKEEPER_DATA_DIR", dir.join("data"))
            .envs(env.iter().map(|(n, v)| (n, v)))
            .stdin(Stdio::null())
            .stdout(File::create(dir.join("out")).unwrap())
            .stderr(log);
    })
}

/// A key that may do everything a key may.
pub fn plain_key(text: &str) -> Key {
    Key {
        hash: KeyHash::of(text),
        key_name: key_name(text),
        key_alias: None,
        user_id: Some("alice".into()),
        team_id: None,
        models: Vec::new(),
        aliases: Default::default(),
        spend_nanos: 0,
        max_budget_nanos: None,
        expires_micros: None,
        blocked: false,
        metadata: Default::default(),
        extra: Default::default(),
        created_at_micros: 0,
        created_by: None,
        updated_at_micros: 0,
    }
}

pub async fn rows(store: &dyn Store, mut filter: SpendFilter) -> Vec<Record> {
    filter.page.limit = store::MAX_ROWS;
    store.spend_logs(&filter).await.unwrap_or_default()
}

pub async fn row(store: &dyn Store, request_id: &str) -> Record {
    let mut found = Vec::new();
    until(&format!("the row of {request_id} is there"), async || {
        let filter = SpendFilter {
            request_id: Some(request_id.into()),
            ..SpendFilter::default()
        };
        found = rows(store, filter).await;
        !found.is_empty()
    })
    .await;
    assert_eq!(found.len(), 1, "one row for one call");
    found.remove(0)
}

/// A port below those that the kernel gives to outgoing connections, so that none of these takes it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let start = (std::process::id() % 200) as u16 * 100;
        let port = 10_000 + (start.wrapping_add(step)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
