//! A canonical conversation -> system texts and turns that alternate, beginning with the user.

use serde_json::{Map, Value, json};

use super::media::{self, keep_cache_control};
use crate::dialects::DialectError;

/// What stands where Anthropic insists on a user turn and the client had none.
const PLACEHOLDER: &str = ".";

/// The conversation in Anthropic's shape, and what the rest of the request must know about it.
pub(super) struct Conversation {
    pub system: Vec<Value>,
    pub messages: Vec<Value>,
    /// Names of the tools that were called, in order, once each.
    pub called: Vec<String>,
    /// The last assistant turn called a tool and shows no thinking: Anthropic refuses to think on
    /// from there.
    pub thoughtless_call: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    User,
    Assistant,
}

struct Turn {
    role: Role,
    blocks: Vec<Value>,
}

/// Reads `messages`. `system` is Anthropic's own field, for clients that send it.
pub(super) fn read(messages: Option<Value>, system: Option<Value>) -> Result<Conversation, DialectError> {
    let Some(Value::Array(messages)) = messages else {
        return Err(DialectError::invalid(
            "messages",
            "messages is required and must be an array",
        ));
    };
    if messages.is_empty() {
        return Err(DialectError::invalid(
            "messages",
            "messages must hold at least one message",
        ));
    }
    let mut cx = Conversation {
        system: vec![],
        messages: vec![],
        called: vec![],
        thoughtless_call: false,
    };
    if let Some(system) = system {
        cx.system = texts(Some(&system), "system")?;
    }
    let mut turns: Vec<Turn> = Vec::new();
    for (nth, message) in messages.iter().enumerate() {
        let at = format!("messages[{nth}]");
        let message = message
            .as_object()
            .ok_or_else(|| DialectError::invalid(&at, "a message must be an object"))?;
        let (role, blocks) = match message.get("role").and_then(Value::as_str) {
            Some("system" | "developer") => {
                let mut blocks = texts(message.get("content"), &format!("{at}.content"))?;
                mark_last(message, &mut blocks);
                cx.system.append(&mut blocks);
                continue;
            }
            Some("user") => (Role::User, user(message, &at)?),
            Some("assistant") => (Role::Assistant, assistant(message, &at, &mut cx)?),
            Some("tool") => (Role::User, vec![tool_result(message, &at)?]),
            Some("function") => {
                let message =
                    "messages of role function are not supported; use role tool with a tool_call_id";
                return Err(DialectError::invalid(format!("{at}.role"), message));
            }
            _ => {
                let message = "role must be one of system, developer, user, assistant, tool";
                return Err(DialectError::invalid(format!("{at}.role"), message));
            }
        };
        match turns.last_mut() {
            Some(turn) if turn.role == role => turn.blocks.extend(blocks),
            // A message with nothing to say would be refused.
            _ if blocks.is_empty() => {}
            _ => turns.push(Turn { role, blocks }),
        }
    }
    if turns.first().is_none_or(|turn| turn.role == Role::Assistant) {
        turns.insert(
            0,
            Turn {
                role: Role::User,
                blocks: vec![json!({"type": "text", "text": PLACEHOLDER})],
            },
        );
    }
    finish_assistant(&mut turns, &mut cx);
    cx.messages = turns.into_iter().map(Turn::into_message).collect();
    Ok(cx)
}

impl Turn {
    fn into_message(self) -> Value {
        let role = match self.role {
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        json!({"role": role, "content": self.blocks})
    }
}

fn is(block: &Value, kinds: &[&str]) -> bool {
    block
        .get("type")
        .and_then(Value::as_str)
        .is_some_and(|kind| kinds.contains(&kind))
}

/// What only the end of the conversation decides.
fn finish_assistant(turns: &mut [Turn], cx: &mut Conversation) {
    if let Some(turn) = turns.iter().rfind(|turn| turn.role == Role::Assistant) {
        let thinks = turn
            .blocks
            .iter()
            .any(|block| is(block, &["thinking", "redacted_thinking"]));
        cx.thoughtless_call = !thinks && turn.blocks.iter().any(|block| is(block, &["tool_use"]));
    }
    // A last assistant turn is the beginning of the answer; Anthropic refuses one that ends in blanks.
    let Some(turn) = turns.last_mut().filter(|turn| turn.role == Role::Assistant) else {
        return;
    };
    if let Some(Value::String(text)) = turn.blocks.last_mut().and_then(|block| block.get_mut("text")) {
        text.truncate(text.trim_end().len());
    }
}

fn user(message: &Map<String, Value>, at: &str) -> Result<Vec<Value>, DialectError> {
    let mut blocks = content(message.get("content"), &format!("{at}.content"))?;
    mark_last(message, &mut blocks);
    Ok(blocks)
}

/// Thoughts first, then text, then calls: the order Anthropic wants them back in.
fn assistant(
    message: &Map<String, Value>,
    at: &str,
    cx: &mut Conversation,
) -> Result<Vec<Value>, DialectError> {
    let mut blocks = Vec::new();
    if let Some(Value::Array(thoughts)) = message.get("thinking_blocks") {
        let thoughts = thoughts
            .iter()
            .filter(|thought| is(thought, &["thinking", "redacted_thinking"]));
        blocks.extend(thoughts.cloned());
    }
    match message.get("content") {
        None | Some(Value::Null) => {
            let refusal = message
                .get("refusal")
                .and_then(Value::as_str)
                .filter(|text| !text.trim().is_empty());
            blocks.extend(refusal.map(|text| json!({"type": "text", "text": text})));
        }
        Some(Value::Array(parts)) => {
            for (nth, part) in parts.iter().enumerate() {
                let own = is(part, &["thinking", "redacted_thinking", "tool_use"]);
                match part
                    .get("refusal")
                    .and_then(Value::as_str)
                    .filter(|_| is(part, &["refusal"]))
                {
                    _ if own => blocks.push(part.clone()),
                    Some(blank) if blank.trim().is_empty() => {}
                    Some(text) => blocks.push(json!({"type": "text", "text": text})),
                    None => blocks.extend(media::block(part, &format!("{at}.content[{nth}]"))?),
                }
            }
        }
        other => blocks.extend(content(other, &format!("{at}.content"))?),
    }
    mark_last(message, &mut blocks);
    if message.get("function_call").is_some_and(|call| !call.is_null()) {
        let reason = "function_call is not supported; use tool_calls";
        return Err(DialectError::invalid(format!("{at}.function_call"), reason));
    }
    match message.get("tool_calls") {
        None | Some(Value::Null) => {}
        Some(Value::Array(calls)) => {
            for (nth, call) in calls.iter().enumerate() {
                blocks.push(tool_use(call, &format!("{at}.tool_calls[{nth}]"), cx)?);
            }
        }
        Some(_) => {
            return Err(DialectError::invalid(
                format!("{at}.tool_calls"),
                "tool_calls must be an array",
            ));
        }
    }
    Ok(blocks)
}

fn tool_use(call: &Value, at: &str, cx: &mut Conversation) -> Result<Value, DialectError> {
    let function = call.get("function");
    let name = function
        .and_then(|function| function.get("name"))
        .and_then(Value::as_str);
    let name =
        name.ok_or_else(|| DialectError::invalid(at, "a tool call needs a string in `function.name`"))?;
    let id = call_id(call.get("id"), &format!("{at}.id"))?;
    let arguments = function.and_then(|function| function.get("arguments"));
    let refused = || {
        let reason = "arguments must be a JSON object, written as a string";
        DialectError::invalid(format!("{at}.function.arguments"), reason)
    };
    let input = match arguments {
        None | Some(Value::Null) => json!({}),
        Some(Value::Object(input)) => Value::Object(input.clone()),
        // Anthropic wants an object even from a tool that takes nothing.
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        Some(Value::String(text)) => serde_json::from_str(text)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(refused)?,
        Some(_) => return Err(refused()),
    };
    if !cx.called.iter().any(|called| called == name) {
        cx.called.push(name.to_owned());
    }
    let mut block = json!({"type": "tool_use", "id": id, "name": name, "input": input});
    if let Some(call) = call.as_object() {
        keep_cache_control(call, &mut block);
    }
    Ok(block)
}

fn tool_result(message: &Map<String, Value>, at: &str) -> Result<Value, DialectError> {
    let id = call_id(message.get("tool_call_id"), &format!("{at}.tool_call_id"))?;
    let result = match message.get("content") {
        Some(Value::Array(parts)) => Value::Array(blocks(parts, &format!("{at}.content"))?),
        Some(Value::String(text)) => text.as_str().into(),
        None | Some(Value::Null) => "".into(),
        Some(_) => return Err(not_content(&format!("{at}.content"))),
    };
    let mut block = json!({"type": "tool_result", "tool_use_id": id, "content": result});
    keep_cache_control(message, &mut block);
    if let (Some(Value::Bool(true)), Some(block)) = (message.get("is_error"), block.as_object_mut()) {
        block.insert("is_error".to_owned(), true.into());
    }
    Ok(block)
}

/// Anthropic takes letters, digits, `_` and `-` in ids; other models made ids with more in them.
fn call_id(id: Option<&Value>, at: &str) -> Result<String, DialectError> {
    let id = id.and_then(Value::as_str).filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| DialectError::invalid(at, "the id of the tool call is missing"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    Ok(id.chars().map(|c| if plain(c) { c } else { '_' }).collect())
}

/// A content that may hold anything a user may send.
fn content(content: Option<&Value>, at: &str) -> Result<Vec<Value>, DialectError> {
    match content {
        Some(Value::String(text)) if text.trim().is_empty() => Ok(vec![]),
        Some(Value::String(text)) => Ok(vec![json!({"type": "text", "text": text})]),
        Some(Value::Array(parts)) => blocks(parts, at),
        None | Some(Value::Null) => Ok(vec![]),
        Some(_) => Err(not_content(at)),
    }
}

fn blocks(parts: &[Value], at: &str) -> Result<Vec<Value>, DialectError> {
    let mut blocks = Vec::with_capacity(parts.len());
    for (nth, part) in parts.iter().enumerate() {
        blocks.extend(media::block(part, &format!("{at}[{nth}]"))?);
    }
    Ok(blocks)
}

/// A content of which only text makes sense.
fn texts(given: Option<&Value>, at: &str) -> Result<Vec<Value>, DialectError> {
    let blocks = content(given, at)?;
    match blocks.iter().all(|block| is(block, &["text"])) {
        true => Ok(blocks),
        false => Err(DialectError::invalid(at, "a system message can only hold text")),
    }
}

fn not_content(at: &str) -> DialectError {
    DialectError::invalid(at, "content must be a string or an array of parts")
}

/// A `cache_control` beside `content` means the end of that content.
fn mark_last(message: &Map<String, Value>, blocks: &mut [Value]) {
    if let Some(last) = blocks
        .last_mut()
        .filter(|block| !is(block, &["thinking", "redacted_thinking"]))
    {
        keep_cache_control(message, last);
    }
}
