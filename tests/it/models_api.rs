//! Models that are added while the gateway runs, and a config that is read again, looked at and put back.

use crate::kit::client::{Answer, ask, chat};
use crate::kit::gateway::{BINARY, Gateway, MASTER, Setup};
use crate::kit::upstream::Upstream;
use crate::kit::{postgres, until};
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};
use tollkeeper::store::{DocFilter, Table};

const SALT: &str = "sk-salt-key-of-the-tests";
const PRIVATE: &str = "very-private-provider-key";

async fn call(gateway: &Gateway, method: &str, path: &str, body: Value) -> Answer {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    ask(gateway, method, path, &[], &body).await
}

async fn done(gateway: &Gateway, method: &str, path: &str, body: Value) -> Value {
    let answer = call(gateway, method, path, body).await;
    assert_eq!(answer.status(), 200, "{method} {path}: {}", answer.text());
    assert!(!answer.text().contains(PRIVATE), "{path}: {}", answer.text());
    answer.json()
}

async fn says(gateway: &Gateway, model: &str) -> u16 {
    chat(gateway, &json!({"model": model, "messages": []}))
        .await
        .status()
}

#[tokio::test]
async fn a_model_is_there_at_once_and_soon_elsewhere() {
    let upstream = Upstream::good().await;
    let database = postgres::shared().database();
    let setup = || {
        Setup::new()
            .general("salt_key", SALT.into())
            .model("small", &upstream)
            .database(&database)
    };
    let (one, mut two) = (setup().start().await, setup().start().await);
    let wanted = |name: &str| {
        json!({
            "model_name": name,
            "litellm_params": {"model": "openai/up-added", "api_base": upstream.base(), "api_key": PRIVATE,
                "extra_body": {"secret_list": [PRIVATE]}},
            "model_info": {"id": format!("the-{name}")},
        })
    };
    let mut quickest = Duration::MAX;
    // The machine may be busy with something else several times, and not each time.
    for name in ["added", "added-2", "added-3", "added-4", "added-5"] {
        let made = done(&one, "POST", "/model/new", wanted(name)).await;
        assert_eq!(made["in_use"], true);
        let written = Instant::now();
        assert_eq!(says(&one, name).await, 200, "callable when the answer is there");
        until("the other gateway serves it", async || {
            says(&two, name).await == 200
        })
        .await;
        quickest = quickest.min(written.elapsed());
        if quickest < Duration::from_secs(1) {
            break;
        }
    }
    assert!(
        quickest < Duration::from_secs(1),
        "known elsewhere after {quickest:?}"
    );
    let seen = upstream.last();
    assert_eq!(
        seen.header("authorization"),
        Some(format!("Bearer {PRIVATE}").as_str()),
        "its key is what the upstream sees"
    );

    let change = json!({"model_name": "renamed"});
    done(&one, "PATCH", "/model/the-added/update", change).await;
    assert_eq!(
        (says(&one, "added").await, says(&one, "renamed").await),
        (404, 200)
    );
    until("the other has heard", async || says(&two, "renamed").await == 200).await;
    two.stop().await;
    two.up().await;
    assert_eq!(says(&two, "renamed").await, 200, "a restart keeps it");

    let info = done(
        &two,
        "GET",
        "/v1/model/info?litellm_model_id=the-added",
        Value::Null,
    )
    .await;
    assert_eq!(info["data"][0]["model_name"], "renamed");
    let docs = one
        .store()
        .await
        .documents(Table::Model, &DocFilter::default())
        .await;
    let row = format!("{:?}", docs.unwrap().docs);
    assert!(row.contains("the-added") && !row.contains(PRIVATE), "{row}");
    done(&one, "GET", "/audit?table_name=model", Value::Null).await;

    done(&two, "POST", "/model/delete", json!({"id": "the-added"})).await;
    assert_eq!(says(&two, "renamed").await, 404);
    until("it is gone elsewhere", async || {
        says(&one, "renamed").await == 404
    })
    .await;
    for gateway in [&one, &two] {
        assert!(!gateway.log().contains(PRIVATE), "{}", gateway.log());
    }
}

/// The command line, talking to a gateway.
fn cli(gateway: &Gateway, args: &[&str]) -> (i32, String) {
    let out = Command::new(BINARY)
        .args(args)
        .env_clear()
        .env("TOLLKEEPER_URL", format!("http://{}", gateway.at))
        .env("TOLLKEEPER_API_KEY", MASTER)
        .output()
        .unwrap();
    let text = [out.stdout, out.stderr].concat();
    (
        out.status.code().unwrap(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_is_read_again_looked_at_and_put_back() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("first", &upstream).start().await;
    let (code, said) = cli(&gateway, &["reload"]);
    assert!(code == 0 && said.contains("Nothing differs"), "{said}");

    let second = Setup::new()
        .model("second", &upstream)
        .setting("listeners", json!([{"address": "127.0.0.1:1"}]));
    gateway.rewrite(&second.config());
    let (code, said) = cli(&gateway, &["reload", "--json"]);
    assert_eq!(code, 0, "{said}");
    // The files are watched, too: whoever came first, it serves now.
    assert_eq!(
        (says(&gateway, "first").await, says(&gateway, "second").await),
        (404, 200)
    );
    let status = done(&gateway, "GET", "/config/status", Value::Null).await;
    assert_eq!(
        (&status["version"], &status["restart_required"]),
        (&json!(2), &json!(["tollkeeper.listeners"]))
    );
    gateway.says("event=restart_needed").await;

    gateway.rewrite("model_list:\n  - model_name: small\n    litellm_params: {model: 7\n");
    let broken = call(&gateway, "POST", "/config/reload", json!({})).await;
    assert_eq!(broken.status(), 400);
    assert!(broken.text().contains("config.yaml:3"), "{}", broken.text());
    assert_eq!(says(&gateway, "second").await, 200, "the old one serves");
    let (code, said) = cli(&gateway, &["status"]);
    assert!(code == 0 && said.contains("was refused"), "{said}");

    let (code, said) = cli(&gateway, &["config", "rollback", "99"]);
    assert!(code == 1 && said.contains("no version 99"), "{said}");
    let (code, said) = cli(&gateway, &["config", "rollback", "1"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        (says(&gateway, "first").await, says(&gateway, "second").await),
        (200, 404)
    );
    let status = done(&gateway, "GET", "/config/status", Value::Null).await;
    assert_eq!(
        (&status["restart_required"], &status["last_failure"]),
        (&json!([]), &Value::Null)
    );
    let (code, said) = cli(&gateway, &["config", "history"]);
    assert!(
        code == 0 && said.contains("up-first") && said.contains("by a rollback"),
        "{said}"
    );
    assert!(!said.contains(MASTER), "{said}");
    let history = done(&gateway, "GET", "/config/history", Value::Null).await;
    let origins: Vec<&str> = history["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["origin"].as_str().unwrap())
        .collect();
    assert_eq!(
        origins.len(),
        4,
        "what was there before the way back is kept: {origins:?}"
    );
}

#[tokio::test]
async fn the_api_describes_itself() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    let document = done(&gateway, "GET", "/openapi.json", Value::Null).await;
    assert_eq!(document["openapi"], "3.1.0");
    let routes = done(&gateway, "GET", "/routes", Value::Null).await;
    for route in routes["routes"].as_array().unwrap() {
        let path = route["path"].as_str().unwrap().replace("{model_id}", "{model}");
        assert!(document["paths"][&path].is_object(), "{path} is not described");
    }
    let page = call(&gateway, "GET", "/", Value::Null).await;
    assert!(page.text().contains("<!doctype html>"), "{}", page.text());
    assert!(
        call(&gateway, "GET", "/llms.txt", Value::Null)
            .await
            .text()
            .starts_with("# Tollkeeper")
    );
}
