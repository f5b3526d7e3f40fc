//! Where a call goes on when no deployment of its model would do: to another model, which the config names, or the call
//! itself. Each is asked for its own limits and money first (`fallback_filter`). Where none answers, the client gets what
//! became of the model that it asked for.

use super::attempt::Shown;
use super::call::{End, Found};
use super::lanes::Lane;
use super::models::Models;
use super::{Gateway, State};
use crate::conf::Fallbacks;
use filters::contract::cx::Fallback;
use filters::dialects::ErrorClass;
use filters::model::deployment::Deployment;
use http::StatusCode;
use pingora_proxy::Session;
use std::collections::VecDeque;
use std::sync::Arc;

/// The models of one call.
struct Way<'a> {
    fallbacks: &'a Fallbacks,
    models: &'a Models,
    /// What the call itself wants tried after its own model.
    wanted: Vec<String>,
    /// Where it was; its own model first.
    been: Vec<String>,
    next: VecDeque<String>,
    /// Those that were passed over, as all their deployments are cooling.
    resting: VecDeque<String>,
}

/// How a model failed.
struct Failed {
    found: Found,
    model: String,
    deployment: Option<Arc<Deployment>>,
    upstream_model: String,
}

impl Gateway {
    /// Tries the call's model, and then those that come after it.
    pub(super) async fn try_models(
        &self,
        session: &mut Session,
        state: &mut State,
        lane: &Lane,
    ) -> Result<Found, End> {
        let snapshot = Arc::clone(&state.snapshot);
        let wanted = state.cx.call.as_ref().filter(|call| !call.no_fallbacks);
        let Some(call) = wanted.filter(|c| !c.fallbacks.is_empty() || !snapshot.fallbacks.is_empty()) else {
            return self.try_deployments(session, state, lane, false).await;
        };
        let mut model = call.model.clone();
        let mut way = Way {
            fallbacks: &snapshot.fallbacks,
            models: &snapshot.models,
            wanted: call.fallbacks.clone(),
            been: Vec::new(),
            next: VecDeque::new(),
            resting: VecDeque::new(),
        };
        // A model that is to be left alone is passed over if there is another.
        let mut spares = !way.after(&model, None).is_empty();
        let mut first: Option<Failed> = None;
        loop {
            let found = match self.try_deployments(session, state, lane, spares).await {
                // What another model cannot do is nothing that was asked for.
                Err(End::Stop(stop)) if !way.been.is_empty() => Found::Refused(stop),
                found => found?,
            };
            if let Some(own) = way.been.first().filter(|own| **own != model) {
                let group = |name: &str| snapshot.models.find(name).map(|f| f.group.name.clone());
                state.cx.fallbacks.push(Fallback {
                    from: group(own).unwrap_or_default(),
                    to: group(&model).unwrap_or_default(),
                    answered: matches!(found, Found::Ready(_)),
                });
            }
            if matches!(found, Found::Ready(_)) {
                return Ok(found);
            }
            way.leave(&model, &found, spares);
            // What became of the call's own model is told, once it was asked.
            if first.as_ref().is_none_or(|f| f.model == model) {
                first = Some(Failed {
                    found,
                    model: model.clone(),
                    deployment: state.cx.deployment.clone(),
                    upstream_model: state.cx.upstream_model.clone(),
                });
            }
            model = loop {
                if way.next.is_empty() && spares {
                    // Nobody is left but those.
                    spares = false;
                    way.next = std::mem::take(&mut way.resting);
                }
                let next = way.next.pop_front().filter(|_| !state.time_left().is_zero());
                let (Some(next), Some(call)) = (next, &mut state.cx.call) else {
                    return told(state, first);
                };
                call.model.clone_from(&next);
                match lane.chain.fallback_filter(&mut state.cx).await {
                    Ok(()) => break next,
                    Err(stop) => log::debug!(
                        "request_id={} fallback={next:?} passed over: {}",
                        state.cx.request_id,
                        stop.shown()
                    ),
                }
            };
        }
    }
}

/// Ends a call that nobody answered as its own model ended it.
fn told(state: &mut State, first: Option<Failed>) -> Result<Found, End> {
    let Some(first) = first else {
        return Ok(Found::Resting);
    };
    if let Some(call) = &mut state.cx.call {
        call.model = first.model;
    }
    state.cx.deployment = first.deployment;
    state.cx.upstream_model = first.upstream_model;
    Ok(first.found)
}

impl Way<'_> {
    /// A model did not answer: those that come after it are next.
    fn leave(&mut self, model: &str, found: &Found, spares: bool) {
        let class = match found {
            Found::Error(Shown::Theirs { head, body }) => Some(class(head.status, body)),
            _ => None,
        };
        if matches!(found, Found::Resting) && spares {
            self.resting.push_back(model.to_string());
        }
        if self.been.iter().any(|b| b == model) {
            return;
        }
        let after = self.after(model, class);
        self.been.push(model.to_string());
        let most = self.fallbacks.most as usize + 1;
        let mut at = 0;
        for name in after {
            let is_known = self.been.contains(&name) || self.next.contains(&name);
            if !is_known && self.been.len() + self.next.len() < most && self.models.find(&name).is_some() {
                self.next.insert(at, name);
                at += 1;
            }
        }
    }

    /// The models that come after this one when it failed so.
    fn after(&self, model: &str, class: Option<ErrorClass>) -> Vec<String> {
        if self.been.is_empty() && !self.wanted.is_empty() {
            return self.wanted.clone();
        }
        let found = self.models.find(model);
        let group = found.as_ref().map_or(model, |f| &f.group.name);
        let of = |names| Fallbacks::after(names, &[model, group]);
        let special = match class {
            Some(ErrorClass::ContextWindow) => of(&self.fallbacks.context_window),
            Some(ErrorClass::ContentPolicy) => of(&self.fallbacks.content_policy),
            _ => &[],
        };
        match special {
            [] => of(&self.fallbacks.general).to_vec(),
            _ => special.to_vec(),
        }
    }
}

fn class(status: StatusCode, body: &[u8]) -> ErrorClass {
    ErrorClass::of(status.as_u16(), &String::from_utf8_lossy(body))
}
