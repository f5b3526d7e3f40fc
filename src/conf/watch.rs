//! What the gateway looks after by itself and whom it tells: `tollkeeper.health`, `tollkeeper.alerts`, and
//! what LiteLLM's `general_settings` say of the same things. What is done about it is in [`crate::health`] and
//! [`crate::alerts`].

use super::fields::Fields;
use super::load::Env;
use super::node::{Node, Value};
use super::report::Notes;
use super::secret::Secret;
use super::settings::top_section;
use super::text::{duration, shown};
use std::time::Duration;

/// Checks of deployments, and who hears of what goes wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    pub health: HealthChecks,
    pub alerts: Alerts,
}

/// How deployments are looked after. A check is a `GET /v1/models`, never a call that costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthChecks {
    /// `tollkeeper.health.check_every`, else LiteLLM's `health_check_interval`; `off`, or LiteLLM's
    /// `background_health_checks: false`: none. At least a second. Default: 60s.
    pub every: Option<Duration>,
}

/// Who is told, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alerts {
    /// `tollkeeper.alerts.webhook_url`, or `WEBHOOK_URL` where `general_settings.alerting` lists webhook.
    /// Gets JSON.
    pub webhook: Option<Secret>,
    /// `tollkeeper.alerts.slack_webhook_url`, or `SLACK_WEBHOOK_URL` where `alerting` lists slack. Gets what
    /// Slack's incoming webhooks take.
    pub slack: Option<Secret>,
    /// The same of the same subject is told once in this time. Default: 1h.
    pub at_most_every: Duration,
    /// How long a record may wait for the store before somebody is told. Default: 1m.
    pub ledger_stuck_after: Duration,
}

impl Default for HealthChecks {
    fn default() -> Self {
        Self {
            every: Some(Duration::from_secs(60)),
        }
    }
}

impl Default for Alerts {
    fn default() -> Self {
        Self {
            webhook: None,
            slack: None,
            at_most_every: Duration::from_secs(3_600),
            ledger_stuck_after: Duration::from_secs(60),
        }
    }
}

/// Fields of `general_settings` that are read here.
pub(super) const GENERAL: [&str; 3] = ["alerting", "background_health_checks", "health_check_interval"];

const SHORTEST: Duration = Duration::from_secs(1);

/// What LiteLLM's section says.
pub(super) fn litellms(root: &Node, env: &Env, notes: &Notes, out: &mut Watch) {
    let section = top_section(root, "general_settings");
    // What is no mapping was reported where the section was read first.
    let Some(section) = section.filter(|s| matches!(s.value.value, Value::Map(_))) else {
        return;
    };
    let Some(fields) = Fields::open(&section.value, notes, "general_settings") else {
        return;
    };
    if let Some(every) = fields.some_time("health_check_interval") {
        out.health.every = Some(every.max(SHORTEST));
    }
    if fields.flag("background_health_checks") == Some(false) {
        out.health.every = None;
    }
    for word in fields.texts("alerting").unwrap_or_default() {
        let (variable, slot) = match word.as_str() {
            "webhook" => ("WEBHOOK_URL", &mut out.alerts.webhook),
            "slack" => ("SLACK_WEBHOOK_URL", &mut out.alerts.slack),
            other => {
                if let Some(entry) = fields.entry("alerting") {
                    let message = format!("`alerting`: {} is not supported yet", shown(other));
                    let draft = fields.warning("unsupported", message, entry.key_at);
                    drop(draft.label("`webhook` and `slack` are"));
                }
                continue;
            }
        };
        *slot = env.get(variable).filter(|url| !url.is_empty());
        let wrong = match slot {
            Some(url) => is_address(url.expose()).err(),
            None => Some("it is not set".to_string()),
        };
        if let (Some(why), Some(entry)) = (wrong, fields.entry("alerting")) {
            *slot = None;
            let message = format!("`alerting` lists {word}, and ${variable} holds no address: {why}");
            let draft = fields.warning("unset", message, entry.key_at);
            drop(draft.label("nobody is told"));
        }
    }
}

/// What stands below `tollkeeper:`.
pub(super) fn own(fields: &Fields<'_>, out: &mut Watch) {
    if let Some(health) = fields.child("health") {
        let every = health.parsed("check_every", "duration", |text| match text {
            "off" | "false" | "no" | "never" | "0" => Ok(None),
            _ => match duration(text).filter(|d| *d >= SHORTEST) {
                Some(every) => Ok(Some(every)),
                None => Err("a duration from one second up, such as 60s or 5m, or off".into()),
            },
        });
        if let Some(every) = every {
            out.health.every = every;
        }
        health.refuse_rest();
    }
    if let Some(alerts) = fields.child("alerts") {
        for (name, slot) in [
            ("webhook_url", &mut out.alerts.webhook),
            ("slack_webhook_url", &mut out.alerts.slack),
        ] {
            let Some(url) = alerts.secret(name).filter(|url| !url.is_empty()) else {
                continue;
            };
            match is_address(url.expose()) {
                Ok(()) => *slot = Some(url),
                Err(why) => {
                    if let Some(entry) = alerts.entry(name) {
                        let message = format!("`{name}` is no address: {why}");
                        drop(alerts.error("url", message, entry.value.at));
                    }
                }
            }
        }
        if let Some(every) = alerts.duration("at_most_every") {
            out.alerts.at_most_every = every;
        }
        if let Some(after) = alerts.some_time("ledger_stuck_after") {
            out.alerts.ledger_stuck_after = after;
        }
        alerts.refuse_rest();
    }
}

/// `Err` says why not, without the text: it may hold a token.
fn is_address(text: &str) -> Result<(), String> {
    let wrong = || Err("an address begins with http:// or https:// and names a host".to_string());
    match text.parse::<http::Uri>() {
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() => Ok(()),
        _ => wrong(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::{Env, load_text};

    fn watch(text: &str, env: &[(&str, &str)]) -> Result<Watch, String> {
        let env: Env = env.iter().map(|(k, v)| (*k, *v)).collect();
        load_text("config.yaml", text, &env)
            .map(|loaded| loaded.conf.tollkeeper.watch)
            .map_err(|report| report.render(false))
    }

    #[test]
    fn litellms_settings_and_ours_are_read() {
        let theirs = "general_settings: {alerting: [slack, webhook], health_check_interval: 300}";
        let env = [
            ("SLACK_WEBHOOK_URL", "https://hooks.slack.com/services/T/B/x"),
            ("WEBHOOK_URL", "http://hooks.internal/in"),
        ];
        let read = watch(theirs, &env).unwrap();
        assert_eq!(read.health.every, Some(Duration::from_secs(300)));
        assert_eq!(read.alerts.webhook, Some(Secret::new("http://hooks.internal/in")));
        assert!(read.alerts.slack.is_some());
        // Addresses that nobody lists are not used.
        assert_eq!(watch("general_settings: {}", &env).unwrap(), Watch::default());
        let ours = "
general_settings: {background_health_checks: false}
tollkeeper:
  health: {check_every: 5s}
  alerts: {webhook_url: 'https://a/b', at_most_every: 10m, ledger_stuck_after: 5s}
";
        let read = watch(ours, &[]).unwrap();
        assert_eq!(read.health.every, Some(Duration::from_secs(5)));
        assert_eq!(read.alerts.at_most_every, Duration::from_secs(600));
        assert_eq!(read.alerts.ledger_stuck_after, Duration::from_secs(5));
        assert_eq!(
            watch("tollkeeper: {health: {check_every: off}}", &[])
                .unwrap()
                .health
                .every,
            None
        );
    }

    #[test]
    fn what_cannot_be_is_named_and_not_repeated() {
        for (own, want) in [
            (
                "{alerts: {webhook_url: 'ftp://token-of-mine'}}",
                "`webhook_url` is no address",
            ),
            (
                "{alerts: {slack_webhook_url: token-of-mine}}",
                "`slack_webhook_url` is no address",
            ),
            ("{alerts: {webhok_url: 'http://a'}}", "unknown field `webhok_url`"),
            ("{health: {check_every: 10ms}}", "`check_every` is not usable"),
            ("{health: {check_every: [1]}}", "`check_every` must be text"),
        ] {
            let told = watch(&format!("tollkeeper: {own}"), &[]).expect_err(own);
            assert!(told.contains(want), "{own}: {told}");
            assert!(!told.contains("token-of-mine"), "{own}: {told}");
        }
    }
}
