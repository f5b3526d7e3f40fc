//! Whether an answer is what `/openapi.json` says of its call. Every good answer of these tests is asked.

use crate::admin::openapi;
use serde_json::Value;
use std::sync::LazyLock;

static DOCUMENT: LazyLock<Value> = LazyLock::new(openapi::document);

/// The keywords that the document uses; what else it says of a schema is for readers.
fn fits(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(pointer) = schema["$ref"].as_str() {
        let named = DOCUMENT.pointer(pointer.trim_start_matches('#'));
        return fits(named.ok_or(format!("{at}: no {pointer}"))?, value, at);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        fits(part, value, at)?;
    }
    if let Some(any) = schema["anyOf"].as_array()
        && any.iter().all(|one| fits(one, value, at).is_err())
    {
        return Err(format!("{at}: none of several: {value}"));
    }
    let is = |name: &Value| match name.as_str() {
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some("null") => value.is_null(),
        other => panic!("{at}: no type {other:?}"),
    };
    let right = match &schema["type"] {
        Value::Null => true,
        Value::Array(names) => names.iter().any(is),
        name => is(name),
    };
    if !right {
        return Err(format!("{at}: {} is wanted: {value}", schema["type"]));
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        return Err(format!("{at}: one of {words:?} is wanted: {value}"));
    }
    if let Value::Object(fields) = value {
        for name in schema["required"].as_array().into_iter().flatten() {
            let name = name.as_str().unwrap();
            if !fields.contains_key(name) {
                return Err(format!("{at}: {name} is missing: {value}"));
            }
        }
        for (name, field) in fields {
            let at = format!("{at}.{name}");
            match (schema["properties"].get(name), &schema["additionalProperties"]) {
                (Some(known), _) => fits(known, field, &at)?,
                (None, Value::Object(_)) => fits(&schema["additionalProperties"], field, &at)?,
                _ => {}
            }
        }
    }
    if let Value::Array(entries) = value
        && schema["items"].is_object()
    {
        for (i, entry) in entries.iter().enumerate() {
            fits(&schema["items"], entry, &format!("{at}[{i}]"))?;
        }
    }
    Ok(())
}

fn is_pattern_of(pattern: &str, path: &str) -> bool {
    let (want, got): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), path.split('/').collect());
    want.len() == got.len() && want.iter().zip(got).all(|(w, g)| w.starts_with('{') || *w == g)
}

/// Panics where a good answer to `GET /path?query` is not what is said of it.
pub fn check(route: &str, answer: &Value) {
    let (method, uri) = route.split_once(' ').unwrap();
    let path = uri.split('?').next().unwrap();
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let item = paths.get(path).or_else(|| {
        let found = paths.iter().find(|(pattern, _)| is_pattern_of(pattern, path));
        found.map(|(_, item)| item)
    });
    let operation = item.map(|item| &item[method.to_ascii_lowercase()]);
    let Some(operation) = operation.filter(|o| o.is_object()) else {
        panic!("{route} is answered and not described");
    };
    let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
    if let Err(why) = fits(schema, answer, "answer") {
        panic!("{route} answers what is not said of it: {why}");
    }
}
