//! Somebody besides a key whose limits a call must keep: a user, a team, a member, an organization, an
//! end user, a tag.

use super::account::Kind;
use super::limits::Limits;
use serde_json::{Map, Value};

/// One party as the store keeps it, its limits read. Fields have LiteLLM's names.
#[derive(Clone, Debug, PartialEq)]
pub struct Party {
    pub kind: Kind,
    pub id: String,
    /// What people call it.
    pub alias: Option<String>,
    /// Names it may call; empty = all.
    pub models: Vec<String>,
    pub blocked: bool,
    pub limits: Limits,
    /// Everything else that is kept of it.
    pub fields: Map<String, Value>,
}

impl Party {
    /// Takes an object apart. A field of the wrong type is as good as absent: it was checked when it
    /// was written.
    pub fn new(kind: Kind, id: impl Into<String>, fields: Map<String, Value>) -> Self {
        let alias = ["user_alias", "team_alias", "organization_alias", "alias"]
            .into_iter()
            .find_map(|name| fields.get(name).and_then(Value::as_str))
            .map(Into::into);
        Self {
            kind,
            id: id.into(),
            alias,
            models: texts(&fields, "models"),
            blocked: fields.get("blocked").and_then(Value::as_bool).unwrap_or(false),
            limits: Limits::of(&fields),
            fields,
        }
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.fields
            .get(name)
            .and_then(Value::as_str)
            .filter(|t| !t.is_empty())
    }
}

/// A list of strings; what is none of that is left out.
pub fn texts(fields: &Map<String, Value>, name: &str) -> Vec<String> {
    fields
        .get(name)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Into::into)
        .collect()
}
