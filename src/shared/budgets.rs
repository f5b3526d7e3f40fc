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

#[derive(Default)]
struct Counter {
    spent: AtomicI64,
    reserved: AtomicI64,
}

impl Counters {
    /// The store was read: this much is spent, rows on their way included. Nano-dollars.
    pub fn known(&self, hash: KeyHash, spent_nanos: i64) {
        self.counter(hash).spent.store(spent_nanos, Ordering::SeqCst);
    }

    /// A call was written down.
    pub fn add(&self, hash: &KeyHash, nanos: i64) {
        if let Some(c) = self.by_key.get(hash) {
            c.spent.fetch_add(nanos, Ordering::SeqCst);
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
                self.known(key.hash, key.spend_nanos);
                self.counter(key.hash)
            }
        };
        let nanos = nanos.max(0);
        // Set aside first and look afterwards: of two calls at the edge, both see each other.
        let before = counter.reserved.fetch_add(nanos, Ordering::SeqCst);
        let spent = counter.spent.load(Ordering::SeqCst);
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
