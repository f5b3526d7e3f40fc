//! The log of the process: one line per request, what a flood leaves of them, what is changed while it runs, and a
//! reader that takes nothing.

use crate::kit::client::{self, Conn, ask, chat};
use crate::kit::gateway::{BINARY, Gateway, MASTER, Setup, free_port};
use crate::kit::upstream::{Script, Upstream};
use crate::kit::{process, until, within};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

const KEY: &str = "sk-key-of-the-log-tests";

/// The lines of requests so far.
fn requests(gateway: &Gateway) -> Vec<Value> {
    let log = gateway.log();
    let lines = log.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    lines.filter(|l| l["msg"] == "request").collect()
}

async fn line_of(gateway: &Gateway, id: &str) -> Value {
    let mut found = None;
    until(&format!("the line of {id} is there"), async || {
        found = requests(gateway).into_iter().find(|l| l["request_id"] == id);
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test]
async fn each_request_leaves_one_line() {
    let upstream = Upstream::start(|seen| match seen.json()["user"].as_str() {
        Some("bad") => Script::error(500, "out of order"),
        _ => Script::chat("hello"),
    })
    .await;
    let prices = json!({"input_cost_per_token": 0, "output_cost_per_token": 0.001, "id": "the-deployment"});
    let gateway = Setup::new()
        .deployment("small", &upstream.base(), prices)
        .start()
        .await;
    gateway
        .key(KEY, |k| k.key_alias = Some("My\u{1b}[2J \"Project\"".into()))
        .await;
    let bearer = format!("Bearer {KEY}");
    let call = async |body: Value| {
        let who = [("authorization", bearer.as_str())];
        ask(&gateway, "POST", "/v1/chat/completions", &who, body.to_string()).await
    };
    let good = call(json!({"model": "small", "messages": []})).await;
    assert_eq!(good.status(), 200);
    let line = line_of(&gateway, good.head.id()).await;
    for (name, want) in [
        ("level", json!("info")),
        ("key_alias", json!("My\u{1b}[2J \"Project\"")),
        ("model", json!("small")),
        ("status", json!(200)),
        ("tokens_in", json!(7)),
        ("tokens_out", json!(3)),
        ("cost_usd", json!(0.003)),
        ("endpoint", json!("/chat/completions")),
        ("deployment", json!("the-deployment")),
        ("outcome", json!("success")),
    ] {
        assert_eq!(line[name], want, "{name}: {line}");
    }
    assert!(line["duration_ms"].is_u64() && line["ttft_ms"].is_u64(), "{line}");
    assert!(!gateway.log().contains('\u{1b}'), "control bytes are escaped");

    let bad = call(json!({"model": "small", "messages": [], "user": "bad"})).await;
    let line = line_of(&gateway, bad.head.id()).await;
    assert_eq!(
        (&line["level"], &line["status"]),
        (&json!("warn"), &json!(bad.status()))
    );
    let none = call(json!({"model": "none", "messages": []})).await;
    let line = line_of(&gateway, none.head.id()).await;
    assert_eq!((&line["level"], &line["status"]), (&json!("info"), &json!(404)));
    // Whoever asks for health every second is nobody's news.
    let alive = ask(&gateway, "GET", "/health", &[], "").await;
    assert_eq!(alive.status(), 200);
    let last = call(json!({"model": "small", "messages": []})).await;
    line_of(&gateway, last.head.id()).await;
    assert!(requests(&gateway).iter().all(|l| l["lane"] != "health"));
    let ids: Vec<Value> = requests(&gateway)
        .iter()
        .map(|l| l["request_id"].clone())
        .collect();
    let mut once = ids.clone();
    once.sort_by_key(ToString::to_string);
    once.dedup();
    assert_eq!(once.len(), ids.len(), "no request is told twice");
}

#[tokio::test]
async fn a_flood_is_counted() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .setting("log", json!({"most_per_second": 5}))
        .start()
        .await;
    let mut conn = Conn::open(gateway.at).await;
    for model in ["small", "none"] {
        let body = json!({"model": model, "messages": []}).to_string();
        for _ in 0..60 {
            conn.ask("POST", "/v1/chat/completions", &[], body.as_bytes())
                .await;
        }
    }
    // What is shown and what is counted are all there were, failures with room of their own.
    until("all are shown or counted", async || {
        let (mut succeeded, mut failed) = (0, 0);
        for line in gateway
            .log()
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        {
            if line["msg"] == "request" && line["lane"] == "openai" {
                match line["status"].as_u64() {
                    Some(200) => succeeded += 1,
                    _ => failed += 1,
                }
            }
            if line["msg"]
                .as_str()
                .is_some_and(|m| m.starts_with("event=requests_not_shown"))
            {
                succeeded += line["succeeded"].as_u64().unwrap();
                failed += line["failed"].as_u64().unwrap();
            }
        }
        assert!(succeeded <= 60 && failed <= 60, "{succeeded} {failed}");
        (succeeded, failed) == (60, 60)
    })
    .await;
    let shown = requests(&gateway).len();
    assert!((10..120).contains(&shown), "{shown} lines are left");
}

fn cli(gateway: &Gateway, args: &[&str]) -> (i32, String) {
    let out = Command::new(BINARY)
        .args(args)
        .env_clear()
        .env("TOLLKEEPER_URL", format!("http://{}", gateway.at))
        .env("TOLLKEEPER_API_KEY", MASTER)
        .output()
        .unwrap();
    let said = [out.stdout, out.stderr]
        .map(|b| String::from_utf8(b).unwrap())
        .concat();
    (out.status.code().unwrap(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_changes_while_it_runs() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    gateway.key(KEY, |_| {}).await;
    let path = "/admin/v1/log";
    let state = ask(&gateway, "GET", path, &[], "").await.json();
    assert_eq!(
        (&state["level"], &state["from"]),
        (&json!("info"), &json!("config"))
    );

    let (code, said) = cli(&gateway, &["log", "level", "debug"]);
    assert!(code == 0 && said.contains("level   debug"), "{said}");
    let alive = ask(&gateway, "GET", "/health/liveness", &[], "").await;
    assert_eq!(line_of(&gateway, alive.head.id()).await["level"], "debug");
    let audit = ask(&gateway, "GET", "/audit?table_name=log", &[], "")
        .await
        .json();
    assert_eq!(
        audit["audit_logs"][0]["updated_values"]["level"], "DEBUG",
        "{audit}"
    );

    for (body, field) in [
        (json!({"level": "loud"}), "level"),
        (json!({"filter": "h2=trace"}), "filter"),
        (json!({"filter": "a b"}), "filter"),
        (json!({}), "level"),
        (json!({"level": "info", "filter": "info"}), "level"),
        (json!({"level": 7}), "level"),
    ] {
        let refused = ask(&gateway, "POST", path, &[], body.to_string()).await;
        assert!(
            (400..=422).contains(&refused.status()),
            "{body}: {}",
            refused.text()
        );
        assert_eq!(refused.json()["error"]["param"], field, "{}", refused.text());
    }
    let bearer = format!("Bearer {KEY}");
    let who = [("authorization", bearer.as_str())];
    for method in ["GET", "POST"] {
        let refused = ask(&gateway, method, path, &who, r#"{"level":"trace"}"#).await;
        assert!((401..=403).contains(&refused.status()), "{}", refused.text());
    }

    let (code, said) = cli(
        &gateway,
        &["log", "filter", "warn,tollkeeper::request=info", "--json"],
    );
    let state: Value = serde_json::from_str(&said).unwrap();
    assert!(
        code == 0 && state["filter"] == "warn,tollkeeper::request=info",
        "{said}"
    );
    let told = chat(&gateway, &json!({"model": "small", "messages": []})).await;
    line_of(&gateway, told.head.id()).await;
    let (code, said) = cli(&gateway, &["log", "level", "configured"]);
    assert!(code == 0 && said.contains("from    config"), "{said}");

    // The config's own section is taken into use by a reload.
    let errors = Setup::new()
        .model("small", &upstream)
        .setting("log", json!({"level": "warn", "requests": "errors"}));
    gateway.rewrite(&errors.config());
    let reloaded = ask(&gateway, "POST", "/config/reload", &[], "{}").await;
    assert_eq!(reloaded.status(), 200, "{}", reloaded.text());
    until("the config's level is in use", async || {
        ask(&gateway, "GET", path, &[], "").await.json()["level"] == "warn"
    })
    .await;
    let status = ask(&gateway, "GET", "/config/status", &[], "").await.json();
    assert_eq!(status["restart_required"], json!([]));
}

#[tokio::test]
async fn a_reader_that_takes_nothing_holds_no_call_up() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Upstream::good().await;
    let setup = Setup::new()
        .model("small", &upstream)
        .setting("log", json!({"most_per_second": 1_000_000}));
    std::fs::write(dir.path().join("config.yaml"), setup.config()).unwrap();
    let port = free_port();
    let mut child = process::spawn(BINARY, |c| {
        c.args([
            "-c",
            "config.yaml",
            "--host",
            "127.0.0.1",
            "--port",
            &port.to_string(),
        ])
        .current_dir(dir.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", dir.path())
        .env("TOLLKEEPER_DATA_DIR", dir.path().join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    });
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    until("it is ready", async || {
        client::probe(at, "/health/readiness").await == Some(200)
    })
    .await;
    let mut conn = Conn::open(at).await;
    // Names that are long make lines that are.
    let body = json!({"model": "x".repeat(200), "messages": []}).to_string();
    let mut dropped = 0;
    let mut calls = 0;
    while dropped == 0 {
        for _ in 0..500 {
            let answer = within("a call is answered", async {
                conn.ask("POST", "/v1/chat/completions", &[], body.as_bytes())
                    .await
            })
            .await;
            assert_eq!(answer.status(), 404);
        }
        calls += 500;
        let state = conn.ask("GET", "/admin/v1/log", &[], b"").await.json();
        dropped = state["lines_dropped"].as_u64().unwrap();
        assert!(calls < 20_000, "nothing was dropped of {calls} lines");
    }
    // Whoever reads on hears what is missing.
    let stderr = child.stderr.take().unwrap();
    let (heard, hearing) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let _ = heard.send(lines.find(|l| l.contains("event=log_lines_dropped")));
        lines.for_each(drop);
    });
    let told = within("the loss is told", hearing).await.unwrap().unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert!(
        told["count"].as_u64().unwrap() > 0 && told["level"] == "warn",
        "{told}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
}
