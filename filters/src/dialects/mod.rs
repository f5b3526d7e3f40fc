//! Canonical (OpenAI) <-> provider, pure, hub and spoke.
//!
//! A dialect is a set of total functions over bytes. It opens no socket, reads no clock and keeps
//! no state but that of the one stream it translates, so a bad body, whoever sent it, is an error
//! value and never a panic. Every provider is translated to and from the OpenAI shape only, never
//! to another provider's: a new one is a folder here, a line in [`named`], and goldens.

pub mod anthropic;
pub mod class;
pub mod error;
pub mod openai;
pub mod params;

use bytes::Bytes;
use serde_json::{Map, Value};

pub use crate::model::call::Endpoint;
pub use class::ErrorClass;
pub use error::DialectError;

/// What a dialect must know about a call besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    /// The model name the upstream is asked for.
    pub model: &'a str,
    /// The name the client used; it goes back in the `model` of the answer.
    pub requested_model: &'a str,
    /// Leave out what the provider cannot do instead of refusing the call.
    pub drop_params: bool,
    /// Output tokens to allow when the client set no limit and the provider insists on one.
    pub max_output_tokens: Option<u64>,
    /// Top-level fields that are removed before translation, by the deployment's configuration.
    pub additional_drop_params: &'a [String],
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// Unix seconds that the answer carries in `created`.
    pub created: i64,
    /// Our request id, from which an id is made when the upstream gave none.
    pub id: &'a str,
    /// The deployment's default parameters; the request wins.
    pub defaults: &'a Map<String, Value>,
}

/// A request in the provider's shape, ready but for host and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dressed {
    /// Put behind the deployment's `api_base` with [`join`].
    pub path: String,
    /// Lower-case names. The key is not among them: see [`Dialect::auth`].
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

/// One provider's way of speaking.
pub trait Dialect: Send + Sync {
    /// The name in front of the `/` of a LiteLLM model string.
    fn name(&self) -> &'static str;

    /// True when answers, errors and streams need no translation, so that the road may forward
    /// bytes without calling the functions below.
    fn is_identity(&self) -> bool {
        false
    }

    /// Canonical request body -> provider request. An error is a refusal the caller can act on.
    fn request(&self, endpoint: Endpoint, body: &[u8], p: &Params) -> Result<Dressed, DialectError>;

    /// The header that carries the provider key.
    fn auth(&self, key: &str) -> (&'static str, String);

    /// The provider's whole answer -> canonical JSON body.
    fn response(&self, endpoint: Endpoint, body: &[u8], p: &Params) -> Result<Bytes, DialectError>;

    /// What a failed call means: the status for the client, and whether another model may do.
    /// `status` is the upstream's.
    fn classify(&self, status: u16, body: &[u8]) -> ErrorClass {
        ErrorClass::of(status, &class::message_of(body))
    }

    /// The provider's error -> status for the client and OpenAI error envelope.
    fn error(&self, status: u16, body: &[u8], p: &Params) -> (u16, Bytes);

    /// A fresh translator for one streamed answer.
    fn stream(&self, p: &Params) -> Box<dyn StreamTranslator>;
}

/// Turns one provider stream into canonical SSE, however the bytes are cut.
pub trait StreamTranslator: Send + Sync {
    /// Takes the next bytes of the upstream body and appends what follows from them to `out`.
    fn push(&mut self, chunk: Bytes, out: &mut Vec<u8>);

    /// The upstream body has ended. When it ended without its stop event, an SSE error event is
    /// written: never an invented stop, never a `[DONE]`. Calling it again does nothing.
    fn finish(&mut self, out: &mut Vec<u8>);

    /// The client status of the error event that was written, if one was. While nothing else has
    /// been sent the road can still answer with this status instead of 200.
    fn failed(&self) -> Option<u16> {
        None
    }
}

/// The dialect behind a LiteLLM provider prefix, if it is not spoken the OpenAI way.
pub fn named(provider: &str) -> Option<&'static dyn Dialect> {
    match provider {
        "anthropic" => Some(&anthropic::Anthropic),
        "openai" => Some(&openai::OpenAi),
        _ => None,
    }
}

/// `api_base` with `path` behind it, whole segments that both have written once:
/// an operator may configure `https://host`, `https://host/v1` or the full URL.
pub fn join(api_base: &str, path: &str) -> String {
    let base = api_base.trim_end_matches('/');
    let ends = path
        .match_indices('/')
        .map(|(at, _)| at)
        .skip(1)
        .chain([path.len()]);
    let overlap = ends
        .filter(|&end| base.ends_with(&path[..end]))
        .last()
        .unwrap_or(0);
    [base, &path[overlap..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_may_hold_part_of_the_path() {
        let full = "https://a.example/v1/messages";
        assert_eq!(join("https://a.example", "/v1/messages"), full);
        assert_eq!(join("https://a.example/", "/v1/messages"), full);
        assert_eq!(join("https://a.example/v1", "/v1/messages"), full);
        assert_eq!(join(full, "/v1/messages"), full);
        assert_eq!(
            join("https://a.example/xv1", "/v1/messages"),
            "https://a.example/xv1/v1/messages"
        );
        assert_eq!(
            join("http://l/v1", "/chat/completions"),
            "http://l/v1/chat/completions"
        );
    }

    #[test]
    fn dialects_are_found_by_their_prefix() {
        for name in ["openai", "anthropic"] {
            assert_eq!(named(name).map(|d| d.name()), Some(name));
        }
        assert!(named("nobody").is_none());
    }
}
