//! Letting old rows go in SQLite: a bounded number at a time, so that the one writer is never held up long.

use super::keys::begin;
use super::reports::CHARGES;
use super::{all, from_sqlite, number};
use crate::store::{Result, rows};
use jiff::civil::Date;
use rusqlite::types::Value;
use rusqlite::{Connection, params};
use std::sync::LazyLock;

/// Rows of one transaction.
const STEP: i64 = 10_000;

const OLD: &str = "started < ?1 AND (started, request_id) <= (?2, ?3)";

/// What is dropped stays in the accounts, as something rows do not account for any more.
static KEEP_SUMS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH r AS MATERIALIZED (
    SELECT key_hash, model_group, nullif(user_id, '') AS user_id, nullif(team_id, '') AS team_id,
        nullif(organization_id, '') AS organization_id, nullif(end_user, '') AS end_user, tags,
        sum(spend_nanos) AS spend
    FROM tk_ledger WHERE {OLD} GROUP BY 1, 2, 3, 4, 5, 6, 7
), {CHARGES}
UPDATE tk_accounts SET dropped_nanos = dropped_nanos + s.spend
FROM charges s WHERE tk_accounts.kind = s.kind AND tk_accounts.id = s.id AND tk_accounts.model = s.model"
    )
});

/// One step; how many rows it dropped, 0 = none is left.
pub fn drop_some(c: &mut Connection, day: Date) -> Result<u64> {
    let first = rows::day_number(day);
    let before = rows::midnight(first);
    let t = begin(c)?;
    // The last row of this step.
    let last = "SELECT started, request_id FROM tk_ledger WHERE started < ?1
         ORDER BY started, request_id LIMIT 1 OFFSET ?2";
    let last = all(&t, last, &[&before, &(STEP - 1)], |row| {
        let cells = row.get(0).and_then(|a: Value| Ok((a, row.get(1)?)));
        cells.map_err(from_sqlite)
    })?;
    // Blobs come after every number and text.
    let (started, id): (Value, Value) = last
        .into_iter()
        .next()
        .unwrap_or((Value::Blob(vec![]), Value::Blob(vec![])));
    let work = || {
        t.execute(&KEEP_SUMS, params![before, started, id])?;
        let sql = format!("DELETE FROM tk_ledger WHERE {OLD}");
        let dropped = t.execute(&sql, params![before, started, id])?;
        // Nothing depends on these.
        t.execute(
            "DELETE FROM tk_ledger_imported WHERE started < ?1",
            params![before],
        )?;
        for table in ["days", "marks", "costs"] {
            let sql = format!("DELETE FROM tk_digest_{table} WHERE day < ?1");
            t.execute(&sql, params![first])?;
        }
        if dropped > 0 {
            let remember = "INSERT INTO tk_settings (name, value) VALUES ('rows_from', ?1)
                 ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)";
            t.execute(remember, params![rows::date_of(first).to_string()])?;
        }
        Ok(dropped as u64)
    };
    let dropped = work().map_err(from_sqlite)?;
    t.commit().map_err(from_sqlite)?;
    Ok(dropped)
}

pub fn rows_from(c: &Connection) -> Result<Option<Date>> {
    let sql = "SELECT unixepoch(value) / 86400 FROM tk_settings WHERE name = 'rows_from'";
    let day = number(c, sql, &[])?;
    Ok(day.map(|day| rows::date_of(i32::try_from(day).unwrap_or(0))))
}
