//! The short loop: serves the requests of an HTTP/1 client one after the other, so long as they need nothing of
//! Pingora's own loop, as model calls do not.
//!
//! Pingora's loop is one future with room for everything that a proxied request may come to, some 30 KB that are
//! made and copied for each request and held as long as it lasts. What is answered here needs none of that. The
//! first request that has to be proxied, or that comes before the one before it is answered, is put back unread,
//! and from then on the connection is Pingora's.

use super::alarm::Alarms;
use super::answer::PIECE;
use super::door::Guarded;
use super::lanes::Kind;
use super::state::{Parting, State};
use super::{Gateway, written};
use bytes::BytesMut;
use http::Method;
use pingora::prelude::*;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use pingora_proxy::Session;
use std::io;
use std::pin::pin;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

/// Of an answer, bytes that are written together with its head.
const AT_ONCE: usize = 16 << 10;

/// Serves a connection. `Some` = its next request has to be read, by Pingora's loop; `None` = it is over.
pub(super) async fn serve(
    gateway: &Gateway,
    guarded: Box<Guarded>,
    mut leaving: watch::Receiver<bool>,
    shutdown: &ShutdownWatch,
) -> Option<Box<Guarded>> {
    let pulse = guarded.pulse();
    let mut leaves = pin!(leaving.wait_for(|leaves| *leaves));
    let mut alarms = Alarms::default();
    let mut stream: Stream = guarded;
    loop {
        let mut session = Session::new_h1(stream);
        // For ever: the door knows how long a head, and the next request, may take.
        session.set_keepalive(Some(0));
        let read = tokio::select! {
            biased;
            read = session.read_request() => read,
            _ = &mut leaves => return None,
        };
        match read {
            Ok(true) if session.req_header().method == Method::CONNECT => {
                return not_taken(session, 405).await;
            }
            Ok(true) => {}
            Ok(false) => return None,
            Err(e) => {
                log::debug!("a head that cannot be read: {e}");
                if matches!(e.etype(), ErrorType::InvalidHTTPHeader) {
                    return not_taken(session, 400).await;
                }
                session.shutdown().await;
                return None;
            }
        }
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        let mut state = gateway.arrive(&mut session);
        if state.judged.is_none() && matches!(state.lane.kind, Kind::Stream(_)) {
            state.dismiss();
            let mut guarded = unwrapped(stream_of(session)?)?;
            let read = guarded.take_head();
            guarded.rewind(read);
            return Some(guarded);
        }
        state.is_short = true;
        state.alarms = std::mem::take(&mut alarms);
        // Boxed: a connection that waits for its next request should not hold room for it.
        if let Err(e) = Box::pin(gateway.serve(&mut session, &mut state)).await {
            let mut ctx = Some(state);
            gateway.stream_failed(&mut session, &e, &mut ctx).await;
            ctx?.finish(written(&session), Some(&e));
            return None;
        }
        alarms = std::mem::take(&mut state.alarms);
        let idle = session.get_keepalive().map(Duration::from_secs);
        let further;
        match state.parting.take() {
            None => {
                state.finish(written(&session), None);
                (stream, further) = let_go(session).await?;
            }
            Some(parting) => {
                // The session has nothing more to do but to give its connection back.
                let status = parting.status;
                let sent = match let_go(session).await {
                    Some((mut stream, further)) => {
                        let sent = write(&mut stream, &state, parting).await;
                        sent.map(|()| (stream, further))
                    }
                    None => Err(io::ErrorKind::NotConnected.into()),
                };
                if sent.is_err() {
                    state.left();
                }
                state.finish(status, None);
                (stream, further) = sent.ok()?;
            }
        }
        if let Some(further) = further {
            // The next request has come already, and more may come while it waits.
            let mut guarded = unwrapped(stream)?;
            guarded.rewind(further.into());
            return Some(guarded);
        }
        pulse.is_idle_for(idle?);
    }
}

/// What can be told of a request that nothing is known of; its connection ends.
async fn not_taken(mut session: Session, status: u16) -> Option<Guarded> {
    if let Err(e) = session.respond_error(status).await {
        log::debug!("the client left before its error: {e}");
    }
    session.shutdown().await;
    None
}

/// The connection of a request that is over, and what has come of the next one. `None` = it does not stay.
async fn let_go(session: Session) -> Option<(Stream, Option<BytesMut>)> {
    let over = session.downstream_session.finish().await;
    Some(over.ok()??.into_parts())
}

/// Writes an answer: at once if it is small. In pieces otherwise: a client that is slow and goes on taking them
/// is waited for, up to the call's end; one that takes nothing is the door's.
async fn write(stream: &mut Stream, state: &State, parting: Parting) -> io::Result<()> {
    let Parting {
        mut head, mut body, ..
    } = parting;
    let first = body.split_to(body.len().min(AT_ONCE));
    head.extend_from_slice(&first);
    stream.write_all(&head).await?;
    while !body.is_empty() {
        if state.time_left().is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.write_all(&body.split_to(body.len().min(PIECE))).await?;
    }
    stream.flush().await
}

/// The connection that a session of HTTP/1 is on.
fn stream_of(session: Session) -> Option<Stream> {
    match *session.downstream_session {
        ServerSession::H1(http1) => Some(http1.into_inner()),
        _ => None,
    }
}

fn unwrapped(stream: Stream) -> Option<Box<Guarded>> {
    stream.into_any().downcast::<Guarded>().ok()
}
