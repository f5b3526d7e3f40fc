//! A call as OpenTelemetry's semantic conventions for generative AI have it: a server's span for the call,
//! and a client's span for each try. The names are still in development there, so all of them stand here.

use super::langfuse::{Flavour, Scratch};
use super::proto::{Frame, Kind, Span};
use super::story::{self, Story};
use filters::model::call::Endpoint;
use filters::model::record::Status;
use filters::model::trace::{Capture, Try};
use filters::wire::peek;
use serde_json::{Value, json};

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
    let name = &mut scratch.name;
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
    root.text("tollkeeper.model", &t.requested_model);
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
        called(name, operation, &attempt.model);
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
        attempted(&mut span, attempt);
        if let Some(parameters) = &parameters {
            asked(&mut span, &t.parameters, parameters);
        }
        span.some("gen_ai.conversation.id", story.session.as_deref());
        if n == last {
            answered(&mut span, story);
            if capture == Capture::Full {
                content(&mut span, story);
            }
        }
        span.end();
    }
}

fn attempted(span: &mut Span<'_>, attempt: &Try) {
    let d = &attempt.deployment;
    span.text("gen_ai.provider.name", provider(&d.provider));
    span.text("gen_ai.request.model", &attempt.model);
    span.text("server.address", &d.base.host);
    span.int("server.port", u64::from(d.base.port));
    span.text("tollkeeper.deployment.id", &d.id);
    if attempt.status > 0 {
        span.int("http.response.status_code", u64::from(attempt.status));
    }
    if let Some(error) = &attempt.error {
        match attempt.status {
            0 => span.text("error.type", "no_answer"),
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
    if let Some(first) = t.first_byte_micros.filter(|_| t.stream) {
        let micros = first.saturating_sub(t.started_micros);
        span.float("gen_ai.response.time_to_first_chunk", micros as f64 / 1e6);
    }
}

/// What was said, in the conventions' own shape where it is a conversation.
fn content(span: &mut Span<'_>, story: &Story<'_>) {
    if let Some(input) = &story.input {
        let messages = serde_json::from_str::<Value>(input)
            .ok()
            .and_then(|v| v.get("messages").map(messages));
        span.text(
            "gen_ai.input.messages",
            &messages.unwrap_or_else(|| plain("user", input)),
        );
    }
    if let Some(output) = &story.output {
        let message = serde_json::from_str::<Value>(output)
            .ok()
            .filter(Value::is_object);
        let said = message.map(|m| messages(&Value::Array(vec![m])));
        span.text(
            "gen_ai.output.messages",
            &said.unwrap_or_else(|| plain("assistant", output)),
        );
    }
}

fn plain(role: &str, text: &str) -> String {
    json!([{"role": role, "parts": [{"type": "text", "content": text}]}]).to_string()
}

/// OpenAI's messages as `{role, parts}`.
fn messages(given: &Value) -> String {
    let given = given.as_array().map(Vec::as_slice).unwrap_or_default();
    let all = given.iter().take(MOST_MESSAGES).map(|m| {
        let role = m.get("role").and_then(Value::as_str).unwrap_or("user");
        let mut parts = Vec::new();
        if role == "tool" {
            parts.push(json!({"type": "tool_call_response", "id": m.get("tool_call_id"), "response": m.get("content")}));
        } else {
            match m.get("content") {
                Some(Value::String(text)) => parts.push(json!({"type": "text", "content": text})),
                Some(Value::Array(items)) => parts.extend(items.iter().map(part)),
                _ => {}
            }
        }
        for call in m.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            let function = call.get("function");
            let field = |name: &str| function.and_then(|f| f.get(name));
            parts.push(json!({"type": "tool_call", "id": call.get("id"), "name": field("name"), "arguments": field("arguments")}));
        }
        json!({"role": role, "parts": parts})
    });
    Value::from_iter(all).to_string()
}

fn part(item: &Value) -> Value {
    match item.get("text") {
        Some(text) => json!({"type": "text", "content": text}),
        None => item.clone(),
    }
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
