//! Users, teams and members through the management API of a running gateway, and their limits on calls.

use crate::kit::client::{Answer, Conn, ask};
use crate::kit::gateway::{Gateway, Setup};
use crate::kit::until;
use crate::kit::upstream::{Script, Upstream};
use serde_json::{Value, json};

/// Three tokens of the answer at a thousandth of a dollar each.
const COST: f64 = 0.003;

async fn gateway() -> (Gateway, Upstream) {
    let upstream = Upstream::start(|_| Script::chat("hello")).await;
    let prices = json!({"input_cost_per_token": 0, "output_cost_per_token": 0.001});
    let gateway = Setup::new()
        .deployment("small", &upstream.base(), prices)
        .start()
        .await;
    (gateway, upstream)
}

/// With the master key, and it works.
async fn manage(gateway: &Gateway, route: &str, body: Value) -> Value {
    let (method, path) = route.split_once(' ').unwrap();
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let answer = ask(gateway, method, path, &[], body).await;
    assert_eq!(answer.status(), 200, "{route}: {answer:?}");
    answer.json()
}

async fn chat(gateway: &Gateway, key: &str) -> Answer {
    let who = format!("Bearer {key}");
    let body = json!({"model": "small", "messages": [], "max_tokens": 3}).to_string();
    let mut conn = Conn::open(gateway.at).await;
    let headers = [("authorization", who.as_str())];
    conn.ask("POST", "/v1/chat/completions", &headers, body.as_bytes())
        .await
}

#[tokio::test]
async fn a_member_is_refused_at_its_own_budget_and_the_team_goes_on() {
    let (gateway, _upstream) = gateway().await;
    let team = json!({"team_id": "red", "max_budget": 1, "team_member_budget": 0.5});
    manage(&gateway, "POST /team/new", team).await;
    for (user, budget) in [("ann", json!(2.5 * COST)), ("bob", Value::Null)] {
        let member = json!({"role": "user", "user_id": user});
        let body = json!({"team_id": "red", "member": member, "max_budget_in_team": budget});
        manage(&gateway, "POST /team/member_add", body).await;
    }
    let mut keys = Vec::new();
    for user in ["ann", "bob"] {
        let body = json!({"team_id": "red", "user_id": user});
        let made = manage(&gateway, "POST /key/generate", body).await;
        keys.push(made["key"].as_str().unwrap().to_string());
    }
    // The call that crosses the budget is served, the next one is not.
    for _ in 0..3 {
        assert_eq!(chat(&gateway, &keys[0]).await.status(), 200);
    }
    let refused = chat(&gateway, &keys[0]).await;
    assert_eq!(refused.status(), 429, "{refused:?}");
    let error = &refused.json()["error"];
    assert_eq!(error["type"], "budget_exceeded");
    let says = error["message"].as_str().unwrap();
    assert!(
        says.starts_with("Budget has been exceeded! Team member="),
        "{says}"
    );
    assert_eq!(chat(&gateway, &keys[1]).await.status(), 200, "the others go on");

    // What was spent is shown: by the team, the member and the user.
    until("the calls are in the books", async || {
        let info = manage(&gateway, "GET /team/info?team_id=red", Value::Null).await;
        (info["team_info"]["spend"].as_f64().unwrap() - 4.0 * COST).abs() < 1e-9
    })
    .await;
    let info = manage(&gateway, "GET /team/info?team_id=red", Value::Null).await;
    let memberships = info["team_memberships"].as_array().unwrap();
    let ann = memberships.iter().find(|m| m["user_id"] == "ann").unwrap();
    assert_eq!(ann["spend"], json!(0.009));
    assert_eq!(ann["litellm_budget_table"]["max_budget"], json!(0.0075));
    let bob = memberships.iter().find(|m| m["user_id"] == "bob").unwrap();
    assert_eq!(
        bob["litellm_budget_table"]["max_budget"],
        json!(0.5),
        "the team's default"
    );
    let user = manage(&gateway, "GET /user/info?user_id=ann", Value::Null).await;
    assert_eq!(user["spend"], json!(0.009));

    // More for her, and it counts at once; a team that is blocked is refused.
    let more = json!({"team_id": "red", "user_id": "ann", "max_budget_in_team": 0.1});
    manage(&gateway, "POST /team/member_update", more).await;
    until("the raised budget counts", async || {
        chat(&gateway, &keys[0]).await.status() == 200
    })
    .await;
    manage(&gateway, "POST /team/block", json!({"team_id": "red"})).await;
    until("the team is blocked", async || {
        chat(&gateway, &keys[1]).await.status() == 401
    })
    .await;
    manage(&gateway, "POST /team/unblock", json!({"team_id": "red"})).await;
    until("the team is not blocked", async || {
        chat(&gateway, &keys[1]).await.status() == 200
    })
    .await;

    // Who is taken out loses the keys for the team; a team that is deleted takes all of them with it.
    let out = json!({"team_id": "red", "user_id": "ann"});
    manage(&gateway, "POST /team/member_delete", out).await;
    assert_eq!(chat(&gateway, &keys[0]).await.status(), 401);
    manage(&gateway, "POST /team/delete", json!({"team_ids": ["red"]})).await;
    assert_eq!(chat(&gateway, &keys[1]).await.status(), 401);
}

#[tokio::test]
async fn a_users_budget_by_name_binds_its_first_key() {
    let (gateway, _upstream) = gateway().await;
    let budget = json!({"budget_id": "tiny", "max_budget": 1.5 * COST});
    manage(&gateway, "POST /budget/new", budget).await;
    let made = manage(
        &gateway,
        "POST /user/new",
        json!({"user_id": "ann", "budget_id": "tiny"}),
    )
    .await;
    let key = made["key"].as_str().unwrap();
    assert_eq!(made["litellm_budget_table"]["max_budget"], json!(0.0045));
    for _ in 0..2 {
        assert_eq!(chat(&gateway, key).await.status(), 200);
    }
    let refused = chat(&gateway, key).await;
    assert_eq!(refused.status(), 429, "{refused:?}");
    let error = refused.json()["error"]["message"].as_str().unwrap().to_string();
    assert!(
        error.starts_with("ExceededBudget: User=ann over budget."),
        "{error}"
    );
    // PATCH and DELETE with a body come through as well.
    let org = json!({"organization_id": "acme", "organization_alias": "Acme"});
    manage(&gateway, "POST /organization/new", org).await;
    let named = json!({"organization_id": "acme", "metadata": {"a": 1}});
    let row = manage(&gateway, "PATCH /organization/update", named).await;
    assert_eq!(row["metadata"], json!({"a": 1}));
    manage(
        &gateway,
        "DELETE /organization/delete",
        json!({"organization_ids": ["acme"]}),
    )
    .await;
    let unknown = ask(&gateway, "GET", "/team/info?team_id=nope", &[], "").await;
    assert_eq!(unknown.status(), 404);
    assert!(unknown.error().contains("Team not found, passed team id: nope."));
    manage(&gateway, "POST /user/delete", json!({"user_ids": ["ann"]})).await;
    assert_eq!(chat(&gateway, key).await.status(), 401);
}
