//! Virtual keys in memory, in front of the store, each with everybody it belongs to. A key that was known
//! stays known while the store is away; an unknown one is never let in for that.

use super::meters::Meters;
use super::parties::Parties;
use crate::store::{News, Store, StoreError, Table};
use async_trait::async_trait;
use dashmap::DashMap;
use filters::contract::ports::{Clock, Keys, Unavailable};
use filters::model::account::Kind;
use filters::model::key::{Holder, Key, KeyHash};
use filters::model::limits::Limits;
use filters::model::party::{Party, texts};
use moka::sync::Cache;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::broadcast::error::RecvError;

/// How long a key is believed without asking again.
const FRESH: Duration = Duration::from_secs(60);
/// How long a hash is believed to be nobody's. Short: it may be issued the next moment elsewhere.
const UNKNOWN_FRESH: Duration = Duration::from_secs(2);
/// Longest wait for the store, for a key that is known and for one that is not.
const KNOWN_WAIT: Duration = Duration::from_secs(1);
const WAIT: Duration = Duration::from_secs(10);
/// A key that was rotated more often than this within its grace is nobody's.
const MOST_ROTATIONS: usize = 16;
/// Keys kept. The rest is asked for when needed.
const MOST: u64 = 100_000;

/// Known keys, and hashes known to be nobody's.
pub struct KeyCache {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    parties: Arc<Parties>,
    known: Cache<KeyHash, Entry, foldhash::fast::RandomState>,
    /// What was read in an earlier one may be outdated: changes were missed.
    epoch: AtomicU64,
    /// Counts what was forgotten, so that a key read before a change is not believed after it.
    changes: AtomicU64,
    /// Hashes that are being asked for: of calls that need the same key, one asks.
    asking: DashMap<KeyHash, Arc<tokio::sync::Mutex<()>>>,
    /// A key's old hashes, while they are answered with the new key.
    rotated: DashMap<KeyHash, Vec<KeyHash>>,
}

#[derive(Clone)]
struct Entry {
    key: Option<Arc<Holder>>,
    at: Instant,
    epoch: u64,
    until: Until,
}

/// Microseconds since 1970.
#[derive(Clone, Copy, Default)]
struct Until {
    /// From when on it is nobody's any more.
    ends_micros: Option<i64>,
    /// From when on it has other limits.
    turns_micros: Option<i64>,
}

/// What the store says of a hash.
struct Found {
    holder: Option<Holder>,
    until: Until,
}

impl KeyCache {
    pub fn new(store: Arc<dyn Store>, parties: Arc<Parties>, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            clock,
            parties,
            known: Cache::builder()
                .max_capacity(MOST)
                .build_with_hasher(Default::default()),
            epoch: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            asking: DashMap::new(),
            rotated: DashMap::new(),
        }
    }

    /// A key changed or is gone: ask the store next time. Money that its calls have set aside stays
    /// set aside.
    pub fn forget(&self, hash: &KeyHash) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.known.invalidate(hash);
        if let Some((_, old)) = self.rotated.remove(hash) {
            for hash in old {
                self.known.invalidate(&hash);
            }
        }
    }

    /// Changes may have been missed. Every key is asked for again, and has to do as it was known where the
    /// store is away.
    pub fn doubt_all(&self) {
        self.parties.doubt_all();
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// An object changed or is gone, and with it the keys that it belongs to.
    pub fn forget_party(&self, table: Table, id: &str) {
        self.parties.forget(table, id);
        // Callers name these; no key belongs to one.
        if matches!(table, Table::EndUser | Table::Tag | Table::Model) {
            return;
        }
        // A reading that is under way may hold the old one.
        self.changes.fetch_add(1, Ordering::SeqCst);
        let concerned: Vec<KeyHash> = self
            .known
            .iter()
            .filter(|(_, entry)| entry.key.as_ref().is_some_and(|k| belongs(k, table, id)))
            .map(|(hash, _)| *hash)
            .collect();
        for hash in concerned {
            self.known.invalidate(&hash);
        }
    }

    /// Hears what was changed, here and on other replicas, until the store is gone.
    pub async fn listen(self: Arc<Self>, meters: Arc<Meters>) {
        let mut news = self.store.news();
        loop {
            match news.recv().await {
                Ok(News::Key(hash)) => {
                    self.forget(&hash);
                    meters.changed(Kind::Key, &hash.hex());
                }
                Ok(News::Doc(table, id)) => {
                    self.forget_party(table, &id);
                    match table.kind() {
                        Some(kind) => meters.changed(kind, &id),
                        None => meters.limits_changed(),
                    }
                }
                Ok(News::Everything) | Err(RecvError::Lagged(_)) => {
                    self.doubt_all();
                    meters.all_changed();
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn fresh(&self, entry: &Entry) -> bool {
        let time = if entry.key.is_some() { FRESH } else { UNKNOWN_FRESH };
        entry.at.elapsed() < time
            && entry.epoch == self.epoch.load(Ordering::SeqCst)
            && !self.is_past(entry.until.ends_micros)
            && !self.is_past(entry.until.turns_micros)
    }

    fn is_past(&self, at: Option<i64>) -> bool {
        at.is_some_and(|at| at <= self.clock.now_micros())
    }

    /// Raises a budget that was raised for a time; until when it is.
    fn raise(&self, holder: &mut Holder) -> Option<i64> {
        let number = |name: &str| holder.key.extra.get(name).and_then(Value::as_i64);
        let until = number("temp_budget_until_micros").filter(|at| !self.is_past(Some(*at)))?;
        let more = number("temp_budget_nanos")?.max(0);
        let budget = holder.limits.budget.nanos?;
        holder.limits.budget.nanos = Some(budget.saturating_add(more));
        Some(until)
    }

    async fn read(&self, hash: &KeyHash) -> Result<Found, StoreError> {
        let nobody = Found {
            holder: None,
            until: Until::default(),
        };
        let mut next = *hash;
        let mut ends_micros = None;
        // A key that was rotated leads to the one that took its place, which may have been rotated since: all
        // charge one account, and whoever blocks the newest blocks all.
        for _ in 0..MOST_ROTATIONS {
            let Some(key) = self.store.key_by_hash(&next).await? else {
                return Ok(nobody);
            };
            let Some(newer) = key.text("rotated_to").and_then(KeyHash::from_hex) else {
                let mut holder = self.holder(key).await?;
                let turns_micros = self.raise(&mut holder);
                return Ok(Found {
                    holder: Some(holder),
                    until: Until {
                        ends_micros,
                        turns_micros,
                    },
                });
            };
            let until = key.extra.get("rotated_until_micros").and_then(Value::as_i64);
            let until = until.unwrap_or(0);
            if self.is_past(Some(until)) {
                return Ok(nobody);
            }
            ends_micros = Some(ends_micros.map_or(until, |ends: i64| ends.min(until)));
            let mut old = self.rotated.entry(newer).or_default();
            if !old.contains(hash) {
                old.push(*hash);
            }
            drop(old);
            next = newer;
        }
        Ok(nobody)
    }

    /// The key with everybody it belongs to.
    async fn holder(&self, mut key: Key) -> Result<Holder, StoreError> {
        let away = |e: Unavailable| StoreError::Unavailable(e.0);
        let parties = &self.parties;
        let find = async |table: Table, id: Option<&str>| match id.filter(|t| !t.is_empty()) {
            Some(id) => parties.find(table, id).await.map_err(away),
            None => Ok(None),
        };
        if key.text("budget_id").is_some() {
            let fields = std::mem::take(&mut key.extra);
            key.extra = parties.with_budget(fields).await.map_err(away)?;
        }
        let user = find(Table::User, key.user_id.as_deref()).await?;
        let team = find(Table::Team, key.team_id.as_deref()).await?;
        let member = match (&team, &key.user_id) {
            (Some(team), Some(user)) => parties.member(team, user).await.map_err(away)?,
            _ => None,
        };
        let mut holder = Holder::alone(key);
        if holder.limits.budget.nanos.is_none() {
            holder.limits.budget.nanos = Limits::of(&holder.key.extra).budget.nanos;
        }
        if let Some(team) = &team {
            // Before the key's own, which others may write.
            let mut tags = texts(&team.fields, "tags");
            let own = std::mem::take(&mut holder.tags);
            let more: Vec<String> = own.into_iter().filter(|t| !tags.contains(t)).collect();
            tags.extend(more);
            holder.tags = tags;
        }
        (holder.user, holder.team, holder.member) = (user, team, member);
        let organization = holder.organization_id().map(str::to_string);
        holder.organization = find(Table::Organization, organization.as_deref()).await?;
        holder.organization_member = match (&holder.organization, &holder.key.user_id) {
            (Some(organization), Some(user)) => parties.member(organization, user).await.map_err(away)?,
            _ => None,
        };
        Ok(holder)
    }

    async fn ask(&self, hash: &KeyHash) -> Result<Option<Arc<Holder>>, Unavailable> {
        let changes = self.changes.load(Ordering::SeqCst);
        let epoch = self.epoch.load(Ordering::SeqCst);
        let usable = |e: &Entry| e.key.is_some() && !self.is_past(e.until.ends_micros);
        // Who is known need not wait for long when the store hangs.
        let bound = match self.known.get(hash).filter(usable) {
            Some(_) => KNOWN_WAIT,
            None => WAIT,
        };
        let read = tokio::time::timeout(bound, self.read(hash)).await;
        let read = read.unwrap_or_else(|_| Err(StoreError::Unavailable("it took too long".into())));
        let (key, until) = match read {
            Ok(found) => (found.holder.map(Arc::new), found.until),
            // Whoever was forgotten meanwhile is not known any more.
            Err(e) => match self.known.get(hash).filter(usable) {
                // Believed a while longer, so that an outage does not ask for every call.
                Some(known) => (known.key, known.until),
                None => return Err(Unavailable(e.to_string())),
            },
        };
        if self.changes.load(Ordering::SeqCst) == changes {
            let entry = Entry {
                key: key.clone(),
                at: Instant::now(),
                epoch,
                until,
            };
            self.known.insert(*hash, entry);
            // Forgotten between the look and the entry.
            if self.changes.load(Ordering::SeqCst) != changes {
                self.known.invalidate(hash);
            }
        }
        Ok(key)
    }
}

/// One of those that ask for the same key. The last one that goes, or is dropped, leaves nothing behind.
struct Turn<'a> {
    asking: &'a DashMap<KeyHash, Arc<tokio::sync::Mutex<()>>>,
    hash: KeyHash,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl<'a> Turn<'a> {
    fn new(asking: &'a DashMap<KeyHash, Arc<tokio::sync::Mutex<()>>>, hash: KeyHash) -> Self {
        let turn = Arc::clone(&asking.entry(hash).or_default());
        Self { asking, hash, turn }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // The map's and this one's.
        self.asking
            .remove_if(&self.hash, |_, turn| Arc::strong_count(turn) <= 2);
    }
}

/// Whether an object has a say in what the key may.
fn belongs(holder: &Holder, table: Table, id: &str) -> bool {
    let is = |party: &Option<Arc<Party>>| party.as_ref().is_some_and(|p| p.id == id);
    match table {
        // Also when it was not there before.
        Table::User => holder.user_id.as_deref() == Some(id),
        Table::Team => holder.team_id.as_deref() == Some(id),
        Table::Organization => is(&holder.organization) || holder.organization_id() == Some(id),
        Table::Budget => {
            holder.text("budget_id") == Some(id) || holder.parties().any(|p| p.text("budget_id") == Some(id))
        }
        Table::EndUser | Table::Tag | Table::Model => false,
    }
}

#[async_trait]
impl Keys for KeyCache {
    fn cached(&self, hash: &KeyHash) -> Option<Option<Arc<Holder>>> {
        self.known.get(hash).filter(|e| self.fresh(e)).map(|e| e.key)
    }

    async fn find(&self, hash: &KeyHash) -> Result<Option<Arc<Holder>>, Unavailable> {
        let turn = Turn::new(&self.asking, *hash);
        // Of many calls with one key each would wait for all those before it, were the store to hang.
        let Ok(_mine) = tokio::time::timeout(WAIT, turn.turn.lock()).await else {
            return Err(Unavailable("it took too long".into()));
        };
        // Somebody else may have asked meanwhile.
        match self.cached(hash) {
            Some(known) => Ok(known),
            None => self.ask(hash).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{self, Address, Change, Doc};
    use filters::testkit::{self, FakeClock};
    use serde_json::json;

    struct Bench {
        keys: KeyCache,
        store: Arc<dyn Store>,
        clock: Arc<FakeClock>,
        _dir: tempfile::TempDir,
    }

    async fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Sqlite(dir.path().join("db"));
        let store = store::open(&address, &store::Settings::default()).await.unwrap();
        let clock = Arc::new(FakeClock::default());
        let parties = Arc::new(Parties::new(Arc::clone(&store)));
        let keys = KeyCache::new(Arc::clone(&store), parties, Arc::clone(&clock) as _);
        Bench {
            keys,
            store,
            clock,
            _dir: dir,
        }
    }

    async fn put(bench: &Bench, table: Table, id: &str, fields: Value) {
        let Value::Object(fields) = fields else { panic!() };
        let doc = Doc {
            id: id.into(),
            fields,
            version: 0,
            created_at_micros: 0,
            updated_at_micros: 0,
        };
        let changes = [Change::Put { table, doc: &doc }];
        bench.store.change(&changes, &[]).await.unwrap();
    }

    #[tokio::test]
    async fn a_key_comes_with_everybody_it_belongs_to() {
        let bench = bench().await;
        put(
            &bench,
            Table::User,
            "u",
            json!({"user_role": "proxy_admin", "rpm_limit": 1}),
        )
        .await;
        let members = json!([{"user_id": "x"}, {"user_id": "u", "budget_id": "b"}]);
        let team = json!({"organization_id": "o", "members_with_roles": members.clone()});
        put(&bench, Table::Team, "t", team).await;
        put(
            &bench,
            Table::Organization,
            "o",
            json!({"max_budget": 3, "members": members}),
        )
        .await;
        put(
            &bench,
            Table::Budget,
            "b",
            json!({"max_budget": 2, "rpm_limit": 7}),
        )
        .await;
        let mut key = testkit::key("sk-a");
        (key.user_id, key.team_id) = (Some("u".into()), Some("t".into()));
        key.extra.insert("budget_id".into(), json!("b"));
        key.extra.insert("rpm_limit".into(), json!(5));
        bench.store.insert_key(&key).await.unwrap();
        let holder = bench.keys.find(&key.hash).await.unwrap().unwrap();
        assert_eq!(
            holder.limits.rpm,
            Some(5),
            "its own word goes before the budget's"
        );
        assert_eq!(holder.limits.budget.nanos, Some(2_000_000_000));
        assert_eq!(holder.user.as_ref().unwrap().limits.rpm, Some(1));
        let member = holder.member.as_ref().unwrap();
        assert_eq!((member.id.as_str(), member.limits.rpm), ("t\tu", Some(7)));
        let member = holder.organization_member.as_ref().unwrap();
        assert_eq!(
            (member.kind, member.id.as_str()),
            (Kind::OrganizationMember, "o\tu")
        );
        assert_eq!(member.limits.budget.nanos, Some(2_000_000_000));
        let organization = holder.organization.as_ref().unwrap();
        assert_eq!(organization.limits.budget.nanos, Some(3_000_000_000));

        assert!(bench.keys.cached(&key.hash).is_some());
        for (table, id) in [
            (Table::User, "u"),
            (Table::Team, "t"),
            (Table::Organization, "o"),
            (Table::Budget, "b"),
        ] {
            bench.keys.forget_party(table, "somebody else");
            assert!(bench.keys.cached(&key.hash).is_some());
            bench.keys.forget_party(table, id);
            assert!(bench.keys.cached(&key.hash).is_none(), "{table:?}");
            bench.keys.find(&key.hash).await.unwrap();
        }
        assert!(bench.keys.asking.is_empty());
    }

    #[tokio::test]
    async fn a_rotated_key_lives_on_in_the_new_one_until_its_time_is_over() {
        let bench = bench().await;
        let (mut old, new) = (testkit::key("sk-old"), testkit::key("sk-new"));
        old.extra.insert("rotated_to".into(), json!(new.hash.hex()));
        old.extra.insert("rotated_until_micros".into(), json!(100));
        for key in [&old, &new] {
            bench.store.insert_key(key).await.unwrap();
        }
        let found = bench.keys.find(&old.hash).await.unwrap().unwrap();
        assert_eq!(found.hash, new.hash, "both charge one account");
        assert!(bench.keys.cached(&old.hash).is_some());
        bench.keys.forget(&new.hash);
        assert!(
            bench.keys.cached(&old.hash).is_none(),
            "who blocks one blocks both"
        );
        bench.keys.find(&old.hash).await.unwrap();
        bench.clock.set(100);
        assert!(bench.keys.cached(&old.hash).is_none());
        assert!(bench.keys.find(&old.hash).await.unwrap().is_none());
        assert!(bench.keys.find(&new.hash).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_key_that_is_rotated_twice_is_the_newest() {
        let bench = bench().await;
        let keys = ["sk-1", "sk-2", "sk-3"].map(testkit::key);
        for (i, until) in [(0, 100), (1, 50), (2, 0)] {
            let mut key = keys[i].clone();
            if let Some(next) = keys.get(i + 1) {
                key.extra.insert("rotated_to".into(), json!(next.hash.hex()));
                key.extra.insert("rotated_until_micros".into(), json!(until));
            }
            bench.store.insert_key(&key).await.unwrap();
        }
        let hash = async |i: usize| {
            let found = bench.keys.find(&keys[i].hash).await.unwrap();
            found.map(|k| k.hash)
        };
        for i in 0..3 {
            assert_eq!(hash(i).await, Some(keys[2].hash), "all charge one account");
        }
        bench.keys.forget(&keys[2].hash);
        for key in &keys {
            assert!(
                bench.keys.cached(&key.hash).is_none(),
                "who blocks one blocks all"
            );
        }
        hash(0).await;
        bench.keys.forget(&keys[1].hash);
        assert!(bench.keys.cached(&keys[0].hash).is_none());
        hash(0).await;
        bench.clock.set(50);
        assert_eq!(hash(0).await, None, "the way leads through one that is over");
        assert_eq!(hash(2).await, Some(keys[2].hash));
    }

    #[tokio::test]
    async fn a_raised_budget_falls_back_at_its_time() {
        let bench = bench().await;
        let mut key = testkit::key("sk-a");
        key.max_budget_nanos = Some(10);
        key.extra.insert("temp_budget_nanos".into(), json!(5));
        key.extra.insert("temp_budget_until_micros".into(), json!(100));
        bench.store.insert_key(&key).await.unwrap();
        let budget = async || {
            let found = bench.keys.find(&key.hash).await.unwrap().unwrap();
            found.limits.budget.nanos
        };
        assert_eq!(budget().await, Some(15));
        bench.clock.set(100);
        assert_eq!(budget().await, Some(10));
    }

    #[tokio::test]
    async fn who_is_in_doubt_is_asked_for_again() {
        let bench = bench().await;
        let key = testkit::key("sk-a");
        bench.store.insert_key(&key).await.unwrap();
        bench.keys.find(&key.hash).await.unwrap();
        bench.keys.doubt_all();
        assert!(bench.keys.cached(&key.hash).is_none());
        assert!(bench.keys.find(&key.hash).await.unwrap().is_some());
        assert!(bench.keys.cached(&key.hash).is_some());
    }
}
