//! What is refused, and that nothing changed then.

use super::*;

const GENERATE: &str = "POST /key/generate";

#[tokio::test]
async fn bad_fields_are_named() {
    let bench = Bench::new().await;
    for (body, status, field) in [
        (r#"{"duration": 30}"#, 422, "duration"),
        (r#"{"duration": "30"}"#, 400, "duration"),
        (r#"{"duration": "1y"}"#, 400, "duration"),
        (r#"{"duration": "-1"}"#, 400, "duration"),
        (r#"{"duration": "999999999999d"}"#, 400, "duration"),
        (r#"{"max_budget": -1}"#, 400, "max_budget"),
        (r#"{"max_budget": "-0.5"}"#, 400, "max_budget"),
        (r#"{"max_budget": 1e300}"#, 400, "max_budget"),
        (r#"{"max_budget": "NaN"}"#, 422, "max_budget"),
        (r#"{"max_budget": "much"}"#, 422, "max_budget"),
        (r#"{"max_budget": [1]}"#, 422, "max_budget"),
        (r#"{"soft_budget": -1}"#, 400, "soft_budget"),
        (r#"{"budget_duration": "1000000d"}"#, 400, "budget_duration"),
        (r#"{"budget_duration": "0d"}"#, 400, "budget_duration"),
        (r#"{"organization_id": "nowhere"}"#, 400, "organization_id"),
        (r#"{"spend": -1}"#, 400, "spend"),
        (r#"{"models": "small"}"#, 422, "models"),
        (r#"{"models": [1]}"#, 422, "models"),
        (r#"{"user_id": 1}"#, 422, "user_id"),
        (r#"{"team_id": ["a"]}"#, 422, "team_id"),
        (r#"{"key_alias": {}}"#, 422, "key_alias"),
        (r#"{"key_alias": "a\nb"}"#, 400, "key_alias"),
        (r#"{"user_id": "a\u0000b"}"#, 400, "user_id"),
        (r#"{"metadata": {"a": ["\u0000"]}}"#, 400, "metadata"),
        (r#"{"metadata": "x"}"#, 422, "metadata"),
        (r#"{"aliases": {"a": 1}}"#, 422, "aliases"),
        (r#"{"aliases": []}"#, 422, "aliases"),
        (r#"{"blocked": "perhaps"}"#, 422, "blocked"),
        (r#"{"tpm_limit": "many"}"#, 422, "tpm_limit"),
        (r#"{"tpm_limit": 1.5}"#, 422, "tpm_limit"),
        (r#"{"rpm_limit": -1}"#, 400, "rpm_limit"),
        (r#"{"max_parallel_requests": {}}"#, 422, "max_parallel_requests"),
        (r#"{"budget_duration": "soon"}"#, 400, "budget_duration"),
        (r#"{"budget_duration": 1}"#, 422, "budget_duration"),
        (r#"{"permissions": []}"#, 422, "permissions"),
        (r#"{"tags": "a"}"#, 422, "tags"),
        (r#"{"budget_limits": [1]}"#, 422, "budget_limits"),
        (r#"{"key_type": "root"}"#, 422, "key_type"),
        (r#"{"send_invite_email": "x"}"#, 422, "send_invite_email"),
        (r#"{"key": 1}"#, 422, "key"),
        (r#"{"key": ""}"#, 400, "key"),
        (r#"{"key": "sk-1234"}"#, 400, "key"),
        (r#"{"key": "pk-aaaaaaaaaaaaaaaa"}"#, 400, "key"),
        (r#"{"key": "sk-aaaaaaaa aaaaaaaa"}"#, 400, "key"),
        (r#"{"key": "sk-aaaaaaaaaaaaaé"}"#, 400, "key"),
        ("", 400, "request_body"),
        ("{", 400, "request_body"),
        ("{} {}", 400, "request_body"),
        (r#"{"max_budget": NaN}"#, 400, "request_body"),
        ("[]", 422, "request_body"),
        ("null", 422, "request_body"),
    ] {
        let answer = bench.call(&master(), GENERATE, body).await;
        let stop = answer.stop.unwrap_or_else(|| panic!("{body} was taken"));
        assert_eq!(
            (answer.status, param(&stop)),
            (status, Some(field)),
            "{body}: {stop:?}"
        );
    }
    let long = json!({"user_id": "a".repeat(513)}).to_string();
    refused(&bench, &master(), GENERATE, &long, 400, "at most 512 bytes").await;
    let deep = format!("{}{}", r#"{"metadata":"#.repeat(50_000), "}".repeat(50_000));
    refused(&bench, &master(), GENERATE, &deep, 400, "Invalid JSON payload").await;
    let large = json!({"metadata": {"a": "a".repeat(1024 * 1024)}}).to_string();
    refused(&bench, &master(), GENERATE, &large, 413, "larger than").await;
    let all = bench.get(&master(), "/key/list").await;
    assert_eq!(all["total_count"], 0, "none of these made a key");
}

#[tokio::test]
async fn names_are_taken_once() {
    let bench = Bench::new().await;
    bench.master(GENERATE, everything()).await;
    let (secret, _) = bench.holder(json!({"key_alias": "other"})).await;
    let sentence = "Key with alias 'ci' already exists. Unique key aliases across all keys are required.";
    refused(
        &bench,
        &master(),
        GENERATE,
        r#"{"key_alias": "ci"}"#,
        400,
        sentence,
    )
    .await;
    let update = json!({"key": secret, "key_alias": "ci"}).to_string();
    refused(&bench, &master(), "POST /key/update", &update, 400, sentence).await;
    let own = json!({"key": "sk-a-key-of-my-own"}).to_string();
    let answer = bench.call(&master(), GENERATE, own).await;
    let stop = answer.stop.unwrap();
    assert_eq!(
        (stop.status(), stop.kind(), param(&stop)),
        (400, "bad_request_error", Some("key"))
    );
    // An empty alias is none, for any number of keys.
    for _ in 0..2 {
        let made = bench.master(GENERATE, json!({"key_alias": ""})).await;
        assert_eq!(made["key_alias"], Value::Null);
    }
}

#[tokio::test]
async fn the_master_key_is_no_virtual_key() {
    let bench = Bench::new().await;
    let long = "sk-a-long-master-key";
    let caller = Caller::Master {
        hash: KeyHash::of(long),
    };
    let body = json!({"key": long}).to_string();
    refused(&bench, &caller, GENERATE, &body, 400, "This is the master key").await;
}

#[tokio::test]
async fn unknown_keys_are_404_and_missing_ones_422() {
    let bench = Bench::new().await;
    let unknown = KeyHash::of("sk-unknown").hex();
    for route in ["POST /key/update", "POST /key/block", "POST /key/unblock"] {
        for key in ["sk-unknown", unknown.as_str(), "nonsense"] {
            let body = json!({"key": key}).to_string();
            refused(&bench, &master(), route, &body, 404, "Key not found").await;
        }
        refused(&bench, &master(), route, "{}", 422, "'key' is required").await;
        refused(
            &bench,
            &master(),
            route,
            r#"{"key": 1}"#,
            422,
            "'key' must be a string",
        )
        .await;
    }
    refused(
        &bench,
        &master(),
        "POST /key/delete",
        "{}",
        422,
        "Name what to delete",
    )
    .await;
    refused(
        &bench,
        &master(),
        "POST /key/delete",
        r#"{"keys": []}"#,
        422,
        "Name what",
    )
    .await;
    refused(
        &bench,
        &master(),
        "POST /key/delete",
        r#"{"keys": "a"}"#,
        422,
        "a list of strings",
    )
    .await;
    refused(
        &bench,
        &master(),
        "POST /key/delete",
        r#"{"keys": ["sk-a"]}"#,
        404,
        "No keys found",
    )
    .await;
    let many = json!({"keys": vec!["sk-a"; 1001]}).to_string();
    refused(&bench, &master(), "POST /key/delete", &many, 400, "At most 1000").await;
    refused(
        &bench,
        &master(),
        "GET /key/info?key=sk-a",
        "",
        404,
        "Key not found in database",
    )
    .await;
    refused(
        &bench,
        &master(),
        "GET /user/info?user_id=nope",
        "",
        404,
        "User nope not found",
    )
    .await;
    let (secret, _) = bench.holder(json!({})).await;
    let spend = json!({"key": secret, "spend": 0}).to_string();
    refused(
        &bench,
        &master(),
        "POST /key/update",
        &spend,
        400,
        "Spend is the sum",
    )
    .await;
}

#[tokio::test]
async fn a_holder_changes_nothing() {
    let bench = Bench::new().await;
    let (secret, holder) = bench.holder(json!({"user_id": "alice", "max_budget": 1})).await;
    let before = bench.row(&secret).await;
    let mut body = everything();
    body["key"] = json!(secret);
    body["keys"] = json!([secret]);
    body["user_role"] = json!("proxy_admin");
    body["max_budget"] = json!(1_000_000);
    for route in [
        GENERATE,
        "POST /key/update",
        "POST /key/delete",
        "POST /key/block",
        "POST /key/unblock",
    ] {
        refused(&bench, &holder, route, &body.to_string(), 401, "Only proxy admin").await;
        refused(
            &bench,
            &Caller::Anonymous,
            route,
            &body.to_string(),
            401,
            "No api key",
        )
        .await;
    }
    assert_eq!(bench.row(&secret).await, before);
    assert_eq!(bench.get(&master(), "/key/list").await["total_count"], 1);
}

#[tokio::test]
async fn others_are_none_of_a_holders_business() {
    let bench = Bench::new().await;
    let (_, alice) = bench.holder(json!({"user_id": "alice"})).await;
    let (_, nobody) = bench.holder(json!({})).await;
    let (second, _) = bench.holder(json!({})).await;
    let (bobs, _) = bench.holder(json!({"user_id": "bob"})).await;
    let hash = KeyHash::of(&bobs).hex();
    for caller in [&alice, &nobody] {
        for (route, says) in [
            (format!("GET /key/info?key={bobs}"), "this key's info"),
            (format!("GET /key/info?key={hash}"), "this key's info"),
            (format!("GET /key/info?key={second}"), "this key's info"),
            ("GET /user/info?user_id=bob".into(), "this user's info"),
            ("GET /user/info?user_id=nope".into(), "this user's info"),
            (
                "GET /user/info?user_id=default_user_id".into(),
                "this user's info",
            ),
            ("GET /spend/logs?user_id=bob".into(), "only view their own spend"),
            (
                format!("GET /spend/logs?api_key={hash}"),
                "only view their own spend",
            ),
            (
                format!("GET /spend/logs?api_key={second}"),
                "only view their own spend",
            ),
            (
                "GET /spend/logs?api_key=sk-unknown".into(),
                "only view their own spend",
            ),
            (
                format!("GET /spend/logs?user_id=bob&api_key={hash}"),
                "only view their own spend",
            ),
            (
                "GET /spend/logs?user_id=bob&summarize=true".into(),
                "only view their own spend",
            ),
        ] {
            refused(&bench, caller, &route, "", 403, says).await;
        }
    }
    for route in ["GET /key/info", "GET /user/info", "GET /spend/logs"] {
        refused(&bench, &Caller::Anonymous, route, "", 401, "No api key").await;
    }
}

#[tokio::test]
async fn queries_are_bounded_and_read_once() {
    let bench = Bench::new().await;
    for (route, status, says) in [
        (
            "spend/logs?limit=0",
            422,
            "'limit' must be a whole number from 1 to 5000",
        ),
        ("spend/logs?limit=5001", 422, "from 1 to 5000"),
        ("spend/logs?limit=-1", 422, "from 1 to 5000"),
        ("spend/logs?page=0", 422, "'page'"),
        ("spend/logs?page=18446744073709551616", 422, "'page'"),
        ("spend/logs?page=4294967295&limit=5000", 400, "Pages reach"),
        ("spend/logs?limit=1&page_size=2", 400, "differ"),
        ("spend/logs?user_id=a&user_id=b", 400, "given twice"),
        ("spend/logs?user_id=a%00b", 400, "control character"),
        ("spend/logs?start_date=yesterday", 400, "YYYY-MM-DD"),
        ("spend/logs?start_date=2026-02-30", 400, "YYYY-MM-DD"),
        ("spend/logs?end_date=2026-11-20T00:00:00Z", 400, "YYYY-MM-DD"),
        ("spend/logs?start_date=-2026-11-20", 400, "YYYY-MM-DD"),
        (
            "spend/logs?start_date=2026-11-21&end_date=2026-11-20",
            400,
            "lies after",
        ),
        ("spend/logs?summarize=maybe", 422, "true or false"),
        (
            "spend/logs?summarize=true&request_id=a",
            400,
            "One request has no sums",
        ),
        ("key/list?size=101", 422, "from 1 to 100"),
        ("user/info?size=501", 422, "from 1 to 500"),
    ] {
        refused(&bench, &master(), &format!("GET /{route}"), "", status, says).await;
    }
}

#[tokio::test]
async fn routes_and_methods_are_the_known_ones() {
    let bench = Bench::new().await;
    for (route, allow) in [
        ("GET /key/generate", "POST"),
        ("PUT /key/delete", "POST"),
        ("DELETE /key/block", "POST"),
        ("POST /key/info", "GET, HEAD"),
        ("POST /spend/logs", "GET, HEAD"),
        ("PATCH /user/info", "GET, HEAD"),
    ] {
        let answer = bench.call(&master(), route, "").await;
        assert_eq!(answer.status, 405, "{route}");
        match answer.stop.as_deref() {
            Some(Stop::Refusal(r)) => assert_eq!(r.headers, [("allow", allow.to_string())], "{route}"),
            other => panic!("{route}: {other:?}"),
        }
    }
    for route in [
        "GET /key",
        "POST /key/degenerate",
        "GET /key/info/",
        "GET /KEY/info",
        "POST /key//delete",
    ] {
        refused(&bench, &master(), route, "", 404, "There is no /").await;
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_a_503() {
    let bench = Bench::away().await;
    let (_, holder) = Bench::new().await.holder(json!({"user_id": "alice"})).await;
    for (caller, route, body) in [
        (&master(), GENERATE, "{}"),
        (&master(), "POST /key/update", r#"{"key": "sk-a"}"#),
        (&master(), "POST /key/delete", r#"{"keys": ["sk-a"]}"#),
        (&master(), "POST /key/block", r#"{"key": "sk-a"}"#),
        (&master(), "GET /key/list", ""),
        (&master(), "GET /key/info", ""),
        (&holder, "GET /key/info", ""),
        (&holder, "GET /user/info", ""),
        (&holder, "GET /spend/logs", ""),
        (&holder, "GET /spend/logs?summarize=1", ""),
    ] {
        refused(&bench, caller, route, body, 503, "database is away").await;
    }
}

#[tokio::test]
async fn a_request_without_a_caller_is_our_fault() {
    let bench = Bench::new().await;
    let request = Request::get("/key/info").body(Body::empty()).unwrap();
    let response = bench.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 500);
    assert!(matches!(
        response.extensions().get::<Arc<Stop>>().map(Arc::as_ref),
        Some(Stop::Fault(_))
    ));
}
