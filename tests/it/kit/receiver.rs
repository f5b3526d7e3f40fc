//! A receiver of traces: an OTLP server and a Langfuse in one, which keeps what it took and can be away.

use super::until;
use super::upstream::{Script, Seen, Upstream};
use bytes::Bytes;
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};
use std::io::Read;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// A request that was taken; its body unpacked.
#[derive(Clone)]
pub struct Taken {
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Taken {
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map_or("", |(_, v)| v.as_str())
    }

    pub fn spans(&self) -> Vec<Span> {
        let read = ExportTraceServiceRequest::decode(&self.body[..]).unwrap();
        let scopes = read.resource_spans.into_iter().flat_map(|r| r.scope_spans);
        scopes.flat_map(|s| s.spans).collect()
    }
}

#[derive(Default)]
struct State {
    taken: Mutex<Vec<Taken>>,
    /// What it answers; 0 = it breaks the connection off.
    status: AtomicU16,
    /// Longest body that is taken, bytes unpacked; 0 = any.
    most: AtomicUsize,
}

pub struct Receiver {
    upstream: Upstream,
    state: Arc<State>,
}

impl Receiver {
    /// A Langfuse of this version; an empty one says none.
    pub async fn start(version: &str) -> Receiver {
        let state = Arc::new(State::default());
        state.status.store(200, SeqCst);
        let (inner, version) = (Arc::clone(&state), version.to_string());
        let upstream = Upstream::start(move |seen| inner.act(seen, &version)).await;
        Receiver { upstream, state }
    }

    pub fn host(&self) -> String {
        format!("http://127.0.0.1:{}", self.upstream.port)
    }

    /// From now on it answers so; 0 = not at all.
    pub fn answer(&self, status: u16) {
        self.state.status.store(status, SeqCst);
    }

    /// From now on no longer body is taken, bytes unpacked.
    pub fn most(&self, bytes: usize) {
        self.state.most.store(bytes, SeqCst);
    }

    /// Requests of any kind.
    pub fn asked(&self) -> usize {
        self.upstream.count()
    }

    pub fn taken(&self) -> Vec<Taken> {
        self.state.taken.lock().unwrap().clone()
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.taken().iter().flat_map(Taken::spans).collect()
    }

    /// All spans, once there are `n`.
    pub async fn spans_once(&self, n: usize) -> Vec<Span> {
        let mut found = Vec::new();
        until(&format!("{n} spans are there"), async || {
            found = self.spans();
            found.len() >= n
        })
        .await;
        assert_eq!(found.len(), n, "no more spans than that");
        found
    }
}

impl State {
    fn act(&self, seen: &Seen, version: &str) -> Script {
        let status = self.status.load(SeqCst);
        if status == 0 {
            return Script::nothing().close();
        }
        if seen.target == "/api/public/health" {
            return match version {
                _ if status >= 500 => Script::error(status, "away"),
                "" => Script::error(404, "not here"),
                version => Script::json(200, &json!({"status": "OK", "version": version})),
            };
        }
        if status != 200 {
            return Script::answer(status, &[], "no");
        }
        let mut body = seen.body();
        if seen.header("content-encoding") == Some("gzip") {
            let mut plain = Vec::new();
            GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
            body = plain.into();
        }
        if (1..body.len()).contains(&self.most.load(SeqCst)) {
            return Script::answer(413, &[], "too much");
        }
        let taken = Taken {
            target: seen.target.clone(),
            headers: seen.headers.clone(),
            body,
        };
        let answer = match seen.target.as_str() {
            "/api/public/ingestion" => {
                let batch: Value = serde_json::from_slice(&taken.body).unwrap();
                let ids = batch["batch"].as_array().unwrap().iter().map(|e| &e["id"]);
                let successes: Vec<Value> = ids.map(|id| json!({"id": id, "status": 201})).collect();
                Script::json(207, &json!({"successes": successes, "errors": []}))
            }
            _ => Script::answer(200, &[("content-type", "application/x-protobuf")], ""),
        };
        self.taken.lock().unwrap().push(taken);
        answer
    }
}

/// An attribute of a span as text; empty when it is not there.
pub fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|a| a.key == name);
    let value = found.and_then(|a| a.value.as_ref()?.value.as_ref());
    value.map_or_else(String::new, plain)
}

fn plain(value: &Any) -> String {
    match value {
        Any::StringValue(text) => text.clone(),
        Any::IntValue(n) => n.to_string(),
        Any::BoolValue(on) => on.to_string(),
        Any::DoubleValue(n) => n.to_string(),
        Any::ArrayValue(list) => {
            let values = list.values.iter().filter_map(|v| v.value.as_ref());
            values.map(plain).collect::<Vec<_>>().join(",")
        }
        other => panic!("an attribute is {other:?}"),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
