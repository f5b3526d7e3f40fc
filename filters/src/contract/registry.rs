//! Filters by name: the built-in ones and a user's own.

use super::chain::Chain;
use super::filter::Filter;
use super::ports::Ports;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

type Factory = Arc<dyn Fn(&Value, &Ports) -> Result<Arc<dyn Filter>, String> + Send + Sync>;

/// What a lane's `filters:` list may name.
#[derive(Clone, Default)]
pub struct Registry {
    factories: BTreeMap<String, Factory>,
}

impl Registry {
    /// Adds a filter, or takes the place of one of the same name. `make` gets the settings written
    /// in the lane (null when there are none) and the ports; its error is shown at start-up.
    #[must_use]
    pub fn with<F>(mut self, name: &str, make: F) -> Self
    where
        F: Fn(&Value, &Ports) -> Result<Arc<dyn Filter>, String> + Send + Sync + 'static,
    {
        self.factories.insert(name.to_string(), Arc::new(make));
        self
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.factories.keys().map(String::as_str)
    }

    /// Builds one filter. An unknown name or bad settings is an error that says so.
    pub fn filter(&self, name: &str, settings: &Value, ports: &Ports) -> Result<Arc<dyn Filter>, String> {
        let make = self.factories.get(name).ok_or_else(|| {
            let known: Vec<_> = self.names().collect();
            format!(
                "there is no filter \"{name}\"; known filters: {}",
                known.join(", ")
            )
        })?;
        make(settings, ports).map_err(|e| format!("filter \"{name}\": {e}"))
    }

    /// Builds a chain, in this order.
    pub fn chain(&self, entries: &[(String, Value)], ports: &Ports) -> Result<Chain, String> {
        let filters = entries
            .iter()
            .map(|(name, settings)| Ok((name.clone(), self.filter(name, settings, ports)?)))
            .collect::<Result<Vec<_>, String>>()?;
        Ok(Chain::new(filters))
    }
}
