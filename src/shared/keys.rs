//! Virtual keys in memory, in front of the store. A key that was known stays known while the store is
//! away; an unknown one is never let in for that.

use super::budgets::Counters;
use crate::store::Store;
use async_trait::async_trait;
use filters::contract::ports::{Keys, Unavailable};
use filters::model::key::{Holder, KeyHash};
use moka::sync::Cache;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a key is believed without asking again.
const FRESH: Duration = Duration::from_secs(60);
/// How long a hash is believed to be nobody's. Short: it may be issued the next moment elsewhere.
const UNKNOWN_FRESH: Duration = Duration::from_secs(2);
/// Keys kept. The rest is asked for when needed.
const MOST: u64 = 100_000;

/// How much of a key's spend is written down but not in the store yet: nano-dollars.
pub type Unlanded = Arc<dyn Fn(&KeyHash) -> i64 + Send + Sync>;

/// Known keys, and hashes known to be nobody's.
pub struct KeyCache {
    store: Arc<dyn Store>,
    counters: Arc<Counters>,
    unlanded: Unlanded,
    known: Cache<KeyHash, Entry>,
    /// Counts what was forgotten, so that a key read before a change is not believed after it.
    changes: AtomicU64,
}

#[derive(Clone)]
struct Entry {
    key: Option<Arc<Holder>>,
    at: Instant,
}

impl Entry {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < if self.key.is_some() { FRESH } else { UNKNOWN_FRESH }
    }
}

impl KeyCache {
    pub fn new(store: Arc<dyn Store>, counters: Arc<Counters>, unlanded: Unlanded) -> Self {
        Self {
            store,
            counters,
            unlanded,
            known: Cache::new(MOST),
            changes: AtomicU64::new(0),
        }
    }

    /// A key changed or is gone: ask the store next time. Money that its calls have set aside stays
    /// set aside.
    pub fn forget(&self, hash: &KeyHash) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.known.invalidate(hash);
    }
}

#[async_trait]
impl Keys for KeyCache {
    fn cached(&self, hash: &KeyHash) -> Option<Option<Arc<Holder>>> {
        self.known.get(hash).filter(Entry::is_fresh).map(|e| e.key)
    }

    async fn find(&self, hash: &KeyHash) -> Result<Option<Arc<Holder>>, Unavailable> {
        // Asked before the store: a row that lands in between counts twice for a while, never not at all.
        let added = self.counters.added(hash);
        let on_the_way = (self.unlanded)(hash);
        let changes = self.changes.load(Ordering::SeqCst);
        match self.store.key_by_hash(hash).await {
            Ok(found) => {
                let key = found.map(|k| Arc::new(Holder::alone(k)));
                if let Some(k) = &key {
                    self.counters
                        .known(*hash, k.spend_nanos.saturating_add(on_the_way), added);
                }
                if self.changes.load(Ordering::SeqCst) == changes {
                    self.known.insert(
                        *hash,
                        Entry {
                            key: key.clone(),
                            at: Instant::now(),
                        },
                    );
                }
                Ok(key)
            }
            Err(e) => match self.known.get(hash).and_then(|e| e.key) {
                Some(key) if self.changes.load(Ordering::SeqCst) == changes => {
                    // Believed a while longer, so that an outage does not ask for every call.
                    self.known.insert(
                        *hash,
                        Entry {
                            key: Some(Arc::clone(&key)),
                            at: Instant::now(),
                        },
                    );
                    Ok(Some(key))
                }
                _ => Err(Unavailable(e.to_string())),
            },
        }
    }
}
