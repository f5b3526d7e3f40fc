//! Teams and their members: answers, rights, and changes that cross.

use super::*;
use filters::model::account::Kind as Subject;
use filters::model::key::Holder;
use filters::model::party::Party;

/// A key of a user, as the gateway lets it in.
pub async fn as_user(bench: &Bench, id: &str) -> Caller {
    let made = bench.master("POST /key/generate", json!({"user_id": id})).await;
    let key = bench.row(made["key"].as_str().unwrap()).await.unwrap();
    let doc = bench.store.document(crate::store::Table::User, id).await.unwrap();
    let mut holder = Holder::alone(key);
    let fields = doc.map(|d| d.fields).unwrap_or_default();
    holder.user = Some(Arc::new(Party::new(Subject::User, id, fields)));
    Caller::Key(Arc::new(holder))
}

/// A user of this role, who asks.
pub async fn user(bench: &Bench, id: &str, role: Option<&str>) -> Caller {
    let body = json!({"user_id": id, "user_role": role, "auto_create_key": false});
    bench.master("POST /user/new", body).await;
    as_user(bench, id).await
}

pub async fn ok(bench: &Bench, caller: &Caller, route: &str, body: Value) -> Value {
    let answer = bench.call(caller, route, body.to_string()).await;
    assert_eq!(answer.status, 200, "{route} {body}: {:?}", answer.stop);
    answer.body
}

pub async fn no(bench: &Bench, caller: &Caller, route: &str, body: Value, status: u16, field: Option<&str>) {
    let text = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let answer = bench.call(caller, route, text).await;
    let stop = answer
        .stop
        .unwrap_or_else(|| panic!("{route} {body} was taken: {}", answer.body));
    assert_eq!(
        (answer.status, param(&stop)),
        (status, field),
        "{route} {body}: {stop:?}"
    );
}

const ROW: &[(&str, Kind)] = &[
    ("team_id", Kind::Text),
    ("team_alias", Kind::Text),
    ("organization_id", Kind::Text),
    ("admins", Kind::Texts),
    ("members", Kind::Texts),
    ("metadata", Kind::Object),
    ("max_budget", Kind::Number),
    ("soft_budget", Kind::Number),
    ("spend", Kind::Number),
    ("models", Kind::Texts),
    ("max_parallel_requests", Kind::Number),
    ("tpm_limit", Kind::Number),
    ("rpm_limit", Kind::Number),
    ("budget_duration", Kind::Text),
    ("budget_reset_at", Kind::Time),
    ("created_at", Kind::Time),
    ("updated_at", Kind::Time),
    ("model_spend", Kind::Object),
    ("model_max_budget", Kind::Object),
    ("litellm_model_table", Kind::Object),
];

#[tokio::test]
async fn a_team_is_made_shown_changed_and_deleted() {
    let bench = Bench::new().await;
    let made = bench
        .master(
            "POST /team/new",
            json!({
                "team_alias": "reds", "max_budget": 10, "budget_duration": "30d", "models": ["small"],
                "members_with_roles": [{"role": "admin", "user_id": "ann"}, {"role": "user", "user_email": "bob@example.com"}],
                "tpm_limit": 100, "metadata": {"a": 1}, "team_member_permissions": ["/key/generate"],
                "some_day": 1, "password": "x"
            }),
        )
        .await;
    conforms(&made, ROW);
    let id = made["team_id"].as_str().unwrap().to_string();
    assert_eq!(id.len(), 36, "a UUID");
    assert_eq!(made["max_budget"], 10.0);
    assert_eq!(made["admins"], json!(["ann", "default_user_id"]));
    assert_eq!(made["members_with_roles"][1]["user_email"], "bob@example.com");
    assert_eq!(made["budget_reset_at"], "2026-12-01T00:00:00.000000Z");
    assert_eq!(made["blocked"], false);
    assert!(made.get("some_day").is_none() && made.get("password").is_none());
    let bob = made["members_with_roles"][1]["user_id"].as_str().unwrap();
    let info = bench.get(&master(), &format!("/user/info?user_id={bob}")).await;
    assert_eq!(info["user_info"]["user_email"], "bob@example.com");
    assert_eq!(info["user_info"]["teams"], json!([id]));
    assert_eq!(info["teams"][0]["team_alias"], "reds");

    bench
        .master("POST /key/generate", json!({"team_id": id, "user_id": "ann"}))
        .await;
    let info = bench.get(&master(), &format!("/team/info?team_id={id}")).await;
    assert_eq!(info["team_id"], json!(id));
    conforms(&info["team_info"], ROW);
    assert_eq!(info["keys"].as_array().unwrap().len(), 1);
    assert_eq!(info["team_memberships"].as_array().unwrap().len(), 3);

    let changed = bench
        .master(
            "POST /team/update",
            json!({"team_id": id, "max_budget": null, "rpm_limit": 5, "created_by": "me", "spend": 7}),
        )
        .await;
    assert_eq!(changed["team_id"], json!(id));
    let data = &changed["data"];
    assert_eq!(
        (&data["max_budget"], &data["rpm_limit"], &data["tpm_limit"]),
        (&Value::Null, &json!(5), &json!(100))
    );
    assert_eq!(
        (&data["created_by"], &data["spend"]),
        (&json!("default_user_id"), &json!(0.0))
    );

    for (route, blocked) in [("POST /team/block", true), ("POST /team/unblock", false)] {
        let row = bench.master(route, json!({"team_id": id})).await;
        assert_eq!(row["blocked"], blocked);
    }
    let all = bench.get(&master(), "/team/list").await;
    assert_eq!(all[0]["team_alias"], "reds");
    assert_eq!(all[0]["keys_count"], 1);
    let page = bench
        .get(&master(), "/v2/team/list?team_alias=ED&page_size=5")
        .await;
    assert_eq!(
        (
            &page["total"],
            &page["page"],
            &page["page_size"],
            &page["total_pages"]
        ),
        (&json!(1), &json!(1), &json!(5), &json!(1))
    );

    let gone = bench.master("POST /team/delete", json!({"team_ids": [id]})).await;
    assert_eq!(gone["deleted_teams"], json!([id]));
    assert_eq!(bench.get(&master(), "/key/list").await["total_count"], 0);
    let uri = format!("GET /team/info?team_id={id}");
    let says = format!("Team not found, passed team id: {id}.");
    refused(&bench, &master(), &uri, "", 404, &says).await;
    let told = bench.get(&master(), "/audit?table_name=team").await;
    let actions: Vec<&str> = told["audit_logs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["deleted", "unblocked", "blocked", "updated", "created"]);
}

#[tokio::test]
async fn members_come_change_and_go() {
    let bench = Bench::new().await;
    let team = json!({"team_id": "red", "team_member_budget": 2, "team_member_rpm_limit": 9});
    bench.master("POST /team/new", team).await;
    let added = bench
        .master(
            "POST /team/member_add",
            json!({"team_id": "red", "member": {"role": "user", "user_id": "ann"}}),
        )
        .await;
    conforms(&added, ROW);
    assert_eq!(added["updated_users"][0]["user_id"], "ann");
    let membership = &added["updated_team_memberships"][0];
    assert_eq!(
        membership["litellm_budget_table"]["max_budget"], 2.0,
        "the team's default"
    );
    assert_eq!(membership["litellm_budget_table"]["rpm_limit"], 9);
    let own = json!({"team_id": "red", "max_budget_in_team": 5,
        "member": [{"role": "user", "user_email": "bob@example.com"}, {"role": "admin", "user_id": "cid"}]});
    let added = bench.master("POST /team/member_add", own).await;
    assert_eq!(
        added["updated_team_memberships"][1]["litellm_budget_table"]["max_budget"],
        5.0
    );
    let twice = json!({"team_id": "red", "member": {"user_id": "ann"}});
    no(
        &bench,
        &master(),
        "POST /team/member_add",
        twice,
        400,
        Some("user_id"),
    )
    .await;

    let bulk = json!({"team_id": "red", "members": [{"user_id": "ann"}, {"user_id": "dan", "role": "user"}]});
    let bulk = bench.master("POST /team/bulk_member_add", bulk).await;
    assert_eq!(
        (
            &bulk["total_requested"],
            &bulk["successful_additions"],
            &bulk["failed_additions"]
        ),
        (&json!(2), &json!(1), &json!(1))
    );
    // Everybody who is new; those who are in are told apart.
    let all = bench
        .master(
            "POST /team/bulk_member_add",
            json!({"team_id": "red", "all_users": true}),
        )
        .await;
    assert_eq!(all["successful_additions"], 0);

    let changed = bench
        .master(
            "POST /team/member_update",
            json!({"team_id": "red", "user_id": "ann", "role": "admin", "max_budget_in_team": 7, "rpm_limit": null}),
        )
        .await;
    assert_eq!(
        (
            &changed["max_budget_in_team"],
            &changed["role"],
            &changed["rpm_limit"]
        ),
        (&json!(7.0), &json!("admin"), &Value::Null)
    );
    // Who has the team's default follows it; who has a budget of its own keeps that.
    let update = json!({"team_id": "red", "team_member_budget": 3});
    let row = bench.master("POST /team/update", update).await["data"].clone();
    let budget = |id: &str| {
        let list = row["members_with_roles"].as_array().unwrap();
        list.iter().find(|m| m["user_id"] == id).unwrap()["max_budget"].clone()
    };
    assert_eq!(
        (budget("ann"), budget("dan"), budget("cid")),
        (json!(7.0), json!(3.0), json!(5.0))
    );

    let (secret, _) = bench.holder(json!({"user_id": "ann", "team_id": "red"})).await;
    let (other, _) = bench.holder(json!({"user_id": "ann"})).await;
    let row = bench
        .master(
            "POST /team/member_delete",
            json!({"team_id": "red", "user_id": "ann"}),
        )
        .await;
    assert!(!row["admins"].to_string().contains("ann"));
    assert!(bench.row(&secret).await.is_none(), "her keys for this team go");
    assert!(bench.row(&other).await.is_some(), "and no others");
    let by_email = json!({"team_id": "red", "user_email": "bob@example.com"});
    bench.master("POST /team/member_delete", by_email.clone()).await;
    no(
        &bench,
        &master(),
        "POST /team/member_delete",
        by_email,
        404,
        Some("user_id"),
    )
    .await;
    let none = json!({"team_id": "blue", "member": {"user_id": "ann"}});
    no(
        &bench,
        &master(),
        "POST /team/member_add",
        none,
        404,
        Some("team_id"),
    )
    .await;
}

#[tokio::test]
async fn members_that_are_added_at_once_all_land() {
    let bench = Bench::new().await;
    bench.master("POST /team/new", json!({"team_id": "red"})).await;
    let add = |n: u32| {
        let bench = &bench;
        let body = json!({"team_id": "red", "member": {"user_id": format!("u{n}")}, "max_budget_in_team": n});
        async move { bench.master("POST /team/member_add", body).await }
    };
    // And the same new user for several teams.
    bench.master("POST /team/new", json!({"team_id": "blue"})).await;
    let other = bench.master(
        "POST /team/member_add",
        json!({"team_id": "blue", "member": {"user_id": "u1"}}),
    );
    futures::join!(futures::future::join_all((0..12).map(add)), other);
    let team = bench.get(&master(), "/team/info?team_id=red").await;
    let list = team["team_info"]["members_with_roles"].as_array().unwrap();
    assert_eq!(list.len(), 13);
    for n in 0..12 {
        let id = format!("u{n}");
        let member = list.iter().find(|m| m["user_id"] == json!(id)).unwrap();
        assert_eq!(member["max_budget"], json!(f64::from(n)));
    }
}

#[tokio::test]
async fn a_teams_admin_manages_members_and_raises_nothing() {
    let bench = Bench::new().await;
    bench
        .master(
            "POST /team/new",
            json!({"team_id": "red", "max_budget": 10, "tpm_limit": 100, "models": ["small", "embed"],
                "members_with_roles": [{"role": "admin", "user_id": "ann"}, {"role": "user", "user_id": "bob"}]}),
        )
        .await;
    bench.master("POST /team/new", json!({"team_id": "blue"})).await;
    let (ann, bob) = (as_user(&bench, "ann").await, as_user(&bench, "bob").await);
    let add = json!({"team_id": "red", "member": {"user_id": "cid"}});
    ok(&bench, &ann, "POST /team/member_add", add.clone()).await;
    no(&bench, &bob, "POST /team/member_add", add, 403, None).await;
    let blue = json!({"team_id": "blue", "member": {"user_id": "ann", "role": "admin"}});
    no(&bench, &ann, "POST /team/member_add", blue, 403, None).await;
    let all = json!({"team_id": "red", "all_users": true});
    no(
        &bench,
        &ann,
        "POST /team/bulk_member_add",
        all,
        403,
        Some("all_users"),
    )
    .await;
    let made_user = bench.get(&master(), "/user/info?user_id=cid").await;
    assert_eq!(
        made_user["user_info"]["user_role"],
        Value::Null,
        "no role from a team's admin"
    );

    for (field, value) in [
        ("max_budget", json!(11)),
        ("max_budget", Value::Null),
        ("budget_duration", json!("1d")),
        ("tpm_limit", json!(101)),
        ("tpm_limit", Value::Null),
        ("model_max_budget", json!({"small": 100})),
        ("models", json!([])),
        ("models", json!(["small", "large"])),
        ("blocked", json!(true)),
        ("organization_id", json!("org")),
        ("budget_id", json!("rich")),
        ("allowed_passthrough_routes", json!(["/x"])),
        ("model_aliases", json!({"small": "large"})),
    ] {
        let mut body = json!({"team_id": "red"});
        body[field] = value;
        no(&bench, &ann, "POST /team/update", body, 403, Some(field)).await;
    }
    let down = json!({"team_id": "red", "max_budget": 9, "tpm_limit": 100, "models": ["small"],
        "team_alias": "reds", "team_member_budget": 1, "budget_duration": null});
    let row = ok(&bench, &ann, "POST /team/update", down).await;
    assert_eq!(
        (&row["data"]["max_budget"], &row["data"]["models"]),
        (&json!(9.0), &json!(["small"]))
    );
    no(
        &bench,
        &bob,
        "POST /team/update",
        json!({"team_id": "red", "team_alias": "x"}),
        403,
        None,
    )
    .await;

    for route in ["block", "unblock", "model/add", "model/delete"] {
        let body = json!({"team_id": "red", "models": ["large"]});
        no(&bench, &ann, &format!("POST /team/{route}"), body, 401, None).await;
    }
    no(
        &bench,
        &ann,
        "POST /team/delete",
        json!({"team_ids": ["red"]}),
        401,
        None,
    )
    .await;
    no(
        &bench,
        &ann,
        "POST /team/new",
        json!({"team_alias": "mine"}),
        401,
        None,
    )
    .await;

    // Who sees what.
    let whole = bench.get(&ann, "/team/info?team_id=red").await;
    assert_eq!(whole["team_memberships"].as_array().unwrap().len(), 4);
    let part = bench.get(&bob, "/team/info?team_id=red").await;
    assert_eq!(part["team_memberships"].as_array().unwrap().len(), 1);
    no(
        &bench,
        &bob,
        "GET /team/info?team_id=blue",
        Value::Null,
        403,
        None,
    )
    .await;
    assert_eq!(bench.get(&bob, "/team/list").await.as_array().unwrap().len(), 1);
    no(&bench, &bob, "GET /team/list?user_id=ann", Value::Null, 403, None).await;
    assert_eq!(bench.get(&bob, "/v2/team/list").await["total"], 1);
    let (_, stranger) = bench.holder(json!({})).await;
    assert_eq!(bench.get(&stranger, "/v2/team/list").await["total"], 0);
    let (_, of_team) = bench.holder(json!({"team_id": "red"})).await;
    assert_eq!(bench.get(&of_team, "/team/info").await["team_id"], "red");
    assert_eq!(
        bench.get(&of_team, "/team/list").await.as_array().unwrap().len(),
        1
    );

    let set = json!({"team_id": "red", "team_member_permissions": ["/key/generate"]});
    ok(&bench, &ann, "POST /team/permissions_update", set.clone()).await;
    no(&bench, &bob, "POST /team/permissions_update", set, 403, None).await;
    let list = bench.get(&bob, "/team/permissions_list?team_id=red").await;
    assert_eq!(list["team_member_permissions"], json!(["/key/generate"]));
    let wrong = json!({"team_id": "red", "team_member_permissions": ["/user/new"]});
    let field = Some("team_member_permissions");
    no(&bench, &ann, "POST /team/permissions_update", wrong, 400, field).await;
}

#[tokio::test]
async fn models_come_and_go_and_none_is_not_all() {
    let bench = Bench::new().await;
    bench
        .master("POST /team/new", json!({"team_id": "red", "models": ["small"]}))
        .await;
    let row = bench
        .master(
            "POST /team/model/add",
            json!({"team_id": "red", "models": ["embed", "small"]}),
        )
        .await;
    assert_eq!(row["models"], json!(["small", "embed"]));
    let row = bench
        .master(
            "POST /team/model/delete",
            json!({"team_id": "red", "models": ["embed", "small"]}),
        )
        .await;
    assert_eq!(row["models"], json!(["no-default-models"]));
    let row = bench
        .master(
            "POST /team/model/add",
            json!({"team_id": "red", "models": ["small"]}),
        )
        .await;
    assert_eq!(row["models"], json!(["small"]));
    bench.master("POST /team/new", json!({"team_id": "all"})).await;
    let one = json!({"team_id": "all", "models": ["small"]});
    no(
        &bench,
        &master(),
        "POST /team/model/add",
        one,
        400,
        Some("models"),
    )
    .await;
}

#[tokio::test]
async fn what_a_team_cannot_be_is_named() {
    let bench = Bench::new().await;
    bench.master("POST /team/new", json!({"team_id": "red"})).await;
    no(
        &bench,
        &master(),
        "POST /team/new",
        json!({"team_id": "red"}),
        409,
        Some("team_id"),
    )
    .await;
    for (field, value, status) in [
        ("max_budget", json!(-1), 400),
        ("max_budget", json!("NaN"), 422),
        ("max_budget", json!(1e300), 400),
        ("soft_budget", json!(-0.1), 400),
        ("budget_duration", json!("soon"), 400),
        ("budget_duration", json!("0d"), 400),
        ("budget_duration", json!("9000000d"), 400),
        ("team_member_budget", json!(-1), 400),
        ("team_member_budget_duration", json!("-1d"), 400),
        ("tpm_limit", json!(-1), 400),
        ("rpm_limit", json!(1.5), 422),
        ("models", json!("small"), 422),
        ("metadata", json!([]), 422),
        ("blocked", json!("perhaps"), 422),
        ("team_alias", json!("a\nb"), 400),
        ("team_id", json!("a\tb"), 400),
        (
            "model_max_budget",
            json!({"a": {"budget_limit": 1, "time_period": "9000000d"}}),
            400,
        ),
        ("model_max_budget", json!({"a": -1}), 400),
        ("team_member_permissions", json!(["/user/new"]), 400),
        ("members_with_roles", json!([{"role": "user"}]), 422),
        ("budget_id", json!("nobody's"), 404),
        ("organization_id", json!("nobody's"), 404),
    ] {
        let mut body = json!({});
        body[field] = value;
        no(&bench, &master(), "POST /team/new", body, status, Some(field)).await;
    }
    let boss = json!({"members_with_roles": [{"role": "boss", "user_id": "a"}]});
    no(&bench, &master(), "POST /team/new", boss, 422, Some("role")).await;
    assert_eq!(bench.get(&master(), "/v2/team/list").await["total"], 1);
    let sql = "x'); DROP TABLE tk_teams; --";
    bench
        .master(
            "POST /team/new",
            json!({"team_id": sql, "team_alias": sql, "members_with_roles": [{"user_id": sql}]}),
        )
        .await;
    let found = bench
        .get(&master(), "/v2/team/list?team_alias=%27)%3B%20DROP")
        .await;
    assert_eq!(found["teams"][0]["team_id"], sql);
    bench
        .master("POST /user/delete", json!({"user_ids": [sql]}))
        .await;
    bench
        .master("POST /team/delete", json!({"team_ids": [sql]}))
        .await;
}

#[tokio::test]
async fn an_organizations_admin_has_its_teams() {
    let bench = Bench::new().await;
    let ann = user(&bench, "ann", Some("org_admin")).await;
    for id in ["acme", "evil"] {
        let org = json!({"organization_id": id, "organization_alias": id, "max_budget": 100, "rpm_limit": 10, "models": ["small"]});
        bench.master("POST /organization/new", org).await;
    }
    let member = json!({"organization_id": "acme", "member": {"user_id": "ann", "role": "org_admin"}});
    bench.master("POST /organization/member_add", member).await;

    let made = json!({"team_id": "red", "organization_id": "acme", "max_budget": 60});
    ok(&bench, &ann, "POST /team/new", made).await;
    no(
        &bench,
        &ann,
        "POST /team/new",
        json!({"team_alias": "x"}),
        401,
        None,
    )
    .await;
    for (field, body) in [
        ("organization_id", json!({"organization_id": "evil"})),
        (
            "max_budget",
            json!({"organization_id": "acme", "max_budget": 101}),
        ),
        ("rpm_limit", json!({"organization_id": "acme", "rpm_limit": 11})),
        (
            "models",
            json!({"organization_id": "acme", "models": ["small", "large"]}),
        ),
    ] {
        let status = if field == "organization_id" { 403 } else { 400 };
        no(&bench, &ann, "POST /team/new", body, status, Some(field)).await;
    }
    ok(
        &bench,
        &ann,
        "POST /team/update",
        json!({"team_id": "red", "max_budget": 99}),
    )
    .await;
    let away = json!({"team_id": "red", "organization_id": null});
    no(
        &bench,
        &ann,
        "POST /team/update",
        away,
        403,
        Some("organization_id"),
    )
    .await;
    ok(&bench, &ann, "POST /team/block", json!({"team_id": "red"})).await;
    assert_eq!(
        bench.get(&ann, "/v2/team/list?organization_id=acme").await["total"],
        1
    );
    no(
        &bench,
        &ann,
        "POST /organization/update",
        json!({"organization_id": "acme", "max_budget": 1000}),
        403,
        Some("max_budget"),
    )
    .await;
    no(
        &bench,
        &ann,
        "POST /organization/update",
        json!({"organization_id": "evil", "metadata": {}}),
        403,
        None,
    )
    .await;
    ok(
        &bench,
        &ann,
        "POST /organization/update",
        json!({"organization_id": "acme", "metadata": {"a": 1}}),
    )
    .await;

    let user =
        json!({"user_id": "new", "organizations": ["acme"], "teams": ["red"], "user_role": "internal_user"});
    let made = ok(&bench, &ann, "POST /user/new", user).await;
    assert!(made["key"].as_str().unwrap().starts_with("sk-"));
    assert_eq!(made["teams"], json!(["red"]));
    for (field, body, status) in [
        (
            "user_role",
            json!({"organizations": ["acme"], "user_role": "proxy_admin"}),
            403,
        ),
        ("organizations", json!({"organizations": ["evil"]}), 403),
        (
            "permissions",
            json!({"organizations": ["acme"], "permissions": {"get_spend_routes": true}}),
            403,
        ),
        (
            "team_id",
            json!({"organizations": ["acme"], "team_id": "other"}),
            403,
        ),
    ] {
        no(&bench, &ann, "POST /user/new", body, status, Some(field)).await;
    }
    no(&bench, &ann, "POST /user/new", json!({}), 401, None).await;
    ok(&bench, &ann, "POST /team/delete", json!({"team_ids": ["red"]})).await;
}
