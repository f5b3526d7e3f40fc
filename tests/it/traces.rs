//! What Langfuse and receivers of OpenTelemetry are told of calls: everything that was asked for, nothing
//! else, each call once.

use crate::kit::client::{Answer, Conn, ask};
use crate::kit::gateway::{Gateway, MASTER, PROVIDER, Setup};
use crate::kit::receiver::{Receiver, attribute, hex};
use crate::kit::until;
use crate::kit::upstream::{Script, Upstream, delta, usage};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};
use std::collections::HashSet;

const SECRET: &str = "sk-lf-secret-of-the-tests";
const PROMPT: &str = "the-prompt-nobody-else-may-read";
const ANSWER: &str = "the-answer-nobody-else-may-read";

fn langfuse(receiver: &Receiver) -> Value {
    json!({"host": receiver.host(), "public_key": "pk-lf", "secret_key": SECRET})
}

/// A gateway that tells `tracing`, as quickly as tests want it.
fn setup(mut tracing: Value) -> Setup {
    tracing["flush_every"] = "20ms".into();
    Setup::new().setting("tracing", tracing)
}

async fn post(gateway: &Gateway, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    ask(gateway, "POST", path, headers, body.to_string().as_bytes()).await
}

fn question(model: &str) -> Value {
    json!({"model": model, "temperature": 0.5, "messages": [{"role": "user", "content": PROMPT}]})
}

/// The root first, then its generations in order.
fn tree(spans: &[Span]) -> Vec<&Span> {
    let root = spans.iter().find(|s| s.kind == 2).expect("there is a root");
    let mut tree = vec![root];
    let mut rest: Vec<&Span> = spans.iter().filter(|s| s.kind != 2).collect();
    rest.sort_by_key(|s| s.start_time_unix_nano);
    for span in &rest {
        assert_eq!(
            span.parent_span_id, root.span_id,
            "a generation stands below its call"
        );
        assert_eq!(span.trace_id, root.trace_id);
        assert!(span.start_time_unix_nano >= root.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= root.end_time_unix_nano);
    }
    tree.extend(rest);
    tree
}

#[tokio::test]
async fn langfuse_is_told_everything_of_a_call() {
    let receiver = Receiver::start("3.100.0").await;
    let upstream = Upstream::start(|_| Script::chat(ANSWER)).await;
    let gateway = setup(json!({"langfuse": langfuse(&receiver)}))
        .deployment(
            "small",
            &upstream.base(),
            json!({"input_cost_per_token": 0.001, "output_cost_per_token": 0.002}),
        )
        .start()
        .await;
    let mut body = question("small");
    body["user"] = "end-user".into();
    body["tags"] = json!(["red"]);
    body["metadata"] = json!({"session_id": "session", "trace_name": "my trace", "generation_name": "my step",
        "tags": ["blue"], "trace_metadata": {"customer": "c1"}, "other": {"x": 1}, "version": "v7"});
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [
        ("traceparent", parent),
        ("tracestate", "a=b"),
        ("langfuse_trace_user_id", "header-user"),
    ];
    let answer = post(&gateway, "/v1/chat/completions", &headers, &body).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());

    let spans = receiver.spans_once(2).await;
    let tree = tree(&spans);
    let (root, generation) = (tree[0], tree[1]);
    assert_eq!(hex(&root.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(hex(&root.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(root.trace_state, "a=b");
    let response = answer.head.header("traceresponse").unwrap();
    assert_eq!(
        response,
        format!("00-{}-{}-01", hex(&root.trace_id), hex(&root.span_id))
    );
    let seen = upstream.last();
    let down = format!("00-{}-{}-01", hex(&root.trace_id), hex(&generation.span_id));
    assert_eq!(
        seen.header("traceparent"),
        Some(&*down),
        "one's own upstream joins"
    );
    assert_eq!(seen.header("tracestate"), Some("a=b"));
    for span in [root, generation] {
        for (name, value) in [
            ("langfuse.trace.name", "my trace"),
            ("user.id", "header-user"),
            ("session.id", "session"),
            ("langfuse.trace.tags", "red,blue"),
            ("langfuse.trace.metadata.customer", "c1"),
            ("langfuse.version", "v7"),
            (
                "langfuse.observation.metadata.user_api_key_user_id",
                "default_user_id",
            ),
        ] {
            assert_eq!(attribute(span, name), value, "{name}");
        }
        let input: Value = serde_json::from_str(&attribute(span, "langfuse.observation.input")).unwrap();
        assert_eq!(input["messages"][0]["content"], PROMPT);
        let output: Value = serde_json::from_str(&attribute(span, "langfuse.observation.output")).unwrap();
        assert_eq!(output["content"], ANSWER);
    }
    assert_eq!(
        (root.name.as_str(), generation.name.as_str()),
        ("my trace", "my step")
    );
    for (name, value) in [
        ("langfuse.observation.type", "generation"),
        ("langfuse.observation.model.name", "up-small"),
        ("langfuse.observation.model.parameters", "{\"temperature\":0.5}"),
        (
            "langfuse.observation.usage_details",
            "{\"input\":7,\"output\":3,\"total\":10}",
        ),
        (
            "langfuse.observation.cost_details",
            "{\"input\":0.007,\"output\":0.006,\"total\":0.013}",
        ),
        ("langfuse.observation.metadata.model_group", "small"),
        ("langfuse.observation.level", ""),
    ] {
        assert_eq!(attribute(generation, name), value, "{name}");
    }
    let given = attribute(generation, "langfuse.observation.metadata.requester_metadata");
    assert_eq!(serde_json::from_str::<Value>(&given).unwrap()["other"]["x"], 1);
    assert_eq!(
        attribute(root, "langfuse.observation.metadata.request_id"),
        answer.head.id()
    );

    let taken = &receiver.taken()[0];
    assert_eq!(taken.target, "/api/public/otel/v1/traces");
    assert_eq!(taken.header("x-langfuse-ingestion-version"), "4");
    assert_eq!(taken.header("content-type"), "application/x-protobuf");
    use base64::Engine;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("pk-lf:{SECRET}"));
    assert_eq!(taken.header("authorization"), format!("Basic {basic}"));
    let whole = format!("{spans:?}");
    for secret in [MASTER, PROVIDER, SECRET] {
        assert!(!whole.contains(secret), "{secret} is told to nobody");
    }
    until("it is counted, and nothing waits", async || {
        let metrics = ask(&gateway, "GET", "/metrics", &[], b"").await.text();
        metrics.contains("tollkeeper_traces_sent_total{exporter=\"langfuse\"} 1\n")
            && metrics.contains("tollkeeper_traces_queue_bytes 0\n")
    })
    .await;
    let ready = ask(&gateway, "GET", "/health/readiness", &[], b"").await.json();
    assert_eq!(ready["traces"]["langfuse"], "connected");
    until("the log names the trace", async || {
        gateway
            .log()
            .contains("\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"")
    })
    .await;
}

#[tokio::test]
async fn streams_are_told_as_one_message() {
    let receiver = Receiver::start("4.1.0").await;
    let upstream =
        Upstream::start(|_| Script::sse(&[&delta("Hel"), &delta("lo"), &usage(9, 2), "[DONE]"]).end()).await;
    let gateway = setup(json!({"langfuse": langfuse(&receiver)}))
        .model("small", &upstream)
        .start()
        .await;
    let mut body = question("small");
    body["stream"] = true.into();
    let answer = post(&gateway, "/v1/chat/completions", &[], &body).await;
    assert!(
        !answer.text().contains("usage\":{"),
        "the client did not ask for it"
    );
    let spans = receiver.spans_once(2).await;
    let generation = tree(&spans)[1];
    let output: Value = serde_json::from_str(&attribute(generation, "langfuse.observation.output")).unwrap();
    assert_eq!(output, json!({"role": "assistant", "content": "Hello"}));
    assert_eq!(
        attribute(generation, "langfuse.observation.usage_details"),
        "{\"input\":9,\"output\":2,\"total\":11}"
    );
    let first = attribute(generation, "langfuse.observation.completion_start_time");
    assert!(first.starts_with("\"20") && first.ends_with("Z\""), "{first}");
}

#[tokio::test]
async fn every_try_is_told_of() {
    let receiver = Receiver::start("3.50.1").await;
    let good = Upstream::start(|_| Script::chat(ANSWER)).await;
    let bad = Upstream::start(|_| Script::error(500, "not me")).await;
    let gateway = setup(json!({"langfuse": langfuse(&receiver)}))
        .deployment("pair", &bad.base(), json!({"id": "bad", "order": 1}))
        .deployment("pair", &good.base(), json!({"id": "good", "order": 2}))
        .deployment("broken", &bad.base(), json!({"id": "worse"}))
        .start()
        .await;
    let answer = post(&gateway, "/v1/chat/completions", &[], &question("pair")).await;
    assert_eq!(answer.status(), 200);
    let spans = receiver.spans_once(3).await;
    let tree_of = tree(&spans);
    let (root, failed, answered) = (tree_of[0], tree_of[1], tree_of[2]);
    assert_eq!(attribute(root, "langfuse.observation.level"), "DEFAULT");
    assert_eq!(attribute(failed, "langfuse.observation.level"), "ERROR");
    assert_eq!(
        attribute(failed, "langfuse.observation.metadata.deployment"),
        "bad"
    );
    assert_eq!(
        attribute(failed, "langfuse.observation.metadata.upstream_status"),
        "500"
    );
    assert_eq!(attribute(failed, "langfuse.observation.output"), "");
    assert_eq!(failed.status.as_ref().unwrap().code, 2);
    assert_eq!(
        attribute(answered, "langfuse.observation.metadata.deployment"),
        "good"
    );
    assert!(attribute(answered, "langfuse.observation.output").contains(ANSWER));
    assert!(failed.end_time_unix_nano <= answered.start_time_unix_nano);

    let answer = post(&gateway, "/v1/chat/completions", &[], &question("broken")).await;
    assert_eq!(answer.status(), 500);
    let spans = receiver.spans_once(5).await;
    let tree_of = tree(&spans[3..]);
    assert_eq!(attribute(tree_of[0], "langfuse.observation.level"), "ERROR");
    assert_eq!(attribute(tree_of[1], "langfuse.observation.level"), "ERROR");

    let answer = post(&gateway, "/v1/chat/completions", &[], &question("nothing")).await;
    assert_eq!(answer.status(), 404);
    let spans = receiver.spans_once(6).await;
    let refused = &spans[5];
    assert_eq!(
        attribute(refused, "langfuse.observation.metadata.http_status"),
        "404"
    );
    assert_eq!(attribute(refused, "langfuse.observation.level"), "ERROR");
}

#[tokio::test]
async fn each_receiver_is_told_as_much_as_is_its_own() {
    let (chatty, quiet) = (Receiver::start("").await, Receiver::start("3.100.0").await);
    let upstream = Upstream::start(|_| Script::chat(ANSWER)).await;
    let mut conf = langfuse(&quiet);
    conf["capture"] = "metadata".into();
    let otlp = json!({"endpoint": format!("{}/v1/traces", chatty.host()), "capture": "full"});
    let gateway = setup(json!({"langfuse": conf, "otlp": otlp}))
        .model("small", &upstream)
        .start()
        .await;
    post(&gateway, "/v1/chat/completions", &[], &question("small")).await;
    let full = chatty.spans_once(2).await;
    let messages: Value = serde_json::from_str(&attribute(tree(&full)[1], "gen_ai.input.messages")).unwrap();
    assert_eq!(
        messages,
        json!([{"role": "user", "parts": [{"type": "text", "content": PROMPT}]}])
    );
    assert!(attribute(tree(&full)[1], "gen_ai.output.messages").contains(ANSWER));
    let less = format!("{:?}", quiet.spans_once(2).await);
    assert!(!less.contains(PROMPT) && !less.contains(ANSWER), "{less}");
}

/// Calls of the outage below; `TRACED_CALLS` asks for more.
fn many() -> usize {
    std::env::var("TRACED_CALLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2000)
}

#[tokio::test]
async fn an_outage_costs_no_call_and_no_trace() {
    let receiver = Receiver::start("3.100.0").await;
    let upstream = Upstream::good().await;
    let mut gateway = setup(json!({"langfuse": langfuse(&receiver)}))
        .model("small", &upstream)
        .start()
        .await;
    let all = many();
    let mut conn = Conn::open(gateway.at).await;
    let body = question("small").to_string();
    let mut ids = HashSet::new();
    for n in 0..all {
        if n == 1 {
            // It has been found, so that what follows is an outage.
            receiver.spans_once(2).await;
        }
        if n == all / 3 {
            receiver.answer(503);
        }
        if n == all / 2 {
            receiver.answer(0);
        }
        if n == all * 3 / 4 {
            receiver.answer(200);
        }
        let answer = conn
            .ask("POST", "/v1/chat/completions", &[], body.as_bytes())
            .await;
        assert_eq!(answer.status(), 200, "no call is harmed");
        ids.insert(answer.head.id().to_string());
    }
    assert_eq!(ids.len(), all);
    gateway.stop().await;
    let spans = receiver.spans();
    let told: Vec<String> = spans
        .iter()
        .map(|s| attribute(s, "langfuse.observation.metadata.request_id"))
        .filter(|id| !id.is_empty())
        .collect();
    assert_eq!(told.len(), all, "each call is told of once");
    assert_eq!(told.into_iter().collect::<HashSet<_>>(), ids);
    let unique: HashSet<_> = spans.iter().map(|s| s.span_id.clone()).collect();
    assert_eq!(
        (spans.len(), unique.len()),
        (all * 2, all * 2),
        "and so is each try"
    );
    assert!(
        gateway.log().contains("event=traces_not_taken"),
        "the outage is in the log"
    );
    assert!(gateway.log().contains("event=traces_sent_again"));
}

#[tokio::test]
async fn a_receiver_that_refuses_is_left_alone() {
    let receiver = Receiver::start("3.100.0").await;
    receiver.answer(401);
    let upstream = Upstream::good().await;
    let gateway = setup(json!({"langfuse": langfuse(&receiver)}))
        .model("small", &upstream)
        .start()
        .await;
    for _ in 0..50 {
        let answer = post(&gateway, "/v1/chat/completions", &[], &question("small")).await;
        assert_eq!(answer.status(), 200);
    }
    let lost = async || {
        let metrics = ask(&gateway, "GET", "/metrics", &[], b"").await.text();
        metrics.contains("tollkeeper_traces_lost_total{exporter=\"langfuse\",reason=\"refused\"} 50\n")
    };
    until("all are counted as refused", lost).await;
    assert!(receiver.asked() < 10, "no storm: {}", receiver.asked());
    // One warning.
    gateway.says_times("event=traces_not_taken", 1).await;
    let log = gateway.log();
    assert!(
        log.contains("does not accept the keys") && !log.contains(SECRET),
        "{log}"
    );
}

#[tokio::test]
async fn nothing_is_told_that_was_not_asked_for() {
    let receiver = Receiver::start("3.100.0").await;
    let upstream = Upstream::start(|_| Script::chat(ANSWER)).await;
    let gateway = setup(json!({"langfuse": langfuse(&receiver)}))
        .model("small", &upstream)
        .start()
        .await;
    let redact = ("litellm-enable-message-redaction", "true");
    post(&gateway, "/v1/chat/completions", &[redact], &question("small")).await;
    let mut hidden = question("small");
    hidden["no-log"] = true.into();
    post(&gateway, "/v1/chat/completions", &[], &hidden).await;
    gateway
        .key("sk-quiet", |k| {
            k.metadata.insert("turn_off_message_logging".into(), true.into());
        })
        .await;
    let who = ("authorization", "Bearer sk-quiet");
    post(&gateway, "/v1/chat/completions", &[who], &question("small")).await;
    let spans = receiver.spans_once(4).await;
    let whole = format!("{spans:?}");
    assert!(!whole.contains(PROMPT) && !whole.contains(ANSWER), "{whole}");
    for span in &spans {
        assert_eq!(
            attribute(span, "langfuse.observation.input"),
            "redacted-by-litellm"
        );
    }
    let usage = attribute(&spans[1], "langfuse.observation.usage_details");
    assert!(usage.contains("\"total\":10"), "what it used stays: {usage}");
}

#[tokio::test]
async fn keys_may_have_projects_of_their_own() {
    let (main, own) = (Receiver::start("3.100.0").await, Receiver::start("").await);
    let upstream = Upstream::good().await;
    let mut conf = langfuse(&main);
    conf["hosts"] = json!([own.host()]);
    let gateway = setup(json!({"langfuse": conf}))
        .model("small", &upstream)
        .start()
        .await;
    let logging = |host: &str| {
        json!([{"callback_name": "langfuse", "callback_type": "success_and_failure",
            "callback_vars": {"langfuse_public_key": "pk-own", "langfuse_secret_key": SECRET, "langfuse_host": host}}])
    };
    for (key, host) in [
        ("sk-own", own.host()),
        ("sk-elsewhere", "http://127.0.0.1:9".to_string()),
    ] {
        let logging = logging(&host);
        gateway
            .key(key, |k| drop(k.metadata.insert("logging".into(), logging)))
            .await;
        let who = format!("Bearer {key}");
        let answer = post(
            &gateway,
            "/v1/chat/completions",
            &[("authorization", &who)],
            &question("small"),
        )
        .await;
        assert_eq!(answer.status(), 200);
    }
    own.spans_once(2).await;
    assert_eq!(own.taken()[0].header("x-langfuse-public-key"), "pk-own");
    until("the other address is refused", async || {
        let metrics = ask(&gateway, "GET", "/metrics", &[], b"").await.text();
        metrics.contains("{exporter=\"langfuse_own_projects\",reason=\"address\"} 1\n")
    })
    .await;
    assert!(
        main.taken().is_empty(),
        "nothing of it goes to the gateway's own project"
    );
    let shown = ask(&gateway, "GET", "/key/info?key=sk-own", &[], b"")
        .await
        .text();
    assert!(shown.contains("pk-own") && !shown.contains(SECRET), "{shown}");
}

#[tokio::test]
async fn older_langfuses_get_events() {
    let receiver = Receiver::start("2.95.0").await;
    let upstream = Upstream::start(|_| Script::chat(ANSWER)).await;
    let gateway = setup(json!({"langfuse": langfuse(&receiver)}))
        .model("small", &upstream)
        .start()
        .await;
    post(&gateway, "/v1/chat/completions", &[], &question("small")).await;
    until("a batch is there", async || !receiver.taken().is_empty()).await;
    let taken = &receiver.taken()[0];
    assert_eq!(taken.target, "/api/public/ingestion");
    let batch: Value = serde_json::from_slice(&taken.body).unwrap();
    let events = batch["batch"].as_array().unwrap();
    assert_eq!(events.len(), 2);
    // The fields that the API knows, by kind of event.
    const TRACE: &[&str] = &[
        "id",
        "timestamp",
        "name",
        "userId",
        "sessionId",
        "input",
        "output",
        "tags",
        "version",
        "release",
        "environment",
        "metadata",
        "public",
        "externalId",
    ];
    const GENERATION: &[&str] = &[
        "id",
        "traceId",
        "parentObservationId",
        "name",
        "startTime",
        "endTime",
        "completionStartTime",
        "model",
        "modelParameters",
        "input",
        "output",
        "usage",
        "usageDetails",
        "costDetails",
        "level",
        "statusMessage",
        "version",
        "environment",
        "promptName",
        "promptVersion",
        "metadata",
    ];
    for (event, kind, known) in [
        (&events[0], "trace-create", TRACE),
        (&events[1], "generation-create", GENERATION),
    ] {
        assert_eq!(event["type"], kind);
        assert!(
            event["id"].is_string() && event["timestamp"].as_str().unwrap().ends_with('Z'),
            "{event}"
        );
        for name in event["body"].as_object().unwrap().keys() {
            assert!(known.contains(&name.as_str()), "{kind} has no field {name}");
        }
    }
    assert_eq!(events[1]["body"]["traceId"], events[0]["body"]["id"]);
    assert_eq!(events[1]["body"]["output"]["content"], ANSWER);
}

#[tokio::test]
async fn opentelemetry_is_told_in_its_own_words() {
    let receiver = Receiver::start("").await;
    let upstream = Upstream::start(|_| Script::chat(ANSWER)).await;
    let otlp = json!({"endpoint": format!("{}/v1/traces", receiver.host()), "headers": {"x-tenant": "t1"}});
    let gateway = setup(json!({"otlp": otlp}))
        .model("small", &upstream)
        .start()
        .await;
    let parent = |sampled: u8| format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{sampled:02}");
    let unsampled = post(
        &gateway,
        "/v1/chat/completions",
        &[("traceparent", &parent(0))],
        &question("small"),
    )
    .await;
    assert_eq!(unsampled.status(), 200);
    post(
        &gateway,
        "/v1/chat/completions",
        &[("traceparent", &parent(1))],
        &question("small"),
    )
    .await;
    let spans = receiver.spans_once(2).await;
    let tree = tree(&spans);
    let (root, call) = (tree[0], tree[1]);
    assert_eq!(root.name, "POST /v1/chat/completions");
    assert_eq!((call.name.as_str(), call.kind), ("chat up-small", 3));
    for (name, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "up-small"),
        ("gen_ai.request.temperature", "0.5"),
        ("gen_ai.usage.input_tokens", "7"),
        ("gen_ai.usage.output_tokens", "3"),
        ("server.address", "127.0.0.1"),
    ] {
        assert_eq!(attribute(call, name), value, "{name}");
    }
    let whole = format!("{spans:?}");
    assert!(
        !whole.contains(PROMPT) && !whole.contains(ANSWER),
        "content is for those who ask for it"
    );
    let taken = &receiver.taken()[0];
    assert_eq!(
        (taken.target.as_str(), taken.header("x-tenant")),
        ("/v1/traces", "t1")
    );
}
