//! One row of LiteLLM's, field by field: money to nano-dollars, times to microseconds, and a note of
//! everything that had to be put right. A value of the wrong type counts as absent, and is noted.

use crate::admin::duration;
use crate::store::litellm::Raw;
use filters::model::money::Nanos;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

/// Longest id that is taken, in bytes: a ledger row holds no longer one.
const MAX_ID: usize = 512;
/// More than anybody spends, little enough that sums of it can be counted: 9 million dollars.
pub const MOST_NANOS: i64 = 9_000_000 * 1_000_000_000;

/// What was wrong with a field. Never holds the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    pub field: String,
    pub what: &'static str,
}

/// See the module.
pub struct Row {
    pub label: String,
    pub flaws: Vec<Flaw>,
    fields: Map<String, Value>,
}

/// What a field holds, by which it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Text,
    /// A list of strings.
    Texts,
    Count,
    /// Dollars, kept as such.
    Dollars,
    /// `30d`, as LiteLLM writes durations.
    Period,
    Flag,
    /// An object or a list, as it is.
    Json,
}

impl Row {
    /// The error says why the row cannot be read at all.
    pub fn new(raw: Raw) -> Result<Self, (String, &'static str)> {
        let Some(json) = raw.json else {
            return Err((raw.label, "the row is larger than 4 MiB"));
        };
        match serde_json::from_str(&json) {
            Ok(Value::Object(fields)) => Ok(Self {
                label: raw.label,
                flaws: Vec::new(),
                fields,
            }),
            _ => Err((raw.label, "it holds JSON that cannot be read here")),
        }
    }

    /// An object within a row, to be read like one.
    pub fn within(fields: &Map<String, Value>, label: &str) -> Self {
        Self {
            label: label.into(),
            flaws: Vec::new(),
            fields: fields.clone(),
        }
    }

    pub fn set(&mut self, name: &str, value: Value) {
        self.fields.insert(name.into(), value);
    }

    pub fn flaw(&mut self, field: &str, what: &'static str) {
        self.flaws.push(Flaw {
            field: field.into(),
            what,
        });
    }

    /// The value; null is absent.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|v| !v.is_null())
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|v| !v.is_null())
    }

    /// A text that is not empty.
    pub fn text(&self, name: &str) -> Option<String> {
        let text = self.value(name)?.as_str()?;
        (!text.is_empty()).then(|| text.to_string())
    }

    /// A text that names something: one line of at most 512 bytes. Another one is noted and absent.
    pub fn id(&mut self, name: &str) -> Option<String> {
        let text = self.text(name)?;
        match id_flaw(&text) {
            None => Some(text),
            Some(what) => {
                self.flaw(name, what);
                None
            }
        }
    }

    pub fn flag(&self, name: &str) -> bool {
        self.value(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Dollars as nano-dollars, cut to 0 … 9 million dollars.
    pub fn nanos(&mut self, name: &str) -> Option<i64> {
        let (nanos, flaw) = nanos(self.fields.get(name)?)?;
        if let Some(what) = flaw {
            self.flaw(name, what);
        }
        Some(nanos)
    }

    /// Microseconds since 1970. `timestamp` columns of LiteLLM's hold UTC.
    pub fn micros(&mut self, name: &str) -> Option<i64> {
        let text = self.text(name)?;
        match micros(&text) {
            Ok(micros) => Some(micros),
            Err(what) => {
                self.flaw(name, what);
                None
            }
        }
    }

    /// A time that ends something: what lies before all calendars has ended, what lies beyond never does.
    pub fn end(&mut self, name: &str) -> Option<i64> {
        let text = self.text(name)?;
        if text == "-infinity" || text.ends_with(" BC") {
            return Some(0);
        }
        self.micros(name)
    }

    pub fn texts(&mut self, name: &str) -> Vec<String> {
        match self.read(name, Shape::Texts) {
            Some(Value::Array(list)) => list
                .into_iter()
                .filter_map(|v| if let Value::String(s) = v { Some(s) } else { None })
                .collect(),
            _ => Vec::new(),
        }
    }

    pub fn object(&mut self, name: &str) -> Map<String, Value> {
        match self.value(name) {
            None => Map::new(),
            Some(Value::Object(fields)) => fields.clone(),
            Some(_) => {
                self.flaw(name, "is not an object, left out");
                Map::new()
            }
        }
    }

    /// The field as it is kept, or nothing where it says nothing.
    pub fn read(&mut self, name: &str, shape: Shape) -> Option<Value> {
        let value = self.value(name)?;
        match checked(value, shape) {
            Ok((value, None)) => value,
            Ok((value, Some(what))) => {
                self.flaw(name, what);
                value
            }
            Err(what) => {
                self.flaw(name, what);
                None
            }
        }
    }

    /// The fields of these shapes that say something.
    pub fn read_all(&mut self, shapes: &[(&str, Shape)]) -> Map<String, Value> {
        shapes
            .iter()
            .filter_map(|(name, shape)| Some(((*name).to_string(), self.read(name, *shape)?)))
            .collect()
    }
}

/// Why a text names nothing.
pub fn id_flaw(text: &str) -> Option<&'static str> {
    if text.len() > MAX_ID {
        Some("is longer than 512 bytes, left out")
    } else if text.contains(char::is_control) {
        Some("holds control characters, left out")
    } else {
        None
    }
}

type Checked = Result<(Option<Value>, Option<&'static str>), &'static str>;

fn checked(value: &Value, shape: Shape) -> Checked {
    let kept = match (shape, value) {
        (_, Value::Null) => None,
        (Shape::Text, Value::String(text)) => (!text.is_empty()).then(|| value.clone()),
        (Shape::Text, _) => return Err("is not a text, left out"),
        (Shape::Texts, Value::Array(list)) => {
            let texts: Vec<Value> = list.iter().filter(|v| v.is_string()).cloned().collect();
            let flaw = (texts.len() < list.len()).then_some("holds what is no text, which is left out");
            return Ok(((!texts.is_empty()).then_some(Value::Array(texts)), flaw));
        }
        (Shape::Texts, _) => return Err("is not a list, left out"),
        (Shape::Count, Value::Number(n)) => match n.as_u64() {
            Some(n) => Some(json!(n)),
            // What lies below zero lets nobody through, and neither does zero.
            None if n.as_i64().is_some() => return Ok((Some(json!(0)), Some("is negative, taken as 0"))),
            None => return Err("is not a whole number, left out"),
        },
        (Shape::Count, _) => return Err("is not a number, left out"),
        (Shape::Dollars, _) => {
            let (n, flaw) = nanos(value).ok_or("is not an amount, left out")?;
            // As it was written, so that it reads the same; put right, it is written anew.
            let kept = match flaw {
                None => value.clone(),
                Some(_) => json!(Nanos(n)),
            };
            return Ok((Some(kept), flaw));
        }
        (Shape::Period, Value::String(text)) if text.is_empty() => None,
        (Shape::Period, Value::String(text)) => match duration::span(text) {
            Ok(_) => Some(value.clone()),
            Err(_) => return Err("is not a duration such as 30d, left out"),
        },
        (Shape::Period, _) => return Err("is not a duration such as 30d, left out"),
        (Shape::Flag, Value::Bool(flag)) => flag.then_some(Value::Bool(true)),
        (Shape::Flag, _) => return Err("is not true or false, left out"),
        (Shape::Json, Value::Object(fields)) => (!fields.is_empty()).then(|| value.clone()),
        (Shape::Json, Value::Array(list)) => (!list.is_empty()).then(|| value.clone()),
        (Shape::Json, _) => return Err("is neither an object nor a list, left out"),
    };
    Ok((kept, None))
}

/// Nano-dollars of dollars, and what had to be put right. The database writes floats that are no numbers
/// as texts.
pub fn nanos(value: &Value) -> Option<(i64, Option<&'static str>)> {
    const LARGE: Option<&str> = Some("is more than 9 million dollars, cut to that");
    const BELOW: Option<&str> = Some("is negative, taken as 0");
    let dollars = match value {
        Value::Number(n) => n.as_f64()?,
        Value::String(text) => match text.as_str() {
            "NaN" => return Some((0, Some("is not a number, taken as 0"))),
            "Infinity" => return Some((MOST_NANOS, LARGE)),
            "-Infinity" => return Some((0, BELOW)),
            _ => return None,
        },
        _ => return None,
    };
    if dollars < 0.0 {
        return Some((0, BELOW));
    }
    match Nanos::from_dollars_f64(dollars) {
        Ok(Nanos(n)) if n <= MOST_NANOS => Some((n, None)),
        _ => Some((MOST_NANOS, LARGE)),
    }
}

fn micros(text: &str) -> Result<i64, &'static str> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.as_microsecond());
    }
    let plain: Result<DateTime, _> = text.parse();
    plain
        .ok()
        .and_then(|t| t.to_zoned(TimeZone::UTC).ok())
        .map(|z| z.timestamp().as_microsecond())
        .ok_or("is not a time of our calendar, left out")
}

/// When the budget period began that ends at `reset`, microseconds since 1970.
pub fn period_start(reset: i64, period: &str) -> Option<i64> {
    let span = duration::span(period).ok()?;
    let end = Timestamp::from_microsecond(reset).ok()?.to_zoned(TimeZone::UTC);
    Some(end.checked_sub(span).ok()?.timestamp().as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fields: Value) -> Row {
        Row::new(Raw {
            json: Some(fields.to_string()),
            label: "x".into(),
        })
        .unwrap_or_else(|_| panic!())
    }

    #[test]
    fn money_is_rounded_and_bounded() {
        let mut r = row(json!({
            "a": 0.1, "b": 0.0000000015, "c": -3, "d": "NaN", "e": "Infinity", "f": 1e300, "g": 9e6, "h": "x", "i": null
        }));
        assert_eq!(r.nanos("a"), Some(100_000_000));
        assert_eq!(r.nanos("b"), Some(2));
        assert!(r.flaws.is_empty());
        for (name, want) in [("c", 0), ("d", 0), ("e", MOST_NANOS), ("f", MOST_NANOS)] {
            r.flaws.clear();
            assert_eq!((r.nanos(name), r.flaws.len()), (Some(want), 1), "{name}");
        }
        r.flaws.clear();
        assert_eq!(r.nanos("g"), Some(MOST_NANOS));
        assert_eq!((r.nanos("h"), r.nanos("i"), r.nanos("none")), (None, None, None));
    }

    #[test]
    fn times_are_utc() {
        let mut r = row(json!({
            "a": "1970-01-01T00:00:01.5", "b": "1970-01-01T01:00:00+01:00", "c": "infinity", "d": "-infinity",
            "e": "0044-03-15T00:00:00 BC", "f": "294276-12-31T23:59:59"
        }));
        assert_eq!((r.micros("a"), r.micros("b")), (Some(1_500_000), Some(0)));
        assert_eq!((r.end("d"), r.end("e")), (Some(0), Some(0)));
        assert!(r.flaws.is_empty());
        assert_eq!((r.end("c"), r.end("f"), r.flaws.len()), (None, None, 2));
    }

    #[test]
    fn wrong_types_are_absent_and_noted() {
        let mut r = row(json!({
            "rpm_limit": "many", "tpm_limit": -1, "models": ["a", 1], "budget_duration": "1 OR 1=1", "metadata": [1],
            "blocked": "yes", "max_budget": -2.5
        }));
        let kept = r.read_all(&[
            ("rpm_limit", Shape::Count),
            ("tpm_limit", Shape::Count),
            ("models", Shape::Texts),
            ("budget_duration", Shape::Period),
            ("blocked", Shape::Flag),
            ("max_budget", Shape::Dollars),
            ("none", Shape::Json),
        ]);
        assert_eq!(
            Value::Object(kept),
            json!({"tpm_limit": 0, "models": ["a"], "max_budget": Nanos(0)})
        );
        assert!(r.object("metadata").is_empty());
        assert_eq!(r.flaws.len(), 7);
    }

    #[test]
    fn a_period_began_before_its_end() {
        let micros = |t: &str| t.parse::<Timestamp>().unwrap().as_microsecond();
        for (period, began) in [("1d", "2026-11-30T00:00:00Z"), ("1mo", "2026-11-01T00:00:00Z")] {
            assert_eq!(
                period_start(micros("2026-12-01T00:00:00Z"), period),
                Some(micros(began))
            );
        }
    }
}
