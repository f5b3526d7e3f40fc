//! Fields that keys, users, teams, members, organizations, end users and tags have in common: what may be
//! spent and how fast. A budget that a row refers to fills in what the row itself leaves open.

use super::row::{Row, Shape, period_start};
use serde_json::{Map, Value, json};

/// The limits themselves, under LiteLLM's names and ours.
pub const LIMITS: &[(&str, Shape)] = &[
    ("max_budget", Shape::Dollars),
    ("soft_budget", Shape::Dollars),
    ("budget_duration", Shape::Period),
    ("max_parallel_requests", Shape::Count),
    ("tpm_limit", Shape::Count),
    ("rpm_limit", Shape::Count),
    ("tpd_limit", Shape::Count),
    ("model_max_budget", Shape::Json),
    ("budget_limits", Shape::Json),
];

/// What LiteLLM's management API puts into `metadata` and ours keeps beside it.
const OUT_OF_METADATA: &[(&str, Shape)] = &[
    ("model_rpm_limit", Shape::Json),
    ("model_tpm_limit", Shape::Json),
    ("rpm_limit_type", Shape::Text),
    ("tpm_limit_type", Shape::Text),
    ("tags", Shape::Texts),
    ("guardrails", Shape::Texts),
    ("prompts", Shape::Texts),
    ("enforced_params", Shape::Texts),
    ("allowed_passthrough_routes", Shape::Texts),
];

/// What a budget can say.
const OF_A_BUDGET: [&str; 8] = [
    "max_budget",
    "soft_budget",
    "budget_duration",
    "budget_reset_at",
    "max_parallel_requests",
    "tpm_limit",
    "rpm_limit",
    "model_max_budget",
];

/// Columns that limits are read from.
pub const COLUMNS: &[&str] = &[
    "max_budget",
    "soft_budget",
    "budget_duration",
    "budget_reset_at",
    "max_parallel_requests",
    "tpm_limit",
    "rpm_limit",
    "tpd_limit",
    "model_max_budget",
    "budget_limits",
    "budget_id",
];

/// Reads the limits of a row: its own, then its budget's.
pub fn read(row: &mut Row) -> Map<String, Value> {
    fill_in(row);
    let mut limits = row.read_all(LIMITS);
    if let Some(id) = row.id("budget_id") {
        limits.insert("budget_id".into(), id.into());
    }
    // A rolling period goes on where it was; one by the calendar does not need this.
    if let (Some(reset), Some(period)) = (row.micros("budget_reset_at"), row.text("budget_duration"))
        && let Some(since) = period_start(reset, &period)
    {
        limits.insert("budget_since_micros".into(), json!(since));
    }
    limits
}

fn fill_in(row: &mut Row) {
    let Some(Value::Object(budget)) = row.take("litellm_budget_table") else {
        return;
    };
    for name in OF_A_BUDGET {
        if is_open(row.value(name))
            && let Some(value) = budget.get(name)
        {
            row.set(name, value.clone());
        }
    }
}

fn is_open(value: Option<&Value>) -> bool {
    match value {
        None => true,
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    }
}

/// What stands in `metadata` for want of a column. It stays there too, where LiteLLM's clients look.
pub fn out_of(metadata: &Map<String, Value>, fields: &mut Map<String, Value>, row: &mut Row) {
    let mut inner = Row::within(metadata, &row.label);
    for (name, value) in inner.read_all(OUT_OF_METADATA) {
        fields.entry(name).or_insert(value);
    }
    row.flaws.append(&mut inner.flaws);
}

/// What was spent in the period that runs at `now` (microseconds since 1970), in nano-dollars. LiteLLM
/// sets the sum to zero some minutes after the period's end; here it is zero from then on.
pub fn spent(row: &mut Row, now: i64) -> i64 {
    let spent = row.nanos("spend").unwrap_or(0);
    let over = row.value("budget_duration").is_some_and(|d| d.is_string())
        && row.micros("budget_reset_at").is_some_and(|reset| reset <= now);
    if over { 0 } else { spent }
}

/// What was spent per model in all, for the models that were named.
pub fn spent_by_model(row: &mut Row) -> Vec<(String, i64)> {
    let Some(Value::Object(models)) = row.take("model_spend") else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for (model, value) in models {
        match super::row::nanos(&value) {
            Some((nanos, None)) if super::row::id_flaw(&model).is_none() && !model.is_empty() => {
                if nanos > 0 {
                    out.push((model, nanos));
                }
            }
            _ => row.flaw("model_spend", "holds an amount that cannot be taken, left out"),
        }
    }
    out
}
