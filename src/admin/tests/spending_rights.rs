//! Who may read what was spent, and what cannot be asked.

use super::spending::*;
use super::*;
use filters::model::money::Nanos;
use filters::model::record::Record;

#[tokio::test]
async fn everybody_reads_what_is_theirs() {
    let books = Books::new().await;
    let bench = &books.bench;
    for (user, role) in [
        ("root", "proxy_admin"),
        ("viewer", "proxy_admin_viewer"),
        ("alice", "internal_user"),
        ("lia", ""),
        ("mo", "internal_user"),
    ] {
        bench.put(Table::User, user, json!({"user_role": role})).await;
    }
    let members = json!([{"user_id": "lia", "role": "admin"}, {"user_id": "mo", "role": "user"}]);
    bench
        .put(Table::Team, "red", json!({"members_with_roles": members}))
        .await;
    let mut cast = vec![("master", master())];
    for user in ["root", "viewer", "lia", "mo"] {
        let secret = bench.holder(json!({"user_id": user})).await.0;
        cast.push((user, bench.caller(&secret).await));
    }
    let secret = bench
        .holder(json!({"permissions": {"get_spend_routes": true}}))
        .await
        .0;
    cast.push(("accountant", bench.caller(&secret).await));
    cast.push(("alice", bench.caller(&books.secrets[0]).await));
    // Bob has no row, so his key is just a key.
    cast.push(("bob", bench.caller(&books.secrets[2]).await));
    let secret = bench.holder(json!({})).await.0;
    cast.push(("plain", bench.caller(&secret).await));
    let bobs = KeyHash::of(&books.secrets[2]).hex();
    let mine = KeyHash::of(&books.secrets[1]).hex();

    // What each of them may: all, its user's calls, its key's, the team's, or nothing.
    let spend = |fits: &dyn Fn(&Record) -> bool| books.metrics(fits)["spend"].clone();
    let everything = spend(&|_| true);
    let of_alice = spend(&|r| text(&r.user_id) == "alice");
    let of_bobs_key = spend(&|r| key(r) == bobs);
    let of_red = spend(&|r| text(&r.team_id) == "red");
    let nothing = json!(Nanos(0));
    for (who, caller) in &cast {
        let all = matches!(*who, "master" | "root" | "viewer" | "accountant");
        let own = match *who {
            _ if all => &everything,
            "alice" => &of_alice,
            "bob" => &of_bobs_key,
            _ => &nothing,
        };
        let answer = bench.get(caller, &format!("/user/daily/activity?{SPAN}")).await;
        assert_eq!(&answer["metadata"]["total_spend"], own, "{who}");
        let teams = bench.get(caller, &format!("/team/daily/activity?{SPAN}")).await;
        let of_teams = if *who == "lia" { &of_red } else { own };
        assert_eq!(&teams["metadata"]["total_spend"], of_teams, "{who}");
        let sum = |list: &Value, name: &str| -> Nanos {
            let list = list.as_array().unwrap();
            list.iter()
                .map(|e| Nanos::from_dollars_f64(e[name].as_f64().unwrap()).unwrap())
                .sum()
        };
        for (path, name) in [
            ("/global/spend/logs", "spend"),
            ("/global/spend/keys", "total_spend"),
            ("/global/spend/models", "total_spend"),
            ("/global/spend/provider", "spend"),
        ] {
            let list = bench.get(caller, &format!("{path}?{SPAN}")).await;
            assert_eq!(&json!(sum(&list, name)), own, "{who} {path}");
        }
        let logs = bench.get(caller, "/spend/logs?limit=5000").await;
        assert_eq!(&json!(sum(&logs, "spend")), own, "{who}");
        let activity = bench.get(caller, &format!("/global/activity?{SPAN}")).await;
        assert_eq!(
            activity["sum_api_requests"],
            logs.as_array().unwrap().len(),
            "{who}"
        );

        // What is everybody's, or another's.
        let status = async |route: &str| bench.call(caller, route, "").await.status;
        for route in [
            "GET /global/spend".to_string(),
            format!("GET /global/spend/teams?{SPAN}"),
            format!("GET /global/spend/tags?{SPAN}"),
            format!("GET /global/spend/report?{SPAN}"),
            format!("GET /tag/daily/activity?{SPAN}"),
            format!("GET /customer/daily/activity?{SPAN}"),
            "GET /spend/tags".into(),
            "POST /global/spend/end_users".into(),
        ] {
            assert_eq!(status(&route).await, if all { 200 } else { 401 }, "{who} {route}");
        }
        for (more, may) in [
            ("user_id=alice", *who == "alice"),
            ("user_id=bob", *who == "bob"),
            ("team_id=red", *who == "lia"),
            ("team_id=blue", false),
            ("organization_id=org", false),
            (&format!("api_key={bobs}"), matches!(*who, "bob" | "lia")),
            (&format!("api_key={mine}"), matches!(*who, "alice" | "lia")),
            ("api_key=sk-unknown", false),
        ] {
            for path in [
                "/spend/logs",
                "/spend/logs/ui",
                "/user/daily/activity",
                "/global/spend/models",
                "/global/activity",
            ] {
                let got = status(&format!("GET {path}?{SPAN}&{more}")).await;
                assert_eq!(got, if all || may { 200 } else { 403 }, "{who} {path} {more}");
            }
        }
        for (path, team) in [
            ("team", "team_ids=red"),
            ("team", "team_ids=red,blue"),
            ("organization", "organization_ids=org"),
        ] {
            let got = status(&format!("GET /{path}/daily/activity?{SPAN}&{team}")).await;
            let may = all || (*who == "lia" && team == "team_ids=red");
            assert_eq!(got, if may { 200 } else { 403 }, "{who} {team}");
        }
        let reset = if *who == "master" { 400 } else { 401 };
        assert_eq!(status("POST /global/spend/reset").await, reset, "{who}");
        let users = status("GET /spend/users?user_id=bob").await;
        assert_eq!(users, if all || *who == "bob" { 200 } else { 403 }, "{who}");
    }
    // A team's admin sees of a key what it spent for the team.
    let (_, lia) = &cast[3];
    let rows = bench
        .get(lia, &format!("/spend/logs?limit=5000&api_key={bobs}"))
        .await;
    let want = books
        .calls
        .iter()
        .filter(|r| key(r) == bobs && text(&r.team_id) == "red");
    assert_eq!(rows.as_array().unwrap().len(), want.count());
    let (_, alice) = &cast[6];
    let others = books.calls.iter().find(|r| text(&r.user_id) == "bob").unwrap();
    for id in [others.request_id.as_str(), "no-such-call", "%00"] {
        let route = format!("GET /spend/logs/ui/{id}");
        refused(
            bench,
            alice,
            &route,
            "",
            403,
            "Non-admin users can only view their own spend data",
        )
        .await;
    }
    refused(
        bench,
        &master(),
        "GET /spend/logs/ui/no-such-call",
        "",
        404,
        "no call",
    )
    .await;
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_by_name() {
    let bench = Bench::new().await;
    let long = "x".repeat(513);
    for (route, status, name) in [
        ("user/daily/activity", 400, "start_date"),
        ("user/daily/activity?start_date=2026-11-20", 400, "end_date"),
        ("team/daily/activity?end_date=2026-11-20", 400, "start_date"),
        (
            "tag/daily/activity?start_date=2026-11-20&end_date=soon",
            400,
            "end_date",
        ),
        (
            "customer/daily/activity?start_date=0001-01-01&end_date=9999-12-31",
            400,
            "start_date",
        ),
        (
            "organization/daily/activity?start_date=2025-01-01&end_date=2026-11-20",
            400,
            "start_date",
        ),
        (
            "user/daily/activity?start_date=1970-01-01&end_date=9999-12-31",
            400,
            "start_date",
        ),
        (
            "user/daily/activity?start_date=2026-11-21&end_date=2026-11-20",
            400,
            "start_date",
        ),
        (
            "user/daily/activity?start_date=-9999-01-01&end_date=2026-11-20",
            400,
            "start_date",
        ),
        ("global/activity", 400, "start_date"),
        (
            "global/activity/model?start_date=2026-02-29&end_date=2026-03-01",
            400,
            "start_date",
        ),
        ("global/spend/report?start_date=2026-11-01", 400, "end_date"),
        ("global/spend/logs?start_date=9999-12-32", 400, "start_date"),
        ("global/spend/keys?limit=1001", 422, "limit"),
        ("global/spend/keys?limit=-1", 422, "limit"),
        ("spend/keys?limit=many", 422, "limit"),
        ("spend/logs?sort_by=model", 422, "sort_by"),
        ("spend/logs?sort_order=up", 422, "sort_order"),
        ("spend/logs?status=odd", 422, "status"),
        ("spend/logs?http_status=6xx", 422, "http_status"),
        ("spend/logs?http_status=99999", 422, "http_status"),
        ("spend/logs?min_spend=-1", 400, "min_spend"),
        ("spend/logs?min_spend=NaN", 422, "min_spend"),
        ("spend/logs?max_spend=1e300", 400, "max_spend"),
        ("spend/logs?after=nonsense!", 400, "after"),
        ("spend/logs?after=MTIzOmE&page=2", 400, "after"),
        ("spend/logs?ended_after=-5", 400, "ended_after"),
        ("spend/logs?ended_after=later", 400, "ended_after"),
        ("spend/logs?timezone=9999999999999999999", 422, "timezone"),
        ("spend/logs?timezone=900", 422, "timezone"),
        ("spend/logs?summarize=true&tag=a", 400, "summarize"),
        ("spend/logs/ui?start_date=soon", 400, "start_date"),
        ("spend/logs/ui?page_size=0", 422, "page_size"),
    ] {
        let answer = bench.call(&master(), &format!("GET /{route}"), "").await;
        let stop = answer
            .stop
            .unwrap_or_else(|| panic!("{route}: {}", answer.status));
        assert_eq!(
            (answer.status, param(&stop)),
            (status, Some(name)),
            "{route}: {stop:?}"
        );
    }
    let span = "start_date=2026-11-01&end_date=2026-11-20";
    for (route, status, name) in [
        (format!("user/daily/activity?{span}&page=0"), 422, "page"),
        (
            format!("user/daily/activity?{span}&page_size=1001"),
            422,
            "page_size",
        ),
        (
            format!("user/daily/activity?{span}&breakdown=colours"),
            422,
            "breakdown",
        ),
        (format!("tag/daily/activity?{span}&api_key=sk-x"), 400, "api_key"),
        (
            format!("global/spend/report?{span}&group_by=colour"),
            422,
            "group_by",
        ),
        (
            format!("global/spend/report?{span}&group_by=team&customer_id=eve"),
            400,
            "customer_id",
        ),
        (
            format!("global/spend/report?{span}&group_by=customer&team_id=red"),
            400,
            "customer_id",
        ),
        (format!("spend/logs?search={long}"), 400, "search"),
        (
            format!("global/spend/tags?tags={}", "a,".repeat(1_001)),
            400,
            "tags",
        ),
    ] {
        let answer = bench.call(&master(), &format!("GET /{route}"), "").await;
        let stop = answer
            .stop
            .unwrap_or_else(|| panic!("{route}: {}", answer.status));
        assert_eq!(
            (answer.status, param(&stop)),
            (status, Some(name)),
            "{route}: {stop:?}"
        );
    }
    for (route, body, status, name) in [
        ("spend/calculate", json!({}), 400, "model"),
        (
            "spend/calculate",
            json!({"model": "unknown", "messages": []}),
            400,
            "model",
        ),
        // Known, and without a price.
        (
            "spend/calculate",
            json!({"model": "small", "messages": []}),
            400,
            "model",
        ),
        ("spend/calculate", json!({"model": "small"}), 400, "messages"),
        (
            "spend/calculate",
            json!({"model": "small", "messages": "hello"}),
            422,
            "messages",
        ),
        ("spend/calculate", json!({"model": 7}), 422, "model"),
        (
            "spend/calculate",
            json!({"completion_response": "x"}),
            422,
            "completion_response",
        ),
        (
            "spend/calculate",
            json!({"completion_response": {"usage": {"total_tokens": 1}}}),
            400,
            "model",
        ),
        (
            "spend/calculate",
            json!({"completion_response": {"model": "small", "usage": {"total_tokens": "many"}}}),
            400,
            "completion_response",
        ),
        (
            "spend/calculate",
            json!({"model": "small", "messages": [], "call_type": "dance"}),
            400,
            "call_type",
        ),
        (
            "global/spend/end_users",
            json!({"startTime": "soon"}),
            400,
            "startTime",
        ),
        ("global/spend/end_users", json!({"endTime": 7}), 422, "endTime"),
        (
            "global/spend/end_users",
            json!({"api_key": "sk-x"}),
            400,
            "api_key",
        ),
        (
            "global/spend/end_users",
            json!({"startTime": "1970-01-01", "endTime": "9999-12-31"}),
            400,
            "start_date",
        ),
    ] {
        let answer = bench
            .call(&master(), &format!("POST /{route}"), body.to_string())
            .await;
        let stop = answer
            .stop
            .unwrap_or_else(|| panic!("{route} {body}: {}", answer.status));
        assert_eq!(
            (answer.status, param(&stop)),
            (status, Some(name)),
            "{route} {body}: {stop:?}"
        );
    }
    refused(
        &bench,
        &master(),
        "POST /global/spend/reset",
        "",
        400,
        "'budget_duration'",
    )
    .await;
    // Days without calls are an answer.
    let empty = bench
        .get(&master(), &format!("/user/daily/activity?{span}"))
        .await;
    assert_eq!(
        (&empty["results"], &empty["metadata"]["total_pages"]),
        (&json!([]), &json!(1))
    );
    let far = "/user/daily/activity?start_date=9999-01-01&end_date=9999-12-31&timezone=840";
    assert_eq!(bench.get(&master(), far).await["results"], json!([]));
}

#[tokio::test]
async fn what_is_too_much_says_what_to_ask() {
    let bench = Bench::new().await;
    let mut calls = calls(&[], 1);
    let one = calls.remove(0);
    for n in 0..25 {
        let batch: Vec<Record> = (0..1_000)
            .map(|i| Record {
                request_id: format!("{n} {i}"),
                started_micros: NOON - (n % 2) * DAY,
                key_hash: Some(KeyHash::of(&format!("{n} {i}"))),
                user_id: Some("alice".into()),
                spend_nanos: 1,
                ..one.clone()
            })
            .collect();
        bench.store.append(&batch).await.unwrap();
    }
    let uri = |more: &str| format!("GET /user/daily/activity?{SPAN}{more}");
    refused(&bench, &master(), &uri(""), "", 400, "smaller 'page_size'").await;
    for more in [
        "&page_size=1",
        "&breakdown=models,entities",
        "&breakdown=api_keys",
    ] {
        let answer = bench.call(&master(), &uri(more), "").await;
        assert_eq!(answer.status, 200, "{more}: {:?}", answer.stop);
        assert_eq!(
            answer.body["metadata"]["total_spend"].to_string(),
            "0.000025",
            "{more}"
        );
    }
}
