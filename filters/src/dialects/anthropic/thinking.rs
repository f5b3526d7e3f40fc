//! Thinking budgets, and what Anthropic does not allow beside thinking.

use serde_json::{Value, json};

use crate::dialects::DialectError;

/// Output tokens when nobody set a limit: Anthropic insists on one.
const DEFAULT_MAX_TOKENS: u64 = 4096;

/// Anthropic refuses a smaller budget.
const LEAST_BUDGET: u64 = 1024;

/// Efforts and their budgets in tokens. LiteLLM's 128 for `minimal` is below what Anthropic takes.
const BUDGETS: &[(&str, u64)] = &[
    ("minimal", LEAST_BUDGET),
    ("low", 1024),
    ("medium", 2048),
    ("high", 4096),
    ("xhigh", 8192),
    ("max", 16384),
];

/// The `thinking` field and the `max_tokens` that goes with it.
pub(super) struct Plan {
    pub thinking: Option<Value>,
    pub max_tokens: u64,
}

impl Plan {
    /// Whether the model will think: then some other wishes cannot be met.
    pub fn thinks(&self) -> bool {
        let kind = self
            .thinking
            .as_ref()
            .and_then(|thinking| thinking.get("type")?.as_str());
        matches!(kind, Some("enabled" | "adaptive"))
    }
}

/// What the request says that thinking depends on.
pub(super) struct Wishes {
    /// `max_tokens` of the request, in tokens.
    pub limit: Option<u64>,
    /// The deployment's default for it, in tokens.
    pub default_limit: Option<u64>,
    /// Something else in the request rules thinking out.
    pub hindered: bool,
}

/// `thinking` is Anthropic's own field and passes as it is. `reasoning_effort` is a hint: where it
/// cannot be followed, the model answers without thinking rather than not at all.
pub(super) fn plan(
    thinking: Option<Value>,
    effort: Option<Value>,
    wishes: Wishes,
) -> Result<Plan, DialectError> {
    if let Some(thinking) = thinking {
        if !thinking.is_object() {
            return Err(DialectError::invalid("thinking", "thinking must be an object"));
        }
        let budget = thinking.get("budget_tokens").and_then(Value::as_u64);
        let max_tokens = wishes
            .limit
            .unwrap_or_else(|| room_for(budget.unwrap_or(0), wishes.default_limit));
        return Ok(Plan {
            thinking: Some(thinking),
            max_tokens,
        });
    }
    let budget = effort
        .map(budget_of)
        .transpose()?
        .flatten()
        .filter(|_| !wishes.hindered);
    let Some(budget) = budget else {
        let max_tokens = wishes
            .limit
            .or(wishes.default_limit)
            .unwrap_or(DEFAULT_MAX_TOKENS);
        return Ok(Plan {
            thinking: None,
            max_tokens,
        });
    };
    // The budget is part of max_tokens and must leave room for an answer.
    let max_tokens = wishes
        .limit
        .unwrap_or_else(|| room_for(budget, wishes.default_limit));
    let budget = budget.min(max_tokens.saturating_sub(1));
    let thinking = (budget >= LEAST_BUDGET).then(|| json!({"type": "enabled", "budget_tokens": budget}));
    Ok(Plan { thinking, max_tokens })
}

/// A limit that a budget of thoughts fits into; what the model is known to allow is never exceeded.
fn room_for(budget: u64, default_limit: Option<u64>) -> u64 {
    default_limit.unwrap_or_else(|| budget.saturating_add(DEFAULT_MAX_TOKENS))
}

fn budget_of(effort: Value) -> Result<Option<u64>, DialectError> {
    if effort == "none" {
        return Ok(None);
    }
    let budget = BUDGETS
        .iter()
        .find(|(name, _)| effort == *name)
        .map(|(_, budget)| *budget);
    budget.map(Some).ok_or_else(|| {
        let reason = "reasoning_effort must be one of none, minimal, low, medium, high, xhigh, max";
        DialectError::invalid("reasoning_effort", reason)
    })
}
