//! What the environment says of tracing, where the file is silent: the variables of Langfuse's SDK, of
//! OpenTelemetry and of LiteLLM.

use super::{Project, Tracing, address};
use crate::conf::load::Env;
use crate::conf::report::Notes;
use crate::conf::secret::Secret;
use filters::model::trace::Capture;
use std::time::Duration;

const CLOUD: &str = "https://cloud.langfuse.com";

/// What the environment says, where the file is silent.
pub(in crate::conf) fn environment(env: &Env, notes: &Notes, out: &mut Tracing) {
    let text = |name: &str| {
        env.get(name)
            .map(|s| s.expose().trim().to_string())
            .filter(|t| !t.is_empty())
    };
    let number = |name: &str| text(name).and_then(|t| t.parse::<f64>().ok());
    let url = |name: &str| {
        let given = text(name)?;
        match address(&given) {
            Ok(url) => Some(url),
            Err(why) => {
                notes.error("url", format!("the variable {name} is not usable: {why}"));
                None
            }
        }
    };
    if let Some(langfuse) = &mut out.langfuse {
        if langfuse.host.is_empty() {
            let names = ["LANGFUSE_OTEL_HOST", "LANGFUSE_BASE_URL", "LANGFUSE_HOST"];
            langfuse.host = names.into_iter().find_map(url).unwrap_or_else(|| CLOUD.into());
        }
        if langfuse.project.is_none() {
            let keys = (text("LANGFUSE_PUBLIC_KEY"), env.get("LANGFUSE_SECRET_KEY"));
            match keys {
                (Some(public_key), Some(secret_key)) => {
                    langfuse.project = Some(Project {
                        public_key,
                        secret_key,
                    });
                }
                (None, None) if !out.teams.is_empty() => {}
                _ => {
                    let message =
                        "Langfuse is asked for, and LANGFUSE_PUBLIC_KEY or LANGFUSE_SECRET_KEY is not set";
                    drop(
                        notes
                            .warning("env", message)
                            .help("only keys and teams with a project of their own are told of"),
                    );
                }
            }
        }
        if let Some(share) = number("LANGFUSE_SAMPLE_RATE").filter(|s| (0.0..=1.0).contains(s))
            && langfuse.sample == 1.0
        {
            langfuse.sample = share;
        }
        langfuse.environment = langfuse
            .environment
            .take()
            .or_else(|| text("LANGFUSE_TRACING_ENVIRONMENT"));
        langfuse.release = langfuse.release.take().or_else(|| text("LANGFUSE_RELEASE"));
        if let Some(seconds) = number("LANGFUSE_FLUSH_INTERVAL").filter(|s| (0.01..=3600.0).contains(s))
            && out.flush_every == Tracing::default().flush_every
        {
            out.flush_every = Duration::from_secs_f64(seconds);
        }
    }
    if let Some(otlp) = &mut out.otlp {
        if otlp.endpoint.is_empty() {
            let whole = url("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
            let base = || url("OTEL_EXPORTER_OTLP_ENDPOINT").or_else(|| url("OTEL_ENDPOINT"));
            otlp.endpoint = whole
                .or_else(|| base().map(|base| with_path(&base)))
                .unwrap_or_default();
        }
        if otlp.endpoint.is_empty() {
            drop(
                notes
                    .error("missing", "OpenTelemetry is asked for, and no address is given")
                    .help("set OTEL_EXPORTER_OTLP_ENDPOINT, or `tollkeeper.tracing.otlp.endpoint`"),
            );
        }
        if otlp.headers.is_empty() {
            let names = [
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
                "OTEL_EXPORTER_OTLP_HEADERS",
                "OTEL_HEADERS",
            ];
            otlp.headers = names
                .iter()
                .find_map(|name| env.get(name))
                .map(|list| headers(list.expose()))
                .unwrap_or_default();
        }
        if otlp.service_name.is_empty() {
            otlp.service_name = text("OTEL_SERVICE_NAME").unwrap_or_else(|| "tollkeeper".into());
        }
        if let Some(share) = number("OTEL_TRACES_SAMPLER_ARG").filter(|s| (0.0..=1.0).contains(s))
            && text("OTEL_TRACES_SAMPLER").is_some_and(|s| s.ends_with("traceidratio"))
            && otlp.sample == 1.0
        {
            otlp.sample = share;
        }
        let full = text("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT");
        if full.is_some_and(|t| t.eq_ignore_ascii_case("true")) {
            otlp.capture = Capture::Full;
        }
    }
}

fn with_path(base: &str) -> String {
    if base.ends_with("/v1/traces") {
        base.to_owned()
    } else {
        format!("{base}/v1/traces")
    }
}

/// `name=value,name2=value2`, values with `%20` and the like, as OpenTelemetry has it.
fn headers(list: &str) -> Vec<(String, Secret)> {
    list.split(',')
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let name = http::HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
            let value = unescaped(value.trim());
            http::HeaderValue::from_str(&value).ok()?;
            Some((name.as_str().to_owned(), Secret::new(value)))
        })
        .collect()
}

fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let code = (*first == b'%')
            .then(|| more.get(..2).and_then(|d| std::str::from_utf8(d).ok()))
            .flatten()
            .and_then(|d| u8::from_str_radix(d, 16).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = more.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
