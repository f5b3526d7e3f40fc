//! What each account has spent that the store does not know of yet.
//!
//! A record is charged to a dozen accounts, and written down on every call's way. So it is added up under
//! all that says who is charged, at once; the accounts come out of that when somebody asks.

use super::codec;
use dashmap::DashMap;
use filters::model::account::{Account, Charge};
use filters::model::record::Record;
use std::cell::RefCell;
use std::collections::HashMap;

/// Records that are appended and have not landed.
#[derive(Default)]
pub struct Accounts(DashMap<Box<[u8]>, Sum>);

struct Sum {
    /// Who is charged, each once.
    accounts: Vec<Account>,
    /// Nano-dollars. Wide, so that taking away what was added always gives the sum from before, whatever
    /// was added.
    nanos: i128,
}

impl Accounts {
    /// Nano-dollars of each, in the order asked for.
    pub fn of(&self, accounts: &[&Account]) -> Vec<i64> {
        let mut sums: HashMap<&Account, i128> = accounts.iter().map(|a| (*a, 0)).collect();
        for entry in &self.0 {
            for account in &entry.accounts {
                if let Some(sum) = sums.get_mut(account) {
                    *sum += entry.nanos;
                }
            }
        }
        accounts
            .iter()
            .map(|a| i64::try_from(sums.get(a).copied().unwrap_or(0)).unwrap_or(i64::MAX))
            .collect()
    }

    pub fn add(&self, record: &Record) {
        self.change(&Charge::of(record), record.spend_nanos, 1);
    }

    /// Adds a record as it lies in the spool.
    pub fn add_payload(&self, payload: &[u8]) {
        if let Ok(record) = codec::decode(payload) {
            self.add(&record);
        }
    }

    pub fn remove(&self, record: &Record) {
        self.change(&Charge::of(record), record.spend_nanos, -1);
    }

    fn change(&self, charge: &Charge<'_>, nanos: i64, sign: i128) {
        // Spend never falls: a negative one is nothing here, and refused by the store.
        if nanos <= 0 {
            return;
        }
        thread_local! {
            static NAME: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        NAME.with_borrow_mut(|name| {
            write_name(charge, name);
            let settled = match self.0.get_mut(name.as_slice()) {
                Some(mut sum) => {
                    sum.nanos += i128::from(nanos) * sign;
                    sum.nanos == 0
                }
                None => {
                    let mut sum = self.0.entry(name.as_slice().into()).or_insert_with(|| Sum {
                        accounts: accounts(charge),
                        nanos: 0,
                    });
                    sum.nanos += i128::from(nanos) * sign;
                    sum.nanos == 0
                }
            };
            if settled {
                self.0.remove_if(name.as_slice(), |_, sum| sum.nanos == 0);
            }
            name.clear();
            name.shrink_to(4 << 10);
        });
    }
}

/// All that says who is charged, each part with its length before it.
fn write_name(charge: &Charge<'_>, name: &mut Vec<u8>) {
    name.clear();
    let mut part = |bytes: &[u8]| {
        name.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        name.extend_from_slice(bytes);
    };
    part(charge.key_hash.map_or(&[], |h| &h.0));
    for id in [
        charge.user_id,
        charge.team_id,
        charge.organization_id,
        charge.end_user,
    ] {
        part(id.unwrap_or_default().as_bytes());
    }
    part(charge.model_group.as_bytes());
    for tag in charge.tags {
        part(tag.as_bytes());
    }
}

fn accounts(charge: &Charge<'_>) -> Vec<Account> {
    let mut accounts = Vec::new();
    for (kind, id) in charge.subjects(|_| true) {
        if !charge.model_group.is_empty() {
            accounts.push(Account::of_model(kind, id.as_ref(), charge.model_group));
        }
        accounts.push(Account::new(kind, id));
    }
    accounts
}
