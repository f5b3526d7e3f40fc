//! What is settled before anybody is asked who they are: how fast one address may come.

use crate::kit::client::{Conn, ask};
use crate::kit::gateway::Setup;
use crate::kit::upstream::Upstream;
use serde_json::json;
use std::time::Instant;

#[tokio::test]
async fn a_burst_gets_what_the_bucket_holds_and_the_rest_is_told_when() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .setting("rate_limit", json!({"average": 100, "burst": 200}))
        .start()
        .await;
    let begun = Instant::now();
    let clients = (0..6).map(|_| {
        let at = gateway.at;
        tokio::spawn(async move {
            let mut conn = Conn::open(at).await;
            let mut answers = Vec::new();
            for _ in 0..100 {
                answers.push(conn.ask("GET", "/v1/models", &[], b"").await);
            }
            answers
        })
    });
    let mut answers = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        answers.extend(client.await.unwrap());
    }
    let took = begun.elapsed().as_secs_f64();
    let admitted = answers.iter().filter(|a| a.status() == 200).count();
    // Tokens come in while the burst lasts; the one that is nearly there is waited for.
    let most = 200 + (took * 100.0).ceil() as usize + 1;
    assert!(
        (200..=most.min(600)).contains(&admitted),
        "{admitted} of 600 in {took} s"
    );
    if let Some(refused) = answers.iter().find(|a| a.status() != 200) {
        assert_eq!(refused.status(), 429, "{}", refused.text());
        assert_eq!(refused.head.header("retry-after"), Some("1"));
        assert!(refused.head.header("retry-after-ms").is_some());
    }
    // Who looks after the process is never told to wait.
    for _ in 0..300 {
        let health = ask(&gateway, "GET", "/health/liveliness", &[], "").await;
        assert_eq!(health.status(), 200);
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_reload_does_not_fill_the_bucket() {
    let upstream = Upstream::good().await;
    let setup = || {
        Setup::new()
            .model("small", &upstream)
            .setting("rate_limit", json!({"average": 1, "period": "1h", "burst": 2}))
    };
    let gateway = setup().start().await;
    let mut conn = Conn::open(gateway.at).await;
    for status in [200, 200, 429] {
        assert_eq!(conn.ask("GET", "/v1/models", &[], b"").await.status(), status);
    }
    gateway.rewrite(&setup().model("two", &upstream).config());
    crate::kit::until("the new config serves", async || {
        gateway.log().contains("event=config_applied")
    })
    .await;
    assert_eq!(conn.ask("GET", "/v1/models", &[], b"").await.status(), 429);
}
