//! Server-sent events -> their data, incrementally.

/// Cuts a byte stream into the data of its server-sent events. Names, ids and comments are not
/// kept: Anthropic repeats the name inside the data.
#[derive(Default)]
pub(super) struct Events {
    /// The line being read.
    line: Vec<u8>,
    /// The data lines of the event being read.
    data: Vec<u8>,
    /// The last byte was a CR, so a LF now is the second half of one line end.
    after_cr: bool,
    /// An event was longer than [`EVENT_LIMIT`]; nothing more is read.
    spent: bool,
}

/// Bytes that one event may hold.
const EVENT_LIMIT: usize = 16 * 1024 * 1024;

impl Events {
    /// Calls `take` for each event that `chunk` completes; false once an event was too long.
    pub(super) fn push(&mut self, mut chunk: &[u8], mut take: impl FnMut(&[u8])) -> bool {
        if !chunk.is_empty() && std::mem::take(&mut self.after_cr) {
            chunk = chunk.strip_prefix(b"\n").unwrap_or(chunk);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', chunk) {
            if self.spent || !self.room_for(end) {
                return false;
            }
            // A line that lies whole in the chunk is read where it is.
            match self.line.is_empty() {
                true => read_line(&chunk[..end], &mut self.data, &mut take),
                false => {
                    self.line.extend_from_slice(&chunk[..end]);
                    let line = std::mem::take(&mut self.line);
                    read_line(&line, &mut self.data, &mut take);
                }
            }
            let is_cr = chunk[end] == b'\r';
            chunk = &chunk[end + 1..];
            match (is_cr, chunk.first()) {
                (true, Some(b'\n')) => chunk = &chunk[1..],
                (true, None) => self.after_cr = true,
                _ => {}
            }
        }
        if self.spent || !self.room_for(chunk.len()) {
            return false;
        }
        self.line.extend_from_slice(chunk);
        true
    }

    fn room_for(&mut self, more: usize) -> bool {
        self.spent = self.line.len() + self.data.len() + more > EVENT_LIMIT;
        if self.spent {
            (self.line, self.data) = (Vec::new(), Vec::new());
        }
        !self.spent
    }

    /// The data that no blank line has closed.
    pub(super) fn rest(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            read_line(&line, &mut self.data, &mut |_| {});
        }
        Some(std::mem::take(&mut self.data)).filter(|data| !data.is_empty())
    }
}

fn read_line(line: &[u8], data: &mut Vec<u8>, take: &mut impl FnMut(&[u8])) {
    if line.is_empty() {
        if !data.is_empty() {
            take(data);
            data.clear();
        }
    } else if let Some(value) = line.strip_prefix(b"data:") {
        if !data.is_empty() {
            data.push(b'\n');
        }
        data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stream: &str, expected: &[&str]) {
        for size in 1..=stream.len().max(1) {
            let mut events = Events::default();
            let mut seen = Vec::new();
            for chunk in stream.as_bytes().chunks(size) {
                assert!(events.push(chunk, |data| seen.push(String::from_utf8(data.to_vec()).unwrap())));
            }
            assert_eq!(seen, expected, "{stream:?} in pieces of {size}");
        }
    }

    #[test]
    fn line_ends_of_all_kinds_are_understood() {
        check("data: a\n\ndata: b\n\n", &["a", "b"]);
        check("data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]);
        check("data: a\r\rdata: b\r\r", &["a", "b"]);
        check("event: x\ndata:a\ndata: b\nid: 1\n: note\n\n", &["a\nb"]);
        check("data\n\n\n\ndata: a\n", &[]);
    }

    #[test]
    fn the_rest_is_kept_for_the_end() {
        let mut events = Events::default();
        assert!(events.push(b"data: a\n\ndata: b\ndata: c", |_| {}));
        assert_eq!(events.rest(), Some(b"b\nc".to_vec()));
        assert_eq!(events.rest(), None);
    }

    #[test]
    fn an_endless_event_is_given_up() {
        let mut events = Events::default();
        let piece = vec![b'x'; EVENT_LIMIT / 4];
        let taken = (0..6).filter(|_| events.push(&piece, |_| {})).count();
        assert_eq!(taken, 4);
        assert!(!events.push(b"data: a\n\n", |_| panic!("nothing is read after that")));
    }
}
