//! One finished call as it is told to those who watch: what was asked, what came of each attempt, what it
//! used. Plain data. Nothing here is encoded, sent, or shortened to fit; that is the exporters' business.

use super::call::Endpoint;
use super::deployment::Deployment;
use super::key::Caller;
use super::record::Status;
use super::usage::Usage;
use bytes::Bytes;
use smallvec::SmallVec;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use uuid::Uuid;

/// How much of a call is told. The order is that of indiscretion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capture {
    /// Nothing: the call is not traced at all.
    #[default]
    Off,
    /// Everything but what was said.
    Metadata,
    /// What was said, too.
    Full,
}

impl Capture {
    /// As it is written in configs and in the metadata of keys and teams.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "off" => Some(Capture::Off),
            "metadata" => Some(Capture::Metadata),
            "full" => Some(Capture::Full),
            _ => None,
        }
    }
}

/// A trace's id, as W3C has it. Never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

/// A span's id, as W3C has it. Never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

impl TraceId {
    pub fn random() -> Self {
        Self(Uuid::new_v4().into_bytes())
    }

    /// 32 lowercase hexadecimal digits, not all of them zero.
    pub fn from_hex(text: &str) -> Option<Self> {
        unhex(text.as_bytes()).filter(|id| *id != [0; 16]).map(Self)
    }

    /// Where the trace stands among all traces, from 0 to just below 1: by its last 56 bits, as
    /// OpenTelemetry samples.
    pub fn share(&self) -> f64 {
        let last = self.0.iter().skip(9).fold(0u64, |n, b| (n << 8) | u64::from(*b));
        last as f64 / (1u64 << 56) as f64
    }
}

impl SpanId {
    pub fn random() -> Self {
        // The last seven bytes of a random UUID are random, and so is its first.
        let b = Uuid::new_v4().into_bytes();
        Self([b[9], b[10], b[11], b[12], b[13], b[14], b[15], b[0] | 1])
    }

    /// 16 lowercase hexadecimal digits, not all of them zero.
    pub fn from_hex(text: &str) -> Option<Self> {
        unhex(text.as_bytes()).filter(|id| *id != [0; 8]).map(Self)
    }
}

/// Exactly `N` bytes from twice as many lowercase digits.
fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if text.len() != N * 2 {
        return None;
    }
    let mut out = [0; N];
    for (slot, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let (hi, lo) = (digit(*pair.first()?)?, digit(*pair.get(1)?)?);
        *slot = hi << 4 | lo;
    }
    Some(out)
}

/// Two digits for each byte; `text` has room for exactly that.
fn write_hex(bytes: &[u8], text: &mut [u8]) {
    let digit = |n: u8| n + if n < 10 { b'0' } else { b'a' - 10 };
    for (pair, b) in text.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[digit(b >> 4), digit(b & 15)]);
    }
}

/// The same as text: nothing in it is not a digit.
fn hex_in<'t>(bytes: &[u8], text: &'t mut [u8]) -> &'t str {
    write_hex(bytes, text);
    std::str::from_utf8(text).unwrap_or_default()
}

impl TraceId {
    /// As W3C writes it, where the caller has room for it.
    pub fn hex_in<'t>(&self, text: &'t mut [u8; 32]) -> &'t str {
        hex_in(&self.0, text)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(hex_in(&self.0, &mut [0; 32]))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(hex_in(&self.0, &mut [0; 32]))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(hex_in(&self.0, &mut [0; 16]))
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(hex_in(&self.0, &mut [0; 16]))
    }
}

/// Longest `tracestate` that is passed on, bytes; W3C asks for at least 512.
const LONGEST_STATE: usize = 512;

/// Bytes of a `traceparent` as it is written here.
pub const PARENT_LEN: usize = 55;

/// Where a call stands in its caller's trace, or in one that begins with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: TraceId,
    /// The caller's span; None = the trace begins here.
    pub parent: Option<SpanId>,
    /// The caller records its trace. True where it begins here.
    pub sampled: bool,
    /// `tracestate`, as it came.
    pub state: Option<Box<str>>,
}

impl Context {
    /// The headers that carry it, and what applications tell each other along with it.
    pub const HEADERS: [&str; 3] = ["traceparent", "tracestate", "baggage"];

    /// A trace that begins here.
    pub fn begin() -> Self {
        Self {
            trace: TraceId::random(),
            parent: None,
            sampled: true,
            state: None,
        }
    }

    /// What a `traceparent` says. None = it is not one, and W3C wants a new trace then.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let text = traceparent.trim();
        let [version, trace, parent, flags] = [0..2, 3..35, 36..52, 53..55].map(|r| text.get(r));
        let (version, flags) = (
            unhex::<1>(version?.as_bytes())?[0],
            unhex::<1>(flags?.as_bytes())?[0],
        );
        let dashes = [2, 35, 52]
            .iter()
            .all(|at| text.as_bytes().get(*at) == Some(&b'-'));
        // Later versions may say more behind a further dash.
        let ends = match version {
            0 => text.len() == 55,
            255 => false,
            _ => text.len() == 55 || text.as_bytes().get(55) == Some(&b'-'),
        };
        (dashes && ends).then_some(())?;
        Some(Self {
            trace: TraceId::from_hex(trace?)?,
            parent: Some(SpanId::from_hex(parent?)?),
            sampled: flags & 1 == 1,
            state: None,
        })
    }

    /// Takes a `tracestate` in, if it is one that may be passed on.
    pub fn with_state(mut self, state: &str) -> Self {
        let fits = (1..=LONGEST_STATE).contains(&state.len());
        if fits && state.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)) {
            self.state = Some(state.into());
        }
        self
    }

    /// `traceparent` for whoever stands below `span`, written where the caller has room for it; also what
    /// `traceresponse` says.
    pub fn parent_in<'t>(&self, span: SpanId, text: &'t mut [u8; PARENT_LEN]) -> &'t str {
        // Written on every call, so without the formatter.
        *text = *b"00-                                -                -01";
        let [trace, parent] = [3..35, 36..52];
        if let Some(text) = text.get_mut(trace) {
            write_hex(&self.trace.0, text);
        }
        if let Some(text) = text.get_mut(parent) {
            write_hex(&span.0, text);
        }
        if !self.sampled
            && let Some(flag) = text.last_mut()
        {
            *flag = b'0';
        }
        std::str::from_utf8(text).unwrap_or_default()
    }
}

/// One try at one deployment.
#[derive(Clone, Debug)]
pub struct Try {
    pub span: SpanId,
    pub deployment: Arc<Deployment>,
    /// As the upstream was asked for it.
    pub model: String,
    /// Microseconds since 1970.
    pub started_micros: i64,
    pub ended_micros: i64,
    /// HTTP status, or 0 when no answer came.
    pub status: u16,
    /// Why it was given up, for people: never an address, never a key. None = it answered.
    pub error: Option<String>,
}

/// What was asked.
#[derive(Clone, Debug)]
pub enum Input {
    /// Fields of a JSON body: their names, and where their values stand in it.
    Fields {
        body: Bytes,
        fields: SmallVec<[(&'static str, Range<usize>); 4]>,
    },
    /// The same as JSON text, of a body that is too long to be kept: pictures and sounds are told by their length.
    Short {
        text: String,
        /// There was more.
        cut: bool,
    },
}

/// What was answered, as the client got it.
#[derive(Clone, Debug)]
pub struct Output {
    pub bytes: Bytes,
    /// Server-sent events, and not one JSON text.
    pub event_stream: bool,
    /// There was more.
    pub cut: bool,
}

/// What headers said of a trace, under the names of `metadata`; each name once.
pub type Hints = Vec<(Box<str>, Box<str>)>;

/// A call that is over. Times are microseconds since 1970, UTC; money is nano-dollars.
#[derive(Clone, Debug)]
pub struct Trace {
    pub request_id: String,
    pub context: Context,
    /// The span of the call itself.
    pub root: SpanId,
    pub capture: Capture,
    /// Somebody who may asked for this call's content to be left out.
    pub redacted: bool,
    pub lane: Arc<str>,
    pub caller: Caller,
    pub endpoint: Endpoint,
    pub stream: bool,
    pub requested_model: String,
    /// The configured name it was routed by; empty when there is none.
    pub model_group: String,
    /// The request's `user`.
    pub end_user: Option<String>,
    pub tags: Vec<String>,
    /// The request's `metadata` as JSON text, as the caller wrote it: any shape.
    pub metadata: Option<Bytes>,
    /// What headers said of the trace, under the names of `metadata`; each name once.
    pub hints: Hints,
    /// Parameters of the call, as one JSON object.
    pub parameters: String,
    pub user_agent: Option<String>,
    pub started_micros: i64,
    /// The answer's first piece that says something; its first byte where that cannot be told.
    pub began_micros: Option<i64>,
    pub ended_micros: i64,
    pub tries: Vec<Try>,
    pub status: Status,
    /// Status the client saw (499 = it left before one).
    pub http_status: u16,
    pub error: Option<String>,
    /// The same for machines, from a short fixed list.
    pub error_kind: Option<&'static str>,
    pub usage: Option<Usage>,
    /// None = not priced.
    pub cost_nanos: Option<i64>,
    pub input: Option<Input>,
    pub output: Option<Output>,
}

impl Trace {
    /// Bytes it takes in memory, rather too many than too few.
    pub fn weight(&self) -> usize {
        /// For what allocations take besides their content.
        const EACH: usize = 32;
        let tries: usize = self
            .tries
            .iter()
            .map(|t| size_of::<Try>() + EACH + t.model.len() + t.error.as_ref().map_or(0, String::len))
            .sum();
        let hints: usize = self.hints.iter().map(|(n, v)| n.len() + v.len() + 3 * EACH).sum();
        let tags: usize = self.tags.iter().map(|t| t.len() + 2 * EACH).sum();
        let input = match &self.input {
            // Read buffers may be larger than what was read into them.
            Some(Input::Fields { body, .. }) => body.len() * 2,
            Some(Input::Short { text, .. }) => text.len(),
            None => 0,
        };
        let texts = [
            self.request_id.len(),
            self.requested_model.len(),
            self.model_group.len(),
            self.parameters.len(),
            self.end_user.as_ref().map_or(0, String::len),
            self.user_agent.as_ref().map_or(0, String::len),
            self.error.as_ref().map_or(0, String::len),
            self.metadata.as_ref().map_or(0, Bytes::len),
            self.output.as_ref().map_or(0, |o| o.bytes.len() * 2),
        ];
        let texts: usize = texts.iter().map(|len| len + EACH).sum();
        size_of::<Trace>() + texts + tries + hints + tags + input
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn contexts_are_read_and_written() {
        let context = Context::parse(PARENT).unwrap();
        assert!(context.sampled);
        let parent = context.parent.unwrap();
        assert_eq!(context.parent_in(parent, &mut [0; PARENT_LEN]), PARENT);
        let silent = Context {
            sampled: false,
            ..context.clone()
        };
        assert!(silent.parent_in(parent, &mut [0; PARENT_LEN]).ends_with("-00"));
        assert!(!Context::parse(&PARENT.replace("-01", "-00")).unwrap().sampled);
        assert!(Context::parse(&format!("01{}-more", &PARENT[2..])).is_some());
        for bad in [
            "",
            "00",
            &PARENT[..54],
            &format!("{PARENT}0"),
            &format!("{PARENT}-x"),
            &PARENT.replace("00-4", "ff-4"),
            &PARENT.to_uppercase(),
            &PARENT.replace('-', "_"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &"é".repeat(40),
        ] {
            assert_eq!(Context::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn states_that_cannot_be_headers_are_left_out() {
        let with = |s: &str| Context::begin().with_state(s).state.is_some();
        assert!(with("a=b,c=d"));
        for bad in ["", "a=\n", "a=é", &"a".repeat(513)] {
            assert!(!with(bad), "{bad:?}");
        }
    }

    #[test]
    fn ids_are_there_and_spread() {
        let mut low = 0;
        for _ in 0..1000 {
            let id = TraceId::random();
            assert_eq!(TraceId::from_hex(&id.to_string()), Some(id));
            let span = SpanId::random();
            assert_eq!(SpanId::from_hex(&span.to_string()), Some(span));
            low += usize::from(id.share() < 0.25);
        }
        assert!((150..350).contains(&low), "a quarter of a thousand: {low}");
    }
}
