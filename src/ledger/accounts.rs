//! What each key has spent that the store does not know of yet.

use super::codec;
use dashmap::DashMap;
use filters::model::key::KeyHash;
use filters::model::record::Record;

/// Nano-dollars per key, of records that are appended and have not landed. Wide, so that taking away what
/// was added always gives the sum from before, whatever was added.
#[derive(Default)]
pub struct Accounts(DashMap<KeyHash, i128>);

impl Accounts {
    pub fn of(&self, hash: &KeyHash) -> i64 {
        let nanos = self.0.get(hash).map_or(0, |nanos| *nanos);
        i64::try_from(nanos).unwrap_or(i64::MAX)
    }

    pub fn add(&self, record: &Record) {
        self.change(record.key_hash, record.spend_nanos, 1);
    }

    /// Adds a record as it lies in the spool.
    pub fn add_payload(&self, payload: &[u8]) {
        if let Ok(record) = codec::decode(payload) {
            self.add(&record);
        }
    }

    pub fn remove(&self, record: &Record) {
        self.change(record.key_hash, record.spend_nanos, -1);
    }

    fn change(&self, hash: Option<KeyHash>, nanos: i64, sign: i128) {
        // Spend never falls: a negative one is nothing here, and refused by the store.
        let (Some(hash), 1..) = (hash, nanos) else { return };
        let mut sum = self.0.entry(hash).or_insert(0);
        *sum += i128::from(nanos) * sign;
        let settled = *sum == 0;
        drop(sum);
        if settled {
            self.0.remove_if(&hash, |_, nanos| *nanos == 0);
        }
    }
}
