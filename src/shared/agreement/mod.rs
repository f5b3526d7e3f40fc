//! How replicas of the gateway agree on money, requests, tokens and calls in flight: through Redis, one
//! atomic script per question.
//!
//! Redis hands out leases: a replica is granted more than the call at hand needs, and asks again when that
//! is used up. The meters, which count within one process and decide what to ask, are the caller's. So is
//! what to do without Redis: every question is bounded in time, and [`Away`] is an answer.
//!
//! One replica asks one question at a time about one account's money or slots: what it says of itself
//! takes the place of what it said before, so two questions at once would void one of the grants.
//! Questions about different accounts share one connection and do not wait for each other.
//!
//! All numbers are whole and within ±9·10¹⁵ (nine million dollars in nano-dollars): Redis' scripts count
//! in doubles, which are exact up to there. What lies beyond is taken as that bound.

mod line;

pub use line::ping;

use filters::model::secret::Secret;
use line::Line;
use redis::{Script, ScriptInvocation};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// The largest number that is counted with.
pub const MOST: i64 = 9_000_000_000_000_000;

/// An account's name that is longer stands under its digest: names of end users come from clients.
const LONGEST_NAME: usize = 200;

/// More steps than a window has; what else is given back stays counted until its time is over.
const MOST_GIVEN_BACK: usize = 256;

/// A window is counted in about this many steps of whole seconds.
const STEPS: u32 = 120;

/// No answer within the bound, or Redis was found away before. Nobody knows whether the question was
/// carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Redis does not answer")]
pub struct Away;

#[derive(Debug, Clone)]
pub struct Settings {
    /// Longest that a question takes.
    pub bound: Duration,
    /// How long Redis is left alone once it did not answer, before the next probe.
    pub pause: Duration,
    /// How long a replica that is not heard of keeps its money and slots. At least a millisecond.
    pub lease: Duration,
    /// PEM, in place of the machine's own root certificates, for `rediss://`.
    pub root_certificates: Option<Vec<u8>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bound: Duration::from_millis(250),
            pause: Duration::from_secs(1),
            lease: Duration::from_secs(10),
            root_certificates: None,
        }
    }
}

/// What a replica says and wants of one account's money. All amounts in nano-dollars.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MoneyAsk {
    /// Start of the budget period; any number that is another one in the next period.
    pub period: i64,
    /// Another number where what was spent before is not to count any more: the account was opened anew.
    pub era: i64,
    /// What the store has summed up for this account in this period.
    pub landed: i64,
    /// This replica's records of the period that are not in `landed`. A record must not leave this
    /// number before it is in that one; while it is in both, it only counts twice.
    pub unlanded: i64,
    /// Set aside by this replica's calls in flight, and what it keeps of earlier grants besides. What is
    /// not in here is given back with this question.
    pub held: i64,
    /// The call at hand needs so much more; 0 only reports, and makes the lease longer.
    pub want: i64,
    pub budget: i64,
    /// Grant nothing, whatever is wanted: the account rests here.
    pub idle: bool,
    /// How long Redis remembers the period after the last question about it.
    pub ttl_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoneyGrant {
    /// May be spent besides `held`, within the lease. Less than wanted is all there is: the one call
    /// that gets it may go over. 0 = nothing left, or nothing wanted.
    pub granted: i64,
    /// By all replicas in this period, landed or not.
    pub spent: i64,
    /// Of the budget, beyond what is spent, held and granted anywhere. Below 0 when overspent.
    pub left_after: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Measure {
    Requests,
    Tokens,
}

impl Measure {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// What a replica wants of one account's requests or tokens. After an [`Away`], `give_back` and an
/// `adjust` below 0 must not be said again: they may have been heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowAsk {
    pub measure: Measure,
    /// Within any stretch of time as long as the window.
    pub limit: u64,
    /// 1 second to 366 days.
    pub window_seconds: u32,
    /// The call at hand needs so many. More than the limit is never granted; 0 is granted nothing.
    pub want: u64,
    /// So many would be welcome at once; what of them is not used while the step lasts is to be given back.
    pub share: u64,
    /// (`second` of the grant, how many of it were not used). Also the way to correct an estimate that
    /// was too high, exactly.
    pub give_back: Vec<(i64, u64)>,
    /// Used beyond estimates (counted as of now), or, below 0, estimated too high in grants whose second
    /// is not known any more (taken off the oldest in the window).
    pub adjust: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowGrant {
    /// Nothing, or at least what was wanted.
    pub granted: u64,
    /// Where the grant is counted: the step's first second since 1970, by Redis' clock. Steps are single
    /// seconds for windows of up to two minutes.
    pub second: i64,
    /// Within the window, by all replicas, this grant included.
    pub used: u64,
    /// Milliseconds until there is room for what was wanted and not granted; after a grant, or when more
    /// than the limit was wanted, until nothing of all this counts any more.
    pub resets_in_millis: u64,
    /// Milliseconds left of the step when Redis answered. What is used of a grant later than that may
    /// put more into some window than the limit.
    pub lasts_millis: u64,
}

/// What a replica wants of one account's calls in flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotsAsk {
    pub limit: u64,
    /// This replica's calls in flight. Slots of earlier grants that are not in here are given back.
    pub in_use: u64,
    /// So many more; 0 only reports, and makes the lease longer.
    pub want: u64,
    /// So many would be welcome at once.
    pub share: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotsGrant {
    /// Besides `in_use`, within the lease. Less than wanted when that is all there is.
    pub granted: u64,
    /// By all replicas, as each last said.
    pub in_use_everywhere: u64,
}

pub struct Agreement {
    prefix: String,
    replica: String,
    lease_millis: i64,
    line: Arc<Line>,
    keeper: Option<tokio::task::AbortHandle>,
    money: Script,
    window: Script,
    slots: Script,
    told: Script,
}

impl Agreement {
    /// Never fails: connects behind the scenes, and again after every loss. `replica` is this replica's
    /// lasting name, known to no other; `prefix` goes before every key. Needs a Tokio runtime, which
    /// must live as long as this.
    pub fn connect(url: &Secret, prefix: &str, replica: &str) -> Arc<Self> {
        Self::connect_with(url, prefix, replica, Settings::default())
    }

    pub fn connect_with(url: &Secret, prefix: &str, replica: &str, settings: Settings) -> Arc<Self> {
        // Ring, for `rediss://`, unless the process has chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = line::client(url, &settings);
        let lease_millis = i64::try_from(settings.lease.as_millis()).unwrap_or(MOST);
        let sign_of_life = format!("{prefix}:alive:{}", named(replica));
        let line = Arc::new(Line::new(sign_of_life, settings, client.is_ok()));
        let keeper = match client {
            Ok(client) => Some(tokio::spawn(Arc::clone(&line).keep(client)).abort_handle()),
            Err(why) => {
                log::error!("event=redis_unusable error={why:?}");
                None
            }
        };
        Arc::new(Self {
            prefix: prefix.to_string(),
            replica: replica.to_string(),
            lease_millis: lease_millis.clamp(1, MOST / 4),
            line,
            keeper,
            money: Script::new(include_str!("money.lua")),
            window: Script::new(include_str!("window.lua")),
            slots: Script::new(include_str!("slots.lua")),
            told: Script::new(include_str!("told.lua")),
        })
    }

    /// What is wrong with an address, without repeating it; for refusing a configuration.
    pub fn check(url: &Secret) -> Result<(), String> {
        line::client(url, &Settings::default()).map(drop)
    }

    /// Whether the last question was answered, or the last probe, if nothing was asked for a second.
    pub fn is_up(&self) -> bool {
        self.line.is_up()
    }

    /// Says what this replica has spent and set aside, and asks for more.
    pub async fn money(&self, account: &str, ask: &MoneyAsk) -> Result<MoneyGrant, Away> {
        let mut key = format!("{}:money:{}:{}", self.prefix, named(account), ask.period);
        if ask.era != 0 {
            key.push_str(&format!(":{}", ask.era));
        }
        let mut question = self.money.key(key);
        question
            .arg(&self.replica)
            .arg(amount(ask.landed))
            .arg(amount(ask.unlanded))
            .arg(amount(ask.held))
            .arg(amount(ask.want))
            .arg(ask.budget.clamp(-MOST, MOST))
            .arg(self.lease_millis)
            // Ten years are for ever, and more would pass what Redis can add to its clock.
            .arg(ask.ttl_seconds.clamp(60, 10 * 366 * 86_400))
            .arg(u8::from(ask.idle));
        let (granted, spent, left_after) = self.line.ask(&question).await?;
        Ok(MoneyGrant {
            granted,
            spent,
            left_after,
        })
    }

    /// Asks for requests or tokens out of a moving window.
    pub async fn window(&self, account: &str, ask: &WindowAsk) -> Result<WindowGrant, Away> {
        let seconds = ask.window_seconds.clamp(1, 366 * 86_400);
        let key = format!(
            "{}:window:{}:{}:{seconds}",
            self.prefix,
            named(account),
            ask.measure.as_str()
        );
        let mut question = self.window.key(key);
        question
            .arg(count(ask.limit))
            .arg(seconds)
            .arg(seconds.div_ceil(STEPS))
            .arg(count(ask.want))
            .arg(count(ask.share))
            .arg(ask.adjust.clamp(-MOST, MOST));
        for (second, unused) in ask.give_back.iter().take(MOST_GIVEN_BACK) {
            question.arg(amount(*second)).arg(count(*unused));
        }
        let (granted, second, used, resets_in_millis, lasts_millis) = self.line.ask(&question).await?;
        Ok(WindowGrant {
            granted,
            second,
            used,
            resets_in_millis,
            lasts_millis,
        })
    }

    /// Says how many calls this replica has in flight, and asks for more.
    pub async fn slots(&self, account: &str, ask: &SlotsAsk) -> Result<SlotsGrant, Away> {
        let mut question: ScriptInvocation<'_> =
            self.slots
                .key(format!("{}:slots:{}", self.prefix, named(account)));
        question
            .arg(&self.replica)
            .arg(count(ask.limit))
            .arg(count(ask.in_use))
            .arg(count(ask.want))
            .arg(count(ask.share))
            .arg(self.lease_millis);
        let (granted, in_use_everywhere) = self.line.ask(&question).await?;
        Ok(SlotsGrant {
            granted,
            in_use_everywhere,
        })
    }

    /// Whether no replica has said `name` within its window; then it counts as said for `window` from now.
    pub async fn is_first(&self, name: &str, window: Duration) -> Result<bool, Away> {
        let mut question = self.told.key(format!("{}:told:{}", self.prefix, named(name)));
        let millis = i64::try_from(window.as_millis()).unwrap_or(MOST);
        question.arg(&self.replica).arg(millis.clamp(1, MOST));
        self.line.ask::<i64>(&question).await.map(|first| first == 1)
    }
}

impl Drop for Agreement {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

fn amount(n: i64) -> i64 {
    n.clamp(0, MOST)
}

fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(MOST).min(MOST)
}

/// A name as it stands in a key. The braces are Redis Cluster's hash tag: one account, one node.
fn named(name: &str) -> String {
    if name.len() <= LONGEST_NAME {
        return format!("{{{name}}}");
    }
    let digest: String = Sha256::digest(name.as_bytes())
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    // Its tag stands behind a word that no short name has before its own.
    format!("sha256:{{{digest}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_names_share_a_key() {
        let long = "x".repeat(LONGEST_NAME + 1);
        let key = named(&long);
        assert!(key.len() < LONGEST_NAME && key.starts_with("sha256:{"));
        let digest = key.trim_start_matches("sha256:{").trim_end_matches('}');
        for other in [digest, key.as_str(), "", &long[1..]] {
            assert_ne!(named(other), key, "{other}");
        }
        assert_eq!(named("team:7"), "{team:7}");
    }

    #[test]
    fn numbers_stay_where_doubles_are_exact() {
        assert_eq!((amount(-5), amount(i64::MAX), amount(7)), (0, MOST, 7));
        assert_eq!((count(u64::MAX), count(7)), (MOST, 7));
    }
}
