//! Pictures, sounds and files within JSON, where they stand as base64: written down as how long they are. Prose is
//! never taken for one: what is left out is a long run of base64 in a place where such things stand.

use std::fmt::Write;

/// Encoded bytes up to this many are left as they are.
pub const LONGEST: usize = 512;
/// What such a value is called, by OpenAI and by those who speak like it.
const KEYS: [&str; 8] = [
    "data",
    "file_data",
    "b64_json",
    "partial_image_b64",
    "result",
    "image",
    "audio",
    "url",
];

/// Writes `text` behind `out`, up to `most` bytes of it, characters whole. True = there was more.
pub fn write(text: &str, most: usize, out: &mut String) -> bool {
    let end = out.len().saturating_add(most);
    let bytes = text.as_bytes();
    // A run that is longer than a step has a byte at one of them.
    let (mut from, mut at) = (0, LONGEST);
    while at < bytes.len() {
        if !belongs(bytes, at) {
            at += LONGEST;
            continue;
        }
        let begin = at - (from..at).rev().take_while(|at| belongs(bytes, *at)).count();
        let stop = at + run(bytes.get(at..).unwrap_or_default());
        let before = text.get(from..begin).unwrap_or_default();
        if stop - begin > LONGEST && is_place(before) {
            if push(before, end, out) {
                return true;
            }
            let _ = write!(out, "[{} bytes]", (stop - begin) / 4 * 3);
            from = stop;
        }
        at = stop + LONGEST;
    }
    push(text.get(from..).unwrap_or_default(), end, out)
}

fn push(piece: &str, end: usize, out: &mut String) -> bool {
    let room = end.saturating_sub(out.len());
    out.push_str(piece.get(..piece.floor_char_boundary(room)).unwrap_or_default());
    piece.len() > room
}

fn is_encoded(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_')
}

/// Whether what stands at `at` may be of a run.
fn belongs(bytes: &[u8], at: usize) -> bool {
    let is_escape = || bytes.get(at..at + 2) == Some(b"\\/");
    bytes.get(at).is_some_and(|b| is_encoded(*b) || is_escape())
}

/// How many bytes of base64 begin here. Some write its slashes with a backslash before them.
fn run(bytes: &[u8]) -> usize {
    let mut len = 0;
    loop {
        let rest = bytes.get(len..).unwrap_or_default();
        // Many bytes at a time: pictures are long.
        let (blocks, _) = rest.as_chunks::<32>();
        let whole = |block: &&[u8; 32]| block.iter().fold(true, |so_far, b| so_far & is_encoded(*b));
        len += blocks.iter().take_while(whole).count() * 32;
        let rest = bytes.get(len..).unwrap_or_default();
        let more = rest.iter().take_while(|b| is_encoded(**b)).count();
        len += more;
        if !bytes.get(len..).unwrap_or_default().starts_with(b"\\/") {
            return len;
        }
        len += 2;
    }
}

/// Behind `before` stands what is encoded: it ends with a data URL's head, or with the key of such a value.
fn is_place(before: &str) -> bool {
    if before.ends_with(";base64,") {
        return true;
    }
    // Quotes within a text that is JSON itself have a backslash before them.
    let quote = |text: &'_ str| -> Option<usize> {
        let text = text.strip_suffix('"')?;
        Some(text.strip_suffix('\\').unwrap_or(text).len())
    };
    let key = quote(before)
        .and_then(|at| before.get(..at)?.trim_ascii_end().strip_suffix(':'))
        .map(str::trim_ascii_end)
        .and_then(|text| text.get(..quote(text)?));
    key.is_some_and(|text| {
        KEYS.iter()
            .any(|key| text.strip_suffix(key).is_some_and(|rest| rest.ends_with('"')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        let mut out = String::new();
        assert!(!write(text, usize::MAX, &mut out));
        assert_eq!(out, want);
    }

    #[test]
    fn what_is_encoded_is_told_by_its_length_wherever_it_stands() {
        for ahead in [0, 1, 100, 511, 512, 513, 5000] {
            let ahead = "a b ".repeat(ahead).chars().take(ahead).collect::<String>();
            let long = "Ab1+/_-=".repeat(500);
            for (begin, end) in [
                ("data:image/png;base64,", ") and \"more"),
                ("{\"data\":\"", "\"}"),
                ("{\"b64_json\" : \"", "\"}"),
                ("{\\\"data\\\": \\\"", "\\\"}"),
                ("\"result\":\"", ""),
            ] {
                let want = format!("{ahead}{begin}[3000 bytes]{end}");
                check(&format!("{ahead}{begin}{long}{end}"), &want);
            }
        }
        let slashes = "AAA\\/".repeat(1000);
        check(&format!("\"data\":\"{slashes}\""), "\"data\":\"[3750 bytes]\"");
        let two = format!("\"data\":\"{0}\",\"data\":\"{0}\"", "A".repeat(600));
        check(&two, "\"data\":\"[450 bytes]\",\"data\":\"[450 bytes]\"");
    }

    #[test]
    fn what_is_none_stays() {
        let long = "ACGT".repeat(1000);
        for text in [
            format!("\"content\":\"{long}\""),
            long.clone(),
            format!("metadata\":\"{long}"),
            format!(";base64,{}", "A".repeat(512)),
            "\"data\":\"word \" and é".repeat(200),
        ] {
            check(&text, &text);
        }
    }

    #[test]
    fn it_is_bounded_between_characters() {
        let mut out = String::from("x");
        assert!(write(&"é".repeat(1000), 5, &mut out));
        assert_eq!(out, "xéé");
        let picture = format!("a;base64,{} what is this?", "A".repeat(100_000));
        let mut out = String::new();
        assert!(!write(&picture, 50, &mut out), "the picture takes no room");
        assert!(out.ends_with("what is this?"));
        assert!(write(&picture, 5, &mut String::new()));
    }
}
