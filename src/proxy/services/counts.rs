//! What became of the requests that went to a backend, for the metrics. Labels are names and addresses of the
//! config and words from a fixed list, so that nobody outside makes a series.

use super::Services;
use super::standing::Standing;
use crate::telemetry::metrics::catalog as c;
use crate::telemetry::metrics::count::Counter;
use crate::telemetry::metrics::page::Page;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The first digit of a status decides; the first word is for requests without an answer.
const WORDS: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Requests of one backend by what came back.
#[derive(Debug, Default)]
pub struct Counts([Counter; WORDS.len()]);

impl Counts {
    /// A request is over; `None` = there was no answer.
    pub fn count(&self, status: Option<u16>) {
        let class = status.map_or(0, |s| usize::from(s / 100));
        // What is no status at all is no answer either.
        let counter = self.0.get(class).or(self.0.first());
        if let Some(counter) = counter {
            counter.add(1);
        }
    }
}

impl Services {
    /// Shows how each backend of the present config stands.
    pub fn gather(&self, page: &mut Page) {
        for service in self.iter() {
            // A backend may be named twice, and is one series all the same.
            let mut places: BTreeMap<String, Vec<&Arc<Standing>>> = BTreeMap::new();
            for backend in &service.backends {
                let standings = places.entry(backend.url()).or_default();
                if !standings.iter().any(|s| Arc::ptr_eq(s, backend.standing())) {
                    standings.push(backend.standing());
                }
            }
            for (url, standings) in &places {
                let labels = [service.name.as_str(), url.as_str()];
                let is_well = standings.iter().any(|s| s.is_well());
                page.int(&c::SERVICE_UP, &labels, u64::from(is_well));
                let in_flight: usize = standings.iter().map(|s| s.in_flight()).sum();
                page.int(&c::SERVICE_IN_FLIGHT, &labels, in_flight as u64);
                for (class, word) in WORDS.iter().enumerate() {
                    let of_class = standings.iter().filter_map(|s| s.counts.0.get(class));
                    let sum: u64 = of_class.map(Counter::get).sum();
                    if sum > 0 {
                        page.int(&c::SERVICE_REQUESTS, &[service.name.as_str(), url, word], sum);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_word() {
        let counts = Counts::default();
        for status in [
            None,
            Some(101),
            Some(204),
            Some(302),
            Some(404),
            Some(503),
            Some(599),
        ] {
            counts.count(status);
        }
        counts.count(Some(0));
        counts.count(Some(999));
        let found: Vec<u64> = counts.0.iter().map(Counter::get).collect();
        assert_eq!(found, [3, 1, 1, 1, 1, 2]);
    }
}
