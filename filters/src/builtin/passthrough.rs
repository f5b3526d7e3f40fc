//! Lanes whose bodies flow through untouched: decides which headers travel.

use crate::contract::{Cx, Filter, Needs, Refusal, Result, Upstream, Verdict};
use async_trait::async_trait;
use http::{HeaderName, HeaderValue, header, request};
use serde::Deserialize;

/// What an upstream needs to make sense of the body, the answer wanted, or a WebSocket. Hop-by-hop
/// headers are the driver's.
const SAFE: [&str; 15] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "content-encoding",
    "content-language",
    "content-type",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "range",
    "user-agent",
    "last-event-id",
    "x-stainless-retry-count",
    // The driver lets them reach one's own targets only.
    "traceparent",
    "tracestate",
];

/// A caller's credentials are for us and never go on, whatever the settings say.
const CREDENTIALS: [&str; 8] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "x-api-key",
    "api-key",
    "x-litellm-api-key",
    "x-goog-api-key",
    "ocp-apim-subscription-key",
];

/// What a caller says of the address it comes from is nobody's word; the driver adds what the peer shows.
const ORIGINS: [&str; 8] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "true-client-ip",
    "cf-connecting-ip",
];

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Let the caller's other headers through; credentials never.
    pub forward_headers: bool,
    /// Headers that carry a caller's key here besides the usual ones, in any case. The host adds the one
    /// that `auth` reads.
    pub credentials: Vec<String>,
    /// Upper-case methods; empty = all.
    pub methods: Vec<String>,
    /// Headers for the upstream. They win over the caller's.
    #[serde(skip)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

pub struct Passthrough {
    settings: Settings,
}

impl Passthrough {
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    fn is_credential(&self, name: &HeaderName) -> bool {
        let own = &self.settings.credentials;
        CREDENTIALS.contains(&name.as_str()) || own.iter().any(|c| c.eq_ignore_ascii_case(name.as_str()))
    }
}

#[async_trait]
impl Filter for Passthrough {
    fn needs(&self) -> Needs {
        Needs {
            request: true,
            upstream_request: true,
            ..Needs::NONE
        }
    }

    async fn request_filter(&self, _cx: &mut Cx, head: &request::Parts) -> Result<Verdict> {
        let methods = &self.settings.methods;
        if methods.is_empty() || methods.iter().any(|m| m == head.method.as_str()) {
            return Ok(Verdict::Continue);
        }
        let allow = methods.join(", ");
        Err(Refusal::new(
            405,
            "invalid_request_error",
            format!("{} is not offered here; use {allow}.", head.method),
        )
        .header("allow", allow)
        .into())
    }

    async fn upstream_request_filter(&self, _cx: &mut Cx, up: &mut Upstream) -> Result<()> {
        let mut kept = http::HeaderMap::with_capacity(up.headers.len() + self.settings.headers.len());
        for (name, value) in &up.headers {
            let websocket = name.as_str().starts_with("sec-websocket-")
                || name == header::UPGRADE
                || name == header::CONNECTION
                || name == header::CONTENT_LENGTH
                || name == header::TRANSFER_ENCODING;
            let travels = websocket || SAFE.contains(&name.as_str()) || self.settings.forward_headers;
            if travels && !self.is_credential(name) && !ORIGINS.contains(&name.as_str()) {
                kept.append(name.clone(), value.clone());
            }
        }
        for (name, value) in &self.settings.headers {
            kept.insert(name.clone(), value.clone());
        }
        up.headers = kept;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;

    async fn sent(settings: Settings, headers: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut up = testkit::upstream();
        for (n, v) in headers {
            up.headers.insert(*n, HeaderValue::from_static(v));
        }
        let mut cx = testkit::Kit::default().cx();
        Passthrough::new(settings)
            .upstream_request_filter(&mut cx, &mut up)
            .await
            .unwrap();
        up.headers
            .iter()
            .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
            .collect()
    }

    #[tokio::test]
    async fn credentials_never_travel() {
        let all = [
            ("authorization", "Bearer sk-a"),
            ("cookie", "a=b"),
            ("x-api-key", "sk-a"),
            ("content-type", "audio/wav"),
            ("x-custom", "1"),
            ("x-real-ip", "10.0.0.1"),
        ];
        assert_eq!(sent(Settings::default(), &all).await, ["content-type: audio/wav"]);
        let open = Settings {
            forward_headers: true,
            ..Settings::default()
        };
        assert_eq!(
            sent(open.clone(), &all).await,
            ["content-type: audio/wav", "x-custom: 1"]
        );
        let configured = Settings {
            credentials: vec!["X-Custom".into(), "Content-Type".into()],
            ..open
        };
        assert!(
            sent(configured, &all).await.is_empty(),
            "not even from the short list"
        );
        let keyed = Settings {
            headers: vec![(header::AUTHORIZATION, HeaderValue::from_static("Bearer provider"))],
            ..Settings::default()
        };
        assert_eq!(
            sent(keyed, &all).await,
            ["content-type: audio/wav", "authorization: Bearer provider"]
        );
    }
}
