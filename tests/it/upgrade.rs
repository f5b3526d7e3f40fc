//! A new binary, a new config and the end of the process, while clients are at work: nobody notices.

use crate::kit::client::{Conn, ask, chat, probe, request};
use crate::kit::gateway::{self, BINARY, Gateway, MASTER, Setup, free_port};
use crate::kit::upstream::{Gate, Script, Upstream, delta, usage};
use crate::kit::{LONG, process, redis, until, within};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};

const HOST: &str = "llm.example.com";
const CALL: &str = "/v1/chat/completions";

/// Ends whoever serves when the test is over: a process that took over is nobody's child here.
struct Heirs(PathBuf);

impl Drop for Heirs {
    fn drop(&mut self) {
        if let Some(pid) = pid_in(&self.0) {
            let _ = std::process::Command::new("kill")
                .args(["-s", "KILL", &pid.to_string()])
                .status();
        }
    }
}

/// Whom the data directory names as the gateway.
fn pid_in(data: &Path) -> Option<u32> {
    fs::read_to_string(data.join("tollkeeper.pid"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn pid(gateway: &Gateway) -> u32 {
    pid_in(&gateway.data()).expect("the gateway says who it is")
}

fn is_alive(pid: u32) -> bool {
    // The last field of interest stands behind the name, which may hold anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|s| !matches!(s, 'Z' | 'X'))
}

async fn gone(pid: u32) {
    until(&format!("process {pid} has left"), async || !is_alive(pid)).await;
}

/// Runs the binary against the gateway's data directory, to its end.
async fn tollkeeper(gateway: &Gateway, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(BINARY);
    command
        .args(args)
        .env_clear()
        .env("TOLLKEEPER_DATA_DIR", gateway.data())
        .kill_on_drop(true);
    within("the command ends", command.output()).await.unwrap()
}

fn said(output: &Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{}{err}", String::from_utf8_lossy(&output.stdout))
}

/// Replaces the gateway by a new process; the ids of both.
async fn upgraded(gateway: &Gateway) -> (u32, u32) {
    let output = tollkeeper(gateway, &["upgrade", "--json"]).await;
    assert!(output.status.success(), "{}", said(&output));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (old, new) = (
        told["old_pid"].as_u64().unwrap(),
        told["new_pid"].as_u64().unwrap(),
    );
    until("the new process says who it is", async || {
        pid_in(&gateway.data()).map(u64::from) == Some(new)
    })
    .await;
    (old as u32, new as u32)
}

/// A gateway with TLS, and what its clients need.
struct Served {
    /// Before the gateway, which takes its directory with it.
    _heirs: Heirs,
    gateway: Gateway,
    at: SocketAddr,
    h1: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
    _files: tempfile::TempDir,
    /// Without models.
    base: Box<dyn Fn() -> Setup>,
}

impl Served {
    async fn start(upstream: &Upstream) -> Served {
        let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let files = tempfile::Builder::new().prefix("tk-up-").tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![HOST.to_string()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let put = |name: &str, text: String| {
            let path = files.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_string()
        };
        let pair = json!({"cert": put("cert.pem", leaf.pem()), "key": put("key.pem", key.serialize_pem())});
        let base = Box::new(move || {
            Setup::new()
                .setting(
                    "listeners",
                    json!([{"address": "127.0.0.1:4000"}, {"address": at.to_string(), "tls": true}]),
                )
                .setting("tls", json!({"certificates": [pair]}))
                // What is held up here is held up by the test, which has a time limit of its own.
                .setting("rate_limit", json!({"average": 0}))
        });
        let gateway = base().model("small", upstream).start().await;
        let speaks = |alpn: &str| {
            let mut roots = RootCertStore::empty();
            roots.add(issuer.der().clone()).unwrap();
            let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
            Arc::new(config)
        };
        Served {
            _heirs: Heirs(gateway.data()),
            gateway,
            at,
            h1: speaks("http/1.1"),
            h2: speaks("h2"),
            _files: files,
            base,
        }
    }

    fn config(&self, h2: bool) -> Arc<ClientConfig> {
        Arc::clone(if h2 { &self.h2 } else { &self.h1 })
    }
}

/// One connection over TLS.
enum Client {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    async fn open(at: SocketAddr, config: Arc<ClientConfig>) -> Result<Client, String> {
        let h2 = config.alpn_protocols[0] == b"h2";
        let stream = TcpStream::connect(at)
            .await
            .map_err(|e| format!("connect: {e}"))?;
        let name = ServerName::try_from(HOST).unwrap();
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|e| format!("handshake: {e}"))?;
        let io = TokioIo::new(stream);
        Ok(if h2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                .await
                .map_err(|e| format!("h2: {e:?}"))?;
            tokio::spawn(connection);
            Client::H2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(|e| format!("h1: {e:?}"))?;
            tokio::spawn(connection);
            Client::H1(sender)
        })
    }

    /// Whether the connection takes another request: the other side has not said good-bye.
    async fn is_open(&mut self) -> bool {
        match self {
            Client::H1(sender) => sender.ready().await.is_ok(),
            Client::H2(sender) => sender.ready().await.is_ok(),
        }
    }

    async fn call(&mut self, body: &Value) -> hyper::Result<hyper::Response<Incoming>> {
        let request = Request::post(match self {
            Client::H1(_) => CALL.to_string(),
            Client::H2(_) => format!("https://{HOST}{CALL}"),
        })
        .header("host", HOST)
        .header("authorization", format!("Bearer {MASTER}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
        match self {
            Client::H1(sender) => sender.send_request(request).await,
            Client::H2(sender) => sender.send_request(request).await,
        }
    }
}

/// A line for `tests/edge`, which shows it where it runs this on a release build.
fn figure(what: &str, found: impl Display, bar: &str) {
    println!("figure | {what} | {found} | {bar}");
}

/// Clients that call again and again, each on a connection that it keeps for as long as it is let.
struct Busy {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    /// What the slowest answer took, milliseconds.
    longest: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Result<(), String>>>,
}

impl Busy {
    fn start(served: &Served, count: usize) -> Busy {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let longest = Arc::new(AtomicU64::new(0));
        let clients = (0..count)
            .map(|n| {
                let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
                let (at, config) = (served.at, served.config(n % 2 == 0));
                tokio::spawn(work(at, config, stop, answered, Arc::clone(&longest)))
            })
            .collect();
        Busy {
            stop,
            answered,
            longest,
            clients,
        }
    }

    /// Waits for so many answers more.
    async fn answers(&self, more: usize) {
        let target = self.answered.load(SeqCst) + more;
        until("clients get answers", async || {
            self.answered.load(SeqCst) >= target || self.clients.iter().any(|c| c.is_finished())
        })
        .await;
    }

    /// How many answers there were; a request that failed is a panic in here.
    async fn end(self) -> usize {
        self.stop.store(true, SeqCst);
        for client in self.clients {
            if let Err(why) = within("a client ends", client).await.unwrap() {
                panic!("a request failed: {why}");
            }
        }
        self.answered.load(SeqCst)
    }
}

async fn work(
    at: SocketAddr,
    config: Arc<ClientConfig>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    longest: Arc<AtomicU64>,
) -> Result<(), String> {
    let body = json!({"model": "small", "messages": []});
    let mut client = Client::open(at, Arc::clone(&config)).await?;
    while !stop.load(SeqCst) {
        if !client.is_open().await {
            client = Client::open(at, Arc::clone(&config)).await?;
        }
        let begun = Instant::now();
        let answer = match client.call(&body).await {
            Ok(answer) => answer,
            // Never sent: the good-bye came between the look and the call. Every client asks anew.
            Err(e) if e.is_canceled() => continue,
            Err(e) => return Err(format!("call: {e:?}")),
        };
        let status = answer.status();
        let text = answer.into_body().collect().await;
        let text = text.map_err(|e| format!("answer: {e:?}"))?.to_bytes();
        if status != 200 || !text.ends_with(b"}") {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&text)));
        }
        longest.fetch_max(begun.elapsed().as_millis() as u64, SeqCst);
        answered.fetch_add(1, SeqCst);
    }
    Ok(())
}

/// Streams that have begun; each ends when the gate lets it.
struct Streams {
    gate: Gate,
    open: Vec<JoinHandle<Result<(), String>>>,
}

impl Streams {
    /// Opens so many more, half of them over HTTP/2 and ten on a connection there, and waits until each
    /// has shown its first piece.
    async fn open(&mut self, served: &Served, count: usize) {
        let mut shared = None;
        for n in 0..count {
            let h2 = n % 2 == 0;
            let mut client = match shared.take().filter(|_| h2) {
                Some(Client::H2(sender)) => Client::H2(sender),
                _ => Client::open(served.at, served.config(h2)).await.unwrap(),
            };
            let body = json!({"model": "small", "messages": [], "stream": true});
            let answer = within("a stream begins", client.call(&body)).await.unwrap();
            assert_eq!(answer.status(), 200);
            let mut body = answer.into_body();
            let first = within("a first piece comes", body.frame())
                .await
                .unwrap()
                .unwrap();
            let mut text = first.into_data().unwrap().to_vec();
            if let Client::H2(sender) = &client
                && n % 20 != 18
            {
                shared = Some(Client::H2(sender.clone()));
            }
            self.open.push(tokio::spawn(async move {
                // A connection ends with its sender.
                let _client = client;
                let rest = body.collect().await.map_err(|e| format!("cut: {e:?}"))?;
                text.extend_from_slice(&rest.to_bytes());
                let text = String::from_utf8_lossy(&text);
                let whole =
                    ["one", "two"].iter().all(|w| text.contains(w)) && text.ends_with("data: [DONE]\n\n");
                if whole {
                    Ok(())
                } else {
                    Err(format!("not whole: {text}"))
                }
            }));
        }
    }

    /// Lets them end; one that is not whole is a panic in here.
    async fn end(self) -> usize {
        let count = self.open.len();
        for _ in 0..count {
            self.gate.open();
        }
        for stream in self.open {
            if let Err(why) = within("a stream ends", stream).await.unwrap() {
                panic!("a stream {why}");
            }
        }
        count
    }
}

/// Answers calls, and streams in two pieces with the gate in between.
async fn upstream() -> (Upstream, Streams) {
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |seen| match seen.json()["stream"].as_bool() {
        Some(true) => Script::sse(&[&delta("one")])
            .wait(&held)
            .events(&[&delta("two"), "[DONE]"])
            .end(),
        _ => Script::chat("hello"),
    })
    .await;
    let open = Vec::new();
    (upstream, Streams { gate, open })
}

/// Rows in the ledger, and how many calls they are of.
fn rows(data: &Path) -> (usize, usize) {
    let c = rusqlite::Connection::open(data.join("tollkeeper.db")).unwrap();
    c.busy_timeout(LONG).unwrap();
    c.query_row(
        "SELECT count(*), count(DISTINCT request_id) FROM tk_ledger",
        [],
        |row| Ok((row.get::<_, i64>(0)? as usize, row.get::<_, i64>(1)? as usize)),
    )
    .unwrap()
}

/// A script in the gateway's data directory, to be taken for a new binary.
fn program(gateway: &Gateway, name: &str, text: &str) -> String {
    let path = gateway.data().join(name);
    let draft = path.with_extension("draft");
    fs::write(&draft, format!("#!/bin/sh\n{text}\n")).unwrap();
    // A child that another test starts at this moment has what is open here until it runs its own program, and what
    // is open for writing cannot be run. So nobody here opens it.
    let copied = std::process::Command::new("install")
        .args(["-m", "755"])
        .args([&draft, &path])
        .status();
    assert!(copied.unwrap().success());
    path.to_str().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_reloads_and_three_upgrades_under_load_fail_nobody() {
    let (upstream, mut streams) = upstream().await;
    let mut served = Served::start(&upstream).await;
    let busy = Busy::start(&served, 64);
    let (mut old, mut version) = (Vec::new(), 0);
    streams.open(&served, 40).await;
    for round in 0..4 {
        for _ in 0..5 {
            version += 1;
            let broken = version % 4 == 0;
            let mut config = (served.base)()
                .model("small", &upstream)
                .model(&format!("v{version}"), &upstream)
                .config();
            if broken {
                config.push_str("\n]");
            }
            served.gateway.rewrite(&config);
            let answer = ask(&served.gateway, "POST", "/config/reload", &[], "{}").await;
            assert_eq!(answer.status() == 200, !broken, "{version}: {}", answer.text());
            busy.answers(32).await;
        }
        // The last of the good ones serves.
        let serves = version - usize::from(version % 4 == 0);
        let call = json!({"model": format!("v{serves}"), "messages": []});
        let mut client = Client::open(served.at, served.config(true)).await.unwrap();
        assert_eq!(client.call(&call).await.unwrap().status(), 200);
        if round == 3 {
            break;
        }
        if version % 4 == 0 {
            served
                .gateway
                .rewrite(&(served.base)().model("small", &upstream).config());
        }
        let (before, _) = upgraded(&served.gateway).await;
        old.push(before);
        busy.answers(64).await;
        streams.open(&served, 20).await;
    }
    assert!(old.iter().all(|pid| is_alive(*pid)), "each still has its streams");
    let longest = Arc::clone(&busy.longest);
    let (answers, whole) = (busy.end().await, streams.end().await);
    let calls = answers + whole + 4;
    assert_eq!(served.gateway.gone().await.code(), Some(0));
    for pid in old {
        gone(pid).await;
    }
    let data = served.gateway.data();
    until("each call has its row", async || rows(&data).0 >= calls).await;
    assert_eq!(
        rows(&data),
        (calls, calls),
        "one row for one call, whoever served it"
    );
    let log = served.gateway.log();
    assert_eq!(log.matches("stopped: 0 requests cut off").count(), 3, "{log}");
    assert_eq!((version, whole), (20, 100));
    figure(
        "20 reloads (5 of broken configs) and 3 new binaries under 64 busy connections and 100 streams, TLS, half of \
         it HTTP/2: failed calls",
        format!("0 of {answers}"),
        "0",
    );
    figure("streams that ended whole", format!("{whole} of 100"), "100");
    figure(
        "rows in the ledger for as many calls",
        format!("{calls} of {calls}"),
        "each once",
    );
    figure("the slowest answer", format!("{} ms", longest.load(SeqCst)), "");
}

#[tokio::test]
async fn a_new_binary_that_is_no_good_changes_nothing() {
    let (upstream, mut streams) = upstream().await;
    let served = Served::start(&upstream).await;
    let gateway = &served.gateway;
    let busy = Busy::start(&served, 4);
    streams.open(&served, 4).await;
    let first = pid(gateway);
    let exits = program(gateway, "exits", "exit 3");
    let falls = program(gateway, "falls", "kill -SEGV $$");
    let deaf = program(gateway, "deaf", "exec sleep 600");
    let text = gateway.data().join("text");
    fs::write(&text, "no program").unwrap();
    for (binary, seconds, why) in [
        (exits.as_str(), "50", "exit code 3"),
        (falls.as_str(), "50", "signal 11"),
        (deaf.as_str(), "1", "not ready within 1 s"),
        (text.to_str().unwrap(), "50", "cannot be started"),
        ("/bin/true", "50", "exit code 0"),
    ] {
        let output = tollkeeper(gateway, &["upgrade", "--timeout", seconds, "--binary", binary]).await;
        let words = said(&output);
        assert_eq!(output.status.code(), Some(1), "{binary}: {words}");
        assert!(
            words.contains(why) && words.contains("goes on as before"),
            "{binary}: {words}"
        );
        assert_eq!(pid(gateway), first);
        busy.answers(8).await;
    }
    let sleeper = || {
        let found = std::process::Command::new("pgrep")
            .args(["-P", &first.to_string()])
            .output();
        !found.unwrap().stdout.is_empty()
    };
    until("what was started is gone", async || !sleeper()).await;
    let none = tollkeeper(gateway, &["upgrade", "--binary", "/nobody/is/here"]).await;
    assert_eq!(none.status.code(), Some(2), "{}", said(&none));

    // The same binary with a config that it cannot use; told with the line.
    let good = fs::read_to_string(gateway.data().with_file_name("config.yaml")).unwrap();
    gateway.rewrite("model_list:\n  - model_name: small\n    litellm_params: {model: 7\n");
    gateway.signal("USR2");
    until("the log says why nothing happened", async || {
        let log = gateway.log();
        log.contains("event=upgrade_failed")
            && log.contains("the new process gave up")
            && log.contains("config.yaml:3")
    })
    .await;
    gateway.rewrite(&good);
    busy.answers(8).await;

    // And after all that a good one.
    let (old, _) = upgraded(gateway).await;
    assert_eq!(old, first);
    busy.end().await;
    streams.end().await;
    gone(first).await;
}

#[tokio::test]
async fn sigterm_under_load_cuts_nothing() {
    let (upstream, mut streams) = upstream().await;
    let mut served = Served::start(&upstream).await;
    streams.open(&served, 20).await;
    let body = json!({"model": "small", "messages": []});
    let mut clients = Vec::new();
    for n in 0..16 {
        let mut client = Client::open(served.at, served.config(n % 2 == 0)).await.unwrap();
        clients.push(tokio::spawn(async move {
            let mut calls = 0_usize;
            // Until it is told to go.
            while client.is_open().await {
                let since = Instant::now();
                match client.call(&body_of_call()).await {
                    Ok(answer) => {
                        assert_eq!(answer.status(), 200);
                        answer.into_body().collect().await.expect("an answer is whole");
                        calls += 1;
                    }
                    Err(e) if e.is_canceled() => break,
                    // One that does not come back for so long was idle, and may find the connection closed.
                    Err(_) if since.elapsed() > Duration::from_millis(250) => break,
                    Err(e) => panic!("a request failed: {e:?}"),
                }
            }
            calls
        }));
    }
    let mut client = Client::open(served.at, served.config(true)).await.unwrap();
    assert_eq!(client.call(&body).await.unwrap().status(), 200);
    served.gateway.signal("TERM");
    let mut calls = 1;
    for client in clients {
        calls += within("a client is told to go", client).await.unwrap();
    }
    calls += streams.end().await;
    assert_eq!(served.gateway.gone().await.code(), Some(0));
    assert_eq!(rows(&served.gateway.data()), (calls, calls));
    served.gateway.says("stopped: 0 requests cut off").await;
    figure(
        "SIGTERM under 16 busy connections and 20 streams: cut",
        format!("0 of {calls}"),
        "0",
    );
}

fn body_of_call() -> Value {
    json!({"model": "small", "messages": []})
}

#[tokio::test]
async fn readiness_says_no_while_connections_are_still_taken() {
    let upstream = Upstream::good().await;
    let with = |delay: &str| {
        Setup::new()
            .model("small", &upstream)
            .setting("timeouts", json!({"shutdown_delay": delay}))
            .start()
    };
    let gateway = with("10m").await;
    gateway.signal("TERM");
    until("readiness says no", async || {
        probe(gateway.at, "/health/readiness").await == Some(503)
    })
    .await;
    let answer = chat(&gateway, &body_of_call()).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(answer.head.header("connection"), Some("close"));
    drop(gateway);
    // And it goes when the delay is over.
    let mut gateway = with("100ms").await;
    gateway.stop().await;
}

#[tokio::test]
async fn an_idle_process_leaves_within_a_second() {
    let upstream = Upstream::good().await;
    let mut gateway = Setup::new().model("small", &upstream).start().await;
    let mut quickest = Duration::MAX;
    // The machine may be busy with something else once, and not three times.
    for _ in 0..3 {
        let mut idle = Conn::open(gateway.at).await;
        assert_eq!(idle.ask("GET", "/health", &[], b"").await.status(), 200);
        let begun = Instant::now();
        gateway.stop().await;
        quickest = quickest.min(begun.elapsed());
        if quickest < Duration::from_secs(1) {
            let took = format!("{} ms", quickest.as_millis());
            figure(
                "a process without work leaves after SIGTERM in",
                took,
                "under a second",
            );
            return;
        }
        gateway.up().await;
    }
    panic!("it took {quickest:?}");
}

#[tokio::test]
async fn a_drained_gateway_answers_and_is_not_ready() {
    let upstream = Upstream::good().await;
    let gateway = Setup::new().model("small", &upstream).start().await;
    let drained = tollkeeper(&gateway, &["drain", "--json"]).await;
    assert!(said(&drained).contains("\"drain\":true"), "{}", said(&drained));
    assert_eq!(probe(gateway.at, "/health/readiness").await, Some(503));
    let answer = chat(&gateway, &body_of_call()).await;
    assert_eq!(
        (answer.status(), answer.head.header("connection")),
        (200, Some("close"))
    );
    let undone = tollkeeper(&gateway, &["drain", "--undo"]).await;
    assert!(undone.status.success(), "{}", said(&undone));
    assert_eq!(probe(gateway.at, "/health/readiness").await, Some(200));
}

#[tokio::test]
async fn whom_nobody_runs_cannot_be_upgraded() {
    let upstream = Upstream::good().await;
    let mut gateway = Setup::new().model("small", &upstream).start().await;
    // What is no order is refused.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let socket = gateway.data().join("control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream.write_all(b"{\"order\":\"explode\"}\n").await.unwrap();
    let mut told = String::new();
    within("it is refused", stream.read_to_string(&mut told))
        .await
        .unwrap();
    assert!(told.contains("refused") && told.contains("explode"), "{told}");
    gateway.stop().await;
    let output = tollkeeper(&gateway, &["upgrade"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("no gateway runs on this data directory"),
        "{}",
        said(&output)
    );
    assert!(pid_in(&gateway.data()).is_none());
}

#[tokio::test]
async fn orders_reach_the_first_gateway_of_a_data_directory_until_it_leaves() {
    let upstream = Upstream::good().await;
    let mut first = Setup::new().model("small", &upstream).start().await;
    let one = pid(&first);
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let config = first.data().with_file_name("config.yaml");
    let args = [
        "-c",
        config.to_str().unwrap(),
        "--host",
        "127.0.0.1",
        "--port",
        &port.to_string(),
    ]
    .map(String::from);
    let env = [(
        "TOLLKEEPER_DATA_DIR".into(),
        first.data().to_str().unwrap().into(),
    )];
    let mut second = gateway::spawn(dir.path(), &args, &env);
    let two = second.id();
    let log = || fs::read_to_string(dir.path().join("log")).unwrap();
    until("the second one says that it is not alone", async || {
        log().contains("event=data_dir_shared")
    })
    .await;
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    until("it serves all the same", async || {
        probe(at, "/health/readiness").await == Some(200)
    })
    .await;
    let drains = async |first: &Gateway, pid: u32| {
        let told = tollkeeper(first, &["drain", "--undo", "--json"]).await;
        serde_json::from_slice::<Value>(&told.stdout).is_ok_and(|told| told["pid"] == pid)
    };
    assert!(drains(&first, one).await);
    assert_eq!(pid_in(&first.data()), Some(one));
    // One that takes the second one's place is no more to be found than that was.
    process::signal(&second, "USR2");
    until("the second one is replaced", async || {
        second.try_wait().unwrap().is_some()
    })
    .await;
    assert_eq!(log().matches("event=data_dir_shared").count(), 2, "{}", log());
    assert!(drains(&first, one).await);
    assert_eq!(pid_in(&first.data()), Some(one));

    let _heirs = Heirs(first.data());
    first.stop().await;
    until("the other one takes orders", async || {
        pid_in(&first.data()).is_some_and(|pid| pid != one && pid != two)
    })
    .await;
    let three = pid(&first);
    until("they reach it", async || drains(&first, three).await).await;
    assert!(log().contains("event=data_dir_free"), "{}", log());
}

#[tokio::test]
async fn the_service_manager_hears_who_serves() {
    let upstream = Upstream::good().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = Manager::at(&path);
    let gateway = Setup::new()
        .model("small", &upstream)
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "400000")
        .start()
        .await;
    let _heirs = Heirs(gateway.data());
    let ready = |heard: &[String]| heard.iter().filter(|w| w.starts_with("READY=1")).count();
    until("it is ready", async || ready(&manager.heard()) == 1).await;
    let (old, new) = upgraded(&gateway).await;
    gone(old).await;
    // Two processes speak, so that which of these comes first is nobody's to say.
    let main = format!("MAINPID={new}");
    until("both have told of the change", async || {
        let heard = manager.heard();
        ready(&heard) == 2 && heard.iter().any(|w| w.lines().any(|l| l == main))
    })
    .await;
    let so_far = manager.heard();
    assert!(!so_far.iter().any(|w| w.contains("STOPPING=1")), "{so_far:?}");
    until("the new process says that it is alive", async || {
        let since = &manager.heard()[so_far.len()..];
        since.iter().filter(|w| *w == "WATCHDOG=1").count() >= 2
    })
    .await;
}

/// A service manager that hears at once, as the queue of such a socket holds ten words.
struct Manager(Arc<Mutex<Vec<String>>>);

impl Manager {
    fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::downgrade(&heard);
        std::thread::spawn(move || {
            let mut word = [0; 1024];
            // Ends with the first word after nobody listens any more, or with the test's process.
            while let (Ok(n), Some(all)) = (socket.recv(&mut word), all.upgrade()) {
                let word = String::from_utf8_lossy(&word[..n]).into_owned();
                all.lock().unwrap().push(word);
            }
        });
        Manager(heard)
    }

    fn heard(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// `tollkeeper supervise` on a free port.
struct Supervised {
    /// Before the directory.
    _heirs: Heirs,
    child: std::process::Child,
    at: SocketAddr,
    dir: tempfile::TempDir,
}

impl Supervised {
    async fn start(setup: &Setup) -> Supervised {
        let dir = tempfile::Builder::new().prefix("tk-sup-").tempdir().unwrap();
        let config = dir.path().join("config.yaml");
        fs::write(&config, setup.config()).unwrap();
        let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let port = at.port().to_string();
        let args = [
            "supervise",
            "--",
            "-c",
            config.to_str().unwrap(),
            "--host",
            "127.0.0.1",
            "--port",
            &port,
        ];
        let child = gateway::spawn(dir.path(), &args.map(String::from), &[]);
        let served = Supervised {
            child,
            at,
            _heirs: Heirs(dir.path().join("data")),
            dir,
        };
        until("the supervised gateway is ready", async || {
            served.pid().is_some() && probe(at, "/health/readiness").await == Some(200)
        })
        .await;
        served
    }

    fn pid(&self) -> Option<u32> {
        pid_in(&self.dir.path().join("data"))
    }

    async fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        until("the supervisor has ended", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log"));
            eprintln!(
                "--- the supervised gateway's log ---\n{}",
                log.unwrap_or_default()
            );
        }
    }
}

#[tokio::test]
async fn a_supervised_gateway_is_upgraded_within_one_tree_of_processes() {
    let (upstream, streams) = upstream().await;
    let mut served = Supervised::start(&Setup::new().model("small", &upstream)).await;
    let body = json!({"model": "small", "messages": [], "stream": true}).to_string();
    let mut conn = Conn::open(served.at).await;
    conn.send(&request("POST", CALL, &[], body.as_bytes())).await;
    assert_eq!(conn.head().await.status, 200);
    conn.reader.chunk().await.unwrap();
    let first = served.pid().unwrap();
    assert_ne!(first, served.child.id());

    process::signal(&served.child, "USR2");
    until("another process serves", async || {
        served.pid().is_some_and(|p| p != first)
    })
    .await;
    let second = served.pid().unwrap();
    assert!(is_alive(first), "it still has a stream");
    assert_eq!(probe(served.at, "/health/readiness").await, Some(200));
    streams.gate.open();
    let (rest, whole) = conn.reader.rest().await;
    assert!(whole && rest.ends_with(b"data: [DONE]\n\n"));
    // It waits for clients whose connections stay open; this one goes.
    drop(conn);
    until("the old process is reaped", async || {
        !Path::new(&format!("/proc/{first}")).exists()
    })
    .await;
    assert!(served.child.try_wait().unwrap().is_none(), "the supervisor stays");

    process::signal(&served.child, "TERM");
    assert_eq!(served.ended().await, Some(0));
    assert!(!is_alive(second) && probe(served.at, "/health").await.is_none());
    assert_eq!(rows(&served.dir.path().join("data")), (1, 1));
}

#[tokio::test]
async fn the_supervisor_goes_with_its_gateway() {
    let upstream = Upstream::good().await;
    let mut served = Supervised::start(&Setup::new().model("small", &upstream)).await;
    let gateway = served.pid().unwrap().to_string();
    let killed = std::process::Command::new("kill")
        .args(["-s", "KILL", &gateway])
        .status();
    assert!(killed.unwrap().success());
    assert_eq!(served.ended().await, Some(137));

    // Any command, with its own exit code.
    let dir = tempfile::tempdir().unwrap();
    let args = ["supervise", "check", "-c", "/nobody/is/here.yaml"].map(String::from);
    let mut child = gateway::spawn(dir.path(), &args, &[]);
    let status = within("it ends", tokio::task::spawn_blocking(move || child.wait())).await;
    assert_eq!(status.unwrap().unwrap().code(), Some(78));
}

/// What a call of the priced model costs, nano-dollars: three tokens of the answer.
const COST: i64 = 3_000_000;

#[tokio::test]
async fn both_processes_keep_one_budget_through_redis() {
    for _ in 0..4 {
        if keeps_one_budget().await {
            return;
        }
    }
    panic!("Redis was away each time");
}

/// False = the machine was so busy that Redis was found away, which allows for more.
async fn keeps_one_budget() -> bool {
    let redis = redis::Server::start();
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start(move |seen| match seen.json()["stream"].as_bool() {
        Some(true) => Script::sse(&[&delta("one")])
            .wait(&held)
            .events(&[&delta("two"), &usage(7, 3), "[DONE]"])
            .end(),
        _ => Script::chat("hello"),
    })
    .await;
    let prices = json!({"input_cost_per_token": 0, "output_cost_per_token": 0.001});
    let gateway = Setup::new()
        .deployment("small", &upstream.base(), prices)
        .setting("redis", json!({"url": redis.url()}))
        .start()
        .await;
    let _heirs = Heirs(gateway.data());
    let key = "sk-limited-key-0001";
    let budget = COST * 7 / 2;
    gateway.key(key, |k| k.max_budget_nanos = Some(budget)).await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let body = json!({"model": "small", "messages": [], "max_tokens": 3, "stream": true}).to_string();
    let mut conn = Conn::open(gateway.at).await;
    conn.send(&request("POST", CALL, &headers, body.as_bytes())).await;
    assert_eq!(conn.head().await.status, 200);
    conn.reader.chunk().await.unwrap();

    // What the old process has set aside for its stream counts in the new one.
    let (old, _) = upgraded(&gateway).await;
    let mut served = 0;
    let body = json!({"model": "small", "messages": [], "max_tokens": 3}).to_string();
    until("the budget is used up", async || {
        let answer = ask(&gateway, "POST", CALL, &headers, &body).await;
        served += i64::from(answer.status() == 200);
        answer.status() == 429
    })
    .await;
    gate.open();
    let (_, whole) = conn.reader.rest().await;
    assert!(whole);
    drop(conn);
    gone(old).await;
    let rows = gateway.rows_once(served as usize + 1).await;
    if !gateway.has_had_redis().await {
        return false;
    }
    assert!(
        (1..=3).contains(&served),
        "one call may go over, with the stream in the old one: {served}"
    );
    let spent: i64 = rows.iter().map(|r| r.spend_nanos).sum();
    assert_eq!(spent, (served + 1) * COST);

    // It took its leave of Redis, so that nothing of it counts a second time.
    let names = ["replica", "replica-1"].map(|n| fs::read_to_string(gateway.data().join(n)).unwrap());
    assert_ne!(names[0], names[1]);
    let client = ::redis::Client::open(redis.url()).unwrap();
    let mut line = client.get_connection().unwrap();
    let accounts: Vec<String> = ::redis::cmd("KEYS").arg("*:money:*").query(&mut line).unwrap();
    assert!(!accounts.is_empty());
    for account in accounts {
        let fields: Vec<String> = ::redis::cmd("HKEYS").arg(&account).query(&mut line).unwrap();
        assert!(
            !fields.iter().any(|f| f.ends_with(&names[0])),
            "{account}: {fields:?}"
        );
    }
    true
}
