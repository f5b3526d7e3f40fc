//! Postgres goes away or stands still: known keys go on, unknown ones are not let in, no row is lost.

use crate::kit::client::{Answer, ask, probe};
use crate::kit::gateway::{Gateway, Setup, rows};
use crate::kit::postgres::Server;
use crate::kit::until;
use crate::kit::upstream::Upstream;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tollkeeper::store::SpendFilter;

const KNOWN: &str = "sk-known-key-0001";
const UNKNOWN: &str = "sk-unknown-key-01";

async fn before(server: &Server, upstream: &Upstream) -> Gateway {
    let gateway = Setup::new()
        .model("small", upstream)
        .database(&server.database())
        .start()
        .await;
    gateway.key(KNOWN, |_| {}).await;
    gateway.key(UNKNOWN, |_| {}).await;
    gateway
}

async fn call(gateway: &Gateway, key: &str) -> Answer {
    let who = format!("Bearer {key}");
    let body = r#"{"model":"small","messages":[]}"#;
    ask(
        gateway,
        "POST",
        "/v1/chat/completions",
        &[("authorization", &who)],
        body,
    )
    .await
}

/// Answered calls; their ids.
async fn answered(gateway: &Gateway, n: usize) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for _ in 0..n {
        let answer = call(gateway, KNOWN).await;
        assert_eq!(answer.status(), 200, "a known key goes on: {}", answer.text());
        ids.insert(answer.head.id().to_string());
    }
    ids
}

async fn landed(gateway: &Gateway, ids: &BTreeSet<String>) {
    let store = gateway.store().await;
    // Calls that were refused may have rows as well.
    until("all answered calls have their rows", async || {
        let rows = rows(&*store, SpendFilter::default()).await;
        let found: BTreeSet<String> = rows.iter().map(|r| r.request_id.clone()).collect();
        assert_eq!(rows.len(), found.len(), "no row is there twice");
        ids.is_subset(&found)
    })
    .await;
    let differences = store.differences(10, Duration::from_secs(30)).await.unwrap();
    assert!(differences.is_empty(), "sums and rows agree: {differences:?}");
}

#[tokio::test]
async fn postgres_is_stopped() {
    let mut server = Server::start();
    let upstream = Upstream::good().await;
    let mut gateway = before(&server, &upstream).await;
    let mut ids = answered(&gateway, 5).await;
    server.stop();
    ids.append(&mut answered(&gateway, 10).await);
    let answer = call(&gateway, UNKNOWN).await;
    assert_eq!(answer.status(), 503, "nobody is let in unseen: {}", answer.text());
    let told = answer.error();
    assert!(
        !told.contains("127.0.0.1") && !told.contains("postgres"),
        "{told}"
    );
    assert_eq!(
        call(&gateway, "sk-nobody-at-all-1").await.status(),
        503,
        "unknown is not invalid"
    );
    assert_eq!(probe(gateway.at, "/health/readiness").await, Some(503));
    assert_eq!(probe(gateway.at, "/health/liveness").await, Some(200));
    assert_eq!(probe(gateway.at, "/health").await, Some(200));
    // A restart in the middle of it keeps the rows, and comes up without the database.
    gateway.stop().await;
    gateway.up_until(503).await;
    assert_eq!(
        call(&gateway, KNOWN).await.status(),
        503,
        "after a restart nobody is known"
    );
    server.up();
    until("it is ready again", async || {
        probe(gateway.at, "/health/readiness").await == Some(200)
    })
    .await;
    ids.append(&mut answered(&gateway, 5).await);
    assert_eq!(call(&gateway, "sk-nobody-at-all-1").await.status(), 401);
    landed(&gateway, &ids).await;
    assert_eq!(ids.len(), 20);
}

#[tokio::test]
async fn postgres_stands_still() {
    let server = Server::start();
    let upstream = Upstream::good().await;
    let gateway = before(&server, &upstream).await;
    let mut ids = answered(&gateway, 5).await;
    server.freeze();
    let mut quickest = Duration::MAX;
    // The machine may be busy with something else once, and not three times.
    for _ in 0..3 {
        let begun = Instant::now();
        ids.append(&mut answered(&gateway, 20).await);
        quickest = quickest.min(begun.elapsed());
        if quickest < Duration::from_secs(5) {
            break;
        }
    }
    assert!(
        quickest < Duration::from_secs(5),
        "known keys do not wait for the database: {quickest:?}"
    );
    assert_eq!(probe(gateway.at, "/health/liveness").await, Some(200));
    assert_eq!(probe(gateway.at, "/health/readiness").await, Some(503));
    let begun = Instant::now();
    assert_eq!(call(&gateway, UNKNOWN).await.status(), 503);
    // Ten seconds, and what a busy machine adds to them.
    assert!(
        begun.elapsed() < Duration::from_secs(25),
        "an unknown key is told within a bound"
    );
    server.thaw();
    until("it is ready again", async || {
        probe(gateway.at, "/health/readiness").await == Some(200)
    })
    .await;
    landed(&gateway, &ids).await;
}
