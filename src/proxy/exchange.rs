//! One exchange with an upstream: sends a request that is dressed, waits for its answer's head, reads its body, and
//! gives the connection back. Whether the answer is any good is [`super::attempt`]'s to say.

use super::Gateway;
use super::alarm::Alarm;
use super::head;
use super::place::Place;
use super::reply::{self, Looked, Reply};
use super::watch::{Watched, watch};
use bytes::{Bytes, BytesMut};
use filters::contract::Upstream;
use filters::model::deployment::Deployment;
use filters::wire::splice::Rope;
use futures::FutureExt;
use http::{Version, header, response};
use pingora::prelude::*;
use pingora::protocols::Stream;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v1::client::HttpSession as Http1Session;
use pingora::protocols::l4::stream::Stream as Tcp;
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// A piece of a request body that is sent before looking whether the upstream has answered already.
const SLICE: usize = 64 << 10;
/// What is gathered into one write when an upstream sends in bursts.
const MAX_GATHERED: usize = 64 << 10;
/// How long an upstream that stopped reading is given to say why.
const EARLY_ANSWER: Duration = Duration::from_millis(200);

impl Gateway {
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
pub(super) enum Way {
    /// Its session is set up once the request is out.
    Http1(Stream),
    /// The request is out, and the answer is unread.
    Asked(Stream),
    Session(Box<HttpSession>),
}

impl Way {
    pub(super) fn over(client: HttpSession) -> Self {
        match client {
            HttpSession::H1(h1) => Self::Http1(h1.into_inner()),
            other => Self::Session(Box::new(other)),
        }
    }
}

/// Why sending a request and waiting for its answer came to nothing.
pub(super) enum Exchange {
    ClientGone(Box<Error>),
    Broke(Box<Error>),
}

/// What is asked of whom.
pub(super) struct Asked<'a> {
    pub peer: &'a HttpPeer,
    pub deployment: &'a Deployment,
    pub up: &'a Upstream,
    pub patience: Duration,
    /// A stream is asked for.
    pub stream: bool,
    /// `patience` from now on.
    pub until: tokio::time::Instant,
    pub alarm: &'a mut Alarm,
}

/// Sends the request and waits for the head of the answer, which may come before all is sent.
pub(super) async fn exchange(
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
    let path = head::join(&d.base.path, &up.path);
    let way = match way {
        Way::Http1(connection) if up.body.len() <= SLICE => {
            let wire = head::upstream_wire(&d.base.authority(), &path, &up.headers, &up.body)
                .map_err(Exchange::Broke)?;
            // What can be put back may be looked at.
            let looks = !stream && connection.as_ref().as_any().is::<Tcp>();
            let answered = {
                let asking =
                    pin!(alarm.within(until, write_at_once(connection, wire, looks, patience, went_out)));
                watch(session, asking).await
            };
            match answered {
                Watched::Upstream(Some(Ok(Looked::Ordinary(reply)))) => return Ok(Reading::plain(reply)),
                Watched::Upstream(Some(Ok(Looked::Other(connection)))) => Way::Asked(connection),
                Watched::Upstream(Some(Err(e))) => return Err(Exchange::Broke(e)),
                Watched::Upstream(None) => {
                    let e = Error::explain(ErrorType::ReadTimedout, "waiting for an answer");
                    return Err(Exchange::Broke(e));
                }
                Watched::ClientGone(e) => return Err(Exchange::ClientGone(e)),
            }
        }
        way => way,
    };
    let sent = match way {
        Way::Asked(stream) => Watched::Upstream(Ok((session_on(stream, peer, patience), true))),
        Way::Http1(stream) => {
            let client = session_on(stream, peer, patience);
            let head = request(d, &path, up, false)?;
            let sending = pin!(send(client, head, &up.body, patience));
            watch(session, sending).await
        }
        Way::Session(client) => {
            let head = request(d, &path, up, matches!(*client, HttpSession::H2(_)))?;
            let sending = pin!(send(client, head, &up.body, patience));
            watch(session, sending).await
        }
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

fn request(d: &Deployment, path: &str, up: &Upstream, h2: bool) -> Result<Box<RequestHeader>, Exchange> {
    head::upstream_request(
        &d.base.authority(),
        d.base.tls,
        h2,
        path,
        &up.headers,
        up.body.len(),
    )
    .map_err(Exchange::Broke)
}

/// Writes head and body, and says whether all of it went out. Reads and writes on the returned session
/// wait at most `patience`.
async fn send(
    mut client: Box<HttpSession>,
    head: Box<RequestHeader>,
    body: &Rope,
    patience: Duration,
) -> Result<(Box<HttpSession>, bool)> {
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

/// Writes head and body in one, and looks at the answer if it may. Pingora's own session flushes between the two, which
/// costs a system call and a packet per call. `out` tells whether all of it went out.
async fn write_at_once(
    mut connection: Stream,
    wire: Vec<u8>,
    looks: bool,
    patience: Duration,
    out: &mut bool,
) -> Result<Looked> {
    let written = async {
        connection.write_all(&wire).await?;
        connection.flush().await
    };
    written
        .await
        .or_err(ErrorType::WriteError, "writing the request")?;
    *out = true;
    match looks {
        true => reply::look(connection, patience).await,
        false => Ok(Looked::Other(connection)),
    }
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
    pub(super) fn take_head(&mut self) -> Option<response::Parts> {
        match &mut self.client {
            Client::Plain(reply) => Some(reply.take_head()),
            Client::Session(client) => client.response_header().map(head::from_upstream),
        }
    }

    /// Whether nothing but the end of the connection tells where the answer ends, so that a server that died looks like
    /// one that is done.
    pub(super) fn ends_with_connection(&self) -> bool {
        let Client::Session(client) = &self.client else {
            return false;
        };
        client.response_header().is_some_and(|head| {
            head.version <= Version::HTTP_11
                && !head.headers.contains_key(header::CONTENT_LENGTH)
                && !head.headers.contains_key(header::TRANSFER_ENCODING)
        })
    }

    /// For each further read.
    pub(super) fn set_patience(&mut self, patience: Duration) {
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
