//! Accounts in Postgres: what each subject has spent. The rules of periods stand in `period`; here accounts
//! are locked, read and written.

use super::ledger::{BEGIN, Columns};
use super::{Cells, PostgresStore, boxed, from_statement, time, within};
use crate::store::ask;
use crate::store::filter::Dialect;
use crate::store::period::{Period, Standing};
use crate::store::sums::Increments;
use crate::store::{Balance, MAX_ROWS, Result, StoreError, rows};
use filters::model::account::{Account, Kind};
use filters::model::key::KeyHash;
use std::collections::HashMap;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

const READ: &str = "SELECT spend_nanos, baseline_nanos, period_started, period_ends, last_ended
FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS asked (kind, id, model, place)
LEFT JOIN tk_accounts USING (kind, id, model) ORDER BY place";

/// Whoever adds an opening at the same time waits for these.
pub(super) const LOCK: &str = "SELECT kind, id, model, spend_nanos, baseline_nanos, period_started,
    period_ends, last_ended
FROM unnest($1::text[], $2::text[], $3::text[]) AS asked (kind, id, model)
JOIN tk_accounts a USING (kind, id, model) FOR UPDATE OF a";

/// Spend is added, not put in: an account that was not there to be locked may have been opened since.
pub(super) const WRITE: &str = "INSERT INTO tk_accounts AS a (kind, id, model, spend_nanos, baseline_nanos,
    period_started, period_ends, last_ended)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::timestamptz[],
    $7::timestamptz[], $8::timestamptz[])
ON CONFLICT (kind, id, model) DO UPDATE SET
    spend_nanos = a.spend_nanos + EXCLUDED.spend_nanos, baseline_nanos = EXCLUDED.baseline_nanos,
    period_started = EXCLUDED.period_started, period_ends = EXCLUDED.period_ends,
    last_ended = EXCLUDED.last_ended";

/// Accounts turned into columns.
pub(super) struct Rows<'a>(Columns<'a>);

impl<'a> Rows<'a> {
    /// The parameters of `READ` and `LOCK`.
    pub(super) fn asked(accounts: impl Iterator<Item = (&'a str, &'a str, &'a str)> + Clone) -> Self {
        Self(
            Columns::none()
                .add(accounts.clone().map(|a| a.0))
                .add(accounts.clone().map(|a| a.1))
                .add(accounts.map(|a| a.2)),
        )
    }

    /// The parameters of `WRITE`: what the locked accounts become by these charges.
    pub(super) fn charged(new: &'a Increments<'_>, locked: &[Row]) -> Result<Self> {
        let mut standings: HashMap<(&str, &str, &str), Standing> = HashMap::with_capacity(locked.len());
        for row in locked {
            let mut c = Cells::of(row);
            let subject = (c.next()?, c.next()?, c.next()?);
            standings.insert(subject, standing(&mut c)?);
        }
        let mut written = Vec::with_capacity(new.accounts.len());
        for ((kind, id, model), charges) in &new.accounts {
            let found = standings.get(&(*kind, &**id, *model)).copied();
            let mut standing = found.unwrap_or_default();
            let before = standing.spend;
            for (ended, nanos) in charges {
                standing.charge(*ended, *nanos)?;
            }
            written.push(((*kind, &**id, *model), standing.spend - before, standing));
        }
        Ok(Self::written(&written))
    }

    fn written(accounts: &[((&'a str, &'a str, &'a str), i64, Standing)]) -> Self {
        let columns = Self::asked(accounts.iter().map(|a| a.0)).0;
        let standings = accounts.iter().map(|a| a.2);
        Self(
            columns
                .add(accounts.iter().map(|a| a.1))
                .add(standings.clone().map(|s| s.baseline))
                .add(standings.clone().map(|s| s.started.map(time)))
                .add(standings.clone().map(|s| s.ends.map(time)))
                .add(standings.map(|s| s.last_ended.map(time))),
        )
    }

    pub(super) fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.0.params()
    }
}

impl PostgresStore {
    pub(super) async fn pg_balances(&self, accounts: &[Account]) -> Result<Vec<Balance>> {
        if accounts.len() > MAX_ROWS as usize {
            return Err(StoreError::invalid(format!(
                "at most {MAX_ROWS} accounts at once"
            )));
        }
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let asked = Rows::asked(accounts.iter().map(parts));
        let now = rows::now();
        let found = self.query(READ, &asked.params()).await?;
        let balance = |row| Ok(standing(&mut Cells::of(row))?.balance(now));
        found.iter().map(balance).collect()
    }

    pub(super) async fn pg_begin_period(
        &self,
        account: &Account,
        started_micros: i64,
        ends_micros: Option<i64>,
    ) -> Result<()> {
        let period = Period::new(started_micros, ends_micros)?;
        let asked = Rows::asked(std::iter::once(parts(account)));
        let found = self.query(READ, &asked.params()).await?;
        if let Some(row) = found.first()
            && standing(&mut Cells::of(row))?.is_in(period)
        {
            return Ok(());
        }
        let lease = self.lease().await?;
        let work = async {
            lease.batch_execute(BEGIN).await.map_err(from_statement)?;
            let done = begin(&lease, account, period).await;
            let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
            lease.batch_execute(end).await.map_err(from_statement)?;
            done
        };
        let answer = within(self.limit, work).await;
        lease.finish(answer)
    }
}

/// Within a transaction that holds the ledger's lock.
async fn begin(lease: &super::Lease, account: &Account, period: Period) -> Result<()> {
    let asked = Rows::asked(std::iter::once(parts(account)));
    let found = lease.query(LOCK, &asked.params()).await.map_err(from_statement)?;
    let mut standing = match found.first() {
        Some(row) => {
            let mut c = Cells::of(row);
            c.skip(3);
            standing(&mut c)?
        }
        None => Standing::default(),
    };
    let (started, ends) = standing.asks(period);
    let since_started = since(lease, account, started).await?;
    let since_ends = since(lease, account, ends).await?;
    standing.begin(period, since_started, since_ends);
    let written = Rows::written(&[(parts(account), 0, standing)]);
    let written = lease.execute(WRITE, &written.params()).await;
    written.map_err(from_statement).map(drop)
}

/// The sum of the account's rows that ended at or after a moment.
async fn since(lease: &super::Lease, account: &Account, moment: Option<i64>) -> Result<i64> {
    let Some(moment) = moment else { return Ok(0) };
    let hash = key_of(account);
    let Some(clause) = ask::charged(account, &hash, moment, Dialect::Postgres) else {
        return Ok(0);
    };
    let args: Vec<_> = clause.args.iter().map(|a| boxed(*a)).collect();
    let params: Vec<_> = args.iter().map(|a| &**a as &(dyn ToSql + Sync)).collect();
    let sql = format!(
        "SELECT coalesce(sum(spend_nanos), 0)::bigint FROM tk_ledger{}",
        clause.sql
    );
    let row = lease.query_one(&sql, &params).await.map_err(from_statement)?;
    Cells::of(&row).next()
}

fn key_of(account: &Account) -> Option<KeyHash> {
    (account.kind == Kind::Key)
        .then(|| KeyHash::from_hex(&account.id))
        .flatten()
}

fn parts(account: &Account) -> (&str, &str, &str) {
    (account.kind.as_str(), &account.id, &account.model)
}

/// The five columns of an account; all absent = it has spent nothing.
fn standing(c: &mut Cells<'_>) -> Result<Standing> {
    Ok(Standing {
        spend: c.next::<Option<i64>>()?.unwrap_or(0),
        baseline: c.next::<Option<i64>>()?.unwrap_or(0),
        started: c.maybe_micros()?,
        ends: c.maybe_micros()?,
        last_ended: c.maybe_micros()?.map(crate::store::period::second_of),
    })
}
