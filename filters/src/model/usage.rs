//! What a call consumed. Reads the numbers an upstream reports in any of the usual spellings, bounds them, and
//! estimates when there are none. Trusts nothing: a hostile number is clamped and flagged, never believed.

mod estimate;

use crate::wire::peek;
pub use estimate::{estimate_completion, estimate_prompt, estimate_prompt_of};
use memchr::memmem;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::sync::LazyLock;

/// The most of anything one call can be charged for: tokens, characters, images, queries.
pub const MOST: u64 = 100_000_000;
/// The longest audio of one call, in milliseconds: eleven days and a half.
const MOST_MILLIS: u64 = 1_000_000_000;
/// A `usage` object longer than this, in bytes, is not one.
const LONGEST_USAGE: usize = 64 * 1024;
/// One with more fields than this is not one either.
const MOST_FIELDS: usize = 256;
/// A number written as text, quotes included, is no longer than this, in bytes.
const LONGEST_NUMBER: usize = 66;

/// Everything a price can be multiplied with. Counts are of the whole call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// All input tokens, those read from and written to a cache included.
    pub prompt_tokens: u64,
    /// All output tokens, reasoning included.
    pub completion_tokens: u64,
    /// Of `prompt_tokens`: read from the provider's prompt cache.
    pub cached_tokens: u64,
    /// Of `prompt_tokens`: written to the provider's prompt cache.
    pub cache_creation_tokens: u64,
    /// Of `cache_creation_tokens`: kept for an hour, which costs more.
    pub cache_creation_1h_tokens: u64,
    /// Of `completion_tokens`: thought, not said.
    pub reasoning_tokens: u64,
    /// Of `prompt_tokens`: audio.
    pub audio_prompt_tokens: u64,
    /// Of `completion_tokens`: audio.
    pub audio_completion_tokens: u64,
    /// Of `prompt_tokens`: images.
    pub image_prompt_tokens: u64,
    /// Of `completion_tokens`: images.
    pub image_tokens: u64,
    /// Characters of text to be spoken.
    pub characters: u64,
    /// Duration of audio, in milliseconds; wall time where a chat is priced per second.
    pub seconds_milli: u64,
    /// Images produced.
    pub images: u64,
    /// Pixels of all images produced.
    pub pixels: u64,
    /// Searches, or units of a rerank.
    pub queries: u64,
    /// Counted by us because the upstream did not say.
    pub estimated: bool,
    /// The upstream said something impossible and was corrected.
    pub clamped: bool,
}

impl Usage {
    /// Input and output tokens together.
    pub fn total_tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }

    /// Nothing was counted at all.
    pub fn is_empty(&self) -> bool {
        let Usage {
            estimated, clamped, ..
        } = *self;
        *self
            == Usage {
                estimated,
                clamped,
                ..Usage::default()
            }
    }

    /// Our own count, from bytes of text and the number of content deltas seen.
    pub fn estimate(prompt_bytes: usize, completion_bytes: usize, deltas: u64) -> Usage {
        Usage {
            prompt_tokens: estimate_prompt(prompt_bytes),
            completion_tokens: estimate_completion(completion_bytes, deltas),
            estimated: true,
            ..Usage::default()
        }
    }

    /// What an answer that broke off is owed: what was told before it did, or what we count ourselves where
    /// that is more, because providers tell the last of it at the end.
    pub fn at_least(mut self, counted: &Usage) -> Usage {
        let told = self;
        self.merge(counted);
        self.estimated = told.estimated;
        self.estimated |= self != told;
        self
    }

    /// Takes in a later report of the same call. Providers report running totals (Anthropic says the input in
    /// the first event and the output in the last), so the larger of each count stands.
    pub fn merge(&mut self, later: &Usage) {
        self.prompt_tokens = self.prompt_tokens.max(later.prompt_tokens);
        self.completion_tokens = self.completion_tokens.max(later.completion_tokens);
        self.cached_tokens = self.cached_tokens.max(later.cached_tokens);
        self.cache_creation_tokens = self.cache_creation_tokens.max(later.cache_creation_tokens);
        self.cache_creation_1h_tokens = self.cache_creation_1h_tokens.max(later.cache_creation_1h_tokens);
        self.reasoning_tokens = self.reasoning_tokens.max(later.reasoning_tokens);
        self.audio_prompt_tokens = self.audio_prompt_tokens.max(later.audio_prompt_tokens);
        self.audio_completion_tokens = self.audio_completion_tokens.max(later.audio_completion_tokens);
        self.image_prompt_tokens = self.image_prompt_tokens.max(later.image_prompt_tokens);
        self.image_tokens = self.image_tokens.max(later.image_tokens);
        self.characters = self.characters.max(later.characters);
        self.seconds_milli = self.seconds_milli.max(later.seconds_milli);
        self.images = self.images.max(later.images);
        self.pixels = self.pixels.max(later.pixels);
        self.queries = self.queries.max(later.queries);
        self.estimated &= later.estimated;
        self.clamped |= later.clamped;
    }

    /// Reads the text of a `usage` object: OpenAI's chat, embeddings, Responses, images and transcription spellings,
    /// Anthropic's, DeepSeek's and Mistral's additions. `None` if it counts nothing we know.
    pub fn read(text: &[u8]) -> Option<Usage> {
        if text.len() > LONGEST_USAGE {
            return None;
        }
        let usage = &Fields::read(text)?;
        let mut reader = Reader::default();
        let mut field = |names: &[&str]| reader.first(usage, names);

        let openai_prompt = field(&["prompt_tokens"]);
        let input = field(&["input_tokens"]);
        let completion = field(&["completion_tokens", "output_tokens"]);
        let total = field(&["total_tokens"]);
        let seconds_milli = reader.millis(usage.get("seconds").or_else(|| usage.get("prompt_audio_seconds")));
        if openai_prompt.is_none()
            && input.is_none()
            && completion.is_none()
            && total.is_none()
            && seconds_milli.is_none()
        {
            return None;
        }

        let mut field = |names: &[&str]| reader.first(usage, names);
        let read = field(&["cache_read_input_tokens"]);
        let written = field(&["cache_creation_input_tokens"]);
        let cache_hits = field(&["prompt_cache_hit_tokens", "num_cached_tokens", "cached_tokens"]);
        let bare_reasoning = field(&["reasoning_tokens"]);

        // Transcription and realtime answers write "token" in the singular.
        let prompt_details = object(
            usage,
            &[
                "prompt_tokens_details",
                "input_tokens_details",
                "input_token_details",
                "prompt_token_details",
            ],
        );
        let completion_details = object(
            usage,
            &[
                "completion_tokens_details",
                "output_tokens_details",
                "output_token_details",
                "completion_token_details",
            ],
        );
        let creation = object(usage, &["cache_creation"]);
        let (prompt_details, completion_details) = (prompt_details.as_ref(), completion_details.as_ref());
        let creation = creation.as_ref();
        let mut detail =
            |of: Option<&Fields<'_>>, names: &[&str]| of.and_then(|fields| reader.first(fields, names));

        let cached = detail(prompt_details, &["cached_tokens"])
            .or(read)
            .or(cache_hits)
            .unwrap_or(0);
        let creation_1h = detail(creation, &["ephemeral_1h_input_tokens"]).unwrap_or(0);
        let creation_5m = detail(creation, &["ephemeral_5m_input_tokens"]).unwrap_or(0);
        let cache_creation = written
            .or_else(|| detail(prompt_details, &["cache_creation_tokens", "cache_write_tokens"]))
            .unwrap_or(0)
            .max(creation_1h.saturating_add(creation_5m));
        let reasoning = detail(completion_details, &["reasoning_tokens", "thinking_tokens"])
            .or(bare_reasoning)
            .unwrap_or(0);
        let audio_prompt = detail(prompt_details, &["audio_tokens"]).unwrap_or(0);
        let image_prompt = detail(prompt_details, &["image_tokens"]).unwrap_or(0);
        let audio_completion = detail(completion_details, &["audio_tokens"]).unwrap_or(0);
        let image_completion = detail(completion_details, &["image_tokens"]).unwrap_or(0);

        let mut completion_tokens = completion.unwrap_or(0);
        let mut prompt_tokens = match (openai_prompt, input) {
            (Some(prompt), _) => prompt,
            // Anthropic's `input_tokens` leaves out what the cache read and wrote; OpenAI's Responses, which
            // counts them in, never has these two names.
            (None, Some(input)) => input
                .saturating_add(read.unwrap_or(0))
                .saturating_add(written.unwrap_or(0)),
            (None, None) => total.unwrap_or(0).saturating_sub(completion_tokens),
        };
        // xAI and some others leave reasoning out of the completion but not out of the total.
        let said = prompt_tokens.saturating_add(completion_tokens);
        if reasoning > 0 && total == Some(said.saturating_add(reasoning)) {
            completion_tokens = completion_tokens.saturating_add(reasoning);
        }
        for sum in [&mut prompt_tokens, &mut completion_tokens] {
            if *sum > MOST {
                *sum = MOST;
                reader.clamped = true;
            }
        }

        let mut parts = Parts {
            whole: prompt_tokens,
            clamped: reader.clamped,
        };
        let cached_tokens = parts.take(cached);
        let cache_creation_tokens = parts.take(cache_creation);
        let mut spoken = Parts {
            whole: completion_tokens,
            clamped: parts.clamped,
        };
        let reasoning_tokens = spoken.take(reasoning);
        // Audio and images may be in the cached part too, so they are bounded by the whole, not by the rest.
        Some(Usage {
            prompt_tokens,
            completion_tokens,
            cached_tokens,
            cache_creation_tokens,
            cache_creation_1h_tokens: creation_1h.min(cache_creation_tokens),
            reasoning_tokens,
            audio_prompt_tokens: audio_prompt.min(prompt_tokens),
            image_prompt_tokens: image_prompt.min(prompt_tokens),
            audio_completion_tokens: audio_completion.min(completion_tokens),
            image_tokens: image_completion.min(completion_tokens),
            seconds_milli: seconds_milli.unwrap_or(0),
            clamped: spoken.clamped,
            ..Usage::default()
        })
    }

    /// Takes the usage out of a whole JSON answer or the payload of one SSE event, without building a tree of
    /// it: `usage` at the top, in `response` (Responses API events) or in `message` (Anthropic's first event).
    pub fn find_in(body: &[u8]) -> Option<Usage> {
        if !names_usage(body) {
            return None;
        }
        let envelope: Envelope<'_> = serde_json::from_slice(body).ok()?;
        envelope.usage()
    }

    /// As [`Usage::find_in`] for a transcription or translation, where `duration` (verbose JSON, in seconds)
    /// counts too.
    pub fn find_in_transcription(body: &[u8]) -> Option<Usage> {
        if !names_usage(body) && memmem::find(body, b"\"duration\"").is_none() {
            return None;
        }
        let envelope: Envelope<'_> = serde_json::from_slice(body).ok()?;
        let duration = envelope.duration.and_then(|told| {
            let mut reader = Reader::default();
            let seconds_milli = reader.millis(Some(told.get().as_bytes()))?;
            Some(Usage {
                seconds_milli,
                clamped: reader.clamped,
                ..Usage::default()
            })
        });
        match (envelope.usage(), duration) {
            (Some(mut usage), Some(duration)) => {
                usage.merge(&duration);
                Some(usage)
            }
            (usage, duration) => usage.or(duration),
        }
    }
}

/// The service tier that an answer, or one event of a stream, says it was served at: at its top, or at
/// the top of its `response` (Responses API events). What stands deeper may be the caller's own words.
pub fn tier_in(body: &[u8]) -> Option<String> {
    static NAME: LazyLock<memmem::Finder<'static>> =
        LazyLock::new(|| memmem::Finder::new("\"service_tier\""));
    NAME.find(body)?;
    let named = |raw: Option<&RawValue>| {
        let name: String = serde_json::from_str(raw?.get()).ok()?;
        // That is what was asked for; what came of it is not said yet.
        (name != "auto").then_some(name)
    };
    let envelope: Envelope<'_> = serde_json::from_slice(body).ok()?;
    named(envelope.service_tier).or_else(|| {
        let inner: Envelope<'_> = serde_json::from_str(envelope.response?.get()).ok()?;
        named(inner.service_tier)
    })
}

/// The first of these fields that is an object.
fn object<'a>(usage: &Fields<'a>, names: &[&str]) -> Option<Fields<'a>> {
    names
        .iter()
        .filter_map(|name| usage.get(name).filter(|raw| raw.starts_with(b"{")))
        .find_map(Fields::read)
}

/// A small object's fields, their values as they are spelled: most are looked at once, and few are needed,
/// so no tree is built of them.
#[derive(Default)]
struct Fields<'a>(SmallVec<[Field<'a>; 12]>);

/// A name and its value.
type Field<'a> = (Cow<'a, [u8]>, &'a [u8]);

impl<'a> Fields<'a> {
    /// `None`: this is no JSON object, or one with too many fields.
    fn read(text: &'a [u8]) -> Option<Fields<'a>> {
        let mut fields = Fields::default();
        let mut too_many = false;
        let read = peek::each_field(text, peek::DEFAULT_DEPTH, |key, escaped, value| {
            too_many |= fields.0.len() == MOST_FIELDS;
            if !too_many {
                fields.0.push((unquoted(key, escaped), value));
            }
        });
        (read.is_ok() && !too_many).then_some(fields)
    }

    /// Where a name is given twice, the last one counts, as in every JSON parser the client may use.
    fn get(&self, name: &str) -> Option<&'a [u8]> {
        let field = self.0.iter().rfind(|(key, _)| **key == *name.as_bytes());
        field.map(|(_, value)| *value)
    }
}

/// A field's name, borrowed unless it holds escapes.
fn unquoted(key: &[u8], escaped: bool) -> Cow<'_, [u8]> {
    if escaped {
        let name: Option<String> = serde_json::from_slice(key).ok();
        return Cow::Owned(name.unwrap_or_default().into_bytes());
    }
    let inner = key.strip_prefix(b"\"").and_then(|key| key.strip_suffix(b"\""));
    Cow::Borrowed(inner.unwrap_or_default())
}

/// Turns JSON values into counts and remembers whether one had to be corrected.
#[derive(Default)]
struct Reader {
    clamped: bool,
}

impl Reader {
    /// The first of these fields that is there and not null.
    fn first(&mut self, fields: &Fields<'_>, names: &[&str]) -> Option<u64> {
        names
            .iter()
            .find_map(|name| self.number(fields.get(name)?, 1.0, MOST))
    }

    /// Seconds, as milliseconds.
    fn millis(&mut self, raw: Option<&[u8]>) -> Option<u64> {
        self.number(raw?, 1000.0, MOST_MILLIS)
    }

    /// `raw` is a JSON value as it is spelled.
    fn number(&mut self, raw: &[u8], scale: f64, most: u64) -> Option<u64> {
        if scale == 1.0
            && let Some(count) = plain(raw)
        {
            self.clamped |= count > most;
            return Some(count.min(most));
        }
        let number: Option<f64> = match raw.first() {
            Some(b'n') => return None,
            Some(b'"') if raw.len() <= LONGEST_NUMBER => {
                let text: Option<String> = serde_json::from_slice(raw).ok();
                text.and_then(|text| text.trim().parse().ok())
            }
            Some(b'-' | b'0'..=b'9') => std::str::from_utf8(raw).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        let scaled = number.unwrap_or(f64::NAN) * scale;
        if scaled.is_nan() || scaled < 0.0 {
            self.clamped = true;
            return Some(0);
        }
        if scaled > most as f64 {
            self.clamped = true;
            return Some(most);
        }
        Some(scaled.round() as u64)
    }
}

/// A count as nearly all are spelled: digits, and not more than surely fit.
fn plain(raw: &[u8]) -> Option<u64> {
    let is_plain = (1..=15).contains(&raw.len()) && raw.iter().all(u8::is_ascii_digit);
    is_plain.then(|| {
        raw.iter()
            .fold(0, |count, digit| count * 10 + u64::from(digit - b'0'))
    })
}

/// Hands out parts of a whole so that together they are never more than it.
struct Parts {
    whole: u64,
    clamped: bool,
}

impl Parts {
    fn take(&mut self, part: u64) -> u64 {
        let taken = part.min(self.whole);
        self.clamped |= taken < part;
        self.whole -= taken;
        taken
    }
}

/// Whether `"usage"` stands anywhere with something other than null behind it: servers asked for usage send
/// `"usage":null` with every chunk but the last, and those need no parsing. Inside a JSON string the quotes
/// would be escaped, so text that talks of usage does not match.
fn names_usage(body: &[u8]) -> bool {
    // Asked of every chunk of every stream, and building a finder costs more than using it.
    static NAME: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("\"usage\""));
    NAME.find_iter(body).any(|at| {
        let rest = body
            .get(at + NAME.needle().len()..)
            .unwrap_or_default()
            .trim_ascii_start();
        let value = rest.strip_prefix(b":").map(<[u8]>::trim_ascii_start);
        value.is_some_and(|value| !value.starts_with(b"null"))
    })
}

/// The few fields of an answer in which usage can stand, unparsed.
#[derive(Default)]
struct Envelope<'a> {
    usage: Option<&'a RawValue>,
    response: Option<&'a RawValue>,
    message: Option<&'a RawValue>,
    duration: Option<&'a RawValue>,
    service_tier: Option<&'a RawValue>,
}

impl Envelope<'_> {
    fn usage(&self) -> Option<Usage> {
        let read = |raw: &RawValue| Usage::read(raw.get().as_bytes());
        if let Some(usage) = self.usage.and_then(read) {
            return Some(usage);
        }
        [self.response, self.message]
            .into_iter()
            .flatten()
            .find_map(|raw| {
                let inner: Envelope<'_> = serde_json::from_str(raw.get()).ok()?;
                inner.usage.and_then(read)
            })
    }
}

// Written by hand because a derived struct refuses an object that names a field twice, and a bill must not be
// dodged that way: the last one counts, as in every JSON parser the client may use.
impl<'de> Deserialize<'de> for Envelope<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Envelope<'de>, D::Error> {
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope<'de>, A::Error> {
        let mut envelope = Envelope::default();
        while let Some(Name(slot)) = map.next_key()? {
            match slot {
                Slot::Usage => envelope.usage = Some(map.next_value()?),
                Slot::Response => envelope.response = Some(map.next_value()?),
                Slot::Message => envelope.message = Some(map.next_value()?),
                Slot::Duration => envelope.duration = Some(map.next_value()?),
                Slot::ServiceTier => envelope.service_tier = Some(map.next_value()?),
                Slot::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(envelope)
    }
}

enum Slot {
    Usage,
    Response,
    Message,
    Duration,
    ServiceTier,
    Other,
}

/// A key of the envelope, told apart without allocating.
struct Name(Slot);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = Name;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a field name")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Name, E> {
                Ok(Name(match name {
                    "usage" => Slot::Usage,
                    "response" => Slot::Response,
                    "message" => Slot::Message,
                    "duration" => Slot::Duration,
                    "service_tier" => Slot::ServiceTier,
                    _ => Slot::Other,
                }))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

#[cfg(test)]
mod tests;
