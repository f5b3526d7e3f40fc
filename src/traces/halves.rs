//! A parcel that is too large for its receiver, cut in two between calls. Langfuse takes what is sent here; a proxy
//! in front of it often takes a megabyte and no more.

use super::batch;
use super::proto;
use super::send::{Format, Parcel};
use serde_json::Value;

/// Two parcels of the same, and how many calls are in each.
pub struct Halves {
    pub parts: [(Parcel, u64); 2],
    /// Bytes of the whole before it was packed.
    pub whole: usize,
}

/// None = there is a single call in it, or it cannot be read.
pub fn of(parcel: &Parcel) -> Option<Halves> {
    let unpacked;
    let plain = match parcel.gzip {
        true => {
            unpacked = batch::unpacked(&parcel.bytes)?;
            &unpacked[..]
        }
        false => &parcel.bytes[..],
    };
    let parts = match parcel.format {
        Format::Otlp => spans(plain)?,
        Format::Legacy => events(plain)?,
    };
    let parts = parts.map(|(bytes, calls)| {
        let packed = parcel.gzip.then(|| batch::gzip(&bytes)).flatten();
        let part = Parcel {
            format: parcel.format,
            gzip: packed.is_some(),
            bytes: packed.unwrap_or(bytes).into(),
        };
        (part, calls)
    });
    Some(Halves {
        parts,
        whole: plain.len(),
    })
}

/// Where the second half begins: with the call that comes behind the middle, or the last one. `calls` says where
/// calls begin.
fn seam(sizes: &[usize], calls: &[usize]) -> Option<usize> {
    let middle = sizes.iter().sum::<usize>() / 2;
    let mut so_far = 0;
    let behind: Vec<usize> = sizes
        .iter()
        .map(|size| {
            so_far += size;
            so_far - size
        })
        .collect();
    let at = calls
        .iter()
        .find(|at| behind.get(**at).is_some_and(|b| *b >= middle));
    at.or(calls.last()).copied().filter(|at| *at > 0)
}

fn spans(plain: &[u8]) -> Option<[(Vec<u8>, u64); 2]> {
    let request = proto::Request::read(plain)?;
    let sizes: Vec<usize> = request.spans.iter().map(|span| span.len()).collect();
    let begins = |at: &usize| request.spans.get(*at).is_some_and(|span| proto::is_server(span));
    let calls: Vec<usize> = (0..sizes.len()).filter(begins).collect();
    let at = seam(&sizes, &calls)?;
    let (first, second) = request.spans.split_at_checked(at)?;
    let count = calls.iter().filter(|call| **call < at).count() as u64;
    Some([
        (request.with(first), count),
        (request.with(second), calls.len() as u64 - count),
    ])
}

fn events(plain: &[u8]) -> Option<[(Vec<u8>, u64); 2]> {
    let mut whole: Value = serde_json::from_slice(plain).ok()?;
    let mut first = std::mem::take(whole.get_mut("batch")?.as_array_mut()?);
    let sizes: Vec<usize> = first.iter().map(|event| event.to_string().len()).collect();
    let begins = |at: &usize| first.get(*at).is_some_and(|e| e["type"] == "trace-create");
    let calls: Vec<usize> = (0..sizes.len()).filter(begins).collect();
    let at = seam(&sizes, &calls)?;
    let second = first.split_off(at);
    let count = calls.iter().filter(|call| **call < at).count() as u64;
    let mut part = |events: Vec<Value>, calls: u64| {
        whole["metadata"]["batch_size"] = calls.into();
        whole["batch"] = events.into();
        (whole.to_string().into_bytes(), calls)
    };
    Some([part(first, count), part(second, calls.len() as u64 - count)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::batch::{Batch, Sender};
    use crate::traces::langfuse::{Flavour, Scratch};
    use crate::traces::story::Story;
    use crate::traces::{legacy, sample};
    use filters::model::trace::Capture;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;
    use std::sync::Arc;

    fn parcel(format: Format, compress: bool, calls: u64) -> Parcel {
        let flavour = Flavour {
            environment: None,
            release: None,
            redact_keys: false,
            default_tags: Vec::new(),
            capture: Capture::Full,
            otlp_capture: Capture::Off,
            max_bytes: 1000,
        };
        let sender = Sender {
            resource: vec![("service.name".into(), "tollkeeper".into())],
            compress,
        };
        let mut batch = Batch::new(format, &sender, &Arc::default(), 0);
        for n in 0..calls {
            let mut trace = sample::trace();
            trace.request_id = format!("call-{n}");
            let story = Story::of(&trace, Capture::Full, 1000);
            batch.add(|out| match format {
                Format::Otlp => flavour.write(&story, &mut Scratch::default(), out),
                Format::Legacy => legacy::write(&flavour, &story, out),
            });
        }
        batch.pack(&sender, false).0
    }

    fn plain(parcel: &Parcel) -> Vec<u8> {
        match parcel.gzip {
            true => batch::unpacked(&parcel.bytes).unwrap(),
            false => parcel.bytes.to_vec(),
        }
    }

    /// Spans or events.
    fn pieces(parcel: &Parcel) -> usize {
        let bytes = plain(parcel);
        match parcel.format {
            Format::Otlp => {
                let read = ExportTraceServiceRequest::decode(&bytes[..]).unwrap();
                assert_eq!(read.encoded_len(), bytes.len(), "nothing else is in it");
                let resource = &read.resource_spans[0];
                assert_eq!(resource.resource.as_ref().unwrap().attributes.len(), 1);
                assert!(resource.scope_spans[0].scope.is_some());
                resource.scope_spans[0].spans.len()
            }
            Format::Legacy => {
                let read: Value = serde_json::from_slice(&bytes).unwrap();
                assert_eq!(read["metadata"]["sdk_name"], "tollkeeper");
                read["batch"].as_array().unwrap().len()
            }
        }
    }

    #[test]
    fn calls_stay_whole_and_each_is_in_one_half() {
        for format in [Format::Otlp, Format::Legacy] {
            for compress in [false, true] {
                let whole = parcel(format, compress, 7);
                let halves = of(&whole).unwrap();
                assert_eq!(halves.whole, plain(&whole).len());
                let [(first, some), (second, others)] = &halves.parts;
                assert_eq!(some + others, 7);
                assert!(some.abs_diff(*others) == 1, "{some} and {others}");
                // Three pieces of each call.
                assert_eq!(
                    (pieces(first) as u64, pieces(second) as u64),
                    (3 * some, 3 * others)
                );
                assert_eq!(first.gzip, whole.gzip);
                let ids = |p: &Parcel| {
                    (0..7)
                        .filter(|n| {
                            let id = format!("call-{n}");
                            memchr::memmem::find(&plain(p), id.as_bytes()).is_some()
                        })
                        .collect::<Vec<_>>()
                };
                let both = [ids(first), ids(second)].concat();
                assert_eq!(both, [0, 1, 2, 3, 4, 5, 6]);
                let two = of(&parcel(format, compress, 2)).unwrap();
                assert_eq!(two.parts.map(|(_, calls)| calls), [1, 1]);
                assert!(of(&parcel(format, compress, 1)).is_none());
            }
        }
        let broken = Parcel {
            format: Format::Otlp,
            bytes: bytes::Bytes::from_static(b"nonsense"),
            gzip: false,
        };
        assert!(of(&broken).is_none());
    }
}
