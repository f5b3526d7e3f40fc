//! What comes out of another gateway's database, in SQLite: openings as they were said, sums of days, rows of
//! its ledger. None of it is part of a sum of ours.

use super::from_sqlite;
use super::keys::begin;
use super::ledger::{INSERT, insert_row};
use crate::store::{DailyRow, Result, rows};
use filters::model::account::Account;
use filters::model::record::Record;
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::LazyLock;

const IS_THERE: &str = "SELECT 1 FROM tk_daily_imported WHERE day = ?1 AND key_hash = ?2 AND model_group = ?3
    AND user_id = ?4 AND team_id = ?5 AND organization_id = ?6 AND provider = ?7";

const SET_DAY: &str =
    "INSERT INTO tk_daily_imported VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
    ON CONFLICT (day, key_hash, model_group, user_id, team_id, organization_id, provider) DO UPDATE SET
    requests = excluded.requests, successes = excluded.successes, failures = excluded.failures,
    prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
    cached_tokens = excluded.cached_tokens, cache_creation_tokens = excluded.cache_creation_tokens,
    spend_nanos = excluded.spend_nanos
    WHERE (requests, successes, failures, prompt_tokens, completion_tokens, cached_tokens,
    cache_creation_tokens, spend_nanos) <> (excluded.requests, excluded.successes, excluded.failures,
    excluded.prompt_tokens, excluded.completion_tokens, excluded.cached_tokens,
    excluded.cache_creation_tokens, excluded.spend_nanos)";

static ADD_ROW: LazyLock<String> =
    LazyLock::new(|| INSERT.replacen("INTO tk_ledger ", "INTO tk_ledger_imported ", 1));

pub fn openings(c: &Connection, accounts: &[Account]) -> Result<Vec<Option<i64>>> {
    let sql = "SELECT opening_nanos FROM tk_accounts WHERE kind = ?1 AND id = ?2 AND model = ?3";
    let mut statement = c.prepare_cached(sql).map_err(from_sqlite)?;
    let of = |a: &Account| {
        let asked = params![a.kind.as_str(), a.id, a.model];
        statement.query_row(asked, |row| row.get(0)).optional()
    };
    accounts
        .iter()
        .map(of)
        .collect::<rusqlite::Result<_>>()
        .map_err(from_sqlite)
}

/// How many are new, and how many changed. A dry run takes it back.
pub fn daily(c: &mut Connection, days: &[DailyRow], dry_run: bool) -> Result<(u64, u64)> {
    let t = begin(c)?;
    let (mut new, mut changed) = (0, 0);
    let mut work = || {
        let mut is_there = t.prepare_cached(IS_THERE)?;
        let mut set = t.prepare_cached(SET_DAY)?;
        for d in days {
            let day = rows::day_number(d.day);
            let hash = d.key_hash.as_ref().map_or(&[][..], |h| &h.0);
            let there = is_there.exists(params![
                day,
                hash,
                d.model_group,
                d.user_id,
                d.team_id,
                d.organization_id,
                d.provider
            ])?;
            let written = set.execute(params![
                day,
                hash,
                d.model_group,
                d.user_id,
                d.team_id,
                d.organization_id,
                d.provider,
                d.requests,
                d.successes,
                d.failures,
                d.prompt_tokens,
                d.completion_tokens,
                d.cached_tokens,
                d.cache_creation_tokens,
                d.spend_nanos,
            ])?;
            match there {
                false => new += 1,
                true => changed += written as u64,
            }
        }
        Ok(())
    };
    work().map_err(from_sqlite)?;
    if !dry_run {
        t.commit().map_err(from_sqlite)?;
    }
    Ok((new, changed))
}

/// How many are new. A dry run takes it back.
pub fn records(c: &mut Connection, records: &[Record], dry_run: bool) -> Result<u64> {
    let t = begin(c)?;
    let mut new = 0;
    {
        let mut insert = t.prepare_cached(&ADD_ROW).map_err(from_sqlite)?;
        for r in records {
            new += u64::from(insert_row(&mut insert, r)?);
        }
    }
    if !dry_run {
        t.commit().map_err(from_sqlite)?;
    }
    Ok(new)
}
