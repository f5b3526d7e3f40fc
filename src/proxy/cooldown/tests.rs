//! When a deployment steps back, by whose word, and what brings it back.

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
