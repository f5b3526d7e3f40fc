//! Clients that show what is on the wire: raw HTTP/1.1, and HTTP/2 with prior knowledge.

use super::gateway::{Gateway, MASTER};
use super::{LONG, within};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// The head of an answer.
#[derive(Debug, Clone)]
pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// Our id of the call.
    pub fn id(&self) -> &str {
        self.header("x-litellm-call-id")
            .expect("every answer has x-litellm-call-id")
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding") == Some("chunked")
    }
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub head: Head,
    pub body: Bytes,
    /// The body ended as its framing says; false = the connection broke off before.
    pub whole: bool,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }

    /// The message of an OpenAI-shaped error, after looking at its shape.
    pub fn error(&self) -> String {
        let json = self.json();
        let error = &json["error"];
        assert!(
            error["message"].is_string() && error["type"].is_string() && error["code"].is_string(),
            "an error has message, type and code: {json}"
        );
        assert!(error.as_object().unwrap().contains_key("param"), "{json}");
        error["message"].as_str().unwrap().to_string()
    }
}

/// The bytes of a request. Host and content-length are added, and the master key unless the headers
/// say who calls (an empty `authorization` = nobody).
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut out = head(method, path, headers);
    if !body.is_empty() || method == "POST" {
        out.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    out
}

/// The same without a word on the body and without the last empty line.
pub fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = format!("{method} {path} HTTP/1.1\r\nhost: gateway.test\r\n");
    let says_who = |n: &str| ["authorization", "x-api-key", "api-key", "x-litellm-api-key"].contains(&n);
    if !headers.iter().any(|(n, _)| says_who(n)) {
        out.push_str(&format!("authorization: Bearer {MASTER}\r\n"));
    }
    for (name, value) in headers.iter().filter(|(n, v)| !(says_who(n) && v.is_empty())) {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    if method == "POST" && !headers.iter().any(|(n, _)| *n == "content-type") {
        out.push_str("content-type: application/json\r\n");
    }
    out.into_bytes()
}

/// One HTTP/1.1 connection.
pub struct Conn {
    pub reader: Reader,
    pub writer: OwnedWriteHalf,
}

/// Its reading side.
pub struct Reader {
    stream: OwnedReadHalf,
    buffer: BytesMut,
}

impl Conn {
    pub async fn open(at: SocketAddr) -> Conn {
        let stream = within("the gateway takes a connection", TcpStream::connect(at))
            .await
            .unwrap();
        stream.set_nodelay(true).unwrap();
        let (reader, writer) = stream.into_split();
        Conn {
            reader: Reader {
                stream: reader,
                buffer: BytesMut::new(),
            },
            writer,
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        within("the gateway reads", self.writer.write_all(bytes))
            .await
            .unwrap();
    }

    pub async fn head(&mut self) -> Head {
        self.reader.head().await
    }

    pub async fn answer(&mut self) -> Answer {
        self.reader.answer(false).await
    }

    /// Asks and reads the answer.
    pub async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.send(&request(method, path, headers, body)).await;
        self.reader.answer(method == "HEAD").await
    }

    /// Writes and reads at once, as clients with large bodies do, so that an early answer is seen.
    pub async fn ask_both_ways(self, bytes: Vec<u8>) -> Answer {
        let Conn {
            mut reader,
            mut writer,
        } = self;
        let writing = tokio::spawn(async move {
            let _ = writer.write_all(&bytes).await;
            writer
        });
        let answer = reader.answer(false).await;
        writing.abort();
        answer
    }

    /// Whether the other side has closed the connection, and sent nothing more before.
    pub async fn is_closed(&mut self) -> bool {
        self.reader.buffer.is_empty() && !within("the connection ends", self.reader.more()).await
    }
}

impl Reader {
    /// Reads more into the buffer; false = nothing more comes.
    async fn more(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(n) if n > 0)
    }

    /// Waits until something is there to be read; false = the connection has ended.
    pub async fn has_more(&mut self) -> bool {
        !self.buffer.is_empty() || within("something comes", self.more()).await
    }

    pub async fn head(&mut self) -> Head {
        within("the head of an answer comes", async {
            loop {
                if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                    let text = String::from_utf8(self.buffer[..end].to_vec()).unwrap();
                    self.buffer.advance(end + 4);
                    let mut lines = text.split("\r\n");
                    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
                    let headers = lines
                        .map(|l| l.split_once(':').unwrap())
                        .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_string()))
                        .collect();
                    return Head { status, headers };
                }
                assert!(
                    self.more().await,
                    "the connection ended before the head of an answer: {:?}",
                    String::from_utf8_lossy(&self.buffer)
                );
            }
        })
        .await
    }

    /// The next piece of a chunked body: `Ok(None)` = its end, `Err` = it broke off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ()> {
        within("a chunk comes", async {
            loop {
                if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n") {
                    let size = std::str::from_utf8(&self.buffer[..end]).unwrap();
                    let size = usize::from_str_radix(size.split(';').next().unwrap().trim(), 16)
                        .unwrap_or_else(|_| panic!("{size:?} is no size of a chunk"));
                    if self.buffer.len() >= end + 2 + size + 2 {
                        self.buffer.advance(end + 2);
                        let data = self.buffer.split_to(size).freeze();
                        assert_eq!(&self.buffer[..2], b"\r\n", "a chunk ends with a line's end");
                        self.buffer.advance(2);
                        return Ok(Some(data).filter(|d| !d.is_empty()));
                    }
                }
                if !self.more().await {
                    return Err(());
                }
            }
        })
        .await
    }

    /// What is left of a chunked body, and whether it ended well.
    pub async fn rest(&mut self) -> (Bytes, bool) {
        let mut out = BytesMut::new();
        loop {
            match self.chunk().await {
                Ok(Some(data)) => out.extend_from_slice(&data),
                Ok(None) => return (out.freeze(), true),
                Err(()) => return (out.freeze(), false),
            }
        }
    }

    pub async fn answer(&mut self, head_only: bool) -> Answer {
        let mut head = self.head().await;
        while head.status == 100 {
            head = self.head().await;
        }
        let (body, whole) = if head_only || matches!(head.status, 204 | 304) {
            (Bytes::new(), true)
        } else if head.is_chunked() {
            self.rest().await
        } else {
            let length: Option<usize> = head.header("content-length").map(|l| l.parse().unwrap());
            within("the body of an answer comes", async {
                while self.buffer.len() < length.unwrap_or(usize::MAX) && self.more().await {}
            })
            .await;
            let take = self.buffer.len().min(length.unwrap_or(usize::MAX));
            (
                self.buffer.split_to(take).freeze(),
                length.is_none_or(|l| l == take),
            )
        };
        Answer { head, body, whole }
    }

    /// Whatever comes next; `None` = the connection has ended.
    pub async fn piece(&mut self) -> Option<Bytes> {
        if self.buffer.is_empty() && !self.more().await {
            return None;
        }
        Some(self.buffer.split().freeze())
    }

    /// Whatever comes next, as it comes.
    pub async fn raw(&mut self) -> Bytes {
        if self.buffer.is_empty() {
            assert!(within("bytes come", self.more()).await, "the connection ended");
        }
        self.buffer.split().freeze()
    }
}

/// One request on a connection of its own.
pub async fn ask(
    gateway: &Gateway,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> Answer {
    Conn::open(gateway.at)
        .await
        .ask(method, path, headers, body.as_ref())
        .await
}

/// A model call with the master key.
pub async fn chat(gateway: &Gateway, body: &Value) -> Answer {
    ask(gateway, "POST", "/v1/chat/completions", &[], body.to_string()).await
}

/// The status of a path, if anybody is there.
pub async fn probe(at: SocketAddr, path: &str) -> Option<u16> {
    let asked = async {
        let mut stream = TcpStream::connect(at).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.ok()?;
        std::str::from_utf8(text.get(9..12)?).ok()?.parse().ok()
    };
    tokio::time::timeout(LONG.min(Duration::from_secs(10)), asked)
        .await
        .ok()
        .flatten()
}

/// An HTTP/2 connection with prior knowledge.
pub struct H2 {
    sender: hyper::client::conn::http2::SendRequest<BoxBody<Bytes, std::io::Error>>,
    socket: std::net::TcpStream,
}

impl H2 {
    pub async fn open(at: SocketAddr) -> H2 {
        let stream = TcpStream::connect(at).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let stream = stream.into_std().unwrap();
        let socket = stream.try_clone().unwrap();
        let stream = TcpStream::from_std(stream).unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        H2 { sender, socket }
    }

    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<Incoming> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://gateway.test{path}"));
        if !headers.iter().any(|(n, _)| *n == "authorization") {
            request = request.header("authorization", format!("Bearer {MASTER}"));
        }
        for (name, value) in headers.iter().filter(|(_, v)| !v.is_empty()) {
            request = request.header(*name, *value);
        }
        let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
        within(
            "an answer comes over HTTP/2",
            self.sender.send_request(request.body(body).unwrap()),
        )
        .await
        .unwrap_or_else(|e| panic!("{method} {path} over HTTP/2 gets an answer, not {e:?}"))
    }

    pub async fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let (parts, body) = self.send(method, path, headers, body).await.into_parts();
        let headers = parts
            .headers
            .iter()
            .map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_string()))
            .collect();
        let head = Head {
            status: parts.status.as_u16(),
            headers,
        };
        match within("the body comes over HTTP/2", body.collect()).await {
            Ok(body) => Answer {
                head,
                body: body.to_bytes(),
                whole: true,
            },
            Err(_) => Answer {
                head,
                body: Bytes::new(),
                whole: false,
            },
        }
    }

    /// The status of the answer, if there is one.
    pub async fn try_ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://gateway.test{path}"))
            .header("authorization", format!("Bearer {MASTER}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed();
        let sent = self.sender.send_request(request.body(body).unwrap());
        within("the request ends", sent)
            .await
            .ok()
            .map(|r| r.status().as_u16())
    }

    /// As a client that is gone.
    pub fn drop_connection(self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
    }
}
