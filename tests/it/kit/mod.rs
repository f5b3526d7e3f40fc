//! What the tests stand on: real parts, started and ended here.

pub mod client;
pub mod gateway;
pub mod postgres;
pub mod process;
pub mod receiver;
pub mod redis;
pub mod upstream;

use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine; a test that waits this long has failed. Still shorter than the
/// gateway leaves an idle connection open, so that nothing is taken for an end that it made of itself.
pub const LONG: Duration = Duration::from_secs(60);

/// Looks again and again until it is so.
pub async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while !so().await {
        assert!(Instant::now() < deadline, "still not so: {what}");
        look.tick().await;
    }
}

/// Waits for something that must happen.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LONG, work).await {
        Ok(done) => done,
        Err(_) => panic!("it did not happen: {what}"),
    }
}

/// For tests that count days, UTC: the last minute of one is waited out, so that today stays today.
pub async fn away_from_midnight() {
    let mut look = tokio::time::interval(Duration::from_millis(500));
    while jiff::Timestamp::now().as_second().rem_euclid(86_400) >= 86_400 - 60 {
        look.tick().await;
    }
}

/// Bytes that no two places of the same text share, so that a lost or doubled piece shows.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Text to stand in JSON, no two stretches of it alike.
pub fn letters(len: usize) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz012345";
    let block: String = noise(len.min(1 << 16))
        .into_iter()
        .map(|b| char::from(LETTERS[usize::from(b & 31)]))
        .collect();
    let mut out = String::with_capacity(len + block.len() + 8);
    for n in 0.. {
        if out.len() >= len {
            break;
        }
        out.push_str(&format!("{n:08}{block}"));
    }
    out.truncate(len);
    out
}
