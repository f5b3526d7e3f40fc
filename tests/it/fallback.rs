//! Several deployments of one name: who is asked, who is asked next, and what is told when all fail.

use crate::kit::client::{Answer, Conn, chat};
use crate::kit::gateway::{Gateway, PROVIDER, Setup};
use crate::kit::upstream::{Script, Upstream};
use filters::model::record::Status;
use serde_json::{Value, json};

/// Nothing listens there.
const NOWHERE: &str = "http://127.0.0.1:1/v1";
/// So many calls that a fair draw comes to each of two deployments first at least once.
const ENOUGH: usize = 30;

fn call(model: &str) -> Value {
    json!({"model": model, "messages": []})
}

/// `ENOUGH` calls on one connection.
async fn calls(gateway: &Gateway, model: &str) -> Vec<Answer> {
    let mut conn = Conn::open(gateway.at).await;
    let body = call(model).to_string();
    let mut answers = Vec::new();
    for _ in 0..ENOUGH {
        answers.push(
            conn.ask("POST", "/v1/chat/completions", &[], body.as_bytes())
                .await,
        );
    }
    answers
}

/// An error must name the deployment, and give away neither its address nor its key.
fn tells_little(answer: &Answer) {
    let text = format!("{:?} {}", answer.head, answer.text());
    for secret in ["127.0.0.1", "localhost", PROVIDER, "refused", "os error"] {
        assert!(!text.contains(secret), "an error must not say {secret:?}: {text}");
    }
}

#[tokio::test]
async fn what_fails_before_the_first_byte_goes_to_the_next_one() {
    let good = Upstream::good().await;
    let failing = Upstream::start(|seen| match seen.json()["model"].as_str().unwrap() {
        "up-silent" => Script::nothing().close(),
        "up-half-head" => Script::nothing().raw("HTTP/1.1 200 OK\r\ncontent-").close(),
        "up-noise" => Script::nothing().raw("no HTTP at all\r\n\r\n").close(),
        "up-half-body" => Script::nothing()
            .raw("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"half\":")
            .close(),
        status => Script::error(status[3..].parse().unwrap(), "not me"),
    })
    .await;
    let kinds = [
        ("refused", 0),
        ("429", 429),
        ("500", 500),
        ("503", 503),
        ("401", 401),
        ("silent", 0),
        ("half-head", 0),
        ("noise", 0),
        ("half-body", 0),
    ];
    let mut setup = Setup::new();
    for (kind, _) in kinds {
        let base = if kind == "refused" {
            NOWHERE.to_string()
        } else {
            failing.base()
        };
        setup = setup
            .deployment(kind, &base, json!({"id": format!("bad-{kind}")}))
            .deployment(kind, &good.base(), json!({"id": format!("good-{kind}")}));
    }
    let gateway = setup.start().await;
    for (kind, status) in kinds {
        let mut after_failure = None;
        for answer in calls(&gateway, kind).await {
            assert_eq!(
                answer.status(),
                200,
                "{kind}: the other one answers: {}",
                answer.text()
            );
            let by = format!("good-{kind}");
            assert_eq!(answer.head.header("x-litellm-model-id"), Some(&*by), "{kind}");
            if answer.head.header("x-litellm-attempted-retries") == Some("1") {
                after_failure = Some(answer);
            }
        }
        let answer = after_failure.unwrap_or_else(|| panic!("{kind}: the failing one was never drawn first"));
        let row = gateway.row(answer.head.id()).await;
        assert_eq!((row.status, row.http_status), (Status::Success, 200), "{kind}");
        assert_eq!(row.deployment_id, format!("good-{kind}"), "{kind}");
        let own = format!("-{kind}");
        let attempts: Vec<(&str, u16, bool)> = row
            .attempts
            .iter()
            .map(|a| {
                (
                    a.deployment_id.trim_end_matches(&own),
                    a.status,
                    a.error.is_some(),
                )
            })
            .collect();
        assert_eq!(attempts, [("bad", status, true), ("good", 200, false)], "{kind}");
        assert_eq!(
            row.prompt_tokens, 7,
            "{kind}: billed once, by the one that answered"
        );
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_request_is_not_tried_elsewhere() {
    let good = Upstream::good().await;
    let bad = Upstream::start(|_| Script::error(400, "the context is too long")).await;
    let gateway = Setup::new()
        .model("small", &bad)
        .model("small", &good)
        .start()
        .await;
    let answers = calls(&gateway, "small").await;
    let refused: Vec<&Answer> = answers.iter().filter(|a| a.status() == 400).collect();
    assert_eq!(refused.len(), bad.count(), "each 400 reaches its client");
    assert_eq!(good.count() + bad.count(), ENOUGH, "no call was made twice");
    assert!(!refused.is_empty());
    assert!(
        refused[0].text().contains("the context is too long"),
        "{}",
        refused[0].text()
    );
    let row = gateway.row(refused[0].head.id()).await;
    assert_eq!(
        (row.status, row.http_status, row.spend_nanos),
        (Status::Failure, 400, 0)
    );
}

#[tokio::test]
async fn when_all_fail_the_last_error_is_told_without_addresses() {
    let silent = Upstream::start(|_| Script::nothing().close()).await;
    let gateway = Setup::new()
        .deployment("gone", NOWHERE, json!({"id": "gone-1"}))
        .deployment("gone", NOWHERE, json!({"id": "gone-2"}))
        .deployment("silent", &silent.base(), json!({"id": "silent-1"}))
        .deployment(
            "nameless",
            "http://no-such-host.invalid/v1",
            json!({"id": "nameles1"}),
        )
        .start()
        .await;
    for (model, status, id) in [
        ("gone", 503, "(gone-"),
        ("silent", 502, "silent-1"),
        ("nameless", 503, "nameles1"),
    ] {
        let answer = chat(&gateway, &call(model)).await;
        assert_eq!(answer.status(), status, "{model}");
        assert!(
            answer.error().contains(id),
            "{model}: the deployment is named: {}",
            answer.text()
        );
        assert!(!answer.text().contains("no-such-host"), "{}", answer.text());
        tells_little(&answer);
        let row = gateway.row(answer.head.id()).await;
        assert_eq!(
            (row.status, row.http_status, row.spend_nanos),
            (Status::Failure, status, 0)
        );
        assert_eq!(row.attempts.len(), if model == "gone" { 2 } else { 1 });
        assert!(!format!("{row:?}").contains(":1/"), "{row:?}");
    }
}

#[tokio::test]
async fn an_upstreams_own_error_is_passed_on() {
    let upstream = Upstream::start(|seen| match seen.json()["user"].as_str().unwrap() {
        "429" => Script::answer(
            429,
            &[("content-type", "application/json"), ("retry-after", "7")],
            r#"{"error":{"message":"slow down","type":"rate_limit","param":null,"code":"429"}}"#,
        ),
        "html" => Script::answer(
            503,
            &[("content-type", "text/html"), ("retry-after", "9")],
            "<html>10.0.0.7 is down</html>",
        ),
        "empty" => Script::answer(500, &[], ""),
        "redirect" => Script::answer(302, &[("location", "http://169.254.169.254/")], ""),
        "401" => Script::error(401, &format!("Incorrect API key provided: {PROVIDER}")),
        "403" => Script::error(403, &format!("{PROVIDER} may not do this at http://127.0.0.1")),
        "404" => Script::error(404, "no such model"),
        _ => Script::error(422, "odd"),
    })
    .await;
    let gateway = Setup::new()
        .deployment("small", &upstream.base(), json!({"id": "the-one"}))
        .start()
        .await;
    let ask = async |user: &str| {
        let answer = chat(&gateway, &json!({"model": "small", "messages": [], "user": user})).await;
        tells_little(&answer);
        assert!(answer.head.header("x-request-id").is_some(), "{user}");
        answer
    };
    let answer = ask("429").await;
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.error(), "slow down");
    assert_eq!(
        answer.head.header("retry-after"),
        Some("7"),
        "the client learns when to come again"
    );
    let answer = ask("html").await;
    assert_eq!(answer.status(), 503);
    assert!(
        answer.error().contains("the-one"),
        "a page becomes an error that clients can read"
    );
    assert!(!answer.text().contains("10.0.0.7"), "{}", answer.text());
    assert_eq!(answer.head.header("retry-after"), Some("9"));
    let answer = ask("empty").await;
    assert_eq!(answer.status(), 500);
    assert!(answer.error().contains("the-one"));
    let answer = ask("redirect").await;
    assert_eq!(answer.status(), 502, "no redirect is followed");
    assert!(!answer.text().contains("169.254") && answer.head.header("location").is_none());
    for status in ["401", "403"] {
        let answer = ask(status).await;
        assert!(
            answer.error().contains("the-one") && answer.error().contains("api_key"),
            "what it says of our credentials stays here: {}",
            answer.text()
        );
    }
    assert_eq!(ask("404").await.status(), 404);
    assert_eq!(ask("422").await.status(), 422);
}

#[tokio::test]
async fn a_deployment_that_does_not_answer_in_time_is_left() {
    let slow = Upstream::start(|_| Script::nothing().hang()).await;
    let good = Upstream::good().await;
    let gateway = Setup::new()
        .deployment("alone", &slow.base(), json!({"id": "slow-1", "timeout": 0.2}))
        .deployment("both", &slow.base(), json!({"timeout": 0.2}))
        .deployment("both", &good.base(), json!({}))
        .start()
        .await;
    let answer = chat(&gateway, &call("alone")).await;
    assert_eq!(answer.status(), 408);
    assert!(answer.error().contains("slow-1"), "{}", answer.text());
    tells_little(&answer);
    let before = slow.count();
    for _ in 0..ENOUGH {
        assert_eq!(chat(&gateway, &call("both")).await.status(), 200);
        if slow.count() > before {
            return;
        }
    }
    panic!("the slow one was never drawn first");
}

#[tokio::test]
async fn weights_share_the_calls() {
    let (light, heavy) = (Upstream::good().await, Upstream::good().await);
    let gateway = Setup::new()
        .deployment("small", &light.base(), json!({"weight": 1}))
        .deployment("small", &heavy.base(), json!({"weight": 3}))
        .deployment("half", &light.base(), json!({"weight": 1}))
        .start()
        .await;
    for _ in 0..(240 / ENOUGH) {
        calls(&gateway, "small").await;
    }
    assert_eq!(light.count() + heavy.count(), 240);
    assert!(
        (30..=95).contains(&light.count()),
        "a quarter of 240 calls is about 60, not {}",
        light.count()
    );
}
