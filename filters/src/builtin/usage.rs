//! How much a call used: asks the upstream to say it, listens while the answer flows by, and counts
//! for itself when nothing is said.

use crate::contract::cx::Metered;
use crate::contract::{Call, Cx, Filter, Needs, Outcome, Result, Scanned, Upstream};
use crate::model::call::Endpoint;
use crate::model::deployment::Deployment;
use crate::model::money::Femto;
use crate::model::price::{Meter, ServiceTier};
use crate::model::usage::{self, Usage};
use crate::wire::{peek, splice, sse};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::sync::LazyLock;
use std::time::Instant;

/// A JSON answer longer than this is not searched for its usage; the usage is estimated.
const MAX_ANSWER: usize = 16 << 20;

/// Fields that carry a piece of the answer's text. Built once: building a finder costs more than using it.
static TEXTS: LazyLock<[Finder<'static>; 4]> = LazyLock::new(|| {
    [
        "\"content\"",
        "\"text\"",
        "\"arguments\"",
        "\"reasoning_content\"",
    ]
    .map(|n| Finder::new(n.as_bytes()))
});
static REASONING: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"reasoning\""));
static DELTA: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"delta\""));

pub struct MeterUsage;

#[async_trait]
impl Filter for MeterUsage {
    fn needs(&self) -> Needs {
        Needs {
            upstream_request: true,
            response_chunks: true,
            logging: true,
            ..Needs::NONE
        }
    }

    async fn upstream_request_filter(&self, cx: &mut Cx, up: &mut Upstream) -> Result<()> {
        cx.metered = Metered::default();
        cx.first_token = None;
        // Neither does an earlier attempt's error say anything of this one.
        cx.response_status = 0;
        if let Some(call) = cx.call.as_ref().filter(|c| asks(c)) {
            up.edits.set("stream_options", with_include_usage(call));
        }
        Ok(())
    }

    fn response_body_filter(&self, cx: &mut Cx, chunk: &mut Bytes, end: bool) -> Result<()> {
        let Cx {
            call: Some(call),
            deployment,
            metered,
            event_stream,
            response_status,
            first_token,
            ..
        } = cx
        else {
            return Ok(());
        };
        if *response_status >= 400 {
            return Ok(());
        }
        if *event_stream {
            listen(call, metered, chunk, end);
            // The clock is read once per stream, not once per chunk.
            if first_token.is_none() && metered.deltas > 0 {
                *first_token = Some(Instant::now());
            }
        } else if !chunk.is_empty() && metered.pieces_len <= MAX_ANSWER {
            metered.pieces_len += chunk.len();
            metered.pieces.push(chunk.clone());
        }
        // The stream's own last word ends the call for the client, so it does for us: the upstream may
        // take its time to close.
        if metered.used.is_none() && (end || metered.done) {
            let broke_off = metered.error.is_some();
            settle(call, deployment.as_deref(), metered, *event_stream, broke_off);
        }
        Ok(())
    }

    /// An answer that broke off is owed for as far as it came, and a question for having been read.
    fn logging(&self, cx: &mut Cx, _outcome: &Outcome) {
        let Cx {
            call: Some(call),
            deployment,
            metered,
            event_stream,
            response_status,
            ..
        } = cx
        else {
            return;
        };
        let came = metered.deltas > 0 || metered.told.is_some() || metered.pieces_len > 0;
        if metered.used.is_none() && (came || metered.sent) && *response_status < 300 {
            settle(call, deployment.as_deref(), metered, *event_stream, !metered.done);
            if let Some(used) = metered.used.as_mut().filter(|_| !came) {
                used.estimated = true;
            }
        }
    }
}

/// Whether usage has to be asked for: only streams of these two keep it to themselves otherwise.
fn asks(call: &Call) -> bool {
    call.stream && !call.include_usage && matches!(call.endpoint, Endpoint::Chat | Endpoint::Completions)
}

/// The client's `stream_options` with `include_usage` added.
fn with_include_usage(call: &Call) -> Bytes {
    const ALONE: Bytes = Bytes::from_static(br#"{"include_usage":true}"#);
    let Scanned::Json(object) = &call.scanned else {
        return ALONE;
    };
    let Some(field) = object
        .get("stream_options")
        .filter(|f| f.kind == peek::Kind::Object)
    else {
        return ALONE;
    };
    let options = call.body.slice(field.value.clone());
    peek::scan(&options, &["include_usage"], peek::DEFAULT_DEPTH)
        .ok()
        .map(|o| {
            splice::object_edits(
                &options,
                &o,
                &[],
                &[],
                &[("include_usage", Bytes::from_static(b"true"))],
            )
        })
        .and_then(|edits| splice::apply(&options, edits).ok())
        .map_or(ALONE, |rope| rope.to_bytes())
}

/// What an event says about the call, of which nothing else is read.
#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    choices: Option<Vec<IgnoredAny>>,
}

/// Takes note of the events in `chunk`, and takes out the usage event if the client did not ask for it.
fn listen(call: &Call, metered: &mut Metered, chunk: &mut Bytes, end: bool) {
    let hides = asks(call);
    let was_pending = metered.splitter.pending() > 0;
    let mut hidden = false;
    let mut kept = BytesMut::new();
    let mut events: smallvec::SmallVec<[Bytes; 16]> = smallvec::SmallVec::new();

    let mut splitter = std::mem::take(&mut metered.splitter);
    splitter.push_marked(chunk.clone(), |event, whole| {
        if whole && note(call.endpoint, metered, &event) && hides {
            hidden = true;
        } else {
            events.push(event);
        }
    });
    if end && let Some(rest) = splitter.finish() {
        if note(call.endpoint, metered, &rest) && hides {
            hidden = true;
        } else {
            events.push(rest);
        }
    }
    let holds_back = splitter.pending() > 0;
    metered.splitter = splitter;

    // Nothing is hidden from a client that asked, so nothing is held back from it either. Otherwise an
    // event goes on once it is known to be whole; mostly that is the chunk as it came.
    if !hides || !(was_pending || hidden || holds_back) {
        return;
    }
    *chunk = match events.as_slice() {
        [] => Bytes::new(),
        [one] => one.clone(),
        many => {
            many.iter().for_each(|e| kept.extend_from_slice(e));
            kept.freeze()
        }
    };
}

/// Reads one event. True = it holds the usage and nothing else.
fn note(endpoint: Endpoint, metered: &mut Metered, event: &[u8]) -> bool {
    let Some(data) = sse::data(event) else {
        return false;
    };
    if data.as_ref() == b"[DONE]" {
        metered.done = true;
        return false;
    }
    if endpoint == Endpoint::Responses {
        match sse::name(event) {
            Some(b"response.completed" | b"response.incomplete" | b"response.failed") => metered.done = true,
            Some(n) if n.ends_with(b".delta") => {
                metered.deltas += 1;
                metered.text_bytes += text_of(&data, &DELTA) as u64;
            }
            _ => {}
        }
    } else {
        let mut text: usize = TEXTS.iter().map(|name| text_of(&data, name)).sum();
        if text == 0 {
            // Some servers call what was thought so, some say it under both names.
            text = text_of(&data, &REASONING);
        }
        if text == 0 && matches!(endpoint, Endpoint::Transcriptions | Endpoint::Translations) {
            text = text_of(&data, &DELTA);
        }
        if text > 0 {
            metered.deltas += 1;
            metered.text_bytes += text as u64;
        }
    }
    if data
        .strip_prefix(b"{")
        .is_some_and(|d| d.trim_ascii_start().starts_with(b"\"error\""))
    {
        metered.error = Some("the upstream reported an error within its stream".into());
    }
    // A chat says it with every event and means the same; the Responses API first says what was asked
    // for and last what came of it.
    if (metered.service_tier.is_none() || endpoint == Endpoint::Responses)
        && let Some(tier) = usage::tier_in(&data)
    {
        metered.service_tier = Some(ServiceTier::parse(&tier));
    }
    let Some(told) = Usage::find_in(&data) else {
        return false;
    };
    match &mut metered.told {
        Some(earlier) => earlier.merge(&told),
        none => *none = Some(told),
    }
    endpoint != Endpoint::Responses
        && serde_json::from_slice::<Said>(&data).is_ok_and(|s| s.choices.is_some_and(|c| c.is_empty()))
}

/// The length of the string value of the first field of this name, bytes; 0 when there is none. `name`
/// stands in its quotes.
fn text_of(data: &[u8], name: &Finder) -> usize {
    let Some(at) = name.find(data) else {
        return 0;
    };
    let rest = data
        .get(at + name.needle().len()..)
        .unwrap_or_default()
        .trim_ascii_start();
    let rest = rest.strip_prefix(b":").unwrap_or_default().trim_ascii_start();
    let Some(text) = rest.strip_prefix(b"\"") else {
        return 0;
    };
    let mut from = 0;
    while let Some(i) = memchr::memchr2(b'"', b'\\', text.get(from..).unwrap_or_default()) {
        if text.get(from + i) == Some(&b'"') {
            return from + i;
        }
        from += i + 2;
    }
    text.len()
}

/// Decides what the call used. `broke_off`: the answer has no proper end, so that what was told of it on
/// the way may not be all.
fn settle(call: &Call, d: Option<&Deployment>, metered: &mut Metered, event_stream: bool, broke_off: bool) {
    if !event_stream && metered.told.is_none() {
        read(call.endpoint, metered, broke_off);
    }
    metered.pieces = Vec::new();
    let mut used = match metered.told.take() {
        // A whole answer that can be read is not a part of one.
        Some(told) if broke_off && event_stream => told.at_least(&counted(call, metered, event_stream)),
        Some(told) => told,
        None => counted(call, metered, event_stream),
    };
    match call.endpoint {
        Endpoint::Speech => used.characters = call.characters,
        Endpoint::Rerank => used.queries = used.queries.max(1),
        Endpoint::Images => used.images = used.images.max(call.images.max(1)),
        Endpoint::Transcriptions | Endpoint::Translations => hear(call, d, &mut used),
        _ => {}
    }
    metered.used = Some(used);
}

/// What the call used by our own count.
fn counted(call: &Call, metered: &Metered, event_stream: bool) -> Usage {
    match call.endpoint {
        Endpoint::Chat | Endpoint::Completions | Endpoint::Responses => {
            let came = if event_stream {
                metered.text_bytes
            } else {
                metered.pieces_len as u64
            };
            let bytes = usize::try_from(came.saturating_add(metered.held_bytes)).unwrap_or(usize::MAX);
            Usage {
                prompt_tokens: call.estimated_prompt(),
                ..Usage::estimate(0, bytes, metered.deltas)
            }
        }
        Endpoint::Embeddings | Endpoint::Moderations | Endpoint::Rerank => Usage {
            prompt_tokens: call.estimated_prompt(),
            estimated: true,
            ..Usage::default()
        },
        // Spoken text is counted exactly below; what was heard or drawn cannot be guessed from bytes.
        Endpoint::Speech => Usage::default(),
        Endpoint::Images => Usage {
            images: call.images.max(1),
            ..Usage::default()
        },
        Endpoint::Transcriptions | Endpoint::Translations => Usage {
            seconds_milli: call.audio_millis,
            estimated: true,
            ..Usage::default()
        },
    }
}

/// Adds what the price of a transcription is multiplied with and nobody told: answers in plain text tell
/// nothing, and not every server tells what its owner charges for.
fn hear(call: &Call, d: Option<&Deployment>, used: &mut Usage) {
    let price = d.and_then(|d| d.price.as_ref());
    let by_second = price.is_some_and(|p| {
        p.rates()
            .iter()
            .any(|r| matches!(r.meter, Meter::InputSecond | Meter::OutputSecond) && r.price > Femto::ZERO)
    });
    let silent = used.total_tokens() == 0;
    if used.seconds_milli == 0 && (by_second || silent) {
        used.seconds_milli = call.audio_millis;
        used.estimated = true;
    }
    if silent && !by_second && price.is_some() {
        used.prompt_tokens = call.estimated_prompt();
        used.audio_prompt_tokens = used.prompt_tokens;
        used.estimated = true;
    }
}

/// Reads what an answer that is not a stream says of itself.
fn read(endpoint: Endpoint, metered: &mut Metered, broke_off: bool) {
    if metered.pieces_len > MAX_ANSWER || endpoint == Endpoint::Speech {
        return;
    }
    let whole: Bytes = match metered.pieces.as_slice() {
        [one] => one.clone(),
        many => many.concat().into(),
    };
    let heard = matches!(endpoint, Endpoint::Transcriptions | Endpoint::Translations);
    let at_the_end = || if broke_off { None } else { at_the_end(&whole) };
    if !heard && let Some((told, tier)) = at_the_end().or_else(|| at_the_top(&whole)) {
        (metered.told, metered.service_tier) = (Some(told), tier);
        return;
    }
    metered.service_tier = usage::tier_in(&whole).map(|t| ServiceTier::parse(&t));
    metered.told = if heard {
        Usage::find_in_transcription(&whole)
    } else {
        Usage::find_in(&whole)
    };
}

/// The usage of an ordinary answer and the tier it was served at: found by the scan that finds the model in
/// a request, which costs a third of reading all of it as JSON. Whatever is not ordinary is left to
/// [`Usage::find_in`] and [`usage::tier_in`].
fn at_the_top(whole: &[u8]) -> Option<(Usage, Option<ServiceTier>)> {
    let object = peek::scan(whole, &TOLD, peek::DEFAULT_DEPTH).ok()?;
    told_by(whole, &object.fields)
}

/// The same where it stands near the end, as providers write it: what comes before need not be looked at. Only
/// for an answer that is whole: of a part, the end may be that of any object in it.
fn at_the_end(whole: &[u8]) -> Option<(Usage, Option<ServiceTier>)> {
    let from = whole.len().saturating_sub(END);
    // Within a text its quotes would be escaped, so this is a text of its own: a key, or a value, which is
    // refused for want of a colon behind it.
    let key = from + NAME.find_iter(whole.get(from..)?).last()?;
    let is_escaped = key.checked_sub(1).and_then(|before| whole.get(before)) == Some(&b'\\');
    if is_escaped || !whole.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let fields = peek::scan_end(whole, key, &TOLD, peek::DEFAULT_DEPTH).ok()?;
    told_by(whole, &fields)
}

const TOLD: [&str; 2] = ["usage", "service_tier"];
/// Bytes at the end of an answer that hold its usage and what little comes behind.
const END: usize = 1024;
static NAME: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"usage\""));

fn told_by(whole: &[u8], fields: &[peek::Field]) -> Option<(Usage, Option<ServiceTier>)> {
    let field = |name| fields.iter().find(|f| f.name == name);
    let usage = field("usage").filter(|f| f.kind == peek::Kind::Object)?;
    let told = Usage::read(whole.get(usage.value.clone())?)?;
    let tier = match field("service_tier") {
        None => usage::tier_in(whole).map(|t| ServiceTier::parse(&t)),
        Some(field) if field.kind == peek::Kind::Null => None,
        Some(field) => match peek::str_value(whole, field)?.as_ref() {
            // That is what was asked for; what came of it is not said.
            "auto" => None,
            name => Some(ServiceTier::parse(name)),
        },
    };
    Some((told, tier))
}

#[cfg(test)]
mod tests;
