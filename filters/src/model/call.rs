//! The endpoints that carry a model call.

use serde::{Deserialize, Serialize};

/// The OpenAI endpoints that carry a model name in their body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    Chat,
    Completions,
    Embeddings,
    Speech,
    Transcriptions,
    Translations,
    Images,
    Moderations,
    Rerank,
    Responses,
}

impl Endpoint {
    pub const ALL: [Endpoint; 10] = [
        Endpoint::Chat,
        Endpoint::Completions,
        Endpoint::Embeddings,
        Endpoint::Speech,
        Endpoint::Transcriptions,
        Endpoint::Translations,
        Endpoint::Images,
        Endpoint::Moderations,
        Endpoint::Rerank,
        Endpoint::Responses,
    ];

    /// The path below `/v1`, as OpenAI spells it.
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::Chat => "/chat/completions",
            Endpoint::Completions => "/completions",
            Endpoint::Embeddings => "/embeddings",
            Endpoint::Speech => "/audio/speech",
            Endpoint::Transcriptions => "/audio/transcriptions",
            Endpoint::Translations => "/audio/translations",
            Endpoint::Images => "/images/generations",
            Endpoint::Moderations => "/moderations",
            Endpoint::Rerank => "/rerank",
            Endpoint::Responses => "/responses",
        }
    }

    /// LiteLLM's name for the kind of call, as `/spend/logs` shows it.
    pub fn call_type(self) -> &'static str {
        match self {
            Endpoint::Chat => "acompletion",
            Endpoint::Completions => "atext_completion",
            Endpoint::Embeddings => "aembedding",
            Endpoint::Speech => "aspeech",
            Endpoint::Transcriptions => "atranscription",
            Endpoint::Translations => "atranslation",
            Endpoint::Images => "aimage_generation",
            Endpoint::Moderations => "amoderation",
            Endpoint::Rerank => "arerank",
            Endpoint::Responses => "aresponses",
        }
    }

    /// Whether the request is a form with a file rather than JSON.
    pub fn is_multipart(self) -> bool {
        matches!(self, Endpoint::Transcriptions | Endpoint::Translations)
    }

    /// The field a request cannot do without, besides `model`.
    pub fn required_field(self) -> &'static str {
        match self {
            Endpoint::Chat => "messages",
            Endpoint::Completions | Endpoint::Images => "prompt",
            Endpoint::Embeddings | Endpoint::Speech | Endpoint::Moderations | Endpoint::Responses => "input",
            Endpoint::Transcriptions | Endpoint::Translations => "file",
            Endpoint::Rerank => "query",
        }
    }
}
