//! Waits for an upstream and keeps an eye on the client.

use pingora::prelude::*;
use pingora_proxy::Session;

/// What waiting came to.
pub(super) enum Watched<T> {
    Upstream(T),
    ClientGone(Box<Error>),
}

/// Waits for `work` and for the client's leaving, whichever comes first. The upstream has precedence:
/// when both are there, its answer counts, and the next request on the connection is left alone.
///
/// Large futures are handed over pinned (`pin!(…).as_mut()`): one that is handed over by value has its
/// place here and at the caller's, and a stream carries both for as long as it lasts.
pub(super) async fn watch<T>(session: &mut Session, work: impl Future<Output = T>) -> Watched<T> {
    tokio::select! {
        biased;
        done = work => Watched::Upstream(done),
        gone = session.downstream_session.read_body_or_idle(true) => Watched::ClientGone(match gone {
            Err(e) => e,
            Ok(_) => Error::explain(ErrorType::ConnectionClosed, "the client sent data after its request"),
        }),
    }
}
