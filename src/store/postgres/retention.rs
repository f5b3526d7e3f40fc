//! Letting old rows go in Postgres: whole partitions at once, and what of old days lies elsewhere.

use super::ledger::BEGIN;
use super::reports::CHARGES;
use super::{Cells, PostgresStore, from_statement, within};
use crate::store::{Result, rows};
use jiff::civil::Date;
use std::sync::LazyLock;
use std::time::Duration;
use tokio_postgres::types::ToSql;

/// For one day. Appends wait meanwhile, in the spool, and so does who reads the ledger.
const DAY_LIMIT: Duration = Duration::from_secs(300);
/// Dropping a partition waits for readers, and whoever comes next waits behind it: it gives up soon
/// and comes back another time.
const LIMITS: &str = "SET LOCAL statement_timeout = '290s'; SET LOCAL lock_timeout = '3s'";

/// What is dropped stays in the accounts, as something rows do not account for any more.
static KEEP_SUMS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH r AS (
    SELECT key_hash, model_group, user_id, team_id, organization_id, end_user, tags, sum(spend_nanos) AS spend
    FROM tk_ledger WHERE day = DATE '1970-01-01' + $1::int GROUP BY 1, 2, 3, 4, 5, 6, 7
), charges AS ({CHARGES})
UPDATE tk_accounts a SET dropped_nanos = a.dropped_nanos + s.spend
FROM charges s WHERE (a.kind, a.id, a.model) = (s.kind, s.id, s.model)"
    )
});

const REMEMBER: &str = "INSERT INTO tk_settings AS s (name, value)
VALUES ('rows_from', (DATE '1970-01-01' + $1::int + 1)::text)
ON CONFLICT (name) DO UPDATE SET value = greatest(s.value::date, EXCLUDED.value::date)::text";

/// The partition of a day, if it has one of its own.
const PARTITION: &str = "SELECT to_regclass(name)::text
FROM (SELECT 'tk_ledger_d' || to_char(DATE '1970-01-01' + $1::int, 'YYYYMMDD') AS name) n";

impl PostgresStore {
    pub(super) async fn pg_drop_rows_before(&self, day: Date) -> Result<u64> {
        let before = rows::day_number(day);
        let mut dropped = 0;
        while let Some(oldest) = self.oldest_day(before).await? {
            dropped += self.drop_day(oldest).await?;
            self.days.lock().remove(&oldest);
        }
        Ok(dropped)
    }

    /// The oldest day before this one that has rows or a partition.
    async fn oldest_day(&self, before: i32) -> Result<Option<i32>> {
        let sql = "SELECT min(day) FROM (
                SELECT min(day) - DATE '1970-01-01' AS day FROM tk_ledger_elsewhen
                UNION ALL
                SELECT to_date(substr(c.relname, 12), 'YYYYMMDD') - DATE '1970-01-01'
                FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = 'tk_ledger'::regclass AND c.relname LIKE 'tk_ledger_d%'
            ) days WHERE day < $1::int";
        let found = self.query(sql, &[&before]).await?;
        found.first().map_or(Ok(None), |row| Cells::of(row).next())
    }

    async fn drop_day(&self, day: i32) -> Result<u64> {
        let lease = self.lease().await?;
        let work = async {
            let params: [&(dyn ToSql + Sync); 1] = [&day];
            lease
                .batch_execute(&format!("{BEGIN}; {LIMITS}"))
                .await
                .map_err(from_statement)?;
            let keep = async {
                lease.execute(KEEP_SUMS.as_str(), &params).await?;
                lease.execute(REMEMBER, &params).await?;
                // Nothing depends on these.
                let sql = "DELETE FROM tk_ledger_imported WHERE day <= DATE '1970-01-01' + $1::int";
                lease.execute(sql, &params).await?;
                for table in ["days", "marks", "costs"] {
                    let sql =
                        format!("DELETE FROM tk_digest_{table} WHERE day = DATE '1970-01-01' + $1::int");
                    lease.execute(&sql, &params).await?;
                }
                let row = lease.query_one(PARTITION, &params).await?;
                let partition: Option<String> = row.try_get(0)?;
                let Some(partition) = partition else {
                    let sql = "DELETE FROM tk_ledger WHERE day = DATE '1970-01-01' + $1::int";
                    return lease.execute(sql, &params).await;
                };
                // As the server itself wrote the name.
                let count = format!("SELECT count(*) FROM {partition}");
                let rows: i64 = lease.query_one(&count, &[]).await?.try_get(0)?;
                lease.batch_execute(&format!("DROP TABLE {partition}")).await?;
                Ok(rows::uncount(rows))
            };
            let kept = keep.await.map_err(from_statement);
            let end = if kept.is_ok() { "COMMIT" } else { "ROLLBACK" };
            lease.batch_execute(end).await.map_err(from_statement)?;
            kept
        };
        let answer = within(DAY_LIMIT, work).await;
        lease.finish(answer)
    }

    pub(super) async fn pg_rows_from(&self) -> Result<Option<Date>> {
        let sql = "SELECT value::date - DATE '1970-01-01' FROM tk_settings WHERE name = 'rows_from'";
        let found = self.query(sql, &[]).await?;
        let day = |row| Ok(rows::date_of(Cells::of(row).next()?));
        found.first().map(day).transpose()
    }
}
