//! Where the gateway listens, and what answers there.

use super::{EXIT_FAILED, EXIT_UNAVAILABLE, Failed, Serve};
use crate::conf::{Conf, Listener};
use crate::proxy::door::caps::{self, Caps};
use crate::proxy::door::{self, Door, Entrance, Paced};
use crate::proxy::linger::{GoodBye, Lingering, Proxied};
use crate::proxy::{Gateway, Shared};
use crate::tls::Tls;
use crate::tls::redirect::Redirect;
use crate::upgrade::new::Inherited;
use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::listeners::{ListenerConfig, PreTlsCallback};
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service as Serving;
use pingora::services::listening::Service;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, IntoRawFd};
use std::sync::Arc;
use tokio::net::TcpSocket;
use tokio::sync::watch;

/// The sockets of the listeners, each once: inherited, or bound here. Those that are bound here refuse
/// connections until Pingora opens them.
pub(super) fn sockets(
    listeners: &[Listener],
    inherited: Option<&mut Inherited>,
) -> Result<Vec<TcpListener>, Failed> {
    let mut found = Vec::with_capacity(listeners.len());
    let mut inherited = inherited;
    for address in listeners.iter().map(|l| l.address) {
        let socket = match inherited.as_mut().and_then(|i| i.listener(address)) {
            Some(socket) => socket,
            None => bind(address).map_err(|e| cannot_listen(address, &e))?,
        };
        found.push(socket);
    }
    if let Some(inherited) = inherited {
        inherited.close_rest();
    }
    Ok(found)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(TcpListener::from(socket.as_fd().try_clone_to_owned()?))
}

/// Gives Pingora its sockets and says when it accepts connections from them.
pub(super) struct Opening {
    service: Service<Lingering>,
    sockets: Vec<TcpListener>,
    /// How many services have opened.
    opened: Arc<watch::Sender<usize>>,
}

#[async_trait]
impl Serving for Opening {
    async fn start_service(&mut self, fds: Option<ListenFds>, shutdown: ShutdownWatch, per_fd: usize) {
        let _fall = Fall;
        if let Some(table) = &fds {
            for socket in self.sockets.drain(..) {
                if let Ok(address) = socket.local_addr() {
                    table.lock().add(address.to_string(), socket.into_raw_fd());
                }
            }
        }
        let mut serving = Box::pin(Serving::start_service(&mut self.service, fds, shutdown, per_fd));
        // With its sockets at hand it opens them in one go, and waits from then on.
        if futures::poll!(&mut serving).is_pending() {
            self.opened.send_modify(|n| *n = n.saturating_add(1));
            serving.await;
        }
    }

    fn name(&self) -> &str {
        Serving::name(&self.service)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Serving::listen_addresses(&self.service)
    }
}

/// Pingora panics when it cannot listen after all. A process without its listeners is none.
struct Fall;

impl Drop for Fall {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("a listener cannot be opened; leaving");
            log::logger().flush();
            std::process::exit(EXIT_FAILED);
        }
    }
}

/// What is needed to open the listeners.
pub(super) struct Doors<'a> {
    pub(super) listeners: &'a [Listener],
    pub(super) sockets: &'a [TcpListener],
    pub(super) tls: Option<&'a Tls>,
    pub(super) caps: &'a Arc<Caps>,
    pub(super) good_bye: &'a Arc<GoodBye>,
    pub(super) opened: &'a Arc<watch::Sender<usize>>,
    /// There is no config: a newcomer reads the log, and nobody has chosen limits.
    pub(super) quiet: bool,
}

/// One service for the listeners with HTTP/2 and one for those without; what is behind them is the same.
pub(super) fn services(
    gateway: Gateway,
    server_conf: &Arc<ServerConf>,
    doors: &Doors<'_>,
) -> Result<Vec<Opening>, String> {
    let snapshot = Arc::clone(&gateway.snapshot);
    let idle = snapshot.load().timeouts.keepalive;
    let files = caps::file_limit();
    let wanted = snapshot.load().limits.connections;
    // Without a config nobody asked for so many.
    let level = if doors.quiet {
        log::Level::Debug
    } else {
        log::Level::Info
    };
    if caps::within(wanted, files) < wanted {
        log::log!(
            level,
            "at most {} connections: the process may have {} files open. Raise the limit (LimitNOFILE=, ulimit -n) for \
             the {wanted} that limits.connections allows",
            caps::within(wanted, files),
            files.unwrap_or_default()
        );
    }
    let gateway = Arc::new(gateway);
    let mut proxy = pingora_proxy::http_proxy(server_conf, Shared(Arc::clone(&gateway)));
    proxy.h2_options = Some(door::h2_options());
    let proxy = Arc::new(proxy);
    let mut services = Vec::new();
    for (name, h2) in [("gateway", true), ("gateway without HTTP/2", false)] {
        let mut options = HttpServerOptions::default();
        // HTTP/1 and HTTP/2 with prior knowledge on one port: Pingora looks at the first bytes. With TLS
        // it goes by ALPN.
        options.h2c = h2;
        options.h2_idle_timeout = Some(idle);
        let (mut entrances, mut sockets) = (Vec::new(), Vec::new());
        for (listener, socket) in doors.listeners.iter().zip(doors.sockets) {
            if listener.h2 != h2 {
                continue;
            }
            let address = listener.address;
            entrances.push(Entrance {
                address,
                proxy_protocol: listener.proxy_protocol,
                tls: match (&listener.tls, doors.tls) {
                    (Some(handshake), Some(tls)) => Some(tls.settings(handshake, h2)?.build()),
                    _ => None,
                },
            });
            let socket = socket.try_clone();
            sockets.push(socket.map_err(|e| format!("the socket of {address}: {e}"))?);
        }
        if sockets.is_empty() {
            continue;
        }
        let doorsteps: Vec<_> = entrances
            .iter()
            .map(|e| {
                let buffers = door::socket_buffers(e.tls.is_some(), e.proxy_protocol);
                ListenerConfig::tcp(e.address.to_string()).l4_buffer(buffers)
            })
            .collect();
        let proxy = Arc::clone(&proxy);
        let door = Door {
            app: Arc::new(Paced::new(Proxied {
                proxy,
                gateway: Arc::clone(&gateway),
                options,
            })),
            entrances,
            caps: Arc::clone(doors.caps),
            snapshot: Arc::clone(&snapshot),
            files,
            challenges: doors.tls.map(|tls| tls.challenges() as PreTlsCallback),
        };
        let app = Lingering {
            inner: Arc::new(door),
            good_bye: Arc::clone(doors.good_bye),
        };
        let mut service = Service::new(name.to_string(), app);
        for doorstep in doorsteps {
            // TLS is spoken behind the door, where connections are counted and have deadlines.
            service.add_listener(doorstep);
        }
        services.push(Opening {
            service,
            sockets,
            opened: Arc::clone(doors.opened),
        });
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
    let port = address.port();
    let hint = match e.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "Something listens there already (ss -ltnp 'sport = :{port}' tells what); choose another port with --port."
        ),
        std::io::ErrorKind::PermissionDenied => {
            "Ports below 1024 need a right: setcap cap_net_bind_service=+ep, or AmbientCapabilities in the unit."
                .into()
        }
        _ => "Choose an address of this machine with --host.".into(),
    };
    Failed::Other(
        EXIT_UNAVAILABLE,
        format!("cannot listen on {address}: {e}. {hint}"),
    )
}
