//! A JSON body, read field by field. A wrong type is a 422 that names the field, as LiteLLM's is;
//! what it takes beyond the strict type (`"10"` for a number, `1` for true) is taken here too.

use super::error::{Result, missing, wrong_type, wrong_value};
use axum::body::Body;
use filters::contract::Refusal;
use filters::model::money::{MoneyError, Nanos};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The longest body, in bytes.
pub const MAX_BODY: usize = 1024 * 1024;
/// The longest id or alias, in bytes: what the ledger keeps of one.
const MAX_ID: usize = 512;

/// The members of the body. Unknown ones are ignored.
pub struct Fields(Map<String, Value>);

impl Fields {
    pub async fn read(body: Body) -> Result<Self> {
        let bytes = axum::body::to_bytes(body, MAX_BODY).await.map_err(|e| {
            if e.into_inner().is::<http_body_util::LengthLimitError>() {
                Refusal::new(
                    413,
                    "invalid_request_error",
                    format!("The body is larger than {MAX_BODY} bytes."),
                )
            } else {
                Refusal::bad_request("The body ended before it was complete.").param("request_body")
            }
        })?;
        // serde_json stops at a depth of 128.
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Refusal::bad_request(format!("Invalid JSON payload: {e}.")).param("request_body"))?;
        match value {
            Value::Object(map) => {
                if let Some((name, _)) = map.iter().find(|(n, v)| n.contains('\0') || holds_nul(v)) {
                    let message = "A text of this request holds a NUL character, which cannot be stored.";
                    return Err(wrong_value(&name.replace('\0', ""), message).into());
                }
                Ok(Fields(map))
            }
            _ => Err(wrong_type("request_body", "a JSON object").into()),
        }
    }

    /// The field is there, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The field is there and not null.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(wrong_type(name, "a string").into()),
        }
    }

    /// An id or an alias: short, one line; empty is absent.
    pub fn id(&self, name: &str) -> Result<Option<String>> {
        let Some(text) = self.text(name)?.filter(|t| !t.is_empty()) else {
            return Ok(None);
        };
        if text.len() > MAX_ID || text.contains(char::is_control) {
            return Err(wrong_value(
                name,
                format!("'{name}' must be one line of at most {MAX_ID} bytes."),
            )
            .into());
        }
        Ok(Some(text.to_string()))
    }

    pub fn required(&self, name: &str) -> Result<&str> {
        match self.text(name)? {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(missing(name, format!("The field '{name}' is required.")).into()),
        }
    }

    /// A list of strings; absent is empty.
    pub fn texts(&self, name: &str) -> Result<Vec<String>> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(value) => texts(name, value),
        }
    }

    pub fn object(&self, name: &str) -> Result<Map<String, Value>> {
        match self.value(name) {
            None => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map.clone()),
            Some(_) => Err(wrong_type(name, "an object").into()),
        }
    }

    /// An object from strings to strings.
    pub fn names(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let expected = || wrong_type(name, "an object whose values are strings");
        let Some(value) = self.value(name) else {
            return Ok(BTreeMap::new());
        };
        value
            .as_object()
            .ok_or_else(expected)?
            .iter()
            .map(|(k, v)| match v {
                Value::String(v) => Ok((k.clone(), v.clone())),
                _ => Err(expected().into()),
            })
            .collect()
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.value(name).map(|v| flag(name, v)).transpose()
    }

    /// Dollars, not negative.
    pub fn amount(&self, name: &str) -> Result<Option<Nanos>> {
        self.value(name).map(|v| amount(name, v)).transpose()
    }
}

pub fn texts(name: &str, value: &Value) -> Result<Vec<String>> {
    let expected = || wrong_type(name, "a list of strings");
    value
        .as_array()
        .ok_or_else(expected)?
        .iter()
        .map(|v| v.as_str().map(str::to_string).ok_or_else(|| expected().into()))
        .collect()
}

pub fn flag(name: &str, value: &Value) -> Result<bool> {
    let text = match value {
        Value::Bool(b) => return Ok(*b),
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.to_ascii_lowercase(),
        _ => String::new(),
    };
    match text.as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(wrong_type(name, "true or false").into()),
    }
}

/// A whole number that is not negative.
pub fn count(name: &str, value: &Value) -> Result<u64> {
    let n = match value {
        Value::Number(n) => n.as_i64().or_else(|| {
            n.as_f64()
                .filter(|f| f.fract() == 0.0 && f.abs() < 1e15)
                .map(|f| f as i64)
        }),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    };
    let n: i64 = n.ok_or_else(|| wrong_type(name, "a whole number"))?;
    u64::try_from(n).map_err(|_| wrong_value(name, format!("'{name}' must not be negative.")).into())
}

pub fn amount(name: &str, value: &Value) -> Result<Nanos> {
    Nanos::parse_budget(value).map_err(|e| match e {
        MoneyError::NotANumber => wrong_type(name, "a number of dollars").into(),
        MoneyError::Negative | MoneyError::TooLarge => wrong_value(name, format!("'{name}': {e}.")).into(),
    })
}

/// Postgres stores no NUL, in no text and in no JSON.
fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(s) => s.contains('\0'),
        Value::Array(list) => list.iter().any(holds_nul),
        Value::Object(map) => map.iter().any(|(k, v)| k.contains('\0') || holds_nul(v)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
