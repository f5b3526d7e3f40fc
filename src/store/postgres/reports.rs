//! Reports and the comparison of sums and rows in Postgres.

use super::{Cells, PostgresStore, from_statement, within};
use crate::store::ask;
use crate::store::filter::Dialect;
use crate::store::{Difference, Group, Result, Sums, Usage, UsageFilter, UsageRow, rows};
use std::sync::LazyLock;
use std::time::Duration;

/// From rows, or sums of rows, `r` to charges: kind, id, model and spend. Says the same as
/// `filters::model::account::charged`.
pub(super) const CHARGES: &str = "SELECT c.kind, c.id, m.model, sum(r.spend)::bigint AS spend
FROM r
CROSS JOIN LATERAL (
    VALUES ('gateway', ''), ('organization', nullif(r.organization_id, '')), ('team', nullif(r.team_id, '')),
        ('user', nullif(r.user_id, '')), ('end_user', nullif(r.end_user, '')),
        ('key', encode(nullif(r.key_hash, ''::bytea), 'hex')),
        ('member', nullif(r.team_id, '') || chr(9) || nullif(r.user_id, '')),
        ('organization_member', nullif(r.organization_id, '') || chr(9) || nullif(r.user_id, ''))
    UNION ALL
    SELECT DISTINCT 'tag', nullif(tag, '') FROM jsonb_array_elements_text(r.tags) AS tag
) c (kind, id)
CROSS JOIN LATERAL (SELECT '' UNION SELECT r.model_group) m (model)
WHERE c.id IS NOT NULL AND r.spend <> 0 GROUP BY 1, 2, 3";

static DIFFERENCES: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH kept AS (
    SELECT coalesce((SELECT value::date FROM tk_settings WHERE name = 'rows_from'), DATE '0001-01-01') AS first
), r AS MATERIALIZED (
    SELECT day, coalesce(key_hash, ''::bytea) AS key_hash, model_group, coalesce(user_id, '') AS user_id,
        coalesce(team_id, '') AS team_id, coalesce(organization_id, '') AS organization_id,
        coalesce(end_user, '') AS end_user, tags, provider, count(*) AS requests,
        sum(prompt_tokens + completion_tokens)::bigint AS tokens, sum(spend_nanos)::bigint AS spend
    FROM tk_ledger GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
), days AS (
    SELECT day, key_hash, model_group, user_id, team_id, organization_id, provider,
        sum(requests)::bigint AS requests, sum(tokens)::bigint AS tokens, sum(spend)::bigint AS spend
    FROM r, kept WHERE day >= first GROUP BY 1, 2, 3, 4, 5, 6, 7
), labels AS (
    SELECT c.kind, day, c.label, model_group, sum(requests)::bigint AS requests,
        sum(tokens)::bigint AS tokens, sum(spend)::bigint AS spend
    FROM r CROSS JOIN kept CROSS JOIN LATERAL (
        SELECT 'end_user', r.end_user
        UNION ALL
        SELECT DISTINCT 'tag', tag FROM jsonb_array_elements_text(r.tags) AS tag
    ) c (kind, label)
    WHERE day >= first AND c.label <> '' GROUP BY 1, 2, 3, 4
), charges AS ({CHARGES}), found AS (
    SELECT concat('day ', day, ' key ', encode(key_hash, 'hex'), ' model ', model_group, ' user ', user_id,
            ' team ', team_id, ' organization ', organization_id, ' provider ', provider) AS what,
        coalesce(d.requests, 0) AS a, coalesce(d.tokens, 0) AS b, coalesce(d.spend_nanos, 0) AS c,
        coalesce(s.requests, 0) AS x, coalesce(s.tokens, 0) AS y, coalesce(s.spend, 0) AS z
    FROM (SELECT *, prompt_tokens + completion_tokens AS tokens FROM tk_daily, kept WHERE day >= first) d
    FULL JOIN days s USING (day, key_hash, model_group, user_id, team_id, organization_id, provider)
    UNION ALL
    SELECT concat('day ', day, ' ', kind, ' ', label, ' model ', model_group),
        coalesce(d.requests, 0), coalesce(d.tokens, 0), coalesce(d.spend_nanos, 0),
        coalesce(s.requests, 0), coalesce(s.tokens, 0), coalesce(s.spend, 0)
    FROM (SELECT *, prompt_tokens + completion_tokens AS tokens FROM tk_daily_labels, kept WHERE day >= first) d
    FULL JOIN labels s USING (kind, day, label, model_group)
    UNION ALL
    SELECT rtrim(concat(kind, ' ', replace(id, chr(9), '/'))) || CASE model WHEN '' THEN '' ELSE ' model ' || model END,
        0, 0, coalesce(a.spend_nanos - a.opening_nanos - a.dropped_nanos, 0), 0, 0, coalesce(s.spend, 0)
    FROM tk_accounts a FULL JOIN charges s USING (kind, id, model)
)
SELECT what, a, b, c, x, y, z FROM found WHERE (a, b, c) <> (x, y, z) ORDER BY what LIMIT $1"
    )
});

impl PostgresStore {
    pub(super) async fn pg_usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>> {
        let clause = ask::usage(filter, Dialect::Postgres)?;
        let found = self.query_filtered(&clause.sql, &clause.args).await?;
        let usage_row = |row| {
            let mut c = Cells::of(row);
            let mut out = UsageRow::default();
            for group in &filter.by {
                match group {
                    Group::Day => out.day = Some(rows::date_of(c.next()?)),
                    Group::Key => out.key_hash = rows::hash_or_nobody(c.next()?)?,
                    Group::ModelGroup => out.model_group = Some(c.next()?),
                    Group::User => out.user_id = Some(c.next()?),
                    Group::Team => out.team_id = Some(c.next()?),
                    Group::Organization => out.organization_id = Some(c.next()?),
                    Group::Provider => out.provider = Some(c.next()?),
                    Group::EndUser => out.end_user = Some(c.next()?),
                    Group::Tag => out.tag = Some(c.next()?),
                }
            }
            out.usage = Usage {
                requests: c.next()?,
                successes: c.next()?,
                failures: c.next()?,
                prompt_tokens: c.next()?,
                completion_tokens: c.next()?,
                cached_tokens: c.next()?,
                cache_creation_tokens: c.next()?,
                spend_nanos: c.next()?,
                unpriced: c.next()?,
            };
            Ok(out)
        };
        found.iter().map(usage_row).collect()
    }

    pub(super) async fn pg_differences(&self, max: u32, limit: Duration) -> Result<Vec<Difference>> {
        let lease = self.lease().await?;
        let millis = limit.as_millis().clamp(1, 86_400_000);
        let begin = format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {millis}");
        let max = i64::from(max);
        let work = async {
            lease.batch_execute(&begin).await.map_err(from_statement)?;
            let found = lease.query(DIFFERENCES.as_str(), &[&max]).await;
            let found = found.map_err(from_statement)?;
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
