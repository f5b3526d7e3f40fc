//! Who limits a call, and by which meters: built once for a reading of a key, a party or the config.

use super::Meters;
use super::meter::Meter;
use filters::model::account::{Account, Kind};
use filters::model::key::Holder;
use filters::model::limits::{Allowance, Limits, ModelLimits};
use filters::model::party::Party;
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Models whose limits are looked up once per subject. Names come from callers, so there is an end.
const MODELS_KEPT: usize = 256;
/// Bytes of a name that is kept.
const LONGEST_MODEL: usize = 256;

/// A meter and what limits it.
pub struct Bound {
    pub meter: Arc<Meter>,
    pub alias: Option<String>,
    /// The name the limit stands under, when it is for one model.
    pub model: Option<String>,
    /// Its `nanos` are the budget.
    pub allowance: Allowance,
    pub soft: Option<i64>,
    pub rpm: Option<u64>,
    pub tpm: Option<u64>,
    pub parallel: Option<u64>,
}

impl Bound {
    pub fn has_money(&self) -> bool {
        self.allowance.nanos.is_some() || self.soft.is_some()
    }

    /// Whether what a call may use has to be known.
    pub fn estimates(&self) -> bool {
        self.allowance.nanos.is_some() || self.tpm.is_some()
    }
}

type Bounds = Arc<[Arc<Bound>]>;

/// Somebody whose limits count.
pub struct Subject {
    kind: Kind,
    id: String,
    alias: Option<String>,
    limits: Limits,
    whole: Option<Arc<Bound>>,
    /// By the name that was asked for and the configured one: keys call the same by different names.
    by_model: RwLock<Vec<(String, String, Bounds)>>,
}

impl Subject {
    /// None where nothing is limited.
    pub fn new(
        meters: &Meters,
        kind: Kind,
        id: &str,
        alias: Option<&str>,
        limits: &Limits,
        has_budget: bool,
    ) -> Option<Self> {
        let mut limits = limits.clone();
        if !has_budget {
            limits.budget = Allowance::default();
            limits.soft_budget_nanos = None;
            for model in limits.models.values_mut() {
                model.budget = Allowance::default();
            }
        }
        if !limits.bind() {
            return None;
        }
        let of_all = Limits {
            models: Default::default(),
            ..limits.clone()
        };
        let alias = alias.map(str::to_string);
        let whole = of_all.bind().then(|| {
            Arc::new(Bound {
                meter: meters.meter(
                    Account::new(kind, id),
                    of_all.budget.nanos.is_some() || of_all.soft_budget_nanos.is_some(),
                ),
                alias: alias.clone(),
                model: None,
                allowance: of_all.budget,
                soft: of_all.soft_budget_nanos,
                rpm: of_all.rpm,
                tpm: of_all.tpm,
                parallel: of_all.parallel,
            })
        });
        Some(Self {
            kind,
            id: id.to_string(),
            alias,
            limits,
            whole,
            by_model: RwLock::default(),
        })
    }

    pub fn of_party(meters: &Meters, party: &Party, has_budget: bool) -> Option<Self> {
        Self::new(
            meters,
            party.kind,
            &party.id,
            party.alias.as_deref(),
            &party.limits,
            has_budget,
        )
    }

    /// What limits all models together.
    pub fn whole(&self) -> Option<&Arc<Bound>> {
        self.whole.as_ref()
    }

    /// What limits a call of this model.
    pub fn bounds(&self, meters: &Meters, requested: &str, group: &str, into: &mut Vec<Arc<Bound>>) {
        into.extend(self.whole.iter().cloned());
        if self.limits.models.is_empty() {
            return;
        }
        let is_it = |(name, of, _): &&(String, String, Bounds)| name == requested && of == group;
        let is_full = {
            let kept = self.by_model.read();
            if let Some((.., known)) = kept.iter().find(is_it) {
                into.extend(known.iter().cloned());
                return;
            }
            kept.len() >= MODELS_KEPT
        };
        let found: Bounds = self.of_model(meters, requested, group).into();
        into.extend(found.iter().cloned());
        if is_full || requested.len() > LONGEST_MODEL {
            return;
        }
        let mut kept = self.by_model.write();
        if kept.len() < MODELS_KEPT && !kept.iter().any(|k| is_it(&k)) {
            kept.push((requested.to_string(), group.to_string(), found));
        }
    }

    fn of_model(&self, meters: &Meters, requested: &str, group: &str) -> Vec<Arc<Bound>> {
        let by = |name: &str| self.limits.models.get_key_value(name);
        let Some((name, limits)) = by(requested).or_else(|| by(group)) else {
            return Vec::new();
        };
        let account = |model: &str| Account::of_model(self.kind, self.id.as_str(), model);
        let bound = |meter: Arc<Meter>, limits: ModelLimits| {
            Arc::new(Bound {
                meter,
                alias: self.alias.clone(),
                model: Some(name.clone()),
                allowance: limits.budget,
                soft: None,
                rpm: limits.rpm,
                tpm: limits.tpm,
                parallel: limits.parallel,
            })
        };
        // The ledger adds up by the configured name, so that is what money is counted by. Calls are counted
        // by the name of the limit: a wildcard serves many models.
        if limits.budget.nanos.is_none() {
            return vec![bound(meters.meter(account(name), false), limits.clone())];
        }
        if name == group {
            return vec![bound(meters.meter(account(name), true), limits.clone())];
        }
        let money = ModelLimits {
            budget: limits.budget.clone(),
            ..ModelLimits::default()
        };
        let rest = ModelLimits {
            budget: Allowance::default(),
            ..limits.clone()
        };
        let mut bounds = vec![bound(meters.meter(account(group), true), money)];
        if rest != ModelLimits::default() {
            bounds.push(bound(meters.meter(account(name), false), rest));
        }
        bounds
    }
}

/// Everybody whose limits a key's calls keep, the narrowest first.
pub struct Plan {
    pub holder: Arc<Holder>,
    pub subjects: Vec<Subject>,
    /// Milliseconds of the process' clock.
    pub used_at: AtomicU64,
}

impl Plan {
    pub fn new(meters: &Meters, holder: &Arc<Holder>) -> Self {
        let key = &holder.key;
        let mut subjects = Vec::new();
        subjects.extend(Subject::new(
            meters,
            Kind::Key,
            &key.hash.hex(),
            key.key_alias.as_deref(),
            &holder.limits,
            true,
        ));
        // As in LiteLLM, a user's own budget is for keys that belong to no team.
        let own = holder.team_id.is_none();
        for (party, has_budget) in [
            (&holder.member, true),
            (&holder.user, own),
            (&holder.team, true),
            (&holder.organization, true),
        ] {
            let party = party.as_deref();
            subjects.extend(party.and_then(|p| Subject::of_party(meters, p, has_budget)));
        }
        Self {
            holder: Arc::clone(holder),
            subjects,
            used_at: AtomicU64::new(0),
        }
    }
}
