//! Who changed what: every write of this API goes through [`Desk::write`], which keeps a line about it
//! in the same transaction, and `GET /audit` lists the lines. No line holds a secret.

use super::Desk;
use super::ask::Params;
use super::callbacks::Closed;
use super::error::Result;
use super::fields::{Field, Kind};
use super::rights::{Actor, Role};
use super::routes::{Route, Who};
use super::shapes::{DEFAULT_USER, iso};
use crate::store::{Audit, AuditFilter, Change, Page, StoreError};
use axum::Json;
use axum::extract::State;
use axum::routing::on;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use uuid::Uuid;

pub const ROUTES: &[Route] = &[Route {
    group: "audit",
    who: Who::Overseer,
    summary: "Who changed what, newest first",
    query: &[
        Field::new("changed_by", Kind::Text, "User id of who did it"),
        Field::new("action", Kind::OneOf(ACTIONS), "What was done"),
        Field::new("table_name", Kind::Text, "Kind of object: key, user, team, …"),
        Field::new("object_id", Kind::Text, "Id of the object; a key's hash"),
        Field::new("start_date", Kind::Time, "From this day or moment on, UTC"),
        Field::new(
            "end_date",
            Kind::Time,
            "Up to this day, inclusive, or before this moment, UTC",
        ),
        Field::new("page", Kind::Count, "From 1"),
        Field::new("page_size", Kind::Count, "Rows of a page, at most 1000"),
    ],
    answer: "AuditLogs",
    ..Route::get(&["/audit"], |m| on(m, list))
}];

const ACTIONS: &[&str] = &["created", "updated", "deleted", "blocked", "unblocked", "rotated"];

/// What stands in place of a secret.
const REDACTED: &str = "***";

/// One change, told. The writer adds who and when.
#[derive(Clone, Debug)]
pub struct Entry {
    pub action: &'static str,
    /// `key`, or a [`Table::as_str`](crate::store::Table::as_str).
    pub table: &'static str,
    pub object_id: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

impl Entry {
    pub fn created(table: &'static str, id: impl Into<String>, after: Value) -> Self {
        Self::new("created", table, id, None, Some(after))
    }

    /// Keeps those fields that differ.
    pub fn updated(table: &'static str, id: impl Into<String>, before: Value, after: Value) -> Self {
        Self::changed("updated", table, id, before, after)
    }

    /// The same for another action than `updated`.
    pub fn changed(
        action: &'static str,
        table: &'static str,
        id: impl Into<String>,
        before: Value,
        after: Value,
    ) -> Self {
        let (before, after) = match (before, after) {
            (Value::Object(mut before), Value::Object(mut after)) => {
                before.retain(|name, value| match after.get(name) {
                    Some(new) if new == value => {
                        after.remove(name);
                        false
                    }
                    _ => true,
                });
                (Value::Object(before), Value::Object(after))
            }
            whole => whole,
        };
        Self::new(action, table, id, Some(before), Some(after))
    }

    pub fn deleted(table: &'static str, id: impl Into<String>, before: Value) -> Self {
        Self::new("deleted", table, id, Some(before), None)
    }

    fn new(
        action: &'static str,
        table: &'static str,
        id: impl Into<String>,
        before: Option<Value>,
        after: Option<Value>,
    ) -> Self {
        Self {
            action,
            table,
            object_id: id.into(),
            before: before.map(without_secrets),
            after: after.map(without_secrets),
        }
    }
}

impl Desk {
    /// Carries out all changes and keeps the lines about them: all or nothing. What is secret in `metadata`
    /// is sealed on the way. `Stale` means that
    /// somebody was quicker: read again, see [`settle`](super::settle).
    pub async fn write(
        &self,
        actor: &Actor,
        changes: &[Change<'_>],
        entries: Vec<Entry>,
    ) -> std::result::Result<(), StoreError> {
        let now = self.clock.now_micros();
        let rows: Vec<Audit> = entries.into_iter().map(|e| row(actor, e, now)).collect();
        let closed: Vec<Option<Closed>> = changes
            .iter()
            .map(|c| Closed::of(c, self.reload.seal()))
            .collect();
        let stored: Vec<Change<'_>> = changes
            .iter()
            .zip(&closed)
            .map(|(change, closed)| closed.as_ref().map_or(*change, |c| c.in_place_of(change)))
            .collect();
        let done = self.store.change(&stored, &rows).await;
        // Whatever the store answered: a write that was given up may still be done.
        for change in changes {
            match change {
                Change::InsertKey(key) | Change::UpdateKey { key, .. } => self.keys.forget(&key.hash),
                Change::DeleteKeys(hashes) => hashes.iter().for_each(|hash| self.keys.forget(hash)),
                // The news of it comes a moment later, and who asked for it may call before.
                Change::Put { table, doc } => self.keys.forget_party(*table, &doc.id),
                Change::Delete { table, ids } => {
                    ids.iter().for_each(|id| self.keys.forget_party(*table, id));
                }
                Change::Open { .. } => {}
            }
        }
        if done.is_ok() {
            for row in &rows {
                log::info!(
                    "event=changed action={} table={} id={:?} by={:?}",
                    row.action,
                    row.table_name,
                    row.object_id,
                    row.changed_by
                );
            }
        }
        done
    }
}

fn row(actor: &Actor, entry: Entry, now_micros: i64) -> Audit {
    let own = match actor.role {
        Role::Master => DEFAULT_USER,
        _ => actor.user_id().unwrap_or_default(),
    };
    // Only an admin may say that it acts for somebody else; with which key it was done stays told.
    let told = actor.changed_by.as_deref().filter(|_| actor.is_admin());
    Audit {
        id: Uuid::now_v7().to_string(),
        at_micros: now_micros,
        changed_by: told.unwrap_or(own).to_string(),
        changed_by_key: actor.caller.key_hash(),
        action: entry.action.into(),
        table_name: entry.table.into(),
        object_id: entry.object_id,
        before: entry.before,
        after: entry.after,
    }
}

/// Takes out what is one by its name or by its look, at any depth.
fn without_secrets(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let clean: Map<String, Value> = map
                .into_iter()
                .map(|(name, value)| {
                    // Whatever shape it has: a list of tokens, an object of credentials.
                    let secret = names_a_secret(&name) && !value.is_null() && !value.is_boolean();
                    let value = if secret {
                        REDACTED.into()
                    } else {
                        without_secrets(value)
                    };
                    (name, value)
                })
                .collect();
            Value::Object(clean)
        }
        Value::Array(list) => list.into_iter().map(without_secrets).collect(),
        Value::String(text) if looks_like_a_key(&text) => REDACTED.into(),
        other => other,
    }
}

fn names_a_secret(name: &str) -> bool {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let name = name.to_ascii_lowercase();
    [
        "password",
        "passphrase",
        "secret",
        "apikey",
        "accesskey",
        "privatekey",
        "credential",
        "authorization",
    ]
    .iter()
    .any(|part| name.contains(part))
        || (name.ends_with("token") && name != "token")
}

/// A whole key, and not `sk-...` with its last four characters; or a header that carries one.
fn looks_like_a_key(text: &str) -> bool {
    let bare = match text.split_once(' ') {
        Some((scheme, rest)) if ["bearer", "basic"].contains(&scheme.to_ascii_lowercase().as_str()) => rest,
        _ => text,
    };
    bare.len() != text.len() || (bare.starts_with("sk-") && !bare.starts_with("sk-..."))
}

/// `GET /audit`, in LiteLLM's shape.
async fn list(State(desk): State<Arc<Desk>>, params: Params) -> Result<Json<Value>> {
    let slice = params.page(&["page_size", "size"], 50, 1_000)?;
    let filter = AuditFilter {
        changed_by: params.owned("changed_by")?,
        action: params.owned("action")?,
        table_name: params.owned("table_name")?,
        object_id: params.owned("object_id")?,
        start_micros: params.moment("start_date", false)?,
        end_micros: params.moment("end_date", true)?,
        page: Page {
            // One more, to know whether there is a next page.
            limit: slice.size as u32 + 1,
            offset: slice.offset,
        },
    };
    let mut rows = desk.store.audit(&filter).await?;
    let more = rows.len() as u64 > slice.size;
    rows.truncate(slice.size as usize);
    let shown: Vec<Value> = rows.iter().map(shown).collect();
    Ok(Json(json!({
        "audit_logs": shown,
        "page": slice.page,
        "page_size": slice.size,
        "has_more": more,
    })))
}

fn shown(row: &Audit) -> Value {
    json!({
        "id": row.id,
        "updated_at": iso(row.at_micros),
        "changed_by": row.changed_by,
        "changed_by_api_key": row.changed_by_key,
        "action": row.action,
        "table_name": row.table_name,
        "object_id": row.object_id,
        "before_value": row.before,
        "updated_values": row.after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told_and_no_secret() {
        let before = json!({"models": [], "max_budget": 1.0, "metadata": {"langfuse_secret_key": "a"}});
        let hidden = json!({"apiKeys": ["a"], "vertex-credentials": {"a": "b"}, "h": "Bearer abc"});
        let entry = Entry::created("model", "m", hidden);
        let want = json!({"apiKeys": "***", "vertex-credentials": "***", "h": "***"});
        assert_eq!(entry.after, Some(want));
        let after = json!({"models": [], "max_budget": 2.0, "metadata": {"langfuse_secret_key": "b", "x": "sk-abc"},
            "key_name": "sk-...abcd", "token_limit": 3});
        let entry = Entry::updated("key", "h", before, after);
        assert_eq!(
            entry.before,
            Some(json!({"max_budget": 1.0, "metadata": {"langfuse_secret_key": "***"}}))
        );
        assert_eq!(
            entry.after,
            Some(
                json!({"max_budget": 2.0, "metadata": {"langfuse_secret_key": "***", "x": "***"},
                "key_name": "sk-...abcd", "token_limit": 3})
            )
        );
    }
}
