//! A model call as the client made it: what the gateway must know of the body. The body stays bytes.

use super::error::Refusal;
use crate::dialects::params::GATEWAY_ONLY;
use crate::model::call::Endpoint;
use crate::model::record;
use crate::wire::audio;
use crate::wire::multipart::{self, Part};
use crate::wire::peek::{self, Kind, Object, PeekError};
use bytes::Bytes;
use serde_json::Value;

/// What a scan of the body found. Ranges point into [`Call::body`].
#[derive(Debug)]
pub enum Scanned {
    Json(Box<Object>),
    Form { boundary: String, parts: Vec<Part> },
}

/// One call, parsed. Written by the driver once the body is read; filters read it.
#[derive(Debug)]
pub struct Call {
    pub endpoint: Endpoint,
    /// The model as the client named it.
    pub requested_model: String,
    /// The model to route by: the requested one, or what the key's aliases make of it. Written by
    /// the `access` filter.
    pub model: String,
    /// The client wants server-sent events.
    pub stream: bool,
    /// The client asked for `stream_options.include_usage`.
    pub include_usage: bool,
    /// `store: true`: `metadata` is then meant for the upstream.
    pub store: bool,
    /// Upper bound of the answer, tokens, of all choices together, if the client set one.
    pub max_tokens: Option<u64>,
    /// Answers asked for at once; at least 1.
    pub choices: u64,
    /// The `user` field: the end user, in LiteLLM's words.
    pub user: Option<String>,
    pub tags: Vec<String>,
    /// The `metadata` object as JSON text; bounded.
    pub metadata: Option<Bytes>,
    /// `service_tier`, for the price.
    pub service_tier: Option<String>,
    /// Characters of a text to be spoken.
    pub characters: u64,
    /// Images asked for.
    pub images: u64,
    /// Length of the uploaded audio, milliseconds: a WAV's by its header, any other's guessed from its
    /// size. 0 = there is none.
    pub audio_millis: u64,
    /// Empty once it has been let go of, see [`Call::let_go_of_body`].
    pub body: Bytes,
    pub content_type: String,
    pub scanned: Scanned,
    /// Models that the caller wants tried when this one fails, in place of those of the config. Resolved by `access`.
    pub fallbacks: Vec<String>,
    /// `disable_fallbacks`: no other model will do.
    pub no_fallbacks: bool,
    /// What was counted of a body that is gone, tokens.
    pub(super) counted: Option<u64>,
}

/// Fields that would let a caller choose where the gateway connects or what it presents there.
const ROUTING_FIELDS: &[&str] = &[
    "api_base",
    "base_url",
    "api_key",
    "user_config",
    "model_list",
    "custom_llm_provider",
    "litellm_credential_name",
];

/// Further fields whose place must be known: read here or by a filter, or removed or defaulted by a deployment.
const KNOWN_FIELDS: &[&str] = &[
    "model",
    "stream",
    "stream_options",
    "messages",
    "prompt",
    "input",
    "query",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "user",
    "store",
    "service_tier",
    "n",
    "best_of",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "logprobs",
    "top_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
    "thinking",
    "modalities",
    "audio",
    "prediction",
    "verbosity",
    "web_search_options",
    "safety_identifier",
    "prompt_cache_key",
    "functions",
    "function_call",
    // What those who watch calls are told of.
    "instructions",
    "documents",
    "top_k",
    "min_p",
    "repetition_penalty",
    "reasoning",
    "dimensions",
    "encoding_format",
    "voice",
    "speed",
    "size",
    "quality",
    "top_n",
    "truncation",
];

/// What OpenAI takes at most.
const MOST_CHOICES: u64 = 128;
const MOST_PROMPTS: u64 = 2048;

/// How deep a body may nest.
const MAX_DEPTH: usize = 100;
/// Longer `metadata` is not kept.
const MAX_METADATA: usize = 16 * 1024;
const MAX_MODEL_BYTES: usize = 256;
/// Models that a call may name for when its own fails.
const MOST_FALLBACKS: usize = 8;

/// Names in a call's `fallbacks`: a list of names, or of LiteLLM's `{"name": ["other"]}`, of which those for this model
/// count.
fn fallbacks(json: &[u8], requested: &str) -> Result<Vec<String>, Refusal> {
    let wrong = || must_be("fallbacks", "a list of models' names");
    let Ok(Value::Array(items)) = serde_json::from_slice(json) else {
        return Err(wrong());
    };
    let mut names = Vec::new();
    for item in items {
        match item {
            Value::String(name) => names.push(name),
            Value::Object(of) => {
                for (model, others) in of {
                    let others: Vec<String> = serde_json::from_value(others).map_err(|_| wrong())?;
                    names.extend(others.into_iter().filter(|_| model == requested));
                }
            }
            _ => return Err(wrong()),
        }
    }
    if names.len() > MOST_FALLBACKS || names.iter().any(|n| n.is_empty() || n.len() > MAX_MODEL_BYTES) {
        return Err(Refusal::bad_request(format!(
            "'fallbacks' names at most {MOST_FALLBACKS} models, each of 1 to {MAX_MODEL_BYTES} bytes."
        ))
        .param("fallbacks"));
    }
    Ok(names)
}

fn wanted() -> &'static [&'static str] {
    static ALL: std::sync::OnceLock<Vec<&'static str>> = std::sync::OnceLock::new();
    ALL.get_or_init(|| {
        let mut all = [KNOWN_FIELDS, GATEWAY_ONLY, ROUTING_FIELDS].concat();
        all.sort_unstable();
        all.dedup();
        all
    })
}

impl Call {
    /// Parses the body of a call. `path_model` is the model that the path names
    /// (`/engines/{model}/…`); `default_model` serves when none is named at all.
    pub fn parse(
        endpoint: Endpoint,
        body: Bytes,
        content_type: String,
        path_model: Option<&str>,
        default_model: Option<&str>,
    ) -> Result<Call, Refusal> {
        let mut call = if endpoint.is_multipart() {
            Call::form(endpoint, body, content_type)?
        } else {
            Call::json(endpoint, body, content_type)?
        };
        if call.requested_model.is_empty() {
            call.requested_model = path_model
                .or(default_model)
                .ok_or_else(|| missing("model", endpoint).code("missing_required_parameter"))?
                .to_string();
        }
        if call.requested_model.len() > MAX_MODEL_BYTES {
            return Err(
                Refusal::bad_request(format!("'model' is longer than {MAX_MODEL_BYTES} bytes."))
                    .param("model"),
            );
        }
        call.model.clone_from(&call.requested_model);
        Ok(call)
    }

    fn json(endpoint: Endpoint, body: Bytes, content_type: String) -> Result<Call, Refusal> {
        let object = peek::scan(&body, wanted(), MAX_DEPTH).map_err(bad_json)?;
        if let Some(name) = ROUTING_FIELDS.iter().find(|f| object.get(f).is_some()) {
            return Err(Refusal::bad_request(format!(
                "Rejected Request: {name} is not allowed in the request body. Upstreams come from the gateway's config alone."
            ))
            .param(*name));
        }
        // A null is a field that was not sent: OpenAI's clients send them.
        let field = |name: &str| object.get(name).filter(|f| f.kind != Kind::Null);
        let text = |name: &str| -> Result<Option<String>, Refusal> {
            field(name)
                .map(|f| {
                    peek::str_value(&body, f)
                        .map(|t| t.into_owned())
                        .ok_or_else(|| must_be(name, "a string"))
                })
                .transpose()
        };
        let flag = |name: &str| -> Result<bool, Refusal> {
            field(name).map_or(Ok(false), |f| {
                peek::bool_value(f).ok_or_else(|| must_be(name, "true or false"))
            })
        };
        let number = |name: &str| field(name).and_then(|f| peek::u64_value(&body, f));

        let requested_model = text("model")?.unwrap_or_default();
        let stream = flag("stream")?;
        // LiteLLM's and OpenAI's clients may send a stored prompt instead of an input.
        let required = endpoint.required_field();
        if field(required).is_none() && endpoint != Endpoint::Responses {
            return Err(missing(required, endpoint));
        }
        if endpoint == Endpoint::Chat && !field("messages").is_some_and(|f| f.kind == Kind::Array) {
            return Err(must_be("messages", "an array"));
        }
        let include_usage = field("stream_options")
            .filter(|f| f.kind == Kind::Object)
            .is_some_and(|f| {
                peek::scan_at(&body, f.value.clone(), &["include_usage"], MAX_DEPTH)
                    .ok()
                    .and_then(|o| o.get("include_usage").and_then(peek::bool_value))
                    .unwrap_or(false)
            });
        let metadata = ["metadata", "litellm_metadata"]
            .into_iter()
            .find_map(|n| field(n).filter(|f| f.kind == Kind::Object && f.value.len() <= MAX_METADATA))
            .map(|f| body.slice(f.value.clone()));
        let mut tags = field("tags")
            .map(|f| strings(body.get(f.value.clone()).unwrap_or_default()))
            .unwrap_or_default();
        if let Some(m) = &metadata
            && let Ok(o) = peek::scan(m, &["tags"], MAX_DEPTH)
            && let Some(f) = o.get("tags")
        {
            tags.extend(strings(m.get(f.value.clone()).unwrap_or_default()));
        }
        let characters = match (endpoint, field("input")) {
            (Endpoint::Speech, Some(f)) => peek::str_value(&body, f).map_or(0, |t| t.chars().count() as u64),
            _ => 0,
        };
        // Which of them counts is the upstream's to decide, so the largest is what may come.
        let max_tokens = ["max_completion_tokens", "max_tokens", "max_output_tokens"]
            .into_iter()
            .filter_map(number)
            .max();
        let (user, service_tier, store, n) = (
            text("user").ok().flatten(),
            text("service_tier").ok().flatten(),
            flag("store").unwrap_or(false),
            number("n"),
        );
        let choices = match endpoint {
            Endpoint::Chat => n.unwrap_or(1).clamp(1, MOST_CHOICES),
            Endpoint::Completions => {
                let each = n.max(number("best_of")).unwrap_or(1).clamp(1, MOST_CHOICES);
                each * field("prompt").map_or(1, |f| prompts(body.get(f.value.clone()).unwrap_or_default()))
            }
            _ => 1,
        };
        let fallbacks = match field("fallbacks") {
            Some(f) => fallbacks(body.get(f.value.clone()).unwrap_or_default(), &requested_model)?,
            None => Vec::new(),
        };
        let no_fallbacks = flag("disable_fallbacks")?;
        Ok(Call {
            endpoint,
            requested_model,
            model: String::new(),
            stream,
            include_usage,
            store,
            max_tokens: max_tokens.map(|m| m.saturating_mul(choices)),
            choices,
            user: user.map(named),
            tags,
            metadata,
            service_tier,
            characters,
            images: if endpoint == Endpoint::Images {
                n.unwrap_or(1).clamp(1, 100)
            } else {
                0
            },
            audio_millis: 0,
            scanned: Scanned::Json(Box::new(object)),
            body,
            content_type,
            fallbacks,
            no_fallbacks,
            counted: None,
        })
    }

    fn form(endpoint: Endpoint, body: Bytes, content_type: String) -> Result<Call, Refusal> {
        let bad =
            |e: multipart::MultipartError| Refusal::bad_request(format!("The form cannot be read: {e}"));
        let boundary = multipart::boundary(&content_type).map_err(bad)?;
        let parts = multipart::scan(&body, &boundary, multipart::Limits::default()).map_err(bad)?;
        let text = |name: &str| -> Result<Option<String>, Refusal> {
            let part = multipart::only(&parts, name).map_err(|e| bad(e).param(name))?;
            part.map(|p| {
                std::str::from_utf8(body.get(p.value.clone()).unwrap_or_default())
                    .map(|t| t.trim().to_string())
                    .map_err(|_| must_be(name, "text"))
            })
            .transpose()
        };
        let requested_model = text("model")?.unwrap_or_default();
        let stream = text("stream")?.is_some_and(|s| s.eq_ignore_ascii_case("true"));
        let user = text("user")?;
        let Some(file) = parts.iter().find(|p| p.name == "file") else {
            return Err(missing("file", endpoint));
        };
        let audio_millis = audio::millis(body.get(file.value.clone()).unwrap_or_default());
        Ok(Call {
            endpoint,
            requested_model,
            model: String::new(),
            stream,
            include_usage: false,
            store: false,
            max_tokens: None,
            choices: 1,
            user: user.map(named),
            tags: Vec::new(),
            metadata: None,
            service_tier: None,
            characters: 0,
            images: 0,
            audio_millis,
            scanned: Scanned::Form { boundary, parts },
            body,
            content_type,
            fallbacks: Vec::new(),
            no_fallbacks: false,
            counted: None,
        })
    }
}

fn missing(name: &str, endpoint: Endpoint) -> Refusal {
    Refusal::bad_request(format!(
        "{}: Missing required parameter: '{name}'.",
        endpoint.path()
    ))
    .param(name)
}

fn must_be(name: &str, what: &str) -> Refusal {
    Refusal::bad_request(format!("'{name}' must be {what}.")).param(name)
}

fn bad_json(e: PeekError) -> Refusal {
    let refusal = Refusal::bad_request(format!("Invalid JSON payload: {e}"));
    match e {
        PeekError::Duplicate(name) | PeekError::EscapedKey(name) => refusal.param(name),
        _ => refusal.param("request_body"),
    }
}

fn strings(json: &[u8]) -> Vec<String> {
    match serde_json::from_slice::<Value>(json) {
        Ok(Value::Array(items)) => items
            .into_iter()
            .take(64)
            .filter_map(|v| {
                let mut tag = v.as_str()?.to_string();
                record::clean(&mut tag, record::LONGEST_TAG);
                Some(tag)
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// An end user's name as the ledger has it.
fn named(mut user: String) -> String {
    record::clean(&mut user, record::LONGEST_NAME);
    user
}

/// Prompts of a completion: each is answered. A list of numbers is one.
fn prompts(json: &[u8]) -> u64 {
    let rest = json.trim_ascii_start().strip_prefix(b"[").unwrap_or_default();
    match rest.trim_ascii_start().first() {
        Some(b'"' | b'[') => {
            let each: Vec<serde::de::IgnoredAny> = serde_json::from_slice(json).unwrap_or_default();
            (each.len() as u64).clamp(1, MOST_PROMPTS)
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, want: Result<&str, &str>) {
        let got = Call::parse(
            Endpoint::Chat,
            Bytes::from(body.to_string()),
            "application/json".into(),
            None,
            None,
        );
        match (got, want) {
            (Ok(c), Ok(model)) => assert_eq!(c.requested_model, model, "{body}"),
            (Err(r), Err(part)) => {
                assert_eq!(r.status, 400, "{body}");
                assert!(
                    r.message.contains(part),
                    "{body}: {:?} should say {part}",
                    r.message
                );
            }
            (got, want) => panic!("{body}: got {got:?}, want {want:?}"),
        }
    }

    #[test]
    fn the_model_judged_is_the_model_sent() {
        check(r#"{"model":"a","messages":[]}"#, Ok("a"));
        check(r#"{"model":"\u0061","messages":[]}"#, Ok("a"));
        check(r#"{"model":"a","messages":[],"model":"b"}"#, Err("model"));
        check(r#"{"model":"a","messages":[],"\u006dodel":"b"}"#, Err("model"));
        check(
            r#"{"stream":true,"stream":false,"model":"a","messages":[]}"#,
            Err("stream"),
        );
        check(r#"{"model":1,"messages":[]}"#, Err("must be a string"));
        check(
            r#"{"model":"a","stream":"yes","messages":[]}"#,
            Err("true or false"),
        );
        check(r#"{"messages":[]}"#, Err("Missing required parameter: 'model'"));
        check(
            r#"{"model":null,"messages":[]}"#,
            Err("Missing required parameter: 'model'"),
        );
        check(r#"{"model":"a"}"#, Err("Missing required parameter: 'messages'"));
        check(r#"{"model":"a","messages":{}}"#, Err("must be an array"));
        check(r#"{"model":"a","messages":[NaN]}"#, Err("Invalid JSON"));
        check(r#"{"model":"a","messages":[]} {}"#, Err("Invalid JSON"));
        check("", Err("Invalid JSON"));
        check(
            &format!(
                r#"{{"model":"a","messages":{}{}}}"#,
                "[".repeat(500),
                "]".repeat(500)
            ),
            Err("Invalid JSON"),
        );
        check(
            r#"{"model":"a","messages":[],"api_base":"http://evil"}"#,
            Err("api_base is not allowed"),
        );
        check(r#"{"model":"a","messages":[{"api_base":"x"}]}"#, Ok("a"));
    }

    #[test]
    fn names_of_callers_are_the_ledgers() {
        let user = format!("\\u0000{}", "é".repeat(300));
        let body = format!(r#"{{"model":"a","messages":[],"user":"{user}","tags":["x\u0000","{user}"]}}"#);
        let c = Call::parse(Endpoint::Chat, body.into(), "application/json".into(), None, None).unwrap();
        let user = c.user.unwrap();
        assert!(
            user.len() <= record::LONGEST_NAME && user.starts_with("\u{fffd}é"),
            "{user}"
        );
        assert_eq!(c.tags[0], "x\u{fffd}");
        assert!(c.tags[1].len() <= record::LONGEST_TAG);
    }

    #[test]
    fn what_is_read_of_a_call() {
        let body = r#"{"model":"a","messages":[],"stream":true,"stream_options":{"include_usage":true},
            "max_tokens":10,"n":2,"user":"u1","metadata":{"tags":["x"],"k":1},"tags":["y"],"service_tier":"flex"}"#;
        let c = Call::parse(Endpoint::Chat, body.into(), "application/json".into(), None, None).unwrap();
        assert!(c.stream && c.include_usage);
        assert_eq!(c.max_tokens, Some(20));
        assert_eq!(c.user.as_deref(), Some("u1"));
        assert_eq!(c.tags, ["y", "x"]);
        assert_eq!(c.metadata.as_deref(), Some(&br#"{"tags":["x"],"k":1}"#[..]));
        let c = Call::parse(
            Endpoint::Chat,
            r#"{"messages":[]}"#.into(),
            String::new(),
            Some("p"),
            Some("d"),
        )
        .unwrap();
        assert_eq!(c.requested_model, "p");
    }

    #[test]
    fn a_form_with_the_file_first() {
        let form = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n\
            --b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b--\r\n";
        let parse = |f: &str| {
            Call::parse(
                Endpoint::Transcriptions,
                Bytes::from(f.to_string()),
                "multipart/form-data; boundary=b".into(),
                None,
                None,
            )
        };
        assert_eq!(parse(form).unwrap().requested_model, "whisper-1");
        let twice = form.replace(
            "--b--",
            "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nx\r\n--b--",
        );
        assert_eq!(parse(&twice).unwrap_err().status, 400);
        assert_eq!(parse("nonsense").unwrap_err().status, 400);
    }

    #[test]
    fn the_largest_limit_is_what_may_come() {
        let c = chat(r#"{"model":"a","messages":[],"max_completion_tokens":1,"max_tokens":9000}"#);
        assert_eq!(c.max_tokens, Some(9000));
        let c = chat(r#"{"model":"a","messages":[],"max_output_tokens":70,"max_tokens":null}"#);
        assert_eq!(c.max_tokens, Some(70));
    }

    fn chat(body: &str) -> Call {
        crate::testkit::call(Endpoint::Chat, body)
    }
}
