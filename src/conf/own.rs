//! Our own section of the config, the top-level key `tollkeeper:`.
//!
//! The comments on the fields are the user's manual. Everything has a default, and a key that is
//! not listed here is an error.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::secret::Secret;
use super::services::{Hosts, Service, UnknownHosts};
use super::tracing::Tracing;
use super::types::Span;
use super::watch::Watch;

/// The section `tollkeeper:`.
#[derive(Debug, Clone, PartialEq)]
pub struct Own {
    /// Where clients connect. Default: `0.0.0.0:4000` with a config file, as LiteLLM does;
    /// `127.0.0.1:4000`, which only this machine can reach, without one.
    pub listeners: Vec<Listener>,
    /// Certificates, and whom listeners with `tls` speak to.
    pub tls: Tls,
    /// Where the embedded database, the ledger's spool and the generated master key live. Relative
    /// paths start at the config file. Default: `$TOLLKEEPER_DATA_DIR`, else
    /// `$XDG_DATA_HOME/tollkeeper`, else `~/.local/share/tollkeeper`, else `/var/lib/tollkeeper`.
    pub data_dir: PathBuf,
    /// Networks whose peers count as internal: lanes with `auth: internal` and `/metrics` let them
    /// in without a key. Judged on the TCP peer, never on a header. Default: loopback, RFC 1918
    /// and unique-local addresses.
    pub internal_networks: Vec<IpNet>,
    /// Proxies in front of us whose `X-Forwarded-*` headers, and PROXY headers, are believed. Default: none.
    pub trusted_proxies: Vec<IpNet>,
    /// How much of anything is accepted.
    pub limits: Limits,
    /// How fast one client may ask, before anything else is known of it. Default: as fast as it likes.
    pub rate_limit: Option<RateLimit>,
    /// How long anything may take.
    pub timeouts: Timeouts,
    /// What is logged, and how it looks.
    pub log: Log,
    /// Which web pages may call from a browser.
    pub cors: Cors,
    /// The Prometheus endpoint.
    pub metrics: Metrics,
    /// Ordinary web applications behind us, by name; lanes lead to them.
    pub services: Vec<Service>,
    /// On which hosts the gateway's own lanes answer. Default: on every host.
    pub hosts: Hosts,
    /// What a host gets that nothing here names: `serve` or `refuse`. Default: refuse where `hosts` names
    /// any, else serve.
    pub unknown_hosts: UnknownHosts,
    /// Further lanes, or built-in ones under their own name to replace them.
    pub lanes: Vec<Lane>,
    /// The record of every call on its way to the database.
    pub ledger: Ledger,
    /// Checks of deployments, and who hears of what goes wrong.
    pub watch: Watch,
    /// Who is told of calls: Langfuse, OpenTelemetry.
    pub tracing: Tracing,
}

/// One address that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// IP address and port, such as `0.0.0.0:4000` or `[::]:4000`.
    pub address: SocketAddr,
    /// `tls: true` takes what the section `tls` says; a mapping may say `min_version`, `client_ca` and
    /// `client_auth` differently for this listener. Default: plain HTTP.
    pub tls: Option<Handshake>,
    /// Whether HTTP/2 is offered: by ALPN with TLS, with prior knowledge without. HTTP/1.1 always is.
    /// Default: true.
    pub h2: bool,
    /// Sends browsers that open a page here on to the first TLS listener. Calls of the API are answered
    /// here: many clients take a redirect for a failure. Only without TLS. Default: false.
    pub redirect_https: bool,
    /// Each connection begins with a PROXY header, version 1 or 2, and comes from a peer in
    /// `trusted_proxies`; any other is closed. The address in the header is the client's from then on.
    /// Default: false.
    pub proxy_protocol: bool,
}

impl Listener {
    /// Plain HTTP at `address`.
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            tls: None,
            h2: true,
            redirect_https: false,
            proxy_protocol: false,
        }
    }
}

/// What listeners with TLS show, and whom they speak to. Files are read again when they change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The certificates. Each is shown to clients that ask for one of its names; a name itself is stronger
    /// than a wildcard, and among equals the first in the list.
    pub certificates: Vec<CertificateFiles>,
    /// Names for which we make certificates ourselves, signed by an authority of our own that is made
    /// once and kept in `data_dir`: `llm.home.arpa`, `*.local`, `192.168.1.5`. Clients have to be told to
    /// trust it: `tollkeeper tls ca`.
    pub local: Vec<LocalHost>,
    /// Certificates that an authority gives us by ACME; each entry is one certificate. They come after
    /// those in `certificates`.
    pub acme: Vec<Acme>,
    /// What a client gets that asks for a name we have no certificate for. Default: first.
    pub unknown_names: UnknownNames,
    /// For every listener with `tls: true`.
    pub handshake: Handshake,
    /// What browsers are told about coming by TLS alone; None: nothing.
    pub hsts: Option<Hsts>,
}

/// The header `Strict-Transport-Security`, of answers over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hsts {
    /// For how long a browser keeps to it; zero makes it forget.
    pub max_age: Duration,
    /// It is said of all names below as well. Default: false.
    pub include_subdomains: bool,
    /// Browsers may put it on the list that they are delivered with. Default: false.
    pub preload: bool,
}

impl Hsts {
    /// The header's value.
    pub fn value(&self) -> String {
        let subdomains = if self.include_subdomains {
            "; includeSubDomains"
        } else {
            ""
        };
        let preload = if self.preload { "; preload" } else { "" };
        format!("max-age={}{subdomains}{preload}", self.max_age.as_secs())
    }
}

/// A certificate and its key, both PEM. Relative paths start at the config file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CertificateFiles {
    /// The server's own certificate first, then those between it and its authority's.
    pub cert: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
}

/// A certificate that an authority such as Let's Encrypt gives us, and gives anew when two thirds of its
/// life are over. Whoever writes an entry agrees to the authority's terms: `terms: agreed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// The names of the certificate, such as `llm.example.com`, in lower case. 100 at the most; wildcards
    /// are not possible.
    pub hosts: Vec<String>,
    /// Where the authority may write when something is wrong. Default: nowhere.
    pub email: Option<String>,
    /// The authority's directory. Default: Let's Encrypt; with `staging: true` its staging, whose
    /// certificates nobody trusts and which is patient with attempts.
    pub directory: String,
    /// Certificates (PEM) by which the directory's own is judged: for an authority in the local network.
    /// Default: the system's.
    pub ca: Option<PathBuf>,
    /// How the authority sees that a name is ours. Default: `http-01` with a listener on port 80 or one
    /// with `redirect_https`, else `tls-alpn-01`.
    pub challenge: Option<AcmeChallenge>,
    /// `{id: …, key: …}`, for authorities that want to know whose account it is.
    pub external_account: Option<ExternalAccount>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// The authority asks for a file on port 80 of the name.
    Http01,
    /// The authority makes a handshake on port 443 of the name.
    TlsAlpn01,
}

/// An account at the authority that was opened beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    pub id: String,
    /// As the authority shows it: base64 in its form for URLs.
    pub key: Secret,
}

/// A name or address of this machine in the local network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LocalHost {
    /// `llm.home.arpa`, in lower case.
    Name(String),
    /// `*.local`: each name with one label more than this, here `local`.
    Below(String),
    Address(IpAddr),
}

/// How a client is let in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handshake {
    /// The oldest version of TLS that is spoken, `"1.2"` or `"1.3"`. Default: 1.2.
    pub min_version: TlsVersion,
    /// Certificates of the authorities (PEM) that clients' certificates have to come from.
    pub client_ca: Option<PathBuf>,
    /// `none`, `optional` (a certificate that is shown has to be good) or `required`. Default: required
    /// with a `client_ca`, none without.
    pub client_auth: ClientAuth,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsVersion {
    #[default]
    V1_2,
    V1_3,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientAuth {
    #[default]
    None,
    Optional,
    Required,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnknownNames {
    /// `first`: the first certificate. The client sees that it is for another name and decides.
    #[default]
    First,
    /// `refuse`: no handshake, so that nobody learns a name from us who does not know it.
    Refuse,
}

/// How much is accepted. Sizes are bytes and may be written `32MiB`, `64KiB`, `100MB`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest JSON body, in bytes. Default: 32MiB.
    pub json_body: u64,
    /// Largest multipart body (audio, images), in bytes. Default: 100MiB.
    pub multipart_body: u64,
    /// Largest request head, in bytes. Default: 64KiB.
    pub header_bytes: u64,
    /// Connections of all clients together. Fewer where the process may not have that many files open.
    /// Default: 20000.
    pub connections: u64,
    /// Connections of one client address (IPv6: of one /64). Those of `trusted_proxies` are not counted, but
    /// whom they announce by the PROXY protocol. Default: 256.
    pub connections_per_address: u64,
}

/// Requests per source, with the semantics of Traefik's `rateLimit`: a bucket of `burst` requests that
/// gains `average` per `period`. Health checks and metrics are not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests per `period`.
    pub average: u32,
    /// Default: 1s.
    pub period: Duration,
    /// Requests at once. Default: 1, as Traefik's.
    pub burst: u32,
    pub source: RateSource,
}

/// Who counts as one source. IPv6 addresses count by their /64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateSource {
    /// `client`: the TCP peer, or what a proxy in `trusted_proxies` says of it. The default.
    Client,
    /// `peer`: the TCP peer, whatever headers say.
    Peer,
    /// `forwarded: 1`: the n-th address of `X-Forwarded-For` from the right, whoever wrote it; a shorter
    /// list is one source together with all such.
    Forwarded(u32),
    /// `header: x-tenant`: the value of that header; without it, the client.
    Header(String),
}

/// How long things may take. Written `500ms`, `30s`, `10m`, `1h`; a bare number is seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// A client's TLS handshake; and the whole head of a request, from its first byte, or from the start of
    /// a new connection. Default: 20s.
    pub header: Duration,
    /// A client's whole body. Also read from `limits.body_timeout`. Default: 60s.
    pub body: Duration,
    /// Silence allowed between two pieces of a client's body. Default: 30s.
    pub body_idle: Duration,
    /// How long a connection may wait for its next request. Default: 75s.
    pub keepalive: Duration,
    /// How long a client may take nothing of what is written to it. Default: 2m.
    pub write: Duration,
    /// Opening a connection to an upstream, TLS included. Default: 5s.
    pub connect: Duration,
    /// From the request sent to the upstream's first byte; a slow model thinks in here.
    /// Default: 10m. A deployment's `timeout` is more specific and wins.
    pub first_byte: Duration,
    /// Silence allowed between two chunks of an answer. Default: 5m.
    pub stream_idle: Duration,
    /// The whole call, retries included. Default: 100m, as LiteLLM's 6000 seconds.
    pub total: Duration,
    /// After SIGTERM, or when another process has taken over, how long calls in flight may go on.
    /// Default: 60s.
    pub drain: Duration,
    /// After SIGTERM, how long new connections are still taken while readiness says no, so that a load
    /// balancer can notice before it meets a closed door. Default: 0.
    pub shutdown_delay: Duration,
}

/// Logging goes to stderr. Changed without a restart; `tollkeeper log` changes the level until the next change
/// here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace` or `off`. `RUST_LOG` wins. Default: info.
    pub level: log::LevelFilter,
    /// `text`, `json`, or `auto`: text on a terminal, JSON lines otherwise. Default: auto.
    pub format: LogFormat,
    /// Which requests leave a line: `all`, `errors`, `off`. Default: all.
    pub requests: LogRequests,
    /// Lines of requests in a second, of those that went well and of those that failed each; what is beyond is
    /// counted and told in one line. Default: 200.
    pub most_per_second: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Auto,
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRequests {
    All,
    /// Those that were refused, failed or broke off.
    Errors,
    Off,
}

/// Cross-origin calls from browsers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Origins whose pages may call, such as `https://chat.example.com`; `"*"` allows every one,
    /// without cookies. Default: `["*"]`, since a call needs a key anyway.
    pub allow_origins: Vec<String>,
}

/// `/metrics`, in Prometheus' text format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Serve the endpoint at all. Default: true.
    pub enabled: bool,
    /// Where it is served. Default: `/metrics`.
    pub path: String,
    /// Who may read it. Default: internal.
    pub auth: LaneAuth,
    /// Networks and addresses that need no key with `auth: internal`, in the place of
    /// `internal_networks`: `[10.0.3.7]`. Default: those.
    pub allow: Vec<IpNet>,
    /// Count under LiteLLM's own names as well, with the key's and the team's labels. Default: true where
    /// `litellm_settings.callbacks` names `prometheus`.
    pub litellm_names: Option<bool>,
}

/// A lane binds hosts and paths to a driver and a chain of filters. The highest priority wins, then the
/// most specific host, then the most specific path, whatever the order in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Lane {
    /// Its name in logs and metrics. A built-in lane's name replaces that lane.
    pub name: String,
    /// Hosts it answers for, such as `llm.example.com` or `*.example.com`. Default: every host.
    pub hosts: Vec<String>,
    /// Paths, each exact (`/health`) or with everything below it (`/tts/*`).
    pub paths: Vec<String>,
    /// `call`: the body is read and a model is chosen. `stream`: bytes pass untouched to `target`.
    /// `admin`: our own API.
    pub driver: Driver,
    /// Where `stream` sends: `http://host:port` with an optional base path.
    pub target: Option<String>,
    /// The service that `stream` sends to, in the place of a `target`.
    pub service: Option<String>,
    /// Methods it takes, for `stream`. Default: all.
    pub methods: Vec<String>,
    /// The first of these that the path begins with is taken off it, for `stream`.
    pub strip_prefix: Vec<String>,
    /// Put before the path, after that. For `stream`.
    pub add_prefix: Option<String>,
    /// A higher one is looked at before every lower one; negative ones after the built-in lanes. Default: 0.
    pub priority: i64,
    /// The chain in order: a filter's name, or a name with settings. Default: the driver's own.
    pub filters: Option<Vec<FilterUse>>,
    /// Who may come in. Default: required.
    pub auth: LaneAuth,
    /// Where it stands in the file.
    pub at: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Call,
    Stream,
    Admin,
}

/// Who may use a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneAuth {
    /// A key, always.
    Required,
    /// No key for peers inside `internal_networks`, a key for everyone else.
    Internal,
    /// Nobody needs a key.
    Open,
}

/// One filter in a lane's chain.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterUse {
    /// Its name in the registry.
    pub name: String,
    /// What the file says below the name, `null` when nothing. The filter itself judges it.
    pub settings: serde_json::Value,
    /// Where the name stands in the file.
    pub at: Span,
}

/// How records travel: spool file first, then the database in batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// Rows written to the database at once. Default: 1000.
    pub batch: u64,
    /// Longest time a record waits for its batch to fill. Default: 1s.
    pub flush_every: Duration,
    /// How long rows are kept in the database, in whole days such as `400d`. Daily sums and what keys,
    /// users and teams have spent stay for ever. Default: for ever.
    pub keep: Option<Duration>,
}

impl Default for Own {
    fn default() -> Self {
        Self {
            listeners: Vec::new(),
            tls: Tls::default(),
            data_dir: PathBuf::from("/var/lib/tollkeeper"),
            internal_networks: internal_networks(),
            trusted_proxies: Vec::new(),
            limits: Limits::default(),
            rate_limit: None,
            timeouts: Timeouts::default(),
            log: Log::default(),
            cors: Cors {
                allow_origins: vec!["*".into()],
            },
            metrics: Metrics {
                enabled: true,
                path: "/metrics".into(),
                auth: LaneAuth::Internal,
                allow: Vec::new(),
                litellm_names: None,
            },
            services: Vec::new(),
            hosts: Hosts::default(),
            unknown_hosts: UnknownHosts::Serve,
            lanes: Vec::new(),
            ledger: Ledger {
                batch: 1000,
                flush_every: Duration::from_secs(1),
                keep: None,
            },
            watch: Watch::default(),
            tracing: Tracing::default(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: log::LevelFilter::Info,
            format: LogFormat::Auto,
            requests: LogRequests::All,
            most_per_second: 200,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            json_body: 32 << 20,
            multipart_body: 100 << 20,
            header_bytes: 64 << 10,
            connections: 20_000,
            connections_per_address: 256,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(20),
            body: Duration::from_secs(60),
            body_idle: Duration::from_secs(30),
            keepalive: Duration::from_secs(75),
            write: Duration::from_secs(120),
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(600),
            stream_idle: Duration::from_secs(300),
            total: Duration::from_secs(6000),
            drain: Duration::from_secs(60),
            shutdown_delay: Duration::ZERO,
        }
    }
}

/// Loopback, RFC 1918 and unique-local: the peers that count as inside when the file is silent.
fn internal_networks() -> Vec<IpNet> {
    [
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",
    ]
    .iter()
    .filter_map(|net| net.parse().ok())
    .collect()
}
