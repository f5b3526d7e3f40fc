//! Writes each call down, with what it used and cost, before its last byte leaves.

use crate::contract::ports::{Clock, Ledger, Ports};
use crate::contract::{Cx, Filter, Needs, Outcome, Result};
use crate::model::price::ServiceTier;
use crate::model::record::{Record, Status};
use bytes::Bytes;
use std::sync::Arc;

pub struct Spend {
    ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
}

impl Spend {
    pub fn new(ports: &Ports) -> Self {
        Self {
            ledger: Arc::clone(&ports.ledger),
            clock: Arc::clone(&ports.clock),
        }
    }

    fn write(&self, cx: &mut Cx, status: Status, http_status: u16, error: Option<String>) {
        // Before the body was read there was no call, and refusals of strangers are not the ledger's.
        let Some(call) = &cx.call else { return };
        cx.recorded = true;
        let used = cx.metered.used.unwrap_or_default();
        let deployment = cx.deployment.as_ref();
        let cost = match (deployment, &cx.metered.used) {
            (Some(d), Some(used)) => {
                let tier = call
                    .service_tier
                    .as_deref()
                    .map_or(ServiceTier::Standard, ServiceTier::parse);
                d.price
                    .as_ref()
                    .and_then(|p| p.cost(used, call.endpoint.into(), tier))
                    .map(|c| c.0)
            }
            // Nothing was answered, so nothing is owed.
            _ => Some(0),
        };
        cx.cost_nanos = cost;
        let key = cx.caller.key();
        let micros_at = |t: std::time::Instant| {
            cx.started_micros
                .saturating_add(t.duration_since(cx.started).as_micros() as i64)
        };
        self.ledger.append(Record {
            request_id: cx.request_id.clone(),
            endpoint: call.endpoint,
            key_hash: cx.caller.key_hash(),
            key_alias: key.and_then(|k| k.key_alias.clone()),
            user_id: cx.caller.user_id().map(Into::into),
            team_id: key.and_then(|k| k.team_id.clone()),
            end_user: call.user.clone(),
            requested_model: call.requested_model.clone(),
            model_group: cx.catalog.group_of(&call.model).unwrap_or_default().to_string(),
            model: cx.upstream_model.clone(),
            deployment_id: deployment.map(|d| d.id.clone()).unwrap_or_default(),
            provider: deployment.map(|d| d.provider.clone()).unwrap_or_default(),
            stream: call.stream,
            status,
            http_status,
            error,
            prompt_tokens: used.prompt_tokens,
            completion_tokens: used.completion_tokens,
            cached_tokens: used.cached_tokens,
            cache_creation_tokens: used.cache_creation_tokens,
            reasoning_tokens: used.reasoning_tokens,
            characters: used.characters,
            audio_millis: used.seconds_milli,
            images: used.images,
            spend_nanos: cost.unwrap_or(0),
            priced: cost.is_some(),
            estimated: used.estimated,
            clamped: used.clamped,
            started_micros: cx.started_micros,
            first_byte_micros: cx.first_byte.map(micros_at),
            ended_micros: self.clock.now_micros().max(cx.started_micros),
            attempts: cx.attempts.clone(),
            tags: call.tags.clone(),
            metadata: call
                .metadata
                .as_ref()
                .map(|m| String::from_utf8_lossy(m).into_owned()),
            client_ip: cx.client_ip.to_string(),
            user_agent: cx.user_agent.clone(),
            bytes_in: cx.bytes_in,
            bytes_out: cx.bytes_out,
        });
    }
}

impl Filter for Spend {
    fn needs(&self) -> Needs {
        Needs {
            response_chunks: true,
            logging: true,
            ..Needs::NONE
        }
    }

    fn response_body_filter(&self, cx: &mut Cx, chunk: &mut Bytes, end: bool) -> Result<()> {
        if (end || cx.metered.done) && !cx.recorded {
            cx.bytes_out = cx.bytes_out.saturating_add(chunk.len() as u64);
            let failed = cx.response_status >= 400;
            let (status, error) = match (failed, &cx.metered.error) {
                (true, e) => (
                    Status::Failure,
                    e.clone()
                        .or_else(|| Some(format!("upstream answered {}", cx.response_status))),
                ),
                (false, Some(e)) => (Status::Cut, Some(e.clone())),
                (false, None) => (Status::Success, None),
            };
            self.write(cx, status, cx.response_status, error);
        }
        Ok(())
    }

    /// Calls that ended before their last byte: refusals, hang-ups, dead upstreams.
    fn logging(&self, cx: &mut Cx, outcome: &Outcome) {
        if !cx.recorded {
            self.write(cx, outcome.status, outcome.http_status, outcome.error.clone());
        }
    }
}
