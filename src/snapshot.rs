//! One generation of the config, built: what a request sees from its first byte to its last.

use crate::admin::{self, Policy};
use crate::conf::{Conf, Fallbacks, HealthChecks, Limits, Timeouts};
use crate::proxy::client::Networks;
use crate::proxy::lanes::{Lanes, Management};
/// What `/model/info` tells of.
pub use crate::proxy::models::{Entry, Models};
use crate::proxy::services::Services;
use crate::proxy::throttle::Throttle;
use crate::shared::meters;
use crate::shared::period::{self, Calendar, Reset};
use filters::contract::Registry;
use filters::contract::ports::Ports;
use filters::model::key::KeyHash;
use filters::model::limits::Limits as AccountLimits;
use http::HeaderValue;
use std::sync::Arc;

/// Never changes. A new config makes a new one; the old goes with its last request.
pub struct Snapshot {
    pub models: Arc<Models>,
    pub fallbacks: Fallbacks,
    pub lanes: Lanes,
    pub services: Arc<Services>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    /// How deployments are looked after.
    pub health: HealthChecks,
    pub networks: Networks,
    /// The same for `/metrics`, where others may count as internal.
    pub scrapers: Networks,
    pub throttle: Option<Arc<Throttle>>,
    /// Budgets and limits of the whole gateway, and when budgets start anew.
    pub meters: meters::Settings,
    /// What new keys may have.
    pub policy: Arc<Policy>,
    /// The master key, by its hash.
    pub master: Option<KeyHash>,
    /// What answers over TLS tell browsers about coming by TLS alone.
    pub hsts: Option<HeaderValue>,
}

impl Snapshot {
    /// `Err` is a sentence about what in the config cannot be built.
    pub fn new(conf: &Conf, registry: &Registry, ports: &Ports) -> Result<Self, String> {
        let management = Management {
            paths: admin::paths(),
            open: admin::open_paths(),
            is_info: admin::is_info,
            sees_all: admin::sees_all,
        };
        let services = Arc::new(Services::new(conf)?);
        Ok(Self {
            models: Arc::new(Models::new(conf)?),
            fallbacks: conf.fallbacks.clone(),
            lanes: Lanes::new(conf, registry, ports, &management, &services)?,
            services,
            limits: conf.tollkeeper.limits.clone(),
            timeouts: conf.tollkeeper.timeouts.clone(),
            health: conf.tollkeeper.watch.health.clone(),
            networks: Networks {
                internal: conf.tollkeeper.internal_networks.clone(),
                proxies: conf.tollkeeper.trusted_proxies.clone(),
            },
            scrapers: Networks {
                internal: match conf.tollkeeper.metrics.allow.as_slice() {
                    [] => conf.tollkeeper.internal_networks.clone(),
                    allow => allow.to_vec(),
                },
                proxies: conf.tollkeeper.trusted_proxies.clone(),
            },
            throttle: conf
                .tollkeeper
                .rate_limit
                .as_ref()
                .map(|limit| Arc::new(Throttle::new(limit))),
            meters: meter_settings(conf)?,
            policy: Arc::new(Policy::of(&conf.litellm.all)?),
            master: ports.master.as_ref().map(|m| m.hash),
            hsts: match &conf.tollkeeper.tls.hsts {
                Some(hsts) => {
                    Some(HeaderValue::try_from(hsts.value()).map_err(|e| format!("tls.hsts: {e}"))?)
                }
                None => None,
            },
        })
    }

    /// Keeps what the old generation has counted, where the new one counts by the same rule.
    pub fn continue_from(&mut self, old: &Snapshot) {
        self.services.continue_from(&old.services);
        if let (Some(new), Some(old)) = (&mut self.throttle, &old.throttle)
            && new.rule() == old.rule()
        {
            *new = Arc::clone(old);
        }
    }
}

/// What the config says of budgets and limits. `Err` is a sentence.
pub fn meter_settings(conf: &Conf) -> Result<meters::Settings, String> {
    let said = &conf.meters;
    let gateway = AccountLimits::of(&said.gateway);
    let allowances = gateway.models.values().map(|m| &m.budget);
    for allowance in allowances.chain([&gateway.budget]) {
        if let Some(text) = allowance.period.as_deref().filter(|t| !period::is_period(t)) {
            return Err(format!(
                "budget_duration {text:?}: a period is a number and a unit, such as 30d or 1mo"
            ));
        }
    }
    let reset = if said.rolling {
        Reset::Rolling
    } else {
        Reset::Calendar
    };
    Ok(meters::Settings {
        calendar: Calendar {
            zone: said.zone.clone().unwrap_or(jiff::tz::TimeZone::UTC),
            reset,
        },
        gateway,
        end_user_budget_nanos: said.end_user_budget_nanos,
        queue: said.queue.as_ref().map(|q| meters::QueueSettings {
            max_wait: q.max_wait,
            max_waiting: q.max_waiting,
        }),
    })
}
