//! The command line against a running gateway, and against scripted servers for what a gateway does not do.

use crate::kit::client::{self, ask};
use crate::kit::gateway::{BINARY, Gateway, MASTER, Setup, free_port};
use crate::kit::upstream::{Script, Upstream};
use crate::kit::{process, until, within};
use filters::model::key::KeyHash;
use filters::model::record::{Record, Status};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// What a command left behind.
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    fn ok(self) -> Done {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.out))
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Done {
        Done {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A place that commands run in, with an environment of their own.
struct Shell {
    dir: tempfile::TempDir,
    env: Vec<(String, String)>,
}

impl Shell {
    fn new(env: &[(&str, &str)]) -> Shell {
        Shell {
            dir: tempfile::tempdir().unwrap(),
            env: env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        }
    }

    /// At a gateway, with its master key.
    fn at(gateway: &Gateway) -> Shell {
        Shell::new(&[
            ("TOLLKEEPER_URL", &format!("http://{}", gateway.at)),
            ("TOLLKEEPER_API_KEY", MASTER),
        ])
    }

    fn dress<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path())
            .env("TZ", "UTC")
            .envs(self.env.iter().map(|(k, v)| (k, v)))
    }

    async fn run(&self, args: &[&str]) -> Done {
        self.feed(args, "").await
    }

    /// Runs a command that reads `input` on stdin.
    async fn feed(&self, args: &[&str], input: &str) -> Done {
        let stdin = self.dir.path().join("stdin");
        fs::write(&stdin, input).unwrap();
        let mut command = Command::new(BINARY);
        self.dress(&mut command)
            .args(args)
            .stdin(File::open(&stdin).unwrap());
        let run = tokio::task::spawn_blocking(move || command.output().unwrap());
        within(&format!("{args:?} ends"), run).await.unwrap().into()
    }

    /// Starts a command that goes on; its stdout and stderr go to the files `out` and `err`.
    fn start(&self, args: &[&str]) -> Running {
        let (out, err) = (self.dir.path().join("out"), self.dir.path().join("err"));
        let child = process::spawn(BINARY, |c| {
            self.dress(c)
                .env("PATH", std::env::var_os("PATH").unwrap_or_default())
                .args(args)
                .stdin(Stdio::null())
                .stdout(File::create(&out).unwrap())
                .stderr(File::create(&err).unwrap());
        });
        Running { child, out, err }
    }
}

struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    fn out(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    async fn shows(&self, text: &str) {
        until(&format!("{text} is shown"), async || self.out().contains(text)).await;
    }

    /// As Ctrl-C does.
    async fn interrupt(&mut self) -> i32 {
        process::signal(&self.child, "INT");
        self.ended().await
    }

    async fn ended(&mut self) -> i32 {
        let mut status = None;
        until("the command ends", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code().expect("it ends by itself")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls the model `small` with a key; the status and the call's id.
async fn call(gateway: &Gateway, key: &str) -> (u16, String) {
    let body = json!({"model": "small", "messages": []}).to_string();
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let answer = ask(gateway, "POST", "/v1/chat/completions", &headers, body).await;
    (answer.status(), answer.head.id().to_string())
}

#[tokio::test]
async fn a_keys_life() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    let shell = Shell::at(&gateway);

    let none = shell.run(&["key", "list"]).await.ok();
    assert_eq!(none.out, "");
    assert!(none.err.contains("no keys yet"), "{}", none.err);

    let made = shell
        .run(&[
            "key",
            "create",
            "--name",
            "My Project",
            "--models",
            "small,other",
            "--budget",
            "50",
            "--duration",
            "30d",
            "--rpm",
            "60",
            "--tag",
            "t",
            "--metadata",
            "who=me",
        ])
        .await
        .ok();
    let key = made.out.trim_end();
    assert!(
        key.starts_with("sk-") && !key.contains(char::is_whitespace),
        "{:?}",
        made.out
    );
    assert!(!made.err.contains(key), "the key is shown once: {}", made.err);
    for part in [
        "models small, other",
        "budget $50.00",
        "(in 30 d)",
        &format!("OPENAI_BASE_URL=http://{}/v1", gateway.at),
        "logs -f --key 'My Project'",
    ] {
        assert!(made.err.contains(part), "{part} in {}", made.err);
    }
    assert_eq!(call(&gateway, key).await.0, 200);

    let list = shell.run(&["key", "list"]).await.ok();
    assert!(
        !list.out.contains('\u{1b}'),
        "no colours in a pipe: {:?}",
        list.out
    );
    let lines: Vec<&str> = list.out.lines().collect();
    assert!(lines[0].starts_with("NAME ") && lines.len() == 2, "{}", list.out);
    for part in ["My Project", "small other", "/ $50 ", "░", "30 d", "active"] {
        assert!(lines[1].contains(part), "{part} in {}", list.out);
    }
    let rows = shell.run(&["key", "list", "--json"]).await.ok().json();
    let hash = rows[0]["token"].as_str().unwrap().to_string();
    assert_eq!(
        (&rows[0]["key_alias"], &rows[0]["rpm_limit"]),
        (&json!("My Project"), &json!(60))
    );

    // By name, by hash, by its start, as a key on stdin.
    for name in ["My Project", &hash, &hash[..8]] {
        let row = shell.run(&["key", "info", name, "--json"]).await.ok().json();
        assert_eq!(row["token"], json!(hash), "{name}");
    }
    let info = shell.feed(&["key", "info", "-"], key).await.ok();
    for part in ["My Project", &hash, "of $50", "60 requests a minute", "who=me"] {
        assert!(info.out.contains(part), "{part} in {}", info.out);
    }
    let refused = shell.run(&["key", "info", key]).await;
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(!refused.err.contains(key), "{}", refused.err);
    let unknown = shell.run(&["key", "info", "nobody"]).await;
    assert_eq!(unknown.code, 1);
    assert!(
        unknown.err.contains("no key is named \"nobody\""),
        "{}",
        unknown.err
    );

    let line = [
        "key",
        "update",
        "My Project",
        "--budget",
        "none",
        "--duration",
        "none",
        "--models",
        "small",
        "--metadata",
        "more=x",
    ];
    let updated = shell.run(&line).await.ok();
    assert!(
        updated
            .err
            .contains("models small · no budget · 60 requests a minute · never expires"),
        "{}",
        updated.err
    );
    let mistyped = ["key", "update", "My Project", "--models", "small,smal"];
    let mistyped = shell.run(&mistyped).await.ok();
    assert!(
        mistyped
            .err
            .contains("no model is called smal: did you mean small?"),
        "{}",
        mistyped.err
    );
    let row = shell.run(&["key", "info", &hash, "--json"]).await.ok().json();
    assert_eq!(row["metadata"], json!({"who": "me", "more": "x"}));
    assert_eq!(
        (&row["max_budget"], &row["expires"], &row["rpm_limit"]),
        (&Value::Null, &Value::Null, &json!(60))
    );

    let blocked = shell.run(&["key", "block", "My Project", "--json"]).await.ok();
    assert_eq!(blocked.json()["blocked"], true);
    assert_eq!(call(&gateway, key).await.0, 401);
    assert!(shell.run(&["key", "list"]).await.ok().out.contains("blocked"));
    shell.run(&["key", "unblock", "My Project"]).await.ok();
    assert_eq!(call(&gateway, key).await.0, 200);

    let unasked = shell.run(&["key", "delete", "My Project"]).await;
    assert_eq!(unasked.code, 2, "nobody can be asked: {}", unasked.err);
    let deleted = shell.run(&["key", "delete", "My Project", "--yes"]).await.ok();
    assert!(
        deleted.err.contains("✓ Deleted key \"My Project\""),
        "{}",
        deleted.err
    );
    assert_eq!(call(&gateway, key).await.0, 401);
}

#[tokio::test]
async fn a_key_of_ones_own_and_refusals() {
    let gateway = Setup::new().start().await;
    let shell = Shell::at(&gateway);
    let own = "sk-my-own-key-for-the-tests";
    let args = ["key", "create", "--name", "own", "--key-stdin", "--quiet"];
    let made = shell.feed(&args, &format!("{own}\n")).await.ok();
    assert_eq!((made.out.trim_end(), made.err.as_str()), (own, ""));
    let twice = shell.run(&["key", "create", "--name", "own"]).await;
    assert_eq!((twice.code, twice.out.as_str()), (1, ""));
    assert!(
        twice.err.contains("already exists") && twice.err.contains("request id"),
        "{}",
        twice.err
    );
    let empty = shell.feed(&args, "").await;
    assert_eq!(empty.code, 2, "{}", empty.err);
    let made = shell.run(&["key", "create", "--json"]).await.ok();
    assert!(made.json()["key"].as_str().unwrap().starts_with("sk-"));

    // The holder of a key looks at it, and may make no other.
    let holder = Shell::new(&[
        ("TOLLKEEPER_URL", &format!("http://{}/v1", gateway.at)),
        ("TOLLKEEPER_API_KEY", own),
    ]);
    let info = holder.run(&["key", "info"]).await.ok();
    assert!(info.out.contains("own"), "{}", info.out);
    let list = holder.run(&["key", "list"]).await.ok();
    assert!(list.out.contains("own"), "{}", list.out);
    let more = holder.run(&["key", "create"]).await;
    assert_eq!(more.code, 1);
    assert!(more.err.contains("Only proxy admin"), "{}", more.err);
}

#[tokio::test]
async fn long_lists_are_read_to_their_end() {
    let gateway = Setup::new().start().await;
    for n in 0..101 {
        gateway
            .key(&format!("sk-one-of-many-keys-{n}"), |k| {
                k.key_alias = Some(format!("k{n}"))
            })
            .await;
    }
    let shell = Shell::at(&gateway);
    let rows = shell.run(&["key", "list", "--json"]).await.ok().json();
    let mut names: Vec<&str> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["key_alias"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 101);
    let mine = shell
        .run(&["key", "list", "--json", "--user", "nobody"])
        .await
        .ok()
        .json();
    assert_eq!(mine, json!([]));
}

#[tokio::test]
async fn calls_are_shown_and_followed() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new()
        .deployment(
            "small",
            &upstream.base(),
            json!({"input_cost_per_token": 0.00001, "output_cost_per_token": 0.00002}),
        )
        .start()
        .await;
    gateway
        .key("sk-first-key-of-the-logs", |k| k.key_alias = Some("first".into()))
        .await;
    gateway
        .key("sk-second-key-of-the-logs", |k| {
            k.key_alias = Some("second".into())
        })
        .await;
    let (_, one) = call(&gateway, "sk-first-key-of-the-logs").await;
    let (_, two) = call(&gateway, "sk-second-key-of-the-logs").await;
    let wrong = json!({"model": "nothing", "messages": []});
    let failed = client::chat(&gateway, &wrong).await.head.id().to_string();
    gateway.rows_once(3).await;

    let shell = Shell::at(&gateway);
    let logs = shell.run(&["logs"]).await.ok();
    let lines: Vec<&str> = logs.out.lines().collect();
    assert_eq!(lines.len(), 4, "{}", logs.out);
    assert!(lines[0].starts_with("TIME "), "{}", logs.out);
    assert!(
        lines[1].ends_with(&one) && lines[2].ends_with(&two) && lines[3].ends_with(&failed),
        "oldest first: {}",
        logs.out
    );
    for part in [" 200 ", " first ", " small ", " 7  3 ", "$0.00013 ", " ms "] {
        assert!(lines[1].contains(part), "{part:?} in {}", lines[1]);
    }
    let ids = |done: Done| -> Vec<String> {
        let rows = done
            .ok()
            .out
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap())
            .collect::<Vec<_>>();
        rows.iter()
            .map(|r| r["request_id"].as_str().unwrap().to_string())
            .collect()
    };
    for (filter, want) in [
        (&["--key", "second"][..], &[&two][..]),
        (&["--status", "4xx"], &[&failed]),
        (&["--status", "success", "-n", "1"], &[&two]),
        (&["--model", "small"], &[&one, &two]),
        (&["-n", "2"], &[&two, &failed]),
        (&["--model", "small", "--status", "failure"], &[]),
    ] {
        let args = [&["logs", "--json"], filter].concat();
        let want: Vec<&str> = want.iter().map(|id| id.as_str()).collect();
        assert_eq!(ids(shell.run(&args).await), want, "{filter:?}");
    }

    let mut all = shell.start(&["logs", "-f", "--json", "-n", "2"]);
    let filtered = Shell::at(&gateway);
    let mut some = filtered.start(&["logs", "-f", "--key", "first", "-n", "0"]);
    all.shows(&failed).await;
    some.shows("TIME ").await;
    let mut later = Vec::new();
    for key in [
        "sk-first-key-of-the-logs",
        "sk-second-key-of-the-logs",
        "sk-first-key-of-the-logs",
    ] {
        later.push(call(&gateway, key).await.1);
    }
    for id in &later {
        all.shows(id).await;
    }
    some.shows(&later[2]).await;
    assert_eq!((all.interrupt().await, some.interrupt().await), (0, 0));
    let shown: Vec<String> = all
        .out()
        .lines()
        .map(|l| {
            serde_json::from_str::<Value>(l).unwrap()["request_id"]
                .as_str()
                .unwrap()
                .to_string()
        })
        .collect();
    assert_eq!(
        shown,
        [&[two, failed][..], &later].concat(),
        "each once, in order"
    );
    let some = some.out();
    assert_eq!(some.lines().count(), 3, "{some}");
    assert!(some.contains(&later[0]) && !some.contains(&later[1]), "{some}");
}

#[tokio::test]
async fn following_outlives_a_restart() {
    let upstream = Upstream::good().await;
    let mut gateway = Setup::new().model("small", &upstream).start().await;
    let (_, one) = call(&gateway, MASTER).await;
    gateway.rows_once(1).await;
    // A server between, since a restarted gateway takes another port.
    let at = std::sync::Arc::new(std::sync::Mutex::new(Some(gateway.at)));
    let to = at.clone();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let between = tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let to = *to.lock().unwrap();
            tokio::spawn(async move {
                if let Some(to) = to
                    && let Ok(mut to) = tokio::net::TcpStream::connect(to).await
                {
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                }
            });
        }
    });
    let shell = Shell::new(&[("TOLLKEEPER_URL", &url), ("TOLLKEEPER_API_KEY", MASTER)]);
    let mut logs = shell.start(&["logs", "-f"]);
    logs.shows(&one).await;
    *at.lock().unwrap() = None;
    gateway.stop().await;
    until("it says that the gateway is away", async || {
        fs::read_to_string(&logs.err).unwrap().contains("Asking on")
    })
    .await;
    gateway.up().await;
    *at.lock().unwrap() = Some(gateway.at);
    let (_, two) = call(&gateway, MASTER).await;
    logs.shows(&two).await;
    assert_eq!(logs.interrupt().await, 0);
    assert_eq!(logs.out().matches(&one).count(), 1, "{}", logs.out());
    between.abort();
}

#[tokio::test]
async fn a_closed_pipe_is_no_failure() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    for _ in 0..3 {
        call(&gateway, MASTER).await;
    }
    gateway.rows_once(3).await;
    let shell = Shell::at(&gateway);
    // `-f` ends as well, though no further call comes.
    for args in ["logs -n 3", "logs -f", "logs -f -n 0", "key list --json"] {
        let line = format!("{{ '{BINARY}' {args}; echo code $? >&2; }} | head -n 1");
        let mut command = Command::new("sh");
        shell
            .dress(&mut command)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .args(["-c", &line])
            .stdin(Stdio::null());
        let run = tokio::task::spawn_blocking(move || command.output().unwrap());
        let done = Done::from(within(&format!("{args} ends"), run).await.unwrap());
        assert_eq!(done.err, "code 0\n", "{args}");
        assert_eq!(done.out.lines().count(), 1, "{args}: {}", done.out);
    }
}

#[tokio::test]
async fn what_is_not_there_is_told() {
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let shell = Shell::new(&[("TOLLKEEPER_API_KEY", "sk-a-key-nobody-made")]);
    let away = shell.run(&["key", "list", "--url", &nowhere]).await;
    assert_eq!(away.code, 69, "{}", away.err);
    for part in [nowhere.as_str(), "--url", "refused", "TOLLKEEPER_URL"] {
        assert!(away.err.contains(part), "{part} in {}", away.err);
    }
    assert_eq!(shell.run(&["healthcheck", "--url", &nowhere]).await.code, 1);

    let gateway = Setup::new().start().await;
    let url = format!("http://{}", gateway.at);
    let bad = shell.run(&["key", "list", "--url", &url]).await;
    assert_eq!(bad.code, 1);
    assert!(bad.err.contains("key from TOLLKEEPER_API_KEY"), "{}", bad.err);
    assert!(!bad.err.contains("sk-a-key-nobody-made"), "{}", bad.err);
    shell.run(&["healthcheck", "--url", &url]).await.ok();
    shell.run(&["healthcheck", "--ready", "--url", &url]).await.ok();

    // Nothing that holds a key: what was looked at is told.
    let bare = Shell::new(&[("TOLLKEEPER_URL", &url), ("TOLLKEEPER_DATA_DIR", "data")]);
    let lost = bare.run(&["key", "list"]).await;
    assert_eq!(lost.code, 78, "{}", lost.err);
    for part in ["TOLLKEEPER_API_KEY", "config.yaml", "data/master.key"] {
        assert!(lost.err.contains(part), "{part} in {}", lost.err);
    }
    assert!(!bare.dir.path().join("data").exists(), "looking makes nothing");
    // A page of somebody else's.
    let other = Upstream::start(|_| Script::answer(200, &[("content-type", "text/html")], "<html>")).await;
    let page = shell
        .run(&[
            "key",
            "list",
            "--url",
            &format!("http://127.0.0.1:{}", other.port),
        ])
        .await;
    assert_eq!(page.code, 1);
    assert!(
        page.err.contains("does not speak the management API"),
        "{}",
        page.err
    );
}

#[tokio::test]
async fn address_and_key_come_from_the_config() {
    let gateway = Setup::new().start().await;
    let config = |dir: &Path, general: &str| {
        let listener = format!(
            "tollkeeper: {{listeners: [{{address: '0.0.0.0:{}'}}]}}",
            gateway.at.port()
        );
        fs::write(
            dir.join("config.yaml"),
            format!("general_settings: {general}\n{listener}\n"),
        )
        .unwrap();
    };
    let shell = Shell::new(&[("TOLLKEEPER_DATA_DIR", "data")]);
    config(shell.dir.path(), &format!("{{master_key: {MASTER}}}"));
    assert_eq!(shell.run(&["key", "list", "--json"]).await.ok().json(), json!([]));
    shell.run(&["healthcheck"]).await.ok();
    let shown = shell.run(&["key", "show-master"]).await.ok();
    assert_eq!(shown.out, format!("{MASTER}\n"));

    // Without one in the config, the file that the gateway makes.
    config(shell.dir.path(), "{}");
    let data = shell.dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("master.key"), format!("{MASTER}\n")).unwrap();
    let shown = shell.run(&["key", "show-master"]).await.ok();
    assert_eq!(shown.out, format!("{MASTER}\n"));
    assert!(shown.err.contains("data/master.key"), "{}", shown.err);
    assert_eq!(shell.run(&["key", "list", "--json"]).await.ok().json(), json!([]));
    // The environment's key wins, and is named when it is refused.
    let other = Shell {
        env: [
            &shell.env[..],
            &[("LITELLM_MASTER_KEY".into(), "sk-another-master-key".into())],
        ]
        .concat(),
        dir: shell.dir,
    };
    let refused = other.run(&["key", "list"]).await;
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains("key from LITELLM_MASTER_KEY"),
        "{}",
        refused.err
    );
}

/// A server that answers `GET` paths with these bodies, and keeps what it was asked.
async fn scripted(answer: impl Fn(&str) -> Value + Send + Sync + 'static) -> (Upstream, Shell) {
    let server = Upstream::start(move |seen| Script::json(200, &answer(&seen.target))).await;
    let shell = Shell::new(&[
        ("TOLLKEEPER_URL", &format!("http://127.0.0.1:{}", server.port)),
        ("TOLLKEEPER_API_KEY", MASTER),
    ]);
    (server, shell)
}

/// Days before today, UTC.
fn days_ago(days: i64) -> jiff::civil::Date {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    today.checked_sub(jiff::Span::new().days(days)).unwrap()
}

#[tokio::test]
async fn usage_is_added_up_out_of_the_ledger() {
    crate::kit::away_from_midnight().await;
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    let shell = Shell::at(&gateway);
    shell.run(&["key", "create", "--name", "app", "-q"]).await.ok();
    let team = json!({"team_id": "red", "team_alias": "The Reds\u{202e}"});
    let made = ask(&gateway, "POST", "/team/new", &[], team.to_string()).await;
    assert_eq!(made.status(), 200, "{made:?}");
    let listed = shell.run(&["key", "list", "--json"]).await.ok().json();
    let hash = listed[0]["token"].as_str().unwrap();
    // More days than a page has, and than the gateway reports at once.
    let days = [0, 1, 2, 3, 4, 5, 6, 7, 500];
    let calls = days.map(|day| Record {
        started_micros: jiff::Timestamp::now().as_microsecond() - day * 86_400_000_000,
        model_group: if day < 3 { "small" } else { "=large, 1" }.into(),
        key_hash: KeyHash::from_hex(hash),
        user_id: Some("alice".into()),
        team_id: (day != 0).then(|| "red".into()),
        status: if day == 1 { Status::Cut } else { Status::Success },
        prompt_tokens: 1_000,
        completion_tokens: 10,
        spend_nanos: if day == 2 { 0 } else { 100_000_001 },
        priced: day != 2,
        ..crate::store::record(&format!("call {day}"))
    });
    gateway.store().await.append(&calls).await.unwrap();

    let long = days_ago(600).to_string();
    let table = shell.run(&["usage", "--since", &long]).await.ok();
    let lines: Vec<Vec<&str>> = table
        .out
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0],
        [
            "MODEL", "REQUESTS", "FAILED", "TOKENS", "IN", "TOKENS", "OUT", "SPEND"
        ]
    );
    assert_eq!(lines[1], ["=large,", "1", "6", "0", "6,000", "60", "$0.60"]);
    assert_eq!(lines[2], ["small", "3", "1", "3,000", "30", "$0.20*"]);
    assert_eq!(lines[3], ["total", "9", "1", "9,000", "90", "$0.80*"]);
    assert!(
        table.err.contains(
            "\n* 1 call is not priced and in no sum of money: set its model's input_cost_per_token"
        ),
        "{}",
        table.err
    );
    for (by, id, alias, n) in [
        ("key", hash, json!("app"), 9),
        ("user", "alice", Value::Null, 9),
        ("team", "red", team["team_alias"].clone(), 8),
        ("model", "=large, 1", Value::Null, 6),
    ] {
        let json = shell
            .run(&["usage", "--by", by, "--since", &long, "--json"])
            .await
            .ok()
            .json();
        let first = &json["results"][0];
        assert_eq!(
            (
                &first[by],
                &first[format!("{by}_alias")],
                &first["metrics"]["api_requests"]
            ),
            (&json!(id), &alias, &json!(n)),
            "{by}"
        );
        assert_eq!(json["total"]["spend"].to_string(), "0.800000008", "{by}");
        assert_eq!(json["total"]["unpriced_requests"], 1, "{by}");
        assert_eq!(json["total"]["failed_requests"], 1, "{by}");
    }
    let teams = shell.run(&["usage", "--by", "team"]).await.ok();
    assert!(
        teams.out.contains("The Reds\\u{202e}") && teams.out.contains("(no team)"),
        "{:?}",
        teams.out
    );
    // Seven days, today included.
    let csv = shell.run(&["usage", "--by", "day", "--csv"]).await.ok();
    let mut want =
        "day,requests,successful,failed,prompt_tokens,completion_tokens,spend_usd,unpriced\n".to_string();
    for day in (0..7).rev() {
        let failed = i64::from(day == 1);
        let (spend, unpriced) = if day == 2 { ("0", 1) } else { ("0.100000001", 0) };
        want += &format!(
            "{},1,{},{failed},1000,10,{spend},{unpriced}\n",
            days_ago(day),
            1 - failed
        );
    }
    assert_eq!(csv.out, want);
    assert_eq!(shell.run(&["usage", "--since", "soon"]).await.code, 2);

    // A key's own, and what is refused.
    let own = shell.run(&["key", "create", "--name", "other", "-q"]).await.ok();
    let holder = Shell::new(&[
        ("TOLLKEEPER_URL", &format!("http://{}", gateway.at)),
        ("TOLLKEEPER_API_KEY", own.out.trim()),
    ]);
    let nothing = holder.run(&["usage", "--json"]).await.ok().json();
    assert_eq!(nothing["results"], json!([]));
}

#[tokio::test]
async fn a_key_is_rotated() {
    let (server, shell) = scripted(|target| match target.starts_with("/key/list") {
        true => json!({"keys": [{"token": "ab12", "key_alias": "app", "key_name": "sk-...0000"}], "total_count": 1}),
        false => json!({"key": "sk-the-new-one", "token": "cd34", "key_alias": "app", "key_name": "sk-...-one"}),
    })
    .await;
    let rotated = shell.run(&["key", "rotate", "app", "--grace", "1h"]).await.ok();
    assert_eq!(rotated.out, "sk-the-new-one\n");
    assert!(rotated.err.contains("works for 1h more"), "{}", rotated.err);
    let asked = server.last();
    assert_eq!(asked.target, "/key/regenerate");
    assert_eq!(asked.json(), json!({"key": "ab12", "grace_period": "1h"}));
    let quiet = shell.run(&["key", "rotate", "app", "-q"]).await.ok();
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("sk-the-new-one\n", ""));
}

#[tokio::test]
async fn names_cannot_drive_a_terminal() {
    let evil = "a\u{1b}]0;x\u{7}\u{9b}2J\nb\u{202e}";
    let (_server, shell) = scripted(move |target| match target.starts_with("/key/list") {
        true => json!({"keys": [{"token": "ab12", "key_alias": evil, "key_name": evil, "models": [evil],
            "metadata": {evil: evil}, "tags": [evil], "user_id": evil}], "total_count": 1}),
        false => {
            json!([{"request_id": evil, "key_alias": evil, "model": evil, "status": evil, "outcome": evil}])
        }
    })
    .await;
    for args in [
        &["key", "list"][..],
        &["key", "list", "--json"],
        &["key", "info", evil],
        &["logs"],
        &["logs", "--json"],
    ] {
        let done = shell.run(args).await.ok();
        let acts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(
            !done.out.contains(acts) && !done.err.contains(acts),
            "{args:?}: {:?}",
            done.out
        );
        if args.contains(&"--json") {
            assert!(done.out.contains("\\u009b"), "{}", done.out);
            let whole: Value = serde_json::from_str(&done.out).unwrap();
            assert!(whole.to_string().contains('\u{9b}'), "the value is the same");
        }
    }
}
