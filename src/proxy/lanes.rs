//! Lanes: which host and path goes to which driver, through which chain. The most specific path
//! wins, whatever the order in the file.

use super::paths;
use crate::conf::{Conf, Driver, FilterUse, LaneAuth, PassThrough};
use filters::builtin::passthrough::{Passthrough, Settings};
use filters::builtin::{CALL_CHAIN, STREAM_CHAIN};
use filters::contract::cx::Auth;
use filters::contract::ports::Ports;
use filters::contract::{Chain, Registry};
use filters::model::deployment::Base;
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use std::sync::Arc;

/// One lane, ready to run.
pub struct Lane {
    pub name: Arc<str>,
    hosts: Vec<String>,
    /// Upper case; empty = all.
    methods: Vec<String>,
    pub chain: Chain,
    pub auth: Auth,
    pub kind: Kind,
}

impl Lane {
    fn takes(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|m| m == method)
    }

    fn is_stream(&self) -> bool {
        matches!(self.kind, Kind::Stream(_))
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
    Health,
    Metrics,
    /// Nothing is here.
    Nowhere,
}

/// Where a stream lane sends.
pub struct Target {
    pub base: Base,
    /// Taken off the front of the path before the base's own path is put there.
    pub strip: String,
    /// The target's own query, put before the client's.
    pub query: Option<String>,
}

/// All lanes, sorted for matching.
pub struct Lanes {
    /// Whether a path of the management API only shows a key itself and its like.
    pub is_info: fn(&str) -> bool,
    lanes: Vec<Arc<Lane>>,
    fallback: Arc<Lane>,
    /// Most specific first.
    patterns: Vec<(Pattern, usize)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Pattern {
    Exact(String),
    /// Everything at and below this prefix; empty = everything.
    Below(String),
}

impl Pattern {
    fn parse(text: &str) -> Self {
        match text.strip_suffix("/*").or_else(|| text.strip_suffix('*')) {
            Some(prefix) => Pattern::Below(prefix.trim_end_matches('/').to_string()),
            None => Pattern::Exact(text.to_string()),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Pattern::Exact(p) => path == p,
            Pattern::Below(p) => p.is_empty() || path == p || paths::below(path, p).is_some(),
        }
    }

    /// Exact before below; longer before shorter.
    fn rank(&self) -> (bool, usize) {
        match self {
            Pattern::Exact(p) => (true, p.len()),
            Pattern::Below(p) => (false, p.len()),
        }
    }
}

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
}

impl Lanes {
    /// Builds the built-in lanes, those of `pass_through_endpoints`, and the config's own, in this
    /// order: a later lane takes the place of an earlier one of the same name. `Err` is a sentence.
    pub fn new(
        conf: &Conf,
        registry: &Registry,
        ports: &Ports,
        management: &Management,
    ) -> Result<Self, String> {
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
            lanes: Vec::new(),
        };
        let named = |names: &[&str]| {
            names
                .iter()
                .map(|n| (n.to_string(), Value::Null))
                .collect::<Vec<_>>()
        };
        builder.add(
            "openai",
            &[],
            &["/*"],
            named(&CALL_CHAIN),
            Auth::Required,
            Kind::Call,
        )?;
        builder.add(
            "admin",
            &[],
            &admin_paths(&management.paths),
            named(&["cors", "auth"]),
            Auth::Required,
            Kind::Admin,
        )?;
        builder.add(
            "admin-open",
            &[],
            &management.open,
            named(&["cors"]),
            Auth::Open,
            Kind::Admin,
        )?;
        builder.add(
            "health",
            &[],
            &HEALTH_PATHS,
            named(&["cors"]),
            Auth::Open,
            Kind::Health,
        )?;
        let metrics = &conf.tollkeeper.metrics;
        if metrics.enabled {
            builder.add(
                "metrics",
                &[],
                // LiteLLM sends scrapers on to the path with a slash, so that is what some are set to.
                &[&metrics.path, &format!("{}/", metrics.path)],
                named(&["auth"]),
                auth(metrics.auth),
                Kind::Metrics,
            )?;
        }
        for (i, p) in conf.general.pass_through_endpoints.iter().enumerate() {
            builder.pass_through(i, p)?;
        }
        for lane in &conf.tollkeeper.lanes {
            let hosts: Vec<&str> = lane.hosts.iter().map(String::as_str).collect();
            let paths: Vec<&str> = lane.paths.iter().map(String::as_str).collect();
            let (kind, default): (Kind, &[&str]) = match lane.driver {
                Driver::Call => (Kind::Call, &CALL_CHAIN),
                Driver::Admin => (Kind::Admin, &["cors", "auth"]),
                Driver::Stream => {
                    let url = lane
                        .target
                        .as_deref()
                        .ok_or_else(|| format!("lane {}: no target", lane.name))?;
                    let base = Base::parse(url).map_err(|e| format!("lane {}: {e}", lane.name))?;
                    (
                        Kind::Stream(Target {
                            base,
                            strip: String::new(),
                            query: None,
                        }),
                        &STREAM_CHAIN,
                    )
                }
            };
            let filters = match &lane.filters {
                Some(list) => list
                    .iter()
                    .map(|FilterUse { name, settings, .. }| (name.clone(), settings.clone()))
                    .collect(),
                None => named(default),
            };
            builder.add(&lane.name, &hosts, &paths, filters, auth(lane.auth), kind)?;
        }
        Ok(builder.finish(management.is_info))
    }

    /// The lane for a host (without port, lowercase), a judged path and a method. When only the method
    /// fits nowhere, the lane that would have it: it refuses better than "not found".
    pub fn find(&self, host: &str, path: &str, method: &str) -> Option<&Arc<Lane>> {
        let mut fits = self
            .patterns
            .iter()
            .filter(|(p, _)| p.matches(path))
            .filter_map(|(_, at)| self.lanes.get(*at))
            .filter(|l| l.hosts.is_empty() || l.hosts.iter().any(|h| host_matches(h, host)));
        let first = fits.next()?;
        if first.takes(method) {
            return Some(first);
        }
        Some(fits.find(|l| l.takes(method) && l.is_stream()).unwrap_or(first))
    }

    /// The lane of requests that belong to none: it answers 404.
    pub fn fallback(&self) -> Arc<Lane> {
        Arc::clone(&self.fallback)
    }

    /// Name, hosts, paths in match order: for people.
    pub fn table(&self) -> Vec<(String, String)> {
        self.patterns
            .iter()
            .filter_map(|(p, at)| {
                let path = match p {
                    Pattern::Exact(p) => p.clone(),
                    Pattern::Below(p) => format!("{p}/*"),
                };
                Some((path, self.lanes.get(*at)?.name.to_string()))
            })
            .collect()
    }
}

struct Builder<'a> {
    registry: &'a Registry,
    ports: &'a Ports,
    /// Settings of the filters that the config knows more of than a lane says.
    known: [(&'static str, Value); 4],
    lanes: Vec<(Lane, Vec<Pattern>)>,
}

impl Builder<'_> {
    fn add(
        &mut self,
        name: &str,
        hosts: &[&str],
        paths: &[&str],
        mut filters: Vec<(String, Value)>,
        auth: Auth,
        kind: Kind,
    ) -> Result<(), String> {
        for (filter, settings) in filters.iter_mut().filter(|(_, settings)| settings.is_null()) {
            *settings = self.known(filter);
        }
        self.name_credentials(&mut filters);
        let chain = self
            .registry
            .chain(&filters, self.ports)
            .map_err(|e| format!("lane {name}: {e}"))?;
        check_order(name, &chain, auth, &kind)?;
        let hosts = hosts.iter().map(|h| h.to_ascii_lowercase()).collect();
        let lane = Lane {
            name: name.into(),
            hosts,
            methods: Vec::new(),
            chain,
            auth,
            kind,
        };
        self.push(lane, paths.iter().map(|p| Pattern::parse(p)).collect());
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
            base,
            strip: p.path.clone(),
            query,
        };
        let lane = Lane {
            name: name.into(),
            hosts: Vec::new(),
            methods: p.methods.clone(),
            chain: Chain::new(filters),
            auth,
            kind: Kind::Stream(target),
        };
        self.push(lane, vec![pattern]);
        Ok(())
    }

    fn finish(self, is_info: fn(&str) -> bool) -> Lanes {
        let mut lanes = Vec::new();
        let mut patterns = Vec::new();
        for (at, (lane, its)) in self.lanes.into_iter().enumerate() {
            let hosted = !lane.hosts.is_empty();
            patterns.extend(its.into_iter().map(|p| (p, at, hosted)));
            lanes.push(Arc::new(lane));
        }
        // A lane for one host is more specific than one for all, and a later one than an earlier.
        patterns.sort_by_key(|(p, at, hosted)| std::cmp::Reverse((p.rank(), *hosted, *at)));
        let fallback = Arc::new(Lane {
            name: "none".into(),
            hosts: Vec::new(),
            methods: Vec::new(),
            chain: Chain::default(),
            auth: Auth::Required,
            kind: Kind::Nowhere,
        });
        Lanes {
            is_info,
            lanes,
            fallback,
            patterns: patterns.into_iter().map(|(p, at, _)| (p, at)).collect(),
        }
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

fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => pattern == host,
    }
}

impl Target {
    /// Path and query at the target for a client's path and query.
    pub fn path(&self, path: &str, query: Option<&str>) -> String {
        let rest = path.strip_prefix(self.strip.as_str()).unwrap_or(path);
        let joined = format!("{}{rest}", self.base.path);
        let mut out = if joined.is_empty() {
            "/".to_string()
        } else {
            joined
        };
        let query: Vec<&str> = [self.query.as_deref(), query]
            .into_iter()
            .flatten()
            .filter(|q| !q.is_empty())
            .collect();
        if !query.is_empty() {
            out.push('?');
            out.push_str(&query.join("&"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let check = |pattern: &str, path: &str, want: bool| {
            assert_eq!(Pattern::parse(pattern).matches(path), want, "{pattern} on {path}");
        };
        check("/*", "/anything", true);
        check("/tts/*", "/tts/v1/audio/speech", true);
        check("/tts/*", "/tts", true);
        check("/tts/*", "/ttsx", false);
        check("/tts", "/tts/x", false);
        assert!(host_matches("*.example.com", "a.example.com"));
        assert!(!host_matches("*.example.com", "example.com"));
        assert!(!host_matches("*.example.com", "evilexample.com"));
    }

    #[test]
    fn targets_keep_the_rest_of_the_path() {
        let t = |url: &str, query: Option<&str>| Target {
            base: Base::parse(url).unwrap(),
            strip: "/tts".into(),
            query: query.map(Into::into),
        };
        assert_eq!(
            t("http://x:1", None).path("/tts/v1/audio/speech", None),
            "/v1/audio/speech"
        );
        assert_eq!(t("http://x:1/base", None).path("/tts", Some("a=1")), "/base?a=1");
        assert_eq!(
            t("http://x:1", Some("k=v")).path("/tts", Some("a=1")),
            "/?k=v&a=1"
        );
    }
}
