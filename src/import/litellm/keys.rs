//! `LiteLLM_VerificationToken` to our keys. Hashes stay as they are, so issued keys keep working.

use super::limits;
use super::row::{Row, Shape};
use crate::store::litellm::{Beside, KEYS, ROTATED, ReadError, Source, Table};
use filters::model::key::{Key, KeyHash};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The team of the keys that LiteLLM's dashboard makes for its own sessions.
const DASHBOARD: &str = "litellm-dashboard";

/// The user that LiteLLM books the master key's doings to.
const MASTER: &str = "default_user_id";

const COLUMNS: &[&str] = &[
    "token",
    "key_name",
    "key_alias",
    "spend",
    "expires",
    "models",
    "aliases",
    "user_id",
    "team_id",
    "metadata",
    "blocked",
    "model_spend",
    "created_at",
    "created_by",
    "updated_at",
    "settings_updated_at",
    "object_permission_id",
];

/// Columns that go into `extra` as they are.
const EXTRA: &[(&str, Shape)] = &[
    ("config", Shape::Json),
    ("permissions", Shape::Json),
    ("allowed_cache_controls", Shape::Texts),
    ("allowed_routes", Shape::Texts),
    ("auto_rotate", Shape::Flag),
    ("rotation_interval", Shape::Period),
    ("router_settings", Shape::Json),
    ("key_type", Shape::Text),
    ("policies", Shape::Texts),
    ("access_group_ids", Shape::Texts),
    ("budget_fallbacks", Shape::Json),
    ("object_permission", Shape::Json),
];
/// The same for what names something.
const IDS: &[&str] = &["organization_id", "agent_id", "project_id"];

/// What became of a row.
pub enum Taken {
    Key {
        key: Box<Key>,
        by_model: Vec<(String, i64)>,
    },
    /// A session of LiteLLM's dashboard.
    Dashboard,
    Left(&'static str),
}

/// All keys.
pub fn table() -> Table<'static> {
    let extra = EXTRA.iter().map(|(name, _)| *name);
    let columns = COLUMNS.iter().copied().chain(extra).chain(IDS.iter().copied());
    Table {
        name: KEYS,
        id: "token",
        columns: columns.chain(limits::COLUMNS.iter().copied()).collect(),
        beside: &[Beside::Budget, Beside::Permission],
        // A token may be a key in plain text where something went wrong: it is no name for a report.
        label: &["key_alias", "key_name"],
    }
}

/// Aliases that several keys share, with the token of the one that keeps it: the oldest.
pub async fn twins(source: &Source) -> Result<HashMap<String, String>, ReadError> {
    let mut out = HashMap::new();
    let Some(cursor) = source.twins().await? else {
        return Ok(out);
    };
    loop {
        let page = source.next(&cursor).await?;
        if page.is_empty() {
            return Ok(out);
        }
        for raw in page {
            if let Ok(row) = Row::new(raw)
                && let (Some(alias), Some(token)) = (row.text("alias"), row.text("token"))
            {
                out.insert(alias, token);
            }
        }
    }
}

/// Makes a key of a row. `spend_nanos` is what was spent in the period that runs at `now`.
pub fn key(row: &mut Row, twins: &HashMap<String, String>, now: i64) -> Taken {
    let token = row.text("token").unwrap_or_default();
    let Some(hash) = KeyHash::from_hex(&token) else {
        return Taken::Left("its token is not the hash of a key");
    };
    if row.text("team_id").as_deref() == Some(DASHBOARD) {
        return Taken::Dashboard;
    }
    let by_model = limits::spent_by_model(row);
    let limited = limits::read(row);
    let spend_nanos = limits::spent(row, now);
    let max_budget_nanos = limited
        .get("max_budget")
        .and_then(super::row::nanos)
        .map(|(n, _)| n);
    let mut extra = row.read_all(EXTRA);
    if let Some(Value::Object(permission)) = extra.get_mut("object_permission") {
        permission.retain(|_, v| !matches!(v, Value::Null) && *v != Value::Array(Vec::new()));
    }
    extra.extend(limited);
    extra.remove("max_budget");
    for name in IDS {
        if let Some(id) = row.id(name) {
            extra.insert((*name).into(), id.into());
        }
    }
    let metadata = row.object("metadata");
    limits::out_of(&metadata, &mut extra, row);
    let updated = row.micros("settings_updated_at").max(row.micros("updated_at"));
    let created = row.micros("created_at").or(updated).unwrap_or(0);
    let key = Key {
        hash,
        key_name: row.text("key_name").unwrap_or_else(|| "sk-...".into()),
        key_alias: alias(row, &token, twins),
        user_id: row.id("user_id"),
        team_id: row.id("team_id"),
        models: row.texts("models"),
        aliases: aliases(row, "aliases"),
        spend_nanos,
        max_budget_nanos,
        expires_micros: row.end("expires"),
        blocked: row.flag("blocked"),
        metadata,
        extra,
        created_at_micros: created,
        created_by: row.id("created_by"),
        updated_at_micros: updated.unwrap_or(created),
    };
    Taken::Key {
        key: Box::new(key),
        by_model,
    }
}

/// Notes on a key that was made for its user by somebody who is no admin: that somebody knows its secret.
pub fn lent(taken: &mut Taken, admins: &HashSet<String>, row: &mut Row) {
    let Taken::Key { key, .. } = taken else { return };
    let (Some(user), Some(by)) = (&key.user_id, &key.created_by) else {
        return;
    };
    if by == user || by == MASTER || admins.contains(by) {
        return;
    }
    key.extra.insert("lent_by".into(), by.as_str().into());
    row.flaw(
        "created_by",
        "is neither its user nor an admin: it calls models as its user and manages nothing",
    );
}

/// Secrets that were rotated and may still be taken.
pub fn rotated_table() -> Table<'static> {
    Table {
        name: ROTATED,
        id: "token",
        columns: vec!["token", "active_token_id", "revoke_at", "created_at"],
        beside: &[Beside::ActiveKey],
        label: &["active_token_id"],
    }
}

/// A secret that leads to the key which took its place, until `revoke_at`. `None` = not any more.
pub fn rotated(row: &mut Row, now: i64) -> Result<Option<Key>, &'static str> {
    let hash = |row: &Row, name: &str| row.text(name).and_then(|t| KeyHash::from_hex(&t));
    let (Some(old), Some(new)) = (hash(row, "token"), hash(row, "active_token_id")) else {
        return Err("its token is not the hash of a key");
    };
    let Some(until) = row.micros("revoke_at") else {
        return Err("it does not say until when it is taken");
    };
    let active = row.object("active");
    if until <= now || active.is_empty() {
        return Ok(None);
    }
    let mut active = Row::within(&active, "");
    let mut extra = Map::new();
    extra.insert("rotated_to".into(), json!(new));
    extra.insert("rotated_until_micros".into(), until.into());
    if let Some(organization) = active.id("organization_id") {
        extra.insert("organization_id".into(), organization.into());
    }
    let created = row.micros("created_at").unwrap_or(0);
    Ok(Some(Key {
        hash: old,
        key_name: "sk-...".into(),
        key_alias: None,
        user_id: active.id("user_id"),
        team_id: active.id("team_id"),
        models: Vec::new(),
        aliases: BTreeMap::new(),
        spend_nanos: 0,
        max_budget_nanos: None,
        expires_micros: None,
        blocked: false,
        metadata: Map::new(),
        extra,
        created_at_micros: created,
        created_by: None,
        updated_at_micros: created,
    }))
}

fn alias(row: &mut Row, token: &str, twins: &HashMap<String, String>) -> Option<String> {
    let alias = row.id("key_alias")?;
    match twins.get(&alias) {
        Some(first) if first != token => {
            row.flaw("key_alias", "is another, older key's too, which keeps it");
            None
        }
        _ => Some(alias),
    }
}

/// Client's name to model name.
pub fn aliases(row: &mut Row, name: &str) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut odd = false;
    let found: Map<String, Value> = row.object(name);
    for (alias, model) in found {
        match model {
            Value::String(model) => {
                out.insert(alias, model);
            }
            _ => odd = true,
        }
    }
    if odd {
        row.flaw(name, "leads to what is no text, which is left out");
    }
    out
}
