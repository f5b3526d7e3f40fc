//! The ledger in SQLite. A batch is one transaction; the sums are added up here, from the rows that
//! were really new, and written once per key, user, team and day.

use super::keys::begin;
use super::{Cells, all, filtered, from_sqlite};
use crate::store::filter::{self, Dialect};
use crate::store::rows::{self, LEDGER_COLUMNS, count, uncount};
use crate::store::{
    DailyFilter, DailyRow, DeadLetter, Difference, Page, Result, SpendFilter, StoreError, Sums,
};
use filters::model::key::KeyHash;
use filters::model::record::{Record, Status};
use rusqlite::{Connection, Row, Transaction, params};
use std::collections::BTreeMap;
use std::sync::LazyLock;

static INSERT: LazyLock<String> = LazyLock::new(|| {
    let marks: Vec<String> = (1..=LEDGER_COLUMNS.split(',').count() + 1)
        .map(|n| format!("?{n}"))
        .collect();
    format!(
        "INSERT INTO tk_ledger (day, {LEDGER_COLUMNS}) VALUES ({}) ON CONFLICT (request_id) DO NOTHING",
        marks.join(", ")
    )
});

const ADD_TO_KEY: &str = "UPDATE tk_keys SET spend_nanos = spend_nanos + ?2 WHERE hash = ?1";
const ADD_TO_USER: &str = "INSERT INTO tk_users (user_id, spend_nanos) VALUES (?1, ?2)
    ON CONFLICT (user_id) DO UPDATE SET spend_nanos = spend_nanos + excluded.spend_nanos";
const ADD_TO_TEAM: &str = "INSERT INTO tk_teams (team_id, spend_nanos) VALUES (?1, ?2)
    ON CONFLICT (team_id) DO UPDATE SET spend_nanos = spend_nanos + excluded.spend_nanos";
const ADD_TO_DAY: &str =
    "INSERT INTO tk_daily VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
    ON CONFLICT (day, key_hash, model_group, user_id, team_id, provider) DO UPDATE SET
    requests = requests + excluded.requests,
    successes = successes + excluded.successes,
    failures = failures + excluded.failures,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    spend_nanos = spend_nanos + excluded.spend_nanos";

const DIFFERENCES: &str = "WITH r AS (
    SELECT day, coalesce(key_hash, x'') AS key_hash, model_group, coalesce(user_id, '') AS user_id,
        coalesce(team_id, '') AS team_id, provider, count(*) AS requests,
        sum(prompt_tokens + completion_tokens) AS tokens, sum(spend_nanos) AS spend
    FROM tk_ledger GROUP BY 1, 2, 3, 4, 5, 6
), found AS (
    SELECT 'day ' || date(day * 86400, 'unixepoch') || ' key ' || lower(hex(key_hash)) || ' model ' || model_group
            || ' user ' || user_id || ' team ' || team_id || ' provider ' || provider AS what,
        coalesce(d.requests, 0) AS a, coalesce(d.prompt_tokens + d.completion_tokens, 0) AS b,
        coalesce(d.spend_nanos, 0) AS c,
        coalesce(r.requests, 0) AS x, coalesce(r.tokens, 0) AS y, coalesce(r.spend, 0) AS z
    FROM tk_daily d FULL JOIN r USING (day, key_hash, model_group, user_id, team_id, provider)
    UNION ALL
    SELECT 'key ' || lower(hex(hash)), 0, 0, k.spend_nanos - k.opening_nanos, 0, 0, coalesce(s.spend, 0)
    FROM tk_keys k
    LEFT JOIN (SELECT key_hash, sum(spend) AS spend FROM r GROUP BY 1) s ON s.key_hash = k.hash
    UNION ALL
    SELECT 'user ' || coalesce(u.user_id, s.user_id), 0, 0, coalesce(u.spend_nanos, 0), 0, 0, coalesce(s.spend, 0)
    FROM tk_users u
    FULL JOIN (SELECT user_id, sum(spend) AS spend FROM r WHERE user_id <> '' GROUP BY 1) s
        ON s.user_id = u.user_id
)
SELECT what, a, b, c, x, y, z FROM found WHERE (a, b, c) <> (x, y, z) ORDER BY what LIMIT ?1";

/// Whose day it is: day, key, model group, user, team, provider.
type DayOf<'a> = (i32, &'a [u8], &'a str, &'a str, &'a str, &'a str);

#[derive(Default)]
struct DaySums {
    requests: i64,
    successes: i64,
    failures: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
    cached_tokens: i64,
    spend_nanos: i64,
}

#[derive(Default)]
struct Increments<'a> {
    keys: BTreeMap<KeyHash, i64>,
    users: BTreeMap<&'a str, i64>,
    teams: BTreeMap<&'a str, i64>,
    days: BTreeMap<DayOf<'a>, DaySums>,
}

impl<'a> Increments<'a> {
    fn add(&mut self, r: &'a Record) {
        fn to<K: Ord>(sums: &mut BTreeMap<K, i64>, key: K, n: i64) {
            let sum = sums.entry(key).or_default();
            *sum = sum.saturating_add(n);
        }
        if let Some(hash) = r.key_hash {
            to(&mut self.keys, hash, r.spend_nanos);
        }
        let user = r.user_id.as_deref().unwrap_or("");
        let team = r.team_id.as_deref().unwrap_or("");
        if !user.is_empty() {
            to(&mut self.users, user, r.spend_nanos);
        }
        if !team.is_empty() {
            to(&mut self.teams, team, r.spend_nanos);
        }
        let hash = r.key_hash.as_ref().map_or([].as_slice(), |h| h.0.as_slice());
        let day = rows::day_of(r.started_micros);
        let sums = self
            .days
            .entry((day, hash, &r.model_group, user, team, &r.provider))
            .or_default();
        // A batch is bounded and so is each count, so these cannot overflow.
        sums.requests += 1;
        sums.successes += i64::from(r.status == Status::Success);
        sums.failures += i64::from(matches!(r.status, Status::Failure | Status::Cut));
        sums.prompt_tokens += count(r.prompt_tokens);
        sums.completion_tokens += count(r.completion_tokens);
        sums.cached_tokens += count(r.cached_tokens);
        sums.spend_nanos = sums.spend_nanos.saturating_add(r.spend_nanos);
    }

    fn write(&self, t: &Transaction<'_>) -> rusqlite::Result<()> {
        for (hash, n) in &self.keys {
            t.prepare_cached(ADD_TO_KEY)?.execute(params![hash.0, n])?;
        }
        for (sql, sums) in [(ADD_TO_USER, &self.users), (ADD_TO_TEAM, &self.teams)] {
            for (id, n) in sums {
                t.prepare_cached(sql)?.execute(params![id, n])?;
            }
        }
        for ((day, hash, model, user, team, provider), s) in &self.days {
            t.prepare_cached(ADD_TO_DAY)?.execute(params![
                day,
                hash,
                model,
                user,
                team,
                provider,
                s.requests,
                s.successes,
                s.failures,
                s.prompt_tokens,
                s.completion_tokens,
                s.cached_tokens,
                s.spend_nanos,
            ])?;
        }
        Ok(())
    }
}

pub fn append(c: &mut Connection, records: &[Record]) -> Result<()> {
    let t = begin(c)?;
    let mut increments = Increments::default();
    {
        let mut insert = t.prepare_cached(&INSERT).map_err(from_sqlite)?;
        for r in records {
            let new = insert.execute(params![
                rows::day_of(r.started_micros),
                r.request_id,
                rows::endpoint_name(r.endpoint),
                r.key_hash.map(|h| h.0),
                r.key_alias,
                r.user_id,
                r.team_id,
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
                r.started_micros,
                r.first_byte_micros,
                r.ended_micros,
                rows::list_json(&r.attempts)?,
                rows::list_json(&r.tags)?,
                r.metadata,
                r.client_ip,
                r.user_agent,
                count(r.bytes_in),
                count(r.bytes_out),
            ]);
            if new.map_err(from_sqlite)? > 0 {
                increments.add(r);
            }
        }
    }
    increments.write(&t).map_err(from_sqlite)?;
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

pub fn spend_logs(c: &Connection, filter: &SpendFilter) -> Result<Vec<Record>> {
    let clause = filter::spend(filter, Dialect::Sqlite).page(filter::SPEND_ORDER, filter.page);
    let sql = format!("SELECT {LEDGER_COLUMNS} FROM tk_ledger{}", clause.sql);
    filtered(c, &sql, &clause.args, record)
}

pub fn count_records(c: &Connection, filter: &SpendFilter) -> Result<u64> {
    let clause = filter::spend(filter, Dialect::Sqlite);
    let sql = format!("SELECT count(*) FROM tk_ledger{}", clause.sql);
    let counted = filtered(c, &sql, &clause.args, |row| Cells::of(row).next::<i64>())?;
    Ok(uncount(counted.first().copied().unwrap_or(0)))
}

pub fn daily(c: &Connection, filter: &DailyFilter) -> Result<Vec<DailyRow>> {
    let clause = filter::daily(filter, Dialect::Sqlite).page(filter::DAILY_ORDER, filter.page);
    let sql = format!(
        "SELECT day, key_hash, model_group, user_id, team_id, provider, requests, successes, failures, \
         prompt_tokens, completion_tokens, cached_tokens, spend_nanos FROM tk_daily{}",
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
            provider: c.next()?,
            requests: c.next()?,
            successes: c.next()?,
            failures: c.next()?,
            prompt_tokens: c.next()?,
            completion_tokens: c.next()?,
            cached_tokens: c.next()?,
            spend_nanos: c.next()?,
        })
    })
}

pub fn differences(c: &Connection, max: u32) -> Result<Vec<Difference>> {
    all(c, DIFFERENCES, &[&max], |row| {
        let mut c = Cells::of(row);
        Ok(Difference {
            what: c.next()?,
            kept: sums(&mut c)?,
            rows: sums(&mut c)?,
        })
    })
}

fn sums(c: &mut Cells<'_>) -> std::result::Result<Sums, StoreError> {
    Ok(Sums {
        requests: c.next()?,
        tokens: c.next()?,
        spend_nanos: c.next()?,
    })
}

fn record(row: &Row<'_>) -> Result<Record> {
    let mut c = Cells::of(row);
    Ok(Record {
        request_id: c.next()?,
        endpoint: rows::endpoint(&c.next::<String>()?)?,
        key_hash: c.next::<Option<[u8; 32]>>()?.map(KeyHash),
        key_alias: c.next()?,
        user_id: c.next()?,
        team_id: c.next()?,
        organization_id: None,
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
