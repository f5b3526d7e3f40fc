//! The way of an upstream's answer to the client: whole, chunk by chunk, or broken off in a way that
//! nobody takes for the end.

use super::attempt::{Ready, Shown};
use super::call::End;
use super::cooldown::Symptom;
use super::head::{self, Framing};
use super::lanes::Lane;
use super::state::Parting;
use super::watch::{Watched, watch};
use super::{Gateway, State, respond};
use bytes::{Bytes, BytesMut};
use filters::contract::{Fault, Stop};
use filters::model::call::Endpoint;
use filters::model::deployment::Deployment;
use filters::model::record::Status;
use http::{Version, header, response};
use memchr::memmem;
use pingora::prelude::*;
use pingora_proxy::Session;
use std::time::Instant;

/// Whole answers are written in pieces of this size, bytes.
pub(super) const PIECE: usize = 256 << 10;

impl Gateway {
    /// Passes a good answer on.
    pub(super) async fn deliver(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        mut ready: Box<Ready>,
    ) -> Result<(), End> {
        if !ready.whole {
            return self.stream(session, state, lane, ready).await;
        }
        let body = match ready.begun.len() {
            1 => ready.begun.swap_remove(0),
            _ => ready.begun.concat().into(),
        };
        let sent = send_whole(session, state, lane, ready.head, body).await;
        self.release(ready.reading, &ready.place).await;
        sent
    }

    /// Head first, then chunk by chunk.
    async fn stream(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        mut ready: Box<Ready>,
    ) -> Result<(), End> {
        state.cx.flowing = Some(Instant::now());
        state.let_go_of_body();
        let mut head = std::mem::replace(&mut ready.head, http::Response::new(()).into_parts().0);
        lane.chain.response_filter(&mut state.cx, &mut head)?;
        let status = head.status.as_u16();
        let length: Option<u64> = head
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse().ok());
        let has_length = length.is_some() && !state.cx.event_stream;
        let framing = if has_length {
            Framing::AsItIs
        } else {
            Framing::open_ended(session.req_header().version)
        };
        let header = head::to_client(head, &mut state.cx, framing).map_err(End::Broken)?;
        session
            .write_response_header(header, false)
            .await
            .map_err(End::Gone)?;
        let mut begun = std::mem::take(&mut ready.begun).into_iter();
        // With a length, the last byte is the end for the client, whatever else the upstream sends.
        let mut left = has_length.then_some(length).flatten();
        let mut last_word = LastWord::wanted(&ready, state);
        loop {
            let (mut chunk, mut end) = match begun.next() {
                Some(chunk) => (chunk, false),
                None if last_word.as_ref().is_some_and(|w| w.closed) => (Bytes::new(), true),
                None => match watch(session, ready.reading.next()).await {
                    Watched::Upstream(Ok(got)) => got,
                    // After the stream's own last word nothing is missing.
                    Watched::Upstream(Err(_)) if state.cx.metered.done => (Bytes::new(), true),
                    Watched::Upstream(Err(e)) => {
                        self.broke_off(&ready);
                        return Box::pin(cut(session, state, lane, &ready.deployment, &e)).await;
                    }
                    Watched::ClientGone(e) => return Err(End::Gone(e)),
                },
            };
            if let Some(left) = &mut left {
                *left = left.saturating_sub(chunk.len() as u64);
                end |= *left == 0;
            }
            if let Some(word) = &mut last_word {
                word.look(&chunk);
                if end && !word.was_said(state) {
                    if word.closed {
                        self.broke_off(&ready);
                        let e = Error::explain(
                            ErrorType::ConnectionClosed,
                            "the connection ended before the stream said that it is complete",
                        );
                        return Box::pin(cut(session, state, lane, &ready.deployment, &e)).await;
                    }
                    // What came with the end goes on first.
                    word.closed = true;
                    end = false;
                }
            }
            if let Err(stop) = lane.chain.response_body_filter(&mut state.cx, &mut chunk, end) {
                let e = Error::explain(ErrorType::InternalError, stop.shown().to_string());
                return Box::pin(cut(session, state, lane, &ready.deployment, &e)).await;
            }
            if !end {
                state.cx.bytes_out = state.cx.bytes_out.saturating_add(chunk.len() as u64);
            }
            if !chunk.is_empty() || end {
                session
                    .write_response_body(Some(chunk), end)
                    .await
                    .map_err(End::Gone)?;
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
                self.release(ready.reading, &ready.place).await;
                return Ok(());
            }
            if state.time_left().is_zero() {
                let e = Error::explain(ErrorType::ReadTimedout, "the call took longer than a call may");
                return Box::pin(cut(session, state, lane, &ready.deployment, &e)).await;
            }
        }
    }

    /// An answer that broke off is held against its deployment.
    fn broke_off(&self, ready: &Ready) {
        let held = ready.bearing.as_ref();
        if let Some(time) = held.and_then(|(bearing, sent)| bearing.broke_off(*sent)) {
            self.steps_back(&ready.deployment, Symptom::Server, 0, time);
        }
    }

    /// Passes the last attempt's error on.
    pub(super) async fn pass_error(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        shown: Shown,
    ) -> Result<(), End> {
        let (mut head, mut body) = match shown {
            Shown::Theirs { head, body } => (*head, body),
            Shown::Ours(fault) => return Err(Stop::from(fault).into()),
        };
        let cx = &mut state.cx;
        let name = cx.deployment.as_ref().map(|d| d.label()).unwrap_or_default();
        let status = head.status.as_u16();
        cx.response_status = status;
        if matches!(status, 401 | 403 | 407) {
            // It speaks of the gateway's credentials, and may quote them.
            return Err(Stop::from(Fault {
                status: if status == 407 { 502 } else { status },
                kind: "authentication_error",
                shown: format!(
                    "The upstream of deployment {name} did not accept the gateway's credentials. \
                     An admin has to look at its api_key."
                ),
                cause: format!("upstream answered {status}"),
                headers: Vec::new(),
            })
            .into());
        }
        if !(400..600).contains(&status) {
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
        write_whole(session, state, head, body).await?;
        state.ended(
            Status::Failure,
            status,
            Some(&format!("upstream answered {status}")),
            Some("upstream_error"),
        );
        Ok(())
    }
}

/// Looks for the last word of a chat's stream where the upstream's connection ends with it: closed is also what the
/// connection of a server is that died. Where HTTP itself says that an answer is whole, a stream needs no last word.
#[derive(Default)]
struct LastWord {
    /// What may be the beginning of it.
    tail: Vec<u8>,
    said: bool,
    /// The connection has ended.
    closed: bool,
}

impl LastWord {
    /// `None`: it is not needed.
    fn wanted(ready: &Ready, state: &State) -> Option<Self> {
        let cx = &state.cx;
        let endpoint = cx.call.as_ref().map(|call| call.endpoint);
        let is_chat = matches!(endpoint, Some(Endpoint::Chat | Endpoint::Completions));
        let looks = cx.event_stream && is_chat && cx.translator.is_none();
        (looks && ready.reading.ends_with_connection()).then(Self::default)
    }

    fn look(&mut self, chunk: &[u8]) {
        /// Longer than any word that is looked for.
        const TAIL: usize = 32;
        if self.said || chunk.is_empty() {
            return;
        }
        self.tail.extend_from_slice(chunk);
        self.said = memmem::find(&self.tail, b"[DONE]").is_some()
            || memmem::find_iter(&self.tail, b"\"finish_reason\"").any(|at| {
                let rest = self.tail.get(at + 15..).unwrap_or_default().trim_ascii_start();
                let value = rest.strip_prefix(b":").unwrap_or_default().trim_ascii_start();
                value.starts_with(b"\"")
            });
        let old = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..old);
    }

    /// Usage comes last, and an error is one.
    fn was_said(&self, state: &State) -> bool {
        let metered = &state.cx.metered;
        self.said || metered.done || metered.told.is_some() || metered.error.is_some()
    }
}

/// Passes on an answer that is there in full.
async fn send_whole(
    session: &mut Session,
    state: &mut State,
    lane: &Lane,
    mut head: response::Parts,
    mut body: Bytes,
) -> Result<(), End> {
    let cx = &mut state.cx;
    lane.chain.response_filter(cx, &mut head)?;
    lane.chain.response_body_filter(cx, &mut body, true)?;
    let status = head.status.as_u16();
    write_whole(session, state, head, body).await?;
    state.ended(Status::Success, status, None, None);
    Ok(())
}

async fn write_whole(
    session: &mut Session,
    state: &mut State,
    head: response::Parts,
    body: Bytes,
) -> Result<(), End> {
    // The short loop writes head and body at once, when the call has let go of everything else.
    if state.is_short
        && session.req_header().version == Version::HTTP_11
        && session.get_keepalive().is_some()
        && session.is_body_done()
        && let Some(wire) = head::to_wire(&head, &mut state.cx, body.len())
    {
        state.parting = Some(Parting {
            status: head.status.as_u16(),
            head: wire,
            body,
        });
        return Ok(());
    }
    let header = head::to_client(head, &mut state.cx, Framing::Length(body.len())).map_err(End::Broken)?;
    session
        .write_response_header(header, false)
        .await
        .map_err(End::Gone)?;
    // In pieces: a client that is slow and goes on taking them is waited for, up to the call's end.
    let mut rest = body;
    loop {
        let piece = rest.split_to(rest.len().min(PIECE));
        let last = rest.is_empty();
        session
            .write_response_body(Some(piece), last)
            .await
            .map_err(End::Gone)?;
        if last {
            return Ok(());
        }
        if state.time_left().is_zero() {
            let e = Error::explain(ErrorType::WriteTimedout, "the call took longer than a call may");
            return Err(End::Gone(e.into_down()));
        }
    }
}

/// The upstream broke off while the client was reading: says so where the format has a place for it,
/// and otherwise breaks off as well, so that nobody takes a part for the whole.
async fn cut(
    session: &mut Session,
    state: &mut State,
    lane: &Lane,
    d: &Deployment,
    cause: &Error,
) -> Result<(), End> {
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
        return Err(End::Broken(Error::explain(ErrorType::ReadError, shown)));
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
    session
        .write_response_body(Some(last), true)
        .await
        .map_err(End::Gone)
}

fn is_json_object(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}
