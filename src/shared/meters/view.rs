//! What meters show of themselves to those who only look: whose budgets and limits there are, and how much of
//! them is used, as this process knows it.

use super::Meters;
use super::subject::Bound;
use filters::model::account::Kind;
use filters::model::limits::Measure;
use std::collections::HashMap;
use std::sync::Arc;

/// One subject's limits. Money is nano-dollars, moments are microseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub kind: Kind,
    /// The hash of a key, in hexadecimal; empty for the gateway.
    pub id: String,
    pub alias: Option<String>,
    pub budget: Option<Budget>,
    /// Limit and use of each measure that is limited.
    pub limits: Vec<(Measure, u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub nanos: i64,
    pub spent: i64,
    pub ends_micros: Option<i64>,
}

impl View {
    /// How much of what is used most is used, thousandths.
    fn used(&self) -> i128 {
        let share = |used: i128, of: i128| used.saturating_mul(1000) / of.max(1);
        let money = self.budget.map(|b| share(b.spent.into(), b.nanos.into()));
        let others = self
            .limits
            .iter()
            .map(|(_, limit, used)| share((*used).into(), (*limit).into()));
        others.chain(money).max().unwrap_or(0)
    }
}

impl Meters {
    /// The limits for all models of whoever called within the last minutes: the gateway, organizations, teams
    /// and keys; at most so many, the most used first. End users and tags are not told of: callers make them up.
    pub fn views(&self, most: usize) -> Vec<View> {
        let mut views: HashMap<(Kind, String), View> = HashMap::new();
        for plan in &self.plans {
            for bound in plan.subjects.iter().filter_map(|s| s.whole()) {
                self.view(bound, &mut views);
            }
        }
        if let Some(bound) = self.rules.load().gateway(self).and_then(|s| s.whole()) {
            self.view(bound, &mut views);
        }
        let mut views: Vec<View> = views.into_values().collect();
        views.sort_by_cached_key(|v| (std::cmp::Reverse(v.used()), v.kind, v.id.clone()));
        views.truncate(most);
        views
    }

    fn view(&self, bound: &Arc<Bound>, views: &mut HashMap<(Kind, String), View>) {
        let account = &bound.meter.account;
        let is_shown = matches!(
            account.kind,
            Kind::Gateway | Kind::Organization | Kind::Team | Kind::Key
        );
        let at = (account.kind, account.id.clone());
        if !is_shown || views.contains_key(&at) {
            return;
        }
        let now = self.now().mono;
        let mut state = bound.meter.state.lock();
        let state = &mut *state;
        let money = state.money.as_ref().filter(|m| m.is_read());
        let budget = bound.allowance.nanos.zip(money).map(|(nanos, money)| Budget {
            nanos,
            spent: money.spent(),
            ends_micros: money.period().end,
        });
        let mut limits = Vec::new();
        if let Some(limit) = bound.rpm {
            let used = state.requests.as_mut().map_or(0, |r| r.window.used(now));
            limits.push((Measure::Requests, limit, used));
        }
        if let Some(limit) = bound.tpm {
            let used = state.tokens.as_mut().map_or(0, |r| r.window.used(now));
            limits.push((Measure::Tokens, limit, used));
        }
        if let Some(limit) = bound.parallel {
            limits.push((Measure::Parallel, limit, state.in_flight));
        }
        let view = View {
            kind: account.kind,
            id: account.id.clone(),
            alias: bound.alias.clone(),
            budget,
            limits,
        };
        views.insert(at, view);
    }
}
