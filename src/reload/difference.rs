//! In what two configs differ: deployments, sections, and what only a restart changes.

use super::{Applied, Digested};
use crate::conf::{self, Conf, ModelEntry};
use crate::proxy::models::Models;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Settings by name, such that two that differ look different.
pub(super) type Said = Vec<(&'static str, String)>;

/// What only a restart changes.
pub(super) fn fixed(conf: &Conf) -> Said {
    let own = &conf.tollkeeper;
    let secret = |s: &Option<conf::Secret>| s.as_ref().map(|s| s.expose().to_string()).unwrap_or_default();
    vec![
        ("tollkeeper.listeners", format!("{:?}", own.listeners)),
        ("tollkeeper.data_dir", format!("{:?}", own.data_dir)),
        ("tollkeeper.ledger", format!("{:?}", own.ledger)),
        ("tollkeeper.timeouts.drain", format!("{:?}", own.timeouts.drain)),
        (
            "general_settings.database_url",
            secret(&conf.general.database_url),
        ),
        (
            "general_settings.database_connection_pool_limit",
            format!("{:?}", conf.general.database_connection_pool_limit),
        ),
        ("general_settings.salt_key", secret(&conf.general.salt_key)),
        (
            "general_settings.maximum_spend_logs_retention_period",
            format!("{:?}", conf.general.maximum_spend_logs_retention_period),
        ),
        (
            "tollkeeper.redis",
            secret(&conf.meters.redis) + " " + &conf.meters.redis_prefix,
        ),
    ]
}

/// The sections but `model_list`, such that two that differ look different.
pub(super) fn sections(conf: &Conf) -> Said {
    let general = &conf.general;
    let secrets: Vec<&str> = [&general.master_key, &general.database_url, &general.salt_key]
        .into_iter()
        .flatten()
        .chain(
            general
                .pass_through_endpoints
                .iter()
                .flat_map(|p| p.headers.iter().map(|(_, v)| v)),
        )
        .map(conf::Secret::expose)
        .collect();
    vec![
        ("general_settings", format!("{general:?}{secrets:?}")),
        ("litellm_settings", format!("{:?}", conf.litellm)),
        ("router_settings", format!("{:?}", conf.router)),
        ("tollkeeper", {
            let own = &conf.tollkeeper;
            format!("{own:?}{}", own.tracing.fingerprint())
        }),
    ]
}

pub(super) fn differing(before: &Said, after: &Said) -> Vec<&'static str> {
    let pairs = before.iter().zip(after);
    pairs.filter(|(a, b)| a != b).map(|(a, _)| a.0).collect()
}

/// Which deployments came, went and changed.
pub(super) fn difference(old: &Models, new: &Models, generation: u64) -> Applied {
    let known = |models: &Models| -> BTreeMap<String, (String, Digested)> {
        models
            .entries()
            .iter()
            .map(|e| {
                (
                    e.deployment.id.clone(),
                    (e.deployment.label(), fingerprint(&e.written)),
                )
            })
            .collect()
    };
    let (before, after) = (known(old), known(new));
    type Known = BTreeMap<String, (String, Digested)>;
    let missing = |these: &Known, those: &Known| {
        these
            .iter()
            .filter(|(id, _)| !those.contains_key(*id))
            .map(|(_, (label, _))| label.clone())
            .collect()
    };
    Applied {
        generation,
        unchanged: false,
        added: missing(&after, &before),
        removed: missing(&before, &after),
        changed: after
            .iter()
            .filter(|(id, (_, now))| before.get(*id).is_some_and(|(_, then)| then != now))
            .map(|(_, (label, _))| label.clone())
            .collect(),
        sections: Vec::new(),
        restart: Vec::new(),
        version: None,
    }
}

/// Of all that an entry says, its secrets included. Where it stands does not count.
fn fingerprint(entry: &ModelEntry) -> Digested {
    let (p, mut all) = (&entry.params, Sha256::new());
    let secrets = p.headers.iter().map(|(_, v)| v).chain(&p.api_key);
    for secret in secrets {
        all.update((secret.expose().len() as u64).to_le_bytes());
        all.update(secret.expose());
    }
    all.update(format!("{} {p:?}", entry.model_name));
    // When it was changed is no change.
    let info = entry.info.all.iter().filter(|(name, _)| !name.ends_with("_at"));
    all.update(format!("{:?}", info.collect::<Vec<_>>()));
    all.finalize().into()
}
