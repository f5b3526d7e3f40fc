//! When the authority itself wants a certificate renewed (RFC 9773): it may have to take back many at once,
//! and spreads the others. What it says only ever makes a renewal earlier; an authority that says nothing, or
//! cannot be asked, changes nothing.

use super::post::Post;
use super::vault::{Record, moment};
use crate::conf::Acme;
use crate::tls::Facts;
use jiff::Timestamp;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// The soonest and the latest that it is asked again, whatever it says, seconds.
const SOONEST: i64 = 60;
const LATEST: i64 = 86_400;
/// When it does not say, seconds.
const USUAL: i64 = 6 * 3_600;
/// After a certificate that was got early the next one is not ordered earlier than this, seconds: an authority
/// whose windows are always over must not be asked for one after the other.
const REST: i64 = 86_400;

/// What is known of one certificate's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// The moment that was drawn, seconds since 1970; None = the authority has no such words.
    pub renew: Option<i64>,
    /// Seconds until it is asked again.
    pub again: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    renewal_info: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    suggested_window: Window,
    #[serde(rename = "explanationURL")]
    explanation: Option<String>,
}

#[derive(Deserialize)]
struct Window {
    #[serde(deserialize_with = "timestamp")]
    start: Timestamp,
    #[serde(deserialize_with = "timestamp")]
    end: Timestamp,
}

fn timestamp<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(D::Error::custom)
}

/// Asks the authority about a certificate. `Err` is a sentence.
pub async fn ask(entry: &Acme, facts: &Facts) -> Result<Told, String> {
    let none = Told {
        renew: None,
        again: LATEST,
    };
    let Some(id) = &facts.renewal_id else {
        return Ok(none);
    };
    let post = Post::new(entry.ca.as_deref())?;
    let (directory, _): (Directory, _) = post.get(&entry.directory).await?;
    let Some(info) = directory.renewal_info else {
        return Ok(none);
    };
    let address = format!("{}/{id}", info.trim_end_matches('/'));
    let (info, wait): (Info, _) = post.get(&address).await?;
    let told = read(&info, id, wait)?;
    if let (Some(at), Some(page)) = (told.renew, &info.explanation) {
        let page: String = page.chars().filter(|c| c.is_ascii_graphic()).take(300).collect();
        log::info!(
            "event=acme_window names={} renewal=\"{}\" explanation={page:?}",
            entry.hosts.join(","),
            moment(at)
        );
    }
    Ok(told)
}

fn read(info: &Info, id: &str, wait: Option<Duration>) -> Result<Told, String> {
    let Window { start, end } = info.suggested_window;
    let (start, end) = (start.as_second(), end.as_second());
    if end <= start {
        return Err("the authority's window for the renewal ends before it begins".into());
    }
    let again = wait.map_or(USUAL, |w| i64::try_from(w.as_secs()).unwrap_or(LATEST));
    Ok(Told {
        renew: Some(drawn(id, start, end)),
        again: again.clamp(SOONEST, LATEST),
    })
}

/// A moment in the window: another one for each certificate, and for one always the same, however often and by
/// whichever process it is asked.
fn drawn(id: &str, start: i64, end: i64) -> i64 {
    let digest = Sha256::digest(format!("{id} {start} {end}").as_bytes());
    let drawn = digest.iter().take(8).fold(0, |n: u64, b| n << 8 | u64::from(*b));
    let width = end.saturating_sub(start).max(1).unsigned_abs();
    start.saturating_add_unsigned(drawn % width)
}

/// When the authority wants this certificate renewed, as far as it was asked, seconds since 1970.
pub fn wanted(record: &Record, facts: &Facts) -> Option<i64> {
    let is_of_it = record.renew > 0 && record.renew_of == facts.serial;
    let rest = if record.early {
        record.got.saturating_add(REST)
    } else {
        0
    };
    is_of_it.then(|| record.renew.max(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(start: &str, end: &str) -> Info {
        let text = format!(
            r#"{{"suggestedWindow": {{"start": "{start}", "end": "{end}"}}, "explanationURL": "https://ca.example/why"}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_moment_lies_in_the_window_and_stays() {
        let of = |id: &str| read(&info("2026-01-01T00:00:00Z", "2026-01-03T00:00:00.5Z"), id, None).unwrap();
        let (start, end) = (1_767_225_600, 1_767_225_600 + 2 * 86_400);
        let all: Vec<i64> = (0..100).filter_map(|n| of(&format!("a.{n}")).renew).collect();
        assert!(all.iter().all(|at| (start..end).contains(at)));
        let early = all.iter().filter(|at| **at < start + 86_400).count();
        assert!((25..75).contains(&early), "{early} of 100 in the first half");
        assert_eq!(of("a.7"), of("a.7"));
        assert_eq!(of("a.7").again, USUAL);
        let backwards = read(&info("2026-01-03T00:00:00Z", "2026-01-01T00:00:00Z"), "a.b", None);
        assert!(backwards.is_err());
    }

    #[test]
    fn what_it_says_of_asking_again_is_bounded() {
        let again = |seconds| {
            let wait = Some(Duration::from_secs(seconds));
            read(&info("2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"), "a.b", wait)
                .unwrap()
                .again
        };
        assert_eq!(
            [again(0), again(7_200), again(u64::MAX)],
            [SOONEST, 7_200, LATEST]
        );
    }

    #[test]
    fn a_window_that_is_always_over_is_heeded_once_a_day() {
        let facts = Facts {
            serial: "1a".into(),
            ..Facts::default()
        };
        let mut record = Record {
            got: 1_000_000,
            renew: 5,
            renew_of: "1a".into(),
            ..Record::default()
        };
        assert_eq!(wanted(&record, &facts), Some(5));
        record.early = true;
        assert_eq!(wanted(&record, &facts), Some(1_000_000 + REST));
        record.renew_of = "1b".into();
        assert_eq!(wanted(&record, &facts), None, "it is another certificate's");
    }
}
