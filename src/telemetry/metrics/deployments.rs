//! What is counted of each attempt at a deployment, and how the deployment seems to be. Who is shown is the
//! config's to say: a deployment that is there no more is not.

use super::catalog as c;
use super::count::{Counter, Histogram, LONG, Named};
use super::litellm::exception;
use super::page::Page;
use arc_swap::ArcSwap;
use filters::model::deployment::Deployment;
use filters::model::record::Attempt;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Most deployments with counters of their own.
const MOST: usize = 2_000;
/// Most statuses of a deployment's failures. An upstream may make some up.
const MOST_STATUSES: usize = 32;
/// So many failures in a row are an outage.
const OUTAGE: u32 = 3;

/// How an attempt ended.
const OUTCOMES: [&str; 6] = [
    "answered",
    "no_answer",
    "rate_limited",
    "credentials",
    "server_error",
    // What was asked for was wrong, which says nothing against the deployment.
    "refused",
];
const ANSWERED: usize = 0;
const REFUSED: usize = 5;

struct Tried {
    outcomes: [Counter; OUTCOMES.len()],
    took: Histogram,
    failed_in_a_row: AtomicU32,
    /// Failures by status, 0 where no answer came.
    failures: Mutex<Vec<(u16, u64)>>,
}

impl Default for Tried {
    fn default() -> Self {
        Self {
            outcomes: Default::default(),
            took: Histogram::new(&LONG),
            failed_in_a_row: AtomicU32::new(0),
            failures: Mutex::default(),
        }
    }
}

/// Deployments by id.
#[derive(Default)]
pub struct Deployments {
    tried: ArcSwap<Named<Tried>>,
    /// Held while one is added.
    adding: Mutex<()>,
}

impl Deployments {
    pub fn observe(&self, attempt: &Attempt) {
        let known = self.tried.load();
        match known.get(attempt.deployment_id.as_str()) {
            Some(tried) => tried.observe(attempt),
            None => {
                if let Some(tried) = self.add(&attempt.deployment_id) {
                    tried.observe(attempt);
                }
            }
        }
    }

    fn add(&self, id: &str) -> Option<Arc<Tried>> {
        let _adding = self.adding.lock();
        let known = self.tried.load();
        if let Some(tried) = known.get(id) {
            return Some(Arc::clone(tried));
        }
        if known.len() >= MOST {
            return None;
        }
        let tried = Arc::new(Tried::default());
        let mut more = Named::clone(&known);
        more.insert(id.into(), Arc::clone(&tried));
        self.tried.store(Arc::new(more));
        Some(tried)
    }

    /// Shows those of the config; under LiteLLM's names as well, if `litellm` says so.
    pub fn gather<'a>(
        &self,
        configured: impl Iterator<Item = &'a Arc<Deployment>>,
        litellm: bool,
        page: &mut Page,
    ) {
        let known = self.tried.load();
        let fresh = Tried::default();
        let mut shown = HashSet::new();
        for d in configured.take(MOST) {
            if !shown.insert(&d.id) {
                continue;
            }
            let tried = known.get(d.id.as_str()).map_or(&fresh, Arc::as_ref);
            let labels = [d.id.as_str(), &d.model_name, &d.provider];
            for (outcome, counter) in OUTCOMES.iter().zip(&tried.outcomes) {
                let [id, model, provider] = labels;
                page.counter(&c::ATTEMPTS, &[id, model, provider, outcome], counter);
            }
            page.histogram(&c::ATTEMPT_DURATION, &labels, &tried.took);
            page.int(&c::DEPLOYMENT_STATE, &labels, tried.state());
            if litellm {
                tried.gather_litellm(d, page);
            }
        }
        page.int(&c::DEPLOYMENTS, &[], shown.len() as u64);
    }
}

impl Tried {
    fn observe(&self, attempt: &Attempt) {
        let outcome = match (attempt.status, &attempt.error) {
            (200..=299, None) => ANSWERED,
            (0 | 408, _) => 1,
            (429, _) => 2,
            (401 | 403, _) => 3,
            (500.., _) => 4,
            _ => REFUSED,
        };
        if let Some(counter) = self.outcomes.get(outcome) {
            counter.add(1);
        }
        self.took.observe(Duration::from_micros(
            u64::try_from(attempt.duration_micros).unwrap_or(0),
        ));
        if outcome != ANSWERED {
            let mut failures = self.failures.lock();
            if let Some((_, n)) = failures.iter_mut().find(|(s, _)| *s == attempt.status) {
                *n += 1;
            } else if failures.len() < MOST_STATUSES {
                failures.push((attempt.status, 1));
            }
        }
        match outcome {
            // Written only when it changes, which it rarely does.
            ANSWERED if self.failed_in_a_row.load(Relaxed) > 0 => self.failed_in_a_row.store(0, Relaxed),
            ANSWERED | REFUSED => {}
            _ => {
                self.failed_in_a_row.fetch_add(1, Relaxed);
            }
        }
    }

    /// As LiteLLM counts it: 0 healthy, 1 partial outage, 2 outage.
    fn state(&self) -> u64 {
        match self.failed_in_a_row.load(Relaxed) {
            0 => 0,
            n if n < OUTAGE => 1,
            _ => 2,
        }
    }

    fn gather_litellm(&self, d: &Deployment, page: &mut Page) {
        // Addresses of upstreams are nobody's business who reads metrics.
        let place = ["None", d.provider.as_str(), &d.upstream_model, &d.id];
        let [base, provider, model, id] = place;
        let labels = [base, provider, model, id, &d.model_name];
        let good = self.outcomes.first().map_or(0, Counter::get);
        let all: u64 = self.outcomes.iter().map(Counter::get).sum();
        for (family, n) in [(&c::L_DEPLOYMENT_TOTAL, all), (&c::L_DEPLOYMENT_GOOD, good)] {
            if n > 0 {
                page.int(family, &labels, n);
            }
        }
        for (status, n) in self.failures.lock().iter() {
            let text = match status {
                0 => "None".to_string(),
                status => status.to_string(),
            };
            let class = exception(*status);
            let labels = [base, provider, class, &text, model, id, &d.model_name];
            page.int(&c::L_DEPLOYMENT_BAD, &labels, *n);
        }
        page.int(&c::L_DEPLOYMENT_STATE, &place, self.state());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use filters::testkit;

    fn attempt(id: &str, status: u16, error: Option<&str>) -> Attempt {
        Attempt {
            deployment_id: id.into(),
            status,
            error: error.map(Into::into),
            duration_micros: 1_000,
        }
    }

    fn page(deployments: &Deployments, configured: &[Arc<Deployment>]) -> String {
        let mut page = Page::default();
        deployments.gather(configured.iter(), true, &mut page);
        page.finish()
    }

    #[test]
    fn failures_in_a_row_are_an_outage_until_an_answer_comes() {
        let deployments = Deployments::default();
        let d = Arc::new(testkit::deployment("openai"));
        let state = |n: u8| {
            let line = format!("tollkeeper_deployment_state{{deployment=\"{}\",", d.id);
            let text = page(&deployments, std::slice::from_ref(&d));
            let is = text
                .lines()
                .any(|l| l.starts_with(&line) && l.ends_with(&format!(" {n}")));
            assert!(is, "{n}: {text}");
        };
        state(0);
        deployments.observe(&attempt(&d.id, 500, Some("x")));
        state(1);
        deployments.observe(&attempt(&d.id, 400, Some("x")));
        deployments.observe(&attempt(&d.id, 0, Some("x")));
        state(1);
        deployments.observe(&attempt(&d.id, 429, Some("x")));
        state(2);
        deployments.observe(&attempt(&d.id, 200, None));
        state(0);
        let text = page(&deployments, std::slice::from_ref(&d));
        for (outcome, n) in OUTCOMES.iter().zip([1, 1, 1, 0, 1, 1]) {
            let counted = text.contains(&format!("outcome=\"{outcome}\"}} 1\n"));
            assert_eq!(counted, n == 1, "{outcome}: {text}");
        }
        for labels in [
            "exception_class=\"APIConnectionError\",exception_status=\"None\"",
            "exception_class=\"RateLimitError\",exception_status=\"429\"",
            "exception_class=\"InternalServerError\",exception_status=\"500\"",
        ] {
            let bad = text
                .lines()
                .find(|l| l.starts_with("litellm_deployment_failure_responses_total{") && l.contains(labels));
            assert!(bad.is_some_and(|l| l.ends_with(" 1")), "{labels}: {text}");
        }
    }

    #[test]
    fn who_is_not_configured_is_not_shown() {
        let deployments = Deployments::default();
        for n in 0..MOST * 2 {
            deployments.observe(&attempt(&format!("gone-{n}"), 200, None));
        }
        assert_eq!(deployments.tried.load().len(), MOST);
        assert!(!page(&deployments, &[]).contains("gone"));
    }
}
