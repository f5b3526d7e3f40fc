//! When a certificate is ordered, and how often an order that fails is tried again: after two minutes,
//! then ever more seldom, so that no authority's limit is met (Let's Encrypt allows five failed looks at
//! a name in an hour). That is kept on disk: a restart does not begin anew.

use super::order::{Failure, Got, order};
use super::vault::{Record, Vault, due, fits, identity, moment, renewal};
use super::window::{self, wanted};
use super::{Challenges, Reach};
use crate::conf::Acme;
use crate::tls::{Tls, files, now};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rand::RngExt;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// The first pause after a failure, seconds; each next one is four times as long.
const FIRST_PAUSE: i64 = 120;
/// The longest one.
const LONGEST_PAUSE: i64 = 8 * 3_600;
/// The longest an authority may ask for: after that a person should look.
const MOST_PATIENCE: i64 = 7 * 86_400;
/// After a failure, what is asked for by hand is not done sooner than this, seconds.
const BY_HAND: i64 = 30;
/// The longest sleep: clocks are set, and files are removed.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);
/// An authority that could not be asked about a window is asked again, seconds.
const UNKNOWN: i64 = 3_600;
/// While another process orders into the same directory.
const OTHERS: Duration = Duration::from_secs(5);
/// For our own listeners to be there.
const LISTENERS: Duration = Duration::from_secs(30);

/// Looks after the entries of the config for as long as the process lives.
pub struct Tender {
    vault: Vault,
    reach: Reach,
    entries: ArcSwap<Vec<Acme>>,
    pub challenges: Arc<Challenges>,
    /// What could not be written down.
    unwritten: Mutex<HashMap<String, Record>>,
    news: Notify,
    by_hand: AtomicBool,
}

impl Tender {
    pub fn new(vault: Vault, reach: Reach) -> Self {
        Self {
            vault,
            reach,
            entries: ArcSwap::default(),
            challenges: Arc::default(),
            unwritten: Mutex::default(),
            news: Notify::new(),
            by_hand: AtomicBool::new(false),
        }
    }

    /// What these entries lack; a sentence each.
    pub fn problems(&self, entries: &[Acme]) -> Vec<String> {
        self.reach.problems(entries)
    }

    /// Takes what a changed config says.
    pub fn take(&self, entries: &[Acme]) {
        if self.entries.load().as_slice() != entries {
            self.entries.store(Arc::new(entries.to_vec()));
            self.news.notify_one();
        }
    }

    /// Somebody has asked: what failed is tried now.
    pub fn try_again(&self) {
        self.by_hand.store(true, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// Names whose orders have failed more than once in a row, and why.
    pub fn failing(&self) -> Vec<(String, String)> {
        let entries = self.entries.load_full();
        let records = entries
            .iter()
            .map(|entry| (entry.hosts.join(","), self.record(entry)));
        let failing = records.filter(|(_, record)| record.failures > 1);
        failing.map(|(names, record)| (names, record.why)).collect()
    }

    /// Orders what is due; `tls` shows each certificate that was got.
    pub async fn run(&self, tls: &Arc<Tls>) {
        loop {
            let by_hand = self.by_hand.swap(false, Ordering::Relaxed);
            let mut sleep = LONGEST_SLEEP;
            let entries = self.entries.load_full();
            for entry in entries.iter() {
                let wait = self.look(entry, by_hand, tls).await;
                sleep = sleep.min(wait);
            }
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                () = self.news.notified() => {}
            }
        }
    }

    /// Orders the entry's certificate if it is due. Returns how long there is nothing to do for it.
    async fn look(&self, entry: &Acme, by_hand: bool, tls: &Arc<Tls>) -> Duration {
        let at = now();
        let ask_again = self.ask(entry, by_hand, at).await;
        let due = self.due(entry, by_hand, at);
        if due > at {
            return seconds(due.min(ask_again) - at);
        }
        let lock = match self.vault.lock() {
            Ok(Some(lock)) => lock,
            Ok(None) => return OTHERS,
            Err(why) => {
                let failure = Failure {
                    why,
                    advice: "the data directory has to be writable".into(),
                    wait: None,
                };
                self.failed(entry, &failure);
                return seconds(self.due(entry, false, now()) - now());
            }
        };
        // Another process may have got it while we waited for the lock.
        let due = self.due(entry, by_hand, at);
        if due <= at {
            let challenge = self.reach.challenge(entry);
            if let Some(own) = self.reach.at(challenge) {
                listening(own).await;
            }
            log::info!(
                "event=acme_ordering names={} directory={}",
                entry.hosts.join(","),
                entry.directory
            );
            let kept = self.vault.certificate(entry, at).ok().flatten();
            let replaced = kept.filter(|c| wanted(&self.record(entry), &c.facts).is_some());
            let replaces = replaced.and_then(|c| c.facts.renewal_id);
            let ordered = order(
                entry,
                challenge,
                replaces.as_deref(),
                &self.vault,
                &self.challenges,
            )
            .await;
            match ordered.and_then(|got| self.keep(entry, &got).map(|()| got)) {
                Ok(got) => {
                    log::info!(
                        "event=acme_certificate_got names={} serial={} expires={}",
                        got.certificate.told_names(),
                        got.certificate.facts.serial,
                        files::day(got.certificate.facts.not_after)
                    );
                    tls.look_again().await;
                }
                Err(failure) => self.failed(entry, &failure),
            }
        }
        drop(lock);
        let at = now();
        let ask_again = self.ask(entry, false, at).await;
        seconds(self.due(entry, false, at).min(ask_again) - at)
    }

    /// Asks the authority now and then when it wants the certificate renewed. Returns when it is asked again,
    /// seconds since 1970.
    async fn ask(&self, entry: &Acme, by_hand: bool, at: i64) -> i64 {
        let mut record = self.record(entry);
        let kept = self.vault.certificate(entry, at).ok().flatten();
        let Some(kept) = kept.filter(|c| fits(entry, &record, c)) else {
            return i64::MAX;
        };
        if at < record.ask_again && !by_hand {
            return record.ask_again;
        }
        match window::ask(entry, &kept.facts).await {
            Ok(told) => {
                record.renew = told.renew.unwrap_or(0);
                record.renew_of = kept.facts.serial;
                record.ask_again = at.saturating_add(told.again);
            }
            // What it said before goes on counting.
            Err(why) => {
                log::debug!(
                    "event=acme_window_unknown names={} cause={why:?}",
                    entry.hosts.join(",")
                );
                record.ask_again = at.saturating_add(UNKNOWN);
            }
        }
        let again = record.ask_again;
        self.note(entry, record);
        again
    }

    /// When the entry's next attempt is due, seconds since 1970.
    fn due(&self, entry: &Acme, by_hand: bool, at: i64) -> i64 {
        let mut record = self.record(entry);
        if by_hand && at >= record.failed + BY_HAND {
            record.not_before = 0;
        }
        let kept = self.vault.certificate(entry, at).ok().flatten();
        due(entry, &record, kept.as_ref())
    }

    fn record(&self, entry: &Acme) -> Record {
        let unwritten = self.unwritten.lock().get(&key(entry)).cloned();
        unwritten.unwrap_or_else(|| self.vault.record(entry))
    }

    fn keep(&self, entry: &Acme, got: &Got) -> Result<(), Failure> {
        let told = |why| Failure {
            why,
            advice: "the data directory has to be writable".into(),
            wait: None,
        };
        let at = now();
        let before = self.vault.certificate(entry, at).ok().flatten();
        let was = self.record(entry);
        let early = before.is_some_and(|c| fits(entry, &was, &c) && at < renewal(&c.facts));
        self.vault.keep(entry, &got.chain, &got.key).map_err(told)?;
        let record = Record {
            early,
            directory: entry.directory.clone(),
            got: now(),
            entry: identity(entry),
            ..Record::default()
        };
        self.note(entry, record);
        Ok(())
    }

    fn failed(&self, entry: &Acme, failure: &Failure) {
        let before = self.record(entry);
        let same = before.entry == identity(entry);
        let failures = if same {
            before.failures.saturating_add(1)
        } else {
            1
        };
        let at = now();
        let record = Record {
            failures,
            failed: at,
            why: format!("{}; {}", failure.why, failure.advice),
            not_before: at + pause(failures, failure.wait, rand::rng().random_range(0..=25)),
            entry: identity(entry),
            ..before
        };
        let next = moment(record.not_before);
        // Before it is told, so that whoever hears of it and looks finds it written down.
        self.note(entry, record);
        log::error!(
            "event=acme_failed names={} attempts={failures} next=\"{next}\" cause=\"{}\": {}",
            entry.hosts.join(","),
            failure.why.replace('"', "'"),
            failure.advice
        );
    }

    /// Writes down what is known; what cannot be written is kept here, so that it counts all the same.
    fn note(&self, entry: &Acme, record: Record) {
        let written = self.vault.note(entry, &record);
        let mut unwritten = self.unwritten.lock();
        match written {
            Ok(()) => drop(unwritten.remove(&key(entry))),
            Err(why) => {
                log::error!("event=acme_state_not_kept cause=\"{why}\"");
                unwritten.insert(key(entry), record);
            }
        }
    }
}

fn key(entry: &Acme) -> String {
    entry.hosts.join(",")
}

fn seconds(n: i64) -> Duration {
    Duration::from_secs(u64::try_from(n.max(1)).unwrap_or(1)).min(LONGEST_SLEEP)
}

/// How long there is no attempt after so many that failed, seconds. `spread` is percent on top, so that
/// many gateways do not come at the same moment.
fn pause(failures: u32, asked: Option<Duration>, spread: i64) -> i64 {
    let steps = failures.saturating_sub(1).min(8);
    let own = (FIRST_PAUSE << (2 * steps)).min(LONGEST_PAUSE);
    let asked = asked.map_or(0, |d| {
        i64::try_from(d.as_secs()).unwrap_or(i64::MAX).min(MOST_PATIENCE)
    });
    let pause = own.max(asked);
    pause + pause * spread / 100
}

/// Waits until our listener is there: the authority looks at once.
async fn listening(own: SocketAddr) {
    let ip = match own.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let own = SocketAddr::new(ip, own.port());
    let _ = tokio::time::timeout(LISTENERS, async {
        let mut look = tokio::time::interval(Duration::from_millis(50));
        while TcpStream::connect(own).await.is_err() {
            look.tick().await;
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_below_what_authorities_allow() {
        let pauses: Vec<i64> = (1..=7).map(|n| pause(n, None, 0)).collect();
        assert_eq!(pauses, [120, 480, 1_920, 7_680, 28_800, 28_800, 28_800]);
        assert_eq!(pause(u32::MAX, None, 0), LONGEST_PAUSE);
        // Attempts at 0, 2, 10 and 42 minutes: four in the first hour.
        let first_hour = pauses.iter().scan(0, |at, p| {
            *at += p;
            Some(*at)
        });
        assert_eq!(1 + first_hour.filter(|at| *at < 3_600).count(), 4);
        assert_eq!(pause(1, Some(Duration::from_secs(3_600)), 25), 4_500);
        assert_eq!(pause(1, Some(Duration::MAX), 0), MOST_PATIENCE);
    }
}
