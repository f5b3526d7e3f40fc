//! Message heads: what of them travels between client and upstream.

use super::paths;
use filters::contract::Cx;
use filters::model::deployment::Base;
use filters::wire::splice::Rope;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header, request, response};
use pingora::prelude::*;
use pingora::protocols::http::date;
use pingora_http::{RequestHeader, ResponseHeader};
use std::borrow::Cow;
use std::collections::HashSet;
use std::io::Write;

/// Headers that concern one connection only (RFC 9110 §7.6.1).
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// What an upstream says of itself and its own door; it would be wrong, or telling, from ours.
fn is_upstreams_own(name: &str) -> bool {
    matches!(
        name,
        "set-cookie"
            | "server"
            | "via"
            | "alt-svc"
            | "strict-transport-security"
            | "x-powered-by"
            | "x-served-by"
            | "location"
            | "content-location"
            // It asks for the provider's key, which no caller has.
            | "www-authenticate"
            | "openai-organization"
            | "openai-project"
            | "cf-ray"
            | "cf-cache-status"
            | "nel"
            | "report-to"
    ) || UPSTREAMS_FAMILIES.iter().any(|family| name.starts_with(family))
}

/// The same for whole families. A LiteLLM behind us speaks of its own keys and prices.
const UPSTREAMS_FAMILIES: [&str; 5] = [
    "access-control-",
    "x-litellm-",
    "x-envoy-",
    "x-forwarded-",
    "x-upstream",
];

// Made once: pingora's heads and http's take a name apart again for every field that is put in by text.
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_CALL_ID: HeaderName = HeaderName::from_static("x-litellm-call-id");
static X_MODEL_ID: HeaderName = HeaderName::from_static("x-litellm-model-id");
static X_MODEL_GROUP: HeaderName = HeaderName::from_static("x-litellm-model-group");
static X_RETRIES: HeaderName = HeaderName::from_static("x-litellm-attempted-retries");
static X_FALLBACKS: HeaderName = HeaderName::from_static("x-litellm-attempted-fallbacks");
static X_COST: HeaderName = HeaderName::from_static("x-litellm-response-cost");
static X_UPSTREAM_REQUEST_ID: HeaderName = HeaderName::from_static("x-upstream-request-id");

/// The head of an upstream request. `headers` has been decided by the filters.
pub fn upstream_request(
    authority: &str,
    tls: bool,
    h2: bool,
    path: &str,
    headers: &HeaderMap,
    content_length: usize,
) -> Result<Box<RequestHeader>> {
    let mut head = RequestHeader::build_no_case(Method::POST, path.as_bytes(), Some(headers.len() + 3))?;
    if h2 {
        let scheme = if tls { "https" } else { "http" };
        let uri = format!("{scheme}://{authority}{path}");
        head.set_uri(
            uri.parse()
                .or_err(ErrorType::InvalidHTTPHeader, "building the upstream URI")?,
        );
        head.set_version(Version::HTTP_2);
    }
    // The path begins with a slash, so the URI says all of it.
    let mut parts = request::Parts::from(head);
    if !h2 {
        parts.headers.insert(header::HOST, value(authority)?);
    }
    for (name, value) in headers {
        parts.headers.append(name.clone(), value.clone());
    }
    parts
        .headers
        .insert(header::CONTENT_LENGTH, content_length.into());
    Ok(Box::new(parts.into()))
}

/// The same as it goes over the wire to an HTTP/1 upstream, with the body.
pub fn upstream_wire(authority: &str, path: &str, headers: &HeaderMap, body: &Rope) -> Result<Vec<u8>> {
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|b| b > b' ' && b != 127);
    if !is_word(path) || !is_word(authority) {
        return Err(Error::explain(
            ErrorType::InvalidHTTPHeader,
            "the request line cannot be written",
        ));
    }
    let mut wire = Vec::with_capacity(ROOM_FOR_REQUEST + body.len());
    wire.extend_from_slice(b"POST ");
    wire.extend_from_slice(path.as_bytes());
    wire.extend_from_slice(b" HTTP/1.1\r\n");
    if !headers.contains_key(header::HOST) {
        field(&mut wire, &header::HOST, authority.as_bytes());
    }
    for (name, value) in headers.iter().filter(|(name, _)| *name != header::CONTENT_LENGTH) {
        field(&mut wire, name, value.as_bytes());
    }
    write!(wire, "content-length: {}\r\n\r\n", body.len())
        .or_err(ErrorType::InternalError, "writing to memory")?;
    body.pieces()
        .iter()
        .for_each(|piece| wire.extend_from_slice(piece));
    Ok(wire)
}

/// Bytes of a request's head that most do not need.
const ROOM_FOR_REQUEST: usize = 1 << 10;

/// What of an upstream's head goes on to the client.
pub fn from_upstream(upstream: &ResponseHeader) -> response::Parts {
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = upstream.status;
    parts.headers.reserve(upstream.headers.len() + 6);
    for (name, value) in &upstream.headers {
        pass(&mut parts.headers, name.clone(), || Some(value.clone()));
    }
    parts
}

/// Adds one field of an upstream's head, if it goes on to the client. `None` = its value cannot be had.
pub fn pass(to: &mut HeaderMap, name: HeaderName, value: impl FnOnce() -> Option<HeaderValue>) -> Option<()> {
    let n = name.as_str();
    if n == "x-request-id" || n == "request-id" {
        to.insert(&X_UPSTREAM_REQUEST_ID, value()?);
    } else if !is_hop_by_hop(&name) && !is_upstreams_own(n) {
        to.append(name, value()?);
    }
    Some(())
}

/// Where a stream lane's answer comes from, as a client must not see it.
pub struct Place<'a> {
    pub base: &'a Base,
    /// What stands at the place between the base's own path and the client's.
    pub add: &'a str,
    /// What was taken off the client's path.
    pub strip: &'a str,
    /// What the config adds to every query.
    pub query: Option<&'a str>,
}

/// Takes from a target's answer what says who gave it. Unlike a model call's answer, the rest is the
/// application's and stays.
pub fn hide_server(head: &mut ResponseHeader) {
    for name in [
        header::SERVER,
        header::VIA,
        HeaderName::from_static("x-powered-by"),
    ] {
        head.remove_header(&name);
    }
}

/// Takes from a stream lane's answer where it comes from.
pub fn hide_place(head: &mut ResponseHeader, target: &Place<'_>) -> Result<()> {
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let theirs: Vec<HeaderValue> = head.headers.get_all(&name).iter().cloned().collect();
        head.remove_header(&name);
        for value in theirs {
            let ours = value.to_str().ok().and_then(|text| ours(text, target));
            if let Some(Ok(ours)) = ours.map(|text| HeaderValue::try_from(text.as_ref())) {
                head.append_header(&name, ours)?;
            }
        }
    }
    Ok(())
}

/// A reference of a target's, as it is right for a client. One that names the target's host becomes the
/// lane's path that leads there; None = there is no such path, or no sure reading. One without a host
/// stays: whether the target knows under which path it is seen from here, nobody can tell.
fn ours<'r>(reference: &'r str, target: &Place<'_>) -> Option<Cow<'r, str>> {
    let (address, fragment) = match reference.find('#') {
        Some(at) => reference.split_at(at),
        None => (reference, ""),
    };
    let first = address.split(['/', '?']).next().unwrap_or_default();
    let absolute = if address.starts_with("//") {
        let scheme = if target.base.tls { "https:" } else { "http:" };
        Cow::Owned(format!("{scheme}{address}"))
    } else if first.contains(':') {
        Cow::Borrowed(address)
    } else {
        return Some(Cow::Borrowed(reference));
    };
    let uri: http::Uri = absolute.parse().ok()?;
    let authority = uri.authority()?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    if !host.eq_ignore_ascii_case(&target.base.host) {
        return Some(Cow::Borrowed(reference));
    }
    let usual = match uri.scheme_str() {
        Some("https") => 443,
        Some("http") => 80,
        _ => return None,
    };
    // The same host under another port is another service, whose name is nobody's business either.
    if authority.port_u16().unwrap_or(usual) != target.base.port {
        return None;
    }
    let rest = uri.path().strip_prefix(target.base.path.as_str())?;
    let rest = rest.strip_prefix(target.add)?;
    let mut path = format!("{}{rest}", target.strip);
    if path.is_empty() {
        path.push('/');
    }
    // `/base` is no part of `/based`; and `//host` would lead elsewhere.
    if !(rest.is_empty() || rest.starts_with('/')) || paths::odd(&path).is_some() {
        return None;
    }
    // What the config adds to every query may be a secret, and is added again.
    let added: Vec<&str> = target.query.iter().flat_map(|q| q.split('&')).collect();
    let query = uri.query().unwrap_or_default().split('&');
    let query: Vec<&str> = query
        .filter(|pair| !pair.is_empty() && !added.contains(pair))
        .collect();
    if !query.is_empty() {
        path.push('?');
        path.push_str(&query.join("&"));
    }
    path.push_str(fragment);
    Some(Cow::Owned(path))
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
pub fn to_client(mut parts: response::Parts, cx: &mut Cx, framing: Framing) -> Result<Box<ResponseHeader>> {
    let headers = &mut parts.headers;
    std::mem::take(&mut cx.standings).put(headers);
    let request_id = value(&cx.request_id)?;
    headers.insert(&X_REQUEST_ID, request_id.clone());
    headers.insert(&X_CALL_ID, request_id);
    if let Some(d) = &cx.deployment {
        headers.insert(&X_MODEL_ID, value(&d.id)?);
        headers.insert(&X_MODEL_GROUP, safe(&d.model_name));
    }
    let retries = cx.attempts.len().saturating_sub(1);
    if retries > 0 {
        headers.insert(&X_RETRIES, retries.into());
    }
    if !cx.fallbacks.is_empty() {
        headers.insert(&X_FALLBACKS, cx.fallbacks.len().into());
    }
    if let Some(nanos) = cx.cost_nanos {
        headers.insert(&X_COST, value(&filters::model::money::Nanos(nanos).to_string())?);
    }
    match framing {
        Framing::Length(n) => {
            headers.insert(header::CONTENT_LENGTH, n.into());
        }
        Framing::Chunked => {
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        Framing::ByProtocol => {
            headers.remove(header::CONTENT_LENGTH);
        }
        Framing::AsItIs => {}
    }
    Ok(Box::new(parts.into()))
}

/// The same for an answer of so many bytes over HTTP/1.1, as it goes over the wire, on a connection that stays.
/// `None` = it cannot be written so.
pub fn to_wire(parts: &response::Parts, cx: &mut Cx, length: usize) -> Option<Vec<u8>> {
    let standings = std::mem::take(&mut cx.standings);
    let mut wire = Vec::with_capacity(ROOM_FOR_HEAD);
    wire.extend_from_slice(b"HTTP/1.1 ");
    wire.extend_from_slice(parts.status.as_str().as_bytes());
    wire.push(b' ');
    wire.extend_from_slice(parts.status.canonical_reason().unwrap_or_default().as_bytes());
    wire.extend_from_slice(b"\r\n");
    for (name, value) in &parts.headers {
        let replaced = is_written_anew(name) || has_its_like(name) && standings.get(name.as_str()).is_some();
        if !replaced {
            field(&mut wire, name, value.as_bytes());
        }
    }
    for (name, value) in standings.iter() {
        field(&mut wire, name, value);
    }
    let request_id = plain(&cx.request_id)?;
    field(&mut wire, &X_REQUEST_ID, request_id);
    field(&mut wire, &X_CALL_ID, request_id);
    if let Some(d) = &cx.deployment {
        field(&mut wire, &X_MODEL_ID, plain(&d.id)?);
        match plain(&d.model_name) {
            Some(name) => field(&mut wire, &X_MODEL_GROUP, name),
            None => field(&mut wire, &X_MODEL_GROUP, safe(&d.model_name).as_bytes()),
        }
    }
    let retries = cx.attempts.len().saturating_sub(1);
    if retries > 0 {
        write!(wire, "{X_RETRIES}: {retries}\r\n").ok()?;
    }
    if !cx.fallbacks.is_empty() {
        write!(wire, "{X_FALLBACKS}: {}\r\n", cx.fallbacks.len()).ok()?;
    }
    if let Some(nanos) = cx.cost_nanos {
        let cost = filters::model::money::Nanos(nanos);
        write!(wire, "{X_COST}: {cost}\r\n").ok()?;
    }
    write!(wire, "content-length: {length}\r\n").ok()?;
    field(&mut wire, &header::DATE, date::get_cached_date().as_bytes());
    wire.extend_from_slice(b"connection: keep-alive\r\n\r\n");
    Some(wire)
}

/// Bytes of a head that most heads do not need.
const ROOM_FOR_HEAD: usize = 2 << 10;

fn field(wire: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    wire.extend_from_slice(name.as_str().as_bytes());
    wire.extend_from_slice(b": ");
    wire.extend_from_slice(value);
    wire.extend_from_slice(b"\r\n");
}

/// Text that can be the value of a header.
fn plain(text: &str) -> Option<&[u8]> {
    let is_plain = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    is_plain.then_some(text.as_bytes())
}

/// What [`to_wire`] says itself, of whatever the upstream or a filter said of it.
fn is_written_anew(name: &HeaderName) -> bool {
    [
        header::CONTENT_LENGTH,
        header::DATE,
        header::CONNECTION,
        header::TRANSFER_ENCODING,
    ]
    .contains(name)
        || [
            &X_REQUEST_ID,
            &X_CALL_ID,
            &X_MODEL_ID,
            &X_MODEL_GROUP,
            &X_RETRIES,
            &X_FALLBACKS,
            &X_COST,
        ]
        .contains(&name)
}

/// Whether a limit may have a header of this name: these names are long, and few other heads have one.
fn has_its_like(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-ratelimit-") || name.starts_with("ratelimit")
}

fn value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).or_err(ErrorType::InvalidHTTPHeader, "a header's value")
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
    if let Ok(plain) = HeaderValue::from_str(text)
        && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
    {
        return plain;
    }
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

    fn target<'a>(base: &'a Base, strip: &'a str, query: Option<&'a str>) -> Place<'a> {
        Place {
            base,
            add: "",
            strip,
            query,
        }
    }

    #[test]
    fn references_to_the_target_lead_through_the_lane() {
        let base = Base::parse("http://tts.internal:8000/base").unwrap();
        let tts = target(&base, "/tts", Some("key=secret&v=1"));
        let cases = [
            ("http://tts.internal:8000/base/jobs/1", Some("/tts/jobs/1")),
            ("http://TTS.internal:8000/base", Some("/tts")),
            (
                "https://tts.internal:8000/base/x?a=b#part",
                Some("/tts/x?a=b#part"),
            ),
            ("//tts.internal:8000/base/x", Some("/tts/x")),
            (
                "http://tts.internal:8000/base/x?key=secret&v=1&a=b",
                Some("/tts/x?a=b"),
            ),
            ("http://tts.internal:8000/base/x?v=1", Some("/tts/x")),
            // No path of the lane leads there.
            ("http://tts.internal:8000/other", None),
            ("http://tts.internal:8000/based", None),
            ("http://tts.internal:9000/base/x", None),
            ("http://tts.internal/base/x", None),
            ("ftp://tts.internal:8000/base/x", None),
            ("http://tts.internal:8000/base/../x", None),
            ("http:\\\\tts.internal:8000\\base", None),
            // Somebody else's, and what names no host.
            (
                "https://cdn.example.com/a?b#c",
                Some("https://cdn.example.com/a?b#c"),
            ),
            ("/jobs/1", Some("/jobs/1")),
            ("jobs?at=http://tts.internal", Some("jobs?at=http://tts.internal")),
            ("#here", Some("#here")),
            ("", Some("")),
        ];
        for (reference, want) in cases {
            assert_eq!(ours(reference, &tts).as_deref(), want, "{reference}");
        }
        let base = Base::parse("https://[::1]").unwrap();
        let whole = target(&base, "", None);
        assert_eq!(ours("https://[::1]/x", &whole).as_deref(), Some("/x"));
        assert_eq!(ours("https://[::1]", &whole).as_deref(), Some("/"));
        assert_eq!(ours("https://[::1]//evil.test/x", &whole), None);
    }

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
