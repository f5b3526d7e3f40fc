//! The model server of the benchmarks: answers every call at once, from bytes made beforehand, so that
//! what is measured is the gateway in front of it.
//!
//! `mock_upstream LISTEN [chunks per burst] [chunks per slow stream] [milliseconds between those]`
//!
//! A body with `"stream":true` gets server-sent events: all in one write, or, for the model `slow`, one
//! by one with a pause after each. Any other request gets a chat answer of about 950 bytes.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request larger than this ends its connection.
const MAX_REQUEST: usize = 64 << 20;

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
     cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";

const USAGE: &str = r#""usage":{"prompt_tokens":180,"completion_tokens":50,"total_tokens":230}"#;

/// All answers, ready to be written.
struct Answers {
    whole: Bytes,
    burst: Bytes,
    burst_with_usage: Bytes,
    one: Bytes,
    usage: Bytes,
    done: Bytes,
    slow_chunks: u32,
    pause: Duration,
}

impl Answers {
    fn new(chunks: u32, slow_chunks: u32, pause: Duration) -> Self {
        let head = r#""id":"chatcmpl-bench","created":1760000000,"model":"mock""#;
        // Long enough that head and text make 950 bytes of body.
        let text = "All work and no play makes a gateway quick. ".repeat(16);
        let mut body = format!(
            r#"{{"object":"chat.completion",{head},"choices":[{{"index":0,"message":{{"role":"assistant","content":"{}"}},"finish_reason":"stop"}}],{USAGE}}}"#,
            text.trim_end()
        );
        while body.len() < 950 {
            body.push(' ');
        }
        let whole = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let one = event(&format!(
            r#"{{"object":"chat.completion.chunk",{head},"choices":[{{"index":0,"delta":{{"content":" word"}},"finish_reason":null}}]}}"#
        ));
        let usage = event(&format!(
            r#"{{"object":"chat.completion.chunk",{head},"choices":[],{USAGE}}}"#
        ));
        let done = event("[DONE]") + "0\r\n\r\n";
        let text = one.repeat(chunks as usize);
        Self {
            whole: whole.into(),
            burst: format!("{STREAM_HEAD}{text}{done}").into(),
            burst_with_usage: format!("{STREAM_HEAD}{text}{usage}{done}").into(),
            one: one.into(),
            usage: usage.into(),
            done: done.into(),
            slow_chunks,
            pause,
        }
    }
}

/// One event in a chunk of its own.
fn event(data: &str) -> String {
    let mut out = String::new();
    let event = format!("data: {data}\n\n");
    let _ = write!(out, "{:x}\r\n{event}\r\n", event.len());
    out
}

/// A request that has arrived in full: its length, and the part of it that is body.
fn request(seen: &[u8]) -> Option<(usize, &[u8])> {
    let head = memmem::find(seen, b"\r\n\r\n")? + 4;
    let mut length = 0;
    for line in seen.get(..head)?.split(|b| *b == b'\n') {
        let Some(at) = line.iter().position(|b| *b == b':') else {
            continue;
        };
        let (name, value) = line.split_at(at);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            length = std::str::from_utf8(value).ok()?.parse().ok()?;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            // Good enough for the bodies of a benchmark, which hold no such line themselves.
            length = memmem::find(seen.get(head..)?, b"0\r\n\r\n")? + 5;
        }
    }
    Some((head + length, seen.get(head..head.checked_add(length)?)?))
}

async fn serve(mut stream: TcpStream, answers: Arc<Answers>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut seen = BytesMut::with_capacity(8 << 10);
    loop {
        let Some((length, body)) = request(&seen) else {
            if seen.len() > MAX_REQUEST || stream.read_buf(&mut seen).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let has = |short: &[u8], spaced: &[u8]| {
            memmem::find(body, short).is_some() || memmem::find(body, spaced).is_some()
        };
        let streamed = has(br#""stream":true"#, br#""stream": true"#);
        let usage = has(br#""include_usage":true"#, br#""include_usage": true"#);
        let slow = has(br#""model":"slow""#, br#""model": "slow""#);
        seen.advance(length);
        match (streamed, slow) {
            (false, _) => stream.write_all(&answers.whole).await?,
            (true, false) if usage => stream.write_all(&answers.burst_with_usage).await?,
            (true, false) => stream.write_all(&answers.burst).await?,
            (true, true) => {
                stream.write_all(STREAM_HEAD.as_bytes()).await?;
                for _ in 0..answers.slow_chunks {
                    stream.write_all(&answers.one).await?;
                    tokio::time::sleep(answers.pause).await;
                }
                if usage {
                    stream.write_all(&answers.usage).await?;
                }
                stream.write_all(&answers.done).await?;
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:9000".into());
    let mut number = |default: u32| args.next().map_or(Ok(default), |a| a.parse::<u32>());
    let (chunks, slow_chunks, pause) = (number(50)?, number(30)?, number(1000)?);
    let answers = Arc::new(Answers::new(
        chunks,
        slow_chunks,
        Duration::from_millis(pause.into()),
    ));
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let answers = Arc::clone(&answers);
        tokio::spawn(async move {
            // A peer that resets its connection is part of the load.
            let _ = serve(stream, answers).await;
        });
    }
}
