//! What Langfuse is told of each kind of call, and of what goes wrong on the way.

use crate::kit::client::{Answer, ask};
use crate::kit::gateway::{Gateway, Setup};
use crate::kit::receiver::{Receiver, attribute};
use crate::kit::upstream::{Script, Upstream, delta, usage};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};

/// A gateway with one model, and what hears of its calls.
async fn watched(upstream: &Upstream, capture: &str) -> (Gateway, Receiver) {
    let receiver = Receiver::start("3.100.0").await;
    let langfuse =
        json!({"host": receiver.host(), "public_key": "pk-lf", "secret_key": "sk-lf", "capture": capture});
    let gateway = Setup::new()
        .setting("tracing", json!({"flush_every": "20ms", "langfuse": langfuse}))
        .model("small", upstream)
        .start()
        .await;
    (gateway, receiver)
}

async fn post(gateway: &Gateway, path: &str, body: &Value) -> Answer {
    ask(gateway, "POST", path, &[], body.to_string()).await
}

/// The call, and its only try.
async fn two(receiver: &Receiver) -> (Span, Span) {
    let spans = receiver.spans_once(2).await;
    let (root, rest): (Vec<Span>, Vec<Span>) = spans.into_iter().partition(|s| s.kind == 2);
    assert_eq!(rest[0].parent_span_id, root[0].span_id);
    (root[0].clone(), rest[0].clone())
}

fn of(span: &Span, name: &str) -> String {
    attribute(span, &format!("langfuse.observation.{name}"))
}

fn json_of(span: &Span, name: &str) -> Value {
    serde_json::from_str(&of(span, name)).unwrap_or_default()
}

/// Events with names, as `/responses` has them.
fn events(all: &[Value]) -> Script {
    let text: String = all
        .iter()
        .map(|e| format!("event: {}\ndata: {e}\n\n", e["type"].as_str().unwrap()))
        .collect();
    Script::answer(200, &[("content-type", "text/event-stream")], text)
}

#[tokio::test]
async fn completions_that_stream() {
    let piece =
        |text: &str| json!({"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": text}]});
    let (a, b) = (piece("Hel").to_string(), piece("lo").to_string());
    let upstream = Upstream::start(move |_| Script::sse(&[&a, &b, &usage(9, 2), "[DONE]"]).end()).await;
    let (gateway, receiver) = watched(&upstream, "full").await;
    let body = json!({"model": "small", "prompt": "Say hello", "stream": true, "max_tokens": 5});
    let answer = post(&gateway, "/v1/completions", &body).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let (root, generation) = two(&receiver).await;
    assert_eq!(root.name, "litellm-atext_completion");
    assert_eq!(of(&generation, "type"), "generation");
    assert_eq!(json_of(&generation, "input")["prompt"], "Say hello");
    assert_eq!(of(&generation, "output"), "Hello");
    let used = json!({"input": 9, "output": 2, "total": 11});
    assert_eq!(json_of(&generation, "usage_details"), used);
    assert_eq!(
        json_of(&generation, "model.parameters"),
        json!({"max_tokens": 5, "stream": true})
    );
    assert!(of(&generation, "completion_start_time").starts_with("\"20"));
}

#[tokio::test]
async fn responses_that_stream() {
    let said = json!([{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}]);
    let last = json!({"type": "response.completed", "response": {"id": "r", "output": said,
        "usage": {"input_tokens": 11, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 6,
            "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 17}}});
    let upstream = Upstream::start(move |_| {
        let delta = json!({"type": "response.output_text.delta", "delta": "Hello"});
        events(&[
            json!({"type": "response.created", "response": {"id": "r"}}),
            delta,
            last.clone(),
        ])
    })
    .await;
    let (gateway, receiver) = watched(&upstream, "full").await;
    let body = json!({"model": "small", "input": "Say hello", "stream": true});
    let answer = post(&gateway, "/v1/responses", &body).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let (root, generation) = two(&receiver).await;
    assert_eq!(root.name, "litellm-aresponses");
    assert_eq!(json_of(&generation, "input")["input"], "Say hello");
    assert_eq!(json_of(&generation, "output")[0]["content"][0]["text"], "Hello");
    let used =
        json!({"input": 7, "input_cached_tokens": 4, "output": 4, "output_reasoning_tokens": 2, "total": 17});
    assert_eq!(json_of(&generation, "usage_details"), used);
    assert!(!of(&generation, "completion_start_time").is_empty());
}

#[tokio::test]
async fn responses_that_break_off_keep_what_was_said() {
    let text = |piece: &str| {
        let event = json!({"type": "response.output_text.delta", "delta": piece});
        format!("event: response.output_text.delta\ndata: {event}\n\n")
    };
    let body = text("Half ") + &text("an answer");
    let upstream = Upstream::start(move |_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        Script::nothing()
            .raw(format!("{head}{:x}\r\n{body}\r\n", body.len()))
            .close()
    })
    .await;
    let (gateway, receiver) = watched(&upstream, "full").await;
    let body = json!({"model": "small", "input": "Say hello", "stream": true});
    post(&gateway, "/v1/responses", &body).await;
    let (root, generation) = two(&receiver).await;
    for span in [&root, &generation] {
        assert_eq!(of(span, "level"), "ERROR", "{span:?}");
        assert_eq!(of(span, "output"), "Half an answer");
        assert!(!of(span, "status_message").is_empty());
    }
}

#[tokio::test]
async fn embeddings_are_told_without_their_vectors() {
    let upstream = Upstream::start(|_| {
        Script::json(
            200,
            &json!({"object": "list", "model": "up", "data": [{"index": 0, "object": "embedding", "embedding": [0.125]}],
                "usage": {"prompt_tokens": 4, "total_tokens": 4}}),
        )
    })
    .await;
    let (gateway, receiver) = watched(&upstream, "full").await;
    let answer = post(
        &gateway,
        "/v1/embeddings",
        &json!({"model": "small", "input": ["a text"]}),
    )
    .await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let (root, embedding) = two(&receiver).await;
    assert_eq!(
        (root.name.as_str(), &*of(&embedding, "type")),
        ("litellm-aembedding", "embedding")
    );
    assert_eq!(json_of(&embedding, "input")["input"], json!(["a text"]));
    assert_eq!(of(&embedding, "output"), "");
    assert_eq!(
        json_of(&embedding, "usage_details"),
        json!({"input": 4, "output": 0, "total": 4})
    );
}

/// A form with a model and a file.
fn form(more: &str) -> (&'static str, String) {
    let part = |name: &str, value: &str| {
        format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let file = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nsound-of-the-file\r\n";
    let all = format!("{}{more}{file}--b--\r\n", part("model", "small"));
    ("multipart/form-data; boundary=b", all)
}

#[tokio::test]
async fn what_was_heard_is_told_and_no_sound() {
    let upstream = Upstream::start(|seen| {
        if seen.text().contains("name=\"stream\"") {
            let delta = |text: &str| json!({"type": "transcript.text.delta", "delta": text});
            let done = json!({"type": "transcript.text.done", "text": "heard twice"});
            return events(&[delta("heard "), delta("twice"), done]);
        }
        Script::json(200, &json!({"text": "heard once"}))
    })
    .await;
    let (gateway, receiver) = watched(&upstream, "full").await;
    let stream = "--b\r\ncontent-disposition: form-data; name=\"stream\"\r\n\r\ntrue\r\n\
        --b\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\nNames: \"Bob\"\r\n";
    for (n, (more, want)) in [("", "heard once"), (stream, "heard twice")]
        .into_iter()
        .enumerate()
    {
        let (kind, body) = form(more);
        let headers = [("content-type", kind)];
        let answer = ask(&gateway, "POST", "/v1/audio/transcriptions", &headers, body).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let spans = receiver.spans_once(2 * (n + 1)).await;
        let (root, generation) = (&spans[2 * n], &spans[2 * n + 1]);
        assert_eq!(root.name, "litellm-atranscription");
        assert_eq!(of(generation, "output"), want);
        assert_eq!(of(generation, "level"), "");
        let (asked, how) = (of(generation, "input"), of(generation, "model.parameters"));
        match more {
            "" => assert_eq!((asked.as_str(), how.as_str()), ("", "")),
            _ => assert_eq!(
                (
                    json_of(generation, "input"),
                    json_of(generation, "model.parameters")
                ),
                (json!({"prompt": "Names: \"Bob\""}), json!({"stream": "true"}))
            ),
        }
    }
    assert!(!format!("{:?}", receiver.spans()).contains("sound-of-the-file"));
}

#[tokio::test]
async fn speech_is_told_without_its_sound() {
    let upstream =
        Upstream::start(|_| Script::answer(200, &[("content-type", "audio/mpeg")], b"sound-of-the-answer"))
            .await;
    let (gateway, receiver) = watched(&upstream, "full").await;
    let body = json!({"model": "small", "input": "Read this", "voice": "alloy"});
    let answer = post(&gateway, "/v1/audio/speech", &body).await;
    assert_eq!(answer.status(), 200);
    let (root, generation) = two(&receiver).await;
    assert_eq!(root.name, "litellm-aspeech");
    assert_eq!(json_of(&generation, "input")["input"], "Read this");
    assert_eq!(of(&generation, "output"), "");
    assert!(!format!("{:?}", receiver.spans()).contains("sound-of-the-answer"));
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_an_error_with_what_there_was() {
    let upstream = Upstream::start(|_| Script::sse(&[&delta("Half")]).close()).await;
    let (gateway, receiver) = watched(&upstream, "full").await;
    let body = json!({"model": "small", "stream": true, "messages": [{"role": "user", "content": "Hi"}]});
    post(&gateway, "/v1/chat/completions", &body).await;
    let (root, generation) = two(&receiver).await;
    for span in [&root, &generation] {
        assert_eq!(of(span, "level"), "ERROR", "{span:?}");
        assert_eq!(json_of(span, "output")["content"], "Half");
    }
    assert_eq!(generation.status.as_ref().unwrap().code, 2);
}

#[tokio::test]
async fn each_try_before_the_answer_is_an_error_of_its_own() {
    let (nobody, good) = (
        Upstream::start(|_| Script::nothing().close()).await,
        Upstream::start(|_| Script::sse(&[&delta("Hello"), &usage(3, 1), "[DONE]"]).end()).await,
    );
    let limited = Upstream::start(|_| Script::error(429, "slow down, prompt-of-the-upstream")).await;
    let receiver = Receiver::start("3.100.0").await;
    let langfuse = json!({"host": receiver.host(), "public_key": "pk-lf", "secret_key": "sk-lf"});
    let gateway = Setup::new()
        .setting("tracing", json!({"flush_every": "20ms", "langfuse": langfuse}))
        .deployment("three", &nobody.base(), json!({"id": "nobody", "order": 1}))
        .deployment("three", &limited.base(), json!({"id": "limited", "order": 2}))
        .deployment("three", &good.base(), json!({"id": "good", "order": 3}))
        .start()
        .await;
    let body = json!({"model": "three", "stream": true, "messages": [{"role": "user", "content": "Hi"}]});
    let answer = post(&gateway, "/v1/chat/completions", &body).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let mut spans = receiver.spans_once(4).await;
    spans.sort_by_key(|s| (s.kind != 2, s.start_time_unix_nano));
    let told: Vec<_> = spans
        .iter()
        .map(|s| {
            (
                of(s, "metadata.deployment"),
                of(s, "level"),
                of(s, "metadata.upstream_status"),
            )
        })
        .collect();
    let want = [
        ("", "DEFAULT", ""),
        ("nobody", "ERROR", ""),
        ("limited", "ERROR", "429"),
        ("good", "", "200"),
    ];
    let want: Vec<_> = want
        .map(|(a, b, c)| (a.to_string(), b.to_string(), c.to_string()))
        .into();
    assert_eq!(told, want);
    for failed in &spans[1..3] {
        assert_eq!(
            (of(failed, "output"), of(failed, "usage_details")),
            (String::new(), String::new())
        );
        assert!(!of(failed, "status_message").is_empty());
    }
    assert_eq!(json_of(&spans[3], "output")["content"], "Hello");
    for pair in spans[1..].windows(2) {
        assert!(
            pair[0].end_time_unix_nano <= pair[1].start_time_unix_nano,
            "one after the other"
        );
    }
}

#[tokio::test]
async fn a_call_that_is_told_without_content_says_nothing_of_it_anywhere() {
    let upstream = Upstream::start(|_| Script::sse(&[&delta("word-of-the-answer")]).close()).await;
    let (gateway, receiver) = watched(&upstream, "metadata").await;
    let body = json!({"model": "small", "stream": true, "messages": [{"role": "user", "content": "word-of-the-question"}]});
    post(&gateway, "/v1/chat/completions", &body).await;
    let (root, generation) = two(&receiver).await;
    assert_eq!(of(&generation, "level"), "ERROR");
    let whole = format!("{root:?}{generation:?}");
    assert!(!whole.contains("word-of-the"), "{whole}");
}
