//! What a backend is told of the way a request came: the `X-Forwarded-*` family, `X-Real-Ip` and
//! `Forwarded`. What a client says there itself survives only from a listed proxy. Who the client is was
//! decided before, in `proxy::client`.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::net::IpAddr;

static FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
static REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
static FORWARDED: HeaderName = HeaderName::from_static("forwarded");

/// Headers by which applications are told where a request comes from, besides `x-forwarded-*`.
const OTHERS: [&str; 9] = [
    "forwarded",
    "x-real-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-url",
    "x-rewrite-url",
];

/// The way of one request.
pub struct Way<'a> {
    /// The TCP peer.
    pub peer: IpAddr,
    /// The peer is a listed proxy.
    pub is_listed: bool,
    /// Who the client is.
    pub client: IpAddr,
    pub tls: bool,
    /// As the client asked for it, with its port.
    pub authority: &'a str,
    /// What was taken off the path; empty = nothing.
    pub stripped: &'a str,
}

/// Puts the way into the headers for the backend.
pub fn tell(headers: &mut HeaderMap, way: &Way<'_>) {
    let theirs: Vec<HeaderName> = headers
        .keys()
        .filter(|n| is_of_the_way(n.as_str()))
        .cloned()
        .collect();
    let mut chain = String::new();
    let mut elements = String::new();
    if way.is_listed {
        chain = list(headers, &FOR);
        elements = list(headers, &FORWARDED);
    }
    let keeps = |name: &HeaderName| way.is_listed && !name.as_str().contains('_');
    for name in theirs {
        if !keeps(&name) {
            headers.remove(&name);
        }
    }
    let mut put = |name: &HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name.clone(), value);
        }
    };
    let peer = way.peer.to_string();
    put(&FOR, &behind(&chain, &peer));
    put(&REAL_IP, &way.client.to_string());
    let proto = if way.tls { "https" } else { "http" };
    let node = match way.peer {
        IpAddr::V4(_) => format!("for={peer}"),
        IpAddr::V6(_) => format!("for=\"[{peer}]\""),
    };
    let element = format!("{node};host={};proto={proto}", quoted(way.authority));
    put(&FORWARDED, &behind(&elements, &element));
    let port = port(way.authority).unwrap_or(if way.tls { "443" } else { "80" });
    let mut unless_told = |name: &HeaderName, text: &str| {
        if !text.is_empty()
            && !headers.contains_key(name)
            && let Ok(value) = HeaderValue::from_str(text)
        {
            headers.insert(name.clone(), value);
        }
    };
    unless_told(&PROTO, proto);
    unless_told(&HOST, way.authority);
    unless_told(&PORT, port);
    if !way.stripped.is_empty()
        && let Ok(value) = HeaderValue::from_str(&format!("{}{}", list(headers, &PREFIX), way.stripped))
    {
        headers.insert(PREFIX.clone(), value);
    }
}

/// Whether a header says where a request comes from. Applications that read headers as variables take `_`
/// for `-`, so both spellings count.
fn is_of_the_way(name: &str) -> bool {
    let is = |name: &str| name.starts_with("x-forwarded-") || OTHERS.contains(&name);
    if name.contains('_') {
        return is(&name.replace('_', "-"));
    }
    is(name)
}

/// All values of a header in one.
fn list(headers: &HeaderMap, name: &HeaderName) -> String {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values
        .map(str::trim)
        .filter(|v| !v.is_empty())
        .collect::<Vec<_>>()
        .join(", ")
}

fn behind(list: &str, next: &str) -> String {
    if list.is_empty() {
        next.to_string()
    } else {
        format!("{list}, {next}")
    }
}

/// A value of `Forwarded`: a token, or quoted.
fn quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_string();
    }
    let clean: String = text.chars().filter(|c| !matches!(c, '"' | '\\')).collect();
    format!("\"{clean}\"")
}

/// The port of a host, where it names one.
fn port(authority: &str) -> Option<&str> {
    let after = authority.rsplit_once(']').map_or(authority, |(_, after)| after);
    let (_, port) = after.rsplit_once(':')?;
    (!port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(is_listed: bool, authority: &str, sent: &[(&'static str, &str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(*name, value.parse().unwrap());
        }
        tell(
            &mut headers,
            &Way {
                peer: "10.0.0.9".parse().unwrap(),
                is_listed,
                client: "8.8.8.8".parse().unwrap(),
                tls: true,
                authority,
                stripped: "",
            },
        );
        let mut all: Vec<String> = headers
            .iter()
            .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
            .collect();
        all.sort();
        all
    }

    const SPOOFED: [(&str, &str); 9] = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-for", "7.7.7.7"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "evil.test"),
        ("x_forwarded_for", "6.6.6.6"),
        ("x-real-ip", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6"),
        ("x-forwarded-prefix", "/evil"),
        ("x-mine", "kept"),
    ];

    #[test]
    fn a_stranger_says_nothing_of_the_way() {
        assert_eq!(
            told(false, "chat.test", &SPOOFED),
            [
                "forwarded: for=10.0.0.9;host=chat.test;proto=https",
                "x-forwarded-for: 10.0.0.9",
                "x-forwarded-host: chat.test",
                "x-forwarded-port: 443",
                "x-forwarded-proto: https",
                "x-mine: kept",
                "x-real-ip: 8.8.8.8",
            ]
        );
    }

    #[test]
    fn a_listed_proxy_is_repeated() {
        assert_eq!(
            told(true, "chat.test:8443", &SPOOFED),
            [
                "forwarded: for=6.6.6.6, for=10.0.0.9;host=\"chat.test:8443\";proto=https",
                "x-forwarded-for: 6.6.6.6, 7.7.7.7, 10.0.0.9",
                "x-forwarded-host: evil.test",
                "x-forwarded-port: 8443",
                "x-forwarded-prefix: /evil",
                "x-forwarded-proto: http",
                "x-mine: kept",
                "x-real-ip: 8.8.8.8",
            ]
        );
    }

    #[test]
    fn ports() {
        for (authority, want) in [
            ("a", None),
            ("a:8080", Some("8080")),
            ("[::1]", None),
            ("[::1]:81", Some("81")),
            ("a:", None),
        ] {
            assert_eq!(port(authority), want, "{authority}");
        }
    }
}
