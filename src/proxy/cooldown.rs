//! Deployments that fail step back for a while: whoever is not cooling is tried before them. A cool-down takes nothing
//! away from a name, then: when nobody else is left, the deployment whose time is over first is asked all the same.
//!
//! What counts, and when it is too much, is LiteLLM's where its settings are given (manual: `docs/litellm-compat.md`).
//! Known in this process, over all generations of the config; other replicas find out for themselves.

use super::by_deployment::ByDeployment;
use crate::conf::{AllowedFails, Cooldown, ModelEntry};
use filters::model::deployment::Deployment;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
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
            500.. => Some(Self::Server),
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
}

/// When a deployment steps back, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Cool-downs since the last good answer.
    times: AtomicU32,
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

    /// So many more. Where no more calls fit, the parts stay as they are.
    fn plus(mut self, calls: u64, fails: u64) -> Self {
        if self.calls < Self::MOST {
            self.calls += calls;
            self.fails = (self.fails + fails).min(self.calls);
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

    /// For how long it stays back, in milliseconds.
    pub fn cooling(&self) -> Option<u64> {
        match self.standing.until.load(Relaxed) {
            0 => None,
            until => until.checked_sub(now()).filter(|left| *left > 0),
        }
    }

    /// A good answer came. `cooling`: although it was to be left alone, which ends that.
    pub fn answered(&self, cooling: bool) {
        self.answered_at(cooling, now());
    }

    fn answered_at(&self, cooling: bool, now: u64) {
        let Standing { until, tally, times } = &*self.standing;
        let add = |word| Some(Tally::at(word, now).plus(1, 0).word());
        // It always gives a word.
        let _ = tally.fetch_update(Relaxed, Relaxed, add);
        let end = until.load(Relaxed);
        // A call that was on its way when the others failed says nothing of what is now.
        if cooling || end <= now {
            if end != 0 {
                until.store(0, Relaxed);
            }
            if times.load(Relaxed) != 0 {
                times.store(0, Relaxed);
            }
        }
    }

    /// An attempt failed. `told`: when the upstream wants to be asked again. Returns for how long it steps back, if it does
    /// so now.
    pub fn failed(&self, symptom: Symptom, told: Option<Duration>) -> Option<Duration> {
        self.failed_at(symptom, told, 1, now())
    }

    /// The same of an answer that had begun well, and counts as a call already.
    pub fn broke_off(&self) -> Option<Duration> {
        self.failed_at(Symptom::Server, None, 0, now())
    }

    fn failed_at(&self, symptom: Symptom, told: Option<Duration>, more: u64, now: u64) -> Option<Duration> {
        let Standing { until, tally, times } = &*self.standing;
        let is_its_own = matches!(symptom, Symptom::Authentication | Symptom::Unreachable);
        if self.rule.any_name && !is_its_own {
            return None;
        }
        let add = |word| Some(Tally::at(word, now).plus(more, 1).word());
        let before = tally
            .fetch_update(Relaxed, Relaxed, add)
            .unwrap_or_else(|word| word);
        let Tally { calls, fails, .. } = Tally::at(before, now).plus(more, 1);
        let told = told.filter(|t| !t.is_zero());
        let is_cooling = until.load(Relaxed) > now;
        if !self.rule.is_broken(symptom, fails, calls) || (is_cooling && told.is_none()) {
            return None;
        }
        let time = self.rule.time(told, times.load(Relaxed));
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        // Of several that fail at once, one begins it.
        if until.fetch_max(now.saturating_add(millis), Relaxed) > now {
            return None;
        }
        times.fetch_add(1, Relaxed);
        Some(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use filters::testkit;

    const PLAIN: Rule = Rule {
        allowed: None,
        own: None,
        general: None,
        any_name: false,
    };

    /// Of a deployment that no other test has.
    fn bearing(rule: Rule) -> Bearing {
        let mut d = testkit::deployment("openai");
        d.id = uuid::Uuid::new_v4().to_string();
        Bearing::new(&d, rule)
    }

    fn fail(b: &Bearing, symptom: Symptom, told: Option<Duration>, at: u64) -> Option<Duration> {
        b.failed_at(symptom, told, 1, at)
    }

    fn secs(n: u64) -> Option<Duration> {
        Some(Duration::from_secs(n))
    }

    #[test]
    fn what_any_call_would_meet_is_enough_at_once() {
        for symptom in Symptom::ALL {
            let b = bearing(PLAIN);
            let cooled = fail(&b, symptom, None, 1).is_some();
            let plain = ["rate_limit", "authentication", "unreachable"];
            assert_eq!(cooled, plain.contains(&symptom.as_str()), "{symptom:?}");
        }
    }

    #[test]
    fn more_than_half_of_five_calls_of_a_minute_is_enough() {
        let b = bearing(PLAIN);
        let fails = || fail(&b, Symptom::Server, None, 1);
        for _ in 0..4 {
            assert_eq!(fails(), None, "four calls say nothing");
        }
        assert_eq!(fails(), secs(5));
        let b = bearing(PLAIN);
        for _ in 0..6 {
            b.answered_at(false, 1);
        }
        for _ in 0..6 {
            assert_eq!(fail(&b, Symptom::Timeout, None, 1), None);
        }
        assert_eq!(
            fail(&b, Symptom::Timeout, None, MINUTE_MILLIS),
            None,
            "another minute"
        );
    }

    #[test]
    fn seven_of_thirteen_are_more_than_half() {
        let b = bearing(PLAIN);
        (0..6).for_each(|_| b.answered_at(false, 1));
        let all: Vec<_> = (0..7).map(|_| fail(&b, Symptom::NotFound, None, 1)).collect();
        assert_eq!(all.iter().position(Option::is_some), Some(6));
    }

    #[test]
    fn an_answer_that_breaks_off_is_one_call_that_failed() {
        let b = bearing(PLAIN);
        let broken: Vec<_> = (0..5)
            .map(|_| {
                b.answered_at(false, 1);
                b.failed_at(Symptom::Server, None, 0, 1)
            })
            .collect();
        assert_eq!(broken.iter().position(Option::is_some), Some(4));
    }

    #[test]
    fn a_configured_number_is_let_pass() {
        let allowed = AllowedFails {
            all: 2,
            authentication: None,
            timeout: Some(0),
            rate_limit: Some(4),
            server: None,
        };
        let rule = Rule {
            allowed: Some(allowed),
            general: secs(30),
            ..PLAIN
        };
        let after = |symptom| {
            let b = bearing(rule);
            (1..9).find(|_| fail(&b, symptom, None, 1) == secs(30))
        };
        assert_eq!(after(Symptom::Server), Some(3));
        assert_eq!(after(Symptom::Unreachable), Some(3));
        assert_eq!(after(Symptom::Timeout), Some(1));
        assert_eq!(after(Symptom::RateLimit), Some(5));
    }

    #[test]
    fn each_further_time_is_longer_until_an_answer_comes() {
        let b = bearing(PLAIN);
        let mut at = 1;
        let mut step = || {
            let time = fail(&b, Symptom::Unreachable, None, at);
            at += 100_000;
            time.map_or(0, |t| t.as_secs())
        };
        assert_eq!([(); 6].map(|()| step()), [5, 10, 20, 40, 60, 60]);
        b.answered_at(false, 10_000_000);
        assert_eq!(fail(&b, Symptom::Unreachable, None, 10_000_001), secs(5));
    }

    #[test]
    fn the_upstreams_word_counts_up_to_an_hour_and_the_deployments_own_setting_more() {
        let limited = |rule, told| fail(&bearing(rule), Symptom::RateLimit, told, 1);
        let general = Rule {
            general: secs(7),
            ..PLAIN
        };
        let own = Rule {
            own: secs(2),
            ..general
        };
        assert_eq!(limited(PLAIN, secs(90)), secs(90));
        assert_eq!(limited(PLAIN, secs(86_400)), secs(3600));
        assert_eq!(limited(general, secs(90)), secs(90));
        assert_eq!(limited(general, Some(Duration::ZERO)), secs(7));
        assert_eq!(limited(own, secs(90)), secs(2));
        assert_eq!(limited(PLAIN, Some(Duration::MAX)), secs(3600));
    }

    #[test]
    fn one_of_many_begins_it_and_only_a_later_word_makes_it_longer() {
        let b = bearing(PLAIN);
        assert_eq!(fail(&b, Symptom::RateLimit, None, 1000), secs(5));
        assert_eq!(fail(&b, Symptom::RateLimit, None, 2000), None);
        assert_eq!(b.standing.until.load(Relaxed), 6000, "no longer for that");
        assert_eq!(fail(&b, Symptom::RateLimit, secs(1), 2000), None);
        assert_eq!(b.standing.until.load(Relaxed), 6000, "nor shorter");
        assert_eq!(fail(&b, Symptom::RateLimit, secs(30), 2000), None);
        assert_eq!(b.standing.until.load(Relaxed), 32_000);
    }

    #[test]
    fn an_answer_ends_it_if_it_was_asked_for_meanwhile() {
        let b = bearing(PLAIN);
        assert_eq!(b.failed(Symptom::RateLimit, secs(100)), secs(100));
        b.answered(false);
        assert!(
            b.cooling().is_some_and(|left| left > 50_000),
            "it was under way before"
        );
        b.answered(true);
        assert_eq!(b.cooling(), None);
    }

    #[test]
    fn made_up_names_do_not_bring_a_wildcard_down() {
        let b = bearing(Rule {
            any_name: true,
            ..PLAIN
        });
        for _ in 0..100 {
            assert_eq!(fail(&b, Symptom::NotFound, None, 1), None);
            assert_eq!(fail(&b, Symptom::RateLimit, secs(9), 1), None);
        }
        assert_eq!(fail(&b, Symptom::Unreachable, None, 1), secs(5));
    }

    #[test]
    fn a_new_key_is_judged_anew() {
        let mut d = testkit::deployment("openai");
        d.id = "cooldown-test".into();
        let old = Bearing::new(&d, PLAIN);
        assert!(old.failed(Symptom::Authentication, None).is_some());
        assert!(
            Bearing::new(&d, PLAIN).cooling().is_some(),
            "the same after a reload"
        );
        d.api_key = Some("another".into());
        assert_eq!(Bearing::new(&d, PLAIN).cooling(), None);
    }

    #[test]
    fn a_tally_is_full_some_day() {
        let full = Tally {
            minute: 0,
            calls: Tally::MOST,
            fails: 7,
        };
        let more = Tally::at(full.word(), 1).plus(1, 1);
        assert_eq!((more.calls, more.fails), (Tally::MOST, 7));
        let next = Tally::at(full.word(), MINUTE_MILLIS).plus(1, 1);
        assert_eq!((next.minute, next.calls, next.fails), (1, 1, 1));
    }
}
