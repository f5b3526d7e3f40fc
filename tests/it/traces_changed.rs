//! Who is told of calls, changed while calls go on: by the config, and by keys and teams with projects of their
//! own, whose secrets nobody reads in the database.

use crate::kit::client::{Answer, ask};
use crate::kit::gateway::{Gateway, Setup};
use crate::kit::receiver::{Receiver, attribute, hex};
use crate::kit::upstream::Upstream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use filters::model::key::KeyHash;
use serde_json::{Value, json};
use tollkeeper::store::Table;

const SECRET: &str = "sk-lf-secret-of-a-team";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn setup(upstream: &Upstream, tracing: Value) -> Setup {
    let mut all = json!({"flush_every": "20ms"});
    all.as_object_mut()
        .unwrap()
        .extend(tracing.as_object().unwrap().clone());
    Setup::new().model("small", upstream).setting("tracing", all)
}

fn langfuse(receiver: &Receiver) -> Value {
    json!({"host": receiver.host(), "public_key": "pk-main", "secret_key": "sk-main"})
}

async fn call(gateway: &Gateway, headers: &[(&str, &str)]) -> Answer {
    let body = json!({"model": "small", "messages": [{"role": "user", "content": "Hi"}]});
    let answer = ask(gateway, "POST", "/v1/chat/completions", headers, body.to_string()).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer
}

async fn call_with(gateway: &Gateway, key: &str) {
    let who = format!("Bearer {key}");
    call(gateway, &[("authorization", &who)]).await;
}

async fn manage(gateway: &Gateway, method: &str, path: &str, body: Value) -> Value {
    let answer = ask(gateway, method, path, &[], body.to_string()).await;
    assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
    answer.json()
}

#[tokio::test]
async fn receivers_come_and_go_without_a_restart() {
    let upstream = Upstream::good().await;
    let (first, second) = (Receiver::start("3.100.0").await, Receiver::start("3.100.0").await);
    let otel = Receiver::start("").await;
    let gateway = setup(&upstream, json!({})).start().await;
    let change = async |tracing: Value| {
        gateway.rewrite(&setup(&upstream, tracing).config());
        let done = manage(&gateway, "POST", "/config/reload", json!({})).await;
        assert!(
            !done.to_string().contains("tollkeeper.tracing"),
            "no restart: {done}"
        );
    };
    call(&gateway, &[]).await;
    assert_eq!(first.asked(), 0, "nobody is told");

    change(json!({"langfuse": langfuse(&first)})).await;
    call(&gateway, &[]).await;
    first.spans_once(2).await;

    // Another receiver, and one more.
    let both = json!({"langfuse": langfuse(&second),
        "otlp": {"endpoint": format!("{}/v1/traces", otel.host()), "capture": "full"}});
    change(both.clone()).await;
    call(&gateway, &[]).await;
    second.spans_once(2).await;
    let told = otel.spans_once(2).await;
    assert!(
        told.iter()
            .any(|s| !attribute(s, "gen_ai.input.messages").is_empty())
    );

    // How much is told changes as well.
    let mut less = both;
    less["otlp"]["capture"] = "metadata".into();
    less["langfuse"]["capture"] = "metadata".into();
    change(less).await;
    call(&gateway, &[]).await;
    let told = [second.spans_once(4).await, otel.spans_once(4).await].concat();
    let later = [&told[2..4], &told[6..8]].concat();
    for span in &later {
        for name in ["langfuse.observation.input", "gen_ai.input.messages"] {
            assert_eq!(attribute(span, name), "", "{span:?}");
        }
    }

    change(json!({})).await;
    call(&gateway, &[]).await;
    let ready = ask(&gateway, "GET", "/health/readiness", &[], b"").await.json();
    assert_eq!(ready["traces"], Value::Null);
    let counts = [first.spans(), second.spans(), otel.spans()].map(|s| s.len());
    assert_eq!(counts, [2, 4, 4]);
}

#[tokio::test]
async fn what_waited_for_a_receiver_that_goes_is_told_to_it() {
    let upstream = Upstream::good().await;
    let (first, second) = (Receiver::start("3.100.0").await, Receiver::start("3.100.0").await);
    let slow = |receiver: &Receiver| {
        let tracing = json!({"flush_every": "1h", "langfuse": langfuse(receiver)});
        Setup::new().model("small", &upstream).setting("tracing", tracing)
    };
    let mut gateway = slow(&first).start().await;
    for _ in 0..3 {
        call(&gateway, &[]).await;
    }
    gateway.rewrite(&slow(&second).config());
    manage(&gateway, "POST", "/config/reload", json!({})).await;
    call(&gateway, &[]).await;
    first.spans_once(6).await;
    gateway
        .says("event=traces_receiver_removed exporter=langfuse")
        .await;
    gateway.stop().await;
    assert_eq!((first.spans().len(), second.spans().len()), (6, 2));
}

#[tokio::test]
async fn projects_of_keys_and_teams_are_sealed_where_they_are_kept() {
    let upstream = Upstream::good().await;
    let (main, own) = (Receiver::start("3.100.0").await, Receiver::start("3.100.0").await);
    let mut conf = langfuse(&main);
    conf["hosts"] = json!([own.host()]);
    let gateway = setup(&upstream, json!({"langfuse": conf})).start().await;
    let vars = |public: &str| json!({"langfuse_public_key": public, "langfuse_secret_key": SECRET, "langfuse_host": own.host()});
    let logging = json!([{"callback_name": "langfuse", "callback_vars": vars("pk-key")}]);
    let made = manage(
        &gateway,
        "POST",
        "/key/generate",
        json!({"metadata": {"logging": logging}}),
    )
    .await;
    let key = made["key"].as_str().unwrap();
    manage(&gateway, "POST", "/team/new", json!({"team_id": "red"})).await;
    let callback =
        json!({"callback_name": "langfuse", "callback_type": "success", "callback_vars": vars("pk-team")});
    let added = manage(&gateway, "POST", "/team/red/callback", callback).await;
    let made = manage(&gateway, "POST", "/key/generate", json!({"team_id": "red"})).await;
    let of_team = made["key"].as_str().unwrap();

    // In the database, and shown, there is no secret.
    let store = gateway.store().await;
    let kept = store.key_by_hash(&KeyHash::of(key)).await.unwrap().unwrap();
    let team = store.document(Table::Team, "red").await.unwrap().unwrap();
    let kept = format!("{:?} {:?}", kept.metadata, team.fields);
    assert!(
        !kept.contains(SECRET) && kept.matches("tk-sealed-1:").count() == 2,
        "{kept}"
    );
    let shown = ask(&gateway, "GET", "/team/red/callback", &[], b"").await.text();
    let audit = ask(&gateway, "GET", "/audit", &[], b"").await.text();
    for text in [&added.to_string(), &shown, &audit, &gateway.log()] {
        assert!(!text.contains(SECRET) && !text.contains("tk-sealed"), "{text}");
    }

    // Those who are to be told are told with it.
    call_with(&gateway, key).await;
    own.spans_once(2).await;
    call_with(&gateway, of_team).await;
    own.spans_once(4).await;
    for (taken, public) in own.taken().iter().zip(["pk-key", "pk-team"]) {
        let basic = format!("Basic {}", STANDARD.encode(format!("{public}:{SECRET}")));
        assert_eq!(taken.header("authorization"), basic);
    }

    // A team that nobody is to be told of.
    let off = manage(&gateway, "POST", "/team/red/disable_logging", json!({})).await;
    assert_eq!(off["data"]["success_callbacks"], json!([]));
    call_with(&gateway, of_team).await;
    call(&gateway, &[]).await;
    main.spans_once(2).await;
    assert_eq!(
        own.spans().len(),
        4,
        "only the other call is told, and to the gateway's project"
    );
}

#[tokio::test]
async fn a_callers_trace_goes_on_where_nobody_is_told() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    let seen = async |headers: &[(&str, &str)]| {
        call(&gateway, headers).await;
        let seen = upstream.last();
        let header = |name: &str| seen.header(name).map(str::to_string);
        (header("traceparent"), header("tracestate"))
    };
    let (parent, state) = seen(&[("traceparent", PARENT), ("tracestate", "a=b")]).await;
    assert_eq!((parent.as_deref(), state.as_deref()), (Some(PARENT), Some("a=b")));
    for odd in [
        &[("tracestate", "a=b")][..],
        &[("traceparent", "nonsense"), ("tracestate", "a=b")],
        &[("traceparent", PARENT), ("traceparent", PARENT)],
    ] {
        assert_eq!(seen(odd).await, (None, None), "{odd:?}");
    }
    // An upstream that the config calls somebody else's never hears of it.
    let mut config: Value = serde_json::from_str(&Setup::new().model("small", &upstream).config()).unwrap();
    config["model_list"][0]["model_info"]["internal"] = false.into();
    gateway.rewrite(&config.to_string());
    manage(&gateway, "POST", "/config/reload", json!({})).await;
    assert_eq!(seen(&[("traceparent", PARENT)]).await, (None, None));
}

#[tokio::test]
async fn a_call_that_hides_passes_its_trace_on_as_it_came() {
    let upstream = Upstream::good().await;
    let receiver = Receiver::start("3.100.0").await;
    let gateway = setup(&upstream, json!({"langfuse": langfuse(&receiver)}))
        .start()
        .await;
    let body = json!({"model": "small", "messages": [], "no-log": true}).to_string();
    let answer = ask(
        &gateway,
        "POST",
        "/v1/chat/completions",
        &[("traceparent", PARENT)],
        body,
    )
    .await;
    assert_eq!(answer.status(), 200);
    assert_eq!(upstream.last().header("traceparent"), Some(PARENT));
    call(&gateway, &[("traceparent", PARENT)]).await;
    let spans = receiver.spans_once(2).await;
    let generation = spans.iter().find(|s| s.kind != 2).unwrap();
    let want = format!(
        "00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01",
        hex(&generation.span_id)
    );
    assert_eq!(upstream.last().header("traceparent"), Some(&*want));
}
