//! The stream driver: lanes whose bodies nobody needs to read, forwarded by Pingora's own loop. Bytes
//! flow untouched in both directions, WebSocket included. Which backend of a service is next is
//! [`super::services`]' to say.

use super::lanes::{Kind, To};
use super::services::{Service, forwarded};
use super::state::State;
use super::{Gateway, head, respond};
use bytes::Bytes;
use filters::contract::{Cx, Fault, Refusal, Stop, Upstream, Verdict};
use filters::model::deployment::Base;
use filters::model::record::Status;
use filters::model::trace::Context;
use filters::wire::splice::Rope;
use http::header;
use pingora::prelude::*;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, Session};
use std::sync::Arc;
use std::time::Duration;

type Ctx = Option<Box<State>>;

fn state(ctx: &mut Ctx) -> Result<&mut State> {
    ctx.as_deref_mut()
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "a request has no state"))
}

impl Gateway {
    /// Runs the head's chain. True = the answer has been written.
    pub(super) async fn enter_stream(&self, session: &mut Session, state: &mut State) -> Result<bool> {
        let lane = Arc::clone(&state.lane);
        match lane
            .chain
            .request_filter(&mut state.cx, session.req_header())
            .await
        {
            Ok(Verdict::Continue) => {}
            Ok(Verdict::Answer(answer)) => return self.send(session, state, answer).await.map(|()| true),
            Err(stop) => return self.refuse(session, state, &stop).await.map(|()| true),
        }
        let head = session.req_header();
        if !lane.takes(head.method.as_str()) {
            let allow = lane.methods.join(", ");
            let message = format!("{} is not offered here; use {allow}.", head.method);
            let refusal = Refusal::new(405, "invalid_request_error", message).header("allow", allow);
            return self.refuse(session, state, &refusal.into()).await.map(|()| true);
        }
        if let Some(service) = service(&state.lane.kind) {
            let length = head.headers.get(header::CONTENT_LENGTH);
            let length: Option<u64> = length.and_then(|v| v.to_str().ok()?.parse().ok());
            if let (Some(most), Some(length)) = (service.request_body_bytes, length)
                && length > most
            {
                return self
                    .refuse(session, state, &too_large(most).into())
                    .await
                    .map(|()| true);
            }
            if session.is_upgrade_req() {
                session.set_read_timeout(Some(service.timeouts.idle));
            }
        }
        Ok(false)
    }

    pub(super) async fn stream_peer(&self, session: &Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        let state = state(ctx)?;
        let lane = Arc::clone(&state.lane);
        let Kind::Stream(target) = &lane.kind else {
            return Err(Error::explain(ErrorType::InternalError, "the lane has no target"));
        };
        let unreachable = |e: String| Error::explain(ErrorType::ConnectError, e).into_up();
        let service = match &target.to {
            To::Service(service) => service,
            To::Place(base) => {
                let timeouts = &state.snapshot.timeouts;
                let place = self
                    .peers
                    .place(base, timeouts.connect)
                    .await
                    .map_err(unreachable)?;
                let mut peer = Box::new(place.peer.clone());
                peer.options.read_timeout = Some(timeouts.first_byte);
                return Ok(peer);
            }
        };
        let upgrades = session.is_upgrade_req();
        loop {
            let Some(backend) = service.choose(&mut state.trip) else {
                return Err(unreachable("no backend is left to try".into()));
            };
            match self.peers.place(&backend.base, service.timeouts.connect).await {
                Ok(place) => return Ok(service.peer(&place.peer, upgrades)),
                Err(e) => {
                    if !service.refused(&mut state.trip, &e) {
                        return Err(unreachable(e));
                    }
                }
            }
        }
    }

    /// A connection could not be opened, so nothing was sent: another backend may be tried.
    pub(super) fn stream_refused(&self, ctx: &mut Ctx, mut e: Box<Error>) -> Box<Error> {
        if let Some(state) = ctx.as_deref_mut()
            && let Some(service) = service(&state.lane.kind)
        {
            let again = service.refused(&mut state.trip, &e.to_string());
            e.set_retry(again);
        }
        e
    }

    /// Looks at a piece of the request's body on its way.
    pub(super) fn stream_body(&self, session: &Session, body: Option<&Bytes>, ctx: &mut Ctx) -> Result<()> {
        let state = state(ctx)?;
        let Some(service) = service(&state.lane.kind) else {
            return Ok(());
        };
        in_time(service, &state.cx)?;
        let len = body.map_or(0, Bytes::len) as u64;
        state.cx.bytes_in = state.cx.bytes_in.saturating_add(len);
        match service.request_body_bytes {
            Some(most) if state.cx.bytes_in > most && !session.was_upgraded() => Err(Error::explain(
                ErrorType::HTTPStatus(413),
                "the body is larger than the service takes",
            )),
            _ => Ok(()),
        }
    }

    /// Gives the upstream's request the target's path and the headers that travel.
    pub(super) async fn dress_stream(
        &self,
        session: &Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let state = state(ctx)?;
        let lane = Arc::clone(&state.lane);
        let Kind::Stream(target) = &lane.kind else {
            return Ok(());
        };
        let client = session.req_header();
        let Some(base) = base(&target.to, state).cloned() else {
            return Err(Error::explain(ErrorType::InternalError, "no backend was chosen"));
        };
        let mut up = Upstream {
            deployment: None,
            model: String::new(),
            method: client.method.clone(),
            path: target.path(&base, client.uri.path(), client.uri.query()),
            headers: request.headers.clone(),
            edits: Default::default(),
            body: Rope::default(),
        };
        lane.chain
            .upstream_request_filter(&mut state.cx, &mut up)
            .await
            .map_err(|stop| Error::explain(ErrorType::InternalError, stop.shown().to_string()))?;
        if matches!(target.to, To::Place(_)) && !base.is_internal() {
            Context::HEADERS
                .iter()
                .for_each(|name| drop(up.headers.remove(*name)));
        }
        let mut host = base.authority();
        if let To::Service(service) = &target.to {
            let authority = authority(client).to_string();
            let way = forwarded::Way {
                peer: state.peer.to_canonical(),
                is_listed: {
                    let peer = state.peer.to_canonical();
                    state
                        .snapshot
                        .networks
                        .proxies
                        .iter()
                        .any(|net| net.contains(&peer))
                },
                client: state.cx.client_ip,
                tls: session.digest().is_some_and(|d| d.ssl_digest.is_some()),
                authority: &authority,
                stripped: target.stripped(client.uri.path()),
            };
            forwarded::tell(&mut up.headers, &way);
            service.request_headers.apply(&mut up.headers);
            if let Some(set) = up.headers.get(header::HOST).filter(|_| service.sets_host()) {
                host = String::from_utf8_lossy(set.as_bytes()).into_owned();
            } else if service.pass_host && !authority.is_empty() {
                host = authority;
            }
        }
        let names: Vec<_> = request.headers.keys().cloned().collect();
        for name in &names {
            request.remove_header(name);
        }
        for (name, value) in &up.headers {
            request.append_header(name.clone(), value.clone())?;
        }
        request.set_uri(
            up.path
                .parse()
                .or_err(ErrorType::InvalidHTTPHeader, "building the target's path")?,
        );
        request.insert_header(header::HOST, host)?;
        request.insert_header("x-request-id", state.cx.request_id.as_str())?;
        if let To::Place(_) = &target.to {
            let client_ip = state.cx.client_ip.to_string();
            request.insert_header("x-forwarded-for", client_ip.as_str())?;
        }
        Ok(())
    }

    pub(super) fn stream_head(
        &self,
        session: &Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let state = state(ctx)?;
        state.cx.response_status = response.status.as_u16();
        state.trip.answered(response.status.as_u16());
        let lane = Arc::clone(&state.lane);
        let mut is_target = true;
        if let Kind::Stream(target) = &lane.kind {
            is_target = matches!(target.to, To::Place(_));
            if is_target {
                head::hide_server(response);
            }
            if let Some(base) = base(&target.to, state) {
                let place = head::Place {
                    base,
                    add: &target.add,
                    strip: target.stripped(session.req_header().uri.path()),
                    query: target.query.as_deref(),
                };
                head::hide_place(response, &place)?;
            }
        }
        if response.status != http::StatusCode::SWITCHING_PROTOCOLS {
            let mut parts = response.as_owned_parts();
            lane.chain
                .response_filter(&mut state.cx, &mut parts)
                .map_err(|stop| Error::explain(ErrorType::InternalError, stop.shown().to_string()))?;
            if let Some(service) = service(&lane.kind) {
                service.response_headers.apply(&mut parts.headers);
            }
            head::replace_fields(response, &parts.headers)?;
            // How the target's own limits stand is the target's to say.
            for (name, value) in std::mem::take(&mut state.cx.standings).iter() {
                if !response.headers.contains_key(name) {
                    response.insert_header(name.clone(), value)?;
                }
            }
        }
        response.insert_header("x-request-id", state.cx.request_id.as_str())?;
        // An application that says more of its own host knows better.
        if let Some(hsts) = super::hsts(&state.snapshot, session)
            && !response.headers.contains_key(header::STRICT_TRANSPORT_SECURITY)
        {
            response.insert_header(header::STRICT_TRANSPORT_SECURITY, hsts)?;
        }
        if is_target {
            response.insert_header("x-litellm-call-id", state.cx.request_id.as_str())?;
        }
        Ok(())
    }

    pub(super) fn stream_chunk(
        &self,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        let state = state(ctx)?;
        let lane = Arc::clone(&state.lane);
        if let Some(service) = service(&lane.kind) {
            in_time(service, &state.cx)?;
        }
        let mut chunk = body.take().unwrap_or_default();
        state.cx.first_byte.get_or_insert_with(std::time::Instant::now);
        lane.chain
            .response_body_filter(&mut state.cx, &mut chunk, end)
            .map_err(|stop| Error::explain(ErrorType::InternalError, stop.shown().to_string()))?;
        state.cx.bytes_out = state.cx.bytes_out.saturating_add(chunk.len() as u64);
        *body = Some(chunk).filter(|c| !c.is_empty());
        Ok(None)
    }

    /// Turns a failure of Pingora's loop into an answer, if the client can still get one.
    pub(super) async fn stream_failed(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        let gone = FailToProxy {
            error_code: 0,
            can_reuse_downstream: false,
        };
        let Some(state) = ctx.as_deref_mut() else {
            return FailToProxy {
                error_code: 400,
                can_reuse_downstream: false,
            };
        };
        let by_client = *e.esource() == ErrorSource::Downstream;
        // Pingora refuses heads that ask it to drop what upstreams have to know, and says nothing.
        let malformed = by_client && *e.etype() == ErrorType::InvalidHTTPHeader;
        if state.is_over() || by_client && !malformed || session.response_written().is_some() {
            return gone;
        }
        let lane = state.lane.name.clone();
        let too_large = service(&state.lane.kind)
            .and_then(|s| s.request_body_bytes)
            .filter(|_| *e.etype() == ErrorType::HTTPStatus(413))
            .map(too_large);
        let fault = match e.etype() {
            ErrorType::ConnectTimedout
            | ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::TLSHandshakeFailure
            | ErrorType::TLSHandshakeTimedout => {
                Fault::unavailable(format!("The service behind {lane} cannot be reached."), e)
            }
            ErrorType::ReadTimedout => Fault {
                status: 504,
                kind: "timeout_error",
                shown: format!("The service behind {lane} did not answer in time."),
                cause: e.to_string(),
                headers: Vec::new(),
            },
            _ if *e.esource() == ErrorSource::Upstream => Fault::upstream(
                format!("The service behind {lane} broke off without an answer."),
                e,
            ),
            _ => Fault::internal(e),
        };
        let malformed = malformed.then(|| {
            Refusal::bad_request("A header names what must not be dropped, or cannot be passed on.")
        });
        let stop = too_large.or(malformed).map_or(Stop::Fault(fault), Stop::from);
        let code = stop.status();
        state.ended(Status::Failure, code, Some(stop.shown()), Some(stop.kind()));
        let answer = respond::render(&stop, &state.cx.request_id);
        // Pingora closes the client's connection after a failure, whatever is returned here. It has to be
        // said, or the client's next request on it is lost.
        session.set_keepalive(None);
        if let Err(e) = respond::answer(session, answer, &[("x-request-id", &state.cx.request_id)]).await {
            log::debug!(
                "request_id={} the client left before its error: {e}",
                state.cx.request_id
            );
        }
        FailToProxy {
            error_code: code,
            can_reuse_downstream: false,
        }
    }
}

fn service(kind: &Kind) -> Option<&Service> {
    match kind {
        Kind::Stream(target) => match &target.to {
            To::Service(service) => Some(service),
            To::Place(_) => None,
        },
        _ => None,
    }
}

/// Where the request goes: the target's place, or the backend that was chosen.
fn base<'a>(to: &'a To, state: &'a State) -> Option<&'a Base> {
    match to {
        To::Place(base) => Some(base),
        To::Service(_) => state.trip.backend.as_ref().map(|b| &b.base),
    }
}

/// The host as the client asked for it, with its port.
fn authority(head: &RequestHeader) -> &str {
    let named = head.uri.authority().map(|a| a.as_str());
    named
        .or_else(|| head.headers.get(header::HOST).and_then(|v| v.to_str().ok()))
        .unwrap_or_default()
}

fn in_time(service: &Service, cx: &Cx) -> Result<()> {
    if service
        .timeouts
        .total
        .is_none_or(|total| cx.started.elapsed() < total)
    {
        return Ok(());
    }
    Err(Error::explain(
        ErrorType::ReadTimedout,
        "the exchange takes longer than the service may",
    ))
}

fn too_large(most: u64) -> Refusal {
    let message = format!("The body is larger than the {most} bytes taken here.");
    Refusal::new(413, "invalid_request_error", message)
}
