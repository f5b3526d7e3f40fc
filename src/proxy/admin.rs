//! Between Pingora's session and the management API, which is an axum router called in process: one
//! listener, one TLS, one way to write an error.

use super::state::State;
use super::{Gateway, body};
use filters::contract::{Answer, Fault, Stop, Verdict};
use http_body_util::{BodyExt, Limited};
use pingora::prelude::*;
use pingora_proxy::Session;
use std::sync::Arc;
use tower::ServiceExt;

/// A path of the management API that admins and admin viewers may look at.
pub(super) const OVERSEEN: &str = "/config/status";
const MAX_BODY: u64 = 1 << 20;
/// A page of the ledger is the largest answer there is.
const MAX_ANSWER: usize = 64 << 20;

impl Gateway {
    pub(super) async fn administer(&self, session: &mut Session, state: &mut State) -> Result<()> {
        let lane = Arc::clone(&state.lane);
        match lane
            .chain
            .request_filter(&mut state.cx, session.req_header())
            .await
        {
            Ok(Verdict::Continue) => {}
            Ok(Verdict::Answer(answer)) => return self.send(session, state, answer).await,
            Err(stop) => return self.refuse(session, state, &stop).await,
        }
        let bytes = match body::read(session, MAX_BODY, &state.snapshot.timeouts).await {
            body::Read::Whole(bytes) => bytes,
            body::Read::Refused(refusal) => return self.refuse(session, state, &refusal.into()).await,
            body::Read::Gone(e) => return Err(e),
        };
        let mut request = http::Request::new(axum::body::Body::from(bytes));
        let head = session.req_header();
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        request.headers_mut().clone_from(&head.headers);
        request.extensions_mut().insert(state.cx.caller.clone());
        let answered = tokio::time::timeout(state.time_left(), self.admin.clone().oneshot(request)).await;
        let response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => {
                let fault = Fault::unavailable("The management API did not answer in time.", "timeout");
                return self.refuse(session, state, &fault.into()).await;
            }
        };
        // Only the road writes errors: the router says what is wrong, and `respond` how it reads.
        if let Some(stop) = response.extensions().get::<Arc<Stop>>().cloned() {
            return self.refuse(session, state, &stop).await;
        }
        let (parts, body) = response.into_parts();
        let body = match Limited::new(body, MAX_ANSWER).collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(e) => return self.refuse(session, state, &Fault::internal(e).into()).await,
        };
        let headers = ["content-type", "x-next-page"]
            .into_iter()
            .filter_map(|n| Some((n, parts.headers.get(n)?.to_str().ok()?.to_string())))
            .collect();
        let answer = Answer {
            status: parts.status.as_u16(),
            headers,
            body,
        };
        self.send(session, state, answer).await
    }
}
