//! One try at one deployment: dress the request, connect, send, and read as much of the answer as must
//! be known before the client gets any of it.

use super::alarm::Alarm;
use super::head;
use super::lanes::Lane;
use super::models::Found;
use super::place::Place;
use super::reply::{self, Looked, Reply};
use super::watch::{Watched, watch};
use super::{Gateway, State};
use bytes::{Bytes, BytesMut};
use filters::builtin::trace;
use filters::contract::{Fault, Stop, Upstream};
use filters::model::deployment::Deployment;
use filters::model::record::Attempt;
use filters::wire::splice::Rope;
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, response};
use pingora::prelude::*;
use pingora::protocols::Stream;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v1::client::{HttpSession as Http1Session, http_req_header_to_wire};
use pingora::protocols::l4::stream::Stream as Tcp;
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// A piece of a request body that is sent before looking whether the upstream has answered already.
const SLICE: usize = 64 << 10;
/// An error body of which more is not read.
const MAX_ERROR_BODY: usize = 64 << 10;
/// A JSON answer up to this size is read whole before its head goes out, so that the head can tell the
/// cost and an upstream that dies half-way can be replaced.
const MAX_HELD_ANSWER: usize = 4 << 20;
/// What is gathered into one write when an upstream sends in bursts.
const MAX_GATHERED: usize = 64 << 10;
/// How long an upstream that stopped reading is given to say why.
const EARLY_ANSWER: Duration = Duration::from_millis(200);

/// What became of one attempt.
pub(super) enum Attempted {
    /// A good answer is there, and nothing of it has been sent on.
    Ready(Box<Ready>),
    /// Another deployment may do better.
    Failed(Failure),
    /// No other deployment would do better.
    Final(Failure),
    ClientGone(Box<Error>),
    /// It makes no sense to try on.
    Stopped(Stop),
}

/// A good answer, as far as it has been read.
pub(super) struct Ready {
    pub deployment: Arc<Deployment>,
    pub place: Arc<Place>,
    pub head: response::Parts,
    pub reading: Reading,
    /// What has been read of the body.
    pub begun: Vec<Bytes>,
    /// `begun` is all there is.
    pub whole: bool,
}

/// Why an attempt is given up, and what the client gets if it was the last one.
pub(super) struct Failure {
    pub shown: Shown,
    /// For the log: may hold an address.
    pub cause: String,
}

pub(super) enum Shown {
    /// The upstream's own error answer.
    Theirs { head: Box<response::Parts>, body: Bytes },
    /// It gave none.
    Ours(Fault),
}

impl Gateway {
    pub(super) async fn attempt(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        found: &Found<'_>,
        deployment: &Arc<Deployment>,
        model: &str,
    ) -> Attempted {
        let (d, upstream_model) = match found.dress(deployment, model) {
            Ok(dressed) => dressed,
            Err(refusal) => return Attempted::Stopped(refusal.into()),
        };
        let cx = &mut state.cx;
        cx.deployment = Some(Arc::clone(&d));
        cx.upstream_model.clone_from(&upstream_model);
        let mut up = Upstream {
            deployment: Some(Arc::clone(&d)),
            model: upstream_model,
            method: Method::POST,
            path: String::new(),
            headers: forwarded(session, &d),
            edits: Default::default(),
            body: Rope::default(),
        };
        if let Err(stop) = lane.chain.upstream_request_filter(cx, &mut up).await {
            return Attempted::Stopped(stop);
        }

        // A pooled connection may have been closed by the other side just now. That says nothing about
        // the deployment, so it gets one more chance. A silence is no such thing: then the upstream may
        // be at work, and asking again would make it work, and be paid, twice.
        let mut chances = 2;
        let begun = Instant::now();
        loop {
            chances -= 1;
            let place = match self.peers.place(&d.base, state.snapshot.timeouts.connect).await {
                Ok(place) => place,
                Err(cause) => return Attempted::Failed(unreachable(&d, cause)),
            };
            let (way, reused) = match place.take() {
                Some(stream) => (Way::Http1(stream), true),
                None => {
                    // Boxed: it is large, and seldom needed.
                    let connecting = Box::pin(async {
                        let (client, reused) = self.connector.get_http_session(&place.peer).await?;
                        Ok::<_, Box<Error>>((Way::over(client), reused))
                    });
                    match watch(session, connecting).await {
                        Watched::Upstream(Ok(got)) => got,
                        Watched::Upstream(Err(e)) => {
                            return Attempted::Failed(unreachable(&d, e.to_string()));
                        }
                        Watched::ClientGone(e) => return Attempted::ClientGone(e),
                    }
                }
            };
            self.telemetry.upstream_connection(reused);
            let stream = state.cx.call.as_ref().is_some_and(|c| c.stream);
            let patience = if stream { d.stream_timeout } else { d.timeout }.min(state.time_left_at(begun));
            let mut alarm = std::mem::take(&mut state.alarms.upstream);
            let mut went_out = false;
            let asked = Asked {
                peer: &place.peer,
                deployment: &d,
                up: &up,
                patience,
                stream,
                until: (begun + patience).into(),
                alarm: &mut alarm,
            };
            let exchanged = exchange(session, way, asked, &mut went_out).await;
            state.alarms.upstream = alarm;
            // From here on the upstream works; a client that leaves owes for it.
            state.cx.metered.sent = went_out && !matches!(exchanged, Err(Exchange::Broke(_)));
            let mut reading = match exchanged {
                Ok(reading) => reading,
                Err(Exchange::ClientGone(e)) => return Attempted::ClientGone(e),
                Err(Exchange::Broke(e)) if reused && chances > 0 && was_closed(&e) => continue,
                Err(Exchange::Broke(e)) => return Attempted::Failed(no_answer(&d, &e)),
            };
            state.cx.first_byte = Some(Instant::now());
            let Some(head) = reading.take_head() else {
                return Attempted::Failed(no_answer(&d, &Error::new(ErrorType::InvalidHTTPHeader)));
            };
            if !head.status.is_success() {
                state.cx.metered.sent = false;
                return self.failed(session, reading, &place, head).await;
            }
            let status = head.status.as_u16();
            return match self.begin(session, state, reading, place, d, head).await {
                ready @ Attempted::Ready(_) => {
                    state.cx.attempts.push(Attempt {
                        deployment_id: deployment.id.clone(),
                        status,
                        error: None,
                        duration_micros: begun.elapsed().as_micros() as i64,
                    });
                    ready
                }
                other => other,
            };
        }
    }

    /// Reads an upstream's error answer.
    async fn failed(
        &self,
        session: &mut Session,
        mut reading: Reading,
        place: &Arc<Place>,
        head: response::Parts,
    ) -> Attempted {
        let status = head.status.as_u16();
        let mut body = BytesMut::new();
        let mut whole = false;
        while !whole && body.len() < MAX_ERROR_BODY {
            match watch(session, reading.next()).await {
                Watched::Upstream(Ok((chunk, end))) => {
                    body.extend_from_slice(&chunk);
                    whole = end;
                }
                // What came of the error is better than nothing.
                Watched::Upstream(Err(_)) => break,
                Watched::ClientGone(e) => return Attempted::ClientGone(e),
            }
        }
        body.truncate(MAX_ERROR_BODY);
        if whole {
            self.release(reading, place).await;
        }
        let failure = Failure {
            shown: Shown::Theirs {
                head: Box::new(head),
                body: body.freeze(),
            },
            cause: format!("status {status}"),
        };
        // What is wrong with the request is wrong everywhere. What is wrong with the deployment, its
        // credentials included, may be right with the next one.
        match status {
            401 | 403 | 404 | 408 | 429 | 500..=599 => Attempted::Failed(failure),
            _ => Attempted::Final(failure),
        }
    }

    /// Reads a good answer as far as must be: JSON whole, streams not at all.
    async fn begin(
        &self,
        session: &mut Session,
        state: &mut State,
        mut reading: Reading,
        place: Arc<Place>,
        d: Arc<Deployment>,
        head: response::Parts,
    ) -> Attempted {
        let kind = head
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let is_event_stream = kind.starts_with("text/event-stream");
        let is_held = !is_event_stream && (kind.starts_with("application/json") || d.dialect != "openai");
        state.cx.event_stream = is_event_stream;
        state.cx.response_status = head.status.as_u16();
        if is_event_stream {
            reading.set_patience(d.stream_timeout.min(state.snapshot.timeouts.stream_idle));
        }
        let mut ready = Ready {
            deployment: d,
            place,
            head,
            reading,
            begun: Vec::new(),
            whole: false,
        };
        let mut len = 0;
        while is_held && !ready.whole && len <= MAX_HELD_ANSWER {
            let (chunk, end) = match watch(session, ready.reading.next()).await {
                Watched::Upstream(Ok(got)) => got,
                Watched::Upstream(Err(e)) => {
                    state.cx.metered.sent = false;
                    return Attempted::Failed(no_answer(&ready.deployment, &e));
                }
                Watched::ClientGone(e) => {
                    state.cx.metered.held_bytes = len as u64;
                    return Attempted::ClientGone(e);
                }
            };
            len += chunk.len();
            if !chunk.is_empty() {
                ready.begun.push(chunk);
            }
            ready.whole = end;
        }
        Attempted::Ready(Box::new(ready))
    }

    /// Gives a connection back to the pool, if its answer was read to the end and its request sent to the
    /// end: on one that still waits for the rest of a body, the next request would be taken for that.
    pub(super) async fn release(&self, reading: Reading, place: &Arc<Place>) {
        let Reading {
            client, sent_whole, ..
        } = reading;
        let mut client = match client {
            Client::Session(client) => client,
            Client::Plain(reply) => {
                // It is only read where the request has gone out whole.
                if let Some(stream) = reply.into_connection() {
                    place.put(stream);
                }
                return;
            }
        };
        if !(sent_whole && client.response_done()) {
            return;
        }
        match *client {
            HttpSession::H1(mut h1) => {
                h1.respect_keepalive();
                // Waits for nothing but its good-bye to an upstream that wants no more calls.
                if let Some(Some(stream)) = h1.reuse().now_or_never() {
                    place.put(stream);
                }
            }
            other => {
                let idle = place.peer.options.idle_timeout;
                // Boxed: it is large, needed for a moment, and would be carried by every stream.
                Box::pin(self.connector.release_http_session(other, &place.peer, idle)).await;
            }
        }
    }
}

/// A connection.
enum Way {
    /// Its session is set up once the request is out.
    Http1(Stream),
    /// The request is out, and the answer is unread.
    Asked(Stream),
    Session(Box<HttpSession>),
}

impl Way {
    fn over(client: HttpSession) -> Self {
        match client {
            HttpSession::H1(h1) => Self::Http1(h1.into_inner()),
            other => Self::Session(Box::new(other)),
        }
    }
}

/// Why sending a request and waiting for its answer came to nothing.
enum Exchange {
    ClientGone(Box<Error>),
    Broke(Box<Error>),
}

/// What is asked of whom.
struct Asked<'a> {
    peer: &'a HttpPeer,
    deployment: &'a Deployment,
    up: &'a Upstream,
    patience: Duration,
    /// A stream is asked for.
    stream: bool,
    /// `patience` from now on.
    until: tokio::time::Instant,
    alarm: &'a mut Alarm,
}

/// Sends the request and waits for the head of the answer, which may come before all is sent.
async fn exchange(
    session: &mut Session,
    way: Way,
    asked: Asked<'_>,
    went_out: &mut bool,
) -> Result<Reading, Exchange> {
    let Asked {
        peer,
        deployment: d,
        up,
        patience,
        stream,
        until,
        alarm,
    } = asked;
    let h2 = matches!(&way, Way::Session(client) if matches!(**client, HttpSession::H2(_)));
    let path = head::join(&d.base.path, &up.path);
    let head = head::upstream_request(
        &d.base.authority(),
        d.base.tls,
        h2,
        &path,
        &up.headers,
        up.body.len(),
    )
    .map_err(Exchange::Broke)?;
    let way = match way {
        // What can be put back may be looked at first.
        Way::Http1(tcp) if !stream && up.body.len() <= SLICE && tcp.as_ref().as_any().is::<Tcp>() => {
            let answered = {
                let answered = alarm.within(until, send_and_look(tcp, &head, &up.body, patience, went_out));
                let answered = pin!(answered);
                watch(session, answered).await
            };
            let answered = match answered {
                Watched::Upstream(answered) => Watched::Upstream(answered.unwrap_or_else(|| {
                    Err(Error::explain(ErrorType::ReadTimedout, "waiting for an answer"))
                })),
                Watched::ClientGone(e) => Watched::ClientGone(e),
            };
            match answered {
                Watched::Upstream(Ok(Looked::Ordinary(reply))) => return Ok(Reading::plain(reply)),
                Watched::Upstream(Ok(Looked::Other(tcp))) => Way::Asked(tcp),
                Watched::Upstream(Err(e)) => return Err(Exchange::Broke(e)),
                Watched::ClientGone(e) => return Err(Exchange::ClientGone(e)),
            }
        }
        way => way,
    };
    let sent = {
        let sending = pin!(send(way, peer, head, &up.body, patience));
        watch(session, sending).await
    };
    let (mut client, sent_whole) = match sent {
        Watched::Upstream(Ok(sent)) => sent,
        Watched::Upstream(Err(e)) => return Err(Exchange::Broke(e)),
        Watched::ClientGone(e) => return Err(Exchange::ClientGone(e)),
    };
    *went_out = true;
    loop {
        // Informational answers come before the one that counts.
        if client
            .response_header()
            .is_some_and(|h| !h.status.is_informational())
        {
            return Ok(Reading {
                client: Client::Session(client),
                failed: None,
                sent_whole,
            });
        }
        match watch(session, client.read_response_header()).await {
            Watched::Upstream(Ok(())) => {}
            Watched::Upstream(Err(e)) => return Err(Exchange::Broke(e)),
            Watched::ClientGone(e) => return Err(Exchange::ClientGone(e)),
        }
    }
}

/// Writes head and body, and says whether all of it went out. Reads and writes on the returned session
/// wait at most `patience`.
async fn send(
    way: Way,
    peer: &HttpPeer,
    head: Box<RequestHeader>,
    body: &Rope,
    patience: Duration,
) -> Result<(Box<HttpSession>, bool)> {
    let mut client = match way {
        Way::Http1(stream) if body.len() <= SLICE => {
            let stream = pingora_timeout::timeout(patience, write_at_once(stream, &head, body))
                .await
                .or_err(ErrorType::WriteTimedout, "writing the request")??;
            return Ok((session_on(stream, peer, patience), true));
        }
        Way::Asked(stream) => return Ok((session_on(stream, peer, patience), true)),
        Way::Http1(stream) => Box::new(HttpSession::H1(Http1Session::new_with_options(stream, peer))),
        Way::Session(client) => client,
    };
    client.set_read_timeout(Some(patience));
    client.set_write_timeout(Some(patience));
    client.write_request_header(head).await?;
    let mut left = body.len();
    for slice in body.slices(SLICE) {
        left -= slice.len();
        // An upstream that has seen enough may answer before the body is through (413, 429); then the
        // rest is not sent.
        let answered = matches!(client.read_response_header().now_or_never(), Some(Ok(())));
        if answered
            && client
                .response_header()
                .is_some_and(|h| !h.status.is_informational())
        {
            return Ok((client, false));
        }
        if let Err(e) = client.write_request_body(slice, left == 0).await {
            // It may have answered and then closed its side.
            return match tokio::time::timeout(EARLY_ANSWER, client.read_response_header()).await {
                Ok(Ok(())) => Ok((client, false)),
                _ => Err(e),
            };
        }
    }
    // HTTP/2 ended with its last piece; HTTP/1 wants to be told.
    if !matches!(*client, HttpSession::H2(_)) || body.is_empty() {
        client.finish_request_body().await?;
    }
    Ok((client, true))
}

/// Writes head and body and looks at the answer; `out` tells whether the first was done.
async fn send_and_look(
    stream: Stream,
    head: &RequestHeader,
    body: &Rope,
    patience: Duration,
    out: &mut bool,
) -> Result<Looked> {
    let stream = write_at_once(stream, head, body).await?;
    *out = true;
    reply::look(stream, patience).await
}

/// Head and body in one write. Pingora's own session flushes between the two, which costs a system call
/// and a packet per call; so the bytes go out here and the answer is read from their stream.
async fn write_at_once(mut stream: Stream, head: &RequestHeader, body: &Rope) -> Result<Stream> {
    let mut wire = http_req_header_to_wire(head)
        .ok_or_else(|| Error::explain(ErrorType::InvalidHTTPHeader, "the request line cannot be written"))?;
    wire.reserve(body.len());
    body.pieces()
        .iter()
        .for_each(|piece| wire.extend_from_slice(piece));
    let written = async {
        stream.write_all(&wire).await?;
        stream.flush().await
    };
    written
        .await
        .or_err(ErrorType::WriteError, "writing the request")?;
    Ok(stream)
}

/// A session set up anew, to read the answer of what was written.
fn session_on(stream: Stream, peer: &HttpPeer, patience: Duration) -> Box<HttpSession> {
    let mut h1 = Http1Session::new_with_options(stream, peer);
    h1.read_timeout = Some(patience);
    h1.write_timeout = Some(patience);
    Box::new(HttpSession::H1(h1))
}

/// Who reads the answer.
enum Client {
    Plain(Box<Reply>),
    Session(Box<HttpSession>),
}

/// Reads an answer's body. An error that shows up behind good bytes waits until these are handed on:
/// Pingora tells it once.
pub(super) struct Reading {
    client: Client,
    failed: Option<Box<Error>>,
    /// All of the request went out.
    sent_whole: bool,
}

impl Reading {
    fn plain(reply: Box<Reply>) -> Self {
        Self {
            client: Client::Plain(reply),
            failed: None,
            sent_whole: true,
        }
    }

    /// What of the answer's head goes on to the client.
    fn take_head(&mut self) -> Option<response::Parts> {
        match &mut self.client {
            Client::Plain(reply) => Some(reply.take_head()),
            Client::Session(client) => client.response_header().map(head::from_upstream),
        }
    }

    /// For each further read.
    fn set_patience(&mut self, patience: Duration) {
        match &mut self.client {
            Client::Plain(reply) => reply.patience = patience,
            Client::Session(client) => client.set_read_timeout(Some(patience)),
        }
    }

    /// The next part of the answer, with everything that is readable already, and whether it is the last.
    pub(super) async fn next(&mut self) -> Result<(Bytes, bool)> {
        if let Some(e) = self.failed.take() {
            return Err(e);
        }
        let client = match &mut self.client {
            Client::Plain(reply) => return reply.next().await,
            Client::Session(client) => client,
        };
        let Some(first) = client.read_response_body().await? else {
            return Ok((Bytes::new(), true));
        };
        let mut gathered: Option<BytesMut> = None;
        let mut end = client.response_done();
        while !end && gathered.as_ref().map_or(first.len(), BytesMut::len) < MAX_GATHERED {
            match client.read_response_body().now_or_never() {
                Some(Ok(Some(more))) => {
                    gathered
                        .get_or_insert_with(|| BytesMut::from(&first[..]))
                        .extend_from_slice(&more);
                    end = client.response_done();
                }
                Some(Ok(None)) => end = true,
                Some(Err(e)) => {
                    self.failed = Some(e);
                    break;
                }
                None => break,
            }
        }
        Ok((gathered.map_or(first, BytesMut::freeze), end))
    }
}

/// Client headers that a model may see.
static FORWARDED: [HeaderName; 4] = [
    header::ACCEPT,
    header::USER_AGENT,
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
];

/// What of the client's head goes to a model: nothing that says who it is.
fn forwarded(session: &Session, d: &Deployment) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    let from = &session.req_header().headers;
    // A caller's `idempotency-key` stays: all callers share the provider's key, so two who happen to write
    // the same one would get one another's answer.
    for name in &FORWARDED {
        if let Some(value) = from.get(name) {
            headers.insert(name, value.clone());
        }
    }
    if d.is_internal() {
        trace::pass_on(from, &mut headers);
    }
    // Usage is read from the answer as it flows by, so it must not be packed.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// The other side closed the connection, as an idle one may be at any time.
fn was_closed(e: &Error) -> bool {
    matches!(
        e.etype(),
        ErrorType::ConnectionClosed | ErrorType::WriteError | ErrorType::ReadError | ErrorType::H2Error
    )
}

fn unreachable(d: &Deployment, cause: String) -> Failure {
    let shown = format!("The upstream of deployment {} cannot be reached.", d.label());
    Failure {
        shown: Shown::Ours(Fault::unavailable(shown, cause.clone())),
        cause,
    }
}

fn no_answer(d: &Deployment, e: &Error) -> Failure {
    let timed_out = matches!(e.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
    let what = if timed_out {
        "did not answer in time"
    } else {
        "broke off without an answer"
    };
    let mut fault = Fault::upstream(format!("The upstream of deployment {} {what}.", d.label()), e);
    if timed_out {
        (fault.status, fault.kind) = (408, "timeout_error");
    }
    Failure {
        shown: Shown::Ours(fault),
        cause: e.to_string(),
    }
}
