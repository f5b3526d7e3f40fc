//! The fields of a key that are checked and kept under LiteLLM's names, in
//! [`Key::extra`](filters::model::key::Key). They bind nothing yet: no limit, route list or budget
//! period in this table is enforced; they are here so that keys survive a move in both directions.

use super::error::{Result, wrong_type, wrong_value};
use super::{duration, fields};
use fields::Fields;
use filters::model::key::Key;
use serde_json::{Map, Value, json};

/// What a field holds, and with that what it shows while unset.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A whole number, or null.
    Count,
    /// Dollars, or null.
    Money,
    Text,
    /// A duration as in `duration`, or null.
    Period,
    Flag,
    /// A list of strings that is `[]` while unset.
    List,
    /// The same, null while unset.
    Texts,
    /// An object that is `{}` while unset.
    Object,
    /// The same, null while unset.
    Settings,
    /// A list of objects, or null.
    Objects,
    /// `llm_api`, `management`, `read_only`, `default`, or null.
    KeyType,
}

const KEPT: &[(&str, Shape)] = &[
    ("soft_budget", Shape::Money),
    ("budget_duration", Shape::Period),
    ("budget_id", Shape::Text),
    ("budget_limits", Shape::Objects),
    ("budget_fallbacks", Shape::Settings),
    ("max_parallel_requests", Shape::Count),
    ("tpm_limit", Shape::Count),
    ("rpm_limit", Shape::Count),
    ("tpd_limit", Shape::Count),
    ("tpm_limit_type", Shape::Text),
    ("rpm_limit_type", Shape::Text),
    ("model_max_budget", Shape::Object),
    ("model_rpm_limit", Shape::Settings),
    ("model_tpm_limit", Shape::Settings),
    ("permissions", Shape::Object),
    ("config", Shape::Object),
    ("allowed_cache_controls", Shape::List),
    ("allowed_routes", Shape::List),
    ("allowed_passthrough_routes", Shape::Texts),
    ("key_type", Shape::KeyType),
    ("guardrails", Shape::Texts),
    ("policies", Shape::Texts),
    ("prompts", Shape::Texts),
    ("tags", Shape::Texts),
    ("enforced_params", Shape::Texts),
    ("object_permission", Shape::Settings),
    ("router_settings", Shape::Settings),
    ("auto_rotate", Shape::Flag),
    ("rotation_interval", Shape::Period),
    ("organization_id", Shape::Text),
    ("project_id", Shape::Text),
    ("agent_id", Shape::Text),
    ("access_group_ids", Shape::Texts),
];

impl Shape {
    fn unset(self) -> Value {
        match self {
            Shape::List => json!([]),
            Shape::Object => json!({}),
            Shape::Flag => Value::Bool(false),
            _ => Value::Null,
        }
    }

    /// The value as it is kept.
    fn read(self, name: &str, value: &Value) -> Result<Value> {
        match (self, value) {
            (Shape::Count, v) => Ok(fields::count(name, v)?.into()),
            (Shape::Money, v) => Ok(json!(fields::amount(name, v)?)),
            (Shape::Flag, v) => Ok(fields::flag(name, v)?.into()),
            (Shape::List | Shape::Texts, v) => Ok(fields::texts(name, v)?.into()),
            (Shape::Text, Value::String(_)) | (Shape::Object | Shape::Settings, Value::Object(_)) => {
                Ok(value.clone())
            }
            (Shape::Objects, Value::Array(list)) if list.iter().all(Value::is_object) => Ok(value.clone()),
            (Shape::Period, Value::String(text)) => match duration::span(text) {
                Ok(_) => Ok(value.clone()),
                Err(e) => Err(wrong_value(name, format!("'{name}' {e}.")).into()),
            },
            (Shape::KeyType, Value::String(text)) if routes_of(text).is_some() => Ok(value.clone()),
            (Shape::Text | Shape::Period, _) => Err(wrong_type(name, "a string").into()),
            (Shape::Object | Shape::Settings, _) => Err(wrong_type(name, "an object").into()),
            (Shape::Objects, _) => Err(wrong_type(name, "a list of objects").into()),
            (Shape::KeyType, _) => {
                Err(wrong_type(name, "one of llm_api, management, read_only and default").into())
            }
        }
    }
}

/// LiteLLM's routes for a kind of key; `None` = no such kind.
fn routes_of(key_type: &str) -> Option<&'static [&'static str]> {
    match key_type {
        "llm_api" => Some(&["llm_api_routes"]),
        "management" => Some(&["management_routes"]),
        "read_only" => Some(&["info_routes"]),
        "default" => Some(&[]),
        _ => None,
    }
}

/// Takes over what the body says; null unsets.
pub fn keep(fields: &Fields, key: &mut Key) -> Result<()> {
    for (name, shape) in KEPT {
        match fields.value(name) {
            Some(value) => {
                key.extra.insert((*name).into(), shape.read(name, value)?);
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
    Ok(())
}

/// All of them as a key shows them. What else `extra` holds is not shown: nobody vouched for it.
pub fn shown(key: &Key) -> Map<String, Value> {
    KEPT.iter()
        .map(|(name, shape)| {
            let value = key.extra.get(*name).cloned();
            ((*name).to_string(), value.unwrap_or_else(|| shape.unset()))
        })
        .collect()
}
