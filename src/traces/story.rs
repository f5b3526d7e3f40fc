//! A call as every exporter tells it: what the caller's `metadata` and headers say of the trace, in
//! LiteLLM's words, and the content within its bounds. Which attribute each part becomes is the exporters'.

use super::answer;
use filters::model::call::Endpoint;
use filters::model::pieces::CUT;
use filters::model::record::Status;
use filters::model::trace::{Capture, Input, SpanId, Trace, TraceId};
use filters::wire::media;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt::Write;

/// Longest id of a session or user, characters: Langfuse drops longer ones.
const LONGEST_ID: usize = 200;
/// Longest name of a span or a model, and longest key and value of what callers add, bytes.
pub const LONGEST_NAME: usize = 256;
const LONGEST_KEY: usize = 128;
const LONGEST_VALUE: usize = 4096;
/// Most tags, and most keys of what callers add.
const MOST_TAGS: usize = 64;
const MOST_KEYS: usize = 64;
/// What stands where content must not, as LiteLLM has it.
pub const REDACTED: &str = "redacted-by-litellm";

/// Everything about a call that has to be worked out.
pub struct Story<'t> {
    pub trace: &'t Trace,
    meta: Map<String, Value>,
    pub user: Option<Cow<'t, str>>,
    /// The request's `user`.
    pub end_user: Option<Cow<'t, str>>,
    pub session: Option<String>,
    pub tags: Vec<Cow<'t, str>>,
    pub input: Option<Cow<'t, str>>,
    pub output: Option<Cow<'t, str>>,
}

impl<'t> Story<'t> {
    /// As fully as the call may be told and `capture` wants it; `most`: bytes of content, each way.
    pub fn of(trace: &'t Trace, capture: Capture, most: usize) -> Self {
        let meta = meta(trace);
        let session = ["session_id", "litellm_session_id", "claude_code_session_id"]
            .iter()
            .find_map(|n| text(&meta, n))
            .map(|s| id(&s).into_owned());
        let end_user = trace.end_user.as_deref().map(id);
        let user = match text(&meta, "trace_user_id") {
            Some(user) => Some(Cow::Owned(id(&user).into_owned())),
            None => end_user.clone(),
        };
        // What was cut on the way here says so already.
        let room = most.saturating_add(CUT.len());
        let (mut input, mut output) = match trace.capture.min(capture) {
            Capture::Full => (
                trace.input.as_ref().map(|i| bounded(asked(i), room)),
                trace
                    .output
                    .as_ref()
                    .and_then(|o| answer::said(trace.endpoint, o))
                    .map(|o| bounded(without_media(o), room)),
            ),
            _ if trace.redacted => (Some(REDACTED.into()), Some(REDACTED.into())),
            _ => (None, None),
        };
        let masks = |name: &str| match meta.get(name) {
            Some(Value::Bool(on)) => *on,
            Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
            _ => false,
        };
        if masks("mask_input") {
            input = Some(REDACTED.into());
        }
        if masks("mask_output") {
            output = Some(REDACTED.into());
        }
        let own = trace.caller.key().map_or(&[][..], |k| &k.tags);
        let mut tags: Vec<Cow<'t, str>> = Vec::new();
        let given = own.iter().chain(&trace.tags).map(|tag| clean(tag, LONGEST_ID));
        let named = header_tags(trace);
        let named = named.iter().map(|tag| clean(tag, LONGEST_ID).into_owned().into());
        for tag in given.chain(named).take(2 * MOST_TAGS) {
            if tags.len() < MOST_TAGS && !tag.is_empty() && !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        Self {
            trace,
            meta,
            user,
            end_user,
            session,
            tags,
            input,
            output,
        }
    }

    /// A text that the caller gave under this name.
    pub fn given(&self, name: &str) -> Option<String> {
        text(&self.meta, name).map(|t| clean(&t, LONGEST_NAME).into_owned())
    }

    /// The trace id that the caller asks for in LiteLLM's words. What is not one becomes one the way
    /// Langfuse's SDK makes it of a seed, so that the caller can find it.
    pub fn asked_trace(&self) -> Option<TraceId> {
        let names = ["trace_id", "existing_trace_id", "litellm_trace_id"];
        let given = names.iter().find_map(|n| text(&self.meta, n))?;
        Some(trace_id(&given))
    }

    /// The trace is there already and keeps its name.
    pub fn continues(&self) -> bool {
        self.meta.contains_key("existing_trace_id")
    }

    /// Whether this call says what the trace's `input` or `output` is. Of a trace that is there already it does so
    /// where LiteLLM's `update_trace_keys` names that.
    pub fn tells_trace(&self, what: &str) -> bool {
        let keys = self.meta.get("update_trace_keys").and_then(Value::as_array);
        !self.continues() || keys.is_some_and(|keys| keys.iter().any(|key| key == what))
    }

    pub fn asked_parent(&self) -> Option<SpanId> {
        text(&self.meta, "parent_observation_id").map(|given| span_id(&given))
    }

    pub fn asked_generation(&self) -> Option<SpanId> {
        text(&self.meta, "generation_id").map(|given| span_id(&given))
    }

    /// A Langfuse prompt: its name and version.
    pub fn prompt(&self) -> Option<(String, Option<u64>)> {
        let prompt = self.meta.get("prompt")?.as_object()?;
        let version = prompt.get("version").and_then(Value::as_u64);
        text(prompt, "name").map(|name| (clean(&name, LONGEST_NAME).into_owned(), version))
    }

    /// The caller's `trace_metadata`: keys and values as text.
    pub fn trace_metadata(&self) -> impl Iterator<Item = (String, String)> {
        let given = self.meta.get("trace_metadata").and_then(Value::as_object);
        given
            .into_iter()
            .flatten()
            .take(MOST_KEYS)
            .filter_map(|(name, value)| {
                let value = match value {
                    Value::Null => return None,
                    Value::String(text) => clean(text, LONGEST_VALUE).into_owned(),
                    other => cut(&other.to_string(), LONGEST_VALUE).to_owned(),
                };
                let name = clean(name, LONGEST_KEY).into_owned();
                (!name.is_empty() && !is_secret(&name)).then_some((name, value))
            })
    }

    /// The model as the caller named it.
    pub fn requested_model(&self) -> Cow<'t, str> {
        clean(&self.trace.requested_model, LONGEST_NAME)
    }

    /// The caller's whole `metadata`, as it was written, but for what is a secret by its name: some send the keys
    /// of a Langfuse project along.
    pub fn requester_metadata(&self) -> Option<Cow<'t, str>> {
        let bytes = self.trace.metadata.as_deref().filter(|m| m.len() > 2)?;
        let text = if self.meta.keys().any(|name| is_secret(name)) {
            let all: Map<String, Value> = serde_json::from_slice(bytes).unwrap_or_default();
            let told = all.into_iter().filter(|(name, _)| !is_secret(name));
            Cow::Owned(Value::Object(told.collect()).to_string())
        } else {
            lossy(bytes)
        };
        Some(bounded(text, 4 * LONGEST_VALUE))
    }

    /// The call did not end as it should.
    pub fn failed(&self) -> bool {
        self.trace.status != Status::Success
    }

    /// Why, in a sentence.
    pub fn error(&self) -> &str {
        match &self.trace.error {
            Some(error) => cut(error, LONGEST_VALUE),
            None => self.trace.status.as_str(),
        }
    }
}

/// Nobody is told of what is called so.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["secret", "password", "api_key", "apikey", "authorization"]
        .iter()
        .any(|word| name.contains(word))
}

/// The caller's `metadata`, and what headers said over it.
fn meta(trace: &Trace) -> Map<String, Value> {
    let mut meta: Map<String, Value> = trace
        .metadata
        .as_deref()
        .and_then(|m| serde_json::from_slice(m).ok())
        .unwrap_or_default();
    for (name, value) in &trace.hints {
        // A header has room for text alone, so structures come as JSON.
        let json = Some(value).filter(|v| v.starts_with(['{', '[']));
        let value = json
            .and_then(|v| serde_json::from_str(v).ok())
            .unwrap_or_else(|| Value::from(&**value));
        meta.insert(name.to_string(), value);
    }
    meta
}

/// Tags that a header named, as a list or with commas between.
fn header_tags(trace: &Trace) -> Vec<String> {
    let Some((_, text)) = trace.hints.iter().find(|(name, _)| **name == *"tags") else {
        return Vec::new();
    };
    serde_json::from_str(text).unwrap_or_else(|_| text.split(',').map(|tag| tag.trim().to_owned()).collect())
}

/// A text, or a number as one; nothing when it is empty or anything else.
fn text<'m>(meta: &'m Map<String, Value>, name: &str) -> Option<Cow<'m, str>> {
    if meta.is_empty() {
        return None;
    }
    match meta.get(name)? {
        Value::String(text) => (!text.trim().is_empty()).then_some(Cow::Borrowed(text.as_str())),
        Value::Number(n) => Some(Cow::Owned(n.to_string())),
        _ => None,
    }
}

/// Stands for whatever began a trace that is there already, which nobody has named.
pub fn unknown_parent(trace: TraceId) -> SpanId {
    span_id(&format!("{trace} began elsewhere"))
}

fn trace_id(given: &str) -> TraceId {
    let plain = given.trim().replace('-', "").to_ascii_lowercase();
    TraceId::from_hex(&plain).unwrap_or_else(|| {
        let mut id = [0; 16];
        for (slot, b) in id.iter_mut().zip(Sha256::digest(given.as_bytes())) {
            *slot = b;
        }
        TraceId(id)
    })
}

fn span_id(given: &str) -> SpanId {
    SpanId::from_hex(given.trim()).unwrap_or_else(|| {
        let mut id = [0; 8];
        for (slot, b) in id.iter_mut().zip(Sha256::digest(given.as_bytes())) {
            *slot = b;
        }
        SpanId(id)
    })
}

fn id(text: &str) -> Cow<'_, str> {
    match clean(text, usize::MAX) {
        whole if whole.chars().count() <= LONGEST_ID => whole,
        long => Cow::Owned(long.chars().take(LONGEST_ID).collect()),
    }
}

/// `text` up to `most` bytes, characters whole.
pub fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}

/// The same without control characters: what callers name things must not command a terminal or break a
/// line.
pub fn clean(text: &str, most: usize) -> Cow<'_, str> {
    let text = cut(text, most);
    if text.chars().any(char::is_control) {
        return Cow::Owned(text.chars().filter(|c| !c.is_control()).collect());
    }
    Cow::Borrowed(text)
}

/// Content within its bound; NUL, which no database takes, is made visible.
fn bounded(text: Cow<'_, str>, most: usize) -> Cow<'_, str> {
    let text = match memchr::memchr(0, text.as_bytes()) {
        Some(_) => Cow::Owned(text.replace('\0', "\u{fffd}")),
        None => text,
    };
    if text.len() <= most {
        return text;
    }
    let mut short = cut(&text, most).to_owned();
    let _ = write!(short, "… [{} more bytes]", text.len() - short.len());
    Cow::Owned(short)
}

/// What was asked, as one JSON object of the body's fields, byte for byte.
fn asked(input: &Input) -> Cow<'_, str> {
    match input {
        Input::Short { text, cut: false } => Cow::Borrowed(text),
        Input::Short { text, cut: true } => Cow::Owned(format!("{text}{CUT}")),
        Input::Fields { body, fields } => {
            let mut out = String::with_capacity(body.len() + 2);
            for (name, value) in fields {
                let value = body.get(value.clone()).unwrap_or_default();
                out.push(if out.is_empty() { '{' } else { ',' });
                out.push('"');
                out.push_str(name);
                out.push_str("\":");
                media::write(&lossy(value), usize::MAX, &mut out);
            }
            out.push('}');
            Cow::Owned(out)
        }
    }
}

/// The same without pictures and sounds, if there are any.
fn without_media(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.len() <= media::LONGEST {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    media::write(&text, usize::MAX, &mut out);
    if out.len() == text.len() {
        text
    } else {
        Cow::Owned(out)
    }
}

/// Bytes as text; what is none in them is replaced.
pub fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    // Nearly everything is UTF-8, and this looks at it many bytes at a time.
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// Microseconds since 1970 as ISO 8601.
pub fn iso(micros: i64) -> String {
    jiff::Timestamp::from_microsecond(micros).map_or_else(|_| String::new(), |t| format!("{t:.6}"))
}

/// The path of an endpoint as clients know it.
pub fn route(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "/v1/chat/completions",
        Endpoint::Completions => "/v1/completions",
        Endpoint::Embeddings => "/v1/embeddings",
        Endpoint::Speech => "/v1/audio/speech",
        Endpoint::Transcriptions => "/v1/audio/transcriptions",
        Endpoint::Translations => "/v1/audio/translations",
        Endpoint::Images => "/v1/images/generations",
        Endpoint::Moderations => "/v1/moderations",
        Endpoint::Rerank => "/v1/rerank",
        Endpoint::Responses => "/v1/responses",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::sample;
    use bytes::Bytes;

    fn with(metadata: &str) -> Trace {
        Trace {
            metadata: Some(Bytes::copy_from_slice(metadata.as_bytes())),
            ..sample::trace()
        }
    }

    #[test]
    fn litellms_words_are_understood() {
        let mut trace = with(
            r#"{"trace_id":"my-trace","session_id":"s","trace_user_id":7,"tags":["a"],"trace_metadata":{"k":"v","n":[1],"z":null},
                "prompt":{"name":"p","version":3},"generation_id":"00f067aa0ba902b7","parent_observation_id":"x"}"#,
        );
        trace.hints = vec![
            ("trace_user_id".into(), "u2".into()),
            ("claude_code_session_id".into(), "c".into()),
        ];
        let s = Story::of(&trace, Capture::Full, 1000);
        assert_eq!((s.session.as_deref(), s.user.as_deref()), (Some("s"), Some("u2")));
        // `create_trace_id(seed="my-trace")` of Langfuse's SDK.
        assert_eq!(
            s.asked_trace().unwrap().to_string(),
            hex(&Sha256::digest(b"my-trace")[..16])
        );
        assert_eq!(s.asked_generation().unwrap().to_string(), "00f067aa0ba902b7");
        assert_eq!(
            s.asked_parent().unwrap().to_string(),
            hex(&Sha256::digest(b"x")[..8])
        );
        let pairs: Vec<_> = s.trace_metadata().collect();
        assert_eq!(pairs, [("k".into(), "v".into()), ("n".into(), "[1]".into())]);
        assert_eq!(s.prompt(), Some(("p".into(), Some(3))));
        let uuid = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736";
        assert_eq!(trace_id(uuid).to_string(), uuid.replace('-', ""));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn headers_say_what_a_body_says() {
        let mut trace = with(r#"{"tags":["ignored: they are the call's already"]}"#);
        trace.hints = [
            ("tags", "red, blue,tag"),
            ("trace_metadata", r#"{"k":"v"}"#),
            ("mask_input", "True"),
            ("session_id", "[not json"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
        let s = Story::of(&trace, Capture::Full, 1000);
        assert_eq!(s.tags, ["tag", "red", "blue"]);
        assert_eq!(s.trace_metadata().collect::<Vec<_>>(), [("k".into(), "v".into())]);
        assert_eq!(
            (s.input.as_deref(), s.session.as_deref()),
            (Some(REDACTED), Some("[not json"))
        );
    }

    #[test]
    fn secrets_are_told_nobody() {
        let given =
            r#"{"langfuse_secret_key":"sk-lf-1","API_KEY":"sk-2","Password":"p","trace_id":"t","n":[1]}"#;
        let trace = with(given);
        let told = Story::of(&trace, Capture::Full, 1000)
            .requester_metadata()
            .unwrap()
            .into_owned();
        assert_eq!(told, r#"{"trace_id":"t","n":[1]}"#);
        let plain = with("{ \"n\": 1.50 }");
        let told = Story::of(&plain, Capture::Full, 1000)
            .requester_metadata()
            .unwrap()
            .into_owned();
        assert_eq!(told, "{ \"n\": 1.50 }", "byte for byte");
    }

    #[test]
    fn metadata_of_any_shape_is_carried_or_cut() {
        let deep = format!("{}{}", "{\"a\":".repeat(3000), "}".repeat(3000));
        let long = "é\u{0}\u{1b}".repeat(5000);
        let huge =
            serde_json::json!({"session_id": long, "trace_name": long, "trace_metadata": {&long: &long}})
                .to_string();
        for metadata in [
            "",
            "null",
            "[]",
            "{\"session_id\":{}}",
            "{\"trace_id\":[1],\"prompt\":\"x\",\"trace_metadata\":[1],\"tags\":{}}",
            "\u{1}nonsense",
            &deep,
            &huge,
        ] {
            let trace = with(metadata);
            let s = Story::of(&trace, Capture::Full, 100);
            assert!(s.session.as_ref().is_none_or(|s| s.chars().count() <= LONGEST_ID));
            assert!(
                s.given("trace_name")
                    .is_none_or(|n| n.len() <= LONGEST_NAME && !n.contains('\0'))
            );
            let (_, _, _) = (s.asked_trace(), s.prompt(), s.requester_metadata());
            assert!(
                s.trace_metadata()
                    .all(|(k, v)| k.len() <= LONGEST_KEY && v.len() <= LONGEST_VALUE)
            );
        }
    }

    #[test]
    fn content_is_bounded_and_hidden_where_asked() {
        let trace = sample::trace();
        let s = Story::of(&trace, Capture::Full, 1000);
        assert_eq!(s.input.as_deref(), Some(sample::INPUT));
        assert_eq!(s.output.as_deref(), Some(sample::OUTPUT));
        let s = Story::of(&trace, Capture::Full, 10);
        assert!(s.input.unwrap().ends_with("more bytes]"));
        let masked = with(r#"{"mask_input":true,"mask_output":"True"}"#);
        let s = Story::of(&masked, Capture::Full, 1000);
        assert_eq!(
            (s.input.as_deref(), s.output.as_deref()),
            (Some(REDACTED), Some(REDACTED))
        );
        let quiet = Trace {
            capture: Capture::Metadata,
            redacted: true,
            ..sample::trace()
        };
        assert_eq!(
            Story::of(&quiet, Capture::Full, 1000).input.as_deref(),
            Some(REDACTED)
        );
        let quiet = Trace {
            redacted: false,
            ..quiet
        };
        assert_eq!(Story::of(&quiet, Capture::Full, 1000).input, None);
        let told = Story::of(&trace, Capture::Metadata, 1000);
        assert_eq!(
            (told.input, told.output),
            (None, None),
            "another receiver wants it"
        );
    }

    #[test]
    fn times_are_written_as_everybody_reads_them() {
        assert_eq!(iso(1_700_000_000_123_456), "2023-11-14T22:13:20.123456Z");
    }
}
