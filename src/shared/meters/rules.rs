//! What the config says of limits, one generation of it: decided by as a whole, replaced as a whole.

use super::subject::Subject;
use super::{Meters, Settings};
use filters::model::account::Kind;
use std::sync::OnceLock;

pub struct Rules {
    pub settings: Settings,
    /// Another calendar has another number: whose period was made by an earlier one makes it anew.
    pub calendars: u32,
    /// The whole gateway, with what limits it.
    gateway: OnceLock<Option<Subject>>,
}

impl Rules {
    pub fn first(settings: Settings) -> Self {
        Self {
            settings,
            calendars: 0,
            gateway: OnceLock::new(),
        }
    }

    /// What comes after these.
    pub fn next(&self, settings: Settings) -> Self {
        let other = u32::from(settings.calendar != self.settings.calendar);
        Self {
            calendars: self.calendars.wrapping_add(other),
            ..Self::first(settings)
        }
    }

    pub fn gateway(&self, meters: &Meters) -> Option<&Subject> {
        let limits = &self.settings.gateway;
        self.gateway
            .get_or_init(|| Subject::new(meters, Kind::Gateway, "", None, limits, true))
            .as_ref()
    }
}
