//! The process' Prometheus metrics.

use crate::shared::meters::MeterStats;
use filters::contract::ports::{Metrics, Observation, Why};
use filters::model::account::Kind;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Buckets that fit both a list of models and a stream of minutes, seconds.
const BUCKETS: [f64; 16] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// The process' metrics. Label values come from the config or from fixed lists, so their number is
/// bounded whatever callers send.
pub struct Telemetry {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    first_byte: HistogramVec,
    tokens: IntCounterVec,
    errors: IntCounterVec,
    spend: IntCounterVec,
    unpriced: IntCounterVec,
    in_flight: IntGauge,
    ledger_pending: IntGauge,
    ledger_dead: IntGauge,
    ledger_lost: IntGauge,
    ledger_spool_errors: IntGauge,
    soft_crossed: IntCounterVec,
    limit_refused: IntCounterVec,
    meters: IntGaugeVec,
    limited_in_flight: IntGaugeVec,
    reserved: IntGaugeVec,
    waiting: IntGauge,
    certificates: IntGaugeVec,
}

/// What the gauges show, asked for at each scrape.
pub struct Gauges {
    pub in_flight: usize,
    pub ledger: crate::ledger::LedgerStats,
    pub meters: Vec<(Kind, MeterStats)>,
    /// Calls in the queue.
    pub waiting: usize,
    /// Names, and when their certificates end, seconds since 1970.
    pub certificates: Vec<(String, i64)>,
}

impl Telemetry {
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let c = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(c.clone()))?;
            Ok::<_, prometheus::Error>(c)
        };
        let histogram = |name: &str, help: &str| {
            let h = HistogramVec::new(
                HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()),
                &["model"],
            )?;
            registry.register(Box::new(h.clone()))?;
            Ok::<_, prometheus::Error>(h)
        };
        let gauge = |name: &str, help: &str| {
            let g = IntGauge::new(name, help)?;
            registry.register(Box::new(g.clone()))?;
            Ok::<_, prometheus::Error>(g)
        };
        let gauges = |name: &str, help: &str, label: &str| {
            let g = IntGaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(g.clone()))?;
            Ok::<_, prometheus::Error>(g)
        };
        Ok(Self {
            requests: counter(
                "litellm_requests_total",
                "Requests by model and status.",
                &["model", "status"],
            )?,
            duration: histogram(
                "litellm_request_duration_seconds",
                "From the request's head to its last byte.",
            )?,
            first_byte: histogram(
                "tollkeeper_time_to_first_byte_seconds",
                "From the request's head to the upstream's first byte.",
            )?,
            tokens: counter(
                "litellm_tokens_total",
                "Tokens by model and type.",
                &["model", "type"],
            )?,
            errors: counter(
                "litellm_errors_total",
                "Failed requests by model and code.",
                &["model", "code"],
            )?,
            spend: counter(
                "tollkeeper_spend_nanodollars_total",
                "What calls cost, nano-dollars.",
                &["model"],
            )?,
            unpriced: counter(
                "tollkeeper_unpriced_calls_total",
                "Answered calls of models without a known price.",
                &["model"],
            )?,
            in_flight: gauge(
                "tollkeeper_requests_in_flight",
                "Requests between head and last byte.",
            )?,
            ledger_pending: gauge(
                "tollkeeper_ledger_pending_records",
                "Records on their way to the store.",
            )?,
            ledger_dead: gauge(
                "tollkeeper_ledger_dead_records",
                "Records that the store can never take.",
            )?,
            ledger_lost: gauge(
                "tollkeeper_ledger_lost_records",
                "Records that neither disk nor memory took.",
            )?,
            ledger_spool_errors: gauge(
                "tollkeeper_ledger_spool_errors",
                "Times the disk refused a record.",
            )?,
            soft_crossed: counter(
                "tollkeeper_budget_soft_crossed_total",
                "Soft budgets that were crossed, by kind of subject.",
                &["kind"],
            )?,
            limit_refused: counter(
                "tollkeeper_limit_refused_total",
                "Calls refused by a limit, by kind of subject and what it limits.",
                &["kind", "limit"],
            )?,
            meters: gauges(
                "tollkeeper_limit_meters",
                "Subjects whose limits are in memory, by kind.",
                "kind",
            )?,
            limited_in_flight: gauges(
                "tollkeeper_limited_calls_in_flight",
                "Calls in flight that a limit counts, by kind of subject.",
                "kind",
            )?,
            reserved: gauges(
                "tollkeeper_budget_reserved_nanodollars",
                "Set aside for calls in flight, by kind of subject.",
                "kind",
            )?,
            waiting: gauge(
                "tollkeeper_limited_calls_waiting",
                "Calls that wait for room within their limits.",
            )?,
            certificates: gauges(
                "tollkeeper_tls_certificate_expires_seconds",
                "Until the certificate that is shown for a configured name ends; below zero when it has.",
                "host",
            )?,
            registry,
        })
    }

    pub fn soft_budget_crossed(&self, kind: Kind) {
        self.soft_crossed.with_label_values(&[kind.as_str()]).inc();
    }

    pub fn limit_refused(&self, kind: Kind, why: &Why) {
        let limit = match why {
            Why::Budget { .. } => "budget",
            Why::Rate { measure, .. } => measure.as_str(),
            Why::Blocked => "blocked",
            Why::Queue { .. } => "queue",
        };
        self.limit_refused
            .with_label_values(&[kind.as_str(), limit])
            .inc();
    }

    /// The text of `/metrics`.
    pub fn render(&self, gauges: &Gauges) -> String {
        let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.in_flight.set(int(gauges.in_flight as u64));
        self.ledger_pending.set(int(gauges.ledger.pending_records));
        self.ledger_dead.set(int(gauges.ledger.dead));
        self.ledger_lost.set(int(gauges.ledger.lost));
        self.ledger_spool_errors.set(int(gauges.ledger.spool_errors));
        self.waiting.set(int(gauges.waiting as u64));
        for (kind, stats) in &gauges.meters {
            let label = [kind.as_str()];
            self.meters.with_label_values(&label).set(int(stats.meters));
            self.limited_in_flight
                .with_label_values(&label)
                .set(int(stats.in_flight));
            self.reserved.with_label_values(&label).set(stats.reserved_nanos);
        }
        // A name that is configured no longer must not be shown for ever.
        self.certificates.reset();
        let now = crate::tls::now();
        for (host, end) in &gauges.certificates {
            self.certificates
                .with_label_values(&[host])
                .set(end.saturating_sub(now));
        }
        let mut out = Vec::new();
        if let Err(e) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            log::error!("the metrics cannot be rendered: {e}");
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

impl Metrics for Telemetry {
    fn observe(&self, seen: &Observation<'_>) {
        let model = seen.model.unwrap_or("other");
        let status = seen.status.clamp(0, 599).to_string();
        self.requests.with_label_values(&[model, &status]).inc();
        self.duration.with_label_values(&[model]).observe(seen.seconds);
        if let Some(seconds) = seen.first_byte_seconds {
            self.first_byte.with_label_values(&[model]).observe(seconds);
        }
        for (kind, n) in [
            ("prompt", seen.prompt_tokens),
            ("completion", seen.completion_tokens),
        ] {
            if n > 0 {
                self.tokens.with_label_values(&[model, kind]).inc_by(n);
            }
        }
        // A call that broke off has its price too.
        if let Some(nanos) = seen.cost_nanos {
            self.spend
                .with_label_values(&[model])
                .inc_by(u64::try_from(nanos).unwrap_or(0));
        }
        if seen.status >= 400 || seen.error.is_some() {
            self.errors
                .with_label_values(&[model, seen.error.unwrap_or("error")])
                .inc();
        } else if seen.first_byte_seconds.is_some() && seen.model.is_some() && seen.cost_nanos.is_none() {
            self.unpriced.with_label_values(&[model]).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_broke_off_counts_as_spent() {
        let telemetry = Telemetry::new().unwrap();
        telemetry.observe(&Observation {
            lane: "l",
            model: Some("m"),
            status: 200,
            error: Some("upstream_cut"),
            seconds: 1.0,
            first_byte_seconds: None,
            prompt_tokens: 1,
            completion_tokens: 1,
            cost_nanos: Some(70),
        });
        assert_eq!(telemetry.spend.with_label_values(&["m"]).get(), 70);
    }
}
