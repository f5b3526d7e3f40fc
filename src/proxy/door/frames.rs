//! Counts the HTTP/2 frames of a client that do nothing: pings, settings, resets, empty data. Each costs
//! the client a few bytes and us an answer or a task, so there is a bound to how many are taken.
//!
//! The frames' meaning is the business of the HTTP/2 library, which also bounds what one frame may hold; here
//! only their first nine bytes are looked at, as they pass.

use std::time::Instant;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;

/// `burst` at once, and `rate` more per second.
struct Allowance {
    burst: f64,
    rate: f64,
    left: f64,
}

impl Allowance {
    const fn new(burst: f64, rate: f64) -> Self {
        Self {
            burst,
            rate,
            left: burst,
        }
    }

    fn gain(&mut self, seconds: f64) {
        self.left = (self.left + self.rate * seconds).min(self.burst);
    }

    fn take(&mut self) -> bool {
        self.left -= 1.0;
        self.left >= 0.0
    }
}

/// Looks at one connection's bytes.
pub struct Frames {
    kind: Kind,
    /// Bytes of the preface seen, or of the frame's head that is being read.
    have: usize,
    head: [u8; HEAD],
    /// Bytes of the frame's payload that are still to come.
    payload: usize,
    /// Pings, settings, priorities, empty data, pieces of heads, unknown frames.
    idle: Allowance,
    /// Requests taken back. A client with 100 streams may drop all of them, and again.
    resets: Allowance,
    /// Room for more data, and data in crumbs: both are used well by slow or careful clients.
    crumbs: Allowance,
    gained: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unknown,
    Http1,
    Http2,
}

impl Frames {
    pub fn new() -> Self {
        Self {
            kind: Kind::Unknown,
            have: 0,
            head: [0; HEAD],
            payload: 0,
            idle: Allowance::new(1_000.0, 50.0),
            resets: Allowance::new(500.0, 50.0),
            crumbs: Allowance::new(20_000.0, 5_000.0),
            gained: Instant::now(),
        }
    }

    /// Takes note of what the client sent. False = it is a flood.
    pub fn are_fine(&mut self, mut bytes: &[u8]) -> bool {
        if self.kind == Kind::Http1 {
            return true;
        }
        if self.kind == Kind::Unknown {
            let due = PREFACE.get(self.have..).unwrap_or_default();
            let n = due.len().min(bytes.len());
            if bytes.get(..n) != due.get(..n) {
                self.kind = Kind::Http1;
                return true;
            }
            self.have += n;
            if self.have < PREFACE.len() {
                return true;
            }
            self.kind = Kind::Http2;
            self.have = 0;
            bytes = bytes.get(n..).unwrap_or_default();
        }
        let mut fresh = false;
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            while self.have < HEAD
                && let Some((first, rest)) = bytes.split_first()
            {
                if let Some(slot) = self.head.get_mut(self.have) {
                    *slot = *first;
                }
                self.have += 1;
                bytes = rest;
            }
            if self.have == HEAD {
                self.have = 0;
                if !std::mem::replace(&mut fresh, true) {
                    self.gain();
                }
                if !self.frame() {
                    return false;
                }
            }
        }
        true
    }

    fn gain(&mut self) {
        let now = Instant::now();
        let seconds = now.duration_since(self.gained).as_secs_f64();
        self.gained = now;
        for allowance in [&mut self.idle, &mut self.resets, &mut self.crumbs] {
            allowance.gain(seconds);
        }
    }

    fn frame(&mut self) -> bool {
        const SMALL: usize = 64;
        let [a, b, c, kind, flags, ..] = self.head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.payload = length;
        let last = flags & 1 != 0;
        match kind {
            // Data: nothing at all, a crumb, or what it is for.
            0 if length == 0 && !last => self.idle.take(),
            0 if length < SMALL && !last => self.crumbs.take(),
            0 | 1 => true,
            3 => self.resets.take(),
            8 => self.crumbs.take(),
            _ => self.idle.take(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut out = length[1..].to_vec();
        out.extend([kind, flags, 0, 0, 0, 1]);
        out.extend(payload);
        out
    }

    fn begun() -> Frames {
        let mut frames = Frames::new();
        assert!(frames.are_fine(PREFACE));
        frames
    }

    #[test]
    fn a_flood_is_seen_however_it_is_cut() {
        for (kind, flags, payload, most) in [
            (6, 0, &[0; 8][..], 1_100),
            (4, 0, &[], 1_100),
            (2, 0, &[0; 5], 1_100),
            (9, 0, &[], 1_100),
            (0, 0, &[], 1_100),
            (0xbe, 0, &[1, 2, 3], 1_100),
            (3, 0, &[0; 4], 600),
            (8, 0, &[0; 4], 25_000),
            (0, 0, &[1], 25_000),
        ] {
            for piece in [1, 7, 4096] {
                let mut frames = begun();
                let flood = frame(kind, flags, payload).repeat(most);
                let seen = flood.chunks(piece).all(|c| frames.are_fine(c));
                assert!(!seen, "frames of kind {kind} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn what_clients_do_is_fine() {
        let mut frames = begun();
        let request = frame(1, 5, &[0x82; 40]);
        let body = frame(0, 0, &[7; 16_384]);
        let end = frame(0, 1, &[]);
        for n in 0..5_000 {
            assert!(frames.are_fine(&request));
            assert!(frames.are_fine(&body));
            assert!(frames.are_fine(&end));
            assert!(frames.are_fine(&frame(8, 0, &[0; 4])), "{n}");
        }
        // A hundred streams dropped, four times over.
        assert!(frames.are_fine(&frame(3, 0, &[0; 4]).repeat(400)));
    }

    #[test]
    fn http_1_is_none_of_its_business() {
        let mut frames = Frames::new();
        assert!(frames.are_fine(b"P"));
        assert!(frames.are_fine(b"OST / HTTP/1.1\r\n"));
        assert!(frames.are_fine(&frame(6, 0, &[0; 8]).repeat(5_000)));
    }
}
