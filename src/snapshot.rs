//! One generation of the config, built: what a request sees from its first byte to its last.

use crate::conf::{Conf, Limits, Timeouts};
use crate::proxy::client::Networks;
use crate::proxy::lanes::Lanes;
use crate::proxy::models::Models;
use filters::contract::Registry;
use filters::contract::ports::Ports;
use std::sync::Arc;

/// Never changes. A new config makes a new one; the old goes with its last request.
pub struct Snapshot {
    pub models: Arc<Models>,
    pub lanes: Lanes,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub networks: Networks,
}

impl Snapshot {
    /// `Err` is a sentence about what in the config cannot be built.
    pub fn new(conf: &Conf, registry: &Registry, ports: &Ports) -> Result<Self, String> {
        Ok(Self {
            models: Arc::new(Models::new(conf)?),
            lanes: Lanes::new(conf, registry, ports)?,
            limits: conf.tollkeeper.limits.clone(),
            timeouts: conf.tollkeeper.timeouts.clone(),
            networks: Networks {
                internal: conf.tollkeeper.internal_networks.clone(),
                proxies: conf.tollkeeper.trusted_proxies.clone(),
            },
        })
    }
}
