//! The process' log: readable on a terminal, JSON lines otherwise, and the one line of each request.
//!
//! What is told is decided here, and can be changed while the process runs: `line` writes it, `request` says what
//! is told of a request, `flood` how many of those a second holds, `sink` brings lines to stderr without ever
//! holding up a call.

mod count;
mod flood;
mod line;
mod request;
mod sink;

pub use count::{Counts, counts, gather};

use crate::conf::{Log, LogFormat, LogRequests};
use anstream::ColorChoice;
use arc_swap::ArcSwap;
use count::Lines;
use filters::contract::{Cx, Outcome};
use flood::Flood;
use line::{Json, Moment};
use log::{Level, LevelFilter, Metadata, Record};
use parking_lot::Mutex;
use sink::Sink;
use std::cell::RefCell;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// The target of the one line that each request leaves.
pub const REQUESTS: &str = "tollkeeper::request";

/// Modules that tell little of use and much besides: headers with keys in them, at their lower levels.
const NOISY: [&str; 13] = [
    "pingora_core",
    "pingora_proxy",
    "pingora_pool",
    "pingora_cache",
    "tokio_postgres",
    "refinery_core",
    "rustls",
    "h2",
    "hyper",
    "hyper_util",
    "reqwest",
    "redis",
    "tungstenite",
];
/// The longest filter, bytes.
const MOST_FILTER: usize = 1_000;
/// What the way out waits for.
const LAST_LINES: Duration = Duration::from_secs(1);

static JOURNAL: OnceLock<Journal> = OnceLock::new();

/// What is logged, and how.
struct Journal {
    filter: ArcSwap<Filter>,
    /// What `requests` says of request lines: 0 = off, 1 = errors, 2 = all.
    requests: AtomicU8,
    /// The lowest level at which request lines are told, as a number.
    request_level: AtomicUsize,
    is_json: AtomicBool,
    is_coloured: bool,
    flood: Flood,
    sink: Sink,
    lines: Lines,
    /// What the config said last, and what `RUST_LOG` says.
    said: Mutex<Log>,
    rust_log: Option<String>,
}

struct Filter {
    logger: env_logger::Logger,
    state: State,
}

/// What is logged now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub level: LevelFilter,
    /// Directives beyond the level, as `RUST_LOG` has them.
    pub filter: Option<String>,
    /// What said so: `config`, `RUST_LOG` or `request`.
    pub from: &'static str,
}

/// What somebody wants to be logged from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    Level(LevelFilter),
    /// As `RUST_LOG` has it: `info,tollkeeper::proxy=debug`.
    Filter(String),
    /// What the config says.
    Configured,
}

/// Sets the log up. `RUST_LOG` wins over the config.
pub fn init(log: &Log, rust_log: Option<&str>) {
    let sink = match Sink::start(std::io::stderr(), Box::new(tell)) {
        Ok(sink) => sink,
        Err(e) => {
            eprintln!("error: the log's thread cannot start: {e}");
            return;
        }
    };
    let colours = anstream::AutoStream::choice(&std::io::stderr());
    let journal = Journal {
        filter: ArcSwap::from_pointee(Filter::new(log.level, None, "config")),
        requests: AtomicU8::new(0),
        request_level: AtomicUsize::new(0),
        is_json: AtomicBool::new(true),
        is_coloured: colours != ColorChoice::Never && std::io::stderr().is_terminal(),
        flood: Flood::default(),
        sink,
        lines: Lines::default(),
        said: Mutex::new(log.clone()),
        rust_log: rust_log.map(str::to_string).filter(|t| !t.trim().is_empty()),
    };
    // A second log in one process (tests) is no reason to fail.
    if JOURNAL.set(journal).is_err() {
        return;
    }
    if let Some(journal) = JOURNAL.get() {
        journal.take(log);
        let _ = log::set_logger(journal);
    }
}

/// A changed config. What somebody wished for meanwhile stays, unless the section itself differs.
pub fn apply(log: &Log) {
    if let Some(journal) = JOURNAL.get()
        && *journal.said.lock() != *log
    {
        journal.take(log);
        log::info!("event=log_changed by=config level={}", state().level);
    }
}

/// What is logged now.
pub fn state() -> State {
    match JOURNAL.get() {
        Some(journal) => journal.filter.load().state.clone(),
        None => State {
            level: log::max_level(),
            filter: None,
            from: "config",
        },
    }
}

/// Changes what is logged until the config's section changes or the process ends. `Err` says what is wrong with
/// the filter.
pub fn change(wish: &Wish) -> Result<State, String> {
    let Some(journal) = JOURNAL.get() else {
        return Ok(state());
    };
    match wish {
        Wish::Level(level) => journal.put(Filter::new(*level, None, "request")),
        Wish::Filter(text) => {
            judge(text)?;
            let level = journal.said.lock().level;
            journal.put(Filter::new(level, Some(text), "request"));
        }
        Wish::Configured => {
            let said = journal.said.lock().clone();
            journal.take(&said);
        }
    }
    Ok(state())
}

/// The line of a request that is over. One that is `quiet` (health, metrics) is told at `debug` when it went
/// well.
pub fn request_line(cx: &Cx, outcome: &Outcome, is_quiet: bool) {
    if let Some(journal) = JOURNAL.get() {
        journal.request(cx, outcome, is_quiet);
    }
}

/// Directives that mean something, and none that would show what goes over the wire.
fn judge(text: &str) -> Result<(), String> {
    if text.trim().is_empty() || text.len() > MOST_FILTER {
        return Err(format!("a filter has from 1 to {MOST_FILTER} bytes"));
    }
    for directive in text.split(',') {
        let directive = directive.trim();
        let (target, level) = match directive.split_once('=') {
            Some((target, level)) => (target, Some(level)),
            None if directive.parse::<LevelFilter>().is_ok() => ("", Some(directive)),
            None => (directive, None),
        };
        if level.is_some_and(|l| l.parse::<LevelFilter>().is_err()) {
            return Err(format!(
                "{directive:?}: a level is one of off, error, warn, info, debug, trace"
            ));
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-');
        if !target.chars().all(is_name) || (target.is_empty() && directive.contains('=')) {
            return Err(format!(
                "{directive:?} is none of info, tollkeeper::proxy, tollkeeper::proxy=debug"
            ));
        }
        if NOISY.iter().any(|m| target.starts_with(m)) || target.starts_with("pingora") {
            return Err(format!(
                "{target}: what it tells may hold keys; only RUST_LOG, at the start of the process, takes it"
            ));
        }
    }
    Ok(())
}

impl Filter {
    fn new(level: LevelFilter, directives: Option<&str>, from: &'static str) -> Self {
        let mut builder = env_logger::Builder::new();
        // Pingora tells each request's failure at warn and error with the upstream's address in it; ours
        // are written where the failure is understood.
        builder
            .filter_level(level)
            .filter_module("pingora", LevelFilter::Error.min(level));
        // It reports a pooled connection that somebody else took first as an error; it opens another one.
        builder.filter_module(&["pingora_core", "connectors"].join("::"), LevelFilter::Off);
        for module in NOISY {
            builder.filter_module(module, LevelFilter::Warn.min(level));
        }
        if let Some(directives) = directives {
            builder.parse_filters(directives);
        }
        let logger = builder.build();
        let level = [
            LevelFilter::Trace,
            LevelFilter::Debug,
            LevelFilter::Info,
            LevelFilter::Warn,
            LevelFilter::Error,
        ]
        .into_iter()
        .find(|l| l.to_level().is_some_and(|l| enabled(&logger, "tollkeeper", l)))
        .unwrap_or(LevelFilter::Off);
        Self {
            logger,
            state: State {
                level,
                filter: directives.map(str::to_string),
                from,
            },
        }
    }
}

fn enabled(logger: &env_logger::Logger, target: &str, level: Level) -> bool {
    let metadata = Metadata::builder().target(target).level(level).build();
    log::Log::enabled(logger, &metadata)
}

thread_local! {
    /// A line is made here, so that none is made in memory of its own.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Hands `use_it` an empty buffer of this thread.
fn with_buffer(use_it: impl FnOnce(&mut Vec<u8>)) {
    LINE.with(|line| match line.try_borrow_mut() {
        Ok(mut line) => {
            line.clear();
            use_it(&mut line);
        }
        // A value that logs while it is written.
        Err(_) => use_it(&mut Vec::new()),
    });
}

impl Journal {
    fn take(&self, log: &Log) {
        let is_json = match log.format {
            LogFormat::Json => true,
            LogFormat::Text => false,
            LogFormat::Auto => !std::io::stderr().is_terminal(),
        };
        self.is_json.store(is_json, Relaxed);
        let requests = match log.requests {
            LogRequests::Off => 0,
            LogRequests::Errors => 1,
            LogRequests::All => 2,
        };
        self.requests.store(requests, Relaxed);
        self.flood.allow(log.most_per_second);
        *self.said.lock() = log.clone();
        let filter = match &self.rust_log {
            Some(directives) => Filter::new(log.level, Some(directives), "RUST_LOG"),
            None => Filter::new(log.level, None, "config"),
        };
        self.put(filter);
    }

    fn put(&self, filter: Filter) {
        let levels = [Level::Trace, Level::Debug, Level::Info, Level::Warn, Level::Error];
        let lowest = levels.into_iter().find(|l| enabled(&filter.logger, REQUESTS, *l));
        self.request_level
            .store(lowest.map_or(0, |l| l as usize), Relaxed);
        let max = filter.logger.filter();
        self.filter.store(std::sync::Arc::new(filter));
        log::set_max_level(max);
    }

    fn request(&self, cx: &Cx, outcome: &Outcome, is_quiet: bool) {
        let level = request::level(outcome, is_quiet);
        if level as usize > self.request_level.load(Relaxed) {
            return;
        }
        let failed = request::has_failed(outcome);
        match self.requests.load(Relaxed) {
            0 => return,
            1 if !failed => return,
            _ => {}
        }
        let at = Moment::now();
        if !self.flood.has_room(at.second, failed) {
            return;
        }
        self.lines.count(level);
        with_buffer(|out| {
            if self.is_json.load(Relaxed) {
                request::json(out, at, level, cx, outcome);
            } else {
                request::text(out, at, level, cx, outcome, self.is_coloured);
            }
            self.sink.push(out, failed, false);
        });
    }

    /// A line that is none of a request's.
    fn line(&self, out: &mut Vec<u8>, level: Level, text: &str, pairs: &dyn log::kv::Source) {
        let at = Moment::now();
        if self.is_json.load(Relaxed) {
            let mut line = Json::open(out, at, level, text);
            let _ = pairs.visit(&mut JsonPairs(&mut line));
            line.close();
        } else {
            line::begin(out, at, level, self.is_coloured);
            line::shown(out, text);
            let _ = pairs.visit(&mut TextPairs(out));
            out.push(b'\n');
        }
    }
}

/// Of what was not told: called by the sink's thread.
fn tell(dropped: u64, out: &mut Vec<u8>) {
    let Some(journal) = JOURNAL.get() else { return };
    if dropped > 0 {
        let text = format!("event=log_lines_dropped count={dropped} cause=\"stderr is read too slowly\"");
        journal.line(out, Level::Warn, &text, &[("count", dropped)]);
    }
    if let Some(hidden) = journal.flood.take() {
        let text = format!(
            "event=requests_not_shown succeeded={} failed={}",
            hidden.succeeded, hidden.failed
        );
        let pairs = [("succeeded", hidden.succeeded), ("failed", hidden.failed)];
        journal.line(out, Level::Info, &text, &pairs);
    }
}

impl log::Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.load().logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let filter = self.filter.load();
        if !filter.logger.matches(record) {
            return;
        }
        // Whoever knocks and goes away again must not fill the log with errors.
        if filter.state.level < LevelFilter::Debug && is_knock(record) {
            return;
        }
        self.lines.count(record.level());
        with_buffer(|out| {
            let written;
            let text = match record.args().as_str() {
                Some(text) => text,
                None => {
                    written = record.args().to_string();
                    &written
                }
            };
            self.line(out, record.level(), text, record.key_values());
            self.sink.push(out, record.level() <= Level::Warn, true);
        });
    }

    fn flush(&self) {
        self.sink.flush(LAST_LINES);
    }
}

/// Pingora's word on a handshake, or a head, that came to nothing, which is the client's doing.
fn is_knock(record: &Record<'_>) -> bool {
    let words = ["Downstream handshake", "H2 handshake error", "Fail to proxy"];
    record.target().starts_with("pingora_") && {
        let text = record.args().to_string();
        words.iter().any(|w| text.starts_with(w))
            && (!text.starts_with("Fail") || text.contains("while reading request headers"))
    }
}

struct JsonPairs<'a, 'b>(&'a mut Json<'b>);

impl<'kvs> log::kv::VisitSource<'kvs> for JsonPairs<'_, '_> {
    fn visit_pair(
        &mut self,
        key: log::kv::Key<'kvs>,
        value: log::kv::Value<'kvs>,
    ) -> Result<(), log::kv::Error> {
        let is_bare = value.to_i64().is_some() || value.to_u64().is_some() || value.to_bool().is_some();
        self.0.pair(key.as_str(), &value.to_string(), is_bare);
        Ok(())
    }
}

struct TextPairs<'a>(&'a mut Vec<u8>);

impl<'kvs> log::kv::VisitSource<'kvs> for TextPairs<'_> {
    fn visit_pair(
        &mut self,
        key: log::kv::Key<'kvs>,
        value: log::kv::Value<'kvs>,
    ) -> Result<(), log::kv::Error> {
        line::shown(self.0, &format!(" {key}={value}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use filters::contract::cx::Cx;
    use filters::model::call::Endpoint;
    use filters::model::key::{Caller, Holder};
    use filters::model::record::Status;
    use filters::model::usage::Usage;
    use filters::testkit;
    use std::time::Instant;

    fn called() -> Cx {
        let mut cx = testkit::Kit::default().cx();
        let mut key = testkit::key("sk-a-virtual-key-of-the-tests");
        key.key_alias = Some("My\u{1b} Project".into());
        cx.caller = Caller::Key(Holder::alone(key).into());
        let body = r#"{"model":"gpt-4","messages":[{"role":"user","content":"the-prompt"}]}"#;
        cx.call = Some(testkit::call(Endpoint::Chat, body));
        cx.deployment = Some(testkit::deployment("openai").into());
        cx.metered.used = Some(Usage {
            prompt_tokens: 12,
            completion_tokens: 340,
            ..Usage::default()
        });
        cx.cost_nanos = Some(1_230_000);
        cx.first_byte = Some(Instant::now());
        cx
    }

    fn outcome(status: Status, http_status: u16, error: Option<&str>) -> Outcome {
        Outcome {
            status,
            http_status,
            error: error.map(Into::into),
            error_kind: error.map(|_| "upstream_error"),
        }
    }

    #[test]
    fn a_request_is_told_in_the_documented_fields() {
        let (cx, mut out) = (called(), Vec::new());
        let good = outcome(Status::Success, 200, None);
        assert_eq!(request::level(&good, false), Level::Info);
        assert_eq!(request::level(&good, true), Level::Debug);
        request::json(&mut out, Moment::now(), Level::Info, &cx, &good);
        let text = String::from_utf8(out).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let order = [
            "ts",
            "level",
            "msg",
            "request_id",
            "key_alias",
            "model",
            "status",
            "duration_ms",
            "ttft_ms",
            "tokens_in",
            "tokens_out",
            "cost_usd",
        ];
        let names: Vec<&String> = json.as_object().unwrap().keys().take(order.len()).collect();
        assert_eq!(names, order);
        assert_eq!(
            (&json["msg"], &json["model"]),
            (&"request".into(), &"gpt-4".into())
        );
        assert_eq!((&json["status"], &json["tokens_out"]), (&200.into(), &340.into()));
        assert_eq!(json["cost_usd"], 0.00123);
        assert!(json["ttft_ms"].is_u64() && json.get("error").is_none());
        for secret in ["sk-a-virtual", "the-prompt", "\u{1b}"] {
            assert!(!text.contains(secret), "{text}");
        }
        let mut out = Vec::new();
        let bad = outcome(Status::Failure, 502, Some("it\u{9b} broke\nhere"));
        assert_eq!(request::level(&bad, true), Level::Warn);
        request::text(&mut out, Moment::now(), Level::Warn, &cx, &bad, false);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("WARN  502 ") && text.contains("gpt-4"), "{text}");
        assert!(text.contains("12 → 340") && text.contains("$0.00123"), "{text}");
        assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
        let mut out = Vec::new();
        request::text(&mut out, Moment::now(), Level::Warn, &cx, &bad, true);
        assert!(String::from_utf8(out).unwrap().contains("\u{1b}[31m502\u{1b}[0m"));
    }

    #[test]
    fn a_filter_means_something_and_shows_no_wire() {
        for good in [
            "debug",
            "info,tollkeeper::proxy=trace",
            "warn, tollkeeper::ledger",
        ] {
            assert_eq!(judge(good), Ok(()), "{good}");
        }
        let long = "a".repeat(MOST_FILTER + 1);
        for bad in [
            "",
            " ",
            "a=b",
            "=info",
            "a b",
            "info/x",
            "h2=trace",
            "pingora=debug",
            "hyper",
            &long,
        ] {
            assert!(judge(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_level_does_not_open_noisy_modules() {
        let filter = Filter::new(LevelFilter::Trace, None, "request");
        assert!(enabled(&filter.logger, REQUESTS, Level::Trace));
        for module in [
            "h2::codec",
            "hyper::proto",
            "pingora_core::protocols",
            "reqwest::connect",
        ] {
            assert!(!enabled(&filter.logger, module, Level::Info), "{module}");
        }
        assert_eq!(filter.state.level, LevelFilter::Trace);
        let named = Filter::new(LevelFilter::Info, Some("warn,tollkeeper::proxy=debug"), "request");
        assert!(enabled(&named.logger, "tollkeeper::proxy::call", Level::Debug));
        assert_eq!(named.state.level, LevelFilter::Warn);
    }

    /// How long a line takes to make, told with `--nocapture`. The bound is loose, and the quickest of some tries
    /// counts: tests are not optimised, and other tests run beside this one.
    #[test]
    fn a_line_costs_little() {
        let (cx, mut out) = (called(), Vec::with_capacity(1024));
        let good = outcome(Status::Success, 200, None);
        let tries = (0..20).map(|_| {
            let begun = Instant::now();
            for _ in 0..500 {
                out.clear();
                request::json(&mut out, Moment::now(), Level::Info, &cx, &good);
            }
            begun.elapsed() / 500
        });
        let each = tries.min().unwrap();
        println!("{} ns for {} bytes", each.as_nanos(), out.len());
        assert!(each < Duration::from_micros(100), "{each:?}");
    }
}
