//! What the parts of the process show at each scrape: asked for then, and kept nowhere. What happens once per
//! call is counted in `telemetry::metrics`.

use crate::health::Health;
use crate::ledger::Ledger;
use crate::proxy::drain::InFlight;
use crate::reload::Reload;
use crate::shared::meters::Meters;
use crate::shared::meters::view::View;
use crate::snapshot::Snapshot;
use crate::telemetry::metrics::Telemetry;
use crate::telemetry::metrics::catalog as c;
use crate::telemetry::metrics::page::{Family, Page, Source};
use crate::tls::Tls;
use arc_swap::ArcSwap;
use filters::model::account::Kind;
use std::sync::{Arc, Weak};

/// Subjects whose budgets and limits are shown.
const MOST_VIEWS: usize = 100;

/// The parts that are asked.
pub struct Gauges {
    /// It holds us.
    pub telemetry: Weak<Telemetry>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub reload: Arc<Reload>,
    pub in_flight: Arc<InFlight>,
    pub ledger: Arc<Ledger>,
    pub meters: Arc<Meters>,
    pub health: Arc<Health>,
    pub tls: Option<Arc<Tls>>,
    /// The kind of store.
    pub store: &'static str,
}

impl Source for Gauges {
    fn gather(&self, page: &mut Page) {
        page.int(&c::BUILD, &[env!("CARGO_PKG_VERSION"), self.store], 1u64);
        page.int(&c::IN_FLIGHT, &[], self.in_flight.count() as u64);
        page.int(&c::LEAVING, &[], u64::from(self.health.is_leaving()));
        self.deployments(page);
        self.snapshot.load().services.gather(page);
        self.ledger(page);
        self.limits(page);
        self.config(page);
        let now = crate::tls::now();
        for (host, end) in self.tls.iter().flat_map(|tls| tls.ends()) {
            page.int(&c::CERTIFICATES, &[&host], end.saturating_sub(now));
        }
    }
}

impl Gauges {
    fn speaks_litellm(&self) -> bool {
        self.telemetry.upgrade().is_some_and(|t| t.speaks_litellm())
    }

    fn deployments(&self, page: &mut Page) {
        let Some(telemetry) = self.telemetry.upgrade() else {
            return;
        };
        let snapshot = self.snapshot.load();
        let configured = snapshot.models.standings();
        telemetry
            .deployments
            .gather(configured, telemetry.speaks_litellm(), page);
    }

    fn ledger(&self, page: &mut Page) {
        let ledger = self.ledger.stats();
        for (family, n) in [
            (&c::LEDGER_PENDING, ledger.pending_records),
            (&c::LEDGER_PENDING_BYTES, ledger.pending_bytes),
            (&c::LEDGER_LANDED, ledger.landed),
            (&c::LEDGER_DEAD, ledger.dead),
            (&c::LEDGER_LOST, ledger.lost),
            (&c::LEDGER_SPOOL_ERRORS, ledger.spool_errors),
            (&c::LEDGER_HEALTHY, u64::from(ledger.healthy)),
        ] {
            page.int(family, &[], n);
        }
        page.float(&c::LEDGER_OLDEST, &[], ledger.oldest_age.as_secs_f64());
    }

    fn limits(&self, page: &mut Page) {
        for (kind, stats) in self.meters.stats() {
            let kind = [kind.as_str()];
            page.int(&c::METERS, &kind, stats.meters);
            page.int(&c::LIMITED_IN_FLIGHT, &kind, stats.in_flight);
            page.int(&c::RESERVED, &kind, stats.reserved_nanos);
        }
        page.int(&c::WAITING, &[], self.meters.waiting() as u64);
        let litellm = self.speaks_litellm();
        for view in self.meters.views(MOST_VIEWS) {
            show(&view, page);
            if litellm {
                show_litellm(&view, page);
            }
        }
    }

    fn config(&self, page: &mut Page) {
        let status = self.reload.status();
        page.int(&c::GENERATION, &[], status.generation);
        page.int(&c::CONFIG_APPLIED, &[], status.applied_at.as_second());
        page.int(&c::CONFIG_LAST_OK, &[], u64::from(status.failed.is_none()));
        page.int(&c::CONFIG_RESTART, &[], status.restart.len() as u64);
    }
}

/// Nano-dollars as dollars.
fn dollars(nanos: i64) -> f64 {
    nanos as f64 / 1e9
}

/// What people call it, else enough of its id.
fn name(view: &View) -> &str {
    let short = view.id.get(..12).filter(|_| view.kind == Kind::Key);
    view.alias.as_deref().or(short).unwrap_or(&view.id)
}

fn show(view: &View, page: &mut Page) {
    let (kind, name) = (view.kind.as_str(), name(view));
    let labels = [kind, view.id.as_str(), name];
    if let Some(budget) = view.budget {
        page.float(&c::BUDGET, &labels, dollars(budget.nanos));
        let left = budget.nanos.saturating_sub(budget.spent);
        page.float(&c::BUDGET_REMAINING, &labels, dollars(left));
        if let Some(end) = budget.ends_micros {
            page.int(&c::BUDGET_RESET, &labels, end / 1_000_000);
        }
    }
    for (measure, limit, used) in &view.limits {
        let labels = [kind, view.id.as_str(), name, measure.as_str()];
        page.int(&c::LIMIT, &labels, *limit);
        page.int(&c::LIMIT_USED, &labels, *used);
    }
}

fn show_litellm(view: &View, page: &mut Page) {
    let Some(budget) = view.budget else { return };
    let alias = view.alias.as_deref().unwrap_or("None");
    let (families, labels): ([&'static Family; 3], _) = match view.kind {
        Kind::Key => (
            [&c::L_KEY_REMAINING, &c::L_KEY_BUDGET, &c::L_KEY_HOURS],
            [alias, view.id.as_str()],
        ),
        Kind::Team => (
            [&c::L_TEAM_REMAINING, &c::L_TEAM_BUDGET, &c::L_TEAM_HOURS],
            [view.id.as_str(), alias],
        ),
        _ => return,
    };
    let [remaining, max, hours] = families;
    page.float(
        remaining,
        &labels,
        dollars(budget.nanos.saturating_sub(budget.spent)),
    );
    page.float(max, &labels, dollars(budget.nanos));
    if let Some(end) = budget.ends_micros {
        let left = (end / 1_000_000).saturating_sub(crate::tls::now());
        page.float(hours, &labels, left as f64 / 3600.0);
    }
}
