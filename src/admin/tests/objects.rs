//! Users, organizations, customers, budgets and tags: answers, rights, refusals.

use super::teams::{as_user, no, ok, user};
use super::*;
use crate::store::{Change, Doc};

const USER: &[(&str, Kind)] = &[
    ("user_id", Kind::Text),
    ("user_alias", Kind::Text),
    ("user_email", Kind::Text),
    ("user_role", Kind::Text),
    ("teams", Kind::Texts),
    ("models", Kind::Texts),
    ("max_budget", Kind::Number),
    ("spend", Kind::Number),
    ("max_parallel_requests", Kind::Number),
    ("tpm_limit", Kind::Number),
    ("rpm_limit", Kind::Number),
    ("budget_duration", Kind::Text),
    ("budget_reset_at", Kind::Time),
    ("allowed_cache_controls", Kind::Texts),
    ("model_spend", Kind::Object),
    ("model_max_budget", Kind::Object),
    ("metadata", Kind::Object),
    ("created_at", Kind::Time),
    ("updated_at", Kind::Time),
];

#[tokio::test]
async fn a_user_is_made_shown_changed_and_deleted() {
    let bench = Bench::new().await;
    bench.master("POST /team/new", json!({"team_id": "red"})).await;
    let org = json!({"organization_id": "acme", "organization_alias": "Acme"});
    bench.master("POST /organization/new", org).await;
    let made = bench
        .master(
            "POST /user/new",
            json!({"user_id": "ann", "user_email": "ann@example.com", "user_alias": "Ann", "user_role": "internal_user",
                "max_budget": 5, "budget_duration": "1mo", "models": ["small"], "tpm_limit": 10, "metadata": {"a": 1},
                "teams": [{"team_id": "red", "max_budget_in_team": 2, "user_role": "admin"}], "organizations": ["acme"],
                "key_alias": "anns", "duration": "1d", "send_invite_email": false}),
        )
        .await;
    conforms(&made, USER);
    let secret = made["key"].as_str().unwrap();
    assert!(secret.starts_with("sk-"));
    assert_eq!((&made["token"], &made["token_id"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&made["key_alias"], &made["expires"]),
        (&json!("anns"), &json!("2026-11-21T12:00:00.000000Z"))
    );
    assert_eq!(
        (&made["max_budget"], &made["teams"]),
        (&json!(5.0), &json!(["red"]))
    );
    let key = bench.row(secret).await.unwrap();
    assert_eq!(
        (key.user_id.as_deref(), key.max_budget_nanos),
        (Some("ann"), None)
    );

    let info = bench.get(&master(), "/user/info?user_id=ann").await;
    conforms(&info["user_info"], USER);
    assert!(info["user_info"].get("password").is_none());
    assert_eq!(info["keys"].as_array().unwrap().len(), 1);
    assert_eq!(info["teams"][0]["team_id"], "red");
    let team = bench.get(&master(), "/team/info?team_id=red").await;
    assert_eq!(team["team_info"]["admins"], json!(["default_user_id", "ann"]));
    let org = bench
        .get(&master(), "/organization/info?organization_id=acme")
        .await;
    assert_eq!(org["members"][0]["user_id"], "ann");

    let by_email = json!({"user_email": "ann@example.com", "max_budget": null, "rpm_limit": 3});
    let changed = bench.master("POST /user/update", by_email).await;
    assert_eq!(changed["user_id"], "ann");
    assert_eq!(
        (
            &changed["data"]["max_budget"],
            &changed["data"]["rpm_limit"],
            &changed["data"]["tpm_limit"]
        ),
        (&Value::Null, &json!(3), &json!(10))
    );

    let plain = bench
        .master("POST /user/new", json!({"auto_create_key": false}))
        .await;
    assert_eq!(plain["user_id"].as_str().unwrap().len(), 36);
    assert_eq!(plain["key"], Value::Null);
    let list = bench.get(&master(), "/user/list?role=internal_user").await;
    assert_eq!(
        (&list["total"], &list["page_size"], &list["total_pages"]),
        (&json!(1), &json!(25), &json!(1))
    );
    assert_eq!(
        (&list["users"][0]["key_count"], &list["users"][0]["teams"]),
        (&json!(1), &json!(["red"]))
    );
    for (query, total) in [
        ("user_ids=ann,nobody", 1),
        ("user_email=EXAMPLE", 1),
        ("search=ann", 1),
        ("team=red", 1),
        ("sort_by=user_id&sort_order=desc", 2),
    ] {
        let list = bench.get(&master(), &format!("/user/get_users?{query}")).await;
        assert_eq!(list["total"], total, "{query}");
    }

    let missing = json!({"user_ids": ["ann", "nobody"]});
    no(
        &bench,
        &master(),
        "POST /user/delete",
        missing,
        404,
        Some("user_id"),
    )
    .await;
    assert!(bench.row(secret).await.is_some(), "and nobody is deleted");
    let count = bench
        .master("POST /user/delete", json!({"user_ids": ["ann"]}))
        .await;
    assert_eq!(count, 1);
    assert!(bench.row(secret).await.is_none());
    let team = bench.get(&master(), "/team/info?team_id=red").await;
    assert_eq!(team["team_info"]["admins"], json!(["default_user_id"]));
    let org = bench
        .get(&master(), "/organization/info?organization_id=acme")
        .await;
    assert_eq!(org["members"], json!([]));
    refused(
        &bench,
        &master(),
        "GET /user/info?user_id=ann",
        "",
        404,
        "User ann not found",
    )
    .await;
    let told = bench.get(&master(), "/audit?table_name=user&object_id=ann").await;
    assert_eq!(told["audit_logs"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_user_without_its_key_is_not_made() {
    let bench = Bench::new().await;
    bench
        .master("POST /key/generate", json!({"key_alias": "taken"}))
        .await;
    bench.master("POST /team/new", json!({"team_id": "red"})).await;
    let body = json!({"user_id": "ann", "key_alias": "taken", "teams": ["red"]});
    no(&bench, &master(), "POST /user/new", body, 400, Some("key_alias")).await;
    no(
        &bench,
        &master(),
        "GET /user/info?user_id=ann",
        Value::Null,
        404,
        Some("user_id"),
    )
    .await;
    let team = bench.get(&master(), "/team/info?team_id=red").await;
    assert_eq!(team["team_info"]["members_count"], 1);
}

#[tokio::test]
async fn what_a_user_cannot_be_is_named() {
    let bench = Bench::new().await;
    bench
        .master(
            "POST /user/new",
            json!({"user_id": "ann", "user_email": "a@example.com"}),
        )
        .await;
    for (field, body, status) in [
        ("user_id", json!({"user_id": "ann"}), 409),
        ("user_email", json!({"user_email": "a@example.com"}), 409),
        ("password", json!({"password": "x"}), 400),
        ("user_role", json!({"user_role": "root"}), 422),
        ("max_budget", json!({"max_budget": -1}), 400),
        ("max_budget", json!({"max_budget": 1e30}), 400),
        ("budget_duration", json!({"budget_duration": "1y"}), 400),
        ("user_id", json!({"user_id": "a\u{0}b"}), 400),
        ("user_id", json!({"user_id": "x".repeat(600)}), 400),
        ("team_id", json!({"teams": ["nobody's"]}), 404),
        ("organization_id", json!({"organizations": ["nobody's"]}), 404),
        ("teams", json!({"teams": "red"}), 422),
        ("auto_create_key", json!({"auto_create_key": "perhaps"}), 422),
        ("budget_id", json!({"budget_id": "nobody's"}), 404),
    ] {
        no(&bench, &master(), "POST /user/new", body, status, Some(field)).await;
    }
    no(
        &bench,
        &master(),
        "POST /user/update",
        json!({"user_id": "bob"}),
        404,
        Some("user_id"),
    )
    .await;
    no(
        &bench,
        &master(),
        "POST /user/update",
        json!({"models": []}),
        422,
        Some("user_id"),
    )
    .await;
    no(
        &bench,
        &master(),
        "POST /user/delete",
        json!({}),
        422,
        Some("user_ids"),
    )
    .await;
    no(
        &bench,
        &master(),
        "GET /user/list?sort_by=fields",
        Value::Null,
        400,
        Some("sort_by"),
    )
    .await;
    no(
        &bench,
        &master(),
        "GET /user/list?role=root",
        Value::Null,
        400,
        Some("role"),
    )
    .await;
    assert_eq!(bench.get(&master(), "/user/list").await["total"], 1);
    let sql = "x'); DROP TABLE tk_users; --";
    bench
        .master("POST /user/new", json!({"user_id": sql, "user_email": sql}))
        .await;
    let found = bench
        .get(&master(), "/user/list?user_email=x%27)%3B%20DROP")
        .await;
    assert_eq!(found["users"][0]["user_id"], sql);
    // What an import left behind is not shown.
    let doc = Doc {
        id: "old".into(),
        fields: json!({"password": "scrypt:x", "user_role": 7})
            .as_object()
            .unwrap()
            .clone(),
        version: 0,
        created_at_micros: NOON,
        updated_at_micros: NOON,
    };
    let change = Change::Put {
        table: Table::User,
        doc: &doc,
    };
    bench.store.change(&[change], &[]).await.unwrap();
    let old = bench.get(&master(), "/user/info?user_id=old").await;
    assert!(!old.to_string().contains("scrypt"));
}

#[tokio::test]
async fn nobody_writes_above_its_rights() {
    let bench = Bench::new().await;
    let internal = user(&bench, "ann", Some("internal_user")).await;
    let viewer = user(&bench, "vic", Some("proxy_admin_viewer")).await;
    let looker = user(&bench, "lou", Some("internal_user_viewer")).await;
    let admin = user(&bench, "adm", Some("proxy_admin")).await;
    let (_, holder) = bench.holder(json!({})).await;
    bench.master("POST /team/new", json!({"team_id": "red"})).await;
    bench.master("POST /budget/new", json!({"budget_id": "b"})).await;
    bench.master("POST /tag/new", json!({"name": "t"})).await;
    bench.master("POST /customer/new", json!({"user_id": "c"})).await;
    let org = json!({"organization_id": "o", "organization_alias": "o"});
    bench.master("POST /organization/new", org).await;

    let writes = [
        ("POST /user/new", json!({"user_id": "x"})),
        ("POST /user/update", json!({"user_id": "vic", "max_budget": 1})),
        ("POST /user/delete", json!({"user_ids": ["vic"]})),
        ("POST /team/new", json!({"team_id": "x"})),
        ("POST /team/update", json!({"team_id": "red", "max_budget": 1})),
        ("POST /team/delete", json!({"team_ids": ["red"]})),
        ("POST /team/block", json!({"team_id": "red"})),
        ("POST /team/unblock", json!({"team_id": "red"})),
        (
            "POST /team/member_add",
            json!({"team_id": "red", "member": {"user_id": "ann", "role": "admin"}}),
        ),
        (
            "POST /team/bulk_member_add",
            json!({"team_id": "red", "members": [{"user_id": "ann"}]}),
        ),
        (
            "POST /team/member_update",
            json!({"team_id": "red", "user_id": "default_user_id", "role": "user"}),
        ),
        (
            "POST /team/member_delete",
            json!({"team_id": "red", "user_id": "default_user_id"}),
        ),
        (
            "POST /team/model/add",
            json!({"team_id": "red", "models": ["small"]}),
        ),
        (
            "POST /team/model/delete",
            json!({"team_id": "red", "models": ["small"]}),
        ),
        (
            "POST /team/permissions_update",
            json!({"team_id": "red", "team_member_permissions": []}),
        ),
        ("POST /organization/new", json!({"organization_alias": "x"})),
        (
            "POST /organization/update",
            json!({"organization_id": "o", "max_budget": 1}),
        ),
        (
            "PATCH /organization/update",
            json!({"organization_id": "o", "max_budget": 1}),
        ),
        ("POST /organization/delete", json!({"organization_ids": ["o"]})),
        ("DELETE /organization/delete", json!({"organization_ids": ["o"]})),
        (
            "POST /organization/member_add",
            json!({"organization_id": "o", "member": {"user_id": "ann", "role": "org_admin"}}),
        ),
        (
            "PATCH /organization/member_update",
            json!({"organization_id": "o", "user_id": "ann"}),
        ),
        (
            "DELETE /organization/member_delete",
            json!({"organization_id": "o", "user_id": "ann"}),
        ),
        ("POST /customer/new", json!({"user_id": "x"})),
        ("POST /customer/update", json!({"user_id": "c", "blocked": true})),
        ("POST /customer/delete", json!({"user_ids": ["c"]})),
        ("POST /customer/block", json!({"user_ids": ["c"]})),
        ("POST /end_user/unblock", json!({"user_ids": ["c"]})),
        ("POST /budget/new", json!({"max_budget": 1})),
        ("POST /budget/update", json!({"budget_id": "b", "max_budget": 1})),
        ("POST /budget/delete", json!({"id": "b"})),
        ("POST /tag/new", json!({"name": "x"})),
        ("POST /tag/update", json!({"name": "t"})),
        ("POST /tag/delete", json!({"name": "t"})),
    ];
    let before = bench.get(&master(), "/audit?page_size=1000").await["audit_logs"].clone();
    for (route, body) in &writes {
        for (name, caller) in [
            ("internal user", &internal),
            ("viewer", &viewer),
            ("looker", &looker),
            ("holder", &holder),
            ("nobody", &Caller::Anonymous),
        ] {
            let answer = bench.call(caller, route, body.to_string()).await;
            assert!(
                matches!(answer.status, 401 | 403),
                "{name} {route}: {} {:?}",
                answer.status,
                answer.stop
            );
        }
    }
    assert_eq!(
        bench.get(&master(), "/audit?page_size=1000").await["audit_logs"],
        before
    );

    // Its own user: the harmless fields, and nothing else.
    let own = json!({"user_id": "ann", "user_alias": "Ann", "metadata": {"a": 1}});
    ok(&bench, &internal, "POST /user/update", own).await;
    for field in [
        "user_role",
        "max_budget",
        "models",
        "tpm_limit",
        "user_email",
        "teams",
        "spend",
    ] {
        let mut body = json!({"user_id": "ann"});
        body[field] = json!("proxy_admin");
        no(&bench, &internal, "POST /user/update", body, 403, Some(field)).await;
    }
    for uri in [
        "/user/list",
        "/customer/list",
        "/customer/info?end_user_id=c",
        "/budget/list",
        "/budget/settings?budget_id=b",
        "/tag/list",
        "/organization/info?organization_id=o",
        "/team/info?team_id=red",
        "/user/info?user_id=vic",
    ] {
        let route = format!("GET {uri}");
        assert_eq!(bench.call(&viewer, &route, "").await.status, 200, "{uri}");
        assert_eq!(bench.call(&admin, &route, "").await.status, 200, "{uri}");
        for caller in [&internal, &looker, &holder] {
            assert!(
                matches!(bench.call(caller, &route, "").await.status, 401 | 403),
                "{uri}"
            );
        }
    }
    assert_eq!(bench.get(&internal, "/user/info").await["user_id"], "ann");
    assert_eq!(bench.get(&holder, "/user/info").await["user_id"], Value::Null);
    assert_eq!(bench.get(&internal, "/organization/list").await, json!([]));
    no(
        &bench,
        &internal,
        "POST /budget/info",
        json!({"budgets": ["b"]}),
        401,
        None,
    )
    .await;
    // A proxy admin by role, and who deletes itself by accident.
    ok(&bench, &admin, "POST /tag/new", json!({"name": "by-admin"})).await;
    no(
        &bench,
        &admin,
        "POST /user/delete",
        json!({"user_ids": ["adm"]}),
        400,
        Some("user_ids"),
    )
    .await;
}

#[tokio::test]
async fn an_organization_lives_with_members_and_teams() {
    let bench = Bench::new().await;
    let made = bench
        .master(
            "POST /organization/new",
            json!({"organization_alias": "Acme", "max_budget": 50, "models": ["small"], "budget_duration": "1d"}),
        )
        .await;
    let id = made["organization_id"].as_str().unwrap().to_string();
    conforms(
        &made,
        &[
            ("organization_id", Kind::Text),
            ("organization_alias", Kind::Text),
            ("budget_id", Kind::Text),
            ("spend", Kind::Number),
            ("metadata", Kind::Object),
            ("models", Kind::Texts),
            ("created_by", Kind::Text),
            ("updated_by", Kind::Text),
            ("created_at", Kind::Time),
            ("updated_at", Kind::Time),
            ("litellm_budget_table", Kind::Object),
        ],
    );
    assert_eq!(made["litellm_budget_table"]["max_budget"], 50.0);
    let member = json!({"organization_id": id, "member": [{"user_id": "ann", "role": "org_admin"}, {"user_email": "b@example.com"}],
        "max_budget_in_organization": 3});
    let added = bench.master("POST /organization/member_add", member).await;
    assert_eq!(
        added["updated_organization_memberships"][0]["user_role"],
        "org_admin"
    );
    assert_eq!(added["updated_users"].as_array().unwrap().len(), 2);
    let lower = json!({"organization_id": id, "user_id": "ann", "role": "internal_user"});
    let changed = bench.master("PATCH /organization/member_update", lower).await;
    assert_eq!(changed["user_role"], "internal_user");
    let out = json!({"organization_id": id, "user_email": "b@example.com"});
    bench.master("DELETE /organization/member_delete", out).await;
    bench
        .master("POST /team/new", json!({"team_id": "red", "organization_id": id}))
        .await;
    let ann = as_user(&bench, "ann").await;
    let list = bench.get(&ann, "/organization/list").await;
    assert_eq!(list[0]["members"].as_array().unwrap().len(), 1);
    let info = bench
        .get(&ann, &format!("/organization/info?organization_id={id}"))
        .await;
    assert_eq!(info["teams"], json!([]), "only those she belongs to");
    let info = bench
        .get(&master(), &format!("/organization/info?organization_id={id}"))
        .await;
    assert_eq!(info["teams"][0]["team_id"], "red");
    let ids = json!({"organization_ids": [id]});
    no(
        &bench,
        &master(),
        "DELETE /organization/delete",
        ids.clone(),
        400,
        Some("organization_ids"),
    )
    .await;
    bench
        .master("POST /team/delete", json!({"team_ids": ["red"]}))
        .await;
    let gone = bench.master("DELETE /organization/delete", ids.clone()).await;
    assert_eq!(gone[0]["organization_id"], json!(id));
    no(
        &bench,
        &master(),
        "POST /organization/delete",
        ids,
        404,
        Some("organization_id"),
    )
    .await;
    no(
        &bench,
        &master(),
        "POST /organization/new",
        json!({}),
        422,
        Some("organization_alias"),
    )
    .await;
}

#[tokio::test]
async fn customers_come_are_blocked_and_go() {
    let bench = Bench::new().await;
    let made = bench
        .master(
            "POST /customer/new",
            json!({"user_id": "c1", "alias": "One", "max_budget": 2, "budget_duration": "1d"}),
        )
        .await;
    conforms(
        &made,
        &[
            ("user_id", Kind::Text),
            ("alias", Kind::Text),
            ("spend", Kind::Number),
            ("allowed_model_region", Kind::Text),
            ("default_model", Kind::Text),
            ("litellm_budget_table", Kind::Object),
        ],
    );
    no(
        &bench,
        &master(),
        "POST /end_user/new",
        json!({"user_id": "c1"}),
        409,
        Some("user_id"),
    )
    .await;
    no(
        &bench,
        &master(),
        "POST /customer/new",
        json!({}),
        422,
        Some("user_id"),
    )
    .await;
    let region = json!({"user_id": "c2", "allowed_model_region": "moon"});
    no(
        &bench,
        &master(),
        "POST /customer/new",
        region,
        422,
        Some("allowed_model_region"),
    )
    .await;
    let changed = bench
        .master(
            "POST /customer/update",
            json!({"user_id": "c1", "max_budget": null, "default_model": "small"}),
        )
        .await;
    assert_eq!(
        (&changed["max_budget"], &changed["default_model"]),
        (&Value::Null, &json!("small"))
    );
    let blocked = bench
        .master("POST /customer/block", json!({"user_ids": ["c1", "never-seen"]}))
        .await;
    assert_eq!(blocked["blocked_users"][1]["blocked"], true);
    bench
        .master("POST /customer/unblock", json!({"user_ids": ["c1"]}))
        .await;
    let unknown = json!({"user_ids": ["nobody"]});
    no(
        &bench,
        &master(),
        "POST /customer/unblock",
        unknown.clone(),
        404,
        Some("user_id"),
    )
    .await;
    let info = bench.get(&master(), "/end_user/info?end_user_id=c1").await;
    assert_eq!(info["blocked"], false);
    let list = bench.get(&master(), "/customer/list").await;
    assert_eq!(list.as_array().unwrap().len(), 2);
    no(
        &bench,
        &master(),
        "POST /customer/delete",
        unknown,
        404,
        Some("user_id"),
    )
    .await;
    let gone = bench
        .master("POST /customer/delete", json!({"user_ids": ["c1"]}))
        .await;
    assert_eq!(gone["deleted_customers"], 1);
    let says = "End User Id=c1 does not exist in db";
    refused(
        &bench,
        &master(),
        "GET /customer/info?end_user_id=c1",
        "",
        404,
        says,
    )
    .await;
}

#[tokio::test]
async fn budgets_are_named_by_others_and_stay_so_long() {
    let bench = Bench::new().await;
    let made = bench
        .master(
            "POST /budget/new",
            json!({"budget_id": "small", "max_budget": 3, "budget_duration": "7d", "rpm_limit": 4,
                "model_max_budget": {"small": {"budget_limit": 1, "time_period": "1d"}}}),
        )
        .await;
    conforms(
        &made,
        &[
            ("budget_id", Kind::Text),
            ("max_budget", Kind::Number),
            ("soft_budget", Kind::Number),
            ("max_parallel_requests", Kind::Number),
            ("tpm_limit", Kind::Number),
            ("rpm_limit", Kind::Number),
            ("model_max_budget", Kind::Object),
            ("budget_duration", Kind::Text),
            ("budget_reset_at", Kind::Time),
            ("created_at", Kind::Time),
            ("updated_at", Kind::Time),
        ],
    );
    assert!(made["budget_reset_at"].is_string());
    no(
        &bench,
        &master(),
        "POST /budget/new",
        json!({"budget_id": "small"}),
        409,
        Some("budget_id"),
    )
    .await;
    let named = json!({"user_id": "c", "budget_id": "small", "max_budget": 2});
    let customer = bench.master("POST /customer/new", named).await;
    let table = &customer["litellm_budget_table"];
    assert_eq!(
        (&table["budget_id"], &table["max_budget"], &table["rpm_limit"]),
        (&json!("small"), &json!(2.0), &json!(4)),
        "its own where it has one"
    );
    let info = bench
        .master("POST /budget/info", json!({"budgets": ["small", "other"]}))
        .await;
    assert_eq!(info.as_array().unwrap().len(), 1);
    let row = bench
        .master(
            "POST /budget/update",
            json!({"budget_id": "small", "rpm_limit": 9}),
        )
        .await;
    assert_eq!((&row["rpm_limit"], &row["max_budget"]), (&json!(9), &json!(3.0)));
    let settings = bench.get(&master(), "/budget/settings?budget_id=small").await;
    let rpm = settings
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["field_name"] == "rpm_limit")
        .unwrap();
    assert_eq!(
        (&rpm["field_value"], &rpm["stored_in_db"]),
        (&json!(9), &json!(true))
    );
    no(
        &bench,
        &master(),
        "POST /budget/delete",
        json!({"id": "small"}),
        400,
        Some("id"),
    )
    .await;
    bench
        .master(
            "POST /customer/update",
            json!({"user_id": "c", "budget_id": null}),
        )
        .await;
    bench.master("POST /budget/delete", json!({"id": "small"})).await;
    assert_eq!(bench.get(&master(), "/budget/list").await, json!([]));
    no(
        &bench,
        &master(),
        "POST /budget/update",
        json!({"budget_id": "small"}),
        404,
        Some("budget_id"),
    )
    .await;
}

#[tokio::test]
async fn tags_are_kept_by_name() {
    let bench = Bench::new().await;
    let made = bench
        .master(
            "POST /tag/new",
            json!({"name": "prod", "description": "live", "max_budget": 4}),
        )
        .await;
    assert_eq!(made["message"], "Tag prod created successfully");
    assert_eq!(
        (&made["tag"]["name"], &made["tag"]["max_budget"]),
        (&json!("prod"), &json!(4.0))
    );
    no(
        &bench,
        &master(),
        "POST /tag/new",
        json!({"name": "prod"}),
        409,
        Some("name"),
    )
    .await;
    bench
        .master("POST /tag/update", json!({"name": "prod", "description": "new"}))
        .await;
    let info = bench
        .master("POST /tag/info", json!({"names": ["prod", "other"]}))
        .await;
    assert_eq!(info["prod"]["description"], "new");
    assert_eq!(bench.get(&master(), "/tag/list").await[0]["name"], "prod");
    bench.master("POST /tag/delete", json!({"name": "prod"})).await;
    for (route, body) in [
        ("POST /tag/info", json!({"names": ["prod"]})),
        ("POST /tag/delete", json!({"name": "prod"})),
        ("POST /tag/update", json!({"name": "prod"})),
    ] {
        no(&bench, &master(), route, body, 404, Some("name")).await;
    }
    no(
        &bench,
        &master(),
        "POST /tag/new",
        json!({"name": ""}),
        422,
        Some("name"),
    )
    .await;
}
