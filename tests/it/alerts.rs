//! Warnings to people, as those who listen get them.

use crate::kit::client::ask;
use crate::kit::gateway::{Gateway, Setup, plain_key};
use crate::kit::postgres;
use crate::kit::upstream::{Script, Upstream};
use crate::kit::{until, within};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const KEY: &str = "sk-key-of-the-alert-tests";

/// Takes all that is posted; the first post it refuses, as one that is out of order does.
async fn receiver() -> Upstream {
    Upstream::start(|seen| match seen.n {
        0 => Script::answer(503, &[("retry-after", "0")], "later"),
        _ => Script::json(200, &json!({})),
    })
    .await
}

fn address(receiver: &Upstream) -> String {
    format!("http://127.0.0.1:{}/hook/the-webhook-token", receiver.port)
}

/// What was posted so far, but for the first, which was refused.
async fn posted(receiver: &Upstream) -> Vec<Value> {
    let mut all = Vec::new();
    for n in 1..receiver.count() {
        let post = receiver.request(n).await;
        post.end().await;
        all.push(post.json());
    }
    all
}

/// The post of this event, once it is there, and as often as it was sent.
async fn told(receiver: &Upstream, event: &str) -> (Value, usize) {
    let mut found = Vec::new();
    until(&format!("{event} is told"), async || {
        found = posted(receiver).await;
        found.retain(|p| p["event"] == event);
        !found.is_empty()
    })
    .await;
    let times = found.len();
    (found.remove(0), times)
}

async fn call(gateway: &Gateway, key: &str) -> u16 {
    let body = json!({"model": "small", "messages": [], "max_tokens": 3}).to_string();
    let who = format!("Bearer {key}");
    let who = [("authorization", who.as_str())];
    ask(gateway, "POST", "/v1/chat/completions", &who, body)
        .await
        .status()
}

#[tokio::test]
async fn budgets_are_told_once_and_in_both_shapes() {
    let (upstream, webhook, slack) = (Upstream::good().await, receiver().await, receiver().await);
    let prices = json!({"input_cost_per_token": 0, "output_cost_per_token": 0.001});
    let gateway = Setup::new()
        .deployment("small", &upstream.base(), prices)
        .general("alerting", json!(["slack"]))
        .env("SLACK_WEBHOOK_URL", &address(&slack))
        .setting("alerts", json!({"webhook_url": address(&webhook)}))
        .start()
        .await;
    let mut key = plain_key(KEY);
    key.user_id = None;
    key.key_alias = Some("<app>".into());
    key.max_budget_nanos = Some(4_000_000);
    key.extra = json!({"max_budget": 0.004, "soft_budget": 0.002})
        .as_object()
        .unwrap()
        .clone();
    gateway.store().await.insert_key(&key).await.unwrap();
    assert_eq!(call(&gateway, KEY).await, 200);
    let (soft, _) = told(&webhook, "soft_budget_crossed").await;
    assert_eq!(
        (&soft["event_group"], &soft["soft_budget"]),
        (&json!("key"), &json!(0.002))
    );
    assert_eq!(soft["token"], key.hash.hex());
    until("the budget is gone", async || call(&gateway, KEY).await == 429).await;
    for _ in 0..5 {
        assert_eq!(call(&gateway, KEY).await, 429);
    }
    let (hard, _) = told(&webhook, "budget_crossed").await;
    assert_eq!(
        (&hard["max_budget"], &hard["key_alias"]),
        (&json!(0.004), &json!("<app>"))
    );
    assert!(hard["spend"].as_f64().unwrap() >= 0.003, "{hard}");
    assert!(
        hard["event_message"].as_str().unwrap().contains("Budget Crossed"),
        "{hard}"
    );

    until("slack has heard of both", async || {
        posted(&slack).await.len() >= 2
    })
    .await;
    let texts: Vec<String> = posted(&slack)
        .await
        .iter()
        .map(|p| p["text"].to_string())
        .collect();
    assert!(
        texts.iter().any(|t| t.contains("soft budget crossed")),
        "{texts:?}"
    );
    assert!(
        texts
            .iter()
            .any(|t| t.contains("*budget crossed*") && t.contains("&lt;app&gt;")),
        "{texts:?}"
    );
    assert_eq!(posted(&webhook).await.len(), 2, "each is told once");
    assert!(!gateway.log().contains("the-webhook-token"), "{}", gateway.log());
}

#[tokio::test]
async fn a_deployment_that_goes_and_comes_is_told_of() {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = Arc::clone(&well);
    let upstream = Upstream::start(move |_| match is_well.load(SeqCst) {
        true => Script::json(200, &json!({"object": "list", "data": [{"id": "up-small"}]})),
        false => Script::error(503, "loading"),
    })
    .await;
    let (first, second) = (receiver().await, receiver().await);
    let setup = |to: &Upstream| {
        Setup::new()
            .model("small", &upstream)
            .setting("health", json!({"check_every": "1s"}))
            .setting("alerts", json!({"webhook_url": address(to)}))
    };
    let gateway = setup(&first).start().await;
    let (down, times) = told(&first, "deployment_down").await;
    assert_eq!((times, &down["models"]), (1, &json!(["small"])), "{down}");
    assert!(down["event_message"].as_str().unwrap().contains("503"), "{down}");
    // A changed address is taken into use without a restart.
    gateway.rewrite(&setup(&second).config());
    let reloaded = ask(&gateway, "POST", "/config/reload", &[], "{}").await;
    assert_eq!(reloaded.status(), 200, "{}", reloaded.text());
    well.store(true, SeqCst);
    let (up, _) = told(&second, "deployment_up").await;
    assert!(up["event_message"].as_str().unwrap().contains("small"), "{up}");
    assert_eq!(posted(&first).await.len(), 1);
}

#[tokio::test]
async fn keys_near_their_end_are_told_of_once_whatever_restarts() {
    let webhook = receiver().await;
    let upstream = Upstream::good().await;
    let mut gateway = Setup::new()
        .model("small", &upstream)
        .setting("alerts", json!({"webhook_url": address(&webhook)}))
        .start()
        .await;
    let expires = |hours: u64| {
        let at = SystemTime::now() + Duration::from_secs(hours * 3_600);
        at.duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
    };
    gateway.key(KEY, |k| k.expires_micros = Some(expires(12))).await;
    gateway
        .key("sk-key-that-stays-for-months", |k| {
            k.expires_micros = Some(expires(2_000))
        })
        .await;
    gateway.stop().await;
    gateway.up().await;
    let (told_of, _) = told(&webhook, "key_expiring").await;
    assert_eq!(told_of["token"], plain_key(KEY).hash.hex());
    assert!(
        told_of["event_message"]
            .as_str()
            .unwrap()
            .contains("less than a day"),
        "{told_of}"
    );
    let other = "sk-another-key-of-the-alert-tests";
    gateway
        .key(other, |k| k.expires_micros = Some(expires(100)))
        .await;
    gateway.stop().await;
    gateway.up().await;
    let of_other = plain_key(other).hash.hex();
    until("the other is told of", async || {
        posted(&webhook).await.iter().any(|p| p["token"] == of_other)
    })
    .await;
    let of_first = posted(&webhook).await;
    let of_first = of_first
        .iter()
        .filter(|p| p["token"] == plain_key(KEY).hash.hex());
    assert_eq!(of_first.count(), 1, "a restart is no news");
}

#[tokio::test]
async fn a_ledger_that_is_stuck_is_told_of() {
    let webhook = receiver().await;
    let upstream = Upstream::good().await;
    let mut server = postgres::Server::start();
    let gateway = Setup::new()
        .model("small", &upstream)
        .database(&server.database())
        .setting(
            "alerts",
            json!({"webhook_url": address(&webhook), "ledger_stuck_after": "1s"}),
        )
        .start()
        .await;
    gateway.key(KEY, |_| {}).await;
    assert_eq!(call(&gateway, KEY).await, 200);
    // By then the gateway has heard that the key is new, and knows it from the next call on.
    gateway.rows_once(1).await;
    assert_eq!(call(&gateway, KEY).await, 200);
    server.stop();
    assert_eq!(call(&gateway, KEY).await, 200, "known keys go on");
    let (stuck, times) = told(&webhook, "ledger_stuck").await;
    assert_eq!(times, 1);
    assert!(stuck["pending_records"].as_u64().unwrap() >= 1, "{stuck}");
    server.up();
    within("it is told that all is well", told(&webhook, "ledger_recovered")).await;
}
