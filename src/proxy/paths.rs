//! The one judge of request paths. What is judged is what is acted on: an odd spelling is refused,
//! never repaired, so no two parts of the gateway can read one path differently.

use filters::model::call::Endpoint;

/// What a path of the OpenAI API means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Api {
    /// A model call; the model when the path names one.
    Call(Endpoint, Option<String>),
    /// The list of models.
    Models,
    /// One model.
    Model(String),
}

impl Api {
    /// The methods it answers to.
    pub fn methods(&self) -> &'static [&'static str] {
        match self {
            Api::Call(..) => &["POST"],
            Api::Models | Api::Model(_) => &["GET", "HEAD"],
        }
    }
}

/// Says why a path is refused: None = it has exactly one reading.
pub fn odd(path: &str) -> Option<&'static str> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') && path != "*" {
        return Some("it does not begin with a slash");
    }
    // The id of a model may hold a slash or a dot, so only there may they be escaped.
    let holds_id = ["/models/", "/v1/models/", "/openai/v1/models/"]
        .iter()
        .any(|p| path.starts_with(p));
    let (mut empty, mut dots) = (false, false);
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        match b {
            b'/' => {
                let next = bytes.get(at + 1);
                empty |= next == Some(&b'/');
                dots |= next == Some(&b'.');
            }
            b'\\' | b';' | b'#' => return Some("it holds a character that others read as a separator"),
            0..=0x20 | 0x7f.. => return Some("it holds a character that must be escaped"),
            b'%' => {
                let hex = |i: usize| bytes.get(at + i).and_then(|c| char::from(*c).to_digit(16));
                let (Some(hi), Some(lo)) = (hex(1), hex(2)) else {
                    return Some("it holds a % that begins no escape");
                };
                match (hi << 4 | lo) as u8 {
                    b'/' | b'.' if holds_id => {}
                    b'/' | b'\\' | b'.' | b'%' | b';' | b'#' | b'?' => {
                        return Some("it escapes a character that others read as a separator");
                    }
                    0..0x20 | 0x7f => return Some("it escapes a control character"),
                    _ => {}
                }
                at += 2;
            }
            _ => {}
        }
        at += 1;
    }
    if empty {
        return Some("it holds an empty segment (//)");
    }
    if dots && path.split('/').any(|s| s == "." || s == "..") {
        return Some("it holds a dot segment");
    }
    None
}

/// Reads a path of the OpenAI API, with and without `/v1`. The path has been judged.
pub fn api(path: &str) -> Option<Api> {
    let path = path.strip_suffix('/').filter(|p| !p.is_empty()).unwrap_or(path);
    let rest = below(path, "/openai/v1")
        .or_else(|| below(path, "/v1"))
        .unwrap_or(path);
    if rest == "/models" {
        return Some(Api::Models);
    }
    if let Some(id) = rest.strip_prefix("/models/") {
        return unescape(id).map(Api::Model);
    }
    if let Some(endpoint) = Endpoint::ALL.into_iter().find(|e| e.path() == rest) {
        return Some(Api::Call(endpoint, None));
    }
    let named = ["/engines/", "/openai/deployments/"]
        .iter()
        .find_map(|p| rest.strip_prefix(p))?;
    Endpoint::ALL.into_iter().find_map(|e| {
        let model = named.strip_suffix(e.path())?;
        // `/engines/x/chat/completions` also ends with `/completions`; the model would be `x/chat`.
        let shorter = e == Endpoint::Completions && named.ends_with(Endpoint::Chat.path());
        (!model.is_empty() && !shorter)
            .then(|| unescape(model))
            .flatten()
            .map(|m| Api::Call(e, Some(m)))
    })
}

/// The part of `path` below `prefix`; the prefix ends at a segment.
pub fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.starts_with('/'))
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let hi = char::from(bytes.next()?).to_digit(16)?;
            let lo = char::from(bytes.next()?).to_digit(16)?;
            out.push((hi << 4 | lo) as u8);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn odd_spellings_are_refused() {
        for path in [
            "//key/generate",
            "/tts/../key/generate",
            "/tts/./x",
            "/tts/%2e%2e/key/generate",
            "/tts%2f..%2fkey",
            "/key;/generate",
            "/key\\generate",
            "/key%5cgenerate",
            "/key%00",
            "/key%0a",
            "/%252e%252e/",
            "/k%c",
            "/k%",
            "/kéy",
            "key",
            "",
            "/a b",
            "/v1/models/%00",
            "/v1/models/..",
            "/x/..",
        ] {
            assert!(odd(path).is_some(), "{path} must be refused");
        }
        for path in [
            "/",
            "/v1/models",
            "/v1/models/a%2Fb",
            "/v1/models/gpt-4.1",
            "/tts/v1/audio/speech",
            "/a%20b",
            "*",
        ] {
            assert_eq!(odd(path), None, "{path}");
        }
    }

    #[test]
    fn paths_of_the_api() {
        let call = |e, m: Option<&str>| Some(Api::Call(e, m.map(Into::into)));
        let check = |path: &str, want: Option<Api>| assert_eq!(api(path), want, "{path}");
        check("/v1/chat/completions", call(Endpoint::Chat, None));
        check("/chat/completions", call(Endpoint::Chat, None));
        check("/openai/v1/chat/completions", call(Endpoint::Chat, None));
        check("/chat/completions/", call(Endpoint::Chat, None));
        check("/v1/completions", call(Endpoint::Completions, None));
        check(
            "/engines/gpt-4/chat/completions",
            call(Endpoint::Chat, Some("gpt-4")),
        );
        check(
            "/engines/org/model/completions",
            call(Endpoint::Completions, Some("org/model")),
        );
        check(
            "/v1/engines/gpt-4/embeddings",
            call(Endpoint::Embeddings, Some("gpt-4")),
        );
        check(
            "/openai/deployments/x/images/generations",
            call(Endpoint::Images, Some("x")),
        );
        check("/models", Some(Api::Models));
        check("/v1/models/", Some(Api::Models));
        check("/v1/models/org%2Fm", Some(Api::Model("org/m".into())));
        check("/v1/models/org/m", Some(Api::Model("org/m".into())));
        check("/V1/chat/completions", None);
        check("/v1chat/completions", None);
        check("/v1", None);
        check("/", None);
        check("/engines//completions", None);
    }

    /// What a server makes of a path that normalizes it in every way known: escapes, twice; backslashes;
    /// parameters; empty and dot segments; what ends at a NUL, a `?` or a `#`.
    fn normal(path: &str) -> String {
        let mut bytes = path.as_bytes().to_vec();
        for _ in 0..2 {
            let mut out = Vec::new();
            let mut at = 0;
            while let Some(&b) = bytes.get(at) {
                let hex = |i: usize| bytes.get(at + i).and_then(|c| char::from(*c).to_digit(16));
                match (b, hex(1), hex(2)) {
                    (b'%', Some(hi), Some(lo)) => {
                        out.push((hi << 4 | lo) as u8);
                        at += 3;
                    }
                    _ => {
                        out.push(b);
                        at += 1;
                    }
                }
            }
            bytes = out;
        }
        let text = String::from_utf8_lossy(&bytes).replace('\\', "/");
        let text = text
            .split(['\0', '?', '#'])
            .next()
            .unwrap_or_default()
            .to_string();
        let mut out: Vec<&str> = Vec::new();
        for segment in text.split('/') {
            match segment
                .split(';')
                .next()
                .unwrap_or_default()
                .trim_matches(|c: char| c.is_control() || c == ' ')
            {
                "" | "." => {}
                ".." => drop(out.pop()),
                other => out.push(other),
            }
        }
        format!("/{}", out.join("/"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]

        /// Whoever reads a path in another way reads no other lane into it: a path is refused, or all
        /// readings lead to the same place.
        #[test]
        fn every_reading_of_a_path_that_is_taken_is_the_same(
            pieces in proptest::collection::vec(
                proptest::sample::select(vec![
                    "/", "/", "/", "/", "key", "key", "generate", "tts", "tts", "v1", "models", "chat", "completions", ".",
                    "..", "...", "//", "%2e", "%2E%2e", "%2f", "%2F", "%5c", "%5C", "\\", "%25", "%252e", "%252f", ";",
                    ";a=b", "%3b", "%00", "%0a", "%20", "%41", "%6b", "%", "%2", "#", "%23", "%3f", "?", "\u{e4}", "%c3%a4",
                    "~", "*",
                ]),
                0..9,
            ),
        ) {
            let path = format!("/{}", pieces.concat());
            let path = path.split('?').next().unwrap_or_default();
            let decision = odd(path);
            prop_assert_eq!(odd(path), decision, "the same each time");
            if decision.is_none() {
                let plain = path.trim_end_matches('/');
                let is_id = ["/models/", "/v1/models/", "/openai/v1/models/"].iter().any(|p| path.starts_with(p));
                // Letters may be escaped: the lane is found by what is written, and what is written goes on.
                let mut written = String::new();
                let mut rest = plain;
                while let Some((before, after)) = rest.split_once('%') {
                    written.push_str(before);
                    let (hex, more) = after.split_at(2);
                    written.push_str(&String::from_utf8_lossy(&[u8::from_str_radix(hex, 16).unwrap()]));
                    rest = more;
                }
                written.push_str(rest);
                if !is_id && !path.contains("%c3") && !path.contains("%20") {
                    let read = normal(path);
                    prop_assert_eq!(read.trim_end_matches('/'), written.trim_end_matches('/'), "{}", path);
                }
                if let Some(Api::Model(id)) = api(path) {
                    prop_assert!(!id.contains(|c: char| c.is_control() || "\\;#%?".contains(c)), "{path}: {id:?}");
                }
            }
        }
    }
}
