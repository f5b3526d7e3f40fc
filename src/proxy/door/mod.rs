//! The door: who may connect, how many, and how long they may take to say what they want.
//!
//! Between accepting a connection and serving it: `caps` counts connections, `proxy_header` learns from a
//! trusted proxy whom it speaks for, then comes TLS, then `guarded` puts deadlines round the connection.
//! `framing` judges heads and `frames` what HTTP/2 clients send. What a request may do is decided elsewhere.

pub mod caps;
mod frames;
pub mod framing;
mod guarded;
mod outbox;
mod proxy_header;

use super::linger::Proxied;
use super::short;
use crate::conf::Limits;
use crate::snapshot::Snapshot;
use arc_swap::ArcSwap;
use caps::{Caps, Ended, Most, Stay};
use guarded::Patience;
pub use guarded::{Guarded, Pulse};
use pingora::apps::{HttpServerApp, ReusedHttpStream, ServerApp};
use pingora::listeners::tls::Acceptor;
use pingora::listeners::{L4BufferSettings, PreTlsCallback};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::{ALPN, GetSocketDigest, SocketDigest, Ssl, Stream, TcpKeepalive, UniqueID};
use pingora::server::ShutdownWatch;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A client that is gone without a word is asked for after so long a silence, and then so often.
const SILENCE: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(10);
const ASK_TIMES: usize = 6;
/// After our own patience with a client that takes nothing the kernel's ends: what it holds for the client
/// goes then, and not minutes later.
const GRACE: Duration = Duration::from_secs(2);

/// Streams that a client opens and takes back before they are looked at.
const H2_UNSEEN_RESETS: usize = 20;
/// Streams that we have to take back because of what a client sends on them.
const H2_OUR_RESETS: usize = 64;

/// How long the first request that Pingora's loop reads may take to come, seconds; as Pingora has it.
const KEEPALIVE: u64 = 60;
/// TLS is read in records, and rustls asks for a quarter of one at a time.
const RECORD: usize = 16 << 10;
/// A PROXY header is read in crumbs; this holds the longest that is usual.
const PROXY_HEADER: usize = 512;

/// Pingora's buffers below the door. They last as long as a connection does, so there are none where reads
/// are large anyway; what is written is gathered in [`Guarded`], which lends its buffer.
pub fn socket_buffers(tls: bool, proxy_protocol: bool) -> L4BufferSettings {
    let read = match (tls, proxy_protocol) {
        (true, _) => RECORD,
        (false, true) => PROXY_HEADER,
        (false, false) => 0,
    };
    L4BufferSettings::new(read, 0)
}

/// What HTTP/2 clients may do. Pingora's bounds of streams and heads are kept.
pub fn h2_options() -> H2Options {
    let mut options = default_h2_options();
    options.max_pending_accept_reset_streams(H2_UNSEEN_RESETS);
    options.max_local_error_reset_streams(Some(H2_OUR_RESETS));
    options
}

/// One listener, as the door has to know it.
pub struct Entrance {
    pub address: SocketAddr,
    /// Each connection begins with a PROXY header.
    pub proxy_protocol: bool,
    pub tls: Option<Acceptor>,
}

/// Lets connections in and hands them on.
pub struct Door {
    pub app: Arc<Paced>,
    pub entrances: Vec<Entrance>,
    pub caps: Arc<Caps>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// How many files the process may have open.
    pub files: Option<u64>,
    /// What an authority asks for by TLS-ALPN-01 is no HTTP, and is answered before that.
    pub challenges: Option<PreTlsCallback>,
}

impl Door {
    /// A connection, from its first byte to its end. Its state lasts as long, so what is needed at the
    /// beginning only is boxed in here.
    pub async fn serve(&self, stream: Stream, shutdown: &ShutdownWatch) {
        // The stay counts until this returns or is dropped.
        if let Some((admitted, _stay)) = Box::pin(self.admit(stream)).await {
            self.app.serve(admitted, shutdown).await;
        }
    }

    /// Cleans up after the listeners.
    pub async fn cleanup(&self) {
        self.app.cleanup().await;
    }

    /// Everything before the first request.
    async fn admit(&self, stream: Stream) -> Option<(Admitted, Stay)> {
        let snapshot = self.snapshot.load();
        let most = most(&snapshot.limits, self.files);
        let header = snapshot.timeouts.header;
        let patience = Patience {
            header,
            write: snapshot.timeouts.write,
        };
        let (peer, at) = ends(&stream);
        let trusted = peer.is_some_and(|p| snapshot.networks.is_proxy(p.ip()));
        drop(snapshot);

        let mut peer = peer.map(|p| p.ip());
        let refuse = |why: Ended, peer: Option<IpAddr>| {
            self.caps.ended(why, peer);
            None
        };
        let mut stay = match self.caps.enter(most) {
            Ok(stay) => stay,
            Err(why) => return refuse(why, peer),
        };
        if let (Some(ip), false) = (peer, trusted)
            && let Err(why) = stay.of(ip, most)
        {
            return refuse(why, peer);
        }
        let entrance = at.and_then(|at| self.entrance(at));
        let mut stream = stream.into_any().downcast::<L4Stream>().ok()?;
        if let Err(e) = stream.set_keepalive(&kernels_patience(patience.write)) {
            log::debug!("a connection without the kernel's deadlines: {e}");
        }
        let stream = match entrance {
            Some(entrance) if entrance.proxy_protocol || entrance.tls.is_some() => {
                let mut stream = *stream;
                if entrance.proxy_protocol {
                    match announced(&mut stream, trusted, header).await {
                        Some(None) => {}
                        Some(Some(address)) => {
                            peer = Some(address.ip());
                            speak_for(&mut stream, address);
                            if let Err(why) = stay.of(address.ip(), most) {
                                return refuse(why, peer);
                            }
                        }
                        None => return refuse(Ended::ProxyHeader, peer),
                    }
                }
                match &entrance.tls {
                    None => Box::new(stream) as Stream,
                    Some(tls) => match tokio::time::timeout(header, self.shake(tls, stream)).await {
                        Ok(Ok(Some(stream))) => stream,
                        Ok(Ok(None)) => return None,
                        Ok(Err(e)) => {
                            log::debug!("a TLS handshake failed: {e}");
                            return refuse(Ended::Handshake, peer);
                        }
                        Err(_) => return refuse(Ended::Handshake, peer),
                    },
                }
            }
            _ => stream,
        };
        let guarded = Guarded::new(stream, peer, patience, Arc::clone(&self.caps)).ok()?;
        let mut guarded = Box::new(guarded);
        guarded.keep_heads();
        let h2 = match guarded.selected_alpn_proto() {
            Some(alpn) => alpn != ALPN::H1,
            // HTTP/1 and HTTP/2 with prior knowledge on one port.
            None if guarded.get_ssl_digest().is_none() && self.app.proxied.options.h2c => {
                guarded.is_http2().await.ok()?
            }
            None => false,
        };
        let admitted = match h2 {
            true => Admitted::Http2(guarded),
            false => Admitted::Http1(guarded),
        };
        Some((admitted, stay))
    }

    /// `None`: somebody asked for something else and has his answer.
    async fn shake(&self, tls: &Acceptor, mut stream: L4Stream) -> pingora::Result<Option<Stream>> {
        if let Some(challenges) = &self.challenges
            && challenges.process(&mut stream).await.is_err()
        {
            return Ok(None);
        }
        let stream = tls.tls_handshake(stream).await?;
        Ok(Some(Box::new(stream)))
    }

    /// The listener that a connection came to.
    fn entrance(&self, at: SocketAddr) -> Option<&Entrance> {
        let exact = self.entrances.iter().find(|e| e.address == at);
        exact.or_else(|| {
            self.entrances
                .iter()
                .find(|e| e.address.port() == at.port() && e.address.ip().is_unspecified())
        })
    }
}

/// Closing a connection does not free what is still to be sent on it: the kernel goes on asking a client
/// that takes nothing. So it is told when to give up, too.
fn kernels_patience(write: Duration) -> TcpKeepalive {
    TcpKeepalive {
        idle: SILENCE,
        interval: ASK_AGAIN,
        count: ASK_TIMES,
        user_timeout: write.saturating_add(GRACE),
    }
}

/// How many connections there may be.
fn most(limits: &Limits, files: Option<u64>) -> Most {
    Most {
        in_all: caps::within(limits.connections, files),
        per_address: limits.connections_per_address,
    }
}

/// The other side, and ours.
fn ends(stream: &Stream) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let Some(digest) = stream.get_socket_digest() else {
        return (None, None);
    };
    let plain = |a: Option<&PingoraAddr>| {
        let address = *a?.as_inet()?;
        Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
    };
    (plain(digest.peer_addr()), plain(digest.local_addr()))
}

/// Whom the proxy speaks for: `None` = it may not, or what came is no header.
async fn announced(stream: &mut L4Stream, trusted: bool, within: Duration) -> Option<Option<SocketAddr>> {
    if !trusted {
        return None;
    }
    match tokio::time::timeout(within, proxy_header::read(stream)).await {
        Ok(Ok(address)) => Some(address.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()))),
        Ok(Err(e)) => {
            log::debug!("no PROXY header: {e}");
            None
        }
        Err(_) => None,
    }
}

/// From here on `address` is the peer for everything that asks.
fn speak_for(stream: &mut L4Stream, address: SocketAddr) {
    let digest = SocketDigest::from_raw_fd(stream.id());
    // It is new, so nothing stands there yet.
    let _ = digest.peer_addr.set(Some(PingoraAddr::from(address)));
    stream.set_socket_digest(digest);
}

/// A connection that may make requests.
enum Admitted {
    Http1(Box<Guarded>),
    Http2(Box<Guarded>),
}

/// What is behind the door: our short loop and Pingora's proxy.
pub struct Paced {
    proxied: Arc<Proxied>,
    /// True = connections without a request are let go.
    leaving: watch::Sender<bool>,
}

type Served<'a> = Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'a>>;

impl Paced {
    pub fn new(proxied: Proxied) -> Self {
        Self {
            proxied: Arc::new(proxied),
            leaving: watch::Sender::new(false),
        }
    }

    /// Serves a connection to its end.
    async fn serve(&self, admitted: Admitted, shutdown: &ShutdownWatch) {
        match admitted {
            Admitted::Http1(guarded) => {
                let leaving = self.leaving.subscribe();
                if let Some(mut rest) = short::serve(&self.proxied.gateway, guarded, leaving, shutdown).await
                {
                    rest.take_head();
                    self.http1(rest, shutdown).await;
                }
            }
            Admitted::Http2(mut guarded) => {
                guarded.take_head();
                // It comes back when the connection is over, and then there is nothing to give back.
                self.proxied.process_new(guarded, shutdown).await;
            }
        }
    }

    /// Request after request through Pingora's proxy; tells the connection when it waits for the next one.
    /// Pingora's own loop does the same and carries the state of HTTP/2 along.
    async fn http1(&self, guarded: Box<Guarded>, shutdown: &ShutdownWatch) {
        let pulse = guarded.pulse();
        let mut again = self.first(guarded, shutdown).await;
        while let Some(reused) = again {
            pulse.is_idle();
            again = self.next(reused, shutdown).await;
        }
    }

    // These two are no `async fn`: a session that such a one is given has a place in it to the end.

    fn first<'a>(&'a self, guarded: Box<Guarded>, shutdown: &'a ShutdownWatch) -> Served<'a> {
        let mut session = ServerSession::new_http1(guarded);
        let leaves = *shutdown.borrow();
        session.set_keepalive((!leaves).then_some(KEEPALIVE));
        self.proxied.proxy.process_new_http(session, shutdown)
    }

    fn next<'a>(&'a self, reused: ReusedHttpStream, shutdown: &'a ShutdownWatch) -> Served<'a> {
        let (stream, settings) = reused.consume();
        let mut session = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
        self.proxied.proxy.process_new_http(session, shutdown)
    }

    async fn cleanup(&self) {
        self.leaving.send_replace(true);
        self.proxied.http_cleanup().await;
    }
}
