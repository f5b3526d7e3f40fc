//! The call driver: reads a model call once, tries deployments until one answers, and hands the answer
//! to the client.
//!
//! Pingora's own loop picks a peer before the body is read, replays at most 64 KiB of it, and cannot
//! read the error body of an attempt. A model call needs all three, so this loop stands over Pingora's
//! connector instead (its pool, its TLS, its HTTP/1 and HTTP/2 clients). One try at one deployment is
//! in `attempt`, the way of its answer in `answer`.

use super::attempt::{Attempted, Failure, Ready, Shown};
use super::balance::{Next, Round};
use super::cooldown::Symptom;
use super::lanes::Lane;
use super::watch::{Watched, watch};
use super::{Gateway, ROOM_PIECE, State, body};
use crate::retry_after;
use filters::builtin::limits;
use filters::contract::{Answer, Call, Fault, Refusal, Stop, Verdict};
use filters::model::call::Endpoint;
use filters::model::deployment::Deployment;
use filters::model::record::{self, Attempt, Status};
use http::{HeaderName, header};
use pingora::prelude::*;
use pingora_proxy::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// How a call ends when no deployment's good answer is there to be passed on.
pub(super) enum End {
    Stop(Stop),
    /// A filter made the answer.
    Answer(Answer),
    /// The client left.
    Gone(Box<Error>),
    /// The connection has to be closed; the reason is noted.
    Broken(Box<Error>),
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        End::Stop(stop)
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        End::Stop(refusal.into())
    }
}

impl Gateway {
    /// Handles a model call from its head to its last byte. `Err` = the connection is of no more use.
    pub(super) async fn call(
        &self,
        session: &mut Session,
        state: &mut State,
        endpoint: Endpoint,
        path_model: Option<String>,
    ) -> Result<()> {
        let lane = Arc::clone(&state.lane);
        // Everything up to the answer is done with when the answer flows, so its state is not carried
        // along for the hours that a stream may take.
        let total = state.snapshot.timeouts.total;
        let until = state.cx.started.checked_add(total);
        let mut alarm = std::mem::take(&mut state.alarms.call);
        let finding = Box::pin(self.find_answer(session, state, &lane, endpoint, path_model.as_deref()));
        let found = match until {
            Some(until) => alarm.within(until.into(), finding).await,
            None => Some(finding.await),
        };
        state.alarms.call = alarm;
        let found = found.unwrap_or_else(|| {
            Err(Stop::from(Fault {
                status: 408,
                kind: "timeout_error",
                shown: format!(
                    "The call took longer than the {} seconds a call may take.",
                    total.as_secs()
                ),
                cause: "timeouts.total".into(),
                headers: Vec::new(),
            })
            .into())
        });
        let ended = match found {
            Ok(Found::Ready(ready)) => self.deliver(session, state, &lane, ready).await,
            Ok(Found::Error(shown)) => Box::pin(self.pass_error(session, state, &lane, shown)).await,
            Ok(Found::Refused(stop)) => Err(End::Stop(stop)),
            Ok(Found::Resting) => Err(End::Stop(unavailable("all of its deployments are cooling"))),
            Err(end) => Err(end),
        };
        match ended {
            Ok(()) => Ok(()),
            Err(End::Stop(stop)) => self.refuse(session, state, &stop).await,
            Err(End::Answer(answer)) => self.send(session, state, answer).await,
            Err(End::Gone(e)) => {
                state.ended(Status::Aborted, 499, Some("the client left"), Some("client_gone"));
                Err(e)
            }
            Err(End::Broken(e)) => Err(e),
        }
    }

    /// Everything before the first byte of the answer goes out.
    async fn find_answer(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        endpoint: Endpoint,
        path_model: Option<&str>,
    ) -> Result<Found, End> {
        if let Verdict::Answer(a) = lane
            .chain
            .request_filter(&mut state.cx, session.req_header())
            .await?
        {
            return Err(End::Answer(a));
        }
        let limits = &state.snapshot.limits;
        let limit = if endpoint.is_multipart() {
            limits.multipart_body
        } else {
            limits.json_body
        };
        state.room = self.make_room(session, limit)?;
        let body = match body::read(session, limit, &state.snapshot.timeouts).await {
            body::Read::Whole(body) => body,
            body::Read::Refused(r) => return Err(End::Stop(r.into())),
            body::Read::Gone(e) => return Err(End::Gone(e)),
        };
        state.cx.bytes_in = body.len() as u64;
        let content_type = content_type(session, endpoint)?;
        // Only where any model will do: a speech cannot be made by whatever stands first.
        let default = match endpoint {
            Endpoint::Chat | Endpoint::Completions => state.snapshot.models.default_model(),
            _ => None,
        };
        let call = Call::parse(endpoint, body, content_type, path_model, default)?;
        state.cx.call = Some(with_headers(call, session));
        if let Verdict::Answer(a) = lane
            .chain
            .call_filter(&mut state.cx, session.req_header())
            .await?
        {
            return Err(End::Answer(a));
        }
        self.try_models(session, state, lane).await
    }

    /// Sets room aside for a large body. Many of them at once must not take all the memory there is.
    fn make_room(&self, session: &Session, limit: u64) -> Result<Option<OwnedSemaphorePermit>, Stop> {
        let announced = session
            .get_header(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        // One that does not say how long it is, is not small.
        let pieces = announced.unwrap_or(16 * ROOM_PIECE) / ROOM_PIECE;
        if pieces == 0 || announced.is_some_and(|n| n > limit) {
            // Too small to count, or to be refused for its size in a moment.
            return Ok(None);
        }
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        Arc::clone(&self.room)
            .try_acquire_many_owned(pieces)
            .map(Some)
            .map_err(|_| {
                let mut fault = Fault::unavailable(
                    "The gateway holds as many large requests as it can. Try again in a moment.",
                    format!("no room for {pieces} pieces of {ROOM_PIECE} bytes"),
                );
                fault.headers = vec![("retry-after", "1".into())];
                fault.into()
            })
    }

    /// Counts and tells that a deployment steps back for so long. `status`: the upstream's, or 0.
    pub(super) fn steps_back(&self, d: &Deployment, symptom: Symptom, status: u16, time: Duration) {
        let reason = symptom.as_str();
        self.telemetry.deployments.cooled(&d.id, reason, status);
        // Pauses this short are an upstream's way to slow callers down, and may come with every call.
        let level = match time < Duration::from_secs(1) {
            true => log::Level::Debug,
            false => log::Level::Warn,
        };
        log::log!(
            level,
            "event=cooldown model={:?} deployment={:?} reason={reason} status={status} seconds={}",
            d.model_name,
            d.id,
            time.as_secs_f64()
        );
    }

    /// Tries the deployments of the model until one answers: each once, and again in further rounds
    /// where retries are configured. `spares`: none that is cooling, as another model may do.
    pub(super) async fn try_deployments(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
        spares: bool,
    ) -> Result<Found, End> {
        let models = Arc::clone(&state.snapshot.models);
        let model = state
            .cx
            .call
            .as_ref()
            .map(|c| c.model.clone())
            .unwrap_or_default();
        let Some(found) = models.find(&model) else {
            return Err(Stop::from(Fault::internal("the model was resolved and is gone")).into());
        };
        let mut round = Round::new(spares);
        let mut rounds = 0;
        let mut last: Option<Failure> = None;
        loop {
            let tokens = || {
                let call = state.cx.call.as_ref();
                call.map_or(0, |c| limits::estimate(c, &*state.cx.catalog).tokens)
            };
            let next = found.group.next(&mut round, tokens);
            if let (Next::Full(millis), None, 0) = (&next, &last, rounds) {
                return Ok(Found::Refused(full(&model, *millis).into()));
            }
            let Next::Try(drawn, stay) = next else {
                // All have failed, or take no more. Another round may find them recovered.
                let pause = found
                    .group
                    .pause(rounds)
                    .filter(|p| !round.is_empty() && *p < state.time_left());
                let Some(pause) = pause else { break };
                if let Watched::ClientGone(e) = watch(session, tokio::time::sleep(pause)).await {
                    return Err(End::Gone(e));
                }
                round.again();
                rounds += 1;
                continue;
            };
            state.stay = stay;
            let deployment = drawn.deployment;
            let begun = Instant::now();
            let (failure, is_final) = match self
                .attempt(session, state, lane, &found, deployment, &model)
                .await
            {
                Attempted::Ready(mut ready) => {
                    if let Some(bearing) = drawn.bearing {
                        bearing.answered(drawn.stance);
                        // A stream may still break off.
                        ready.bearing = (!ready.whole).then(|| (bearing.clone(), drawn.stance));
                    }
                    return Ok(Found::Ready(ready));
                }
                Attempted::ClientGone(e) => return Err(End::Gone(e)),
                Attempted::Stopped(stop) => return Err(stop.into()),
                Attempted::Failed(failure) => (failure, false),
                Attempted::Final(failure) => (failure, true),
            };
            log::debug!(
                "request_id={} deployment={} attempt={} cause={:?}",
                state.cx.request_id,
                deployment.id,
                state.cx.attempts.len() + 1,
                failure.cause
            );
            let (status, error) = match &failure.shown {
                Shown::Theirs { head, .. } => (
                    head.status.as_u16(),
                    format!("it answered {}", head.status.as_u16()),
                ),
                Shown::Ours(fault) => (0, fault.shown.clone()),
            };
            state.cx.attempts.push(Attempt {
                deployment_id: deployment.id.clone(),
                status,
                error: Some(error),
                duration_micros: begun.elapsed().as_micros() as i64,
            });
            let held = failure
                .symptom
                // A call whose own time is over says nothing of a deployment's.
                .filter(|s| *s != Symptom::Timeout || !state.time_left().is_zero());
            if let (Some(bearing), Some(symptom)) = (drawn.bearing, held) {
                let told = match &failure.shown {
                    Shown::Theirs { head, .. } => retry_after::read(&head.headers),
                    Shown::Ours(_) => None,
                };
                if let Some(time) = bearing.failed(drawn.stance, symptom, told) {
                    self.steps_back(deployment, symptom, status, time);
                }
            }
            last = Some(failure);
            if is_final {
                break;
            }
        }
        match last {
            Some(failure) => Ok(Found::Error(failure.shown)),
            None if spares && !found.group.deployments.is_empty() => Ok(Found::Resting),
            None => Err(unavailable("its name has no deployments").into()),
        }
    }
}

/// What became of a model.
pub(super) enum Found {
    Ready(Box<Ready>),
    /// Every deployment failed; this is the last word.
    Error(Shown),
    /// Every deployment is at its limits, or what is asked for cannot be said in its language.
    Refused(Stop),
    /// All are cooling, and none was asked.
    Resting,
}

fn unavailable(cause: &str) -> Stop {
    Fault::unavailable("No deployments available for the selected model.", cause).into()
}

/// Every deployment of the name is at its limits.
fn full(model: &str, millis: u64) -> Refusal {
    let seconds = millis.div_ceil(1000).max(1);
    let model: String = model.chars().filter(|c| !c.is_control()).take(96).collect();
    Refusal::new(
        429,
        "throttling_error",
        format!("No deployments available for selected model, Try again in {seconds} seconds. Passed model={model}."),
    )
    .header("retry-after", seconds.to_string())
    .header("retry-after-ms", millis.max(1).to_string())
}

fn content_type(session: &Session, endpoint: Endpoint) -> Result<String, Refusal> {
    let given = session
        .get_header(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if endpoint.is_multipart() {
        return Ok(given.to_string());
    }
    if given.starts_with("multipart/") {
        return Err(Refusal::bad_request(format!(
            "{} takes a JSON body.",
            endpoint.path()
        )));
    }
    Ok("application/json".to_string())
}

static X_LITELLM_TAGS: HeaderName = HeaderName::from_static("x-litellm-tags");
/// Who the end user is; the first that is there wins over the body's `user`.
static END_USER: [HeaderName; 2] = [
    HeaderName::from_static("x-litellm-customer-id"),
    HeaderName::from_static("x-litellm-end-user-id"),
];

/// Tags and the end user may also come in LiteLLM's headers.
fn with_headers(mut call: Call, session: &Session) -> Call {
    let named = END_USER.iter().find_map(|name| {
        let text = session.get_header(name)?.to_str().ok()?.trim();
        (!text.is_empty()).then(|| text.to_string())
    });
    if let Some(mut id) = named {
        record::clean(&mut id, record::LONGEST_NAME);
        call.user = Some(id);
    }
    if let Some(tags) = session.get_header(&X_LITELLM_TAGS).and_then(|v| v.to_str().ok()) {
        call.tags.extend(
            tags.split(',')
                .map(str::trim)
                .filter(|t| !t.is_empty())
                .take(64)
                .map(Into::into),
        );
    }
    call
}
