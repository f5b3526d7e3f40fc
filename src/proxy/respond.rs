//! The one place that writes an answer of the gateway's own to a client: errors, and what filters and
//! the admin API make.

use bytes::Bytes;
use filters::contract::{Answer, Stop};
use pingora::prelude::*;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use serde_json::json;
use std::time::Duration;

/// How long an unread body is drained so that the answer before it arrives whole.
const DRAIN: Duration = Duration::from_secs(5);

/// Renders a refusal or a fault in OpenAI's envelope. A fault's cause goes to the log here, once.
pub fn render(stop: &Stop, request_id: &str) -> Answer {
    let (status, param, code, headers) = match stop {
        Stop::Refusal(r) => (r.status, r.param.as_deref(), r.code, &r.headers),
        Stop::Fault(f) => {
            log::error!("request_id={request_id} status={} cause={:?}", f.status, f.cause);
            (f.status, None, None, &f.headers)
        }
    };
    let code = code.map_or_else(|| status.to_string(), str::to_string);
    let message = format!("{} (request id: {request_id})", stop.shown());
    let body = json!({"error": {"message": message, "type": stop.kind(), "param": param, "code": code}});
    let mut headers = headers.clone();
    headers.push(("content-type", "application/json".into()));
    Answer {
        status,
        headers,
        body: body.to_string().into(),
    }
}

/// An error within a stream that has begun.
pub fn error_event(message: &str, request_id: &str) -> Bytes {
    let message = format!("{message} (request id: {request_id})");
    let body = json!({"error": {"message": message, "type": "upstream_error", "param": null, "code": "502"}});
    filters::wire::sse::event(body.to_string().as_bytes())
}

/// Writes a whole answer. The request's body may be unread: it is drained first, within a bound,
/// because an HTTP/2 client never sees an answer that comes before its stream is reset.
pub async fn answer(session: &mut Session, answer: Answer, further: &[(&'static str, &str)]) -> Result<()> {
    let last = answer
        .headers
        .iter()
        .any(|(name, value)| *name == "connection" && value == "close");
    let whole = !last && drain(session).await;
    let mut head = ResponseHeader::build(answer.status, Some(answer.headers.len() + further.len() + 2))?;
    for (name, value) in &answer.headers {
        head.append_header(*name, value.as_str())?;
    }
    for (name, value) in further {
        head.insert_header(*name, *value)?;
    }
    let bodyless = matches!(answer.status, 204 | 304);
    if !bodyless {
        head.insert_header("content-length", answer.body.len())?;
    }
    if !whole {
        session.set_keepalive(None);
    }
    let head_only = bodyless || answer.body.is_empty() || session.req_header().method == "HEAD";
    session.write_response_header(Box::new(head), head_only).await?;
    if !head_only {
        session.write_response_body(Some(answer.body), true).await?;
    }
    Ok(())
}

/// False = the body did not end within the bound; the connection cannot be used again.
async fn drain(session: &mut Session) -> bool {
    if session.is_body_done() || session.is_body_empty() {
        return true;
    }
    // A client that waits for our word sends nothing now; it gets its answer instead.
    if session.get_header("expect").is_some() {
        return false;
    }
    session.set_total_drain_timeout(Some(DRAIN));
    session.set_close_on_response_before_downstream_finish(false);
    session.drain_request_body().await.is_ok()
}
