//! From a filter to a WHERE clause. Values are always bound, never written into the text.

use super::plan::plain;
use super::rows::{limit, offset};
use super::table::{AuditFilter, DocFilter, Order};
use super::{KeyFilter, KeySort, Page, Result, StoreError};
use filters::model::key::KeyHash;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Postgres,
    Sqlite,
}

/// A bound value.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Int(i64),
    Bool(bool),
    Texts(&'a [String]),
    Hashes(&'a [KeyHash]),
    /// Days since 1970.
    Day(i32),
    /// Microseconds since 1970.
    Time(i64),
}

impl Arg<'_> {
    /// How Postgres reads it back.
    fn as_text(&self) -> String {
        match self {
            Arg::Text(t) => (*t).to_owned(),
            Arg::Bytes(b) => b.iter().map(|b| format!("{b:02x}")).collect(),
            Arg::Int(n) | Arg::Time(n) => n.to_string(),
            Arg::Bool(b) => b.to_string(),
            Arg::Day(d) => d.to_string(),
            Arg::Texts(list) => serde_json::json!(list).to_string(),
            Arg::Hashes(list) => {
                let hashes: Vec<String> = list.iter().map(KeyHash::hex).collect();
                serde_json::json!(hashes).to_string()
            }
        }
    }

    fn out_of_text(&self, n: usize) -> String {
        match self {
            Arg::Text(_) => format!("$1[{n}]"),
            Arg::Bytes(_) => format!("decode($1[{n}], 'hex')"),
            Arg::Int(_) => format!("$1[{n}]::bigint"),
            Arg::Bool(_) => format!("$1[{n}]::boolean"),
            Arg::Day(_) => format!("(DATE '1970-01-01' + $1[{n}]::int)"),
            // Whole seconds and the rest: the product of a long interval is rounded.
            Arg::Time(_) => format!(
                "(to_timestamp($1[{n}]::bigint / 1000000) + ($1[{n}]::bigint % 1000000) * INTERVAL '1 microsecond')"
            ),
            Arg::Texts(_) => format!("ARRAY(SELECT jsonb_array_elements_text($1[{n}]::jsonb))"),
            Arg::Hashes(_) => {
                format!("ARRAY(SELECT decode(h, 'hex') FROM jsonb_array_elements_text($1[{n}]::jsonb) AS h)")
            }
        }
    }
}

/// The end of a statement, from WHERE on, and its values in order.
pub struct Clause<'a> {
    pub sql: String,
    pub args: Vec<Arg<'a>>,
    pub dialect: Dialect,
    /// The values come as one array of texts, `$1`: for Postgres' functions that are handed a test.
    as_texts: bool,
}

impl<'a> Clause<'a> {
    pub fn new(dialect: Dialect) -> Self {
        Self {
            sql: String::new(),
            args: Vec::new(),
            dialect,
            as_texts: false,
        }
    }

    /// A test for one of Postgres' functions; see [`Clause::into_test`].
    pub fn test() -> Self {
        Self {
            as_texts: true,
            ..Self::new(Dialect::Postgres)
        }
    }

    /// The expression without its WHERE, and the values that it finds in `$1`.
    pub fn into_test(self) -> (String, Vec<String>) {
        let test = self.sql.strip_prefix(" WHERE ").unwrap_or("true");
        (test.to_owned(), self.args.iter().map(|a| a.as_text()).collect())
    }

    pub fn bind(&mut self, arg: Arg<'a>) -> String {
        self.args.push(arg);
        let n = self.args.len();
        if self.as_texts {
            return arg.out_of_text(n);
        }
        match (self.dialect, arg) {
            (Dialect::Sqlite, _) => format!("?{n}"),
            (Dialect::Postgres, Arg::Day(_)) => format!("(DATE '1970-01-01' + ${n}::int)"),
            (Dialect::Postgres, _) => format!("${n}"),
        }
    }

    pub fn and(&mut self, test: &str) {
        self.sql
            .push_str(if self.sql.is_empty() { " WHERE " } else { " AND " });
        self.sql.push_str(test);
    }

    pub fn cmp(&mut self, left: &str, arg: Option<Arg<'a>>) {
        if let Some(arg) = arg {
            let right = self.bind(arg);
            self.and(&format!("{left} {right}"));
        }
    }

    /// One of a list.
    pub fn any(&mut self, left: &str, arg: Option<Arg<'a>>) {
        let Some(arg) = arg else { return };
        let list = self.bind(arg);
        let test = match (self.dialect, arg) {
            (Dialect::Postgres, _) => format!("{left} = ANY({list})"),
            (Dialect::Sqlite, Arg::Hashes(_)) => {
                format!("{left} IN (SELECT unhex(value) FROM json_each({list}))")
            }
            (Dialect::Sqlite, _) => format!("{left} IN (SELECT value FROM json_each({list}))"),
        };
        self.and(&test);
    }

    /// The text, whatever its case, within one of the columns.
    fn within(&mut self, columns: &[String], text: &'a str) -> Result<()> {
        plain("search", text)?;
        if text.len() > MAX_SEARCH {
            return Err(StoreError::invalid(format!(
                "search is longer than {MAX_SEARCH} bytes"
            )));
        }
        let text = self.bind(Arg::Text(text));
        // Not LIKE: no character of the text means anything but itself.
        let tests: Vec<String> = columns
            .iter()
            .map(|column| match self.dialect {
                Dialect::Postgres => format!("strpos(lower({column}), lower({text})) > 0"),
                Dialect::Sqlite => format!("instr(lower({column}), lower({text})) > 0"),
            })
            .collect();
        self.and(&format!("({})", tests.join(" OR ")));
        Ok(())
    }

    /// A document's field as text, spelt as in the indexes.
    fn field(&self, name: &str) -> Result<String> {
        let known = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if !known {
            return Err(StoreError::invalid("this is no field to look for"));
        }
        Ok(match self.dialect {
            Dialect::Postgres => format!("fields->>'{name}'"),
            Dialect::Sqlite => format!("fields ->> '$.{name}'"),
        })
    }

    /// Orders and cuts to the page.
    pub fn page(mut self, order: &str, page: Page) -> Self {
        let limit = self.bind(Arg::Int(limit(page)));
        let offset = self.bind(Arg::Int(offset(page)));
        self.sql
            .push_str(&format!(" ORDER BY {order} LIMIT {limit} OFFSET {offset}"));
        self
    }
}

/// Longest text to search for, bytes.
const MAX_SEARCH: usize = 1_000;

/// The database's own clock.
fn now(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => "now()",
        Dialect::Sqlite => "CAST(unixepoch('subsec') * 1000000 AS INTEGER)",
    }
}

/// What a key has spent in the current period. No join: without statistics, Postgres would compare each key
/// with each account.
pub fn key_spend(dialect: Dialect) -> String {
    let now = now(dialect);
    let id = match dialect {
        Dialect::Postgres => "encode(hash, 'hex')",
        Dialect::Sqlite => "lower(hex(hash))",
    };
    format!(
        "coalesce((SELECT CASE WHEN period_ends <= {now} THEN 0 ELSE spend_nanos - baseline_nanos END \
         FROM tk_accounts WHERE kind = 'key' AND id = {id} AND model = ''), 0)"
    )
}

pub fn keys(filter: &KeyFilter, dialect: Dialect) -> Result<Clause<'_>> {
    let mut c = Clause::new(dialect);
    for (what, text) in [
        ("user_id =", &filter.user_id),
        ("team_id =", &filter.team_id),
        ("key_alias =", &filter.key_alias),
        ("organization_id =", &filter.organization_id),
        ("created_by =", &filter.created_by),
    ] {
        if let Some(text) = text {
            plain("a filter", text)?;
        }
        c.cmp(what, text.as_deref().map(Arg::Text));
    }
    if let Some(id) = &filter.budget_id {
        plain("budget_id", id)?;
        let left = match dialect {
            Dialect::Postgres => "extra->>'budget_id' =",
            Dialect::Sqlite => "extra ->> '$.budget_id' =",
        };
        c.cmp(left, Some(Arg::Text(id)));
    }
    for team in filter.team_ids.iter().flatten() {
        plain("team_ids", team)?;
    }
    c.any("team_id", filter.team_ids.as_deref().map(Arg::Texts));
    c.any("hash", filter.hashes.as_deref().map(Arg::Hashes));
    c.cmp("blocked =", filter.blocked.map(Arg::Bool));
    let now = now(dialect);
    match filter.expired {
        Some(true) => c.and(&format!("expires <= {now}")),
        Some(false) => c.and(&format!("(expires IS NULL OR expires > {now})")),
        None => {}
    }
    c.cmp("expires <", filter.expires_before_micros.map(Arg::Time));
    if let Some(text) = &filter.search {
        c.within(&["key_alias".into(), "key_name".into()], text)?;
    }
    Ok(c)
}

/// The order of a list of keys; nobody's alias stands last.
pub fn keys_order(filter: &KeyFilter, dialect: Dialect) -> String {
    let way = way(filter.order);
    match filter.sort {
        KeySort::Created => format!("created_at {way}, hash"),
        KeySort::Spend => format!("{} {way}, hash", key_spend(dialect)),
        KeySort::Alias => format!(
            "key_alias IS NULL, {} {way}, hash",
            bytewise("key_alias", dialect)
        ),
    }
}

fn way(order: Order) -> &'static str {
    match order {
        Order::Rising => "ASC",
        Order::Falling => "DESC",
    }
}

/// Both stores sort alike.
fn bytewise(column: &str, dialect: Dialect) -> String {
    match dialect {
        Dialect::Postgres => format!("({column}) COLLATE \"C\""),
        Dialect::Sqlite => format!("({column})"),
    }
}

pub fn documents(filter: &DocFilter, dialect: Dialect) -> Result<Clause<'_>> {
    let mut c = Clause::new(dialect);
    for id in filter.ids.iter().flatten() {
        plain("ids", id)?;
    }
    c.any("id", filter.ids.as_deref().map(Arg::Texts));
    for (name, text) in &filter.equal {
        plain(name, text)?;
        let left = format!("{} =", c.field(name)?);
        c.cmp(&left, Some(Arg::Text(text)));
    }
    if let Some((text, names)) = &filter.search {
        let mut columns = vec!["id".to_string()];
        for name in names {
            columns.push(c.field(name)?);
        }
        c.within(&columns, text)?;
    }
    for (name, text) in &filter.holding {
        plain(name, text)?;
        // Judges the name.
        c.field(name)?;
        let text = c.bind(Arg::Text(text));
        let test = match dialect {
            Dialect::Postgres => format!("fields->'{name}' @> jsonb_build_array({text}::text)"),
            Dialect::Sqlite => format!(
                "json_type(fields, '$.{name}') = 'array' AND EXISTS (SELECT 1 FROM \
                 json_each(fields, '$.{name}') WHERE type = 'text' AND value = {text})"
            ),
        };
        c.and(&test);
    }
    let member = filter
        .member
        .as_ref()
        .map(|user| ("members_with_roles", "user_id", user));
    let among = filter.among.iter().map(|(list, name, text)| (*list, *name, text));
    for (list, name, text) in member.into_iter().chain(among) {
        plain(name, text)?;
        // Judges the names.
        c.field(list)?;
        c.field(name)?;
        let text = c.bind(Arg::Text(text));
        let test = match dialect {
            Dialect::Postgres => {
                format!("fields->'{list}' @> jsonb_build_array(jsonb_build_object('{name}', {text}::text))")
            }
            Dialect::Sqlite => format!(
                "json_type(fields, '$.{list}') = 'array' AND EXISTS (SELECT 1 FROM \
                 json_each(fields, '$.{list}') WHERE type = 'object' AND value ->> '$.{name}' = {text})"
            ),
        };
        c.and(&test);
    }
    Ok(c)
}

pub fn documents_order(filter: &DocFilter, dialect: Dialect) -> Result<String> {
    let Some((name, order)) = filter.sort else {
        return Ok("created_at DESC, id".into());
    };
    let way = way(order);
    Ok(match name {
        "created_at" | "updated_at" => format!("{name} {way}, id"),
        "id" => format!("{} {way}", bytewise("id", dialect)),
        _ => {
            let field = Clause::new(dialect).field(name)?;
            format!("{field} IS NULL, {} {way}, id", bytewise(&field, dialect))
        }
    })
}

pub fn audit(filter: &AuditFilter, dialect: Dialect) -> Result<Clause<'_>> {
    let mut c = Clause::new(dialect);
    for (what, text) in [
        ("changed_by =", &filter.changed_by),
        ("action =", &filter.action),
        ("table_name =", &filter.table_name),
        ("object_id =", &filter.object_id),
    ] {
        if let Some(text) = text {
            plain("a filter", text)?;
        }
        c.cmp(what, text.as_deref().map(Arg::Text));
    }
    c.cmp("at >=", filter.start_micros.map(Arg::Time));
    c.cmp("at <", filter.end_micros.map(Arg::Time));
    Ok(c)
}

pub const AUDIT_ORDER: &str = "at DESC, id DESC";
