//! Writes each call down, with what it used and cost, before its last byte leaves.

use crate::contract::ports::{Clock, Ledger, Ports};
use crate::contract::{Cx, Filter, Needs, Outcome, Result};
use crate::model::price::ServiceTier;
use crate::model::record::{Record, Status};
use bytes::Bytes;
use std::net::IpAddr;
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
            (Some(d), Some(used)) => d.price.as_ref().and_then(|p| {
                let at = |tier| p.cost(used, call.endpoint.into(), tier).map(|c| c.0);
                match cx.metered.service_tier {
                    Some(told) => at(told),
                    // Asking for a cheap tier is not getting it; asking for a dear one may be.
                    None => at(ServiceTier::Standard).max(
                        call.service_tier
                            .as_deref()
                            .and_then(|asked| at(ServiceTier::parse(asked))),
                    ),
                }
            }),
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
            organization_id: key.and_then(|k| k.organization_id().map(Into::into)),
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
            first_byte_micros: cx.answer_began().map(micros_at),
            ended_micros: self.clock.now_micros().max(cx.started_micros),
            attempts: cx.attempts.clone(),
            tags: tags(key.map_or(&[], |k| &k.tags), &call.tags),
            metadata: call
                .metadata
                .as_ref()
                .map(|m| String::from_utf8_lossy(m).into_owned()),
            client_ip: address(cx.client_ip),
            user_agent: cx.user_agent.clone(),
            bytes_in: cx.bytes_in,
            bytes_out: cx.bytes_out,
        });
    }
}

/// As it is usually written.
fn address(ip: IpAddr) -> String {
    let IpAddr::V4(v4) = ip else {
        return ip.to_string();
    };
    let mut text = String::with_capacity("255.255.255.255".len());
    for (i, part) in v4.octets().into_iter().enumerate() {
        if i > 0 {
            text.push('.');
        }
        text.push_str(itoa::Buffer::new().format(part));
    }
    text
}

/// The key's own tags and the caller's, each once.
fn tags(own: &[String], given: &[String]) -> Vec<String> {
    let mut tags = own.to_vec();
    for tag in given {
        if !own.contains(tag) {
            tags.push(tag.clone());
        }
    }
    tags
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::usage::MeterUsage;
    use crate::contract::Call;
    use crate::model::call::Endpoint;
    use crate::model::money::Femto;
    use crate::model::price::{Meter, Price, Rate};
    use crate::testkit::{self, Kit};

    fn rate(meter: Meter, tier: ServiceTier, nanos: u64) -> Rate {
        Rate {
            meter,
            above: 0,
            tier,
            price: format!("{nanos}e-9").parse::<Femto>().unwrap(),
        }
    }

    /// The row of a call that was answered so, by a deployment with these prices.
    fn row(call: Call, answer: &str, rates: Vec<Rate>) -> Record {
        let kit = Kit::default();
        let mut cx = kit.cx();
        let mut d = testkit::deployment("openai");
        d.price = Some(Price::new(rates));
        cx.deployment = Some(Arc::new(d));
        cx.call = Some(call);
        cx.response_status = 200;
        let mut chunk = Bytes::copy_from_slice(answer.as_bytes());
        MeterUsage
            .response_body_filter(&mut cx, &mut chunk, true)
            .unwrap();
        Spend::new(&kit.ports())
            .response_body_filter(&mut cx, &mut chunk, true)
            .unwrap();
        kit.ledger.rows().remove(0)
    }

    #[test]
    fn the_answer_says_the_tier_that_is_billed() {
        #[track_caller]
        fn check(asked: &str, answered: &str, spend: i64) {
            let rates = vec![
                rate(Meter::Input, ServiceTier::Standard, 100),
                rate(Meter::Input, ServiceTier::Flex, 50),
                rate(Meter::Input, ServiceTier::Priority, 200),
            ];
            let call = testkit::call(
                Endpoint::Chat,
                &format!(r#"{{"model":"m","messages":[]{asked}}}"#),
            );
            let answer = format!(r#"{{"usage":{{"prompt_tokens":10,"completion_tokens":0}}{answered}}}"#);
            let row = row(call, &answer, rates);
            assert_eq!((row.spend_nanos, row.priced), (spend, true), "{asked} {answered}");
        }
        let (flex, priority) = (r#","service_tier":"flex""#, r#","service_tier":"priority""#);
        check("", "", 1000);
        check(flex, "", 1000);
        check(flex, r#","service_tier":"default""#, 1000);
        check(flex, flex, 500);
        check(priority, "", 2000);
        check(priority, r#","service_tier":"default""#, 1000);
        check("", priority, 2000);
    }

    fn transcription() -> Call {
        let form = format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\n\r\nID3{}\r\n\
             --b\r\nContent-Disposition: form-data; name=\"response_format\"\r\n\r\ntext\r\n\
             --b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b--\r\n",
            "x".repeat(31_997)
        );
        Call::parse(
            Endpoint::Transcriptions,
            form.into(),
            "multipart/form-data; boundary=b".into(),
            None,
            None,
        )
        .unwrap()
    }

    #[test]
    fn audio_whose_length_nobody_tells_is_not_heard_for_nothing() {
        let by_second = || vec![rate(Meter::InputSecond, ServiceTier::Standard, 1000)];
        let silent = row(transcription(), "so it was said", by_second());
        assert_eq!(
            (
                silent.spend_nanos,
                silent.priced,
                silent.estimated,
                silent.audio_millis
            ),
            (2000, true, true, 2000)
        );
        let tokens = r#"{"text":"so","usage":{"input_tokens":3,"output_tokens":1}}"#;
        let told = row(transcription(), tokens, by_second());
        assert_eq!((told.spend_nanos, told.estimated), (2000, true));
        let by_token = vec![rate(Meter::Input, ServiceTier::Standard, 10)];
        let guessed = row(transcription(), "so it was said", by_token);
        assert_eq!((guessed.spend_nanos, guessed.estimated), (200, true));
    }
}
