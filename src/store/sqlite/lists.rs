//! Lists of the ledger's rows in SQLite. There is one table, so a list is as quick as the index it follows; which
//! one that is, is said here where SQLite would guess.

use super::ledger::record;
use super::{Cells, filtered, number};
use crate::store::ask;
use crate::store::filter::{Arg, Clause, Dialect};
use crate::store::rows::{self, LEDGER_COLUMNS, moment, uncount};
use crate::store::{Extent, Result, SpendFilter, SpendOrder};
use filters::model::record::{Record, Status};
use rusqlite::Connection;

/// So many rows are fetched and put in order within the time that a list may take.
const FEW: u64 = 10_000;

pub fn spend_logs(c: &Connection, filter: &SpendFilter) -> Result<Vec<Record>> {
    if !may_be(c, filter)? {
        return Ok(Vec::new());
    }
    let in_time = matches!(filter.order, SpendOrder::Newest | SpendOrder::Oldest);
    let few = || -> Result<bool> { Ok(count_up_to(c, filter, FEW)? < FEW) };
    if let Some(tag) = &filter.tag
        && (in_time || few()?)
        && !has_imported(c)?
    {
        return tagged(c, filter, tag);
    }
    let mut order = ask::spend_order(filter.order).to_owned();
    let mut clause = ask::spend(filter, Dialect::Sqlite);
    // Of few rows each is fetched and put in order. Of many, those that come first are soon among the ones that
    // are gone through in that order.
    let priced = filter.min_spend_nanos.is_some() || filter.max_spend_nanos.is_some();
    if !in_time && narrows(filter) && !few()? {
        clause = ask::spend_unindexed(filter);
    } else if in_time && priced && few()? {
        order.insert(0, '+');
    }
    let clause = clause.page(&order, filter.page);
    let sql = format!("SELECT {LEDGER_COLUMNS} FROM tk_ledger_all{}", clause.sql);
    filtered(c, &sql, &clause.args, record)
}

/// Whether the sums know of any such row, where the filter names several things that they are kept by: an index
/// has only one of them.
fn may_be(c: &Connection, f: &SpendFilter) -> Result<bool> {
    let unwell = f.success == Some(false) || f.status.is_some_and(|s| s != Status::Success);
    let named = [
        f.key_hash.is_some(),
        f.user_id.is_some(),
        f.team_id.is_some(),
        f.organization_id.is_some(),
        f.model_group.is_some(),
        unwell,
    ];
    if named.iter().filter(|named| **named).count() < 2 || has_imported(c)? {
        return Ok(true);
    }
    for clause in ask::days_of(f, Dialect::Sqlite) {
        let sql = format!("{} LIMIT 1", clause.sql);
        if filtered(c, &sql, &clause.args, |_| Ok(()))?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether there may be an index of something that rows are equal to.
fn narrows(f: &SpendFilter) -> bool {
    let texts = [
        &f.user_id,
        &f.team_id,
        &f.organization_id,
        &f.end_user,
        &f.model_group,
        &f.model,
        &f.key_alias,
    ];
    f.key_hash.is_some() || texts.iter().any(|text| text.is_some())
}

/// Rows by way of their tags, which stand in order of time.
fn tagged(c: &Connection, filter: &SpendFilter, tag: &str) -> Result<Vec<Record>> {
    let rest = SpendFilter {
        tag: None,
        ..filter.clone()
    };
    let mut clause = ask::spend(&rest, Dialect::Sqlite);
    by_tag(&mut clause, filter, tag);
    let order = match filter.order {
        SpendOrder::Newest => "t.at DESC, t.id DESC",
        SpendOrder::Oldest => "t.at, t.id",
        by_spend => ask::spend_order(by_spend),
    };
    let clause = clause.page(order, filter.page);
    let sql = format!(
        "SELECT {LEDGER_COLUMNS} FROM tk_ledger_tags t CROSS JOIN tk_ledger ON request_id = t.id{}",
        clause.sql
    );
    filtered(c, &sql, &clause.args, record)
}

/// The same bounds for the tags as for the rows: SQLite does not see that their times are one.
fn by_tag<'a>(c: &mut Clause<'a>, filter: &'a SpendFilter, tag: &'a str) {
    c.cmp("t.tag =", Some(Arg::Text(tag)));
    let after = filter.after.as_ref().map(|(value, _)| *value);
    let (low, high) = match filter.order {
        SpendOrder::Newest => (None, after),
        SpendOrder::Oldest => (after, None),
        SpendOrder::Dearest | SpendOrder::Cheapest => (None, None),
    };
    let time = |t: i64| Arg::Time(moment(t));
    c.cmp("t.at >=", filter.start_micros.max(low).map(time));
    let high = [high, filter.end_micros].into_iter().flatten().min();
    c.cmp("t.at <=", high.map(time));
}

pub fn count_records(c: &Connection, filter: &SpendFilter) -> Result<u64> {
    let clause = ask::spend(filter, Dialect::Sqlite);
    let sql = format!("SELECT count(*) FROM tk_ledger_all{}", clause.sql);
    counted(c, &sql, &clause)
}

/// No more than `most`.
pub fn count_up_to(c: &Connection, filter: &SpendFilter, most: u64) -> Result<u64> {
    if !may_be(c, filter)? {
        return Ok(0);
    }
    let most = rows::count(most);
    if let Some(tag) = &filter.tag
        && !has_imported(c)?
    {
        let rest = SpendFilter {
            tag: None,
            ..filter.clone()
        };
        let mut clause = ask::spend(&rest, Dialect::Sqlite);
        by_tag(&mut clause, filter, tag);
        let most = clause.bind(Arg::Int(most));
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM tk_ledger_tags t \
             CROSS JOIN tk_ledger ON request_id = t.id{} LIMIT {most})",
            clause.sql
        );
        return counted(c, &sql, &clause);
    }
    let mut clause = ask::spend(filter, Dialect::Sqlite);
    let most = clause.bind(Arg::Int(most));
    let sql = format!(
        "SELECT count(*) FROM (SELECT 1 FROM tk_ledger_all{} LIMIT {most})",
        clause.sql
    );
    counted(c, &sql, &clause)
}

fn counted(c: &Connection, sql: &str, clause: &Clause<'_>) -> Result<u64> {
    let counted = filtered(c, sql, &clause.args, |row| Cells::of(row).next::<i64>())?;
    Ok(uncount(counted.first().copied().unwrap_or(0)))
}

pub fn extent(c: &Connection) -> Result<Extent> {
    let day = |sql: &str| -> Result<Option<i32>> {
        Ok(number(c, sql, &[])?.map(|day| i32::try_from(day).unwrap_or(0)))
    };
    // Both ends of an index.
    let firsts = [
        day("SELECT day FROM tk_daily ORDER BY day LIMIT 1")?,
        day("SELECT day FROM tk_ledger_imported ORDER BY started LIMIT 1")?,
    ];
    let lasts = [
        day("SELECT day FROM tk_daily ORDER BY day DESC LIMIT 1")?,
        day("SELECT day FROM tk_ledger_imported ORDER BY started DESC LIMIT 1")?,
    ];
    let kept = day("SELECT unixepoch(value) / 86400 FROM tk_settings WHERE name = 'rows_from'")?;
    let first = firsts.into_iter().flatten().min();
    Ok(Extent {
        first: first.max(kept).map(rows::date_of),
        last: lasts.into_iter().flatten().max().map(rows::date_of),
        imported: has_imported(c)?,
    })
}

fn has_imported(c: &Connection) -> Result<bool> {
    Ok(number(c, "SELECT EXISTS (SELECT 1 FROM tk_ledger_imported)", &[])? == Some(1))
}
