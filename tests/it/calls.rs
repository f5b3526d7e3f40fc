//! Model calls: what a client sends reaches the upstream, what the upstream answers reaches the client.

use crate::kit::client::{self, Conn, H2, ask, chat, request};
use crate::kit::gateway::{Gateway, MASTER, PROVIDER, Setup};
use crate::kit::upstream::{Gate, Script, Upstream, delta, usage};
use crate::kit::{letters, noise};
use filters::model::record::Status;
use serde_json::{Value, json};

/// A gateway whose model `small` is served by one upstream.
async fn before(upstream: &Upstream) -> Gateway {
    Setup::new().model("small", upstream).start().await
}

/// The data of a stream's events.
fn events(body: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(body).unwrap();
    text.split("\n\n")
        .filter(|e| !e.is_empty())
        .map(|e| e.strip_prefix("data: ").unwrap_or(e).to_string())
        .collect()
}

#[tokio::test]
async fn a_body_is_the_same_but_for_the_model() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    // Spaces, number spellings, escapes, unknown fields, an order of its own: nothing is tidied up.
    let body = |model: &str| {
        format!(
            "{{ \"zeta\" : 1.50e+1,\t\"messages\": [ {{\"role\":\"user\", \"content\":\"h\\u00e9 \\\"model\\\": \\ud83d\\ude00\",\"model\":\"inner\"}} ],\r\n \
             \"model\" : \"{model}\" , \"unknown\": {{\"deep\":[1,2,{{\"x\":null}}]}}, \"n\":1,\"big\":12345678901234567890 }}"
        )
    };
    let answer = ask(&gateway, "POST", "/v1/chat/completions", &[], body("small")).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let seen = upstream.last();
    assert_eq!(
        seen.text(),
        body("up-small"),
        "everything but the model is byte-identical"
    );
    assert_eq!(seen.target, "/v1/chat/completions");
    assert_eq!(
        seen.header("content-length"),
        Some(&*seen.body().len().to_string())
    );
    assert_eq!(seen.header("transfer-encoding"), None);
}

#[tokio::test]
async fn an_answer_is_the_same() {
    let body = "{ \"id\":\"x\",  \"choices\":[], \"odd\" : 1.0e0 ,\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":1}}\n";
    let upstream = Upstream::start(move |_| {
        Script::answer(
            200,
            &[
                ("content-type", "application/json"),
                ("x-custom", "kept"),
                ("x-request-id", "theirs"),
                ("set-cookie", "a=b"),
                ("server", "theirs"),
                ("connection", "x-hop"),
                ("keep-alive", "timeout=5"),
            ],
            body,
        )
    })
    .await;
    let gateway = before(&upstream).await;
    let answer = chat(&gateway, &json!({"model": "small", "messages": []})).await;
    assert_eq!(answer.text(), body, "the answer's bytes are the upstream's");
    let head = &answer.head;
    assert_eq!(head.header("content-length"), Some(&*body.len().to_string()));
    assert_eq!(head.header("x-custom"), Some("kept"));
    assert_eq!(
        head.header("set-cookie"),
        None,
        "an upstream sets no cookies here"
    );
    assert_eq!(head.header("keep-alive"), None, "hop-by-hop headers stay");
    assert_ne!(head.header("server"), Some("theirs"));
    assert_eq!(head.header("x-upstream-request-id"), Some("theirs"));
    assert_eq!(
        head.header("x-request-id"),
        Some(head.id()),
        "x-request-id is ours"
    );
    assert!(head.header("x-litellm-model-id").is_some());
}

#[tokio::test]
async fn a_stream_flows_chunk_by_chunk() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| {
        Script::sse(&[&delta("one")])
            .wait(&held)
            .events(&[&delta("two")])
            .wait(&held)
            .events(&["[DONE]"])
            .end()
    })
    .await;
    let gateway = before(&upstream).await;
    let body = json!({"model": "small", "messages": [], "stream": true}).to_string();

    let mut conn = Conn::open(gateway.at).await;
    conn.send(&request("POST", "/v1/chat/completions", &[], body.as_bytes()))
        .await;
    let head = conn.head().await;
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    let first = conn.reader.chunk().await.unwrap().unwrap();
    assert_eq!(
        events(&first),
        [delta("one")],
        "the first chunk is here while the upstream holds the second"
    );
    gate.open();
    let second = conn.reader.chunk().await.unwrap().unwrap();
    assert_eq!(events(&second), [delta("two")]);
    gate.open();
    let (rest, whole) = conn.reader.rest().await;
    assert_eq!(events(&rest), ["[DONE]"]);
    assert!(whole, "the stream ends properly");

    // The same over HTTP/2.
    let mut h2 = H2::open(gateway.at).await;
    let json = [("content-type", "application/json")];
    let mut answer = h2.send("POST", "/v1/chat/completions", &json, body).await;
    let frame = async |answer: &mut http::Response<hyper::body::Incoming>| {
        use http_body_util::BodyExt;
        let frame = crate::kit::within("a frame comes", answer.body_mut().frame()).await;
        frame.map(|f| f.unwrap().into_data().unwrap())
    };
    assert_eq!(events(&frame(&mut answer).await.unwrap()), [delta("one")]);
    gate.open();
    assert_eq!(events(&frame(&mut answer).await.unwrap()), [delta("two")]);
    gate.open();
    assert_eq!(events(&frame(&mut answer).await.unwrap()), ["[DONE]"]);
    while let Some(rest) = frame(&mut answer).await {
        assert!(rest.is_empty());
    }
}

#[tokio::test]
async fn usage_is_asked_for_and_hidden_from_those_who_did_not() {
    let upstream = Upstream::start(|_| Script::sse(&[&delta("one"), &usage(11, 5), "[DONE]"]).end()).await;
    let gateway = before(&upstream).await;

    let answer = chat(
        &gateway,
        &json!({"model": "small", "messages": [], "stream": true}),
    )
    .await;
    assert_eq!(
        events(&answer.body),
        [delta("one"), "[DONE]".into()],
        "the usage chunk is hidden"
    );
    assert_eq!(
        upstream.last().json()["stream_options"],
        json!({"include_usage": true})
    );
    let row = gateway.row(answer.head.id()).await;
    assert_eq!((row.prompt_tokens, row.completion_tokens), (11, 5));
    assert!(!row.estimated && row.stream && row.status == Status::Success);

    let asking = json!({"model": "small", "messages": [], "stream": true, "stream_options": {"include_usage": true, "x": 1}});
    let answer = chat(&gateway, &asking).await;
    assert_eq!(
        events(&answer.body),
        [delta("one"), usage(11, 5), "[DONE]".into()],
        "whoever asked for usage gets it"
    );
    assert_eq!(
        upstream.last().json()["stream_options"],
        asking["stream_options"],
        "the client's own options stand"
    );

    let options = json!({"include_usage": false, "x": 1});
    let answer = chat(
        &gateway,
        &json!({"model": "small", "messages": [], "stream": true, "stream_options": options}),
    )
    .await;
    assert_eq!(events(&answer.body), [delta("one"), "[DONE]".into()]);
    assert_eq!(
        upstream.last().json()["stream_options"],
        json!({"include_usage": true, "x": 1})
    );
}

#[tokio::test]
async fn an_event_cut_anywhere_arrives_whole() {
    let whole: String = [delta("héllo"), usage(11, 5), "[DONE]".into()]
        .iter()
        .map(|e| format!("data: {e}\r\n\r\n"))
        .collect();
    let text = whole.clone();
    let upstream = Upstream::start(move |_| {
        let mut script = Script::sse(&[]);
        for piece in text.as_bytes().chunks(7) {
            script = script.raw([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
        }
        script.end()
    })
    .await;
    let gateway = before(&upstream).await;
    let asked =
        json!({"model": "small", "messages": [], "stream": true, "stream_options": {"include_usage": true}});
    let answer = chat(&gateway, &asked).await;
    assert_eq!(answer.text(), whole, "what was asked for is byte-identical");
    let answer = chat(
        &gateway,
        &json!({"model": "small", "messages": [], "stream": true}),
    )
    .await;
    assert_eq!(
        answer.text(),
        whole.replace(&format!("data: {}\r\n\r\n", usage(11, 5)), ""),
        "only the usage event is missing"
    );
    assert_eq!(gateway.row(answer.head.id()).await.prompt_tokens, 11);
}

#[tokio::test]
async fn the_cost_stands_in_the_head_and_in_the_ledger() {
    let upstream = Upstream::good().await;
    let priced = json!({"input_cost_per_token": 0.001, "output_cost_per_token": 0.01});
    let gateway = Setup::new()
        .deployment("priced", &upstream.base(), priced)
        .model("unpriced", &upstream)
        .start()
        .await;
    let answer = chat(&gateway, &json!({"model": "priced", "messages": []})).await;
    let cost: f64 = answer
        .head
        .header("x-litellm-response-cost")
        .expect("the cost is told")
        .parse()
        .unwrap();
    assert!((cost - 0.037).abs() < 1e-9, "7 x 0.001 + 3 x 0.01 is {cost}");
    let row = gateway.row(answer.head.id()).await;
    assert_eq!((row.spend_nanos, row.priced), (37_000_000, true));

    let answer = chat(&gateway, &json!({"model": "unpriced", "messages": []})).await;
    assert_eq!(
        answer.head.header("x-litellm-response-cost"),
        None,
        "an unknown price is no 0"
    );
    assert!(!gateway.row(answer.head.id()).await.priced);
}

#[tokio::test]
async fn every_path_of_the_api() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let json_calls = [
        ("/chat/completions", json!({"messages": []})),
        ("/completions", json!({"prompt": "x"})),
        ("/embeddings", json!({"input": "x"})),
        ("/audio/speech", json!({"input": "x", "voice": "v"})),
        ("/images/generations", json!({"prompt": "x"})),
        ("/moderations", json!({"input": "x"})),
        ("/rerank", json!({"query": "x", "documents": ["a"]})),
        ("/responses", json!({"input": "x"})),
    ];
    let mut conn = Conn::open(gateway.at).await;
    for (path, body) in &json_calls {
        let mut named = body.clone();
        named["model"] = "small".into();
        let nameless = [
            format!("/engines/small{path}"),
            format!("/openai/deployments/small{path}"),
        ];
        let prefixed = ["", "/v1", "/openai/v1"].map(|p| format!("{p}{path}"));
        for (full, body) in prefixed
            .iter()
            .map(|p| (p, &named))
            .chain(nameless.iter().map(|p| (p, body)))
        {
            let answer = conn.ask("POST", full, &[], body.to_string().as_bytes()).await;
            assert_eq!(answer.status(), 200, "{full}: {}", answer.text());
            let seen = upstream.last();
            assert_eq!(
                seen.target,
                format!("/v1{path}"),
                "{full} goes to the upstream's own path"
            );
            assert_eq!(seen.json()["model"], "up-small", "{full}");
            assert_eq!(
                conn_row_endpoint(&gateway, answer.head.id()).await,
                *path,
                "{full}"
            );
        }
    }
    for path in ["/audio/transcriptions", "/audio/translations"] {
        for prefix in ["", "/v1", "/openai/deployments/small"] {
            let (kind, body) = form(&[("model", None, b"small"), ("file", Some("a.wav"), b"RIFF")]);
            let answer = conn
                .ask(
                    "POST",
                    &format!("{prefix}{path}"),
                    &[("content-type", &kind)],
                    &body,
                )
                .await;
            assert_eq!(answer.status(), 200, "{prefix}{path}: {}", answer.text());
            assert_eq!(upstream.last().target, format!("/v1{path}"));
        }
    }
    for path in ["/models", "/v1/models", "/openai/v1/models"] {
        let answer = conn.ask("GET", path, &[], b"").await;
        assert_eq!(answer.json()["data"][0]["id"], "small", "{path}");
    }
    assert_eq!(
        conn.ask("GET", "/v1/models/small", &[], b"").await.json()["id"],
        "small"
    );
    assert_eq!(conn.ask("GET", "/v1/models/smal", &[], b"").await.status(), 404);
}

async fn conn_row_endpoint(gateway: &Gateway, id: &str) -> &'static str {
    gateway.row(id).await.endpoint.path()
}

/// A form: (name, file name, value) each; its content type and its bytes.
fn form(parts: &[(&str, Option<&str>, &[u8])]) -> (String, Vec<u8>) {
    let boundary = "------------------------d74496d66958873e";
    let mut out = Vec::new();
    for (name, file, value) in parts {
        let file = file.map_or(String::new(), |f| {
            format!("; filename=\"{f}\"\r\nContent-Type: application/octet-stream")
        });
        out.extend_from_slice(
            format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n")
                .as_bytes(),
        );
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={boundary}"), out)
}

#[tokio::test]
async fn a_form_is_the_same_but_for_the_model() {
    let upstream = Upstream::start(|_| Script::json(200, &json!({"text": "hi"}))).await;
    let gateway = before(&upstream).await;
    let audio = noise(300_000);
    let parts = |model: &'static [u8], file_first: bool| {
        let mut all: Vec<(&str, Option<&str>, &[u8])> = vec![
            ("model", None, model),
            ("file", Some("a.wav"), &audio),
            ("timestamp_granularities[]", None, b"word"),
            ("timestamp_granularities[]", None, b"segment"),
            ("response_format", None, b"verbose_json"),
        ];
        if file_first {
            all.swap(0, 1);
        }
        form(&all)
    };
    for file_first in [false, true] {
        let (kind, body) = parts(b"small", file_first);
        let headers = [("content-type", kind.as_str())];
        let answer = ask(&gateway, "POST", "/v1/audio/transcriptions", &headers, &body).await;
        assert_eq!(
            answer.status(),
            200,
            "file first: {file_first}: {}",
            answer.text()
        );
        assert_eq!(answer.json(), json!({"text": "hi"}));
        let (kind, expected) = parts(b"up-small", file_first);
        let seen = upstream.last();
        assert_eq!(
            seen.header("content-type"),
            Some(&*kind),
            "the boundary is the client's"
        );
        assert!(
            seen.body() == expected,
            "file first: {file_first}: the form differs in more than the model"
        );
    }
}

/// A chat whose one message is `len` letters long.
fn large(model: &str, len: usize) -> String {
    format!(
        r#"{{"messages":[{{"role":"user","content":"{}"}}],"model":"{model}"}}"#,
        letters(len)
    )
}

#[tokio::test]
async fn thirty_megabytes_pass() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let (sent, expected) = (large("small", 30 << 20), large("up-small", 30 << 20));
    let answer = ask(&gateway, "POST", "/v1/chat/completions", &[], &sent).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert!(
        upstream.last().body() == expected,
        "30 MB over HTTP/1.1 arrive as they are"
    );
    let mut h2 = H2::open(gateway.at).await;
    let answer = h2
        .ask(
            "POST",
            "/v1/chat/completions",
            &[("content-type", "application/json")],
            sent,
        )
        .await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert!(
        upstream.last().body() == expected,
        "30 MB over HTTP/2 arrive as they are"
    );
}

#[tokio::test]
async fn a_chunked_body_gets_a_length() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let body = large("small", 100_000);
    let mut conn = Conn::open(gateway.at).await;
    let mut bytes = client::head(
        "POST",
        "/v1/chat/completions",
        &[("transfer-encoding", "chunked")],
    );
    bytes.extend_from_slice(b"\r\n");
    for piece in body.as_bytes().chunks(1_000) {
        bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    conn.send(&bytes).await;
    assert_eq!(conn.answer().await.status(), 200);
    let seen = upstream.last();
    assert!(seen.body() == large("up-small", 100_000));
    assert_eq!(
        seen.header("content-length"),
        Some(&*seen.body().len().to_string())
    );
    let again = conn
        .ask("POST", "/v1/chat/completions", &[], large("small", 10).as_bytes())
        .await;
    assert_eq!(again.status(), 200, "the connection goes on");
}

#[tokio::test]
async fn who_waits_for_a_word_gets_it() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let body = large("small", 10);
    let length = body.len().to_string();
    let expects = [("expect", "100-continue"), ("content-length", length.as_str())];
    let mut conn = Conn::open(gateway.at).await;
    let mut head = client::head("POST", "/v1/chat/completions", &expects);
    head.extend_from_slice(b"\r\n");
    conn.send(&head).await;
    assert_eq!(conn.head().await.status, 100, "the body is asked for");
    conn.send(body.as_bytes()).await;
    assert_eq!(conn.answer().await.status(), 200);
    assert_eq!(upstream.last().header("expect"), None);

    // One that is refused is told so instead, and need not send its body.
    let refused = [expects[0], expects[1], ("authorization", "Bearer sk-nobody")];
    let mut conn = Conn::open(gateway.at).await;
    let mut head = client::head("POST", "/v1/chat/completions", &refused);
    head.extend_from_slice(b"\r\n");
    conn.send(&head).await;
    assert_eq!(conn.head().await.status, 401, "no 100 before a refusal");
}

#[tokio::test]
async fn an_upstream_that_has_seen_enough_is_heard() {
    let upstream = Upstream::early(100_000, |_| Script::error(429, "slow down").close()).await;
    let gateway = before(&upstream).await;
    let conn = Conn::open(gateway.at).await;
    let body = large("small", 30 << 20);
    let answer = conn
        .ask_both_ways(request("POST", "/v1/chat/completions", &[], body.as_bytes()))
        .await;
    assert_eq!(answer.status(), 429, "{}", answer.text());
    assert_eq!(answer.json()["error"]["message"], "slow down");
}

#[tokio::test]
async fn http2_without_tls() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let mut h2 = H2::open(gateway.at).await;
    let json = [("content-type", "application/json")];
    for _ in 0..20 {
        let body = r#"{"model":"small","messages":[]}"#;
        let answer = h2.ask("POST", "/v1/chat/completions", &json, body).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.json()["choices"][0]["message"]["content"], "hello");
        assert_eq!(answer.head.header("transfer-encoding"), None);
        assert!(answer.head.header("x-litellm-call-id").is_some());
    }
    assert!(
        upstream.connections() < 20,
        "connections to the upstream are used again"
    );
}

#[tokio::test]
async fn a_deployments_parameters_fill_gaps() {
    let upstream = Upstream::good().await;
    let defaults = json!({"temperature": 0.25, "max_tokens": 77, "extra_headers": {"X-Deployment": "yes"}});
    let gateway = Setup::new()
        .deployment("small", &upstream.base(), defaults)
        .start()
        .await;
    chat(&gateway, &json!({"model": "small", "messages": []})).await;
    let sent = upstream.last().json();
    assert_eq!(
        (&sent["temperature"], &sent["max_tokens"]),
        (&json!(0.25), &json!(77))
    );
    assert_eq!(upstream.last().header("x-deployment"), Some("yes"));
    chat(
        &gateway,
        &json!({"model": "small", "messages": [], "temperature": 1, "max_completion_tokens": 5}),
    )
    .await;
    let sent: Value = upstream.last().json();
    assert_eq!(sent["temperature"], json!(1), "the request's own value wins");
    assert_eq!(
        sent.get("max_tokens"),
        None,
        "max_completion_tokens takes the place of a default max_tokens"
    );
}

#[tokio::test]
async fn who_is_calling_stays_here() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let bearer = format!("Bearer {MASTER}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-api-key", MASTER),
        ("api-key", MASTER),
        ("x-litellm-api-key", MASTER),
        ("cookie", "session=secret"),
        ("proxy-authorization", "Basic c2VjcmV0"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-real-ip", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6"),
        ("connection", "keep-alive, x-listed"),
        ("x-listed", "1"),
        ("te", "trailers"),
        ("x-goog-api-key", "secret"),
        ("openai-organization", "org-of-the-caller"),
        ("user-agent", "client/1"),
        ("accept", "application/json"),
    ];
    let body = r#"{"model":"small","messages":[]}"#;
    let answer = ask(&gateway, "POST", "/v1/chat/completions", &headers, body).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let seen = upstream.last();
    let provider = format!("Bearer {PROVIDER}");
    assert_eq!(seen.header("authorization"), Some(&*provider));
    let mut names: Vec<&str> = seen.headers.iter().map(|(n, _)| n.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "accept",
            "accept-encoding",
            "authorization",
            "content-length",
            "content-type",
            "host",
            "user-agent"
        ],
        "nothing that says who is calling goes on: {:?}",
        seen.headers
    );
    assert_eq!(
        seen.header("host"),
        Some(&*format!("127.0.0.1:{}", upstream.port))
    );
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn a_kept_connection_that_the_upstream_closed_costs_nothing() {
    // Each connection answers once and is closed when the next request comes.
    let upstream = Upstream::start(|seen| {
        if seen.nth > 0 {
            Script::nothing().close()
        } else {
            Script::chat("hello")
        }
    })
    .await;
    let gateway = before(&upstream).await;
    let mut conn = Conn::open(gateway.at).await;
    let body = br#"{"model":"small","messages":[]}"#;
    // Pingora does not always find the connection it has just put back, so one try might prove nothing.
    for _ in 0..20 {
        let answer = conn.ask("POST", "/v1/chat/completions", &[], body).await;
        assert_eq!(
            answer.status(),
            200,
            "it is asked again, on a new connection: {}",
            answer.text()
        );
        assert_eq!(
            answer.head.header("x-litellm-attempted-retries"),
            None,
            "that was no failure of the deployment"
        );
        let row = gateway.row(answer.head.id()).await;
        assert_eq!((row.status, row.attempts.len()), (Status::Success, 1));
    }
    assert!(upstream.count() > 20, "no kept connection was used again");
}

#[tokio::test]
async fn an_upstream_that_packs_no_length_is_read_to_its_end() {
    let body = r#"{"usage":{"prompt_tokens":2,"completion_tokens":1}}"#;
    let upstream = Upstream::start(move |_| {
        Script::nothing()
            .raw(format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{body}"
            ))
            .close()
    })
    .await;
    let gateway = before(&upstream).await;
    for _ in 0..2 {
        let answer = chat(&gateway, &json!({"model": "small", "messages": []})).await;
        assert_eq!(answer.text(), body);
        assert_eq!(
            answer.head.header("content-length"),
            Some(&*body.len().to_string())
        );
    }
}

#[tokio::test]
async fn audio_comes_back_as_it_is() {
    let audio = noise(2_000_000);
    let sound = audio.clone();
    let upstream =
        Upstream::start(move |_| Script::answer(200, &[("content-type", "audio/mpeg")], &sound)).await;
    let gateway = before(&upstream).await;
    let body = json!({"model": "small", "input": "héllo", "voice": "alloy"}).to_string();
    let answer = ask(&gateway, "POST", "/v1/audio/speech", &[], body).await;
    assert!(
        answer.whole && answer.body == audio,
        "the sound is byte-identical"
    );
    assert_eq!(answer.head.header("content-type"), Some("audio/mpeg"));
    assert_eq!(answer.head.header("content-length"), Some("2000000"));
    assert_eq!(
        gateway.row(answer.head.id()).await.characters,
        5,
        "characters are counted, not bytes"
    );
}

#[tokio::test]
async fn what_an_upstream_says_of_itself_stays() {
    let telling = [
        "x-litellm-model-id",
        "x-litellm-response-cost",
        "x-litellm-key-spend",
        "location",
        "content-location",
        "www-authenticate",
        "x-envoy-upstream-service-time",
        "x-forwarded-for",
        "x-served-by",
        "x-upstream",
        "x-upstream-addr",
    ];
    for status in [200, 400] {
        let upstream = Upstream::start(move |_| {
            let mut headers: Vec<(&str, &str)> = telling.iter().map(|n| (*n, "theirs")).collect();
            headers.extend([("content-type", "application/json"), ("x-custom", "kept")]);
            Script::answer(status, &headers, r#"{"error": {"message": "m"}}"#)
        })
        .await;
        let gateway = before(&upstream).await;
        let answer = chat(&gateway, &json!({"model": "small", "messages": []})).await;
        assert_eq!(answer.status(), status, "{answer:?}");
        for name in telling {
            assert_ne!(answer.head.header(name), Some("theirs"), "{name} at {status}");
        }
        if status == 200 {
            assert_eq!(answer.head.header("x-custom"), Some("kept"));
        }
    }
}

#[tokio::test]
async fn an_idempotency_key_stays() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let headers = [("idempotency-key", "order-1"), ("openai-beta", "assistants=v2")];
    let body = json!({"model": "small", "messages": []}).to_string();
    let answer = ask(&gateway, "POST", "/v1/chat/completions", &headers, body).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let seen = upstream.last();
    assert_eq!(
        seen.header("idempotency-key"),
        None,
        "two callers may write the same one"
    );
    assert_eq!(seen.header("openai-beta"), Some("assistants=v2"));
}

#[tokio::test]
async fn health_and_metrics_are_only_read() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    for path in [
        "/health",
        "/health/liveliness",
        "/health/liveness",
        "/health/readiness",
        "/metrics",
    ] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = ask(&gateway, method, path, &[], "{}").await;
            assert_eq!(answer.status(), 405, "{method} {path}");
            assert_eq!(answer.head.header("allow"), Some("GET, HEAD"), "{method} {path}");
            answer.error();
        }
        for method in ["GET", "HEAD"] {
            let answer = ask(&gateway, method, path, &[], "").await;
            assert_eq!(answer.status(), 200, "{method} {path}");
        }
    }
    let preflight = [
        ("origin", "https://app.test"),
        ("access-control-request-method", "GET"),
    ];
    assert_eq!(
        ask(&gateway, "OPTIONS", "/health", &preflight, "").await.status(),
        204,
        "a browser may ask first"
    );
}
