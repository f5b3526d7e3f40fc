//! Counts each request once, when it is over; of a stream it notes when it ended.

use crate::contract::ports::{Metrics as Port, Observation, Ports};
use crate::contract::{Cx, Filter, Needs, Outcome, Result};
use bytes::Bytes;
use serde::Deserialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the lane says of it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Count under LiteLLM's own names as well.
    pub litellm_names: bool,
}

pub struct Metrics {
    settings: Settings,
    port: Arc<dyn Port>,
}

impl Metrics {
    pub fn new(settings: Settings, ports: &Ports) -> Self {
        Self {
            settings,
            port: Arc::clone(&ports.metrics),
        }
    }
}

impl Filter for Metrics {
    fn needs(&self) -> Needs {
        Needs {
            response_chunks: true,
            logging: true,
            ..Needs::NONE
        }
    }

    fn response_body_filter(&self, cx: &mut Cx, _chunk: &mut Bytes, end: bool) -> Result<()> {
        // The clock is read once per stream, not once per chunk.
        let is_last = end || cx.metered.done;
        if is_last && cx.event_stream && cx.call.is_some() && cx.last_token.is_none() {
            cx.last_token = Some(Instant::now());
        }
        Ok(())
    }

    fn logging(&self, cx: &mut Cx, outcome: &Outcome) {
        let now = Instant::now();
        let took = now.duration_since(cx.started);
        let since = |at: Instant| at.duration_since(cx.started);
        // The group's name is the deployment's; it is looked for only where no deployment was chosen.
        let model = match (&cx.deployment, &cx.call) {
            (Some(d), Some(_)) => Some(d.model_name.as_str()),
            (_, Some(call)) => cx.catalog.group_of(&call.model),
            _ => None,
        };
        self.port.observe(&Observation {
            endpoint: cx.call.as_ref().map(|c| c.endpoint),
            model,
            caller: &cx.caller,
            status: outcome.http_status,
            error: outcome.error_kind,
            took,
            first_byte: cx.first_byte.map(since),
            first_token: cx.first_token.map(since),
            inter_token: between_tokens(cx),
            upstream: upstream(cx, now).map(|upstream| upstream.min(took)),
            usage: cx.metered.used.as_ref(),
            cost_nanos: cx.cost_nanos,
            attempts: &cx.attempts,
            fallbacks: &cx.fallbacks,
            deployment: cx.deployment.as_deref(),
            litellm_names: self.settings.litellm_names,
        });
    }
}

/// The first token's time is the upstream's thinking; the others share what is left.
fn between_tokens(cx: &Cx) -> Option<Duration> {
    let (first, last) = cx.first_token.zip(cx.last_token)?;
    let tokens = cx.metered.used.as_ref()?.completion_tokens;
    let gaps = u32::try_from(tokens.checked_sub(1)?).ok().filter(|n| *n > 0)?;
    Some(last.checked_duration_since(first)?.checked_div(gaps)?).filter(|d| !d.is_zero())
}

/// What attempts at upstreams took. The last one's goes on for as long as its answer flows.
fn upstream(cx: &Cx, now: Instant) -> Option<Duration> {
    if cx.attempts.is_empty() {
        return None;
    }
    let micros: i64 = cx.attempts.iter().map(|a| a.duration_micros.max(0)).sum();
    let tried = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
    let flowed = cx.flowing.map(|at| now.duration_since(at)).unwrap_or_default();
    Some(tried.saturating_add(flowed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::call::Endpoint;
    use crate::model::record::{Attempt, Status};
    use crate::model::usage::Usage;
    use crate::testkit::{self, Kit};
    use std::sync::Mutex;

    /// What was seen: upstream, first token, between tokens, model.
    type Seen = (
        Option<Duration>,
        Option<Duration>,
        Option<Duration>,
        Option<String>,
    );

    #[derive(Default)]
    struct Notes(Mutex<Vec<Seen>>);

    impl Port for Notes {
        fn observe(&self, seen: &Observation<'_>) {
            assert!(seen.upstream.is_none_or(|u| u <= seen.took));
            self.0.lock().unwrap().push((
                seen.upstream,
                seen.first_token,
                seen.inter_token,
                seen.model.map(Into::into),
            ));
        }
    }

    fn run(change: impl FnOnce(&mut Cx)) -> Seen {
        let notes = Arc::new(Notes::default());
        let kit = Kit::default();
        let mut ports = kit.ports();
        ports.metrics = notes.clone();
        let filter = Metrics::new(Settings::default(), &ports);
        let mut cx = kit.cx();
        change(&mut cx);
        for end in [false, true] {
            filter
                .response_body_filter(&mut cx, &mut Bytes::new(), end)
                .unwrap();
        }
        let outcome = Outcome {
            status: Status::Success,
            http_status: 200,
            error: None,
            error_kind: None,
        };
        filter.logging(&mut cx, &outcome);
        notes.0.lock().unwrap().remove(0)
    }

    fn attempt(micros: i64) -> Attempt {
        Attempt {
            deployment_id: "d".into(),
            status: 200,
            error: None,
            duration_micros: micros,
        }
    }

    #[test]
    fn a_request_that_is_no_call_has_neither_model_nor_upstream() {
        assert_eq!(run(|_| {}), (None, None, None, None));
    }

    #[test]
    fn a_streams_tokens_are_timed() {
        let (upstream, first, between, model) = run(|cx| {
            cx.started -= Duration::from_secs(10);
            cx.call = Some(testkit::call(Endpoint::Chat, r#"{"model":"m","messages":[]}"#));
            cx.deployment = Some(Arc::new(testkit::deployment("openai")));
            cx.event_stream = true;
            cx.metered.deltas = 3;
            cx.first_token = Some(cx.started + Duration::from_secs(4));
            cx.flowing = cx.first_token;
            cx.attempts = vec![attempt(1_000_000), attempt(2_000_000)];
            cx.metered.used = Some(Usage {
                completion_tokens: 7,
                ..Usage::default()
            });
        });
        assert_eq!(first, Some(Duration::from_secs(4)));
        assert_eq!(between.map(|d| d.as_secs()), Some(1), "6 s for 6 gaps");
        assert_eq!(
            upstream.map(|d| d.as_secs()),
            Some(9),
            "two attempts, and 6 s of answer"
        );
        assert_eq!(model, Some(testkit::deployment("openai").model_name));
    }

    #[test]
    fn one_token_has_no_gap_and_a_whole_answer_no_first_token() {
        let (_, first, between, _) = run(|cx| {
            cx.call = Some(testkit::call(Endpoint::Chat, r#"{"model":"m","messages":[]}"#));
            cx.event_stream = true;
            cx.metered.deltas = 1;
            cx.first_token = Some(cx.started);
            cx.metered.used = Some(Usage {
                completion_tokens: 1,
                ..Usage::default()
            });
        });
        assert!(first.is_some() && between.is_none());
        let (upstream, first, ..) = run(|cx| {
            cx.call = Some(testkit::call(Endpoint::Chat, r#"{"model":"m","messages":[]}"#));
            cx.started -= Duration::from_secs(1);
            cx.attempts = vec![attempt(300_000)];
        });
        assert_eq!((upstream, first), (Some(Duration::from_millis(300)), None));
    }
}
