//! A call as Langfuse took it before it took spans: events for `POST /api/public/ingestion`. For servers
//! below 3.22 that are still run somewhere.

use super::amounts;
use super::langfuse::{Flavour, level_of};
use super::story::{self, Story};
use filters::model::money::Nanos;
use filters::model::record::Status;
use filters::model::trace::SpanId;
use serde_json::{Map, Value, json};

/// What stands behind the events of a batch.
pub fn closing(calls: u64) -> Vec<u8> {
    let metadata = json!({
        "batch_size": calls,
        "sdk_integration": "tollkeeper",
        "sdk_name": "tollkeeper",
        "sdk_version": env!("CARGO_PKG_VERSION"),
    });
    format!("],\"metadata\":{metadata}}}").into_bytes()
}

/// Writes the events of a call: a trace, and a generation for each try.
pub fn write(flavour: &Flavour, story: &Story<'_>, out: &mut Vec<u8>) {
    let t = story.trace;
    let trace_id = story.asked_trace().unwrap_or(t.context.trace).to_string();
    let call_name = format!("litellm-{}", t.endpoint.call_type());
    let content = |text: &Option<std::borrow::Cow<'_, str>>| match text {
        // What is JSON is shown as such.
        Some(text) => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_ref())),
        None => Value::Null,
    };
    let (input, output) = (content(&story.input), content(&story.output));
    let failed = story.failed();
    let version = story.given("trace_version").or_else(|| story.given("version"));
    let release = story
        .given("trace_release")
        .or_else(|| story.given("release"))
        .or_else(|| flavour.release.clone());
    let ended = story::iso(t.ended_micros);

    let trace_metadata: Map<String, Value> = story.trace_metadata().map(|(k, v)| (k, v.into())).collect();
    let name = match story.given("trace_name") {
        None if story.continues() => None,
        given => Some(given.unwrap_or_else(|| call_name.clone())),
    };
    let trace = body([
        ("id", trace_id.clone().into()),
        ("timestamp", story::iso(t.started_micros).into()),
        ("name", json!(name)),
        ("userId", json!(story.user)),
        ("sessionId", json!(story.session)),
        (
            "input",
            if story.tells_trace("input") {
                input.clone()
            } else {
                Value::Null
            },
        ),
        (
            "output",
            if failed || !story.tells_trace("output") {
                Value::Null
            } else {
                output.clone()
            },
        ),
        ("tags", json!(flavour.tags(story))),
        ("version", json!(version)),
        ("release", json!(release)),
        ("environment", json!(flavour.environment)),
        (
            "metadata",
            if trace_metadata.is_empty() {
                Value::Null
            } else {
                trace_metadata.into()
            },
        ),
    ]);
    event(out, &ended, "trace-create", t.root, trace);

    let last = t.tries.len().saturating_sub(1);
    for (n, attempt) in t.tries.iter().enumerate() {
        let is_last = n == last;
        let own = if is_last { story.asked_generation() } else { None };
        let id = own.unwrap_or(attempt.span);
        let status = match (&attempt.error, is_last) {
            (None, _) => Status::Success,
            (Some(_), true) => t.status,
            (Some(_), false) => Status::Failure,
        };
        let mut details = String::new();
        let usage = is_last && amounts::usage(t, &mut details);
        let usage: Value = if usage {
            serde_json::from_str(&details).unwrap_or_default()
        } else {
            Value::Null
        };
        let cost = is_last && amounts::cost(t, &mut details);
        let cost: Value = if cost {
            serde_json::from_str(&details).unwrap_or_default()
        } else {
            Value::Null
        };
        let counted = t.usage.filter(|_| is_last).map(|u| {
            json!({"input": u.prompt_tokens, "output": u.completion_tokens, "total": u.total_tokens(), "unit": "TOKENS",
                "totalCost": t.cost_nanos.map(Nanos)})
        });
        let parent = story.asked_parent().map(|p| p.to_string());
        let prompt = story.prompt();
        let first = t.began_micros.filter(|_| t.stream && is_last).map(story::iso);
        let generation = body([
            ("id", id.to_string().into()),
            ("traceId", trace_id.clone().into()),
            ("parentObservationId", json!(parent)),
            (
                "name",
                story
                    .given("generation_name")
                    .unwrap_or_else(|| call_name.clone())
                    .into(),
            ),
            ("startTime", story::iso(attempt.started_micros).into()),
            ("endTime", story::iso(attempt.ended_micros).into()),
            ("completionStartTime", json!(first)),
            ("model", story::clean(&attempt.model, story::LONGEST_NAME).into()),
            ("modelParameters", parameters(&t.parameters)),
            ("input", if is_last { input.clone() } else { Value::Null }),
            (
                "output",
                if attempt.error.is_none() || (is_last && t.output.is_some()) {
                    output.clone()
                } else {
                    Value::Null
                },
            ),
            ("usage", json!(counted)),
            ("usageDetails", usage),
            ("costDetails", cost),
            ("level", level_of(status).into()),
            ("statusMessage", json!(attempt.error)),
            ("version", json!(version)),
            ("environment", json!(flavour.environment)),
            ("promptName", json!(prompt.as_ref().map(|p| &p.0))),
            ("promptVersion", json!(prompt.as_ref().and_then(|p| p.1))),
            (
                "metadata",
                metadata(
                    flavour,
                    story,
                    &attempt.deployment.id,
                    &attempt.deployment.provider,
                ),
            ),
        ]);
        event(out, &ended, "generation-create", id, generation);
    }
}

/// Without what is not there.
fn body<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.into_iter().filter(|(_, v)| !v.is_null());
    Value::Object(fields.map(|(k, v)| (k.to_string(), v)).collect())
}

fn event(out: &mut Vec<u8>, at: &str, kind: &str, of: SpanId, body: Value) {
    // Behind another event. What else stands there is the batch's.
    if out.last() == Some(&b'}') {
        out.push(b',');
    }
    // Sent again, it has the same id, and the server knows it.
    let event = json!({"id": format!("{kind}-{of}"), "type": kind, "timestamp": at, "body": body});
    out.extend_from_slice(event.to_string().as_bytes());
}

/// Langfuse took plain values here, not structures.
fn parameters(json: &str) -> Value {
    let all: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
    let plain = all.into_iter().map(|(name, value)| {
        let value = match value {
            Value::Array(_) | Value::Object(_) => value.to_string().into(),
            plain => plain,
        };
        (name, value)
    });
    Value::Object(plain.collect())
}

fn metadata(flavour: &Flavour, story: &Story<'_>, deployment: &str, provider: &str) -> Value {
    let t = story.trace;
    let key = t.caller.key().filter(|_| !flavour.redact_keys);
    let whose = |name: &str, value: Option<&str>| {
        let value = value.filter(|_| !flavour.redact_keys);
        (name.to_string(), json!(value))
    };
    let given = story
        .requester_metadata()
        .map(|m| serde_json::from_str(&m).unwrap_or_else(|_| Value::from(m.as_ref())));
    let hash = t.caller.key_hash().map(|h| h.hex());
    let fields = [
        whose("user_api_key", hash.as_deref()),
        whose("user_api_key_alias", key.and_then(|k| k.key_alias.as_deref())),
        whose("user_api_key_user_id", t.caller.user_id()),
        whose("user_api_key_team_id", key.and_then(|k| k.team_id.as_deref())),
        whose(
            "user_api_key_team_alias",
            key.and_then(|k| k.team.as_ref()?.alias.as_deref()),
        ),
        whose("user_api_key_org_id", key.and_then(|k| k.organization_id())),
        whose("user_api_key_end_user_id", story.end_user.as_deref()),
        ("request_id".into(), t.request_id.clone().into()),
        ("endpoint".into(), story::route(t.endpoint).into()),
        ("model_group".into(), t.model_group.clone().into()),
        ("deployment".into(), deployment.into()),
        ("provider".into(), provider.into()),
        ("requester_metadata".into(), json!(given)),
    ];
    Value::Object(fields.into_iter().filter(|(_, v)| !v.is_null()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::batch::{Batch, Sender};
    use crate::traces::sample;
    use crate::traces::send::Format;
    use filters::model::trace::Capture;
    use std::sync::Arc;

    #[test]
    fn a_call_is_a_trace_and_its_generations() {
        let flavour = Flavour {
            environment: Some("test".into()),
            release: None,
            redact_keys: false,
            default_tags: Vec::new(),
            capture: Capture::Full,
            otlp_capture: Capture::Off,
            max_bytes: 1000,
        };
        let trace = sample::trace();
        let mut out = b"{\"of\":\"another call\"},".to_vec();
        write(&flavour, &Story::of(&trace, Capture::Full, 1000), &mut out);
        let events: Vec<Value> =
            serde_json::from_str(&format!("[{}]", String::from_utf8(out).unwrap())).unwrap();
        let events = &events[1..];
        let kinds: Vec<_> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["trace-create", "generation-create", "generation-create"]);
        let (t, failed, good) = (&events[0]["body"], &events[1]["body"], &events[2]["body"]);
        assert_eq!(
            (&t["name"], &t["userId"]),
            (&json!("litellm-acompletion"), &json!("end-user"))
        );
        assert_eq!(t["input"], serde_json::from_str::<Value>(sample::INPUT).unwrap());
        assert_eq!(
            (&failed["level"], &failed["statusMessage"]),
            (&json!("ERROR"), &json!("it answered 500"))
        );
        assert!(failed.get("output").is_none() && failed.get("usageDetails").is_none());
        assert_eq!(good["level"], "DEFAULT");
        assert_eq!(
            good["output"],
            serde_json::from_str::<Value>(sample::OUTPUT).unwrap()
        );
        assert_eq!(good["usageDetails"]["total"], 15);
        assert_eq!(good["costDetails"]["total"], 0.00051);
        assert_eq!(
            good["modelParameters"],
            json!({"temperature": 0.5, "stream": true})
        );
        assert_eq!(good["traceId"], t["id"]);
        assert!(good["completionStartTime"].is_string());

        let sender = Sender {
            resource: Vec::new(),
            compress: false,
        };
        let mut batch = Batch::new(Format::Legacy, &sender, &Arc::default(), 0);
        let story = Story::of(&trace, Capture::Full, 1000);
        (0..2).for_each(|_| batch.add(|out| write(&flavour, &story, out)));
        let (parcel, calls) = batch.pack(&sender, false);
        let read: Value = serde_json::from_slice(&parcel.bytes).unwrap();
        assert_eq!((calls, read["batch"].as_array().unwrap().len()), (2, 6));
    }
}
