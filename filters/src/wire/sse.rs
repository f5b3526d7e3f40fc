//! Cuts a stream of server-sent events into events, whatever the chunks it arrives in, and writes some.
//!
//! Bytes are never changed, dropped or reordered: what comes out, put together, is what went in. Memory
//! is bounded: an event that outgrows the limit passes through in pieces.

use bytes::{Bytes, BytesMut};
use memchr::memchr2;
use std::borrow::Cow;

/// The event that ends an OpenAI stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// How many bytes of one event a [`Splitter`] holds back at most, when nothing else is asked for.
pub const MAX_EVENT: usize = 1 << 20;

/// Cuts chunks into events. An event ends with a blank line, which belongs to it; a blank line more is
/// an event of its own, without data.
#[derive(Debug)]
pub struct Splitter {
    /// What came of an event that is not over yet.
    carry: BytesMut,
    state: State,
    /// The event has outgrown the limit: its bytes are passed on as they come.
    opaque: bool,
    max_event: usize,
}

/// Where in an event the last byte was. Lines end with LF, CRLF or CR, as the standard has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before its first byte.
    Start,
    /// Within a line.
    Line,
    /// Behind the CR that ended a line; an LF may still belong to it.
    Cr,
    /// Behind the LF that ended a line.
    Lf,
    /// Behind the CR of a blank line after an LF: the event is over, but an LF may still belong to it.
    /// Streams that end lines with CR alone never get here between events, so they are not held up.
    BlankCr,
}

impl Default for Splitter {
    fn default() -> Self {
        Splitter::new(MAX_EVENT)
    }
}

impl Splitter {
    /// A splitter that passes events of more than `max_event` bytes on in pieces.
    pub fn new(max_event: usize) -> Self {
        Splitter {
            carry: BytesMut::new(),
            state: State::Start,
            opaque: false,
            max_event,
        }
    }

    /// Takes a chunk and calls `each` with every event that it completes, terminator included, and with
    /// the pieces of one that is too large.
    pub fn push(&mut self, chunk: Bytes, mut each: impl FnMut(Bytes)) {
        self.push_marked(chunk, |bytes, _| each(bytes));
    }

    /// Like [`push`](Self::push); the flag says whether the bytes are one whole event. A piece of a too
    /// large event is to be passed on and not to be read: it may begin in the middle of a line.
    pub fn push_marked(&mut self, chunk: Bytes, mut each: impl FnMut(Bytes, bool)) {
        let mut start = 0;
        while let Some(len) = self.event_end(chunk.get(start..).unwrap_or_default()) {
            let part = chunk.slice(start..start + len);
            start += len;
            self.emit(part, &mut each);
            self.opaque = false;
            self.state = State::Start;
        }
        let rest = chunk.slice(start..);
        if rest.is_empty() {
            return;
        }
        if self.opaque || self.carry.len() + rest.len() > self.max_event {
            self.opaque = true;
            self.emit(rest, &mut each);
        } else {
            self.carry.extend_from_slice(&rest);
        }
    }

    /// The rest of a stream that is over: an event without its blank line. The splitter is as new then.
    pub fn finish(&mut self) -> Option<Bytes> {
        self.state = State::Start;
        self.opaque = false;
        let rest = self.carry.split().freeze();
        (!rest.is_empty()).then_some(rest)
    }

    /// How many bytes are held back.
    pub fn pending(&self) -> usize {
        self.carry.len()
    }

    /// Whether `chunk`, if it came next, would be whole events with nothing before and after, so that it
    /// may be passed on as it is and need not be pushed. It may say `false` where lines end with CR
    /// alone; pushing is always right.
    pub fn ends_clean(&self, chunk: &[u8]) -> bool {
        let ends = [&b"\n\n"[..], b"\n\r\n", b"\r\r\n"]
            .iter()
            .any(|end| chunk.ends_with(end));
        self.state == State::Start && (ends || matches!(chunk, b"" | b"\n" | b"\r\n"))
    }

    /// Hands on the carry with `part`, in one piece if it is an event within the limit.
    fn emit(&mut self, part: Bytes, each: &mut impl FnMut(Bytes, bool)) {
        let whole = !self.opaque && self.carry.len() + part.len() <= self.max_event;
        if self.carry.is_empty() {
            if !part.is_empty() {
                each(part, whole);
            }
        } else if whole {
            self.carry.extend_from_slice(&part);
            each(self.carry.split().freeze(), true);
        } else {
            each(self.carry.split().freeze(), false);
            if !part.is_empty() {
                each(part, false);
            }
        }
    }

    /// How many bytes of `bytes` belong to the current event, if it is over within them.
    fn event_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            self.state = match (self.state, byte) {
                (State::Start | State::Lf | State::BlankCr, b'\n') => return Some(at + 1),
                (State::BlankCr, _) => return Some(at),
                (State::Start | State::Lf, b'\r') => State::BlankCr,
                // A second bare CR is a blank line. Should an LF follow after all, it counts as a blank
                // line more: nothing changes for a reader, and no event waits for the next one.
                (State::Cr, b'\r') => return Some(at + 1),
                (State::Line | State::Cr, b'\n') => State::Lf,
                (State::Line, b'\r') => State::Cr,
                _ => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    at += memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                    self.state = State::Line;
                    continue;
                }
            };
            at += 1;
        }
        None
    }
}

/// The data of an event: its `data` lines joined by LF. `None` when it has none. Borrowed when there is
/// one line, as there nearly always is.
pub fn data(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut values = fields(event)
        .filter(|(field, _)| *field == b"data")
        .map(|(_, value)| value);
    let mut data = Cow::Borrowed(values.next()?);
    for value in values {
        let joined = data.to_mut();
        joined.push(b'\n');
        joined.extend_from_slice(value);
    }
    Some(data)
}

/// The name of an event: its last `event` field. `None` when it has none.
pub fn name(event: &[u8]) -> Option<&[u8]> {
    fields(event)
        .filter(|(field, _)| *field == b"event")
        .last()
        .map(|(_, value)| value)
}

/// Whether an event is the `[DONE]` that ends an OpenAI stream.
pub fn is_done(event: &[u8]) -> bool {
    data(event).is_some_and(|data| data.trim_ascii() == b"[DONE]")
}

/// An event with data only. Data of several lines become several `data` lines.
pub fn event(data: &[u8]) -> Bytes {
    write(None, data)
}

/// An event with a name and data. A name ends at its first line end: it cannot smuggle in a field.
pub fn named_event(name: &str, data: &[u8]) -> Bytes {
    write(Some(name), data)
}

fn write(name: Option<&str>, data: &[u8]) -> Bytes {
    let name = name.map(|name| Lines(name.as_bytes()).next().unwrap_or_default());
    let mut event = BytesMut::with_capacity(data.len() + name.map_or(0, |name| name.len() + 8) + 8);
    if let Some(name) = name {
        event.extend_from_slice(b"event: ");
        event.extend_from_slice(name);
        event.extend_from_slice(b"\n");
    }
    let mut line = |text: &[u8]| {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(text);
        event.extend_from_slice(b"\n");
    };
    Lines(data).for_each(&mut line);
    // A line end at the end of the data begins one more, empty line of data; so does no data at all.
    if matches!(data.last(), None | Some(b'\n' | b'\r')) {
        line(b"");
    }
    event.extend_from_slice(b"\n");
    event.freeze()
}

/// The fields of an event as (name, value). Comments have an empty name.
fn fields(event: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    // A stream may begin with a byte order mark, which is not part of the first field's name.
    Lines(event.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(event)).map(|line| {
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let (field, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        (field, value.strip_prefix(b" ").unwrap_or(value))
    })
}

/// The lines of a text, without their LF, CRLF or CR.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = memchr2(b'\n', b'\r', self.0).unwrap_or(self.0.len());
        let (line, rest) = self.0.split_at(end);
        let rest = rest
            .strip_prefix(b"\r\n")
            .or_else(|| rest.get(1..))
            .unwrap_or_default();
        self.0 = rest;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(stream: &[u8], cuts: impl IntoIterator<Item = usize>) -> (Vec<String>, Option<String>) {
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let (mut splitter, mut events, mut start) = (Splitter::default(), Vec::new(), 0);
        for end in cuts.into_iter().chain([stream.len()]) {
            splitter.push(Bytes::copy_from_slice(&stream[start..end]), |event| {
                events.push(text(event))
            });
            start = end;
        }
        (events, splitter.finish().map(text))
    }

    /// Splits a stream, written `event|event|rest`, whole, cut at every byte, and byte by byte.
    fn check(marked: &str) {
        let stream = marked.replace('|', "");
        let mut events: Vec<String> = marked.split('|').map(str::to_owned).collect();
        let rest = events.pop().filter(|rest| !rest.is_empty());
        let expected = (events, rest);
        assert_eq!(split(stream.as_bytes(), []), expected, "in one chunk");
        assert_eq!(
            split(stream.as_bytes(), 0..stream.len()),
            expected,
            "byte by byte"
        );
        for cut in 0..stream.len() {
            assert_eq!(split(stream.as_bytes(), [cut]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn events_end_with_a_blank_line_of_any_kind() {
        check("");
        check("data: a\n\n|data: b\n\n|");
        check("data: a\r\n\r\n|data: b\r\n\r\n|");
        check("data: a\r\r|data: b\r\r|");
        check("data: a\n\r\n|data: b\r\n\n|data: c\r\n\r|data: d\n\r|: e\n\n|");
        check("event: x\ndata: a\ndata: b\n\n|: ping\n\n|");
        check("event: x\r\ndata: a\r\n\r\n|data");
        check("event: x\rdata: a\r\r|data: b\r");
        check("data: a\n");
        check("data: a\n\n|\n|\n|data: b");
        check("data: a\r\n\r\n|\r\n|data: b\r\n");
        check("data: a\r\r|\n|data: b\r\r|\r\n|\r|x");
        check("\n|\r\n|\r|\r|data: a\n\n|");
        check("\u{FEFF}data: ü\n\n|data: 😀\n\n|");
    }

    #[test]
    fn a_blank_line_of_cr_after_lf_waits_for_its_lf() {
        let mut splitter = Splitter::default();
        splitter.push(Bytes::from_static(b"data: a\r\n\r"), |event| {
            panic!("{event:?} came too early")
        });
        assert_eq!(splitter.pending(), 10);
        assert_eq!(splitter.finish().unwrap(), "data: a\r\n\r");
        assert_eq!((splitter.pending(), splitter.finish()), (0, None));
    }

    #[test]
    fn events_within_one_chunk_are_not_copied() {
        let chunk = Bytes::from_static(b"data: a\n\ndata: b\n\nda");
        let mut at = Vec::new();
        Splitter::default().push(chunk.clone(), |event| {
            at.push(event.as_ptr() as usize - chunk.as_ptr() as usize)
        });
        assert_eq!(at, [0, 9]);
    }

    #[test]
    fn an_event_that_outgrows_the_limit_passes_in_pieces() {
        let stream = format!("data: a\n\ndata: {}\n\ndata: b\n\n", "x".repeat(100));
        for size in 1..stream.len() {
            let mut splitter = Splitter::new(20);
            let (mut all, mut whole) = (Vec::new(), Vec::new());
            for chunk in stream.as_bytes().chunks(size) {
                splitter.push_marked(Bytes::copy_from_slice(chunk), |bytes, is_whole| {
                    all.extend_from_slice(&bytes);
                    assert!(!bytes.is_empty());
                    if is_whole {
                        whole.push(bytes);
                    }
                });
                assert!(splitter.pending() <= 20, "memory stays bounded");
            }
            assert_eq!(splitter.finish(), None);
            assert_eq!(all, stream.as_bytes(), "in chunks of {size}");
            assert_eq!(whole, ["data: a\n\n", "data: b\n\n"], "in chunks of {size}");
        }
    }

    #[test]
    fn a_chunk_of_whole_events_is_told() {
        let mut splitter = Splitter::default();
        for clean in [
            "",
            "data: a\n\n",
            "data: a\r\n\r\n: b\n\n",
            "data: a\n\r\n",
            "\n",
            "\r\n",
            "a\r\r\n",
        ] {
            assert!(splitter.ends_clean(clean.as_bytes()), "{clean:?}");
            splitter.push(Bytes::from(clean), |_| ());
            assert_eq!(splitter.pending(), 0, "{clean:?} leaves nothing behind");
        }
        for rest in [
            "data: a\n",
            "data: a\r\n",
            "data: a\n\r",
            "data: a\n\nd",
            "x",
            "\r",
        ] {
            assert!(!splitter.ends_clean(rest.as_bytes()), "{rest:?}");
        }
        splitter.push(Bytes::from_static(b"data: a\n"), |_| ());
        assert!(!splitter.ends_clean(b"\n"), "something is held back");
        splitter.push(Bytes::from_static(b"\n"), |_| ());
        assert!(splitter.ends_clean(b"data: b\n\n"));
        let mut small = Splitter::new(4);
        small.push(Bytes::from_static(b"data: long"), |_| ());
        assert_eq!(small.pending(), 0);
        assert!(!small.ends_clean(b"\n\n"), "a too large event is still under way");
    }

    #[test]
    fn fields_are_read() {
        let read = |event: &str| data(event.as_bytes()).map(|data| String::from_utf8(data.to_vec()).unwrap());
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(read("data: a\n\n"), is("a"));
        assert_eq!(read("data:a\r\n\r\n"), is("a"));
        assert_eq!(read("data:  a \n\n"), is(" a "));
        assert_eq!(read("data\n\n"), is(""));
        assert_eq!(read("data: a: b\n\n"), is("a: b"));
        assert_eq!(read("data: a\ndata: b\r\nevent: x\rdata:\n\n"), is("a\nb\n"));
        assert_eq!(read("\u{FEFF}data: a\n\n"), is("a"));
        for none in [
            "",
            "\n",
            ": data: a\n\n",
            "event: a\n\n",
            " data: a\n\n",
            "Data: a\n\n",
            "data : a\n\n",
        ] {
            assert_eq!(read(none), None, "{none:?}");
        }
        assert_eq!(name(b"event: x\ndata: a\n\n"), Some(&b"x"[..]));
        assert_eq!(name(b"data: a\nevent:x\nevent: y\n\n"), Some(&b"y"[..]));
        assert_eq!(name(b"data: event: x\n\n"), None);
        assert!(is_done(DONE) && is_done(b"data:[DONE]\r\n\r\n") && is_done(b"data: [DONE] \n\n"));
        assert!(!is_done(b"data: [DONE]x\n\n") && !is_done(b": [DONE]\n\n") && !is_done(b"\n"));
        assert!(matches!(data(b"id: 1\ndata: a\n\n"), Some(Cow::Borrowed(b"a"))));
    }

    #[test]
    fn events_are_written_as_they_are_read() {
        assert_eq!(event(b"{}"), "data: {}\n\n");
        assert_eq!(named_event("x", b"{}"), "event: x\ndata: {}\n\n");
        assert_eq!(named_event("x\ndata: no", b""), "event: x\ndata: \n\n");
        for text in [
            "",
            "a",
            "a\nb",
            "\n",
            "a\n",
            "\n\na",
            "a\r\nb\rc",
            "data: x",
            " a",
        ] {
            let written = named_event("n", text.as_bytes());
            let lf = text.replace("\r\n", "\n").replace('\r', "\n");
            assert_eq!(data(&written).unwrap(), lf.as_bytes(), "{text:?}");
            assert_eq!(name(&written), Some(&b"n"[..]));
            assert!(Splitter::default().ends_clean(&written));
            let (mut splitter, mut count) = (Splitter::default(), 0);
            splitter.push(written, |_| count += 1);
            assert_eq!((count, splitter.pending()), (1, 0), "{text:?} is one event");
        }
    }
}
