//! The last moments of a listener: connections that wait for their next request are left open a while
//! longer, so that a request which is already on its way is answered and not cut.
//!
//! Pingora drops all of them the moment it stops accepting. Here every request of that while is answered
//! with `Connection: close` (HTTP/2: GOAWAY), so busy clients move on by themselves.

use super::Gateway;
use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use std::sync::Arc;
use std::time::Duration;

/// How long. A client that has not come back by then was idle.
pub const LINGER: Duration = Duration::from_millis(300);

/// Pingora's proxy, with a slower good-bye.
pub struct Lingering {
    pub proxy: Arc<HttpProxy<Gateway>>,
    /// Of these listeners; others may share the proxy and have their own.
    pub options: HttpServerOptions,
}

#[async_trait]
impl HttpServerApp for Lingering {
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
        tokio::time::sleep(LINGER).await;
        self.proxy.http_cleanup().await;
    }
}
