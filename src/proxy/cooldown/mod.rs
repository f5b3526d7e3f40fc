//! Deployments that fail step back for a while: whoever is not cooling is tried before them. A cool-down takes nothing
//! away from a name, then: when nobody else is left, those that are cooling are asked all the same.
//!
//! What counts, and when it is too much, is LiteLLM's where its settings are given (manual: `docs/litellm-compat.md`).
//! Known in this process, over all generations of the config; other replicas find out for themselves.

use super::by_deployment::ByDeployment;
use crate::conf::{AllowedFails, Cooldown, ModelEntry};
use filters::model::deployment::Deployment;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Where nothing is configured: the first cool-down; doubled with each further one that no good answer came before.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(60);
/// An upstream that wants to be left alone for longer is asked once in this time.
const MOST_PATIENCE: Duration = Duration::from_secs(3600);
/// Calls of a minute below which nothing follows from the part that fails.
const FEW: u64 = 5;
const MINUTE_MILLIS: u64 = 60_000;

/// What is held against a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symptom {
    /// 429.
    RateLimit,
    /// 401: the gateway's own credentials.
    Authentication,
    /// 408, or no answer in time.
    Timeout,
    NotFound,
    /// 5xx, or an answer that broke off.
    Server,
    /// No connection came about.
    Unreachable,
}

impl Symptom {
    pub const ALL: [Self; 6] = [
        Self::RateLimit,
        Self::Authentication,
        Self::Timeout,
        Self::NotFound,
        Self::Server,
        Self::Unreachable,
    ];

    /// `None`: what was asked for was wrong.
    pub fn of_status(status: u16) -> Option<Self> {
        match status {
            429 => Some(Self::RateLimit),
            401 => Some(Self::Authentication),
            408 => Some(Self::Timeout),
            404 => Some(Self::NotFound),
            500..=599 => Some(Self::Server),
            _ => None,
        }
    }

    /// In metrics and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RateLimit => "rate_limit",
            Self::Authentication => "authentication",
            Self::Timeout => "timeout",
            Self::NotFound => "not_found",
            Self::Server => "server_error",
            Self::Unreachable => "unreachable",
        }
    }

    /// Another call would meet it too, whatever it asks for.
    fn is_plain(self) -> bool {
        matches!(self, Self::RateLimit | Self::Authentication | Self::Unreachable)
    }

    /// It does answer, so it may answer another call well.
    fn is_answer(self) -> bool {
        matches!(self, Self::RateLimit | Self::NotFound | Self::Server)
    }
}

/// When a deployment steps back, and for how long. Default: what goes where nothing is configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rule {
    allowed: Option<AllowedFails>,
    /// The deployment's own `cooldown_time`, which nothing changes.
    own: Option<Duration>,
    /// That of all deployments, where the upstream does not say.
    general: Option<Duration>,
    /// It serves whatever name a call makes up, so an upstream's word on one name says nothing of the next.
    any_name: bool,
}

impl Rule {
    /// `None`: this deployment never steps back.
    pub fn new(entry: &ModelEntry, said: &Cooldown) -> Option<Self> {
        let rule = Self {
            allowed: said.allowed,
            own: entry.params.cooldown_time,
            general: said.time,
            any_name: entry.model_name.contains('*'),
        };
        let time = rule.own.or(rule.general);
        (!said.off && time != Some(Duration::ZERO)).then_some(rule)
    }

    /// Whether so many failures of so many calls within a minute are too much.
    fn is_broken(&self, symptom: Symptom, fails: u64, calls: u64) -> bool {
        let Some(allowed) = self.allowed else {
            return symptom.is_plain() || (calls >= FEW && fails * 2 > calls);
        };
        let of_it = match symptom {
            Symptom::RateLimit => allowed.rate_limit,
            Symptom::Authentication => allowed.authentication,
            Symptom::Timeout => allowed.timeout,
            Symptom::Server => allowed.server,
            Symptom::NotFound | Symptom::Unreachable => None,
        };
        fails > u64::from(of_it.unwrap_or(allowed.all))
    }

    /// `before`: how often it stepped back since its last good answer.
    fn time(&self, told: Option<Duration>, before: u32) -> Duration {
        let growing = || FIRST.saturating_mul(1 << before.min(8)).min(LONGEST);
        self.own
            .or(told.map(|t| t.min(MOST_PATIENCE)))
            .or(self.general)
            .unwrap_or_else(growing)
    }
}

/// How a deployment does.
#[derive(Default)]
struct Standing {
    /// It is cooling until then, in milliseconds of [`now`]; 0 = it is not.
    until: AtomicU64,
    /// Calls and failures of a minute, see [`Tally`].
    tally: AtomicU64,
    /// Cool-downs so far.
    begun: AtomicU32,
    /// Those of them that a good answer came after.
    forgiven: AtomicU32,
    /// What failed last got no answer, or none without other credentials.
    is_silent: AtomicBool,
}

/// How a deployment stood when a call was sent there. A call that was on its way when others failed says nothing of what
/// has been since, neither by its answer nor by its failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stance {
    until: u64,
    begun: u32,
}

/// How far from being asked a deployment is that is cooling: the lower, the sooner. One that answers comes before one
/// that does not; of these, the one whose time is over first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cooling {
    is_silent: bool,
    /// How long it stays back, in milliseconds.
    pub left: u64,
}

/// Of one minute, in one word: 16 bits of which, 24 of its calls, 24 of those that failed.
struct Tally {
    minute: u64,
    calls: u64,
    fails: u64,
}

impl Tally {
    const MOST: u64 = (1 << 24) - 1;

    fn at(word: u64, now: u64) -> Self {
        let minute = (now / MINUTE_MILLIS) & 0xFFFF;
        let same = word >> 48 == minute;
        Self {
            minute,
            calls: if same { (word >> 24) & Self::MOST } else { 0 },
            fails: if same { word & Self::MOST } else { 0 },
        }
    }

    /// So many more. Where no more calls fit, the parts stay as they are. A failure of a call that another minute counted
    /// is a call of this one.
    fn plus(mut self, calls: u64, fails: u64) -> Self {
        if self.calls < Self::MOST {
            self.fails += fails;
            self.calls = (self.calls + calls).max(self.fails);
        }
        self
    }

    fn word(&self) -> u64 {
        (self.minute << 48) | (self.calls << 24) | self.fails
    }
}

static STANDINGS: ByDeployment<Standing> = ByDeployment::new();
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds, from 1.
fn now() -> u64 {
    BASE.elapsed().as_millis() as u64 + 1
}

/// One deployment's standing, and the rule it is judged by.
#[derive(Clone)]
pub struct Bearing {
    rule: Rule,
    standing: Arc<Standing>,
}

impl Bearing {
    pub fn new(d: &Deployment, rule: Rule) -> Self {
        // Another address or key behind the same id is to be judged anew.
        let mut hasher = DefaultHasher::new();
        (&d.base.host, d.base.port, &d.base.path, d.base.tls).hash(&mut hasher);
        d.api_key.as_ref().map(|k| k.expose()).hash(&mut hasher);
        Self {
            rule,
            standing: STANDINGS.of(&format!("{:x} {}", hasher.finish(), d.id)),
        }
    }

    /// As it stands now, for a call that is sent there.
    pub fn stance(&self) -> Stance {
        Stance {
            until: self.standing.until.load(Relaxed),
            begun: self.standing.begun.load(Relaxed),
        }
    }

    /// Whether it is cooling.
    pub fn cooling(&self) -> Option<Cooling> {
        let until = self.standing.until.load(Relaxed);
        if until == 0 {
            return None;
        }
        let left = until.checked_sub(now()).filter(|left| *left > 0)?;
        Some(Cooling {
            is_silent: self.standing.is_silent.load(Relaxed),
            left,
        })
    }

    /// A good answer came to a call that was sent when it stood so. If it was to be left alone then, that is over.
    pub fn answered(&self, sent: Stance) {
        self.answered_at(sent, now());
    }

    fn answered_at(&self, sent: Stance, now: u64) {
        let s = &*self.standing;
        let add = |word| Some(Tally::at(word, now).plus(1, 0).word());
        // It always gives a word.
        let _ = s.tally.fetch_update(Relaxed, Relaxed, add);
        // A cool-down that began or grew since the call was sent is another one, and stays.
        if sent.until != 0 {
            let _ = s.until.compare_exchange(sent.until, 0, Relaxed, Relaxed);
        }
        if s.forgiven.load(Relaxed) < sent.begun {
            s.forgiven.fetch_max(sent.begun, Relaxed);
        }
    }

    /// An attempt failed that was sent when it stood so. `told`: when the upstream wants to be asked again. Returns for how
    /// long it steps back, if it does so now.
    pub fn failed(&self, sent: Stance, symptom: Symptom, told: Option<Duration>) -> Option<Duration> {
        self.failed_at(sent, symptom, told, 1, now())
    }

    /// The same of an answer that had begun well, and counts as a call already.
    pub fn broke_off(&self, sent: Stance) -> Option<Duration> {
        self.failed_at(sent, Symptom::Server, None, 0, now())
    }

    fn failed_at(
        &self,
        sent: Stance,
        symptom: Symptom,
        told: Option<Duration>,
        more: u64,
        now: u64,
    ) -> Option<Duration> {
        let s = &*self.standing;
        if self.rule.any_name && symptom != Symptom::Unreachable {
            return None;
        }
        s.is_silent.store(!symptom.is_answer(), Relaxed);
        let add = |word| Some(Tally::at(word, now).plus(more, 1).word());
        let before = s
            .tally
            .fetch_update(Relaxed, Relaxed, add)
            .unwrap_or_else(|word| word);
        let Tally { calls, fails, .. } = Tally::at(before, now).plus(more, 1);
        if !self.rule.is_broken(symptom, fails, calls) {
            return None;
        }
        let told = told.filter(|t| !t.is_zero() && self.rule.own.is_none());
        let begun = s.begun.load(Relaxed);
        let is_known = sent.begun != begun || s.until.load(Relaxed) > now;
        if is_known && told.is_none() {
            return None;
        }
        let before = begun.saturating_sub(s.forgiven.load(Relaxed));
        let time = self.rule.time(told, before);
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        // Of several that fail at once, one begins it.
        if s.until.fetch_max(now.saturating_add(millis), Relaxed) > now {
            return None;
        }
        s.begun.fetch_add(1, Relaxed);
        Some(time)
    }
}

#[cfg(test)]
mod tests;
