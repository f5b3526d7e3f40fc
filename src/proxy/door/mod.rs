//! The door: who may connect, how many, and how long they may take to say what they want.
//!
//! Between accepting a connection and serving it: `caps` counts connections, `proxy_header` learns from a
//! trusted proxy whom it speaks for, then comes TLS, then `guarded` puts deadlines round the connection.
//! `framing` judges heads and `frames` what HTTP/2 clients send. What a request may do is decided elsewhere.

pub mod caps;
mod frames;
pub mod framing;
mod guarded;
mod proxy_header;

use super::linger::Proxied;
use super::short;
use crate::conf::Limits;
use crate::snapshot::Snapshot;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use caps::{Caps, Ended, Most};
use guarded::Patience;
pub use guarded::{Guarded, Pulse};
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::listeners::PreTlsCallback;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::{ALPN, GetSocketDigest, SocketDigest, Ssl, Stream, TcpKeepalive, UniqueID};
use pingora::server::ShutdownWatch;
use std::net::{IpAddr, SocketAddr};
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

#[async_trait]
impl ServerApp for Door {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
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
        // Counts until this returns or is dropped.
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
        self.app.serve(guarded, shutdown).await;
        drop(stay);
        None
    }

    async fn cleanup(&self) {
        self.app.http_cleanup().await;
    }
}

impl Door {
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

/// Pingora's proxy behind the door; tells the connection when it waits for its next request.
pub struct Paced {
    proxied: Arc<Proxied>,
    /// True = connections without a request are let go.
    leaving: watch::Sender<bool>,
}

impl Paced {
    pub fn new(proxied: Proxied) -> Self {
        Self {
            proxied: Arc::new(proxied),
            leaving: watch::Sender::new(false),
        }
    }

    /// Serves a connection to its end.
    async fn serve(self: &Arc<Self>, mut guarded: Guarded, shutdown: &ShutdownWatch) {
        guarded.keep_heads();
        let http1 = match guarded.selected_alpn_proto() {
            Some(ALPN::H1) => true,
            Some(_) => false,
            None if guarded.get_ssl_digest().is_none() && self.proxied.options.h2c => {
                match guarded.is_http2().await {
                    Ok(h2) => !h2,
                    Err(_) => return,
                }
            }
            None => true,
        };
        if http1 {
            let leaving = self.leaving.subscribe();
            match short::serve(&self.proxied.gateway, guarded, leaving, shutdown).await {
                Some(rest) => guarded = rest,
                None => return,
            }
        }
        guarded.take_head();
        // It comes back when the connection is over, and then there is nothing to give back.
        self.process_new(Box::new(guarded), shutdown).await;
    }
}

#[async_trait]
impl HttpServerApp for Paced {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let pulse = Pulse::of(&session).cloned();
        let again = self.proxied.process_new_http(session, shutdown).await;
        if let (Some(_), Some(pulse)) = (&again, pulse) {
            pulse.is_idle();
        }
        again
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.proxied.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.proxied.server_options()
    }

    async fn http_cleanup(&self) {
        self.leaving.send_replace(true);
        self.proxied.http_cleanup().await;
    }
}
