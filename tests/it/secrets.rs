//! What must not be said is not said: in no log line, no metric, no error, no page, and by no command.

use crate::kit::client::{Conn, ask};
use crate::kit::gateway::{BINARY, Gateway, MASTER, PROVIDER, Setup};
use crate::kit::upstream::{Script, Seen, Upstream, delta};
use crate::kit::{postgres, until};
use serde_json::json;
use std::process::Command;

const VIRTUAL: &str = "sk-virtual-key-of-the-tests";
const WRONG: &str = "sk-wrong-key-of-the-tests";
const PROMPT: &str = "the-prompt-nobody-may-read";
const ANSWER: &str = "the-answer-nobody-may-read";
/// The password within the address of the tests' Postgres.
const PASSWORD: &str = "unused-secret";
/// Stands in the addresses of both webhooks.
const WEBHOOK: &str = "token-of-the-webhook";

/// What the command line says of a running gateway and its config, whatever it is asked.
fn commands(gateway: &Gateway, database: &str) -> String {
    let dir = gateway.data();
    let dir = dir.parent().unwrap();
    let all: [&[&str]; 12] = [
        &["check"],
        &["check", "--format", "json"],
        &["doctor"],
        &["doctor", "--json"],
        &["status"],
        &["reload"],
        &["config", "history"],
        &["key", "list"],
        &["usage"],
        &["logs"],
        &["log"],
        &["ledger", "check"],
    ];
    let mut said = String::new();
    for args in all {
        let with_config = match args[0] {
            "check" | "doctor" | "ledger" => &["-c", "config.yaml"][..],
            _ => &[],
        };
        let out = Command::new(BINARY)
            .args(args)
            .args(with_config)
            .current_dir(dir)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", dir)
            .env("TOLLKEEPER_DATA_DIR", gateway.data())
            .env("TOLLKEEPER_URL", format!("http://{}", gateway.at))
            .env("TOLLKEEPER_API_KEY", MASTER)
            .env("DATABASE_URL", database)
            .env("SLACK_WEBHOOK_URL", slack())
            .output()
            .unwrap();
        let text = [out.stdout, out.stderr]
            .map(|b| String::from_utf8(b).unwrap())
            .concat();
        assert!(!text.is_empty() || args == ["logs"], "{args:?} says nothing");
        said.push_str(&format!("{args:?}: {text}\n"));
    }
    said
}

/// The `user` of a call; there is none in a look at the list of models.
fn said_user(seen: &Seen) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(&seen.body()).ok()?;
    body["user"].as_str().map(str::to_string)
}

/// Nobody listens there.
fn slack() -> String {
    format!("http://127.0.0.1:1/services/{WEBHOOK}")
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_prompts_are_nowhere() {
    let upstream = Upstream::start(|seen| match said_user(seen).as_deref() {
        Some("401") => Script::error(401, &format!("wrong key {PROVIDER}")),
        Some("500") => Script::error(500, "out of order"),
        Some("cut") => Script::sse(&[&delta(ANSWER)]).close(),
        Some("silent") => Script::nothing().close(),
        _ if seen.method == "GET" => Script::json(200, &json!({"data": [{"id": "up-small"}]})),
        _ if seen.json()["stream"] == true => Script::sse(&[&delta(ANSWER), "[DONE]"]).end(),
        _ => Script::chat(ANSWER),
    })
    .await;
    let database = postgres::shared().database();
    let mut gateway = Setup::new()
        .model("small", &upstream)
        .deployment("down", "http://127.0.0.1:1/v1", json!({}))
        .database(&database)
        .setting("health", json!({"check_every": "1s"}))
        .setting("alerts", json!({"webhook_url": format!("http://127.0.0.1:1/hook?token={WEBHOOK}")}))
        .general("alerting", json!(["slack"]))
        .env("SLACK_WEBHOOK_URL", &slack())
        .env("RUST_LOG", "debug,tollkeeper=trace")
        .general(
            "pass_through_endpoints",
            json!([{"path": "/tts", "target": "http://127.0.0.1:1", "include_subpath": true, "headers": {"Authorization": format!("Bearer {PROVIDER}")}}]),
        )
        .start()
        .await;
    gateway
        .key(VIRTUAL, |k| k.models = vec!["small".into(), "down".into()])
        .await;
    let mut errors = String::new();
    for key in [MASTER, VIRTUAL, WRONG, &format!("{MASTER} {VIRTUAL}")] {
        let who = format!("Bearer {key}");
        let who = [("authorization", who.as_str()), ("cookie", PROMPT)];
        for (model, user) in [
            ("small", ""),
            ("small", "401"),
            ("small", "500"),
            ("small", "cut"),
            ("small", "silent"),
            ("down", ""),
            ("none", ""),
        ] {
            for stream in [false, true] {
                let body = json!({"model": model, "user": user, "stream": stream, "messages": [{"role": "user", "content": PROMPT}], "metadata": {"x": PROMPT}});
                let answer = ask(
                    &gateway,
                    "POST",
                    "/v1/chat/completions",
                    &who,
                    body.to_string().as_bytes(),
                )
                .await;
                if answer.status() >= 400 || user == "cut" {
                    errors.push_str(&answer.text().replace(ANSWER, ""));
                }
            }
        }
        for broken in [
            format!("{{\"model\":\"small\",\"messages\":[\"{PROMPT}\",]}}"),
            format!("{{\"messages\":\"{PROMPT}\""),
        ] {
            errors.push_str(
                &ask(&gateway, "POST", "/v1/chat/completions", &who, broken.as_bytes())
                    .await
                    .text(),
            );
        }
        let path = format!("/tts/x?key={VIRTUAL}&q={PROMPT}");
        errors.push_str(&ask(&gateway, "POST", &path, &who, PROMPT.as_bytes()).await.text());
        let path = format!("/v1/nothing?key={MASTER}");
        errors.push_str(&ask(&gateway, "GET", &path, &who, b"").await.text());
        let path = format!("/key/info?key={WRONG}");
        errors.push_str(
            &ask(&gateway, "GET", &path, &who, b"")
                .await
                .text()
                .replace(WRONG, ""),
        );
    }
    let metrics = ask(&gateway, "GET", "/metrics", &[], "").await.text();
    assert!(metrics.contains("litellm_requests_total"), "{metrics}");
    let level = ask(&gateway, "POST", "/admin/v1/log", &[], r#"{"level":"trace"}"#).await;
    assert_eq!(level.status(), 200, "{}", level.text());
    let mut pages = String::new();
    for path in [
        "/",
        "/llms.txt",
        "/health",
        "/health/readiness",
        "/health/liveliness",
        "/openapi.json",
        "/routes",
        "/v1/models",
        "/v1/model/info",
        "/config/status",
        "/config/history",
        "/admin/v1/log",
        "/audit",
        "/key/list?return_full_object=true",
        "/spend/logs",
    ] {
        let page = ask(&gateway, "GET", path, &[], "").await;
        assert_eq!(page.status(), 200, "{path}: {}", page.text());
        // The rows of calls hold the metadata that callers gave, for those who ask for them.
        let text = if path == "/spend/logs" {
            page.text().replace(PROMPT, "")
        } else {
            page.text()
        };
        pages.push_str(&format!("{path}: {text}\n"));
    }
    assert!(pages.contains("unhealthy_endpoints"), "{pages}");
    let commands = commands(&gateway, &database);
    until("an alert has failed", async || {
        gateway.log().contains("event=alert_failed")
    })
    .await;
    gateway.stop().await;
    let log = gateway.log();
    assert!(log.lines().count() > 50, "it was talkative: {log}");
    for (place, text) in [
        ("the log", &log),
        ("the metrics", &metrics),
        ("an error", &errors),
        ("a page", &pages),
        ("a command", &commands),
    ] {
        for secret in [
            MASTER, VIRTUAL, WRONG, PROVIDER, PASSWORD, WEBHOOK, PROMPT, ANSWER,
        ] {
            if let Some(at) = text.find(secret) {
                let from = text[..at].rfind('\n').map_or(0, |n| n + 1);
                panic!("{place} holds {secret}: {}", text[from..].lines().next().unwrap());
            }
        }
    }
}

#[tokio::test]
async fn invented_names_make_no_series() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    let mut conn = Conn::open(gateway.at).await;
    let series = async |conn: &mut Conn| {
        let text = conn.ask("GET", "/metrics", &[], b"").await.text();
        text.lines().filter(|l| !l.starts_with('#')).count()
    };
    let body = json!({"model": "small", "messages": []}).to_string();
    assert_eq!(
        conn.ask("POST", "/v1/chat/completions", &[], body.as_bytes())
            .await
            .status(),
        200
    );
    let body = json!({"model": "nothing", "messages": []}).to_string();
    assert_eq!(
        conn.ask("POST", "/v1/chat/completions", &[], body.as_bytes())
            .await
            .status(),
        404
    );
    let before = series(&mut conn).await;
    for n in 0..300 {
        let body =
            json!({"model": format!("invented-{n}"), "messages": [], "user": format!("u{n}")}).to_string();
        let answer = conn
            .ask("POST", "/v1/chat/completions", &[], body.as_bytes())
            .await;
        assert_eq!(answer.status(), 404);
    }
    let after = series(&mut conn).await;
    assert!(after <= before + 10, "{before} series became {after}");
}
