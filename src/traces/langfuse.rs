//! A call as Langfuse takes it through OpenTelemetry: one span for the call and a generation for each try,
//! complete and sent once, under the attribute names of Langfuse's own SDK.

use super::amounts;
use super::proto::{Frame, Kind, Span};
use super::story::{self, Story};
use filters::model::call::Endpoint;
use filters::model::record::Status;
use filters::model::trace::{Capture, Try};
use std::fmt::Write;

/// What is said of every call alike.
pub struct Flavour {
    pub environment: Option<String>,
    pub release: Option<String>,
    /// Nothing of whose key it was.
    pub redact_keys: bool,
    /// LiteLLM's `langfuse_default_tags`.
    pub default_tags: Vec<String>,
    /// What of a call is told.
    pub capture: Capture,
    /// The same for a receiver of OpenTelemetry.
    pub otlp_capture: Capture,
    /// Bytes of content, each way.
    pub max_bytes: usize,
}

/// Buffers that are used again.
#[derive(Default)]
pub struct Scratch {
    pub name: String,
    pub json: String,
    /// Attributes that all spans of a call have.
    same: Vec<u8>,
}

impl Flavour {
    /// Writes the spans of a call behind those in `spans`.
    pub fn write(&self, story: &Story<'_>, scratch: &mut Scratch, spans: &mut Vec<u8>) {
        let t = story.trace;
        let asked = story.asked_trace();
        let id = asked.unwrap_or(t.context.trace);
        let trace = id.0;
        // A span of another trace cannot be the one above.
        let inherited = t
            .context
            .parent
            .filter(|_| asked.is_none_or(|id| id == t.context.trace));
        let above = story.asked_parent().or(inherited);
        // Langfuse takes a trace's question and answer from its root.
        let [asks, answers] = ["input", "output"].map(|what| story.tells_trace(what));
        let is_root = above.is_none() && (asks || answers);
        let above = above.or_else(|| (!is_root).then(|| story::unknown_parent(id)));
        let parent = above.map(|id| id.0);
        let Scratch {
            name: call_name,
            json,
            same,
        } = scratch;
        call_name.clear();
        call_name.push_str("litellm-");
        call_name.push_str(t.endpoint.call_type());
        let given = story.given("trace_name");
        let trace_name = match &given {
            Some(name) => Some(name.as_str()),
            None if story.continues() => None,
            None => Some(call_name.as_str()),
        };
        same.clear();
        let mut attributes = Span::attributes(same);
        self.shared(&mut attributes, story, trace_name, json);
        self.whose(&mut attributes, story);

        let frame = Frame {
            trace,
            span: t.root.0,
            parent,
            state: t.context.state.as_deref(),
            name: trace_name.unwrap_or(call_name),
            kind: Kind::Server,
            started_micros: t.started_micros,
            ended_micros: t.ended_micros,
        };
        let mut root = Span::begin(spans, &frame);
        root.same(same);
        root.text("langfuse.observation.type", "span");
        if is_root {
            root.flag("langfuse.internal.is_app_root", true);
        }
        if asks || !is_root {
            root.some("langfuse.observation.input", story.input.as_deref());
        }
        if answers || !is_root {
            root.some("langfuse.observation.output", story.output.as_deref());
        }
        root.text("langfuse.observation.metadata.request_id", &t.request_id);
        root.text("langfuse.observation.metadata.endpoint", story::route(t.endpoint));
        root.int(
            "langfuse.observation.metadata.http_status",
            u64::from(t.http_status),
        );
        if let Some(agent) = &t.user_agent {
            root.text("langfuse.observation.metadata.user_agent", agent);
        }
        level(&mut root, t.status, story.error());
        root.end();

        let name = story.given("generation_name");
        let last = t.tries.len().saturating_sub(1);
        for (n, attempt) in t.tries.iter().enumerate() {
            let own = if n == last { story.asked_generation() } else { None };
            let frame = Frame {
                trace,
                span: own.unwrap_or(attempt.span).0,
                parent: Some(t.root.0),
                state: t.context.state.as_deref(),
                name: name.as_deref().unwrap_or(call_name),
                kind: Kind::Client,
                started_micros: attempt.started_micros,
                ended_micros: attempt.ended_micros,
            };
            let mut span = Span::begin(spans, &frame);
            span.same(same);
            self.generation(&mut span, story, attempt, n == last, json);
            span.end();
        }
    }

    /// What Langfuse wants on every span of a trace.
    fn shared(&self, span: &mut Span<'_>, story: &Story<'_>, name: Option<&str>, key: &mut String) {
        let tags = self.tags(story);
        span.some("langfuse.trace.name", name);
        span.some("user.id", story.user.as_deref());
        span.some("session.id", story.session.as_deref());
        if !tags.is_empty() {
            span.texts("langfuse.trace.tags", tags.iter().map(String::as_str));
        }
        let version = story.given("trace_version").or_else(|| story.given("version"));
        span.some("langfuse.version", version.as_deref());
        let release = story.given("trace_release").or_else(|| story.given("release"));
        span.some("langfuse.release", release.as_deref().or(self.release.as_deref()));
        span.some("langfuse.environment", self.environment.as_deref());
        for (name, value) in story.trace_metadata() {
            key.clear();
            let _ = write!(key, "langfuse.trace.metadata.{name}");
            span.text(key, &value);
        }
    }

    /// Whose call it was, under LiteLLM's names.
    fn whose(&self, span: &mut Span<'_>, story: &Story<'_>) {
        if self.redact_keys {
            return;
        }
        let caller = &story.trace.caller;
        if let Some(hash) = caller.key_hash() {
            let mut room = [0; 64];
            span.text(
                "langfuse.observation.metadata.user_api_key_hash",
                hash.hex_in(&mut room),
            );
        }
        span.some(
            "langfuse.observation.metadata.user_api_key_user_id",
            caller.user_id(),
        );
        span.some(
            "langfuse.observation.metadata.user_api_key_end_user_id",
            story.end_user.as_deref(),
        );
        let Some(key) = caller.key() else { return };
        span.some(
            "langfuse.observation.metadata.user_api_key_alias",
            key.key_alias.as_deref(),
        );
        span.some(
            "langfuse.observation.metadata.user_api_key_team_id",
            key.team_id.as_deref(),
        );
        let team = key.team.as_ref().and_then(|t| t.alias.as_deref());
        span.some("langfuse.observation.metadata.user_api_key_team_alias", team);
        span.some(
            "langfuse.observation.metadata.user_api_key_org_id",
            key.organization_id(),
        );
    }

    fn generation(
        &self,
        span: &mut Span<'_>,
        story: &Story<'_>,
        attempt: &Try,
        last: bool,
        json: &mut String,
    ) {
        let t = story.trace;
        span.text("langfuse.observation.type", observation_type(t.endpoint));
        let model = story::clean(&attempt.model, story::LONGEST_NAME);
        span.text("langfuse.observation.model.name", &model);
        if t.parameters.len() > 2 {
            span.text("langfuse.observation.model.parameters", &t.parameters);
        }
        if last {
            span.some("langfuse.observation.input", story.input.as_deref());
            // A stream that broke off had said something.
            if attempt.error.is_none() || t.output.is_some() {
                span.some("langfuse.observation.output", story.output.as_deref());
            }
            if amounts::usage(t, json) {
                span.text("langfuse.observation.usage_details", json);
            }
            if amounts::cost(t, json) {
                span.text("langfuse.observation.cost_details", json);
            }
            if let Some(first) = t.began_micros.filter(|_| t.stream) {
                json.clear();
                let _ = write!(json, "\"{}\"", story::iso(first));
                span.text("langfuse.observation.completion_start_time", json);
            }
        }
        if let Some((name, version)) = story.prompt() {
            span.text("langfuse.observation.prompt.name", &name);
            if let Some(version) = version {
                span.int("langfuse.observation.prompt.version", version);
            }
        }
        span.text("langfuse.observation.metadata.model_group", &t.model_group);
        span.text(
            "langfuse.observation.metadata.requested_model",
            &story.requested_model(),
        );
        span.text("langfuse.observation.metadata.deployment", &attempt.deployment.id);
        span.text(
            "langfuse.observation.metadata.provider",
            &attempt.deployment.provider,
        );
        if attempt.status > 0 {
            span.int(
                "langfuse.observation.metadata.upstream_status",
                u64::from(attempt.status),
            );
        }
        if let Some(metadata) = story.requester_metadata() {
            span.text("langfuse.observation.metadata.requester_metadata", &metadata);
        }
        if let Some(error) = &attempt.error {
            let status = if last { t.status } else { Status::Failure };
            level(span, status, story::cut(error, 4096));
        }
    }

    /// The call's tags, and those that are put on every call.
    pub fn tags(&self, story: &Story<'_>) -> Vec<String> {
        let mut tags: Vec<String> = story.tags.iter().map(|t| t.to_string()).collect();
        let key = story.trace.caller.key().filter(|_| !self.redact_keys);
        for name in &self.default_tags {
            let value = match name.as_str() {
                "user_api_key_alias" => key.and_then(|k| k.key_alias.as_deref()),
                "user_api_key_user_id" => key.and_then(|k| k.user_id.as_deref()),
                "user_api_key_team_id" => key.and_then(|k| k.team_id.as_deref()),
                "user_api_key_team_alias" => key.and_then(|k| k.team.as_ref()?.alias.as_deref()),
                "cache_hit" => Some("False"),
                _ => None,
            };
            if let Some(value) = value {
                tags.push(format!("{name}:{value}"));
            }
        }
        tags
    }
}

/// Langfuse's name for what an endpoint does.
pub fn observation_type(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Embeddings => "embedding",
        Endpoint::Rerank => "retriever",
        Endpoint::Moderations => "guardrail",
        _ => "generation",
    }
}

/// `ERROR` for what failed, `WARNING` where the client left.
pub fn level_of(status: Status) -> &'static str {
    match status {
        Status::Success => "DEFAULT",
        Status::Aborted => "WARNING",
        Status::Failure | Status::Cut => "ERROR",
    }
}

fn level(span: &mut Span<'_>, status: Status, why: &str) {
    let level = level_of(status);
    span.text("langfuse.observation.level", level);
    if status != Status::Success {
        span.text("langfuse.observation.status_message", why);
    }
    if level == "ERROR" {
        span.failed(why);
    }
}
