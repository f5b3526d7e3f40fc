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
            "tollkeeper.timeouts.shutdown_delay",
            format!("{:?}", own.timeouts.shutdown_delay),
        ),
        (
            "tollkeeper.timeouts.keepalive (of HTTP/2)",
            format!("{:?}", own.timeouts.keepalive),
        ),
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
            let (own, meters) = (&conf.tollkeeper, &conf.meters);
            let zone = meters.zone.as_ref().and_then(|zone| zone.iana_name());
            let redis = meters.redis.as_ref().map(conf::Secret::expose);
            let limits = (
                &meters.gateway,
                &meters.queue,
                zone,
                meters.rolling,
                redis,
                &meters.redis_prefix,
            );
            format!("{own:?}{}{limits:?}", own.tracing.fingerprint())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::Env;
    use crate::conf::load::load_text;

    /// What waits for a restart, and the sections that differ, when an empty config becomes this one.
    fn changed(text: &str) -> (Vec<&'static str>, Vec<&'static str>) {
        let conf = |text| load_text("test", text, &Env::default()).unwrap().conf;
        let (before, after) = (conf("{}"), conf(text));
        (
            differing(&fixed(&before), &fixed(&after)),
            differing(&sections(&before), &sections(&after)),
        )
    }

    #[test]
    fn what_is_read_at_the_start_alone_is_told() {
        for (text, name) in [
            (
                "tollkeeper: {listeners: [{address: 0.0.0.0:1}]}",
                "tollkeeper.listeners",
            ),
            ("tollkeeper: {redis: {url: 'redis://a'}}", "tollkeeper.redis"),
            (
                "tollkeeper: {timeouts: {shutdown_delay: 1s}}",
                "tollkeeper.timeouts.shutdown_delay",
            ),
            (
                "general_settings: {maximum_spend_logs_retention_period: 30d}",
                "general_settings.maximum_spend_logs_retention_period",
            ),
        ] {
            let (restart, sections) = changed(text);
            assert_eq!(restart, [name], "{text}");
            let section = name.split('.').next().unwrap();
            assert_eq!(sections, [section], "{text}");
        }
    }

    #[test]
    fn cool_downs_are_told_in_their_section() {
        for (text, section) in [
            ("litellm_settings: {allowed_fails: 1}", "litellm_settings"),
            ("litellm_settings: {cooldown_time: 30}", "litellm_settings"),
            ("router_settings: {allowed_fails: 1}", "router_settings"),
            ("router_settings: {cooldown_time: 30}", "router_settings"),
            ("router_settings: {disable_cooldowns: true}", "router_settings"),
            (
                "router_settings: {allowed_fails_policy: {TimeoutErrorAllowedFails: 1}}",
                "router_settings",
            ),
        ] {
            assert_eq!(changed(text), (Vec::new(), vec![section]), "{text}");
        }
    }

    #[test]
    fn what_a_reload_takes_is_told_and_waits_for_nothing() {
        for text in [
            "tollkeeper: {limits: {json_body: 1MiB}, timeouts: {total: 5m}, rate_limit: {average: 1}}",
            "tollkeeper: {limits: {queue: {max_wait: 1s}}}",
            "tollkeeper: {limits: {models: {a: {rpm: 1}}}}",
            "tollkeeper: {budgets: {timezone: Europe/Berlin}}",
            "tollkeeper: {budgets: {reset: rolling}}",
        ] {
            assert_eq!(changed(text), (Vec::new(), vec!["tollkeeper"]), "{text}");
        }
    }
}
