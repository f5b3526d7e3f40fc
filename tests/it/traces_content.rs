//! What is told of long, coloured and slow calls: all that was said and nothing that was not, however it came.

use crate::kit::client::{Answer, Conn, ask, request};
use crate::kit::gateway::{Gateway, Setup};
use crate::kit::receiver::{Receiver, attribute, hex};
use crate::kit::until;
use crate::kit::upstream::{Gate, Script, Upstream, delta, usage};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// A gateway with one model, `price` in its parameters, and what hears of its calls.
async fn watched(upstream: &Upstream, price: Value) -> (Gateway, Receiver) {
    let receiver = Receiver::start("3.100.0").await;
    let langfuse = json!({"host": receiver.host(), "public_key": "pk-lf", "secret_key": "sk-lf"});
    let gateway = Setup::new()
        .setting("tracing", json!({"flush_every": "20ms", "langfuse": langfuse}))
        .deployment("small", &upstream.base(), price)
        .start()
        .await;
    (gateway, receiver)
}

async fn post(gateway: &Gateway, path: &str, body: &Value) -> Answer {
    let answer = ask(gateway, "POST", path, &[], body.to_string()).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer
}

/// The call's only try.
async fn told(receiver: &Receiver) -> Span {
    let spans = receiver.spans_once(2).await;
    spans.into_iter().find(|s| s.kind != 2).unwrap()
}

fn of(span: &Span, name: &str) -> String {
    attribute(span, &format!("langfuse.observation.{name}"))
}

fn json_of(span: &Span, name: &str) -> Value {
    serde_json::from_str(&of(span, name)).unwrap_or_else(|e| panic!("{e}: {}", of(span, name)))
}

fn micros() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_micros() as i64
}

/// Many servers send a stream's head at once and its first word when they have read the question.
#[tokio::test]
async fn the_first_token_is_the_first_word_and_not_the_head() {
    let gate = Gate::new();
    let theirs = gate.clone();
    let upstream = Upstream::start(move |_| {
        let role = json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]});
        Script::sse(&[&role.to_string()])
            .wait(&theirs)
            .events(&[&delta("Hello"), &usage(3, 1), "[DONE]"])
            .end()
    })
    .await;
    let (gateway, receiver) = watched(&upstream, json!({})).await;
    let body = json!({"model": "small", "stream": true, "messages": [{"role": "user", "content": "Hi"}]});
    let mut conn = Conn::open(gateway.at).await;
    conn.send(&request(
        "POST",
        "/v1/chat/completions",
        &[],
        body.to_string().as_bytes(),
    ))
    .await;
    let head = conn.head().await;
    conn.reader.chunk().await.unwrap();
    let before = micros();
    gate.open();
    assert!(conn.reader.rest().await.1);

    let generation = told(&receiver).await;
    let began: String = serde_json::from_str(&of(&generation, "completion_start_time")).unwrap();
    let began: jiff::Timestamp = began.parse().unwrap();
    assert!(began.as_microsecond() >= before, "{began}");
    let row = gateway.row(head.id()).await;
    assert_eq!(
        row.first_byte_micros,
        Some(began.as_microsecond()),
        "the ledger says the same"
    );
    assert!(row.first_byte_micros <= Some(row.ended_micros));
}

/// Most of a stream's bytes say nothing, so a long answer has many more of them than may be kept.
#[tokio::test]
async fn a_long_stream_is_told_whole() {
    let words: Vec<String> = (0..5_000).map(|n| format!("word {n}, ")).collect();
    let whole = words.concat();
    let events: Vec<String> = words.iter().map(|w| delta(w)).collect();
    let upstream = Upstream::start(move |_| {
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        Script::sse(&events).events(&[&usage(3, 5_000), "[DONE]"]).end()
    })
    .await;
    let (gateway, receiver) = watched(&upstream, json!({})).await;
    let body = json!({"model": "small", "stream": true, "messages": [{"role": "user", "content": "Count"}]});
    let answer = post(&gateway, "/v1/chat/completions", &body).await;
    assert!(answer.body.len() > 512 << 10, "more than is kept of any answer");
    let generation = told(&receiver).await;
    assert_eq!(json_of(&generation, "output")["content"], whole);
}

/// The question stands behind the picture, as most clients write it.
#[tokio::test]
async fn what_is_asked_of_a_picture_is_told_and_not_the_picture() {
    let upstream = Upstream::start(|_| {
        let sound = json!({"id": "a", "data": "UklGR".repeat(1000), "transcript": "A cat."});
        let message = json!({"role": "assistant", "content": null, "audio": sound});
        Script::json(
            200,
            &json!({"id": "c", "choices": [{"index": 0, "message": message}],
            "usage": {"prompt_tokens": 900, "completion_tokens": 4}}),
        )
    })
    .await;
    let (gateway, receiver) = watched(&upstream, json!({})).await;
    let picture = "iVBOR".repeat(120_000);
    let body = json!({"model": "small", "messages": [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{picture}")}},
            {"type": "input_audio", "input_audio": {"data": picture, "format": "wav"}},
            {"type": "text", "text": "What is it?"}]}]});
    post(&gateway, "/v1/chat/completions", &body).await;
    let generation = told(&receiver).await;
    let content = &json_of(&generation, "input")["messages"][1]["content"];
    assert_eq!(
        content[0]["image_url"]["url"],
        "data:image/png;base64,[450000 bytes]"
    );
    assert_eq!(content[1]["input_audio"]["data"], "[450000 bytes]");
    assert_eq!(content[2]["text"], "What is it?");
    let sound = &json_of(&generation, "output")["audio"];
    assert_eq!(
        (&sound["data"], &sound["transcript"]),
        (&json!("[3750 bytes]"), &json!("A cat."))
    );
}

#[tokio::test]
async fn all_of_a_question_is_told_whatever_it_is_called() {
    let upstream = Upstream::start(|seen| match seen.target.as_str() {
        "/v1/rerank" => Script::json(200, &json!({"results": [{"index": 0, "relevance_score": 0.5}]})),
        _ => Script::json(200, &json!({"id": "r", "output": []})),
    })
    .await;
    for (path, body, content, parameters) in [
        (
            "/v1/responses",
            json!({"instructions": "Be brief", "input": "Hi", "reasoning": {"effort": "low"}}),
            vec!["instructions", "input"],
            json!({"reasoning": {"effort": "low"}}),
        ),
        (
            "/v1/rerank",
            json!({"query": "Which?", "documents": ["this", "that"], "top_n": 1}),
            vec!["query", "documents"],
            json!({"top_n": 1}),
        ),
    ] {
        let (gateway, receiver) = watched(&upstream, json!({})).await;
        let mut asked = body.clone();
        asked["model"] = "small".into();
        post(&gateway, path, &asked).await;
        let generation = told(&receiver).await;
        for name in content {
            assert_eq!(json_of(&generation, "input")[name], body[name], "{path}");
        }
        assert_eq!(json_of(&generation, "model.parameters"), parameters, "{path}");
    }
}

#[tokio::test]
async fn what_a_call_cost_is_told_by_its_parts_and_adds_up_to_the_ledgers() {
    let upstream = Upstream::start(|_| {
        let used = json!({"prompt_tokens": 100, "completion_tokens": 11, "total_tokens": 111,
            "prompt_tokens_details": {"cached_tokens": 60}});
        let message = json!({"role": "assistant", "content": "Hi"});
        Script::json(
            200,
            &json!({"id": "c", "choices": [{"index": 0, "message": message}], "usage": used}),
        )
    })
    .await;
    let price = json!({"input_cost_per_token": 0.0000015, "output_cost_per_token": 0.000007,
        "cache_read_input_token_cost": 0.00000015});
    for (price, parts) in [
        (
            price,
            json!({"input": 0.000069, "output": 0.000077, "total": 0.000146}),
        ),
        (json!({}), json!({"total": 0})),
    ] {
        let (gateway, receiver) = watched(&upstream, price).await;
        let body = json!({"model": "small", "messages": [{"role": "user", "content": "Hi"}]});
        let answer = post(&gateway, "/v1/chat/completions", &body).await;
        let generation = told(&receiver).await;
        assert_eq!(json_of(&generation, "cost_details"), parts);
        let row = gateway.row(answer.head.id()).await;
        let total = parts["total"].as_f64().unwrap();
        assert_eq!((total * 1e9).round() as i64, row.spend_nanos);
        let used = json!({"input": 40, "input_cached_tokens": 60, "output": 11, "total": 111});
        assert_eq!(json_of(&generation, "usage_details"), used);
    }
}

/// LiteLLM's `existing_trace_id`: the call joins, and the trace's question and answer stay what they were.
#[tokio::test]
async fn a_trace_that_is_there_keeps_what_it_says() {
    let upstream = Upstream::good().await;
    let (gateway, receiver) = watched(&upstream, json!({})).await;
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    for (n, (keys, is_root, told)) in [
        (json!(null), "", [true, true]),
        (json!(["output", "trace_version"]), "true", [false, true]),
    ]
    .into_iter()
    .enumerate()
    {
        let metadata = json!({"existing_trace_id": id, "update_trace_keys": keys, "langfuse_secret_key": "sk-lf-planted"});
        let body =
            json!({"model": "small", "messages": [{"role": "user", "content": "Hi"}], "metadata": metadata});
        post(&gateway, "/v1/chat/completions", &body).await;
        let spans = receiver.spans_once(2 * n + 2).await;
        let call = &spans[2 * n..];
        let root = call.iter().find(|s| s.kind == 2).unwrap();
        assert_eq!(hex(&root.trace_id), id);
        assert_eq!(attribute(root, "langfuse.internal.is_app_root"), is_root);
        assert_eq!(root.parent_span_id.is_empty(), !is_root.is_empty());
        assert_eq!(["input", "output"].map(|name| !of(root, name).is_empty()), told);
        assert_eq!(attribute(root, "langfuse.trace.name"), "");
        assert!(!format!("{call:?}").contains("sk-lf-planted"));
    }
}

/// What a caller wants left out is left out of everything, and the switch is the gateway's own.
#[tokio::test]
async fn a_caller_may_have_its_words_left_out() {
    let upstream = Upstream::good().await;
    let (gateway, receiver) = watched(&upstream, json!({})).await;
    let body = json!({"model": "small", "messages": [{"role": "user", "content": "a-planted-question"}],
        "turn_off_message_logging": true, "langfuse_secret_key": "sk-lf-planted"});
    post(&gateway, "/v1/chat/completions", &body).await;
    let generation = told(&receiver).await;
    assert_eq!(of(&generation, "input"), "redacted-by-litellm");
    assert!(!format!("{generation:?}").contains("planted"));
    let sent = upstream.last().text();
    assert!(
        !sent.contains("turn_off") && !sent.contains("sk-lf-planted"),
        "{sent}"
    );
}

/// What callers name things must not command a terminal, whoever shows it.
#[tokio::test]
async fn names_hold_nothing_that_acts() {
    let upstream = Upstream::good().await;
    let receiver = Receiver::start("3.100.0").await;
    let langfuse = json!({"host": receiver.host(), "public_key": "pk-lf", "secret_key": "sk-lf"});
    let gateway = Setup::new()
        .setting("tracing", json!({"flush_every": "20ms", "langfuse": langfuse}))
        .deployment("*", &upstream.base(), json!({"model": "openai/*"}))
        .start()
        .await;
    let bad = "a\u{1b}[31m\u{7}\u{0}";
    let body = json!({"model": bad, "user": bad, "tags": [bad], "messages": [], "metadata": {"session_id": bad,
        "trace_name": bad, "generation_name": bad, "trace_metadata": {bad: bad}, "version": bad}});
    let answer = ask(&gateway, "POST", "/v1/chat/completions", &[], body.to_string()).await;
    let spans = receiver
        .spans_once(if answer.status() == 200 { 2 } else { 1 })
        .await;
    for span in &spans {
        assert!(!span.name.contains(char::is_control), "{:?}", span.name);
        for a in &span.attributes {
            let text = attribute(span, &a.key);
            assert!(
                !(a.key.clone() + &text).contains(char::is_control),
                "{}: {text:?}",
                a.key
            );
        }
    }
}

#[tokio::test]
async fn a_try_that_broke_off_says_so_to_opentelemetry() {
    let upstream = Upstream::start(|_| Script::sse(&[&delta("Half")]).close()).await;
    let receiver = Receiver::start("").await;
    let gateway = Setup::new()
        .setting(
            "tracing",
            json!({"flush_every": "20ms", "otlp": {"endpoint": format!("{}/v1/traces", receiver.host())}}),
        )
        .model("small", &upstream)
        .start()
        .await;
    let body = json!({"model": "small", "stream": true, "messages": [{"role": "user", "content": "Hi"}]});
    post(&gateway, "/v1/chat/completions", &body).await;
    let tried = told(&receiver).await;
    assert_eq!(attribute(&tried, "error.type"), "upstream_cut");
    assert_eq!(attribute(&tried, "http.response.status_code"), "200");
}

/// A proxy before Langfuse takes only so much at once.
#[tokio::test]
async fn what_is_too_large_at_once_is_told_in_parts() {
    let upstream = Upstream::good().await;
    let (gateway, receiver) = watched(&upstream, json!({})).await;
    receiver.most(20_000);
    receiver.answer(503);
    let long = "word ".repeat(400);
    let calls = 40;
    for _ in 0..calls {
        let body = json!({"model": "small", "messages": [{"role": "user", "content": long}]});
        post(&gateway, "/v1/chat/completions", &body).await;
    }
    receiver.answer(200);
    let spans = receiver.spans_once(2 * calls).await;
    let ids: std::collections::HashSet<_> = spans.iter().map(|s| s.span_id.clone()).collect();
    assert_eq!(ids.len(), 2 * calls, "each once");
    until("it is told", async || {
        let metrics = ask(&gateway, "GET", "/metrics", &[], "").await.text();
        let sent = format!("tollkeeper_traces_sent_total{{exporter=\"langfuse\"}} {calls}\n");
        let lost = "tollkeeper_traces_lost_total{exporter=\"langfuse\",reason=\"refused\"} 0\n";
        gateway.log().contains("event=traces_in_parts") && metrics.contains(&sent) && metrics.contains(lost)
    })
    .await;
}
