//! What each account has spent that the store does not know of yet.
//!
//! A record is charged to a dozen accounts, and written down on every call's way. So it is added up under
//! all that says who is charged, at once, and nothing more is kept: names of end users and tags come from
//! callers, and while the store is away there may be many. The accounts come out of that when somebody asks.

use super::codec;
use dashmap::DashMap;
use filters::model::account::{Account, Charge, Kind};
use filters::model::key::KeyHash;
use filters::model::record::Record;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

/// Records that are appended and have not landed: nano-dollars. Wide, so that taking away what was added
/// always gives the sum from before, whatever was added.
#[derive(Default)]
pub struct Accounts(DashMap<Box<[u8]>, i128, foldhash::fast::RandomState>);

impl Accounts {
    /// Nano-dollars of each, in the order asked for.
    pub fn of(&self, accounts: &[&Account]) -> Vec<i64> {
        let places: HashMap<(Kind, &str, &str), usize> = accounts
            .iter()
            .enumerate()
            .map(|(i, a)| ((a.kind, a.id.as_str(), a.model.as_str()), i))
            .collect();
        let kinds: HashSet<Kind> = accounts.iter().map(|a| a.kind).collect();
        let mut sums = vec![0i128; accounts.len()];
        for entry in &self.0 {
            let Some(named) = Named::read(entry.key(), kinds.contains(&Kind::Tag)) else {
                continue;
            };
            for (kind, id) in named.charge().subjects(|kind| kinds.contains(&kind)) {
                let each = [Some(named.model_group).filter(|m| !m.is_empty()), Some("")];
                for model in each.into_iter().flatten() {
                    let place = places.get(&(kind, &*id, model));
                    if let Some(sum) = place.and_then(|i| sums.get_mut(*i)) {
                        *sum += *entry.value();
                    }
                }
            }
        }
        let sum = |a: &&Account| {
            let place = places.get(&(a.kind, a.id.as_str(), a.model.as_str()));
            let sum = place.and_then(|i| sums.get(*i)).copied().unwrap_or(0);
            i64::try_from(sum).unwrap_or(i64::MAX)
        };
        accounts.iter().map(sum).collect()
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

    /// A batch's: its neighbours mostly are of one caller, and are taken away together.
    pub fn remove_all(&self, records: &[Record]) {
        for alike in records.chunk_by(|a, b| Charge::of(a) == Charge::of(b)) {
            let spent = |r: &Record| i128::from(r.spend_nanos.max(0));
            if let Some(first) = alike.first() {
                self.add_up(&Charge::of(first), -alike.iter().map(spent).sum::<i128>());
            }
        }
    }

    fn change(&self, charge: &Charge<'_>, nanos: i64, sign: i128) {
        // Spend never falls: a negative one is nothing here, and refused by the store.
        self.add_up(charge, i128::from(nanos.max(0)) * sign);
    }

    fn add_up(&self, charge: &Charge<'_>, change: i128) {
        if change == 0 {
            return;
        }
        thread_local! {
            static NAME: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        NAME.with_borrow_mut(|name| {
            write_name(charge, name);
            let settled = match self.0.get_mut(name.as_slice()) {
                Some(mut sum) => {
                    *sum += change;
                    *sum == 0
                }
                None => {
                    let mut sum = self.0.entry(name.as_slice().into()).or_default();
                    *sum += change;
                    *sum == 0
                }
            };
            if settled {
                self.0.remove_if(name.as_slice(), |_, sum| *sum == 0);
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

/// A name read back.
struct Named<'a> {
    key_hash: Option<KeyHash>,
    /// User, team, organization, end user; empty = none.
    ids: [&'a str; 4],
    model_group: &'a str,
    tags: Vec<String>,
}

impl<'a> Named<'a> {
    fn read(name: &'a [u8], with_tags: bool) -> Option<Self> {
        let mut rest = name;
        let mut part = || {
            let (len, behind) = rest.split_first_chunk()?;
            let (part, behind) = behind.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            rest = behind;
            Some(part)
        };
        let key_hash = part()?.try_into().ok().map(KeyHash);
        let mut text = || std::str::from_utf8(part()?).ok();
        let ids = [text()?, text()?, text()?, text()?];
        let model_group = text()?;
        let tags = if with_tags {
            std::iter::from_fn(text).map(str::to_string).collect()
        } else {
            Vec::new()
        };
        Some(Self {
            key_hash,
            ids,
            model_group,
            tags,
        })
    }

    fn charge(&self) -> Charge<'_> {
        let [user, team, organization, end_user] = self.ids.map(|id| Some(id).filter(|id| !id.is_empty()));
        Charge {
            key_hash: self.key_hash.as_ref(),
            user_id: user,
            team_id: team,
            organization_id: organization,
            end_user,
            model_group: self.model_group,
            tags: &self.tags,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use filters::model::account::charged;
    use filters::testkit;

    #[test]
    fn every_account_of_a_record_knows_of_it() {
        let accounts = Accounts::default();
        let full = Record {
            key_hash: Some(KeyHash([7; 32])),
            user_id: Some("u".into()),
            team_id: Some("t".into()),
            organization_id: Some("o".into()),
            end_user: Some("e".into()),
            model_group: "m".into(),
            tags: vec!["a".into(), "".into(), "b".into(), "a".into()],
            spend_nanos: 5,
            ..testkit::record("r1")
        };
        let bare = Record {
            spend_nanos: 3,
            ..testkit::record("r2")
        };
        for record in [&full, &bare] {
            accounts.add(record);
        }
        let of = |record: &Record| -> Vec<Account> {
            let both = |(kind, id): (Kind, std::borrow::Cow<'_, str>)| {
                [
                    Account::of_model(kind, id.as_ref(), record.model_group.as_str()),
                    Account::new(kind, id),
                ]
            };
            charged(record).into_iter().flat_map(both).collect()
        };
        for account in of(&full) {
            let gateway = account.kind == Kind::Gateway && account.model.is_empty();
            let known = if gateway { 8 } else { 5 };
            assert_eq!(accounts.of(&[&account, &account]), [known; 2], "{account:?}");
        }
        assert_eq!(accounts.of(&[&Account::new(Kind::Tag, "c")]), [0]);
        accounts.remove(&full);
        assert_eq!(accounts.of(&[&Account::new(Kind::Gateway, "")]), [3]);
        accounts.remove(&bare);
        assert!(accounts.0.is_empty());
    }
}
