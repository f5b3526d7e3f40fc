//! How many connections there are, of one address and in all, and what became of those that were sent away.
//!
//! A [`Stay`] counts for as long as it lives, so nothing is left over when a handshake fails or a task
//! panics. Who is asked about and what is said to them is `door`'s.

use crate::proxy::throttle::Source;
use crate::telemetry::metrics::catalog as c;
use crate::telemetry::metrics::count::Counter;
use crate::telemetry::metrics::page::Page;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SHARDS: usize = 16;
/// One line in the log about connections of one kind, at most this often.
const QUIET: Duration = Duration::from_secs(10);

/// Why a connection was ended from our side before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// There are as many as there may be.
    Full,
    /// Its address has as many as one may have.
    Address,
    /// What came is no PROXY header, or comes from somebody who may not send one.
    ProxyHeader,
    /// The TLS handshake failed or took too long.
    Handshake,
    /// The request's head did not come in time.
    SlowHead,
    /// The client takes nothing of what is sent to it.
    SlowReader,
    /// More HTTP/2 frames that do nothing than anybody needs.
    Flood,
}

impl Ended {
    const ALL: [Ended; 7] = [
        Ended::Full,
        Ended::Address,
        Ended::ProxyHeader,
        Ended::Handshake,
        Ended::SlowHead,
        Ended::SlowReader,
        Ended::Flood,
    ];

    /// Its label in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Ended::Full => "full",
            Ended::Address => "address",
            Ended::ProxyHeader => "proxy_header",
            Ended::Handshake => "handshake",
            Ended::SlowHead => "slow_head",
            Ended::SlowReader => "slow_reader",
            Ended::Flood => "flood",
        }
    }

    /// What an admin reads, and what there is to do about it.
    fn sentence(self) -> &'static str {
        match self {
            Ended::Full => "there are as many connections as limits.connections allows",
            Ended::Address => {
                "an address has as many connections as limits.connections_per_address allows; if it is a proxy of \
                 yours, list it in trusted_proxies"
            }
            Ended::ProxyHeader => {
                "no PROXY header that can be believed; only peers in trusted_proxies may send one to a listener with \
                 proxy_protocol"
            }
            Ended::Handshake => "the TLS handshake failed",
            Ended::SlowHead => "no whole request head within timeouts.header",
            Ended::SlowReader => "the client took nothing for as long as timeouts.write",
            Ended::Flood => "a flood of HTTP/2 frames that do nothing",
        }
    }
}

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    pub in_all: u64,
    pub per_address: u64,
}

/// The connections that are open.
pub struct Caps {
    open: AtomicUsize,
    hasher: RandomState,
    /// IPv6 addresses count by their /64.
    shards: Vec<Mutex<HashMap<Source, u64>>>,
    ended: [Counter; Ended::ALL.len()],
    lines: Mutex<HashMap<&'static str, Line>>,
}

/// What has not been said yet in the log about one kind of end.
struct Line {
    said: Instant,
    since: u64,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            open: AtomicUsize::new(0),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            ended: Default::default(),
            lines: Mutex::default(),
        }
    }
}

impl Caps {
    /// Shows what is counted here.
    pub fn gather(&self, page: &mut Page) {
        page.int(&c::CONNECTIONS, &[], self.open() as i128);
        for (why, counter) in Ended::ALL.iter().zip(&self.ended) {
            page.int(&c::CONNECTIONS_REFUSED, &[why.as_str()], counter.get());
        }
    }

    /// One more connection, if there is room. Its address is counted by [`Stay::of`].
    pub fn enter(self: &Arc<Self>, most: Most) -> Result<Stay, Ended> {
        let before = self.open.fetch_add(1, Ordering::AcqRel);
        // From here on the drop counts it down again.
        let stay = Stay {
            caps: Arc::clone(self),
            address: None,
        };
        if before as u64 >= most.in_all {
            return Err(Ended::Full);
        }
        Ok(stay)
    }

    /// Counts the end, and says so in the log now and then.
    pub fn ended(&self, why: Ended, peer: Option<IpAddr>) {
        if let Some(counter) = self.ended.get(why as usize) {
            counter.add(1);
        }
        let now = Instant::now();
        let since = {
            let mut lines = self.lines.lock();
            match lines.get_mut(why.as_str()) {
                Some(line) if now.duration_since(line.said) < QUIET => {
                    line.since += 1;
                    return;
                }
                Some(line) => {
                    line.said = now;
                    std::mem::take(&mut line.since) + 1
                }
                None => {
                    lines.insert(why.as_str(), Line { said: now, since: 0 });
                    1
                }
            }
        };
        let peer = peer.map_or_else(|| "unknown".to_string(), |p| p.to_string());
        let (event, reason, sentence) = ("connection_refused", why.as_str(), why.sentence());
        // A port that faces the world is knocked at all day long.
        let level = match why {
            Ended::Handshake => log::Level::Debug,
            _ => log::Level::Warn,
        };
        log::log!(level, event, reason, peer = peer.as_str(), connections = since; "connection closed: {sentence}");
    }

    /// Open connections.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    fn shard(&self, source: &Source) -> Option<&Mutex<HashMap<Source, u64>>> {
        self.shards.get((self.hasher.hash_one(source) as usize) % SHARDS)
    }

    /// Open connections of an address.
    #[cfg(test)]
    fn open_of(&self, ip: IpAddr) -> u64 {
        let source = Source::of(ip);
        let shard = self.shard(&source).unwrap().lock();
        shard.get(&source).copied().unwrap_or(0)
    }
}

/// A connection that counts.
pub struct Stay {
    caps: Arc<Caps>,
    address: Option<Source>,
}

impl Stay {
    /// Counts it for its address as well, if that has room.
    pub fn of(&mut self, ip: IpAddr, most: Most) -> Result<(), Ended> {
        let source = Source::of(ip);
        let Some(shard) = self.caps.shard(&source) else {
            return Ok(());
        };
        {
            let mut shard = shard.lock();
            let count = shard.entry(source.clone()).or_insert(0);
            if *count >= most.per_address {
                if *count == 0 {
                    shard.remove(&source);
                }
                return Err(Ended::Address);
            }
            *count += 1;
        }
        self.address = Some(source);
        Ok(())
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.caps.open.fetch_sub(1, Ordering::AcqRel);
        let Some(source) = self.address.take() else { return };
        if let Some(shard) = self.caps.shard(&source) {
            let mut shard = shard.lock();
            if let Some(count) = shard.get_mut(&source) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    shard.remove(&source);
                }
            }
        }
    }
}

/// How many files this process may have open, as the kernel says.
pub fn file_limit() -> Option<u64> {
    limit_in(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

fn limit_in(limits: &str) -> Option<u64> {
    let line = limits.lines().find(|l| l.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// `wanted` connections, or as many as `files` leave room for: each may need one more to its upstream, and
/// some are needed for everything else.
pub fn within(wanted: u64, files: Option<u64>) -> u64 {
    match files {
        Some(files) => wanted.min((files.saturating_sub(64) / 2).max(16)),
        None => wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Most = Most {
        in_all: 5,
        per_address: 2,
    };

    #[test]
    fn an_address_has_its_share_and_gets_it_back() {
        let caps = Arc::new(Caps::default());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let enter = |text: &str| {
            let mut stay = caps.enter(MOST)?;
            stay.of(ip(text), MOST)?;
            Ok::<_, Ended>(stay)
        };
        let one = enter("10.0.0.1").unwrap();
        let two = enter("::ffff:10.0.0.1").unwrap();
        assert_eq!(enter("10.0.0.1").err(), Some(Ended::Address));
        assert_eq!(caps.open(), 2, "who was refused does not count");
        let three = enter("2001:db8::1").unwrap();
        let _four = enter("2001:db8::2").unwrap();
        assert_eq!(enter("2001:db8::ffff:3").err(), Some(Ended::Address), "one /64");
        let _five = enter("2001:db8:0:1::1").unwrap();
        assert_eq!(enter("10.9.9.9").err(), Some(Ended::Full));
        drop((one, two, three));
        assert_eq!(caps.open(), 2);
        assert_eq!(caps.open_of(ip("10.0.0.1")), 0);
        enter("10.0.0.1").unwrap();
    }

    #[test]
    fn nothing_is_left_over_after_a_panic() {
        let caps = Arc::new(Caps::default());
        let inside = Arc::clone(&caps);
        let ended = std::thread::spawn(move || {
            let mut stay = inside.enter(MOST).ok().unwrap();
            stay.of("10.0.0.1".parse().unwrap(), MOST).unwrap();
            panic!("as a request may");
        })
        .join();
        assert!(ended.is_err());
        assert_eq!(caps.open(), 0);
        assert_eq!(caps.open_of("10.0.0.1".parse().unwrap()), 0);
    }

    #[test]
    fn the_count_is_exact_between_threads() {
        let caps = Arc::new(Caps::default());
        let most = Most {
            in_all: 50,
            per_address: 30,
        };
        let threads: Vec<_> = (0..8)
            .map(|n: u8| {
                let caps = Arc::clone(&caps);
                std::thread::spawn(move || {
                    for _ in 0..2_000 {
                        if let Ok(mut stay) = caps.enter(most) {
                            let _ = stay.of(IpAddr::from([10, 0, 0, n % 2]), most);
                            assert!(caps.open_of(IpAddr::from([10, 0, 0, n % 2])) <= 30);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(caps.open(), 0);
        assert!(caps.shards.iter().all(|s| s.lock().is_empty()));
    }

    #[test]
    fn the_kernels_limit_is_heeded() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max open files            1024                 1048576              files\n";
        assert_eq!(limit_in(text), Some(1024));
        assert_eq!(limit_in("nonsense"), None);
        assert_eq!(within(20_000, Some(1024)), 480);
        assert_eq!(within(20_000, Some(1_048_576)), 20_000);
        assert_eq!(within(20_000, None), 20_000);
        assert!(file_limit().is_some_and(|n| n > 0));
    }
}
