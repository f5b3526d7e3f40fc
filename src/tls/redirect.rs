//! Which requests on a plain listener are sent on to https: pages that a browser opens, and nothing else.
//! Clients of the API take a redirect for a failure or lose their body on the way, so that they are
//! answered where they are.

use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderMap, Method};
use std::net::SocketAddr;

/// Where a browser gets by itself: paths of pages. Everything else is somebody's API.
const PAGES: [&str; 5] = ["/", "/ui", "/docs", "/redoc", "/login"];

/// The plain listeners that send browsers on, and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redirect {
    pub from: Vec<SocketAddr>,
    /// The port of the first TLS listener.
    pub to_port: u16,
}

/// What is looked at of a request.
pub struct Asked<'a> {
    /// Our address of the connection.
    pub at: SocketAddr,
    pub method: &'a Method,
    pub path: &'a str,
    pub query: Option<&'a str>,
    /// In lower case, without a port.
    pub host: &'a str,
    pub headers: &'a HeaderMap,
}

impl Redirect {
    /// The address that a browser is sent to; `None` = the request is answered here.
    pub fn target(&self, asked: &Asked<'_>) -> Option<String> {
        let reads = matches!(*asked.method, Method::GET | Method::HEAD);
        if !reads || !is_page(asked.path) || !is_browser(asked.headers) {
            return None;
        }
        self.elsewhere(asked)
    }

    /// The same where nothing is answered in plain text, an application that is no API of ours; and the
    /// status: for good, and such that a body is sent again with the method it came with.
    pub fn whole(&self, asked: &Asked<'_>) -> Option<(u16, String)> {
        let reads = matches!(*asked.method, Method::GET | Method::HEAD);
        let status = if reads { 301 } else { 308 };
        self.elsewhere(asked).map(|to| (status, to))
    }

    fn elsewhere(&self, asked: &Asked<'_>) -> Option<String> {
        let comes_here = self.from.iter().any(|from| {
            from.port() == asked.at.port()
                && (from.ip().is_unspecified() || from.ip().to_canonical() == asked.at.ip().to_canonical())
        });
        if !comes_here {
            return None;
        }
        // The name goes into a header; one that is none is not sent anywhere.
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
        if asked.host.is_empty() || asked.host.len() > 253 || !asked.host.bytes().all(is_name) {
            return None;
        }
        let host = if asked.host.contains(':') {
            format!("[{}]", asked.host)
        } else {
            asked.host.to_string()
        };
        let port = match self.to_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        let query = asked.query.map(|q| format!("?{q}")).unwrap_or_default();
        Some(format!("https://{host}{port}{}{query}", asked.path))
    }
}

fn is_page(path: &str) -> bool {
    PAGES.iter().any(|page| {
        path == *page || *page != "/" && path.strip_prefix(page).is_some_and(|r| r.starts_with('/'))
    })
}

/// It wants a page, and brings no key.
fn is_browser(headers: &HeaderMap) -> bool {
    let wants_page = headers.get_all(ACCEPT).iter().any(|v| {
        v.to_str()
            .is_ok_and(|v| v.to_ascii_lowercase().contains("text/html"))
    });
    let keys = ["x-api-key", "api-key", "x-goog-api-key", "x-litellm-api-key"];
    wants_page && !headers.contains_key(AUTHORIZATION) && !keys.iter().any(|k| headers.contains_key(*k))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "text/html,application/xhtml+xml,*/*;q=0.8";

    fn target(method: Method, path: &str, host: &str, headers: &[(&'static str, &str)]) -> Option<String> {
        let redirect = Redirect {
            from: vec!["0.0.0.0:80".parse().unwrap()],
            to_port: 443,
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        redirect.target(&Asked {
            at: "192.168.1.5:80".parse().unwrap(),
            method: &method,
            path,
            query,
            host,
            headers: &map,
        })
    }

    #[test]
    fn a_browser_is_sent_on() {
        let browser = [("accept", PAGE)];
        for (path, host, to) in [
            ("/", "llm.local", "https://llm.local/"),
            ("/ui/keys?page=2", "llm.local", "https://llm.local/ui/keys?page=2"),
            ("/ui", "::1", "https://[::1]/ui"),
        ] {
            assert_eq!(target(Method::GET, path, host, &browser).as_deref(), Some(to));
            assert_eq!(target(Method::HEAD, path, host, &browser).as_deref(), Some(to));
        }
    }

    #[test]
    fn clients_of_the_api_never_are() {
        let browser = [("accept", PAGE)];
        for path in [
            "/v1/models",
            "/models",
            "/key/info",
            "/health/liveliness",
            "/metrics",
            "/.well-known/acme-challenge/x",
            "/uix",
            "/anything",
        ] {
            assert_eq!(target(Method::GET, path, "h", &browser), None, "{path}");
        }
        for method in [Method::POST, Method::OPTIONS, Method::PUT, Method::DELETE] {
            assert_eq!(target(method, "/ui", "h", &browser), None);
        }
        for headers in [
            &[][..],
            &[("accept", "*/*")],
            &[("accept", "application/json")],
            &[("accept", PAGE), ("authorization", "Bearer x")],
            &[("accept", PAGE), ("x-api-key", "x")],
        ] {
            assert_eq!(target(Method::GET, "/ui", "h", headers), None, "{headers:?}");
        }
        for host in ["", "a b", "a/b", "a@b", "é"] {
            assert_eq!(target(Method::GET, "/ui", host, &browser), None, "{host}");
        }
    }

    #[test]
    fn other_listeners_are_left_alone() {
        let headers = HeaderMap::from_iter([(ACCEPT, PAGE.parse().unwrap())]);
        let mut asked = Asked {
            at: "127.0.0.1:4000".parse().unwrap(),
            method: &Method::GET,
            path: "/",
            query: None,
            host: "h",
            headers: &headers,
        };
        let redirect = Redirect {
            from: vec!["127.0.0.1:80".parse().unwrap()],
            to_port: 8443,
        };
        assert_eq!(redirect.target(&asked), None);
        asked.at = "192.168.1.5:80".parse().unwrap();
        assert_eq!(redirect.target(&asked), None);
        asked.at = "[::ffff:127.0.0.1]:80".parse().unwrap();
        assert_eq!(redirect.target(&asked).as_deref(), Some("https://h:8443/"));
        let to = |status| Some((status, "https://h:8443/".to_string()));
        assert_eq!(redirect.whole(&asked), to(301));
        asked.method = &Method::POST;
        assert_eq!((redirect.whole(&asked), redirect.target(&asked)), (to(308), None));
    }
}
