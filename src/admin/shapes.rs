//! How keys, users and times look in answers.

use super::{callbacks, terms};
use filters::model::key::Key;
use filters::model::money::Nanos;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The user id of whoever holds the master key, as LiteLLM names it.
pub const DEFAULT_USER: &str = "default_user_id";

/// `2026-11-20T12:00:00.000000Z`.
pub fn iso(micros: i64) -> String {
    let time = Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    });
    format!("{time:.6}")
}

/// A key's row, without its token. The moment is for what a budget's period depends on. What a budget says that
/// the key names is added by [`Desk::key_row`](super::Desk::key_row).
pub fn key_row(key: &Key, now_micros: i64) -> Map<String, Value> {
    let mut row = terms::shown(key);
    terms::tell_not_enforced(&mut row);
    let fields = json!({
        "key_name": key.key_name,
        "key_alias": key.key_alias,
        "spend": Nanos(key.spend_nanos),
        "max_budget": key.max_budget_nanos.map(Nanos),
        "expires": key.expires_micros.map(iso),
        "models": key.models,
        "aliases": key.aliases,
        "user_id": key.user_id,
        "team_id": key.team_id,
        "metadata": metadata(key),
        "blocked": key.blocked,
        "created_at": iso(key.created_at_micros),
        "created_by": key.created_by,
        "updated_at": iso(key.updated_at_micros),
        "updated_by": key.text("updated_by").or(key.created_by.as_deref()),
        // Columns of LiteLLM's that nothing here fills.
        "soft_budget_cooldown": false,
        "model_spend": {},
        "budget_reset_at": terms::reset_at(key, now_micros).map(iso),
        "litellm_budget_table": null,
        "object_permission_id": null,
        "rotation_count": key.extra.get("rotation_count").cloned().unwrap_or(json!(0)),
        "last_rotation_at": key.text("last_rotation_at"),
        "key_rotation_at": null,
    });
    if let Value::Object(fields) = fields {
        row.extend(fields);
    }
    if let Some(by) = key.lent_by() {
        row.insert("lent_by".into(), json!(by));
    }
    // Its grace after a rotation.
    if let Some(next) = key.text("rotated_to") {
        row.insert("rotated_to".into(), json!(next));
        let until = key.extra.get("rotated_until_micros").and_then(Value::as_i64);
        row.insert("rotated_until".into(), json!(until.map(iso)));
    }
    row
}

/// What is kept under `metadata`, and the budget that is raised for a while, which LiteLLM keeps there.
fn metadata(key: &Key) -> Map<String, Value> {
    let mut metadata = key.metadata.clone();
    let whole = |name: &str| key.extra.get(name).and_then(Value::as_i64);
    if let (Some(more), Some(until)) = (whole("temp_budget_nanos"), whole("temp_budget_until_micros")) {
        metadata.insert("temp_budget_increase".into(), json!(Nanos(more)));
        metadata.insert("temp_budget_expiry".into(), json!(iso(until)));
    }
    callbacks::hide(&mut metadata);
    metadata
}

/// Takes out, on the outermost level alone, what plain clients expect to be left out while it is not set.
pub fn plain(mut body: Value) -> Value {
    if let Value::Object(fields) = &mut body {
        fields.retain(|name, value| {
            !(value.is_null() && matches!(name.as_str(), "expires" | "user_id" | "max_budget"))
        });
    }
    body
}

/// `{key, info: {…}}` for LiteLLM's clients, and the same fields flat beside it.
pub fn key_info(key: &Key, row: Map<String, Value>) -> Value {
    let mut body = row.clone();
    body.insert("info".into(), Value::Object(row));
    body.insert("key".into(), json!(key.hash));
    plain(Value::Object(body))
}

/// The answer to `POST /key/generate` and `/key/regenerate`: the only ones that hold the key itself.
pub fn generated(key: &Key, secret: &str, row: Map<String, Value>) -> Value {
    let mut body = row;
    body.insert("key".into(), json!(secret));
    body.insert("token".into(), json!(key.hash));
    body.insert("token_id".into(), json!(key.hash));
    // LiteLLM leaves it empty whatever was asked: `expires` says it.
    body.insert("duration".into(), Value::Null);
    plain(Value::Object(body))
}
