//! From a filter to a WHERE clause. Values are always bound, never written into the text.

use super::rows::{day_number, limit, offset};
use super::{DailyFilter, KeyFilter, Page, SpendFilter};

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
    /// Days since 1970.
    Day(i32),
    /// Microseconds since 1970.
    Time(i64),
}

/// The end of a statement, from WHERE on, and its values in order.
pub struct Clause<'a> {
    pub sql: String,
    pub args: Vec<Arg<'a>>,
    dialect: Dialect,
}

impl<'a> Clause<'a> {
    fn new(dialect: Dialect) -> Self {
        Self {
            sql: String::new(),
            args: Vec::new(),
            dialect,
        }
    }

    fn bind(&mut self, arg: Arg<'a>) -> String {
        self.args.push(arg);
        let n = self.args.len();
        match (self.dialect, arg) {
            (Dialect::Sqlite, _) => format!("?{n}"),
            (Dialect::Postgres, Arg::Day(_)) => format!("(DATE '1970-01-01' + ${n}::int)"),
            (Dialect::Postgres, _) => format!("${n}"),
        }
    }

    fn and(&mut self, test: &str) {
        self.sql
            .push_str(if self.sql.is_empty() { " WHERE " } else { " AND " });
        self.sql.push_str(test);
    }

    fn cmp(&mut self, left: &str, arg: Option<Arg<'a>>) {
        if let Some(arg) = arg {
            let right = self.bind(arg);
            self.and(&format!("{left} {right}"));
        }
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

pub fn keys(filter: &KeyFilter, dialect: Dialect) -> Clause<'_> {
    let mut c = Clause::new(dialect);
    c.cmp("user_id =", filter.user_id.as_deref().map(Arg::Text));
    c.cmp("team_id =", filter.team_id.as_deref().map(Arg::Text));
    c.cmp("key_alias =", filter.key_alias.as_deref().map(Arg::Text));
    c
}

pub fn spend(filter: &SpendFilter, dialect: Dialect) -> Clause<'_> {
    let mut c = Clause::new(dialect);
    c.cmp("request_id =", filter.request_id.as_deref().map(Arg::Text));
    c.cmp("key_hash =", filter.key_hash.as_ref().map(|h| Arg::Bytes(&h.0)));
    c.cmp("user_id =", filter.user_id.as_deref().map(Arg::Text));
    c.cmp("team_id =", filter.team_id.as_deref().map(Arg::Text));
    c.cmp("started >=", filter.start_micros.map(Arg::Time));
    c.cmp("started <", filter.end_micros.map(Arg::Time));
    if let Some((micros, id)) = &filter.after {
        let micros = c.bind(Arg::Time(*micros));
        let id = c.bind(Arg::Text(id));
        c.and(&format!("(started, request_id) < ({micros}, {id})"));
    }
    c
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

pub const KEYS_ORDER: &str = "created_at DESC, hash";
pub const SPEND_ORDER: &str = "started DESC, request_id DESC";
pub const DAILY_ORDER: &str = "day DESC, key_hash, model_group, user_id, team_id, provider";
