//! Where to connect: names resolved without blocking, kept for a while, and turned into peers.

use super::place::{IDLE, Place};
use dashmap::DashMap;
use filters::model::deployment::Base;
use pingora::prelude::HttpPeer;
use pingora::upstreams::peer::{ALPN, Peer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long an address is used before the name is asked for again.
const FRESH: Duration = Duration::from_secs(30);
/// How long resolving may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Streams on one HTTP/2 connection. Pingora's default of 1 would open a connection per call.
const H2_STREAMS: usize = 100;

/// Peers by place. Names come from the config alone, so this stays small.
#[derive(Default)]
pub struct Peers {
    known: DashMap<Base, Arc<Known>, foldhash::fast::RandomState>,
}

struct Known {
    places: Vec<Arc<Place>>,
    next: AtomicUsize,
    at: Instant,
    forever: bool,
}

impl Peers {
    /// Where to connect to. `Err` is for the log: it may hold an address.
    pub async fn place(&self, base: &Base, connect: Duration) -> Result<Arc<Place>, String> {
        let known = self.known.get(base).map(|k| Arc::clone(&k));
        let known = match known {
            Some(k) if k.forever || k.at.elapsed() < FRESH => k,
            stale => match self.resolve(base, connect, stale.as_deref()).await {
                Ok(fresh) => fresh,
                // An old address is better than none while the resolver is away.
                Err(e) => stale.ok_or(e)?,
            },
        };
        let turn = known.next.fetch_add(1, Ordering::Relaxed);
        known
            .places
            .get(turn % known.places.len().max(1))
            .cloned()
            .ok_or_else(|| format!("{} has no address", base.host))
    }

    async fn resolve(
        &self,
        base: &Base,
        connect: Duration,
        stale: Option<&Known>,
    ) -> Result<Arc<Known>, String> {
        let literal = base.host.parse().ok().map(|ip| SocketAddr::new(ip, base.port));
        let addresses: Vec<SocketAddr> = match literal {
            Some(address) => vec![address],
            None => tokio::time::timeout(PATIENCE, tokio::net::lookup_host((base.host.as_str(), base.port)))
                .await
                .map_err(|_| format!("resolving {} took too long", base.host))?
                .map_err(|e| format!("resolving {}: {e}", base.host))?
                .collect(),
        };
        if addresses.is_empty() {
            return Err(format!("{} has no address", base.host));
        }
        // An address that stays keeps its connections.
        let known_already = |peer: &HttpPeer| {
            let mut places = stale.iter().flat_map(|k| &k.places);
            let alike = |p: &HttpPeer| {
                p.reuse_hash() == peer.reuse_hash()
                    && p.options.connection_timeout == peer.options.connection_timeout
            };
            places.find(|p| alike(&p.peer)).cloned()
        };
        let known = Arc::new(Known {
            places: addresses
                .iter()
                .map(|a| peer(*a, base, connect))
                .map(|peer| known_already(&peer).unwrap_or_else(|| Arc::new(Place::new(peer))))
                .collect(),
            next: AtomicUsize::new(0),
            at: Instant::now(),
            forever: literal.is_some(),
        });
        self.known.insert(base.clone(), Arc::clone(&known));
        Ok(known)
    }
}

fn peer(address: SocketAddr, base: &Base, connect: Duration) -> HttpPeer {
    // An empty name would switch certificate verification off, so TLS always carries the host's.
    let mut peer = HttpPeer::new(address, base.tls, base.host.clone());
    let options = &mut peer.options;
    options.connection_timeout = Some(connect);
    options.total_connection_timeout = Some(connect);
    options.idle_timeout = Some(IDLE);
    options.max_h2_streams = H2_STREAMS;
    options.alpn = match (base.tls, base.h2) {
        (true, _) => ALPN::H2H1,
        (false, true) => ALPN::H2,
        (false, false) => ALPN::H1,
    };
    peer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses() {
        let peers = Peers::default();
        let base = |url: &str| Base::parse(url).unwrap();
        let second = Duration::from_secs(1);
        let p = peers.place(&base("http://127.0.0.1:8080"), second).await.unwrap();
        assert_eq!(p.peer._address.to_string(), "127.0.0.1:8080");
        let p = peers.place(&base("https://localhost"), second).await.unwrap();
        assert_eq!(p.peer.sni, "localhost", "TLS is verified against the name");
        assert!(
            peers
                .place(&base("http://no-such-host.invalid"), second)
                .await
                .is_err()
        );
    }
}
