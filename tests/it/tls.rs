//! TLS towards clients: versions of HTTP, the choice by name, swaps under load, the local authority,
//! clients' certificates, and what is refused.

use crate::kit::gateway::{BINARY, Gateway, MASTER, Setup, free_port, spawn};
use crate::kit::upstream::{Script, Upstream, delta};
use crate::kit::{until, within};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, crypto::ring, version,
};

/// Who vouches for certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM and as the wire shows it.
pub struct Leaf {
    cert: String,
    key: String,
    der: CertificateDer<'static>,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn leaf(&self, names: &[&str]) -> Leaf {
        self.leaf_with(names, |_| ())
    }

    fn leaf_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let made = params.signed_by(&key, &self.0).unwrap();
        Leaf {
            cert: made.pem(),
            key: key.serialize_pem(),
            der: made.der().clone(),
        }
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }
}

/// A directory with certificates, for one test.
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new() -> Files {
        Files(tempfile::Builder::new().prefix("tk-tls-").tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Puts a file there, whole or not at all.
    pub fn put(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(self.path("new"), text).unwrap();
        std::fs::rename(self.path("new"), &path).unwrap();
        path.to_str().unwrap().to_string()
    }

    pub fn leaf(&self, name: &str, leaf: &Leaf) -> Value {
        json!({
            "cert": self.put(&format!("{name}.pem"), &leaf.cert),
            "key": self.put(&format!("{name}.key"), &leaf.key),
        })
    }
}

/// A gateway with a plain listener and one with TLS.
struct Served {
    gateway: Gateway,
    at: SocketAddr,
}

fn setup(tls: Value, listener: Value) -> (Setup, SocketAddr) {
    let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut secure = json!({"address": at.to_string(), "tls": true});
    for (name, value) in listener.as_object().unwrap() {
        secure[name] = value.clone();
    }
    let plain = json!({"address": "127.0.0.1:4000", "redirect_https": true});
    let setup = Setup::new()
        .setting("listeners", json!([plain, secure]))
        .setting("tls", tls);
    (setup, at)
}

async fn served(tls: Value, listener: Value) -> Served {
    let (setup, at) = setup(tls, listener);
    let gateway = setup.start().await;
    Served { gateway, at }
}

/// What a client trusts and speaks.
pub fn config(roots: RootCertStore, alpn: &[&str]) -> ClientConfig {
    config_of(roots, alpn, &[&version::TLS12, &version::TLS13])
}

fn config_of(
    roots: RootCertStore,
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    // Each connection is a handshake of its own.
    config.resumption = tokio_rustls::rustls::client::Resumption::disabled();
    config
}

fn with_client(roots: RootCertStore, leaf: &Leaf) -> ClientConfig {
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![leaf.der.clone()], key)
        .unwrap();
    config.resumption = tokio_rustls::rustls::client::Resumption::disabled();
    config
}

pub async fn shake(
    at: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(at).await?;
    let name = ServerName::try_from(name.to_string()).unwrap();
    within(
        "a handshake ends",
        TlsConnector::from(Arc::clone(config)).connect(name, stream),
    )
    .await
}

pub fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

/// The certificate that is shown for a name.
async fn shown_for(at: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> CertificateDer<'static> {
    shown(&shake(at, name, config).await.unwrap())
}

/// Sends one request by whatever version of HTTP the handshake has chosen.
async fn send(
    stream: TlsStream<TcpStream>,
    method: &str,
    path: &str,
    body: String,
) -> hyper::Result<Response<Incoming>> {
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let request = Request::builder()
        .method(method)
        .header("authorization", format!("Bearer {MASTER}"))
        .header("content-type", "application/json");
    let body = Full::new(Bytes::from(body));
    let io = TokioIo::new(stream);
    let asking = async {
        if h2 {
            let request = request.uri(format!("https://llm.example.com{path}"));
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            sender.send_request(request.body(body).unwrap()).await
        } else {
            let request = request.uri(path).header("host", "llm.example.com");
            let (mut sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request.body(body).unwrap()).await
        }
    };
    within("an answer comes", asking).await
}

async fn text(response: Response<Incoming>) -> String {
    let body = within("the answer ends", response.into_body().collect())
        .await
        .unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

async fn alive(at: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> Result<u16, String> {
    let stream = shake(at, name, config).await.map_err(|e| e.to_string())?;
    let answer = send(stream, "GET", "/health/liveliness", String::new()).await;
    answer.map(|a| a.status().as_u16()).map_err(|e| e.to_string())
}

/// Runs the binary with this config, to its end.
pub async fn run(files: &Files, config: &str, data: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let file = files.put("config.yaml", config);
    let mut command = Command::new(BINARY);
    command
        .args(args)
        .args(["-c", &file])
        .env_clear()
        .env("HOME", files.0.path())
        .env("TOLLKEEPER_DATA_DIR", data)
        .envs(env.iter().copied());
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    within("the command ends", running).await.unwrap()
}

pub fn said(output: &Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{}{err}", String::from_utf8_lossy(&output.stdout))
}

#[tokio::test]
async fn calls_and_streams_go_over_http_1_and_http_2() {
    let upstream = Upstream::start(|seen| match seen.json()["stream"].as_bool() {
        Some(true) => Script::sse(&[&delta("one"), &delta("two"), "[DONE]"]).end(),
        _ => Script::chat("hello"),
    })
    .await;
    let (authority, files) = (Authority::new("root"), Files::new());
    let leaf = files.leaf("llm", &authority.leaf(&["llm.example.com"]));
    let (setup, at) = setup(json!({"certificates": [leaf]}), json!({}));
    let _gateway = setup.model("m", &upstream).start().await;
    for (alpn, want) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let config = Arc::new(config(authority.roots(), alpn));
        for stream in [false, true] {
            let body = json!({"model": "m", "messages": [], "stream": stream}).to_string();
            let conn = shake(at, "llm.example.com", &config).await.unwrap();
            let answer = send(conn, "POST", "/v1/chat/completions", body).await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.version()), (200, want));
            let text = text(answer).await;
            if stream {
                assert!(
                    text.contains("one") && text.ends_with("data: [DONE]\n\n"),
                    "{text}"
                );
            } else {
                assert!(text.contains("hello"), "{text}");
            }
        }
    }
    assert_eq!(upstream.count(), 6);
}

#[tokio::test]
async fn http_2_is_not_offered_where_it_is_off() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let leaf = files.leaf("llm", &authority.leaf(&["llm.example.com"]));
    let served = served(json!({"certificates": [leaf]}), json!({"h2": false})).await;
    let config = Arc::new(config(authority.roots(), &["h2", "http/1.1"]));
    let conn = shake(served.at, "llm.example.com", &config).await.unwrap();
    assert_eq!(conn.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let answer = send(conn, "GET", "/health/liveliness", String::new())
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn the_name_chooses_the_certificate() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let wide = authority.leaf(&["*.example.com", "other.test"]);
    let exact = authority.leaf(&["llm.example.com"]);
    let third = authority.leaf(&["Third.test"]);
    let certificates = json!([
        files.leaf("wide", &wide),
        files.leaf("exact", &exact),
        files.leaf("third", &third)
    ]);
    let served = served(json!({"certificates": certificates}), json!({})).await;
    let config = Arc::new(config(authority.roots(), &[]));
    for (name, want) in [
        ("llm.example.com", &exact),
        ("LLM.Example.com", &exact),
        ("ui.example.com", &wide),
        ("other.test", &wide),
        ("third.test", &third),
    ] {
        assert_eq!(shown_for(served.at, name, &config).await, want.der, "{name}");
    }
    // A name that nobody has gets the first, and it is the client that says no.
    for name in ["a.b.example.com", "nobody.test", "127.0.0.1"] {
        let refused = shake(served.at, name, &config).await.unwrap_err().to_string();
        assert!(refused.contains("not valid for name"), "{name}: {refused}");
    }
    let metrics = crate::kit::client::ask(&served.gateway, "GET", "/metrics", &[], "").await;
    let metrics = metrics.text();
    for host in ["*.example.com", "llm.example.com", "other.test", "third.test"] {
        let line = format!("tollkeeper_tls_certificate_expires_seconds{{host=\"{host}\"}} ");
        let seconds = metrics.split(&line).nth(1).unwrap().lines().next().unwrap();
        assert!(seconds.parse::<i64>().unwrap() > 86_400, "{host}: {seconds}");
    }
}

#[tokio::test]
async fn names_that_nobody_has_can_be_refused() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let leaf = authority.leaf(&["llm.example.com"]);
    let tls = json!({"certificates": [files.leaf("llm", &leaf)], "unknown_names": "refuse"});
    let served = served(tls, json!({})).await;
    let config = Arc::new(config(authority.roots(), &[]));
    assert_eq!(shown_for(served.at, "llm.example.com", &config).await, leaf.der);
    let refused = shake(served.at, "nobody.test", &config)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("alert"), "{refused}");
}

#[tokio::test]
async fn a_swap_under_load_fails_no_handshake() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let old = authority.leaf(&["llm.example.com"]);
    let served = served(json!({"certificates": [files.leaf("llm", &old)]}), json!({})).await;
    let config = Arc::new(config(authority.roots(), &["h2", "http/1.1"]));
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let (at, config) = (served.at, Arc::clone(&config));
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    match alive(at, "llm.example.com", &config).await {
                        Ok(200) => {}
                        other => failed.push(other),
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }
                failed
            })
        })
        .collect();
    let before = shake(served.at, "llm.example.com", &config).await.unwrap();
    for round in 0..3 {
        let begun = done.load(Ordering::SeqCst);
        until("clients come", async || done.load(Ordering::SeqCst) > begun + 10).await;
        let new = authority.leaf(&["llm.example.com"]);
        files.leaf("llm", &new);
        if round > 0 {
            served.gateway.signal("HUP");
        }
        until("the new certificate is shown", async || {
            shown_for(served.at, "llm.example.com", &config).await == new.der
        })
        .await;
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        let failed = client.await.unwrap();
        assert!(failed.is_empty(), "{failed:?}");
    }
    // A connection from before goes on.
    let answer = send(before, "GET", "/health/liveliness", String::new())
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_replacement_that_is_no_good_changes_nothing_and_is_told() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let old = authority.leaf(&["llm.example.com"]);
    let served = served(json!({"certificates": [files.leaf("llm", &old)]}), json!({})).await;
    let config = Arc::new(config(authority.roots(), &[]));
    let expired = authority.leaf_with(&["llm.example.com"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
    });
    let other = authority.leaf(&["llm.example.com"]);
    let mut told = 0;
    for (cert, key, file, why) in [
        (&old.cert[..], &other.key[..], "llm.key", "does not belong"),
        ("nonsense", &old.key, "llm.pem", "holds no certificate"),
        (&expired.cert, &expired.key, "llm.pem", "expired on 2020-02-01"),
        (&old.cert, "nonsense", "llm.key", "holds no private key"),
    ] {
        files.put("llm.pem", cert);
        files.put("llm.key", key);
        served.gateway.signal("HUP");
        until(&format!("the log says {why}"), async || {
            let log = served.gateway.log();
            log.lines()
                .any(|l| l.contains("event=certificate_refused") && l.contains(file) && l.contains(why))
        })
        .await;
        assert_eq!(shown_for(served.at, "llm.example.com", &config).await, old.der);
        let refused = |log: &str| log.matches("event=certificate_refused").count();
        assert!(refused(&served.gateway.log()) > told, "each is told");
        told = refused(&served.gateway.log());
    }
    let log = served.gateway.log();
    for key in [&old.key, &other.key, &expired.key] {
        assert!(!log.contains(key.lines().nth(1).unwrap()), "no key is logged");
    }
    let good = authority.leaf(&["llm.example.com"]);
    files.leaf("llm", &good);
    until("a good one is taken", async || {
        shown_for(served.at, "llm.example.com", &config).await == good.der
    })
    .await;
}

#[tokio::test]
async fn a_changed_config_changes_certificates() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let (a, b) = (authority.leaf(&["a.test"]), authority.leaf(&["b.test"]));
    let (a_files, b_files) = (files.leaf("a", &a), files.leaf("b", &b));
    let (first, at) = setup(json!({"certificates": [a_files]}), json!({}));
    let gateway = first.start().await;
    let config = Arc::new(config(authority.roots(), &[]));
    assert_eq!(shown_for(at, "a.test", &config).await, a.der);
    let with = |certificates: Value| {
        let plain = json!({"address": "127.0.0.1:4000", "redirect_https": true});
        Setup::new()
            .setting(
                "listeners",
                json!([plain, {"address": at.to_string(), "tls": true}]),
            )
            .setting("tls", json!({"certificates": certificates}))
            .config()
    };
    gateway.rewrite(&with(json!([a_files, b_files])));
    until("b is shown", async || {
        shake(at, "b.test", &config)
            .await
            .is_ok_and(|s| shown(&s) == b.der)
    })
    .await;
    let missing = json!({"cert": files.path("none.pem"), "key": files.path("none.key")});
    gateway.rewrite(&with(json!([b_files, missing])));
    until("the log names the file", async || {
        let log = gateway.log();
        log.contains("event=config_refused") && log.contains("none.pem: there is no such file")
    })
    .await;
    assert_eq!(shown_for(at, "a.test", &config).await, a.der);
}

#[tokio::test]
async fn it_does_not_start_with_what_is_no_good() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let good = authority.leaf(&["llm.example.com"]);
    let expired = authority.leaf_with(&["llm.example.com"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
    });
    let good_files = files.leaf("good", &good);
    let expired_files = files.leaf("expired", &expired);
    let mixed = json!({"cert": good_files["cert"], "key": expired_files["key"]});
    let missing = json!({"cert": good_files["cert"], "key": files.path("none.key")});
    for (tls, wants) in [
        (
            json!({"certificates": [expired_files, mixed]}),
            &[
                "expired.pem: the certificate expired",
                "expired.key: this key does not",
            ][..],
        ),
        (
            json!({"certificates": [missing]}),
            &["none.key: there is no such file"],
        ),
        (json!({}), &["there is no certificate"]),
    ] {
        let (setup, _) = setup(tls.clone(), json!({}));
        let port = free_port().to_string();
        let args = ["--host", "127.0.0.1", "--port", &port];
        let output = run(&files, &setup.config(), &files.path("data"), &args, &[]).await;
        assert_eq!(output.status.code(), Some(78), "{}", said(&output));
        for want in wants {
            assert!(said(&output).contains(want), "{want}: {}", said(&output));
        }
        if tls["certificates"].is_array() {
            let output = run(&files, &setup.config(), &files.path("data"), &["check"], &[]).await;
            assert_eq!(output.status.code(), Some(78), "{}", said(&output));
            assert!(said(&output).contains(wants[0]), "{}", said(&output));
        }
    }
}

#[tokio::test]
async fn the_local_authority_is_all_that_a_client_has_to_trust() {
    let files = Files::new();
    let tls = json!({"local": {"hosts": ["llm.home.arpa", "*.local", "127.0.0.1"]}});
    let (setup, at) = setup(tls, json!({}));
    let text = setup.config();
    let mut gateway = setup.start().await;
    let data = gateway.data();
    let output = run(&files, &text, &data, &["tls", "ca"], &[]).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let pem = output.stdout.clone();
    for word in [
        "update-ca-certificates",
        "security add-trusted-cert",
        "certutil",
        "Firefox",
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
        "llm.home.arpa",
    ] {
        assert!(String::from_utf8_lossy(&output.stderr).contains(word), "{word}");
    }
    assert!(!said(&output).contains("PRIVATE"));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let config = Arc::new(config(roots, &["h2", "http/1.1"]));
    for name in ["llm.home.arpa", "chat.local", "other.local", "127.0.0.1"] {
        assert_eq!(alive(at, name, &config).await, Ok(200), "{name}");
    }
    assert!(shake(at, "a.chat.local", &config).await.is_err());
    // The root is the same after a restart.
    let first = shown_for(at, "llm.home.arpa", &config).await;
    gateway.stop().await;
    gateway.up().await;
    assert_ne!(shown_for(at, "llm.home.arpa", &config).await, first);

    let output = run(&files, &text, &data, &["tls", "status", "--json"], &[]).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (row, name) in rows
        .as_array()
        .unwrap()
        .iter()
        .zip(["llm.home.arpa", "*.local", "127.0.0.1"])
    {
        assert_eq!((&row["names"], &row["served"]), (&json!(name), &json!(true)));
        let days = row["days_left"].as_i64().unwrap();
        assert!((89..=90).contains(&days), "{row}");
    }
}

#[tokio::test]
async fn clients_show_who_they_are_where_they_have_to() {
    let (authority, ours, theirs, files) = (
        Authority::new("root"),
        Authority::new("ours"),
        Authority::new("theirs"),
        Files::new(),
    );
    let leaf = files.leaf("llm", &authority.leaf(&["llm.example.com"]));
    let client_ca = files.put("clients.pem", &ours.0.pem());
    let optional = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let tls = json!({"certificates": [leaf], "client_ca": client_ca});
    let (setup, required) = setup(tls.clone(), json!({}));
    drop(setup);
    let listeners = json!([
        {"address": "127.0.0.1:4000"},
        {"address": required.to_string(), "tls": true},
        {"address": optional.to_string(), "tls": {"client_auth": "optional"}},
    ]);
    let gateway = Setup::new()
        .setting("listeners", listeners)
        .setting("tls", tls)
        .start()
        .await;
    let roots = || authority.roots();
    let nobody = Arc::new(config(roots(), &[]));
    let known = Arc::new(with_client(roots(), &ours.leaf(&["alice"])));
    let unknown = Arc::new(with_client(roots(), &theirs.leaf(&["mallory"])));
    let name = "llm.example.com";
    assert_eq!(alive(required, name, &known).await, Ok(200));
    assert!(alive(required, name, &nobody).await.is_err());
    assert!(alive(required, name, &unknown).await.is_err());
    assert_eq!(alive(optional, name, &known).await, Ok(200));
    assert_eq!(alive(optional, name, &nobody).await, Ok(200));
    assert!(alive(optional, name, &unknown).await.is_err());
    // Another authority, while it runs.
    files.put("clients.pem", "nonsense");
    gateway.signal("HUP");
    until("the log names the file", async || {
        let log = gateway.log();
        log.contains("event=client_authorities_refused") && log.contains("clients.pem")
    })
    .await;
    assert_eq!(alive(required, name, &known).await, Ok(200));
    files.put("clients.pem", &theirs.0.pem());
    until("the new authority is believed", async || {
        alive(required, name, &unknown).await == Ok(200)
    })
    .await;
    assert!(alive(required, name, &known).await.is_err());
}

/// What the server sends back for a first message of an old version of TLS.
async fn old_hello(at: SocketAddr, version: u8) -> Vec<u8> {
    let mut hello = vec![3, version];
    hello.extend([7; 32]);
    hello.push(0); // no session
    hello.extend([0, 4, 0xc0, 0x13, 0xc0, 0x09]); // ECDHE with AES-128-CBC
    hello.extend([1, 0]); // no compression
    hello.extend([0, 16, 0, 13, 0, 4, 0, 2, 4, 3]); // signatures: ECDSA P-256
    hello.extend([0, 10, 0, 4, 0, 2, 0, 23]); // groups: P-256
    let length = hello.len() as u8;
    let mut record = vec![0x16, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    let _ = within("the connection ends", stream.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test]
async fn old_versions_are_refused() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let leaf = files.leaf("llm", &authority.leaf(&["llm.example.com"]));
    let certificates = json!({"certificates": [leaf]});
    let both = served(certificates.clone(), json!({})).await;
    let newest = served(certificates, json!({"tls": {"min_version": "1.3"}})).await;
    for version in [0, 1, 2] {
        for at in [both.at, newest.at] {
            let answer = old_hello(at, version).await;
            // A fatal alert and nothing before it: handshake_failure or protocol_version.
            assert!(
                matches!(answer[..], [0x15, 3, _, 0, 2, 2, 40 | 70]),
                "version {version}: {answer:?}"
            );
        }
    }
    let name = "llm.example.com";
    let old = Arc::new(config_of(authority.roots(), &[], &[&version::TLS12]));
    let new = Arc::new(config(authority.roots(), &[]));
    let spoken = async |at, config| {
        let stream = shake(at, name, config).await?;
        std::io::Result::Ok(stream.get_ref().1.protocol_version())
    };
    assert_eq!(
        spoken(both.at, &old).await.unwrap(),
        Some(ProtocolVersion::TLSv1_2)
    );
    assert_eq!(
        spoken(both.at, &new).await.unwrap(),
        Some(ProtocolVersion::TLSv1_3)
    );
    assert!(spoken(newest.at, &old).await.is_err());
    assert_eq!(alive(newest.at, name, &new).await, Ok(200));
}

#[tokio::test]
async fn browsers_are_sent_to_https_and_clients_are_answered() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let leaf = files.leaf("llm", &authority.leaf(&["llm.example.com"]));
    let upstream = Upstream::good().await;
    let (setup, at) = setup(json!({"certificates": [leaf]}), json!({}));
    let gateway = setup.model("m", &upstream).start().await;
    let page = [("accept", "text/html,*/*;q=0.8"), ("authorization", "")];
    let ask = async |method, path, headers: &[(&str, &str)]| {
        crate::kit::client::ask(&gateway, method, path, headers, "").await
    };
    let sent = ask("GET", "/ui/keys?x=1", &page).await;
    assert_eq!(sent.status(), 307);
    let to = format!("https://gateway.test:{}/ui/keys?x=1", at.port());
    assert_eq!(sent.head.header("location"), Some(&to[..]));
    assert_eq!(ask("HEAD", "/", &page).await.status(), 307);
    for path in ["/v1/models", "/key/list", "/health/liveliness"] {
        let answer = ask("GET", path, &page).await;
        assert!(answer.head.header("location").is_none(), "{path}");
    }
    assert_eq!(ask("GET", "/v1/models", &[]).await.status(), 200);
    let body = json!({"model": "m", "messages": []});
    assert_eq!(crate::kit::client::chat(&gateway, &body).await.status(), 200);
    // Who is there already is sent nowhere.
    let config = Arc::new(config(authority.roots(), &[]));
    let conn = shake(at, "llm.example.com", &config).await.unwrap();
    let answer = send(conn, "GET", "/", String::new()).await.unwrap();
    assert!(answer.headers().get("location").is_none());
}

/// A service at `/web` and at a host of its own, behind a plain listener that sends on and one with TLS.
async fn with_a_service(tls: Value) -> (Upstream, Upstream, Gateway, SocketAddr) {
    let models = Upstream::good().await;
    let pages = Upstream::start(|seen| {
        let own = ("strict-transport-security", "max-age=1");
        let more = if seen.target.ends_with("/own") {
            &[own][..]
        } else {
            &[]
        };
        Script::answer(200, more, "a page")
    })
    .await;
    let lane = |name: &str, more: Value| {
        let mut lane = json!({"name": name, "driver": "stream", "service": "chat", "auth": "open"});
        for (field, value) in more.as_object().unwrap() {
            lane[field] = value.clone();
        }
        lane
    };
    let lanes = json!([
        lane("chat", json!({"hosts": ["chat.example.com"], "paths": ["/*"]})),
        lane("web", json!({"paths": ["/web/*"]})),
    ]);
    let (setup, at) = setup(tls, json!({}));
    let backend = format!("http://127.0.0.1:{}", pages.port);
    let gateway = setup
        .model("m", &models)
        .setting("services", json!({"chat": {"backends": backend}}))
        .setting("lanes", lanes)
        .start()
        .await;
    (models, pages, gateway, at)
}

#[tokio::test]
async fn services_are_sent_to_https_whole_and_the_api_never_is() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let leaf = files.leaf("llm", &authority.leaf(&["llm.example.com", "chat.example.com"]));
    let (models, pages, gateway, at) = with_a_service(json!({"certificates": [leaf]})).await;
    let ask = async |method: &str, host: &str, path: &str, more: &str| {
        let mut conn = crate::kit::client::Conn::open(gateway.at).await;
        let key = format!("authorization: Bearer {MASTER}\r\naccept: text/html,*/*");
        let body = json!({"model": "m", "messages": []}).to_string();
        let body = if method == "POST" { &body[..] } else { "" };
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\n{key}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n{more}\r\n{body}"
        );
        conn.send(text.as_bytes()).await;
        let answer = conn.reader.answer(method == "HEAD").await;
        (
            answer.status(),
            answer.head.header("location").map(str::to_string),
        )
    };
    let to = |path: &str| Some(format!("https://chat.example.com:{}{path}", at.port()));
    for (method, path, status) in [
        ("GET", "/", 301),
        ("HEAD", "/a/b?x=1&y=%20", 301),
        ("GET", "/v1/models", 301),
        ("POST", "/v1/chat/completions", 308),
        ("DELETE", "/a", 308),
        ("OPTIONS", "/a", 308),
    ] {
        let sent = ask(method, "chat.example.com", path, "").await;
        assert_eq!(sent, (status, to(path)), "{method} {path}");
    }
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
    assert_eq!(
        ask("GET", "chat.example.com", "/ws", upgrade).await,
        (301, to("/ws"))
    );
    let web = format!("https://llm.example.com:{}/web/x", at.port());
    assert_eq!(
        ask("GET", "llm.example.com", "/web/x", "").await,
        (301, Some(web))
    );
    assert_eq!(pages.count(), 0, "nothing went there in plain text");
    // The API on the same listener, even to what looks like a browser.
    for (method, path) in [
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/key/list"),
        ("GET", "/health/liveliness"),
        ("GET", "/metrics"),
        ("GET", "/web"),
    ] {
        let (status, location) = ask(method, "llm.example.com", path, "").await;
        assert!(
            status != 301 && status != 308 || path == "/web",
            "{path}: {status}"
        );
        assert_eq!(location.is_none(), path != "/web", "{path}");
    }
    assert_eq!(models.count(), 1);
}

#[tokio::test]
async fn browsers_are_told_to_come_by_tls_alone() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let leaf = files.leaf("llm", &authority.leaf(&["llm.example.com"]));
    let hsts = json!({"max_age": "180d", "include_subdomains": true});
    let tls = json!({"certificates": [leaf], "hsts": hsts});
    let (_models, _pages, gateway, at) = with_a_service(tls.clone()).await;
    let config = Arc::new(config(authority.roots(), &["h2", "http/1.1"]));
    let said = async |path: &str| {
        let conn = shake(at, "llm.example.com", &config).await.unwrap();
        let answer = send(conn, "GET", path, String::new()).await.unwrap();
        let all: Vec<_> = answer
            .headers()
            .get_all("strict-transport-security")
            .iter()
            .map(|v| v.to_str().unwrap().to_string())
            .collect();
        all.join(" and ")
    };
    let ours = "max-age=15552000; includeSubDomains";
    for (path, want) in [
        ("/", ours),
        ("/v1/models", ours),
        ("/key/list", ours),
        ("/nothing", ours),
        ("/web/x", ours),
        ("/web/own", "max-age=1"),
    ] {
        assert_eq!(said(path).await, want, "{path}");
    }
    // In plain text it means nothing.
    for path in ["/", "/v1/models", "/nothing"] {
        let answer = crate::kit::client::ask(&gateway, "GET", path, &[], "").await;
        assert_eq!(answer.head.header("strict-transport-security"), None, "{path}");
    }
}

#[tokio::test]
async fn litellms_variables_give_the_main_listener_tls() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let leaf = authority.leaf(&["llm.example.com"]);
    files.leaf("llm", &leaf);
    let cert = files.path("llm.pem").to_str().unwrap().to_string();
    let key = files.path("llm.key").to_str().unwrap().to_string();
    let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let text = Setup::new()
        .setting("listeners", json!([{"address": at.to_string()}]))
        .config();
    let data = files.path("data");
    let half = [("SSL_CERTFILE_PATH", &cert[..])];
    let output = run(&files, &text, &data, &["serve"], &half).await;
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("--ssl_keyfile_path"), "{}", said(&output));

    let env = [("SSL_CERTFILE_PATH", &cert[..]), ("SSL_KEYFILE_PATH", &key[..])];
    let owned: Vec<(String, String)> = env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let config_file = files.put("config.yaml", &text);
    let mut child = spawn(files.0.path(), &["-c".into(), config_file], &owned);
    let config = Arc::new(config(authority.roots(), &[]));
    until("it is up", async || {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        alive(at, "llm.example.com", &config).await == Ok(200)
    })
    .await;
    let output = run(&files, &text, &data, &["healthcheck"], &env).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let output = run(&files, &text, &data, &["tls", "status"], &env).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        said(&output).contains("llm.example.com") && said(&output).contains("yes"),
        "{}",
        said(&output)
    );
    child.kill().unwrap();
    child.wait().unwrap();
}
