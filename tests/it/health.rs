//! How the gateway and its upstreams are: for load balancers, for admins, and by `tollkeeper doctor`.

use crate::kit::client::ask;
use crate::kit::gateway::{BINARY, Gateway, MASTER, PROVIDER, Setup};
use crate::kit::receiver::Receiver;
use crate::kit::upstream::{Script, Upstream};
use crate::kit::{postgres, redis, until};
use serde_json::{Value, json};
use std::process::Command;

const KEY: &str = "sk-key-of-the-health-tests";

async fn lists_models() -> Upstream {
    Upstream::start(|seen| {
        let key = seen.header("authorization").unwrap_or_default();
        match (seen.target.as_str(), key == format!("Bearer {PROVIDER}")) {
            (_, false) => Script::error(401, "who are you"),
            ("/v1/models", _) => Script::json(200, &json!({"object": "list", "data": [{"id": "up-small"}]})),
            _ => Script::chat("hello"),
        }
    })
    .await
}

#[tokio::test]
async fn an_admin_sees_how_the_upstreams_are() {
    let (well, lost) = (
        lists_models().await,
        Upstream::start(|_| Script::error(404, "no list")).await,
    );
    let gateway = Setup::new()
        .model("small", &well)
        .model("again", &well)
        .model("speech", &lost)
        .deployment("refused", &well.base(), json!({"api_key": "sk-wrong"}))
        .deployment("down", "http://127.0.0.1:1/v1", json!({}))
        .setting("health", json!({"check_every": "1s"}))
        .start()
        .await;
    gateway.key(KEY, |_| {}).await;
    let mut seen = Value::Null;
    until("all have been looked at", async || {
        seen = ask(&gateway, "GET", "/health", &[], "").await.json();
        seen["unknown_count"] == 0
    })
    .await;
    let names = |list: &str| -> Vec<String> {
        let list = seen[list].as_array().unwrap();
        list.iter()
            .map(|e| e["model_name"].as_str().unwrap().to_string())
            .collect()
    };
    assert_eq!(names("healthy_endpoints"), ["small", "again", "speech"], "{seen}");
    assert_eq!(names("unhealthy_endpoints"), ["refused", "down"], "{seen}");
    assert_eq!(
        (&seen["healthy_count"], &seen["unhealthy_count"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(seen["healthy_endpoints"][0]["model"], "openai/up-small");
    let errors: Vec<&str> = seen["unhealthy_endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["error"].as_str().unwrap())
        .collect();
    assert!(
        errors[0].contains("401") && errors[1].to_lowercase().contains("refused"),
        "{errors:?}"
    );
    for secret in [MASTER, PROVIDER, "sk-wrong"] {
        assert!(!seen.to_string().contains(secret), "{seen}");
    }
    let one = ask(&gateway, "GET", "/health?model=down", &[], "").await.json();
    assert_eq!(
        (&one["healthy_count"], &one["unhealthy_count"]),
        (&json!(0), &json!(1))
    );

    // Everybody else sees that it lives, and no more.
    for who in ["", KEY, "sk-nobody-knows-this-key"] {
        let who = if who.is_empty() {
            String::new()
        } else {
            format!("Bearer {who}")
        };
        let plain = ask(&gateway, "GET", "/health", &[("authorization", &who)], "").await;
        assert_eq!(plain.status(), 200);
        assert_eq!(plain.json()["status"], "healthy");
        assert!(
            plain.json().get("healthy_endpoints").is_none(),
            "{}",
            plain.text()
        );
    }
    for upstream in [&well, &lost] {
        for n in 0..upstream.count() {
            let request = upstream.request(n).await;
            assert_eq!(
                (request.method.as_str(), request.target.as_str()),
                ("GET", "/v1/models")
            );
        }
    }
}

#[tokio::test]
async fn readiness_tells_of_everything_and_goes_by_the_store() {
    let upstream = Upstream::good().await;
    let mut redis = redis::Server::start();
    let gateway = Setup::new()
        .model("small", &upstream)
        .setting("redis", json!({"url": redis.url()}))
        .start()
        .await;
    let ready = async || ask(&gateway, "GET", "/health/readiness", &[("authorization", "")], "").await;
    until("redis is reached", async || {
        ready().await.json()["redis"] == "connected"
    })
    .await;
    let body = ready().await.json();
    assert_eq!(
        (&body["status"], &body["db"]),
        (&json!("healthy"), &json!("connected"))
    );
    assert_eq!(
        (&body["ledger"]["pending"], &body["ledger"]["healthy"]),
        (&json!(0), &json!(true))
    );
    redis.stop();
    until("redis is away", async || {
        ready().await.json()["redis"] == "Not connected"
    })
    .await;
    assert_eq!(ready().await.status(), 200, "calls go on without it");
    let alone = Setup::new().model("small", &upstream).start().await;
    let body = ask(&alone, "GET", "/health/readiness", &[], "").await.json();
    assert_eq!(body["redis"], Value::Null);
}

/// What the doctor says of a gateway's place, and how it ends.
fn doctor(gateway: &Gateway, config: &str, args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    let dir = gateway.data();
    let dir = dir.parent().unwrap();
    std::fs::write(dir.join("doctor.yaml"), config).unwrap();
    let out = Command::new(BINARY)
        .args(["doctor", "-c", "doctor.yaml"])
        .args(args)
        .current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", dir)
        .env("TOLLKEEPER_DATA_DIR", gateway.data())
        .env("TOLLKEEPER_URL", format!("http://{}", gateway.at))
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let said = [out.stdout, out.stderr]
        .map(|b| String::from_utf8(b).unwrap())
        .concat();
    for secret in [MASTER, PROVIDER, "sk-wrong", "unused-secret", "hunter2"] {
        assert!(!said.contains(secret), "{secret}: {said}");
    }
    (out.status.code().unwrap(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_wrong_and_says_what_to_do() {
    let upstream = lists_models().await;
    let database = postgres::shared().database();
    let setup = || Setup::new().model("small", &upstream).database(&database);
    let gateway = setup().start().await;
    let port = gateway.at.port();
    let listeners = json!([{"address": format!("127.0.0.1:{port}")}]);
    let config = setup().setting("listeners", listeners.clone()).config();
    let url = [("DATABASE_URL", database.as_str())];
    let (code, said) = doctor(&gateway, &config, &[], &url);
    let migrations = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/postgres"));
    let known = migrations.unwrap().count();
    assert!(!said.contains("langfuse"), "nobody is told of calls: {said}");
    for line in [
        "✓ config ",
        "✓ data ",
        &format!("is held by Tollkeeper {}", env!("CARGO_PKG_VERSION")),
        "✓ database     PostgreSQL",
        &format!("schema {known}/{known}"),
        "/v1: 1 model, ",
        "✓ clock ",
        "✓ gateway ",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(code, 0, "{said}");

    // One of everything that goes wrong.
    let wrong = Upstream::start(|_| Script::error(401, "who is that?")).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let broken = setup()
        .deployment("other", &upstream.base(), json!({"model": "openai/not-listed"}))
        .deployment("refused", &upstream.base(), json!({"api_key": "sk-wrong"}))
        .deployment("down", "http://127.0.0.1:1/v1", json!({}))
        .deployment("lost", "http://no-such-host.invalid/v1", json!({}))
        .setting(
            "listeners",
            json!([{"address": taken.local_addr().unwrap().to_string()}]),
        )
        .setting("redis", json!({"url": "redis://:hunter2@127.0.0.1:1"}))
        .setting(
            "tracing",
            json!({"langfuse": {"host": format!("http://127.0.0.1:{}", wrong.port), "public_key": "pk", "secret_key": "hunter2"},
                "otlp": {"endpoint": "http://127.0.0.1:1/v1/traces", "headers": {"authorization": "hunter2"}}}),
        )
        .setting(
            "tls",
            json!({"certificates": [{"cert": "none.pem", "key": "none.key"}]}),
        )
        .config();
    let url = [("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/none")];
    let (code, said) = doctor(&gateway, &broken, &["--json"], &url);
    assert_eq!(code, 1, "{said}");
    let told: Value = serde_json::from_str(&said).unwrap();
    let found = |state: &str, text: &str| {
        let checks = told["checks"].as_array().unwrap();
        let found = checks
            .iter()
            .find(|c| c["state"] == state && c["message"].as_str().unwrap().contains(text));
        let found = found.unwrap_or_else(|| panic!("{state} {text}: {told:#}"));
        assert_ne!(found["next"], "", "{found}");
    };
    found("fail", "held by another process");
    found("fail", "none.pem");
    found("fail", "does not accept the key (status 401)");
    found("fail", "does not accept the keys (status 401)");
    found("fail", "leads nowhere");
    found("fail", "http://127.0.0.1:1/v1: ");
    found("warn", "it does not list not-listed");
    let of = |name: &str| {
        let checks = told["checks"].as_array().unwrap();
        checks.iter().find(|c| c["name"] == name).unwrap()["state"].clone()
    };
    assert_eq!(
        (of("database"), of("redis")),
        (json!("fail"), json!("fail")),
        "{told:#}"
    );
    assert_eq!(
        (of("langfuse"), of("otlp")),
        (json!("fail"), json!("fail")),
        "{told:#}"
    );
    assert!(told["problems"].as_u64().unwrap() >= 9, "{told:#}");
    for check in told["checks"].as_array().unwrap() {
        let says = check["state"] == "ok" || check["next"] != "";
        assert!(says, "nothing is left without saying what to do: {check}");
    }
    let receiver = Receiver::start("3.100.0").await;
    let langfuse = json!({"host": receiver.host(), "public_key": "pk", "secret_key": "sk"});
    let config = setup().setting("tracing", json!({"langfuse": langfuse})).config();
    let (_, said) = doctor(&gateway, &config, &[], &[("DATABASE_URL", database.as_str())]);
    assert!(said.contains("version 3.100.0, the keys are right"), "{said}");
    assert!(
        receiver
            .taken()
            .iter()
            .all(|t| t.target == "/api/public/projects"),
        "it is told nothing"
    );

    let (code, said) = doctor(&gateway, "model_list: 7", &[], &[]);
    assert!(
        code == 1 && said.contains("✗ config") && said.contains("tollkeeper check"),
        "{said}"
    );
}
