//! A deployment: one upstream that serves a model name.

use super::price::Price;
use super::secret::Secret;
use serde_json::Value;
use std::net::IpAddr;
use std::time::Duration;

/// One entry of `model_list`, ready to be called. Immutable; lives as long as its snapshot.
#[derive(Debug)]
pub struct Deployment {
    /// Stable id: from `model_info.id`, else a hash of the entry.
    pub id: String,
    /// The name clients call it by (`model_name`); may hold a `*`.
    pub model_name: String,
    /// The provider prefix: `openai`, `anthropic`, `hosted_vllm`, …
    pub provider: String,
    /// The dialect's name: `openai` passes bodies through.
    pub dialect: &'static str,
    /// As the upstream knows it; may hold a `*` that the matched part of the name replaces.
    pub upstream_model: String,
    pub base: Base,
    pub api_key: Option<Secret>,
    /// Further headers for the upstream, lowercase names.
    pub headers: Vec<(String, Secret)>,
    /// To the first byte of the answer.
    pub timeout: Duration,
    /// The same for a stream, and the longest silence within one.
    pub stream_timeout: Duration,
    pub drop_params: bool,
    pub additional_drop_params: Vec<String>,
    /// Call parameters of the deployment; the request's own win.
    pub defaults: serde_json::Map<String, serde_json::Value>,
    /// None = not priced.
    pub price: Option<Price>,
    pub max_output_tokens: Option<u64>,
    pub model_info: serde_json::Map<String, serde_json::Value>,
}

impl Deployment {
    /// Whether an upstream is one's own; `model_info.internal` has the last word.
    pub fn is_internal(&self) -> bool {
        match self.model_info.get("internal") {
            Some(Value::Bool(internal)) => *internal,
            _ => self.base.is_internal(),
        }
    }

    /// What it is called in messages: its name, and enough of its id to tell it from others of the name.
    pub fn label(&self) -> String {
        format!("{} ({})", self.model_name, self.id.get(..8).unwrap_or(&self.id))
    }
}

/// Where a deployment is: the parts of `api_base`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Base {
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    pub port: u16,
    /// Path prefix without a trailing slash: `/v1`, or empty.
    pub path: String,
    /// Speak HTTP/2 to it.
    pub h2: bool,
}

impl Base {
    /// Takes an `http(s)://host[:port][/path]` apart. `Err` is a sentence.
    pub fn parse(url: &str) -> Result<Self, String> {
        let uri: http::Uri = url.trim().parse().map_err(|e| format!("not a URL: {e}"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("a URL starts with http:// or https://".into()),
        };
        let authority = uri.authority().ok_or("the URL has no host")?;
        if authority.as_str().contains('@') {
            return Err("user names and passwords do not belong in a URL; use headers".into());
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase();
        if host.is_empty() {
            return Err("the URL has no host".into());
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path().trim_end_matches('/').to_string();
        Ok(Self {
            tls,
            host,
            port,
            path,
            h2: false,
        })
    }

    /// Whether this is one's own network: a private address, or a name that only such networks know.
    pub fn is_internal(&self) -> bool {
        let host = self.host.as_str();
        match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
            Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
            Err(_) => {
                const OURS: [&str; 6] = [".internal", ".local", ".lan", ".localhost", ".home.arpa", ".svc"];
                !host.contains('.') || OURS.iter().any(|end| host.ends_with(end))
            }
        }
    }

    /// The `Host` header: the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let mut text = String::with_capacity(self.host.len() + 8);
        if self.host.contains(':') {
            text.push('[');
            text.push_str(&self.host);
            text.push(']');
        } else {
            text.push_str(&self.host);
        }
        if !matches!((self.tls, self.port), (true, 443) | (false, 80)) {
            text.push(':');
            text.push_str(itoa::Buffer::new().format(self.port));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_networks() {
        let of = |url: &str| Base::parse(url).unwrap().is_internal();
        for ours in [
            "http://127.0.0.1:1",
            "http://10.1.2.3",
            "http://[fd00::1]",
            "http://llama-swap:8080",
            "https://gpu.lan",
            "http://x.svc",
        ] {
            assert!(of(ours), "{ours}");
        }
        for theirs in [
            "https://api.openai.com",
            "http://8.8.8.8",
            "https://[2606:4700::1]",
            "https://lan.example",
        ] {
            assert!(!of(theirs), "{theirs}");
        }
    }

    #[test]
    fn bases() {
        let b = Base::parse("http://Llama-Swap:8080/v1/").unwrap();
        assert_eq!(
            (b.tls, b.host.as_str(), b.port, b.path.as_str()),
            (false, "llama-swap", 8080, "/v1")
        );
        assert_eq!(b.authority(), "llama-swap:8080");
        let b = Base::parse("https://[::1]").unwrap();
        assert_eq!(
            (b.host.as_str(), b.port, b.authority().as_str()),
            ("::1", 443, "[::1]")
        );
        for bad in ["ftp://x", "x", "http://", "http://a:b@c/", ""] {
            assert!(Base::parse(bad).is_err(), "{bad} must be refused");
        }
    }
}
