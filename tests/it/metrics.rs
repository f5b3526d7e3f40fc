//! `/metrics`: what is shown after real calls, to whom, and that callers cannot make it grow.

use crate::kit::client::{Conn, ask, chat};
use crate::kit::gateway::{Gateway, Setup};
use crate::kit::until;
use crate::kit::upstream::{Script, Upstream, delta, usage};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use tollkeeper::telemetry::metrics::catalog;
use tollkeeper::telemetry::metrics::page::{Family, Kind};

async fn page(gateway: &Gateway) -> String {
    let answer = ask(gateway, "GET", "/metrics", &[], "").await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.text()
}

/// The value of the one series that starts so.
fn value(text: &str, start: &str) -> Option<f64> {
    let mut found = text.lines().filter(|l| l.starts_with(start));
    let line = found.next()?;
    assert!(found.next().is_none(), "{start} is not one series");
    line.rsplit(' ').next()?.parse().ok()
}

/// Waits until the series is there: a call is counted when its client has the last byte already.
async fn comes(gateway: &Gateway, start: &str, wanted: f64) -> String {
    let mut text = String::new();
    until(&format!("{start} is {wanted}"), async || {
        text = page(gateway).await;
        value(&text, start) == Some(wanted)
    })
    .await;
    text
}

fn series(text: &str) -> usize {
    text.lines().filter(|l| !l.starts_with('#')).count()
}

/// Holds every line against the catalog.
#[track_caller]
fn check_shape(text: &str) {
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let family = family(name);
            assert_eq!(kind, family.kind.as_str(), "{name}");
        }
        if line.starts_with('#') {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(seen.insert(series.to_string()), "twice: {line}");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let family = family(name);
        let mut names: Vec<&str> = labels
            .split("\",")
            .filter_map(|l| l.split_once("=\"").map(|(n, _)| n))
            .collect();
        if name.ends_with("_bucket") && family.kind == Kind::Histogram {
            assert_eq!(names.pop(), Some("le"), "{line}");
        }
        assert_eq!(names, family.labels, "{line}");
    }
}

#[track_caller]
fn family(name: &str) -> &'static Family {
    let bare = ["_bucket", "_sum", "_count"]
        .iter()
        .find_map(|s| name.strip_suffix(s));
    let is_it = |f: &&&'static Family| f.name == name || (f.kind == Kind::Histogram && Some(f.name) == bare);
    catalog::ALL
        .iter()
        .find(is_it)
        .unwrap_or_else(|| panic!("{name} is not in the catalog"))
}

#[tokio::test]
async fn every_call_leaves_its_figures() {
    let good = Upstream::start(|seen| {
        let asked: Value = serde_json::from_slice(&seen.body()).unwrap();
        if asked["stream"] == json!(true) {
            let events = [delta("a"), delta("b"), usage(5, 2), "[DONE]".into()];
            let events: Vec<&str> = events.iter().map(String::as_str).collect();
            return Script::sse(&events).end();
        }
        Script::chat("hello")
    })
    .await;
    let broken = Upstream::start(|_| Script::error(500, "no")).await;
    let price = json!({"input_cost_per_token": 0.001, "output_cost_per_token": 0.002});
    let with = |more: Value| {
        let mut all = price.clone();
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        all
    };
    let gateway = Setup::new()
        .deployment("two", &broken.base(), with(json!({"order": 1, "id": "first"})))
        .deployment("two", &good.base(), with(json!({"order": 2, "id": "second"})))
        .setting("metrics", json!({"litellm_names": true}))
        .start()
        .await;
    gateway
        .key("sk-with-a-budget-1", |k| {
            k.key_alias = Some("ci".into());
            k.max_budget_nanos = Some(1_000_000_000);
            k.extra.insert("rpm_limit".into(), json!(50));
        })
        .await;
    let who = [("authorization", "Bearer sk-with-a-budget-1")];
    for stream in [false, true] {
        let body = json!({"model": "two", "messages": [], "stream": stream, "user": "somebody"});
        let answer = ask(&gateway, "POST", "/v1/chat/completions", &who, body.to_string()).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let answer = chat(&gateway, &json!({"model": "nothing", "messages": []})).await;
    assert_eq!(answer.status(), 404);
    comes(
        &gateway,
        "litellm_requests_total{model=\"other\",status=\"404\"}",
        1.0,
    )
    .await;
    let text = comes(
        &gateway,
        "litellm_requests_total{model=\"two\",status=\"200\"}",
        2.0,
    )
    .await;
    check_shape(&text);
    let first = "{deployment=\"first\",model=\"two\",provider=\"openai\"";
    let second = "{deployment=\"second\",model=\"two\",provider=\"openai\"";
    for (start, wanted) in [
        ("litellm_tokens_total{model=\"two\",type=\"prompt\"}", 12.0),
        ("tollkeeper_tokens_total{model=\"two\",type=\"completion\"}", 5.0),
        ("tollkeeper_spend_nanodollars_total{model=\"two\"}", 22_000_000.0),
        ("tollkeeper_spend_dollars_total{model=\"two\"}", 0.022),
        ("litellm_request_duration_seconds_count{model=\"two\"}", 2.0),
        ("tollkeeper_upstream_duration_seconds_count{model=\"two\"}", 2.0),
        ("tollkeeper_time_to_first_token_seconds_count{model=\"two\"}", 1.0),
        (
            "tollkeeper_fallbacks_total{model=\"two\",outcome=\"answered\"}",
            2.0,
        ),
        (
            &format!("tollkeeper_deployment_attempts_total{first},outcome=\"server_error\"}}"),
            2.0,
        ),
        (
            &format!("tollkeeper_deployment_attempts_total{second},outcome=\"answered\"}}"),
            2.0,
        ),
        (&format!("tollkeeper_deployment_state{first}}}"), 1.0),
        (&format!("tollkeeper_deployment_state{second}}}"), 0.0),
        ("tollkeeper_deployments", 2.0),
        ("tollkeeper_config_generation", 1.0),
        ("tollkeeper_config_last_reload_successful", 1.0),
        ("tollkeeper_upstream_connections_total{kind=\"new\"}", 2.0),
        ("tollkeeper_budget_dollars{kind=\"key\",", 1.0),
        ("tollkeeper_budget_remaining_dollars{kind=\"key\",", 0.978),
        (
            "litellm_remaining_api_key_budget_metric{api_key_alias=\"ci\",",
            0.978,
        ),
        (
            "litellm_spend_metric_total{api_key_alias=\"ci\",end_user=\"None\",",
            0.022,
        ),
        ("litellm_input_tokens_metric_total{api_key_alias=\"ci\",", 12.0),
        ("litellm_deployment_failure_responses_total{", 2.0),
        ("tollkeeper_build_info{", 1.0),
    ] {
        if start.starts_with("tollkeeper_upstream_connections") {
            assert!(value(&text, start) >= Some(wanted), "{start}: {text}");
        } else {
            assert_eq!(value(&text, start), Some(wanted), "{start}: {text}");
        }
    }
    let limit = |name: &str| {
        let line = text
            .lines()
            .find(|l| l.starts_with(name) && l.contains("limit=\"requests\""));
        line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
    };
    assert_eq!(limit("tollkeeper_limit{"), Some(50.0));
    assert_eq!(limit("tollkeeper_limit_used{"), Some(2.0));
    assert!(!text.contains("somebody"), "nobody's end users are labels");
    let upstream = value(&text, "tollkeeper_upstream_duration_seconds_sum{model=\"two\"}").unwrap();
    let whole = value(&text, "tollkeeper_request_duration_seconds_sum{model=\"two\"}").unwrap();
    let overhead = value(&text, "tollkeeper_gateway_overhead_seconds_sum{model=\"two\"}").unwrap();
    assert!(upstream > 0.0 && overhead > 0.0);
    assert!(
        (whole - upstream - overhead).abs() < 1e-6,
        "{whole} = {upstream} + {overhead}"
    );
}

#[tokio::test]
async fn ten_thousand_invented_names_make_no_series() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .setting("metrics", json!({"litellm_names": true}))
        .start()
        .await;
    let call = |n: usize| match n % 4 {
        0 => json!({"model": format!("invented-{n}"), "messages": []}),
        1 => json!({"model": "small", "messages": [], "user": format!("invented-{n}")}),
        2 => json!({"model": "small", "messages": [], "tags": [format!("invented-{n}")]}),
        _ => {
            json!({"model": format!("invented/{n}"), "messages": [], "metadata": {"tags": [format!("invented-{n}")]}})
        }
    };
    // Each kind of call once, with a known key and with an invented one.
    let round = async |from: usize, n: usize| {
        let clients = (0..4).map(|client| {
            let at = gateway.at;
            let bodies: Vec<String> = (from..from + n)
                .filter(|n| n / 4 % 4 == client)
                .map(|n| call(n).to_string())
                .collect();
            tokio::spawn(async move {
                let mut conn = Conn::open(at).await;
                for (i, body) in bodies.iter().enumerate() {
                    let invented = format!("Bearer sk-invented-{i}");
                    let headers = [("authorization", invented.as_str())];
                    // Every tenth comes with a key that nobody has.
                    let headers = if i % 10 == 9 { &headers[..] } else { &[] };
                    let answer = conn
                        .ask("POST", "/v1/chat/completions", headers, body.as_bytes())
                        .await;
                    assert!([200, 401, 404].contains(&answer.status()), "{}", answer.text());
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
    };
    round(0, 160).await;
    let before = page(&gateway).await;
    round(1_000, 10_000).await;
    let after = page(&gateway).await;
    let (before, now) = (series(&before), series(&after));
    assert!(now <= before + 10, "{before} series became {now}");
    assert!(!after.contains("invented"), "no label is a caller's word");
}

#[tokio::test]
async fn who_is_not_on_the_list_needs_a_key() {
    let upstream = Upstream::good().await;
    let none = [("authorization", "")];
    let of = async |metrics: Value| {
        let gateway = Setup::new()
            .model("small", &upstream)
            .setting("metrics", metrics)
            .start()
            .await;
        let without = ask(&gateway, "GET", "/metrics", &none, "").await.status();
        let forwarded = [none[0], ("x-forwarded-for", "127.0.0.1")];
        let forged = ask(&gateway, "GET", "/metrics", &forwarded, "").await.status();
        let with = ask(&gateway, "GET", "/metrics", &[], "").await.status();
        (without, forged, with)
    };
    assert_eq!(of(json!({})).await, (200, 401, 200), "loopback is internal");
    assert_eq!(of(json!({"allow": ["10.9.8.7"]})).await, (401, 401, 200));
    assert_eq!(of(json!({"allow": ["127.0.0.1"]})).await, (200, 401, 200));
    let gateway = Setup::new().model("small", &upstream).start().await;
    let slash = ask(&gateway, "GET", "/metrics/", &none, "").await;
    assert!(
        slash.text().contains("tollkeeper_build_info{"),
        "{}",
        slash.text()
    );
    assert_eq!(of(json!({"auth": "required"})).await, (401, 401, 200));
    assert_eq!(of(json!({"auth": "open"})).await, (200, 200, 200));
    assert_eq!(of(json!({"enabled": false})).await, (404, 404, 404));
}

#[tokio::test]
async fn a_key_has_to_be_one_that_sees_everybody() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .setting("metrics", json!({"allow": ["10.9.8.7"]}))
        .start()
        .await;
    let mut found = Vec::new();
    for role in ["proxy_admin", "proxy_admin_viewer", "internal_user"] {
        let body = json!({"user_id": role, "user_role": role, "auto_create_key": false}).to_string();
        let made = ask(&gateway, "POST", "/user/new", &[], body).await;
        assert_eq!(made.status(), 200, "{}", made.text());
        let text = format!("sk-key-of-a-{role}");
        gateway.key(&text, |k| k.user_id = Some(role.into())).await;
        let bearer = format!("Bearer {text}");
        let answer = ask(&gateway, "GET", "/metrics", &[("authorization", &bearer)], "").await;
        found.push(answer.status());
        if answer.status() != 200 {
            assert!(answer.error().contains("metrics.allow"), "{}", answer.text());
        }
    }
    assert_eq!(found, [200, 200, 403]);
}

#[tokio::test]
async fn a_config_that_is_refused_is_seen() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    gateway.rewrite("model_list: nonsense");
    let text = comes(&gateway, "tollkeeper_config_last_reload_successful", 0.0).await;
    assert_eq!(value(&text, "tollkeeper_config_generation"), Some(1.0));
    gateway.rewrite(&Setup::new().model("other-one", &upstream).config());
    let text = comes(&gateway, "tollkeeper_config_generation", 2.0).await;
    assert_eq!(
        value(&text, "tollkeeper_config_last_reload_successful"),
        Some(1.0)
    );
    assert!(
        !text.contains("model=\"small\",provider"),
        "what is configured no longer is not shown"
    );
}

/// The table in the manual is made of the catalog: `BLESS=1 cargo test --test it metrics` writes it anew.
#[test]
fn the_manual_lists_every_metric() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- the list begins -->\n", "<!-- the list ends -->");
    let (before, rest) = text.split_once(start).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let mut table = String::from("\n| name | type | labels | unit | meaning |\n|---|---|---|---|---|\n");
    for f in catalog::ALL {
        let labels: Vec<String> = f.labels.iter().map(|l| format!("`{l}`")).collect();
        let labels = if labels.is_empty() {
            "–".into()
        } else {
            labels.join(", ")
        };
        table.push_str(&format!(
            "| `{}` | {} | {labels} | {} | {} |\n",
            f.name,
            f.kind.as_str(),
            f.unit,
            f.help
        ));
    }
    let wanted = format!("{before}{start}{table}\n{end}{after}");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &wanted).unwrap();
    } else {
        assert_eq!(text, wanted, "docs/metrics.md is not what the catalog says");
    }
}
