//! Keys and users in Postgres.

use super::{Cells, PostgresStore, time};
use crate::store::filter::{self, Dialect};
use crate::store::rows::{self, KEY_COLUMNS, USER_COLUMNS};
use crate::store::{KeyFilter, KeyPage, Page, Result, User};
use filters::model::key::{Key, KeyHash};
use tokio_postgres::Row;
use tokio_postgres::types::Json;

const INSERT_KEY: &str = "WITH u AS (
    INSERT INTO tk_users (user_id) SELECT $4::text WHERE $4::text <> '' ON CONFLICT DO NOTHING
), t AS (
    INSERT INTO tk_teams (team_id) SELECT $5::text WHERE $5::text <> '' ON CONFLICT DO NOTHING
)
INSERT INTO tk_keys (hash, key_name, key_alias, user_id, team_id, models, aliases, spend_nanos,
    opening_nanos, max_budget_nanos, expires, blocked, metadata, extra, created_at, created_by, updated_at)
SELECT $1::bytea, $2::text, $3::text, $4::text, $5::text, $6::jsonb, $7::jsonb, $8::bigint,
    $8::bigint - coalesce((SELECT sum(spend_nanos) FROM tk_daily WHERE key_hash = $1::bytea), 0)::bigint,
    $9::bigint, $10::timestamptz, $11::boolean, $12::jsonb, $13::jsonb, $14::timestamptz, $15::text,
    $16::timestamptz";

const UPDATE_KEY: &str = "WITH u AS (
    INSERT INTO tk_users (user_id) SELECT $4::text WHERE $4::text <> '' ON CONFLICT DO NOTHING
), t AS (
    INSERT INTO tk_teams (team_id) SELECT $5::text WHERE $5::text <> '' ON CONFLICT DO NOTHING
)
UPDATE tk_keys SET key_name = $2, key_alias = $3, user_id = $4::text, team_id = $5::text, models = $6,
    aliases = $7, max_budget_nanos = $8, expires = $9, blocked = $10, metadata = $11, extra = $12,
    updated_at = $13
WHERE hash = $1 RETURNING hash";

const UPSERT_USER: &str = "INSERT INTO tk_users (user_id, user_alias, user_email, user_role, models,
    max_budget_nanos, metadata, extra, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (user_id) DO UPDATE SET user_alias = EXCLUDED.user_alias, user_email = EXCLUDED.user_email,
    user_role = EXCLUDED.user_role, models = EXCLUDED.models,
    max_budget_nanos = EXCLUDED.max_budget_nanos, metadata = EXCLUDED.metadata, extra = EXCLUDED.extra,
    updated_at = EXCLUDED.updated_at";

impl PostgresStore {
    pub(super) async fn pg_key_by_hash(&self, hash: &KeyHash) -> Result<Option<Key>> {
        let sql = format!("SELECT {KEY_COLUMNS} FROM tk_keys WHERE hash = $1");
        let rows = self.query(&sql, &[&hash.0.as_slice()]).await?;
        rows.first().map(key).transpose()
    }

    pub(super) async fn pg_insert_key(&self, k: &Key) -> Result<()> {
        self.query(
            INSERT_KEY,
            &[
                &k.hash.0.as_slice(),
                &k.key_name,
                &k.key_alias,
                &k.user_id,
                &k.team_id,
                &Json(&k.models),
                &Json(&k.aliases),
                &k.spend_nanos,
                &k.max_budget_nanos,
                &k.expires_micros.map(time),
                &k.blocked,
                &Json(&k.metadata),
                &Json(&k.extra),
                &time(k.created_at_micros),
                &k.created_by,
                &time(k.updated_at_micros),
            ],
        )
        .await
        .map(drop)
    }

    pub(super) async fn pg_update_key(&self, k: &Key) -> Result<bool> {
        let rows = self
            .query(
                UPDATE_KEY,
                &[
                    &k.hash.0.as_slice(),
                    &k.key_name,
                    &k.key_alias,
                    &k.user_id,
                    &k.team_id,
                    &Json(&k.models),
                    &Json(&k.aliases),
                    &k.max_budget_nanos,
                    &k.expires_micros.map(time),
                    &k.blocked,
                    &Json(&k.metadata),
                    &Json(&k.extra),
                    &time(k.updated_at_micros),
                ],
            )
            .await?;
        Ok(!rows.is_empty())
    }

    pub(super) async fn pg_delete_keys(&self, hashes: &[KeyHash]) -> Result<Vec<KeyHash>> {
        let hashes: Vec<&[u8]> = hashes.iter().map(|h| h.0.as_slice()).collect();
        let sql = "DELETE FROM tk_keys WHERE hash = ANY($1) RETURNING hash";
        let gone = self.query(sql, &[&hashes]).await?;
        gone.iter()
            .map(|row| rows::hash(Cells::of(row).next()?))
            .collect()
    }

    pub(super) async fn pg_keys_by_alias(&self, aliases: &[String]) -> Result<Vec<Key>> {
        let sql = format!("SELECT {KEY_COLUMNS} FROM tk_keys WHERE key_alias = ANY($1) ORDER BY key_alias");
        let rows = self.query(&sql, &[&aliases]).await?;
        rows.iter().map(key).collect()
    }

    pub(super) async fn pg_list_keys(&self, filter: &KeyFilter, page: Page) -> Result<KeyPage> {
        let clause = filter::keys(filter, Dialect::Postgres);
        let sql = format!("SELECT count(*) FROM tk_keys{}", clause.sql);
        let counted = self.query_filtered(&sql, &clause.args).await?;
        let total: i64 = counted.first().map_or(Ok(0), |row| Cells::of(row).next())?;
        let clause = clause.page(filter::KEYS_ORDER, page);
        let sql = format!("SELECT {KEY_COLUMNS} FROM tk_keys{}", clause.sql);
        let found = self.query_filtered(&sql, &clause.args).await?;
        Ok(KeyPage {
            keys: found.iter().map(key).collect::<Result<_>>()?,
            total: rows::uncount(total),
        })
    }

    pub(super) async fn pg_user(&self, user_id: &str) -> Result<Option<User>> {
        let sql = format!("SELECT {USER_COLUMNS} FROM tk_users WHERE user_id = $1");
        let rows = self.query(&sql, &[&user_id]).await?;
        rows.first().map(user).transpose()
    }

    pub(super) async fn pg_upsert_user(&self, u: &User) -> Result<()> {
        self.query(
            UPSERT_USER,
            &[
                &u.user_id,
                &u.user_alias,
                &u.user_email,
                &u.user_role,
                &Json(&u.models),
                &u.max_budget_nanos,
                &Json(&u.metadata),
                &Json(&u.extra),
                &time(u.created_at_micros),
                &time(u.updated_at_micros),
            ],
        )
        .await
        .map(drop)
    }
}

fn key(row: &Row) -> Result<Key> {
    let mut c = Cells::of(row);
    Ok(Key {
        hash: rows::hash(c.next()?)?,
        key_name: c.next()?,
        key_alias: c.next()?,
        user_id: c.next()?,
        team_id: c.next()?,
        models: c.json()?,
        aliases: c.json()?,
        spend_nanos: c.next()?,
        max_budget_nanos: c.next()?,
        expires_micros: c.maybe_micros()?,
        blocked: c.next()?,
        metadata: c.json()?,
        extra: c.json()?,
        created_at_micros: c.micros()?,
        created_by: c.next()?,
        updated_at_micros: c.micros()?,
    })
}

fn user(row: &Row) -> Result<User> {
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
        created_at_micros: c.micros()?,
        updated_at_micros: c.micros()?,
    })
}
