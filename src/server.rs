//! Puts the process together and runs it: config, store, ledger, snapshot, listeners, and the way out.

use crate::conf::{self, CertificateFiles, Conf, EXIT_CONFIG, Env, Listener, Report};
use crate::greeting::Greeting;
use crate::health::Health;
use crate::ledger::{self, Ledger};
use crate::notify::Notify;
use crate::proxy::drain::InFlight;
use crate::proxy::linger::{LINGER, Lingering};
use crate::proxy::{self, Gateway, peer::Peers};
use crate::reload::{self, Origin, Reload};
use crate::shared::agreement::Agreement;
use crate::shared::alerts::Alerts;
use crate::shared::keys::KeyCache;
use crate::shared::meters::{self, Crossed, Events, Gate, Meters};
use crate::shared::parties::Parties;
use crate::shared::period::{self, Calendar, Reset};
use crate::snapshot::Snapshot;
use crate::store::{self, Address, Store};
use crate::telemetry::metrics::{Gauges, Telemetry};
use crate::tls::Tls;
use crate::tls::redirect::Redirect;
use crate::{admin, discover, master_key};
use anstream::eprintln;
use arc_swap::ArcSwap;
use filters::contract::Registry;
use filters::contract::ports::{Clock, Ledger as LedgerPort, Ports, Why};
use filters::model::account::{Account, Kind};
use filters::model::key::MasterKey;
use filters::model::limits::Limits;
use filters::model::record::Record;
use pingora::apps::HttpServerOptions;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::server::configuration::ServerConf;
use pingora::server::{ExecutionPhase, RunArgs, Server};
use pingora::services::listening::Service;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;

/// Exit codes, as sysexits has them.
const EXIT_FAILED: i32 = 1;
const EXIT_UNAVAILABLE: i32 = 69;

/// Upstream connections kept open for reuse. Pingora's own 128 is for the whole process.
const KEEPALIVE_POOL: usize = 1024;
/// An idle HTTP/2 connection is closed after this; Pingora would keep it for ever.
const H2_IDLE: Duration = Duration::from_secs(120);
/// For the last bytes of HTTP/2 streams to reach their sockets.
const LAST_BYTES: Duration = Duration::from_millis(100);
/// For the ledger to reach the store once the last request is over; the rest stays in the spool.
const LAST_FLUSH: Duration = Duration::from_secs(5);
/// For the models in the store to be read before the first call.
const FIRST_READING: Duration = Duration::from_secs(3);

/// What the command line says.
#[derive(Debug, Default, Clone)]
pub struct Serve {
    pub config: Option<PathBuf>,
    pub host: Option<IpAddr>,
    pub port: Option<u16>,
    /// Flags that were given and do nothing, each with the reason.
    pub ignored: Vec<String>,
    /// Makes the first listener one with TLS, whatever the config says of it.
    pub certificate: Option<CertificateFiles>,
}

/// Runs the gateway until it is told to stop. Returns the exit code.
pub fn serve(options: &Serve, registry: Registry, env: &Env) -> i32 {
    let begun = Instant::now();
    // Before the first outgoing TLS: with two providers linked, rustls would not know which to take.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match start(options, registry, env, begun) {
        Ok(running) => running.run(),
        Err(Failed::Config(report)) => {
            eprintln!("{}", report.render(true));
            EXIT_CONFIG
        }
        Err(Failed::Unusable(what)) => {
            eprintln!("error: {what}");
            EXIT_CONFIG
        }
        Err(Failed::Other(code, what)) => {
            eprintln!("error: {what}");
            code
        }
    }
}

/// Why the process does not start.
enum Failed {
    Config(Report),
    /// The config is well-formed and cannot be built.
    Unusable(String),
    Other(i32, String),
}

struct Running {
    server: Server,
    background: tokio::runtime::Runtime,
    ledger: Arc<Ledger>,
    health: Arc<Health>,
    in_flight: Arc<InFlight>,
    drain: Duration,
    greeting: Greeting,
    notify: Arc<Notify>,
}

fn start(options: &Serve, registry: Registry, env: &Env, begun: Instant) -> Result<Running, Failed> {
    let loaded = conf::load(options.config.as_deref(), env).map_err(Failed::Config)?;
    let mut conf = loaded.conf;
    let rust_log = env.get("RUST_LOG");
    crate::telemetry::log::init(&conf.tollkeeper.log, rust_log.as_ref().map(|s| s.expose()));
    if !loaded.report.problems.is_empty() {
        eprintln!("{}", loaded.report.render(true));
    }
    for flag in &options.ignored {
        log::info!("ignored: {flag}");
    }

    let background = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("background")
        .enable_all()
        .build()
        .map_err(|e| Failed::Other(EXIT_FAILED, format!("the background threads cannot start: {e}")))?;

    let hangups = watch_signals(&background)
        .map_err(|e| Failed::Other(EXIT_FAILED, format!("signals cannot be watched: {e}")))?;

    let found = if conf.source.path.is_none() {
        let servers = background.block_on(discover::servers());
        let text = discover::config(&servers, env.get("OPENAI_API_KEY").is_some());
        let found = conf::load::load_text("discovered servers", &text, env)
            .map_err(Failed::Config)?
            .conf;
        conf.models = found.models;
        Some(servers)
    } else {
        None
    };

    let data_dir = conf.tollkeeper.data_dir.clone();
    make_private_dir(&data_dir).map_err(|e| {
        Failed::Other(
            EXIT_FAILED,
            format!(
                "the data directory {} cannot be used: {e}. Set TOLLKEEPER_DATA_DIR.",
                data_dir.display()
            ),
        )
    })?;
    let key = master_key::find(&conf, &data_dir)
        .map_err(|e| Failed::Other(EXIT_FAILED, format!("the master key file cannot be used: {e}")))?;
    let listeners = listeners(options, &conf);
    let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.address).collect();
    for address in &addresses {
        std::net::TcpListener::bind(address)
            .map(drop)
            .map_err(|e| cannot_listen(*address, &e))?;
    }

    let tls = Tls::open(&conf, &listeners, options.certificate.clone()).map_err(Failed::Unusable)?;

    let store = open_store(&background, &conf, &data_dir)?;
    let ledger_settings = ledger::Settings {
        batch_records: usize::try_from(conf.tollkeeper.ledger.batch).unwrap_or(500),
        linger: conf.tollkeeper.ledger.flush_every,
        ..ledger::Settings::default()
    };
    let ledger = Ledger::open(&data_dir, Arc::clone(&store), ledger_settings)
        .map(Arc::new)
        .map_err(|e| Failed::Other(EXIT_FAILED, format!("the ledger's spool cannot be used: {e}")))?;
    let kept = conf.tollkeeper.ledger.keep;
    if let Some(keep) = kept.or(conf.general.maximum_spend_logs_retention_period) {
        background.spawn(ledger::retention::keep_tidy(Arc::clone(&store), keep));
    }
    let telemetry = Arc::new(
        Telemetry::new()
            .map_err(|e| Failed::Other(EXIT_FAILED, format!("the metrics cannot be set up: {e}")))?,
    );
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    let parties = Arc::new(Parties::new(Arc::clone(&store)));
    let keys = Arc::new(KeyCache::new(
        Arc::clone(&store),
        Arc::clone(&parties),
        Arc::clone(&clock),
    ));
    let (alerts, posting) = Alerts::new(conf.meters.webhook.as_ref().map(|u| u.expose().into()))
        .map_err(|e| Failed::Other(EXIT_FAILED, format!("alerts cannot be sent: {e}")))?;
    background.spawn(posting);
    let agreement = agreement(&background, &conf, &data_dir)?;
    let unlanded = Arc::clone(&ledger);
    let world = meters::World {
        store: Arc::clone(&store),
        clock: Arc::clone(&clock),
        unlanded: Box::new(move |accounts| unlanded.unlanded(accounts)),
        parties,
        agreement,
        events: Arc::new(Voices {
            telemetry: Arc::clone(&telemetry),
            alerts,
        }),
    };
    let settings = meter_settings(&conf).map_err(Failed::Unusable)?;
    let calendar = settings.calendar.clone();
    let meters = Meters::new(world, settings);
    background.spawn(Arc::clone(&keys).listen(Arc::clone(&meters)));
    background.spawn(Arc::clone(&meters).tend());
    let ports = Ports {
        keys: Arc::clone(&keys) as _,
        limiter: Arc::new(Gate(Arc::clone(&meters))),
        ledger: Arc::new(Books {
            ledger: Arc::clone(&ledger),
            meters: Arc::clone(&meters),
        }),
        metrics: Arc::clone(&telemetry) as _,
        clock: Arc::clone(&clock),
        master: Some(MasterKey::new(key.secret.expose().into())),
    };
    let snapshot = Snapshot::new(&conf, &registry, &ports).map_err(Failed::Unusable)?;
    let drain = snapshot.timeouts.drain;
    let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
    let reload = Arc::new(Reload::new(reload::Parts {
        path: conf.source.path.clone(),
        env: env.clone(),
        registry,
        ports,
        snapshot: Arc::clone(&snapshot),
        store: Arc::clone(&store),
        seal: master_key::seal(&conf, &key.secret),
        conf: conf.clone(),
        data_dir: data_dir.clone(),
        tls: tls.clone(),
    }));
    // The models of the store serve from the first call on. One that is away is asked again later.
    let _ = background.block_on(async {
        tokio::time::timeout(FIRST_READING, async {
            store.ready().await;
            reload.apply(Origin::Store).await
        })
        .await
    });
    let models = (snapshot.load().models.deployments().map(|d| d.model_name.clone())).collect();
    background.spawn(Arc::clone(&reload).watch());
    let notify = Arc::new(Notify::new(env));
    background.spawn(on_hangup(
        hangups,
        Arc::clone(&reload),
        tls.clone(),
        Arc::clone(&notify),
    ));
    if let Some(tls) = &tls {
        background.spawn(Arc::clone(tls).watch());
    }

    let in_flight = Arc::new(InFlight::default());
    let health = Arc::new(Health::new(Arc::clone(&store), Arc::clone(&ledger)));
    let (catalog, policy, master) = (
        Arc::clone(&snapshot),
        Arc::clone(&snapshot),
        Arc::clone(&snapshot),
    );
    let (unlanded, held) = (Arc::clone(&ledger), Arc::clone(&meters));
    // First what is set aside: a call that ends in between counts twice, never not at all.
    let unlanded = move |accounts: &[&Account]| {
        let set_aside = held.set_aside(accounts);
        let unlanded = unlanded.unlanded(accounts).into_iter();
        let both = unlanded.zip(set_aside);
        both.map(|(spent, held)| spent.saturating_add(held)).collect()
    };
    let admin = admin::router(admin::Admin {
        store: Arc::clone(&store),
        keys,
        catalog: Arc::new(move || Arc::clone(&catalog.load().models) as _),
        policy: Arc::new(move || Arc::clone(&policy.load().policy)),
        is_master: Arc::new(move |hash| master.load().master.as_ref() == Some(hash)),
        unlanded: Arc::new(unlanded),
        calendar,
        clock,
        reload,
    });
    let scrape = {
        let (telemetry, ledger, in_flight) = (telemetry, Arc::clone(&ledger), Arc::clone(&in_flight));
        let tls = tls.clone();
        Arc::new(move || {
            telemetry.render(&Gauges {
                in_flight: in_flight.count(),
                ledger: ledger.stats(),
                meters: meters.stats(),
                waiting: meters.waiting(),
                certificates: tls.as_ref().map(|tls| tls.ends()).unwrap_or_default(),
            })
        })
    };

    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let server_conf = ServerConf {
        threads,
        upstream_keepalive_pool_size: KEEPALIVE_POOL,
        grace_period_seconds: Some(drain.as_secs()),
        graceful_shutdown_timeout_seconds: Some(1),
        upgrade_sock: data_dir.join("upgrade.sock").to_string_lossy().into_owned(),
        pid_file: data_dir.join("tollkeeper.pid").to_string_lossy().into_owned(),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, server_conf);
    server.bootstrap();
    let gateway = Gateway {
        snapshot,
        connector: Connector::new(Some(ConnectorOptions::from_server_conf(&server.configuration))),
        peers: Peers::default(),
        admin,
        health: Arc::clone(&health),
        scrape,
        in_flight: Arc::clone(&in_flight),
        room: Arc::new(Semaphore::new(proxy::ROOM)),
        redirect: redirect(&listeners),
    };
    for service in
        services(gateway, &server.configuration, &listeners, tls.as_deref()).map_err(Failed::Unusable)?
    {
        server.add_service(service);
    }

    Ok(Running {
        server,
        background,
        ledger,
        health,
        in_flight,
        drain,
        greeting: Greeting {
            begun,
            addresses,
            tls: listeners.first().is_some_and(|l| l.tls.is_some()),
            config: conf.source.path.clone(),
            found,
            key,
            data_dir,
            store: store.kind(),
            models,
        },
        notify,
    })
}

/// One service for the listeners with HTTP/2 and one for those without; what is behind them is the same.
fn services(
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
fn redirect(listeners: &[Listener]) -> Redirect {
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

impl Running {
    fn run(self) -> i32 {
        let Running {
            server,
            background,
            ledger,
            health,
            in_flight,
            drain,
            greeting,
            notify,
        } = self;
        let mut phases = server.watch_execution_phase();
        let told = Arc::clone(&notify);
        let threads = background.handle().clone();
        std::thread::spawn(move || {
            let local = greeting.local();
            if let (Some(at), Some(status)) = (local, greeting.tell()) {
                told.ready(&status);
                threads.spawn(told.watch(at));
            }
        });
        // Pingora sleeps its whole grace period even when nothing is left to do. This thread leaves as
        // soon as the last request is over and the ledger has had its chance.
        std::thread::spawn(move || {
            loop {
                match phases.blocking_recv() {
                    Ok(
                        ExecutionPhase::GracefulTerminate | ExecutionPhase::GracefulUpgradeTransferringFds,
                    ) => {
                        health.leave();
                        notify.stopping(drain);
                        log::info!("leaving: requests in flight may go on for {} s", drain.as_secs());
                    }
                    Ok(ExecutionPhase::ShutdownGracePeriod | ExecutionPhase::ShutdownRuntimes) => break,
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            // Connections that look idle may carry a request that is on its way.
            std::thread::sleep(LINGER);
            let until = Instant::now() + drain;
            while in_flight.count() > 0 && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            // What was handed over last may still be in a connection's buffer.
            std::thread::sleep(LAST_BYTES);
            let landed = background.block_on(ledger.drain(LAST_FLUSH));
            log::info!(
                "stopped: {} requests cut off, ledger {}",
                in_flight.count(),
                if landed {
                    "all in the store"
                } else {
                    "kept in the spool"
                }
            );
            log::logger().flush();
            std::process::exit(0);
        });
        server.run(RunArgs::default());
        // The thread above ends the process; this one may come here first.
        std::thread::sleep(drain + LAST_FLUSH);
        0
    }
}

/// A second SIGTERM does not wait, and SIGHUP does not kill. The handlers stand when this returns: before
/// any listener, since a signal may come as soon as somebody can see the process.
fn watch_signals(background: &tokio::runtime::Runtime) -> std::io::Result<Signal> {
    let _context = background.enter();
    let mut term = signal(SignalKind::terminate())?;
    background.spawn(async move {
        term.recv().await;
        if term.recv().await.is_some() {
            log::warn!("a second SIGTERM: leaving at once");
            std::process::exit(EXIT_FAILED);
        }
    });
    signal(SignalKind::hangup())
}

async fn on_hangup(mut hup: Signal, reload: Arc<Reload>, tls: Option<Arc<Tls>>, notify: Arc<Notify>) {
    while hup.recv().await.is_some() {
        notify.reloading();
        // The outcome is in the log and in the status, too.
        let applied = reload.apply(Origin::Signal).await;
        if let Some(tls) = &tls {
            tls.refresh().await;
        }
        notify.ready(&match applied {
            Ok(applied) => format!("Ready: config {}", applied.generation),
            Err(_) => "Ready: the old config, since the new one cannot be used; see the log".to_string(),
        });
    }
}

/// The ledger, and the meters that have to know of each row.
struct Books {
    ledger: Arc<Ledger>,
    meters: Arc<Meters>,
}

impl LedgerPort for Books {
    fn append(&self, record: Record) {
        let charged = self.meters.charged(&record);
        let (nanos, ended) = (record.spend_nanos, record.ended_micros);
        // First here, then there: whoever reads in between counts it twice, never not at all.
        LedgerPort::append(&*self.ledger, record);
        self.meters.spent(&charged, nanos, ended);
    }
}

/// What is told of limits outside of answers.
struct Voices {
    telemetry: Arc<Telemetry>,
    alerts: Alerts,
}

impl Events for Voices {
    fn soft_budget_crossed(&self, crossed: &Crossed<'_>) {
        self.telemetry.soft_budget_crossed(crossed.account.kind);
        self.alerts.soft_budget_crossed(crossed);
    }

    fn refused(&self, kind: Kind, why: &Why) {
        self.telemetry.limit_refused(kind, why);
    }
}

/// What the config says of budgets and limits. `Err` is a sentence.
fn meter_settings(conf: &Conf) -> Result<meters::Settings, String> {
    let said = &conf.meters;
    let gateway = Limits::of(&said.gateway);
    let allowances = gateway.models.values().map(|m| &m.budget);
    for allowance in allowances.chain([&gateway.budget]) {
        if let Some(text) = allowance.period.as_deref().filter(|t| !period::is_period(t)) {
            return Err(format!(
                "budget_duration {text:?}: a period is a number and a unit, such as 30d or 1mo"
            ));
        }
    }
    let reset = if said.rolling {
        Reset::Rolling
    } else {
        Reset::Calendar
    };
    Ok(meters::Settings {
        calendar: Calendar {
            zone: said.zone.clone().unwrap_or(jiff::tz::TimeZone::UTC),
            reset,
        },
        gateway,
        end_user_budget_nanos: said.end_user_budget_nanos,
        queue: said.queue.as_ref().map(|q| meters::QueueSettings {
            max_wait: q.max_wait,
            max_waiting: q.max_waiting,
        }),
    })
}

/// The line to Redis, where the config names one.
fn agreement(
    background: &tokio::runtime::Runtime,
    conf: &Conf,
    data_dir: &Path,
) -> Result<Option<Arc<Agreement>>, Failed> {
    let Some(url) = &conf.meters.redis else {
        return Ok(None);
    };
    let url = url.expose().into();
    Agreement::check(&url).map_err(|e| Failed::Unusable(format!("the address of Redis: {e}")))?;
    let replica = replica_name(data_dir)
        .map_err(|e| Failed::Other(EXIT_FAILED, format!("the replica's name cannot be kept: {e}")))?;
    let _context = background.enter();
    Ok(Some(Agreement::connect(
        &url,
        &conf.meters.redis_prefix,
        &replica,
    )))
}

/// This replica's lasting name: what it holds in Redis after a restart is its own again.
fn replica_name(data_dir: &Path) -> std::io::Result<String> {
    let path = data_dir.join("replica");
    match std::fs::read_to_string(&path) {
        Ok(name) if uuid::Uuid::parse_str(name.trim()).is_ok() => Ok(name.trim().to_string()),
        _ => {
            let name = uuid::Uuid::new_v4().to_string();
            std::fs::write(&path, &name)?;
            Ok(name)
        }
    }
}

struct WallClock;

impl Clock for WallClock {
    fn now_micros(&self) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_micros() as i64)
    }
}

fn open_store(
    background: &tokio::runtime::Runtime,
    conf: &Conf,
    data_dir: &Path,
) -> Result<Arc<dyn Store>, Failed> {
    let address = match &conf.general.database_url {
        Some(url) => {
            Address::parse(url.expose()).map_err(|e| Failed::Unusable(format!("database_url: {e}")))?
        }
        None => Address::Sqlite(data_dir.join("tollkeeper.db")),
    };
    let mut settings = store::Settings::default();
    if let Some(n) = conf.general.database_connection_pool_limit {
        settings.pool_size = n as usize;
    }
    background
        .block_on(store::open(&address, &settings))
        .map_err(|e| Failed::Other(EXIT_UNAVAILABLE, format!("the database cannot be opened: {e}")))
}

/// The config's listeners; the command line changes the first one.
fn listeners(options: &Serve, conf: &Conf) -> Vec<Listener> {
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

fn cannot_listen(address: SocketAddr, e: &std::io::Error) -> Failed {
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

fn make_private_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
