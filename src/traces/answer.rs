//! Puts together what was answered, from what the client got of it: one message out of a stream's pieces,
//! or the part of a JSON answer that says something.

use super::story;
use filters::model::call::Endpoint;
use filters::model::pieces::{CUT, Pieces};
use filters::model::trace::Output;
use filters::wire::sse::{self, Splitter};
use memchr::memmem;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Answers to one call that are put together at most.
const MOST: usize = 128;
/// The longest id, model and reason, bytes.
const LONGEST_SIGNATURE: usize = 256;

/// The answer as JSON or plain text. None = there is nothing to tell.
pub fn said(endpoint: Endpoint, output: &Output) -> Option<Cow<'_, str>> {
    let put_together = if output.event_stream {
        streamed(endpoint, output)
    } else {
        whole(endpoint, &output.bytes)
    };
    // What cannot be read is told as it is: half an answer, or one of another shape.
    put_together.or_else(|| {
        let text = story::lossy(&output.bytes);
        if text.trim().is_empty() {
            return None;
        }
        Some(match output.cut {
            true => Cow::Owned(text.into_owned() + CUT),
            false => text,
        })
    })
}

#[derive(Deserialize)]
struct Chat<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    message: &'a RawValue,
}

#[derive(Deserialize)]
struct Completions {
    choices: Vec<Completion>,
}

#[derive(Deserialize)]
struct Completion {
    text: String,
}

/// Answers of which one field says it all.
#[derive(Deserialize)]
struct Field<'a> {
    #[serde(borrow, alias = "results")]
    output: &'a RawValue,
}

#[derive(Deserialize)]
struct Heard {
    text: String,
}

fn whole(endpoint: Endpoint, bytes: &[u8]) -> Option<Cow<'_, str>> {
    match endpoint {
        Endpoint::Chat => {
            let chat: Chat = serde_json::from_slice(bytes).ok()?;
            match chat.choices.as_slice() {
                [] => None,
                [one] => Some(Cow::Borrowed(one.message.get())),
                many => {
                    let all: Vec<&str> = many.iter().take(MOST).map(|c| c.message.get()).collect();
                    Some(Cow::Owned(format!("[{}]", all.join(","))))
                }
            }
        }
        Endpoint::Completions => {
            let mut all: Completions = serde_json::from_slice(bytes).ok()?;
            match all.choices.len() {
                0 => None,
                1 => Some(Cow::Owned(all.choices.remove(0).text)),
                _ => {
                    let texts: Vec<String> = all.choices.into_iter().take(MOST).map(|c| c.text).collect();
                    Some(Cow::Owned(json!(texts).to_string()))
                }
            }
        }
        Endpoint::Responses | Endpoint::Moderations | Endpoint::Rerank => {
            let field: Field = serde_json::from_slice(bytes).ok()?;
            Some(Cow::Borrowed(field.output.get()))
        }
        Endpoint::Transcriptions | Endpoint::Translations => {
            let heard: Heard = serde_json::from_slice(bytes).ok()?;
            Some(Cow::Owned(heard.text))
        }
        Endpoint::Embeddings | Endpoint::Speech | Endpoint::Images => None,
    }
}

/// What an answer says of itself, for those who tell answers apart by it. Bounded.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Signed {
    pub id: Option<String>,
    /// The model that answered, in its own words.
    pub model: Option<String>,
    /// Why each of its choices ended.
    pub reasons: Vec<String>,
}

#[derive(Deserialize)]
struct Signature {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    choices: Vec<Ending>,
    /// Of an event of `/responses`.
    #[serde(default)]
    response: Option<Box<Signature>>,
}

#[derive(Deserialize)]
struct Ending {
    #[serde(default)]
    finish_reason: Option<String>,
}

impl Signed {
    /// What is said first stands, but for why it ended.
    fn take(&mut self, json: &[u8]) {
        let Ok(mut said) = serde_json::from_slice::<Signature>(json) else {
            return;
        };
        if let Some(inner) = said.response.take() {
            said = *inner;
        }
        let short = |text: String| story::cut(&text, LONGEST_SIGNATURE).to_owned();
        self.id = self.id.take().or_else(|| said.id.map(short));
        self.model = self.model.take().or_else(|| said.model.map(short));
        let reasons = said.choices.into_iter().filter_map(|c| c.finish_reason);
        let room = MOST.saturating_sub(self.reasons.len());
        self.reasons.extend(reasons.take(room).map(short));
    }
}

/// Who answered, and why that ended.
pub fn signed(endpoint: Endpoint, output: &Output) -> Signed {
    let mut signed = Signed::default();
    if !matches!(
        endpoint,
        Endpoint::Chat | Endpoint::Completions | Endpoint::Responses
    ) {
        return signed;
    }
    if !output.event_stream {
        signed.take(&output.bytes);
        return signed;
    }
    let mut splitter = Splitter::default();
    splitter.push(output.bytes.clone(), |event| {
        // All of it is in the first event and in the last ones; those between say the same again.
        if (signed.id.is_none() || ends(&event))
            && let Some(data) = sse::data(&event)
        {
            signed.take(&data);
        }
    });
    signed
}

/// Whether an event says why an answer ended; most say that it has not.
fn ends(event: &[u8]) -> bool {
    const NAME: &[u8] = b"\"finish_reason\"";
    let behind = |at: usize| {
        let value = event
            .get(at + NAME.len()..)
            .unwrap_or_default()
            .trim_ascii_start();
        value
            .strip_prefix(b":")
            .unwrap_or_default()
            .trim_ascii_start()
            .starts_with(b"\"")
    };
    memmem::find_iter(event, NAME).any(behind)
}

fn streamed(endpoint: Endpoint, output: &Output) -> Option<Cow<'static, str>> {
    let mut pieces = Pieces::new(endpoint);
    let mut splitter = Splitter::default();
    splitter.push(output.bytes.clone(), |event| pieces.take(&event));
    if let Some(rest) = splitter.finish().filter(|_| !output.cut) {
        pieces.take(&rest);
    }
    pieces.said(output.cut).map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[track_caller]
    fn check(endpoint: Endpoint, event_stream: bool, bytes: &str, want: &str) {
        let output = Output {
            bytes: Bytes::copy_from_slice(bytes.as_bytes()),
            event_stream,
            cut: false,
        };
        assert_eq!(said(endpoint, &output).unwrap_or_default(), want);
    }

    #[test]
    fn whole_answers() {
        let chat =
            r#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"}}],"usage":{}}"#;
        check(
            Endpoint::Chat,
            false,
            chat,
            r#"{"role":"assistant","content":"Hi"}"#,
        );
        let two = r#"{"choices":[{"message":{"content":"a"}},{"message":{"content":"b"}}]}"#;
        check(Endpoint::Chat, false, two, r#"[{"content":"a"},{"content":"b"}]"#);
        check(
            Endpoint::Completions,
            false,
            r#"{"choices":[{"text":"a\nb"}]}"#,
            "a\nb",
        );
        check(
            Endpoint::Responses,
            false,
            r#"{"output":[{"type":"message"}]}"#,
            r#"[{"type":"message"}]"#,
        );
        check(Endpoint::Transcriptions, false, r#"{"text":"heard"}"#, "heard");
        check(
            Endpoint::Transcriptions,
            false,
            "1\n00:00 heard",
            "1\n00:00 heard",
        );
        check(Endpoint::Moderations, false, r#"{"results":[1]}"#, "[1]");
        check(
            Endpoint::Chat,
            false,
            r#"{"choices":[{"mess"#,
            r#"{"choices":[{"mess"#,
        );
        check(Endpoint::Chat, false, "", "");
    }

    #[test]
    fn streams_become_one_message() {
        let chat = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"lo\"}}]}\n\n\
            : comment\n\ndata: {\"choices\":[]}\n\ndata: nonsense\n\ndata: [DONE]\n\n";
        check(
            Endpoint::Chat,
            true,
            chat,
            r#"{"role":"assistant","content":"Hello"}"#,
        );
        let tools = "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"c1\",\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{}\"}}]}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":99999999}]}}]}\n\n";
        check(
            Endpoint::Chat,
            true,
            tools,
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]}"#,
        );
        check(
            Endpoint::Completions,
            true,
            "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\n",
            "ab",
        );
        let heard = "data: {\"type\":\"transcript.text.delta\",\"delta\":\"He\"}\n\n\
            data: {\"type\":\"transcript.text.delta\",\"delta\":\"ard\"}\n\n";
        check(Endpoint::Transcriptions, true, heard, "Heard");
        let last = format!("{heard}data: {{\"type\":\"transcript.text.done\",\"text\":\"Heard.\"}}\n\n");
        check(Endpoint::Transcriptions, true, &last, "Heard.");
        let responses = "event: response.output_text.delta\ndata: {\"delta\":\"Hi\"}\n\n";
        check(Endpoint::Responses, true, responses, "Hi");
        let last =
            format!("{responses}event: response.completed\ndata: {{\"response\":{{\"output\":[1]}}}}\n\n");
        check(Endpoint::Responses, true, &last, "[1]");
    }
    #[test]
    fn an_answer_says_who_it_is() {
        let check = |endpoint, event_stream, text: &str, id, model, reasons: &[&str]| {
            let output = Output {
                bytes: Bytes::copy_from_slice(text.as_bytes()),
                event_stream,
                cut: false,
            };
            let want = Signed {
                id: Some(String::from(id)),
                model: Some(String::from(model)),
                reasons: reasons.iter().map(|r| r.to_string()).collect(),
            };
            assert_eq!(signed(endpoint, &output), want);
        };
        let chat = r#"{"id":"c","model":"m-1","choices":[{"message":{"content":"a"},"finish_reason":"stop"},{"finish_reason":null}]}"#;
        check(Endpoint::Chat, false, chat, "c", "m-1", &["stop"]);
        let events = "data: {\"id\":\"c\",\"model\":\"m-1\",\"choices\":[{\"delta\":{},\"finish_reason\":null}]}\n\n\
            data: {\"id\":\"d\",\"choices\":[{\"delta\":{},\"finish_reason\": \"length\"}]}\n\ndata: [DONE]\n\n";
        check(Endpoint::Chat, true, events, "c", "m-1", &["length"]);
        let events = "event: response.created\ndata: {\"response\":{\"id\":\"r\",\"model\":\"m-1\"}}\n\n";
        check(Endpoint::Responses, true, events, "r", "m-1", &[]);
        let none = Output {
            bytes: Bytes::from_static(b"no"),
            event_stream: false,
            cut: true,
        };
        assert_eq!(signed(Endpoint::Chat, &none), Signed::default());
    }
}
