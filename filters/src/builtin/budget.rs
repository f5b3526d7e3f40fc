//! Money before the call: sets aside what it may cost, so that calls that run side by side cannot
//! pass a budget together.

use crate::contract::ports::{Budgets, Catalog, Ports};
use crate::contract::{Call, Cx, Fault, Filter, Needs, Outcome, Refusal, Result, Verdict};
use crate::model::call::Endpoint;
use crate::model::money::Nanos;
use crate::model::price::ServiceTier;
use crate::model::usage::{self, Usage};
use async_trait::async_trait;
use http::request;
use std::sync::Arc;

/// Answer tokens assumed when neither the client nor the model sets a limit.
const ASSUMED_ANSWER_TOKENS: u64 = 1024;
/// The most assumed of a model whose limit is known: answers seldom come near it, and a budget should not
/// be held for what seldom happens.
const MOST_ASSUMED_TOKENS: u64 = 4096;

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
        let budgeted = cx.caller.key().and_then(|k| Some((k, k.max_budget_nanos?)));
        let Some((key, budget)) = budgeted else {
            return Ok(Verdict::Continue);
        };
        let call = cx
            .call
            .as_ref()
            .ok_or_else(|| Fault::internal("budget ran before the call was parsed"))?;
        let expected = expected(call, &*cx.catalog);
        let tier = call
            .service_tier
            .as_deref()
            .map_or(ServiceTier::Standard, ServiceTier::parse);
        // What has no price costs nothing, and a budget cannot hold it.
        let worst = cx
            .catalog
            .worst_cost(&call.model, call.endpoint, &expected, tier)
            .unwrap_or(0)
            // More than all of it need not be set aside, and sums of such amounts cannot wrap.
            .clamp(0, budget.max(0));
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

/// What a call may use, so far as its body tells.
fn expected(call: &Call, catalog: &dyn Catalog) -> Usage {
    let answer = call.max_tokens.unwrap_or_else(|| {
        catalog
            .max_output_tokens(&call.model)
            .map_or(ASSUMED_ANSWER_TOKENS, |most| most.min(MOST_ASSUMED_TOKENS))
    });
    Usage {
        prompt_tokens: call.estimated_prompt(),
        completion_tokens: answer.min(usage::MOST),
        characters: call.characters,
        images: call.images,
        seconds_milli: call.audio_millis,
        queries: u64::from(call.endpoint == Endpoint::Rerank),
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::ports::{Exceeded, Reservation};
    use crate::model::key::{Caller, Key};
    use crate::testkit;
    use std::sync::Mutex;

    struct Shop(Option<u64>, Mutex<Vec<(Usage, ServiceTier)>>);

    impl Catalog for Shop {
        fn group_of(&self, _model: &str) -> Option<&str> {
            None
        }
        fn names(&self) -> &[String] {
            &[]
        }
        fn in_access_group(&self, _model: &str, _group: &str) -> bool {
            false
        }
        fn worst_cost(&self, _: &str, _: Endpoint, usage: &Usage, tier: ServiceTier) -> Option<i64> {
            self.1.lock().unwrap().push((*usage, tier));
            Some(i64::MAX)
        }
        fn max_output_tokens(&self, _model: &str) -> Option<u64> {
            self.0
        }
    }

    #[derive(Default)]
    struct Purse(Mutex<Vec<i64>>);

    impl Budgets for Purse {
        fn reserve(&self, _key: &Key, nanos: i64) -> Result<Reservation, Exceeded> {
            self.0.lock().unwrap().push(nanos);
            Ok(Reservation::new(|| {}))
        }
    }

    /// What is looked up and set aside for a call of a key with a budget of 5 nano-dollars.
    async fn reserved(endpoint: Endpoint, body: &str, most: Option<u64>) -> (Usage, ServiceTier, i64) {
        let (shop, purse) = (Arc::new(Shop(most, Mutex::default())), Arc::new(Purse::default()));
        let mut cx = testkit::Kit::default().cx();
        let mut key = testkit::key("sk-1");
        key.max_budget_nanos = Some(5);
        cx.caller = Caller::Key(Arc::new(key.into()));
        cx.catalog = shop.clone();
        cx.call = Some(testkit::call(endpoint, body));
        let head = http::Request::new(()).into_parts().0;
        let budget = Budget {
            budgets: purse.clone(),
        };
        assert!(budget.call_filter(&mut cx, &head).await.is_ok());
        let (used, tier) = shop.1.lock().unwrap()[0];
        (used, tier, purse.0.lock().unwrap()[0])
    }

    #[tokio::test]
    async fn what_is_set_aside_follows_the_call() {
        let plain = r#"{"model":"m","messages":[]}"#;
        for (most, tokens) in [(None, 1024), (Some(300), 300), (Some(128_000), 4096)] {
            let (used, tier, nanos) = reserved(Endpoint::Chat, plain, most).await;
            assert_eq!(used.completion_tokens, tokens);
            assert_eq!(tier, ServiceTier::Standard);
            assert_eq!(nanos, 5, "never more than the budget");
        }
        let dear = r#"{"model":"m","messages":[],"service_tier":"priority","max_tokens":9000}"#;
        let (used, tier, _) = reserved(Endpoint::Chat, dear, Some(300)).await;
        assert_eq!((used.completion_tokens, tier), (9000, ServiceTier::Priority));
        let rerank = r#"{"model":"m","query":"q","documents":[]}"#;
        assert_eq!(reserved(Endpoint::Rerank, rerank, None).await.0.queries, 1);
    }

    #[test]
    fn audio_is_set_aside_by_its_length() {
        let form = format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\n\r\n{}\r\n\
             --b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b--\r\n",
            "x".repeat(32_000)
        );
        let call = Call::parse(
            Endpoint::Transcriptions,
            form.into(),
            "multipart/form-data; boundary=b".into(),
            None,
            None,
        )
        .unwrap();
        let used = expected(&call, &Shop(None, Mutex::default()));
        assert_eq!((used.seconds_milli, used.prompt_tokens), (2000, 20));
    }
}
