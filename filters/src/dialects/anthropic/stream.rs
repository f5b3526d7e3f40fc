//! Anthropic's event stream -> chat completion chunks, however the bytes are cut.
//!
//! The finish chunk is held until `message_stop`, so that a client sees either the whole ending
//! (finish, usage, `[DONE]`) or an error event, and never both.

use bytes::Bytes;
use serde_json::{Value, json};

use super::event::{Delta, Event};
use super::response::{Usage, finish_reason, made_id};
use super::{JSON_TOOL, error};
use crate::dialects::{Params, StreamTranslator};
use crate::wire::sse::{self, Splitter};

/// Blocks that may be open at once. Anthropic closes one before it opens the next.
const OPEN_BLOCKS: usize = 64;

/// Bytes that one event may hold. What Anthropic's own tools found comes in one piece.
const EVENT_LIMIT: usize = 8 << 20;

/// What an open block becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    Thinking,
    /// A tool call, numbered as the client sees them, and whether it has arguments yet.
    Call {
        number: u64,
        written: bool,
    },
    /// The structured answer, whose arguments are the content.
    Structured {
        written: bool,
    },
    /// Anthropic's own affair.
    Ignored,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing but pings so far.
    Waiting,
    Running,
    /// `[DONE]` or an error event was written; the rest does not count. The status is the error's.
    Over(Option<u16>),
}

/// One stream's state.
pub(super) struct Translator {
    splitter: Splitter,
    answer: Answer,
}

/// What has been said and what is still to be said.
struct Answer {
    phase: Phase,
    id: String,
    model: String,
    created: i64,
    open: Vec<(u64, Block)>,
    calls: u64,
    structured: bool,
    stop: Option<String>,
    usage: Usage,
    usage_seen: bool,
    /// Everything of a content chunk that comes before its delta.
    prefix: Vec<u8>,
}

impl Translator {
    pub(super) fn new(p: &Params) -> Self {
        let answer = Answer {
            phase: Phase::Waiting,
            id: made_id(p),
            model: p.requested_model.to_owned(),
            created: p.created,
            open: Vec::new(),
            calls: 0,
            structured: false,
            stop: None,
            usage: Usage::default(),
            usage_seen: false,
            prefix: Vec::new(),
        };
        Translator {
            splitter: Splitter::new(EVENT_LIMIT),
            answer,
        }
    }
}

impl StreamTranslator for Translator {
    fn push(&mut self, chunk: Bytes, out: &mut Vec<u8>) {
        let answer = &mut self.answer;
        self.splitter.push_marked(chunk, |event, whole| match whole {
            true => answer.take(&event, out),
            false => answer.fail(error::broken("the upstream sent an event that is too long"), out),
        });
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        // A last event without its blank line counts if it is whole, which JSON tells by itself.
        if let Some(rest) = self.splitter.finish().filter(|rest| is_whole(rest)) {
            self.answer.take(&rest, out);
        }
        self.answer.fail(
            error::broken("the upstream ended the stream before the answer was complete"),
            out,
        );
    }

    fn failed(&self) -> Option<u16> {
        match self.answer.phase {
            Phase::Over(status) => status,
            _ => None,
        }
    }
}

impl Answer {
    /// One event. The reasons are shown to the client.
    fn take(&mut self, event: &[u8], out: &mut Vec<u8>) {
        let data = sse::data(event).filter(|data| !data.is_empty());
        let (false, Some(data)) = (matches!(self.phase, Phase::Over(_)), data) else {
            return;
        };
        let said = match serde_json::from_slice::<Event>(&data) {
            Ok(event) => self.event(event, out),
            Err(_) => Err("the upstream sent an event that cannot be read"),
        };
        if let Err(reason) = said {
            self.fail(error::broken(reason), out);
        }
    }

    fn event(&mut self, event: Event, out: &mut Vec<u8>) -> Result<(), &'static str> {
        match event.kind.0.as_ref() {
            "message_start" => self.begin(event.message.as_ref(), out),
            "error" => self.fail(error::object(event.error.as_ref().unwrap_or(&Value::Null)), out),
            "ping" => {}
            _ if self.phase == Phase::Waiting => return Err("the upstream's stream has no beginning"),
            "content_block_start" => {
                let block = event
                    .content_block
                    .ok_or("the upstream opened a block without saying which")?;
                self.open_block(event.index.unwrap_or(0), &block, out)?;
            }
            "content_block_delta" => {
                let delta = event.delta.ok_or("the upstream sent a delta without content")?;
                self.delta(event.index.unwrap_or(0), &delta, out)?;
            }
            "content_block_stop" => self.close_block(event.index.unwrap_or(0), out),
            "message_delta" => {
                self.count(event.usage.as_ref());
                self.stop = event
                    .delta
                    .and_then(|delta| delta.stop_reason)
                    .or(self.stop.take());
            }
            "message_stop" => self.end(out),
            // Anthropic may add events; clients are asked to let them pass.
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, message: Option<&Value>, out: &mut Vec<u8>) {
        if self.phase != Phase::Waiting {
            return;
        }
        self.phase = Phase::Running;
        if let Some(id) = message
            .and_then(|message| message.get("id")?.as_str())
            .filter(|id| !id.is_empty())
        {
            self.id = id.to_owned();
        }
        self.count(message.and_then(|message| message.get("usage")));
        self.prefix = format!(
            r#"data: {{"id":{},"object":"chat.completion.chunk","created":{},"model":{},"choices":[{{"index":0,"delta":"#,
            Value::from(self.id.as_str()),
            self.created,
            Value::from(self.model.as_str()),
        )
        .into_bytes();
        self.chunk(&json!({"role": "assistant", "content": ""}), None, out);
    }

    fn count(&mut self, report: Option<&Value>) {
        self.usage_seen |= report.is_some_and(|report| self.usage.update(report));
    }

    fn open_block(&mut self, index: u64, block: &Value, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let text = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or_default();
        let opened = match text("type") {
            "text" => {
                self.text("content", text("text"), out);
                Block::Text
            }
            "thinking" => {
                self.thought(text("thinking"), out);
                Block::Thinking
            }
            "redacted_thinking" => {
                self.chunk(&json!({"thinking_blocks": [block]}), None, out);
                Block::Ignored
            }
            "tool_use" => self.open_call(block, out)?,
            _ => Block::Ignored,
        };
        self.open.retain(|(open, _)| *open != index);
        if self.open.len() >= OPEN_BLOCKS {
            return Err("the upstream left too many blocks open");
        }
        self.open.push((index, opened));
        Ok(())
    }

    fn open_call(&mut self, block: &Value, out: &mut Vec<u8>) -> Result<Block, &'static str> {
        let text = |name: &str| block.get(name).and_then(Value::as_str);
        let name = text("name").ok_or("the upstream called a tool without a name")?;
        // Some servers that imitate Anthropic send all arguments here and no fragments after.
        let early = block
            .get("input")
            .filter(|input| input.as_object().is_some_and(|input| !input.is_empty()));
        if name == JSON_TOOL {
            // An answer is given once; a second one would spoil the first.
            if std::mem::replace(&mut self.structured, true) {
                return Ok(Block::Ignored);
            }
            if let Some(early) = early {
                self.text("content", &early.to_string(), out);
            }
            return Ok(Block::Structured {
                written: early.is_some(),
            });
        }
        let id = text("id").ok_or("the upstream called a tool without an id")?;
        let number = self.calls;
        self.calls += 1;
        let arguments = early.map(Value::to_string).unwrap_or_default();
        let call = json!({
            "index": number,
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        });
        self.chunk(&json!({"tool_calls": [call]}), None, out);
        Ok(Block::Call {
            number,
            written: early.is_some(),
        })
    }

    fn delta(&mut self, index: u64, delta: &Delta, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let open = self
            .open
            .iter_mut()
            .find(|(open, _)| *open == index)
            .map(|(_, block)| block);
        match (delta.kind.0.as_ref(), open) {
            (_, Some(Block::Ignored)) => {}
            ("text_delta", _) => self.text("content", &delta.text.0, out),
            ("thinking_delta", _) => self.thought(&delta.thinking.0, out),
            ("signature_delta", _) => {
                let thought = json!({"type": "thinking", "thinking": "", "signature": delta.signature.0});
                self.chunk(&json!({"thinking_blocks": [thought]}), None, out);
            }
            ("input_json_delta", _) if delta.partial_json.0.is_empty() => {}
            ("input_json_delta", Some(Block::Structured { written })) => {
                *written = true;
                self.text("content", &delta.partial_json.0, out);
            }
            ("input_json_delta", Some(Block::Call { number, written })) => {
                *written = true;
                let number = *number;
                self.arguments(number, &delta.partial_json.0, out);
            }
            ("input_json_delta", _) => return Err("the upstream sent arguments for no tool call"),
            _ => {}
        }
        Ok(())
    }

    /// Arguments of a tool that takes none must still be JSON.
    fn close_block(&mut self, index: u64, out: &mut Vec<u8>) {
        let Some(at) = self.open.iter().position(|(open, _)| *open == index) else {
            return;
        };
        match self.open.swap_remove(at).1 {
            Block::Call {
                number,
                written: false,
            } => self.arguments(number, "{}", out),
            Block::Structured { written: false } => self.text("content", "{}", out),
            _ => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let Some(stop) = self.stop.take() else {
            let reason = "the upstream ended the answer without a stop reason";
            return self.fail(error::broken(reason), out);
        };
        let finish = finish_reason(Some(&stop), self.calls > 0);
        self.chunk(&json!({}), Some(finish), out);
        // Counts that nobody sent are left to be estimated; zeros would be billed as the truth.
        if self.usage_seen {
            let usage = json!({
                "id": self.id,
                "object": "chat.completion.chunk",
                "created": self.created,
                "model": self.model,
                "choices": [],
                "usage": self.usage.canonical(),
            });
            write(&usage, out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
        self.phase = Phase::Over(None);
    }

    /// Ends the stream with an error event, unless it has ended already.
    fn fail(&mut self, (status, object): (u16, Value), out: &mut Vec<u8>) {
        if !matches!(self.phase, Phase::Over(_)) {
            write(&json!({ "error": object }), out);
            self.phase = Phase::Over(Some(status));
        }
    }

    fn thought(&mut self, text: &str, out: &mut Vec<u8>) {
        if !text.is_empty() {
            let thought = json!({"type": "thinking", "thinking": text});
            self.chunk(
                &json!({"reasoning_content": text, "thinking_blocks": [thought]}),
                None,
                out,
            );
        }
    }

    fn arguments(&self, number: u64, fragment: &str, out: &mut Vec<u8>) {
        let call = json!({"index": number, "function": {"arguments": fragment}});
        self.chunk(&json!({"tool_calls": [call]}), None, out);
    }

    /// A chunk with one text in its delta. Most chunks are: no tree is built for them.
    fn text(&self, name: &str, text: &str, out: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(b"{\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        json_into(&text, out);
        out.extend_from_slice(b"},\"finish_reason\":null}]}\n\n");
    }

    fn chunk(&self, delta: &Value, finish: Option<&str>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix);
        json_into(delta, out);
        out.extend_from_slice(b",\"finish_reason\":");
        json_into(&finish, out);
        out.extend_from_slice(b"}]}\n\n");
    }
}

fn is_whole(event: &[u8]) -> bool {
    sse::data(event).is_some_and(|data| serde_json::from_slice::<Event>(&data).is_ok())
}

fn write(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    json_into(value, out);
    out.extend_from_slice(b"\n\n");
}

/// Writing text and trees into memory cannot fail; were it to, the chunk would be empty.
fn json_into<T: serde::Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    _ = serde_json::to_writer(out, value);
}
