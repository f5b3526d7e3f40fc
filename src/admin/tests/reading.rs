//! What is shown: keys, users, spend, in both shapes.

use super::*;
use crate::store::{Change, Doc, Table};
use filters::model::call::Endpoint;
use filters::model::record::{Attempt, Record, Status};

const DAY: i64 = 86_400_000_000;

/// Fields and types as the plain API publishes them.
const KEY_GENERATE: &[(&str, Kind)] = &[
    ("key", Kind::Text),
    ("key_name", Kind::Text),
    ("expires", Kind::Time),
    ("user_id", Kind::Text),
];
const KEY_INFO: &[(&str, Kind)] = &[
    ("key", Kind::Text),
    ("models", Kind::Texts),
    ("spend", Kind::Number),
    ("max_budget", Kind::Number),
    ("expires", Kind::Time),
    ("user_id", Kind::Text),
];
const USER_INFO: &[(&str, Kind)] = &[
    ("user_id", Kind::Text),
    ("spend", Kind::Number),
    ("max_budget", Kind::Number),
    ("models", Kind::Texts),
];
const SPEND_LOG: &[(&str, Kind)] = &[
    ("request_id", Kind::Text),
    ("model", Kind::Text),
    ("tokens", Kind::Integer),
    ("cost", Kind::Number),
    ("timestamp", Kind::Time),
    ("user_id", Kind::Text),
];
/// Columns of LiteLLM's that its scripts read.
const SPEND_LOG_ROW: &[(&str, Kind)] = &[
    ("call_type", Kind::Text),
    ("api_key", Kind::Text),
    ("spend", Kind::Number),
    ("total_tokens", Kind::Integer),
    ("prompt_tokens", Kind::Integer),
    ("completion_tokens", Kind::Integer),
    ("startTime", Kind::Time),
    ("endTime", Kind::Time),
    ("completionStartTime", Kind::Time),
    ("model_id", Kind::Text),
    ("model_group", Kind::Text),
    ("custom_llm_provider", Kind::Text),
    ("api_base", Kind::Text),
    ("user", Kind::Text),
    ("metadata", Kind::Object),
    ("cache_hit", Kind::Text),
    ("cache_key", Kind::Text),
    ("request_tags", Kind::Texts),
    ("team_id", Kind::Text),
    ("end_user", Kind::Text),
    ("requester_ip_address", Kind::Text),
    ("messages", Kind::Object),
    ("response", Kind::Object),
    ("session_id", Kind::Text),
    ("status", Kind::Text),
];
const INFO_ROW: &[(&str, Kind)] = &[
    ("key_name", Kind::Text),
    ("key_alias", Kind::Text),
    ("spend", Kind::Number),
    ("expires", Kind::Time),
    ("models", Kind::Texts),
    ("aliases", Kind::Object),
    ("config", Kind::Object),
    ("user_id", Kind::Text),
    ("team_id", Kind::Text),
    ("permissions", Kind::Object),
    ("max_parallel_requests", Kind::Number),
    ("metadata", Kind::Object),
    ("tpm_limit", Kind::Number),
    ("rpm_limit", Kind::Number),
    ("max_budget", Kind::Number),
    ("budget_duration", Kind::Text),
    ("budget_reset_at", Kind::Time),
    ("allowed_cache_controls", Kind::Texts),
    ("allowed_routes", Kind::Texts),
    ("model_spend", Kind::Object),
    ("model_max_budget", Kind::Object),
    ("budget_id", Kind::Text),
    ("organization_id", Kind::Text),
    ("created_at", Kind::Time),
    ("created_by", Kind::Text),
    ("updated_at", Kind::Time),
    ("updated_by", Kind::Text),
    ("rotation_interval", Kind::Text),
];

fn record(id: &str, secret: &str, user: Option<&str>, at: i64) -> Record {
    Record {
        request_id: id.into(),
        endpoint: Endpoint::Chat,
        key_hash: Some(KeyHash::of(secret)),
        key_alias: None,
        user_id: user.map(Into::into),
        team_id: Some("red".into()),
        organization_id: None,
        end_user: Some("eve".into()),
        requested_model: "gpt-4".into(),
        model_group: "small".into(),
        model: "real-small".into(),
        deployment_id: "d1".into(),
        provider: "openai".into(),
        stream: true,
        status: Status::Success,
        http_status: 200,
        error: None,
        prompt_tokens: 10,
        completion_tokens: 5,
        cached_tokens: 4,
        cache_creation_tokens: 0,
        reasoning_tokens: 0,
        characters: 0,
        audio_millis: 1500,
        images: 0,
        spend_nanos: 510_001,
        priced: true,
        estimated: false,
        clamped: false,
        started_micros: at,
        first_byte_micros: Some(at + 250_000),
        ended_micros: at + 1_000_000,
        attempts: vec![Attempt {
            deployment_id: "d1".into(),
            status: 200,
            error: None,
            duration_micros: 900_000,
        }],
        tags: vec!["a".into()],
        metadata: Some(r#"{"who":"me"}"#.into()),
        client_ip: "192.0.2.1".into(),
        user_agent: Some("curl".into()),
        bytes_in: 1,
        bytes_out: 2,
    }
}

fn ids(rows: &Value) -> Vec<&str> {
    rows.as_array()
        .unwrap()
        .iter()
        .map(|r| r["request_id"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn keys_have_both_shapes() {
    let bench = Bench::new().await;
    let made = bench.master("POST /key/generate", everything()).await;
    conforms(&made, KEY_GENERATE);
    conforms(&made, INFO_ROW);
    let own = "sk-a-key-of-my-own";
    bench
        .store
        .append(&[record("r1", own, Some("alice"), NOON)])
        .await
        .unwrap();
    let caller = Caller::Key(Arc::new(bench.row(own).await.unwrap().into()));
    let hash = KeyHash::of(own).hex();
    for uri in [
        "/key/info".to_string(),
        format!("/key/info?key={own}"),
        format!("/key/info?key={hash}"),
    ] {
        for caller in [&caller, &master()] {
            if matches!(caller, Caller::Master { .. }) && uri == "/key/info" {
                continue;
            }
            let info = bench.get(caller, &uri).await;
            conforms(&info, KEY_INFO);
            conforms(&info["info"], INFO_ROW);
            assert_eq!(info["key"], hash.as_str());
            assert_eq!(info["spend"].to_string(), "0.000510001");
            assert_eq!(info["spend"], info["info"]["spend"]);
            assert_eq!(info["info"].get("token"), None);
            assert!(
                !info.to_string().contains(own),
                "the key itself is never shown again"
            );
        }
    }
    // A plain key, where nearly nothing is set.
    let (_, plain) = bench.holder(json!({})).await;
    let info = bench.get(&plain, "/key/info").await;
    conforms(&info, KEY_INFO);
    conforms(&info["info"], INFO_ROW);
}

#[tokio::test]
async fn the_master_key_has_an_info_too() {
    let bench = Bench::new().await;
    bench
        .store
        .append(&[record("r1", MASTER, Some("default_user_id"), NOON)])
        .await
        .unwrap();
    let hash = KeyHash::of(MASTER).hex();
    for uri in ["/key/info".to_string(), format!("/key/info?key={hash}")] {
        let info = bench.get(&master(), &uri).await;
        conforms(&info, KEY_INFO);
        assert_eq!(info["key"], hash.as_str());
        assert_eq!(info["info"]["spend"].to_string(), "0.000510001");
        assert_eq!(info["user_id"], "default_user_id");
    }
}

#[tokio::test]
async fn lists_are_paged() {
    let bench = Bench::new().await;
    for n in 0..5 {
        bench.clock.set(NOON + n);
        let user = if n < 3 { "alice" } else { "bob" };
        bench
            .holder(json!({"user_id": user, "key_alias": format!("k{n}")}))
            .await;
    }
    let page = bench.get(&master(), "/key/list?size=2&page=3").await;
    assert_eq!(
        (&page["total_count"], &page["total_pages"], &page["current_page"]),
        (&json!(5), &json!(3), &json!(3))
    );
    let oldest = page["keys"][0].as_str().unwrap();
    assert!(KeyHash::from_hex(oldest).is_some());
    let full = bench
        .get(
            &master(),
            "/key/list?return_full_object=true&user_id=alice&size=1",
        )
        .await;
    assert_eq!(
        (&full["total_count"], &full["keys"][0]["key_alias"]),
        (&json!(3), &json!("k2"))
    );
    for (query, count) in [
        (format!("key_hash={oldest}"), 1),
        (format!("key_hash={oldest}&user_id=bob"), 0),
        ("key_alias=k4".into(), 1),
        ("team_id=red".into(), 0),
        ("user_id=".into(), 5),
    ] {
        let list = bench.get(&master(), &format!("/key/list?{query}")).await;
        assert_eq!(list["total_count"], count, "{query}");
    }
    let all = bench.get(&master(), "/user/info?size=2&page=2").await;
    assert_eq!(
        (&all["total_count"], all["keys"].as_array().unwrap().len()),
        (&json!(5), 2)
    );
}

#[tokio::test]
async fn users_have_both_shapes() {
    let bench = Bench::new().await;
    let (secret, alice) = bench.holder(json!({"user_id": "alice"})).await;
    bench.holder(json!({"user_id": "alice"})).await;
    let fields = json!({
        "user_email": "alice@example.com",
        "models": ["small"],
        "max_budget": 1e-9,
        "password": "scrypt:secret",
        "tpm_limit": 7,
    });
    let doc = Doc {
        id: "alice".into(),
        fields: fields.as_object().unwrap().clone(),
        version: 0,
        created_at_micros: NOON,
        updated_at_micros: NOON,
    };
    let change = Change::Put {
        table: Table::User,
        doc: &doc,
    };
    bench.store.change(&[change], &[]).await.unwrap();
    bench
        .store
        .append(&[record("r1", &secret, Some("alice"), NOON)])
        .await
        .unwrap();
    let (own, asked) = (
        bench.get(&alice, "/user/info").await,
        bench.get(&master(), "/user/info?user_id=alice").await,
    );
    assert_eq!(own, asked);
    assert_eq!(own, bench.get(&alice, "/user/info?user_id=alice").await);
    conforms(&own, USER_INFO);
    conforms(&own["user_info"], USER_INFO);
    assert_eq!(own["max_budget"].to_string(), "1e-9");
    assert_eq!(own["spend"].to_string(), "0.000510001");
    assert_eq!(own["user_info"]["tpm_limit"], 7);
    assert_eq!(own["keys"].as_array().unwrap().len(), 2);
    assert_eq!(own["teams"], json!([]));
    assert!(own["keys"][0]["token"].is_string());
    for hidden in ["password", "scrypt", &secret] {
        assert!(!own.to_string().contains(hidden), "{hidden} is shown");
    }

    let (nobodys, nobody) = bench.holder(json!({"models": ["embed"]})).await;
    let info = bench.get(&nobody, "/user/info").await;
    conforms(&info, USER_INFO);
    assert_eq!(
        (&info["user_id"], &info["user_info"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(info["keys"][0]["token"], KeyHash::of(&nobodys).hex());

    let all = bench.get(&master(), "/user/info").await;
    conforms(&all, USER_INFO);
    assert_eq!(all["user_info"], Value::Null);
    assert_eq!(all["models"], json!(["small", "embed"]));
    assert_eq!(all["keys"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn rows_carry_both_spellings() {
    let bench = Bench::new().await;
    let (secret, _) = bench.holder(json!({"user_id": "alice"})).await;
    let mut unpriced = record("r2", &secret, None, NOON + 1);
    unpriced.priced = false;
    unpriced.spend_nanos = 0;
    unpriced.status = Status::Cut;
    unpriced.http_status = 200;
    unpriced.error = Some("the upstream broke off".into());
    unpriced.metadata = None;
    unpriced.stream = false;
    bench
        .store
        .append(&[record("r1", &secret, Some("alice"), NOON), unpriced])
        .await
        .unwrap();
    let rows = bench.get(&master(), "/spend/logs").await;
    assert_eq!(ids(&rows), ["r2", "r1"], "newest first");
    for row in rows.as_array().unwrap() {
        conforms(row, SPEND_LOG);
        conforms(row, SPEND_LOG_ROW);
    }
    let row = &rows[1];
    for (name, want) in [
        ("model", json!("real-small")),
        ("tokens", json!(15)),
        ("timestamp", json!("2026-11-20T12:00:00.000000Z")),
        ("completionStartTime", json!("2026-11-20T12:00:00.250000Z")),
        ("endTime", json!("2026-11-20T12:00:01.000000Z")),
        ("call_type", json!("acompletion")),
        ("api_key", json!(KeyHash::of(&secret).hex())),
        ("user", json!("alice")),
        ("user_id", json!("alice")),
        ("status", json!("success")),
        ("outcome", json!("success")),
        ("cache_hit", json!("False")),
        ("requested_model", json!("gpt-4")),
        ("model_group", json!("small")),
        ("request_tags", json!(["a"])),
        ("cached_tokens", json!(4)),
        ("audio_seconds", json!(1.5)),
        ("stream", json!(true)),
        ("priced", json!(true)),
        ("estimated", json!(false)),
    ] {
        assert_eq!(row[name], want, "{name}");
    }
    assert_eq!(row["spend"].to_string(), "0.000510001");
    assert_eq!(row["cost"], row["spend"]);
    assert_eq!(row["metadata"]["requester_metadata"], json!({"who": "me"}));
    assert_eq!(row["attempts"][0]["deployment_id"], "d1");
    let cut = &rows[0];
    assert_eq!(
        (cut["spend"].to_string().as_str(), &cut["priced"]),
        ("0.0", &json!(false))
    );
    assert_eq!(
        (&cut["status"], &cut["outcome"]),
        (&json!("failure"), &json!("cut"))
    );
    assert_eq!(cut["error"], "the upstream broke off");
}

#[tokio::test]
async fn rows_are_narrowed_by_owner_and_day() {
    let bench = Bench::new().await;
    let (first, alice) = bench.holder(json!({"user_id": "alice"})).await;
    let (second, _) = bench.holder(json!({"user_id": "alice"})).await;
    let (bobs, bob) = bench.holder(json!({"user_id": "bob"})).await;
    let midnight = NOON - NOON.rem_euclid(DAY);
    let rows = [
        record("a1", &first, Some("alice"), midnight - 1),
        record("a2", &first, Some("alice"), midnight),
        record("a3", &second, Some("alice"), midnight + DAY - 1),
        record("b1", &bobs, Some("bob"), midnight + DAY),
        record("m1", MASTER, Some("default_user_id"), midnight + DAY + 1),
    ];
    bench.store.append(&rows).await.unwrap();
    let hash = KeyHash::of(&second).hex();
    for (caller, query, want) in [
        (&master(), "", vec!["m1", "b1", "a3", "a2", "a1"]),
        (&master(), "?user_id=alice", vec!["a3", "a2", "a1"]),
        (&master(), "?request_id=b1", vec!["b1"]),
        (
            &master(),
            "?start_date=2026-11-20&end_date=2026-11-20",
            vec!["a3", "a2"],
        ),
        (&master(), "?start_date=2026-11-20", vec!["m1", "b1", "a3", "a2"]),
        (&master(), "?end_date=2026-11-19", vec!["a1"]),
        (&master(), "?end_date=9999-12-31&limit=1", vec!["m1"]),
        (&master(), "?limit=2&page=2", vec!["a3", "a2"]),
        (&master(), "?page_size=2&page=3", vec!["a1"]),
        (&master(), "?page_size=5000&page=4", vec![]),
        (&alice, "", vec!["a2", "a1"]),
        (&alice, "?summarize=false", vec!["a2", "a1"]),
        (&alice, "?user_id=alice", vec!["a3", "a2", "a1"]),
        (&alice, &format!("?api_key={hash}"), vec!["a3"]),
        (&alice, &format!("?api_key={first}"), vec!["a2", "a1"]),
        (&alice, "?request_id=b1", vec![]),
        (&alice, "?request_id=a3", vec![]),
        (&alice, "?request_id=a3&user_id=alice", vec!["a3"]),
        (&bob, "?start_date=2026-11-20&end_date=2026-11-21", vec!["b1"]),
    ] {
        let rows = bench.get(caller, &format!("/spend/logs{query}")).await;
        assert_eq!(ids(&rows), want, "{query}");
    }
    let answer = bench.call(&master(), "GET /spend/logs?limit=2", "").await;
    assert_eq!(answer.headers["x-next-page"], "2", "there is more");
    let answer = bench.call(&master(), "GET /spend/logs?limit=5", "").await;
    assert!(!answer.headers.contains_key("x-next-page"), "that was all");
}

#[tokio::test]
async fn days_are_summed_when_asked_for() {
    let bench = Bench::new().await;
    let (secret, alice) = bench.holder(json!({"user_id": "alice"})).await;
    let rows = [
        record("a1", &secret, Some("alice"), NOON - DAY),
        record("a2", &secret, Some("alice"), NOON),
        record("a3", &secret, Some("alice"), NOON + 1),
        record("b1", MASTER, Some("default_user_id"), NOON),
    ];
    bench.store.append(&rows).await.unwrap();
    let query = "/spend/logs?summarize=true&start_date=2026-11-19&end_date=2026-11-21";
    let hash = KeyHash::of(&secret).hex();
    let days = bench.get(&alice, query).await;
    assert_eq!(
        days,
        json!([
            {"startTime": "2026-11-19", "spend": 0.000510001, "users": {"alice": 0.000510001},
             "models": {"small": 0.000510001}, hash.as_str(): 0.000510001},
            {"startTime": "2026-11-20", "spend": 0.001020002, "users": {"alice": 0.001020002},
             "models": {"small": 0.001020002}, hash.as_str(): 0.001020002},
            {"startTime": "2026-11-21", "spend": 0.0, "users": {}, "models": {}},
        ])
    );
    let days = bench.get(&master(), query).await;
    assert_eq!(days[1]["spend"], 0.001530003);
    assert_eq!(days[1]["users"]["default_user_id"], 0.000510001);
    let rows = bench
        .get(&alice, "/spend/logs?start_date=2026-11-19&end_date=2026-11-21")
        .await;
    assert_eq!(ids(&rows), ["a3", "a2", "a1"], "two dates alone group nothing");
}
