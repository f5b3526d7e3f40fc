//! Anthropic's errors: `{"type":"error","error":{"type","message"}}`.

use bytes::Bytes;
use serde_json::Value;

use crate::dialects::class::{self, ErrorClass};

const SPEAKER: &str = "AnthropicException";

/// Client status and envelope for a failed call.
pub(super) fn envelope(status: u16, body: &[u8]) -> (u16, Bytes) {
    let message = class::message_of(body);
    let class = ErrorClass::of(status, &message);
    (class.status(), class.envelope(SPEAKER, &message))
}

/// Client status and error object for an `error` that arrives where no HTTP status can: inside a
/// stream, or in a body that came with a success.
pub(super) fn object(error: &Value) -> (u16, Value) {
    let message = class::bounded(error.get("message").and_then(Value::as_str).unwrap_or_default());
    let kind = error.get("type").and_then(Value::as_str).unwrap_or_default();
    let class = ErrorClass::of(status_of(kind), &message);
    (class.status(), class.object(SPEAKER, &message))
}

/// Status and error object for a stream that broke in a way Anthropic did not announce.
pub(super) fn broken(reason: &str) -> (u16, Value) {
    (
        ErrorClass::BadGateway.status(),
        ErrorClass::BadGateway.object(SPEAKER, reason),
    )
}

/// The HTTP status that Anthropic sends with an error type.
fn status_of(kind: &str) -> u16 {
    match kind {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => 500,
    }
}
