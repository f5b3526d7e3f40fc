//! Is the process alive, is it ready, how are its upstreams: for load balancers and people. `endpoints` looks
//! after the upstreams, `probe` looks at one.

pub mod endpoints;
pub mod probe;

use crate::ledger::Ledger;
use crate::store::Store;
use endpoints::Endpoints;
use filters::contract::Answer;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How something beside the store is: `connected`, or what it is instead.
pub type Further = Box<dyn Fn() -> Value + Send + Sync>;

pub struct Health {
    store: Arc<dyn Store>,
    ledger: Arc<Ledger>,
    endpoints: Arc<Endpoints>,
    further: Vec<(&'static str, Further)>,
    leaving: AtomicBool,
    parting: AtomicBool,
    resting: AtomicBool,
}

impl Health {
    pub fn new(store: Arc<dyn Store>, ledger: Arc<Ledger>, endpoints: Arc<Endpoints>) -> Self {
        Self {
            store,
            ledger,
            endpoints,
            further: Vec::new(),
            leaving: AtomicBool::new(false),
            parting: AtomicBool::new(false),
            resting: AtomicBool::new(false),
        }
    }

    /// Has readiness tell of one thing more, which never makes it say no.
    pub fn also(mut self, name: &'static str, how: Further) -> Self {
        self.further.push((name, how));
        self
    }

    /// From now on readiness says no, so that nobody sends new work here.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// From now on no connection is kept for another request: the listeners close, here or for good.
    pub fn part(&self) {
        self.parting.store(true, Ordering::SeqCst);
    }

    /// Somebody wants nobody sent here for a while, or not any more.
    pub fn rest(&self, on: bool) {
        self.resting.store(on, Ordering::SeqCst);
    }

    pub fn rests(&self) -> bool {
        self.resting.load(Ordering::SeqCst)
    }

    /// Whether a client may keep its connection for another request.
    pub fn keeps_connections(&self) -> bool {
        !self.parting.load(Ordering::SeqCst) && !self.is_leaving() && !self.rests()
    }

    pub async fn reaches_store(&self) -> bool {
        self.store.health().await.is_ok()
    }

    /// `GET /health`: open, and cheap.
    pub fn status(&self) -> Answer {
        answer(200, &status())
    }

    /// The same for an admin: how the upstreams were when they were looked at last; those of one model if the
    /// query names one.
    pub fn details(&self, query: Option<&str>) -> Answer {
        let model = query.and_then(|query| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let mut named = pairs.filter(|(name, _)| *name == "model");
            named.next_back().map(|(_, value)| decoded(value))
        });
        let mut body = status();
        if let (Value::Object(body), Value::Object(lists)) =
            (&mut body, self.endpoints.lists(model.as_deref()))
        {
            body.extend(lists);
        }
        answer(200, &body)
    }

    /// `GET /health/liveliness` (LiteLLM's word) and `/health/liveness`.
    pub fn liveness(&self) -> Answer {
        answer(200, &json!({"status": "healthy"}))
    }

    /// `GET /health/readiness`: 503 while the store is away or the process is leaving. Known keys go on
    /// working meanwhile; this is for those who can send new callers elsewhere.
    pub async fn readiness(&self) -> Answer {
        let connected = self.reaches_store().await;
        let leaving = self.is_leaving() || self.rests();
        let ledger = self.ledger.stats();
        let ready = connected && !leaving;
        let mut body = json!({
                "status": if leaving { "leaving" } else if ready { "healthy" } else { "unhealthy" },
                "db": if connected { "connected" } else { "Not connected" },
                "db_kind": self.store.kind(),
                "ledger": {
                    "pending": ledger.pending_records,
                    "oldest_seconds": ledger.oldest_age.as_secs(),
                    "dead": ledger.dead,
                    "healthy": ledger.healthy,
                    "spool_errors": ledger.spool_errors,
                },
                "version": env!("CARGO_PKG_VERSION"),
        });
        if let Value::Object(body) = &mut body {
            body.extend(
                self.further
                    .iter()
                    .map(|(name, how)| ((*name).to_string(), how())),
            );
        }
        answer(if ready { 200 } else { 503 }, &body)
    }
}

fn status() -> Value {
    json!({
        "status": "healthy",
        "version": env!("CARGO_PKG_VERSION"),
        "timestamp": jiff::Timestamp::now().to_string(),
    })
}

/// A value of a query; bytes that make no text are replaced.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => u8::try_from(high * 16 + low).unwrap_or(b'?'),
                    _ => b'?',
                }
            }
            b => b,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn answer(status: u16, body: &Value) -> Answer {
    Answer {
        status,
        headers: vec![
            ("content-type", "application/json".into()),
            ("cache-control", "no-store".into()),
        ],
        body: body.to_string().into(),
    }
}
