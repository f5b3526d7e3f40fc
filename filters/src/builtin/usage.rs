//! How much a call used: asks the upstream to say it, listens while the answer flows by, and counts
//! for itself when nothing is said.

use crate::contract::cx::Metered;
use crate::contract::{Call, Cx, Filter, Needs, Outcome, Result, Scanned, Upstream};
use crate::model::call::Endpoint;
use crate::model::usage::{self, Usage};
use crate::wire::{peek, splice, sse};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::sync::LazyLock;

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
        if let Some(call) = cx.call.as_ref().filter(|c| asks(c)) {
            up.edits.set("stream_options", with_include_usage(call));
        }
        Ok(())
    }

    fn response_body_filter(&self, cx: &mut Cx, chunk: &mut Bytes, end: bool) -> Result<()> {
        let Cx {
            call: Some(call),
            metered,
            event_stream,
            response_status,
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
        } else if !chunk.is_empty() && metered.pieces_len <= MAX_ANSWER {
            metered.pieces_len += chunk.len();
            metered.pieces.push(chunk.clone());
        }
        // The stream's own last word ends the call for the client, so it does for us: the upstream may
        // take its time to close.
        if metered.used.is_none() && (end || metered.done) {
            settle(call, metered, *event_stream);
        }
        Ok(())
    }

    /// An answer that broke off is owed for as far as it came.
    fn logging(&self, cx: &mut Cx, _outcome: &Outcome) {
        let Cx {
            call: Some(call),
            metered,
            event_stream,
            ..
        } = cx
        else {
            return;
        };
        let came = metered.deltas > 0 || metered.told.is_some() || metered.pieces_len > 0;
        if metered.used.is_none() && came {
            settle(call, metered, *event_stream);
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
        let text: usize = TEXTS.iter().map(|name| text_of(&data, name)).sum();
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

/// Decides what the call used.
fn settle(call: &Call, metered: &mut Metered, event_stream: bool) {
    let told = metered.told.take().or_else(|| {
        if event_stream {
            None
        } else {
            find(call.endpoint, metered)
        }
    });
    let answered = metered.pieces_len;
    metered.pieces = Vec::new();
    let mut used = told.unwrap_or_else(|| match call.endpoint {
        Endpoint::Chat | Endpoint::Completions | Endpoint::Responses if event_stream => {
            Usage::estimate(call.body.len(), metered.text_bytes as usize, metered.deltas)
        }
        Endpoint::Chat | Endpoint::Completions | Endpoint::Responses => {
            Usage::estimate(call.body.len(), answered, 0)
        }
        Endpoint::Embeddings | Endpoint::Moderations | Endpoint::Rerank => Usage {
            prompt_tokens: usage::estimate_prompt(call.body.len()),
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
    });
    match call.endpoint {
        Endpoint::Speech => used.characters = call.characters,
        Endpoint::Rerank => used.queries = used.queries.max(1),
        Endpoint::Images => used.images = used.images.max(call.images.max(1)),
        _ => {}
    }
    metered.used = Some(used);
}

fn find(endpoint: Endpoint, metered: &Metered) -> Option<Usage> {
    if metered.pieces_len > MAX_ANSWER || endpoint == Endpoint::Speech {
        return None;
    }
    let whole: Bytes = match metered.pieces.as_slice() {
        [one] => one.clone(),
        many => many.concat().into(),
    };
    if matches!(endpoint, Endpoint::Transcriptions | Endpoint::Translations) {
        Usage::find_in_transcription(&whole)
    } else {
        Usage::find_in(&whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;

    /// Runs a stream through, cut every `step` bytes; what the client sees and what was used.
    fn run(body: &str, events: &str, step: usize) -> (String, Metered) {
        let mut cx = testkit::Kit::default().cx();
        cx.call = Some(testkit::call(Endpoint::Chat, body));
        cx.event_stream = true;
        cx.response_status = 200;
        let mut out = Vec::new();
        let chunks: Vec<&[u8]> = events.as_bytes().chunks(step).collect();
        for (i, piece) in chunks.iter().enumerate() {
            let mut chunk = Bytes::copy_from_slice(piece);
            MeterUsage
                .response_body_filter(&mut cx, &mut chunk, i + 1 == chunks.len())
                .unwrap();
            out.extend_from_slice(&chunk);
        }
        (String::from_utf8(out).unwrap(), cx.metered)
    }

    const DELTAS: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\" wor\\\"ld\"}}],\"usage\":null}\n\n";
    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"total_tokens\":9}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    #[test]
    fn the_usage_event_is_hidden_from_those_who_did_not_ask_at_every_cut() {
        let events = format!("{DELTAS}{USAGE}{DONE}");
        for step in 1..=events.len() {
            let (seen, m) = run(r#"{"model":"m","messages":[],"stream":true}"#, &events, step);
            assert_eq!(seen, format!("{DELTAS}{DONE}"), "cut every {step} bytes");
            let used = m.used.unwrap();
            assert_eq!(
                (used.prompt_tokens, used.completion_tokens, used.estimated),
                (7, 2, false)
            );
            assert!(m.done);
        }
    }

    #[test]
    fn the_last_word_of_a_stream_settles_it_before_it_closes() {
        let mut cx = testkit::Kit::default().cx();
        cx.call = Some(testkit::call(
            Endpoint::Chat,
            r#"{"model":"m","messages":[],"stream":true}"#,
        ));
        cx.event_stream = true;
        cx.response_status = 200;
        let mut chunk = Bytes::from(format!("{DELTAS}{USAGE}{DONE}"));
        MeterUsage
            .response_body_filter(&mut cx, &mut chunk, false)
            .unwrap();
        assert_eq!(
            cx.metered.used.unwrap().completion_tokens,
            2,
            "known with [DONE], not when it closes"
        );
    }

    #[test]
    fn those_who_asked_see_every_byte() {
        let events = format!("{DELTAS}{USAGE}{DONE}");
        let asked = r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
        for step in [1, 3, 50, 1000] {
            assert_eq!(run(asked, &events, step).0, events);
        }
    }

    #[test]
    fn a_silent_upstream_is_counted_for_and_flagged() {
        let (seen, m) = run(
            r#"{"model":"m","messages":[],"stream":true}"#,
            &format!("{DELTAS}{DONE}"),
            9,
        );
        assert_eq!(seen, format!("{DELTAS}{DONE}"));
        let used = m.used.unwrap();
        assert!(used.estimated && used.prompt_tokens > 0);
        assert_eq!(used.completion_tokens, 4, "two deltas of thirteen bytes");
    }

    #[test]
    fn usage_beside_a_choice_stays_where_it_is() {
        let last = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\
             \"completion_tokens\":1}}\n\n";
        let (seen, m) = run(
            r#"{"model":"m","messages":[],"stream":true}"#,
            &format!("{last}{DONE}"),
            20,
        );
        assert_eq!(seen, format!("{last}{DONE}"));
        assert_eq!(m.used.unwrap().completion_tokens, 1);
    }

    #[test]
    fn asking_keeps_the_clients_other_options() {
        let call = |b: &str| testkit::call(Endpoint::Chat, b);
        let plain = call(r#"{"model":"m","messages":[],"stream":true}"#);
        assert!(asks(&plain));
        assert_eq!(with_include_usage(&plain), r#"{"include_usage":true}"#);
        let other = call(r#"{"model":"m","messages":[],"stream":true,"stream_options":{"x":1}}"#);
        assert_eq!(with_include_usage(&other), r#"{"x":1,"include_usage":true}"#);
        let no =
            call(r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":false}}"#);
        assert_eq!(with_include_usage(&no), r#"{"include_usage":true}"#);
        assert!(!asks(&call(r#"{"model":"m","messages":[]}"#)));
    }
}
