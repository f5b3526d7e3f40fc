//! Warnings to people: a budget that is crossed, a key that expires, a deployment that is down, a ledger that is
//! stuck, a certificate near its end. Each is logged, and posted to the webhooks that the config names; calls never
//! wait for that. The same of the same subject is told once in a while, see `told`; `post` brings it to whom it is
//! for; `watch` looks for what nobody else would notice. Of several replicas one tells, see `once`.

mod once;
mod post;
mod told;
pub mod watch;

use crate::conf;
use crate::shared::meters::Crossed;
use crate::telemetry::metrics::catalog as c;
use crate::telemetry::metrics::page::{Page, Source};
use arc_swap::ArcSwap;
use filters::contract::ports::{Refused, Why};
use filters::model::account::Kind;
use filters::model::money::Nanos;
use jiff::Timestamp;
pub use once::Once;
use parking_lot::Mutex;
use post::Shape;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use told::Told;

/// Alerts that wait for each webhook, and to be judged before. What does not fit is logged only, and counted.
const WAITING: usize = 256;
/// For what is said once of a subject, such as that a key has seven days left: longer than that lasts.
const ONCE: Duration = Duration::from_secs(60 * 86_400);
const A_DAY: Duration = Duration::from_secs(86_400);

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    SoftBudgetCrossed,
    BudgetCrossed,
    KeyExpiring,
    DeploymentDown,
    DeploymentUp,
    LedgerStuck,
    LedgerRecovered,
    CertificateExpiring,
    CertificateRenewalFailing,
}

impl Event {
    const ALL: [Event; 9] = [
        Event::SoftBudgetCrossed,
        Event::BudgetCrossed,
        Event::KeyExpiring,
        Event::DeploymentDown,
        Event::DeploymentUp,
        Event::LedgerStuck,
        Event::LedgerRecovered,
        Event::CertificateExpiring,
        Event::CertificateRenewalFailing,
    ];

    /// LiteLLM's name where it has one.
    pub fn as_str(self) -> &'static str {
        match self {
            Event::SoftBudgetCrossed => "soft_budget_crossed",
            Event::BudgetCrossed => "budget_crossed",
            Event::KeyExpiring => "key_expiring",
            Event::DeploymentDown => "deployment_down",
            Event::DeploymentUp => "deployment_up",
            Event::LedgerStuck => "ledger_stuck",
            Event::LedgerRecovered => "ledger_recovered",
            Event::CertificateExpiring => "certificate_expiring",
            Event::CertificateRenewalFailing => "certificate_renewal_failing",
        }
    }

    fn group(self) -> &'static str {
        match self {
            Event::SoftBudgetCrossed | Event::BudgetCrossed => "proxy",
            Event::KeyExpiring => "key",
            Event::DeploymentDown | Event::DeploymentUp => "deployment",
            Event::LedgerStuck | Event::LedgerRecovered => "ledger",
            Event::CertificateExpiring | Event::CertificateRenewalFailing => "certificate",
        }
    }

    /// Something is well again.
    pub fn is_good(self) -> bool {
        matches!(self, Event::DeploymentUp | Event::LedgerRecovered)
    }
}

/// One thing to tell. Holds no secret: a key is named by its hash.
#[derive(Clone, Debug)]
pub struct Alert {
    event: Event,
    group: &'static str,
    /// What it is about, such that the same is the same.
    subject: String,
    message: String,
    fields: Map<String, Value>,
    /// For how long the same is not told again; None: as long as the config says.
    window: Option<Duration>,
    /// It is about this replica alone: others that say the same speak of themselves.
    is_own: bool,
    at: Timestamp,
}

impl Alert {
    pub fn new(event: Event, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            event,
            group: event.group(),
            subject: subject.into(),
            message: message.into(),
            fields: Map::new(),
            window: None,
            is_own: false,
            at: Timestamp::now(),
        }
    }

    /// One more field of what is posted.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_string(), value.into());
        self
    }

    /// It is told of this subject once and never again.
    pub fn once(mut self) -> Self {
        self.window = Some(ONCE);
        self
    }

    /// It is about this replica alone.
    pub fn own(mut self) -> Self {
        self.is_own = true;
        self
    }

    /// What the generic webhook gets, in the fields that LiteLLM's has.
    fn json(&self) -> Value {
        let mut all = Map::new();
        all.insert("event".into(), self.event.as_str().into());
        all.insert("event_group".into(), self.group.into());
        all.insert("event_message".into(), self.message.as_str().into());
        all.insert("at".into(), self.at.to_string().into());
        all.extend(self.fields.clone());
        Value::Object(all)
    }
}

/// What became of alerts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Posts that were taken.
    pub sent: u64,
    /// Posts that were given up.
    pub failed: u64,
    /// Too many waited already.
    pub dropped: u64,
    /// The same had been told a short while ago.
    pub repeated: u64,
}

/// What became of one alert, or of one post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Sent,
    Failed,
    Dropped,
    Repeated,
}

impl Fate {
    const ALL: [Fate; 4] = [Fate::Sent, Fate::Failed, Fate::Dropped, Fate::Repeated];

    fn as_str(self) -> &'static str {
        match self {
            Fate::Sent => "sent",
            Fate::Failed => "failed",
            Fate::Dropped => "dropped",
            Fate::Repeated => "repeated",
        }
    }
}

/// By event and fate.
#[derive(Default)]
struct Counters([[AtomicU64; Fate::ALL.len()]; Event::ALL.len()]);

impl Counters {
    fn count(&self, event: Event, fate: Fate) {
        self.0[event as usize][fate as usize].fetch_add(1, Relaxed);
    }

    fn get(&self, event: Event, fate: Fate) -> u64 {
        self.0[event as usize][fate as usize].load(Relaxed)
    }

    fn all(&self, fate: Fate) -> u64 {
        Event::ALL.iter().map(|event| self.get(*event, fate)).sum()
    }
}

/// Where warnings go.
pub struct Alerts {
    settings: Arc<ArcSwap<conf::Alerts>>,
    told: Mutex<Told>,
    queue: Sender<Arc<Alert>>,
    counters: Arc<Counters>,
}

impl Alerts {
    /// The second is to be run for as long as the first is used. What was told once is kept below `data_dir`;
    /// `once` says which replica tells. `Err` says why nothing can be posted.
    pub fn open(
        settings: &conf::Alerts,
        data_dir: Option<&Path>,
        once: Once,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), String> {
        let settings = Arc::new(ArcSwap::from_pointee(settings.clone()));
        let counters = Arc::new(Counters::default());
        let client = post::client()?;
        let (webhook, for_webhook) = channel(WAITING);
        let (slack, for_slack) = channel(WAITING);
        let post = |shape, waiting| {
            post::run(
                shape,
                client.clone(),
                Arc::clone(&settings),
                waiting,
                Arc::clone(&counters),
            )
        };
        let posting = futures::future::join(post(Shape::Webhook, for_webhook), post(Shape::Slack, for_slack));
        let (queue, waiting) = channel(WAITING);
        let desk = Desk {
            settings: Arc::clone(&settings),
            once,
            queues: [(Shape::Webhook, webhook), (Shape::Slack, slack)],
            counters: Arc::clone(&counters),
        };
        let alerts = Self {
            settings,
            told: Mutex::new(Told::open(data_dir)),
            queue,
            counters,
        };
        Ok((alerts, async {
            futures::future::join(desk.run(waiting), posting).await;
        }))
    }

    /// Takes what a changed config says.
    pub fn apply(&self, settings: &conf::Alerts) {
        if **self.settings.load() != *settings {
            self.settings.store(Arc::new(settings.clone()));
        }
    }

    pub fn settings(&self) -> Arc<conf::Alerts> {
        self.settings.load_full()
    }

    pub fn counts(&self) -> Counts {
        let all = |fate| self.counters.all(fate);
        Counts {
            sent: all(Fate::Sent),
            failed: all(Fate::Failed),
            dropped: all(Fate::Dropped),
            repeated: all(Fate::Repeated),
        }
    }

    /// Tells it, unless the same was told a short while ago. Never waits.
    pub fn tell(&self, alert: Alert) -> bool {
        if !self.is_news(alert.event, &alert.subject, alert.window) {
            return false;
        }
        self.send(alert);
        true
    }

    fn is_news(&self, event: Event, subject: &str, window: Option<Duration>) -> bool {
        let window = window.unwrap_or_else(|| self.settings.load().at_most_every);
        let is_news = self.told.lock().is_news(event.as_str(), subject, window);
        if !is_news {
            self.counters.count(event, Fate::Repeated);
        }
        is_news
    }

    fn send(&self, alert: Alert) {
        let alert_event = alert.event;
        let (event, subject, message) = (alert.event.as_str(), &alert.subject, &alert.message);
        if alert.event.is_good() {
            log::info!("event={event} subject={subject:?} {message}");
        } else {
            log::warn!("event={event} subject={subject:?} {message}");
        }
        let settings = self.settings.load();
        let any = Shape::ALL.iter().any(|shape| shape.address(&settings).is_some());
        if any && self.queue.try_send(Arc::new(alert)).is_err() {
            dropped(&self.counters, alert_event);
        }
    }

    /// A soft budget was passed just now.
    pub fn soft_budget_crossed(&self, crossed: &Crossed<'_>) {
        let account = crossed.account;
        let subject = format!("{}:{}:{}", account.kind, account.id, account.model);
        if !self.is_news(Event::SoftBudgetCrossed, &subject, None) {
            return;
        }
        let (spent, soft) = (Nanos(crossed.spent_nanos), Nanos(crossed.soft_budget_nanos));
        let ends = crossed
            .period_ends_micros
            .and_then(|at| Timestamp::from_microsecond(at).ok())
            .map(|t| t.to_string());
        let message = format!(
            "Soft Budget Crossed. Total Soft Budget: {soft} {} kind={} id={:?} model={:?} spent={spent}",
            named(account.kind, crossed.alias),
            account.kind,
            account.id,
            account.model
        );
        let alert = Alert::new(Event::SoftBudgetCrossed, subject, message)
            .about(account.kind, account.id.as_ref(), crossed.alias, &account.model)
            .with("spend", spent.to_dollars_f64())
            .with("soft_budget", soft.to_dollars_f64())
            .with("budget_reset_at", ends);
        self.send(alert);
    }

    /// A call was refused: told if that was for a budget.
    pub fn refused(&self, refused: &Refused) {
        let Why::Budget { spent, budget, .. } = refused.why else {
            return;
        };
        let model = refused.model.as_deref().unwrap_or_default();
        let subject = format!("{}:{}:{model}", refused.kind, refused.id);
        if !self.is_news(Event::BudgetCrossed, &subject, None) {
            return;
        }
        let (spent, budget) = (Nanos(spent), Nanos(budget));
        let message = format!(
            "Budget Crossed. Total Budget: {budget} {} kind={} id={:?} model={model:?} spent={spent}",
            named(refused.kind, refused.alias.as_deref()),
            refused.kind,
            refused.id
        );
        let alert = Alert::new(Event::BudgetCrossed, subject, message)
            .about(refused.kind, &refused.id, refused.alias.as_deref(), model)
            .with("spend", spent.to_dollars_f64())
            .with("max_budget", budget.to_dollars_f64());
        self.send(alert);
    }

    /// A certificate could not be renewed; the old one is shown on.
    pub fn certificate_renewal_failing(&self, names: &str, cause: &str) {
        let message = format!("The certificate for {names} cannot be renewed: {cause}");
        let mut alert = Alert::new(Event::CertificateRenewalFailing, names, message).with("host", names);
        // Orders fail for days where nobody acts.
        alert.window = Some(self.settings().at_most_every.max(A_DAY));
        self.tell(alert);
    }
}

impl Source for Alerts {
    fn gather(&self, page: &mut Page) {
        for event in Event::ALL {
            for fate in Fate::ALL {
                let labels = [event.as_str(), fate.as_str()];
                page.int(&c::ALERTS, &labels, self.counters.get(event, fate));
            }
        }
    }
}

fn dropped(counters: &Counters, event: Event) {
    counters.count(event, Fate::Dropped);
    log::warn!("event=alert_dropped cause=\"{WAITING} wait already\"");
}

/// Between those who notice and those who post: asks whether another replica was first.
struct Desk {
    settings: Arc<ArcSwap<conf::Alerts>>,
    once: Once,
    queues: [(Shape, Sender<Arc<Alert>>); 2],
    counters: Arc<Counters>,
}

impl Desk {
    async fn run(self, mut waiting: Receiver<Arc<Alert>>) {
        while let Some(alert) = waiting.recv().await {
            let window = alert.window.unwrap_or_else(|| self.settings.load().at_most_every);
            if !self.once.is_ours(&alert, window).await {
                self.counters.count(alert.event, Fate::Repeated);
                continue;
            }
            let settings = self.settings.load();
            for (shape, queue) in &self.queues {
                if shape.address(&settings).is_some() && queue.try_send(Arc::clone(&alert)).is_err() {
                    dropped(&self.counters, alert.event);
                }
            }
        }
    }
}

fn named(kind: Kind, alias: Option<&str>) -> String {
    match alias {
        Some(alias) => format!("({kind} {alias})"),
        None => format!("({kind})"),
    }
}

impl Alert {
    /// Whose budget it is, in LiteLLM's fields.
    fn about(mut self, kind: Kind, id: &str, alias: Option<&str>, model: &str) -> Self {
        let (group, field) = match kind {
            Kind::Gateway => ("proxy", None),
            Kind::Organization => ("organization", Some("organization_id")),
            Kind::Team => ("team", Some("team_id")),
            Kind::Member => ("team_member", None),
            Kind::OrganizationMember => ("organization_member", None),
            Kind::User => ("internal_user", Some("user_id")),
            Kind::Key => ("key", Some("token")),
            Kind::EndUser => ("customer", Some("customer_id")),
            Kind::Tag => ("tag", None),
        };
        self.group = group;
        self.fields.insert("id".into(), id.into());
        if let Some(field) = field {
            self.fields.insert(field.into(), id.into());
        }
        let alias_field = match kind {
            Kind::Key => "key_alias",
            Kind::Team => "team_alias",
            _ => "alias",
        };
        for (name, value) in [(alias_field, alias.unwrap_or_default()), ("model", model)] {
            if !value.is_empty() {
                self.fields.insert(name.into(), json!(value));
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alerts() -> Alerts {
        let settings = conf::Alerts::default();
        Alerts::open(&settings, None, Once::default()).unwrap().0
    }

    #[tokio::test]
    async fn the_same_of_the_same_is_told_once() {
        let alerts = alerts();
        let down = |subject: &str| Alert::new(Event::DeploymentDown, subject, "down");
        assert!(alerts.tell(down("a")));
        assert!(!alerts.tell(down("a")));
        assert!(alerts.tell(down("b")));
        assert!(alerts.tell(Alert::new(Event::DeploymentUp, "a", "up")));
        assert_eq!(alerts.counts().repeated, 1);
        let mut page = Page::default();
        alerts.gather(&mut page);
        let text = page.finish();
        let line = "tollkeeper_alerts_total{event=\"deployment_down\",outcome=\"repeated\"} 1\n";
        assert!(text.contains(line), "{text}");
        alerts.apply(&conf::Alerts {
            at_most_every: Duration::ZERO,
            ..conf::Alerts::default()
        });
        assert!(alerts.tell(down("c")) && alerts.tell(down("c")));
    }

    #[test]
    fn a_budget_is_told_in_litellms_fields() {
        let alert = Alert::new(Event::BudgetCrossed, "s", "m")
            .about(Kind::Key, "88dc", Some("app"), "")
            .with("spend", 1.5);
        let json = alert.json();
        assert_eq!(
            (&json["event"], &json["event_group"]),
            (&"budget_crossed".into(), &"key".into())
        );
        assert_eq!(
            (&json["token"], &json["key_alias"]),
            (&"88dc".into(), &"app".into())
        );
        assert!(json.get("model").is_none() && json["spend"] == 1.5);
    }
}
