//! One call as a line: when, how it ended, whose, which model, tokens, cost, times, id.

use crate::cli::show::{self, DIM, GREEN, RED, YELLOW, count, dollars, short};
use anstyle::Style;
use filters::model::money::Nanos;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use std::str::FromStr;

/// The columns of [`Row::line`].
pub const HEADER: &str = "TIME                 STATUS       KEY               MODEL                     TOKENS IN  OUT         COST        DURATION   FIRST      REQUEST ID";

/// A row of `/spend/logs`.
pub struct Row {
    json: Value,
    started: Option<Timestamp>,
}

/// How a call must have ended to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Exactly this status.
    Code(u64),
    /// This hundred.
    Class(u64),
    Success,
    /// Everything that is no success.
    Failure,
    /// The client left.
    Aborted,
    /// The upstream broke off.
    Cut,
}

impl FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "success" => Ok(Status::Success),
            "failure" => Ok(Status::Failure),
            "aborted" => Ok(Status::Aborted),
            "cut" => Ok(Status::Cut),
            text => match (text.strip_suffix("xx"), text.parse()) {
                (Some(class), _) if matches!(class, "1" | "2" | "3" | "4" | "5") => {
                    Ok(Status::Class(class.parse().unwrap_or_default()))
                }
                (None, Ok(code @ 100..=599)) => Ok(Status::Code(code)),
                _ => Err("it is 404, 4xx, success, failure, aborted or cut".into()),
            },
        }
    }
}

impl Status {
    pub fn fits(self, row: &Row) -> bool {
        let (status, outcome) = (row.number("http_status"), row.text("outcome"));
        let success = row.text("status") == "success";
        match self {
            Status::Code(code) => status == code,
            Status::Class(class) => status / 100 == class,
            Status::Success => success,
            Status::Failure => !success,
            Status::Aborted => outcome == "aborted",
            Status::Cut => outcome == "cut",
        }
    }
}

impl Row {
    pub fn new(json: Value) -> Row {
        let started = json.get("startTime").and_then(show::moment);
        Row { json, started }
    }

    pub fn id(&self) -> &str {
        self.text("request_id")
    }

    /// When the call began.
    pub fn started(&self) -> Option<Timestamp> {
        self.started
    }

    /// When it ended, or began where that is not told.
    pub fn end(&self) -> Option<Timestamp> {
        self.json.get("endTime").and_then(show::moment).or(self.started)
    }

    pub fn json(&self) -> String {
        show::json_line(&self.json)
    }

    /// Whether it is of a model by any of its names: asked for, configured, the deployment's.
    pub fn is_of(&self, model: &str) -> bool {
        ["requested_model", "model_group", "model"]
            .iter()
            .any(|name| self.text(name) == model)
    }

    fn text(&self, name: &str) -> &str {
        self.json.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        self.json.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    fn key(&self) -> String {
        match (self.text("key_alias"), self.text("api_key")) {
            ("", "") => "-".into(),
            ("", hash) => short(&hash.chars().take(12).collect::<String>(), 12),
            (alias, _) => short(alias, 16),
        }
    }

    fn model(&self) -> String {
        let names = ["requested_model", "model_group", "model"];
        let name = names.iter().map(|n| self.text(n)).find(|m| !m.is_empty());
        short(name.unwrap_or("-"), 24)
    }

    /// The status, and how it ended when the status does not tell.
    fn ended(&self) -> (String, Style) {
        let status = match self.number("http_status") {
            0 => self.text("status").to_string(),
            status => status.to_string(),
        };
        match self.text("outcome") {
            "aborted" => (format!("{status} aborted"), YELLOW),
            "cut" => (format!("{status} cut"), RED),
            _ if self.text("status") == "success" => (status, GREEN),
            _ if status.starts_with('4') => (status, YELLOW),
            _ => (status, RED),
        }
    }

    fn cost(&self) -> String {
        if self.json.get("priced").and_then(Value::as_bool) == Some(false) {
            // Nobody knows what it cost; $0.00 would say that it was free.
            return "not priced".into();
        }
        let spend: Option<Nanos> = self.json.get("spend").and_then(show::amount);
        spend.map_or_else(|| "-".into(), dollars)
    }

    /// Milliseconds from the start to a time of the row.
    fn until(&self, name: &str) -> Option<i64> {
        let at = self.json.get(name).and_then(show::moment)?;
        i64::try_from(at.duration_since(self.started?).as_millis()).ok()
    }

    fn first_byte(&self) -> String {
        let streamed = self.json.get("stream").and_then(Value::as_bool) == Some(true);
        let first = self.until("completionStartTime").filter(|_| streamed);
        first.map_or_else(|| "-".into(), show::took)
    }

    pub fn line(&self) -> String {
        let time = self.started.map_or_else(String::new, |at| {
            at.to_zoned(TimeZone::system())
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string()
        });
        let (ended, style) = self.ended();
        let duration = self.json.get("request_duration_ms").and_then(Value::as_i64);
        let duration = duration.or_else(|| self.until("endTime"));
        format!(
            "{time:<19}  {style}{:<11}{style:#}  {:<16}  {:<24}  {:>9}  {:<10}  {:<10}  {:<9}  {:<9}  {DIM}{}{DIM:#}",
            short(&ended, 11),
            self.key(),
            self.model(),
            count(self.number("prompt_tokens")),
            count(self.number("completion_tokens")),
            self.cost(),
            duration.map_or_else(|| "-".into(), show::took),
            self.first_byte(),
            short(self.id(), 64),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn statuses_are_read_and_fit() {
        let row = |status: u64, word: &str, outcome: &str| {
            Row::new(json!({"http_status": status, "status": word, "outcome": outcome}))
        };
        let good = row(200, "success", "success");
        let bad = row(404, "failure", "failure");
        let left = row(200, "failure", "aborted");
        for (text, fits) in [
            ("200", [true, false, true]),
            ("4xx", [false, true, false]),
            ("4XX", [false, true, false]),
            ("success", [true, false, false]),
            ("failure", [false, true, true]),
            ("aborted", [false, false, true]),
        ] {
            let status: Status = text.parse().unwrap();
            assert_eq!([&good, &bad, &left].map(|r| status.fits(r)), fits, "{text}");
        }
        for text in ["", "xx", "6xx", "44xx", "99", "600", "ok"] {
            assert!(text.parse::<Status>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_line_stands_under_its_header() {
        let row = Row::new(json!({
            "startTime": "2026-11-20T12:00:00.000000Z", "endTime": "2026-11-20T12:00:03.250000Z",
            "completionStartTime": "2026-11-20T12:00:00.120000Z", "stream": true, "http_status": 200,
            "status": "success", "outcome": "success", "key_alias": "ap\u{1b}[2Jp", "requested_model": "small",
            "prompt_tokens": 1234, "completion_tokens": 56, "spend": 0.000123, "priced": true,
            "request_duration_ms": 3250, "request_id": "0199",
        }));
        let line = anstream::adapter::strip_str(&row.line()).to_string();
        assert!(!line.contains('\u{1b}'), "{line}");
        for (title, text) in [
            ("STATUS", "200 "),
            ("KEY", "ap\\u{1b}[2Jp "),
            ("MODEL", "small "),
            ("TOKENS IN", "    1,234  "),
            ("OUT ", "56 "),
            ("COST", "$0.000123 "),
            ("DURATION", "3.2 s "),
            ("FIRST", "120 ms "),
            ("REQUEST", "0199"),
        ] {
            let at = HEADER.find(title).unwrap();
            let rest: String = line.chars().skip(at).collect();
            assert!(rest.starts_with(text), "{title}: {rest:?} in {line:?}");
        }
        let unpriced = Row::new(json!({"spend": 0, "priced": false}));
        assert!(unpriced.line().contains("not priced"));
    }
}
