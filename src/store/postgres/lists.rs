//! Lists of the ledger's rows in Postgres: from day to day, by functions of the database (`tk_ledger_walk`),
//! because to plan a statement over a year of partitions costs more than to read its page.

use super::ledger::record;
use super::{Cells, PostgresStore, boxed};
use crate::store::ask;
use crate::store::filter::Dialect;
use crate::store::rows::{self, LEDGER_COLUMNS, uncount};
use crate::store::{Extent, Result, SpendFilter, SpendOrder};
use filters::model::record::Record;
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
        let epoch = "DATE '1970-01-01'";
        let (first, last, only) = (self.bind(days.first), self.bind(days.last), self.bind(days.only));
        format!(
            "{epoch} + {first}::int, {epoch} + {last}::int, \
             (SELECT array_agg({epoch} + d) FROM unnest({only}::int[]) AS d)"
        )
    }
}

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

impl PostgresStore {
    pub(super) async fn pg_spend_logs(&self, filter: &SpendFilter) -> Result<Vec<Record>> {
        if let Some(day) = filter.request_id.as_deref().and_then(ask::day_of_id) {
            let around = Days {
                first: Some(day.saturating_sub(1)),
                last: Some(day.saturating_add(1)),
                only: None,
            };
            let found = self.page(filter, around).await?;
            // An id is there once, and mostly where it says.
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let days = self.days_of(filter).await?;
        self.page(filter, days).await
    }

    pub(super) async fn pg_count_up_to(&self, filter: &SpendFilter, most: u64) -> Result<u64> {
        let days = self.days_of(filter).await?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let mut counted = 0;
        if !days.none() {
            let (test, texts) = ask::spend_test(filter);
            let mut values = Values::default();
            let (test, texts) = (values.bind(test), values.bind(texts));
            let days = values.days(days);
            let most = values.bind(most);
            let sql = format!("SELECT tk_ledger_count({test}, {texts}, {days}, {most})");
            counted = one(&self.query_values(&sql, &values).await?)?;
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

    /// The days that the sums have of what the filter names, within its times.
    async fn days_of(&self, filter: &SpendFilter) -> Result<Days> {
        let mut only: Option<BTreeSet<i32>> = None;
        for clause in ask::days_of(filter, Dialect::Postgres) {
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

    async fn page(&self, filter: &SpendFilter, days: Days) -> Result<Vec<Record>> {
        let by_spend = matches!(filter.order, SpendOrder::Dearest | SpendOrder::Cheapest);
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
            let (skip, most) = (values.bind(skip), values.bind(most));
            sources.push(format!(
                "SELECT {LEDGER_COLUMNS} \
                 FROM tk_ledger_walk({test}, {texts}, {days}, {by_spend}, {falling}, {skip}, {most})"
            ));
        }
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let (limit, offset) = (values.bind(limit), values.bind(if again { offset } else { 0 }));
        let sql = format!(
            "SELECT {LEDGER_COLUMNS} FROM ({}) found ORDER BY {order} LIMIT {limit} OFFSET {offset}",
            sources.join(" UNION ALL ")
        );
        let found = self.query_values(&sql, &values).await?;
        found.iter().map(record).collect()
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
