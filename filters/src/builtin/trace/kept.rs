//! Keeps what is answered while it flows by, up to a bound: bytes as they come, and only where there are too many of
//! them are a stream's events written in fewer pieces, since most of a stream is not what it says.

use crate::contract::cx::Kept;
use crate::model::call::Endpoint;
use crate::model::pieces::Pieces;
use crate::wire::sse::Splitter;
use bytes::Bytes;

/// Keeps as much of an answer as may be kept. `events`: it is a stream of them, an answer of this endpoint.
pub fn keep(kept: &mut Kept, chunk: &Bytes, end: bool, events: Option<Endpoint>, most: usize) {
    if chunk.is_empty() || kept.cut {
        return;
    }
    let room = most.saturating_sub(kept.pieces.len());
    if chunk.len() <= room {
        if end && kept.pieces.is_empty() {
            kept.whole = chunk.clone();
        } else {
            kept.pieces.extend_from_slice(chunk);
        }
        return;
    }
    if let Some(endpoint) = events.filter(|_| !kept.dense) {
        kept.pieces.extend_from_slice(chunk);
        kept.cut = !shorten(&mut kept.pieces, endpoint, most);
        // Another round has to make enough room to be worth its while.
        kept.dense = kept.pieces.len() > most / 4 * 3;
        return;
    }
    kept.cut = true;
    kept.pieces
        .extend_from_slice(chunk.get(..room).unwrap_or_default());
}

/// Writes the events in few pieces. False = they do not fit nevertheless, and some is gone.
fn shorten(kept: &mut Vec<u8>, endpoint: Endpoint, most: usize) -> bool {
    let mut pieces = Pieces::new(endpoint);
    let mut splitter = Splitter::default();
    splitter.push(Bytes::from(std::mem::take(kept)), |event| pieces.take(&event));
    // An event that is not over yet. One that would push the others out is let go of.
    let rest = splitter.finish().unwrap_or_default();
    let fits = rest.len() <= most / 2;
    let room = if fits { most - rest.len() } else { most };
    let whole = pieces.write(room, kept) && fits;
    if whole {
        kept.extend_from_slice(&rest);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_up_to_the_bound() {
        let mut kept = Kept::default();
        for piece in ["abc", "def", "", "ghi"] {
            keep(&mut kept, &Bytes::from(piece), false, None, 5);
        }
        assert_eq!((&kept.pieces[..], kept.cut), (&b"abcde"[..], true));
    }

    fn said(kept: Kept) -> String {
        let mut pieces = Pieces::new(Endpoint::Chat);
        let mut splitter = Splitter::default();
        splitter.push(kept.pieces.into(), |event| pieces.take(&event));
        pieces.said(kept.cut).unwrap_or_default()
    }

    #[test]
    fn a_long_stream_is_kept_in_fewer_pieces() {
        let most = 16 << 10;
        for step in [7, 100, 1_000, 100_000] {
            let (mut kept, mut want, mut events) = (Kept::default(), String::new(), String::new());
            for n in 0..2_000 {
                let word = format!("{n} ");
                let padding = "x".repeat(200);
                events += &format!(
                    "data: {{\"id\":\"{padding}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{word}\"}}}}]}}\r\n\r\n"
                );
                want += &word;
            }
            for chunk in events.as_bytes().chunks(step) {
                keep(
                    &mut kept,
                    &Bytes::copy_from_slice(chunk),
                    false,
                    Some(Endpoint::Chat),
                    most,
                );
                assert!(kept.pieces.len() <= most);
            }
            assert!(!kept.cut, "{step}");
            let want = format!("{{\"role\":\"assistant\",\"content\":\"{want}\"}}");
            assert_eq!(said(kept), want, "{step}");
        }
    }

    #[test]
    fn one_that_says_too_much_is_cut_and_says_so() {
        for step in [10, 1_000, 1 << 20] {
            let mut kept = Kept::default();
            let event = "data: {\"choices\":[{\"delta\":{\"content\":\"word \"}}]}\n\n";
            let events = event.repeat(10_000);
            for chunk in events.as_bytes().chunks(step) {
                keep(
                    &mut kept,
                    &Bytes::copy_from_slice(chunk),
                    false,
                    Some(Endpoint::Chat),
                    4_096,
                );
            }
            assert!(kept.cut && kept.pieces.len() <= 4_096);
            let said = said(kept);
            assert!(
                said.len() > 1_000 && said.ends_with("… [cut]\"}"),
                "{step}: {said}"
            );
        }
    }
}
