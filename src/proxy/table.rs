//! The table of lanes: which lane has a host, a path and a method. Sorted once, for each host that anybody
//! names, so that a request looks its host up and then goes down one list. What a lane is stands in
//! [`super::lanes`].

use super::lanes::{Kind, Lane};
use super::paths;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// A path that a lane takes.
#[derive(Debug, PartialEq, Eq)]
pub enum Pattern {
    Exact(String),
    /// Everything at and below this prefix; empty = everything.
    Below(String),
}

impl Pattern {
    pub fn parse(text: &str) -> Self {
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

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Pattern::Exact(p) => f.write_str(p),
            Pattern::Below(p) => write!(f, "{p}/*"),
        }
    }
}

/// What a request came to.
pub enum Found<'t> {
    Lane(&'t Arc<Lane>),
    /// The host is known, and has nothing at this path.
    Nothing,
    /// Nobody knows this host.
    Elsewhere,
}

/// All rules, sorted for matching.
pub struct Table {
    lanes: Vec<Arc<Lane>>,
    rules: Vec<Rule>,
    /// Hosts that are named, in lower case.
    exact: HashMap<String, Vec<usize>>,
    /// The same for `*.example.com`, without `*.`.
    below: HashMap<String, Vec<usize>>,
    /// Every other host.
    rest: Vec<usize>,
    /// This machine, asking for itself: all that is ours, wherever it is confined to.
    here: Vec<usize>,
    /// Any other host is refused.
    refuses: bool,
    /// The gateway's own hosts: there, lanes without hosts are as near as those with.
    own: Vec<String>,
}

struct Rule {
    pattern: Pattern,
    /// Index into `lanes`.
    lane: usize,
}

/// How near a host is to a pattern of hosts; None = it is not of it.
fn nearness(pattern: &str, host: &str) -> Option<usize> {
    if pattern == host {
        return Some(usize::MAX);
    }
    host_matches(pattern, host).then_some(pattern.len())
}

/// `*.example.com` has every name that ends so, and a narrower pattern too.
fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => pattern == host,
    }
}

impl Table {
    /// `own`: hosts of the gateway itself. A later lane is nearer than an earlier one, all else being equal.
    pub fn new(lanes: Vec<(Lane, Vec<Pattern>)>, own: Vec<String>, refuses: bool) -> Self {
        let mut table = Table {
            lanes: Vec::with_capacity(lanes.len()),
            rules: Vec::new(),
            exact: HashMap::new(),
            below: HashMap::new(),
            rest: Vec::new(),
            here: Vec::new(),
            refuses,
            own,
        };
        for (at, (lane, patterns)) in lanes.into_iter().enumerate() {
            let rules = patterns.into_iter().map(|pattern| Rule { pattern, lane: at });
            table.rules.extend(rules);
            table.lanes.push(Arc::new(lane));
        }
        let named: Vec<&String> = table.lanes.iter().flat_map(|l| &l.hosts).collect();
        let mut named: Vec<String> = named.into_iter().chain(&table.own).cloned().collect();
        named.sort_unstable();
        named.dedup();
        for host in named {
            let order = table.order(|lane| table.near(lane, &host));
            match host.strip_prefix("*.") {
                Some(domain) => table.below.insert(domain.to_string(), order),
                None => table.exact.insert(host, order),
            };
        }
        table.rest = table.order(|lane| lane.hosts.is_empty().then_some(0));
        table.here = table.order(|lane| (lane.hosts.is_empty() || lane.is_own).then_some(0));
        table
    }

    /// How near a lane is to a host; None = it has no business there.
    fn near(&self, lane: &Lane, host: &str) -> Option<usize> {
        if lane.hosts.is_empty() {
            let own = self.own.iter().filter_map(|own| nearness(own, host)).max();
            return Some(own.unwrap_or(0));
        }
        lane.hosts.iter().filter_map(|h| nearness(h, host)).max()
    }

    /// The rules of all lanes that have a nearness, in match order.
    fn order(&self, near: impl Fn(&Lane) -> Option<usize>) -> Vec<usize> {
        let mut found: Vec<_> = self
            .rules
            .iter()
            .enumerate()
            .filter_map(|(at, rule)| {
                let lane = self.lanes.get(rule.lane)?;
                let near = near(lane)?;
                let hosted = !lane.hosts.is_empty();
                Some((
                    Reverse((lane.priority, near, rule.pattern.rank(), hosted, rule.lane)),
                    at,
                ))
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, at)| at).collect()
    }

    /// The rules of a host that somebody names.
    fn of_host(&self, host: &str) -> Option<&Vec<usize>> {
        if let Some(order) = self.exact.get(host) {
            return Some(order);
        }
        if self.below.is_empty() {
            return None;
        }
        let mut rest = host;
        while let Some((_, domain)) = rest.split_once('.') {
            if let Some(order) = self.below.get(domain) {
                return Some(order);
            }
            rest = domain;
        }
        None
    }

    /// The lane for a host (without port, lowercase), a judged path and a method. When only the method
    /// fits nowhere, the lane that would have it: it refuses better than "not found". `is_here` says whether
    /// this machine asks for itself.
    pub fn find(&self, host: &str, path: &str, method: &str, is_here: impl FnOnce() -> bool) -> Found<'_> {
        let order = if self.exact.is_empty() && self.below.is_empty() {
            &self.rest
        } else if let Some(order) = self.of_host(host) {
            order
        } else if is_here() {
            &self.here
        } else if self.refuses {
            return Found::Elsewhere;
        } else {
            &self.rest
        };
        let mut fits = order
            .iter()
            .filter_map(|at| self.rules.get(*at))
            .filter(|rule| rule.pattern.matches(path))
            .filter_map(|rule| self.lanes.get(rule.lane));
        let Some(first) = fits.next() else {
            return Found::Nothing;
        };
        if first.takes(method) {
            return Found::Lane(first);
        }
        Found::Lane(
            fits.find(|l| l.takes(method) && matches!(l.kind, Kind::Stream(_)))
                .unwrap_or(first),
        )
    }

    /// Rules in match order, for people: for one host, or for all; None = nobody knows that host.
    pub fn rows(&self, host: Option<&str>) -> Option<Vec<(&Lane, &Pattern)>> {
        let all;
        let order = match host {
            Some(host) => match self.of_host(host) {
                Some(order) => order,
                None if self.refuses => return None,
                None => &self.rest,
            },
            None => {
                all = self.order(|lane| Some(self.nearest(lane)));
                &all
            }
        };
        let rules = order.iter().filter_map(|at| self.rules.get(*at));
        Some(
            rules
                .filter_map(|rule| Some((&**self.lanes.get(rule.lane)?, &rule.pattern)))
                .collect(),
        )
    }

    /// How near a lane is to the nearest of its hosts. On the gateway's own hosts all are equally near.
    fn nearest(&self, lane: &Lane) -> usize {
        let hosts = lane.hosts.iter().filter(|h| !self.own.contains(h));
        let near = hosts.map(|h| if h.starts_with("*.") { h.len() } else { usize::MAX });
        near.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use filters::contract::Chain;
    use filters::contract::cx::Auth;

    fn lane(name: &str, hosts: &[&str], kind: Kind) -> Lane {
        Lane {
            name: name.into(),
            hosts: hosts.iter().map(|h| h.to_string()).collect(),
            methods: Vec::new(),
            priority: 0,
            is_own: false,
            chain: Chain::default(),
            auth: Auth::Open,
            kind,
        }
    }

    fn table(lanes: Vec<(Lane, &[&str])>, own: &[&str], refuses: bool) -> Table {
        let lanes = lanes
            .into_iter()
            .map(|(l, paths)| (l, paths.iter().map(|p| Pattern::parse(p)).collect()))
            .collect();
        Table::new(lanes, own.iter().map(|h| h.to_string()).collect(), refuses)
    }

    fn name(table: &Table, host: &str, path: &str) -> String {
        match table.find(host, path, "GET", || false) {
            Found::Lane(lane) => lane.name.to_string(),
            Found::Nothing => "nothing".into(),
            Found::Elsewhere => "elsewhere".into(),
        }
    }

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
    fn a_host_comes_before_a_path() {
        let t = table(
            vec![
                (lane("api", &[], Kind::Call), &["/*"]),
                (lane("health", &[], Kind::Health), &["/health"]),
                (lane("chat", &["chat.test"], Kind::Admin), &["/*"]),
                (lane("any", &["*.test"], Kind::Admin), &["/health"]),
                (lane("deep", &["*.a.test"], Kind::Admin), &["/*"]),
            ],
            &[],
            false,
        );
        for (host, path, want) in [
            ("chat.test", "/health", "chat"),
            ("other.test", "/health", "any"),
            ("other.test", "/x", "api"),
            ("x.y.a.test", "/health", "deep"),
            ("nobody", "/health", "health"),
            ("nobody", "/x", "api"),
        ] {
            assert_eq!(name(&t, host, path), want, "{host}{path}");
        }
    }

    #[test]
    fn on_the_gateways_own_hosts_lanes_without_hosts_keep_their_paths() {
        let mut api = lane("api", &["llm.test"], Kind::Call);
        let mut admin = lane("admin", &["ui.test"], Kind::Admin);
        (api.is_own, admin.is_own) = (true, true);
        let t = table(
            vec![
                (api, &["/*"]),
                (admin, &["/key/*"]),
                (lane("health", &[], Kind::Health), &["/health"]),
                (lane("chat", &["chat.test"], Kind::Metrics), &["/*"]),
            ],
            &["llm.test", "ui.test"],
            true,
        );
        for (host, path, want) in [
            ("llm.test", "/health", "health"),
            ("llm.test", "/key/x", "api"),
            ("ui.test", "/key/x", "admin"),
            ("ui.test", "/v1/models", "nothing"),
            ("chat.test", "/health", "chat"),
            ("nobody", "/health", "elsewhere"),
        ] {
            assert_eq!(name(&t, host, path), want, "{host}{path}");
        }
        let here = |path| match t.find("localhost", path, "GET", || true) {
            Found::Lane(lane) => lane.name.to_string(),
            _ => "nothing".into(),
        };
        assert_eq!(
            (here("/key/x"), here("/v1/models")),
            ("admin".into(), "api".into())
        );
        assert!(t.rows(Some("nobody")).is_none());
        assert_eq!(t.rows(Some("ui.test")).unwrap().len(), 2);
    }

    #[test]
    fn a_priority_comes_before_everything() {
        let mut low = lane("low", &["chat.test"], Kind::Admin);
        low.priority = -1;
        let mut high = lane("high", &[], Kind::Admin);
        high.priority = 1;
        let t = table(
            vec![
                (low, &["/*"]),
                (lane("api", &[], Kind::Call), &["/*"]),
                (high, &["/x/*"]),
            ],
            &[],
            false,
        );
        assert_eq!(name(&t, "chat.test", "/x/y"), "high");
        assert_eq!(name(&t, "chat.test", "/z"), "api");
        let names: Vec<String> = t
            .rows(None)
            .unwrap()
            .iter()
            .map(|(l, _)| l.name.to_string())
            .collect();
        assert_eq!(names, ["high", "api", "low"]);
    }
}
