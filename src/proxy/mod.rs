//! The road: Pingora's hooks, and the two drivers behind them.
//!
//! `ProxyHttp` is implemented here and kept thin; `short` runs the same for HTTP/1 clients, without Pingora's loop
//! where that has nothing to do. A request is judged (`paths`), given a lane (`lanes`),
//! and handed to the call driver (`call`), the stream driver (`stream`), or answered here.

pub mod admin;
mod alarm;
mod answer;
mod attempt;
pub mod balance;
pub mod body;
mod by_deployment;
pub mod call;
pub mod client;
pub mod cooldown;
pub mod door;
pub mod drain;
mod exchange;
mod fallback;
mod front;
pub mod head;
pub mod lanes;
pub mod linger;
pub mod models;
pub mod paths;
pub mod peer;
mod place;
mod reply;
pub mod respond;
pub mod rooms;
mod scrape;
pub mod services;
mod short;
pub mod state;
pub mod stream;
pub mod table;
mod target;
pub mod throttle;
mod watch;

use crate::health::Health;
use crate::snapshot::Snapshot;
use crate::telemetry::metrics::Telemetry;
use crate::tls::acme::Challenges;
use crate::tls::redirect::{Asked, Redirect};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use drain::InFlight;
use filters::builtin::limits::headers;
use filters::contract::{Answer, Refusal, Stop, Verdict};
use filters::model::record::Status;
use http::{HeaderValue, Method, header};
use lanes::Kind;
use paths::Api;
use pingora::connectors::http::Connector;
use pingora::prelude::*;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use state::State;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use table::Found;
use throttle::Turn;
use tokio::sync::Semaphore;

/// Bodies larger than this need room, and are counted in pieces of this size, bytes.
pub const ROOM_PIECE: u64 = 64 << 10;
/// For large bodies of all calls together: 1 GiB.
pub const ROOM: usize = 16 << 10;

/// What all requests go through. Knows the world by what it was given and nothing else.
pub struct Gateway {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub connector: Connector,
    pub peers: peer::Peers,
    pub admin: axum::Router,
    pub health: Arc<Health>,
    pub telemetry: Arc<Telemetry>,
    pub in_flight: Arc<InFlight>,
    /// Room for large bodies, in pieces of [`ROOM_PIECE`].
    pub room: Arc<Semaphore>,
    /// The plain listeners that send browsers on to https.
    pub redirect: Redirect,
    /// What authorities that look at our names find here.
    pub challenges: Arc<Challenges>,
}

/// The gateway as Pingora's loop holds it; the short loop (`short`) holds it too.
pub struct Shared(pub Arc<Gateway>);

impl Deref for Shared {
    type Target = Gateway;

    fn deref(&self) -> &Gateway {
        &self.0
    }
}

impl Gateway {
    /// Judges a request whose head is there.
    fn arrive(&self, session: &mut Session) -> Box<State> {
        // A request that arrives while another streams waits its turn and never cuts that stream.
        session.set_pipelining_enabled(true);
        // A process that leaves answers and says good-bye.
        let snapshot = self.snapshot.load_full();
        let timeouts = &snapshot.timeouts;
        // Zero would be for ever.
        let keepalive = timeouts.keepalive.as_secs().max(1);
        let again = self.health.keeps_connections() && is_reusable(session, &snapshot);
        session.set_keepalive(again.then_some(keepalive));
        session.set_read_timeout(Some(timeouts.body_idle));
        // On HTTP/1 the door sees whether a client takes anything at all; on HTTP/2 it sees all streams
        // together, and each has a window of its own.
        let write = session.is_http2().then_some(timeouts.write);
        session.set_write_timeout(write);
        Box::new(State::new(snapshot, &self.in_flight, session))
    }

    /// Answers a request; false = it has to go through Pingora's own loop.
    async fn serve(&self, session: &mut Session, state: &mut State) -> Result<bool> {
        if let Some(refusal) = state.judged.take() {
            self.refuse(session, state, &refusal.into()).await?;
            return Ok(true);
        }
        // Before anybody is judged: an authority has no key, and asks plainly.
        if is_read(session)
            && let Some(says) = self.challenges.answer(session.req_header().uri.path())
        {
            let answer = Answer {
                status: 200,
                headers: vec![("content-type", "application/octet-stream".into())],
                body: Bytes::copy_from_slice(says.as_bytes()),
            };
            self.send(session, state, answer).await?;
            return Ok(true);
        }
        let lane = Arc::clone(&state.lane);
        if let Some(refusal) = slowed_down(state, session, &lane).await {
            self.refuse(session, state, &refusal.into()).await?;
            return Ok(true);
        }
        if let Some((status, to)) = redirected(&self.redirect, session, &state.host, &lane) {
            let answer = Answer {
                status,
                headers: vec![("location", to), ("cache-control", "no-store".into())],
                body: Bytes::new(),
            };
            self.send(session, state, answer).await?;
            return Ok(true);
        }
        match &lane.kind {
            Kind::Call => self.api(session, state).await?,
            Kind::Stream(_) => return self.enter_stream(session, state).await,
            Kind::Admin => self.administer(session, state).await?,
            Kind::Front | Kind::Health | Kind::Metrics if !is_read(session) => {
                let refusal = read_only(&session.req_header().method);
                self.guarded_preflight(session, state, refusal).await?;
            }
            Kind::Health => {
                let answer = match session.req_header().uri.path() {
                    "/health/readiness" => self.health.readiness().await,
                    "/health" if self.is_overseer(session, state).await => {
                        self.health.details(session.req_header().uri.query())
                    }
                    "/health" => self.health.status(),
                    _ => self.health.liveness(),
                };
                self.guarded(session, state, |_| Ok(answer)).await?;
            }
            Kind::Front => {
                let head = session.req_header();
                let accept = head.headers.get("accept").and_then(|v| v.to_str().ok());
                match front::page(head.uri.path(), accept) {
                    Some(page) => self.send(session, state, page).await?,
                    None => self.refuse(session, state, &state::nothing_here().into()).await?,
                }
            }
            Kind::Nowhere => self.refuse(session, state, &state::nothing_here().into()).await?,
            Kind::Metrics => self.scrape(session, state).await?,
        }
        Ok(true)
    }
}

#[async_trait]
impl ProxyHttp for Shared {
    /// Empty until the request's head has been judged.
    type CTX = Option<Box<State>>;

    fn new_ctx(&self) -> Self::CTX {
        None
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        *ctx = Some(self.arrive(session));
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        let state = ctx
            .as_mut()
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "a request has no state"))?;
        self.serve(session, state).await
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        self.stream_peer(session, ctx).await
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Self::CTX,
        e: Box<Error>,
    ) -> Box<Error> {
        self.stream_refused(ctx, e)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        self.stream_body(session, body.as_ref(), ctx)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        self.dress_stream(session, upstream, ctx).await
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        self.stream_head(session, response, ctx)
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        self.stream_chunk(body, end, ctx)
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Self::CTX) -> FailToProxy {
        self.stream_failed(session, e, ctx).await
    }

    /// The default writes one line per failed request with the upstream's address; ours are written
    /// where the failure is understood.
    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Self::CTX,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    /// See above.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Self::CTX, _error: &Error) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Self::CTX) {
        if let Some(state) = ctx.as_mut() {
            state.finish(written(session), e);
        }
    }
}

impl Gateway {
    /// Model calls and the list of models.
    async fn api(&self, session: &mut Session, state: &mut State) -> Result<()> {
        let head = session.req_header();
        let Some(api) = paths::api(head.uri.path()) else {
            let accept = head.headers.get("accept").and_then(|v| v.to_str().ok());
            if is_read(session)
                && let Some(page) = front::page(head.uri.path(), accept)
            {
                return self.send(session, state, page).await;
            }
            return self
                .guarded_preflight(session, state, front::not_here(head.uri.path()))
                .await;
        };
        let allowed = api.methods();
        if !allowed.contains(&head.method.as_str()) {
            let refusal = Refusal::new(
                405,
                "invalid_request_error",
                format!(
                    "{} is not offered here; use {}.",
                    head.method,
                    allowed.join(" or ")
                ),
            )
            .header("allow", allowed.join(", "));
            return self.guarded_preflight(session, state, refusal).await;
        }
        match api {
            Api::Call(endpoint, model) => self.call(session, state, endpoint, model).await,
            Api::Models => {
                let anthropic = session.get_header("anthropic-version").is_some();
                let query = session.req_header().uri.query().map(str::to_string);
                self.guarded(session, state, |s| {
                    Ok(models::list(
                        &s.snapshot.models,
                        &s.cx.caller,
                        anthropic,
                        query.as_deref(),
                    ))
                })
                .await
            }
            Api::Model(id) => {
                self.guarded(session, state, |s| {
                    models::retrieve(&s.snapshot.models, &s.cx.caller, &id).map_err(Stop::from)
                })
                .await
            }
        }
    }

    /// Whether the client shows a key that may see everything, on a lane that wants none. Judged as on the
    /// management API's lane; whoever guesses keys waits as there.
    async fn is_overseer(&self, session: &Session, state: &mut State) -> bool {
        let snapshot = Arc::clone(&state.snapshot);
        let is_here = || state::is_here(&state.host, state.peer, &session.req_header().headers);
        let Found::Lane(lane) = snapshot.lanes.find(&state.host, admin::OVERSEEN, "GET", is_here) else {
            return false;
        };
        if !matches!(lane.kind, Kind::Admin) || slowed_down(state, session, lane).await.is_some() {
            return false;
        }
        let open = std::mem::replace(&mut state.cx.auth, lane.auth);
        let judged = lane
            .chain
            .request_filter(&mut state.cx, session.req_header())
            .await;
        state.cx.auth = open;
        matches!(judged, Ok(Verdict::Continue)) && (snapshot.lanes.sees_all)(&state.cx.caller)
    }

    /// Runs the head's chain and, if it lets the request in, answers.
    async fn guarded(
        &self,
        session: &mut Session,
        state: &mut State,
        make: impl FnOnce(&State) -> Result<Answer, Stop>,
    ) -> Result<()> {
        let lane = Arc::clone(&state.lane);
        let answer = match lane
            .chain
            .request_filter(&mut state.cx, session.req_header())
            .await
        {
            Ok(Verdict::Answer(a)) => Ok(a),
            Ok(Verdict::Continue) => make(state),
            Err(stop) => Err(stop),
        };
        match answer {
            Ok(answer) => self.send(session, state, answer).await,
            Err(stop) => self.refuse(session, state, &stop).await,
        }
    }

    /// A refusal that a browser's preflight must not run into: the chain may answer that first.
    async fn guarded_preflight(
        &self,
        session: &mut Session,
        state: &mut State,
        refusal: Refusal,
    ) -> Result<()> {
        if session.req_header().method == Method::OPTIONS {
            return self.guarded(session, state, |_| Err(refusal.into())).await;
        }
        self.refuse(session, state, &refusal.into()).await
    }

    /// Writes an answer of our own.
    async fn send(&self, session: &mut Session, state: &mut State, answer: Answer) -> Result<()> {
        let mut parts = http::Response::new(()).into_parts().0;
        // Filters may add to the heads of all answers; they see ours as well.
        let lane = Arc::clone(&state.lane);
        let added = lane.chain.response_filter(&mut state.cx, &mut parts).is_ok();
        let mut further: Vec<(&'static str, &str)> = vec![
            ("x-request-id", &state.cx.request_id),
            ("x-litellm-call-id", &state.cx.request_id),
        ];
        if added {
            for name in [
                "access-control-allow-origin",
                "access-control-expose-headers",
                "traceresponse",
                "vary",
            ] {
                if let Some(value) = parts.headers.get(name).and_then(|v| v.to_str().ok()) {
                    further.push((name, value));
                }
            }
        }
        let hsts = hsts(&state.snapshot, session);
        if let Some(value) = hsts.and_then(|v| v.to_str().ok()) {
            further.push(("strict-transport-security", value));
        }
        let status = answer.status;
        let sent = respond::answer(session, answer, &further).await;
        let kind = (status >= 400).then_some("refused");
        state.ended(
            if status < 400 {
                Status::Success
            } else {
                Status::Failure
            },
            status,
            None,
            kind,
        );
        sent
    }

    async fn refuse(&self, session: &mut Session, state: &mut State, stop: &Stop) -> Result<()> {
        state.ended(
            Status::Failure,
            stop.status(),
            Some(stop.shown()),
            Some(stop.kind()),
        );
        let mut answer = respond::render(stop, &state.cx.request_id);
        // Who was let in and failed is told as well how the limits stand.
        if let Some(admitted) = &state.cx.admitted {
            for (name, value) in headers::told(admitted.standings()).iter() {
                let value = String::from_utf8_lossy(value).into_owned();
                answer.headers.push((name.as_str(), value));
            }
        }
        self.send(session, state, answer).await
    }
}

/// The status of the answer that the client got, 0 = none.
fn written(session: &Session) -> u16 {
    session.response_written().map_or(0, |h| h.status.as_u16())
}

/// What a browser is told about coming by TLS alone, if it came by TLS.
fn hsts<'a>(snapshot: &'a Snapshot, session: &Session) -> Option<&'a HeaderValue> {
    let is_tls = || session.digest().is_some_and(|d| d.ssl_digest.is_some());
    snapshot.hsts.as_ref().filter(|_| is_tls())
}

/// Where a browser is sent that came to a plain listener.
fn redirected(
    redirect: &Redirect,
    session: &Session,
    host: &str,
    lane: &lanes::Lane,
) -> Option<(u16, String)> {
    if redirect.from.is_empty() {
        return None;
    }
    let head = session.req_header();
    let asked = Asked {
        at: *session.server_addr()?.as_inet()?,
        method: &head.method,
        path: head.uri.path(),
        query: head.uri.query(),
        host,
        headers: &head.headers,
    };
    if lane.is_service() {
        redirect.whole(&asked)
    } else {
        // Ours may be answered here another time.
        redirect.target(&asked).map(|to| (307, to))
    }
}

/// Waits for the client's turn; or says that it asks too fast.
async fn slowed_down(state: &State, session: &Session, lane: &lanes::Lane) -> Option<Refusal> {
    let throttle = state.snapshot.throttle.as_ref()?;
    if matches!(lane.kind, Kind::Health | Kind::Metrics) {
        return None;
    }
    let source = throttle.source(state.peer, state.cx.client_ip, &session.req_header().headers);
    match throttle.take(&source) {
        Turn::Now => None,
        Turn::After(wait) => {
            tokio::time::sleep(wait).await;
            None
        }
        Turn::Refused(wait) => {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let refusal = Refusal::new(
                429,
                "rate_limit_error",
                "Too many requests from your address. Wait as long as Retry-After says.",
            );
            Some(
                refusal
                    .code("rate_limit_exceeded")
                    .header("retry-after", seconds.max(1).to_string())
                    .header("retry-after-ms", wait.as_millis().max(1).to_string()),
            )
        }
    }
}

/// Whether another request may come on the connection. Not where somebody in front might read the end of
/// this one differently: after a chunked body, or where the client would rather speak something else.
fn is_reusable(session: &Session, snapshot: &Snapshot) -> bool {
    if session.is_http2() {
        return true;
    }
    let headers = &session.req_header().headers;
    let shared = || {
        let peer = session.client_addr().and_then(|a| a.as_inet());
        peer.is_none_or(|p| snapshot.networks.came_through_a_proxy(p.ip(), headers))
    };
    session.get_keepalive().is_some()
        && !headers.contains_key(header::UPGRADE)
        && !(headers.contains_key(header::TRANSFER_ENCODING) && shared())
}

fn is_read(session: &Session) -> bool {
    matches!(session.req_header().method, Method::GET | Method::HEAD)
}

/// For what can only be looked at.
fn read_only(method: &Method) -> Refusal {
    Refusal::new(
        405,
        "invalid_request_error",
        format!("{method} is not offered here; use GET or HEAD."),
    )
    .header("allow", "GET, HEAD")
}
