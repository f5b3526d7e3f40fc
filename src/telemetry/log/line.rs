//! How a line of the log is written: JSON for machines, one aligned line for people. Text of others only shows:
//! what would act on a terminal is escaped. What is told, and whether, is decided elsewhere.

use std::cell::Cell;
use std::fmt::Display;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// The longest text in a line, in bytes; the rest is cut.
const MOST_TEXT: usize = 32 << 10;

thread_local! {
    /// The second that was written last, and its text.
    static SECOND: Cell<(i64, [u8; 19])> = const { Cell::new((i64::MIN, [b'0'; 19])) };
}

/// When a line is written. The clock is read once for each.
#[derive(Clone, Copy)]
pub struct Moment {
    /// Seconds since 1970.
    pub second: u64,
    millis: u32,
}

impl Moment {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            second: since.as_secs(),
            millis: since.subsec_millis(),
        }
    }

    /// Its second as text, `2026-11-20T17:22:50`. A new one is worked out once per thread.
    fn text(self) -> [u8; 19] {
        let second = i64::try_from(self.second).unwrap_or(0);
        let (known, mut text) = SECOND.get();
        if known != second {
            let at = jiff::Timestamp::from_second(second).unwrap_or_default();
            let new = at.strftime("%Y-%m-%dT%H:%M:%S").to_string();
            if let Ok(new) = <[u8; 19]>::try_from(new.as_bytes()) {
                text = new;
                SECOND.set((second, text));
            }
        }
        text
    }
}

/// `2026-11-20T17:22:50.123Z`.
fn stamp(out: &mut Vec<u8>, at: Moment) {
    out.extend_from_slice(&at.text());
    let digit = |n: u32| b'0' + (n % 10) as u8;
    let Moment { millis, .. } = at;
    out.extend_from_slice(&[b'.', digit(millis / 100), digit(millis / 10), digit(millis), b'Z']);
}

/// `17:22:50`.
fn short_stamp(out: &mut Vec<u8>, at: Moment) {
    out.extend_from_slice(at.text().get(11..).unwrap_or_default());
}

/// A JSON object in one line.
pub struct Json<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Json<'a> {
    /// Begins with time, level and message.
    pub fn open(out: &'a mut Vec<u8>, at: Moment, level: log::Level, message: &str) -> Self {
        out.extend_from_slice(b"{\"ts\":\"");
        stamp(out, at);
        out.extend_from_slice(b"\",\"level\":\"");
        out.extend_from_slice(word(level).as_bytes());
        out.extend_from_slice(b"\",\"msg\":\"");
        escaped(out, message);
        out.push(b'"');
        Self { out }
    }

    /// The name is one of ours, with nothing in it to escape.
    #[inline]
    fn name(&mut self, name: &'static str) {
        self.out.extend_from_slice(b",\"");
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// Empty is left out.
    #[inline]
    pub fn text(&mut self, name: &'static str, value: &str) {
        if !value.is_empty() {
            self.name(name);
            self.quoted(value);
        }
    }

    #[inline]
    pub fn int(&mut self, name: &'static str, value: u64) {
        self.name(name);
        digits(self.out, value);
    }

    /// A number, written as it is.
    pub fn bare(&mut self, name: &'static str, value: impl Display) {
        self.name(name);
        let _ = write!(self.out, "{value}");
    }

    /// What others named and said: a number, `true` or `false` as it is, anything else as text, of which an empty
    /// one is left out.
    pub fn pair(&mut self, name: &str, value: &str, is_bare: bool) {
        if value.is_empty() {
            return;
        }
        self.out.push(b',');
        self.quoted(name);
        self.out.push(b':');
        if is_bare {
            self.out.extend_from_slice(value.as_bytes());
        } else {
            self.quoted(value);
        }
    }

    fn quoted(&mut self, text: &str) {
        self.out.push(b'"');
        escaped(self.out, text);
        self.out.push(b'"');
    }

    pub fn close(self) {
        self.out.extend_from_slice(b"}\n");
    }
}

fn word(level: log::Level) -> &'static str {
    match level {
        log::Level::Error => "error",
        log::Level::Warn => "warn",
        log::Level::Info => "info",
        log::Level::Debug => "debug",
        log::Level::Trace => "trace",
    }
}

/// Characters that act on a terminal or on the order of what is read.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A number without the formatter: each line has several.
fn digits(out: &mut Vec<u8>, mut n: u64) {
    let mut room = [0; 20];
    let mut from = room.len();
    for slot in room.iter_mut().rev() {
        *slot = b'0' + (n % 10) as u8;
        from -= 1;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(room.get(from..).unwrap_or_default());
}

/// Nothing in it needs to be escaped. Looks at all of it, so that many bytes are looked at at once.
fn is_plain(text: &[u8]) -> bool {
    let plain = |b: u8| (b' '..=b'~').contains(&b) & (b != b'"') & (b != b'\\');
    let (blocks, rest) = text.as_chunks::<16>();
    let blocks = blocks
        .iter()
        .all(|block| block.iter().fold(true, |so_far, b| so_far & plain(*b)));
    blocks && rest.iter().fold(true, |so_far, b| so_far & plain(*b))
}

/// Text for between the quotes of a JSON string.
pub fn escaped(out: &mut Vec<u8>, text: &str) {
    let text = cut(text);
    // Most texts are.
    if is_plain(text.as_bytes()) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    let mut buffer = [0; 4];
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            // All of them lie below U+10000.
            c if acts(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes()),
        }
    }
}

/// Text for people, in one line.
pub fn shown(out: &mut Vec<u8>, text: &str) {
    let text = cut(text);
    if text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    let mut buffer = [0; 4];
    for c in text.chars() {
        if acts(c) {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
        }
    }
}

/// The same, filled up with blanks or cut to so many characters.
pub fn column(out: &mut Vec<u8>, text: &str, width: usize) {
    let count = text.chars().count();
    if count <= width {
        shown(out, text);
        out.extend(std::iter::repeat_n(b' ', width - count));
    } else {
        let kept: String = text.chars().take(width.saturating_sub(1)).collect();
        shown(out, &kept);
        out.extend_from_slice("…".as_bytes());
    }
}

/// The beginning of a line for people: time and level.
pub fn begin(out: &mut Vec<u8>, at: Moment, level: log::Level, coloured: bool) {
    short_stamp(out, at);
    out.push(b' ');
    let colour = match level {
        log::Level::Error => "31",
        log::Level::Warn => "33",
        log::Level::Info => "32",
        log::Level::Debug | log::Level::Trace => "2",
    };
    paint(out, coloured.then_some(colour), |out| {
        let _ = write!(out, "{:5}", level.as_str());
    });
    out.push(b' ');
}

/// Writes in a colour (the number of an ANSI one), if any.
pub fn paint(out: &mut Vec<u8>, colour: Option<&str>, write: impl FnOnce(&mut Vec<u8>)) {
    match colour {
        Some(colour) => {
            let _ = write!(out, "\x1b[{colour}m");
            write(out);
            out.extend_from_slice(b"\x1b[0m");
        }
        None => write(out),
    }
}

fn cut(text: &str) -> &str {
    if text.len() <= MOST_TEXT {
        return text;
    }
    text.get(..text.floor_char_boundary(MOST_TEXT))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: &str = "a\u{9b}31m\u{7f}\nb\u{1b}[2J\u{202e}\"\\é";

    #[test]
    fn a_line_is_json_whatever_is_in_it() {
        let mut out = Vec::new();
        let mut line = Json::open(&mut out, Moment::now(), log::Level::Warn, BAD);
        line.text("key_alias", BAD);
        line.text("nothing", "");
        line.bare("status", 200);
        line.int("most", u64::MAX);
        line.int("least", 0);
        line.pair(BAD, BAD, false);
        line.pair("pair", "true", true);
        line.close();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.trim_end().chars().any(acts), "{text:?}");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&json["msg"], &json["key_alias"]), (&BAD.into(), &BAD.into()));
        assert_eq!((&json["level"], &json["status"]), (&"warn".into(), &200.into()));
        assert_eq!(
            (&json["most"], &json["least"], &json[BAD], &json["pair"]),
            (&u64::MAX.into(), &0.into(), &BAD.into(), &true.into())
        );
        assert!(json.get("nothing").is_none());
        assert!(json["ts"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }

    #[test]
    fn what_is_not_plain_is_found_wherever_it_is() {
        for len in 0..40 {
            assert!(is_plain(&vec![b'~'; len]));
            for at in 0..len {
                for bad in [b'"', b'\\', 0, b'\n', 0x1f, 0x7f, 0x80, 0xff] {
                    let mut text = vec![b' '; len];
                    text[at] = bad;
                    assert!(!is_plain(&text), "{bad} at {at} of {len}");
                }
            }
        }
    }

    #[test]
    fn text_cannot_command_a_terminal() {
        let mut out = Vec::new();
        shown(&mut out, BAD);
        column(&mut out, BAD, 40);
        column(&mut out, BAD, 3);
        let text = String::from_utf8(out).unwrap();
        assert!(!text.chars().any(acts), "{text:?}");
        assert!(text.contains("31m"));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let mut out = Vec::new();
        escaped(&mut out, &"é".repeat(MOST_TEXT));
        assert!(out.len() <= MOST_TEXT && std::str::from_utf8(&out).is_ok());
    }
}
