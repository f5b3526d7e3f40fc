//! The stream driver: lanes whose bodies nobody needs to read, forwarded by Pingora's own loop. Bytes
//! flow untouched in both directions, WebSocket included.

use super::lanes::Kind;
use super::state::State;
use super::{Gateway, head, respond};
use bytes::Bytes;
use filters::contract::{Fault, Stop, Upstream, Verdict};
use filters::model::record::Status;
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
            Ok(Verdict::Continue) => Ok(false),
            Ok(Verdict::Answer(answer)) => self.send(session, state, answer).await.map(|()| true),
            Err(stop) => self.refuse(session, state, &stop).await.map(|()| true),
        }
    }

    pub(super) async fn stream_peer(&self, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        let state = state(ctx)?;
        let Kind::Stream(target) = &state.lane.kind else {
            return Err(Error::explain(ErrorType::InternalError, "the lane has no target"));
        };
        let timeouts = &state.snapshot.timeouts;
        let place = self
            .peers
            .place(&target.base, timeouts.connect)
            .await
            .map_err(|e| Error::explain(ErrorType::ConnectError, e).into_up())?;
        let mut peer = Box::new(place.peer.clone());
        peer.options.read_timeout = Some(timeouts.first_byte);
        Ok(peer)
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
        let mut up = Upstream {
            deployment: None,
            model: String::new(),
            method: client.method.clone(),
            path: target.path(client.uri.path(), client.uri.query()),
            headers: request.headers.clone(),
            edits: Default::default(),
            body: Rope::default(),
        };
        lane.chain
            .upstream_request_filter(&mut state.cx, &mut up)
            .await
            .map_err(|stop| Error::explain(ErrorType::InternalError, stop.shown().to_string()))?;
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
        request.insert_header(header::HOST, target.base.authority())?;
        request.insert_header("x-request-id", state.cx.request_id.as_str())?;
        let client_ip = state.cx.client_ip.to_string();
        request.insert_header("x-forwarded-for", client_ip.as_str())?;
        Ok(())
    }

    pub(super) fn stream_head(&self, response: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
        let state = state(ctx)?;
        state.cx.response_status = response.status.as_u16();
        let lane = Arc::clone(&state.lane);
        if let Kind::Stream(target) = &lane.kind {
            head::hide_target(response, target)?;
        }
        if response.status != http::StatusCode::SWITCHING_PROTOCOLS {
            let mut parts = response.as_owned_parts();
            lane.chain
                .response_filter(&mut state.cx, &mut parts)
                .map_err(|stop| Error::explain(ErrorType::InternalError, stop.shown().to_string()))?;
            head::replace_fields(response, &parts.headers)?;
        }
        response.insert_header("x-request-id", state.cx.request_id.as_str())?;
        response.insert_header("x-litellm-call-id", state.cx.request_id.as_str())?;
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
        if state.is_over() || *e.esource() == ErrorSource::Downstream || session.response_written().is_some()
        {
            return gone;
        }
        let lane = state.lane.name.clone();
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
        let stop = Stop::Fault(fault);
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
