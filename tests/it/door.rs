//! Who may connect, for whom a proxy may speak, and how long anybody may take.

use crate::kit::client::{Conn, H2, ask, request};
use crate::kit::gateway::{Gateway, Setup, free_port};
use crate::kit::upstream::{End, Gate, Script, Upstream, delta};
use crate::kit::{letters, until, within};
use filters::model::record::Status;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

const CHAT: &str = "/v1/chat/completions";
const ALIVE: &[u8] = b"GET /health/liveliness HTTP/1.1\r\nhost: gateway.test\r\n\r\n";

/// The value of a metric. Where connections are bounded, somebody who asks may have to wait until it is seen that
/// others have left.
async fn metric(gateway: &Gateway, name: &str) -> f64 {
    let mut text = String::new();
    until("somebody is let in to look", async || {
        let Some(mut conn) = is_let_in(gateway.at).await else {
            return false;
        };
        text = conn.ask("GET", "/metrics", &[], b"").await.text();
        true
    })
    .await;
    let line = text.lines().find(|l| l.starts_with(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn refused(gateway: &Gateway, reason: &str) -> f64 {
    metric(
        gateway,
        &format!("tollkeeper_connections_refused_total{{reason=\"{reason}\"}}"),
    )
    .await
}

/// Waits until so many were sent away for this: a connection may be seen to end before it is counted.
async fn refused_times(gateway: &Gateway, reason: &str, times: f64) {
    let mut found = 0.0;
    until(&format!("{times} are sent away: {reason}"), async || {
        found = refused(gateway, reason).await;
        found >= times
    })
    .await;
    assert_eq!(found, times, "{reason}");
}

/// Whether a connection is let in.
async fn is_let_in(at: SocketAddr) -> Option<Conn> {
    let mut conn = Conn::open(at).await;
    let _ = conn.writer.write_all(ALIVE).await;
    let mut got = Vec::new();
    while !is_whole(&got) {
        match within("the gateway answers or closes", conn.reader.piece()).await {
            Some(piece) => got.extend_from_slice(&piece),
            None => return None,
        }
    }
    assert!(got.starts_with(b"HTTP/1.1 200"), "{}", got.escape_ascii());
    Some(conn)
}

/// Whether an answer has come with all of its body.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
    body.len() >= length.map_or(0, |l| l.trim().parse().unwrap())
}

async fn is_over(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut rest = Vec::new();
    let _ = within("the connection ends", stream.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_gets_them_back() {
    let gateway = Setup::new()
        .setting("limits", json!({"connections_per_address": 5}))
        .start()
        .await;
    let begun = Instant::now();
    for round in 0..3 {
        let mut open = Vec::new();
        // The last one of before may not have been counted down yet.
        until("five are let in", async || {
            if let Some(conn) = is_let_in(gateway.at).await {
                open.push(conn);
            }
            open.len() == 5
        })
        .await;
        for _ in 0..10 {
            assert!(is_let_in(gateway.at).await.is_none(), "round {round}");
        }
        drop(open);
    }
    assert!(refused(&gateway, "address").await >= 30.0);
    until("only who asks is left", async || {
        metric(&gateway, "tollkeeper_connections").await <= 1.0
    })
    .await;
    gateway.says("connection_refused").await;
    let log = gateway.log();
    let lines = log.lines().filter(|l| l.contains("connection_refused")).count();
    // One in ten seconds.
    let most = 2 + begun.elapsed().as_secs() as usize / 10;
    assert!(
        (1..=most).contains(&lines),
        "the log is told now and then: {lines}\n{log}"
    );
}

#[tokio::test]
async fn there_is_a_bound_to_all_connections_and_proxies_have_no_other() {
    let gateway = Setup::new()
        .setting("trusted_proxies", json!(["127.0.0.1"]))
        .setting("limits", json!({"connections": 20, "connections_per_address": 3}))
        .start()
        .await;
    let mut open = Vec::new();
    until("twenty are let in", async || {
        if let Some(conn) = is_let_in(gateway.at).await {
            open.push(conn);
        }
        open.len() == 20
    })
    .await;
    assert!(is_let_in(gateway.at).await.is_none());
    open.truncate(10);
    until("somebody may come again", async || {
        is_let_in(gateway.at).await.is_some()
    })
    .await;
    assert!(refused(&gateway, "full").await >= 1.0);
    assert_eq!(refused(&gateway, "address").await, 0.0);
}

/// What a reload says of connections holds for the next one.
#[tokio::test]
async fn a_reload_changes_the_bounds() {
    let setup = |n: u64| Setup::new().setting("limits", json!({"connections_per_address": n}));
    let gateway = setup(100).start().await;
    let mut first = is_let_in(gateway.at).await.unwrap();
    let _second = is_let_in(gateway.at).await.unwrap();
    gateway.rewrite(&setup(1).config());
    until("the new bound holds", async || {
        is_let_in(gateway.at).await.is_none()
    })
    .await;
    first.send(ALIVE).await;
    assert_eq!(first.answer().await.status(), 200, "who is in stays in");
}

/// A gateway with a plain listener, and further ones.
async fn with_listeners(setup: Setup, more: Vec<Value>) -> Gateway {
    let mut listeners = vec![json!({"address": "127.0.0.1:4000"})];
    listeners.extend(more);
    setup
        .setting("tls", json!({"local": {"hosts": ["llm.test"]}}))
        .setting("listeners", json!(listeners))
        .start()
        .await
}

fn place() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

async fn shake(gateway: &Gateway, stream: TcpStream, alpn: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let authority = std::fs::read(gateway.data().join("tls/local/ca.pem")).unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&authority).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.into()];
    let name = ServerName::try_from("llm.test").unwrap();
    within(
        "a handshake ends",
        TlsConnector::from(Arc::new(config)).connect(name, stream),
    )
    .await
}

#[tokio::test]
async fn handshakes_that_fail_or_never_end_leave_nothing_behind() {
    let at = place();
    let setup = Setup::new()
        .setting("limits", json!({"connections_per_address": 4}))
        .setting("timeouts", json!({"header": "4s"}));
    let gateway = with_listeners(setup, vec![json!({"address": at.to_string(), "tls": true})]).await;
    let alone = async || {
        until("only who asks is left", async || {
            metric(&gateway, "tollkeeper_connections").await <= 1.0
        })
        .await;
    };
    // Some send nonsense, some say nothing.
    for _ in 0..14 {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        is_over(&mut stream).await;
        alone().await;
    }
    for _ in 0..2 {
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(TcpStream::connect(at).await.unwrap());
        }
        for stream in &mut silent {
            is_over(stream).await;
        }
        alone().await;
    }
    // And over TLS a head is due as well, over HTTP/2 the first words.
    let mut silent = Vec::new();
    for alpn in ["http/1.1", "h2"] {
        let stream = TcpStream::connect(at).await.unwrap();
        silent.push(shake(&gateway, stream, alpn).await.unwrap());
    }
    for stream in &mut silent {
        is_over(stream).await;
    }
    refused_times(&gateway, "handshake", 20.0).await;
    refused_times(&gateway, "slow_head", 2.0).await;
    alone().await;
    let mut good = shake(&gateway, TcpStream::connect(at).await.unwrap(), "http/1.1")
        .await
        .unwrap();
    good.write_all(ALIVE).await.unwrap();
    let mut start = [0; 15];
    within("an answer comes", good.read_exact(&mut start))
        .await
        .unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 OK");
}

/// A thousand clients that send their heads a few bytes at a time, while others call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_slow_heads_are_closed_while_calls_succeed() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .setting("limits", json!({"connections_per_address": 1200}))
        .setting("timeouts", json!({"header": "5s"}))
        .start()
        .await;
    let at = gateway.at;
    let slow = (0..1_000).map(|n| {
        tokio::spawn(async move {
            let stream = TcpStream::connect(at).await.unwrap();
            let (mut reader, mut writer) = stream.into_split();
            let dripping = async move {
                let mut tick = tokio::time::interval(Duration::from_millis(300));
                let start: &[u8] = if n % 4 == 0 {
                    b""
                } else {
                    b"GET / HTTP/1.1\r\nhost: x\r\n"
                };
                let _ = writer.write_all(start).await;
                loop {
                    tick.tick().await;
                    if n % 4 != 0 && writer.write_all(b"x: y\r\n").await.is_err() {
                        return std::future::pending::<()>().await;
                    }
                }
            };
            tokio::select! {
                () = dripping => {}
                () = is_over(&mut reader) => {}
            }
        })
    });
    let slow: Vec<_> = slow.collect();
    let mut calls = 0;
    while slow.iter().any(|s| !s.is_finished()) {
        let body = json!({"model": "small", "messages": []}).to_string();
        let answer = ask(&gateway, "POST", CHAT, &[], body).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        calls += 1;
    }
    // How many that can be is the machine's to say.
    assert!(calls >= 5, "{calls} calls meanwhile");
    for one in slow {
        one.await.unwrap();
    }
    refused_times(&gateway, "slow_head", 1_000.0).await;
}

#[tokio::test]
async fn the_second_head_is_due_as_well_and_an_idle_connection_goes() {
    let gateway = Setup::new()
        .setting("timeouts", json!({"header": "4s", "keepalive": "8s"}))
        .start()
        .await;
    // Before it is idle, so that whatever holds this test up makes its time longer.
    let begun = Instant::now();
    let mut idle = is_let_in(gateway.at).await.unwrap();
    let mut slow = is_let_in(gateway.at).await.unwrap();
    let begins = Instant::now();
    slow.send(b"GET /health HTTP/1.1\r\n").await;
    assert!(slow.is_closed().await);
    let cut = begins.elapsed();
    assert!(cut >= Duration::from_millis(3_900), "a head that stops: {cut:?}");
    assert!(idle.is_closed().await);
    let gone = begun.elapsed();
    assert!(gone >= Duration::from_millis(7_900), "{gone:?}");
    // Who was idle was not slow.
    refused_times(&gateway, "slow_head", 1.0).await;
}

#[tokio::test]
async fn a_body_has_to_come_without_pauses_and_in_time() {
    let upstream = Upstream::good().await;
    // A gateway for each of the two, so that it is clear which of them ended a call.
    let with = |timeouts: Value| {
        Setup::new()
            .model("small", &upstream)
            .setting("timeouts", timeouts)
            .start()
    };
    let gateway = with(json!({"body": "10m", "body_idle": "1s"})).await;
    let whole = request(
        "POST",
        CHAT,
        &[],
        json!({"model": "small", "messages": []}).to_string().as_bytes(),
    );
    let (first, _) = whole.split_at(whole.len() - 5);
    let mut stops = Conn::open(gateway.at).await;
    stops.send(first).await;
    let answer = stops.answer().await;
    assert_eq!(answer.status(), 408, "{}", answer.text());
    assert!(stops.is_closed().await);
    // One that never pauses and never ends.
    let gateway = with(json!({"body": "3s", "body_idle": "10m"})).await;
    let head = crate::kit::client::head("POST", CHAT, &[("content-length", "1000000")]);
    let Conn {
        mut reader,
        mut writer,
    } = Conn::open(gateway.at).await;
    let begun = Instant::now();
    writer.write_all(&[&head[..], b"\r\n"].concat()).await.unwrap();
    let dripping = async {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        while writer.write_all(b" ").await.is_ok() {
            tick.tick().await;
        }
        std::future::pending::<()>().await
    };
    let answer = tokio::select! {
        answer = reader.answer(false) => answer,
        () = dripping => unreachable!(),
    };
    assert_eq!(answer.status(), 408, "{}", answer.text());
    assert!(
        begun.elapsed() >= Duration::from_millis(2_900),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(upstream.count(), 0);
}

/// Says much, one piece after the other, for as long as somebody listens.
fn endless() -> Script {
    let text = letters(64 << 10);
    let mut script = Script::sse(&[]);
    for _ in 0..400 {
        script = script.events(&[&delta(&text)]);
    }
    script.hang()
}

/// A gateway that waits so long for a client to take something.
async fn priced(upstream: &Upstream, patience: &str) -> Gateway {
    let prices = json!({"id": "the-one", "input_cost_per_token": 0.001, "output_cost_per_token": 0.01});
    Setup::new()
        .deployment("small", &upstream.base(), prices)
        .setting("timeouts", json!({"write": patience, "body_idle": "30s"}))
        .start()
        .await
}

/// The gateway's sockets to a client, as the kernel lists them.
fn kept(at: SocketAddr, client: SocketAddr) -> Vec<String> {
    let word = |a: SocketAddr| format!("0100007F:{:04X}", a.port());
    let ends = format!(" {} {} ", word(at), word(client));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let lines = table.lines().filter(|l| l.contains(&ends));
    lines.map(str::to_string).collect()
}

#[tokio::test]
async fn who_takes_nothing_is_cut_and_billed() {
    let upstream = Upstream::start(|_| endless()).await;
    let gateway = priced(&upstream, "2s").await;
    let body = json!({"model": "small", "messages": [], "stream": true}).to_string();
    // HTTP/1: the socket fills up. HTTP/2: the window of the stream stays shut.
    let mut conn = Conn::open(gateway.at).await;
    let own = conn.writer.local_addr().unwrap();
    conn.send(&request("POST", CHAT, &[], body.as_bytes())).await;
    until("the kernel knows it", async || kept(gateway.at, own).len() == 1).await;
    let first = conn.head().await.id().to_string();
    let json = [("content-type", "application/json")];
    let mut h2 = H2::open(gateway.at).await;
    let answer = h2.send("POST", CHAT, &json, body.clone()).await;
    let second = answer.headers()["x-litellm-call-id"]
        .to_str()
        .unwrap()
        .to_string();
    for (n, id) in [(0, first), (1, second)] {
        assert_eq!(
            upstream.request(n).await.end().await,
            End::Aborted,
            "the upstream need not go on"
        );
        let row = gateway.row(&id).await;
        assert_eq!(row.status, Status::Aborted, "{row:?}");
        assert!(
            row.estimated && row.completion_tokens > 100 && row.spend_nanos > 0,
            "{row:?}"
        );
    }
    refused_times(&gateway, "slow_reader", 1.0).await;
    // What the kernel held for it goes as well: asked to go on, it would for minutes.
    until("the kernel has nothing left", async || {
        kept(gateway.at, own).is_empty()
    })
    .await;
    // Others on the connection are served on.
    let alive = h2.ask("GET", "/health/liveliness", &[], "").await;
    assert_eq!(alive.status(), 200);
    drop(answer);
}

/// Slow is not the same as still.
#[tokio::test]
async fn who_takes_little_at_a_time_gets_all() {
    let text = letters(6 << 20);
    let whole = text.len();
    let upstream = Upstream::start(move |_| Script::chat(&text)).await;
    // Longer than a machine stands still.
    let gateway = priced(&upstream, "6s").await;
    let body = json!({"model": "small", "messages": []}).to_string();
    let mut stream = TcpStream::connect(gateway.at).await.unwrap();
    stream
        .write_all(&request("POST", CHAT, &[], body.as_bytes()))
        .await
        .unwrap();
    let mut tick = tokio::time::interval(Duration::from_millis(75));
    let (mut got, mut piece) = (0, vec![0; 64 << 10]);
    let begun = Instant::now();
    while got < whole {
        tick.tick().await;
        let n = within("bytes come", stream.read(&mut piece)).await.unwrap();
        assert!(
            n > 0,
            "the answer breaks off after {got} bytes and {:?}",
            begun.elapsed()
        );
        got += n;
    }
    assert!(
        begun.elapsed() > Duration::from_secs(6),
        "it took longer than the patience"
    );
}

fn version_2(source: [u8; 4]) -> Vec<u8> {
    let mut out = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    out.extend(source);
    out.extend([127, 0, 0, 1, 0x10, 0x01, 0x01, 0xbb]);
    out
}

/// What `/metrics` answers: inside or not.
async fn inside(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), more: &str) -> Option<u16> {
    let ask = format!("GET /metrics HTTP/1.1\r\nhost: gateway.test\r\n{more}connection: close\r\n\r\n");
    let _ = stream.write_all(ask.as_bytes()).await;
    let mut got = Vec::new();
    let _ = within("the connection ends", stream.read_to_end(&mut got)).await;
    std::str::from_utf8(got.get(9..12)?).ok()?.parse().ok()
}

#[tokio::test]
async fn a_listed_proxy_speaks_for_others_by_the_proxy_protocol() {
    let (plain, tls) = (place(), place());
    let listeners = vec![
        json!({"address": plain.to_string(), "proxy_protocol": true}),
        json!({"address": tls.to_string(), "proxy_protocol": true, "tls": true}),
    ];
    let setup = Setup::new()
        .setting("trusted_proxies", json!(["127.0.0.1"]))
        .setting("internal_networks", json!(["192.0.2.0/24"]))
        .setting("limits", json!({"connections_per_address": 3}))
        .setting("timeouts", json!({"header": "5s"}));
    let gateway = with_listeners(setup, listeners).await;
    let mut slow = Vec::new();
    for start in [&b""[..], b"PROXY TCP4 192."] {
        let mut stream = TcpStream::connect(plain).await.unwrap();
        stream.write_all(start).await.unwrap();
        slow.push(stream);
    }
    let v1 = |source: &str| format!("PROXY TCP4 {source} 127.0.0.1 4097 443\r\n").into_bytes();
    let none = b"PROXY UNKNOWN\r\n".to_vec();
    for (what, header, more, status) in [
        ("inside", v1("192.0.2.7"), "", Some(200)),
        ("inside, version 2", version_2([192, 0, 2, 7]), "", Some(200)),
        ("outside", v1("198.51.100.7"), "", Some(401)),
        ("outside, version 2", version_2([198, 51, 100, 7]), "", Some(401)),
        (
            "outside, claims to be inside",
            v1("198.51.100.7"),
            "x-forwarded-for: 192.0.2.7\r\n",
            Some(401),
        ),
        (
            "inside, through a further proxy",
            v1("192.0.2.7"),
            "x-forwarded-for: 192.0.2.8\r\n",
            Some(401),
        ),
        ("the proxy itself", none, "", Some(401)),
        ("no header", Vec::new(), "", None),
        ("no address", b"PROXY TCP4 here there 1 2\r\n".to_vec(), "", None),
    ] {
        let mut stream = TcpStream::connect(plain).await.unwrap();
        stream.write_all(&header).await.unwrap();
        assert_eq!(inside(&mut stream, more).await, status, "{what}");
        let mut stream = TcpStream::connect(tls).await.unwrap();
        stream.write_all(&header).await.unwrap();
        let status_over_tls = match shake(&gateway, stream, "http/1.1").await {
            Ok(mut stream) => inside(&mut stream, more).await,
            Err(_) => None,
        };
        assert_eq!(status_over_tls, status, "{what}, over TLS");
    }
    // Nothing at all, or half a header: closed in time.
    for stream in &mut slow {
        is_over(stream).await;
    }
    until("they were told apart", async || {
        refused(&gateway, "proxy_header").await >= 5.0
    })
    .await;
    // The address that is announced is the one that counts.
    let mut open = Vec::new();
    for n in 0..4 {
        let mut conn = Conn::open(plain).await;
        conn.send(&[&v1("203.0.113.9")[..], ALIVE].concat()).await;
        let answered = conn.reader.piece().await.is_some();
        assert_eq!(answered, n < 3, "connection {n}");
        open.push(conn);
    }
    let mut other = Conn::open(plain).await;
    other.send(&[&v1("203.0.113.10")[..], ALIVE].concat()).await;
    assert_eq!(other.answer().await.status(), 200);
    // On a listener that does not expect one, a header is no request.
    let mut stream = TcpStream::connect(gateway.at).await.unwrap();
    stream.write_all(&v1("192.0.2.7")).await.unwrap();
    assert_eq!(inside(&mut stream, "").await, Some(400));
}

#[tokio::test]
async fn nobody_else_may_send_a_proxy_header() {
    let at = place();
    let setup = Setup::new().setting("trusted_proxies", json!(["10.0.0.0/8"]));
    let gateway = with_listeners(
        setup,
        vec![json!({"address": at.to_string(), "proxy_protocol": true})],
    )
    .await;
    for header in [
        b"PROXY TCP4 10.1.1.1 127.0.0.1 4097 443\r\n".to_vec(),
        version_2([10, 1, 1, 1]),
        Vec::new(),
    ] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let _ = stream.write_all(&header).await;
        assert_eq!(inside(&mut stream, "").await, None);
    }
    refused_times(&gateway, "proxy_header", 3.0).await;
}

/// A call over HTTP/2 whose body stops, and one that waits for others: the connection is not cut for them.
#[tokio::test]
async fn a_busy_connection_is_not_taken_for_a_slow_one() {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| Script::nothing().wait(&held).and(Script::chat("hello"))).await;
    let gateway = Setup::new()
        .model("small", &upstream)
        .setting(
            "timeouts",
            json!({"header": "4s", "keepalive": "4s", "write": "4s"}),
        )
        .start()
        .await;
    let body = json!({"model": "small", "messages": []}).to_string();
    let mut conn = Conn::open(gateway.at).await;
    conn.send(&request("POST", CHAT, &[], body.as_bytes())).await;
    let mut h2 = H2::open(gateway.at).await;
    let json = [("content-type", "application/json")];
    let asking = tokio::spawn(async move { h2.ask("POST", CHAT, &json, body).await.status() });
    upstream.request(1).await;
    // Longer than any of the deadlines: others come and are cut meanwhile.
    for _ in 0..2 {
        let mut slow = TcpStream::connect(gateway.at).await.unwrap();
        is_over(&mut slow).await;
    }
    gate.open();
    gate.open();
    assert_eq!(conn.answer().await.status(), 200);
    assert_eq!(asking.await.unwrap(), 200);
}
