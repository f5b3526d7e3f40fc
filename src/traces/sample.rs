//! A call for the tests of this module: nothing in it is missing.

use bytes::Bytes;
use filters::model::call::Endpoint;
use filters::model::key::{Caller, KeyHash};
use filters::model::record::Status;
use filters::model::trace::{Capture, Context, Input, Output, SpanId, Trace, TraceId, Try};
use filters::model::usage::Usage;
use filters::testkit;
use std::sync::Arc;

pub const INPUT: &str = r#"{"messages":[{"role":"user","content":"Hi"}]}"#;
pub const OUTPUT: &str = r#"{"role":"assistant","content":"Hello"}"#;

/// A chat that was answered at the second try.
pub fn trace() -> Trace {
    let body = Bytes::from(format!(
        "{}{}",
        r#"{"model":"gpt-4","#,
        INPUT.trim_start_matches('{')
    ));
    let at = body.len() - r#"[{"role":"user","content":"Hi"}]}"#.len();
    let deployment = Arc::new(testkit::deployment("openai"));
    let attempt = |n: u8, error: Option<&str>| Try {
        span: SpanId([n; 8]),
        deployment: Arc::clone(&deployment),
        model: "real".into(),
        started_micros: 1_700_000_000_000_000 + i64::from(n),
        ended_micros: 1_700_000_001_000_000,
        status: if error.is_some() { 500 } else { 200 },
        error: error.map(Into::into),
    };
    Trace {
        request_id: "req-1".into(),
        context: Context {
            trace: TraceId([1; 16]),
            parent: None,
            sampled: true,
            state: None,
        },
        root: SpanId([9; 8]),
        capture: Capture::Full,
        redacted: false,
        lane: "openai".into(),
        caller: Caller::Master {
            hash: KeyHash([5; 32]),
        },
        endpoint: Endpoint::Chat,
        stream: true,
        requested_model: "gpt-4".into(),
        model_group: "gpt-4".into(),
        end_user: Some("end-user".into()),
        tags: vec!["tag".into()],
        metadata: None,
        hints: Vec::new(),
        parameters: r#"{"temperature":0.5,"stream":true}"#.into(),
        user_agent: Some("curl/8".into()),
        started_micros: 1_700_000_000_000_000,
        began_micros: Some(1_700_000_000_500_000),
        ended_micros: 1_700_000_001_000_000,
        tries: vec![attempt(2, Some("it answered 500")), attempt(3, None)],
        status: Status::Success,
        http_status: 200,
        error: None,
        error_kind: None,
        usage: Some(Usage {
            prompt_tokens: 10,
            completion_tokens: 5,
            cached_tokens: 4,
            reasoning_tokens: 2,
            ..Usage::default()
        }),
        cost_nanos: Some(510_000),
        input: Some(Input::Fields {
            fields: [("messages", at..body.len() - 1)].into_iter().collect(),
            body,
        }),
        output: Some(Output {
            bytes: Bytes::from(format!(r#"{{"choices":[{{"message":{OUTPUT}}}]}}"#)),
            event_stream: false,
            cut: false,
        }),
    }
}
