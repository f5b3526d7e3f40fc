//! Provider secrets on their way into our store: closed before they are written, opened to be compared. Those of
//! callbacks stand in [`callbacks`](super::callbacks).

use crate::store::Table;
use filters::model::secret::Secret;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Closes a text; the error says why that cannot be.
pub type Close = Arc<dyn Fn(&str) -> Result<String, String> + Send + Sync>;
/// Opens what was closed; `Ok(None)`: it is plain. An error: it was closed with another key.
pub type Open = Arc<dyn Fn(&str) -> Result<Option<Secret>, String> + Send + Sync>;

/// See the module.
#[derive(Clone)]
pub struct Vault {
    pub close: Close,
    pub open: Open,
}

/// Parameters of a deployment that are no secret, whatever they hold. Everything else is closed.
const PLAIN: [&str; 16] = [
    "model",
    "custom_llm_provider",
    "api_base",
    "base_url",
    "api_version",
    "base_model",
    "organization",
    "region_name",
    "aws_region_name",
    "vertex_project",
    "vertex_location",
    "tags",
    "mode",
    "reasoning_effort",
    "service_tier",
    "response_format",
];

/// How deep a value is looked into.
const MAX_DEPTH: u8 = 16;

impl Vault {
    /// The fields as they are stored.
    pub fn close(&self, table: Table, mut fields: Map<String, Value>) -> Result<Map<String, Value>, String> {
        if table == Table::Model
            && let Some(Value::Object(params)) = fields.get_mut("litellm_params")
        {
            for (name, value) in params.iter_mut() {
                let plain =
                    PLAIN.contains(&name.as_str()) && !value.as_str().is_some_and(|t| t.contains('@'));
                if !plain {
                    self.close_value(value, MAX_DEPTH)?;
                }
            }
        }
        if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
            self.close_callbacks(metadata);
        }
        Ok(fields)
    }

    fn close_value(&self, value: &mut Value, depth: u8) -> Result<(), String> {
        match value {
            _ if depth == 0 => return Err("its litellm_params are nested too deeply".into()),
            // A name, not what it stands for.
            Value::String(text) if text.starts_with("os.environ/") || text.is_empty() => {}
            Value::String(text) => *text = (self.close)(text)?,
            Value::Array(list) => {
                for value in list {
                    self.close_value(value, depth - 1)?;
                }
            }
            Value::Object(fields) => {
                for value in fields.values_mut() {
                    self.close_value(value, depth - 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether stored fields say the same as plain ones. No two closings of a text are alike.
    pub fn same(&self, table: Table, stored: &Map<String, Value>, plain: &Map<String, Value>) -> bool {
        let is_model = table == Table::Model;
        stored.len() == plain.len()
            && stored.iter().all(|(name, value)| {
                plain.get(name).is_some_and(|p| match (name.as_str(), value, p) {
                    ("metadata", Value::Object(value), Value::Object(p)) if !is_model => {
                        self.same_callbacks(value, p)
                    }
                    _ if is_model => self.same_value(value, p, MAX_DEPTH),
                    _ => value == p,
                })
            })
    }

    fn same_value(&self, stored: &Value, plain: &Value, depth: u8) -> bool {
        match (stored, plain) {
            _ if depth == 0 => false,
            (Value::String(stored), Value::String(plain)) => match (self.open)(stored) {
                Ok(Some(text)) => text.expose() == plain,
                Ok(None) => stored == plain,
                Err(_) => false,
            },
            (Value::Array(stored), Value::Array(plain)) => {
                stored.len() == plain.len()
                    && stored
                        .iter()
                        .zip(plain)
                        .all(|(s, p)| self.same_value(s, p, depth - 1))
            }
            (Value::Object(stored), Value::Object(plain)) => {
                stored.len() == plain.len()
                    && stored
                        .iter()
                        .all(|(name, s)| plain.get(name).is_some_and(|p| self.same_value(s, p, depth - 1)))
            }
            (stored, plain) => stored == plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_closed_and_compared() {
        let vault = Vault {
            close: Arc::new(|t| Ok(format!("sealed:{}", t.chars().rev().collect::<String>()))),
            open: Arc::new(|t| {
                Ok(t.strip_prefix("sealed:")
                    .map(|t| Secret::new(t.chars().rev().collect::<String>())))
            }),
        };
        let Value::Object(plain) = json!({
            "model_name": "small",
            "litellm_params": {
                "model": "openai/small", "api_key": "sk-x", "api_base": "https://a:b@host", "timeout": 3,
                "extra_headers": {"x-key": "secret"}, "aws_access_key_id": "os.environ/X"
            }
        }) else {
            panic!()
        };
        let stored = vault.close(Table::Model, plain.clone()).unwrap();
        assert_eq!(
            stored["litellm_params"],
            json!({
                "model": "openai/small", "api_key": "sealed:x-ks", "api_base": "sealed:tsoh@b:a//:sptth", "timeout": 3,
                "extra_headers": {"x-key": "sealed:terces"}, "aws_access_key_id": "os.environ/X"
            })
        );
        assert!(vault.same(Table::Model, &stored, &plain));
        let mut other = plain.clone();
        other["litellm_params"]["api_key"] = "sk-y".into();
        assert!(!vault.same(Table::Model, &stored, &other));
        assert!(
            !vault.same(Table::Team, &stored, &plain),
            "only models hold secrets"
        );
    }
}
