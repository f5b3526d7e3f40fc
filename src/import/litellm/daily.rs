//! `LiteLLM_DailyUserSpend` to our sums per day. Its rows are finer than ours (by tool, by endpoint), so the
//! database adds them up, row by row in nano-dollars: no sum of floats.

use super::keys;
use super::read::Source;
use super::row::{MOST_NANOS, Row};
use crate::store::DailyRow;
use filters::model::key::KeyHash;
use jiff::civil::Date;
use serde_json::Value;

pub const TABLE: &str = "LiteLLM_DailyUserSpend";

/// Longest name in a sum's key, in characters: the key must fit an index entry.
const MAX_NAME: u32 = 120;
/// More than any sum counts.
const MAX_COUNT: i64 = 1_000_000_000_000_000;

/// The statement for all sums; `None` = the table is not there or not the one we know.
pub fn select(source: &Source) -> Option<String> {
    if !["date", "api_key", "spend"].iter().all(|c| source.has(TABLE, c)) {
        return None;
    }
    let has = |column: &str| source.has(TABLE, column);
    let text = |column: &str| {
        if has(column) {
            format!("left(coalesce(t.\"{column}\", ''), {MAX_NAME})")
        } else {
            "''::text".into()
        }
    };
    let group = match (has("model_group"), has("model")) {
        (true, true) => {
            format!("left(coalesce(nullif(t.\"model_group\", ''), t.\"model\", ''), {MAX_NAME})")
        }
        (true, false) => text("model_group"),
        _ => text("model"),
    };
    let count = |column: &str| {
        if has(column) {
            format!("sum(greatest(coalesce(t.\"{column}\", 0), 0)::numeric)::text")
        } else {
            "'0'::text".into()
        }
    };
    // A sum knows no team; the key that made it does. What stands for no virtual key (LiteLLM writes
    // unknown keys in plain text here) counts as nobody's.
    let hash = "CASE WHEN lower(t.\"api_key\") ~ '^[0-9a-f]{64}$' THEN lower(t.\"api_key\") ELSE '' END";
    let of_key = |column: &str| {
        if source.has(keys::TABLE, column) {
            format!("left(coalesce(k.\"{column}\", ''), {MAX_NAME})")
        } else {
            "''::text".into()
        }
    };
    let join = format!(
        "LEFT JOIN \"{}\" k ON k.\"token\" = lower(t.\"api_key\")",
        keys::TABLE
    );
    // In Postgres NaN is larger than any number.
    let sound = "t.\"spend\" >= 0 AND t.\"spend\" <= 9e6";
    Some(format!(
        "SELECT t.\"date\" AS day, {hash} AS key_hash, {group} AS model_group, {user} AS user_id, {team} AS team_id, \
         {organization} AS organization_id, {provider} AS provider, {requests} AS requests, {successes} AS successes, {failures} AS failures, \
         {prompt} AS prompt_tokens, {completion} AS completion_tokens, {cached} AS cached_tokens, {created} AS cache_creation_tokens, \
         sum(CASE WHEN {sound} THEN round(t.\"spend\"::numeric * 1000000000) \
             WHEN t.\"spend\" > 9e6 AND t.\"spend\" <> 'NaN' THEN {MOST_NANOS} ELSE 0 END)::text AS spend_nanos, \
         count(*) FILTER (WHERE NOT ({sound})) AS unsound \
         FROM \"{TABLE}\" t {join} GROUP BY 1, 2, 3, 4, 5, 6, 7",
        user = text("user_id"),
        team = of_key("team_id"),
        organization = of_key("organization_id"),
        provider = text("custom_llm_provider"),
        requests = count("api_requests"),
        successes = count("successful_requests"),
        failures = count("failed_requests"),
        prompt = count("prompt_tokens"),
        completion = count("completion_tokens"),
        cached = count("cache_read_input_tokens"),
        created = count("cache_creation_input_tokens"),
    ))
}

/// Makes a sum of a row; the error says why it is left.
pub fn sum(row: &mut Row) -> Result<DailyRow, &'static str> {
    let day: Date = row
        .text("day")
        .and_then(|d| d.parse().ok())
        .filter(|d: &Date| d.year() >= 1970)
        .ok_or("its date is no day")?;
    if row.value("unsound").and_then(Value::as_u64).unwrap_or(0) > 0 {
        row.flaw(
            "spend",
            "was no amount that can be, and was cut to 0 or 9 million dollars",
        );
    }
    let count = |name: &str| -> i64 {
        let text = row.text(name).unwrap_or_default();
        // Whole numbers only; what is too long for a number is too large to count.
        text.parse().unwrap_or(MAX_COUNT).clamp(0, MAX_COUNT)
    };
    let (requests, successes, failures) = (count("requests"), count("successes"), count("failures"));
    let (prompt_tokens, completion_tokens) = (count("prompt_tokens"), count("completion_tokens"));
    let (cached_tokens, cache_creation_tokens) = (count("cached_tokens"), count("cache_creation_tokens"));
    let spend = row.text("spend_nanos").unwrap_or_default();
    Ok(DailyRow {
        day,
        key_hash: row.text("key_hash").and_then(|h| KeyHash::from_hex(&h)),
        model_group: row.text("model_group").unwrap_or_default(),
        user_id: row.text("user_id").unwrap_or_default(),
        team_id: row.text("team_id").unwrap_or_default(),
        organization_id: row.text("organization_id").unwrap_or_default(),
        provider: row.text("provider").unwrap_or_default(),
        requests,
        successes,
        failures,
        prompt_tokens,
        completion_tokens,
        cached_tokens,
        cache_creation_tokens,
        spend_nanos: spend.parse().unwrap_or(MOST_NANOS).clamp(0, MOST_NANOS),
    })
}
