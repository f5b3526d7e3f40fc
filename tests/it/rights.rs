//! Keys on the road: what is rotated works on until its grace is over, a key keeps to its routes on every
//! lane, and nobody changes anything with a key that is not theirs to change.

use crate::kit::client::{Answer, ask};
use crate::kit::gateway::{Gateway, MASTER, Setup};
use crate::kit::until;
use crate::kit::upstream::Upstream;
use filters::model::key::KeyHash;
use serde_json::{Value, json};
use tollkeeper::store::{Change, Doc, Table};

async fn with_key(gateway: &Gateway, key: &str, method: &str, path: &str, body: Value) -> Answer {
    let bearer = format!("Bearer {key}");
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    ask(gateway, method, path, &[("authorization", &bearer)], body).await
}

/// A call of the management API that works.
async fn manage(gateway: &Gateway, path: &str, body: Value) -> Value {
    let answer = with_key(gateway, MASTER, "POST", path, body.clone()).await;
    assert_eq!(answer.status(), 200, "{path} {body}: {answer:?}");
    answer.json()
}

async fn made(gateway: &Gateway, fields: Value) -> String {
    let answer = manage(gateway, "/key/generate", fields).await;
    answer["key"].as_str().unwrap().to_string()
}

async fn chat(gateway: &Gateway, key: &str) -> Answer {
    let body = json!({"model": "small", "messages": [{"role": "user", "content": "x"}]});
    with_key(gateway, key, "POST", "/v1/chat/completions", body).await
}

fn priced(upstream: &Upstream) -> Setup {
    let prices = json!({"input_cost_per_token": 0.001, "output_cost_per_token": 0.001});
    Setup::new().deployment("small", &upstream.base(), prices)
}

async fn spend(gateway: &Gateway, key: &str) -> f64 {
    let path = format!("/key/info?key={key}");
    let answer = with_key(gateway, MASTER, "GET", &path, Value::Null).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()["spend"].as_f64().unwrap()
}

#[tokio::test]
async fn both_secrets_work_until_the_grace_is_over() {
    let upstream = Upstream::good().await;
    let gateway = priced(&upstream).start().await;
    let old = made(&gateway, json!({"key_alias": "ci", "max_budget": 1000})).await;
    assert_eq!(chat(&gateway, &old).await.status(), 200);
    let one = async {
        let mut one = 0.0;
        until("the first call has landed", async || {
            one = spend(&gateway, &old).await;
            one > 0.0
        })
        .await;
        one
    }
    .await;

    let rotated = with_key(
        &gateway,
        &old,
        "POST",
        "/key/regenerate",
        json!({"grace_period": "3s"}),
    )
    .await;
    assert_eq!(rotated.status(), 200, "{rotated:?}");
    let new = rotated.json()["key"].as_str().unwrap().to_string();
    assert_eq!(rotated.json()["spend"], one, "it goes on where the old one stood");
    for key in [&old, &new] {
        assert_eq!(chat(&gateway, key).await.status(), 200, "both work");
    }
    until("both calls are on one account", async || {
        (spend(&gateway, &new).await - 3.0 * one).abs() < 1e-9
    })
    .await;
    until("the old secret is refused", async || {
        chat(&gateway, &old).await.status() == 401
    })
    .await;
    assert_eq!(chat(&gateway, &new).await.status(), 200);

    let last = with_key(&gateway, &new, "POST", "/key/regenerate", Value::Null).await;
    let last = last.json()["key"].as_str().unwrap().to_string();
    assert_eq!(
        chat(&gateway, &new).await.status(),
        401,
        "without grace it is dead at once"
    );
    assert_eq!(chat(&gateway, &last).await.status(), 200);
}

#[tokio::test]
async fn a_rotation_gives_no_new_budget() {
    let upstream = Upstream::good().await;
    let gateway = priced(&upstream).start().await;
    let key = made(&gateway, json!({"max_budget": 0.000_001})).await;
    assert_eq!(
        chat(&gateway, &key).await.status(),
        200,
        "the first call crosses the budget"
    );
    let rotated = with_key(&gateway, &key, "POST", "/key/regenerate", Value::Null).await;
    let new = rotated.json()["key"].as_str().unwrap().to_string();
    let refused = chat(&gateway, &new).await;
    assert_eq!(refused.json()["error"]["type"], "budget_exceeded", "{refused:?}");
}

#[tokio::test]
async fn a_key_keeps_to_its_routes_on_every_lane() {
    let upstream = Upstream::good().await;
    let tts = Upstream::good().await;
    let entry = json!({"path": "/tts", "target": tts.base(), "include_subpath": true, "auth": true});
    let gateway = priced(&upstream)
        .general("pass_through_endpoints", json!([entry]))
        .start()
        .await;
    let calls = made(&gateway, json!({"key_type": "llm_api"})).await;
    let management = made(&gateway, json!({"key_type": "management"})).await;
    let reads = made(&gateway, json!({"key_type": "read_only"})).await;
    let one = made(&gateway, json!({"allowed_routes": ["/tts/*"]})).await;
    for (key, chats, speaks, looks, rotates) in [
        (&calls, 200, 200, 403, 403),
        (&management, 403, 403, 200, 200),
        (&reads, 403, 403, 200, 403),
        (&one, 403, 200, 403, 403),
    ] {
        let before = (upstream.count(), tts.count());
        assert_eq!(chat(&gateway, key).await.status(), chats);
        let speech = with_key(&gateway, key, "POST", "/tts/v1/audio/speech", json!({})).await;
        assert_eq!(speech.status(), speaks);
        let served = (
            before.0 + usize::from(chats == 200),
            before.1 + usize::from(speaks == 200),
        );
        assert_eq!(
            (upstream.count(), tts.count()),
            served,
            "what is refused reaches nobody"
        );
        let info = with_key(&gateway, key, "GET", "/key/info", Value::Null).await;
        assert_eq!(info.status(), looks, "{info:?}");
        let rotated = with_key(&gateway, key, "POST", "/key/regenerate", Value::Null).await;
        assert_eq!(rotated.status(), rotates, "{rotated:?}");
    }
    let refused = chat(&gateway, &one).await;
    assert!(
        refused
            .error()
            .contains("Only allowed to call routes: [/tts/*]. Tried to call route: /v1/chat/completions"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_key_changes_nothing_that_is_not_its_own() {
    let upstream = Upstream::good().await;
    let gateway = priced(&upstream).start().await;
    let key = made(&gateway, json!({"user_id": "ann"})).await;
    for (path, body) in [
        ("/key/generate", json!({"user_role": "proxy_admin"})),
        ("/key/update", json!({"key": key, "max_budget": 1000})),
        ("/key/update", json!({"key": key, "allowed_routes": []})),
        ("/key/delete", json!({"keys": [key]})),
        ("/key/unblock", json!({"key": key})),
        ("/key/bulk_update", json!({"keys": [{"key": key}]})),
    ] {
        let answer = with_key(&gateway, &key, "POST", path, body).await;
        assert_eq!(answer.status(), 401, "{path}: {answer:?}");
        assert!(answer.error().contains("Only proxy admin"), "{answer:?}");
    }
    let answer = with_key(&gateway, &key, "GET", "/audit", Value::Null).await;
    assert_eq!(answer.status(), 401);
    let hash = KeyHash::of(&key).hex();
    assert_eq!(
        chat(&gateway, &hash).await.status(),
        401,
        "a stored hash is no key"
    );
    let answer = with_key(&gateway, &hash, "GET", "/key/info", Value::Null).await;
    assert_eq!(answer.status(), 401);
}

#[tokio::test]
async fn a_role_counts_on_the_road() {
    let upstream = Upstream::good().await;
    let gateway = priced(&upstream).start().await;
    let users = [
        ("ann", json!({"user_role": "internal_user", "max_budget": 5})),
        ("eve", json!({"user_role": "proxy_admin_viewer"})),
    ];
    for (user, fields) in users {
        let doc = Doc {
            id: user.into(),
            fields: fields.as_object().unwrap().clone(),
            version: 0,
            created_at_micros: 0,
            updated_at_micros: 0,
        };
        let put = Change::Put {
            table: Table::User,
            doc: &doc,
        };
        gateway.store().await.change(&[put], &[]).await.unwrap();
    }
    let ann = made(&gateway, json!({"user_id": "ann"})).await;
    let eve = made(&gateway, json!({"user_id": "eve"})).await;
    let own = with_key(&gateway, &ann, "POST", "/key/generate", json!({"max_budget": 5})).await;
    assert_eq!(own.status(), 200, "{own:?}");
    assert_eq!(own.json()["user_id"], "ann");
    let more = with_key(&gateway, &ann, "POST", "/key/generate", json!({"max_budget": 6})).await;
    assert_eq!(
        (more.status(), &more.json()["error"]["param"]),
        (403, &json!("max_budget")),
        "{more:?}"
    );
    let seen = with_key(&gateway, &eve, "GET", "/key/list", Value::Null).await;
    assert_eq!(seen.json()["total_count"], 3, "{seen:?}");
    let made = with_key(&gateway, &eve, "POST", "/key/generate", json!({})).await;
    assert_eq!(made.status(), 403, "{made:?}");
    let audit = with_key(&gateway, &eve, "GET", "/audit?changed_by=ann", Value::Null).await;
    assert_eq!(
        audit.json()["audit_logs"].as_array().unwrap().len(),
        1,
        "{audit:?}"
    );
}

#[tokio::test]
async fn the_routes_are_shown_to_everybody() {
    let upstream = Upstream::good().await;
    let gateway = priced(&upstream).start().await;
    let answer = ask(&gateway, "GET", "/routes", &[("authorization", "")], "").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let routes = answer.json();
    let paths: Vec<&str> = routes["routes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["path"].as_str().unwrap())
        .collect();
    for path in [
        "/v1/chat/completions",
        "/key/generate",
        "/key/{key}/regenerate",
        "/audit",
        "/routes",
    ] {
        assert!(paths.contains(&path), "{path} in {paths:?}");
    }
    let answer = ask(&gateway, "GET", "/audit", &[("authorization", "")], "").await;
    assert_eq!(answer.status(), 401, "what is not open is not");
    let answer = ask(&gateway, "POST", "/routes", &[("authorization", "")], "").await;
    assert_eq!(answer.status(), 405);
}
