//! Money before the call: sets aside what it may cost, so that calls that run side by side cannot
//! pass a budget together.

use crate::contract::ports::{Budgets, Ports};
use crate::contract::{Cx, Fault, Filter, Needs, Outcome, Refusal, Result, Verdict};
use crate::model::money::Nanos;
use crate::model::usage;
use async_trait::async_trait;
use http::request;
use std::sync::Arc;

/// Answer tokens assumed when the client set no limit.
const ASSUMED_ANSWER_TOKENS: u64 = 1024;

pub struct Budget {
    budgets: Arc<dyn Budgets>,
}

impl Budget {
    pub fn new(ports: &Ports) -> Self {
        Self {
            budgets: Arc::clone(&ports.budgets),
        }
    }
}

#[async_trait]
impl Filter for Budget {
    fn needs(&self) -> Needs {
        Needs {
            call: true,
            logging: true,
            ..Needs::NONE
        }
    }

    async fn call_filter(&self, cx: &mut Cx, _head: &request::Parts) -> Result<Verdict> {
        let Some(key) = cx.caller.key().filter(|k| k.max_budget_nanos.is_some()) else {
            return Ok(Verdict::Continue);
        };
        let call = cx
            .call
            .as_ref()
            .ok_or_else(|| Fault::internal("budget ran before the call was parsed"))?;
        let expected = usage::Usage {
            prompt_tokens: usage::estimate_prompt(call.body.len()),
            completion_tokens: call.max_tokens.unwrap_or(ASSUMED_ANSWER_TOKENS),
            characters: call.characters,
            images: call.images,
            ..usage::Usage::default()
        };
        // What has no price costs nothing, and a budget cannot hold it.
        let worst = cx
            .catalog
            .worst_cost(&call.model, call.endpoint, &expected)
            .unwrap_or(0);
        match self.budgets.reserve(key, worst) {
            Ok(reservation) => {
                cx.reservation = Some(reservation);
                Ok(Verdict::Continue)
            }
            Err(e) => Err(Refusal::new(
                429,
                "budget_exceeded",
                format!(
                    "Budget has been exceeded! Key={} Current cost: {}, Max budget: {}. \
                     Ask an admin to raise it.",
                    key.key_name,
                    Nanos(e.spent_nanos),
                    Nanos(e.budget_nanos)
                ),
            )
            .header("x-should-retry", "false")
            .into()),
        }
    }

    fn logging(&self, cx: &mut Cx, _outcome: &Outcome) {
        // By now `spend` has written the true cost down, which counts as spent from that moment.
        cx.reservation = None;
    }
}
