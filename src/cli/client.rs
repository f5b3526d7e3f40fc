//! Talks to a running gateway through its management API, and turns whatever goes wrong into a sentence
//! and an exit code. Where the gateway is and which key is used is found in [`super::reach`].

use super::show::clean;
use crate::conf::{EXIT_CONFIG, Secret};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Url};
use serde_json::Value;
use std::error::Error;
use std::time::Duration;

pub const EXIT_FAILED: i32 = 1;
pub const EXIT_USAGE: i32 = 2;
pub const EXIT_UNAVAILABLE: i32 = 69;

/// For a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// For a whole answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer that is read, in bytes.
const MOST: usize = 64 << 20;

/// Why a command ends without having done what it was asked.
#[derive(Debug)]
pub struct Failure {
    pub code: i32,
    /// What is told; empty = nothing.
    pub message: String,
}

impl Failure {
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Failure {
            code,
            message: message.into(),
        }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(EXIT_FAILED, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(EXIT_USAGE, message)
    }

    pub fn config(message: impl Into<String>) -> Self {
        Self::new(EXIT_CONFIG, message)
    }

    /// Who read our output has read enough: `| head`. Nothing is wrong.
    pub fn closed() -> Self {
        Self::new(0, "")
    }
}

/// A running gateway, and the key it is asked with.
pub struct Gateway {
    http: Client,
    base: Url,
    /// What the address was taken from, for messages.
    base_from: String,
    key: HeaderValue,
    key_from: String,
}

/// An answer.
pub struct Reply {
    pub json: Value,
    /// The page after this one, when the gateway says that there is one.
    pub next_page: Option<u64>,
}

/// A client that sends nothing anywhere but to where it is told: no proxy, no redirect.
pub fn http(base: &Url) -> Result<Client, Failure> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(CONNECT)
        .timeout(PATIENCE)
        .user_agent(concat!("tollkeeper-cli/", env!("CARGO_PKG_VERSION")));
    if base.scheme() == "http" {
        // An image without certificates can still ask on loopback.
        builder = builder.tls_certs_only([]);
    }
    // On loopback a certificate proves no more than the port does, and it is for the name that others use.
    if base.host_str().is_some_and(is_loopback) {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    builder
        .build()
        .map_err(|e| Failure::failed(format!("TLS cannot be set up: {}", root(&e))))
}

/// An address of this machine itself; a name is not, since somebody has to say where it leads.
fn is_loopback(host: &str) -> bool {
    host.trim_matches(['[', ']'])
        .parse::<std::net::IpAddr>()
        .is_ok_and(|ip| ip.is_loopback())
}

/// The address of a path of the API below the gateway's.
pub fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url
}

impl Gateway {
    pub fn new(base: Url, base_from: String, key: &Secret, key_from: String) -> Result<Gateway, Failure> {
        let mut header = HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(|_| {
            Failure::config(format!(
                "the key from {key_from} holds a character that no key has"
            ))
        })?;
        header.set_sensitive(true);
        Ok(Gateway {
            http: http(&base)?,
            base,
            base_from,
            key: header,
            key_from,
        })
    }

    /// What clients put into `OPENAI_BASE_URL`.
    pub fn openai_base(&self) -> String {
        below(&self.base, "/v1").to_string()
    }

    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Reply, Failure> {
        let mut url = below(&self.base, path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.ask(Method::GET, url, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let url = below(&self.base, path);
        Ok(self.ask(Method::POST, url, Some(body)).await?.json)
    }

    async fn ask(&self, method: Method, url: Url, body: Option<&Value>) -> Result<Reply, Failure> {
        let path = url.path().to_string();
        let mut request = self
            .http
            .request(method, url)
            .header(AUTHORIZATION, self.key.clone());
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(&e))? {
            if bytes.len() + chunk.len() > MOST {
                return Err(Failure::failed(format!(
                    "the answer to {path} is larger than {} MiB",
                    MOST >> 20
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        let json: Option<Value> = serde_json::from_slice(&bytes).ok();
        match json {
            Some(json) if (200..300).contains(&status) => Ok(Reply {
                json,
                next_page: text(&headers, "x-next-page").and_then(|n| n.parse().ok()),
            }),
            json => Err(self.refused(status, &headers, json.as_ref(), &path)),
        }
    }

    fn unreachable(&self, e: &reqwest::Error) -> Failure {
        let why = if e.is_timeout() {
            "it does not answer in time".to_string()
        } else {
            root(e)
        };
        let ours = if self.base.scheme() == "https" && why.contains("certificate") {
            " SSL_CERT_FILE names the certificate of your own authority."
        } else {
            ""
        };
        Failure::new(
            EXIT_UNAVAILABLE,
            format!(
                "the gateway at {} (from {}) cannot be reached: {}.{ours}\n  Is it running? Start it with `tollkeeper`, \
                 or say where it is with --url or TOLLKEEPER_URL.",
                self.base,
                self.base_from,
                clean(&why)
            ),
        )
    }

    /// What the gateway says, or what stands in its place.
    fn refused(&self, status: u16, headers: &HeaderMap, json: Option<&Value>, path: &str) -> Failure {
        let error = json.and_then(|j| j.get("error"));
        let message = error.and_then(|e| e.get("message")).and_then(Value::as_str);
        let Some(message) = message else {
            if let Some(to) = text(headers, "location").filter(|_| (300..400).contains(&status)) {
                return Failure::failed(format!(
                    "{} sends us on to {}. Name that address with --url or TOLLKEEPER_URL.",
                    self.base,
                    clean(to)
                ));
            }
            let code = if matches!(status, 502..=504) {
                EXIT_UNAVAILABLE
            } else {
                EXIT_FAILED
            };
            return Failure::new(
                code,
                format!(
                    "what answers at {} (from {}) does not speak the management API: {path} gets status {status}. \
                     Is the address right?",
                    self.base, self.base_from
                ),
            );
        };
        let mut message = clean(message);
        if let Some(id) = text(headers, "x-litellm-call-id").filter(|id| !message.contains(*id)) {
            message.push_str(&format!(" (request id: {})", clean(id)));
        }
        match status {
            401 => Failure::failed(format!(
                "the gateway at {} refuses the key from {}: {message}",
                self.base, self.key_from
            )),
            502..=504 => Failure::new(EXIT_UNAVAILABLE, message),
            _ => Failure::failed(message),
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The last cause, which is the one that says something.
pub fn root(e: &dyn Error) -> String {
    let mut cause = e;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
