//! Reads `services:` and `hosts:` of our own section. The comments on the fields are the user's manual. What
//! only shows beside the lanes is checked in `rules`; choosing a backend is `crate::proxy::services`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fields::Fields;
use super::node::{Node, Value};
use super::own::{Driver, Timeouts};
use super::pass_through::{headers, route_path};
use super::secret::Secret;
use super::section::host;
use super::text::{base_url, shown};
use super::types::Span;

/// Most services, and most backends of one.
const MOST: usize = 1_000;
const MOST_BACKENDS: usize = 64;
const MOST_WEIGHT: u64 = 1_000;
const MOST_RETRIES: u64 = 10;

/// An ordinary web application behind the gateway: some backends that are all the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// What lanes call it.
    pub name: String,
    /// Where it runs: `http://host:port`, `https://host`, or `h2c://host:port` for HTTP/2 without TLS (gRPC);
    /// each with an optional base path. As a text, or `{url, weight}`.
    pub backends: Vec<Backend>,
    /// `weighted` (round robin by weight) or `least_connections` (the fewest requests in flight, by weight).
    /// Default: weighted.
    pub strategy: Strategy,
    /// Asks each backend now and then whether it is well. Default: nobody asks; a backend that cannot be
    /// connected to is left out for ten seconds all the same.
    pub health_check: Option<HealthCheck>,
    pub timeouts: ServiceTimeouts,
    /// Largest body of a request, in bytes; a larger one gets 413. Default: any.
    pub request_body_bytes: Option<u64>,
    /// Whether backends see the host that the client asked for, or their own. Default: true.
    pub pass_host: bool,
    /// Headers towards the backends.
    pub request_headers: HeaderChanges,
    /// Headers towards the client.
    pub response_headers: HeaderChanges,
    /// How many further backends are tried when one cannot be connected to; nothing has been sent then.
    /// Default: as many as there are others, 3 at the most.
    pub retries: Option<u32>,
    /// Certificates of the authorities (PEM) that backends' certificates have to come from. Relative paths
    /// start at the config file. Default: the system's.
    pub ca: Option<PathBuf>,
    /// Whether backends' certificates are looked at. Default: true.
    pub verify: bool,
    /// Where its name stands in the file.
    pub at: Span,
}

/// One place where a service runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Without a slash at the end; `h2c://` is written `http://` here.
    pub url: String,
    /// HTTP/2 with prior knowledge.
    pub h2c: bool,
    /// Its share of the requests, from 1 to 1000; 0 = none as long as another one is there. Default: 1.
    pub weight: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    #[default]
    Weighted,
    LeastConnections,
}

impl Strategy {
    pub fn as_str(self) -> &'static str {
        match self {
            Strategy::Weighted => "weighted",
            Strategy::LeastConnections => "least_connections",
        }
    }
}

/// How a service's backends are looked after: one answer decides, in both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked with GET.
    pub path: String,
    /// Default: 30s.
    pub interval: Duration,
    /// How long the head of the answer may take. Default: 5s.
    pub timeout: Duration,
    /// The status of a backend that is well. Default: any from 200 to 399.
    pub status: Option<u16>,
    /// The host that is asked for. Default: the backend's own.
    pub host: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTimeouts {
    /// Opening a connection, TLS included. Default: `tollkeeper.timeouts.connect`.
    pub connect: Duration,
    /// From the request sent to the answer's head, and the longest silence within an answer. Default:
    /// `tollkeeper.timeouts.first_byte`.
    pub first_byte: Duration,
    /// The longest silence of a WebSocket, in each direction. Default: 1h.
    pub idle: Duration,
    /// The whole exchange, a WebSocket's included; looked at with each piece that flows. Default: for ever.
    pub total: Option<Duration>,
}

/// First what is removed, then what is set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderChanges {
    pub set: Vec<(String, Secret)>,
    /// Lower case.
    pub remove: Vec<String>,
}

/// On which hosts the gateway's own lanes answer. An empty list: on every host. This machine itself, when
/// it asks for `localhost` or a loopback address, reaches all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    /// The model API, and the pages at `/`.
    pub api: Vec<String>,
    /// The management API.
    pub admin: Vec<String>,
    pub health: Vec<String>,
    pub metrics: Vec<String>,
}

impl Hosts {
    /// Every name in here.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        [&self.api, &self.admin, &self.health, &self.metrics]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }
}

/// What a host gets that no lane and no setting names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownHosts {
    /// Whatever lanes without hosts have there.
    Serve,
    /// 404, or 421 where a TLS connection was made for another name.
    Refuse,
}

/// The mapping `services`. Relative paths start at `dir`.
pub(super) fn services(above: &Fields<'_>, timeouts: &Timeouts, dir: &Path) -> Vec<Service> {
    let Some(all) = above.child("services") else {
        return Vec::new();
    };
    if all.all().len() > MOST
        && let Some(entry) = above.entry("services")
    {
        let message = format!("`services` holds more than {MOST}");
        drop(all.error("too-large", message, entry.key_at));
    }
    let services = all.all().iter().take(MOST);
    services
        .filter_map(|entry| {
            let fields = Fields::open(&entry.value, all.notes, all.below(&entry.key))?;
            service(&entry.key, entry.key_at, &fields, timeouts, dir)
        })
        .collect()
}

fn service(name: &str, at: Span, fields: &Fields<'_>, common: &Timeouts, dir: &Path) -> Option<Service> {
    let backends = backends(fields, at);
    let strategies = [
        ("weighted", Strategy::Weighted),
        ("least_connections", Strategy::LeastConnections),
    ];
    let strategy = fields.choice("strategy", &strategies).unwrap_or_default();
    let health_check = fields.child("health_check").and_then(|check| {
        let entry = fields.entry("health_check")?;
        health(&check, entry.key_at)
    });
    let mut timeouts = ServiceTimeouts {
        connect: common.connect,
        first_byte: common.first_byte,
        idle: Duration::from_secs(3_600),
        total: None,
    };
    if let Some(said) = fields.child("timeouts") {
        let time = |key| said.some_time(key);
        timeouts.connect = time("connect").unwrap_or(timeouts.connect);
        timeouts.first_byte = time("first_byte").unwrap_or(timeouts.first_byte);
        timeouts.idle = time("idle").unwrap_or(timeouts.idle);
        timeouts.total = time("total");
        said.refuse_rest();
    }
    let (mut request_headers, mut response_headers) = Default::default();
    if let Some(said) = fields.child("headers") {
        request_headers = changes(&said, "request");
        response_headers = changes(&said, "response");
        said.refuse_rest();
    }
    let retries = fields.count("retries");
    if retries.is_some_and(|n| n > MOST_RETRIES)
        && let Some(entry) = fields.entry("retries")
    {
        let message = format!("`retries` must be from 0 to {MOST_RETRIES}");
        drop(fields.error("number", message, entry.value.at));
    }
    if fields.flag("sticky") == Some(true)
        && let Some(entry) = fields.entry("sticky")
    {
        let draft = fields.error("sticky", "`sticky` is not offered", entry.key_at);
        drop(draft.help("keep sessions where all backends see them, or use one backend"));
    }
    let service = Service {
        name: name.to_owned(),
        backends: Vec::new(),
        strategy,
        health_check,
        timeouts,
        request_body_bytes: fields.bytes("request_body_bytes"),
        pass_host: fields.flag("pass_host").unwrap_or(true),
        request_headers,
        response_headers,
        retries: retries.map(|n| n.min(MOST_RETRIES) as u32),
        ca: fields.text("ca").map(|file| dir.join(file)),
        verify: fields.flag("verify").unwrap_or(true),
        at,
    };
    fields.refuse_rest();
    Some(Service {
        backends: backends?,
        ..service
    })
}

fn backends(fields: &Fields<'_>, at: Span) -> Option<Vec<Backend>> {
    let Some(entry) = fields.entry("backends") else {
        let draft = fields.error("missing", "`backends` is missing", at);
        drop(draft.help("for example `backends: [http://host:3000]`"));
        return None;
    };
    let items = match &entry.value.value {
        Value::Scalar(_) => std::slice::from_ref(&entry.value),
        _ => fields.list("backends")?,
    };
    if items.is_empty() || items.len() > MOST_BACKENDS {
        let message = format!("`backends` must hold 1 to {MOST_BACKENDS} addresses");
        drop(fields.error("number", message, entry.key_at));
        return None;
    }
    let all: Vec<Backend> = items
        .iter()
        .enumerate()
        .filter_map(|(i, item)| backend(item, i, fields))
        .collect();
    if all.len() == items.len() && all.iter().all(|b| b.weight == 0) {
        let draft = fields.error("weight", "every backend has the weight 0", entry.key_at);
        drop(draft.help("give at least one of them a weight above 0"));
    }
    Some(all)
}

fn backend(item: &Node, index: usize, above: &Fields<'_>) -> Option<Backend> {
    let made = |(url, h2c), weight| Backend { url, h2c, weight };
    if let Some(scalar) = item.scalar().filter(|s| !s.is_null()) {
        return match backend_url(&scalar.text) {
            Ok(url) => Some(made(url, 1)),
            Err(why) => {
                let message = format!("a backend is not usable: \"{}\"", shown(&scalar.text));
                drop(above.error("url", message, item.at).label(why));
                None
            }
        };
    }
    let fields = Fields::open(item, above.notes, above.below(&format!("backends[{index}]")))?;
    let url = fields.parsed("url", "url", backend_url);
    if !fields.all().iter().any(|e| e.key == "url") {
        let draft = fields.error("missing", "`url` is missing", item.at);
        drop(draft.help("for example `{url: http://host:3000, weight: 3}`"));
    }
    let weight = fields.count("weight").unwrap_or(1);
    if weight > MOST_WEIGHT
        && let Some(entry) = fields.entry("weight")
    {
        let message = format!("`weight` must be from 0 to {MOST_WEIGHT}");
        drop(fields.error("number", message, entry.value.at));
    }
    fields.refuse_rest();
    Some(made(url?, weight.min(MOST_WEIGHT) as u32))
}

/// The address and whether it is HTTP/2 without TLS.
fn backend_url(text: &str) -> Result<(String, bool), String> {
    let plain = text.trim().strip_prefix("h2c://");
    let url = match plain {
        Some(rest) => base_url(&format!("http://{rest}"))?,
        None => base_url(text).map_err(|why| match text.contains("://") {
            true if why.starts_with("only") => "only http://, https:// and h2c:// are spoken",
            _ => why,
        })?,
    };
    if url.contains('?') {
        return Err("a backend's address has no query".into());
    }
    Ok((url, plain.is_some()))
}

fn health(fields: &Fields<'_>, at: Span) -> Option<HealthCheck> {
    let path = fields.parsed("path", "path", |text| {
        let uri: Result<http::uri::PathAndQuery, _> = text.parse();
        match uri {
            Ok(uri) if text.starts_with('/') => Ok(uri.as_str().to_owned()),
            _ => Err("a path starts with `/`".into()),
        }
    });
    if !fields.all().iter().any(|e| e.key == "path") {
        let draft = fields.error("missing", "`path` is missing", at);
        drop(draft.help("for example `path: /health`"));
    }
    let interval = fields.some_time("interval").unwrap_or(Duration::from_secs(30));
    let timeout = fields.some_time("timeout").unwrap_or(Duration::from_secs(5));
    let status = fields.count("status");
    if status.is_some_and(|s| !(100..=599).contains(&s))
        && let Some(entry) = fields.entry("status")
    {
        drop(fields.error("number", "`status` must be from 100 to 599", entry.value.at));
    }
    let host = fields.parsed("host", "host", |text| {
        let authority: Result<http::uri::Authority, _> = text.parse();
        match authority {
            Ok(a) if !a.as_str().contains('@') => Ok(a.as_str().to_owned()),
            _ => Err("a host is a name, or a name and a port".into()),
        }
    });
    fields.refuse_rest();
    Some(HealthCheck {
        path: path?,
        interval: interval.max(Duration::from_millis(50)),
        timeout,
        status: status.and_then(|s| u16::try_from(s).ok()),
        host,
    })
}

fn changes(above: &Fields<'_>, key: &'static str) -> HeaderChanges {
    let Some(fields) = above.child(key) else {
        return HeaderChanges::default();
    };
    let name = |text: &str| match http::HeaderName::try_from(text) {
        Ok(name) if is_the_drivers(name.as_str()) => {
            Err("the gateway itself says how a message is framed and which way it came".into())
        }
        Ok(name) => Ok(name.as_str().to_owned()),
        Err(_) => Err("this is no name that a header can have".into()),
    };
    let remove = fields.parsed_list("remove", "header", name).unwrap_or_default();
    let set = headers(&fields, "set");
    if let (Some((bad, _)), Some(entry)) = (
        set.iter().find(|(name, _)| is_the_drivers(name)),
        fields.entry("set"),
    ) {
        let message = format!("the header \"{bad}\" cannot be set: it says how a message is framed");
        drop(fields.error("header", message, entry.key_at));
    }
    fields.refuse_rest();
    HeaderChanges { set, remove }
}

fn is_the_drivers(name: &str) -> bool {
    matches!(
        name,
        "connection" | "content-length" | "transfer-encoding" | "upgrade" | "te" | "trailer" | "keep-alive"
    )
}

/// The mapping `hosts`.
pub(super) fn hosts(above: &Fields<'_>) -> Hosts {
    let Some(fields) = above.child("hosts") else {
        return Hosts::default();
    };
    let list = |key| fields.parsed_list(key, "host", host).unwrap_or_default();
    let hosts = Hosts {
        api: list("api"),
        admin: list("admin"),
        health: list("health"),
        metrics: list("metrics"),
    };
    fields.refuse_rest();
    hosts
}

/// What a lane says of the way to its target or service.
pub(super) struct Way {
    pub service: Option<String>,
    pub methods: Vec<String>,
    pub strip_prefix: Vec<String>,
    pub add_prefix: Option<String>,
    pub priority: i64,
}

/// Reads it. Only a stream lane has one, but for the priority.
pub(super) fn way(fields: &Fields<'_>, driver: Option<Driver>) -> Way {
    let way = Way {
        service: fields.text("service"),
        methods: fields
            .parsed_list("methods", "choice", |text| {
                let method = text.to_ascii_uppercase();
                match http::Method::from_bytes(method.as_bytes()) {
                    Ok(m) if m != http::Method::CONNECT => Ok(method),
                    _ => Err("a method is GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS or the like".into()),
                }
            })
            .unwrap_or_default(),
        strip_prefix: fields
            .parsed_list("strip_prefix", "path", prefix)
            .unwrap_or_default(),
        add_prefix: fields.parsed("add_prefix", "path", prefix),
        priority: fields.integer("priority").unwrap_or(0),
    };
    if matches!(driver, Some(Driver::Call | Driver::Admin)) {
        for key in ["service", "methods", "strip_prefix", "add_prefix"] {
            if let Some(entry) = fields.entry(key) {
                drop(fields.error(key, format!("only a stream lane has `{key}`"), entry.key_at));
            }
        }
    }
    way
}

fn prefix(text: &str) -> Result<String, String> {
    match route_path(text)?.as_str() {
        "/" => Err("`/` alone is no prefix".into()),
        path if path.contains('*') => Err("a prefix holds no `*`".into()),
        path => Ok(path.to_owned()),
    }
}
