//! The process' Prometheus metrics: what is counted as it happens, and who is asked at each scrape.
//!
//! `catalog` lists every metric; `calls`, `deployments` and `litellm` count; `page` writes the text. What other
//! parts of the process have to show, they bring themselves as a [`Source`].

pub mod calls;
pub mod catalog;
pub mod count;
pub mod deployments;
pub mod litellm;
pub mod page;
pub mod process;

use calls::Calls;
use catalog as c;
use count::Counter;
use deployments::Deployments;
use filters::contract::ports::{Metrics, Observation, Why};
use filters::model::account::Kind;
use litellm::LiteLlm;
use page::Page;
pub use page::Source;
use parking_lot::RwLock;
use process::Process;
use std::sync::Arc;

/// What a limit limits, as a label. The last one is for what is not known here.
const LIMITS: [&str; 6] = [
    "budget",
    "requests",
    "tokens",
    "max_parallel_requests",
    "blocked",
    "queue",
];

/// The process' metrics. Label values come from the config, the store or from fixed lists, so their number is
/// bounded whatever callers send.
#[derive(Default)]
pub struct Telemetry {
    calls: Calls,
    pub deployments: Deployments,
    litellm: LiteLlm,
    soft_crossed: [Counter; Kind::ALL.len()],
    limit_refused: [[Counter; LIMITS.len()]; Kind::ALL.len()],
    /// New ones, and those from the pool.
    upstream_connections: [Counter; 2],
    process: Process,
    sources: RwLock<Vec<Box<dyn Source>>>,
    /// Held while a page is made: with many keys it is large.
    turn: tokio::sync::Mutex<()>,
}

impl Telemetry {
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on `source` is asked at each scrape. Its families stand in [`catalog::ALL`].
    pub fn add(&self, source: impl Source + 'static) {
        self.sources.write().push(Box::new(source));
    }

    /// Whether LiteLLM's names are counted.
    pub fn speaks_litellm(&self) -> bool {
        self.litellm.is_used()
    }

    pub fn soft_budget_crossed(&self, kind: Kind) {
        if let Some(counter) = self.soft_crossed.get(kind as usize) {
            counter.add(1);
        }
    }

    pub fn limit_refused(&self, kind: Kind, why: &Why) {
        let limit = match why {
            Why::Budget { .. } => "budget",
            Why::Rate { measure, .. } => measure.as_str(),
            Why::Blocked => "blocked",
            Why::Queue { .. } => "queue",
        };
        let at = LIMITS.iter().position(|l| *l == limit);
        let counters = self.limit_refused.get(kind as usize);
        if let Some(counter) = counters.zip(at).and_then(|(counters, at)| counters.get(at)) {
            counter.add(1);
        }
    }

    /// An attempt at an upstream goes out, on a connection of the pool or a new one.
    pub fn upstream_connection(&self, reused: bool) {
        let [new, pooled] = &self.upstream_connections;
        if reused { pooled } else { new }.add(1);
    }

    /// The text of `/metrics`, made on a thread that may take its time. One at a time.
    pub async fn scrape(self: Arc<Self>) -> String {
        let this = Arc::clone(&self);
        let _turn = self.turn.lock().await;
        let made = tokio::task::spawn_blocking(move || this.render()).await;
        made.unwrap_or_else(|e| {
            log::error!("the metrics cannot be shown: {e}");
            String::new()
        })
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        let mut page = Page::default();
        self.calls.gather(self.litellm.is_used(), &mut page);
        self.litellm.gather(&mut page);
        for (kind, counter) in Kind::ALL.iter().zip(&self.soft_crossed) {
            page.counter(&c::SOFT_CROSSED, &[kind.as_str()], counter);
        }
        for (kind, counters) in Kind::ALL.iter().zip(&self.limit_refused) {
            for (limit, counter) in LIMITS.iter().zip(counters) {
                page.counter(&c::LIMIT_REFUSED, &[kind.as_str(), limit], counter);
            }
        }
        for (kind, counter) in ["new", "reused"].iter().zip(&self.upstream_connections) {
            page.counter(&c::UPSTREAM_CONNECTIONS, &[kind], counter);
        }
        self.process.gather(&mut page);
        for source in self.sources.read().iter() {
            source.gather(&mut page);
        }
        page.finish()
    }
}

impl Metrics for Telemetry {
    fn observe(&self, seen: &Observation<'_>) {
        self.calls.observe(seen);
        for attempt in seen.attempts {
            self.deployments.observe(attempt);
        }
        if seen.litellm_names {
            self.litellm.observe(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use filters::contract::cx::Fallback;
    use filters::model::call::Endpoint;
    use filters::model::key::{Caller, Holder, KeyHash};
    use filters::model::record::Attempt;
    use filters::model::usage::Usage;
    use filters::testkit;
    use std::time::Duration;

    const NOBODY: Caller = Caller::Anonymous;

    fn seen() -> Observation<'static> {
        Observation {
            endpoint: Some(Endpoint::Chat),
            model: Some("m"),
            caller: &NOBODY,
            status: 200,
            error: None,
            took: Duration::from_millis(20),
            first_byte: None,
            first_token: None,
            inter_token: None,
            upstream: None,
            usage: None,
            cost_nanos: None,
            attempts: &[],
            fallbacks: &[],
            deployment: None,
            litellm_names: false,
        }
    }

    fn series(text: &str) -> usize {
        text.lines().filter(|l| !l.starts_with('#')).count()
    }

    #[track_caller]
    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
    }

    #[test]
    fn a_call_that_broke_off_counts_as_spent() {
        let telemetry = Telemetry::new();
        telemetry.observe(&Observation {
            error: Some("upstream_cut"),
            cost_nanos: Some(70),
            ..seen()
        });
        assert_eq!(telemetry.calls.spent("m"), 70);
        has(
            &telemetry.render(),
            "litellm_errors_total{model=\"m\",code=\"upstream_cut\"} 1",
        );
    }

    #[test]
    fn a_call_is_counted_under_all_its_names() {
        let telemetry = Telemetry::new();
        let usage = Usage {
            prompt_tokens: 7,
            completion_tokens: 3,
            cached_tokens: 2,
            ..Usage::default()
        };
        let failed = |id: &str, status| Attempt {
            deployment_id: id.into(),
            status,
            error: Some("x".into()),
            duration_micros: 1_000,
        };
        let answered = Attempt {
            error: None,
            ..failed("b", 200)
        };
        let attempts = [failed("a", 500), failed("b", 0), failed("a", 500), answered];
        telemetry.observe(&Observation {
            upstream: Some(Duration::from_millis(18)),
            usage: Some(&usage),
            cost_nanos: Some(1_500_000_000),
            attempts: &attempts,
            ..seen()
        });
        let text = telemetry.render();
        for line in [
            "litellm_requests_total{model=\"m\",status=\"200\"} 1",
            "tollkeeper_requests_total{model=\"m\",endpoint=\"chat\",status=\"200\"} 1",
            "litellm_request_duration_seconds_sum{model=\"m\"} 0.02",
            "litellm_tokens_total{model=\"m\",type=\"prompt\"} 7",
            "tollkeeper_tokens_total{model=\"m\",type=\"completion\"} 3",
            "tollkeeper_token_details_total{model=\"m\",detail=\"cached\"} 2",
            "tollkeeper_spend_dollars_total{model=\"m\"} 1.5",
            "tollkeeper_spend_nanodollars_total{model=\"m\"} 1500000000",
            "tollkeeper_upstream_duration_seconds_sum{model=\"m\"} 0.018",
            "tollkeeper_gateway_overhead_seconds_sum{model=\"m\"} 0.002",
            "tollkeeper_retries_total{model=\"m\"} 2",
            "tollkeeper_fallbacks_total{model=\"m\",outcome=\"answered\"} 1",
        ] {
            has(&text, line);
        }
        assert!(
            !text.contains("litellm_spend_metric"),
            "nobody asked for LiteLLM's names"
        );
    }

    #[test]
    fn other_models_are_counted_under_the_one_that_was_asked_for() {
        let telemetry = Telemetry::new();
        let step = |to: &str, answered| Fallback {
            from: "m".into(),
            to: to.into(),
            answered,
        };
        telemetry.observe(&Observation {
            model: Some("c"),
            fallbacks: &[step("b", false), step("c", true)],
            litellm_names: true,
            ..seen()
        });
        let text = telemetry.render();
        for line in [
            "tollkeeper_model_fallbacks_total{model=\"m\",fallback=\"b\",outcome=\"failed\"} 1",
            "tollkeeper_model_fallbacks_total{model=\"m\",fallback=\"c\",outcome=\"answered\"} 1",
            "litellm_deployment_failed_fallbacks_total{fallback_model=\"b\",requested_model=\"m\"} 1",
            "litellm_deployment_successful_fallbacks_total{fallback_model=\"c\",requested_model=\"m\"} 1",
            "tollkeeper_requests_total{model=\"c\",endpoint=\"chat\",status=\"200\"} 1",
        ] {
            has(&text, line);
        }
    }

    #[test]
    fn there_is_an_end_to_models_and_keys() {
        let telemetry = Telemetry::new();
        for n in 0..3_000u32 {
            let name = format!("model-{n}");
            let caller = Caller::Key(Arc::new(Holder::alone(testkit::key(&format!("sk-{n}")))));
            telemetry.observe(&Observation {
                model: Some(&name),
                caller: &caller,
                litellm_names: true,
                ..seen()
            });
        }
        let text = telemetry.render();
        let of = |name: &str| text.lines().filter(|l| l.starts_with(name)).count();
        assert_eq!(of("litellm_requests_total{"), 1_001);
        assert_eq!(
            of("litellm_proxy_total_requests_metric_total{"),
            litellm::MOST + 1
        );
        has(
            &text,
            "tollkeeper_requests_total{model=\"other\",endpoint=\"chat\",status=\"200\"} 2000",
        );
    }

    #[test]
    fn a_model_that_is_called_other_breaks_nothing() {
        let telemetry = Telemetry::new();
        for model in [Some("other"), None, Some("m")] {
            telemetry.observe(&Observation { model, ..seen() });
        }
        has(
            &telemetry.render(),
            "litellm_requests_total{model=\"other\",status=\"200\"} 2",
        );
    }

    #[test]
    fn a_key_that_is_renamed_is_shown_once() {
        let telemetry = Telemetry::new();
        let mut key = testkit::key("sk-a");
        for alias in ["old", "new"] {
            key.key_alias = Some(alias.into());
            let caller = Caller::Key(Arc::new(Holder::alone(key.clone())));
            telemetry.observe(&Observation {
                caller: &caller,
                litellm_names: true,
                ..seen()
            });
        }
        let text = telemetry.render();
        assert!(
            text.contains("api_key_alias=\"new\"") && !text.contains("api_key_alias=\"old\""),
            "{text}"
        );
        let master = Caller::Master {
            hash: KeyHash::of("sk-master"),
        };
        telemetry.observe(&Observation {
            caller: &master,
            litellm_names: true,
            ..seen()
        });
        assert!(!telemetry.render().contains(&KeyHash::of("sk-master").hex()));
    }

    #[test]
    fn invented_names_make_no_series() {
        let telemetry = Telemetry::new();
        let refused = || Observation {
            model: None,
            status: 404,
            error: Some("invalid_request_error"),
            litellm_names: true,
            ..seen()
        };
        telemetry.observe(&refused());
        let before = series(&telemetry.render());
        for _ in 0..1_000 {
            telemetry.observe(&refused());
            telemetry.limit_refused(Kind::EndUser, &Why::Blocked);
            telemetry.soft_budget_crossed(Kind::Tag);
        }
        assert!(series(&telemetry.render()) <= before + 2);
    }

    #[test]
    fn names_stand_once_in_the_catalog() {
        for (i, family) in c::ALL.iter().enumerate() {
            let again = c::ALL.iter().skip(i + 1).any(|f| f.name == family.name);
            assert!(!again, "{}", family.name);
            let counter = family.kind == page::Kind::Counter;
            assert_eq!(family.name.ends_with("_total"), counter, "{}", family.name);
        }
    }
}
