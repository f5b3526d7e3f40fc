//! What a dialect says when it cannot translate: who is to blame, and what to do next.

use thiserror::Error;

/// Why a request or an answer could not be translated.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DialectError {
    /// The provider has nothing like these parameters, and `drop_params` is off.
    #[error(
        "{provider} does not support parameters: {params:?}{note}; leave them out, or let the gateway drop \
         them with `drop_params: true`"
    )]
    UnsupportedParams {
        provider: &'static str,
        params: Vec<String>,
        /// Why, where it is not that they are unknown: empty, or words in brackets after a blank.
        note: String,
    },

    /// The request is not one that can be said in the provider's words.
    #[error("{message}")]
    Invalid {
        /// Where in the request, as `messages[2].content[0]`; none when it is the whole body.
        param: Option<String>,
        message: String,
    },

    /// The model cannot be called at this endpoint.
    #[error("models of {provider} cannot be called at {asked}; they answer {supported}", asked = endpoint.path())]
    Endpoint {
        provider: &'static str,
        endpoint: super::Endpoint,
        supported: &'static str,
    },

    /// The provider answered with success and something that is no answer.
    #[error("{provider} sent an answer that cannot be read: {reason}")]
    Upstream { provider: &'static str, reason: String },
}

impl DialectError {
    /// A refusal that points at `param`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        DialectError::Invalid {
            param: Some(param.into()),
            message: message.into(),
        }
    }

    /// The HTTP status for the client.
    pub fn status(&self) -> u16 {
        match self {
            DialectError::Upstream { .. } => 502,
            _ => 400,
        }
    }

    /// OpenAI's `error.type`.
    pub fn kind(&self) -> &'static str {
        match self {
            DialectError::Upstream { .. } => "internal_server_error",
            _ => "invalid_request_error",
        }
    }

    /// OpenAI's `error.param`: the field the caller should look at.
    pub fn param(&self) -> Option<&str> {
        match self {
            DialectError::UnsupportedParams { params, .. } => params.first().map(String::as_str),
            DialectError::Invalid { param, .. } => param.as_deref(),
            DialectError::Endpoint { .. } => Some("model"),
            DialectError::Upstream { .. } => None,
        }
    }

    /// True when the caller can repair it, false when the provider is at fault and another
    /// deployment may answer.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, DialectError::Upstream { .. })
    }
}
