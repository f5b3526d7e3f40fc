//! Which receivers there are: those that the config names when the process starts, and what changes when it
//! names others. A receiver that stays keeps what waits for it; one that goes is told of that for a short
//! while yet, and then let go.

use super::{Former, Lane, Words, Worker};
use crate::conf::{Otlp, Tracing};
use crate::traces::Said;
use crate::traces::langfuse::Flavour;
use crate::traces::project::Target;
use crate::traces::send::{Address, Format};
use crate::traces::stats::{Exporter, Lost};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a receiver that the config names no more may take what waits for it.
const PARTING: Duration = Duration::from_secs(15);

impl Worker {
    /// Tells those from now on whom `said` names.
    pub(super) fn take(&mut self, said: Arc<Said>) {
        let now = Instant::now();
        let before = std::mem::replace(&mut self.said, said);
        if !same_otlp(before.tracing.otlp.as_ref(), self.said.tracing.otlp.as_ref())
            && let Some(lane) = self.otlp.take()
        {
            self.part(Words::GenAi, lane, now);
        }
        let main = main_project(&self.said.tracing);
        let gone: Vec<Target> = self
            .projects
            .iter()
            .filter(|(target, lane)| !stays(&self.said.tracing, main.as_ref(), target, lane))
            .map(|(target, _)| target.clone())
            .collect();
        for target in gone {
            if let Some(lane) = self.projects.remove(&target) {
                self.part(Words::Langfuse, lane, now);
            }
        }
        // Only now: what has waited is written as those who go were to be told.
        self.flavour = flavour(&self.said.tracing);
        (self.refused_warned, self.sealed_warned) = (false, false);
        if self.otlp.is_none()
            && let Some(otlp) = self.said.tracing.otlp.clone()
        {
            match otlp_address(&otlp) {
                Ok(address) => {
                    self.shared.stats.is_away(Exporter::Otlp, false);
                    let resource = resource(&otlp.service_name);
                    self.otlp = Some(self.lane(Exporter::Otlp, &otlp.endpoint, address, resource));
                }
                Err(why) => log::error!("event=traces_not_sent exporter=otlp cause={why:?}"),
            }
        }
        // Opened before the first call is over, so that the server is asked what it takes by then.
        if let Some(target) = main
            && !self.projects.contains_key(&target)
        {
            self.shared.stats.is_away(Exporter::Langfuse, false);
            self.open(Exporter::Langfuse, target, now);
        }
    }

    fn part(&mut self, words: Words, mut lane: Lane, now: Instant) {
        let Self {
            scratch,
            shared,
            flavour,
            ..
        } = self;
        let mut pen = super::Pen {
            flavour,
            scratch,
            shared,
        };
        // Whoever has not said yet what it takes will most likely take this.
        let format = lane.road.format().unwrap_or(Format::Otlp);
        while let Some(weighed) = lane.waiting.pop_front() {
            lane.write(words, format, &weighed.trace, &mut pen);
        }
        lane.pack(now, &shared.stats.held);
        lane.road.leave();
        log::info!(
            "event=traces_receiver_removed exporter={} waiting_bytes={}",
            lane.road.exporter.as_str(),
            lane.bytes()
        );
        self.former.push(Former {
            lane,
            until: now + PARTING,
        });
    }

    /// Ends those who know everything, or took too long.
    pub(super) fn let_go(&mut self, now: Instant) {
        self.former.retain(|former| {
            let road = &former.lane.road;
            let waits = road.is_busy();
            if waits && now < former.until {
                return true;
            }
            if waits {
                road.lost(Lost::Removed, road.calls());
            }
            former.lane.carrying.abort();
            false
        });
    }
}

/// Whether a road to a project is of use under another config.
fn stays(tracing: &Tracing, main: Option<&Target>, target: &Target, lane: &Lane) -> bool {
    let Some(langfuse) = &tracing.langfuse else {
        return false;
    };
    if lane.road.exporter == Exporter::Langfuse || main == Some(target) {
        return lane.road.exporter == Exporter::Langfuse && main == Some(target);
    }
    // Keys and teams may name these; a project that no key and no team names is simply not told of more.
    let teams = tracing.teams.iter().filter_map(|t| t.host.as_ref());
    let mut hosts = langfuse.hosts.iter().chain(teams).chain([&langfuse.host]);
    hosts.any(|host| *host == target.host)
}

/// The gateway's own project.
fn main_project(tracing: &Tracing) -> Option<Target> {
    let langfuse = tracing.langfuse.as_ref()?;
    Some(Target {
        host: langfuse.host.clone(),
        project: langfuse.project.clone()?,
    })
}

/// Whether it is the same receiver, told under the same name.
fn same_otlp(before: Option<&Otlp>, after: Option<&Otlp>) -> bool {
    match (before, after) {
        (Some(a), Some(b)) => {
            (&a.endpoint, &a.headers, &a.service_name) == (&b.endpoint, &b.headers, &b.service_name)
        }
        _ => false,
    }
}

/// What a config says of how calls are told.
pub(super) fn flavour(tracing: &Tracing) -> Flavour {
    let langfuse = tracing.langfuse.as_ref();
    Flavour {
        environment: langfuse.and_then(|l| l.environment.clone()),
        release: langfuse.and_then(|l| l.release.clone()),
        redact_keys: tracing.redact_keys,
        default_tags: tracing.default_tags.clone(),
        capture: langfuse.map(|l| l.capture).unwrap_or_default(),
        otlp_capture: tracing.otlp.as_ref().map(|o| o.capture).unwrap_or_default(),
        max_bytes: usize::try_from(tracing.max_bytes).unwrap_or(usize::MAX),
    }
}

/// What is said of the gateway itself.
pub(super) fn resource(name: &str) -> Vec<(String, String)> {
    vec![
        ("service.name".to_string(), name.to_string()),
        (
            "service.version".to_string(),
            env!("CARGO_PKG_VERSION").to_string(),
        ),
    ]
}

pub(super) fn langfuse_address(target: &Target) -> Result<Address, String> {
    let url = |path: &str| Url::parse(&format!("{}{path}", target.host)).map_err(|e| e.to_string());
    let project = &target.project;
    let basic = STANDARD.encode(format!("{}:{}", project.public_key, project.secret_key.expose()));
    let mut headers = HeaderMap::new();
    headers.insert("authorization", secret(&format!("Basic {basic}"))?);
    // The real-time path, from Langfuse 4 on; older ones do not look at it.
    headers.insert("x-langfuse-ingestion-version", HeaderValue::from_static("4"));
    headers.insert("x-langfuse-sdk-name", HeaderValue::from_static("tollkeeper"));
    headers.insert(
        "x-langfuse-sdk-version",
        HeaderValue::from_static(env!("CARGO_PKG_VERSION")),
    );
    headers.insert("x-langfuse-public-key", secret(&project.public_key)?);
    Ok(Address {
        otlp: url("/api/public/otel/v1/traces")?,
        legacy: Some(url("/api/public/ingestion")?),
        health: Some(url("/api/public/health")?),
        headers,
    })
}

fn otlp_address(otlp: &Otlp) -> Result<Address, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &otlp.headers {
        let name = HeaderName::try_from(name.as_str()).map_err(|e| e.to_string())?;
        headers.insert(name, secret(value.expose())?);
    }
    Ok(Address {
        otlp: Url::parse(&otlp.endpoint).map_err(|e| e.to_string())?,
        legacy: None,
        health: None,
        headers,
    })
}

/// A value that is not shown. The error does not quote it.
fn secret(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|_| "a header's value cannot be sent".to_string())?;
    value.set_sensitive(true);
    Ok(value)
}
