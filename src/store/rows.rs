//! What both stores share: column lists and the ways between Rust values and stored ones.

use super::{MAX_ROWS, Page, Result, StoreError};
use filters::model::call::Endpoint;
use filters::model::key::KeyHash;
use filters::model::record::{Attempt, Status};
use jiff::civil::Date;
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, IntoDeserializer};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Of a key. `spend` reads its account, see `filter::key_spend`.
pub fn key_columns(spend: &str) -> String {
    format!(
        "hash, key_name, key_alias, user_id, team_id, models, aliases, {spend}, max_budget_nanos, expires, blocked, \
         metadata, extra, created_at, created_by, updated_at"
    )
}

pub const DOC_COLUMNS: &str = "id, fields, version, created_at, updated_at";

pub const AUDIT_COLUMNS: &str =
    "id, at, changed_by, changed_by_key, action, table_name, object_id, before, after";

/// All but `day`, which follows from `started`.
pub const LEDGER_COLUMNS: &str = "request_id, endpoint, key_hash, key_alias, user_id, team_id, organization_id, \
     end_user, requested_model, model_group, model, deployment_id, provider, stream, status, http_status, error, \
     prompt_tokens, completion_tokens, cached_tokens, cache_creation_tokens, reasoning_tokens, characters, \
     audio_millis, images, spend_nanos, priced, estimated, clamped, started, first_byte, ended, attempts, \
     tags, metadata, client_ip, user_agent, bytes_in, bytes_out";

/// More than any call has, little enough that no sum of a day overflows.
const MAX_COUNT: u64 = 1_000_000_000_000;

/// A count as the store keeps it.
pub fn count(n: u64) -> i64 {
    n.min(MAX_COUNT) as i64
}

/// A stored count; a negative one was not written by us and reads as 0.
pub fn uncount(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// Microseconds.
pub const SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400_000_000;
/// 9999-12-31, the last day that has a name in both databases and here.
const LAST_DAY: i64 = 2_932_896;

/// Days before and after today whose rows have partitions of their own in Postgres.
pub const PARTITIONED_BEFORE: i32 = 400;
pub const MADE_AHEAD: i32 = 2;

/// The moment as both stores keep it: within the years that have a name in both.
pub fn moment(micros: i64) -> i64 {
    micros.clamp(0, (LAST_DAY + 1) * MICROS_PER_DAY - 1)
}

/// The first moment of a day, microseconds since 1970.
pub fn midnight(day: i32) -> i64 {
    i64::from(day) * MICROS_PER_DAY
}

/// Today, UTC, in days since 1970.
pub fn today() -> i32 {
    day_of(now())
}

/// Microseconds since 1970.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// Days since 1970-01-01 (UTC) of a time in microseconds.
pub fn day_of(micros: i64) -> i32 {
    micros.div_euclid(MICROS_PER_DAY).clamp(0, LAST_DAY) as i32
}

pub fn date_of(day: i32) -> Date {
    let days = jiff::Span::new().days(i64::from(day).clamp(0, LAST_DAY));
    jiff::civil::date(1970, 1, 1).saturating_add(days)
}

/// Days since 1970-01-01.
pub fn day_number(date: Date) -> i32 {
    let epoch = jiff::civil::date(1970, 1, 1);
    let seconds = date.duration_since(epoch).as_secs();
    seconds.div_euclid(86_400).clamp(0, LAST_DAY) as i32
}

/// The name serde gives the endpoint.
pub fn endpoint_name(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "chat",
        Endpoint::Completions => "completions",
        Endpoint::Embeddings => "embeddings",
        Endpoint::Speech => "speech",
        Endpoint::Transcriptions => "transcriptions",
        Endpoint::Translations => "translations",
        Endpoint::Images => "images",
        Endpoint::Moderations => "moderations",
        Endpoint::Rerank => "rerank",
        Endpoint::Responses => "responses",
    }
}

pub fn endpoint(name: &str) -> Result<Endpoint> {
    named(name)
}

pub fn status(name: &str) -> Result<Status> {
    named(name)
}

fn named<'a, T: Deserialize<'a>>(name: &'a str) -> Result<T> {
    let text: StrDeserializer<'a, serde::de::value::Error> = name.into_deserializer();
    T::deserialize(text).map_err(StoreError::other)
}

pub fn hash(bytes: &[u8]) -> Result<KeyHash> {
    let bytes = bytes
        .try_into()
        .map_err(|_| StoreError::other("a stored key hash is not 32 bytes"))?;
    Ok(KeyHash(bytes))
}

/// A hash of the daily sums, where nobody's is empty.
pub fn hash_or_nobody(bytes: &[u8]) -> Result<Option<KeyHash>> {
    if bytes.is_empty() {
        Ok(None)
    } else {
        hash(bytes).map(Some)
    }
}

pub fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(StoreError::invalid)
}

pub fn from_json<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(StoreError::other)
}

/// A value that may be absent, kept as text.
pub fn maybe_json(text: Option<String>) -> Result<Option<serde_json::Value>> {
    text.as_deref().map(from_json).transpose()
}

/// A list as JSON; most calls have none, and that costs nothing.
pub fn list_json<T: Serialize>(list: &[T]) -> Result<std::borrow::Cow<'static, str>> {
    if list.is_empty() {
        Ok("[]".into())
    } else {
        to_json(&list).map(Into::into)
    }
}

/// What a call's attempts are as JSON, written as serde would: each row has some, and their ids, which are long,
/// hold nothing that would have to be escaped.
pub fn attempts_json(attempts: &[Attempt]) -> Result<String> {
    fn text(out: &mut String, text: &str) -> Result<()> {
        let is_plain = |b: u8| b >= b' ' && b != b'"' && b != b'\\';
        if text.bytes().fold(true, |all, b| all & is_plain(b)) {
            out.extend(["\"", text, "\""]);
        } else {
            out.push_str(&to_json(&text)?);
        }
        Ok(())
    }
    let mut out = String::with_capacity(2 + 160 * attempts.len());
    out.push('[');
    for (i, attempt) in attempts.iter().enumerate() {
        // Every field by name: one that is added is not forgotten here.
        let Attempt {
            deployment_id,
            status,
            error,
            duration_micros,
        } = attempt;
        out.push_str(if i > 0 {
            ",{\"deployment_id\":"
        } else {
            "{\"deployment_id\":"
        });
        text(&mut out, deployment_id)?;
        let written = write!(out, ",\"status\":{status},\"error\":");
        written.map_err(StoreError::other)?;
        match error {
            Some(error) => text(&mut out, error)?,
            None => out.push_str("null"),
        }
        let written = write!(out, ",\"duration_micros\":{duration_micros}}}");
        written.map_err(StoreError::other)?;
    }
    out.push(']');
    Ok(out)
}

pub fn limit(page: Page) -> i64 {
    i64::from(page.limit.min(MAX_ROWS))
}

pub fn offset(page: Page) -> i64 {
    i64::try_from(page.offset).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_serdes() {
        for e in Endpoint::ALL {
            assert_eq!(endpoint(endpoint_name(e)).unwrap(), e);
        }
        for s in [Status::Success, Status::Failure, Status::Aborted, Status::Cut] {
            assert_eq!(status(s.as_str()).unwrap(), s);
        }
        assert!(endpoint("nonsense").is_err());
    }

    #[test]
    fn days_go_both_ways() {
        for (micros, text) in [
            (0, "1970-01-01"),
            (86_399_999_999, "1970-01-01"),
            (86_400_000_000, "1970-01-02"),
            (1_795_132_800_000_000, "2026-11-20"),
            (i64::MAX, "9999-12-31"),
            (i64::MIN, "1970-01-01"),
        ] {
            let day = day_of(micros);
            assert_eq!(date_of(day).to_string(), text);
            assert_eq!(day_number(date_of(day)), day);
        }
    }
}
