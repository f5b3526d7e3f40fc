//! Browsers: answers preflights and says which pages may read the answers.

use crate::contract::{Answer, Cx, Filter, Needs, Result, Verdict};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header, request, response};
use serde::Deserialize;

/// What a page may read of the answer's head.
const EXPOSED: &str = "x-request-id, request-id, retry-after, retry-after-ms, x-should-retry, \
     x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
     x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, \
     x-litellm-call-id, x-litellm-model-id, x-litellm-response-cost";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Origins that may call, `*` for all. No credentials are ever allowed: keys travel in a header.
    pub allow_origins: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            allow_origins: vec!["*".into()],
        }
    }
}

pub struct Cors {
    any: bool,
    origins: Vec<String>,
}

/// The caller's origin, remembered between request and response.
#[derive(Clone)]
struct Origin(HeaderValue);

impl Cors {
    pub fn new(settings: Settings) -> Self {
        Self {
            any: settings.allow_origins.iter().any(|o| o == "*"),
            origins: settings.allow_origins,
        }
    }

    fn allowed(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.any {
            return Some(HeaderValue::from_static("*"));
        }
        self.origins
            .iter()
            .any(|o| o.as_bytes() == origin.as_bytes())
            .then(|| origin.clone())
    }
}

/// Whether caches are told already, for instance by an upstream that knows browsers itself.
fn varies_by_origin(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::VARY)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|n| matches!(n.trim(), "*") || n.trim().eq_ignore_ascii_case("origin"))
}

#[async_trait]
impl Filter for Cors {
    fn needs(&self) -> Needs {
        Needs {
            request: true,
            response: true,
            ..Needs::NONE
        }
    }

    async fn request_filter(&self, cx: &mut Cx, head: &request::Parts) -> Result<Verdict> {
        let Some(allowed) = head.headers.get(header::ORIGIN).and_then(|o| self.allowed(o)) else {
            return Ok(Verdict::Continue);
        };
        let wanted = head.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
        let (&Method::OPTIONS, Some(method)) = (&head.method, wanted) else {
            cx.ext.insert(Origin(allowed));
            return Ok(Verdict::Continue);
        };
        let text = |v: &HeaderValue| v.to_str().unwrap_or_default().to_string();
        // The SDKs send a dozen `x-stainless-*` headers, and new ones with each version: what is asked
        // for is allowed.
        let headers = head
            .headers
            .get(header::ACCESS_CONTROL_REQUEST_HEADERS)
            .map(text)
            .unwrap_or_default();
        Ok(Verdict::Answer(Answer {
            status: 204,
            headers: vec![
                ("access-control-allow-origin", text(&allowed)),
                ("access-control-allow-methods", text(method)),
                ("access-control-allow-headers", headers),
                ("access-control-max-age", "600".into()),
                (
                    "vary",
                    "origin, access-control-request-method, access-control-request-headers".into(),
                ),
            ],
            body: Bytes::new(),
        }))
    }

    fn response_filter(&self, cx: &mut Cx, head: &mut response::Parts) -> Result<()> {
        if let Some(Origin(allowed)) = cx.ext.get::<Origin>() {
            let h = &mut head.headers;
            h.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed.clone());
            h.insert(
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static(EXPOSED),
            );
            if !varies_by_origin(h) {
                h.append(header::VARY, HeaderValue::from_static("origin"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;

    #[tokio::test]
    async fn caches_are_told_once() {
        let cors = Cors::new(Settings::default());
        for (before, want) in [
            (&[][..], &["origin"][..]),
            (&["accept"], &["accept", "origin"]),
            (&["accept, Origin"], &["accept, Origin"]),
            (&["accept", "origin"], &["accept", "origin"]),
            (&["*"], &["*"]),
            (&["x-origin"], &["x-origin", "origin"]),
        ] {
            let mut cx = testkit::Kit::default().cx();
            let asked = http::Request::get("/").header("origin", "https://app.test");
            let asked = asked.body(()).unwrap().into_parts().0;
            cors.request_filter(&mut cx, &asked).await.unwrap();
            let mut head = http::Response::new(()).into_parts().0;
            for value in before {
                head.headers.append(header::VARY, HeaderValue::from_static(value));
            }
            cors.response_filter(&mut cx, &mut head).unwrap();
            let got: Vec<_> = head.headers.get_all(header::VARY).iter().collect();
            assert_eq!(got, want, "{before:?}");
        }
    }
}
