//! Warnings to people: a soft budget that was crossed. Each is logged, and posted to a webhook if the config
//! names one; calls never wait for that.

use filters::model::money::Nanos;
use filters::model::secret::Secret;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::meters::Crossed;

/// Posts that wait. What does not fit is logged only.
const WAITING: usize = 256;
const BOUND: Duration = Duration::from_secs(10);
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);

/// Where warnings go.
pub struct Alerts {
    posts: Option<Sender<Value>>,
}

impl Alerts {
    /// With an address, the second is to be run until the first is gone. `Err` says why it cannot post.
    pub fn new(webhook: Option<Secret>) -> Result<(Self, impl Future<Output = ()> + Send), String> {
        let (posts, waiting) = channel(WAITING);
        let client = reqwest::Client::builder()
            .timeout(BOUND)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| e.to_string())?;
        let posts = webhook.is_some().then_some(posts);
        Ok((Self { posts }, post(client, webhook, waiting)))
    }

    pub fn soft_budget_crossed(&self, crossed: &Crossed<'_>) {
        let account = crossed.account;
        let (spent, soft) = (Nanos(crossed.spent_nanos), Nanos(crossed.soft_budget_nanos));
        log::warn!(
            "event=soft_budget_crossed kind={} id={:?} model={:?} spent={spent} soft_budget={soft}",
            account.kind,
            account.id,
            account.model
        );
        let Some(posts) = &self.posts else { return };
        let ends = crossed
            .period_ends_micros
            .and_then(|at| jiff::Timestamp::from_microsecond(at).ok())
            .map(|t| t.to_string());
        // The names LiteLLM's webhook has.
        let event = json!({
            "event": "soft_budget_crossed",
            "event_group": account.kind.as_str(),
            "event_message": format!("Soft Budget Crossed. Total Soft Budget: {soft}"),
            "id": account.id,
            "model": Some(&account.model).filter(|m| !m.is_empty()),
            "spend": spent.to_dollars_f64(),
            "soft_budget": soft.to_dollars_f64(),
            "budget_reset_at": ends,
        });
        if posts.try_send(event).is_err() {
            log::warn!("event=alert_dropped cause=\"{WAITING} wait already\"");
        }
    }
}

async fn post(client: reqwest::Client, webhook: Option<Secret>, mut waiting: Receiver<Value>) {
    let Some(webhook) = webhook else { return };
    while let Some(event) = waiting.recv().await {
        for last in (0..TRIES).rev() {
            let answer = client.post(webhook.expose()).json(&event).send().await;
            let failed = match answer {
                Ok(a) if a.status().is_success() => break,
                Ok(a) => a.status().to_string(),
                // The address may hold a secret.
                Err(e) => e.without_url().to_string(),
            };
            if last == 0 {
                log::warn!("event=alert_failed cause={failed:?}");
            } else {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
