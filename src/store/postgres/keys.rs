//! Keys in Postgres.

use super::change::Statement;
use super::{Cells, PostgresStore, time};
use crate::store::filter::{self, Dialect};
use crate::store::rows;
use crate::store::{KeyFilter, KeyPage, Page, Result, StoreError};
use filters::model::key::{Key, KeyHash};
use std::sync::LazyLock;
use tokio_postgres::Row;

static SELECT: LazyLock<String> = LazyLock::new(|| {
    let columns = rows::key_columns(&filter::key_spend(Dialect::Postgres));
    format!("SELECT {columns} FROM tk_keys")
});

/// The account may be there already: a key that was deleted is made again, or its rows came first. The new
/// key has spent what it says, nothing on single models, and its first period is yet to begin: what ended before
/// is not asked for then. JSON is bound as text.
const INSERT: &str = "WITH made AS (
    INSERT INTO tk_keys (hash, key_name, key_alias, user_id, team_id, organization_id, models, aliases,
        max_budget_nanos, expires, blocked, metadata, extra, created_at, created_by, updated_at)
    SELECT $1::bytea, $2::text, $3::text, $4::text, $5::text, $6::text, $7::text::jsonb, $8::text::jsonb,
        $9::bigint, $10::timestamptz, $11::boolean, $12::text::jsonb, $13::text::jsonb, $14::timestamptz,
        $15::text, $16::timestamptz
), models AS (
    UPDATE tk_accounts SET opening_nanos = opening_nanos - spend_nanos, spend_nanos = 0, baseline_nanos = 0,
        period_started = NULL, period_ends = NULL, last_ended = NULL
    WHERE kind = 'key' AND id = encode($1::bytea, 'hex') AND model <> ''
)
INSERT INTO tk_accounts AS a (kind, id, spend_nanos, opening_nanos)
VALUES ('key', encode($1::bytea, 'hex'), $17::bigint, $17::bigint)
ON CONFLICT (kind, id, model) DO UPDATE SET
    opening_nanos = EXCLUDED.spend_nanos - (a.spend_nanos - a.opening_nanos),
    spend_nanos = EXCLUDED.spend_nanos, baseline_nanos = 0, period_started = NULL, period_ends = NULL,
    last_ended = NULL";

const UPDATE: &str = "UPDATE tk_keys SET key_name = $2, key_alias = $3, user_id = $4, team_id = $5,
    organization_id = $6, models = $7::text::jsonb, aliases = $8::text::jsonb, max_budget_nanos = $9,
    expires = $10, blocked = $11, metadata = $12::text::jsonb, extra = $13::text::jsonb,
    updated_at = greatest($14::timestamptz, $15::timestamptz + interval '1 microsecond')
WHERE hash = $1 AND updated_at = $15::timestamptz";

pub fn insert(k: &Key) -> Result<Statement> {
    let mut s = fields(Statement::new(INSERT), k)?;
    s.bind(time(k.created_at_micros));
    s.bind(k.created_by.clone());
    s.bind(time(k.updated_at_micros));
    s.bind(k.spend_nanos);
    Ok(s)
}

/// Refuses to overwrite what was written since `read_at_micros`.
pub fn update(k: &Key, read_at_micros: i64) -> Result<Statement> {
    let mut s = fields(Statement::new(UPDATE), k)?;
    s.bind(time(k.updated_at_micros));
    s.bind(time(read_at_micros));
    Ok(s.or_else(StoreError::Stale("the key".into())))
}

/// The thirteen values that both statements begin with.
fn fields(mut s: Statement, k: &Key) -> Result<Statement> {
    s.bind(k.hash.0.to_vec());
    s.bind(k.key_name.clone());
    s.bind(k.key_alias.clone());
    s.bind(k.user_id.clone());
    s.bind(k.team_id.clone());
    s.bind(k.text("organization_id").map(str::to_string));
    s.bind(rows::to_json(&k.models)?);
    s.bind(rows::to_json(&k.aliases)?);
    s.bind(k.max_budget_nanos);
    s.bind(k.expires_micros.map(time));
    s.bind(k.blocked);
    s.bind(rows::to_json(&k.metadata)?);
    s.bind(rows::to_json(&k.extra)?);
    Ok(s)
}

pub fn delete(hashes: &[KeyHash]) -> Statement {
    let mut s = Statement::new("DELETE FROM tk_keys WHERE hash = ANY($1)");
    let hashes: Vec<Vec<u8>> = hashes.iter().map(|h| h.0.to_vec()).collect();
    s.bind(hashes);
    s
}

impl PostgresStore {
    pub(super) async fn pg_key_by_hash(&self, hash: &KeyHash) -> Result<Option<Key>> {
        let sql = format!("{} WHERE hash = $1", *SELECT);
        let rows = self.query(&sql, &[&hash.0.as_slice()]).await?;
        rows.first().map(key).transpose()
    }

    pub(super) async fn pg_keys_by_alias(&self, aliases: &[String]) -> Result<Vec<Key>> {
        let sql = format!("{} WHERE key_alias = ANY($1) ORDER BY key_alias", *SELECT);
        let rows = self.query(&sql, &[&aliases]).await?;
        rows.iter().map(key).collect()
    }

    pub(super) async fn pg_list_keys(&self, filter: &KeyFilter, page: Page) -> Result<KeyPage> {
        let clause = filter::keys(filter, Dialect::Postgres)?;
        let sql = format!("SELECT count(*) FROM tk_keys{}", clause.sql);
        let counted = self.query_filtered(&sql, &clause.args).await?;
        let total: i64 = counted.first().map_or(Ok(0), |row| Cells::of(row).next())?;
        let clause = clause.page(&filter::keys_order(filter, Dialect::Postgres), page);
        let sql = format!("{}{}", *SELECT, clause.sql);
        let found = self.query_filtered(&sql, &clause.args).await?;
        Ok(KeyPage {
            keys: found.iter().map(key).collect::<Result<_>>()?,
            total: rows::uncount(total),
        })
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
