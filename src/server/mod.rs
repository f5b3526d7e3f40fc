//! Puts the process together and runs it: config, store, ledger, snapshot, listeners. Where it listens is
//! in `listen`, the world outside in `world`, signals and the way out in `leave`, how another process takes
//! its place in `replace`.

mod leave;
mod listen;
mod replace;
mod world;

use self::leave::{Running, Stage, on_hangup, watch_signals};
use self::listen::{Doors, listeners, redirect, services, sockets};
use self::replace::Replacing;
use self::world::{Books, Voices, WallClock, agreement, open_store, redis_state, traces_state};
use crate::alerts::watch::Watch;
use crate::alerts::{Alerts, Once};
use crate::conf::{self, CertificateFiles, EXIT_CONFIG, Env, Report};
use crate::gauges::Gauges;
use crate::greeting::Greeting;
use crate::health::Health;
use crate::health::endpoints::Endpoints;
use crate::ledger::{self, Ledger};
use crate::notify::Notify;
use crate::proxy::door::caps::Caps;
use crate::proxy::drain::InFlight;
use crate::proxy::linger::GoodBye;
use crate::proxy::{self, Gateway, peer::Peers};
use crate::reload::{self, Origin, Reload};
use crate::shared::keys::KeyCache;
use crate::shared::meters::{self, Gate, Meters};
use crate::shared::parties::Parties;
use crate::shared::period;
use crate::snapshot::{Snapshot, meter_settings};
use crate::telemetry::metrics::Telemetry;
use crate::telemetry::metrics::page::{Page, Source};
use crate::tls::Tls;
use crate::traces::Exporters;
use crate::upgrade::new::Inherited;
use crate::{admin, discover, master_key, upgrade};
use anstream::eprintln;
use arc_swap::ArcSwap;
use filters::contract::Registry;
use filters::contract::ports::{Clock, Ports};
use filters::model::account::Account;
use filters::model::key::MasterKey;
use parking_lot::Mutex;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// Exit codes, as sysexits has them.
const EXIT_FAILED: i32 = 1;
const EXIT_UNAVAILABLE: i32 = 69;

/// Upstream connections kept open for reuse. Pingora's own 128 is for the whole process.
const KEEPALIVE_POOL: usize = 1024;
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
    let mut inherited = match Inherited::receive(env) {
        Ok(inherited) => inherited,
        Err(why) => {
            eprintln!("error: {why}");
            return EXIT_FAILED;
        }
    };
    let failed = match start(options, registry, env, begun, inherited.as_mut()) {
        Ok(running) => return running.run(inherited),
        Err(failed) => failed,
    };
    // What was logged on the way is told before the reason.
    log::logger().flush();
    let (code, plain) = match failed {
        Failed::Config(report) => {
            eprintln!("{}", report.render(true));
            (EXIT_CONFIG, report.render(false))
        }
        Failed::Unusable(what) => {
            eprintln!("error: {what}");
            (EXIT_CONFIG, what)
        }
        Failed::Other(code, what) => {
            eprintln!("error: {what}");
            (code, what)
        }
    };
    if let Some(inherited) = inherited {
        inherited.failed(&plain);
    }
    code
}

/// Why the process does not start.
enum Failed {
    Config(Report),
    /// The config is well-formed and cannot be built.
    Unusable(String),
    Other(i32, String),
}

fn start(
    options: &Serve,
    registry: Registry,
    env: &Env,
    begun: Instant,
    inherited: Option<&mut Inherited>,
) -> Result<Running, Failed> {
    // Before anybody puts another file in its place.
    let binary = upgrade::own_binary().map_err(|e| format!("nobody knows where this binary is: {e}"));
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

    let stages = Arc::new(watch::Sender::new(Stage::Starting));
    let signals = watch_signals(&background, &stages)
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
    let key = master_key::find(&conf, &data_dir).map_err(|e| {
        let file = master_key::file(&data_dir);
        let what = format!("the master key file {} cannot be used: {e}", file.display());
        Failed::Other(EXIT_FAILED, what)
    })?;
    let listeners = listeners(options, &conf);
    let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.address).collect();
    let sockets = sockets(&listeners, inherited)?;

    let tls = Tls::open(&conf, &listeners, options.certificate.clone()).map_err(Failed::Unusable)?;

    let store = open_store(&background, &conf, &data_dir)?;
    let ledger_settings = ledger::Settings {
        batch_records: usize::try_from(conf.tollkeeper.ledger.batch).unwrap_or(1000),
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
    background.spawn(ledger::digest::keep_digested(Arc::clone(&store)));
    let telemetry = Arc::new(Telemetry::new());
    let caps = Arc::new(Caps::default());
    let counted = Arc::clone(&caps);
    telemetry.add(move |page: &mut Page| counted.gather(page));
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    let parties = Arc::new(Parties::new(Arc::clone(&store)));
    let keys = Arc::new(KeyCache::new(
        Arc::clone(&store),
        Arc::clone(&parties),
        Arc::clone(&clock),
    ));
    let (agreement, replica) = agreement(&background, &conf, &data_dir)?.unzip();
    let once = Once {
        redis: agreement.clone(),
        store: Some(Arc::clone(&store)),
    };
    let (alerts, posting) = Alerts::open(&conf.tollkeeper.watch.alerts, Some(&data_dir), once)
        .map_err(|e| Failed::Other(EXIT_FAILED, format!("alerts cannot be sent: {e}")))?;
    let alerts = Arc::new(alerts);
    background.spawn(posting);
    let warned = Arc::clone(&alerts);
    telemetry.add(move |page: &mut Page| warned.gather(page));
    telemetry.add(|page: &mut Page| crate::telemetry::log::gather(page));
    let redis = agreement.clone();
    let unlanded = Arc::clone(&ledger);
    let world = meters::World {
        store: Arc::clone(&store),
        clock: Arc::clone(&clock),
        unlanded: Box::new(move |accounts| unlanded.unlanded(accounts)),
        parties,
        agreement,
        events: Arc::new(Voices {
            telemetry: Arc::clone(&telemetry),
            alerts: Arc::clone(&alerts),
        }),
    };
    let settings = meter_settings(&conf).map_err(Failed::Unusable)?;
    period::serve_by(&settings.calendar);
    let meters = Meters::new(world, settings);
    background.spawn(Arc::clone(&keys).listen(Arc::clone(&meters)));
    background.spawn(Arc::clone(&meters).tend());
    let untraced = |e: String| Failed::Other(EXIT_FAILED, format!("calls cannot be traced: {e}"));
    let seal = master_key::seal(&conf, &key.secret);
    let tracing = &conf.tollkeeper.tracing;
    let traces = Exporters::start(tracing, &conf.env, seal.clone()).map_err(untraced)?;
    let traces = Arc::new(traces);
    let ports = Ports {
        keys: Arc::clone(&keys) as _,
        limiter: Arc::new(Gate(Arc::clone(&meters))),
        ledger: Arc::new(Books {
            ledger: Arc::clone(&ledger),
            meters: Arc::clone(&meters),
        }),
        metrics: Arc::clone(&telemetry) as _,
        traces: traces.generation(tracing).map_err(untraced)?,
        clock: Arc::clone(&clock),
        master: Some(MasterKey::new(key.secret.expose().into())),
    };
    let snapshot = Snapshot::new(&conf, &registry, &ports).map_err(Failed::Unusable)?;
    let drain = snapshot.timeouts.drain;
    let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
    let limited = Arc::clone(&meters);
    let reload = Arc::new(Reload::new(reload::Parts {
        path: conf.source.path.clone(),
        env: env.clone(),
        registry,
        ports,
        snapshot: Arc::clone(&snapshot),
        store: Arc::clone(&store),
        seal,
        conf: conf.clone(),
        data_dir: data_dir.clone(),
        tls: tls.clone(),
        limits: Box::new(move |settings| limited.apply(settings)),
        alerts: Arc::clone(&alerts),
        traces: Arc::clone(&traces),
    }));
    // The models of the store serve from the first call on. One that is away is asked again later.
    let reached = background.block_on(async {
        tokio::time::timeout(FIRST_READING, async {
            store.ready().await;
            reload.apply(Origin::Store).await
        })
        .await
    });
    let models = (snapshot.load().models.deployments().map(|d| d.model_name.clone())).collect();
    background.spawn(Arc::clone(&reload).watch());
    background.spawn(proxy::services::check::watch(Arc::clone(&snapshot)));
    let notify = Arc::new(Notify::new(env));
    background.spawn(on_hangup(
        signals.hangup,
        Arc::clone(&reload),
        tls.clone(),
        Arc::clone(&notify),
    ));
    if let Some(tls) = &tls {
        background.spawn(Arc::clone(tls).watch());
        background.spawn(Arc::clone(tls).order());
    }

    let in_flight = Arc::new(InFlight::default());
    let unasked = |e: String| Failed::Other(EXIT_FAILED, format!("upstreams cannot be looked at: {e}"));
    let endpoints = Endpoints::new(Arc::clone(&snapshot), Arc::clone(&alerts)).map_err(unasked)?;
    let endpoints = Arc::new(endpoints);
    background.spawn(Arc::clone(&endpoints).watch());
    let (certificates, orders) = (tls.clone(), tls.clone());
    let watch = Watch {
        alerts,
        store: Arc::clone(&store),
        ledger: Arc::clone(&ledger),
        certificates: Box::new(move || certificates.as_ref().map(|tls| tls.ends()).unwrap_or_default()),
        failing: Box::new(move || orders.as_ref().map(|tls| tls.failing()).unwrap_or_default()),
    };
    background.spawn(watch.run());
    let health = Health::new(Arc::clone(&store), Arc::clone(&ledger), endpoints);
    let health = health.also("redis", redis_state(redis));
    let health = Arc::new(health.also("traces", traces_state(Arc::clone(&traces))));
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
        clock,
        reload: Arc::clone(&reload),
    });
    let shown = Arc::clone(&traces);
    telemetry.add(move |page: &mut Page| shown.gather(page));
    telemetry.add(Gauges {
        telemetry: Arc::downgrade(&telemetry),
        snapshot: Arc::clone(&snapshot),
        reload,
        in_flight: Arc::clone(&in_flight),
        ledger: Arc::clone(&ledger),
        meters: Arc::clone(&meters),
        health: Arc::clone(&health),
        tls: tls.clone(),
        store: store.kind(),
    });

    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let server_conf = ServerConf {
        threads,
        upstream_keepalive_pool_size: KEEPALIVE_POOL,
        grace_period_seconds: Some(drain.as_secs()),
        graceful_shutdown_timeout_seconds: Some(1),
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
        telemetry,
        in_flight: Arc::clone(&in_flight),
        room: Arc::new(Semaphore::new(proxy::ROOM)),
        redirect: redirect(&listeners),
        challenges: tls.as_ref().map(|tls| tls.challenges()).unwrap_or_default(),
    };
    let opened = Arc::new(watch::Sender::new(0));
    let good_bye = Arc::new(GoodBye::default());
    let doors = Doors {
        listeners: &listeners,
        sockets: &sockets,
        tls: tls.as_deref(),
        caps: &caps,
        good_bye: &good_bye,
        opened: &opened,
        quiet: conf.source.path.is_none(),
    };
    let services = services(gateway, &server.configuration, &doors).map_err(Failed::Unusable)?;
    let count = services.len();
    for service in services {
        server.add_service(service);
    }

    Ok(Running {
        server,
        background,
        ledger,
        traces,
        meters: Arc::clone(&meters),
        health: Arc::clone(&health),
        delay: conf.tollkeeper.timeouts.shutdown_delay,
        greeting: Greeting {
            begun,
            addresses,
            tls: listeners.first().is_some_and(|l| l.tls.is_some()),
            config: conf.source.path.clone(),
            found,
            key,
            data_dir: data_dir.clone(),
            store: store.kind(),
            reached: reached.is_ok(),
            models,
        },
        notify: Arc::clone(&notify),
        replacing: Arc::new(Replacing {
            sockets: Mutex::new(sockets),
            binary,
            args: std::env::args_os().skip(1).collect(),
            health,
            good_bye,
            in_flight,
            notify,
            drain,
            stages: Arc::clone(&stages),
            turn: tokio::sync::Mutex::new(()),
            heir: AtomicBool::new(false),
        }),
        replace_me: signals.replace_me,
        stages,
        opened,
        services: count,
        data_dir,
        replica,
    })
}

fn make_private_dir(dir: &Path) -> std::io::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => std::io::Error::new(e.kind(), "it is a file and no directory"),
        _ => e,
    })
}
