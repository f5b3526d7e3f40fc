//! Certificates by ACME, from Debian's `pebble`: it looks at the names for real, through a DNS server that
//! says 127.0.0.1 of each. First certificates, renewal under load, restarts, and authorities that refuse.

use crate::kit::client::{Conn, ask};
use crate::kit::gateway::{BINARY, Gateway, Setup, free_port};
use crate::kit::process;
use crate::kit::{away_from_midnight, until, within};
use crate::tls::{Authority, Files, config, shake, shown};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The key of the external account that some authorities here want to see.
const MAC: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

/// A running authority, and the name server that it believes.
struct Pebble {
    names: Child,
    process: Option<Child>,
    dns: SocketAddr,
    files: Files,
    api: SocketAddr,
    management: SocketAddr,
    /// Who vouches for its own certificate.
    authority: Authority,
    /// Where it looks for names: HTTP-01, TLS-ALPN-01.
    http: SocketAddr,
    tls: SocketAddr,
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

impl Pebble {
    async fn start(more: Value) -> Pebble {
        let (files, authority) = (Files::new(), Authority::new("of the authority itself"));
        let own = files.leaf("pebble", &authority.leaf(&["localhost"]));
        files.put("ca.pem", &authority.pem());
        let [api, management, http, tls, dns, names] = [(); 6].map(|()| local());
        let mut said = json!({
            "listenAddress": api.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": own["cert"],
            "privateKey": own["key"],
            "httpPort": http.port(),
            "tlsPort": tls.port(),
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        });
        for (name, value) in more.as_object().unwrap() {
            said[name] = value.clone();
        }
        files.put("pebble.json", &json!({"pebble": said}).to_string());
        let names = process::spawn("pebble-challtestsrv", |c| {
            c.args([
                "-http01",
                "",
                "-https01",
                "",
                "-tlsalpn01",
                "",
                "-defaultIPv6",
                "",
            ])
            .args(["-dns01", &dns.to_string(), "-management", &names.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        });
        files.put("pebble.log", "");
        let mut pebble = Pebble {
            names,
            process: None,
            dns,
            files,
            api,
            management,
            authority,
            http,
            tls,
        };
        until("the name server listens", async || {
            tokio::net::TcpStream::connect(dns).await.is_ok()
        })
        .await;
        pebble.up().await;
        pebble
    }

    /// Starts it (again): it remembers nothing of what was before.
    async fn up(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        let log = std::fs::File::options()
            .append(true)
            .open(self.files.path("pebble.log"));
        let log = log.unwrap();
        self.process = Some(process::spawn("pebble", |c| {
            c.arg("-config")
                .arg(self.files.path("pebble.json"))
                .args(["-dnsserver", &self.dns.to_string()])
                .env("PEBBLE_VA_NOSLEEP", "1")
                .stdin(Stdio::null())
                .stderr(log.try_clone().unwrap())
                .stdout(log);
        }));
        for at in [self.api, self.management] {
            until("pebble listens", async || {
                tokio::net::TcpStream::connect(at).await.is_ok()
            })
            .await;
        }
    }

    /// What `tls.acme` has to say of it.
    fn entry(&self, hosts: &[&str], challenge: &str) -> Value {
        json!({
            "hosts": hosts,
            "terms": "agreed",
            "email": "ops@example.com",
            "directory": format!("https://localhost:{}/dir", self.api.port()),
            "ca": self.files.path("ca.pem"),
            "challenge": challenge,
        })
    }

    fn listeners(&self) -> Value {
        json!([
            {"address": "127.0.0.1:4000"},
            {"address": self.http.to_string(), "redirect_https": true},
            {"address": self.tls.to_string(), "tls": true},
        ])
    }

    fn setup(&self, acme: Value) -> Setup {
        Setup::new()
            .setting("listeners", self.listeners())
            .setting("tls", json!({"acme": acme}))
    }

    /// A client that trusts its certificates and nothing else.
    async fn client(&self) -> Arc<ClientConfig> {
        let trusts = Arc::new(config(self.authority.roots(), &["http/1.1"]));
        let mut stream = shake(self.management, "localhost", &trusts).await.unwrap();
        let question = "GET /roots/0 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(question.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = within("the root comes", stream.read_to_end(&mut answer)).await;
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&answer).unwrap())
            .unwrap();
        Arc::new(config(roots, &[]))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.files.path("pebble.log")).unwrap()
    }

    /// How many orders it has had.
    fn orders(&self) -> usize {
        self.log().matches("Added order").count()
    }

    /// How many orders it has fulfilled.
    fn issued(&self) -> usize {
        self.log().matches("Issued certificate serial").count()
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for process in self.process.iter_mut().chain([&mut self.names]) {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- pebble's log ---\n{}", self.log());
        }
    }
}

/// The certificate that a client accepts for a name, once there is one.
async fn accepted(at: SocketAddr, name: &str, client: &Arc<ClientConfig>) -> CertificateDer<'static> {
    let mut found = None;
    until(&format!("{name} has a certificate"), async || {
        found = shake(at, name, client).await.ok().map(|stream| shown(&stream));
        found.is_some()
    })
    .await;
    found.unwrap()
}

async fn status(gateway: &Gateway, more: &'static [&'static str]) -> Output {
    let mut command = Command::new(BINARY);
    let dir = gateway.data().parent().unwrap().to_path_buf();
    command
        .args(["tls", "status", "-c"])
        .arg(dir.join("config.yaml"))
        .args(more)
        .env_clear()
        .env("HOME", &dir)
        .env("TOLLKEEPER_DATA_DIR", gateway.data());
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    within("the command ends", running).await.unwrap()
}

/// The same for programs.
async fn rows(gateway: &Gateway) -> (Output, Vec<Value>) {
    let output = status(gateway, &["--json"]).await;
    let rows = serde_json::from_slice::<Value>(&output.stdout).unwrap();
    (output, rows.as_array().unwrap().clone())
}

#[tokio::test]
async fn http_01_brings_a_certificate_for_several_names() {
    let pebble = Pebble::start(json!({})).await;
    let entry = pebble.entry(&["llm.example.com", "UI.example.com"], "http-01");
    let gateway = pebble.setup(entry).start().await;
    let client = pebble.client().await;
    let first = accepted(pebble.tls, "llm.example.com", &client).await;
    assert_eq!(first, accepted(pebble.tls, "ui.example.com", &client).await);
    assert!(shake(pebble.tls, "other.example.com", &client).await.is_err());
    assert_eq!(pebble.orders(), 1);

    // Nothing of it can be read by others: certificate, record, account and lock. A record is put there anew
    // when the authority was asked for its wishes.
    until("four files are there", async || {
        let mut folders = vec![gateway.data().join("tls")];
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            let mode = |path: &std::path::Path| Some(path.metadata().ok()?.permissions().mode() & 0o777);
            assert_eq!(mode(&folder), Some(0o700), "{}", folder.display());
            for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                } else {
                    assert!(matches!(mode(&path), None | Some(0o600)), "{}", path.display());
                    files += 1;
                }
            }
        }
        files == 4
    })
    .await;

    let (output, rows) = rows(&gateway).await;
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(rows[0]["names"], "llm.example.com,ui.example.com");
    assert_eq!(
        (&rows[0]["served"], &rows[0]["error"]),
        (&json!(true), &Value::Null)
    );
    assert!(rows[0]["next_order"].is_string(), "{}", rows[0]);
    let table = String::from_utf8(status(&gateway, &[]).await.stdout).unwrap();
    assert!(table.contains("NEXT ORDER") && table.contains(" UTC"), "{table}");
    let metrics = ask(&gateway, "GET", "/metrics", &[], "").await.text();
    assert!(metrics.contains("tollkeeper_tls_certificate_expires_seconds{host=\"ui.example.com\"}"));
    // What the authority was shown is gone, and other paths there never were.
    let mut conn = Conn::open(pebble.http).await;
    let answer = conn.ask("GET", "/.well-known/acme-challenge/x", &[], b"").await;
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn tls_alpn_01_brings_a_certificate_and_disturbs_nobody() {
    let external = json!({"externalAccountBindingRequired": true, "externalAccountMACKeys": {"kid-1": MAC}});
    let pebble = Pebble::start(external).await;
    let mut entry = pebble.entry(&["llm.example.com", "ui.example.com"], "tls-alpn-01");
    entry["external_account"] = json!({"id": "kid-1", "key": MAC});
    // While the names are looked at, another name on the same port is served.
    let (authority, files) = (Authority::new("root"), Files::new());
    let leaf = files.leaf("own", &authority.leaf(&["own.example.com"]));
    let tls = json!({"acme": entry, "certificates": [leaf]});
    let setup = Setup::new().setting("listeners", pebble.listeners());
    // Held until the other name has been served while this one is asked for.
    let authoritys = pebble.process.as_ref().unwrap();
    process::signal(authoritys, "STOP");
    let _gateway = setup.setting("tls", tls).start().await;
    let own = Arc::new(config(authority.roots(), &["h2", "http/1.1"]));
    shake(pebble.tls, "own.example.com", &own).await.unwrap();
    process::signal(authoritys, "CONT");
    let client = pebble.client().await;
    until("the certificate is there", async || {
        let stream = shake(pebble.tls, "own.example.com", &own).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        shake(pebble.tls, "llm.example.com", &client).await.is_ok()
    })
    .await;
    accepted(pebble.tls, "ui.example.com", &client).await;
    assert_eq!(pebble.orders(), 1);
    // The authority's protocol is spoken while it looks, and not a moment longer.
    let asks = Arc::new(config(authority.roots(), &["acme-tls/1"]));
    let refused = shake(pebble.tls, "llm.example.com", &asks).await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
}

/// The authority says when, so that no certificate runs out while a busy machine takes its time.
#[tokio::test]
async fn a_renewal_fails_no_handshake() {
    let pebble = Pebble::start(json!({})).await;
    let wanting = Wanting::start(&pebble).await;
    let mut entry = pebble.entry(&["llm.example.com"], "http-01");
    entry["directory"] = format!("https://localhost:{}/dir", wanting.port).into();
    let gateway = pebble.setup(entry).start().await;
    let client = pebble.client().await;
    let first = accepted(pebble.tls, "llm.example.com", &client).await;
    let id = tollkeeper::tls::facts(&first).unwrap().renewal_id.unwrap();
    until("it was asked", async || wanting.asked(&id) == 1).await;
    let shakes = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (client, first) = (Arc::clone(&client), first.clone());
            let (shakes, at) = (Arc::clone(&shakes), pebble.tls);
            tokio::spawn(async move {
                let mut after = 0;
                // Some more with the new one, so that the swap lies in between for every client.
                while after < 10 {
                    let stream = shake(at, "llm.example.com", &client)
                        .await
                        .map_err(|e| e.to_string())?;
                    shakes.fetch_add(1, Ordering::Relaxed);
                    if shown(&stream) != first {
                        after += 1;
                    }
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    until("clients shake hands", async || shakes.load(Ordering::Relaxed) > 8).await;
    wanting.over.lock().unwrap().push(id);
    gateway.signal("HUP");
    for client in clients {
        within("the certificate is renewed", client)
            .await
            .unwrap()
            .unwrap();
    }
    assert!(shakes.load(Ordering::Relaxed) > 80);
    assert!(pebble.issued() >= 2, "{}", pebble.log());
    gateway.says("event=acme_certificate_got").await;
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_runs_out() {
    // Good for 24 s: renewed after 16.
    let pebble = Pebble::start(json!({"certificateValidityPeriod": 24})).await;
    let _gateway = pebble
        .setup(pebble.entry(&["llm.example.com"], "http-01"))
        .start()
        .await;
    let client = pebble.client().await;
    let first = accepted(pebble.tls, "llm.example.com", &client).await;
    until("there is another one", async || {
        // Where the machine stands still for too long, the first runs out before that.
        let shaken = shake(pebble.tls, "llm.example.com", &client).await;
        shaken.is_ok_and(|stream| shown(&stream) != first)
    })
    .await;
}

#[tokio::test]
async fn what_is_kept_is_shown_again_and_not_ordered_again() {
    let pebble = Pebble::start(json!({})).await;
    let first_entry = pebble.entry(&["llm.example.com"], "http-01");
    let mut gateway = pebble.setup(first_entry.clone()).start().await;
    let client = pebble.client().await;
    let first = accepted(pebble.tls, "llm.example.com", &client).await;
    gateway.stop().await;
    gateway.up().await;
    let stream = shake(pebble.tls, "llm.example.com", &client).await.unwrap();
    assert_eq!(shown(&stream), first, "it is there with the first handshake");
    // Entries are looked at in turn: when the second has its certificate, the first needed none.
    let mut second_entry = pebble.entry(&["ui.example.com"], "tls-alpn-01");
    second_entry["email"] = json!("new@example.com");
    gateway.rewrite(&pebble.setup(json!([first_entry, second_entry])).config());
    accepted(pebble.tls, "ui.example.com", &client).await;
    assert_eq!(
        shown(&shake(pebble.tls, "llm.example.com", &client).await.unwrap()),
        first
    );
    assert_eq!(pebble.orders(), 2, "one for each entry: {}", pebble.log());
    let log = pebble.log();
    let accounts = log.matches("accounts in memory").count();
    assert_eq!(accounts, 1, "one account for both: {log}");
    assert!(
        log.contains("POST /my-account/"),
        "it is told of the new address: {log}"
    );

    // One more name: the old certificate serves the old one until there is a new one for both.
    let more = json!([pebble.entry(&["llm.example.com", "more.example.com"], "http-01")]);
    gateway.rewrite(&pebble.setup(more).config());
    until("both names have it", async || {
        let old = shake(pebble.tls, "llm.example.com", &client).await;
        assert!(old.is_ok(), "llm.example.com is never without");
        shake(pebble.tls, "more.example.com", &client).await.is_ok()
    })
    .await;
    assert_eq!(pebble.orders(), 3);
}

#[tokio::test]
async fn an_authority_that_has_forgotten_the_account_gets_a_new_one() {
    let mut pebble = Pebble::start(json!({})).await;
    let gateway = pebble
        .setup(pebble.entry(&["llm.example.com"], "http-01"))
        .start()
        .await;
    accepted(pebble.tls, "llm.example.com", &pebble.client().await).await;
    pebble.up().await;
    let entry = pebble.entry(&["ui.example.com"], "http-01");
    gateway.rewrite(&pebble.setup(entry).config());
    accepted(pebble.tls, "ui.example.com", &pebble.client().await).await;
    gateway.says_times("event=acme_account_made", 2).await;
}

#[tokio::test]
async fn an_authority_that_is_away_takes_nothing_away() {
    let pebble = Pebble::start(json!({})).await;
    let good = pebble.entry(&["llm.example.com"], "http-01");
    let mut away = good.clone();
    away["directory"] = json!(format!("https://localhost:{}/dir", free_port()));
    let gateway = pebble.setup(away.clone()).start().await;
    let client = pebble.client().await;
    let failed = async |times: usize| gateway.says_times("event=acme_failed", times).await;
    failed(1).await;
    // No certificate: a clear end, and everything else is served.
    let refused = shake(pebble.tls, "llm.example.com", &client).await.unwrap_err();
    assert!(refused.to_string().contains("fatal alert"), "{refused}");
    assert_eq!(
        ask(&gateway, "GET", "/health/liveliness", &[], "").await.status(),
        200
    );
    let (output, rows) = rows(&gateway).await;
    assert_eq!(output.status.code(), Some(1));
    let error = rows[0]["error"].as_str().unwrap();
    assert!(
        error.contains("the last order failed") && error.contains("by https"),
        "{error}"
    );
    assert!(
        rows[0]["last_failure"].is_string() && rows[0]["served"] == false,
        "{}",
        rows[0]
    );

    gateway.rewrite(&pebble.setup(good).config());
    let first = accepted(pebble.tls, "llm.example.com", &client).await;
    // Away again: an order is due, since the certificate is another authority's, and fails.
    gateway.rewrite(&pebble.setup(away).config());
    failed(2).await;
    let stream = shake(pebble.tls, "llm.example.com", &client).await.unwrap();
    assert_eq!(shown(&stream), first);
    assert_eq!(pebble.orders(), 1);
    // One line for each failure, with what to do.
    let log = gateway.log();
    let lines: Vec<&str> = log.lines().filter(|l| l.contains("event=acme_failed")).collect();
    assert!(
        lines
            .iter()
            .all(|l| l.contains("next=") && l.contains("has to be reached")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn a_name_that_does_not_lead_here_is_told_with_what_to_do() {
    // It looks at a port where nobody is.
    let pebble =
        Pebble::start(json!({"httpPort": free_port(), "domainBlocklist": ["blocked.example.com"]})).await;
    let entries = json!([
        pebble.entry(&["llm.example.com"], "http-01"),
        pebble.entry(&["blocked.example.com"], "http-01"),
    ]);
    let gateway = pebble.setup(entries).start().await;
    gateway.says_times("event=acme_failed", 2).await;
    let log = gateway.log();
    let line = |name: &str| {
        let of = |l: &&str| l.contains("event=acme_failed") && l.contains(&format!("names={name}"));
        log.lines().find(of).unwrap().to_string()
    };
    let unreachable = line("llm.example.com");
    assert!(
        unreachable.contains("http://llm.example.com/.well-known/acme-challenge/"),
        "{unreachable}"
    );
    let blocked = line("blocked.example.com");
    assert!(blocked.contains("take it out of `hosts`"), "{blocked}");
}

#[tokio::test]
async fn what_the_listeners_cannot_do_is_refused_at_the_start() {
    for (listeners, challenge, want) in [
        (
            json!([{"address": "127.0.0.1:4443", "tls": true}]),
            "http-01",
            "needs a listener without TLS",
        ),
        (
            json!([{"address": "127.0.0.1:4080"}]),
            "http-01",
            "no listener has `tls: true`",
        ),
    ] {
        let files = Files::new();
        let entry = json!({"hosts": ["llm.example.com"], "terms": "agreed", "challenge": challenge});
        let own = json!({"listeners": listeners, "tls": {"acme": entry}});
        let text = json!({"model_list": [], "tollkeeper": own}).to_string();
        let data = files.path("data");
        for args in [&["check"][..], &["serve"]] {
            let output = crate::tls::run(&files, &text, &data, args, &[]).await;
            assert_eq!(output.status.code(), Some(78), "{}", crate::tls::said(&output));
            assert!(
                crate::tls::said(&output).contains(want),
                "{}",
                crate::tls::said(&output)
            );
        }
    }
}

/// An authority that says when it wants certificates renewed; for everything else it sends on to another one.
struct Wanting {
    port: u16,
    /// Windows that are over, by what certificates are called; all others are years away.
    over: Arc<Mutex<Vec<String>>>,
    /// What it was asked about.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Wanting {
    async fn start(pebble: &Pebble) -> Wanting {
        let trusts = Arc::new(config(pebble.authority.roots(), &["http/1.1"]));
        let mut stream = shake(pebble.api, "localhost", &trusts).await.unwrap();
        let port = pebble.api.port();
        let question = format!("GET /dir HTTP/1.1\r\nhost: localhost:{port}\r\nconnection: close\r\n\r\n");
        stream.write_all(question.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = within("the directory comes", stream.read_to_string(&mut answer)).await;
        let mut directory: Value = serde_json::from_str(&answer[answer.find('{').unwrap()..]).unwrap();

        let own = pebble
            .files
            .leaf("wanting", &pebble.authority.leaf(&["localhost"]));
        let read = |name: &str| std::fs::read(own[name].as_str().unwrap()).unwrap();
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(&read("cert")).unwrap()],
                PrivateKeyDer::from_pem_slice(&read("key")).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        directory["renewalInfo"] = format!("https://localhost:{port}/renewal").into();
        let over = Arc::<Mutex<Vec<String>>>::default();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let wanting = Wanting {
            port,
            over: Arc::clone(&over),
            asked: Arc::clone(&asked),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let (directory, over, asked) = (directory.clone(), Arc::clone(&over), Arc::clone(&asked));
                let answer = service_fn(move |request: Request<Incoming>| {
                    let path = request.uri().path().to_string();
                    let said = match path.strip_prefix("/renewal/") {
                        Some(id) => {
                            asked.lock().unwrap().push(id.to_string());
                            let year = if over.lock().unwrap().iter().any(|o| o == id) {
                                2001
                            } else {
                                2991
                            };
                            let on = |day: u8| format!("{year}-02-0{day}T00:00:00Z");
                            json!({
                                "suggestedWindow": {"start": on(1), "end": on(3)},
                                "explanationURL": "https://ca.example/why",
                            })
                        }
                        None => directory.clone(),
                    };
                    let answer = Response::builder().header("retry-after", "21600");
                    async move { Ok::<_, Infallible>(answer.body(said.to_string()).unwrap()) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        wanting
    }

    fn asked(&self, id: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|a| *a == id).count()
    }
}

#[tokio::test]
async fn an_authority_that_wants_a_renewal_gets_it_early_and_once() {
    let pebble = Pebble::start(json!({})).await;
    let wanting = Wanting::start(&pebble).await;
    let mut entry = pebble.entry(&["llm.example.com"], "http-01");
    entry["directory"] = format!("https://localhost:{}/dir", wanting.port).into();
    let gateway = pebble.setup(entry).start().await;
    let client = pebble.client().await;
    let first = accepted(pebble.tls, "llm.example.com", &client).await;
    let called = |der: &CertificateDer<'_>| tollkeeper::tls::facts(der).unwrap().renewal_id.unwrap();
    let id = called(&first);
    until("it was asked", async || wanting.asked(&id) == 1).await;
    assert_eq!(pebble.issued(), 1);

    // It takes its certificates back: SIGHUP looks at once, and otherwise it is as the authority says.
    wanting.over.lock().unwrap().push(id.clone());
    gateway.signal("HUP");
    let mut second = first.clone();
    until("there is another certificate", async || {
        second = accepted(pebble.tls, "llm.example.com", &client).await;
        second != first
    })
    .await;
    // Pebble knows no `replaces`, so that it was asked a second time without.
    assert_eq!((wanting.asked(&id), pebble.issued()), (2, 2));
    gateway.says("explanation=\\\"https://ca.example/why").await;

    // One that is never content is not asked for one after the other.
    let id = called(&second);
    until("it was asked of the new one", async || wanting.asked(&id) == 1).await;
    wanting.over.lock().unwrap().push(id.clone());
    away_from_midnight().await;
    gateway.signal("HUP");
    until("it was asked again", async || wanting.asked(&id) == 2).await;
    until("the next order is known", async || {
        let next = rows(&gateway).await.1[0]["next_order"].to_string();
        let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
        next.contains(&tomorrow.strftime("%Y-%m-%d").to_string())
    })
    .await;
    assert_eq!(pebble.issued(), 2);
}
