//! Is the process alive, is it ready: for load balancers and people.

use crate::ledger::Ledger;
use crate::store::Store;
use filters::contract::Answer;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub struct Health {
    store: Arc<dyn Store>,
    ledger: Arc<Ledger>,
    leaving: AtomicBool,
    parting: AtomicBool,
    resting: AtomicBool,
}

impl Health {
    pub fn new(store: Arc<dyn Store>, ledger: Arc<Ledger>) -> Self {
        Self {
            store,
            ledger,
            leaving: AtomicBool::new(false),
            parting: AtomicBool::new(false),
            resting: AtomicBool::new(false),
        }
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
        answer(
            200,
            &json!({
                "status": "healthy",
                "version": env!("CARGO_PKG_VERSION"),
                "timestamp": jiff::Timestamp::now().to_string(),
            }),
        )
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
        answer(
            if ready { 200 } else { 503 },
            &json!({
                "status": if leaving { "leaving" } else if ready { "healthy" } else { "unhealthy" },
                "db": if connected { "connected" } else { "Not connected" },
                "db_kind": self.store.kind(),
                "ledger": {
                    "pending": ledger.pending_records,
                    "oldest_seconds": ledger.oldest_age.as_secs(),
                    "dead": ledger.dead,
                    "healthy": ledger.healthy,
                },
                "version": env!("CARGO_PKG_VERSION"),
            }),
        )
    }
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
