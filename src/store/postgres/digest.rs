//! Looking through the days that are over, in Postgres, for what `digest` tells of them. Appends do not wait for
//! it: a call that comes to the day meanwhile takes it out again (`tk_ledger_late`).

use super::ledger::BEGIN;
use super::{Cells, PostgresStore, from_statement, within};
use crate::store::{Result, rows};
use std::time::Duration;
use tokio_postgres::types::ToSql;

/// For one day.
const DAY_LIMIT: Duration = Duration::from_secs(300);
const LIMIT: &str = "BEGIN; SET LOCAL statement_timeout = '290s'";

/// Of several replicas one looks through; `tolldays` in ASCII.
const DIGEST: &str = "SELECT CASE WHEN pg_try_advisory_xact_lock(8390043843610900851)
    THEN tk_ledger_digest(DATE '1970-01-01' + $1::int) END";

impl PostgresStore {
    pub(super) async fn pg_digest_day(&self) -> Result<bool> {
        let found = self
            .query("SELECT tk_ledger_undigested() - DATE '1970-01-01'", &[])
            .await?;
        let day: Option<i32> = found.first().map_or(Ok(None), |row| Cells::of(row).next())?;
        let Some(day) = day else { return Ok(false) };
        let lease = self.lease().await?;
        let params: [&(dyn ToSql + Sync); 1] = [&day];
        let begin = async {
            lease.batch_execute(BEGIN).await.map_err(from_statement)?;
            // No call is on its way in while the ledger's lock is held, and whoever comes later sees this row.
            let sql = "INSERT INTO tk_digest_days (day) VALUES (DATE '1970-01-01' + $1::int) ON CONFLICT DO NOTHING";
            let begun = lease.execute(sql, &params).await.map_err(from_statement);
            let end = if begun.is_ok() { "COMMIT" } else { "ROLLBACK" };
            lease.batch_execute(end).await.map_err(from_statement)?;
            begun
        };
        let digest = async {
            lease.batch_execute(LIMIT).await.map_err(from_statement)?;
            let done = async { lease.query_one(DIGEST, &params).await?.try_get(0) };
            let done: Result<Option<bool>> = done.await.map_err(from_statement);
            let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
            lease.batch_execute(end).await.map_err(from_statement)?;
            done
        };
        let work = async {
            within(self.limit, begin).await?;
            within(DAY_LIMIT, digest).await
        };
        let answer = work.await;
        let done = lease.finish(answer)?;
        if done == Some(false) {
            log::debug!(
                "ledger: a call came to {} while it was looked through",
                rows::date_of(day)
            );
        }
        Ok(done.is_some())
    }
}
