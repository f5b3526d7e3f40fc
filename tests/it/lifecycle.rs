//! Coming up and going away.

use crate::kit::client::{Conn, probe, request};
use crate::kit::gateway::{self, BINARY, Setup};
use crate::kit::until;
use crate::kit::upstream::{Gate, Script, Upstream, delta};
use filters::model::record::Status;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn a_stream_ends_whole_before_the_process_does() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| {
        Script::sse(&[&delta("one")])
            .wait(&held)
            .events(&[&delta("two"), "[DONE]"])
            .end()
    })
    .await;
    let mut gateway = Setup::new().model("small", &upstream).start().await;
    let body = json!({"model": "small", "messages": [], "stream": true}).to_string();
    let mut conn = Conn::open(gateway.at).await;
    conn.send(&request("POST", "/v1/chat/completions", &[], body.as_bytes()))
        .await;
    let head = conn.head().await;
    conn.reader.chunk().await.unwrap();

    gateway.signal("TERM");
    // Pingora closes the door and idle connections at once, which is a plain no as well.
    until("nobody is sent here any more", async || {
        probe(gateway.at, "/health/readiness").await != Some(200)
    })
    .await;
    gate.open();
    let (rest, whole) = conn.reader.rest().await;
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(
        whole && rest.contains("two") && rest.ends_with("data: [DONE]\n\n"),
        "the stream ends whole: {rest}"
    );
    // As soon as nothing is left to do, which is long before anything would be cut off.
    assert_eq!(gateway.gone().await.code(), Some(0));
    assert_eq!(gateway.row(head.id()).await.status, Status::Success);
    assert!(gateway.log().contains("stopped"), "{}", gateway.log());
}

#[tokio::test]
async fn an_idle_process_goes_at_once() {
    let upstream = Upstream::good().await;
    let mut gateway = Setup::new().model("small", &upstream).start().await;
    let mut quickest = Duration::MAX;
    // The machine may be busy with something else once, and not three times.
    for _ in 0..3 {
        // An idle kept-alive connection is no reason to stay.
        let mut conn = Conn::open(gateway.at).await;
        assert_eq!(conn.ask("GET", "/health", &[], b"").await.status(), 200);
        let begun = Instant::now();
        gateway.stop().await;
        quickest = quickest.min(begun.elapsed());
        assert_eq!(probe(gateway.at, "/health").await, None);
        if quickest < Duration::from_secs(3) {
            return;
        }
        gateway.up().await;
    }
    panic!("it took {quickest:?}");
}

/// Who does not come back for so long after SIGTERM was idle, and may find the connection closed.
const A_PAUSE: Duration = Duration::from_millis(250);

#[tokio::test]
async fn busy_connections_are_told_to_go_and_none_is_cut() {
    let upstream = Upstream::good().await;
    let mut gateway = Setup::new().model("small", &upstream).start().await;
    let started = std::sync::Arc::new(tokio::sync::Barrier::new(17));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (at, started) = (gateway.at, std::sync::Arc::clone(&started));
            tokio::spawn(async move {
                let mut conn = Conn::open(at).await;
                let body = json!({"model": "small", "messages": []}).to_string();
                let bytes = request("POST", "/v1/chat/completions", &[], body.as_bytes());
                let mut answered = 0;
                loop {
                    let since = Instant::now();
                    let _ = conn.writer.write_all(&bytes).await;
                    if !conn.reader.has_more().await {
                        let paused = since.elapsed();
                        assert!(answered > 0 && paused > A_PAUSE, "cut after {paused:?}");
                        return answered;
                    }
                    let answer = conn.answer().await;
                    assert_eq!(answer.status(), 200, "{}", answer.text());
                    answered += 1;
                    if answered == 1 {
                        started.wait().await;
                    }
                    if answer.head.header("connection") == Some("close") {
                        return answered;
                    }
                }
            })
        })
        .collect();
    started.wait().await;
    gateway.signal("TERM");
    let mut calls = 0;
    for client in clients {
        calls += crate::kit::within("a client is told to go", client)
            .await
            .unwrap();
    }
    assert_eq!(gateway.gone().await.code(), Some(0));
    assert_eq!(gateway.rows_once(calls).await.len(), calls);
}

/// Runs the binary to its end in a fresh directory that holds `config`.
fn run(config: Option<&str>, args: &[&str]) -> (tempfile::TempDir, Output) {
    let dir = tempfile::tempdir().unwrap();
    if let Some(config) = config {
        fs::write(dir.path().join("config.yaml"), config).unwrap();
    }
    let out = Command::new(BINARY)
        .args(args)
        .current_dir(dir.path())
        .env_clear()
        .env("HOME", dir.path())
        .env("TOLLKEEPER_DATA_DIR", dir.path().join("data"))
        .output()
        .unwrap();
    (dir, out)
}

const BAD: &str = "model_list:\n  - model_name: small\n    litellm_params:\n      model: openai/x\n      api_base: htp://x\n\
    tollkeeper:\n  limitss: {}\n";
const GOOD: &str = "model_list:\n  - model_name: small\n    litellm_params:\n      model: openai/x\n      api_base: http://127.0.0.1:1/v1\n      api_key: k\n\
    general_settings:\n  master_key: sk-some-long-master-key-1234\n";

#[test]
fn a_bad_config_is_told_whole() {
    for args in [
        &["-c", "config.yaml"][..],
        &["serve", "-c", "config.yaml"],
        &["check", "-c", "config.yaml"],
    ] {
        let (_dir, out) = run(Some(BAD), args);
        assert_eq!(out.status.code(), Some(78), "{args:?}");
        let told = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(
            told.contains("htp://x") && told.contains("limitss"),
            "{args:?}: all problems in one run: {told}"
        );
        assert!(
            told.contains("config.yaml:5") && told.contains("config.yaml:7"),
            "{args:?}: {told}"
        );
    }
    let (_dir, out) = run(Some(GOOD), &["check", "-c", "config.yaml"]);
    assert_eq!(
        out.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    let (_dir, out) = run(None, &["check", "-c", "missing.yaml"]);
    assert_eq!(out.status.code(), Some(78));
    let (_dir, out) = run(Some(BAD), &["check", "-c", "config.yaml", "--format", "json"]);
    assert_eq!(out.status.code(), Some(78));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(json.is_object(), "{json}");
    let (dir, _) = run(Some(BAD), &["-c", "config.yaml"]);
    assert!(
        !dir.path().join("data").exists(),
        "a refused start leaves nothing behind"
    );
}

#[tokio::test]
async fn a_taken_port_is_told() {
    let upstream = Upstream::good().await;
    let port = upstream.port.to_string();
    let (_dir, out) = run(
        Some(GOOD),
        &["-c", "config.yaml", "--host", "127.0.0.1", "--port", &port],
    );
    assert_eq!(out.status.code(), Some(69));
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(told.contains(&port) && told.contains("--port"), "{told}");
}

#[tokio::test]
async fn a_start_without_a_config_makes_a_key_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut keys = Vec::new();
    for _ in 0..2 {
        let port = gateway::free_port();
        let mut child = gateway::spawn(dir.path(), &["--port".into(), port.to_string()], &[]);
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        until("it is ready", async || {
            probe(at, "/health/readiness").await == Some(200)
        })
        .await;
        let file = dir.path().join("data/master.key");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "the key is for its owner alone");
        let data = fs::metadata(dir.path().join("data"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(data & 0o777, 0o700);
        let key = fs::read_to_string(&file).unwrap().trim().to_string();
        assert!(
            key.starts_with("sk-") && key.len() > 30,
            "a key that cannot be guessed"
        );
        let mut conn = Conn::open(at).await;
        let who = format!("Bearer {key}");
        assert_eq!(
            conn.ask("GET", "/v1/models", &[("authorization", &who)], b"")
                .await
                .status(),
            200
        );
        let mut said = String::new();
        // Lines are gathered for some milliseconds before they are written.
        until("it says that it is ready", async || {
            said = ["log", "out"]
                .map(|f| fs::read_to_string(dir.path().join(f)).unwrap())
                .concat();
            said.contains("ready in")
        })
        .await;
        assert!(
            !said.contains(&key),
            "no key in a log that is no terminal: {said}"
        );
        keys.push(key);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(keys[0], keys[1], "the key is made once");
}
