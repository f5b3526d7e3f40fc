//! The ledger in Postgres. A batch is one statement in one round trip: rows, and every sum that
//! follows from the rows that were really new.

use super::{Cells, PostgresStore, from_statement, time, within};
use crate::store::filter::{self, Dialect};
use crate::store::rows::{self, LEDGER_COLUMNS, count, uncount};
use crate::store::{
    DailyFilter, DailyRow, DeadLetter, Difference, Page, Result, SpendFilter, StoreError, Sums,
};
use filters::model::record::Record;
use std::sync::LazyLock;
use std::time::Duration;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// Replicas land their batches one after the other: they add to the same keys' sums, and two batches
/// that took those rows in different order would deadlock. Transaction-scoped; `tollledg` in ASCII.
pub(super) const BEGIN: &str = "BEGIN; SELECT pg_advisory_xact_lock(8390043843745375335)";

static APPEND: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH fresh AS (
    INSERT INTO tk_ledger (day, {LEDGER_COLUMNS})
    SELECT DATE '1970-01-01' + day, request_id, endpoint, key_hash, key_alias, user_id, team_id, end_user,
        requested_model, model_group, model, deployment_id, provider, stream, status, http_status, error,
        prompt_tokens, completion_tokens, cached_tokens, cache_creation_tokens, reasoning_tokens,
        characters, audio_millis, images, spend_nanos, priced, estimated, clamped, started, first_byte,
        ended, attempts::jsonb, tags::jsonb, metadata, client_ip, user_agent, bytes_in, bytes_out
    FROM unnest($1::int[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::text[],
        $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::boolean[],
        $15::text[], $16::int[], $17::text[], $18::bigint[], $19::bigint[], $20::bigint[], $21::bigint[],
        $22::bigint[], $23::bigint[], $24::bigint[], $25::bigint[], $26::bigint[], $27::boolean[],
        $28::boolean[], $29::boolean[], $30::timestamptz[], $31::timestamptz[], $32::timestamptz[],
        $33::text[], $34::text[], $35::text[], $36::text[], $37::text[], $38::bigint[], $39::bigint[])
        AS r (day, {LEDGER_COLUMNS})
    ON CONFLICT (request_id) DO NOTHING
    RETURNING day, key_hash, user_id, team_id, model_group, provider, status, prompt_tokens,
        completion_tokens, cached_tokens, spend_nanos
), by_key AS (
    UPDATE tk_keys SET spend_nanos = tk_keys.spend_nanos + s.spend
    FROM (SELECT key_hash, sum(spend_nanos)::bigint AS spend FROM fresh GROUP BY key_hash) s
    WHERE tk_keys.hash = s.key_hash AND s.spend <> 0
), by_user AS (
    INSERT INTO tk_users (user_id, spend_nanos)
    SELECT user_id, sum(spend_nanos)::bigint FROM fresh WHERE user_id <> '' GROUP BY user_id
    ON CONFLICT (user_id) DO UPDATE SET spend_nanos = tk_users.spend_nanos + EXCLUDED.spend_nanos
), by_team AS (
    INSERT INTO tk_teams (team_id, spend_nanos)
    SELECT team_id, sum(spend_nanos)::bigint FROM fresh WHERE team_id <> '' GROUP BY team_id
    ON CONFLICT (team_id) DO UPDATE SET spend_nanos = tk_teams.spend_nanos + EXCLUDED.spend_nanos
)
INSERT INTO tk_daily AS d
SELECT day, coalesce(key_hash, ''::bytea), model_group, coalesce(user_id, ''), coalesce(team_id, ''),
    provider, count(*), count(*) FILTER (WHERE status = 'success'),
    count(*) FILTER (WHERE status IN ('failure', 'cut')), sum(prompt_tokens)::bigint,
    sum(completion_tokens)::bigint, sum(cached_tokens)::bigint, sum(spend_nanos)::bigint
FROM fresh GROUP BY 1, 2, 3, 4, 5, 6
ON CONFLICT (day, key_hash, model_group, user_id, team_id, provider) DO UPDATE SET
    requests = d.requests + EXCLUDED.requests,
    successes = d.successes + EXCLUDED.successes,
    failures = d.failures + EXCLUDED.failures,
    prompt_tokens = d.prompt_tokens + EXCLUDED.prompt_tokens,
    completion_tokens = d.completion_tokens + EXCLUDED.completion_tokens,
    cached_tokens = d.cached_tokens + EXCLUDED.cached_tokens,
    spend_nanos = d.spend_nanos + EXCLUDED.spend_nanos"
    )
});

const DIFFERENCES: &str = "WITH r AS (
    SELECT day, coalesce(key_hash, ''::bytea) AS key_hash, model_group, coalesce(user_id, '') AS user_id,
        coalesce(team_id, '') AS team_id, provider, count(*) AS requests,
        sum(prompt_tokens + completion_tokens)::bigint AS tokens, sum(spend_nanos)::bigint AS spend
    FROM tk_ledger GROUP BY 1, 2, 3, 4, 5, 6
), found AS (
    SELECT concat('day ', day, ' key ', encode(key_hash, 'hex'), ' model ', model_group, ' user ', user_id,
            ' team ', team_id, ' provider ', provider) AS what,
        coalesce(d.requests, 0) AS a, coalesce(d.prompt_tokens + d.completion_tokens, 0) AS b,
        coalesce(d.spend_nanos, 0) AS c,
        coalesce(r.requests, 0) AS x, coalesce(r.tokens, 0) AS y, coalesce(r.spend, 0) AS z
    FROM tk_daily d FULL JOIN r USING (day, key_hash, model_group, user_id, team_id, provider)
    UNION ALL
    SELECT concat('key ', encode(hash, 'hex')), 0, 0, k.spend_nanos - k.opening_nanos, 0, 0, coalesce(s.spend, 0)
    FROM tk_keys k
    LEFT JOIN (SELECT key_hash, sum(spend)::bigint AS spend FROM r GROUP BY 1) s ON s.key_hash = k.hash
    UNION ALL
    SELECT concat('user ', coalesce(u.user_id, s.user_id)), 0, 0, coalesce(u.spend_nanos, 0), 0, 0, coalesce(s.spend, 0)
    FROM tk_users u
    FULL JOIN (SELECT user_id, sum(spend)::bigint AS spend FROM r WHERE user_id <> '' GROUP BY 1) s
        ON s.user_id = u.user_id
)
SELECT what, a, b, c, x, y, z FROM found WHERE (a, b, c) <> (x, y, z) ORDER BY what LIMIT $1";

impl PostgresStore {
    pub(super) async fn pg_append(&self, records: &[Record]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let batch = Batch::of(records)?;
        let params = batch.params();
        let lease = self.lease().await?;
        let work = async {
            let statement = lease.prepare_cached(&APPEND).await.map_err(from_statement)?;
            // Sent together; the server works through them in order. All three answers are awaited, so
            // that the connection is idle afterwards. COMMIT after an error is a ROLLBACK.
            let (begun, appended, committed) = tokio::join!(
                lease.batch_execute(BEGIN),
                lease.execute(&statement, &params),
                lease.batch_execute("COMMIT"),
            );
            begun.map_err(from_statement)?;
            appended.map_err(from_statement)?;
            committed.map_err(from_statement)
        };
        let answer = within(self.limit, work).await;
        // Nothing in a ledger row can be taken but its id, and that is no error.
        lease.finish(match answer {
            Err(StoreError::Conflict { what }) => Err(StoreError::other(format!("unexpected: {what} taken"))),
            answer => answer,
        })
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

    pub(super) async fn pg_spend_logs(&self, filter: &SpendFilter) -> Result<Vec<Record>> {
        let clause = filter::spend(filter, Dialect::Postgres).page(filter::SPEND_ORDER, filter.page);
        let sql = format!("SELECT {LEDGER_COLUMNS} FROM tk_ledger{}", clause.sql);
        let found = self.query_filtered(&sql, &clause.args).await?;
        found.iter().map(record).collect()
    }

    pub(super) async fn pg_count_records(&self, filter: &SpendFilter) -> Result<u64> {
        let clause = filter::spend(filter, Dialect::Postgres);
        let sql = format!("SELECT count(*) FROM tk_ledger{}", clause.sql);
        let found = self.query_filtered(&sql, &clause.args).await?;
        let n: i64 = found.first().map_or(Ok(0), |row| Cells::of(row).next())?;
        Ok(uncount(n))
    }

    pub(super) async fn pg_daily(&self, filter: &DailyFilter) -> Result<Vec<DailyRow>> {
        let clause = filter::daily(filter, Dialect::Postgres).page(filter::DAILY_ORDER, filter.page);
        let sql = format!(
            "SELECT day - DATE '1970-01-01', key_hash, model_group, user_id, team_id, provider, requests, \
             successes, failures, prompt_tokens, completion_tokens, cached_tokens, spend_nanos FROM tk_daily{}",
            clause.sql
        );
        let found = self.query_filtered(&sql, &clause.args).await?;
        found.iter().map(daily).collect()
    }

    pub(super) async fn pg_differences(&self, max: u32, limit: Duration) -> Result<Vec<Difference>> {
        let lease = self.lease().await?;
        let millis = limit.as_millis().clamp(1, 86_400_000);
        let begin = format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {millis}");
        let max = i64::from(max);
        let work = async {
            lease.batch_execute(&begin).await.map_err(from_statement)?;
            let found = lease.query(DIFFERENCES, &[&max]).await.map_err(from_statement)?;
            lease.batch_execute("COMMIT").await.map_err(from_statement)?;
            Ok(found)
        };
        let found = within(limit + Duration::from_millis(500), work).await?;
        let found = lease.finish(Ok(found))?;
        let difference = |row| {
            let mut c = Cells::of(row);
            Ok(Difference {
                what: c.next()?,
                kept: sums(&mut c)?,
                rows: sums(&mut c)?,
            })
        };
        found.iter().map(difference).collect()
    }
}

fn sums(c: &mut Cells<'_>) -> Result<Sums> {
    Ok(Sums {
        requests: c.next()?,
        tokens: c.next()?,
        spend_nanos: c.next()?,
    })
}

/// Records turned into columns, in the order of `APPEND`'s parameters.
struct Batch<'a>(Vec<Box<dyn ToSql + Sync + Send + 'a>>);

impl<'a> Batch<'a> {
    fn of(records: &'a [Record]) -> Result<Self> {
        fn column<'a, T: ToSql + Sync + Send + 'a>(
            records: &'a [Record],
            cell: impl FnMut(&'a Record) -> T,
        ) -> Box<dyn ToSql + Sync + Send + 'a> {
            Box::new(records.iter().map(cell).collect::<Vec<T>>())
        }
        let json = |cell: fn(&'a Record) -> Result<std::borrow::Cow<'static, str>>| {
            let cells: Result<Vec<_>> = records.iter().map(cell).collect();
            cells.map(|cells| Box::new(cells) as Box<dyn ToSql + Sync + Send + 'a>)
        };
        let r = records;
        Ok(Self(vec![
            column(r, |r| rows::day_of(r.started_micros)),
            column(r, |r| r.request_id.as_str()),
            column(r, |r| rows::endpoint_name(r.endpoint)),
            column(r, |r| r.key_hash.as_ref().map(|h| h.0.as_slice())),
            column(r, |r| r.key_alias.as_deref()),
            column(r, |r| r.user_id.as_deref()),
            column(r, |r| r.team_id.as_deref()),
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
            column(r, |r| time(r.started_micros)),
            column(r, |r| r.first_byte_micros.map(time)),
            column(r, |r| time(r.ended_micros)),
            json(|r| rows::list_json(&r.attempts))?,
            json(|r| rows::list_json(&r.tags))?,
            column(r, |r| r.metadata.as_deref()),
            column(r, |r| r.client_ip.as_str()),
            column(r, |r| r.user_agent.as_deref()),
            column(r, |r| count(r.bytes_in)),
            column(r, |r| count(r.bytes_out)),
        ]))
    }

    fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.0.iter().map(|c| &**c as &(dyn ToSql + Sync)).collect()
    }
}

fn record(row: &Row) -> Result<Record> {
    let mut c = Cells::of(row);
    Ok(Record {
        request_id: c.next()?,
        endpoint: rows::endpoint(c.next()?)?,
        key_hash: c.next::<Option<&[u8]>>()?.map(rows::hash).transpose()?,
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
        provider: c.next()?,
        requests: c.next()?,
        successes: c.next()?,
        failures: c.next()?,
        prompt_tokens: c.next()?,
        completion_tokens: c.next()?,
        cached_tokens: c.next()?,
        spend_nanos: c.next()?,
    })
}
