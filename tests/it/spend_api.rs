//! What was spent, as a running gateway on a real Postgres tells it to each of those who ask.

use crate::kit::client::{Answer, ask};
use crate::kit::gateway::{Gateway, MASTER, Setup};
use crate::kit::upstream::{Script, Upstream};
use crate::kit::{away_from_midnight, postgres};
use filters::model::key::KeyHash;
use filters::model::money::Nanos;
use serde_json::{Value, json};

async fn with(gateway: &Gateway, key: &str, route: &str, body: Value) -> Answer {
    let (method, path) = route.split_once(' ').unwrap();
    let bearer = format!("Bearer {key}");
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    ask(gateway, method, path, &[("authorization", &bearer)], body).await
}

async fn get(gateway: &Gateway, key: &str, path: &str) -> Value {
    let answer = with(gateway, key, &format!("GET {path}"), Value::Null).await;
    assert_eq!(answer.status(), 200, "{path}: {answer:?}");
    answer.json()
}

async fn post(gateway: &Gateway, path: &str, body: Value) -> Value {
    let answer = with(gateway, MASTER, &format!("POST {path}"), body.clone()).await;
    assert_eq!(answer.status(), 200, "{path} {body}: {answer:?}");
    answer.json()
}

fn total(list: &Value, name: &str) -> Nanos {
    let each = list.as_array().unwrap().iter();
    each.map(|e| Nanos::from_dollars_f64(e[name].as_f64().unwrap()).unwrap())
        .sum()
}

#[tokio::test]
async fn calls_are_found_again_in_every_report() {
    away_from_midnight().await;
    let upstream = Upstream::start(|seen| match seen.text().contains("up-broken") {
        true => Script::error(500, "it broke"),
        false => Script::chat("hello"),
    })
    .await;
    let prices = json!({"input_cost_per_token": 0.001, "output_cost_per_token": 0.002});
    let gateway = Setup::new()
        .deployment("small", &upstream.base(), prices.clone())
        .deployment(
            "large",
            &upstream.base(),
            json!({"input_cost_per_token": 1, "output_cost_per_token": 1}),
        )
        .deployment("broken", &upstream.base(), prices)
        .database(&postgres::shared().database())
        .start()
        .await;
    let member = json!([{"role": "admin", "user_id": "lia"}, {"role": "user", "user_id": "mo"}]);
    post(
        &gateway,
        "/team/new",
        json!({"team_id": "red", "members_with_roles": member}),
    )
    .await;
    let mut keys = Vec::new();
    for fields in [
        json!({"user_id": "lia"}),
        json!({"user_id": "mo", "team_id": "red", "key_alias": "mo's"}),
        json!({"key_alias": "app"}),
    ] {
        let made = post(&gateway, "/key/generate", fields).await;
        keys.push(made["key"].as_str().unwrap().to_string());
    }
    let [lia, mo, app] = &keys[..] else { unreachable!() };
    let mut n = 0;
    for (key, model, status) in [
        (mo, "small", 200),
        (mo, "large", 200),
        (app, "small", 200),
        (app, "broken", 500),
        (app, "unknown", 404),
    ] {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "x"}], "user": "eve",
            "metadata": {"tags": ["t'1", "t2"]}});
        let answer = with(&gateway, key, "POST /v1/chat/completions", body).await;
        assert_eq!(answer.status(), status, "{model}: {answer:?}");
        n += 1;
    }
    let rows = gateway.rows_once(n).await;
    let whole: Nanos = rows.iter().map(|r| Nanos(r.spend_nanos)).sum();
    // Seven tokens asked, three answered.
    let (small, large) = (Nanos(13_000_000), Nanos(10_000_000_000));
    assert_eq!(whole, large + small + small);

    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let span = format!("start_date={}&end_date={today}", today.yesterday().unwrap());
    let of_mo = json!(large + small);
    for (key, want) in [
        (MASTER, json!(whole)),
        (mo, of_mo.clone()),
        (lia, json!(Nanos(0))),
        (app, json!(small)),
    ] {
        let days = get(&gateway, key, &format!("/user/daily/activity?{span}")).await;
        assert_eq!(days["metadata"]["total_spend"], want);
        for (path, name) in [
            ("/global/spend/logs", "spend"),
            ("/global/spend/keys", "total_spend"),
            ("/global/spend/models", "total_spend"),
            ("/global/spend/provider", "spend"),
        ] {
            let list = get(&gateway, key, &format!("{path}?{span}")).await;
            assert_eq!(json!(total(&list, name)), want, "{path}");
        }
        let logs = get(&gateway, key, "/spend/logs").await;
        assert_eq!(json!(total(&logs, "spend")), want);
    }
    // The team's admin sees the team's, and nobody else does.
    let team = format!("/team/daily/activity?{span}&team_ids=red");
    assert_eq!(get(&gateway, lia, &team).await["metadata"]["total_spend"], of_mo);
    for (key, path) in [
        (mo, team.as_str()),
        (app, &team),
        (mo, "/spend/logs?user_id=lia"),
        (app, "/spend/logs/ui?team_id=red"),
    ] {
        let refused = with(&gateway, key, &format!("GET {path}"), Value::Null).await;
        assert_eq!(refused.status(), 403, "{path}: {refused:?}");
        let message = refused.json()["error"]["message"].as_str().unwrap().to_string();
        assert!(
            message.contains("Non-admin users can only view their own spend data"),
            "{message}"
        );
    }
    assert_eq!(
        with(&gateway, mo, "GET /global/spend", Value::Null)
            .await
            .status(),
        401
    );

    assert_eq!(
        get(&gateway, MASTER, "/global/spend").await["spend"],
        json!(whole)
    );
    let tags = get(&gateway, MASTER, &format!("/global/spend/tags?{span}")).await;
    for tag in tags["spend_per_tag"].as_array().unwrap() {
        assert_eq!((&tag["spend"], &tag["log_count"]), (&json!(whole), &json!(n)));
    }
    assert_eq!(tags["spend_per_tag"].as_array().unwrap().len(), 2);
    let eve = post(
        &gateway,
        "/global/spend/end_users",
        json!({"startTime": today.to_string()}),
    )
    .await;
    assert_eq!(
        eve,
        json!([{"end_user": "eve", "total_count": n, "total_spend": whole}])
    );
    let report = get(
        &gateway,
        MASTER,
        &format!("/global/spend/report?{span}&group_by=api_key"),
    )
    .await;
    assert_eq!(total(&report, "total_cost"), whole);
    for group in ["team", "customer", "user", "organization"] {
        let report = get(
            &gateway,
            MASTER,
            &format!("/global/spend/report?{span}&group_by={group}"),
        )
        .await;
        let several = report[0][format!("{group}s")].clone();
        assert_eq!(total(&several, "total_spend"), whole, "{group}");
    }
    for path in ["tag", "customer", "organization"] {
        let days = get(&gateway, MASTER, &format!("/{path}/daily/activity?{span}")).await;
        assert_eq!(days["results"].as_array().unwrap().len(), 1, "{path}");
    }
    let activity = get(&gateway, MASTER, &format!("/global/activity/model?{span}")).await;
    assert_eq!(activity[0]["model"], "small");
    assert_eq!(activity[0]["sum_total_tokens"], 20);

    // Rows, by each filter.
    let hash = KeyHash::of(app).hex();
    for (query, count) in [
        ("status=success", 3),
        ("status=failure", 2),
        ("http_status=4xx", 1),
        ("error_code=500", 1),
        ("http_status=200&model=small", 2),
        ("model=up-large", 1),
        ("tag=t'1&end_user=eve", n),
        ("key_alias=mo's", 2),
        ("min_spend=0.013000001", 1),
        ("max_spend=0.013&sort_by=spend", n - 1),
        ("search=nothing", 0),
        ("ended_after=0", 0),
        (
            &format!("ended_after={}T00:00:00Z", today.yesterday().unwrap()),
            0,
        ),
        (&format!("api_key={hash}&sort_order=asc"), 3),
    ] {
        if query.starts_with("ended_after") {
            // Calls of long ago are not looked through for those that ended late.
            get(&gateway, MASTER, &format!("/spend/logs/ui?{query}")).await;
            continue;
        }
        let page = get(&gateway, MASTER, &format!("/spend/logs/ui?{query}&page_size=2")).await;
        let shown = page["data"].as_array().unwrap().len();
        assert_eq!((&page["total"], shown), (&json!(count), count.min(2)), "{query}");
    }
    let last = rows.iter().map(|r| r.ended_micros).max().unwrap();
    let before = get(&gateway, MASTER, &format!("/spend/logs?ended_after={}", last - 1)).await;
    assert_eq!(before.as_array().unwrap().len(), 1);
    let after = get(&gateway, MASTER, &format!("/spend/logs?ended_after={last}")).await;
    assert_eq!(after, json!([]));
    let days = get(&gateway, mo, &format!("/spend/logs?{span}&summarize=true")).await;
    assert_eq!(days.as_array().unwrap().last().unwrap()["users"]["mo"], of_mo);

    // What a call cost is what it would cost.
    let answer =
        json!({"model": "small", "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}});
    let cost = post(
        &gateway,
        "/spend/calculate",
        json!({"completion_response": answer}),
    )
    .await;
    assert_eq!(cost["cost"], json!(small));
    let answer = json!({"model": "gpt-unknown", "usage": answer["usage"]});
    let cost = post(
        &gateway,
        "/spend/calculate",
        json!({"model": "large", "completion_response": answer}),
    )
    .await;
    assert_eq!(cost["cost"], json!(large));
    let asked = json!({"model": "large", "messages": [{"role": "user", "content": "x".repeat(400)}]});
    let cost = post(&gateway, "/spend/calculate", asked).await;
    assert_eq!(cost["estimated"], true);
    assert_eq!(cost["cost"].as_f64(), cost["prompt_tokens"].as_f64());
    assert!(cost["prompt_tokens"].as_u64() >= Some(100), "{cost}");

    let users = get(&gateway, mo, "/spend/users").await;
    assert_eq!((&users[0]["user_id"], &users[0]["spend"]), (&json!("mo"), &of_mo));
    let keys = get(&gateway, MASTER, "/spend/keys").await;
    assert_eq!(keys[0]["key_alias"], "mo's", "the dearest first");
    let reset = with(&gateway, MASTER, "POST /global/spend/reset", json!({})).await;
    assert_eq!(reset.status(), 400, "{reset:?}");
}
