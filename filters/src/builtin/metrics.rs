//! Counts each request once, when it is over.

use crate::contract::ports::{Metrics as Port, Observation, Ports};
use crate::contract::{Cx, Filter, Needs, Outcome};
use std::sync::Arc;

pub struct Metrics {
    port: Arc<dyn Port>,
}

impl Metrics {
    pub fn new(ports: &Ports) -> Self {
        Self {
            port: Arc::clone(&ports.metrics),
        }
    }
}

impl Filter for Metrics {
    fn needs(&self) -> Needs {
        Needs {
            logging: true,
            ..Needs::NONE
        }
    }

    fn logging(&self, cx: &mut Cx, outcome: &Outcome) {
        let usage = cx.metered.used.as_ref();
        self.port.observe(&Observation {
            lane: &cx.lane,
            model: cx.call.as_ref().and_then(|c| cx.catalog.group_of(&c.model)),
            status: outcome.http_status,
            error: outcome.error_kind,
            seconds: cx.started.elapsed().as_secs_f64(),
            first_byte_seconds: cx.first_byte.map(|t| t.duration_since(cx.started).as_secs_f64()),
            prompt_tokens: usage.map_or(0, |u| u.prompt_tokens),
            completion_tokens: usage.map_or(0, |u| u.completion_tokens),
            cost_nanos: cx.cost_nanos,
        });
    }
}
