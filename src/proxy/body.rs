//! Reads the whole body of a model call, once, within its limits.

use crate::conf::Timeouts;
use bytes::{Bytes, BytesMut};
use filters::contract::Refusal;
use futures::FutureExt;
use http::{HeaderName, header};
use pingora_error::{Error, ErrorType};
use pingora_proxy::Session;
use std::pin::pin;
use std::time::Duration;

/// What became of reading.
pub enum Read {
    Whole(Bytes),
    Refused(Refusal),
    /// The client is gone or broke the framing: nothing can be answered.
    Gone(Box<Error>),
}

/// Reads at most `limit` bytes, within `timeouts.body` in all and `timeouts.body_idle` for each piece.
pub async fn read(session: &mut Session, limit: u64, timeouts: &Timeouts) -> Read {
    let deadline = timeouts.body;
    let header = |name: HeaderName| {
        session
            .get_header(name)
            .and_then(|v| v.to_str().ok())
            .map(str::trim)
    };
    // A compressed body would have to be unpacked to be judged, and a small one can unpack to a huge one.
    if let Some(encoding) = header(header::CONTENT_ENCODING)
        && !encoding.is_empty()
        && !encoding.eq_ignore_ascii_case("identity")
    {
        return Read::Refused(Refusal::new(
            415,
            "invalid_request_error",
            "Compressed request bodies are not taken. Send the body as it is, without content-encoding.",
        ));
    }
    let announced = header(header::CONTENT_LENGTH).and_then(|v| v.parse::<u64>().ok());
    if announced.is_some_and(|n| n > limit) {
        return Read::Refused(too_large(limit));
    }
    if header(header::EXPECT).is_some_and(|v| v.eq_ignore_ascii_case("100-continue")) {
        if let Err(e) = session.write_continue_response().await {
            return Read::Gone(e);
        }
        // From here on the body is on its way, whatever becomes of the request.
        session.req_header_mut().remove_header(&header::EXPECT);
    }
    match within(deadline, collect(session, announced, limit, timeouts.body_idle)).await {
        Some(read) => read,
        None => Read::Refused(
            Refusal::new(
                408,
                "timeout_error",
                format!(
                    "The request body did not arrive within {} seconds.",
                    deadline.as_secs()
                ),
            )
            .header("connection", "close"),
        ),
    }
}

/// What `work` comes to, or `None` if it takes longer. Most bodies are there already, and then nobody looks at the
/// clock.
async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    match work.as_mut().now_or_never() {
        Some(done) => Some(done),
        None => tokio::time::timeout(time, work).await.ok(),
    }
}

async fn collect(session: &mut Session, announced: Option<u64>, limit: u64, idle: Duration) -> Read {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    loop {
        // Pingora has a deadline for a read of HTTP/1 and none for HTTP/2.
        let chunk = match within(idle, session.read_request_body()).await {
            Some(Ok(Some(chunk))) => chunk,
            Some(Ok(None)) => break,
            Some(Err(e)) => return broken(e),
            None => return broken(Error::new(ErrorType::ReadTimedout)),
        };
        let so_far = first.as_ref().map_or(0, Bytes::len).max(rest.len());
        if (so_far + chunk.len()) as u64 > limit {
            return Read::Refused(too_large(limit));
        }
        // Most bodies come in one piece and are never copied.
        match &first {
            None => first = Some(chunk),
            Some(begun) => {
                if rest.is_empty() {
                    rest.reserve(announced.unwrap_or(0).min(limit).max(begun.len() as u64 * 2) as usize);
                    rest.extend_from_slice(begun);
                }
                rest.extend_from_slice(&chunk);
            }
        }
    }
    Read::Whole(if rest.is_empty() {
        first.unwrap_or_default()
    } else {
        rest.freeze()
    })
}

/// The client left, was too slow, or what it sent is no body.
fn broken(e: Box<Error>) -> Read {
    let refusal = match e.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::H2Error => return Read::Gone(e),
        ErrorType::ReadTimedout => Refusal::new(408, "timeout_error", "The request body stopped arriving."),
        _ => Refusal::bad_request("The request body is not framed as HTTP has it."),
    };
    Read::Refused(refusal.header("connection", "close"))
}

fn too_large(limit: u64) -> Refusal {
    Refusal::new(
        413,
        "invalid_request_error",
        format!(
            "The request body is larger than the {} MiB taken here.",
            limit >> 20
        ),
    )
}
