//! What accounts have spent, asked of the store.

use super::Meters;
use super::meter::Meter;
use super::money::{self, Then};
use super::subject::Bound;
use crate::shared::period::Period;
use crate::store::{Balance, StoreError};
use filters::model::account::{Account, Kind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Longest wait for the store; after that, what is known here has to do.
const WAIT: Duration = Duration::from_secs(3);
/// Most accounts in one question.
const MOST: usize = 500;

/// An account as it was when the question was put.
struct Reading {
    meter: Arc<Meter>,
    period: Period,
    then: Then,
    said: money::Reading,
}

/// Until when somebody waits for the store who begins now.
pub(super) fn patience() -> Instant {
    Instant::now() + WAIT
}

impl Meters {
    /// Reads what these have spent. Of calls that need the same account, one asks and the others wait.
    pub(super) async fn read(&self, mut unread: Vec<Arc<Bound>>, deadline: Instant) {
        unread.sort_by_key(|b| b.meter.serial);
        unread.dedup_by_key(|b| b.meter.serial);
        let mut asked = Vec::with_capacity(unread.len());
        let mut turns = Vec::with_capacity(unread.len());
        for bound in &unread {
            // Whose turn does not come in time learns below that there is no time left.
            turns.extend(timeout_at(deadline, bound.meter.reading.lock()).await);
            let is_read = |m: &money::Money| m.is_read();
            if !bound
                .meter
                .state
                .lock()
                .money
                .as_ref()
                .is_some_and(|m| is_read(m))
            {
                asked.push(Arc::clone(&bound.meter));
            }
        }
        if !asked.is_empty() {
            self.read_from_store(asked, deadline).await;
        }
        drop(turns);
    }

    async fn read_from_store(&self, meters: Vec<Arc<Meter>>, deadline: Instant) -> bool {
        let mut readings: Vec<Reading> = meters
            .into_iter()
            .filter_map(|meter| {
                let state = meter.state.lock();
                let money = state.money.as_ref()?;
                let (then, period) = (money.then(), money.period());
                drop(state);
                Some(Reading {
                    meter,
                    period,
                    then,
                    said: money::Reading::default(),
                })
            })
            .collect();
        // Asked before the store: a row that lands in between counts twice until the next reading, never
        // not at all.
        let accounts: Vec<&Account> = readings.iter().map(|r| &r.meter.account).collect();
        let on_its_way = (self.world.unlanded)(&accounts);
        for (r, nanos) in readings.iter_mut().zip(on_its_way) {
            r.said.on_its_way = nanos;
        }
        let done = timeout_at(deadline, self.balances(&mut readings)).await;
        let failed = match done {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some("it took too long".into()),
        };
        let accounts: Vec<&Account> = readings.iter().map(|r| &r.meter.account).collect();
        let still = (self.world.unlanded)(&accounts);
        let now = self.now();
        if let Some(why) = &failed {
            log::warn!("event=balances_unread accounts={} cause={why:?}", readings.len());
        }
        for (r, still) in readings.into_iter().zip(still) {
            // As the key said when it was read.
            let at_least = match failed {
                Some(_) => self.at_least(&r.meter.account, r.period),
                None => 0,
            };
            let mut state = r.meter.state.lock();
            let Some(money) = &mut state.money else { continue };
            if failed.is_some() {
                money.unknowable(at_least.saturating_add(r.said.on_its_way), now.mono);
            } else {
                money.known(r.then, r.said, now.mono);
                if still < r.said.on_its_way {
                    // Landed meanwhile, and maybe counted twice.
                    money.doubt();
                }
            }
        }
        failed.is_none()
    }

    fn at_least(&self, account: &Account, period: Period) -> i64 {
        if account.kind != Kind::Key || !account.model.is_empty() || period.end.is_some() {
            return 0;
        }
        filters::model::key::KeyHash::from_hex(&account.id)
            .and_then(|hash| Some(self.plans.get(&hash)?.holder.spend_nanos))
            .unwrap_or(0)
    }

    async fn balances(&self, readings: &mut [Reading]) -> Result<(), StoreError> {
        let store = &self.world.store;
        let accounts: Vec<Account> = readings.iter().map(|r| r.meter.account.clone()).collect();
        if self.world.agreement.is_some() {
            // Before the balances: what is new there must not be told as if it were of before.
            let openings = store.openings(&accounts).await?;
            for (r, opening) in readings.iter_mut().zip(openings) {
                r.said.era = opening.unwrap_or(0);
            }
        }
        let found = store.balances(&accounts).await?;
        let mut behind = Vec::new();
        for (i, (r, balance)) in readings.iter_mut().zip(&found).enumerate() {
            match r.period.end {
                Some(_) if balance.period_started_micros != Some(r.period.start) => behind.push(i),
                _ => r.said.landed = landed(r.period, balance),
            }
        }
        if behind.is_empty() {
            return Ok(());
        }
        let mut accounts = Vec::with_capacity(behind.len());
        for r in behind.iter().filter_map(|i| readings.get(*i)) {
            let Period { start, end } = r.period;
            store.begin_period(&r.meter.account, start, end).await?;
            accounts.push(r.meter.account.clone());
        }
        let found = store.balances(&accounts).await?;
        for (i, balance) in behind.into_iter().zip(&found) {
            if let Some(r) = readings.get_mut(i) {
                r.said.landed = landed(r.period, balance);
            }
        }
        Ok(())
    }

    /// Reads again what is in use and older than `fresh`.
    pub(super) async fn refresh(&self, fresh: Duration) {
        let now = self.now();
        let fresh = fresh.as_millis() as u64;
        let mut old: Vec<Arc<Meter>> = Vec::new();
        for entry in &self.table {
            let state = entry.state.lock();
            let Some(money) = &state.money else { continue };
            let in_use = now.mono.saturating_sub(state.used_at) < 60_000;
            if money.is_read() && in_use && money.is_stale(now.mono, fresh) {
                old.push(Arc::clone(entry.value()));
            }
        }
        self.read_again(old).await;
    }

    pub(super) async fn read_again(&self, meters: Vec<Arc<Meter>>) {
        for some in meters.chunks(MOST) {
            if !self.read_from_store(some.to_vec(), patience()).await {
                return;
            }
        }
    }
}

fn landed(period: Period, balance: &Balance) -> i64 {
    match period.end {
        Some(_) => balance.period_nanos,
        None => balance.total_nanos,
    }
}
