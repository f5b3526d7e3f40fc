//! Somebody leaves in the middle: the other side learns of it, and what was produced is billed.

use crate::kit::client::{Conn, H2, ask, chat, request};
use crate::kit::gateway::{Gateway, Setup};
use crate::kit::upstream::{End, Gate, Script, Upstream, delta, usage};
use crate::kit::{noise, until};
use filters::model::record::Status;
use http_body_util::BodyExt;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// A gateway whose models cost something.
async fn before(upstream: &Upstream) -> Gateway {
    let prices = json!({"id": "the-one", "input_cost_per_token": 0.001, "output_cost_per_token": 0.01});
    Setup::new()
        .deployment("small", &upstream.base(), prices)
        .start()
        .await
}

fn call(stream: bool) -> String {
    json!({"model": "small", "messages": [{"role": "user", "content": "say much"}], "stream": stream})
        .to_string()
}

/// Says two words and then nothing.
async fn hanging() -> Upstream {
    Upstream::start(|_| Script::sse(&[&delta("one "), &delta("two ")]).hang()).await
}

/// What a call costs that was left after two words.
async fn is_billed(gateway: &Gateway, id: &str) {
    let row = gateway.row(id).await;
    assert_eq!(row.status, Status::Aborted, "{row:?}");
    assert!(row.estimated, "nobody told the usage: {row:?}");
    assert!(
        row.completion_tokens >= 2 && row.prompt_tokens > 0,
        "what was produced is billed: {row:?}"
    );
    assert!(row.spend_nanos >= 20_000_000, "{row:?}");
}

#[tokio::test]
async fn a_client_leaves_a_stream_over_http1() {
    let upstream = hanging().await;
    let gateway = before(&upstream).await;
    let mut conn = Conn::open(gateway.at).await;
    conn.send(&request("POST", CHAT, &[], call(true).as_bytes()))
        .await;
    let id = conn.head().await.id().to_string();
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains("two") {
        got.extend_from_slice(&conn.reader.chunk().await.unwrap().unwrap());
    }
    drop(conn);
    assert_eq!(
        upstream.last().end().await,
        End::Aborted,
        "the upstream need not go on"
    );
    is_billed(&gateway, &id).await;
}

#[tokio::test]
async fn a_client_leaves_a_stream_over_http2() {
    let upstream = hanging().await;
    let gateway = before(&upstream).await;
    for whole_connection in [false, true] {
        let mut h2 = H2::open(gateway.at).await;
        let mut answer = h2.send("POST", CHAT, &JSON, call(true)).await;
        let id = answer.headers()["x-litellm-call-id"]
            .to_str()
            .unwrap()
            .to_string();
        let mut got = Vec::new();
        while !String::from_utf8_lossy(&got).contains("two") {
            let frame = crate::kit::within("a frame comes", answer.body_mut().frame()).await;
            got.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap());
        }
        if whole_connection {
            h2.drop_connection();
        } else {
            drop(answer);
        }
        assert_eq!(upstream.last().end().await, End::Aborted);
        is_billed(&gateway, &id).await;
    }
}

#[tokio::test]
async fn a_client_leaves_before_the_answer() {
    let upstream = Upstream::start(|_| Script::nothing().hang()).await;
    let gateway = before(&upstream).await;
    for (n, stream) in [false, true].into_iter().enumerate() {
        let mut conn = Conn::open(gateway.at).await;
        conn.send(&request("POST", CHAT, &[], call(stream).as_bytes()))
            .await;
        let seen = upstream.request(n).await;
        drop(conn);
        assert_eq!(seen.end().await, End::Aborted);
        let row = gateway.rows_once(n + 1).await.remove(0);
        assert_eq!(
            (row.status, row.http_status, row.completion_tokens, row.estimated),
            (Status::Aborted, 499, 0, true),
            "{row:?}"
        );
        assert!(
            row.spend_nanos > 0,
            "the upstream had read the prompt, so somebody owes for it: {row:?}"
        );
    }
}

#[tokio::test]
async fn a_client_leaves_while_it_sends() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let mut conn = Conn::open(gateway.at).await;
    let whole = request("POST", CHAT, &[], call(false).as_bytes());
    conn.send(&whole[..whole.len() - 5]).await;
    drop(conn);
    let metrics = async || ask(&gateway, "GET", "/metrics", &[], "").await.text();
    until("the request is over", async || {
        metrics().await.contains("tollkeeper_requests_in_flight 1\n")
    })
    .await;
    assert_eq!(upstream.count(), 0, "half a call is not made");
}

/// The data of events, and whether the stream ended as its framing says.
async fn stream(gateway: &Gateway, h2: bool) -> (String, Vec<Value>, bool) {
    let answer = if h2 {
        H2::open(gateway.at)
            .await
            .ask("POST", CHAT, &JSON, call(true))
            .await
    } else {
        ask(gateway, "POST", CHAT, &[], call(true)).await
    };
    let text = answer.text();
    let events = text
        .split("\n\n")
        .filter_map(|e| e.trim_start().strip_prefix("data: "))
        .map(|d| serde_json::from_str(d).unwrap_or(Value::String(d.into())))
        .collect();
    (answer.head.id().to_string(), events, answer.whole)
}

#[tokio::test]
async fn an_upstream_cuts_a_stream() {
    let upstream = Upstream::start(|seen| {
        let script = Script::sse(&[&delta("one "), &delta("two ")]);
        match seen.n % 4 {
            0 | 1 => script.close(),
            // In the middle of an event.
            _ => script.raw("18\r\ndata: {\"choices\":[{\"del\r\n").close(),
        }
    })
    .await;
    let gateway = before(&upstream).await;
    for h2 in [false, true, false, true] {
        let (id, events, whole) = stream(&gateway, h2).await;
        assert!(whole, "over HTTP/2: {h2}: the client's stream is ended properly");
        let texts: String = events
            .iter()
            .filter_map(|e| e["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(texts, "one two ");
        let error = &events.last().unwrap()["error"];
        let message = error["message"]
            .as_str()
            .unwrap_or_else(|| panic!("an error event comes last: {events:?}"));
        assert!(message.contains("the-one") && message.contains(&id), "{message}");
        assert!(
            !events.contains(&Value::String("[DONE]".into())),
            "nobody takes the part for the whole"
        );
        assert!(
            !events
                .iter()
                .any(|e| e["choices"][0]["finish_reason"].is_string())
        );
        let row = gateway.row(&id).await;
        assert_eq!(row.status, Status::Cut, "{row:?}");
        assert!(
            row.estimated && row.completion_tokens >= 2 && row.spend_nanos > 0,
            "{row:?}"
        );
    }
}

#[tokio::test]
async fn an_upstream_falls_silent() {
    let upstream = hanging().await;
    let gateway = Setup::new()
        .deployment(
            "small",
            &upstream.base(),
            json!({"id": "the-one", "stream_timeout": 0.3}),
        )
        .start()
        .await;
    let (mut id, mut events) = (String::new(), Vec::new());
    // On a busy machine the time may be over before there was a word.
    until("it falls silent after two words", async || {
        let whole;
        (id, events, whole) = stream(&gateway, false).await;
        assert!(whole, "{events:?}");
        events.len() == 3
    })
    .await;
    assert!(
        events[2]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("the-one")
    );
    assert_eq!(upstream.last().end().await, End::Aborted);
    assert_eq!(gateway.row(&id).await.status, Status::Cut);
}

#[tokio::test]
async fn a_stream_without_done_is_still_an_end() {
    let upstream = Upstream::start(|_| Script::sse(&[&delta("one"), &usage(4, 1)]).end()).await;
    let gateway = before(&upstream).await;
    let (id, events, whole) = stream(&gateway, false).await;
    assert!(whole);
    assert_eq!(events.len(), 1, "nothing is invented: {events:?}");
    let row = gateway.row(&id).await;
    assert_eq!(
        (row.status, row.prompt_tokens, row.estimated),
        (Status::Success, 4, false)
    );
}

#[tokio::test]
async fn a_closed_connection_is_an_end_only_after_the_last_word() {
    let finish = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).to_string();
    for (last, whole) in [
        (None, false),
        (Some(finish), true),
        (Some("[DONE]".to_string()), true),
        (Some(usage(4, 1)), true),
    ] {
        let told = last.clone();
        let upstream = Upstream::start(move |_| {
            let events: Vec<String> = [Some(delta("one")), last.clone()].into_iter().flatten().collect();
            let body: String = events.iter().map(|e| format!("data: {e}\n\n")).collect();
            Script::nothing()
                .raw("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
                .raw(body)
                .close()
        })
        .await;
        let gateway = before(&upstream).await;
        let (id, events, _) = stream(&gateway, false).await;
        let broke_off = events.iter().any(|e| !e["error"].is_null());
        assert_eq!(broke_off, !whole, "{told:?}: {events:?}");
        let expected = if whole { Status::Success } else { Status::Cut };
        assert_eq!(gateway.row(&id).await.status, expected, "{told:?}");
    }
}

#[tokio::test]
async fn an_error_within_a_stream_passes() {
    let error = r#"{"error": {"message": "out of memory", "type": "server_error"}}"#;
    let upstream = Upstream::start(move |_| Script::sse(&[&delta("one"), error]).end()).await;
    let gateway = before(&upstream).await;
    let (id, events, _) = stream(&gateway, false).await;
    assert_eq!(events[1]["error"]["message"], "out of memory");
    let row = gateway.row(&id).await;
    assert_eq!(row.status, Status::Cut, "{row:?}");
}

#[tokio::test]
async fn an_upstream_cuts_a_whole_answer() {
    // Where no length is told, the end of the connection is all there is.
    for (length, body, status) in [
        ("content-length: 500\r\n", "{\"half\":", 502),
        ("", "{\"half\":", 502),
        ("", "", 502),
        ("", "{\"whole\": 1}", 200),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{length}\r\n{body}");
        let upstream = Upstream::start(move |_| Script::nothing().raw(head.clone()).close()).await;
        let gateway = before(&upstream).await;
        let answer = ask(&gateway, "POST", CHAT, &[], call(false)).await;
        assert_eq!(answer.status(), status, "{length}{body}: {}", answer.text());
        if status == 200 {
            assert_eq!(answer.text(), body);
            continue;
        }
        assert!(answer.error().contains("the-one"), "{}", answer.text());
        let row = gateway.row(answer.head.id()).await;
        assert_eq!((row.status, row.spend_nanos), (Status::Failure, 0), "{row:?}");
    }
}

#[tokio::test]
async fn an_upstream_cuts_a_sound() {
    let half = noise(50_000);
    let upstream = Upstream::start(move |_| {
        Script::nothing()
            .raw("HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: 100000\r\n\r\n")
            .raw(half.clone())
            .close()
    })
    .await;
    let gateway = before(&upstream).await;
    let body = json!({"model": "small", "input": "hello"}).to_string();
    let answer = ask(&gateway, "POST", "/v1/audio/speech", &[], &body).await;
    assert_eq!(answer.status(), 200);
    assert!(!answer.whole, "the client sees that something is missing");
    assert_eq!(gateway.row(answer.head.id()).await.status, Status::Cut);
    let answer = H2::open(gateway.at)
        .await
        .ask("POST", "/v1/audio/speech", &JSON, body)
        .await;
    assert!(!answer.whole, "over HTTP/2 as well");
}

#[tokio::test]
async fn others_do_not_notice() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |seen| {
        if seen.json()["stream"] == true {
            Script::sse(&[&delta("one")])
                .wait(&held)
                .events(&["[DONE]"])
                .end()
        } else {
            Script::chat("hello")
        }
    })
    .await;
    let gateway = before(&upstream).await;
    // Two streams and a call on one HTTP/2 connection; one of the streams is left.
    let mut h2 = H2::open(gateway.at).await;
    let left = h2.send("POST", CHAT, &JSON, call(true)).await;
    let kept = h2.send("POST", CHAT, &JSON, call(true)).await;
    let first = upstream.request(0).await;
    drop(left);
    assert_eq!(first.end().await, End::Aborted);
    assert_eq!(h2.ask("POST", CHAT, &JSON, call(false)).await.status(), 200);
    gate.open();
    let body = crate::kit::within("the other stream ends", kept.into_body().collect()).await;
    assert!(String::from_utf8_lossy(&body.unwrap().to_bytes()).ends_with("data: [DONE]\n\n"));
    assert_eq!(
        chat(&gateway, &json!({"model": "small", "messages": []}))
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn what_comes_after_done_is_nobodys_business() {
    let upstream = Upstream::start(|_| Script::sse(&[&delta("hello"), &usage(7, 3), "[DONE]"]).close()).await;
    let gateway = before(&upstream).await;
    let answer = ask(&gateway, "POST", CHAT, &[], &call(true)).await;
    let text = answer.text();
    assert!(
        text.ends_with("data: [DONE]\n\n"),
        "no error follows the end: {text}"
    );
    let row = gateway.row(answer.head.id()).await;
    assert_eq!(
        (row.status, row.completion_tokens),
        (Status::Success, 3),
        "{row:?}"
    );
}

#[tokio::test]
async fn a_call_takes_no_longer_than_a_call_may() {
    let upstream = Upstream::start(|_| Script::nothing().hang()).await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .setting("timeouts", json!({"total": "300ms"}))
        .start()
        .await;
    // On a busy machine the time may be over before the upstream has heard of it.
    until("a call has come to the upstream", async || {
        let answer = ask(&gateway, "POST", CHAT, &[], &call(false)).await;
        assert_eq!(answer.status(), 408, "{}", answer.text());
        upstream.count() > 0
    })
    .await;
    assert_eq!(
        upstream.last().end().await,
        End::Aborted,
        "the upstream is let go of"
    );
}
