//! The process' log: readable on a terminal, JSON lines otherwise, and the one line of each request.

use crate::conf::{Log, LogFormat};
use filters::contract::{Cx, Outcome};
use filters::model::record::Status;
use serde_json::{Map, Value};
use std::io::{IsTerminal, Write};

/// The target of the one line that each request leaves at `debug`.
pub const REQUESTS: &str = "tollkeeper::request";

/// Sets the log up: readable on a terminal, JSON lines otherwise. `RUST_LOG` wins over the config.
pub fn init(log: &Log, rust_log: Option<&str>) {
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let mut builder = env_logger::Builder::new();
    // Pingora tells each request's failure at warn and error with the upstream's address in it; ours
    // are written where the failure is understood.
    builder
        .filter_level(log.level)
        .filter_module("pingora", log::LevelFilter::Error.min(log.level));
    // It reports a pooled connection that somebody else took first as an error; it opens another one.
    builder.filter_module(&["pingora_core", "connectors"].join("::"), log::LevelFilter::Off);
    for module in [
        "pingora_core",
        "pingora_proxy",
        "pingora_pool",
        "tokio_postgres",
        "refinery_core",
        "rustls",
    ] {
        builder.filter_module(module, log::LevelFilter::Warn.min(log.level));
    }
    if let Some(spec) = rust_log {
        builder.parse_filters(spec);
    }
    // Whoever knocks and goes away again must not fill the log with errors.
    let knocks = log.level >= log::LevelFilter::Debug;
    builder.format(move |out, record| {
        if !knocks && is_knock(record) {
            return Ok(());
        }
        let now = jiff::Timestamp::now();
        if json {
            let mut line = Map::new();
            line.insert("ts".into(), now.to_string().into());
            line.insert(
                "level".into(),
                record.level().as_str().to_ascii_lowercase().into(),
            );
            line.insert("msg".into(), record.args().to_string().into());
            let _ = record.key_values().visit(&mut Pairs(&mut line));
            writeln!(out, "{}", Value::Object(line))
        } else {
            let mut line = Map::new();
            let _ = record.key_values().visit(&mut Pairs(&mut line));
            let pairs = text_pairs(&line);
            // A control character in a caller's text must not start a line of its own.
            let text: String = record.args().to_string().escape_debug_controls();
            writeln!(
                out,
                "{} {:5} {text}{pairs}",
                now.strftime("%H:%M:%S"),
                record.level()
            )
        }
    });
    // A second logger in one process (tests) is no reason to fail.
    let _ = builder.try_init();
}

/// Pingora's word on a handshake, or a head, that came to nothing, which is the client's doing.
fn is_knock(record: &log::Record<'_>) -> bool {
    let words = ["Downstream handshake", "H2 handshake error", "Fail to proxy"];
    record.target().starts_with("pingora_") && {
        let text = record.args().to_string();
        words.iter().any(|w| text.starts_with(w))
            && (!text.starts_with("Fail") || text.contains("while reading request headers"))
    }
}

/// The pairs of a line, as text. JSON escapes some control characters and not those that a terminal takes
/// for commands as well.
fn text_pairs(line: &Map<String, Value>) -> String {
    let pairs: String = line.iter().map(|(k, v)| format!(" {k}={v}")).collect();
    pairs.escape_debug_controls()
}

trait EscapeControls {
    fn escape_debug_controls(&self) -> String;
}

impl EscapeControls for String {
    fn escape_debug_controls(&self) -> String {
        self.chars()
            .flat_map(|c| {
                if c.is_control() {
                    c.escape_default().collect()
                } else {
                    vec![c]
                }
            })
            .collect()
    }
}

struct Pairs<'a>(&'a mut Map<String, Value>);

impl<'kvs> log::kv::VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(
        &mut self,
        key: log::kv::Key<'kvs>,
        value: log::kv::Value<'kvs>,
    ) -> Result<(), log::kv::Error> {
        let json = if let Some(n) = value.to_i64() {
            n.into()
        } else if let Some(b) = value.to_bool() {
            b.into()
        } else {
            value.to_string().into()
        };
        self.0.insert(key.to_string(), json);
        Ok(())
    }
}

/// The line of a request that is over. No prompt, no key.
pub fn request_line(cx: &Cx, outcome: &Outcome) {
    let level = if outcome.http_status >= 500 || outcome.status == Status::Cut {
        log::Level::Warn
    } else {
        log::Level::Debug
    };
    if !::log::log_enabled!(target: REQUESTS, level) {
        return;
    }
    let call = cx.call.as_ref();
    let used = cx.metered.used.unwrap_or_default();
    ::log::log!(
        target: REQUESTS, level,
        request_id = cx.request_id.as_str(),
        lane = &*cx.lane,
        key_alias = cx.caller.key().and_then(|k| k.key_alias.as_deref()).unwrap_or_default(),
        model = call.map(|c| c.requested_model.as_str()).unwrap_or_default(),
        deployment = cx.deployment.as_ref().map(|d| d.id.as_str()).unwrap_or_default(),
        status = outcome.http_status,
        outcome = outcome.status.as_str(),
        error = outcome.error.as_deref().unwrap_or_default(),
        duration_ms = cx.started.elapsed().as_millis() as u64,
        ttft_ms = cx.first_byte.map_or(0, |t| t.duration_since(cx.started).as_millis() as u64),
        tokens_in = used.prompt_tokens,
        tokens_out = used.completion_tokens,
        attempts = cx.attempts.len();
        "request"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_cannot_command_a_terminal() {
        let mut line = Map::new();
        line.insert("alias".into(), "a\u{9b}31m\u{7f}\nb".into());
        let text = text_pairs(&line);
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.contains("31m"));
    }
}
