//! Finds the parts of a `multipart/form-data` body that is whole in memory.
//!
//! As with JSON, the upstream parses the same bytes with a parser of its own. Where parsers are known
//! to disagree (bare LF, padding behind a boundary, a header or parameter given twice, a transfer
//! encoding) the body is refused, so that what is checked here is what is used there.

use super::parameters::{extended_value, is_token, parameters, unescape};
use memchr::memmem::{self, Finder};
use std::ops::Range;

/// One part of a form. Offsets are bytes of the whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    /// Given for files only.
    pub filename: Option<String>,
    pub content_type: Option<String>,
    /// The header lines with their line ends, without the blank line.
    pub head: Range<usize>,
    /// The content, without the line end that belongs to the boundary.
    pub value: Range<usize>,
}

/// How much a form may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Number of parts.
    pub parts: usize,
    /// Bytes of header lines in one part.
    pub head: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            parts: 256,
            head: 8 << 10,
        }
    }
}

/// Why a form was refused, as a sentence for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    #[error("the content-type must be multipart/form-data")]
    NotMultipart,
    #[error("the content-type multipart/form-data has no boundary")]
    NoBoundary,
    #[error("the boundary in the content-type must be 1 to 70 of the characters RFC 2046 allows, given once")]
    BadBoundary,
    #[error("the form does not hold the boundary that its content-type names")]
    NoParts,
    #[error("the form's lines must end with CR LF; the one at byte {at} does not")]
    LineEnd { at: usize },
    #[error("the boundary at byte {at} of the form is followed by something else than a line end")]
    AfterBoundary { at: usize },
    #[error("the form is cut off: its final boundary is missing")]
    Truncated,
    #[error("the form has more than {limit} parts")]
    TooManyParts { limit: usize },
    #[error("a part at byte {at} of the form has more than {limit} bytes of headers")]
    HeadTooLarge { at: usize, limit: usize },
    #[error("the header line at byte {at} of the form is malformed")]
    BadHeader { at: usize },
    #[error("the part at byte {at} of the form needs one content-disposition: form-data with one name")]
    NoName { at: usize },
    #[error("the part at byte {at} of the form has a content-transfer-encoding; send it as it is")]
    Encoded { at: usize },
    #[error("the form has the field {0:?} more than once; give it once")]
    Duplicate(String),
}

/// The boundary that a `content-type` header names.
pub fn boundary(content_type: &str) -> Result<String, MultipartError> {
    let (media, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    if !media.trim().eq_ignore_ascii_case("multipart/form-data") {
        return Err(MultipartError::NotMultipart);
    }
    let parameters = super::parameters::parameters(parameters).ok_or(MultipartError::BadBoundary)?;
    let mut boundaries = parameters.into_iter().filter(|(name, _)| name == "boundary");
    let (_, boundary) = boundaries.next().ok_or(MultipartError::NoBoundary)?;
    if boundaries.next().is_some() || !is_boundary(&boundary) {
        return Err(MultipartError::BadBoundary);
    }
    Ok(boundary)
}

/// Finds all parts. Takes time in proportion to the length of `body`, whatever it holds.
pub fn scan(body: &[u8], boundary: &str, limits: Limits) -> Result<Vec<Part>, MultipartError> {
    if !is_boundary(boundary) {
        return Err(MultipartError::BadBoundary);
    }
    // A boundary holds no LF, so two finds never overlap and each byte is looked at a few times only.
    let line = format!("\n--{boundary}");
    let form = Form {
        body,
        dashes: &line.as_bytes()[1..],
        finder: Finder::new(&line),
    };

    // What stands before the first boundary is no part.
    let mut at = match body.starts_with(form.dashes) {
        true => form.next_part(form.dashes.len())?,
        false => {
            let (_, after) = form.find_boundary(0)?.ok_or(MultipartError::NoParts)?;
            form.next_part(after)?
        }
    };
    let mut parts = Vec::new();
    while let Some(start) = at {
        if parts.len() >= limits.parts {
            return Err(MultipartError::TooManyParts { limit: limits.parts });
        }
        let (head, fields) = form.head(start, limits.head)?;
        let value = head.end + 2;
        if form.rest(value).starts_with(form.dashes) {
            // Some parsers see an empty part here, others see content.
            return Err(MultipartError::LineEnd { at: value });
        }
        let (end, after) = form.find_boundary(value)?.ok_or(MultipartError::Truncated)?;
        parts.push(part(fields, head, value..end)?);
        at = form.next_part(after)?;
    }
    Ok(parts)
}

/// The part called `name`, if there is one; refuses a form that has it twice.
pub fn only<'a>(parts: &'a [Part], name: &str) -> Result<Option<&'a Part>, MultipartError> {
    let mut found = parts.iter().filter(|part| part.name == name);
    let first = found.next();
    match found.next() {
        Some(_) => Err(MultipartError::Duplicate(name.to_owned())),
        None => Ok(first),
    }
}

struct Form<'a> {
    body: &'a [u8],
    /// The boundary with its two leading dashes.
    dashes: &'a [u8],
    /// Finds an LF with the dashes and the boundary behind it.
    finder: Finder<'a>,
}

/// The headers of a part that matter, as they are written.
#[derive(Default)]
struct Fields<'a> {
    disposition: Option<&'a str>,
    content_type: Option<&'a str>,
}

impl<'a> Form<'a> {
    fn rest(&self, at: usize) -> &'a [u8] {
        self.body.get(at..).unwrap_or_default()
    }

    /// The next boundary from `from` on: where its line end (which belongs to it) begins, and where the
    /// boundary itself ends.
    fn find_boundary(&self, from: usize) -> Result<Option<(usize, usize)>, MultipartError> {
        let mut at = from;
        while let Some(found) = self.finder.find(self.rest(at)) {
            let lf = at + found;
            let after = lf + 1 + self.dashes.len();
            at = after;
            // Content may hold the boundary with more behind it; all parsers take that as content.
            if !matches!(
                self.body.get(after),
                None | Some(b'\r' | b'\n' | b'-' | b' ' | b'\t')
            ) {
                continue;
            }
            return match lf
                .checked_sub(1)
                .filter(|cr| *cr >= from && self.body.get(*cr) == Some(&b'\r'))
            {
                Some(cr) => Ok(Some((cr, after))),
                None => Err(MultipartError::LineEnd { at: lf }),
            };
        }
        Ok(None)
    }

    /// Where the part behind a boundary begins; `None` behind the final boundary.
    fn next_part(&self, after: usize) -> Result<Option<usize>, MultipartError> {
        match self.rest(after) {
            [b'\r', b'\n', ..] => Ok(Some(after + 2)),
            [b'-', b'-'] | [b'-', b'-', b'\r', b'\n', ..] => Ok(None),
            [b'\n', ..] => Err(MultipartError::LineEnd { at: after }),
            [] | [b'-'] | [b'\r'] => Err(MultipartError::Truncated),
            _ => Err(MultipartError::AfterBoundary { at: after }),
        }
    }

    /// Reads the header lines from `start` to the blank line.
    fn head(&self, start: usize, limit: usize) -> Result<(Range<usize>, Fields<'a>), MultipartError> {
        let mut fields = Fields::default();
        let mut at = start;
        loop {
            // Two more bytes, for the line end of a line that just fits.
            let room = (limit + 2).saturating_sub(at - start);
            let rest = self.rest(at);
            let window = rest.get(..room).unwrap_or(rest);
            let Some(len) = memmem::find(window, b"\r\n") else {
                return Err(match rest.len() > room {
                    true => MultipartError::HeadTooLarge { at: start, limit },
                    false => MultipartError::Truncated,
                });
            };
            if len == 0 {
                return Ok((start..at, fields));
            }
            let line = window.get(..len).unwrap_or_default();
            fields.add(line, at, start)?;
            at += len + 2;
        }
    }
}

impl<'a> Fields<'a> {
    /// Reads the header line at byte `at` of the part at byte `start`.
    fn add(&mut self, line: &'a [u8], at: usize, start: usize) -> Result<(), MultipartError> {
        let bad = MultipartError::BadHeader { at };
        // A bare CR or LF, a NUL or a folded line is read differently by different parsers.
        let Some(line) = std::str::from_utf8(line)
            .ok()
            .filter(|line| !line.contains(['\r', '\n', '\0']))
        else {
            return Err(bad);
        };
        let Some((name, value)) = line.split_once(':').filter(|(name, _)| is_token(name)) else {
            return Err(bad);
        };
        let value = value.trim_matches([' ', '\t']);
        let is = |header: &str| name.eq_ignore_ascii_case(header);
        if is("content-disposition") {
            if self.disposition.replace(value).is_some() {
                return Err(MultipartError::NoName { at: start });
            }
        } else if is("content-type") {
            if self.content_type.replace(value).is_some() {
                return Err(bad);
            }
        } else if is("content-transfer-encoding")
            && !["7bit", "8bit", "binary"]
                .iter()
                .any(|plain| value.eq_ignore_ascii_case(plain))
        {
            return Err(MultipartError::Encoded { at: start });
        }
        Ok(())
    }
}

fn part(fields: Fields, head: Range<usize>, value: Range<usize>) -> Result<Part, MultipartError> {
    let no_name = MultipartError::NoName { at: head.start };
    let Some((kind, rest)) = fields.disposition.and_then(|text| text.split_once(';')) else {
        return Err(no_name);
    };
    let Some(parameters) = parameters(rest).filter(|_| kind.trim().eq_ignore_ascii_case("form-data")) else {
        return Err(no_name);
    };
    let (mut name, mut filename, mut extended) = (None, None, None);
    for (key, text) in parameters {
        let slot = match key.as_str() {
            "name" => &mut name,
            "filename" => &mut filename,
            "filename*" => &mut extended,
            // RFC 7578 rules it out, and only some parsers prefer it over `name`.
            "name*" => return Err(no_name),
            _ => continue,
        };
        if slot.replace(text).is_some() {
            return Err(no_name);
        }
    }
    let name = name.map(|name| unescape(&name)).ok_or(no_name)?;
    let filename = filename
        .map(|name| unescape(&name))
        .or_else(|| extended.and_then(|text| extended_value(&text)));
    Ok(Part {
        name,
        filename,
        content_type: fields.content_type.map(str::to_owned),
        head,
        value,
    })
}

fn is_boundary(text: &str) -> bool {
    let is = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    (1..=70).contains(&text.len()) && text.bytes().all(is) && !text.ends_with(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boundary_is_read_from_the_content_type() {
        let check = |content_type: &str, expected: Result<&str, MultipartError>| {
            assert_eq!(
                boundary(content_type),
                expected.map(str::to_owned),
                "for {content_type:?}"
            );
        };
        check("multipart/form-data; boundary=abc", Ok("abc"));
        check("Multipart/Form-Data;BOUNDARY=abc; charset=utf-8", Ok("abc"));
        check(
            "multipart/form-data; charset=utf-8; boundary=\"a b:c\"",
            Ok("a b:c"),
        );
        check(
            "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxk ",
            Ok("----WebKitFormBoundary7MA4YWxk"),
        );
        check("multipart/form-data; boundary==_a=b", Ok("=_a=b"));
        check(
            &format!("multipart/form-data; boundary={}", "x".repeat(70)),
            Ok(&"x".repeat(70)),
        );
        check(
            &format!("multipart/form-data; boundary={}", "x".repeat(71)),
            Err(MultipartError::BadBoundary),
        );
        check("multipart/mixed; boundary=abc", Err(MultipartError::NotMultipart));
        check("application/json", Err(MultipartError::NotMultipart));
        check("", Err(MultipartError::NotMultipart));
        check("multipart/form-data", Err(MultipartError::NoBoundary));
        check(
            "multipart/form-data; xboundary=a",
            Err(MultipartError::NoBoundary),
        );
        for bad in [
            "boundary=",
            "boundary=\"\"",
            "boundary=\"a ",
            "boundary=\"a \"",
            "boundary=a{b",
            "boundary=ä",
        ] {
            check(
                &format!("multipart/form-data; {bad}"),
                Err(MultipartError::BadBoundary),
            );
        }
        check(
            "multipart/form-data; boundary=a; boundary=a",
            Err(MultipartError::BadBoundary),
        );
        check(
            "multipart/form-data; boundary=\"a\"b",
            Err(MultipartError::BadBoundary),
        );
        check(
            "multipart/form-data; boundary=\"a\r\nb\"",
            Err(MultipartError::BadBoundary),
        );
        check(
            "multipart/form-data; boundary=a\tb",
            Err(MultipartError::BadBoundary),
        );
    }

    const MODEL: &str = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n";

    fn file(content: &str) -> String {
        let head = "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n";
        format!("--b\r\n{head}\r\n{content}\r\n")
    }

    /// Scans a form, boundary `b`, and shows its parts as `name=value` or `name(filename, type)=value`.
    fn check(body: &str, expected: &str) {
        let shown = match scan(body.as_bytes(), "b", Limits::default()) {
            Ok(parts) => parts
                .iter()
                .map(|part| show(body, part))
                .collect::<Vec<_>>()
                .join(" & "),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected, "for {body:?}");
    }

    fn show(body: &str, part: &Part) -> String {
        let about: Vec<&str> = [&part.filename, &part.content_type]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        let about = if about.is_empty() {
            String::new()
        } else {
            format!("({})", about.join(", "))
        };
        assert!(body[..part.head.start].ends_with("--b\r\n") && body[part.head.end..].starts_with("\r\n"));
        assert!(body[part.value.end..].starts_with("\r\n--b"));
        format!("{}{about}={}", part.name, &body[part.value.clone()])
    }

    /// The same for one part with this head.
    fn check_head(head: &str, expected: &str) {
        check(&format!("--b\r\n{head}\r\n\r\nv\r\n--b--\r\n"), expected);
    }

    #[test]
    fn parts_are_found_in_any_order() {
        let file = file("RIFF\0\r\n");
        let shown = "file(a.wav, audio/wav)=RIFF\0\r\n";
        check(
            &format!("{MODEL}{file}--b--\r\n"),
            &format!("model=whisper-1 & {shown}"),
        );
        check(
            &format!("{file}{MODEL}--b--"),
            &format!("{shown} & model=whisper-1"),
        );
        check("--b--\r\n", "");
        check(
            &format!("pre\r\namble\r\n{MODEL}--b--\r\nepi\n--b\nlogue"),
            "model=whisper-1",
        );
        check(&format!("\r\n{MODEL}--b--"), "model=whisper-1");
        check(
            "--b\r\nContent-Disposition: form-data; name=e\r\n\r\n\r\n--b--",
            "e=",
        );
        check(
            "--b\r\nContent-Disposition: form-data; name=e\r\n\r\n\r\n\r\n--b--",
            "e=\r\n",
        );
    }

    #[test]
    fn content_may_look_like_a_boundary() {
        for content in [
            "--b",
            "x--b\r\n",
            "\r\n--bb\r\n--",
            "\r\n--B\r\n",
            "\n--bx",
            "-\r\n-\r\n--\r\n",
            "\r\r\n\r",
        ] {
            let expected = format!("file(a.wav, audio/wav)=x{content} & model=whisper-1");
            check(
                &format!("{}{MODEL}--b--", file(&format!("x{content}"))),
                &expected,
            );
        }
        for content in ["\r\n--b \r\n", "\r\n--b-x", "\r\n--b\t"] {
            let form = format!("{}--b--", file(content));
            let at = form.find(content).unwrap() + "\r\n--b".len();
            check(
                &form,
                &format!(
                    "the boundary at byte {at} of the form is followed by something else than a line end"
                ),
            );
        }
    }

    #[test]
    fn bare_line_feeds_are_refused() {
        let line_end =
            |at: usize| format!("the form's lines must end with CR LF; the one at byte {at} does not");
        check(&format!("{MODEL}--b--").replace("\r\n", "\n"), &line_end(3));
        check(&format!("x\n{MODEL}--b--"), &line_end(1));
        check(
            &format!("{}--b--", MODEL.replace("-1\r\n", "-1\n")),
            &line_end(62),
        );
        check(
            "--b\r\nContent-Disposition: form-data; name=\"a\"\n\nv\r\n--b--",
            "the header line at byte 5 of the form is malformed",
        );
        check(
            "--b\r\nContent-Disposition: form-data; name=e\r\n\r\n--b--",
            &line_end(47),
        );
    }

    #[test]
    fn a_form_that_is_cut_off_anywhere_is_refused() {
        let whole = format!("{MODEL}{}--b--", file("RIFF"));
        check(&whole, "model=whisper-1 & file(a.wav, audio/wav)=RIFF");
        for len in 0..whole.len() {
            let result = scan(&whole.as_bytes()[..len], "b", Limits::default());
            let expected = if len < 3 {
                MultipartError::NoParts
            } else {
                MultipartError::Truncated
            };
            assert_eq!(result, Err(expected), "cut off at {len}");
        }
        check(
            "no form",
            "the form does not hold the boundary that its content-type names",
        );
    }

    #[test]
    fn names_are_read() {
        check_head("Content-Disposition: form-data; name=\"a\"", "a=v");
        check_head("content-disposition:form-data;name=a", "a=v");
        check_head(
            "X-Other: 1\r\nCONTENT-DISPOSITION: FORM-DATA ; NAME = \"a\" ; x=y",
            "a=v",
        );
        check_head(
            r#"Content-Disposition: form-data; name="a%22b\"c\\d\e%41""#,
            r#"a"b"c\d\e%41=v"#,
        );
        check_head(
            r#"Content-Disposition: form-data; name="a;b=c"; filename="C:\x; name=y""#,
            r"a;b=c(C:\x; name=y)=v",
        );
        check_head("Content-Disposition: form-data; name=\"\"", "=v");
        check_head(
            "Content-Disposition: form-data; name=\"ü\"; filename*=UTF-8''%C3%BC.wav",
            "ü(ü.wav)=v",
        );
        check_head(
            "Content-Disposition: form-data; name=a; filename*=latin1''%FC",
            "a=v",
        );
        check_head(
            "Content-Disposition: form-data; name=a; filename*=UTF-8''%F",
            "a=v",
        );
        check_head(
            "Content-Transfer-Encoding: binary\r\nContent-Disposition: form-data; name=a",
            "a=v",
        );
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        let no_name = "the part at byte 5 of the form needs one content-disposition: form-data with one name";
        let bad = |at: usize| format!("the header line at byte {at} of the form is malformed");
        for head in [
            "Content-Type: text/plain",
            "Content-Disposition: form-data",
            "Content-Disposition: attachment; name=a",
            "Content-Disposition: form-data; filename=a",
            "Content-Disposition: form-data; name=a; name=a",
            "Content-Disposition: form-data; name=a; NAME=b",
            "Content-Disposition: form-data; name=a; name*=UTF-8''b",
            "Content-Disposition: form-data; name=\"a",
            "Content-Disposition: form-data; name=\"a\"b",
            "Content-Disposition: form-data; name=a b",
            "Content-Disposition: form-data; name",
            "Content-Disposition: form-data; name=a; filename=b; filename=c",
            "Content-Disposition: form-data; name=a\r\nContent-Disposition: form-data; name=a",
        ] {
            check_head(head, no_name);
        }
        check_head("no colon", &bad(5));
        check_head("--b", &bad(5));
        check_head("Space : 1", &bad(5));
        check_head("X: 1\r\n folded: 1", &bad(11));
        check_head("X: 1\r\nY: \0", &bad(11));
        check_head("Content-Type: a/b\r\nContent-Type: a/b", &bad(24));
        let encoded = "the part at byte 5 of the form has a content-transfer-encoding; send it as it is";
        check_head(
            "Content-Transfer-Encoding: base64\r\nContent-Disposition: form-data; name=a",
            encoded,
        );
    }

    #[test]
    fn floods_are_refused() {
        let many = |count: usize| format!("{}--b--", MODEL.repeat(count));
        assert_eq!(
            scan(many(256).as_bytes(), "b", Limits::default()).map(|parts| parts.len()),
            Ok(256)
        );
        check(&many(257), "the form has more than 256 parts");
        let head = "Content-Disposition: form-data; name=a\r\n";
        let filled = |len: usize| {
            format!(
                "--b\r\n{head}X:{}\r\n\r\nv\r\n--b--",
                "x".repeat(len - head.len() - 4)
            )
        };
        check(&filled(8 << 10), "a=v");
        check(
            &filled((8 << 10) + 1),
            "a part at byte 5 of the form has more than 8192 bytes of headers",
        );
        check(
            &format!("--b\r\n{}", "X:y\r\n".repeat(1 << 20)),
            "a part at byte 5 of the form has more than 8192 bytes of headers",
        );
        let almost = "\r\n--".repeat(1 << 20) + &"\r\n--bb".repeat(1 << 20);
        check(
            &almost,
            "the form does not hold the boundary that its content-type names",
        );
        check(
            &format!("{MODEL}{almost}"),
            "the form is cut off: its final boundary is missing",
        );
        assert_eq!(
            scan(b"--b--", "", Limits::default()),
            Err(MultipartError::BadBoundary)
        );
        assert_eq!(
            scan(b"--b--", "b\n", Limits::default()),
            Err(MultipartError::BadBoundary)
        );
    }

    #[test]
    fn a_field_given_twice_is_refused() {
        let form = format!("{MODEL}{}{MODEL}--b--", file("x"));
        let parts = scan(form.as_bytes(), "b", Limits::default()).unwrap();
        assert_eq!(
            only(&parts, "model"),
            Err(MultipartError::Duplicate("model".into()))
        );
        assert_eq!(only(&parts, "file").unwrap(), Some(&parts[1]));
        assert_eq!(only(&parts, "other"), Ok(None));
    }
}
