//! Lists of the ledger's rows in Postgres: from day to day, by functions of the database (`tk_ledger_page`,
//! `tk_ledger_extremes`), because to plan a statement over a year of partitions costs more than to read its page.
//! Days that were looked through and have nothing of what is asked for are left out.

use super::ledger::record;
use super::{Cells, PostgresStore, boxed, within};
use crate::store::ask;
use crate::store::digest::{self, Need};
use crate::store::filter::Dialect;
use crate::store::rows::{self, LEDGER_COLUMNS, uncount};
use crate::store::{Extent, Result, SpendFilter, SpendOrder, StoreError};
use filters::model::record::Record;
use jiff::civil::Date;
use std::collections::BTreeSet;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// Values of a statement, in order.
#[derive(Default)]
struct Values<'a>(Vec<Box<dyn ToSql + Sync + Send + 'a>>);

impl<'a> Values<'a> {
    /// Binds a value; its place in the statement.
    fn bind(&mut self, value: impl ToSql + Sync + Send + 'a) -> String {
        self.0.push(Box::new(value));
        format!("${}", self.0.len())
    }

    /// What the functions are told of the days.
    fn days(&mut self, days: Days) -> String {
        let (first, last, only) = (self.bind(days.first), self.bind(days.last), self.bind(days.only));
        format!("{EPOCH} + {first}::int, {EPOCH} + {last}::int, {}", dates(&only))
    }

    fn known(&mut self, days: Vec<i32>, calls: Vec<Option<i64>>) -> String {
        let (days, calls) = (self.bind(days), self.bind(calls));
        format!("{}, {calls}::bigint[]", dates(&days))
    }
}

const EPOCH: &str = "DATE '1970-01-01'";

/// Days since 1970 as dates.
fn dates(days: &str) -> String {
    format!(
        "(SELECT array_agg({EPOCH} + d ORDER BY o) FROM unnest({days}::int[]) WITH ORDINALITY AS d (d, o))"
    )
}

/// Of one list by spend so many rows are gathered whole; of more, the places where they stand.
const MOST_WHOLE: i64 = 1_000;

/// Which days may have rows of a filter, days since 1970.
struct Days {
    first: Option<i32>,
    last: Option<i32>,
    /// These at most; `None` = any.
    only: Option<Vec<i32>>,
}

impl Days {
    fn none(&self) -> bool {
        self.only.as_ref().is_some_and(Vec::is_empty)
    }
}

/// What is known of the days that were looked through, one entry for each.
#[derive(Default)]
struct Known {
    days: Vec<i32>,
    /// How many calls fit; `None` = some do, perhaps.
    calls: Vec<Option<i64>>,
    /// Of lists by spend: what none of the day's calls is beyond.
    costs: Vec<Option<i64>>,
    ids: Vec<Option<String>>,
}

impl PostgresStore {
    pub(super) async fn pg_spend_logs(&self, filter: &SpendFilter) -> Result<Vec<Record>> {
        if let Some(day) = filter.request_id.as_deref().and_then(ask::day_of_id) {
            let around = Days {
                first: Some(day.saturating_sub(1)),
                last: Some(day.saturating_add(1)),
                only: None,
            };
            let found = self.page(filter, around, Known::default()).await?;
            // An id is there once, and mostly where it says.
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let need = match filter.page.offset > 0 && digest::countable(filter, Dialect::Postgres) {
            _ if filter.request_id.is_some() => Need::Any,
            _ if digest::by_spend(filter.order) => Need::Ends,
            true => Need::Calls,
            false => Need::Any,
        };
        let known = self.known(filter, need).await?;
        let days = self.days_of(filter, &known).await?;
        self.page(filter, days, known).await
    }

    pub(super) async fn pg_count_up_to(&self, filter: &SpendFilter, most: u64) -> Result<u64> {
        let need = match digest::countable(filter, Dialect::Postgres) {
            true => Need::Calls,
            false => Need::Any,
        };
        let mut known = self.known(filter, need).await?;
        let days = self.days_of(filter, &known).await?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let mut counted: i64 = 0;
        for calls in known.calls.iter_mut().flatten() {
            counted = counted.saturating_add(std::mem::take(calls)).min(most);
        }
        if counted < most && !days.none() {
            let (test, texts) = ask::spend_test(filter);
            let mut values = Values::default();
            let (test, texts) = (values.bind(test), values.bind(texts));
            let days = values.days(days);
            let known = values.known(known.days, known.calls);
            let most = values.bind(most - counted);
            let sql = format!("SELECT tk_ledger_counted({test}, {texts}, {days}, {known}, {most})");
            counted += one(&self.walk(&sql, &values).await?)?;
        }
        if counted < most && self.has_imported().await? {
            let clause = ask::spend(filter, Dialect::Postgres);
            let mut values = Values(clause.args.iter().map(|a| boxed(*a)).collect());
            let most = values.bind(most - counted);
            let sql = format!(
                "SELECT count(*) FROM (SELECT FROM tk_ledger_imported{} LIMIT {most}) s",
                clause.sql
            );
            counted += one(&self.query_values(&sql, &values).await?)?;
        }
        Ok(uncount(counted))
    }

    pub(super) async fn pg_count_records(&self, filter: &SpendFilter) -> Result<u64> {
        self.pg_count_up_to(filter, u64::MAX).await
    }

    pub(super) async fn pg_extent(&self) -> Result<Extent> {
        let sql = "SELECT least((SELECT min(day) FROM tk_daily), (SELECT min(day) FROM tk_ledger_imported)) \
             - DATE '1970-01-01', \
             greatest((SELECT max(day) FROM tk_daily), (SELECT max(day) FROM tk_ledger_imported)) \
             - DATE '1970-01-01', \
             (SELECT value::date FROM tk_settings WHERE name = 'rows_from') - DATE '1970-01-01', \
             EXISTS (SELECT FROM tk_ledger_imported)";
        let rows = self.query(sql, &[]).await?;
        let Some(row) = rows.first() else {
            return Ok(Extent::default());
        };
        let mut c = Cells::of(row);
        let (first, last): (Option<i32>, Option<i32>) = (c.next()?, c.next()?);
        let kept: Option<i32> = c.next()?;
        Ok(Extent {
            first: first.max(kept).map(rows::date_of),
            last: last.map(rows::date_of),
            imported: c.next()?,
        })
    }

    pub(super) async fn pg_calls_of_days(&self, first: Date, last: Date) -> Result<u64> {
        let (first, last) = (rows::day_number(first), rows::day_number(last));
        let clause = digest::calls_of_days(first, last, Dialect::Postgres);
        let found = self.query_filtered(&clause.sql, &clause.args).await?;
        Ok(uncount(one(&found)?))
    }

    /// What is known of days within the filter's times.
    async fn known(&self, filter: &SpendFilter, need: Need) -> Result<Known> {
        let mut known = Known::default();
        let Some(clause) = digest::known(filter, need, Dialect::Postgres) else {
            return Ok(known);
        };
        for row in &self.query_filtered(&clause.sql, &clause.args).await? {
            let mut c = Cells::of(row);
            let day = c.next()?;
            let told: Option<i64> = c.next()?;
            known.days.push(day);
            known.calls.push(match (need, told) {
                (_, None) => Some(0),
                (Need::Calls, Some(calls)) if calls == 0 || digest::whole(filter, day) => Some(calls),
                (_, Some(_)) => None,
            });
            if need == Need::Ends {
                known.costs.push(told);
                known.ids.push(c.next()?);
            }
        }
        Ok(known)
    }

    /// The days that the sums have of what the filter names, within its times; where days were looked through,
    /// what is known of those says it.
    async fn days_of(&self, filter: &SpendFilter, known: &Known) -> Result<Days> {
        let mut only: Option<BTreeSet<i32>> = None;
        let clauses = match known.days.is_empty() {
            true => ask::days_of(filter, Dialect::Postgres),
            false => Vec::new(),
        };
        for clause in clauses {
            let found = self.query_filtered(&clause.sql, &clause.args).await?;
            let found: Result<BTreeSet<i32>> = found.iter().map(|row| Cells::of(row).next()).collect();
            let found = found?;
            only = Some(match only {
                Some(only) => only.intersection(&found).copied().collect(),
                None => found,
            });
        }
        let (first, last) = ask::spend_days(filter);
        Ok(Days {
            first,
            last,
            only: only.map(|only| only.into_iter().collect()),
        })
    }

    async fn page(&self, filter: &SpendFilter, days: Days, known: Known) -> Result<Vec<Record>> {
        let by_spend = digest::by_spend(filter.order);
        let falling = matches!(filter.order, SpendOrder::Newest | SpendOrder::Dearest);
        let imported = self.has_imported().await?;
        let order = ask::spend_order(filter.order);
        let (limit, offset) = (rows::limit(filter.page), rows::offset(filter.page));
        // What comes from two places, or in no order, is put in order and cut once more.
        let again = by_spend || imported;
        let (skip, most) = match again {
            true => (0, limit.saturating_add(offset)),
            false => (offset, limit),
        };
        let clause = ask::spend(filter, Dialect::Postgres);
        let mut values = Values::default();
        let mut sources = Vec::new();
        if imported {
            values.0.extend(clause.args.iter().map(|a| boxed(*a)));
            let most = values.bind(most);
            sources.push(format!(
                "(SELECT {LEDGER_COLUMNS} FROM tk_ledger_imported{} ORDER BY {order} LIMIT {most})",
                clause.sql
            ));
        }
        if !days.none() {
            let (test, texts) = ask::spend_test(filter);
            let (test, texts) = (values.bind(test), values.bind(texts));
            let days = values.days(days);
            let walk = if !by_spend {
                let known = values.known(known.days, known.calls);
                let (skip, most) = (values.bind(skip), values.bind(most));
                format!("tk_ledger_page({test}, {texts}, {days}, {known}, {falling}, {skip}, {most})")
            } else if most <= MOST_WHOLE {
                let days = format!("{days}, {}", values.known(known.days, known.calls));
                let (costs, ids) = (values.bind(known.costs), values.bind(known.ids));
                let most = values.bind(most);
                format!(
                    "tk_ledger_extremes({test}, {texts}, {days}, {costs}::bigint[], {ids}::text[], {falling}, \
                     {most}::bigint::int)"
                )
            } else {
                let (skip, most) = (values.bind(skip), values.bind(most));
                format!("tk_ledger_walk({test}, {texts}, {days}, true, {falling}, {skip}, {most})")
            };
            sources.push(format!("SELECT {LEDGER_COLUMNS} FROM {walk}"));
        }
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let (limit, offset) = (values.bind(limit), values.bind(if again { offset } else { 0 }));
        let sql = format!(
            "SELECT {LEDGER_COLUMNS} FROM ({}) found ORDER BY {order} LIMIT {limit} OFFSET {offset}",
            sources.join(" UNION ALL ")
        );
        let found = self.walk(&sql, &values).await?;
        found.iter().map(record).collect()
    }

    /// A statement that may look at many days' tables. It holds a lock on each and on each of its indexes until it
    /// ends, five thousand for a year, and the server has room for some ten thousand: so few run at a time.
    async fn walk(&self, sql: &str, values: &Values<'_>) -> Result<Vec<Row>> {
        let free = async { self.walks.acquire().await.map_err(StoreError::other) };
        let _free = within(self.limit, free).await?;
        self.query_values(sql, values).await
    }

    async fn has_imported(&self) -> Result<bool> {
        let rows = self
            .query("SELECT EXISTS (SELECT FROM tk_ledger_imported)", &[])
            .await?;
        rows.first().map_or(Ok(false), |row| Cells::of(row).next())
    }

    async fn query_values(&self, sql: &str, values: &Values<'_>) -> Result<Vec<Row>> {
        let params: Vec<&(dyn ToSql + Sync)> = values.0.iter().map(|v| &**v as &(dyn ToSql + Sync)).collect();
        self.query(sql, &params).await
    }
}

/// The one number that was asked for.
fn one(found: &[Row]) -> Result<i64> {
    found.first().map_or(Ok(0), |row| Cells::of(row).next())
}
