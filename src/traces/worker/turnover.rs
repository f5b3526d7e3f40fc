//! Which receivers there are: those that the config names when the process starts, and what changes when it
//! names others. A receiver that stays keeps what waits for it; one that goes is told of that for a short
//! while yet, and then let go.

use super::{Former, Lane, Words, Worker};
use crate::conf::{Otlp, Tracing};
use crate::traces::Said;
use crate::traces::address::{main_project, of_otlp};
use crate::traces::langfuse::Flavour;
use crate::traces::project::Target;
use crate::traces::send::Format;
use crate::traces::stats::{Exporter, Lost};
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
            match of_otlp(&otlp) {
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
