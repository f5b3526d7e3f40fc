//! Users, teams, organizations, end users and tags in memory, in front of the store, with the limits of the
//! budget that they refer to. One that was known stays known while the store is away.

use crate::store::{Store, StoreError, Table};
use filters::contract::ports::Unavailable;
use filters::model::account::{Kind, member};
use filters::model::party::Party;
use moka::sync::Cache;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How long the store's word is believed.
const FRESH: Duration = Duration::from_secs(60);
const MOST: u64 = 100_000;
/// Questions about end users and tags under way at once: names that callers make up must not take the
/// connections that keys are looked up by.
const AT_ONCE: usize = 4;

/// What a budget says where its holder does not.
const OF_BUDGET: [&str; 11] = [
    "max_budget",
    "soft_budget",
    "budget_duration",
    "budget_since_micros",
    "rpm_limit",
    "tpm_limit",
    "max_parallel_requests",
    "model_max_budget",
    "model_rpm_limit",
    "model_tpm_limit",
    "model_max_parallel_requests",
];

type Id = (Table, String);

/// See the module.
pub struct Parties {
    store: Arc<dyn Store>,
    known: Cache<Id, Entry>,
    /// What was read in an earlier one may be outdated: changes were missed.
    epoch: AtomicU64,
    /// Counts what was forgotten, so that what was read before a change is not believed after it.
    changes: AtomicU64,
    room: Semaphore,
}

#[derive(Clone)]
struct Entry {
    /// None = there is no such object.
    fields: Option<Arc<Map<String, Value>>>,
    at: Instant,
    epoch: u64,
}

impl Parties {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            known: Cache::new(MOST),
            epoch: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            room: Semaphore::new(AT_ONCE),
        }
    }

    pub fn forget(&self, table: Table, id: &str) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.known.invalidate(&(table, id.to_string()));
    }

    /// Changes may have been missed. What is known is asked for again, and has to do where the store is
    /// away.
    pub fn doubt_all(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    fn fresh(&self, entry: &Entry) -> bool {
        entry.at.elapsed() < FRESH && entry.epoch == self.epoch.load(Ordering::SeqCst)
    }

    /// A party with the limits of its budget. None = nobody knows it.
    pub async fn find(&self, table: Table, id: &str) -> Result<Option<Arc<Party>>, Unavailable> {
        let Some(kind) = table.kind() else { return Ok(None) };
        let Some(fields) = self.fields(table, id).await? else {
            return Ok(None);
        };
        let fields = self.with_budget((*fields).clone()).await?;
        Ok(Some(Arc::new(Party::new(kind, id, fields))))
    }

    /// The user as a member of a team or an organization, if that says so.
    pub async fn member(&self, of: &Party, user_id: &str) -> Result<Option<Arc<Party>>, Unavailable> {
        let (kind, list) = match of.kind {
            Kind::Organization => (Kind::OrganizationMember, "members"),
            _ => (Kind::Member, "members_with_roles"),
        };
        let members = of.fields.get(list).and_then(Value::as_array);
        let entry = members.into_iter().flatten().find_map(|m| {
            let m = m.as_object()?;
            (m.get("user_id")?.as_str()? == user_id).then_some(m)
        });
        let Some(entry) = entry else { return Ok(None) };
        let mut fields = entry.clone();
        // LiteLLM's word for it in requests.
        if let Some(budget) = fields.get("max_budget_in_team").filter(|b| !b.is_null()).cloned() {
            fields.entry("max_budget").or_insert(budget);
        }
        let fields = self.with_budget(fields).await?;
        let id = member(&of.id, user_id);
        Ok(Some(Arc::new(Party::new(kind, id, fields))))
    }

    /// Fills in what the budget says that `budget_id` names.
    pub async fn with_budget(
        &self,
        mut fields: Map<String, Value>,
    ) -> Result<Map<String, Value>, Unavailable> {
        let budget_id = fields.get("budget_id").and_then(Value::as_str);
        let Some(id) = budget_id.filter(|t| !t.is_empty()) else {
            return Ok(fields);
        };
        if let Some(budget) = self.fields(Table::Budget, id).await? {
            for name in OF_BUDGET {
                // A form's empty list of models says nothing either.
                let silent = fields
                    .get(name)
                    .is_none_or(|v| v.is_null() || v.as_object().is_some_and(Map::is_empty));
                if let (true, Some(value)) = (silent, budget.get(name)) {
                    fields.insert(name.into(), value.clone());
                }
            }
        }
        Ok(fields)
    }

    async fn fields(&self, table: Table, id: &str) -> Result<Option<Arc<Map<String, Value>>>, Unavailable> {
        let name = (table, id.to_string());
        let known = self.known.get(&name);
        if let Some(entry) = &known
            && self.fresh(entry)
        {
            return Ok(entry.fields.clone());
        }
        let _room = match table {
            Table::EndUser | Table::Tag => self.room.acquire().await.ok(),
            _ => None,
        };
        // Somebody else may have asked meanwhile.
        if let Some(entry) = self.known.get(&name)
            && self.fresh(&entry)
        {
            return Ok(entry.fields);
        }
        let epoch = self.epoch.load(Ordering::SeqCst);
        let changes = self.changes.load(Ordering::SeqCst);
        let fields = match self.store.document(table, id).await {
            Ok(doc) => doc.map(|d| Arc::new(d.fields)),
            Err(e @ StoreError::Unavailable(_)) => {
                // Whoever was forgotten meanwhile is not known any more.
                return match self.known.get(&name) {
                    Some(entry) => Ok(entry.fields),
                    None => Err(Unavailable(e.to_string())),
                };
            }
            Err(e) => return Err(Unavailable(e.to_string())),
        };
        if self.changes.load(Ordering::SeqCst) == changes {
            let at = Instant::now();
            let fields = fields.clone();
            self.known.insert(name.clone(), Entry { fields, at, epoch });
            // Forgotten between the look and the entry.
            if self.changes.load(Ordering::SeqCst) != changes {
                self.known.invalidate(&name);
            }
        }
        Ok(fields)
    }
}
