//! What HTTP/2 lets a client do to a server that does not look: hand-written frames, over and over. The
//! connection goes, the process stays idle, and others do not notice.

use crate::kit::client::ask;
use crate::kit::gateway::{Gateway, MASTER, Setup};
use crate::kit::upstream::{Script, Upstream, delta};
use crate::kit::{letters, until, within};
use bytes::{Buf, BytesMut};
use filters::model::record::Status;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A header as it is, without compression.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![0x10];
    for text in [name, value] {
        if text.len() < 127 {
            out.push(text.len() as u8);
        } else {
            let (mut rest, mut bytes) = (text.len() - 127, vec![127]);
            while rest >= 128 {
                bytes.push((rest % 128 + 128) as u8);
                rest /= 128;
            }
            bytes.push(rest as u8);
            out.extend(bytes);
        }
        out.extend(text.as_bytes());
    }
    out
}

fn head(method: &str, path: &str) -> Vec<u8> {
    let key = format!("Bearer {MASTER}");
    [
        literal(":method", method),
        literal(":scheme", "http"),
        literal(":path", path),
        literal(":authority", "gateway.test"),
        literal("authorization", &key),
        literal("content-type", "application/json"),
    ]
    .concat()
}

/// A connection with HTTP/2 begun.
async fn begun(gateway: &Gateway, settings: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.at).await.unwrap();
    let hello = [
        PREFACE,
        &frame(SETTINGS, 0, 0, settings),
        &frame(SETTINGS, 1, 0, &[]),
    ]
    .concat();
    stream.write_all(&hello).await.unwrap();
    stream
}

/// Sends `flood(n)` for n = 0, 1, … until the connection ends or says good-bye; how many bytes that took.
async fn until_closed(stream: TcpStream, mut flood: impl FnMut(u32) -> Vec<u8> + Send + 'static) -> usize {
    let (mut reader, mut writer) = stream.into_split();
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&sent);
    let writing = tokio::spawn(async move {
        for n in 0.. {
            let bytes = flood(n);
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
            count.fetch_add(bytes.len(), std::sync::atomic::Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    let mut buffer = BytesMut::new();
    within("the connection is closed", async {
        loop {
            while buffer.len() >= 9 {
                let length =
                    usize::from(buffer[0]) << 16 | usize::from(buffer[1]) << 8 | usize::from(buffer[2]);
                if buffer.len() < 9 + length {
                    break;
                }
                let kind = buffer[3];
                buffer.advance(9 + length);
                if kind == GOAWAY {
                    return;
                }
            }
            match reader.read_buf(&mut buffer).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
        }
    })
    .await;
    writing.abort();
    sent.load(std::sync::atomic::Ordering::Relaxed)
}

/// CPU time of the gateway so far.
fn cpu(gateway: &Gateway) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", gateway.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn memory(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

type Flood = Box<dyn FnMut(u32) -> Vec<u8> + Send>;

/// The attacks: what each is called, and what it sends over and over.
fn attacks() -> Vec<(&'static str, Flood)> {
    let stream = |n: u32| 1 + 2 * n;
    vec![
        (
            "rapid reset",
            Box::new(move |n| {
                (0..50)
                    .flat_map(|k| {
                        let id = stream(n * 50 + k);
                        [
                            frame(HEADERS, END_STREAM | END_HEADERS, id, &head("GET", "/v1/models")),
                            frame(RESET, 0, id, &8u32.to_be_bytes()),
                        ]
                        .concat()
                    })
                    .collect()
            }),
        ),
        (
            "made to reset",
            Box::new(move |n| {
                let id = stream(n);
                // A window that grows by nothing is an error of the stream, which the server has to reset.
                [
                    frame(HEADERS, END_STREAM | END_HEADERS, id, &head("GET", "/v1/models")),
                    frame(WINDOW, 0, id, &0u32.to_be_bytes()),
                ]
                .concat()
            }),
        ),
        (
            "a head without an end",
            Box::new(move |n| match n {
                0 => frame(HEADERS, END_STREAM, 1, &head("GET", "/v1/models")),
                _ => frame(CONTINUATION, 0, 1, &literal("x-more", &"x".repeat(4_000))),
            }),
        ),
        (
            "a head of empty pieces",
            Box::new(move |n| match n {
                0 => frame(HEADERS, END_STREAM, 1, &head("GET", "/v1/models")),
                _ => frame(CONTINUATION, 0, 1, &[]).repeat(50),
            }),
        ),
        ("pings", Box::new(|_| frame(PING, 0, 0, &[7; 8]).repeat(50))),
        ("settings", Box::new(|_| frame(SETTINGS, 0, 0, &[]).repeat(50))),
        (
            "empty data",
            Box::new(move |n| match n {
                0 => frame(HEADERS, END_HEADERS, 1, &head("POST", "/v1/chat/completions")),
                _ => frame(DATA, 0, 1, &[]).repeat(50),
            }),
        ),
        (
            "priorities",
            Box::new(|_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]).repeat(50)),
        ),
        (
            "windows",
            Box::new(|_| frame(WINDOW, 0, 0, &1u32.to_be_bytes()).repeat(50)),
        ),
        (
            "a bomb of one header",
            Box::new(move |n| match n {
                // Into the table once, and then a byte for each time it is meant.
                0 => {
                    let mut once = literal("x-bomb", &"b".repeat(3_900));
                    once[0] = 0x40;
                    let bomb = [head("GET", "/v1/models"), once, vec![0xbe; 8_000]].concat();
                    frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb)
                }
                _ => {
                    let bomb = [head("GET", "/v1/models"), vec![0xbe; 8_000]].concat();
                    frame(HEADERS, END_STREAM | END_HEADERS, stream(n), &bomb)
                }
            }),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_end_their_connection_and_nothing_else() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    let body = json!({"model": "small", "messages": []}).to_string();
    let before = memory(&gateway);
    for (what, flood) in attacks() {
        let (cpu_before, begun_at) = (cpu(&gateway), Instant::now());
        let stream = begun(&gateway, &[]).await;
        let attack = tokio::spawn(until_closed(stream, flood));
        let mut took = Vec::new();
        while !attack.is_finished() || took.len() < 5 {
            let asked = Instant::now();
            let answer = ask(&gateway, "POST", "/v1/chat/completions", &[], &body).await;
            assert_eq!(
                answer.status(),
                200,
                "{what}: others are served: {}",
                answer.text()
            );
            took.push(asked.elapsed());
        }
        let sent = attack.await.unwrap();
        let (spent, all) = (cpu(&gateway) - cpu_before, begun_at.elapsed());
        took.sort();
        let usual = took[took.len() / 2];
        println!(
            "{what}: closed after {sent} bytes, {all:?}, {spent:?} of CPU; {} calls, half of them within {usual:?}",
            took.len()
        );
        assert!(spent < Duration::from_secs(6), "{what}: {spent:?} of CPU");
        // The machine may be busy with something else now and then, and not all the time.
        assert!(
            usual < Duration::from_secs(3),
            "{what}: another call took {usual:?}"
        );
    }
    let grown = memory(&gateway).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    until("the connections are gone", async || {
        let text = ask(&gateway, "GET", "/metrics", &[], "").await.text();
        text.lines().any(|l| l == "tollkeeper_connections 1")
    })
    .await;
}

/// A client that opens streams, and no window for what is sent to it.
#[tokio::test]
async fn a_window_that_never_opens_is_cut_and_billed() {
    let text = letters(8 << 10);
    let upstream = Upstream::start(move |_| Script::sse(&[&delta(&text), &delta(&text)]).hang()).await;
    let prices = json!({"id": "the-one", "input_cost_per_token": 0.001, "output_cost_per_token": 0.01});
    let gateway = Setup::new()
        .deployment("small", &upstream.base(), prices)
        .setting("timeouts", json!({"write": "1s", "keepalive": "5s"}))
        .start()
        .await;
    // SETTINGS_INITIAL_WINDOW_SIZE = 0.
    let mut stream = begun(&gateway, &[0, 4, 0, 0, 0, 0]).await;
    let body = json!({"model": "small", "messages": [], "stream": true}).to_string();
    for id in [1, 3, 5] {
        stream
            .write_all(&frame(
                HEADERS,
                END_HEADERS,
                id,
                &head("POST", "/v1/chat/completions"),
            ))
            .await
            .unwrap();
        stream
            .write_all(&frame(DATA, END_STREAM, id, body.as_bytes()))
            .await
            .unwrap();
    }
    for row in gateway.rows_once(3).await {
        assert_eq!(row.status, Status::Aborted, "{row:?}");
        assert!(row.completion_tokens > 0 && row.spend_nanos > 0, "{row:?}");
    }
    // And with nothing left to do the connection goes.
    let mut rest = Vec::new();
    let _ = within("the connection ends", stream.read_to_end(&mut rest)).await;
    assert!(
        rest.len() < 64 << 10,
        "no more than a window was sent: {}",
        rest.len()
    );
}
