//! Looks for what nobody else would notice in time: rows that do not reach the store, keys that expire,
//! certificates near their end.

use super::{Alert, Alerts, Event};
use crate::ledger::{Ledger, LedgerStats};
use crate::store::{KeyFilter, MAX_ROWS, Page, Store};
use filters::model::key::Key;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the ledger is looked at.
const OFTEN: Duration = Duration::from_secs(1);
/// How often certificates are.
const AT_TIMES: Duration = Duration::from_secs(60);
/// How often keys are.
const RARELY: Duration = Duration::from_secs(600);
const DAY: i64 = 86_400;
/// Days before a key's end at which it is told, the nearest first.
const KEY_DAYS: [i64; 2] = [1, 7];
/// The same of certificates. Those that we renew have more left than any of these.
const CERTIFICATE_DAYS: [i64; 3] = [1, 7, 21];
/// Most keys of one look.
const MOST_KEYS: u64 = 10_000;

/// Names, and when what is shown for them ends, seconds since 1970.
pub type Ends = Box<dyn Fn() -> Vec<(String, i64)> + Send + Sync>;

/// Names whose certificates cannot be renewed, and why.
pub type Failing = Box<dyn Fn() -> Vec<(String, String)> + Send + Sync>;

/// What is looked at.
pub struct Watch {
    pub alerts: Arc<Alerts>,
    pub store: Arc<dyn Store>,
    pub ledger: Arc<Ledger>,
    pub certificates: Ends,
    pub failing: Failing,
}

impl Watch {
    /// For as long as the process lives.
    pub async fn run(self) {
        let mut often = tokio::time::interval(OFTEN);
        let mut at_times = tokio::time::interval(AT_TIMES);
        let mut rarely = tokio::time::interval(RARELY);
        for timer in [&mut often, &mut at_times, &mut rarely] {
            timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        let mut stuck = Stuck {
            before: self.ledger.stats(),
            told: false,
            is_own: false,
        };
        loop {
            tokio::select! {
                _ = often.tick() => stuck.look(&self.alerts, self.ledger.stats()),
                _ = at_times.tick() => {
                    for (host, end) in (self.certificates)() {
                        certificate(&self.alerts, &host, end, now());
                    }
                    for (names, why) in (self.failing)() {
                        self.alerts.certificate_renewal_failing(&names, &why);
                    }
                }
                // A store that is away is looked at the next time.
                _ = rarely.tick() => self.keys().await,
            }
        }
    }

    async fn keys(&self) {
        self.store.ready().await;
        let now = now();
        let filter = KeyFilter {
            expired: Some(false),
            expires_before_micros: Some((now + 7 * DAY).saturating_mul(1_000_000)),
            ..KeyFilter::default()
        };
        let mut offset = 0;
        while offset < MOST_KEYS {
            let page = Page {
                limit: MAX_ROWS,
                offset,
            };
            let Ok(found) = self.store.list_keys(&filter, page).await else {
                return;
            };
            found.keys.iter().for_each(|key| expiring(&self.alerts, key, now));
            if found.keys.len() < MAX_ROWS as usize {
                return;
            }
            offset += u64::from(MAX_ROWS);
        }
    }
}

/// How the ledger was, and whether somebody was told that it is stuck.
struct Stuck {
    before: LedgerStats,
    told: bool,
    /// What was told is of this replica alone: its disk. A database that is away is so for all.
    is_own: bool,
}

impl Stuck {
    fn look(&mut self, alerts: &Alerts, stats: LedgerStats) {
        let waits = stats.oldest_age > alerts.settings().ledger_stuck_after;
        let broke = stats.spool_errors > self.before.spool_errors || stats.lost > self.before.lost;
        if waits || broke {
            let why = match () {
                () if stats.lost > self.before.lost => "records are lost: disk and memory are full",
                () if broke => "the disk refuses records",
                () => "records do not reach the database",
            };
            if !self.told {
                let message = format!(
                    "The ledger is stuck: {why}. {} wait, the oldest for {} s.",
                    stats.pending_records,
                    stats.oldest_age.as_secs()
                );
                let mut alert = Alert::new(Event::LedgerStuck, why, message)
                    .with("pending_records", stats.pending_records)
                    .with("oldest_seconds", stats.oldest_age.as_secs())
                    .with("spool_errors", stats.spool_errors)
                    .with("lost_records", stats.lost);
                self.is_own = broke;
                if broke {
                    alert = alert.own();
                }
                self.told = alerts.tell(alert);
            }
        } else if self.told && stats.healthy {
            self.told = false;
            let message = "The ledger is well again: records reach the database.";
            let alert = Alert::new(Event::LedgerRecovered, "ledger", message);
            alerts.tell(if self.is_own { alert.own() } else { alert });
        }
        self.before = stats;
    }
}

/// Tells once for each of the days that are nearest.
fn expiring(alerts: &Alerts, key: &Key, now: i64) {
    let Some(end) = key.expires_micros.map(|at| at / 1_000_000) else {
        return;
    };
    let left = end - now;
    let life = end - key.created_at_micros / 1_000_000;
    // A key that is made for a day is not told of at its birth.
    let days = KEY_DAYS
        .iter()
        .find(|days| left <= **days * DAY && life > 2 * **days * DAY);
    let Some(days) = days.filter(|_| left > 0) else {
        return;
    };
    let name = key.key_alias.as_deref().unwrap_or(&key.key_name);
    let at = moment(end);
    let message = format!(
        "The key {name:?} expires in less than {}, at {at}.",
        told_days(*days)
    );
    let hash = key.hash.hex();
    let alert = Alert::new(Event::KeyExpiring, format!("{hash}@{end}:{days}"), message)
        .with("token", hash)
        .with("key_alias", key.key_alias.clone())
        .with("user_id", key.user_id.clone())
        .with("team_id", key.team_id.clone())
        .with("expires", at);
    alerts.tell(alert.once());
}

fn certificate(alerts: &Alerts, host: &str, end: i64, now: i64) {
    let left = end - now;
    let at = moment(end);
    let (mark, message) = if left <= 0 {
        (
            0,
            format!("The certificate for {host} has ended at {at}: clients refuse it."),
        )
    } else {
        let Some(days) = CERTIFICATE_DAYS.iter().find(|days| left <= **days * DAY) else {
            return;
        };
        let days_told = told_days(*days);
        (
            *days,
            format!("The certificate for {host} ends in less than {days_told}, at {at}."),
        )
    };
    let alert = Alert::new(
        Event::CertificateExpiring,
        format!("{host}@{end}:{mark}"),
        message,
    )
    .with("host", host)
    .with("expires", at);
    alerts.tell(alert.once());
}

fn told_days(days: i64) -> String {
    match days {
        1 => "a day".into(),
        days => format!("{days} days"),
    }
}

fn moment(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| at.to_string())
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf;

    const NOW: i64 = 1_800_000_000;

    fn alerts() -> Alerts {
        let once = crate::alerts::Once::default();
        Alerts::open(&conf::Alerts::default(), None, once).unwrap().0
    }

    fn told(alerts: &Alerts, tell: impl Fn(&Alerts)) -> bool {
        let before = alerts.counts().repeated;
        tell(alerts);
        // What is told twice is told once.
        tell(alerts);
        alerts.counts().repeated > before
    }

    #[test]
    fn a_certificate_is_told_of_three_times() {
        let alerts = alerts();
        let at = |days: i64| {
            told(&alerts, |a| {
                certificate(a, "llm.example.com", NOW + 30 * DAY, NOW + (30 - days) * DAY)
            })
        };
        let repeated = || alerts.counts().repeated;
        assert!(!at(30) && !at(22));
        assert!(at(21) && at(7) && at(1) && at(0));
        let before = repeated();
        assert!(at(20), "it was told already");
        assert_eq!(repeated(), before + 2);
    }

    #[test]
    fn a_key_is_told_of_a_week_and_a_day_before() {
        let alerts = alerts();
        let key = |left_days: i64, life_days: i64| {
            let mut key = filters::testkit::key("sk-a");
            key.expires_micros = Some((NOW + left_days * DAY) * 1_000_000);
            key.created_at_micros = (NOW + (left_days - life_days) * DAY) * 1_000_000;
            key
        };
        let of = |left, life| told(&alerts, |a| expiring(a, &key(left, life), NOW));
        assert!(!of(8, 30) && !of(0, 30) && !of(-1, 30));
        assert!(of(7, 30) && of(1, 30));
        assert!(!of(1, 1) && !of(5, 7), "it was made for so short a time");
        let mut endless = key(1, 30);
        endless.expires_micros = None;
        assert!(!told(&alerts, |a| expiring(a, &endless, NOW)));
    }

    #[test]
    fn a_ledger_is_told_of_once_and_when_it_is_well() {
        let alerts = alerts();
        let stats = |seconds, spool_errors, healthy| LedgerStats {
            oldest_age: Duration::from_secs(seconds),
            spool_errors,
            healthy,
            ..LedgerStats::default()
        };
        let mut stuck = Stuck {
            before: stats(0, 0, true),
            told: false,
            is_own: false,
        };
        stuck.look(&alerts, stats(59, 0, false));
        assert!(!stuck.told);
        stuck.look(&alerts, stats(61, 0, false));
        stuck.look(&alerts, stats(62, 0, false));
        assert!(stuck.told);
        stuck.look(&alerts, stats(0, 0, true));
        assert!(!stuck.told);
        stuck.look(&alerts, stats(0, 1, false));
        assert!(stuck.told, "another cause is told");
    }
}
