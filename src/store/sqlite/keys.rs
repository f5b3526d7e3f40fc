//! Keys in SQLite.

use super::{Cells, all, filtered, from_sqlite};
use crate::store::filter::{self, Dialect};
use crate::store::rows;
use crate::store::{KeyFilter, KeyPage, Page, Result, StoreError, Taken};
use filters::model::key::{Key, KeyHash};
use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};
use std::sync::LazyLock;

static SELECT: LazyLock<String> = LazyLock::new(|| {
    let columns = rows::key_columns(&filter::key_spend(Dialect::Sqlite));
    format!("SELECT {columns} FROM tk_keys")
});

const INSERT: &str =
    "INSERT INTO tk_keys (hash, key_name, key_alias, user_id, team_id, organization_id, models,
    aliases, max_budget_nanos, expires, blocked, metadata, extra, created_at, created_by, updated_at)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";

/// The account may be there already: a key that was deleted is made again, or its rows came first. The new
/// key has spent what it says, nothing on single models, and its first period is yet to begin: what ended before
/// is not asked for then.
const OPEN: &str = "INSERT INTO tk_accounts (kind, id, spend_nanos, opening_nanos)
VALUES ('key', ?1, ?2, ?2)
ON CONFLICT (kind, id, model) DO UPDATE SET
    opening_nanos = excluded.spend_nanos - (spend_nanos - opening_nanos),
    spend_nanos = excluded.spend_nanos, baseline_nanos = 0, period_started = NULL, period_ends = NULL,
    last_ended = NULL";

const OPEN_MODELS: &str =
    "UPDATE tk_accounts SET opening_nanos = opening_nanos - spend_nanos, spend_nanos = 0,
    baseline_nanos = 0, period_started = NULL, period_ends = NULL, last_ended = NULL
WHERE kind = 'key' AND id = ?1 AND model <> ''";

const UPDATE: &str = "UPDATE tk_keys SET key_name = ?2, key_alias = ?3, user_id = ?4, team_id = ?5,
    organization_id = ?6, models = ?7, aliases = ?8, max_budget_nanos = ?9, expires = ?10, blocked = ?11,
    metadata = ?12, extra = ?13, updated_at = max(?14, ?15 + 1)
WHERE hash = ?1 AND updated_at = ?15";

pub fn by_hash(c: &Connection, hash: &KeyHash) -> Result<Option<Key>> {
    let sql = format!("{} WHERE hash = ?1", *SELECT);
    Ok(all(c, &sql, &[&hash.0], key)?.pop())
}

pub fn insert(t: &Transaction<'_>, k: &Key) -> Result<()> {
    // Where both are taken, SQLite would name the alias.
    if by_hash(t, &k.hash)?.is_some() {
        return Err(StoreError::Conflict { what: Taken::Key });
    }
    t.prepare_cached(INSERT)
        .and_then(|mut statement| {
            statement.execute(params![
                k.hash.0,
                k.key_name,
                k.key_alias,
                k.user_id,
                k.team_id,
                k.text("organization_id"),
                json(&k.models)?,
                json(&k.aliases)?,
                k.max_budget_nanos,
                k.expires_micros,
                k.blocked,
                json(&k.metadata)?,
                json(&k.extra)?,
                k.created_at_micros,
                k.created_by,
                k.updated_at_micros,
            ])
        })
        .map_err(from_sqlite)?;
    t.prepare_cached(OPEN)
        .and_then(|mut statement| statement.execute(params![k.hash.hex(), k.spend_nanos]))
        .map_err(from_sqlite)?;
    t.prepare_cached(OPEN_MODELS)
        .and_then(|mut statement| statement.execute(params![k.hash.hex()]))
        .map_err(from_sqlite)
        .map(drop)
}

/// Refuses to overwrite what was written since `read_at_micros`.
pub fn update(t: &Transaction<'_>, k: &Key, read_at_micros: i64) -> Result<()> {
    let changed = t
        .prepare_cached(UPDATE)
        .and_then(|mut statement| {
            statement.execute(params![
                k.hash.0,
                k.key_name,
                k.key_alias,
                k.user_id,
                k.team_id,
                k.text("organization_id"),
                json(&k.models)?,
                json(&k.aliases)?,
                k.max_budget_nanos,
                k.expires_micros,
                k.blocked,
                json(&k.metadata)?,
                json(&k.extra)?,
                k.updated_at_micros,
                read_at_micros,
            ])
        })
        .map_err(from_sqlite)?;
    if changed == 0 {
        return Err(StoreError::Stale("the key".into()));
    }
    Ok(())
}

pub fn delete(t: &Transaction<'_>, hashes: &[KeyHash]) -> Result<()> {
    let mut statement = t
        .prepare_cached("DELETE FROM tk_keys WHERE hash = ?1")
        .map_err(from_sqlite)?;
    for hash in hashes {
        statement.execute([&hash.0]).map_err(from_sqlite)?;
    }
    Ok(())
}

pub fn by_alias(c: &Connection, aliases: &[String]) -> Result<Vec<Key>> {
    let sql = format!(
        "{} WHERE key_alias IN (SELECT value FROM json_each(?1)) ORDER BY key_alias",
        *SELECT
    );
    all(c, &sql, &[&rows::to_json(&aliases)?], key)
}

pub fn list(c: &Connection, filter: &KeyFilter, page: Page) -> Result<KeyPage> {
    let clause = filter::keys(filter, Dialect::Sqlite)?;
    let sql = format!("SELECT count(*) FROM tk_keys{}", clause.sql);
    let counted = filtered(c, &sql, &clause.args, |row| Cells::of(row).next::<i64>())?;
    let clause = clause.page(&filter::keys_order(filter, Dialect::Sqlite), page);
    let sql = format!("{}{}", *SELECT, clause.sql);
    Ok(KeyPage {
        keys: filtered(c, &sql, &clause.args, key)?,
        total: rows::uncount(counted.first().copied().unwrap_or(0)),
    })
}

pub fn begin(c: &mut Connection) -> Result<Transaction<'_>> {
    c.transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(from_sqlite)
}

fn json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}

fn key(row: &Row<'_>) -> Result<Key> {
    let mut c = Cells::of(row);
    Ok(Key {
        hash: KeyHash(c.next()?),
        key_name: c.next()?,
        key_alias: c.next()?,
        user_id: c.next()?,
        team_id: c.next()?,
        models: c.json()?,
        aliases: c.json()?,
        spend_nanos: c.next()?,
        max_budget_nanos: c.next()?,
        expires_micros: c.next()?,
        blocked: c.next()?,
        metadata: c.json()?,
        extra: c.json()?,
        created_at_micros: c.next()?,
        created_by: c.next()?,
        updated_at_micros: c.next()?,
    })
}
