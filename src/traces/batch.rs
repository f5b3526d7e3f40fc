//! Calls on their way into one parcel: spans or events behind each other, until there are enough of them.

use super::proto;
use super::send::{Format, Parcel};
use super::stats::Share;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// A parcel this large goes out without waiting for more, bytes before compression.
const ENOUGH: usize = 1 << 20;
/// No parcel becomes larger than this, unless a single call is, bytes.
const LARGEST: usize = 2 << 20;
/// Smaller parcels are not compressed.
const SMALL: usize = 1 << 10;
/// What a parcel unpacks to at most.
const UNPACKED: u64 = 16 << 20;

/// What is said of the gateway itself in every parcel.
pub struct Sender {
    /// Attributes of the resource.
    pub resource: Vec<(String, String)>,
    /// The parcels go through the internet, where bytes cost more than time.
    pub compress: bool,
}

/// A parcel being filled. What is written stays where it is until it is sent.
pub struct Batch {
    format: Format,
    /// Room for what comes first, then the calls.
    body: Vec<u8>,
    room: usize,
    /// Where the last call begins.
    last: usize,
    calls: u64,
    share: Share,
}

impl Batch {
    /// `likely`: bytes that the one before had.
    pub fn new(format: Format, sender: &Sender, held: &Arc<AtomicUsize>, likely: usize) -> Self {
        let room = match format {
            Format::Otlp => envelope(sender, usize::MAX >> 1).len(),
            Format::Legacy => LEGACY.len(),
        };
        // Somewhat more, so that it need not move for the last one.
        let mut body = Vec::with_capacity((likely + likely / 8).clamp(room, LARGEST));
        body.resize(room, 0);
        Self {
            format,
            body,
            room,
            last: room,
            calls: 0,
            share: Share::of(held, 0),
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_empty(&self) -> bool {
        self.calls == 0
    }

    /// There is enough in it.
    pub fn is_enough(&self) -> bool {
        self.bytes() >= ENOUGH
    }

    pub fn bytes(&self) -> usize {
        self.body.len() - self.room
    }

    /// Adds the spans or events of a call: `write` puts them behind what is there.
    pub fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.format == Format::Legacy && self.calls > 0 {
            self.body.push(b',');
        }
        self.last = self.body.len();
        write(&mut self.body);
        self.calls += 1;
        self.share.set(self.bytes());
    }

    /// Gives back the last call if it has made this one too large; it is the first of the next.
    pub fn overflow(&mut self, sender: &Sender, held: &Arc<AtomicUsize>) -> Option<Self> {
        if self.calls < 2 || self.bytes() <= LARGEST {
            return None;
        }
        let mut next = Self::new(self.format, sender, held, ENOUGH);
        next.add(|out| out.extend_from_slice(self.body.get(self.last..).unwrap_or_default()));
        let comma = usize::from(self.format == Format::Legacy);
        self.body.truncate(self.last - comma);
        self.calls -= 1;
        self.share.set(self.bytes());
        Some(next)
    }

    /// Makes a parcel of it, and says of how many calls. `small`: it may have to wait, so it is made small
    /// whatever that costs.
    pub fn pack(mut self, sender: &Sender, small: bool) -> (Parcel, u64) {
        let calls = self.calls;
        let begin = match self.format {
            Format::Otlp => envelope(sender, self.bytes()),
            Format::Legacy => LEGACY.to_vec(),
        };
        if self.format == Format::Legacy {
            self.body.extend_from_slice(&super::legacy::closing(calls));
        }
        // It ends where the calls begin; the longest one fills the room.
        let from = self.room.saturating_sub(begin.len());
        if let Some(room) = self.body.get_mut(from..self.room) {
            room.copy_from_slice(&begin);
        }
        let plain = Bytes::from(std::mem::take(&mut self.body)).slice(from..);
        let packed = ((sender.compress || small) && plain.len() > SMALL)
            .then(|| gzip(&plain))
            .flatten();
        let gzip = packed.is_some();
        let parcel = Parcel {
            format: self.format,
            bytes: packed.map_or(plain, Bytes::from),
            gzip,
        };
        (parcel, calls)
    }
}

const LEGACY: &[u8] = b"{\"batch\":[";

/// What stands before so many bytes of spans.
fn envelope(sender: &Sender, spans: usize) -> Vec<u8> {
    let resource: Vec<(&str, &str)> = sender
        .resource
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    proto::envelope(&resource, ("tollkeeper", env!("CARGO_PKG_VERSION")), spans)
}

/// Packs it; None where that fails.
pub fn gzip(plain: &[u8]) -> Option<Vec<u8>> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(plain).ok()?;
    let mut packed = out.finish().ok()?;
    // It may wait for long.
    packed.shrink_to_fit();
    Some(packed)
}

/// What a packed parcel holds.
pub fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    GzDecoder::new(bytes).take(UNPACKED).read_to_end(&mut out).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;

    fn sender() -> Sender {
        Sender {
            resource: vec![("service.name".into(), "tollkeeper".into())],
            compress: true,
        }
    }

    #[test]
    fn parcels_are_packed_and_read_again() {
        let held = Arc::new(AtomicUsize::new(0));
        let waits = || held.load(std::sync::atomic::Ordering::Relaxed);
        let mut sender = sender();
        // A span with nothing but a name of 2 KiB.
        let span = [&b"\x12\x83\x10\x2a\x80\x10"[..], &[b'x'; 2048]].concat();
        let spans = |sender: &Sender, many: usize| {
            let mut batch = Batch::new(Format::Otlp, sender, &held, 0);
            assert!(batch.is_empty());
            (0..many).for_each(|_| batch.add(|out| out.extend_from_slice(&span)));
            assert_eq!(waits(), span.len() * many);
            let (parcel, calls) = batch.pack(sender, false);
            assert_eq!((waits(), calls, parcel.gzip), (0, many as u64, sender.compress));
            let plain = if parcel.gzip {
                unpacked(&parcel.bytes).unwrap()
            } else {
                parcel.bytes.to_vec()
            };
            let read = ExportTraceServiceRequest::decode(&plain[..]).unwrap();
            assert_eq!(read.encoded_len(), plain.len(), "and nothing else is in it");
            (
                read.resource_spans[0].scope_spans[0].spans.len(),
                parcel.bytes.len(),
            )
        };
        let (many, bytes) = spans(&sender, 2);
        assert!(many == 2 && bytes < 1000);
        sender.compress = false;
        assert_eq!((spans(&sender, 1).0, spans(&sender, 100).0), (1, 100));
        assert!(unpacked(b"nonsense").is_none());
    }

    #[test]
    fn events_are_a_list() {
        let held = Arc::new(AtomicUsize::new(0));
        let mut batch = Batch::new(Format::Legacy, &sender(), &held, 0);
        for events in [r#"{"id":"a"},{"id":"b"}"#, r#"{"id":"c"}"#] {
            batch.add(|out| out.extend_from_slice(events.as_bytes()));
        }
        let (parcel, _) = batch.pack(&sender(), true);
        assert!(!parcel.gzip, "it is small as it is");
        let read: serde_json::Value = serde_json::from_slice(&parcel.bytes).unwrap();
        assert_eq!(read["batch"].as_array().unwrap().len(), 3);
        assert!(read["metadata"].is_object());
    }

    #[test]
    fn a_parcel_has_a_largest_size() {
        let held = Arc::new(AtomicUsize::new(0));
        let add = |batch: &mut Batch, text: &str, bytes: usize| {
            let id = text.repeat(bytes);
            batch.add(|out| out.extend_from_slice(format!("{{\"id\":\"{id}\"}}").as_bytes()));
        };
        let mut batch = Batch::new(Format::Legacy, &sender(), &held, 0);
        add(&mut batch, "a", 2 * LARGEST);
        assert!(
            batch.is_enough() && batch.overflow(&sender(), &held).is_none(),
            "a single call goes whatever its size"
        );
        add(&mut batch, "b", 10);
        let next = batch.overflow(&sender(), &held).unwrap();
        for (batch, first) in [(batch, "a"), (next, "b")] {
            let (parcel, calls) = batch.pack(&sender(), false);
            let plain = unpacked(&parcel.bytes).unwrap_or_else(|| parcel.bytes.to_vec());
            let read: serde_json::Value = serde_json::from_slice(&plain).unwrap();
            assert_eq!((calls, read["batch"].as_array().unwrap().len()), (1, 1));
            assert!(read["batch"][0]["id"].as_str().unwrap().starts_with(first));
        }
        assert_eq!(held.load(std::sync::atomic::Ordering::Relaxed), 0);
    }
}
