//! What of a call is counted and what it cost, as Langfuse shows it: JSON objects whose parts do not overlap and add
//! up to what the ledger has.

use filters::model::call::Endpoint;
use filters::model::money::Nanos;
use filters::model::price::ServiceTier;
use filters::model::trace::Trace;
use filters::model::usage::Usage;
use std::fmt::Write;

/// Usage in buckets that do not overlap, as one JSON object. None = nothing was counted.
pub fn usage(trace: &Trace, out: &mut String) -> bool {
    let Some(u) = trace.usage.filter(|u| !u.is_empty()) else {
        return false;
    };
    out.clear();
    let mut put = |name: &str, n: u64, always: bool| {
        if n > 0 || always {
            out.push_str(if out.is_empty() { "{\"" } else { ",\"" });
            out.push_str(name);
            let _ = write!(out, "\":{n}");
        }
    };
    let cached = u.cached_tokens.saturating_add(u.cache_creation_tokens);
    let tokens = u.total_tokens() > 0;
    put("input", u.prompt_tokens.saturating_sub(cached), tokens);
    put("input_cached_tokens", u.cached_tokens, false);
    put("input_cache_creation_tokens", u.cache_creation_tokens, false);
    put(
        "output",
        u.completion_tokens.saturating_sub(u.reasoning_tokens),
        tokens,
    );
    put("output_reasoning_tokens", u.reasoning_tokens, false);
    put("total", u.total_tokens(), tokens);
    put("input_characters", u.characters, false);
    put("output_images", u.images, false);
    put("queries", u.queries, false);
    if u.seconds_milli > 0 {
        out.push(if out.is_empty() { '{' } else { ',' });
        let _ = write!(
            out,
            "\"input_seconds\":{}.{:03}",
            u.seconds_milli / 1000,
            u.seconds_milli % 1000
        );
    }
    if out.is_empty() {
        return false;
    }
    out.push('}');
    true
}

/// What the call cost, dollars, as one JSON object: what the ledger has, and where the price parts them what of it
/// the question and the answer cost.
pub fn cost(trace: &Trace, out: &mut String) -> bool {
    let total = match trace.cost_nanos {
        Some(nanos) => nanos,
        // Langfuse would guess a price by the model's name. Nobody is owed for a server of one's own.
        None if trace.tries.last().is_some_and(|t| t.deployment.is_internal()) => 0,
        None => return false,
    };
    out.clear();
    let _ = match question_cost(trace, total) {
        Some(input) => write!(
            out,
            "{{\"input\":{},\"output\":{},\"total\":{}}}",
            Nanos(input),
            Nanos(total - input),
            Nanos(total)
        ),
        None => write!(out, "{{\"total\":{}}}", Nanos(total)),
    };
    true
}

/// What of `total` the question cost. None where that cannot be told.
fn question_cost(trace: &Trace, total: i64) -> Option<i64> {
    use Endpoint::{Chat, Completions, Embeddings, Responses};
    let usage = trace.usage.filter(|u| u.prompt_tokens > 0)?;
    let price = trace.tries.last()?.deployment.price.as_ref()?;
    if total == 0 || !matches!(trace.endpoint, Chat | Completions | Embeddings | Responses) {
        return None;
    }
    let of = |usage: &Usage, tier| price.cost(usage, trace.endpoint.into(), tier).map(|cost| cost.0);
    // The tier that the call was charged at is the one that makes it cost this much.
    let mut tiers = ServiceTier::ALL.into_iter();
    let tier = tiers.find(|tier| of(&usage, *tier) == Some(total))?;
    let question = Usage {
        completion_tokens: 0,
        reasoning_tokens: 0,
        audio_completion_tokens: 0,
        image_tokens: 0,
        ..usage
    };
    of(&question, tier).filter(|nanos| (0..=total).contains(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::sample;
    use filters::model::price::{Meter, Price, Rate};
    use filters::testkit;

    #[test]
    fn usage_does_not_overlap() {
        let mut trace = sample::trace();
        let mut out = String::new();
        assert!(usage(&trace, &mut out));
        assert_eq!(
            out,
            r#"{"input":6,"input_cached_tokens":4,"output":3,"output_reasoning_tokens":2,"total":15}"#
        );
        assert!(cost(&trace, &mut out));
        assert_eq!(out, r#"{"total":0.00051}"#);
        trace.usage = None;
        assert!(!usage(&trace, &mut out));
    }

    #[test]
    fn what_a_call_cost_adds_up_to_what_the_ledger_has() {
        let mut trace = sample::trace();
        let mut out = String::new();
        let mut told = |trace: &Trace| cost(trace, &mut out).then(|| out.clone());
        let mut priced = |rates: &[(Meter, ServiceTier, &str)], cost: Option<i64>| {
            let mut deployment = testkit::deployment("openai");
            deployment.price = Some(Price::new(rates.iter().map(|(meter, tier, price)| Rate {
                meter: *meter,
                above: 0,
                tier: *tier,
                price: price.parse().unwrap(),
            })));
            trace.tries[1].deployment = deployment.into();
            trace.cost_nanos = cost;
            told(&trace).unwrap_or_default()
        };
        // 6 tokens, 4 from a cache; 5 said.
        let rates = [
            (Meter::Input, ServiceTier::Standard, "0.00001"),
            (Meter::CacheRead, ServiceTier::Standard, "0.000001"),
            (Meter::Output, ServiceTier::Standard, "0.00003"),
        ];
        let split = r#"{"input":0.000064,"output":0.00015,"total":0.000214}"#;
        assert_eq!(priced(&rates, Some(214_000)), split);
        let dear = [
            rates[0],
            rates[1],
            rates[2],
            (Meter::Output, ServiceTier::Priority, "0.00006"),
        ];
        let split = r#"{"input":0.000064,"output":0.0003,"total":0.000364}"#;
        assert_eq!(
            priced(&dear, Some(364_000)),
            split,
            "at the tier it was charged at"
        );
        assert_eq!(
            priced(&rates, Some(7)),
            r#"{"total":0.000000007}"#,
            "another price"
        );
        assert_eq!(priced(&rates, None), r#"{"total":0}"#, "a server of one's own");
        let mut elsewhere = testkit::deployment("openai");
        elsewhere.model_info.insert("internal".into(), false.into());
        trace.tries[1].deployment = elsewhere.into();
        trace.cost_nanos = None;
        assert!(!cost(&trace, &mut String::new()));
    }
}
