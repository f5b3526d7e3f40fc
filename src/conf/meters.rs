//! What the config says of budgets, limits and what replicas share: LiteLLM's settings for the whole proxy,
//! and our own below `tollkeeper:`.

use super::fields::Fields;
use super::load::Env;
use super::node::Node;
use super::report::Notes;
use super::secret::Secret;
use super::settings::top_section;
use filters::model::money::Nanos;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Budgets and limits of the whole gateway.
#[derive(Debug, Clone, Default)]
pub struct Meters {
    /// Limits of all calls together, under LiteLLM's names: `litellm_settings.max_budget` and
    /// `budget_duration`, `general_settings.global_max_parallel_requests`, and of single models, from
    /// `tollkeeper.limits.models`.
    pub gateway: Map<String, Value>,
    /// `litellm_settings.max_end_user_budget`: of end users that nobody has made known, nano-dollars.
    pub end_user_budget_nanos: Option<i64>,
    /// `litellm_settings.budget_exceeded_status_code`.
    pub budget_status: Option<u16>,
    /// `tollkeeper.budgets.timezone` or `litellm_settings.timezone`: where midnight is. Default: UTC.
    pub zone: Option<TimeZone>,
    /// `tollkeeper.budgets.reset: rolling`: budgets start anew a period after they were set, and not at
    /// midnight, on Monday or on the first. Default: calendar, as LiteLLM.
    pub rolling: bool,
    /// `tollkeeper.limits.queue`: wait for room in place of a refusal. Default: none waits.
    pub queue: Option<Queue>,
    /// Where replicas count together: `tollkeeper.redis.url`, `router_settings.redis_url` or `redis_host`,
    /// `litellm_settings.cache_params` of type redis, `REDIS_URL`, `REDIS_HOST`.
    pub redis: Option<Secret>,
    /// `tollkeeper.redis.prefix`, before every key there. Default: tollkeeper.
    pub redis_prefix: String,
}

/// How long and how many may wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Default: 10s.
    pub max_wait: Duration,
    /// Default: 100.
    pub max_waiting: usize,
}

/// Fields of `litellm_settings` that are read here.
pub(super) const LITELLM: [&str; 6] = [
    "max_budget",
    "budget_duration",
    "max_end_user_budget",
    "budget_exceeded_status_code",
    "timezone",
    "cache_params",
];
pub(super) const GENERAL: [&str; 1] = ["global_max_parallel_requests"];
pub(super) const ROUTER: [&str; 5] = [
    "redis_url",
    "redis_host",
    "redis_port",
    "redis_password",
    "redis_username",
];

pub(super) fn section<'a>(root: &'a Node, name: &'static str, notes: &'a Notes) -> Option<Fields<'a>> {
    let section = top_section(root, name)?;
    // What is no mapping was reported where the section was read first.
    matches!(section.value.value, super::node::Value::Map(_))
        .then(|| Fields::open(&section.value, notes, name))?
}

fn dollars(fields: &Fields<'_>, key: &'static str) -> Option<i64> {
    let dollars = fields.amount(key)?;
    match Nanos::from_dollars_f64(dollars) {
        Ok(nanos) => Some(nanos.0),
        Err(e) => {
            if let Some(entry) = fields.entry(key) {
                drop(fields.error("number", format!("`{key}` {e}"), entry.value.at));
            }
            None
        }
    }
}

fn zone(fields: &Fields<'_>, key: &'static str) -> Option<TimeZone> {
    fields.parsed(key, "timezone", |name| {
        TimeZone::get(name).map_err(|_| "a time zone is written as in Europe/Berlin, or UTC".into())
    })
}

/// What LiteLLM's sections say.
pub(super) fn litellms(root: &Node, env: &Env, notes: &Notes, out: &mut Meters) {
    if let Some(fields) = section(root, "litellm_settings", notes) {
        if let Some(nanos) = dollars(&fields, "max_budget") {
            out.gateway
                .insert("max_budget".into(), json!(Nanos(nanos).to_string()));
        }
        if let Some(text) = fields.text("budget_duration") {
            out.gateway.insert("budget_duration".into(), text.into());
        }
        out.end_user_budget_nanos = dollars(&fields, "max_end_user_budget");
        out.budget_status = fields
            .count("budget_exceeded_status_code")
            .and_then(|n| u16::try_from(n).ok());
        if let (Some(entry), false) = (
            fields.entry("budget_exceeded_status_code"),
            out.budget_status.is_none_or(|s| (400..500).contains(&s)),
        ) {
            let at = entry.value.at;
            drop(fields.error(
                "number",
                "`budget_exceeded_status_code` must be from 400 to 499",
                at,
            ));
        }
        out.zone = zone(&fields, "timezone");
        if let Some(cache) = fields.child("cache_params")
            && cache.text("type").as_deref() == Some("redis")
        {
            let parts = Parts::read(&cache, "url", "host", "port", "password", "username");
            out.redis = parts.address(env).or_else(|| from_env(env));
        }
    }
    if let Some(fields) = section(root, "general_settings", notes)
        && let Some(n) = fields.count("global_max_parallel_requests")
    {
        out.gateway.insert("max_parallel_requests".into(), n.into());
    }
    if let Some(fields) = section(root, "router_settings", notes) {
        let [url, host, port, password, username] = ROUTER;
        let parts = Parts::read(&fields, url, host, port, password, username);
        if let Some(address) = parts.address(env) {
            out.redis = Some(address);
        }
    }
}

/// How an address of Redis begins.
const SCHEMES: [&str; 6] = [
    "redis://",
    "rediss://",
    "valkey://",
    "valkeys://",
    "redis+unix://",
    "unix://",
];

/// What stands below `tollkeeper:`, but for what `limits` holds besides.
pub(super) fn own(fields: &Fields<'_>, out: &mut Meters) {
    if let Some(budgets) = fields.child("budgets") {
        if let Some(zone) = zone(&budgets, "timezone") {
            out.zone = Some(zone);
        }
        let resets = [("calendar", false), ("rolling", true)];
        out.rolling = budgets.choice("reset", &resets).unwrap_or(false);
        budgets.refuse_rest();
    }
    if let Some(redis) = fields.child("redis") {
        if let Some(url) = redis.secret("url").filter(|u| !u.is_empty()) {
            let known = SCHEMES.iter().any(|scheme| url.expose().starts_with(scheme));
            match redis.entry("url").filter(|_| !known) {
                None => out.redis = Some(url),
                Some(entry) => drop(
                    redis
                        .error("url", "`url` is no address of Redis", entry.value.at)
                        .label("it begins with redis://, or rediss:// for TLS")
                        .help("for example redis://:password@redis:6379"),
                ),
            }
        }
        if let Some(prefix) = redis.text("prefix") {
            out.redis_prefix = prefix;
        }
        redis.refuse_rest();
    }
}

/// `tollkeeper.limits.queue` and `tollkeeper.limits.models`.
pub(super) fn limits(fields: &Fields<'_>, out: &mut Meters) {
    if let Some(queue) = fields.child("queue") {
        out.queue = Some(Queue {
            max_wait: queue.some_time("max_wait").unwrap_or(Duration::from_secs(10)),
            max_waiting: queue
                .count("max_waiting")
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(100),
        });
        queue.refuse_rest();
    }
    let Some(models) = fields.child("models") else {
        return;
    };
    for entry in models.all() {
        let name = entry.key.clone();
        let path = models.below(&name);
        let Some(model) = Fields::open(&entry.value, models.notes, path) else {
            continue;
        };
        let mut put = |table: &str, value: Option<Value>| {
            let place = out.gateway.entry(table).or_insert_with(|| json!({}));
            if let (Some(value), Some(place)) = (value, place.as_object_mut()) {
                place.insert(name.clone(), value);
            }
        };
        put("model_rpm_limit", model.count("rpm").map(Into::into));
        put("model_tpm_limit", model.count("tpm").map(Into::into));
        put(
            "model_max_parallel_requests",
            model.count("max_parallel_requests").map(Into::into),
        );
        let period = model.text("budget_duration");
        let budget = dollars(&model, "max_budget")
            .map(|n| json!({"budget_limit": Nanos(n).to_string(), "time_period": period}));
        put("model_max_budget", budget);
        model.refuse_rest();
    }
}

/// What the environment says, where the file is silent.
pub(super) fn environment(env: &Env, out: &mut Meters) {
    if out.redis.is_none() {
        out.redis = env.get("TOLLKEEPER_REDIS_URL").or_else(|| from_env(env));
    }
    if out.redis_prefix.is_empty() {
        out.redis_prefix = "tollkeeper".into();
    }
}

fn from_env(env: &Env) -> Option<Secret> {
    let text = |name: &str| env.get(name).map(|s| s.expose().to_string());
    env.get("REDIS_URL").or_else(|| {
        Parts {
            url: None,
            host: text("REDIS_HOST"),
            port: text("REDIS_PORT"),
            password: env.get("REDIS_PASSWORD"),
            username: text("REDIS_USERNAME"),
        }
        .address(env)
    })
}

/// An address in pieces, as LiteLLM writes it.
struct Parts {
    url: Option<Secret>,
    host: Option<String>,
    port: Option<String>,
    password: Option<Secret>,
    username: Option<String>,
}

impl Parts {
    fn read(
        fields: &Fields<'_>,
        url: &'static str,
        host: &'static str,
        port: &'static str,
        password: &'static str,
        username: &'static str,
    ) -> Self {
        Self {
            url: fields.secret(url).filter(|u| !u.is_empty()),
            host: fields.text(host).filter(|h| !h.is_empty()),
            port: fields.text(port).filter(|p| !p.is_empty()),
            password: fields.secret(password).filter(|p| !p.is_empty()),
            username: fields.text(username).filter(|u| !u.is_empty()),
        }
    }

    fn address(&self, env: &Env) -> Option<Secret> {
        if let Some(url) = &self.url {
            return Some(url.clone());
        }
        let host = self.host.as_deref()?;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_string()
        };
        let is_on = |v: Secret| matches!(v.expose().to_ascii_lowercase().as_str(), "1" | "true" | "yes");
        let scheme = if env.get("REDIS_SSL").is_some_and(is_on) {
            "rediss"
        } else {
            "redis"
        };
        let who = match (&self.username, &self.password) {
            (user, Some(password)) => format!(
                "{}:{}@",
                encoded(user.as_deref().unwrap_or_default()),
                encoded(password.expose())
            ),
            _ => String::new(),
        };
        let port = self.port.as_deref().unwrap_or("6379");
        Some(Secret::new(format!("{scheme}://{who}{host}:{port}")))
    }
}

/// For the part of an address before the host.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use crate::conf::{Env, load_text};

    fn meters(text: &str, env: Env) -> super::Meters {
        load_text("test", text, &env).unwrap().conf.meters
    }

    #[test]
    fn litellms_settings_and_ours_are_read() {
        let text = "
litellm_settings:
  max_budget: 100
  budget_duration: 30d
  max_end_user_budget: 0.5
  budget_exceeded_status_code: 422
  timezone: Europe/Berlin
general_settings: {global_max_parallel_requests: 7}
tollkeeper:
  budgets: {reset: rolling}
  limits:
    queue: {max_wait: 3s}
    models:
      gpt-4: {rpm: 5, max_budget: 2, budget_duration: 1d}
";
        let m = meters(text, Env::default());
        let limits = filters::model::limits::Limits::of(&m.gateway);
        assert_eq!(limits.budget.nanos, Some(100_000_000_000));
        assert_eq!(limits.budget.period.as_deref(), Some("30d"));
        assert_eq!(limits.parallel, Some(7));
        let gpt = &limits.models["gpt-4"];
        assert_eq!((gpt.rpm, gpt.budget.nanos), (Some(5), Some(2_000_000_000)));
        assert_eq!(gpt.budget.period.as_deref(), Some("1d"));
        assert_eq!(m.end_user_budget_nanos, Some(500_000_000));
        assert_eq!(m.budget_status, Some(422));
        assert_eq!(m.zone.unwrap().iana_name(), Some("Europe/Berlin"));
        assert!(m.rolling && m.redis.is_none());
        let queue = m.queue.unwrap();
        assert_eq!((queue.max_wait.as_secs(), queue.max_waiting), (3, 100));
    }

    #[test]
    fn redis_is_found_wherever_litellm_has_it() {
        let redis = |text: &str, env: Env| {
            let found = meters(text, env).redis;
            found.map(|s| s.expose().to_string()).unwrap_or_default()
        };
        let none = Env::default;
        assert_eq!(redis("", none()), "");
        for (text, want) in [
            ("tollkeeper: {redis: {url: redis://a:1}}", "redis://a:1"),
            ("router_settings: {redis_url: redis://b:2}", "redis://b:2"),
            (
                "router_settings: {redis_host: c, redis_port: 3, redis_password: 'p@ss'}",
                "redis://:p%40ss@c:3",
            ),
            (
                "litellm_settings: {cache: true, cache_params: {type: redis, host: d, port: 4}}",
                "redis://d:4",
            ),
            ("litellm_settings: {cache_params: {type: local, host: d}}", ""),
        ] {
            assert_eq!(redis(text, none()), want, "{text}");
        }
        let env = Env::from([("REDIS_HOST", "::1"), ("REDIS_SSL", "true")]);
        assert_eq!(redis("", env), "rediss://[::1]:6379");
        let env = Env::from([("REDIS_URL", "redis://e:5")]);
        assert_eq!(
            redis("litellm_settings: {cache_params: {type: redis}}", env),
            "redis://e:5"
        );
    }

    #[test]
    fn bad_values_name_their_field() {
        for (text, want) in [
            ("litellm_settings: {max_budget: -1}", "max_budget"),
            (
                "tollkeeper: {redis: {url: 'localhost:6379'}}",
                "no address of Redis",
            ),
            (
                "litellm_settings: {budget_exceeded_status_code: 200}",
                "budget_exceeded_status_code",
            ),
            ("tollkeeper: {budgets: {timezone: Mars/Base}}", "time zone"),
            ("tollkeeper: {budgets: {reset: never}}", "reset"),
            ("tollkeeper: {limits: {queue: {wait: 3s}}}", "wait"),
            ("tollkeeper: {limits: {models: {a: {rpm: -3}}}}", "rpm"),
        ] {
            let report = load_text("test", text, &Env::default())
                .unwrap_err()
                .render(false);
            assert!(report.contains(want), "{report}");
        }
    }
}
