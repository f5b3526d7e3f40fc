//! What a list of calls tells beside its rows: how many there are, and where a search through ids that looks at
//! no more than a bounded number of them at a time goes on. For either store.

use super::report::{Group, UsageFilter};
use super::rows::{day_number, day_of, midnight};
use super::{Page, Result, SpendFilter, SpendOrder, Store, rows};
use filters::model::record::Record;
use jiff::civil::Date;

/// Rows counted one by one, of those that no sum is kept of.
const MOST_COUNTED: u64 = 10_000;
/// The same at the ends of a time that begins or ends within a day.
const MOST_AT_ENDS: u64 = 100_000;
/// Rows whose ids one search looks into before it says where to go on.
const MOST_LOOKED_AT: i64 = 30_000;

/// How many rows a filter matches, and whether that is all of them: where not, there are at least so many.
pub async fn count(store: &dyn Store, filter: &SpendFilter) -> Result<(u64, bool)> {
    if filter.request_id.is_some() {
        let one = SpendFilter {
            page: Page::default(),
            ..filter.clone()
        };
        return Ok((store.spend_logs(&one).await?.len() as u64, true));
    }
    let extent = store.extent().await?;
    let Some(first) = extent.first.filter(|_| summed(filter) && !extent.imported) else {
        let n = store.count_up_to(filter, MOST_COUNTED + 1).await?;
        return Ok((n.min(MOST_COUNTED), n <= MOST_COUNTED));
    };
    // Whole days between the two ends.
    let from = filter.start_micros.map_or(0, next_midnight);
    let to = filter.end_micros.map(|t| midnight(day_of(t)));
    if to.is_some_and(|to| to <= from) {
        return count_at_end(store, filter).await;
    }
    let start = rows::date_of(day_of(from)).max(first);
    let end = to.map(|to| rows::date_of(day_of(to) - 1));
    let mut counted = if is_plain(filter) {
        // Nothing comes after the last day.
        let end = end.into_iter().chain(extent.last).min().unwrap_or(start);
        match start <= end {
            true => rows::count(store.calls_of_days(start, end).await?),
            false => 0,
        }
    } else {
        let usage = UsageFilter {
            start: Some(start),
            end,
            key_hashes: filter.key_hash.map(|k| vec![k]),
            model_groups: one(&filter.model_group),
            user_ids: one(&filter.user_id),
            team_ids: one(&filter.team_id),
            organization_ids: one(&filter.organization_id),
            end_users: one(&filter.end_user),
            tags: one(&filter.tag),
            ..UsageFilter::default()
        };
        let sums = store.usage(&usage).await?;
        let sums = sums.first().map(|row| row.usage).unwrap_or_default();
        match filter.success {
            Some(true) => sums.successes,
            Some(false) => sums.requests.saturating_sub(sums.successes),
            None => sums.requests,
        }
    };
    let mut exact = true;
    let mut ends = Vec::new();
    if filter.start_micros.is_some_and(|start| start < from) {
        ends.push((filter.start_micros, Some(from)));
    }
    if let (Some(to), Some(end)) = (to, filter.end_micros)
        && to < end
    {
        ends.push((Some(to), Some(end)));
    }
    for (start_micros, end_micros) in ends {
        let end = SpendFilter {
            start_micros,
            end_micros,
            ..filter.clone()
        };
        let (n, all) = count_at_end(store, &end).await?;
        counted = counted.saturating_add(rows::count(n));
        exact &= all;
    }
    Ok((rows::uncount(counted), exact))
}

async fn count_at_end(store: &dyn Store, filter: &SpendFilter) -> Result<(u64, bool)> {
    let n = store.count_up_to(filter, MOST_AT_ENDS + 1).await?;
    Ok((n.min(MOST_AT_ENDS), n <= MOST_AT_ENDS))
}

fn one(text: &Option<String>) -> Option<Vec<String>> {
    text.clone().map(|text| vec![text])
}

fn next_midnight(micros: i64) -> i64 {
    let before = midnight(day_of(micros));
    match before < micros {
        true => midnight(day_of(micros).saturating_add(1)),
        false => before,
    }
}

/// Whether the days' sums say how many rows there are. Nobody's id is another thing in sums than in rows.
fn summed(f: &SpendFilter) -> bool {
    let ids = [&f.user_id, &f.team_id, &f.organization_id];
    let labels = [&f.end_user, &f.tag];
    // Sums of one label, and of nothing with it but the model group.
    let labelled = labels.iter().filter(|label| label.is_some()).count();
    let by_key = f.key_hash.is_some() || ids.iter().any(|id| id.is_some());
    let nobodys = ids.iter().chain(&labels).any(|id| id.as_deref() == Some(""));
    !nobodys
        && (labelled == 0 || labelled == 1 && !by_key)
        && f.model.is_none()
        && f.key_alias.is_none()
        && f.status.is_none()
        && f.http_status.is_none()
        && f.request_id.is_none()
        && f.request_id_part.is_none()
        && f.min_spend_nanos.is_none()
        && f.max_spend_nanos.is_none()
        && f.ended_after_micros.is_none()
        && f.after.is_none()
}

/// Whether the filter, which [`summed`] holds of, names nothing but times.
fn is_plain(f: &SpendFilter) -> bool {
    let names = [
        &f.user_id,
        &f.team_id,
        &f.organization_id,
        &f.model_group,
        &f.end_user,
        &f.tag,
    ];
    f.key_hash.is_none() && f.success.is_none() && names.iter().all(|name| name.is_none())
}

/// A page of rows, and where to go on ([`SpendFilter::after`]) if the search for a part of an id has looked at
/// as many rows as it may: the page may then hold fewer than asked for, or none, and yet not be the last.
/// Orders by spend and pages by number are looked through to the end.
pub async fn search(store: &dyn Store, filter: &SpendFilter) -> Result<(Vec<Record>, Option<(i64, String)>)> {
    let falling = filter.order == SpendOrder::Newest;
    let in_time = falling || filter.order == SpendOrder::Oldest;
    if filter.request_id_part.is_none() || filter.page.offset > 0 || !in_time {
        return Ok((store.spend_logs(filter).await?, None));
    }
    let extent = store.extent().await?;
    let (Some(first), Some(last)) = (extent.first, extent.last) else {
        return Ok((Vec::new(), None));
    };
    let (from, to) = super::ask::spend_days(filter);
    let low = from.unwrap_or(0).max(day_number(first));
    let high = to.unwrap_or(i32::MAX).min(day_number(last));
    let limit = filter.page.limit;
    let mut found: Vec<Record> = Vec::new();
    let (mut looked_at, mut width) = (0, 1);
    let mut at = if falling { high } else { low };
    while (low..=high).contains(&at) {
        let ends = |width: i32| match falling {
            true => (at.saturating_sub(width - 1).max(low), at),
            false => (at, at.saturating_add(width - 1).min(high)),
        };
        let mut rows = requests(store, ends(width)).await?;
        while rows > MOST_LOOKED_AT && width > 1 {
            width /= 2;
            rows = requests(store, ends(width)).await?;
        }
        let (oldest, newest) = ends(width);
        let (start, end) = (midnight(oldest), midnight(newest.saturating_add(1)));
        let part = SpendFilter {
            start_micros: Some(filter.start_micros.map_or(start, |t| t.max(start))),
            end_micros: Some(filter.end_micros.map_or(end, |t| t.min(end))),
            page: Page {
                limit: limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX)),
                offset: 0,
            },
            ..filter.clone()
        };
        found.extend(store.spend_logs(&part).await?);
        if found.len() >= limit as usize {
            return Ok((found, None));
        }
        looked_at += rows;
        at = if falling { oldest - 1 } else { newest + 1 };
        if looked_at >= MOST_LOOKED_AT && (low..=high).contains(&at) {
            return Ok((found, Some((if falling { start } else { end }, String::new()))));
        }
        width = width.saturating_mul(2);
    }
    Ok((found, None))
}

/// How many calls began on these days.
async fn requests(store: &dyn Store, (first, last): (i32, i32)) -> Result<i64> {
    let date = |day: i32| -> Date { rows::date_of(day) };
    let usage = UsageFilter {
        start: Some(date(first)),
        end: Some(date(last)),
        by: Vec::<Group>::new(),
        ..UsageFilter::default()
    };
    let sums = store.usage(&usage).await?;
    Ok(sums.first().map_or(0, |row| row.usage.requests))
}
