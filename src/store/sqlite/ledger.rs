//! The ledger in SQLite. A batch is one transaction; the sums are added up here, from the rows that
//! were really new, and written once per account and day.

use super::keys::begin;
use super::{Cells, accounts, all, filtered, from_sqlite};
use crate::store::ask;
use crate::store::filter::Dialect;
use crate::store::rows::{self, LEDGER_COLUMNS, count, moment, uncount};
use crate::store::sums::Increments;
use crate::store::{DailyFilter, DailyRow, DeadLetter, Page, Result};
use filters::model::key::KeyHash;
use filters::model::record::Record;
use rusqlite::{Connection, Row, Statement, Transaction, params};
use std::sync::LazyLock;

pub static INSERT: LazyLock<String> = LazyLock::new(|| {
    let marks: Vec<String> = (1..=LEDGER_COLUMNS.split(',').count() + 1)
        .map(|n| format!("?{n}"))
        .collect();
    format!(
        "INSERT INTO tk_ledger (day, {LEDGER_COLUMNS}) VALUES ({}) ON CONFLICT (request_id) DO NOTHING",
        marks.join(", ")
    )
});

const ADD_TO_DAY: &str =
    "INSERT INTO tk_daily VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
    ON CONFLICT (day, key_hash, model_group, user_id, team_id, organization_id, provider) DO UPDATE SET
    requests = requests + excluded.requests,
    successes = successes + excluded.successes,
    failures = failures + excluded.failures,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    cache_creation_tokens = cache_creation_tokens + excluded.cache_creation_tokens,
    spend_nanos = spend_nanos + excluded.spend_nanos";
const ADD_TO_LABEL: &str =
    "INSERT INTO tk_daily_labels VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
    ON CONFLICT (kind, day, label, model_group) DO UPDATE SET
    requests = requests + excluded.requests,
    successes = successes + excluded.successes,
    failures = failures + excluded.failures,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    cache_creation_tokens = cache_creation_tokens + excluded.cache_creation_tokens,
    spend_nanos = spend_nanos + excluded.spend_nanos";
const ADD_UNPRICED: &str = "INSERT INTO tk_daily_unpriced VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
    ON CONFLICT (day, key_hash, model_group, user_id, team_id, organization_id, provider) DO UPDATE SET
    calls = calls + excluded.calls";
const ADD_UNPRICED_LABEL: &str = "INSERT INTO tk_daily_labels_unpriced VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT (kind, day, label, model_group) DO UPDATE SET calls = calls + excluded.calls";

/// Writes the sums down.
fn add_up(t: &Transaction<'_>, new: &Increments<'_>) -> Result<()> {
    for ((kind, id, model), charges) in &new.accounts {
        let mut standing = accounts::read(t, kind, id, model)?;
        for (ended, nanos) in charges {
            standing.charge(*ended, *nanos)?;
        }
        accounts::write(t, kind, id, model, &standing)?;
    }
    let work = || {
        let mut day = t.prepare_cached(ADD_TO_DAY)?;
        for (k, s) in &new.days {
            day.execute(params![
                k.0,
                k.1,
                k.2,
                k.3,
                k.4,
                k.5,
                k.6,
                s.requests,
                s.successes,
                s.failures,
                s.prompt_tokens,
                s.completion_tokens,
                s.cached_tokens,
                s.cache_creation_tokens,
                s.spend_nanos,
            ])?;
        }
        let mut label = t.prepare_cached(ADD_TO_LABEL)?;
        for (k, s) in &new.labels {
            label.execute(params![
                k.0,
                k.1,
                k.2,
                k.3,
                s.requests,
                s.successes,
                s.failures,
                s.prompt_tokens,
                s.completion_tokens,
                s.cached_tokens,
                s.cache_creation_tokens,
                s.spend_nanos,
            ])?;
        }
        for (k, s) in new.days.iter().filter(|(_, s)| s.unpriced > 0) {
            let mut unpriced = t.prepare_cached(ADD_UNPRICED)?;
            unpriced.execute(params![k.0, k.1, k.2, k.3, k.4, k.5, k.6, s.unpriced])?;
        }
        for (k, s) in new.labels.iter().filter(|(_, s)| s.unpriced > 0) {
            let mut unpriced = t.prepare_cached(ADD_UNPRICED_LABEL)?;
            unpriced.execute(params![k.0, k.1, k.2, k.3, s.unpriced])?;
        }
        Ok(())
    };
    work().map_err(from_sqlite)
}

/// Executes `INSERT` for one row; whether it was new.
pub fn insert_row(insert: &mut Statement<'_>, r: &Record) -> Result<bool> {
    let new = insert.execute(params![
        rows::day_of(r.started_micros),
        r.request_id,
        rows::endpoint_name(r.endpoint),
        r.key_hash.map(|h| h.0),
        r.key_alias,
        r.user_id,
        r.team_id,
        r.organization_id,
        r.end_user,
        r.requested_model,
        r.model_group,
        r.model,
        r.deployment_id,
        r.provider,
        r.stream,
        r.status.as_str(),
        r.http_status,
        r.error,
        count(r.prompt_tokens),
        count(r.completion_tokens),
        count(r.cached_tokens),
        count(r.cache_creation_tokens),
        count(r.reasoning_tokens),
        count(r.characters),
        count(r.audio_millis),
        count(r.images),
        r.spend_nanos,
        r.priced,
        r.estimated,
        r.clamped,
        moment(r.started_micros),
        r.first_byte_micros.map(moment),
        moment(r.ended_micros),
        rows::attempts_json(&r.attempts)?,
        rows::list_json(&r.tags)?,
        r.metadata,
        r.client_ip,
        r.user_agent,
        count(r.bytes_in),
        count(r.bytes_out),
    ]);
    Ok(new.map_err(from_sqlite)? > 0)
}

pub fn append(c: &mut Connection, records: &[Record]) -> Result<()> {
    let t = begin(c)?;
    let mut new = Vec::with_capacity(records.len());
    {
        let mut insert = t.prepare_cached(&INSERT).map_err(from_sqlite)?;
        for r in records {
            if insert_row(&mut insert, r)? {
                new.push(r);
            }
        }
    }
    add_up(&t, &Increments::of(new))?;
    t.commit().map_err(from_sqlite)
}

pub fn dead_letter(c: &mut Connection, record: &Record, reason: &str) -> Result<()> {
    let sql = "INSERT INTO tk_dead_letters (request_id, reason, record) VALUES (?1, ?2, ?3) \
         ON CONFLICT (request_id) DO NOTHING";
    c.prepare_cached(sql)
        .and_then(|mut s| s.execute(params![record.request_id, reason, to_text(record)?]))
        .map_err(from_sqlite)
        .map(drop)
}

fn to_text(record: &Record) -> rusqlite::Result<String> {
    serde_json::to_string(record).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}

pub fn dead_letters(c: &Connection, page: Page) -> Result<Vec<DeadLetter>> {
    let sql = "SELECT request_id, reason, record FROM tk_dead_letters \
         ORDER BY dead_at DESC, request_id LIMIT ?1 OFFSET ?2";
    all(c, sql, &[&rows::limit(page), &rows::offset(page)], |row| {
        let mut c = Cells::of(row);
        Ok(DeadLetter {
            request_id: c.next()?,
            reason: c.next()?,
            record: c.next()?,
        })
    })
}

pub fn daily(c: &Connection, filter: &DailyFilter) -> Result<Vec<DailyRow>> {
    let clause = ask::daily(filter, Dialect::Sqlite).page(ask::DAILY_ORDER, filter.page);
    let sql = format!(
        "SELECT day, key_hash, model_group, user_id, team_id, organization_id, provider, requests, \
         successes, failures, prompt_tokens, completion_tokens, cached_tokens, cache_creation_tokens, \
         spend_nanos FROM tk_daily_all{}",
        clause.sql
    );
    filtered(c, &sql, &clause.args, |row| {
        let mut c = Cells::of(row);
        Ok(DailyRow {
            day: rows::date_of(c.next()?),
            key_hash: rows::hash_or_nobody(&c.next::<Vec<u8>>()?)?,
            model_group: c.next()?,
            user_id: c.next()?,
            team_id: c.next()?,
            organization_id: c.next()?,
            provider: c.next()?,
            requests: c.next()?,
            successes: c.next()?,
            failures: c.next()?,
            prompt_tokens: c.next()?,
            completion_tokens: c.next()?,
            cached_tokens: c.next()?,
            cache_creation_tokens: c.next()?,
            spend_nanos: c.next()?,
        })
    })
}

pub fn record(row: &Row<'_>) -> Result<Record> {
    let mut c = Cells::of(row);
    Ok(Record {
        request_id: c.next()?,
        endpoint: rows::endpoint(&c.next::<String>()?)?,
        key_hash: c.next::<Option<[u8; 32]>>()?.map(KeyHash),
        key_alias: c.next()?,
        user_id: c.next()?,
        team_id: c.next()?,
        organization_id: c.next()?,
        end_user: c.next()?,
        requested_model: c.next()?,
        model_group: c.next()?,
        model: c.next()?,
        deployment_id: c.next()?,
        provider: c.next()?,
        stream: c.next()?,
        status: rows::status(&c.next::<String>()?)?,
        http_status: c.next()?,
        error: c.next()?,
        prompt_tokens: uncount(c.next()?),
        completion_tokens: uncount(c.next()?),
        cached_tokens: uncount(c.next()?),
        cache_creation_tokens: uncount(c.next()?),
        reasoning_tokens: uncount(c.next()?),
        characters: uncount(c.next()?),
        audio_millis: uncount(c.next()?),
        images: uncount(c.next()?),
        spend_nanos: c.next()?,
        priced: c.next()?,
        estimated: c.next()?,
        clamped: c.next()?,
        started_micros: c.next()?,
        first_byte_micros: c.next()?,
        ended_micros: c.next()?,
        attempts: c.json()?,
        tags: c.json()?,
        metadata: c.next()?,
        client_ip: c.next()?,
        user_agent: c.next()?,
        bytes_in: uncount(c.next()?),
        bytes_out: uncount(c.next()?),
    })
}
