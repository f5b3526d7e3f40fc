//! What the gateway talks to: the database, Redis, the upstreams; and the running gateway itself.

use super::super::client::EXIT_UNAVAILABLE;
use super::super::show::counted;
use super::here::{metric, version};
use super::{Finding, Ward};
use crate::discover;
use crate::health::probe::{self, Seen, Target, Verdict};
use crate::proxy::models::Models;
use crate::shared::agreement;
use crate::store::probe::{Facts, facts};
use crate::store::{Address, Settings};
use crate::traces::probe as traces;
use filters::model::deployment::{Base, Deployment};
use futures::StreamExt;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Upstreams that are looked at at once.
const AT_ONCE: usize = 32;
/// For a name to be found.
const NAMES: Duration = Duration::from_secs(3);
/// A database that takes longer slows every first call of a key.
const SLOW: Duration = Duration::from_millis(100);
/// Models that are named in a line.
const MOST_NAMED: usize = 6;

pub async fn database(ward: &Ward<'_>) -> Finding {
    let name = "database";
    let general = &ward.conf.general;
    let address = match &general.database_url {
        Some(url) => Address::parse(url.expose()),
        None => Ok(Address::Sqlite(
            ward.conf.tollkeeper.data_dir.join("tollkeeper.db"),
        )),
    };
    let address = match address {
        Ok(address) => address,
        Err(e) => return Finding::fail(name, e.to_string(), "mend database_url or $DATABASE_URL"),
    };
    let is_file = matches!(address, Address::Sqlite(_));
    let asked = tokio::time::timeout_at(ward.deadline, facts(&address, &Settings::default())).await;
    let found = match asked {
        Ok(Ok(found)) => found,
        Ok(Err(e)) => {
            let why = e.to_string();
            let next = refused_by_database(&why);
            return Finding::fail(
                name,
                why,
                format!("{next} Meanwhile known keys go on working, new ones do not."),
            );
        }
        Err(_) => {
            return Finding::fail(
                name,
                "no answer in time",
                "is it running, and is a firewall between?",
            );
        }
    };
    match found {
        None => Finding::ok(name, "an SQLite file that is made at the first start"),
        Some(found) => judge(name, &found, is_file),
    }
}

/// What to do about a database that does not let us in. The codes are Postgres' own.
fn refused_by_database(why: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| why.contains(word));
    if has(&["(28P01)", "(28000)"]) {
        "Are user and password in database_url right, and does pg_hba.conf let them in from here?"
    } else if has(&["(3D000)"]) {
        "Make it with createdb, or name another in database_url."
    } else if has(&["lookup address", "Name or service"]) {
        "Is the host in database_url right, and known where the gateway runs?"
    } else {
        "Is it running, and is this its port?"
    }
}

fn judge(name: &str, found: &Facts, is_file: bool) -> Finding {
    let Facts {
        version,
        applied,
        known,
        took,
        ahead_micros,
    } = found;
    let message = format!("{version}, schema {applied}/{known}, {} ms", took.as_millis());
    let finding = if applied < known && *applied == 0 {
        Finding::warn(name, message, "its tables are made when the gateway starts")
    } else if applied < known {
        Finding::warn(
            name,
            message,
            "a gateway of this version brings it up to date when it starts",
        )
    } else if applied > known {
        Finding::warn(
            name,
            message,
            "a newer gateway has been here; this one can use it",
        )
    } else if *took > SLOW {
        Finding::warn(name, message, "that is slow: is it far away, or busy?")
    } else {
        Finding::ok(name, message)
    };
    match is_file {
        true => finding,
        false => finding.with_clock("the database", ahead_micros / 1_000_000),
    }
}

pub async fn redis(ward: &Ward<'_>) -> Option<Finding> {
    let name = "redis";
    let url = ward.conf.meters.redis.as_ref()?.expose().into();
    let asked = tokio::time::timeout_at(ward.deadline, agreement::ping(&url)).await;
    Some(match asked {
        Ok(Ok(took)) => Finding::ok(name, format!("it answers, {} ms", took.as_millis())),
        Ok(Err(why)) => {
            let next = match why.contains("password") {
                true => "The address takes it: redis://:PASSWORD@host:6379.",
                false => "Is it running?",
            };
            Finding::fail(
                name,
                why,
                format!("{next} Meanwhile each replica counts for itself."),
            )
        }
        Err(_) => Finding::fail(
            name,
            "no answer in time",
            "is it running, and is a firewall between?",
        ),
    })
}

/// One finding for each of those who are told of calls. Calls go on without them, but nobody sees them.
pub async fn receivers(ward: &Ward<'_>) -> Vec<Finding> {
    let looked = traces::look(&ward.conf.tollkeeper.tracing);
    match tokio::time::timeout_at(ward.deadline, looked).await {
        Ok(seen) => seen.iter().map(receiver).collect(),
        Err(_) => vec![Finding::fail(
            "traces",
            "no answer in time",
            "is Langfuse or the receiver running, and is a firewall between?",
        )],
    }
}

fn receiver(seen: &traces::Seen) -> Finding {
    let (name, at) = (seen.exporter, &seen.at);
    let is_langfuse = name == "langfuse";
    let fail = |message: String, next: &str| {
        Finding::fail(name, message, format!("calls are not told of there; {next}"))
    };
    match &seen.verdict {
        traces::Verdict::Well(Some(version)) => {
            Finding::ok(name, format!("{at}: version {version}, the keys are right"))
        }
        traces::Verdict::Well(None) => Finding::ok(name, format!("{at}: it takes what it is sent")),
        traces::Verdict::KeysRefused(status) => fail(
            format!("{at}: it does not accept the keys (status {status})"),
            match is_langfuse {
                true => "mend LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY: both are of one project there",
                false => "mend OTEL_EXPORTER_OTLP_HEADERS",
            },
        ),
        traces::Verdict::Strange(status) => fail(
            format!("{at}: it answers with status {status}"),
            match is_langfuse {
                true => "is that Langfuse? mend LANGFUSE_HOST: its address without a path",
                false => "is that a receiver of OTLP over HTTP? its port is mostly 4318, its path /v1/traces",
            },
        ),
        traces::Verdict::Failing(status) => fail(
            format!("{at}: it answers with status {status}"),
            "its own log says why",
        ),
        traces::Verdict::Away(why) => fail(
            format!("{at}: {why}"),
            "is it running, is the name right, and is a firewall between?",
        ),
    }
}

/// One finding per upstream, whatever number of deployments it serves; without a config, what a start would find.
pub async fn backends(ward: &Ward<'_>) -> Vec<Finding> {
    if ward.conf.source.path.is_none() {
        return found(discover::servers().await);
    }
    let models = match Models::new(ward.conf) {
        Ok(models) => models,
        // It was told as the config's.
        Err(_) => return Vec::new(),
    };
    let mut all: BTreeMap<String, (Target, Vec<Arc<Deployment>>)> = BTreeMap::new();
    for d in models.deployments() {
        let Some(target) = Target::of(d) else { continue };
        // Two keys at one server are two things to look at.
        let mut place = target.url.clone();
        while all.get(&place).is_some_and(|(known, _)| *known != target) {
            place.push(' ');
        }
        all.entry(place)
            .or_insert_with(|| (target, Vec::new()))
            .1
            .push(Arc::clone(d));
    }
    let client = match probe::client() {
        Ok(client) => client,
        Err(why) => {
            return vec![Finding::fail(
                "upstreams",
                why,
                "TLS cannot be set up: are there root certificates?",
            )];
        }
    };
    let looks = all.into_values().map(|(target, of)| {
        let client = &client;
        async move {
            match tokio::time::timeout_at(ward.deadline, backend(client, &target, &of)).await {
                Ok(finding) => finding,
                Err(_) => Finding::warn(
                    &named(&of),
                    format!("{}: not looked at in time", target.url),
                    "other looks took long: mend what is told above, then run this again",
                ),
            }
        }
    });
    futures::stream::iter(looks).buffered(AT_ONCE).collect().await
}

fn found(servers: Vec<discover::Server>) -> Vec<Finding> {
    let one = |server: &discover::Server| {
        let models = server.models.iter().map(String::as_str);
        let message = match server.models.is_empty() {
            true => format!("http://127.0.0.1:{}: it has no models yet", server.port),
            false => format!("http://127.0.0.1:{}: {}", server.port, list(models)),
        };
        Finding::ok(server.kind, message)
    };
    match servers.as_slice() {
        [] => vec![Finding::warn(
            "models",
            "no model server was found on this machine",
            "start Ollama, llama.cpp, vLLM or LM Studio on its usual port, or write a config.yaml",
        )],
        servers => servers.iter().map(one).collect(),
    }
}

fn named(of: &[Arc<Deployment>]) -> String {
    of.first().map(|d| d.base.host.clone()).unwrap_or_default()
}

async fn backend(client: &reqwest::Client, target: &Target, of: &[Arc<Deployment>]) -> Finding {
    let name = named(of);
    let base = target.url.trim_end_matches("/models");
    if let Some(first) = of.first()
        && let Err(why) = resolved(&first.base).await
    {
        let next = format!(
            "{}; is the name right, and known where the gateway runs?",
            clients_get(of)
        );
        return Finding::fail(&name, format!("{base}: {why}"), next);
    }
    let seen = target.look(client, true).await;
    let finding = said(&name, base, target, of, &seen);
    match seen.date {
        Some(date) => finding.with_clock(&name, date - seconds()),
        None => finding,
    }
}

/// Looks a name up; an address needs none.
async fn resolved(base: &Base) -> Result<(), String> {
    let host = base.host.as_str();
    if host.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    let found = tokio::time::timeout(NAMES, tokio::net::lookup_host((host, base.port))).await;
    match found.map(|found| found.is_ok_and(|mut addresses| addresses.next().is_some())) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("the name {host} leads nowhere")),
        Err(_) => Err(format!(
            "looking the name {host} up takes longer than {} s",
            NAMES.as_secs()
        )),
    }
}

fn clients_get(of: &[Arc<Deployment>]) -> String {
    format!(
        "calls of {} fail here",
        list(of.iter().map(|d| d.model_name.as_str()))
    )
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    let more = names.len().saturating_sub(MOST_NAMED);
    names.truncate(MOST_NAMED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    names.join(", ") + &more
}

fn said(name: &str, base: &str, target: &Target, of: &[Arc<Deployment>], seen: &Seen) -> Finding {
    let message = format!("{base}: {}", seen.verdict);
    let fail = |next: &str| Finding::fail(name, &message, format!("{}; {next}", clients_get(of)));
    match &seen.verdict {
        Verdict::Away(why) => {
            let why = why.to_ascii_lowercase();
            fail(if why.contains("refused") {
                "is it running, and is this its port?"
            } else if why.contains("corrupt message") {
                "it does not speak TLS there: is it http:// in place of https://?"
            } else if why.contains("certificate") || why.contains("unknownissuer") {
                "is its certificate for this name, and is its authority in the system's store?"
            } else {
                "is it running, and is a firewall between?"
            })
        }
        Verdict::KeyRefused(_) if target.has_key() => fail("mend its api_key"),
        Verdict::KeyRefused(_) => fail("it wants a key: name one as api_key"),
        Verdict::Failing(_) => fail("its own log says why"),
        Verdict::Reached(_) => Finding::ok(name, format!("{message}, {} ms", seen.took.as_millis())),
        Verdict::Well => {
            let there = seen.models.as_deref();
            let count = there.map_or_else(String::new, |m| format!("{}, ", counted(m.len(), "model")));
            let message = format!("{base}: {count}{} ms", seen.took.as_millis());
            let missing = of
                .iter()
                .filter(|d| !there.is_none_or(|there| offers(there, &d.upstream_model)));
            let missing = list(missing.map(|d| d.upstream_model.as_str()));
            if missing.is_empty() {
                return Finding::ok(name, message);
            }
            let there = list(there.unwrap_or_default().iter().map(String::as_str));
            Finding::warn(
                name,
                format!("{message}; it does not list {missing}"),
                format!("it lists {there}"),
            )
        }
    }
}

/// Ollama lists `llama3:latest` and takes `llama3`; a pattern is filled in with each call.
fn offers(there: &[String], model: &str) -> bool {
    model.contains('*')
        || there.is_empty()
        || there
            .iter()
            .any(|m| m == model || m.strip_suffix(":latest") == Some(model))
}

/// Whether the running gateway sends connections away because one address has too many: mostly a proxy that
/// the config does not know. None = it does not, or does not say.
pub async fn connections(ward: &Ward<'_>) -> Option<Finding> {
    let (base, _) = ward.reach.places(ward.env).address().ok()?;
    let series = "tollkeeper_connections_refused_total{reason=\"address\"}";
    let refused = metric(base.as_str(), series).await.filter(|n| *n > 0)?;
    let refused = counted(refused, "connection");
    Some(Finding::warn(
        "proxy",
        format!(
            "{refused} refused since the start: the address had as many as limits.connections_per_address allows"
        ),
        "if it is a proxy of yours, list it in trusted_proxies; the log names it, event=connection_refused",
    ))
}

pub async fn gateway(ward: &Ward<'_>) -> Finding {
    let name = "gateway";
    let ours = env!("CARGO_PKG_VERSION");
    let (base, from) = match ward.reach.places(ward.env).address() {
        Ok(found) => found,
        Err(failure) => {
            return Finding::fail(
                name,
                failure.message,
                "say where it is with --url or TOLLKEEPER_URL: http://host:port",
            );
        }
    };
    let Some(theirs) = version(base.as_str()).await else {
        return Finding::warn(
            name,
            format!("nobody answers at {base} (from {from})"),
            "start it with `tollkeeper`, or say where it is with --url or TOLLKEEPER_URL",
        );
    };
    if theirs != ours {
        return Finding::warn(
            name,
            format!("{base} runs version {theirs}, and this is {ours}"),
            "restart it to run this version",
        );
    }
    let message = format!("{base} runs version {theirs}");
    let Ok(gateway) = ward.reach.gateway(ward.env) else {
        return Finding::ok(name, message);
    };
    let asked = tokio::time::timeout_at(ward.deadline, gateway.get("/config/status", &[])).await;
    let status = match asked {
        Ok(Ok(reply)) => reply.json,
        Ok(Err(failure)) if failure.code == EXIT_UNAVAILABLE => {
            return Finding::warn(
                name,
                format!("{message}; {}", failure.message),
                "its log says why it does not answer that",
            );
        }
        Ok(Err(_)) => return Finding::ok(name, format!("{message} (the key at hand may not look further)")),
        Err(_) => {
            return Finding::warn(
                name,
                format!("{message}; it does not answer in time"),
                "its log says why",
            );
        }
    };
    if status.get("last_failure").is_some_and(|f| !f.is_null()) {
        return Finding::warn(
            name,
            format!("{message}, and serves an older config: the new one was refused"),
            "tollkeeper status tells why",
        );
    }
    let waiting = status.get("restart_required").and_then(Value::as_array);
    match waiting.filter(|w| !w.is_empty()) {
        Some(waiting) => {
            let names = list(waiting.iter().filter_map(Value::as_str));
            Finding::warn(
                name,
                format!("{message}; changed, and read only at the start: {names}"),
                "tollkeeper upgrade takes them in and cuts no call off",
            )
        }
        None => Finding::ok(name, message),
    }
}

fn seconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_schema_is_judged_by_its_number() {
        let judge = |applied, millis| {
            let found = Facts {
                version: "PostgreSQL 15.1".into(),
                applied,
                known: 4,
                took: Duration::from_millis(millis),
                ahead_micros: 0,
            };
            judge("database", &found, false).state
        };
        assert_eq!(
            (judge(4, 3), judge(0, 3), judge(2, 3)),
            (State::Ok, State::Warn, State::Warn)
        );
        assert_eq!((judge(5, 3), judge(4, 300)), (State::Warn, State::Warn));
    }

    #[test]
    fn a_refusing_database_has_a_remedy() {
        for (why, next) in [
            (
                "password authentication failed for user \"u\" (28P01)",
                "password",
            ),
            ("database \"x\" does not exist (3D000)", "createdb"),
            (
                "failed to lookup address information: Name or service not known",
                "host",
            ),
            ("Connection refused (os error 111)", "running"),
        ] {
            assert!(refused_by_database(why).contains(next), "{why}");
        }
    }

    #[test]
    fn a_model_may_be_listed_in_other_words() {
        let there = ["llama3:latest".to_string(), "qwen".to_string()];
        for (model, want) in [
            ("qwen", true),
            ("llama3", true),
            ("qwen/*", true),
            ("llama", false),
        ] {
            assert_eq!(offers(&there, model), want, "{model}");
        }
        assert!(offers(&[], "anything"));
    }
}
