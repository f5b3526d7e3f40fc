//! What comes out of another gateway's database, in Postgres: openings as they were said, sums of days, rows
//! of its ledger. None of it is part of a sum of ours.

use super::accounts::Rows;
use super::ledger::{Batch, Columns, INSERT_TELLING};
use super::{Cells, PostgresStore, from_statement, within};
use crate::store::{DailyRow, MAX_ROWS, Result, StoreError, rows};
use filters::model::account::Account;
use filters::model::record::Record;
use std::collections::HashSet;
use std::sync::LazyLock;
use tokio_postgres::types::ToSql;

const OPENINGS: &str = "SELECT a.opening_nanos
FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS asked (kind, id, model, place)
LEFT JOIN tk_accounts a USING (kind, id, model) ORDER BY place";

/// Says of each row that was not there like this whether it is new.
const SET_DAYS: &str = "INSERT INTO tk_daily_imported AS d
SELECT DATE '1970-01-01' + day, key_hash, model_group, user_id, team_id, organization_id, provider,
    a, b, c, e, f, g, h, i
FROM unnest($1::int[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[],
    $15::bigint[])
    AS r (day, key_hash, model_group, user_id, team_id, organization_id, provider, a, b, c, e, f, g, h, i)
ON CONFLICT (day, key_hash, model_group, user_id, team_id, organization_id, provider) DO UPDATE SET
    requests = EXCLUDED.requests, successes = EXCLUDED.successes, failures = EXCLUDED.failures,
    prompt_tokens = EXCLUDED.prompt_tokens, completion_tokens = EXCLUDED.completion_tokens,
    cached_tokens = EXCLUDED.cached_tokens, cache_creation_tokens = EXCLUDED.cache_creation_tokens,
    spend_nanos = EXCLUDED.spend_nanos
WHERE (d.requests, d.successes, d.failures, d.prompt_tokens, d.completion_tokens, d.cached_tokens,
    d.cache_creation_tokens, d.spend_nanos)
    <> (EXCLUDED.requests, EXCLUDED.successes, EXCLUDED.failures, EXCLUDED.prompt_tokens,
    EXCLUDED.completion_tokens, EXCLUDED.cached_tokens, EXCLUDED.cache_creation_tokens, EXCLUDED.spend_nanos)
RETURNING xmax = 0";

static ADD_ROWS: LazyLock<String> = LazyLock::new(|| {
    INSERT_TELLING
        .replacen("INTO tk_ledger ", "INTO tk_ledger_imported ", 1)
        .replacen("ON CONFLICT (request_id, day)", "ON CONFLICT (request_id)", 1)
});

impl PostgresStore {
    pub(super) async fn pg_openings(&self, accounts: &[Account]) -> Result<Vec<Option<i64>>> {
        bounded(accounts.len())?;
        let parts = accounts.iter().map(|a| (a.kind.as_str(), &*a.id, &*a.model));
        let asked = Rows::asked(parts);
        let found = self.query(OPENINGS, &asked.params()).await?;
        found.iter().map(|row| Cells::of(row).next()).collect()
    }

    pub(super) async fn pg_import_daily(&self, days: &[DailyRow], dry_run: bool) -> Result<(u64, u64)> {
        bounded(days.len())?;
        // One statement sets a row once.
        let mut seen = HashSet::with_capacity(days.len());
        let last: Vec<&DailyRow> = days.iter().rev().filter(|d| seen.insert(d.key())).collect();
        let each = last.iter();
        let columns = Columns::none()
            .add(each.clone().map(|d| rows::day_number(d.day)))
            .add(
                each.clone()
                    .map(|d| d.key_hash.as_ref().map_or(&[][..], |h| &h.0)),
            )
            .add(each.clone().map(|d| d.model_group.as_str()))
            .add(each.clone().map(|d| d.user_id.as_str()))
            .add(each.clone().map(|d| d.team_id.as_str()))
            .add(each.clone().map(|d| d.organization_id.as_str()))
            .add(each.clone().map(|d| d.provider.as_str()))
            .add(each.clone().map(|d| d.requests))
            .add(each.clone().map(|d| d.successes))
            .add(each.clone().map(|d| d.failures))
            .add(each.clone().map(|d| d.prompt_tokens))
            .add(each.clone().map(|d| d.completion_tokens))
            .add(each.clone().map(|d| d.cached_tokens))
            .add(each.clone().map(|d| d.cache_creation_tokens))
            .add(each.map(|d| d.spend_nanos));
        let answers = self.set(SET_DAYS, &columns.params(), dry_run).await?;
        let mut new = 0;
        for row in &answers {
            new += u64::from(Cells::of(row).next::<bool>()?);
        }
        Ok((new, answers.len() as u64 - new))
    }

    pub(super) async fn pg_import_records(&self, records: &[Record], dry_run: bool) -> Result<u64> {
        bounded(records.len())?;
        let batch = Batch::of(records)?;
        let answers = self.set(&ADD_ROWS, &batch.params(), dry_run).await?;
        Ok(answers.len() as u64)
    }

    /// Runs a statement in a transaction of its own, which a dry run takes back.
    async fn set(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        dry_run: bool,
    ) -> Result<Vec<tokio_postgres::Row>> {
        let lease = self.lease().await?;
        let work = async {
            let statement = lease.prepare_cached(sql).await.map_err(from_statement)?;
            let (begun, set, ended) = tokio::join!(
                lease.batch_execute("BEGIN"),
                lease.query(&statement, params),
                lease.batch_execute(if dry_run { "ROLLBACK" } else { "COMMIT" }),
            );
            begun.map_err(from_statement)?;
            let set = set.map_err(from_statement)?;
            ended.map_err(from_statement)?;
            Ok(set)
        };
        let answer = within(self.limit, work).await;
        lease.finish(answer)
    }
}

fn bounded(n: usize) -> Result<()> {
    if n > MAX_ROWS as usize {
        return Err(StoreError::invalid(format!("at most {MAX_ROWS} at once")));
    }
    Ok(())
}
