//! From Traefik's routers to our lanes: which become lanes, where they lead, and what had to be left.

use super::labels::{Container, Fields, Labels};
use super::middleware::{Effect, Rate, Sts, gather};
use super::rule::{self, Match};
use super::static_config::{self, Static};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that is going to be written.
#[derive(Debug, Default)]
pub struct Plan {
    pub listeners: Vec<Listener>,
    /// Names that certificates are made for here.
    pub local: BTreeSet<String>,
    /// Names that an authority certifies, by who asks which one.
    pub acme: BTreeMap<Authority, BTreeSet<String>>,
    pub rate: Option<Rate>,
    /// What the gateway's own pages say of coming by TLS alone.
    pub sts: Option<Sts>,
    pub api: Vec<String>,
    pub admin: Vec<String>,
    pub services: BTreeMap<String, Service>,
    pub lanes: Vec<Lane>,
    /// What could not be taken, item by item.
    pub left: Vec<String>,
    /// What was taken and is not quite the same.
    pub notes: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Listener {
    pub port: u16,
    pub tls: bool,
    pub redirect: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Authority {
    pub email: Option<String>,
    pub directory: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub struct Service {
    pub backends: Vec<(String, Option<u64>)>,
    /// Lines below `health_check`, in order.
    pub health: BTreeMap<&'static str, String>,
    pub pass_host: bool,
    pub effect: Effect,
}

#[derive(Debug)]
pub struct Lane {
    pub name: String,
    pub service: String,
    pub rule: Match,
    pub priority: Option<i64>,
    pub strip: Vec<String>,
    pub add: Option<String>,
    /// Nobody needs a key.
    pub is_open: bool,
}

/// What every router says, whoever is behind it.
struct Common {
    matches: Vec<Match>,
    effect: Effect,
    /// Why one of its middlewares, which may protect it, is not taken.
    missing: Option<String>,
}

/// Makes the plan. `gateway` names the container that Tollkeeper takes the place of; else the one whose image
/// is LiteLLM's or ours.
pub fn plan(containers: &[Container], gateway: Option<&str>) -> Plan {
    let known = static_config::read(containers);
    let all: Vec<(&Container, Labels)> = containers.iter().map(|c| (c, c.traefik())).collect();
    let mut middlewares = BTreeMap::new();
    for (_, labels) in &all {
        for (name, fields) in &labels.middlewares {
            let of_name: &mut Fields = middlewares.entry(name.clone()).or_default();
            of_name.extend(fields.clone());
        }
    }
    let mut planner = Planner {
        plan: Plan::default(),
        gateway: gateway.map(str::to_string),
        known,
        middlewares,
        used: BTreeMap::new(),
        rates: Vec::new(),
    };
    planner.plan.left.append(&mut planner.known.left);
    for (container, labels) in &all {
        planner.container(container, labels);
    }
    planner.finish()
}

struct Planner {
    plan: Plan,
    gateway: Option<String>,
    known: Static,
    middlewares: BTreeMap<String, Fields>,
    /// Entry points that are needed, and whether they speak TLS.
    used: BTreeMap<String, bool>,
    /// Rate limits, and whether they are the gateway's.
    rates: Vec<(Rate, bool, String)>,
}

impl Planner {
    fn left(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.plan.left.contains(&what) {
            self.plan.left.push(what);
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.plan.notes.contains(&what) {
            self.plan.notes.push(what);
        }
    }

    fn is_gateway(&self, container: &Container) -> bool {
        match &self.gateway {
            Some(name) => container.name == *name || container.aliases.contains(name),
            None => ["litellm", "tollkeeper"]
                .iter()
                .any(|word| container.image.contains(word)),
        }
    }

    fn container(&mut self, container: &Container, labels: &Labels) {
        let enabled = labels.enable.unwrap_or(self.known.exposed_by_default);
        for other in &labels.others {
            self.left(format!("{}: label {other}", container.name));
        }
        if labels.routers.is_empty() {
            return;
        }
        if !enabled {
            self.note(format!(
                "{}: not taken, since traefik.enable is not true",
                container.name
            ));
            return;
        }
        let is_gateway = self.is_gateway(container);
        for (name, router) in &labels.routers {
            let taken = if is_gateway {
                self.own_router(name, router, labels.routers.len())
            } else {
                self.router(container, labels, name, router)
            };
            if let Err(why) = taken {
                self.left(format!("router {name}: {why}"));
                if router.contains_key("rule") && !is_gateway {
                    self.note(format!(
                        "router {name} is left out: where another lane has its host, that one now gets its requests"
                    ));
                }
            }
        }
        if is_gateway {
            for name in [&container.name].into_iter().chain(&container.aliases) {
                for list in [&mut self.plan.api, &mut self.plan.admin] {
                    let is_name = !name.is_empty() && !name.contains('$');
                    if is_name && !list.contains(name) {
                        list.push(name.clone());
                    }
                }
            }
        }
    }

    /// What every router says, whoever is behind it.
    fn common(&mut self, name: &str, router: &Fields) -> Result<Common, String> {
        let rule = router.get("rule").ok_or("it has no rule")?;
        if rule.contains("${") {
            return Err(format!("its rule holds a variable that is not set: {rule}"));
        }
        let matches = rule::parse(rule)?;
        if matches.is_empty() {
            return Err("its rule never matches".into());
        }
        let mut effect = Effect::default();
        let (mut left, names) = (Vec::new(), router.get("middlewares").map_or("", String::as_str));
        let gathered = gather(names, &self.middlewares, &mut effect, &mut left, 0);
        for item in left {
            self.left(item);
        }
        for field in router.keys() {
            let known = [
                "rule",
                "middlewares",
                "entrypoints",
                "service",
                "priority",
                "tls",
                "tls.certresolver",
            ];
            if !known.contains(&field.as_str())
                && !field.starts_with("tls.domains")
                && !field.starts_with("observability")
            {
                self.left(format!("router {name}: {field}"));
            }
        }
        if rule.to_ascii_lowercase().contains("pathprefix") {
            self.note("PathPrefix(`/a`) takes /a and all below it here, and no longer /ab");
        }
        Ok(Common {
            matches,
            effect,
            missing: gathered.err(),
        })
    }

    /// Listeners and certificates.
    fn doors(&mut self, name: &str, router: &Fields, matches: &[Match]) {
        let said = router.get("entrypoints").map_or("", String::as_str);
        let mut points: Vec<String> = said
            .split(',')
            .map(|p| p.trim().to_ascii_lowercase())
            .filter(|p| !p.is_empty())
            .collect();
        if points.is_empty() {
            points = vec!["web".into(), "websecure".into()];
        }
        let resolver = router.get("tls.certresolver").cloned();
        let asks_tls = resolver.is_some() || router.get("tls").is_some_and(|t| t == "true");
        let mut hosts: BTreeSet<String> = matches
            .iter()
            .flat_map(|m| m.hosts.iter().flatten().cloned())
            .collect();
        let further = router
            .iter()
            .filter(|(field, _)| field.starts_with("tls.domains"));
        hosts.extend(further.flat_map(|(_, names)| names.split(',').map(|n| n.trim().to_ascii_lowercase())));
        for point in points {
            let Some(known) = self.known.entry_points.get(&point).cloned() else {
                self.left(format!(
                    "router {name}: entry point {point}, whose address is not in this file"
                ));
                continue;
            };
            // A router with TLS on the port of plain HTTP: one port is one or the other.
            let is_plain = known.redirects_to.is_some() || known.port == Some(80);
            let tls = known.tls || asks_tls && !is_plain;
            *self.used.entry(point).or_default() |= tls;
            if tls {
                self.certificates(name, resolver.as_ref().or(known.resolver.as_ref()), &hosts);
            }
        }
    }

    fn certificates(&mut self, name: &str, resolver: Option<&String>, hosts: &BTreeSet<String>) {
        let Some(resolver) = resolver else {
            self.plan.local.extend(hosts.iter().cloned());
            return;
        };
        let said = self.known.resolvers.get(resolver);
        let authority = Authority {
            email: said.and_then(|r| r.email.clone()).filter(|e| !e.contains('$')),
            directory: said.and_then(|r| r.directory.clone()),
        };
        if said.is_some_and(|r| r.by_dns) {
            self.left(format!(
                "certificate resolver {resolver}: its DNS challenge; names are proven over HTTP or TLS here"
            ));
        }
        let local = ["local", "localhost", "internal", "lan", "home", "test", "arpa"];
        for host in hosts {
            let end = host.rsplit('.').next().unwrap_or_default();
            if host.starts_with("*.") {
                self.left(format!(
                    "router {name}: a certificate for {host}; put one under tls.certificates"
                ));
            } else if authority.directory.is_none() && (local.contains(&end) || !host.contains('.')) {
                self.note(format!(
                    "{host} is no public name, so its certificate is made here"
                ));
                self.plan.local.insert(host.clone());
            } else {
                self.plan
                    .acme
                    .entry(authority.clone())
                    .or_default()
                    .insert(host.clone());
            }
        }
    }

    /// A router of the container that Tollkeeper takes the place of.
    fn own_router(&mut self, name: &str, router: &Fields, routers: usize) -> Result<(), String> {
        let Common {
            matches,
            mut effect,
            missing,
        } = self.common(name, router)?;
        if let Some((sts, left)) = effect.take_sts() {
            self.plan.sts = Some(sts);
            left.into_iter()
                .for_each(|why| self.left(format!("router {name}: {why}")));
        }
        if let Some(why) = missing {
            self.left(format!(
                "router {name}: {why}; keys guard the gateway all the same"
            ));
        }
        let is_admin = routers > 1 && ["admin", "ui", "dashboard"].iter().any(|w| name.contains(w));
        if matches.iter().any(|m| m.paths.is_some() || m.methods.is_some()) {
            self.note(format!(
                "router {name}: only its hosts are taken; every path of the gateway is there"
            ));
        }
        if effect.is_for_service() || !effect.strip.is_empty() || effect.add.is_some() {
            self.left(format!(
                "router {name}: headers, prefixes and sizes set by its middlewares"
            ));
        }
        if router.contains_key("priority") {
            self.note(format!(
                "router {name}: its priority is not needed; each host has its own lanes"
            ));
        }
        self.doors(name, router, &matches);
        if let Some(rate) = effect.rate {
            self.rates.push((rate, true, name.to_string()));
        }
        for host in matches.into_iter().flat_map(|m| m.hosts.unwrap_or_default()) {
            if !is_admin && !self.plan.api.contains(&host) {
                self.plan.api.push(host.clone());
            }
            if !self.plan.admin.contains(&host) {
                self.plan.admin.push(host);
            }
        }
        Ok(())
    }

    /// A router of any other container.
    fn router(
        &mut self,
        container: &Container,
        labels: &Labels,
        name: &str,
        router: &Fields,
    ) -> Result<(), String> {
        let Common {
            matches,
            effect,
            missing,
        } = self.common(name, router)?;
        let only = labels
            .services
            .keys()
            .next()
            .filter(|_| labels.services.len() == 1);
        let wanted = router
            .get("service")
            .map(|s| s.trim_end_matches("@docker").to_ascii_lowercase());
        let service = match wanted {
            Some(wanted) if wanted.contains('@') => {
                return Err(format!("it leads to {wanted}, which is Traefik's own"));
            }
            Some(wanted) => wanted,
            None => only
                .cloned()
                .unwrap_or_else(|| container.name.to_ascii_lowercase()),
        };
        let is_tls =
            router.contains_key("tls.certresolver") || router.get("tls").is_some_and(|t| t == "true");
        let redirects_only = effect.https && !is_tls;
        self.doors(name, router, &matches);
        if redirects_only {
            // Another router has the same rule on the entry point with TLS.
            return Ok(());
        }
        let mut made = self.service(container, labels, &service)?;
        if let Some(rate) = effect.rate.clone() {
            self.rates.push((rate, false, name.to_string()));
        }
        let service_name = self.keep(&service, name, &mut made, &effect);
        let priority = match router.get("priority") {
            None => None,
            Some(text) => match text.parse() {
                Ok(0) => None,
                Ok(n) => Some(n),
                Err(_) => return Err(format!("its priority {text} is no number")),
            },
        };
        if priority.is_some() {
            self.note("a router without a priority has the length of its rule in Traefik, and 0 here");
        }
        // Left out, its requests would go to a lane beside it that lets everybody in.
        if let Some(why) = &missing {
            self.left(format!(
                "router {name}: {why}; in its place its lane wants a key of the gateway"
            ));
        }
        let several = matches.len() > 1;
        for (n, rule) in matches.into_iter().enumerate() {
            let name = match (several, n) {
                (true, 1..) => format!("{name}-{}", n + 1),
                _ => name.to_string(),
            };
            self.plan.lanes.push(Lane {
                name,
                service: service_name.clone(),
                rule,
                priority,
                strip: effect.strip.clone(),
                add: effect.add.clone(),
                is_open: missing.is_none(),
            });
        }
        Ok(())
    }

    /// What the labels say of a service.
    fn service(&mut self, container: &Container, labels: &Labels, name: &str) -> Result<Service, String> {
        let nothing = Fields::new();
        let fields = labels.services.get(name).unwrap_or(&nothing);
        let mut made = Service {
            pass_host: true,
            ..Service::default()
        };
        let (mut port, mut url, mut scheme, mut weight) = (None, None, "http", None);
        for (field, value) in fields {
            let Some(field) = field.strip_prefix("loadbalancer.") else {
                return Err(format!("its service {name} is of another kind ({field})"));
            };
            match field {
                "server.port" => port = value.parse::<u16>().ok(),
                "server.url" => url = Some(value.clone()),
                "server.scheme" => {
                    scheme = match value.as_str() {
                        "https" => "https",
                        "h2c" => "h2c",
                        _ => "http",
                    }
                }
                "server.weight" => weight = value.parse().ok(),
                "passhostheader" => made.pass_host = value != "false",
                "healthcheck.path" => drop(made.health.insert("path", value.clone())),
                "healthcheck.interval" => drop(made.health.insert("interval", value.clone())),
                "healthcheck.timeout" => drop(made.health.insert("timeout", value.clone())),
                "healthcheck.hostname" => drop(made.health.insert("host", value.clone())),
                "healthcheck.status" => drop(made.health.insert("status", value.clone())),
                "responseforwarding.flushinterval" => {}
                _ => self.left(format!("service {name}: {field}")),
            }
        }
        if !made.health.is_empty() && !made.health.contains_key("path") {
            made.health.clear();
        }
        if scheme == "https" {
            self.note(format!(
                "service {name}: its certificate is looked at here; say `verify: false` or name a `ca` if it is its own"
            ));
        }
        let url = match (url, port) {
            (Some(url), _) => url,
            (None, Some(port)) => format!("{scheme}://{}:{port}", container.name),
            (None, None) => match container.ports.iter().min() {
                Some(port) => {
                    self.note(format!(
                        "service {name}: its port {port} is guessed from the container's"
                    ));
                    format!("{scheme}://{}:{port}", container.name)
                }
                None => {
                    return Err(format!(
                        "no port of {} is known; add the label traefik.http.services.{name}.loadbalancer.server.port",
                        container.name
                    ));
                }
            },
        };
        if url.contains('$') {
            return Err(format!(
                "the address of its service {name} holds a variable that is not set"
            ));
        }
        made.backends.push((url, weight));
        Ok(made)
    }

    /// Adds a service, or a backend to one that is there. Routers that change headers otherwise than those
    /// before get one of their own.
    fn keep(&mut self, name: &str, router: &str, made: &mut Service, effect: &Effect) -> String {
        let mut of_service = effect.clone();
        (
            of_service.strip,
            of_service.add,
            of_service.rate,
            of_service.https,
        ) = Default::default();
        made.effect = of_service;
        let name = match self.plan.services.get(name) {
            Some(there) if there.effect != made.effect => format!("{name}-{router}"),
            _ => name.to_string(),
        };
        let there = self
            .plan
            .services
            .entry(name.clone())
            .or_insert_with(|| made.clone());
        for backend in &made.backends {
            if !there.backends.iter().any(|(url, _)| *url == backend.0) {
                there.backends.push(backend.clone());
            }
        }
        name
    }

    fn finish(mut self) -> Plan {
        let used = std::mem::take(&mut self.used);
        for (name, tls) in &used {
            let Some(point) = self.known.entry_points.get(name).cloned() else {
                continue;
            };
            let Some(port) = point.port else { continue };
            self.plan.listeners.push(Listener {
                port,
                tls: *tls,
                redirect: false,
            });
        }
        let any_tls = self.plan.listeners.iter().any(|l| l.tls);
        // An entry point that only sends on needs its listener too.
        for point in self.known.entry_points.values() {
            let Some(port) = point.port.filter(|_| point.redirects_to.is_some() && any_tls) else {
                continue;
            };
            let there = self.plan.listeners.iter_mut().find(|l| l.port == port);
            match there {
                Some(there) => there.redirect = !there.tls,
                None => self.plan.listeners.push(Listener {
                    port,
                    tls: false,
                    redirect: true,
                }),
            }
        }
        let redirecting = self
            .middlewares
            .values()
            .any(|m| m.get("redirectscheme.scheme").is_some_and(|s| s == "https"));
        if redirecting && any_tls {
            for listener in self.plan.listeners.iter_mut().filter(|l| !l.tls) {
                listener.redirect = true;
            }
        }
        let has_plain = self.plan.listeners.iter().any(|l| !l.tls);
        if self.plan.listeners.iter().any(|l| l.redirect) {
            self.note("redirects: services and the gateway's pages are sent on to https; calls of its API are answered where they are");
        }
        if has_plain && any_tls {
            self.note("lanes answer on every listener, with TLS and without");
        }
        if !self.plan.api.is_empty() && !self.plan.listeners.iter().any(|l| l.port == 4000) {
            // Where the containers beside it have always found it.
            self.plan.listeners.push(Listener {
                port: 4000,
                tls: false,
                redirect: false,
            });
        }
        self.plan
            .listeners
            .sort_by_key(|l| (std::cmp::Reverse(l.tls), l.port));
        self.rate();
        self.plan
    }

    /// One rate limit for all: ours counts a client's requests to every lane together.
    fn rate(&mut self) {
        let rates = std::mem::take(&mut self.rates);
        let ours = rates.iter().find(|(_, own, _)| *own).or(rates.first());
        let Some((rate, _, of)) = ours.cloned() else {
            return;
        };
        self.note(format!(
            "the rate limit of router {of} counts a client's requests to all lanes together"
        ));
        for (other, _, name) in &rates {
            if *other != rate {
                self.left(format!("router {name}: a rate limit of its own"));
            }
        }
        self.plan.rate = Some(rate).filter(|r| r.average > 0);
    }
}
