//! Writes spans as OTLP has them in protobuf, straight into bytes and in one pass. Knows the wire and no
//! attribute's meaning.

/// What a span is to the one above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Server = 2,
    Client = 3,
}

/// What identifies a span and says when it was. Times are microseconds since 1970.
pub struct Frame<'a> {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    pub parent: Option<[u8; 8]>,
    pub state: Option<&'a str>,
    pub name: &'a str,
    pub kind: Kind,
    pub started_micros: i64,
    pub ended_micros: i64,
}

/// One span being written, behind whatever is in the buffer. Nothing is allocated but what grows that.
pub struct Span<'b> {
    out: &'b mut Vec<u8>,
    /// Where its length goes.
    at: usize,
}

const SPAN_ATTRIBUTE: u8 = 9;
const RESOURCE_ATTRIBUTE: u8 = 1;
/// Bytes kept free for a span's length, which is known at its end: most have 128 to 16,383 of them.
const LENGTH_ROOM: usize = 2;

impl<'b> Span<'b> {
    /// Begins a span of a `ScopeSpans`.
    pub fn begin(out: &'b mut Vec<u8>, frame: &Frame<'_>) -> Self {
        key(out, 2, 2);
        let at = out.len();
        out.extend_from_slice(&[0; LENGTH_ROOM]);
        bytes(out, 1, &frame.trace);
        bytes(out, 2, &frame.span);
        if let Some(state) = frame.state {
            bytes(out, 3, state.as_bytes());
        }
        if let Some(parent) = &frame.parent {
            bytes(out, 4, parent);
        }
        bytes(out, 5, frame.name.as_bytes());
        out.extend_from_slice(&[6 << 3, frame.kind as u8]);
        let nanos = |micros: i64| u64::try_from(micros).unwrap_or(0).saturating_mul(1000);
        fixed64(out, 7, nanos(frame.started_micros));
        fixed64(out, 8, nanos(frame.ended_micros.max(frame.started_micros)));
        Self { out, at }
    }

    /// Attributes alone, for [`Span::same`] on several spans.
    pub fn attributes(out: &'b mut Vec<u8>) -> Self {
        let at = out.len();
        Self { out, at }
    }

    /// Attributes that were written before.
    pub fn same(&mut self, attributes: &[u8]) {
        self.out.extend_from_slice(attributes);
    }

    #[inline]
    pub fn text(&mut self, name: &str, value: &str) {
        text(self.out, SPAN_ATTRIBUTE, name, value);
    }

    /// Nothing when there is nothing.
    #[inline]
    pub fn some(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    pub fn texts<'v>(&mut self, name: &str, values: impl Iterator<Item = &'v str> + Clone) {
        // ArrayValue { values: AnyValue { string_value } }, each of which needs its length first.
        let each = |v: &str| field_len(v.len());
        let array: usize = values.clone().map(|v| field_len(each(v))).sum();
        let any = field_len(array);
        attribute(self.out, SPAN_ATTRIBUTE, name, any);
        key(self.out, 5, 2);
        varint(self.out, array as u64);
        for value in values {
            key(self.out, 1, 2);
            varint(self.out, each(value) as u64);
            bytes(self.out, 1, value.as_bytes());
        }
    }

    #[inline]
    pub fn int(&mut self, name: &str, value: u64) {
        attribute(self.out, SPAN_ATTRIBUTE, name, 1 + varint_len(value));
        key(self.out, 3, 0);
        varint(self.out, value);
    }

    pub fn float(&mut self, name: &str, value: f64) {
        attribute(self.out, SPAN_ATTRIBUTE, name, 9);
        fixed64(self.out, 4, value.to_bits());
    }

    pub fn flag(&mut self, name: &str, value: bool) {
        attribute(self.out, SPAN_ATTRIBUTE, name, 2);
        key(self.out, 2, 0);
        self.out.push(u8::from(value));
    }

    /// The span ended in an error.
    pub fn failed(&mut self, message: &str) {
        let len = field_len(message.len()) + 2;
        key(self.out, 15, 2);
        varint(self.out, len as u64);
        bytes(self.out, 2, message.as_bytes());
        key(self.out, 3, 0);
        self.out.push(2);
    }

    /// Writes its length before it.
    pub fn end(self) {
        let room = self.at..self.at + LENGTH_ROOM;
        let len = self.out.len().saturating_sub(room.end);
        if let (0x80..0x4000, Some([low, high])) = (len, self.out.get_mut(room.clone())) {
            (*low, *high) = (len as u8 | 0x80, (len >> 7) as u8);
        } else {
            let mut digits = Vec::new();
            varint(&mut digits, len as u64);
            self.out.splice(room, digits);
        }
    }
}

/// The beginning of an export request for `spans` bytes of spans: these follow it.
pub fn envelope(resource: &[(&str, &str)], scope: (&str, &str), spans: usize) -> Vec<u8> {
    let mut attributes = Vec::new();
    for (name, value) in resource {
        text(&mut attributes, RESOURCE_ATTRIBUTE, name, value);
    }
    let mut scope_fields = Vec::new();
    bytes(&mut scope_fields, 1, scope.0.as_bytes());
    bytes(&mut scope_fields, 2, scope.1.as_bytes());
    let scope_spans = field_len(scope_fields.len()) + spans;
    let resource_spans = field_len(attributes.len()) + field_len(scope_spans);
    let mut out = Vec::with_capacity(64 + attributes.len() + scope_fields.len());
    key(&mut out, 1, 2);
    varint(&mut out, resource_spans as u64);
    bytes(&mut out, 1, &attributes);
    key(&mut out, 2, 2);
    varint(&mut out, scope_spans as u64);
    bytes(&mut out, 1, &scope_fields);
    out
}

/// An export request, as far as it is one of ours: one resource, one scope, and spans.
pub struct Request<'a> {
    resource: &'a [u8],
    scope: &'a [u8],
    pub spans: Vec<&'a [u8]>,
}

impl<'a> Request<'a> {
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let inner = |message: &'a [u8], field: u64| {
            let found = fields(message).find(|f| f.0 == field)?;
            match found.1 {
                Value::Bytes(bytes) => Some(bytes),
                Value::Number(_) => None,
            }
        };
        let of_resource = inner(bytes, 1)?;
        let of_scope = inner(of_resource, 2)?;
        let spans = fields(of_scope).filter_map(|f| match f {
            (2, Value::Bytes(span)) => Some(span),
            _ => None,
        });
        Some(Self {
            resource: inner(of_resource, 1)?,
            scope: inner(of_scope, 1)?,
            spans: spans.collect(),
        })
    }

    /// The same with other spans.
    pub fn with(&self, spans: &[&[u8]]) -> Vec<u8> {
        let spans_len: usize = spans.iter().map(|span| field_len(span.len())).sum();
        let of_scope = field_len(self.scope.len()) + spans_len;
        let of_resource = field_len(self.resource.len()) + field_len(of_scope);
        let mut out = Vec::with_capacity(field_len(of_resource));
        key(&mut out, 1, 2);
        varint(&mut out, of_resource as u64);
        bytes(&mut out, 1, self.resource);
        key(&mut out, 2, 2);
        varint(&mut out, of_scope as u64);
        bytes(&mut out, 1, self.scope);
        spans.iter().for_each(|span| bytes(&mut out, 2, span));
        out
    }
}

/// Whether a span is of the kind that each call has one of.
pub fn is_server(span: &[u8]) -> bool {
    fields(span).any(|f| matches!(f, (6, Value::Number(kind)) if kind == Kind::Server as u64))
}

/// What a receiver did not take of what it took: spans, and why. None = it took all, or says nothing that
/// can be read.
pub fn partial_success(answer: &[u8]) -> Option<(u64, String)> {
    let partial = fields(answer).find(|f| f.0 == 1).and_then(|f| match f.1 {
        Value::Bytes(bytes) => Some(bytes),
        Value::Number(_) => None,
    })?;
    let (mut rejected, mut why) = (0, String::new());
    for (number, value) in fields(partial) {
        match (number, value) {
            (1, Value::Number(n)) => rejected = n,
            (2, Value::Bytes(text)) => why = String::from_utf8_lossy(text).into_owned(),
            _ => {}
        }
    }
    (rejected > 0).then_some((rejected, why))
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, as far as it can be read.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    std::iter::from_fn(move || {
        let tag = read_varint(&mut rest)?;
        let value = match tag & 7 {
            0 => Value::Number(read_varint(&mut rest)?),
            1 => {
                let (fixed, more) = rest.split_at_checked(8)?;
                rest = more;
                Value::Number(u64::from_le_bytes(fixed.try_into().ok()?))
            }
            2 => {
                let len = usize::try_from(read_varint(&mut rest)?).ok()?;
                let (bytes, more) = rest.split_at_checked(len)?;
                rest = more;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        Some((tag >> 3, value))
    })
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, more) = rest.split_first()?;
        *rest = more;
        n |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

/// A text attribute: KeyValue { key, AnyValue { string_value } }.
#[inline]
fn text(out: &mut Vec<u8>, field: u8, name: &str, value: &str) {
    attribute(out, field, name, field_len(value.len()));
    bytes(out, 1, value.as_bytes());
}

/// The beginning of an attribute whose value takes `any` bytes.
#[inline]
fn attribute(out: &mut Vec<u8>, field: u8, name: &str, any: usize) {
    let whole = field_len(name.len()) + field_len(any);
    if whole < 0x80 {
        // Nearly always: every length is one byte.
        out.extend_from_slice(&[field << 3 | 2, whole as u8, 1 << 3 | 2, name.len() as u8]);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&[2 << 3 | 2, any as u8]);
        return;
    }
    key(out, field, 2);
    varint(out, whole as u64);
    bytes(out, 1, name.as_bytes());
    key(out, 2, 2);
    varint(out, any as u64);
}

/// Bytes that a field with `len` bytes in it takes. All field numbers here are below 16.
fn field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

fn varint_len(n: u64) -> usize {
    (70 - (n | 1).leading_zeros() as usize) / 7
}

fn key(out: &mut Vec<u8>, field: u8, wire: u8) {
    out.push(field << 3 | wire);
}

#[inline]
fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

#[inline]
fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    if value.len() < 0x80 {
        out.extend_from_slice(&[field << 3 | 2, value.len() as u8]);
    } else {
        key(out, field, 2);
        varint(out, value.len() as u64);
    }
    out.extend_from_slice(value);
}

fn fixed64(out: &mut Vec<u8>, field: u8, n: u64) {
    key(out, field, 1);
    out.extend_from_slice(&n.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    };
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
    use prost::Message;

    #[test]
    fn what_is_written_is_read_by_others() {
        let mut spans = Vec::new();
        // Lengths of two, of three and of one byte.
        for (n, long) in [(0u8, 300), (1, 10_000), (2, 0)] {
            let frame = Frame {
                trace: [7; 16],
                span: [n + 1; 8],
                parent: (n > 0).then_some([1; 8]),
                state: Some("a=b"),
                name: "name",
                kind: Kind::Client,
                started_micros: 1_000_000,
                ended_micros: 2_000_000,
            };
            let mut s = Span::begin(&mut spans, &frame);
            if long == 0 {
                s.end();
                continue;
            }
            s.text("text", &"é".repeat(long));
            s.texts("tags", ["a", "bb", ""].into_iter());
            s.int("int", u64::from(u32::MAX) * 300);
            s.float("float", 0.5);
            s.flag("flag", true);
            s.failed("why");
            s.end();
        }
        let mut whole = envelope(&[("service.name", "x")], ("scope", "1"), spans.len());
        whole.extend_from_slice(&spans);
        let read = ExportTraceServiceRequest::decode(&whole[..]).unwrap();
        assert_eq!(read.encoded_len(), whole.len(), "nothing is left out");
        let resource = &read.resource_spans[0];
        assert_eq!(
            resource.resource.as_ref().unwrap().attributes[0].key,
            "service.name"
        );
        let scope = &resource.scope_spans[0];
        assert_eq!(scope.scope.as_ref().unwrap().name, "scope");
        assert_eq!((scope.spans.len(), scope.spans[2].attributes.len()), (3, 0));
        let s = &scope.spans[1];
        assert_eq!(
            (s.parent_span_id.as_slice(), s.kind, s.trace_state.as_str()),
            (&[1; 8][..], 3, "a=b")
        );
        assert_eq!(
            (s.start_time_unix_nano, s.end_time_unix_nano),
            (1_000_000_000, 2_000_000_000)
        );
        let status = s.status.as_ref().unwrap();
        assert_eq!((status.code, status.message.as_str()), (2, "why"));
        let values: Vec<_> = s
            .attributes
            .iter()
            .map(|a| a.value.as_ref().unwrap().value.clone().unwrap())
            .collect();
        let Any::ArrayValue(tags) = &values[1] else {
            panic!("{values:?}")
        };
        assert_eq!(tags.values.len(), 3);
        assert_eq!(values[0], Any::StringValue("é".repeat(10_000)));
        assert_eq!(values[2], Any::IntValue(i64::from(u32::MAX) * 300));
        assert_eq!(values[3], Any::DoubleValue(0.5));
        assert_eq!(values[4], Any::BoolValue(true));
    }

    #[test]
    fn partial_successes_are_read() {
        let answer = ExportTraceServiceResponse {
            partial_success: Some(ExportTracePartialSuccess {
                rejected_spans: 3,
                error_message: "no".into(),
            }),
        };
        let answer = answer.encode_to_vec();
        assert_eq!(partial_success(&answer), Some((3, "no".into())));
        assert_eq!(partial_success(b""), None);
        assert_eq!(partial_success(b"{}"), None);
        for cut in 0..answer.len() {
            let _ = partial_success(&answer[..cut]);
        }
    }
}
