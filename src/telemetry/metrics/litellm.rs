//! LiteLLM's own metrics under their own names and labels, for dashboards that exist. Only for lanes whose
//! `metrics` filter was told so.
//!
//! Keys, teams and users are those of the store, so a caller adds none; there is an end nevertheless: whoever
//! comes after [`MOST`] keys and models counts as `other`. End users are always `None`: their names are the
//! callers' own.

use super::calls::OTHER;
use super::catalog as c;
use super::count::{Counter, Histogram, LONG, SHORT, seconds};
use super::page::Page;
use dashmap::DashMap;
use filters::contract::ports::Observation;
use filters::model::call::Endpoint;
use filters::model::key::{Caller, KeyHash};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Most pairs of key and model.
pub const MOST: usize = 1_000;
/// Most routes and statuses of a pair, of which there are fewer.
const MOST_ANSWERS: usize = 256;
/// LiteLLM's word for a label without a value.
const NONE: &str = "None";
/// Stands for the master key's hash.
const MASTER: &str = "master_key";

/// Who called, as labels.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Who {
    hash: String,
    alias: String,
    team: String,
    team_alias: String,
    user: String,
    email: String,
}

/// A key and a model.
struct Pair {
    who: Who,
    /// The configured name, and the model as its deployment has it.
    group: Box<str>,
    model: Box<str>,
    provider: Box<str>,
    answers: Mutex<Vec<(Answer, u64)>>,
    latency: Histogram,
    api_latency: Histogram,
    first_token: Histogram,
    overhead: Histogram,
    nanos: Counter,
    answered: Counter,
    input: Counter,
    output: Counter,
}

/// What was called, and the status it got.
type Answer = (Option<Endpoint>, u16);

type Pairs = Vec<Arc<Pair>>;

/// All pairs, by key; None = nobody in particular.
pub struct LiteLlm {
    keys: DashMap<Option<KeyHash>, Pairs>,
    count: AtomicUsize,
    other: Pair,
}

impl Default for LiteLlm {
    fn default() -> Self {
        let other = || OTHER.to_string();
        Self {
            keys: DashMap::new(),
            count: AtomicUsize::new(0),
            other: Pair::new(
                Who {
                    hash: other(),
                    alias: other(),
                    team: other(),
                    team_alias: other(),
                    user: other(),
                    email: other(),
                },
                OTHER,
                OTHER,
                OTHER,
            ),
        }
    }
}

impl LiteLlm {
    pub fn observe(&self, seen: &Observation<'_>) {
        let hash = seen.caller.key_hash();
        let group = seen.model.unwrap_or(OTHER);
        let model = model(seen);
        let found = self.keys.get(&hash).and_then(|pairs| {
            let is_it =
                |pair: &&Arc<Pair>| *pair.group == *group && *pair.model == *model && pair.who.is(seen);
            pairs.iter().find(is_it).map(Arc::clone)
        });
        match found.or_else(|| self.add(hash, group, model, seen)) {
            Some(pair) => pair.observe(seen),
            None => self.other.observe(seen),
        }
    }

    /// None = there are too many already.
    fn add(
        &self,
        hash: Option<KeyHash>,
        group: &str,
        model: &str,
        seen: &Observation<'_>,
    ) -> Option<Arc<Pair>> {
        let who = Who::of(seen);
        let provider = seen.deployment.map_or(NONE, |d| d.provider.as_str());
        let mut pairs = self.keys.entry(hash).or_default();
        // What the key is called now is another label, and what it was called is shown no more.
        let before = pairs.len();
        pairs.retain(|pair| pair.who == who);
        self.count.fetch_sub(before - pairs.len(), Relaxed);
        if let Some(pair) = pairs.iter().find(|p| *p.group == *group && *p.model == *model) {
            return Some(Arc::clone(pair));
        }
        if self.count.fetch_add(1, Relaxed) >= MOST {
            self.count.fetch_sub(1, Relaxed);
            return None;
        }
        let pair = Arc::new(Pair::new(who, group, model, provider));
        pairs.push(Arc::clone(&pair));
        Some(pair)
    }

    /// Whether anything was counted: nobody asked for it otherwise.
    pub fn is_used(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    pub fn gather(&self, page: &mut Page) {
        if !self.is_used() {
            return;
        }
        for pairs in &self.keys {
            for pair in pairs.value() {
                pair.gather(page);
            }
        }
        self.other.gather(page);
    }
}

/// The model as the deployment has it. A wildcard's is the caller's to choose, so there it is the pattern.
fn model<'a>(seen: &Observation<'a>) -> &'a str {
    match seen.deployment {
        Some(d) if d.model_name.contains('*') => &d.model_name,
        Some(d) => &d.upstream_model,
        None => seen.model.unwrap_or(OTHER),
    }
}

impl Who {
    fn of(seen: &Observation<'_>) -> Self {
        let text = |t: Option<&str>| t.filter(|t| !t.is_empty()).unwrap_or(NONE).to_string();
        let key = seen.caller.key();
        let user = key.and_then(|k| k.user.as_deref());
        Self {
            hash: match seen.caller {
                // Its hash would let whoever reads metrics guess at it.
                Caller::Master { .. } => MASTER.into(),
                caller => caller.key_hash().map_or(NONE.into(), |h| h.hex()),
            },
            alias: text(key.and_then(|k| k.key_alias.as_deref())),
            team: text(key.and_then(|k| k.team_id.as_deref())),
            team_alias: text(key.and_then(|k| k.team.as_ref()?.alias.as_deref())),
            user: text(seen.caller.user_id()),
            email: text(user.and_then(|u| u.text("user_email"))),
        }
    }

    /// Whether these are still the caller's labels. The hash is known to be.
    fn is(&self, seen: &Observation<'_>) -> bool {
        let same = |label: &str, now: Option<&str>| label == now.filter(|t| !t.is_empty()).unwrap_or(NONE);
        let key = seen.caller.key();
        same(&self.alias, key.and_then(|k| k.key_alias.as_deref()))
            && same(&self.team, key.and_then(|k| k.team_id.as_deref()))
            && same(
                &self.team_alias,
                key.and_then(|k| k.team.as_ref()?.alias.as_deref()),
            )
            && same(&self.user, seen.caller.user_id())
            && same(&self.email, key.and_then(|k| k.user.as_ref()?.text("user_email")))
    }
}

impl Pair {
    fn new(who: Who, group: &str, model: &str, provider: &str) -> Self {
        Self {
            who,
            group: group.into(),
            model: model.into(),
            provider: provider.into(),
            answers: Mutex::default(),
            latency: Histogram::new(&LONG),
            api_latency: Histogram::new(&LONG),
            first_token: Histogram::new(&LONG),
            overhead: Histogram::new(&SHORT),
            nanos: Counter::default(),
            answered: Counter::default(),
            input: Counter::default(),
            output: Counter::default(),
        }
    }

    fn observe(&self, seen: &Observation<'_>) {
        let answer = (seen.endpoint, seen.status);
        let mut answers = self.answers.lock();
        if let Some((_, n)) = answers.iter_mut().find(|(a, _)| *a == answer) {
            *n += 1;
        } else if answers.len() < MOST_ANSWERS {
            answers.push((answer, 1));
        }
        drop(answers);
        if let Some(upstream) = seen.upstream {
            self.latency.observe(seen.took);
            self.api_latency.observe(upstream);
            self.overhead.observe(seen.took.saturating_sub(upstream));
        }
        if let Some(first) = seen.first_token {
            self.first_token.observe(first);
        }
        if let Some(usage) = seen.usage {
            self.answered.add(1);
            self.input.add(usage.prompt_tokens);
            self.output.add(usage.completion_tokens);
        }
        if let Some(nanos) = seen.cost_nanos {
            self.nanos.add(u64::try_from(nanos).unwrap_or(0));
        }
    }

    /// The labels of each family stand in the order of the alphabet, as LiteLLM's.
    fn gather(&self, page: &mut Page) {
        let Who {
            hash,
            alias,
            team,
            team_alias,
            user,
            email,
        } = &self.who;
        let (group, model, provider) = (&*self.group, &*self.model, &*self.provider);
        for ((endpoint, status), n) in self.answers.lock().iter() {
            let route = endpoint.map_or(NONE.to_string(), |e| format!("/v1{}", e.path()));
            let status_text = status.to_string();
            page.int(
                &c::L_REQUESTS,
                &[
                    alias,
                    NONE,
                    hash,
                    group,
                    &route,
                    &status_text,
                    team,
                    team_alias,
                    user,
                    email,
                ],
                *n,
            );
            if *status >= 400 {
                let class = exception(*status);
                page.int(
                    &c::L_FAILED,
                    &[
                        alias,
                        NONE,
                        class,
                        &status_text,
                        hash,
                        group,
                        &route,
                        team,
                        team_alias,
                        user,
                        email,
                    ],
                    *n,
                );
            }
        }
        let of_key = [alias, NONE, hash, model, group, team, team_alias, user];
        page.histogram(&c::L_LATENCY, &of_key, &self.latency);
        page.histogram(&c::L_API_LATENCY, &of_key, &self.api_latency);
        let first = [alias, hash.as_str(), model, team, team_alias];
        page.histogram(&c::L_FIRST_TOKEN, &first, &self.first_token);
        let overhead = [NONE, alias, provider, hash, model, group];
        page.histogram(&c::L_OVERHEAD, &overhead, &self.overhead);
        let spend = [alias, NONE, hash, model, team, team_alias, user, email];
        if self.nanos.get() > 0 {
            page.float(&c::L_SPEND, &spend, seconds(self.nanos.get()));
        }
        page.counter(&c::L_CALLS, &spend, &self.answered);
        let tokens = [alias, NONE, hash, model, group, team, team_alias, user, email];
        page.counter(&c::L_INPUT, &tokens, &self.input);
        page.counter(&c::L_OUTPUT, &tokens, &self.output);
        let total = self.input.get().saturating_add(self.output.get());
        if total > 0 {
            page.int(&c::L_TOKENS, &tokens, total);
        }
    }
}

/// LiteLLM's class for a status; 0 = no answer came.
pub fn exception(status: u16) -> &'static str {
    match status {
        0 => "APIConnectionError",
        400 => "BadRequestError",
        401 => "AuthenticationError",
        403 => "PermissionDeniedError",
        404 => "NotFoundError",
        408 => "Timeout",
        422 => "UnprocessableEntityError",
        429 => "RateLimitError",
        500 => "InternalServerError",
        503 => "ServiceUnavailableError",
        _ => "APIError",
    }
}
