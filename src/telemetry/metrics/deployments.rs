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
use std::collections::{BTreeMap, HashSet};
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
    /// How often it stepped back, by reason and status.
    cooled: Mutex<Vec<(&'static str, u16, u64)>>,
}

impl Default for Tried {
    fn default() -> Self {
        Self {
            outcomes: Default::default(),
            took: Histogram::new(&LONG),
            failed_in_a_row: AtomicU32::new(0),
            failures: Mutex::default(),
            cooled: Mutex::default(),
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
        self.with(&attempt.deployment_id, |tried| tried.observe(attempt));
    }

    /// One stepped back: a word for why, and the upstream's status, 0 where no answer came.
    pub fn cooled(&self, id: &str, reason: &'static str, status: u16) {
        self.with(id, |tried| {
            let mut cooled = tried.cooled.lock();
            if let Some((_, _, n)) = cooled.iter_mut().find(|(r, s, _)| (*r, *s) == (reason, status)) {
                *n += 1;
            } else if cooled.len() < MOST_STATUSES {
                cooled.push((reason, status, 1));
            }
        });
    }

    fn with(&self, id: &str, count: impl Fn(&Tried)) {
        match self.tried.load().get(id) {
            Some(tried) => count(tried),
            None => {
                if let Some(tried) = self.add(id) {
                    count(&tried);
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

    /// Shows those of the config, with the seconds that each is cooling; under LiteLLM's names as well, if `litellm`
    /// says so.
    pub fn gather<'a>(
        &self,
        configured: impl Iterator<Item = (&'a Arc<Deployment>, Option<f64>)>,
        litellm: bool,
        page: &mut Page,
    ) {
        let known = self.tried.load();
        let fresh = Tried::default();
        let mut shown = HashSet::new();
        for (d, cooling) in configured.take(MOST) {
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
            page.int(&c::COOLING, &labels, u64::from(cooling.is_some()));
            tried.gather_cooled(labels, page);
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

    fn gather_cooled(&self, [id, model, provider]: [&str; 3], page: &mut Page) {
        for (reason, n) in sums(self.cooled.lock().iter().map(|(reason, _, n)| (*reason, *n))) {
            page.int(&c::COOLDOWNS, &[id, model, provider, reason], n);
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
        let word = |status: u16| match status {
            0 => "None".to_string(),
            status => status.to_string(),
        };
        for (status, n) in self.failures.lock().iter() {
            let text = word(*status);
            let class = exception(*status);
            let labels = [base, provider, class, &text, model, id, &d.model_name];
            page.int(&c::L_DEPLOYMENT_BAD, &labels, *n);
        }
        for (status, n) in sums(self.cooled.lock().iter().map(|(_, status, n)| (*status, *n))) {
            let labels = [base, provider, &word(status), model, id];
            page.int(&c::L_COOLED, &labels, n);
        }
        page.int(&c::L_DEPLOYMENT_STATE, &place, self.state());
    }
}

fn sums<K: Ord>(pairs: impl Iterator<Item = (K, u64)>) -> BTreeMap<K, u64> {
    let mut sums = BTreeMap::new();
    for (key, n) in pairs {
        *sums.entry(key).or_default() += n;
    }
    sums
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
        let configured = configured.iter().map(|d| (d, None));
        deployments.gather(configured, true, &mut page);
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
    fn cool_downs_are_counted_by_reason_and_by_status() {
        let deployments = Deployments::default();
        let d = Arc::new(testkit::deployment("openai"));
        for (reason, status) in [("server_error", 500), ("server_error", 503), ("unreachable", 0)] {
            deployments.cooled(&d.id, reason, status);
        }
        deployments.cooled(&d.id, "server_error", 500);
        let mut page = Page::default();
        deployments.gather([(&d, Some(1.5))].into_iter(), true, &mut page);
        let text = page.finish();
        let value = |name: &str, label: &str| {
            let is_it = |l: &&str| l.starts_with(name) && l.contains(label);
            text.lines().find(is_it).and_then(|l| l.rsplit(' ').next())
        };
        let ours = "tollkeeper_deployment_cooldowns_total{";
        assert_eq!(value(ours, "reason=\"server_error\""), Some("3"));
        assert_eq!(value(ours, "reason=\"unreachable\""), Some("1"));
        let theirs = "litellm_deployment_cooled_down_total{";
        assert_eq!(value(theirs, "exception_status=\"500\""), Some("2"));
        assert_eq!(value(theirs, "exception_status=\"None\""), Some("1"));
        assert_eq!(value("tollkeeper_deployment_cooling{", &d.id), Some("1"));
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
