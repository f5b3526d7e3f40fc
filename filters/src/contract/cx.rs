//! The state of one request. Typed; each field has one writer, named here.

use super::call::Call;
use super::fields::Fields;
use super::ports::{Admitted, Catalog, Wanted};
use crate::dialects::StreamTranslator;
use crate::model::deployment::Deployment;
use crate::model::key::Caller;
use crate::model::price::ServiceTier;
use crate::model::record::Attempt;
use crate::model::trace::{Context, Hints, Input, SpanId, TraceId};
use crate::model::usage::Usage;
use crate::wire::sse::Splitter;
use bytes::Bytes;
use http::Extensions;
use smallvec::SmallVec;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// One request, from its head to its last byte.
pub struct Cx {
    /// Our own id, unique whatever the client sends. Written by the driver.
    pub request_id: String,
    /// The lane's name. Written by the driver.
    pub lane: Arc<str>,
    /// Whether the lane wants a key: `required`, `internal` (none from internal networks), `open`.
    pub auth: Auth,
    pub started: Instant,
    /// Microseconds since 1970. Written by the driver.
    pub started_micros: i64,
    /// Who the client is, by the one rule for that. Written by the driver.
    pub client_ip: IpAddr,
    /// Bounded. Written by the driver.
    pub user_agent: Option<String>,
    /// The client's address lies within the configured internal networks. Written by the driver.
    pub internal: bool,
    /// What the path is for, as far as a key may be confined to it. Written by the driver.
    pub purpose: Purpose,
    /// Written by `auth`.
    pub caller: Caller,
    /// Written by the driver once the body is read; `access` resolves its `model`.
    pub call: Option<Call>,
    /// The models of this request's snapshot. Written by the driver.
    pub catalog: Arc<dyn Catalog>,
    /// What the call holds of everybody's limits. Written by `limits`; settled by it, or by its own drop.
    pub admitted: Option<Box<dyn Admitted>>,
    /// What it holds still of those that its first model was counted by, once it goes on with another. Written by `limits`.
    pub place: Option<Box<dyn Admitted>>,
    /// How the limits stand, for the answer's head: added to it behind what the filters made of it. Written by
    /// `limits`.
    pub standings: Fields,
    /// The deployment of the current attempt. Written by the driver.
    pub deployment: Option<Arc<Deployment>>,
    /// The model name that the current attempt sent. Written by the driver.
    pub upstream_model: String,
    /// Attempts given up, and the one that answered. Written by the driver.
    pub attempts: Vec<Attempt>,
    /// Other models that the call went on to, in their order. Written by the driver.
    pub fallbacks: Vec<Fallback>,
    /// First byte of the answer from upstream. Written by the driver.
    pub first_byte: Option<Instant>,
    /// From when on the answer flows through as it comes, without being read whole before. Written by the
    /// driver.
    pub flowing: Option<Instant>,
    /// The first piece of a stream that says something. Written by `usage`.
    pub first_token: Option<Instant>,
    /// The end of a stream that said something. Written by `metrics`.
    pub last_token: Option<Instant>,
    /// The answer's status, once there is one. Written by the driver; `usage` clears it before each
    /// attempt, and `translate` corrects it for a translated error.
    pub response_status: u16,
    /// The answer is a stream of server-sent events. Written by the driver.
    pub event_stream: bool,
    /// Body bytes from and to the client. Written by the driver.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// What is known of the call's usage so far. Written by `usage`.
    pub metered: Metered,
    /// The stream translator of the answering dialect. Written by `translate`.
    pub translator: Option<Box<dyn StreamTranslator>>,
    /// A whole answer being collected for translation. Written by `translate`.
    pub collected: Vec<u8>,
    /// The ledger has this call. Written by `spend`.
    pub recorded: bool,
    /// What the call cost, nano-dollars; None = not priced or not known yet. Written by `spend`.
    pub cost_nanos: Option<i64>,
    /// The trace that the call belongs to, if anybody watches. Written by `trace`.
    pub trace_id: Option<TraceId>,
    /// What is kept of the call for those who watch, if anybody does. Written by `trace`.
    pub traced: Option<Box<Traced>>,
    /// State of filters that are not built in.
    pub ext: Extensions,
}

/// What the driver knows of a request once its head is judged.
pub struct Arrival {
    pub request_id: String,
    pub lane: Arc<str>,
    pub auth: Auth,
    pub started_micros: i64,
    pub client_ip: IpAddr,
    pub internal: bool,
    pub user_agent: Option<String>,
    pub catalog: Arc<dyn Catalog>,
}

impl Cx {
    /// A request of which nothing but its head is known.
    pub fn new(arrival: Arrival) -> Self {
        let Arrival {
            request_id,
            lane,
            auth,
            started_micros,
            client_ip,
            internal,
            user_agent,
            catalog,
        } = arrival;
        Self {
            request_id,
            lane,
            auth,
            started: Instant::now(),
            started_micros,
            client_ip,
            user_agent,
            internal,
            purpose: Purpose::Model,
            caller: Caller::Anonymous,
            call: None,
            catalog,
            admitted: None,
            place: None,
            standings: Fields::default(),
            deployment: None,
            upstream_model: String::new(),
            attempts: Vec::new(),
            fallbacks: Vec::new(),
            first_byte: None,
            flowing: None,
            first_token: None,
            last_token: None,
            response_status: 0,
            event_stream: false,
            bytes_in: 0,
            bytes_out: 0,
            metered: Metered::default(),
            translator: None,
            collected: Vec::new(),
            recorded: false,
            cost_nanos: None,
            trace_id: None,
            traced: None,
            ext: Extensions::new(),
        }
    }

    /// When the client could begin to read the answer: many servers send a stream's head at once, and its first
    /// word when they have read the question.
    pub fn answer_began(&self) -> Option<Instant> {
        self.first_token.or(self.first_byte)
    }
}

/// A call went on to another model. Both by their configured names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The call's own.
    pub from: String,
    pub to: String,
    pub answered: bool,
}

/// LiteLLM's groups of routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Model calls, the lists of models and pass-through: `llm_api_routes`.
    #[default]
    Model,
    /// What shows a key itself and its like: `info_routes`.
    Info,
    /// What changes things or shows others: `management_routes`.
    Management,
}

/// Whether a lane wants a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    Required,
    /// Clients in the internal networks need none; all others do.
    Internal,
    Open,
}

/// What `usage` gathers while the answer flows by.
#[derive(Default)]
pub struct Metered {
    /// Splits a stream into events.
    pub splitter: Splitter,
    /// The request went out whole: from here on the upstream works, and its owner is owed. Written by
    /// the driver.
    pub sent: bool,
    /// Bytes of an answer that were held back when its client left. Written by the driver.
    pub held_bytes: u64,
    /// The pieces of a JSON answer that is not a stream; shared, not copied; bounded.
    pub pieces: Vec<Bytes>,
    pub pieces_len: usize,
    /// From the upstream's own words, so far.
    pub told: Option<Usage>,
    /// The service tier that the answer says it was served at, which decides the price.
    pub service_tier: Option<ServiceTier>,
    /// Events that carried a piece of the answer, and bytes of text in them: for the estimate.
    pub deltas: u64,
    pub text_bytes: u64,
    /// The stream said that it is complete.
    pub done: bool,
    /// The upstream put an error into its stream.
    pub error: Option<String>,
    /// What the call used, once that is settled: told, or estimated.
    pub used: Option<Usage>,
}

/// What `trace` keeps of a call until it is over.
pub struct Traced {
    pub wanted: Wanted,
    pub context: Context,
    /// The span of the call itself.
    pub root: SpanId,
    /// What headers said of the trace, under the names of `metadata`; bounded.
    pub hints: Hints,
    pub tries: SmallVec<[Begun; 1]>,
    pub answer: Kept,
    /// How much of a question and of an answer is kept, bytes.
    pub max_bytes: usize,
    /// What is told of the question, once the body has been let go of.
    pub question: Option<Question>,
}

/// What is told of a question.
pub struct Question {
    pub input: Option<Input>,
    /// As one JSON object.
    pub parameters: String,
}

/// One try at one deployment, from its beginning.
pub struct Begun {
    pub span: SpanId,
    pub deployment: Arc<Deployment>,
    pub model: String,
    pub at: Instant,
}

/// What is kept of an answer.
#[derive(Default)]
pub struct Kept {
    /// An answer that came in one piece: shared, not copied.
    pub whole: Bytes,
    /// One that came in several.
    pub pieces: Vec<u8>,
    /// There was more than is kept.
    pub cut: bool,
    /// Nearly all that is kept are words: writing them in fewer pieces makes no room.
    pub dense: bool,
}
