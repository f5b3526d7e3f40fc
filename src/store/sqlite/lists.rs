//! Lists of the ledger's rows in SQLite. There is one table, so a list is as quick as the index it follows; which
//! one that is, is said here where SQLite would guess.

use super::digest::{days, known};
use super::ledger::record;
use super::{Cells, filtered, number};
use crate::store::ask;
use crate::store::digest::{self, Need};
use crate::store::filter::{Arg, Clause, Dialect};
use crate::store::rows::{self, LEDGER_COLUMNS, moment, uncount};
use crate::store::{Extent, Page, Result, SpendFilter, SpendOrder};
use filters::model::record::{Record, Status};
use jiff::civil::Date;
use rusqlite::Connection;

/// So many rows are fetched and put in order within the time that a list may take.
const FEW: u64 = 10_000;

/// Pages by number are counted up to by days from here on.
const FAR: u64 = 1_000;
/// Of so many days the dearest or cheapest calls are gathered one day after the other.
const FEW_DAYS: usize = 60;
/// As long as so many of each will do.
const MOST_OF_DAY: u64 = 1_000;

pub fn spend_logs(c: &Connection, filter: &SpendFilter) -> Result<Vec<Record>> {
    if !may_be(c, filter)? {
        return Ok(Vec::new());
    }
    if has_imported(c)? {
        return in_one(c, filter);
    }
    let in_time = !digest::by_spend(filter.order);
    let far = in_time && filter.page.offset >= FAR && digest::countable(filter, Dialect::Sqlite);
    // One thing that rows are equal to has its index. Of several only the days know whether they come together.
    let several = digest::together(filter, Dialect::Sqlite) > 1 && filter.request_id.is_none();
    if !far && !several {
        return in_one(c, filter);
    }
    let known = known(c, filter, if far { Need::Calls } else { Need::Any })?;
    if known.is_empty() {
        return in_one(c, filter);
    }
    let mut days: Vec<(i32, Option<i64>)> = days(c, filter)?
        .into_iter()
        .map(|day| (day, known.get(&day).copied().flatten()))
        .filter(|(_, calls)| *calls != Some(0))
        .collect();
    let most = filter.page.offset.saturating_add(filter.page.limit.into());
    if !in_time && (days.len() > FEW_DAYS || most > MOST_OF_DAY) && !days.is_empty() {
        return in_one(c, filter);
    }
    if filter.order == SpendOrder::Newest {
        days.reverse();
    }
    by_days(c, filter, &days)
}

/// A page from these days, in the order of the list, with the numbers of their calls that fit as far as known.
fn by_days(c: &Connection, filter: &SpendFilter, days: &[(i32, Option<i64>)]) -> Result<Vec<Record>> {
    let by_spend = digest::by_spend(filter.order);
    let limit = u32::try_from(rows::limit(filter.page)).unwrap_or(u32::MAX);
    let mut skip = filter.page.offset;
    let mut found: Vec<Record> = Vec::new();
    for (day, calls) in days {
        let mut part = of_day(filter, *day);
        if by_spend {
            let most = u64::from(limit).saturating_add(skip);
            part.page.limit = u32::try_from(most).unwrap_or(u32::MAX);
            found.extend(in_one(c, &part)?);
            continue;
        }
        if skip > 0 {
            let calls = match calls {
                Some(calls) => uncount(*calls),
                None => count_in_one(c, &part, skip.saturating_add(1))?,
            };
            if calls <= skip {
                skip -= calls;
                continue;
            }
        }
        let left = u32::try_from(found.len()).map_or(0, |found| limit.saturating_sub(found));
        part.page = Page {
            limit: left,
            offset: skip,
        };
        skip = 0;
        found.extend(in_one(c, &part)?);
        if found.len() >= limit as usize {
            break;
        }
    }
    if by_spend {
        found.sort_by(|a, b| (a.spend_nanos, &a.request_id).cmp(&(b.spend_nanos, &b.request_id)));
        if filter.order == SpendOrder::Dearest {
            found.reverse();
        }
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        found = found.into_iter().skip(skip).take(limit as usize).collect();
    }
    Ok(found)
}

/// The same filter within a day, from its first row on.
fn of_day(filter: &SpendFilter, day: i32) -> SpendFilter {
    let (first, next) = (rows::midnight(day), rows::midnight(day.saturating_add(1)));
    SpendFilter {
        start_micros: Some(filter.start_micros.map_or(first, |start| start.max(first))),
        end_micros: Some(filter.end_micros.map_or(next, |end| end.min(next))),
        page: Page {
            offset: 0,
            ..filter.page
        },
        ..filter.clone()
    }
}

/// A page by one statement.
fn in_one(c: &Connection, filter: &SpendFilter) -> Result<Vec<Record>> {
    let in_time = !digest::by_spend(filter.order);
    let few = || -> Result<bool> { Ok(count_in_one(c, filter, FEW)? < FEW) };
    if let Some(tag) = &filter.tag
        && !has_imported(c)?
    {
        let rest = SpendFilter {
            tag: None,
            ..filter.clone()
        };
        if !in_time && narrows(&rest) && count_in_one(c, &rest, FEW)? < FEW {
            let clause = ask::spend(filter, Dialect::Sqlite);
            // In this order after they are fetched, not by it.
            let clause = clause.page(&format!("+{}", ask::spend_order(filter.order)), filter.page);
            let sql = format!("SELECT {LEDGER_COLUMNS} FROM tk_ledger{}", clause.sql);
            return filtered(c, &sql, &clause.args, record);
        }
        if in_time || few()? {
            return tagged(c, filter, tag);
        }
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
    let countable = digest::countable(filter, Dialect::Sqlite);
    let several = digest::together(filter, Dialect::Sqlite) > 1 && filter.request_id.is_none();
    if has_imported(c)? || !countable && !several {
        return count_in_one(c, filter, most);
    }
    let need = if countable { Need::Calls } else { Need::Any };
    let known = known(c, filter, need)?;
    if known.is_empty() {
        return count_in_one(c, filter, most);
    }
    let mut counted = 0;
    let mut unknown = Vec::new();
    for day in days(c, filter)? {
        match known.get(&day).copied().flatten() {
            Some(calls) => counted += uncount(calls),
            None => unknown.push(day),
        }
    }
    for day in unknown {
        if counted >= most {
            break;
        }
        counted += count_in_one(c, &of_day(filter, day), most - counted)?;
    }
    Ok(counted.min(most))
}

/// The same by one statement.
fn count_in_one(c: &Connection, filter: &SpendFilter, most: u64) -> Result<u64> {
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

pub fn calls_of_days(c: &Connection, first: Date, last: Date) -> Result<u64> {
    let (first, last) = (rows::day_number(first), rows::day_number(last));
    let clause = digest::calls_of_days(first, last, Dialect::Sqlite);
    counted(c, &clause.sql, &clause)
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
