//! The narrow ways in which filters see the world. The host implements them; tests fake them.

use crate::model::call::Endpoint;
use crate::model::key::{Holder, Key, KeyHash, MasterKey};
use crate::model::price::ServiceTier;
use crate::model::record::Record;
use crate::model::usage::Usage;
use async_trait::async_trait;
use std::sync::Arc;

/// The store cannot be asked right now; the text is for the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Virtual keys by hash.
#[async_trait]
pub trait Keys: Send + Sync {
    /// From memory, without waiting. `Some(None)` = known to be unknown.
    fn cached(&self, hash: &KeyHash) -> Option<Option<Arc<Holder>>>;
    /// From the store. A key that was known keeps being found while the store is away.
    async fn find(&self, hash: &KeyHash) -> Result<Option<Arc<Holder>>, Unavailable>;
}

/// What a key has left. Money in nano-dollars.
pub trait Budgets: Send + Sync {
    /// Sets `nanos` aside, or says how much is spent when that would pass the key's budget.
    fn reserve(&self, key: &Key, nanos: i64) -> Result<Reservation, Exceeded>;
}

/// The budget is used up.
#[derive(Debug, Clone, Copy)]
pub struct Exceeded {
    pub spent_nanos: i64,
    pub budget_nanos: i64,
}

/// Money set aside for one call. Dropping it gives the money back: a panic or a hang-up leaks none.
pub struct Reservation {
    give_back: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Reservation {
    pub fn new(give_back: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self {
            give_back: Some(Box::new(give_back)),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(f) = self.give_back.take() {
            f();
        }
    }
}

/// Where finished calls are written down.
pub trait Ledger: Send + Sync {
    /// On return the record survives the death of this process. Never blocks on a database.
    fn append(&self, record: Record);
}

/// What is counted of each request.
pub trait Metrics: Send + Sync {
    fn observe(&self, seen: &Observation<'_>);
}

/// One finished request, for metrics. Labels are bounded by the implementation.
pub struct Observation<'a> {
    pub lane: &'a str,
    /// The configured name; None when the client named something that does not exist.
    pub model: Option<&'a str>,
    pub status: u16,
    pub error: Option<&'a str>,
    pub seconds: f64,
    pub first_byte_seconds: Option<f64>,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub cost_nanos: Option<i64>,
}

/// Time of day, so that tests can set it.
pub trait Clock: Send + Sync {
    /// Microseconds since 1970, UTC.
    fn now_micros(&self) -> i64;
}

/// The models of one snapshot.
pub trait Catalog: Send + Sync {
    /// The configured name that serves `model`: itself, an alias' target, or the wildcard's pattern.
    fn group_of(&self, model: &str) -> Option<&str>;
    /// Configured names in order, wildcards included.
    fn names(&self) -> &[String];
    /// `model` belongs to this access group.
    fn in_access_group(&self, model: &str, group: &str) -> bool;
    /// What a call that uses this much costs at the dearest deployment of the name, nano-dollars: at this
    /// tier or at the standard one, whichever is dearer. None = not priced.
    fn worst_cost(&self, model: &str, endpoint: Endpoint, usage: &Usage, tier: ServiceTier) -> Option<i64>;
    /// The longest answer that a deployment of the name gives, tokens. None = not known.
    fn max_output_tokens(&self, model: &str) -> Option<u64>;
}

/// All ports, handed to filters when they are built.
#[derive(Clone)]
pub struct Ports {
    pub keys: Arc<dyn Keys>,
    pub budgets: Arc<dyn Budgets>,
    pub ledger: Arc<dyn Ledger>,
    pub metrics: Arc<dyn Metrics>,
    pub clock: Arc<dyn Clock>,
    /// The master key of the snapshot that the chain belongs to.
    pub master: Option<MasterKey>,
}

impl Ports {
    /// Ports that lead nowhere: for building chains that are looked at and never run, as when a config
    /// is checked.
    pub fn detached() -> Self {
        let nowhere = Arc::new(Nowhere);
        Self {
            keys: nowhere.clone(),
            budgets: nowhere.clone(),
            ledger: nowhere.clone(),
            metrics: nowhere.clone(),
            clock: nowhere,
            master: None,
        }
    }
}

struct Nowhere;

#[async_trait]
impl Keys for Nowhere {
    fn cached(&self, _hash: &KeyHash) -> Option<Option<Arc<Holder>>> {
        None
    }

    async fn find(&self, _hash: &KeyHash) -> Result<Option<Arc<Holder>>, Unavailable> {
        Err(Unavailable("there is no store".into()))
    }
}

impl Budgets for Nowhere {
    fn reserve(&self, key: &Key, _nanos: i64) -> Result<Reservation, Exceeded> {
        Err(Exceeded {
            spent_nanos: key.spend_nanos,
            budget_nanos: 0,
        })
    }
}

impl Ledger for Nowhere {
    fn append(&self, _record: Record) {}
}

impl Metrics for Nowhere {
    fn observe(&self, _seen: &Observation<'_>) {}
}

impl Clock for Nowhere {
    fn now_micros(&self) -> i64 {
        0
    }
}
