//! A changed config, taken into use while requests are in flight.

use crate::kit::client::{Conn, ask, chat, request};
use crate::kit::gateway::{Gateway, Setup};
use crate::kit::until;
use crate::kit::upstream::{Gate, Script, Upstream, delta};
use serde_json::json;

async fn models(gateway: &Gateway) -> Vec<String> {
    let answer = ask(gateway, "GET", "/v1/models", &[], "").await;
    let list = answer.json()["data"].as_array().unwrap().clone();
    list.iter()
        .map(|m| m["id"].as_str().unwrap().to_string())
        .collect()
}

async fn listed(gateway: &Gateway, expected: &[&str]) {
    until(&format!("{expected:?} are listed"), async || {
        models(gateway).await == expected
    })
    .await;
}

#[tokio::test]
async fn a_changed_file_is_taken_into_use_and_streams_go_on() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |seen| match seen.json()["stream"].as_bool() {
        Some(true) => Script::sse(&[&delta("one")])
            .wait(&held)
            .events(&[&delta("two"), "[DONE]"])
            .end(),
        _ => Script::chat("hello"),
    })
    .await;
    let gateway = Setup::new().model("old", &upstream).start().await;
    let body = json!({"model": "old", "messages": [], "stream": true}).to_string();
    let mut conn = Conn::open(gateway.at).await;
    conn.send(&request("POST", "/v1/chat/completions", &[], body.as_bytes()))
        .await;
    conn.head().await;
    conn.reader.chunk().await.unwrap();

    // By itself, and by a signal.
    gateway.rewrite(&Setup::new().model("new", &upstream).config());
    listed(&gateway, &["new"]).await;
    gateway.rewrite(
        &Setup::new()
            .model("new", &upstream)
            .model("newer", &upstream)
            .config(),
    );
    gateway.signal("HUP");
    listed(&gateway, &["new", "newer"]).await;

    let gone = chat(&gateway, &json!({"model": "old", "messages": []})).await;
    assert_eq!(gone.status(), 404, "{}", gone.text());
    let there = chat(&gateway, &json!({"model": "newer", "messages": []})).await;
    assert_eq!(there.status(), 200, "{}", there.text());

    gate.open();
    let (rest, whole) = conn.reader.rest().await;
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(
        whole && rest.contains("two") && rest.ends_with("data: [DONE]\n\n"),
        "the stream of the old generation ends whole: {rest}"
    );
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_says_where() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    gateway.rewrite("model_list:\n  - model_name: small\n    litellm_params: {model: 7\n");
    until("the log says what is wrong", async || {
        let log = gateway.log();
        log.contains("event=config_refused") && log.contains("config.yaml:3")
    })
    .await;
    let answer = chat(&gateway, &json!({"model": "small", "messages": []})).await;
    assert_eq!(answer.status(), 200, "the old one serves: {}", answer.text());
    gateway.rewrite(
        &Setup::new()
            .model("small", &upstream)
            .model("two", &upstream)
            .config(),
    );
    listed(&gateway, &["small", "two"]).await;
    assert_eq!(
        gateway.log().matches("event=config_refused").count(),
        1,
        "a broken file is reported once"
    );
}

#[tokio::test]
async fn limits_of_the_whole_gateway_change_without_a_restart() {
    let upstream = Upstream::good().await;
    let setup = || Setup::new().model("small", &upstream);
    let gateway = setup().start().await;
    let call = async || chat(&gateway, &json!({"model": "small", "messages": []})).await;
    assert_eq!(call().await.status(), 200);
    let limited = setup().setting("limits", json!({"models": {"small": {"rpm": 1}}}));
    gateway.rewrite(&limited.config());
    gateway.signal("HUP");
    let mut refused = None;
    until("the new limit counts", async || {
        refused = Some(call().await).filter(|answer| answer.status() == 429);
        refused.is_some()
    })
    .await;
    let refused = refused.unwrap();
    assert_eq!(refused.head.header("x-ratelimit-limit-requests"), Some("1"));
    gateway.rewrite(&setup().config());
    gateway.signal("HUP");
    until("it is gone again", async || call().await.status() == 200).await;

    // What is read at the start only is told of.
    let other = setup().setting("redis", json!({"url": "redis://127.0.0.1:1"}));
    gateway.rewrite(&other.config());
    gateway.signal("HUP");
    until("the log says what waits for a restart", async || {
        gateway
            .log()
            .contains("event=restart_needed settings=tollkeeper.redis")
    })
    .await;
}
