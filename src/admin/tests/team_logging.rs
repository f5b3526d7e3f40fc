//! Who is told of a team's calls: LiteLLM's calls for that, who may make them, and what stays hidden.

use super::teams::{as_user, no, ok, user};
use super::*;
use crate::store::AuditFilter;
use filters::contract::ports::Keys;

const SECRET: &str = "lf-secret-of-the-team";

fn callback(kind: &str) -> Value {
    json!({"callback_name": "langfuse", "callback_type": kind, "callback_vars": {
        "langfuse_public_key": "pk", "langfuse_secret_key": SECRET, "langfuse_host": "http://langfuse"}})
}

const CALLBACK: &str = "POST /team/red/callback";

async fn bench() -> Bench {
    let bench = Bench::new().await;
    let members = json!([{"role": "admin", "user_id": "ann"}, {"role": "user", "user_id": "bob"}]);
    let team = json!({"team_id": "red", "members_with_roles": members, "metadata": {"mine": 1}});
    bench.master("POST /team/new", team).await;
    bench
}

#[tokio::test]
async fn callbacks_come_and_go_and_no_secret_is_seen() {
    let bench = bench().await;
    let ann = as_user(&bench, "ann").await;
    let added = ok(&bench, &ann, CALLBACK, callback("success")).await;
    assert_eq!(
        (&added["status"], &added["data"]["team_id"]),
        (&json!("success"), &json!("red"))
    );
    no(
        &bench,
        &ann,
        CALLBACK,
        callback("success"),
        400,
        Some("callback_name"),
    )
    .await;
    let plain =
        json!({"callback_name": "langfuse_otel", "callback_vars": {"turn_off_message_logging": true}});
    ok(&bench, &ann, CALLBACK, plain).await;
    let shown = bench.get(&ann, "/team/red/callback").await;
    let want = json!({"team_id": "red", "success_callbacks": ["langfuse", "langfuse_otel"],
        "failure_callbacks": ["langfuse_otel"], "callback_vars": {"langfuse_public_key": "pk",
            "langfuse_secret_key": "***", "langfuse_host": "http://langfuse", "turn_off_message_logging": true}});
    assert_eq!(shown, json!({"status": "success", "data": want}));

    // What was shown, written back, changes nothing.
    let info = bench.get(&ann, "/team/info?team_id=red").await;
    let metadata = &info["team_info"]["metadata"];
    let kept = async || {
        bench
            .store
            .document(Table::Team, "red")
            .await
            .unwrap()
            .unwrap()
            .fields
    };
    let before = kept().await;
    ok(
        &bench,
        &ann,
        "POST /team/update",
        json!({"team_id": "red", "metadata": metadata}),
    )
    .await;
    assert_eq!(kept().await["metadata"], before["metadata"]);
    assert_eq!(before["metadata"]["mine"], 1);
    let rows = bench.store.audit(&AuditFilter::default()).await.unwrap();
    let of_team = rows
        .iter()
        .filter(|r| r.object_id == "red" && r.action == "updated");
    assert!(of_team.count() >= 2);
    for text in [
        format!("{before:?}"),
        format!("{rows:?}"),
        added.to_string(),
        info.to_string(),
    ] {
        assert!(!text.contains(SECRET), "{text}");
    }

    ok(&bench, &ann, "DELETE /team/red/callback/langfuse", json!({})).await;
    let left = bench.get(&ann, "/team/red/callback").await;
    assert_eq!(left["data"]["success_callbacks"], json!(["langfuse_otel"]));
    let gone = "DELETE /team/red/callback/langfuse";
    no(&bench, &ann, gone, Value::Null, 404, Some("callback_name")).await;

    let off = ok(&bench, &ann, "POST /team/red/disable_logging", json!({})).await;
    assert_eq!(off["message"], "Logging disabled for team red");
    let metadata = &kept().await["metadata"];
    assert_eq!(
        (&metadata["logging"], &metadata["tracing"]),
        (&json!([]), &json!("off"))
    );
    ok(&bench, &ann, CALLBACK, callback("failure")).await;
    assert_eq!(kept().await["metadata"].get("tracing"), None);
}

#[tokio::test]
async fn others_neither_see_nor_change_them() {
    let bench = bench().await;
    let bob = as_user(&bench, "bob").await;
    let viewer = user(&bench, "eve", Some("proxy_admin_viewer")).await;
    let (_, of_team) = bench.holder(json!({"team_id": "red"})).await;
    bench.master(CALLBACK, callback("success")).await;
    for (caller, status) in [(&bob, 403), (&viewer, 403), (&of_team, 401)] {
        no(&bench, caller, CALLBACK, callback("failure"), status, None).await;
        for route in [
            "DELETE /team/red/callback/langfuse",
            "POST /team/red/disable_logging",
        ] {
            no(&bench, caller, route, Value::Null, status, None).await;
        }
    }
    assert_eq!(
        bench.get(&viewer, "/team/red/callback").await["status"],
        "success"
    );
    for caller in [&bob, &of_team] {
        no(&bench, caller, "GET /team/red/callback", Value::Null, 403, None).await;
    }
    no(
        &bench,
        &master(),
        "GET /team/blue/callback",
        Value::Null,
        404,
        Some("team_id"),
    )
    .await;
}

#[tokio::test]
async fn what_cannot_be_told_is_refused_by_name() {
    let bench = bench().await;
    let with = |vars: Value| json!({"callback_name": "langfuse", "callback_vars": vars});
    let pair = |secret: &str| json!({"langfuse_public_key": "pk", "langfuse_secret_key": secret});
    for (body, field) in [
        (
            json!({"callback_name": "slack", "callback_vars": pair("s")}),
            "callback_name",
        ),
        (
            json!({"callback_name": "langfuse", "callback_type": "never", "callback_vars": pair("s")}),
            "callback_type",
        ),
        (with(json!({"gcs_bucket_name": "b"})), "callback_vars"),
        (
            with(pair("os.environ/DATABASE_URL")),
            "callback_vars.langfuse_secret_key",
        ),
        (with(pair("tk-sealed-1:AAAA")), "callback_vars"),
    ] {
        no(&bench, &master(), CALLBACK, body, 400, Some(field)).await;
    }
    for (body, field) in [
        (json!({"callback_vars": pair("s")}), "callback_name"),
        (json!({"callback_name": "langfuse"}), "callback_vars"),
        (with(json!({})), "callback_vars.langfuse_public_key"),
        (with(json!({"langfuse_host": 7})), "callback_vars.langfuse_host"),
        (
            with(json!({"langfuse_public_key": "pk"})),
            "callback_vars.langfuse_secret_key",
        ),
    ] {
        no(&bench, &master(), CALLBACK, body, 422, Some(field)).await;
    }
    let sealed = json!({"logging": [{"callback_vars": pair("tk-sealed-1:AAAA")}]});
    let team = json!({"team_id": "red", "metadata": sealed});
    no(
        &bench,
        &master(),
        "POST /team/update",
        team,
        400,
        Some("metadata.logging"),
    )
    .await;
    let key = json!({"metadata": sealed});
    no(
        &bench,
        &master(),
        "POST /key/generate",
        key,
        400,
        Some("metadata.logging"),
    )
    .await;
}

/// Whoever says so may make the next call at once, before anybody hears the news of it.
#[tokio::test]
async fn what_is_said_of_a_team_holds_for_its_next_call() {
    let bench = bench().await;
    let (secret, _) = bench.holder(json!({"team_id": "red"})).await;
    let hash = KeyHash::of(&secret);
    for (route, body) in [
        ("POST /team/red/disable_logging", Value::Null),
        ("POST /team/update", json!({"team_id": "red", "max_budget": 1})),
        ("POST /team/block", json!({"team_id": "red"})),
    ] {
        assert!(bench.keys.find(&hash).await.unwrap().is_some());
        assert!(bench.keys.cached(&hash).is_some());
        bench.master(route, body).await;
        assert!(bench.keys.cached(&hash).is_none(), "{route}");
    }
    let known = bench.keys.find(&hash).await.unwrap().unwrap();
    assert!(known.team.as_ref().unwrap().fields["blocked"] == true);
}
