//! Which of several replicas tells: the one that says so first, in Redis, else in the database. Where neither
//! answers, each tells what it sees: twice is better than not at all.

use super::Alert;
use crate::shared::agreement::Agreement;
use crate::store::Store;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// Where replicas meet.
#[derive(Clone, Default)]
pub struct Once {
    pub redis: Option<Arc<Agreement>>,
    pub store: Option<Arc<dyn Store>>,
}

impl Once {
    /// Whether this replica is the one to tell it. Takes as long as a question to Redis and one to the store.
    pub async fn is_ours(&self, alert: &Alert, window: Duration) -> bool {
        if alert.is_own || window.is_zero() {
            return true;
        }
        let name = name(alert);
        if let Some(redis) = &self.redis
            && let Ok(first) = redis.is_first(&name, window).await
        {
            return first;
        }
        match &self.store {
            Some(store) => store.is_first(&name, window).await.unwrap_or_else(|e| {
                log::debug!("event=alert_not_agreed of={} cause=\"{e}\"", alert.event.as_str());
                true
            }),
            None => true,
        }
    }
}

/// The same for the same, whatever is in it: a subject may hold what a caller chose.
fn name(alert: &Alert) -> String {
    let mut all = Sha256::new();
    all.update(alert.event.as_str());
    all.update([0]);
    all.update(&alert.subject);
    let digest = all.finalize();
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}:{hex}", alert.event.as_str())
}
