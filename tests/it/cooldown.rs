//! Deployments that fail step back behind the others of their name, and are never missed by it.

use crate::kit::client::{Answer, ask, chat};
use crate::kit::gateway::{Gateway, Setup};
use crate::kit::until;
use crate::kit::upstream::{Script, Upstream, delta, usage};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Nothing listens there.
const NOWHERE: &str = "http://127.0.0.1:1/v1";
/// Longer than any test.
const LONG: &str = "1h";

/// Answers well or with `bad`, as the switch stands.
async fn moody(bad: Script) -> (Upstream, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = Arc::clone(&well);
    let upstream = Upstream::start(move |_| match is_well.load(SeqCst) {
        true => Script::chat("well again"),
        false => bad.clone(),
    });
    (upstream.await, well)
}

fn limited(headers: &[(&str, &str)]) -> Script {
    let mut all = vec![("content-type", "application/json")];
    all.extend(headers);
    Script::answer(429, &all, r#"{"error": {"message": "slow down"}}"#)
}

async fn call(gateway: &Gateway) -> Answer {
    chat(gateway, &json!({"model": "small", "messages": []})).await
}

/// Calls that were answered by the deployment of this id, at the first attempt.
async fn answered_by(gateway: &Gateway, id: &str) {
    for _ in 0..10 {
        let answer = call(gateway).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert_eq!(answer.head.header("x-litellm-model-id"), Some(id));
        let retries = answer.head.header("x-litellm-attempted-retries").unwrap_or("0");
        assert_eq!(retries, "0");
    }
}

/// Two deployments; the first is the preferred one.
fn pair(first: &str, second: &str, more: &Value) -> Setup {
    let with = |id: &str, order: u8| {
        let mut all = json!({"id": id, "order": order});
        for (field, value) in more.as_object().unwrap() {
            all[field] = value.clone();
        }
        all
    };
    Setup::new()
        .deployment("small", first, with("first", 1))
        .deployment("small", second, with("second", 2))
}

async fn metric(gateway: &Gateway, start: &str) -> Option<String> {
    let page = ask(gateway, "GET", "/metrics", &[], "").await.text();
    let line = page.lines().find(|l| l.starts_with(start))?;
    line.rsplit(' ').next().map(Into::into)
}

#[tokio::test]
async fn an_upstream_that_asks_for_time_gets_it() {
    let (first, well) = moody(limited(&[("retry-after", "1")])).await;
    let second = Upstream::good().await;
    let gateway = pair(&first.base(), &second.base(), &json!({})).start().await;
    assert_eq!(call(&gateway).await.status(), 200);
    assert_eq!((first.count(), second.count()), (1, 1));
    let counted = "tollkeeper_deployment_cooldowns_total{deployment=\"first\",model=\"small\",\
                   provider=\"openai\",reason=\"rate_limit\"}";
    assert_eq!(metric(&gateway, counted).await.as_deref(), Some("1"));
    let log = gateway.log();
    let told =
        "event=cooldown model=\\\"small\\\" deployment=\\\"first\\\" reason=rate_limit status=429 seconds=1";
    assert!(log.contains(told), "{log}");
    well.store(true, SeqCst);
    until("the first one is asked again", async || {
        call(&gateway).await;
        first.count() > 1
    })
    .await;
    answered_by(&gateway, "first").await;
}

#[tokio::test]
async fn a_machine_that_is_off_is_waited_for_once() {
    let second = Upstream::good().await;
    let gateway = pair(NOWHERE, &second.base(), &json!({"cooldown_time": LONG}))
        .start()
        .await;
    let answer = call(&gateway).await;
    assert_eq!(answer.head.header("x-litellm-attempted-retries"), Some("1"));
    answered_by(&gateway, "second").await;
    let cooling = "tollkeeper_deployment_cooling{deployment=\"first\"";
    assert_eq!(metric(&gateway, cooling).await.as_deref(), Some("1"));
    // A config with other models in it changes nothing for this one.
    let more = pair(NOWHERE, &second.base(), &json!({"cooldown_time": LONG})).model("more", &second);
    gateway.rewrite(&more.config());
    gateway.signal("HUP");
    until("the other model is there", async || {
        let answer = chat(&gateway, &json!({"model": "more", "messages": []})).await;
        answer.status() == 200
    })
    .await;
    answered_by(&gateway, "second").await;
    // Without cool-downs it is tried again by each call.
    let off = more.router("disable_cooldowns", json!(true));
    gateway.rewrite(&off.config());
    gateway.signal("HUP");
    until("the first one is tried again", async || {
        let answer = call(&gateway).await;
        answer.head.header("x-litellm-attempted-retries") == Some("1")
    })
    .await;
}

#[tokio::test]
async fn a_name_whose_deployments_all_are_cooling_still_serves() {
    let (first, well) = moody(limited(&[("retry-after", "3600")])).await;
    let (second, _) = moody(limited(&[("retry-after", "1800")])).await;
    let gateway = pair(&first.base(), &second.base(), &json!({})).start().await;
    let refused = call(&gateway).await;
    assert_eq!(refused.status(), 429);
    assert_eq!((first.count(), second.count()), (1, 1));
    for n in 2..6 {
        let refused = call(&gateway).await;
        assert_eq!(refused.status(), 429, "{}", refused.text());
        assert!(refused.text().contains("slow down"), "{}", refused.text());
        assert_eq!(refused.head.header("retry-after"), Some("1800"));
        assert_eq!(
            (first.count(), second.count()),
            (1, n),
            "one is asked: that whose time is over first"
        );
    }
    // What was asked though it was cooling, and answers, is well.
    let (third, third_is_well) = moody(limited(&[("retry-after", "3600")])).await;
    let bad = Script::error(503, "I am starting");
    let (fourth, _) = moody(bad).await;
    let gateway = pair(&third.base(), &fourth.base(), &json!({"cooldown_time": LONG}))
        .router("allowed_fails", json!(0))
        .start()
        .await;
    assert_eq!(call(&gateway).await.status(), 503);
    third_is_well.store(true, SeqCst);
    answered_by(&gateway, "first").await;
    assert_eq!(fourth.count(), 1);
    drop(well);
}

#[tokio::test]
async fn the_only_deployment_of_a_name_never_steps_back() {
    let (only, well) = moody(limited(&[("retry-after", "3600")])).await;
    let gateway = Setup::new().model("small", &only).start().await;
    for n in 1..4 {
        assert_eq!(call(&gateway).await.status(), 429);
        assert_eq!(only.count(), n);
    }
    well.store(true, SeqCst);
    assert_eq!(call(&gateway).await.status(), 200);
}

#[tokio::test]
async fn as_many_failures_are_let_pass_as_the_config_says() {
    let first = Upstream::start(|_| Script::error(500, "not me")).await;
    let second = Upstream::good().await;
    let gateway = pair(&first.base(), &second.base(), &json!({}))
        .router("allowed_fails", json!(3))
        .router("allowed_fails_policy", json!({"RateLimitErrorAllowedFails": 0}))
        .router("cooldown_time", json!(3600))
        .start()
        .await;
    // The fourth within a minute is one too many; a new minute may begin meanwhile.
    until("it steps back", async || {
        call(&gateway).await;
        metric(&gateway, "tollkeeper_deployment_cooling{deployment=\"first\"")
            .await
            .as_deref()
            == Some("1")
    })
    .await;
    assert!((4..8).contains(&first.count()), "{}", first.count());
    answered_by(&gateway, "second").await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_held_against_its_deployment() {
    let first = Upstream::start(|_| Script::sse(&[&delta("half a")]).close()).await;
    let second = Upstream::start(|_| Script::sse(&[&delta("whole"), &usage(1, 1), "[DONE]"]).end()).await;
    let gateway = pair(&first.base(), &second.base(), &json!({"cooldown_time": LONG}))
        .router("allowed_fails", json!(0))
        .start()
        .await;
    let stream = json!({"model": "small", "messages": [], "stream": true});
    let cut = chat(&gateway, &stream).await;
    assert!(cut.text().contains("broke off"), "{}", cut.text());
    for _ in 0..5 {
        let whole = chat(&gateway, &stream).await;
        assert!(whole.text().contains("whole"), "{}", whole.text());
    }
    assert_eq!(first.count(), 1);
}
