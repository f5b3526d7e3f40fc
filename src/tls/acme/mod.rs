//! Certificates that an authority gives by ACME (RFC 8555): ordered when there is none, and anew when two
//! thirds of a certificate's life are over, or earlier where the authority asks for it.
//!
//! `tend` knows when and how often; `window` asks the authority when; `order` makes one order; `challenge` is what the authority finds here;
//! `post` carries requests; `vault` is what is on disk. Which certificate a client is shown is `shelf`'s:
//! it gets what is in the vault, and is told when that has changed.

mod challenge;
mod order;
mod post;
mod tend;
mod vault;
mod window;

use crate::conf::{Acme, AcmeChallenge, Listener};
pub use challenge::Challenges;
pub use tend::Tender;
pub use vault::{Found, Record, Vault, due, moment};

/// What the listeners can do for the authority's looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    plain: Vec<std::net::SocketAddr>,
    tls: Vec<std::net::SocketAddr>,
    /// Whether a plain listener is there for browsers, or on port 80.
    for_browsers: bool,
}

impl Reach {
    pub fn of(listeners: &[Listener]) -> Self {
        let of = |tls: bool| listeners.iter().filter(move |l| l.tls.is_some() == tls);
        Self {
            plain: of(false).map(|l| l.address).collect(),
            tls: of(true).map(|l| l.address).collect(),
            for_browsers: of(false).any(|l| l.redirect_https || l.address.port() == 80),
        }
    }

    /// How the authority sees that the entry's names are ours.
    pub fn challenge(&self, entry: &Acme) -> AcmeChallenge {
        entry.challenge.unwrap_or(if self.for_browsers {
            AcmeChallenge::Http01
        } else {
            AcmeChallenge::TlsAlpn01
        })
    }

    /// Whatever entries need that the listeners do not have; a sentence each.
    pub fn problems(&self, entries: &[Acme]) -> Vec<String> {
        if entries.is_empty() {
            return Vec::new();
        }
        if self.tls.is_empty() {
            return vec![
                "tollkeeper.tls.acme orders certificates, and no listener has `tls: true` to show them"
                    .into(),
            ];
        }
        let lacks = |e: &&Acme| self.challenge(e) == AcmeChallenge::Http01 && self.plain.is_empty();
        let of = |e: &Acme| {
            format!(
                "tollkeeper.tls.acme: {} has `challenge: http-01`, which needs a listener without TLS that port 80 \
                 leads to, such as {{address: 0.0.0.0:80, redirect_https: true}}; tls-alpn-01 needs none",
                e.hosts.first().map_or("an entry", String::as_str)
            )
        };
        entries.iter().filter(lacks).map(of).collect()
    }

    /// An address of ours that answers the authority's looks.
    fn at(&self, challenge: AcmeChallenge) -> Option<std::net::SocketAddr> {
        match challenge {
            AcmeChallenge::Http01 => self.plain.first().copied(),
            AcmeChallenge::TlsAlpn01 => self.tls.first().copied(),
        }
    }
}
