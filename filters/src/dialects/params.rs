//! The top level of a canonical request: what the deployment adds, what is the gateway's own.

use serde_json::{Map, Value};

use super::{DialectError, Params};

/// Fields that steer the gateway and are never sent on.
pub const GATEWAY_ONLY: &[&str] = &[
    "additional_drop_params",
    "allowed_openai_params",
    "api_base",
    "api_key",
    "base_url",
    "cache",
    "caching",
    "content_policy_fallbacks",
    "context_window_fallbacks",
    "custom_llm_provider",
    "disable_fallbacks",
    "drop_params",
    "extra_headers",
    "fallbacks",
    "guardrails",
    "langfuse_host",
    "langfuse_public_key",
    "langfuse_secret",
    "langfuse_secret_key",
    "litellm_metadata",
    "litellm_session_id",
    "litellm_trace_id",
    "max_retries",
    "metadata",
    "mock_response",
    "mock_testing_fallbacks",
    "mock_testing_rate_limit_error",
    "mock_timeout",
    "model_list",
    "no-log",
    "num_retries",
    "region",
    "request_timeout",
    "stream_timeout",
    "tags",
    "timeout",
    "ttl",
    "turn_off_message_logging",
];

/// Two spellings of one wish: a default in one must not stand beside a client's in the other.
const TWINS: &[(&str, &str)] = &[
    ("max_tokens", "max_completion_tokens"),
    ("thinking", "reasoning_effort"),
];

/// Whether `name` is the gateway's own field.
pub fn is_gateway_only(name: &str) -> bool {
    GATEWAY_ONLY.contains(&name) || name.starts_with("litellm_")
}

/// The other spelling of the same wish.
pub fn twin(name: &str) -> Option<&'static str> {
    TWINS.iter().find_map(|&(one, other)| match name {
        _ if name == one => Some(other),
        _ if name == other => Some(one),
        _ => None,
    })
}

/// The refusal of a body that is not a JSON object.
pub fn not_an_object(error: serde_json::Error) -> DialectError {
    DialectError::Invalid {
        param: None,
        message: format!("the body must be a JSON object: {error}"),
    }
}

/// A canonical request with the deployment's say in it.
pub struct Asked {
    pub fields: Map<String, Value>,
    defaulted: Vec<String>,
}

impl Asked {
    /// Reads the client's body, adds defaults, takes out what must not travel. A `null` is a field
    /// that was not sent: OpenAI's clients send them.
    pub fn read(body: &[u8], p: &Params) -> Result<Asked, DialectError> {
        let mut fields: Map<String, Value> = serde_json::from_slice(body).map_err(not_an_object)?;
        fields.retain(|name, value| !value.is_null() && !is_gateway_only(name));

        let mut defaulted = Vec::new();
        for (name, value) in p.defaults {
            let sent = fields.contains_key(name) || twin(name).is_some_and(|twin| fields.contains_key(twin));
            if !value.is_null() && !is_gateway_only(name) && !sent {
                fields.insert(name.clone(), value.clone());
                defaulted.push(name.clone());
            }
        }
        for name in p.additional_drop_params {
            fields.shift_remove(name);
        }
        Ok(Asked { fields, defaulted })
    }

    /// Takes a field out.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.shift_remove(name)
    }

    /// Whether the caller, not the configuration, sent `name`: only then is a refusal any use.
    pub fn is_callers(&self, name: &str) -> bool {
        !self.defaulted.iter().any(|defaulted| defaulted == name)
    }
}
