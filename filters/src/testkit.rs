//! For testing filters, built-in ones and your own: fake ports, a request's state, a chain run.

use crate::contract::cx::{Arrival, Auth};
use crate::contract::ports::{
    Admitted, Asked, Catalog, Clock, Keys, Ledger, Limiter, Metrics, Observation, Ports, Refused, Standing,
    Traces, Unavailable, Wanted, Why,
};
use crate::contract::upstream::Edits;
use crate::contract::{Call, Chain, Cx, Outcome, Result, Stop, Upstream};
use crate::model::account::Kind;
use crate::model::call::Endpoint;
use crate::model::deployment::{Base, Deployment};
use crate::model::key::{Caller, Holder, Key, KeyHash, MasterKey, key_name};
use crate::model::price::ServiceTier;
use crate::model::record::{Record, Status};
use crate::model::secret::Secret;
use crate::model::trace::{Capture, Trace};
use crate::model::usage::Usage;
use crate::wire::splice::Rope;
use async_trait::async_trait;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The master key of every kit.
pub const MASTER: &str = "sk-master";

/// Fake ports that remember what was done through them.
#[derive(Default, Clone)]
pub struct Kit {
    pub keys: Arc<FakeKeys>,
    pub limits: Arc<FakeLimits>,
    pub ledger: Arc<FakeLedger>,
    pub traces: Arc<FakeTraces>,
    pub clock: Arc<FakeClock>,
}

impl Kit {
    pub fn ports(&self) -> Ports {
        Ports {
            keys: self.keys.clone(),
            limiter: self.limits.clone(),
            ledger: self.ledger.clone(),
            metrics: Arc::new(NoMetrics),
            traces: self.traces.clone(),
            clock: self.clock.clone(),
            master: Some(MasterKey::new(Secret::new(MASTER))),
        }
    }

    /// A request from loopback on a lane that wants a key.
    pub fn cx(&self) -> Cx {
        Cx::new(Arrival {
            request_id: "req-1".into(),
            lane: "test".into(),
            auth: Auth::Required,
            started_micros: self.clock.now_micros(),
            client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            internal: true,
            user_agent: None,
            catalog: catalog(&["gpt-4"]),
        })
    }
}

/// What became of a call that a chain was run with.
pub struct Ran {
    pub cx: Cx,
    /// The stop, if the chain did not let the call through.
    pub stopped: Option<Stop>,
    /// The body for the upstream, when it got that far.
    pub sent: Vec<u8>,
    /// What the client gets of the upstream's answer.
    pub answer: Vec<u8>,
}

/// Runs a call through a chain as the call driver does: `request` to a deployment that speaks
/// `dialect`, which answers `answer` (an event stream if the request asks for one).
pub async fn run(chain: &Chain, kit: &Kit, dialect: &'static str, request: &str, answer: &str) -> Ran {
    let mut cx = kit.cx();
    let (mut sent, mut out) = (Vec::new(), Vec::new());
    let stopped = drive(chain, &mut cx, dialect, request, answer, &mut sent, &mut out)
        .await
        .err();
    let outcome = match &stopped {
        None => Outcome {
            status: Status::Success,
            http_status: 200,
            error: None,
            error_kind: None,
        },
        Some(stop) => Outcome {
            status: Status::Failure,
            http_status: stop.status(),
            error: Some(stop.shown().into()),
            error_kind: Some(stop.kind()),
        },
    };
    chain.logging(&mut cx, &outcome);
    Ran {
        cx,
        stopped,
        sent,
        answer: out,
    }
}

async fn drive(
    chain: &Chain,
    cx: &mut Cx,
    dialect: &'static str,
    request: &str,
    answer: &str,
    sent: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<()> {
    let mut head = http::Request::new(()).into_parts().0;
    head.headers.insert(
        "authorization",
        http::HeaderValue::from_static("Bearer sk-master"),
    );
    chain.request_filter(cx, &head).await?;
    cx.call = Some(call(Endpoint::Chat, request));
    chain.call_filter(cx, &head).await?;
    let d = Arc::new(deployment(dialect));
    let mut up = upstream();
    up.model.clone_from(&d.upstream_model);
    cx.upstream_model.clone_from(&d.upstream_model);
    up.deployment = Some(Arc::clone(&d));
    cx.deployment = Some(d);
    chain.upstream_request_filter(cx, &mut up).await?;
    sent.extend_from_slice(&up.body.to_bytes());
    cx.event_stream = cx.call.as_ref().is_some_and(|c| c.stream);
    cx.response_status = 200;
    let mut head = http::Response::new(()).into_parts().0;
    chain.response_filter(cx, &mut head)?;
    let mut chunk = bytes::Bytes::copy_from_slice(answer.as_bytes());
    chain.response_body_filter(cx, &mut chunk, true)?;
    out.extend_from_slice(&chunk);
    Ok(())
}

/// A row that says nothing but its id.
pub fn record(request_id: &str) -> Record {
    Record {
        request_id: request_id.into(),
        endpoint: Endpoint::Chat,
        key_hash: None,
        key_alias: None,
        user_id: None,
        team_id: None,
        organization_id: None,
        end_user: None,
        requested_model: String::new(),
        model_group: String::new(),
        model: String::new(),
        deployment_id: String::new(),
        provider: String::new(),
        stream: false,
        status: Status::Success,
        http_status: 200,
        error: None,
        prompt_tokens: 0,
        completion_tokens: 0,
        cached_tokens: 0,
        cache_creation_tokens: 0,
        reasoning_tokens: 0,
        characters: 0,
        audio_millis: 0,
        images: 0,
        spend_nanos: 0,
        priced: true,
        estimated: false,
        clamped: false,
        started_micros: 0,
        first_byte_micros: None,
        ended_micros: 0,
        attempts: Vec::new(),
        tags: Vec::new(),
        metadata: None,
        client_ip: String::new(),
        user_agent: None,
        bytes_in: 0,
        bytes_out: 0,
    }
}

/// A key without limits.
pub fn key(secret: &str) -> Key {
    Key {
        hash: KeyHash::of(secret),
        key_name: key_name(secret),
        key_alias: None,
        user_id: None,
        team_id: None,
        models: Vec::new(),
        aliases: Default::default(),
        spend_nanos: 0,
        max_budget_nanos: None,
        expires_micros: None,
        blocked: false,
        metadata: Default::default(),
        extra: Default::default(),
        created_at_micros: 0,
        created_by: None,
        updated_at_micros: 0,
    }
}

/// A JSON call. The body must be one that a client may send.
pub fn call(endpoint: Endpoint, body: &str) -> Call {
    match Call::parse(
        endpoint,
        body.to_string().into(),
        "application/json".into(),
        None,
        None,
    ) {
        Ok(call) => call,
        Err(r) => panic!("not a call: {}", r.message),
    }
}

/// A deployment on loopback.
pub fn deployment(dialect: &'static str) -> Deployment {
    Deployment {
        id: "d1".into(),
        model_name: "gpt-4".into(),
        provider: dialect.into(),
        dialect,
        upstream_model: "real".into(),
        base: Base {
            tls: false,
            host: "127.0.0.1".into(),
            port: 9,
            path: String::new(),
            h2: false,
        },
        api_key: Some(Secret::new("provider-key")),
        headers: Vec::new(),
        timeout: Duration::from_secs(1),
        stream_timeout: Duration::from_secs(1),
        drop_params: false,
        additional_drop_params: Vec::new(),
        defaults: Default::default(),
        price: None,
        max_output_tokens: None,
        model_info: Default::default(),
    }
}

/// An attempt with nothing in it yet.
pub fn upstream() -> Upstream {
    Upstream {
        deployment: None,
        model: String::new(),
        method: http::Method::POST,
        path: "/".into(),
        headers: http::HeaderMap::new(),
        edits: Edits::default(),
        body: Rope::default(),
    }
}

/// A catalog of unpriced names; `prefix/*` matches as in a config.
pub fn catalog(names: &[&str]) -> Arc<dyn Catalog> {
    Arc::new(Names(names.iter().map(|n| n.to_string()).collect()))
}

struct Names(Vec<String>);

impl Catalog for Names {
    fn group_of(&self, model: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|n| *n == model || n.strip_suffix('*').is_some_and(|p| model.starts_with(p)))
            .map(String::as_str)
    }

    fn names(&self) -> &[String] {
        &self.0
    }

    fn in_access_group(&self, _model: &str, _group: &str) -> bool {
        false
    }

    fn worst_cost(&self, _: &str, _: Endpoint, _: &Usage, _: ServiceTier) -> Option<i64> {
        None
    }

    fn max_output_tokens(&self, _model: &str) -> Option<u64> {
        None
    }
}

/// Keys in memory, behind a store that can be away.
#[derive(Default)]
pub struct FakeKeys {
    stored: Mutex<HashMap<KeyHash, Arc<Holder>>>,
    cached: Mutex<HashMap<KeyHash, Arc<Holder>>>,
    away: AtomicBool,
}

impl FakeKeys {
    pub fn insert(&self, key: impl Into<Holder>) {
        let holder = key.into();
        lock(&self.stored).insert(holder.hash, Arc::new(holder));
    }

    /// From now on the store cannot be asked.
    pub fn away(&self) {
        self.away.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl Keys for FakeKeys {
    fn cached(&self, hash: &KeyHash) -> Option<Option<Arc<Holder>>> {
        lock(&self.cached).get(hash).cloned().map(Some)
    }

    async fn find(&self, hash: &KeyHash) -> Result<Option<Arc<Holder>>, Unavailable> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Unavailable("the store is away".into()));
        }
        let found = lock(&self.stored).get(hash).cloned();
        if let Some(key) = &found {
            lock(&self.cached).insert(*hash, Arc::clone(key));
        }
        Ok(found)
    }
}

/// Lets every call in but those it was told to refuse, and remembers what was settled.
#[derive(Default)]
pub struct FakeLimits {
    refused: Mutex<Option<Refused>>,
    standings: Mutex<Vec<Standing>>,
    settled: Arc<Mutex<Vec<u64>>>,
    held: Arc<AtomicI64>,
}

impl FakeLimits {
    /// From now on no call is let in, for this reason.
    pub fn refuse(&self, kind: Kind, id: &str, model: Option<&str>, why: Why) {
        *lock(&self.refused) = Some(Refused {
            kind,
            id: id.into(),
            alias: None,
            model: model.map(Into::into),
            why,
            standings: lock(&self.standings).clone(),
        });
    }

    /// How the limits stand from now on.
    pub fn stand(&self, standings: &[Standing]) {
        *lock(&self.standings) = standings.to_vec();
    }

    /// Tokens of each call that is over.
    pub fn settled(&self) -> Vec<u64> {
        lock(&self.settled).clone()
    }

    /// Calls that were let in and have not been let go of.
    pub fn held(&self) -> i64 {
        self.held.load(Ordering::SeqCst)
    }
}

struct FakeAdmitted {
    tokens: u64,
    standings: Vec<Standing>,
    settled: Arc<Mutex<Vec<u64>>>,
    held: Arc<AtomicI64>,
}

impl Admitted for FakeAdmitted {
    fn settle(&mut self, tokens: u64) {
        self.tokens = tokens;
    }

    fn standings(&self) -> &[Standing] {
        &self.standings
    }
}

impl Drop for FakeAdmitted {
    fn drop(&mut self) {
        lock(&self.settled).push(self.tokens);
        self.held.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Limiter for FakeLimits {
    fn try_admit(&self, _asked: &Asked<'_>) -> Option<Result<Box<dyn Admitted>, Box<Refused>>> {
        None
    }

    async fn admit(&self, _asked: &Asked<'_>) -> Result<Box<dyn Admitted>, Box<Refused>> {
        if let Some(refused) = lock(&self.refused).clone() {
            return Err(Box::new(refused));
        }
        self.held.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FakeAdmitted {
            tokens: 0,
            standings: lock(&self.standings).clone(),
            settled: Arc::clone(&self.settled),
            held: Arc::clone(&self.held),
        }))
    }
}

#[derive(Default)]
pub struct FakeLedger(Mutex<Vec<Record>>);

impl FakeLedger {
    pub fn rows(&self) -> Vec<Record> {
        lock(&self.0).clone()
    }
}

impl Ledger for FakeLedger {
    fn append(&self, record: Record) {
        lock(&self.0).push(record);
    }
}

struct NoMetrics;

impl Metrics for NoMetrics {
    fn observe(&self, _seen: &Observation<'_>) {}
}

/// Keeps what it is told. Until [`FakeTraces::want`] it wants nothing.
#[derive(Default)]
pub struct FakeTraces {
    wanted: Mutex<(Capture, usize)>,
    told: Mutex<Vec<Trace>>,
}

impl FakeTraces {
    /// What is wanted of calls from now on, and how many bytes of a question and of an answer. Filters that
    /// were built before do not know.
    pub fn want(&self, capture: Capture, max_bytes: usize) {
        *lock(&self.wanted) = (capture, max_bytes);
    }

    pub fn told(&self) -> Vec<Trace> {
        lock(&self.told).clone()
    }
}

impl Traces for FakeTraces {
    fn most(&self) -> Capture {
        lock(&self.wanted).0
    }

    fn wants(&self, _caller: &Caller) -> Wanted {
        Wanted {
            capture: lock(&self.wanted).0,
            redacted: false,
        }
    }

    fn max_bytes(&self) -> usize {
        lock(&self.wanted).1
    }

    fn may_hide(&self) -> bool {
        true
    }

    fn emit(&self, trace: Box<Trace>) {
        lock(&self.told).push(*trace);
    }
}

/// A clock that stands still.
#[derive(Default)]
pub struct FakeClock(AtomicI64);

impl FakeClock {
    pub fn set(&self, micros: i64) {
        self.0.store(micros, Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now_micros(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::{CALL_CHAIN, registry};
    use serde_json::Value;

    /// The whole built-in chain, from the client's bytes to the ledger's row.
    #[tokio::test]
    async fn the_built_in_chain_runs_end_to_end() {
        let kit = Kit::default();
        let entries: Vec<_> = CALL_CHAIN.iter().map(|n| (n.to_string(), Value::Null)).collect();
        let chain = registry().chain(&entries, &kit.ports()).unwrap();
        let answer = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#;
        let ran = run(
            &chain,
            &kit,
            "openai",
            r#"{"model":"gpt-4","messages":[]}"#,
            answer,
        )
        .await;
        assert!(ran.stopped.is_none());
        assert_eq!(ran.sent, br#"{"model":"real","messages":[]}"#);
        assert_eq!(ran.answer, answer.as_bytes());
        let rows = kit.ledger.rows();
        assert_eq!(rows.len(), 1, "one call, one row");
        assert_eq!(
            (rows[0].prompt_tokens, rows[0].completion_tokens, rows[0].priced),
            (5, 2, false)
        );

        let ran = run(&chain, &kit, "openai", r#"{"model":"nope","messages":[]}"#, "").await;
        assert_eq!(ran.stopped.map(|s| s.status()), Some(404));
        assert!(ran.sent.is_empty(), "nothing goes upstream");
        assert_eq!(
            kit.ledger.rows().len(),
            2,
            "a refused call is written down as well"
        );
    }
}
