//! Hands `/metrics` to those who may read it. What stands on it is `telemetry::metrics`' to say.

use super::{Gateway, State};
use filters::contract::{Answer, Refusal, Verdict};
use filters::model::key::Caller;
use pingora::prelude::*;
use pingora_proxy::Session;
use std::sync::Arc;

impl Gateway {
    pub(super) async fn scrape(&self, session: &mut Session, state: &mut State) -> Result<()> {
        let lane = Arc::clone(&state.lane);
        let asked = lane.chain.request_filter(&mut state.cx, session.req_header());
        match asked.await {
            Ok(Verdict::Continue) if !may_read(&state.cx.caller) => {
                self.refuse(session, state, &not_yours().into()).await
            }
            Ok(Verdict::Continue) => {
                let page = Arc::clone(&self.telemetry).scrape().await;
                let answer = Answer {
                    status: 200,
                    headers: vec![("content-type", "text/plain; version=0.0.4; charset=utf-8".into())],
                    body: page.into(),
                };
                self.send(session, state, answer).await
            }
            Ok(Verdict::Answer(answer)) => self.send(session, state, answer).await,
            Err(stop) => self.refuse(session, state, &stop).await,
        }
    }
}

/// Budgets and spend of everybody stand there, so a key has to be one that may see everybody's. Whoever was let
/// in without one was let in by address.
fn may_read(caller: &Caller) -> bool {
    let sees_all = |role: Option<&str>| role == Some("proxy_admin_viewer");
    match caller {
        Caller::Key(key) => {
            let role = key.user.as_ref().and_then(|u| u.text("user_role"));
            caller.is_admin() || (key.lent_by().is_none() && sees_all(role))
        }
        Caller::Master { .. } | Caller::Anonymous => true,
    }
}

fn not_yours() -> Refusal {
    Refusal::new(
        403,
        "auth_error",
        "Metrics tell of everybody's spend. They are read from an address in `metrics.allow`, with the master key, or \
         with a key of a user whose role is proxy_admin or proxy_admin_viewer.",
    )
}
