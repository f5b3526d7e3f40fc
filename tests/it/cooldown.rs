//! Deployments that fail step back behind the others of their name, and are never missed by it.

use crate::kit::client::{Answer, Conn, ask, chat, request};
use crate::kit::gateway::{Gateway, Setup};
use crate::kit::upstream::{Script, Upstream, delta, usage};
use crate::kit::{postgres, until};
use serde_json::{Value, json};
use std::process::Command;
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
    let told =
        "event=cooldown model=\\\"small\\\" deployment=\\\"first\\\" reason=rate_limit status=429 seconds=1";
    gateway.says(told).await;
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
        assert!(refused.head.header("retry-after").is_some());
        assert_eq!((first.count(), second.count()), (n, n), "none is left out");
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
    assert!(!is_cooling(&gateway, "first").await && is_cooling(&gateway, "second").await);
    assert_eq!(fourth.count(), 1);
    drop(well);
}

/// What answers at the second try only, whoever is asked.
#[tokio::test]
async fn two_that_fail_now_and_then_still_serve_every_call() {
    let shaky = Upstream::start(|seen| match seen.n % 2 {
        0 => Script::error(503, "once more"),
        _ => Script::chat("well"),
    })
    .await;
    let gateway = pair(&shaky.base(), &shaky.base(), &json!({"cooldown_time": LONG}))
        .router("allowed_fails", json!(0))
        .start()
        .await;
    for _ in 0..10 {
        assert_eq!(call(&gateway).await.status(), 200);
    }
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
    // The second one says nowhere how long it is, so that only its last word would tell that it is whole.
    let endless = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let endless = format!("{endless}data: {}\n\n", delta("half a"));
    for half in [Script::sse(&[&delta("half a")]), Script::nothing().raw(endless)] {
        let first = Upstream::start(move |_| half.clone().close()).await;
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
}

async fn is_cooling(gateway: &Gateway, id: &str) -> bool {
    let cooling = format!("tollkeeper_deployment_cooling{{deployment=\"{id}\"");
    metric(gateway, &cooling).await.as_deref() == Some("1")
}

#[tokio::test]
async fn what_is_no_fault_of_a_deployment_is_not_held_against_it() {
    let hangs = Arc::new(AtomicBool::new(false));
    let hanging = Arc::clone(&hangs);
    let first = Upstream::start(move |seen| match seen.json()["max_tokens"].as_u64() {
        _ if hanging.load(SeqCst) => Script::nothing().hang(),
        Some(status) => Script::error(u16::try_from(status).unwrap(), "your fault"),
        None => Script::chat("well"),
    })
    .await;
    let second = Upstream::start(|_| Script::error(400, "your fault")).await;
    let gateway = pair(&first.base(), &second.base(), &json!({"cooldown_time": LONG}))
        .router("allowed_fails", json!(0))
        .setting("timeouts", json!({"total": "1s"}))
        .start()
        .await;
    // What a caller asks for.
    for status in [400, 403, 409, 413, 422] {
        let body = json!({"model": "small", "messages": [], "max_tokens": status});
        assert!(chat(&gateway, &body).await.status() >= 400);
        assert!(!is_cooling(&gateway, "first").await, "{status}");
    }
    // A caller that leaves.
    hangs.store(true, SeqCst);
    let n = first.count();
    let mut leaver = Conn::open(gateway.at).await;
    let body = json!({"model": "small", "messages": []}).to_string();
    leaver
        .send(&request("POST", "/v1/chat/completions", &[], body.as_bytes()))
        .await;
    let seen = first.request(n).await;
    drop(leaver);
    seen.end().await;
    // A call whose own time is over.
    assert_eq!(call(&gateway).await.status(), 408);
    assert!(!is_cooling(&gateway, "first").await);
    assert!(!is_cooling(&gateway, "second").await);
    hangs.store(false, SeqCst);
    answered_by(&gateway, "first").await;
}

#[tokio::test]
async fn a_gateway_that_has_no_socket_to_spare_blames_nobody() {
    let (first, second) = (Upstream::good().await, Upstream::good().await);
    let gateway = pair(&first.base(), &second.base(), &json!({"cooldown_time": LONG}))
        .start()
        .await;
    let mut conn = Conn::open(gateway.at).await;
    let answer = conn.ask("GET", "/metrics", &[], b"").await;
    assert_eq!(answer.status(), 200);
    let files = |soft: &str| {
        let pid = gateway.pid().to_string();
        let limit = format!("--nofile={soft}:");
        let done = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(done.unwrap().success());
    };
    files("1");
    let body = json!({"model": "small", "messages": []}).to_string();
    let refused = conn
        .ask("POST", "/v1/chat/completions", &[], body.as_bytes())
        .await;
    assert_eq!(refused.status(), 503, "{}", refused.text());
    assert!(refused.text().contains("cannot be reached"), "{}", refused.text());
    files("512");
    for id in ["first", "second"] {
        assert!(!is_cooling(&gateway, id).await, "{id}");
    }
    answered_by(&gateway, "first").await;
}

#[tokio::test]
async fn one_that_is_off_does_not_stand_before_one_that_has_but_asked_for_time() {
    let (second, well) = moody(limited(&[("retry-after", "3600")])).await;
    let gateway = pair(NOWHERE, &second.base(), &json!({})).start().await;
    assert_eq!(call(&gateway).await.status(), 429);
    well.store(true, SeqCst);
    answered_by(&gateway, "second").await;
    // Nor in a further round of one call.
    let once = Arc::new(AtomicBool::new(false));
    let third = Upstream::start(move |_| match once.swap(true, SeqCst) {
        true => Script::chat("well again"),
        false => limited(&[("retry-after", "3600")]),
    })
    .await;
    let gateway = pair(NOWHERE, &third.base(), &json!({}))
        .router("num_retries", json!(1))
        .start()
        .await;
    assert_eq!(call(&gateway).await.status(), 200);
    assert_eq!(third.count(), 2);
}

#[tokio::test]
async fn the_shortest_pauses_are_counted_and_fill_no_log() {
    let first = Upstream::start(|_| limited(&[("retry-after-ms", "1")])).await;
    let second = Upstream::good().await;
    let gateway = pair(&first.base(), &second.base(), &json!({})).start().await;
    until("it has stepped back a few times", async || {
        assert_eq!(call(&gateway).await.status(), 200);
        let start = "tollkeeper_deployment_cooldowns_total{deployment=\"first\"";
        let times = metric(&gateway, start).await;
        times.is_some_and(|n| n.parse::<u64>().unwrap() > 2)
    })
    .await;
    assert!(!gateway.log().contains("event=cooldown"), "{}", gateway.log());
}

#[tokio::test]
async fn an_admin_sees_for_how_long() {
    let first = Upstream::start(|seen| match seen.method.as_str() {
        "GET" => Script::json(200, &json!({"object": "list", "data": []})),
        _ => limited(&[("retry-after", "1800")]),
    })
    .await;
    let second = Upstream::good().await;
    let gateway = pair(&first.base(), &second.base(), &json!({}))
        .setting("health", json!({"check_every": "1s"}))
        .start()
        .await;
    let row = async || {
        let seen = ask(&gateway, "GET", "/health", &[], "").await.json();
        let rows = seen["healthy_endpoints"].as_array().unwrap();
        rows.iter().find(|r| r["model_id"] == "first").cloned()
    };
    until("it has been looked at", async || row().await.is_some()).await;
    assert_eq!(row().await.unwrap()["cooling_seconds"], Value::Null);
    assert_eq!(call(&gateway).await.status(), 200);
    let row = row().await.unwrap();
    let left = row["cooling_seconds"].as_f64().unwrap();
    assert!((1700.0..=1800.0).contains(&left), "{row}");
}

#[tokio::test]
async fn a_deployment_of_the_database_has_its_own_time() {
    let second = Upstream::good().await;
    let gateway = Setup::new()
        .deployment("small", &second.base(), json!({"id": "second", "order": 2}))
        .database(&postgres::shared().database())
        .general("salt_key", json!("sk-salt-key-of-the-tests"))
        .start()
        .await;
    let first = json!({
        "model_name": "small",
        "litellm_params": {"model": "openai/up-small", "api_base": NOWHERE, "api_key": "sk-x", "order": 1,
            "cooldown_time": LONG},
        "model_info": {"id": "first"},
    });
    let made = ask(&gateway, "POST", "/model/new", &[], first.to_string()).await;
    assert_eq!(made.status(), 200, "{}", made.text());
    let info = ask(&gateway, "GET", "/v1/model/info?litellm_model_id=first", &[], "").await;
    let params = &info.json()["data"][0]["litellm_params"];
    assert_eq!(params["cooldown_time"], 3600.0, "{params}");
    assert_eq!(call(&gateway).await.status(), 200);
    gateway.says("reason=unreachable status=0 seconds=3600").await;
    let bad = json!({"litellm_params": {"cooldown_time": "soon"}});
    let refused = ask(&gateway, "PATCH", "/model/first/update", &[], bad.to_string()).await;
    assert_eq!(refused.status(), 400, "{}", refused.text());
    assert!(refused.text().contains("cooldown_time"), "{}", refused.text());
    let never = json!({"litellm_params": {"cooldown_time": 0}});
    let changed = ask(&gateway, "PATCH", "/model/first/update", &[], never.to_string()).await;
    assert_eq!(changed.status(), 200, "{}", changed.text());
    let answer = call(&gateway).await;
    assert_eq!(
        answer.head.header("x-litellm-attempted-retries"),
        Some("1"),
        "never"
    );
}
