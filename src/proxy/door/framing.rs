//! Whether the head of an HTTP/1 request has exactly one reading. Where two servers could read it in two
//! ways, one request could be two, so it is refused; nothing is repaired.
//!
//! Pingora's parser refuses much by itself. What it lets through or puts right in silence is judged here, on
//! the bytes as they came.

/// Says why a head is refused: None = there is one reading. `head` ends with its empty line.
pub fn ambiguous(head: &[u8]) -> Option<&'static str> {
    // One empty line before a request is allowed to old clients.
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let mut lines = head.split_inclusive(|b| *b == b'\n');
    let Some(first) = lines.next() else {
        return Some("there is no request line");
    };
    let Some(first) = line(first) else {
        return Some("a line does not end with CR LF, or has a control character in it");
    };
    let mut words = first.split(|b| *b == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    if words.next().is_some() || method.is_none_or(<[u8]>::is_empty) || target.is_none_or(<[u8]>::is_empty) {
        return Some("the request line is not method, target and version with a space between them");
    }
    let known = |t: &[u8]| {
        let (http, https) = (t.get(..7), t.get(..8));
        t.starts_with(b"/")
            || t == b"*"
            || http.is_some_and(|s| s.eq_ignore_ascii_case(b"http://"))
            || https.is_some_and(|s| s.eq_ignore_ascii_case(b"https://"))
    };
    if !target.is_some_and(known) {
        return Some("the target is neither a path nor an address that begins with http");
    }
    // The parser drops it in silence, and others take it for a part of the path.
    if target.is_some_and(|t| t.contains(&b'#')) {
        return Some("the target has a # in it, which clients keep to themselves");
    }
    let old = match version {
        Some(b"HTTP/1.1") => false,
        Some(b"HTTP/1.0") => true,
        _ => return Some("the version is neither HTTP/1.1 nor HTTP/1.0"),
    };
    let (mut hosts, mut lengths, mut encodings) = (0, 0, 0);
    for field in lines {
        let Some(field) = line(field) else {
            return Some("a line does not end with CR LF, or has a control character in it");
        };
        if field.is_empty() {
            break;
        }
        if matches!(field.first(), Some(b' ' | b'\t')) {
            return Some("a header goes on in a second line");
        }
        let Some(colon) = memchr::memchr(b':', field) else {
            return Some("a header has no colon");
        };
        let (name, value) = field.split_at(colon);
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
            return Some("the name of a header has a character that names do not have");
        }
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                hosts += 1;
                if !value
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._~:[]%".contains(b))
                {
                    return Some("host is no name and no address");
                }
            }
            14 if reads_as(name, b"content-length") => {
                lengths += 1;
                let digits = !value.is_empty() && value.len() < 20 && value.iter().all(u8::is_ascii_digit);
                if !digits || name.contains(&b'_') {
                    return Some("content-length is not a plain number");
                }
            }
            17 if reads_as(name, b"transfer-encoding") => {
                encodings += 1;
                if !value.eq_ignore_ascii_case(b"chunked") || name.contains(&b'_') {
                    return Some("transfer-encoding is something else than chunked");
                }
            }
            _ => {}
        }
    }
    if lengths > 1 {
        return Some("content-length is given more than once");
    }
    if encodings > 1 {
        return Some("transfer-encoding is given more than once");
    }
    if lengths > 0 && encodings > 0 {
        return Some("both content-length and transfer-encoding are given");
    }
    if old && encodings > 0 {
        return Some("HTTP/1.0 knows no transfer-encoding");
    }
    if hosts > 1 {
        return Some("host is given more than once");
    }
    if hosts == 0 && !old {
        return Some("an HTTP/1.1 request names its Host");
    }
    None
}

/// A line without its CR LF, if it has that and no other control character but the tab.
fn line(with_end: &[u8]) -> Option<&[u8]> {
    let line = with_end.strip_suffix(b"\r\n")?;
    // Without leaving early, which the compiler turns into wide instructions.
    let controls = line
        .iter()
        .fold(false, |any, b| any | ((*b < 32) & (*b != b'\t')) | (*b == 127));
    (!controls).then_some(line)
}

/// Some servers behind read `content_length` as `content-length`.
fn reads_as(name: &[u8], what: &[u8]) -> bool {
    name.iter()
        .zip(what)
        .all(|(a, b)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-'))
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Looks at a request line as it passes. Pingora escapes what does not belong into a target (a space, for
/// one) and reads the line again; whoever stands in front may have read it differently.
#[derive(Debug, Default)]
pub struct RequestLine {
    method: Method,
    spaces: u8,
    /// The last byte was a CR.
    returned: bool,
    odd: bool,
    over: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Method {
    #[default]
    Awaited,
    Begun,
    /// Lower case or a colon: not the first line, but a piece of a head whose start was read before.
    None,
}

impl RequestLine {
    /// Takes what comes next. True = the line is over and it is odd.
    pub fn is_odd(&mut self, bytes: &[u8]) -> bool {
        if self.over {
            return false;
        }
        for &b in bytes {
            let returned = std::mem::replace(&mut self.returned, b == b'\r');
            self.odd |= returned && b != b'\n' && self.method == Method::Begun;
            match b {
                b'\r' | b'\n' if self.method == Method::Awaited => {}
                b'\n' => {
                    self.over = true;
                    return self.method == Method::Begun && (self.odd || self.spaces > 2);
                }
                b' ' if self.method == Method::Begun => self.spaces = self.spaces.saturating_add(1),
                _ if self.spaces == 0 => {
                    self.method = match (self.method, b) {
                        (Method::Awaited | Method::Begun, b'A'..=b'Z') => Method::Begun,
                        _ => Method::None,
                    }
                }
                b'\r' => {}
                0..=32 | 127.. => self.odd = true,
                _ => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_reading_is_fine() {
        for head in [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "POST /v1/x?a=b HTTP/1.1\r\nhost:x\r\nContent-Length:\t12 \r\nX-Empty:\r\nX-Tab: a\tb\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: Chunked\r\ntransfer_x: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: x\r\nx-name: Gr\u{fc}n\r\n\r\n",
        ] {
            assert_eq!(ambiguous(head.as_bytes()), None, "{head:?}");
        }
    }

    #[test]
    fn a_request_line_is_looked_at_in_any_pieces() {
        for (line, odd) in [
            ("GET / HTTP/1.1\r\n", false),
            ("\r\nGET / HTTP/1.1\r\n", false),
            ("GET /a b HTTP/1.1\r\n", true),
            ("GET /a\tb HTTP/1.1\r\n", true),
            ("GET /a\r HTTP/1.1\r\n", true),
            ("GET /a\u{1}b HTTP/1.1\r\n", true),
            ("GET /\u{e4} HTTP/1.1\r\n", true),
            ("GET  / HTTP/1.1\r\n", true),
            ("User-Agent: a b c d\r\n", false),
            ("host: a b c\r\n", false),
        ] {
            for size in [1, 3, 100] {
                let mut seen = RequestLine::default();
                let got = line.as_bytes().chunks(size).any(|c| seen.is_odd(c));
                assert_eq!(got, odd, "{line:?} in pieces of {size}");
                assert!(!seen.is_odd(b"GET a b c d e\r\n"), "only the first line counts");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Whatever is let through has one length, one host and lines that end as lines do.
        #[test]
        fn what_is_let_through_has_one_reading(
            fields in proptest::collection::vec(
                prop_oneof![
                    Just("host: a"), Just("Host: b"), Just("content-length: 5"), Just("Content-Length: 5"),
                    Just("content-length: +5"), Just("content-length: 5, 5"), Just("transfer-encoding: chunked"),
                    Just("Transfer-Encoding: identity"), Just("transfer-encoding : chunked"),
                    Just(" chunked"), Just("x-a: b\rc"), Just("x-a: b"), Just("content_length: 3"),
                ],
                0..5,
            ),
            ends in proptest::collection::vec(prop_oneof![9 => Just("\r\n"), 1 => Just("\n")], 7),
            version in prop_oneof![Just("HTTP/1.1"), Just("HTTP/1.0")],
        ) {
            let mut head = format!("POST / {version}{}", ends[0]);
            for (field, end) in fields.iter().zip(&ends[1..]) {
                head.push_str(field);
                head.push_str(end);
            }
            head.push_str("\r\n");
            if ambiguous(head.as_bytes()).is_none() {
                let lower = head.to_ascii_lowercase();
                let count = |what: &str| lower.lines().filter(|l| l.starts_with(what)).count();
                let te = count("transfer-encoding:");
                prop_assert!(count("content-length:") + te <= 1);
                prop_assert!(te == 0 || version == "HTTP/1.1");
                prop_assert!(count("host:") <= 1 && (count("host:") == 1 || version == "HTTP/1.0"));
                prop_assert!(!lower.replace("\r\n", "").contains(['\r', '\n']));
                prop_assert!(!["+5", "5,", "identity", " :", "\n ", "_"].iter().any(|s| lower.contains(s)));
            }
        }
    }
}
