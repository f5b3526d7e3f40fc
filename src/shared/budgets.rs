//! What keys have spent and set aside, in this process.
//!
//! Spent = what the store says + what the spool still holds. A call is let in while less than the
//! budget is spent or set aside, so calls side by side pass it by one call at most.

use dashmap::DashMap;
use filters::contract::ports::{Budgets, Exceeded, Reservation};
use filters::model::key::{Key, KeyHash};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Counters of keys with a budget.
#[derive(Default)]
pub struct Counters {
    by_key: DashMap<KeyHash, Arc<Counter>>,
}

/// Spent = `offset` + `added`. What is added never goes back, so a reading of the store that took its
/// time can be put in without losing what was added meanwhile.
#[derive(Default)]
struct Counter {
    offset: AtomicI64,
    added: AtomicI64,
    reserved: AtomicI64,
}

impl Counter {
    fn spent(&self) -> i64 {
        self.offset
            .load(Ordering::SeqCst)
            .saturating_add(self.added.load(Ordering::SeqCst))
    }
}

impl Counters {
    /// How much was added for a key so far: to be asked before the store is, and handed to [`known`].
    ///
    /// [`known`]: Self::known
    pub fn added(&self, hash: &KeyHash) -> i64 {
        self.by_key
            .get(hash)
            .map_or(0, |c| c.added.load(Ordering::SeqCst))
    }

    /// The store was read: this much is spent, rows on their way included, without what was added after
    /// `added_then`. Nano-dollars.
    pub fn known(&self, hash: KeyHash, spent_nanos: i64, added_then: i64) {
        self.counter(hash)
            .offset
            .store(spent_nanos.saturating_sub(added_then), Ordering::SeqCst);
    }

    /// A call was written down.
    pub fn add(&self, hash: &KeyHash, nanos: i64) {
        if let Some(c) = self.by_key.get(hash) {
            c.added.fetch_add(nanos, Ordering::SeqCst);
        }
    }

    fn counter(&self, hash: KeyHash) -> Arc<Counter> {
        Arc::clone(&self.by_key.entry(hash).or_default())
    }
}

impl Budgets for Counters {
    fn reserve(&self, key: &Key, nanos: i64) -> Result<Reservation, Exceeded> {
        let counter = match self.by_key.get(&key.hash) {
            Some(c) => Arc::clone(&c),
            None => {
                self.known(key.hash, key.spend_nanos, 0);
                self.counter(key.hash)
            }
        };
        let nanos = nanos.max(0);
        // Set aside first and look afterwards: of two calls at the edge, both see each other.
        let before = counter.reserved.fetch_add(nanos, Ordering::SeqCst);
        let spent = counter.spent();
        let reservation = {
            let counter = Arc::clone(&counter);
            Reservation::new(move || {
                counter.reserved.fetch_sub(nanos, Ordering::SeqCst);
            })
        };
        match key.max_budget_nanos {
            Some(budget_nanos) if spent.saturating_add(before) >= budget_nanos => Err(Exceeded {
                spent_nanos: spent,
                budget_nanos,
            }),
            _ => Ok(reservation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use filters::testkit;

    #[test]
    fn a_thousand_calls_at_once_pass_a_budget_for_three_by_one_at_most() {
        let counters = Arc::new(Counters::default());
        let mut key = testkit::key("sk-a");
        key.max_budget_nanos = Some(3_500);
        let let_in: usize = std::thread::scope(|s| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    let (counters, key) = (Arc::clone(&counters), key.clone());
                    s.spawn(move || {
                        let held: Vec<_> = (0..125)
                            .filter_map(|_| counters.reserve(&key, 1_000).ok())
                            .collect();
                        held.into_iter().map(std::mem::forget).count()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert!((3..=4).contains(&let_in), "{let_in} calls were let in");
    }

    #[test]
    fn what_is_written_while_the_store_is_read_is_not_forgotten() {
        let counters = Counters::default();
        let mut key = testkit::key("sk-a");
        key.max_budget_nanos = Some(100);
        assert!(counters.reserve(&key, 0).is_ok());
        let then = counters.added(&key.hash);
        counters.add(&key.hash, 100);
        counters.known(key.hash, 0, then);
        assert!(
            counters.reserve(&key, 0).is_err(),
            "the call that came in between counts"
        );
    }

    #[test]
    fn spent_money_counts_and_reservations_come_back() {
        let counters = Counters::default();
        let mut key = testkit::key("sk-a");
        key.max_budget_nanos = Some(10);
        for _ in 0..100 {
            assert!(counters.reserve(&key, 9).is_ok(), "given back each time");
        }
        counters.add(&key.hash, 10);
        let e = counters.reserve(&key, 0).err().unwrap();
        assert_eq!((e.spent_nanos, e.budget_nanos), (10, 10));
        key.max_budget_nanos = Some(0);
        key.hash = KeyHash::of("sk-b");
        assert!(
            counters.reserve(&key, 0).is_err(),
            "a budget of nothing lets nothing in"
        );
    }
}
