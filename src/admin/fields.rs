//! What a field holds, and a JSON body read field by field. A wrong type is a 422 that names the field,
//! as LiteLLM's is; what it takes beyond the strict type (`"10"` for a number, `1` for true) is taken
//! here too.

use super::duration;
use super::error::{Result, missing, wrong_type, wrong_value};
use crate::shared::period;
use axum::body::{Body, Bytes};
use filters::contract::Refusal;
use filters::model::money::{MoneyError, Nanos};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The longest body, in bytes.
pub const MAX_BODY: usize = 1024 * 1024;
/// The longest id or alias, in bytes: what the ledger keeps of one.
const MAX_ID: usize = 512;

/// What [`Fields::lift`] looks for.
const LIFTED: [&str; 4] = ["tags", "enforced_params", "model_rpm_limit", "model_tpm_limit"];
/// Those of them that are lists; the others are objects.
const LISTS: [&str; 2] = ["tags", "enforced_params"];

/// The most entries that a list or an object of settings has.
const MAX_ENTRIES: usize = 10_000;

/// What a field holds: how it is checked, how it looks while unset, how it is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// An id or an alias: short, one line; empty is absent.
    Id,
    /// A key as `sk-…` or as its hash.
    Key,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    Flag,
    /// A whole number, not negative.
    Count,
    /// Dollars, not negative.
    Money,
    /// A duration: `30s 20m 1h 7d 2w 1mo`.
    Period,
    /// A day or a moment, UTC.
    Time,
    /// A list of strings that is `[]` while unset.
    List,
    /// The same, null while unset.
    Texts,
    /// A list of objects, or null.
    Objects,
    /// An object that is `{}` while unset.
    Object,
    /// The same, null while unset.
    Settings,
    /// An object from strings to strings.
    Names,
    /// Model → budget: dollars, or `{"budget_limit": dollars, "time_period": duration}`.
    ModelBudgets,
    /// Model → whole number, or null.
    ModelCounts,
    /// How much more than others: above 0, at most 1000.
    Weight,
}

/// A field of a body or a parameter of a query, as it is described and checked.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
    /// A few words for the API's description.
    pub note: &'static str,
}

impl Field {
    pub const fn new(name: &'static str, kind: Kind, note: &'static str) -> Self {
        Self {
            name,
            kind,
            required: false,
            note,
        }
    }

    pub const fn required(name: &'static str, kind: Kind, note: &'static str) -> Self {
        Self {
            required: true,
            ..Self::new(name, kind, note)
        }
    }
}

impl Kind {
    /// What an answer shows while it is not set.
    pub fn unset(self) -> Value {
        match self {
            Kind::List => Value::Array(Vec::new()),
            Kind::Object | Kind::Names | Kind::ModelBudgets => Value::Object(Map::new()),
            Kind::Flag => Value::Bool(false),
            _ => Value::Null,
        }
    }

    /// The value as it is kept, or a refusal that names the field.
    pub fn read(self, name: &str, value: &Value) -> Result<Value> {
        match (self, value) {
            (Kind::Count, v) => Ok(count(name, v)?.into()),
            (Kind::Money, v) => Ok(serde_json::json!(amount(name, v)?)),
            (Kind::Flag, v) => Ok(flag(name, v)?.into()),
            (Kind::Weight, Value::Number(n)) => match n.as_f64() {
                Some(weight) if weight > 0.0 && weight <= 1000.0 => Ok(value.clone()),
                _ => Err(wrong_value(name, format!("'{name}' must be above 0 and at most 1000.")).into()),
            },
            (Kind::List | Kind::Texts, v) => Ok(texts(name, v)?.into()),
            (Kind::Id, Value::String(text)) => {
                check_line(name, text)?;
                Ok(value.clone())
            }
            (Kind::Text | Kind::Key | Kind::Time, Value::String(_)) => Ok(value.clone()),
            (Kind::Object | Kind::Settings, Value::Object(_)) => Ok(value.clone()),
            (Kind::Names, Value::Object(map)) if map.values().all(Value::is_string) => Ok(value.clone()),
            (Kind::Objects, Value::Array(list)) if list.iter().all(Value::is_object) => Ok(value.clone()),
            (Kind::Period, Value::String(text)) => match duration::span(text) {
                Ok(span) if span.is_zero() => {
                    Err(wrong_value(name, format!("'{name}' must be longer than nothing.")).into())
                }
                // What no budget counts to would never start anew.
                Ok(_) if !period::is_period(text) => {
                    Err(wrong_value(name, format!("'{name}' is too long.")).into())
                }
                Ok(_) => Ok(value.clone()),
                Err(e) => Err(wrong_value(name, format!("'{name}' {e}.")).into()),
            },
            (Kind::OneOf(words), Value::String(text)) if words.contains(&text.as_str()) => Ok(value.clone()),
            (Kind::ModelBudgets, Value::Object(map)) => {
                let entries = map
                    .iter()
                    .map(|(model, v)| Ok((model.clone(), model_budget(name, v)?)));
                Ok(Value::Object(entries.collect::<Result<_>>()?))
            }
            (Kind::ModelCounts, Value::Object(map)) => {
                let entries = map
                    .iter()
                    .map(|(model, v)| Ok((model.clone(), count(name, v)?.into())));
                Ok(Value::Object(entries.collect::<Result<_>>()?))
            }
            (kind, _) => Err(wrong_type(name, &kind.expected()).into()),
        }
    }

    /// The end of "must be …".
    fn expected(self) -> String {
        match self {
            Kind::Text | Kind::Id | Kind::Key | Kind::Period | Kind::Time => "a string".into(),
            Kind::OneOf(words) => format!("one of {}", words.join(", ")),
            Kind::Flag => "true or false".into(),
            Kind::Count => "a whole number".into(),
            Kind::Money => "a number of dollars".into(),
            Kind::List | Kind::Texts => "a list of strings".into(),
            Kind::Objects => "a list of objects".into(),
            Kind::Object | Kind::Settings => "an object".into(),
            Kind::Names => "an object whose values are strings".into(),
            Kind::ModelBudgets => "an object from models to budgets".into(),
            Kind::ModelCounts => "an object from models to whole numbers".into(),
            Kind::Weight => "a number".into(),
        }
    }
}

/// Dollars, or an amount and a period under LiteLLM's names.
fn model_budget(name: &str, value: &Value) -> Result<Value> {
    let Value::Object(map) = value else {
        return Kind::Money.read(name, value);
    };
    if !map.contains_key("budget_limit") && !map.contains_key("max_budget") {
        return Err(wrong_type(name, "an object from models to budgets with a `budget_limit`").into());
    }
    let read = |field: &str, v: &Value| match field {
        _ if v.is_null() => Ok(Value::Null),
        "budget_limit" | "max_budget" => Kind::Money.read(name, v),
        "time_period" | "budget_duration" => Kind::Period.read(name, v),
        _ => Ok(v.clone()),
    };
    let entries = map.iter().map(|(field, v)| Ok((field.clone(), read(field, v)?)));
    Ok(Value::Object(entries.collect::<Result<_>>()?))
}

/// The members of the body. Unknown ones are ignored.
#[derive(Clone)]
pub struct Fields(Map<String, Value>);

impl Fields {
    pub async fn read(body: Body) -> Result<Self> {
        Self::parse(&bytes(body).await?)
    }

    /// The same where no body at all stands for an empty object.
    pub async fn read_or_none(body: Body) -> Result<Self> {
        let bytes = bytes(body).await?;
        if bytes.is_empty() {
            return Ok(Fields(Map::new()));
        }
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        // serde_json stops at a depth of 128.
        let value: Value = serde_json::from_slice(bytes)
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

    /// Fields that come from elsewhere than a body.
    pub fn of(map: Map<String, Value>) -> Self {
        Fields(map)
    }

    /// LiteLLM keeps some fields within `metadata`, and its scripts write them there: those that are new there,
    /// and not given beside it, are put beside it. `before` is the `metadata` as it is kept.
    pub fn lift(&mut self, before: &Map<String, Value>) {
        let Some(Value::Object(metadata)) = self.value("metadata") else {
            return;
        };
        let fits = |name: &str, value: &Value| match value {
            Value::Array(list) => LISTS.contains(&name) && list.iter().all(Value::is_string),
            Value::Object(_) => !LISTS.contains(&name),
            _ => false,
        };
        let lifted: Vec<(&str, Value)> = LIFTED
            .into_iter()
            .filter_map(|name| Some((name, metadata.get(name)?)))
            .filter(|(name, value)| !self.has(name) && before.get(*name) != Some(*value) && fits(name, value))
            .map(|(name, value)| (name, value.clone()))
            .collect();
        for (name, value) in lifted {
            self.set(name, value);
        }
    }

    /// The names of all fields that are there.
    pub fn names_given(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Puts a field in, or another value in its place.
    pub fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.into(), value);
    }

    /// About how many bytes of JSON all fields are.
    pub fn size(&self) -> usize {
        serde_json::to_vec(&self.0).map_or(usize::MAX, |json| json.len())
    }

    /// The same without these fields.
    pub fn size_without(&self, names: &[&str]) -> usize {
        let rest = self.0.iter().filter(|(name, _)| !names.contains(&name.as_str()));
        rest.map(|(name, value)| {
            name.len() + serde_json::to_vec(value).map_or(usize::MAX / 2, |json| json.len())
        })
        .fold(0, usize::saturating_add)
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
        check_line(name, text)?;
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

async fn bytes(body: Body) -> Result<Bytes> {
    axum::body::to_bytes(body, MAX_BODY).await.map_err(|e| {
        let refusal = if e.into_inner().is::<http_body_util::LengthLimitError>() {
            Refusal::new(
                413,
                "invalid_request_error",
                format!("The body is larger than {MAX_BODY} bytes."),
            )
        } else {
            Refusal::bad_request("The body ended before it was complete.").param("request_body")
        };
        refusal.into()
    })
}

/// One line of at most [`MAX_ID`] bytes.
pub fn check_line(name: &str, text: &str) -> Result<()> {
    if text.len() > MAX_ID || text.contains(char::is_control) {
        let message = format!("'{name}' must be one line of at most {MAX_ID} bytes.");
        return Err(wrong_value(name, message).into());
    }
    Ok(())
}

pub fn texts(name: &str, value: &Value) -> Result<Vec<String>> {
    let expected = || wrong_type(name, "a list of strings");
    let list = value.as_array().ok_or_else(expected)?;
    if list.len() > MAX_ENTRIES {
        return Err(wrong_value(name, format!("'{name}' has more than {MAX_ENTRIES} entries.")).into());
    }
    list.iter()
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
