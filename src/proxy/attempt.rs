//! One try at one deployment: dress the request, connect, send, and read as much of the answer as must
//! be known before the client gets any of it.

use super::cooldown::{Bearing, Stance, Symptom};
use super::exchange::{Asked, Exchange, Reading, Way, exchange};
use super::lanes::Lane;
use super::models::Found;
use super::place::Place;
use super::watch::{Watched, watch};
use super::{Gateway, State};
use bytes::{Bytes, BytesMut};
use filters::builtin::trace;
use filters::contract::{Fault, Stop, Upstream};
use filters::model::deployment::Deployment;
use filters::model::record::Attempt;
use filters::wire::splice::Rope;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, response};
use pingora::prelude::*;
use pingora_proxy::Session;
use std::sync::Arc;
use std::time::Instant;

/// An error body of which more is not read.
const MAX_ERROR_BODY: usize = 64 << 10;
/// A JSON answer up to this size is read whole before its head goes out, so that the head can tell the
/// cost and an upstream that dies half-way can be replaced.
const MAX_HELD_ANSWER: usize = 4 << 20;

/// What became of one attempt.
pub(super) enum Attempted {
    /// A good answer is there, and nothing of it has been sent on.
    Ready(Box<Ready>),
    /// Another deployment may do better.
    Failed(Failure),
    /// No other deployment would do better.
    Final(Failure),
    ClientGone(Box<Error>),
    /// It makes no sense to try on.
    Stopped(Stop),
}

/// A good answer, as far as it has been read.
pub(super) struct Ready {
    pub deployment: Arc<Deployment>,
    pub place: Arc<Place>,
    pub head: response::Parts,
    pub reading: Reading,
    /// What has been read of the body.
    pub begun: Vec<Bytes>,
    /// `begun` is all there is.
    pub whole: bool,
    /// How its deployment does, where what is still to come may change that.
    pub bearing: Option<(Bearing, Stance)>,
}

/// Why an attempt is given up, and what the client gets if it was the last one.
pub(super) struct Failure {
    pub shown: Shown,
    /// For the log: may hold an address.
    pub cause: String,
    /// What it says of the deployment, if anything.
    pub symptom: Option<Symptom>,
}

pub(super) enum Shown {
    /// The upstream's own error answer.
    Theirs { head: Box<response::Parts>, body: Bytes },
    /// It gave none.
    Ours(Fault),
}

impl Gateway {
    pub(super) async fn attempt(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        found: &Found<'_>,
        deployment: &Arc<Deployment>,
        model: &str,
    ) -> Attempted {
        let (d, upstream_model) = match found.dress(deployment, model) {
            Ok(dressed) => dressed,
            Err(refusal) => return Attempted::Stopped(refusal.into()),
        };
        let cx = &mut state.cx;
        cx.deployment = Some(Arc::clone(&d));
        cx.upstream_model.clone_from(&upstream_model);
        let mut up = Upstream {
            deployment: Some(Arc::clone(&d)),
            model: upstream_model,
            method: Method::POST,
            path: String::new(),
            headers: forwarded(session, &d),
            edits: Default::default(),
            body: Rope::default(),
        };
        if let Err(stop) = lane.chain.upstream_request_filter(cx, &mut up).await {
            return Attempted::Stopped(stop);
        }

        // A pooled connection may have been closed by the other side just now. That says nothing about
        // the deployment, so it gets one more chance. A silence is no such thing: then the upstream may
        // be at work, and asking again would make it work, and be paid, twice.
        let mut chances = 2;
        let begun = Instant::now();
        loop {
            chances -= 1;
            let place = match self.peers.place(&d.base, state.snapshot.timeouts.connect).await {
                Ok(place) => place,
                Err(cause) => return Attempted::Failed(unreachable(&d, cause, false)),
            };
            let (way, reused) = match place.take() {
                Some(stream) => (Way::Http1(stream), true),
                None => {
                    // Boxed: it is large, and seldom needed.
                    let connecting = Box::pin(async {
                        let (client, reused) = self.connector.get_http_session(&place.peer).await?;
                        Ok::<_, Box<Error>>((Way::over(client), reused))
                    });
                    match watch(session, connecting).await {
                        Watched::Upstream(Ok(got)) => got,
                        Watched::Upstream(Err(e)) => {
                            return Attempted::Failed(unreachable(&d, e.to_string(), is_ours(&e)));
                        }
                        Watched::ClientGone(e) => return Attempted::ClientGone(e),
                    }
                }
            };
            self.telemetry.upstream_connection(reused);
            let stream = state.cx.call.as_ref().is_some_and(|c| c.stream);
            let patience = if stream { d.stream_timeout } else { d.timeout }.min(state.time_left_at(begun));
            let mut alarm = std::mem::take(&mut state.alarms.upstream);
            let mut went_out = false;
            let asked = Asked {
                peer: &place.peer,
                deployment: &d,
                up: &up,
                patience,
                stream,
                until: (begun + patience).into(),
                alarm: &mut alarm,
            };
            let exchanged = exchange(session, way, asked, &mut went_out).await;
            state.alarms.upstream = alarm;
            // From here on the upstream works; a client that leaves owes for it.
            state.cx.metered.sent = went_out && !matches!(exchanged, Err(Exchange::Broke(_)));
            let mut reading = match exchanged {
                Ok(reading) => reading,
                Err(Exchange::ClientGone(e)) => return Attempted::ClientGone(e),
                Err(Exchange::Broke(e)) if reused && chances > 0 && was_closed(&e) => continue,
                Err(Exchange::Broke(e)) => return Attempted::Failed(no_answer(&d, &e)),
            };
            state.cx.first_byte = Some(Instant::now());
            let Some(head) = reading.take_head() else {
                return Attempted::Failed(no_answer(&d, &Error::new(ErrorType::InvalidHTTPHeader)));
            };
            if !head.status.is_success() {
                state.cx.metered.sent = false;
                return self.failed(session, reading, &place, head).await;
            }
            let status = head.status.as_u16();
            return match self.begin(session, state, reading, place, d, head).await {
                ready @ Attempted::Ready(_) => {
                    state.cx.attempts.push(Attempt {
                        deployment_id: deployment.id.clone(),
                        status,
                        error: None,
                        duration_micros: begun.elapsed().as_micros() as i64,
                    });
                    ready
                }
                other => other,
            };
        }
    }

    /// Reads an upstream's error answer.
    async fn failed(
        &self,
        session: &mut Session,
        mut reading: Reading,
        place: &Arc<Place>,
        head: response::Parts,
    ) -> Attempted {
        let status = head.status.as_u16();
        let mut body = BytesMut::new();
        let mut whole = false;
        while !whole && body.len() < MAX_ERROR_BODY {
            match watch(session, reading.next()).await {
                Watched::Upstream(Ok((chunk, end))) => {
                    body.extend_from_slice(&chunk);
                    whole = end;
                }
                // What came of the error is better than nothing.
                Watched::Upstream(Err(_)) => break,
                Watched::ClientGone(e) => return Attempted::ClientGone(e),
            }
        }
        body.truncate(MAX_ERROR_BODY);
        if whole {
            self.release(reading, place).await;
        }
        let failure = Failure {
            shown: Shown::Theirs {
                head: Box::new(head),
                body: body.freeze(),
            },
            cause: format!("status {status}"),
            symptom: Symptom::of_status(status),
        };
        // What is wrong with the request is wrong everywhere. What is wrong with the deployment, its
        // credentials included, may be right with the next one.
        match status {
            401 | 403 | 404 | 408 | 429 | 500..=599 => Attempted::Failed(failure),
            _ => Attempted::Final(failure),
        }
    }

    /// Reads a good answer as far as must be: JSON whole, streams not at all.
    async fn begin(
        &self,
        session: &mut Session,
        state: &mut State,
        mut reading: Reading,
        place: Arc<Place>,
        d: Arc<Deployment>,
        head: response::Parts,
    ) -> Attempted {
        let kind = head
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let is_event_stream = kind.starts_with("text/event-stream");
        let is_held = !is_event_stream && (kind.starts_with("application/json") || d.dialect != "openai");
        state.cx.event_stream = is_event_stream;
        state.cx.response_status = head.status.as_u16();
        if is_event_stream {
            reading.set_patience(d.stream_timeout.min(state.snapshot.timeouts.stream_idle));
        }
        let mut ready = Ready {
            deployment: d,
            place,
            head,
            reading,
            begun: Vec::new(),
            whole: false,
            bearing: None,
        };
        let mut len = 0;
        while is_held && !ready.whole && len <= MAX_HELD_ANSWER {
            let (chunk, end) = match watch(session, ready.reading.next()).await {
                Watched::Upstream(Ok(got)) => got,
                Watched::Upstream(Err(e)) => {
                    state.cx.metered.sent = false;
                    return Attempted::Failed(no_answer(&ready.deployment, &e));
                }
                Watched::ClientGone(e) => {
                    state.cx.metered.held_bytes = len as u64;
                    return Attempted::ClientGone(e);
                }
            };
            len += chunk.len();
            if !chunk.is_empty() {
                ready.begun.push(chunk);
            }
            ready.whole = end;
        }
        // Closed is also what the connection of a server is that died.
        if is_held && ready.whole && ready.reading.ends_with_connection() && !is_json(&ready.begun.concat()) {
            state.cx.metered.sent = false;
            let e = Error::explain(
                ErrorType::ConnectionClosed,
                "the connection ended within the JSON",
            );
            return Attempted::Failed(no_answer(&ready.deployment, &e));
        }
        Attempted::Ready(Box::new(ready))
    }
}

fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}

/// Client headers that a model may see.
static FORWARDED: [HeaderName; 4] = [
    header::ACCEPT,
    header::USER_AGENT,
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
];

/// What of the client's head goes to a model: nothing that says who it is.
fn forwarded(session: &Session, d: &Deployment) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    let from = &session.req_header().headers;
    // A caller's `idempotency-key` stays: all callers share the provider's key, so two who happen to write
    // the same one would get one another's answer.
    for name in &FORWARDED {
        if let Some(value) = from.get(name) {
            headers.insert(name, value.clone());
        }
    }
    if d.is_internal() {
        trace::pass_on(from, &mut headers);
    }
    // Usage is read from the answer as it flows by, so it must not be packed.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// The other side closed the connection, as an idle one may be at any time.
fn was_closed(e: &Error) -> bool {
    matches!(
        e.etype(),
        ErrorType::ConnectionClosed | ErrorType::WriteError | ErrorType::ReadError | ErrorType::H2Error
    )
}

/// The gateway itself has no socket to spare, which is no upstream's fault.
fn is_ours(e: &Error) -> bool {
    matches!(
        e.etype(),
        ErrorType::InternalError | ErrorType::SocketError | ErrorType::BindError
    )
}

fn unreachable(d: &Deployment, cause: String, is_ours: bool) -> Failure {
    let shown = format!("The upstream of deployment {} cannot be reached.", d.label());
    Failure {
        shown: Shown::Ours(Fault::unavailable(shown, cause.clone())),
        cause,
        symptom: (!is_ours).then_some(Symptom::Unreachable),
    }
}

fn no_answer(d: &Deployment, e: &Error) -> Failure {
    let timed_out = matches!(e.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
    let what = if timed_out {
        "did not answer in time"
    } else {
        "broke off without an answer"
    };
    let mut fault = Fault::upstream(format!("The upstream of deployment {} {what}.", d.label()), e);
    if timed_out {
        (fault.status, fault.kind) = (408, "timeout_error");
    }
    Failure {
        shown: Shown::Ours(fault),
        cause: e.to_string(),
        symptom: Some(if timed_out {
            Symptom::Timeout
        } else {
            Symptom::Server
        }),
    }
}
