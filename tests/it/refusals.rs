//! What bad input gets: a clear answer in OpenAI's shape, and an upstream that never hears of it.

use crate::kit::client::{Answer, Conn, H2, ask, head, request};
use crate::kit::gateway::{Gateway, MASTER, Setup};
use crate::kit::letters;
use crate::kit::upstream::{Gate, Script, Upstream, delta};
use filters::model::key::KeyHash;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
/// Names and values.
type Headers<'a> = &'a [(&'a str, &'a str)];

const GOOD: &str = r#"{"model":"small","messages":[]}"#;

async fn before(upstream: &Upstream) -> Gateway {
    Setup::new()
        .model("small", upstream)
        .model("secret-model", upstream)
        .setting("limits", json!({"json_body": "1MiB", "multipart_body": "2MiB"}))
        .general(
            "pass_through_endpoints",
            json!([{"path": "/tts", "target": format!("http://127.0.0.1:{}", upstream.port), "include_subpath": true}]),
        )
        .start()
        .await
}

/// Looks at a refusal: its status, its shape, its ids, and that its sentence says `part`.
fn check(what: &str, answer: &Answer, status: u16, part: &str) {
    assert_eq!(answer.status(), status, "{what}: {}", answer.text());
    assert_eq!(
        answer.head.header("content-type"),
        Some("application/json"),
        "{what}"
    );
    let message = answer.error();
    assert!(message.contains(part), "{what}: {message:?} should say {part:?}");
    let id = answer
        .head
        .header("x-request-id")
        .unwrap_or_else(|| panic!("{what}: it has an id"));
    assert!(
        message.contains(id),
        "{what}: {message:?} should name the request {id}"
    );
    assert_eq!(answer.head.header("x-litellm-call-id"), Some(id), "{what}");
}

#[tokio::test]
async fn bodies() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let deep = format!(
        r#"{{"model":"small","messages":{}{}}}"#,
        "[".repeat(90_000),
        "]".repeat(90_000)
    );
    let utf16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let long = format!(r#"{{"model":"{}","messages":[]}}"#, "m".repeat(5_000));
    let cases: &[(&str, &[u8], &str)] = &[
        ("nothing", b"", "JSON"),
        ("no JSON", b"model=small", "JSON"),
        ("an array", b"[]", "JSON"),
        ("half an object", br#"{"model":"small","messages":[]"#, "JSON"),
        ("two objects", br#"{"model":"small","messages":[]}{}"#, "JSON"),
        ("a comma too many", br#"{"model":"small","messages":[],}"#, "JSON"),
        (
            "NaN",
            br#"{"model":"small","messages":[],"temperature":NaN}"#,
            "JSON",
        ),
        (
            "a number of its own kind",
            br#"{"model":"small","messages":[],"n":0x10}"#,
            "JSON",
        ),
        (
            "a raw line end in a text",
            b"{\"model\":\"small\",\"messages\":[\"a\nb\"]}",
            "JSON",
        ),
        (
            "no UTF-8",
            b"{\"model\":\"small\",\"messages\":[\"\xff\xfe\"]}",
            "JSON",
        ),
        ("UTF-16", &utf16, "JSON"),
        (
            "a byte order mark",
            b"\xef\xbb\xbf{\"model\":\"small\",\"messages\":[]}",
            "JSON",
        ),
        ("absurd nesting", deep.as_bytes(), "deeply"),
        (
            "the model twice",
            br#"{"model":"small","messages":[],"model":"secret-model"}"#,
            "model",
        ),
        (
            "the model in escapes",
            br#"{"\u006dodel":"small","messages":[]}"#,
            "model",
        ),
        (
            "the model twice, once in escapes",
            br#"{"model":"small","messages":[],"mode\u006c":"secret-model"}"#,
            "model",
        ),
        (
            "stream twice",
            br#"{"model":"small","messages":[],"stream":false,"stream":true}"#,
            "stream",
        ),
        (
            "stream in escapes",
            br#"{"model":"small","messages":[],"strea\u006d":true}"#,
            "stream",
        ),
        (
            "stream as a text",
            br#"{"model":"small","messages":[],"stream":"true"}"#,
            "'stream' must be",
        ),
        (
            "the model as a number",
            br#"{"model":7,"messages":[]}"#,
            "'model' must be",
        ),
        (
            "the model as a list",
            br#"{"model":["small"],"messages":[]}"#,
            "'model' must be",
        ),
        ("no messages", br#"{"model":"small"}"#, "'messages'"),
        (
            "messages as a text",
            br#"{"model":"small","messages":"hi"}"#,
            "'messages' must be",
        ),
        (
            "no messages but null",
            br#"{"model":"small","messages":null}"#,
            "'messages'",
        ),
        (
            "a place to go to",
            br#"{"model":"small","messages":[],"api_base":"http://127.0.0.1:1"}"#,
            "api_base",
        ),
        (
            "another",
            br#"{"model":"small","messages":[],"base_url":"http://127.0.0.1:1"}"#,
            "base_url",
        ),
        (
            "a key for it",
            br#"{"model":"small","messages":[],"api_key":"sk-x"}"#,
            "api_key",
        ),
        (
            "a config of its own",
            br#"{"model":"small","messages":[],"user_config":{"model_list":[]}}"#,
            "user_config",
        ),
        ("an endless model", long.as_bytes(), "'model' is longer"),
    ];
    let mut conn = Conn::open(gateway.at).await;
    for (what, body, part) in cases {
        let answer = conn.ask("POST", CHAT, &[], body).await;
        check(what, &answer, 400, part);
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error", "{what}");
    }
    for (path, body, part) in [
        ("/v1/completions", r#"{"model":"small"}"#, "'prompt'"),
        ("/v1/embeddings", r#"{"model":"small"}"#, "'input'"),
        ("/v1/rerank", r#"{"model":"small"}"#, "'query'"),
        ("/v1/audio/speech", r#"{"model":"small"}"#, "'input'"),
    ] {
        check(
            path,
            &conn.ask("POST", path, &[], body.as_bytes()).await,
            400,
            part,
        );
    }
    let form = |text: &str| text.replace('\n', "\r\n");
    let kind = [("content-type", "multipart/form-data; boundary=b")];
    let part = |name: &str, value: &str| {
        form(&format!(
            "--b\nContent-Disposition: form-data; name=\"{name}\"\n\n{value}\n"
        ))
    };
    for (what, body) in [
        ("no form", "hello".to_string()),
        ("a form without an end", part("model", "small")),
        (
            "two models",
            [
                part("model", "small"),
                part("model", "secret-model"),
                part("file", "x"),
                "--b--\r\n".into(),
            ]
            .concat(),
        ),
        ("no file", [part("model", "small"), "--b--\r\n".into()].concat()),
    ] {
        let answer = conn
            .ask("POST", "/v1/audio/transcriptions", &kind, body.as_bytes())
            .await;
        check(what, &answer, 400, "");
    }
    for kind in [
        "multipart/form-data",
        "application/json",
        "multipart/form-data; boundary=",
    ] {
        let answer = conn
            .ask(
                "POST",
                "/v1/audio/transcriptions",
                &[("content-type", kind)],
                b"x",
            )
            .await;
        check(kind, &answer, 400, "");
    }
    assert_eq!(upstream.count(), 0, "the upstream heard nothing of it");
    assert_eq!(conn.ask("POST", CHAT, &[], GOOD.as_bytes()).await.status(), 200);
    let rows = gateway.rows_once(1).await;
    assert_eq!(rows.len(), 1, "what was never a call is in no ledger: {rows:?}");
}

#[tokio::test]
async fn keys() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    gateway.key("sk-good-key-0001", |_| {}).await;
    gateway.key("sk-blocked-0001", |k| k.blocked = true).await;
    gateway
        .key("sk-expired-0001", |k| k.expires_micros = Some(1))
        .await;
    let hash = KeyHash::of("sk-good-key-0001").hex();
    let hashed = format!("Bearer {hash}");
    let cases: &[(&str, Headers, &str)] = &[
        ("no key", &[("authorization", "")], "No api key"),
        ("no scheme", &[("authorization", "sk-good-key-0001")], "Bearer"),
        ("a scheme alone", &[("authorization", "Bearer")], "Bearer"),
        (
            "an unknown key",
            &[("authorization", "Bearer sk-nobody")],
            "Invalid API key",
        ),
        ("no key of ours", &[("authorization", "Bearer hello")], "sk-"),
        (
            "a blocked key",
            &[("authorization", "Bearer sk-blocked-0001")],
            "blocked",
        ),
        (
            "an expired key",
            &[("authorization", "Bearer sk-expired-0001")],
            "expired",
        ),
        ("the stored hash", &[("authorization", &hashed)], "sk-"),
        (
            "two keys",
            &[
                ("authorization", "Bearer sk-good-key-0001"),
                ("x-api-key", "sk-other"),
            ],
            "authorization and x-api-key",
        ),
        (
            "two other keys",
            &[("x-api-key", "sk-good-key-0001"), ("api-key", "sk-other")],
            "x-api-key and api-key",
        ),
        (
            "a wrong key that wins",
            &[
                ("x-litellm-api-key", "sk-wrong"),
                ("authorization", "Bearer sk-good-key-0001"),
            ],
            "Invalid",
        ),
        (
            "SQL",
            &[("authorization", "Bearer sk-' OR 1=1 --")],
            "Invalid API key",
        ),
    ];
    let mut conn = Conn::open(gateway.at).await;
    for (what, headers, part) in cases {
        let answer = conn.ask("POST", CHAT, headers, GOOD.as_bytes()).await;
        check(what, &answer, 401, part);
        for secret in ["sk-good-key-0001", "sk-nobody", "sk-blocked-0001", &hash] {
            assert!(
                !answer.text().contains(secret),
                "{what}: a key is not repeated: {}",
                answer.text()
            );
        }
    }
    let path = format!("{CHAT}?key={MASTER}&api_key={MASTER}");
    let answer = conn
        .ask("POST", &path, &[("authorization", "")], GOOD.as_bytes())
        .await;
    check("a key in the query", &answer, 401, "No api key");
    assert!(!answer.text().contains(MASTER));
    for path in ["/v1/models", "/key/info", "/spend/logs", "/user/info"] {
        let answer = conn
            .ask("GET", path, &[("authorization", "Bearer sk-nobody")], b"")
            .await;
        check(path, &answer, 401, "Invalid");
    }
    assert_eq!(upstream.count(), 0);
    let good = [
        ("authorization", "Bearer sk-good-key-0001"),
        ("x-api-key", "sk-good-key-0001"),
    ];
    assert_eq!(
        conn.ask("POST", CHAT, &good, GOOD.as_bytes()).await.status(),
        200,
        "the same key twice is one key"
    );
}

#[tokio::test]
async fn models() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    gateway
        .key("sk-small-only-1", |k| k.models = vec!["small".into()])
        .await;
    let who = [("authorization", "Bearer sk-small-only-1")];
    let mut conn = Conn::open(gateway.at).await;
    let body = |model: &str| json!({"model": model, "messages": []}).to_string();
    for model in [
        "secret-model",
        "SMALL",
        "small ",
        "small\u{200b}",
        "up-small",
        "openai/up-small",
        "*",
    ] {
        let answer = conn.ask("POST", CHAT, &who, body(model).as_bytes()).await;
        check(model, &answer, 403, "not available");
        assert!(
            !answer
                .text()
                .replace("'secret-model'", "")
                .contains("secret-model"),
            "names the key may not see stay hidden: {}",
            answer.text()
        );
    }
    let answer = conn.ask("POST", CHAT, &[], body("smal").as_bytes()).await;
    check("a near match", &answer, 404, "Did you mean 'small'?");
    assert_eq!(answer.json()["error"]["code"], "model_not_found");
    let answer = conn
        .ask("POST", CHAT, &[], body("nothing of the kind").as_bytes())
        .await;
    check("no match", &answer, 404, "does not exist");
    let answer = conn.ask("GET", "/v1/models/secret-model", &who, b"").await;
    check("one model", &answer, 404, "does not exist");
    let list = conn.ask("GET", "/v1/models", &who, b"").await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1, "{list}");
    for path in [
        "/engines/secret-model/chat/completions",
        "/openai/deployments/secret-model/chat/completions",
    ] {
        let answer = conn.ask("POST", path, &who, br#"{"messages":[]}"#).await;
        check(path, &answer, 403, "not available");
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn sizes() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let large = format!(r#"{{"model":"small","messages":["{}"]}}"#, letters(3 << 20));
    let declared = request("POST", CHAT, &[], large.as_bytes());
    let answer = Conn::open(gateway.at).await.ask_both_ways(declared).await;
    check("declared", &answer, 413, "1 MiB");
    let mut chunked = head("POST", CHAT, &[("transfer-encoding", "chunked")]);
    chunked.extend_from_slice(format!("\r\n{:x}\r\n{large}\r\n0\r\n\r\n", large.len()).as_bytes());
    let answer = Conn::open(gateway.at).await.ask_both_ways(chunked).await;
    check("undeclared", &answer, 413, "1 MiB");
    // One that asks first is told before it sends anything.
    let mut conn = Conn::open(gateway.at).await;
    let mut asking = head(
        "POST",
        CHAT,
        &[("expect", "100-continue"), ("content-length", "10000000000")],
    );
    asking.extend_from_slice(b"\r\n");
    conn.send(&asking).await;
    check("ten gigabytes", &conn.answer().await, 413, "1 MiB");
    let json = [("content-type", "application/json")];
    let answer = H2::open(gateway.at).await.ask("POST", CHAT, &json, large).await;
    check("over HTTP/2", &answer, 413, "1 MiB");
    for encoding in ["gzip", "br", "zstd", "deflate", "gzip, gzip"] {
        let answer = ask(&gateway, "POST", CHAT, &[("content-encoding", encoding)], GOOD).await;
        check(encoding, &answer, 415, "Compressed");
    }
    assert_eq!(
        ask(&gateway, "POST", CHAT, &[("content-encoding", "identity")], GOOD)
            .await
            .status(),
        200
    );
    let long = "x".repeat(70_000);
    let answer = ask(&gateway, "POST", CHAT, &[("x-long", &long)], GOOD).await;
    check("a head of 70 KB", &answer, 431, "64 KiB");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn paths_and_methods() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let mut conn = Conn::open(gateway.at).await;
    for path in [
        "/",
        "/v1",
        "/v1/nothing",
        "/V1/chat/completions",
        "/v1/chat/completions/x",
        "/healthy",
        "/tt",
        "/ttsx",
        "/v2/chat/completions",
        "/.env",
    ] {
        check(
            path,
            &conn.ask("POST", path, &[], GOOD.as_bytes()).await,
            404,
            "nothing at this path",
        );
    }
    for (method, path, allow) in [
        ("GET", CHAT, "POST"),
        ("PUT", CHAT, "POST"),
        ("DELETE", "/v1/embeddings", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PATCH", "/v1/models/small", "GET, HEAD"),
    ] {
        let answer = conn.ask(method, path, &[], b"").await;
        check(path, &answer, 405, allow.split(',').next().unwrap());
        assert_eq!(answer.head.header("allow"), Some(allow), "{method} {path}");
    }
    let odd = [
        "/{}//x",
        "//{}",
        "/{}/../key/generate",
        "/{}/./x",
        "/{}/%2e%2e/key/generate",
        "/{}/%2E%2E/key/generate",
        "/{}%2f..%2fkey/generate",
        "/{}/..%2fkey/generate",
        "/{};x=1/y",
        "/{}/;/y",
        "/{}\\key\\generate",
        "/{}%5c..%5ckey",
        "/{}/%00",
        "/{}/x%0d%0aHost:%20evil",
        "/{}/%252e%252e/x",
        "/{}/%25%32%65",
        "/{}/%",
        "/{}/%zz",
        "/{}/..",
        "/{}/.",
    ];
    for lane in [
        "v1/chat/completions",
        "tts",
        "key/generate",
        "spend/logs",
        "health",
        "metrics",
    ] {
        for pattern in odd {
            let path = pattern.replace("{}", lane);
            for method in ["GET", "POST"] {
                let answer = ask(&gateway, method, &path, &[], "").await;
                check(&format!("{method} {path}"), &answer, 400, "path is not taken");
            }
        }
    }
    assert_eq!(upstream.count(), 0, "no odd path reached a target");
}

#[tokio::test]
async fn heads() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    let mut conn = Conn::open(gateway.at).await;
    conn.send(b"GET /v1/models HTTP/1.1\r\nauthorization: Bearer x\r\n\r\n")
        .await;
    check("no Host", &conn.answer().await, 400, "Host");
    // What two parsers could read as two requests is one answer and the end of the connection.
    let auth = format!("host: x\r\nauthorization: Bearer {MASTER}\r\ncontent-type: application/json\r\n");
    let smuggled = "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";
    for (what, head) in [
        ("two lengths", "content-length: 5\r\ncontent-length: 6\r\n"),
        ("a signed length", "content-length: +5\r\n"),
        ("a list of lengths", "content-length: 5, 6\r\n"),
        ("an unknown coding", "transfer-encoding: xchunked\r\n"),
        (
            "a coding that does not end",
            "transfer-encoding: chunked, identity\r\n",
        ),
        ("a space before the colon", "content-length : 5\r\n"),
        ("a folded line", "x-a: b\r\n c: d\r\ncontent-length: 5\r\n"),
        ("two hosts", "host: y\r\ncontent-length: 5\r\n"),
        ("a NUL", "x-a: b\0c\r\ncontent-length: 5\r\n"),
    ] {
        let mut conn = Conn::open(gateway.at).await;
        conn.send(format!("POST {CHAT} HTTP/1.1\r\n{auth}{head}\r\n{smuggled}").as_bytes())
            .await;
        let answer = conn.answer().await;
        assert_eq!(answer.status(), 400, "{what}: {}", answer.text());
        assert!(conn.is_closed().await, "{what}: the connection ends");
    }
    let many: String = (0..3_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let mut conn = Conn::open(gateway.at).await;
    conn.send(format!("GET /v1/models HTTP/1.1\r\n{auth}{many}\r\n").as_bytes())
        .await;
    let status = conn.answer().await.status();
    assert!(matches!(status, 400 | 431), "3000 headers: {status}");
    assert_eq!(upstream.count(), 0);
}

/// Early answers must reach clients whose bodies nobody read, and the connection must stay in order.
#[tokio::test]
async fn early_answers_arrive() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream).await;
    gateway
        .key("sk-small-only-2", |k| k.models = vec!["small".into()])
        .await;
    let nobody = [
        ("authorization", "Bearer sk-nobody"),
        ("content-type", "application/json"),
    ];
    for len in [200 << 10, 30 << 20] {
        let body = format!(r#"{{"messages":["{}"],"model":"small"}}"#, letters(len));
        for path in [CHAT, "/key/generate"] {
            let answer = Conn::open(gateway.at)
                .await
                .ask_both_ways(request("POST", path, &nobody, body.as_bytes()))
                .await;
            check(&format!("HTTP/1.1, {path}, {len} bytes"), &answer, 401, "Invalid");
            let mut h2 = H2::open(gateway.at).await;
            let answer = h2.ask("POST", path, &nobody, body.clone()).await;
            check(&format!("HTTP/2, {path}, {len} bytes"), &answer, 401, "Invalid");
            let json = [("content-type", "application/json")];
            assert_eq!(
                h2.ask("POST", CHAT, &json, GOOD).await.status(),
                200,
                "an HTTP/2 connection goes on after a refusal"
            );
        }
        for (path, status) in [("/v1/nothing", 404), ("/v1//x", 400)] {
            let answer = Conn::open(gateway.at)
                .await
                .ask_both_ways(request("POST", path, &nobody, body.as_bytes()))
                .await;
            check(path, &answer, status, "path");
            let answer = H2::open(gateway.at)
                .await
                .ask("POST", path, &nobody, body.clone())
                .await;
            check(path, &answer, status, "path");
        }
    }
    // The connection is used again, or closed without anything of the body being taken for a request.
    let body = format!(r#"{{"messages":["{}"],"model":"small"}}"#, letters(200 << 10));
    let mut conn = Conn::open(gateway.at).await;
    let answer = conn.ask("POST", CHAT, &nobody, body.as_bytes()).await;
    check("before another", &answer, 401, "Invalid");
    if answer.head.header("connection") == Some("close") {
        assert!(conn.is_closed().await);
    } else {
        assert_eq!(conn.ask("POST", CHAT, &[], GOOD.as_bytes()).await.status(), 200);
    }
}

#[tokio::test]
async fn a_second_request_waits_its_turn() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |seen| {
        if seen.json()["stream"] == true {
            Script::sse(&[&delta("one")])
                .wait(&held)
                .events(&["[DONE]"])
                .end()
        } else {
            Script::chat("second")
        }
    })
    .await;
    let gateway = before(&upstream).await;
    let streaming = json!({"model": "small", "messages": [], "stream": true}).to_string();
    let first = request("POST", CHAT, &[], streaming.as_bytes());
    let second = request("POST", CHAT, &[], GOOD.as_bytes());
    for in_one_piece in [false, true] {
        let mut conn = Conn::open(gateway.at).await;
        if in_one_piece {
            conn.send(&[&first[..], &second].concat()).await;
        } else {
            conn.send(&first).await;
        }
        assert_eq!(conn.head().await.status, 200);
        let chunk = conn.reader.chunk().await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&chunk).contains("one"));
        if !in_one_piece {
            conn.send(&second).await;
            // The gateway has had time to see it once it has answered somebody else.
            assert_eq!(ask(&gateway, "GET", "/health", &[], "").await.status(), 200);
        }
        gate.open();
        let (rest, whole) = conn.reader.rest().await;
        assert!(
            whole && rest.ends_with(b"data: [DONE]\n\n"),
            "in one piece: {in_one_piece}: the stream is not cut"
        );
        let answer: Value = conn.answer().await.json();
        assert_eq!(
            answer["choices"][0]["message"]["content"], "second",
            "in one piece: {in_one_piece}: the second request is answered after the first"
        );
    }
}

#[tokio::test]
async fn fields_that_a_key_or_its_team_asks_for() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    let post = async |key: &str, path: &str, more: Headers<'_>, body: Value| {
        let bearer = format!("Bearer {key}");
        let headers = [&[("authorization", bearer.as_str())], more].concat();
        ask(&gateway, "POST", path, &headers, body.to_string()).await
    };
    let made = async |path: &str, fields: Value| {
        let answer = post(MASTER, path, &[], fields).await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        answer.json()
    };
    made(
        "/team/new",
        json!({"team_id": "red", "metadata": {"enforced_params": ["metadata.job"]}}),
    )
    .await;
    let key = made(
        "/key/generate",
        json!({"team_id": "red", "enforced_params": ["user"]}),
    )
    .await;
    assert_eq!(key.get("not_enforced"), None);
    let key = key["key"].as_str().unwrap();
    let words =
        |name: &str| format!("BadRequest please pass param={name} in request body. This is a required param");
    for (path, body) in [
        (CHAT, json!({"model": "small", "messages": []})),
        ("/v1/completions", json!({"model": "small", "prompt": "x"})),
        ("/v1/embeddings", json!({"model": "small", "input": "x"})),
        ("/v1/responses", json!({"model": "small", "input": "x"})),
        (
            "/v1/audio/speech",
            json!({"model": "small", "input": "x", "voice": "a"}),
        ),
    ] {
        let with = |user: bool, metadata: Value| {
            let mut body = body.clone();
            if user {
                body["user"] = "eve".into();
            }
            body["metadata"] = metadata;
            body
        };
        let refused = post(key, path, &[], with(false, json!({"job": 1}))).await;
        check(path, &refused, 400, &words("user"));
        assert_eq!(refused.json()["error"]["param"], "user");
        let refused = post(key, path, &[], with(true, json!({"name": "job"}))).await;
        check(path, &refused, 400, &words("[metadata][job]"));
        assert_eq!(refused.json()["error"]["param"], "metadata.job");
        assert_eq!(upstream.count(), 0, "{path}");
    }
    let whole = json!({"model": "small", "messages": [], "metadata": {"job": "x"}});
    let by_header = post(key, CHAT, &[("x-litellm-end-user-id", "eve")], whole.clone()).await;
    assert_eq!(by_header.status(), 200, "{by_header:?}");
    assert_eq!(post(MASTER, CHAT, &[], whole.clone()).await.status(), 200);
    made("/key/update", json!({"key": key, "enforced_params": []})).await;
    assert_eq!(post(key, CHAT, &[], whole).await.status(), 200);
}
