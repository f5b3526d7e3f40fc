//! What the table says about one model: prices, limits, capabilities, last day.

use super::rate::Rate;
use super::{Mode, Price};

/// Columns of a row.
pub(super) const COLUMNS: usize = 8;

/// Capabilities a model may have: flag letter in the table, LiteLLM's field.
pub(super) const CAPABILITIES: [(Capability, char, &str); 20] = [
    (Capability::FunctionCalling, 'f', "supports_function_calling"),
    (
        Capability::ParallelFunctionCalling,
        'p',
        "supports_parallel_function_calling",
    ),
    (Capability::ToolChoice, 't', "supports_tool_choice"),
    (Capability::ResponseSchema, 'j', "supports_response_schema"),
    (Capability::SystemMessages, 's', "supports_system_messages"),
    (Capability::Vision, 'v', "supports_vision"),
    (Capability::PdfInput, 'd', "supports_pdf_input"),
    (Capability::AudioInput, 'a', "supports_audio_input"),
    (Capability::AudioOutput, 'A', "supports_audio_output"),
    (Capability::VideoInput, 'V', "supports_video_input"),
    (Capability::PromptCaching, 'c', "supports_prompt_caching"),
    (Capability::Reasoning, 'r', "supports_reasoning"),
    (Capability::WebSearch, 'w', "supports_web_search"),
    (Capability::UrlContext, 'u', "supports_url_context"),
    (Capability::ComputerUse, 'o', "supports_computer_use"),
    (Capability::AssistantPrefill, 'l', "supports_assistant_prefill"),
    (Capability::NativeStreaming, 'n', "supports_native_streaming"),
    (
        Capability::EmbeddingImageInput,
        'e',
        "supports_embedding_image_input",
    ),
    (
        Capability::NativeStructuredOutput,
        'J',
        "supports_native_structured_output",
    ),
    (Capability::AdaptiveThinking, 'T', "supports_adaptive_thinking"),
];

/// Something a model can do beyond plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Capability {
    FunctionCalling,
    ParallelFunctionCalling,
    ToolChoice,
    ResponseSchema,
    SystemMessages,
    Vision,
    PdfInput,
    AudioInput,
    AudioOutput,
    VideoInput,
    PromptCaching,
    Reasoning,
    WebSearch,
    UrlContext,
    ComputerUse,
    AssistantPrefill,
    NativeStreaming,
    EmbeddingImageInput,
    NativeStructuredOutput,
    AdaptiveThinking,
}

impl Capability {
    /// Every capability the table tells about.
    pub fn all() -> impl Iterator<Item = Capability> {
        CAPABILITIES.iter().map(|(capability, _, _)| *capability)
    }

    /// LiteLLM's field, as `supports_vision`.
    pub fn field(self) -> &'static str {
        CAPABILITIES.get(self as usize).map_or("", |(_, _, field)| field)
    }

    fn bit(self) -> u32 {
        1 << (self as u8)
    }
}

/// What the table says about one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The name it was found under.
    pub name: String,
    /// LiteLLM's provider name, empty if the table gives none.
    pub provider: String,
    pub mode: Mode,
    /// Longest prompt, in tokens.
    pub max_input_tokens: Option<u64>,
    /// Longest answer, in tokens.
    pub max_output_tokens: Option<u64>,
    /// Day on which the provider ends the model, `YYYY-MM-DD`.
    pub deprecation_date: Option<String>,
    pub price: Price,
    capabilities: u32,
}

impl Listing {
    pub fn supports(&self, capability: Capability) -> bool {
        self.capabilities & capability.bit() != 0
    }

    /// Everything it supports.
    pub fn capabilities(&self) -> impl Iterator<Item = Capability> + '_ {
        Capability::all().filter(|capability| self.supports(*capability))
    }

    /// Reads a row of the table; `None` if a cell is not what it should be.
    pub(super) fn parse(line: &str) -> Option<Listing> {
        let mut cells = line.split('\t');
        let mut cell = || cells.next();
        let (name, provider, mode) = (cell()?, cell()?, cell()?);
        let (max_input, max_output, date) = (cell()?, cell()?, cell()?);
        let (flags, rates) = (cell()?, cell()?);
        if cells.next().is_some() || name.is_empty() {
            return None;
        }
        let limit = |text: &str| match text {
            "" => Some(None),
            digits => digits.parse().ok().map(Some),
        };
        let mut capabilities = 0;
        for letter in flags.chars() {
            let (capability, _, _) = CAPABILITIES.iter().find(|(_, known, _)| *known == letter)?;
            capabilities |= capability.bit();
        }
        let rates = rates
            .split_ascii_whitespace()
            .map(Rate::parse_word)
            .collect::<Option<Vec<Rate>>>()?;
        Some(Listing {
            name: name.to_owned(),
            provider: provider.to_owned(),
            mode: Mode::parse(mode),
            max_input_tokens: limit(max_input)?,
            max_output_tokens: limit(max_output)?,
            deprecation_date: (!date.is_empty()).then(|| date.to_owned()),
            price: Price::new(rates),
            capabilities,
        })
    }
}
