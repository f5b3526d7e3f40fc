//! How a record lies in a spool file, and how to find the next one behind damage.
//!
//! A frame is the payload's length (u32, little endian), the payload's CRC-32 (u32, little endian) and the
//! payload: the record, see [`super::codec`].

use super::codec;
use filters::model::record::Record;
use std::io;

pub const HEADER: usize = 8;
/// Longest payload. A cleaned record stays far below it.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Writes the record's frame over `buffer`.
pub fn encode(record: &Record, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    buffer.extend_from_slice(&[0; HEADER]);
    codec::encode(record, buffer);
    let payload = buffer.get(HEADER..).unwrap_or_default();
    if payload.len() > MAX_PAYLOAD {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the record is too large to be kept",
        ));
    }
    let length = (payload.len() as u32).to_le_bytes();
    let crc = crc32fast::hash(payload).to_le_bytes();
    for (slot, byte) in buffer.iter_mut().zip(length.into_iter().chain(crc)) {
        *slot = byte;
    }
    Ok(())
}

/// What stands at the beginning of some bytes of a spool file.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A whole frame of `len` bytes with this payload.
    Frame { payload: &'a [u8], len: usize },
    /// `len` bytes that are no frame; a frame, or the end, follows.
    Bad { len: usize },
    /// As `Bad`, but it looks like a frame whose end was never written. Nothing follows.
    Torn { len: usize },
    /// Too few bytes to tell.
    More,
}

/// Reads one step. `last` says that nothing follows these bytes in the file; otherwise
/// `HEADER + MAX_PAYLOAD` bytes are always enough not to be asked for more.
pub fn step(bytes: &[u8], last: bool) -> Step<'_> {
    match whole(bytes) {
        Ok(payload) => {
            return Step::Frame {
                payload,
                len: HEADER + payload.len(),
            };
        }
        Err(Flaw::Short) if !last => return Step::More,
        Err(_) => {}
    }
    let mut at = 1;
    while at + HEADER < bytes.len() {
        match whole(bytes.get(at..).unwrap_or_default()) {
            Ok(_) => return Step::Bad { len: at },
            Err(Flaw::Short) if !last => return Step::Bad { len: at },
            Err(_) => at += 1,
        }
    }
    if !last {
        return Step::Bad { len: at };
    }
    match whole(bytes) {
        Err(Flaw::Short) => Step::Torn { len: bytes.len() },
        _ => Step::Bad { len: bytes.len() },
    }
}

enum Flaw {
    /// Could become a frame with more bytes.
    Short,
    Wrong,
}

fn whole(bytes: &[u8]) -> Result<&[u8], Flaw> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Err(Flaw::Short);
    };
    let length = u32::from_le_bytes(*length) as usize;
    // Records hold no zero bytes in their text: text seldom passes for a header.
    if !(2..=MAX_PAYLOAD).contains(&length) {
        return Err(Flaw::Wrong);
    }
    let Some((crc, rest)) = rest.split_first_chunk::<4>() else {
        return Err(Flaw::Short);
    };
    if rest
        .first()
        .is_some_and(|first| !matches!(*first, codec::FORMAT | codec::JSON))
    {
        return Err(Flaw::Wrong);
    }
    let payload = rest.get(..length).ok_or(Flaw::Short)?;
    if crc32fast::hash(payload) == u32::from_le_bytes(*crc) {
        Ok(payload)
    } else {
        Err(Flaw::Wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &str) -> Vec<u8> {
        let mut out = (payload.len() as u32).to_le_bytes().to_vec();
        out.extend(crc32fast::hash(payload.as_bytes()).to_le_bytes());
        out.extend(payload.as_bytes());
        out
    }

    #[test]
    fn every_cut_is_torn_and_every_flip_is_found() {
        let one = frame(r#"{"a":1}"#);
        for cut in 1..one.len() {
            assert_eq!(step(&one[..cut], true), Step::Torn { len: cut }, "cut at {cut}");
            assert_eq!(step(&one[..cut], false), Step::More, "cut at {cut}");
        }
        let two = [one.clone(), frame(r#"{"b":2}"#)].concat();
        for at in 0..one.len() {
            let mut bytes = two.clone();
            bytes[at] ^= 0x11;
            assert_eq!(step(&bytes, true), Step::Bad { len: one.len() }, "flip at {at}");
            let rest = step(&bytes[one.len()..], true);
            assert!(matches!(rest, Step::Frame { payload, .. } if payload == br#"{"b":2}"#));
        }
        assert!(matches!(step(&two, false), Step::Frame { len, .. } if len == one.len()));
    }

    #[test]
    fn noise_is_skipped_within_bounds() {
        let mut bytes = vec![0xff; 100];
        bytes.extend(frame("{}"));
        assert_eq!(step(&bytes, true), Step::Bad { len: 100 });
        assert_eq!(step(&[0xff; 100], true), Step::Bad { len: 100 });
        assert!(matches!(step(&[0xff; 100], false), Step::Bad { len } if len > 80));
    }
}
