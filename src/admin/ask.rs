//! What a request brings besides its body: the query. Who asks is an [`Actor`](super::rights::Actor).

use super::Desk;
use super::error::{Result, Stopped, wrong_type, wrong_value};
use axum::extract::{FromRequestParts, Query};
use filters::contract::Refusal;
use filters::model::key::KeyHash;
use http::request::Parts;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use std::sync::Arc;

/// Furthest row that paging reaches: beyond it a database reads too much to skip it.
const MOST_SKIPPED: u64 = 1_000_000;

/// The query, read by name. A name given twice is refused, so that no two readers can differ.
pub struct Params(Vec<(String, String)>);

impl FromRequestParts<Arc<Desk>> for Params {
    type Rejection = Stopped;

    async fn from_request_parts(parts: &mut Parts, desk: &Arc<Desk>) -> Result<Self> {
        match Query::<Vec<(String, String)>>::from_request_parts(parts, desk).await {
            Ok(Query(pairs)) => Ok(Params(pairs)),
            Err(_) => Err(Refusal::bad_request("The query of this address cannot be read.").into()),
        }
    }
}

impl Params {
    /// An empty value is an absent one, as a form sends it.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        let mut values = self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let value = values.next();
        if values.next().is_some() {
            return Err(wrong_value(name, format!("'{name}' is given twice. Give it once.")).into());
        }
        if value.is_some_and(|v| v.contains(char::is_control)) {
            return Err(wrong_value(name, format!("'{name}' holds a control character.")).into());
        }
        Ok(value.filter(|v| !v.is_empty()))
    }

    pub fn owned(&self, name: &str) -> Result<Option<String>> {
        Ok(self.text(name)?.map(str::to_string))
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.text(name)?.map(str::to_ascii_lowercase).as_deref() {
            None => Ok(None),
            Some("true" | "1" | "yes" | "on") => Ok(Some(true)),
            Some("false" | "0" | "no" | "off") => Ok(Some(false)),
            Some(_) => Err(wrong_type(name, "true or false").into()),
        }
    }

    /// A whole number within bounds; outside of them is a refusal that names them.
    pub fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match text.parse::<u64>() {
            Ok(n) if (least..=most).contains(&n) => Ok(Some(n)),
            _ => Err(wrong_type(name, &format!("a whole number from {least} to {most}")).into()),
        }
    }

    /// A day or a moment, in microseconds since 1970: `2026-11-20`, `2026-11-20 12:00:00` (UTC) or
    /// RFC 3339. A day stands for its first moment, or with `end` for that of the next day.
    pub fn moment(&self, name: &str, end: bool) -> Result<Option<i64>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let utc = |t: DateTime| t.to_zoned(TimeZone::UTC).map(|z| z.timestamp());
        let read = if let Ok(day) = Date::strptime("%Y-%m-%d", text) {
            let day = if end { day.tomorrow() } else { Ok(day) };
            day.and_then(|d| utc(d.to_datetime(Default::default())))
        } else if let Ok(moment) = text.parse::<Timestamp>() {
            Ok(moment)
        } else {
            text.parse::<DateTime>().and_then(utc)
        };
        match read {
            Ok(moment) => Ok(Some(moment.as_microsecond())),
            Err(_) => Err(wrong_value(
                name,
                format!("'{name}' must be a day (YYYY-MM-DD) or a moment (YYYY-MM-DDTHH:MM:SSZ), in UTC."),
            )
            .into()),
        }
    }

    /// A key as `sk-...` or as its hash.
    pub fn key(&self, name: &str) -> Result<Option<KeyHash>> {
        match self.text(name)? {
            None => Ok(None),
            Some(text) => match hash_of(text) {
                Some(hash) => Ok(Some(hash)),
                None => Err(wrong_value(
                    name,
                    format!("'{name}' must be a key (sk-...) or its hash (64 hexadecimal digits)."),
                )
                .into()),
            },
        }
    }

    /// The slice of a list that is asked for by `page` (from 1) and by one of `names`, its size.
    pub fn page(&self, names: &[&str], size: u64, most: u64) -> Result<Slice> {
        let mut asked: Option<(&str, u64)> = None;
        for name in names {
            if let Some(n) = self.number(name, 1, most)? {
                if let Some((other, m)) = asked
                    && m != n
                {
                    return Err(
                        wrong_value(name, format!("'{other}' and '{name}' differ. Give one.")).into(),
                    );
                }
                asked = Some((name, n));
            }
        }
        let size = asked.map_or(size, |(_, n)| n);
        let page = self.number("page", 1, u64::from(u32::MAX))?.unwrap_or(1);
        let offset = (page - 1).saturating_mul(size);
        if offset > MOST_SKIPPED {
            return Err(wrong_value(
                "page",
                format!("Pages reach {MOST_SKIPPED} rows at most. Narrow the list, by dates for example."),
            )
            .into());
        }
        Ok(Slice { page, size, offset })
    }
}

/// A page of a list: its number from 1, its size and the rows before it.
#[derive(Clone, Copy)]
pub struct Slice {
    pub page: u64,
    pub size: u64,
    pub offset: u64,
}

/// The hash of a key that is given as `sk-...` or as its hash.
pub fn hash_of(text: &str) -> Option<KeyHash> {
    if text.starts_with("sk-") {
        Some(KeyHash::of(text))
    } else {
        KeyHash::from_hex(text)
    }
}
