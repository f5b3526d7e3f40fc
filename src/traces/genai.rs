//! A call as OpenTelemetry's semantic conventions for generative AI have it: a server's span for the call,
//! and a client's span for each try. The names are still in development there, so all of them stand here.

use super::answer;
use super::langfuse::{Flavour, Scratch};
use super::proto::{Frame, Kind, Span};
use super::story::{self, Story};
use filters::model::call::Endpoint;
use filters::model::record::Status;
use filters::model::trace::{Capture, Try};
use filters::wire::peek;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use std::fmt::Write;

/// Messages of one call that are told.
const MOST_MESSAGES: usize = 1000;

/// Parameters that the conventions have a name for.
const PARAMETERS: [&str; 10] = [
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "seed",
    "n",
    "stream",
];

/// Writes the spans of a call behind those in `spans`.
pub fn write(
    flavour: &Flavour,
    capture: Capture,
    story: &Story<'_>,
    scratch: &mut Scratch,
    spans: &mut Vec<u8>,
) {
    let t = story.trace;
    let Scratch { name, json, .. } = scratch;
    let called = |name: &mut String, first: &str, second: &str| {
        name.clear();
        name.push_str(first);
        name.push(' ');
        name.push_str(second);
    };
    called(name, "POST", story::route(t.endpoint));
    let frame = Frame {
        trace: t.context.trace.0,
        span: t.root.0,
        parent: t.context.parent.map(|p| p.0),
        state: t.context.state.as_deref(),
        name,
        kind: Kind::Server,
        started_micros: t.started_micros,
        ended_micros: t.ended_micros,
    };
    let mut root = Span::begin(spans, &frame);
    root.text("http.request.method", "POST");
    root.text("http.route", story::route(t.endpoint));
    root.int("http.response.status_code", u64::from(t.http_status));
    root.some("user_agent.original", t.user_agent.as_deref());
    root.text("tollkeeper.request.id", &t.request_id);
    root.text("tollkeeper.model", &story.requested_model());
    root.some("user.id", story.user.as_deref());
    if !flavour.redact_keys {
        let key = t.caller.key();
        root.some("tollkeeper.key.alias", key.and_then(|k| k.key_alias.as_deref()));
        root.some("tollkeeper.team.id", key.and_then(|k| k.team_id.as_deref()));
    }
    if !story.tags.is_empty() {
        root.texts("tollkeeper.tags", story.tags.iter().map(AsRef::as_ref));
    }
    if let Some(nanos) = t.cost_nanos {
        root.float(
            "tollkeeper.cost.usd",
            filters::model::money::Nanos(nanos).to_dollars_f64(),
        );
    }
    if story.failed() {
        root.text("error.type", t.error_kind.unwrap_or(t.status.as_str()));
        // A caller's mistakes are not the server's errors.
        if t.http_status >= 500 || t.status == Status::Cut {
            root.failed(story.error());
        }
    }
    root.end();

    let parameters = peek::scan(t.parameters.as_bytes(), &PARAMETERS, peek::DEFAULT_DEPTH).ok();
    let last = t.tries.len().saturating_sub(1);
    for (n, attempt) in t.tries.iter().enumerate() {
        let operation = operation(t.endpoint);
        let model = story::clean(&attempt.model, story::LONGEST_NAME);
        called(name, operation, &model);
        let frame = Frame {
            trace: t.context.trace.0,
            span: attempt.span.0,
            parent: Some(t.root.0),
            state: t.context.state.as_deref(),
            name,
            kind: Kind::Client,
            started_micros: attempt.started_micros,
            ended_micros: attempt.ended_micros,
        };
        let mut span = Span::begin(spans, &frame);
        span.text("gen_ai.operation.name", operation);
        span.text("gen_ai.request.model", &model);
        attempted(&mut span, attempt, t.error_kind);
        if let Some(parameters) = &parameters {
            asked(&mut span, &t.parameters, parameters);
        }
        span.some("gen_ai.conversation.id", story.session.as_deref());
        if n == last {
            answered(&mut span, story);
            if capture == Capture::Full {
                content(&mut span, story, json);
            }
        }
        span.end();
    }
}

fn attempted(span: &mut Span<'_>, attempt: &Try, kind: Option<&'static str>) {
    let d = &attempt.deployment;
    span.text("gen_ai.provider.name", provider(&d.provider));
    span.text("server.address", &d.base.host);
    span.int("server.port", u64::from(d.base.port));
    span.text("tollkeeper.deployment.id", &d.id);
    if attempt.status > 0 {
        span.int("http.response.status_code", u64::from(attempt.status));
    }
    if let Some(error) = &attempt.error {
        match attempt.status {
            0 => span.text("error.type", "no_answer"),
            // It answered well, and then something went wrong.
            200..=299 => span.text("error.type", kind.unwrap_or("broke_off")),
            status => span.text("error.type", &status.to_string()),
        }
        span.failed(story::cut(error, 4096));
    }
}

/// The parameters of the call: `found` in `text`.
fn asked(span: &mut Span<'_>, text: &str, found: &peek::Object) {
    for field in &found.fields {
        let value = text.get(field.value.clone()).unwrap_or_default();
        match (field.name, field.kind) {
            ("stream", peek::Kind::True | peek::Kind::False) => {
                span.flag("gen_ai.request.stream", field.kind == peek::Kind::True);
            }
            (_, kind) if kind != peek::Kind::Number => {}
            ("temperature", _) => float(span, "gen_ai.request.temperature", value),
            ("top_p", _) => float(span, "gen_ai.request.top_p", value),
            ("frequency_penalty", _) => float(span, "gen_ai.request.frequency_penalty", value),
            ("presence_penalty", _) => float(span, "gen_ai.request.presence_penalty", value),
            ("max_tokens" | "max_completion_tokens" | "max_output_tokens", _) => {
                int(span, "gen_ai.request.max_tokens", value);
            }
            ("seed", _) => int(span, "gen_ai.request.seed", value),
            ("n", _) if value != "1" => int(span, "gen_ai.request.choice.count", value),
            _ => {}
        }
    }
}

fn float(span: &mut Span<'_>, name: &str, value: &str) {
    if let Some(n) = value.parse().ok().filter(|n: &f64| n.is_finite()) {
        span.float(name, n);
    }
}

fn int(span: &mut Span<'_>, name: &str, value: &str) {
    if let Ok(n) = value.parse() {
        span.int(name, n);
    }
}

fn answered(span: &mut Span<'_>, story: &Story<'_>) {
    let t = story.trace;
    if let Some(signed) = t.output.as_ref().map(|o| answer::signed(t.endpoint, o)) {
        span.some("gen_ai.response.id", signed.id.as_deref());
        span.some("gen_ai.response.model", signed.model.as_deref());
        if !signed.reasons.is_empty() {
            span.texts(
                "gen_ai.response.finish_reasons",
                signed.reasons.iter().map(String::as_str),
            );
        }
    }
    if let Some(u) = t.usage {
        span.int("gen_ai.usage.input_tokens", u.prompt_tokens);
        span.int("gen_ai.usage.output_tokens", u.completion_tokens);
        for (name, n) in [
            ("gen_ai.usage.cache_read.input_tokens", u.cached_tokens),
            (
                "gen_ai.usage.cache_creation.input_tokens",
                u.cache_creation_tokens,
            ),
            ("gen_ai.usage.reasoning.output_tokens", u.reasoning_tokens),
        ] {
            if n > 0 {
                span.int(name, n);
            }
        }
    }
    if let Some(began) = t.began_micros.filter(|_| t.stream) {
        // Of this try, and not of those before it.
        let asked = t
            .tries
            .last()
            .map_or(t.started_micros, |last| last.started_micros);
        let micros = began.saturating_sub(asked).max(0);
        span.float("gen_ai.response.time_to_first_chunk", micros as f64 / 1e6);
    }
}

/// What was said, in the conventions' own shape where it is a conversation.
fn content(span: &mut Span<'_>, story: &Story<'_>, out: &mut String) {
    for (name, role, said) in [
        ("gen_ai.input.messages", "user", &story.input),
        ("gen_ai.output.messages", "assistant", &story.output),
    ] {
        let Some(said) = said else { continue };
        out.clear();
        if role == "user" {
            match serde_json::from_str::<Asked>(said) {
                Ok(asked) => messages(&asked.messages, out),
                Err(_) => plain(role, said, out),
            }
        } else {
            match object::<Message>(said) {
                Some(message) => messages(&[message], out),
                None => plain(role, said, out),
            }
        }
        span.text(name, out);
    }
}

fn plain(role: &str, text: &str, out: &mut String) {
    let part = [Part {
        kind: "text",
        content: text,
    }];
    let _ = write!(out, "[{{\"role\":\"{role}\",\"parts\":{}}}]", json!(part));
}

#[derive(Serialize)]
struct Part<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    content: &'a str,
}

/// A question of OpenAI's, of which only the messages are read, and they no deeper than needs be: what was said
/// goes over as it is written.
#[derive(Deserialize)]
struct Asked<'a> {
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Message<'a> {
    #[serde(borrow)]
    role: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_call_id: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Item<'a> {
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ToolCall<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    function: Option<Function<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Function<'a> {
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

fn raw(value: Option<&RawValue>) -> &str {
    value.map_or("null", RawValue::get)
}

/// An object; serde would take an array for one, too.
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    let text = Some(text).filter(|t| t.starts_with('{'))?;
    serde_json::from_str(text).ok()
}

/// The elements of an array; none of anything else.
fn list<'a, T: Deserialize<'a>>(value: Option<&'a RawValue>) -> Vec<T> {
    let list = value.filter(|v| v.get().starts_with('['));
    list.and_then(|v| serde_json::from_str(v.get()).ok())
        .unwrap_or_default()
}

/// OpenAI's messages as `{role, parts}`.
fn messages(given: &[Message<'_>], out: &mut String) {
    out.push('[');
    for (n, m) in given.iter().take(MOST_MESSAGES).enumerate() {
        let role = m.role.map(RawValue::get).filter(|r| r.starts_with('"'));
        let role = role.unwrap_or("\"user\"");
        out.push_str(if n > 0 { ",{\"role\":" } else { "{\"role\":" });
        out.push_str(role);
        out.push_str(",\"parts\":[");
        let begin = out.len();
        let mut part = |pieces: &[&str]| {
            if out.len() > begin {
                out.push(',');
            }
            pieces.iter().for_each(|piece| out.push_str(piece));
        };
        let text = |part: &mut dyn FnMut(&[&str]), text: &str| {
            part(&["{\"type\":\"text\",\"content\":", text, "}"]);
        };
        if role == "\"tool\"" {
            let (id, said) = (raw(m.tool_call_id), raw(m.content));
            part(&[
                "{\"type\":\"tool_call_response\",\"id\":",
                id,
                ",\"response\":",
                said,
                "}",
            ]);
        } else if let Some(said) = m.content.map(RawValue::get).filter(|c| c.starts_with('"')) {
            text(&mut part, said);
        } else {
            for item in list::<&RawValue>(m.content) {
                match object::<Item>(item.get()) {
                    Some(Item { text: Some(said) }) => text(&mut part, said.get()),
                    _ => part(&[item.get()]),
                }
            }
        }
        for call in list::<ToolCall>(m.tool_calls) {
            let function = call.function.unwrap_or_default();
            let (id, name, arguments) = (raw(call.id), raw(function.name), raw(function.arguments));
            part(&[
                "{\"type\":\"tool_call\",\"id\":",
                id,
                ",\"name\":",
                name,
                ",\"arguments\":",
                arguments,
                "}",
            ]);
        }
        out.push_str("]}");
    }
    out.push(']');
}

fn operation(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat | Endpoint::Responses => "chat",
        Endpoint::Completions => "text_completion",
        Endpoint::Embeddings => "embeddings",
        Endpoint::Speech => "speech",
        Endpoint::Transcriptions => "transcription",
        Endpoint::Translations => "translation",
        Endpoint::Images => "image_generation",
        Endpoint::Moderations => "moderation",
        Endpoint::Rerank => "rerank",
    }
}

/// The conventions' name for a provider; LiteLLM's where they have none.
fn provider(name: &str) -> &str {
    match name {
        "bedrock" | "bedrock_converse" => "aws.bedrock",
        "azure" => "azure.ai.openai",
        "azure_ai" => "azure.ai.inference",
        "vertex_ai" => "gcp.vertex_ai",
        "gemini" => "gcp.gemini",
        "mistral" => "mistral_ai",
        "xai" => "x_ai",
        "watsonx" => "ibm.watsonx.ai",
        "moonshot" => "moonshot_ai",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[track_caller]
    fn check(asked: &str, want: &Value) {
        let mut out = String::new();
        let read: Asked = serde_json::from_str(asked).unwrap();
        messages(&read.messages, &mut out);
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), *want, "{out}");
    }

    #[test]
    fn conversations_are_told_in_parts() {
        check(
            r#"{"messages":[{"role":"system","content":"Be \"brief\"\n"},
                {"role":"user","name":"x","content":[{"type":"text","text":"Look"},{"type":"image_url","image_url":{"url":"u"}},7]},
                {"role":"assistant","content":null,"tool_calls":[
                    {"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"c2"}]},
                {"role":"tool","tool_call_id":"c1","content":"42"},{"content":"who"},{"role":7}],"tools":[]}"#,
            &json!([
                {"role": "system", "parts": [{"type": "text", "content": "Be \"brief\"\n"}]},
                {"role": "user", "parts": [{"type": "text", "content": "Look"},
                    {"type": "image_url", "image_url": {"url": "u"}}, 7]},
                {"role": "assistant", "parts": [
                    {"type": "tool_call", "id": "c1", "name": "f", "arguments": "{}"},
                    {"type": "tool_call", "id": "c2", "name": null, "arguments": null}]},
                {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "42"}]},
                {"role": "user", "parts": [{"type": "text", "content": "who"}]},
                {"role": "user", "parts": []},
            ]),
        );
        check(r#"{"messages":[]}"#, &json!([]));
        let mut out = String::new();
        plain("user", "a \"text\"", &mut out);
        let read: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            read,
            json!([{"role": "user", "parts": [{"type": "text", "content": "a \"text\""}]}])
        );
    }
}
