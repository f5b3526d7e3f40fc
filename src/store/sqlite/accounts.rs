//! Accounts in SQLite: what each subject has spent. The rules of periods stand in `period`; here accounts are
//! read and written.

use super::keys::begin;
use super::{Cells, all, filtered, from_sqlite};
use crate::store::ask;
use crate::store::filter::Dialect;
use crate::store::period::{Period, Standing};
use crate::store::{Balance, Result, rows};
use filters::model::account::{Account, Kind};
use filters::model::key::KeyHash;
use rusqlite::{Connection, Row, Transaction, params};

const READ: &str = "SELECT spend_nanos, baseline_nanos, period_started, period_ends, last_ended
FROM tk_accounts WHERE kind = ?1 AND id = ?2 AND model = ?3";

const WRITE: &str = "INSERT INTO tk_accounts (kind, id, model, spend_nanos, baseline_nanos, period_started,
    period_ends, last_ended)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
ON CONFLICT (kind, id, model) DO UPDATE SET
    spend_nanos = excluded.spend_nanos, baseline_nanos = excluded.baseline_nanos,
    period_started = excluded.period_started, period_ends = excluded.period_ends,
    last_ended = excluded.last_ended";

pub fn balances(c: &Connection, accounts: &[Account]) -> Result<Vec<Balance>> {
    let now = rows::now();
    let balance = |a: &Account| Ok(read(c, a.kind.as_str(), &a.id, &a.model)?.balance(now));
    accounts.iter().map(balance).collect()
}

pub fn begin_period(c: &mut Connection, account: &Account, period: Period) -> Result<()> {
    let (kind, id, model) = (account.kind.as_str(), &account.id, &account.model);
    if read(c, kind, id, model)?.is_in(period) {
        return Ok(());
    }
    let t = begin(c)?;
    let mut standing = read(&t, kind, id, model)?;
    let (started, ends) = standing.asks(period);
    let (since_started, since_ends) = (since(&t, account, started)?, since(&t, account, ends)?);
    standing.begin(period, since_started, since_ends);
    write(&t, kind, id, model, &standing)?;
    t.commit().map_err(from_sqlite)
}

/// An account that is not there has spent nothing.
pub fn read(c: &Connection, kind: &str, id: &str, model: &str) -> Result<Standing> {
    let found = all(c, READ, &[&kind, &id, &model], |row: &Row<'_>| {
        let mut c = Cells::of(row);
        Ok(Standing {
            spend: c.next()?,
            baseline: c.next()?,
            started: c.next()?,
            ends: c.next()?,
            last_ended: c.next::<Option<i64>>()?.map(crate::store::period::second_of),
        })
    })?;
    Ok(found.first().copied().unwrap_or_default())
}

pub fn write(t: &Transaction<'_>, kind: &str, id: &str, model: &str, s: &Standing) -> Result<()> {
    t.prepare_cached(WRITE)
        .and_then(|mut statement| {
            statement.execute(params![
                kind,
                id,
                model,
                s.spend,
                s.baseline,
                s.started,
                s.ends,
                s.last_ended
            ])
        })
        .map_err(from_sqlite)
        .map(drop)
}

/// The sum of the account's rows that ended at or after a moment.
fn since(c: &Connection, account: &Account, moment: Option<i64>) -> Result<i64> {
    let Some(moment) = moment else { return Ok(0) };
    let hash = (account.kind == Kind::Key)
        .then(|| KeyHash::from_hex(&account.id))
        .flatten();
    let Some(clause) = ask::charged(account, &hash, moment, Dialect::Sqlite) else {
        return Ok(0);
    };
    let sql = format!(
        "SELECT coalesce(sum(spend_nanos), 0) FROM tk_ledger{}",
        clause.sql
    );
    let sums = filtered(c, &sql, &clause.args, |row| Cells::of(row).next::<i64>())?;
    Ok(sums.first().copied().unwrap_or(0))
}
