//! Who the client is: one rule, used by everything.
//!
//! The TCP peer; or, when the peer is a listed proxy, the right-most address of `X-Forwarded-For` that
//! is not itself a listed proxy. A forwarded header from anybody else proves nothing but that a proxy
//! stands in between, so such a client is never internal: behind a proxy every client's peer is.

use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;
use std::net::IpAddr;

/// Headers that say a proxy stands in between.
static FORWARDED: [HeaderName; 3] = [
    HeaderName::from_static("x-forwarded-for"),
    header::FORWARDED,
    HeaderName::from_static("x-real-ip"),
];

/// The networks that the rule knows.
#[derive(Debug, Clone, Default)]
pub struct Networks {
    pub internal: Vec<IpNet>,
    pub proxies: Vec<IpNet>,
}

/// A client's address, and whether it may do what internal networks may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    pub ip: IpAddr,
    pub internal: bool,
}

impl Networks {
    /// Whether the peer is a proxy whose word is believed.
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        within(&self.proxies, peer.to_canonical())
    }

    /// Whether somebody stands in front who may send requests of several clients on one connection.
    pub fn came_through_a_proxy(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        self.is_proxy(peer)
            || headers.contains_key(header::VIA)
            || FORWARDED.iter().any(|h| headers.contains_key(h))
    }

    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Client {
        let peer = peer.to_canonical();
        if !FORWARDED.iter().any(|h| headers.contains_key(h)) {
            return Client {
                ip: peer,
                internal: within(&self.internal, peer),
            };
        }
        if !within(&self.proxies, peer) {
            return Client {
                ip: peer,
                internal: false,
            };
        }
        let mut hops: Vec<&str> = headers
            .get_all("x-forwarded-for")
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .map(str::trim)
            .collect();
        while let Some(hop) = hops.pop() {
            let Some(ip) = address(hop) else { break };
            if !within(&self.proxies, ip) {
                return Client {
                    ip,
                    internal: within(&self.internal, ip),
                };
            }
        }
        // Only proxies, or something that is no address: nobody in particular.
        Client {
            ip: peer,
            internal: false,
        }
    }
}

fn within(nets: &[IpNet], ip: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&ip))
}

/// `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]:5`.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches('"');
    let ip = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<std::net::SocketAddr>().map(|a| a.ip()))
        .or_else(|_| {
            text.trim_start_matches('[')
                .trim_end_matches(']')
                .parse::<IpAddr>()
        })
        .ok()?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(peer: &str, headers: &[(&'static str, &str)], ip: &str, internal: bool) {
        let networks = Networks {
            internal: vec!["192.168.0.0/16".parse().unwrap()],
            proxies: vec!["10.0.0.0/8".parse().unwrap()],
        };
        let mut map = HeaderMap::new();
        for (n, v) in headers {
            map.append(*n, v.parse().unwrap());
        }
        let got = networks.client(peer.parse().unwrap(), &map);
        assert_eq!(
            got,
            Client {
                ip: ip.parse().unwrap(),
                internal
            },
            "{peer} {headers:?}"
        );
    }

    #[test]
    fn no_header_makes_a_client_internal() {
        check("192.168.1.1", &[], "192.168.1.1", true);
        check("::ffff:192.168.1.1", &[], "192.168.1.1", true);
        check("8.8.8.8", &[], "8.8.8.8", false);
        check("8.8.8.8", &[("x-forwarded-for", "192.168.1.1")], "8.8.8.8", false);
        check(
            "192.168.1.1",
            &[("x-forwarded-for", "8.8.8.8")],
            "192.168.1.1",
            false,
        );
        check(
            "192.168.1.1",
            &[("x-real-ip", "192.168.1.2")],
            "192.168.1.1",
            false,
        );
        check(
            "192.168.1.1",
            &[("forwarded", "for=8.8.8.8")],
            "192.168.1.1",
            false,
        );
    }

    #[test]
    fn listed_proxies_are_believed_from_the_right() {
        check(
            "10.0.0.1",
            &[("x-forwarded-for", "192.168.1.1")],
            "192.168.1.1",
            true,
        );
        check(
            "10.0.0.1",
            &[("x-forwarded-for", "192.168.1.1, 8.8.8.8")],
            "8.8.8.8",
            false,
        );
        check(
            "10.0.0.1",
            &[("x-forwarded-for", "8.8.8.8, 192.168.1.1, 10.0.0.2")],
            "192.168.1.1",
            true,
        );
        check(
            "10.0.0.1",
            &[("x-forwarded-for", "8.8.8.8"), ("x-forwarded-for", "192.168.1.9")],
            "192.168.1.9",
            true,
        );
        check("10.0.0.1", &[("x-forwarded-for", "nonsense")], "10.0.0.1", false);
        check(
            "10.0.0.1",
            &[("x-forwarded-for", "192.168.1.1, nonsense")],
            "10.0.0.1",
            false,
        );
        check(
            "10.0.0.1",
            &[("x-forwarded-for", "[2001:db8::1]:4000")],
            "2001:db8::1",
            false,
        );
    }
}
