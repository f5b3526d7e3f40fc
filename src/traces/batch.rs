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
/// No parcel becomes larger, unless a single call is, bytes.
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

/// A parcel being filled.
pub struct Batch {
    format: Format,
    body: Vec<u8>,
    calls: u64,
    share: Share,
}

impl Batch {
    pub fn new(format: Format, held: &Arc<AtomicUsize>) -> Self {
        Self {
            format,
            body: Vec::new(),
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
        self.body.len() >= ENOUGH
    }

    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// Whether a call of so many bytes still fits.
    pub fn fits(&self, bytes: usize) -> bool {
        self.is_empty() || self.body.len() + bytes <= LARGEST
    }

    /// Adds the spans or events of a call.
    pub fn add(&mut self, call: &[u8]) {
        if self.format == Format::Legacy && !self.body.is_empty() {
            self.body.push(b',');
        }
        self.body.extend_from_slice(call);
        self.calls += 1;
        self.share.set(self.body.len());
    }

    /// Makes a parcel of what is in it, and says of how many calls; the batch is empty then. `small`: it may
    /// have to wait, so it is made small whatever that costs.
    pub fn pack(&mut self, sender: &Sender, small: bool) -> (Parcel, u64) {
        let body = std::mem::take(&mut self.body);
        let calls = std::mem::take(&mut self.calls);
        self.share.set(0);
        let (begin, end) = match self.format {
            Format::Otlp => {
                let resource: Vec<(&str, &str)> = sender
                    .resource
                    .iter()
                    .map(|(n, v)| (n.as_str(), v.as_str()))
                    .collect();
                let scope = ("tollkeeper", env!("CARGO_PKG_VERSION"));
                (proto::envelope(&resource, scope, body.len()), Vec::new())
            }
            Format::Legacy => (b"{\"batch\":[".to_vec(), super::legacy::closing(calls)),
        };
        let parts = [&begin[..], &body, &end];
        let packed = ((sender.compress || small) && body.len() > SMALL)
            .then(|| gzip(&parts))
            .flatten();
        let gzip = packed.is_some();
        let bytes = packed.map_or_else(|| parts.concat().into(), Bytes::from);
        let parcel = Parcel {
            format: self.format,
            bytes,
            gzip,
        };
        (parcel, calls)
    }
}

fn gzip(parts: &[&[u8]]) -> Option<Vec<u8>> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    parts.iter().try_for_each(|part| out.write_all(part)).ok()?;
    out.finish().ok()
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
        let mut batch = Batch::new(Format::Otlp, &held);
        // A span with nothing but a name of 2 KiB.
        let span = [&b"\x12\x83\x10\x2a\x80\x10"[..], &[b'x'; 2048]].concat();
        batch.add(&span);
        batch.add(&span);
        assert_eq!(held.load(std::sync::atomic::Ordering::Relaxed), span.len() * 2);
        let (parcel, calls) = batch.pack(&sender(), false);
        assert!(batch.is_empty() && calls == 2 && parcel.gzip && parcel.bytes.len() < 1000);
        assert_eq!(held.load(std::sync::atomic::Ordering::Relaxed), 0);
        let plain = unpacked(&parcel.bytes).unwrap();
        let read = ExportTraceServiceRequest::decode(&plain[..]).unwrap();
        assert_eq!(read.resource_spans[0].scope_spans[0].spans.len(), 2);
        assert!(unpacked(b"nonsense").is_none());
    }

    #[test]
    fn events_are_a_list() {
        let held = Arc::new(AtomicUsize::new(0));
        let mut batch = Batch::new(Format::Legacy, &held);
        batch.add(br#"{"id":"a"},{"id":"b"}"#);
        batch.add(br#"{"id":"c"}"#);
        let (parcel, _) = batch.pack(&sender(), true);
        assert!(!parcel.gzip, "it is small as it is");
        let read: serde_json::Value = serde_json::from_slice(&parcel.bytes).unwrap();
        assert_eq!(read["batch"].as_array().unwrap().len(), 3);
        assert!(read["metadata"].is_object());
    }

    #[test]
    fn a_parcel_has_a_largest_size() {
        let held = Arc::new(AtomicUsize::new(0));
        let mut batch = Batch::new(Format::Otlp, &held);
        assert!(batch.fits(100 << 20), "a single call goes whatever its size");
        batch.add(&[0; ENOUGH]);
        assert!(batch.is_enough() && batch.fits(ENOUGH) && !batch.fits(LARGEST));
    }
}
