//! A provider that does not speak OpenAI's dialect, behind the same endpoint: whole, streamed, in error.

use crate::kit::client::{Conn, chat};
use crate::kit::gateway::{Gateway, PROVIDER, Setup};
use crate::kit::upstream::{Script, Upstream};
use filters::model::record::Status;
use serde_json::{Value, json};

const WHOLE: &str = r#"{"id":"msg_1","type":"message","role":"assistant","model":"claude-real",
    "content":[{"type":"text","text":"Hello"},{"type":"tool_use","id":"tu_1","name":"f","input":{"a":1}}],
    "stop_reason":"tool_use","usage":{"input_tokens":10,"cache_read_input_tokens":3,"output_tokens":5}}"#;

/// Anthropic's events: two pieces of text, then the end.
const EVENTS: &[(&str, &str)] = &[
    (
        "message_start",
        r#"{"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":10,"output_tokens":1}}}"#,
    ),
    (
        "content_block_start",
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
    ),
    ("ping", r#"{"type":"ping"}"#),
    (
        "content_block_delta",
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}"#,
    ),
    (
        "content_block_delta",
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"lo"}}"#,
    ),
    ("content_block_stop", r#"{"type":"content_block_stop","index":0}"#),
    (
        "message_delta",
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}"#,
    ),
    ("message_stop", r#"{"type":"message_stop"}"#),
];

fn events(n: usize) -> Script {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    EVENTS
        .iter()
        .take(n)
        .fold(Script::nothing().raw(head), |script, (name, data)| {
            let event = format!("event: {name}\ndata: {data}\n\n");
            script.raw(format!("{:x}\r\n{event}\r\n", event.len()))
        })
}

async fn start(upstream: &Upstream) -> Gateway {
    let base = format!("http://127.0.0.1:{}", upstream.port);
    let params = json!({"model": "anthropic/claude-real", "input_cost_per_token": 0.001, "output_cost_per_token": 0.002});
    Setup::new().deployment("claude", &base, params).start().await
}

#[tokio::test]
async fn a_whole_answer_is_translated_metered_and_priced() {
    let upstream = Upstream::start(|_| Script::json(200, &serde_json::from_str(WHOLE).unwrap())).await;
    let gateway = start(&upstream).await;
    let body = json!({"model": "claude", "max_tokens": 50, "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]});
    let answer = chat(&gateway, &body).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let got = answer.json();
    assert_eq!(got["model"], "claude", "the name that the client used comes back");
    assert_eq!(got["choices"][0]["message"]["content"], "Hello");
    assert_eq!(
        got["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"],
        r#"{"a":1}"#
    );
    assert_eq!(got["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(got["usage"]["prompt_tokens"], 13);

    let seen = upstream.last();
    assert_eq!(seen.target, "/v1/messages");
    assert_eq!(seen.header("x-api-key"), Some(PROVIDER));
    assert_eq!(seen.header("authorization"), None, "the caller's key stays here");
    assert!(seen.header("anthropic-version").is_some());
    assert_eq!(seen.json()["model"], "claude-real");
    assert_eq!(seen.json()["system"][0]["text"], "Be brief.");
    assert_eq!(seen.json()["messages"][0]["role"], "user");

    let row = gateway.row(answer.head.id()).await;
    assert_eq!(
        (row.prompt_tokens, row.completion_tokens, row.provider.as_str()),
        (13, 5, "anthropic")
    );
    assert!(row.priced && row.spend_nanos > 0 && !row.estimated);
}

#[tokio::test]
async fn a_stream_is_translated_event_by_event() {
    let upstream = Upstream::start(|_| events(EVENTS.len()).end()).await;
    let gateway = start(&upstream).await;
    for asked in [false, true] {
        let body = json!({"model": "claude", "stream": true, "stream_options": {"include_usage": asked},
            "messages": [{"role": "user", "content": "Hi"}]});
        let answer = chat(&gateway, &body).await;
        let text = answer.text();
        assert_eq!(answer.status(), 200, "{text}");
        assert!(
            text.contains(r#""content":"Hel""#) && text.contains(r#""content":"lo""#),
            "{text}"
        );
        assert!(text.contains(r#""finish_reason":"stop""#), "{text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        assert!(
            !text.contains("event:"),
            "OpenAI's streams have no named events: {text}"
        );
        assert_eq!(
            text.contains(r#""usage":{"#),
            asked,
            "usage is shown to those who ask: {text}"
        );
        let row = gateway.row(answer.head.id()).await;
        assert_eq!((row.prompt_tokens, row.completion_tokens), (10, 7));
        assert_eq!(row.status, Status::Success);
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_never_made_to_look_whole() {
    let upstream = Upstream::start(|_| events(5).close()).await;
    let gateway = start(&upstream).await;
    let body = json!({"model": "claude", "stream": true, "messages": [{"role": "user", "content": "Hi"}]});
    let answer = chat(&gateway, &body).await;
    let text = answer.text();
    assert!(text.contains(r#""content":"Hel""#), "{text}");
    assert!(text.contains(r#"data: {"error":"#), "{text}");
    assert!(
        !text.contains("[DONE]") && !text.contains(r#""finish_reason":"stop""#),
        "{text}"
    );
    let row = gateway.row(answer.head.id()).await;
    assert_eq!(row.status, Status::Cut);
    assert!(row.completion_tokens > 0, "what was produced is billed");
}

#[tokio::test]
async fn errors_come_in_the_clients_dialect() {
    let upstream = Upstream::start(|seen| {
        let (status, kind) = match seen.json()["max_tokens"].as_u64() {
            Some(1) => (429, "rate_limit_error"),
            Some(2) => (529, "overloaded_error"),
            _ => (400, "invalid_request_error"),
        };
        Script::json(
            status,
            &json!({"type": "error", "error": {"type": kind, "message": "no such luck"}}),
        )
    })
    .await;
    let gateway = start(&upstream).await;
    for (max_tokens, status) in [(1, 429), (2, 500), (3, 400)] {
        let body = json!({"model": "claude", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "Hi"}]});
        let answer = chat(&gateway, &body).await;
        assert_eq!(answer.status(), status, "{}", answer.text());
        let error: &Value = &answer.json()["error"];
        assert!(
            error["message"].as_str().unwrap().contains("no such luck"),
            "{error}"
        );
        assert_eq!(error["code"], status.to_string());
    }
}

#[tokio::test]
async fn what_the_provider_cannot_do_is_refused_before_it_is_asked() {
    let upstream = Upstream::good().await;
    let gateway = start(&upstream).await;
    let mut conn = Conn::open(gateway.at).await;
    let body = json!({"model": "claude", "input": "Hi"}).to_string();
    let answer = conn.ask("POST", "/v1/embeddings", &[], body.as_bytes()).await;
    assert_eq!(answer.status(), 400, "{}", answer.text());
    let seed = json!({"model": "claude", "seed": 1, "messages": [{"role": "user", "content": "Hi"}]});
    let answer = chat(&gateway, &seed).await;
    assert_eq!(answer.status(), 400, "{}", answer.text());
    assert!(answer.error().contains("seed"), "{}", answer.text());
    assert_eq!(upstream.count(), 0, "the provider was not asked");
}
