//! What a call costs: a price per meter, applied to what was used, summed exactly and rounded once.
//! Never invents a price: what nobody has priced comes back as `None`, which is not the same as free.

mod config;
mod listing;
mod rate;
mod table;

pub use config::{PriceError, PriceOverride};
pub use listing::{Capability, Listing};
pub use rate::{Meter, Rate, ServiceTier};
pub use table::{Prices, TableError};

use crate::model::call::Endpoint;
use crate::model::money::{Bill, Femto, Nanos};
use crate::model::usage::Usage;

/// What a model is for, or which endpoint was called: decides which meters apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    #[default]
    Chat,
    Completion,
    Responses,
    Embedding,
    Moderation,
    Rerank,
    Search,
    Realtime,
    ImageGeneration,
    ImageEdit,
    AudioSpeech,
    AudioTranscription,
    VideoGeneration,
    Ocr,
    /// One the table knows and we do not.
    Other,
}

const MODES: [(Mode, &str); 14] = [
    (Mode::Chat, "chat"),
    (Mode::Completion, "completion"),
    (Mode::Responses, "responses"),
    (Mode::Embedding, "embedding"),
    (Mode::Moderation, "moderation"),
    (Mode::Rerank, "rerank"),
    (Mode::Search, "search"),
    (Mode::Realtime, "realtime"),
    (Mode::ImageGeneration, "image_generation"),
    (Mode::ImageEdit, "image_edit"),
    (Mode::AudioSpeech, "audio_speech"),
    (Mode::AudioTranscription, "audio_transcription"),
    (Mode::VideoGeneration, "video_generation"),
    (Mode::Ocr, "ocr"),
];

impl Mode {
    /// LiteLLM's name of the mode; whatever it does not know is `Other`.
    pub fn parse(name: &str) -> Mode {
        MODES
            .iter()
            .find(|(_, known)| *known == name)
            .map_or(Mode::Other, |(mode, _)| *mode)
    }

    pub fn as_str(self) -> &'static str {
        MODES
            .iter()
            .find(|(mode, _)| *mode == self)
            .map_or("other", |(_, name)| name)
    }
}

/// The mode whose meters price an endpoint.
impl From<Endpoint> for Mode {
    fn from(endpoint: Endpoint) -> Mode {
        match endpoint {
            Endpoint::Chat => Mode::Chat,
            Endpoint::Completions => Mode::Completion,
            Endpoint::Embeddings => Mode::Embedding,
            Endpoint::Speech => Mode::AudioSpeech,
            Endpoint::Transcriptions | Endpoint::Translations => Mode::AudioTranscription,
            Endpoint::Images => Mode::ImageGeneration,
            Endpoint::Moderations => Mode::Moderation,
            Endpoint::Rerank => Mode::Rerank,
            Endpoint::Responses => Mode::Responses,
        }
    }
}

/// The prices of one model. An absent rate means "not priced", a rate of 0 means "free".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Price {
    rates: Box<[Rate]>,
}

impl Price {
    /// Of two rates for the same meter, threshold and tier the later one stands.
    pub fn new(rates: impl IntoIterator<Item = Rate>) -> Price {
        let mut kept: Vec<Rate> = Vec::new();
        for rate in rates {
            kept.retain(|old| (old.meter, old.above, old.tier) != (rate.meter, rate.above, rate.tier));
            kept.push(rate);
        }
        kept.sort_unstable();
        Price {
            rates: kept.into_boxed_slice(),
        }
    }

    /// No rate at all: nothing is priced.
    pub fn is_empty(&self) -> bool {
        self.rates.is_empty()
    }

    pub fn rates(&self) -> &[Rate] {
        &self.rates
    }

    /// The rate of a meter for a prompt of so many tokens at a service tier. The highest threshold passed
    /// counts first; at that threshold the tier's own rate, else the standard one.
    pub fn rate(&self, meter: Meter, prompt_tokens: u64, tier: ServiceTier) -> Option<Femto> {
        self.rates
            .iter()
            .filter(|rate| rate.meter == meter)
            .filter(|rate| rate.tier == tier || rate.tier == ServiceTier::Standard)
            .filter(|rate| rate.above == 0 || prompt_tokens > u64::from(rate.above))
            .max_by_key(|rate| (rate.above, rate.tier != ServiceTier::Standard))
            .map(|rate| rate.price)
    }

    /// What a call costs, in nano-dollars. `mode` is the endpoint that was called. `None`: nothing that was
    /// used has a price here, so the call is "not priced".
    pub fn cost(&self, usage: &Usage, mode: Mode, tier: ServiceTier) -> Option<Nanos> {
        let tariff = Tariff {
            price: self,
            usage,
            tier,
        };
        let mut bill = Bill::default();
        let mut priced = match mode {
            Mode::AudioSpeech => {
                tariff.characters(&mut bill) || tariff.tokens(&mut bill) || tariff.seconds(&mut bill)
            }
            Mode::AudioTranscription => {
                (tariff.charges_tokens() && tariff.tokens(&mut bill))
                    || tariff.seconds(&mut bill)
                    || tariff.tokens(&mut bill)
            }
            Mode::ImageGeneration | Mode::ImageEdit | Mode::VideoGeneration => {
                (tariff.charges_tokens() && tariff.tokens(&mut bill))
                    || tariff.images(&mut bill)
                    || tariff.pixels(&mut bill)
                    || tariff.seconds(&mut bill)
                    || tariff.tokens(&mut bill)
            }
            _ => tariff.tokens(&mut bill) || tariff.seconds(&mut bill) || tariff.characters(&mut bill),
        };
        priced |= tariff.flat(Meter::Query, usage.queries, &mut bill);
        priced |= tariff.flat(Meter::Request, 1, &mut bill);
        priced |= usage.is_empty() && !self.is_empty();
        priced.then(|| bill.round())
    }
}

/// One price list seen by one call.
struct Tariff<'a> {
    price: &'a Price,
    usage: &'a Usage,
    tier: ServiceTier,
}

impl Tariff<'_> {
    fn rate(&self, meter: Meter) -> Option<Femto> {
        self.price.rate(meter, self.usage.prompt_tokens, self.tier)
    }

    /// Tokens are not only mentioned in the price list but cost something. Lists of image and audio models
    /// often carry a token price of 0 beside the real one.
    fn charges_tokens(&self) -> bool {
        [
            Meter::Input,
            Meter::Output,
            Meter::InputAudioToken,
            Meter::OutputAudioToken,
            Meter::InputImageToken,
            Meter::OutputImageToken,
        ]
        .into_iter()
        .any(|meter| self.rate(meter).is_some_and(|price| price > Femto::ZERO))
    }

    /// Input and output tokens, each part at its own rate or at the rate it falls back to. Whether there were
    /// tokens and a rate for any of them.
    fn tokens(&self, bill: &mut Bill) -> bool {
        let usage = self.usage;
        if usage.total_tokens() == 0 {
            return false;
        }
        // Most calls have no such part, and then nobody looks for its rate.
        let mut priced = false;
        let mut charge = |tokens: u64, rate: &dyn Fn() -> Option<Femto>| {
            if tokens > 0
                && let Some(rate) = rate()
            {
                bill.add(tokens, rate);
                priced = true;
            }
        };

        // Parts are taken off the whole one after another, so they can never add up to more than it.
        let input = || self.rate(Meter::Input);
        let creation = || self.rate(Meter::CacheCreation).or_else(input);
        let mut text = usage.prompt_tokens;
        let mut part = |tokens: u64| {
            let taken = tokens.min(text);
            text -= taken;
            taken
        };
        let cached = part(usage.cached_tokens);
        charge(cached, &|| self.rate(Meter::CacheRead).or_else(input));
        let created = part(usage.cache_creation_tokens);
        let created_1h = usage.cache_creation_1h_tokens.min(created);
        charge(created_1h, &|| {
            self.rate(Meter::CacheCreation1h).or_else(creation)
        });
        charge(created - created_1h, &creation);
        let audio = part(usage.audio_prompt_tokens);
        charge(audio, &|| self.rate(Meter::InputAudioToken).or_else(input));
        let image = part(usage.image_prompt_tokens);
        charge(image, &|| self.rate(Meter::InputImageToken).or_else(input));
        charge(text, &input);

        let picture_out = || self.rate(Meter::OutputImageToken);
        let output = || self.rate(Meter::Output).or_else(picture_out);
        let mut said = usage.completion_tokens;
        let mut part = |tokens: u64| {
            let taken = tokens.min(said);
            said -= taken;
            taken
        };
        let audio = part(usage.audio_completion_tokens);
        charge(audio, &|| self.rate(Meter::OutputAudioToken).or_else(output));
        let reasoning = part(usage.reasoning_tokens);
        charge(reasoning, &|| self.rate(Meter::Reasoning).or_else(output));
        let image = part(usage.image_tokens);
        charge(image, &|| picture_out().or_else(output));
        charge(said, &output);
        priced
    }

    /// Audio by duration. Many entries carry the same price as input and as output although the provider asks
    /// for it once, so the larger of the two is charged and never their sum.
    fn seconds(&self, bill: &mut Bill) -> bool {
        if self.usage.seconds_milli == 0 {
            return false;
        }
        let rate = self.rate(Meter::InputSecond).max(self.rate(Meter::OutputSecond));
        if let Some(rate) = rate {
            bill.add_milli(self.usage.seconds_milli, rate);
        }
        rate.is_some()
    }

    fn characters(&self, bill: &mut Bill) -> bool {
        self.flat(Meter::InputCharacter, self.usage.characters, bill)
    }

    fn images(&self, bill: &mut Bill) -> bool {
        self.flat(Meter::OutputImage, self.usage.images, bill)
            || self.flat(Meter::InputImage, self.usage.images, bill)
    }

    /// As with seconds: the price stands on one side or the other, the opposite one being 0.
    fn pixels(&self, bill: &mut Bill) -> bool {
        let rate = self.rate(Meter::InputPixel).max(self.rate(Meter::OutputPixel));
        match rate.filter(|_| self.usage.pixels > 0) {
            Some(rate) => {
                bill.add(self.usage.pixels, rate);
                true
            }
            None => false,
        }
    }

    fn flat(&self, meter: Meter, units: u64, bill: &mut Bill) -> bool {
        if units == 0 {
            return false;
        }
        let rate = self.rate(meter);
        if let Some(rate) = rate {
            bill.add(units, rate);
        }
        rate.is_some()
    }
}

#[cfg(test)]
mod tests;
