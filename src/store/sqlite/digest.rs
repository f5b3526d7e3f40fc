//! Looking through the days that are over, in SQLite, for what `digest` tells of them: a day at a time on the
//! thread that writes, so nothing comes in between.

use super::keys::begin;
use super::{filtered, from_sqlite, number};
use crate::store::digest::{self, Need};
use crate::store::filter::Dialect;
use crate::store::{Result, SpendFilter, ask, rows};
use rusqlite::{Connection, params};
use std::collections::BTreeMap;

/// The last day that is over for long enough and was not looked through. Days with calls have sums.
const NEXT: &str = "WITH RECURSIVE d(day) AS (
    SELECT max(day) FROM tk_daily WHERE day < unixepoch() / 86400 - 2
    UNION ALL SELECT (SELECT max(t.day) FROM tk_daily t WHERE t.day < d.day) FROM d WHERE d.day IS NOT NULL
) SELECT day FROM d WHERE day NOT IN (SELECT day FROM tk_digest_days)
    AND day >= coalesce((SELECT unixepoch(value) / 86400 FROM tk_settings WHERE name = 'rows_from'), 0) LIMIT 1";

const MARKS: &str = "WITH r AS MATERIALIZED (
    SELECT request_id, coalesce(key_hash, x'') AS key_hash, key_alias, model_group, model, status, http_status,
        end_user, tags
    FROM tk_ledger WHERE started >= ?2 AND started < ?3
), s AS MATERIALIZED (SELECT kind, label, key_hash, count(*) AS calls FROM (
    SELECT 'alias' AS kind, key_alias AS label, key_hash FROM r WHERE key_alias IS NOT NULL
    UNION ALL SELECT 'model', model_group, key_hash FROM r
    UNION ALL SELECT 'model', model, key_hash FROM r WHERE model <> model_group
    UNION ALL SELECT 'status', status, key_hash FROM r
    UNION ALL SELECT 'http', printf('%05d', http_status), key_hash FROM r
    UNION ALL SELECT 'end_user', end_user, key_hash FROM r WHERE end_user IS NOT NULL
    UNION ALL SELECT 'tag', tag, key_hash FROM (
        SELECT DISTINCT request_id, t.value AS tag, key_hash FROM r, json_each(r.tags) t
        WHERE r.tags <> '[]' AND t.type = 'text'
    )
) GROUP BY 1, 2, 3)
INSERT INTO tk_digest_marks
SELECT ?1, kind, label, key_hash, calls FROM s
UNION ALL
SELECT ?1, kind, label, x'00', sum(calls) FROM s WHERE kind IN ('model', 'status', 'http', 'tag') GROUP BY kind, label";

const COSTS: &str = "INSERT INTO tk_digest_costs
SELECT ?1, coalesce(key_hash, x''), min(spend_nanos), max(spend_nanos)
FROM tk_ledger WHERE started >= ?2 AND started < ?3 GROUP BY 2";

const CALLS: &str = "INSERT INTO tk_digest_days
SELECT ?1, count(*) FROM tk_ledger WHERE started >= ?2 AND started < ?3";

/// Looks one day through; false = there is none.
pub fn digest_day(c: &mut Connection) -> Result<bool> {
    let Some(day) = number(c, NEXT, &[])? else {
        return Ok(false);
    };
    let number = i32::try_from(day).unwrap_or(0);
    let (first, next) = (rows::midnight(number), rows::midnight(number.saturating_add(1)));
    let t = begin(c)?;
    let work = || {
        for table in ["marks", "costs"] {
            let sql = format!("DELETE FROM tk_digest_{table} WHERE day = ?1");
            t.execute(&sql, params![day])?;
        }
        for sql in [MARKS, COSTS, CALLS] {
            t.execute(sql, params![day, first, next])?;
        }
        Ok(())
    };
    work().map_err(from_sqlite)?;
    t.commit().map_err(from_sqlite)?;
    Ok(true)
}

/// What is known of the days within a filter's times that were looked through: how many calls fit, `None` = some,
/// perhaps.
pub fn known(c: &Connection, filter: &SpendFilter, need: Need) -> Result<BTreeMap<i32, Option<i64>>> {
    let Some(clause) = digest::known(filter, need, Dialect::Sqlite) else {
        return Ok(BTreeMap::new());
    };
    let told = filtered(c, &clause.sql, &clause.args, |row| {
        let mut c = super::Cells::of(row);
        Ok((c.next::<i32>()?, c.next::<Option<i64>>()?))
    })?;
    let calls = |(day, told): (i32, Option<i64>)| {
        let calls = match told {
            None => Some(0),
            Some(calls) if need == Need::Calls && (calls == 0 || digest::whole(filter, day)) => Some(calls),
            Some(_) => None,
        };
        (day, calls)
    };
    Ok(told.into_iter().map(calls).collect())
}

/// The days with calls within a filter's times, in order.
pub fn days(c: &Connection, filter: &SpendFilter) -> Result<Vec<i32>> {
    let sql = "WITH RECURSIVE d(day) AS (
            SELECT min(day) FROM tk_daily WHERE day >= ?1
            UNION ALL SELECT (SELECT min(t.day) FROM tk_daily t WHERE t.day > d.day) FROM d WHERE d.day < ?2
        ) SELECT day FROM d WHERE day <= ?2";
    let (first, last) = ask::spend_days(filter);
    let ends = [first.unwrap_or(0), last.unwrap_or(i32::MAX)];
    super::all(c, sql, &[&ends[0], &ends[1]], |row| {
        row.get(0).map_err(from_sqlite)
    })
}
