//! Keys among the objects that they belong to: shown with the budgets that they name, dropped with their owners.

use super::Desk;
use super::audit::Entry;
use super::error::Result;
use super::objects::{budget_table, effective};
use super::rights::Actor;
use super::{keys, shapes};
use crate::store::{Change, KeyFilter, Page};
use filters::contract::Fault;
use filters::model::key::{Key, KeyHash};
use filters::model::money::Nanos;
use serde_json::{Map, Value, json};

impl Desk {
    /// A key's row with what the budget says that it names, as far as that can be read: what was written is told
    /// in any case, and a new secret only once.
    pub async fn key_row(&self, key: &Key) -> Map<String, Value> {
        let rows = self.key_rows(std::slice::from_ref(key)).await;
        let row = rows.ok().and_then(|rows| rows.into_iter().next());
        row.unwrap_or_else(|| shapes::key_row(key, self.clock.now_micros()))
    }

    pub async fn key_rows(&self, keys: &[Key]) -> Result<Vec<Map<String, Value>>> {
        let now = self.clock.now_micros();
        let budgets = self
            .budgets(keys.iter().filter_map(|k| k.text("budget_id")))
            .await?;
        let row = |key: &Key| {
            let mut row = shapes::key_row(key, now);
            if let Some(named) = key.text("budget_id").and_then(|id| budgets.get(id)) {
                let mut own = key.extra.clone();
                own.insert("max_budget".into(), json!(key.max_budget_nanos.map(Nanos)));
                row.insert(
                    "litellm_budget_table".into(),
                    budget_table(self, &own, Some(named)),
                );
                let limits = effective(&own, Some(named));
                row.insert("budget_reset_at".into(), self.reset_at(&limits));
            }
            row
        };
        Ok(keys.iter().map(row).collect())
    }

    /// Rows of keys with their hashes as `token`, as lists show them.
    pub async fn keys_with_token(&self, keys: &[Key]) -> Result<Vec<Value>> {
        let rows = self.key_rows(keys).await?.into_iter().zip(keys);
        let with_token = rows.map(|(mut row, key)| {
            row.insert("token".into(), json!(key.hash));
            Value::Object(row)
        });
        Ok(with_token.collect())
    }
}

/// Keys that one transaction deletes.
const KEYS_AT_ONCE: u32 = 500;
/// Rounds of that: more keys than that nobody has.
const ROUNDS: usize = 1_000;

impl Desk {
    /// Deletes the keys of a user or a team that is going, each with a line about it.
    pub async fn drop_keys(&self, actor: &Actor, whose: &KeyFilter) -> Result<()> {
        if whose.user_id.is_none() && whose.team_id.is_none() {
            return Err(Fault::internal("keys of nobody in particular were to be deleted").into());
        }
        let page = Page {
            limit: KEYS_AT_ONCE,
            offset: 0,
        };
        for _ in 0..ROUNDS {
            let found = self.store.list_keys(whose, page).await?.keys;
            if found.is_empty() {
                return Ok(());
            }
            let hashes: Vec<KeyHash> = found.iter().map(|k| k.hash).collect();
            let now = self.clock.now_micros();
            let told = |k: &Key| Entry::deleted("key", k.hash.hex(), keys::told(k, now));
            let entries = found.iter().map(told).collect();
            self.write(actor, &[Change::DeleteKeys(&hashes)], entries).await?;
        }
        Err(Fault::internal("keys come faster than they can be deleted").into())
    }
}
