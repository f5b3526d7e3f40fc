//! Keys rotated, raised, bounded by the config; and what the audit tells of it.

use super::*;
use crate::admin::fields::Kind as Shape;
use crate::store::AuditFilter;
use filters::model::account::Account;

#[tokio::test]
async fn a_rotated_key_goes_on_under_a_new_secret() {
    let bench = Bench::new().await;
    let fields = json!({"user_id": "ann", "key_alias": "ci", "max_budget": 5, "rpm_limit": 3, "spend": 1.5});
    let (old, holder) = bench.holder(fields).await;
    let body = json!({"grace_period": "24h"}).to_string();
    let answer = bench.call(&holder, "POST /key/regenerate", body).await;
    assert_eq!(answer.status, 200, "{:?}", answer.stop);
    let new = answer.body["key"].as_str().unwrap().to_string();
    assert_ne!(new, old);
    for (name, want) in [
        ("key_alias", json!("ci")),
        ("user_id", json!("ann")),
        ("max_budget", json!(5.0)),
        ("rpm_limit", json!(3)),
        ("spend", json!(1.5)),
        ("rotation_count", json!(1)),
        ("last_rotation_at", json!("2026-11-20T12:00:00.000000Z")),
        ("grace_period_until", json!("2026-11-21T12:00:00.000000Z")),
        ("token", json!(KeyHash::of(&new))),
    ] {
        assert_eq!(answer.body[name], want, "{name}");
    }
    let row = bench.row(&old).await.unwrap();
    assert_eq!(row.key_alias, None);
    assert_eq!(row.extra["rotated_to"], KeyHash::of(&new).hex());
    assert_eq!(row.extra["rotated_until_micros"], NOON + 86_400_000_000);
    assert_eq!(bench.row(&new).await.unwrap().spend_nanos, 1_500_000_000);
    // What was rotated is left alone, but for its end.
    for (route, body) in [
        ("POST /key/update", json!({"key": old, "max_budget": 100})),
        ("POST /key/unblock", json!({"key": old})),
        ("POST /key/regenerate", json!({"key": old})),
    ] {
        refused(&bench, &master(), route, &body.to_string(), 409, "was rotated").await;
    }
    bench.master("POST /key/delete", json!({"keys": [old]})).await;
    assert!(bench.row(&old).await.is_none());
    assert!(bench.row(&new).await.is_some());
}

#[tokio::test]
async fn without_grace_the_old_secret_is_gone() {
    let bench = Bench::new().await;
    let (old, holder) = bench.holder(json!({"key_alias": "ci"})).await;
    // No body at all.
    let answer = bench.call(&holder, "POST /key/regenerate", "").await;
    assert_eq!(answer.status, 200, "{:?}", answer.stop);
    assert!(bench.row(&old).await.is_none());
    let new = answer.body["key"].as_str().unwrap().to_string();
    assert_eq!(bench.row(&new).await.unwrap().key_alias.as_deref(), Some("ci"));
    // By path, with a secret and a limit of the admin's choice.
    let body = json!({"new_key": "sk-a-secret-of-my-own", "max_budget": 7});
    let made = bench.master(&format!("POST /key/{new}/regenerate"), body).await;
    assert_eq!(
        (&made["key"], &made["max_budget"]),
        (&json!("sk-a-secret-of-my-own"), &json!(7.0))
    );
    assert_eq!(made["rotation_count"], 2);
}

#[tokio::test]
async fn a_budget_goes_on_in_its_period() {
    let bench = Bench::new().await;
    let (old, _) = bench
        .holder(json!({"budget_duration": "30d", "max_budget": 5}))
        .await;
    let account = |secret: &str| Account::new(Subject::Key, KeyHash::of(secret).hex());
    // The store has a clock of its own, and ends periods by it.
    let now = jiff::Timestamp::now().as_microsecond() / 1_000_000 * 1_000_000;
    let (start, end) = (now - 1_000_000, now + 30 * 86_400_000_000);
    bench
        .store
        .begin_period(&account(&old), start, Some(end))
        .await
        .unwrap();
    let open = Change::Open {
        account: &account(&old),
        nanos: 2_000_000_000,
    };
    bench.store.change(&[open], &[]).await.unwrap();
    let made = bench
        .master("POST /key/regenerate", json!({"key": old, "grace_period": "1h"}))
        .await;
    let new = made["key"].as_str().unwrap();
    let balance = &bench.store.balances(&[account(new)]).await.unwrap()[0];
    assert_eq!(
        (
            balance.period_nanos,
            balance.period_started_micros,
            balance.period_ends_micros
        ),
        (2_000_000_000, Some(start), Some(end)),
        "no new budget for a new secret"
    );
    assert!(!bench.row(new).await.unwrap().blocked);
}

#[tokio::test]
async fn a_key_rotates_itself_and_changes_nothing_with_that() {
    let bench = Bench::new().await;
    let (secret, holder) = bench.holder(json!({"max_budget": 1})).await;
    let (other, _) = bench.holder(json!({"key_alias": "b"})).await;
    for (body, field) in [
        (json!({"max_budget": 100}), "max_budget"),
        (json!({"models": []}), "models"),
        (json!({"user_role": "proxy_admin"}), "user_role"),
        (json!({"allowed_routes": []}), "allowed_routes"),
    ] {
        let answer = bench
            .call(&holder, "POST /key/regenerate", body.to_string())
            .await;
        let stop = answer.stop.unwrap_or_else(|| panic!("{body} was taken"));
        assert_eq!((answer.status, param(&stop)), (403, Some(field)), "{stop:?}");
    }
    let body = json!({"key": other}).to_string();
    refused(
        &bench,
        &holder,
        "POST /key/regenerate",
        &body,
        403,
        "may only rotate itself",
    )
    .await;
    for (body, says) in [
        (json!({"grace_period": "soon"}), "'grace_period' must be a number"),
        (json!({"grace_period": "400d"}), "'grace_period' may be 183d"),
        (json!({"new_key": "sk-short"}), "16 to"),
        (json!({"new_key": other}), "in use already"),
        (json!({"new_key": MASTER}), "16 to"),
    ] {
        refused(
            &bench,
            &holder,
            "POST /key/regenerate",
            &body.to_string(),
            400,
            says,
        )
        .await;
    }
    refused(&bench, &master(), "POST /key/regenerate", "{}", 400, "master key").await;
    refused(
        &bench,
        &master(),
        "POST /key/sk-nobody/regenerate",
        "{}",
        404,
        "Key not found",
    )
    .await;
    assert!(bench.row(&secret).await.is_some());
}

#[tokio::test]
async fn the_config_bounds_new_keys() {
    let bench = Bench::new().await;
    let settings = json!({
        "default_key_generate_params": {"models": ["small"], "metadata": {"from": "config"}},
        "upperbound_key_generate_params": {"max_budget": 10, "duration": "30d"},
        "key_generation_settings": {
            "personal_key_generation": {"allowed_user_roles": ["proxy_admin"], "required_params": ["key_alias"]},
        },
    });
    *bench.policy.lock().unwrap() = Arc::new(Policy::of(settings.as_object().unwrap()).unwrap());
    let made = bench
        .master("POST /key/generate", json!({"key_alias": "a"}))
        .await;
    assert_eq!(made["models"], json!(["small"]));
    assert_eq!(made["max_budget"], 10.0);
    assert_eq!(made["expires"], "2026-12-20T12:00:00.000000Z");
    for (body, status, says) in [
        (
            json!({"key_alias": "b", "max_budget": 11}),
            400,
            "max_budget is over max limit set in config - user_value=11; max_value=10",
        ),
        (
            json!({"key_alias": "b", "duration": "31d"}),
            400,
            "duration is over max limit",
        ),
        (json!({}), 400, "Required param key_alias not in data"),
    ] {
        refused(
            &bench,
            &master(),
            "POST /key/generate",
            &body.to_string(),
            status,
            says,
        )
        .await;
    }
    let update = json!({"key": made["key"], "max_budget": 11}).to_string();
    refused(
        &bench,
        &master(),
        "POST /key/update",
        &update,
        400,
        "over max limit",
    )
    .await;
    let update = json!({"key": made["key"], "duration": "-1"}).to_string();
    refused(
        &bench,
        &master(),
        "POST /key/update",
        &update,
        400,
        "over max limit",
    )
    .await;
    bench
        .put(Table::User, "ann", json!({"user_role": "internal_user"}))
        .await;
    let (secret, _) = bench.holder(json!({"user_id": "ann", "key_alias": "c"})).await;
    let ann = bench.caller(&secret).await;
    let says = "Personal key creation has been restricted by admin";
    refused(
        &bench,
        &ann,
        "POST /key/generate",
        r#"{"key_alias": "d"}"#,
        403,
        says,
    )
    .await;
}

#[tokio::test]
async fn a_budget_is_raised_for_a_while() {
    let bench = Bench::new().await;
    let (secret, _) = bench.holder(json!({"max_budget": 1})).await;
    let body =
        json!({"key": secret, "temp_budget_increase": 2.5, "temp_budget_expiry": "1d", "metadata": {"a": 1}});
    let row = bench.master("POST /key/update", body).await;
    assert_eq!(
        row["metadata"],
        json!({"a": 1, "temp_budget_increase": 2.5, "temp_budget_expiry": "2026-11-21T12:00:00.000000Z"})
    );
    let key = bench.row(&secret).await.unwrap();
    assert_eq!(key.extra["temp_budget_nanos"], 2_500_000_000_i64);
    for (body, field) in [
        (
            json!({"key": secret, "temp_budget_increase": 1}),
            "temp_budget_expiry",
        ),
        (
            json!({"key": secret, "temp_budget_expiry": "1d"}),
            "temp_budget_increase",
        ),
        (
            json!({"key": secret, "temp_budget_increase": 1, "temp_budget_expiry": "soon"}),
            "temp_budget_expiry",
        ),
    ] {
        let answer = bench.call(&master(), "POST /key/update", body.to_string()).await;
        assert_eq!(param(&answer.stop.unwrap()), Some(field));
    }
}

#[tokio::test]
async fn every_change_leaves_a_line() {
    let bench = Bench::new().await;
    let (secret, holder) = bench.holder(json!({"user_id": "ann", "max_budget": 1})).await;
    let hash = KeyHash::of(&secret);
    bench
        .master("POST /key/update", json!({"key": secret, "max_budget": 2}))
        .await;
    bench.master("POST /key/block", json!({"key": secret})).await;
    bench.master("POST /key/unblock", json!({"key": secret})).await;
    let new = bench.call(&holder, "POST /key/regenerate", "{}").await.body;
    bench
        .master("POST /key/delete", json!({"keys": [new["key"]]}))
        .await;
    let body = bench.get(&master(), "/audit").await;
    let lines = body["audit_logs"].as_array().unwrap();
    let told: Vec<(&str, &str)> = lines
        .iter()
        .map(|l| (l["action"].as_str().unwrap(), l["changed_by"].as_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        [
            ("deleted", "default_user_id"),
            ("rotated", "ann"),
            ("unblocked", "default_user_id"),
            ("blocked", "default_user_id"),
            ("updated", "default_user_id"),
            ("created", "default_user_id"),
        ]
    );
    let updated = &lines[4];
    assert_eq!(updated["object_id"], hash.hex());
    assert_eq!(updated["before_value"]["max_budget"], 1.0);
    assert_eq!(updated["updated_values"]["max_budget"], 2.0);
    assert_eq!(
        updated["before_value"].get("models"),
        None,
        "what did not change is not told"
    );
    assert_eq!(lines[1]["changed_by_api_key"], hash.hex());
    for text in [&secret, new["key"].as_str().unwrap()] {
        assert!(!body.to_string().contains(text), "no line holds a key");
    }
    for (query, want) in [
        ("action=blocked", 1),
        ("changed_by=ann", 1),
        ("table_name=key", 6),
        ("table_name=team", 0),
        ("page_size=4", 4),
        ("page_size=4&page=2", 2),
        ("start_date=2026-11-21", 0),
        ("end_date=2026-11-20", 6),
        ("end_date=2026-11-20T12:00:00Z", 0),
    ] {
        let body = bench.get(&master(), &format!("/audit?{query}")).await;
        assert_eq!(body["audit_logs"].as_array().unwrap().len(), want, "{query}");
    }
    // What is refused leaves none.
    bench
        .call(
            &master(),
            "POST /key/update",
            json!({"key": "sk-nobody", "max_budget": 1}).to_string(),
        )
        .await;
    assert_eq!(bench.store.audit(&AuditFilter::default()).await.unwrap().len(), 6);
}

#[tokio::test]
async fn an_admin_may_say_for_whom_it_acts() {
    let bench = Bench::new().await;
    bench
        .put(Table::User, "ann", json!({"user_role": "internal_user"}))
        .await;
    let (secret, _) = bench.holder(json!({"user_id": "ann"})).await;
    for (caller, by) in [(master(), "boss"), (bench.caller(&secret).await, "ann")] {
        let request = Request::post("/key/generate")
            .header("litellm-changed-by", "boss")
            .extension(caller)
            .body(Body::from("{}"))
            .unwrap();
        assert_eq!(bench.router.clone().oneshot(request).await.unwrap().status(), 200);
        let line = &bench.store.audit(&AuditFilter::default()).await.unwrap()[0];
        assert_eq!(line.changed_by, by);
    }
}

#[tokio::test]
async fn a_service_account_belongs_to_a_team_alone() {
    let bench = Bench::new().await;
    bench.put(Table::Team, "red", json!({})).await;
    const ROUTE: &str = "POST /key/service-account/generate";
    let made = bench
        .master(ROUTE, json!({"team_id": "red", "key_alias": "bot"}))
        .await;
    assert_eq!(
        (&made["team_id"], &made["user_id"]),
        (&json!("red"), &Value::Null)
    );
    for (body, status, says) in [
        (json!({}), 400, "team_id is required"),
        (
            json!({"team_id": "red", "user_id": "ann"}),
            400,
            "A service account has no user",
        ),
        (json!({"team_id": "nope"}), 404, "no such team"),
    ] {
        refused(&bench, &master(), ROUTE, &body.to_string(), status, says).await;
    }
}

#[tokio::test]
async fn several_keys_are_changed_each_on_its_own() {
    let bench = Bench::new().await;
    let (a, _) = bench.holder(json!({})).await;
    let (b, _) = bench.holder(json!({})).await;
    let body = json!({"keys": [
        {"key": a, "max_budget": 1}, {"key": b, "max_budget": -1}, {"key": "sk-nobody", "max_budget": 1},
    ]});
    let done = bench.master("POST /key/bulk_update", body).await;
    assert_eq!(done["total_requested"], 3);
    assert_eq!(done["successful_updates"][0]["key"], KeyHash::of(&a).hex());
    assert_eq!(done["successful_updates"][0]["key_info"]["max_budget"], 1.0);
    assert_eq!(done["failed_updates"].as_array().unwrap().len(), 2);
    assert!(
        done["failed_updates"][0]["failed_reason"]
            .as_str()
            .unwrap()
            .contains("max_budget")
    );
    let infos = bench
        .master("POST /v2/key/info", json!({"keys": [a, b, "sk-nobody"]}))
        .await;
    assert_eq!(infos["info"].as_array().unwrap().len(), 2);
    assert!(!infos.to_string().contains(&a), "keys are repeated as hashes");
}

#[tokio::test]
async fn sql_is_text_in_every_field() {
    let bench = Bench::new().await;
    let sql = "x'); DROP TABLE tk_keys; --";
    bench.put(Table::Budget, sql, json!({})).await;
    bench.put(Table::Organization, sql, json!({})).await;
    for field in super::super::keys::PLAIN.iter().chain(super::super::terms::TERMS) {
        let value = match field.kind {
            Shape::Text | Shape::Id => json!(sql),
            Shape::List | Shape::Texts => json!([sql]),
            Shape::Object | Shape::Settings | Shape::Names => json!({sql: sql}),
            Shape::Objects => json!([{sql: sql}]),
            Shape::ModelBudgets | Shape::ModelCounts => json!({sql: 1}),
            _ => {
                // No text at all belongs here.
                let body = json!({field.name: sql}).to_string();
                let answer = bench.call(&master(), "POST /key/generate", body).await;
                assert!(
                    matches!(answer.status, 400 | 422),
                    "{}: {}",
                    field.name,
                    answer.status
                );
                assert_eq!(param(&answer.stop.unwrap()), Some(field.name));
                continue;
            }
        };
        let made = bench
            .master("POST /key/generate", json!({field.name: value}))
            .await;
        let mut want = value;
        if matches!(field.kind, Shape::ModelBudgets) {
            want = json!({sql: 1.0});
        }
        assert_eq!(made[field.name], want, "{}", field.name);
        let secret = made["key"].as_str().unwrap();
        let info = bench.get(&master(), &format!("/key/info?key={secret}")).await;
        assert_eq!(info[field.name], want, "{} is read as it was written", field.name);
    }
}
