//! One look at those who are told of calls, which tells them nothing: is there somebody, and are the keys right. For
//! `tollkeeper doctor`; what follows from it is its to say.

use super::address::{main_project, of_langfuse, of_otlp};
use super::send::{self, Address};
use crate::conf::Tracing;
use reqwest::{Client, StatusCode, Url};
use std::time::Duration;

/// For each of the questions.
const PATIENCE: Duration = Duration::from_secs(3);

/// One receiver, and how it is.
#[derive(Debug)]
pub struct Seen {
    /// `langfuse` or `otlp`.
    pub exporter: &'static str,
    /// Its address without paths.
    pub at: String,
    pub verdict: Verdict,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answers, and it knows the keys. Its version, where it says one.
    Well(Option<String>),
    /// It does not take the keys.
    KeysRefused(u16),
    /// It answers, and not as such a receiver does.
    Strange(u16),
    /// It answers that it is out of order.
    Failing(u16),
    /// No answer, or the address cannot be called.
    Away(String),
}

/// Looks at the gateway's own receivers; those of keys and teams are theirs to look after.
pub async fn look(tracing: &Tracing) -> Vec<Seen> {
    let client = match send::client() {
        Ok(client) => client,
        Err(why) => {
            return vec![Seen {
                exporter: "traces",
                at: String::new(),
                verdict: Verdict::Away(why),
            }];
        }
    };
    let mut seen = Vec::new();
    if let Some(target) = main_project(tracing) {
        seen.push(Seen {
            exporter: "langfuse",
            verdict: match of_langfuse(&target) {
                Ok(address) => langfuse(&client, &target.host, address).await,
                Err(why) => Verdict::Away(why),
            },
            at: target.host,
        });
    }
    if let Some(otlp) = &tracing.otlp {
        let origin = Url::parse(&otlp.endpoint).map(|url| url.origin().ascii_serialization());
        seen.push(Seen {
            exporter: "otlp",
            at: origin.unwrap_or_default(),
            verdict: match of_otlp(otlp) {
                Ok(address) => self::otlp(&client, address).await,
                Err(why) => Verdict::Away(why),
            },
        });
    }
    seen
}

/// Whose keys these are: the one question that needs them and changes nothing.
async fn langfuse(client: &Client, host: &str, address: Address) -> Verdict {
    let Ok(url) = Url::parse(&format!("{host}/api/public/projects")) else {
        return Verdict::Away("its address cannot be used".into());
    };
    let request = client.get(url).headers(address.headers).timeout(PATIENCE);
    let verdict = asked(request).await;
    match (&verdict, address.health) {
        (Verdict::Well(_), Some(health)) => Verdict::Well(send::version(client, &health).await),
        _ => verdict,
    }
}

/// A request without a span, which a receiver takes as it takes others.
async fn otlp(client: &Client, address: Address) -> Verdict {
    let request = client
        .post(address.otlp)
        .headers(address.headers)
        .header("content-type", "application/x-protobuf")
        .timeout(PATIENCE);
    match asked(request).await {
        // There is a receiver; only that nothing in it is nothing.
        Verdict::Strange(400) => Verdict::Well(None),
        verdict => verdict,
    }
}

async fn asked(request: reqwest::RequestBuilder) -> Verdict {
    match request.send().await {
        Ok(answer) => match answer.status() {
            status if status.is_success() => Verdict::Well(None),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Verdict::KeysRefused(answer.status().as_u16())
            }
            status if status.is_server_error() => Verdict::Failing(status.as_u16()),
            status => Verdict::Strange(status.as_u16()),
        },
        Err(e) if e.is_timeout() => Verdict::Away("no answer in time".into()),
        // An address may hold a secret.
        Err(e) => Verdict::Away(send::cause(&e.without_url())),
    }
}
