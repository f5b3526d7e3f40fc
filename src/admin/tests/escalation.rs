//! What somebody might try who wants more than was given to them: another's rights, another's money, a key
//! that outlives its reason.

use super::*;

impl Bench {
    /// Whoever holds this key, as the gateway knows it.
    async fn let_in(&self, secret: &str) -> Caller {
        use filters::contract::ports::Keys;
        let hash = KeyHash::of(secret);
        self.keys.doubt_all();
        Caller::Key(self.keys.find(&hash).await.unwrap().unwrap())
    }

    /// A call that works.
    async fn does(&self, caller: &Caller, route: &str, body: Value) -> Value {
        let answer = self.call(caller, route, body.to_string()).await;
        assert_eq!(answer.status, 200, "{route} {body}: {:?}", answer.stop);
        answer.body
    }

    /// A call that is refused with this status, about this field.
    async fn denies(&self, caller: &Caller, route: &str, body: Value, status: u16, field: Option<&str>) {
        let answer = self.call(caller, route, body.to_string()).await;
        let stop = answer
            .stop
            .unwrap_or_else(|| panic!("{route} {body} was taken: {}", answer.body));
        assert_eq!(
            (answer.status, param(&stop)),
            (status, field),
            "{route} {body}: {stop:?}"
        );
    }
}

fn secret(made: &Value) -> &str {
    made["key"].as_str().unwrap()
}

/// The root, who is a proxy admin; Ann, who makes her own keys; and Lia, who leads a team.
async fn with_team() -> (Bench, Caller) {
    let bench = Bench::new().await;
    bench
        .put(Table::User, "root", json!({"user_role": "proxy_admin"}))
        .await;
    bench
        .put(Table::User, "ann", json!({"user_role": "internal_user"}))
        .await;
    bench
        .put(Table::User, "lia", json!({"user_role": "internal_user"}))
        .await;
    let members = json!([{"user_id": "lia", "role": "admin"}]);
    bench
        .put(Table::Team, "red", json!({"members_with_roles": members}))
        .await;
    let (lia, _) = bench.holder(json!({"user_id": "lia"})).await;
    let lia = bench.let_in(&lia).await;
    (bench, lia)
}

#[tokio::test]
async fn a_key_that_is_made_for_an_admin_makes_nobody_an_admin() {
    let (bench, lia) = with_team().await;
    let (of_ann, _) = bench.holder(json!({"user_id": "ann"})).await;
    for user in ["root", "ann"] {
        let member = json!({"team_id": "red", "member": {"user_id": user, "role": "user"}});
        bench.does(&lia, "POST /team/member_add", member).await;
    }
    let made = bench
        .does(
            &lia,
            "POST /key/generate",
            json!({"team_id": "red", "user_id": "root"}),
        )
        .await;
    let given = bench
        .does(&lia, "POST /key/generate", json!({"team_id": "red"}))
        .await;
    let body = json!({"key": secret(&given), "user_id": "root"});
    bench.does(&lia, "POST /key/update", body).await;
    // Root's own key for the team: its secret is root's until somebody else rotates it.
    let (own, _) = bench.holder(json!({"team_id": "red", "user_id": "root"})).await;
    let root = bench.let_in(&own).await;
    assert_eq!(bench.call(&root, "GET /user/list", "").await.status, 200);
    let rotated = bench
        .does(&lia, "POST /key/regenerate", json!({"key": own}))
        .await;
    for key in [&made, &given, &rotated] {
        let caller = bench.let_in(secret(key)).await;
        assert!(!caller.is_admin());
        bench
            .denies(&caller, "POST /key/generate", json!({}), 401, None)
            .await;
        bench
            .denies(&caller, "GET /user/list", json!({}), 401, None)
            .await;
        let row = bench.get(&caller, "/key/info").await;
        assert_eq!(row["info"]["lent_by"], "lia");
        // It goes on being what it is: a key that calls models, sees itself and rotates itself.
        let again = bench.does(&caller, "POST /key/regenerate", json!({})).await;
        let caller = bench.let_in(secret(&again)).await;
        bench
            .denies(&caller, "GET /user/list", json!({}), 401, None)
            .await;
    }
    // Nor does one get at what is Ann's.
    let made = bench
        .does(
            &lia,
            "POST /key/generate",
            json!({"team_id": "red", "user_id": "ann"}),
        )
        .await;
    let caller = bench.let_in(secret(&made)).await;
    bench
        .denies(&caller, "POST /key/regenerate", json!({"key": of_ann}), 403, None)
        .await;
    bench
        .denies(&caller, "POST /key/delete", json!({"keys": [of_ann]}), 401, None)
        .await;
    let info = format!("GET /key/info?key={of_ann}");
    assert_eq!(bench.call(&caller, &info, "").await.status, 403);
    assert_eq!(bench.get(&caller, "/key/list").await["total_count"], 1);
}

#[tokio::test]
async fn nobody_leaves_a_named_budget() {
    let bench = Bench::new().await;
    bench
        .put(Table::User, "ann", json!({"user_role": "internal_user"}))
        .await;
    let budget = json!({"budget_id": "small", "max_budget": 5, "budget_duration": "30d", "rpm_limit": 10,
        "model_max_budget": {"small": 1}});
    bench.master("POST /budget/new", budget).await;
    let (key, _) = bench
        .holder(json!({"user_id": "ann", "budget_id": "small", "tags": ["cheap"]}))
        .await;
    let ann = bench.let_in(&key).await;
    for (field, value) in [
        ("max_budget", json!(1000)),
        ("rpm_limit", json!(11)),
        ("budget_duration", json!("1s")),
        ("model_max_budget", json!({"small": 100})),
    ] {
        let update = json!({"key": key, field: value});
        bench
            .denies(&ann, "POST /key/update", update, 403, Some(field))
            .await;
        let new = json!({field: value});
        bench
            .denies(&ann, "POST /key/generate", new, 403, Some(field))
            .await;
    }
    let made = bench.does(&ann, "POST /key/generate", json!({})).await;
    assert_eq!(
        (
            &made["max_budget"],
            &made["rpm_limit"],
            &made["budget_duration"],
            &made["tags"]
        ),
        (&json!(5.0), &json!(10), &json!("30d"), &json!(["cheap"]))
    );
    assert_eq!(made["model_max_budget"]["small"], json!(1.0));
    // The budget stays for as long as a key names it.
    bench
        .denies(
            &master(),
            "POST /budget/delete",
            json!({"id": "small"}),
            400,
            Some("id"),
        )
        .await;
    bench.master("POST /key/delete", json!({"keys": [key]})).await;
    bench.master("POST /budget/delete", json!({"id": "small"})).await;
}

#[tokio::test]
async fn what_an_organizations_admin_makes_stays_within_it() {
    let bench = Bench::new().await;
    bench
        .put(Table::User, "ora", json!({"user_role": "internal_user"}))
        .await;
    let members = json!([{"user_id": "ora", "user_role": "org_admin"}]);
    for org in ["acme", "umbrella"] {
        bench
            .put(
                Table::Organization,
                org,
                json!({"organization_alias": org, "members": members, "max_budget": 10}),
            )
            .await;
    }
    let team =
        json!({"organization_id": "acme", "members_with_roles": [{"user_id": "ora", "role": "admin"}]});
    bench.put(Table::Team, "red", team).await;
    let (ora, _) = bench.holder(json!({"user_id": "ora"})).await;
    let ora = bench.let_in(&ora).await;
    let body = json!({"user_id": "eve", "organizations": ["acme"], "user_role": "internal_user"});
    let made = bench.does(&ora, "POST /user/new", body).await;
    let eve = bench.let_in(secret(&made)).await;
    assert_eq!(eve.key().unwrap().organization_id(), Some("acme"));
    let more = bench.does(&eve, "POST /key/generate", json!({})).await;
    assert_eq!(more["organization_id"], "acme");
    for body in [
        json!({"organization_id": null}),
        json!({"organization_id": "umbrella"}),
    ] {
        bench
            .denies(&eve, "POST /key/generate", body, 403, Some("organization_id"))
            .await;
    }
    // Nor does she become somebody whom only keys or teams know.
    bench.holder(json!({"user_id": "carol"})).await;
    let members = json!([{"user_id": "carl", "role": "user"}]);
    bench
        .put(Table::Team, "blue", json!({"members_with_roles": members}))
        .await;
    for id in ["carol", "carl", "default_user_id"] {
        let body = json!({"user_id": id, "organizations": ["acme"]});
        bench
            .denies(&ora, "POST /user/new", body, 409, Some("user_id"))
            .await;
    }
    // A team's key is charged to the team's organization and to no other.
    let body = json!({"team_id": "red", "organization_id": "umbrella"});
    bench
        .denies(&ora, "POST /key/generate", body, 403, Some("organization_id"))
        .await;
    bench
        .does(
            &ora,
            "POST /key/generate",
            json!({"team_id": "red", "organization_id": "acme"}),
        )
        .await;
}

#[tokio::test]
async fn who_leads_a_team_does_not_widen_what_its_keys_may_call() {
    let (bench, lia) = with_team().await;
    let (key, _) = bench
        .holder(json!({"team_id": "red", "allowed_routes": ["/v1/embeddings"], "key_type": "llm_api"}))
        .await;
    for kind in ["default", "management", "llm_api"] {
        for route in ["POST /key/update", "POST /key/regenerate"] {
            let body = json!({"key": key, "key_type": kind});
            bench.denies(&lia, route, body, 403, Some("key_type")).await;
        }
    }
    let (open, _) = bench.holder(json!({"team_id": "red"})).await;
    let row = bench
        .does(
            &lia,
            "POST /key/update",
            json!({"key": open, "key_type": "llm_api"}),
        )
        .await;
    assert_eq!(
        row["allowed_routes"],
        json!(["llm_api_routes"]),
        "narrower is possible"
    );
}

#[tokio::test]
async fn an_old_secret_does_not_outlive_its_grace() {
    let bench = Bench::new().await;
    bench
        .put(Table::User, "ann", json!({"user_role": "internal_user"}))
        .await;
    let (old, _) = bench.holder(json!({"user_id": "ann"})).await;
    let body = json!({"key": old, "grace_period": "1d"});
    let new = bench.master("POST /key/regenerate", body).await;
    let Caller::Key(holder) = bench.let_in(&old).await else {
        panic!("a key")
    };
    let mut noted = Holder::clone(&holder);
    noted.by_old_secret = true;
    let thief = Caller::Key(Arc::new(noted));
    for (route, body) in [
        ("POST /key/regenerate", json!({})),
        ("POST /key/generate", json!({})),
        ("POST /key/regenerate", json!({"key": secret(&new)})),
    ] {
        bench.denies(&thief, route, body, 403, None).await;
    }
    assert!(bench.row(secret(&new)).await.is_some());
}

#[tokio::test]
async fn who_leads_a_team_does_not_take_over_what_its_keys_may_do_elsewhere() {
    let (bench, lia) = with_team().await;
    let fields = json!({"team_id": "red", "permissions": {"get_spend_routes": true}});
    let (key, _) = bench.holder(fields).await;
    bench
        .denies(&lia, "POST /key/regenerate", json!({"key": key}), 401, None)
        .await;
    let caller = bench.let_in(&key).await;
    bench.does(&caller, "POST /key/regenerate", json!({})).await;
}

#[tokio::test]
async fn who_is_no_admin_fills_no_lists() {
    let (bench, lia) = with_team().await;
    let metadata = json!({"a": "x".repeat(20_000)});
    for body in [
        json!({"metadata": metadata}),
        json!({"metadata": metadata, "team_id": "red"}),
    ] {
        bench
            .denies(&lia, "POST /key/generate", body, 400, Some("metadata"))
            .await;
    }
}

#[tokio::test]
async fn no_key_outlives_a_team_that_is_deleted_meanwhile() {
    for round in 0..8 {
        let (bench, lia) = with_team().await;
        let bench = Arc::new(bench);
        let makers = (0..8).map(|_| {
            let (bench, lia) = (Arc::clone(&bench), lia.clone());
            tokio::spawn(async move {
                for _ in 0..6 {
                    bench
                        .call(&lia, "POST /key/generate", r#"{"team_id": "red"}"#)
                        .await;
                }
            })
        });
        let makers: Vec<_> = makers.collect();
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        bench
            .master("POST /team/delete", json!({"team_ids": ["red"]}))
            .await;
        for maker in makers {
            maker.await.unwrap();
        }
        let left = bench.get(&master(), "/key/list?team_id=red").await;
        assert_eq!(left["total_count"], 0, "round {round}");
    }
}

#[tokio::test]
async fn what_a_keys_calls_must_hold_goes_for_the_keys_it_makes() {
    let bench = Bench::new().await;
    bench
        .put(Table::User, "ann", json!({"user_role": "internal_user"}))
        .await;
    let (own, _) = bench
        .holder(json!({"user_id": "ann", "metadata": {"enforced_params": ["user"]}}))
        .await;
    let ann = bench.let_in(&own).await;
    let made = bench.does(&ann, "POST /key/generate", json!({})).await;
    assert_eq!(made["enforced_params"], json!(["user"]));
    for key in [own.as_str(), secret(&made)] {
        for given in [json!([]), json!(null), json!(["model"])] {
            bench
                .denies(
                    &ann,
                    "POST /key/update",
                    json!({"key": key, "enforced_params": given}),
                    403,
                    Some("enforced_params"),
                )
                .await;
        }
        // What is said of it there alone changes nothing.
        bench
            .does(&ann, "POST /key/update", json!({"key": key, "metadata": {}}))
            .await;
        assert_eq!(
            bench.row(key).await.unwrap().extra["enforced_params"],
            json!(["user"])
        );
    }
}

#[tokio::test]
async fn an_organizations_admin_sees_its_users_alone() {
    let bench = Bench::new().await;
    for (org, members) in [
        ("acme", ["ora", "ann"]),
        ("umbrella", ["bob", "ora"]),
        ("empty", ["carl", "dan"]),
    ] {
        let role = |user: &str| {
            if user == "ora" && org == "acme" {
                "org_admin"
            } else {
                "internal_user"
            }
        };
        let members: Vec<Value> = members
            .iter()
            .map(|u| json!({"user_id": u, "user_role": role(u)}))
            .collect();
        bench
            .put(
                Table::Organization,
                org,
                json!({"organization_alias": org, "members": members}),
            )
            .await;
        let ann = json!([{"user_id": "ann", "role": "admin"}, {"user_id": "bob", "role": "user"}]);
        bench
            .put(
                Table::Team,
                &format!("of {org}"),
                json!({"organization_id": org, "members_with_roles": ann}),
            )
            .await;
    }
    for user in ["ora", "ann", "bob", "carl"] {
        bench
            .put(
                Table::User,
                user,
                json!({"user_role": "internal_user", "user_email": format!("{user}@example.com")}),
            )
            .await;
    }
    let (ora, _) = bench.holder(json!({"user_id": "ora"})).await;
    let ora = bench.let_in(&ora).await;
    let seen = async |query: &str| {
        let answer = bench
            .get(&ora, &format!("/user/list?sort_by=user_id{query}"))
            .await;
        let users = answer["users"].as_array().unwrap();
        assert_eq!(answer["total"], users.len());
        users
            .iter()
            .map(|u| u["user_id"].as_str().unwrap().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(seen("").await, ["ann", "ora"]);
    assert_eq!(seen("&user_ids=ann,bob,carl").await, ["ann"]);
    assert_eq!(seen("&search=example").await, ["ann", "ora"]);
    assert_eq!(seen("&user_email=bob").await, [""; 0]);
    assert_eq!(
        seen("&team=of%20acme").await,
        ["ann"],
        "bob is no member of the organization"
    );
    let teams = &bench.get(&ora, "/user/list?user_ids=ann").await["users"][0]["teams"];
    assert_eq!(*teams, json!(["of acme"]));
    bench
        .denies(
            &ora,
            "GET /user/list?team=of%20umbrella",
            json!({}),
            404,
            Some("team_id"),
        )
        .await;
    for user in ["ann", "bob"] {
        let (key, _) = bench.holder(json!({"user_id": user})).await;
        let caller = bench.let_in(&key).await;
        bench
            .denies(&caller, "GET /user/list", json!({}), 401, None)
            .await;
    }
}
