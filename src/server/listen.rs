//! Where the gateway listens, and what answers there.

use super::{EXIT_UNAVAILABLE, Failed, H2_IDLE, Serve};
use crate::conf::{Conf, Listener};
use crate::proxy::Gateway;
use crate::proxy::linger::Lingering;
use crate::tls::Tls;
use crate::tls::redirect::Redirect;
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// One service for the listeners with HTTP/2 and one for those without; what is behind them is the same.
pub(super) fn services(
    gateway: Gateway,
    server_conf: &Arc<ServerConf>,
    listeners: &[Listener],
    tls: Option<&Tls>,
) -> Result<Vec<Service<Lingering>>, String> {
    let mut proxy = pingora_proxy::http_proxy(server_conf, gateway);
    proxy.h2_options = Some(default_h2_options());
    let proxy = Arc::new(proxy);
    let mut services = Vec::new();
    for (name, h2) in [("gateway", true), ("gateway without HTTP/2", false)] {
        let mut options = HttpServerOptions::default();
        // HTTP/1 and HTTP/2 with prior knowledge on one port: Pingora looks at the first bytes. With TLS
        // it goes by ALPN.
        options.h2c = h2;
        options.h2_idle_timeout = Some(H2_IDLE);
        let proxy = Arc::clone(&proxy);
        let mut service = Service::new(name.to_string(), Lingering { proxy, options });
        if let Some(tls) = tls {
            // What an authority asks for by TLS-ALPN-01 is no HTTP, and is answered before that.
            service.endpoints().set_pre_tls_callback(tls.challenges());
        }
        let mut any = false;
        for listener in listeners.iter().filter(|l| l.h2 == h2) {
            let address = listener.address.to_string();
            match (&listener.tls, tls) {
                (Some(handshake), Some(tls)) => {
                    let settings = tls.settings(handshake, h2)?;
                    service.add_tls_with_settings(&address, None, settings);
                }
                _ => service.add_tcp(&address),
            }
            any = true;
        }
        if any {
            services.push(service);
        }
    }
    Ok(services)
}

/// Which plain listeners send browsers on.
pub(super) fn redirect(listeners: &[Listener]) -> Redirect {
    let to = listeners.iter().find(|l| l.tls.is_some());
    Redirect {
        from: listeners
            .iter()
            .filter(|l| l.redirect_https && to.is_some())
            .map(|l| l.address)
            .collect(),
        to_port: to.map_or(443, |l| l.address.port()),
    }
}

/// The config's listeners; the command line changes the first one.
pub(super) fn listeners(options: &Serve, conf: &Conf) -> Vec<Listener> {
    let mut listeners = conf.tollkeeper.listeners.clone();
    if listeners.is_empty() {
        let open = if conf.source.path.is_some() {
            Ipv4Addr::UNSPECIFIED
        } else {
            Ipv4Addr::LOCALHOST
        };
        listeners.push(Listener::plain(SocketAddr::from((open, 4000))));
    }
    if let Some(first) = listeners.first_mut() {
        if let Some(host) = options.host {
            first.address.set_ip(host);
        }
        if let Some(port) = options.port {
            first.address.set_port(port);
        }
        if options.certificate.is_some() && first.tls.is_none() {
            first.tls = Some(conf.tollkeeper.tls.handshake.clone());
            first.redirect_https = false;
        }
    }
    listeners
}

pub(super) fn cannot_listen(address: SocketAddr, e: &std::io::Error) -> Failed {
    let hint = match e.kind() {
        std::io::ErrorKind::AddrInUse => "Something listens there already; choose another port with --port.",
        std::io::ErrorKind::PermissionDenied => {
            "Ports below 1024 need a right: setcap cap_net_bind_service=+ep, or AmbientCapabilities in the unit."
        }
        _ => "Choose an address of this machine with --host.",
    };
    Failed::Other(
        EXIT_UNAVAILABLE,
        format!("cannot listen on {address}: {e}. {hint}"),
    )
}
