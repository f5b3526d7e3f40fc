//! Message heads: what of them travels between client and upstream.

use super::paths;
use filters::contract::Cx;
use http::{HeaderMap, HeaderName, HeaderValue, Version, header, response};
use pingora::prelude::*;
use pingora_http::{RequestHeader, ResponseHeader};
use std::collections::HashSet;

/// Headers that concern one connection only (RFC 9110 §7.6.1).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What an upstream says of itself and its own door; it would be wrong, or telling, from ours.
const UPSTREAMS_OWN: [&str; 16] = [
    "set-cookie",
    "server",
    "via",
    "alt-svc",
    "strict-transport-security",
    "x-powered-by",
    "x-served-by",
    "location",
    "content-location",
    // It asks for the provider's key, which no caller has.
    "www-authenticate",
    "openai-organization",
    "openai-project",
    "cf-ray",
    "cf-cache-status",
    "nel",
    "report-to",
];

pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(&name.as_str())
}

/// The same for whole families. A LiteLLM behind us speaks of its own keys and prices.
const UPSTREAMS_FAMILIES: [&str; 5] = [
    "access-control-",
    "x-litellm-",
    "x-envoy-",
    "x-forwarded-",
    "x-upstream",
];

/// The head of an upstream request. `headers` has been decided by the filters.
pub fn upstream_request(
    authority: &str,
    tls: bool,
    h2: bool,
    path: &str,
    headers: &HeaderMap,
    content_length: usize,
) -> Result<Box<RequestHeader>> {
    let mut head = RequestHeader::build_no_case("POST", path.as_bytes(), Some(headers.len() + 3))?;
    if h2 {
        let scheme = if tls { "https" } else { "http" };
        let uri = format!("{scheme}://{authority}{path}");
        head.set_uri(
            uri.parse()
                .or_err(ErrorType::InvalidHTTPHeader, "building the upstream URI")?,
        );
        head.set_version(Version::HTTP_2);
    } else {
        head.insert_header(header::HOST, authority)?;
    }
    for (name, value) in headers {
        head.append_header(name, value)?;
    }
    head.insert_header(header::CONTENT_LENGTH, content_length)?;
    Ok(Box::new(head))
}

/// What of an upstream's head goes on to the client.
pub fn from_upstream(upstream: &ResponseHeader) -> response::Parts {
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = upstream.status;
    parts.headers.reserve(upstream.headers.len() + 6);
    for (name, value) in &upstream.headers {
        let n = name.as_str();
        if n == "x-request-id" || n == "request-id" {
            parts.headers.insert("x-upstream-request-id", value.clone());
        } else if !is_hop_by_hop(name)
            && !UPSTREAMS_OWN.contains(&n)
            && !UPSTREAMS_FAMILIES.iter().any(|f| n.starts_with(f))
        {
            parts.headers.append(name.clone(), value.clone());
        }
    }
    parts
}

/// Gives `head` the fields of `wanted`. Whole sequences are compared and put: a field may be repeated.
pub fn replace_fields(head: &mut ResponseHeader, wanted: &HeaderMap) -> Result<()> {
    let names: HashSet<HeaderName> = head.headers.keys().chain(wanted.keys()).cloned().collect();
    for name in names {
        if head.headers.get_all(&name) == wanted.get_all(&name) {
            continue;
        }
        head.remove_header(&name);
        for value in wanted.get_all(&name) {
            head.append_header(&name, value)?;
        }
    }
    Ok(())
}

/// The head for the client, with what the gateway says of the call.
pub fn to_client(parts: response::Parts, cx: &Cx, framing: Framing) -> Result<Box<ResponseHeader>> {
    let mut head = ResponseHeader::from(parts);
    head.insert_header("x-request-id", cx.request_id.as_str())?;
    head.insert_header("x-litellm-call-id", cx.request_id.as_str())?;
    if let Some(d) = &cx.deployment {
        head.insert_header("x-litellm-model-id", d.id.as_str())?;
        head.insert_header("x-litellm-model-group", safe(&d.model_name))?;
    }
    let retries = cx.attempts.len().saturating_sub(1);
    if retries > 0 {
        head.insert_header("x-litellm-attempted-retries", retries)?;
    }
    if let Some(nanos) = cx.cost_nanos {
        head.insert_header(
            "x-litellm-response-cost",
            filters::model::money::Nanos(nanos).to_string(),
        )?;
    }
    match framing {
        Framing::Length(n) => head.insert_header(header::CONTENT_LENGTH, n)?,
        Framing::Chunked => {
            head.remove_header(&header::CONTENT_LENGTH);
            head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        }
        Framing::ByProtocol => {
            head.remove_header(&header::CONTENT_LENGTH);
        }
        Framing::AsItIs => {}
    }
    Ok(Box::new(head))
}

/// How the end of an answer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(usize),
    /// HTTP/1.1 without a length.
    Chunked,
    /// HTTP/2 ends streams itself; HTTP/1.0 ends with the connection.
    ByProtocol,
    /// The upstream's own length stands.
    AsItIs,
}

impl Framing {
    /// For an answer whose length nobody knows yet.
    pub fn open_ended(client: Version) -> Self {
        if client == Version::HTTP_11 {
            Framing::Chunked
        } else {
            Framing::ByProtocol
        }
    }
}

/// A name from the config as a header value; whatever a header cannot hold becomes `?`.
fn safe(text: &str) -> HeaderValue {
    let ascii: String = text
        .chars()
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' })
        .collect();
    HeaderValue::try_from(ascii).unwrap_or(HeaderValue::from_static("?"))
}

/// `base` with `path` behind it, where both may hold the same segments once.
pub fn join(base: &str, path: &str) -> String {
    if base.is_empty() || paths::below(path, base).is_some() {
        return path.to_string();
    }
    filters::dialects::join(base, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_compared_as_sequences() {
        let mut head = ResponseHeader::build(200, None).unwrap();
        let mut wanted = HeaderMap::new();
        for (name, before, after) in [
            ("set-cookie", &["a", "b"][..], &["a", "b"][..]),
            ("vary", &["a"], &["a", "origin"]),
            ("x-fewer", &["a", "b"], &["b"]),
            ("x-gone", &["a", "b"], &[]),
            ("x-new", &[], &["a", "a"]),
        ] {
            for value in before {
                head.append_header(name, *value).unwrap();
            }
            for value in after {
                wanted.append(name, HeaderValue::from_static(value));
            }
        }
        replace_fields(&mut head, &wanted).unwrap();
        assert_eq!(head.headers, wanted);
    }
}
