//! Anthropic's whole answer -> chat completion.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{JSON_TOOL, NAME, error};
use crate::dialects::{DialectError, Params};

/// Translates a whole answer.
pub(super) fn canonical(body: &[u8], p: &Params) -> Result<Bytes, DialectError> {
    let unread = |reason: String| DialectError::Upstream {
        provider: NAME,
        reason,
    };
    let answer: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| unread(format!("not a JSON object: {error}")))?;
    if let Some(failure) = answer.get("error") {
        let (_, object) = error::object(failure);
        return Err(unread(object["message"].as_str().unwrap_or_default().to_owned()));
    }
    let blocks = answer.get("content").and_then(Value::as_array);
    let blocks = blocks.ok_or_else(|| unread("it has no content".to_owned()))?;

    let message = Message::read(blocks).map_err(|reason| unread(reason.to_owned()))?;
    let stop = answer.get("stop_reason").and_then(Value::as_str);
    let finish = finish_reason(stop, !message.calls.is_empty());
    let id = answer
        .get("id")
        .and_then(Value::as_str)
        .filter(|id| !id.is_empty());
    let mut out = json!({
        "id": id.map(str::to_owned).unwrap_or_else(|| made_id(p)),
        "object": "chat.completion",
        "created": p.created,
        "model": p.requested_model,
        "choices": [{"index": 0, "message": message.canonical(), "finish_reason": finish}],
    });
    let mut usage = Usage::default();
    if answer.get("usage").is_some_and(|given| usage.update(given)) {
        out["usage"] = usage.canonical();
    }
    Ok(Bytes::from(out.to_string()))
}

/// An id for an answer that came without.
pub(super) fn made_id(p: &Params) -> String {
    format!("chatcmpl-{}", p.id)
}

/// The parts of an answer, sorted.
#[derive(Default)]
struct Message {
    text: String,
    /// Arguments of the first [`JSON_TOOL`] call: they are the content then.
    structured: Option<String>,
    reasoning: String,
    thoughts: Vec<Value>,
    calls: Vec<Value>,
}

impl Message {
    /// Blocks that Anthropic's own tools leave behind are its business and are passed over.
    fn read(blocks: &[Value]) -> Result<Message, &'static str> {
        let mut message = Message::default();
        for block in blocks {
            let text = |name: &str| block.get(name).and_then(Value::as_str);
            match text("type") {
                Some("text") => message.text += text("text").ok_or("a text block has no text")?,
                Some("thinking") => {
                    message.reasoning += text("thinking").ok_or("a thinking block has no thoughts")?;
                    message.thoughts.push(block.clone());
                }
                Some("redacted_thinking") => message.thoughts.push(block.clone()),
                Some("tool_use") => {
                    let name = text("name").ok_or("a tool call has no name")?;
                    let input = block.get("input").filter(|input| input.is_object());
                    let arguments = input.map_or_else(|| "{}".to_owned(), Value::to_string);
                    if name == JSON_TOOL {
                        message.structured.get_or_insert(arguments);
                        continue;
                    }
                    let id = text("id").ok_or("a tool call has no id")?;
                    let function = json!({"name": name, "arguments": arguments});
                    message
                        .calls
                        .push(json!({"id": id, "type": "function", "function": function}));
                }
                Some(_) => {}
                None => return Err("a content block has no type"),
            }
        }
        Ok(message)
    }

    fn canonical(self) -> Value {
        let content = self.structured.unwrap_or(self.text);
        let mut out = json!({"role": "assistant", "content": content});
        if content_is_null(&out, &self.calls) {
            out["content"] = Value::Null;
        }
        if !self.reasoning.is_empty() {
            out["reasoning_content"] = self.reasoning.into();
        }
        if !self.thoughts.is_empty() {
            out["thinking_blocks"] = self.thoughts.into();
        }
        if !self.calls.is_empty() {
            out["tool_calls"] = self.calls.into();
        }
        out
    }
}

/// OpenAI says null for a message that only calls tools, and never for one that says nothing.
fn content_is_null(message: &Value, calls: &[Value]) -> bool {
    message["content"] == "" && !calls.is_empty()
}

/// Why the model stopped, in OpenAI's words. `called`: whether the client gets tool calls; a
/// [`JSON_TOOL`] call is not one.
pub(super) fn finish_reason(stop: Option<&str>, called: bool) -> &'static str {
    match stop {
        Some("tool_use") if called => "tool_calls",
        Some("max_tokens" | "pause_turn" | "compaction" | "model_context_window_exceeded") => "length",
        Some("refusal") => "content_filter",
        _ => "stop",
    }
}

/// Token counts as Anthropic reports them, later reports replacing earlier ones: a stream's are
/// cumulative. In tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    input: u64,
    output: u64,
    cache_creation: u64,
    cache_read: u64,
    /// How the written cache splits by life time; priced differently.
    cache_creation_split: Option<Value>,
    /// Searches and the like that Anthropic ran and bills.
    server_tools: Option<Value>,
}

impl Usage {
    /// Takes in one report; false if there is no count in it.
    pub(super) fn update(&mut self, report: &Value) -> bool {
        let mut seen = false;
        for (name, count) in [
            ("input_tokens", &mut self.input),
            ("output_tokens", &mut self.output),
            ("cache_creation_input_tokens", &mut self.cache_creation),
            ("cache_read_input_tokens", &mut self.cache_read),
        ] {
            if let Some(tokens) = report.get(name).and_then(Value::as_u64) {
                *count = tokens;
                seen = true;
            }
        }
        for (name, kept) in [
            ("cache_creation", &mut self.cache_creation_split),
            ("server_tool_use", &mut self.server_tools),
        ] {
            if let Some(value) = report.get(name).filter(|value| value.is_object()) {
                *kept = Some(value.clone());
            }
        }
        seen
    }

    /// OpenAI's count of the prompt holds everything that was read, cached or not.
    pub(super) fn canonical(&self) -> Value {
        let prompt = self
            .input
            .saturating_add(self.cache_creation)
            .saturating_add(self.cache_read);
        let mut usage = json!({
            "prompt_tokens": prompt,
            "completion_tokens": self.output,
            "total_tokens": prompt.saturating_add(self.output),
            "prompt_tokens_details": {
                "cached_tokens": self.cache_read,
                "cache_creation_tokens": self.cache_creation,
            },
            "cache_creation_input_tokens": self.cache_creation,
            "cache_read_input_tokens": self.cache_read,
        });
        if let Some(split) = &self.cache_creation_split {
            usage["prompt_tokens_details"]["cache_creation_token_details"] = split.clone();
        }
        if let Some(tools) = &self.server_tools {
            usage["server_tool_use"] = tools.clone();
        }
        usage
    }
}
