//! What budgets and limits reach: every endpoint with a price, what is passed through, end users by header, tags.

use crate::kit::client::{Answer, ask};
use crate::kit::gateway::{Gateway, MASTER, Setup, free_port};
use crate::kit::until;
use crate::kit::upstream::{Script, Upstream};
use serde_json::{Value, json};

async fn call(gateway: &Gateway, key: &str, path: &str, more: &[(&str, &str)], body: &Value) -> Answer {
    let bearer = format!("Bearer {key}");
    let headers = [&[("authorization", bearer.as_str())], more].concat();
    ask(gateway, "POST", path, &headers, body.to_string()).await
}

async fn manage(gateway: &Gateway, path: &str, body: Value) -> Value {
    let answer = call(gateway, MASTER, path, &[], &body).await;
    assert_eq!(answer.status(), 200, "{path} {body}: {answer:?}");
    answer.json()
}

async fn made(gateway: &Gateway, fields: Value) -> String {
    let key = manage(gateway, "/key/generate", fields).await;
    key["key"].as_str().unwrap().to_string()
}

fn chat() -> Value {
    json!({"model": "small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3})
}

#[tokio::test]
async fn what_is_passed_through_counts() {
    let upstream = Upstream::good().await;
    let target =
        Upstream::start(|_| Script::answer(200, &[("x-ratelimit-limit-tokens", "7")], b"spoken")).await;
    let entry = json!({"path": "/tts", "target": target.base(), "include_subpath": true, "auth": true});
    let prices = json!({"input_cost_per_token": 1, "output_cost_per_token": 1});
    let gateway = Setup::new()
        .deployment("small", &upstream.base(), prices)
        .general("pass_through_endpoints", json!([entry]))
        .start()
        .await;
    let speak = async |key: &str| call(&gateway, key, "/tts/v1/audio/speech", &[], &json!({})).await;

    let team = manage(&gateway, "/team/new", json!({"rpm_limit": 3})).await;
    let key = made(
        &gateway,
        json!({"team_id": team["team_id"], "rpm_limit": 2, "max_parallel_requests": 5}),
    )
    .await;
    let first = speak(&key).await;
    assert_eq!(first.status(), 200, "{first:?}");
    for (name, value) in [
        ("x-ratelimit-limit-requests", "2"),
        ("x-ratelimit-remaining-requests", "1"),
        ("x-ratelimit-team-remaining-requests", "2"),
        // What the target says of itself stays.
        ("x-ratelimit-limit-tokens", "7"),
    ] {
        assert_eq!(first.head.header(name), Some(value), "{name}: {first:?}");
    }
    assert_eq!(
        call(&gateway, &key, "/v1/chat/completions", &[], &chat())
            .await
            .status(),
        200
    );
    let refused = speak(&key).await;
    assert_eq!(
        refused.status(),
        429,
        "calls and what is passed through count together"
    );
    assert_eq!(refused.json()["error"]["type"], "throttling_error");
    assert!(refused.head.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(refused.head.header("x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(target.count(), 1);

    let poor = made(&gateway, json!({"max_budget": 0.5})).await;
    assert_eq!(speak(&poor).await.status(), 200);
    assert_eq!(
        call(&gateway, &poor, "/v1/chat/completions", &[], &chat())
            .await
            .status(),
        200
    );
    let refused = speak(&poor).await;
    assert_eq!(refused.json()["error"]["type"], "budget_exceeded", "{refused:?}");
    assert_eq!(speak(MASTER).await.status(), 200);
}

#[tokio::test]
async fn a_header_names_the_end_user() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    manage(
        &gateway,
        "/customer/new",
        json!({"user_id": "shop", "rpm_limit": 2}),
    )
    .await;
    let key = made(&gateway, json!({})).await;
    let of = async |headers: &[(&str, &str)], user: Option<&str>| {
        let mut body = chat();
        if let Some(user) = user {
            body["user"] = user.into();
        }
        call(&gateway, &key, "/v1/chat/completions", headers, &body)
            .await
            .status()
    };
    assert_eq!(of(&[], Some("shop")).await, 200);
    assert_eq!(of(&[("x-litellm-end-user-id", "shop")], Some("other")).await, 200);
    assert_eq!(
        upstream.last().json()["user"],
        "other",
        "the upstream reads what the client wrote"
    );
    assert_eq!(of(&[("x-litellm-customer-id", "shop")], None).await, 429);
    let first = [
        ("x-litellm-customer-id", "other"),
        ("x-litellm-end-user-id", "shop"),
    ];
    assert_eq!(of(&first, Some("shop")).await, 200, "the first header wins");
    assert_eq!(
        of(&[("x-litellm-end-user-id", " ")], Some("shop")).await,
        429,
        "an empty one says nothing"
    );
    manage(&gateway, "/customer/block", json!({"user_ids": ["bad"]})).await;
    until("the block is known", async || {
        of(&[("x-litellm-end-user-id", "bad")], None).await == 401
    })
    .await;
}

#[tokio::test]
async fn a_blocked_tag_is_refused_and_junk_hides_none() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    let junk: Vec<String> = (0..40).map(|n| format!("junk-{n}")).collect();
    manage(&gateway, "/tag/new", json!({"name": "late", "rpm_limit": 1})).await;
    let tags: Vec<String> = junk.iter().take(20).cloned().chain(["late".into()]).collect();
    let key = made(&gateway, json!({"tags": tags})).await;
    let mut body = chat();
    body["metadata"] = json!({"tags": junk});
    let say = async || call(&gateway, &key, "/v1/chat/completions", &[], &body).await;
    assert_eq!(say().await.status(), 200);
    let refused = say().await;
    assert_eq!(refused.status(), 429, "{refused:?}");
    assert!(refused.text().contains("tag: late"), "{refused:?}");
    manage(&gateway, "/tag/new", json!({"name": "stopped", "blocked": true})).await;
    let tagged = [("x-litellm-tags", "stopped")];
    let other = made(&gateway, json!({})).await;
    let refused = call(&gateway, &other, "/v1/chat/completions", &tagged, &chat()).await;
    assert_eq!(refused.status(), 401, "{refused:?}");
    assert!(refused.text().contains("Tag=stopped is blocked"), "{refused:?}");
    manage(
        &gateway,
        "/tag/update",
        json!({"name": "stopped", "blocked": false}),
    )
    .await;
    until("it is let in again", async || {
        call(&gateway, &other, "/v1/chat/completions", &tagged, &chat())
            .await
            .status()
            == 200
    })
    .await;
}

#[tokio::test]
async fn every_priced_endpoint_keeps_a_budget() {
    let upstream = Upstream::start(|seen| {
        let usage = json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
            "input_tokens": 7, "output_tokens": 3});
        match seen.target.trim_start_matches("/v1") {
            "/audio/speech" => Script::answer(200, &[("content-type", "audio/mpeg")], b"ID3"),
            "/audio/transcriptions" | "/audio/translations" => {
                Script::json(200, &json!({"text": "x", "duration": 2.0}))
            }
            "/images/generations" => Script::json(200, &json!({"created": 1, "data": [{"url": "u"}]})),
            "/rerank" => Script::json(200, &json!({"id": "r", "results": []})),
            "/responses" => Script::json(
                200,
                &json!({"id": "r", "object": "response", "output": [], "usage": usage}),
            ),
            "/embeddings" => Script::json(200, &json!({"object": "list", "data": [], "usage": usage})),
            "/completions" => Script::json(
                200,
                &json!({"id": "c", "object": "text_completion", "choices": [], "usage": usage}),
            ),
            _ => Script::chat("hello"),
        }
    })
    .await;
    let base = upstream.base();
    let gateway = Setup::new()
        .deployment(
            "small",
            &base,
            json!({"input_cost_per_token": 0.1, "output_cost_per_token": 0.1}),
        )
        .deployment("voice", &base, json!({"input_cost_per_character": 0.1}))
        .deployment("ears", &base, json!({"input_cost_per_second": 0.1}))
        .deployment("paint", &base, json!({"output_cost_per_image": 0.1}))
        .deployment("order", &base, json!({"input_cost_per_query": 0.1}))
        .start()
        .await;
    let form = "--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nears\r\n--b\r\ncontent-disposition: form-data; \
        name=\"file\"; filename=\"a.wav\"\r\ncontent-type: audio/wav\r\n\r\nRIFF\r\n--b--\r\n";
    let text = |v: Value| (v.to_string(), "application/json");
    let form = (form.to_string(), "multipart/form-data; boundary=b");
    for (path, (body, kind)) in [
        ("/v1/chat/completions", text(chat())),
        (
            "/v1/completions",
            text(json!({"model": "small", "prompt": "x", "max_tokens": 3})),
        ),
        ("/v1/embeddings", text(json!({"model": "small", "input": "x"}))),
        (
            "/v1/responses",
            text(json!({"model": "small", "input": "x", "max_output_tokens": 3})),
        ),
        (
            "/v1/audio/speech",
            text(json!({"model": "voice", "input": "hello", "voice": "a"})),
        ),
        (
            "/v1/images/generations",
            text(json!({"model": "paint", "prompt": "x"})),
        ),
        (
            "/v1/rerank",
            text(json!({"model": "order", "query": "x", "documents": ["a"]})),
        ),
        ("/v1/audio/transcriptions", form.clone()),
        ("/v1/audio/translations", form.clone()),
    ] {
        let key = made(&gateway, json!({"max_budget": 0.000_001, "rpm_limit": 100})).await;
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        let first = ask(&gateway, "POST", path, &headers, body.clone()).await;
        assert_eq!(first.status(), 200, "{path}: {first:?}");
        assert_eq!(
            first.head.header("x-ratelimit-remaining-requests"),
            Some("99"),
            "{path}"
        );
        let second = ask(&gateway, "POST", path, &headers, body).await;
        assert_eq!(
            second.json()["error"]["type"],
            "budget_exceeded",
            "{path}: {second:?}"
        );
        assert_eq!(second.head.header("x-should-retry"), Some("false"));
        assert_eq!(
            second.head.header("x-ratelimit-limit-requests"),
            Some("100"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_member_keeps_its_budget_in_its_organization() {
    let upstream = Upstream::good().await;
    let prices = json!({"input_cost_per_token": 0.1, "output_cost_per_token": 0.1});
    let gateway = Setup::new()
        .deployment("small", &upstream.base(), prices)
        .start()
        .await;
    let chat = async |key: &str| call(&gateway, key, "/v1/chat/completions", &[], &chat()).await;
    manage(
        &gateway,
        "/organization/new",
        json!({"organization_id": "acme", "organization_alias": "Acme"}),
    )
    .await;
    for (user, budget) in [("ann", json!(0.000_001)), ("bob", json!(null))] {
        let member = json!({"organization_id": "acme", "member": {"user_id": user, "role": "internal_user"},
            "max_budget_in_organization": budget});
        let added = manage(&gateway, "/organization/member_add", member).await;
        assert_eq!(
            added["updated_organization_memberships"][0].get("not_enforced"),
            None
        );
    }
    let team = json!({"team_id": "red", "organization_id": "acme"});
    manage(&gateway, "/team/new", team).await;
    let own = made(&gateway, json!({"user_id": "ann", "organization_id": "acme"})).await;
    let of_team = made(&gateway, json!({"user_id": "ann", "team_id": "red"})).await;
    let elsewhere = made(&gateway, json!({"user_id": "ann"})).await;
    let of_bob = made(&gateway, json!({"user_id": "bob", "organization_id": "acme"})).await;

    assert_eq!(chat(&own).await.status(), 200);
    for key in [&own, &of_team] {
        let refused = chat(key).await;
        assert_eq!(refused.status(), 429, "{refused:?}");
        let error = &refused.json()["error"];
        assert_eq!(error["type"], "budget_exceeded");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("Organization member=acme:ann Current cost: 1,")
                && message.contains("Max budget: 0.000001"),
            "{message}"
        );
    }
    for key in [&elsewhere, &of_bob] {
        assert_eq!(chat(key).await.status(), 200);
    }
    until("what members spent is shown", async || {
        let info = "/organization/info?organization_id=acme";
        let info = ask(
            &gateway,
            "GET",
            info,
            &[("authorization", &format!("Bearer {MASTER}"))],
            "",
        )
        .await;
        let members = &info.json()["members"];
        members[0]["spend"].as_f64() == members[1]["spend"].as_f64()
            && members[0]["spend"].as_f64() > Some(0.0)
    })
    .await;
    let more = json!({"organization_id": "acme", "user_id": "ann", "max_budget_in_organization": 100});
    manage(&gateway, "/organization/member_update", more).await;
    until("a higher budget counts", async || {
        chat(&of_team).await.status() == 200
    })
    .await;
}

#[tokio::test]
async fn failures_tell_how_the_limits_stand() {
    // Nobody listens there.
    let base = format!("http://127.0.0.1:{}/v1", free_port());
    let full = Upstream::good().await;
    let gateway = Setup::new()
        .deployment("small", &base, json!({}))
        .deployment("full", &full.base(), json!({"rpm": 1}))
        .start()
        .await;
    let key = made(&gateway, json!({"rpm_limit": 9})).await;
    let failed = call(&gateway, &key, "/v1/chat/completions", &[], &chat()).await;
    assert!(failed.status() >= 500, "{failed:?}");
    assert_eq!(failed.head.header("x-ratelimit-remaining-requests"), Some("8"));
    let mut body = chat();
    body["model"] = "full".into();
    assert_eq!(
        call(&gateway, &key, "/v1/chat/completions", &[], &body)
            .await
            .status(),
        200
    );
    let refused = call(&gateway, &key, "/v1/chat/completions", &[], &body).await;
    assert_eq!(refused.status(), 429, "{refused:?}");
    assert!(refused.head.header("retry-after").is_some());
    assert_eq!(refused.head.header("x-ratelimit-remaining-requests"), Some("6"));
}
