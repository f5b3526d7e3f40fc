//! Puts together what was answered, from what the client got of it: one message out of a stream's pieces,
//! or the part of a JSON answer that says something.

use super::story;
use filters::model::call::Endpoint;
use filters::model::trace::Output;
use filters::wire::sse::{self, Splitter};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// Answers to one call, and tools called in one, that are put together at most.
const MOST: usize = 128;

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
        (!text.trim().is_empty()).then_some(text)
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

/// One event of a transcription: a piece, or all of it at the end.
#[derive(Deserialize)]
struct HeardPiece {
    delta: Option<String>,
    text: Option<String>,
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

/// One event of a chat or of a completion.
#[derive(Deserialize)]
struct Piece {
    #[serde(default)]
    choices: Vec<PieceOf>,
}

#[derive(Deserialize)]
struct PieceOf {
    #[serde(default)]
    index: usize,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    content: Option<String>,
    #[serde(default, alias = "reasoning")]
    reasoning_content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<ToolPiece>>,
}

#[derive(Deserialize)]
struct ToolPiece {
    #[serde(default)]
    index: usize,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: Option<FunctionPiece>,
}

#[derive(Deserialize, Default)]
struct FunctionPiece {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<String>,
}

/// One answer growing.
#[derive(Default)]
struct Growing {
    role: Option<String>,
    content: Option<String>,
    reasoning: String,
    refusal: String,
    tools: Vec<Tool>,
}

#[derive(Default)]
struct Tool {
    id: String,
    name: String,
    arguments: String,
}

/// The element at `at`, made if need be; None beyond the bound.
fn grow<T: Default>(list: &mut Vec<T>, at: usize) -> Option<&mut T> {
    if at < MOST && at >= list.len() {
        list.resize_with(at + 1, T::default);
    }
    list.get_mut(at)
}

impl Growing {
    fn take(&mut self, piece: PieceOf) {
        if let Some(text) = piece.text {
            self.content.get_or_insert_default().push_str(&text);
        }
        let Some(delta) = piece.delta else { return };
        if self.role.is_none() {
            self.role = delta.role;
        }
        if let Some(text) = delta.content {
            self.content.get_or_insert_default().push_str(&text);
        }
        self.reasoning
            .push_str(&delta.reasoning_content.unwrap_or_default());
        self.refusal.push_str(&delta.refusal.unwrap_or_default());
        for call in delta.tool_calls.unwrap_or_default() {
            let Some(tool) = grow(&mut self.tools, call.index) else {
                continue;
            };
            let function = call.function.unwrap_or_default();
            tool.id.push_str(&call.id.unwrap_or_default());
            tool.name.push_str(&function.name.unwrap_or_default());
            tool.arguments.push_str(&function.arguments.unwrap_or_default());
        }
    }

    fn message(self) -> Value {
        let mut message = Map::new();
        message.insert(
            "role".into(),
            self.role.unwrap_or_else(|| "assistant".into()).into(),
        );
        message.insert("content".into(), json!(self.content));
        for (name, text) in [("reasoning_content", self.reasoning), ("refusal", self.refusal)] {
            if !text.is_empty() {
                message.insert(name.into(), text.into());
            }
        }
        if !self.tools.is_empty() {
            let tools = self.tools.into_iter().map(|t| {
                json!({"id": t.id, "type": "function", "function": {"name": t.name, "arguments": t.arguments}})
            });
            message.insert("tool_calls".into(), tools.collect());
        }
        Value::Object(message)
    }
}

fn streamed(endpoint: Endpoint, output: &Output) -> Option<Cow<'static, str>> {
    let mut growing: Vec<Growing> = Vec::new();
    // Of a stream of named events: its text, and the whole answer that its last event holds.
    let (mut text, mut last) = (String::new(), None);
    let hears = matches!(endpoint, Endpoint::Transcriptions | Endpoint::Translations);
    let mut take = |event: &[u8]| {
        let Some(data) = sse::data(event) else { return };
        if endpoint == Endpoint::Responses {
            let name = sse::name(event).unwrap_or_default();
            if name == b"response.output_text.delta" {
                #[derive(Deserialize)]
                struct TextDelta {
                    delta: String,
                }
                if let Ok(piece) = serde_json::from_slice::<TextDelta>(&data) {
                    text.push_str(&piece.delta);
                }
            } else if [&b"response.completed"[..], b"response.incomplete"].contains(&name) {
                #[derive(Deserialize)]
                struct Last<'a> {
                    #[serde(borrow)]
                    response: Field<'a>,
                }
                last = serde_json::from_slice::<Last>(&data)
                    .ok()
                    .map(|l| l.response.output.get().to_owned());
            }
            return;
        }
        if hears {
            match serde_json::from_slice::<HeardPiece>(&data) {
                Ok(HeardPiece {
                    delta: Some(piece), ..
                }) => text.push_str(&piece),
                Ok(HeardPiece {
                    text: Some(whole), ..
                }) => last = Some(whole),
                _ => {}
            }
            return;
        }
        if let Ok(piece) = serde_json::from_slice::<Piece>(&data) {
            for one in piece.choices {
                if let Some(answer) = grow(&mut growing, one.index) {
                    answer.take(one);
                }
            }
        }
    };
    let mut splitter = Splitter::default();
    splitter.push(output.bytes.clone(), |event| take(&event));
    if let Some(rest) = splitter.finish().filter(|_| !output.cut) {
        take(&rest);
    }
    if hears || endpoint == Endpoint::Responses {
        return last
            .or_else(|| (!text.is_empty()).then_some(text))
            .map(Cow::Owned);
    }
    let plain = endpoint == Endpoint::Completions;
    let mut all = growing.into_iter().map(|g| match plain {
        true => json!(g.content.unwrap_or_default()),
        false => g.message(),
    });
    let first = all.next()?;
    let rest: Vec<Value> = all.collect();
    let whole = match first {
        Value::String(text) if rest.is_empty() => text,
        one if rest.is_empty() => one.to_string(),
        one => Value::from_iter(std::iter::once(one).chain(rest)).to_string(),
    };
    Some(Cow::Owned(whole))
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
}
