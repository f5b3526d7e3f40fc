//! The ledger in Postgres. A batch is one transaction in two round trips: the rows, which tell what of them
//! was new, then every sum that follows from those.

use super::accounts::Rows;
use super::{Cells, PostgresStore, from_statement, time, within};
use crate::store::ask;
use crate::store::filter::Dialect;
use crate::store::rows::{self, LEDGER_COLUMNS, count, moment, uncount};
use crate::store::sums::{DayOf, Increments, LabelOf};
use crate::store::{DailyFilter, DailyRow, DeadLetter, Page, Result, StoreError, Usage};
use filters::model::record::Record;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// Replicas land their batches one after the other: they add to the same accounts, and two batches
/// that took those rows in different order would deadlock. Transaction-scoped; `tollledg` in ASCII.
pub(super) const BEGIN: &str = "BEGIN; SELECT pg_advisory_xact_lock(8390043843745375335)";

static INSERT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO tk_ledger (day, {LEDGER_COLUMNS})
    SELECT DATE '1970-01-01' + day, request_id, endpoint, key_hash, key_alias, user_id, team_id,
        organization_id, end_user, requested_model, model_group, model, deployment_id, provider, stream,
        status, http_status, error, prompt_tokens, completion_tokens, cached_tokens, cache_creation_tokens,
        reasoning_tokens, characters, audio_millis, images, spend_nanos, priced, estimated, clamped, started,
        first_byte, ended, attempts::jsonb, tags::jsonb, metadata, client_ip, user_agent, bytes_in, bytes_out
    FROM unnest($1::int[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::text[],
        $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[],
        $15::boolean[], $16::text[], $17::int[], $18::text[], $19::bigint[], $20::bigint[], $21::bigint[],
        $22::bigint[], $23::bigint[], $24::bigint[], $25::bigint[], $26::bigint[], $27::bigint[],
        $28::boolean[], $29::boolean[], $30::boolean[], $31::timestamptz[], $32::timestamptz[],
        $33::timestamptz[], $34::text[], $35::text[], $36::text[], $37::text[], $38::text[], $39::bigint[],
        $40::bigint[])
        AS r (day, {LEDGER_COLUMNS})
    ON CONFLICT (request_id, day) DO NOTHING"
    )
});

/// The same, telling which rows were new.
pub(super) static INSERT_TELLING: LazyLock<String> =
    LazyLock::new(|| format!("{} RETURNING request_id, day - DATE '1970-01-01'", *INSERT));

const ADD_TO_DAYS: &str = "INSERT INTO tk_daily AS d
SELECT DATE '1970-01-01' + day, key_hash, model_group, user_id, team_id, organization_id, provider, a, b, c,
    e, f, g, h, i
FROM unnest($1::int[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[],
    $15::bigint[]) AS r (day, key_hash, model_group, user_id, team_id, organization_id, provider,
    a, b, c, e, f, g, h, i)
ON CONFLICT (day, key_hash, model_group, user_id, team_id, organization_id, provider) DO UPDATE SET
    requests = d.requests + EXCLUDED.requests,
    successes = d.successes + EXCLUDED.successes,
    failures = d.failures + EXCLUDED.failures,
    prompt_tokens = d.prompt_tokens + EXCLUDED.prompt_tokens,
    completion_tokens = d.completion_tokens + EXCLUDED.completion_tokens,
    cached_tokens = d.cached_tokens + EXCLUDED.cached_tokens,
    cache_creation_tokens = d.cache_creation_tokens + EXCLUDED.cache_creation_tokens,
    spend_nanos = d.spend_nanos + EXCLUDED.spend_nanos";

const ADD_TO_LABELS: &str = "INSERT INTO tk_daily_labels AS d
SELECT kind, DATE '1970-01-01' + day, label, model_group, a, b, c, e, f, g, h, i
FROM unnest($1::text[], $2::int[], $3::text[], $4::text[],
    $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[],
    $12::bigint[]) AS r (kind, day, label, model_group, a, b, c, e, f, g, h, i)
ON CONFLICT (kind, day, label, model_group) DO UPDATE SET
    requests = d.requests + EXCLUDED.requests,
    successes = d.successes + EXCLUDED.successes,
    failures = d.failures + EXCLUDED.failures,
    prompt_tokens = d.prompt_tokens + EXCLUDED.prompt_tokens,
    completion_tokens = d.completion_tokens + EXCLUDED.completion_tokens,
    cached_tokens = d.cached_tokens + EXCLUDED.cached_tokens,
    cache_creation_tokens = d.cache_creation_tokens + EXCLUDED.cache_creation_tokens,
    spend_nanos = d.spend_nanos + EXCLUDED.spend_nanos";

const ADD_UNPRICED: &str = "INSERT INTO tk_daily_unpriced AS d
SELECT DATE '1970-01-01' + day, key_hash, model_group, user_id, team_id, organization_id, provider, calls
FROM unnest($1::int[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[])
    AS r (day, key_hash, model_group, user_id, team_id, organization_id, provider, calls)
ON CONFLICT (day, key_hash, model_group, user_id, team_id, organization_id, provider) DO UPDATE SET
    calls = d.calls + EXCLUDED.calls";

const ADD_UNPRICED_LABELS: &str = "INSERT INTO tk_daily_labels_unpriced AS d
SELECT kind, DATE '1970-01-01' + day, label, model_group, calls
FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::bigint[]) AS r (kind, day, label, model_group, calls)
ON CONFLICT (kind, day, label, model_group) DO UPDATE SET calls = d.calls + EXCLUDED.calls";

impl PostgresStore {
    pub(super) async fn pg_append(&self, records: &[Record]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.make_days(records).await?;
        let batch = Batch::of(records)?;
        let params = batch.params();
        let all = Increments::of(records);
        let touched = Rows::asked(
            all.accounts
                .keys()
                .map(|(kind, id, model)| (*kind, &**id, *model)),
        );
        let lease = self.lease().await?;
        let work = async {
            let statements = async {
                tokio::try_join!(
                    lease.prepare_cached(&INSERT),
                    lease.prepare_cached(super::accounts::LOCK),
                    lease.prepare_cached(super::accounts::WRITE),
                    lease.prepare_cached(ADD_TO_DAYS),
                    lease.prepare_cached(ADD_TO_LABELS),
                    async {
                        if all.days.values().all(|s| s.unpriced == 0) {
                            return Ok(None);
                        }
                        tokio::try_join!(
                            lease.prepare_cached(ADD_UNPRICED),
                            lease.prepare_cached(ADD_UNPRICED_LABELS)
                        )
                        .map(Some)
                    },
                )
            };
            let (insert, lock, write, to_days, to_labels, to_unpriced) =
                statements.await.map_err(from_statement)?;
            // Sent together; the server works through them in order. All answers are awaited, so that the
            // connection is idle afterwards.
            let touched = touched.params();
            let begin = async {
                let (begun, inserted, locked) = tokio::join!(
                    lease.batch_execute(BEGIN),
                    lease.execute(&insert, &params),
                    lease.query(&lock, &touched),
                );
                if begun.and(inserted).map_err(from_statement)? == records.len() as u64 {
                    return Ok((None, locked.map_err(from_statement)?));
                }
                // Some were there already, as after a crash. Mostly none is, and then nobody needs to hear
                // which: so that is asked only now, from the start.
                let telling = lease.prepare_cached(&INSERT_TELLING).await;
                let telling = telling.map_err(from_statement)?;
                let (back, begun, inserted, locked) = tokio::join!(
                    lease.batch_execute("ROLLBACK"),
                    lease.batch_execute(BEGIN),
                    lease.query(&telling, &params),
                    lease.query(&lock, &touched),
                );
                let inserted = back.and(begun).and(inserted).map_err(from_statement)?;
                let locked = locked.map_err(from_statement)?;
                Ok((Some(Increments::of_new(records, &inserted)?), locked))
            };
            let begun: Result<(Option<Increments<'_>>, _)> = begin.await;
            let sums = begun
                .as_ref()
                .map_err(StoreError::clone)
                .and_then(|(new, locked)| {
                    let new = new.as_ref().unwrap_or(&all);
                    Ok((new, Rows::charged(new, locked)?))
                });
            let (new, accounts) = match sums {
                Ok(sums) => sums,
                Err(e) => {
                    lease.batch_execute("ROLLBACK").await.map_err(from_statement)?;
                    return Err(e);
                }
            };
            let (days, labels) = (Columns::days(&new.days), Columns::labels(&new.labels));
            let (accounts, days, labels) = (accounts.params(), days.params(), labels.params());
            let (unpriced, unpriced_labels) = Columns::unpriced(new);
            let (unpriced, unpriced_labels) = (unpriced.params(), unpriced_labels.params());
            // COMMIT after an error is a ROLLBACK.
            let (written, daily, labelled, told, committed) = tokio::join!(
                lease.execute(&write, &accounts),
                lease.execute(&to_days, &days),
                async {
                    if new.labels.is_empty() {
                        return Ok(0);
                    }
                    lease.execute(&to_labels, &labels).await
                },
                async {
                    let Some((days, labels)) = &to_unpriced else {
                        return Ok(0);
                    };
                    let (days, labels) = tokio::join!(
                        lease.execute(days, &unpriced),
                        lease.execute(labels, &unpriced_labels)
                    );
                    days.and(labels)
                },
                lease.batch_execute("COMMIT"),
            );
            written
                .and(daily)
                .and(labelled)
                .and(told)
                .map_err(from_statement)?;
            committed.map_err(from_statement)
        };
        let answer = within(self.limit, work).await;
        // Nothing in a ledger row can be taken but its id, and that is no error.
        lease.finish(match answer {
            Err(StoreError::Conflict { what }) => Err(StoreError::other(format!("unexpected: {what} taken"))),
            answer => answer,
        })
    }

    /// Sees to it that the days of these rows have partitions, and the next days too.
    async fn make_days(&self, records: &[Record]) -> Result<()> {
        let today = rows::today();
        let (first, last) = (today - rows::PARTITIONED_BEFORE, today + rows::MADE_AHEAD);
        let days = records.iter().map(|r| rows::day_of(r.started_micros));
        let mut days: BTreeSet<i32> = days.filter(|d| (first..=last).contains(d)).collect();
        days.extend(today..=last);
        {
            let mut made = self.days.lock();
            // What is older is not asked for any more.
            *made = made.split_off(&first);
            days.retain(|d| !made.contains(d));
        }
        if days.is_empty() {
            return Ok(());
        }
        let days: Vec<i32> = days.into_iter().collect();
        let lease = self.lease().await?;
        let work = async {
            let sql = "SELECT tk_ledger_make_day(DATE '1970-01-01' + d) FROM unnest($1::int[]) AS d";
            let params: [&(dyn ToSql + Sync); 1] = [&days];
            let statement = lease.prepare_cached(sql).await.map_err(from_statement)?;
            let (begun, made, committed) = tokio::join!(
                lease.batch_execute(BEGIN),
                lease.query(&statement, &params),
                lease.batch_execute("COMMIT"),
            );
            begun.and(made).map_err(from_statement)?;
            committed.map_err(from_statement)
        };
        let answer = within(self.limit, work).await;
        lease.finish(answer)?;
        self.days.lock().extend(days);
        Ok(())
    }

    pub(super) async fn pg_dead_letter(&self, record: &Record, reason: &str) -> Result<()> {
        let sql = "INSERT INTO tk_dead_letters (request_id, reason, record) VALUES ($1, $2, $3) \
             ON CONFLICT (request_id) DO NOTHING";
        let id = record.request_id.replace('\0', "\u{fffd}");
        let reason = reason.replace('\0', "\u{fffd}");
        self.query(sql, &[&id, &reason, &rows::to_json(record)?])
            .await
            .map(drop)
    }

    pub(super) async fn pg_dead_letters(&self, page: Page) -> Result<Vec<DeadLetter>> {
        let sql = "SELECT request_id, reason, record FROM tk_dead_letters \
             ORDER BY dead_at DESC, request_id LIMIT $1 OFFSET $2";
        let found = self
            .query(sql, &[&rows::limit(page), &rows::offset(page)])
            .await?;
        let letter = |row| {
            let mut c = Cells::of(row);
            Ok(DeadLetter {
                request_id: c.next()?,
                reason: c.next()?,
                record: c.next()?,
            })
        };
        found.iter().map(letter).collect()
    }

    pub(super) async fn pg_daily(&self, filter: &DailyFilter) -> Result<Vec<DailyRow>> {
        let clause = ask::daily(filter, Dialect::Postgres).page(ask::DAILY_ORDER, filter.page);
        let sql = format!(
            "SELECT day - DATE '1970-01-01', key_hash, model_group, user_id, team_id, organization_id, provider, \
             requests, successes, failures, prompt_tokens, completion_tokens, cached_tokens, \
             cache_creation_tokens, spend_nanos FROM tk_daily_all{}",
            clause.sql
        );
        let found = self.query_filtered(&sql, &clause.args).await?;
        found.iter().map(daily).collect()
    }
}

impl<'a> Increments<'a> {
    /// Of the rows whose id and day the database has told to be new.
    fn of_new(records: &'a [Record], inserted: &[Row]) -> Result<Self> {
        let mut first: HashMap<(&str, i32), &Record> = HashMap::with_capacity(records.len());
        for r in records {
            // Of a row that is there twice, the first is the one that was taken.
            first
                .entry((&r.request_id, rows::day_of(r.started_micros)))
                .or_insert(r);
        }
        let new: Result<Vec<&Record>> = inserted
            .iter()
            .map(|row| {
                let mut c = Cells::of(row);
                let record = first.remove(&(c.next()?, c.next()?));
                record.ok_or_else(|| StoreError::other("a row came back that was not sent"))
            })
            .collect();
        Ok(Self::of(new?))
    }
}

/// Keys and sums of a map turned into columns.
pub(super) struct Columns<'a>(Vec<Box<dyn ToSql + Sync + Send + 'a>>);

impl<'a> Columns<'a> {
    pub(super) fn add<T: ToSql + Sync + Send + 'a>(mut self, cells: impl Iterator<Item = T>) -> Self {
        self.0.push(Box::new(cells.collect::<Vec<T>>()));
        self
    }

    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    pub(super) fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.0.iter().map(|c| &**c as &(dyn ToSql + Sync)).collect()
    }

    fn days(days: &BTreeMap<DayOf<'a>, Usage>) -> Self {
        let columns = Self::none()
            .add(days.keys().map(|k| k.0))
            .add(days.keys().map(|k| k.1))
            .add(days.keys().map(|k| k.2))
            .add(days.keys().map(|k| k.3))
            .add(days.keys().map(|k| k.4))
            .add(days.keys().map(|k| k.5))
            .add(days.keys().map(|k| k.6));
        columns.sums(days.values())
    }

    fn labels(labels: &BTreeMap<LabelOf<'a>, Usage>) -> Self {
        let columns = Self::none()
            .add(labels.keys().map(|k| k.0))
            .add(labels.keys().map(|k| k.1))
            .add(labels.keys().map(|k| k.2))
            .add(labels.keys().map(|k| k.3));
        columns.sums(labels.values())
    }

    /// Of the days and labels that have calls without a price.
    fn unpriced(of: &Increments<'a>) -> (Self, Self) {
        let days = of.days.iter().filter(|(_, s)| s.unpriced > 0);
        let labels = of.labels.iter().filter(|(_, s)| s.unpriced > 0);
        (
            Self::none()
                .add(days.clone().map(|(k, _)| k.0))
                .add(days.clone().map(|(k, _)| k.1))
                .add(days.clone().map(|(k, _)| k.2))
                .add(days.clone().map(|(k, _)| k.3))
                .add(days.clone().map(|(k, _)| k.4))
                .add(days.clone().map(|(k, _)| k.5))
                .add(days.clone().map(|(k, _)| k.6))
                .add(days.map(|(_, s)| s.unpriced)),
            Self::none()
                .add(labels.clone().map(|(k, _)| k.0))
                .add(labels.clone().map(|(k, _)| k.1))
                .add(labels.clone().map(|(k, _)| k.2))
                .add(labels.clone().map(|(k, _)| k.3))
                .add(labels.map(|(_, s)| s.unpriced)),
        )
    }

    fn sums<'u>(self, sums: impl Iterator<Item = &'u Usage> + Clone) -> Self {
        self.add(sums.clone().map(|s| s.requests))
            .add(sums.clone().map(|s| s.successes))
            .add(sums.clone().map(|s| s.failures))
            .add(sums.clone().map(|s| s.prompt_tokens))
            .add(sums.clone().map(|s| s.completion_tokens))
            .add(sums.clone().map(|s| s.cached_tokens))
            .add(sums.clone().map(|s| s.cache_creation_tokens))
            .add(sums.map(|s| s.spend_nanos))
    }
}

/// Records turned into columns, in the order of `INSERT`'s parameters.
pub(super) struct Batch<'a>(Vec<Box<dyn ToSql + Sync + Send + 'a>>);

impl<'a> Batch<'a> {
    pub(super) fn of(records: &'a [Record]) -> Result<Self> {
        fn column<'a, T: ToSql + Sync + Send + 'a>(
            records: &'a [Record],
            cell: impl FnMut(&'a Record) -> T,
        ) -> Box<dyn ToSql + Sync + Send + 'a> {
            Box::new(records.iter().map(cell).collect::<Vec<T>>())
        }
        fn json<'a, T: ToSql + Sync + Send + 'a>(
            records: &'a [Record],
            cell: impl FnMut(&'a Record) -> Result<T>,
        ) -> Result<Box<dyn ToSql + Sync + Send + 'a>> {
            let cells: Result<Vec<T>> = records.iter().map(cell).collect();
            Ok(Box::new(cells?))
        }
        let attempts = json(records, |r| rows::attempts_json(&r.attempts));
        let tags = json(records, |r| rows::list_json(&r.tags));
        let r = records;
        Ok(Self(vec![
            column(r, |r| rows::day_of(r.started_micros)),
            column(r, |r| r.request_id.as_str()),
            column(r, |r| rows::endpoint_name(r.endpoint)),
            column(r, |r| r.key_hash.as_ref().map(|h| h.0.as_slice())),
            column(r, |r| r.key_alias.as_deref()),
            column(r, |r| r.user_id.as_deref()),
            column(r, |r| r.team_id.as_deref()),
            column(r, |r| r.organization_id.as_deref()),
            column(r, |r| r.end_user.as_deref()),
            column(r, |r| r.requested_model.as_str()),
            column(r, |r| r.model_group.as_str()),
            column(r, |r| r.model.as_str()),
            column(r, |r| r.deployment_id.as_str()),
            column(r, |r| r.provider.as_str()),
            column(r, |r| r.stream),
            column(r, |r| r.status.as_str()),
            column(r, |r| i32::from(r.http_status)),
            column(r, |r| r.error.as_deref()),
            column(r, |r| count(r.prompt_tokens)),
            column(r, |r| count(r.completion_tokens)),
            column(r, |r| count(r.cached_tokens)),
            column(r, |r| count(r.cache_creation_tokens)),
            column(r, |r| count(r.reasoning_tokens)),
            column(r, |r| count(r.characters)),
            column(r, |r| count(r.audio_millis)),
            column(r, |r| count(r.images)),
            column(r, |r| r.spend_nanos),
            column(r, |r| r.priced),
            column(r, |r| r.estimated),
            column(r, |r| r.clamped),
            column(r, |r| time(moment(r.started_micros))),
            column(r, |r| r.first_byte_micros.map(|t| time(moment(t)))),
            column(r, |r| time(moment(r.ended_micros))),
            attempts?,
            tags?,
            column(r, |r| r.metadata.as_deref()),
            column(r, |r| r.client_ip.as_str()),
            column(r, |r| r.user_agent.as_deref()),
            column(r, |r| count(r.bytes_in)),
            column(r, |r| count(r.bytes_out)),
        ]))
    }

    pub(super) fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.0.iter().map(|c| &**c as &(dyn ToSql + Sync)).collect()
    }
}

pub(super) fn record(row: &Row) -> Result<Record> {
    let mut c = Cells::of(row);
    Ok(Record {
        request_id: c.next()?,
        endpoint: rows::endpoint(c.next()?)?,
        key_hash: c.next::<Option<&[u8]>>()?.map(rows::hash).transpose()?,
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
        status: rows::status(c.next()?)?,
        http_status: u16::try_from(c.next::<i32>()?).unwrap_or(0),
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
        started_micros: c.micros()?,
        first_byte_micros: c.maybe_micros()?,
        ended_micros: c.micros()?,
        attempts: c.json()?,
        tags: c.json()?,
        metadata: c.next()?,
        client_ip: c.next()?,
        user_agent: c.next()?,
        bytes_in: uncount(c.next()?),
        bytes_out: uncount(c.next()?),
    })
}

fn daily(row: &Row) -> Result<DailyRow> {
    let mut c = Cells::of(row);
    Ok(DailyRow {
        day: rows::date_of(c.next()?),
        key_hash: rows::hash_or_nobody(c.next()?)?,
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
}
