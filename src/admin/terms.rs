//! The fields of a key beyond the plain ones: its limits, routes and settings, checked and kept under
//! LiteLLM's names in [`Key::extra`](filters::model::key::Key). Limits are read from there by
//! [`Limits::of`](filters::model::limits::Limits::of); "Kept" is what nothing here acts on.

use super::error::Result;
use super::fields::{Field, Fields, Kind};
use crate::shared::period;
use filters::model::key::Key;
use filters::model::limits::Limits;
use serde_json::{Map, Value, json};

const KEY_TYPES: &[&str] = &["llm_api", "management", "read_only", "default"];

pub const TERMS: &[Field] = &[
    Field::new(
        "soft_budget",
        Kind::Money,
        "Dollars after which a warning is given",
    ),
    Field::new(
        "budget_duration",
        Kind::Period,
        "When the budget starts anew: 30d, 1mo, …",
    ),
    Field::new("budget_id", Kind::Id, "Limits kept under a name"),
    Field::new("budget_limits", Kind::Objects, "Kept"),
    Field::new("budget_fallbacks", Kind::Settings, "Kept"),
    Field::new("max_parallel_requests", Kind::Count, "Calls at once"),
    Field::new("tpm_limit", Kind::Count, "Tokens per minute"),
    Field::new("rpm_limit", Kind::Count, "Requests per minute"),
    Field::new("tpd_limit", Kind::Count, "Kept"),
    Field::new("tpm_limit_type", Kind::Id, "Kept"),
    Field::new("rpm_limit_type", Kind::Id, "Kept"),
    Field::new("model_max_budget", Kind::ModelBudgets, "Budgets of single models"),
    Field::new(
        "model_rpm_limit",
        Kind::ModelCounts,
        "Requests per minute of single models",
    ),
    Field::new(
        "model_tpm_limit",
        Kind::ModelCounts,
        "Tokens per minute of single models",
    ),
    Field::new(
        "model_max_parallel_requests",
        Kind::ModelCounts,
        "Calls at once of single models",
    ),
    Field::new(
        "queue_weight",
        Kind::Weight,
        "Turns that it gets in the queue for each of the others'; 1 unless said",
    ),
    Field::new(
        "permissions",
        Kind::Object,
        "What the key may do besides, as get_spend_routes",
    ),
    Field::new("config", Kind::Object, "Kept"),
    Field::new("allowed_cache_controls", Kind::List, "Kept"),
    Field::new(
        "allowed_routes",
        Kind::List,
        "Paths that may be called: llm_api_routes, management_routes, info_routes, /path, /path/*; none = all",
    ),
    Field::new(
        "allowed_passthrough_routes",
        Kind::Texts,
        "Pass-through paths that may be called besides",
    ),
    Field::new(
        "key_type",
        Kind::OneOf(KEY_TYPES),
        "llm_api, management, read_only or default: sets allowed_routes",
    ),
    Field::new("guardrails", Kind::Texts, "Kept"),
    Field::new("policies", Kind::Texts, "Kept"),
    Field::new("prompts", Kind::Texts, "Kept"),
    Field::new("tags", Kind::Texts, "Calls are counted under these"),
    Field::new(
        "enforced_params",
        Kind::Texts,
        "Fields that a call's body must hold, as user or metadata.generation_name",
    ),
    Field::new("object_permission", Kind::Settings, "Kept"),
    Field::new("router_settings", Kind::Settings, "Kept"),
    Field::new("auto_rotate", Kind::Flag, "Kept"),
    Field::new("rotation_interval", Kind::Period, "Kept"),
    Field::new("organization_id", Kind::Id, "The organization it belongs to"),
    Field::new("project_id", Kind::Id, "Kept"),
    Field::new("agent_id", Kind::Id, "Kept"),
    Field::new("access_group_ids", Kind::Texts, "Kept"),
];

/// LiteLLM's routes for a kind of key; `None` = no such kind.
pub fn routes_of(key_type: &str) -> Option<&'static [&'static str]> {
    match key_type {
        "llm_api" => Some(&["llm_api_routes"]),
        "management" => Some(&["management_routes"]),
        "read_only" => Some(&["info_routes"]),
        "default" => Some(&[]),
        _ => None,
    }
}

/// Takes over what the body says; null unsets.
pub fn keep(fields: &Fields, key: &mut Key, now_micros: i64) -> Result<()> {
    let period = key.text("budget_duration").map(str::to_string);
    for Field { name, kind, .. } in TERMS {
        match fields.value(name) {
            Some(value) => {
                key.extra.insert((*name).into(), kind.read(name, value)?);
            }
            None if fields.has(name) => {
                key.extra.remove(*name);
            }
            None => {}
        }
    }
    // It sends nothing here, but LiteLLM refuses another type.
    fields.flag("send_invite_email")?;
    if let Some(routes) = fields.text("key_type")?.and_then(routes_of)
        && !fields.has("allowed_routes")
    {
        key.extra.insert("allowed_routes".into(), json!(routes));
    }
    // A rolling period begins when its budget is set, and so do those of single models.
    let has = |name: &str| key.extra.contains_key(name);
    let begins = has("model_max_budget") && !has("budget_since_micros");
    if begins || key.text("budget_duration") != period.as_deref() {
        key.extra.insert("budget_since_micros".into(), json!(now_micros));
    }
    Ok(())
}

/// What LiteLLM holds somebody to, and nothing here does: kept for those who read it.
const NOT_ENFORCED: [&str; 11] = [
    "allowed_cache_controls",
    "allowed_model_region",
    "auto_rotate",
    "budget_fallbacks",
    "budget_limits",
    "default_team_member_models",
    "guardrails",
    "object_permission",
    "policies",
    "router_settings",
    "tpd_limit",
];

/// Says in a row which of its fields are kept and not kept to. Whoever sets a limit must not believe in it.
pub fn tell_not_enforced(row: &mut Map<String, Value>) {
    let is_set = |name: &&str| {
        row.get(*name).is_some_and(|value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            _ => true,
        })
    };
    let names: Vec<&str> = NOT_ENFORCED.into_iter().filter(|n| is_set(n)).collect();
    if !names.is_empty() {
        row.insert("not_enforced".into(), json!(names));
    }
}

/// All of them as a key shows them. What else `extra` holds is not shown: nobody vouched for it.
pub fn shown(key: &Key) -> Map<String, Value> {
    TERMS
        .iter()
        .map(|Field { name, kind, .. }| {
            let value = key.extra.get(*name).cloned();
            ((*name).to_string(), value.unwrap_or_else(|| kind.unset()))
        })
        .collect()
}

/// When the key's budget starts anew, microseconds since 1970; None = never.
pub fn reset_at(key: &Key, now_micros: i64) -> Option<i64> {
    key.text("budget_duration")?;
    let budget = Limits::of(&key.extra).budget;
    period::of(&budget, now_micros, &period::serving()).end
}
