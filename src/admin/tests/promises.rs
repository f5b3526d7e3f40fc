//! What was promised to those who come from LiteLLM, and to those who keep a gateway from its users.

use super::*;

/// Whoever holds this key, as the gateway knows it.
async fn let_in(bench: &Bench, secret: &str) -> Caller {
    use filters::contract::ports::Keys;
    bench.keys.doubt_all();
    Caller::Key(bench.keys.find(&KeyHash::of(secret)).await.unwrap().unwrap())
}

async fn denied(bench: &Bench, caller: &Caller, route: &str, body: Value, status: u16, field: Option<&str>) {
    let answer = bench.call(caller, route, body.to_string()).await;
    let stop = answer
        .stop
        .unwrap_or_else(|| panic!("{route} {body} was taken: {}", answer.body));
    assert_eq!(
        (answer.status, param(&stop)),
        (status, field),
        "{route} {body}: {stop:?}"
    );
}

async fn taken(bench: &Bench, caller: &Caller, route: &str, body: Value) -> Value {
    let answer = bench.call(caller, route, body.to_string()).await;
    assert_eq!(answer.status, 200, "{route} {body}: {:?}", answer.stop);
    answer.body
}

fn secret(made: &Value) -> &str {
    made["key"].as_str().unwrap()
}

/// Ann, who makes her own keys; Lia, who leads the red team; Bob, who is in it.
async fn with_team(permissions: Value) -> Bench {
    let bench = Bench::new().await;
    for user in ["ann", "lia"] {
        bench
            .put(Table::User, user, json!({"user_role": "internal_user"}))
            .await;
    }
    bench.put(Table::User, "bob", json!({})).await;
    let members = json!([{"user_id": "lia", "role": "admin"}, {"user_id": "ann", "role": "user"},
        {"user_id": "bob", "role": "user"}]);
    let team = json!({"members_with_roles": members, "team_member_permissions": permissions});
    bench.put(Table::Team, "red", team).await;
    bench
}

#[tokio::test]
async fn nobody_pushes_a_keys_tags_out_of_sight() {
    let bench = with_team(json!([])).await;
    let (key, _) = bench
        .holder(json!({"user_id": "ann", "tags": ["dear", "prod"]}))
        .await;
    let ann = let_in(&bench, &key).await;
    let junk: Vec<String> = (0..16).map(|n| format!("junk-{n}")).collect();
    let behind = [junk.clone(), vec!["dear".into(), "prod".into()]].concat();
    for tags in [
        json!(behind),
        json!(["prod", "dear"]),
        json!(["dear"]),
        json!([]),
        Value::Null,
    ] {
        let update = json!({"key": key, "tags": tags});
        denied(&bench, &ann, "POST /key/update", update, 403, Some("tags")).await;
    }
    let more = json!({"key": key, "tags": ["dear", "prod", "mine"]});
    let row = taken(&bench, &ann, "POST /key/update", more).await;
    assert_eq!(row["tags"], json!(["dear", "prod", "mine"]));
    let made = taken(&bench, &ann, "POST /key/generate", json!({"tags": behind})).await;
    assert_eq!(made["tags"][0], "dear");
    assert_eq!(made["tags"].as_array().unwrap().len(), 19);
}

#[tokio::test]
async fn an_owner_puts_no_end_off_that_others_set() {
    let bench = with_team(json!([])).await;
    let (own, _) = bench.holder(json!({"user_id": "ann"})).await;
    let ann = let_in(&bench, &own).await;
    let (given, _) = bench.holder(json!({"user_id": "ann", "duration": "1d"})).await;
    let (team, _) = bench
        .holder(json!({"user_id": "ann", "team_id": "red", "duration": "1d"}))
        .await;
    for key in [&given, &team] {
        for duration in ["2d", "-1"] {
            for route in ["POST /key/update", "POST /key/regenerate"] {
                let body = json!({"key": key, "duration": duration});
                denied(&bench, &ann, route, body, 403, Some("duration")).await;
            }
        }
        taken(
            &bench,
            &ann,
            "POST /key/update",
            json!({"key": key, "duration": "1h"}),
        )
        .await;
    }
    // What somebody made for herself ends when she likes; and whoever leads the team says it for the team.
    let made = taken(&bench, &ann, "POST /key/generate", json!({"duration": "1d"})).await;
    taken(
        &bench,
        &ann,
        "POST /key/update",
        json!({"key": secret(&made), "duration": "9d"}),
    )
    .await;
    let (of_lia, _) = bench.holder(json!({"user_id": "lia"})).await;
    let lia = let_in(&bench, &of_lia).await;
    taken(
        &bench,
        &lia,
        "POST /key/update",
        json!({"key": team, "duration": "9d"}),
    )
    .await;
}

#[tokio::test]
async fn who_is_no_admin_fills_no_memory() {
    let bench = with_team(json!([])).await;
    bench
        .put(
            Table::Organization,
            "acme",
            json!({"members": [{"user_id": "lia", "user_role": "org_admin"}]}),
        )
        .await;
    let (of_lia, _) = bench.holder(json!({"user_id": "lia"})).await;
    let lia = let_in(&bench, &of_lia).await;
    let large = json!({"a": "x".repeat(20_000)});
    for (route, body) in [
        ("POST /user/update", json!({"user_id": "lia", "metadata": large})),
        ("POST /team/update", json!({"team_id": "red", "metadata": large})),
        (
            "POST /organization/update",
            json!({"organization_id": "acme", "metadata": large}),
        ),
        (
            "POST /team/new",
            json!({"organization_id": "acme", "metadata": large}),
        ),
        (
            "POST /user/new",
            json!({"organizations": ["acme"], "metadata": large}),
        ),
    ] {
        denied(&bench, &lia, route, body, 400, Some("metadata")).await;
    }
    let many: Vec<Value> = (0..400)
        .map(|n| json!({"user_id": format!("member-number-{n:030}"), "role": "user"}))
        .collect();
    taken(
        &bench,
        &lia,
        "POST /team/member_add",
        json!({"team_id": "red", "member": many}),
    )
    .await;
    bench
        .master("POST /user/update", json!({"user_id": "lia", "metadata": large}))
        .await;
}

#[tokio::test]
async fn members_do_what_their_team_lets_them() {
    let calls = [
        ("/key/info", "GET /key/info?key=KEY", Value::Null),
        ("/key/info", "POST /v2/key/info", json!({"keys": ["KEY"]})),
        ("/key/list", "GET /key/list?team_id=red&user_id=ann", Value::Null),
        (
            "/key/update",
            "POST /key/update",
            json!({"key": "KEY", "key_alias": "new"}),
        ),
        ("/key/block", "POST /key/block", json!({"key": "KEY"})),
        ("/key/unblock", "POST /key/unblock", json!({"key": "KEY"})),
        ("/key/{key_id}/regenerate", "POST /key/KEY/regenerate", json!({})),
        ("/key/regenerate", "POST /key/regenerate", json!({"key": "KEY"})),
        ("/key/delete", "POST /key/delete", json!({"keys": ["KEY"]})),
    ];
    for (permission, route, body) in calls {
        for permissions in [json!([]), json!([permission])] {
            let bench = with_team(permissions.clone()).await;
            let (of_ann, _) = bench.holder(json!({"user_id": "ann", "team_id": "red"})).await;
            let (of_bob, _) = bench.holder(json!({"user_id": "bob", "team_id": "red"})).await;
            let bob = let_in(&bench, &of_bob).await;
            let hash = KeyHash::of(&of_ann).hex();
            let (route, body) = (
                route.replace("KEY", &hash),
                body.to_string().replace("KEY", &hash),
            );
            let body = if body == "null" { String::new() } else { body };
            let answer = bench.call(&bob, &route, body.clone()).await;
            let allowed = permissions != json!([]);
            // Keys that may not be seen are left out of an answer about several.
            let taken = answer.status == 200 && answer.body["info"] != json!([]);
            assert_eq!(taken, allowed, "{route} {body} {permissions}: {:?}", answer.stop);
            if allowed && permission.ends_with("regenerate") {
                let row = bench.row(secret(&answer.body)).await.unwrap();
                assert_eq!(row.lent_by(), Some("bob"), "whose secret it is now");
            }
        }
    }
    // Where the team lets them, they make keys of nobody; by no other call.
    let bench = with_team(json!(["/key/service-account/generate", "/key/generate"])).await;
    let (of_bob, _) = bench.holder(json!({"user_id": "bob", "team_id": "red"})).await;
    let bob = let_in(&bench, &of_bob).await;
    let account = json!({"team_id": "red"});
    let made = taken(&bench, &bob, "POST /key/service-account/generate", account).await;
    assert_eq!((&made["team_id"], made.get("user_id")), (&json!("red"), None));
    let nobodys = json!({"team_id": "red", "user_id": null});
    denied(&bench, &bob, "POST /key/generate", nobodys, 401, None).await;
    // No more than an owner may.
    let bench = with_team(json!(["/key/update"])).await;
    let (of_ann, _) = bench
        .holder(json!({"user_id": "ann", "team_id": "red", "max_budget": 1}))
        .await;
    let (of_bob, _) = bench.holder(json!({"user_id": "bob", "team_id": "red"})).await;
    let bob = let_in(&bench, &of_bob).await;
    for (field, value) in [
        ("max_budget", json!(2)),
        ("user_id", json!("bob")),
        ("allowed_routes", json!(["*"])),
    ] {
        let update = json!({"key": of_ann, field: value});
        denied(&bench, &bob, "POST /key/update", update, 403, Some(field)).await;
    }
    let (elsewhere, _) = bench.holder(json!({"user_id": "ann"})).await;
    denied(
        &bench,
        &bob,
        "POST /key/update",
        json!({"key": elsewhere}),
        401,
        None,
    )
    .await;
}

#[tokio::test]
async fn a_key_shows_the_budget_that_it_names() {
    let bench = Bench::new().await;
    let budget = json!({"budget_id": "small", "max_budget": 5, "budget_duration": "1d", "rpm_limit": 10});
    bench.master("POST /budget/new", budget).await;
    let made = bench
        .master(
            "POST /key/generate",
            json!({"budget_id": "small", "rpm_limit": 3}),
        )
        .await;
    let info = bench
        .get(&master(), &format!("/key/info?key={}", secret(&made)))
        .await;
    let list = bench.get(&master(), "/key/list?return_full_object=true").await;
    for row in [&made, &info, &info["info"], &list["keys"][0]] {
        let named = &row["litellm_budget_table"];
        assert_eq!(
            (&named["budget_id"], &named["max_budget"]),
            (&json!("small"), &json!(5.0)),
            "{row}"
        );
        assert_eq!(row["budget_reset_at"], "2026-11-21T00:00:00.000000Z");
        assert_eq!(row["max_budget"], Value::Null, "it has none of its own");
    }
}

#[tokio::test]
async fn what_is_kept_and_not_kept_to_is_said() {
    let bench = Bench::new().await;
    let body = json!({"tpd_limit": 5, "enforced_params": ["user"], "budget_limits": [{"budget_duration": "1d", "max_budget": 1}],
        "guardrails": [], "auto_rotate": false});
    let made = bench.master("POST /key/generate", body).await;
    assert_eq!(made["not_enforced"], json!(["budget_limits", "tpd_limit"]));
    let team = bench
        .master("POST /team/new", json!({"guardrails": ["pii"]}))
        .await;
    assert_eq!(team["not_enforced"], json!(["guardrails"]));
    let plain = bench.master("POST /key/generate", json!({"max_budget": 1})).await;
    assert_eq!(plain.get("not_enforced"), None);
}

#[tokio::test]
async fn budgets_of_models_begin_when_they_are_set() {
    let bench = Bench::new().await;
    let body = json!({"model_max_budget": {"small": {"budget_limit": 1, "time_period": "10d"}}});
    let (key, _) = bench.holder(body).await;
    let row = bench.row(&key).await.unwrap();
    assert_eq!(row.extra["budget_since_micros"], NOON);
}

#[tokio::test]
async fn every_limit_of_the_manual_can_be_set() {
    let bench = with_team(json!([])).await;
    bench
        .put(
            Table::Organization,
            "acme",
            json!({"members": [{"user_id": "lia", "user_role": "org_admin"}]}),
        )
        .await;
    let (of_lia, _) = bench.holder(json!({"user_id": "lia"})).await;
    let lia = let_in(&bench, &of_lia).await;
    let places = json!({"small": 2});
    for (route, body) in [
        ("POST /key/generate", json!({})),
        ("POST /team/new", json!({"team_id": "blue"})),
        ("POST /user/new", json!({})),
        ("POST /organization/new", json!({"organization_alias": "o"})),
        ("POST /customer/new", json!({"user_id": "c"})),
        ("POST /budget/new", json!({})),
        ("POST /tag/new", json!({"name": "t"})),
    ] {
        let mut body = body;
        body["model_max_parallel_requests"] = places.clone();
        let made = bench.master(route, body).await;
        let row = if made["tag"].is_object() {
            &made["tag"]
        } else {
            &made
        };
        assert_eq!(row["model_max_parallel_requests"], places, "{route}");
    }
    let made = bench
        .master("POST /key/generate", json!({"queue_weight": 2.5}))
        .await;
    assert_eq!(made["queue_weight"], 2.5);
    let team = bench
        .master("POST /team/update", json!({"team_id": "red", "queue_weight": 2}))
        .await;
    assert_eq!(team["data"]["queue_weight"], 2);
    for weight in [json!(0), json!(-1), json!(1e9)] {
        let body = json!({"queue_weight": weight});
        denied(
            &bench,
            &master(),
            "POST /key/generate",
            body,
            400,
            Some("queue_weight"),
        )
        .await;
    }
    for (route, body) in [
        ("POST /key/generate", json!({"queue_weight": 9})),
        ("POST /team/update", json!({"team_id": "red", "queue_weight": 9})),
        (
            "POST /team/new",
            json!({"organization_id": "acme", "queue_weight": 9}),
        ),
    ] {
        denied(&bench, &lia, route, body, 403, Some("queue_weight")).await;
    }
}

#[tokio::test]
async fn what_litellms_scripts_write_into_metadata_counts() {
    let bench = with_team(json!([])).await;
    let metadata = json!({"tags": ["prod"], "model_rpm_limit": {"small": 3}, "mine": 1});
    let body = json!({"user_id": "ann", "metadata": metadata});
    let (key, _) = bench.holder(body).await;
    let row = bench.row(&key).await.unwrap();
    assert_eq!(row.extra["tags"], json!(["prod"]));
    assert_eq!(row.extra["model_rpm_limit"], json!({"small": 3}));
    assert_eq!(
        Value::Object(row.metadata),
        metadata,
        "it stays where it was written"
    );
    // Its owner writes the rest of it, and takes nothing away.
    let ann = let_in(&bench, &key).await;
    for (other, field) in [
        (json!({"tags": ["mine"]}), "tags"),
        (json!({"model_rpm_limit": {"small": 99}}), "model_rpm_limit"),
    ] {
        let body = json!({"key": key, "metadata": other});
        denied(&bench, &ann, "POST /key/update", body, 403, Some(field)).await;
    }
    let body = json!({"key": key, "metadata": {"mine": 2}});
    let row = taken(&bench, &ann, "POST /key/update", body).await;
    assert_eq!(
        (&row["tags"], &row["metadata"]),
        (&json!(["prod"]), &json!({"mine": 2}))
    );
    bench
        .master(
            "POST /key/update",
            json!({"key": key, "metadata": {"tags": ["test"]}}),
        )
        .await;
    bench
        .master("POST /key/update", json!({"key": key, "tags": ["test", "more"]}))
        .await;
    let body = json!({"key": key, "metadata": {"tags": ["test"], "mine": 3}});
    let row = taken(&bench, &ann, "POST /key/update", body).await;
    assert_eq!(
        row["tags"],
        json!(["test", "more"]),
        "what is there already changes nothing"
    );
    // Teams the same, and their keys have their tags.
    let body = json!({"team_id": "red", "metadata": {"tags": ["team"]}});
    bench.master("POST /team/update", body).await;
    let (of_team, _) = bench
        .holder(json!({"team_id": "red", "tags": ["own", "team"]}))
        .await;
    let caller = let_in(&bench, &of_team).await;
    assert_eq!(caller.key().unwrap().tags, ["team", "own"]);
    let (of_lia, _) = bench.holder(json!({"user_id": "lia"})).await;
    let lia = let_in(&bench, &of_lia).await;
    let body = json!({"team_id": "red", "metadata": {"tags": ["cheap"]}});
    denied(&bench, &lia, "POST /team/update", body, 403, Some("tags")).await;
    // What is no list of tags is somebody's own affair.
    bench
        .master(
            "POST /key/generate",
            json!({"metadata": {"tags": "x", "model_tpm_limit": 3}}),
        )
        .await;
}

#[tokio::test]
async fn members_keys_live_as_long_as_their_team_says() {
    let bench = with_team(json!(["/key/generate"])).await;
    let body = json!({"team_id": "red", "team_member_key_duration": "7d"});
    bench.master("POST /team/update", body).await;
    let (of_bob, _) = bench
        .holder(json!({"user_id": "bob", "team_id": "red", "duration": "99d"}))
        .await;
    let (bob, week) = (let_in(&bench, &of_bob).await, "2026-11-27T12:00:00.000000Z");
    let made = taken(&bench, &bob, "POST /key/generate", json!({"team_id": "red"})).await;
    assert_eq!(made["expires"], week);
    let shorter = json!({"team_id": "red", "duration": "1d"});
    taken(&bench, &bob, "POST /key/generate", shorter).await;
    for duration in ["8d", "-1"] {
        let longer = json!({"team_id": "red", "duration": duration});
        let status = if duration == "-1" { 400 } else { 403 };
        denied(
            &bench,
            &bob,
            "POST /key/generate",
            longer,
            status,
            Some("duration"),
        )
        .await;
    }
    let (of_lia, _) = bench.holder(json!({"user_id": "lia"})).await;
    let lia = let_in(&bench, &of_lia).await;
    let for_ann = json!({"team_id": "red", "user_id": "ann"});
    assert_eq!(
        taken(&bench, &lia, "POST /key/generate", for_ann).await["expires"],
        week
    );
    let service = json!({"team_id": "red"});
    assert_eq!(
        taken(&bench, &lia, "POST /key/generate", service)
            .await
            .get("expires"),
        None
    );
    let longer = json!({"team_id": "red", "user_id": "ann", "duration": "30d"});
    taken(&bench, &lia, "POST /key/generate", longer).await;
}

#[tokio::test]
async fn what_is_changed_of_an_owner_counts_from_the_answer_on() {
    use filters::contract::ports::Keys;
    let bench = with_team(json!([])).await;
    bench
        .master("POST /budget/new", json!({"budget_id": "small"}))
        .await;
    let fields = json!({"user_id": "ann", "team_id": "red", "budget_id": "small"});
    let (key, _) = bench.holder(fields).await;
    let hash = KeyHash::of(&key);
    for (route, body) in [
        ("POST /team/block", json!({"team_id": "red"})),
        ("POST /user/update", json!({"user_id": "ann", "max_budget": 1})),
        (
            "POST /budget/update",
            json!({"budget_id": "small", "rpm_limit": 1}),
        ),
        (
            "POST /team/member_delete",
            json!({"team_id": "red", "user_id": "bob"}),
        ),
    ] {
        bench.keys.find(&hash).await.unwrap();
        assert!(bench.keys.cached(&hash).is_some());
        bench.master(route, body).await;
        assert!(
            bench.keys.cached(&hash).is_none(),
            "{route}: the key is looked up again"
        );
    }
}
