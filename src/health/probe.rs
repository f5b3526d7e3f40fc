//! One look at one upstream that costs nothing: the list of its models. For the background checks and for
//! `tollkeeper doctor`; what follows from it is theirs to say.

use crate::proxy::head::join;
use filters::model::deployment::Deployment;
use filters::model::secret::Secret;
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Client, Url};
use serde_json::Value;
use std::error::Error;
use std::time::{Duration, Instant};

/// For a whole look.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The longest list that is read, bytes.
const MOST: usize = 4 << 20;
const ANTHROPIC: &str = "2023-06-01";

/// What is looked at: deployments that differ in nothing of this are looked at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub url: String,
    headers: Vec<(String, Secret)>,
    has_key: bool,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    pub verdict: Verdict,
    pub took: Duration,
    /// Its models, where they were asked for and told.
    pub models: Option<Vec<String>>,
    /// Its clock, seconds since 1970.
    pub date: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answers.
    Well,
    /// It answers and has no such list: more cannot be known without a call that may cost.
    Reached(u16),
    /// It does not take our key.
    KeyRefused(u16),
    /// It answers that it is out of order.
    Failing(u16),
    /// No answer; the sentence says why.
    Away(String),
}

impl Verdict {
    pub fn is_well(&self) -> bool {
        matches!(self, Verdict::Well | Verdict::Reached(_))
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Well => f.write_str("it answers"),
            Verdict::Reached(status) => write!(f, "it answers, and /models says {status}"),
            Verdict::KeyRefused(status) => write!(f, "it does not accept the key (status {status})"),
            Verdict::Failing(status) => write!(f, "it answers with status {status}"),
            Verdict::Away(why) => f.write_str(why),
        }
    }
}

/// Asks nobody but whom it is told to.
pub fn client() -> Result<Client, String> {
    // With two providers linked, rustls would not know which to take.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .user_agent(concat!("tollkeeper/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| root(&e))
}

impl Target {
    /// None: the deployment has no address of its own.
    pub fn of(d: &Deployment) -> Option<Self> {
        if d.base.host.is_empty() {
            return None;
        }
        let scheme = if d.base.tls { "https" } else { "http" };
        let is_anthropic = d.dialect == "anthropic";
        let path = join(&d.base.path, if is_anthropic { "/v1/models" } else { "/models" });
        let mut headers = d.headers.clone();
        if is_anthropic {
            headers.push(("anthropic-version".into(), ANTHROPIC.into()));
        }
        if let Some(key) = &d.api_key {
            headers.push(match is_anthropic {
                true => ("x-api-key".into(), key.clone()),
                false => ("authorization".into(), format!("Bearer {}", key.expose()).into()),
            });
        }
        Some(Self {
            url: format!("{scheme}://{}{path}", d.base.authority()),
            headers,
            has_key: d.api_key.is_some(),
        })
    }

    pub fn has_key(&self) -> bool {
        self.has_key
    }

    /// Looks once. `wants_models`: the list is read, too.
    pub async fn look(&self, client: &Client, wants_models: bool) -> Seen {
        let begun = Instant::now();
        let asked = tokio::time::timeout(PATIENCE, self.ask(client, wants_models)).await;
        let (verdict, models, date) =
            asked.unwrap_or_else(|_| (Verdict::Away("no answer in time".into()), None, None));
        Seen {
            verdict,
            took: begun.elapsed(),
            models,
            date,
        }
    }

    async fn ask(&self, client: &Client, wants_models: bool) -> (Verdict, Option<Vec<String>>, Option<i64>) {
        let away = |why: &str| (Verdict::Away(why.to_string()), None, None);
        let Ok(url) = Url::parse(&self.url) else {
            return away("its address cannot be used");
        };
        let mut request = client.get(url);
        for (name, value) in &self.headers {
            let (Ok(name), Ok(mut value)) = (
                HeaderName::try_from(name.as_str()),
                HeaderValue::try_from(value.expose()),
            ) else {
                return away("one of its headers cannot be sent");
            };
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        let mut answer = match request.send().await {
            Ok(answer) => answer,
            Err(e) if e.is_timeout() => return away("no answer in time"),
            Err(e) => return away(&root(&e)),
        };
        let date = answer
            .headers()
            .get("date")
            .and_then(|v| v.to_str().ok())
            .and_then(|text| jiff::fmt::rfc2822::parse(text).ok())
            .map(|at| at.timestamp().as_second());
        let status = answer.status().as_u16();
        let verdict = match status {
            200..=299 => Verdict::Well,
            401 | 403 => Verdict::KeyRefused(status),
            500 | 502.. => Verdict::Failing(status),
            _ => Verdict::Reached(status),
        };
        if !wants_models || verdict != Verdict::Well {
            return (verdict, None, date);
        }
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            if bytes.len() + chunk.len() > MOST {
                return (verdict, None, date);
            }
            bytes.extend_from_slice(&chunk);
        }
        let list: Option<Value> = serde_json::from_slice(&bytes).ok();
        let data = list
            .as_ref()
            .and_then(|l| l.get("data"))
            .and_then(Value::as_array);
        let ids = |m: &Value| m.get("id").and_then(Value::as_str).map(str::to_string);
        let models = data.map(|data| data.iter().filter_map(ids).collect());
        (verdict, models, date)
    }
}

/// The last cause, which is the one that says something, and names no address.
fn root(e: &reqwest::Error) -> String {
    let mut cause: &dyn Error = e;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text: String = cause.to_string().chars().take(200).collect();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_is_asked_in_its_way() {
        let url = |base: &str, dialect| {
            let mut d = filters::testkit::deployment(dialect);
            d.base = filters::model::deployment::Base::parse(base).unwrap();
            Target::of(&d).map(|t| t.url)
        };
        for (base, dialect, want) in [
            ("http://llama:8080/v1", "openai", "http://llama:8080/v1/models"),
            (
                "https://api.example.com",
                "openai",
                "https://api.example.com/models",
            ),
            (
                "https://api.anthropic.com",
                "anthropic",
                "https://api.anthropic.com/v1/models",
            ),
            (
                "https://proxy/anthropic/v1",
                "anthropic",
                "https://proxy/anthropic/v1/models",
            ),
        ] {
            assert_eq!(url(base, dialect).as_deref(), Some(want), "{base}");
        }
    }

    #[test]
    fn what_is_looked_at_shows_no_key() {
        let mut d = filters::testkit::deployment("openai");
        d.api_key = Some("sk-provider".into());
        let target = Target::of(&d).unwrap();
        assert!(target.has_key() && !format!("{target:?}").contains("sk-provider"));
    }
}
