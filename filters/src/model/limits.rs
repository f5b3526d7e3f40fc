//! What somebody may spend and how fast: read from LiteLLM's field names, whoever it is.
//!
//! Keys, users, teams, members, organizations, end users and tags all carry the same fields, so they
//! are read here once.

use super::money::Nanos;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The limits of one subject. Money is nano-dollars; a rate counts per 60 seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    pub budget: Allowance,
    pub soft_budget_nanos: Option<i64>,
    pub rpm: Option<u64>,
    pub tpm: Option<u64>,
    /// Calls in flight at once.
    pub parallel: Option<u64>,
    /// The same for single models, by the name a caller uses or the group it stands for.
    pub models: BTreeMap<String, ModelLimits>,
}

/// Limits of one model within a subject.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelLimits {
    pub budget: Allowance,
    pub rpm: Option<u64>,
    pub tpm: Option<u64>,
    /// Calls in flight at once.
    pub parallel: Option<u64>,
}

/// What a limit besides money counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Measure {
    /// Per 60 seconds.
    Requests,
    /// Per 60 seconds, prompt and answer.
    Tokens,
    /// Calls in flight at once.
    Parallel,
}

impl Measure {
    /// LiteLLM's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Measure::Requests => "requests",
            Measure::Tokens => "tokens",
            Measure::Parallel => "max_parallel_requests",
        }
    }
}

/// An amount of money, for good or per period.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allowance {
    /// None = as much as one likes.
    pub nanos: Option<i64>,
    /// LiteLLM's spelling (`30d`, `1mo`); None = it never resets.
    pub period: Option<String>,
    /// When a rolling period began, microseconds since 1970. Calendar periods do not need it.
    pub since_micros: i64,
}

impl Limits {
    /// Reads the fields that are there. What cannot be understood limits nothing: fields are checked
    /// when they are written.
    pub fn of(fields: &Map<String, Value>) -> Self {
        let count = |name: &str| fields.get(name).and_then(whole);
        let since_micros = fields
            .get("budget_since_micros")
            .and_then(Value::as_i64)
            .unwrap_or(0);
        let mut models: BTreeMap<String, ModelLimits> = BTreeMap::new();
        for (name, value) in object(fields, "model_max_budget") {
            // `{"gpt-4": {"budget_limit": 10, "time_period": "1d"}}`, or the amount alone.
            let amount = value
                .get("budget_limit")
                .or_else(|| value.get("max_budget"))
                .unwrap_or(value);
            let period = value
                .get("time_period")
                .or_else(|| value.get("budget_duration"))
                .and_then(Value::as_str);
            models.entry(name.clone()).or_default().budget = Allowance {
                nanos: money(amount),
                period: period.map(Into::into),
                since_micros,
            };
        }
        for (name, value) in object(fields, "model_rpm_limit") {
            models.entry(name.clone()).or_default().rpm = whole(value);
        }
        for (name, value) in object(fields, "model_tpm_limit") {
            models.entry(name.clone()).or_default().tpm = whole(value);
        }
        for (name, value) in object(fields, "model_max_parallel_requests") {
            models.entry(name.clone()).or_default().parallel = whole(value);
        }
        Self {
            budget: Allowance {
                nanos: fields.get("max_budget").and_then(money),
                period: fields
                    .get("budget_duration")
                    .and_then(Value::as_str)
                    .map(Into::into),
                since_micros,
            },
            soft_budget_nanos: fields.get("soft_budget").and_then(money),
            rpm: count("rpm_limit"),
            tpm: count("tpm_limit"),
            parallel: count("max_parallel_requests"),
            models,
        }
    }

    /// Whether anything at all is limited.
    pub fn bind(&self) -> bool {
        self.budget.nanos.is_some()
            || self.soft_budget_nanos.is_some()
            || self.rpm.is_some()
            || self.tpm.is_some()
            || self.parallel.is_some()
            || !self.models.is_empty()
    }
}

fn object<'a>(fields: &'a Map<String, Value>, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    fields.get(name).and_then(Value::as_object).into_iter().flatten()
}

fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        value
            .as_f64()
            .filter(|f| f.fract() == 0.0 && (0.0..1e15).contains(f))
            .map(|f| f as u64)
    })
}

fn money(value: &Value) -> Option<i64> {
    Nanos::parse_budget(value).ok().map(|Nanos(n)| n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn litellms_fields_are_understood() {
        let Value::Object(fields) = json!({
            "max_budget": 12.5, "budget_duration": "30d", "rpm_limit": 60, "tpm_limit": null,
            "max_parallel_requests": 3.0,
            "model_max_budget": {"gpt-4": {"budget_limit": "0.5", "time_period": "1d"}, "small": 2},
            "model_rpm_limit": {"gpt-4": 5}
        }) else {
            panic!()
        };
        let limits = Limits::of(&fields);
        assert_eq!(limits.budget.nanos, Some(12_500_000_000));
        assert_eq!(limits.budget.period.as_deref(), Some("30d"));
        assert_eq!(
            (limits.rpm, limits.tpm, limits.parallel),
            (Some(60), None, Some(3))
        );
        let gpt = &limits.models["gpt-4"];
        assert_eq!((gpt.budget.nanos, gpt.rpm), (Some(500_000_000), Some(5)));
        assert_eq!(gpt.budget.period.as_deref(), Some("1d"));
        assert_eq!(limits.models["small"].budget.nanos, Some(2_000_000_000));
        assert!(limits.bind() && !Limits::default().bind());
    }
}
