//! Calls that go on to another model: to which, when, at whose cost, and what is told when none answers.

use crate::kit::client::{Answer, ask, chat};
use crate::kit::gateway::{Gateway, MASTER, Setup};
use crate::kit::until;
use crate::kit::upstream::{Script, Upstream, delta, usage};
use filters::model::record::Status;
use serde_json::{Value, json};

/// Nothing listens there.
const NOWHERE: &str = "http://127.0.0.1:1/v1";

async fn failing(status: u16, message: &'static str) -> Upstream {
    Upstream::start(move |_| Script::error(status, message)).await
}

fn of(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3})
}

/// Who answered, and how many models were asked after the first.
fn served(answer: &Answer) -> (u16, Option<&str>, Option<&str>) {
    let head = &answer.head;
    let group = head.header("x-litellm-model-group");
    (
        answer.status(),
        group,
        head.header("x-litellm-attempted-fallbacks"),
    )
}

async fn metric(gateway: &Gateway, start: &str) -> Option<String> {
    let page = ask(gateway, "GET", "/metrics", &[], "").await.text();
    let line = page.lines().find(|l| l.starts_with(start))?;
    line.rsplit(' ').next().map(Into::into)
}

async fn post(gateway: &Gateway, key: &str, path: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {key}");
    ask(
        gateway,
        "POST",
        path,
        &[("authorization", &bearer)],
        body.to_string(),
    )
    .await
}

async fn made(gateway: &Gateway, fields: Value) -> String {
    let answer = post(gateway, MASTER, "/key/generate", &fields).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.json()["key"].as_str().unwrap().to_string()
}

#[tokio::test]
async fn a_model_that_fails_is_followed_by_those_that_the_config_names() {
    let bad = failing(500, "not me").await;
    let good = Upstream::start(|seen| match seen.json()["stream"].as_bool() {
        Some(true) => Script::sse(&[&delta("streamed"), &usage(7, 3), "[DONE]"]).end(),
        _ => Script::chat("whole"),
    })
    .await;
    let price = |dollars: f64| json!({"input_cost_per_token": dollars, "output_cost_per_token": dollars});
    let gateway = Setup::new()
        .deployment("first", &bad.base(), price(1.0))
        .deployment("second", &bad.base(), price(1.0))
        .deployment("third", &good.base(), price(0.001))
        .router("fallbacks", json!([{"first": ["second", "third"]}]))
        .router("disable_cooldowns", json!(true))
        .start()
        .await;
    let answer = chat(&gateway, &of("first")).await;
    assert_eq!(served(&answer), (200, Some("third"), Some("2")));
    assert_eq!(good.last().json()["model"], "up-third");
    let row = gateway.row(answer.head.id()).await;
    assert_eq!((row.status, row.http_status), (Status::Success, 200));
    assert_eq!(
        (row.model_group.as_str(), row.requested_model.as_str()),
        ("third", "first")
    );
    assert_eq!(row.spend_nanos, 10_000_000, "ten tokens at the third's price");
    let tried: Vec<u16> = row.attempts.iter().map(|a| a.status).collect();
    assert_eq!(tried, [500, 500, 200]);
    for (start, n) in [
        (
            "tollkeeper_model_fallbacks_total{model=\"first\",fallback=\"second\",outcome=\"failed\"}",
            "1",
        ),
        (
            "tollkeeper_model_fallbacks_total{model=\"first\",fallback=\"third\",outcome=\"answered\"}",
            "1",
        ),
    ] {
        until(start, async || {
            metric(&gateway, start).await.as_deref() == Some(n)
        })
        .await;
    }
    let mut stream = of("first");
    stream["stream"] = json!(true);
    let answer = chat(&gateway, &stream).await;
    assert_eq!(served(&answer), (200, Some("third"), Some("2")));
    assert!(answer.text().contains("streamed") && answer.text().contains("[DONE]"));
    // Others have none.
    let answer = chat(&gateway, &of("second")).await;
    assert_eq!(served(&answer), (500, Some("second"), None));
}

#[tokio::test]
async fn where_none_answers_the_client_hears_of_the_model_it_asked_for() {
    let first = failing(503, "the first is starting").await;
    let second = failing(429, "the second is busy").await;
    let gateway = Setup::new()
        .model("first", &first)
        .model("second", &second)
        .model("third", &second)
        .model("fourth", &second)
        // A circle, and more than may be tried.
        .router(
            "fallbacks",
            json!([{"first": ["second"]}, {"second": ["first", "third"]}, {"third": "fourth"}]),
        )
        .router("max_fallbacks", json!(2))
        .router("disable_cooldowns", json!(true))
        .start()
        .await;
    let answer = chat(&gateway, &of("first")).await;
    assert_eq!(answer.status(), 503);
    assert!(
        answer.text().contains("the first is starting"),
        "{}",
        answer.text()
    );
    assert_eq!((first.count(), second.count()), (1, 2));
    let row = gateway.row(answer.head.id()).await;
    assert_eq!((row.status, row.spend_nanos), (Status::Failure, 0));
    assert_eq!(row.model_group, "first");
    let ids: Vec<&String> = row.attempts.iter().map(|a| &a.deployment_id).collect();
    assert_eq!((ids.len(), &row.deployment_id), (3, ids[0]));
}

#[tokio::test]
async fn what_is_too_long_or_declined_has_models_of_its_own() {
    let small = Upstream::start(|seen| match seen.text() {
        t if t.contains("long") => Script::error(
            400,
            "This model's maximum context length is 10 tokens. However, you asked for 20.",
        ),
        t if t.contains("rude") => Script::json(
            400,
            &json!({"error": {"message": "no", "code": "content_policy_violation"}}),
        ),
        _ => Script::error(400, "no such parameter"),
    })
    .await;
    let good = Upstream::good().await;
    let setup = || {
        Setup::new()
            .model("small", &small)
            .model("large", &good)
            .model("bold", &good)
            .model("other", &good)
            .router("context_window_fallbacks", json!([{"small": ["large"]}]))
            .router("content_policy_fallbacks", json!([{"small": ["bold"]}]))
    };
    let gateway = setup().start().await;
    let ask_for = async |gateway: &Gateway, what: &str| {
        let mut body = of("small");
        body["messages"][0]["content"] = json!(what);
        chat(gateway, &body).await
    };
    let long = ask_for(&gateway, "long").await;
    assert_eq!(served(&long), (200, Some("large"), Some("1")));
    let rude = ask_for(&gateway, "rude").await;
    assert_eq!(served(&rude), (200, Some("bold"), Some("1")));
    let wrong = ask_for(&gateway, "wrong").await;
    assert_eq!(served(&wrong), (400, Some("small"), None));
    assert!(wrong.text().contains("no such parameter"), "{}", wrong.text());
    // What the general ones are for is everything else.
    let gateway = setup()
        .router("default_fallbacks", json!(["other"]))
        .start()
        .await;
    let long = ask_for(&gateway, "long").await;
    assert_eq!(served(&long), (200, Some("large"), Some("1")));
    let wrong = ask_for(&gateway, "wrong").await;
    assert_eq!(served(&wrong), (200, Some("other"), Some("1")));
}

#[tokio::test]
async fn each_model_is_paid_for_by_its_own_budget_and_a_call_counts_once() {
    let bad = failing(500, "not me").await;
    let good = Upstream::good().await;
    let price = json!({"input_cost_per_token": 0.1, "output_cost_per_token": 0.1});
    let gateway = Setup::new()
        .deployment("first", &bad.base(), price.clone())
        .deployment("dear", &good.base(), price.clone())
        .deployment(
            "cheap",
            &good.base(),
            json!({"input_cost_per_token": 0.001, "output_cost_per_token": 0.001}),
        )
        .router("fallbacks", json!([{"first": ["dear", "cheap"]}]))
        .router("disable_cooldowns", json!(true))
        .start()
        .await;
    // One call of the dear one costs a dollar.
    let budgets = json!({
        "rpm_limit": 3, "max_parallel_requests": 1, "max_budget": 10,
        "model_max_budget": {"dear": {"budget_limit": 1, "time_period": "30d"}},
        "model_rpm_limit": {"first": 3},
    });
    let key = made(&gateway, budgets).await;
    let call = async || post(&gateway, &key, "/v1/chat/completions", &of("first")).await;
    let one = call().await;
    assert_eq!(served(&one), (200, Some("dear"), Some("1")), "{}", one.text());
    assert_eq!(one.head.header("x-ratelimit-remaining-requests"), Some("2"));
    let two = call().await;
    assert_eq!(
        served(&two),
        (200, Some("cheap"), Some("1")),
        "the dear one's budget is used up: {}",
        two.text()
    );
    assert_eq!(call().await.status(), 200);
    let four = call().await;
    assert_eq!(four.status(), 429, "three calls are three calls");
    assert!(four.text().contains("Rate limit exceeded"), "{}", four.text());
    let spent = "tollkeeper_budget_remaining_dollars{kind=\"key\"";
    until("all is settled", async || {
        let left = metric(&gateway, spent).await;
        let reserved = metric(&gateway, "tollkeeper_budget_reserved_nanodollars{kind=\"key\"}").await;
        left.as_deref() == Some("8.98") && reserved.as_deref() == Some("0")
    })
    .await;
}

#[tokio::test]
async fn a_model_that_is_off_is_passed_over_until_nobody_else_is_left() {
    let good = Upstream::start(|seen| match seen.n {
        0..=3 => Script::chat("well"),
        _ => Script::error(500, "the second is ill"),
    })
    .await;
    let gateway = Setup::new()
        .deployment("first", NOWHERE, json!({"cooldown_time": "1h"}))
        .model("second", &good)
        .router("fallbacks", json!([{"first": ["second"]}]))
        .router("disable_cooldowns", json!(false))
        .start()
        .await;
    let answer = chat(&gateway, &of("first")).await;
    assert_eq!(served(&answer), (200, Some("second"), Some("1")));
    assert_eq!(answer.head.header("x-litellm-attempted-retries"), Some("1"));
    for _ in 0..3 {
        let answer = chat(&gateway, &of("first")).await;
        assert_eq!(served(&answer), (200, Some("second"), Some("1")));
        assert_eq!(answer.head.header("x-litellm-attempted-retries"), None);
    }
    let answer = chat(&gateway, &of("first")).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.text().contains("cannot be reached"), "{}", answer.text());
    let row = gateway.row(answer.head.id()).await;
    let asked: Vec<u16> = row.attempts.iter().map(|a| a.status).collect();
    assert_eq!(
        asked,
        [500, 0],
        "the first one is asked when the second one fails"
    );
}

#[tokio::test]
async fn a_call_may_name_its_own_or_none() {
    let bad = failing(500, "not me").await;
    let good = Upstream::good().await;
    let gateway = Setup::new()
        .model("first", &bad)
        .model("second", &good)
        .model("secret", &good)
        .router("fallbacks", json!([{"first": ["second"]}]))
        .start()
        .await;
    let key = made(&gateway, json!({"models": ["first", "second"]})).await;
    let call = async |more: Value| {
        let mut body = of("first");
        for (field, value) in more.as_object().unwrap() {
            body[field] = value.clone();
        }
        post(&gateway, &key, "/v1/chat/completions", &body).await
    };
    let none = call(json!({"disable_fallbacks": true})).await;
    assert_eq!(served(&none), (500, Some("first"), None));
    let own = call(json!({"fallbacks": ["second"]})).await;
    assert_eq!(served(&own), (200, Some("second"), Some("1")));
    assert!(
        good.last().json().get("fallbacks").is_none(),
        "it is not sent on: {}",
        good.last().text()
    );
    let litellms = call(json!({"fallbacks": [{"other": ["secret"]}, {"first": ["second"]}]})).await;
    assert_eq!(served(&litellms), (200, Some("second"), Some("1")));
    let before = bad.count();
    for (fallbacks, status) in [
        (json!(["secret"]), 403),
        (json!(["nobody"]), 403),
        (json!("second"), 400),
        (json!([7]), 400),
        (json!([{"first": "second"}]), 400),
        (json!(vec!["second"; 9]), 400),
    ] {
        let refused = call(json!({"fallbacks": fallbacks})).await;
        assert_eq!(refused.status(), status, "{fallbacks}: {}", refused.text());
        assert_eq!(
            refused.json()["error"]["param"],
            "fallbacks",
            "{}",
            refused.text()
        );
    }
    assert_eq!(bad.count(), before, "nobody was asked");
}

#[tokio::test]
async fn a_model_that_cannot_be_asked_for_it_is_passed_over() {
    let bad = failing(500, "not me").await;
    let good = Upstream::good().await;
    let claude = json!({"model": "anthropic/claude-real"});
    let gateway = Setup::new()
        .model("first", &bad)
        .deployment("claude", &good.base(), claude)
        .model("third", &good)
        .router(
            "fallbacks",
            json!([{"first": ["claude", "third"]}, {"claude": ["third"]}]),
        )
        .start()
        .await;
    let call = async |model: &str| {
        let mut body = of(model);
        // Anthropic has no such parameter.
        body["logit_bias"] = json!({"5": 1});
        chat(&gateway, &body).await
    };
    let answer = call("first").await;
    assert_eq!(
        served(&answer),
        (200, Some("third"), Some("2")),
        "{}",
        answer.text()
    );
    assert_eq!(good.count(), 1);
    // Of the model that is asked for itself it is told.
    let answer = call("claude").await;
    assert_eq!(answer.status(), 400, "{}", answer.text());
    assert!(answer.text().contains("logit_bias"), "{}", answer.text());
}
