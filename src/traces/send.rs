//! Sends one batch, once, and says what became of it. When to send again is the road's business.

use super::proto;
use crate::retry_after;
use reqwest::header::HeaderMap;
use reqwest::{Client, Response, Url};
use serde::Deserialize;
use std::time::Duration;

/// For connecting, and for the whole exchange.
const CONNECT: Duration = Duration::from_secs(5);
const EXCHANGE: Duration = Duration::from_secs(20);
/// For asking a server its version.
const ASKING: Duration = Duration::from_secs(5);
/// Of an answer no more is read, bytes.
const LONGEST_ANSWER: usize = 1 << 20;
/// A receiver that wants to be left alone for longer is asked again anyway.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How a batch is written, and with that where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Spans in protobuf.
    Otlp,
    /// Langfuse's batch of events, which it had before it took spans.
    Legacy,
}

/// Bytes that are ready to go.
pub struct Parcel {
    pub format: Format,
    pub bytes: bytes::Bytes,
    pub gzip: bool,
}

/// Where parcels go, and what goes with each.
pub struct Address {
    pub otlp: Url,
    pub legacy: Option<Url>,
    /// Where Langfuse says its version.
    pub health: Option<Url>,
    pub headers: HeaderMap,
}

/// What became of sending.
#[derive(Debug)]
pub enum Outcome {
    Taken,
    /// It took all but so many spans, and these for good.
    TakenBut {
        rejected: u64,
        why: String,
    },
    /// Of a batch of events, it took those that are not named here. `again` may be sent again.
    Partly {
        refused: u64,
        again: Vec<String>,
    },
    /// It was not taken and may be sent again. `answered`: a server said so.
    Later {
        after: Option<Duration>,
        why: String,
        answered: bool,
    },
    /// It will never be taken.
    Never {
        status: u16,
    },
}

/// What can be called. `Err` says why not.
pub fn client() -> Result<Client, String> {
    Client::builder()
        .connect_timeout(CONNECT)
        .timeout(EXCHANGE)
        .redirect(reqwest::redirect::Policy::none())
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(1)
        .user_agent(concat!("tollkeeper/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| e.to_string())
}

/// Sends a parcel.
pub async fn send(client: &Client, to: &Address, parcel: &Parcel) -> Outcome {
    let (url, kind) = match (parcel.format, &to.legacy) {
        (Format::Legacy, Some(url)) => (url.clone(), "application/json"),
        _ => (to.otlp.clone(), "application/x-protobuf"),
    };
    let mut request = client
        .post(url)
        .headers(to.headers.clone())
        .header("content-type", kind)
        .body(parcel.bytes.clone());
    if parcel.gzip {
        request = request.header("content-encoding", "gzip");
    }
    match request.send().await {
        Ok(answer) => judge(answer, parcel.format).await,
        // An address may hold a secret.
        Err(e) => Outcome::Later {
            after: None,
            why: cause(&e.without_url()),
            answered: false,
        },
    }
}

/// The innermost reason, which is what helps.
pub fn cause(e: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = e;
    while let Some(next) = inner.source() {
        inner = next;
    }
    inner.to_string()
}

async fn judge(answer: Response, format: Format) -> Outcome {
    let status = answer.status();
    let after = retry_after::read(answer.headers()).map(|wait| wait.min(LONGEST_WAIT));
    let is_protobuf = answer
        .headers()
        .get("content-type")
        .is_some_and(|t| t.as_bytes().starts_with(b"application/x-protobuf"));
    if status.is_success() {
        return match read(answer).await {
            Some(body) if format == Format::Legacy => legacy(&body),
            Some(body) if is_protobuf => match proto::partial_success(&body) {
                Some((rejected, why)) => Outcome::TakenBut { rejected, why },
                None => Outcome::Taken,
            },
            // The head said that it was taken.
            _ => Outcome::Taken,
        };
    }
    if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) {
        return Outcome::Later {
            after,
            why: format!("status {}", status.as_u16()),
            answered: true,
        };
    }
    Outcome::Never {
        status: status.as_u16(),
    }
}

/// What Langfuse says of each event.
fn legacy(body: &[u8]) -> Outcome {
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        errors: Vec<Refused>,
    }
    #[derive(Deserialize)]
    struct Refused {
        #[serde(default)]
        id: String,
        #[serde(default)]
        status: u16,
    }
    let errors = serde_json::from_slice::<Said>(body)
        .map(|s| s.errors)
        .unwrap_or_default();
    if errors.is_empty() {
        return Outcome::Taken;
    }
    let (again, refused): (Vec<_>, Vec<_>) = errors
        .into_iter()
        .partition(|e| e.status >= 500 || e.status == 429);
    Outcome::Partly {
        refused: refused.len() as u64,
        again: again.into_iter().map(|e| e.id).collect(),
    }
}

async fn read(mut answer: Response) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        out.extend_from_slice(&chunk);
        if out.len() > LONGEST_ANSWER {
            return None;
        }
    }
    Some(out)
}

/// Asks a Langfuse which format it takes. `Err` says why it cannot be asked now.
pub async fn ask(client: &Client, to: &Address) -> Result<Format, String> {
    let Some(url) = &to.health else {
        return Ok(Format::Otlp);
    };
    let asked = client.get(url.clone()).timeout(ASKING).send();
    let answer = asked.await.map_err(|e| cause(&e.without_url()))?;
    if answer.status().is_server_error() {
        return Err(format!("status {}", answer.status().as_u16()));
    }
    Ok(told(answer).await.map_or(Format::Otlp, |v| format_of(&v)))
}

/// The version that a Langfuse says it is.
pub async fn version(client: &Client, health: &Url) -> Option<String> {
    let asked = client.get(health.clone()).timeout(ASKING).send();
    told(asked.await.ok()?).await
}

async fn told(answer: Response) -> Option<String> {
    #[derive(Deserialize)]
    struct Health {
        version: String,
    }
    let body = read(answer).await?;
    serde_json::from_slice::<Health>(&body).ok().map(|h| h.version)
}

/// Spans are taken from 3.22.0 on. What says no version that can be read is new, or no Langfuse.
fn format_of(version: &str) -> Format {
    let mut parts = version.trim().trim_start_matches('v').split(['.', '-', '+']);
    let mut next = || parts.next().and_then(|p| p.parse::<u64>().ok());
    match (next(), next()) {
        (Some(major), Some(minor)) if (major, minor) < (3, 22) => Format::Legacy,
        _ => Format::Otlp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_decide_the_format() {
        for (version, want) in [
            ("3.22.0", Format::Otlp),
            ("v3.21.9", Format::Legacy),
            ("2.95.1", Format::Legacy),
            ("4.0.0-rc.1", Format::Otlp),
            ("3.100.2", Format::Otlp),
            ("main", Format::Otlp),
            ("", Format::Otlp),
        ] {
            assert_eq!(format_of(version), want, "{version}");
        }
    }

    #[test]
    fn events_are_judged_one_by_one() {
        let all = br#"{"successes":[{"id":"a","status":201}],"errors":[]}"#;
        assert!(matches!(legacy(all), Outcome::Taken));
        let some =
            br#"{"successes":[],"errors":[{"id":"a","status":400,"message":"no"},{"id":"b","status":503}]}"#;
        let Outcome::Partly { refused, again } = legacy(some) else {
            panic!("some were refused");
        };
        assert_eq!((refused, again), (1, vec!["b".to_string()]));
        assert!(matches!(legacy(b"nonsense"), Outcome::Taken));
    }
}
