//! The last moments of a listener: connections that wait for their next request are left open a while
//! longer, so that a request which is already on its way is answered and not cut.
//!
//! Pingora drops all of them the moment it stops accepting. Here every request of that while is answered
//! with `Connection: close` (HTTP/2: GOAWAY), so busy clients move on by themselves. How long the while is
//! depends on why the process leaves: one that is replaced is in nobody's way.

use super::door::Door;
use super::{Gateway, Shared};
use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// After SIGTERM. A client that has not come back by then was idle.
const LINGER: Duration = Duration::from_millis(300);
/// When another process has taken over: for handshakes under way, whose connections nobody counts yet.
const HANDSHAKES: Duration = Duration::from_secs(2);
/// Between two looks at who is still there.
const LOOK: Duration = Duration::from_millis(5);

/// How connections are let go.
pub struct GoodBye {
    /// Connections of clients that have shaken hands.
    open: AtomicUsize,
    /// Milliseconds. Nobody is let go before the first, nor kept beyond the second without a request; in
    /// between the process waits for whoever is there.
    least: AtomicU64,
    most: AtomicU64,
}

impl Default for GoodBye {
    fn default() -> Self {
        let linger = millis(LINGER);
        Self {
            open: AtomicUsize::new(0),
            least: AtomicU64::new(linger),
            most: AtomicU64::new(linger),
        }
    }
}

impl GoodBye {
    /// Connections of clients, with and without a request.
    pub fn connections(&self) -> usize {
        self.open.load(SeqCst)
    }

    /// Another process serves: who is idle may stay for `most`.
    pub fn take_time(&self, most: Duration) {
        self.least.store(millis(HANDSHAKES.min(most)), SeqCst);
        self.most.store(millis(most), SeqCst);
    }

    /// Who is idle is not waited for any more.
    pub fn hurry(&self) {
        self.least.store(millis(LINGER), SeqCst);
        self.most.store(millis(LINGER), SeqCst);
    }

    /// Whether idle connections may be closed so long after the listeners were.
    pub fn is_over(&self, since: Duration) -> bool {
        let since = millis(since);
        since >= self.most.load(SeqCst) || since >= self.least.load(SeqCst) && self.connections() == 0
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Counts connections on their way to the door.
pub struct Lingering {
    pub inner: Arc<Door>,
    pub good_bye: Arc<GoodBye>,
}

/// Pingora's proxy with options of these listeners; others may share the proxy and have their own.
pub struct Proxied {
    pub proxy: Arc<HttpProxy<Shared>>,
    pub gateway: Arc<Gateway>,
    pub options: HttpServerOptions,
}

struct Connection(Arc<GoodBye>);

impl Connection {
    fn of(good_bye: &Arc<GoodBye>) -> Self {
        good_bye.open.fetch_add(1, SeqCst);
        Self(Arc::clone(good_bye))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

#[async_trait]
impl ServerApp for Lingering {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let connection = Connection::of(&self.good_bye);
        let (door, shutdown) = (Arc::clone(&self.inner), shutdown.clone());
        // Pingora's task has room for a TLS handshake of its own, 10 KB that a connection would keep.
        tokio::spawn(async move {
            let _connection = connection;
            door.serve(stream, &shutdown).await;
        });
        None
    }

    async fn cleanup(&self) {
        let begun = Instant::now();
        while !self.good_bye.is_over(begun.elapsed()) {
            tokio::time::sleep(LOOK).await;
        }
        self.inner.cleanup().await;
    }
}

#[async_trait]
impl HttpServerApp for Proxied {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        self.proxy.process_new_http(session, shutdown).await
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.proxy.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }

    async fn http_cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_idle_is_waited_for_as_long_as_there_is_time() {
        let bye = Arc::new(GoodBye::default());
        assert!(
            !bye.is_over(Duration::from_millis(299)),
            "a request may be on its way"
        );
        assert!(bye.is_over(LINGER));
        let connection = Connection::of(&bye);
        assert!(bye.is_over(LINGER), "after SIGTERM nobody waits for the idle");
        bye.take_time(Duration::from_secs(60));
        assert!(!bye.is_over(Duration::from_secs(59)));
        assert!(bye.is_over(Duration::from_secs(60)));
        drop(connection);
        assert_eq!(bye.connections(), 0);
        assert!(!bye.is_over(Duration::from_millis(1999)));
        assert!(bye.is_over(HANDSHAKES));
        bye.open.fetch_add(1, SeqCst);
        bye.hurry();
        assert!(bye.is_over(LINGER));
    }
}
