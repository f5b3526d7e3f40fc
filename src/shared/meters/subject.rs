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
    /// By all its names: keys call the same by different ones.
    by_model: RwLock<Vec<Known>>,
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
    pub fn bounds(&self, meters: &Meters, names: Names<'_>, into: &mut Vec<Arc<Bound>>) {
        into.extend(self.whole.iter().cloned());
        if self.limits.models.is_empty() {
            return;
        }
        let is_it = |known: &&Known| names.all().into_iter().eq(known.names.iter().map(String::as_str));
        let is_full = {
            let kept = self.by_model.read();
            if let Some(known) = kept.iter().find(is_it) {
                into.extend(known.bounds.iter().cloned());
                return;
            }
            kept.len() >= MODELS_KEPT
        };
        let found: Bounds = self.of_model(meters, names).into();
        into.extend(found.iter().cloned());
        if is_full || names.all().iter().any(|n| n.len() > LONGEST_MODEL) {
            return;
        }
        let mut kept = self.by_model.write();
        if kept.len() < MODELS_KEPT && !kept.iter().any(|k| is_it(&k)) {
            kept.push(Known {
                names: names.all().map(Into::into),
                bounds: found,
            });
        }
    }

    /// The limits under each of its names count, for whoever has a key gives it names of its own: one more must
    /// not put a wider limit in the place of a narrower.
    fn of_model(&self, meters: &Meters, names: Names<'_>) -> Vec<Arc<Bound>> {
        let mut found: Vec<(&String, &ModelLimits)> = Vec::new();
        for name in names.all() {
            if let Some(one) = self.limits.models.get_key_value(name)
                && !found.iter().any(|(n, _)| *n == one.0)
            {
                found.push(one);
            }
        }
        let account = |model: &str| Account::of_model(self.kind, self.id.as_str(), model);
        let bound = |name: &String, meter: Arc<Meter>, limits: ModelLimits| {
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
        let money = budget(&found);
        let mut bounds = Vec::with_capacity(found.len() + 1);
        for (name, limits) in found {
            let rest = ModelLimits {
                budget: Allowance::default(),
                ..limits.clone()
            };
            match &money {
                Some((_, budget)) if name == names.group => {
                    let both = ModelLimits {
                        budget: budget.clone(),
                        ..rest
                    };
                    bounds.push(bound(name, meters.meter(account(names.group), true), both));
                    continue;
                }
                Some((of, budget)) if *of == name => {
                    let money = ModelLimits {
                        budget: budget.clone(),
                        ..ModelLimits::default()
                    };
                    // One account has one budget.
                    if !self.limits.models.contains_key(names.group) {
                        bounds.push(bound(name, meters.meter(account(names.group), true), money));
                    }
                }
                _ => {}
            }
            if rest != ModelLimits::default() {
                bounds.push(bound(name, meters.meter(account(name), false), rest));
            }
        }
        bounds
    }
}

/// The names of one model.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// As the caller named it.
    pub requested: &'a str,
    /// What that stands for by aliases.
    pub model: &'a str,
    /// The configured one.
    pub group: &'a str,
}

impl<'a> Names<'a> {
    fn all(self) -> [&'a str; 3] {
        [self.requested, self.model, self.group]
    }
}

struct Known {
    names: [String; 3],
    bounds: Bounds,
}

/// What a model may cost: as its configured name says, else the nearest to it; less, where another name of the
/// same period says less.
fn budget<'l>(found: &[(&'l String, &'l ModelLimits)]) -> Option<(&'l String, Allowance)> {
    let mut with = found.iter().rev().filter(|(_, l)| l.budget.nanos.is_some());
    let (name, first) = *with.next()?;
    let least = with
        .filter(|(_, l)| l.budget.period == first.budget.period)
        .filter_map(|(_, l)| l.budget.nanos)
        .chain(first.budget.nanos)
        .min();
    let allowance = Allowance {
        nanos: least,
        ..first.budget.clone()
    };
    Some((name, allowance))
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
            (&holder.organization_member, true),
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
