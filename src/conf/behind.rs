//! What a config says of who stands in front of the gateway, and what that does to "internal".

use super::own::{LaneAuth, RateSource};
use super::report::Notes;
use super::text::shown;
use super::types::{Conf, Span};

/// Looks whether somebody else's address could be taken for the client's.
pub(super) fn check(conf: &Conf, notes: &Notes) {
    let own = &conf.tollkeeper;
    if !own.trusted_proxies.is_empty() {
        return;
    }
    let announced = own.listeners.iter().find(|l| l.proxy_protocol);
    if let Some(listener) = announced {
        let message = format!(
            "the listener {} has proxy_protocol, and trusted_proxies is empty: every connection would be closed",
            listener.address
        );
        let draft = notes
            .error("proxy-protocol", message)
            .path("tollkeeper → listeners");
        drop(draft.help("list the addresses of the proxies in `trusted_proxies`"));
    }
    let reachable = own.listeners.is_empty() || own.listeners.iter().any(|l| !l.address.ip().is_loopback());
    if !reachable {
        return;
    }
    // Whoever counts by X-Forwarded-For knows of a proxy.
    let behind = matches!(
        own.rate_limit.as_ref().map(|r| &r.source),
        Some(RateSource::Forwarded(_))
    );
    let keyless = keyless(conf).filter(|_| !own.internal_networks.is_empty());
    let Some((name, at)) = keyless else {
        if behind {
            let message = format!(
                "rate_limit speaks of a proxy that is not in trusted_proxies: all its clients together have {} \
                 connections",
                own.limits.connections_per_address
            );
            let draft = notes
                .warning("proxy", message)
                .path("tollkeeper → trusted_proxies");
            drop(
                draft.help(
                    "list its addresses in `trusted_proxies`, or raise `limits.connections_per_address`",
                ),
            );
        }
        return;
    };
    let help = "if a proxy stands in front, list it in `trusted_proxies`: then the client's own address counts. A \
                request with X-Forwarded-For, Forwarded or X-Real-IP from anybody else never counts as internal, but \
                a proxy or NAT that sends none of them makes everybody behind it look internal. Or ask for a key: \
                `auth: true` at an endpoint, `auth: required` at a lane";
    let name = shown(name);
    let draft = if behind {
        let message = format!(
            "{name} needs no key inside internal_networks, and rate_limit speaks of a proxy that is not in trusted_proxies"
        );
        notes.warning("keyless", message)
    } else {
        notes.note("keyless", format!("{name} needs no key inside internal_networks"))
    };
    drop(draft.at(at).help(help));
}

/// The first path that internal peers may use without a key.
fn keyless(conf: &Conf) -> Option<(&str, Span)> {
    let endpoints = conf.general.pass_through_endpoints.iter();
    let endpoint = endpoints
        .filter(|e| e.auth != Some(true))
        .map(|e| (e.path.as_str(), e.at));
    let lanes = conf
        .tollkeeper
        .lanes
        .iter()
        .filter(|l| l.auth == LaneAuth::Internal);
    endpoint.chain(lanes.map(|l| (l.name.as_str(), l.at))).next()
}
