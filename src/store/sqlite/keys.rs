//! Keys and users in SQLite.

use super::{Cells, all, filtered, from_sqlite};
use crate::store::filter::{self, Dialect};
use crate::store::rows::{self, KEY_COLUMNS, USER_COLUMNS};
use crate::store::{KeyFilter, KeyPage, Page, Result, StoreError, Taken, User};
use filters::model::key::{Key, KeyHash};
use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

const INSERT_KEY: &str = "INSERT INTO tk_keys (hash, key_name, key_alias, user_id, team_id, models, aliases,
    spend_nanos, opening_nanos, max_budget_nanos, expires, blocked, metadata, extra, created_at, created_by,
    updated_at)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
    ?8 - coalesce((SELECT sum(spend_nanos) FROM tk_daily WHERE key_hash = ?1), 0),
    ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";

const UPDATE_KEY: &str = "UPDATE tk_keys SET key_name = ?2, key_alias = ?3, user_id = ?4, team_id = ?5,
    models = ?6, aliases = ?7, max_budget_nanos = ?8, expires = ?9, blocked = ?10, metadata = ?11,
    extra = ?12, updated_at = ?13
WHERE hash = ?1";

const UPSERT_USER: &str = "INSERT INTO tk_users (user_id, user_alias, user_email, user_role, models,
    max_budget_nanos, metadata, extra, created_at, updated_at)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
ON CONFLICT (user_id) DO UPDATE SET user_alias = excluded.user_alias, user_email = excluded.user_email,
    user_role = excluded.user_role, models = excluded.models,
    max_budget_nanos = excluded.max_budget_nanos, metadata = excluded.metadata, extra = excluded.extra,
    updated_at = excluded.updated_at";

pub fn by_hash(c: &Connection, hash: &KeyHash) -> Result<Option<Key>> {
    let sql = format!("SELECT {KEY_COLUMNS} FROM tk_keys WHERE hash = ?1");
    Ok(all(c, &sql, &[&hash.0], key)?.pop())
}

pub fn insert(c: &mut Connection, k: &Key) -> Result<()> {
    let t = begin(c)?;
    // Where both are taken, SQLite would name the alias.
    if by_hash(&t, &k.hash)?.is_some() {
        return Err(StoreError::Conflict { what: Taken::Key });
    }
    owners(&t, k)?;
    t.prepare_cached(INSERT_KEY)
        .and_then(|mut statement| {
            statement.execute(params![
                k.hash.0,
                k.key_name,
                k.key_alias,
                k.user_id,
                k.team_id,
                json(&k.models)?,
                json(&k.aliases)?,
                k.spend_nanos,
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
    t.commit().map_err(from_sqlite)
}

pub fn update(c: &mut Connection, k: &Key) -> Result<bool> {
    let t = begin(c)?;
    owners(&t, k)?;
    let changed = t
        .prepare_cached(UPDATE_KEY)
        .and_then(|mut statement| {
            statement.execute(params![
                k.hash.0,
                k.key_name,
                k.key_alias,
                k.user_id,
                k.team_id,
                json(&k.models)?,
                json(&k.aliases)?,
                k.max_budget_nanos,
                k.expires_micros,
                k.blocked,
                json(&k.metadata)?,
                json(&k.extra)?,
                k.updated_at_micros,
            ])
        })
        .map_err(from_sqlite)?;
    t.commit().map_err(from_sqlite)?;
    Ok(changed > 0)
}

pub fn delete(c: &mut Connection, hashes: &[KeyHash]) -> Result<Vec<KeyHash>> {
    let t = begin(c)?;
    let mut gone = Vec::new();
    for hash in hashes {
        let sql = "DELETE FROM tk_keys WHERE hash = ?1";
        let deleted = t.prepare_cached(sql).and_then(|mut s| s.execute([&hash.0]));
        if deleted.map_err(from_sqlite)? > 0 {
            gone.push(*hash);
        }
    }
    t.commit().map_err(from_sqlite)?;
    Ok(gone)
}

pub fn by_alias(c: &Connection, aliases: &[String]) -> Result<Vec<Key>> {
    let sql = format!(
        "SELECT {KEY_COLUMNS} FROM tk_keys WHERE key_alias IN (SELECT value FROM json_each(?1)) ORDER BY key_alias"
    );
    all(c, &sql, &[&rows::to_json(&aliases)?], key)
}

pub fn list(c: &Connection, filter: &KeyFilter, page: Page) -> Result<KeyPage> {
    let clause = filter::keys(filter, Dialect::Sqlite);
    let sql = format!("SELECT count(*) FROM tk_keys{}", clause.sql);
    let counted = filtered(c, &sql, &clause.args, |row| Cells::of(row).next::<i64>())?;
    let clause = clause.page(filter::KEYS_ORDER, page);
    let sql = format!("SELECT {KEY_COLUMNS} FROM tk_keys{}", clause.sql);
    Ok(KeyPage {
        keys: filtered(c, &sql, &clause.args, key)?,
        total: rows::uncount(counted.first().copied().unwrap_or(0)),
    })
}

pub fn user(c: &Connection, user_id: &str) -> Result<Option<User>> {
    let sql = format!("SELECT {USER_COLUMNS} FROM tk_users WHERE user_id = ?1");
    Ok(all(c, &sql, &[&user_id], read_user)?.pop())
}

pub fn upsert_user(c: &mut Connection, u: &User) -> Result<()> {
    c.prepare_cached(UPSERT_USER)
        .and_then(|mut statement| {
            statement.execute(params![
                u.user_id,
                u.user_alias,
                u.user_email,
                u.user_role,
                json(&u.models)?,
                u.max_budget_nanos,
                json(&u.metadata)?,
                json(&u.extra)?,
                u.created_at_micros,
                u.updated_at_micros,
            ])
        })
        .map_err(from_sqlite)
        .map(drop)
}

pub fn begin(c: &mut Connection) -> Result<Transaction<'_>> {
    c.transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(from_sqlite)
}

/// The rows of the user and the team a key names.
fn owners(t: &Transaction<'_>, k: &Key) -> Result<()> {
    let pairs = [
        (
            "INSERT INTO tk_users (user_id) VALUES (?1) ON CONFLICT DO NOTHING",
            &k.user_id,
        ),
        (
            "INSERT INTO tk_teams (team_id) VALUES (?1) ON CONFLICT DO NOTHING",
            &k.team_id,
        ),
    ];
    for (sql, id) in pairs {
        if let Some(id) = id.as_deref().filter(|id| !id.is_empty()) {
            t.prepare_cached(sql)
                .and_then(|mut statement| statement.execute([id]))
                .map_err(from_sqlite)?;
        }
    }
    Ok(())
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

fn read_user(row: &Row<'_>) -> Result<User> {
    let mut c = Cells::of(row);
    Ok(User {
        user_id: c.next()?,
        user_alias: c.next()?,
        user_email: c.next()?,
        user_role: c.next()?,
        models: c.json()?,
        spend_nanos: c.next()?,
        max_budget_nanos: c.next()?,
        metadata: c.json()?,
        extra: c.json()?,
        created_at_micros: c.next()?,
        updated_at_micros: c.next()?,
    })
}
