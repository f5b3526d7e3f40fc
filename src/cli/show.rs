//! How things look on a terminal: data on stdout, talk on stderr, money that never rounds to nothing, and
//! text of others that cannot drive a terminal. Colours are taken out by `anstream` where they do not
//! belong (no terminal, `NO_COLOR`).

use super::client::Failure;
use anstyle::{AnsiColor, Style};
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table};
use filters::model::money::Nanos;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use std::fmt::Display;
use std::io::Write;

/// Columns of a terminal below which a table is not made to fit.
const NARROW: u16 = 60;

pub const GREEN: Style = AnsiColor::Green.on_default();
pub const YELLOW: Style = AnsiColor::Yellow.on_default();
pub const RED: Style = AnsiColor::Red.on_default();
pub const BOLD: Style = Style::new().bold();
pub const DIM: Style = Style::new().dimmed();

/// Writes a piece of data and a line's end. A reader that has gone is [`Failure::closed`], no panic.
pub fn put(text: impl Display) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::closed()),
        Err(e) => Err(Failure::failed(format!("stdout cannot be written: {e}"))),
    }
}

/// Says something beside the data. Nobody listening is no failure.
pub fn say(text: impl Display) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Characters that act on a terminal or on the order of what is read, instead of being seen.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text of others, in one line that only shows: what would act is written out as `\u{1b}`.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match acts(c) {
            true => out.extend(c.escape_unicode()),
            false => out.push(c),
        }
    }
    out
}

/// The same, cut to `most` characters.
pub fn short(text: &str, most: usize) -> String {
    let text = clean(text);
    if text.chars().count() <= most {
        return text;
    }
    text.chars()
        .take(most.saturating_sub(1))
        .chain(std::iter::once('…'))
        .collect()
}

/// So many of something, in English: `1 request`, `2 requests`.
pub fn counted(n: impl TryInto<u64>, one: &str) -> String {
    let n = n.try_into().unwrap_or(u64::MAX);
    let s = if n == 1 { "" } else { "s" };
    format!("{n} {one}{s}")
}

/// A moment as the gateway writes it, to the second: `2026-11-20 20:26:50Z`.
pub fn second(text: &str) -> String {
    match text.parse::<Timestamp>() {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_) => clean(text),
    }
}

/// JSON as it came, over several lines for people who look at it.
pub fn json(value: &Value) -> String {
    harmless(format!("{value:#}"))
}

/// JSON in one line.
pub fn json_line(value: &Value) -> String {
    harmless(value.to_string())
}

/// serde_json leaves some characters in strings that a terminal acts on. Escaped, the value is the same.
fn harmless(text: String) -> String {
    if !text.chars().any(|c| acts(c) && c != '\n') {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        // All of them lie below U+10000, so one escape is enough.
        match acts(c) && c != '\n' {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

/// Dollars out of an answer; what is no amount is none.
pub fn amount(value: &Value) -> Option<Nanos> {
    match value {
        Value::Number(n) => n.to_string().parse().ok(),
        Value::String(s) => s.parse().ok(),
        _ => None,
    }
}

/// `$12.34`, `$0.05`, `$0.000123`: cents from a dollar on, else three digits that say something. Only
/// nothing looks like nothing.
pub fn dollars(amount: Nanos) -> String {
    let (sign, nanos) = (if amount.0 < 0 { "-" } else { "" }, amount.0.unsigned_abs());
    let unit = match nanos {
        1_000_000_000.. => 10_000_000,
        _ => 10u64.pow(nanos.checked_ilog10().unwrap_or(0).saturating_sub(2)),
    };
    let rounded = nanos.saturating_add(unit / 2) / unit * unit;
    let fraction = format!("{:09}", rounded % 1_000_000_000);
    let kept = fraction.trim_end_matches('0').len().max(2);
    let fraction = fraction.get(..kept).unwrap_or_default();
    format!("{sign}${}.{fraction}", count(rounded / 1_000_000_000))
}

/// The same without cents that are none: `$50`.
pub fn budget(amount: Nanos) -> String {
    let text = dollars(amount);
    text.strip_suffix(".00").map(str::to_string).unwrap_or(text)
}

/// `12,345`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + 6);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// How much of a budget is gone, in percent; a budget of nothing is gone.
pub fn percent(spent: Nanos, budget: Nanos) -> u64 {
    match (u64::try_from(spent.0), u64::try_from(budget.0)) {
        (_, Err(_) | Ok(0)) => 100,
        (Err(_), _) => 0,
        (Ok(spent), Ok(budget)) => {
            u64::try_from(u128::from(spent) * 100 / u128::from(budget)).unwrap_or(u64::MAX)
        }
    }
}

/// Eight cells, filled to the eighth of a cell.
pub fn bar(percent: u64) -> String {
    let eighths = percent.min(100) * 64 / 100;
    let parts = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let mut cells: Vec<char> = std::iter::repeat_n('█', (eighths / 8) as usize).collect();
    if let Some(part) = (eighths % 8).checked_sub(1).and_then(|i| parts.get(i as usize)) {
        cells.push(*part);
    }
    cells.resize(8, '░');
    cells.into_iter().collect()
}

/// A moment out of an answer.
pub fn moment(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// `2026-12-20 10:31 CET`, in the zone of who looks.
pub fn local(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M %Z")
        .to_string()
}

/// A stretch of time in its largest unit, rounded: `30 d`, `4 h`, `2 min`, `5 s`.
pub fn stretch(seconds: i64) -> String {
    let of = |s: u64, unit: u64| s.saturating_add(unit / 2) / unit;
    match seconds.unsigned_abs() {
        s @ 172_800.. => format!("{} d", of(s, 86_400)),
        s @ 7_200.. => format!("{} h", of(s, 3_600)),
        s @ 120.. => format!("{} min", of(s, 60)),
        s => format!("{s} s"),
    }
}

/// How long a call took: `812 ms`, `3.2 s`, `2 m 05 s`.
pub fn took(millis: i64) -> String {
    match millis.max(0) {
        ms @ ..1_000 => format!("{ms} ms"),
        ms @ ..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        ms => format!("{} m {:02} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// A cell in a colour.
pub fn coloured(text: impl ToString, color: Color) -> Cell {
    Cell::new(text.to_string()).fg(color)
}

/// Columns without lines between them; `right` names those that hold numbers.
pub fn table(header: &[&str], rows: Vec<Vec<Cell>>, right: &[usize]) -> Table {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        // `anstream` decides about colours. Blanks stay outside of them, so that they can be cut.
        .enforce_styling()
        .set_header(header.iter().map(|h| Cell::new(h).add_attribute(Attribute::Bold)))
        .add_rows(rows);
    table.style_text_only();
    // Some terminals say that they are no column wide; a table squeezed into that cannot be read.
    if table.width().is_some_and(|w| w >= NARROW) {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The table's lines without the blanks at their ends.
pub fn put_table(table: &Table) -> Result<(), Failure> {
    put(table
        .lines()
        .map(|l| l.trim_end().to_string())
        .collect::<Vec<_>>()
        .join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_keeps_what_it_says() {
        for (nanos, text) in [
            (0, "$0.00"),
            (1, "$0.000000001"),
            (123_000, "$0.000123"),
            (123_456, "$0.000123"),
            (50_000_000, "$0.05"),
            (500_000_000, "$0.50"),
            (512_345_678, "$0.512"),
            (999_600_000, "$1.00"),
            (1_000_000_000, "$1.00"),
            (12_340_000_000, "$12.34"),
            (1_234_567_890_000_000, "$1,234,567.89"),
            (-50_000_000, "-$0.05"),
            (i64::MAX, "$9,223,372,036.85"),
        ] {
            assert_eq!(dollars(Nanos(nanos)), text, "{nanos} nano-dollars");
        }
        assert_eq!(budget(Nanos(50_000_000_000)), "$50");
        assert_eq!(budget(Nanos(9_500_000_000)), "$9.50");
    }

    #[test]
    fn bars_and_percents() {
        assert_eq!(bar(0), "░░░░░░░░");
        assert_eq!(bar(50), "████░░░░");
        assert_eq!(bar(96), "███████▋");
        assert_eq!(bar(1000), "████████");
        assert_eq!(percent(Nanos(9_610_000_000), Nanos(10_000_000_000)), 96);
        assert_eq!(percent(Nanos(0), Nanos(0)), 100);
        assert_eq!(percent(Nanos(i64::MAX), Nanos(1)), u64::MAX);
    }

    #[test]
    fn text_of_others_only_shows() {
        assert_eq!(
            clean("a\u{1b}[2J\u{9b}b\n\u{202e}c é 日"),
            "a\\u{1b}[2J\\u{9b}b\\u{a}\\u{202e}c é 日"
        );
        let value = serde_json::json!({"a": "x\u{9b}\u{7f}\u{202e}\u{1b}\ny"});
        for text in [json(&value), json_line(&value)] {
            assert!(!text.chars().any(|c| acts(c) && c != '\n'), "{text:?}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
        assert_eq!(short("abcdef", 4), "abc…");
    }

    #[test]
    fn stretches_of_time() {
        assert_eq!(stretch(30 * 86_400 - 1), "30 d");
        assert_eq!(stretch(i64::MIN), "106751991167301 d");
        assert_eq!(stretch(7_300), "2 h");
        assert_eq!(stretch(125), "2 min");
        assert_eq!(stretch(5), "5 s");
        assert_eq!(took(812), "812 ms");
        assert_eq!(took(3_250), "3.2 s");
        assert_eq!(took(125_000), "2 m 05 s");
    }
}
