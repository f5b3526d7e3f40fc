//! Traefik's middlewares: what of them lanes and services can do. One that decides who may come in and that
//! we do not have keeps its router out: without it, the router would let in everybody.

use super::labels::Fields;
use std::collections::BTreeMap;

/// What the middlewares of one router come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effect {
    pub strip: Vec<String>,
    pub add: Option<String>,
    pub request_set: BTreeMap<String, String>,
    pub request_remove: Vec<String>,
    pub response_set: BTreeMap<String, String>,
    pub response_remove: Vec<String>,
    pub body_bytes: Option<u64>,
    pub retries: Option<u64>,
    pub https: bool,
    pub rate: Option<Rate>,
}

impl Effect {
    /// Whether anything of it stands in a service, and not in a lane.
    pub fn is_for_service(&self) -> bool {
        let none = self.request_set.is_empty()
            && self.request_remove.is_empty()
            && self.response_set.is_empty()
            && self.response_remove.is_empty();
        !none || self.body_bytes.is_some() || self.retries.is_some()
    }
}

/// `Strict-Transport-Security`, as our `tls.hsts` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sts {
    pub seconds: u64,
    pub subdomains: bool,
    pub preload: bool,
}

impl Effect {
    /// Takes that header out of those that are set on answers; and what of it is left out.
    pub fn take_sts(&mut self) -> Option<(Sts, Option<&'static str>)> {
        let value = self.response_set.remove("strict-transport-security")?;
        let has = |word: &str| value.split(';').any(|part| part.trim() == word);
        let seconds = value
            .split(';')
            .find_map(|part| part.trim().strip_prefix("max-age="));
        let mut sts = Sts {
            seconds: seconds.and_then(|s| s.parse().ok()).filter(|s| *s > 0)?,
            subdomains: has("includeSubDomains"),
            preload: has("preload"),
        };
        let fits = sts.subdomains && sts.seconds >= YEAR;
        let left = "stspreload, which asks for stsincludesubdomains and stsseconds of a year";
        let left = (sts.preload && !fits).then_some(left);
        sts.preload &= fits;
        Some((sts, left))
    }
}

/// Traefik's `rateLimit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    pub average: u64,
    pub burst: u64,
    pub period: String,
    /// As our `source` is written; None = the TCP peer.
    pub source: Option<String>,
}

/// Seconds.
const YEAR: u64 = 365 * 86_400;
/// Deepest chain of chains.
const DEEPEST: usize = 8;
/// Middlewares that only make things nicer: without them nobody gets in who should not.
const HARMLESS: [&str; 9] = [
    "compress",
    "buffering",
    "circuitbreaker",
    "inflightreq",
    "retry",
    "errors",
    "contenttype",
    "grpcweb",
    "plugin",
];

/// Gathers what a router's middlewares do. What is left out goes to `left`; `Err` = the router has to stay
/// out, and why.
pub fn gather(
    names: &str,
    all: &BTreeMap<String, Fields>,
    effect: &mut Effect,
    left: &mut Vec<String>,
    depth: usize,
) -> Result<(), String> {
    for name in names.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        let bare = name.strip_suffix("@docker").unwrap_or(name).to_ascii_lowercase();
        let Some(fields) = all.get(&bare) else {
            return Err(format!(
                "its middleware {name} is not in this file, and may be what protects it"
            ));
        };
        if depth > DEEPEST {
            return Err(format!("its middleware {name} is nested too deeply"));
        }
        for (field, value) in fields {
            let (kind, rest) = field.split_once('.').unwrap_or((field, ""));
            match kind {
                "chain" => gather(value, all, effect, left, depth + 1)?,
                "stripprefix" | "addprefix" | "ratelimit" | "headers" | "redirectscheme" | "buffering"
                | "retry" => {
                    if !take(kind, rest, value, effect) {
                        left.push(format!("middleware {bare}: {field}"));
                    }
                }
                _ if HARMLESS.contains(&kind) => {
                    let message = format!("middleware {bare}: {kind}");
                    if !left.contains(&message) {
                        left.push(message);
                    }
                }
                _ => return Err(format!("its middleware {bare} ({kind}) is not offered")),
            }
        }
    }
    Ok(())
}

/// False = that field is not taken.
fn take(kind: &str, field: &str, value: &str, effect: &mut Effect) -> bool {
    match (kind, field) {
        ("stripprefix", "prefixes") => {
            let prefixes = value
                .split(',')
                .map(|p| p.trim().trim_end_matches('/').to_string());
            effect.strip.extend(prefixes.filter(|p| !p.is_empty()));
        }
        ("stripprefix", "forceslash") => {}
        ("addprefix", "prefix") => {
            effect.add = Some(value.trim_end_matches('/').to_string()).filter(|p| !p.is_empty());
        }
        ("redirectscheme", "scheme") => effect.https = value == "https",
        ("redirectscheme", "permanent" | "port") => {}
        ("buffering", "maxrequestbodybytes") => effect.body_bytes = value.parse().ok().filter(|n| *n > 0),
        // Attempts count the first one.
        ("retry", "attempts") => {
            effect.retries = value.parse().ok().map(|n: u64| n.saturating_sub(1).min(10))
        }
        ("ratelimit", _) => return rate(field, value, effect),
        ("headers", _) => return headers(field, value, effect),
        _ => return false,
    }
    true
}

fn rate(field: &str, value: &str, effect: &mut Effect) -> bool {
    let rate = effect.rate.get_or_insert(Rate {
        average: 0,
        burst: 1,
        period: "1s".into(),
        source: None,
    });
    let number = || value.parse::<u64>().ok();
    match field {
        "average" => rate.average = number().unwrap_or(0),
        "burst" => rate.burst = number().unwrap_or(1).max(1),
        "period" => rate.period = value.to_string(),
        "sourcecriterion.ipstrategy.depth" => {
            rate.source = number().filter(|n| *n > 0).map(|n| format!("{{forwarded: {n}}}"));
        }
        "sourcecriterion.requestheadername" => rate.source = Some(format!("{{header: {}}}", quoted(value))),
        _ => return false,
    }
    true
}

fn headers(field: &str, value: &str, effect: &mut Effect) -> bool {
    let yes = value == "true";
    let mut response = |name: &str, value: &str| {
        effect.response_set.insert(name.into(), value.into());
    };
    if let Some(name) = field.strip_prefix("customrequestheaders.") {
        change(name, value, &mut effect.request_set, &mut effect.request_remove);
    } else if let Some(name) = field.strip_prefix("customresponseheaders.") {
        change(name, value, &mut effect.response_set, &mut effect.response_remove);
    } else {
        match field {
            "framedeny" if yes => response("x-frame-options", "DENY"),
            "customframeoptionsvalue" => response("x-frame-options", value),
            "contenttypenosniff" if yes => response("x-content-type-options", "nosniff"),
            "browserxssfilter" if yes => response("x-xss-protection", "1; mode=block"),
            "referrerpolicy" => response("referrer-policy", value),
            "permissionspolicy" => response("permissions-policy", value),
            "contentsecuritypolicy" => response("content-security-policy", value),
            "stsseconds" if value != "0" => {
                let old = effect
                    .response_set
                    .remove("strict-transport-security")
                    .unwrap_or_default();
                let more = old.trim_start_matches("max-age=0").to_string();
                let name = "strict-transport-security".to_string();
                effect.response_set.insert(name, format!("max-age={value}{more}"));
            }
            "stsincludesubdomains" | "stspreload" if yes => {
                let sts = effect.response_set.entry("strict-transport-security".into());
                let word = if field == "stspreload" {
                    "preload"
                } else {
                    "includeSubDomains"
                };
                let sts = sts.or_insert_with(|| "max-age=0".into());
                sts.push_str(&format!("; {word}"));
            }
            "sslredirect" => effect.https |= yes,
            "forcestsheader"
            | "framedeny"
            | "contenttypenosniff"
            | "browserxssfilter"
            | "stsseconds"
            | "stsincludesubdomains"
            | "stspreload" => {}
            _ => return false,
        }
    }
    true
}

/// An empty value removes the header.
fn change(name: &str, value: &str, set: &mut BTreeMap<String, String>, remove: &mut Vec<String>) {
    if value.is_empty() {
        remove.push(name.to_string());
    } else {
        set.insert(name.to_string(), value.to_string());
    }
}

/// A text as YAML; JSON is YAML.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    let is_word = text
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '/');
    let means_more = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    if is_word && text.chars().all(plain) && !means_more.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_string();
    }
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(names: &str, labels: &[(&str, &str, &str)]) -> (Result<Effect, String>, Vec<String>) {
        let mut all: BTreeMap<String, Fields> = BTreeMap::new();
        for (name, field, value) in labels {
            let fields = all.entry(name.to_string()).or_default();
            fields.insert(field.to_string(), value.to_string());
        }
        let (mut effect, mut left) = (Effect::default(), Vec::new());
        let done = gather(names, &all, &mut effect, &mut left, 0);
        (done.map(|()| effect), left)
    }

    #[test]
    fn what_is_taken() {
        let (effect, left) = gathered(
            "all@docker",
            &[
                ("all", "chain.middlewares", "strip,head,limit"),
                ("strip", "stripprefix.prefixes", "/a, /b/"),
                ("head", "headers.customrequestheaders.x-a", "1"),
                ("head", "headers.customresponseheaders.server", ""),
                ("head", "headers.stsseconds", "60"),
                ("head", "headers.stsincludesubdomains", "true"),
                ("head", "headers.accesscontrolalloworiginlist", "*"),
                ("limit", "ratelimit.average", "100"),
                ("limit", "ratelimit.burst", "200"),
                ("limit", "ratelimit.sourcecriterion.ipstrategy.depth", "1"),
            ],
        );
        let effect = effect.unwrap();
        assert_eq!(effect.strip, ["/a", "/b"]);
        assert_eq!(effect.request_set["x-a"], "1");
        assert_eq!(effect.response_remove, ["server"]);
        let sts = &effect.response_set["strict-transport-security"];
        assert_eq!(sts, "max-age=60; includeSubDomains");
        let (sts, _) = effect.clone().take_sts().unwrap();
        assert_eq!((sts.seconds, sts.subdomains, sts.preload), (60, true, false));
        let rate = effect.rate.unwrap();
        assert_eq!((rate.average, rate.burst), (100, 200));
        assert_eq!(rate.source.as_deref(), Some("{forwarded: 1}"));
        assert_eq!(left, ["middleware head: headers.accesscontrolalloworiginlist"]);
    }

    #[test]
    fn what_protects_is_not_left_out() {
        for (kind, want) in [
            ("basicauth.users", "is not offered"),
            ("forwardauth.address", "is not offered"),
            ("ipallowlist.sourcerange", "is not offered"),
            ("ipwhitelist.sourcerange", "is not offered"),
            ("chain.middlewares", "nested too deeply"),
        ] {
            let (done, _) = gathered("m", &[("m", kind, "m")]);
            assert!(done.unwrap_err().contains(want), "{kind}");
        }
        assert!(
            gathered("m@file", &[])
                .0
                .unwrap_err()
                .contains("not in this file")
        );
        let (done, left) = gathered("m", &[("m", "compress", "true")]);
        assert!(done.is_ok() && left == ["middleware m: compress"]);
    }

    #[test]
    fn texts_are_yaml() {
        for (text, want) in [
            ("a.b-c", "a.b-c"),
            ("no", "\"no\""),
            ("1a", "\"1a\""),
            ("*.x", "\"*.x\""),
            ("a: b", "\"a: b\""),
        ] {
            assert_eq!(quoted(text), want);
        }
    }
}
