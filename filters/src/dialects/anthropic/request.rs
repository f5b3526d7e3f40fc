//! Chat completion -> `POST /v1/messages`.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::messages::{self, Conversation};
use super::thinking::{self, Plan, Wishes};
use super::{JSON_TOOL, NAME, tools};
use crate::dialects::params::Asked;
use crate::dialects::{DialectError, Dressed, Params};

const PATH: &str = "/v1/messages";
const VERSION: &str = "2023-06-01";

/// Features that Anthropic switches on by header, and the types of tools that need them.
const TOOL_BETAS: &[(&str, &str)] = &[
    ("computer_20241022", "computer-use-2024-10-22"),
    ("computer_20250124", "computer-use-2025-01-24"),
    ("computer_20251124", "computer-use-2025-11-24"),
    ("code_execution_20250522", "code-execution-2025-05-22"),
    ("code_execution_20250825", "code-execution-2025-08-25"),
    ("web_fetch_20250910", "web-fetch-2025-09-10"),
    ("memory_20250818", "context-management-2025-06-27"),
];

/// The same for top-level fields.
const FIELD_BETAS: &[(&str, &str)] = &[
    ("context_management", "context-management-2025-06-27"),
    ("mcp_servers", "mcp-client-2025-04-04"),
    ("output_format", "structured-outputs-2025-11-13"),
];

/// And for files that were uploaded before.
const FILES_BETA: &str = "files-api-2025-04-14";

/// OpenAI's parameters that Anthropic has nothing like.
const UNSUPPORTED: &[&str] = &[
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "modalities",
    "n",
    "prediction",
    "presence_penalty",
    "seed",
    "store",
    "top_logprobs",
    "verbosity",
];

/// Fields that shape no answer, or that the gateway reads itself: silently left out.
const WITHOUT_EFFECT: &[&str] = &[
    "prompt_cache_key",
    "prompt_cache_retention",
    "stream",
    "stream_options",
];

/// Translates a chat completion request.
pub(super) fn dress(body: &[u8], p: &Params) -> Result<Dressed, DialectError> {
    let mut asked = Asked::read(body, p)?;
    let mut refused = unsupported(&mut asked);
    for name in WITHOUT_EFFECT.iter().chain(&["model"]) {
        asked.take(name);
    }

    let talk = messages::read(asked.take("messages"), asked.take("system"))?;
    let json_tool = tools::json_tool(asked.take("response_format"))?;
    let given_choice = tools::choice(asked.take("tool_choice"))?;
    let plan = plan(&mut asked, p, &talk, given_choice.as_ref())?;
    let (tools, choice) = toolbox(&mut asked, &talk, json_tool, given_choice, &plan)?;
    if plan.thinks() {
        refused.extend(beside_thinking(&mut asked));
    }
    let stops = stops(&mut asked, &mut refused)?;
    let tier = service_tier(&mut asked, &mut refused);
    let metadata = metadata(&mut asked)?;

    refused.retain(|name| asked.is_callers(name));
    if !refused.is_empty() && !p.drop_params {
        let note = note(&refused);
        return Err(DialectError::UnsupportedParams {
            provider: NAME,
            params: refused,
            note,
        });
    }

    let mut out = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        out.extend(value.map(|value| (name.to_owned(), value)));
    };
    put("model", Some(p.model.into()));
    put("max_tokens", Some(plan.max_tokens.into()));
    put("system", some_of(talk.system));
    put("messages", Some(talk.messages.into()));
    put("tools", some_of(tools));
    put("tool_choice", choice);
    put("thinking", plan.thinking);
    put("stop_sequences", some_of(stops));
    put("metadata", metadata);
    put("service_tier", tier);
    put("stream", p.stream.then_some(true.into()));
    // Sampling parameters, and whatever of Anthropic's own the client knows about.
    for (name, value) in asked.fields {
        out.entry(name).or_insert(value);
    }
    let headers = headers(&out);
    let body = Bytes::from(Value::Object(out).to_string());
    Ok(Dressed {
        path: PATH.to_owned(),
        headers,
        body,
    })
}

fn headers(request: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("anthropic-version", VERSION.to_owned()),
        ("content-type", "application/json".to_owned()),
    ];
    let list = |name: &str| request.get(name).and_then(Value::as_array).into_iter().flatten();
    let kind = |of: &Value| {
        of.get("type")
            .and_then(Value::as_str)
            .map(str::to_owned)
            .unwrap_or_default()
    };
    let by_field = FIELD_BETAS
        .iter()
        .filter(|(field, _)| request.contains_key(*field));
    let by_tool = TOOL_BETAS
        .iter()
        .filter(|(tool, _)| list("tools").any(|given| kind(given) == *tool));
    let mut betas: Vec<&str> = by_field.chain(by_tool).map(|(_, beta)| *beta).collect();
    if list("messages")
        .filter_map(|message| message.get("content"))
        .any(names_a_file)
    {
        betas.push(FILES_BETA);
    }
    betas.sort_unstable();
    betas.dedup();
    if !betas.is_empty() {
        headers.push(("anthropic-beta", betas.join(",")));
    }
    headers
}

/// Whether blocks, or blocks in a tool's result, point at an uploaded file.
fn names_a_file(content: &Value) -> bool {
    let blocks = content.as_array().into_iter().flatten();
    blocks.into_iter().any(|block| {
        let source = block
            .get("source")
            .and_then(|source| source.get("type")?.as_str());
        source == Some("file") || block.get("content").is_some_and(names_a_file)
    })
}

/// Why parameters are refused that Anthropic does know.
fn note(refused: &[String]) -> String {
    let any = |names: &[&str]| refused.iter().any(|name| names.contains(&name.as_str()));
    let mut reasons = Vec::new();
    if any(&["temperature", "top_p", "top_k"]) {
        reasons.push("while thinking, temperature is 1, top_p at least 0.95, and top_k unset");
    }
    if any(&["stop"]) {
        reasons.push("a stop must hold more than blanks");
    }
    match reasons.is_empty() {
        true => String::new(),
        false => format!(" ({})", reasons.join("; ")),
    }
}

fn some_of(values: Vec<Value>) -> Option<Value> {
    (!values.is_empty()).then_some(Value::Array(values))
}

/// Takes out what Anthropic has nothing like, and names what would have changed the answer.
fn unsupported(asked: &mut Asked) -> Vec<String> {
    let mut refused = Vec::new();
    for &name in UNSUPPORTED {
        if asked.take(name).is_some_and(|value| !is_default(name, &value)) {
            refused.push(name.to_owned());
        }
    }
    refused
}

/// Values that ask for what happens anyway.
fn is_default(name: &str, value: &Value) -> bool {
    match name {
        "n" => *value == 1,
        "presence_penalty" | "frequency_penalty" | "top_logprobs" => value.as_f64() == Some(0.0),
        "logprobs" | "store" => *value == false,
        "logit_bias" => value.as_object().is_some_and(Map::is_empty),
        "functions" => value.as_array().is_some_and(Vec::is_empty),
        "modalities" => *value == json!(["text"]),
        "verbosity" => value == "medium",
        _ => false,
    }
}

fn plan(
    asked: &mut Asked,
    p: &Params,
    talk: &Conversation,
    choice: Option<&Value>,
) -> Result<Plan, DialectError> {
    let newer = limit(asked, "max_completion_tokens")?;
    let older = limit(asked, "max_tokens")?;
    // Anthropic does not think when it is told which tool to call.
    let forced = choice.is_some_and(|choice| choice["type"] == "any" || choice["type"] == "tool");
    let wishes = Wishes {
        limit: newer.or(older),
        default_limit: p.max_output_tokens,
        hindered: forced || talk.thoughtless_call,
    };
    thinking::plan(asked.take("thinking"), asked.take("reasoning_effort"), wishes)
}

fn limit(asked: &mut Asked, name: &str) -> Result<Option<u64>, DialectError> {
    let Some(value) = asked.take(name) else {
        return Ok(None);
    };
    let tokens = value.as_u64().filter(|tokens| *tokens > 0);
    tokens
        .map(Some)
        .ok_or_else(|| DialectError::invalid(name, format!("{name} must be a positive whole number")))
}

/// The tools on offer and the choice among them.
fn toolbox(
    asked: &mut Asked,
    talk: &Conversation,
    json_tool: Option<Value>,
    given: Option<Value>,
    plan: &Plan,
) -> Result<(Vec<Value>, Option<Value>), DialectError> {
    let mut tools = tools::read(asked.take("tools"))?;
    if let Some(options) = asked.take("web_search_options") {
        tools.push(tools::web_search(&options)?);
    }
    let alone = tools.is_empty();
    let given_kind = given
        .as_ref()
        .and_then(|given| given["type"].as_str())
        .unwrap_or("auto")
        .to_owned();
    if alone && !matches!(given_kind.as_str(), "auto" | "none") {
        return Err(DialectError::invalid(
            "tool_choice",
            "tool_choice asks for a tool, but there are no tools",
        ));
    }
    let mut choice = given.filter(|_| !alone);
    if alone && json_tool.is_none() && !talk.called.is_empty() {
        tools = tools::remembered(&talk.called);
        choice = Some(json!({"type": "none"}));
    }
    match json_tool {
        // The client wants a call, not an answer, so there is nothing to bring into shape.
        Some(_) if matches!(given_kind.as_str(), "any" | "tool") => {}
        Some(json_tool) => {
            if alone {
                tools = tools::remembered(&talk.called);
            }
            tools.push(json_tool);
            choice = match given_kind.as_str() {
                _ if plan.thinks() => None,
                // Either one of the client's tools is called, or the answer is given.
                "auto" if !alone => Some(json!({"type": "any"})),
                _ => Some(json!({"type": "tool", "name": JSON_TOOL})),
            };
        }
        None => {}
    }
    let parallel = asked.take("parallel_tool_calls");
    if parallel == Some(Value::Bool(false)) && !tools.is_empty() {
        let choice = choice.get_or_insert_with(|| json!({"type": "auto"}));
        if choice["type"] != "none" {
            choice["disable_parallel_tool_use"] = true.into();
        }
    }
    Ok((tools, choice))
}

/// Sampling parameters that Anthropic refuses while the model thinks.
fn beside_thinking(asked: &mut Asked) -> Vec<String> {
    let number = |name: &str| asked.fields.get(name).map(|value| value.as_f64());
    let mut refused = Vec::new();
    if number("temperature").is_some_and(|value| value != Some(1.0)) {
        refused.push("temperature".to_owned());
    }
    if number("top_p").is_some_and(|value| value.is_none_or(|value| value < 0.95)) {
        refused.push("top_p".to_owned());
    }
    if asked.fields.contains_key("top_k") {
        refused.push("top_k".to_owned());
    }
    for name in &refused {
        asked.take(name);
    }
    refused
}

fn stops(asked: &mut Asked, refused: &mut Vec<String>) -> Result<Vec<Value>, DialectError> {
    let wrong = || DialectError::invalid("stop", "stop must be a string or an array of strings");
    let mut stops = match asked.take("stop") {
        None => return Ok(vec![]),
        Some(Value::String(stop)) => vec![Value::String(stop)],
        Some(Value::Array(stops)) => stops,
        Some(_) => return Err(wrong()),
    };
    if stops.iter().any(|stop| !stop.is_string()) {
        return Err(wrong());
    }
    let count = stops.len();
    // Anthropic refuses to stop at blanks.
    stops.retain(|stop| stop.as_str().is_some_and(|stop| !stop.trim().is_empty()));
    if stops.len() != count {
        refused.push("stop".to_owned());
    }
    Ok(stops)
}

fn service_tier(asked: &mut Asked, refused: &mut Vec<String>) -> Option<Value> {
    let tier = asked.take("service_tier")?;
    match tier.as_str() {
        Some("auto" | "standard_only") => Some(tier),
        Some("default") => Some("standard_only".into()),
        _ => {
            refused.push("service_tier".to_owned());
            None
        }
    }
}

/// The end user, unless that is somebody's address: Anthropic asks not to be told.
fn metadata(asked: &mut Asked) -> Result<Option<Value>, DialectError> {
    let (user, safety) = (asked.take("user"), asked.take("safety_identifier"));
    let Some(user) = user.or(safety) else {
        return Ok(None);
    };
    let user = user
        .as_str()
        .ok_or_else(|| DialectError::invalid("user", "user must be a string"))?;
    let anonymous = !user.is_empty() && !is_email(user) && !is_phone(user);
    Ok(anonymous.then(|| json!({"user_id": user})))
}

fn is_email(text: &str) -> bool {
    text.split_once('@')
        .is_some_and(|(name, host)| !name.is_empty() && host.contains('.'))
}

fn is_phone(text: &str) -> bool {
    let dialled = text.strip_prefix('+').unwrap_or(text);
    dialled.len() >= 7 && dialled.chars().all(|c| c.is_ascii_digit() || " ()-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_names() {
        assert!(is_email("a@b.example") && is_email("first.last@b.c.example"));
        assert!(!is_email("a@b") && !is_email("@b.example") && !is_email("user-1"));
        assert!(is_phone("+1 (555) 123-4567") && is_phone("5551234"));
        assert!(!is_phone("123") && !is_phone("user-5551234") && !is_phone(""));
    }
}
