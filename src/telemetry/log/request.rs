//! The one line that each request leaves: what was asked for, what came of it, what it took and cost. No
//! prompt, no key, no path: some paths hold keys.

use super::line::{Json, Moment, begin, column, paint, shown};
use filters::contract::{Cx, Outcome};
use filters::model::money::Nanos;
use filters::model::record::Status;
use log::Level;
use std::io::Write;
use std::time::Instant;

/// The longest name of a model or a key in a line, in characters: callers write these.
const MOST_NAME: usize = 128;
/// The longest sentence about a failure.
const MOST_ERROR: usize = 512;
/// Columns for what was called, for people.
const WIDE: usize = 28;

/// How grave it is.
pub fn level(outcome: &Outcome, is_quiet: bool) -> Level {
    if outcome.http_status >= 500 || outcome.status == Status::Cut {
        Level::Warn
    } else if is_quiet && !has_failed(outcome) {
        Level::Debug
    } else {
        Level::Info
    }
}

/// It was refused, failed or broke off.
pub fn has_failed(outcome: &Outcome) -> bool {
    outcome.http_status >= 400 || outcome.status != Status::Success
}

fn at_most(text: &str, most: usize) -> &str {
    // No text has more characters than bytes.
    if text.len() <= most {
        return text;
    }
    match text.char_indices().nth(most) {
        Some((at, _)) => text.get(..at).unwrap_or_default(),
        None => text,
    }
}

fn millis(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(u64::MAX)
}

/// What both forms tell.
struct Told<'a> {
    model: &'a str,
    deployment: &'a str,
    alias: &'a str,
    duration: u64,
    began: Option<u64>,
    tokens: Option<(u64, u64)>,
    cost: Option<Nanos>,
    error: &'a str,
}

impl<'a> Told<'a> {
    fn of(cx: &'a Cx, outcome: &'a Outcome) -> Self {
        let text = |t: Option<&'a str>, most| at_most(t.unwrap_or_default(), most);
        Self {
            model: text(cx.call.as_ref().map(|c| c.requested_model.as_str()), MOST_NAME),
            deployment: text(cx.deployment.as_ref().map(|d| d.id.as_str()), MOST_NAME),
            alias: text(cx.caller.key().and_then(|k| k.key_alias.as_deref()), MOST_NAME),
            duration: millis(cx.started, Instant::now()),
            began: cx.answer_began().map(|at| millis(cx.started, at)),
            tokens: cx.metered.used.map(|u| (u.prompt_tokens, u.completion_tokens)),
            cost: cx.cost_nanos.map(Nanos),
            error: text(outcome.error.as_deref(), MOST_ERROR),
        }
    }
}

/// For machines.
pub fn json(out: &mut Vec<u8>, at: Moment, level: Level, cx: &Cx, outcome: &Outcome) {
    let told = Told::of(cx, outcome);
    let mut line = Json::open(out, at, level, "request");
    line.text("request_id", &cx.request_id);
    if let Some(id) = cx.trace_id {
        line.text("trace_id", id.hex_in(&mut [0; 32]));
    }
    line.text("key_alias", told.alias);
    line.text("model", told.model);
    line.int("status", u64::from(outcome.http_status));
    line.int("duration_ms", told.duration);
    if let Some(ttft) = told.began {
        line.int("ttft_ms", ttft);
    }
    if let Some((tokens_in, tokens_out)) = told.tokens {
        line.int("tokens_in", tokens_in);
        line.int("tokens_out", tokens_out);
    }
    if let Some(cost) = told.cost {
        line.bare("cost_usd", cost);
    }
    line.text("lane", &cx.lane);
    line.text("endpoint", cx.call.as_ref().map_or("", |c| c.endpoint.path()));
    line.text("deployment", told.deployment);
    line.text("outcome", outcome.status.as_str());
    line.text("error_kind", outcome.error_kind.unwrap_or_default());
    line.text("error", told.error);
    if cx.attempts.len() > 1 {
        line.int("attempts", cx.attempts.len() as u64);
    }
    line.close();
}

/// For people: `17:22:50 INFO  200   812 ms  gpt-4   12 → 340 tok  $0.00123  My Project  019f…`.
pub fn text(out: &mut Vec<u8>, at: Moment, level: Level, cx: &Cx, outcome: &Outcome, coloured: bool) {
    let told = Told::of(cx, outcome);
    begin(out, at, level, coloured);
    let colour = match outcome.http_status {
        500.. => "31",
        400.. => "33",
        _ if has_failed(outcome) => "31",
        _ => "32",
    };
    paint(out, coloured.then_some(colour), |out| {
        let _ = write!(out, "{:3}", outcome.http_status);
    });
    let took = match told.duration {
        ms @ ..10_000 => format!("{ms} ms"),
        ms => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
    };
    let _ = write!(out, " {took:>8}  ");
    column(
        out,
        if told.model.is_empty() {
            &cx.lane
        } else {
            told.model
        },
        WIDE,
    );
    if let Some((tokens_in, tokens_out)) = told.tokens {
        let _ = write!(out, " {tokens_in:>6} → {tokens_out:<5} tok");
    }
    if let Some(cost) = told.cost {
        let _ = write!(out, "  ${cost}");
    }
    if let Some(ttft) = told.began {
        let _ = write!(out, "  ttft {ttft} ms");
    }
    if !told.alias.is_empty() {
        out.extend_from_slice(b"  ");
        shown(out, told.alias);
    }
    if outcome.status != Status::Success {
        let _ = write!(out, "  {}", outcome.status.as_str());
    }
    if !told.error.is_empty() {
        out.extend_from_slice(b": ");
        shown(out, told.error);
    }
    out.extend_from_slice(b"  ");
    paint(out, coloured.then_some("2"), |out| {
        out.extend_from_slice(cx.request_id.as_bytes())
    });
    out.push(b'\n');
}
