//! Keeps of each call what those who watch want to know, and hands it over once the call is over.
//!
//! Next to nothing happens here while a call is on its way: bytes are kept as they come, nothing is parsed
//! and nothing is encoded. Without anybody who watches no hook is called at all. What of a question is told is in
//! `asked`, how an answer is kept in `kept`.

mod asked;
mod kept;

use crate::contract::cx::{Begun, Kept, Question, Traced};
use crate::contract::ports::{Ports, Traces, Wanted};
use crate::contract::{Call, Cx, Filter, Needs, Outcome, Result, Scanned, Upstream, Verdict};
use crate::model::call::Endpoint;
use crate::model::record::Status;
use crate::model::trace::{Capture, Context, Hints, Input, Output, PARENT_LEN, SpanId, Trace as Told, Try};
use crate::wire::peek;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, request, response};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Instant;

/// Headers that say something of the trace, and how long their values may be, bytes.
const MOST_HINTS: usize = 24;
const LONGEST_HINT: usize = 1024;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
static TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

pub struct Trace {
    traces: Arc<dyn Traces>,
    most: Capture,
    max_bytes: usize,
}

impl Trace {
    pub fn new(ports: &Ports) -> Self {
        Self {
            most: ports.traces.most(),
            max_bytes: ports.traces.max_bytes(),
            traces: Arc::clone(&ports.traces),
        }
    }
}

#[async_trait]
impl Filter for Trace {
    fn needs(&self) -> Needs {
        let any = self.most > Capture::Off;
        Needs {
            call: any,
            upstream_request: any,
            response: any,
            response_chunks: self.most == Capture::Full,
            logging: any,
            ..Needs::NONE
        }
    }

    async fn call_filter(&self, cx: &mut Cx, head: &request::Parts) -> Result<Verdict> {
        let Some(call) = &cx.call else {
            return Ok(Verdict::Continue);
        };
        let mut wanted = self.traces.wants(&cx.caller);
        if wanted.capture > Capture::Off && !(self.traces.may_hide() && hides(call)) {
            let (context, mut hints) = heard(&head.headers, &mut wanted);
            asked::hints(call, &mut hints);
            if wanted.capture == Capture::Full && asked::redacts(call) {
                (wanted.capture, wanted.redacted) = (Capture::Metadata, true);
            }
            cx.trace_id = Some(context.trace);
            cx.traced = Some(Box::new(Traced {
                wanted,
                context,
                root: SpanId::random(),
                hints,
                tries: SmallVec::new(),
                answer: Kept::default(),
                max_bytes: self.max_bytes,
                question: None,
            }));
        }
        Ok(Verdict::Continue)
    }

    async fn upstream_request_filter(&self, cx: &mut Cx, up: &mut Upstream) -> Result<()> {
        let (Some(traced), Some(deployment)) = (&mut cx.traced, &up.deployment) else {
            return Ok(());
        };
        let span = SpanId::random();
        if deployment.is_internal() {
            if let Some(value) = parent(&traced.context, span) {
                up.headers.insert(&TRACEPARENT, value);
            }
            let state = traced.context.state.as_deref().map(HeaderValue::from_str);
            if let Some(Ok(value)) = state {
                up.headers.insert(&TRACESTATE, value);
            }
        }
        traced.answer = Kept::default();
        traced.tries.push(Begun {
            span,
            deployment: Arc::clone(deployment),
            model: up.model.clone(),
            at: Instant::now(),
        });
        Ok(())
    }

    fn response_filter(&self, cx: &mut Cx, head: &mut response::Parts) -> Result<()> {
        if let Some(traced) = &cx.traced
            && let Some(value) = parent(&traced.context, traced.root)
        {
            head.headers.insert(&TRACERESPONSE, value);
        }
        Ok(())
    }

    fn response_body_filter(&self, cx: &mut Cx, chunk: &mut Bytes, end: bool) -> Result<()> {
        let Some(traced) = &mut cx.traced else {
            return Ok(());
        };
        let Some(call) = cx.call.as_ref().filter(|c| says_something(c.endpoint)) else {
            return Ok(());
        };
        if traced.wanted.capture == Capture::Full && cx.response_status < 400 {
            let events = cx.event_stream.then_some(call.endpoint);
            kept::keep(&mut traced.answer, chunk, end, events, traced.max_bytes);
        }
        Ok(())
    }

    fn logging(&self, cx: &mut Cx, outcome: &Outcome) {
        if let Some(traced) = cx.traced.take()
            && let Some(call) = &cx.call
        {
            let told = told(cx, call, *traced, outcome);
            self.traces.emit(Box::new(told));
        }
    }
}

/// The body is about to be let go of: what is told of it is taken down now. True = that is the body itself, so it
/// stays in memory anyway.
pub fn remember(cx: &mut Cx) -> bool {
    let (Some(traced), Some(call)) = (&mut cx.traced, &cx.call) else {
        return false;
    };
    let question = match traced.question.take() {
        Some(question) => question,
        None => asked::question(call, traced),
    };
    let stays = matches!(question.input, Some(Input::Fields { .. }));
    traced.question = Some(question);
    stays
}

fn parent(context: &Context, span: SpanId) -> Option<HeaderValue> {
    HeaderValue::from_str(context.parent_in(span, &mut [0; PARENT_LEN])).ok()
}

/// The caller wants nobody to watch this call.
fn hides(call: &Call) -> bool {
    match &call.scanned {
        Scanned::Json(object) => object.get("no-log").and_then(peek::bool_value) == Some(true),
        Scanned::Form { .. } => false,
    }
}

/// Answers that are text. Vectors, sounds and pictures are not kept.
fn says_something(endpoint: Endpoint) -> bool {
    !matches!(
        endpoint,
        Endpoint::Embeddings | Endpoint::Speech | Endpoint::Images
    )
}

/// What the head says of the trace.
fn heard(headers: &HeaderMap, wanted: &mut Wanted) -> (Context, Hints) {
    let (mut parent, mut state) = (None, None);
    let mut hints = Hints::new();
    for (name, value) in headers {
        let hint = match name.as_str() {
            "traceparent" => {
                // Two of them contradict each other; W3C wants a new trace then.
                parent = match parent {
                    None => Some(value.to_str().ok().and_then(Context::parse)),
                    Some(_) => Some(None),
                };
                continue;
            }
            "tracestate" => {
                state = value.to_str().ok();
                continue;
            }
            "litellm-enable-message-redaction" | "x-litellm-enable-message-redaction" => {
                if wanted.capture == Capture::Full && is_on(value) {
                    (wanted.capture, wanted.redacted) = (Capture::Metadata, true);
                }
                continue;
            }
            "x-litellm-session-id" => "litellm_session_id",
            "x-claude-code-session-id" => "claude_code_session_id",
            "x-litellm-trace-id" => "litellm_trace_id",
            name => match name.strip_prefix("langfuse_") {
                Some(name) => name,
                None => continue,
            },
        };
        if let Ok(text) = std::str::from_utf8(value.as_bytes())
            && hints.len() < MOST_HINTS
            && !text.is_empty()
            && !hints.iter().any(|(n, _)| **n == *hint)
        {
            hints.push((bounded(hint).into(), bounded(text).into()));
        }
    }
    let context = match (parent.flatten(), state) {
        (Some(context), Some(state)) => context.with_state(state),
        (Some(context), None) => context,
        (None, _) => Context::begin(),
    };
    (context, hints)
}

fn is_on(value: &HeaderValue) -> bool {
    let value = value.as_bytes().trim_ascii();
    [&b"true"[..], b"1"]
        .iter()
        .any(|on| value.eq_ignore_ascii_case(on))
}

fn bounded(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST_HINT)).unwrap_or(text)
}

/// A caller's trace goes on to one's own upstreams as it came, told of here or not; where it is told of, the filter
/// puts its own span in between. Two of them contradict each other, and W3C wants none of them then.
pub fn pass_on(from: &HeaderMap, to: &mut HeaderMap) {
    let Some(parent) = from.get(&TRACEPARENT) else {
        return;
    };
    let context = parent.to_str().ok().and_then(Context::parse);
    let Some(context) = context.filter(|_| from.get_all(&TRACEPARENT).iter().count() == 1) else {
        return;
    };
    to.insert(&TRACEPARENT, parent.clone());
    if let Some(state) = from.get(&TRACESTATE)
        && let Ok(text) = state.to_str()
        && context.with_state(text).state.is_some()
    {
        to.insert(&TRACESTATE, state.clone());
    }
}

/// The call in one piece.
fn told(cx: &Cx, call: &Call, mut traced: Traced, outcome: &Outcome) -> Told {
    let question = traced.question.take();
    let Question { input, parameters } = question.unwrap_or_else(|| asked::question(call, &traced));
    let Traced {
        wanted,
        context,
        root,
        hints,
        tries,
        answer,
        ..
    } = traced;
    let at = |t: Instant| {
        cx.started_micros
            .saturating_add(t.duration_since(cx.started).as_micros() as i64)
    };
    let ended_micros = at(Instant::now());
    let last = tries.len().saturating_sub(1);
    let failed = outcome.status != Status::Success;
    let nexts: SmallVec<[Instant; 2]> = tries.iter().skip(1).map(|begun| begun.at).collect();
    let tries = tries
        .into_iter()
        .enumerate()
        .map(|(n, begun)| {
            let started_micros = at(begun.at);
            let noted = cx.attempts.get(n);
            let over = nexts.get(n).map_or(ended_micros, |next| at(*next));
            // An answer is over when the call is; what failed was over when the next one began.
            let (ended_micros, status, error) = match noted {
                Some(a) if a.error.is_some() => (
                    started_micros.saturating_add(a.duration_micros).min(over),
                    a.status,
                    a.error.clone(),
                ),
                Some(a) => {
                    let error = outcome.error.clone().filter(|_| failed && n == last);
                    (ended_micros, a.status, error)
                }
                None => (ended_micros, 0, outcome.error.clone()),
            };
            Try {
                span: begun.span,
                deployment: begun.deployment,
                model: begun.model,
                started_micros,
                ended_micros,
                status,
                error,
            }
        })
        .collect();
    Told {
        request_id: cx.request_id.clone(),
        context,
        root,
        capture: wanted.capture,
        redacted: wanted.redacted,
        lane: Arc::clone(&cx.lane),
        caller: cx.caller.clone(),
        endpoint: call.endpoint,
        stream: call.stream,
        requested_model: call.requested_model.clone(),
        model_group: cx.catalog.group_of(&call.model).unwrap_or_default().to_string(),
        end_user: call.user.clone(),
        tags: call.tags.clone(),
        // A slice would hold on to the whole body.
        metadata: call.metadata.as_deref().map(Bytes::copy_from_slice),
        hints,
        parameters,
        user_agent: cx.user_agent.clone(),
        started_micros: cx.started_micros,
        began_micros: cx.answer_began().map(at),
        ended_micros,
        tries,
        status: outcome.status,
        http_status: outcome.http_status,
        error: outcome.error.clone(),
        error_kind: outcome.error_kind,
        usage: cx.metered.used,
        cost_nanos: cx.cost_nanos,
        input,
        output: output(answer, cx.event_stream),
    }
}

fn output(kept: Kept, event_stream: bool) -> Option<Output> {
    let bytes = if kept.pieces.is_empty() {
        kept.whole
    } else {
        Bytes::from(kept.pieces)
    };
    (!bytes.is_empty()).then_some(Output {
        bytes,
        event_stream,
        cut: kept.cut,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::{CALL_CHAIN, registry};
    use crate::contract::Chain;
    use crate::testkit::{self, Kit};
    use serde_json::Value;

    fn chain(kit: &Kit) -> Chain {
        let entries: Vec<_> = CALL_CHAIN.iter().map(|n| (n.to_string(), Value::Null)).collect();
        registry().chain(&entries, &kit.ports()).unwrap()
    }

    async fn told(capture: Capture, most: usize, request: &str, answer: &str) -> Option<Told> {
        let kit = Kit::default();
        kit.traces.want(capture, most);
        testkit::run(&chain(&kit), &kit, "openai", request, answer).await;
        let mut told = kit.traces.told();
        assert!(told.len() <= 1, "one call, one trace");
        told.pop()
    }

    const REQUEST: &str = r#"{"model":"gpt-4","temperature":0.5,"messages":[{"role":"user","content":"Hi"}],
        "tools":[],"metadata":{"trace_id":"t"},"user":"u","max_tokens":null}"#;
    const ANSWER: &str = r#"{"choices":[{"message":{"content":"Hello"}}],"usage":{"prompt_tokens":5}}"#;

    #[tokio::test]
    async fn a_call_is_told_as_fully_as_is_wanted() {
        assert!(told(Capture::Off, 0, REQUEST, ANSWER).await.is_none());

        let told_of = told(Capture::Metadata, 1000, REQUEST, ANSWER).await.unwrap();
        assert!(told_of.input.is_none() && told_of.output.is_none());
        assert_eq!(told_of.parameters, r#"{"temperature":0.5}"#);
        assert_eq!(told_of.metadata.as_deref(), Some(&br#"{"trace_id":"t"}"#[..]));
        assert_eq!(told_of.end_user.as_deref(), Some("u"));
        assert_eq!(
            (told_of.tries.len(), told_of.usage.unwrap().prompt_tokens),
            (1, 5)
        );
        assert!(!format!("{told_of:?}").contains("Hello"));

        let told_of = told(Capture::Full, 1000, REQUEST, ANSWER).await.unwrap();
        let Some(Input::Fields { body, fields }) = told_of.input else {
            panic!("{told_of:?}");
        };
        let text: Vec<_> = fields.iter().map(|(n, r)| (*n, &body[r.clone()])).collect();
        assert_eq!(
            text,
            [
                ("messages", &br#"[{"role":"user","content":"Hi"}]"#[..]),
                ("tools", b"[]")
            ]
        );
        let output = told_of.output.unwrap();
        assert_eq!((&output.bytes[..], output.cut), (ANSWER.as_bytes(), false));

        let told_of = told(Capture::Full, 20, REQUEST, ANSWER).await.unwrap();
        let Some(Input::Short { text, cut }) = told_of.input else {
            panic!("{told_of:?}");
        };
        assert_eq!((text.as_str(), cut), (r#"{"messages":[{"role""#, true));
        let output = told_of.output.unwrap();
        assert_eq!((&output.bytes[..], output.cut), (&ANSWER.as_bytes()[..20], true));
    }

    #[tokio::test]
    async fn a_caller_may_hide_a_call() {
        let hidden = REQUEST.replacen('{', r#"{"no-log":true,"#, 1);
        assert!(told(Capture::Full, 1000, &hidden, ANSWER).await.is_none());
        let shown = REQUEST.replacen('{', r#"{"no-log":"yes","#, 1);
        assert!(told(Capture::Full, 1000, &shown, ANSWER).await.is_some());
    }

    #[tokio::test]
    async fn a_refused_call_is_told_without_a_try() {
        let request = r#"{"model":"nope","messages":[]}"#;
        let told = told(Capture::Full, 1000, request, "").await.unwrap();
        assert_eq!((told.http_status, told.tries.len()), (404, 0));
        assert!(told.error.is_some());
    }

    #[test]
    fn heads_say_where_a_call_belongs() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let check = |lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_str(value).unwrap());
            }
            let mut wanted = Wanted {
                capture: Capture::Full,
                redacted: false,
            };
            let (context, hints) = heard(&headers, &mut wanted);
            (context, hints, wanted)
        };
        let (context, hints, wanted) = check(&[
            ("traceparent", parent),
            ("tracestate", "a=b"),
            ("x-claude-code-session-id", "s1"),
            ("langfuse_trace_user_id", "u1"),
            ("langfuse_session_id", "s2"),
        ]);
        assert_eq!(context.parent.unwrap().to_string(), "00f067aa0ba902b7");
        assert_eq!(context.state.as_deref(), Some("a=b"));
        let hints: Vec<_> = hints.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(
            hints,
            [
                ("claude_code_session_id", "s1"),
                ("trace_user_id", "u1"),
                ("session_id", "s2")
            ]
        );
        assert_eq!((wanted.capture, wanted.redacted), (Capture::Full, false));

        assert!(
            check(&[("traceparent", parent), ("traceparent", parent)])
                .0
                .parent
                .is_none()
        );
        assert!(
            check(&[("traceparent", "nonsense"), ("tracestate", "a=b")])
                .0
                .state
                .is_none()
        );
        for name in [
            "litellm-enable-message-redaction",
            "x-litellm-enable-message-redaction",
        ] {
            let wanted = check(&[(name, "True")]).2;
            assert_eq!((wanted.capture, wanted.redacted), (Capture::Metadata, true));
            assert_eq!(check(&[(name, "false")]).2.capture, Capture::Full);
        }
        let many: Vec<_> = (0..100).map(|_| ("langfuse_x", "y")).collect();
        assert_eq!(check(&many).1.len(), 1);
    }

    #[test]
    fn only_ones_own_upstreams_are_told_of_a_trace() {
        let mut d = testkit::deployment("openai");
        assert!(d.is_internal(), "loopback is");
        d.model_info.insert("internal".into(), false.into());
        assert!(!d.is_internal(), "the config's word counts");
    }
}
