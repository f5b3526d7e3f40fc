//! Finds top-level fields of a JSON request body in one strict pass, without building a tree.
//!
//! The gate decides by what it reads here and the upstream by what it reads itself, so whatever two
//! parsers could read differently (a key given twice, a key spelled with escapes, a body that is not
//! quite JSON) is refused. Changing what was found is for [`super::splice`].

use super::json::Cursor;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::ops::Range;

/// How many arrays and objects may stand inside one another, the body itself included, when nothing
/// else is asked for. `serde_json` gives up at 128, so what is accepted here can be read there.
pub const DEFAULT_DEPTH: usize = 127;

/// A JSON object of which the wanted fields were found. Offsets are bytes of the whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The wanted fields that are there, in the order of the body.
    pub fields: SmallVec<[Field; 12]>,
    /// Where `{` stands.
    pub open: usize,
    /// Where the `}` that closes it stands.
    pub close: usize,
    /// Whether it has no fields at all, wanted or not.
    pub empty: bool,
}

/// One wanted field that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    /// The key with its quotes.
    pub key: Range<usize>,
    /// The value, with its quotes or brackets, without the space around it.
    pub value: Range<usize>,
    pub kind: Kind,
}

/// What kind of value a field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text; `escaped` when it holds a backslash and so differs from its bytes.
    String {
        escaped: bool,
    },
    Number,
    True,
    False,
    Null,
    Array,
    Object,
}

/// Why a body was refused, as a sentence for whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeekError {
    #[error("the request body is not valid JSON: expected {expected} at byte {at}")]
    Syntax { at: usize, expected: &'static str },
    #[error("the request body nests arrays and objects too deeply at byte {at}")]
    TooDeep { at: usize },
    #[error("the request body must be a JSON object")]
    NotAnObject,
    #[error("the request body is not UTF-8 at byte {at}; send JSON as UTF-8")]
    NotUtf8 { at: usize },
    #[error("the request body has {0:?} more than once; give it once")]
    Duplicate(&'static str),
    #[error("the request body spells the key {0:?} with escapes; write it plainly")]
    EscapedKey(&'static str),
}

/// Checks that `body` is exactly one JSON object, at most `max_depth` deep, and finds its fields named
/// in `wanted`.
pub fn scan(body: &[u8], wanted: &[&'static str], max_depth: usize) -> Result<Object, PeekError> {
    if body.starts_with(b"\xEF\xBB\xBF") || body.starts_with(b"\xFE\xFF") || body.starts_with(b"\xFF\xFE") {
        return Err(PeekError::Syntax {
            at: 0,
            expected: "`{`, not a byte order mark,",
        });
    }
    scan_at(body, 0..body.len(), wanted, max_depth)
}

/// Like [`scan`], for an object that is a part of `body`, such as the value of a field found before.
pub fn scan_at(
    body: &[u8],
    range: Range<usize>,
    wanted: &[&'static str],
    max_depth: usize,
) -> Result<Object, PeekError> {
    let part = body.get(..range.end).filter(|_| range.start <= range.end);
    let Some(part) = part else {
        return Err(PeekError::Syntax {
            at: body.len(),
            expected: "a range inside the body",
        });
    };
    let mut cursor = Cursor::new(part, range.start);
    cursor.space();
    let open = cursor.at();
    if !cursor.take(b'{') {
        return if cursor.look().is_none() {
            cursor.wrong("a JSON object")
        } else {
            Err(PeekError::NotAnObject)
        };
    }
    if max_depth == 0 {
        return Err(PeekError::TooDeep { at: open });
    }
    cursor.space();
    let empty = cursor.look() == Some(b'}');
    let mut fields: SmallVec<[Field; 12]> = SmallVec::new();
    let close = match empty {
        true => cursor.end()?,
        false => rest(&mut cursor, part, wanted, max_depth, &mut fields)?,
    };
    Ok(Object {
        fields,
        open,
        close,
        empty,
    })
}

/// Like [`scan`], but begins at the key of a top-level field, and looks at nothing before that: fields that
/// stand late are found without reading the whole body. If the body is JSON at all and `from` is where a
/// key begins, then `Ok` says that the key stands at the top: behind it one object ends, and the body with it.
pub fn scan_end(
    body: &[u8],
    from: usize,
    wanted: &[&'static str],
    max_depth: usize,
) -> Result<SmallVec<[Field; 12]>, PeekError> {
    let mut fields = SmallVec::new();
    let mut cursor = Cursor::new(body, from);
    rest(&mut cursor, body, wanted, max_depth, &mut fields)?;
    Ok(fields)
}

/// Shows all fields of an object by their keys, quotes included, and values; whether the key holds escapes.
pub fn each_field<'a>(
    body: &'a [u8],
    max_depth: usize,
    mut show: impl FnMut(&'a [u8], bool, &'a [u8]),
) -> Result<(), PeekError> {
    let mut cursor = Cursor::new(body, 0);
    cursor.space();
    if !cursor.take(b'{') {
        return Err(PeekError::NotAnObject);
    }
    if max_depth == 0 {
        return Err(PeekError::TooDeep { at: 0 });
    }
    cursor.space();
    let mut more = cursor.look() != Some(b'}');
    while more {
        let start = cursor.at();
        let (escaped, end) = cursor.key()?;
        let key = body.get(start..end).unwrap_or_default();
        let start = cursor.at();
        cursor.value(1, max_depth)?;
        show(key, escaped, body.get(start..cursor.at()).unwrap_or_default());
        more = cursor.another()?;
    }
    cursor.end()?;
    Ok(())
}

/// From a key to the end of its object, which has to be the end of the body: where its `}` stands.
fn rest(
    cursor: &mut Cursor<'_>,
    body: &[u8],
    wanted: &[&'static str],
    max_depth: usize,
    fields: &mut SmallVec<[Field; 12]>,
) -> Result<usize, PeekError> {
    loop {
        let start = cursor.at();
        let (escaped, end) = cursor.key()?;
        let key = start..end;
        let name = name(body, &key, escaped, wanted)?;
        if let Some(name) = name
            && fields.iter().any(|field| field.name == name)
        {
            return Err(PeekError::Duplicate(name));
        }
        let start = cursor.at();
        let kind = cursor.value(1, max_depth)?;
        if let Some(name) = name {
            fields.push(Field {
                name,
                key,
                value: start..cursor.at(),
                kind,
            });
        }
        if !cursor.another()? {
            return cursor.end();
        }
    }
}

/// Which of the wanted names a key is, if any.
fn name(
    body: &[u8],
    key: &Range<usize>,
    escaped: bool,
    wanted: &[&'static str],
) -> Result<Option<&'static str>, PeekError> {
    if escaped {
        let text: Option<String> = body
            .get(key.clone())
            .and_then(|raw| serde_json::from_slice(raw).ok());
        let name = text.and_then(|text| wanted.iter().find(|name| **name == text));
        return name.map_or(Ok(None), |name| Err(PeekError::EscapedKey(name)));
    }
    let text = body
        .get(key.start + 1..key.end.saturating_sub(1))
        .unwrap_or_default();
    Ok(wanted.iter().find(|name| name.as_bytes() == text).copied())
}

impl Object {
    /// The field called `name`, if it was wanted and is there.
    pub fn get(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// The text of a string field, borrowed from the body unless it holds escapes. `None` for another kind.
pub fn str_value<'a>(body: &'a [u8], field: &Field) -> Option<Cow<'a, str>> {
    let raw = body.get(field.value.clone())?;
    match field.kind {
        Kind::String { escaped: false } => {
            let text = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
            std::str::from_utf8(text).ok().map(Cow::Borrowed)
        }
        Kind::String { escaped: true } => serde_json::from_slice(raw).ok().map(Cow::Owned),
        _ => None,
    }
}

/// The value of a `true` or `false` field; `None` for another kind.
pub fn bool_value(field: &Field) -> Option<bool> {
    match field.kind {
        Kind::True => Some(true),
        Kind::False => Some(false),
        _ => None,
    }
}

/// The value of a number field that is whole and not negative, also when written `1e3` or `16.0`;
/// `None` for other numbers and other kinds.
pub fn u64_value(body: &[u8], field: &Field) -> Option<u64> {
    if field.kind != Kind::Number {
        return None;
    }
    let text = std::str::from_utf8(body.get(field.value.clone())?).ok()?;
    if let Ok(whole) = text.parse() {
        return Some(whole);
    }
    // Up to 2^53 a float holds every whole number exactly; beyond, it would be a guess.
    let float: f64 = text.parse().ok()?;
    let exact = float.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&float);
    exact.then_some(float as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &[&str] = &["model", "stream", "max_tokens", "é"];

    /// Scans and shows the fields as `name=raw value`, or the error as it is shown to the client.
    fn check(body: impl AsRef<[u8]>, expected: &str) {
        let body = body.as_ref();
        let shown = match scan(body, WANTED, DEFAULT_DEPTH) {
            Ok(object) => {
                let fields = object.fields.iter().map(|field| {
                    let key = &body[field.key.clone()];
                    assert_eq!(key, format!("\"{}\"", field.name).as_bytes(), "the key's range");
                    format!(
                        "{}={}",
                        field.name,
                        String::from_utf8_lossy(&body[field.value.clone()])
                    )
                });
                assert_eq!((body[object.open], body[object.close]), (b'{', b'}'));
                fields.collect::<Vec<_>>().join(" ")
            }
            Err(error) => error.to_string(),
        };
        let told = shown
            .strip_prefix("the request body is not valid JSON: ")
            .unwrap_or(&shown);
        assert_eq!(told, expected, "for {:?}", String::from_utf8_lossy(body));
    }

    #[test]
    fn wanted_fields_are_found() {
        check("{}", "");
        check(" \r\n\t{ } \r\n\t", "");
        check(r#"{"model":"a"}"#, r#"model="a""#);
        check(r#"{ "model" : "a" , "x" : [ ] }"#, r#"model="a""#);
        check(r#"{"x":{"model":"inner"},"model":"outer"}"#, r#"model="outer""#);
        check(
            r#"{"x":["model",{"model":1}],"stream":true,"max_tokens":1}"#,
            "stream=true max_tokens=1",
        );
        check(r#"{"model":"a\"}","stream":null}"#, r#"model="a\"}" stream=null"#);
        check(
            r#"{"model":[{"a":[]},{}],"stream":{"a":{}}}"#,
            r#"model=[{"a":[]},{}] stream={"a":{}}"#,
        );
        check(r#"{"é":"ü"}"#, r#"é="ü""#);
        check(r#"{"x":1,"x":2}"#, "");
        check(r#"{"Model":1,"model ":2,"":3,"model\u0000":4}"#, "");
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        check(
            r#"{"model":1,"model":1}"#,
            r#"the request body has "model" more than once; give it once"#,
        );
        let escaped = r#"the request body spells the key "model" with escapes; write it plainly"#;
        check(r#"{"\u006dodel":1}"#, escaped);
        check(r#"{"model":1,"mode\u006C":1}"#, escaped);
        check(
            r#"{"\u00e9":1}"#,
            r#"the request body spells the key "é" with escapes; write it plainly"#,
        );
        check(r#"{"x":{"\u006dodel":1,"model":1,"model":2}}"#, "");
        check(
            "{\"model\":\"a\0b\"}",
            "expected control characters to be escaped at byte 11",
        );
    }

    #[test]
    fn only_one_object_in_utf8() {
        check("", "expected a JSON object at byte 0");
        check(" \n", "expected a JSON object at byte 2");
        for other in ["[]", "1", "\"a\"", "null", "nonsense", "\0{", "}"] {
            check(other, "the request body must be a JSON object");
        }
        check("{}{}", "expected nothing after the object at byte 2");
        check("{} \0", "expected nothing after the object at byte 3");
        check("\u{FEFF}{}", "expected `{`, not a byte order mark, at byte 0");
        check(
            b"\xFF\xFE{\0}\0",
            "expected `{`, not a byte order mark, at byte 0",
        );
        check(b"{\0}\0", "expected a key in double quotes at byte 1");
        check(
            b"{\"a\":\"\xC3\"}",
            "the request body is not UTF-8 at byte 6; send JSON as UTF-8",
        );
        check(
            b"{\"ab\xED\xA0\x80\":1}",
            "the request body is not UTF-8 at byte 4; send JSON as UTF-8",
        );
        check(b"{\"a\":\xC3\xA9}", "expected a value at byte 5");
    }

    #[test]
    fn structure_is_checked_at_every_level() {
        check("{", "expected a key in double quotes at byte 1");
        check("{a:1}", "expected a key in double quotes at byte 1");
        check("{\"a\" 1}", "expected `:` after the key at byte 5");
        check("{\"a\":}", "expected a value at byte 5");
        check("{\"a\":1", "expected `,` or `}` at byte 6");
        check("{\"a\":1 \"b\":2}", "expected `,` or `}` at byte 7");
        check("{\"a\":1,}", "expected a key in double quotes at byte 7");
        check("{,\"a\":1}", "expected a key in double quotes at byte 1");
        check("{\"a\":[1,]}", "expected a value at byte 8");
        check("{\"a\":[1}}", "expected `,` or `]` at byte 7");
        check("{\"a\":{\"b\":1]}", "expected `,` or `}` at byte 11");
        check("{\"a\":{\"b\":1,}}", "expected a key in double quotes at byte 12");
        check("{\"a\":[[[", "expected a value at byte 8");
        check("{\"a\":1 // no\n}", "expected `,` or `}` at byte 7");
    }

    #[test]
    fn literals_and_numbers_are_checked() {
        for good in [
            "0", "-0", "10", "1.5", "-0.5e-10", "1E+9", "1e400", "true", "false", "null",
        ] {
            check(format!("{{\"a\":{good}}}"), "");
            check(format!("{{\"model\":[{good} ]}}"), &format!("model=[{good} ]"));
        }
        check("{\"a\":01}", "expected no digit after a leading zero at byte 6");
        check("{\"a\":0x1}", "expected `,` or `}` at byte 6");
        check("{\"a\":+1}", "expected a value at byte 5");
        check("{\"a\":.5}", "expected a value at byte 5");
        check("{\"a\":1.}", "expected a digit at byte 7");
        check("{\"a\":1e}", "expected a digit at byte 7");
        check("{\"a\":1e+-1}", "expected a digit at byte 8");
        check("{\"a\":-}", "expected a digit at byte 6");
        check("{\"a\":NaN}", "expected a value at byte 5");
        check("{\"a\":-Infinity}", "expected a digit at byte 6");
        check("{\"a\":tru}", "expected `true`, `false` or `null` at byte 5");
        check("{\"a\":nullx}", "expected `,` or `}` at byte 9");
    }

    #[test]
    fn strings_are_checked() {
        check(r#"{"a":"\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00"}"#, "");
        check("{\"a\":\"\u{7f}é😀\"}", "");
        check("{\"a\":\"x", "expected a closing quote at byte 7");
        check(
            "{\"a\":\"x\n\"}",
            "expected control characters to be escaped at byte 7",
        );
        let escape = "expected an escape such as `\\n` or `\\u00e9` at byte 7";
        check(r#"{"a":"\x41"}"#, escape);
        check(r#"{"a":"\"#, escape);
        check(r#"{"a":"\u12g4"}"#, "expected four hexadecimal digits at byte 10");
        check(r#"{"a":"\u12"}"#, "expected four hexadecimal digits at byte 10");
        check(
            r#"{"a":"\uD800"}"#,
            "expected the second half of a surrogate pair at byte 12",
        );
        check(
            r#"{"a":"\uD800\n"}"#,
            "expected the second half of a surrogate pair at byte 13",
        );
        check(
            r#"{"a":"\uD800\u0041"}"#,
            "expected the second half of a surrogate pair at byte 18",
        );
        check(
            r#"{"a":"\uDC00"}"#,
            "expected the first half of a surrogate pair at byte 12",
        );
    }

    #[test]
    fn depth_counts_the_body_itself() {
        let nested = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        for limit in [1, 2, 64, 65, 127, 300] {
            assert!(
                scan(nested(limit).as_bytes(), &[], limit).is_ok(),
                "{limit} of {limit}"
            );
            let deeper = scan(nested(limit + 1).as_bytes(), &[], limit);
            assert_eq!(
                deeper,
                Err(PeekError::TooDeep { at: 5 + limit - 1 }),
                "one more than {limit}"
            );
        }
        assert_eq!(scan(b"{}", &[], 0), Err(PeekError::TooDeep { at: 0 }));
        let flood = "{\"a\":".repeat(1_000_000);
        assert_eq!(
            scan(flood.as_bytes(), &[], 127),
            Err(PeekError::TooDeep { at: 5 * 127 })
        );
    }

    #[test]
    fn values_are_read() {
        let value = |raw: &str| {
            let body = format!("{{\"model\":{raw}}}");
            let object = scan(body.as_bytes(), WANTED, DEFAULT_DEPTH).unwrap();
            let field = object.get("model").unwrap();
            let text = str_value(body.as_bytes(), field).map(|text| text.into_owned());
            (text, bool_value(field), u64_value(body.as_bytes(), field))
        };
        assert_eq!(value("\"a\""), (Some("a".into()), None, None));
        assert_eq!(value("\"\""), (Some(String::new()), None, None));
        assert_eq!(
            value(r#""\u006d\uD83D\uDE00\n""#),
            (Some("m😀\n".into()), None, None)
        );
        assert_eq!(value("true"), (None, Some(true), None));
        assert_eq!(value("false"), (None, Some(false), None));
        assert_eq!(value("18446744073709551615"), (None, None, Some(u64::MAX)));
        assert_eq!(value("1e3"), (None, None, Some(1000)));
        assert_eq!(value("16.0"), (None, None, Some(16)));
        for none in ["18446744073709551616", "1e400", "-1", "1.5", "null", "[1]", "{}"] {
            assert_eq!(value(none), (None, None, None), "{none}");
        }
    }

    #[test]
    fn an_inner_object_can_be_scanned_in_place() {
        let body = br#"{"stream_options": {"include_usage": true} , "x": 1}"#;
        let outer = scan(body, &["stream_options"], DEFAULT_DEPTH).unwrap();
        let range = outer.get("stream_options").unwrap().value.clone();
        let inner = scan_at(body, range.clone(), &["include_usage"], DEFAULT_DEPTH).unwrap();
        assert_eq!((inner.open, inner.close), (range.start, range.end - 1));
        assert_eq!(inner.get("include_usage").and_then(bool_value), Some(true));
        assert!(inner.get("x").is_none());
        let outside = scan_at(body, 10..1000, &[], DEFAULT_DEPTH);
        assert!(matches!(outside, Err(PeekError::Syntax { .. })), "{outside:?}");
        let backwards = Range { start: 9, end: 3 };
        assert!(scan_at(body, backwards, &[], DEFAULT_DEPTH).is_err());
    }
}
