//! The parameters of a header value (`; name="a"; filename*=UTF-8''b`), for [`super::multipart`].
//!
//! Read as browsers write them and servers read them, which is a little off the RFCs on both sides.

/// The parameters of a header, `; a=b; c="d"`, names in lower case, quotes taken off. `None` when they
/// are malformed.
pub(super) fn parameters(text: &str) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        if rest.is_empty() {
            return Some(found);
        }
        let (name, after) = rest.split_once('=')?;
        let name = name.trim_end_matches([' ', '\t']);
        if !is_token(name) {
            return None;
        }
        let after = after.trim_start_matches([' ', '\t']);
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let (value, after) = after.split_at(after.find(';').unwrap_or(after.len()));
                let value = value.trim_end_matches([' ', '\t']);
                if value.contains([' ', '\t', '"', ',']) {
                    return None;
                }
                (value.to_owned(), after)
            }
        };
        found.push((name.to_ascii_lowercase(), value));
        rest = after.trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with(';') {
            return None;
        }
    }
}

/// Reads a quoted text from behind its opening quote; also gives what follows the closing one.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, text.get(at + 1..)?)),
            // Only what must be escaped is: old browsers send `C:\path` as it is.
            '\\' => match chars.next_if(|(_, next)| matches!(next, '"' | '\\')) {
                Some((_, escaped)) => value.push(escaped),
                None => value.push(char),
            },
            _ => value.push(char),
        }
    }
    None
}

/// Takes back the three escapes of browsers (WHATWG, RFC 7578); other percent signs mean themselves.
pub(super) fn unescape(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    text.replace("%22", "\"")
        .replace("%0D", "\r")
        .replace("%0d", "\r")
        .replace("%0A", "\n")
        .replace("%0a", "\n")
}

/// The text of an RFC 5987 value, `UTF-8''na%C3%AFve`; `None` for other character sets.
pub(super) fn extended_value(text: &str) -> Option<String> {
    let (charset, rest) = text.split_once('\'')?;
    let (_, encoded) = rest.split_once('\'')?;
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            _ => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

pub(super) fn is_token(text: &str) -> bool {
    let is = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&[(&str, &str)]>) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        assert_eq!(
            parameters(text),
            expected.map(|pairs| pairs.iter().map(owned).collect()),
            "for {text:?}"
        );
    }

    #[test]
    fn parameters_are_read() {
        check("", Some(&[]));
        check(" ; ;", Some(&[]));
        check("a=b", Some(&[("a", "b")]));
        check(" A = b ; c=\"d;e=f\" ", Some(&[("a", "b"), ("c", "d;e=f")]));
        check(r#"a="\"\\\d""#, Some(&[("a", r#""\\d"#)]));
        check("a=", Some(&[("a", "")]));
        for bad in [
            "a",
            "=b",
            "a b=c",
            "a=b c",
            "a=\"b",
            "a=\"b\\\"",
            "a=\"b\"c",
            "a=b\"c\"",
            "a=b, c=d",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn escapes_are_taken_back() {
        assert_eq!(unescape("a%22%0D%0Ab%41%"), "a\"\r\nb%41%");
        assert_eq!(extended_value("utf-8'en'na%C3%AFve").as_deref(), Some("naïve"));
        for bad in [
            "",
            "utf-8",
            "utf-8'",
            "latin1''a",
            "utf-8''%",
            "utf-8''%C",
            "utf-8''%ü",
            "utf-8''%C3",
        ] {
            assert_eq!(extended_value(bad), None, "{bad:?}");
        }
    }
}
