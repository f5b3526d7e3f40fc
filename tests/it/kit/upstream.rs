//! A scripted upstream on a raw socket, so that it can do what no decent server does.

use super::until;
use bytes::{Buf, Bytes, BytesMut};
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// What an upstream was asked, and what became of it.
pub struct Seen {
    /// The how-manieth request this upstream got, from 0.
    pub n: usize,
    /// The how-manieth request on its connection, from 0.
    pub nth: usize,
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(String, String)>,
    body: Mutex<Bytes>,
    end: Mutex<Option<End>>,
}

/// How a request ended, as the upstream saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The script ran to its end.
    Done,
    /// The other side was gone before.
    Aborted,
}

impl Seen {
    pub fn body(&self) -> Bytes {
        self.body.lock().unwrap().clone()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body()).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body()).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// Waits for the end.
    pub async fn end(&self) -> End {
        let mut end = None;
        until("the upstream's request has ended", async || {
            end = *self.end.lock().unwrap();
            end.is_some()
        })
        .await;
        end.unwrap()
    }
}

/// Holds a script until the test opens it.
#[derive(Clone)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    pub fn new() -> Gate {
        Gate(Arc::new(Semaphore::new(0)))
    }

    /// Lets one waiting script, or the next one, pass.
    pub fn open(&self) {
        self.0.add_permits(1);
    }

    async fn pass(&self) {
        self.0.acquire().await.unwrap().forget();
    }
}

/// One thing after another on the connection.
#[derive(Clone)]
pub enum Step {
    Send(Bytes),
    Wait(Gate),
    /// Until the other side goes.
    Hang,
    /// Ends the connection, all that was sent included.
    Close,
    /// Sends so many bytes back as they come.
    Echo(usize),
}

/// What to do with a request. Without [`Step::Close`] the connection stays open for the next one.
#[derive(Clone)]
pub struct Script(Vec<Step>);

impl Script {
    /// An answer with a length.
    pub fn answer(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Script {
        let body = body.as_ref();
        let mut out = start(status, headers);
        out.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        Script(vec![Step::Send([out.as_bytes(), body].concat().into())])
    }

    pub fn json(status: u16, body: &Value) -> Script {
        Script::answer(status, &[("content-type", "application/json")], body.to_string())
    }

    /// The usual good answer to a chat: 7 tokens in, 3 out.
    pub fn chat(text: &str) -> Script {
        Script::json(
            200,
            &serde_json::json!({
                "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "up",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
            }),
        )
    }

    /// An error as OpenAI words it.
    pub fn error(status: u16, message: &str) -> Script {
        let body =
            serde_json::json!({"error": {"message": message, "type": "t", "param": null, "code": null}});
        Script::json(status, &body)
    }

    /// The head of a stream, and these events, each in a chunk of its own.
    pub fn sse(events: &[&str]) -> Script {
        let mut out = start(200, &[("content-type", "text/event-stream")]);
        out.push_str("transfer-encoding: chunked\r\n\r\n");
        Script(vec![Step::Send(out.into())]).events(events)
    }

    pub fn events(mut self, events: &[&str]) -> Script {
        for event in events {
            let event = format!("data: {event}\n\n");
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            self.0.push(Step::Send(chunk.into()));
        }
        self
    }

    /// The proper end of a chunked body.
    pub fn end(self) -> Script {
        self.raw("0\r\n\r\n")
    }

    pub fn raw(mut self, bytes: impl Into<Bytes>) -> Script {
        self.0.push(Step::Send(bytes.into()));
        self
    }

    pub fn then(mut self, step: Step) -> Script {
        self.0.push(step);
        self
    }

    pub fn wait(self, gate: &Gate) -> Script {
        self.then(Step::Wait(gate.clone()))
    }

    pub fn close(self) -> Script {
        self.then(Step::Close)
    }

    pub fn hang(self) -> Script {
        self.then(Step::Hang)
    }

    pub fn echo(self, bytes: usize) -> Script {
        self.then(Step::Echo(bytes))
    }

    /// And then what the other one says.
    pub fn and(mut self, other: Script) -> Script {
        self.0.extend(other.0);
        self
    }

    /// Nothing yet.
    pub fn nothing() -> Script {
        Script(Vec::new())
    }
}

fn start(status: u16, headers: &[(&str, &str)]) -> String {
    let mut out = format!("HTTP/1.1 {status} Scripted\r\n");
    for (name, value) in headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out
}

/// A chunk of a chat's stream that says `text`.
pub fn delta(text: &str) -> String {
    serde_json::json!({
        "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}],
    })
    .to_string()
}

/// The chunk that tells what was used and nothing else.
pub fn usage(prompt: u64, completion: u64) -> String {
    serde_json::json!({
        "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    })
    .to_string()
}

type Handler = Arc<dyn Fn(&Seen) -> Script + Send + Sync>;

/// A scripted server. Lives as long as it is held.
pub struct Upstream {
    pub port: u16,
    seen: Arc<Mutex<Vec<Arc<Seen>>>>,
    connections: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Upstream {
    /// Reads each request whole and does with it what `script` says.
    pub async fn start(script: impl Fn(&Seen) -> Script + Send + Sync + 'static) -> Upstream {
        Upstream::with(usize::MAX, script).await
    }

    /// Acts once it has seen `bytes` of a body.
    pub async fn early(bytes: usize, script: impl Fn(&Seen) -> Script + Send + Sync + 'static) -> Upstream {
        Upstream::with(bytes, script).await
    }

    /// Answers every call well.
    pub async fn good() -> Upstream {
        Upstream::start(|_| Script::chat("hello")).await
    }

    async fn with(most: usize, script: impl Fn(&Seen) -> Script + Send + Sync + 'static) -> Upstream {
        let listener = runtime()
            .spawn(TcpListener::bind("127.0.0.1:0"))
            .await
            .unwrap()
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<Arc<Seen>>>> = Arc::default();
        let connections = Arc::new(AtomicUsize::new(0));
        let script: Handler = Arc::new(script);
        let (all, count) = (Arc::clone(&seen), Arc::clone(&connections));
        let task = runtime().spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                count.fetch_add(1, SeqCst);
                let connection = Connection {
                    stream,
                    buffer: BytesMut::new(),
                    most,
                    served: 0,
                };
                open.spawn(connection.serve(Arc::clone(&script), Arc::clone(&all)));
                while open.try_join_next().is_some() {}
            }
        });
        Upstream {
            port,
            seen,
            connections,
            task: task.abort_handle(),
        }
    }

    /// As an `api_base`.
    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Of all requests so far, path and query.
    pub fn targets(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|s| s.target.clone())
            .collect()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    /// Request `n`, once it is there.
    pub async fn request(&self, n: usize) -> Arc<Seen> {
        until(&format!("the upstream has got request {n}"), async || {
            self.count() > n
        })
        .await;
        Arc::clone(&self.seen.lock().unwrap()[n])
    }

    pub fn last(&self) -> Arc<Seen> {
        Arc::clone(self.seen.lock().unwrap().last().expect("the upstream was asked"))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where upstreams live: longer than the runtime of the test that made one.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    })
}

struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    most: usize,
    /// Requests before the one at hand.
    served: usize,
}

/// The other side is gone.
struct Gone;

impl Connection {
    async fn serve(mut self, script: Handler, all: Arc<Mutex<Vec<Arc<Seen>>>>) {
        while let Ok(seen) = self.head(&all).await {
            let mut body = Body::of(&seen);
            let outcome = self.act(&seen, &mut body, &script).await;
            let end = if outcome.is_ok() { End::Done } else { End::Aborted };
            *seen.end.lock().unwrap() = Some(end);
            if !matches!(outcome, Ok(true)) || !body.done {
                let _ = self.stream.shutdown().await;
                return;
            }
        }
    }

    /// True = the connection can be used again.
    async fn act(&mut self, seen: &Seen, body: &mut Body, script: &Handler) -> Result<bool, Gone> {
        self.read(seen, body, self.most).await?;
        for step in script(seen).0 {
            match step {
                Step::Send(bytes) => self.stream.write_all(&bytes).await.map_err(|_| Gone)?,
                Step::Wait(gate) => self.watch(gate.pass()).await?,
                Step::Hang => self.watch(std::future::pending()).await?,
                Step::Echo(bytes) => self.echo(bytes).await?,
                Step::Close => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Waits, and sees the other side go meanwhile.
    async fn watch(&mut self, what: impl Future<Output = ()>) -> Result<(), Gone> {
        let Connection { stream, buffer, .. } = self;
        let leaving = async { while matches!(stream.read_buf(buffer).await, Ok(n) if n > 0) {} };
        tokio::select! {
            () = what => Ok(()),
            () = leaving => Err(Gone),
        }
    }

    async fn echo(&mut self, mut left: usize) -> Result<(), Gone> {
        while left > 0 {
            if self.buffer.is_empty() {
                self.more().await?;
            }
            let piece = self.buffer.split();
            left = left.saturating_sub(piece.len());
            self.stream.write_all(&piece).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    async fn more(&mut self) -> Result<(), Gone> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(n) if n > 0 => Ok(()),
            _ => Err(Gone),
        }
    }

    async fn head(&mut self, all: &Mutex<Vec<Arc<Seen>>>) -> Result<Arc<Seen>, Gone> {
        let end = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            self.more().await?;
        };
        let text = String::from_utf8(self.buffer[..end].to_vec()).map_err(|_| Gone)?;
        self.buffer.advance(end + 4);
        let mut lines = text.split("\r\n");
        let mut first = lines.next().ok_or(Gone)?.split(' ').map(String::from);
        let mut all = all.lock().unwrap();
        let seen = Arc::new(Seen {
            n: all.len(),
            nth: self.served,
            method: first.next().ok_or(Gone)?,
            target: first.next().ok_or(Gone)?,
            headers: lines
                .filter_map(|l| l.split_once(':'))
                .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_string()))
                .collect(),
            body: Mutex::default(),
            end: Mutex::default(),
        });
        self.served += 1;
        all.push(Arc::clone(&seen));
        Ok(seen)
    }

    /// Reads the body on, up to `most` bytes of it.
    async fn read(&mut self, seen: &Seen, body: &mut Body, most: usize) -> Result<(), Gone> {
        loop {
            body.take(&mut self.buffer);
            if body.done || body.so_far.len() >= most {
                *seen.body.lock().unwrap() = body.so_far.clone().freeze();
                return Ok(());
            }
            self.more().await?;
        }
    }
}

/// A request's body on its way.
struct Body {
    so_far: BytesMut,
    /// None = chunked.
    length: Option<usize>,
    done: bool,
}

impl Body {
    fn of(seen: &Seen) -> Body {
        let chunked = seen.header("transfer-encoding").is_some_and(|t| t == "chunked");
        let length = seen.header("content-length").map_or(0, |l| l.parse().unwrap());
        Body {
            so_far: BytesMut::new(),
            length: (!chunked).then_some(length),
            done: !chunked && length == 0,
        }
    }

    fn take(&mut self, buffer: &mut BytesMut) {
        if let Some(length) = self.length {
            let n = buffer.len().min(length - self.so_far.len());
            self.so_far.extend_from_slice(&buffer.split_to(n));
            self.done = self.so_far.len() == length;
            return;
        }
        while !self.done
            && let Some(end) = memchr::memmem::find(buffer, b"\r\n")
        {
            let size = std::str::from_utf8(&buffer[..end]).unwrap_or("?");
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            if buffer.len() < end + 2 + size + 2 {
                return;
            }
            buffer.advance(end + 2);
            self.so_far.extend_from_slice(&buffer.split_to(size));
            buffer.advance(2);
            self.done = size == 0;
        }
    }
}
