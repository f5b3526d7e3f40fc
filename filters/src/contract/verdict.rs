//! What a hook decides, and how a request ended.

use crate::model::record::Status;
use bytes::Bytes;

/// Go on, or answer here and now (a cache hit, a preflight).
#[derive(Debug)]
pub enum Verdict {
    Continue,
    Answer(Answer),
}

/// A whole answer made by a filter.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

/// How the request ended, as `logging` sees it.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub status: Status,
    /// The status line the client got; 499 if it left before one.
    pub http_status: u16,
    /// For people: why it was not a success.
    pub error: Option<String>,
    /// The same for machines, from a short fixed list.
    pub error_kind: Option<&'static str>,
}
