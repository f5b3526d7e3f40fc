//! Models of the database: what is taken, what is refused, what is shown, who may.

use super::*;
use crate::store::DocFilter;

fn wanted(id: &str) -> Value {
    json!({
        "model_name": "added",
        "litellm_params": {
            "model": "openai/gpt-4.1", "api_base": "http://127.0.0.1:9/v1", "api_key": "very-private-1",
            "extra_headers": {"x-team": "very-private-2"}, "extra_body": {"secret_list": ["very-private-3"]},
            "rpm": 7, "temperature": 0.5, "base_model": "gpt-4.1",
        },
        "model_info": {"id": id, "mode": "chat", "client_secret": "very-private-4", "db_model": false},
    })
}

#[tokio::test]
async fn a_model_comes_changes_and_goes() {
    let bench = Bench::new().await;
    let made = bench.master("POST /model/new", wanted("one")).await;
    assert_eq!(
        (
            &made["model_id"],
            &made["in_use"],
            &made["model_info"]["db_model"]
        ),
        (&json!("one"), &json!(true), &json!(true)),
        "{made}"
    );
    let all = bench.get(&master(), "/model/info").await;
    let one = bench.get(&master(), "/v1/model/info?litellm_model_id=one").await;
    assert_eq!(all["data"].as_array().unwrap().len(), 2);
    let shown = &one["data"][0];
    assert_eq!(shown["litellm_params"]["rpm"], 7);
    assert_eq!(shown["litellm_params"]["api_base"], "http://127.0.0.1:9/v1");
    assert_eq!(shown["model_info"]["max_output_tokens"], 32768, "{shown}");
    assert_eq!(shown["model_info"]["supports_vision"], true);
    assert!(shown["model_info"]["input_cost_per_token"].as_f64().unwrap() > 0.0);
    let groups = bench.get(&master(), "/model_group/info?model_group=added").await;
    assert_eq!(
        (&groups["data"][0]["providers"], &groups["data"][0]["rpm"]),
        (&json!(["openai"]), &json!(7))
    );
    let page = bench.get(&master(), "/v2/model/info?size=1&page=2").await;
    assert_eq!(
        (&page["total_count"], &page["total_pages"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(page["data"][0]["model_name"], "added");

    let change = json!({"model_name": "renamed", "litellm_params": {"rpm": null, "tpm": 9}});
    let changed = bench.master("PATCH /model/one/update", change).await;
    let params = &changed["litellm_params"];
    assert_eq!(
        (&params["rpm"], &params["tpm"], &params["model"]),
        (&Value::Null, &json!(9), &json!("openai/gpt-4.1"))
    );
    let change = json!({"model_info": {"id": "one", "mode": "completion"}});
    bench.master("POST /model/update", change).await;
    let one = bench.get(&master(), "/model/info?litellm_model_id=one").await;
    assert_eq!(one["data"][0]["model_info"]["mode"], "completion");
    let rows = bench
        .store
        .documents(Table::Model, &DocFilter::default())
        .await
        .unwrap();
    let audit = bench.get(&master(), "/audit?table_name=model").await;
    assert_eq!(audit["audit_logs"].as_array().unwrap().len(), 3);
    for text in [
        format!("{:?}", rows.docs),
        audit.to_string(),
        made.to_string(),
        one.to_string(),
    ] {
        // What stands in model_info is not sealed, and never shown.
        let text = text.replace(
            "very-private-4",
            if text.starts_with("[Doc") {
                ""
            } else {
                "very-private-4"
            },
        );
        assert!(!text.contains("very-private"), "{text}");
    }
    let gone = bench.master("POST /model/delete", json!({"id": "one"})).await;
    assert_eq!(gone["message"], "Model: one deleted successfully");
    assert_eq!(
        bench.get(&master(), "/model/info").await["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_with_the_reason() {
    let bench = Bench::new().await;
    let params = |params: Value| json!({"model_name": "x", "litellm_params": params}).to_string();
    for (body, status, says) in [
        (params(json!({"model": "openai/x", "rpm": "many"})), 400, "rpm"),
        (params(json!({"model": "nobody-knows/x"})), 400, "provider"),
        (params(json!({"api_key": "x"})), 400, "model"),
        (
            params(json!({"model": "openai/x", "api_base": "ftp://x"})),
            400,
            "http",
        ),
        (
            params(json!({"model": "openai/x", "input_cost_per_token": -1})),
            400,
            "cost",
        ),
        (
            params(json!({"model": "openai/x", "api_key": "tk-sealed-1:AAAA"})),
            400,
            "sealed",
        ),
        (
            params(json!({"model": "openai/x", "api_key": "os.environ/LITELLM_SALT_KEY"})),
            400,
            "gateway's own",
        ),
        (r#"{"model_name": "x"}"#.into(), 422, "litellm_params"),
        (
            r#"{"litellm_params": {"model": "openai/x"}}"#.into(),
            422,
            "model_name",
        ),
        (
            r#"{"model_name": "x", "litellm_params": "y"}"#.into(),
            422,
            "litellm_params",
        ),
        (wanted("of-the-config").to_string(), 400, "in the config"),
    ] {
        refused(&bench, &master(), "POST /model/new", &body, status, says).await;
    }
    let team = json!({"model_name": "x", "litellm_params": {"model": "openai/x", "api_key": "k"}, "model_info": {"team_id": "t"}});
    refused(
        &bench,
        &master(),
        "POST /model/new",
        &team.to_string(),
        400,
        "team_id",
    )
    .await;
    let none = r#"{"model_info": {"id": "none"}}"#;
    refused(
        &bench,
        &master(),
        "POST /model/update",
        none,
        400,
        "not found in db",
    )
    .await;
    refused(
        &bench,
        &master(),
        "PATCH /model/none/update",
        "{}",
        404,
        "not found on proxy",
    )
    .await;
    let config = r#"{"model_info": {"id": "of-the-config"}}"#;
    refused(
        &bench,
        &master(),
        "POST /model/update",
        config,
        400,
        "Model in config",
    )
    .await;
    let config = r#"{"id": "of-the-config"}"#;
    refused(
        &bench,
        &master(),
        "POST /model/delete",
        config,
        400,
        "not found in db",
    )
    .await;
    refused(
        &bench,
        &master(),
        "GET /model/info?litellm_model_id=none",
        "",
        400,
        "not found",
    )
    .await;
    bench.master("POST /model/new", wanted("one")).await;
    let again = wanted("one").to_string();
    refused(&bench, &master(), "POST /model/new", &again, 409, "exists").await;
    // A change that breaks it changes nothing.
    let broken = r#"{"litellm_params": {"rpm": "many"}}"#;
    refused(&bench, &master(), "PATCH /model/one/update", broken, 400, "rpm").await;
    let one = bench.get(&master(), "/model/info?litellm_model_id=one").await;
    assert_eq!(one["data"][0]["litellm_params"]["rpm"], 7);
}

#[tokio::test]
async fn a_key_sees_its_own_models_and_changes_none() {
    let bench = Bench::new().await;
    bench.master("POST /model/new", wanted("one")).await;
    let (_, holder) = bench.holder(json!({"models": ["added"]})).await;
    let seen = bench.get(&holder, "/model/info").await;
    assert_eq!(seen["data"].as_array().unwrap().len(), 1);
    assert_eq!(seen["data"][0]["model_name"], "added");
    assert!(seen["data"][0]["litellm_params"].get("api_base").is_none());
    assert_eq!(
        bench.get(&holder, "/model_group/info").await["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    refused(
        &bench,
        &holder,
        "GET /model/info?litellm_model_id=of-the-config",
        "",
        400,
        "not found",
    )
    .await;
    for route in [
        "POST /model/new",
        "POST /model/update",
        "PATCH /model/one/update",
        "POST /model/delete",
        "POST /config/reload",
        "GET /config/status",
        "GET /config/history",
        "POST /config/rollback",
    ] {
        refused(&bench, &holder, route, "{}", 401, "Only proxy admin").await;
    }
}
