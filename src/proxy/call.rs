//! The call driver: reads a model call once, tries deployments until one answers, and lets the answer
//! flow to the client.
//!
//! Pingora's own loop picks a peer before the body is read, replays at most 64 KiB of it, and cannot
//! read the error body of an attempt. A model call needs all three, so this loop stands over Pingora's
//! connector instead (its pool, its TLS, its HTTP/1 and HTTP/2 clients).

use super::head::{self, Framing};
use super::lanes::Lane;
use super::models::Found;
use super::{Gateway, State, body, respond};
use bytes::{Bytes, BytesMut};
use filters::contract::{Answer, Call, Fault, Refusal, Stop, Upstream, Verdict};
use filters::model::call::Endpoint;
use filters::model::deployment::Deployment;
use filters::model::record::{Attempt, Status};
use filters::wire::splice::Rope;
use futures::FutureExt;
use http::{HeaderMap, Method, response};
use pingora::prelude::*;
use pingora::protocols::http::client::HttpSession;
use pingora_proxy::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A piece of a request body that is sent before looking whether the upstream has answered already.
const SLICE: usize = 64 << 10;
/// An error body of which more is not read.
const MAX_ERROR_BODY: usize = 64 << 10;
/// A JSON answer up to this size is read whole before its head goes out, so that the head can tell the
/// cost and an upstream that dies half-way can be replaced.
const MAX_HELD_ANSWER: usize = 4 << 20;
/// What is gathered into one write when an upstream sends in bursts.
const MAX_GATHERED: usize = 64 << 10;
/// How long an upstream that stopped reading is given to say why.
const EARLY_ANSWER: Duration = Duration::from_millis(200);

/// What became of one attempt.
enum Attempted {
    /// The client has its answer, whole or as far as it went.
    Answered,
    /// Nothing was sent to the client: another deployment may be tried.
    Failed(Failure),
    /// Nothing was sent to the client, and no other deployment would do better.
    Final(Failure),
    /// The client left.
    ClientGone(Box<Error>),
    /// It makes no sense to try on.
    Stopped(Stop),
    /// The answer had begun and cannot be ended properly: the connection has to go.
    Broken(Box<Error>),
}

/// Why an attempt is given up, and what the client gets if it was the last one.
struct Failure {
    shown: Shown,
    /// For the log: may hold an address.
    cause: String,
}

enum Shown {
    /// The upstream's own error answer.
    Theirs { head: Box<response::Parts>, body: Bytes },
    /// It gave none.
    Ours(Fault),
}

/// What reading from an upstream came to while the client was watched.
enum Watched<T> {
    Upstream(T),
    ClientGone(Box<Error>),
}

/// Waits for `work` and for the client's leaving, whichever comes first. The upstream has precedence:
/// when both are there, its answer counts, and the next request on the connection is left alone.
async fn watch<T>(session: &mut Session, work: impl Future<Output = T>) -> Watched<T> {
    tokio::select! {
        biased;
        done = work => Watched::Upstream(done),
        gone = session.downstream_session.read_body_or_idle(true) => Watched::ClientGone(match gone {
            Err(e) => e,
            Ok(_) => Error::explain(ErrorType::ConnectionClosed, "the client sent data after its request"),
        }),
    }
}

impl Gateway {
    /// Handles a model call from its head to its last byte. `Err` = the connection is of no more use.
    pub(super) async fn call(
        &self,
        session: &mut Session,
        state: &mut State,
        endpoint: Endpoint,
        path_model: Option<String>,
    ) -> Result<()> {
        let lane = Arc::clone(&state.lane);
        match self
            .answer_call(session, state, &lane, endpoint, path_model.as_deref())
            .await
        {
            Ok(()) => Ok(()),
            Err(End::Stop(stop)) => self.refuse(session, state, &stop).await,
            Err(End::Answer(answer)) => self.send(session, state, answer).await,
            Err(End::Gone(e)) => {
                state.ended(Status::Aborted, 499, Some("the client left"), Some("client_gone"));
                Err(e)
            }
            Err(End::Broken(e)) => Err(e),
        }
    }

    async fn answer_call(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        endpoint: Endpoint,
        path_model: Option<&str>,
    ) -> Result<(), End> {
        if let Verdict::Answer(a) = lane
            .chain
            .request_filter(&mut state.cx, session.req_header())
            .await?
        {
            return Err(End::Answer(a));
        }
        let limits = &state.snapshot.limits;
        let limit = if endpoint.is_multipart() {
            limits.multipart_body
        } else {
            limits.json_body
        };
        let body = match body::read(session, limit, limits.body_timeout).await {
            body::Read::Whole(body) => body,
            body::Read::Refused(r) => return Err(End::Stop(r.into())),
            body::Read::Gone(e) => return Err(End::Gone(e)),
        };
        state.cx.bytes_in = body.len() as u64;
        let content_type = content_type(session, endpoint)?;
        // Only where any model will do: a speech cannot be made by whatever stands first.
        let default = match endpoint {
            Endpoint::Chat | Endpoint::Completions => state.snapshot.models.default_model(),
            _ => None,
        };
        let call = Call::parse(endpoint, body, content_type, path_model, default)?;
        state.cx.call = Some(with_header_tags(call, session));
        if let Verdict::Answer(a) = lane
            .chain
            .call_filter(&mut state.cx, session.req_header())
            .await?
        {
            return Err(End::Answer(a));
        }
        self.try_deployments(session, state, lane).await
    }

    /// Tries the deployments of the model, each at most once, until one answers.
    async fn try_deployments(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
    ) -> Result<(), End> {
        let models = Arc::clone(&state.snapshot.models);
        let model = state
            .cx
            .call
            .as_ref()
            .map(|c| c.model.clone())
            .unwrap_or_default();
        let Some(found) = models.find(&model) else {
            return Err(Stop::from(Fault::internal("the model was resolved and is gone")).into());
        };
        let mut tried = Vec::new();
        let mut round = 0;
        let mut last: Option<Failure> = None;
        loop {
            let Some((at, deployment)) = found.group.next(&tried) else {
                // All have failed. Another round may find them recovered.
                let pause = found
                    .group
                    .pause(round)
                    .filter(|p| !tried.is_empty() && *p < state.time_left());
                let Some(pause) = pause else { break };
                if let Watched::ClientGone(e) = watch(session, tokio::time::sleep(pause)).await {
                    return Err(End::Gone(e));
                }
                tried.clear();
                round += 1;
                continue;
            };
            tried.push(at);
            let begun = Instant::now();
            let (failure, is_final) = match self
                .attempt(session, state, lane, &found, deployment, &model)
                .await
            {
                Attempted::Answered => return Ok(()),
                Attempted::ClientGone(e) => return Err(End::Gone(e)),
                Attempted::Broken(e) => return Err(End::Broken(e)),
                Attempted::Stopped(stop) => return Err(stop.into()),
                Attempted::Failed(failure) => (failure, false),
                Attempted::Final(failure) => (failure, true),
            };
            log::debug!(
                "request_id={} deployment={} attempt={} cause={:?}",
                state.cx.request_id,
                deployment.id,
                state.cx.attempts.len() + 1,
                failure.cause
            );
            let (status, error) = match &failure.shown {
                Shown::Theirs { head, .. } => (
                    head.status.as_u16(),
                    format!("it answered {}", head.status.as_u16()),
                ),
                Shown::Ours(fault) => (0, fault.shown.clone()),
            };
            let attempts = &mut state.cx.attempts;
            // An answer that began well and then broke was noted as one that counts.
            attempts.retain(|a| a.error.is_some());
            attempts.push(Attempt {
                deployment_id: deployment.id.clone(),
                status,
                error: Some(error),
                duration_micros: begun.elapsed().as_micros() as i64,
            });
            last = Some(failure);
            if is_final {
                break;
            }
        }
        match last {
            Some(Failure {
                shown: Shown::Theirs { head, body },
                ..
            }) => Ok(self.pass_error(session, state, lane, *head, body).await?),
            Some(Failure {
                shown: Shown::Ours(fault),
                ..
            }) => Err(Stop::from(fault).into()),
            None => Err(Stop::from(Fault::unavailable(
                "No deployments available for the selected model.",
                format!("the group {} has no deployments", found.group.name),
            ))
            .into()),
        }
    }

    /// One attempt at one deployment.
    #[allow(clippy::too_many_arguments, reason = "an attempt is all of these")]
    async fn attempt(
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
            headers: forwarded(session),
            edits: Default::default(),
            body: Rope::default(),
        };
        if let Err(stop) = lane.chain.upstream_request_filter(cx, &mut up).await {
            return Attempted::Stopped(stop);
        }

        // A pooled connection may have been closed by the other side just now. That says nothing about
        // the deployment, so it gets one more chance, over a connection of its own.
        let mut chances = 2;
        let begun = Instant::now();
        loop {
            chances -= 1;
            let peer = match self.peers.peer(&d.base, state.snapshot.timeouts.connect).await {
                Ok(peer) => peer,
                Err(cause) => return Attempted::Failed(unreachable(&d, cause)),
            };
            let (mut client, reused) = match watch(session, self.connector.get_http_session(&*peer)).await {
                Watched::Upstream(Ok(got)) => got,
                Watched::Upstream(Err(e)) => return Attempted::Failed(unreachable(&d, e.to_string())),
                Watched::ClientGone(e) => return Attempted::ClientGone(e),
            };
            let stream = state.cx.call.as_ref().is_some_and(|c| c.stream);
            client.set_read_timeout(Some(
                if stream { d.stream_timeout } else { d.timeout }.min(state.time_left()),
            ));
            match exchange(session, &mut client, &d, &up).await {
                Ok(()) => {}
                Err(Exchange::ClientGone(e)) => return Attempted::ClientGone(e),
                Err(Exchange::Broke(_)) if reused && chances > 0 => continue,
                Err(Exchange::Broke(e)) => return Attempted::Failed(no_answer(&d, &e)),
            }
            state.cx.first_byte = Some(Instant::now());
            let Some(status) = client.response_header().map(|h| h.status.as_u16()) else {
                return Attempted::Failed(no_answer(&d, &Error::new(ErrorType::InvalidHTTPHeader)));
            };
            if !(200..300).contains(&status) {
                return self.failed(session, client, &peer, &d).await;
            }
            state.cx.attempts.push(Attempt {
                deployment_id: d.id.clone(),
                status,
                error: None,
                duration_micros: begun.elapsed().as_micros() as i64,
            });
            return self.pipe(session, state, lane, client, &peer, &d).await;
        }
    }

    /// Reads an upstream's error answer.
    async fn failed(
        &self,
        session: &mut Session,
        mut client: HttpSession,
        peer: &Arc<HttpPeer>,
        d: &Deployment,
    ) -> Attempted {
        let Some(header) = client.response_header() else {
            return Attempted::Failed(no_answer(d, &Error::new(ErrorType::InvalidHTTPHeader)));
        };
        let head = head::from_upstream(header);
        let status = head.status.as_u16();
        let mut body = BytesMut::new();
        let mut whole = false;
        while body.len() < MAX_ERROR_BODY {
            match watch(session, client.read_response_body()).await {
                Watched::Upstream(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
                Watched::Upstream(Ok(None)) => {
                    whole = true;
                    break;
                }
                // What came of the error is better than nothing.
                Watched::Upstream(Err(_)) => break,
                Watched::ClientGone(e) => return Attempted::ClientGone(e),
            }
        }
        body.truncate(MAX_ERROR_BODY);
        if whole {
            self.release(client, peer).await;
        }
        let failure = Failure {
            shown: Shown::Theirs {
                head: Box::new(head),
                body: body.freeze(),
            },
            cause: format!("status {status}"),
        };
        // What is wrong with the request is wrong everywhere. What is wrong with the deployment, its
        // credentials included, may be right with the next one.
        let elsewhere = matches!(status, 401 | 403 | 404 | 408 | 429 | 500..=599);
        if elsewhere {
            Attempted::Failed(failure)
        } else {
            Attempted::Final(failure)
        }
    }

    /// Passes an upstream's error on, as the last word.
    async fn pass_error(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        mut head: response::Parts,
        mut body: Bytes,
    ) -> Result<(), End> {
        let cx = &mut state.cx;
        cx.response_status = head.status.as_u16();
        let name = cx.deployment.as_ref().map(|d| d.label()).unwrap_or_default();
        let status = head.status.as_u16();
        if matches!(status, 401 | 403 | 407) {
            // It speaks of the gateway's credentials, and may quote them.
            return Err(Stop::from(Fault {
                status: if status == 407 { 502 } else { status },
                kind: "authentication_error",
                shown: format!("The upstream of deployment {name} did not accept the gateway's credentials. An admin has to look at its api_key."),
                cause: format!("upstream answered {status}"),
                headers: Vec::new(),
            })
            .into());
        }
        if (300..400).contains(&status) || status < 200 {
            return Err(Stop::from(Fault::upstream(
                format!("The upstream of deployment {name} answered with a redirect, which is not followed."),
                status,
            ))
            .into());
        }
        lane.chain.response_filter(cx, &mut head)?;
        lane.chain.response_body_filter(cx, &mut body, true)?;
        let status = cx.response_status;
        if !is_json_object(&body) {
            // A page of a proxy in between, or nothing at all: no client can read that.
            let mut fault = Fault::upstream(
                format!("The upstream of deployment {name} answered {status} without saying why."),
                format!("body of {} bytes", body.len()),
            );
            fault.status = status;
            if let Some(after) = head.headers.get("retry-after").and_then(|v| v.to_str().ok()) {
                fault.headers.push(("retry-after", after.to_string()));
            }
            return Err(Stop::from(fault).into());
        }
        head.status = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::BAD_GATEWAY);
        let header = head::to_client(head, cx, Framing::Length(body.len())).map_err(End::Broken)?;
        session
            .write_response_header(header, false)
            .await
            .map_err(End::Gone)?;
        session
            .write_response_body(Some(body), true)
            .await
            .map_err(End::Gone)?;
        state.ended(
            Status::Failure,
            status,
            Some(&format!("upstream answered {status}")),
            Some("upstream_error"),
        );
        Ok(())
    }

    /// Lets a good answer flow to the client.
    async fn pipe(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        mut client: HttpSession,
        peer: &Arc<HttpPeer>,
        d: &Deployment,
    ) -> Attempted {
        let Some(header) = client.response_header() else {
            return Attempted::Failed(no_answer(d, &Error::new(ErrorType::InvalidHTTPHeader)));
        };
        let head = head::from_upstream(header);
        let kind = head
            .headers
            .get("content-type")
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let is_event_stream = kind.starts_with("text/event-stream");
        let is_json = kind.starts_with("application/json") || d.dialect != "openai";
        state.cx.event_stream = is_event_stream;
        state.cx.response_status = head.status.as_u16();
        if is_event_stream {
            client.set_read_timeout(Some(d.stream_timeout.min(state.snapshot.timeouts.stream_idle)));
        }

        let mut reading = Reading { client, failed: None };
        if !is_event_stream && is_json {
            match hold(session, &mut reading).await {
                Held::Whole(body) => {
                    let sent = self.send_whole(session, state, lane, head, body).await;
                    self.release(reading.client, peer).await;
                    return sent;
                }
                Held::TooLong(begun) => {
                    return self
                        .stream(session, state, lane, reading, peer, d, head, begun)
                        .await;
                }
                Held::Broke(e) => return Attempted::Failed(no_answer(d, &e)),
                Held::ClientGone(e) => return Attempted::ClientGone(e),
            }
        }
        self.stream(session, state, lane, reading, peer, d, head, Vec::new())
            .await
    }

    async fn send_whole(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        mut head: response::Parts,
        mut body: Bytes,
    ) -> Attempted {
        let cx = &mut state.cx;
        let filtered = lane
            .chain
            .response_filter(cx, &mut head)
            .and_then(|()| lane.chain.response_body_filter(cx, &mut body, true));
        if let Err(stop) = filtered {
            return Attempted::Stopped(stop);
        }
        let status = head.status.as_u16();
        let header = match head::to_client(head, cx, Framing::Length(body.len())) {
            Ok(header) => header,
            Err(e) => return Attempted::Broken(e),
        };
        let written = async {
            session.write_response_header(header, false).await?;
            session.write_response_body(Some(body), true).await
        };
        match written.await {
            Ok(()) => {
                state.ended(Status::Success, status, None, None);
                Attempted::Answered
            }
            Err(e) => Attempted::ClientGone(e),
        }
    }

    /// Head first, then chunk by chunk.
    #[allow(clippy::too_many_arguments, reason = "a stream is all of these")]
    async fn stream(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        mut reading: Reading,
        peer: &Arc<HttpPeer>,
        d: &Deployment,
        mut head: response::Parts,
        begun: Vec<Bytes>,
    ) -> Attempted {
        let cx = &mut state.cx;
        if let Err(stop) = lane.chain.response_filter(cx, &mut head) {
            return Attempted::Stopped(stop);
        }
        let status = head.status.as_u16();
        let has_length = head.headers.contains_key("content-length") && !cx.event_stream;
        let framing = if has_length {
            Framing::AsItIs
        } else {
            Framing::open_ended(session.req_header().version)
        };
        let header = match head::to_client(head, cx, framing) {
            Ok(header) => header,
            Err(e) => return Attempted::Broken(e),
        };
        if let Err(e) = session.write_response_header(header, false).await {
            return Attempted::ClientGone(e);
        }
        let mut begun = begun.into_iter();
        loop {
            let (mut chunk, end) = match begun.next() {
                Some(chunk) => (chunk, false),
                None => match watch(session, reading.next()).await {
                    Watched::Upstream(Ok(got)) => got,
                    Watched::Upstream(Err(e)) => return self.cut(session, state, lane, d, &e).await,
                    Watched::ClientGone(e) => return Attempted::ClientGone(e),
                },
            };
            let cx = &mut state.cx;
            if let Err(stop) = lane.chain.response_body_filter(cx, &mut chunk, end) {
                let e = Error::explain(ErrorType::InternalError, stop.shown().to_string());
                return self.cut(session, state, lane, d, &e).await;
            }
            if !end {
                cx.bytes_out = cx.bytes_out.saturating_add(chunk.len() as u64);
            }
            if (!chunk.is_empty() || end)
                && let Err(e) = session.write_response_body(Some(chunk), end).await
            {
                return Attempted::ClientGone(e);
            }
            if end {
                let error = state.cx.metered.error.clone();
                let ended = if error.is_some() {
                    Status::Cut
                } else {
                    Status::Success
                };
                state.ended(
                    ended,
                    status,
                    error.as_deref(),
                    error.as_ref().map(|_| "upstream_error"),
                );
                self.release(reading.client, peer).await;
                return Attempted::Answered;
            }
            if state.time_left().is_zero() {
                let e = Error::explain(ErrorType::ReadTimedout, "the call took longer than a call may");
                return self.cut(session, state, lane, d, &e).await;
            }
        }
    }

    /// The upstream broke off while the client was reading: says so where the format has a place for
    /// it, and otherwise breaks off as well, so that nobody takes a part for the whole.
    async fn cut(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        d: &Deployment,
        cause: &Error,
    ) -> Attempted {
        log::warn!(
            "request_id={} deployment={} an answer broke off: cause={:?}",
            state.cx.request_id,
            d.id,
            cause.to_string()
        );
        let shown = format!(
            "The deployment {} broke off in the middle of its answer.",
            d.label()
        );
        state.cx.metered.error = Some(shown.clone());
        state.ended(
            Status::Cut,
            state.cx.response_status,
            Some(&shown),
            Some("upstream_cut"),
        );
        if !state.cx.event_stream {
            return Attempted::Broken(Error::explain(ErrorType::ReadError, shown));
        }
        // What had come of an event that is not whole cannot be used; the filters let go of it.
        let mut rest = Bytes::new();
        let translated = state.cx.translator.is_some();
        let flushed = lane
            .chain
            .response_body_filter(&mut state.cx, &mut rest, true)
            .is_ok();
        let last = if translated && flushed && !rest.is_empty() {
            rest
        } else {
            // A blank line ends whatever event was cut in the middle.
            let mut event = BytesMut::from(&b"\n\n"[..]);
            event.extend_from_slice(&respond::error_event(&shown, &state.cx.request_id));
            event.freeze()
        };
        match session.write_response_body(Some(last), true).await {
            Ok(()) => Attempted::Answered,
            Err(e) => Attempted::ClientGone(e),
        }
    }

    /// Gives a connection back to the pool once its answer is read to the end.
    async fn release(&self, mut client: HttpSession, peer: &Arc<HttpPeer>) {
        if !client.response_done() {
            return;
        }
        if let HttpSession::H1(h1) = &mut client {
            h1.respect_keepalive();
        }
        self.connector
            .release_http_session(client, &**peer, peer.options.idle_timeout)
            .await;
    }
}

/// How a call ends when it is not answered by an upstream.
pub(super) enum End {
    Stop(Stop),
    Answer(Answer),
    /// The client left.
    Gone(Box<Error>),
    /// The connection has to be closed; the reason is noted.
    Broken(Box<Error>),
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        End::Stop(stop)
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        End::Stop(refusal.into())
    }
}

/// Why sending a request and waiting for its answer came to nothing.
enum Exchange {
    ClientGone(Box<Error>),
    Broke(Box<Error>),
}

/// Sends the request and waits for the head of the answer, which may come before all is sent.
async fn exchange(
    session: &mut Session,
    client: &mut HttpSession,
    d: &Deployment,
    up: &Upstream,
) -> Result<(), Exchange> {
    let h2 = matches!(client, HttpSession::H2(_));
    let path = head::join(&d.base.path, &up.path);
    let head = head::upstream_request(
        &d.base.authority(),
        d.base.tls,
        h2,
        &path,
        &up.headers,
        up.body.len(),
    )
    .map_err(Exchange::Broke)?;
    match watch(session, send(client, head, &up.body)).await {
        Watched::Upstream(Ok(())) => {}
        Watched::Upstream(Err(e)) => return Err(Exchange::Broke(e)),
        Watched::ClientGone(e) => return Err(Exchange::ClientGone(e)),
    }
    loop {
        // Informational answers come before the one that counts.
        if client
            .response_header()
            .is_some_and(|h| !h.status.is_informational())
        {
            return Ok(());
        }
        match watch(session, client.read_response_header()).await {
            Watched::Upstream(Ok(())) => {}
            Watched::Upstream(Err(e)) => return Err(Exchange::Broke(e)),
            Watched::ClientGone(e) => return Err(Exchange::ClientGone(e)),
        }
    }
}

/// Writes head and body. An upstream that has seen enough may answer before the body is through (413,
/// 429); then the rest is not sent.
async fn send(client: &mut HttpSession, head: Box<pingora_http::RequestHeader>, body: &Rope) -> Result<()> {
    client.write_request_header(head).await?;
    let many = body.len() > SLICE;
    let mut left = body.len();
    for slice in body.slices(SLICE) {
        left -= slice.len();
        if many && matches!(client.read_response_header().now_or_never(), Some(Ok(()))) {
            return Ok(());
        }
        if let Err(e) = client.write_request_body(slice, left == 0).await {
            // It may have answered and then closed its side.
            return match tokio::time::timeout(EARLY_ANSWER, client.read_response_header()).await {
                Ok(Ok(())) => Ok(()),
                _ => Err(e),
            };
        }
    }
    match client {
        // HTTP/2 ended with its last piece; HTTP/1 wants to be told.
        HttpSession::H2(_) if !body.is_empty() => Ok(()),
        _ => client.finish_request_body().await,
    }
}

/// Reads an answer's body. An error that shows up behind good bytes waits until these are handed on:
/// Pingora tells it once.
struct Reading {
    client: HttpSession,
    failed: Option<Box<Error>>,
}

impl Reading {
    /// The next part of the answer, with everything that is readable already, and whether it is the last.
    async fn next(&mut self) -> Result<(Bytes, bool)> {
        if let Some(e) = self.failed.take() {
            return Err(e);
        }
        let client = &mut self.client;
        let Some(first) = client.read_response_body().await? else {
            return Ok((Bytes::new(), true));
        };
        let mut gathered: Option<BytesMut> = None;
        let mut end = client.response_done();
        while !end && gathered.as_ref().map_or(first.len(), BytesMut::len) < MAX_GATHERED {
            match client.read_response_body().now_or_never() {
                Some(Ok(Some(more))) => {
                    gathered
                        .get_or_insert_with(|| BytesMut::from(&first[..]))
                        .extend_from_slice(&more);
                    end = client.response_done();
                }
                Some(Ok(None)) => end = true,
                Some(Err(e)) => {
                    self.failed = Some(e);
                    break;
                }
                None => break,
            }
        }
        Ok((gathered.map_or(first, BytesMut::freeze), end))
    }
}

/// An answer that is read before its head goes out.
enum Held {
    Whole(Bytes),
    /// Larger than is held: what has come so far.
    TooLong(Vec<Bytes>),
    Broke(Box<Error>),
    ClientGone(Box<Error>),
}

async fn hold(session: &mut Session, reading: &mut Reading) -> Held {
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut len = 0;
    loop {
        let (chunk, end) = match watch(session, reading.next()).await {
            Watched::Upstream(Ok(got)) => got,
            Watched::Upstream(Err(e)) => return Held::Broke(e),
            Watched::ClientGone(e) => return Held::ClientGone(e),
        };
        len += chunk.len();
        if !chunk.is_empty() {
            pieces.push(chunk);
        }
        if end {
            return Held::Whole(match pieces.len() {
                1 => pieces.swap_remove(0),
                _ => pieces.concat().into(),
            });
        }
        if len > MAX_HELD_ANSWER {
            return Held::TooLong(pieces);
        }
    }
}

/// What of the client's head goes to a model: nothing that says who it is.
fn forwarded(session: &Session) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    let from = &session.req_header().headers;
    for name in [
        "accept",
        "user-agent",
        "anthropic-beta",
        "openai-beta",
        "idempotency-key",
    ] {
        if let Some(value) = from.get(name) {
            headers.insert(name, value.clone());
        }
    }
    // Usage is read from the answer as it flows by, so it must not be packed.
    headers.insert("accept-encoding", http::HeaderValue::from_static("identity"));
    headers
}

fn content_type(session: &Session, endpoint: Endpoint) -> Result<String, Refusal> {
    let given = session
        .get_header("content-type")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if endpoint.is_multipart() {
        return Ok(given.to_string());
    }
    if given.starts_with("multipart/") {
        return Err(Refusal::bad_request(format!(
            "{} takes a JSON body.",
            endpoint.path()
        )));
    }
    Ok("application/json".to_string())
}

/// Tags may also come in LiteLLM's header.
fn with_header_tags(mut call: Call, session: &Session) -> Call {
    if let Some(tags) = session.get_header("x-litellm-tags").and_then(|v| v.to_str().ok()) {
        call.tags.extend(
            tags.split(',')
                .map(str::trim)
                .filter(|t| !t.is_empty())
                .take(64)
                .map(Into::into),
        );
    }
    call
}

fn is_json_object(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}

fn unreachable(d: &Deployment, cause: String) -> Failure {
    Failure {
        shown: Shown::Ours(Fault::unavailable(
            format!("The upstream of deployment {} cannot be reached.", d.label()),
            cause.clone(),
        )),
        cause,
    }
}

fn no_answer(d: &Deployment, e: &Error) -> Failure {
    let timed_out = matches!(e.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
    let mut fault = Fault::upstream(
        if timed_out {
            format!("The upstream of deployment {} did not answer in time.", d.label())
        } else {
            format!(
                "The upstream of deployment {} broke off without an answer.",
                d.label()
            )
        },
        e,
    );
    if timed_out {
        (fault.status, fault.kind) = (408, "timeout_error");
    }
    Failure {
        shown: Shown::Ours(fault),
        cause: e.to_string(),
    }
}
