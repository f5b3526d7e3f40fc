//! Anthropic's Messages API.
//!
//! A chat completion becomes a message: system texts are lifted out, roles alternate, tools and
//! pictures change their clothes. Structured output is asked for as a forced tool call
//! ([`JSON_TOOL`]) whose arguments come back as the content, whole and streamed alike.

mod error;
mod event;
mod media;
mod messages;
mod request;
mod response;
mod stream;
mod thinking;
mod tools;

use bytes::Bytes;

use super::{Dialect, DialectError, Dressed, Endpoint, Params, StreamTranslator};

const NAME: &str = "anthropic";

/// The tool that a `response_format` is turned into.
const JSON_TOOL: &str = "json_tool_call";

/// `anthropic/…` models.
pub struct Anthropic;

impl Dialect for Anthropic {
    fn name(&self) -> &'static str {
        NAME
    }

    fn request(&self, endpoint: Endpoint, body: &[u8], p: &Params) -> Result<Dressed, DialectError> {
        only_chat(endpoint)?;
        request::dress(body, p)
    }

    fn auth(&self, key: &str) -> (&'static str, String) {
        ("x-api-key", key.to_owned())
    }

    fn response(&self, endpoint: Endpoint, body: &[u8], p: &Params) -> Result<Bytes, DialectError> {
        only_chat(endpoint)?;
        response::canonical(body, p)
    }

    fn error(&self, status: u16, body: &[u8], _: &Params) -> (u16, Bytes) {
        error::envelope(status, body)
    }

    fn stream(&self, p: &Params) -> Box<dyn StreamTranslator> {
        Box::new(stream::Translator::new(p))
    }
}

fn only_chat(endpoint: Endpoint) -> Result<(), DialectError> {
    match endpoint {
        Endpoint::Chat => Ok(()),
        _ => Err(DialectError::Endpoint {
            provider: NAME,
            endpoint,
            supported: Endpoint::Chat.path(),
        }),
    }
}
