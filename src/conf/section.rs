//! Reads our own section, `tollkeeper:`. Unknown fields are errors here: a typing error must not
//! leave a limit or a lane without effect.

use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::bounds;
use super::fields::Fields;
use super::meters::{self, Meters};
use super::node::{Node, Value};
use super::own::{Driver, FilterUse, Lane, LaneAuth, LogFormat, LogRequests, Own, RateLimit, RateSource};
use super::pass_through::route_path;
use super::report::Notes;
use super::services::{self, UnknownHosts};
use super::settings::top_section;
use super::text::{base_url, shown};
use super::{tls, tracing, watch};

const DAY: Duration = Duration::from_secs(86_400);

const AUTH: [(&str, LaneAuth); 3] = [
    ("required", LaneAuth::Required),
    ("internal", LaneAuth::Internal),
    ("open", LaneAuth::Open),
];

/// Overwrites in `own` what the file says. Relative paths start at `dir`.
pub(super) fn read(root: &Node, notes: &Notes, dir: &Path, own: &mut Own, meters: &mut Meters) {
    let Some(section) = top_section(root, "tollkeeper") else {
        return;
    };
    let Some(fields) = Fields::open(&section.value, notes, "tollkeeper") else {
        return;
    };
    if let Some(section) = fields.child("tls") {
        own.tls = tls::section(&section, dir);
        section.refuse_rest();
    }
    if let Some(items) = fields.list("listeners") {
        own.listeners = items
            .iter()
            .enumerate()
            .filter_map(|(i, item)| tls::listener(item, i, &fields, dir, &own.tls.handshake))
            .collect();
        if items.is_empty()
            && let Some(entry) = fields.entry("listeners")
        {
            drop(
                fields
                    .error("missing", "without a listener nobody can connect", entry.key_at)
                    .help("remove the key for the default, port 4000"),
            );
        }
    }
    if let Some(data_dir) = fields.text("data_dir") {
        own.data_dir = dir.join(data_dir);
    }
    set(
        &mut own.internal_networks,
        fields.parsed_list("internal_networks", "network", network),
    );
    set(
        &mut own.trusted_proxies,
        fields.parsed_list("trusted_proxies", "network", network),
    );
    bounds::read(&fields, own, meters);
    if let Some(rate) = fields.child("rate_limit") {
        own.rate_limit = rate_limit(&rate);
        rate.refuse_rest();
    }
    meters::own(&fields, meters);
    watch::own(&fields, &mut own.watch);
    tracing::own(&fields, &mut own.tracing);
    if let Some(log) = fields.child("log") {
        use log::LevelFilter::{Debug, Error, Info, Off, Trace, Warn};
        let levels = [
            ("error", Error),
            ("warn", Warn),
            ("info", Info),
            ("debug", Debug),
            ("trace", Trace),
            ("off", Off),
        ];
        set(&mut own.log.level, log.choice("level", &levels));
        let formats = [
            ("auto", LogFormat::Auto),
            ("text", LogFormat::Text),
            ("json", LogFormat::Json),
        ];
        set(&mut own.log.format, log.choice("format", &formats));
        let requests = [
            ("all", LogRequests::All),
            ("errors", LogRequests::Errors),
            ("off", LogRequests::Off),
        ];
        set(&mut own.log.requests, log.choice("requests", &requests));
        set(&mut own.log.most_per_second, log.small_count("most_per_second"));
        log.refuse_rest();
    }
    if let Some(cors) = fields.child("cors") {
        set(
            &mut own.cors.allow_origins,
            cors.parsed_list("allow_origins", "url", origin),
        );
        cors.refuse_rest();
    }
    if let Some(metrics) = fields.child("metrics") {
        set(&mut own.metrics.enabled, metrics.flag("enabled"));
        set(&mut own.metrics.path, metrics.parsed("path", "path", route_path));
        set(&mut own.metrics.auth, metrics.choice("auth", &AUTH));
        set(
            &mut own.metrics.allow,
            metrics.parsed_list("allow", "network", network),
        );
        if own.metrics.auth != LaneAuth::Internal
            && let Some(entry) = metrics.entry("allow")
        {
            drop(
                metrics
                    .warning(
                        "without-effect",
                        "`allow` says who needs no key with `auth: internal`",
                        entry.key_at,
                    )
                    .label("without effect"),
            );
        }
        own.metrics.litellm_names = metrics.flag("litellm_names");
        metrics.refuse_rest();
    }
    own.services = services::services(&fields, &own.timeouts, dir);
    own.hosts = services::hosts(&fields);
    let unknown = [("serve", UnknownHosts::Serve), ("refuse", UnknownHosts::Refuse)];
    own.unknown_hosts = match fields.choice("unknown_hosts", &unknown) {
        Some(said) => said,
        None if own.hosts.all().next().is_some() => UnknownHosts::Refuse,
        None => UnknownHosts::Serve,
    };
    if let Some(items) = fields.list("lanes") {
        own.lanes = items
            .iter()
            .enumerate()
            .filter_map(|(i, item)| lane(item, i, &fields))
            .collect();
    }
    if let Some(ledger) = fields.child("ledger") {
        set(&mut own.ledger.batch, ledger.count("batch"));
        set(&mut own.ledger.flush_every, ledger.some_time("flush_every"));
        if !(1..=5_000).contains(&own.ledger.batch)
            && let Some(entry) = ledger.entry("batch")
        {
            drop(ledger.error("number", "`batch` must be from 1 to 5000 rows", entry.value.at));
        }
        if let Some(keep) = ledger.some_time("keep") {
            if keep < DAY
                && let Some(entry) = ledger.entry("keep")
            {
                drop(
                    ledger
                        .error("duration", "`keep` must be at least one day", entry.value.at)
                        .help("for example `keep: 400d`; leave it out to keep rows for ever"),
                );
            }
            own.ledger.keep = Some(keep);
        }
        ledger.refuse_rest();
    }
    fields.refuse_rest();
}

fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

/// `10.0.0.0/8`, or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    let net = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    let net =
        net.map_err(|_| "a network is written 10.0.0.0/8 or fd00::/8, an address 10.1.2.3".to_owned())?;
    Ok(net.trunc())
}

/// `https://chat.example.com`, or `*`.
fn origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let base = base_url(text)?;
    match base.split_once("://") {
        Some((_, rest)) if rest.contains(['/', '?', '#']) => {
            Err("an origin is scheme, host and port, without a path".into())
        }
        _ => Ok(base.to_ascii_lowercase()),
    }
}

/// `{average: 100, burst: 200}`; an average of 0 is no limit, as Traefik has it.
fn rate_limit(fields: &Fields<'_>) -> Option<RateLimit> {
    let count = |name: &'static str, default: u32| {
        let n = fields.count(name)?;
        match u32::try_from(n) {
            Ok(n) => Some(n),
            Err(_) => {
                if let Some(entry) = fields.entry(name) {
                    drop(fields.error("number", format!("`{name}` is too large"), entry.value.at));
                }
                Some(default)
            }
        }
    };
    let average = count("average", 0);
    let burst = count("burst", 1).unwrap_or(1).max(1);
    let period = fields.some_time("period").unwrap_or(Duration::from_secs(1));
    let source = match fields.child("source") {
        None => RateSource::Client,
        Some(source) => {
            let forwarded = source.count("forwarded");
            let header = source.parsed("header", "header", |name| {
                http::HeaderName::try_from(name)
                    .map(|n| n.as_str().to_owned())
                    .map_err(|_| "this is no name that a header can have".into())
            });
            let peer = source.flag("peer").unwrap_or(false);
            source.refuse_rest();
            match (forwarded, header, peer) {
                (None, None, false) => RateSource::Client,
                (None, None, true) => RateSource::Peer,
                (Some(n), None, false) => RateSource::Forwarded(u32::try_from(n).unwrap_or(u32::MAX).max(1)),
                (None, Some(name), false) => RateSource::Header(name),
                _ => {
                    if let Some(entry) = fields.entry("source") {
                        drop(fields.error("rate-limit", "a source is named in one way only", entry.key_at));
                    }
                    RateSource::Client
                }
            }
        }
    };
    if average.is_none()
        && let Some(entry) = fields.all().first()
        && !fields.all().iter().any(|e| e.key == "average")
    {
        drop(
            fields
                .error("missing", "`average` is missing", entry.key_at)
                .help("requests per `period`, for example `average: 100`"),
        );
    }
    Some(RateLimit {
        average: average.filter(|n| *n > 0)?,
        period,
        burst,
        source,
    })
}

fn lane(item: &Node, index: usize, above: &Fields<'_>) -> Option<Lane> {
    let fields = Fields::open(item, above.notes, above.below(&format!("lanes[{index}]")))?;
    let has = |key: &str| fields.all().iter().any(|e| e.key == key && !e.value.is_null());
    for key in ["name", "paths", "driver"] {
        if !has(key) {
            drop(fields.error("missing", format!("`{key}` is missing in a lane"), item.at));
        }
    }
    let drivers = [
        ("call", Driver::Call),
        ("stream", Driver::Stream),
        ("admin", Driver::Admin),
    ];
    let name = fields.text("name");
    let hosts = fields.parsed_list("hosts", "host", host).unwrap_or_default();
    let paths = fields.parsed_list("paths", "path", lane_path);
    let driver = fields.choice("driver", &drivers);
    let target = fields.parsed("target", "url", |text| base_url(text).map_err(str::to_owned));
    let way = services::way(&fields, driver);
    let auth = fields.choice("auth", &AUTH).unwrap_or(LaneAuth::Required);
    let filters = fields
        .list("filters")
        .map(|items| items.iter().filter_map(|item| filter(item, &fields)).collect());
    match (driver, fields.entry("target")) {
        (Some(Driver::Stream), None) if way.service.is_none() => {
            drop(
                fields
                    .error(
                        "missing",
                        "a stream lane needs a `target` or a `service`",
                        item.at,
                    )
                    .help("for example `target: http://host:8000`"),
            );
        }
        (Some(Driver::Stream), Some(entry)) if way.service.is_some() => {
            drop(fields.error(
                "target",
                "a lane has a `target` or a `service`, not both",
                entry.key_at,
            ));
        }
        (Some(Driver::Call | Driver::Admin), Some(entry)) => {
            drop(
                fields
                    .error("target", "only a stream lane has a `target`", entry.key_at)
                    .help("a call lane finds its upstreams in model_list"),
            );
        }
        _ => {}
    }
    fields.refuse_rest();
    Some(Lane {
        name: name?,
        hosts,
        paths: paths?,
        driver: driver?,
        target,
        service: way.service,
        methods: way.methods,
        strip_prefix: way.strip_prefix,
        add_prefix: way.add_prefix,
        priority: way.priority,
        filters,
        auth,
        at: item.at,
    })
}

/// `llm.example.com`, or `*.example.com`.
pub(super) fn host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix("*.").unwrap_or(text);
    let good = !bare.is_empty()
        && bare.len() <= 253
        && bare.split('.').all(|part| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        });
    if good {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a host is a name such as llm.example.com or *.example.com, without a port".into())
    }
}

/// `/health`, or `/tts/*`.
fn lane_path(text: &str) -> Result<String, String> {
    match text.strip_suffix("/*") {
        Some("") => Ok("/*".into()),
        Some(start) if !start.contains('*') => route_path(start).map(|path| format!("{path}/*")),
        None if !text.contains('*') => route_path(text),
        _ => Err("a `*` stands only at the end, as `/*`".into()),
    }
}

/// A name, or a name with settings below it.
fn filter(item: &Node, above: &Fields<'_>) -> Option<FilterUse> {
    match &item.value {
        Value::Scalar(s) if !s.is_null() => Some(FilterUse {
            name: s.text.clone(),
            settings: serde_json::Value::Null,
            at: item.at,
        }),
        Value::Map(entries) if entries.len() == 1 => entries.first().map(|entry| FilterUse {
            name: entry.key.clone(),
            settings: entry.value.to_json(),
            at: entry.key_at,
        }),
        _ => {
            let message = format!(
                "a filter is a name, or one name with its settings below; this is {}",
                shown(item.kind())
            );
            drop(
                above
                    .error("type", message, item.at)
                    .help("write `- auth` or `- auth: {…}`"),
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::{Env, load_text};

    #[test]
    fn litellms_switch_is_ours_unless_we_say_otherwise() {
        #[track_caller]
        fn check(text: &str, wanted: bool, complaints: usize) {
            let loaded = match load_text("config.yaml", text, &Env::default()) {
                Ok(loaded) => loaded,
                Err(report) => panic!("{}", report.render(false)),
            };
            assert_eq!(loaded.conf.metrics_speak_litellm(), wanted, "{text}");
            let found = loaded
                .report
                .problems
                .iter()
                .filter(|p| p.message.contains("callback"));
            assert_eq!(found.count(), complaints, "{text}");
        }
        check("model_list: []", false, 0);
        check("litellm_settings: {callbacks: [prometheus]}", true, 0);
        check("litellm_settings: {success_callback: [datadog]}", false, 1);
        check(
            "litellm_settings: {failure_callback: [datadog, prometheus]}",
            true,
            1,
        );
        check("tollkeeper: {metrics: {litellm_names: true}}", true, 0);
        check(
            "{litellm_settings: {callbacks: [prometheus]}, tollkeeper: {metrics: {litellm_names: false}}}",
            false,
            0,
        );
    }

    #[test]
    fn networks_that_may_read_metrics() {
        let load = |text: &str| load_text("config.yaml", text, &Env::default());
        let loaded = load("tollkeeper: {metrics: {allow: [10.1.2.3, fd00::/8]}}").unwrap();
        let allow = &loaded.conf.tollkeeper.metrics.allow;
        let shown: Vec<String> = allow.iter().map(|n| n.to_string()).collect();
        assert_eq!(shown, ["10.1.2.3/32", "fd00::/8"]);
        let loaded = load("tollkeeper: {metrics: {allow: [10.1.2.3], auth: open}}").unwrap();
        assert!(loaded.report.render(false).contains("`allow` says who"));
        assert!(load("tollkeeper: {metrics: {allow: [everybody]}}").is_err());
    }

    #[test]
    fn rows_are_kept_as_long_as_is_said() {
        let env = Env::default();
        let of = |text: &str| match load_text("config.yaml", text, &env) {
            Ok(loaded) => loaded.conf,
            Err(report) => panic!("{}", report.render(false)),
        };
        assert_eq!(of("model_list: []").tollkeeper.ledger.keep, None);
        let day = Duration::from_secs(86_400);
        let conf = of(
            "tollkeeper: {ledger: {keep: 400d}}\ngeneral_settings: {maximum_spend_logs_retention_period: 7d}",
        );
        assert_eq!(conf.tollkeeper.ledger.keep, Some(day * 400));
        assert_eq!(conf.general.maximum_spend_logs_retention_period, Some(day * 7));
        for keep in ["1h", "0", "forever", "-1d"] {
            let text = format!("tollkeeper: {{ledger: {{keep: {keep}}}}}");
            let report = load_text("config.yaml", &text, &env).expect_err(keep);
            assert!(report.render(false).contains("keep"), "{keep}");
        }
    }
}
