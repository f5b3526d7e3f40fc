//! What Pingora costs when it does nothing: the yardstick of the benchmarks.
//!
//! `bare_proxy LISTEN UPSTREAM [CERT KEY]`
//!
//! With a certificate it speaks TLS, with Pingora's own settings for that and HTTP/2 offered.

use async_trait::async_trait;
use pingora::listeners::tls::TlsSettings;
use pingora::prelude::*;
use pingora::server::configuration::ServerConf;
use pingora_proxy::{ProxyHttp, Session};

/// As the gateway has it: a yardstick must not differ in this.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

struct Bare(String);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(&self.0, false, String::new())))
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:4001".into());
    let upstream = args.next().unwrap_or_else(|| "127.0.0.1:9000".into());
    let certificate = args.next().zip(args.next());
    let conf = ServerConf {
        threads: std::thread::available_parallelism().map_or(2, usize::from),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut proxy = pingora_proxy::http_proxy_service(&server.configuration, Bare(upstream));
    match certificate {
        Some((cert, key)) => {
            let mut tls = TlsSettings::intermediate(&cert, &key)?;
            tls.enable_h2();
            proxy.add_tls_with_settings(&listen, None, tls);
        }
        None => proxy.add_tcp(&listen),
    }
    server.add_service(proxy);
    server.run_forever()
}
