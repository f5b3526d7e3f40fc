//! When a deployment that fails steps back, and for how long: LiteLLM's `allowed_fails`, `allowed_fails_policy`,
//! `cooldown_time` and `disable_cooldowns`. A deployment's own `cooldown_time` is read in `models`.

use super::fields::Fields;
use super::keys::Fate::{self, Needless};
use super::meters::section;
use super::node::Node;
use super::report::Notes;
use super::settings::rest;
use std::time::Duration;

/// What the config says of cool-downs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cooldown {
    /// `disable_cooldowns`.
    pub off: bool,
    /// Failures within a minute that are let pass. Default: by which part of its calls fails.
    pub allowed: Option<AllowedFails>,
    /// `cooldown_time`; zero = no cool-down. Default: 5 seconds, growing.
    pub time: Option<Duration>,
}

/// Failures within a minute that are let pass, by what the last of them was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllowedFails {
    /// `allowed_fails`: of what nothing else is said.
    pub all: u32,
    pub authentication: Option<u32>,
    pub timeout: Option<u32>,
    pub rate_limit: Option<u32>,
    pub server: Option<u32>,
}

/// LiteLLM's `allowed_fails` where there is but a policy.
const ALLOWED: u32 = 3;

/// Fields of `litellm_settings` that are read here.
pub(super) const LITELLM: [&str; 2] = ["allowed_fails", "cooldown_time"];
/// Those of `router_settings`, which win.
pub(super) const ROUTER: [&str; 4] = [
    "allowed_fails",
    "cooldown_time",
    "allowed_fails_policy",
    "disable_cooldowns",
];

/// Fields of a policy without effect.
const OF_REQUESTS: &[(&str, Fate)] = &[
    ("BadRequestErrorAllowedFails", Needless(NEVER)),
    ("ContentPolicyViolationErrorAllowedFails", Needless(NEVER)),
];
const NEVER: &str = "what is wrong with a request is never held against a deployment";

/// Reads both sections.
pub(super) fn read(root: &Node, notes: &Notes) -> Cooldown {
    let litellm = section(root, "litellm_settings", notes);
    let router = section(root, "router_settings", notes);
    let count = |fields: &Option<Fields<'_>>| fields.as_ref()?.small_count("allowed_fails");
    let time = |fields: &Option<Fields<'_>>| fields.as_ref()?.duration("cooldown_time");
    // Both are read, so that both are checked.
    let (all, of_all) = (count(&router), count(&litellm));
    let (own, of_own) = (time(&router), time(&litellm));
    let all = all.or(of_all);
    let mut out = Cooldown {
        off: false,
        allowed: all.map(AllowedFails::of_all),
        time: own.or(of_own),
    };
    let Some(router) = router else { return out };
    out.off = router.flag("disable_cooldowns").unwrap_or(false);
    if let Some(policy) = router.child("allowed_fails_policy") {
        out.allowed = Some(AllowedFails {
            all: all.unwrap_or(ALLOWED),
            authentication: policy.small_count("AuthenticationErrorAllowedFails"),
            timeout: policy.small_count("TimeoutErrorAllowedFails"),
            rate_limit: policy.small_count("RateLimitErrorAllowedFails"),
            server: policy.small_count("InternalServerErrorAllowedFails"),
        });
        const USED: [&str; 4] = [
            "AuthenticationErrorAllowedFails",
            "TimeoutErrorAllowedFails",
            "RateLimitErrorAllowedFails",
            "InternalServerErrorAllowedFails",
        ];
        rest(&policy, &USED, OF_REQUESTS);
    }
    out
}

impl AllowedFails {
    fn of_all(all: u32) -> Self {
        Self {
            all,
            authentication: None,
            timeout: None,
            rate_limit: None,
            server: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Env, load_text};
    use super::*;

    fn said(text: &str) -> (Cooldown, Vec<String>) {
        let loaded = load_text("config.yaml", text, &Env::default()).unwrap();
        let problems = loaded.report.problems.iter().map(|p| p.message.clone());
        (loaded.conf.cooldown.clone(), problems.collect())
    }

    #[test]
    fn the_router_wins_over_litellm() {
        let both = "litellm_settings: {allowed_fails: 9, cooldown_time: 30}\n";
        let (read, problems) = said(both);
        assert_eq!(problems, [""; 0]);
        assert_eq!(read.allowed, Some(AllowedFails::of_all(9)));
        assert_eq!(read.time, Some(Duration::from_secs(30)));
        let (read, _) = said(&format!(
            "{both}router_settings: {{allowed_fails: 0, cooldown_time: 0.5}}"
        ));
        assert_eq!(read.allowed, Some(AllowedFails::of_all(0)));
        assert_eq!(read.time, Some(Duration::from_millis(500)));
        let (read, _) = said("router_settings: {disable_cooldowns: true}");
        assert_eq!((read.off, read.allowed, read.time), (true, None, None));
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_its_name() {
        let model = "model_list: [{model_name: a, litellm_params: {model: openai/a, cooldown_time: X}}]";
        for (text, field) in [
            ("litellm_settings: {allowed_fails: -1}", "allowed_fails"),
            ("router_settings: {allowed_fails: 5000000000}", "allowed_fails"),
            ("router_settings: {allowed_fails: 1.5}", "allowed_fails"),
            ("litellm_settings: {cooldown_time: soon}", "cooldown_time"),
            ("router_settings: {cooldown_time: -5}", "cooldown_time"),
            ("router_settings: {cooldown_time: .inf}", "cooldown_time"),
            (
                "router_settings: {disable_cooldowns: perhaps}",
                "disable_cooldowns",
            ),
            (
                "router_settings: {allowed_fails_policy: 3}",
                "allowed_fails_policy",
            ),
            (
                "router_settings: {allowed_fails_policy: [3]}",
                "allowed_fails_policy",
            ),
            (
                "router_settings: {allowed_fails_policy: {TimeoutErrorAllowedFails: many}}",
                "TimeoutErrorAllowedFails",
            ),
            (&model.replace('X', "-1"), "cooldown_time"),
            (&model.replace('X', "[1]"), "cooldown_time"),
        ] {
            let loaded = load_text("config.yaml", text, &Env::default());
            let report = loaded.err().unwrap_or_else(|| panic!("{text} is taken"));
            let said = report
                .problems
                .iter()
                .any(|p| p.message.contains(field) || p.path.contains(field));
            assert!(said, "{text}: {:?}", report.problems);
        }
        let (read, problems) = said("router_settings: {cooldown_time: null, allowed_fails: null}");
        assert_eq!((read.time, read.allowed, problems), (None, None, Vec::new()));
    }

    #[test]
    fn a_policy_is_read_and_what_cannot_count_is_named() {
        let (read, problems) = said(
            "router_settings:\n  allowed_fails_policy:\n    RateLimitErrorAllowedFails: 100\n    \
             TimeoutErrorAllowedFails: 0\n    BadRequestErrorAllowedFails: 1000\n    TimeoutErrorFails: 1\n",
        );
        let policy = AllowedFails {
            rate_limit: Some(100),
            timeout: Some(0),
            ..AllowedFails::of_all(ALLOWED)
        };
        assert_eq!(read.allowed, Some(policy));
        assert!(
            problems
                .iter()
                .any(|p| p.contains("BadRequestErrorAllowedFails") && p.contains(NEVER))
        );
        assert!(
            problems
                .iter()
                .any(|p| p.contains("unknown field `TimeoutErrorFails`"))
        );
    }
}
