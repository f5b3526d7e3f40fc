//! Deployments that fail step back for a while: whoever is not cooling is tried before them. A cool-down takes nothing
//! away from a name, then: when nobody else is left, the deployment whose time is over first is asked all the same.
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
mod tests {
    use super::*;
    use crate::conf::{Env, load_text};
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
        b.failed_at(b.stance(), symptom, told, 1, at)
    }

    fn answer(b: &Bearing, at: u64) {
        b.answered_at(b.stance(), at);
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
            answer(&b, 1);
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
        (0..6).for_each(|_| answer(&b, 1));
        let all: Vec<_> = (0..7).map(|_| fail(&b, Symptom::NotFound, None, 1)).collect();
        assert_eq!(all.iter().position(Option::is_some), Some(6));
    }

    #[test]
    fn an_answer_that_breaks_off_is_one_call_that_failed() {
        let b = bearing(PLAIN);
        let broken: Vec<_> = (0..5)
            .map(|_| {
                answer(&b, 1);
                b.failed_at(b.stance(), Symptom::Server, None, 0, 1)
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
        answer(&b, 10_000_000);
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
        let before = b.stance();
        assert_eq!(b.failed(before, Symptom::RateLimit, secs(100)), secs(100));
        b.answered(before);
        assert!(
            b.cooling().is_some_and(|c| c.left > 50_000),
            "it was under way before"
        );
        let meanwhile = b.stance();
        b.failed(meanwhile, Symptom::RateLimit, secs(1000));
        b.answered(meanwhile);
        assert!(
            b.cooling().is_some_and(|c| c.left > 500_000),
            "it has asked for more since"
        );
        b.answered(b.stance());
        assert_eq!(b.cooling(), None);
    }

    #[test]
    fn calls_that_were_on_their_way_do_not_make_it_longer() {
        let b = bearing(PLAIN);
        let before = b.stance();
        assert_eq!(fail(&b, Symptom::Unreachable, None, 1000), secs(5));
        // They hung where the first one did, and give up one by one.
        for at in [2000, 6000, 7000, 20_000] {
            assert_eq!(b.failed_at(before, Symptom::Unreachable, None, 1, at), None);
        }
        assert_eq!(fail(&b, Symptom::Unreachable, None, 21_000), secs(10));
        // What the upstream says, it says now.
        let told = b.failed_at(before, Symptom::RateLimit, secs(3), 1, 50_000);
        assert_eq!(told, secs(3));
    }

    #[test]
    fn an_answer_forgives_what_was_before_it_was_asked_for() {
        let b = bearing(PLAIN);
        let first = b.stance();
        assert_eq!(fail(&b, Symptom::Unreachable, None, 1000), secs(5));
        b.answered_at(first, 9000);
        assert_eq!(fail(&b, Symptom::Unreachable, None, 10_000), secs(10));
        answer(&b, 30_000);
        assert_eq!(fail(&b, Symptom::Unreachable, None, 40_000), secs(5));
    }

    #[test]
    fn an_answer_that_breaks_off_in_another_minute_is_one_of_its_calls() {
        let none_allowed = AllowedFails {
            all: 0,
            authentication: None,
            timeout: None,
            rate_limit: None,
            server: None,
        };
        let b = bearing(Rule {
            allowed: Some(none_allowed),
            ..PLAIN
        });
        answer(&b, 1);
        let broke_off = b.failed_at(b.stance(), Symptom::Server, None, 0, MINUTE_MILLIS);
        assert_eq!(broke_off, secs(5));
        let b = bearing(PLAIN);
        let mut broken = (0..5).map(|_| b.failed_at(b.stance(), Symptom::Server, None, 0, MINUTE_MILLIS));
        assert_eq!(broken.position(|time| time.is_some()), Some(4));
    }

    #[test]
    fn the_deployments_own_time_is_not_made_longer_by_the_upstreams_word() {
        let b = bearing(Rule {
            own: secs(5),
            ..PLAIN
        });
        assert_eq!(fail(&b, Symptom::RateLimit, secs(60), 1000), secs(5));
        assert_eq!(fail(&b, Symptom::RateLimit, secs(60), 3000), None);
        assert_eq!(b.standing.until.load(Relaxed), 6000);
    }

    #[test]
    fn who_answers_is_asked_before_who_does_not() {
        let cooling = |symptom, told| {
            let b = bearing(PLAIN);
            while b.failed(b.stance(), symptom, told).is_none() {}
            b.cooling().unwrap()
        };
        let limited = cooling(Symptom::RateLimit, secs(3600));
        for answers in [Symptom::NotFound, Symptom::Server] {
            assert!(cooling(answers, secs(60)) < limited, "{answers:?}");
        }
        for silent in [Symptom::Unreachable, Symptom::Authentication, Symptom::Timeout] {
            assert!(limited < cooling(silent, None), "{silent:?}");
        }
        let b = bearing(PLAIN);
        b.failed(b.stance(), Symptom::RateLimit, secs(3600));
        b.failed(b.stance(), Symptom::Unreachable, None);
        assert!(limited < b.cooling().unwrap(), "the last failure counts");
    }

    #[test]
    fn made_up_names_do_not_bring_a_wildcard_down() {
        let b = bearing(Rule {
            any_name: true,
            ..PLAIN
        });
        for _ in 0..100 {
            for symptom in Symptom::ALL.into_iter().filter(|s| *s != Symptom::Unreachable) {
                assert_eq!(fail(&b, symptom, secs(9), 1), None, "{symptom:?}");
            }
        }
        assert_eq!(fail(&b, Symptom::Unreachable, None, 1), secs(5));
    }

    #[test]
    fn a_new_key_is_judged_anew() {
        let mut d = testkit::deployment("openai");
        d.id = "cooldown-test".into();
        let old = Bearing::new(&d, PLAIN);
        assert!(old.failed(old.stance(), Symptom::Authentication, None).is_some());
        assert!(
            Bearing::new(&d, PLAIN).cooling().is_some(),
            "the same after a reload"
        );
        d.base.port += 1;
        assert_eq!(Bearing::new(&d, PLAIN).cooling(), None);
        d.base.port -= 1;
        d.api_key = Some("another".into());
        assert_eq!(Bearing::new(&d, PLAIN).cooling(), None);
    }

    #[test]
    fn a_rule_is_what_the_config_says() {
        let rule = |more: &str, settings: &str| {
            let entry = format!("{{model_name: a, litellm_params: {{model: openai/a{more}}}}}");
            let text = format!("model_list: [{entry}]\nrouter_settings: {{{settings}}}");
            let conf = load_text("test", &text, &Env::default()).unwrap().conf;
            Rule::new(&conf.models[0], &conf.cooldown)
        };
        assert_eq!(rule("", ""), Some(PLAIN));
        assert_eq!(rule("", "disable_cooldowns: true"), None);
        assert_eq!(rule("", "cooldown_time: 0"), None);
        assert_eq!(rule(", cooldown_time: 0", "cooldown_time: 9"), None);
        let own = Rule {
            own: secs(3),
            general: secs(0),
            ..PLAIN
        };
        assert_eq!(rule(", cooldown_time: 3", "cooldown_time: 0"), Some(own));
        let general = Rule {
            general: secs(9),
            ..PLAIN
        };
        assert_eq!(rule("", "cooldown_time: 9"), Some(general));
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
