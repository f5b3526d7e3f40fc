//! The JSON grammar (RFC 8259) as a cursor that steps over one value at a time.
//!
//! It validates everything and keeps nothing: no tree, no recursion, no allocation below 256 levels.
//! What the values mean is for [`super::peek`] to say.

use super::peek::{Kind, PeekError};
use smallvec::SmallVec;

/// A position in a body. All offsets are absolute, so that errors and ranges speak of the whole body.
pub(super) struct Cursor<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Reads `body` from byte `at` on; the end of `body` is the end of input.
    pub(super) fn new(body: &'a [u8], at: usize) -> Self {
        Cursor { body, at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next byte, which stays unread.
    pub(super) fn look(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    pub(super) fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.look() {
            self.at += 1;
        }
    }

    /// Steps over `byte` if it is next.
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let found = self.look() == Some(byte);
        self.at += usize::from(found);
        found
    }

    pub(super) fn wrong<T>(&self, expected: &'static str) -> Result<T, PeekError> {
        Err(PeekError::Syntax {
            at: self.at,
            expected,
        })
    }

    /// Steps over a key, its colon and the space around it. Says whether the key holds escapes and
    /// where it ends, closing quote included.
    pub(super) fn key(&mut self) -> Result<(bool, usize), PeekError> {
        if self.look() != Some(b'"') {
            return self.wrong("a key in double quotes");
        }
        let escaped = self.string()?;
        let end = self.at;
        self.space();
        if !self.take(b':') {
            return self.wrong("`:` after the key");
        }
        self.space();
        Ok((escaped, end))
    }

    /// Steps over the comma behind a field's value, and says whether there was one; else `}` is next.
    pub(super) fn another(&mut self) -> Result<bool, PeekError> {
        self.space();
        let more = self.take(b',');
        if more {
            self.space();
        } else if self.look() != Some(b'}') {
            return self.wrong("`,` or `}`");
        }
        Ok(more)
    }

    /// Steps over the `}` that is next, and over the space behind it to the end of the input; where it stands.
    pub(super) fn end(&mut self) -> Result<usize, PeekError> {
        let close = self.at;
        self.take(b'}');
        self.space();
        if self.look().is_some() {
            return self.wrong("nothing after the object");
        }
        Ok(close)
    }

    /// Steps over one whole value that stands inside `outer` containers, of which with its own there
    /// may be `max_depth`.
    pub(super) fn value(&mut self, outer: usize, max_depth: usize) -> Result<Kind, PeekError> {
        let mut nest = Nest::default();
        let mut first = None;
        loop {
            let kind = match self.look() {
                Some(b'"') => Kind::String {
                    escaped: self.string()?,
                },
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal(b"true", Kind::True)?,
                Some(b'f') => self.literal(b"false", Kind::False)?,
                Some(b'n') => self.literal(b"null", Kind::Null)?,
                Some(open @ (b'{' | b'[')) => {
                    if outer + nest.len >= max_depth {
                        return Err(PeekError::TooDeep { at: self.at });
                    }
                    let object = open == b'{';
                    let kind = if object { Kind::Object } else { Kind::Array };
                    self.at += 1;
                    self.space();
                    if !self.take(if object { b'}' } else { b']' }) {
                        nest.push(object);
                        first.get_or_insert(kind);
                        if object {
                            self.key()?;
                        }
                        continue;
                    }
                    kind
                }
                _ => return self.wrong("a value"),
            };
            let first = *first.get_or_insert(kind);
            // The value may be the last of its container, and that of its own, and so on.
            loop {
                let Some(object) = nest.top() else {
                    return Ok(first);
                };
                self.space();
                if self.take(b',') {
                    self.space();
                    if object {
                        self.key()?;
                    }
                    break;
                }
                match object {
                    true if !self.take(b'}') => return self.wrong("`,` or `}`"),
                    false if !self.take(b']') => return self.wrong("`,` or `]`"),
                    _ => nest.pop(),
                }
            }
        }
    }

    fn literal(&mut self, text: &'static [u8], kind: Kind) -> Result<Kind, PeekError> {
        if !self
            .body
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(text))
        {
            return self.wrong("`true`, `false` or `null`");
        }
        self.at += text.len();
        Ok(kind)
    }

    fn number(&mut self) -> Result<Kind, PeekError> {
        self.take(b'-');
        if self.take(b'0') {
            if let Some(b'0'..=b'9') = self.look() {
                return self.wrong("no digit after a leading zero");
            }
        } else {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            if !self.take(b'+') {
                self.take(b'-');
            }
            self.digits()?;
        }
        Ok(Kind::Number)
    }

    fn digits(&mut self) -> Result<(), PeekError> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.look() {
            self.at += 1;
        }
        if self.at == start {
            self.wrong("a digit")
        } else {
            Ok(())
        }
    }

    /// Steps over a string from its opening quote to behind its closing one. Says whether it holds
    /// escapes.
    fn string(&mut self) -> Result<bool, PeekError> {
        self.at += 1;
        let start = self.at;
        let (mut escaped, mut ascii) = (false, true);
        loop {
            let (len, plain_ascii) = plain(self.body.get(self.at..).unwrap_or_default());
            self.at += len;
            ascii &= plain_ascii;
            match self.look() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.at += 1;
                    self.escape()?;
                }
                Some(_) => return self.wrong("control characters to be escaped"),
                None => return self.wrong("a closing quote"),
            }
        }
        // Outside strings the grammar knows ASCII only, so this is the whole of the UTF-8 check.
        if !ascii && let Err(error) = std::str::from_utf8(self.body.get(start..self.at).unwrap_or_default()) {
            return Err(PeekError::NotUtf8 {
                at: start + error.valid_up_to(),
            });
        }
        self.at += 1;
        Ok(escaped)
    }

    /// Steps over what follows a backslash.
    fn escape(&mut self) -> Result<(), PeekError> {
        match self.look() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                return Ok(());
            }
            Some(b'u') => self.at += 1,
            _ => return self.wrong("an escape such as `\\n` or `\\u00e9`"),
        }
        match self.hex4()? {
            0xD800..=0xDBFF if self.take(b'\\') && self.take(b'u') => match self.hex4()? {
                0xDC00..=0xDFFF => Ok(()),
                _ => self.wrong("the second half of a surrogate pair"),
            },
            0xD800..=0xDBFF => self.wrong("the second half of a surrogate pair"),
            0xDC00..=0xDFFF => self.wrong("the first half of a surrogate pair"),
            _ => Ok(()),
        }
    }

    fn hex4(&mut self) -> Result<u32, PeekError> {
        let mut code = 0;
        for _ in 0..4 {
            match self.look().and_then(|byte| char::from(byte).to_digit(16)) {
                Some(digit) => code = code << 4 | digit,
                None => return self.wrong("four hexadecimal digits"),
            }
            self.at += 1;
        }
        Ok(code)
    }
}

/// Which containers are open, outermost first: one bit each, set for an object.
#[derive(Default)]
struct Nest {
    bits: SmallVec<[u64; 4]>,
    len: usize,
}

impl Nest {
    fn push(&mut self, object: bool) {
        let bit = self.len % 64;
        if bit == 0 {
            self.bits.push(0);
        }
        if let Some(word) = self.bits.last_mut() {
            *word = *word & !(1 << bit) | u64::from(object) << bit;
        }
        self.len += 1;
    }

    fn pop(&mut self) {
        self.len = self.len.saturating_sub(1);
        if self.len.is_multiple_of(64) {
            self.bits.pop();
        }
    }

    /// Whether the innermost open container is an object; `None` when none is open.
    fn top(&self) -> Option<bool> {
        let last = self.len.checked_sub(1)?;
        self.bits.last().map(|word| word >> (last % 64) & 1 == 1)
    }
}

/// How many bytes come before the first that a string cannot simply hold (quote, backslash, control
/// byte), and whether they are all ASCII. The second may say `false` without cause, never `true`.
///
/// One pass over eight bytes at a time answers all four questions; the blocks of 64 let the compiler
/// use vectors for the megabytes of base64 that images come in.
fn plain(bytes: &[u8]) -> (usize, bool) {
    const SHORT: usize = 32;
    let mut seen = 0;
    let mut at = 0;
    let step = |at: &mut usize, seen: &mut u64, limit: usize| {
        let (words, _) = bytes
            .get(*at..limit.min(bytes.len()))
            .unwrap_or_default()
            .as_chunks::<8>();
        for word in words {
            let word = u64::from_le_bytes(*word);
            *seen |= word;
            let special = special(word);
            if special != 0 {
                *at += special.trailing_zeros() as usize / 8;
                return true;
            }
            *at += 8;
        }
        false
    };
    // Most strings are short, and a block would cost them more than it saves.
    if step(&mut at, &mut seen, SHORT) {
        return (at, seen & HIGH == 0);
    }
    for block in bytes.get(at..).unwrap_or_default().as_chunks::<64>().0 {
        let (mut any, mut block_seen) = (0, 0);
        for word in block.as_chunks::<8>().0 {
            let word = u64::from_le_bytes(*word);
            any |= special(word);
            block_seen |= word;
        }
        if any != 0 {
            break;
        }
        seen |= block_seen;
        at += 64;
    }
    if !step(&mut at, &mut seen, usize::MAX) {
        for &byte in bytes.get(at..).unwrap_or_default() {
            if byte < 0x20 || byte == b'"' || byte == b'\\' {
                break;
            }
            seen |= u64::from(byte);
            at += 1;
        }
    }
    (at, seen & HIGH == 0)
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = ONES * 0x80;

/// Nonzero when one of the eight bytes is a quote, a backslash or a control byte; its lowest set bit is
/// the top bit of the first such byte.
fn special(word: u64) -> u64 {
    // Flipping bit 1 permutes the control bytes among themselves and moves the quote (0x22) right
    // behind them (0x20), so one comparison finds both. A borrow only ever reaches upwards from a byte
    // that is itself a match, so the lowest match is exact.
    let low = (word ^ (ONES * 0x02)).wrapping_sub(ONES * 0x21);
    let slash = word ^ (ONES * 0x5C);
    let slash = slash.wrapping_sub(ONES) & !slash;
    (low & !word | slash) & HIGH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_runs_end_at_the_first_special_byte_wherever_it_stands() {
        for len in 0..200 {
            for special in 0..=255u8 {
                let mut text = vec![b'x'; len];
                text.push(special);
                text.extend_from_slice(b"\"\\\x00 tail");
                let stops = special < 0x20 || special == b'"' || special == b'\\';
                let (found, ascii) = plain(&text);
                assert_eq!(
                    found,
                    if stops { len } else { len + 1 },
                    "byte {special:#x} after {len}"
                );
                assert!(
                    special < 0x80 || !ascii,
                    "byte {special:#x} after {len} is not ASCII"
                );
            }
            assert_eq!(plain(&vec![b'x'; len]), (len, true), "{len} plain bytes");
        }
    }

    #[test]
    fn the_nest_remembers_every_level() {
        let mut nest = Nest::default();
        for level in 0..1000 {
            nest.push(level % 3 == 0);
        }
        for level in (0..1000).rev() {
            assert_eq!(nest.top(), Some(level % 3 == 0), "level {level}");
            nest.pop();
        }
        assert_eq!(nest.top(), None);
    }
}
