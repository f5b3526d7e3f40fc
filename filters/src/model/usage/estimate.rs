//! Tokens by our own count, where nobody tells: by bytes of text.

use super::MOST;
use memchr::memmem;
use std::sync::LazyLock;

/// Input tokens of so many bytes of text: one per four bytes, rounded up, at least one. English is close to
/// that, other languages are in bytes too: fewer letters per token, more bytes per letter.
pub fn estimate_prompt(body_text_bytes: usize) -> u64 {
    by_bytes(body_text_bytes).clamp(1, MOST)
}

/// Input tokens of a JSON body, in which files sent along as base64 are not counted as the text they are
/// spelled in: no model reads them so. Linear in the body's length.
pub fn estimate_prompt_of(body: &[u8]) -> u64 {
    // A file that fits into so little counts by its bytes, as text does.
    if body.len() <= LONGEST_WORD {
        return estimate_prompt(body.len());
    }
    let (mut bytes, mut tokens) = (body.len(), 0u64);
    let mut set_apart = |run: usize| {
        bytes = bytes.saturating_sub(run);
        tokens = tokens.saturating_add(by_bytes(run).min(INLINE_FILE));
    };
    // Runs end at the first byte that is no base64 and both marks hold such bytes, so no byte is looked
    // at as part of two runs of a kind; and a run of one kind cannot begin where the other's does.
    for at in DATA_URI.find_iter(body) {
        let head = body
            .get(at.saturating_sub(LONGEST_MEDIA_TYPE)..at)
            .unwrap_or_default();
        let head = match memchr::memrchr(b'"', head) {
            Some(quote) => head.get(quote + 1..).unwrap_or_default(),
            None => head,
        };
        if memmem::find(head, b"data:").is_some() {
            set_apart(base64_run(
                body.get(at + DATA_URI.needle().len()..).unwrap_or_default(),
            ));
        }
    }
    for at in DATA_FIELD.find_iter(body) {
        let rest = body.get(at + DATA_FIELD.needle().len()..).unwrap_or_default();
        let rest = rest.trim_ascii_start().strip_prefix(b":").unwrap_or_default();
        let run = base64_run(rest.trim_ascii_start().strip_prefix(b"\"").unwrap_or_default());
        if run > LONGEST_WORD {
            set_apart(run);
        }
    }
    by_bytes(bytes).saturating_add(tokens).clamp(1, MOST)
}

/// What a file within a prompt is taken for, tokens: about a large picture. A small one counts by its bytes.
const INLINE_FILE: u64 = 1_500;
/// How far before `;base64,` the `data:` of its URI may stand, bytes.
const LONGEST_MEDIA_TYPE: usize = 128;
/// A `data` field with fewer bytes of base64 than this may be text.
const LONGEST_WORD: usize = 4 * 1024;

static DATA_URI: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(";base64,"));
static DATA_FIELD: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("\"data\""));

/// How many bytes from the start are base64, or its URL form, as JSON may spell it.
fn base64_run(text: &[u8]) -> usize {
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_');
    let mut run = 0;
    loop {
        // Whole blocks first and without leaving early, which the compiler turns into wide instructions:
        // these runs are megabytes long.
        let rest = text.get(run..).unwrap_or_default();
        let (blocks, _) = rest.as_chunks::<64>();
        run += 64
            * blocks
                .iter()
                .take_while(|block| block.iter().fold(true, |all, b| all & is_base64(b)))
                .count();
        let rest = text.get(run..).unwrap_or_default();
        run += rest.iter().take_while(|b| is_base64(b)).count();
        // Some writers escape the slash.
        if text.get(run..).is_some_and(|rest| rest.starts_with(b"\\/")) {
            run += 2;
        } else {
            return run;
        }
    }
}

/// Output tokens of so many bytes of text in so many content deltas: one per four bytes, but at least one per
/// delta, because no provider streams less than a token at a time.
pub fn estimate_completion(text_bytes: usize, deltas: u64) -> u64 {
    by_bytes(text_bytes).max(deltas).min(MOST)
}

fn by_bytes(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(4)).unwrap_or(MOST)
}
