//! Ordinary services behind lanes: which backend, what travels, which host has what, and what happens when
//! backends are ill, slow or gone.

use crate::kit::client::{Answer, Conn, ask, request};
use crate::kit::gateway::{BINARY, Gateway, Setup, free_port};
use crate::kit::upstream::{Gate, Script, Upstream};
use crate::kit::{noise, until, within};
use crate::upstream_tls;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A backend that says its name, and whose health is switched from outside.
struct Named {
    upstream: Upstream,
    is_well: Arc<AtomicBool>,
}

async fn named(name: &'static str) -> Named {
    let is_well = Arc::new(AtomicBool::new(true));
    let well = Arc::clone(&is_well);
    let upstream = Upstream::start(move |seen| {
        if seen.target.starts_with("/healthz") {
            let status = if well.load(SeqCst) { 204 } else { 500 };
            return Script::answer(status, &[], "");
        }
        Script::answer(200, &[("content-type", "text/plain")], name)
    })
    .await;
    Named { upstream, is_well }
}

impl Named {
    fn url(&self) -> String {
        url(&self.upstream)
    }
}

fn url(upstream: &Upstream) -> String {
    format!("http://127.0.0.1:{}", upstream.port)
}

/// A service `web` and an open lane to it at `/web`.
fn setup(service: Value, lane: Value) -> Setup {
    let mut all =
        json!({"name": "web", "paths": ["/web/*"], "driver": "stream", "service": "web", "auth": "open"});
    for (field, value) in lane.as_object().unwrap() {
        all[field] = value.clone();
    }
    Setup::new()
        .setting("services", json!({"web": service}))
        .setting("lanes", json!([all]))
}

async fn get(gateway: &Gateway, path: &str) -> Answer {
    ask(gateway, "GET", path, &[("authorization", "")], "").await
}

/// Asks for a host, as nobody.
async fn at_host(gateway: &Gateway, host: &str, path: &str) -> Answer {
    let mut conn = Conn::open(gateway.at).await;
    let text = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    conn.send(text.as_bytes()).await;
    conn.answer().await
}

async fn counts(gateway: &Gateway, path: &str, n: usize) -> HashMap<String, usize> {
    let mut conn = Conn::open(gateway.at).await;
    let mut counts = HashMap::new();
    for _ in 0..n {
        let answer = conn.ask("GET", path, &[("authorization", "")], b"").await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        *counts.entry(answer.text()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn requests_are_shared_by_weight() {
    let (a, b, c) = (named("a").await, named("b").await, named("c").await);
    let backends = json!([
        {"url": a.url(), "weight": 7},
        {"url": b.url(), "weight": 2},
        c.url(),
    ]);
    let gateway = setup(json!({"backends": backends}), json!({})).start().await;
    let counts = counts(&gateway, "/web/x", 1_000).await;
    for (name, want) in [("a", 700), ("b", 200), ("c", 100)] {
        let got = counts[name];
        assert!(got.abs_diff(want) <= 10, "{name}: {got} of {want}");
    }
}

#[tokio::test]
async fn a_health_check_takes_a_backend_out_and_back_in() {
    let (a, b) = (named("a").await, named("b").await);
    let service = json!({
        "backends": [a.url(), b.url()],
        "health_check": {"path": "/healthz", "interval": "50ms", "timeout": "30s", "status": 204, "host": "checked.test"},
    });
    let config = setup(service.clone(), json!({}));
    let gateway = config.start().await;
    assert_eq!(counts(&gateway, "/web/x", 20).await["a"], 10);
    a.is_well.store(false, SeqCst);
    gateway.says("event=backend_ill").await;
    assert_eq!(counts(&gateway, "/web/x", 20).await["b"], 20);

    // A new config with the same backend goes on from there.
    let mut other = service.clone();
    other["health_check"]["timeout"] = json!("31s");
    let applied = async |n: usize| gateway.says_times("event=config_applied", n).await;
    gateway.rewrite(&setup(other.clone(), json!({})).config());
    applied(1).await;
    assert_eq!(counts(&gateway, "/web/x", 20).await["b"], 20);
    a.is_well.store(true, SeqCst);
    gateway.says("event=backend_well").await;
    assert_eq!(counts(&gateway, "/web/x", 20).await["a"], 10);

    // What a check has found counts no longer where nobody checks.
    a.is_well.store(false, SeqCst);
    gateway.says_times("event=backend_ill", 2).await;
    other.as_object_mut().unwrap().remove("health_check");
    gateway.rewrite(&setup(other, json!({})).config());
    applied(2).await;
    assert_eq!(counts(&gateway, "/web/x", 20).await["a"], 10);
    // Requests may have been quicker than the first check.
    let all = a.upstream.targets();
    let checked = all.iter().position(|target| target == "/healthz").unwrap();
    let checked = a.upstream.request(checked).await;
    assert_eq!(checked.header("host"), Some("checked.test"));
}

#[tokio::test]
async fn where_all_are_ill_all_are_tried() {
    let a = named("a").await;
    a.is_well.store(false, SeqCst);
    let service = json!({
        "backends": [a.url()],
        "health_check": {"path": "/healthz", "interval": "50ms"},
    });
    let gateway = setup(service, json!({})).start().await;
    gateway.says("event=service_down").await;
    assert_eq!(counts(&gateway, "/web/x", 3).await["a"], 3);
}

#[tokio::test]
async fn a_backend_that_refuses_costs_nobody_a_request() {
    let b = named("b").await;
    let gone = format!("http://127.0.0.1:{}", free_port());
    let service = json!({"backends": [gone, b.url()]});
    let gateway = setup(service, json!({})).start().await;
    let mut conn = Conn::open(gateway.at).await;
    let begun = Instant::now();
    for _ in 0..10 {
        let answer = conn
            .ask("POST", "/web/x", &[("authorization", "")], &noise(100_000))
            .await;
        assert_eq!((answer.status(), &*answer.text()), (200, "b"));
    }
    assert!(b.upstream.last().body() == noise(100_000));
    gateway.says("event=backend_refused").await;
    // It rests for ten seconds each time.
    let most = 1 + begun.elapsed().as_secs() as usize / 10;
    let log = gateway.log();
    let tried = log.matches("event=backend_refused").count();
    assert!(tried <= most, "it rests meanwhile, {tried} times: {log}");

    let lone = json!({"backends": [gone, format!("http://127.0.0.1:{}", free_port())]});
    let gateway = setup(lone, json!({})).start().await;
    for _ in 0..2 {
        let answer = get(&gateway, "/web/x").await;
        assert_eq!(answer.status(), 503, "{}", answer.text());
        let told = answer.error();
        assert!(!told.contains("127.0.0.1") && !told.contains("refused"), "{told}");
    }
    gateway.says("event=service_down").await;
    let silent = Upstream::start(|_| Script::nothing().close()).await;
    let gateway = setup(json!({"backends": url(&silent)}), json!({})).start().await;
    let answer = get(&gateway, "/web/x").await;
    assert_eq!(answer.status(), 502, "{}", answer.text());
    assert!(!answer.error().contains("127.0.0.1"));
}

/// The series of `/metrics` whose names begin so, in order.
async fn shown(gateway: &Gateway, start: &str) -> Vec<String> {
    let text = ask(gateway, "GET", "/metrics", &[], "").await.text();
    let lines = text.lines().filter(|l| l.starts_with(start));
    lines.map(str::to_string).collect()
}

#[tokio::test]
async fn metrics_show_what_becomes_of_each_backend() {
    let a = Upstream::start(|seen| {
        let status = seen.target.rsplit('/').next().unwrap().parse().unwrap();
        Script::answer(status, &[], "")
    })
    .await;
    let gate = Gate::new();
    let held = gate.clone();
    let b = Upstream::start(move |_| Script::nothing().wait(&held).and(Script::answer(200, &[], ""))).await;
    let gone = format!("http://127.0.0.1:{}", free_port());
    let services = json!({
        // One that is named twice is one series.
        "web": {"backends": [url(&a), url(&a)]},
        "slow": {"backends": url(&b)},
        "gone": {"backends": gone.clone()},
    });
    let lane = |name: &str| json!({"name": name, "paths": [format!("/{name}/*")], "driver": "stream", "service": name, "auth": "open"});
    let lanes = json!([lane("web"), lane("slow"), lane("gone")]);
    let config = |model: &str| {
        Setup::new()
            .model(model, &a)
            .setting("services", services.clone())
            .setting("lanes", lanes.clone())
    };
    let gateway = config("m").start().await;
    for (path, status) in [
        ("/web/200", 200),
        ("/web/204", 204),
        ("/web/302", 302),
        ("/web/404", 404),
        ("/web/500", 500),
        ("/gone/x", 503),
    ] {
        assert_eq!(get(&gateway, path).await.status(), status, "{path}");
    }
    let at = gateway.at;
    let waiting = tokio::spawn(async move {
        let mut conn = Conn::open(at).await;
        conn.ask("GET", "/slow/x", &[("authorization", "")], b"").await
    });
    b.request(0).await;
    let in_flight = format!(
        "tollkeeper_service_requests_in_flight{{service=\"slow\",backend=\"{}\"}} 1",
        url(&b)
    );
    assert!(
        shown(&gateway, "tollkeeper_service_requests_in_flight")
            .await
            .contains(&in_flight)
    );
    gate.open();
    assert_eq!(waiting.await.unwrap().status(), 200);
    let series = |service: &str, backend: &str, status: &str, n: u64| {
        format!(
            "tollkeeper_service_requests_total{{service=\"{service}\",backend=\"{backend}\",status=\"{status}\"}} {n}"
        )
    };
    let mut wanted = vec![
        series("gone", &gone, "none", 1),
        series("slow", &url(&b), "2xx", 1),
        series("web", &url(&a), "2xx", 2),
        series("web", &url(&a), "3xx", 1),
        series("web", &url(&a), "4xx", 1),
        series("web", &url(&a), "5xx", 1),
    ];
    wanted.sort();
    // The last byte is there before the request is over.
    let all = async || {
        let mut all = shown(&gateway, "tollkeeper_service_requests_total").await;
        all.sort();
        all
    };
    until("all are counted", async || all().await == wanted).await;
    let up = |service: &str, backend: &str, n: u8| {
        format!("tollkeeper_service_backend_up{{service=\"{service}\",backend=\"{backend}\"}} {n}")
    };
    let mut standing = shown(&gateway, "tollkeeper_service_backend_up").await;
    standing.sort();
    let mut expected = [
        up("gone", &gone, 0),
        up("slow", &url(&b), 1),
        up("web", &url(&a), 1),
    ];
    expected.sort();
    assert_eq!(standing, expected);

    // A new config goes on counting.
    gateway.rewrite(&config("other").config());
    gateway.says("event=config_applied").await;
    assert_eq!(all().await, wanted);
}

#[tokio::test]
async fn the_idlest_is_taken() {
    let gate = Gate::new();
    let held = gate.clone();
    let busy = Upstream::start(move |_| Script::nothing().wait(&held).close()).await;
    let free = named("free").await;
    let service = json!({"backends": [url(&busy), free.url()], "strategy": "least_connections"});
    let gateway = setup(service, json!({})).start().await;
    let mut first = Conn::open(gateway.at).await;
    // Among equals it is the first one's turn.
    first
        .send(&request("GET", "/web/hold", &[("authorization", "")], b""))
        .await;
    busy.request(0).await;
    assert_eq!(counts(&gateway, "/web/x", 20).await["free"], 20);
    gate.open();
}

#[tokio::test]
async fn a_path_is_what_the_service_calls_it() {
    let a = named("a").await;
    let lane =
        json!({"strip_prefix": ["/web/v2", "/web"], "add_prefix": "/app", "paths": ["/web/*", "/plain/*"]});
    let gateway = setup(json!({"backends": format!("{}/base", a.url())}), lane)
        .start()
        .await;
    for (path, target) in [
        ("/web/x?a=b%20c", "/base/app/x?a=b%20c"),
        ("/web", "/base/app"),
        ("/web/", "/base/app/"),
        ("/web/v2/x", "/base/app/x"),
        ("/web/v2x", "/base/app/v2x"),
        ("/plain/x", "/base/app/plain/x"),
    ] {
        assert_eq!(get(&gateway, path).await.status(), 200, "{path}");
        assert_eq!(a.upstream.last().target, target, "{path}");
    }
    for path in ["/web/../key", "/web/%2e%2e/key", "/web//x", "/web/a%2fb"] {
        assert_eq!(get(&gateway, path).await.status(), 400, "{path}");
    }
}

const SPOOFED: [(&str, &str); 8] = [
    ("authorization", "Bearer of-the-app"),
    ("x-forwarded-for", "6.6.6.6"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "evil.test"),
    ("x-real-ip", "6.6.6.6"),
    ("forwarded", "for=6.6.6.6"),
    ("x_forwarded_for", "6.6.6.6"),
    ("connection", "x-listed"),
];

#[tokio::test]
async fn everything_travels_but_what_a_stranger_says_of_the_way() {
    let a = named("a").await;
    let service = json!({
        "backends": [a.url()],
        "headers": {
            "request": {"set": {"X-Own": "1"}, "remove": ["x-secret"]},
            "response": {"set": {"Strict-Transport-Security": "max-age=1"}, "remove": ["content-type"]},
        },
    });
    let gateway = setup(service.clone(), json!({})).start().await;
    let more = [
        ("cookie", "a=b"),
        ("x-secret", "s"),
        ("x-listed", "1"),
        ("x-own", "client's"),
    ];
    let sent = [&SPOOFED[..], &more].concat();
    let answer = ask(&gateway, "GET", "/web/x", &sent, "").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.head.header("strict-transport-security"), Some("max-age=1"));
    assert_eq!(answer.head.header("content-type"), None);
    assert!(answer.head.header("x-request-id").is_some());
    let seen = a.upstream.last();
    for (name, want) in [
        ("authorization", Some("Bearer of-the-app")),
        ("cookie", Some("a=b")),
        ("x-own", Some("1")),
        ("x-secret", None),
        ("x-listed", None),
        ("host", Some("gateway.test")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-real-ip", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("gateway.test")),
        ("x-forwarded-port", Some("80")),
        ("forwarded", Some("for=127.0.0.1;host=gateway.test;proto=http")),
        ("x_forwarded_for", None),
    ] {
        assert_eq!(seen.header(name), want, "{name}");
    }

    let dropping = [("connection", "x-forwarded-for")];
    let answer = ask(&gateway, "GET", "/web/x", &dropping, "").await;
    assert_eq!(answer.status(), 400, "{}", answer.text());
    assert_eq!(a.upstream.count(), 1);

    let behind = setup(service, json!({})).setting("trusted_proxies", json!(["127.0.0.1"]));
    let gateway = behind.start().await;
    ask(&gateway, "GET", "/web/x", &SPOOFED[..6], "").await;
    let seen = a.upstream.last();
    for (name, want) in [
        ("x-forwarded-for", "6.6.6.6, 127.0.0.1"),
        ("x-real-ip", "6.6.6.6"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.test"),
        (
            "forwarded",
            "for=6.6.6.6, for=127.0.0.1;host=gateway.test;proto=http",
        ),
    ] {
        assert_eq!(seen.header(name), Some(want), "{name}");
    }
}

#[tokio::test]
async fn a_key_at_the_door_stays_there() {
    let a = named("a").await;
    let service = json!({"backends": [a.url()], "pass_host": false});
    let gateway = setup(service, json!({"auth": "required"})).start().await;
    assert_eq!(get(&gateway, "/web/x").await.status(), 401);
    assert_eq!(a.upstream.count(), 0);
    let answer = ask(
        &gateway,
        "GET",
        "/web/x",
        &[("x-mine", "1"), ("cookie", "a=b")],
        "",
    )
    .await;
    assert_eq!(answer.status(), 200);
    let seen = a.upstream.last();
    assert_eq!(
        (seen.header("authorization"), seen.header("cookie")),
        (None, None)
    );
    assert_eq!(seen.header("x-mine"), Some("1"));
    assert_eq!(
        seen.header("host"),
        Some(&*format!("127.0.0.1:{}", a.upstream.port))
    );
}

#[tokio::test]
async fn a_place_is_not_named() {
    let upstream = Upstream::start(|seen| {
        let port = seen.header("x-port").unwrap();
        let place = format!("http://127.0.0.1:{port}/base/jobs/1");
        Script::answer(302, &[("location", &place), ("server", "theirs")], "")
    })
    .await;
    let port = upstream.port.to_string();
    let service = json!({
        "backends": [format!("{}/base", url(&upstream))],
        "headers": {"request": {"set": {"x-port": port}}},
    });
    let gateway = setup(service, json!({"strip_prefix": "/web"})).start().await;
    let answer = get(&gateway, "/web/jobs").await;
    assert_eq!(answer.head.header("location"), Some("/web/jobs/1"));
    assert_eq!(
        answer.head.header("server"),
        Some("theirs"),
        "what is the application's stays"
    );
}

#[tokio::test]
async fn a_body_that_is_too_large() {
    let a = named("a").await;
    let service = json!({"backends": [a.url()], "request_body_bytes": 1000});
    let gateway = setup(service, json!({})).start().await;
    let none = [("authorization", "")];
    let fits = ask(&gateway, "POST", "/web/x", &none, noise(1000)).await;
    assert_eq!(fits.status(), 200);
    let answer = ask(&gateway, "POST", "/web/x", &none, noise(1001)).await;
    assert_eq!(answer.status(), 413, "{}", answer.text());
    assert!(answer.error().contains("1000 bytes"));
    assert_eq!(a.upstream.count(), 1);
    let mut chunked = b"POST /web/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..3 {
        chunked.extend_from_slice(b"1f4\r\n");
        chunked.extend_from_slice(&noise(500));
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let mut conn = Conn::open(gateway.at).await;
    conn.send(&chunked).await;
    let answer = conn.answer().await;
    assert_eq!(answer.status(), 413, "{}", answer.text());
}

#[tokio::test]
async fn what_takes_too_long() {
    let gate = Gate::new();
    let held = gate.clone();
    let slow = Upstream::start(move |seen| match &*seen.target {
        "/web/never" => Script::nothing().hang(),
        _ => Script::sse(&["one"]).wait(&held).events(&["two"]).end(),
    })
    .await;
    let service = |timeouts: Value| json!({"backends": [url(&slow)], "timeouts": timeouts});
    let gateway = setup(service(json!({"first_byte": "200ms"})), json!({}))
        .start()
        .await;
    let answer = get(&gateway, "/web/never").await;
    assert_eq!(answer.status(), 504, "{}", answer.text());
    assert!(!answer.error().contains("127.0.0.1"));
    let gateway = setup(service(json!({"total": "300ms"})), json!({})).start().await;
    assert_eq!(get(&gateway, "/web/never").await.status(), 504);
    // On a busy machine the time may be over before the answer has begun.
    until("an answer is cut in the middle", async || {
        let mut conn = Conn::open(gateway.at).await;
        conn.send(&request("GET", "/web/stream", &[("authorization", "")], b""))
            .await;
        if conn.head().await.status == 504 {
            return false;
        }
        let (body, whole) = conn.reader.rest().await;
        assert!(!whole, "{body:?}");
        &body[..] == b"data: one\n\n"
    })
    .await;
}

#[tokio::test]
async fn methods_are_part_of_a_rule() {
    let (a, b) = (named("a").await, named("b").await);
    let lane = |name: &str, methods: Value| json!({"name": name, "paths": ["/web/*"], "driver": "stream", "service": name, "auth": "open", "methods": methods});
    let gateway = Setup::new()
        .setting(
            "services",
            json!({"a": {"backends": a.url()}, "b": {"backends": b.url()}}),
        )
        .setting(
            "lanes",
            json!([lane("a", json!(["GET"])), lane("b", json!(["POST", "PUT"]))]),
        )
        .start()
        .await;
    let none = [("authorization", "")];
    for (method, want) in [("GET", "a"), ("POST", "b"), ("PUT", "b")] {
        assert_eq!(ask(&gateway, method, "/web/x", &none, "").await.text(), want);
    }
    let answer = ask(&gateway, "DELETE", "/web/x", &none, "").await;
    assert_eq!(answer.status(), 405);
    assert!(answer.head.header("allow").is_some());
}

#[tokio::test]
async fn a_websocket_passes_in_both_directions() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| {
        Script::nothing()
            .wait(&held)
            .raw("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: x\r\n\r\n")
            .echo(5_000)
            .close()
    })
    .await;
    // The limit is for bodies; a WebSocket has none.
    let service = json!({"backends": [url(&upstream)], "request_body_bytes": 100});
    let gateway = setup(service, json!({})).start().await;
    let mut conn = Conn::open(gateway.at).await;
    conn.send(
        b"GET /web/socket HTTP/1.1\r\nhost: chat.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
          sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\norigin: https://chat.test\r\n\r\n",
    )
    .await;
    let seen = upstream.request(0).await;
    // The gateway knows by then that there is no body to wait for.
    assert_eq!(ask(&gateway, "GET", "/health", &[], "").await.status(), 200);
    gate.open();
    assert_eq!(conn.head().await.status, 101);
    assert_eq!(seen.header("origin"), Some("https://chat.test"));
    let sent = noise(5_000);
    conn.send(&sent).await;
    let mut got = Vec::new();
    while got.len() < sent.len() {
        got.extend_from_slice(&conn.reader.raw().await);
    }
    assert!(got == sent, "what comes back is what was sent");
    assert!(within("the socket ends", conn.is_closed()).await);
}

/// A server of HTTP/2 without TLS that ends each answer with trailers, as gRPC does.
async fn grpc() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                let te = request.headers().get("te").is_some_and(|te| te == "trailers");
                let place = request.uri().to_string();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", if te { "0" } else { "13" }.parse().unwrap());
                trailers.insert("x-place", place.parse().unwrap());
                let frames = [Frame::data(body), Frame::trailers(trailers)];
                let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
                let head = hyper::Response::builder().header("content-type", "application/grpc");
                Ok::<_, Infallible>(head.body(body).unwrap())
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    port
}

#[tokio::test]
async fn grpc_keeps_its_trailers() {
    let port = grpc().await;
    let service = json!({"backends": [format!("h2c://127.0.0.1:{port}")]});
    let gateway = setup(service, json!({})).start().await;
    let mut h2 = crate::kit::client::H2::open(gateway.at).await;
    let headers = [
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("authorization", ""),
    ];
    let answer = h2
        .send("POST", "/web/pkg.Service/Call", &headers, noise(3_000))
        .await;
    assert_eq!(answer.status(), 200);
    let collected = within("the answer ends", answer.into_body().collect())
        .await
        .unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers["x-place"], "http://gateway.test/web/pkg.Service/Call");
    assert!(collected.to_bytes() == noise(3_000));
}

/// The gateway's own lanes on hosts of their own, and `chat.test` for an application. Readiness is asked for
/// at `x` by these tests.
async fn with_hosts(a: &Named, more: Value) -> Gateway {
    let mut hosts = json!({"api": ["llm.test"], "admin": ["ui.test"], "health": ["x", "llm.test"]});
    for (field, value) in more.as_object().unwrap() {
        hosts[field] = value.clone();
    }
    let lane = json!({"hosts": ["chat.test", "*.apps.test"], "paths": ["/*"]});
    setup(json!({"backends": [a.url()]}), lane)
        .setting("hosts", hosts)
        .general(
            "pass_through_endpoints",
            json!([{"path": "/tts", "target": a.url(), "include_subpath": true}]),
        )
        .start()
        .await
}

#[tokio::test]
async fn each_host_has_its_own() {
    let a = named("a").await;
    let gateway = with_hosts(&a, json!({})).await;
    for (host, path, want) in [
        // An application has its host whole.
        ("chat.test", "/health", 200),
        ("chat.test:8080", "/key/info", 200),
        ("CHAT.test.", "/", 200),
        ("deep.er.apps.test", "/v1/models", 200),
        ("llm.test", "/v1/models", 401),
        ("llm.test", "/health/liveliness", 200),
        ("llm.test", "/tts/x", 200),
        ("llm.test", "/key/info", 404),
        ("llm.test", "/", 200),
        ("ui.test", "/key/info", 401),
        ("ui.test", "/", 200),
        ("ui.test", "/v1/models", 404),
        ("ui.test", "/health", 404),
        ("ui.test", "/tts/x", 404),
        ("apps.test", "/", 404),
        ("nobody.test", "/", 404),
        ("nobody.test", "/v1/models", 404),
        ("nobody.test", "/metrics", 404),
        ("10.1.2.3", "/health", 404),
        // This machine, asking for itself.
        ("localhost:4000", "/health", 200),
        ("127.0.0.1", "/v1/models", 401),
        ("[::1]:4000", "/key/info", 401),
    ] {
        let answer = at_host(&gateway, host, path).await;
        assert_eq!(answer.status(), want, "{host}{path}: {}", answer.text());
        if want == 404 && host != "llm.test" {
            let told = answer.error();
            assert!(told.starts_with("There is nothing here."), "{host}{path}: {told}");
        }
    }
    assert_eq!(at_host(&gateway, "chat.test", "/key/info").await.text(), "a");
    // A proxy on this machine does not ask for itself.
    let mut conn = Conn::open(gateway.at).await;
    conn.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-forwarded-for: 8.8.8.8\r\n\r\n")
        .await;
    assert_eq!(conn.answer().await.status(), 404);
}

#[tokio::test]
async fn an_unknown_host_may_be_served() {
    let a = named("a").await;
    let lane = json!({"hosts": ["chat.test"], "paths": ["/*"]});
    let open = setup(json!({"backends": [a.url()]}), lane.clone()).start().await;
    assert_eq!(at_host(&open, "nobody.test", "/health").await.status(), 200);
    assert_eq!(at_host(&open, "chat.test", "/health").await.text(), "a");
    let asked = setup(json!({"backends": [a.url()]}), lane)
        .setting("unknown_hosts", json!("serve"))
        .setting("hosts", json!({"api": ["llm.test"]}))
        .start()
        .await;
    assert_eq!(at_host(&asked, "nobody.test", "/health").await.status(), 200);
    assert_eq!(at_host(&asked, "nobody.test", "/v1/models").await.status(), 404);
}

#[tokio::test]
async fn a_backend_over_tls_has_to_show_who_it_is() {
    let server = upstream_tls::serve(&["localhost"], &[b"h2", b"http/1.1"]).await;
    let service = |more: Value| {
        let mut service = json!({"backends": [format!("https://localhost:{}", server.port)]});
        for (field, value) in more.as_object().unwrap() {
            service[field] = value.clone();
        }
        setup(service, json!({})).start()
    };
    let ca = json!({"ca": server.authority.path().to_str().unwrap()});
    for (more, status) in [(ca, 200), (json!({}), 503), (json!({"verify": false}), 200)] {
        let gateway = service(more.clone()).await;
        let answer = get(&gateway, "/web/x").await;
        assert_eq!(answer.status(), status, "{more}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_connection_for_another_host_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["llm.test".into(), "nobody.test".into()]).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    };
    let cert = file("cert.pem", made.cert.pem());
    let key = file("key.pem", made.signing_key.serialize_pem());
    let at = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let _gateway = Setup::new()
        .setting("hosts", json!({"api": ["llm.test"], "health": ["x"]}))
        .setting("tls", json!({"certificates": [{"cert": cert, "key": key}]}))
        .setting(
            "listeners",
            json!([{"address": "127.0.0.1:4000"}, {"address": at.to_string(), "tls": true}]),
        )
        .start()
        .await;
    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = tokio_rustls::rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let status = async |name: &'static str, host: &str| {
        let stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let mut stream = connector.connect(name.try_into().unwrap(), stream).await.unwrap();
        let text = format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    assert_eq!(status("llm.test", "llm.test").await, "401");
    assert_eq!(status("llm.test", "other.test").await, "421");
    assert_eq!(status("nobody.test", "nobody.test").await, "404");
}

/// Runs the binary and gives its exit code, stdout and stderr.
fn run(dir: &std::path::Path, args: &[&str]) -> (i32, String, String) {
    let mut command = std::process::Command::new(BINARY);
    command.args(args).current_dir(dir).env_clear().env("HOME", dir);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn the_table_is_shown_without_starting() {
    let dir = tempfile::tempdir().unwrap();
    let service = json!({"backends": ["http://a:1", {"url": "h2c://b:2/base", "weight": 3}]});
    let config = setup(
        service,
        json!({"hosts": ["chat.test"], "paths": ["/*"], "methods": ["GET"], "priority": 7}),
    )
    .setting("hosts", json!({"api": ["llm.test"]}));
    std::fs::write(dir.path().join("c.yaml"), config.config()).unwrap();
    let (code, out, told) = run(dir.path(), &["routes", "-c", "c.yaml", "--json"]);
    assert_eq!(code, 0, "{told}");
    let rows: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert_eq!(rows[0]["lane"], "web");
    assert_eq!(
        rows[0]["backends"][1],
        json!({"url": "h2c://b:2/base", "weight": 3})
    );
    assert_eq!(
        (&rows[0]["priority"], &rows[0]["auth"]),
        (&json!(7), &json!("open"))
    );
    let (_, out, _) = run(dir.path(), &["routes", "-c", "c.yaml", "--host", "LLM.test"]);
    assert!(out.contains("openai") && !out.contains("chat.test"), "{out}");
    let (_, out, _) = run(dir.path(), &["routes", "-c", "c.yaml"]);
    assert!(out.contains("web → http://a:1, h2c://b:2/base ×3"), "{out}");
    let (code, out, told) = run(dir.path(), &["routes", "-c", "c.yaml", "--host", "nobody.test"]);
    assert!(
        code == 0 && out.is_empty() && told.contains("Nobody here knows"),
        "{out}{told}"
    );
}

#[test]
fn traefiks_labels_become_a_config_that_check_takes() {
    let dir = tempfile::tempdir().unwrap();
    let seed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/traefik/seed.compose.yaml");
    let (code, _, told) = run(dir.path(), &["import", "traefik", seed, "--write", "edge.yaml"]);
    assert_eq!(code, 0, "{told}");
    assert!(
        told.contains("edge.yaml is written") && told.contains("not quite the same"),
        "{told}"
    );
    let (code, out, told) = run(dir.path(), &["check", "-c", "edge.yaml", "--strict"]);
    assert_eq!(code, 0, "{out}{told}");
    let (code, out, _) = run(
        dir.path(),
        &["routes", "-c", "edge.yaml", "--host", "litellm.haiven.local"],
    );
    assert!(code == 0 && out.contains("/key/*"), "{out}");
    let (code, _, told) = run(dir.path(), &["import", "traefik", seed, "--write", "edge.yaml"]);
    assert!(
        code == 1 && told.contains("exists"),
        "nothing is overwritten: {told}"
    );
    let (code, _, told) = run(dir.path(), &["import", "traefik", "missing.yaml"]);
    assert!(code == 78 && told.contains("missing.yaml"), "{told}");
}
