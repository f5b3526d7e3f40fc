//! Lanes: which host and path goes to which driver, through which chain. Here they are built from the
//! config; [`super::table`] sorts them and finds the one of a request.

use super::services::Services;
use super::table::{Found, Pattern, Table};
pub use super::target::{Target, To};
use crate::conf::{self, Conf, Driver, FilterUse, LaneAuth, PassThrough, UnknownHosts};
use filters::builtin::passthrough::{Passthrough, Settings};
use filters::builtin::{CALL_CHAIN, STREAM_CHAIN};
use filters::contract::cx::Auth;
use filters::contract::ports::Ports;
use filters::contract::{Chain, Registry};
use filters::model::deployment::Base;
use filters::model::key::Caller;
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use std::sync::Arc;

/// One lane, ready to run.
pub struct Lane {
    pub name: Arc<str>,
    /// Lower case; empty = every host.
    pub hosts: Vec<String>,
    /// Upper case; empty = all.
    pub methods: Vec<String>,
    /// A higher one is looked at first.
    pub priority: i64,
    /// Built in.
    pub is_own: bool,
    pub chain: Chain,
    pub auth: Auth,
    pub kind: Kind,
}

impl Lane {
    pub fn takes(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|m| m == method)
    }

    /// It leads to a service.
    pub fn is_service(&self) -> bool {
        matches!(&self.kind, Kind::Stream(target) if matches!(target.to, To::Service(_)))
    }
}

/// Who handles what arrives on a lane.
pub enum Kind {
    /// Model calls and the list of models: the call driver.
    Call,
    /// Bytes pass to a target: the stream driver.
    Stream(Target),
    /// Our management API.
    Admin,
    /// Pages for people, where the model API is on another host.
    Front,
    Health,
    Metrics,
    /// Nothing is here.
    Nowhere,
}

impl Kind {
    /// As the config calls it, and what the config cannot say.
    pub fn as_str(&self) -> &'static str {
        match self {
            Kind::Call => "call",
            Kind::Stream(_) => "stream",
            Kind::Admin => "admin",
            Kind::Front => "front",
            Kind::Health => "health",
            Kind::Metrics => "metrics",
            Kind::Nowhere => "nowhere",
        }
    }
}

/// All lanes.
pub struct Lanes {
    /// Whether a path of the management API only shows a key itself and its like.
    pub is_info: fn(&str) -> bool,
    /// Whether the management API shows a caller everything.
    pub sees_all: fn(&Caller) -> bool,
    fallback: Arc<Lane>,
    table: Table,
}

/// What a service's lane runs whose clients need no key: everything is the service's own business.
const SERVICE_CHAIN: [&str; 1] = ["metrics"];

/// Where the management API lives. A trailing `/*` takes everything below.
/// Below these everything is the management API's, also what is not there.
const ADMIN_TREES: [&str; 11] = [
    "/key/*",
    "/user/*",
    "/spend/*",
    "/global/*",
    "/team/*",
    "/model/*",
    "/organization/*",
    "/customer/*",
    "/end_user/*",
    "/budget/*",
    "/tag/*",
];

/// The trees, and the single paths outside of them.
fn admin_paths(all: &[&'static str]) -> Vec<&'static str> {
    let mut paths = ADMIN_TREES.to_vec();
    let within = |path: &str| {
        ADMIN_TREES
            .iter()
            .any(|t| path.starts_with(t.trim_end_matches('*')))
    };
    paths.extend(all.iter().filter(|p| !within(p)));
    paths.sort_unstable();
    paths.dedup();
    paths
}

const HEALTH_PATHS: [&str; 4] = [
    "/health",
    "/health/liveliness",
    "/health/liveness",
    "/health/readiness",
];

/// What the road has to know of the management API's paths.
pub struct Management {
    pub paths: Vec<&'static str>,
    /// Those that want no key.
    pub open: Vec<&'static str>,
    pub is_info: fn(&str) -> bool,
    /// Whether the management API shows a caller everything.
    pub sees_all: fn(&Caller) -> bool,
}

impl Lanes {
    /// Builds the built-in lanes, those of `pass_through_endpoints`, and the config's own, in this
    /// order: a later lane takes the place of an earlier one of the same name. `Err` is a sentence.
    pub fn new(
        conf: &Conf,
        registry: &Registry,
        ports: &Ports,
        management: &Management,
        services: &Services,
    ) -> Result<Self, String> {
        let own = &conf.tollkeeper.hosts;
        let mut builder = Builder {
            registry,
            ports,
            known: [
                (
                    "cors",
                    json!({"allow_origins": conf.tollkeeper.cors.allow_origins}),
                ),
                ("auth", json!({"header": conf.general.litellm_key_header_name})),
                ("limits", json!({"budget_status": conf.meters.budget_status})),
                ("metrics", json!({"litellm_names": conf.metrics_speak_litellm()})),
            ],
            own_hosts: own.all().map(str::to_string).collect(),
            api_hosts: own.api.clone(),
            lanes: Vec::new(),
        };
        let named = |names: &[&str]| {
            names
                .iter()
                .map(|n| (n.to_string(), Value::Null))
                .collect::<Vec<_>>()
        };
        let built_in = |name, hosts, paths, chain: &[&str], auth, kind| Plan {
            name,
            hosts,
            paths,
            filters: named(chain),
            auth,
            kind,
            methods: &[],
            priority: 0,
            is_own: true,
        };
        let required = Auth::Required;
        builder.add(built_in(
            "openai",
            &own.api,
            &["/*"],
            &CALL_CHAIN,
            required,
            Kind::Call,
        ))?;
        if !own.admin.is_empty() {
            let pages = &["/", "/llms.txt"];
            builder.add(built_in(
                "front",
                &own.admin,
                pages,
                &["cors"],
                Auth::Open,
                Kind::Front,
            ))?;
        }
        let (all, open) = (admin_paths(&management.paths), &management.open);
        let admin = &own.admin;
        builder.add(built_in(
            "admin",
            admin,
            &all,
            &["cors", "auth"],
            required,
            Kind::Admin,
        ))?;
        builder.add(built_in(
            "admin-open",
            admin,
            open,
            &["cors"],
            Auth::Open,
            Kind::Admin,
        ))?;
        let health = built_in(
            "health",
            &own.health,
            &HEALTH_PATHS,
            &["cors"],
            Auth::Open,
            Kind::Health,
        );
        builder.add(health)?;
        let metrics = &conf.tollkeeper.metrics;
        if metrics.enabled {
            // LiteLLM sends scrapers on to the path with a slash, so that is what some are set to.
            let slashed = format!("{}/", metrics.path);
            let paths = [metrics.path.as_str(), &slashed];
            let auth = auth(metrics.auth);
            builder.add(built_in(
                "metrics",
                &own.metrics,
                &paths,
                &["auth"],
                auth,
                Kind::Metrics,
            ))?;
        }
        for (i, p) in conf.general.pass_through_endpoints.iter().enumerate() {
            builder.pass_through(i, p)?;
        }
        for lane in &conf.tollkeeper.lanes {
            let paths: Vec<&str> = lane.paths.iter().map(String::as_str).collect();
            let (kind, default) = match lane.driver {
                Driver::Call => (Kind::Call, named(&CALL_CHAIN)),
                Driver::Admin => (Kind::Admin, named(&["cors", "auth"])),
                Driver::Stream => {
                    let target = target(lane, services).map_err(|e| format!("lane {}: {e}", lane.name))?;
                    let chain = match (&target.to, lane.auth) {
                        (To::Service(_), LaneAuth::Open) => named(&SERVICE_CHAIN),
                        (To::Service(_), _) => guarded_service(),
                        (To::Place(_), _) => named(&STREAM_CHAIN),
                    };
                    (Kind::Stream(target), chain)
                }
            };
            if !matches!(kind, Kind::Stream(_)) {
                builder.own_hosts.extend(lane.hosts.iter().cloned());
            }
            let filters = match &lane.filters {
                Some(list) => list
                    .iter()
                    .map(|FilterUse { name, settings, .. }| (name.clone(), settings.clone()))
                    .collect(),
                None => default,
            };
            builder.add(Plan {
                name: &lane.name,
                hosts: &lane.hosts,
                paths: &paths,
                filters,
                auth: auth(lane.auth),
                kind,
                methods: &lane.methods,
                priority: lane.priority,
                is_own: false,
            })?;
        }
        let refuses = conf.tollkeeper.unknown_hosts == UnknownHosts::Refuse;
        Ok(Lanes {
            is_info: management.is_info,
            sees_all: management.sees_all,
            fallback: Arc::new(Lane {
                name: "none".into(),
                hosts: Vec::new(),
                methods: Vec::new(),
                priority: 0,
                is_own: true,
                chain: Chain::default(),
                auth: Auth::Required,
                kind: Kind::Nowhere,
            }),
            table: Table::new(builder.lanes, builder.own_hosts, refuses),
        })
    }

    /// See [`Table::find`].
    pub fn find(&self, host: &str, path: &str, method: &str, is_here: impl FnOnce() -> bool) -> Found<'_> {
        self.table.find(host, path, method, is_here)
    }

    /// The lane of requests that belong to none: it answers 404.
    pub fn fallback(&self) -> Arc<Lane> {
        Arc::clone(&self.fallback)
    }

    /// See [`Table::rows`].
    pub fn rows(&self, host: Option<&str>) -> Option<Vec<(&Lane, &Pattern)>> {
        self.table.rows(host)
    }
}

/// Where a stream lane of the config leads. `Err` is a sentence.
fn target(lane: &conf::Lane, services: &Services) -> Result<Target, String> {
    let to = match (&lane.service, &lane.target) {
        (Some(name), _) => To::Service(
            services
                .get(name)
                .ok_or_else(|| format!("there is no service {name}"))?,
        ),
        (None, Some(url)) => To::Place(Base::parse(url)?),
        (None, None) => return Err("no target".into()),
    };
    Ok(Target {
        to,
        strip: lane.strip_prefix.clone(),
        add: lane.add_prefix.clone().unwrap_or_default(),
        query: None,
    })
}

/// What a service's lane runs whose clients need a key: as a target's, but that all headers travel which
/// are no credentials, and that the pages of an application are no calls that a key's limits count.
fn guarded_service() -> Vec<(String, Value)> {
    let settings = |name: &str| match name {
        "passthrough" => json!({"forward_headers": true}),
        _ => Value::Null,
    };
    STREAM_CHAIN
        .iter()
        .filter(|n| **n != "limits")
        .map(|n| (n.to_string(), settings(n)))
        .collect()
}

/// Tells `limits` that it sees heads alone. Settings of another shape are the filter's to refuse.
fn without_body(settings: &mut Value) {
    if settings.is_null() {
        *settings = json!({});
    }
    if let Some(fields) = settings.as_object_mut() {
        fields.insert("without_body".into(), true.into());
    }
}

/// A lane that is to be built.
struct Plan<'a> {
    name: &'a str,
    hosts: &'a [String],
    paths: &'a [&'a str],
    filters: Vec<(String, Value)>,
    auth: Auth,
    kind: Kind,
    methods: &'a [String],
    priority: i64,
    is_own: bool,
}

struct Builder<'a> {
    registry: &'a Registry,
    ports: &'a Ports,
    /// Settings of the filters that the config knows more of than a lane says.
    known: [(&'static str, Value); 4],
    /// Where lanes without hosts are as near as those with.
    own_hosts: Vec<String>,
    /// Where the model API is, pass-through included.
    api_hosts: Vec<String>,
    lanes: Vec<(Lane, Vec<Pattern>)>,
}

impl Builder<'_> {
    fn add(&mut self, plan: Plan<'_>) -> Result<(), String> {
        let Plan {
            name,
            mut filters,
            auth,
            kind,
            ..
        } = plan;
        for (filter, settings) in filters.iter_mut().filter(|(_, settings)| settings.is_null()) {
            *settings = self.known(filter);
        }
        if matches!(kind, Kind::Stream(_)) {
            for (_, settings) in filters.iter_mut().filter(|(f, _)| f == "limits") {
                without_body(settings);
            }
        }
        self.name_credentials(&mut filters);
        let chain = self
            .registry
            .chain(&filters, self.ports)
            .map_err(|e| format!("lane {name}: {e}"))?;
        check_order(name, &chain, auth, &kind)?;
        let lane = Lane {
            name: name.into(),
            hosts: plan.hosts.iter().map(|h| h.to_ascii_lowercase()).collect(),
            methods: plan.methods.to_vec(),
            priority: plan.priority,
            is_own: plan.is_own,
            chain,
            auth,
            kind,
        };
        self.push(lane, plan.paths.iter().map(|p| Pattern::parse(p)).collect());
        Ok(())
    }

    fn known(&self, filter: &str) -> Value {
        self.known
            .iter()
            .find(|(name, _)| *name == filter)
            .map_or(Value::Null, |(_, v)| v.clone())
    }

    /// LiteLLM's `litellm_key_header_name`, or null.
    fn key_header(&self) -> Value {
        self.known("auth").get("header").cloned().unwrap_or_default()
    }

    /// Tells passthrough which headers the lane's auth, and auth elsewhere, takes a key from: they are a
    /// caller's credentials, and a client may send the same ones everywhere.
    fn name_credentials(&self, filters: &mut [(String, Value)]) {
        let lanes_own = filters
            .iter()
            .filter(|(f, _)| f == "auth")
            .map(|(_, s)| s.clone());
        let headers: Vec<Value> = lanes_own
            .filter_map(|settings| settings.get("header").cloned())
            .chain([self.key_header()])
            .filter(Value::is_string)
            .collect();
        if headers.is_empty() {
            return;
        }
        for (_, settings) in filters.iter_mut().filter(|(f, _)| f == "passthrough") {
            if settings.is_null() {
                *settings = json!({});
            }
            // Settings of another shape are the filter's to refuse.
            if let Some(fields) = settings.as_object_mut()
                && let Value::Array(named) = fields.entry("credentials").or_insert_with(|| json!([]))
            {
                named.extend_from_slice(&headers);
            }
        }
    }

    fn push(&mut self, lane: Lane, patterns: Vec<Pattern>) {
        self.lanes.retain(|(l, _)| l.name != lane.name);
        self.lanes.push((lane, patterns));
    }

    /// LiteLLM's pass-through: its headers are secrets, so its filter is made here and not by settings.
    fn pass_through(&mut self, at: usize, p: &PassThrough) -> Result<(), String> {
        let bad = |e: &dyn std::fmt::Display| format!("pass_through_endpoints[{at}] {}: {e}", p.path);
        let (address, query) = match p.target.split_once('?') {
            Some((a, q)) => (a, Some(q.to_string()).filter(|_| p.merge_query_params)),
            None => (p.target.as_str(), None),
        };
        let base = Base::parse(address).map_err(|e| bad(&e))?;
        let mut headers = Vec::with_capacity(p.headers.len());
        for (name, value) in &p.headers {
            let name = HeaderName::try_from(name.as_str()).map_err(|e| bad(&e))?;
            headers.push((name, HeaderValue::try_from(value.expose()).map_err(|e| bad(&e))?));
        }
        let settings = Settings {
            forward_headers: p.forward_headers,
            credentials: self
                .key_header()
                .as_str()
                .map(str::to_string)
                .into_iter()
                .collect(),
            methods: p.methods.clone(),
            headers,
        };
        let mut filters = Vec::new();
        for name in ["cors", "auth", "metrics"] {
            let filter = self
                .registry
                .filter(name, &self.known(name), self.ports)
                .map_err(|e| bad(&e))?;
            filters.push((name.to_string(), filter));
        }
        filters.push(("passthrough".into(), Arc::new(Passthrough::new(settings))));
        let mut settings = self.known("limits");
        without_body(&mut settings);
        let limits = self.registry.filter("limits", &settings, self.ports);
        filters.push(("limits".into(), limits.map_err(|e| bad(&e))?));
        let pattern = if p.include_subpath {
            Pattern::Below(p.path.clone())
        } else {
            Pattern::Exact(p.path.clone())
        };
        // Without a word in the file, or with `auth: false`, no key is needed inside the configured
        // networks and nowhere else.
        let auth = if p.auth == Some(true) {
            Auth::Required
        } else {
            Auth::Internal
        };
        let name = p.id.clone().unwrap_or_else(|| {
            ["pass-through", &p.path, &p.methods.join(",")]
                .join(" ")
                .trim_end()
                .to_string()
        });
        let target = Target {
            to: To::Place(base),
            strip: vec![p.path.clone()],
            add: String::new(),
            query,
        };
        let lane = Lane {
            name: name.into(),
            hosts: self.api_hosts.clone(),
            methods: p.methods.clone(),
            priority: 0,
            is_own: true,
            chain: Chain::new(filters),
            auth,
            kind: Kind::Stream(target),
        };
        self.push(lane, vec![pattern]);
        Ok(())
    }
}

/// An order of filters that would let anyone in, or write down nothing, is refused at the start.
fn check_order(lane: &str, chain: &Chain, auth: Auth, kind: &Kind) -> Result<(), String> {
    let at = |name: &str| chain.names().iter().position(|n| n == name);
    if auth != Auth::Open && at("auth").is_none() {
        return Err(format!(
            "lane {lane}: it wants a key, so its filters need auth; or say `auth: open`"
        ));
    }
    if !matches!(kind, Kind::Call) {
        return Ok(());
    }
    let Some(translate) = at("translate") else {
        return Err(format!(
            "lane {lane}: a lane of model calls needs the filter translate, at the end"
        ));
    };
    let before = |first: &str, second: &str, why: &str| match (at(first), at(second)) {
        (Some(a), Some(b)) if a > b => Err(format!(
            "lane {lane}: {first} has to stand before {second}: {why}"
        )),
        _ => Ok(()),
    };
    before("auth", "access", "whose list of models counts is known only then")?;
    before("access", "limits", "which model is meant is known only then")?;
    before(
        "spend",
        "usage",
        "answers run the chain backwards, and what was used is written down after it is known",
    )?;
    before("metrics", "usage", "answers run the chain backwards")?;
    if translate + 1 != chain.names().len() {
        return Err(format!(
            "lane {lane}: translate has to stand last, so that the filters before it see one dialect"
        ));
    }
    Ok(())
}

fn auth(auth: LaneAuth) -> Auth {
    match auth {
        LaneAuth::Required => Auth::Required,
        LaneAuth::Internal => Auth::Internal,
        LaneAuth::Open => Auth::Open,
    }
}
