//! What starts the gateway on other people's machines: LiteLLM's flags, systemd's protocol, and the files in
//! `contrib/` and `conf/examples`.

use crate::kit::client::{Conn, ask, chat};
use crate::kit::gateway::{self, BINARY, MASTER, Setup};
use crate::kit::upstream::{Gate, Script, Upstream, delta};
use crate::kit::{until, within};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tokio::net::UnixDatagram;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    Command::new(BINARY)
        .args(args)
        .current_dir(dir.path())
        .env_clear()
        .env("HOME", dir.path())
        .env("TOLLKEEPER_DATA_DIR", dir.path().join("data"))
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&[&out.stdout[..], &out.stderr].concat()).into_owned()
}

async fn word(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 512];
    let n = within("the service manager is told", socket.recv(&mut buffer))
        .await
        .unwrap();
    String::from_utf8(buffer[..n].to_vec()).unwrap()
}

/// The next word that is no sign of life.
async fn news(socket: &UnixDatagram) -> String {
    loop {
        let word = word(socket).await;
        if word != "WATCHDOG=1" {
            return word;
        }
    }
}

#[tokio::test]
async fn a_service_manager_hears_of_each_step() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| {
        Script::sse(&[&delta("one")])
            .wait(&held)
            .events(&[&delta("two"), "[DONE]"])
            .end()
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let setup = || Setup::new().model("small", &upstream);
    let mut gateway = setup()
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "50000")
        .start()
        .await;
    let ready = word(&manager).await;
    assert!(
        ready.starts_with("READY=1\nSTATUS=Ready: 1 models on "),
        "{ready}"
    );
    assert_eq!(word(&manager).await, "WATCHDOG=1", "the watchdog is fed");

    gateway.rewrite("model_list: [");
    gateway.signal("HUP");
    assert!(news(&manager).await.starts_with("RELOADING=1\n"));
    let word_of_it = news(&manager).await;
    assert!(
        word_of_it.starts_with("READY=1\n") && word_of_it.contains("the old config"),
        "{word_of_it}"
    );
    gateway.rewrite(&setup().model("more", &upstream).config());
    gateway.signal("HUP");
    assert!(news(&manager).await.starts_with("RELOADING=1\n"));
    assert!(news(&manager).await.starts_with("READY=1\nSTATUS=Ready: config "));

    // While the last stream ends nobody listens any more, and the watchdog is fed all the same.
    let body = json!({"model": "small", "messages": [], "stream": true}).to_string();
    let mut conn = Conn::open(gateway.at).await;
    let request = crate::kit::client::request("POST", "/v1/chat/completions", &[], body.as_bytes());
    conn.send(&request).await;
    conn.head().await;
    conn.reader.chunk().await.unwrap();
    gateway.signal("TERM");
    let leaving = news(&manager).await;
    assert!(
        leaving.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=75000000\n"),
        "the time to drain is asked for: {leaving}"
    );
    for _ in 0..3 {
        assert_eq!(word(&manager).await, "WATCHDOG=1");
    }
    gate.open();
    let (_, whole) = conn.reader.rest().await;
    assert!(whole);
    assert_eq!(gateway.gone().await.code(), Some(0));
}

#[tokio::test]
async fn a_gateway_starts_with_litellms_words() {
    let upstream = Upstream::good().await;
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("config.yaml"),
        Setup::new().model("small", &upstream).config(),
    )
    .unwrap();
    let port = gateway::free_port().to_string();
    let words = [
        "--config",
        "config.yaml",
        "--host",
        "localhost",
        "--port",
        &port,
        "--detailed_debug",
        "--num_workers",
        "8",
        "--telemetry",
        "False",
    ];
    let args: Vec<String> = words.iter().map(|w| w.to_string()).collect();
    let mut child = gateway::spawn(dir.path(), &args, &[("RUST_LOG".into(), "info".into())]);
    let log = || fs::read_to_string(dir.path().join("log")).unwrap();
    until("it is ready", async || log().contains("ready in")).await;
    for line in log().lines().filter(|l| l.contains("ignored:")) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["level"], "info", "{line}");
    }
    assert_eq!(log().matches("ignored: ").count(), 3, "{}", log());
    assert!(log().contains("ignored: --num_workers (threads are automatic)"));
    // `--test` asks that gateway and starts none.
    let asked = run(&["--test", "--port", &port], &[]);
    assert_eq!(asked.status.code(), Some(0), "{}", said(&asked));
    child.kill().unwrap();
    child.wait().unwrap();
    let asked = run(&["--health", "--port", &port], &[]);
    assert_eq!(asked.status.code(), Some(1), "{}", said(&asked));
}

#[tokio::test]
async fn one_model_is_served_without_a_config() {
    let upstream = Upstream::good().await;
    let dir = tempfile::tempdir().unwrap();
    let port = gateway::free_port();
    let words = [
        "--model",
        "openai/qwen",
        "--api_base",
        &upstream.base(),
        "--alias",
        "small",
        "--host",
        "127.0.0.1",
        "--port",
        &port.to_string(),
    ];
    let args: Vec<String> = words.iter().map(|w| w.to_string()).collect();
    let env = [("LITELLM_MASTER_KEY".to_string(), MASTER.to_string())];
    let mut child = gateway::spawn(dir.path(), &args, &env);
    let log = || fs::read_to_string(dir.path().join("log")).unwrap();
    until("it is ready", async || log().contains("ready in")).await;
    for name in ["small", "openai/qwen", "whatever"] {
        let body = json!({"model": name, "messages": []}).to_string();
        let mut conn = Conn::open(std::net::SocketAddr::from(([127, 0, 0, 1], port))).await;
        let who = format!("Bearer {MASTER}");
        let answer = conn
            .ask(
                "POST",
                "/v1/chat/completions",
                &[("authorization", &who)],
                body.as_bytes(),
            )
            .await;
        assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn words_that_must_not_be_overlooked_end_it() {
    for args in [
        &["--ssl_certfile_path", "c.pem"][..],
        &["--max_budget", "5"],
        &["--model", "x", "--config", "y"],
    ] {
        let out = run(args, &[]);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", said(&out));
    }
}

#[test]
fn man_pages_and_completions_name_the_commands() {
    let page = run(&["man"], &[]);
    assert_eq!(page.status.code(), Some(0));
    assert!(said(&page).contains("tollkeeper") && said(&page).contains("healthcheck"));
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = run(&["completions", shell], &[]);
        assert_eq!(script.status.code(), Some(0), "{shell}");
        assert!(said(&script).contains("healthcheck"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    let out = run(&["man", "--dir", pages.to_str().unwrap()], &[]);
    assert_eq!(out.status.code(), Some(0), "{}", said(&out));
    assert!(pages.join("tollkeeper.1").is_file() && pages.join("tollkeeper-check.1").is_file());
}

/// The YAML files of a directory of the project.
fn yaml(dir: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(root().join(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    found.sort();
    found
}

/// Each variable that a config names, with something in it.
fn environment(config: &Path) -> Vec<(String, String)> {
    let value = |name: &str| match name {
        "LITELLM_MASTER_KEY" => "sk-some-long-master-key-1234",
        "DATABASE_URL" => "postgresql://litellm:x@litellm-postgres:5432/litellm",
        name if name.ends_with("_BASE") => "http://127.0.0.1:1",
        _ => "x",
    };
    let mut text = fs::read_to_string(config).unwrap();
    if text.contains("include: [stack.yaml]") {
        text.push_str(&fs::read_to_string(config.with_file_name("stack.yaml")).unwrap());
    }
    let mut found = Vec::new();
    for start in ["os.environ/", "${"] {
        for rest in text.split(start).skip(1) {
            let end = rest
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            // What has a default is left to it.
            if !rest[end..].starts_with(":-") {
                found.push((rest[..end].to_string(), value(&rest[..end]).to_string()));
            }
        }
    }
    found
}

#[test]
fn the_configs_that_are_shipped_can_be_used() {
    let mut configs = yaml("conf/examples");
    configs.extend(yaml("contrib/compose/conf"));
    configs.push(root().join("contrib/docker/config.yaml"));
    configs.push(root().join("contrib/debian/config.yaml"));
    assert!(configs.len() >= 9, "{configs:?}");
    for config in configs {
        // Its certificates are the reader's own, and `check` looks for them.
        if config.ends_with("conf/examples/tls.yaml") {
            continue;
        }
        let env = environment(&config);
        let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let out = run(&["check", "-c", config.to_str().unwrap()], &env);
        assert_eq!(out.status.code(), Some(0), "{}: {}", config.display(), said(&out));
    }
}

#[test]
fn the_compose_files_hold_together() {
    let mut files = yaml("contrib/compose");
    files.push(root().join("compose.yaml"));
    assert_eq!(files.len(), 3, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let mut stack: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
        stack.apply_merge().unwrap();
        let names = |key: &str| -> Vec<String> {
            let Some(map) = stack.get(key).and_then(|m| m.as_mapping()) else {
                return Vec::new();
            };
            map.keys().map(|k| k.as_str().unwrap().to_string()).collect()
        };
        let services = stack["services"].as_mapping().unwrap();
        for (name, service) in services {
            let at = format!("{}: {}", file.display(), name.as_str().unwrap());
            assert!(
                service.get("image").is_some() || service.get("build").is_some(),
                "{at}"
            );
            assert!(service.get("restart").is_some(), "{at}");
            for network in service
                .get("networks")
                .and_then(|n| n.as_sequence())
                .into_iter()
                .flatten()
            {
                assert!(
                    names("networks").contains(&network.as_str().unwrap().to_string()),
                    "{at}"
                );
            }
            if let Some(others) = service.get("depends_on").and_then(|d| d.as_mapping()) {
                for (other, how) in others {
                    assert!(services.contains_key(other), "{at}");
                    if how["condition"].as_str() == Some("service_healthy") {
                        assert!(services[other].get("healthcheck").is_some(), "{at}");
                    }
                }
            }
            for volume in service
                .get("volumes")
                .and_then(|n| n.as_sequence())
                .into_iter()
                .flatten()
            {
                let from = volume.as_str().unwrap().split(':').next().unwrap();
                if let Some(path) = from.strip_prefix("./") {
                    assert!(file.parent().unwrap().join(path).exists(), "{at}: {from}");
                } else if !from.starts_with(['/', '$']) {
                    assert!(names("volumes").contains(&from.to_string()), "{at}: {from}");
                }
            }
        }
        let gateway = &stack["services"]["litellm"];
        assert_eq!(
            gateway["stop_grace_period"].as_str(),
            Some("75s"),
            "{}",
            file.display()
        );
        let command: Vec<&str> = gateway["command"].as_str().unwrap().split_whitespace().collect();
        assert_eq!(&command[..2], ["--config", "/app/config.yaml"]);
    }
}

/// A unit file as section, key, values.
fn unit(path: &str) -> BTreeMap<(String, String), Vec<String>> {
    let mut found: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in fs::read_to_string(root().join(path)).unwrap().lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_string();
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            let place = (section.clone(), key.to_string());
            found.entry(place).or_default().push(value.to_string());
        }
    }
    found
}

#[test]
fn the_unit_is_hardened_and_speaks_the_protocol() {
    let unit = unit("contrib/systemd/tollkeeper.service");
    let service = |key: &str| unit.get(&("Service".into(), key.into())).map(|v| v.join(" "));
    for (key, value) in [
        ("Type", "notify"),
        ("NotifyAccess", "all"),
        ("User", "tollkeeper"),
        ("StateDirectory", "tollkeeper"),
        ("StateDirectoryMode", "0700"),
        ("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE"),
        ("AmbientCapabilities", "CAP_NET_BIND_SERVICE"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateDevices", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
        // Exit code 78: a start with the same config would fail the same way.
        ("RestartPreventExitStatus", "2 78"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
    ] {
        assert_eq!(service(key).as_deref(), Some(value), "{key}");
    }
    assert!(service("WatchdogSec").is_some() && service("SystemCallFilter").is_some());
    let start = service("ExecStart").unwrap();
    assert_eq!(start, "/usr/bin/tollkeeper --config /etc/tollkeeper/config.yaml");
}

#[test]
fn the_image_is_what_the_readme_says() {
    let text = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let last = text.rsplit("\nFROM ").next().unwrap();
    for line in [
        "USER 10001:10001",
        "EXPOSE 4000",
        "STOPSIGNAL SIGTERM",
        "VOLUME [\"/var/lib/tollkeeper\"]",
        "ENTRYPOINT [\"tollkeeper\", \"supervise\", \"--\"]",
    ] {
        assert!(last.lines().any(|l| l == line), "{line}");
    }
    assert!(last.contains("HEALTHCHECK") && last.contains("[\"tollkeeper\", \"healthcheck\"]"));
    assert!(text.contains("--profile dist --locked"));
}

#[tokio::test]
async fn the_image_s_health_commands_are_answered() {
    // What compose files written for LiteLLM ask, without a key.
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    for path in [
        "/health",
        "/health/liveliness",
        "/health/liveness",
        "/health/readiness",
    ] {
        assert_eq!(ask(&gateway, "GET", path, &[], "").await.status(), 200, "{path}");
    }
    let answer = chat(&gateway, &json!({"model": "small", "messages": []})).await;
    assert_eq!(answer.status(), 200);
}
