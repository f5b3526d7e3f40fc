//! Two replicas that see the same tell it once: by Redis, by their database, and each for itself where there is
//! neither in common.

use crate::kit::client::ask;
use crate::kit::gateway::{Gateway, Setup};
use crate::kit::upstream::{Script, Upstream};
use crate::kit::{postgres, redis, until};
use serde_json::json;

async fn metric(gateway: &Gateway, outcome: &str) -> u64 {
    let page = ask(gateway, "GET", "/metrics", &[], "").await.text();
    let start = format!("tollkeeper_alerts_total{{event=\"deployment_down\",outcome=\"{outcome}\"}} ");
    let line = page.lines().find_map(|l| l.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("{start} is missing"))
        .parse()
        .unwrap()
}

/// Two gateways that both find the same deployment down, which is to be posted so often. False = where Redis is to
/// tell them of each other, it was found away.
async fn told(dress: impl Fn(Setup) -> Setup, want: usize) -> bool {
    let down = Upstream::start(|_| Script::error(503, "loading")).await;
    let webhook = Upstream::start(|_| Script::json(200, &json!({}))).await;
    let hook = format!("http://127.0.0.1:{}/hook", webhook.port);
    let setup = || {
        dress(
            Setup::new()
                .model("small", &down)
                .setting("health", json!({"check_every": "1s"}))
                .setting("alerts", json!({"webhook_url": hook})),
        )
    };
    let (one, other) = tokio::join!(setup().start(), setup().start());
    until("both have judged what they saw", async || {
        let mut all = 0;
        for gateway in [&one, &other] {
            all += metric(gateway, "sent").await + metric(gateway, "repeated").await;
        }
        all >= 2
    })
    .await;
    let sent = metric(&one, "sent").await + metric(&other, "sent").await;
    if !one.has_had_redis().await || !other.has_had_redis().await {
        return false;
    }
    assert_eq!((sent as usize, webhook.count()), (want, want));
    true
}

#[tokio::test]
async fn through_redis() {
    for _ in 0..4 {
        let redis = redis::Server::start();
        if told(|s| s.setting("redis", json!({"url": redis.url()})), 1).await {
            assert!(redis.cli(&["KEYS", "*:told:*"]).contains("deployment_down"));
            return;
        }
    }
    panic!("Redis was away each time");
}

#[tokio::test]
async fn through_the_database() {
    let database = postgres::shared().database();
    assert!(told(|s| s.database(&database), 1).await);
}

#[tokio::test]
async fn alone_each_for_itself() {
    assert!(told(|s| s, 2).await);
}
