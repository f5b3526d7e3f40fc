//! What an upstream's error means, whoever the upstream is: the client's status, OpenAI's `type`,
//! and the two classes that allow a call to go on with another model.

use bytes::Bytes;
use serde_json::{Value, json};

/// The kinds of failure that LiteLLM's clients tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    BadRequest,
    /// The prompt is too long for this model: a larger one may do.
    ContextWindow,
    /// The provider declined the content: another provider may not.
    ContentPolicy,
    Authentication,
    PermissionDenied,
    PaymentRequired,
    NotFound,
    Timeout,
    RateLimit,
    InternalServer,
    BadGateway,
    ServiceUnavailable,
    GatewayTimeout,
    /// Some other status, kept when it is an error status at all.
    Other(u16),
}

/// An upstream's message is shown to the client up to this many bytes.
const MESSAGE_LIMIT: usize = 4096;

/// In an error text of any provider these mean that the prompt does not fit the model.
const CONTEXT_WINDOW: &[&str] = &[
    "prompt is too long",
    "exceed context limit",
    "this model's maximum context length is",
    "string too long. expected a string with maximum length",
    "model's maximum context limit",
    "is longer than the model's context length",
    "input tokens exceed the configured limit",
    "`inputs` tokens + `max_new_tokens` must be",
    "exceeds the maximum number of tokens allowed",
    "requested token count exceeds the model's maximum context length",
    "exceeds the available context size",
    "context_length_exceeded",
    "input is too long",
    "input too long",
];

/// And these, that its safety system declined it.
const CONTENT_POLICY: &[&str] = &[
    "content_policy_violation",
    "content management policy",
    "your task failed as a result of our safety system",
    "responsibleaipolicyviolation",
];

impl ErrorClass {
    /// From an upstream's status and the text of its error.
    pub fn of(status: u16, message: &str) -> ErrorClass {
        let text = message.to_ascii_lowercase();
        let says = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
        match status {
            // A field that is too long is the caller's mistake; no larger model helps.
            400 | 413 | 422 if text.contains("string_above_max_length") => ErrorClass::BadRequest,
            400 | 413 | 422 if says(CONTEXT_WINDOW) => ErrorClass::ContextWindow,
            400 | 403 | 422 if says(CONTENT_POLICY) => ErrorClass::ContentPolicy,
            400 | 413 | 422 => ErrorClass::BadRequest,
            401 => ErrorClass::Authentication,
            402 => ErrorClass::PaymentRequired,
            403 => ErrorClass::PermissionDenied,
            404 => ErrorClass::NotFound,
            408 => ErrorClass::Timeout,
            429 => ErrorClass::RateLimit,
            // 529 is how Anthropic says "overloaded".
            500 | 529 => ErrorClass::InternalServer,
            502 => ErrorClass::BadGateway,
            503 => ErrorClass::ServiceUnavailable,
            504 => ErrorClass::GatewayTimeout,
            other => ErrorClass::Other(other),
        }
    }

    /// The HTTP status for the client.
    pub fn status(self) -> u16 {
        match self {
            ErrorClass::BadRequest | ErrorClass::ContextWindow | ErrorClass::ContentPolicy => 400,
            ErrorClass::Authentication => 401,
            ErrorClass::PaymentRequired => 402,
            ErrorClass::PermissionDenied => 403,
            ErrorClass::NotFound => 404,
            ErrorClass::Timeout => 408,
            ErrorClass::RateLimit => 429,
            ErrorClass::InternalServer => 500,
            ErrorClass::BadGateway => 502,
            ErrorClass::ServiceUnavailable => 503,
            ErrorClass::GatewayTimeout => 504,
            ErrorClass::Other(status @ 400..=599) => status,
            ErrorClass::Other(_) => 502,
        }
    }

    /// OpenAI's `error.type`.
    pub fn kind(self) -> &'static str {
        match self {
            ErrorClass::Authentication => "authentication_error",
            ErrorClass::PermissionDenied => "permission_denied",
            ErrorClass::PaymentRequired => "payment_required",
            ErrorClass::NotFound => "not_found",
            ErrorClass::RateLimit => "throttling_error",
            ErrorClass::Timeout | ErrorClass::GatewayTimeout => "timeout_error",
            _ if self.status() >= 500 => "internal_server_error",
            _ => "invalid_request_error",
        }
    }

    /// LiteLLM's name of the class, which clients look for in the message.
    pub fn name(self) -> &'static str {
        match self {
            ErrorClass::BadRequest => "BadRequestError",
            ErrorClass::ContextWindow => "ContextWindowExceededError",
            ErrorClass::ContentPolicy => "ContentPolicyViolationError",
            ErrorClass::Authentication => "AuthenticationError",
            ErrorClass::PermissionDenied => "PermissionDeniedError",
            ErrorClass::PaymentRequired => "PaymentRequiredError",
            ErrorClass::NotFound => "NotFoundError",
            ErrorClass::Timeout | ErrorClass::GatewayTimeout => "Timeout",
            ErrorClass::RateLimit => "RateLimitError",
            ErrorClass::InternalServer => "InternalServerError",
            ErrorClass::BadGateway => "BadGatewayError",
            ErrorClass::ServiceUnavailable => "ServiceUnavailableError",
            ErrorClass::Other(_) => "APIError",
        }
    }

    /// The OpenAI error object: `{"message", "type", "param", "code"}`, code a string as in LiteLLM.
    pub fn object(self, provider: &str, message: &str) -> Value {
        json!({
            "message": format!("{}: {provider} - {message}", self.name()),
            "type": self.kind(),
            "param": null,
            "code": self.status().to_string(),
        })
    }

    /// The OpenAI error envelope around [`ErrorClass::object`].
    pub fn envelope(self, provider: &str, message: &str) -> Bytes {
        Bytes::from(json!({ "error": self.object(provider, message) }).to_string())
    }
}

/// The sentence in an error body of any shape, bounded; the body itself when it is not JSON.
pub fn message_of(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let found = parsed.as_ref().and_then(|body| {
        let error = body.get("error").unwrap_or(body);
        error
            .as_str()
            .or_else(|| error.get("message")?.as_str())
            .or_else(|| body.get("detail")?.as_str())
    });
    let whole = String::from_utf8_lossy(body);
    bounded(found.unwrap_or(whole.trim()))
}

/// At most [`MESSAGE_LIMIT`] bytes of `text`, cut between characters, never empty.
pub fn bounded(text: &str) -> String {
    if text.is_empty() {
        return "no reason given".to_owned();
    }
    let mut end = text.len().min(MESSAGE_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, message: &str, class: ErrorClass, client: u16) {
        assert_eq!(ErrorClass::of(status, message), class, "{status} {message}");
        assert_eq!(class.status(), client, "{status} {message}");
    }

    #[test]
    fn statuses_and_phrases_decide_the_class() {
        check(400, "prompt is too long: 9 > 8", ErrorClass::ContextWindow, 400);
        check(
            413,
            "Request exceeds the maximum size",
            ErrorClass::BadRequest,
            400,
        );
        check(422, "x", ErrorClass::BadRequest, 400);
        check(
            400,
            "string_above_max_length: input too long",
            ErrorClass::BadRequest,
            400,
        );
        check(
            400,
            "code: content_policy_violation",
            ErrorClass::ContentPolicy,
            400,
        );
        check(500, "prompt is too long", ErrorClass::InternalServer, 500);
        check(529, "Overloaded", ErrorClass::InternalServer, 500);
        check(418, "teapot", ErrorClass::Other(418), 418);
        check(302, "moved", ErrorClass::Other(302), 502);
    }

    #[test]
    fn a_message_is_found_in_any_shape_and_bounded() {
        assert_eq!(message_of(br#"{"error":{"message":"a"}}"#), "a");
        assert_eq!(message_of(br#"{"error":"b"}"#), "b");
        assert_eq!(message_of(br#"{"message":"c"}"#), "c");
        assert_eq!(message_of(br#"{"detail":"d"}"#), "d");
        assert_eq!(message_of(b" <html> "), "<html>");
        assert_eq!(message_of(b""), "no reason given");
        let long = "é".repeat(MESSAGE_LIMIT);
        assert_eq!(message_of(long.as_bytes()).len(), MESSAGE_LIMIT);
    }
}
