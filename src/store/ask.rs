//! From what is asked of the ledger to SQL: rows, the rows of an account, days, usage. Keys and objects
//! stand in `filter`, and so does how a clause is put together.

use super::filter::{Arg, Clause, Dialect};
use super::report::{Group, UsageFilter, UsageOrder};
use super::rows::{self, MADE_AHEAD, PARTITIONED_BEFORE, day_number, day_of, moment};
use super::{DailyFilter, Result, SpendFilter, SpendOrder, StoreError};
use filters::model::account::{Account, Kind};
use filters::model::key::KeyHash;

/// Which rows. Postgres is told the days as well, so that it looks into their partitions only.
pub fn spend(filter: &SpendFilter, dialect: Dialect) -> Clause<'_> {
    let mut c = Clause::new(dialect);
    if dialect == Dialect::Postgres {
        let (first, last) = spend_days(filter);
        c.cmp("day >=", first.map(Arg::Day));
        c.cmp("day <=", last.map(Arg::Day));
    }
    c.cmp("request_id =", filter.request_id.as_deref().map(Arg::Text));
    c.cmp("key_hash =", filter.key_hash.as_ref().map(|h| Arg::Bytes(&h.0)));
    for (test, value) in [
        ("user_id =", &filter.user_id),
        ("team_id =", &filter.team_id),
        ("organization_id =", &filter.organization_id),
        ("end_user =", &filter.end_user),
        ("model_group =", &filter.model_group),
        ("key_alias =", &filter.key_alias),
    ] {
        c.cmp(test, value.as_deref().map(Arg::Text));
    }
    if let Some(model) = &filter.model {
        let (group, model) = (c.bind(Arg::Text(model)), c.bind(Arg::Text(model)));
        c.and(&format!("(model_group = {group} OR model = {model})"));
    }
    c.cmp("status =", filter.status.map(|s| Arg::Text(s.as_str())));
    match filter.success {
        Some(true) => c.and("status = 'success'"),
        Some(false) => c.and("status <> 'success'"),
        None => {}
    }
    if let Some((least, most)) = filter.http_status {
        c.cmp("CAST(http_status AS bigint) >=", Some(Arg::Int(least.into())));
        c.cmp("CAST(http_status AS bigint) <=", Some(Arg::Int(most.into())));
    }
    c.cmp("spend_nanos >=", filter.min_spend_nanos.map(Arg::Int));
    c.cmp("spend_nanos <=", filter.max_spend_nanos.map(Arg::Int));
    c.cmp("started >=", filter.start_micros.map(|t| Arg::Time(moment(t))));
    c.cmp("started <", filter.end_micros.map(|t| Arg::Time(moment(t))));
    c.cmp("ended >", filter.ended_after_micros.map(|t| Arg::Time(moment(t))));
    if let Some(part) = &filter.request_id_part {
        let part = c.bind(Arg::Text(part));
        // Not LIKE, to which some letters mean more than themselves.
        c.and(&match dialect {
            Dialect::Postgres => format!("strpos(request_id, {part}) > 0"),
            Dialect::Sqlite => format!("instr(request_id, {part}) > 0"),
        });
    }
    if let Some(tag) = &filter.tag {
        tagged(&mut c, tag);
    }
    if let Some((value, id)) = &filter.after {
        let (column, sign, value) = match filter.order {
            SpendOrder::Newest => ("started", "<", Arg::Time(moment(*value))),
            SpendOrder::Oldest => ("started", ">", Arg::Time(moment(*value))),
            SpendOrder::Dearest => ("spend_nanos", "<", Arg::Int(*value)),
            SpendOrder::Cheapest => ("spend_nanos", ">", Arg::Int(*value)),
        };
        let value = c.bind(value);
        let id = c.bind(Arg::Text(id));
        c.and(&format!("({column}, request_id) {sign} ({value}, {id})"));
    }
    c
}

/// The same, in order, cut to the page; with `within`, of those days only.
pub fn spend_page(filter: &SpendFilter, within: (Option<i32>, Option<i32>), dialect: Dialect) -> Clause<'_> {
    let mut c = spend(filter, dialect);
    c.cmp("day >=", within.0.map(Arg::Day));
    c.cmp("day <=", within.1.map(Arg::Day));
    let order = match filter.order {
        SpendOrder::Newest => "started DESC, request_id DESC",
        SpendOrder::Oldest => "started, request_id",
        SpendOrder::Dearest => "spend_nanos DESC, request_id DESC",
        SpendOrder::Cheapest => "spend_nanos, request_id",
    };
    c.page(order, filter.page)
}

/// The first and last day that the filter's times leave.
pub fn spend_days(filter: &SpendFilter) -> (Option<i32>, Option<i32>) {
    let after = filter.after.as_ref().map(|(value, _)| day_of(*value));
    let (mut first, mut last) = (
        filter.start_micros.map(day_of),
        filter.end_micros.map(|t| day_of(t.saturating_sub(1))),
    );
    match filter.order {
        SpendOrder::Newest => last = [last, after].into_iter().flatten().min(),
        SpendOrder::Oldest => first = first.max(after),
        SpendOrder::Dearest | SpendOrder::Cheapest => {}
    }
    (first, last)
}

/// The rows charged to an account that ended at `since` or later; `None` = no row can be.
pub fn charged<'a>(
    account: &'a Account,
    hash: &'a Option<KeyHash>,
    since: i64,
    dialect: Dialect,
) -> Option<Clause<'a>> {
    let mut c = Clause::new(dialect);
    let id = Some(Arg::Text(&account.id));
    match account.kind {
        Kind::Gateway if account.id.is_empty() => {}
        _ if account.id.is_empty() => return None,
        Kind::Gateway => return None,
        Kind::Organization => c.cmp("organization_id =", id),
        Kind::Team => c.cmp("team_id =", id),
        Kind::User => c.cmp("user_id =", id),
        Kind::EndUser => c.cmp("end_user =", id),
        Kind::Member => {
            let (team, user) = account.id.split_once('\t')?;
            c.cmp("team_id =", Some(Arg::Text(team)));
            c.cmp("user_id =", Some(Arg::Text(user)));
        }
        Kind::Key => c.cmp("key_hash =", Some(Arg::Bytes(&hash.as_ref()?.0))),
        Kind::Tag => tagged(&mut c, &account.id),
    }
    c.cmp("ended >=", Some(Arg::Time(since)));
    if !account.model.is_empty() {
        c.cmp("model_group =", Some(Arg::Text(&account.model)));
    }
    Some(c)
}

pub fn daily(filter: &DailyFilter, dialect: Dialect) -> Clause<'_> {
    let mut c = Clause::new(dialect);
    c.cmp("day >=", filter.start.map(|d| Arg::Day(day_number(d))));
    c.cmp("day <=", filter.end.map(|d| Arg::Day(day_number(d))));
    c.cmp("key_hash =", filter.key_hash.as_ref().map(|h| Arg::Bytes(&h.0)));
    c.cmp("user_id =", filter.user_id.as_deref().map(Arg::Text));
    c.cmp("team_id =", filter.team_id.as_deref().map(Arg::Text));
    c
}

/// A whole statement: the groups' columns as they were asked for, then the eight sums.
pub fn usage(filter: &UsageFilter, dialect: Dialect) -> Result<Clause<'_>> {
    let mut groups = filter.by.clone();
    groups.sort_unstable();
    groups.dedup();
    if groups.len() != filter.by.len() {
        return Err(StoreError::invalid("each group is asked for once"));
    }
    let asks = |group, list: &Option<Vec<String>>| filter.by.contains(&group) || list.is_some();
    let end_users = asks(Group::EndUser, &filter.end_users);
    let tags = asks(Group::Tag, &filter.tags);
    let (table, kind) = match (end_users, tags) {
        (false, false) => ("tk_daily_all", None),
        (true, false) => ("tk_daily_labels", Some("end_user")),
        (false, true) => ("tk_daily_labels", Some("tag")),
        (true, true) => return Err(StoreError::invalid("usage is by end user or by tag, not by both")),
    };
    let others = [
        (Group::User, "user_id", &filter.user_ids),
        (Group::Team, "team_id", &filter.team_ids),
        (Group::Organization, "organization_id", &filter.organization_ids),
        (Group::Provider, "provider", &filter.providers),
    ];
    let keys = filter.by.contains(&Group::Key) || filter.key_hashes.is_some();
    if kind.is_some() && (keys || others.iter().any(|(group, _, list)| asks(*group, list))) {
        return Err(StoreError::invalid(
            "usage by end user or tag is kept by day and model group only",
        ));
    }
    let mut c = Clause::new(dialect);
    c.cmp("kind =", kind.map(Arg::Text));
    c.cmp("day >=", filter.start.map(|d| Arg::Day(day_number(d))));
    c.cmp("day <=", filter.end.map(|d| Arg::Day(day_number(d))));
    c.any("key_hash", filter.key_hashes.as_deref().map(Arg::Hashes));
    c.any("model_group", filter.model_groups.as_deref().map(Arg::Texts));
    for (_, column, list) in others {
        c.any(column, list.as_deref().map(Arg::Texts));
    }
    let labels = filter.end_users.as_deref().or(filter.tags.as_deref());
    c.any("label", labels.map(Arg::Texts));

    let columns: Vec<&str> = filter.by.iter().map(|g| group_column(*g)).collect();
    let mut order: Vec<String> = groups
        .iter()
        .map(|g| match g {
            Group::Day => "day DESC".to_owned(),
            other => group_column(*other).to_owned(),
        })
        .collect();
    if filter.order == UsageOrder::Spend || order.is_empty() {
        order.insert(0, "sum(spend_nanos) DESC".to_owned());
    }
    let mut shown: Vec<String> = columns.iter().map(|column| shown(column, dialect)).collect();
    shown.extend(USAGE_SUMS.map(|column| match dialect {
        Dialect::Postgres => format!("coalesce(sum({column}), 0)::bigint"),
        Dialect::Sqlite => format!("coalesce(sum({column}), 0)"),
    }));
    let grouped = if columns.is_empty() {
        String::new()
    } else {
        format!(" GROUP BY {}", columns.join(", "))
    };
    c.sql = format!("SELECT {} FROM {table}{}{grouped}", shown.join(", "), c.sql);
    Ok(c.page(&order.join(", "), filter.page))
}

fn group_column(group: Group) -> &'static str {
    match group {
        Group::Day => "day",
        Group::Key => "key_hash",
        Group::ModelGroup => "model_group",
        Group::User => "user_id",
        Group::Team => "team_id",
        Group::Organization => "organization_id",
        Group::Provider => "provider",
        Group::EndUser | Group::Tag => "label",
    }
}

fn shown(column: &str, dialect: Dialect) -> String {
    match (column, dialect) {
        ("day", Dialect::Postgres) => "day - DATE '1970-01-01'".to_owned(),
        _ => column.to_owned(),
    }
}

const USAGE_SUMS: [&str; 8] = [
    "requests",
    "successes",
    "failures",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_creation_tokens",
    "spend_nanos",
];

pub const DAILY_ORDER: &str = "day DESC, key_hash, model_group, user_id, team_id, organization_id, provider";

/// The widths, in days, of the windows in which a page is looked for before all days are.
const WINDOWS: [i32; 3] = [1, 30, 180];

/// Day ranges, each wider than the one before: a page that is full within one is the page, because
/// days follow the order of starts. The last range is the filter's own. `bounds` are the first and the
/// last day there are rows of.
pub fn windows(filter: &SpendFilter, bounds: Option<(i32, i32)>) -> Vec<(Option<i32>, Option<i32>)> {
    let (first, last) = spend_days(filter);
    let mut windows = Vec::new();
    if let Some(day) = filter.request_id.as_deref().and_then(day_of_id) {
        windows.push((Some(day.saturating_sub(1)), Some(day.saturating_add(1))));
    }
    if let (Some((oldest, newest)), None) = (bounds, &filter.request_id) {
        // Rows from elsewhen must not stretch the windows; the outer ones are open to them.
        let today = rows::today();
        let (oldest, newest) = (
            oldest.max(today - PARTITIONED_BEFORE),
            newest.min(today + MADE_AHEAD),
        );
        let low = first.map_or(oldest, |d| d.max(oldest));
        let high = last.map_or(newest, |d| d.min(newest));
        for width in WINDOWS {
            if high.saturating_sub(low) <= width {
                break;
            }
            match filter.order {
                SpendOrder::Newest => windows.push((Some(high - width), None)),
                SpendOrder::Oldest => windows.push((None, Some(low.saturating_add(width)))),
                SpendOrder::Dearest | SpendOrder::Cheapest => break,
            }
        }
    }
    windows.push((None, None));
    windows
}

/// Our own ids tell when they were made. A guess where to look first, no more: ids that were imported may
/// be anything.
fn day_of_id(id: &str) -> Option<i32> {
    let id = uuid::Uuid::try_parse(id)
        .ok()
        .filter(|id| id.get_version_num() == 7)?;
    let (seconds, _) = id.get_timestamp()?.to_unix();
    i64::try_from(seconds).ok()?.checked_mul(rows::SECOND).map(day_of)
}

/// Whether rows found within a window are the whole page.
pub fn is_full(filter: &SpendFilter, found: usize) -> bool {
    let limit = usize::try_from(rows::limit(filter.page)).unwrap_or(0);
    // An id is there once.
    found >= limit || (filter.request_id.is_some() && found > 0)
}

fn tagged<'a>(c: &mut Clause<'a>, tag: &'a str) {
    let tag = c.bind(Arg::Text(tag));
    c.and(&match c.dialect {
        // Both halves in the words of the index.
        Dialect::Postgres => {
            format!("tags <> '[]'::jsonb AND tags @> jsonb_build_array({tag}::text)")
        }
        Dialect::Sqlite => {
            format!("tags <> '[]' AND EXISTS (SELECT 1 FROM json_each(tags) WHERE value = {tag})")
        }
    });
}
