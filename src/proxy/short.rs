//! The short loop: serves the requests of an HTTP/1 client one after the other, so long as they need nothing of
//! Pingora's own loop, as model calls do not.
//!
//! Pingora's loop is one future with room for everything that a proxied request may come to, some 30 KB that are
//! made and copied for each request and held as long as it lasts. What is answered here needs none of that. The
//! first request that has to be proxied, or that comes before the one before it is answered, is put back unread,
//! and from then on the connection is Pingora's.

use super::answer::PIECE;
use super::door::Guarded;
use super::lanes::Kind;
use super::state::{Parting, State};
use super::{Gateway, written};
use http::Method;
use pingora::apps::HttpPersistentSettings;
use pingora::prelude::*;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use pingora_proxy::Session;
use std::io;
use std::pin::pin;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

/// Of an answer, bytes that are written together with its head.
const AT_ONCE: usize = 16 << 10;
/// How long a client may take to its first request, seconds; as Pingora has it.
const FIRST_REQUEST: u64 = 60;

/// Serves a connection. `Some` = its next request has to be read, by Pingora's loop; `None` = it is over.
pub(super) async fn serve(
    gateway: &Gateway,
    guarded: Box<Guarded>,
    mut leaving: watch::Receiver<bool>,
    shutdown: &ShutdownWatch,
) -> Option<Box<Guarded>> {
    let pulse = guarded.pulse();
    let mut leaves = pin!(leaving.wait_for(|leaves| *leaves));
    let mut stream: Stream = guarded;
    let mut settings = None;
    loop {
        let mut session = Session::new_h1(stream);
        match settings.take() {
            None => session.set_keepalive(Some(FIRST_REQUEST)),
            Some(settings) => HttpPersistentSettings::apply_to_session(settings, &mut session),
        }
        let read = tokio::select! {
            biased;
            read = session.read_request() => read,
            _ = &mut leaves => return None,
        };
        match read {
            Ok(true) => {}
            Ok(false) => return None,
            Err(e) => {
                log::debug!("a head that cannot be read: {e}");
                if matches!(e.etype(), ErrorType::InvalidHTTPHeader) {
                    // Whoever sent it may be gone.
                    let _ = session.respond_error(400).await;
                }
                session.shutdown().await;
                return None;
            }
        }
        if session.req_header().method == Method::CONNECT {
            let _ = session.respond_error(405).await;
            session.shutdown().await;
            return None;
        }
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        let state = gateway.arrive(&mut session);
        if state.judged.is_none() && matches!(state.lane.kind, Kind::Stream(_)) {
            state.dismiss();
            let mut guarded = unwrapped(stream_of(session)?)?;
            let read = guarded.take_head();
            guarded.rewind(read);
            return Some(guarded);
        }
        let mut ctx = Some(state);
        // Boxed: a connection that waits for its next request should not hold room for it.
        let served = match ctx.as_deref_mut() {
            Some(state) => {
                state.is_short = true;
                Box::pin(gateway.serve(&mut session, state)).await.map(drop)
            }
            None => return None,
        };
        if let Err(e) = &served {
            gateway.stream_failed(&mut session, e, &mut ctx).await;
        }
        let mut state = ctx?;
        let Some(parting) = state.parting.take() else {
            state.finish(written(&session), served.as_ref().err().map(|e| &**e));
            served.ok()?;
            drop(state);
            let kept = HttpPersistentSettings::for_session(&session);
            let (rest, further) = session.downstream_session.finish().await.ok()??.into_parts();
            if let Some(further) = further {
                return put_back(rest, further.into());
            }
            pulse.is_idle();
            (stream, settings) = (rest, Some(kept));
            continue;
        };
        // The session has nothing more to do but to give its connection back.
        let kept = HttpPersistentSettings::for_session(&session);
        let over = session.downstream_session.finish().await;
        let Some((mut rest, further)) = over.ok().flatten().map(|over| over.into_parts()) else {
            state.left();
            state.finish(0, None);
            return None;
        };
        let status = parting.status;
        if let Err(e) = write(&mut rest, &state, parting).await {
            log::debug!("request_id={} the client left: {e}", state.cx.request_id);
            state.left();
            state.finish(status, None);
            return None;
        }
        state.finish(status, None);
        drop(state);
        if let Some(further) = further {
            return put_back(rest, further.into());
        }
        pulse.is_idle();
        (stream, settings) = (rest, Some(kept));
    }
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

/// The next request of the connection, which has come already, is Pingora's to read.
fn put_back(stream: Stream, read: Vec<u8>) -> Option<Box<Guarded>> {
    let mut guarded = unwrapped(stream)?;
    guarded.rewind(read);
    Some(guarded)
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
