//! Lanes whose bytes flow untouched: paths, bodies, WebSockets, and who may come in.

use crate::kit::client::{Conn, H2, ask, head, request};
use crate::kit::gateway::{Gateway, MASTER, Setup};
use crate::kit::upstream::{Gate, Script, Upstream};
use crate::kit::{noise, within};
use serde_json::{Value, json};

/// A gateway with one pass-through entry; `more` is added to it.
async fn before(upstream: &Upstream, more: Value) -> Gateway {
    with(format!("http://127.0.0.1:{}", upstream.port), more, Setup::new()).await
}

async fn with(target: String, more: Value, setup: Setup) -> Gateway {
    let mut entry = json!({"path": "/tts", "target": target, "include_subpath": true});
    for (field, value) in more.as_object().unwrap() {
        entry[field] = value.clone();
    }
    setup
        .general("pass_through_endpoints", json!([entry]))
        .start()
        .await
}

#[tokio::test]
async fn bytes_pass_both_ways() {
    let sound = noise(3_000_000);
    let answered = sound.clone();
    let upstream = Upstream::start(move |_| {
        Script::answer(
            200,
            &[("content-type", "audio/wav"), ("x-theirs", "1")],
            &answered,
        )
    })
    .await;
    let gateway = before(&upstream, json!({})).await;
    let sent = noise(5_000_000);
    let kind = [
        ("content-type", "application/octet-stream"),
        ("authorization", ""),
    ];
    let answer = ask(
        &gateway,
        "POST",
        "/tts/v1/audio/speech?voice=a%20b&x=1",
        &kind,
        &sent,
    )
    .await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert!(answer.body == sound, "the answer is byte-identical");
    assert_eq!(answer.head.header("content-type"), Some("audio/wav"));
    assert_eq!(answer.head.header("x-theirs"), Some("1"));
    assert!(answer.head.header("x-request-id").is_some());
    let seen = upstream.last();
    assert!(seen.body() == sent, "the request is byte-identical");
    assert_eq!(seen.method, "POST");
    assert_eq!(
        seen.target, "/v1/audio/speech?voice=a%20b&x=1",
        "sub-path and query go on"
    );
    assert_eq!(
        seen.header("host"),
        Some(&*format!("127.0.0.1:{}", upstream.port))
    );

    for (path, target) in [
        ("/tts", "/"),
        ("/tts/", "/"),
        ("/tts?a=b", "/?a=b"),
        ("/tts/a/b", "/a/b"),
    ] {
        assert_eq!(ask(&gateway, "GET", path, &[], "").await.status(), 200, "{path}");
        assert_eq!(upstream.last().target, target, "{path}");
    }
    for method in ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let answer = ask(&gateway, method, "/tts/x", &[], "").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(upstream.last().method, method);
    }
    let mut h2 = H2::open(gateway.at).await;
    let answer = h2.ask("POST", "/tts/over/h2", &[], sent.clone()).await;
    assert!(
        answer.status() == 200 && answer.body == sound,
        "over HTTP/2 as well"
    );
    assert!(upstream.last().body() == sent);
}

#[tokio::test]
async fn a_stream_is_not_held_back() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| Script::sse(&["one"]).wait(&held).events(&["two"]).end()).await;
    let gateway = before(&upstream, json!({})).await;
    let mut conn = Conn::open(gateway.at).await;
    conn.send(&request("GET", "/tts/stream", &[], b"")).await;
    assert_eq!(conn.head().await.status, 200);
    assert_eq!(&conn.reader.chunk().await.unwrap().unwrap()[..], b"data: one\n\n");
    gate.open();
    let (rest, whole) = conn.reader.rest().await;
    assert!(whole && &rest[..] == b"data: two\n\n");
}

#[tokio::test]
async fn a_target_with_a_path_and_an_exact_entry() {
    let upstream = Upstream::good().await;
    let gateway = with(
        format!("http://127.0.0.1:{}/base/", upstream.port),
        json!({"include_subpath": false}),
        Setup::new(),
    )
    .await;
    assert_eq!(ask(&gateway, "GET", "/tts?a=1", &[], "").await.status(), 200);
    assert_eq!(
        upstream.last().target.trim_end_matches('/').replace("/?", "?"),
        "/base?a=1"
    );
    assert_eq!(ask(&gateway, "GET", "/tts/below", &[], "").await.status(), 404);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn credentials_stay_here() {
    let upstream = Upstream::good().await;
    let more = json!({"auth": true, "forward_headers": true, "headers": {"Authorization": "Bearer of-the-target", "X-Own": "1"}});
    let gateway = before(&upstream, more).await;
    let bearer = format!("Bearer {MASTER}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-api-key", MASTER),
        ("cookie", "a=b"),
        ("proxy-authorization", "Basic eA=="),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-host", "evil"),
        ("forwarded", "for=6.6.6.6"),
        ("x-real-ip", "6.6.6.6"),
        ("connection", "keep-alive, x-listed"),
        ("x-listed", "1"),
        ("x-mine", "kept"),
    ];
    let answer = ask(&gateway, "POST", "/tts/x", &headers, "{}").await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let seen = upstream.last();
    let text = format!("{:?}", seen.headers);
    assert!(!text.contains(MASTER), "the caller's key stays here: {text}");
    assert_eq!(seen.header("authorization"), Some("Bearer of-the-target"));
    assert_eq!(
        (seen.header("x-own"), seen.header("x-mine")),
        (Some("1"), Some("kept"))
    );
    for name in ["cookie", "proxy-authorization", "x-listed", "keep-alive"] {
        assert_eq!(seen.header(name), None, "{name} stays here");
    }
    assert_eq!(
        seen.header("x-forwarded-for"),
        Some("127.0.0.1"),
        "what a caller says of its address is not repeated"
    );
    for name in ["x-real-ip", "forwarded", "x-forwarded-host"] {
        assert_eq!(
            seen.header(name),
            None,
            "{name} is the caller's word and stays here"
        );
    }
}

#[tokio::test]
async fn keyless_only_inside() {
    let upstream = Upstream::good().await;
    let inside = before(&upstream, json!({})).await;
    let none = [("authorization", "")];
    assert_eq!(
        ask(&inside, "GET", "/tts/x", &none, "").await.status(),
        200,
        "loopback is inside"
    );
    let wrong = [("authorization", "Bearer sk-whatever")];
    assert_eq!(
        ask(&inside, "GET", "/tts/x", &wrong, "").await.status(),
        200,
        "who needs no key needs no right one either"
    );
    assert_eq!(ask(&inside, "GET", "/v1/models", &none, "").await.status(), 401);

    let elsewhere = Setup::new().setting("internal_networks", json!(["10.0.0.0/8"]));
    let outside = with(
        format!("http://127.0.0.1:{}", upstream.port),
        json!({}),
        elsewhere,
    )
    .await;
    let before = upstream.count();
    for forged in [
        ("x-forwarded-for", "10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("x-other", "1"),
    ] {
        let answer = ask(&outside, "GET", "/tts/x", &[none[0], forged], "").await;
        assert_eq!(
            answer.status(),
            401,
            "no header makes a peer internal: {forged:?}"
        );
        answer.error();
    }
    assert_eq!(ask(&outside, "GET", "/metrics", &none, "").await.status(), 401);
    assert_eq!(
        ask(&outside, "GET", "/health", &none, "").await.status(),
        200,
        "health is open"
    );
    assert_eq!(upstream.count(), before, "the target heard nothing of them");
    assert_eq!(
        ask(&outside, "GET", "/tts/x", &[], "").await.status(),
        200,
        "with a key one may"
    );
    assert_eq!(ask(&outside, "GET", "/metrics", &[], "").await.status(), 200);
}

#[tokio::test]
async fn a_key_where_the_file_says_so() {
    let upstream = Upstream::good().await;
    let gateway = before(&upstream, json!({"auth": true, "methods": ["GET"]})).await;
    gateway.key("sk-for-the-lane-1", |_| {}).await;
    let none = [("authorization", "")];
    assert_eq!(ask(&gateway, "GET", "/tts/x", &none, "").await.status(), 401);
    let nobody = [("authorization", "Bearer sk-nobody")];
    assert_eq!(ask(&gateway, "GET", "/tts/x", &nobody, "").await.status(), 401);
    assert_eq!(upstream.count(), 0);
    let key = [("authorization", "Bearer sk-for-the-lane-1")];
    assert_eq!(ask(&gateway, "GET", "/tts/x", &key, "").await.status(), 200);
    let answer = ask(&gateway, "DELETE", "/tts/x", &key, "").await;
    assert_eq!((answer.status(), answer.head.header("allow")), (405, Some("GET")));
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_target_that_is_down() {
    let gateway = with("http://127.0.0.1:1".into(), json!({}), Setup::new()).await;
    for body in [Vec::new(), noise(300_000)] {
        let mut conn = Conn::open(gateway.at).await;
        let answer = conn.ask("POST", "/tts/x", &[], &body).await;
        if answer.head.header("connection") == Some("close") {
            assert!(conn.is_closed().await);
        } else {
            let next = conn.ask("GET", "/health", &[], b"").await;
            assert_eq!(next.status(), 200, "a connection that is kept can be used");
        }
        assert_eq!(answer.status(), 503, "{}", answer.text());
        assert!(answer.error().contains("cannot be reached"));
        assert!(
            !answer.text().contains("127.0.0.1") && !answer.text().contains("refused"),
            "no address: {}",
            answer.text()
        );
        assert!(answer.head.header("x-request-id").is_some());
    }
    let silent = Upstream::start(|_| Script::nothing().close()).await;
    let gateway = before(&silent, json!({})).await;
    let answer = ask(&gateway, "GET", "/tts/x", &[], "").await;
    assert_eq!(answer.status(), 502, "{}", answer.text());
    assert!(!answer.error().contains("127.0.0.1"));
}

#[tokio::test]
async fn a_websocket_passes() {
    // Ends the handshake, then echoes 11 bytes and says one more thing.
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| {
        Script::nothing()
            .wait(&held)
            .raw("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: x\r\n\r\n")
            .echo(11)
            .wait(&held)
            .raw("goodbye")
            .close()
    })
    .await;
    let gateway = before(&upstream, json!({})).await;
    let mut conn = Conn::open(gateway.at).await;
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-version", "13"),
    ];
    let mut asked = head("GET", "/tts/socket", &headers);
    asked.extend_from_slice(b"\r\n");
    conn.send(&asked).await;
    // Pingora 0.9.1 ends an upgraded connection whose 101 overtakes its own note that the request has no
    // body: a target that answers within microseconds. This one takes its time, until the gateway has answered
    // somebody else.
    let seen = upstream.request(0).await;
    assert_eq!(ask(&gateway, "GET", "/health", &[], "").await.status(), 200);
    gate.open();
    let answer = conn.head().await;
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("sec-websocket-accept"), Some("x"));
    assert_eq!(seen.header("upgrade"), Some("websocket"));
    assert_eq!(seen.header("sec-websocket-version"), Some("13"));
    assert_eq!(seen.header("authorization"), None);
    conn.send(b"\x81\x05hello").await;
    let mut got = Vec::new();
    while got.len() < 7 {
        got.extend_from_slice(&conn.reader.raw().await);
    }
    assert_eq!(got, b"\x81\x05hello", "a frame comes back as it was");
    conn.send(b"more").await;
    while got.len() < 11 {
        got.extend_from_slice(&conn.reader.raw().await);
    }
    gate.open();
    while got.len() < 18 {
        got.extend_from_slice(&conn.reader.raw().await);
    }
    assert_eq!(&got[7..], b"moregoodbye", "both ways, again and again");
    assert!(within("the socket ends", conn.is_closed()).await);
}

#[tokio::test]
async fn a_key_in_a_header_of_its_own_stays_here() {
    let upstream = Upstream::good().await;
    let target = format!("http://127.0.0.1:{}", upstream.port);
    let open = json!({"passthrough": {"forward_headers": true}});
    let lane = |name: &str, auth: Value| {
        json!({
            "name": name, "paths": [format!("/{name}/*")], "driver": "stream", "target": target,
            "filters": [auth, open],
        })
    };
    let own = json!({"auth": {"header": "X-Lane-Key"}});
    let setup = Setup::new()
        .general("litellm_key_header_name", json!("X-Team-Key"))
        .setting("lanes", json!([lane("plain", json!("auth")), lane("own", own)]));
    let gateway = with(
        target.clone(),
        json!({"auth": true, "forward_headers": true}),
        setup,
    )
    .await;
    let headers = [("x-team-key", MASTER), ("x-lane-key", MASTER), ("x-mine", "kept")];
    for path in ["/tts/x", "/plain/x", "/own/x"] {
        let answer = ask(&gateway, "POST", path, &headers, "{}").await;
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        let seen = upstream.last();
        assert_eq!(seen.header("x-team-key"), None, "{path}");
        assert_eq!(seen.header("x-mine"), Some("kept"), "{path}");
        if path == "/own/x" {
            assert_eq!(seen.header("x-lane-key"), None, "a lane's own header as well");
        }
    }
}

#[tokio::test]
async fn repeated_headers_stay_repeated() {
    let upstream = Upstream::start(|_| {
        let headers = [
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("vary", "accept-encoding"),
            ("vary", "accept-language"),
            ("link", "</1>"),
            ("link", "</2>"),
        ];
        Script::answer(200, &headers, "{}")
    })
    .await;
    let gateway = before(&upstream, json!({})).await;
    let answer = ask(&gateway, "GET", "/tts/x", &[("origin", "https://app.test")], "").await;
    let all = |name: &str| -> Vec<&str> {
        let of_name = answer.head.headers.iter().filter(|(n, _)| n == name);
        of_name.map(|(_, v)| v.as_str()).collect()
    };
    assert_eq!(all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(all("link"), ["</1>", "</2>"]);
    assert_eq!(all("vary"), ["accept-encoding", "accept-language", "origin"]);
    assert_eq!(all("access-control-allow-origin"), ["*"]);
}

#[tokio::test]
async fn an_answer_does_not_name_the_target() {
    let upstream = Upstream::start(|seen| {
        let host = seen.header("host").unwrap().to_string();
        let place = format!("http://{host}/base/jobs/1?a=b");
        let elsewhere = format!("http://{host}/other");
        let headers = [
            ("server", "theirs"),
            ("via", "1.1 theirs"),
            ("x-powered-by", "theirs"),
            ("x-theirs", "kept"),
            ("location", &*place),
            ("content-location", &*elsewhere),
        ];
        Script::answer(201, &headers, "{}")
    })
    .await;
    let gateway = with(
        format!("http://127.0.0.1:{}/base", upstream.port),
        json!({}),
        Setup::new(),
    )
    .await;
    let answer = ask(&gateway, "POST", "/tts/jobs", &[], "{}").await;
    assert_eq!(answer.status(), 201, "{answer:?}");
    let head = &answer.head;
    assert_eq!(head.header("location"), Some("/tts/jobs/1?a=b"));
    assert_eq!(
        head.header("content-location"),
        None,
        "what has no path here is left out"
    );
    assert_eq!(head.header("x-theirs"), Some("kept"));
    for name in ["server", "via", "x-powered-by"] {
        assert_eq!(head.header(name), None, "{name}");
    }
}

/// Calls and passed-through requests go different ways within the gateway.
#[tokio::test]
async fn one_connection_carries_calls_and_what_is_passed_through() {
    let upstream =
        Upstream::start(|_| Script::answer(200, &[("content-type", "text/plain")], "spoken")).await;
    let models = Upstream::good().await;
    let setup = Setup::new().model("small", &models);
    let gateway = with(format!("http://127.0.0.1:{}", upstream.port), json!({}), setup).await;
    let body = br#"{"model":"small","messages":[]}"#;
    let call = request("POST", "/v1/chat/completions", &[], body);
    let passed = request("POST", "/tts/x", &[], b"words");
    // One after the other, all at once, and with a head that comes in pieces.
    let mut one = Conn::open(gateway.at).await;
    let mut all = Conn::open(gateway.at).await;
    let mut slow = Conn::open(gateway.at).await;
    let order = [&call, &call, &passed, &call, &passed];
    let together: Vec<u8> = order.iter().flat_map(|r| r.to_vec()).collect();
    all.send(&together).await;
    for (i, request) in order.into_iter().enumerate() {
        let (first, rest) = request.split_at(17);
        one.send(request).await;
        slow.send(first).await;
        slow.send(rest).await;
        for conn in [&mut one, &mut all, &mut slow] {
            let answer = conn.answer().await;
            assert_eq!(answer.status(), 200, "{i}: {}", answer.text());
            assert_eq!(answer.text() == "spoken", request == &passed, "{i}");
        }
    }
    assert_eq!((models.count(), upstream.count()), (9, 6));
    assert_eq!(&upstream.last().body()[..], b"words");
}
