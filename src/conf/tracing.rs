//! Where calls are told of, and how much: Langfuse and OpenTelemetry, from LiteLLM's callbacks, the usual
//! variables, and our own section `tollkeeper.tracing`.

mod environment;

pub(super) use self::environment::environment;
use super::fields::Fields;
use super::node::{Node, Value};
use super::report::Notes;
use super::secret::Secret;
use super::settings::top_section;
use super::text::{base_url, shown};
use filters::model::trace::Capture;
use std::time::Duration;

/// The section `tollkeeper.tracing`, and what of it LiteLLM's settings and the environment say.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// Langfuse, when one of LiteLLM's callbacks is `langfuse` or `langfuse_otel`, or the section is there.
    pub langfuse: Option<Langfuse>,
    /// Any OTLP receiver, when one of LiteLLM's callbacks is `otel`, or the section is there.
    pub otlp: Option<Otlp>,
    /// `litellm_settings.turn_off_message_logging`: nothing of what was said leaves, whatever `capture`
    /// says. Default: false.
    pub redact: bool,
    /// `litellm_settings.redact_user_api_key_info`: nor whose key it was. Default: false.
    pub redact_keys: bool,
    /// Callers may keep a call from being told of with `no-log: true`. Off with
    /// `litellm_settings.global_disable_no_log_param`. Default: true.
    pub no_log: bool,
    /// Longest question and longest answer that are told, bytes, each; the rest is cut. 1KiB to 512KiB.
    /// Default: 256KiB.
    pub max_bytes: u64,
    /// What may wait for a receiver that is away, all receivers together, bytes. Default: 64MiB.
    pub queue_bytes: u64,
    /// How long a call waits for others to be sent with it. `LANGFUSE_FLUSH_INTERVAL`, in seconds, says the
    /// same. Default: 1s.
    pub flush_every: Duration,
    /// `litellm_settings.default_team_settings`: teams with Langfuse projects of their own.
    pub teams: Vec<TeamProject>,
    /// `litellm_settings.langfuse_default_tags`.
    pub default_tags: Vec<String>,
}

/// Langfuse.
#[derive(Debug, Clone, PartialEq)]
pub struct Langfuse {
    /// Its address, without a slash at the end. Default: `LANGFUSE_OTEL_HOST`, `LANGFUSE_BASE_URL`,
    /// `LANGFUSE_HOST`, else https://cloud.langfuse.com.
    pub host: String,
    /// The project of calls that belong to no other. Default: `LANGFUSE_PUBLIC_KEY` and
    /// `LANGFUSE_SECRET_KEY`; without them, only keys and teams with projects of their own are told of.
    pub project: Option<Project>,
    /// Further addresses that keys and teams may name in their `logging`. Others are never called.
    pub hosts: Vec<String>,
    /// `metadata`: everything but what was said; `full`: that too. Default: full.
    pub capture: Capture,
    /// Share of the calls that are told of, 0 to 1; also `LANGFUSE_SAMPLE_RATE`. Default: 1.
    pub sample: f64,
    /// `LANGFUSE_TRACING_ENVIRONMENT`.
    pub environment: Option<String>,
    /// `LANGFUSE_RELEASE`.
    pub release: Option<String>,
    pub on: On,
}

/// A Langfuse project's two keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Project {
    pub public_key: String,
    pub secret_key: Secret,
}

/// An OTLP receiver.
#[derive(Debug, Clone, PartialEq)]
pub struct Otlp {
    /// Where spans are posted, whole: https://otel.example.com/v1/traces. Default:
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`; or `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_ENDPOINT` with
    /// `/v1/traces` behind it.
    pub endpoint: String,
    /// Sent along, such as `authorization`. Default: `OTEL_EXPORTER_OTLP_HEADERS` or `OTEL_HEADERS`.
    pub headers: Vec<(String, Secret)>,
    /// `metadata`: everything but what was said; `full`: that too. Default: metadata, as OpenTelemetry has
    /// it; `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true` says full.
    pub capture: Capture,
    /// Share of the traces that begin here, 0 to 1; what a caller decided for its own stands.
    /// `OTEL_TRACES_SAMPLER_ARG` says the same. Default: 1.
    pub sample: f64,
    /// `OTEL_SERVICE_NAME`. Default: tollkeeper.
    pub service_name: String,
    pub on: On,
}

/// Which calls are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct On {
    pub success: bool,
    pub failure: bool,
}

impl On {
    const ALL: On = On {
        success: true,
        failure: true,
    };
    const NONE: On = On {
        success: false,
        failure: false,
    };

    fn any(self) -> bool {
        self.success || self.failure
    }
}

/// A team whose calls go to a project of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TeamProject {
    pub team_id: String,
    pub project: Project,
    /// None = the gateway's.
    pub host: Option<String>,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            langfuse: None,
            otlp: None,
            redact: false,
            redact_keys: false,
            no_log: true,
            max_bytes: 256 << 10,
            queue_bytes: 64 << 20,
            flush_every: Duration::from_secs(1),
            teams: Vec::new(),
            default_tags: Vec::new(),
        }
    }
}

impl Default for Langfuse {
    fn default() -> Self {
        Self {
            host: String::new(),
            project: None,
            hosts: Vec::new(),
            capture: Capture::Full,
            sample: 1.0,
            environment: None,
            release: None,
            on: On::NONE,
        }
    }
}

impl Default for Otlp {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            headers: Vec::new(),
            capture: Capture::Metadata,
            sample: 1.0,
            service_name: String::new(),
            on: On::NONE,
        }
    }
}

impl Tracing {
    /// Everything, secrets too, such that two that differ look different. For comparing only.
    pub fn fingerprint(&self) -> String {
        let projects = self.langfuse.iter().flat_map(|l| &l.project);
        let teams = self.teams.iter().map(|t| &t.project);
        let keys = projects.chain(teams).map(|p| p.secret_key.expose());
        let headers = self.otlp.iter().flat_map(|o| &o.headers);
        let secrets: Vec<&str> = keys.chain(headers.map(|(_, v)| v.expose())).collect();
        format!("{self:?}{secrets:?}")
    }
}

/// Fields of `litellm_settings` that are read here.
pub(super) const LITELLM: [&str; 8] = [
    "callbacks",
    "success_callback",
    "failure_callback",
    "turn_off_message_logging",
    "redact_user_api_key_info",
    "global_disable_no_log_param",
    "default_team_settings",
    "langfuse_default_tags",
];

/// Shortest and longest content that may be asked for, bytes. One call must fit into what receivers take.
const CONTENT: std::ops::RangeInclusive<u64> = (1 << 10)..=(512 << 10);
const SMALLEST_QUEUE: u64 = 1 << 20;

/// What LiteLLM's section says.
pub(super) fn litellms(root: &Node, notes: &Notes, out: &mut Tracing) {
    let Some(section) = top_section(root, "litellm_settings") else {
        return;
    };
    if !matches!(section.value.value, Value::Map(_)) {
        return;
    }
    let Some(fields) = Fields::open(&section.value, notes, "litellm_settings") else {
        return;
    };
    let lists = [
        ("callbacks", On::ALL),
        (
            "success_callback",
            On {
                success: true,
                failure: false,
            },
        ),
        (
            "failure_callback",
            On {
                success: false,
                failure: true,
            },
        ),
    ];
    let (mut langfuse, mut otlp) = (On::NONE, On::NONE);
    for (name, adds) in lists {
        for callback in fields.texts(name).unwrap_or_default() {
            let slot = match callback.as_str() {
                "langfuse" | "langfuse_otel" => &mut langfuse,
                "otel" | "opentelemetry" | "otlp" => &mut otlp,
                // Metrics are always there.
                "prometheus" => continue,
                other => {
                    if let Some(entry) = fields.entry(name) {
                        let message = format!("`{name}`: {} is not supported", shown(other));
                        let draft = fields.warning("unsupported", message, entry.key_at);
                        drop(draft.label("`langfuse`, `otel` and `prometheus` are"));
                    }
                    continue;
                }
            };
            slot.success |= adds.success;
            slot.failure |= adds.failure;
        }
    }
    if langfuse.any() {
        out.langfuse.get_or_insert_default().on = langfuse;
    }
    if otlp.any() {
        out.otlp.get_or_insert_default().on = otlp;
    }
    out.redact = fields.flag("turn_off_message_logging").unwrap_or(false);
    out.redact_keys = fields.flag("redact_user_api_key_info").unwrap_or(false);
    out.no_log = !fields.flag("global_disable_no_log_param").unwrap_or(false);
    out.default_tags = fields.texts("langfuse_default_tags").unwrap_or_default();
    let teams = fields.list("default_team_settings").unwrap_or_default();
    for (n, item) in teams.iter().enumerate() {
        let path = fields.below(&format!("default_team_settings[{n}]"));
        out.teams
            .extend(Fields::open(item, notes, path).and_then(|f| team(&f)));
    }
}

/// A team with its project; teams without one need nothing.
fn team(fields: &Fields<'_>) -> Option<TeamProject> {
    let team_id = fields.text("team_id")?;
    let public_key = fields.text("langfuse_public_key")?;
    let secret_key = fields
        .secret("langfuse_secret")
        .or_else(|| fields.secret("langfuse_secret_key"))
        .filter(|s| !s.is_empty())?;
    let host = fields.parsed("langfuse_host", "url", address);
    Some(TeamProject {
        team_id,
        project: Project {
            public_key,
            secret_key,
        },
        host,
    })
}

/// What stands below `tollkeeper:`.
pub(super) fn own(fields: &Fields<'_>, out: &mut Tracing) {
    let Some(tracing) = fields.child("tracing") else {
        return;
    };
    if let Some(bytes) = tracing.bytes("max_bytes") {
        out.max_bytes = bytes;
        if !CONTENT.contains(&bytes)
            && let Some(entry) = tracing.entry("max_bytes")
        {
            drop(tracing.error("size", "`max_bytes` must be from 1KiB to 512KiB", entry.value.at));
        }
    }
    if let Some(bytes) = tracing.bytes("queue_bytes") {
        out.queue_bytes = bytes;
        if bytes < SMALLEST_QUEUE
            && let Some(entry) = tracing.entry("queue_bytes")
        {
            drop(tracing.error("size", "`queue_bytes` must be 1MiB at least", entry.value.at));
        }
    }
    if let Some(every) = tracing.some_time("flush_every") {
        out.flush_every = every;
    }
    if let Some(section) = tracing.child("langfuse") {
        let langfuse = out.langfuse.get_or_insert_default();
        langfuse.on = On::ALL;
        if let Some(host) = section.parsed("host", "url", address) {
            langfuse.host = host;
        }
        let (public, secret) = (section.text("public_key"), section.secret("secret_key"));
        match (public, secret.filter(|s| !s.is_empty())) {
            (Some(public_key), Some(secret_key)) => {
                langfuse.project = Some(Project {
                    public_key,
                    secret_key,
                });
            }
            (None, None) => {}
            (public, _) => {
                let (there, missing) = if public.is_some() {
                    ("public_key", "secret_key")
                } else {
                    ("secret_key", "public_key")
                };
                if let Some(entry) = section.entry(there) {
                    let message = format!("`{there}` is there and `{missing}` is not");
                    drop(section.error("missing", message, entry.key_at));
                }
            }
        }
        if let Some(hosts) = section.parsed_list("hosts", "url", address) {
            langfuse.hosts = hosts;
        }
        capture(&section, &mut langfuse.capture);
        share(&section, &mut langfuse.sample);
        langfuse.environment = section.text("environment").or(langfuse.environment.take());
        langfuse.release = section.text("release").or(langfuse.release.take());
        section.refuse_rest();
    }
    if let Some(section) = tracing.child("otlp") {
        let otlp = out.otlp.get_or_insert_default();
        otlp.on = On::ALL;
        if let Some(endpoint) = section.parsed("endpoint", "url", address) {
            otlp.endpoint = endpoint;
        }
        if let Some(headers) = section.child("headers") {
            for entry in headers.all() {
                let name = http::HeaderName::from_bytes(entry.key.as_bytes());
                match (name, entry.value.scalar()) {
                    (Ok(name), Some(value)) => otlp
                        .headers
                        .push((name.as_str().to_owned(), Secret::new(value.text.clone()))),
                    _ => {
                        let message = format!("`{}` is no header with a value", shown(&entry.key));
                        drop(headers.error("header", message, entry.key_at));
                    }
                }
            }
        }
        capture(&section, &mut otlp.capture);
        share(&section, &mut otlp.sample);
        if let Some(name) = section.text("service_name") {
            otlp.service_name = name;
        }
        section.refuse_rest();
    }
    tracing.refuse_rest();
}

fn capture(fields: &Fields<'_>, slot: &mut Capture) {
    let words = [("metadata", Capture::Metadata), ("full", Capture::Full)];
    if let Some(capture) = fields.choice("capture", &words) {
        *slot = capture;
    }
}

fn share(fields: &Fields<'_>, slot: &mut f64) {
    if let Some(share) = fields.amount("sample") {
        *slot = share;
        if share > 1.0
            && let Some(entry) = fields.entry("sample")
        {
            drop(fields.error("number", "`sample` must be from 0 to 1", entry.value.at));
        }
    }
}

fn address(text: &str) -> Result<String, String> {
    base_url(text)
        .map(|url| url.trim_end_matches('/').to_owned())
        .map_err(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::{Env, load_text};

    fn tracing(text: &str, env: &[(&str, &str)]) -> Tracing {
        let env: Env = env.iter().copied().collect();
        match load_text("test", text, &env) {
            Ok(loaded) => loaded.conf.tollkeeper.tracing,
            Err(report) => panic!("{}", report.render(false)),
        }
    }

    const KEYS: [(&str, &str); 2] = [("LANGFUSE_PUBLIC_KEY", "pk"), ("LANGFUSE_SECRET_KEY", "sk-lf")];

    #[test]
    fn litellms_callbacks_switch_it_on() {
        assert_eq!(tracing("", &KEYS), Tracing::default(), "keys alone send nothing");
        let on = |text: &str| tracing(text, &KEYS).langfuse.unwrap();
        let l = on("litellm_settings: {success_callback: [\"langfuse\"]}");
        assert_eq!((l.on.success, l.on.failure), (true, false));
        assert_eq!(
            (l.host.as_str(), l.project.unwrap().public_key.as_str()),
            ("https://cloud.langfuse.com", "pk")
        );
        let l = on("litellm_settings: {callbacks: langfuse_otel}");
        assert_eq!(l.on, On::ALL);
        let l = on("litellm_settings: {success_callback: [langfuse], failure_callback: [langfuse]}");
        assert_eq!(l.on, On::ALL);
        for (name, value, want) in [
            ("LANGFUSE_HOST", "http://langfuse:3000/", "http://langfuse:3000"),
            ("LANGFUSE_BASE_URL", "https://a.b", "https://a.b"),
            ("LANGFUSE_OTEL_HOST", "https://c.d", "https://c.d"),
        ] {
            let text = "litellm_settings: {callbacks: [langfuse]}";
            let l = tracing(text, &[KEYS[0], KEYS[1], (name, value)])
                .langfuse
                .unwrap();
            assert_eq!(l.host, want);
        }
    }

    #[test]
    fn otlp_goes_where_the_usual_variables_say() {
        let text = "litellm_settings: {callbacks: [otel]}";
        let endpoint = |name: &str, value: &str| tracing(text, &[(name, value)]).otlp.unwrap().endpoint;
        let base = "http://otel:4318";
        assert_eq!(
            endpoint("OTEL_EXPORTER_OTLP_ENDPOINT", base),
            "http://otel:4318/v1/traces"
        );
        assert_eq!(
            endpoint("OTEL_ENDPOINT", "http://otel:4318/v1/traces"),
            "http://otel:4318/v1/traces"
        );
        assert_eq!(
            endpoint("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://o/x"),
            "http://o/x"
        );
        let o = tracing(
            text,
            &[
                ("OTEL_ENDPOINT", base),
                ("OTEL_HEADERS", "authorization=Basic%20abc,x-a=b, =c,d"),
                ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ],
        )
        .otlp
        .unwrap();
        let headers: Vec<_> = o.headers.iter().map(|(n, v)| (n.as_str(), v.expose())).collect();
        assert_eq!(headers, [("authorization", "Basic abc"), ("x-a", "b")]);
        assert_eq!(
            (o.sample, o.capture, o.service_name.as_str()),
            (0.25, Capture::Metadata, "tollkeeper")
        );
    }

    #[test]
    fn our_own_section_says_the_rest() {
        let t = tracing(
            "
litellm_settings:
  turn_off_message_logging: true
  default_team_settings:
    - {team_id: t1, success_callback: [langfuse], langfuse_public_key: pk1, langfuse_secret: sk1}
    - {team_id: t2}
tollkeeper:
  tracing:
    max_bytes: 64KiB
    flush_every: 50ms
    langfuse: {host: 'http://l', public_key: p, secret_key: s, hosts: ['http://m'], capture: metadata, sample: 0.5}
    otlp: {endpoint: 'http://o/v1/traces', headers: {x-key: v}, capture: full}
",
            &[],
        );
        let (l, o) = (t.langfuse.clone().unwrap(), t.otlp.clone().unwrap());
        assert_eq!(
            (l.on, o.on, t.redact, t.max_bytes),
            (On::ALL, On::ALL, true, 64 << 10)
        );
        assert_eq!(
            (l.capture, o.capture, l.sample),
            (Capture::Metadata, Capture::Full, 0.5)
        );
        assert_eq!((t.teams.len(), t.teams[0].team_id.as_str()), (1, "t1"));
        assert!(!format!("{t:?}").contains("sk1"), "secrets are not printed");
        assert!(t.fingerprint().contains("sk1"));
    }

    #[test]
    fn bad_values_name_their_field() {
        for (text, want) in [
            ("tollkeeper: {tracing: {max_bytes: 1MiB}}", "max_bytes"),
            ("tollkeeper: {tracing: {queue_bytes: 1KiB}}", "queue_bytes"),
            ("tollkeeper: {tracing: {langfuse: {host: nowhere}}}", "host"),
            ("tollkeeper: {tracing: {langfuse: {public_key: p}}}", "secret_key"),
            ("tollkeeper: {tracing: {langfuse: {sample: 2}}}", "sample"),
            ("tollkeeper: {tracing: {otlp: {capture: all}}}", "capture"),
            (
                "tollkeeper: {tracing: {otlp: {capture: full}}}",
                "OTEL_EXPORTER_OTLP_ENDPOINT",
            ),
            ("tollkeeper: {tracing: {jaeger: {}}}", "jaeger"),
        ] {
            let report = load_text("test", text, &Env::default())
                .unwrap_err()
                .render(false);
            assert!(report.contains(want), "{report}");
        }
    }
}
