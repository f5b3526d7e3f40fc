//! How the upstreams are, as far as that can be known without a call that costs: looked at in the background, kept,
//! and shown at `GET /health` in LiteLLM's shape. Whoever wants to know hears of one that goes down or comes back.

use super::probe::{self, Seen, Target, Verdict};
use crate::alerts::{Alert, Alerts, Event};
use crate::snapshot::Snapshot;
use arc_swap::ArcSwap;
use filters::model::deployment::Deployment;
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Upstreams that are looked at at once.
const AT_ONCE: usize = 8;
/// Most upstreams that are looked at; a config with more of them is looked at in part.
const MOST: usize = 2_000;
/// Looks in a row that find it down before anybody is told: a restart is no outage.
const TOLD_AFTER: u32 = 2;
/// One that was found down for the first time is looked at again after this.
const AGAIN: Duration = Duration::from_secs(10);
/// How often a changed config is noticed.
const STEP: Duration = Duration::from_secs(1);

/// The upstreams of the config that serves.
pub struct Endpoints {
    snapshot: Arc<ArcSwap<Snapshot>>,
    alerts: Arc<Alerts>,
    client: reqwest::Client,
    known: ArcSwap<HashMap<Target, Standing>>,
}

/// How one is.
#[derive(Clone)]
struct Standing {
    seen: Seen,
    at: Timestamp,
    /// Looks in a row that found it down.
    failures: u32,
    /// Somebody was told that it is down.
    told: bool,
}

impl Endpoints {
    /// `Err` says why nobody can be asked.
    pub fn new(snapshot: Arc<ArcSwap<Snapshot>>, alerts: Arc<Alerts>) -> Result<Self, String> {
        Ok(Self {
            snapshot,
            alerts,
            client: probe::client()?,
            known: ArcSwap::default(),
        })
    }

    /// Looks at all of them, as often as the config says, for as long as the process lives.
    pub async fn watch(self: Arc<Self>) {
        loop {
            let snapshot = self.snapshot.load_full();
            let every = snapshot.health.every;
            if every.is_some() {
                self.look(&snapshot).await;
            } else {
                self.known.store(Arc::default());
            }
            let fresh = |s: &Standing| s.failures > 0 && s.failures < TOLD_AFTER;
            let again = self.known.load().values().any(fresh);
            let pause = match every {
                Some(every) if again => every.min(AGAIN),
                Some(every) => every,
                None => Duration::MAX,
            };
            let begun = Instant::now();
            while begun.elapsed() < pause && Arc::ptr_eq(&snapshot, &self.snapshot.load()) {
                tokio::time::sleep(STEP.min(pause)).await;
            }
        }
    }

    async fn look(&self, snapshot: &Snapshot) {
        let mut named: HashMap<Target, Vec<String>> = HashMap::new();
        for d in snapshot.models.deployments() {
            let Some(target) = Target::of(d) else { continue };
            if named.len() < MOST || named.contains_key(&target) {
                let names = named.entry(target).or_default();
                if !names.contains(&d.model_name) {
                    names.push(d.model_name.clone());
                }
            }
        }
        let looks = named.into_iter().map(|(target, names)| async {
            let seen = target.look(&self.client, false).await;
            (target, names, seen)
        });
        let mut seen = futures::stream::iter(looks).buffer_unordered(AT_ONCE);
        let before = self.known.load_full();
        let mut known = HashMap::new();
        while let Some((target, names, seen)) = seen.next().await {
            let standing = self.judge(before.get(&target), &target, &names, seen);
            known.insert(target, standing);
        }
        self.known.store(Arc::new(known));
    }

    /// What follows from a look.
    fn judge(&self, before: Option<&Standing>, target: &Target, names: &[String], seen: Seen) -> Standing {
        let well = seen.verdict.is_well();
        let failures = match before {
            _ if well => 0,
            Some(before) => before.failures.saturating_add(1),
            None => 1,
        };
        let mut told = before.is_some_and(|b| b.told);
        let alert = |event, message| {
            Alert::new(event, &target.url, message)
                .with("api_base", target.url.as_str())
                .with("models", names)
        };
        let list = names.join(", ");
        if !told && failures >= TOLD_AFTER {
            let message = format!("{} is down: {}. It serves {list}.", target.url, seen.verdict);
            told = self.alerts.tell(alert(Event::DeploymentDown, message));
        } else if told && well {
            let message = format!("{} is back. It serves {list}.", target.url);
            self.alerts.tell(alert(Event::DeploymentUp, message));
            told = false;
        }
        Standing {
            seen,
            at: Timestamp::now(),
            failures,
            told,
        }
    }

    /// LiteLLM's lists, for an admin; of one model if one is named. Those nobody could look at yet are in
    /// neither. One that calls found failing has `cooling_seconds`, whatever the look at it said.
    pub fn lists(&self, model: Option<&str>) -> Value {
        let snapshot = self.snapshot.load_full();
        let known = self.known.load();
        let (mut healthy, mut unhealthy, mut unknown) = (Vec::new(), Vec::new(), 0_u64);
        let wanted = |(d, _): &(&Arc<Deployment>, _)| model.is_none_or(|m| d.model_name == m);
        for (d, cooling) in snapshot.models.standings().filter(wanted) {
            let standing = Target::of(d).and_then(|target| Some((known.get(&target)?, target)));
            let Some((standing, target)) = standing else {
                unknown += 1;
                continue;
            };
            let mut row = json!({
                "model": format!("{}/{}", d.provider, d.upstream_model),
                "model_name": d.model_name,
                "model_id": d.id,
                "custom_llm_provider": d.provider,
                "api_base": target.url.trim_end_matches("/models"),
                "checked_at": standing.at.to_string(),
                "latency_ms": u64::try_from(standing.seen.took.as_millis()).unwrap_or(u64::MAX),
            });
            if let Some(seconds) = cooling {
                row["cooling_seconds"] = seconds.into();
            }
            match &standing.seen.verdict {
                Verdict::Well => healthy.push(row),
                verdict if verdict.is_well() => {
                    row["note"] = verdict.to_string().into();
                    healthy.push(row);
                }
                verdict => {
                    row["error"] = verdict.to_string().into();
                    unhealthy.push(row);
                }
            }
        }
        json!({
            "healthy_count": healthy.len(),
            "unhealthy_count": unhealthy.len(),
            "unknown_count": unknown,
            "healthy_endpoints": healthy,
            "unhealthy_endpoints": unhealthy,
        })
    }
}
