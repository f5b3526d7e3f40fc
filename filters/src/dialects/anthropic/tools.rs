//! Tools, the choice among them, and the tool that structured output is asked with.

use serde_json::{Map, Value, json};

use super::JSON_TOOL;
use super::media::keep_cache_control;
use crate::dialects::DialectError;

const JSON_TOOL_SAYS: &str = "Give the answer by calling this tool. Its input is the whole answer.";

/// Words of the schema language, or of OpenAI's, that Anthropic does not take at a schema's root.
const STRIPPED: &[&str] = &["$schema", "$id", "strict"];

/// OpenAI's search sizes, as a number of searches.
const SEARCHES: &[(&str, u64)] = &[("low", 1), ("medium", 5), ("high", 10)];

/// `tools` -> Anthropic's tools.
pub(super) fn read(tools: Option<Value>) -> Result<Vec<Value>, DialectError> {
    match tools {
        None => Ok(vec![]),
        Some(Value::Array(tools)) => tools
            .iter()
            .enumerate()
            .map(|(nth, given)| tool(given, &format!("tools[{nth}]")))
            .collect(),
        Some(_) => Err(DialectError::invalid("tools", "tools must be an array")),
    }
}

fn tool(given: &Value, at: &str) -> Result<Value, DialectError> {
    let given = given
        .as_object()
        .ok_or_else(|| DialectError::invalid(at, "a tool must be an object"))?;
    let kind = given.get("type").and_then(Value::as_str);
    let function = given.get("function").and_then(Value::as_object);
    let made = match (kind, function) {
        (Some("function") | None, Some(function)) => {
            let mut made = declared(function, at)?;
            keep_cache_control(function, &mut made);
            keep_cache_control(given, &mut made);
            made
        }
        // Anthropic's own tools, in OpenAI's wrapping: the name and the options move up.
        (Some(kind), Some(function)) => {
            let mut made = Map::from_iter([("type".to_owned(), kind.into())]);
            made.extend(function.get("name").map(|name| ("name".to_owned(), name.clone())));
            made.extend(
                function
                    .get("parameters")
                    .and_then(Value::as_object)
                    .cloned()
                    .unwrap_or_default(),
            );
            let mut made = Value::Object(made);
            keep_cache_control(given, &mut made);
            made
        }
        // Anthropic's own words.
        (None | Some("custom"), None) if given.contains_key("input_schema") => Value::Object(given.clone()),
        (Some("function" | "custom") | None, None) => {
            return Err(DialectError::invalid(at, "a tool needs an object in `function`"));
        }
        (Some(_), None) => Value::Object(given.clone()),
    };
    if made.get("name").and_then(Value::as_str) == Some(JSON_TOOL) {
        let reason =
            format!("the tool name {JSON_TOOL} is taken: the gateway asks for structured output with it");
        return Err(DialectError::invalid(at, reason));
    }
    Ok(made)
}

fn declared(function: &Map<String, Value>, at: &str) -> Result<Value, DialectError> {
    let name = function
        .get("name")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| DialectError::invalid(at, "a tool needs a string in `function.name`"))?;
    let schema = schema(function.get("parameters"), &format!("{at}.function.parameters"))?;
    let mut tool = Map::from_iter([("name".to_owned(), name.into())]);
    let says = function.get("description").filter(|text| text.is_string());
    tool.extend(says.map(|text| ("description".to_owned(), text.clone())));
    tool.insert("input_schema".to_owned(), schema);
    Ok(Value::Object(tool))
}

/// A schema whose root Anthropic accepts: an object with properties.
fn schema(given: Option<&Value>, at: &str) -> Result<Value, DialectError> {
    let mut schema = match given {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(schema)) => schema.clone(),
        Some(_) => return Err(DialectError::invalid(at, "a schema must be an object")),
    };
    schema.retain(|word, _| !STRIPPED.contains(&word.as_str()));
    match schema.get("type") {
        None => _ = schema.shift_insert(0, "type".to_owned(), "object".into()),
        Some(kind) if kind == "object" => {}
        Some(_) => return Err(DialectError::invalid(at, "the schema must describe an object")),
    }
    if !schema.contains_key("properties") {
        schema.insert("properties".to_owned(), json!({}));
    }
    Ok(Value::Object(schema))
}

/// OpenAI's `web_search_options` -> the search tool that Anthropic runs itself.
pub(super) fn web_search(options: &Value) -> Result<Value, DialectError> {
    let at = "web_search_options";
    let options = options
        .as_object()
        .ok_or_else(|| DialectError::invalid(at, "must be an object"))?;
    let mut tool = json!({"type": "web_search_20250305", "name": "web_search"});
    if let Some(size) = options.get("search_context_size") {
        let searches = SEARCHES
            .iter()
            .find(|(name, _)| size == name)
            .map(|(_, searches)| *searches);
        let searches = searches.ok_or_else(|| {
            DialectError::invalid(
                format!("{at}.search_context_size"),
                "must be one of low, medium, high",
            )
        })?;
        tool["max_uses"] = searches.into();
    }
    if let Some(place) = options
        .get("user_location")
        .and_then(|place| place.get("approximate")?.as_object())
    {
        let mut location = place.clone();
        location.shift_insert(0, "type".to_owned(), "approximate".into());
        tool["user_location"] = Value::Object(location);
    }
    Ok(tool)
}

/// Declarations for tools that only the history mentions: Anthropic wants every call declared.
pub(super) fn remembered(called: &[String]) -> Vec<Value> {
    let bare = |name: &String| json!({"name": name, "input_schema": {"type": "object", "properties": {}}});
    called.iter().map(bare).collect()
}

/// `tool_choice` in Anthropic's words, without the parallel switch.
pub(super) fn choice(given: Option<Value>) -> Result<Option<Value>, DialectError> {
    let Some(given) = given else { return Ok(None) };
    let named = given
        .get("function")
        .unwrap_or(&given)
        .get("name")
        .and_then(Value::as_str);
    let kind = given.as_str().or_else(|| given.get("type")?.as_str());
    Ok(Some(match (kind, named) {
        (Some("auto"), _) => json!({"type": "auto"}),
        (Some("required" | "any"), _) => json!({"type": "any"}),
        (Some("none"), _) => json!({"type": "none"}),
        (Some("function" | "tool"), Some(name)) => json!({"type": "tool", "name": name}),
        _ => {
            let reason = "tool_choice must be auto, required, none or {\"type\":\"function\",\"function\":{\"name\":…}}";
            return Err(DialectError::invalid("tool_choice", reason));
        }
    }))
}

/// `response_format` -> the tool that asks for it, or none when plain text is wanted.
pub(super) fn json_tool(format: Option<Value>) -> Result<Option<Value>, DialectError> {
    let Some(format) = format else { return Ok(None) };
    let (given, says) = match format.get("type").and_then(Value::as_str) {
        Some("text") => return Ok(None),
        Some("json_object") => (format.get("response_schema"), None),
        Some("json_schema") => {
            let wanted = format.get("json_schema").filter(|wanted| wanted.is_object());
            let wanted = wanted.ok_or_else(|| {
                DialectError::invalid("response_format.json_schema", "json_schema must be an object")
            })?;
            (
                wanted.get("schema"),
                wanted.get("description").and_then(Value::as_str),
            )
        }
        _ => {
            let reason = "type must be one of text, json_object, json_schema";
            return Err(DialectError::invalid("response_format.type", reason));
        }
    };
    let mut schema = schema(given, "response_format.json_schema.schema")?;
    if given.is_none() {
        schema["additionalProperties"] = true.into();
    }
    let says = match says {
        Some(says) => format!("{JSON_TOOL_SAYS} {says}"),
        None => JSON_TOOL_SAYS.to_owned(),
    };
    Ok(Some(
        json!({"name": JSON_TOOL, "description": says, "input_schema": schema}),
    ))
}
