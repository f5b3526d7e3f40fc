//! Limits and models within those of a team, a user or another key.

use super::above;
use crate::admin::error::Result;
use crate::admin::fields::{self, Fields};
use filters::builtin::access;
use filters::contract::ports::Catalog;
use filters::model::key::{Holder, Key};
use filters::model::limits::Limits;
use filters::model::money::Nanos;
use filters::model::party::texts;
use serde_json::{Map, Value, json};

/// Limits that are numbers.
const NUMBERS: [&str; 4] = ["max_budget", "tpm_limit", "rpm_limit", "max_parallel_requests"];

/// Words for lists of models that are no model's name.
const LISTS: [&str; 2] = ["all-team-models", "no-default-models"];

/// What a key stays within.
pub(super) struct Bounds<'a> {
    /// The team of a team's key, the user of a personal one.
    pub party: Option<&'a Map<String, Value>>,
    /// A key whose own limits count where the party has none.
    pub key: Option<&'a Key>,
    /// They count beside the party's.
    pub both: bool,
}

/// Numbers of [`NUMBERS`], budgets in nano-dollars.
fn number(limits: &Limits, name: &str) -> Option<i64> {
    let count = |n: Option<u64>| n.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
    match name {
        "max_budget" => limits.budget.nanos,
        "tpm_limit" => count(limits.tpm),
        "rpm_limit" => count(limits.rpm),
        _ => count(limits.parallel),
    }
}

impl Bounds<'_> {
    /// Limits that are numbers, and the period of the budget.
    pub fn numbers(&self, fields: &mut Fields, new: bool) -> Result<()> {
        let party = self.party.map(Limits::of).unwrap_or_default();
        let key = self
            .key
            .map(|k| Holder::alone(k.clone()).limits)
            .unwrap_or_default();
        for name in NUMBERS {
            let (of_party, of_key) = (number(&party, name), number(&key, name));
            let by_key = of_key.filter(|_| self.both || of_party.is_none());
            let bound = [of_party, by_key].into_iter().flatten().min();
            let given = match fields.value(name) {
                None => None,
                Some(v) if name == "max_budget" => Some(fields::amount(name, v)?.0),
                Some(v) => Some(i64::try_from(fields::count(name, v)?).unwrap_or(i64::MAX)),
            };
            let Some(bound) = bound else { continue };
            let shown = if name == "max_budget" {
                json!(Nanos(bound))
            } else {
                json!(bound)
            };
            match given {
                Some(n) if n <= bound => {}
                // What the party has binds its keys in any case; what a key has goes with that key.
                None if by_key.is_none() => {}
                None if new => fields.set(name, shown),
                None if !fields.has(name) => {}
                _ => {
                    return Err(above(
                        name,
                        format!(
                            "'{name}' may be {shown} at most: that is the limit you have. Ask an admin for more."
                        ),
                    ));
                }
            }
        }
        // A shorter period would be more money.
        let counts = key.budget.nanos.is_some() && (self.both || party.budget.nanos.is_none());
        if counts {
            let period = key.budget.period.as_deref();
            if fields.has("budget_duration") && fields.text("budget_duration")? != period {
                return Err(above(
                    "budget_duration",
                    "Only an admin may change the period of this budget.",
                ));
            }
            if new && let Some(period) = period {
                fields.set("budget_duration", json!(period));
            }
        }
        Ok(())
    }

    /// Models, and what aliases stand for: only what may be called.
    pub fn models(&self, fields: &mut Fields, catalog: &dyn Catalog, in_team: bool, new: bool) -> Result<()> {
        let of_party = self.party.map(|p| texts(p, "models")).unwrap_or_default();
        let of_key = self.key.map(|k| k.models.clone()).unwrap_or_default();
        let lists = [&of_party, &of_key];
        let allowed = |name: &str| {
            // A group stands for all of its models.
            let group: Vec<&String> = catalog
                .names()
                .iter()
                .filter(|n| catalog.in_access_group(n, name))
                .collect();
            lists.iter().all(|list| {
                access::lists(list, catalog, name, in_team)
                    && group.iter().all(|n| access::lists(list, catalog, n, in_team))
            })
        };
        let models = fields.texts("models")?;
        let wide = |name: &String| match name.as_str() {
            "all-team-models" if !in_team => true,
            name if LISTS.contains(&name) => false,
            "all-proxy-models" | "*" => lists
                .iter()
                .any(|l| !l.is_empty() && !l.contains(&name.to_string())),
            name => !allowed(name),
        };
        if let Some(model) = models.iter().find(|m| wide(m)) {
            let model: String = model.chars().take(96).collect();
            return Err(above(
                "models",
                format!("The model '{model}' is not one that you may call yourself."),
            ));
        }
        if models.is_empty() && !of_key.is_empty() {
            if new {
                fields.set("models", json!(of_key));
            } else if fields.has("models") {
                return Err(above(
                    "models",
                    "An empty list stands for all models, and you may not call them all.",
                ));
            }
        }
        for (alias, model) in fields.names("aliases")? {
            let kept = self.key.filter(|_| !new).and_then(|k| k.aliases.get(&alias)) == Some(&model);
            if !kept && !allowed(&model) {
                let model: String = model.chars().take(96).collect();
                return Err(above(
                    "aliases",
                    format!("The model '{model}' is not one that you may call yourself."),
                ));
            }
        }
        Ok(())
    }
}
