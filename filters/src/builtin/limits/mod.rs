//! Before the call: asks everybody whose limits it must keep, sets aside what it may cost and use, and
//! tells the caller how the limits stand. Who counts, and how, is the [`Limiter`]'s.

pub mod headers;

use crate::contract::ports::{Admitted, Asked, Catalog, Estimate, Limiter, Ports, Refused, Why};
use crate::contract::{Call, Cx, Fault, Filter, Needs, Outcome, Refusal, Result, Verdict};
use crate::model::account::Kind;
use crate::model::call::Endpoint;
use crate::model::key::Caller;
use crate::model::money::Nanos;
use crate::model::price::ServiceTier;
use crate::model::usage::{self, Usage};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, request, response};
use serde::Deserialize;
use std::sync::Arc;

/// Answer tokens assumed when neither the client nor the model sets a limit.
const ASSUMED_ANSWER_TOKENS: u64 = 1024;
/// The most assumed of a model whose limit is known: answers seldom come near it, and a budget should not
/// be held for what seldom happens.
const MOST_ASSUMED_TOKENS: u64 = 4096;

/// What stands below the filter's name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Status of a refusal for a used-up budget (LiteLLM's `budget_exceeded_status_code`). Default: 429.
    pub budget_status: Option<u16>,
    /// Ask with the head alone, on lanes whose bodies nobody reads: which model is meant and what it costs is not
    /// known there, so requests and calls in flight are counted, and a budget that is used up refuses. The host
    /// sets it.
    pub without_body: bool,
}

pub struct Limits {
    limiter: Arc<dyn Limiter>,
    budget_status: u16,
    without_body: bool,
}

impl Limits {
    /// `Err` when the configured status is none that a refusal can have.
    pub fn new(settings: Settings, ports: &Ports) -> Result<Self, String> {
        let budget_status = settings.budget_status.unwrap_or(429);
        if !(400..500).contains(&budget_status) {
            return Err(format!("budget_status: {budget_status} is not from 400 to 499"));
        }
        Ok(Self {
            limiter: Arc::clone(&ports.limiter),
            budget_status,
            without_body: settings.without_body,
        })
    }

    async fn ask(&self, cx: &Cx, counted: bool) -> Result<Box<dyn Admitted>> {
        let call = cx
            .call
            .as_ref()
            .ok_or_else(|| Fault::internal("limits ran before the call was parsed"))?;
        let catalog = &*cx.catalog;
        let estimate = || estimate(call, catalog);
        let asked = Asked {
            caller: &cx.caller,
            end_user: call.user.as_deref().filter(|u| !u.is_empty()),
            tags: &call.tags,
            // What the caller called it was the first model's name.
            requested: if counted {
                &call.model
            } else {
                &call.requested_model
            },
            model: &call.model,
            group: catalog.group_of(&call.model).unwrap_or_default(),
            counted,
            estimate: &estimate,
        };
        self.decide(&asked).await
    }

    async fn decide(&self, asked: &Asked<'_>) -> Result<Box<dyn Admitted>> {
        let decided = match self.limiter.try_admit(asked) {
            Some(decided) => decided,
            None => self.limiter.admit(asked).await,
        };
        decided.map_err(|refused| self.refusal(asked.caller, &refused).into())
    }

    fn refusal(&self, caller: &Caller, refused: &Refused) -> Refusal {
        let mut refusal = match &refused.why {
            Why::Budget { spent, budget, anew } => Refusal::new(
                self.budget_status,
                "budget_exceeded",
                format!(
                    "{}. {}",
                    overspent(caller, refused, Nanos(*spent), Nanos(*budget)),
                    match anew {
                        Some(at) => format!("It starts anew at {at}; an admin can raise it before."),
                        None => "Ask an admin to raise it.".to_string(),
                    }
                ),
            )
            .header("x-should-retry", "false"),
            Why::Rate {
                measure,
                limit,
                remaining,
                retry_millis,
                at,
            } => {
                let of = headers::descriptor(refused.kind, refused.model.is_some());
                let value = match &refused.model {
                    Some(model) if refused.kind == Kind::Gateway => shown(model),
                    Some(model) => format!("{}:{}", whose(refused), shown(model)),
                    None => whose(refused),
                };
                later(
                    Refusal::new(
                        429,
                        "throttling_error",
                        format!(
                            "Rate limit exceeded for {of}: {value}. Limit type: {}. Current limit: {limit}, \
                             Remaining: {remaining}. Limit resets at: {at}",
                            measure.as_str()
                        ),
                    )
                    .header("rate_limit_type", measure.as_str())
                    .header("reset_at", at.clone()),
                    *retry_millis,
                )
            }
            Why::Blocked => {
                let (who, route) = match refused.kind {
                    Kind::Tag => ("Tag", "/tag/update"),
                    _ => ("End User", "/customer/unblock"),
                };
                Refusal::unauthorized(format!(
                    "Authentication Error, {who}={} is blocked. Unblock it via `{route}` if you are an admin.",
                    whose(refused)
                ))
            }
            Why::Queue {
                waiting,
                retry_millis,
            } => later(
                Refusal::new(
                    429,
                    "throttling_error",
                    format!("The limits leave no room yet, and {waiting} calls wait before this one."),
                ),
                *retry_millis,
            ),
        };
        for (name, value) in headers::told(&refused.standings).iter() {
            let value = String::from_utf8_lossy(value).into_owned();
            refusal.headers.push((name.as_str(), value));
        }
        refusal
    }
}

/// When to come back: in whole seconds, and in milliseconds for clients that know of them.
fn later(refusal: Refusal, millis: u64) -> Refusal {
    refusal
        .header("retry-after", millis.div_ceil(1000).max(1).to_string())
        .header("retry-after-ms", millis.max(1).to_string())
}

/// LiteLLM's sentence for each subject.
fn overspent(caller: &Caller, refused: &Refused, spent: Nanos, budget: Nanos) -> String {
    let id = whose(refused);
    let key_name = caller.key().map(|k| k.key_name.as_str()).unwrap_or_default();
    let both = format!("Current cost: {spent}, Max budget: {budget}");
    match (refused.kind, &refused.model) {
        (Kind::Key, Some(model)) => {
            let alias = refused.alias.as_deref().unwrap_or_default();
            format!(
                "LiteLLM Virtual Key: {id}, key_alias: {}, exceeded budget for model={}. {both}",
                shown(alias),
                shown(model)
            )
        }
        (kind, Some(model)) => format!(
            "Budget has been exceeded! {}={id} for model={} {both}",
            headers::descriptor(kind, false),
            shown(model)
        ),
        (Kind::Key, None) => format!("Budget has been exceeded! Key={key_name} {both}"),
        (Kind::Team, None) => format!("Budget has been exceeded! Team={id} {both}"),
        (Kind::Organization, None) => format!("Budget has been exceeded! Organization={id} {both}"),
        (Kind::Tag, None) => format!("Budget has been exceeded! Tag={id} {both}"),
        (Kind::Member, None) => format!("Budget has been exceeded! Team member={id} {both}"),
        (Kind::OrganizationMember, None) => {
            format!("Budget has been exceeded! Organization member={id} {both}")
        }
        (Kind::User, None) => {
            format!("ExceededBudget: User={id} over budget. Spend={spent}, Budget={budget}")
        }
        (Kind::EndUser, None) => {
            format!("ExceededBudget: End User={id} over budget. Spend={spent}, Budget={budget}")
        }
        (Kind::Gateway, None) => format!("Budget has been exceeded! {both}"),
    }
}

/// The subject's id for people: a member's two ids with a mark between them.
fn whose(refused: &Refused) -> String {
    match refused.kind {
        Kind::Gateway => "all".into(),
        _ => shown(&refused.id.replace('\t', ":")),
    }
}

/// Somebody's text in our sentence: short, and without control characters.
fn shown(text: &str) -> String {
    text.chars()
        .take(96)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[async_trait]
impl Filter for Limits {
    fn needs(&self) -> Needs {
        Needs {
            request: self.without_body,
            call: !self.without_body,
            fallback: !self.without_body,
            response: true,
            response_chunks: !self.without_body,
            logging: true,
            ..Needs::NONE
        }
    }

    /// On lanes without bodies. Who needed no key has no limits of its own.
    async fn request_filter(&self, cx: &mut Cx, _head: &request::Parts) -> Result<Verdict> {
        if !self.without_body || matches!(cx.caller, Caller::Anonymous) {
            return Ok(Verdict::Continue);
        }
        let asked = Asked {
            caller: &cx.caller,
            end_user: None,
            tags: &[],
            requested: "",
            model: "",
            group: "",
            counted: false,
            estimate: &Estimate::default,
        };
        let admitted = self.decide(&asked).await?;
        cx.admitted = Some(admitted);
        Ok(Verdict::Continue)
    }

    async fn call_filter(&self, cx: &mut Cx, _head: &request::Parts) -> Result<Verdict> {
        let admitted = self.ask(cx, false).await?;
        cx.admitted = Some(admitted);
        Ok(Verdict::Continue)
    }

    /// The other model has its own price and may have limits of its own: what was set aside for the first is given back,
    /// and asked for anew.
    async fn fallback_filter(&self, cx: &mut Cx) -> Result<()> {
        if let Some(mut admitted) = cx.admitted.take() {
            // Should the other not be let in, the answer still tells how the limits stood.
            cx.standings = headers::told(admitted.standings());
            admitted.go_on();
            cx.place.get_or_insert(admitted);
        }
        let admitted = self.ask(cx, true).await?;
        cx.admitted = Some(admitted);
        Ok(())
    }

    fn response_filter(&self, cx: &mut Cx, head: &mut response::Parts) -> Result<()> {
        let Some(admitted) = &cx.admitted else {
            return Ok(());
        };
        cx.standings = headers::told(admitted.standings());
        if let Some(place) = admitted.queued() {
            let name = HeaderName::from_static("x-tollkeeper-queue-position");
            head.headers.insert(name, HeaderValue::from(place));
        }
        Ok(())
    }

    /// With the row that `spend` has written, the call's true cost counts as spent. What was set aside for
    /// it must not count any longer when its caller, who may have read the end by then, calls again.
    fn response_body_filter(&self, cx: &mut Cx, _chunk: &mut Bytes, _end: bool) -> Result<()> {
        if cx.recorded {
            let_go(cx);
        }
        Ok(())
    }

    /// Calls that ended before their last byte. By now `spend` has written those down as well.
    fn logging(&self, cx: &mut Cx, _outcome: &Outcome) {
        let_go(cx);
    }
}

fn let_go(cx: &mut Cx) {
    if let Some(mut admitted) = cx.admitted.take() {
        let used = cx.metered.used.unwrap_or_default();
        admitted.settle(used.prompt_tokens.saturating_add(used.completion_tokens));
    }
    cx.place = None;
}

/// What the call may cost and how many tokens it may use.
pub fn estimate(call: &Call, catalog: &dyn Catalog) -> Estimate {
    let expected = expected(call, catalog);
    let tier = call
        .service_tier
        .as_deref()
        .map_or(ServiceTier::Standard, ServiceTier::parse);
    // What has no price costs nothing, and a budget cannot hold it.
    let nanos = catalog
        .worst_cost(&call.model, call.endpoint, &expected, tier)
        .unwrap_or(0);
    let answers = matches!(
        call.endpoint,
        Endpoint::Chat | Endpoint::Completions | Endpoint::Responses
    );
    let answer = if answers { expected.completion_tokens } else { 0 };
    Estimate {
        tokens: expected.prompt_tokens.saturating_add(answer),
        nanos: nanos.max(0),
    }
}

/// What a call may use, so far as its body tells.
fn expected(call: &Call, catalog: &dyn Catalog) -> Usage {
    let answer = call.max_tokens.unwrap_or_else(|| {
        catalog
            .max_output_tokens(&call.model)
            .map_or(ASSUMED_ANSWER_TOKENS, |most| most.min(MOST_ASSUMED_TOKENS))
            .saturating_mul(call.choices)
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

    fn estimated(endpoint: Endpoint, body: &str, most: Option<u64>) -> (Usage, ServiceTier, Estimate) {
        let shop = Shop(most, Mutex::default());
        let estimate = estimate(&testkit::call(endpoint, body), &shop);
        let (used, tier) = shop.1.lock().unwrap()[0];
        (used, tier, estimate)
    }

    #[test]
    fn what_is_set_aside_follows_the_call() {
        let plain = r#"{"model":"m","messages":[]}"#;
        for (most, tokens) in [(None, 1024), (Some(300), 300), (Some(128_000), 4096)] {
            let (used, tier, estimate) = estimated(Endpoint::Chat, plain, most);
            assert_eq!(used.completion_tokens, tokens);
            assert_eq!(tier, ServiceTier::Standard);
            assert_eq!(estimate.tokens, used.prompt_tokens + tokens);
        }
        // Each answer that is asked for is an answer.
        for (endpoint, body, answers) in [
            (Endpoint::Chat, r#"{"model":"m","messages":[],"n":5}"#, 5),
            (
                Endpoint::Completions,
                r#"{"model":"m","prompt":"a","n":2,"best_of":7}"#,
                7,
            ),
            (
                Endpoint::Completions,
                r#"{"model":"m","prompt":["a","b","c"],"n":2}"#,
                6,
            ),
            (Endpoint::Completions, r#"{"model":"m","prompt":[[1,2],[3]]}"#, 2),
            (Endpoint::Completions, r#"{"model":"m","prompt":[1,2,3]}"#, 1),
        ] {
            let (used, ..) = estimated(endpoint, body, Some(300));
            assert_eq!(used.completion_tokens, 300 * answers, "{body}");
            let told = body.replace(r#"{"model""#, r#"{"max_tokens":10,"model""#);
            let (used, ..) = estimated(endpoint, &told, Some(300));
            assert_eq!(used.completion_tokens, 10 * answers, "{told}");
        }
        let dear = r#"{"model":"m","messages":[],"service_tier":"priority","max_tokens":9000}"#;
        let (used, tier, _) = estimated(Endpoint::Chat, dear, Some(300));
        assert_eq!((used.completion_tokens, tier), (9000, ServiceTier::Priority));
        let rerank = r#"{"model":"m","query":"q","documents":[]}"#;
        let (used, _, estimate) = estimated(Endpoint::Rerank, rerank, None);
        assert_eq!(used.queries, 1);
        assert_eq!(estimate.tokens, used.prompt_tokens, "there is no answer to count");
    }

    async fn refused(kit: &testkit::Kit, settings: Settings) -> Refusal {
        let mut cx = kit.cx();
        cx.caller = Caller::Key(Arc::new(testkit::key("sk-abcdef").into()));
        cx.call = Some(testkit::call(
            Endpoint::Chat,
            r#"{"model":"gpt-4","messages":[]}"#,
        ));
        let head = http::Request::new(()).into_parts().0;
        let limits = Limits::new(settings, &kit.ports()).unwrap();
        match limits.call_filter(&mut cx, &head).await {
            Err(crate::contract::Stop::Refusal(r)) => r,
            _ => panic!("it is refused"),
        }
    }

    #[tokio::test]
    async fn refusals_read_as_litellms() {
        let kit = testkit::Kit::default();
        let budget = Why::Budget {
            spent: 2_500_000_000,
            budget: 2_000_000_000,
            anew: Some("2026-12-01 00:00:00 UTC".into()),
        };
        let hash = crate::model::key::KeyHash::of("sk-abcdef").hex();
        for (kind, id, model, start) in [
            (
                Kind::Key,
                hash.as_str(),
                None,
                "Budget has been exceeded! Key=sk-...cdef Current cost: 2.5, Max budget: 2",
            ),
            (
                Kind::Team,
                "t1",
                None,
                "Budget has been exceeded! Team=t1 Current cost: 2.5, Max budget: 2",
            ),
            (
                Kind::User,
                "u",
                None,
                "ExceededBudget: User=u over budget. Spend=2.5, Budget=2",
            ),
            (
                Kind::EndUser,
                "e\nvil",
                None,
                "ExceededBudget: End User=e\u{fffd}vil over budget. Spend=2.5, Budget=2",
            ),
            (
                Kind::Gateway,
                "",
                None,
                "Budget has been exceeded! Current cost: 2.5",
            ),
        ] {
            kit.limits.refuse(kind, id, model, budget.clone());
            let refusal = refused(&kit, Settings::default()).await;
            assert!(refusal.message.starts_with(start), "{}", refusal.message);
            assert_eq!((refusal.status, refusal.kind), (429, "budget_exceeded"));
            let end = "It starts anew at 2026-12-01 00:00:00 UTC; an admin can raise it before.";
            assert!(refusal.message.ends_with(end), "{}", refusal.message);
            assert!(refusal.headers.contains(&("x-should-retry", "false".to_string())));
        }
        let told = refused(
            &kit,
            Settings {
                budget_status: Some(422),
                ..Settings::default()
            },
        );
        assert_eq!(told.await.status, 422);
        kit.limits.refuse(
            Kind::Key,
            &hash,
            None,
            Why::Rate {
                measure: crate::model::limits::Measure::Requests,
                limit: 3,
                remaining: 0,
                retry_millis: 1500,
                at: "2026-11-20 12:00:00 UTC".into(),
            },
        );
        let refusal = refused(&kit, Settings::default()).await;
        assert_eq!(
            refusal.message,
            format!(
                "Rate limit exceeded for api_key: {hash}. Limit type: requests. Current limit: 3, Remaining: 0. \
                 Limit resets at: 2026-11-20 12:00:00 UTC"
            )
        );
        for (name, value) in [
            ("retry-after", "2"),
            ("retry-after-ms", "1500"),
            ("rate_limit_type", "requests"),
        ] {
            assert!(refusal.headers.contains(&(name, value.to_string())), "{name}");
        }
    }

    #[tokio::test]
    async fn without_a_body_the_head_is_asked_about() {
        let kit = testkit::Kit::default();
        let settings = Settings {
            without_body: true,
            ..Settings::default()
        };
        let limits = Limits::new(settings, &kit.ports()).unwrap();
        assert!(limits.needs().request && !limits.needs().call);
        let head = http::Request::new(()).into_parts().0;
        let mut cx = kit.cx();
        assert!(limits.request_filter(&mut cx, &head).await.is_ok());
        assert_eq!(kit.limits.held(), 0, "who needs no key has no limits");
        cx.caller = Caller::Key(Arc::new(testkit::key("sk-abcdef").into()));
        assert!(limits.request_filter(&mut cx, &head).await.is_ok());
        assert_eq!(kit.limits.held(), 1);
        let_go(&mut cx);
        assert_eq!(kit.limits.held(), 0);
        let spent = Why::Budget {
            spent: 2,
            budget: 1,
            anew: None,
        };
        kit.limits.refuse(Kind::Team, "red", None, spent);
        let stop = limits.request_filter(&mut cx, &head).await.unwrap_err();
        assert_eq!((stop.status(), stop.kind()), (429, "budget_exceeded"));
    }

    #[tokio::test]
    async fn what_is_held_is_let_go_of_with_the_row() {
        let kit = testkit::Kit::default();
        let mut cx = kit.cx();
        cx.call = Some(testkit::call(
            Endpoint::Chat,
            r#"{"model":"gpt-4","messages":[]}"#,
        ));
        let head = http::Request::new(()).into_parts().0;
        let limits = Limits::new(Settings::default(), &kit.ports()).unwrap();
        assert!(limits.call_filter(&mut cx, &head).await.is_ok());
        let mut chunk = Bytes::new();
        limits.response_body_filter(&mut cx, &mut chunk, false).unwrap();
        assert_eq!(kit.limits.held(), 1);
        cx.metered.used = Some(Usage {
            prompt_tokens: 7,
            completion_tokens: 3,
            ..Usage::default()
        });
        cx.recorded = true;
        limits.response_body_filter(&mut cx, &mut chunk, true).unwrap();
        assert_eq!((kit.limits.held(), kit.limits.settled()), (0, vec![10]));
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
