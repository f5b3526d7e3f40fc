//! From what is asked of the ledger to SQL: rows, the rows of an account, days, usage. Keys and objects
//! stand in `filter`, and so does how a clause is put together.

use super::filter::{Arg, Clause, Dialect};
use super::report::{Group, UsageFilter, UsageOrder};
use super::rows::{self, day_number, day_of, moment};
use super::{DailyFilter, Result, SpendFilter, SpendOrder, StoreError};
use filters::model::account::{Account, Kind};
use filters::model::key::KeyHash;
use filters::model::record::Status;

/// Which rows.
pub fn spend(filter: &SpendFilter, dialect: Dialect) -> Clause<'_> {
    let mut c = Clause::new(dialect);
    narrow(&mut c, filter, "");
    c
}

/// The same for SQLite, which is not to use an index of what rows are equal to: `+column` has none.
pub fn spend_unindexed(filter: &SpendFilter) -> Clause<'_> {
    let mut c = Clause::new(Dialect::Sqlite);
    narrow(&mut c, filter, "+");
    c
}

/// The same as a test for Postgres' functions.
pub fn spend_test(filter: &SpendFilter) -> (String, Vec<String>) {
    let mut c = Clause::test();
    narrow(&mut c, filter, "");
    c.into_test()
}

fn narrow<'a>(c: &mut Clause<'a>, filter: &'a SpendFilter, sign: &str) {
    let mut equal = |column: &str, value| c.cmp(&format!("{sign}{column} ="), value);
    equal("request_id", filter.request_id.as_deref().map(Arg::Text));
    equal("key_hash", filter.key_hash.as_ref().map(|h| Arg::Bytes(&h.0)));
    for (column, value) in [
        ("user_id", &filter.user_id),
        ("team_id", &filter.team_id),
        ("organization_id", &filter.organization_id),
        ("end_user", &filter.end_user),
        ("model_group", &filter.model_group),
        ("key_alias", &filter.key_alias),
    ] {
        equal(column, value.as_deref().map(Arg::Text));
    }
    if let Some(model) = &filter.model {
        let (group, model) = (c.bind(Arg::Text(model)), c.bind(Arg::Text(model)));
        c.and(&format!("({sign}model_group = {group} OR {sign}model = {model})"));
    }
    if let Some(status) = filter.status {
        c.cmp("status =", Some(Arg::Text(status.as_str())));
    }
    match filter.success {
        Some(true) => c.and("status = 'success'"),
        Some(false) => c.and("status <> 'success'"),
        None => {}
    }
    if let Some((least, most)) = filter.http_status {
        let ends = [(">=", least), ("<=", most)];
        for (sign, end) in ends {
            let end = c.bind(Arg::Int(end.into()));
            // The column is an int, and the value is not: a cast of the column would have no index.
            c.and(&match c.dialect {
                Dialect::Postgres => format!("http_status {sign} {end}::bigint"),
                Dialect::Sqlite => format!("http_status {sign} {end}"),
            });
        }
    }
    let refused = filter
        .http_status
        .is_some_and(|(least, most)| most < 200 || least > 299);
    let unwell = filter.status.is_some_and(|s| s != Status::Success) || filter.success == Some(false);
    if refused || unwell {
        // In the words of the index.
        c.and("(status <> 'success' OR http_status NOT BETWEEN 200 AND 299)");
    }
    if refused && filter.status.is_none() {
        // All that there are, because the index begins with them.
        c.and("status IN ('success', 'failure', 'aborted', 'cut')");
    }
    c.cmp("spend_nanos >=", filter.min_spend_nanos.map(Arg::Int));
    c.cmp("spend_nanos <=", filter.max_spend_nanos.map(Arg::Int));
    c.cmp("started >=", filter.start_micros.map(|t| Arg::Time(moment(t))));
    c.cmp("started <", filter.end_micros.map(|t| Arg::Time(moment(t))));
    c.cmp("ended >", filter.ended_after_micros.map(|t| Arg::Time(moment(t))));
    if let Some(part) = &filter.request_id_part {
        let part = c.bind(Arg::Text(part));
        // Not LIKE, to which some letters mean more than themselves.
        c.and(&match c.dialect {
            Dialect::Postgres => format!("strpos(request_id, {part}) > 0"),
            Dialect::Sqlite => format!("instr(request_id, {part}) > 0"),
        });
    }
    if let Some(tag) = &filter.tag {
        tagged(c, tag);
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
}

/// How a list is ordered.
pub fn spend_order(order: SpendOrder) -> &'static str {
    match order {
        SpendOrder::Newest => "started DESC, request_id DESC",
        SpendOrder::Oldest => "started, request_id",
        SpendOrder::Dearest => "spend_nanos DESC, request_id DESC",
        SpendOrder::Cheapest => "spend_nanos, request_id",
    }
}

/// The days that may have such rows, as far as sums are kept by what the filter names: statements over the
/// sums, of which each tells days and all must. Empty = the sums know nothing of it.
pub fn days_of(filter: &SpendFilter, dialect: Dialect) -> Vec<Clause<'_>> {
    let mut all = Vec::new();
    if filter.key_hash.is_some() || filter.user_id.is_some() || filter.team_id.is_some() {
        let mut c = Clause::new(dialect);
        c.cmp("key_hash =", filter.key_hash.as_ref().map(|h| Arg::Bytes(&h.0)));
        for (test, value) in [
            ("user_id =", &filter.user_id),
            ("team_id =", &filter.team_id),
            ("organization_id =", &filter.organization_id),
            ("model_group =", &filter.model_group),
        ] {
            c.cmp(test, value.as_deref().map(Arg::Text));
        }
        if filter.success == Some(false) || filter.status.is_some_and(|s| s != Status::Success) {
            c.and("requests > successes");
        }
        all.push(days_from("tk_daily", c, filter));
    }
    for (kind, label) in [("end_user", &filter.end_user), ("tag", &filter.tag)] {
        if let Some(label) = label {
            let mut c = Clause::new(dialect);
            c.cmp("kind =", Some(Arg::Text(kind)));
            c.cmp("label =", Some(Arg::Text(label)));
            c.cmp("model_group =", filter.model_group.as_deref().map(Arg::Text));
            all.push(days_from("tk_daily_labels", c, filter));
        }
    }
    all
}

fn days_from<'a>(table: &str, mut c: Clause<'a>, filter: &SpendFilter) -> Clause<'a> {
    let (first, last) = spend_days(filter);
    c.cmp("day >=", first.map(Arg::Day));
    c.cmp("day <=", last.map(Arg::Day));
    c.sql = format!(
        "SELECT DISTINCT {} FROM {table}{}",
        shown("day", c.dialect),
        c.sql
    );
    c
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
        Kind::OrganizationMember => {
            let (organization, user) = account.id.split_once('\t')?;
            c.cmp("organization_id =", Some(Arg::Text(organization)));
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

/// The groups in their order, the table that tells them, and which of its rows.
fn usage_of(filter: &UsageFilter, dialect: Dialect) -> Result<(Vec<Group>, &'static str, Clause<'_>)> {
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
        (false, false) => ("tk_usage", None),
        (true, false) => ("tk_usage_labels", Some("end_user")),
        (false, true) => ("tk_usage_labels", Some("tag")),
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
    Ok((groups, table, c))
}

/// Not added up: the groups' columns as they were asked for, then the nine numbers of each day.
pub fn usage_rows(filter: &UsageFilter, dialect: Dialect) -> Result<Clause<'_>> {
    let (_, table, mut c) = usage_of(filter, dialect)?;
    let mut columns: Vec<&str> = filter.by.iter().map(|g| group_column(*g)).collect();
    columns.extend(USAGE_SUMS);
    c.sql = format!("SELECT {} FROM {table}{}", columns.join(", "), c.sql);
    Ok(c)
}

/// A whole statement: the groups' columns as they were asked for, then the nine sums.
pub fn usage(filter: &UsageFilter, dialect: Dialect) -> Result<Clause<'_>> {
    let (groups, table, mut c) = usage_of(filter, dialect)?;
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

const USAGE_SUMS: [&str; 9] = [
    "requests",
    "successes",
    "failures",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_creation_tokens",
    "spend_nanos",
    "unpriced",
];

pub const DAILY_ORDER: &str = "day DESC, key_hash, model_group, user_id, team_id, organization_id, provider";

/// Our own ids tell when they were made. A guess where to look first, no more: ids that were imported may
/// be anything.
pub fn day_of_id(id: &str) -> Option<i32> {
    let id = uuid::Uuid::try_parse(id)
        .ok()
        .filter(|id| id.get_version_num() == 7)?;
    let (seconds, _) = id.get_timestamp()?.to_unix();
    i64::try_from(seconds).ok()?.checked_mul(rows::SECOND).map(day_of)
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
