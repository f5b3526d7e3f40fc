//! The narrow ways in which filters see the world. The host implements them; tests fake them.

use super::cx::Fallback;
use crate::model::account::Kind;
use crate::model::call::Endpoint;
use crate::model::deployment::Deployment;
use crate::model::key::{Caller, Holder, KeyHash, MasterKey};
use crate::model::limits::Measure;
use crate::model::price::ServiceTier;
use crate::model::record::{Attempt, Record};
use crate::model::trace::{Capture, Trace};
use crate::model::usage::Usage;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

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

/// Everybody's limits at once: what a call may take of budgets, rates and places.
#[async_trait]
pub trait Limiter: Send + Sync {
    /// Decides without waiting; None = somebody has to be asked or waited for first, see [`admit`].
    ///
    /// [`admit`]: Self::admit
    fn try_admit(&self, asked: &Asked<'_>) -> Option<Result<Box<dyn Admitted>, Box<Refused>>>;

    /// Decides over all meters of the call at once: it is let in by all of them, or counted by none. The
    /// wait is bounded, and dropping the future leaves nothing behind.
    async fn admit(&self, asked: &Asked<'_>) -> Result<Box<dyn Admitted>, Box<Refused>>;
}

/// A call that asks to be let in.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub caller: &'a Caller,
    /// Whom the call's own `user` field names.
    pub end_user: Option<&'a str>,
    /// The tags that the caller gave; the key's own count besides.
    pub tags: &'a [String],
    /// The model as the caller named it.
    pub requested: &'a str,
    /// What that stands for by the key's aliases and its team's.
    pub model: &'a str,
    /// The configured name that serves it.
    pub group: &'a str,
    /// It was let in under another model already and goes on with this one: where all models are counted together, its
    /// request is counted and it has its place.
    pub counted: bool,
    /// What the call may use. Asked for only where a limit needs it.
    pub estimate: &'a (dyn Fn() -> Estimate + Send + Sync),
}

/// What a call may use, before it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Prompt and answer.
    pub tokens: u64,
    pub nanos: i64,
}

/// A call that was let in, and what is set aside for it. Dropping it gives that back: a panic or a hang-up
/// leaks none. The request itself stays counted.
pub trait Admitted: Send + Sync {
    /// The call goes on with another model: gives back what is set aside for this one, and keeps its place among the calls
    /// in flight where all models are counted together.
    fn go_on(&mut self) {}
    /// What the call used in all; without this, nothing.
    fn settle(&mut self, tokens: u64);
    /// How the limits stood once the call was let in.
    fn standings(&self) -> &[Standing];
    /// The caller's place in the queue when it had to wait, counted from 1.
    fn queued(&self) -> Option<u32> {
        None
    }
}

/// One limit and how much of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub kind: Kind,
    /// It is the subject's limit for this model alone.
    pub of_model: bool,
    pub measure: Measure,
    pub limit: u64,
    pub remaining: u64,
    /// Until all of it is there again, milliseconds; 0 for calls in flight.
    pub reset_millis: u64,
}

/// A call that is not let in, and why.
#[derive(Clone, Debug)]
pub struct Refused {
    pub kind: Kind,
    /// The subject's id; the hash of a key.
    pub id: String,
    /// What people call it.
    pub alias: Option<String>,
    /// The model, when it is a limit for that alone.
    pub model: Option<String>,
    pub why: Why,
    pub standings: Vec<Standing>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nano-dollars; what is set aside for calls under way is not in `spent`.
    Budget {
        spent: i64,
        budget: i64,
        /// When the budget starts anew, such as `2026-11-20 12:00:00 UTC`. None = never.
        anew: Option<String>,
    },
    Rate {
        measure: Measure,
        limit: u64,
        remaining: u64,
        /// Until a call like this one may be let in, milliseconds.
        retry_millis: u64,
        /// The same as a moment: `2026-11-20 12:00:00 UTC`.
        at: String,
    },
    Blocked,
    /// Too many wait already, or this one has waited as long as it may.
    Queue {
        waiting: u32,
        retry_millis: u64,
    },
}

/// Lets everything in.
pub struct Unlimited;

impl Admitted for Unlimited {
    fn settle(&mut self, _tokens: u64) {}

    fn standings(&self) -> &[Standing] {
        &[]
    }
}

#[async_trait]
impl Limiter for Unlimited {
    fn try_admit(&self, _asked: &Asked<'_>) -> Option<Result<Box<dyn Admitted>, Box<Refused>>> {
        Some(Ok(Box::new(Unlimited)))
    }

    async fn admit(&self, _asked: &Asked<'_>) -> Result<Box<dyn Admitted>, Box<Refused>> {
        Ok(Box::new(Unlimited))
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
    /// None = no model call, or none that could be read.
    pub endpoint: Option<Endpoint>,
    /// The configured name; None when the client named something that does not exist.
    pub model: Option<&'a str>,
    pub caller: &'a Caller,
    pub status: u16,
    /// From a short fixed list.
    pub error: Option<&'static str>,
    /// From the request's head to its last byte.
    pub took: Duration,
    /// From the request's head to the upstream's first byte.
    pub first_byte: Option<Duration>,
    /// The same to the first piece of a stream's answer.
    pub first_token: Option<Duration>,
    /// Between two tokens of a stream, on average.
    pub inter_token: Option<Duration>,
    /// Of `took`, all attempts together; None = there was none.
    pub upstream: Option<Duration>,
    pub usage: Option<&'a Usage>,
    pub cost_nanos: Option<i64>,
    pub attempts: &'a [Attempt],
    /// Other models that the call went on to.
    pub fallbacks: &'a [Fallback],
    /// Of the last attempt.
    pub deployment: Option<&'a Deployment>,
    /// Count it under LiteLLM's own names as well.
    pub litellm_names: bool,
}

/// Those who watch calls: Langfuse, OpenTelemetry.
pub trait Traces: Send + Sync {
    /// The most that is ever wanted of any call. `Off` = nobody watches, and nothing is kept for nobody.
    fn most(&self) -> Capture;
    /// What is wanted of this caller's calls.
    fn wants(&self, caller: &Caller) -> Wanted;
    /// Bytes of a question and of an answer that are kept at most, each.
    fn max_bytes(&self) -> usize;
    /// Whether a caller may keep a call from being watched (`no-log`).
    fn may_hide(&self) -> bool;
    /// Takes a finished call over. Never waits: what does not fit is counted and let go of.
    fn emit(&self, trace: Box<Trace>);
}

/// How much of a call is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub capture: Capture,
    /// Content would be wanted, but must be left out.
    pub redacted: bool,
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
    pub limiter: Arc<dyn Limiter>,
    pub ledger: Arc<dyn Ledger>,
    pub metrics: Arc<dyn Metrics>,
    pub traces: Arc<dyn Traces>,
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
            limiter: Arc::new(Unlimited),
            ledger: nowhere.clone(),
            metrics: nowhere.clone(),
            traces: nowhere.clone(),
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

impl Ledger for Nowhere {
    fn append(&self, _record: Record) {}
}

impl Metrics for Nowhere {
    fn observe(&self, _seen: &Observation<'_>) {}
}

impl Traces for Nowhere {
    fn most(&self) -> Capture {
        Capture::Off
    }

    fn wants(&self, _caller: &Caller) -> Wanted {
        Wanted {
            capture: Capture::Off,
            redacted: false,
        }
    }

    fn max_bytes(&self) -> usize {
        0
    }

    fn may_hide(&self) -> bool {
        true
    }

    fn emit(&self, _trace: Box<Trace>) {}
}

impl Clock for Nowhere {
    fn now_micros(&self) -> i64 {
        0
    }
}
