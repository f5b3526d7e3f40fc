//! The trait every filter implements. Each hook is empty by default.

use super::Result;
use super::cx::Cx;
use super::upstream::Upstream;
use super::verdict::{Outcome, Verdict};
use async_trait::async_trait;
use bytes::Bytes;
use http::{request, response};

/// Which hooks a filter implements. The chain sums them when it is built and never calls a hook that
/// nobody asked for: an idle filter costs nothing per request, and chunks are not walked for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    pub request: bool,
    pub call: bool,
    pub fallback: bool,
    pub upstream_request: bool,
    pub response: bool,
    pub response_chunks: bool,
    pub logging: bool,
}

impl Needs {
    pub const NONE: Needs = Needs {
        request: false,
        call: false,
        fallback: false,
        upstream_request: false,
        response: false,
        response_chunks: false,
        logging: false,
    };
    /// Every hook: right for a filter that does not care.
    pub const ALL: Needs = Needs {
        request: true,
        call: true,
        fallback: true,
        upstream_request: true,
        response: true,
        response_chunks: true,
        logging: true,
    };
}

/// One concern of the gateway: who may, how much, what is sent, what is written down.
///
/// A filter is shared by all requests and holds no request's state: that lives in [`Cx`].
#[async_trait]
pub trait Filter: Send + Sync {
    /// Which hooks are implemented. By default all of them are called.
    fn needs(&self) -> Needs {
        Needs::ALL
    }

    /// Runs first, with the request head alone; the body has not been read. An answer or a stop
    /// ends the request before anything else happens. By default continues.
    async fn request_filter(&self, _cx: &mut Cx, _head: &request::Parts) -> Result<Verdict> {
        Ok(Verdict::Continue)
    }

    /// Runs once the body of a model call is read and [`Cx::call`] is there; never on lanes whose
    /// bodies flow through unread. By default continues.
    async fn call_filter(&self, _cx: &mut Cx, _head: &request::Parts) -> Result<Verdict> {
        Ok(Verdict::Continue)
    }

    /// Runs when no deployment of the call's model would do and the call is to go on with another: `cx.call.model` is
    /// that one already. A stop passes it over. By default lets it go on.
    async fn fallback_filter(&self, _cx: &mut Cx) -> Result<()> {
        Ok(())
    }

    /// Runs once per upstream attempt, before its head and body are sent. By default sends them as
    /// they are.
    async fn upstream_request_filter(&self, _cx: &mut Cx, _up: &mut Upstream) -> Result<()> {
        Ok(())
    }

    /// Runs in reverse chain order on the head of the answer that goes to the client.
    fn response_filter(&self, _cx: &mut Cx, _head: &mut response::Parts) -> Result<()> {
        Ok(())
    }

    /// Runs in reverse chain order on each chunk; `end` is true exactly once, with the last chunk,
    /// which may be empty. What is left in `chunk` goes on. No await, no lock that can be held long,
    /// no I/O but the spool.
    fn response_body_filter(&self, _cx: &mut Cx, _chunk: &mut Bytes, _end: bool) -> Result<()> {
        Ok(())
    }

    /// Runs once for each request whatever happened to it: refusals, hang-ups and panics included.
    /// It may run while a panic unwinds, so it neither awaits nor fails.
    fn logging(&self, _cx: &mut Cx, _outcome: &Outcome) {}
}
