//! How a key looks: in a sentence, in full, and as a line of the list. Everything is read out of the
//! API's row, and what is missing there is left out here.

use crate::cli::client::Failure;
use crate::cli::show::{self, BOLD, budget, clean, coloured, dollars, put, put_table, say, short};
use comfy_table::{Cell, Color};
use filters::model::money::Nanos;
use jiff::Timestamp;
use serde_json::Value;

/// Models that a line of the list names.
const MODELS_SHOWN: usize = 3;
/// From here on a budget is told as nearly gone, in percent.
const NEARLY: u64 = 80;

/// A text of the row that is not empty.
pub fn field<'a>(row: &'a Value, name: &str) -> Option<&'a str> {
    row.get(name).and_then(Value::as_str).filter(|t| !t.is_empty())
}

/// `"My app" (sk-...x7Qd)`.
pub fn title(row: &Value) -> String {
    let name = clean(field(row, "key_name").unwrap_or("sk-…"));
    match field(row, "key_alias") {
        Some(alias) => format!("key \"{}\" ({name})", clean(alias)),
        None => format!("key {name}"),
    }
}

/// What it may: models, budget, expiry, in one line.
pub fn terms(row: &Value) -> String {
    let mut terms = vec![format!("models {}", models(row, usize::MAX))];
    terms.push(match money(row, "max_budget") {
        Some(most) => format!("budget {}{}", dollars(most), period(row)),
        None => "no budget".into(),
    });
    terms.extend(limits(row).filter(|limits| !limits.is_empty()));
    terms.push(match row.get("expires").and_then(show::moment) {
        Some(at) => format!("expires {}", when(at)),
        None => "never expires".into(),
    });
    terms.join(" · ")
}

/// What it has spent, as the end of a sentence.
pub fn spent(row: &Value) -> String {
    format!("spent {}", dollars(money(row, "spend").unwrap_or_default()))
}

fn money(row: &Value, name: &str) -> Option<Nanos> {
    row.get(name).and_then(show::amount)
}

fn period(row: &Value) -> String {
    field(row, "budget_duration").map_or_else(String::new, |p| format!(" per {}", clean(p)))
}

/// `2026-12-20 10:31 CET (in 30 d)`.
fn when(at: Timestamp) -> String {
    let seconds = at.duration_since(Timestamp::now()).as_secs();
    let stretch = show::stretch(seconds);
    let distance = match seconds {
        // The gateway's clock may be a little ahead.
        -1..=1 => "just now".to_string(),
        ..-1 => format!("{stretch} ago"),
        _ => format!("in {stretch}"),
    };
    format!("{} ({distance})", show::local(at))
}

fn models(row: &Value, most: usize) -> String {
    let models: Vec<&str> = row
        .get("models")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    if models.is_empty() {
        return "all".into();
    }
    let mut text: Vec<String> = models.iter().take(most).map(|m| short(m, 40)).collect();
    if let Some(more) = models.len().checked_sub(most).filter(|n| *n > 0) {
        text.push(format!("(+{more})"));
    }
    text.join(if most == usize::MAX { ", " } else { " " })
}

/// What can be said of a key in a word or two.
fn status(row: &Value) -> (String, Color) {
    if row.get("blocked").and_then(Value::as_bool) == Some(true) {
        return ("blocked".into(), Color::Red);
    }
    if expiry(row).is_some_and(|seconds| seconds <= 0) {
        return ("expired".into(), Color::Red);
    }
    let spent = money(row, "spend").unwrap_or_default();
    match money(row, "max_budget").map(|most| show::percent(spent, most)) {
        Some(100..) => ("budget used up".into(), Color::Red),
        Some(percent @ NEARLY..) => (format!("{percent} % of budget"), Color::Yellow),
        _ => ("active".into(), Color::Green),
    }
}

/// Seconds until it expires.
fn expiry(row: &Value) -> Option<i64> {
    let at = row.get("expires").and_then(show::moment)?;
    Some(at.duration_since(Timestamp::now()).as_secs())
}

fn last_used(row: &Value) -> Option<Timestamp> {
    ["last_used_at", "last_active"]
        .iter()
        .find_map(|name| row.get(*name).and_then(show::moment))
}

/// All keys as a table, or as the API's objects.
pub fn list(keys: &[Value], narrowed: bool, json: bool) -> Result<(), Failure> {
    if json {
        return put(show::json(&Value::Array(keys.to_vec())));
    }
    if keys.is_empty() && narrowed {
        say("No key is theirs; `tollkeeper key list` shows all.");
        return Ok(());
    }
    if keys.is_empty() {
        say("There are no keys yet. Make one: tollkeeper key create --name my-app --budget 5");
        return Ok(());
    }
    let used = keys.iter().any(|k| last_used(k).is_some());
    let mut header = vec![
        "NAME",
        "KEY",
        "MODELS",
        "SPEND / BUDGET",
        "LAST USED",
        "EXPIRES",
        "STATUS",
    ];
    if !used {
        header.retain(|h| *h != "LAST USED");
    }
    let rows = keys.iter().map(|key| line(key, used)).collect();
    put_table(&show::table(&header, rows, &[]))
}

fn line(key: &Value, used: bool) -> Vec<Cell> {
    let (status, color) = status(key);
    let mut cells = vec![
        Cell::new(short(field(key, "key_alias").unwrap_or("-"), 32)),
        Cell::new(short(field(key, "key_name").unwrap_or("-"), 16)),
        Cell::new(models(key, MODELS_SHOWN)),
        money_cell(key),
    ];
    if used {
        let ago = last_used(key).map(|at| show::stretch(Timestamp::now().duration_since(at).as_secs()));
        cells.push(Cell::new(ago.unwrap_or_else(|| "never".into())));
    }
    cells.push(Cell::new(match expiry(key) {
        Some(seconds @ 1..) => show::stretch(seconds),
        Some(seconds) => format!("{} ago", show::stretch(seconds)),
        None => "never".into(),
    }));
    cells.push(coloured(status, color));
    cells
}

/// `$9.61 / $10 ███████▋`, in the colour of what is left.
fn money_cell(key: &Value) -> Cell {
    let spent = money(key, "spend").unwrap_or_default();
    let Some(most) = money(key, "max_budget") else {
        return Cell::new(dollars(spent));
    };
    let percent = show::percent(spent, most);
    let text = format!("{} / {} {}", dollars(spent), budget(most), show::bar(percent));
    match percent {
        100.. => coloured(text, Color::Red),
        NEARLY.. => coloured(text, Color::Yellow),
        _ => Cell::new(text),
    }
}

/// One key in full.
pub fn info(row: &Value) -> Result<(), Failure> {
    let mut lines: Vec<(&str, String)> = Vec::new();
    let mut text = |label: &'static str, value: Option<String>| {
        lines.extend(value.filter(|v| !v.is_empty()).map(|v| (label, v)));
    };
    let plain = |name: &str| field(row, name).map(clean);
    text("name", plain("key_alias"));
    text("key", plain("key_name"));
    text("hash", plain("token").or_else(|| plain("key")));
    text("status", Some(status(row).0));
    text("models", Some(models(row, usize::MAX)));
    text("aliases", object(row, "aliases"));
    let spent = money(row, "spend").unwrap_or_default();
    text(
        "spend",
        Some(match money(row, "max_budget") {
            Some(most) => {
                let percent = show::percent(spent, most);
                let bar = show::bar(percent);
                format!(
                    "{} of {}{} {bar} {percent} %",
                    dollars(spent),
                    budget(most),
                    period(row)
                )
            }
            None => format!("{} (no budget)", dollars(spent)),
        }),
    );
    let at = |name: &str| row.get(name).and_then(show::moment).map(when);
    text("budget anew", at("budget_reset_at"));
    text("limits", limits(row));
    text("expires", at("expires").or(Some("never".into())));
    text("last used", last_used(row).map(when));
    text("user", plain("user_id"));
    text("team", plain("team_id"));
    text("tags", words(row, "tags"));
    text("metadata", object(row, "metadata"));
    text("created", at("created_at"));
    text("changed", at("updated_at"));
    let lines: Vec<String> = lines
        .into_iter()
        .map(|(label, value)| format!("{BOLD}{label:<12}{BOLD:#} {value}"))
        .collect();
    put(lines.join("\n"))
}

fn limits(row: &Value) -> Option<String> {
    let names = [
        ("rpm_limit", "requests a minute"),
        ("tpm_limit", "tokens a minute"),
        ("max_parallel_requests", "at the same time"),
    ];
    let limits: Vec<String> = names
        .iter()
        .filter_map(|(name, what)| Some(format!("{} {what}", show::count(row.get(*name)?.as_u64()?))))
        .collect();
    Some(limits.join(", "))
}

fn words(row: &Value, name: &str) -> Option<String> {
    let list = row.get(name)?.as_array()?;
    let words: Vec<String> = list.iter().filter_map(Value::as_str).map(clean).collect();
    Some(words.join(", "))
}

fn object(row: &Value, name: &str) -> Option<String> {
    let object = row.get(name)?.as_object()?;
    let pairs: Vec<String> = object
        .iter()
        .map(|(k, v)| match v.as_str() {
            Some(v) => format!("{}={}", clean(k), clean(v)),
            None => format!("{}={}", clean(k), show::json_line(v)),
        })
        .collect();
    Some(pairs.join(", "))
}
