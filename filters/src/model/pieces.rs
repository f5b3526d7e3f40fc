//! An answer that comes in pieces: put together as it was said, and written again in few pieces where it has to be
//! kept short. Knows the events of each endpoint in OpenAI's words; where they come from and what becomes of
//! them is not its business.

use super::call::Endpoint;
use crate::wire::sse;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::io::Write;

/// Answers to one call, and tools called in one, that are put together at most.
const MOST: usize = 128;
/// Stands where more was said.
pub const CUT: &str = "… [cut]";

/// What has been said so far.
pub struct Pieces {
    endpoint: Endpoint,
    growing: Vec<Growing>,
    /// Of a stream of named events: its text, and the whole answer that its last event holds.
    text: String,
    last: Option<String>,
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
    #[serde(default)]
    reasoning_content: Option<String>,
    /// Another name of the same; some servers write both.
    #[serde(default)]
    reasoning: Option<String>,
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

/// One event of a transcription: a piece, or all of it at the end.
#[derive(Deserialize)]
struct HeardPiece {
    delta: Option<String>,
    text: Option<String>,
}

#[derive(Deserialize)]
struct TextDelta {
    delta: String,
}

#[derive(Deserialize)]
struct Last<'a> {
    #[serde(borrow)]
    response: Answer<'a>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    output: &'a RawValue,
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

impl Pieces {
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            growing: Vec::new(),
            text: String::new(),
            last: None,
        }
    }

    fn hears(&self) -> bool {
        matches!(self.endpoint, Endpoint::Transcriptions | Endpoint::Translations)
    }

    /// Takes one whole event in. What says nothing is left out.
    pub fn take(&mut self, event: &[u8]) {
        let Some(data) = sse::data(event) else { return };
        if self.endpoint == Endpoint::Responses {
            let name = sse::name(event).unwrap_or_default();
            if name == b"response.output_text.delta" {
                if let Ok(piece) = serde_json::from_slice::<TextDelta>(&data) {
                    self.text.push_str(&piece.delta);
                }
            } else if [&b"response.completed"[..], b"response.incomplete"].contains(&name)
                && let Ok(last) = serde_json::from_slice::<Last>(&data)
            {
                self.last = Some(last.response.output.get().to_owned());
            }
        } else if self.hears() {
            match serde_json::from_slice::<HeardPiece>(&data) {
                Ok(HeardPiece {
                    delta: Some(piece), ..
                }) => self.text.push_str(&piece),
                Ok(HeardPiece {
                    text: Some(whole), ..
                }) => self.last = Some(whole),
                _ => {}
            }
        } else if let Ok(piece) = serde_json::from_slice::<Piece>(&data) {
            for one in piece.choices {
                if let Some(answer) = grow(&mut self.growing, one.index) {
                    answer.take(one);
                }
            }
        }
    }

    /// The answer as JSON or plain text, as it would have been had it not come in pieces. None = nothing was
    /// said. `cut`: there was more, which shows.
    pub fn said(mut self, cut: bool) -> Option<String> {
        if self.hears() || self.endpoint == Endpoint::Responses {
            if self.last.is_some() {
                return self.last;
            }
            if cut && !self.text.is_empty() {
                self.text.push_str(CUT);
            }
            return (!self.text.is_empty()).then_some(self.text);
        }
        if let Some(first) = self.growing.first_mut().filter(|_| cut) {
            first.content.get_or_insert_default().push_str(CUT);
        }
        let plain = self.endpoint == Endpoint::Completions;
        let mut all = self.growing.into_iter().map(|g| match plain {
            true => json!(g.content.unwrap_or_default()),
            false => Value::Object(g.message()),
        });
        let first = all.next()?;
        let rest: Vec<Value> = all.collect();
        Some(match first {
            Value::String(text) if rest.is_empty() => text,
            one if rest.is_empty() => one.to_string(),
            one => Value::from_iter(std::iter::once(one).chain(rest)).to_string(),
        })
    }

    /// Writes the same as events, as few as can be, behind `out`: up to `most` bytes. False = that took leaving
    /// some of it out.
    pub fn write(mut self, most: usize, out: &mut Vec<u8>) -> bool {
        let from = out.len();
        let mut whole = true;
        loop {
            self.events(out);
            if out.len() - from <= most {
                return whole;
            }
            whole = false;
            out.truncate(from);
            // What is written takes more room than what was said, by what has to be escaped.
            if !self.halve() {
                return false;
            }
        }
    }

    fn events(&self, out: &mut Vec<u8>) {
        // Writing to memory cannot fail.
        let mut event = |name: &str, data: Value| {
            let _ = match name {
                "" => write!(out, "data: {data}\n\n"),
                name => write!(out, "event: {name}\ndata: {data}\n\n"),
            };
        };
        if self.endpoint == Endpoint::Responses {
            if !self.text.is_empty() {
                event("response.output_text.delta", json!({"delta": self.text}));
            }
            if let Some(output) = &self.last {
                let _ = write!(
                    out,
                    "event: response.completed\ndata: {{\"response\":{{\"output\":{output}}}}}\n\n"
                );
            }
            return;
        }
        if self.hears() {
            if !self.text.is_empty() {
                event("", json!({"delta": self.text}));
            }
            if let Some(text) = &self.last {
                event("", json!({"text": text}));
            }
            return;
        }
        let plain = self.endpoint == Endpoint::Completions;
        let choices: Vec<Value> = self
            .growing
            .iter()
            .enumerate()
            .map(|(index, g)| match plain {
                true => json!({"index": index, "text": g.content}),
                false => json!({"index": index, "delta": g.delta()}),
            })
            .collect();
        if !choices.is_empty() {
            event("", json!({"choices": choices}));
        }
    }

    /// Lets go of the second half of each text. False = there is none left.
    fn halve(&mut self) -> bool {
        let mut left = false;
        let mut half = |text: &mut String| {
            left |= !text.is_empty();
            text.truncate(text.floor_char_boundary(text.len() / 2));
        };
        half(&mut self.text);
        for g in &mut self.growing {
            g.content.iter_mut().for_each(&mut half);
            half(&mut g.reasoning);
            half(&mut g.refusal);
            for tool in &mut g.tools {
                half(&mut tool.arguments);
                half(&mut tool.name);
                half(&mut tool.id);
            }
        }
        // The answer's end is of no use in part.
        left | self.last.take().is_some()
    }
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
        let thought = delta.reasoning_content.or(delta.reasoning);
        self.reasoning.push_str(&thought.unwrap_or_default());
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

    fn message(&self) -> Map<String, Value> {
        let mut message = Map::new();
        let role = self.role.as_deref().unwrap_or("assistant");
        message.insert("role".into(), role.into());
        message.insert("content".into(), json!(self.content));
        for (name, text) in [("reasoning_content", &self.reasoning), ("refusal", &self.refusal)] {
            if !text.is_empty() {
                message.insert(name.into(), text.as_str().into());
            }
        }
        if !self.tools.is_empty() {
            let tools = self.tools.iter().map(|t| {
                json!({"id": t.id, "type": "function", "function": {"name": t.name, "arguments": t.arguments}})
            });
            message.insert("tool_calls".into(), tools.collect());
        }
        message
    }

    /// The same as a piece: each tool says which one it is.
    fn delta(&self) -> Map<String, Value> {
        let mut delta = self.message();
        if let Some(tools) = delta.get_mut("tool_calls").and_then(Value::as_array_mut) {
            for (index, tool) in tools.iter_mut().enumerate() {
                tool["index"] = index.into();
            }
        }
        delta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sse::Splitter;
    use bytes::Bytes;

    fn read(endpoint: Endpoint, events: &[u8]) -> Pieces {
        let mut pieces = Pieces::new(endpoint);
        let mut splitter = Splitter::default();
        splitter.push(Bytes::copy_from_slice(events), |event| pieces.take(&event));
        pieces
    }

    #[track_caller]
    fn check(endpoint: Endpoint, events: &str, want: &str) {
        let said = |events: &[u8]| read(endpoint, events).said(false);
        assert_eq!(said(events.as_bytes()).as_deref(), Some(want));
        let mut short = Vec::new();
        assert!(read(endpoint, events.as_bytes()).write(usize::MAX, &mut short));
        assert_eq!(said(&short).as_deref(), Some(want), "written again");
        // In the middle of a stream.
        let (half, rest) = events.split_at(events.find("\n\n").unwrap() + 2);
        let mut short = Vec::new();
        read(endpoint, half.as_bytes()).write(usize::MAX, &mut short);
        short.extend_from_slice(rest.as_bytes());
        assert_eq!(said(&short).as_deref(), Some(want), "written again in between");
    }

    #[test]
    fn pieces_become_one_whatever_was_written_again() {
        check(
            Endpoint::Chat,
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"reasoning\":\"Hm\",\"reasoning_content\":\"Hm\"}},{\"index\":1,\"delta\":{\"content\":\"B\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"A \\\"\"}},{\"index\":1,\"delta\":{\"refusal\":\"no\"}}]}\n\n\
             data: {\"choices\":[],\"usage\":{}}\n\ndata: [DONE]\n\n",
            r#"[{"role":"assistant","content":"A \"","reasoning_content":"Hm"},{"role":"assistant","content":"B","refusal":"no"}]"#,
        );
        check(
            Endpoint::Chat,
            "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":\"{\"}},{\"index\":1,\"id\":\"b\",\"function\":{\"name\":\"g\"}}]}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":1,\"function\":{\"arguments\":\"[]\"}},{\"index\":0,\"function\":{\"arguments\":\"}\"}}]}}]}\n\n",
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"b","type":"function","function":{"name":"g","arguments":"[]"}}]}"#,
        );
        check(
            Endpoint::Completions,
            "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\n",
            "ab",
        );
        check(
            Endpoint::Transcriptions,
            "data: {\"delta\":\"He\"}\n\ndata: {\"delta\":\"ard\"}\n\n",
            "Heard",
        );
        check(
            Endpoint::Responses,
            "event: response.output_text.delta\ndata: {\"delta\":\"Hi\"}\n\n\
             event: response.completed\ndata: {\"response\":{\"tools\":[],\"output\":[1]}}\n\n",
            "[1]",
        );
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        let events = format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
            "é".repeat(10_000)
        );
        let mut short = Vec::new();
        assert!(!read(Endpoint::Chat, events.as_bytes()).write(2_000, &mut short));
        assert!((1_000..=2_000).contains(&short.len()), "{}", short.len());
        let said = read(Endpoint::Chat, &short).said(true).unwrap();
        assert!(said.contains("éé… [cut]\""), "{said}");
        let mut none = Vec::new();
        assert!(!read(Endpoint::Chat, events.as_bytes()).write(10, &mut none));
        assert!(none.is_empty());
    }
}
