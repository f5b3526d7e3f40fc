//! Brings alerts to a webhook: one after the other, tried a few times, with pauses that grow. The address is the
//! config's, read anew for each; it may hold a token, so it stands in no line of the log.

use super::{Alert, Counters, Fate};
use crate::conf::{self, Secret};
use crate::retry_after;
use arc_swap::ArcSwap;
use serde_json::{Value, json};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;

/// For one try.
const BOUND: Duration = Duration::from_secs(10);
const TRIES: u32 = 5;
/// Before the second try; doubled with each.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause that a receiver may ask for.
const LONGEST: Duration = Duration::from_secs(60);

/// Who gets it, and so how it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// JSON with all there is.
    Webhook,
    /// What Slack's incoming webhooks take.
    Slack,
}

impl Shape {
    pub const ALL: [Shape; 2] = [Shape::Webhook, Shape::Slack];

    pub fn address(self, settings: &conf::Alerts) -> Option<&Secret> {
        match self {
            Shape::Webhook => settings.webhook.as_ref(),
            Shape::Slack => settings.slack.as_ref(),
        }
    }

    fn body(self, alert: &Alert) -> Value {
        match self {
            Shape::Webhook => alert.json(),
            Shape::Slack => {
                let mark = if alert.event.is_good() { "✅" } else { "⚠️" };
                let event = alert.event.as_str().replace('_', " ");
                json!({"text": format!("{mark} *{event}*\n{}", slack_text(&alert.message))})
            }
        }
    }
}

/// Slack takes these three for marks: a name must not call a whole channel.
fn slack_text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

pub fn client() -> Result<reqwest::Client, String> {
    // With two providers linked, rustls would not know which to take.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(BOUND)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("tollkeeper/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| e.to_string())
}

/// Posts what comes until nobody is left who could send any.
pub async fn run(
    shape: Shape,
    client: reqwest::Client,
    settings: Arc<ArcSwap<conf::Alerts>>,
    mut waiting: Receiver<Arc<Alert>>,
    counters: Arc<Counters>,
) {
    while let Some(alert) = waiting.recv().await {
        let body = shape.body(&alert);
        let mut tried = 0;
        loop {
            let address = shape.address(&settings.load()).cloned();
            let Some(address) = address else { break };
            let failed = match client.post(address.expose()).json(&body).send().await {
                Ok(answer) if answer.status().is_success() => {
                    counters.count(alert.event, Fate::Sent);
                    break;
                }
                Ok(answer) => {
                    let status = answer.status();
                    let again = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
                    (
                        format!("status {}", status.as_u16()),
                        again,
                        retry_after::read(answer.headers()),
                    )
                }
                Err(e) => (root(&e), true, None),
            };
            let (cause, again, asked) = failed;
            tried += 1;
            if !again || tried == TRIES {
                counters.count(alert.event, Fate::Failed);
                log::warn!(
                    "event=alert_failed to={shape:?} of={} tries={tried} cause={cause:?}",
                    alert.event.as_str()
                );
                break;
            }
            let pause = PAUSE.saturating_mul(1 << (tried - 1));
            tokio::time::sleep(asked.map_or(pause, |asked| asked.clamp(pause, LONGEST))).await;
        }
    }
}

/// The last cause, which names no address.
fn root(e: &reqwest::Error) -> String {
    let mut cause: &dyn Error = e;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if cause.is::<reqwest::Error>() {
        return if e.is_timeout() {
            "no answer in time"
        } else {
            "it cannot be asked"
        }
        .into();
    }
    cause.to_string().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::Event;

    #[test]
    fn slack_gets_text_that_calls_nobody() {
        let alert = Alert::new(Event::DeploymentDown, "a", "<!channel> & more");
        let body = Shape::Slack.body(&alert);
        let text = body["text"].as_str().unwrap();
        assert!(
            text.contains("*deployment down*\n&lt;!channel&gt; &amp; more"),
            "{text}"
        );
    }
}
