//! What of a question is told: its content as it stands in the body, and its parameters.

use super::bounded;
use crate::contract::cx::{Question, Traced};
use crate::contract::{Call, Scanned};
use crate::model::trace::{Capture, Hints, Input};
use crate::wire::media;
use crate::wire::multipart::Part;
use crate::wire::peek::{self, Kind};
use memchr::memmem::Finder;
use serde_json::{Map, Value};
use smallvec::SmallVec;
use std::sync::LazyLock;

/// A parameter longer than this is not told, bytes.
const LONGEST_PARAMETER: usize = 256;
/// What the parameters of most calls take, bytes.
const PARAMETERS_ROOM: usize = 96;

/// What of a JSON body is content.
const CONTENT: [&str; 9] = [
    "messages",
    "prompt",
    "instructions",
    "input",
    "query",
    "documents",
    "tools",
    "functions",
    "tool_choice",
];

/// What of a JSON body are parameters. What stops an answer may be content, so it is not among them.
const PARAMETERS: [&str; 32] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
    "top_logprobs",
    "parallel_tool_calls",
    "reasoning_effort",
    "reasoning",
    "thinking",
    "response_format",
    "service_tier",
    "stream",
    "verbosity",
    "modalities",
    "dimensions",
    "encoding_format",
    "voice",
    "speed",
    "size",
    "quality",
    "top_n",
    "truncation",
];

/// LiteLLM's fields beside `metadata` that say where a call belongs. What headers said goes before them.
pub fn hints(call: &Call, hints: &mut Hints) {
    let Scanned::Json(object) = &call.scanned else {
        return;
    };
    for name in ["litellm_session_id", "litellm_trace_id"] {
        if let Some(text) = object.get(name).and_then(|f| peek::str_value(&call.body, f))
            && !text.is_empty()
            && !hints.iter().any(|(n, _)| **n == *name)
        {
            hints.push((name.into(), bounded(&text).into()));
        }
    }
}

/// The caller wants its words left out: LiteLLM's switch, in the body or in its `metadata`.
pub fn redacts(call: &Call) -> bool {
    const NAME: &str = "turn_off_message_logging";
    static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(NAME));
    let says = |object: &peek::Object, body: &[u8]| {
        object.get(NAME).is_some_and(|f| {
            f.kind == Kind::True
                || peek::str_value(body, f).is_some_and(|text| text.eq_ignore_ascii_case("true"))
        })
    };
    let Scanned::Json(object) = &call.scanned else {
        return false;
    };
    let given = call.metadata.as_deref().filter(|m| FINDER.find(m).is_some());
    says(object, &call.body)
        || given
            .is_some_and(|m| peek::scan(m, &[NAME], peek::DEFAULT_DEPTH).is_ok_and(|object| says(&object, m)))
}

/// The same of a form.
const FORM_PARAMETERS: [&str; 4] = ["language", "response_format", "temperature", "stream"];

/// What is told of the question, as far as it is wanted.
pub fn question(call: &Call, traced: &Traced) -> Question {
    let full = traced.wanted.capture == Capture::Full;
    Question {
        input: full.then(|| input(call, traced.max_bytes)).flatten(),
        parameters: parameters(call),
    }
}

/// Where the content stands in the body; what is said in it when that is too long to be held on to.
fn input(call: &Call, most: usize) -> Option<Input> {
    let object = match &call.scanned {
        Scanned::Json(object) => object,
        Scanned::Form { parts, .. } => {
            let asked = texts(call, parts, &["prompt"], most)?;
            return Some(Input::Short {
                text: asked,
                cut: false,
            });
        }
    };
    let mut fields = object
        .fields
        .iter()
        .filter(|f| f.kind != Kind::Null && CONTENT.contains(&f.name));
    if call.body.len() <= most {
        let fields: SmallVec<_> = fields.map(|f| (f.name, f.value.clone())).collect();
        return (!fields.is_empty()).then(|| Input::Fields {
            body: call.body.clone(),
            fields,
        });
    }
    let mut text = String::new();
    let cut = fields.any(|field| {
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push('"');
        text.push_str(field.name);
        text.push_str("\":");
        let value = call.body.get(field.value.clone()).unwrap_or_default();
        let room = most.saturating_sub(text.len());
        match std::str::from_utf8(value) {
            Ok(value) => media::write(value, room, &mut text),
            // A body that was scanned is text.
            Err(_) => true,
        }
    });
    if !cut && !text.is_empty() {
        text.push('}');
    }
    (!text.is_empty()).then_some(Input::Short { text, cut })
}

/// Fields of a form, as one JSON object; those that are longer than `most` bytes are left out. None = there are none.
fn texts(call: &Call, parts: &[Part], names: &[&str], most: usize) -> Option<String> {
    let named = parts
        .iter()
        .filter(|part| part.filename.is_none() && names.contains(&part.name.as_str()));
    let fields: Map<String, Value> = named
        .filter_map(|part| {
            let value = call.body.get(part.value.clone()).filter(|v| v.len() <= most)?;
            Some((part.name.clone(), std::str::from_utf8(value).ok()?.into()))
        })
        .collect();
    (!fields.is_empty()).then(|| Value::Object(fields).to_string())
}

/// The parameters as they stand in the body, as one JSON object.
fn parameters(call: &Call) -> String {
    if let Scanned::Form { parts, .. } = &call.scanned {
        return texts(call, parts, &FORM_PARAMETERS, LONGEST_PARAMETER).unwrap_or_else(|| "{}".into());
    }
    let mut out = String::with_capacity(PARAMETERS_ROOM);
    out.push('{');
    if let Scanned::Json(object) = &call.scanned {
        for field in &object.fields {
            let value = call.body.get(field.value.clone()).unwrap_or_default();
            if field.kind != Kind::Null
                && value.len() <= LONGEST_PARAMETER
                && PARAMETERS.contains(&field.name)
                && let Ok(value) = std::str::from_utf8(value)
            {
                if out.len() > 1 {
                    out.push(',');
                }
                out.push('"');
                out.push_str(field.name);
                out.push_str("\":");
                out.push_str(value);
            }
        }
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::call::Endpoint;
    use crate::testkit;

    #[test]
    fn what_is_said_around_a_picture_is_told() {
        let picture = "A".repeat(50_000);
        let body = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{picture}"}}}},
            {{"type":"input_audio","input_audio":{{"data":"{picture}","format":"wav"}}}},{{"type":"text","text":"What is it?"}}]}}],"tools":[]}}"#
        );
        let call = testkit::call(Endpoint::Chat, &body);
        let Some(Input::Short { text, cut: false }) = input(&call, 1_000) else {
            panic!("it is kept short");
        };
        let want = body
            .replace(&picture, "[37500 bytes]")
            .replace(r#""model":"m","#, "");
        assert_eq!(text, want);
        let Some(Input::Short { text, cut: true }) = input(&call, 100) else {
            panic!("it is cut");
        };
        assert!(
            (90..=100).contains(&text.len()) && want.starts_with(&text),
            "{text}"
        );
    }

    #[test]
    fn a_body_may_say_where_it_belongs() {
        let call = testkit::call(
            Endpoint::Chat,
            r#"{"model":"m","messages":[],"litellm_session_id":"s","litellm_trace_id":7}"#,
        );
        let mut given = Hints::new();
        hints(&call, &mut given);
        assert_eq!(given, [("litellm_session_id".into(), "s".into())]);
        hints(&call, &mut given);
        assert_eq!(given.len(), 1, "each name once");
    }

    #[test]
    fn a_caller_may_want_its_words_left_out() {
        for (more, want) in [
            (r#""turn_off_message_logging":true"#, true),
            (r#""metadata":{"turn_off_message_logging":"True"}"#, true),
            (r#""metadata":{"turn_off_message_logging":false}"#, false),
            (r#""metadata":{"x":"turn_off_message_logging"}"#, false),
            (r#""metadata":[]"#, false),
        ] {
            let body = format!(r#"{{"model":"m","messages":[],{more}}}"#);
            assert_eq!(redacts(&testkit::call(Endpoint::Chat, &body)), want, "{more}");
        }
    }

    #[test]
    fn each_kind_of_question_is_told() {
        for (endpoint, body, want) in [
            (
                Endpoint::Responses,
                r#"{"model":"m","instructions":"Be brief","input":"Hi","top_k":5}"#,
                vec!["instructions", "input"],
            ),
            (
                Endpoint::Rerank,
                r#"{"model":"m","query":"q","documents":["a"],"top_n":1}"#,
                vec!["query", "documents"],
            ),
        ] {
            let call = testkit::call(endpoint, body);
            let Some(Input::Fields { fields, .. }) = input(&call, 1_000) else {
                panic!("{body}");
            };
            let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, want);
            assert!(parameters(&call).starts_with("{\"top_"), "{}", parameters(&call));
        }
    }
}
