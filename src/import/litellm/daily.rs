//! `LiteLLM_DailyUserSpend` to our sums per day. Its rows are finer than ours (by tool, by endpoint), so the
//! database adds them up, row by row in nano-dollars: no sum of floats.

use super::row::{MOST_NANOS, Row};
use crate::store::DailyRow;
use filters::model::key::KeyHash;
use jiff::civil::Date;
use serde_json::Value;

/// More than any sum counts.
const MAX_COUNT: i64 = 1_000_000_000_000_000;

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
