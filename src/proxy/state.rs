//! The state of one request on the road, from its judged head to its one line in the log.

use super::alarm::Alarms;
use super::door::{Pulse, framing};
use super::drain::{Flight, InFlight};
use super::lanes::{Kind, Lane};
use super::paths;
use super::rooms::Stay;
use super::services::Trip;
use super::table::Found;
use crate::snapshot::Snapshot;
use crate::tls::ServerName;
use bytes::Bytes;
use filters::builtin::trace;
use filters::contract::cx::{Arrival, Purpose};
use filters::contract::ports::Catalog;
use filters::contract::{Call, Cx, Outcome, Refusal};
use filters::model::record::Status;
use http::{HeaderMap, header};
use pingora_error::{Error, ErrorSource};
use pingora_proxy::Session;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

const MAX_USER_AGENT: usize = 256;

/// Owned by Pingora's per-request context. Dropping it without [`State::finish`] (a panic) still runs
/// the filters' `logging`, so that money set aside comes back and a call that was answered is written.
pub struct State {
    pub snapshot: Arc<Snapshot>,
    pub lane: Arc<Lane>,
    pub cx: Box<Cx>,
    /// Why the head is refused, if it is.
    pub judged: Option<Refusal>,
    /// The host that is asked for, lowercase and without its port.
    pub host: String,
    /// The TCP peer, which may be a proxy.
    pub peer: IpAddr,
    /// The way through the backends of a service.
    pub trip: Trip,
    /// The request is the short loop's, which writes whole answers itself.
    pub is_short: bool,
    pub alarms: Alarms,
    /// Such an answer.
    pub parting: Option<Parting>,
    /// The room that the call's body takes.
    pub room: Option<OwnedSemaphorePermit>,
    /// What the call holds of its deployment's limits.
    pub stay: Option<Stay>,
    outcome: Option<Outcome>,
    finished: bool,
    _flight: Flight,
}

/// An answer that is there in full.
pub struct Parting {
    pub status: u16,
    /// As it goes over the wire.
    pub head: Vec<u8>,
    pub body: Bytes,
}

impl State {
    /// Judges the head and finds its lane.
    pub fn new(snapshot: Arc<Snapshot>, in_flight: &Arc<InFlight>, session: &Session) -> Self {
        let head = session.req_header();
        let path = head.uri.path();
        let mut judged = judge(session, &snapshot);
        let host = host(session);
        let peer = session
            .client_addr()
            .and_then(|a| a.as_inet())
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |a| a.ip());
        let is_here = || is_here(&host, peer, &head.headers);
        let found = match &judged {
            None => snapshot.lanes.find(&host, path, head.method.as_str(), is_here),
            Some(_) => Found::Nothing,
        };
        let lane = match found {
            Found::Lane(lane) => Arc::clone(lane),
            Found::Nothing => snapshot.lanes.fallback(),
            Found::Elsewhere => {
                judged = Some(elsewhere(session, &host));
                snapshot.lanes.fallback()
            }
        };
        let networks = match lane.kind {
            Kind::Metrics => &snapshot.scrapers,
            _ => &snapshot.networks,
        };
        let client = networks.client(peer, &head.headers);
        let user_agent = head
            .headers
            .get(header::USER_AGENT)
            .and_then(|v| v.to_str().ok())
            .map(|v| v.chars().take(MAX_USER_AGENT).collect());
        let catalog: Arc<dyn Catalog> = Arc::clone(&snapshot.models) as Arc<dyn Catalog>;
        let mut cx = Box::new(Cx::new(Arrival {
            request_id: Uuid::now_v7().to_string(),
            lane: Arc::clone(&lane.name),
            auth: lane.auth,
            started_micros: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_micros() as i64),
            client_ip: client.ip,
            internal: client.internal,
            user_agent,
            catalog,
        }));
        cx.purpose = match lane.kind {
            Kind::Call | Kind::Stream(_) | Kind::Nowhere => Purpose::Model,
            Kind::Admin if !(snapshot.lanes.is_info)(path) => Purpose::Management,
            Kind::Admin | Kind::Front | Kind::Health | Kind::Metrics => Purpose::Info,
        };
        Self {
            snapshot,
            lane,
            cx,
            judged,
            host,
            peer,
            trip: Trip::default(),
            is_short: false,
            alarms: Alarms::default(),
            parting: None,
            room: None,
            stay: None,
            outcome: None,
            finished: false,
            _flight: in_flight.begin(),
        }
    }

    /// Notes how the request ended. The first word counts.
    pub fn ended(
        &mut self,
        status: Status,
        http_status: u16,
        error: Option<&str>,
        kind: Option<&'static str>,
    ) {
        if self.outcome.is_none() {
            self.outcome = Some(Outcome {
                status,
                http_status,
                error: error.map(Into::into),
                error_kind: kind,
            });
        }
    }

    /// The client left before it had all of the answer, whatever was noted before.
    pub fn left(&mut self) {
        self.outcome = None;
        self.ended(Status::Aborted, 499, Some("the client left"), Some("client_gone"));
    }

    /// Somebody else reads the request again: here it leaves no trace.
    pub fn dismiss(mut self: Box<Self>) {
        self.finished = true;
    }

    /// The answer flows, so nobody will be sent the call's body again: its memory and its room are for
    /// others, unless the body is what is told to those who watch.
    pub fn let_go_of_body(&mut self) {
        let is_worth_it = self.cx.call.as_ref().is_some_and(Call::is_worth_letting_go);
        if is_worth_it
            && !trace::remember(&mut self.cx)
            && self.cx.call.as_mut().is_some_and(Call::let_go_of_body)
        {
            self.room = None;
        }
    }

    /// Whether the end has been noted already.
    pub fn is_over(&self) -> bool {
        self.outcome.is_some()
    }

    /// What is left of the time a call may take.
    pub fn time_left(&self) -> Duration {
        self.time_left_at(Instant::now())
    }

    pub fn time_left_at(&self, now: Instant) -> Duration {
        let total = self.snapshot.timeouts.total;
        total.saturating_sub(now.saturating_duration_since(self.cx.started))
    }

    /// Runs the filters' `logging`, once, and writes the request's line.
    pub fn finish(&mut self, written: u16, error: Option<&Error>) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let outcome = self.outcome.take().unwrap_or_else(|| match error {
            Some(e) if *e.esource() == ErrorSource::Downstream => Outcome {
                status: Status::Aborted,
                http_status: if written == 0 { 499 } else { written },
                error: Some("the client left".into()),
                error_kind: Some("client_gone"),
            },
            Some(_) => Outcome {
                status: Status::Failure,
                http_status: if written == 0 { 500 } else { written },
                error: Some("the request failed".into()),
                error_kind: Some("internal_server_error"),
            },
            None => Outcome {
                status: Status::Success,
                http_status: written,
                error: None,
                error_kind: None,
            },
        });
        let lane = Arc::clone(&self.lane);
        lane.chain.logging(&mut self.cx, &outcome);
        if let Some(mut stay) = self.stay.take() {
            let used = self.cx.metered.used.unwrap_or_default();
            stay.settle(used.prompt_tokens.saturating_add(used.completion_tokens));
        }
        let is_quiet = matches!(self.lane.kind, Kind::Health | Kind::Metrics);
        crate::telemetry::log::request_line(&self.cx, &outcome, is_quiet);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if !self.finished {
            self.ended(
                Status::Failure,
                500,
                Some("the request was dropped"),
                Some("internal_server_error"),
            );
            self.finish(0, None);
        }
    }
}

/// Limits and spelling of the head.
fn judge(session: &Session, snapshot: &Snapshot) -> Option<Refusal> {
    let head = session.req_header();
    let odd_line = Pulse::of(&session.downstream_session).is_some_and(|pulse| pulse.head_is_read());
    let size: usize = head
        .headers
        .iter()
        .map(|(n, v)| n.as_str().len() + v.len() + 4)
        .sum::<usize>()
        + head.raw_path().len();
    if size as u64 > snapshot.limits.header_bytes {
        return Some(Refusal::new(
            431,
            "invalid_request_error",
            format!(
                "The request head is larger than the {} KiB taken here.",
                snapshot.limits.header_bytes >> 10
            ),
        ));
    }
    if let Some(http1) = session.downstream_session.as_http1()
        && let Some(why) = framing::ambiguous(&http1.get_headers_raw_bytes())
    {
        return Some(not_one_reading(why));
    }
    if odd_line {
        return Some(not_one_reading(
            "the request line has more spaces than two, or bytes that have to be escaped",
        ));
    }
    if !head.raw_path_is_utf8() {
        return Some(Refusal::bad_request("The path holds bytes that are no UTF-8."));
    }
    paths::odd(head.uri.path())
        .map(|why| Refusal::bad_request(format!("The path is not taken as it is written: {why}.")))
}

/// What others might read as another request. The connection ends with it: what comes after it is nobody's.
fn not_one_reading(why: &str) -> Refusal {
    Refusal::bad_request(format!("The request can be read in more ways than one: {why}."))
        .header("connection", "close")
}

/// Whether this machine asks for itself, and no proxy on it for somebody else.
pub(super) fn is_here(host: &str, peer: IpAddr, headers: &HeaderMap) -> bool {
    let names_itself = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let by_proxy = ["x-forwarded-for", "forwarded", "x-real-ip"];
    names_itself
        && peer.to_canonical().is_loopback()
        && !by_proxy.iter().any(|name| headers.contains_key(*name))
}

/// For a host that nobody here knows. Says nothing of what is here.
fn elsewhere(session: &Session, host: &str) -> Refusal {
    let tls = session.digest().and_then(|d| d.ssl_digest.as_ref());
    let asked = tls.map(|tls| tls.extension.get::<ServerName>());
    match asked {
        // The connection was made for another name: the client may try a new one.
        Some(name) if name.is_none_or(|n| !n.0.eq_ignore_ascii_case(host)) => Refusal::new(
            421,
            "invalid_request_error",
            "This connection is not for the host that is asked for.",
        )
        .code("misdirected_request"),
        _ => nothing_here(),
    }
}

/// Where nothing is, and nothing is told of what is elsewhere.
pub(super) fn nothing_here() -> Refusal {
    Refusal::new(404, "invalid_request_error", "There is nothing here.").code("not_found")
}

/// The host that is asked for, lowercase and without its port.
fn host(session: &Session) -> String {
    let head = session.req_header();
    let authority = head
        .uri
        .authority()
        .map(|a| a.as_str())
        .or_else(|| head.headers.get(header::HOST).and_then(|v| v.to_str().ok()))
        .unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    // A name with the dot of the root is the same name.
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}
