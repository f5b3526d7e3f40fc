//! Who may do what: every role on every kind of call, with what is its own and with what is not.

use super::*;

/// Everybody who may ask. Lia is an admin of the team `red` and nothing else, Mo is a member of it.
const CAST: [&str; 8] = ["master", "root", "viewer", "lia", "ann", "looker", "mo", "plain"];

struct Cast {
    bench: Bench,
    secrets: Vec<(&'static str, String)>,
}

impl Cast {
    async fn new() -> Cast {
        let bench = Bench::new().await;
        for (user, role) in [
            ("root", "proxy_admin"),
            ("viewer", "proxy_admin_viewer"),
            ("ann", "internal_user"),
            ("looker", "internal_user_viewer"),
            ("lia", ""),
            ("mo", "internal_user"),
            ("carl", "internal_user"),
        ] {
            bench.put(Table::User, user, json!({"user_role": role})).await;
        }
        let members = json!([{"user_id": "lia", "role": "admin"}, {"user_id": "mo", "role": "user"}]);
        bench
            .put(
                Table::Team,
                "red",
                json!({"members_with_roles": members, "max_budget": 10, "models": ["small"]}),
            )
            .await;
        bench
            .put(
                Table::Team,
                "blue",
                json!({"members_with_roles": [{"user_id": "carl", "role": "admin"}]}),
            )
            .await;
        let mut secrets = Vec::new();
        for user in ["root", "viewer", "lia", "ann", "looker", "mo", "carl"] {
            let (secret, _) = bench.holder(json!({"user_id": user})).await;
            secrets.push((user, secret));
        }
        secrets.push(("plain", bench.holder(json!({})).await.0));
        Cast { bench, secrets }
    }

    fn secret(&self, who: &str) -> &str {
        let found = self.secrets.iter().find(|(name, _)| *name == who);
        &found.unwrap_or_else(|| panic!("{who}")).1
    }

    async fn caller(&self, who: &str) -> Caller {
        match who {
            "master" => master(),
            _ => self.bench.caller(self.secret(who)).await,
        }
    }

    /// What each of the cast gets for the call.
    async fn statuses(&self, call: impl AsyncFn(&str) -> (String, Value)) -> Vec<u16> {
        let mut got = Vec::new();
        for who in CAST {
            let caller = self.caller(who).await;
            let (route, body) = call(who).await;
            let body = if body.is_null() {
                String::new()
            } else {
                body.to_string()
            };
            let answer = self.bench.call(&caller, &route, body).await;
            assert!(answer.status < 500, "{who} {route}: {:?}", answer.stop);
            got.push(answer.status);
        }
        got
    }
}

#[tokio::test]
async fn every_role_on_every_kind_of_call() {
    let cast = Cast::new().await;
    let bench = &cast.bench;
    // A key of the owner's or the team's, made anew for each call.
    let key = async |fields: Value| bench.holder(fields).await.0;
    //                                          master root viewer lia  ann looker mo  plain
    let check = async |what: &str,
                       want: [u16; 8],
                       call: &dyn Fn(&str, &str) -> (String, Value),
                       fields: &dyn Fn(&str) -> Value| {
        let got = cast
            .statuses(async |who: &str| {
                let secret = key(fields(who)).await;
                call(who, &secret)
            })
            .await;
        assert_eq!(got, want, "{what} for {CAST:?}");
    };
    let own = |who: &str| match who {
        "master" | "plain" => json!({}),
        who => json!({"user_id": who}),
    };
    let others = |_: &str| json!({"user_id": "carl"});
    let of_team = |_: &str| json!({"team_id": "red"});
    let post = |route: &'static str| {
        move |_: &str, secret: &str| (format!("POST {route}"), json!({"key": secret, "max_budget": 1}))
    };
    let delete = |_: &str, secret: &str| ("POST /key/delete".to_string(), json!({"keys": [secret]}));
    let info = |_: &str, secret: &str| (format!("GET /key/info?key={secret}"), Value::Null);

    check(
        "an update of one's own",
        [200, 200, 403, 401, 200, 403, 200, 401],
        &post("/key/update"),
        &own,
    )
    .await;
    check(
        "an update of another's",
        [200, 200, 403, 401, 403, 403, 403, 401],
        &post("/key/update"),
        &others,
    )
    .await;
    check(
        "an update of the team's",
        [200, 200, 403, 200, 403, 403, 403, 401],
        &post("/key/update"),
        &of_team,
    )
    .await;
    check(
        "a block of one's own",
        [200, 200, 403, 401, 200, 403, 200, 401],
        &post("/key/block"),
        &own,
    )
    .await;
    check(
        "a block of another's",
        [200, 200, 403, 401, 403, 403, 403, 401],
        &post("/key/block"),
        &others,
    )
    .await;
    check(
        "an unblock of one's own",
        [200, 200, 403, 401, 401, 403, 401, 401],
        &post("/key/unblock"),
        &own,
    )
    .await;
    check(
        "an unblock of the team's",
        [200, 200, 403, 200, 403, 403, 403, 401],
        &post("/key/unblock"),
        &of_team,
    )
    .await;
    check(
        "a deletion of one's own",
        [200, 200, 403, 401, 200, 403, 200, 401],
        &delete,
        &own,
    )
    .await;
    check(
        "a deletion of another's",
        [200, 200, 403, 401, 403, 403, 403, 401],
        &delete,
        &others,
    )
    .await;
    check(
        "a deletion of the team's",
        [200, 200, 403, 200, 403, 403, 403, 401],
        &delete,
        &of_team,
    )
    .await;
    check(
        "a look at one's own",
        [200, 200, 200, 200, 200, 200, 200, 403],
        &info,
        &own,
    )
    .await;
    check(
        "a look at another's",
        [200, 200, 200, 403, 403, 403, 403, 403],
        &info,
        &others,
    )
    .await;
    check(
        "a look at the team's",
        [200, 200, 200, 200, 403, 403, 403, 403],
        &info,
        &of_team,
    )
    .await;

    for (what, want, route, body) in [
        (
            "a key",
            [200, 200, 403, 401, 200, 403, 200, 401],
            "POST /key/generate",
            json!({}),
        ),
        (
            "another's key",
            [200, 200, 403, 401, 403, 403, 403, 401],
            "POST /key/generate",
            json!({"user_id": "carl"}),
        ),
        (
            "a team's key",
            [200, 200, 403, 200, 403, 403, 403, 401],
            "POST /key/generate",
            json!({"team_id": "red"}),
        ),
        (
            "another team's key",
            [200, 200, 403, 401, 403, 403, 403, 401],
            "POST /key/generate",
            json!({"team_id": "blue"}),
        ),
        (
            "a member's key",
            [200, 200, 403, 200, 403, 403, 403, 401],
            "POST /key/generate",
            json!({"team_id": "red", "user_id": "mo"}),
        ),
        (
            "a stranger's key",
            [200, 200, 403, 403, 403, 403, 403, 401],
            "POST /key/generate",
            json!({"team_id": "red", "user_id": "carl"}),
        ),
        (
            "a service account",
            [200, 200, 403, 200, 403, 403, 403, 401],
            "POST /key/service-account/generate",
            json!({"team_id": "red"}),
        ),
        (
            "many at once",
            [200, 200, 403, 401, 401, 403, 401, 401],
            "POST /key/bulk_update",
            json!({"keys": [{"key": "sk-nobodys"}]}),
        ),
        (
            "the audit",
            [200, 200, 200, 401, 401, 401, 401, 401],
            "GET /audit",
            Value::Null,
        ),
        ("a list", [200; 8], "GET /key/list", Value::Null),
        (
            "a list of another's",
            [200, 200, 200, 403, 403, 403, 403, 403],
            "GET /key/list?user_id=carl",
            Value::Null,
        ),
        (
            "a list of the team's",
            [200, 200, 200, 200, 403, 403, 200, 403],
            "GET /key/list?team_id=red",
            Value::Null,
        ),
        ("aliases", [200; 8], "GET /key/aliases", Value::Null),
        ("what works", [200; 8], "POST /key/health", Value::Null),
        ("the routes", [200; 8], "GET /routes", Value::Null),
    ] {
        let got = cast
            .statuses(async |_: &str| (route.to_string(), body.clone()))
            .await;
        assert_eq!(got, want, "{what} for {CAST:?}");
    }
}

#[tokio::test]
async fn who_is_no_admin_is_told_so_in_litellms_words() {
    let cast = Cast::new().await;
    for (who, says) in [
        (
            "plain",
            "Only proxy admin can be used to generate, delete, update info for new keys/users/teams. \
                   Route=/key/generate. Your role=unknown. Your user_id=unknown",
        ),
        (
            "lia",
            "Route=/key/generate. Your role=unknown. Your user_id=l****",
        ),
    ] {
        refused(
            &cast.bench,
            &cast.caller(who).await,
            "POST /key/generate",
            "{}",
            401,
            says,
        )
        .await;
    }
    let viewer = cast.caller("viewer").await;
    let says =
        "user not allowed to access this route, role=proxy_admin_viewer. Trying to access: /key/generate";
    refused(&cast.bench, &viewer, "POST /key/generate", "{}", 403, says).await;
}

#[tokio::test]
async fn nobody_writes_a_field_above_their_rights() {
    let cast = Cast::new().await;
    let bench = &cast.bench;
    let ann = cast.caller("ann").await;
    let lia = cast.caller("lia").await;
    let (own, _) = bench.holder(json!({"user_id": "ann"})).await;
    let (teams, _) = bench.holder(json!({"team_id": "red", "tags": ["a"]})).await;
    let before = (bench.row(&own).await, bench.row(&teams).await);
    let count = bench.get(&master(), "/key/list").await["total_count"].clone();
    for (field, value) in [
        ("allowed_routes", json!(["*"])),
        ("allowed_routes", json!(["management_routes"])),
        ("allowed_passthrough_routes", json!(["/tts"])),
        ("permissions", json!({"get_spend_routes": true})),
        ("user_role", json!("proxy_admin")),
        ("spend", json!(0)),
        ("token", json!("0")),
        ("created_by", json!("root")),
        ("rotated_to", json!("0")),
        ("budget_id", json!("rich")),
        ("user_id", json!("carl")),
        ("team_id", json!("blue")),
        ("organization_id", json!("org")),
        ("blocked", json!(true)),
        ("config", json!({"a": 1})),
        ("router_settings", json!({"a": 1})),
        ("object_permission", json!({"a": 1})),
        ("guardrails", json!(["none"])),
        ("policies", json!(["none"])),
        ("enforced_params", json!(["user"])),
        ("budget_limits", json!([{"a": 1}])),
        ("budget_fallbacks", json!({"a": 1})),
        ("allowed_cache_controls", json!(["no-cache"])),
        ("project_id", json!("p")),
        ("agent_id", json!("p")),
        ("access_group_ids", json!(["p"])),
        ("temp_budget_increase", json!(5)),
    ] {
        for (caller, key) in [(&ann, &own), (&lia, &teams)] {
            let mut update = json!({"key": key, field: value});
            if field == "temp_budget_increase" {
                update["temp_budget_expiry"] = json!("1d");
            }
            let mut made = update.clone();
            made.as_object_mut().unwrap().remove("key");
            if key == &teams && field != "team_id" {
                made["team_id"] = json!("red");
            }
            for (route, body) in [("POST /key/update", update), ("POST /key/generate", made)] {
                let answer = bench.call(caller, route, body.to_string()).await;
                let stop = answer.stop.unwrap_or_else(|| panic!("{route} {body} was taken"));
                // Lia is nobody outside of her teams.
                let nobody = caller.user_id() == Some("lia") && field == "team_id" && answer.status == 401;
                assert!(
                    nobody || (answer.status, param(&stop)) == (403, Some(field)),
                    "{route} {body}: {stop:?}"
                );
            }
        }
    }
    assert_eq!((bench.row(&own).await, bench.row(&teams).await), before);
    assert_eq!(bench.get(&master(), "/key/list").await["total_count"], count);
    // A form that sends back what is there changes nothing and is taken.
    let row = bench.get(&ann, &format!("/key/info?key={own}")).await;
    let mut form = row["info"].clone();
    let form = form.as_object_mut().unwrap();
    form.retain(|_, v| !v.is_null());
    form.insert("key".into(), json!(own));
    for name in ["spend", "created_by", "updated_by"] {
        form.remove(name);
    }
    let answer = bench
        .call(&ann, "POST /key/update", json!(form).to_string())
        .await;
    assert_eq!(answer.status, 200, "{:?}", answer.stop);
}

#[tokio::test]
async fn limits_stay_within_what_one_has() {
    let cast = Cast::new().await;
    let bench = &cast.bench;
    let users = json!({"user_role": "internal_user", "max_budget": 5, "tpm_limit": 100, "models": ["small"]});
    bench.put(Table::User, "uma", users).await;
    let (of_uma, _) = bench.holder(json!({"user_id": "uma"})).await;
    let uma = bench.caller(&of_uma).await;
    // Ann has no limits of her own; this key of hers has.
    let bound = json!({"user_id": "ann", "max_budget": 2, "rpm_limit": 7, "budget_duration": "30d", "models": ["small"]});
    let (of_ann, _) = bench.holder(bound).await;
    let ann = bench.caller(&of_ann).await;
    let lia = cast.caller("lia").await;
    for (caller, body, field) in [
        (&uma, json!({"max_budget": 5.01}), "max_budget"),
        (&uma, json!({"tpm_limit": 101}), "tpm_limit"),
        (&uma, json!({"models": ["embed"]}), "models"),
        (&uma, json!({"models": ["*"]}), "models"),
        (&uma, json!({"models": ["all-proxy-models"]}), "models"),
        (&uma, json!({"models": ["all-team-models"]}), "models"),
        (
            &uma,
            json!({"models": ["small"], "aliases": {"small": "embed"}}),
            "aliases",
        ),
        (&ann, json!({"max_budget": 2.01}), "max_budget"),
        (&ann, json!({"rpm_limit": 8}), "rpm_limit"),
        (&ann, json!({"budget_duration": "1s"}), "budget_duration"),
        (&ann, json!({"models": ["embed"]}), "models"),
        (&lia, json!({"team_id": "red", "max_budget": 10.01}), "max_budget"),
        (&lia, json!({"team_id": "red", "models": ["embed"]}), "models"),
    ] {
        let answer = bench.call(caller, "POST /key/generate", body.to_string()).await;
        let stop = answer.stop.unwrap_or_else(|| panic!("{body} was taken"));
        assert_eq!(
            (answer.status, param(&stop)),
            (403, Some(field)),
            "{body}: {stop:?}"
        );
    }
    for (caller, body) in [
        (
            &uma,
            json!({"max_budget": 5, "tpm_limit": 100, "models": ["small"]}),
        ),
        (&uma, json!({})),
        (
            &lia,
            json!({"team_id": "red", "max_budget": 10, "models": ["all-team-models"]}),
        ),
    ] {
        let answer = bench.call(caller, "POST /key/generate", body.to_string()).await;
        assert_eq!(answer.status, 200, "{body}: {:?}", answer.stop);
    }
    // What goes with the key in hand is handed on.
    let made = bench.call(&ann, "POST /key/generate", "{}").await.body;
    assert_eq!(
        (
            &made["max_budget"],
            &made["rpm_limit"],
            &made["budget_duration"],
            &made["models"],
            &made["user_id"]
        ),
        (
            &json!(2.0),
            &json!(7),
            &json!("30d"),
            &json!(["small"]),
            &json!("ann")
        )
    );
    // And nobody frees a key from its own limits.
    for (body, field) in [
        (json!({"max_budget": null}), "max_budget"),
        (json!({"max_budget": 3}), "max_budget"),
        (json!({"rpm_limit": null}), "rpm_limit"),
        (json!({"budget_duration": null}), "budget_duration"),
        (json!({"models": []}), "models"),
        (json!({"models": ["embed"]}), "models"),
        (json!({"aliases": {"a": "embed"}}), "aliases"),
    ] {
        let mut body = body;
        body["key"] = json!(of_ann);
        let answer = bench.call(&ann, "POST /key/update", body.to_string()).await;
        let stop = answer.stop.unwrap_or_else(|| panic!("{body} was taken"));
        assert_eq!(
            (answer.status, param(&stop)),
            (403, Some(field)),
            "{body}: {stop:?}"
        );
    }
    let body = json!({"key": of_ann, "max_budget": 1, "rpm_limit": 5, "key_alias": "mine"});
    let answer = bench.call(&ann, "POST /key/update", body.to_string()).await;
    assert_eq!(answer.status, 200, "less is always possible: {:?}", answer.stop);
}

#[tokio::test]
async fn a_confined_key_makes_confined_keys() {
    let cast = Cast::new().await;
    let bench = &cast.bench;
    let confined = json!({"user_id": "ann", "allowed_routes": ["management_routes"]});
    let (secret, _) = bench.holder(confined).await;
    let ann = bench.caller(&secret).await;
    let made = bench.call(&ann, "POST /key/generate", "{}").await.body;
    assert_eq!(made["allowed_routes"], json!(["management_routes"]));
    refused(
        bench,
        &ann,
        "POST /key/generate",
        r#"{"key_type": "llm_api"}"#,
        403,
        "Leave 'key_type' out",
    )
    .await;
}

#[tokio::test]
async fn lists_show_what_one_may_see() {
    let cast = Cast::new().await;
    let bench = &cast.bench;
    for fields in [
        json!({"team_id": "red", "key_alias": "red-one"}),
        json!({"team_id": "red", "user_id": "mo", "key_alias": "red-two"}),
        json!({"team_id": "blue", "key_alias": "blue-one"}),
        json!({"user_id": "ann", "key_alias": "ann-one"}),
    ] {
        bench.holder(fields).await;
    }
    for (who, uri, want) in [
        ("master", "/key/list", 12),
        ("viewer", "/key/list", 12),
        ("ann", "/key/list", 2),
        ("plain", "/key/list", 1),
        ("lia", "/key/list", 1),
        ("lia", "/key/list?include_team_keys=true", 3),
        ("lia", "/key/list?team_id=red", 2),
        ("lia", "/key/list?team_id=red&user_id=mo", 1),
        ("mo", "/key/list", 2),
        ("mo", "/key/list?team_id=red", 1),
        ("master", "/key/list?search=RED-", 2),
        ("master", "/key/list?blocked=true", 0),
        ("master", "/key/list?user_id=mo", 2),
    ] {
        let body = bench.get(&cast.caller(who).await, uri).await;
        assert_eq!(body["total_count"], want, "{who} {uri}");
    }
    let body = bench.get(&cast.caller("lia").await, "/key/aliases").await;
    assert_eq!(body["aliases"], json!(["red-one", "red-two"]));
    let uri = "/key/list?sort_by=key_alias&sort_order=asc&return_full_object=true&size=2";
    let body = bench.get(&master(), uri).await;
    assert_eq!(
        (&body["keys"][0]["key_alias"], &body["keys"][1]["key_alias"]),
        (&json!("ann-one"), &json!("blue-one"))
    );
    refused(
        bench,
        &master(),
        "GET /key/list?sort_by=token",
        "",
        422,
        "'sort_by'",
    )
    .await;
}

#[tokio::test]
async fn members_make_keys_where_the_team_lets_them() {
    let cast = Cast::new().await;
    let bench = &cast.bench;
    let fields = json!({"members_with_roles": [{"user_id": "mo", "role": "user"}],
        "team_member_permissions": ["/key/generate"]});
    bench.put(Table::Team, "open", fields).await;
    let mo = cast.caller("mo").await;
    let made = bench
        .call(&mo, "POST /key/generate", r#"{"team_id": "open"}"#)
        .await;
    assert_eq!(made.body["user_id"], "mo", "{:?}", made.stop);
    let body = r#"{"team_id": "open", "user_id": "lia"}"#;
    refused(
        bench,
        &mo,
        "POST /key/generate",
        body,
        403,
        "only make and change keys for yourself",
    )
    .await;
    let body = r#"{"team_id": "open"}"#;
    refused(
        bench,
        &mo,
        "POST /key/service-account/generate",
        body,
        403,
        "only its admins",
    )
    .await;
}
