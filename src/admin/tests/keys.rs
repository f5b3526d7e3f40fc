//! Keys made, changed, blocked, deleted.

use super::*;
use filters::contract::ports::Keys;

#[tokio::test]
async fn a_key_is_made_and_shown_once() {
    let bench = Bench::new().await;
    let made = bench.master("POST /key/generate", json!({})).await;
    let secret = made["key"].as_str().unwrap();
    assert_eq!(secret.len(), 25);
    assert!(secret.starts_with("sk-"));
    assert_eq!(made["key_name"], format!("sk-...{}", &secret[21..]));
    assert_eq!(made["token"], KeyHash::of(secret).hex());
    assert_eq!(made["token_id"], made["token"]);
    assert_eq!(
        made["expires"],
        Value::Null,
        "without a duration it never expires"
    );
    assert_eq!(made["spend"].to_string(), "0.0");
    assert_eq!(made["models"], json!([]));
    assert_eq!(made["metadata"], json!({}));
    assert_eq!(made["created_by"], "default_user_id");
    assert_eq!(made["created_at"], "2026-11-20T12:00:00.000000Z");
    let other = bench.master("POST /key/generate", json!({})).await;
    assert_ne!(other["key"], made["key"]);
    let info = bench.get(&master(), &format!("/key/info?key={secret}")).await;
    assert!(!info.to_string().contains(secret), "only the hash is shown later");
}

#[tokio::test]
async fn every_field_is_taken() {
    let bench = Bench::new().await;
    let made = bench.master("POST /key/generate", everything()).await;
    for (name, want) in [
        ("key", json!("sk-a-key-of-my-own")),
        ("key_name", json!("sk-...-own")),
        ("key_alias", json!("ci")),
        ("expires", json!("2026-12-20T12:00:00.000000Z")),
        ("duration", json!(null)),
        ("user_id", json!("alice")),
        ("team_id", json!("red")),
        ("max_budget", json!(12.5)),
        ("soft_budget", json!(10.0)),
        ("metadata", json!({"who": "me"})),
        ("aliases", json!({"gpt-4": "small"})),
        ("tpm_limit", json!(1000)),
        ("rpm_limit", json!(60)),
        ("max_parallel_requests", json!(3)),
        ("budget_duration", json!("30d")),
        ("tags", json!(["a"])),
        ("allowed_routes", json!(["llm_api_routes"])),
        ("guardrails", json!(null)),
        ("auto_rotate", json!(true)),
        ("config", json!({})),
    ] {
        assert_eq!(made[name], want, "{name}");
    }
    assert_eq!(made.get("some_day"), None, "unknown fields are ignored");
    let key = bench.row("sk-a-key-of-my-own").await.unwrap();
    assert_eq!(key.max_budget_nanos, Some(12_500_000_000));
    assert_eq!(key.extra["tpm_limit"], 1000);
}

#[tokio::test]
async fn kinds_of_keys_have_litellms_routes() {
    let bench = Bench::new().await;
    for (kind, routes) in [
        ("llm_api", json!(["llm_api_routes"])),
        ("management", json!(["management_routes"])),
        ("read_only", json!(["info_routes"])),
        ("default", json!([])),
    ] {
        let made = bench
            .master("POST /key/generate", json!({"key_type": kind}))
            .await;
        assert_eq!(made["allowed_routes"], routes, "{kind}");
    }
}

#[tokio::test]
async fn each_spelling_of_a_duration_counts_from_now() {
    let bench = Bench::new().await;
    for (text, expires) in [
        ("30s", "2026-11-20T12:00:30.000000Z"),
        ("20m", "2026-11-20T12:20:00.000000Z"),
        ("30min", "2026-11-20T12:30:00.000000Z"),
        ("1h", "2026-11-20T13:00:00.000000Z"),
        ("7d", "2026-11-27T12:00:00.000000Z"),
        ("2w", "2026-12-04T12:00:00.000000Z"),
        ("1mo", "2026-12-20T12:00:00.000000Z"),
    ] {
        let made = bench
            .master("POST /key/generate", json!({"duration": text}))
            .await;
        assert_eq!(made["expires"], expires, "{text}");
    }
    let made = bench
        .master("POST /key/generate", json!({"duration": null}))
        .await;
    assert_eq!(made["expires"], Value::Null);
}

#[tokio::test]
async fn an_update_changes_what_it_names() {
    let bench = Bench::new().await;
    bench.master("POST /key/generate", everything()).await;
    bench.clock.set(NOON + 1_000_000);
    let own = "sk-a-key-of-my-own";
    let changes = json!({
        "key": own, "models": ["embed"], "max_budget": null, "tpm_limit": null, "metadata": {"x": 1},
        "duration": "1h",
        // Not for anybody to set.
        "token": "0", "key_name": "sk-...0000", "created_at": "1970-01-01T00:00:00Z", "created_by": "me",
        "spend_nanos": -5, "extra": {"blocked": true},
    });
    let row = bench.master("POST /key/update", changes).await;
    assert_eq!(row["models"], json!(["embed"]));
    assert_eq!(row["max_budget"], Value::Null);
    assert_eq!(row["tpm_limit"], Value::Null);
    assert_eq!(row["rpm_limit"], 60, "what is not named stays");
    assert_eq!(row["expires"], "2026-11-20T13:00:01.000000Z");
    assert_eq!(row["key"], KeyHash::of(own).hex());
    let key = bench.row(own).await.unwrap();
    assert_eq!(
        (key.key_name.as_str(), key.created_at_micros, key.spend_nanos),
        ("sk-...-own", NOON, 0)
    );
    assert_eq!(key.updated_at_micros, NOON + 1_000_000);

    let by_hash = json!({"key": key.hash, "duration": null});
    let row = bench.master("POST /key/update", by_hash).await;
    assert_eq!(
        row["expires"], "2026-11-20T13:00:01.000000Z",
        "null leaves the expiry"
    );
    let row = bench
        .master("POST /key/update", json!({"key": own, "duration": "-1"}))
        .await;
    assert_eq!(row["expires"], Value::Null);
}

#[tokio::test]
async fn what_changed_is_forgotten() {
    let bench = Bench::new().await;
    let own = "sk-a-key-of-my-own";
    let hash = KeyHash::of(own);
    assert!(bench.keys.find(&hash).await.unwrap().is_none());
    assert!(bench.keys.cached(&hash).is_some(), "known to be nobody's");
    bench.master("POST /key/generate", json!({"key": own})).await;
    assert!(bench.keys.cached(&hash).is_none());
    for (route, blocked) in [
        ("POST /key/block", true),
        ("POST /key/unblock", false),
        ("POST /key/update", false),
    ] {
        assert!(bench.keys.find(&hash).await.unwrap().is_some());
        let row = bench.master(route, json!({"key": own})).await;
        assert_eq!(row["blocked"], blocked);
        assert!(bench.keys.cached(&hash).is_none(), "{route}");
        assert_eq!(bench.keys.find(&hash).await.unwrap().unwrap().blocked, blocked);
    }
    bench.master("POST /key/delete", json!({"keys": [own]})).await;
    assert!(bench.keys.cached(&hash).is_none());
    assert!(
        bench.keys.find(&hash).await.unwrap().is_none(),
        "a deleted key is gone at once"
    );
}

#[tokio::test]
async fn a_client_that_leaves_leaves_no_deleted_key_behind() {
    let bench = Bench::new().await;
    let (secret, _) = bench.holder(json!({})).await;
    let hash = KeyHash::of(&secret);
    assert!(bench.keys.find(&hash).await.unwrap().is_some());
    {
        let body = json!({"keys": [secret]}).to_string();
        let master = master();
        let mut call = Box::pin(bench.call(&master, "POST /key/delete", body));
        assert!(futures::poll!(&mut call).is_pending());
    }
    let gone = async {
        while bench.row(&secret).await.is_some() || bench.keys.cached(&hash).is_some() {
            tokio::task::yield_now().await;
        }
    };
    let limit = std::time::Duration::from_secs(5);
    assert!(
        tokio::time::timeout(limit, gone).await.is_ok(),
        "it is deleted and forgotten"
    );
}

#[tokio::test]
async fn keys_are_deleted_by_every_name() {
    let bench = Bench::new().await;
    let (a, _) = bench.holder(json!({})).await;
    let (b, _) = bench.holder(json!({})).await;
    bench.holder(json!({"key_alias": "third"})).await;
    let hash = KeyHash::of(&b).hex();
    let body = json!({"keys": [a, hash, a, "nonsense"], "key_aliases": ["third", "fourth"]});
    let answer = bench.master("POST /key/delete", body).await;
    assert_eq!(answer["deleted_keys"], json!([a, hash, a, "third"]));
    assert_eq!(answer["not_found"], json!(["nonsense", "fourth"]));
    let left = bench.get(&master(), "/key/list").await;
    assert_eq!(left["total_count"], 0);
}

#[tokio::test]
async fn updates_at_the_same_time_lift_no_block() {
    let bench = Bench::new().await;
    let (secret, _) = bench.holder(json!({})).await;
    let update = |n: u32| {
        let body = json!({"key": secret, "max_budget": n});
        let bench = &bench;
        async move { bench.master("POST /key/update", body).await }
    };
    let updates = futures::future::join_all((0..20).map(update));
    let block = bench.master("POST /key/block", json!({"key": secret}));
    futures::join!(updates, block);
    assert!(bench.row(&secret).await.unwrap().blocked);
}

#[tokio::test]
async fn sql_as_a_value_is_a_value() {
    let bench = Bench::new().await;
    let sql = "x'); DROP TABLE tk_keys; --";
    let (secret, holder) = bench
        .holder(json!({"key_alias": sql, "user_id": sql, "team_id": sql, "models": [sql], "metadata": {sql: sql}}))
        .await;
    let info = bench.get(&holder, "/key/info").await;
    assert_eq!(
        (&info["key_alias"], &info["models"]),
        (&json!(sql), &json!([sql]))
    );
    let encoded = "x%27)%3B%20DROP%20TABLE%20tk_keys%3B%20--";
    for uri in [
        format!("/user/info?user_id={encoded}"),
        format!("/key/list?user_id={encoded}&team_id={encoded}&key_alias={encoded}"),
    ] {
        let body = bench.get(&master(), &uri).await;
        assert_eq!(body["total_count"], 1, "{uri}");
    }
    let uri = format!("/spend/logs?user_id={encoded}&request_id={encoded}");
    assert_eq!(bench.get(&master(), &uri).await, json!([]));
    for route in ["key/info?key", "spend/logs?api_key", "key/list?key_hash"] {
        let route = format!("GET /{route}={encoded}");
        refused(&bench, &master(), &route, "", 400, "must be a key").await;
    }
    let body = json!({"keys": [sql], "key_aliases": ["' OR '1'='1"]}).to_string();
    refused(&bench, &master(), "POST /key/delete", &body, 404, "No keys found").await;
    assert!(bench.row(&secret).await.is_some());
}
