//! What is known of the days that were looked through (`tk_digest_days` and what stands beside it), for a filter:
//! which of them have nothing of it, how many calls others have, how dear one of them can be at most. How days come
//! to be looked through stands in `postgres/digest.rs` and `sqlite/digest.rs`, what lists make of it in `lists.rs`
//! beside those.

use super::ask;
use super::filter::{Arg, Clause, Dialect};
use super::rows::midnight;
use super::{SpendFilter, SpendOrder};

/// What is to be told of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Whether it may have calls that fit.
    Any,
    /// How many calls fit, where [`countable`].
    Calls,
    /// Whether it may have any, and what no call that fits is dearer, or cheaper, than. Postgres only.
    Ends,
}

/// A table by day and key, and what its rows must be.
struct Source<'a> {
    table: &'static str,
    tests: Vec<(String, Option<Arg<'a>>)>,
    /// How many calls its rows stand for; `None` = that is not kept.
    calls: Option<&'static str>,
    /// Whether there are rows of all keys together.
    totals: bool,
}

/// Kinds of marks that many keys share.
const WITH_TOTALS: [&str; 4] = ["model", "status", "http", "tag"];

const DAYS: &str = "tk_daily";
const MARKS: &str = "tk_digest_marks";
const COSTS: &str = "tk_digest_costs";

impl<'a> Source<'a> {
    fn of(table: &'static str) -> Self {
        Self {
            table,
            tests: Vec::new(),
            calls: None,
            totals: false,
        }
    }

    /// Calls by their label.
    fn marks(kind: &'static str) -> Self {
        Self {
            tests: vec![("S.kind =".into(), Some(Arg::Text(kind)))],
            calls: Some("S.calls"),
            totals: WITH_TOTALS.contains(&kind),
            ..Self::of(MARKS)
        }
    }

    fn labelled(kind: &'static str, label: &'a str, dialect: Dialect) -> Self {
        let mut source = Self::marks(kind);
        source.label(label, dialect);
        source
    }

    fn label(&mut self, label: &'a str, dialect: Dialect) {
        let test = match dialect {
            Dialect::Postgres => "S.label = tk_ledger_label(?)",
            Dialect::Sqlite => "S.label =",
        };
        self.test(test, Arg::Text(label));
    }

    /// `test` ends before its value, or has it in place of a question mark.
    fn test(&mut self, test: &str, value: Arg<'a>) {
        self.tests.push((test.to_owned(), Some(value)));
    }
}

/// All that a filter's rows are part of, by day and key: a day has rows that fit only if one key is in all.
fn sources(f: &SpendFilter, dialect: Dialect) -> Vec<Source<'_>> {
    if let Some(id) = &f.request_id {
        // Nothing of the rest has to be known. SQLite has an index of ids.
        return match dialect {
            Dialect::Postgres => {
                let mut source = Source::marks("id");
                source.test("S.label = left(md5(?), 8)", Arg::Text(id));
                source.calls = None;
                vec![source]
            }
            Dialect::Sqlite => Vec::new(),
        };
    }
    let mut all = Vec::new();
    for (kind, label) in [
        ("alias", &f.key_alias),
        ("model", &f.model),
        ("end_user", &f.end_user),
        ("tag", &f.tag),
    ] {
        if let Some(label) = label {
            all.push(Source::labelled(kind, label, dialect));
        }
    }
    if let Some((least, most)) = f.http_status {
        let mut source = Source::marks("http");
        // Five digits each, so that texts compare as numbers do.
        source.tests.push((format!("S.label >= '{least:05}'"), None));
        source.tests.push((format!("S.label <= '{most:05}'"), None));
        all.push(source);
    }
    let of_days = [
        ("S.user_id =", &f.user_id),
        ("S.team_id =", &f.team_id),
        ("S.organization_id =", &f.organization_id),
        ("S.model_group =", &f.model_group),
    ];
    let by_day = of_days.iter().any(|(_, value)| value.is_some()) || f.key_hash.is_some() && all.is_empty();
    if f.status.is_some() || f.success.is_some() && !by_day {
        let mut source = Source::marks("status");
        if let Some(status) = f.status {
            source.test("S.label =", Arg::Text(status.as_str()));
        }
        match f.success {
            Some(true) => source.tests.push(("S.label = 'success'".into(), None)),
            Some(false) => source.tests.push(("S.label <> 'success'".into(), None)),
            None => {}
        }
        all.push(source);
    }
    if by_day {
        let nobodys = of_days
            .iter()
            .any(|(_, value)| value.as_deref().is_some_and(str::is_empty));
        let mut source = Source {
            calls: Some("S.requests"),
            ..Source::of(DAYS)
        };
        for (test, value) in of_days {
            if let Some(value) = value {
                source.test(test, Arg::Text(value));
            }
        }
        match f.success {
            Some(true) => {
                source.tests.push(("S.successes > 0".into(), None));
                source.calls = Some("S.successes");
            }
            Some(false) => {
                source.tests.push(("S.requests > S.successes".into(), None));
                source.calls = Some("S.requests - S.successes");
            }
            None => {}
        }
        // The empty name is nobody's in the sums, and a name in rows.
        source.calls = source.calls.filter(|_| !nobodys);
        all.push(source);
    }
    if f.min_spend_nanos.is_some() || f.max_spend_nanos.is_some() {
        let mut source = Source::of(COSTS);
        for (test, value) in [
            ("S.most >=", f.min_spend_nanos),
            ("S.least <=", f.max_spend_nanos),
        ] {
            if let Some(value) = value {
                source.test(test, Arg::Int(value));
            }
        }
        all.push(source);
    }
    all
}

/// What tells the ends of a filter that names one thing only of those that the sums of days have.
fn alone(f: &SpendFilter, dialect: Dialect) -> Option<Source<'_>> {
    let of_all_keys = [
        ("user", &f.user_id),
        ("team", &f.team_id),
        ("organization", &f.organization_id),
        ("group", &f.model_group),
    ];
    let mut named = of_all_keys
        .iter()
        .filter_map(|(kind, label)| Some((*kind, label.as_deref()?)));
    match (f.key_hash, named.next(), named.next()) {
        (Some(_), None, None) => Some(Source::of(COSTS)),
        (None, Some((kind, label)), None) => Some(Source::labelled(kind, label, dialect)),
        _ => None,
    }
}

/// How many things a filter names that may be on one day and yet never in one call.
pub fn together(filter: &SpendFilter, dialect: Dialect) -> usize {
    sources(filter, dialect).len()
}

/// Whether the numbers of calls that fit are kept by day, exactly.
pub fn countable(filter: &SpendFilter, dialect: Dialect) -> bool {
    let cursor_of_spend = filter.after.is_some() && by_spend(filter.order);
    let unkept = filter.request_id.is_some()
        || filter.request_id_part.is_some()
        || filter.ended_after_micros.is_some()
        || cursor_of_spend;
    let sources = sources(filter, dialect);
    !unkept && sources.len() <= 1 && sources.iter().all(|s| s.calls.is_some())
}

pub fn by_spend(order: SpendOrder) -> bool {
    matches!(order, SpendOrder::Dearest | SpendOrder::Cheapest)
}

/// Whether the filter's times, its cursor among them, leave nothing out of a day.
pub fn whole(filter: &SpendFilter, day: i32) -> bool {
    let (first, next) = (midnight(day), midnight(day.saturating_add(1)));
    let cursor = filter.after.as_ref().map(|(at, _)| *at);
    let beyond_cursor = match filter.order {
        SpendOrder::Newest => cursor.is_none_or(|at| next <= at),
        SpendOrder::Oldest => cursor.is_none_or(|at| at < first),
        SpendOrder::Dearest | SpendOrder::Cheapest => true,
    };
    beyond_cursor
        && filter.start_micros.is_none_or(|start| start <= first)
        && filter.end_micros.is_none_or(|end| next <= end)
}

/// What is known of each day that was looked through, within the filter's times: the day, then for [`Need::Any`]
/// something or null, for [`Need::Calls`] the number of calls, for [`Need::Ends`] the bound of spend and of the id
/// that goes with it, or nulls where nothing fits. `None` = all such days may have rows, and no more is known.
pub fn known(filter: &SpendFilter, need: Need, dialect: Dialect) -> Option<Clause<'_>> {
    let mut sources = sources(filter, dialect);
    let mut c = Clause::new(dialect);
    let falling = matches!(filter.order, SpendOrder::Newest | SpendOrder::Dearest);
    let way = if falling { "most" } else { "least" };
    let shown = match dialect {
        Dialect::Postgres => "d.day - DATE '1970-01-01'",
        Dialect::Sqlite => "d.day",
    };
    // Of the costs of all keys together the day itself tells.
    let whole_days = dialect == Dialect::Postgres
        && filter.key_hash.is_none()
        && matches!(sources.as_slice(), [only] if only.table == COSTS);
    let mut from = String::new();
    let columns = if whole_days {
        let tests: Vec<String> = sources
            .into_iter()
            .flat_map(|source| source.tests)
            .map(|(test, value)| written(&mut c, &test, value, "d."))
            .collect();
        let tests = tests.join(" AND ");
        match need {
            Need::Any | Need::Calls => format!("CASE WHEN {tests} THEN 1::bigint END"),
            Need::Ends => format!("CASE WHEN {tests} THEN d.{way} END, d.{way}_id"),
        }
    } else if sources.is_empty() {
        match need {
            Need::Any => return None,
            Need::Calls => "d.calls".to_owned(),
            Need::Ends => format!("d.{way}, d.{way}_id"),
        }
    } else {
        if need == Need::Ends && sources.iter().all(|s| s.table == DAYS) {
            match alone(filter, dialect) {
                Some(source) => sources = vec![source],
                None => sources.push(Source::of(COSTS)),
            }
        }
        let calls = sources.first().and_then(|s| s.calls).unwrap_or("NULL");
        let calls = calls.replace("S.", "s0.");
        let (cost, id) = ends(&sources, falling, way);
        let rows = rows_of(&mut c, sources, filter);
        match (need, dialect) {
            (Need::Any, Dialect::Postgres) => format!("(SELECT 1::bigint FROM {rows} LIMIT 1)"),
            (Need::Any, Dialect::Sqlite) => format!("(SELECT 1 FROM {rows} LIMIT 1)"),
            (Need::Calls, Dialect::Postgres) => {
                format!("(SELECT coalesce(sum({calls}), 0)::bigint FROM {rows})")
            }
            (Need::Calls, Dialect::Sqlite) => format!("(SELECT coalesce(sum({calls}), 0) FROM {rows})"),
            (Need::Ends, _) => {
                let order = if falling { "DESC" } else { "ASC" };
                from = format!(
                    " LEFT JOIN LATERAL (SELECT {cost} AS cost, {id} AS id FROM {rows} \
                     ORDER BY 1 {order}, 2 {order} LIMIT 1) x ON true"
                );
                "x.cost, x.id".to_owned()
            }
        }
    };
    c.and("d.calls IS NOT NULL");
    // A gateway of the version before lets days go and leaves this behind.
    c.and(match dialect {
        Dialect::Postgres => {
            "d.day >= coalesce((SELECT value::date FROM tk_settings WHERE name = 'rows_from'), DATE '0001-01-01')"
        }
        Dialect::Sqlite => {
            "d.day >= coalesce((SELECT unixepoch(value) / 86400 FROM tk_settings WHERE name = 'rows_from'), 0)"
        }
    });
    let (first, last) = ask::spend_days(filter);
    c.cmp("d.day >=", first.map(Arg::Day));
    c.cmp("d.day <=", last.map(Arg::Day));
    c.sql = format!("SELECT {shown}, {columns} FROM tk_digest_days d{from}{}", c.sql);
    Some(c)
}

/// What no call is beyond that is in all of these: its cost, and its id where that is known.
fn ends(sources: &[Source<'_>], falling: bool, way: &str) -> (String, String) {
    let bounds: Vec<String> = (0..)
        .zip(sources)
        .filter(|(_, source)| source.table != DAYS)
        .map(|(n, _)| format!("s{n}.{way}"))
        .collect();
    let id = match sources.iter().rposition(|s| s.table == COSTS) {
        // A bound that comes from elsewhere may be of another call.
        Some(n) if bounds.len() == 1 => format!("s{n}.{way}_id"),
        _ => "NULL::text".to_owned(),
    };
    let nearest = if falling { "least" } else { "greatest" };
    (format!("{nearest}({})", bounds.join(", ")), id)
}

/// A test of a source whose table is called `name`, its value bound.
fn written<'a>(c: &mut Clause<'a>, test: &str, value: Option<Arg<'a>>, name: &str) -> String {
    let test = test.replace("S.", name);
    let Some(value) = value else { return test };
    let value = c.bind(value);
    match test.contains('?') {
        true => test.replace('?', &value),
        false => format!("{test} {value}"),
    }
}

/// The rows of all sources together, of one day and one key: from the tables' names on.
fn rows_of<'a>(c: &mut Clause<'a>, sources: Vec<Source<'a>>, filter: &'a SpendFilter) -> String {
    let mut from = String::new();
    let mut tests = Vec::new();
    let all_keys = match c.dialect {
        Dialect::Postgres => "'\\x00'::bytea",
        Dialect::Sqlite => "x'00'",
    };
    let alone = sources.len() == 1 && filter.key_hash.is_none();
    for (n, source) in sources.into_iter().enumerate() {
        if n > 0 {
            from.push_str(", ");
            tests.push(format!("s{n}.key_hash = s0.key_hash"));
        }
        from.push_str(&format!("{} s{n}", source.table));
        tests.push(format!("s{n}.day = d.day"));
        if source.totals {
            let sign = if alone { "=" } else { "<>" };
            tests.push(format!("s{n}.key_hash {sign} {all_keys}"));
        }
        for (test, value) in source.tests {
            tests.push(written(c, &test, value, &format!("s{n}.")));
        }
    }
    // The ids of calls stand for themselves.
    if filter.request_id.is_none()
        && let Some(key) = &filter.key_hash
    {
        let key = c.bind(Arg::Bytes(&key.0));
        tests.push(format!("s0.key_hash = {key}"));
    }
    format!("{from} WHERE {}", tests.join(" AND "))
}

/// How many calls began on days from `first` to `last`: of the days that were looked through by their number, of
/// others by their sums.
pub fn calls_of_days<'a>(first: i32, last: i32, dialect: Dialect) -> Clause<'a> {
    let mut c = Clause::new(dialect);
    let (first, last) = (c.bind(Arg::Day(first)), c.bind(Arg::Day(last)));
    let (days, cast) = match dialect {
        Dialect::Postgres => (
            format!(
                "WITH g AS (SELECT g::date AS day FROM generate_series({first}, {last}, INTERVAL '1 day') AS g)"
            ),
            "::bigint",
        ),
        Dialect::Sqlite => (
            format!(
                "WITH RECURSIVE g(day) AS (SELECT {first} UNION ALL SELECT day + 1 FROM g WHERE day < {last})"
            ),
            "",
        ),
    };
    c.sql = format!(
        "{days} SELECT coalesce(sum(coalesce(k.calls, (SELECT sum(t.requests) FROM tk_daily t WHERE t.day = g.day))), \
         0){cast} FROM g LEFT JOIN tk_digest_days k ON k.day = g.day"
    );
    c
}
