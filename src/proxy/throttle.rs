//! How fast one source may ask, before anything else is known of it: a token bucket per source, with the
//! semantics of Traefik's `rateLimit`.
//!
//! A bucket holds `burst` tokens and gains `average` per `period`. A request that would wait a moment for
//! its token (half the time between two tokens) waits; one that would wait longer is refused and takes
//! none.

use crate::conf::{RateLimit, RateSource};
use http::HeaderMap;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Sources remembered, all shards together. With more, those that did not ask lately are forgotten: their
/// buckets are full again, which helps nobody who has as many addresses.
const MOST_SOURCES: usize = 65_536;
const SHARDS: usize = 16;
/// The longest wait where tokens come slower than one per second.
const LONGEST_DELAY: Duration = Duration::from_millis(500);

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Now,
    /// Its token comes in a moment.
    After(Duration),
    /// Too fast: try again after this time.
    Refused(Duration),
}

/// Whose bucket it is: an address, or for IPv6 its /64, which is what one customer gets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Address(IpAddr),
    /// The value of a configured header, bounded by the head's size.
    Name(String),
}

impl Source {
    pub fn of(ip: IpAddr) -> Self {
        Source::Address(match ip.to_canonical() {
            IpAddr::V4(ip) => IpAddr::V4(ip),
            IpAddr::V6(ip) => {
                let network = u128::from(ip) & (u128::MAX << 64);
                IpAddr::V6(Ipv6Addr::from(network))
            }
        })
    }
}

/// The buckets of all sources.
pub struct Throttle {
    rule: RateLimit,
    /// Nanoseconds between two tokens, and to fill an empty bucket.
    step: u64,
    depth: u64,
    patience: u64,
    begun: Instant,
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
}

/// For each source the time (nanoseconds since `begun`) at which its bucket is full again. Two halves:
/// once the young one is full it becomes the old one, and what was old is forgotten.
#[derive(Default)]
struct Shard {
    young: HashMap<Source, u64>,
    old: HashMap<Source, u64>,
}

impl Shard {
    fn full_at(&self, source: &Source) -> Option<u64> {
        self.young.get(source).or_else(|| self.old.get(source)).copied()
    }

    fn keep(&mut self, source: &Source, full_at: u64) {
        if let Some(slot) = self.young.get_mut(source) {
            *slot = full_at;
            return;
        }
        if self.young.len() >= MOST_SOURCES / SHARDS / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(source.clone(), full_at);
    }
}

impl Throttle {
    pub fn new(rate: &RateLimit) -> Self {
        let period = u64::try_from(rate.period.as_nanos()).unwrap_or(u64::MAX).max(1);
        let step = (period / u64::from(rate.average.max(1))).max(1);
        Self {
            rule: rate.clone(),
            step,
            depth: step.saturating_mul(u64::from(rate.burst.max(1))),
            patience: (step / 2).min(LONGEST_DELAY.as_nanos() as u64),
            begun: Instant::now(),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    pub fn rule(&self) -> &RateLimit {
        &self.rule
    }

    /// Whose request it is, by the rule.
    pub fn source(&self, peer: IpAddr, client: IpAddr, headers: &HeaderMap) -> Source {
        match &self.rule.source {
            RateSource::Client => Source::of(client),
            RateSource::Peer => Source::of(peer),
            RateSource::Forwarded(depth) => Source::Name(from_the_right(headers, *depth)),
            RateSource::Header(name) => match headers.get(name) {
                Some(value) => Source::Name(String::from_utf8_lossy(value.as_bytes()).into_owned()),
                None => Source::of(client),
            },
        }
    }

    /// Takes a token of the source's bucket, or says when there will be one.
    pub fn take(&self, source: &Source) -> Turn {
        self.take_at(source, self.begun.elapsed())
    }

    fn take_at(&self, source: &Source, since_begun: Duration) -> Turn {
        let now = u64::try_from(since_begun.as_nanos()).unwrap_or(u64::MAX);
        let at = (self.hasher.hash_one(source) as usize) % SHARDS;
        let Some(shard) = self.shards.get(at) else {
            return Turn::Now;
        };
        let mut shard = shard.lock();
        let full_at = shard.full_at(source).unwrap_or(0).max(now);
        let next = full_at.saturating_add(self.step);
        let wait = next.saturating_sub(now).saturating_sub(self.depth);
        if wait > self.patience {
            // It takes no token and stays known.
            shard.keep(source, full_at);
            return Turn::Refused(Duration::from_nanos(wait));
        }
        shard.keep(source, next);
        match wait {
            0 => Turn::Now,
            n => Turn::After(Duration::from_nanos(n)),
        }
    }

    /// Sources that are remembered.
    pub fn len(&self) -> usize {
        let held = self.shards.iter().map(|s| {
            let shard = s.lock();
            shard.young.len() + shard.old.len()
        });
        held.sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The n-th address from the right, or nothing where there are fewer.
fn from_the_right(headers: &HeaderMap, depth: u32) -> String {
    let hops: Vec<&str> = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .collect();
    hops.len()
        .checked_sub(depth as usize)
        .and_then(|at| hops.get(at))
        .map_or(String::new(), |hop| (*hop).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle(average: u32, burst: u32, source: RateSource) -> Throttle {
        Throttle::new(&RateLimit {
            average,
            period: Duration::from_secs(1),
            burst,
            source,
        })
    }

    fn seeds() -> Throttle {
        throttle(100, 200, RateSource::Client)
    }

    #[test]
    fn a_source_is_found_as_the_rule_says() {
        let (peer, client): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "192.0.2.7".parse().unwrap());
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "1.1.1.1, 2.2.2.2".parse().unwrap());
        headers.append("x-forwarded-for", "3.3.3.3".parse().unwrap());
        headers.insert("x-tenant", "blue".parse().unwrap());
        let found = |source| throttle(1, 1, source).source(peer, client, &headers);
        assert_eq!(found(RateSource::Client), Source::of(client));
        assert_eq!(found(RateSource::Peer), Source::of(peer));
        assert_eq!(found(RateSource::Forwarded(1)), Source::Name("3.3.3.3".into()));
        assert_eq!(found(RateSource::Forwarded(3)), Source::Name("1.1.1.1".into()));
        assert_eq!(found(RateSource::Forwarded(4)), Source::Name(String::new()));
        assert_eq!(
            found(RateSource::Header("x-tenant".into())),
            Source::Name("blue".into())
        );
        assert_eq!(found(RateSource::Header("x-other".into())), Source::of(client));
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn source(n: u32) -> Source {
        Source::of(IpAddr::from(n.to_be_bytes()))
    }

    #[test]
    fn a_burst_and_a_plateau_admit_what_the_bucket_holds() {
        let t = seeds();
        let admitted = (0..600)
            .filter(|_| !matches!(t.take_at(&source(1), at(0)), Turn::Refused(_)))
            .count();
        // 200 at once; the 201st would wait 10 ms, which is longer than half a step.
        assert_eq!(admitted, 200);
        // Five seconds at 300 a second: 100 tokens come each second.
        let admitted = (0..1500u64)
            .filter(|n| !matches!(t.take_at(&source(1), at(n * 1000 / 300)), Turn::Refused(_)))
            .count();
        assert!((495..=501).contains(&admitted), "{admitted}");
    }

    #[test]
    fn who_is_nearly_in_time_waits_and_others_are_told_when() {
        let t = throttle(10, 1, RateSource::Client);
        assert_eq!(t.take_at(&source(1), at(0)), Turn::Now);
        assert_eq!(t.take_at(&source(1), at(0)), Turn::Refused(at(100)));
        assert_eq!(t.take_at(&source(1), at(60)), Turn::After(at(40)));
        assert_eq!(t.take_at(&source(1), at(100)), Turn::Refused(at(100)));
        assert_eq!(
            t.take_at(&source(2), at(0)),
            Turn::Now,
            "another source has its own bucket"
        );
    }

    #[test]
    fn neighbours_in_one_ipv6_network_share_a_bucket() {
        let one: IpAddr = "2001:db8:0:1::5".parse().unwrap();
        let two: IpAddr = "2001:db8:0:1:ffff::9".parse().unwrap();
        let other: IpAddr = "2001:db8:0:2::5".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(Source::of(one), Source::of(two));
        assert_ne!(Source::of(one), Source::of(other));
        assert_eq!(Source::of(mapped), Source::of("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn a_flood_of_sources_stays_bounded_and_who_goes_on_asking_stays_known() {
        let t = seeds();
        let busy = source(u32::MAX);
        while !matches!(t.take_at(&busy, at(0)), Turn::Refused(_)) {}
        let mut refused = 0;
        for n in 0..200_000 {
            t.take_at(&source(n), at(1));
            if n % 1_000 == 0 && matches!(t.take_at(&busy, at(2)), Turn::Refused(_)) {
                refused += 1;
            }
        }
        assert!(t.len() <= MOST_SOURCES);
        assert_eq!(refused, 200, "its bucket is not forgotten");
    }
}
