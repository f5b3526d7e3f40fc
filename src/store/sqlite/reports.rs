//! Reports and the comparison of sums and rows in SQLite.

use super::{Cells, all, filtered, from_sqlite};
use crate::store::ask;
use crate::store::filter::Dialect;
use crate::store::{
    Difference, Group, Result, StoreError, Sums, Usage, UsageFilter, UsageOrder, UsageRow, rows,
};
use rusqlite::Connection;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Common table expressions that turn rows, or sums of rows, `r` (where nobody's id is NULL) to `charges`:
/// kind, id, model and spend. Says the same as `filters::model::account::charged`.
pub const CHARGES: &str = "subjects AS (
    SELECT 'gateway' AS kind, '' AS id, model_group, spend FROM r
    UNION ALL SELECT 'organization', organization_id, model_group, spend FROM r
    UNION ALL SELECT 'team', team_id, model_group, spend FROM r
    UNION ALL SELECT 'user', user_id, model_group, spend FROM r
    UNION ALL SELECT 'end_user', end_user, model_group, spend FROM r
    UNION ALL SELECT 'key', lower(hex(key_hash)), model_group, spend FROM r WHERE key_hash IS NOT NULL
    UNION ALL SELECT 'member', team_id || char(9) || user_id, model_group, spend FROM r
    UNION ALL SELECT 'organization_member', organization_id || char(9) || user_id, model_group, spend FROM r
    UNION ALL SELECT 'tag', t.value, model_group, spend FROM r, json_each(r.tags) t
        WHERE r.tags <> '[]' AND t.value <> '' AND NOT EXISTS
            (SELECT 1 FROM json_each(r.tags) u WHERE u.key < t.key AND u.value = t.value)
), charges AS (
    SELECT kind, id, model, sum(spend) AS spend FROM (
        SELECT kind, id, '' AS model, spend FROM subjects
        UNION ALL SELECT kind, id, model_group, spend FROM subjects WHERE model_group <> ''
    ) WHERE id IS NOT NULL AND spend <> 0 GROUP BY 1, 2, 3
)";

static DIFFERENCES: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH kept AS (
    SELECT coalesce((SELECT unixepoch(value) / 86400 FROM tk_settings WHERE name = 'rows_from'), 0) AS first
), r AS MATERIALIZED (
    SELECT day, key_hash, model_group, nullif(user_id, '') AS user_id, nullif(team_id, '') AS team_id,
        nullif(organization_id, '') AS organization_id, nullif(end_user, '') AS end_user, tags, provider,
        count(*) AS requests, sum(prompt_tokens + completion_tokens) AS tokens, sum(spend_nanos) AS spend
    FROM tk_ledger GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
), days AS (
    SELECT day, coalesce(key_hash, x'') AS key_hash, model_group, coalesce(user_id, '') AS user_id,
        coalesce(team_id, '') AS team_id, coalesce(organization_id, '') AS organization_id, provider,
        sum(requests) AS requests, sum(tokens) AS tokens, sum(spend) AS spend
    FROM r, kept WHERE day >= first GROUP BY 1, 2, 3, 4, 5, 6, 7
), labelled AS (
    SELECT 'end_user' AS kind, day, end_user AS label, model_group, requests, tokens, spend
    FROM r, kept WHERE day >= first AND end_user IS NOT NULL
    UNION ALL
    SELECT 'tag', day, t.value, model_group, requests, tokens, spend FROM r, kept, json_each(r.tags) t
    WHERE day >= first AND r.tags <> '[]' AND t.value <> '' AND NOT EXISTS
        (SELECT 1 FROM json_each(r.tags) u WHERE u.key < t.key AND u.value = t.value)
), labels AS (
    SELECT kind, day, label, model_group, sum(requests) AS requests, sum(tokens) AS tokens, sum(spend) AS spend
    FROM labelled GROUP BY 1, 2, 3, 4
), {CHARGES}, found AS (
    SELECT 'day ' || date(day * 86400, 'unixepoch') || ' key ' || lower(hex(key_hash)) || ' model ' || model_group
            || ' user ' || user_id || ' team ' || team_id || ' organization ' || organization_id
            || ' provider ' || provider AS what,
        coalesce(d.requests, 0) AS a, coalesce(d.tokens, 0) AS b, coalesce(d.spend_nanos, 0) AS c,
        coalesce(s.requests, 0) AS x, coalesce(s.tokens, 0) AS y, coalesce(s.spend, 0) AS z
    FROM (SELECT *, prompt_tokens + completion_tokens AS tokens FROM tk_daily, kept WHERE day >= first) d
    FULL JOIN days s USING (day, key_hash, model_group, user_id, team_id, organization_id, provider)
    UNION ALL
    SELECT 'day ' || date(day * 86400, 'unixepoch') || ' ' || kind || ' ' || label || ' model ' || model_group,
        coalesce(d.requests, 0), coalesce(d.tokens, 0), coalesce(d.spend_nanos, 0),
        coalesce(s.requests, 0), coalesce(s.tokens, 0), coalesce(s.spend, 0)
    FROM (SELECT *, prompt_tokens + completion_tokens AS tokens FROM tk_daily_labels, kept WHERE day >= first) d
    FULL JOIN labels s USING (kind, day, label, model_group)
    UNION ALL
    SELECT rtrim(kind || ' ' || replace(id, char(9), '/')) || CASE model WHEN '' THEN '' ELSE ' model ' || model END,
        0, 0, coalesce(a.spend_nanos - a.opening_nanos - a.dropped_nanos, 0), 0, 0, coalesce(s.spend, 0)
    FROM tk_accounts a FULL JOIN charges s USING (kind, id, model)
)
SELECT what, a, b, c, x, y, z FROM found WHERE (a, b, c) <> (x, y, z) ORDER BY what LIMIT ?1"
    )
});

/// Groups of which a store has few: they are added up here, which takes a third of the time that SQLite needs to
/// sort all days by them.
fn few(filter: &UsageFilter) -> bool {
    let of_few = |group: &Group| {
        matches!(
            group,
            Group::ModelGroup
                | Group::User
                | Group::Team
                | Group::Organization
                | Group::Provider
                | Group::EndUser
                | Group::Tag
        )
    };
    !filter.by.is_empty() && filter.by.len() <= NAMES && filter.by.iter().all(of_few)
}

/// Most groups of that kind.
const NAMES: usize = 7;

pub fn usage(c: &Connection, filter: &UsageFilter) -> Result<Vec<UsageRow>> {
    if few(filter) {
        return added_up(c, filter);
    }
    let clause = ask::usage(filter, Dialect::Sqlite)?;
    filtered(c, &clause.sql, &clause.args, |row| {
        let mut c = Cells::of(row);
        let mut out = UsageRow::default();
        for group in &filter.by {
            match group {
                Group::Day => out.day = Some(rows::date_of(c.next()?)),
                Group::Key => out.key_hash = rows::hash_or_nobody(&c.next::<Vec<u8>>()?)?,
                other => name(&mut out, *other, c.next()?),
            }
        }
        out.usage = read_usage(&mut c)?;
        Ok(out)
    })
}

fn name(row: &mut UsageRow, group: Group, text: String) {
    let place = match group {
        Group::ModelGroup => &mut row.model_group,
        Group::User => &mut row.user_id,
        Group::Team => &mut row.team_id,
        Group::Organization => &mut row.organization_id,
        Group::Provider => &mut row.provider,
        Group::EndUser => &mut row.end_user,
        Group::Tag => &mut row.tag,
        Group::Day | Group::Key => return,
    };
    *place = Some(text);
}

fn read_usage(c: &mut Cells<'_>) -> Result<Usage> {
    Ok(Usage {
        requests: c.next()?,
        successes: c.next()?,
        failures: c.next()?,
        prompt_tokens: c.next()?,
        completion_tokens: c.next()?,
        cached_tokens: c.next()?,
        cache_creation_tokens: c.next()?,
        spend_nanos: c.next()?,
        unpriced: c.next()?,
    })
}

fn added_up(c: &Connection, filter: &UsageFilter) -> Result<Vec<UsageRow>> {
    let clause = ask::usage_rows(filter, Dialect::Sqlite)?;
    // A group's names, one after the other, and where each ends.
    type Names = (Vec<u8>, [usize; NAMES]);
    let mut sums: HashMap<Names, Usage, foldhash::fast::RandomState> = HashMap::default();
    let mut names: Names = Names::default();
    filtered(c, &clause.sql, &clause.args, |row| {
        names.0.clear();
        for (at, end) in (0..filter.by.len()).zip(&mut names.1) {
            let text = row.get_ref(at).map_err(from_sqlite)?;
            names
                .0
                .extend_from_slice(text.as_bytes().map_err(StoreError::other)?);
            *end = names.0.len();
        }
        let mut cells = Cells::from(row, filter.by.len());
        let usage = read_usage(&mut cells)?;
        match sums.get_mut(&names) {
            Some(sum) => sum.add(&usage),
            None => {
                sums.insert(names.clone(), usage);
            }
        }
        Ok(())
    })?;
    let mut found: Vec<UsageRow> = sums
        .into_iter()
        .map(|((text, ends), usage)| {
            let mut out = UsageRow {
                usage,
                ..UsageRow::default()
            };
            let mut start = 0;
            for (group, end) in filter.by.iter().zip(ends) {
                let text = text.get(start..end).unwrap_or_default();
                name(&mut out, *group, String::from_utf8_lossy(text).into_owned());
                start = end;
            }
            out
        })
        .collect();
    found.sort_by(|a, b| {
        let names = |r: &UsageRow| -> [Option<String>; NAMES] {
            [
                r.model_group.clone(),
                r.user_id.clone(),
                r.team_id.clone(),
                r.organization_id.clone(),
                r.provider.clone(),
                r.end_user.clone(),
                r.tag.clone(),
            ]
        };
        let spend = match filter.order {
            UsageOrder::Spend => b.usage.spend_nanos.cmp(&a.usage.spend_nanos),
            UsageOrder::Groups => Ordering::Equal,
        };
        spend.then_with(|| names(a).cmp(&names(b)))
    });
    let skip = usize::try_from(filter.page.offset).unwrap_or(usize::MAX);
    let limit = usize::try_from(rows::limit(filter.page)).unwrap_or(0);
    Ok(found.into_iter().skip(skip).take(limit).collect())
}

pub fn differences(c: &Connection, max: u32) -> Result<Vec<Difference>> {
    all(c, &DIFFERENCES, &[&max], |row| {
        let mut c = Cells::of(row);
        Ok(Difference {
            what: c.next()?,
            kept: sums(&mut c)?,
            rows: sums(&mut c)?,
        })
    })
}

fn sums(c: &mut Cells<'_>) -> Result<Sums> {
    Ok(Sums {
        requests: c.next()?,
        tokens: c.next()?,
        spend_nanos: c.next()?,
    })
}
