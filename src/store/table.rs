//! What is kept beside keys and ledger rows: objects with LiteLLM's fields, what they have spent, and who
//! changed what.

use super::Page;
use filters::model::account::{Account, Kind};
use filters::model::key::{Key, KeyHash};
use serde_json::{Map, Value};

/// Which kind of object; each has a table of its own with the same columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    User,
    /// Its members stand in its field `members_with_roles`: `[{user_id, user_email, role, …limits}]`.
    Team,
    Organization,
    /// LiteLLM's customer.
    EndUser,
    /// Limits under a name, which others refer to by `budget_id`.
    Budget,
    Tag,
    /// A deployment that was added through the API.
    Model,
}

impl Table {
    pub const ALL: [Table; 7] = [
        Table::User,
        Table::Team,
        Table::Organization,
        Table::EndUser,
        Table::Budget,
        Table::Tag,
        Table::Model,
    ];

    /// As people read it: in audit rows and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Table::User => "user",
            Table::Team => "team",
            Table::Organization => "organization",
            Table::EndUser => "customer",
            Table::Budget => "budget",
            Table::Tag => "tag",
            Table::Model => "model",
        }
    }

    /// Its table in the database.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Table::User => "tk_users",
            Table::Team => "tk_teams",
            Table::Organization => "tk_organizations",
            Table::EndUser => "tk_end_users",
            Table::Budget => "tk_budgets",
            Table::Tag => "tk_tags",
            Table::Model => "tk_models",
        }
    }

    /// The inverse of [`Table::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.as_str() == text)
    }

    /// Whose account its objects spend from; budgets and models have none.
    pub fn kind(self) -> Option<Kind> {
        match self {
            Table::User => Some(Kind::User),
            Table::Team => Some(Kind::Team),
            Table::Organization => Some(Kind::Organization),
            Table::EndUser => Some(Kind::EndUser),
            Table::Tag => Some(Kind::Tag),
            Table::Budget | Table::Model => None,
        }
    }
}

/// An object. Its id is not repeated in `fields`, and neither are spend and times.
#[derive(Clone, Debug, PartialEq)]
pub struct Doc {
    pub id: String,
    /// LiteLLM's names. No NUL anywhere.
    pub fields: Map<String, Value>,
    /// Counts up with each change; 0 = not stored yet.
    pub version: i64,
    pub created_at_micros: i64,
    pub updated_at_micros: i64,
}

/// Which objects. Newest first, unless sorted.
#[derive(Clone, Debug, Default)]
pub struct DocFilter {
    /// One of these; None = any. An empty list matches nothing.
    pub ids: Option<Vec<String>>,
    /// Fields that must hold exactly this text.
    pub equal: Vec<(&'static str, String)>,
    /// This text, whatever its case, within the id or one of these fields. (SQLite knows the case of
    /// ASCII letters only.)
    pub search: Option<(String, Vec<&'static str>)>,
    /// Fields that are lists and must hold this text.
    pub holding: Vec<(&'static str, String)>,
    /// Teams that have this user among `members_with_roles`.
    pub member: Option<String>,
    /// Fields that are lists of objects, one of which must hold this text under that name.
    pub among: Vec<(&'static str, &'static str, String)>,
    /// By the text of this field, or by `id`, `created_at` or `updated_at`.
    pub sort: Option<(&'static str, Order)>,
    pub page: Page,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Smallest or earliest first.
    Rising,
    #[default]
    Falling,
}

#[derive(Clone, Debug, Default)]
pub struct DocPage {
    pub docs: Vec<Doc>,
    /// How many there are in all.
    pub total: u64,
}

/// One change of what is stored.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// A new key; [`StoreError::Conflict`](super::StoreError::Conflict) names what is taken. `spend_nanos`
    /// becomes the opening of its account.
    InsertKey(&'a Key),
    /// Overwrites everything but hash, spend and creation. Stale if `updated_at_micros` is not
    /// `read_at_micros` any more, or if the key is gone. A change at the very microsecond of the one
    /// before is kept as one microsecond later, so that no two are taken for each other.
    UpdateKey { key: &'a Key, read_at_micros: i64 },
    /// Those that are there. Their ledger rows and their account stay.
    DeleteKeys(&'a [KeyHash]),
    /// `doc.version` must be the current one, 0 for a new object; it counts up by one.
    Put { table: Table, doc: &'a Doc },
    /// Those that are there. Their ledger rows and their accounts stay.
    Delete { table: Table, ids: &'a [String] },
    /// What the account had spent before this ledger began, nano-dollars. Saying it again replaces it.
    Open { account: &'a Account, nanos: i64 },
}

/// What an account has spent, nano-dollars. Times are microseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Since it was opened, opening included.
    pub total_nanos: i64,
    /// In the current period; the same as `total_nanos` for one that never resets.
    pub period_nanos: i64,
    pub period_started_micros: Option<i64>,
    pub period_ends_micros: Option<i64>,
}

/// Something another part of the gateway should read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Key(KeyHash),
    Doc(Table, String),
    /// Too much changed to say, or the connection that tells was lost.
    Everything,
}

impl News {
    /// As it travels between replicas.
    pub(super) fn to_text(&self) -> String {
        let text = match self {
            News::Key(hash) => format!("k:{hash}"),
            News::Doc(table, id) => format!("d:{}:{id}", table.as_str()),
            News::Everything => "*".into(),
        };
        // Postgres refuses to notify of more than 8,000 bytes.
        if text.len() > 7_000 { "*".into() } else { text }
    }

    /// What cannot be read may mean anything: a newer replica may have said it.
    pub(super) fn from_text(text: &str) -> Self {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let news = match kind {
            "k" => KeyHash::from_hex(rest).map(News::Key),
            "d" => rest
                .split_once(':')
                .and_then(|(table, id)| Some(News::Doc(Table::parse(table)?, id.into()))),
            _ => None,
        };
        news.unwrap_or(News::Everything)
    }
}

/// One line of who did what. Never holds a secret. Kept with at most 32 KiB each of `before` and `after`;
/// what is longer is kept as `{"cut": true, "bytes": …, "start": "…"}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Audit {
    /// UUIDv7.
    pub id: String,
    pub at_micros: i64,
    /// User id of who did it; `default_user_id` for the master key.
    pub changed_by: String,
    /// Hash of the key it was done with.
    pub changed_by_key: Option<KeyHash>,
    /// `created`, `updated`, `deleted`, `blocked`, `unblocked`, `rotated`.
    pub action: String,
    /// `key`, or a [`Table::as_str`].
    pub table_name: String,
    pub object_id: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// Which audit rows; an absent field does not narrow.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    pub changed_by: Option<String>,
    pub action: Option<String>,
    pub table_name: Option<String>,
    pub object_id: Option<String>,
    pub start_micros: Option<i64>,
    pub end_micros: Option<i64>,
    pub page: Page,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_go_both_ways() {
        let hash = KeyHash::of("sk-a");
        for news in [
            News::Key(hash),
            News::Doc(Table::User, "a:b\u{1f980}:".into()),
            News::Doc(Table::EndUser, String::new()),
            News::Everything,
        ] {
            assert_eq!(News::from_text(&news.to_text()), news);
        }
        let long = News::Doc(Table::Tag, "x".repeat(7_000));
        assert_eq!(long.to_text(), "*");
        for odd in ["", "k:", "k:00", "d:nothing:x", "d:user", "z:1"] {
            assert_eq!(News::from_text(odd), News::Everything, "{odd}");
        }
    }

    #[test]
    fn tables_have_names() {
        for table in Table::ALL {
            assert_eq!(Table::parse(table.as_str()), Some(table));
        }
        assert_eq!(Table::parse("key"), None);
    }
}
