//! What is counted of each call, by model. A model's counters are found once per call, by its configured name;
//! everything after that is additions.

use super::catalog as c;
use super::count::{Counter, Histogram, LONG, Named, SHORT, Statuses};
use super::page::Page;
use arc_swap::ArcSwap;
use filters::contract::cx::Fallback;
use filters::contract::ports::Observation;
use filters::model::call::Endpoint;
use filters::model::record::Attempt;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};

/// The name of whatever has none of its own.
pub const OTHER: &str = "other";
/// Most models with counters of their own. Names come from the config and the store, which may change for as
/// long as the process runs.
const MOST_MODELS: usize = 1_000;
/// Kinds of errors are words of our own; should they ever not be, this is the end.
const MOST_KINDS: usize = 64;
/// Most models that one goes on to. Names come from the config, which may change for as long as the process runs.
const MOST_OTHERS: usize = 100;

/// The place of requests that are no call, behind the endpoints.
const NO_ENDPOINT: usize = Endpoint::ALL.len();

/// The counters of one model.
struct Model {
    statuses: [OnceLock<Box<Statuses>>; NO_ENDPOINT + 1],
    errors: Mutex<Vec<(&'static str, u64)>>,
    duration: Histogram,
    first_byte: Histogram,
    first_token: Histogram,
    inter_token: Histogram,
    upstream: Histogram,
    overhead: Histogram,
    prompt: Counter,
    completion: Counter,
    cached: Counter,
    cache_creation: Counter,
    reasoning: Counter,
    nanos: Counter,
    unpriced: Counter,
    estimated: Counter,
    retries: Counter,
    fallbacks_answered: Counter,
    fallbacks_failed: Counter,
    /// Other models that its calls went on to: how many answered, how many failed.
    others: Mutex<Vec<(Box<str>, [u64; 2])>>,
}

impl Default for Model {
    fn default() -> Self {
        let [duration, first_byte, first_token, upstream] = std::array::from_fn(|_| Histogram::new(&LONG));
        let [inter_token, overhead] = std::array::from_fn(|_| Histogram::new(&SHORT));
        Self {
            statuses: Default::default(),
            errors: Mutex::default(),
            duration,
            first_byte,
            first_token,
            inter_token,
            upstream,
            overhead,
            prompt: Counter::default(),
            completion: Counter::default(),
            cached: Counter::default(),
            cache_creation: Counter::default(),
            reasoning: Counter::default(),
            nanos: Counter::default(),
            unpriced: Counter::default(),
            estimated: Counter::default(),
            retries: Counter::default(),
            fallbacks_answered: Counter::default(),
            fallbacks_failed: Counter::default(),
            others: Mutex::default(),
        }
    }
}

/// The models that were called.
pub struct Calls {
    models: ArcSwap<Named<Model>>,
    /// Held while a model is added.
    adding: Mutex<()>,
    other: Model,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            models: ArcSwap::default(),
            adding: Mutex::new(()),
            other: Model::default(),
        }
    }
}

impl Calls {
    pub fn observe(&self, seen: &Observation<'_>) {
        self.with(seen.model, |model| model.observe(seen));
        for step in seen.fallbacks {
            self.with(Some(&step.from), |model| model.fell_back(step));
        }
    }

    fn with(&self, name: Option<&str>, count: impl Fn(&Model)) {
        // A model that is called so shares the name with the rest.
        let Some(name) = name.filter(|name| *name != OTHER) else {
            return count(&self.other);
        };
        match self.models.load().get(name) {
            Some(model) => count(model),
            None => match self.add(name) {
                Some(model) => count(&model),
                None => count(&self.other),
            },
        }
    }

    /// None = there are too many already.
    fn add(&self, name: &str) -> Option<Arc<Model>> {
        let _adding = self.adding.lock();
        let models = self.models.load();
        if let Some(model) = models.get(name) {
            return Some(Arc::clone(model));
        }
        if models.len() >= MOST_MODELS {
            return None;
        }
        let model = Arc::new(Model::default());
        let mut more = Named::clone(&models);
        more.insert(name.into(), Arc::clone(&model));
        self.models.store(Arc::new(more));
        Some(model)
    }

    /// Shows all; under LiteLLM's names as well, if `litellm` says so.
    pub fn gather(&self, litellm: bool, page: &mut Page) {
        let models = self.models.load();
        let named = models.iter().map(|(name, model)| (name.as_ref(), model.as_ref()));
        let mut all: Vec<_> = named.chain([(OTHER, &self.other)]).collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        for (name, model) in all {
            model.gather(name, page);
            model.gather_others(name, litellm, page);
        }
    }

    /// Nano-dollars that calls of this model cost.
    #[cfg(test)]
    pub fn spent(&self, model: &str) -> u64 {
        self.models.load().get(model).map_or(0, |m| m.nanos.get())
    }
}

impl Model {
    fn observe(&self, seen: &Observation<'_>) {
        let endpoint = seen.endpoint.map_or(NO_ENDPOINT, |e| e as usize);
        if let Some(statuses) = self.statuses.get(endpoint) {
            statuses.get_or_init(Box::default).inc(seen.status);
        }
        self.duration.observe(seen.took);
        if let Some(first) = seen.first_byte {
            self.first_byte.observe(first);
        }
        if let Some(first) = seen.first_token {
            self.first_token.observe(first);
        }
        if let Some(between) = seen.inter_token {
            self.inter_token.observe(between);
        }
        if let Some(upstream) = seen.upstream {
            self.upstream.observe(upstream);
            self.overhead.observe(seen.took.saturating_sub(upstream));
        }
        if let Some(usage) = seen.usage {
            self.prompt.add(usage.prompt_tokens);
            self.completion.add(usage.completion_tokens);
            for (counter, n) in [
                (&self.cached, usage.cached_tokens),
                (&self.cache_creation, usage.cache_creation_tokens),
                (&self.reasoning, usage.reasoning_tokens),
                (&self.estimated, u64::from(usage.estimated)),
            ] {
                if n > 0 {
                    counter.add(n);
                }
            }
        }
        // A call that broke off has its price too.
        if let Some(nanos) = seen.cost_nanos {
            self.nanos.add(u64::try_from(nanos).unwrap_or(0));
        }
        let failed = seen.status >= 400 || seen.error.is_some();
        if failed {
            self.failed(seen.error.unwrap_or("error"));
        } else if seen.usage.is_some() && seen.cost_nanos.is_none() {
            self.unpriced.add(1);
        }
        if seen.attempts.len() > 1 {
            self.went_on(seen.attempts);
        }
    }

    fn failed(&self, kind: &'static str) {
        let mut errors = self.errors.lock();
        if let Some((_, n)) = errors.iter_mut().find(|(k, _)| *k == kind) {
            *n += 1;
        } else if errors.len() < MOST_KINDS {
            errors.push((kind, 1));
        }
    }

    /// The first attempt was not the last.
    fn went_on(&self, attempts: &[Attempt]) {
        let first = attempts.first().map(|a| &a.deployment_id);
        let before = |i: usize, a: &Attempt| {
            let mut earlier = attempts.iter().take(i);
            earlier.any(|b| b.deployment_id == a.deployment_id)
        };
        let again = attempts.iter().enumerate().filter(|(i, a)| before(*i, a)).count();
        self.retries.add(again as u64);
        if attempts.iter().any(|a| Some(&a.deployment_id) != first) {
            let answered = attempts.last().is_some_and(|a| a.error.is_none());
            let counter = if answered {
                &self.fallbacks_answered
            } else {
                &self.fallbacks_failed
            };
            counter.add(1);
        }
    }

    fn fell_back(&self, step: &Fallback) {
        let mut others = self.others.lock();
        let at = usize::from(!step.answered);
        if let Some((_, counts)) = others.iter_mut().find(|(to, _)| **to == *step.to) {
            counts[at] += 1;
        } else if others.len() < MOST_OTHERS {
            let mut counts = [0; 2];
            counts[at] = 1;
            others.push((step.to.as_str().into(), counts));
        }
    }

    fn gather_others(&self, name: &str, litellm: bool, page: &mut Page) {
        for (to, [answered, failed]) in self.others.lock().iter() {
            for (outcome, theirs, n) in [
                ("answered", &c::L_FALLBACKS_GOOD, *answered),
                ("failed", &c::L_FALLBACKS_BAD, *failed),
            ] {
                page.int(&c::MODEL_FALLBACKS, &[name, to, outcome], n);
                if litellm {
                    page.int(theirs, &[to, name], n);
                }
            }
        }
    }

    fn gather(&self, name: &str, page: &mut Page) {
        let mut by_status: Vec<(u16, u64)> = Vec::new();
        for (at, statuses) in self.statuses.iter().enumerate() {
            let Some(statuses) = statuses.get() else { continue };
            let endpoint = Endpoint::ALL.get(at).map_or("none", |e| word(*e));
            for (status, n) in statuses.seen() {
                page.int(&c::REQUESTS, &[name, endpoint, &status.to_string()], n);
                match by_status.iter_mut().find(|(s, _)| *s == status) {
                    Some((_, sum)) => *sum += n,
                    None => by_status.push((status, n)),
                }
            }
        }
        for (status, n) in by_status {
            page.int(&c::LITELLM_REQUESTS, &[name, &status.to_string()], n);
        }
        for (kind, n) in self.errors.lock().iter() {
            page.int(&c::LITELLM_ERRORS, &[name, kind], *n);
            page.int(&c::ERRORS, &[name, kind], *n);
        }
        for (family, histogram) in [
            (&c::LITELLM_DURATION, &self.duration),
            (&c::DURATION, &self.duration),
            (&c::FIRST_BYTE, &self.first_byte),
            (&c::FIRST_TOKEN, &self.first_token),
            (&c::INTER_TOKEN, &self.inter_token),
            (&c::UPSTREAM, &self.upstream),
            (&c::OVERHEAD, &self.overhead),
        ] {
            page.histogram(family, &[name], histogram);
        }
        for (kind, counter) in [("prompt", &self.prompt), ("completion", &self.completion)] {
            page.counter(&c::LITELLM_TOKENS, &[name, kind], counter);
            page.counter(&c::TOKENS, &[name, kind], counter);
        }
        for (detail, counter) in [
            ("cached", &self.cached),
            ("cache_creation", &self.cache_creation),
            ("reasoning", &self.reasoning),
        ] {
            page.counter(&c::TOKEN_DETAILS, &[name, detail], counter);
        }
        page.counter(&c::SPEND_NANOS, &[name], &self.nanos);
        if self.nanos.get() > 0 {
            page.float(&c::SPEND, &[name], super::count::seconds(self.nanos.get()));
        }
        page.counter(&c::UNPRICED, &[name], &self.unpriced);
        page.counter(&c::ESTIMATED, &[name], &self.estimated);
        page.counter(&c::RETRIES, &[name], &self.retries);
        page.counter(&c::FALLBACKS, &[name, "answered"], &self.fallbacks_answered);
        page.counter(&c::FALLBACKS, &[name, "failed"], &self.fallbacks_failed);
    }
}

/// An endpoint's name in labels.
fn word(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "chat",
        Endpoint::Completions => "completions",
        Endpoint::Embeddings => "embeddings",
        Endpoint::Speech => "speech",
        Endpoint::Transcriptions => "transcriptions",
        Endpoint::Translations => "translations",
        Endpoint::Images => "images",
        Endpoint::Moderations => "moderations",
        Endpoint::Rerank => "rerank",
        Endpoint::Responses => "responses",
    }
}
